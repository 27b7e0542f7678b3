//! Finds the youngest exit from Wasm on a stack whose native code has neither unwind information nor frame pointers.
//!
//! For its own backtraces a store keeps three words about the last exit from Wasm: the return address, the frame
//! pointer there, and the frame pointer of the entry trampoline (`vmcontext.rs: VMStoreContext`). A nested entry puts
//! the words of the activation before it on the stack (`traphandlers.rs: CallThreadState`, `EntryStoreContext`) and
//! gives them back when it is left. So the words of every activation are somewhere: those of the youngest activation
//! in the store, and those of each other activation among the native frames that entered the next one.
//!
//! Words on a stack may be old. So an exit counts only if all of this holds:
//! - The return address into compiled code stands behind a call there, and its frame has the size that the code
//!   makes.
//! - From there on frame follows frame up to an entry trampoline that native code called. Each frame is linked by its
//!   frame pointer and has the size that its code makes.
//! - The runtime itself names the exit. Either a store to which an instance on this stack belongs has this very
//!   return address, frame pointer and entry, or the first two stand side by side below the exit, where an inner
//!   entry keeps them.
//!
//! All of it is on the stack that rsp is on. A store whose guest is suspended, or runs on another thread, names
//! frames elsewhere. A store whose guest runs names an exit that is over. In that case no native code was called
//! except a signal handler, whose frame lies before that exit.

use super::exit::is_vmctx;
use super::recover::{FrameOnStack, frame_of};
use crate::arch::{CodeAddress, Machine, x64};
use crate::limits::{MAX_ANCHOR_PROBES, MAX_RECOVERY_BYTES, MAX_RECOVERY_CHAIN};
use crate::process::{Mapping, Memory, mapping_at};
use crate::runtime::wasmtime::Wasmtime;
use crate::runtime::wasmtime::image::FunctionKind;
use crate::runtime::wasmtime::image::version::Version;
use crate::runtime::wasmtime::instance::offsets::{StoreLayout, VMCONTEXT_STORE};
use crate::runtime::wasmtime::stubs::is_fiber_start;
use crate::runtime::wasmtime::tables::code::Code;
use crate::unwind::Cursor;
use crate::unwind::cfi::{is_sigreturn, signal_context};
use crate::unwind::frame_pointer::{is_behind_call, is_same_stack};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes within which the runtime keeps the words of one exit: the structure that it saves has eight words.
const SAVED: u64 = 128;
/// Bytes above an entry trampoline's frame that are searched for an instance: the host that entered Wasm still has
/// one there.
const ENTERED: u64 = 4096;

/// The words of the stack from `sp` on, each with its address in front. `None` if `sp` is not in writable memory.
fn words(mappings: &[Mapping], sp: u64, memory: &dyn Memory) -> Option<Vec<(u64, u64)>> {
    let stack = mapping_at(mappings, sp).filter(|m| m.write)?;
    let len = usize::try_from(stack.end.checked_sub(sp)?).ok()?.min(MAX_RECOVERY_BYTES);
    let mut bytes = vec![0; len];
    let read = memory.read_some(sp, &mut bytes);
    let words = bytes.get(..read)?.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
    Some((sp..).step_by(8).zip(words).collect())
}

/// An exit from Wasm, as it is found on the stack.
#[derive(Debug, PartialEq, Eq)]
pub struct Exit {
    /// Return address into the Wasm function that called out.
    pc: u64,
    /// Frame pointer of the Wasm function that called out.
    caller: u64,
    /// Frame pointer of the exit trampoline that this function called.
    pub trampoline: u64,
    /// Frame pointer of the entry trampoline. `None` if the stack is too deep to be followed that far.
    entry: Option<u64>,
}

