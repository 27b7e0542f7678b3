//! Real images for tests, from `tests/fixtures/wasmtime`.

use super::image::info::ImageInfo;
use super::image::version::Version;
use super::image::{INFO, Image, Kind, SliceMemory};
use std::path::PathBuf;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wasmtime")
}

/// The bytes of an image with a name like "48-default".
pub(super) fn fixture(name: &str) -> Vec<u8> {
    let path = directory().join(format!("{name}.cwasm"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What the runtime said about an image when the image was made.
pub(super) fn facts(name: &str) -> Option<String> {
    std::fs::read_to_string(directory().join(format!("{name}.txt"))).ok()
}

/// The `.wasmtime.info` of an image of which only this section is kept, with a name like "43-default".
pub(super) fn section(name: &str) -> Option<Vec<u8>> {
    std::fs::read(directory().join(format!("{name}.info"))).ok()
}

/// The `.wasmtime.engine` of an image of which only this section is kept, with a name like "46-inline".
pub(super) fn engine(name: &str) -> Vec<u8> {
    let path = directory().join(format!("{name}.engine"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names of all sections for [`engine`].
pub(super) fn engines() -> Vec<String> {
    named(".engine")
}

/// The names of all images.
pub(super) fn fixtures() -> Vec<String> {
    named(".cwasm")
}

/// The names of all sections for [`section`].
pub(super) fn sections() -> Vec<String> {
    named(".info")
}

fn named(extension: &str) -> Vec<String> {
    let files = std::fs::read_dir(directory()).unwrap();
    let names = files.map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter_map(|n| n.strip_suffix(extension).map(str::to_string)).collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

/// What `.wasmtime.info` says, of an image or a kept section with a name like "36-default" or "43-two".
pub(super) fn info(name: &str) -> ImageInfo {
    let (major, mode) = name.split_once('-').unwrap();
    let kind = if mode == "two" { Kind::Component } else { Kind::Module };
    let bytes = section(name).unwrap_or_else(|| {
        let bytes = fixture(name);
        let image = Image::from_bytes(&bytes).unwrap();
        image.contents(INFO, &SliceMemory::new(0, &bytes)).unwrap().to_vec()
    });
    ImageInfo::decode(&bytes, kind, Version(major.parse().unwrap())).unwrap()
}
