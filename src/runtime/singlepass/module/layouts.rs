//! Layouts of the runtime's own Rust structures in a host.
//!
//! `repr(Rust)` promises nothing, so an offset is only known for one compiler. There are two sources of offsets,
//! which are asked in this order:
//!
//! 1. The host's DWARF, where it was built with `debug = 2` (`debug = 1` and line tables have no types).
//! 2. A table keyed by the compiler version that the linker left in `.comment`, a section that `strip` keeps.
//!
//! `offsets!` holds both in one row per offset: the measured number and the path through the types that leads to it.
//! So the table can be checked against any host that has DWARF, and a new compiler needs one column of numbers.
//!
//! Neither source is trusted further than to say where to look. The readers check pointers, lengths, tags and orders
//! themselves, and an address that does not read like the structure is an error, not a value.

use crate::limits;
use crate::process::objects::{LoadedObject, Objects};
use crate::process::unpack::section_bytes;
use crate::runtime::rust::memory::VecLayout;
use gimli::{EndianSlice, LittleEndian, UnitOffset};
use object::{Object, ObjectSection};
use std::borrow::Cow;
use std::collections::HashMap;

/// Stands in a layout for the discriminant of a variant that has none of its own. In such an enum (niche encoding)
/// every value that is not another variant's discriminant belongs to this variant.
pub const DATAFUL: u64 = u64::MAX;

/// Where the layouts of a host came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The host's debug info.
    Dwarf,
    /// The built-in table of this compiler version.
    Table(&'static str),
}

/// Why the layouts of a host are not known.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Neither `.comment` nor type information says what compiled the host.
    #[error("no compiler named in .comment and no type information in the host")]
    NoCompiler,
    /// The table has no column for the host's compiler.
    #[error("unknown compiler: rustc {found}; layouts known for: {known}")]
    UnknownCompiler {
        /// Versions that the host names, separated by commas.
        found: String,
        /// Versions that the table has, separated by commas.
        known: String,
    },
    /// There is no file of the host to look at. The string names the file.
    #[error("{0} cannot be read, so neither its debug info nor its compiler is known")]
    NoFile(String),
}

/// Compiler versions with a column in the table.
///
/// 1.95.0 was measured with debug and release hosts, which agree. A neighbouring version must not be taken for it:
/// the nightly of 1.97.0 has the same offsets, but `None` of `Option<SuspendOffset>` is -1 there and not 3.
pub const KNOWN_COMPILERS: [&str; 1] = ["1.95.0"];

macro_rules! offsets {
    ($(#[$doc:meta])* $name:ident { $($field:ident $value:literal $path:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // Each field's path says what it is.
        pub struct $name { $(pub $field: u64,)* }

        impl $name {
            /// The numbers for rustc 1.95.0.
            pub const RUSTC_1_95_0: $name = $name { $($field: $value,)* };

            /// Computes every field by following its path. The error names the first path that leads nowhere.
            fn from_types(types: &Types<'_>) -> Result<$name, String> {
                Ok($name { $($field: types.eval($path).ok_or_else(|| format!("no {} in the debug info", $path))?,)* })
            }

            /// All fields as (name, value), for comparing layouts and for `--verbose`.
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field),)*]
            }
        }
    };
}

// The language of the paths: a path begins at a root type, and `Root.member.member` is the offset of that member in
// bytes. A step may also be `*` (follow the pointer; offsets restart), `<T>` (go to the type argument T; offsets
// restart), `!` (offsets restart here) or `:Variant` (go into that variant). The last step may be `#` (size of the
// type in bytes), `^` (offset of the discriminant), `^#` (size of the discriminant), `@Variant` (the discriminant's
// value for that variant) or `@?Variant` (the same, and `DATAFUL` if the variant has none). `|` separates
// alternatives, for fields of std whose names changed.
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
    pub source: Source,
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
            source: Source::Table(known),
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

