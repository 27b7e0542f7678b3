//! Reads core files, which the kernel or gdb wrote of a process.

use super::elf::{self, HEADER_SIZE, Header, Headers, PHDR_SIZE, Phdr, pf, pt};
use super::files::{Place, map_file, map_place};
use super::memory::{CUT_OFF, Content, Holder, PAGE, Splice};
use super::notes::{Notes, without_deleted};
use super::objects::SearchPaths;
use super::same_file::{self, Evidence};
use super::{Mapping, Memory, MemoryError, Target, Thread};
use crate::arch::Machine;
use crate::bytes::Bytes;
use crate::error::Error;
use crate::limits;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why bytes are absent which the writer of the core left out.
const NOT_DUMPED: &str = "not dumped";
const OTHER_FILE: &str = "not dumped, and the file on disk is another build";

/// Value of `e_phnum` in a file with more program headers than the field can hold. The number is then in `sh_info` of
/// the first section header.
pub(super) const PN_XNUM: u16 = 0xffff;
/// Offset of `sh_info` in a section header, in bytes.
pub(super) const SH_INFO: usize = 44;

/// A core file as a target.
pub struct CoreTarget {
    path: PathBuf,
    machine: Machine,
    notes: Notes,
    lines: Vec<String>,
    mappings: Vec<Mapping>,
    executable: Option<PathBuf>,
    search: SearchPaths,
    memory: Splice,
    /// The part of `memory` that the core itself holds, without what files add.
    own: Splice,
}

