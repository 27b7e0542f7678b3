//! The cooperative route: a host publishes its modules with the crate `wstate-descriptor`, whose documentation has the
//! layout. Neither crate uses the other: a host should not have to take in a debugger, and a debugger should not publish a
//! descriptor. `tests/library/rust_layouts.rs` compares what both say of the layout.
//!
//! The descriptor is a static of the host. It is found by its symbol, or, in a stripped host, by its first bytes in
//! the writable data of a loaded file. Its list is made by the host, so the list is bounded, may not go in circles,
//! and each entry is checked like any other finding.

use super::route_tls::has_prologue;
use crate::limits;
use crate::process::objects::{LoadedObject, Objects};
use crate::process::{Mapping, Memory, Target};
use object::{Object, ObjectSymbol};
use std::collections::HashSet;

/// First bytes of the descriptor: text, and bytes that no text has.
pub const MAGIC: [u8; 16] = *b"wstate\xf0\x9f\xaa\xb2jit\x01\x0d\x0a";
/// Version of the descriptor's layout.
pub const VERSION: u32 = 1;
/// Size of a list entry in this version, in bytes.
pub const ENTRY_BYTES: u32 = 64;
/// The `format` of an entry whose map is a `ModuleStateMap` in borsh.
pub const FORMAT_STATE_MAP: u64 = 1;

/// Name of the static.
pub const SYMBOL: &str = "__wstate_descriptor";

/// A module that the host published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedModule {
    /// Address of the first byte of code.
    pub code_base: u64,
    /// Size of the code in bytes.
    pub code_len: u64,
    /// Address of the encoded `ModuleStateMap` (borsh).
    pub map_bytes_address: u64,
    /// Length of the encoded map in bytes.
    pub map_len: u64,
    /// Name that the host gave the module, if it can be read.
    pub name: Option<String>,
    /// What was confirmed, in words; two facts at least.
    pub checks: Vec<String>,
}

/// What the route found.
#[derive(Clone, Debug, Default)]
pub struct DescriptorFindings {
    /// The published modules, newest first.
    pub modules: Vec<PublishedModule>,
    /// What was looked at but could not be used, one line each.
    pub notes: Vec<String>,
}

/// Looks for descriptors in every loaded file and reads their lists.
pub fn find(target: &dyn Target, objects: &Objects) -> DescriptorFindings {
    let mut out = DescriptorFindings::default();
    let mut descriptors = Vec::new();
    for object in objects.iter() {
        descriptors.extend(by_symbol(object).filter(|&at| has_magic(target, at)));
    }
    if descriptors.is_empty() {
        descriptors = by_magic(target, objects, &mut out.notes);
    }
    descriptors.sort_unstable();
    descriptors.dedup();
    if descriptors.is_empty() {
        out.notes.push("no loaded file has a wstate descriptor".to_owned());
    }
    for at in descriptors {
        read_list(target, at, &mut out);
    }
    out
}

fn by_symbol(object: &LoadedObject) -> impl Iterator<Item = u64> {
    let files = [object.data.as_deref(), object.debug.as_ref().map(|(_, d)| &d[..])];
    let mut found = Vec::new();
    for data in files.into_iter().flatten() {
        let Ok(file) = object::File::parse(data) else { continue };
        for symbol in file.symbols().chain(file.dynamic_symbols()).take(limits::MAX_SYMBOLS) {
            if symbol.is_definition() && symbol.name_bytes() == Ok(SYMBOL.as_bytes()) {
                found.push(object.bias.wrapping_add(symbol.address()));
            }
        }
    }
    found.into_iter()
}

fn has_magic(memory: &dyn Memory, address: u64) -> bool {
    let mut bytes = [0; 16];
    memory.read(address, &mut bytes).is_ok() && bytes == MAGIC
}

