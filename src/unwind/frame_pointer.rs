//! Frame pointer chains, the last resort: code that nobody has a table for.
//!
//! It is wrong at a function's entry before `push rbp; mov rbp, rsp`, and behind its `pop rbp`: there rbp is still (or
//! again) the caller's, so the *caller's* frame is skipped. It is wrong as well in code that uses rbp for other things;
//! such a value rarely points at a pair of an address and a return address, and then the walk ends here. Frames found
//! this way say so ([`Trust::FramePointer`]). Stacks are never scanned for what looks like a return address.

use super::{Cursor, Next, Trust, UnwindError, Unwinder};
use crate::arch::{CodeAddress, Reg, Registers};
use crate::target::{Mapping, Memory};

/// Follows frame pointers as long as they lead into executable memory.
#[derive(Clone, Copy, Debug)]
pub struct FramePointerUnwinder<'a> {
    mappings: &'a [Mapping],
}

impl<'a> FramePointerUnwinder<'a> {
    /// `mappings` are the target's, ascending and not overlapping.
    pub fn new(mappings: &'a [Mapping]) -> FramePointerUnwinder<'a> {
        FramePointerUnwinder { mappings }
    }

    fn code_at(&self, address: u64) -> Option<&'a Mapping> {
        let i = self.mappings.partition_point(|m| m.end <= address);
        self.mappings.get(i).filter(|m| m.contains(address) && m.execute)
    }
}

impl Unwinder for FramePointerUnwinder<'_> {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        let address = at.address.raw();
        let Some(mapping) = self.code_at(at.address.lookup()) else {
            return Some(Next::Lost(UnwindError::NoCode { address }));
        };
        let caller = caller(&at.registers, memory).filter(|c| {
            // A return address is behind a call, which is in the same mapping.
            c.pc().is_some_and(|pc| self.code_at(CodeAddress::Return(pc).lookup()).is_some())
        });
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

fn caller(registers: &Registers, memory: &dyn Memory) -> Option<Registers> {
    let frame = registers.get(Reg::RBP)?;
    // A frame's pointer is not below its stack pointer, and both move in words.
    if !frame.is_multiple_of(8) || registers.sp().is_some_and(|sp| frame < sp) {
        return None;
    }
    let (saved, above) = (memory.read_u64(frame).ok()?, frame.checked_add(8)?);
    let pc = memory.read_u64(above).ok()?;
    // Whether this code saved rbx or r12-r15, and where, is not known; so their values in the caller are not.
    let mut caller = Registers::unknown();
    caller.restore(Reg::RBP, saved, frame);
    caller.restore(Reg::RIP, pc, above);
    caller.set(Reg::RSP, frame.checked_add(16)?);
    Some(caller)
}
