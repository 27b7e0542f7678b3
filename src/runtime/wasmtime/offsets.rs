//! Where an instance and a store keep what: the structures that compiled code reads, on 64-bit targets.
//!
//! An instance is a `VMContext`: a fixed header, then arrays whose lengths the module decides. [`VmLayout`] computes where
//! each begins (`vmoffsets.rs`); [`StoreLayout`] has the offsets in a `VMStoreContext`, to which each instance points.
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
//! Values are read by who knows the memory; these are numbers only.

use super::info::{Counts, ModuleInfo};
use super::version::Version;

/// The first four bytes of a `VMContext`. The four behind it are padding with any content.
pub const VMCONTEXT_MAGIC: [u8; 4] = *b"core";
/// The first four bytes of the context of a host function.
pub const HOST_FUNCTION_MAGIC: [u8; 4] = *b"ACHF";
/// The first four bytes of a component's context.
pub const COMPONENT_MAGIC: [u8; 4] = *b"comp";

/// In a `VMContext`: pointer to the `VMStoreContext`.
pub const VMCONTEXT_STORE: u64 = 8;
/// In a `VMContext`: pointer to the table of the runtime's routines.
pub const VMCONTEXT_BUILTINS: u64 = 16;
/// In a `VMContext`: pointer to the engine's epoch counter.
pub const VMCONTEXT_EPOCH: u64 = 24;
/// In a `VMContext`: pointer to the garbage collector's data.
pub const VMCONTEXT_GC_HEAP_DATA: u64 = 32;
/// In a `VMContext`: pointer to the engine's numbers of the module's types. Dangling (4) without types, as in the instance
/// that each store makes for itself.
pub const VMCONTEXT_TYPE_IDS: u64 = 40;
/// End of the fixed part.
const VMCONTEXT_FIXED: u64 = 48;

/// `VMMemoryDefinition`: where the memory begins.
pub const MEMORY_BASE: u64 = 0;
/// `VMMemoryDefinition`: its size in bytes.
pub const MEMORY_LENGTH: u64 = 8;
/// Bytes of a `VMMemoryDefinition`.
pub const MEMORY_SIZE: u64 = 16;
/// `VMMemoryImport`: pointer to the `VMMemoryDefinition`.
pub const MEMORY_IMPORT_FROM: u64 = 0;
/// `VMMemoryImport`: the instance that owns it.
pub const MEMORY_IMPORT_VMCTX: u64 = 8;
/// `VMMemoryImport`: its index there among the defined ones, 32 bits.
pub const MEMORY_IMPORT_INDEX: u64 = 16;
/// Bytes of a `VMMemoryImport`.
pub const MEMORY_IMPORT_SIZE: u64 = 24;

/// `VMTableDefinition`: where the elements are.
pub const TABLE_BASE: u64 = 0;
/// `VMTableDefinition`: how many there are.
pub const TABLE_ELEMENTS: u64 = 8;
/// Bytes of a `VMTableDefinition`.
pub const TABLE_SIZE: u64 = 16;
/// `VMTableImport`: pointer to the `VMTableDefinition`.
pub const TABLE_IMPORT_FROM: u64 = 0;
/// `VMTableImport`: the instance that owns it.
pub const TABLE_IMPORT_VMCTX: u64 = 8;
/// Bytes of a `VMTableImport`.
pub const TABLE_IMPORT_SIZE: u64 = 24;

/// Bytes of a `VMGlobalDefinition`, whatever its type; the value begins it.
pub const GLOBAL_SIZE: u64 = 16;
/// `VMGlobalImport`: pointer to the `VMGlobalDefinition`.
pub const GLOBAL_IMPORT_FROM: u64 = 0;
/// `VMGlobalImport`: the instance that owns it; null if the host does.
pub const GLOBAL_IMPORT_VMCTX: u64 = 8;
/// Bytes of a `VMGlobalImport`.
pub const GLOBAL_IMPORT_SIZE: u64 = 24;

/// Bytes of a `VMTagDefinition`.
pub const TAG_SIZE: u64 = 4;
/// `VMTagImport`: the instance that owns it.
pub const TAG_IMPORT_VMCTX: u64 = 8;
/// Bytes of a `VMTagImport`.
pub const TAG_IMPORT_SIZE: u64 = 24;

/// `VMFuncRef`: code for calls from the host.
pub const FUNC_REF_ARRAY_CALL: u64 = 0;
/// `VMFuncRef`: code for calls from Wasm. May be null.
pub const FUNC_REF_WASM_CALL: u64 = 8;
/// `VMFuncRef`: the engine's number of its type, 32 bits.
pub const FUNC_REF_TYPE: u64 = 16;
/// `VMFuncRef`: the instance, or what else the function needs.
pub const FUNC_REF_VMCTX: u64 = 24;
/// Bytes of a `VMFuncRef`.
pub const FUNC_REF_SIZE: u64 = 32;

