//! Finds the Wasm frame below native code that cannot be unwound.
//!
//! Where a host's executable is missing (a core on another machine) its frames have no CFI. A frame pointer helps
//! little: optimized code uses rbp for other things, or leaves in it what the Wasm function put there. In the latter
//! case a frame pointer step skips the Wasm function without a trace.
//!
//! The state map helps, because it knows the size of the frame at each call. So a word on the stack is taken for a
//! live return address into Wasm only if
//! - the map has a call there, and that call goes to an import (native code follows it), directly or by table;
//! - the frame that begins behind the word ends at a saved rbp, above which stands a return address that leads to a
//!   call of this very function (or to the entry trampoline);
//! - and that caller's frame, by the map's own arithmetic, ends where the saved rbp says.
//!
//! Leftovers of calls that have returned can satisfy all this too. Where several words lead to competing frames, none
//! of these is believed, and the walk goes on below the first frame on which all agree. The reader is told that the
//! frame was found by a search.

use crate::arch::{CodeAddress, Machine, Registers, x64};
use crate::limits::{MAX_ENTRY_FRAME, MAX_RECOVERY_BYTES, MAX_RECOVERY_CHAIN};
use crate::process::Memory;
use crate::runtime::singlepass::module::Location;
use crate::runtime::singlepass::module::code;
use crate::runtime::singlepass::{Module, Singlepass};
use crate::state::{MachineState, MachineValue, PointKind};
use crate::unwind::{Cursor, Next, Trust};

/// Bytes behind the call in `CONSTRUCT_STACK_AND_CALL_WASM`: `mov rsp, rbp; pop rbp; pop r11`.
const ENTRY_RETURN: [u8; 6] = [0x48, 0x89, 0xec, 0x5d, 0x41, 0x5b];

/// A Wasm frame on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WasmFrame {
    /// Address of the word that holds the return address into this frame.
    slot: u64,
    /// The return address into this frame.
    address: u64,
    /// The frame's rbp.
    rbp: u64,
}

/// What called a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Wasm(WasmFrame),
    Entry,
}

/// The youngest Wasm frame that can be found on the stack of `at`, a native frame without unwind information.
pub fn recover(runtime: &Singlepass, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
    let sp = at.registers.sp()?.checked_next_multiple_of(8)?;
    if runtime.code_modules().is_empty() {
        return None;
    }
    let mut bytes = vec![0; MAX_RECOVERY_BYTES];
    let got = memory.read_some(sp, &mut bytes);
    bytes.truncate(got);
    let search = Search { runtime, memory };
    let words = bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
    let mut candidates = words.enumerate().filter_map(|(i, word)| search.youngest(sp + 8 * i as u64, word));
    let first = candidates.next()?;
    let chain = search.chain(first);
    let top = chain.last()?.rbp;
    // Frames of the chain that call through a table look like candidates themselves, so they are no rivals.
    let rivals: Vec<Vec<WasmFrame>> = candidates
        .take_while(|c| c.slot < top)
        .filter(|c| !chain.contains(c))
        .take(MAX_RECOVERY_CHAIN)
        .map(|c| search.chain(c))
        .collect();
    let mut registers = Registers::unknown(Machine::X64);
    if rivals.is_empty() {
        registers.restore(x64::RIP, first.address, first.slot);
        registers.set(x64::RSP, first.slot + 8);
        registers.set(x64::RBP, first.rbp);
        return Some(Next::Caller(Cursor { address: CodeAddress::Return(first.address), registers }, Trust::Scan));
    }
    let shared = |rbp: u64| rivals.iter().all(|chain| chain.iter().any(|f| f.rbp == rbp));
    let common = chain.iter().map(|f| f.rbp).find(|rbp| shared(*rbp))?;
    let (saved, address) = (memory.read_u64(common).ok()?, memory.read_u64(common + 8).ok()?);
    registers.restore(x64::RIP, address, common + 8);
    registers.set(x64::RSP, common + 16);
    registers.restore(x64::RBP, saved, common);
    Some(Next::Caller(Cursor { address: CodeAddress::Return(address), registers }, Trust::Scan))
}

struct Search<'a> {
    runtime: &'a Singlepass,
    memory: &'a dyn Memory,
}