/// Addresses of all aligned copies of the magic in the writable data of loaded files.
fn by_magic(target: &dyn Target, objects: &Objects, notes: &mut Vec<String>) -> Vec<u64> {
    let in_object = |m: &&Mapping| {
        m.read
            && m.write
            && objects.iter().any(|o| m.path.as_deref() == Some(&*o.path) || o.range.0 <= m.start && m.end <= o.range.1)
    };
    let mut found = Vec::new();
    let mut left = limits::MAX_DESCRIPTOR_SCAN_BYTES;
    let mut chunk = vec![0; 1 << 16];
    for mapping in target.mappings().iter().filter(in_object) {
        let mut at = mapping.start;
        while at < mapping.end {
            if left < chunk.len() as u64 || found.len() >= limits::MAX_DESCRIPTORS {
                notes.push(format!("search for a wstate descriptor stopped at {at:#x}: limit reached"));
                return found;
            }
            let want = (mapping.end - at).min(chunk.len() as u64);
            let Some(buffer) = chunk.get_mut(..want as usize) else { break };
            left -= want;
            let got = target.scan(at, buffer);
            for (i, words) in buffer.get(..got).unwrap_or(&[]).chunks_exact(16).enumerate() {
                if words == MAGIC {
                    found.push(at + 16 * i as u64);
                }
            }
            at += want;
        }
    }
    found
}

fn read_list(target: &dyn Target, descriptor: u64, out: &mut DescriptorFindings) {
    let header = (
        target.read_u32(descriptor.wrapping_add(16)),
        target.read_u32(descriptor.wrapping_add(20)),
        target.read_u64(descriptor.wrapping_add(24)),
    );
    let (Ok(version), Ok(entry_bytes), Ok(first)) = header else {
        out.notes.push(format!("the wstate descriptor at {descriptor:#x} is not readable"));
        return;
    };
    if version != VERSION || entry_bytes < ENTRY_BYTES {
        out.notes.push(format!(
            "the wstate descriptor at {descriptor:#x} has version {version} with entries of {entry_bytes} bytes; this \
             wstate reads version {VERSION}"
        ));
        return;
    }
    let mut seen = HashSet::new();
    let mut next = first;
    while next != 0 {
        if seen.len() >= limits::MAX_PUBLISHED_MODULES || !seen.insert(next) {
            out.notes.push(format!(
                "the list of the wstate descriptor at {descriptor:#x} is circular or endless at {next:#x}"
            ));
            return;
        }
        let mut words = [0u64; 8];
        for (i, word) in words.iter_mut().enumerate() {
            match target.read_u64(next.wrapping_add(8 * i as u64)) {
                Ok(value) => *word = value,
                Err(why) => {
                    out.notes.push(format!("entry of the wstate descriptor at {next:#x}: {why}"));
                    return;
                }
            }
        }
        match read_entry(target, &words) {
            Ok(module) => out.modules.extend(module),
            Err(why) => out.notes.push(format!("entry of the wstate descriptor at {next:#x}: {why}")),
        }
        next = words[0];
    }
}

