//! The routes against the real runtime, in this very process: the target is ourselves, what the runtime says about its
//! modules is the truth.
#![allow(unsafe_code)] // Patching code and loading a cache are unsafe in the runtime.

#[path = "support/this_process.rs"]
mod this_process;

use std::sync::{Mutex, MutexGuard};
use this_process::ThisProcess;
use wasmer_runtime_core_near::backend::CompilerConfig;
use wasmer_runtime_core_near::cache::Artifact;
use wasmer_runtime_core_near::{
    Instance, Module, compile_with, compile_with_config, import::ImportObject, imports, vm,
};
use wasmer_singlepass_backend_near::SinglePassCompiler;
use wstate::arch::{CodeAddress, Machine, Reg, Registers, x64};
use wstate::process::objects::Objects;
use wstate::process::{Memory, Thread, ThreadId};
use wstate::progress::Silent;
use wstate::runtime::singlepass::find::anchor::{Anchor, Route};
use wstate::runtime::singlepass::find::{Search, SinglepassProvider, route_artifact, route_heap, route_vmctx};
use wstate::runtime::singlepass::module::cache_image::MapSource;
use wstate::runtime::singlepass::module::ctx;
use wstate::runtime::{FoundBy, Provider, Scene};
use wstate::unwind::Cursor;

/// This process with one thread, of which only these registers are known.
fn with_registers(values: &[(Reg, u64)]) -> ThisProcess {
    let mut registers = Registers::unknown(Machine::X64);
    values.iter().for_each(|&(r, v)| registers.set(r, v));
    let thread = Thread { id: ThreadId(1), name: None, registers, fs_base: None, signal: None, problem: None };
    ThisProcess::with(vec![thread])
}

fn quiet(_: &str, _: u64, _: u64) {}

/// A target is read while it stands. Here that means: while no other test's thread makes and drops modules.
fn standing() -> MutexGuard<'static, ()> {
    static STANDING: Mutex<()> = Mutex::new(());
    STANDING.lock().unwrap_or_else(|e| e.into_inner())
}

/// `salt` makes modules differ.
fn wat(salt: u32, imports: bool) -> Vec<u8> {
    let import =
        if imports { r#"(import "env" "a" (func (param i32))) (import "env" "f" (func (param f64 i32)))"# } else { "" };
    wat::parse_str(format!(
        r#"(module {import}
            (memory 1)
            (func (export "run") (param i32) (result i32)
                (i32.add (local.get 0) (i32.const {salt})))
            (func $fact (export "fact") (param i64) (result i64)
                (if (result i64) (i64.eqz (local.get 0)) (then (i64.const 1))
                    (else (i64.mul (local.get 0) (call $fact (i64.sub (local.get 0) (i64.const 1))))))))"#
    ))
    .unwrap()
}

fn host() -> ImportObject {
    fn a(_: &mut vm::Ctx, _: i32) {}
    fn f(_: &mut vm::Ctx, _: f64, _: i32) {}
    imports! { "env" => { "a" => wasmer_runtime_core_near::func!(a), "f" => wasmer_runtime_core_near::func!(f), }, }
}

fn start(module: &Module) -> (Instance, u64) {
    let instance = module.instantiate(&host()).unwrap();
    let vmctx = instance.context() as *const vm::Ctx as u64;
    (instance, vmctx)
}

fn truth(instance: &Instance) -> (u64, u64, Vec<u64>) {
    let rm = &instance.module.runnable_module;
    let code = rm.get_code().unwrap();
    let offsets = rm.get_offsets().unwrap().into_iter().map(|o| o as u64).collect();
    (code.as_ptr() as u64, code.len() as u64, offsets)
}

fn check(anchor: &Anchor, instance: &Instance, imports: u64) {
    let (base, size, offsets) = truth(instance);
    assert_eq!((anchor.code_base, anchor.code_size), (base, size));
    assert_eq!(anchor.function_offsets, offsets);
    assert_eq!(anchor.import_count, imports);
    assert!(anchor.checks.len() >= 2, "{:?}", anchor.checks);
}

