//! Differential: what wstate reads out of the runtime's own Rust structures against what the runtime says of itself, in
//! one process that is both host and target.
#![allow(missing_docs)]

use crate::support::this_process::ThisProcess;
use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use wasmer_runtime_core_near::backend::{CompilerConfig, RunnableModule};
use wasmer_runtime_core_near::{Instance, compile_with, compile_with_config, func, imports};
use wasmer_singlepass_backend_near::SinglePassCompiler;
use wstate::arch::{Machine, Registers};
use wstate::process::objects::{LoadedObject, ObjectData, Objects};
use wstate::process::{Memory, MemoryError, Thread, ThreadId};
use wstate::runtime::rust::layouts::{LayoutError, LayoutOrigin, compilers};
use wstate::runtime::singlepass::find::{route_descriptor, route_tls};
use wstate::runtime::singlepass::module::info::Export;
use wstate::runtime::singlepass::module::layouts;
use wstate::runtime::singlepass::module::layouts::Layouts;
use wstate::runtime::singlepass::module::maps::Maps;
use wstate::runtime::singlepass::module::{info_in_memory, map_in_memory};
use wstate::state::BoundaryRegisters;
use wstate::wasm::{ExternKind, ValType};
use wstate::wasm::{MemoryDecl, TableDecl};

/// The thread pointer: the first word of the thread control block is its own address (System V ABI, x86-64 TLS).
#[allow(unsafe_code)]
fn thread_pointer() -> u64 {
    let fs_base;
    // SAFETY: reads one word that the ABI guarantees to be there.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) fs_base, options(nostack, readonly)) };
    fs_base
}

fn this_process(thread_pointers: &[u64]) -> ThisProcess {
    let thread = |(i, &fs_base): (usize, &u64)| Thread {
        id: ThreadId(i as u32 + 1),
        name: None,
        registers: Registers::unknown(Machine::X64),
        fs_base: Some(fs_base),
        signal: None,
        problem: None,
    };
    ThisProcess::with(thread_pointers.iter().enumerate().map(thread).collect())
}

fn this_executable() -> Vec<u8> {
    std::fs::read("/proc/self/exe").unwrap()
}

fn objects(elf: Vec<u8>) -> Objects {
    Objects::from_parts(vec![loaded(Some(elf))])
}

fn loaded(elf: Option<Vec<u8>>) -> LoadedObject {
    let path = std::fs::read_link("/proc/self/exe").unwrap();
    let maps = this_process(&[]).mappings;
    // The first segment of an executable has the virtual address 0 (position independent) in the file.
    let bias = maps.iter().find(|m| m.path.as_ref() == Some(&path)).unwrap().start;
    LoadedObject {
        path,
        opened: None,
        bias,
        range: (0, 0),
        build_id: None,
        data: elf.map(ObjectData::Memory),
        fits: None,
        debug: None,
        unpacked: Default::default(),
        excerpts: Default::default(),
        problem: None,
    }
}

/// Many functions (several levels of B-tree nodes), every kind of local and operand, loops, calls, imports, traps.
fn program() -> Vec<u8> {
    let mut wat = String::from(
        r#"(module $program
            (type $void (func))
            (type $pair (func (param i32 i64) (result i64)))
            (import "env" "tick" (func $tick (param i32) (result i32)))
            (import "env" "tock" (func $tock))
            (memory (export "memory") 1 2)
            (table 2 funcref)
            (elem (i32.const 0) $leaf)
            (data (i32.const 16) "hello") (data (i32.const 32) "hi")
            (global $count (mut i32) (i32.const 5))
            (global $pi f64 (f64.const 3.25))
            (export "count" (global $count))
            (func $leaf (export "leaf") (param i32 i64 f64 f32 i32 i32) (result i64) (local i64 i32)
                (loop $again
                    (local.set 7 (i32.add (local.get 7) (call $tick (i32.const 3))))
                    (br_if $again (i32.lt_u (local.get 7) (i32.const 10))))
                i64.const 7
                f64.const 1.5
                local.get 2
                f64.add
                i64.trunc_f64_s
                (i64.div_s (local.get 1) (i64.const 3))
                call $tock
                i64.add
                i64.add)
            (func (export "start") (result i32)
                (drop (call $tick (i32.const 1)))
                (i32.store (i32.const 8) (i32.const 9))
                (drop (call_indirect (type $pair) (i32.const 1) (i64.const 2) (i32.const 0)))
                unreachable)
        "#,
    );
    for i in 0..300 {
        wat.push_str(&format!(
            "(func $f{i} (export \"f{i}\") (param i32 i64) (result i64) (local f32)
                local.get 1 i64.const {i} (drop (call $tick (local.get 0))) i64.add
                (if (result i64) (local.get 0) (then (i64.const 1)) (else (i64.const 2))) i64.mul)"
        ));
    }
    wat.push(')');
    wat::parse_str(&wat).unwrap()
}

