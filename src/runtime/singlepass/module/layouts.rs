//! Layouts of the runtime's own Rust structures in a host (see [`crate::runtime::rust::layouts`]).

use crate::process::objects::{LoadedObject, Objects};
use crate::runtime::rust::hash_map::TableLayout;
use crate::runtime::rust::layouts::{LayoutError, LayoutOrigin, compilers, offsets, with_types};
use crate::runtime::rust::memory::VecLayout;

/// Compiler versions with a column in the table.
///
/// 1.95.0 was measured with debug and release hosts, which agree. A neighbouring version must not be taken for it:
/// the nightly of 1.97.0 has the same offsets, but `None` of `Option<SuspendOffset>` is -1 there and not 3.
pub const KNOWN_COMPILERS: [&str; 1] = ["1.95.0"];

offsets! {
    /// Offsets in `CodeVersion` and everything below it (`state.rs`).
    StateLayout {
        version_size 0x48 "CodeVersion.#";
        version_backend 0x0 "CodeVersion.backend.data_ptr";
        version_backend_len 0x8 "CodeVersion.backend.length";
        version_runnable 0x10 "CodeVersion.runnable_module";
        version_msm 0x18 "CodeVersion.msm";
        version_base 0x38 "CodeVersion.base";
        version_baseline 0x40 "CodeVersion.baseline";

        msm_size 0x20 "CodeVersion.msm.#";
        msm_functions 0x0 "ModuleStateMap.local_functions";
        msm_total_size 0x18 "ModuleStateMap.total_size";

        map_node 0x0 "ModuleStateMap.local_functions.!.root.:Some.__0.node.pointer";
        map_height 0x8 "ModuleStateMap.local_functions.!.root.:Some.__0.height";
        map_len 0x10 "ModuleStateMap.local_functions.!.length";
        map_size 0x18 "ModuleStateMap.local_functions.#";

        vec_cap 0x0 "FunctionStateMap.locals.!.buf.inner.cap|FunctionStateMap.locals.!.buf.cap";
        vec_ptr 0x8 "FunctionStateMap.locals.!.buf.inner.ptr|FunctionStateMap.locals.!.buf.ptr";
        vec_len 0x10 "FunctionStateMap.locals.!.len";
        vec_size 0x18 "FunctionStateMap.locals.#";

        fsm_size 0x120 "FunctionStateMap.#";
        fsm_header 0x0 "FunctionStateMap.wasm_function_header_target_offset";
        fsm_initial 0x10 "FunctionStateMap.initial";
        fsm_locals 0x80 "FunctionStateMap.locals";
        fsm_diffs 0x98 "FunctionStateMap.diffs";
        fsm_id 0xb0 "FunctionStateMap.local_function_id";
        fsm_shadow 0xb8 "FunctionStateMap.shadow_size";
        fsm_targets 0xc0 "FunctionStateMap.wasm_offset_to_target_offset";
        fsm_loops 0xd8 "FunctionStateMap.loop_offsets";
        fsm_calls 0xf0 "FunctionStateMap.call_offsets";
        fsm_traps 0x108 "FunctionStateMap.trappable_offsets";

        state_stack 0x0 "FunctionStateMap.initial.!.stack_values";
        state_registers 0x18 "FunctionStateMap.initial.!.register_values";
        state_wasm_stack 0x30 "FunctionStateMap.initial.!.wasm_stack";
        state_prev_frame 0x48 "FunctionStateMap.initial.!.prev_frame";
        state_private_depth 0x60 "FunctionStateMap.initial.!.wasm_stack_private_depth";
        state_inst_offset 0x68 "FunctionStateMap.initial.!.wasm_inst_offset";

        diff_size 0x90 "FunctionStateMap.diffs.<T>.#";
        diff_last 0x0 "FunctionStateMap.diffs.<T>.last";
        diff_stack_push 0x10 "FunctionStateMap.diffs.<T>.stack_push";
        diff_registers 0x28 "FunctionStateMap.diffs.<T>.reg_diff";
        diff_wasm_push 0x40 "FunctionStateMap.diffs.<T>.wasm_stack_push";
        diff_stack_pop 0x58 "FunctionStateMap.diffs.<T>.stack_pop";
        diff_prev_frame 0x60 "FunctionStateMap.diffs.<T>.prev_frame_diff";
        diff_wasm_pop 0x78 "FunctionStateMap.diffs.<T>.wasm_stack_pop";
        diff_private_depth 0x80 "FunctionStateMap.diffs.<T>.wasm_stack_private_depth";
        diff_inst_offset 0x88 "FunctionStateMap.diffs.<T>.wasm_inst_offset";

        register_diff_size 0x20 "FunctionStateMap.diffs.<T>.reg_diff.<T>.#";
        register_diff_index 0x0 "FunctionStateMap.diffs.<T>.reg_diff.<T>.__0";
        register_diff_value 0x8 "FunctionStateMap.diffs.<T>.reg_diff.<T>.__1";

        option_usize_tag 0x0 "FunctionStateMap.diffs.<T>.last.!.^";
        option_usize_tag_size 0x8 "FunctionStateMap.diffs.<T>.last.^#";
        option_usize_some 0x1 "FunctionStateMap.diffs.<T>.last.@Some";
        option_usize_value 0x8 "FunctionStateMap.diffs.<T>.last.!.:Some.__0";

        wasm_value_size 0x10 "FunctionStateMap.locals.<T>.#";
        wasm_value_tag 0x0 "FunctionStateMap.locals.<T>.^";
        wasm_value_tag_size 0x8 "FunctionStateMap.locals.<T>.^#";
        wasm_value_runtime 0x0 "FunctionStateMap.locals.<T>.@Runtime";
        wasm_value_const 0x1 "FunctionStateMap.locals.<T>.@Const";
        wasm_value_const_bits 0x8 "FunctionStateMap.locals.<T>.:Const.__0";

        value_size 0x18 "FunctionStateMap.initial.stack_values.<T>.#";
        value_tag 0x0 "FunctionStateMap.initial.stack_values.<T>.^";
        value_tag_size 0x8 "FunctionStateMap.initial.stack_values.<T>.^#";
        value_undefined 0x8000000000000000 "FunctionStateMap.initial.stack_values.<T>.@Undefined";
        value_vmctx 0x8000000000000001 "FunctionStateMap.initial.stack_values.<T>.@Vmctx";
        value_vmctx_deref 0xffffffffffffffff "FunctionStateMap.initial.stack_values.<T>.@?VmctxDeref";
        value_preserve 0x8000000000000003 "FunctionStateMap.initial.stack_values.<T>.@PreserveRegister";
        value_copy 0x8000000000000004 "FunctionStateMap.initial.stack_values.<T>.@CopyStackBPRelative";
        value_shadow 0x8000000000000005 "FunctionStateMap.initial.stack_values.<T>.@ExplicitShadow";
        value_stack 0x8000000000000006 "FunctionStateMap.initial.stack_values.<T>.@WasmStack";
        value_local 0x8000000000000007 "FunctionStateMap.initial.stack_values.<T>.@WasmLocal";
        value_halves 0x8000000000000008 "FunctionStateMap.initial.stack_values.<T>.@TwoHalves";
        value_vmctx_deref_vec 0x0 "FunctionStateMap.initial.stack_values.<T>.:VmctxDeref.__0";
        value_preserve_index 0x8 "FunctionStateMap.initial.stack_values.<T>.:PreserveRegister.__0";
        value_copy_offset 0x8 "FunctionStateMap.initial.stack_values.<T>.:CopyStackBPRelative.__0";
        value_stack_index 0x8 "FunctionStateMap.initial.stack_values.<T>.:WasmStack.__0";
        value_local_index 0x8 "FunctionStateMap.initial.stack_values.<T>.:WasmLocal.__0";
        value_halves_box 0x8 "FunctionStateMap.initial.stack_values.<T>.:TwoHalves.__0";
        halves_first 0x0 "FunctionStateMap.initial.stack_values.<T>.:TwoHalves.__0.*.__0";
        halves_second 0x18 "FunctionStateMap.initial.stack_values.<T>.:TwoHalves.__0.*.__1";
        halves_size 0x30 "FunctionStateMap.initial.stack_values.<T>.:TwoHalves.__0.*.#";

        suspend_size 0x10 "FunctionStateMap.wasm_offset_to_target_offset.<V>.#";
        suspend_tag 0x0 "FunctionStateMap.wasm_offset_to_target_offset.<V>.^";
        suspend_tag_size 0x8 "FunctionStateMap.wasm_offset_to_target_offset.<V>.^#";
        suspend_loop 0x0 "FunctionStateMap.wasm_offset_to_target_offset.<V>.@Loop";
        suspend_call 0x1 "FunctionStateMap.wasm_offset_to_target_offset.<V>.@Call";
        suspend_trap 0x2 "FunctionStateMap.wasm_offset_to_target_offset.<V>.@Trappable";
        suspend_offset 0x8 "FunctionStateMap.wasm_offset_to_target_offset.<V>.:Loop.__0";
        option_suspend_tag 0x0 "FunctionStateMap.wasm_function_header_target_offset.!.^";
        option_suspend_tag_size 0x8 "FunctionStateMap.wasm_function_header_target_offset.^#";
        option_suspend_none 0x3 "FunctionStateMap.wasm_function_header_target_offset.@None";
        option_suspend_value 0x0 "FunctionStateMap.wasm_function_header_target_offset.!.:Some.__0";

        info_size 0x18 "FunctionStateMap.call_offsets.<V>.#";
        info_end 0x0 "FunctionStateMap.call_offsets.<V>.end_offset";
        info_diff 0x8 "FunctionStateMap.call_offsets.<V>.diff_id";
        info_activate 0x10 "FunctionStateMap.call_offsets.<V>.activate_offset";

        option_value_size 0x18 "FunctionStateMap.diffs.<T>.prev_frame_diff.<V>.#";
        option_value_tag 0x0 "FunctionStateMap.diffs.<T>.prev_frame_diff.<V>.^";
        option_value_tag_size 0x8 "FunctionStateMap.diffs.<T>.prev_frame_diff.<V>.^#";
        option_value_none 0x8000000000000009 "FunctionStateMap.diffs.<T>.prev_frame_diff.<V>.@None";
        option_value_some 0x0 "FunctionStateMap.diffs.<T>.prev_frame_diff.<V>.:Some.__0";

        functions_leaf_size 0xcc8 "ModuleStateMap.local_functions.root.:Some.__0.node.pointer.*.#";
        functions_leaf_vals 0x0 "ModuleStateMap.local_functions.root.:Some.__0.node.pointer.*.vals";
        functions_leaf_keys 0xc68 "ModuleStateMap.local_functions.root.:Some.__0.node.pointer.*.keys";
        functions_leaf_len 0xcc2 "ModuleStateMap.local_functions.root.:Some.__0.node.pointer.*.len";
        functions_edges 0xcc8 "ModuleStateMap.local_functions.root.:Some.__0.node.pointer.*.parent.:Some.__0.pointer.*.edges";
        infos_leaf_size 0x170 "FunctionStateMap.call_offsets.root.:Some.__0.node.pointer.*.#";
        infos_leaf_vals 0x60 "FunctionStateMap.call_offsets.root.:Some.__0.node.pointer.*.vals";
        infos_leaf_keys 0x8 "FunctionStateMap.call_offsets.root.:Some.__0.node.pointer.*.keys";
        infos_leaf_len 0x16a "FunctionStateMap.call_offsets.root.:Some.__0.node.pointer.*.len";
        infos_edges 0x170 "FunctionStateMap.call_offsets.root.:Some.__0.node.pointer.*.parent.:Some.__0.pointer.*.edges";
        targets_leaf_size 0x118 "FunctionStateMap.wasm_offset_to_target_offset.root.:Some.__0.node.pointer.*.#";
        targets_leaf_vals 0x0 "FunctionStateMap.wasm_offset_to_target_offset.root.:Some.__0.node.pointer.*.vals";
        targets_leaf_keys 0xb8 "FunctionStateMap.wasm_offset_to_target_offset.root.:Some.__0.node.pointer.*.keys";
        targets_leaf_len 0x112 "FunctionStateMap.wasm_offset_to_target_offset.root.:Some.__0.node.pointer.*.len";
        targets_edges 0x118 "FunctionStateMap.wasm_offset_to_target_offset.root.:Some.__0.node.pointer.*.parent.:Some.__0.pointer.*.edges";
        values_leaf_size 0x170 "FunctionStateMap.initial.prev_frame.root.:Some.__0.node.pointer.*.#";
        values_leaf_vals 0x60 "FunctionStateMap.initial.prev_frame.root.:Some.__0.node.pointer.*.vals";
        values_leaf_keys 0x8 "FunctionStateMap.initial.prev_frame.root.:Some.__0.node.pointer.*.keys";
        values_leaf_len 0x16a "FunctionStateMap.initial.prev_frame.root.:Some.__0.node.pointer.*.len";
        values_edges 0x170 "FunctionStateMap.initial.prev_frame.root.:Some.__0.node.pointer.*.parent.:Some.__0.pointer.*.edges";
        options_leaf_size 0x170 "FunctionStateMap.diffs.<T>.prev_frame_diff.root.:Some.__0.node.pointer.*.#";
        options_leaf_vals 0x60 "FunctionStateMap.diffs.<T>.prev_frame_diff.root.:Some.__0.node.pointer.*.vals";
        options_leaf_keys 0x8 "FunctionStateMap.diffs.<T>.prev_frame_diff.root.:Some.__0.node.pointer.*.keys";
        options_leaf_len 0x16a "FunctionStateMap.diffs.<T>.prev_frame_diff.root.:Some.__0.node.pointer.*.len";
        options_edges 0x170 "FunctionStateMap.diffs.<T>.prev_frame_diff.root.:Some.__0.node.pointer.*.parent.:Some.__0.pointer.*.edges";
    }
}

