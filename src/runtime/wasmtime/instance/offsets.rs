//! Where an instance and a store keep their parts: the structures that compiled code reads, on 64-bit targets.
//!
//! An instance is a `VMContext`: a fixed header, then arrays whose lengths the module decides. [`VmLayout`] computes
//! where each array begins (`vmoffsets.rs`). [`StoreLayout`] has the offsets in a `VMStoreContext`, to which each
//! instance points.
//!
//! | version | change |
//! |---|---|
//! | 37 | the frame pointer at the last exit is the exit trampoline's own instead of its caller's |
//! | 38 | the store knows the stack pointer at the last entry and the trap handler there |
//! | 43 | the store counts its execution (`execution_version`), which moves what is behind by a word |
//! | 45 | an imported function has four words instead of three, in another order |
//! | 46 | behind the `VMFuncRef`s: one for the initializer, and the data segments |
//! | 48 | the `VMFuncRef`s behind tags are aligned |
//!
//! This module has only numbers. Its users, who know the memory, read the values.

use crate::runtime::wasmtime::image::info::{Counts, ModuleInfo};
use crate::runtime::wasmtime::image::version::Version;

/// The first four bytes of a `VMContext`. The four behind it are padding with any content.
pub const VMCONTEXT_MAGIC: [u8; 4] = *b"core";
/// The first four bytes of the context of a host function.
pub const HOST_FUNCTION_MAGIC: [u8; 4] = *b"ACHF";
/// The first four bytes of a component's context.
pub const COMPONENT_MAGIC: [u8; 4] = *b"comp";

/// Offset in a `VMContext` of the pointer to the `VMStoreContext`.
pub const VMCONTEXT_STORE: u64 = 8;
/// Offset in a `VMContext` of the pointer to the table of the runtime's routines.
pub const VMCONTEXT_BUILTINS: u64 = 16;
/// Offset in a `VMContext` of the pointer to the engine's epoch counter.
#[cfg(any(test, feature = "internals"))]
pub const VMCONTEXT_EPOCH: u64 = 24;
/// Offset in a `VMContext` of the pointer to the garbage collector's data.
#[cfg(any(test, feature = "internals"))]
pub const VMCONTEXT_GC_HEAP_DATA: u64 = 32;
/// Offset in a `VMContext` of the pointer to the engine's numbers of the module's types. The pointer is dangling (4)
/// if there are no types, as in the instance that each store makes for itself.
pub const VMCONTEXT_TYPE_IDS: u64 = 40;
/// Size in bytes of the fixed part of a `VMContext`.
const VMCONTEXT_FIXED: u64 = 48;

/// Offset in a `VMMemoryDefinition` of the address at which the memory begins.
pub const MEMORY_BASE: u64 = 0;
/// Offset in a `VMMemoryDefinition` of the memory's size in bytes.
pub const MEMORY_LENGTH: u64 = 8;
/// Size of a `VMMemoryDefinition` in bytes.
pub const MEMORY_SIZE: u64 = 16;
/// Offset in a `VMMemoryImport` of the pointer to the `VMMemoryDefinition`.
pub const MEMORY_IMPORT_FROM: u64 = 0;
/// Offset in a `VMMemoryImport` of the pointer to the instance that owns the memory.
pub const MEMORY_IMPORT_VMCTX: u64 = 8;
/// Offset in a `VMMemoryImport` of the memory's index among the defined memories of the instance that owns it, 32
/// bits.
#[cfg(any(test, feature = "internals"))]
pub const MEMORY_IMPORT_INDEX: u64 = 16;
/// Size of a `VMMemoryImport` in bytes.
pub const MEMORY_IMPORT_SIZE: u64 = 24;

/// Offset in a `VMTableDefinition` of the address of the elements.
pub const TABLE_BASE: u64 = 0;
/// Offset in a `VMTableDefinition` of the number of elements.
pub const TABLE_ELEMENTS: u64 = 8;
/// Size of a `VMTableDefinition` in bytes.
pub const TABLE_SIZE: u64 = 16;
/// Offset in a `VMTableImport` of the pointer to the `VMTableDefinition`.
pub const TABLE_IMPORT_FROM: u64 = 0;
/// Offset in a `VMTableImport` of the pointer to the instance that owns the table.
pub const TABLE_IMPORT_VMCTX: u64 = 8;
/// Size of a `VMTableImport` in bytes.
pub const TABLE_IMPORT_SIZE: u64 = 24;

