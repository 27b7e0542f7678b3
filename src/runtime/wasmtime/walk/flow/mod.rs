//! What compiled code does with the registers that it was called with.
//!
//! Neither the compiler's tables nor the runtime's say where a function keeps its instance, and in an image without
//! `.eh_frame` nothing says where callee-saved registers are saved. Both follow from the code: a function gets its
//! instance in rdi and its caller's instance in rsi (`wasmtime-cranelift`: the first two parameters of every function
//! and trampoline), and from there each move, spill and reload can be followed. [`Flow`] does that on all paths at
//! once: a register or stack slot counts as holding a value at an instruction only if it holds it on every path to
//! that instruction.
//!
//! All of this is what the code says, not what a table says. So a reader compares all places that should hold the
//! same value ([`State::find`]), and checks an instance against its module before it believes it.
//!
//! The return address is followed like any other word, and so the caller is found at every instruction. Tables say
//! nothing about the ends of functions, and the code that the compilers write at the start and at the end of a
//! function moves the return address as well as rbp. It has these shapes:
//!
//! | shape | compiler | versions |
//! |---|---|---|
//! | `push rbp; mov rbp, rsp` at the start | both | all |
//! | stack limit: `mov r10, [rdi + 8]; mov r10, [r10 + n]; cmp r10, rsp; jnbe` | Cranelift | all |
//! | .. or with `add r10, n` in front of the `cmp` | Cranelift | all |
//! | the same with `mov r11, ..; add r11, n; cmp; ja` in every function, also in a leaf | Winch | all |
//! | probes, up to four: `sub rsp, n; mov [rsp], x` each, then `add rsp, ..` | Cranelift | all |
//! | more probes: `mov r11, rsp; sub r11, n`, the loop of the next row, `add rsp, n` | Cranelift | all |
//! | the loop of probes: `L: sub rsp, ..; mov [rsp], x; cmp rsp, r11; jne L` | Cranelift | all |
//! | room for arguments of a tail call: `sub rsp, n; mov rbp, rsp`, two words go down through r11 | Cranelift | all |
//! | saves: `sub rsp, n; mov [rsp + ..], rbx` and so on | Cranelift | all |
//! | loads of the saves, `add rsp, n; mov rsp, rbp; pop rbp`, `ret` (stack arguments: `ret n`) | Cranelift | all |
//! | the same, but `jmp` instead of `ret` (a tail call) | Cranelift | all |
//! | .. with fewer arguments: `pop rbp; mov tmp, [rsp]; mov [rsp + n], tmp; add rsp, n; jmp` | Cranelift | all |
//! | `add rsp, n; pop rbp; ret` | Winch | to 49 |
//! | `add rsp, n; pop rbp`, then `ret` or `ret n`; a call leaves rsp above its arguments | Winch | 50 |
//! | `mov rsp, rbp; sub rsp, n` where an exception arrives | Winch | from 49 |
//! | tail call, as many arguments: `mov rsp, rbp; pop rbp; jmp` | Winch | 50 |
//! | .. with none: both words through r11, from rbp, `lea rsp, [rbp + n]; mov rbp, r11; jmp` | Winch | 50 |
//! | .. with others: both words to `[rsp]` and `[rsp + 8]`, arguments over them, then as the one before | Winch | 50 |
//!
//! (Sources: `cranelift-codegen`: `isa/x64/abi.rs`, `emit_return_call_common_sequence`; `winch-codegen`:
//! `isa/x64/masm.rs`. Majors 36 to 50 were compared.) The code below does not look for any of these shapes: it
//! follows what each instruction does.

mod state;

pub use self::state::{Held, State};

use self::state::{AT_START, RSP, change, number, without_caller};
use super::chain::Call;
use crate::arch::{CodeAddress, x64};
use crate::limits::{MAX_FLOW_BYTES, MAX_FLOW_STEPS};
use crate::unwind::FrameChange;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind};
use std::collections::{BTreeMap, BTreeSet};

/// How callers are found from each of the first instructions of a function on, up to and including the instruction at
/// offset `end`. `None` if the code up to there cannot be followed.
pub fn beginning(start: u64, code: &[u8], end: u32) -> Option<Vec<(u32, FrameChange)>> {
    let flow = Flow::of_beginning(start, code);
    let (mut state, mut before, mut info) = (State::entry(), Before::default(), InstructionInfoFactory::new());
    let (mut out, mut last) = (vec![(0, FrameChange::Cfa(x64::RSP, 8))], AT_START);
    for i in flow.instructions(0) {
        let offset = flow.offset(i.ip());
        change(&mut out, &mut last, offset, state.rules()?);
        if offset >= end {
            return (offset == end).then_some(out);
        }
        let loops = i.mnemonic() == Mnemonic::Jne && i.near_branch_target() < i.ip();
        flow.step(&mut state, &i, &mut before, &mut info);
        match i.flow_control() {
            FlowControl::Next => {}
            // Control goes on here when the stack limit does not trap, or when the loop of stack probes is over.
            FlowControl::ConditionalBranch => {
                if let Some(sp) = before.equal.filter(|_| loops) {
                    state.registers[RSP] = Some(Held::Frame(sp));
                }
            }
            _ => return None,
        }
    }
    None
}