fn read_entry(target: &dyn Target, words: &[u64; 8]) -> Result<Option<PublishedModule>, String> {
    let [_, format, code_base, code_len, map, map_len, name, name_len] = *words;
    match format {
        0 => return Ok(None),
        FORMAT_STATE_MAP => {}
        other => return Err(format!("format {other} is not known")),
    }
    let mut checks = Vec::new();
    let end = code_base.checked_add(code_len).filter(|_| code_len > 0);
    match target.mapping_at(code_base) {
        Some(m) if m.execute && end.is_some_and(|end| end <= m.end) => {
            checks.push("the code lies in an executable mapping".to_owned());
        }
        _ => return Err(format!("code at {code_base:#x} ({code_len} bytes) is not executable memory")),
    }
    // A `ModuleStateMap` in borsh is a u32 count, then a u64 key and the function for each, then a u64 total_size.
    if !(12..=limits::MAX_IMAGE_BYTES).contains(&map_len) || map.checked_add(map_len).is_none() {
        return Err(format!("a state map has not {map_len} bytes"));
    }
    let ends = (target.read_u32(map), target.read_u64(map + map_len - 8));
    let (Ok(count), Ok(total_size)) = ends else { return Err(format!("the state map at {map:#x} is not readable")) };
    if total_size > code_len || u64::from(count) > total_size || count as usize > limits::MAX_FUNCTIONS {
        return Err(format!("the state map is of {count} functions in {total_size} bytes, the code has {code_len}"));
    }
    checks.push(format!("its map ends with a size that fits the code ({total_size} bytes)"));
    if count > 0 {
        match target.read_u64(map + 4) {
            Ok(key) if key < total_size => {
                if has_prologue(target, code_base.wrapping_add(key)) {
                    checks.push("the first function of the map has the singlepass prologue".to_owned());
                }
            }
            _ => return Err("the first function of the map lies outside of the code".to_owned()),
        }
    }
    let name = usize::try_from(name_len)
        .ok()
        .filter(|len| *len <= 4096)
        .and_then(|len| target.read_vec(name, len).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .filter(|name| !name.is_empty());
    Ok(Some(PublishedModule { code_base, code_len, map_bytes_address: map, map_len, name, checks }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::objects::Problem;
    use crate::process::testing::CoreBuilder;
    use std::path::PathBuf;

    const DATA: u64 = 0x40_0000;
    const CODE: u64 = 0x70_0000;

    fn host(range: (u64, u64)) -> Objects {
        Objects::from_parts(vec![LoadedObject {
            path: PathBuf::from("/host"),
            opened: None,
            bias: 0,
            range,
            build_id: None,
            data: None,
            fits: None,
            debug: None,
            unpacked: Default::default(),
            excerpts: Default::default(),
            problem: Some(Problem { file: PathBuf::from("/host"), what: "missing".to_owned() }),
        }])
    }

    /// Searches a host whose data has the descriptor at +0x20, entries from +0x100 (64 bytes each) and a map at
    /// +0x800.
    fn find_in(version: u32, first: u64, entries: &[[u64; 8]], map: &[u8]) -> DescriptorFindings {
        let mut data = vec![0; 0x1000];
        data[0x20..0x30].copy_from_slice(&MAGIC);
        data[0x30..0x34].copy_from_slice(&version.to_le_bytes());
        data[0x34..0x38].copy_from_slice(&64u32.to_le_bytes());
        data[0x38..0x40].copy_from_slice(&first.to_le_bytes());
        for (entry, at) in entries.iter().zip((0x100..).step_by(64)) {
            for (word, at) in entry.iter().zip((at..).step_by(8)) {
                data[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        data[0x800..0x800 + map.len()].copy_from_slice(map);
        let core = CoreBuilder::new()
            .memory(DATA, 6, &data)
            .memory(CODE, 5, &[0xcc; 0x1000])
            .file(DATA, DATA + 0x1000, 0, "/host")
            .open()
            .unwrap();
        find(&core, &host((DATA, DATA + 0x1000)))
    }

    /// A state map of no functions in 0x100 bytes of code.
    fn empty_map() -> Vec<u8> {
        [&0u32.to_le_bytes()[..], &0x100u64.to_le_bytes()].concat()
    }

    #[test]
    fn a_stripped_host_without_its_file_is_read_and_unused_entries_are_passed_over() {
        let entry = [0, 1, CODE, 0x200, DATA + 0x800, 12, DATA + 0x810, 0];
        let unused = [DATA + 0x140, 0, 1, 1, 1, 1, 1, 1];
        let found = find_in(1, DATA + 0x100, &[unused, entry], &empty_map());
        assert_eq!(found.modules.len(), 1, "{:?}", found.notes);
        let module = &found.modules[0];
        assert_eq!((module.code_base, module.code_len, module.map_len), (CODE, 0x200, 12));
        assert_eq!((module.checks.len(), &module.name), (2, &None));
        assert!(found.notes.is_empty());
    }

    #[test]
    fn lists_and_entries_that_lie_are_notes() {
        let next_is_self = [DATA + 0x100, 0, 0, 0, 0, 0, 0, 0];
        let notes = |version, entry: [u64; 8]| {
            let found = find_in(version, DATA + 0x100, &[entry], &empty_map());
            assert!(found.modules.is_empty());
            found.notes.join("\n")
        };
        assert!(notes(1, next_is_self).contains("circular"));
        assert!(notes(2, next_is_self).contains("version 2"));
        assert!(notes(1, [8, 0, 0, 0, 0, 0, 0, 0]).contains("no memory can be read at 0x8"));
        let with = |code, len, map, map_len| [0, 1, code, len, map, map_len, 0, u64::MAX];
        let good = DATA + 0x800;
        assert!(notes(1, with(CODE, 0x200, u64::MAX - 4, 12)).contains("has not 12 bytes"));
        assert!(notes(1, with(CODE, 0x200, good, u64::MAX)).contains("has not"));
        assert!(notes(1, with(CODE, 0x200, good, 0)).contains("has not 0 bytes"));
        assert!(notes(1, with(CODE, u64::MAX, good, 12)).contains("not executable memory"));
        assert!(notes(1, with(DATA, 0x200, good, 12)).contains("not executable memory"));
        assert!(notes(1, with(CODE, 0x80, good, 12)).contains("0 functions in 256 bytes, the code has 128"));
        assert!(notes(1, [0, 7, CODE, 0x200, good, 12, 0, 0]).contains("format 7"));
    }

    #[test]
    fn so_much_is_searched_and_so_many_are_read() {
        for (bytes, limited) in
            [(limits::MAX_DESCRIPTOR_SCAN_BYTES, false), (limits::MAX_DESCRIPTOR_SCAN_BYTES + 0x1000, true)]
        {
            // None of this memory is in the core.
            let core = CoreBuilder::new().segment(DATA, bytes, 6, &[]).open().unwrap();
            let found = find(&core, &host((DATA, DATA + bytes)));
            assert_eq!(found.notes.iter().any(|n| n.contains("limit reached")), limited, "{:?}", found.notes);
        }
        for (count, limited) in [(limits::MAX_DESCRIPTORS - 1, false), (limits::MAX_DESCRIPTORS, true)] {
            // The copies lie in the first piece that is searched, and another piece follows.
            let mut data = MAGIC.repeat(count);
            data.resize(0x1_1000, 0);
            let core = CoreBuilder::new().memory(DATA, 6, &data).open().unwrap();
            let found = find(&core, &host((DATA, DATA + data.len() as u64)));
            assert_eq!(found.notes.iter().any(|n| n.contains("limit reached")), limited, "{:?}", found.notes);
        }
        for (count, endless) in [(limits::MAX_PUBLISHED_MODULES, false), (limits::MAX_PUBLISHED_MODULES + 1, true)] {
            let mut data = [&MAGIC[..], &VERSION.to_le_bytes(), &ENTRY_BYTES.to_le_bytes()].concat();
            data.extend((DATA + 0x40).to_le_bytes());
            data.resize(0x40, 0);
            for i in 1..=count as u64 {
                let next = if i == count as u64 { 0 } else { DATA + 0x40 * (i + 1) };
                data.extend([next, 0, 0, 0, 0, 0, 0, 0].map(u64::to_le_bytes).concat());
            }
            let core = CoreBuilder::new().memory(DATA, 6, &data).open().unwrap();
            let found = find(&core, &host((DATA, DATA + data.len() as u64)));
            assert_eq!(found.notes.iter().any(|n| n.contains("endless")), endless, "{:?}", found.notes);
        }
    }
}