fn tick(x: i32) -> i32 {
    x + 1
}

fn tock() {}

fn symbols() -> HashMap<u32, String> {
    (0..100).map(|i| (i, format!("symbol_{i}"))).collect()
}

fn instance(track_state: bool) -> Instance {
    let config = CompilerConfig { track_state, symbol_map: Some(symbols()), ..CompilerConfig::default() };
    let module = compile_with_config(&program(), &SinglePassCompiler::new(), config).unwrap();
    module.instantiate(&imports! { "env" => { "tick" => func!(tick), "tock" => func!(tock) } }).unwrap()
}

fn runnable(instance: &Instance) -> &dyn RunnableModule {
    &**instance.module.runnable_module
}

/// What hosts with debug info get and what stripped hosts get; the latter only where the table has a column for the compiler
/// of this test.
fn all_layouts() -> Vec<Layouts> {
    let dwarf = layouts::from_dwarf(&this_executable()).unwrap().expect("the runtime is built with debug = 2 here");
    assert_eq!(dwarf.origin, LayoutOrigin::Dwarf);
    let mut all = vec![dwarf];
    if table_knows_this_compiler() {
        let table = Layouts::of_target(&objects(without_debug_info())).unwrap();
        assert!(matches!(table.origin, LayoutOrigin::Table(_)), "{:?}", table.origin);
        all.push(table);
    }
    all
}

fn table_knows_this_compiler() -> bool {
    let compilers = compilers(&this_executable());
    assert!(!compilers.is_empty());
    compilers.iter().any(|c| layouts::KNOWN_COMPILERS.contains(&c.as_str()))
}

/// This executable with its debug info and symbols hidden, as `strip` leaves it: `.comment` and program headers stay.
fn without_debug_info() -> Vec<u8> {
    let mut elf = this_executable();
    let word = |elf: &[u8], at: usize, len: usize| {
        let mut b = [0; 8];
        b[..len].copy_from_slice(&elf[at..at + len]);
        u64::from_le_bytes(b) as usize
    };
    let (table, size, count) = (word(&elf, 40, 8), word(&elf, 58, 2), word(&elf, 60, 2));
    let names = word(&elf, table + size * word(&elf, 62, 2) + 24, 8);
    for i in 0..count {
        let header = table + size * i;
        let name = names + word(&elf, header, 4);
        let kind = word(&elf, header + 4, 4);
        if elf[name..].starts_with(b".debug_") || kind == 2 {
            // SHT_NULL, and nothing that a search by name would find.
            elf[header..header + 8].fill(0);
        }
    }
    elf
}

#[test]
fn the_table_of_this_compiler_equals_its_debug_info() {
    let rows = |l: &Layouts| [l.state.rows(), l.module.rows(), l.context.rows()].concat();
    let all = all_layouts();
    assert!(rows(&all[0]).len() > 150);
    match &all[..] {
        [dwarf, table] => assert_eq!(rows(dwarf), rows(table)),
        _ => {
            // A new compiler is no failure of the code: hosts built with it need debug info until it has a column.
            let known = rows(&Layouts::for_compiler(layouts::KNOWN_COMPILERS[0]).unwrap());
            let differences: Vec<_> = rows(&all[0]).into_iter().zip(known).filter(|(a, b)| a != b).collect();
            eprintln!(
                "not compared: no column for {:?}; differences to {}: {differences:x?}",
                compilers(&this_executable()),
                layouts::KNOWN_COMPILERS[0]
            );
        }
    }
}