/// Size of a `VMGlobalDefinition` in bytes, whatever the global's type. It begins with the value.
pub const GLOBAL_SIZE: u64 = 16;
/// Offset in a `VMGlobalImport` of the pointer to the `VMGlobalDefinition`.
pub const GLOBAL_IMPORT_FROM: u64 = 0;
/// Offset in a `VMGlobalImport` of the pointer to the instance that owns the global. It is null if the host owns it.
pub const GLOBAL_IMPORT_VMCTX: u64 = 8;
/// Size of a `VMGlobalImport` in bytes.
pub const GLOBAL_IMPORT_SIZE: u64 = 24;

/// Size of a `VMTagDefinition` in bytes.
pub const TAG_SIZE: u64 = 4;
/// Offset in a `VMTagImport` of the pointer to the instance that owns the tag.
pub const TAG_IMPORT_VMCTX: u64 = 8;
/// Size of a `VMTagImport` in bytes.
pub const TAG_IMPORT_SIZE: u64 = 24;

/// Offset in a `VMFuncRef` of the address of the code for calls from the host.
pub const FUNC_REF_ARRAY_CALL: u64 = 0;
/// Offset in a `VMFuncRef` of the address of the code for calls from Wasm, which may be null.
pub const FUNC_REF_WASM_CALL: u64 = 8;
/// Offset in a `VMFuncRef` of the engine's number of the function's type, 32 bits.
pub const FUNC_REF_TYPE: u64 = 16;
/// Offset in a `VMFuncRef` of the pointer to the instance, or to what else the function needs.
pub const FUNC_REF_VMCTX: u64 = 24;
/// Size of a `VMFuncRef` in bytes.
pub const FUNC_REF_SIZE: u64 = 32;

/// Offsets in a `VMFunctionImport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionImport {
    /// Offset of the address of the code for calls from Wasm.
    pub wasm_call: u64,
    /// Offset of the address of the code for calls from the host.
    pub array_call: u64,
    /// Offset of the pointer to the instance, or to what else the function needs.
    pub vmctx: u64,
    /// Size of a `VMFunctionImport` in bytes.
    pub size: u64,
}

impl FunctionImport {
    /// The offsets in a version. `None` if the version's layouts are not known.
    pub fn new(version: Version) -> Option<FunctionImport> {
        if !version.known() {
            return None;
        }
        Some(if version.0 < 45 {
            FunctionImport { wasm_call: 0, array_call: 8, vmctx: 16, size: 24 }
        } else {
            FunctionImport { array_call: 0, wasm_call: 8, vmctx: 24, size: 32 }
        })
    }
}

/// Offsets in a `VMStoreContext`.
///
/// What the context says of the last exit and entry is right while the thread is in the host. While code of the guest
/// runs, it has not written them yet. Nested calls save them in `CallThreadState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLayout {
    /// Offset of the limit of the stack.
    pub stack_limit: u64,
    /// Offset of the GC heap's `VMMemoryDefinition`.
    pub gc_heap: u64,
    /// Offset of the frame pointer at the last exit from Wasm.
    pub last_exit_fp: u64,
    /// Whether the frame pointer at [`StoreLayout::last_exit_fp`] is the exit trampoline's own. If not, it is that of
    /// the Wasm function that called the trampoline.
    pub exit_fp_is_trampolines: bool,
    /// Offset of the return address into Wasm of the last exit.
    pub last_exit_pc: u64,
    /// Offset of the stack pointer at the last entry into Wasm.
    pub last_entry_sp: Option<u64>,
    /// Offset of the frame pointer of the last entry trampoline.
    pub last_entry_fp: u64,
    /// Offset of the address in that entry trampoline at which a trap resumes.
    pub last_entry_trap_handler: Option<u64>,
    /// Offset of the `VMStackChain` of stack switching, which has two words.
    pub stack_chain: u64,
    /// Offset of the pointer to the embedder's data.
    pub store_data: Option<u64>,
    /// Offset of the range of the guard page of the fiber that runs: begin and end, two words.
    pub async_guard_range: Option<u64>,
}

