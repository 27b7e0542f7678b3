//! The operators of function bodies: what each does, whether it has a point, and which of them are dead code.

use std::sync::Arc;

use wasmparser::{BinaryReader, Operator as O, OperatorsReader};

use super::module::WasmModule;
use super::text;
use crate::state::PointKind;

/// What an operator does to the flow of control, as far as reading a frame depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperatorKind {
    /// The operator calls a function, which returns to the operator behind.
    Call,
    /// The code that runs next may be behind the end of the operator's block or function.
    MayLeave,
    /// The operator does neither.
    Other,
}

/// A kind of place at which compiled code traps on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// An access to a linear memory. Atomic accesses of more than a byte must be aligned.
    Memory {
        /// Whether the alignment is checked.
        aligned: bool,
    },
    /// A conversion of a float to an integer, whose range the float may exceed.
    Conversion,
    /// A call through a table: the entry may be missing, or a function of another type.
    IndirectCall,
    /// The operator that always traps.
    Unreachable,
}

/// An operator of a function body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Byte offset of the operator in the `.wasm` file.
    pub offset: u64,
    /// The operator in the spelling of the text format ("call 3").
    pub text: String,
    /// What the operator does.
    pub kind: OperatorKind,
}

/// The kind of point that an operator has in singlepass state maps: `codegen_x64.rs` calls `mark_trappable` for
/// integer division and remainder (`emit_relaxed_xdiv`) and for `unreachable`. It passes a state context to
/// `emit_call_sysv` for `call` and `call_indirect` only (not for `memory.size` and `memory.grow`), and polls the
/// interrupt flag at `loop`, with full preemption. Loads, stores and float-to-integer conversions trap without a
/// point.
pub(super) fn point_of(op: &O<'_>) -> Option<PointKind> {
    match op {
        O::Call { .. } | O::CallIndirect { .. } => Some(PointKind::Call),
        O::Loop { .. } => Some(PointKind::Loop),
        O::Unreachable => Some(PointKind::Trappable),
        _ if is_division(op) => Some(PointKind::Trappable),
        _ => None,
    }
}

pub(super) fn is_division(op: &O<'_>) -> bool {
    matches!(op, O::I32DivS | O::I32DivU | O::I32RemS | O::I32RemU | O::I64DivS | O::I64DivU | O::I64RemS | O::I64RemU)
}

fn is_conversion(op: &O<'_>) -> bool {
    matches!(
        op,
        O::I32TruncF32S
            | O::I32TruncF32U
            | O::I32TruncF64S
            | O::I32TruncF64U
            | O::I64TruncF32S
            | O::I64TruncF32U
            | O::I64TruncF64S
            | O::I64TruncF64U
    )
}

/// The alignment (log2) of an access of a linear memory, and whether it is atomic.
macro_rules! define_access {
    ($(@$proposal:ident $op:ident $({ $($arg:ident: $argty:ty),* })? => $visit:ident ($($ann:tt)*))*) => {
        fn access_of(op: &O<'_>) -> Option<(u8, bool)> {
            match op {
                $(O::$op { .. } => define_access!(@one op $op $($($arg)*)?),)*
                _ => None,
            }
        }
    };
    (@one $value:ident $op:ident memarg $($rest:ident)*) => {
        match $value {
            O::$op { memarg, .. } => Some((memarg.align, stringify!($op).contains("Atomic"))),
            _ => None,
        }
    };
    (@one $value:ident $op:ident $($rest:ident)*) => { None };
}
wasmparser::for_each_operator!(define_access);

fn site_of(op: &O<'_>) -> Option<Site> {
    match op {
        O::CallIndirect { .. } => Some(Site::IndirectCall),
        O::Unreachable => Some(Site::Unreachable),
        _ if is_conversion(op) => Some(Site::Conversion),
        _ => access_of(op).map(|(align, atomic)| Site::Memory { aligned: atomic && align > 0 }),
    }
}

fn kind_of(op: &O<'_>) -> OperatorKind {
    match op {
        O::Call { .. } | O::CallIndirect { .. } | O::CallRef { .. } => OperatorKind::Call,
        O::End
        | O::Else
        | O::Return
        | O::ReturnCall { .. }
        | O::ReturnCallIndirect { .. }
        | O::ReturnCallRef { .. }
        | O::Br { .. }
        | O::BrIf { .. }
        | O::BrTable { .. }
        | O::BrOnNull { .. }
        | O::BrOnNonNull { .. }
        | O::BrOnCast { .. }
        | O::BrOnCastFail { .. }
        | O::BrOnCastDescEq { .. }
        | O::BrOnCastDescEqFail { .. }
        | O::Throw { .. }
        | O::ThrowRef => OperatorKind::MayLeave,
        _ => OperatorKind::Other,
    }
}

