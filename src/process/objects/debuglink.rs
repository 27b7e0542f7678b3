//! Checks separate debug files that `.gnu_debuglink` names. The link holds a checksum of the whole debug file.

use super::super::elf::Headers;
use super::super::files::Opened;
use crate::limits;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

/// Bytes of the debug file that are read at once.
const CHUNK: u64 = 1 << 20;

/// Whether `opened` is the debug file of the file with the headers `of`, and has the checksum `crc`. An error says
/// why the debug file was not read to its end.
pub(super) fn check(opened: &Opened, of: &Headers, crc: u32) -> Result<bool, String> {
    let size = opened.identity.size;
    let read = |offset: u64, len: usize| {
        let mut bytes = vec![0; len];
        opened.file.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
    };
    // The cheap checks come first: objcopy keeps the header and the addresses and sizes of the segments.
    let Some(theirs) = Headers::read(read) else { return Ok(false) };
    let loads = |h: &Headers| h.loads().map(|p| (p.vaddr, p.memsz, p.flags)).collect::<Vec<_>>();
    let (ours, loaded) = (loads(of), loads(&theirs));
    if theirs.header.entry != of.header.entry || (!loaded.is_empty() && loaded != ours) {
        return Ok(false);
    }
    if theirs.header.shoff >= size {
        return Ok(false);
    }
    match checksum(&opened.file, size, limits::MAX_CHECKSUM_BYTES) {
        Ok(Some(found)) => Ok(found == crc),
        Ok(None) => Err(format!(
            "its checksum was not compared, because more than {} of its {size} bytes hold data; install a debug file that is found by build id",
            limits::MAX_CHECKSUM_BYTES
        )),
        Err(e) => Err(format!("its checksum cannot be compared: {e}")),
    }
}

/// CRC-32 of a file of `size` bytes, of which at most `most` bytes may be data. Holes of the file are zeros, and they
/// are not read. Returns `None` if the file holds more data than that.
fn checksum(file: &File, size: u64, most: u64) -> io::Result<Option<u32>> {
    let mut all = crc32fast::Hasher::new();
    let (mut at, mut read) = (0, 0);
    let mut chunk = vec![0; CHUNK as usize];
    while at < size {
        let data = seek(file, at, libc::SEEK_DATA)?.unwrap_or(size).clamp(at, size);
        zeros(&mut all, data - at);
        let end = seek(file, data, libc::SEEK_HOLE)?.unwrap_or(size).clamp(data, size);
        at = data;
        while at < end {
            let want = (end - at).min(CHUNK);
            read += want;
            if read > most {
                return Ok(None);
            }
            let part = chunk.get_mut(..want as usize).unwrap_or_default();
            file.read_exact_at(part, at)?;
            all.update(part);
            at += want;
        }
    }
    Ok(Some(all.finalize()))
}

/// Offset of the next data or the next hole from `from` on. `None` means that there is none.
fn seek(file: &File, from: u64, what: i32) -> io::Result<Option<u64>> {
    match crate::process::files::seek(file, from, what) {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        // The file system does not know holes: the whole file counts as data.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            Ok(Some(if what == libc::SEEK_DATA { from } else { u64::MAX }))
        }
        Err(e) => Err(e),
    }
}

/// Adds `count` zero bytes to the checksum. The time that this takes grows only with the logarithm of `count`.
fn zeros(all: &mut crc32fast::Hasher, mut count: u64) {
    let mut power = crc32fast::Hasher::new();
    power.update(&[0]);
    while count > 0 {
        if count & 1 != 0 {
            all.combine(&power);
        }
        let same = power.clone();
        power.combine(&same);
        count >>= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    #[test]
    fn holes_count_as_the_zeros_that_they_are() {
        for (size, data) in [
            (0u64, vec![]),
            (1, vec![]),
            (0x123_4567, vec![(0u64, b"begin".as_slice())]),
            (0x123_4567, vec![(0x10_0000, b"middle")]),
            (0x123_4567, vec![(0, b"begin"), (0x123_4560, b"endends")]),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            let mut bytes = vec![0; size as usize];
            for (at, data) in data {
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(data).unwrap();
                bytes[at as usize..][..data.len()].copy_from_slice(data);
            }
            assert_eq!(checksum(&file, size, u64::MAX).unwrap(), Some(crc32fast::hash(&bytes)), "{size:#x}");
        }
    }

    #[test]
    fn so_much_data_is_read() {
        let mut file = tempfile::tempfile().unwrap();
        // A file of terabytes that consists of one hole costs nothing.
        file.set_len(8 << 40).unwrap();
        assert!(checksum(&file, 8 << 40, 0).unwrap().is_some());
        let bytes = vec![1; limits::MAX_CHECKSUM_BYTES as usize + 1];
        file.set_len(bytes.len() as u64).unwrap();
        file.write_all(&bytes).unwrap();
        let most = limits::MAX_CHECKSUM_BYTES;
        assert_eq!(checksum(&file, most, most).unwrap(), Some(crc32fast::hash(&bytes[1..])));
        assert_eq!(checksum(&file, most + 1, most).unwrap(), None);
    }
}