/// The nearest exit above `sp`. The frame that is found is that of the trampoline that called native code. Where the
/// return address into the trampoline is lost, it is the frame of the Wasm function that called the trampoline.
pub fn exit(runtime: &Wasmtime, at: &Cursor, sp: u64, memory: &dyn Memory) -> Option<FrameOnStack> {
    let words = words(&runtime.mappings, sp, memory)?;
    let mut contexts = None;
    let mut left = MAX_RECOVERY_CHAIN;
    // Frame pointers of the entries of those exits that neither a store nor an inner entry names.
    let mut passed = BTreeSet::new();
    for &(slot, pc) in &words {
        let is_code = |address: &u64| mapping_at(&runtime.mappings, *address).is_some_and(Mapping::may_execute);
        let before = pc.checked_sub(1).filter(is_code);
        let Some(code) = before.and_then(|before| runtime.code_at(before)) else { continue };
        left = left.checked_sub(1)?;
        let Some(frame) = frame_of(runtime, pc, slot, memory) else { continue };
        let Some(exit) = followed(runtime, code, pc, slot, frame, memory) else { continue };
        let contexts = contexts.get_or_insert_with(|| {
            let end = exit.entry.map_or(u64::MAX, |entry| entry.saturating_add(ENTERED));
            stores(runtime, at, words.iter().take_while(|w| w.0 < end).map(|w| w.1), memory)
        });
        let named =
            contexts.iter().find(|(store, _)| says(**store, code, &exit, memory)).map(|(_, vmctx)| Some(*vmctx));
        let Some(member) = named.or_else(|| saved(&native(runtime, sp, slot, memory), code, &exit, contexts)) else {
            passed.insert(exit.entry);
            continue;
        };
        // An exit that was passed over and has the same entry was an old word of this very stay in Wasm. One with
        // another entry may be a real exit whose name was not found, and this exit must not be reported in its place.
        if passed.iter().any(|entry| *entry != exit.entry) {
            return None;
        }
        if let Some(member) = member {
            runtime.anchored(&exit, (pc, slot.checked_add(8)?), member);
        }
        return Some(FrameOnStack { pc, slot, frame: Some((frame, None)) });
    }
    None
}

/// The exit to which a frame belongs, if all frames from there to the entry are as their code makes them. `pc`, in
/// the stack word at `slot`, returns to that frame, and `frame` is its frame pointer.
fn followed(runtime: &Wasmtime, code: &Code, pc: u64, slot: u64, frame: u64, memory: &dyn Memory) -> Option<Exit> {
    let is_wasm = |kind: &FunctionKind| matches!(kind, FunctionKind::Wasm { .. } | FunctionKind::ModuleStart { .. });
    let is_entry = |kind: &FunctionKind| matches!(kind, FunctionKind::ArrayToWasm { .. });
    let mut kind = code.function(pc.checked_sub(1)?)?.kind;
    if is_entry(&kind) {
        return None;
    }
    let mut exit = match is_wasm(&kind) {
        // The trampoline pushed its caller's frame pointer right below its return address.
        true => Exit { pc, caller: frame, trampoline: slot.checked_sub(8)?, entry: None },
        false => {
            let (caller, pc) = (memory.read_u64(frame).ok()?, memory.read_u64(frame.checked_add(8)?).ok()?);
            Exit { pc, caller, trampoline: frame, entry: None }
        }
    };
    let mut frame = frame;
    for depth in 0..MAX_RECOVERY_CHAIN {
        let above = frame.checked_add(8)?;
        let (next, pc) = (memory.read_u64(frame).ok()?, memory.read_u64(above).ok()?);
        let Some(code) = pc.checked_sub(1).and_then(|before| runtime.code_at(before)) else {
            let host = mapping_at(&runtime.mappings, pc.checked_sub(1)?)?;
            let is_called = host.may_execute() && is_behind_call(Machine::X64, pc, memory);
            exit.entry = Some(frame);
            return (is_called && is_entry(&kind)).then_some(exit);
        };
        let found = code.function(pc.checked_sub(1)?)?.kind;
        // Native code lies between an entry trampoline and the exit before it, so compiled code does not call an
        // entry trampoline. Trampolines and entries call no compiled code but Wasm, so an exit trampoline is called
        // by a Wasm function.
        if is_entry(&kind) || (depth == 0 && !is_wasm(&kind) && !is_wasm(&found)) {
            return None;
        }
        match frame_of(runtime, pc, above, memory) {
            Some(made) if made != next => return None,
            Some(_) => {}
            // The function is too large to be followed: a return address behind a call is enough.
            None if is_behind_call(Machine::X64, pc, memory)
                && runtime.follows_call(code, CodeAddress::Return(pc), memory) => {}
            None => return None,
        }
        if next <= frame {
            return None;
        }
        (frame, kind) = (next, found);
    }
    // So many frames that fit are enough, though the entry was not reached.
    Some(exit)
}

