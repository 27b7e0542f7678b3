//! Files that a target has mapped, and memory that is read from such a file where the target leaves it out.

use super::files::{Mapped, map_location};
use super::{Mapping, Memory, MemoryError, Target};
use std::path::PathBuf;

/// Bytes at the start of the file that are compared with the target's memory.
const COMPARED: usize = PAGE as usize;
const PAGE: u64 = 0x1000;

/// A file that a target has mapped, as this process sees it.
pub struct MappedFile {
    /// Path at which the file was opened.
    pub path: PathBuf,
    /// Address of the file's first byte in the target.
    pub base: u64,
    /// Bytes of the file.
    pub bytes: Mapped,
    /// Number of bytes at the start of the file that the target has in memory too, and that are the same there.
    pub compared: usize,
}

impl MappedFile {
    /// Finds the file behind `mapping`. The part of its first page that the target has in memory must be the same,
    /// and must be at least `header` bytes long. Returns `None` if the file is not here, or is another one.
    pub fn find(target: &dyn Target, mapping: &Mapping, header: usize) -> Option<MappedFile> {
        MappedFile::opened(target, mapping).find(|file| file.compared >= header)
    }

    /// Finds the file that `mapping` names, if the target has nothing of its first page and `is_it` accepts the file.
    /// Nothing proves then that it is the file that was mapped. It is at least long enough for every mapping of it.
    /// Returns `None` for a live process.
    pub fn unproven(target: &dyn Target, mapping: &Mapping, is_it: impl Fn(&MappedFile) -> bool) -> Option<MappedFile> {
        if target.is_live() {
            // A live process had the memory at the stop, so nothing needs to be guessed.
            return None;
        }
        let fits = |file: &MappedFile| {
            let of_it = target.mappings().iter().filter(|m| m.path == mapping.path && m.end > file.base);
            let end =
                (file.bytes.len() as u64).checked_next_multiple_of(PAGE).and_then(|len| file.base.checked_add(len));
            end.is_some_and(|end| of_it.map(|m| m.end).all(|mapped| mapped <= end))
        };
        MappedFile::opened(target, mapping).find(|file| file.compared == 0 && fits(file) && is_it(file))
    }

    /// The files that `mapping` may be of, without those whose first page differs from the target's memory.
    fn opened<'a>(target: &'a dyn Target, mapping: &'a Mapping) -> impl Iterator<Item = MappedFile> + 'a {
        let base = mapping.start.checked_sub(mapping.offset).filter(|_| !mapping.is_anonymous());
        let known = base.map(|base| {
            let mut first = vec![0; COMPARED];
            let there = target.read_some(base, &mut first);
            first.truncate(there);
            (base, first)
        });
        known.into_iter().flat_map(move |(base, first)| {
            target.file_candidates(mapping).into_iter().filter_map(move |place| {
                let bytes = map_location(&place).ok()?;
                if target.maps_another(mapping, &bytes.identity()) {
                    return None;
                }
                let same = bytes.get(..first.len())? == first;
                same.then_some(MappedFile { path: place.path().to_path_buf(), base, bytes, compared: first.len() })
            })
        })
    }
}

/// A target's memory, and for what it cannot answer a file that the target has mapped. A core leaves out bytes that
/// are in a file.
pub struct WithFile<'a> {
    /// The target's memory, which is asked first.
    pub memory: &'a dyn Memory,
    /// The file that is asked where the memory has nothing.
    pub file: Option<&'a MappedFile>,
}

impl Memory for WithFile<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let error = match self.memory.read(address, buf) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        let in_file = || {
            let file = self.file?;
            let from = usize::try_from(address.checked_sub(file.base)?).ok()?;
            file.bytes.get(from..from.checked_add(buf.len())?)
        };
        match in_file() {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(error),
        }
    }
}
