//! Executes routines for tests, and unwinds before each of their instructions.

use super::RecognisedUnwinder;
use crate::arch::{CodeAddress, Reg, x64};
use crate::process::Memory;
use crate::unwind::testing::{Pieces, cursor};
use crate::unwind::{Cursor, FrameChange, Next, Trust, Unwinder};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};
use std::collections::HashMap;

pub const CODE: u64 = 0x10_0040;
pub const CALLER: u64 = 0x40_0000;
pub const ENTRY_SP: u64 = 0x8_0800;
pub const IMAGE_START: u64 = 0x9_0100;
pub const IMAGE_END: u64 = 0x9_0800;

/// Executes the instructions that the routines consist of. Only their effect on the stack matters, so arithmetic
/// that decides nothing is left out. `registers` holds values by state-map number.
pub struct Processor {
    pub registers: HashMap<Reg, u64>,
    pub stack: HashMap<u64, u64>,
    pub pc: u64,
}

fn reg(r: Register) -> Reg {
    x64::TABLE[if r.is_xmm() { 16 } else { 0 } + r.number()].reg
}

impl Processor {
    fn sp(&self) -> u64 {
        self.registers[&x64::RSP]
    }

    fn push(&mut self, value: u64) {
        let sp = self.sp() - 8;
        self.registers.insert(x64::RSP, sp);
        self.stack.insert(sp, value);
    }

    fn pop(&mut self) -> u64 {
        let sp = self.sp();
        self.registers.insert(x64::RSP, sp + 8);
        self.stack[&sp]
    }

    fn address(&self, i: &Instruction) -> u64 {
        let base = if i.is_ip_rel_memory_operand() { 0 } else { self.registers[&reg(i.memory_base())] };
        base.wrapping_add(i.memory_displacement64())
    }

    /// Executes one instruction. A call returns at once, with its callee-saved registers intact.
    fn run(&mut self, i: &Instruction) {
        self.pc = i.next_ip();
        match i.code() {
            Code::Push_r64 => self.push(self.registers[&reg(i.op0_register())]),
            Code::Pop_r64 => {
                let value = self.pop();
                self.registers.insert(reg(i.op0_register()), value);
            }
            Code::Mov_rm64_r64 if i.op0_register() != Register::None => {
                self.registers.insert(reg(i.op0_register()), self.registers[&reg(i.op1_register())]);
            }
            Code::Mov_rm64_r64 => {
                self.stack.insert(self.address(i), self.registers[&reg(i.op1_register())]);
            }
            Code::Mov_r64_rm64 | Code::Movq_xmm_xmmm64 => {
                let value = self.stack.get(&self.address(i)).copied().unwrap_or(0);
                self.registers.insert(reg(i.op0_register()), value);
            }
            Code::Lea_r64_m => {
                self.registers.insert(reg(i.op0_register()), self.address(i));
            }
            Code::Add_rm64_imm8 | Code::Sub_rm64_imm8 => {
                let by = if i.code() == Code::Add_rm64_imm8 { i.immediate(1) } else { i.immediate(1).wrapping_neg() };
                let r = reg(i.op0_register());
                self.registers.insert(r, self.registers[&r].wrapping_add(by));
            }
            // rsp &= -16
            Code::And_rm64_r64 => {
                self.registers.insert(x64::RSP, self.sp() & !15);
            }
            Code::Retnq => self.pc = self.pop(),
            Code::Jmp_rm64 => self.pc = self.registers[&x64::RAX],
            // Calls return at once. Branches are not taken, so that every instruction is executed.
            _ => {}
        }
    }
}

pub const CALLEE_SAVED: [Reg; 6] = [x64::RBX, x64::RBP, x64::R12, x64::R13, x64::R14, x64::R15];

/// A page of code with `code` at [`CODE`].
pub fn code_memory(code: &[u8]) -> Pieces {
    page(CODE & 0xfff, code)
}

pub fn page(offset: u64, code: &[u8]) -> Pieces {
    let mut bytes = vec![0xcc; 0x1000];
    bytes[offset as usize..offset as usize + code.len()].copy_from_slice(code);
    Pieces::default().bytes(CODE & !0xfff, &bytes)
}