/// The stores of all instances that registers and `words` lead to: the address of each store's context, and one
/// instance of the store.
fn stores(
    runtime: &Wasmtime,
    at: &Cursor,
    words: impl Iterator<Item = u64>,
    memory: &dyn Memory,
) -> BTreeMap<u64, u64> {
    let registers = x64::GENERAL.into_iter().filter_map(|reg| at.registers.get(reg));
    let is_writable = |address: u64| mapping_at(&runtime.mappings, address).is_some_and(|m| m.write);
    let candidates: BTreeSet<u64> =
        registers.chain(words).filter(|w| w.is_multiple_of(16) && is_writable(*w)).take(MAX_ANCHOR_PROBES).collect();
    let store = |vmctx: u64| Some((memory.read_u64(vmctx.checked_add(VMCONTEXT_STORE)?).ok()?, vmctx));
    let all = candidates.into_iter().filter(|v| is_vmctx(*v, memory)).filter_map(store);
    all.filter(|(store, _)| is_writable(*store)).collect()
}

/// Whether the store's context, which is at `store`, names this exit as the last one.
fn says(store: u64, code: &Code, exit: &Exit, memory: &dyn Memory) -> bool {
    let word = |offset: u64| store.checked_add(offset).and_then(|address| memory.read_u64(address).ok());
    versions(code).any(|version| {
        let Some(layout) = StoreLayout::new(version) else { return false };
        let frame = if layout.exit_fp_is_trampolines { exit.trampoline } else { exit.caller };
        word(layout.last_exit_pc) == Some(exit.pc)
            && word(layout.last_exit_fp) == Some(frame)
            && exit.entry.is_none_or(|entry| word(layout.last_entry_fp) == Some(entry))
    })
}

/// The version of an image. If the image hides it, these are all versions whose layout is known, since three words
/// that agree do so in one layout only.
fn versions(code: &Code) -> impl Iterator<Item = Version> {
    let (first, last) = code.version.map_or((Version::OLDEST.0, Version::NEWEST.0), |v| (v.0, v.0));
    (first..=last).map(Version)
}

/// The words of the native frames below an exit, with their addresses. Native frames that were walked through are
/// included: the words begin at the last entry into Wasm, if there was one on this stack, else at `sp`.
fn native(runtime: &Wasmtime, sp: u64, slot: u64, memory: &dyn Memory) -> Vec<(u64, u64)> {
    let entered = runtime.entered.borrow().range(..=sp).next_back().copied();
    let from = entered
        .filter(|entered| is_same_stack(&runtime.mappings, *entered, sp) && sp - entered <= MAX_RECOVERY_BYTES as u64);
    let all = words(&runtime.mappings, from.unwrap_or(sp), memory).unwrap_or_default();
    all.into_iter().take_while(|(at, _)| *at < slot).collect()
}

/// Whether an entry in these native frames keeps this exit, to give it back when that entry is left. If so, the
/// return address and the frame pointer stand near each other. The inner value is an instance of the store that the
/// exit is kept for, if the context of exactly one known store is named there, too.
fn saved(native: &[(u64, u64)], code: &Code, exit: &Exit, contexts: &BTreeMap<u64, u64>) -> Option<Option<u64>> {
    let layouts = versions(code).filter_map(StoreLayout::new);
    let frames: BTreeSet<u64> =
        layouts.map(|l| if l.exit_fp_is_trampolines { exit.trampoline } else { exit.caller }).collect();
    let near = |at: u64, is: &dyn Fn(u64) -> bool| -> Vec<u64> {
        native.iter().filter(|(a, w)| a.abs_diff(at) <= SAVED && is(*w)).map(|(_, w)| *w).collect()
    };
    let mut pcs = native.iter().filter(|(_, w)| *w == exit.pc).map(|w| w.0);
    let place = pcs.find(|at| !near(*at, &|w| frames.contains(&w)).is_empty())?;
    let members: BTreeSet<u64> =
        near(place, &|w| contexts.contains_key(&w)).iter().filter_map(|store| contexts.get(store).copied()).collect();
    Some(members.first().copied().filter(|_| members.len() == 1))
}