impl Search<'_> {
    /// The frame to which the return address `word` at `slot` leads, if native code was called from that frame.
    fn youngest(&self, slot: u64, word: u64) -> Option<WasmFrame> {
        let (module, _) = self.call(word)?;
        let goes_out = match self.call_target(word) {
            Some(target) => matches!(module.locate(target, self.memory), Some(Location::Import(_))),
            None => true,
        };
        goes_out.then(|| self.frame(slot, word)).flatten()
    }

    /// The frame to which the return address `word` at `slot` leads, if the words above that frame fit.
    fn frame(&self, slot: u64, word: u64) -> Option<WasmFrame> {
        let (module, call) = self.call(word)?;
        let behind = slot.checked_add(8)?;
        let fits = |rbp: u64| {
            let frame = WasmFrame { slot, address: word, rbp };
            self.caller(frame, &call, module).map(|_| frame)
        };
        match call.size {
            Some(size) => fits(behind.checked_add(size)?),
            // State was not tracked, so the size is unknown. The frame ends at the only place behind the locals,
            // saved registers and shadow that fits.
            None => {
                let places = (0..MAX_ENTRY_FRAME / 8).filter_map(|i| fits(behind.checked_add(call.least + 8 * i)?));
                let mut places = places.take(2);
                let only = places.next()?;
                places.next().is_none().then_some(only)
            }
        }
    }

    /// What called `frame`, if it fits. The frame itself has made `call`, in `module`.
    fn caller(&self, frame: WasmFrame, call: &Call, module: &Module) -> Option<Caller> {
        let saved = self.memory.read_u64(frame.rbp).ok()?;
        let slot = frame.rbp.checked_add(8)?;
        let above = self.memory.read_u64(slot).ok()?;
        let behind = slot.checked_add(8)?;
        if let Some((_, upper)) = self.call(above) {
            let start = module.code.0.wrapping_add(call.start);
            // Without a frame size the call above must itself prove that it goes to this function.
            let calls_it = self.call_target(above).map_or(call.size.is_some(), |target| target == start);
            let ends = match upper.size {
                Some(size) => behind.checked_add(size)? == saved,
                None => behind.checked_add(upper.least)? <= saved && saved - behind < MAX_ENTRY_FRAME,
            };
            return (calls_it && ends).then_some(Caller::Wasm(WasmFrame { slot, address: above, rbp: saved }));
        }
        let mut bytes = [0; ENTRY_RETURN.len()];
        self.memory.read(above, &mut bytes).ok()?;
        let entry = bytes == ENTRY_RETURN && saved > slot && saved - slot < MAX_ENTRY_FRAME;
        entry.then_some(Caller::Entry)
    }

    /// `frame` and its callers, up to the first that does not fit.
    fn chain(&self, frame: WasmFrame) -> Vec<WasmFrame> {
        let mut chain = vec![frame];
        let mut current = frame;
        while chain.len() < MAX_RECOVERY_CHAIN {
            let Some((module, call)) = self.call(current.address) else { break };
            match self.caller(current, &call, module) {
                Some(Caller::Wasm(next)) if next.rbp > current.rbp => {
                    chain.push(next);
                    current = next;
                }
                _ => break,
            }
        }
        chain
    }

    /// The call that returns to `address`, and its module.
    fn call(&self, address: u64) -> Option<(&Module, Call)> {
        let (_, module) = self.runtime.module_at(address)?;
        let location = module.locate(address, self.memory)?;
        let Location::Function { start, offset, maps, map } = location else { return None };
        let point = maps.lookup(usize::try_from(start + offset).ok()?)?;
        if point.kind != PointKind::Call || point.offset as u64 != start + offset {
            return None;
        }
        let size = match module.state(&point).as_deref() {
            Some(Ok(state)) => Some(frame_size(state, map.shadow_size)),
            Some(Err(_)) => return None,
            None => None,
        };
        let homes = code::REGISTER_HOMES.len();
        let words = map.locals.len().min(homes) + 1 + map.locals.len().saturating_sub(homes);
        Some((module, Call { start, size, least: 8 * words as u64 + map.shadow_size as u64 }))
    }

    /// Target of the direct call that returns to `address`; `None` for any other kind of call.
    fn call_target(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 5];
        self.memory.read(address.checked_sub(5)?, &mut bytes).ok()?;
        let [0xe8, a, b, c, d] = bytes else { return None };
        Some(address.wrapping_add(i64::from(i32::from_le_bytes([a, b, c, d])) as u64))
    }
}

/// A call in a module's code.
struct Call {
    /// Code offset of the function that contains the call.
    start: u64,
    /// Bytes from rsp to the saved rbp at the call, if the compiler tracked state.
    size: Option<u64>,
    /// The least number of bytes from rsp to the saved rbp: locals, saved registers and shadow.
    least: u64,
}

/// Bytes from rsp to the saved rbp in this state (`state.rs: read_stack`).
fn frame_size(state: &MachineState, shadow: usize) -> u64 {
    let slots = state.stack_values.iter().filter(|v| **v != MachineValue::ExplicitShadow).count();
    slots as u64 * 8 + shadow as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::singlepass::module::maps::Maps;
    use crate::state::synthetic::{self, END, state};
    use crate::unwind::testing::Pieces;
    use std::sync::Arc;

    const BASE: u64 = 0x7000_0000;
    const STACK: u64 = 0x7a00_0000;
    /// Return address of a call in the module's only function, which has no words in its frame there.
    const RETURN: u64 = BASE + 0x20;

    fn runtime() -> Singlepass {
        let map = synthetic::Module::new(0).point(PointKind::Call, 0x20, &state(0, vec![])).build();
        let code = (BASE, BASE + END as u64);
        let module = Module::new(code, Maps::whole(Arc::new(map)), Vec::new(), 0, &Pieces::default());
        Singlepass { modules: vec![module], ..Singlepass::default() }
    }

    #[test]
    fn chains_have_an_end() {
        // The words of frames that call each other: return address and saved frame pointer in turns.
        let words: Vec<u64> =
            (0..MAX_RECOVERY_CHAIN as u64 + 10).flat_map(|i| [RETURN, STACK + 8 + (i + 1) * 16]).collect();
        let (runtime, memory) = (runtime(), Pieces::default().words(STACK, &words));
        let search = Search { runtime: &runtime, memory: &memory };
        let first = search.frame(STACK, RETURN).unwrap();
        assert_eq!(search.chain(first).len(), MAX_RECOVERY_CHAIN);
    }

    #[test]
    fn an_entry_has_a_frame_of_some_size() {
        let runtime = runtime();
        for (size, found) in [(MAX_ENTRY_FRAME - 8, true), (MAX_ENTRY_FRAME, false)] {
            let (slot, entry) = (STACK + 16, BASE + 0x1000);
            let memory = Pieces::default().words(STACK, &[RETURN, slot + size, entry]).bytes(entry, &ENTRY_RETURN);
            let search = Search { runtime: &runtime, memory: &memory };
            assert_eq!(search.frame(STACK, RETURN).is_some(), found);
        }
    }
}