/// Offsets in a `VMFunctionImport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionImport {
    /// Code for calls from Wasm.
    pub wasm_call: u64,
    /// Code for calls from the host.
    pub array_call: u64,
    /// The instance, or what else the function needs.
    pub vmctx: u64,
    /// Bytes.
    pub size: u64,
}

impl FunctionImport {
    /// For a version; `None` if its layouts are not known.
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
/// What is said of the last exit and entry is right while the thread is in the host; code of the guest that runs has not
/// written it yet. Nested calls save it in `CallThreadState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLayout {
    /// Limit of the stack.
    pub stack_limit: u64,
    /// The GC heap's `VMMemoryDefinition`.
    pub gc_heap: u64,
    /// Frame pointer at the last exit from Wasm.
    pub last_exit_fp: u64,
    /// Whether [`StoreLayout::last_exit_fp`] is the exit trampoline's own. Else it is that of the Wasm function that
    /// called it.
    pub exit_fp_is_trampolines: bool,
    /// Return address into Wasm of the last exit.
    pub last_exit_pc: u64,
    /// Stack pointer at the last entry into Wasm.
    pub last_entry_sp: Option<u64>,
    /// Frame pointer of the last entry trampoline.
    pub last_entry_fp: u64,
    /// Where a trap resumes in that entry trampoline.
    pub last_entry_trap_handler: Option<u64>,
    /// `VMStackChain` of stack switching, two words.
    pub stack_chain: u64,
    /// Pointer to the embedder's data.
    pub store_data: Option<u64>,
    /// Guard page of the fiber that runs: begin and end.
    pub async_guard_range: Option<u64>,
}

impl StoreLayout {
    /// For a version; `None` if its layouts are not known.
    pub fn new(version: Version) -> Option<StoreLayout> {
        if !version.known() {
            return None;
        }
        // Fields in order; each is a word but for those that say otherwise.
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

/// What decides a module's layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmCounts {
    /// Imported items.
    pub imported: Counts,
    /// Defined items.
    pub defined: Counts,
    /// Defined memories that are not shared.
    pub owned_memories: u32,
    /// Functions that have a `VMFuncRef`.
    pub escaped_functions: u32,
    /// Data segments with a pointer (from version 46 on).
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

/// Items of one kind in a `VMContext`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    /// Offset of the first.
    pub begin: u64,
    /// Bytes of each.
    pub stride: u64,
    /// How many.
    pub count: u32,
}

impl Array {
    /// Offset of item `index`; `None` if there are not so many.
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
    /// `VMMemoryImport`s.
    pub imported_memories: Array,
    /// Pointers to the `VMMemoryDefinition` of each defined memory. Those of memories that are not shared point back into
    /// [`VmLayout::owned_memories`], which makes them a check.
    pub memories: Array,
    /// `VMMemoryDefinition`s.
    pub owned_memories: Array,
    /// `VMFunctionImport`s.
    pub imported_functions: Array,
    /// `VMTableImport`s.
    pub imported_tables: Array,
    /// `VMGlobalImport`s.
    pub imported_globals: Array,
    /// `VMTagImport`s.
    pub imported_tags: Array,
    /// `VMTableDefinition`s.
    pub tables: Array,
    /// `VMGlobalDefinition`s.
    pub globals: Array,
    /// `VMTagDefinition`s.
    pub tags: Array,
    /// `VMFuncRef`s. One for a function that was not referred to yet has any content.
    pub func_refs: Array,
    /// `VMFuncRef` of the initializer, if there is one (from version 46 on). Until it runs it has any content.
    pub startup_func_ref: Array,
    /// Pointers to the data segments (from version 46 on).
    pub data_bases: Array,
    /// Bytes of each data segment, 32 bits; zero for one that is not needed any more.
    pub data_lengths: Array,
    /// Bytes of the whole.
    pub size: u64,
}

impl VmLayout {
    /// For a version and a module's counts; `None` if the version's layouts are not known.
    pub fn new(version: Version, counts: &VmCounts) -> Option<VmLayout> {
        let function_import = FunctionImport::new(version)?.size;
        let since = |first: u32| version.0 >= first;
        let VmCounts { imported, defined, .. } = *counts;
        // 32-bit counts of items of at most 32 bytes: no sum of them exceeds 64 bits.
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
                /// The runtime's own computation.
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

    /// Counted by hand in the sources.
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
            // 48 fixed, 8 pointer, 16 memory: functions begin at 72.
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