#[test]
fn state_maps_equal_the_runtimes_own() {
    for track_state in [true, false] {
        let instance = instance(track_state);
        let target = this_process(&[thread_pointer()]);
        let own = runnable(&instance).get_module_state_map().unwrap();
        let code = runnable(&instance).get_code().unwrap();
        let objects = objects(this_executable());
        for layouts in all_layouts() {
            let found = route_tls::find(&target, &objects, Some(&layouts));
            let version = found.versions.iter().find(|v| v.base == code.as_ptr() as u64).expect("the version");
            assert_eq!(version.total_size, own.total_size as u64);
            let map = map_in_memory::read_module_state_map(&target, &layouts.state, version.msm_address).unwrap();
            assert_eq!(map.local_functions.len(), 302);
            assert!(bincode::serialize(&map).unwrap() == bincode::serialize(&own).unwrap(), "{:?}", layouts.origin);

            let summary = map_in_memory::summary(&target, &layouts.state, version.msm_address).unwrap();
            let keys: Vec<u64> = own.local_functions.keys().map(|&k| k as u64).collect();
            assert_eq!(summary.functions, 302);
            assert_eq!(summary.keys, Some((keys[0], keys[301])));

            // Every function is found at its first and at its last byte, and nothing before and behind them all.
            let maps = Maps::whole(Arc::new(map));
            let at = |offset: usize| maps.around(offset, &target).unwrap().and_then(|m| m.function_at(offset));
            let keys: Vec<usize> = own.local_functions.keys().copied().collect();
            assert!(at(keys[0] - 1).is_none() && at(own.total_size).is_none());
            for (i, key) in keys.iter().enumerate() {
                let last = keys.get(i + 1).copied().unwrap_or(own.total_size) - 1;
                for offset in [*key, last] {
                    let (found, function) = at(offset).unwrap();
                    let expected = own.local_functions[key].local_function_id;
                    assert_eq!((*found, function.local_function_id), (*key, expected));
                }
            }
        }
    }
}

#[test]
fn lists_of_all_threads_are_read_with_and_without_symbols() {
    // A second thread makes an instance of its own and keeps it while we look.
    let (ready, wait) = mpsc::channel();
    let (done, finish) = mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        let instance = instance(true);
        let code = runnable(&instance).get_code().unwrap();
        ready.send((thread_pointer(), code.as_ptr() as u64)).unwrap();
        let _ = finish.recv();
    });
    let instance = instance(true);
    let code = runnable(&instance).get_code().unwrap().as_ptr() as u64;
    let (other_pointer, other_code) = wait.recv().unwrap();
    let target = this_process(&[thread_pointer(), other_pointer]);

    let layouts = all_layouts();
    for elf in [this_executable(), without_debug_info()] {
        let found = route_tls::find(&target, &objects(elf), layouts.last());
        let bases: Vec<(u32, u64)> = found.versions.iter().map(|v| (v.thread.0, v.base)).collect();
        assert_eq!(bases, [(1, code), (2, other_code)], "{:?}", found.notes);
        for version in &found.versions {
            assert!(version.baseline);
            assert_eq!(version.backend.as_deref(), Some("singlepass"));
            // Mapping, keys, prologue, RunnableModule, backend.
            assert_eq!(version.checks.len(), 5, "{:?}", version.checks);
        }
    }
    done.send(()).unwrap();
    other.join().unwrap();
}

/// The executable is module 1 of every thread's DTV: taken for a library, it is found there.
#[test]
fn lists_in_libraries_are_found_through_the_dtv() {
    let instance = instance(true);
    let code = runnable(&instance).get_code().unwrap().as_ptr() as u64;
    let target = this_process(&[thread_pointer()]);
    let objects = Objects::from_parts(vec![loaded(None), loaded(Some(this_executable()))]);
    let found = route_tls::find(&target, &objects, None);
    assert_eq!(found.versions.iter().map(|v| v.base).collect::<Vec<_>>(), [code], "{:?}", found.notes);
}