impl CoreTarget {
    /// Maps the core and reads its headers and notes. The memory that it holds is read only when somebody asks for
    /// it.
    pub fn open(path: &Path, search: &SearchPaths) -> Result<CoreTarget, Error> {
        let file = match map_file(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Error::Core {
                    path: path.into(),
                    why: "the file is empty (no space left when it was written?)".into(),
                });
            }
            Err(source) => return Err(Error::File { path: path.into(), source }),
        };
        CoreTarget::from_bytes(path, Arc::new(file), search)
    }

    /// Like [`CoreTarget::open`], for bytes that are already in memory. `path` is only used in messages and to find
    /// files beside the core.
    pub fn from_bytes(path: &Path, holder: Holder, search: &SearchPaths) -> Result<CoreTarget, Error> {
        let data: &[u8] = (*holder).as_ref();
        let mut lines = Vec::new();
        let (machine, phdrs) =
            program_headers(data, &mut lines).map_err(|why| Error::Core { path: path.into(), why })?;

        let segments = phdrs.iter().filter(|p| p.kind == pt::NOTE).map(|p| present(data, p));
        let notes = Notes::parse(machine, segments);
        lines.extend(notes.problems.iter().cloned());
        if notes.threads.is_empty() {
            lines.push("the core lists no thread (no NT_PRSTATUS)".to_string());
        }

        let needed = phdrs.iter().map(|p| p.offset.saturating_add(p.filesz)).max().unwrap_or(0);
        if needed > data.len() as u64 {
            lines.push(format!("the core is cut off: {} of {needed} bytes are there", data.len()));
        }
        let loads: Vec<Phdr> =
            phdrs.iter().filter(|p| p.kind == pt::LOAD).filter_map(|p| sane(p, &mut lines)).collect();
        let mut memory = Splice::new();
        for p in &loads {
            let end = p.vaddr + p.memsz;
            let dumped = p.vaddr + p.filesz;
            let there = (data.len() as u64).saturating_sub(p.offset).min(p.filesz);
            // The kernel leaves out what coredump_filter does not ask for, and gdb leaves out what it could not read.
            // Therefore bytes that a segment does not hold are unknown. They are never zero, as they are in an
            // executable.
            memory.add(dumped, end, Content::Absent(NOT_DUMPED));
            memory.add(p.vaddr + there, dumped, Content::Absent(CUT_OFF));
            if let Ok(offset) = usize::try_from(p.offset) {
                memory.add(p.vaddr, p.vaddr + there, Content::Bytes { holder: holder.clone(), offset });
            }
        }
        let (mappings, unlisted) = mappings(&loads, &notes);
        // gdb writes no segment at all for memory that coredump_filter leaves out, but NT_FILE still lists it.
        for &(start, end) in &unlisted {
            memory.add(start, end, Content::Absent(NOT_DUMPED));
        }
        let mut core = CoreTarget {
            path: path.into(),
            machine,
            notes,
            lines,
            mappings,
            executable: None,
            search: search.clone(),
            own: memory.clone(),
            memory,
        };
        core.executable = core.find_executable();
        core.fill_from_files(&unlisted);
        Ok(core)
    }

    /// Start of the command line, for the head of the report.
    pub fn command_line(&self) -> Option<&str> {
        self.notes.arguments.as_deref()
    }

    fn find_executable(&self) -> Option<PathBuf> {
        // The program headers lie in the executable, so AT_PHDR leads to its mapping. AT_EXECFN is the path that was
        // given to execve and may be relative.
        let by_address = [libc::AT_PHDR, libc::AT_ENTRY].iter().find_map(|&key| {
            let mapping = self.mapping_at(self.notes.auxv(key)?)?;
            if mapping.is_anonymous() { None } else { mapping.path.clone() }
        });
        by_address.or_else(|| {
            let at = self.notes.auxv(libc::AT_EXECFN)?;
            let mut name = vec![0; 4096];
            let n = self.read_some(at, &mut name);
            let name = name.get(..n)?.split(|&c| c == 0).next().filter(|name| !name.is_empty() && name.len() < n)?;
            use std::os::unix::ffi::OsStrExt;
            Some(PathBuf::from(std::ffi::OsStr::from_bytes(name)))
        })
    }

    /// Fills memory that was not dumped from the files that were mapped. By default the kernel writes no executable
    /// code into a core.
    fn fill_from_files(&mut self, unlisted: &[(u64, u64)]) {
        let mut by_path: HashMap<PathBuf, Vec<Mapping>> = HashMap::new();
        for m in &self.mappings {
            if let Some(path) = &m.path
                && !m.is_anonymous()
                && (by_path.len() < limits::MAX_OBJECTS || by_path.contains_key(path))
            {
                by_path.entry(path.clone()).or_default().push(m.clone());
            }
        }
        for mut mappings in by_path.into_values() {
            let missing =
                |m: &Mapping| !m.write && self.memory.available(m.start, m.size() as usize) as u64 != m.size();
            let Some(first) = mappings.iter().find(|m| missing(m)) else { continue };
            let (file, headers) = match self.matching_file(first, &mappings) {
                Found::Yes(file, headers) => (file, headers),
                Found::Other => {
                    for m in mappings.iter().filter(|m| !m.write) {
                        self.memory.fill_absent(m.start, m.end, &Content::Absent(OTHER_FILE));
                    }
                    continue;
                }
                Found::No => continue,
            };
            let bytes: &[u8] = (*file).as_ref();
            let size = bytes.len() as u64;
            for m in mappings.iter_mut().filter(|m| unlisted.binary_search(&(m.start, m.end)).is_ok()) {
                // Linkers that do not pad segments (LLD) let the end of one segment and the start of the next share a
                // page of the file. A mapping of this page belongs to the later segment.
                let part = headers.loads().filter(|p| {
                    let end = p.offset.saturating_add(p.filesz);
                    (p.offset & !(PAGE - 1)) <= m.offset && m.offset < end
                });
                let part = part.max_by_key(|p| p.offset);
                if let (Some(part), Ok(i)) = (part, self.mappings.binary_search_by_key(&m.start, |m| m.start))
                    && let Some(listed) = self.mappings.get_mut(i)
                {
                    listed.read = part.flags & pf::R != 0;
                    listed.write = part.flags & pf::W != 0;
                    listed.execute = part.flags & pf::X != 0;
                    *m = listed.clone();
                }
            }
            // Writable pages may differ from the file, so they are not filled.
            for m in mappings.iter().filter(|m| !m.write) {
                // Relocated constants (.data.rel.ro) are read-only in memory but writable by the program headers, and
                // they differ from the file.
                let constant = headers.loads().any(|p| {
                    p.flags & pf::W == 0
                        && (p.offset & !(PAGE - 1)) <= m.offset
                        && m.offset < p.offset.saturating_add(p.filesz)
                });
                if !constant || m.offset >= size {
                    continue;
                }
                let Ok(offset) = usize::try_from(m.offset) else { continue };
                let end = m.start.saturating_add(size - m.offset).min(m.end);
                self.memory.fill_absent(m.start, end, &Content::Bytes { holder: file.clone(), offset });
                // Behind the file's end the rest of the last page is zero. The pages behind that one do not exist
                // (SIGBUS).
                let page_end = end.saturating_add(PAGE - 1) & !(PAGE - 1);
                self.memory.fill_absent(end, page_end.min(m.end), &Content::Zero);
            }
        }
    }

    /// Finds the first candidate file that is the one which was mapped, as far as the core can tell.
    fn matching_file(&self, first: &Mapping, mappings: &[Mapping]) -> Found {
        // The kernel dumps the first page of every mapped ELF file (coredump_filter bit 4).
        let start = mappings.iter().filter(|m| m.offset == 0).map(|m| m.start).find(|&s| {
            let mut magic = [0; 4];
            self.memory.read(s, &mut magic).is_ok() && &magic == b"\x7fELF"
        });
        let in_core = start.and_then(|s| {
            let read = |offset: u64, len: usize| self.read_vec(s.checked_add(offset)?, len).ok();
            let headers = Headers::read(read)?;
            let bias = s.wrapping_sub(headers.lowest()?);
            let id = headers.build_id(|p| self.read_vec(bias.wrapping_add(p.vaddr), p.filesz as usize).ok());
            Some((headers, id))
        });
        let mut result = Found::No;
        for candidate in self.file_candidates(first) {
            let Ok(file) = map_place(&candidate) else { continue };
            let Some(headers) = Headers::of_file(&file) else { continue };
            let all: Vec<&Mapping> = mappings.iter().collect();
            let agrees = || {
                let read = |address, buffer: &mut [u8]| self.read_own(address, buffer);
                same_file::compare(&file, &headers, &all, read) != Evidence::Other
            };
            let same = match &in_core {
                Some((_, Some(id))) => headers.build_id_of_file(&file).as_ref() == Some(id),
                Some((theirs, None)) => {
                    theirs.phdrs == headers.phdrs && theirs.header.entry == headers.header.entry && agrees()
                }
                // If nothing can be compared, the file is accepted for its name alone.
                None => headers.dynamic_agrees(&file, &all, &self.memory).unwrap_or(true) && agrees(),
            };
            if same {
                return Found::Yes(Arc::new(file), Box::new(headers));
            }
            result = Found::Other;
        }
        result
    }
}

