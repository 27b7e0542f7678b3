//! The constants of function bodies. Two modules of the same shape differ only in them, and machine code has them as
//! immediates.

use super::module::WasmModule;
use super::operators::Reach;
use wasmparser::Operator as O;

/// A constant in the body of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Constant {
    /// Number of the operator that pushes the constant, or of the load or store that has it as its offset.
    pub operator: u64,
    /// The bits of the value.
    pub bits: u64,
    /// Whether the value has 64 bits.
    pub wide: bool,
}

/// The constants that one operator takes off the stack and that singlepass writes into the operator's machine code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The constants, in any order.
    pub constants: Vec<Constant>,
}

/// The bits that a `const` operator pushes, and whether they are 64 bits.
pub(super) fn pushed(op: &O<'_>) -> Option<(u64, bool)> {
    match *op {
        O::I32Const { value } => Some((u64::from(value as u32), false)),
        O::I64Const { value } => Some((value as u64, true)),
        O::F32Const { value } => Some((value.bits().into(), false)),
        O::F64Const { value } => Some((value.bits(), true)),
        _ => None,
    }
}

/// The number of topmost operands that singlepass writes into the machine code of `op` if they are constants. It
/// writes them at this operator at the latest, and one operator after the other (`codegen_x64.rs: emit_binop_i32`,
/// `emit_cmpop_i32_dynamic_b`, `emit_shift_i32`, `emit_call_sysv`; the address of a store is left out, as an offset
/// may be added to it).
pub(super) fn written(op: &O<'_>, popped: usize) -> usize {
    match op {
        O::I32Add | O::I32Sub | O::I32Mul | O::I32And | O::I32Or | O::I32Xor => 2,
        O::I64Add | O::I64Sub | O::I64Mul | O::I64And | O::I64Or | O::I64Xor => 2,
        O::I32Eq | O::I32Ne | O::I32LtS | O::I32LtU | O::I32GtS | O::I32GtU => 2,
        O::I32LeS | O::I32LeU | O::I32GeS | O::I32GeU => 2,
        O::I64Eq | O::I64Ne | O::I64LtS | O::I64LtU | O::I64GtS | O::I64GtU => 2,
        O::I64LeS | O::I64LeU | O::I64GeS | O::I64GeU => 2,
        O::LocalSet { .. } | O::LocalTee { .. } | O::GlobalSet { .. } => 1,
        O::I32Store { .. } | O::I64Store { .. } | O::F32Store { .. } | O::F64Store { .. } => 1,
        O::Call { .. } => popped,
        _ => 0,
    }
}

impl WasmModule {
    /// All constants in the reachable code of a defined function, and the offsets of the loads and stores there.
    pub fn constants(&self, local_func: u32) -> Vec<Constant> {
        let Some(mut reader) = self.body(local_func).and_then(|b| b.get_operators_reader().ok()) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        let mut reach = Reach::default();
        for operator in 0.. {
            let Some(op) = (!reader.eof()).then(|| reader.read().ok()).flatten() else { break };
            if !reach.step(&op) {
                continue;
            }
            if let Some((bits, wide)) = pushed(&op) {
                out.push(Constant { operator, bits, wide });
            } else if let Some(offset) = offset_of(&op).filter(|&offset| offset != 0) {
                out.push(Constant { operator, bits: offset, wide: true });
            }
        }
        out
    }

    /// The constants of a defined function that singlepass writes into the function's machine code, in the order of
    /// that code. Empty if the module does not validate.
    pub fn used_constants(&self, local_func: u32) -> Vec<Use> {
        let mut uses = Vec::new();
        let _ = self.visit_stack(local_func, Some(&mut uses), &mut |_, _, _, _| true);
        uses
    }
}

/// The offset that a load or store has as its immediate.
fn offset_of(op: &O<'_>) -> Option<u64> {
    match op {
        O::I32Load { memarg }
        | O::I64Load { memarg }
        | O::F32Load { memarg }
        | O::F64Load { memarg }
        | O::I32Load8S { memarg }
        | O::I32Load8U { memarg }
        | O::I32Load16S { memarg }
        | O::I32Load16U { memarg }
        | O::I64Load8S { memarg }
        | O::I64Load8U { memarg }
        | O::I64Load16S { memarg }
        | O::I64Load16U { memarg }
        | O::I64Load32S { memarg }
        | O::I64Load32U { memarg }
        | O::I32Store { memarg }
        | O::I64Store { memarg }
        | O::F32Store { memarg }
        | O::F64Store { memarg }
        | O::I32Store8 { memarg }
        | O::I32Store16 { memarg }
        | O::I64Store8 { memarg }
        | O::I64Store16 { memarg }
        | O::I64Store32 { memarg } => Some(memarg.offset),
        _ => None,
    }
}