/// `get_boundary_register_preservation` is what the tiering trampoline calls before it writes there.
#[test]
#[allow(unsafe_code)]
fn boundary_registers_are_those_of_the_thread() {
    use wasmer_runtime_core_near::fault::{BoundaryRegisterPreservation, get_boundary_register_preservation};
    let target = this_process(&[thread_pointer()]);
    assert!(route_tls::find(&target, &objects(this_executable()), None).boundary.is_empty());
    // SAFETY: the pointer is to this thread's own variable.
    unsafe {
        *get_boundary_register_preservation() =
            BoundaryRegisterPreservation { r15: 15, r14: 14, r13: 13, r12: 12, rbx: 3 };
    }
    let found = route_tls::find(&target, &objects(this_executable()), None).boundary;
    let expected = (ThreadId(1), BoundaryRegisters::from_words([15, 14, 13, 12, 3]));
    assert_eq!(found, [expected]);
}

#[test]
fn a_thread_without_instances_and_one_without_thread_pointer_are_no_error() {
    let mut target = this_process(&[thread_pointer()]);
    let found = route_tls::find(&target, &objects(this_executable()), None);
    assert!(found.versions.is_empty() && found.boundary.is_empty());
    target.threads[0].fs_base = None;
    let found = route_tls::find(&target, &objects(this_executable()), None);
    assert_eq!(found.notes, ["thread 1: its thread pointer is not known"]);
}

fn val_type(t: &wasmer_runtime_core_near::types::Type) -> ValType {
    use wasmer_runtime_core_near::types::Type;
    match t {
        Type::I32 => ValType::I32,
        Type::I64 => ValType::I64,
        Type::F32 => ValType::F32,
        Type::F64 => ValType::F64,
        Type::V128 => ValType::V128,
    }
}

