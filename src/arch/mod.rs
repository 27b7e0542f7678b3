//! What the machine is: code addresses and register files. Pure data, no I/O.

pub mod x64;

pub use x64::{Reg, Registers};

/// An address in code, with the fact that decides how tables are searched.
///
/// ```text
///     callq f          <- the call; CFI and DWARF rows of the call cover these bytes
/// ret: movq %rax, ...  <- the return address: already the next instruction
/// ```
///
/// A caller's frame is known by its *return* address. CFI and line tables describe instructions, so they are searched at
/// `ret - 1`; the runtime's state maps list return addresses themselves, so they are searched at `ret`. The innermost
/// frame, and the frame below a signal handler, are stopped *at* an instruction: there both are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CodeAddress {
    /// The instruction that would be executed next (innermost frame, or interrupted by a signal).
    Exact(u64),
    /// The address to which a callee will return.
    Return(u64),
}

impl CodeAddress {
    /// The address as found: what is printed, and what a state map lists.
    pub fn raw(self) -> u64 {
        match self {
            CodeAddress::Exact(a) | CodeAddress::Return(a) => a,
        }
    }

    /// An address inside the instruction this frame is executing: what CFI, line tables and symbols are searched with.
    pub fn lookup(self) -> u64 {
        match self {
            CodeAddress::Exact(a) => a,
            CodeAddress::Return(a) => a.wrapping_sub(1),
        }
    }

    /// Whether this is a return address.
    pub fn is_return(self) -> bool {
        matches!(self, CodeAddress::Return(_))
    }
}
