//! Artifact files of the real runtime, read back and compared with the runtime's own description.

use std::collections::HashMap;

use wasmer_runtime_core::backend::CompilerConfig;
use wasmer_runtime_core::memory::MemoryType;
use wasmer_runtime_core::module::{ExportIndex, Module, ModuleInfo as Own};
use wasmer_runtime_core::structures::TypedIndex;
use wasmer_runtime_core::types::{GlobalDescriptor, MemoryDescriptor, TableDescriptor, Type};
use wasmer_runtime_core_near as wasmer_runtime_core;
use wasmer_singlepass_backend_near::SinglePassCompiler;
use wstate::runtime::singlepass::module::cache_image::CacheImage;
use wstate::runtime::singlepass::module::info::{
    Artifact, Export, GlobalInfo, MemoryInfo, MemoryKind, ModuleInfo, TableInfo,
};
use wstate::wasm::{NameSource, ValType};

/// One of everything that a module description can hold.
const FULL: &str = r#"(module $full
  (type $t (func (param i32 f64) (result i64)))
  (import "env" "note" (func $note (param i32)))
  (import "env" "clock" (func (result f64)))
  (import "host" "note" (func $other (type $t)))
  (import "env" "table" (table 3 9 funcref))
  (import "env" "base" (global $base i32))
  (memory (export "memory") 2 5)
  (global (mut i64) (i64.const -3))
  (global f32 (f32.const 1.5))
  (global (export "limit") f64 (f64.const 2.5))
  (global (mut i32) (global.get $base))
  (elem (i32.const 1) $twice $note)
  (data (i32.const 8) "some bytes")
  (data (global.get $base) "more")
  (func $twice (export "double") (export "zweimal") (param $x i32) (result i32) (i32.mul (local.get $x) (i32.const 2)))
  (func $start)
  (func $hidden (type $t) (call $note (local.get 0)) (i64.const 1))
  (start $start)
  (@custom "extra" "\00\01\02")
  (@custom "extra" "second")
)"#;

const BARE: &str = "(module (memory 1) (table 0 funcref) (func) (func (param i64) (result i64) (local.get 0)))";

fn compile(text: &str, config: Option<CompilerConfig>) -> Module {
    let wasm = wat::parse_str(text).unwrap();
    match config {
        None => wasmer_runtime_core::compile_with(&wasm, &SinglePassCompiler::new()),
        Some(config) => wasmer_runtime_core::compile_with_config(&wasm, &SinglePassCompiler::new(), config),
    }
    .unwrap()
}

fn serialize(module: &Module) -> Vec<u8> {
    module.cache().unwrap().serialize().unwrap()
}

fn value_type(ty: Type) -> ValType {
    match ty {
        Type::I32 => ValType::I32,
        Type::I64 => ValType::I64,
        Type::F32 => ValType::F32,
        Type::F64 => ValType::F64,
        Type::V128 => ValType::V128,
    }
}

fn value_types(types: &[Type]) -> Vec<ValType> {
    types.iter().map(|&t| value_type(t)).collect()
}

fn memory(d: &MemoryDescriptor) -> MemoryInfo {
    let kind = match d.memory_type {
        MemoryType::Dynamic => MemoryKind::Dynamic,
        MemoryType::Static => MemoryKind::Static,
        MemoryType::SharedStatic => MemoryKind::SharedStatic,
    };
    MemoryInfo { minimum: d.minimum.0, maximum: d.maximum.map(|p| p.0), shared: d.shared, kind }
}

fn table(d: &TableDescriptor) -> TableInfo {
    TableInfo { minimum: d.minimum, maximum: d.maximum }
}

fn global(d: &GlobalDescriptor) -> GlobalInfo {
    GlobalInfo { ty: value_type(d.ty), mutable: d.mutable }
}

