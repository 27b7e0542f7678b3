//! x86-64: one table of registers with every numbering that is in use, and a register file in which a register can be
//! unknown.

use std::fmt;

/// A register, numbered as the runtime's state maps number it (`state.rs: X64Register::to_index`): 0-15 are the general
/// purpose registers in hardware order, 16-31 the low 64 bits of XMM0-15. 32 is the instruction pointer, which no state
/// map names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(pub u8);

/// One row of the register table.
#[derive(Clone, Copy, Debug)]
pub struct RegisterInfo {
    /// The register that this row describes.
    pub reg: Reg,
    /// Lower-case assembler name.
    pub name: &'static str,
    /// DWARF register number (System V psABI, table 3.36).
    pub dwarf: u16,
    /// Index into `struct user_regs_struct` seen as an array of u64. Only general purpose registers and the
    /// instruction pointer have one.
    pub user_regs: Option<usize>,
    /// Whether a System V callee must preserve it.
    pub callee_saved: bool,
}

macro_rules! registers {
    ($($ident:ident $index:literal $name:literal dwarf $dwarf:literal user $user:expr, saved $saved:literal;)*) => {
        $(
            #[doc = concat!("The register `", $name, "`.")]
            pub const $ident: Reg = Reg($index);
        )*
        /// Every register, in state-map order, so that `TABLE[reg.index()]` is its row.
        pub static TABLE: [RegisterInfo; Registers::COUNT] = [
            $(RegisterInfo { reg: Reg($index), name: $name, dwarf: $dwarf, user_regs: $user, callee_saved: $saved },)*
        ];
    };
}

registers! {
    RAX 0 "rax" dwarf 0 user Some(10), saved false;
    RCX 1 "rcx" dwarf 2 user Some(11), saved false;
    RDX 2 "rdx" dwarf 1 user Some(12), saved false;
    RBX 3 "rbx" dwarf 3 user Some(5), saved true;
    RSP 4 "rsp" dwarf 7 user Some(19), saved true;
    RBP 5 "rbp" dwarf 6 user Some(4), saved true;
    RSI 6 "rsi" dwarf 4 user Some(13), saved false;
    RDI 7 "rdi" dwarf 5 user Some(14), saved false;
    R8 8 "r8" dwarf 8 user Some(9), saved false;
    R9 9 "r9" dwarf 9 user Some(8), saved false;
    R10 10 "r10" dwarf 10 user Some(7), saved false;
    R11 11 "r11" dwarf 11 user Some(6), saved false;
    R12 12 "r12" dwarf 12 user Some(3), saved true;
    R13 13 "r13" dwarf 13 user Some(2), saved true;
    R14 14 "r14" dwarf 14 user Some(1), saved true;
    R15 15 "r15" dwarf 15 user Some(0), saved true;
    XMM0 16 "xmm0" dwarf 17 user None, saved false;
    XMM1 17 "xmm1" dwarf 18 user None, saved false;
    XMM2 18 "xmm2" dwarf 19 user None, saved false;
    XMM3 19 "xmm3" dwarf 20 user None, saved false;
    XMM4 20 "xmm4" dwarf 21 user None, saved false;
    XMM5 21 "xmm5" dwarf 22 user None, saved false;
    XMM6 22 "xmm6" dwarf 23 user None, saved false;
    XMM7 23 "xmm7" dwarf 24 user None, saved false;
    XMM8 24 "xmm8" dwarf 25 user None, saved false;
    XMM9 25 "xmm9" dwarf 26 user None, saved false;
    XMM10 26 "xmm10" dwarf 27 user None, saved false;
    XMM11 27 "xmm11" dwarf 28 user None, saved false;
    XMM12 28 "xmm12" dwarf 29 user None, saved false;
    XMM13 29 "xmm13" dwarf 30 user None, saved false;
    XMM14 30 "xmm14" dwarf 31 user None, saved false;
    XMM15 31 "xmm15" dwarf 32 user None, saved false;
    RIP 32 "rip" dwarf 16 user Some(16), saved false;
}

/// Index of `fs_base` in `struct user_regs_struct` as an array of u64.
pub const USER_REGS_FS_BASE: usize = 21;
/// Index of `orig_rax` in `struct user_regs_struct` as an array of u64.
pub const USER_REGS_ORIG_RAX: usize = 15;
/// Number of u64 words of `struct user_regs_struct`.
pub const USER_REGS_WORDS: usize = 27;

impl Reg {
    /// The register's row number, which is also its state-map index.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// The register with this state-map index (0-31), or `None` beyond it.
    pub fn from_index(index: usize) -> Option<Reg> {
        (index < 32).then_some(Reg(index as u8))
    }

    /// The register with this DWARF number. Unlike the runtime's `from_dwarf_regnum`, which stops at XMM7 (24), this
    /// covers XMM8-15 (25-32) and the return address column (16).
    pub fn from_dwarf(number: u16) -> Option<Reg> {
        TABLE.iter().find(|row| row.dwarf == number).map(|row| row.reg)
    }

