//! What differs between machines: their registers, what the kernel writes about threads, and what their code means.
//!
//! [`Machine`] says which machines there are. All that is known of one is in its `Description`, and what reads its
//! machine code is in its folder. A [`Reg`] and a [`Registers`] know their machine, so code that asks them is right on
//! each. All of this is pure data, without I/O.

mod kernel;
mod machine;
mod registers;
pub mod x64;

pub use kernel::Interrupted;
pub use machine::Machine;
pub use registers::{Reg, Registers, Slot};

/// An address in code, together with what kind of address it is. The kind decides how tables are searched for it.
///
/// ```text
///     callq f          <- the call; CFI and DWARF rows of the call cover these bytes
/// ret: movq %rax, ...  <- the return address: already the next instruction
/// ```
///
/// A caller's frame is known by its *return* address. CFI and line tables describe instructions, so they are searched
/// at `ret - 1`. The runtime's state maps list return addresses themselves, so they are searched at `ret`. The
/// innermost frame, and the frame below a signal handler, are stopped *at* an instruction: for them, all tables are
/// searched at the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CodeAddress {
    /// Address of the instruction that would be executed next. The innermost frame has it, and a frame that was
    /// interrupted by a signal.
    Exact(u64),
    /// Address to which a callee will return.
    Return(u64),
}

impl CodeAddress {
    /// Returns the address as it was found. It is printed, and state maps are searched for it.
    pub fn raw(self) -> u64 {
        match self {
            CodeAddress::Exact(a) | CodeAddress::Return(a) => a,
        }
    }

    /// Returns an address inside the instruction that this frame is executing. CFI, line tables and symbols are
    /// searched for it.
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
