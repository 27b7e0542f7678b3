//! Makes the mappings of a core from its segments and its list of mapped files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::limits;
use crate::process::Mapping;
use crate::process::elf::{Phdr, pf};
use crate::process::notes::Notes;

/// Makes mappings from the segments, cut and named by NT_FILE. Also returns the ranges that only NT_FILE lists: their
/// access rights are not known, and the core has no bytes of them.
pub(super) fn mappings(loads: &[Phdr], notes: &Notes) -> (Vec<Mapping>, Vec<(u64, u64)>) {
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