fn compile(wasm: &[u8]) -> Module {
    compile_with(wasm, &SinglePassCompiler::new()).unwrap()
}

#[test]
fn ctx_offsets_are_the_runtimes() {
    let _standing = standing();
    assert_eq!(ctx::CTX_SIZE, std::mem::size_of::<vm::Ctx>());
    assert_eq!(ctx::GLOBALS, u64::from(vm::Ctx::offset_globals()));
    assert_eq!(ctx::IMPORTED_GLOBALS, u64::from(vm::Ctx::offset_imported_globals()));
    assert_eq!(ctx::IMPORTED_FUNCS, u64::from(vm::Ctx::offset_imported_funcs()));
    assert_eq!(ctx::LOCAL_FUNCTIONS, u64::from(vm::Ctx::offset_local_functions()));
    assert_eq!(ctx::MODULE, std::mem::offset_of!(vm::Ctx, module) as u64);

    let (instance, vmctx) = start(&compile(&wat(1, true)));
    let c = instance.context();
    let ours = ctx::Ctx::read(&with_registers(&[]), vmctx).unwrap();
    assert_eq!(ours.memory_base, c.internal.memory_base as u64);
    assert_eq!(ours.memory_bound, c.internal.memory_bound as u64);
    assert_eq!(ours.interrupt_signal_mem, c.internal.interrupt_signal_mem as u64);
    assert_eq!(ours.local_backing, c.local_backing as u64);
    assert_eq!(ours.import_backing, c.import_backing as u64);
    assert_eq!(ours.module, c.module as u64);
    assert_eq!((ours.data, ours.data_finalizer), (0, 0));
}

#[test]
fn a_vmctx_leads_to_its_module() {
    let _standing = standing();
    for imports in [false, true] {
        let (instance, vmctx) = start(&compile(&wat(2, imports)));
        let me = with_registers(&[(x64::R15, vmctx)]);
        let (anchors, notes) = route_vmctx::find_vmctx(&me, &quiet);
        assert_eq!(anchors.len(), 1, "{notes:?}");
        check(&anchors[0], &instance, if imports { 2 } else { 0 });
        assert_eq!(anchors[0].vmctx, [vmctx]);
        assert_eq!(anchors[0].module_inner, Some(&*instance.module as *const _ as u64));
        assert_eq!(anchors[0].routes, [Route::Vmctx]);
        let all = anchors[0].checks.join("\n");
        for fact in ["bytes of code equal", "first local function", "RunnableModule", "unrounded"] {
            assert!(all.contains(fact), "{fact}: {all}");
        }
    }
}

#[test]
fn one_vmctx_of_two_instances_on_a_stack() {
    let _standing = standing();
    let module = compile(&wat(3, true));
    let ((a, ctx_a), (_b, ctx_b)) = (start(&module), start(&module));
    // Our own stack: `sp` points at these words.
    let stack = std::hint::black_box([7, ctx_a, 0xdead_beef, ctx_b + 1, ctx_b]);
    let me = with_registers(&[(x64::RSP, stack.as_ptr() as u64)]);
    let (anchors, notes) = route_vmctx::find_vmctx(&me, &quiet);
    let anchor = anchors.iter().find(|x| x.code_base == truth(&a).0).unwrap_or_else(|| panic!("{notes:?}"));
    check(anchor, &a, 2);
    let mut both = vec![ctx_a, ctx_b];
    both.sort();
    assert_eq!(anchor.vmctx, both);
}

