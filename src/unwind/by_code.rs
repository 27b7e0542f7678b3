//! Unwinds native code that has no unwind tables by following the code's own instructions.
//!
//! A host that was built without tables (C with `-fno-asynchronous-unwind-tables`, Rust that aborts on panic, musl's
//! assembly), and the `main` that the Rust compiler makes, say only in their code how large their frames are. So the
//! code of a function is followed from its start along all of its branches. This tells how far rsp moves, whether rbp
//! is a frame pointer, and where the caller's values of the registers are kept.
//!
//! For that the start of the function must be known. It comes from one of three sources: a symbol; the address that
//! the program's entry point hands to the C library as `main`; or a call whose return address is on the stack. Such a
//! call counts only if the function that it calls, followed from its first instruction, leads to the place in
//! question, and has at that place a frame that puts the return address into the very word where it was found:
//! neither fact follows from the other. Whatever the start came from, the caller's address must be behind a call, and
//! if the target of that call is known, it must be the function.
//!
//! Code that is reached only by jumps through a table is taken to have the same frame as the jump. Such a frame is
//! believed only if the caller's call names the function.

use super::frame_pointer::before;
use super::{Cursor, Next, Trust, Unwinder};
use crate::arch::x64::body::{Body, KEPT, Kept, State};
use crate::arch::x64::code::{self, Goal};
use crate::arch::{CodeAddress, Machine, Registers, x64};
use crate::limits::{MAX_BODIES, MAX_BODIES_STEPS, MAX_BODY_BYTES, MAX_BODY_FRAME, MAX_BODY_LEAVES, MAX_BODY_STEPS};
use crate::process::objects::Objects;
use crate::process::{Mapping, Memory, mapping_at};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// Whether the code at `start`, where `code` begins, leads to `address`.
pub fn leads_to(start: u64, code: &[u8], address: CodeAddress) -> bool {
    let left = Cell::new(MAX_BODY_STEPS);
    Body::follow(start, code, false, &left).is_some_and(|body| body.at(address).is_some())
}

/// The address of the word that holds the return address. `None` if it is not known, or if rsp and rbp contradict
/// each other.
fn slot(state: &State, registers: &Registers) -> Option<u64> {
    let from = |reg, at: Option<i64>| registers.get(reg)?.checked_add_signed(at?.checked_neg()?);
    let (by_sp, by_frame) = (from(x64::RSP, state.sp), from(x64::RBP, state.frame));
    match (by_sp, by_frame) {
        (Some(one), Some(other)) if one != other => None,
        (one, other) => one.or(other),
    }
    .filter(|slot| slot.is_multiple_of(8) && registers.sp().is_none_or(|sp| sp <= *slot))
}

/// The function that a call instruction calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    This(u64),
    /// A register or a table holds the address of the function.
    Unknown,
}

/// The functions that a call right before `pc` may call, none if there is no call. There can be several, because the
/// bytes before an address can be read in several ways.
fn called(pc: u64, memory: &dyn Memory) -> Vec<Called> {
    let of = |goal: Goal| match goal {
        Goal::Address(target) => Called::This(behind_stub(target, memory)),
        Goal::Word(address) => memory.read_u64(address).map_or(Called::Unknown, Called::This),
        Goal::Unknown => Called::Unknown,
    };
    code::calls_before(pc, &before(pc, memory)).map(of).collect()
}

/// The address to which the linker's stub at `target` leads, or `target` itself if there is no stub.
fn behind_stub(target: u64, memory: &dyn Memory) -> u64 {
    let mut code = [0; 16];
    let len = memory.read_some(target, &mut code);
    let word = code::stub(target, code.get(..len).unwrap_or(&[]));
    word.and_then(|word| memory.read_u64(word).ok()).unwrap_or(target)
}

/// A function, as it is known to somebody who has symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Address of the function's first byte, in the target.
    pub start: u64,
    /// Address one past the function's last byte, if it is known.
    pub end: Option<u64>,
    /// Whether it is certain that calls lead to `start`.
    pub is_entry: bool,
}

/// Returns the function around an address, if there is one that is known.
pub type Symbols<'a> = dyn Fn(CodeAddress) -> Option<Known> + 'a;

/// The functions that were followed, by start and end. `None` if the function could not be followed.
type Bodies = HashMap<(u64, u64), Option<Rc<Body>>>;