#[test]
fn module_infos_equal_the_runtimes_own() {
    use wasmer_runtime_core_near::module::ExportIndex;
    use wasmer_runtime_core_near::structures::TypedIndex;
    let imports = imports! { "env" => { "tick" => func!(tick), "tock" => func!(tock) } };
    // `compile_with` keeps custom sections, `compile_with_config` takes a symbol map.
    let with_sections = compile_with(&program(), &SinglePassCompiler::new()).unwrap().instantiate(&imports).unwrap();
    for (instance, has_sections) in [(with_sections, true), (instance(true), false)] {
        let target = this_process(&[thread_pointer()]);
        let own = &instance.module.info;
        for layouts in all_layouts() {
            let address = std::ptr::from_ref(&*instance.module) as u64;
            let context = |module: u64| {
                let arc = target.read_u64(module + layouts.module.inner_runnable).ok()?;
                info_in_memory::context_of_runnable(&target, &layouts, arc)
            };
            let code = context(address).unwrap();
            let own_code = runnable(&instance).get_code().unwrap();
            assert_eq!((code.code_base, code.code_size), (own_code.as_ptr() as u64, own_code.len() as u64));
            let map = map_in_memory::read_module_state_map(&target, &layouts.state, code.msm_address).unwrap();
            let own_map = runnable(&instance).get_module_state_map().unwrap();
            assert!(bincode::serialize(&map).unwrap() == bincode::serialize(&own_map).unwrap());
            // The runtime's own way there: `vm::Ctx` names the module.
            let ctx = std::ptr::from_ref(instance.context()) as u64;
            assert_eq!(target.read_u64(ctx + 0x88).unwrap(), address);
            assert!(context(ctx).is_none());

            let info = info_in_memory::read_module_info(&target, &layouts, address).unwrap();
            assert_eq!(info.problems(), Vec::<String>::new());

            let imported: Vec<(String, String)> = own
                .imported_functions
                .values()
                .map(|i| {
                    let (namespace, name) = (i.namespace_index, i.name_index);
                    (own.namespace_table.get(namespace).to_owned(), own.name_table.get(name).to_owned())
                })
                .collect();
            assert_eq!(info.imported_functions, Ok(imported));
            let exports: Vec<(String, Export)> = own
                .exports
                .map
                .iter()
                .map(|(name, index)| {
                    let export = match index {
                        ExportIndex::Func(i) => Export::Function(i.index() as u32),
                        ExportIndex::Memory(i) => Export::Memory(i.index() as u32),
                        ExportIndex::Global(i) => Export::Global(i.index() as u32),
                        ExportIndex::Table(i) => Export::Table(i.index() as u32),
                    };
                    (name.clone(), export)
                })
                .collect();
            assert_eq!(exports.len(), 304);
            assert_eq!(info.exports, Ok(exports));
            let signatures: Vec<_> = own
                .signatures
                .values()
                .map(|s| {
                    (s.params().iter().map(val_type).collect::<Vec<_>>(), s.returns().iter().map(val_type).collect())
                })
                .collect();
            assert_eq!(info.signatures, Ok(signatures));
            let assoc: Vec<u32> = own.func_assoc.values().map(|s| s.index() as u32).collect();
            assert_eq!(info.func_assoc, Ok(assoc));
            let globals: Vec<_> = own.globals.values().map(|g| (val_type(&g.desc.ty), g.desc.mutable)).collect();
            assert_eq!(globals, [(ValType::I32, true), (ValType::F64, false)]);
            assert_eq!(info.globals, Ok(globals));
            assert_eq!(info.imported_globals, Ok(vec![]));
            assert_eq!((&info.memories, &info.tables), (&Ok((0, 1)), &Ok((0, 1))));
            let memory = |m: &wasmer_runtime_core_near::types::MemoryDescriptor| MemoryDecl {
                minimum: m.minimum.0.into(),
                maximum: m.maximum.map(|max| max.0.into()),
                memory64: false,
                shared: m.shared,
                page_size_log2: 16,
            };
            let table = |t: &wasmer_runtime_core_near::types::TableDescriptor| TableDecl {
                minimum: t.minimum.into(),
                maximum: t.maximum.map(u64::from),
                table64: false,
                element: ValType::FuncRef,
            };
            let description = &info.description;
            assert_eq!(description.memories, Some(own.memories.values().map(memory).collect()));
            assert_eq!(description.tables, Some(own.tables.values().map(table).collect()));
            assert_eq!(description.start, Some(own.start_func.map(|f| f.index() as u32)));
            let data: Vec<u64> = own.data_initializers.iter().map(|d| d.data.len() as u64).collect();
            assert_eq!(data, [5, 2]);
            assert_eq!(description.data, Some(data));
            assert_eq!(description.elements, Some(own.elem_initializers.len() as u64));
            let kinds = [ExternKind::Memory, ExternKind::Table, ExternKind::Global].map(|kind| (kind, vec![]));
            assert_eq!(description.imports, kinds);
            assert_eq!(info.backend.as_deref(), Ok("singlepass"));
            let names = own.custom_sections.get("name").map(|list| list[0].clone());
            assert_eq!(names.is_some(), has_sections);
            assert_eq!(info.name_section, Ok(names));
            let mut expected: Vec<_> = if has_sections { vec![] } else { symbols().into_iter().collect() };
            expected.sort();
            assert_eq!(info.em_symbol_map, Ok(expected));
            assert_eq!(info.signature(2).unwrap().0.len(), 6);
        }
    }
}

/// Imported memories, tables and globals, a start function.
#[test]
fn what_is_imported_is_described_as_the_runtime_does() {
    let text = r#"(module
        (import "a" "m" (memory 1 7)) (import "b" "t" (table 3 9 funcref)) (import "c" "g" (global f64))
        (import "d" "h" (global i32))
        (func) (func $start) (start $start))"#;
    let module = compile_with(&wat::parse_str(text).unwrap(), &SinglePassCompiler::new()).unwrap();
    let info = module.info();
    let target = this_process(&[thread_pointer()]);
    for layouts in all_layouts() {
        let address = std::ptr::from_ref(info) as u64 - layouts.module.inner_info;
        let info = info_in_memory::read_module_info(&target, &layouts, address).unwrap();
        let names = |module: &str, name: &str| (module.to_string(), name.to_string());
        let d = &info.description;
        let expected = [
            (ExternKind::Memory, vec![names("a", "m")]),
            (ExternKind::Table, vec![names("b", "t")]),
            (ExternKind::Global, vec![names("c", "g"), names("d", "h")]),
        ];
        assert_eq!(d.imports, expected);
        let memory = d.memories.as_ref().unwrap()[0];
        assert_eq!((memory.minimum, memory.maximum), (1, Some(7)));
        let table = d.tables.as_ref().unwrap()[0];
        assert_eq!((table.minimum, table.maximum), (3, Some(9)));
        assert_eq!((d.start, &d.data, d.elements), (Some(Some(1)), &Some(vec![]), Some(0)));
    }
}

