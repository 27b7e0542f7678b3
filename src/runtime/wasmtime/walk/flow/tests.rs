//! Tests with short pieces of machine code, and with every shape of the module's table run by a small machine.

use super::state::RBP;
use super::*;
use crate::arch::x64::GENERAL;
use crate::arch::{Reg, Registers};
use crate::unwind::testing::Pieces;
use iced_x86::Register;
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
            i.op0_kind() == OpKind::Memory && matches!(i.op1_register(), Register::RBX | Register::R13 | Register::R15)
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
            let registers = registers(&GENERAL.iter().zip(machine.registers).map(|(r, v)| (*r, v)).collect::<Vec<_>>());
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
                        FrameChange::Undefined(x64::RBP) if state.register(x64::R11) == Some(Held::Entry(x64::RBP)) => {
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
