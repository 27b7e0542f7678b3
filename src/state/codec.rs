//! Encodes and decodes bincode 1 and borsh.
//!
//! Input is hostile. Lengths are bounded by the number of bytes left, and nesting is bounded by [`MAX_VALUE_DEPTH`].

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, EnumAccess, Error as _, SeqAccess, VariantAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::model::*;
use crate::bytes::{Bytes, Short};
use crate::limits::{MAX_FUNCTIONS, MAX_IMAGE_BYTES, MAX_MAP_ELEMENTS, MAX_VALUE_DEPTH};

/// Why bytes are no encoding of a value, or why a value cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The input ends early, or a length is larger than the rest of the input.
    #[error("borsh: {0}")]
    Short(#[from] Short),
    /// The input has an enum or option tag that does not exist.
    #[error("borsh: {tag} at offset {offset} is no {what}")]
    Tag {
        /// Offset of the tag in the input.
        offset: usize,
        /// What the byte should be a tag of.
        what: &'static str,
        /// The byte that was found.
        tag: u8,
    },
    /// The input has a number that does not fit into the machine's `usize`.
    #[error("borsh: the number at offset {offset} is too large")]
    Number {
        /// Offset of the number in the input.
        offset: usize,
    },
    /// The input has values that are nested deeper than `MAX_VALUE_DEPTH`.
    #[error("borsh: values at offset {offset} are nested deeper than {MAX_VALUE_DEPTH}")]
    Depth {
        /// Offset of the value that is nested too deep.
        offset: usize,
    },
    /// The input has more elements of lists and maps than `MAX_MAP_ELEMENTS`.
    #[error("borsh: with the list at offset {offset} there are more than {MAX_MAP_ELEMENTS} elements")]
    Elements {
        /// Offset of the length of the list or map with which there are too many.
        offset: usize,
    },
    /// The input has more functions than `MAX_FUNCTIONS`.
    #[error("borsh: the map at offset {offset} has {count} functions, more than {MAX_FUNCTIONS}")]
    Functions {
        /// Offset of the number of functions.
        offset: usize,
        /// Number of functions that the input claims to have.
        count: u32,
    },
    /// The encoding ends before the input does.
    #[error("borsh: the encoding ends at offset {offset}, {left} bytes before the input does")]
    Trailing {
        /// Offset at which the encoding ends.
        offset: usize,
        /// Number of bytes after the encoding.
        left: usize,
    },
    /// The input has more bytes than `MAX_IMAGE_BYTES`.
    #[error("{bytes} bytes are more than any encoding has ({MAX_IMAGE_BYTES})")]
    TooLarge {
        /// Number of bytes of the input.
        bytes: usize,
    },
    /// A collection has a length that does not fit into 32 bits, so it cannot be encoded.
    #[error("borsh: a collection of {count} elements cannot be encoded")]
    Length {
        /// Number of elements of the collection.
        count: usize,
    },
    /// bincode failed. It does not tell at which offset.
    #[error("bincode: {0}")]
    Bincode(#[from] bincode::Error),
}

impl CodecError {
    /// Offset in the input up to which a decoder came, or 0 if it is not known.
    pub(super) fn offset(&self) -> usize {
        match *self {
            CodecError::Short(Short { offset, .. })
            | CodecError::Tag { offset, .. }
            | CodecError::Number { offset }
            | CodecError::Depth { offset }
            | CodecError::Elements { offset }
            | CodecError::Functions { offset, .. }
            | CodecError::Trailing { offset, .. } => offset,
            CodecError::TooLarge { .. } | CodecError::Length { .. } | CodecError::Bincode(_) => 0,
        }
    }
}

// ---- bincode ----

/// Encodes `value` as the runtime's `bincode::serialize` does: little endian, with integers of fixed width and 64-bit
/// lengths.
///
/// # Errors
/// Fails with [`CodecError::Bincode`]. The types of this module do not cause this.
pub fn encode_bincode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    Ok(bincode::serialize(value)?)
}

