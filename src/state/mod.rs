//! The machine-state model of the runtime (`state.rs`), pure: no process, no file, no runtime.
//!
//! ```text
//! code offset --map--> Point { function, diff } --diff--> MachineState --read--> locals, operand stack, caller's sp
//! ```
//!
//! - [`model`]: the data, with the runtime's names, fields and field order, because both encodings follow them.
//! - [`map`]: from a code offset to the function and the point there.
//! - [`lookup`]: one function out of an encoded map.
//! - [`diff`]: from a point's diff to the machine state.
//! - [`read`]: from a machine state and a stack to values: one frame, or the whole of `read_stack`.
//! - [`resume`]: from an image to a stack on which its frames go on.
//! - [`codec`]: bincode 1 and borsh.
//! - [`image`]: the parts of an encoded `InstanceImage`, whose memory nobody wants to hold twice.
//! - [`mod@validate`]: what is wrong with a map, function by function.
//! - [`x64`]: the register numbers that the maps use.
//!
//! A map is input: it may come from the memory of a broken process. Every function here is total: it ends, and returns
//! an error or less information where the runtime would panic, loop or read out of bounds.

pub mod codec;
pub mod diff;
pub mod image;
pub mod lookup;
pub mod map;
pub mod model;
pub mod read;
pub mod resume;
#[cfg(test)]
pub(crate) mod synthetic;
pub mod validate;
pub mod x64;

pub use codec::CodecError;
pub use diff::{Budget, StateError};
pub use image::{AnyImage, ImageError, ImageView};
pub use map::{Point, PointKind};
pub use model::*;
pub use read::{
    BoundaryRegisters, FrameProblem, FrameRead, KnownRegisters, MissingReason, ReadEnd, ReadError, ReadWord,
    ValuePlace, cross_tier_boundary, find_point, read_frame, read_stack,
};
pub use resume::{ResumeError, ResumeStack, goes_on_at, resume_stack};
pub use validate::{Validation, validate};