/// Runs `code` from its first instruction and unwinds before each instruction. `check` gets the instruction's
/// offset and the caller that was found.
pub fn at_each_instruction(
    unwinder: &RecognisedUnwinder,
    code: &[u8],
    machine: &mut Processor,
    check: impl Fn(u64, &Cursor),
) {
    let mut asked = 0;
    for i in Decoder::with_ip(64, code, CODE, DecoderOptions::NONE) {
        let mut memory = code_memory(code);
        for (&address, &word) in &machine.stack {
            memory = memory.word(address, word);
        }
        let at = cursor(i.ip(), &machine.registers.iter().map(|(&r, &v)| (r, v)).collect::<Vec<_>>());
        let next = unwinder.step(&at, &memory);
        let Some(Next::Caller(caller, Trust::Recognised)) = next else { panic!("{:#x}: {next:?}", i.ip() - CODE) };
        check(i.ip() - CODE, &caller);
        described(unwinder, &at, &memory, &caller);
        asked += 1;
        machine.run(&i);
    }
    assert!(asked >= 8);
}

/// Finds the caller as a debugger would, from the description of a stretch, and compares it with the caller that
/// the layouts give.
fn described(unwinder: &RecognisedUnwinder, at: &Cursor, memory: &Pieces, caller: &Cursor) {
    let stretch = unwinder.stretch_at(at.address, memory).unwrap();
    let offset = (at.address.raw() - stretch.start) as u32;
    assert!(offset < stretch.len);
    let (mut cfa, mut rules) = (FrameChange::Cfa(x64::RSP, 8), HashMap::new());
    for &(_, change) in stretch.frame.iter().filter(|(from, _)| *from <= offset) {
        match change {
            FrameChange::Cfa(..) | FrameChange::CfaDeref(..) => cfa = change,
            FrameChange::Saved(reg, _) | FrameChange::Same(reg) | FrameChange::Undefined(reg) => {
                rules.insert(reg, change);
            }
        }
    }
    if rules.get(&x64::RIP) == Some(&FrameChange::Undefined(x64::RIP)) {
        assert!(!caller.address.is_return());
        return;
    }
    let word = |address: u64| memory.read_u64(address).unwrap();
    let cfa = match cfa {
        FrameChange::Cfa(reg, n) => at.registers.get(reg).unwrap().wrapping_add_signed(i64::from(n)),
        FrameChange::CfaDeref(reg, n) => word(at.registers.get(reg).unwrap()) + u64::from(n),
        other => panic!("{other:?}"),
    };
    assert_eq!(caller.registers.sp(), Some(cfa), "+{offset:#x}");
    assert_eq!(word(cfa - 8), caller.address.raw(), "+{offset:#x}");
    for reg in CALLEE_SAVED {
        let value = match rules.get(&reg) {
            Some(FrameChange::Saved(_, n)) => word(cfa.wrapping_add_signed(i64::from(*n))),
            None | Some(FrameChange::Same(_)) => at.registers.get(reg).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(Some(value), caller.registers.get(reg), "+{offset:#x} {reg}");
    }
}

pub fn entered() -> Processor {
    let mut registers: HashMap<Reg, u64> =
        x64::TABLE[..32].iter().map(|row| (row.reg, 0x1000 + row.reg.index() as u64)).collect();
    registers.insert(x64::RSP, ENTRY_SP);
    // The routines follow these pointers.
    for r in [x64::RAX, x64::RDI] {
        registers.insert(r, IMAGE_END);
    }
    registers.insert(x64::RSI, IMAGE_START);
    let stack = HashMap::from([(ENTRY_SP, CALLER)]);
    Processor { registers, stack, pc: CODE }
}

pub fn is_native_caller(offset: u64, caller: &Cursor) {
    assert_eq!(caller.address, CodeAddress::Return(CALLER), "{offset:#x}");
    assert_eq!(caller.registers.sp(), Some(ENTRY_SP + 8), "{offset:#x}");
    for r in CALLEE_SAVED {
        assert_eq!(caller.registers.get(r), Some(0x1000 + r.index() as u64), "{offset:#x} {r}");
    }
    assert_eq!(caller.registers.get(x64::RDI), None);
}