enum Found {
    Yes(Holder, Box<Headers>),
    Other,
    No,
}

impl Memory for CoreTarget {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(address, buf)
    }

    fn read_some(&self, address: u64, buf: &mut [u8]) -> usize {
        let n = self.memory.available(address, buf.len());
        if self.memory.read(address, &mut buf[..n]).is_ok() { n } else { 0 }
    }
}

impl Target for CoreTarget {
    fn description(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
        let of = self.executable.as_ref().and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
        match of.or_else(|| self.notes.command.clone()) {
            Some(of) => format!("core {name} of {of}"),
            None => format!("core {name}"),
        }
    }

    fn machine(&self) -> Machine {
        self.machine
    }

    fn threads(&self) -> &[Thread] {
        &self.notes.threads
    }

    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn executable(&self) -> Option<&Path> {
        self.executable.as_deref().or(self.search.executable.as_deref())
    }

    fn pid(&self) -> Option<u32> {
        self.notes.pid
    }

    fn auxv(&self, key: u64) -> Option<u64> {
        self.notes.auxv(key)
    }

    fn file_candidates(&self, mapping: &Mapping) -> Vec<Place> {
        if mapping.is_anonymous() {
            return Vec::new();
        }
        let Some((path, _)) = without_deleted(mapping) else { return Vec::new() };
        let mut out = Vec::new();
        if self.executable.is_some() && self.executable == mapping.path {
            out.extend(self.search.executable.clone().map(Place::user));
        }
        if let Some(root) = self.search.sysroot.as_ref().filter(|_| path.is_absolute()) {
            out.push(Place::within(root, &path));
        }
        // Cores are often handed on together with the files, in one directory.
        let neighbour = path.file_name().and_then(|name| Some(self.path.parent()?.join(name)));
        out.push(Place::named(path));
        out.extend(neighbour.map(Place::named));
        out
    }

    fn notes(&self) -> &[String] {
        &self.lines
    }

    fn is_live(&self) -> bool {
        false
    }

    fn read_own(&self, address: u64, buf: &mut [u8]) -> usize {
        let n = self.own.available(address, buf.len());
        if self.own.read(address, &mut buf[..n]).is_ok() { n } else { 0 }
    }
}

