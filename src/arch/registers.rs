//! Registers of any machine, and a register file in which a register can be unknown.

use super::machine::Machine;
use std::fmt;

/// A register of a machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg {
    machine: Machine,
    index: u8,
}

/// What is known of one register.
#[derive(Clone, Copy, Debug)]
pub struct RegisterInfo {
    /// The register that this row describes.
    pub reg: Reg,
    /// Lower-case assembler name.
    pub name: &'static str,
    /// The number that DWARF has for the register on its machine.
    pub dwarf: u16,
    /// Where the kernel writes the register.
    pub slot: Slot,
    /// Whether a callee must give the register back as it was.
    pub callee_saved: bool,
}

/// Where the kernel writes a register of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The register is in the word with this number of the general registers (NT_PRSTATUS).
    General(usize),
    /// At this offset in bytes of the floating point state (NT_FPREGSET). Only the low 64 bits are looked at.
    Vector(usize),
}

impl Reg {
    pub(super) const fn new(machine: Machine, index: u8) -> Reg {
        Reg { machine, index }
    }

    /// The machine that the register belongs to.
    pub fn machine(self) -> Machine {
        self.machine
    }

    /// The register's place in its machine's list of registers.
    pub fn index(self) -> usize {
        self.index.into()
    }

    /// What is known of the register.
    pub fn info(self) -> &'static RegisterInfo {
        let registers = self.machine.description().registers;
        // Registers are made from the rows of this list and nowhere else.
        &registers[self.index().min(registers.len() - 1)]
    }

    /// Lower-case assembler name.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// The register's word among the general registers that the kernel writes, if it is one of them.
    pub fn word(self) -> Option<usize> {
        match self.info().slot {
            Slot::General(word) => Some(word),
            Slot::Vector(_) => None,
        }
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

/// The registers of one machine, each with its value if that is known. A register that is not known has no value: it is
/// never read as zero. Registers of another machine are never known.
///
/// If a known register was restored from the stack, its stack address is kept too. This provenance is shown with every
/// value ("saved at ...").
#[derive(Clone, PartialEq, Eq)]
pub struct Registers {
    machine: Machine,
    values: [u64; Self::MOST],
    saved_at: [u64; Self::MOST],
    known: u64,
    restored: u64,
}

impl Registers {
    /// The greatest number of registers that a machine has.
    pub(super) const MOST: usize = 33;

    /// Registers of `machine`, of which none is known.
    pub fn unknown(machine: Machine) -> Registers {
        Registers { machine, values: [0; Self::MOST], saved_at: [0; Self::MOST], known: 0, restored: 0 }
    }

    /// The machine that these registers belong to.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// The register's bit in `known` and `restored`. A register of another machine has none.
    fn bit(&self, reg: Reg) -> u64 {
        if reg.machine == self.machine { 1 << reg.index } else { 0 }
    }

    /// The value of `reg`, or `None` if it is not known.
    pub fn get(&self, reg: Reg) -> Option<u64> {
        (self.known & self.bit(reg) != 0).then(|| self.values[reg.index()])
    }

    /// Sets `reg` to a value that is live in the register, or that was computed.
    pub fn set(&mut self, reg: Reg, value: u64) {
        if reg.machine == self.machine {
            self.values[reg.index()] = value;
            self.known |= self.bit(reg);
            self.restored &= !self.bit(reg);
        }
    }

    /// Sets `reg` to a value restored from the stack slot at `address`.
    pub fn restore(&mut self, reg: Reg, value: u64, address: u64) {
        if reg.machine == self.machine {
            self.set(reg, value);
            self.saved_at[reg.index()] = address;
            self.restored |= self.bit(reg);
        }
    }

    /// The stack address from which `reg` was restored, or `None` if it was not restored from the stack.
    pub fn saved_at(&self, reg: Reg) -> Option<u64> {
        (self.known & self.restored & self.bit(reg) != 0).then(|| self.saved_at[reg.index()])
    }

    /// Makes `reg` unknown.
    pub fn forget(&mut self, reg: Reg) {
        self.known &= !self.bit(reg);
        self.restored &= !self.bit(reg);
    }

    /// Forgets every register that a call does not preserve. The stack pointer and the program counter stay: the
    /// unwinders set them.
    pub fn forget_caller_saved(&mut self) {
        let machine = self.machine.description();
        for row in machine.registers {
            if !row.callee_saved && row.reg != machine.pc {
                self.forget(row.reg);
            }
        }
    }

    /// The registers that are known, with their values, in the order of their machine's list.
    pub fn iter(&self) -> impl Iterator<Item = (Reg, u64)> {
        self.machine.registers().filter_map(|reg| Some((reg, self.get(reg)?)))
    }

    /// The program counter, if it is known.
    pub fn pc(&self) -> Option<u64> {
        self.get(self.machine.description().pc)
    }

    /// The stack pointer, if it is known.
    pub fn sp(&self) -> Option<u64> {
        self.get(self.machine.description().sp)
    }

    /// The frame pointer, if it is known. Code may use the register for something else.
    pub fn fp(&self) -> Option<u64> {
        self.get(self.machine.description().fp)
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (reg, value) in self.iter() {
            map.entry(&reg, &format_args!("{value:#x}"));
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x64;

    #[test]
    fn unknown_is_not_zero_and_provenance_is_kept() {
        let mut r = Registers::unknown(Machine::X64);
        assert_eq!(r.get(x64::RBX), None);
        r.set(x64::RBX, 0);
        assert_eq!((r.get(x64::RBX), r.saved_at(x64::RBX)), (Some(0), None));
        r.restore(x64::RBX, 7, 0x1000);
        assert_eq!((r.get(x64::RBX), r.saved_at(x64::RBX)), (Some(7), Some(0x1000)));
        r.set(x64::RAX, 1);
        r.forget_caller_saved();
        assert_eq!((r.get(x64::RAX), r.get(x64::RBX)), (None, Some(7)));
    }
}