/// Decodes `bytes` as the runtime's `bincode::deserialize` does. Like there, bytes after the encoding are ignored.
///
/// # Errors
/// Fails if the input is too large, ends early, or is no encoding of `T`.
pub fn decode_bincode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        return Err(CodecError::TooLarge { bytes: bytes.len() });
    }
    Ok(bincode::deserialize(bytes)?)
}

impl ExecutionStateImage {
    /// Encodes this image in bincode, as the runtime does.
    ///
    /// # Errors
    /// Fails with [`CodecError::Bincode`]. This type does not cause it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        encode_bincode(self)
    }

    /// Decodes an image as the runtime does. Bytes after the encoding are ignored.
    ///
    /// # Errors
    /// Fails if the input is too large, ends early, or is no encoding of an image.
    pub fn from_bytes(bytes: &[u8]) -> Result<ExecutionStateImage, CodecError> {
        decode_bincode(bytes)
    }
}

impl InstanceImage {
    /// Encodes this image in bincode, as the runtime does (`state.rs: InstanceImage::to_bytes`).
    ///
    /// # Errors
    /// Fails with [`CodecError::Bincode`]. This type does not cause it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        encode_bincode(self)
    }

    /// Decodes an image as the runtime does (`state.rs: InstanceImage::from_bytes`).
    ///
    /// # Errors
    /// Fails if the input is too large, ends early, or is no encoding of an image.
    pub fn from_bytes(bytes: &[u8]) -> Result<InstanceImage, CodecError> {
        decode_bincode(bytes)
    }
}

impl ModuleStateMap {
    /// Encodes this map in borsh, as a cached artifact has it.
    ///
    /// # Errors
    /// Fails if a collection is too long for the encoding.
    pub fn to_borsh(&self) -> Result<Vec<u8>, CodecError> {
        encode_borsh(self)
    }

    /// Decodes a map from borsh, which must take all of `bytes`. Of equal keys the last counts, as in the runtime.
    ///
    /// # Errors
    /// Fails if the input is no encoding of a map. The error tells the offset.
    pub fn from_borsh(bytes: &[u8]) -> Result<ModuleStateMap, CodecError> {
        decode_borsh(bytes)
    }

    /// Encodes this map in bincode.
    ///
    /// # Errors
    /// Fails where bincode fails, which is for no map that fits into memory.
    pub fn to_bincode(&self) -> Result<Vec<u8>, CodecError> {
        encode_bincode(self)
    }

    /// Decodes a map from bincode. Bytes after the encoding are ignored, as the runtime ignores them.
    ///
    /// # Errors
    /// Fails if the input is too large, ends early, or is no encoding of a map.
    pub fn from_bincode(bytes: &[u8]) -> Result<ModuleStateMap, CodecError> {
        decode_bincode(bytes)
    }
}

impl<'de> Deserialize<'de> for MachineValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MachineValue, D::Error> {
        ValueSeed { depth: 0 }.deserialize(deserializer)
    }
}

#[derive(Deserialize)]
#[serde(variant_identifier)]
enum ValueTag {
    Undefined,
    Vmctx,
    VmctxDeref,
    PreserveRegister,
    CopyStackBPRelative,
    ExplicitShadow,
    WasmStack,
    WasmLocal,
    TwoHalves,
}

const VALUE_TAGS: &[&str] = &[
    "Undefined",
    "Vmctx",
    "VmctxDeref",
    "PreserveRegister",
    "CopyStackBPRelative",
    "ExplicitShadow",
    "WasmStack",
    "WasmLocal",
    "TwoHalves",
];