/// Tracks dead code as the backend sees it (`codegen_x64.rs: unreachable_depth`): from an unconditional branch to the
/// `else` or `end` of its block, operators count but leave no points.
#[derive(Default)]
pub(super) struct Reach {
    dead: u64,
}

impl Reach {
    /// Goes over `op`, the next operator. Returns whether code is generated for it.
    pub(super) fn step(&mut self, op: &O<'_>) -> bool {
        if self.dead == 0 {
            if matches!(op, O::Unreachable | O::Return | O::Br { .. } | O::BrTable { .. }) {
                self.dead = 1;
            }
            return true;
        }
        match op {
            O::Block { .. } | O::Loop { .. } | O::If { .. } => self.dead = self.dead.saturating_add(1),
            O::End => self.dead -= 1,
            O::Else if self.dead == 1 => self.dead = 0,
            _ => {}
        }
        self.dead == 0
    }
}

impl WasmModule {
    fn operator_offsets(&self, local_func: u32) -> Option<Arc<[u64]>> {
        if let Some(known) = self.operators.borrow().get(&local_func) {
            return known.clone();
        }
        let read = || -> Option<Arc<[u64]>> {
            let mut reader = self.body(local_func)?.get_operators_reader().ok()?;
            let mut offsets = Vec::new();
            while !reader.eof() {
                offsets.push(reader.original_position());
                // The operators that were read before a defect are still right.
                if reader.read().is_err() {
                    offsets.pop();
                    break;
                }
            }
            Some(offsets.into())
        };
        let offsets = read();
        self.operators.borrow_mut().insert(local_func, offsets.clone());
        offsets
    }

    /// File offsets of the operators of a defined function's body, in order.
    pub fn operators(&self, local_func: u32) -> Option<Arc<[u64]>> {
        self.operator_offsets(local_func)
    }

    /// The operators of a defined function whose code may trap in one of the ways of `Site`, as pairs of the
    /// operator's number and the way, in order. Operators in dead code, for which no code is generated, are left out.
    pub fn sites(&self, local_func: u32) -> Vec<(u64, Site)> {
        let mut out = Vec::new();
        let Some(mut reader) = self.body(local_func).and_then(|body| body.get_operators_reader().ok()) else {
            return out;
        };
        let mut reach = Reach::default();
        for index in 0.. {
            let Ok(op) = reader.read() else { break };
            let alive = reach.step(&op);
            out.extend(site_of(&op).filter(|_| alive).map(|site| (index, site)));
            if reader.eof() {
                break;
            }
        }
        out
    }

    /// The operator with this number in the body of a defined function.
    pub fn operator(&self, local_func: u32, op_index: u64) -> Option<Operator> {
        let offsets = self.operator_offsets(local_func)?;
        let offset = *offsets.get(usize::try_from(op_index).ok()?)?;
        let end = self.bodies.get(local_func as usize)?.end;
        let data = self.bytes.get(usize::try_from(offset).ok()?..end)?;
        // The reader refuses an `else` that has no `if` before it.
        let op = match data.first() {
            Some(0x05) => O::Else,
            _ => OperatorsReader::new(BinaryReader::new(data, offset)).read().ok()?,
        };
        Some(Operator { offset, text: text::operator(&op), kind: kind_of(&op) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_what_may_leave_a_block_are_told_by_the_operator() {
        let text = r#"(module
            (type $f (func)) (table 1 funcref) (tag $t)
            (func $callee)
            (func (param (ref null $f) exnref i32)
                call $callee
                (call_indirect (type $f) (local.get 2))
                (call_ref $f (local.get 0))
                (block (br_if 0 (local.get 2)))
                (block (br_table 0 0 (local.get 2)))
                (if (local.get 2) (then (br 0)) (else (return)))
                (if (local.get 2) (then (throw $t)))
                (if (local.get 2) (then (throw_ref (local.get 1))))
                (drop (block (result (ref $f)) (br_on_non_null 0 (local.get 0)) (unreachable)))
                (drop (br_on_null 0 (local.get 0)))
                return_call $callee))"#;
        let wasm = WasmModule::parse("calls.wasm".into(), wat::parse_str(text).unwrap()).unwrap();
        let count = wasm.operators(1).unwrap().len() as u64;
        let told: Vec<Operator> = (0..count).map(|at| wasm.operator(1, at).unwrap()).collect();
        let of = |kind| {
            let words = told.iter().filter(|o| o.kind == kind).map(|o| o.text.split(' ').next().unwrap());
            words.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(of(OperatorKind::Call), ["call", "call_indirect", "call_ref"].into());
        let leaving = [
            "br",
            "br_if",
            "br_on_non_null",
            "br_on_null",
            "br_table",
            "else",
            "end",
            "return",
            "return_call",
            "throw",
            "throw_ref",
        ];
        assert_eq!(of(OperatorKind::MayLeave), leaving.into());
        assert_eq!(of(OperatorKind::Other), ["block", "drop", "if", "local.get", "unreachable"].into());
    }
}
