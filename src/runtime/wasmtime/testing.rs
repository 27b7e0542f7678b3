//! Real images for tests: `tests/fixtures/wasmtime`.

use std::path::PathBuf;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wasmtime")
}

/// An image: "48-default".
pub(super) fn fixture(name: &str) -> Vec<u8> {
    let path = directory().join(format!("{name}.cwasm"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What the runtime said about an image when it was made.
pub(super) fn facts(name: &str) -> Option<String> {
    std::fs::read_to_string(directory().join(format!("{name}.txt"))).ok()
}

/// `.wasmtime.info` of an image of which only that is kept: "43-default".
pub(super) fn section(name: &str) -> Option<Vec<u8>> {
    std::fs::read(directory().join(format!("{name}.info"))).ok()
}

/// All images.
pub(super) fn fixtures() -> Vec<String> {
    named(".cwasm")
}

/// All for [`section`].
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