/// What is known at `at`, if it is among the first instructions of a function that is too large to be followed.
pub fn near_start(start: u64, code: &[u8], at: CodeAddress) -> Option<Facts> {
    let CodeAddress::Exact(pc) = at else { return None };
    let flow = Flow::of_beginning(start, code);
    let (mut state, mut before, mut info) = (State::entry(), Before::default(), InstructionInfoFactory::new());
    for i in flow.instructions(0) {
        if i.ip() == pc {
            return Some(Facts { state, calling: None, restores_sp: true, winch: code.starts_with(&WINCH) });
        }
        // The loop of stack probes moves rsp by an amount that is not known here.
        let goes_on = match i.flow_control() {
            FlowControl::Next => true,
            FlowControl::ConditionalBranch => i.near_branch_target() > i.ip(),
            _ => false,
        };
        if !goes_on || i.ip() > pc {
            return None;
        }
        flow.step(&mut state, &i, &mut before, &mut info);
    }
    None
}

/// What is known at one address of a function.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The state before the instruction. At a return address: the state when the callee returns.
    pub state: State,
    /// The state before the call and the call itself, if the address is a return address.
    calling: Option<(State, Instruction)>,
    /// Whether rsp after a call counts as what it was before, whatever the callee took off the stack.
    restores_sp: bool,
    /// Whether Winch compiled the function. Such a function keeps no register for its caller.
    pub winch: bool,
}

impl Facts {
    /// Whether this is the address that a call returns to.
    pub fn is_call(&self) -> bool {
        self.calling.is_some()
    }

    /// At a return address: how far the stack pointer was from rbp at the call, in bytes and without the return
    /// address (below rbp is negative).
    pub fn sp_at_call(&self) -> Option<i64> {
        let below = self.state.sp_to_rbp().filter(|_| self.is_call() && self.restores_sp)?;
        below.checked_neg()
    }

    /// How this code called the function that begins at `start`. `None` if it calls another function, or if the code
    /// does not tell what it passed.
    pub fn call(&self, start: u64) -> Option<Call> {
        let (state, instruction) = self.calling.as_ref()?;
        let direct = instruction.flow_control() == FlowControl::Call;
        if direct && instruction.near_branch_target() != start {
            return None;
        }
        let target = match instruction.op0_kind() {
            OpKind::Register => number(instruction.op0_register()).and_then(|n| state.registers[n]),
            OpKind::Memory => state.load(instruction),
            _ => None,
        };
        Call::new(state.register(x64::RDI), target, direct)
    }
}

/// A function that was followed from its entry.
#[derive(Debug)]
pub struct Flow {
    start: u64,
    code: Vec<u8>,
    /// Whether Winch compiled the function. After a call its code does not make room again for the arguments that the
    /// callee took off the stack.
    winch: bool,
    /// Whether the functions that it calls take their arguments off the stack.
    callees_pop: bool,
    /// For calls of the function: the offset that the call returns to, and the offset at which code goes on when an
    /// exception ends the call.
    handlers: Vec<(u32, u32)>,
    /// The state at each offset where a path begins or several meet.
    blocks: BTreeMap<u32, State>,
}

/// What has to be known to follow a function, and the code itself does not say.
#[derive(Default)]
pub struct Hints {
    /// Whether functions that Winch compiled take their arguments off the stack when they return (they do in version
    /// 50).
    pub winch_callees_pop: bool,
    /// For calls of the function: the offset that the call returns to, and the offset at which code goes on when an
    /// exception ends the call. Offsets ascend.
    pub handlers: Vec<(u32, u32)>,
}

/// `push rbp; mov rbp, rsp; mov r11, [rdi + 8]`: the start of each function that Winch compiled, in every build. The
/// last of these instructions begins the comparison of rsp with its limit, for which Cranelift uses r10.
pub const WINCH: [u8; 8] = [0x55, 0x48, 0x89, 0xe5, 0x4c, 0x8b, 0x5f, 0x08];

impl Flow {
    /// The code of a function that is looked at only from its start on, instruction by instruction.
    fn of_beginning(start: u64, code: &[u8]) -> Flow {
        Flow {
            start,
            code: code.to_vec(),
            winch: false,
            callees_pop: false,
            handlers: Vec::new(),
            blocks: BTreeMap::new(),
        }
    }

