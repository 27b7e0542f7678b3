//! Reads a `ModuleStateMap` out of the memory of a host: the structures of `state.rs` as Rust laid them out.
//!
//! The map of a large module is large (61 MiB encoded for a 9 MB module), so a lookup need not read it:
//! [`read_function_at`] descends the B-tree and reads one function; [`read_module_state_map`] reads everything.
//!
//! The walk over a B-tree checks what must hold for it: a child is one level lower, a node has 1 to 11 keys, keys
//! ascend and stay between those of the parent, and the number of keys is the map's length. So a cycle or a wrong
//! layout cannot last: each step either uses up a key or is an error.

use super::layouts::{DATAFUL, StateLayout};
use crate::limits;
use crate::process::Memory;
use crate::runtime::rust::memory::{Budgeted, Elements, StructureError, VecLayout, View};
use crate::state::model::{
    FunctionStateMap, MachineState, MachineStateDiff, MachineValue, ModuleStateMap, OffsetInfo, RegisterIndex,
    SuspendOffset, WasmAbstractValue,
};
use std::collections::BTreeMap;

/// Number of keys that one B-tree node can hold (`alloc::collections::btree::node::CAPACITY`).
const NODE_CAPACITY: u64 = 11;

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
/// whole map fail: use [`read_function_at`] to get the other functions.
pub fn read_module_state_map(
    memory: &dyn Memory,
    layout: &StateLayout,
    address: u64,
) -> Result<ModuleStateMap, StructureError> {
    let reader = Reader::new(memory, layout, limits::MAX_STATE_MAP_BYTES);
    let raw = reader.heap.read("ModuleStateMap", address, layout.msm_size)?;
    let view = View::new("ModuleStateMap", address, &raw);
    let mut local_functions = BTreeMap::new();
    reader.tree(view, layout.msm_functions, &Node::functions(layout), limits::MAX_FUNCTIONS, &mut |key, value| {
        local_functions.insert(key as usize, reader.function(value)?);
        Ok(())
    })?;
    Ok(ModuleStateMap { local_functions, total_size: view.usize(layout.msm_total_size)? })
}

/// Reads the function that holds the code offset `offset`: the one with the largest key not above it, as
/// `state.rs: ModuleStateMap::lookup_ip` looks it up. `Ok(None)` means that the offset is outside of the code or
/// before the first function (in the import trampolines).
pub fn read_function_at(
    memory: &dyn Memory,
    layout: &StateLayout,
    address: u64,
    offset: u64,
) -> Result<Option<(u64, FunctionStateMap)>, StructureError> {
    let reader = Reader::new(memory, layout, limits::MAX_FUNCTION_MAP_BYTES);
    let raw = reader.heap.read("ModuleStateMap", address, layout.msm_size)?;
    let view = View::new("ModuleStateMap", address, &raw);
    if offset >= view.u64(layout.msm_total_size)? {
        return Ok(None);
    }
    let found = reader.last_not_above(view, layout.msm_functions, &Node::functions(layout), offset)?;
    match found {
        Some((key, at, bytes)) => Ok(Some((key, reader.function(View::new("FunctionStateMap", at, &bytes))?))),
        None => Ok(None),
    }
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
    let node = Node::functions(layout);
    let last = reader.last_not_above(view, layout.msm_functions, &node, u64::MAX)?.map(|(key, ..)| key);
    let first = reader.first(view, layout.msm_functions, &node)?;
    match (first, last) {
        (Some(first), Some(last)) if last >= total_size || first > last => Err(view.bad("last function", last)),
        (Some(first), Some(last)) => Ok(MapSummary { functions, total_size, keys: Some((first, last)) }),
        _ => Ok(MapSummary { functions, total_size, keys: None }),
    }
}

/// Offsets and sizes, in bytes, in the nodes of one kind of B-tree.
struct Node {
    what: &'static str,
    size: u64,
    vals: u64,
    keys: u64,
    len: u64,
    edges: u64,
    value_size: u64,
}

