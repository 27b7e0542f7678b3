//! A file that a target has mapped, and memory that is read from it where the target leaves it out.

use super::files::{Mapped, map_place};
use super::{Mapping, Memory, MemoryError, Target};
use std::path::PathBuf;

/// Bytes of the file's start that are compared with the target's.
const COMPARED: usize = PAGE as usize;
const PAGE: u64 = 0x1000;

/// A mapped file as it is here.
pub struct MappedFile {
    /// Where it was opened.
    pub path: PathBuf,
    /// Address of its first byte in the target.
    pub base: u64,
    /// Its bytes.
    pub bytes: Mapped,
    /// Bytes of its start that the target has too, and that are the same there.
    pub compared: usize,
}

impl MappedFile {
    /// The file behind `mapping`, if it is that file: what the target has of its first page, at least `header` bytes, must
    /// be the same. `None`: it is not here, or another one.
    pub fn find(target: &dyn Target, mapping: &Mapping, header: usize) -> Option<MappedFile> {
        MappedFile::opened(target, mapping).find(|file| file.compared >= header)
    }

    /// The file that `mapping` names and `is_it` takes, if the target has nothing of its first page: nothing proves that it
    /// is the one that was mapped. It is long enough for every mapping of it.
    pub fn unproven(target: &dyn Target, mapping: &Mapping, is_it: impl Fn(&MappedFile) -> bool) -> Option<MappedFile> {
        if target.is_live() {
            // Its memory was there at the stop.
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

    /// The files that `mapping` may be of and that do not begin otherwise.
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
                let bytes = map_place(&place).ok()?;
                if target.maps_another(mapping, &bytes.identity()) {
                    return None;
                }
                let same = bytes.get(..first.len())? == first;
                same.then_some(MappedFile { path: place.path().to_path_buf(), base, bytes, compared: first.len() })
            })
        })
    }
}

/// A target's memory, and behind it a file that it has mapped: a core leaves out what a file has.
pub struct WithFile<'a> {
    /// The target's.
    pub memory: &'a dyn Memory,
    /// The file.
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