/// Decodes a machine value at a known nesting depth.
#[derive(Clone, Copy)]
struct ValueSeed {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = MachineValue;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<MachineValue, D::Error> {
        deserializer.deserialize_enum("MachineValue", VALUE_TAGS, self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = MachineValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a machine value")
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<MachineValue, A::Error> {
        let (tag, payload) = data.variant::<ValueTag>()?;
        Ok(match tag {
            ValueTag::Undefined => payload.unit_variant().map(|()| MachineValue::Undefined)?,
            ValueTag::Vmctx => payload.unit_variant().map(|()| MachineValue::Vmctx)?,
            ValueTag::VmctxDeref => MachineValue::VmctxDeref(payload.newtype_variant()?),
            ValueTag::PreserveRegister => MachineValue::PreserveRegister(payload.newtype_variant()?),
            ValueTag::CopyStackBPRelative => MachineValue::CopyStackBPRelative(payload.newtype_variant()?),
            ValueTag::ExplicitShadow => payload.unit_variant().map(|()| MachineValue::ExplicitShadow)?,
            ValueTag::WasmStack => MachineValue::WasmStack(payload.newtype_variant()?),
            ValueTag::WasmLocal => MachineValue::WasmLocal(payload.newtype_variant()?),
            ValueTag::TwoHalves => {
                if self.depth >= MAX_VALUE_DEPTH {
                    return Err(A::Error::custom(format_args!("machine values nested deeper than {MAX_VALUE_DEPTH}")));
                }
                let halves = payload.newtype_variant_seed(HalvesSeed { depth: self.depth + 1 })?;
                MachineValue::TwoHalves(Box::new(halves))
            }
        })
    }
}

/// Decodes the pair of machine values in a `TwoHalves`.
struct HalvesSeed {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for HalvesSeed {
    type Value = (MachineValue, MachineValue);
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_tuple(2, self)
    }
}

impl<'de> Visitor<'de> for HalvesSeed {
    type Value = (MachineValue, MachineValue);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two machine values")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let seed = ValueSeed { depth: self.depth };
        let low = seq.next_element_seed(seed)?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let high = seq.next_element_seed(seed)?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
        Ok((low, high))
    }
}

// ---- borsh ----
//
// Both directions are written by hand, side by side, because the derived decoders of the borsh crate recurse and tell
// no offset. The formats of borsh 0.9 (which the runtime uses) and 1.x are the same for these types: integers are
// little endian, `usize` is encoded as u64, lengths of lists and maps are u32, and tags of options and enums are u8.

/// A type that has a borsh encoding.
pub trait Borsh: Sized {
    /// Least number of bytes that an encoding of this type takes. It bounds the length that a list can claim.
    #[doc(hidden)]
    const LEAST: usize;
    /// Appends the encoding of this value to `out`.
    #[doc(hidden)]
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError>;
    /// Decodes a value from `bytes`.
    #[doc(hidden)]
    fn get(bytes: &mut Bytes<'_>) -> Result<Self, CodecError>;
}

/// Encodes `value` as borsh.
///
/// # Errors
/// Fails with [`CodecError::Length`] if a collection is too long.
pub fn encode_borsh<T: Borsh>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    value.put(&mut out)?;
    Ok(out)
}

/// Decodes borsh. The encoding must take all of `bytes`, as borsh's `try_from_slice` demands.
///
/// Keys of a map may be unsorted or repeated, and the last of equal keys counts, as in borsh 0.9 and in 1.x without
/// `de_strict_order`. If the keys are so, encoding the result again gives other bytes.
///
/// # Errors
/// Fails if the input is no encoding of `T`. The error tells the offset.
pub fn decode_borsh<T: Borsh>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = decode_borsh_prefix_of(bytes)?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(CodecError::Trailing { offset: used, left }),
    }
}

/// Decodes the state map at the start of `bytes`, and returns it with the number of bytes that it takes. In a cache
/// image, other things are before and behind the map.
///
/// # Errors
/// Fails where [`decode_borsh`] fails, except that bytes may follow the encoding.
pub fn decode_borsh_prefix(bytes: &[u8]) -> Result<(ModuleStateMap, usize), CodecError> {
    decode_borsh_prefix_of(bytes)
}