/// Reads the machine and the program headers that are there. The error says why this is no core that can be read.
fn program_headers(data: &[u8], lines: &mut Vec<String>) -> Result<(Machine, Vec<Phdr>), String> {
    const COMPRESSED: [(&[u8], &str, &str); 5] = [
        (b"\x1f\x8b", "gzip", "gzip -dk"),
        (b"\x28\xb5\x2f\xfd", "zstd", "zstd -d"),
        (b"\x04\x22\x4d\x18", "lz4", "lz4 -d"),
        (b"\xfd7zXZ\0", "xz", "xz -dk"),
        (b"BZh", "bzip2", "bzip2 -dk"),
    ];
    if data.is_empty() {
        return Err("the file is empty".into());
    }
    if let Some((_, name, command)) = COMPRESSED.iter().find(|(magic, _, _)| data.starts_with(magic)) {
        return Err(format!("it is compressed with {name}; decompress it first ({command} FILE)"));
    }
    let header = Header::parse(data).map_err(|e| e.to_string())?;
    const ET_CORE: u16 = 4;
    let Some(machine) = Machine::from_elf(header.machine) else {
        let known = Machine::ALL.iter().map(|machine| machine.description());
        let known: Vec<String> = known.map(|machine| format!("{} ({})", machine.name, machine.elf)).collect();
        return Err(format!(
            "it is of another machine (ELF machine {}); only {} is supported",
            header.machine,
            known.join(" or ")
        ));
    };
    match header.kind {
        ET_CORE => {}
        1 => return Err("it is an object file, not a core".into()),
        2 | 3 => {
            return Err("it is an executable or a library, not a core; give the core first, then the executable".into());
        }
        other => return Err(format!("it is an ELF file of type {other}, not a core (4)")),
    }
    if u64::from(header.phentsize) != PHDR_SIZE {
        return Err(format!("its program headers have {} bytes each, not {PHDR_SIZE}", header.phentsize));
    }
    if header.phoff < HEADER_SIZE {
        return Err(format!("its program headers lie at offset {}, inside the ELF header", header.phoff));
    }
    let there = (data.len() as u64).saturating_sub(header.phoff) / PHDR_SIZE;
    if there == 0 {
        return Err("it is cut off before its first program header".into());
    }
    let parse = |count: u64| -> Vec<Phdr> {
        let table = elf::slice(data, header.phoff, count.min(there) * PHDR_SIZE).unwrap_or_default();
        let mut b = Bytes::new(table);
        std::iter::from_fn(|| Phdr::parse(&mut b).ok()).collect()
    };
    let count = if header.phnum != PN_XNUM {
        u64::from(header.phnum)
    } else {
        // There are more than 65534 program headers. Their number is in the first section header, which the kernel
        // writes at the very end of the core, so a core that is cut off has lost it. Then the table is taken to end
        // where the contents of the first segment begin.
        match header.shoff.checked_add(SH_INFO as u64).and_then(|at| elf::slice(data, at, 4)) {
            Some(b) => b.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)),
            None => {
                lines.push("the number of segments is cut off; it was found from the first segment's place".into());
                parse(1).first().map_or(0, |first| first.offset.saturating_sub(header.phoff) / PHDR_SIZE)
            }
        }
    };
    if count == 0 {
        return Err("it has no program headers".into());
    }
    if count > there {
        lines.push(format!("the core is cut off: {there} of {count} program headers are there"));
    }
    Ok((machine, parse(count)))
}

/// The part of a segment's contents that is in the file.
fn present<'a>(data: &'a [u8], p: &Phdr) -> &'a [u8] {
    let len = (data.len() as u64).saturating_sub(p.offset).min(p.filesz);
    elf::slice(data, p.offset, len).unwrap_or_default()
}

/// Returns the segment with its sizes reduced so that its sums do not overflow and its file part is not larger than
/// its memory. Returns `None` if it has no memory.
fn sane(p: &Phdr, lines: &mut Vec<String>) -> Option<Phdr> {
    let mut p = *p;
    if p.memsz == 0 {
        return None;
    }
    let odd = p.vaddr.checked_add(p.memsz).is_none() || p.filesz > p.memsz;
    if odd && lines.len() < 64 {
        lines.push(format!(
            "the segment at {:#x} has impossible sizes ({:#x} in memory, {:#x} in the file)",
            p.vaddr, p.memsz, p.filesz
        ));
    }
    p.memsz = p.memsz.min(u64::MAX - p.vaddr);
    p.filesz = p.filesz.min(p.memsz);
    (p.memsz > 0).then_some(p)
}

