//! The operand stack at each point of a function: the types of the operands, and which of them are constants.

use wasmparser::{FuncToValidate, FuncValidatorAllocations, Operator as O, OperatorsReader, WasmFeatures};

use super::constants::{self, Constant, Use};
use super::module::WasmModule;
use super::operators::{Reach, is_division, point_of};
use super::types::{ValType, value_type};
use crate::limits::MAX_SLOTS;
use crate::state::PointKind;

/// The types of the operands at one point.
type StackTypes = Vec<ValType>;
/// The operands at one point: the bits of each constant, and `None` for any other operand.
type StackConstants = Vec<Option<u64>>;

/// Called for each operator that has a point: with the operator's number, the kind of point, a function that computes
/// the types of the operands, and a function that tells which of them are constants. Returns whether to go on.
pub(super) type Visit<'v> =
    dyn FnMut(u64, PointKind, &dyn Fn() -> Option<StackTypes>, &dyn Fn() -> Option<StackConstants>) -> bool + 'v;

/// The operand stack as singlepass records it: a constant for what a `const` operator pushed, `None` for all else. A
/// copy that `local.get` makes and the results of a block are no constants for singlepass.
#[derive(Default)]
pub(super) struct OperandStack {
    pub(super) stack: Vec<Option<Constant>>,
    /// Whether the stack is no longer known: the number of operands that some operator pops is unknown, or there are
    /// too many operands.
    lost: bool,
}

impl OperandStack {
    /// The constants that singlepass writes into the machine code of `op`, which takes `popped` operands.
    fn written(&self, op: &O<'_>, popped: usize) -> Option<Use> {
        let from = self.stack.len().checked_sub(constants::written(op, popped))?;
        let constants: Vec<Constant> = self.stack.get(from..)?.iter().flatten().copied().collect();
        (!constants.is_empty()).then_some(Use { constants })
    }

    /// The operands below the topmost `popped` ones: the bits of each constant, `None` for any other operand.
    fn below(&self, popped: usize) -> Option<Vec<Option<u64>>> {
        let below = self.stack.get(..self.stack.len().checked_sub(popped)?).filter(|_| !self.lost)?;
        Some(below.iter().map(|operand| operand.map(|c| c.bits)).collect())
    }

    /// Goes over the operator `op`, which has this number. After it the stack has `height` operands.
    fn step(&mut self, number: u64, op: &O<'_>, arity: Option<(u32, u32)>, height: usize) {
        self.lost |= height > MAX_SLOTS || arity.is_none();
        let (false, Some((_, pushed))) = (self.lost, arity) else { return };
        if !matches!(op, O::LocalTee { .. } if self.stack.len() == height) {
            self.stack.truncate(height.saturating_sub(pushed as usize));
        }
        self.stack.resize(height, None);
        let Some((bits, wide)) = constants::pushed(op) else { return };
        if let Some(top) = self.stack.last_mut() {
            *top = Some(Constant { operator: number, bits, wide });
        }
    }
}

impl WasmModule {
    /// Types of the operands that a state map holds at a point, bottom first. `None` if the operator has no such
    /// point or is in dead code, or if the module does not validate.
    ///
    /// The operands in the map are those below the operator's own operands: the arguments of a call (and the table
    /// index of `call_indirect`) and both operands of a division are popped before the point is recorded. At a
    /// division the map also holds the slot of the result. It is private (`wasm_stack_private_depth` = 1) and not
    /// among these types.
    pub fn stack_types_at(&self, local_func: u32, op_index: u64, point: PointKind) -> Option<Vec<ValType>> {
        let key = (local_func, op_index, point);
        if let Some(known) = self.stack_types.borrow().get(&key) {
            return known.clone();
        }
        let types = self.compute_stack_types(local_func, op_index, point);
        self.stack_types.borrow_mut().insert(key, types.clone());
        types
    }

    fn compute_stack_types(&self, local_func: u32, op_index: u64, point: PointKind) -> Option<Vec<ValType>> {
        let mut found = None;
        self.each_stack_types(local_func, |index, kind, types| {
            if index != op_index {
                return index < op_index;
            }
            found = types().filter(|_| kind == point);
            false
        });
        found
    }

    /// Calls `visit` for every operator of a body that has a point, in order, until `visit` returns false. `visit`
    /// also gets a function that computes what [`WasmModule::stack_types_at`] says of that point. This takes one pass
    /// over the body.
    pub fn each_stack_types(
        &self,
        local_func: u32,
        mut visit: impl FnMut(u64, PointKind, &dyn Fn() -> Option<Vec<ValType>>) -> bool,
    ) {
        let _ = self.visit_stack(local_func, None, &mut |index, kind, types, _| visit(index, kind, types));
    }

    /// Calls `visit` in the same way, with the operands instead of their types: the bits of each constant, `None` for
    /// any other operand.
    pub(super) fn each_operands(
        &self,
        local_func: u32,
        mut visit: impl FnMut(u64, PointKind, Option<&[Option<u64>]>) -> bool,
    ) {
        let _ = self
            .visit_stack(local_func, None, &mut |index, kind, _, constants| visit(index, kind, constants().as_deref()));
    }

    /// Goes over a body and calls `visit` for each operator that has a point. `uses` gets the constants that
    /// singlepass writes into the machine code, up to the operator at which `visit` ends the walk.
    pub(super) fn visit_stack(
        &self,
        local_func: u32,
        mut uses: Option<&mut Vec<Use>>,
        visit: &mut Visit<'_>,
    ) -> Option<()> {
        let resources = self.resources.as_ref().ok()?.clone();
        let index = self.imported_functions().checked_add(local_func)?;
        let ty = *self.functions.get(index as usize)?;
        let body = self.body(local_func)?;
        let mut validator = FuncToValidate { resources, index, ty, features: WasmFeatures::all() }
            .into_validator(FuncValidatorAllocations::default());
        let mut reader = body.get_binary_reader();
        validator.read_locals(&mut reader).ok()?;
        let mut reader = OperatorsReader::new(reader);
        let mut reach = Reach::default();
        let mut next = 0;
        let mut operands = OperandStack::default();
        while !reader.eof() {
            let offset = reader.original_position();
            let op = reader.read().ok()?;
            let alive = reach.step(&op);
            if let Some(kind) = point_of(&op).filter(|_| alive) {
                let popped = match op {
                    O::Call { function_index } => self.signature(function_index).map(|(params, _)| params.len()),
                    O::CallIndirect { type_index, .. } => {
                        self.types.get(type_index as usize).and_then(|t| Some(t.as_ref()?.params.len() + 1))
                    }
                    _ if is_division(&op) => Some(2),
                    _ => Some(0),
                };
                let types = || -> Option<Vec<ValType>> {
                    let popped = popped?;
                    let height = validator.operand_stack_height() as usize;
                    if height.checked_sub(popped)? > MAX_SLOTS {
                        return None;
                    }
                    // Depth 0 is the top of the operand stack.
                    (popped..height).rev().map(|depth| value_type(validator.get_operand_type(depth)??)).collect()
                };
                let below = || operands.below(popped?);
                if !visit(next, kind, &types, &below) {
                    return None;
                }
            }
            let arity = op.operator_arity(&validator);
            if let (Some(uses), true, false, Some((popped, _))) = (&mut uses, alive, operands.lost, arity) {
                uses.extend(operands.written(&op, popped as usize));
            }
            validator.op(offset, &op).ok()?;
            operands.step(next, &op, arity, validator.operand_stack_height() as usize);
            next += 1;
        }
        None
    }
}
