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

use super::chain::Call;
use crate::arch::x64::GENERAL;
use crate::arch::{CodeAddress, Reg, Registers, x64};
use crate::limits::{MAX_FLOW_BYTES, MAX_FLOW_STEPS};
use crate::process::Memory;
use crate::unwind::FrameChange;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use std::collections::{BTreeMap, BTreeSet};

const RSP: usize = 4;
const RBP: usize = 5;

/// What a register or a word of the frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The value that this register had when the function was entered.
    Entry(Reg),
    /// The address that the function returns to.
    Return,
    /// The word at this offset from the function's own instance: `Entry(RDI)`.
    Loaded(i64),
    /// The stack pointer at the function's entry plus this many bytes, or the stack pointer at another instruction
    /// plus some bytes: see [`since`].
    Frame(i64),
}

/// Where it is not known how far the stack pointer at an instruction is from the one at the entry, distances are
/// counted from that instruction. Each such instruction has a range of numbers of its own, and the ranges are this
/// far apart.
const SINCE: i64 = 1 << 40;

/// The number that stands for the stack pointer at the instruction at this offset.
fn since(offset: u32) -> i64 {
    (i64::from(offset) + 1) * SINCE
}

/// Number of the range that a distance belongs to, which tells the instruction whose stack pointer it counts from. 0
/// is the entry's.
fn base(at: i64) -> i64 {
    at.saturating_add(SINCE / 2) >> SINCE.trailing_zeros()
}

/// What each register and each word of the frame holds before an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    registers: [Option<Held>; 16],
    /// What words of the frame hold, by their distance in bytes from the stack pointer at the entry.
    slots: BTreeMap<i64, Held>,
}

fn number(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number()).filter(|n| *n < GENERAL.len())
}

impl State {
    fn entry() -> State {
        let registers = std::array::from_fn(|i| match i {
            RSP => Some(Held::Frame(0)),
            i => Some(Held::Entry(GENERAL[i])),
        });
        State { registers, slots: BTreeMap::from([(0, Held::Return)]) }
    }

    /// The state after an exception ended a call: rsp and rbp are put back, the other registers may hold anything.
    fn caught(mut self) -> State {
        self.lose_all();
        self
    }

    /// Forgets all registers but rsp and rbp, which may hold anything now: functions that Winch compiled keep no
    /// other register for their callers.
    fn lose_all(&mut self) {
        for (i, held) in self.registers.iter_mut().enumerate() {
            if i != RSP && i != RBP {
                *held = None;
            }
        }
    }

    /// What a register holds.
    pub fn register(&self, reg: Reg) -> Option<Held> {
        GENERAL.iter().position(|r| *r == reg).and_then(|i| self.registers[i])
    }

    /// Keeps only what is the same in both states, and returns whether something was lost. Where the stack pointers
    /// differ, the stack pointer is counted from the instruction at `here` on.
    fn merge(&mut self, other: &State, here: u32) -> bool {
        let mut lost = false;
        for (i, (mine, theirs)) in self.registers.iter_mut().zip(&other.registers).enumerate() {
            if mine.is_some() && mine != theirs {
                let after = (i == RSP).then(|| Held::Frame(since(here)));
                lost |= *mine != after;
                *mine = after;
            }
        }
        let before = self.slots.len();
        self.slots.retain(|at, held| other.slots.get(at) == Some(held));
        lost || before != self.slots.len()
    }

    fn sp(&self) -> Option<i64> {
        match self.registers[RSP] {
            Some(Held::Frame(at)) => Some(at),
            _ => None,
        }
    }

    /// Counts the stack pointer from the instruction at `here` on. Distances that were counted from this instruction
    /// when an earlier pass came here are forgotten.
    fn count_from(&mut self, here: u32) {
        let stale = |at: i64| base(at) == base(since(here));
        self.slots.retain(|at, _| !stale(*at));
        for held in &mut self.registers {
            *held = held.filter(|held| !matches!(held, Held::Frame(at) if stale(*at)));
        }
        self.registers[RSP] = Some(Held::Frame(since(here)));
    }

    /// Distance of a memory operand from the stack pointer at the entry, in bytes, if the operand is a word of the
    /// frame.
    fn frame_slot(&self, i: &Instruction) -> Option<i64> {
        if i.memory_index() != Register::None {
            return None;
        }
        match self.registers[number(i.memory_base())?] {
            Some(Held::Frame(at)) if i.memory_base().is_gpr64() => {
                at.checked_add(i.memory_displacement64().cast_signed())
            }
            _ => None,
        }
    }

