//! A file that a target has mapped, and memory that is read from it where the target leaves it out.

use super::memory::map_file;
use super::{Mapping, Memory, MemoryError, Target};
use std::path::PathBuf;

/// Bytes of the file's start that are compared with the target's.
const COMPARED: usize = 0x1000;

/// A mapped file as it is here.
pub struct MappedFile {
    /// Where it was opened.
    pub path: PathBuf,
    /// Address of its first byte in the target.
    pub base: u64,
    /// Its bytes.
    pub bytes: memmap2::Mmap,
}

impl MappedFile {
    /// The file behind `mapping`, if it is that file: what the target has of its first page, at least `header` bytes, must
    /// be the same. `None`: it is not here, or another one.
    pub fn find(target: &dyn Target, mapping: &Mapping, header: usize) -> Option<MappedFile> {
        let base = mapping.start.checked_sub(mapping.offset).filter(|_| !mapping.is_anonymous())?;
        let mut first = vec![0; COMPARED];
        let there = target.read_some(base, &mut first);
        first.truncate(there);
        target.file_candidates(mapping).into_iter().find_map(|path| {
            let bytes = map_file(&path).ok()?;
            let same = there >= header && bytes.get(..there)? == first;
            same.then_some(MappedFile { path, base, bytes })
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
