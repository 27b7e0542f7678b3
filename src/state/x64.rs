//! The register numbers of the x86-64 state maps (`state.rs: x64_decl`).

use super::model::RegisterIndex;
use crate::arch::{Machine, Reg, Registers, x64};

/// The registers that state maps number, in the order of their numbers (`state.rs: X64Register::to_index`): the general
/// registers as machine code numbers them, then the low 64 bits of XMM0-15. The instruction pointer has no number.
const NUMBERED: [Reg; 32] = {
    let mut all = [x64::RAX; 32];
    let mut i = 0;
    while i < 16 {
        (all[i], all[16 + i]) = (x64::GENERAL[i], x64::VECTORS[i]);
        i += 1;
    }
    all
};

/// Registers in the block that the runtime loads when it switches to another stack, lowest address first.
/// `image-loading-linux-x86-64.s: run_on_alternative_stack` loads the block, and
/// `state.rs: invoke_call_return_on_stack` writes it.
pub const SWITCH_BLOCK: [Reg; 31] = [
    x64::XMM0,
    x64::XMM1,
    x64::XMM2,
    x64::XMM3,
    x64::XMM4,
    x64::XMM5,
    x64::XMM6,
    x64::XMM7,
    x64::XMM8,
    x64::XMM9,
    x64::XMM10,
    x64::XMM11,
    x64::XMM12,
    x64::XMM13,
    x64::XMM14,
    x64::XMM15,
    x64::RBP,
    x64::RAX,
    x64::RBX,
    x64::RCX,
    x64::RDX,
    x64::RDI,
    x64::RSI,
    x64::R8,
    x64::R9,
    x64::R10,
    x64::R11,
    x64::R12,
    x64::R13,
    x64::R14,
    x64::R15,
];

/// State-map number of the register with this DWARF number (`state.rs: X64Register::from_dwarf_regnum`), as tables of
/// native code and unwinders number registers. The runtime's own function ends at XMM7 (24); this one knows XMM8-15
/// (25-32) too. The return address (16) has no number in state maps.
pub fn from_dwarf_regnum(number: u16) -> Option<RegisterIndex> {
    Machine::X64.from_dwarf(number).and_then(to_index)
}

/// State-map number of `reg`. The instruction pointer and registers of other machines have none.
pub fn to_index(reg: Reg) -> Option<RegisterIndex> {
    NUMBERED.iter().position(|numbered| *numbered == reg).map(RegisterIndex)
}

/// The register with this state-map number, or `None` if there is no such register.
pub fn from_index(index: RegisterIndex) -> Option<Reg> {
    NUMBERED.get(index.0).copied()
}

/// Values of registers by state-map number. `None` means that the value is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownRegisters(pub [Option<u64>; 32]);

impl KnownRegisters {
    /// No register is known.
    pub const UNKNOWN: KnownRegisters = KnownRegisters([None; 32]);

    /// The value of the register with this state-map number. It is `None` also where there is no such register.
    pub fn get(&self, index: usize) -> Option<u64> {
        self.0.get(index).copied().flatten()
    }

    /// The value of a register. It is `None` also where state maps have no number for the register.
    pub fn of(&self, reg: Reg) -> Option<u64> {
        self.get(to_index(reg)?.0)
    }

    /// Sets what is known of a register. A register that state maps have no number for is left out.
    pub fn set(&mut self, reg: Reg, value: Option<u64>) {
        if let Some(known) = to_index(reg).and_then(|index| self.0.get_mut(index.0)) {
            *known = value;
        }
    }
}

/// The values of a frame's registers, by state-map number. The runtime's `read_stack` takes them as
/// `initially_known_registers` (`state.rs`).
pub fn known_registers(registers: &Registers) -> KnownRegisters {
    KnownRegisters(NUMBERED.map(|reg| registers.get(reg)))
}

/// The bytes of the instruction `mov %reg, disp32(%rsp)` (`movq` for XMM registers) that come before the 32-bit
/// displacement. Only the registers that pass arguments have them. For others this is `None`.
#[cfg(any(test, feature = "internals"))]
pub fn prefix_mov_to_stack(reg: Reg) -> Option<&'static [u8]> {
    let bytes: &'static [u8] = match reg {
        x64::RDI => &[0x48, 0x89, 0xbc, 0x24],
        x64::RSI => &[0x48, 0x89, 0xb4, 0x24],
        x64::RDX => &[0x48, 0x89, 0x94, 0x24],
        x64::RCX => &[0x48, 0x89, 0x8c, 0x24],
        x64::R8 => &[0x4c, 0x89, 0x84, 0x24],
        x64::R9 => &[0x4c, 0x89, 0x8c, 0x24],
        x64::XMM0 => &[0x66, 0x0f, 0xd6, 0x84, 0x24],
        x64::XMM1 => &[0x66, 0x0f, 0xd6, 0x8c, 0x24],
        x64::XMM2 => &[0x66, 0x0f, 0xd6, 0x94, 0x24],
        x64::XMM3 => &[0x66, 0x0f, 0xd6, 0x9c, 0x24],
        x64::XMM4 => &[0x66, 0x0f, 0xd6, 0xa4, 0x24],
        x64::XMM5 => &[0x66, 0x0f, 0xd6, 0xac, 0x24],
        x64::XMM6 => &[0x66, 0x0f, 0xd6, 0xb4, 0x24],
        x64::XMM7 => &[0x66, 0x0f, 0xd6, 0xbc, 0x24],
        _ => return None,
    };
    Some(bytes)
}

#[cfg(any(test, feature = "internals"))]
const INTEGERS: [Reg; 6] = [x64::RDI, x64::RSI, x64::RDX, x64::RCX, x64::R8, x64::R9];
#[cfg(any(test, feature = "internals"))]
const FLOATS: [Reg; 8] = [x64::XMM0, x64::XMM1, x64::XMM2, x64::XMM3, x64::XMM4, x64::XMM5, x64::XMM6, x64::XMM7];

/// Hands out the System V argument registers in order (`x64_decl.rs: ArgumentRegisterAllocator`). When no register is
/// left, the argument is on the stack.
///
/// ```
/// use wstate::{arch::x64, state::x64::ArgumentRegisterAllocator};
/// let mut arguments = ArgumentRegisterAllocator::default();
/// assert_eq!(arguments.next_integer(), Some(x64::RDI));
/// assert_eq!(arguments.next_float(), Some(x64::XMM0));
/// assert_eq!(arguments.next_integer(), Some(x64::RSI));
/// ```
#[cfg(any(test, feature = "internals"))]
#[derive(Clone, Debug, Default)]
pub struct ArgumentRegisterAllocator {
    general: usize,
    vector: usize,
}

#[cfg(any(test, feature = "internals"))]
impl ArgumentRegisterAllocator {
    /// The register of the next argument, if this argument is an integer of 32 or 64 bits. `None` means that it is on
    /// the stack.
    pub fn next_integer(&mut self) -> Option<Reg> {
        next(&INTEGERS, &mut self.general)
    }

    /// The register of the next argument, if this argument is a float of 32 or 64 bits. `None` means that it is on
    /// the stack.
    pub fn next_float(&mut self) -> Option<Reg> {
        next(&FLOATS, &mut self.vector)
    }
}

#[cfg(any(test, feature = "internals"))]
fn next(sequence: &[Reg], used: &mut usize) -> Option<Reg> {
    let reg = sequence.get(*used).copied()?;
    *used += 1;
    Some(reg)
}
