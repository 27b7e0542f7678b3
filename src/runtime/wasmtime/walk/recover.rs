//! The frame of compiled code below native code that has neither unwind information nor a frame pointer.
//!
//! A host that was built to abort on panic has no CFI for much of its own code, and its optimized code leaves in rbp
//! what the last trampoline put there. A step by frame pointer then passes over that trampoline, and with it over the
//! one frame that knows its caller's instance.
//!
//! The code itself says how large the frame of each call is ([`Flow`](super::flow::Flow)): so a word on the stack is
//! the return address into that frame if the distance between it and rbp is the one that the code makes. If two words
//! fit, neither is taken. No other frame of compiled code can lie between, because rbp would then be that frame's.
//!
//! Where native code uses rbp for something else, words that the runtime itself keeps lead to the frame: see
//! [`super::anchor`].

use super::anchor;
use crate::arch::{CodeAddress, Machine, Registers, x64};
use crate::limits::MAX_RECOVERY_BYTES;
use crate::process::Memory;
use crate::runtime::wasmtime::Wasmtime;
use crate::unwind::frame_pointer::linked;
use crate::unwind::{Cursor, Next, Trust};

/// Finds the youngest frame of compiled code above the native frame `at`, or the signal frame that comes before it,
/// whichever way it is found.
pub fn recover(runtime: &Wasmtime, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
    if runtime.codes.is_empty() {
        return None;
    }
    let sp = at.registers.sp()?.checked_next_multiple_of(8)?;
    let found = by_frame_pointer(runtime, at, sp, memory).or_else(|| anchor::exit(runtime, at, sp, memory));
    // A signal handler was not called by the code that it interrupted. The frames above a signal frame belong to that
    // code, and of the last exit from Wasm only the words may be left there.
    let before = found.as_ref().map(|found| found.slot);
    let found = anchor::signal(&runtime.mappings, sp, before, memory)
        .or(found)
        .or_else(|| anchor::fiber(&runtime.mappings, sp, memory))?;
    // A frame pointer that leads to a nearer frame leaves out less.
    let linked = linked(&at.registers, &runtime.mappings, memory).and_then(|caller| caller.saved_at(x64::RIP));
    if linked.is_some_and(|nearer| nearer < found.slot) {
        return None;
    }
    Some(Next::Caller(Cursor { address: CodeAddress::Return(found.pc), registers: found.registers()? }, Trust::Scan))
}

/// A frame that was found on the stack: the address `pc` at which it goes on, and the address `slot` of the word that
/// holds it.
pub struct FrameOnStack {
    pub pc: u64,
    pub slot: u64,
    /// Value of rbp in the frame, and the address at which it is saved, if it is.
    pub frame: Option<(u64, Option<u64>)>,
}

impl FrameOnStack {
    fn registers(&self) -> Option<Registers> {
        let mut registers = Registers::unknown(Machine::X64);
        registers.restore(x64::RIP, self.pc, self.slot);
        registers.set(x64::RSP, self.slot.checked_add(8)?);
        match self.frame {
            Some((frame, Some(saved))) => registers.restore(x64::RBP, frame, saved),
            Some((frame, None)) => registers.set(x64::RBP, frame),
            None => {}
        }
        Some(registers)
    }
}

/// The frame that rbp belongs to, if code of this runtime made it and native code left rbp alone since.
fn by_frame_pointer(runtime: &Wasmtime, at: &Cursor, sp: u64, memory: &dyn Memory) -> Option<FrameOnStack> {
    let frame = at.registers.get(x64::RBP).filter(|rbp| rbp.is_multiple_of(8))?;
    let len = usize::try_from(frame.checked_sub(sp)?).ok().filter(|len| *len <= MAX_RECOVERY_BYTES)?;
    let bytes = memory.read_vec(sp, len).ok()?;
    let words = bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
    let mut found =
        words.zip((sp..).step_by(8)).filter(|&(word, slot)| frame_of(runtime, word, slot, memory) == Some(frame));
    let (pc, slot) = found.next()?;
    if found.next().is_some() {
        return None;
    }
    Some(FrameOnStack { pc, slot, frame: Some((frame, at.registers.saved_at(x64::RBP))) })
}