/// The crate for hosts and the reader have the same numbers, each of its own.
#[test]
fn hosts_and_the_reader_agree_about_the_descriptor() {
    use wstate_descriptor as host;
    assert_eq!(route_descriptor::MAGIC, host::MAGIC);
    assert_eq!(route_descriptor::SYMBOL, host::SYMBOL);
    let ours = (route_descriptor::VERSION, route_descriptor::ENTRY_BYTES, route_descriptor::FORMAT_STATE_MAP);
    assert_eq!(ours, (host::VERSION, host::ENTRY_BYTES, host::FORMAT_STATE_MAP));
}

#[test]
fn published_modules_are_found_by_symbol_and_by_magic() {
    use borsh09::BorshSerialize;
    let instance = instance(true);
    let own = runnable(&instance).get_module_state_map().unwrap();
    let code = runnable(&instance).get_code().unwrap();
    let encoded = own.try_to_vec().unwrap();
    let kept = wstate_descriptor::publish(code.as_ptr(), code.len(), encoded.clone(), "kept");
    let gone = wstate_descriptor::publish(code.as_ptr(), code.len(), encoded.clone(), "gone");
    let data = [0u8; 64];
    let not_code = wstate_descriptor::publish(data.as_ptr(), data.len(), encoded.clone(), "not code");
    drop(gone);

    let target = this_process(&[]);
    for elf in [this_executable(), without_debug_info()] {
        let found = route_descriptor::find(&target, &objects(elf));
        assert_eq!(found.modules.len(), 1, "{:?}", found.notes);
        assert!(found.notes.iter().any(|n| n.contains("is not executable memory")), "{:?}", found.notes);
        let module = &found.modules[0];
        assert_eq!((module.code_base, module.code_len), (code.as_ptr() as u64, code.len() as u64));
        assert_eq!(module.name.as_deref(), Some("kept"));
        assert_eq!(module.checks.len(), 3, "{:?}", module.checks);
        let bytes = target.read_vec(module.map_bytes_address, module.map_len as usize).unwrap();
        assert!(bytes == encoded);
    }
    drop((kept, not_code));
    let found = route_descriptor::find(&target, &objects(this_executable()));
    assert!(found.modules.is_empty() && found.notes.is_empty(), "{found:?}");
}

