//! `.wasmtime.frames`: where the locals and operands of each Wasm frame are at a point of the code (`guest_debug`,
//! from version 39 on).
//!
//! A function compiled that way writes its state to a slot in its stack frame: the instance, the locals, the operand
//! stack, packed without padding. The slot's address is `fp - slot_to_fp_offset`; a *descriptor* holds that distance,
//! the types and the offsets in the slot. A *program point* is a code offset and the Wasm frames there, more than one
//! if functions were inlined.
//!
//! ```text
//! u32  descriptors, points, [breakpoints]                      in brackets: from version 41 on
//! u32  descriptor bytes, point words, [patch bytes]
//! u32  {begin, end}[descriptors]   slot_to_fp_offset[descriptors]
//! u32  key[points]   word index[points]
//! u32  [wasm pc[breakpoints]   code offset[breakpoints]   patch end[breakpoints]]
//! u8   descriptor bytes;  u32 point words;  [u8 patch bytes]
//! ```
//! The lengths have to add up to the length of the section, which tells the two forms apart. The version decides only
//! if both fit.

use crate::bytes::Bytes;
use crate::limits::{MAX_INLINE_DEPTH, MAX_SLOTS};
use crate::process::{Memory, MemoryError};
use crate::runtime::wasmtime::image::info::{FuncKey, FuncKeyBits};
use crate::runtime::wasmtime::image::version::Version;

/// The first version with breakpoints in the section, and with four bits for the kind of a function.
const FIRST_WITH_BREAKPOINTS: Version = Version(41);
/// The first version whose Wasm positions count from the module instead of from the component.
const FIRST_MODULE_RELATIVE: Version = Version(44);
/// The first version that writes the operator behind a call as its position.
const FIRST_BEHIND_CALLS: Version = Version(44);
/// The bit of a frame's Wasm position that says that another frame follows.
const MORE: u32 = 1 << 31;

/// Why the section, or a part of it, cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameTableError {
    /// The lengths in the section fit no known form.
    #[error(".wasmtime.frames ({bytes} bytes) has no known form")]
    UnknownForm {
        /// Length of the section in bytes.
        bytes: usize,
    },
    /// A descriptor does not exist or is broken.
    #[error("descriptor {index} in .wasmtime.frames: {what}")]
    Descriptor {
        /// Index of the descriptor.
        index: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The frames of a point do not end, or lie outside of the section.
    #[error("point {index} in .wasmtime.frames is broken")]
    Point {
        /// Index of the point.
        index: usize,
    },
}

/// Type of a value in a slot. Reference types are their top types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameValType {
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// 128-bit vector.
    V128,
    /// Reference into the GC heap.
    AnyRef,
    /// Pointer to a `VMFuncRef`.
    FuncRef,
    /// Reference into the GC heap to a host value.
    ExternRef,
    /// Reference into the GC heap to an exception.
    ExnRef,
    /// Continuation: a pointer and a revision.
    ContRef,
}

impl FrameValType {
    /// The type that has this number in a descriptor.
    pub fn from_byte(byte: u8) -> Option<FrameValType> {
        use FrameValType::*;
        [I32, I64, F32, F64, V128, AnyRef, FuncRef, ExternRef, ExnRef, ContRef].get(usize::from(byte)).copied()
    }

    /// Bytes that a value of this type takes in a slot.
    pub fn storage_size(self) -> u32 {
        match self {
            FrameValType::I32 | FrameValType::F32 => 4,
            FrameValType::AnyRef | FrameValType::ExternRef | FrameValType::ExnRef => 4,
            FrameValType::I64 | FrameValType::F64 | FrameValType::FuncRef => 8,
            FrameValType::V128 | FrameValType::ContRef => 16,
        }
    }
}

/// The instruction that a point at a code offset belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstPos {
    /// The instruction that ends at the offset. Such points are for return addresses.
    Post,
    /// The instruction that begins at the offset. Such points are for addresses where a thread stopped.
    Pre,
}

/// A point and its frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramPoint {
    /// Code offset of the point.
    pub text_offset: u32,
    /// Whether the point belongs to the instruction before or behind that offset.
    pub position: InstPos,
    /// The Wasm frames at the point, innermost first.
    pub frames: Vec<ProgramFrame>,
}