offsets! {
    /// Offsets in `ModuleInner` and `ModuleInfo` (`module.rs`).
    ModuleLayout {
        inner_size 0x250 "ModuleInner.#";
        inner_runnable 0x238 "ModuleInner.runnable_module";
        inner_cache_gen 0x240 "ModuleInner.cache_gen";
        inner_info 0x0 "ModuleInner.info";
        arc_data 0x10 "ModuleInner.runnable_module.ptr.pointer.*.data";

        info_size 0x238 "ModuleInfo.#";
        info_memories 0x0 "ModuleInfo.memories.elems";
        info_globals 0x18 "ModuleInfo.globals.elems";
        info_tables 0x30 "ModuleInfo.tables.elems";
        info_imported_functions 0x48 "ModuleInfo.imported_functions.elems";
        info_imported_memories 0x60 "ModuleInfo.imported_memories.elems";
        info_imported_tables 0x78 "ModuleInfo.imported_tables.elems";
        info_imported_globals 0x90 "ModuleInfo.imported_globals.elems";
        info_exports 0xa8 "ModuleInfo.exports.map.core.entries";
        info_func_assoc 0x120 "ModuleInfo.func_assoc.elems";
        info_signatures 0x138 "ModuleInfo.signatures.elems";
        info_backend 0x150 "ModuleInfo.backend.vec";
        info_namespace_table 0x168 "ModuleInfo.namespace_table.table.elems";
        info_namespace_buffer 0x180 "ModuleInfo.namespace_table.buffer.vec";
        info_name_table 0x198 "ModuleInfo.name_table.table.elems";
        info_name_buffer 0x1b0 "ModuleInfo.name_table.buffer.vec";
        info_em_symbols 0x200 "ModuleInfo.em_symbol_map.:Some.__0.base.table.table";
        info_custom_sections 0x1d0 "ModuleInfo.custom_sections.base.table.table";

        vec_cap 0x0 "ModuleInfo.backend.vec.!.buf.inner.cap|ModuleInfo.backend.vec.!.buf.cap";
        vec_ptr 0x8 "ModuleInfo.backend.vec.!.buf.inner.ptr|ModuleInfo.backend.vec.!.buf.ptr";
        vec_len 0x10 "ModuleInfo.backend.vec.!.len";
        vec_size 0x18 "ModuleInfo.backend.vec.#";

        import_name_size 0x8 "ModuleInfo.imported_functions.elems.<T>.#";
        import_name_namespace 0x0 "ModuleInfo.imported_functions.elems.<T>.namespace_index.__0";
        import_name_name 0x4 "ModuleInfo.imported_functions.elems.<T>.name_index.__0";
        string_entry_size 0x8 "ModuleInfo.name_table.table.elems.<T>.#";
        string_entry_offset 0x0 "ModuleInfo.name_table.table.elems.<T>.__0";
        string_entry_len 0x4 "ModuleInfo.name_table.table.elems.<T>.__1";

        imported_global_size 0xc "ModuleInfo.imported_globals.elems.<T>.#";
        imported_global_type 0x9 "ModuleInfo.imported_globals.elems.<T>.__1.ty";
        imported_global_mutable 0x8 "ModuleInfo.imported_globals.elems.<T>.__1.mutable";
        global_size 0x30 "ModuleInfo.globals.elems.<T>.#";
        global_type 0x21 "ModuleInfo.globals.elems.<T>.desc.ty";
        global_mutable 0x20 "ModuleInfo.globals.elems.<T>.desc.mutable";

        memory_size 0x10 "ModuleInfo.memories.elems.<T>.#";
        memory_minimum 0x8 "ModuleInfo.memories.elems.<T>.minimum";
        memory_has_maximum 0x0 "ModuleInfo.memories.elems.<T>.maximum.^";
        memory_maximum 0x4 "ModuleInfo.memories.elems.<T>.maximum.:Some.__0";
        memory_shared 0xc "ModuleInfo.memories.elems.<T>.shared";
        imported_memory_size 0x18 "ModuleInfo.imported_memories.elems.<T>.#";
        imported_memory_name 0x0 "ModuleInfo.imported_memories.elems.<T>.__0";
        imported_memory_desc 0x8 "ModuleInfo.imported_memories.elems.<T>.__1";
        table_size 0xc "ModuleInfo.tables.elems.<T>.#";
        table_minimum 0x8 "ModuleInfo.tables.elems.<T>.minimum";
        table_has_maximum 0x0 "ModuleInfo.tables.elems.<T>.maximum.^";
        table_maximum 0x4 "ModuleInfo.tables.elems.<T>.maximum.:Some.__0";
        imported_table_size 0x14 "ModuleInfo.imported_tables.elems.<T>.#";
        imported_table_name 0x0 "ModuleInfo.imported_tables.elems.<T>.__0";
        imported_table_desc 0x8 "ModuleInfo.imported_tables.elems.<T>.__1";
        imported_global_name 0x0 "ModuleInfo.imported_globals.elems.<T>.__0";
        info_data 0xf0 "ModuleInfo.data_initializers";
        info_elements 0x108 "ModuleInfo.elem_initializers";
        data_size 0x40 "ModuleInfo.data_initializers.<T>.#";
        data_bytes 0x20 "ModuleInfo.data_initializers.<T>.data";
        info_has_start 0x1c8 "ModuleInfo.start_func.^";
        info_start 0x1cc "ModuleInfo.start_func.:Some.__0";

        export_size 0x28 "ModuleInfo.exports.map.core.entries.<T>.#";
        export_key 0x0 "ModuleInfo.exports.map.core.entries.<T>.key.vec";
        export_tag 0x18 "ModuleInfo.exports.map.core.entries.<T>.value.^";
        export_tag_size 0x4 "ModuleInfo.exports.map.core.entries.<T>.value.^#";
        export_func 0x0 "ModuleInfo.exports.map.core.entries.<T>.value.@Func";
        export_table 0x3 "ModuleInfo.exports.map.core.entries.<T>.value.@Table";
        export_func_index 0x1c "ModuleInfo.exports.map.core.entries.<T>.value.:Func.__0";

        sig_size 0x30 "ModuleInfo.signatures.elems.<T>.#";
        sig_params 0x0 "ModuleInfo.signatures.elems.<T>.params";
        sig_returns 0x18 "ModuleInfo.signatures.elems.<T>.returns";
        cow_tag 0x0 "ModuleInfo.signatures.elems.<T>.params.!.^";
        cow_borrowed 0x8000000000000000 "ModuleInfo.signatures.elems.<T>.params.@Borrowed";
        cow_borrowed_ptr 0x8 "ModuleInfo.signatures.elems.<T>.params.!.:Borrowed.__0.data_ptr";
        cow_borrowed_len 0x10 "ModuleInfo.signatures.elems.<T>.params.!.:Borrowed.__0.length";
        cow_owned 0x0 "ModuleInfo.signatures.elems.<T>.params.!.:Owned.__0";

        table_ctrl 0x0 "ModuleInfo.custom_sections.base.table.table.!.ctrl";
        table_mask 0x8 "ModuleInfo.custom_sections.base.table.table.!.bucket_mask";
        table_items 0x18 "ModuleInfo.custom_sections.base.table.table.!.items";
        section_size 0x30 "ModuleInfo.custom_sections.base.table.<T>.#";
        section_name 0x0 "ModuleInfo.custom_sections.base.table.<T>.__0.vec";
        section_list 0x18 "ModuleInfo.custom_sections.base.table.<T>.__1";
        em_symbol_size 0x20 "ModuleInfo.em_symbol_map.:Some.__0.base.table.<T>.#";
        em_symbol_index 0x0 "ModuleInfo.em_symbol_map.:Some.__0.base.table.<T>.__0";
        em_symbol_name 0x8 "ModuleInfo.em_symbol_map.:Some.__0.base.table.<T>.__1.vec";
    }
}