/// A map with everything that singlepass itself never writes.
fn map_made_by_hand() -> wasmer_runtime_core_near::state::ModuleStateMap {
    use wasmer_runtime_core_near::state::*;
    let halves = MachineValue::TwoHalves(Box::new((
        MachineValue::WasmStack(3),
        MachineValue::TwoHalves(Box::new((MachineValue::VmctxDeref(vec![8, 16]), MachineValue::Undefined))),
    )));
    let values = vec![
        MachineValue::Undefined,
        MachineValue::Vmctx,
        MachineValue::VmctxDeref(vec![]),
        MachineValue::VmctxDeref(vec![0x10, 0, 0x18]),
        MachineValue::PreserveRegister(RegisterIndex(31)),
        MachineValue::CopyStackBPRelative(-24),
        MachineValue::ExplicitShadow,
        MachineValue::WasmStack(7),
        MachineValue::WasmLocal(usize::MAX),
        halves.clone(),
    ];
    let initial = MachineState {
        stack_values: values.clone(),
        register_values: vec![MachineValue::Vmctx; 24],
        prev_frame: (0..40).map(|i| (i, values[i % values.len()].clone())).collect(),
        wasm_stack: vec![WasmAbstractValue::Const(u64::MAX), WasmAbstractValue::Runtime],
        wasm_stack_private_depth: 1,
        wasm_inst_offset: usize::MAX,
    };
    let diff = |last| MachineStateDiff {
        last,
        stack_push: values.clone(),
        stack_pop: 2,
        reg_diff: vec![(RegisterIndex(3), halves.clone())],
        prev_frame_diff: (0..30).map(|i| (i, (i % 3 != 0).then(|| values[i % values.len()].clone()))).collect(),
        wasm_stack_push: vec![WasmAbstractValue::Const(1)],
        wasm_stack_pop: 1,
        wasm_stack_private_depth: 4,
        wasm_inst_offset: 5,
    };
    let suspend = |i| match i % 3 {
        0 => SuspendOffset::Loop(i),
        1 => SuspendOffset::Call(i),
        _ => SuspendOffset::Trappable(i),
    };
    let info = |i| OffsetInfo { end_offset: i + 1, diff_id: i % 2, activate_offset: i + 7 };
    let function = |id: usize| FunctionStateMap {
        initial: initial.clone(),
        local_function_id: id,
        locals: vec![WasmAbstractValue::Runtime, WasmAbstractValue::Const(9)],
        shadow_size: 32,
        diffs: vec![diff(None), diff(Some(0)), diff(Some(usize::MAX))],
        wasm_function_header_target_offset: (id % 4 != 3).then(|| suspend(id)),
        wasm_offset_to_target_offset: (0..100).map(|i| (i, suspend(i))).collect(),
        loop_offsets: (0..id).map(|i| (i, info(i))).collect(),
        call_offsets: (0..200).map(|i| (2 * i, info(i))).collect(),
        trappable_offsets: Default::default(),
    };
    ModuleStateMap { local_functions: (0..20).map(|i| (i * 100, function(i))).collect(), total_size: 2000 }
}

#[test]
fn every_kind_of_value_and_previous_frames_are_read() {
    let own = map_made_by_hand();
    let target = this_process(&[]);
    for layouts in all_layouts() {
        let address = std::ptr::from_ref(&own) as u64;
        let map = map_in_memory::read_module_state_map(&target, &layouts.state, address).unwrap();
        assert!(bincode::serialize(&map).unwrap() == bincode::serialize(&own).unwrap());
    }
    let empty = wasmer_runtime_core_near::state::ModuleStateMap { local_functions: Default::default(), total_size: 0 };
    let l = Layouts::for_compiler("1.95.0").unwrap().state;
    let map = map_in_memory::read_module_state_map(&target, &l, std::ptr::from_ref(&empty) as u64).unwrap();
    assert_eq!((map.local_functions.len(), map.total_size), (0, 0));
}

/// Memory in which some words are wrong: which ones depends on the address and a seed, so a word stays wrong.
struct Corrupted<'a> {
    inner: &'a ThisProcess,
    seed: u64,
}

impl Memory for Corrupted<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.inner.read(address, buf)?;
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = address + i as u64;
            let hash = ((at / 8) ^ self.seed)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
                .wrapping_mul(0xbf58_476d_1ce4_e5b9);
            if hash >> 54 == 0 {
                *byte ^= (hash >> (8 * (at % 8))) as u8;
            }
        }
        Ok(())
    }
}

#[test]
fn corrupted_maps_and_modules_end_without_panic() {
    let own = map_made_by_hand();
    let instance = instance(true);
    let target = this_process(&[]);
    let layouts = Layouts::for_compiler("1.95.0").unwrap();
    let address = std::ptr::from_ref(&own) as u64;
    let module = std::ptr::from_ref(&*instance.module) as u64;
    let (mut errors, mut problems) = (0, 0);
    for seed in 0..300 {
        let memory = Corrupted { inner: &target, seed: seed * 0x1_0001 };
        match map_in_memory::read_module_state_map(&memory, &layouts.state, address) {
            Ok(map) => {
                let maps = Maps::whole(Arc::new(map));
                for offset in [0, 999, 1999] {
                    let _ = maps.around(offset, &memory).map(|m| m.and_then(|m| m.function_at(offset)));
                }
            }
            Err(_) => errors += 1,
        }
        let _ = map_in_memory::summary(&memory, &layouts.state, address);
        match info_in_memory::read_module_info(&memory, &layouts, module) {
            Ok(info) => problems += usize::from(!info.problems().is_empty()),
            Err(_) => problems += 1,
        }
    }
    // The test would show nothing if nothing were ever corrupted.
    assert!(errors > 100 && problems > 50, "{errors} {problems}");
}

