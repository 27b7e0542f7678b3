//! One row of an unwind table, and how it is applied: its rules and expressions give the caller's registers.

use super::CfiUnwinder;
use super::signal::restore_vectors;
use crate::arch::{CodeAddress, Reg, Registers};
use crate::limits;
use crate::process::{Memory, MemoryError};
use crate::unwind::frame_pointer::from_code;
use crate::unwind::{Cursor, Next, Trust};
use gimli::{
    CfaRule, Encoding, EndianSlice, Evaluation, EvaluationResult, LittleEndian, Location, RegisterRule,
    UnwindExpression, Value,
};
use std::borrow::Cow;

/// One row of an unwind table.
pub(super) struct Row {
    pub(super) source: usize,
    pub(super) table: usize,
    /// The svma at which the function begins.
    pub(super) start: u64,
    pub(super) cfa: CfaRule<usize>,
    pub(super) rules: Vec<(Reg, RegisterRule<usize>)>,
    pub(super) return_address: Reg,
    pub(super) encoding: Encoding,
    pub(super) signal: bool,
    /// Whether the code is the one that the kernel's signal frame returns to, so that the frame's layout is known.
    pub(super) sigreturn: bool,
}

impl CfiUnwinder<'_> {
    /// Does the same as [`CfiUnwinder::apply`], with a frame pointer that is computed from the function's code.
    pub(super) fn apply_with_prologue(
        &self,
        row: &Row,
        at: &Cursor,
        memory: &dyn Memory,
    ) -> Option<Result<Next, Failure>> {
        let start = row.start.wrapping_add(self.objects.get(row.source)?.bias);
        let pointer = from_code(start, at.address.raw(), &at.registers, memory)?;
        let mut at = at.clone();
        at.registers.set(at.registers.machine().description().fp, pointer);
        Some(self.apply(row, &at, memory).map(|next| match next {
            Next::Caller(caller, Trust::Cfi) => Next::Caller(caller, Trust::FramePointer),
            other => other,
        }))
    }

    pub(super) fn apply(&self, row: &Row, at: &Cursor, memory: &dyn Memory) -> Result<Next, Failure> {
        let source = self.objects.get(row.source);
        let frame = FrameContext {
            at,
            memory,
            bytes: source.and_then(|s| s.tables.get()?.get(row.table)).map_or(&[], |t| &t.bytes),
            encoding: row.encoding,
            bias: source.map_or(0, |s| s.bias),
        };
        let cfa = match &row.cfa {
            CfaRule::RegisterAndOffset { register, offset } => {
                frame.register(frame.dwarf(*register)?)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(e) => frame.evaluate(e, None)?,
        };
        let mut caller = at.registers.clone();
        if row.signal {
            caller = Registers::unknown(caller.machine());
        } else {
            caller.forget_caller_saved();
        }
        let machine = caller.machine().description();
        caller.set(machine.sp, cfa);
        caller.forget(machine.pc);
        for (reg, rule) in &row.rules {
            if *reg == row.return_address {
                continue;
            }
            match frame.apply(rule, *reg, cfa, &mut caller) {
                Ok(()) => {}
                // The caller's frame is worth showing without this register.
                Err(_) if *reg != machine.sp => caller.forget(*reg),
                Err(e) => return Err(e),
            }
        }
        let rule = row.rules.iter().find(|(reg, _)| *reg == row.return_address).map(|(_, rule)| rule);
        match rule {
            Some(RegisterRule::Undefined) => return Ok(Next::Bottom),
            Some(rule) => {
                let mut found = Registers::unknown(caller.machine());
                frame.apply(rule, row.return_address, cfa, &mut found)?;
                match (found.get(row.return_address), found.saved_at(row.return_address)) {
                    (Some(pc), Some(slot)) => caller.restore(machine.pc, pc, slot),
                    (Some(pc), None) => caller.set(machine.pc, pc),
                    (None, _) => return Err(Failure::Unknown(row.return_address)),
                }
            }
            None => return Err(Failure::Broken("no rule for the return address".into())),
        }
        let Some(pc) = caller.pc() else { return Err(Failure::Unknown(machine.pc)) };
        if pc == 0 {
            return Ok(Next::Bottom);
        }
        if !row.signal {
            return Ok(Next::Caller(Cursor { address: CodeAddress::Return(pc), registers: caller }, Trust::Cfi));
        }
        if row.sigreturn
            && let Ok(context) = frame.register(machine.sp)
        {
            restore_vectors(context, memory, &mut caller);
        }
        Ok(Next::Caller(Cursor { address: CodeAddress::Exact(pc), registers: caller }, Trust::Cfi))
    }
}

/// Why a row could not be applied.
pub(super) enum Failure {
    Unknown(Reg),
    Memory(MemoryError),
    Broken(String),
}

impl From<gimli::Error> for Failure {
    fn from(e: gimli::Error) -> Failure {
        Failure::Broken(e.to_string())
    }
}

impl From<MemoryError> for Failure {
    fn from(e: MemoryError) -> Failure {
        Failure::Memory(e)
    }
}

/// The state that the rules and expressions of one frame are evaluated against.
struct FrameContext<'f> {
    at: &'f Cursor,
    memory: &'f dyn Memory,
    bytes: &'f [u8],
    encoding: Encoding,
    bias: u64,
}

