//! Frame pointer chains: the last resort for code that nobody has a table for.
//!
//! A link of the chain is followed only if it proves itself: the frame lies on the stack that rsp is on, above rsp,
//! and the return address in it is behind a call. So a chain always rises, and it ends where stacks are switched,
//! unless another unwinder knows the switch.
//!
//! The result is wrong at a function's entry before `push rbp; mov rbp, rsp`, and behind the function's `pop rbp`:
//! there rbp is still (or again) the caller's, so the *caller's* frame is skipped. The result can also be wrong in
//! code that uses rbp for other things. Such a value of rbp rarely points at a saved rbp with a return address above
//! it, and otherwise the chain ends here, and only a runtime's own means can go on. Frames found this way say so
//! ([`Trust::FramePointer`]). Stacks are never scanned for what looks like a return address.
//!
//! One kind of stop outside of code is understood: after a call through a bad pointer nothing has been executed yet,
//! so the return address is the word at rsp, and a call instruction stands before that address.

use super::{Cursor, Next, Trust, UnwindError, Unwinder};
use crate::arch::{CodeAddress, Machine, Registers, x64};
use crate::limits;
use crate::process::{Mapping, Memory, mapping_at};

/// Follows frame pointers as long as they lead into executable memory.
#[derive(Clone, Copy, Debug)]
pub struct FramePointerUnwinder<'a> {
    mappings: &'a [Mapping],
}

impl<'a> FramePointerUnwinder<'a> {
    /// `mappings` are the mappings of the target, in ascending order and without overlaps.
    pub fn new(mappings: &'a [Mapping]) -> FramePointerUnwinder<'a> {
        FramePointerUnwinder { mappings }
    }

    /// The caller, if the frame at `at` was entered by a call to an address that is no code.
    fn called_nowhere(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        if at.address.is_return() {
            return None;
        }
        let sp = at.registers.sp()?;
        let pc = memory.read_u64(sp).ok()?;
        self.code_at(CodeAddress::Return(pc).lookup())?;
        is_behind_call(at.registers.machine(), pc, memory).then_some(())?;
        let mut registers = at.registers.clone();
        registers.forget_caller_saved();
        let machine = registers.machine().description();
        registers.restore(machine.pc, pc, sp);
        registers.set(machine.sp, sp.checked_add(8)?);
        Some(Next::Caller(Cursor { address: CodeAddress::Return(pc), registers }, Trust::Recognised))
    }

    fn code_at(&self, address: u64) -> Option<&'a Mapping> {
        mapping_at(self.mappings, address).filter(|m| m.may_execute())
    }
}

impl Unwinder for FramePointerUnwinder<'_> {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        let address = at.address.raw();
        let Some(mapping) = self.code_at(at.address.lookup()) else {
            return Some(self.called_nowhere(at, memory).unwrap_or(Next::Lost(UnwindError::NoCode { address })));
        };
        let caller = linked(&at.registers, self.mappings, memory);
        Some(match caller.and_then(|c| Some((c.pc()?, c))) {
            Some((pc, registers)) => {
                Next::Caller(Cursor { address: CodeAddress::Return(pc), registers }, Trust::FramePointer)
            }
            None => {
                let object = match &mapping.path {
                    Some(path) => path.display().to_string(),
                    None => format!("the anonymous mapping at {:#x}", mapping.start),
                };
                Next::Lost(UnwindError::NoCfi { address, object })
            }
        })
    }
}

/// Whether a call ends right before `pc`.
pub fn is_behind_call(machine: Machine, pc: u64, memory: &dyn Memory) -> bool {
    match machine {
        Machine::X64 => x64::code::calls_before(pc, &before(pc, memory)).next().is_some(),
    }
}

/// The code that ends at `pc`, as far as a call reaches and the code is readable.
pub(super) fn before(pc: u64, memory: &dyn Memory) -> Vec<u8> {
    let mut code = [0; x64::code::LONGEST_CALL];
    let there = memory.read_around(pc, code.len(), &mut code);
    code.get(there).unwrap_or_default().to_vec()
}

/// The frame pointer of the function that begins at `start` and stands at `pc` with these registers, computed from its
/// code and its stack pointer. `None` if the code does not tell it, or if the word above the place that the frame pointer
/// would point to is no return address behind a call.
///
/// The kernel does not tell the frame pointer of a thread that was not stopped, and the function's callees may have had
/// no reason to save it.
pub(super) fn from_code(start: u64, pc: u64, registers: &Registers, memory: &dyn Memory) -> Option<u64> {
    let len = pc.checked_sub(start).filter(|&len| len <= limits::MAX_FRAME_POINTER_CODE)?;
    let code = memory.read_vec(start, len as usize).ok()?;
    let distance = match registers.machine() {
        Machine::X64 => x64::prologue::distance(&code, start)?,
    };
    let pointer = registers.sp()?.checked_add(distance)?;
    let caller = memory.read_u64(pointer.checked_add(8)?).ok()?;
    (pointer.is_multiple_of(8) && is_behind_call(registers.machine(), caller, memory)).then_some(pointer)
}

