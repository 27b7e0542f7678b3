//! Reads a `ModuleStateMap` out of the memory of a host: the structures of `state.rs` as Rust laid them out.
//!
//! [`summary`] checks that a map can be at an address and reads little for that; [`read_module_state_map`] reads
//! everything.

use super::layouts::StateLayout;
use crate::limits;
use crate::process::Memory;
use crate::runtime::rust::btree::{BTrees, MapLayout};
use crate::runtime::rust::layouts::DATAFUL;
use crate::runtime::rust::memory::{Budgeted, Elements, StructureError, VecLayout, View};
use crate::state::model::{
    FunctionStateMap, MachineState, MachineStateDiff, MachineValue, ModuleStateMap, OffsetInfo, RegisterIndex,
    SuspendOffset, WasmAbstractValue,
};
use std::collections::BTreeMap;

/// What a `ModuleStateMap` says about itself, before any of its functions is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSummary {
    /// Number of functions.
    pub functions: u64,
    /// Size of the code in bytes.
    pub total_size: u64,
    /// First and last key (code offsets of functions), if there are functions.
    pub keys: Option<(u64, u64)>,
}

/// Reads the whole map at `address`.
///
/// # Errors
/// Fails with the first structure that is not there or cannot be what it should be. Damage in one function makes the
/// whole map fail.
pub fn read_module_state_map(
    memory: &dyn Memory,
    layout: &StateLayout,
    address: u64,
) -> Result<ModuleStateMap, StructureError> {
    let reader = Reader::new(memory, layout, limits::MAX_STATE_MAP_BYTES);
    let raw = reader.heap.read("ModuleStateMap", address, layout.msm_size)?;
    let view = View::new("ModuleStateMap", address, &raw);
    let mut local_functions = BTreeMap::new();
    reader.trees().visit(
        view,
        layout.msm_functions,
        &nodes::functions(layout),
        limits::MAX_FUNCTIONS,
        &mut |key, value| {
            local_functions.insert(key as usize, reader.function(value)?);
            Ok(())
        },
    )?;
    Ok(ModuleStateMap { local_functions, total_size: view.usize(layout.msm_total_size)? })
}

/// Checks that a `ModuleStateMap` can be at `address`, and reads only its outermost keys for that.
pub fn summary(memory: &dyn Memory, layout: &StateLayout, address: u64) -> Result<MapSummary, StructureError> {
    let reader = Reader::new(memory, layout, limits::MAX_FUNCTION_MAP_BYTES);
    let raw = reader.heap.read("ModuleStateMap", address, layout.msm_size)?;
    let view = View::new("ModuleStateMap", address, &raw);
    let total_size = view.u64(layout.msm_total_size)?;
    let functions = view.u64(layout.msm_functions + layout.map_len)?;
    if functions > limits::MAX_FUNCTIONS as u64 || functions > total_size {
        return Err(view.bad("number of functions", functions));
    }
    let node = nodes::functions(layout);
    let last = reader.trees().last(view, layout.msm_functions, &node)?;
    let first = reader.trees().first(view, layout.msm_functions, &node)?;
    match (first, last) {
        (Some(first), Some(last)) if last >= total_size || first > last => Err(view.bad("last function", last)),
        (Some(first), Some(last)) => Ok(MapSummary { functions, total_size, keys: Some((first, last)) }),
        _ => Ok(MapSummary { functions, total_size, keys: None }),
    }
}

/// The nodes of the maps in a `ModuleStateMap`.
mod nodes {
    use crate::runtime::rust::btree::Node;
    use crate::runtime::singlepass::module::layouts::StateLayout;

    pub fn functions(l: &StateLayout) -> Node {
        Node {
            what: "node of functions",
            size: l.functions_leaf_size,
            vals: l.functions_leaf_vals,
            keys: l.functions_leaf_keys,
            len: l.functions_leaf_len,
            edges: l.functions_edges,
            value_size: l.fsm_size,
        }
    }

    pub fn infos(l: &StateLayout) -> Node {
        Node {
            what: "node of offset infos",
            size: l.infos_leaf_size,
            vals: l.infos_leaf_vals,
            keys: l.infos_leaf_keys,
            len: l.infos_leaf_len,
            edges: l.infos_edges,
            value_size: l.info_size,
        }
    }