    /// This register's table row.
    pub fn info(self) -> &'static RegisterInfo {
        &TABLE[self.index().min(Registers::COUNT - 1)]
    }

    /// Lower-case assembler name.
    pub fn name(self) -> &'static str {
        self.info().name
    }
}

impl fmt::Debug for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A register file. A register that is not known has no value: it is never read as zero.
///
/// If a known register was restored from the stack, the file also remembers the stack address. This provenance is
/// shown with every value ("saved at ...").
#[derive(Clone, PartialEq, Eq)]
pub struct Registers {
    values: [u64; Self::COUNT],
    saved_at: [u64; Self::COUNT],
    known: u64,
    restored: u64,
}

impl Registers {
    /// Number of registers in the file.
    pub const COUNT: usize = 33;

    /// Creates a register file in which no register is known.
    pub fn unknown() -> Registers {
        Registers { values: [0; Self::COUNT], saved_at: [0; Self::COUNT], known: 0, restored: 0 }
    }

    /// The value of `reg`, or `None` if it is not known.
    pub fn get(&self, reg: Reg) -> Option<u64> {
        (self.known & (1 << reg.0) != 0).then(|| self.values[reg.index()])
    }

    /// Sets `reg` to a value that is live in the register, or that was computed.
    pub fn set(&mut self, reg: Reg, value: u64) {
        self.values[reg.index()] = value;
        self.known |= 1 << reg.0;
        self.restored &= !(1 << reg.0);
    }

    /// Sets `reg` to a value restored from the stack slot at `address`.
    pub fn restore(&mut self, reg: Reg, value: u64, address: u64) {
        self.set(reg, value);
        self.saved_at[reg.index()] = address;
        self.restored |= 1 << reg.0;
    }

    /// The stack address from which `reg` was restored, or `None` if it was not restored from the stack.
    pub fn saved_at(&self, reg: Reg) -> Option<u64> {
        (self.known & self.restored & (1 << reg.0) != 0).then(|| self.saved_at[reg.index()])
    }

    /// Makes `reg` unknown.
    pub fn forget(&mut self, reg: Reg) {
        self.known &= !(1 << reg.0);
        self.restored &= !(1 << reg.0);
    }

    /// Forgets every register that a System V call does not preserve. `rsp` and `rip` stay: the walker sets them.
    pub fn forget_caller_saved(&mut self) {
        for row in &TABLE {
            if !row.callee_saved && row.reg != RIP {
                self.forget(row.reg);
            }
        }
    }

    /// The instruction pointer, if it is known.
    pub fn pc(&self) -> Option<u64> {
        self.get(RIP)
    }

    /// The stack pointer, if it is known.
    pub fn sp(&self) -> Option<u64> {
        self.get(RSP)
    }

    /// The 32 registers that state maps number, in the order of their numbers. The runtime's `read_stack` takes them
    /// as `initially_known_registers` (`state.rs`).
    pub fn state_map_values(&self) -> [Option<u64>; 32] {
        std::array::from_fn(|i| self.get(Reg(i as u8)))
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for row in &TABLE {
            if let Some(v) = self.get(row.reg) {
                map.entry(&row.reg, &format_args!("{v:#x}"));
            }
        }
        map.finish()
    }
}

/// Registers in the block that the singlepass runtime loads when it switches to another stack, lowest address first.
/// `image-loading-linux-x86-64.s: run_on_alternative_stack` loads the block, and
/// `state.rs: invoke_call_return_on_stack` writes it.
pub(crate) const SWITCH_BLOCK: [Reg; 31] = [
    XMM0, XMM1, XMM2, XMM3, XMM4, XMM5, XMM6, XMM7, XMM8, XMM9, XMM10, XMM11, XMM12, XMM13, XMM14, XMM15, RBP, RAX,
    RBX, RCX, RDX, RDI, RSI, R8, R9, R10, R11, R12, R13, R14, R15,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_rows_are_in_state_map_order_and_numbers_are_unique() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.reg.index(), i);
        }
        let mut dwarf: Vec<u16> = TABLE.iter().map(|r| r.dwarf).collect();
        dwarf.sort();
        assert_eq!(dwarf, (0..=32).collect::<Vec<u16>>());
    }

    #[test]
    fn unknown_is_not_zero_and_provenance_is_kept() {
        let mut r = Registers::unknown();
        assert_eq!(r.get(RBX), None);
        r.set(RBX, 0);
        assert_eq!((r.get(RBX), r.saved_at(RBX)), (Some(0), None));
        r.restore(RBX, 7, 0x1000);
        assert_eq!((r.get(RBX), r.saved_at(RBX)), (Some(7), Some(0x1000)));
        r.set(RAX, 1);
        r.forget_caller_saved();
        assert_eq!((r.get(RAX), r.get(RBX)), (None, Some(7)));
    }
}
