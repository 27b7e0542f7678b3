//! What the code of one function does to its frame, followed along all of its branches.
//!
//! This tells for each instruction how far rsp has moved, whether rbp is a frame pointer, and where the caller's values of
//! the registers are kept.

use super::code::{general, writes};
use super::registers::{R11, R12, R13, R14, R15, RBP, RBX, RSP};
use crate::arch::{CodeAddress, Reg};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// The registers that a function gives back to its caller with the values that they had.
pub const KEPT: [Reg; 6] = [RBX, RBP, R12, R13, R14, R15];
/// The place of rbp in `KEPT`.
const FRAME: usize = 1;

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The value is still in the register.
    Same,
    /// The value is in the word at this distance in bytes from the return address.
    At(i64),
    /// The value is lost, or nobody knows where it is.
    Lost,
}

/// What is known of the frame before an instruction. Distances are in bytes from the word with the return address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// How far rsp is from that word, if that is known.
    pub sp: Option<i64>,
    /// The distance of the place that rbp points to, if rbp is a frame pointer.
    pub frame: Option<i64>,
    /// The distance of the place that r11 points to. The loops that touch each page of a large frame move rsp down to
    /// it.
    r11: Option<i64>,
    /// Where the caller's value of each register of [`KEPT`] is.
    pub kept: [Kept; 6],
    /// Whether only a jump through a table may lead to this instruction.
    pub guessed: bool,
}

fn kept_index(register: Register) -> Option<usize> {
    let reg = general(register).filter(|_| register.is_gpr64())?;
    KEPT.iter().position(|r| *r == reg)
}

impl State {
    fn entry() -> State {
        State { sp: Some(0), frame: None, r11: None, kept: [Kept::Same; 6], guessed: false }
    }

    fn same_frame(&self, other: &State) -> bool {
        self.sp == other.sp && self.frame == other.frame
    }

    /// Keeps only what `other`, the state of another way to the same place, says as well. Returns whether anything
    /// was lost.
    fn join(&mut self, other: &State) -> bool {
        let before = self.clone();
        self.sp = self.sp.filter(|_| self.sp == other.sp);
        self.frame = self.frame.filter(|_| self.frame == other.frame);
        self.r11 = self.r11.filter(|_| self.r11 == other.r11);
        for (mine, theirs) in self.kept.iter_mut().zip(other.kept) {
            if *mine != theirs {
                *mine = Kept::Lost;
            }
        }
        *self != before
    }

    /// The distance of the place that a memory operand names, if it is in the frame.
    fn slot(&self, i: &Instruction) -> Option<i64> {
        if i.memory_index() != Register::None {
            return None;
        }
        let base = match i.memory_base() {
            Register::RSP => self.sp?,
            Register::RBP => self.frame?,
            _ => return None,
        };
        base.checked_add(i.memory_displacement64().cast_signed())
    }

    fn save(&mut self, register: Register, at: Option<i64>) {
        if let (Some(n), Some(at)) = (kept_index(register), at)
            && let Some(kept @ Kept::Same) = self.kept.get_mut(n)
            && at < 0
        {
            // An rbp that points into the frame does not hold the caller's value.
            if n != FRAME || self.frame.is_none() {
                *kept = Kept::At(at);
            }
        }
    }

    /// `register` is read back from distance `at` in the frame.
    fn load(&mut self, register: Register, at: Option<i64>) {
        let Some(n) = kept_index(register) else { return self.overwrite(register) };
        let back = at.is_some_and(|at| self.kept.get(n) == Some(&Kept::At(at)));
        if back {
            if let Some(kept) = self.kept.get_mut(n) {
                *kept = Kept::Same;
            }
            if n == FRAME {
                self.frame = None;
            }
        } else {
            self.overwrite(register);
        }
    }

    fn overwrite(&mut self, register: Register) {
        match general(register) {
            Some(RSP) => self.sp = None,
            Some(R11) => self.r11 = None,
            Some(reg) => {
                if let Some(n) = KEPT.iter().position(|r| *r == reg) {
                    if n == FRAME {
                        self.frame = None;
                    }
                    if let Some(kept @ Kept::Same) = self.kept.get_mut(n) {
                        *kept = Kept::Lost;
                    }
                }
            }
            None => {}
        }
    }

