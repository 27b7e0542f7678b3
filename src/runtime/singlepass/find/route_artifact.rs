//! The artifact route: a cache file that the host wrote contains the code. Where the target has this code is found by
//! comparing it with executable memory.

use super::anchor::{Anchor, AnchorError, Route, believe, code_starts, confirm};
use crate::limits;
use crate::process::Target;
use crate::runtime::singlepass::module::cache_image::{CacheImage, ImageBytes, PAGE};
use std::sync::Arc;

/// Size of the header in bytes (`cache.rs: ArtifactHeader`): magic, version, length of what follows.
const HEADER: usize = 24;

/// The `CacheImage` bytes inside an artifact (`cache.rs: ArtifactInner`), with the zeros up to the end of a page.
///
/// The image is the last thing in the file. It is written as a `sys::Memory`: protection (one byte), length, bytes. A
/// `sys::Memory` is whole pages, so the length of the image stands a multiple of a page before the end, and the
/// `ModuleInfo` before it need not be parsed.
pub fn image_of_artifact(bytes: &[u8]) -> Result<&[u8], AnchorError> {
    let wrong = |why| AnchorError::NotArtifact { why };
    let (header, body) = bytes.split_at_checked(HEADER).ok_or(wrong("it is shorter than the header"))?;
    if header.get(..8) != Some(b"WASMER\0\0") {
        return Err(wrong("it does not begin with WASMER"));
    }
    let word = |i: usize| header.get(i..i + 8).and_then(|w| w.try_into().ok()).map(u64::from_le_bytes);
    if word(8) != Some(0) {
        return Err(wrong("its version is not 0"));
    }
    let len = word(16).unwrap_or_default();
    let body = usize::try_from(len)
        .ok()
        .and_then(|len| body.get(..len))
        .ok_or(wrong("it is shorter than its header says: cut off?"))?;
    let mut size = PAGE as usize;
    while let Some(at) = body.len().checked_sub(size + 9) {
        // Before the image stand empty backend metadata (`generate_cache`), the protection and the length.
        if let Some([0, 0, 0, 0, 0..=4, a, b, c, d, image @ ..]) = body.get(at..)
            && u32::from_le_bytes([*a, *b, *c, *d]) as usize == image.len()
        {
            return Ok(image);
        }
        size += PAGE as usize;
    }
    Err(wrong("it holds no image of whole pages at its end"))
}

/// Finds the code of `artifact` (the bytes of a cache file) in the target, with one anchor for each place where it is
/// loaded. The second result says why there is none.
pub fn from_artifact(
    target: &dyn Target,
    artifact: &[u8],
    progress: &dyn Fn(&str, u64, u64),
) -> (Vec<Anchor>, Vec<String>) {
    let mut notes = Vec::new();
    let found = find(target, artifact, progress, &mut notes);
    match found {
        Ok(anchors) => (anchors, notes),
        Err(e) => {
            notes.push(format!("artifact: {e}"));
            (Vec::new(), notes)
        }
    }
}

fn find(
    target: &dyn Target,
    artifact: &[u8],
    progress: &dyn Fn(&str, u64, u64),
    notes: &mut Vec<String>,
) -> Result<Vec<Anchor>, AnchorError> {
    if artifact.len() as u64 > limits::MAX_IMAGE_BYTES {
        return Err(AnchorError::NotArtifact { why: "it is larger than any this tool reads" });
    }
    let image = ImageBytes::Owned(Arc::from(image_of_artifact(artifact)?));
    let header = CacheImage::parse(&image)?;
    let starts = code_starts(target, notes);
    let mut anchors: Vec<Anchor> = Vec::new();
    for (i, start) in starts.iter().enumerate() {
        progress("comparing code with the artifact", i as u64, starts.len() as u64);
        if let Ok(a) = confirm(target, Route::Artifact, &image, &header, start.address, start.limit).and_then(believe) {
            anchors.push(a);
        }
    }
    match anchors.is_empty() {
        true => Err(AnchorError::NoCode { code_size: header.code_size }),
        false => Ok(anchors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::singlepass::fake::{CODE, Fake, artifact, make, quiet};
    use crate::runtime::singlepass::module::cache_image::MapSource;

    #[test]
    fn code_that_is_loaded_twice_gives_two_anchors() {
        let m = make(1, 2, 1);
        let mut f = Fake::new();
        f.code(CODE, &m.code);
        f.code(CODE + 0x4000, &m.code);
        f.code(CODE + 0x8000, &make(1, 2, 2).code);
        let (anchors, notes) = from_artifact(&f, &artifact(&m.image), &quiet);
        let bases: Vec<u64> = anchors.iter().map(|a| a.code_base).collect();
        assert_eq!(bases, [CODE, CODE + 0x4000], "{notes:?}");
        let MapSource::Bytes { image, msm_offset } = &anchors[0].map else { panic!() };
        assert_eq!(image[*msm_offset as usize], 2);
    }

    #[test]
    fn broken_artifacts_are_refused_with_the_reason() {
        let good = artifact(&make(1, 2, 1).image);
        assert!(image_of_artifact(&good).is_ok());
        let why = |bytes: &[u8]| match image_of_artifact(bytes) {
            Err(AnchorError::NotArtifact { why }) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(why(&good[..23]), "it is shorter than the header");
        assert_eq!(why(&[b"WASMEX\0\0", &good[8..]].concat()), "it does not begin with WASMER");
        assert_eq!(why(&[&good[..8], &[1; 8], &good[16..]].concat()), "its version is not 0");
        assert_eq!(why(&good[..good.len() - 1]), "it is shorter than its header says: cut off?");
        assert_eq!(
            why(&[&good[..16], &[0xff; 8], &good[24..]].concat()),
            "it is shorter than its header says: cut off?"
        );
        assert_eq!(why(&[&good[..16], &[0; 8]].concat()), "it holds no image of whole pages at its end");
        let (anchors, notes) = from_artifact(&Fake::new(), &good, &quiet);
        assert!(anchors.is_empty() && notes[0].contains("no executable mapping holds the code"), "{notes:?}");
    }
}
