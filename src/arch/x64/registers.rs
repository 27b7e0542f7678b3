//! The registers of x86-64, each once, with every numbering that is in use.

use crate::arch::machine::Machine;
use crate::arch::registers::{Reg, RegisterInfo, Slot};

/// Offset of XMM0 in the FXSAVE area, in bytes. NT_FPREGSET is such an area, and NT_X86_XSTATE begins with one. Each XMM
/// register takes 16 bytes.
pub(super) const FXSAVE_XMM: usize = 160;

macro_rules! slot {
    (general $word:literal) => {
        Slot::General($word)
    };
    (vector $number:literal) => {
        Slot::Vector(FXSAVE_XMM + 16 * $number)
    };
}

macro_rules! registers {
    ($($ident:ident $index:literal $name:literal dwarf $dwarf:literal $kind:ident $at:literal, saved $saved:literal;)*) => {
        $(
            #[doc = concat!("The register `", $name, "`.")]
            pub const $ident: Reg = Reg::new(Machine::X64, $index);
        )*
        /// Every register. DWARF numbers are those of the System V psABI, table 3.36; `general` is an index into
        /// `struct user_regs_struct`, seen as an array of words.
        pub static TABLE: [RegisterInfo; 33] = [$(
            RegisterInfo { reg: $ident, name: $name, dwarf: $dwarf, slot: slot!($kind $at), callee_saved: $saved },
        )*];
    };
}

registers! {
    RAX 0 "rax" dwarf 0 general 10, saved false;
    RCX 1 "rcx" dwarf 2 general 11, saved false;
    RDX 2 "rdx" dwarf 1 general 12, saved false;
    RBX 3 "rbx" dwarf 3 general 5, saved true;
    RSP 4 "rsp" dwarf 7 general 19, saved true;
    RBP 5 "rbp" dwarf 6 general 4, saved true;
    RSI 6 "rsi" dwarf 4 general 13, saved false;
    RDI 7 "rdi" dwarf 5 general 14, saved false;
    R8 8 "r8" dwarf 8 general 9, saved false;
    R9 9 "r9" dwarf 9 general 8, saved false;
    R10 10 "r10" dwarf 10 general 7, saved false;
    R11 11 "r11" dwarf 11 general 6, saved false;
    R12 12 "r12" dwarf 12 general 3, saved true;
    R13 13 "r13" dwarf 13 general 2, saved true;
    R14 14 "r14" dwarf 14 general 1, saved true;
    R15 15 "r15" dwarf 15 general 0, saved true;
    XMM0 16 "xmm0" dwarf 17 vector 0, saved false;
    XMM1 17 "xmm1" dwarf 18 vector 1, saved false;
    XMM2 18 "xmm2" dwarf 19 vector 2, saved false;
    XMM3 19 "xmm3" dwarf 20 vector 3, saved false;
    XMM4 20 "xmm4" dwarf 21 vector 4, saved false;
    XMM5 21 "xmm5" dwarf 22 vector 5, saved false;
    XMM6 22 "xmm6" dwarf 23 vector 6, saved false;
    XMM7 23 "xmm7" dwarf 24 vector 7, saved false;
    XMM8 24 "xmm8" dwarf 25 vector 8, saved false;
    XMM9 25 "xmm9" dwarf 26 vector 9, saved false;
    XMM10 26 "xmm10" dwarf 27 vector 10, saved false;
    XMM11 27 "xmm11" dwarf 28 vector 11, saved false;
    XMM12 28 "xmm12" dwarf 29 vector 12, saved false;
    XMM13 29 "xmm13" dwarf 30 vector 13, saved false;
    XMM14 30 "xmm14" dwarf 31 vector 14, saved false;
    XMM15 31 "xmm15" dwarf 32 vector 15, saved false;
    RIP 32 "rip" dwarf 16 general 16, saved false;
}

/// The general registers, in the order of their numbers in machine code.
pub const GENERAL: [Reg; 16] = [RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15];

/// The vector registers, in the order of their numbers. Only their low 64 bits are known.
pub const VECTORS: [Reg; 16] =
    [XMM0, XMM1, XMM2, XMM3, XMM4, XMM5, XMM6, XMM7, XMM8, XMM9, XMM10, XMM11, XMM12, XMM13, XMM14, XMM15];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_rows_are_in_the_order_of_state_maps_and_dwarf_numbers_have_no_gap() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.reg.index(), i);
        }
        let mut dwarf: Vec<u16> = TABLE.iter().map(|row| row.dwarf).collect();
        dwarf.sort_unstable();
        assert_eq!(dwarf, (0..=32).collect::<Vec<u16>>());
        assert_eq!((RIP.info().dwarf, XMM0.info().dwarf), (16, 17));
    }
}