/// Whether nothing but writable memory is between `low` and `high`. Between two stacks there is a guard or other
/// memory.
pub fn is_same_stack(mappings: &[Mapping], low: u64, high: u64) -> bool {
    let mut end = low;
    let first = mappings.partition_point(|m| m.end <= low);
    for m in mappings.get(first..).unwrap_or_default() {
        if !m.contains(end) || !m.write {
            return false;
        }
        if m.contains(high) {
            return true;
        }
        end = m.end;
    }
    false
}

/// The caller's registers, if the frame pointer proves that it leads to the caller: see the module's documentation.
pub fn linked(registers: &Registers, mappings: &[Mapping], memory: &dyn Memory) -> Option<Registers> {
    let caller = caller(registers, memory)?;
    let (pc, frame) = (caller.pc()?, registers.fp()?);
    let is_code = mapping_at(mappings, CodeAddress::Return(pc).lookup()).is_some_and(Mapping::may_execute);
    let on_stack = registers.sp().is_none_or(|sp| is_same_stack(mappings, sp, frame));
    (is_code && on_stack && is_behind_call(registers.machine(), pc, memory)).then_some(caller)
}

fn caller(registers: &Registers, memory: &dyn Memory) -> Option<Registers> {
    let frame = registers.fp()?;
    // A frame pointer is never below the stack pointer, and both move in whole words.
    if !frame.is_multiple_of(8) || registers.sp().is_some_and(|sp| frame < sp) {
        return None;
    }
    let (saved, above) = (memory.read_u64(frame).ok()?, frame.checked_add(8)?);
    let pc = memory.read_u64(above).ok()?;
    // Whether and where this code saved the other registers that callees keep is not known, so their values in the
    // caller are not known either.
    let mut caller = Registers::unknown(registers.machine());
    let machine = caller.machine().description();
    caller.restore(machine.fp, saved, frame);
    caller.restore(machine.pc, pc, above);
    caller.set(machine.sp, frame.checked_add(16)?);
    Some(caller)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Reg;
    use crate::unwind::testing::{Pieces, cursor};

    fn mapping(start: u64, end: u64, execute: bool) -> Mapping {
        Mapping { start, end, read: true, write: !execute, execute, offset: 0, path: None }
    }

    /// A return address: the instruction before it is the call that `with_call` writes.
    const BEHIND: u64 = 0x1234;

    /// `memory` with a call that ends right before `BEHIND`.
    fn with_call(memory: Pieces) -> Pieces {
        memory.bytes(BEHIND - 5, &[0xe8, 0, 1, 0, 0]).bytes(BEHIND, &[0x90; 16])
    }

    fn step_in(mappings: &[Mapping], registers: &[(Reg, u64)], memory: &Pieces) -> Next {
        let next = FramePointerUnwinder::new(mappings).step(&cursor(0x1100, registers), memory);
        next.expect("the last resort always answers")
    }

    fn step(registers: &[(Reg, u64)], memory: &Pieces) -> Next {
        step_in(&[mapping(0x1000, 0x2000, true), mapping(0x8000, 0x9000, false)], registers, memory)
    }

    #[test]
    fn the_chain_gives_three_registers_and_no_more() {
        let memory = with_call(Pieces::default().words(0x8100, &[0x8200, BEHIND]));
        let registers = [(x64::RBP, 0x8100), (x64::RSP, 0x80f0), (x64::RBX, 3)];
        let Next::Caller(caller, Trust::FramePointer) = step(&registers, &memory) else { panic!() };
        assert_eq!(caller.address, CodeAddress::Return(BEHIND));
        let r = caller.registers;
        assert_eq!((r.get(x64::RBP), r.saved_at(x64::RBP)), (Some(0x8200), Some(0x8100)));
        assert_eq!((r.sp(), r.pc(), r.get(x64::RBX)), (Some(0x8110), Some(BEHIND), None));
    }

    #[test]
    fn what_leads_out_of_code_is_not_followed() {
        let no_cfi = |next| matches!(next, Next::Lost(UnwindError::NoCfi { address: 0x1100, .. }));
        for (words, registers) in [
            (vec![0x8200, 0x8300], vec![(x64::RBP, 0x8100)]),
            (vec![0x8200, 0x1000], vec![(x64::RBP, 0x8100)]), // no call stands before this return address
            (vec![0x8200, BEHIND + 8], vec![(x64::RBP, 0x8100)]),
            (vec![0x8200], vec![(x64::RBP, 0x8100)]),
            (vec![0x8200, BEHIND], vec![(x64::RBP, 0x8100), (x64::RSP, 0x8108)]),
            (vec![0x8200, BEHIND], vec![(x64::RBP, 0)]),
            (vec![0x8200, BEHIND], vec![]),
        ] {
            let memory = with_call(Pieces::default().words(0x8100, &words));
            assert!(no_cfi(step(&registers, &memory)), "{words:x?} {registers:x?}");
        }
        let next = FramePointerUnwinder::new(&[]).step(&cursor(0x1100, &[]), &Pieces::default());
        assert!(matches!(next, Some(Next::Lost(UnwindError::NoCode { address: 0x1100 }))));
    }

    #[test]
    fn a_chain_stays_on_its_stack() {
        let code = mapping(0x1000, 0x2000, true);
        let guard = Mapping { read: false, write: false, ..mapping(0x9000, 0xa000, false) };
        let stack = |start, end| mapping(start, end, false);
        let memory = with_call(Pieces::default().words(0xa100, &[0xa200, BEHIND]));
        let registers = [(x64::RBP, 0xa100), (x64::RSP, 0x8800)];
        // One stack may consist of several mappings; below another stack is a guard or unmapped memory.
        for (mappings, found) in [
            (vec![code.clone(), stack(0x8000, 0xb000)], true),
            (vec![code.clone(), stack(0x8000, 0x9000), stack(0x9000, 0xb000)], true),
            (vec![code.clone(), stack(0x8000, 0x9000), guard, stack(0xa000, 0xb000)], false),
            (vec![code.clone(), stack(0x8000, 0x9000), stack(0xa000, 0xb000)], false),
            (vec![code, stack(0xa000, 0xb000)], false),
        ] {
            let next = step_in(&mappings, &registers, &memory);
            assert_eq!(matches!(next, Next::Caller(_, Trust::FramePointer)), found, "{mappings:?}");
        }
    }

    #[test]
    fn a_call_through_a_bad_pointer_has_a_caller() {
        let mappings = [mapping(0x1000, 0x2000, true), mapping(0x8000, 0x9000, false)];
        let unwinder = FramePointerUnwinder::new(&mappings);
        // call rax; call [rax + 8]; call [rip + x]; call [r12 + r13 * 8 + x]; call x
        let calls: [&[u8]; 5] = [
            &[0xff, 0xd0],
            &[0xff, 0x50, 0x08],
            &[0xff, 0x15, 1, 2, 0, 0],
            &[0x43, 0xff, 0x94, 0xec, 0, 1, 0, 0],
            &[0xe8, 0, 1, 0, 0],
        ];
        let registers = [(x64::RSP, 0x8100), (x64::RBX, 3), (x64::RAX, 0)];
        let behind = |code: &[u8], pc| {
            let mut page = vec![0x90; 0x1000];
            page[0x100..0x100 + code.len()].copy_from_slice(code);
            let memory = Pieces::default().bytes(0x1000, &page).word(0x8100, 0x1100 + code.len() as u64);
            unwinder.step(&cursor(pc, &registers), &memory)
        };
        // The bad pointer leads to unmapped memory (0) or to data (0x8200).
        for (code, pc) in calls.iter().flat_map(|code| [(*code, 0), (*code, 0x8200)]) {
            let Some(Next::Caller(caller, Trust::Recognised)) = behind(code, pc) else { panic!("{code:x?}") };
            assert_eq!(caller.address, CodeAddress::Return(0x1100 + code.len() as u64));
            let r = caller.registers;
            assert_eq!((r.sp(), r.get(x64::RBX), r.get(x64::RAX)), (Some(0x8108), Some(3), None));
        }
        // No call stands before the word at rsp, so it is no return address.
        let next = behind(&[0x90, 0x90], 0);
        assert!(matches!(next, Some(Next::Lost(UnwindError::NoCode { address: 0 }))), "{next:?}");
    }

    #[test]
    fn a_long_function_is_not_followed() {
        const START: u64 = 0x40_1000;
        // push rbp; mov rbp, rsp; push r15; push rbx; sub rsp, 0x20; test rdi, rdi
        const BEGIN: &[u8] = &[0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0x53, 0x48, 0x83, 0xec, 0x20, 0x48, 0x85, 0xff];
        const CALL: &[u8] = &[0xe8, 0, 1, 0, 0];
        // The function stands behind a call: START is the return address of the call that is put in front of it.
        let mut code = [CALL, BEGIN].concat();
        code.resize(limits::MAX_FRAME_POINTER_CODE as usize + 0x10, 0x90);
        let memory = Pieces::default().bytes(START - 5, &code).words(0x8030, &[0, START]);
        for (len, expected) in
            [(limits::MAX_FRAME_POINTER_CODE, Some(0x8030)), (limits::MAX_FRAME_POINTER_CODE + 1, None)]
        {
            let at = cursor(START + len, &[(x64::RSP, 0x8000)]);
            assert_eq!(from_code(START, START + len, &at.registers, &memory), expected);
        }
    }
}