impl StoreLayout {
    /// The offsets in a version. `None` if the version's layouts are not known.
    pub fn new(version: Version) -> Option<StoreLayout> {
        if !version.known() {
            return None;
        }
        // The fields in order. Each is a word, except where another size is given.
        let mut at = 0;
        let mut next = |bytes: u64| {
            at += bytes;
            at - bytes
        };
        let since = |first: u32| version.0 >= first;
        let _fuel_consumed = next(8);
        let _epoch_deadline = next(8);
        let _execution_version = next(if since(43) { 8 } else { 0 });
        let stack_limit = next(8);
        let gc_heap = next(MEMORY_SIZE);
        let last_exit_fp = next(8);
        let last_exit_pc = next(8);
        let last_entry_sp = since(38).then(|| next(8));
        let last_entry_fp = next(8);
        let last_entry_trap_handler = since(38).then(|| next(8));
        let stack_chain = next(16);
        let store_data = since(39).then(|| next(8));
        let async_guard_range = since(45).then(|| next(16));
        Some(StoreLayout {
            stack_limit,
            gc_heap,
            last_exit_fp,
            exit_fp_is_trampolines: since(37),
            last_exit_pc,
            last_entry_sp,
            last_entry_fp,
            last_entry_trap_handler,
            stack_chain,
            store_data,
            async_guard_range,
        })
    }
}

/// The numbers of a module that decide its layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmCounts {
    /// Numbers of imported items.
    pub imported: Counts,
    /// Numbers of defined items.
    pub defined: Counts,
    /// Number of defined memories that are not shared.
    pub owned_memories: u32,
    /// Number of functions that have a `VMFuncRef`.
    pub escaped_functions: u32,
    /// Number of data segments with a pointer (from version 46 on).
    pub runtime_data: u32,
    /// Whether there is a compiled initializer (from version 46 on).
    pub has_startup: bool,
}

impl From<&ModuleInfo> for VmCounts {
    fn from(module: &ModuleInfo) -> VmCounts {
        VmCounts {
            imported: module.imported,
            defined: module.defined(),
            owned_memories: module.owned_memories(),
            escaped_functions: module.escaped_functions,
            runtime_data: module.runtime_data.len() as u32,
            has_startup: module.has_startup,
        }
    }
}

/// The items of one kind in a `VMContext`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    /// Offset of the first item, in bytes.
    pub begin: u64,
    /// Size of each item in bytes.
    pub stride: u64,
    /// Number of items.
    pub count: u32,
}

impl Array {
    /// Offset of item `index`. `None` if there are not so many items.
    pub fn at(self, index: u32) -> Option<u64> {
        (index < self.count).then(|| self.begin + u64::from(index) * self.stride)
    }

    fn end(self) -> u64 {
        self.begin + u64::from(self.count) * self.stride
    }
}

/// Where an instance of a module keeps its items: offsets from its `VMContext`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmLayout {
    /// The `VMMemoryImport`s of the imported memories.
    pub imported_memories: Array,
    /// Pointers to the `VMMemoryDefinition` of each defined memory. For memories that are not shared they point back
    /// into [`VmLayout::owned_memories`], which can be checked.
    pub memories: Array,
    /// The `VMMemoryDefinition`s of defined memories that are not shared.
    pub owned_memories: Array,
    /// The `VMFunctionImport`s of the imported functions.
    pub imported_functions: Array,
    /// The `VMTableImport`s of the imported tables.
    pub imported_tables: Array,
    /// The `VMGlobalImport`s of the imported globals.
    pub imported_globals: Array,
    /// The `VMTagImport`s of the imported tags.
    pub imported_tags: Array,
    /// The `VMTableDefinition`s of the defined tables.
    pub tables: Array,
    /// The `VMGlobalDefinition`s of the defined globals.
    pub globals: Array,
    /// The `VMTagDefinition`s of the defined tags.
    pub tags: Array,
    /// The `VMFuncRef`s. That of a function that was not referred to yet has any content.
    pub func_refs: Array,
    /// The `VMFuncRef` of the initializer, if there is one (from version 46 on). Until the initializer runs it has
    /// any content.
    pub startup_func_ref: Array,
    /// Pointers to the data segments (from version 46 on).
    pub data_bases: Array,
    /// Lengths of the data segments in bytes, 32 bits each. The length of a segment that is not needed any more is
    /// zero.
    pub data_lengths: Array,
    /// Size of the whole `VMContext` in bytes.
    pub size: u64,
}