/// Versions of rustc named in `.comment` ("rustc version 1.95.0 (59807616e 2026-04-14)"), in file order, each once.
pub fn compilers(elf: &[u8]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let Ok(file) = object::File::parse(elf) else { return out };
    let Some(section) = file.section_by_name(".comment") else { return out };
    let Some(data) = section_bytes(&section) else { return out };
    for line in data.split(|&b| b == 0).take(limits::MAX_COMMENT_LINES) {
        let Some(rest) = line.strip_prefix(b"rustc version ") else { continue };
        let version = rest.split(|&b| b == b' ').next().unwrap_or(rest);
        let version = String::from_utf8_lossy(version).into_owned();
        if version.len() <= 64 && !out.contains(&version) {
            out.push(version);
        }
    }
    out
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Unit<'a> = gimli::Unit<Slice<'a>>;

/// Reads layouts from the debug info of an ELF file. `Ok(None)` means that the file has no debug info, or that one of
/// the types that are searched for is not in it.
pub fn from_dwarf(elf: &[u8]) -> Result<Option<Layouts>, String> {
    let file = object::File::parse(elf).map_err(|e| e.to_string())?;
    if file.section_by_name(".debug_info").is_none() {
        return Ok(None);
    }
    let mut total = 0u64;
    let sections = gimli::DwarfSections::load(|id| -> Result<Cow<'_, [u8]>, String> {
        let Some(section) = file.section_by_name(id.name()) else { return Ok(Cow::Borrowed(&[][..])) };
        let size = section.compressed_file_range().map_or(u64::MAX, |range| range.uncompressed_size);
        total = total.saturating_add(size);
        if total > limits::MAX_DEBUG_INFO_BYTES {
            return Err(format!("{} is too large", id.name()));
        }
        section_bytes(&section).ok_or_else(|| format!("{} cannot be read", id.name()))
    })?;
    let dwarf = sections.borrow(|s| EndianSlice::new(s, LittleEndian));
    let Some(types) = Types::find(&dwarf).map_err(|e| e.to_string())? else { return Ok(None) };
    let state = StateLayout::from_types(&types)?;
    state.check_tags()?;
    Ok(Some(Layouts {
        state,
        module: ModuleLayout::from_types(&types)?,
        context: ContextLayout::from_types(&types)?,
        source: Source::Dwarf,
        notes: Vec::new(),
    }))
}

/// Names of the types that are searched for. All other types are reached from these.
const ROOTS: [&str; 6] =
    ["CodeVersion", "ModuleStateMap", "FunctionStateMap", "ModuleInner", "ModuleInfo", "X64ExecutionContext"];

/// A type in the debug info: the index of its unit in `Types::units`, and its entry in that unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TypeRef {
    unit: usize,
    entry: UnitOffset,
}

struct Member {
    name: String,
    offset: u64,
    ty: Option<TypeRef>,
}

#[derive(Default)]
struct VariantPart {
    tag_offset: u64,
    tag_ty: Option<TypeRef>,
    variants: Vec<(Option<u64>, Member)>,
}

#[derive(Default)]
struct TypeEntry {
    size: Option<u64>,
    /// The type that a pointer, array or typedef leads to.
    target: Option<TypeRef>,
    members: Vec<Member>,
    arguments: Vec<(String, TypeRef)>,
    variants: Option<VariantPart>,
}

/// The part of the debug info that paths are evaluated in: the root types and the units that hold them.
struct Types<'a> {
    dwarf: &'a gimli::Dwarf<Slice<'a>>,
    units: Vec<Unit<'a>>,
    roots: HashMap<&'static str, TypeRef>,
}

