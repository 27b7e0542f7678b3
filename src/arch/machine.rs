//! The machines that are known, and what is known of each.

use super::kernel::KernelLayout;
use super::registers::{Reg, RegisterInfo};
use super::x64;

/// A kind of machine whose processes and cores can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Machine {
    /// x86-64, with Linux's System V calling convention.
    X64,
}

/// All that is known of a machine as data.
#[derive(Debug)]
#[non_exhaustive]
pub struct Description {
    /// Name of the machine as users know it.
    pub name: &'static str,
    /// The machine's number in ELF headers (`e_machine`).
    pub elf: u16,
    /// Every register once. A register's index is its place in this list.
    pub registers: &'static [RegisterInfo],
    /// The register that holds the address of the next instruction.
    pub pc: Reg,
    /// The stack pointer.
    pub sp: Reg,
    /// Bytes below the stack pointer that a function which calls nobody may use.
    pub red_zone: u64,
    /// The register that points to a frame record: the caller's frame pointer, and above it the return address.
    pub fp: Reg,
    /// What the Linux kernel writes about threads of this machine.
    pub kernel: &'static KernelLayout,
}

impl Machine {
    /// Every machine that is known.
    pub const ALL: &'static [Machine] = &[Machine::X64];

    /// The machine that this program was built for, if it is one that is known. Only its processes can be attached to.
    pub const OF_THIS_PROGRAM: Option<Machine> = if cfg!(target_arch = "x86_64") { Some(Machine::X64) } else { None };

    /// The machine of processes that run here. Where this program was built for a machine that is not known, nothing
    /// can be attached to, and it does not matter which one this is.
    pub const HERE: Machine = match Machine::OF_THIS_PROGRAM {
        Some(machine) => machine,
        None => Machine::X64,
    };

    /// What is known of this machine.
    pub fn description(self) -> &'static Description {
        match self {
            Machine::X64 => &x64::DESCRIPTION,
        }
    }

    /// The machine with this number in ELF headers (`e_machine`).
    pub fn from_elf(number: u16) -> Option<Machine> {
        Machine::ALL.iter().copied().find(|machine| machine.description().elf == number)
    }

    /// The register with this DWARF number.
    pub fn from_dwarf(self, number: u16) -> Option<Reg> {
        self.description().registers.iter().find(|row| row.dwarf == number).map(|row| row.reg)
    }

    /// The register with this name.
    pub fn from_name(self, name: &str) -> Option<Reg> {
        self.description().registers.iter().find(|row| row.name == name).map(|row| row.reg)
    }

    /// All registers of this machine, in the order of their indices.
    pub fn registers(self) -> impl Iterator<Item = Reg> {
        self.description().registers.iter().map(|row| row.reg)
    }
}

#[cfg(test)]
mod tests {
    use super::super::registers::Registers;
    use super::*;

    #[test]
    fn each_register_is_at_its_index_and_its_numbers_are_its_own() {
        for machine in Machine::ALL {
            let Description { registers, pc, sp, fp, elf, .. } = machine.description();
            assert!(registers.len() <= Registers::MOST);
            for (i, row) in registers.iter().enumerate() {
                assert_eq!((row.reg.index(), row.reg.machine(), row.reg.name()), (i, *machine, row.name));
                assert_eq!(machine.from_dwarf(row.dwarf), Some(row.reg));
                assert_eq!(machine.from_name(row.name), Some(row.reg));
                assert_eq!(registers.iter().filter(|other| other.slot == row.slot).count(), 1);
            }
            assert!(![pc, sp, fp].iter().any(|reg| reg.machine() != *machine));
            assert_eq!(Machine::from_elf(*elf), Some(*machine));
        }
        assert_eq!(Machine::from_elf(0), None);
    }
}