    pub fn targets(l: &StateLayout) -> Node {
        Node {
            what: "node of suspend offsets",
            size: l.targets_leaf_size,
            vals: l.targets_leaf_vals,
            keys: l.targets_leaf_keys,
            len: l.targets_leaf_len,
            edges: l.targets_edges,
            value_size: l.suspend_size,
        }
    }

    pub fn values(l: &StateLayout) -> Node {
        Node {
            what: "node of machine values",
            size: l.values_leaf_size,
            vals: l.values_leaf_vals,
            keys: l.values_leaf_keys,
            len: l.values_leaf_len,
            edges: l.values_edges,
            value_size: l.value_size,
        }
    }

    pub fn options(l: &StateLayout) -> Node {
        Node {
            what: "node of optional machine values",
            size: l.options_leaf_size,
            vals: l.options_leaf_vals,
            keys: l.options_leaf_keys,
            len: l.options_leaf_len,
            edges: l.options_edges,
            value_size: l.option_value_size,
        }
    }
}

struct Reader<'a> {
    heap: Budgeted<'a>,
    l: &'a StateLayout,
    vec: VecLayout,
}

impl<'a> Reader<'a> {
    fn new(memory: &'a dyn Memory, layout: &'a StateLayout, bytes: u64) -> Reader<'a> {
        Reader { heap: Budgeted::new(memory, bytes), l: layout, vec: VecLayout::from(layout) }
    }

    fn trees(&self) -> BTrees<'_, 'a> {
        let l = self.l;
        let layout = MapLayout { size: l.map_size, node: l.map_node, height: l.map_height, len: l.map_len };
        BTrees { heap: &self.heap, layout }
    }

    fn vec(
        &self,
        what: &'static str,
        view: View<'_>,
        at: u64,
        size: u64,
        max: usize,
    ) -> Result<Elements, StructureError> {
        self.heap.vec(what, view, at, self.vec, size, max)
    }

    fn function(&self, f: View<'_>) -> Result<FunctionStateMap, StructureError> {
        let l = self.l;
        let header = match f.u64(l.fsm_header + l.option_suspend_tag)? {
            tag if tag == l.option_suspend_none => None,
            _ => Some(self.suspend(f.inner(
                "SuspendOffset",
                l.fsm_header + l.option_suspend_value,
                l.suspend_size,
            )?)?),
        };
        let locals = self.wasm_values("locals", f, l.fsm_locals)?;
        let mut diffs = Vec::new();
        for diff in self.vec("diffs", f, l.fsm_diffs, l.diff_size, limits::MAX_DIFF_CHAIN)?.iter() {
            diffs.push(self.diff(diff)?);
        }
        let mut targets = BTreeMap::new();
        self.trees().visit(f, l.fsm_targets, &nodes::targets(l), limits::MAX_DIFF_CHAIN, &mut |key, value| {
            targets.insert(key as usize, self.suspend(value)?);
            Ok(())
        })?;
        Ok(FunctionStateMap {
            initial: self.state(f)?,
            local_function_id: f.usize(l.fsm_id)?,
            locals,
            shadow_size: f.usize(l.fsm_shadow)?,
            diffs,
            wasm_function_header_target_offset: header,
            wasm_offset_to_target_offset: targets,
            loop_offsets: self.infos(f, l.fsm_loops)?,
            call_offsets: self.infos(f, l.fsm_calls)?,
            trappable_offsets: self.infos(f, l.fsm_traps)?,
        })
    }

    fn infos(&self, f: View<'_>, at: u64) -> Result<BTreeMap<usize, OffsetInfo>, StructureError> {
        let mut out = BTreeMap::new();
        self.trees().visit(f, at, &nodes::infos(self.l), limits::MAX_DIFF_CHAIN, &mut |key, value| {
            let info = OffsetInfo {
                end_offset: value.usize(self.l.info_end)?,
                diff_id: value.usize(self.l.info_diff)?,
                activate_offset: value.usize(self.l.info_activate)?,
            };
            out.insert(key as usize, info);
            Ok(())
        })?;
        Ok(out)
    }

    fn state(&self, f: View<'_>) -> Result<MachineState, StructureError> {
        let l = self.l;
        let at = l.fsm_initial;
        let mut prev_frame = BTreeMap::new();
        self.trees().visit(f, at + l.state_prev_frame, &nodes::values(l), limits::MAX_SLOTS, &mut |key, value| {
            prev_frame.insert(key as usize, self.machine_value(value, 0)?);
            Ok(())
        })?;
        Ok(MachineState {
            stack_values: self.machine_values("stack values", f, at + l.state_stack)?,
            register_values: self.machine_values("register values", f, at + l.state_registers)?,
            prev_frame,
            wasm_stack: self.wasm_values("wasm stack", f, at + l.state_wasm_stack)?,
            wasm_stack_private_depth: f.usize(at + l.state_private_depth)?,
            wasm_inst_offset: f.usize(at + l.state_inst_offset)?,
        })
    }

    fn diff(&self, d: View<'_>) -> Result<MachineStateDiff, StructureError> {
        let l = self.l;
        let last = match d.u64(l.diff_last + l.option_usize_tag)? {
            tag if tag == l.option_usize_some => Some(d.usize(l.diff_last + l.option_usize_value)?),
            0 => None,
            tag => return Err(d.bad("last", tag)),
        };
        let mut reg_diff = Vec::new();
        for e in self.vec("register diff", d, l.diff_registers, l.register_diff_size, limits::MAX_SLOTS)?.iter() {
            let value = e.inner("MachineValue", l.register_diff_value, l.value_size)?;
            reg_diff.push((RegisterIndex(e.usize(l.register_diff_index)?), self.machine_value(value, 0)?));
        }
        let mut prev_frame_diff = BTreeMap::new();
        self.trees().visit(d, l.diff_prev_frame, &nodes::options(l), limits::MAX_SLOTS, &mut |key, value| {
            let entry = match value.u64(l.option_value_tag)? {
                tag if tag == l.option_value_none => None,
                _ => Some(self.machine_value(value.inner("MachineValue", l.option_value_some, l.value_size)?, 0)?),
            };
            prev_frame_diff.insert(key as usize, entry);
            Ok(())
        })?;
        Ok(MachineStateDiff {
            last,
            stack_push: self.machine_values("stack push", d, l.diff_stack_push)?,
            stack_pop: d.usize(l.diff_stack_pop)?,
            reg_diff,
            prev_frame_diff,
            wasm_stack_push: self.wasm_values("wasm stack push", d, l.diff_wasm_push)?,
            wasm_stack_pop: d.usize(l.diff_wasm_pop)?,
            wasm_stack_private_depth: d.usize(l.diff_private_depth)?,
            wasm_inst_offset: d.usize(l.diff_inst_offset)?,
        })
    }

    fn suspend(&self, s: View<'_>) -> Result<SuspendOffset, StructureError> {
        let offset = s.usize(self.l.suspend_offset)?;
        match s.u64(self.l.suspend_tag)? {
            tag if tag == self.l.suspend_loop => Ok(SuspendOffset::Loop(offset)),
            tag if tag == self.l.suspend_call => Ok(SuspendOffset::Call(offset)),
            tag if tag == self.l.suspend_trap => Ok(SuspendOffset::Trappable(offset)),
            tag => Err(s.bad("kind", tag)),
        }
    }

    fn wasm_values(
        &self,
        what: &'static str,
        view: View<'_>,
        at: u64,
    ) -> Result<Vec<WasmAbstractValue>, StructureError> {
        let l = self.l;
        self.vec(what, view, at, l.wasm_value_size, limits::MAX_SLOTS)?
            .iter()
            .map(|v| match v.u64(l.wasm_value_tag)? {
                tag if tag == l.wasm_value_runtime => Ok(WasmAbstractValue::Runtime),
                tag if tag == l.wasm_value_const => Ok(WasmAbstractValue::Const(v.u64(l.wasm_value_const_bits)?)),
                tag => Err(v.bad("kind", tag)),
            })
            .collect()
    }

    fn machine_values(&self, what: &'static str, view: View<'_>, at: u64) -> Result<Vec<MachineValue>, StructureError> {
        self.vec(what, view, at, self.l.value_size, limits::MAX_SLOTS)?
            .iter()
            .map(|v| self.machine_value(v, 0))
            .collect()
    }

    fn machine_value(&self, v: View<'_>, depth: usize) -> Result<MachineValue, StructureError> {
        let l = self.l;
        let tag = v.u64(l.value_tag)?;
        Ok(if tag == l.value_undefined {
            MachineValue::Undefined
        } else if tag == l.value_vmctx {
            MachineValue::Vmctx
        } else if tag == l.value_preserve {
            MachineValue::PreserveRegister(RegisterIndex(v.usize(l.value_preserve_index)?))
        } else if tag == l.value_copy {
            MachineValue::CopyStackBPRelative(v.u32(l.value_copy_offset)? as i32)
        } else if tag == l.value_shadow {
            MachineValue::ExplicitShadow
        } else if tag == l.value_stack {
            MachineValue::WasmStack(v.usize(l.value_stack_index)?)
        } else if tag == l.value_local {
            MachineValue::WasmLocal(v.usize(l.value_local_index)?)
        } else if tag == l.value_halves {
            if depth >= limits::MAX_VALUE_DEPTH {
                return Err(v.bad("nesting", depth as u64));
            }
            let address = v.u64(l.value_halves_box)?;
            let bytes = self.heap.read("TwoHalves", address, l.halves_size)?;
            let pair = View::new("TwoHalves", address, &bytes);
            MachineValue::TwoHalves(Box::new((
                self.machine_value(pair.inner("MachineValue", l.halves_first, l.value_size)?, depth + 1)?,
                self.machine_value(pair.inner("MachineValue", l.halves_second, l.value_size)?, depth + 1)?,
            )))
        } else if l.value_vmctx_deref != DATAFUL && tag != l.value_vmctx_deref {
            return Err(v.bad("kind", tag));
        } else {
            // `VmctxDeref` has no tag of its own but owns the niche: the tag word is the capacity of its `Vec`, which
            // is checked when the `Vec` is read.
            let steps = self.vec("VmctxDeref", v, l.value_vmctx_deref_vec, 8, limits::MAX_SLOTS)?;
            MachineValue::VmctxDeref(steps.iter().map(|s| s.usize(0)).collect::<Result<_, _>>()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::singlepass::module::layouts::Layouts;
    use crate::unwind::testing::Pieces;

    const MAP: u64 = 0x1000;

    fn layout() -> StateLayout {
        Layouts::for_compiler("1.95.0").unwrap().state
    }

    #[test]
    fn so_many_bytes_are_read() {
        // The first structure would take all bytes that may be read.
        let too_large = |found: Option<StructureError>| matches!(found, Some(StructureError::TooLarge { .. }));
        let none = Pieces::default();
        for (more, expected) in [(0, false), (1, true)] {
            let whole = StateLayout { msm_size: limits::MAX_STATE_MAP_BYTES + more, ..layout() };
            assert_eq!(too_large(read_module_state_map(&none, &whole, MAP).err()), expected);
            let one = StateLayout { msm_size: limits::MAX_FUNCTION_MAP_BYTES + more, ..layout() };
            assert_eq!(too_large(summary(&none, &one, MAP).err()), expected);
        }
    }

    #[test]
    fn trees_have_so_many_levels() {
        let l = layout();
        for (height, field) in [(limits::MAX_TREE_HEIGHT, None), (limits::MAX_TREE_HEIGHT + 1, Some("height"))] {
            let mut words = vec![0; l.msm_size as usize / 8];
            for (at, value) in [
                (l.msm_functions + l.map_len, 1),
                (l.msm_functions + l.map_node, 0x9000),
                (l.msm_functions + l.map_height, height),
                (l.msm_total_size, 0x1000),
            ] {
                words[at as usize / 8] = value;
            }
            let found = summary(&Pieces::default().words(MAP, &words), &l, MAP).unwrap_err();
            let wrong = match found {
                StructureError::Implausible { field, .. } => Some(field),
                StructureError::Memory { .. } => None,
                other => panic!("{other:?}"),
            };
            assert_eq!(wrong, field);
        }
    }
}