/// The nearest signal frame between `sp` and `before`. It begins with the address of code that returns from a signal
/// handler, and the registers that the kernel saved are behind it.
pub fn signal(mappings: &[Mapping], sp: u64, before: Option<u64>, memory: &dyn Memory) -> Option<FrameOnStack> {
    let mut others = BTreeSet::new();
    for (slot, pc) in words(mappings, sp, memory)? {
        if before.is_some_and(|before| slot >= before) {
            return None;
        }
        if others.contains(&pc) || !mapping_at(mappings, pc).is_some_and(Mapping::may_execute) {
            continue;
        }
        if !is_sigreturn(Machine::X64, pc, memory) {
            others.insert(pc);
            continue;
        }
        let Some((interrupted, its_sp)) =
            slot.checked_add(8).and_then(|context| signal_context(Machine::X64, context, memory))
        else {
            continue;
        };
        let is_code = mapping_at(mappings, interrupted).is_some_and(Mapping::may_execute);
        // If the interrupted code used this same stack, its stack pointer lies above the signal frame.
        let stack = mapping_at(mappings, its_sp).filter(|m| m.write);
        if is_code && stack.is_some_and(|m| !m.contains(slot) || its_sp > slot) {
            return Some(FrameOnStack { pc, slot, frame: None });
        }
    }
    None
}