    /// Follows the function whose bytes are `code` and whose address is `start`. `None` if it is empty or too large,
    /// or if there are too many paths through it.
    pub fn new(start: u64, code: Vec<u8>, hints: Hints) -> Option<Flow> {
        if code.is_empty() || code.len() > MAX_FLOW_BYTES {
            return None;
        }
        let winch = code.starts_with(&WINCH);
        let callees_pop = winch && hints.winch_callees_pop;
        let mut flow = Flow { start, code, winch, callees_pop, handlers: hints.handlers, blocks: BTreeMap::new() };
        let leaders = flow.leaders();
        let mut steps = 0usize;
        let mut info = InstructionInfoFactory::new();
        flow.blocks.insert(0, State::entry());
        let mut open: BTreeSet<u32> = BTreeSet::from([0]);
        while let Some(at) = open.pop_first() {
            let Some(mut state) = flow.blocks.get(&at).cloned() else { continue };
            let mut before = Before::default();
            let mut next: Vec<(u32, State)> = Vec::new();
            for i in flow.instructions(at) {
                steps += 1;
                if steps > MAX_FLOW_STEPS {
                    return None;
                }
                let offset = flow.offset(i.ip());
                if offset != at && leaders.contains(&offset) {
                    next.push((offset, state));
                    break;
                }
                flow.step(&mut state, &i, &mut before, &mut info);
                let behind = flow.offset(i.next_ip());
                if before.call {
                    next.extend(flow.handlers_of(behind).map(|handler| (handler, state.clone().caught())));
                }
                let (targets, falls) = flow.successors(&i);
                let equal = before.equal.filter(|_| i.mnemonic() == Mnemonic::Jne);
                for target in targets {
                    let mut state = state.clone();
                    if let Some(sp) = equal.filter(|_| target == behind) {
                        state.registers[RSP] = Some(Held::Frame(sp));
                    }
                    next.push((target, state));
                }
                if !falls {
                    break;
                }
            }
            for (target, state) in next {
                match flow.blocks.get_mut(&target) {
                    None => {
                        flow.blocks.insert(target, state);
                        open.insert(target);
                    }
                    Some(there) => {
                        if there.merge(&state, target) {
                            open.insert(target);
                        }
                    }
                }
            }
        }
        Some(flow)
    }

    /// The offsets at which code goes on when an exception ends the call that returns to offset `behind`.
    fn handlers_of(&self, behind: u32) -> impl Iterator<Item = u32> {
        let inside = |o: &u32| (*o as usize) < self.code.len();
        let from = self.handlers.partition_point(|(call, _)| *call < behind);
        let rest = self.handlers.get(from..).unwrap_or_default().iter();
        rest.take_while(move |(call, _)| *call == behind).map(|(_, handler)| *handler).filter(inside)
    }

    /// Applies one instruction to `state` and `before`.
    fn step(&self, state: &mut State, i: &Instruction, before: &mut Before, info: &mut InstructionInfoFactory) {
        state.step(i, before.call && !self.winch, info);
        before.call = is_call(i);
        if before.call && self.winch {
            state.lose_all();
        }
        if before.call && self.callees_pop {
            state.count_from(self.offset(i.next_ip()));
        }
        // The loop of stack probes ends when rsp equals the register that it is compared with.
        if i.mnemonic() == Mnemonic::Cmp {
            let held = |n: u32| number(i.op_register(n)).filter(|_| i.op_kind(n) == OpKind::Register);
            before.equal = match (held(0), held(1)) {
                (Some(RSP), Some(other)) | (Some(other), Some(RSP)) => match state.registers[other] {
                    Some(Held::Frame(at)) => Some(at),
                    _ => None,
                },
                _ => None,
            };
        }
    }

    fn offset(&self, address: u64) -> u32 {
        u32::try_from(address.wrapping_sub(self.start)).unwrap_or(u32::MAX)
    }

    fn instructions(&self, at: u32) -> impl Iterator<Item = Instruction> {
        let rest = self.code.get(at as usize..).unwrap_or_default();
        let ip = self.start.wrapping_add(at.into());
        Decoder::with_ip(64, rest, ip, DecoderOptions::NONE).into_iter().take_while(|i| !i.is_invalid())
    }

    /// Where control can go from an instruction inside of the function: the targets of jumps, and whether it simply
    /// goes on to the next instruction. A conditional jump ends the block, so that the code after it has a state of
    /// its own.
    fn successors(&self, i: &Instruction) -> (Vec<u32>, bool) {
        let inside = |address: u64| Some(self.offset(address)).filter(|o| (*o as usize) < self.code.len());
        match i.flow_control() {
            FlowControl::ConditionalBranch => {
                let both = [inside(i.near_branch_target()), inside(i.next_ip())];
                (both.into_iter().flatten().collect(), false)
            }
            FlowControl::UnconditionalBranch => (inside(i.near_branch_target()).into_iter().collect(), false),
            FlowControl::IndirectBranch => (self.jump_table(self.offset(i.next_ip())), false),
            FlowControl::Return | FlowControl::Exception | FlowControl::Interrupt => (Vec::new(), false),
            _ => (Vec::new(), true),
        }
    }

