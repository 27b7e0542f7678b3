//! Decides whether a file is the one that a target has mapped, from the bytes that the target itself holds. This is
//! for files without a build id: headers alone do not tell apart two builds in which only functions have changed
//! places.

use super::Mapping;
use super::elf::{Headers, pf, pt};
use crate::limits;

/// What the target's bytes say about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// All code that was compared is the same as in the file, and the target has all of it.
    Same,
    /// Some bytes differ from the file.
    Other,
    /// All bytes that the target has are the same as in the file, but some code is missing in the target.
    Unknown,
}

/// Bytes that are compared at once.
const CHUNK: u64 = 64 << 10;

/// Compares `file` with the target's own memory. `read(address, buffer)` fills `buffer` from `address` on as far as
/// the target has the bytes, and returns how many it has.
pub fn compare(
    file: &[u8],
    headers: &Headers,
    mappings: &[&Mapping],
    read: impl Fn(u64, &mut [u8]) -> usize,
) -> Evidence {
    // With this tag the dynamic linker writes into the code, which then differs from the file.
    const DT_TEXTREL: u64 = 22;
    if headers.dynamic_tags(file).any(|tag| tag == DT_TEXTREL) {
        return Evidence::Unknown;
    }
    let constant = |offset: u64| {
        let here = |p: &&super::elf::Phdr| (p.offset & !0xfff) <= offset && offset < p.offset.saturating_add(p.filesz);
        headers.loads().filter(here).max_by_key(|p| p.offset).filter(|p| p.flags & pf::W == 0)
    };
    let parts: Vec<(u64, u64, u64, bool)> = mappings
        .iter()
        .filter(|m| !m.write)
        .filter_map(|m| {
            let load = constant(m.offset)?;
            let end = load.offset.saturating_add(load.filesz).min(m.offset.saturating_add(m.size()));
            Some((m.start, m.offset, end.checked_sub(m.offset)?, load.flags & pf::X != 0))
        })
        .collect();
    let all = parts.iter().fold(0u64, |sum, p| sum.saturating_add(p.2));
    // Of large files only every n-th piece is compared.
    let step = CHUNK.saturating_mul(all.div_ceil(limits::MAX_COMPARED_BYTES).max(1));
    let (mut code, mut missing) = (false, false);
    let (mut theirs, mut compared) = (vec![0; CHUNK as usize], 0);
    for (start, offset, len, is_code) in parts {
        let mut at = 0;
        while at < len && compared < limits::MAX_COMPARED_BYTES {
            let want = (len - at).min(CHUNK) as usize;
            let Some(buffer) = theirs.get_mut(..want) else { break };
            // A read ends at a hole, but the bytes behind the hole are compared as well.
            let mut done = 0;
            while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
                let n = read(start.saturating_add(at + done as u64), rest).min(rest.len());
                let Some(rest) = rest.get_mut(..n).filter(|rest| !rest.is_empty()) else {
                    missing |= is_code;
                    done = (done & !0xfff) + 0x1000;
                    continue;
                };
                let from = usize::try_from(offset + at).ok().and_then(|from| from.checked_add(done));
                let Some(ours) = from.and_then(|from| file.get(from..from.checked_add(n)?)) else {
                    return Evidence::Other;
                };
                if offset + at == 0 && done == 0 {
                    without_section_table(rest, ours);
                }
                if rest != ours {
                    return Evidence::Other;
                }
                code |= is_code;
                done += n;
            }
            compared += want as u64;
            at = at.saturating_add(step);
        }
    }
    if code && !missing { Evidence::Same } else { Evidence::Unknown }
}

/// Makes the section header fields of both headers equal. strip(1) moves sections but not segments, so of the ELF
/// header only the place of the section table may differ.
fn without_section_table(theirs: &mut [u8], ours: &[u8]) {
    for range in [40..48, 60..64] {
        if let (Some(theirs), Some(ours)) = (theirs.get_mut(range.clone()), ours.get(range)) {
            theirs.copy_from_slice(ours);
        }
    }
}

