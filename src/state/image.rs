//! The parts of an encoded `InstanceImage`. They are handled one by one, because the linear memory may be too large
//! to be held as a copy.
//!
//! ```text
//! [1] [length: u64] [memory ...]   or [0]
//! [length: u64] [globals: u128 ...]
//! [execution state]
//! ```

use std::ops::Range;

use super::codec::{CodecError, decode_bincode, encode_bincode};
use super::model::{ExecutionStateImage, InstanceImage};
use crate::bytes::{Bytes, Short};

/// Why the bytes of a file are no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file ends before its linear memory does.
    #[error("the image ends within its memory: {0}")]
    Short(#[from] Short),
    /// The first byte does not say whether there is a linear memory.
    #[error("{tag} is neither 0 (no memory) nor 1")]
    Tag {
        /// The first byte of the file.
        tag: u8,
    },
    /// A part is not encoded as the runtime encodes it.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// More bytes follow the end of the image.
    #[error("{left} bytes follow the image's end at {offset:#x}")]
    Trailing {
        /// Offset in the file at which the image ends.
        offset: usize,
        /// Number of bytes behind the image.
        left: usize,
    },
}

/// An `InstanceImage` without a copy of its linear memory, which stays in the encoded bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageView {
    /// Range of the linear memory in the encoded bytes, if there is a memory.
    pub memory: Option<Range<usize>>,
    /// Raw values of the globals.
    pub globals: Vec<u128>,
    /// The frames of the instance.
    pub execution_state: ExecutionStateImage,
}

/// An image of either kind, as a file can hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyImage {
    /// An image of an instance: memory, globals and frames.
    Instance(ImageView),
    /// An image of frames only.
    ExecutionState(ExecutionStateImage),
}

/// Encodes what comes before a linear memory of `length` bytes. With `None` it encodes what takes the place of a
/// memory.
pub fn head(length: Option<u64>) -> Vec<u8> {
    match length {
        None => vec![0],
        Some(n) => [&[1][..], &n.to_le_bytes()].concat(),
    }
}

/// Encodes what comes after the memory.
///
/// # Errors
/// Fails where [`encode_bincode`] fails.
pub fn tail(globals: &[u128], execution_state: &ExecutionStateImage) -> Result<Vec<u8>, CodecError> {
    encode_bincode(&(globals, execution_state))
}

impl ImageView {
    /// Finds the parts of an encoded image of an instance.
    ///
    /// # Errors
    /// Fails if the bytes are no image, or if more bytes follow the image.
    pub fn parse(bytes: &[u8]) -> Result<ImageView, ImageError> {
        let mut cursor = Bytes::new(bytes);
        let memory = match cursor.u8()? {
            0 => None,
            1 => {
                let (len, start) = (cursor.u64()?, cursor.offset());
                let short = Short { offset: start, wanted: len };
                let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len));
                Some(start..end.filter(|&end| end <= bytes.len()).ok_or(short)?)
            }
            tag => return Err(ImageError::Tag { tag }),
        };
        let start = memory.as_ref().map_or(1, |m| m.end);
        let (globals, execution_state) = exactly(bytes, start)?;
        Ok(ImageView { memory, globals, execution_state })
    }

    /// The bytes of the linear memory. `bytes` must be those that were parsed.
    pub fn memory<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(self.memory.clone()?)
    }

    /// The whole image, with a copy of the memory. `bytes` must be those that were parsed.
    pub fn to_image(&self, bytes: &[u8]) -> InstanceImage {
        InstanceImage {
            memory: self.memory(bytes).map(<[u8]>::to_vec),
            globals: self.globals.clone(),
            execution_state: self.execution_state.clone(),
        }
    }
}

impl AnyImage {
    /// Decodes `bytes` as an image of either kind.
    ///
    /// # Errors
    /// Fails if `bytes` are neither kind of image. The error tells why they are no image of an instance.
    pub fn parse(bytes: &[u8]) -> Result<AnyImage, ImageError> {
        match (ImageView::parse(bytes), exactly(bytes, 0)) {
            (Ok(view), _) => Ok(AnyImage::Instance(view)),
            (_, Ok(state)) => Ok(AnyImage::ExecutionState(state)),
            (Err(why), _) => Err(why),
        }
    }

    /// The frames of the image.
    pub fn execution_state(&self) -> &ExecutionStateImage {
        match self {
            AnyImage::Instance(view) => &view.execution_state,
            AnyImage::ExecutionState(state) => state,
        }
    }
}

/// Decodes the value that is encoded in `bytes` from `start` to the end, and fails if bytes are left over.
fn exactly<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8], start: usize) -> Result<T, ImageError> {
    let rest = bytes.get(start..).unwrap_or_default();
    let value: T = decode_bincode(rest)?;
    let used = bincode::serialized_size(&value).map_err(CodecError::from)? as usize;
    match rest.len().saturating_sub(used) {
        0 => Ok(value),
        left => Err(ImageError::Trailing { offset: start + used, left }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::WasmFunctionStateDump;
    use super::*;

    fn image(memory: Option<Vec<u8>>) -> InstanceImage {
        let frame = WasmFunctionStateDump {
            local_function_id: 3,
            wasm_inst_offset: 17,
            stack: vec![Some(1), None],
            locals: vec![Some(u64::MAX)],
        };
        let globals = vec![u128::MAX, 0x7ff8_dead_beef_0001];
        InstanceImage { memory, globals, execution_state: ExecutionStateImage { frames: vec![frame] } }
    }

    #[test]
    fn the_parts_are_the_runtimes_encoding_and_come_back() {
        for memory in [None, Some(vec![]), Some(vec![7; 70_000])] {
            let whole = image(memory);
            let bytes = whole.to_bytes().unwrap();
            let head = head(whole.memory.as_ref().map(|m| m.len() as u64));
            let tail = tail(&whole.globals, &whole.execution_state).unwrap();
            assert_eq!([&head[..], whole.memory.as_deref().unwrap_or_default(), &tail].concat(), bytes);
            let view = ImageView::parse(&bytes).unwrap();
            assert_eq!(view.memory(&bytes), whole.memory.as_deref());
            assert_eq!(view.to_image(&bytes), whole);
            assert_eq!(AnyImage::parse(&bytes).unwrap(), AnyImage::Instance(view));
            let state = whole.execution_state.to_bytes().unwrap();
            assert_eq!(AnyImage::parse(&state).unwrap(), AnyImage::ExecutionState(whole.execution_state));
        }
    }

    #[test]
    fn what_is_cut_or_goes_on_is_no_image() {
        let bytes = image(Some(vec![1; 100])).to_bytes().unwrap();
        assert!((0..bytes.len()).all(|cut| AnyImage::parse(&bytes[..cut]).is_err()));
        let error = ImageView::parse(&[&bytes[..], &[0]].concat()).unwrap_err();
        assert_eq!(error.to_string(), format!("1 bytes follow the image's end at {:#x}", bytes.len()));
        assert!(matches!(ImageView::parse(&[2]), Err(ImageError::Tag { tag: 2 })));
        assert!(matches!(ImageView::parse(&[&[1][..], &[0xff; 8]].concat()), Err(ImageError::Short(_))));
    }
}