    fn forget_slots(&mut self, at: i64, bytes: usize) {
        let end = at.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
        while let Some((&slot, _)) = self.slots.range(at.saturating_sub(7)..end).next() {
            self.slots.remove(&slot);
        }
    }

    fn store(&mut self, at: i64, held: Option<Held>) {
        self.forget_slots(at, 8);
        if let Some(held) = held {
            self.slots.insert(at, held);
        }
    }

    fn load(&self, i: &Instruction) -> Option<Held> {
        if let Some(at) = self.frame_slot(i) {
            return self.slots.get(&at).copied();
        }
        let base = number(i.memory_base())?;
        let plain = i.memory_index() == Register::None && i.segment_prefix() == Register::None;
        let instance = self.registers[base] == Some(Held::Entry(x64::RDI)) && i.memory_base().is_gpr64();
        (plain && instance).then(|| Held::Loaded(i.memory_displacement64().cast_signed()))
    }

    /// Applies one instruction. `popped` says that the callee of the call before took its arguments off the stack: a
    /// `sub` from rsp then only makes room for them again.
    fn step(&mut self, i: &Instruction, popped: bool, info: &mut InstructionInfoFactory) {
        let reg = |n: u32| number(i.op_register(n));
        let is_reg = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_gpr64();
        let is_memory = |n: u32| i.op_kind(n) == OpKind::Memory;
        match i.mnemonic() {
            Mnemonic::Mov if is_reg(0) && is_reg(1) => {
                if let (Some(to), Some(from)) = (reg(0), reg(1)) {
                    self.registers[to] = self.registers[from];
                }
                return;
            }
            Mnemonic::Mov if is_reg(0) && is_memory(1) => {
                let held = self.load(i);
                if let Some(to) = reg(0) {
                    self.registers[to] = held;
                }
                return;
            }
            Mnemonic::Mov if is_memory(0) && is_reg(1) => {
                if let (Some(at), Some(from)) = (self.frame_slot(i), reg(1)) {
                    self.store(at, self.registers[from]);
                    return;
                }
            }
            Mnemonic::Push if is_reg(0) => {
                let (held, sp) = (reg(0).and_then(|r| self.registers[r]), self.sp());
                if let Some(at) = sp.and_then(|sp| sp.checked_sub(8)) {
                    self.store(at, held);
                    self.registers[RSP] = Some(Held::Frame(at));
                    return;
                }
            }
            // This ends the frame, even where rsp is not known.
            Mnemonic::Pop | Mnemonic::Leave if i.op0_register() == Register::RBP || i.mnemonic() == Mnemonic::Leave => {
                let frame = match self.registers[RBP] {
                    Some(Held::Frame(at)) => Some(at),
                    _ => self.sp().filter(|_| i.mnemonic() == Mnemonic::Pop),
                };
                self.registers[RBP] = frame.and_then(|at| self.slots.get(&at).copied());
                self.registers[RSP] = frame.and_then(|at| at.checked_add(8)).map(Held::Frame);
                return;
            }
            Mnemonic::Pop if is_reg(0) && reg(0) != Some(RSP) => {
                if let (Some(sp), Some(to)) = (self.sp(), reg(0)) {
                    self.registers[to] = self.slots.get(&sp).copied();
                    self.registers[RSP] = sp.checked_add(8).map(Held::Frame);
                    return;
                }
            }
            Mnemonic::Lea if is_reg(0) && is_memory(1) => {
                let held = self.frame_slot(i).map(Held::Frame);
                if let Some(to) = reg(0) {
                    self.registers[to] = held;
                }
                return;
            }
            Mnemonic::Add | Mnemonic::Sub if is_reg(0) && !is_memory(1) && i.op_kind(1) != OpKind::Register => {
                let change = match i.mnemonic() {
                    Mnemonic::Sub if popped && reg(0) == Some(RSP) => Some(0),
                    Mnemonic::Sub => i.immediate(1).cast_signed().checked_neg(),
                    _ => Some(i.immediate(1).cast_signed()),
                };
                if let Some(to) = reg(0) {
                    self.registers[to] = match (self.registers[to], change) {
                        (Some(Held::Frame(at)), Some(change)) => at.checked_add(change).map(Held::Frame),
                        _ => None,
                    };
                }
                return;
            }
            _ => {}
        }
        if matches!(i.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            for (held, reg) in self.registers.iter_mut().zip(GENERAL) {
                if !reg.info().callee_saved && reg != x64::RSP {
                    *held = None;
                }
            }
            return;
        }
        let used = info.info(i);
        let writes = |access: OpAccess| {
            matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
        };
        for memory in used.used_memory().iter().filter(|m| writes(m.access())) {
            let base = number(memory.base()).and_then(|b| self.registers[b]);
            let Some(Held::Frame(at)) = base else { continue };
            match at.checked_add(memory.displacement().cast_signed()) {
                Some(at) if memory.index() == Register::None => self.forget_slots(at, memory.memory_size().size()),
                _ => self.slots.clear(),
            }
        }
        for register in used.used_registers().iter().filter(|r| writes(r.access())) {
            if let Some(n) = number(register.register()) {
                self.registers[n] = None;
            }
        }
    }