impl VmLayout {
    /// The layout for a version and a module's counts. `None` if the version's layouts are not known.
    pub fn new(version: Version, counts: &VmCounts) -> Option<VmLayout> {
        let function_import = FunctionImport::new(version)?.size;
        let since = |first: u32| version.0 >= first;
        let VmCounts { imported, defined, .. } = *counts;
        // The counts have 32 bits and the items at most 32 bytes, so no sum of them exceeds 64 bits.
        let array = |begin: u64, count: u32, stride: u64| Array { begin, stride, count };
        let imported_memories = array(VMCONTEXT_FIXED, imported.memories, MEMORY_IMPORT_SIZE);
        let memories = array(imported_memories.end(), defined.memories, 8);
        let owned_memories = array(memories.end(), counts.owned_memories, MEMORY_SIZE);
        let imported_functions = array(owned_memories.end(), imported.functions, function_import);
        let imported_tables = array(imported_functions.end(), imported.tables, TABLE_IMPORT_SIZE);
        let imported_globals = array(imported_tables.end(), imported.globals, GLOBAL_IMPORT_SIZE);
        let imported_tags = array(imported_globals.end(), imported.tags, TAG_IMPORT_SIZE);
        let tables = array(imported_tags.end(), defined.tables, TABLE_SIZE);
        let globals = array(tables.end().next_multiple_of(16), defined.globals, GLOBAL_SIZE);
        let tags = array(globals.end(), defined.tags, TAG_SIZE);
        let aligned = if since(48) { tags.end().next_multiple_of(8) } else { tags.end() };
        let func_refs = array(aligned, counts.escaped_functions, FUNC_REF_SIZE);
        let (startup, data) = if since(46) { (counts.has_startup.into(), counts.runtime_data) } else { (0, 0) };
        let startup_func_ref = array(func_refs.end(), startup, FUNC_REF_SIZE);
        let data_bases = array(startup_func_ref.end(), data, 8);
        let data_lengths = array(data_bases.end(), data, 4);
        Some(VmLayout {
            imported_memories,
            memories,
            owned_memories,
            imported_functions,
            imported_tables,
            imported_globals,
            imported_tags,
            tables,
            globals,
            tags,
            func_refs,
            startup_func_ref,
            data_bases,
            data_lengths,
            size: data_lengths.end(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts() -> impl Strategy<Value = VmCounts> {
        let five = || {
            [0u32..5, 0u32..5, 0u32..5, 0u32..5, 0u32..5].prop_map(|[functions, tables, memories, globals, tags]| {
                Counts { functions, tables, memories, globals, tags }
            })
        };
        (five(), five(), any::<prop::sample::Index>(), 0u32..9, 0u32..5, any::<bool>()).prop_map(
            |(imported, defined, owned, escaped_functions, runtime_data, has_startup)| VmCounts {
                imported,
                defined,
                owned_memories: owned.index(defined.memories as usize + 1) as u32,
                escaped_functions,
                runtime_data,
                has_startup,
            },
        )
    }

    macro_rules! upstream {
        ($name:ident, $environ:ident, $version:literal, {$($more:ident: $value:expr),*}, [$($begin:ident => $array:ident),*]) => {
            proptest! {
                /// Compares the layout with the runtime's own computation.
                #[test]
                fn $name(c in counts()) {
                    use $environ::{VMOffsets, VMOffsetsFields};
                    #[allow(unused_variables)]
                    let c = &c;
                    let theirs = VMOffsets::from(VMOffsetsFields {
                        ptr: 8u8,
                        num_imported_functions: c.imported.functions,
                        num_imported_tables: c.imported.tables,
                        num_imported_memories: c.imported.memories,
                        num_imported_globals: c.imported.globals,
                        num_imported_tags: c.imported.tags,
                        num_defined_tables: c.defined.tables,
                        num_defined_memories: c.defined.memories,
                        num_owned_memories: c.owned_memories,
                        num_defined_globals: c.defined.globals,
                        num_defined_tags: c.defined.tags,
                        num_escaped_funcs: c.escaped_functions,
                        $($more: $value(c)),*
                    });
                    let ours = VmLayout::new(Version($version), c).unwrap();
                    let begins = |o: &VMOffsets<u8>| [
                        o.vmctx_imported_memories_begin(),
                        o.vmctx_memories_begin(),
                        o.vmctx_owned_memories_begin(),
                        o.vmctx_imported_functions_begin(),
                        o.vmctx_imported_tables_begin(),
                        o.vmctx_imported_globals_begin(),
                        o.vmctx_imported_tags_begin(),
                        o.vmctx_tables_begin(),
                        o.vmctx_globals_begin(),
                        o.vmctx_tags_begin(),
                        o.vmctx_func_refs_begin(),
                        o.size_of_vmctx(),
                    ].map(u64::from);
                    prop_assert_eq!(begins(&theirs), [
                        ours.imported_memories.begin,
                        ours.memories.begin,
                        ours.owned_memories.begin,
                        ours.imported_functions.begin,
                        ours.imported_tables.begin,
                        ours.imported_globals.begin,
                        ours.imported_tags.begin,
                        ours.tables.begin,
                        ours.globals.begin,
                        ours.tags.begin,
                        ours.func_refs.begin,
                        ours.size,
                    ]);
                    $(prop_assert_eq!(u64::from(theirs.$begin()), ours.$array.begin);)*
                }
            }
        };
    }
    upstream!(as_version_36_computes_it, environ36, 36, {}, []);
    upstream!(as_version_48_computes_it, environ48, 48, {
        num_runtime_data: |c: &VmCounts| c.runtime_data,
        has_startup_func: |c: &VmCounts| c.has_startup
    }, [
        vmctx_runtime_data_bases_begin => data_bases,
        vmctx_runtime_data_lengths_begin => data_lengths
    ]);

    #[test]
    fn store_context_of_36() {
        use environ36::PtrSize;
        let (p, s) = (8u8, StoreLayout::new(Version(36)).unwrap());
        assert_eq!(s.stack_limit, u64::from(p.vmstore_context_stack_limit()));
        assert_eq!(s.gc_heap, u64::from(p.vmstore_context_gc_heap()));
        assert_eq!(s.last_exit_fp, u64::from(p.vmstore_context_last_wasm_exit_fp()));
        assert_eq!(s.last_exit_pc, u64::from(p.vmstore_context_last_wasm_exit_pc()));
        assert_eq!(s.last_entry_fp, u64::from(p.vmstore_context_last_wasm_entry_fp()));
        assert_eq!(s.stack_chain, u64::from(p.vmstore_context_stack_chain()));
        assert_eq!((s.last_entry_sp, s.last_entry_trap_handler, s.store_data), (None, None, None));
    }

    #[test]
    fn store_context_of_48() {
        use environ48::PtrSize;
        let (p, s) = (8u8, StoreLayout::new(Version(48)).unwrap());
        let theirs = p.vm_store_context();
        assert_eq!(s.stack_limit, u64::from(theirs.stack_limit()));
        assert_eq!(s.gc_heap, u64::from(theirs.gc_heap()));
        assert_eq!(s.last_exit_fp, u64::from(theirs.last_wasm_exit_trampoline_fp()));
        assert_eq!(s.last_exit_pc, u64::from(theirs.last_wasm_exit_pc()));
        assert_eq!(s.last_entry_sp, Some(u64::from(theirs.last_wasm_entry_sp())));
        assert_eq!(s.last_entry_fp, u64::from(theirs.last_wasm_entry_fp()));
        assert_eq!(s.last_entry_trap_handler, Some(u64::from(theirs.last_wasm_entry_trap_handler())));
        assert_eq!(s.stack_chain, u64::from(theirs.stack_chain()));
        assert_eq!(s.store_data, Some(u64::from(theirs.store_data())));
        assert_eq!(s.async_guard_range, Some(u64::from(theirs.async_guard_range())));
    }

    #[test]
    fn structures_of_48() {
        use environ48::PtrSize;
        let p = 8u8;
        let f = FunctionImport::new(Version(48)).unwrap();
        let import = p.vm_function_import();
        let theirs = [import.wasm_call(), import.array_call(), import.vmctx(), import.size()].map(u64::from);
        assert_eq!(theirs, [f.wasm_call, f.array_call, f.vmctx, f.size]);
        let r = p.vm_func_ref();
        let theirs = [r.array_call(), r.wasm_call(), r.type_index(), r.vmctx(), r.size()].map(u64::from);
        let ours = [FUNC_REF_ARRAY_CALL, FUNC_REF_WASM_CALL, FUNC_REF_TYPE, FUNC_REF_VMCTX, FUNC_REF_SIZE];
        assert_eq!(theirs, ours);
        let m = p.vm_memory_definition();
        assert_eq!([m.base(), m.current_length(), m.size()].map(u64::from), [MEMORY_BASE, MEMORY_LENGTH, MEMORY_SIZE]);
        let m = p.vm_memory_import();
        assert_eq!(
            [m.from(), m.vmctx(), m.index(), m.size()].map(u64::from),
            [MEMORY_IMPORT_FROM, MEMORY_IMPORT_VMCTX, MEMORY_IMPORT_INDEX, MEMORY_IMPORT_SIZE]
        );
        let t = p.vm_table_definition();
        assert_eq!([t.base(), t.current_elements(), t.size()].map(u64::from), [TABLE_BASE, TABLE_ELEMENTS, TABLE_SIZE]);
        let t = p.vm_table_import();
        assert_eq!(
            [t.from(), t.vmctx(), t.size()].map(u64::from),
            [TABLE_IMPORT_FROM, TABLE_IMPORT_VMCTX, TABLE_IMPORT_SIZE]
        );
        let g = p.vm_global_import();
        assert_eq!(
            [g.from(), g.vmctx(), g.size()].map(u64::from),
            [GLOBAL_IMPORT_FROM, GLOBAL_IMPORT_VMCTX, GLOBAL_IMPORT_SIZE]
        );
        let fixed = [
            p.vmctx_store_context(),
            p.vmctx_builtin_functions(),
            p.vmctx_epoch_ptr(),
            p.vmctx_gc_heap_data(),
            p.vmctx_type_ids_array(),
            p.vmctx_dynamic_data_start(),
        ];
        let ours = [
            VMCONTEXT_STORE,
            VMCONTEXT_BUILTINS,
            VMCONTEXT_EPOCH,
            VMCONTEXT_GC_HEAP_DATA,
            VMCONTEXT_TYPE_IDS,
            VMCONTEXT_FIXED,
        ];
        assert_eq!(fixed.map(u64::from), ours);
        assert_eq!(environ48::VMCONTEXT_MAGIC.to_le_bytes(), VMCONTEXT_MAGIC);
        assert_eq!(environ48::VM_ARRAY_CALL_HOST_FUNC_MAGIC.to_le_bytes(), HOST_FUNCTION_MAGIC);
    }

    /// The expected offsets were counted by hand in the sources.
    #[test]
    fn store_context_of_the_versions_between() {
        let of = |v: u32| {
            let s = StoreLayout::new(Version(v)).unwrap();
            (s.last_exit_fp, s.last_exit_pc, s.last_entry_sp, s.last_entry_fp, s.store_data, s.async_guard_range)
        };
        assert_eq!(of(37), (40, 48, None, 56, None, None));
        assert_eq!(of(38), (40, 48, Some(56), 64, None, None));
        assert_eq!(of(39), (40, 48, Some(56), 64, Some(96), None));
        assert_eq!(of(42), of(39));
        assert_eq!(of(43), (48, 56, Some(64), 72, Some(104), None));
        assert_eq!(of(44), of(43));
        assert_eq!(of(45), (48, 56, Some(64), 72, Some(104), Some(112)));
        for v in 46..=50 {
            assert_eq!(of(v), of(45), "{v}");
        }
    }

    #[test]
    fn where_the_versions_differ() {
        let counts = VmCounts {
            imported: Counts { functions: 2, ..Counts::default() },
            defined: Counts { tags: 1, memories: 1, globals: 1, ..Counts::default() },
            owned_memories: 1,
            escaped_functions: 1,
            runtime_data: 1,
            has_startup: true,
        };
        let of = |v: u32| {
            let l = VmLayout::new(Version(v), &counts).unwrap();
            // The fixed part has 48 bytes, the pointer 8 and the memory 16, so imported functions begin at 72.
            assert_eq!(
                (l.memories.at(0), l.owned_memories.at(0), l.imported_functions.begin),
                (Some(48), Some(56), 72)
            );
            (l.imported_functions.at(1), l.globals.at(0), l.tags.at(0), l.func_refs.at(0), l.size)
        };
        assert_eq!(of(36), (Some(96), Some(128), Some(144), Some(148), 180));
        assert_eq!(of(44), of(36));
        assert_eq!(of(45), (Some(104), Some(144), Some(160), Some(164), 196));
        assert_eq!(of(46), (Some(104), Some(144), Some(160), Some(164), 240));
        assert_eq!(of(47), of(46));
        assert_eq!(of(48), (Some(104), Some(144), Some(160), Some(168), 244));
        let l = VmLayout::new(Version(48), &counts).unwrap();
        assert_eq!((l.globals.at(1), l.imported_functions.at(2)), (None, None));
        assert_eq!((VmLayout::new(Version(35), &counts), VmLayout::new(Version(51), &counts)), (None, None));
    }
}