fn same(ours: &ModuleInfo, own: &Own) {
    assert_eq!(ours.memories, own.memories.iter().map(|(_, d)| memory(d)).collect::<Vec<_>>());
    assert_eq!(ours.globals, own.globals.iter().map(|(_, g)| global(&g.desc)).collect::<Vec<_>>());
    assert_eq!(ours.tables, own.tables.iter().map(|(_, d)| table(d)).collect::<Vec<_>>());
    let name = |n: &wasmer_runtime_core::module::ImportName| {
        (own.namespace_table.get(n.namespace_index).to_string(), own.name_table.get(n.name_index).to_string())
    };
    let functions: Vec<_> = ours.imported_functions.iter().map(|i| (i.module.clone(), i.name.clone())).collect();
    assert_eq!(functions, own.imported_functions.iter().map(|(_, n)| name(n)).collect::<Vec<_>>());
    let memories: Vec<_> =
        ours.imported_memories.iter().map(|i| ((i.module.clone(), i.name.clone()), i.item)).collect();
    assert_eq!(memories, own.imported_memories.iter().map(|(_, (n, d))| (name(n), memory(d))).collect::<Vec<_>>());
    let tables: Vec<_> = ours.imported_tables.iter().map(|i| ((i.module.clone(), i.name.clone()), i.item)).collect();
    assert_eq!(tables, own.imported_tables.iter().map(|(_, (n, d))| (name(n), table(d))).collect::<Vec<_>>());
    let globals: Vec<_> = ours.imported_globals.iter().map(|i| ((i.module.clone(), i.name.clone()), i.item)).collect();
    assert_eq!(globals, own.imported_globals.iter().map(|(_, (n, d))| (name(n), global(d))).collect::<Vec<_>>());
    let exports: Vec<_> = own
        .exports
        .map
        .iter()
        .map(|(name, index)| {
            let export = match *index {
                ExportIndex::Func(i) => Export::Function(i.index() as u32),
                ExportIndex::Memory(i) => Export::Memory(i.index() as u32),
                ExportIndex::Global(i) => Export::Global(i.index() as u32),
                ExportIndex::Table(i) => Export::Table(i.index() as u32),
            };
            (name.clone(), export)
        })
        .collect();
    assert_eq!(ours.exports, exports);
    assert_eq!(ours.start, own.start_func.map(|i| i.index() as u32));
    assert_eq!(ours.function_types, own.func_assoc.iter().map(|(_, s)| s.index() as u32).collect::<Vec<_>>());
    let signatures: Vec<_> = ours.signatures.iter().map(|s| (s.params.clone(), s.results.clone())).collect();
    let own_signatures: Vec<_> =
        own.signatures.iter().map(|(_, s)| (value_types(s.params()), value_types(s.returns()))).collect();
    assert_eq!(signatures, own_signatures);
    assert_eq!(ours.backend, own.backend);
    assert_eq!(ours.symbol_map.clone().map(HashMap::from_iter), own.em_symbol_map);
    assert_eq!(HashMap::from_iter(ours.custom_sections.clone()), own.custom_sections);
    assert_eq!(ours.generate_debug_info, own.generate_debug_info);
}

#[test]
fn the_description_is_the_runtimes() {
    let symbols = HashMap::from([(4, "from_the_host".to_string()), (5, "secret".to_string())]);
    for text in [FULL, BARE] {
        let tracked = CompilerConfig { track_state: true, full_preemption: true, ..Default::default() };
        let named = CompilerConfig { symbol_map: Some(symbols.clone()), ..Default::default() };
        for config in [None, Some(tracked), Some(named)] {
            let module = compile(text, config);
            let artifact = Artifact::parse(&serialize(&module)).unwrap();
            same(&artifact.info, module.info());
        }
    }
}

#[test]
fn the_layout_is_that_of_the_code() {
    let module = compile(BARE, None);
    let own_code = {
        let instance = module.instantiate(&wasmer_runtime_core::imports! {}).unwrap();
        let runnable = &instance.module.runnable_module;
        let code = runnable.get_code().unwrap().to_vec();
        let offsets = runnable.get_local_function_offsets().unwrap();
        (code, offsets.into_iter().map(|o| o as u64).collect::<Vec<_>>())
    };
    let file = serialize(&module);
    let artifact = Artifact::parse(&file).unwrap();
    let file = &file[artifact.image.clone()];
    let image = CacheImage::of_bytes(file).unwrap();
    assert_eq!(file[4..4 + image.code_size as usize], own_code.0);
    assert_eq!(image.function_offsets, own_code.1);
    assert_eq!(image.import_count, 0);
    assert!(artifact.metadata.is_empty());
    // The state map begins with its count of functions, then the first one's offset.
    let msm = image.msm_offset as usize;
    assert_eq!(file[msm..msm + 4], 2u32.to_le_bytes());
    assert_eq!(file[msm + 4..msm + 12], own_code.1[0].to_le_bytes());
}

#[test]
fn names_come_from_the_best_source() {
    let symbols = HashMap::from([(3, "worse".to_string()), (4, "from_the_host".to_string())]);
    let with = |config| Artifact::parse(&serialize(&compile(FULL, config))).unwrap().info.function_names();
    let names = with(None);
    assert_eq!(names[&0], ("note".to_string(), NameSource::NameSection));
    assert_eq!(names[&1], ("env.clock".to_string(), NameSource::Import));
    assert_eq!(names[&5], ("hidden".to_string(), NameSource::NameSection));
    let names = with(Some(CompilerConfig { symbol_map: Some(symbols), ..Default::default() }));
    assert_eq!(names[&2], ("host.note".to_string(), NameSource::Import));
    assert_eq!(names[&3], ("double".to_string(), NameSource::Export));
    assert_eq!(names[&4], ("from_the_host".to_string(), NameSource::SymbolMap));
    assert_eq!(names.get(&5), None);
}

/// No damage to a file may panic; a cut is always noticed.
#[test]
fn damaged_files_are_refused_or_read() {
    let file = serialize(&compile(FULL, None));
    let whole = Artifact::parse(&file).unwrap();
    for end in (0..whole.image.start + 64).chain([file.len() - 1]) {
        Artifact::parse(&file[..end]).unwrap_err();
    }
    for at in 0..whole.image.start + 64 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut broken = file.clone();
            broken[at] = value;
            let _ = Artifact::parse(&broken).map(|a| a.info.function_names());
        }
    }
}
