//! The cached image of a module's code (`codegen_x64.rs: CacheImage`), and where its state map can be read.

use crate::limits;
use crate::process::Memory;
use std::borrow::Cow;
use std::sync::Arc;

/// Page size of the targets; `loader.rs: CodeMemory::new` rounds to the same constant.
pub const PAGE: u64 = 4096;
/// Where the module's state map can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapSource {
    /// Borsh bytes of a `CacheImage` in the target.
    CacheImage {
        /// Address of the first byte of the image, which is where the length of the code stands.
        address: u64,
        /// Number of bytes that may belong to the image: exact if `exact` is set, else all up to the end of the
        /// readable range.
        len: u64,
        /// Whether `len` was read from the owner of the bytes. Even then zeros may follow the image: a module that
        /// was loaded from a cache keeps whole pages (`codegen_x64.rs: from_cache`).
        exact: bool,
        /// Offset of the borsh `ModuleStateMap` from `address`.
        msm_offset: u64,
    },
    /// Borsh bytes of a `CacheImage` from a file. Zeros may follow the image.
    Bytes {
        /// The bytes of the image.
        image: Arc<[u8]>,
        /// Offset of the borsh `ModuleStateMap` from the start of the image.
        msm_offset: u64,
    },
    /// The borsh `ModuleStateMap` alone, in the target.
    StateMap {
        /// Address of the first byte of the map.
        address: u64,
        /// Length of the map in bytes.
        len: u64,
    },
    /// The `ModuleStateMap` as an object of the runtime in the target's memory.
    RustObjects {
        /// Address of the `ModuleStateMap`.
        msm_address: u64,
    },
}

impl MapSource {
    /// Address and length of the borsh bytes of the state map, if they are in the target.
    fn in_target(&self) -> Option<(u64, u64)> {
        match self {
            MapSource::CacheImage { address, len, msm_offset, .. } => {
                Some((address.checked_add(*msm_offset)?, len.saturating_sub(*msm_offset)))
            }
            MapSource::StateMap { address, len } => Some((*address, *len)),
            _ => None,
        }
    }

    /// Number of bytes that may belong to the borsh state map. `None` if the map is not borsh.
    pub fn encoded_len(&self) -> Option<u64> {
        match self {
            MapSource::Bytes { image, msm_offset } => Some((image.len() as u64).saturating_sub(*msm_offset)),
            _ => self.in_target().map(|(_, len)| len),
        }
    }

    /// Reads borsh bytes of the state map from `offset` on into `buf`; returns how many bytes were read.
    pub fn read_some(&self, memory: &dyn Memory, offset: u64, buf: &mut [u8]) -> usize {
        let mut read = || match self {
            MapSource::Bytes { image, msm_offset } => {
                let from = usize::try_from(msm_offset.checked_add(offset)?).ok()?;
                let rest = image.get(from..)?;
                let len = rest.len().min(buf.len());
                buf[..len].copy_from_slice(&rest[..len]);
                Some(len)
            }
            _ => {
                let (at, len) = self.in_target()?;
                let len = usize::try_from(len.checked_sub(offset)?).ok()?.min(buf.len());
                let (at, buf) = (at.checked_add(offset)?, &mut buf[..len]);
                Some(match memory.read(at, buf) {
                    Ok(()) => len,
                    Err(_) => memory.read_some(at, buf),
                })
            }
        };
        read().unwrap_or(0)
    }

    /// The borsh bytes of the state map, at most `max` of them. Where the end of the image is not known, they go on
    /// behind the map. Where a byte cannot be read, they end early. `None` if the map is not borsh.
    pub fn msm_bytes<'a>(&'a self, memory: &dyn Memory, max: u64) -> Option<Cow<'a, [u8]>> {
        if let Some((at, len)) = self.in_target() {
            let max = max.min(limits::MAX_IMAGE_BYTES).min(len);
            let mut bytes = vec![0; usize::try_from(max).ok()?];
            if memory.read(at, &mut bytes).is_err() {
                let got = memory.read_some(at, &mut bytes);
                bytes.truncate(got);
            }
            return Some(Cow::Owned(bytes));
        }
        match self {
            MapSource::Bytes { image, msm_offset } => {
                let rest = image.get(usize::try_from(*msm_offset).ok()?..)?;
                Some(Cow::Borrowed(&rest[..rest.len().min(usize::try_from(max).unwrap_or(usize::MAX))]))
            }
            _ => None,
        }
    }
}

/// Why bytes are no `CacheImage`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no cached image at {address:#x}: {why} (offset {offset:#x})")]
pub struct NotImage {
    /// Address of the bytes; 0 for bytes from a file.
    pub address: u64,
    /// Offset in the image of what does not fit.
    pub offset: u64,
    /// What does not fit, as text.
    pub why: &'static str,
}

