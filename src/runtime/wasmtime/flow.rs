//! What compiled code does with the registers it was called with.
//!
//! Neither the compiler's tables nor the runtime's say where a function keeps its instance, and of an image without
//! `.eh_frame` nothing says where callee-saved registers are. Both follow from the code: a function gets its instance in
//! rdi and its caller's in rsi (`wasmtime-cranelift`: the first two parameters of every function and trampoline), and from
//! there each move, spill and reload can be followed. [`Flow`] does that on all paths at once: a place holds something at
//! an instruction only if it does on every way there.
//!
//! What is known at the end is what the code says, not what a table says. So a reader compares all places that should hold
//! the same value ([`State::find`]), and holds an instance against its module before it believes it.

use super::chain::Call;
use crate::arch::{CodeAddress, Reg, Registers};
use crate::limits::{MAX_FLOW_BYTES, MAX_FLOW_STEPS};
use crate::target::Memory;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use std::collections::{BTreeMap, BTreeSet};

/// General registers in the order of the machine's own numbers.
const GENERAL: [Reg; 16] = [
    Reg::RAX,
    Reg::RCX,
    Reg::RDX,
    Reg::RBX,
    Reg::RSP,
    Reg::RBP,
    Reg::RSI,
    Reg::RDI,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
    Reg::R12,
    Reg::R13,
    Reg::R14,
    Reg::R15,
];
const RSP: usize = 4;

/// What a place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// What this register had when the function was entered.
    Entry(Reg),
    /// The word at this offset from the function's own instance: `Entry(RDI)`.
    Loaded(i64),
    /// The stack pointer at the function's entry plus this.
    Frame(i64),
}

