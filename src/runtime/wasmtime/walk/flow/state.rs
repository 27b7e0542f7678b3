//! What one instruction does to the registers and to the words of the frame, and how the caller is found from what they
//! hold.

use crate::arch::x64::GENERAL;
use crate::arch::{Reg, Registers, x64};
use crate::process::Memory;
use crate::unwind::FrameChange;
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use std::collections::BTreeMap;

pub(super) const RSP: usize = 4;
pub(super) const RBP: usize = 5;

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
    pub(super) registers: [Option<Held>; 16],
    /// What words of the frame hold, by their distance in bytes from the stack pointer at the entry.
    slots: BTreeMap<i64, Held>,
}

pub(super) fn number(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number()).filter(|n| *n < GENERAL.len())
}

impl State {
    pub(super) fn entry() -> State {
        let registers = std::array::from_fn(|i| match i {
            RSP => Some(Held::Frame(0)),
            i => Some(Held::Entry(GENERAL[i])),
        });
        State { registers, slots: BTreeMap::from([(0, Held::Return)]) }
    }

    /// The state after an exception ended a call: rsp and rbp are put back, the other registers may hold anything.
    pub(super) fn caught(mut self) -> State {
        self.lose_all();
        self
    }

    /// Forgets all registers but rsp and rbp, which may hold anything now: functions that Winch compiled keep no
    /// other register for their callers.
    pub(super) fn lose_all(&mut self) {
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
    pub(super) fn merge(&mut self, other: &State, here: u32) -> bool {
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
    pub(super) fn count_from(&mut self, here: u32) {
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

    pub(super) fn load(&self, i: &Instruction) -> Option<Held> {
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
    pub(super) fn step(&mut self, i: &Instruction, popped: bool, info: &mut InstructionInfoFactory) {
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
    pub(super) fn rules(&self) -> Option<Rules> {
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
pub(super) const AT_START: Rules = [
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
pub(super) fn change(out: &mut Vec<(u32, FrameChange)>, last: &mut Rules, offset: u32, rules: Rules) {
    out.extend(last.iter().zip(&rules).filter(|(old, new)| old != new).map(|(_, new)| (offset, *new)));
    *last = rules;
}

/// The rules `last` where the caller is not known.
pub(super) fn without_caller(last: &Rules) -> Rules {
    last.map(|rule| if rule == RETURN { FrameChange::Undefined(x64::RIP) } else { rule })
}
