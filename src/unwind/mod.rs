//! Who called: from one frame's registers to its caller's. Knows nothing about Wasm.

pub mod by_code;
pub mod cfi;
pub mod frame_pointer;
#[cfg(test)]
#[allow(unsafe_code)] // assembly with known register values, signal handlers
mod own_process;
mod prologue;
pub mod recognised;
#[cfg(test)]
pub(crate) mod testing;
pub mod walk;

pub use walk::{End, Frame, Stack, walk};

use crate::arch::{CodeAddress, Reg, Registers};
use crate::process::{Memory, MemoryError};

/// A place on a stack: an address in code and the registers as they are in that frame.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// Where this frame is.
    pub address: CodeAddress,
    /// This frame's registers. `rip` equals `address.raw()`.
    pub registers: Registers,
}

/// How much a frame can be believed: how its registers were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// The thread's own registers.
    Context,
    /// Call frame information of the callee.
    Cfi,
    /// The callee's runtime knows its frame layout.
    Runtime,
    /// Code without CFI that was recognised by its bytes.
    Recognised,
    /// The callee's own code, followed from its start: it has no table.
    Code,
    /// The callee's frame pointer, no table says that it has one.
    FramePointer,
    /// A search of the stack, confirmed by the runtime's tables: native frames before it may be missing.
    Scan,
}

/// Why a walk could not go on.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnwindError {
    /// The frame's unwinding needs a register that is not known.
    #[error("register {register} of this frame is not known")]
    UnknownRegister {
        /// Its name.
        register: &'static str,
    },
    /// The stack could not be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The address is in no known code.
    #[error("{address:#x} is in no code that is known")]
    NoCode {
        /// The address.
        address: u64,
    },
    /// The unwind table for the address is broken.
    #[error("unwind information for {address:#x} in {object} is invalid: {why}")]
    BadCfi {
        /// The address.
        address: u64,
        /// File.
        object: String,
        /// What is wrong.
        why: String,
    },
    /// Nobody can unwind from here.
    #[error("no unwind information for {address:#x} in {object}, and no frame pointer chain")]
    NoCfi {
        /// The address.
        address: u64,
        /// File or mapping.
        object: String,
    },
    /// A runtime's frame does not have the shape that its tables say.
    #[error("frame at {address:#x} is not as {runtime} lays it out: {why}")]
    BadFrame {
        /// The address.
        address: u64,
        /// Runtime name.
        runtime: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// What a step found.
// One lives at a time, on the stack of the walking loop: boxing the cursor would only cost an allocation per frame.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum Next {
    /// The caller, and how it was found.
    Caller(Cursor, Trust),
    /// There is no caller: the stack's bottom.
    Bottom,
    /// There may be one, but it cannot be found.
    Lost(UnwindError),
}

/// Unwinds one kind of code.
pub trait Unwinder {
    /// One step from `at` to its caller; `None`: not my code.
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next>;
}

/// How the caller of a frame is found: one change that holds from an offset on. At a function's start the CFA is `rsp + 8`,
/// the return address is in the word below it, callee-saved registers have the caller's values, and the others are not
/// known.
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
    /// The caller's value is lost or nobody knows where it is. Of [`Reg::RIP`]: the caller itself is not known.
    Undefined(Reg),
}