    /// Follows one instruction that is no call.
    fn step(&mut self, i: &Instruction, info: &mut InstructionInfoFactory) {
        let is_reg = |n: u32| i.op_kind(n) == OpKind::Register;
        let reg = |n: u32| i.op_register(n);
        let constant =
            |n: u32| (!matches!(i.op_kind(n), OpKind::Register | OpKind::Memory)).then(|| i.immediate(n).cast_signed());
        let two = i.op_count() == 2;
        match i.mnemonic() {
            Mnemonic::Push => {
                self.sp = self.sp.and_then(|sp| sp.checked_add(i.stack_pointer_increment().into()));
                if is_reg(0) {
                    self.save(reg(0), self.sp);
                }
            }
            Mnemonic::Pop if is_reg(0) && reg(0) != Register::RSP => {
                self.load(reg(0), self.sp);
                self.sp = self.sp.and_then(|sp| sp.checked_add(i.stack_pointer_increment().into()));
            }
            Mnemonic::Leave => {
                let frame = self.frame;
                self.load(Register::RBP, frame);
                self.sp = frame.and_then(|f| f.checked_add(8));
            }
            Mnemonic::Mov if two && reg(0) == Register::RBP && reg(1) == Register::RSP => {
                self.overwrite(Register::RBP);
                self.frame = self.sp;
            }
            Mnemonic::Mov if two && reg(0) == Register::RSP && reg(1) == Register::RBP => self.sp = self.frame,
            Mnemonic::Mov if two && is_reg(1) && i.op_kind(0) == OpKind::Memory => self.save(reg(1), self.slot(i)),
            Mnemonic::Mov if two && is_reg(0) && i.op_kind(1) == OpKind::Memory => {
                let at = self.slot(i);
                self.load(reg(0), at);
            }
            Mnemonic::Lea if is_reg(0) => {
                let at = self.slot(i);
                self.overwrite(reg(0));
                match reg(0) {
                    Register::RSP => self.sp = at,
                    Register::RBP => self.frame = at,
                    Register::R11 => self.r11 = at,
                    _ => {}
                }
            }
            Mnemonic::Add | Mnemonic::Sub if two && reg(0) == Register::RSP => {
                let change =
                    constant(1).and_then(|n| if i.mnemonic() == Mnemonic::Sub { n.checked_neg() } else { Some(n) });
                self.sp = self.sp.zip(change).and_then(|(sp, n)| sp.checked_add(n));
            }
            _ => {
                if i.flow_control() == FlowControl::Return {
                    return;
                }
                for used in info.info(i).used_registers() {
                    if writes(used.access()) {
                        self.overwrite(used.register());
                    }
                }
            }
        }
    }
}

/// What was found out about one function by following it.
#[derive(Debug)]
pub struct Body {
    /// The state before each instruction, by the address of the instruction.
    pub states: BTreeMap<u64, State>,
    /// The state before each call, by the address behind the call.
    calls: BTreeMap<u64, State>,
    /// The addresses outside of the code that jumps lead to. If there is a jump through a register or a table, also
    /// the addresses that the code takes, because the jump may lead there.
    pub leaves: BTreeSet<u64>,
}

/// How sure it is that a way through the code is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The code takes this way.
    Sure,
    /// The way goes on behind a call, which perhaps does not return. Any other way that leads to the same place knows
    /// better.
    AfterCall,
    /// The way begins behind the end of another way, where perhaps a jump through a table leads. All other ways know
    /// better.
    ByTable,
}

struct Follower<'c> {
    start: u64,
    code: &'c [u8],
    body: Body,
    sure: Vec<(u64, State)>,
    after_call: BTreeMap<u64, State>,
    /// The state at the jumps through tables, as far as all of them agree.
    by_table: Option<State>,
    /// The addresses at which code goes on behind the end of a way.
    gaps: BTreeSet<u64>,
    /// Behind this address another function may begin, so jumps through tables are not expected to lead there.
    limit: u64,
    /// The addresses that the code computes with `lea`.
    taken: BTreeSet<u64>,
    /// How many more instructions may be followed.
    left: &'c Cell<usize>,
    info: InstructionInfoFactory,
}