/// Unwinds code of loaded files by following its instructions.
pub struct CodeUnwinder<'a> {
    objects: &'a Objects,
    mappings: &'a [Mapping],
    symbols: Box<Symbols<'a>>,
    /// Address of the executable's entry point.
    entry: Option<u64>,
    /// Address of the `main` that the entry point names, once it was looked for.
    main: OnceCell<Option<u64>>,
    bodies: RefCell<Bodies>,
    /// How many more instructions may be followed in all functions together.
    left: Cell<usize>,
}

impl<'a> CodeUnwinder<'a> {
    /// `symbols` gives the function around an address. `entry` is the address of the executable's entry point
    /// (`AT_ENTRY`).
    pub fn new(
        objects: &'a Objects,
        mappings: &'a [Mapping],
        entry: Option<u64>,
        symbols: Box<Symbols<'a>>,
    ) -> CodeUnwinder<'a> {
        CodeUnwinder {
            objects,
            mappings,
            symbols,
            entry,
            main: OnceCell::new(),
            bodies: RefCell::default(),
            left: Cell::new(MAX_BODIES_STEPS),
        }
    }

    fn mapping_at(&self, address: u64) -> Option<&'a Mapping> {
        mapping_at(self.mappings, address)
    }

    fn is_code(&self, address: u64) -> bool {
        self.mapping_at(address).is_some_and(Mapping::may_execute)
    }

    fn body(&self, start: u64, end: Option<u64>, memory: &dyn Memory) -> Option<Rc<Body>> {
        let (last, whole) = (start.saturating_add(MAX_BODY_BYTES), end.is_some());
        let end = end.unwrap_or(last).min(last).min(self.mapping_at(start).filter(|m| m.may_execute())?.end);
        if let Some(known) = self.bodies.borrow().get(&(start, end)) {
            return known.clone();
        }
        let mut code = vec![0; end.checked_sub(start)? as usize];
        let len = memory.read_some(start, &mut code);
        let left = Cell::new(MAX_BODY_STEPS.min(self.left.get()));
        let before = left.get();
        let body = Body::follow(start, code.get(..len)?, whole, &left).map(Rc::new);
        self.left.set(self.left.get().saturating_sub(before - left.get()));
        let mut bodies = self.bodies.borrow_mut();
        if bodies.len() < MAX_BODIES {
            bodies.insert((start, end), body.clone());
        }
        body
    }

    /// The code of the executable's entry point and its address.
    fn entry_code(&self, memory: &dyn Memory) -> Option<(u64, Vec<u8>)> {
        let entry = self.entry?;
        let mut code = vec![0; 64];
        let len = memory.read_some(entry, &mut code);
        code.truncate(len);
        Some((entry, code))
    }

    /// The `main` that `_start` hands to the C library.
    fn main(&self, memory: &dyn Memory) -> Option<u64> {
        *self.main.get_or_init(|| {
            let (entry, code) = self.entry_code(memory)?;
            let main = match code::main(entry, &code)? {
                Goal::Address(main) => main,
                Goal::Word(address) => memory.read_u64(address).ok()?,
                Goal::Unknown => return None,
            };
            self.is_code(main).then_some(main)
        })
    }

    /// Whether the frame at `at` is the one of the program's entry point, which nobody called.
    fn is_entry(&self, at: CodeAddress, memory: &dyn Memory) -> bool {
        self.entry_code(memory).is_some_and(|(entry, code)| code::is_entry(entry, &code, at))
    }

    /// The caller of `function` in the frame `at`, with the address of the word that holds the return address.
    fn caller(&self, function: Known, at: &Cursor, memory: &dyn Memory) -> Option<(u64, Cursor)> {
        let start = function.start;
        let body = self.body(start, function.end, memory)?;
        let state = body.at(at.address)?;
        let slot = slot(state, &at.registers)?;
        let pc = memory.read_u64(slot).ok()?;
        if !self.is_code(pc.checked_sub(1)?) {
            return None;
        }
        let is_this = |called: &Called| match *called {
            Called::Unknown => function.is_entry && !state.guessed,
            // The call may name another function that ends in a jump to this function.
            Called::This(other) => {
                other == start
                    || self.is_entry(CodeAddress::Return(pc), memory)
                    || self.body(other, None, memory).is_some_and(|b| b.leaves.contains(&start))
            }
        };
        called(pc, memory).iter().any(is_this).then_some(())?;
        let mut registers = at.registers.clone();
        registers.forget_caller_saved();
        for (reg, kept) in KEPT.into_iter().zip(state.kept) {
            match kept {
                Kept::Same => {}
                Kept::Lost => registers.forget(reg),
                Kept::At(distance) => {
                    let place = slot.checked_add_signed(distance)?;
                    match memory.read_u64(place) {
                        Ok(value) => registers.restore(reg, value, place),
                        Err(_) => registers.forget(reg),
                    }
                }
            }
        }
        registers.restore(x64::RIP, pc, slot);
        registers.set(x64::RSP, slot.checked_add(8)?);
        Some((slot, Cursor { address: CodeAddress::Return(pc), registers }))
    }

    /// Searches the stack for the caller: the first return address whose call names a function that leads to `at`,
    /// and whose frame there has the return address in exactly that word.
    fn called_from(&self, at: &Cursor, memory: &dyn Memory) -> Option<Cursor> {
        let sp = at.registers.sp()?.checked_next_multiple_of(8)?;
        let stack = self.mapping_at(sp).filter(|m| m.write)?;
        let len = stack.end.checked_sub(sp)?.min(MAX_BODY_FRAME) as usize;
        let mut bytes = vec![0; len];
        let read = memory.read_some(sp, &mut bytes);
        let pc = at.address.lookup();
        let words = bytes.get(..read)?.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
        for (word, place) in words.zip((sp..).step_by(8)) {
            if !word.checked_sub(1).is_some_and(|before| self.is_code(before)) {
                continue;
            }
            for called in called(word, memory) {
                let Called::This(first) = called else { continue };
                let mut starts = vec![first];
                // The called function may end in a jump to the function that is searched: musl's `__libc_start_main`
                // does.
                if let Some(body) = self.body(first, None, memory).filter(|b| b.at(at.address).is_none()) {
                    let near = body.leaves.range(pc.saturating_sub(MAX_BODY_BYTES)..=pc);
                    starts.extend(near.rev().take(MAX_BODY_LEAVES));
                }
                for start in starts.into_iter().filter(|start| *start <= pc && pc - start < MAX_BODY_BYTES) {
                    if let Some((slot, caller)) = self.caller(Known { start, end: None, is_entry: false }, at, memory)
                        && slot == place
                    {
                        return Some(caller);
                    }
                }
            }
        }
        None
    }
}