impl Node {
    fn functions(l: &StateLayout) -> Node {
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

    fn infos(l: &StateLayout) -> Node {
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

    fn targets(l: &StateLayout) -> Node {
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

    fn values(l: &StateLayout) -> Node {
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

    fn options(l: &StateLayout) -> Node {
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

/// A node that was read: its bytes (with the edges, if it is not a leaf) and its keys.
struct NodeBytes {
    address: u64,
    bytes: Vec<u8>,
    keys: Vec<u64>,
}

type Visit<'v> = dyn FnMut(u64, View<'_>) -> Result<(), StructureError> + 'v;

struct Reader<'a> {
    heap: Budgeted<'a>,
    l: &'a StateLayout,
    vec: VecLayout,
}

impl<'a> Reader<'a> {
    fn new(memory: &'a dyn Memory, layout: &'a StateLayout, bytes: u64) -> Reader<'a> {
        Reader { heap: Budgeted::new(memory, bytes), l: layout, vec: VecLayout::from(layout) }
    }

    /// Address of the root node, height and length of the `BTreeMap` at offset `at` of `map`; `None` if the map is
    /// empty.
    fn root(&self, map: View<'_>, at: u64, max: usize) -> Result<Option<(u64, u64, u64)>, StructureError> {
        let map = map.inner("BTreeMap", at, self.l.map_size)?;
        let len = map.u64(self.l.map_len)?;
        let node = map.u64(self.l.map_node)?;
        if len > max as u64 {
            return Err(map.bad("length", len));
        }
        if len == 0 {
            return Ok(None);
        }
        let height = map.u64(self.l.map_height)?;
        if height > limits::MAX_TREE_HEIGHT {
            return Err(map.bad("height", height));
        }
        if node == 0 {
            return Err(map.bad("root", node));
        }
        Ok(Some((node, height, len)))
    }

    /// Reads one node and checks its keys: they must ascend and satisfy `low <= key <= high`.
    fn node(&self, node: &Node, address: u64, height: u64, low: u64, high: u64) -> Result<NodeBytes, StructureError> {
        let size = if height == 0 { node.size } else { node.edges + 8 * (NODE_CAPACITY + 1) };
        if !address.is_multiple_of(8) {
            return Err(StructureError::Implausible { what: node.what, address, field: "address", value: address });
        }
        let bytes = self.heap.read(node.what, address, size)?;
        let view = View::new(node.what, address, &bytes);
        let len = u64::from(view.u16(node.len)?);
        if len == 0 || len > NODE_CAPACITY {
            return Err(view.bad("number of keys", len));
        }
        let mut keys: Vec<u64> = Vec::with_capacity(len as usize);
        for i in 0..len {
            let key = view.u64(node.keys + 8 * i)?;
            if key < low || key > high || keys.last().is_some_and(|last| key <= *last) {
                return Err(view.bad("key", key));
            }
            keys.push(key);
        }
        Ok(NodeBytes { address, bytes, keys })
    }

    fn edge(&self, node: &Node, of: &NodeBytes, index: usize) -> Result<u64, StructureError> {
        View::new(node.what, of.address, &of.bytes).u64(node.edges + 8 * index as u64)
    }

    fn value<'b>(
        &self,
        node: &Node,
        of: &'b NodeBytes,
        index: usize,
        what: &'static str,
    ) -> Result<View<'b>, StructureError> {
        View::new(node.what, of.address, &of.bytes).inner(
            what,
            node.vals + node.value_size * index as u64,
            node.value_size,
        )
    }

    /// Visits every entry of the map at offset `at` in order.
    fn tree(
        &self,
        map: View<'_>,
        at: u64,
        node: &Node,
        max: usize,
        visit: &mut Visit<'_>,
    ) -> Result<(), StructureError> {
        let Some((root, height, len)) = self.root(map, at, max)? else { return Ok(()) };
        let mut left = len;
        self.subtree(node, root, height, 0, u64::MAX, &mut left, visit)?;
        match left {
            0 => Ok(()),
            missing => Err(map.bad("keys missing", missing)),
        }
    }

    #[allow(clippy::too_many_arguments)] // The bounds are the point: they make the recursion finite.
    fn subtree(
        &self,
        node: &Node,
        address: u64,
        height: u64,
        low: u64,
        high: u64,
        left: &mut u64,
        visit: &mut Visit<'_>,
    ) -> Result<(), StructureError> {
        let here = self.node(node, address, height, low, high)?;
        let mut low = low;
        for (i, &key) in here.keys.iter().enumerate() {
            if height > 0 {
                let below = key.checked_sub(1).ok_or(View::new(node.what, address, &here.bytes).bad("key", key))?;
                self.subtree(node, self.edge(node, &here, i)?, height - 1, low, below, left, visit)?;
            }
            let value = self.value(node, &here, i, "value")?;
            *left = left.checked_sub(1).ok_or(value.bad("more keys than the map's length", key))?;
            visit(key, value)?;
            low = key.saturating_add(1);
        }
        if height > 0 {
            self.subtree(node, self.edge(node, &here, here.keys.len())?, height - 1, low, high, left, visit)?;
        }
        Ok(())
    }

    /// The entry with the largest key that is not above `limit`: the key, and the address and bytes of the value.
    fn last_not_above(
        &self,
        map: View<'_>,
        at: u64,
        node: &Node,
        limit: u64,
    ) -> Result<Option<(u64, u64, Vec<u8>)>, StructureError> {
        let Some((mut address, mut height, _)) = self.root(map, at, limits::MAX_FUNCTIONS)? else { return Ok(None) };
        let (mut low, mut high) = (0, u64::MAX);
        let mut best = None;
        loop {
            let here = self.node(node, address, height, low, high)?;
            let after = here.keys.partition_point(|&k| k <= limit);
            if let Some(i) = after.checked_sub(1) {
                let value = self.value(node, &here, i, "value")?;
                best = Some((here.keys[i], value.address, value.bytes.to_vec()));
                low = here.keys[i].saturating_add(1);
            }
            if let Some(key) = here.keys.get(after) {
                high = key.saturating_sub(1);
            }
            if height == 0 {
                return Ok(best);
            }
            address = self.edge(node, &here, after)?;
            height -= 1;
        }
    }

    /// The smallest key of the map at offset `at`.
    fn first(&self, map: View<'_>, at: u64, node: &Node) -> Result<Option<u64>, StructureError> {
        let Some((mut address, mut height, _)) = self.root(map, at, limits::MAX_FUNCTIONS)? else { return Ok(None) };
        let mut high = u64::MAX;
        loop {
            let here = self.node(node, address, height, 0, high)?;
            let Some(&key) = here.keys.first() else { return Ok(None) };
            if height == 0 {
                return Ok(Some(key));
            }
            high = key.saturating_sub(1);
            address = self.edge(node, &here, 0)?;
            height -= 1;
        }
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
        self.tree(f, l.fsm_targets, &Node::targets(l), limits::MAX_DIFF_CHAIN, &mut |key, value| {
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
        self.tree(f, at, &Node::infos(self.l), limits::MAX_DIFF_CHAIN, &mut |key, value| {
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
        self.tree(f, at + l.state_prev_frame, &Node::values(l), limits::MAX_SLOTS, &mut |key, value| {
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
        self.tree(d, l.diff_prev_frame, &Node::options(l), limits::MAX_SLOTS, &mut |key, value| {
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
            assert_eq!(too_large(read_function_at(&none, &one, MAP, 0).err()), expected);
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