impl Follower<'_> {
    /// Follows the code from `at` to the end of the way. `None` if no more instructions may be followed.
    fn go(&mut self, mut at: u64, mut state: State, mut way: Way) -> Option<()> {
        let end = self.start.checked_add(self.code.len() as u64)?;
        let mut compared = false;
        loop {
            if way == Way::ByTable && at >= self.limit {
                return Some(());
            }
            match self.body.states.get_mut(&at) {
                None => _ = self.body.states.insert(at, state.clone()),
                Some(known) => {
                    let believed = match way {
                        Way::Sure => true,
                        Way::AfterCall => known.same_frame(&state),
                        Way::ByTable => false,
                    };
                    if !believed || !known.join(&state) {
                        return Some(());
                    }
                    state = known.clone();
                }
            }
            if way == Way::AfterCall {
                way = Way::Sure;
            }
            self.left.set(self.left.get().checked_sub(1)?);
            let Some(rest) = at.checked_sub(self.start).and_then(|n| self.code.get(n as usize..)) else {
                return Some(());
            };
            let i = Decoder::with_ip(64, rest, at, DecoderOptions::NONE).decode();
            if i.is_invalid() {
                return Some(());
            }
            let next = i.next_ip();
            let control = i.flow_control();
            if matches!(control, FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch) {
                let target = i.near_branch_target();
                if !(self.start..end).contains(&target) {
                    self.body.leaves.insert(target);
                } else if way == Way::Sure {
                    self.sure.push((target, state.clone()));
                } else if !self.body.states.contains_key(&target) {
                    self.gaps.insert(target);
                }
            }
            match control {
                // `call next; pop reg` is how code learns its own address. Nothing returns, and a word stays on the
                // stack.
                FlowControl::Call if i.near_branch_target() == next => {
                    state.sp = state.sp.and_then(|sp| sp.checked_sub(8));
                }
                FlowControl::Call | FlowControl::IndirectCall => {
                    self.body.calls.insert(next, state.clone());
                    if way == Way::Sure {
                        self.after_call.insert(next, state);
                        return Some(());
                    }
                }
                // `cmp rsp, r11; jne` leads back to the start of a loop: behind the loop both registers are equal.
                FlowControl::ConditionalBranch => {
                    if compared && i.mnemonic() == Mnemonic::Jne && i.near_branch_target() < at {
                        state.sp = state.r11;
                    }
                }
                FlowControl::UnconditionalBranch | FlowControl::Return | FlowControl::Exception => {
                    self.gaps.insert(next);
                    return Some(());
                }
                FlowControl::IndirectBranch => {
                    match &mut self.by_table {
                        Some(all) => _ = all.join(&state),
                        None => self.by_table = Some(state),
                    }
                    self.gaps.insert(next);
                    return Some(());
                }
                _ => {
                    if i.mnemonic() == Mnemonic::Lea && i.is_ip_rel_memory_operand() {
                        self.taken.insert(i.ip_rel_memory_address());
                    }
                    state.step(&i, &mut self.info);
                }
            }
            compared =
                i.mnemonic() == Mnemonic::Cmp && (i.op0_register(), i.op1_register()) == (Register::RSP, Register::R11);
            at = next;
        }
    }
}

impl Body {
    /// Follows the function at `start`, where `code` begins. If `whole`, `code` ends with the function; otherwise it
    /// may hold more. `None` if the function has more instructions than are `left`.
    pub fn follow(start: u64, code: &[u8], whole: bool, left: &Cell<usize>) -> Option<Body> {
        let end = start.checked_add(code.len() as u64)?;
        let mut follower = Follower {
            start,
            code,
            body: Body { states: BTreeMap::new(), calls: BTreeMap::new(), leaves: BTreeSet::new() },
            sure: vec![(start, State::entry())],
            after_call: BTreeMap::new(),
            by_table: None,
            gaps: BTreeSet::new(),
            limit: if whole { end } else { start },
            taken: BTreeSet::new(),
            left,
            info: InstructionInfoFactory::new(),
        };
        loop {
            if let Some((at, state)) = follower.sure.pop() {
                follower.go(at, state, Way::Sure)?;
            } else if let Some((at, state)) = follower.after_call.pop_first() {
                follower.go(at, state, Way::AfterCall)?;
            } else if let Some(state) = follower.by_table.clone()
                && let Some(at) = follower.gaps.pop_first()
            {
                // The function reaches at least as far as the last instruction that is certain to belong to it.
                let sure = follower.body.states.iter().rev().find(|(_, state)| !state.guessed);
                follower.limit = follower.limit.max(sure.map_or(start, |(at, _)| *at));
                if at < follower.limit && !follower.body.states.contains_key(&at) {
                    follower.go(at, State { guessed: true, ..state }, Way::ByTable)?;
                }
            } else {
                if follower.by_table.is_some() {
                    follower.body.leaves.append(&mut follower.taken);
                }
                return Some(follower.body);
            }
        }
    }

    /// The state at `address`, if the code leads there.
    pub fn at(&self, address: CodeAddress) -> Option<&State> {
        match address {
            CodeAddress::Return(pc) => self.calls.get(&pc),
            CodeAddress::Exact(pc) => self.states.get(&pc),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_bytes_end_without_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..96)) {
            let _ = Body::follow(0x40_1000, &bytes, true, &Cell::new(1000));
            let _ = Body::follow(u64::MAX - 8, &bytes, false, &Cell::new(1000));
        }
    }
}
