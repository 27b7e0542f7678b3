//! What Linux writes about threads of x86-64.

use super::registers::*;
use crate::arch::kernel::{KernelLayout, SignalFrame};
use crate::arch::registers::Reg;

/// The system call instruction.
pub const SYSCALL: &[u8] = &[0x0f, 0x05];

/// What Linux writes about threads of x86-64.
pub static KERNEL: KernelLayout = KernelLayout {
    prstatus_size: 336,
    prstatus_registers: 112,
    general_words: 27,
    // fs_base
    thread_pointer: Some(21),
    // orig_rax
    system_call: 15,
    // rax
    result: 10,
    // rcx
    return_address: 11,
    system_call_name: super::system_calls::name,
    vectors_size: FXSAVE_XMM + 16 * 16,
    // NT_X86_XSTATE
    extended_note: 0x202,
    signal: SignalFrame {
        returns: SIGRETURNS,
        system_call: SYSCALL,
        registers: &UCONTEXT_REGISTERS,
        vectors: 224,
        mark: (184, are_user_segments),
    },
};

/// System call 15 (`rt_sigreturn`). `mov $15, %rax; syscall` is the code of glibc, musl and Go (gdb knows it by the same
/// bytes). The other sequences say the same in fewer bytes, as an assembler that optimizes does.
const SIGRETURNS: &[&[u8]] = &[
    &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], // mov rax, 15; syscall
    &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05],             // mov eax, 15; syscall
    &[0x6a, 0x0f, 0x58, 0x0f, 0x05],                // push 15; pop rax; syscall
];

/// Byte offsets in `struct ucontext` (asm/ucontext.h, asm/sigcontext.h).
const UCONTEXT_REGISTERS: [(Reg, u64); 17] = [
    (R8, 40),
    (R9, 48),
    (R10, 56),
    (R11, 64),
    (R12, 72),
    (R13, 80),
    (R14, 88),
    (R15, 96),
    (RDI, 104),
    (RSI, 112),
    (RBP, 120),
    (RBX, 128),
    (RDX, 136),
    (RAX, 144),
    (RCX, 152),
    (RSP, 160),
    (RIP, 168),
];

/// Whether a word holds the segment registers (cs, gs, fs, ss) of a user program.
fn are_user_segments(word: u64) -> bool {
    const USER_CS: u64 = 0x33;
    const USER_SS: u64 = 0x2b;
    word & 0xffff == USER_CS && [0, USER_SS].contains(&(word >> 48))
}