/// Makes mappings from the segments, cut and named by NT_FILE. Also returns the ranges that only NT_FILE lists: their
/// access rights are not known, and the core has no bytes of them.
fn mappings(loads: &[Phdr], notes: &Notes) -> (Vec<Mapping>, Vec<(u64, u64)>) {
    let mut unlisted = Vec::new();
    let mut map: BTreeMap<u64, Mapping> = BTreeMap::new();
    for p in loads {
        put(
            &mut map,
            Mapping {
                start: p.vaddr,
                end: p.vaddr + p.memsz,
                read: p.flags & pf::R != 0,
                write: p.flags & pf::W != 0,
                execute: p.flags & pf::X != 0,
                offset: 0,
                path: None,
            },
        );
    }
    let mut pieces = 0;
    for file in &notes.files {
        // Without this limit, ranges that overlap again and again would cost the square of their number.
        if pieces > limits::MAX_MAPPINGS {
            break;
        }
        // Every segment, or part of a segment, that lies in the named range.
        let parts: Vec<Mapping> = overlapping(&map, file.start, file.end);
        let mut at = file.start;
        let mut named = Vec::new();
        let name = |start: u64, end: u64, like: Option<&Mapping>| Mapping {
            start,
            end,
            read: like.is_some_and(|m| m.read),
            write: like.is_some_and(|m| m.write),
            execute: like.is_some_and(|m| m.execute),
            offset: file.offset.saturating_add(start - file.start),
            path: Some(file.path.clone()),
        };
        for part in parts {
            let (start, end) = (part.start.max(at), part.end.min(file.end));
            if at < start {
                named.push(name(at, start, None));
                unlisted.push((at, start));
            }
            named.push(name(start, end, Some(&part)));
            at = end;
        }
        if at < file.end {
            named.push(name(at, file.end, None));
            unlisted.push((at, file.end));
        }
        pieces += named.len();
        for m in named {
            put(&mut map, m);
        }
    }
    for (address, name) in [(notes.auxv(libc::AT_SYSINFO_EHDR), "[vdso]"), (Some(0xffff_ffff_ff60_0000), "[vsyscall]")]
    {
        if let Some(address) = address
            && let Some(m) = map.get_mut(&address)
            && m.path.is_none()
        {
            m.path = Some(PathBuf::from(name));
        }
    }
    unlisted.sort_unstable();
    (map.into_values().collect(), unlisted)
}

fn overlapping(map: &BTreeMap<u64, Mapping>, start: u64, end: u64) -> Vec<Mapping> {
    let before = map.range(..start).next_back().map(|(_, m)| m).filter(|m| m.end > start);
    before.into_iter().chain(map.range(start..end).map(|(_, m)| m)).cloned().collect()
}

/// Adds a mapping, which replaces what is there at its addresses.
fn put(map: &mut BTreeMap<u64, Mapping>, new: Mapping) {
    for old in overlapping(map, new.start, new.end) {
        map.remove(&old.start);
        if old.start < new.start {
            map.insert(old.start, Mapping { end: new.start, ..old.clone() });
        }
        if old.end > new.end {
            let into = if old.path.is_some() { new.end - old.start } else { 0 };
            let offset = old.offset.saturating_add(into);
            map.insert(new.end, Mapping { start: new.end, offset, ..old });
        }
    }
    map.insert(new.start, new);
}

#[cfg(test)]
mod tests {
    use super::super::testing::CoreBuilder;
    use super::*;
    use crate::arch::{Registers, x64};

    fn registers(pc: u64) -> Registers {
        let mut r = Registers::unknown(Machine::X64);
        r.set(x64::RIP, pc);
        r.set(x64::RSP, 0x7000);
        r.set(x64::R15, 15);
        r.set(x64::XMM15, 0x4037_0000_0000_0000);
        r
    }