/// A map that claims to hold itself: the root's children are the root.
#[test]
fn trees_that_go_in_circles_are_errors() {
    struct Circle(Vec<u8>);
    impl Memory for Circle {
        fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
            let bytes = address.checked_sub(0x1000).and_then(|at| self.0.get(at as usize..at as usize + buf.len()));
            bytes.map(|b| buf.copy_from_slice(b)).ok_or(MemoryError::Unmapped { address, len: buf.len() })
        }
    }
    let l = Layouts::for_compiler("1.95.0").unwrap().state;
    for height in [1, 2, 16, u64::MAX] {
        let mut bytes = vec![0u8; 0x2000];
        let mut put = |at: u64, value: u64, len: usize| {
            bytes[at as usize..at as usize + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        let node = 0x100;
        put(l.map_node, 0x1000 + node, 8);
        put(l.map_height, height, 8);
        put(l.map_len, 1 << 19, 8);
        put(l.msm_total_size, 1 << 40, 8);
        put(node + l.functions_leaf_len, 11, 2);
        for i in 0..12 {
            if i < 11 {
                put(node + l.functions_leaf_keys + 8 * i, 1000 * (i + 1), 8);
            }
            put(node + l.functions_edges + 8 * i, 0x1000 + node, 8);
        }
        let memory = Circle(bytes);
        assert!(map_in_memory::read_module_state_map(&memory, &l, 0x1000).is_err());
        assert!(map_in_memory::summary(&memory, &l, 0x1000).is_err());
    }
}

#[test]
fn unknown_compilers_are_named() {
    let mut elf = without_debug_info();
    assert_eq!(compilers(&elf).len(), 1);
    let comment = {
        use object::{Object, ObjectSection};
        let file = object::File::parse(&*elf).unwrap();
        file.section_by_name(".comment").unwrap().file_range().unwrap()
    };
    let text = &mut elf[comment.0 as usize..][..comment.1 as usize];
    let needle = b"rustc version 1.";
    let at = text.windows(needle.len()).position(|w| w == needle).unwrap() + needle.len();
    text[at..at + 2].copy_from_slice(b"07");
    let objects = objects(elf);
    let why = Layouts::of_target(&objects).unwrap_err().to_string();
    assert!(why.starts_with("unknown compiler: rustc 1.07.") && why.contains("layouts known for: 1.95.0"), "{why}");
    let found = route_tls::find(&this_process(&[thread_pointer()]), &objects, None);
    assert!(
        found.versions.is_empty() && found.notes.iter().any(|n| n.contains("unknown compiler")),
        "{:?}",
        found.notes
    );
    let missing = Objects::from_parts(vec![loaded(None)]);
    assert!(matches!(Layouts::of_target(&missing), Err(LayoutError::NoFile(_))));
}

#[test]
fn corrupted_debug_info_ends_without_panic() {
    use object::{Object, ObjectSection};
    let elf = this_executable();
    let file = object::File::parse(&*elf).unwrap();
    let ranges: Vec<(u64, u64)> = [".debug_info", ".debug_abbrev", ".debug_str"]
        .iter()
        .filter_map(|name| file.section_by_name(name)?.file_range())
        .collect();
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for round in 0..6 {
        let mut damaged = elf.clone();
        for _ in 0..1000 << round {
            let (start, size) = ranges[random(ranges.len() as u64) as usize];
            damaged[(start + random(size)) as usize] = random(256) as u8;
        }
        let _ = layouts::from_dwarf(&damaged);
        damaged.truncate(random(elf.len() as u64) as usize);
        let _ = layouts::from_dwarf(&damaged);
    }
}