/// One Wasm frame of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramFrame {
    /// Offset of the frame's operator in the Wasm file. [`FrameTable::module_relative`] tells what it counts from.
    pub wasm_pc: u32,
    /// Index of the descriptor of the frame's function.
    pub descriptor: u32,
    /// Number of the operand stack's shape in the descriptor. `None` if the operand stack is empty.
    pub shape: Option<u32>,
}

/// Where a value is in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotValue {
    /// Offset of the value from the slot's address, in bytes.
    pub offset: u32,
    /// Type of the value.
    pub ty: FrameValType,
}

impl SlotValue {
    /// Address of the value in the frame that has this frame pointer.
    pub fn address(&self, descriptor: &FrameDescriptor, frame_pointer: u64) -> u64 {
        descriptor.slot(frame_pointer).wrapping_add(u64::from(self.offset))
    }

    /// Reads the value's bytes, zero-extended.
    ///
    /// # Errors
    /// If the memory of the frame cannot be read.
    pub fn read(&self, descriptor: &FrameDescriptor, fp: u64, memory: &dyn Memory) -> Result<u128, MemoryError> {
        let mut bytes = [0; 16];
        memory.read(self.address(descriptor, fp), &mut bytes[..self.ty.storage_size() as usize])?;
        Ok(u128::from_le_bytes(bytes))
    }
}

/// What one function keeps in the slot in its stack frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameDescriptor {
    /// Distance from the slot up to the frame pointer, in bytes. With inlining it is the frame pointer of the
    /// function that was inlined into.
    pub slot_to_fp_offset: u32,
    /// The function that the slot is of.
    pub function: FuncKey,
    /// The function's locals: parameters first, then the declared locals.
    pub locals: Vec<SlotValue>,
    // Operand stacks: the value on top of each, and the number of the shape below it.
    shapes: Vec<(SlotValue, Option<u32>)>,
}

impl FrameDescriptor {
    /// Address of the slot in the frame that has this frame pointer. The first word there is the instance
    /// (`VMContext`).
    pub fn slot(&self, frame_pointer: u64) -> u64 {
        frame_pointer.wrapping_sub(u64::from(self.slot_to_fp_offset))
    }

    /// Reads the address of the instance that the frame runs in.
    ///
    /// # Errors
    /// If the memory of the frame cannot be read.
    pub fn vmctx(&self, frame_pointer: u64, memory: &dyn Memory) -> Result<u64, MemoryError> {
        memory.read_u64(self.slot(frame_pointer))
    }

    /// The operands of an operand stack with this shape, bottom first. `None` if there is no such shape, or if it has
    /// more than [`MAX_SLOTS`] operands.
    pub fn stack(&self, shape: Option<u32>) -> Option<Vec<SlotValue>> {
        let mut out = Vec::new();
        let mut next = shape;
        while let Some(index) = next {
            // The loop ends: the shape below a shape has a smaller index, which `decode` has checked.
            let (value, parent) = self.shapes.get(index as usize)?;
            if out.len() == MAX_SLOTS {
                return None;
            }
            out.push(*value);
            next = *parent;
        }
        out.reverse();
        Some(out)
    }

    /// Number of shapes in the descriptor.
    #[cfg(any(test, feature = "internals"))]
    pub fn shapes(&self) -> usize {
        self.shapes.len()
    }

