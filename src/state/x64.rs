//! The register numbers of the x86-64 state maps (`state.rs: x64_decl`). They come from the one register table of
//! [`crate::arch`].

use super::model::RegisterIndex;
use crate::arch::{Reg, x64};

/// The register with this DWARF number, if state maps have a number for it. The runtime's own table ends at XMM7
/// (24), but this one has XMM8-15 (25-32) too. The return address column (16) is no register of a state map.
pub fn from_dwarf_regnum(number: u16) -> Option<Reg> {
    Reg::from_dwarf(number).filter(|reg| *reg != x64::RIP)
}

/// State-map number of `reg`. The instruction pointer has none.
pub fn to_index(reg: Reg) -> Option<RegisterIndex> {
    (reg.index() < 32).then(|| RegisterIndex(reg.index()))
}

/// The register with this state-map number, or `None` if there is no such register.
pub fn from_index(index: RegisterIndex) -> Option<Reg> {
    Reg::from_index(index.0)
}

/// The bytes of the instruction `mov %reg, disp32(%rsp)` (`movq` for XMM registers) that come before the 32-bit
/// displacement. Only the registers that pass arguments have them. For others this is `None`.
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

const GENERAL: [Reg; 6] = [x64::RDI, x64::RSI, x64::RDX, x64::RCX, x64::R8, x64::R9];
const VECTOR: [Reg; 8] = [x64::XMM0, x64::XMM1, x64::XMM2, x64::XMM3, x64::XMM4, x64::XMM5, x64::XMM6, x64::XMM7];

/// Hands out the System V argument registers in order (`x64_decl.rs: ArgumentRegisterAllocator`). When no register is
/// left, the argument is on the stack.
///
/// ```
/// use wstate::{arch::Reg, state::x64::ArgumentRegisterAllocator};
/// let mut arguments = ArgumentRegisterAllocator::default();
/// assert_eq!(arguments.next_integer(), Some(x64::RDI));
/// assert_eq!(arguments.next_float(), Some(x64::XMM0));
/// assert_eq!(arguments.next_integer(), Some(x64::RSI));
/// ```
#[derive(Clone, Debug, Default)]
pub struct ArgumentRegisterAllocator {
    general: usize,
    vector: usize,
}

impl ArgumentRegisterAllocator {
    /// The register of the next argument, if this argument is an integer of 32 or 64 bits. `None` means that it is on
    /// the stack.
    pub fn next_integer(&mut self) -> Option<Reg> {
        next(&GENERAL, &mut self.general)
    }

    /// The register of the next argument, if this argument is a float of 32 or 64 bits. `None` means that it is on
    /// the stack.
    pub fn next_float(&mut self) -> Option<Reg> {
        next(&VECTOR, &mut self.vector)
    }
}

fn next(sequence: &[Reg], used: &mut usize) -> Option<Reg> {
    let reg = sequence.get(*used).copied()?;
    *used += 1;
    Some(reg)
}