impl FrameContext<'_> {
    fn dwarf(&self, register: gimli::Register) -> Result<Reg, Failure> {
        let reg = self.at.registers.machine().from_dwarf(register.0);
        reg.ok_or_else(|| Failure::Broken(format!("register {} is not known", register.0)))
    }

    fn register(&self, reg: Reg) -> Result<u64, Failure> {
        if reg == self.at.registers.machine().description().pc {
            return Ok(self.at.address.raw());
        }
        self.at.registers.get(reg).ok_or(Failure::Unknown(reg))
    }

    fn apply(&self, rule: &RegisterRule<usize>, reg: Reg, cfa: u64, caller: &mut Registers) -> Result<(), Failure> {
        let load = |caller: &mut Registers, address: u64| -> Result<(), Failure> {
            caller.restore(reg, self.memory.read_u64(address)?, address);
            Ok(())
        };
        match rule {
            RegisterRule::Undefined | RegisterRule::Architectural => caller.forget(reg),
            RegisterRule::SameValue => self.copy(reg, reg, caller)?,
            RegisterRule::Register(other) => self.copy(self.dwarf(*other)?, reg, caller)?,
            RegisterRule::Offset(offset) => load(caller, cfa.wrapping_add_signed(*offset))?,
            RegisterRule::ValOffset(offset) => caller.set(reg, cfa.wrapping_add_signed(*offset)),
            RegisterRule::Expression(e) => load(caller, self.evaluate(e, Some(cfa))?)?,
            RegisterRule::ValExpression(e) => caller.set(reg, self.evaluate(e, Some(cfa))?),
            RegisterRule::Constant(value) => caller.set(reg, *value),
        }
        Ok(())
    }

    /// Gives the register `to` of the caller the value of `from` in this frame, together with the place that the
    /// value was read from.
    fn copy(&self, from: Reg, to: Reg, caller: &mut Registers) -> Result<(), Failure> {
        let value = self.register(from)?;
        match self.at.registers.saved_at(from) {
            Some(slot) => caller.restore(to, value, slot),
            None => caller.set(to, value),
        }
        Ok(())
    }

    fn evaluate(&self, expression: &UnwindExpression<usize>, cfa: Option<u64>) -> Result<u64, Failure> {
        let end = expression.offset.saturating_add(expression.length);
        let bytes = self.bytes.get(expression.offset..end).unwrap_or(&[]);
        let readable = register_as_value(bytes);
        let mut evaluation = Evaluation::new(EndianSlice::new(&readable, LittleEndian), self.encoding);
        evaluation.set_max_iterations(limits::MAX_EXPRESSION_STEPS);
        if let Some(cfa) = cfa {
            evaluation.set_initial_value(cfa);
        }
        let mut state = evaluation.evaluate()?;
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, size, space: None, base_type }
                    if base_type.0 == 0 && (1..=8).contains(&size) =>
                {
                    let mut word = [0; 8];
                    if let Some(buf) = word.get_mut(..usize::from(size)) {
                        self.memory.read(address, buf)?;
                    }
                    evaluation.resume_with_memory(Value::Generic(u64::from_le_bytes(word)))?
                }
                EvaluationResult::RequiresRegister { register, base_type } if base_type.0 == 0 => {
                    evaluation.resume_with_register(Value::Generic(self.register(self.dwarf(register)?)?))?
                }
                EvaluationResult::RequiresRelocatedAddress(svma) => {
                    evaluation.resume_with_relocated_address(svma.wrapping_add(self.bias))?
                }
                EvaluationResult::RequiresCallFrameCfa if cfa.is_some() => {
                    evaluation.resume_with_call_frame_cfa(cfa.unwrap_or_default())?
                }
                other => return Err(Failure::Broken(format!("an expression needs {other:?}"))),
            };
        }
        match evaluation.as_result() {
            [piece] if piece.size_in_bits.is_none() => match piece.location {
                Location::Address { address } => Ok(address),
                Location::Value { value } => Ok(value.to_u64(u64::MAX)?),
                ref other => Err(Failure::Broken(format!("an expression gives {other:?}"))),
            },
            other => Err(Failure::Broken(format!("an expression gives {} pieces", other.len()))),
        }
    }
}

/// Turns a leading `DW_OP_regN` into `DW_OP_bregN 0`. `DW_OP_regN` names a location, which has no meaning at the
/// start of a frame expression. gdb and libgcc take it as the register's value, and wasmtime's fibers rely on that
/// (`DW_OP_reg7; DW_OP_deref; DW_OP_plus_uconst 16`).
fn register_as_value(expression: &[u8]) -> Cow<'_, [u8]> {
    const REG0: u8 = gimli::constants::DW_OP_reg0.0;
    const REG31: u8 = gimli::constants::DW_OP_reg31.0;
    const BREG0: u8 = gimli::constants::DW_OP_breg0.0;
    match expression {
        [first @ REG0..=REG31, rest @ ..] => {
            let mut with_offset = vec![first - REG0 + BREG0, 0];
            with_offset.extend_from_slice(rest);
            Cow::Owned(with_offset)
        }
        _ => Cow::Borrowed(expression),
    }
}