/// Does what [`decode_borsh_prefix`] does, for any type.
///
/// # Errors
/// Fails where [`decode_borsh`] fails, except that bytes may follow the encoding.
pub fn decode_borsh_prefix_of<T: Borsh>(bytes: &[u8]) -> Result<(T, usize), CodecError> {
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        return Err(CodecError::TooLarge { bytes: bytes.len() });
    }
    let mut cursor = Bytes::with_elements(bytes, MAX_MAP_ELEMENTS);
    let value = T::get(&mut cursor)?;
    Ok((value, cursor.offset()))
}

fn put_length(count: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let length = u32::try_from(count).map_err(|_| CodecError::Length { count })?;
    out.extend_from_slice(&length.to_le_bytes());
    Ok(())
}

/// Reads the length of a list or map. Fails if the bytes left cannot hold so many elements of `least` bytes each, or
/// if all lists and maps together get too many elements.
fn get_length(bytes: &mut Bytes<'_>, least: usize) -> Result<usize, CodecError> {
    let offset = bytes.offset();
    let count = bytes.u32()?;
    let wanted = count as u64 * least as u64;
    if wanted > bytes.remaining() as u64 {
        return Err(Short { offset, wanted }.into());
    }
    if !bytes.charge(count as usize) {
        return Err(CodecError::Elements { offset });
    }
    Ok(count as usize)
}

fn get_tag(bytes: &mut Bytes<'_>, what: &'static str, count: u8) -> Result<u8, CodecError> {
    let offset = bytes.offset();
    let tag = bytes.u8()?;
    if tag < count { Ok(tag) } else { Err(CodecError::Tag { offset, what, tag }) }
}

impl Borsh for u64 {
    const LEAST: usize = 8;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(&self.to_le_bytes());
        Ok(())
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<u64, CodecError> {
        Ok(bytes.u64()?)
    }
}

impl Borsh for usize {
    const LEAST: usize = 8;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        (*self as u64).put(out)
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<usize, CodecError> {
        let offset = bytes.offset();
        usize::try_from(bytes.u64()?).map_err(|_| CodecError::Number { offset })
    }
}

impl<T: Borsh> Borsh for Option<T> {
    const LEAST: usize = 1;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.push(self.is_some() as u8);
        self.as_ref().map_or(Ok(()), |value| value.put(out))
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<Option<T>, CodecError> {
        Ok(if get_tag(bytes, "option tag", 2)? == 0 { None } else { Some(T::get(bytes)?) })
    }
}

impl<A: Borsh, B: Borsh> Borsh for (A, B) {
    const LEAST: usize = A::LEAST + B::LEAST;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.0.put(out)?;
        self.1.put(out)
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<(A, B), CodecError> {
        Ok((A::get(bytes)?, B::get(bytes)?))
    }
}

impl<T: Borsh> Borsh for Vec<T> {
    const LEAST: usize = 4;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        put_length(self.len(), out)?;
        self.iter().try_for_each(|value| value.put(out))
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<Vec<T>, CodecError> {
        let count = get_length(bytes, T::LEAST)?;
        // The list is allocated while it is filled, because elements are several times larger in memory than their
        // least encoding.
        let mut out = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            out.push(T::get(bytes)?);
        }
        Ok(out)
    }
}

impl<K: Borsh + Ord, V: Borsh> Borsh for BTreeMap<K, V> {
    const LEAST: usize = 4;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        put_length(self.len(), out)?;
        self.iter().try_for_each(|(key, value)| {
            key.put(out)?;
            value.put(out)
        })
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<BTreeMap<K, V>, CodecError> {
        let count = get_length(bytes, K::LEAST + V::LEAST)?;
        let mut out = BTreeMap::new();
        for _ in 0..count {
            let key = K::get(bytes)?;
            out.insert(key, V::get(bytes)?);
        }
        Ok(out)
    }
}

