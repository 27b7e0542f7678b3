//! State maps made by hand, for tests.

use super::map::PointKind;
use super::model::*;

/// A module with one function at the code offsets 0x10..0x100, behind 16 bytes of import trampolines.
pub(crate) struct Module {
    pub function: FunctionStateMap,
}

pub(crate) const START: usize = 0x10;
pub(crate) const END: usize = 0x100;

impl Module {
    /// Creates a module whose function has so many locals and no shadow.
    pub fn new(locals: usize) -> Module {
        let locals = vec![WasmAbstractValue::Runtime; locals];
        Module { function: FunctionStateMap::new(MachineState::new(), 7, 0, locals) }
    }

    /// Adds `state` as a diff from the initial state, and a point of `kind` at `offset` that leads to it.
    pub fn point(mut self, kind: PointKind, offset: usize, state: &MachineState) -> Module {
        let diff_id = self.function.diffs.len();
        self.function.diffs.push(state.diff(&self.function.initial).unwrap());
        self.entry(kind, offset, diff_id)
    }

    /// Adds a point of `kind` at `offset` that leads to the diff `diff_id`.
    pub fn entry(mut self, kind: PointKind, offset: usize, diff_id: usize) -> Module {
        let info = OffsetInfo { end_offset: offset + 1, diff_id, activate_offset: offset };
        match kind {
            PointKind::Call => self.function.call_offsets.insert(offset, info),
            PointKind::Trappable => self.function.trappable_offsets.insert(offset, info),
            PointKind::Loop => self.function.loop_offsets.insert(offset, info),
        };
        self
    }

    pub fn build(self) -> ModuleStateMap {
        ModuleStateMap { local_functions: [(START, self.function)].into(), total_size: END }
    }
}

/// A state with so many operands, whose values are known only when the code runs, and with these words on the stack.
pub(crate) fn state(operands: usize, words: Vec<MachineValue>) -> MachineState {
    MachineState {
        stack_values: words,
        wasm_stack: vec![WasmAbstractValue::Runtime; operands],
        wasm_inst_offset: 5,
        ..MachineState::new()
    }
}