offsets! {
    /// Offsets in `X64ExecutionContext`, which is the `RunnableModule` of singlepass (`codegen_x64.rs`).
    ContextLayout {
        context_size 0xa8 "X64ExecutionContext.#";
        context_code_ptr 0x70 "X64ExecutionContext.code.ptr";
        context_code_size 0x78 "X64ExecutionContext.code.size";
        context_msm 0x88 "X64ExecutionContext.msm";
        context_offsets 0x18 "X64ExecutionContext.function_offsets";
        context_import_count 0x80 "X64ExecutionContext.func_import_count";
    }
}

impl StateLayout {
    /// Checks that all discriminants in state maps are words of 8 bytes, because the readers take them as such. Every
    /// compiler seen makes them words, since the payloads of these enums are words.
    fn check_tags(&self) -> Result<(), String> {
        match self.rows().into_iter().find(|(name, size)| name.ends_with("_tag_size") && *size != 8) {
            Some((name, size)) => Err(format!("{name} is {size}, not 8")),
            None => Ok(()),
        }
    }
}

/// The layouts of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layouts {
    /// Layouts of state maps and code versions.
    pub state: StateLayout,
    /// Layouts of modules.
    pub module: ModuleLayout,
    /// Layout of the backend's context.
    pub context: ContextLayout,
    /// Where the layouts came from.
    pub origin: LayoutOrigin,
    /// Why the host's debug info was not used, where there is some but it is incomplete.
    pub notes: Vec<String>,
}