/// Value of rbp in the frame that `pc` returns to, where `pc` is the word at address `slot`. `None` if `pc` is not
/// behind a call of compiled code.
pub fn frame_of(runtime: &Wasmtime, pc: u64, slot: u64, memory: &dyn Memory) -> Option<u64> {
    let at = CodeAddress::Return(pc);
    let code = runtime.code_at(at.lookup())?;
    let facts = runtime.facts(code, at, memory).filter(|f| f.is_call())?;
    slot.checked_add(8)?.checked_add_signed(facts.state.sp_to_rbp()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_FLOW_FUNCTIONS;
    use crate::runtime::wasmtime::image::Image;
    use crate::runtime::wasmtime::tables::code::Code;
    use crate::runtime::wasmtime::testing::fixture;
    use crate::unwind::testing::{Pieces, cursor};

    const BASE: u64 = 0x7f00_0000_0000;
    const NATIVE: u64 = 0x5555_0000_1000;
    /// Address of the return address into the frame that is looked for.
    const SLOT: u64 = 0x7ffd_0000_0800;
    /// Stack pointer of the native frame.
    const SP: u64 = 0x7ffd_0000_0400;

    /// Every call in an image: its return address, and how many bytes above the slot of the return address rbp
    /// points.
    fn calls(runtime: &Wasmtime, memory: &dyn Memory) -> Vec<(u64, u64)> {
        let code = &runtime.codes[0];
        let text = code.image.text();
        let behind = text.clone().filter(|pc| frame_of(runtime, *pc, SLOT, memory).is_some());
        behind.map(|pc| (pc, frame_of(runtime, pc, SLOT, memory).unwrap() - SLOT)).collect()
    }

    fn loaded(name: &str) -> (Wasmtime, Pieces) {
        let memory = Pieces::default().bytes(BASE, &fixture(name));
        let mut runtime = Wasmtime::default();
        let image = Image::read(&memory, BASE).unwrap();
        runtime.add(Code::load(image, None, &memory));
        (runtime, memory)
    }

    fn recovered(runtime: &Wasmtime, memory: &Pieces, stack: &[(u64, u64)], rbp: u64) -> Option<(u64, u64)> {
        let mut words = vec![0; ((0x4000 - 0x400) / 8) as usize];
        for (address, word) in stack {
            words[((address - SP) / 8) as usize] = *word;
        }
        let memory = Pieces(memory.0.clone()).words(SP, &words);
        let at = cursor(NATIVE, &[(x64::RSP, SP), (x64::RBP, rbp)]);
        match recover(runtime, &at, &memory)? {
            Next::Caller(caller, Trust::Scan) => {
                assert_eq!(caller.registers.get(x64::RBP), Some(rbp));
                assert_eq!(caller.registers.get(x64::RBX), None);
                Some((caller.address.raw(), caller.registers.sp()?))
            }
            next => panic!("{next:?}"),
        }
    }

    #[test]
    fn the_frame_that_rbp_belongs_to_is_found_behind_native_code() {
        for name in ["36-default", "48-default"] {
            let (runtime, memory) = loaded(name);
            let calls = calls(&runtime, &memory);
            assert!(calls.len() > 10, "{name}: {}", calls.len());
            for (pc, distance) in calls {
                let rbp = SLOT + distance;
                assert_eq!(recovered(&runtime, &memory, &[(SLOT, pc)], rbp), Some((pc, SLOT + 8)));
                // If rbp or the return address is moved by one word, the frame is not one that the code makes.
                assert_eq!(recovered(&runtime, &memory, &[(SLOT, pc)], rbp + 8), None);
                assert_eq!(recovered(&runtime, &memory, &[(SLOT - 8, pc)], rbp), None);
                // An address that is not behind a call is no return address.
                assert_eq!(recovered(&runtime, &memory, &[(SLOT, pc + 1)], rbp), None);
            }
        }
    }

    #[test]
    fn of_two_that_fit_neither_is_believed() {
        let (runtime, memory) = loaded("48-default");
        let calls = calls(&runtime, &memory);
        let (pc, distance) = calls[0];
        let rbp = SLOT + distance;
        let (other, smaller) = *calls.iter().find(|(_, d)| *d != distance).unwrap();
        let stack = [(SLOT, pc), (rbp - smaller, other)];
        assert_eq!(recovered(&runtime, &memory, &stack, rbp), None);
    }

    #[test]
    fn registers_that_lead_nowhere_find_nothing() {
        let (runtime, memory) = loaded("48-default");
        let (pc, distance) = calls(&runtime, &memory)[0];
        for rbp in [0, SP - 8, SLOT + distance + 1, u64::MAX, !7, SP + (1 << 30)] {
            let at = cursor(NATIVE, &[(x64::RSP, SP), (x64::RBP, rbp)]);
            let memory = Pieces(memory.0.clone()).word(SLOT, pc);
            assert!(recover(&runtime, &at, &memory).is_none(), "{rbp:#x}");
        }
        assert!(recover(&runtime, &cursor(NATIVE, &[(x64::RSP, u64::MAX)]), &memory).is_none());
    }

    #[test]
    fn so_much_of_a_stack_is_searched() {
        let (runtime, memory) = loaded("48-default");
        let (pc, distance) = calls(&runtime, &memory)[0];
        let rbp = SLOT + distance;
        for (len, found) in [(MAX_RECOVERY_BYTES as u64, true), (MAX_RECOVERY_BYTES as u64 + 8, false)] {
            let mut words = vec![0; len as usize / 8];
            words[((SLOT + len - rbp) / 8) as usize] = pc;
            let memory = Pieces(memory.0.clone()).words(rbp - len, &words);
            let at = cursor(NATIVE, &[(x64::RSP, rbp - len), (x64::RBP, rbp)]);
            assert_eq!(recover(&runtime, &at, &memory).is_some(), found);
        }
    }

    #[test]
    fn so_many_functions_are_followed() {
        let (pc, _) = {
            let (runtime, memory) = loaded("48-default");
            calls(&runtime, &memory)[0]
        };
        for (others, found) in [(MAX_FLOW_FUNCTIONS - 1, true), (MAX_FLOW_FUNCTIONS, false)] {
            let (runtime, memory) = loaded("48-default");
            runtime.flows.borrow_mut().extend((0..others as u64).map(|start| (start, None)));
            assert_eq!(frame_of(&runtime, pc, SLOT, &memory).is_some(), found);
        }
    }
}