    /// The stack pointer at the function's entry, in a frame with these registers.
    pub fn entry_sp(&self, registers: &Registers) -> Option<u64> {
        // rbp is asked first because it does not move.
        [x64::RBP, x64::RSP].into_iter().find_map(|reg| match self.register(reg)? {
            Held::Frame(at) if base(at) == 0 => registers.get(reg)?.checked_add_signed(at.checked_neg()?),
            _ => None,
        })
    }

    /// Whether rbp is the frame pointer of this frame: the word at it is the caller's rbp, and the word above that is
    /// the return address.
    pub fn has_frame(&self) -> bool {
        let Some(Held::Frame(at)) = self.registers[RBP] else { return false };
        self.slots.get(&at) == Some(&Held::Entry(x64::RBP))
            && at.checked_add(8).and_then(|above| self.slots.get(&above)) == Some(&Held::Return)
    }

    /// Distance from the stack pointer up to rbp in bytes, if both are known to point into this frame.
    pub fn sp_to_rbp(&self) -> Option<i64> {
        let (Some(Held::Frame(sp)), Some(Held::Frame(rbp))) = (self.registers[RSP], self.registers[RBP]) else {
            return None;
        };
        (base(sp) == base(rbp)).then(|| rbp.checked_sub(sp)).flatten()
    }

    /// Address of a word of the frame, in a frame with these registers.
    fn address(&self, slot: i64, registers: &Registers) -> Option<u64> {
        if base(slot) == 0 {
            return self.entry_sp(registers)?.checked_add_signed(slot);
        }
        let sp = self.sp().filter(|sp| base(*sp) == base(slot))?;
        registers.sp()?.checked_add_signed(slot.checked_sub(sp)?)
    }

    /// How the caller is found at this instruction, in the form that debuggers are told it.
    fn rules(&self) -> Option<Rules> {
        // A slot is counted from rbp, which does not move, or else from rsp.
        let near = |slot: i64| {
            [(RBP, x64::RBP), (RSP, x64::RSP)].into_iter().find_map(|(n, reg)| match self.registers[n]? {
                Held::Frame(at) if base(at) == base(slot) => Some((reg, i32::try_from(slot.checked_sub(at)?).ok()?)),
                _ => None,
            })
        };
        let mut returns: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, held)| **held == Held::Return)
            .filter_map(|(slot, _)| Some((*slot, near(*slot)?)))
            .collect();
        // Of several copies of the return address, one with a copy of the caller's rbp in the same frame comes first.
        let beside = |slot: i64| self.slots.iter().any(|(a, h)| *h == Held::Entry(x64::RBP) && base(*a) == base(slot));
        returns.sort_by_key(|(slot, _)| !beside(*slot));
        let (slot, (reg, distance)) = *returns.first()?;
        let cfa = slot.checked_add(8)?;
        let of = |reg: Reg| {
            let number = GENERAL.iter().position(|r| *r == reg);
            if number.is_some_and(|n| self.registers[n] == Some(Held::Entry(reg))) {
                return FrameChange::Same(reg);
            }
            let saved = self.slots.iter().find(|(at, held)| **held == Held::Entry(reg) && base(**at) == base(slot));
            let saved = saved.and_then(|(at, _)| i32::try_from(at.checked_sub(cfa)?).ok());
            saved.map_or(FrameChange::Undefined(reg), |at| FrameChange::Saved(reg, at))
        };
        Some([
            FrameChange::Cfa(reg, distance.checked_add(8)?),
            RETURN,
            of(x64::RBP),
            of(x64::RBX),
            of(x64::R12),
            of(x64::R13),
            of(x64::R14),
            of(x64::R15),
        ])
    }

    /// The value that `held` stands for, in a frame with these registers. All places that should hold it are
    /// compared, and where they differ the result is `None`.
    pub fn find(&self, held: Held, registers: &Registers, memory: &dyn Memory) -> Option<u64> {
        self.places(held, registers, memory).map(|(value, _)| value)
    }

    /// Like [`State::find`], together with the address of the stack slot that the value was read from, if it has one.
    pub fn places(&self, held: Held, registers: &Registers, memory: &dyn Memory) -> Option<(u64, Option<u64>)> {
        let mut found: Option<(u64, Option<u64>)> = None;
        let in_registers = GENERAL
            .iter()
            .zip(&self.registers)
            .filter(|(_, h)| **h == Some(held))
            .filter_map(|(r, _)| Some((registers.get(*r)?, registers.saved_at(*r))));
        let in_slots = self.slots.iter().filter(|(_, h)| **h == held).filter_map(|(at, _)| {
            let address = self.address(*at, registers)?;
            Some((memory.read_u64(address).ok()?, Some(address)))
        });
        for (value, place) in in_registers.chain(in_slots) {
            match found {
                None => found = Some((value, place)),
                Some((other, _)) if other == value => {}
                Some(_) => return None,
            }
        }
        found
    }
}