/// The first function of the fiber whose stack `sp` is on, which is the last frame of that stack. The words at the
/// stack's end say where the code goes on that resumed the fiber (`unix.rs`: the last word is not zero while the
/// fiber runs, and the word before it is the stack pointer of the resumer).
pub fn fiber(mappings: &[Mapping], sp: u64, memory: &dyn Memory) -> Option<FrameOnStack> {
    let words = words(mappings, sp, memory)?;
    let fits = |three: &&[(u64, u64)]| {
        let &[(slot, pc), (_, resumer), (last, running)] = *three else { return false };
        let resumes = mapping_at(mappings, resumer).filter(|m| m.write);
        last.checked_add(8).is_some_and(|top| top.is_multiple_of(4096))
            && running != 0
            && resumer.is_multiple_of(8)
            && resumes.is_some_and(|m| !m.contains(slot) || resumer > last)
            && is_fiber_start(pc, memory)
    };
    let found = words.windows(3).find(fits)?;
    found.first().map(|&(slot, pc)| FrameOnStack { pc, slot, frame: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wasmtime::image::Image;
    use crate::runtime::wasmtime::instance::offsets::VMCONTEXT_MAGIC;
    use crate::runtime::wasmtime::testing::fixture;
    use crate::unwind::testing::{Pieces, cursor};

    const BASE: u64 = 0x7f00_0000_0000;
    const NATIVE: u64 = 0x5555_0000_0000;
    /// A return address in native code: it stands behind a call.
    const HOST: u64 = NATIVE + 0x805;
    /// Address of `__restore_rt`, the code that returns from a signal handler.
    const RESTORE: u64 = NATIVE + 0x900;
    const STACK: u64 = 0x7ffd_0000_0000;
    const OTHER_STACK: u64 = 0x7ffc_0000_0000;
    const HEAP: u64 = 0x6000_0000_0000;
    const VMCTX: u64 = HEAP + 0x100;
    const STORE: u64 = HEAP + 0x800;

    /// A stack on which Wasm called native code, with all that leads to the exit.
    struct Scene {
        runtime: Wasmtime,
        image: Vec<u8>,
        words: BTreeMap<u64, u64>,
        exit: Exit,
        /// Addresses of the stack words that return into the exit trampoline and into the Wasm function.
        slots: [u64; 2],
        /// A call in an entry trampoline, in a function and in an exit trampoline: its return address, and the bytes
        /// from the stack word that holds it to rbp.
        calls: [(u64, u64); 3],
        trampoline_pc: u64,
        wasm_pc: u64,
        sp: u64,
    }

    impl Scene {
        fn new(name: &str) -> Scene {
            let image = fixture(name);
            let memory = Pieces::default().bytes(BASE, &image);
            let mut runtime = Wasmtime::default();
            runtime.add(Code::load(Image::read(&memory, BASE).unwrap(), None, &memory));
            let mapping = |start: u64, size: u64, write: bool| Mapping {
                start,
                end: start + size,
                read: true,
                write,
                execute: !write,
                offset: 0,
                path: None,
            };
            runtime.mappings = vec![
                mapping(NATIVE, 0x1000, false),
                mapping(HEAP, 0x1000, true),
                mapping(BASE, image.len() as u64, false),
                mapping(OTHER_STACK, 0x1_0000, true),
                mapping(STACK, 0x1_0000, true),
            ];
            let code = &runtime.codes[0];
            let slot = STACK + 0x8000;
            let call = |wanted: fn(&FunctionKind) -> bool| {
                let is_wanted = |pc: &u64| code.function(pc - 1).is_some_and(|f| wanted(&f.kind));
                let mut calls = code.image.text().filter(is_wanted);
                calls.find_map(|pc| Some((pc, frame_of(&runtime, pc, slot, &memory)? - slot))).unwrap()
            };
            let calls = [
                call(|k| matches!(k, FunctionKind::ArrayToWasm { .. })),
                call(|k| matches!(k, FunctionKind::Wasm { .. })),
                call(|k| matches!(k, FunctionKind::WasmToArray { .. })),
            ];
            let sp = STACK + 0x4000;
            let words = BTreeMap::from([
                (sp + 0x40, VMCTX),
                (VMCTX, u32::from_le_bytes(VMCONTEXT_MAGIC).into()),
                (VMCTX + VMCONTEXT_STORE, STORE),
            ]);
            let [_, (wasm_pc, _), (trampoline_pc, _)] = calls;
            let exit = Exit { pc: 0, caller: 0, trampoline: 0, entry: None };
            let mut scene = Scene { runtime, image, words, exit, slots: [0; 2], calls, trampoline_pc, wasm_pc, sp };
            (scene.exit, scene.slots) = scene.activation(STACK + 0xc000);
            scene.said();
            scene
        }

        /// Puts an entry trampoline with this frame pointer, a Wasm function and an exit trampoline on the stack.
        fn activation(&mut self, entry: u64) -> (Exit, [u64; 2]) {
            let [(entry_pc, entry_size), (wasm_pc, wasm_size), (trampoline_pc, trampoline_size)] = self.calls;
            let entry_slot = entry - entry_size;
            let wasm = entry_slot - 8;
            let wasm_slot = wasm - wasm_size;
            let trampoline = wasm_slot - 8;
            let trampoline_slot = trampoline - trampoline_size;
            self.words.extend([
                (entry, 0),
                (entry + 8, HOST),
                (entry_slot, entry_pc),
                (wasm, entry),
                (wasm_slot, wasm_pc),
                (trampoline, wasm),
                (trampoline_slot, trampoline_pc),
            ]);
            (Exit { pc: wasm_pc, caller: wasm, trampoline, entry: Some(entry) }, [trampoline_slot, wasm_slot])
        }

        fn layout(&self) -> StoreLayout {
            StoreLayout::new(self.runtime.codes[0].version.unwrap()).unwrap()
        }

        fn frame(&self) -> u64 {
            if self.layout().exit_fp_is_trampolines { self.exit.trampoline } else { self.exit.caller }
        }

        /// Makes the store name the exit.
        fn said(&mut self) {
            let (layout, frame) = (self.layout(), self.frame());
            self.words.insert(STORE + layout.last_exit_pc, self.exit.pc);
            self.words.insert(STORE + layout.last_exit_fp, frame);
            self.words.insert(STORE + layout.last_entry_fp, self.exit.entry.unwrap());
        }

        /// Makes the store name another exit.
        fn unsaid(&mut self) {
            self.words.insert(STORE + self.layout().last_exit_pc, 0);
        }

        fn memory(&self) -> Pieces {
            let region = |start: u64, size: u64| {
                let words: Vec<u64> = (0..size / 8).map(|i| *self.words.get(&(start + i * 8)).unwrap_or(&0)).collect();
                words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>()
            };
            let mut native = vec![0x90; 0x1000];
            native[0x800..0x805].copy_from_slice(&[0xe8, 0, 1, 0, 0]);
            native[0x900..0x909].copy_from_slice(&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05]);
            native[0xa00..0xa08].copy_from_slice(&[0x4c, 0x89, 0xe7, 0x48, 0x89, 0xee, 0xff, 0xd3]);
            Pieces::default()
                .bytes(BASE, &self.image)
                .bytes(NATIVE, &native)
                .bytes(HEAP, &region(HEAP, 0x1000))
                .bytes(STACK, &region(STACK, 0x1_0000))
                .bytes(OTHER_STACK, &region(OTHER_STACK, 0x1_0000))
        }

        fn found(&self) -> Option<(u64, u64, u64)> {
            let at = cursor(NATIVE, &[(x64::RSP, self.sp), (x64::RBP, 7)]);
            let found = exit(&self.runtime, &at, self.sp, &self.memory())?;
            Some((found.pc, found.slot, found.frame?.0))
        }

        fn trampoline(&self) -> Option<(u64, u64, u64)> {
            Some((self.trampoline_pc, self.slots[0], self.exit.trampoline))
        }
    }

    const FIXTURES: [&str; 3] = ["36-default", "48-default", "48-guest-debug"];

    #[test]
    fn the_exit_that_the_store_names_is_found() {
        for name in FIXTURES {
            let mut scene = Scene::new(name);
            assert_eq!(scene.found(), scene.trampoline(), "{name}");
            // If the return address into the trampoline is overwritten, the caller of the trampoline is found.
            scene.words.insert(scene.slots[0], 1);
            assert_eq!(scene.found(), Some((scene.wasm_pc, scene.slots[1], scene.exit.caller)), "{name}");
            // The same holds if the trampoline's frame does not lead on to its caller.
            let mut scene = Scene::new(name);
            scene.words.insert(scene.exit.trampoline, scene.exit.caller + 8);
            assert_eq!(scene.found(), Some((scene.wasm_pc, scene.slots[1], scene.exit.caller)), "{name}");
            // Without the word on the stack, only a register leads to the instance.
            let mut scene = Scene::new(name);
            scene.words.remove(&(scene.sp + 0x40));
            assert_eq!(scene.found(), None, "{name}");
            let at = cursor(NATIVE, &[(x64::RSP, scene.sp), (x64::R12, VMCTX)]);
            assert!(exit(&scene.runtime, &at, scene.sp, &scene.memory()).is_some(), "{name}");
            // The image hides its version.
            let mut scene = Scene::new(name);
            scene.said();
            scene.runtime.codes[0].version = None;
            assert_eq!(scene.found(), scene.trampoline(), "{name}");
        }
    }

    #[test]
    fn what_the_runtime_does_not_name_or_the_code_does_not_make_is_old() {
        for name in FIXTURES {
            let lost = |change: &dyn Fn(&mut Scene)| {
                let mut scene = Scene::new(name);
                change(&mut scene);
                assert_eq!(scene.found(), None, "{name}");
            };
            let layout = Scene::new(name).layout();
            // The store names another return address, frame or entry, or no instance leads to a store.
            lost(&|s| s.unsaid());
            lost(&|s| _ = s.words.insert(STORE + layout.last_exit_fp, s.frame() + 8));
            lost(&|s| _ = s.words.insert(STORE + layout.last_entry_fp, s.exit.entry.unwrap() + 16));
            lost(&|s| _ = s.words.insert(VMCTX, 0));
            // A frame has another size than its code makes, a link leads elsewhere, or the entry was not called by
            // code.
            lost(&|s| _ = s.words.insert(s.exit.caller, s.exit.entry.unwrap() - 8));
            lost(&|s| _ = s.words.insert(s.exit.entry.unwrap() + 8, HOST + 1));
            lost(&|s| _ = s.words.insert(s.exit.entry.unwrap() + 8, HEAP));
            // The exit is on another stack than rsp, as that of a guest that waits or runs elsewhere.
            lost(&|s| s.sp = OTHER_STACK + 0x100);
            // rsp is already past the exit.
            lost(&|s| s.sp = s.exit.entry.unwrap());
        }
    }

    #[test]
    fn an_exit_that_an_inner_entry_keeps_is_found() {
        for name in FIXTURES {
            let mut scene = Scene::new(name);
            scene.unsaid();
            // The two words of the exit stand side by side in the frames of the host.
            scene.words.insert(scene.sp + 0x80, scene.frame());
            scene.words.insert(scene.sp + 0x90, scene.exit.pc);
            assert_eq!(scene.found(), scene.trampoline(), "{name}");
            // The two words stand below the frames that are left to walk. They count only if they are above the inner
            // entry.
            scene.sp += 0x100;
            assert_eq!(scene.found(), None, "{name}");
            scene.runtime.entered.borrow_mut().insert(scene.sp - 0x100);
            assert_eq!(scene.found(), scene.trampoline(), "{name}");
            scene.runtime.entered.borrow_mut().insert(scene.sp - 0x40);
            assert_eq!(scene.found(), None, "{name}");
            // The two words are too far apart, or there is only one of them.
            for (place, word) in [(0x90 + SAVED + 8, scene.exit.pc), (0x90, 0)] {
                let mut scene = Scene::new(name);
                scene.unsaid();
                scene.words.insert(scene.sp + 0x80, scene.frame());
                scene.words.insert(scene.sp + place, word);
                assert_eq!(scene.found(), None, "{name}");
            }
        }
    }

    #[test]
    fn an_activation_is_not_left_out() {
        for name in FIXTURES {
            // Between rsp and the exit that the store names there is another stay in Wasm, which nobody names.
            let mut scene = Scene::new(name);
            let (inner, slots) = scene.activation(STACK + 0x8000);
            assert_eq!(scene.found(), None, "{name}");
            // Now the store names the inner exit, and the native code that entered Wasm there keeps the outer one.
            let (outer, outer_slots) = (scene.exit, scene.slots);
            (scene.exit, scene.slots) = (inner, slots);
            scene.said();
            assert_eq!(scene.found(), scene.trampoline(), "{name}");
            let entry = scene.exit.entry.unwrap();
            (scene.exit, scene.slots) = (outer, outer_slots);
            let frame = scene.frame();
            scene.words.extend([(entry + 0x100, frame), (entry + 0x108, scene.exit.pc), (entry + 0x110, STORE)]);
            scene.sp = entry + 0x200;
            scene.words.insert(scene.sp + 0x40, VMCTX);
            assert_eq!(scene.found(), None, "{name}");
            scene.runtime.entered.borrow_mut().insert(entry + 16);
            assert_eq!(scene.found(), scene.trampoline(), "{name}");
            // It is also known which store the exit left.
            assert_eq!(scene.runtime.anchored.borrow().get(&scene.exit.trampoline), Some(&VMCTX), "{name}");
        }
    }

    #[test]
    fn a_signal_frame_comes_before_the_exit_that_is_over() {
        let mut scene = Scene::new("48-default");
        let recovered = |scene: &Scene| {
            let at = cursor(NATIVE, &[(x64::RSP, scene.sp), (x64::RBP, 7)]);
            match super::super::recover::recover(&scene.runtime, &at, &scene.memory())? {
                crate::unwind::Next::Caller(caller, crate::unwind::Trust::Scan) => Some(caller.address.raw()),
                next => panic!("{next:?}"),
            }
        };
        assert_eq!(recovered(&scene), Some(scene.trampoline_pc));
        // The frame that the kernel makes for a signal, with rip, rsp and the segments.
        let slot = scene.sp + 0x200;
        let context = slot + 8;
        let segments = 0x2b << 48 | 0x33;
        for (at, word) in
            [(slot, RESTORE), (context + 168, BASE), (context + 160, slot + 0x800), (context + 184, segments)]
        {
            scene.words.insert(at, word);
        }
        assert_eq!(recovered(&scene), Some(RESTORE));
        // Words that cannot belong to a signal frame.
        for (at, word) in [(168, HEAP), (160, 8), (160, slot - 8), (184, 0x33 << 1)] {
            let kept = scene.words.insert(context + at, word).unwrap();
            assert_eq!(recovered(&scene), Some(scene.trampoline_pc), "{at} {word:#x}");
            scene.words.insert(context + at, kept);
        }
        // A signal handler that runs on its own stack has nothing else on that stack.
        let mut alone = Scene::new("48-default");
        alone.sp = OTHER_STACK + 0x100;
        assert_eq!(recovered(&alone), None);
        let slot = alone.sp + 0x200;
        for (at, word) in [(0, RESTORE), (176, BASE), (168, alone.slots[1]), (192, segments)] {
            alone.words.insert(slot + at, word);
        }
        assert_eq!(recovered(&alone), Some(RESTORE));
    }

    #[test]
    fn a_fiber_s_start_is_found_by_what_the_switch_keeps_at_its_end() {
        let scene = Scene::new("48-default");
        let top = OTHER_STACK + 0x1_0000;
        let words = [(top - 24, NATIVE + 0xa08), (top - 16, STACK + 0x2000), (top - 8, 1)];
        let found = |words: &[(u64, u64)]| {
            let mut scene = Scene::new("48-default");
            scene.words.extend(words.iter().copied());
            fiber(&scene.runtime.mappings, OTHER_STACK + 0x100, &scene.memory()).map(|f| (f.pc, f.slot))
        };
        assert_eq!(found(&words), Some((NATIVE + 0xa08, top - 24)));
        // Nothing is found if the fiber is suspended, if its resumer is below it on the same stack, or if the code is
        // not a fiber's start.
        assert_eq!(found(&[words[0], words[1], (top - 8, 0)]), None);
        assert_eq!(found(&[words[0], (top - 16, top - 0x400), words[2]]), None);
        assert_eq!(found(&[(top - 24, HOST), words[1], words[2]]), None);
        assert!(fiber(&scene.runtime.mappings, STACK + 0x100, &scene.memory()).is_none());
    }

    #[test]
    fn so_many_words_and_frames_are_asked() {
        let scene = Scene::new("48-default");
        let asked = |before: u64| {
            let words = (0..before).map(|i| OTHER_STACK + (i % 0x1000) * 16).chain([VMCTX]);
            stores(&scene.runtime, &cursor(NATIVE, &[]), words, &scene.memory()).len()
        };
        assert_eq!((asked(MAX_ANCHOR_PROBES as u64 - 1), asked(MAX_ANCHOR_PROBES as u64)), (1, 0));
        // Before the exit there are return addresses that lead nowhere.
        for (before, found) in [(MAX_RECOVERY_CHAIN - 1, true), (MAX_RECOVERY_CHAIN, false)] {
            let mut scene = Scene::new("48-default");
            scene.sp = STACK;
            scene.words.insert(STACK, VMCTX);
            let nowhere = scene.runtime.codes[0].image.text().start + 1;
            let first = scene.slots[0] - 8 * before as u64;
            scene.words.extend((first..scene.slots[0]).step_by(8).map(|slot| (slot, nowhere)));
            assert_eq!(scene.found(), scene.trampoline().filter(|_| found));
        }
    }
}