    fn two_threads() -> CoreBuilder {
        CoreBuilder::new()
            .thread(12, 11, &registers(0x1234), 0xf5)
            .process(11, "app", "app --flag ")
            .thread(11, 11, &registers(0x5678), 0xf6)
            .auxv(libc::AT_PHDR, 0x40_0040)
            .memory(0x40_0000, 5, &[1; 0x1000])
            .segment(0x40_1000, 0x2000, 6, &[2; 0x800])
            .memory(0x7000, 6, &[3; 64])
            .file(0x40_0000, 0x40_1000, 0, "/bin/app")
            .file(0x40_1000, 0x40_2000, 0x3000, "/bin/app")
    }

    fn open(bytes: Vec<u8>) -> Result<CoreTarget, Error> {
        CoreTarget::from_bytes(Path::new("core.test"), Arc::new(bytes), &SearchPaths::default())
    }

    #[test]
    fn threads_registers_and_names() {
        let core = two_threads().open().unwrap();
        let [first, second] = core.threads() else { panic!("{:?}", core.threads()) };
        assert_eq!((first.id.0, first.signal, first.name.as_deref(), first.fs_base), (12, Some(11), None, Some(0xf5)));
        // The kernel gives every thread the fatal signal, but only the first thread keeps it here.
        assert_eq!((second.id.0, second.signal, second.name.as_deref()), (11, None, Some("app")));
        assert_eq!(first.registers.pc(), Some(0x1234));
        assert_eq!(first.registers.get(x64::R15), Some(15));
        assert_eq!(first.registers.get(x64::XMM15), Some(0x4037_0000_0000_0000));
        assert_eq!((core.pid(), core.command_line()), (Some(11), Some("app --flag")));
        assert_eq!(core.executable(), Some(Path::new("/bin/app")));
        assert_eq!(core.description(), "core core.test of app");
        assert!(core.notes().is_empty(), "{:?}", core.notes());
    }

    #[test]
    fn memory_that_was_not_dumped_is_absent_not_zero() {
        let core = two_threads().open().unwrap();
        assert_eq!(core.read_u32(0x40_17fc), Ok(0x0202_0202));
        assert!(matches!(core.read_u32(0x40_17fe), Err(MemoryError::Absent { why: NOT_DUMPED, .. })));
        assert!(matches!(core.read_u32(0x40_3000), Err(MemoryError::Unmapped { .. })));
        let mut buf = [0; 0x1000];
        assert_eq!(core.read_some(0x40_1700, &mut buf), 0x100);
    }

    #[test]
    fn mappings_are_cut_and_named() {
        let core = two_threads().open().unwrap();
        let show: Vec<String> = core
            .mappings()
            .iter()
            .map(|m| format!("{:x}-{:x} {} {} {:x} {:?}", m.start, m.end, m.write, m.execute, m.offset, m.path))
            .collect();
        assert_eq!(
            show,
            [
                "7000-7040 true false 0 None",
                "400000-401000 false true 0 Some(\"/bin/app\")",
                "401000-402000 true false 3000 Some(\"/bin/app\")",
                "402000-403000 true false 0 None",
            ]
        );
    }

    #[test]
    fn cut_at_every_byte_keeps_what_is_there() {
        let whole = two_threads().build();
        let mut seen_threads = 0;
        for len in 0..whole.len() {
            let Ok(core) = open(whole[..len].to_vec()) else {
                assert!(len < 64 + 56, "refused at {len}");
                continue;
            };
            assert!(core.notes().iter().any(|n| n.contains("cut off")), "{len}: {:?}", core.notes());
            assert!(core.threads().len() >= seen_threads);
            seen_threads = core.threads().len();
            let mut b = [0; 16];
            for at in [0x7000u64, 0x7030, 0x40_0000, 0x40_1000, 0x40_17f0] {
                match core.read(at, &mut b) {
                    Ok(()) => assert!(b.iter().all(|&c| (1..4).contains(&c)), "{len} {at:#x}"),
                    Err(MemoryError::Absent { why, .. }) => assert_eq!(why, CUT_OFF),
                    Err(MemoryError::Unmapped { .. }) => assert!(len < 64 + 56 * 4),
                    Err(e) => panic!("{e}"),
                }
            }
        }
        assert_eq!(seen_threads, 2);
    }