/// How to find the CFA, the return address, rbp, and each other register that callees keep.
type Rules = [FrameChange; 8];

/// The return address is in the word below the CFA, wherever that is.
const RETURN: FrameChange = FrameChange::Saved(x64::RIP, -8);

/// The rules at a function's start.
const AT_START: Rules = [
    FrameChange::Cfa(x64::RSP, 8),
    RETURN,
    FrameChange::Same(x64::RBP),
    FrameChange::Same(x64::RBX),
    FrameChange::Same(x64::R12),
    FrameChange::Same(x64::R13),
    FrameChange::Same(x64::R14),
    FrameChange::Same(x64::R15),
];

/// Adds the rules that differ from `last`, as changes at `offset`.
fn change(out: &mut Vec<(u32, FrameChange)>, last: &mut Rules, offset: u32, rules: Rules) {
    out.extend(last.iter().zip(&rules).filter(|(old, new)| old != new).map(|(_, new)| (offset, *new)));
    *last = rules;
}

/// The rules `last` where the caller is not known.
fn without_caller(last: &Rules) -> Rules {
    last.map(|rule| if rule == RETURN { FrameChange::Undefined(x64::RIP) } else { rule })
}

/// How callers are found from each of the first instructions of a function on, up to and including the instruction at
/// offset `end`. `None` if the code up to there cannot be followed.
pub fn beginning(start: u64, code: &[u8], end: u32) -> Option<Vec<(u32, FrameChange)>> {
    let flow = Flow {
        start,
        code: code.to_vec(),
        winch: false,
        callees_pop: false,
        handlers: Vec::new(),
        blocks: BTreeMap::new(),
    };
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
    let flow = Flow {
        start,
        code: code.to_vec(),
        winch: false,
        callees_pop: false,
        handlers: Vec::new(),
        blocks: BTreeMap::new(),
    };
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
    /// At a return address: the state before the call, and the call.
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
mod tests {
    use super::*;
    use crate::unwind::testing::Pieces;
    use proptest::prelude::*;

    const START: u64 = 0x40_0000;

    fn registers(values: &[(Reg, u64)]) -> Registers {
        let mut out = Registers::unknown(crate::arch::Machine::X64);
        for (reg, value) in values {
            out.set(*reg, *value);
        }
        out
    }

    /// `push rbp; mov rbp, rsp; sub rsp, 0x20; mov [rsp + 8], rdi; mov rbx, rsi`
    const ENTRY: [u8; 16] =
        [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20, 0x48, 0x89, 0x7c, 0x24, 0x08, 0x48, 0x89, 0xf3];

    fn code(parts: &[&[u8]]) -> Flow {
        Flow::new(START, parts.concat(), Hints::default()).unwrap()
    }

    #[test]
    fn spills_and_moves_are_followed_over_a_call() {
        // call r11; then xor ebx, ebx; ret
        let flow = code(&[&ENTRY, &[0x41, 0xff, 0xd3], &[0x31, 0xdb], &[0xc3]]);
        let behind = flow.at(CodeAddress::Return(START + 19)).unwrap();
        assert!(behind.is_call());
        let sp = 0x7ffd_0000_1000;
        let memory = Pieces::default().word(sp + 8, 0x1234).word(sp + 0x20, 0x7ffd_0000_2000);
        let r = registers(&[(x64::RSP, sp), (x64::RBP, sp + 0x20), (x64::RBX, 0x5678)]);
        let find = |facts: &Facts, reg| facts.state.places(Held::Entry(reg), &r, &memory);
        assert_eq!(behind.state.entry_sp(&r), Some(sp + 0x28));
        assert_eq!(find(&behind, x64::RDI), Some((0x1234, Some(sp + 8))));
        assert_eq!(find(&behind, x64::RSI), Some((0x5678, None)));
        assert_eq!(find(&behind, x64::RBP), Some((0x7ffd_0000_2000, Some(sp + 0x20))));
        // The value that rbx had at the entry was overwritten and not saved.
        assert_eq!(find(&behind, x64::RBX), None);
        let later = flow.at(CodeAddress::Exact(START + 21)).unwrap();
        assert_eq!(find(&later, x64::RSI), None);
        // Memory that cannot be read gives no value.
        assert_eq!(behind.state.find(Held::Entry(x64::RDI), &r, &Pieces::default()), None);
        // An address between two instructions, and addresses outside of the function.
        assert!(flow.at(CodeAddress::Exact(START + 2)).is_none());
        assert!(flow.at(CodeAddress::Exact(START - 1)).is_none());
        assert!(flow.at(CodeAddress::Return(START + 1000)).is_none());
    }

    #[test]
    fn a_caller_that_is_not_known_in_one_block_is_known_in_the_next() {
        // test eax, eax; je +6; mov rsp, rax; nop; ud2; ret
        let unknown = [0x48, 0x89, 0xc4, 0x90, 0x0f, 0x0b];
        let flow = code(&[&[0x85, 0xc0], &[0x74, 0x06], &unknown, &[0xc3]]);
        let told: Vec<_> = flow.changes(100).into_iter().filter(|(offset, _)| *offset > 0).collect();
        assert_eq!(told[0], (7, FrameChange::Undefined(x64::RIP)), "{told:?}");
        assert_eq!(told[1], (10, FrameChange::Saved(x64::RIP, -8)), "{told:?}");
        assert_eq!(told.len(), 2, "{told:?}");
    }

    #[test]
    fn what_only_one_way_leaves_in_place_is_not_known_where_ways_meet() {
        // test eax, eax; je +3; mov rbx, rcx; nop
        let flow = code(&[&ENTRY, &[0x85, 0xc0], &[0x74, 0x03], &[0x48, 0x89, 0xcb], &[0x90, 0xc3]]);
        let sp = 0x7ffd_0000_1000;
        let r = registers(&[(x64::RSP, sp), (x64::RBP, sp + 0x20), (x64::RBX, 7)]);
        let rsi = |at: u64| {
            flow.at(CodeAddress::Exact(START + at)).unwrap().state.find(Held::Entry(x64::RSI), &r, &Pieces::default())
        };
        assert_eq!(rsi(18), Some(7));
        assert_eq!(rsi(20), Some(7));
        assert_eq!(rsi(23), None);
    }

    #[test]
    fn places_that_differ_are_none() {
        // This code has `mov [rsp + 0x10], rdi` as well.
        let flow = code(&[&ENTRY, &[0x48, 0x89, 0x7c, 0x24, 0x10], &[0x90, 0xc3]]);
        let facts = flow.at(CodeAddress::Exact(START + 22)).unwrap();
        let sp = 0x7ffd_0000_1000;
        let r = registers(&[(x64::RSP, sp), (x64::RBP, sp + 0x20)]);
        let with = |a, b| Pieces::default().words(sp + 8, &[a, b]);
        assert_eq!(facts.state.find(Held::Entry(x64::RDI), &r, &with(5, 5)), Some(5));
        assert_eq!(facts.state.find(Held::Entry(x64::RDI), &r, &with(5, 6)), None);
    }

    /// Each shape of the module's table that `tests/live/steps.rs` does not get from the hosts of this repository as well:
    /// a description, whether callees take 16 bytes off the stack, and the code.
    const SHAPES: &[(&str, bool, &str)] = &[
        (
            "Cranelift: room for 32 bytes more of arguments, then `ret 0x20`",
            false,
            "554889e54883ec204889e54c8b5c24204c891c244c8b5c24284c895c24084883ec3048895c24104c8964241831db48894d2848894d2048894d10488b5c24104c8b6424184883c4304889ec5dc22000",
        ),
        (
            "Cranelift: a tail call with fewer arguments",
            false,
            "554889e54883ec104c893c244d31ff4c8b3c244883c4104889ec5d488b0c2448894c24204883c420ffe2",
        ),
        (
            "Cranelift: a loop of stack probes",
            false,
            "554889e54c8b57084d8b52184981c2005000004939e277494989e34981eb005000004881ec00100000c70424000000004c39dc75ed4881c4005000004881ec0048000048899c240047000031db488b9c24004700004881c4004800004889ec5dc30f0b",
        ),
        (
            "Cranelift: two probes",
            false,
            "554889e54881ec00100000c70424000000004881ec00100000c70424000000004881c4002000004881ec102000004c89ac24002000004d31ed4c8bac24002000004881c4102000004889ec5dc3",
        ),
        (
            "Winch to 49: rsp lowered right behind a call",
            false,
            "554889e54c8b5f084d8b5b184983c3304939e377374989fe4883ec1048897c2408488934244883ec048904244883ec0ce8cbffffff4883c40c4c8b74240c4883ec044883c4084883c4105dc30f0b",
        ),
        (
            "Winch 50: a call that takes 16 bytes off, `ret 0x10`",
            true,
            "554889e54c8b5f084d8b5b184983c3304939e377254989fe4883ec1048897c2408488934244883ec20e8d2ffffff4883c4104883c4105dc210000f0b",
        ),
        (
            "Winch 50: a tail call with more arguments, behind a call that took 16 bytes off",
            true,
            "554889e54c8b5f084d8b5b184983c3304939e3774f4883ec1048897c2408e8ddffffff4883ec204883ec104c8b5d084c891c244c8b5d004c895c24084c8b5c24284c895d084c8b5c24204c895d004c8b1c244c895df84c8b5c2408488d65f84c89ddffe20f0b",
        ),
        (
            "Winch 50: a tail call without arguments",
            true,
            "554889e54c8b5f084d8b5b184983c3304939e3771e4883ec1048897c24084c8b5d084c895d184c8b5d00488d65184c89ddffe20f0b",
        ),
    ];

    /// A machine that can run the instructions of [`SHAPES`].
    struct Machine {
        registers: [u64; 16],
        memory: std::collections::HashMap<u64, u64>,
        equal: bool,
    }

    impl Machine {
        fn address(&self, i: &Instruction) -> u64 {
            self.registers[number(i.memory_base()).unwrap()].wrapping_add(i.memory_displacement64())
        }

        fn word(&self, address: u64) -> u64 {
            self.memory.get(&address).copied().unwrap_or(0x77)
        }

        /// Runs one instruction and returns the address of the next. `None` if the instruction leaves the function.
        /// `pop` is how many bytes a callee takes off the stack.
        fn run(&mut self, i: &Instruction, pop: u64) -> Option<u64> {
            let to = |n: u32| number(i.op_register(n)).unwrap();
            let source = |m: &Machine, n: u32| match i.op_kind(n) {
                OpKind::Register => m.registers[to(n)],
                OpKind::Memory => m.word(m.address(i)),
                _ => i.immediate(n),
            };
            match i.mnemonic() {
                Mnemonic::Push => {
                    self.registers[RSP] -= 8;
                    self.memory.insert(self.registers[RSP], self.registers[to(0)]);
                }
                Mnemonic::Pop => {
                    self.registers[to(0)] = self.word(self.registers[RSP]);
                    self.registers[RSP] += 8;
                }
                Mnemonic::Mov if i.op0_kind() == OpKind::Memory => {
                    let value = source(self, 1);
                    self.memory.insert(self.address(i), value);
                }
                Mnemonic::Mov => self.registers[to(0)] = source(self, 1),
                Mnemonic::Lea => self.registers[to(0)] = self.address(i),
                Mnemonic::Add => self.registers[to(0)] = self.registers[to(0)].wrapping_add(source(self, 1)),
                Mnemonic::Sub => self.registers[to(0)] = self.registers[to(0)].wrapping_sub(source(self, 1)),
                Mnemonic::Xor => self.registers[to(0)] = 0,
                Mnemonic::Cmp => self.equal = source(self, 0) == source(self, 1),
                Mnemonic::Jne if !self.equal => return Some(i.near_branch_target()),
                Mnemonic::Jne | Mnemonic::Ja => {}
                Mnemonic::Call => self.registers[RSP] += pop,
                Mnemonic::Ret | Mnemonic::Jmp => return None,
                other => panic!("{other:?}"),
            }
            Some(i.next_ip())
        }
    }

    #[test]
    fn every_shape_is_right_at_every_instruction() {
        for (what, pops, hex) in SHAPES {
            let code: Vec<u8> =
                hex.as_bytes().chunks(2).map(|d| u8::from_str_radix(str::from_utf8(d).unwrap(), 16).unwrap()).collect();
            let hints = Hints { winch_callees_pop: *pops, ..Hints::default() };
            let flow = Flow::new(START, code.clone(), hints).unwrap();
            let changes = flow.changes(usize::MAX);
            // The beginning, up to and including the last instruction that saves a register.
            let saves = Decoder::with_ip(64, &code, START, DecoderOptions::NONE).into_iter();
            let save = saves.filter(|i| i.mnemonic() == Mnemonic::Mov && i.memory_base() == Register::RSP).find(|i| {
                i.op0_kind() == OpKind::Memory
                    && matches!(i.op1_register(), Register::RBX | Register::R13 | Register::R15)
            });
            let first = save.map(|i| flow.offset(i.next_ip()));
            let begun = first.map(|end| (end, beginning(START, &code, end).unwrap()));
            let entry_sp = 0x7ffd_0000_8000;
            let mut machine = Machine {
                registers: std::array::from_fn(|i| 0x1000 + i as u64),
                memory: std::collections::HashMap::from([(entry_sp, 0x5555)]),
                equal: false,
            };
            machine.registers[RSP] = entry_sp;
            let mut ip = START;
            let mut asked = 0;
            loop {
                let at = format!("{what}: +{:#x}", ip - START);
                let registers =
                    registers(&GENERAL.iter().zip(machine.registers).map(|(r, v)| (*r, v)).collect::<Vec<_>>());
                let memory = machine.memory.iter().fold(Pieces::default(), |all, (a, v)| all.word(*a, *v));
                let state = flow.at(CodeAddress::Exact(ip)).unwrap().state;
                assert_eq!(state.find(Held::Return, &registers, &memory), Some(0x5555), "{at}");
                assert_eq!(state.entry_sp(&registers), Some(entry_sp), "{at}");
                for (i, reg) in GENERAL.into_iter().enumerate().filter(|(i, r)| r.info().callee_saved && *i != RSP) {
                    let found = state.find(Held::Entry(reg), &registers, &memory);
                    // Winch keeps no register but rbp for its caller, and need not.
                    let kept = reg == x64::RBP || !code.starts_with(&WINCH);
                    assert!(found == Some(0x1000 + i as u64) || (found.is_none() && !kept), "{at} {reg} {found:x?}");
                }
                let mut told = vec![&changes];
                told.extend(begun.iter().filter(|(end, _)| ip - START <= u64::from(*end)).map(|(_, c)| c));
                for changes in told {
                    let mut rules = AT_START;
                    for (_, change) in changes.iter().filter(|(from, _)| START + u64::from(*from) <= ip) {
                        match change {
                            FrameChange::Cfa(..) => rules[0] = *change,
                            FrameChange::Saved(x64::RBP, _) | FrameChange::Same(x64::RBP) => rules[2] = *change,
                            // The caller's rbp is in r11 only, and no rule can say that.
                            FrameChange::Undefined(x64::RBP)
                                if state.register(x64::R11) == Some(Held::Entry(x64::RBP)) =>
                            {
                                rules[2] = *change;
                            }
                            FrameChange::Undefined(x64::RIP | x64::RBP) => panic!("{at}: {change:?}"),
                            _ => {}
                        }
                    }
                    let FrameChange::Cfa(reg, by) = rules[0] else { panic!("{at}") };
                    let cfa = registers.get(reg).unwrap().wrapping_add_signed(by.into());
                    assert_eq!(machine.word(cfa - 8), 0x5555, "{at}: {changes:?}");
                    let rbp = match rules[2] {
                        FrameChange::Saved(_, at) => machine.word(cfa.wrapping_add_signed(at.into())),
                        FrameChange::Undefined(_) => 0x1000 + RBP as u64,
                        _ => machine.registers[RBP],
                    };
                    assert_eq!(rbp, 0x1000 + RBP as u64, "{at}: {changes:?}");
                }
                asked += 1;
                let i = Decoder::with_ip(64, &code[(ip - START) as usize..], ip, DecoderOptions::NONE).decode();
                match machine.run(&i, if *pops { 16 } else { 0 }) {
                    Some(next) => ip = next,
                    None => break,
                }
            }
            assert!(asked > 12, "{what}: {asked}");
        }
    }

    #[test]
    fn an_exception_goes_on_with_the_frame_and_nothing_else() {
        // The code is `ENTRY`, a call, a jump over the handler, the handler `nop; nop`, and `ret`.
        let code = [&ENTRY[..], &[0xe8, 0, 0, 0, 0], &[0xeb, 0x02], &[0x90, 0x90], &[0xc3]].concat();
        let at = (ENTRY.len() + 7) as u32;
        let behind = ENTRY.len() as u32 + 5;
        let without = Flow::new(START, code.clone(), Hints::default()).unwrap();
        assert!(without.at(CodeAddress::Exact(START + u64::from(at))).is_none());
        let with = Flow::new(START, code, Hints { handlers: vec![(behind, at)], ..Hints::default() }).unwrap();
        let facts = with.at(CodeAddress::Exact(START + u64::from(at))).unwrap();
        assert!(facts.state.has_frame());
        assert_eq!(facts.state.register(x64::RBX), None);
        assert_eq!(facts.state.sp_to_rbp(), Some(0x20));
    }

    #[test]
    fn too_much_code_is_refused() {
        assert!(Flow::new(START, Vec::new(), Hints::default()).is_none());
        assert!(Flow::new(START, vec![0x90; MAX_FLOW_BYTES + 1], Hints::default()).is_none());
        assert!(Flow::new(START, vec![0x90; MAX_FLOW_BYTES], Hints::default()).is_some());
    }

    #[test]
    fn a_way_that_is_followed_again_counts_again() {
        // The code fills most of `MAX_FLOW_STEPS`. A `jne` at its end leads back to behind its entry; before that
        // stands `nop; nop` or `xor ebx, ebx`. The latter changes the state, and so makes a second pass necessary.
        let body = vec![0x90; MAX_FLOW_STEPS * 6 / 10];
        let back = (-(body.len() as i32 + 2 + 6)).to_le_bytes();
        for (change, found) in [([0x90, 0x90], true), ([0x31, 0xdb], false)] {
            let code = [&ENTRY, &body[..], &change, &[0x0f, 0x85], &back, &[0xc3]].concat();
            assert!(code.len() <= MAX_FLOW_BYTES);
            assert_eq!(Flow::new(START, code, Hints::default()).is_some(), found);
        }
    }

    proptest! {
        /// Any bytes at any address with any registers come to an end, without a panic.
        #[test]
        fn any_code_ends(
            bytes in proptest::collection::vec(any::<u8>(), 1..300),
            tail in any::<bool>(),
            start in prop_oneof![Just(START), any::<u64>(), Just(u64::MAX - 10)],
            sp in any::<u64>(),
        ) {
            let bytes = if tail { [&ENTRY[..], &bytes].concat() } else { bytes };
            let len = bytes.len() as u64;
            if let Some(flow) = Flow::new(start, bytes, Hints::default()) {
                let r = registers(&[(x64::RSP, sp), (x64::RBP, sp.wrapping_add(0x20)), (x64::RBX, 3)]);
                for at in 0..len + 2 {
                    for address in [CodeAddress::Exact(start.wrapping_add(at)), CodeAddress::Return(start.wrapping_add(at))] {
                        let Some(facts) = flow.at(address) else { continue };
                        facts.call(start);
                        facts.state.entry_sp(&r);
                        for reg in [x64::RDI, x64::RSI, x64::RBX, x64::RBP] {
                            facts.state.places(Held::Entry(reg), &r, &Pieces::default());
                        }
                    }
                }
            }
        }
    }
}