#[test]
fn the_heap_holds_an_image_of_every_module() {
    let _standing = standing();
    let tracked = CompilerConfig { track_state: true, ..Default::default() };
    let preempted = CompilerConfig { full_preemption: true, enforce_stack_check: true, ..Default::default() };
    let instances = [
        (start(&compile(&wat(4, false))).0, 0),
        (start(&compile(&wat(5, true))).0, 2),
        (start(&compile_with_config(&wat(6, true), &SinglePassCompiler::new(), tracked).unwrap()).0, 2),
        (start(&compile_with_config(&wat(11, true), &SinglePassCompiler::new(), preempted).unwrap()).0, 2),
    ];
    let me = with_registers(&[]);
    let (anchors, notes) = route_heap::find_heap(&me, &[], &quiet);
    for (instance, imports) in &instances {
        let anchor = anchors.iter().find(|a| a.code_base == truth(instance).0);
        let anchor = anchor.unwrap_or_else(|| panic!("{notes:?}"));
        check(anchor, instance, *imports);
        assert_eq!(anchor.routes, [Route::Heap]);
        assert!(anchor.checks.iter().any(|c| c.contains("live Arc")), "{:?}", anchor.checks);
        let MapSource::CacheImage { address, len, msm_offset, exact: true } = anchor.map else { panic!("{anchor:?}") };
        let vmctx = instance.context() as *const vm::Ctx as u64;
        let direct = route_vmctx::from_vmctx(&me, vmctx).unwrap();
        assert_eq!(direct.map, MapSource::CacheImage { address, len, msm_offset, exact: true });
        // The number of functions begins the state map.
        assert_eq!(me.read_u32(address + msm_offset).unwrap(), 2);
    }
}

#[test]
fn an_artifact_names_the_code_and_a_loaded_cache_is_found_by_every_route() {
    let _standing = standing();
    let module = compile(&wat(7, true));
    let bytes = module.cache().unwrap().serialize().unwrap();
    drop(module);
    let cache = Artifact::deserialize(&bytes).unwrap();
    let module = unsafe { wasmer_runtime_core_near::load_cache_with(cache, &SinglePassCompiler::new()) }.unwrap();
    let (instance, vmctx) = start(&module);
    let me = with_registers(&[(x64::RDI, vmctx)]);

    let (anchors, notes) = route_artifact::from_artifact(&me, &bytes, &quiet);
    assert_eq!(anchors.len(), 1, "{notes:?}");
    check(&anchors[0], &instance, 2);
    assert!(matches!(anchors[0].map, MapSource::Bytes { .. }));

    // Its buffer is padded to whole pages; the end of the image is found all the same.
    let anchor = route_vmctx::from_vmctx(&me, vmctx).unwrap();
    check(&anchor, &instance, 2);
    assert!(anchor.checks.iter().any(|c| c.contains("unrounded")), "{:?}", anchor.checks);

    assert!(matches!(anchor.map, MapSource::CacheImage { exact: true, .. }));

    // The order of users: a frame that nothing explains keeps the search going after the first route.
    let options = Search {
        routes: vec![Route::Vmctx, Route::Artifact],
        artifacts: vec![("seven.artifact".into(), bytes.into())],
        ..Search::default()
    };
    let objects = Objects::from_parts(Vec::new());
    let scene = Scene { target: &me, objects: &objects, progress: &Silent };
    let unexplained = Cursor { address: CodeAddress::Exact(16), registers: Registers::unknown(Machine::X64) };
    let mut provider = SinglepassProvider::new(options);
    provider.discover(&scene, &[unexplained], false);
    let module = provider.runtime().modules().iter().find(|m| m.code.0 == truth(&instance).0);
    let module = module.unwrap_or_else(|| panic!("{:?}", provider.runtime().notes()));
    assert_eq!(module.routes, [FoundBy::Vmctx, FoundBy::Artifact]);

    let other = compile(&wat(8, true)).cache().unwrap().serialize().unwrap();
    let (anchors, notes) = route_artifact::from_artifact(&me, &other, &quiet);
    assert_eq!(anchors.len(), 0);
    assert!(notes[0].contains("no executable mapping holds the code"), "{notes:?}");
}

