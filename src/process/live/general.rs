//! The general registers of a thread that stands.

use super::system::{get_regset, set_regset};
use crate::arch::{Machine, Reg};

/// General registers in the form in which the kernel gives and takes them (NT_PRSTATUS).
#[derive(Clone)]
pub(super) struct GeneralRegisters(Vec<u8>);

impl GeneralRegisters {
    /// Reads the registers of a thread. `None` if the thread has another number of them, because it runs 32-bit code.
    pub fn read(tid: libc::pid_t) -> std::io::Result<Option<GeneralRegisters>> {
        let mut bytes = vec![0; Machine::HERE.description().kernel.general_words * 8];
        let size = get_regset(tid, libc::NT_PRSTATUS, &mut bytes)?;
        Ok((size == bytes.len()).then_some(GeneralRegisters(bytes)))
    }

    /// Gives the registers to a thread.
    pub fn write(&self, tid: libc::pid_t) -> std::io::Result<()> {
        set_regset(tid, libc::NT_PRSTATUS, &self.0)
    }

    /// The registers as the kernel wrote them.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value of `reg`, or 0 if it is no general register.
    pub fn get(&self, reg: Reg) -> u64 {
        reg.word().map_or(0, |i| self.word(i))
    }

    /// Changes `reg`, if it is a general register.
    pub fn set(&mut self, reg: Reg, value: u64) {
        if let Some(i) = reg.word() {
            self.set_word(i, value);
        }
    }

    /// The address of the next instruction.
    pub fn pc(&self) -> u64 {
        self.get(Machine::HERE.description().pc)
    }

    /// Whether the thread is in a system call.
    pub fn is_in_system_call(&self) -> bool {
        self.word(Machine::HERE.description().kernel.system_call) as i64 >= 0
    }

    /// Says that there is no system call which the kernel could restart.
    pub fn leave_system_call(&mut self) {
        self.set_word(Machine::HERE.description().kernel.system_call, u64::MAX);
    }

    fn word(&self, i: usize) -> u64 {
        self.0.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    fn set_word(&mut self, i: usize, value: u64) {
        if let Some(word) = self.0.get_mut(i * 8..i * 8 + 8) {
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
}