/// Implements `Borsh` for structs. A struct is encoded as its fields in their order.
macro_rules! borsh_struct {
    ($($name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {$(
        impl Borsh for $name {
            const LEAST: usize = 0 $(+ <$ty as Borsh>::LEAST)*;
            fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
                $(self.$field.put(out)?;)*
                Ok(())
            }
            fn get(bytes: &mut Bytes<'_>) -> Result<$name, CodecError> {
                Ok($name { $($field: <$ty as Borsh>::get(bytes)?),* })
            }
        }
    )*};
}

borsh_struct! {
    MachineState {
        stack_values: Vec<MachineValue>,
        register_values: Vec<MachineValue>,
        prev_frame: BTreeMap<usize, MachineValue>,
        wasm_stack: Vec<WasmAbstractValue>,
        wasm_stack_private_depth: usize,
        wasm_inst_offset: usize,
    }
    MachineStateDiff {
        last: Option<usize>,
        stack_push: Vec<MachineValue>,
        stack_pop: usize,
        reg_diff: Vec<(RegisterIndex, MachineValue)>,
        prev_frame_diff: BTreeMap<usize, Option<MachineValue>>,
        wasm_stack_push: Vec<WasmAbstractValue>,
        wasm_stack_pop: usize,
        wasm_stack_private_depth: usize,
        wasm_inst_offset: usize,
    }
    FunctionStateMap {
        initial: MachineState,
        local_function_id: usize,
        locals: Vec<WasmAbstractValue>,
        shadow_size: usize,
        diffs: Vec<MachineStateDiff>,
        wasm_function_header_target_offset: Option<SuspendOffset>,
        wasm_offset_to_target_offset: BTreeMap<usize, SuspendOffset>,
        loop_offsets: BTreeMap<usize, OffsetInfo>,
        call_offsets: BTreeMap<usize, OffsetInfo>,
        trappable_offsets: BTreeMap<usize, OffsetInfo>,
    }
    OffsetInfo { end_offset: usize, diff_id: usize, activate_offset: usize }
}

impl Borsh for ModuleStateMap {
    const LEAST: usize = 12;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.local_functions.put(out)?;
        self.total_size.put(out)
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<ModuleStateMap, CodecError> {
        let offset = bytes.offset();
        let count = bytes.clone().u32()?;
        if count as usize > MAX_FUNCTIONS {
            return Err(CodecError::Functions { offset, count });
        }
        Ok(ModuleStateMap { local_functions: Borsh::get(bytes)?, total_size: Borsh::get(bytes)? })
    }
}

impl Borsh for RegisterIndex {
    const LEAST: usize = 8;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.0.put(out)
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<RegisterIndex, CodecError> {
        Ok(RegisterIndex(usize::get(bytes)?))
    }
}

impl Borsh for WasmAbstractValue {
    const LEAST: usize = 1;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            WasmAbstractValue::Runtime => out.push(0),
            WasmAbstractValue::Const(bits) => {
                out.push(1);
                bits.put(out)?;
            }
        }
        Ok(())
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<WasmAbstractValue, CodecError> {
        Ok(match get_tag(bytes, "abstract value", 2)? {
            0 => WasmAbstractValue::Runtime,
            _ => WasmAbstractValue::Const(u64::get(bytes)?),
        })
    }
}

impl Borsh for SuspendOffset {
    const LEAST: usize = 9;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let (tag, offset) = match self {
            SuspendOffset::Loop(offset) => (0, offset),
            SuspendOffset::Call(offset) => (1, offset),
            SuspendOffset::Trappable(offset) => (2, offset),
        };
        out.push(tag);
        offset.put(out)
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<SuspendOffset, CodecError> {
        Ok(match get_tag(bytes, "suspend offset", 3)? {
            0 => SuspendOffset::Loop(usize::get(bytes)?),
            1 => SuspendOffset::Call(usize::get(bytes)?),
            _ => SuspendOffset::Trappable(usize::get(bytes)?),
        })
    }
}

