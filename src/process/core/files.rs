//! Fills the memory that a core does not hold from the files that were mapped.

use std::path::PathBuf;
use std::sync::Arc;

use super::OTHER_FILE;
use crate::process::debuginfod::Wanted;
use crate::process::elf::{Headers, LoadedHeaders, pf};
use crate::process::files::{FileLocation, map_location};
use crate::process::memory::{Content, Holder, PAGE};
use crate::process::objects::{executable_by_address, mappings_by_file};
use crate::process::same_file::{self, Evidence};
use crate::process::{Mapping, Memory, Target};

use super::CoreTarget;

impl CoreTarget {
    pub(super) fn find_executable(&self) -> Option<PathBuf> {
        // The program headers lie in the executable, so AT_PHDR leads to its mapping. AT_EXECFN is the path that was
        // given to execve and may be relative.
        executable_by_address(self).or_else(|| {
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
    pub(super) fn fill_from_files(&mut self, unlisted: &[(u64, u64)]) {
        let listed = self.mappings.clone();
        for mappings in mappings_by_file(&listed).into_values() {
            let mut mappings: Vec<Mapping> = mappings.into_iter().cloned().collect();
            let missing =
                |m: &Mapping| !m.write && self.memory.available(m.start, m.size() as usize) as u64 != m.size();
            let Some(first) = mappings.iter().find(|m| missing(m)) else { continue };
            let (file, headers) = match self.matching_file(first, &mappings) {
                FileMatch::Yes(file, headers) => (file, headers),
                FileMatch::Other => {
                    for m in mappings.iter().filter(|m| !m.write) {
                        self.memory.fill_absent(m.start, m.end, &Content::Absent(OTHER_FILE));
                    }
                    continue;
                }
                FileMatch::No => continue,
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
    fn matching_file(&self, first: &Mapping, mappings: &[Mapping]) -> FileMatch {
        // The kernel dumps the first page of every mapped ELF file (coredump_filter bit 4).
        let in_core = mappings.iter().filter(|m| m.offset == 0).find_map(|m| LoadedHeaders::read(self, m.start));
        let mut result = FileMatch::No;
        let mut candidates = self.file_candidates(first);
        let id = in_core.as_ref().and_then(|found| found.build_id.as_ref());
        let fetched = id.and_then(|id| self.search.fetched.get(Wanted::Executable, id));
        candidates.extend(fetched.map(FileLocation::user));
        for candidate in candidates {
            let Ok(file) = map_location(&candidate) else { continue };
            let Some(headers) = Headers::of_file(&file) else { continue };
            let all: Vec<&Mapping> = mappings.iter().collect();
            let agrees = || {
                let read = |address, buffer: &mut [u8]| self.read_own(address, buffer);
                same_file::compare(&file, &headers, &all, read) != Evidence::Other
            };
            let same = match &in_core {
                Some(LoadedHeaders { build_id: Some(id), .. }) => headers.build_id_of_file(&file).as_ref() == Some(id),
                Some(LoadedHeaders { headers: theirs, .. }) => {
                    theirs.phdrs == headers.phdrs && theirs.header.entry == headers.header.entry && agrees()
                }
                // If nothing can be compared, the file is accepted for its name alone.
                None => headers.dynamic_agrees(&file, &all, &self.memory).unwrap_or(true) && agrees(),
            };
            if same {
                return FileMatch::Yes(Arc::new(file), Box::new(headers));
            }
            result = FileMatch::Other;
        }
        result
    }
}

enum FileMatch {
    Yes(Holder, Box<Headers>),
    Other,
    No,
}