impl<'a> Types<'a> {
    /// Looks for the roots: first in the units of the runtime's own crates, then in all others (LTO names units as it
    /// likes). Stops when all are found.
    fn find(dwarf: &'a gimli::Dwarf<Slice<'a>>) -> Result<Option<Types<'a>>, gimli::Error> {
        let mut types = Types { dwarf, units: Vec::new(), roots: HashMap::new() };
        let mut budget = limits::MAX_DEBUG_ENTRIES;
        for of_runtime in [true, false] {
            let mut headers = dwarf.units();
            while let Some(header) = headers.next()? {
                if types.roots.len() == ROOTS.len() {
                    return Ok(Some(types));
                }
                let unit = dwarf.unit(header)?;
                let named = unit.name.is_some_and(|n| n.to_string_lossy().contains("wasmer"));
                if named == of_runtime {
                    types.search_unit(unit, &mut budget)?;
                }
                if budget == 0 {
                    break;
                }
            }
        }
        Ok((types.roots.len() == ROOTS.len()).then_some(types))
    }

    fn search_unit(&mut self, unit: Unit<'a>, budget: &mut u64) -> Result<(), gimli::Error> {
        let mut found = Vec::new();
        {
            let mut entries = unit.entries_raw(None)?;
            while !entries.is_empty() && *budget > 0 {
                *budget -= 1;
                let offset = entries.next_offset();
                // This entry ends a list of children.
                let Some(abbreviation) = entries.read_abbreviation()? else { continue };
                // Millions of entries are passed to find six, so other entries are skipped unread.
                if abbreviation.tag() != gimli::DW_TAG_structure_type {
                    entries.skip_attributes(abbreviation.attributes())?;
                    continue;
                }
                let (mut name, mut has_size) = (None, false);
                for &attribute in abbreviation.attributes() {
                    let attribute = entries.read_attribute(attribute)?;
                    match attribute.name() {
                        gimli::DW_AT_name => _ = name.get_or_insert(attribute.value()),
                        // A mere declaration of a type has no size.
                        gimli::DW_AT_byte_size => has_size = true,
                        _ => {}
                    }
                }
                let Some(name) = name.filter(|_| has_size) else { continue };
                let Ok(name) = self.dwarf.attr_string(&unit, name) else { continue };
                if let Some(root) = ROOTS.iter().find(|r| r.as_bytes() == name.slice())
                    && !self.roots.contains_key(root)
                {
                    found.push((*root, offset));
                }
            }
        }
        if !found.is_empty() {
            let index = self.units.len();
            self.units.push(unit);
            for (root, entry) in found {
                self.roots.entry(root).or_insert(TypeRef { unit: index, entry });
            }
        }
        Ok(())
    }

    fn reference(&self, unit: usize, entry: &gimli::DebuggingInformationEntry<Slice<'a>>) -> Option<TypeRef> {
        match entry.attr_value(gimli::DW_AT_type)? {
            gimli::AttributeValue::UnitRef(offset) => Some(TypeRef { unit, entry: offset }),
            gimli::AttributeValue::DebugInfoRef(offset) => self.units.iter().enumerate().find_map(|(unit, u)| {
                let entry = offset.to_unit_offset(&u.header)?;
                Some(TypeRef { unit, entry })
            }),
            _ => None,
        }
    }

    fn name(&self, unit: &Unit<'a>, entry: &gimli::DebuggingInformationEntry<Slice<'a>>) -> String {
        entry
            .attr_value(gimli::DW_AT_name)
            .and_then(|v| self.dwarf.attr_string(unit, v).ok())
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    fn member(
        &self,
        unit_index: usize,
        unit: &Unit<'a>,
        entry: &gimli::DebuggingInformationEntry<Slice<'a>>,
    ) -> Member {
        Member {
            name: self.name(unit, entry),
            offset: entry.attr_value(gimli::DW_AT_data_member_location).and_then(|v| v.udata_value()).unwrap_or(0),
            ty: self.reference(unit_index, entry),
        }
    }

    /// Reads one type with its members. `None` where the debug info is broken or the type has too many members.
    fn entry(&self, ty: TypeRef) -> Option<TypeEntry> {
        let unit = self.units.get(ty.unit)?;
        let mut tree = unit.entries_tree(Some(ty.entry)).ok()?;
        let root = tree.root().ok()?;
        let mut out = TypeEntry {
            size: root.entry().attr_value(gimli::DW_AT_byte_size).and_then(|v| v.udata_value()),
            target: self.reference(ty.unit, root.entry()),
            ..TypeEntry::default()
        };
        let mut children = root.children();
        let mut seen = 0;
        while let Ok(Some(child)) = children.next() {
            seen += 1;
            if seen > limits::MAX_MEMBERS {
                return None;
            }
            match child.entry().tag() {
                gimli::DW_TAG_member => out.members.push(self.member(ty.unit, unit, child.entry())),
                gimli::DW_TAG_template_type_parameter => {
                    if let Some(argument) = self.reference(ty.unit, child.entry()) {
                        out.arguments.push((self.name(unit, child.entry()), argument));
                    }
                }
                gimli::DW_TAG_variant_part => out.variants = Some(self.variant_part(ty.unit, unit, child)?),
                _ => {}
            }
        }
        Some(out)
    }

    fn variant_part(
        &self,
        unit_index: usize,
        unit: &Unit<'a>,
        node: gimli::EntriesTreeNode<'_, '_, Slice<'a>>,
    ) -> Option<VariantPart> {
        let mut part = VariantPart::default();
        let tag = match node.entry().attr_value(gimli::DW_AT_discr) {
            Some(gimli::AttributeValue::UnitRef(tag)) => Some(tag),
            _ => None,
        };
        let mut children = node.children();
        let mut seen = 0;
        while let Ok(Some(child)) = children.next() {
            seen += 1;
            if seen > limits::MAX_MEMBERS {
                return None;
            }
            match child.entry().tag() {
                gimli::DW_TAG_member if Some(child.entry().offset()) == tag => {
                    let member = self.member(unit_index, unit, child.entry());
                    (part.tag_offset, part.tag_ty) = (member.offset, member.ty);
                }
                gimli::DW_TAG_variant => {
                    let value = child
                        .entry()
                        .attr_value(gimli::DW_AT_discr_value)
                        .and_then(|v| v.udata_value().or_else(|| v.sdata_value().map(|s| s as u64)));
                    let mut inner = child.children();
                    while let Ok(Some(m)) = inner.next() {
                        if m.entry().tag() == gimli::DW_TAG_member {
                            part.variants.push((value, self.member(unit_index, unit, m.entry())));
                            break;
                        }
                    }
                }
                _ => {}
            }
        }
        Some(part)
    }

    /// Evaluates a path (see `offsets!`). Of several alternatives it takes the first that leads somewhere.
    fn eval(&self, paths: &str) -> Option<u64> {
        paths.split('|').find_map(|path| self.eval_one(path))
    }

    fn eval_one(&self, path: &str) -> Option<u64> {
        let mut steps = path.split('.');
        let mut ty = *self.roots.get(steps.next()?)?;
        let mut at = 0u64;
        for step in steps {
            let entry = self.entry(ty)?;
            let next = match step {
                "#" => return entry.size,
                "^" => return at.checked_add(entry.variants?.tag_offset),
                "^#" => return self.entry(entry.variants?.tag_ty?)?.size,
                "!" => {
                    at = 0;
                    continue;
                }
                "*" => {
                    at = 0;
                    entry.target?
                }
                _ if step.starts_with('@') => {
                    let variants = entry.variants?.variants;
                    let name = step.trim_start_matches(['@', '?']);
                    let (value, _) = variants.into_iter().find(|(_, m)| m.name == name)?;
                    return value.or_else(|| step.starts_with("@?").then_some(DATAFUL));
                }
                _ if step.starts_with('<') => {
                    at = 0;
                    let name = step.trim_matches(['<', '>']);
                    entry.arguments.into_iter().find(|(n, _)| n == name)?.1
                }
                _ => {
                    let member = match step.strip_prefix(':') {
                        Some(name) => entry.variants?.variants.into_iter().map(|(_, m)| m).find(|m| m.name == name)?,
                        None => entry.members.into_iter().find(|m| m.name == step)?,
                    };
                    at = at.checked_add(member.offset)?;
                    member.ty?
                }
            };
            ty = next;
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::{Section, elf};
    use gimli::write::{AttributeValue, DwarfUnit, EndianVec, Sections};

    #[test]
    fn comments_and_debug_information_have_an_end() {
        let line = b"rustc version 1.95.0 (x)\0";
        for (lines, found) in [(limits::MAX_COMMENT_LINES - 1, 1), (limits::MAX_COMMENT_LINES, 0)] {
            let bytes = [&b"x\0".repeat(lines), &line[..]].concat();
            let file = elf(&[Section { name: ".comment", flags: 0, address: 0, bytes: &bytes }]);
            assert_eq!(compilers(&file).len(), found);
        }
        for (more, too_large) in [(0, false), (1, true)] {
            let bytes = vec![0; limits::MAX_DEBUG_INFO_BYTES as usize + more];
            let file = elf(&[Section { name: ".debug_info", flags: 0, address: 0, bytes: &bytes }]);
            let found = from_dwarf(&file).err().unwrap_or_default();
            assert_eq!(found.contains("is too large"), too_large, "{found}");
        }
    }

    #[test]
    fn entries_and_members_have_an_end() {
        for (labels, members) in [
            (limits::MAX_DEBUG_ENTRIES as usize - 100, 1),
            (limits::MAX_DEBUG_ENTRIES as usize, 1),
            (0, limits::MAX_MEMBERS),
            (0, limits::MAX_MEMBERS + 1),
        ] {
            let encoding = gimli::Encoding { format: gimli::Format::Dwarf32, version: 4, address_size: 8 };
            let mut unit = DwarfUnit::new(encoding);
            let top = unit.unit.root();
            for _ in 0..labels {
                unit.unit.add(top, gimli::DW_TAG_label);
            }
            for name in ROOTS {
                let id = unit.unit.add(top, gimli::DW_TAG_structure_type);
                let entry = unit.unit.get_mut(id);
                entry.set(gimli::DW_AT_name, AttributeValue::String(name.into()));
                entry.set(gimli::DW_AT_byte_size, AttributeValue::Udata(8));
                (0..members).for_each(|_| _ = unit.unit.add(id, gimli::DW_TAG_member));
            }
            let mut sections = Sections::new(EndianVec::new(LittleEndian));
            unit.write(&mut sections).unwrap();
            let load = |id| {
                let data = sections.get(id).map(|s| s.slice()).unwrap_or_default();
                Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
            };
            let dwarf = gimli::Dwarf::load(load).unwrap();
            let types = Types::find(&dwarf).unwrap();
            assert_eq!(types.is_some(), labels < limits::MAX_DEBUG_ENTRIES as usize);
            if let Some(types) = types {
                let found = types.roots.values().all(|root| types.entry(*root).is_some());
                assert_eq!(found, members <= limits::MAX_MEMBERS);
            }
        }
    }
}