impl Layouts {
    /// The built-in layouts of a compiler version such as "1.95.0".
    pub fn for_compiler(version: &str) -> Option<Layouts> {
        let known = KNOWN_COMPILERS.iter().find(|k| **k == version)?;
        Some(Layouts {
            state: StateLayout::RUSTC_1_95_0,
            module: ModuleLayout::RUSTC_1_95_0,
            context: ContextLayout::RUSTC_1_95_0,
            origin: LayoutOrigin::Table(known),
            notes: Vec::new(),
        })
    }

    /// The layouts of the host whose file is `object`: from its debug info, else from that of its separate debug
    /// file, else from the table.
    pub fn of_object(object: &LoadedObject) -> Result<Layouts, LayoutError> {
        let data = object.data.as_deref().ok_or_else(|| LayoutError::NoFile(object.name()))?;
        let mut note = None;
        for file in [Some(data), object.debug.as_ref().map(|(_, d)| &d[..])].into_iter().flatten() {
            match from_dwarf(file) {
                Ok(Some(layouts)) => return Ok(layouts),
                Ok(None) => {}
                Err(why) => note = Some(format!("debug info of {} is not usable for layouts: {why}", object.name())),
            }
        }
        let found = compilers(data);
        match found.iter().find_map(|v| Layouts::for_compiler(v)) {
            Some(mut layouts) => {
                layouts.notes.extend(note);
                Ok(layouts)
            }
            None if found.is_empty() => Err(LayoutError::NoCompiler),
            None => Err(LayoutError::UnknownCompiler { found: found.join(", "), known: KNOWN_COMPILERS.join(", ") }),
        }
    }