    fn decode(bytes: &[u8], slot_to_fp_offset: u32, bits: FuncKeyBits) -> Result<FrameDescriptor, &'static str> {
        let short = "it is cut off";
        let mut b = Bytes::new(bytes);
        let word = |b: &mut Bytes<'_>| b.u32().map_err(|_| short);
        let function = FuncKey::from_parts(word(&mut b)?, word(&mut b)?, bits).ok_or("unknown kind of function")?;
        let (locals, shapes) = (word(&mut b)?, word(&mut b)?);
        let column =
            |b: &mut Bytes<'_>, n: u32, width: u64| b.take(u64::from(n) * width).map(<[u8]>::to_vec).map_err(|_| short);
        if locals as usize > MAX_SLOTS || shapes as usize > bytes.len() {
            return Err("it has too many values");
        }
        let local_offsets = column(&mut b, locals, 4)?;
        let parents = column(&mut b, shapes, 4)?;
        let shape_offsets = column(&mut b, shapes, 4)?;
        let local_types = column(&mut b, locals, 1)?;
        let shape_types = column(&mut b, shapes, 1)?;
        let values = |offsets: &[u8], types: &[u8]| {
            let offsets = offsets.as_chunks().0.iter().map(|o| u32::from_le_bytes(*o));
            let typed = offsets.zip(types).map(|(offset, ty)| {
                let ty = FrameValType::from_byte(*ty).ok_or("unknown type")?;
                Ok(SlotValue { offset, ty })
            });
            typed.collect::<Result<Vec<_>, &'static str>>()
        };
        let locals = values(&local_offsets, &local_types)?;
        let tops = values(&shape_offsets, &shape_types)?;
        let parents = parents.as_chunks().0.iter().map(|p| u32::from_le_bytes(*p));
        let mut shapes = Vec::with_capacity(tops.len());
        for (index, (top, parent)) in tops.into_iter().zip(parents).enumerate() {
            let parent = (parent != u32::MAX).then_some(parent);
            // The compiler makes a shape after the shape below it, so the latter has a smaller index.
            if parent.is_some_and(|p| p as usize >= index) {
                return Err("an operand stack has no bottom");
            }
            shapes.push((top, parent));
        }
        Ok(FrameDescriptor { slot_to_fp_offset, function, locals, shapes })
    }
}

/// The section `.wasmtime.frames`. It is borrowed, and its parts are decoded when they are asked for.
#[derive(Clone, Copy, Debug)]
pub struct FrameTable<'a> {
    bits: FuncKeyBits,
    ranges: &'a [[u8; 8]],
    fp_offsets: &'a [[u8; 4]],
    keys: &'a [[u8; 4]],
    starts: &'a [[u8; 4]],
    breakpoints: &'a [[u8; 4]],
    patches: &'a [[u8; 4]],
    patch_ends: &'a [[u8; 4]],
    descriptors: &'a [u8],
    words: &'a [[u8; 4]],
}

