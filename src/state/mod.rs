//! The machine-state model of the runtime (`state.rs`). It is pure: it knows no process, no file and no runtime.
//!
//! ```text
//! code offset --map--> Point { function, diff } --diff--> MachineState --read--> locals, operand stack, caller's sp
//! ```
//!
//! - [`model`]: the data types. They have the runtime's names, fields and field order, because both encodings follow
//!   these.
//! - [`map`]: finds the function and the point at a code offset.
//! - [`lookup`]: finds one function in an encoded map without decoding the whole map.
//! - [`diff`]: builds the machine state from a point's diff.
//! - [`read`]: reads values from a stack by means of a machine state. It reads one frame, or all frames as
//!   `read_stack` does.
//! - [`resume`]: builds the stack on which the frames of an image go on.
//! - [`codec`]: encodes and decodes bincode 1 and borsh.
//! - [`image`]: the parts of an encoded `InstanceImage`, without a second copy of its linear memory.
//! - [`mod@validate`]: finds what is wrong with a map, function by function.
//! - [`x64`]: the register numbers that the maps use.
//!
//! A map is input that may come from the memory of a broken process. So every function here is total: it always ends,
//! and it returns an error or less information where the runtime would panic, loop or read out of bounds.

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
pub use diff::StateError;
pub use image::{AnyImage, ImageError, ImageView};
pub use map::{Point, PointKind};
pub use model::*;
pub use read::{
    BoundaryRegisters, FrameProblem, FrameRead, MissingReason, ReadEnd, ReadError, ValuePlace, read_frame, read_stack,
};
pub use resume::{ResumeStack, goes_on_at, resume_stack};
pub use validate::validate;
pub use x64::KnownRegisters;