impl Unwinder for CodeUnwinder<'_> {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        // Code of other machines is not followed.
        if at.registers.machine() != Machine::X64 {
            return None;
        }
        let pc = at.address.lookup();
        self.objects.find(pc)?;
        if self.is_entry(at.address, memory) {
            return Some(Next::Bottom);
        }
        let known = (self.symbols)(at.address).and_then(|function| self.caller(function, at, memory));
        let found = known.map(|(_, caller)| caller).or_else(|| {
            let main = self.main(memory).filter(|main| *main <= pc);
            let main = main.map(|start| Known { start, end: None, is_entry: true });
            let by_main = main.and_then(|main| self.caller(main, at, memory)).map(|(_, caller)| caller);
            by_main.or_else(|| self.called_from(at, memory))
        });
        Some(Next::Caller(found?, Trust::Code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Reg;
    use crate::unwind::FrameChange;
    use crate::unwind::cfi::CfiUnwinder;
    use crate::unwind::testing::{Pieces, cursor, object, own_mappings};
    use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    const TEXT: u64 = 0x40_0000;
    const START: u64 = 0x40_1000;
    const CALLER: u64 = 0x40_0800;
    const STACK: u64 = 0x7000_0000;

    /// A call of `target` that returns to `CALLER`.
    fn call(target: u64) -> Vec<u8> {
        let distance = (target as i64 - CALLER as i64) as i32;
        [&[0xe8][..], &distance.to_le_bytes()].concat()
    }

    fn mappings() -> Vec<Mapping> {
        let mapping = |start, end, execute: bool| Mapping {
            start,
            end,
            read: true,
            write: !execute,
            execute,
            offset: 0,
            path: None,
        };
        vec![mapping(TEXT, 0x48_0000, true), mapping(STACK, STACK + 0x10_0000, false)]
    }

    fn objects() -> Objects {
        Objects::from_parts(vec![object("/bin/host", 0, (TEXT, 0x48_0000), Vec::new())])
    }

    /// A function with this code, stopped behind all of it. The tests ask for the caller's frame: its address, its
    /// rsp, and its rbx and rbp as far as they are known. `REGISTERS` are the values of rbx and rbp at the stop.
    struct Case {
        code: Vec<u8>,
        before_call: Vec<u8>,
        /// Bytes from rsp up to the word with the return address.
        depth: u64,
        words: Vec<(u64, u64)>,
        symbol: Option<Known>,
        entry: Option<u64>,
        more: Vec<(u64, Vec<u8>)>,
        at: CodeAddress,
    }

    impl Case {
        fn new(code: &[&[u8]], depth: u64) -> Case {
            let code = code.concat();
            let at = CodeAddress::Exact(START + code.len() as u64);
            let symbol = Some(Known { start: START, end: None, is_entry: true });
            let (before_call, words, more) = (call(START), Vec::new(), Vec::new());
            Case { code, before_call, depth, words, symbol, entry: None, more, at }
        }

        fn memory(&self) -> Pieces {
            // The memory consists of whole pages, because nothing behind a hole would be read.
            let mut text = vec![0x90; 0x8_0000];
            let mut put = |at: u64, bytes: &[u8]| text[(at - TEXT) as usize..][..bytes.len()].copy_from_slice(bytes);
            put(START, &self.code);
            put(START + self.code.len() as u64, &[0x90, 0xc3]);
            put(CALLER - self.before_call.len() as u64, &self.before_call);
            self.more.iter().for_each(|(at, bytes)| put(*at, bytes));
            let mut stack = vec![0; 0x4000];
            let words = self.words.iter().copied().chain([(self.depth, CALLER)]);
            words.for_each(|(at, word)| stack[(0x100 + at) as usize / 8] = word);
            Pieces::default().bytes(TEXT, &text).words(STACK, &stack)
        }

        fn step(&self, registers: &[(Reg, u64)]) -> Option<Next> {
            let (objects, mappings, symbol) = (objects(), mappings(), self.symbol);
            let unwinder = CodeUnwinder::new(&objects, &mappings, self.entry, Box::new(move |_| symbol));
            let sp = (x64::RSP, STACK + 0x100);
            let mut at = cursor(self.at.raw(), &[&[sp], registers].concat());
            at.address = self.at;
            unwinder.step(&at, &self.memory())
        }

        /// The caller's rsp, rbx and rbp.
        fn caller(&self, registers: &[(Reg, u64)]) -> Option<[Option<u64>; 3]> {
            match self.step(registers)? {
                Next::Caller(caller, Trust::Code) => {
                    assert_eq!(caller.address, CodeAddress::Return(CALLER));
                    Some([x64::RSP, x64::RBX, x64::RBP].map(|r| caller.registers.get(r)))
                }
                next => panic!("{next:?}"),
            }
        }
    }

    const REGISTERS: [(Reg, u64); 2] = [(x64::RBX, 3), (x64::RBP, 5)];
    const PUSH_RBP: &[u8] = &[0x55];
    const PUSH_RBX: &[u8] = &[0x53];
    const FRAME: &[u8] = &[0x55, 0x48, 0x89, 0xe5];
    const SUB_20: &[u8] = &[0x48, 0x83, 0xec, 0x20];

    fn above(bytes: u64) -> Option<u64> {
        Some(STACK + 0x108 + bytes)
    }

    #[test]
    fn frames_of_every_shape_are_followed() {
        assert_eq!(Case::new(&[&[0x90]], 0).caller(&REGISTERS), Some([above(0), Some(3), Some(5)]));
        // push rax, as the `main` of a Rust program has it.
        assert_eq!(Case::new(&[&[0x50]], 8).caller(&REGISTERS), Some([above(8), Some(3), Some(5)]));
        let mut case = Case::new(&[PUSH_RBP, PUSH_RBX, SUB_20], 0x30);
        case.words = vec![(0x28, 55), (0x20, 33)];
        assert_eq!(case.caller(&REGISTERS), Some([above(0x30), Some(33), Some(55)]));
        // rbp is used for something else: mov rbp, rdi.
        let mut case = Case::new(&[PUSH_RBP, SUB_20, &[0x48, 0x89, 0xfd]], 0x28);
        case.words = vec![(0x20, 55)];
        assert_eq!(case.caller(&REGISTERS), Some([above(0x28), Some(3), Some(55)]));
        // There is a frame pointer, and the stack pointer moved by an unknown amount: sub rsp, rax.
        let mut case = Case::new(&[FRAME, PUSH_RBX, &[0x48, 0x29, 0xc4]], 0x48);
        case.words = vec![(0x40, 55), (0x38, 33)];
        assert_eq!(case.caller(&[(x64::RBX, 3), (x64::RBP, STACK + 0x140)]), Some([above(0x48), Some(33), Some(55)]));
        // This loop touches the pages of a large frame: lea r11, [rsp - 0x2000]; sub rsp, 0x1000; mov [rsp], 0; cmp
        // rsp, r11; jne.
        let probe: &[u8] = &[
            0x4c, 0x8d, 0x9c, 0x24, 0x00, 0xe0, 0xff, 0xff, 0x48, 0x81, 0xec, 0, 0x10, 0, 0, 0x48, 0xc7, 0x04, 0x24, 0,
            0, 0, 0, 0x4c, 0x39, 0xdc, 0x75, 0xec,
        ];
        assert_eq!(Case::new(&[probe], 0x2000).caller(&REGISTERS), Some([above(0x2000), Some(3), Some(5)]));
        // rbx is saved with mov; rbp is overwritten without being saved.
        let mut case = Case::new(&[SUB_20, &[0x48, 0x89, 0x5c, 0x24, 0x08, 0x31, 0xdb, 0x31, 0xed]], 0x20);
        case.words = vec![(8, 33)];
        assert_eq!(case.caller(&REGISTERS), Some([above(0x20), Some(33), None]));
    }

    #[test]
    fn every_way_to_a_place_counts() {
        // push rbx; je +2; pop rbx; ret; [here]
        let code: &[&[u8]] = &[PUSH_RBX, &[0x74, 2, 0x5b, 0xc3]];
        let mut case = Case::new(code, 8);
        case.words = vec![(0, 33)];
        assert_eq!(case.caller(&REGISTERS), Some([above(8), Some(33), Some(5)]));
        // A call that does not return has another frame than the way that leads on: push rbx; je +7; push 1; call;
        // [here]
        let mut case = Case::new(&[PUSH_RBX, &[0x74, 7, 0x6a, 1], &[0xe8, 0, 0, 0, 1]], 8);
        case.words = vec![(0, 33)];
        assert_eq!(case.caller(&REGISTERS), Some([above(8), Some(33), Some(5)]));
        // Two ways do not agree: je +2; push 1; [here]
        assert_eq!(Case::new(&[&[0x74, 2, 0x6a, 1]], 8).caller(&REGISTERS), None);
        // A jump through a table: push rbx; jmp rax; [here]. It is believed only if the call names the function.
        let mut case = Case::new(&[PUSH_RBX, &[0xff, 0xe0]], 8);
        (case.words, case.symbol) = (vec![(0, 33)], case.symbol.map(|s| Known { end: Some(START + 5), ..s }));
        assert_eq!(case.caller(&REGISTERS), Some([above(8), Some(33), Some(5)]));
        case.before_call = vec![0xff, 0xd0];
        assert_eq!(case.caller(&REGISTERS), None);
        // No way leads here: ret; [here]
        assert_eq!(Case::new(&[&[0xc3]], 0).caller(&REGISTERS), None);
        // A return address is known if a call of the function returns to it, even if no instruction follows.
        let mut case = Case::new(&[PUSH_RBX, &[0xe8, 0, 0, 0, 1]], 8);
        (case.words, case.at) = (vec![(0, 33)], CodeAddress::Return(START + 6));
        assert_eq!(case.caller(&REGISTERS), Some([above(8), Some(33), Some(5)]));
        case.at = CodeAddress::Return(START + 5);
        assert_eq!(case.caller(&REGISTERS), None);
    }

    #[test]
    fn the_caller_has_to_call_this_function() {
        let case = || Case::new(&[&[0x50]], 8);
        // There is no call before the return address.
        assert_eq!(Case { before_call: vec![0x90; 5], ..case() }.caller(&REGISTERS), None);
        // The call names another function.
        assert_eq!(Case { before_call: call(START + 0x100), ..case() }.caller(&REGISTERS), None);
        // The call names another function that ends in a jump to this one.
        let jump = [&[0xe9][..], &(-0x105i32).to_le_bytes()].concat();
        let tail = Case { before_call: call(START + 0x100), more: vec![(START + 0x100, jump)], ..case() };
        assert_eq!(tail.caller(&REGISTERS), Some([above(8), Some(3), Some(5)]));
        // The call goes through a linker's stub: endbr64; bnd jmp [rip + x]
        let stub = vec![0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 0, 0, 0, 0];
        for (target, found) in [(START, true), (START + 8, false)] {
            let more = vec![(START + 0x100, stub.clone()), (START + 0x10b, target.to_le_bytes().to_vec())];
            let stub = Case { before_call: call(START + 0x100), more, ..case() };
            assert_eq!(stub.caller(&REGISTERS).is_some(), found);
        }
        // An indirect call (call rax) counts only for a symbol that is known to be called, not for a label.
        for is_entry in [true, false] {
            let symbol = Some(Known { start: START, end: None, is_entry });
            let indirect = Case { before_call: vec![0xff, 0xd0], symbol, ..case() };
            assert_eq!(indirect.caller(&REGISTERS).is_some(), is_entry);
        }
    }

    #[test]
    fn without_symbols_a_call_on_the_stack_says_where_the_function_starts() {
        let case = || Case { symbol: None, ..Case::new(&[PUSH_RBX, SUB_20], 0x28) };
        assert_eq!(case().caller(&REGISTERS).map(|r| r[0]), Some(above(0x28)));
        // The return address is in another word than the frame says.
        let mut other = case();
        (other.depth, other.words) = (0x30, vec![(0x28, 0)]);
        assert_eq!(other.caller(&REGISTERS), None);
        // Older return addresses in words below it are passed over.
        let mut old = case();
        old.words = vec![(0x8, CALLER), (0x10, CALLER)];
        assert_eq!(old.caller(&REGISTERS).map(|r| r[0]), Some(above(0x28)));
        // The called function jumps to this one, by its address: lea rax, [rip + x]; jmp rax.
        let jump = |target: u64| {
            [&[0x48, 0x8d, 0x05][..], &((target as i64 - START as i64 - 0x107) as i32).to_le_bytes(), &[0xff, 0xe0]]
                .concat()
        };
        for (target, found) in [(START, true), (START + 1, false)] {
            let tail = Case { before_call: call(START + 0x100), more: vec![(START + 0x100, jump(target))], ..case() };
            assert_eq!(tail.caller(&REGISTERS).is_some(), found);
        }
        // An indirect call does not name a function.
        assert_eq!(Case { before_call: vec![0xff, 0xd0], ..case() }.caller(&REGISTERS), None);
    }

    const ENTRY: u64 = 0x40_2000;

    /// The `_start` of glibc, of musl, and of a program that is linked to fixed addresses, each with `main` at
    /// `START`.
    fn entries() -> [Vec<u8>; 3] {
        let lea = |at: u64| ((START as i64 - at as i64) as i32).to_le_bytes();
        [
            [
                &[0x31, 0xed, 0x49, 0x89, 0xd1, 0x5e, 0x48, 0x8d, 0x3d][..],
                &lea(ENTRY + 13),
                &[0xff, 0x15, 0, 0, 0, 0, 0xf4],
            ]
            .concat(),
            [&[0x48, 0x31, 0xed, 0x48, 0x8d, 0x3d][..], &lea(ENTRY + 10), &[0xe8, 0, 0, 0, 0]].concat(),
            [
                &[0xf3, 0x0f, 0x1e, 0xfa, 0x31, 0xed, 0x48, 0xc7, 0xc7][..],
                &(START as u32).to_le_bytes(),
                &[0xe8, 0, 0, 0, 0],
            ]
            .concat(),
        ]
    }

    #[test]
    fn main_is_what_the_entry_point_names() {
        for code in entries() {
            let mut case = Case { symbol: None, entry: Some(ENTRY), ..Case::new(&[&[0x50]], 8) };
            // The C library calls `main` with an indirect call.
            (case.before_call, case.more) = (vec![0xff, 0xd0], vec![(ENTRY, code)]);
            assert_eq!(case.caller(&REGISTERS), Some([above(8), Some(3), Some(5)]));
            case.entry = None;
            assert_eq!(case.caller(&REGISTERS), None);
        }
    }

    #[test]
    fn the_entry_point_is_the_bottom() {
        for code in entries() {
            let call = code.iter().rposition(|b| [0xe8, 0x15].contains(b)).unwrap() as u64 + 5;
            let mut case = Case { symbol: None, entry: Some(ENTRY), ..Case::new(&[&[0x50]], 8) };
            case.more = vec![(ENTRY, code.clone())];
            for (at, is_bottom) in [
                (CodeAddress::Exact(ENTRY), true),
                (CodeAddress::Return(ENTRY + call), true),
                (CodeAddress::Return(ENTRY + call - 1), false),
                (CodeAddress::Exact(ENTRY + call + 8), false),
            ] {
                case.at = at;
                assert_eq!(matches!(case.step(&REGISTERS), Some(Next::Bottom)), is_bottom, "{code:x?} {at:x?}");
            }
            // Code that does not clear rbp is an ordinary function.
            case.at = CodeAddress::Return(ENTRY + call);
            let keeps: Vec<u8> = code.iter().map(|b| if *b == 0x31 { 0x39 } else { *b }).collect();
            case.more = vec![(ENTRY, keeps)];
            assert!(!matches!(case.step(&REGISTERS), Some(Next::Bottom)));
        }
    }

    #[test]
    fn so_much_code_is_followed_and_so_much_stack_searched() {
        // The code is push rax, followed by nops of two bytes each.
        let code = [&[0x50][..], &[0x66, 0x90].repeat(MAX_BODY_BYTES as usize / 2 + 8)].concat();
        for (len, found) in [(MAX_BODY_BYTES - 1, true), (MAX_BODY_BYTES + 1, false)] {
            let mut case = Case::new(&[&code], 8);
            case.at = CodeAddress::Exact(START + len);
            assert_eq!(case.caller(&REGISTERS).is_some(), found);
        }
        let (objects, mappings) = (objects(), mappings());
        let unwinder = || CodeUnwinder::new(&objects, &mappings, None, Box::new(|_| None));
        let (one, memory) = (unwinder(), Pieces::default().bytes(START, &vec![0x90; MAX_BODY_STEPS + 1]));
        let steps =
            |unwinder: &CodeUnwinder<'_>, n: usize| unwinder.body(START, Some(START + n as u64), &memory).is_some();
        // The place behind the last instruction counts as well.
        assert!(steps(&one, MAX_BODY_STEPS - 1) && !steps(&one, MAX_BODY_STEPS));
        let all = unwinder();
        let nth = |i: u64| all.body(START + i, Some(START + i + 9_999), &memory).is_some();
        let functions = MAX_BODIES_STEPS as u64 / 10_000;
        assert!((0..functions).all(nth) && !nth(functions));
        for (depth, found) in [(MAX_BODY_FRAME - 8, true), (MAX_BODY_FRAME, false)] {
            let sub = [&[0x48, 0x81, 0xec][..], &(depth as u32).to_le_bytes()].concat();
            let mut case = Case { symbol: None, ..Case::new(&[&sub], depth) };
            case.words = (0..depth / 8).map(|i| (i * 8, 0)).collect();
            assert_eq!(case.caller(&REGISTERS).is_some(), found);
        }
        // The other function has jumps to places in this function that are nearer than this function's start.
        for (nearer, found) in [(MAX_BODY_LEAVES - 1, true), (MAX_BODY_LEAVES, false)] {
            let mut case = Case { symbol: None, ..Case::new(&[PUSH_RBX, SUB_20, &[0x90; 0x80]], 0x28) };
            let jumps = (0..=nearer as i64).flat_map(|i| {
                let distance = (i - 0x100 - 6 * (i + 1)) as i32;
                [&[0x0f, 0x84][..], &distance.to_le_bytes()].concat()
            });
            let other = jumps.chain([0xc3]).collect();
            (case.before_call, case.more) = (call(START + 0x100), vec![(START + 0x100, other)]);
            assert_eq!(case.caller(&REGISTERS).is_some(), found);
        }
        let unwinder = unwinder();
        let memory = Pieces::default().bytes(START, &[0x90; 0x4000]);
        for i in 0..=MAX_BODIES as u64 {
            unwinder.body(START + i, Some(START + i + 1), &memory);
        }
        assert_eq!(unwinder.bodies.borrow().len(), MAX_BODIES);
    }

    /// How often unwind tables and code agree on a place.
    #[derive(Default, Debug)]
    struct Compared {
        same: usize,
        unknown: usize,
        different: Vec<String>,
    }

    /// Looks at every instruction of every third function of the compiler that a symbol names, in the files that this
    /// test runs with: the compiler's own tables say what the code should say.
    #[test]
    fn tables_and_code_say_the_same() {
        let mut all = Compared::default();
        let mut seen = BTreeSet::new();
        for mapping in own_mappings().iter().filter(|m| m.offset == 0) {
            let Some(path) = mapping.path.as_ref().filter(|p| p.is_absolute() && seen.insert((*p).clone())) else {
                continue;
            };
            let bytes = std::fs::read(path).unwrap();
            let Ok(file) = object::File::parse(&*bytes) else { continue };
            let Some(frames) = file.section_by_name(".eh_frame") else { continue };
            let table = Arc::new(frames.data().unwrap().to_vec());
            let cfi = CfiUnwinder::of_eh_frame("x".into(), (0, u64::MAX), table, frames.address());
            // Only functions of the compiler are compared, because assembly may have tables that say anything.
            let of_compiler = |name: &str| name.starts_with("_ZN") || name.starts_with("_R");
            let functions = file.symbols().filter(|s| s.kind() == SymbolKind::Text && s.size() > 0);
            for symbol in functions.filter(|s| s.name().is_ok_and(of_compiler)).step_by(3) {
                let section = symbol.section_index().and_then(|i| file.section_by_index(i).ok());
                let code = section.and_then(|s| s.data_range(symbol.address(), symbol.size()).ok().flatten());
                if let (Some(code), Some(changes)) = (code, cfi.changes(Machine::X64, symbol.address())) {
                    compare(symbol.name().unwrap_or("?"), symbol.address(), code, &changes, &mut all);
                }
            }
        }
        let Compared { same, unknown, different } = all;
        println!("{same} the same, {unknown} unknown, {} different", different.len());
        assert!(different.is_empty(), "{}: {:#?}", different.len(), &different[..different.len().min(20)]);
        assert!(same > 20_000 && unknown * 20 < same, "{same} {unknown}");
    }

    fn compare(name: &str, start: u64, code: &[u8], changes: &[(u32, FrameChange)], out: &mut Compared) {
        let Some(body) = Body::follow(start, code, true, &Cell::new(MAX_BODY_STEPS)) else { return };
        for (at, state) in body.states.iter().filter(|(_, state)| !state.guessed) {
            let offset = (at - start) as u32;
            let mut cfa = None;
            let mut saved = BTreeMap::new();
            for (_, change) in changes.iter().take_while(|(from, _)| *from <= offset) {
                match *change {
                    FrameChange::Cfa(reg, n) => cfa = Some((reg, i64::from(n))),
                    FrameChange::Saved(reg, at) => _ = saved.insert(reg, i64::from(at)),
                    FrameChange::Same(reg) => _ = saved.remove(&reg),
                    _ => {}
                }
            }
            let ours = match cfa {
                Some((x64::RSP, n)) => state.sp.map(|sp| (8 - sp, n)),
                Some((x64::RBP, n)) => state.frame.map(|f| (8 - f, n)),
                _ => continue,
            };
            match ours {
                None => out.unknown += 1,
                Some((ours, theirs)) if ours == theirs => out.same += 1,
                Some(both) => out.different.push(format!("{name} +{offset:#x}: {both:?}")),
            }
            for (reg, kept) in KEPT.iter().zip(state.kept) {
                if let (Some(theirs), Kept::At(ours)) = (saved.get(reg), kept)
                    && ours - 8 != *theirs
                {
                    out.different.push(format!("{name} +{offset:#x}: {} at {ours} {theirs}", reg.name()));
                }
            }
        }
    }
}
