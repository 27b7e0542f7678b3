//! Unwinding: finds out who called a frame, that is, computes the caller's registers from the frame's. Knows nothing
//! about Wasm.

pub mod by_code;
pub mod cfi;
pub mod frame_pointer;
#[cfg(test)]
#[allow(unsafe_code)] // assembly with known register values, signal handlers
mod own_process;
pub mod recognised;
#[cfg(test)]
pub(crate) mod testing;
pub mod walk;

pub use walk::{End, Frame, Stack, walk};

use crate::arch::{CodeAddress, Reg, Registers};
use crate::process::{Memory, MemoryError};

/// One frame while a stack is walked: an address in code and the registers as they are in that frame.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// The address in code at which this frame stands.
    pub address: CodeAddress,
    /// This frame's registers. Their `rip` equals `address.raw()`.
    pub registers: Registers,
}

/// How the registers of a frame were found, which says how far the frame can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// The registers are the thread's own.
    Context,
    /// The registers come from call frame information of the callee.
    Cfi,
    /// The registers come from the callee's runtime, which knows the layout of its frames.
    Runtime,
    /// The registers come from code without CFI that was recognised by its bytes.
    Recognised,
    /// The registers come from the callee's own code, which has no table and was followed from its start.
    Code,
    /// The registers come from the callee's frame pointer, although no table says that the callee has one.
    FramePointer,
    /// The registers come from a search of the stack that the runtime's tables confirmed. Native frames before this
    /// frame may be missing.
    Scan,
}

/// Why a walk could not go on.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnwindError {
    /// The frame's unwinding needs a register that is not known.
    #[error("register {register} is not known in this frame")]
    UnknownRegister {
        /// Name of the register, such as `rbp`.
        register: &'static str,
    },
    /// The stack could not be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The address is not in executable memory.
    #[error("no executable memory is mapped at {address:#x}")]
    NoCode {
        /// The address, in the target.
        address: u64,
    },
    /// The unwind table for the address is broken.
    #[error("unwind information for {address:#x} in {object} is invalid: {why}")]
    BadCfi {
        /// The address, in the target, at which the frame stands.
        address: u64,
        /// Name of the file that the table is from.
        object: String,
        /// What is wrong with the table.
        why: String,
    },
    /// No unwinder can go on from this frame.
    #[error("{object} has no unwind information for {address:#x}, and no caller can be found through rbp")]
    NoCfi {
        /// The address, in the target, at which the frame stands.
        address: u64,
        /// The file, or the mapping, that the address is in.
        object: String,
    },
    /// A runtime's frame does not have the shape that the runtime's tables say.
    #[error("frame at {address:#x} is not as {runtime} lays it out: {why}")]
    BadFrame {
        /// The address, in the target, at which the frame stands.
        address: u64,
        /// Name of the runtime.
        runtime: &'static str,
        /// What does not fit.
        why: String,
    },
}

/// What one step from a frame to its caller found.
// Only one value lives at a time, on the stack of the walking loop: boxing the cursor would only cost an allocation
// per frame.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum Next {
    /// The caller's frame, and how it was found.
    Caller(Cursor, Trust),
    /// There is no caller: this frame is the bottom of the stack.
    Bottom,
    /// There may be a caller, but it cannot be found.
    Lost(UnwindError),
}

/// Unwinds one kind of code.
pub trait Unwinder {
    /// Makes one step from `at` to its caller. `None` if this unwinder does not know the code at `at`.
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next>;
}

/// One part of the rule by which the caller of a frame is found, valid from some offset in the code on. At a
/// function's start the CFA is `rsp + 8`, the return address is in the word below the CFA, callee-saved registers
/// have the caller's values, and the other registers are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameChange {
    /// The CFA is this register plus this many bytes.
    Cfa(Reg, i32),
    /// The CFA is the word that this register points to, plus this many bytes.
    CfaDeref(Reg, u32),
    /// The caller's value of a register is in the word at this byte offset from the CFA (a multiple of 8).
    Saved(Reg, i32),
    /// The register still, or again, has the caller's value.
    Same(Reg),
    /// The caller's value is lost, or nobody knows where it is. For the program counter: the caller itself is not known.
    Undefined(Reg),
}