    /// The targets in a table of 32-bit distances that stands right behind its jump (cranelift: `JmpTableSeq`). The
    /// table ends at the latest where the first of its targets begins.
    fn jump_table(&self, table: u32) -> Vec<u32> {
        let mut out = BTreeSet::new();
        let mut end = self.code.len();
        let mut at = table as usize;
        while at + 4 <= end {
            let Some(word) = self.code.get(at..at + 4).and_then(|b| b.try_into().ok()) else { break };
            let Some(target) = i64::from(table).checked_add(i32::from_le_bytes(word).into()) else { break };
            let Some(target) = u32::try_from(target).ok().filter(|t| (*t as usize) < self.code.len()) else { break };
            if target > table {
                end = end.min(target as usize);
            }
            out.insert(target);
            at += 4;
        }
        out.into_iter().collect()
    }

    fn leaders(&self) -> BTreeSet<u32> {
        let mut leaders = BTreeSet::from([0]);
        let mut seen = vec![false; self.code.len()];
        let mut open = vec![0u32];
        while let Some(at) = open.pop() {
            for i in self.instructions(at) {
                let offset = self.offset(i.ip());
                match seen.get_mut(offset as usize) {
                    Some(seen) if !*seen => *seen = true,
                    _ => break,
                }
                let (mut targets, falls) = self.successors(&i);
                if is_call(&i) {
                    targets.extend(self.handlers_of(self.offset(i.next_ip())));
                }
                for target in targets {
                    leaders.insert(target);
                    open.push(target);
                }
                if !falls {
                    break;
                }
            }
        }
        leaders
    }

    /// How callers are found from each instruction on: offsets and changes, ascending. Code that no path leads to is
    /// treated like the last call before it (if there is none, the rules before it go on). Stops when there are more
    /// than `most` changes.
    pub fn changes(&self, most: usize) -> Vec<(u32, FrameChange)> {
        let (mut out, mut last) = (vec![(0, FrameChange::Cfa(x64::RSP, 8))], AT_START);
        let mut body = None;
        let mut info = InstructionInfoFactory::new();
        let mut blocks = self.blocks.iter().peekable();
        while let Some((&at, state)) = blocks.next() {
            let end = blocks.peek().map_or(u32::MAX, |(next, _)| **next);
            let (mut state, mut before) = (state.clone(), Before::default());
            for i in self.instructions(at) {
                let offset = self.offset(i.ip());
                if offset >= end {
                    break;
                }
                let rules = state.rules().unwrap_or_else(|| without_caller(&last));
                change(&mut out, &mut last, offset, rules);
                if out.len() > most {
                    return out;
                }
                self.step(&mut state, &i, &mut before, &mut info);
                if before.call {
                    body = Some(last);
                }
                if !self.successors(&i).1 {
                    let behind = self.offset(i.next_ip());
                    if let Some(body) = body.filter(|_| behind < end && (behind as usize) < self.code.len()) {
                        change(&mut out, &mut last, behind, body);
                    }
                    break;
                }
            }
        }
        out
    }

    /// What is known at `at`. `None` if no path leads there that could be followed.
    pub fn at(&self, at: CodeAddress) -> Option<Facts> {
        let raw = u32::try_from(at.raw().checked_sub(self.start)?).ok()?;
        let looked = u32::try_from(at.lookup().checked_sub(self.start)?).ok()?;
        let (&block, state) = self.blocks.range(..=looked).next_back()?;
        let mut state = state.clone();
        let mut info = InstructionInfoFactory::new();
        let mut last = Before::default();
        for i in self.instructions(block) {
            let offset = self.offset(i.ip());
            if !at.is_return() && offset == raw {
                return Some(Facts { state, calling: None, restores_sp: !self.winch, winch: self.winch });
            }
            if offset > looked {
                return None;
            }
            let before = (at.is_return() && self.offset(i.next_ip()) == raw && is_call(&i)).then(|| (state.clone(), i));
            self.step(&mut state, &i, &mut last, &mut info);
            if before.is_some() {
                return Some(Facts { state, calling: before, restores_sp: !self.winch, winch: self.winch });
            }
            if !self.successors(&i).1 {
                return None;
            }
        }
        None
    }
}

/// What is known of the instructions before.
#[derive(Default)]
struct Before {
    call: bool,
    /// What rsp is if the operands of the last comparison are equal, as the distance of a [`Held::Frame`].
    equal: Option<i64>,
}

fn is_call(i: &Instruction) -> bool {
    matches!(i.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}

#[cfg(test)]
mod tests;