    #[test]
    fn any_flipped_header_byte_is_survived() {
        let whole = two_threads().build();
        let end = 64 + 56 * 4 + 600;
        for at in 0..end {
            for value in [0x00, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                if let Ok(core) = open(bytes) {
                    let mut b = [0; 64];
                    for m in core.mappings() {
                        let _ = core.read(m.start, &mut b);
                        let _ = core.read_some(m.end.wrapping_sub(32), &mut b);
                    }
                    let sorted = core.mappings().windows(2).all(|w| w[0].end <= w[1].start);
                    assert!(sorted, "byte {at} = {value:#x}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_core_is_refused_with_the_reason() {
        let core = two_threads().build();
        let with = |at: usize, bytes: &[u8]| {
            let mut c = core.clone();
            c[at..at + bytes.len()].copy_from_slice(bytes);
            c
        };
        for (bytes, expected) in [
            (vec![], "empty"),
            (b"hello, world".to_vec(), "not an ELF file"),
            (b"\x1f\x8b\x08".to_vec(), "gzip"),
            (b"\x28\xb5\x2f\xfd\x00".to_vec(), "zstd -d"),
            (b"\x04\x22\x4d\x18\x00".to_vec(), "lz4"),
            (core[..40].to_vec(), "ends inside its ELF header"),
            (core[..100].to_vec(), "cut off before its first program header"),
            (with(4, &[1]), "32-bit"),
            (with(5, &[2]), "big-endian"),
            (with(18, &[183, 0]), "another machine (ELF machine 183)"),
            (with(16, &[3, 0]), "an executable or a library"),
            (with(54, &[32, 0]), "32 bytes each"),
            (with(56, &[0, 0]), "no program headers"),
            (with(32, &[8, 0]), "inside the ELF header"),
        ] {
            match open(bytes) {
                Err(e) => assert!(e.to_string().contains(expected), "{e} / {expected}"),
                Ok(_) => panic!("{expected}"),
            }
        }
    }

    #[test]
    fn more_segments_than_fit_the_header() {
        // With PN_XNUM the number is in the first section header, or lost with the core's end.
        let mut bytes = two_threads().build();
        let shoff = bytes.len() as u64;
        bytes[56..58].copy_from_slice(&[0xff, 0xff]);
        bytes[40..48].copy_from_slice(&shoff.to_le_bytes());
        let cut = open(bytes.clone()).unwrap();
        assert_eq!((cut.mappings().len(), cut.threads().len()), (4, 2));
        assert!(cut.notes()[0].contains("number of segments"));
        let mut section = [0; 64];
        section[44] = 3;
        bytes.extend(section);
        let core = open(bytes).unwrap();
        assert_eq!(core.notes().len(), 0);
        assert!(matches!(core.read_u32(0x7000), Err(MemoryError::Unmapped { .. })), "the fourth is not counted");
    }

    #[test]
    fn a_huge_hollow_segment_costs_nothing() {
        let core = CoreBuilder::new().segment(0x1000, 1 << 46, 6, &[7]).thread(1, 0, &registers(1), 0).open().unwrap();
        assert_eq!(core.mappings()[0].size(), 1 << 46);
        assert!(matches!(core.read_u64(0x1000_0000), Err(MemoryError::Absent { .. })));
    }

    /// A little shared object: a header page, a code page, and a page of relocated constants.
    fn library(id: u8, code: u8) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        out.extend([3u16, 62].into_iter().flat_map(u16::to_le_bytes));
        out.extend(1u32.to_le_bytes());
        out.extend([0u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
        out.extend(0u32.to_le_bytes());
        out.extend([64u16, 56, 5, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
        for (kind, flags, offset, filesz, memsz) in [
            (1u32, 4u32, 0u64, 0x1000u64, 0x1000u64),
            (1, 5, 0x1000, 0x900, 0x900),
            (1, 6, 0x2000, 0x1000, 0x1000),
            (4, 4, 0x400, 20, 20),
            (2, 6, 0x2800, 64, 64),
        ] {
            out.extend([kind, flags].into_iter().flat_map(u32::to_le_bytes));
            out.extend([offset, offset, offset, filesz, memsz, 0x1000].into_iter().flat_map(u64::to_le_bytes));
        }
        out.resize(0x400, 0);
        out.extend([4u32, 4, 3].into_iter().flat_map(u32::to_le_bytes));
        out.extend(b"GNU\0");
        out.extend([id; 4]);
        out.resize(0x1000, 0);
        out.resize(0x2800, code);
        out.extend([12, 0x1000, 21, 0, 7, 0x400 + u64::from(id), 0, 0].into_iter().flat_map(u64::to_le_bytes));
        out.resize(0x3000, code);
        out
    }

    #[test]
    fn without_a_header_in_the_core_the_dynamic_section_decides() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lib.so");
        std::fs::write(&file, library(1, 0xc3)).unwrap();
        let name = file.to_str().unwrap();
        for id in [1, 2] {
            let mut data = library(id, 0xc3)[0x2000..].to_vec();
            // The dynamic linker has changed the section: one address is relocated, and DT_DEBUG is filled in.
            data[0x808..0x810].copy_from_slice(&0x10_1000u64.to_le_bytes());
            data[0x818] = 0x77;
            let core = CoreBuilder::new()
                .file(0x10_0000, 0x10_1000, 0, name)
                .file(0x10_1000, 0x10_2000, 0x1000, name)
                .file(0x10_2000, 0x10_3000, 0x2000, name)
                .memory(0x10_2000, 6, &data)
                .open()
                .unwrap();
            let objects = super::super::objects::Objects::load(&core, &SearchPaths::default());
            let lib = objects.find(0x10_1004).unwrap();
            if id == 1 {
                assert_eq!(core.read_u32(0x10_1004), Ok(0xc3c3_c3c3));
                assert!(lib.data.is_some() && lib.bias == 0x10_0000);
            } else {
                assert!(matches!(core.read_u32(0x10_1004), Err(MemoryError::Absent { why: OTHER_FILE, .. })));
                assert!(lib.data.is_none() && lib.problem.as_deref().unwrap().contains("is not the file"));
            }
        }
    }

    #[test]
    fn ranges_that_only_the_file_list_names_are_mapped_and_absent() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lib.so");
        std::fs::write(&file, library(1, 0xc3)).unwrap();
        for (name, execute) in [(file.to_str().unwrap(), true), ("/nowhere/lib.so", false)] {
            let core = CoreBuilder::new().file(0x10_1000, 0x10_2000, 0x1000, name).memory(0, 4, &[1]).open().unwrap();
            let m = core.mapping_at(0x10_1000).unwrap();
            assert_eq!((m.execute, m.offset, m.size()), (execute, 0x1000, 0x1000));
            match core.read_u32(0x10_1000) {
                Ok(word) => assert!(execute && word == 0xc3c3_c3c3),
                Err(e) => assert!(!execute && matches!(e, MemoryError::Absent { why: NOT_DUMPED, .. })),
            }
        }
    }

    #[test]
    fn code_that_was_not_dumped_comes_from_the_same_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lib.so");
        std::fs::write(&file, library(1, 0xc3)).unwrap();
        let name = file.to_str().unwrap();
        let core = |id: u8| {
            CoreBuilder::new()
                .segment(0x10_0000, 0x1000, 4, &library(id, 0)[..0x1000])
                .segment(0x10_1000, 0x1000, 5, &[])
                .segment(0x10_2000, 0x1000, 4, &[])
                .file(0x10_0000, 0x10_1000, 0, name)
                .file(0x10_1000, 0x10_2000, 0x1000, name)
                .file(0x10_2000, 0x10_3000, 0x2000, name)
        };
        let same = core(1).open().unwrap();
        assert_eq!(same.read_u32(0x10_1004), Ok(0xc3c3_c3c3));
        // Relocated constants are read-only now, but were not when they were written, so the file does not have them.
        assert!(matches!(same.read_u32(0x10_2004), Err(MemoryError::Absent { why: NOT_DUMPED, .. })));
        let other = core(2).open().unwrap();
        assert!(matches!(other.read_u32(0x10_1004), Err(MemoryError::Absent { why: OTHER_FILE, .. })));

        use super::super::objects::{ObjectData, Objects};
        let objects = Objects::load(&same, &SearchPaths::default());
        let lib = objects.find(0x10_1004).unwrap();
        assert_eq!((lib.bias, lib.range, lib.problem.as_deref()), (0x10_0000, (0x10_0000, 0x10_3000), None));
        assert_eq!(lib.build_id.as_deref(), Some(&[1; 4][..]));
        assert!(matches!(lib.data, Some(ObjectData::File(_))));
        let objects = Objects::load(&other, &SearchPaths::default());
        let lib = objects.find(0x10_1004).unwrap();
        assert!(lib.data.is_none() && lib.bias == 0x10_0000);
        assert!(
            lib.problem.as_deref().unwrap().contains("build id is 01010101, loaded is 02020202"),
            "{:?}",
            lib.problem
        );
    }
}