    /// The layouts of the target's main executable. This is the expensive part of finding anything here, so ask only
    /// when a route needs it.
    pub fn of_target(objects: &Objects) -> Result<Layouts, LayoutError> {
        match objects.executable() {
            Some(object) => Layouts::of_object(object),
            None => Err(LayoutError::NoFile("the executable".to_owned())),
        }
    }
}

impl From<&StateLayout> for VecLayout {
    fn from(l: &StateLayout) -> VecLayout {
        VecLayout { cap: l.vec_cap, ptr: l.vec_ptr, len: l.vec_len }
    }
}

impl From<&ModuleLayout> for VecLayout {
    fn from(l: &ModuleLayout) -> VecLayout {
        VecLayout { cap: l.vec_cap, ptr: l.vec_ptr, len: l.vec_len }
    }
}

impl From<&ModuleLayout> for TableLayout {
    fn from(l: &ModuleLayout) -> TableLayout {
        TableLayout { ctrl: l.table_ctrl, mask: l.table_mask, items: l.table_items }
    }
}

/// Names of the types that are searched for. All other types are reached from these.
const ROOTS: [&str; 6] =
    ["CodeVersion", "ModuleStateMap", "FunctionStateMap", "ModuleInner", "ModuleInfo", "X64ExecutionContext"];

/// Reads layouts from the debug info of an ELF file. `Ok(None)` means that the file has no debug info, or that one of
/// the types that are searched for is not in it.
pub fn from_dwarf(elf: &[u8]) -> Result<Option<Layouts>, String> {
    with_types(elf, &ROOTS, "wasmer", |types| {
        let state = StateLayout::from_types(types)?;
        state.check_tags()?;
        Ok(Layouts {
            state,
            module: ModuleLayout::from_types(types)?,
            context: ContextLayout::from_types(types)?,
            origin: LayoutOrigin::Dwarf,
            notes: Vec::new(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use crate::unwind::testing::{Section, elf};

    #[test]
    fn debug_information_has_an_end() {
        for (more, too_large) in [(0, false), (1, true)] {
            let bytes = vec![0; limits::MAX_DEBUG_INFO_BYTES as usize + more];
            let file = elf(&[Section { name: ".debug_info", flags: 0, address: 0, bytes: &bytes }]);
            let found = from_dwarf(&file).err().unwrap_or_default();
            assert_eq!(found.contains("is too large"), too_large, "{found}");
        }
    }
}