/// The bytes of an image, in the target or in a buffer.
#[derive(Clone)]
pub(crate) enum ImageBytes<'a> {
    Target { memory: &'a dyn Memory, address: u64, len: u64, exact: bool },
    Owned(Arc<[u8]>),
}

impl ImageBytes<'_> {
    pub(crate) fn len(&self) -> u64 {
        match self {
            ImageBytes::Target { len, .. } => *len,
            ImageBytes::Owned(b) => b.len() as u64,
        }
    }

    fn address(&self) -> u64 {
        match self {
            ImageBytes::Target { address, .. } => *address,
            ImageBytes::Owned(_) => 0,
        }
    }

    fn wrong(&self, offset: u64, why: &'static str) -> NotImage {
        NotImage { address: self.address(), offset, why }
    }

    /// Fills `buf` with the bytes from `offset` on.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), NotImage> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(self.wrong(offset, "it ends here"));
        }
        let done = match self {
            ImageBytes::Target { memory, address, .. } => {
                address.checked_add(offset).is_some_and(|a| memory.read(a, buf).is_ok())
            }
            ImageBytes::Owned(bytes) => match bytes.get(offset as usize..offset as usize + buf.len()) {
                Some(b) => {
                    buf.copy_from_slice(b);
                    true
                }
                None => false,
            },
        };
        if done { Ok(()) } else { Err(self.wrong(offset, "it cannot be read")) }
    }

    fn u32(&self, offset: u64) -> Result<u32, NotImage> {
        let mut b = [0; 4];
        self.read(offset, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    fn u64(&self, offset: u64) -> Result<u64, NotImage> {
        let mut b = [0; 8];
        self.read(offset, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    fn u64s(&self, offset: u64, count: u32) -> Result<Vec<u64>, NotImage> {
        if count as usize > limits::MAX_FUNCTIONS {
            return Err(self.wrong(offset, "too many functions"));
        }
        // This is checked before the allocation, so that a wrong count costs nothing.
        let size = u64::from(count) * 8;
        if offset.checked_add(size).is_none_or(|end| end > self.len()) {
            return Err(self.wrong(offset, "a function table is longer than the image"));
        }
        let mut buf = vec![0; size as usize];
        self.read(offset, &mut buf)?;
        Ok(buf.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect())
    }
}

/// The part of a borsh `CacheImage` that stands before the state map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheImage {
    /// Size of the code in bytes. The code itself begins at offset 4.
    pub code_size: u64,
    /// Offsets of all functions in the code, import trampolines first.
    pub function_offsets: Vec<u64>,
    /// Number of import trampolines among them.
    pub import_count: u64,
    /// Offset of the borsh state map in the image.
    pub msm_offset: u64,
    /// `ModuleStateMap.total_size`: size of the code in bytes before it was rounded up to pages. Known only where the
    /// end of the image is known.
    pub total_size: Option<u64>,
}

impl CacheImage {
    /// Parses the image at the start of `bytes`.
    #[cfg(any(test, feature = "internals"))]
    pub fn of_bytes(bytes: &[u8]) -> Result<CacheImage, NotImage> {
        CacheImage::parse(&ImageBytes::Owned(Arc::from(bytes)))
    }

    /// Goes through the image up to the state map and checks what it passes. It reads none of the code.
    pub(crate) fn parse(image: &ImageBytes<'_>) -> Result<CacheImage, NotImage> {
        let code_size = u64::from(image.u32(0)?);
        if code_size == 0 || !code_size.is_multiple_of(PAGE) || code_size > limits::MAX_IMAGE_BYTES {
            return Err(image.wrong(0, "the code is no whole number of pages"));
        }
        let mut at = 4 + code_size;
        let pointer_count = image.u32(at)?;
        let pointers = image.u64s(at + 4, pointer_count)?;
        at += 4 + 8 * u64::from(pointer_count);
        let count = image.u32(at)?;
        if count != pointer_count {
            return Err(image.wrong(at, "its two function tables differ in length"));
        }
        let function_offsets = image.u64s(at + 4, count)?;
        if function_offsets != pointers {
            return Err(image.wrong(at, "its two function tables differ"));
        }
        if !function_offsets.is_sorted_by(|a, b| a < b) {
            return Err(image.wrong(at, "function offsets do not increase"));
        }
        if function_offsets.last().is_some_and(|&o| o >= code_size) {
            return Err(image.wrong(at, "a function lies beyond the code"));
        }
        at += 4 + 8 * u64::from(count);
        let import_count = image.u64(at)?;
        if import_count > u64::from(count) {
            return Err(image.wrong(at, "more imports than functions"));
        }
        let msm_offset = at + 8;
        let states = image.u32(msm_offset)?;
        if u64::from(states) != u64::from(count) - import_count {
            return Err(image.wrong(msm_offset, "the state map has another number of functions"));
        }
        if let Some(&first) = function_offsets.get(import_count as usize)
            && image.u64(msm_offset + 4)? != first
        {
            return Err(image.wrong(msm_offset + 4, "the state map begins with another function"));
        }
        let total_size = total_size(image, code_size);
        Ok(CacheImage { code_size, function_offsets, import_count, msm_offset, total_size })
    }

    /// Code offset of the first function that is not an import trampoline.
    pub fn first_local(&self) -> Option<u64> {
        self.function_offsets.get(usize::try_from(self.import_count).ok()?).copied()
    }
}

/// Reads the last word of an image whose end is known: the size of the code before it was rounded up to pages. An
/// image that was loaded from a cache is followed by zeros up to the end of a page. The zeros of the word itself
/// cannot be told from those, so each possible end is tried there.
pub(crate) fn total_size(image: &ImageBytes<'_>, code_size: u64) -> Option<u64> {
    if let ImageBytes::Target { exact: false, .. } = image {
        return None;
    }
    let tail_len = image.len().min(2 * PAGE);
    let mut tail = vec![0; tail_len as usize];
    image.read(image.len() - tail_len, &mut tail).ok()?;
    let last = tail.iter().rposition(|&b| b != 0)? + 1;
    // An image that is not a whole number of pages has nothing behind it, so only its very end is tried. Heaps are
    // full of small words and zeros, so a word that is not the last one must not be believed.
    let ends = match image.len().is_multiple_of(PAGE) {
        true => last.max(8)..=(last + 7).min(tail.len()),
        false => tail.len().max(8)..=tail.len(),
    };
    ends.into_iter().find_map(|end| {
        let word = tail.get(end - 8..end)?.try_into().map(u64::from_le_bytes).ok()?;
        (word <= code_size && code_size - word < PAGE).then_some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::singlepass::fake::{image, make};

    fn owned(bytes: &[u8]) -> ImageBytes<'static> {
        ImageBytes::Owned(Arc::from(bytes))
    }

    fn why(bytes: &[u8]) -> &'static str {
        match CacheImage::parse(&owned(bytes)) {
            Err(NotImage { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_image_is_walked_to_its_state_map() {
        let m = make(2, 3, 1);
        let h = CacheImage::parse(&owned(&m.image)).unwrap();
        assert_eq!((h.code_size, h.import_count, &h.function_offsets), (4096, 2, &m.offsets));
        assert_eq!(h.first_local(), Some(m.offsets[2]));
        assert_eq!(m.image[h.msm_offset as usize..][..4], [3, 0, 0, 0]);
        let total = m.code.iter().rposition(|&b| b != 0).unwrap() as u64 + 1;
        assert_eq!(h.total_size, Some(total));
        // An image that was loaded from a cache has zeros up to the end of a page.
        let mut padded = m.image.clone();
        padded.resize(padded.len().next_multiple_of(4096), 0);
        assert_eq!(CacheImage::parse(&owned(&padded)).unwrap().total_size, Some(total));
    }

    #[test]
    fn truncated_images_and_lying_lengths_are_errors() {
        let m = make(1, 2, 1);
        let h = CacheImage::parse(&owned(&m.image)).unwrap();
        for end in (0..h.msm_offset as usize + 12).filter(|e| e % 7 == 0 || *e > 4096) {
            assert!(CacheImage::parse(&owned(&m.image[..end])).is_err(), "{end}");
        }
        let with = |at: usize, bytes: &[u8]| {
            let mut b = m.image.clone();
            b[at..at + bytes.len()].copy_from_slice(bytes);
            b
        };
        assert_eq!(why(&with(0, &[0xff; 4])), "the code is no whole number of pages");
        assert_eq!(why(&with(0, &[0, 0xf0, 0xff, 0xff])), "the code is no whole number of pages");
        assert_eq!(why(&with(0, &[0, 0, 0, 0x40])), "it ends here");
        let table = 4 + m.code.len();
        let most = limits::MAX_FUNCTIONS as u32;
        assert_eq!(why(&with(table, &(most + 1).to_le_bytes())), "too many functions");
        assert_eq!(why(&with(table, &most.to_le_bytes())), "a function table is longer than the image");
        assert_eq!(why(&with(table + 4, &[1])), "its two function tables differ");
        assert_eq!(why(&with(table + 28, &[4])), "its two function tables differ in length");
        let imports = table + 28 + 28;
        assert_eq!(why(&with(imports, &[4])), "more imports than functions");
        assert_eq!(why(&with(imports, &[0])), "the state map has another number of functions");
        assert_eq!(why(&with(imports + 12, &[5])), "the state map begins with another function");
        assert_eq!(why(&image(&m.code, &[0, 40, 40], 0, 99)), "function offsets do not increase");
        assert_eq!(why(&image(&m.code, &[0, 40, 4096], 0, 99)), "a function lies beyond the code");
    }
}