impl<'a> FrameTable<'a> {
    /// Finds out which form the section has.
    ///
    /// # Errors
    /// If it has no known form.
    pub fn parse(section: &'a [u8], version: Option<Version>) -> Result<FrameTable<'a>, FrameTableError> {
        let (old, new) = (FrameTable::split(section, false), FrameTable::split(section, true));
        match (old, new) {
            (Some(old), Some(_)) if version.is_some_and(|v| v < FIRST_WITH_BREAKPOINTS) => Some(old),
            (old, new) => new.or(old),
        }
        .ok_or(FrameTableError::UnknownForm { bytes: section.len() })
    }

    fn split(section: &'a [u8], breakpoints: bool) -> Option<FrameTable<'a>> {
        let mut b = Bytes::new(section);
        let mut word = || b.u32().ok().map(u64::from);
        let (descriptors, points) = (word()?, word()?);
        let stops = if breakpoints { word()? } else { 0 };
        let (descriptor_bytes, point_words) = (word()?, word()?);
        let patch_bytes = if breakpoints { word()? } else { 0 };
        let ranges = b.take(descriptors * 8).ok()?.as_chunks().0;
        let mut column = |n: u64| b.take(n * 4).ok().map(|bytes| bytes.as_chunks().0);
        let fp_offsets = column(descriptors)?;
        let (keys, starts) = (column(points)?, column(points)?);
        let (stop_pcs, patches, patch_ends) = (column(stops)?, column(stops)?, column(stops)?);
        let descriptors = b.take(descriptor_bytes).ok()?;
        let words = b.take(point_words * 4).ok()?.as_chunks().0;
        b.skip(patch_bytes).ok()?;
        let bits = if breakpoints { FuncKeyBits::Four } else { FuncKeyBits::Three };
        (b.remaining() == 0).then_some(FrameTable {
            bits,
            ranges,
            fp_offsets,
            keys,
            starts,
            breakpoints: stop_pcs,
            patches,
            patch_ends,
            descriptors,
            words,
        })
    }

    /// Whether [`ProgramFrame::wasm_pc`] counts from the start of the core module. Before 44 it counts from the start
    /// of the file, which makes a difference in components.
    pub fn module_relative(version: Version) -> bool {
        version >= FIRST_MODULE_RELATIVE
    }

    /// Whether [`ProgramFrame::wasm_pc`] of a frame at a call is the operator behind the call, where the frame goes
    /// on. Before version 44 it is the call itself.
    pub fn behind_calls(version: Version) -> bool {
        version >= FIRST_BEHIND_CALLS
    }

    /// Number of points.
    #[cfg(any(test, feature = "internals"))]
    pub fn points(&self) -> usize {
        self.keys.len()
    }

    /// Number of descriptors.
    #[cfg(any(test, feature = "internals"))]
    pub fn descriptors(&self) -> usize {
        self.ranges.len()
    }

    /// Wasm positions at which a breakpoint can be set; sorted within a module, and may repeat.
    #[cfg(any(test, feature = "internals"))]
    pub fn breakpoints(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.breakpoints.iter().map(|pc| u32::from_le_bytes(*pc))
    }

    /// Index of the last point at or before a code offset. A point means something only for code of the function that
    /// it is in, and trampolines have no points: ask only for offsets in Wasm functions and compare
    /// [`ProgramPoint::text_offset`] with the function's start.
    pub fn index_before(&self, text_offset: u32, position: InstPos) -> Option<usize> {
        if text_offset >= MORE {
            return None;
        }
        let key = text_offset << 1 | u32::from(position == InstPos::Pre);
        self.keys.partition_point(|k| u32::from_le_bytes(*k) <= key).checked_sub(1)
    }

    /// Whether a point has more than one frame, because functions were inlined there. This reads one word and not all
    /// frames.
    pub fn has_several_frames(&self, index: usize) -> bool {
        let start = self.starts.get(index).map(|s| u32::from_le_bytes(*s) as usize);
        let first = start.and_then(|start| self.words.get(start));
        first.is_some_and(|word| u32::from_le_bytes(*word) & MORE != 0)
    }

    /// Whether the point at `text_offset` is the place of a breakpoint: code that stands in front of the operator at
    /// `wasm_pc` and does nothing, and that becomes a call of the runtime.
    pub fn is_breakpoint(&self, text_offset: u32, wasm_pc: u32) -> bool {
        let word = |column: &[[u8; 4]], at: usize| column.get(at).map(|w| u32::from_le_bytes(*w));
        let first = self.breakpoints.partition_point(|pc| u32::from_le_bytes(*pc) < wasm_pc);
        let mut of_operator =
            (first..self.breakpoints.len()).take_while(|at| word(self.breakpoints, *at) == Some(wasm_pc));
        of_operator.any(|at| {
            let before = at.checked_sub(1).map_or(Some(0), |at| word(self.patch_ends, at));
            let len = word(self.patch_ends, at).zip(before).and_then(|(end, begin)| end.checked_sub(begin));
            let end = word(self.patches, at).zip(len).and_then(|(start, len)| start.checked_add(len));
            end == Some(text_offset)
        })
    }

    /// Index of the first point at or behind a code offset.
    pub fn first_at(&self, text_offset: u32) -> usize {
        self.keys.partition_point(|k| u32::from_le_bytes(*k) >> 1 < text_offset)
    }

    /// Whether the frame's slot is filled at a point of the function that begins at `start`. The call that reports a
    /// stack overflow has a point too, in front of the first operator's point: nothing was stored by then, and what
    /// lies in the slot is from an earlier call.
    pub fn is_filled(&self, start: u32, point: &ProgramPoint) -> bool {
        let first = self.point(self.first_at(start)).ok().flatten();
        let outermost = |p: &ProgramPoint| p.frames.last().map(|f| (f.descriptor, f.wasm_pc));
        match (first.as_ref().and_then(outermost), outermost(point)) {
            // The frame is of another function, which was inlined in the place of this one (a tail call). This one is
            // gone.
            (Some((own, _)), Some((other, _))) if own != other => true,
            (Some((_, first)), Some((_, pc))) => first <= pc,
            _ => false,
        }
    }

    /// The point with index `index`. `None` if there are not so many points.
    ///
    /// # Errors
    /// If the frames of the point are broken.
    pub fn point(&self, index: usize) -> Result<Option<ProgramPoint>, FrameTableError> {
        let (Some(key), Some(start)) = (self.keys.get(index), self.starts.get(index)) else { return Ok(None) };
        let broken = FrameTableError::Point { index };
        let key = u32::from_le_bytes(*key);
        let words = self.words.get(u32::from_le_bytes(*start) as usize..).ok_or(broken)?;
        let mut frames = Vec::new();
        for frame in words.as_chunks::<3>().0 {
            if frames.len() == MAX_INLINE_DEPTH {
                return Err(broken);
            }
            let [pc, descriptor, shape] = frame.map(u32::from_le_bytes);
            let shape = (shape != u32::MAX).then_some(shape);
            frames.push(ProgramFrame { wasm_pc: pc & !MORE, descriptor, shape });
            if pc & MORE == 0 {
                // The section lists the outermost frame first.
                frames.reverse();
                let position = if key & 1 == 0 { InstPos::Post } else { InstPos::Pre };
                return Ok(Some(ProgramPoint { text_offset: key >> 1, position, frames }));
            }
        }
        Err(broken)
    }

    /// The function of a descriptor. The rest of the descriptor is not decoded.
    pub fn function_of(&self, index: u32) -> Option<FuncKey> {
        let mut b = Bytes::new(self.descriptor_bytes(index)?);
        FuncKey::from_parts(b.u32().ok()?, b.u32().ok()?, self.bits)
    }

    fn descriptor_bytes(&self, index: u32) -> Option<&'a [u8]> {
        let [b0, b1, b2, b3, e0, e1, e2, e3] = *self.ranges.get(index as usize)?;
        let (begin, end) = (u32::from_le_bytes([b0, b1, b2, b3]), u32::from_le_bytes([e0, e1, e2, e3]));
        self.descriptors.get(begin as usize..end as usize)
    }

    /// Decodes the descriptor with this index.
    ///
    /// # Errors
    /// If there is no descriptor with that index, or it is broken.
    pub fn descriptor(&self, index: u32) -> Result<FrameDescriptor, FrameTableError> {
        let wrong = |what| FrameTableError::Descriptor { index, what };
        let Some(fp_offset) = self.fp_offsets.get(index as usize) else {
            return Err(wrong("there is none"));
        };
        let bytes = self.descriptor_bytes(index).ok_or(wrong("it lies outside"))?;
        FrameDescriptor::decode(bytes, u32::from_le_bytes(*fp_offset), self.bits).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wasmtime::image::info::FuncKind;
    use crate::runtime::wasmtime::image::{FRAMES, Function, FunctionKind, Image, SliceMemory};
    use crate::runtime::wasmtime::testing;
    use proptest::prelude::*;

    /// Builds a section as the runtime's own builder does.
    #[derive(Clone, Debug, Default)]
    struct Builder {
        ranges: Vec<u32>,
        fp_offsets: Vec<u32>,
        descriptors: Vec<u8>,
        keys: Vec<u32>,
        starts: Vec<u32>,
        words: Vec<u32>,
        stops: Vec<u32>,
    }

    impl Builder {
        fn descriptor(&mut self, namespace: u32, d: &FrameDescriptor) {
            let index = d.function.index;
            self.ranges.push(self.descriptors.len() as u32);
            let mut words = vec![namespace, index, d.locals.len() as u32, d.shapes.len() as u32];
            words.extend(d.locals.iter().map(|l| l.offset));
            words.extend(d.shapes.iter().map(|s| s.1.unwrap_or(u32::MAX)));
            words.extend(d.shapes.iter().map(|s| s.0.offset));
            self.descriptors.extend(words.iter().flat_map(|w| w.to_le_bytes()));
            let types = d.locals.iter().map(|l| l.ty).chain(d.shapes.iter().map(|s| s.0.ty));
            self.descriptors.extend(types.map(|t| t as u8));
            self.ranges.push(self.descriptors.len() as u32);
            self.fp_offsets.push(d.slot_to_fp_offset);
        }

        fn point(&mut self, p: &ProgramPoint) {
            self.keys.push(p.text_offset << 1 | u32::from(p.position == InstPos::Pre));
            self.starts.push(self.words.len() as u32);
            for (i, f) in p.frames.iter().enumerate().rev() {
                let more = if i > 0 { MORE } else { 0 };
                self.words.extend([f.wasm_pc | more, f.descriptor, f.shape.unwrap_or(u32::MAX)]);
            }
        }

        fn encode(&self, breakpoints: bool) -> Vec<u8> {
            let mut descriptors = self.descriptors.clone();
            descriptors.resize(descriptors.len().next_multiple_of(4), 0);
            let patches = [0xcc; 5].repeat(self.stops.len());
            let mut words = vec![self.fp_offsets.len() as u32, self.keys.len() as u32];
            words.extend(breakpoints.then_some(self.stops.len() as u32));
            words.extend([descriptors.len() as u32, self.words.len() as u32]);
            words.extend(breakpoints.then_some(patches.len() as u32));
            words.extend([&self.ranges, &self.fp_offsets, &self.keys, &self.starts].into_iter().flatten());
            if breakpoints {
                words.extend(&self.stops);
                words.extend(self.stops.iter().enumerate().map(|(i, _)| i as u32 * 8));
                words.extend(self.stops.iter().enumerate().map(|(i, _)| (i as u32 + 1) * 5));
            }
            let le = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
            let mut out = le(&words);
            out.extend(descriptors);
            out.extend(le(&self.words));
            if breakpoints {
                out.extend(patches);
            }
            out
        }
    }

    fn value() -> impl Strategy<Value = SlotValue> {
        (0u32..4096, 0u8..10).prop_map(|(offset, ty)| SlotValue { offset, ty: FrameValType::from_byte(ty).unwrap() })
    }

    fn descriptor() -> impl Strategy<Value = FrameDescriptor> {
        let shapes = proptest::collection::vec((value(), proptest::option::of(any::<prop::sample::Index>())), 0..6);
        (0u32..9999, 0u32..99, proptest::collection::vec(value(), 0..6), shapes).prop_map(
            |(fp, index, locals, shapes)| {
                let shapes = shapes.into_iter().enumerate();
                let shapes = shapes.map(|(i, (v, p))| (v, p.filter(|_| i > 0).map(|p| p.index(i) as u32))).collect();
                let function = FuncKey { kind: FuncKind::Wasm, namespace: 3, index };
                FrameDescriptor { slot_to_fp_offset: fp, function, locals, shapes }
            },
        )
    }

    fn point() -> impl Strategy<Value = (u32, bool, Vec<ProgramFrame>)> {
        let frame = (0u32..MORE, 0u32..4, proptest::option::of(0u32..4))
            .prop_map(|(wasm_pc, descriptor, shape)| ProgramFrame { wasm_pc, descriptor, shape });
        (1u32..50, any::<bool>(), proptest::collection::vec(frame, 1..4))
    }

    fn table() -> impl Strategy<Value = (Builder, Vec<FrameDescriptor>, Vec<ProgramPoint>)> {
        let stops = proptest::collection::vec(0u32..1000, 0..3);
        let all = (proptest::collection::vec(descriptor(), 0..4), proptest::collection::vec(point(), 0..20), stops);
        all.prop_map(|(descriptors, steps, mut stops)| {
            stops.sort_unstable();
            let mut b = Builder { stops, ..Builder::default() };
            for d in &descriptors {
                // Kind 0 is a Wasm function, with three bits for the kind and with four.
                b.descriptor(3, d);
            }
            let mut at = 0;
            let mut points = Vec::new();
            for (step, pre, frames) in steps {
                at += step;
                let position = if pre { InstPos::Pre } else { InstPos::Post };
                points.push(ProgramPoint { text_offset: at, position, frames });
                b.point(points.last().unwrap());
            }
            (b, descriptors, points)
        })
    }

    #[test]
    fn an_operand_stack_has_so_many_operands() {
        let value = SlotValue { offset: 8, ty: FrameValType::I32 };
        let shapes = (0..=MAX_SLOTS as u32).map(|i| (value, i.checked_sub(1))).collect();
        let function = FuncKey { kind: FuncKind::Wasm, namespace: 0, index: 0 };
        let descriptor = FrameDescriptor { slot_to_fp_offset: 0, function, locals: Vec::new(), shapes };
        let depth = |shape: usize| descriptor.stack(Some(shape as u32)).map(|s| s.len());
        assert_eq!((depth(0), depth(MAX_SLOTS - 1), depth(MAX_SLOTS)), (Some(1), Some(MAX_SLOTS), None));
    }

    proptest! {
        #[test]
        fn both_forms_round_trip((builder, descriptors, points) in table(), probe in 0u32..1200) {
            for (breakpoints, version) in [(false, 40), (true, 41)] {
                let bytes = builder.encode(breakpoints);
                let t = FrameTable::parse(&bytes, Some(Version(version))).unwrap();
                prop_assert_eq!((t.descriptors(), t.points()), (descriptors.len(), points.len()));
                for (i, d) in descriptors.iter().enumerate() {
                    prop_assert_eq!(&t.descriptor(i as u32).unwrap(), d);
                    for shape in (0..d.shapes.len() as u32).map(Some).chain([None]) {
                        let stack = d.stack(shape).unwrap();
                        prop_assert_eq!(stack.last(), shape.map(|s| &d.shapes[s as usize].0));
                    }
                }
                for position in [InstPos::Post, InstPos::Pre] {
                    let at = (probe, position);
                    let expected = points.iter().rev().find(|p| (p.text_offset, p.position) <= at);
                    let found = t.index_before(probe, position).and_then(|i| t.point(i).unwrap());
                    prop_assert_eq!(found.as_ref(), expected);
                }
                prop_assert_eq!(t.breakpoints().count(), if breakpoints { builder.stops.len() } else { 0 });
                // The builder's patches have five bytes each and begin eight bytes apart.
                let at = |pc| (0..40).filter(|end| t.is_breakpoint(*end, pc)).collect::<Vec<_>>();
                for (i, pc) in builder.stops.iter().enumerate().filter(|_| breakpoints) {
                    let same = builder.stops.iter().enumerate().filter(|(_, other)| *other == pc);
                    prop_assert_eq!(at(*pc), same.map(|(i, _)| i as u32 * 8 + 5).collect::<Vec<_>>(), "{}", i);
                }
                for (i, point) in points.iter().enumerate() {
                    prop_assert_eq!(t.has_several_frames(i), point.frames.len() > 1);
                }
                for (i, d) in descriptors.iter().enumerate() {
                    prop_assert_eq!(t.function_of(i as u32), Some(d.function));
                }
                prop_assert_eq!(t.function_of(descriptors.len() as u32), None);
            }
        }

        #[test]
        fn broken_tables((builder, _, _) in table(), at: prop::sample::Index, bit in 0u32..8, probe: u32, new: bool) {
            let mut bytes = builder.encode(new);
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            everything(&bytes, probe);
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), probe: u32) {
            everything(&bytes, probe);
        }
    }

    fn everything(bytes: &[u8], probe: u32) {
        let Ok(t) = FrameTable::parse(bytes, None) else { return };
        for i in 0..t.points() {
            let _ = (t.point(i), t.has_several_frames(i), t.is_breakpoint(probe, i as u32));
        }
        for position in [InstPos::Post, InstPos::Pre] {
            let _ = t.index_before(probe, position).map(|i| t.point(i));
        }
        for i in 0..t.descriptors() as u32 + 1 {
            let _ = t.function_of(i);
            let Ok(d) = t.descriptor(i) else { continue };
            for shape in 0..d.shapes() as u32 + 1 {
                assert!(d.stack(Some(shape)).is_none_or(|s| s.len() <= d.shapes()));
            }
        }
    }

    #[test]
    fn a_stack_without_bottom() {
        let v = SlotValue { offset: 8, ty: FrameValType::I32 };
        let function = FuncKey { kind: FuncKind::Wasm, namespace: 0, index: 0 };
        let circular = FrameDescriptor {
            slot_to_fp_offset: 0,
            function,
            locals: vec![],
            shapes: vec![(v, Some(1)), (v, Some(0))],
        };
        let mut b = Builder::default();
        b.descriptor(0, &circular);
        let bytes = b.encode(true);
        let t = FrameTable::parse(&bytes, None).unwrap();
        let wrong = FrameTableError::Descriptor { index: 0, what: "an operand stack has no bottom" };
        assert_eq!(t.descriptor(0), Err(wrong));
    }

    /// Compares the types of the locals in `values.wat`, and the operands that lie below the call of `stop` in
    /// `leaf`.
    #[test]
    fn locals_and_operands_of_a_real_image() {
        use FrameValType::*;
        for name in testing::fixtures().into_iter().filter(|n| n.ends_with("-guest-debug")) {
            let bytes = testing::fixture(&name);
            let memory = SliceMemory::new(0, &bytes);
            let image = Image::from_bytes(&bytes).unwrap();
            let section = image.contents(FRAMES, &memory).unwrap();
            let version = image.engine(&memory).unwrap().version();
            let table = FrameTable::parse(&section, version).unwrap();
            let symbols = image.symbols(&memory).unwrap();
            let leaf = symbols
                .iter()
                .find(|f| matches!(&f.kind, FunctionKind::Wasm { name: Some(n), .. } if n == "leaf"))
                .unwrap();
            let mut seen = Vec::new();
            for i in 0..table.points() {
                let p = table.point(i).unwrap().unwrap();
                if !(leaf.start..leaf.end()).contains(&p.text_offset) {
                    continue;
                }
                let [frame] = p.frames[..] else { panic!("{name}: {p:?}") };
                let d = table.descriptor(frame.descriptor).unwrap();
                assert_eq!((d.function.kind, d.function.namespace), (FuncKind::Wasm, 0));
                // Imported functions are not counted: `leaf` is the first function that is defined.
                assert_eq!(d.function.index, 0);
                let types: Vec<_> = d.locals.iter().map(|l| l.ty).collect();
                assert_eq!(types, [I32, I64, F64, V128, ExternRef], "{name}");
                // The locals are packed behind the instance.
                let offsets: Vec<_> = d.locals.iter().map(|l| l.offset).collect();
                assert_eq!(offsets, [8, 12, 20, 28, 44], "{name}");
                let stack: Vec<_> = d.stack(frame.shape).unwrap().iter().map(|v| (v.offset, v.ty)).collect();
                seen.push((p.position, stack));
            }
            // The operands of `i32.const 12`, `i32.wrap_i64` and `local.get 0`.
            let at_call = vec![(48, I32), (52, I32), (56, I32)];
            assert!(seen.iter().any(|(p, s)| *p == InstPos::Post && *s == at_call), "{name}: {seen:?}");
            assert!(seen.iter().any(|(_, s)| s.is_empty()), "{name}");
            let some_breakpoints = version.is_some_and(|v| v >= FIRST_WITH_BREAKPOINTS);
            assert_eq!(table.breakpoints().count() > 0, some_breakpoints, "{name}");
        }
    }

    /// The outermost frame of each point is of the function whose code it is in.
    #[test]
    fn inlined_functions_come_first() {
        let mut inlined = 0;
        for name in testing::fixtures().into_iter().filter(|n| n.ends_with("-inline") || n.ends_with("-guest-debug")) {
            let bytes = testing::fixture(&name);
            let memory = SliceMemory::new(0, &bytes);
            let image = Image::from_bytes(&bytes).unwrap();
            let section = image.contents(FRAMES, &memory).unwrap();
            let table = FrameTable::parse(&section, image.engine(&memory).unwrap().version()).unwrap();
            let symbols = image.symbols(&memory).unwrap();
            for i in 0..table.points() {
                let p = table.point(i).unwrap().unwrap();
                // A point behind a function's last instruction belongs to that function.
                let at = p.text_offset - u32::from(p.position == InstPos::Post);
                let Some(Function { kind: FunctionKind::Wasm { function, .. }, .. }) = symbols.at(at) else {
                    panic!("{name}: {p:?}")
                };
                let defined = |f: &ProgramFrame| table.descriptor(f.descriptor).unwrap().function.index;
                // One function is imported.
                assert_eq!(p.frames.last().map(|f| defined(f) + 1), Some(function), "{name}: {p:?}");
                if let [inner, .., outer] = &p.frames[..] {
                    assert_ne!(defined(inner), defined(outer), "{name}: {p:?}");
                    inlined += 1;
                }
            }
        }
        assert!(inlined > 0);
    }

    #[test]
    fn a_value_is_read_relative_to_the_frame_pointer() {
        let function = FuncKey { kind: FuncKind::Wasm, namespace: 0, index: 0 };
        let d = FrameDescriptor { slot_to_fp_offset: 0x20, function, locals: vec![], shapes: vec![] };
        let mut stack = [0u8; 0x20];
        stack[..8].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
        stack[8..12].copy_from_slice(&7u32.to_le_bytes());
        stack[12] = 0xff;
        let memory = SliceMemory::new(0x1000, &stack);
        assert_eq!(d.vmctx(0x1020, &memory), Ok(0x1122_3344_5566_7788));
        let v = SlotValue { offset: 8, ty: FrameValType::I32 };
        assert_eq!((v.address(&d, 0x1020), v.read(&d, 0x1020, &memory)), (0x1008, Ok(7)));
        assert!(v.read(&d, 0x10, &memory).is_err());
    }
}