#[test]
fn patched_functions_are_reported_and_not_held_against_the_module() {
    let _standing = standing();
    let (instance, vmctx) = start(&compile(&wat(9, false)));
    let target = truth(&instance).0 + 1;
    assert!(unsafe { instance.module.runnable_module.patch_local_function(0, target as usize) });
    let me = with_registers(&[(x64::R15, vmctx)]);
    let anchor = route_vmctx::from_vmctx(&me, vmctx).unwrap();
    check(&anchor, &instance, 0);
    assert_eq!(anchor.patched, [(0, target)]);
    let (anchors, notes) = route_heap::find_heap(&me, &[], &quiet);
    let anchor = anchors.iter().find(|a| a.code_base == truth(&instance).0).unwrap_or_else(|| panic!("{notes:?}"));
    assert_eq!(anchor.patched, [(0, target)]);
}

#[test]
fn a_module_of_import_trampolines_only_is_found_by_comparing_code() {
    let _standing = standing();
    let wasm = wat::parse_str(r#"(module (import "env" "a" (func (param i32))) (export "b" (func 0)))"#).unwrap();
    let (instance, vmctx) = start(&compile(&wasm));
    let me = with_registers(&[]);
    let anchor = route_vmctx::from_vmctx(&me, vmctx).unwrap();
    assert_eq!((anchor.code_size, anchor.import_count), (4096, 1));
    assert!(anchor.checks.iter().any(|c| c.contains("RunnableModule")), "{:?}", anchor.checks);
    let (anchors, notes) = route_heap::find_heap(&me, &[], &quiet);
    assert!(anchors.iter().any(|a| a.code_base == truth(&instance).0), "{notes:?}");
}

/// Throughput of the heap search, and what each route costs for a module of 20,000 functions:
/// `cargo test --release --test routes -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement"]
fn cost_of_the_routes() {
    let _standing = standing();
    use std::time::Instant;
    let functions = "(func (param i64) (result i64) (i64.mul (local.get 0) (i64.add (local.get 0) (i64.const 5))))";
    let wasm = wat::parse_str(format!("(module {})", functions.repeat(20_000))).unwrap();
    let (instance, vmctx) = start(&compile(&wasm));
    let bytes = instance.module.cache_gen.generate_cache().unwrap().1.size();
    let me = with_registers(&[(x64::R15, vmctx)]);
    let begin = Instant::now();
    let anchor = route_vmctx::from_vmctx(&me, vmctx).unwrap();
    println!("vmctx: image of {bytes} bytes confirmed in {:?}", begin.elapsed());
    check(&anchor, &instance, 0);
    let begin = Instant::now();
    let (found, notes) = route_heap::find_heap(&me, &[], &quiet);
    println!("heap: {} found in {:?} {notes:?}", found.len(), begin.elapsed());

    // Pointers and small numbers, as heaps have them. No image is in it, so all of it is searched.
    let ballast: Vec<u64> = (0..1u64 << 27).map(|i| if i % 3 == 0 { 0x7f00_0000_0000 + i * 16 } else { i }).collect();
    let mut me = with_registers(&[]);
    me.mappings.retain(|m| m.execute || m.contains(ballast.as_ptr() as u64));
    // Time of this process too: on a busy machine only that means something.
    let ticks = || procfs::process::Process::myself().unwrap().stat().map(|s| (s.utime, s.stime)).unwrap();
    let (user, system) = ticks();
    let begin = Instant::now();
    let (found, _) = route_heap::find_heap(&me, &[], &quiet);
    let time = begin.elapsed();
    let (user, system) = (ticks().0 - user, ticks().1 - system);
    let bytes = (ballast.len() * 8) as f64;
    let rate = bytes / time.as_secs_f64() / 1e9;
    println!("heap: {bytes} bytes in {time:?} ({user} + {system} ticks), {rate:.2} GB/s, {} found", found.len());
    std::hint::black_box(ballast);
}
