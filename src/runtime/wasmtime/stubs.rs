//! Native routines of the runtime that may have no call frame information.
//!
//! - `wasmtime_fiber_switch` (wasmtime-internal-fiber: stackswitch/x86_64.rs) has the same bytes in all versions from
//!   36 to 50 and no CFI. The registers that it saves on one stack are not the ones that it restores: those come from
//!   the other stack.
//!
//! - The beginning of a fiber has no caller that tables could name in a host that was built without tables.

use crate::arch::{Reg, x64};
use crate::process::Memory;
use crate::unwind::recognised::{Base, Layout, Routine, Routines, frame};
use crate::unwind::{Cursor, Next};

/// What this runtime knows of its native code.
pub const ROUTINES: Routines = Routines { list: LIST, beginning: Some(fiber_start) };

const FIBER_SWITCH: &str = "wasmtime_fiber_switch";

/// `wasmtime_fiber_switch`. Up to `mov rsp, rax` it runs on the stack that is left, then on the one that is entered.
const FIBER_SWITCH_CODE: &[u8] = &[
    0x55, 0x53, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, // push rbp, rbx, r12, r13, r14, r15
    0x48, 0x8b, 0x47, 0xf0, 0x48, 0x89, 0x67, 0xf0, // mov rax, [rdi - 16]; mov [rdi - 16], rsp
    0x48, 0x89, 0xc4, // mov rsp, rax
    0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5b, 0x5d, 0xc3, // pop them; ret
];

const RBP: &[Reg] = &[x64::RBP];
const RBX_RBP: &[Reg] = &[x64::RBX, x64::RBP];
const R12_RBP: &[Reg] = &[x64::R12, x64::RBX, x64::RBP];
const R13_RBP: &[Reg] = &[x64::R13, x64::R12, x64::RBX, x64::RBP];
const R14_RBP: &[Reg] = &[x64::R14, x64::R13, x64::R12, x64::RBX, x64::RBP];
const R15_RBP: &[Reg] = &[x64::R15, x64::R14, x64::R13, x64::R12, x64::RBX, x64::RBP];

const LIST: &[Routine] = &[Routine {
    name: FIBER_SWITCH,
    code: FIBER_SWITCH_CODE,
    hole: (0, 0),
    layouts: &[
        (0x00, Layout::saved(&[])),
        (0x01, Layout::saved(RBP)),
        (0x02, Layout::saved(RBX_RBP)),
        (0x04, Layout::saved(R12_RBP)),
        (0x06, Layout::saved(R13_RBP)),
        (0x08, Layout::saved(R14_RBP)),
        (0x0a, Layout::saved(R15_RBP)),
        (0x17, Layout::saved(R14_RBP)),
        (0x19, Layout::saved(R13_RBP)),
        (0x1b, Layout::saved(R12_RBP)),
        (0x1d, Layout::saved(RBX_RBP)),
        (0x1e, Layout::saved(RBP)),
        (0x1f, Layout::saved(&[])),
    ],
    returns_to: None,
    // A fiber that has not run yet goes on at the beginning of its code.
    enters_new_code: true,
}];

/// `mov rdi, r12; mov rsi, rbp; call rbx`, the code with which a fiber of Wasmtime begins (`stackswitch/x86_64.rs`)
/// in all versions.
const FIBER_START: [u8; 8] = [0x4c, 0x89, 0xe7, 0x48, 0x89, 0xee, 0xff, 0xd3];

/// Whether `pc` is the address to which a fiber's function returns.
pub fn is_fiber_start(pc: u64, memory: &dyn Memory) -> bool {
    let mut code = [0; FIBER_START.len()];
    let start = pc.checked_sub(FIBER_START.len() as u64);
    start.is_some_and(|start| memory.read(start, &mut code).is_ok()) && code == FIBER_START
}

/// Steps to the frame that resumed a fiber. The stack pointer of that frame is in the word at which the fiber's stack
/// begins, and points to the registers that the switch saved.
fn fiber_start(at: &Cursor, memory: &dyn Memory) -> Option<Next> {
    if !at.address.is_return() || !is_fiber_start(at.address.raw(), memory) {
        return None;
    }
    Some(frame(at, Base::At(x64::RSP), 0, R15_RBP, memory).unwrap_or_else(Next::Lost))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::CodeAddress;
    use crate::unwind::recognised::emulator::{ENTRY_SP, IMAGE_END, at_each_instruction, entered, is_native_caller};

    #[test]
    fn the_fiber_switch_is_right_at_every_instruction() {
        let mut machine = entered();
        // The stack that is entered holds the registers that were saved there, from r15 to rbp, and the address to go
        // on at.
        const OTHER: u64 = 0x9_0100;
        const BEHIND: u64 = 0x50_0000;
        machine.stack.insert(IMAGE_END - 16, OTHER);
        for (i, r) in (0..).zip(R15_RBP) {
            machine.stack.insert(OTHER + 8 * i, 0x2000 + r.index() as u64);
        }
        machine.stack.insert(OTHER + 48, BEHIND);
        at_each_instruction(&crate::runtime::all::recognised(), FIBER_SWITCH_CODE, &mut machine, |offset, caller| {
            if offset <= 0x12 {
                return is_native_caller(offset, caller);
            }
            assert_eq!(caller.address, CodeAddress::Return(BEHIND), "{offset:#x}");
            assert_eq!(caller.registers.sp(), Some(OTHER + 56), "{offset:#x}");
            for r in R15_RBP {
                assert_eq!(caller.registers.get(*r), Some(0x2000 + r.index() as u64), "{offset:#x} {r}");
            }
        });
        assert_eq!(machine.pc, BEHIND);
        assert_eq!(machine.stack[&(IMAGE_END - 16)], ENTRY_SP - 48);
    }
}