impl Headers {
    /// The tags in the dynamic section of a file.
    fn dynamic_tags<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = u64> + use<'a> {
        let bytes = self
            .find(pt::DYNAMIC)
            .and_then(|p| super::elf::slice(file, p.offset, p.filesz.min(limits::MAX_DYNAMIC_BYTES)));
        bytes.unwrap_or_default().chunks_exact(16).filter_map(|entry| Some(u64::from_le_bytes(*entry.first_chunk()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::elf::{Header, Phdr};
    use std::path::PathBuf;

    fn headers(pages: u64) -> Headers {
        let load = |flags, offset: u64, size: u64| Phdr {
            kind: pt::LOAD,
            flags,
            offset,
            vaddr: offset,
            filesz: size,
            memsz: size,
            align: 0x1000,
        };
        let header = Header { kind: 3, machine: 62, entry: 0, phoff: 64, shoff: 0, phentsize: 56, phnum: 3 };
        let code = pages * 0x1000;
        Headers { header, phdrs: vec![load(4, 0, 0x1000), load(5, 0x1000, code), load(6, 0x1000 + code, 0x1000)] }
    }

    fn mapping(start: u64, end: u64, offset: u64, write: bool, execute: bool) -> Mapping {
        Mapping { start, end, read: true, write, execute, offset, path: Some(PathBuf::from("/bin/x")) }
    }

    const BASE: u64 = 0x7000_0000;

    /// Compares a file that has `pages` pages of code. The target has only the pages for which `there` is true, and
    /// `change` is applied to its memory before.
    fn found(pages: u64, there: impl Fn(u64) -> bool, change: impl Fn(&mut Vec<u8>)) -> Evidence {
        let size = (pages + 2) * 0x1000;
        let file: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let mut memory = file.clone();
        change(&mut memory);
        let code = BASE + 0x1000 + pages * 0x1000;
        let maps = [
            mapping(BASE, BASE + 0x1000, 0, false, false),
            mapping(BASE + 0x1000, code, 0x1000, false, true),
            mapping(code, code + 0x1000, 0x1000 + pages * 0x1000, true, false),
        ];
        let read = |address: u64, buffer: &mut [u8]| {
            let at = address - BASE;
            let end = (at..).step_by(0x1000).take_while(|&p| p < at + buffer.len() as u64 && there(p / 0x1000)).last();
            let Some(end) = end.map(|p| ((p & !0xfff) + 0x1000).min(at + buffer.len() as u64)) else { return 0 };
            let n = (end - at) as usize;
            buffer[..n].copy_from_slice(&memory[at as usize..][..n]);
            n
        };
        compare(&file, &headers(pages), &maps.iter().collect::<Vec<_>>(), read)
    }

    #[test]
    fn each_byte_of_code_that_is_there_counts() {
        let everything = |_| true;
        assert_eq!(found(40, everything, |_| {}), Evidence::Same);
        // If two functions have changed places, calls of them differ in a few bytes.
        for at in [0x1000, 0x1fff, 0x5432, 0x1000 + 39 * 0x1000, 0x28fff] {
            assert_eq!(found(40, everything, |m| m[at] ^= 4), Evidence::Other, "{at:#x}");
        }
        // Differences in data and in the place of the section table do not count: the process writes to its data, and
        // strip moves the section table.
        assert_eq!(found(40, everything, |m| m[41 * 0x1000] ^= 4), Evidence::Same);
        assert_eq!(found(40, everything, |m| m[40] ^= 4), Evidence::Same);
        assert_eq!(found(40, everything, |m| m[62] ^= 4), Evidence::Same);
        assert_eq!(found(40, everything, |m| m[24] ^= 4), Evidence::Other, "the entry");
    }

    #[test]
    fn what_is_not_there_proves_nothing_and_what_is_there_still_counts() {
        assert_eq!(found(4, |page| page == 0, |_| {}), Evidence::Unknown, "as the kernel writes cores");
        assert_eq!(found(4, |page| page == 0, |m| m[24] ^= 4), Evidence::Other);
        assert_eq!(found(4, |_| false, |_| {}), Evidence::Unknown);
        assert_eq!(found(40, |page| page != 20, |_| {}), Evidence::Unknown, "a hole");
        assert_eq!(found(40, |page| page != 20, |m| m[0x1000 * 30] ^= 4), Evidence::Other, "behind the hole");
    }

    #[test]
    fn so_much_is_compared() {
        let pages = 2 * limits::MAX_COMPARED_BYTES / 0x1000;
        // Only every other piece is compared.
        let piece = |n: u64| (n * CHUNK) as usize + 0x1000;
        assert_eq!(found(pages, |_| true, |m| m[piece(0)] ^= 4), Evidence::Other);
        assert_eq!(found(pages, |_| true, |m| m[0x2000 + piece(1)] ^= 4), Evidence::Same);
    }
}