impl Borsh for MachineValue {
    const LEAST: usize = 1;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            MachineValue::Undefined => out.push(0),
            MachineValue::Vmctx => out.push(1),
            MachineValue::VmctxDeref(offsets) => {
                out.push(2);
                offsets.put(out)?;
            }
            MachineValue::PreserveRegister(index) => {
                out.push(3);
                index.put(out)?;
            }
            MachineValue::CopyStackBPRelative(offset) => {
                out.push(4);
                out.extend_from_slice(&offset.to_le_bytes());
            }
            MachineValue::ExplicitShadow => out.push(5),
            MachineValue::WasmStack(index) => {
                out.push(6);
                index.put(out)?;
            }
            MachineValue::WasmLocal(index) => {
                out.push(7);
                index.put(out)?;
            }
            MachineValue::TwoHalves(halves) => {
                out.push(8);
                halves.0.put(out)?;
                halves.1.put(out)?;
            }
        }
        Ok(())
    }
    fn get(bytes: &mut Bytes<'_>) -> Result<MachineValue, CodecError> {
        get_value(bytes, 0)
    }
}

fn get_value(bytes: &mut Bytes<'_>, depth: usize) -> Result<MachineValue, CodecError> {
    let offset = bytes.offset();
    Ok(match get_tag(bytes, "machine value", 9)? {
        0 => MachineValue::Undefined,
        1 => MachineValue::Vmctx,
        2 => MachineValue::VmctxDeref(Borsh::get(bytes)?),
        3 => MachineValue::PreserveRegister(RegisterIndex::get(bytes)?),
        4 => MachineValue::CopyStackBPRelative(bytes.u32()? as i32),
        5 => MachineValue::ExplicitShadow,
        6 => MachineValue::WasmStack(usize::get(bytes)?),
        7 => MachineValue::WasmLocal(usize::get(bytes)?),
        _ if depth >= MAX_VALUE_DEPTH => return Err(CodecError::Depth { offset }),
        _ => {
            let low = get_value(bytes, depth + 1)?;
            let high = get_value(bytes, depth + 1)?;
            MachineValue::TwoHalves(Box::new((low, high)))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{Module, state};
    use super::*;

    fn nested(depth: usize) -> MachineValue {
        (0..depth)
            .fold(MachineValue::Undefined, |inner, _| MachineValue::TwoHalves(Box::new((inner, MachineValue::Vmctx))))
    }

    // Both decoders of the runtime recurse as deep as the input says, until the stack overflows.
    #[test]
    fn nesting_is_bounded_in_both_encodings() {
        let allowed = nested(MAX_VALUE_DEPTH);
        assert_eq!(decode_borsh::<MachineValue>(&encode_borsh(&allowed).unwrap()).unwrap(), allowed);
        assert_eq!(decode_bincode::<MachineValue>(&encode_bincode(&allowed).unwrap()).unwrap(), allowed);

        let deeper = nested(MAX_VALUE_DEPTH + 1);
        let error = decode_borsh::<MachineValue>(&encode_borsh(&deeper).unwrap()).unwrap_err();
        assert!(matches!(error, CodecError::Depth { offset: MAX_VALUE_DEPTH }), "{error}");
        assert!(decode_bincode::<MachineValue>(&encode_bincode(&deeper).unwrap()).is_err());

        let bottomless = vec![8u8; 10 << 20];
        assert!(matches!(decode_borsh::<MachineValue>(&bottomless), Err(CodecError::Depth { .. })));
        let bottomless: Vec<u8> = [8u8, 0, 0, 0].repeat(1 << 20);
        let error = decode_bincode::<MachineValue>(&bottomless).unwrap_err();
        assert!(error.to_string().contains("nested deeper"), "{error}");
    }

    #[test]
    fn a_length_beyond_the_input_is_refused_before_anything_is_allocated() {
        let mut bytes = encode_borsh(&Module::new(0).build()).unwrap();
        // This is the length of the first function's `stack_values`. Before it are the number of functions (u32)
        // and a key (u64).
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = decode_borsh::<ModuleStateMap>(&bytes).unwrap_err();
        assert!(
            matches!(error, CodecError::Short(Short { offset: 12, wanted }) if wanted == u32::MAX as u64),
            "{error}"
        );
        bytes[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = decode_borsh::<ModuleStateMap>(&bytes).unwrap_err();
        assert!(matches!(error, CodecError::Functions { offset: 0, count: u32::MAX }), "{error}");

        let mut bytes = encode_bincode(&Module::new(0).build()).unwrap();
        bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode_bincode::<ModuleStateMap>(&bytes).is_err());
        assert!(decode_bincode::<InstanceImage>(&[&[1][..], &[0xff; 8]].concat()).is_err());
    }

    #[test]
    fn errors_tell_the_offset() {
        let error = decode_borsh::<(usize, WasmAbstractValue)>(&[0, 0, 0, 0, 0, 0, 0, 0, 2]).unwrap_err();
        assert_eq!(error.to_string(), "borsh: 2 at offset 8 is no abstract value");
        let error = decode_borsh::<Option<usize>>(&[1, 2, 3]).unwrap_err();
        assert_eq!(error.to_string(), "borsh: input ends at offset 1, 8 more bytes wanted");
        let error = decode_borsh::<Vec<MachineValue>>(&[1, 0, 0, 0, 9]).unwrap_err();
        assert_eq!(error.to_string(), "borsh: 9 at offset 4 is no machine value");
    }

    #[test]
    fn an_encoding_cut_anywhere_is_an_error() {
        let words = vec![nested(2), MachineValue::CopyStackBPRelative(-8), MachineValue::VmctxDeref(vec![1, 2])];
        let map = Module::new(2).point(super::super::PointKind::Call, 0x20, &state(2, words)).build();
        let (borsh, bincode) = (encode_borsh(&map).unwrap(), encode_bincode(&map).unwrap());
        assert!((0..borsh.len()).all(|cut| decode_borsh_prefix(&borsh[..cut]).is_err()));
        assert!((0..bincode.len()).all(|cut| decode_bincode::<ModuleStateMap>(&bincode[..cut]).is_err()));
        assert_eq!(decode_borsh_prefix(&borsh).unwrap(), (map, borsh.len()));
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_decoded() {
        for (count, refused) in [(MAX_FUNCTIONS as u32, false), (MAX_FUNCTIONS as u32 + 1, true)] {
            let error = decode_borsh::<ModuleStateMap>(&count.to_le_bytes()).unwrap_err();
            assert_eq!(matches!(error, CodecError::Functions { .. }), refused, "{error}");
        }
        // These are zeros in pages of memory that were never touched.
        let bytes = vec![0; MAX_IMAGE_BYTES as usize + 1];
        assert!(matches!(decode_borsh_prefix(&bytes), Err(CodecError::TooLarge { .. })));
        assert!(matches!(decode_bincode::<u64>(&bytes), Err(CodecError::TooLarge { .. })));
        assert_eq!(decode_bincode::<u64>(&bytes[1..]).unwrap(), 0);
        decode_borsh_prefix(&bytes[1..]).unwrap();
    }

    #[test]
    fn all_lists_together_have_so_many_elements() {
        let lists = |lens: &[usize]| {
            let mut bytes = (lens.len() as u32).to_le_bytes().to_vec();
            for &len in lens {
                bytes.extend((len as u32).to_le_bytes());
                bytes.resize(bytes.len() + len, 0);
            }
            bytes
        };
        let rest = MAX_MAP_ELEMENTS - 2;
        let fits = lists(&[rest / 2, rest - rest / 2]);
        assert_eq!(decode_borsh::<Vec<Vec<MachineValue>>>(&fits).unwrap()[0].len(), rest / 2);
        let over = lists(&[rest / 2, rest - rest / 2 + 1]);
        let error = decode_borsh::<Vec<Vec<MachineValue>>>(&over).unwrap_err();
        assert!(matches!(error, CodecError::Elements { offset } if offset == 8 + rest / 2), "{error}");
        assert_eq!(error.offset(), 8 + rest / 2);
    }
}
