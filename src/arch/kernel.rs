//! What the Linux kernel writes about threads, and for them, on any machine.

use super::registers::Reg;

/// How the kernel writes the registers of a thread, in cores and for tracers.
#[derive(Debug)]
#[non_exhaustive]
pub struct KernelLayout {
    /// Size of the record of a thread in a core (`struct elf_prstatus`), in bytes.
    pub prstatus_size: usize,
    /// Offset of the general registers in that record, in bytes.
    pub prstatus_registers: usize,
    /// Number of 64-bit words of the general registers (`struct user_regs_struct`).
    pub general_words: usize,
    /// The word of the general registers that holds the thread pointer, if it is among them.
    pub thread_pointer: Option<usize>,
    /// The word of the general registers that holds the number of the system call that the thread is in. It is
    /// negative if the thread is in none.
    pub system_call: usize,
    /// Bytes at the start of the floating point state (NT_FPREGSET) that hold all vector registers which have a slot.
    pub vectors_size: usize,
    /// Type of the note with the extended floating point state, which begins like NT_FPREGSET.
    pub extended_note: u32,
    /// What the kernel leaves on the stack for a signal handler.
    pub signal: SignalFrame,
}

/// The frame that the kernel makes below a signal handler.
#[derive(Debug)]
#[non_exhaustive]
pub struct SignalFrame {
    /// The code that a handler returns to makes the system call `rt_sigreturn`. These are its forms, each with its
    /// system call instruction at the end.
    pub returns: &'static [&'static [u8]],
    /// The system call instruction.
    pub system_call: &'static [u8],
    /// Byte offsets of registers in `struct ucontext`. The stack pointer points to that struct when a handler has
    /// returned.
    pub registers: &'static [(Reg, u64)],
    /// Offset of the pointer to the floating point state in `struct ucontext`. The pointer is null if that state was not
    /// saved.
    pub vectors: u64,
    /// Offset of a word in `struct ucontext` whose bits tell such a struct from other memory, and whether they do.
    pub mark: (u64, fn(u64) -> bool),
}

impl SignalFrame {
    /// The length of the longest code that a handler returns to, in bytes.
    pub fn longest_return(&self) -> usize {
        self.returns.iter().map(|code| code.len()).max().unwrap_or(0)
    }
}
