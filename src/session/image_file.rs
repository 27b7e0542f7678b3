//! Reads files that hold images.

use crate::error::Error;
use crate::process::file_kind::{self, Door};
use crate::process::files::{self, FileLocation};
use crate::state::{AnyImage, ImageError};
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

/// Parses the contents of the file at `path` as an image.
///
/// # Errors
/// The bytes are no image. The error says why, and what else they may be.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<AnyImage, Error> {
    AnyImage::parse(bytes).map_err(|why| not_an_image(path, bytes, &why))
}

/// The image in a file, and the file itself, from which the memory is to be read. A mapping of the file is not enough
/// for that: what somebody cuts off of the file reads as zeros in a mapping, and this must not happen in the middle
/// of a change.
///
/// # Errors
/// There is no such file, or no image in it.
pub(super) fn open(path: &Path) -> Result<(AnyImage, File), Error> {
    let failed = |source| Error::File { path: path.to_path_buf(), source };
    let opened = files::open(&FileLocation::user(path)).map_err(failed)?;
    let file = opened.file.try_clone().map_err(failed)?;
    match files::map(opened, path) {
        Ok(bytes) => Ok((parse(path, &bytes)?, file)),
        // There is nothing to map in an empty file.
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok((parse(path, &[])?, file)),
        Err(e) => Err(failed(e)),
    }
}

/// The error for a file that is no image: it says what else the file may be, and what to do with it.
fn not_an_image(path: &Path, bytes: &[u8], why: &ImageError) -> Error {
    let why = file_kind::refusal(bytes, Door::Image).unwrap_or_else(|| {
        format!("{why}; wstate snapshot -o FILE makes one; if this was one, it is cut off or changed")
    });
    Error::NotAnImage { path: path.to_path_buf(), why }
}