/// Where what is, before an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    registers: [Option<Held>; 16],
    /// Words of the frame, by their distance from the stack pointer at the entry.
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
        State { registers, slots: BTreeMap::new() }
    }

    /// What a register holds.
    pub fn register(&self, reg: Reg) -> Option<Held> {
        GENERAL.iter().position(|r| *r == reg).and_then(|i| self.registers[i])
    }

    /// Keeps what both have; whether something was lost.
    fn merge(&mut self, other: &State) -> bool {
        let mut lost = false;
        for (mine, theirs) in self.registers.iter_mut().zip(&other.registers) {
            if mine.is_some() && mine != theirs {
                *mine = None;
                lost = true;
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

    /// Distance of an operand from the stack pointer at the entry, if it is a word of the frame.
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
        let instance = self.registers[base] == Some(Held::Entry(Reg::RDI)) && i.memory_base().is_gpr64();
        (plain && instance).then(|| Held::Loaded(i.memory_displacement64().cast_signed()))
    }

    /// One instruction on. `popped`: the callee took its arguments off the stack, and this instruction makes room again.
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
            Mnemonic::Add | Mnemonic::Sub if is_reg(0) && reg(0) == Some(RSP) && i.op_kind(1) != OpKind::Register => {
                let change = match i.op_kind(1) {
                    OpKind::Memory => None,
                    _ if popped && i.mnemonic() == Mnemonic::Sub => Some(0),
                    _ if i.mnemonic() == Mnemonic::Sub => i.immediate(1).cast_signed().checked_neg(),
                    _ => Some(i.immediate(1).cast_signed()),
                };
                let sp = self.sp().zip(change).and_then(|(sp, change)| sp.checked_add(change));
                self.registers[RSP] = sp.map(Held::Frame);
                return;
            }
            _ => {}
        }
        if matches!(i.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            for (held, reg) in self.registers.iter_mut().zip(GENERAL) {
                if !reg.info().callee_saved && reg != Reg::RSP {
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

    /// The stack pointer at the function's entry.
    pub fn entry_sp(&self, registers: &Registers) -> Option<u64> {
        // rbp first: it does not move.
        [Reg::RBP, Reg::RSP].into_iter().find_map(|reg| match self.register(reg)? {
            Held::Frame(at) => registers.get(reg)?.checked_add_signed(at.checked_neg()?),
            _ => None,
        })
    }

    /// The value that `held` stands for, in a frame with these registers. All places that should have it are compared, and
    /// where they differ there is none.
    pub fn find(&self, held: Held, registers: &Registers, memory: &dyn Memory) -> Option<u64> {
        self.places(held, registers, memory).map(|(value, _)| value)
    }

    /// The same with the slot that it was read from, if it is in one only.
    pub fn places(&self, held: Held, registers: &Registers, memory: &dyn Memory) -> Option<(u64, Option<u64>)> {
        let mut found: Option<(u64, Option<u64>)> = None;
        let in_registers = GENERAL
            .iter()
            .zip(&self.registers)
            .filter(|(_, h)| **h == Some(held))
            .filter_map(|(r, _)| Some((registers.get(*r)?, registers.saved_at(*r))));
        let entry_sp = self.entry_sp(registers);
        let in_slots = self.slots.iter().filter(|(_, h)| **h == held).filter_map(|(at, _)| {
            let address = entry_sp?.checked_add_signed(*at)?;
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

/// What is known at one place of a function.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Before the instruction; of a caller: when its callee returns.
    pub state: State,
    /// Of a caller: before the call, and the call.
    calling: Option<(State, Instruction)>,
}

impl Facts {
    /// Whether this is the place behind a call.
    pub fn is_call(&self) -> bool {
        self.calling.is_some()
    }

    /// How the function that begins at `start` was called from here, if this is the caller.
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
        Call::new(state.register(Reg::RDI), target, direct)
    }
}

/// One function, followed from its entry.
#[derive(Debug)]
pub(super) struct Flow {
    start: u64,
    code: Vec<u8>,
    /// What is known where ways meet, by offset.
    blocks: BTreeMap<u32, State>,
}

impl Flow {
    /// The function in `code`, which is at `start`. `None`: too large, or too many ways through it.
    pub fn new(start: u64, code: Vec<u8>) -> Option<Flow> {
        if code.is_empty() || code.len() > MAX_FLOW_BYTES {
            return None;
        }
        let mut flow = Flow { start, code, blocks: BTreeMap::new() };
        let leaders = flow.leaders();
        let mut steps = 0usize;
        let mut info = InstructionInfoFactory::new();
        flow.blocks.insert(0, State::entry());
        let mut open: BTreeSet<u32> = BTreeSet::from([0]);
        while let Some(at) = open.pop_first() {
            let Some(mut state) = flow.blocks.get(&at).cloned() else { continue };
            let mut after = false;
            let mut next = Vec::new();
            for i in flow.instructions(at) {
                steps += 1;
                if steps > MAX_FLOW_STEPS {
                    return None;
                }
                let offset = flow.offset(i.ip());
                if offset != at && leaders.contains(&offset) {
                    next.push(offset);
                    break;
                }
                state.step(&i, after, &mut info);
                after = is_call(&i);
                let (targets, falls) = flow.successors(&i);
                next.extend(targets);
                if !falls {
                    break;
                }
            }
            for target in next {
                match flow.blocks.get_mut(&target) {
                    None => {
                        flow.blocks.insert(target, state.clone());
                        open.insert(target);
                    }
                    Some(there) => {
                        if there.merge(&state) {
                            open.insert(target);
                        }
                    }
                }
            }
        }
        Some(flow)
    }

    fn offset(&self, address: u64) -> u32 {
        u32::try_from(address.wrapping_sub(self.start)).unwrap_or(u32::MAX)
    }

    fn instructions(&self, at: u32) -> impl Iterator<Item = Instruction> {
        let rest = self.code.get(at as usize..).unwrap_or_default();
        let ip = self.start.wrapping_add(at.into());
        Decoder::with_ip(64, rest, ip, DecoderOptions::NONE).into_iter().take_while(|i| !i.is_invalid())
    }

    /// Where control goes from an instruction inside of the function: targets of jumps, and whether it goes on behind it.
    /// A jump ends the block, so that what follows it has a state of its own.
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

    /// The targets of a table of 32-bit distances right behind its jump (cranelift: `JmpTableSeq`). It ends where the first
    /// of its targets begins, at the latest.
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
                let (targets, falls) = self.successors(&i);
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

    /// What is known at `at`. `None`: no way leads there that could be followed.
    pub fn at(&self, at: CodeAddress) -> Option<Facts> {
        let raw = u32::try_from(at.raw().checked_sub(self.start)?).ok()?;
        let looked = u32::try_from(at.lookup().checked_sub(self.start)?).ok()?;
        let (&block, state) = self.blocks.range(..=looked).next_back()?;
        let mut state = state.clone();
        let mut info = InstructionInfoFactory::new();
        let mut after = false;
        for i in self.instructions(block) {
            let offset = self.offset(i.ip());
            if !at.is_return() && offset == raw {
                return Some(Facts { state, calling: None });
            }
            if offset > looked {
                return None;
            }
            let before = (at.is_return() && self.offset(i.next_ip()) == raw && is_call(&i)).then(|| (state.clone(), i));
            state.step(&i, after, &mut info);
            if before.is_some() {
                return Some(Facts { state, calling: before });
            }
            after = is_call(&i);
            if !self.successors(&i).1 {
                return None;
            }
        }
        None
    }
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
        let mut out = Registers::unknown();
        for (reg, value) in values {
            out.set(*reg, *value);
        }
        out
    }

    /// `push rbp; mov rbp, rsp; sub rsp, 0x20; mov [rsp + 8], rdi; mov rbx, rsi`
    const ENTRY: [u8; 16] =
        [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20, 0x48, 0x89, 0x7c, 0x24, 0x08, 0x48, 0x89, 0xf3];

    fn code(parts: &[&[u8]]) -> Flow {
        Flow::new(START, parts.concat()).unwrap()
    }

    #[test]
    fn spills_and_moves_are_followed_over_a_call() {
        // call r11; then xor ebx, ebx; ret
        let flow = code(&[&ENTRY, &[0x41, 0xff, 0xd3], &[0x31, 0xdb], &[0xc3]]);
        let behind = flow.at(CodeAddress::Return(START + 19)).unwrap();
        assert!(behind.is_call());
        let sp = 0x7ffd_0000_1000;
        let memory = Pieces::default().word(sp + 8, 0x1234).word(sp + 0x20, 0x7ffd_0000_2000);
        let r = registers(&[(Reg::RSP, sp), (Reg::RBP, sp + 0x20), (Reg::RBX, 0x5678)]);
        let find = |facts: &Facts, reg| facts.state.places(Held::Entry(reg), &r, &memory);
        assert_eq!(behind.state.entry_sp(&r), Some(sp + 0x28));
        assert_eq!(find(&behind, Reg::RDI), Some((0x1234, Some(sp + 8))));
        assert_eq!(find(&behind, Reg::RSI), Some((0x5678, None)));
        assert_eq!(find(&behind, Reg::RBP), Some((0x7ffd_0000_2000, Some(sp + 0x20))));
        // rbx is not kept for the caller: it was overwritten.
        assert_eq!(find(&behind, Reg::RBX), None);
        let later = flow.at(CodeAddress::Exact(START + 21)).unwrap();
        assert_eq!(find(&later, Reg::RSI), None);
        // A stack that cannot be read says nothing.
        assert_eq!(behind.state.find(Held::Entry(Reg::RDI), &r, &Pieces::default()), None);
        // Between instructions, and outside.
        assert!(flow.at(CodeAddress::Exact(START + 2)).is_none());
        assert!(flow.at(CodeAddress::Exact(START - 1)).is_none());
        assert!(flow.at(CodeAddress::Return(START + 1000)).is_none());
    }

    #[test]
    fn what_only_one_way_leaves_in_place_is_not_known_where_ways_meet() {
        // test eax, eax; je +3; mov rbx, rcx; nop
        let flow = code(&[&ENTRY, &[0x85, 0xc0], &[0x74, 0x03], &[0x48, 0x89, 0xcb], &[0x90, 0xc3]]);
        let sp = 0x7ffd_0000_1000;
        let r = registers(&[(Reg::RSP, sp), (Reg::RBP, sp + 0x20), (Reg::RBX, 7)]);
        let rsi = |at: u64| {
            flow.at(CodeAddress::Exact(START + at)).unwrap().state.find(Held::Entry(Reg::RSI), &r, &Pieces::default())
        };
        assert_eq!(rsi(18), Some(7));
        assert_eq!(rsi(20), Some(7));
        assert_eq!(rsi(23), None);
    }

    #[test]
    fn places_that_differ_are_none() {
        // mov [rsp + 0x10], rdi as well.
        let flow = code(&[&ENTRY, &[0x48, 0x89, 0x7c, 0x24, 0x10], &[0x90, 0xc3]]);
        let facts = flow.at(CodeAddress::Exact(START + 22)).unwrap();
        let sp = 0x7ffd_0000_1000;
        let r = registers(&[(Reg::RSP, sp), (Reg::RBP, sp + 0x20)]);
        let with = |a, b| Pieces::default().words(sp + 8, &[a, b]);
        assert_eq!(facts.state.find(Held::Entry(Reg::RDI), &r, &with(5, 5)), Some(5));
        assert_eq!(facts.state.find(Held::Entry(Reg::RDI), &r, &with(5, 6)), None);
    }

    #[test]
    fn too_much_code_is_refused() {
        assert!(Flow::new(START, Vec::new()).is_none());
        assert!(Flow::new(START, vec![0x90; MAX_FLOW_BYTES + 1]).is_none());
        assert!(Flow::new(START, vec![0x90; MAX_FLOW_BYTES]).is_some());
    }

    #[test]
    fn a_way_that_is_followed_again_counts_again() {
        // Most of a function; then `jne` back behind its entry, before that `nop; nop` or `xor ebx, ebx`: the latter makes
        // another state of it, and a second pass.
        let body = vec![0x90; MAX_FLOW_STEPS * 6 / 10];
        let back = (-(body.len() as i32 + 2 + 6)).to_le_bytes();
        for (change, found) in [([0x90, 0x90], true), ([0x31, 0xdb], false)] {
            let code = [&ENTRY, &body[..], &change, &[0x0f, 0x85], &back, &[0xc3]].concat();
            assert!(code.len() <= MAX_FLOW_BYTES);
            assert_eq!(Flow::new(START, code).is_some(), found);
        }
    }

    proptest! {
        /// Any bytes, at any address, with any registers: an end, and no panic.
        #[test]
        fn any_code_ends(
            bytes in proptest::collection::vec(any::<u8>(), 1..300),
            tail in any::<bool>(),
            start in prop_oneof![Just(START), any::<u64>(), Just(u64::MAX - 10)],
            sp in any::<u64>(),
        ) {
            let bytes = if tail { [&ENTRY[..], &bytes].concat() } else { bytes };
            let len = bytes.len() as u64;
            if let Some(flow) = Flow::new(start, bytes) {
                let r = registers(&[(Reg::RSP, sp), (Reg::RBP, sp.wrapping_add(0x20)), (Reg::RBX, 3)]);
                for at in 0..len + 2 {
                    for address in [CodeAddress::Exact(start.wrapping_add(at)), CodeAddress::Return(start.wrapping_add(at))] {
                        let Some(facts) = flow.at(address) else { continue };
                        facts.call(start);
                        facts.state.entry_sp(&r);
                        for reg in [Reg::RDI, Reg::RSI, Reg::RBX, Reg::RBP] {
                            facts.state.places(Held::Entry(reg), &r, &Pieces::default());
                        }
                    }
                }
            }
        }
    }
}
