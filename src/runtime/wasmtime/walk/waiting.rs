//! Guests that wait in an async call: their fibers are on no thread (`wasmtime-fiber: unix.rs,
//! stackswitch/x86_64.rs`).
//!
//! At the top of a fiber's stack are three words: a return address into `wasmtime_fiber_start`, the fiber's own stack
//! pointer while the fiber is suspended (it points into this very stack), and a pointer that is null while it is
//! suspended. At that stack pointer are the callee-saved registers and the address at which the fiber goes on. This
//! is the same in all versions from 30 to 50.
//!
//! In versions before 44 the stack of a fiber that has ended looks alike, but no Wasm frame is on it.

use crate::arch::{CodeAddress, Machine, Reg, Registers, x64};
use crate::limits::{MAX_WAITING, MAX_WAITING_STACKS};
use crate::process::{Mapping, Memory};
use crate::unwind::Cursor;

/// `mov rdi, r12; mov rsi, rbp; call rbx`: the first instructions of `wasmtime_fiber_start`.
const START: [u8; 8] = [0x4c, 0x89, 0xe7, 0x48, 0x89, 0xee, 0xff, 0xd3];
/// Number of bytes at the top of the stack that every fiber has: the three words, and what is saved to switch.
const TOP: u64 = 72;
/// Size of a fiber's stack in bytes if the host sets none. The kernel makes one mapping of a stack and of memory
/// behind it, so the end of the mapping need not be the top of the stack.
const DEFAULT_SIZE: u64 = 2 << 20;
/// The saved registers, in the order in which they are popped.
const SAVED: [Reg; 6] = [x64::R15, x64::R14, x64::R13, x64::R12, x64::RBX, x64::RBP];

/// Finds the suspended fibers: the registers with which each goes on.
pub fn find(mappings: &[Mapping], memory: &dyn Memory) -> Vec<Cursor> {
    let stacks = mappings.iter().filter(|m| m.read && m.write && !m.execute && m.is_anonymous());
    let tops = stacks.take(MAX_WAITING_STACKS).flat_map(|m| {
        let by_size = m.start.checked_add(DEFAULT_SIZE).filter(|top| *top < m.end);
        [Some(m.end), by_size].into_iter().flatten().map(move |top| (m, top))
    });
    tops.filter_map(|(stack, top)| suspended(stack, top, mappings, memory)).take(MAX_WAITING).collect()
}

/// The registers of the fiber whose stack ends at `top`, if there is one and it is suspended.
fn suspended(stack: &Mapping, top: u64, mappings: &[Mapping], memory: &dyn Memory) -> Option<Cursor> {
    let [start, sp, resumer] = words(memory, top.checked_sub(24)?)?;
    if resumer != 0 || sp % 8 != 0 || sp < stack.start || sp > top.checked_sub(TOP)? {
        return None;
    }
    let mut code = [0; START.len()];
    memory.read(start.checked_sub(START.len() as u64)?, &mut code).ok()?;
    if code != START {
        return None;
    }
    let saved: [u64; SAVED.len() + 1] = words(memory, sp)?;
    let (pc, saved) = saved.split_last()?;
    if !mappings.iter().any(|m| m.contains(*pc) && m.may_execute()) {
        return None;
    }
    let mut registers = Registers::unknown(Machine::X64);
    for (reg, value) in SAVED.into_iter().zip(saved) {
        registers.set(reg, *value);
    }
    registers.set(x64::RIP, *pc);
    registers.set(x64::RSP, sp + 8 * (SAVED.len() as u64 + 1));
    Some(Cursor { address: CodeAddress::Return(*pc), registers })
}

fn words<const N: usize>(memory: &dyn Memory, address: u64) -> Option<[u64; N]> {
    let bytes = memory.read_vec(address, 8 * N).ok()?;
    let mut out = [0; N];
    for (word, bytes) in out.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use crate::process::Target;
    use crate::process::testing::CoreBuilder;

    const CODE: u64 = 0x10_0000;
    const STACK: u64 = 0x2000_0000;
    const SIZE: u64 = 0x1000;
    /// Address behind the call in `wasmtime_fiber_start`. `NEXT` is the address at which a fiber goes on.
    const STARTED: u64 = CODE + START.len() as u64;
    const NEXT: u64 = CODE + 0x80;

    /// The stack of a fiber whose saved registers hold 1 to 6. `top` is the last three words of the stack.
    fn stack(saved_at: u64, top: [u64; 3]) -> Vec<u8> {
        let mut words = vec![0; SIZE as usize / 8];
        let at = saved_at as usize / 8;
        words[at..at + 6].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
        words[at + 6] = NEXT;
        let end = words.len();
        words[end - 3..].copy_from_slice(&top);
        words.iter().flat_map(|w: &u64| w.to_le_bytes()).collect()
    }

    fn core(stacks: &[Vec<u8>]) -> CoreBuilder {
        let code = [&START[..], &[0x90; 0x100]].concat();
        let core = CoreBuilder::new().memory(CODE, 5, &code);
        (0..).zip(stacks).fold(core, |core, (i, bytes)| core.memory(STACK + i * 2 * SIZE, 6, bytes))
    }

    fn found(builder: &CoreBuilder) -> Vec<Cursor> {
        let core = builder.open().unwrap();
        find(core.mappings(), &core)
    }

    #[test]
    fn a_suspended_fiber_goes_on_with_its_saved_registers() {
        let all = found(&core(&[stack(0x800, [STARTED, STACK + 0x800, 0])]));
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].address, CodeAddress::Return(NEXT));
        let registers: Vec<_> = SAVED.iter().map(|r| all[0].registers.get(*r)).collect();
        assert_eq!(registers, [1, 2, 3, 4, 5, 6].map(Some));
        assert_eq!(all[0].registers.sp(), Some(STACK + 0x838));
    }

    #[test]
    fn what_is_no_suspended_fiber_is_none() {
        let end = STACK + SIZE;
        for (what, top) in [
            ("running", [STARTED, STACK + 0x800, 8]),
            ("its stack pointer is elsewhere", [STARTED, CODE, 0]),
            ("its stack pointer is above", [STARTED, end - 64, 0]),
            ("its stack pointer is crooked", [STARTED, STACK + 0x804, 0]),
            ("other code", [STARTED + 1, STACK + 0x800, 0]),
            ("no code", [0, STACK + 0x800, 0]),
            ("never used", [0, 0, 0]),
            ("any", [u64::MAX; 3]),
            ("it goes on where no code is", [STARTED, STACK + 0x700, 0]),
        ] {
            assert!(found(&core(&[stack(0x800, top)])).is_empty(), "{what}");
        }
    }

    #[test]
    fn stacks_and_fibers_have_an_end() {
        let one = |i: u64| stack(0x800, [STARTED, STACK + i * 2 * SIZE + 0x800, 0]);
        let many: Vec<_> = (0..limits::MAX_WAITING as u64 + 1).map(one).collect();
        assert_eq!(found(&core(&many)).len(), limits::MAX_WAITING);
        for (before, count) in [(limits::MAX_WAITING_STACKS - 1, 1), (limits::MAX_WAITING_STACKS, 0)] {
            let mut all = vec![vec![0; SIZE as usize]; before];
            all.push(one(before as u64));
            assert_eq!(found(&core(&all)).len(), count, "{before}");
        }
    }
}
