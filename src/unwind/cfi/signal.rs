//! Signal frames of the kernel: which code returns from a handler, and where the registers of the interrupted code are.

use super::row::Failure;
use crate::arch::{CodeAddress, Machine, Registers, Slot};
use crate::process::Memory;
use crate::unwind::{Cursor, Next, Trust};

/// Whether the code at `pc` returns from a signal handler. `pc` is the first instruction of such code, or the system call
/// in it.
pub fn is_sigreturn(machine: Machine, pc: u64, memory: &dyn Memory) -> bool {
    let signal = &machine.description().kernel.signal;
    let longest = signal.longest_return();
    let before = longest - signal.system_call.len();
    let mut around = vec![0; before + longest];
    let there = memory.read_around(pc, before, &mut around);
    signal.returns.iter().any(|code| {
        let call = before - (code.len() - signal.system_call.len());
        [before, call]
            .iter()
            .any(|&at| at >= there.start && around.get(at..there.end.min(at + code.len())) == Some(code))
    })
}

/// The address at which the code that a signal interrupted goes on, and its stack pointer. `None` if `context` is not
/// the `struct ucontext` that the kernel leaves for a handler.
pub fn signal_context(machine: Machine, context: u64, memory: &dyn Memory) -> Option<(u64, u64)> {
    let machine = machine.description();
    let signal = &machine.kernel.signal;
    let word = |offset: u64| memory.read_u64(context.checked_add(offset)?).ok();
    let register = |reg| signal.registers.iter().find(|(r, _)| *r == reg).and_then(|(_, offset)| word(*offset));
    let (mark, is_marked) = signal.mark;
    is_marked(word(mark)?).then_some((register(machine.pc)?, register(machine.sp)?))
}

/// Steps from the kernel's signal frame to the interrupted code, without a table.
pub(super) fn return_from_signal(at: &Cursor, memory: &dyn Memory) -> Result<Next, Failure> {
    let machine = at.registers.machine().description();
    let context = at.registers.sp().ok_or(Failure::Unknown(machine.sp))?;
    let mut caller = Registers::unknown(at.registers.machine());
    for &(reg, offset) in machine.kernel.signal.registers {
        let slot = context.wrapping_add(offset);
        caller.restore(reg, memory.read_u64(slot)?, slot);
    }
    restore_vectors(context, memory, &mut caller);
    let pc = caller.pc().ok_or(Failure::Unknown(machine.pc))?;
    Ok(Next::Caller(Cursor { address: CodeAddress::Exact(pc), registers: caller }, Trust::Recognised))
}

/// Restores the low halves of the vector registers as they were at the signal. The runtime's `fault.rs` hands them to
/// `read_stack` too.
pub(super) fn restore_vectors(context: u64, memory: &dyn Memory, caller: &mut Registers) {
    let machine = caller.machine().description();
    let Ok(state) = memory.read_u64(context.wrapping_add(machine.kernel.signal.vectors)) else { return };
    if state == 0 {
        return;
    }
    for row in machine.registers {
        let Slot::Vector(offset) = row.slot else { continue };
        let slot = state.wrapping_add(offset as u64);
        if let Ok(value) = memory.read_u64(slot) {
            caller.restore(row.reg, value, slot);
        }
    }
}
