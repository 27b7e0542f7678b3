//! A real wasmer 0.18-near host that stops in known ways; `--help` prints the README beside this source.

mod guests;
mod options;
mod report;
mod shim;
mod sqlite;
mod trap;
mod truth;

use options::{Also, End, Options};
use shim::{Entry, host_nested_import, host_stop_import, nothing, nothing_float};
use std::{
    ffi::{c_int, c_void},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering},
    },
    thread,
};
use wasmer_runtime_core::{
    DynFunc, Instance, Module,
    backend::{Compiler, CompilerConfig, Token},
    cache::{Artifact, Error as CacheError},
    compile_with, compile_with_config,
    error::CompileResult,
    export::{Context, Export, FuncPointer},
    fault,
    global::Global,
    import::{ImportObject, Namespace},
    load_cache_with,
    memory::Memory,
    module::ModuleInner,
    state::{InstanceImage, x64::invoke_call_return_on_stack},
    table::Table,
    types::{ExternDescriptor, FuncSig, ImportDescriptor, Type, Value},
    vm,
};
use wasmer_singlepass_backend::SinglePassCompiler;

static OPTIONS: OnceLock<&'static Options> = OnceLock::new();

fn options() -> &'static Options {
    OPTIONS.get().expect("set by main")
}

/// The stop: reached from Wasm through `host_stop_import`.
#[unsafe(no_mangle)]
extern "C" fn host_stop(vmctx: *mut vm::Ctx, entry: &Entry) -> u64 {
    let options = options();
    if !ARMED.load(Ordering::SeqCst) {
        return 0;
    }
    let (name, suffix) = report::label(&options.stop);
    unsafe {
        let image = truth::read(entry.return_address, after_return(entry), truth::known_at_call(entry));
        truth::write(options, &suffix, image, vmctx);
    }
    if options.func && !FUNC_TURN.get() {
        return 0;
    }
    stopped(&name)
}

/// The caller's stack pointer after this call returns.
fn after_return(entry: &Entry) -> u64 {
    (&raw const entry.return_address) as u64 + 8
}

thread_local! {
    /// With `--func` the first run records the truth, the second run stops.
    static FUNC_TURN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The same stop through the runtime's typed imports (`--func`).
fn typed_stop(_ctx: &mut vm::Ctx, _id: i32) {
    stopped(&options().stop);
}

/// Says READY and ends as the options ask for.
fn stopped(stop: &str) -> ! {
    if stop == "abort" || options().end != End::Sleep {
        report::reached(stop);
        unsafe { libc::abort() }
    }
    report::reached(stop);
    report::sleep_forever()
}

/// `env.ready`: the guest is about to spin.
extern "C" fn ready(vmctx: *mut vm::Ctx) -> u64 {
    let (name, _) = report::label(&options().stop);
    if name == "interrupt" {
        let counter = unsafe { (*vmctx).internal.memory_base } as usize;
        thread::Builder::new().name("interrupter".into()).spawn(move || interrupt(counter)).expect("a thread");
    } else {
        report::reached(&name);
    }
    0
}

/// Interrupts the guest once it has counted to 1000.
fn interrupt(counter: usize) {
    while unsafe { (*(counter as *const AtomicU32)).load(Ordering::Relaxed) } < 1000 {
        thread::yield_now();
    }
    unsafe { fault::set_wasm_interrupt() };
}

static NESTED: Mutex<Option<Instance>> = Mutex::new(None);

/// `env.nested`: calls back into Wasm. The outer Wasm frames are written to `<truth>.outer`.
#[unsafe(no_mangle)]
extern "C" fn host_nested(vmctx: *mut vm::Ctx, entry: &Entry) -> u64 {
    unsafe {
        let image = truth::read(entry.return_address, after_return(entry), truth::known_at_call(entry));
        truth::write(options(), ".outer", image, vmctx);
    }
    let inner = NESTED.lock().unwrap().take().expect("one nested call");
    run(&inner, "run", &[]);
    0
}

/// The instance of `wasm`.
static INSTANCE: AtomicPtr<Instance> = AtomicPtr::new(std::ptr::null_mut());

/// `env.again`: calls back into the instance that has called.
extern "C" fn again(_: *mut vm::Ctx) -> u64 {
    let instance = unsafe { &*INSTANCE.load(Ordering::SeqCst) };
    run(instance, "again", &[]).first().map_or(0, |value| value.to_u128() as u64)
}

/// Whether the stop is one yet; only SQLite reaches it before its time.
static ARMED: AtomicBool = AtomicBool::new(true);

static GROW_STOPS: AtomicBool = AtomicBool::new(false);

/// Takes the place of libc's function in this executable: the runtime's `memory.grow` calls it, so a thread can stop
/// inside of the runtime without a debugger.
#[unsafe(no_mangle)]
extern "C" fn mprotect(address: *mut c_void, length: usize, protection: c_int) -> c_int {
    if GROW_STOPS.swap(false, Ordering::SeqCst) {
        stopped(&options().stop);
    }
    unsafe { libc::syscall(libc::SYS_mprotect, address, length, protection) as c_int }
}

/// A compiler whose settings are the options', so that `compile_with` (which keeps custom sections) can be used.
struct Configured<'a>(&'a Options);

impl Compiler for Configured<'_> {
    fn compile(&self, wasm: &[u8], _: CompilerConfig, token: Token) -> CompileResult<ModuleInner> {
        SinglePassCompiler::new().compile(wasm, self.0.compiler_config(), token)
    }

    unsafe fn from_cache(&self, cache: Artifact, token: Token) -> Result<ModuleInner, CacheError> {
        unsafe { SinglePassCompiler::new().from_cache(cache, token) }
    }
}

fn compile(wasm: &[u8]) -> Module {
    let options = options();
    if let Some(path) = &options.dump_wasm {
        std::fs::write(path, wasm).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let compiled = if options.compile_with {
        compile_with(wasm, &Configured(options))
    } else {
        compile_with_config(wasm, &SinglePassCompiler::new(), options.compiler_config())
    };
    let module = compiled.unwrap_or_else(|e| fail(&format!("the module does not compile: {e}")));
    if let Some(path) = &options.artifact {
        truth::artifact(&module, path);
    }
    module
}

fn compile_text(text: &str) -> Module {
    compile(&wat::parse_str(text).unwrap_or_else(|e| panic!("{e}\n{text}")))
}

fn fail(problem: &str) -> ! {
    eprintln!("host: {problem}");
    std::process::exit(2)
}

fn raw_function(address: usize, signature: &FuncSig) -> Export {
    Export::Function {
        func: unsafe { FuncPointer::new(address as *const vm::Func) },
        ctx: Context::Internal,
        signature: Arc::new(signature.clone()),
    }
}

/// An import for everything the module asks for: the host's own functions by name, the chosen stop, else stubs.
fn import_for(wanted: &ImportDescriptor) -> Export {
    let options = options();
    let full_name = format!("{}.{}", wanted.namespace, wanted.name);
    match &wanted.ty {
        ExternDescriptor::Function(signature) => {
            let is_stop = match &options.stop_at {
                Some(name) => *name == full_name || *name == wanted.name,
                None if options.stop == "sqlite" => full_name == "env._emscripten_date_now",
                None => matches!(full_name.as_str(), "env.stop" | "env.args"),
            };
            let address = match full_name.as_str() {
                _ if is_stop => host_stop_import as *const () as usize,
                "env.nested" => host_nested_import as *const () as usize,
                "env.ready" => ready as *const () as usize,
                "env.again" => again as *const () as usize,
                name => match sqlite::import(name) {
                    Some(address) => address,
                    None if matches!(signature.returns(), [Type::F32 | Type::F64]) => {
                        nothing_float as *const () as usize
                    }
                    None => nothing as *const () as usize,
                },
            };
            raw_function(address, signature)
        }
        ExternDescriptor::Memory(descriptor) => Export::Memory(Memory::new(*descriptor).expect("a memory")),
        ExternDescriptor::Table(descriptor) => Export::Table(Table::new(*descriptor).expect("a table")),
        ExternDescriptor::Global(descriptor) => {
            let value = match descriptor.ty {
                Type::I32 => Value::I32(4242),
                Type::I64 => Value::I64(4242),
                Type::F32 => Value::F32(4242.0),
                Type::F64 => Value::F64(4242.0),
                Type::V128 => Value::V128(4242),
            };
            Export::Global(if descriptor.mutable { Global::new_mutable(value) } else { Global::new(value) })
        }
    }
}

fn imports_of(module: &Module) -> ImportObject {
    let mut imports = ImportObject::new();
    let rows: Vec<_> = module.imports().iter().map(|i| (i.namespace.clone(), i.name.clone(), import_for(i))).collect();
    imports.extend(rows);
    imports
}

fn instantiate_with(module: &Module, imports: &ImportObject) -> Instance {
    let instance = module.instantiate(imports).unwrap_or_else(|e| fail(&format!("the module does not link: {e}")));
    truth::VERSIONS.lock().unwrap().push(truth::code_version(&instance.module, true));
    if options().publish {
        publish(&instance);
    }
    instance
}

/// Publishes the module for as long as the host runs.
#[cfg(feature = "publish")]
fn publish(instance: &Instance) {
    use borsh::BorshSerialize;
    let runnable = &instance.module.runnable_module;
    let map = runnable.get_module_state_map().and_then(|map| map.try_to_vec().ok()).expect("a state map encodes");
    let code = runnable.get_code().expect("singlepass has code");
    std::mem::forget(wstate_descriptor::publish(code.as_ptr(), code.len(), map, &options().stop));
}

#[cfg(not(feature = "publish"))]
fn publish(_: &Instance) {
    fail("--publish needs a host built with the feature publish");
}

fn instantiate(module: &Module) -> Instance {
    instantiate_with(module, &imports_of(module))
}

/// Calls an export; a stop does not come back from here.
fn run(instance: &Instance, name: &str, args: &[Value]) -> Vec<Value> {
    if options().stack_checks {
        let here = 0u8;
        // Four megabytes below this frame, of a thread's two one; the guest checks its stack pointer against this.
        let room = if options().thread { 1 << 20 } else { 4 << 20 };
        let bound = (&raw const here as usize).saturating_sub(room) as *mut u8;
        let context: *const vm::Ctx = instance.context();
        unsafe { (*context.cast_mut()).internal.stack_lower_bound = bound };
    }
    fault::ensure_sighandler();
    if !options().runtime_handler {
        trap::install(options());
    }
    match instance.call(name, args) {
        Ok(values) => values,
        Err(error) => {
            report::note(&format!("{name} failed: {error:?}"));
            report::reached("returned");
            report::sleep_forever()
        }
    }
}

/// Goes on from an image as `tiering.rs` does; returns the raw result of the oldest frame.
fn resume(instance: &mut Instance, path: &std::path::Path) -> u64 {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let image = InstanceImage::from_bytes(&bytes).unwrap_or_else(|| fail("no image"));
    fault::ensure_sighandler();
    let version = truth::code_version(&instance.module, true);
    let vmctx: *mut vm::Ctx = instance.context_mut();
    let go = || unsafe { invoke_call_return_on_stack(&version.msm, version.base, image, &mut *vmctx, None) };
    match unsafe { fault::with_ctx(vmctx, go) } {
        Ok(value) => value,
        Err(error) => fail(&format!("going on failed: {error:?}")),
    }
}

fn run_text(text: &str) {
    let instance = instantiate(&compile_text(text));
    run(&instance, "run", &[]);
}

/// Memory that is allocated and not used, but for a page here and there, so that cores have it.
fn carry(bytes: usize) {
    let mut memory = Vec::<u8>::with_capacity(bytes);
    for at in (0..bytes).step_by(256 << 20) {
        // SAFETY: within the allocation.
        unsafe { memory.as_mut_ptr().add(at).write_volatile(1) };
    }
    std::mem::forget(memory);
}

fn stop_here(stop: &str) {
    let options = options();
    carry(options.ballast);
    match stop {
        "sleep" | "abort" if options.func => {
            let module = compile_text(&guests::sleep());
            run(&instantiate(&module), "run", &[]);
            let mut imports = ImportObject::new();
            let mut env = Namespace::new();
            env.insert("stop", wasmer_runtime_core::func!(typed_stop));
            imports.register("env", env);
            FUNC_TURN.set(true);
            run(&instantiate_with(&module, &imports), "run", &[]);
        }
        "sleep" | "abort" => run_text(&guests::sleep()),
        "trap-unreachable" => run_text(&guests::trap_unreachable()),
        "trap-div" => run_text(&guests::trap_div()),
        "trap-memory" => run_text(&guests::trap_memory(true)),
        "trap-memory-checked" => run_text(&guests::trap_memory(false)),
        "trap-table" => run_text(&guests::trap_table(7)),
        "trap-table-null" => run_text(&guests::trap_table(1)),
        "trap-table-signature" => run_text(&guests::trap_table(0)),
        "stack-overflow" => run_text(&guests::stack_overflow()),
        "spin" => run_text(&guests::spin(options.depth.unwrap_or(0))),
        "spin-deep" => run_text(&guests::spin(options.depth.unwrap_or(200))),
        "args7" => run_text(&guests::args7(guests::Args::Plain)),
        "args7-spilled" => run_text(&guests::args7(guests::Args::Spilled)),
        "args-float" => run_text(&guests::args7(guests::Args::Float)),
        "interrupt" => run_text(&guests::interrupt()),
        "nested" => {
            let outer = instantiate(&compile_text(&guests::nested_outer()));
            *NESTED.lock().unwrap() = Some(instantiate(&compile_text(&guests::sleep())));
            run(&outer, "run", &[]);
        }
        "grow" => {
            let instance = instantiate(&compile_text(&guests::grow()));
            GROW_STOPS.store(true, Ordering::SeqCst);
            run(&instance, "run", &[]);
        }
        "modules" => modules(),
        "moved" => {
            let instance = instantiate(&compile_text(&guests::sleep()));
            let moved = thread::Builder::new().name("mover".into()).spawn(move || {
                truth::ALL_THREADS.set(true);
                run(&instance, "run", &[]);
            });
            moved.expect("a thread").join().expect("the mover panicked");
        }
        "threads" => threads(),
        "tiering" => tiering(&guests::sleep(), true),
        "tiering-boundary" => tiering(&guests::sleep(), false),
        "tiering-alternating" => tiering(&guests::alternating(), true),
        "tiering-alternating-boundary" => tiering(&guests::alternating(), false),
        "cache-loaded" => {
            let bytes = compile_text(&guests::sleep()).cache().and_then(|a| a.serialize()).expect("an artifact");
            let artifact = Artifact::deserialize(&bytes).expect("it was just written");
            let module = unsafe { load_cache_with(artifact, &SinglePassCompiler::new()) }.expect("a cached module");
            run(&instantiate(&module), "run", &[]);
        }
        "sqlite" | "sqlite-busy" => {
            let instance = instantiate(&compile(&wasm_file()));
            ARMED.store(false, Ordering::SeqCst);
            sqlite::query(&instance, options, || {
                ARMED.store(true, Ordering::SeqCst);
                if stop == "sqlite-busy" {
                    report::reached(stop);
                }
            });
        }
        "wasm" => {
            let module = compile(&wasm_file());
            let imports = imports_of(&module);
            let instance = instantiate_with(&module, &imports);
            let name = options.call.as_deref().unwrap_or_else(|| fail("--wasm needs --call NAME [ARGS]"));
            let instance = Box::leak(Box::new(instance));
            INSTANCE.store(instance, Ordering::SeqCst);
            call_more(options, name);
            if let Some(also) = options.also {
                call_also(also, &module, &imports, instance, name);
            }
            let bits = match &options.resume {
                Some(image) => resume(instance, image),
                None => {
                    let values = run(instance, name, &arguments(instance, name));
                    report::note(&format!("{name} returned {values:?}"));
                    values.first().map_or(0, |value| value.to_u128() as u64)
                }
            };
            truth::result(options, bits);
        }
        "call-indirect" => run_text(&guests::call_indirect()),
        "deep" => run_text(&guests::deep(options.depth.unwrap_or(10_000))),
        "floats" => run_text(&guests::floats()),
        "globals" => run_text(&guests::globals()),
        other => fail(&format!("unknown stop {other}; see --help")),
    }
    // Only stops that the guest returned from get here.
    report::note(&format!("the guest of {stop} returned"));
    report::reached("returned");
    report::sleep_forever()
}

/// Lets a thread for each of `--more` make the same call in that module.
fn call_more(options: &'static Options, name: &'static str) {
    report::EXPECTED.store(1 + options.more.len(), Ordering::SeqCst);
    for (number, path) in options.more.iter().enumerate() {
        let body = move || {
            report::LABEL.set(Some(format!("more{number}")));
            let wasm = std::fs::read(path).unwrap_or_else(|e| fail(&format!("{}: {e}", path.display())));
            let instance = Box::leak(Box::new(instantiate(&compile(&wasm))));
            run(instance, name, &arguments(instance, name));
        };
        thread::Builder::new().name(format!("more{number}")).spawn(body).expect("a thread");
    }
}

/// Lets a second thread make the same call.
fn call_also(also: Also, module: &Module, imports: &ImportObject, instance: &Instance, name: &'static str) {
    let other: *const Instance = match also {
        Also::Same => instance,
        Also::Other => Box::leak(Box::new(instantiate(module))),
        Also::Memory => Box::leak(Box::new(instantiate_with(module, imports))),
    };
    let other = other as usize;
    report::EXPECTED.store(2, Ordering::SeqCst);
    let body = move || {
        report::LABEL.set(Some("also".into()));
        // SAFETY: it is never freed.
        let instance = unsafe { &*(other as *const Instance) };
        run(instance, name, &arguments(instance, name));
    };
    thread::Builder::new().name("also".into()).spawn(body).expect("a thread");
}

fn wasm_file() -> Vec<u8> {
    let path = options().wasm.as_ref().unwrap_or_else(|| fail("this stop needs --wasm FILE"));
    std::fs::read(path).unwrap_or_else(|e| fail(&format!("{}: {e}", path.display())))
}

/// `--call`'s arguments in the types of the export's parameters.
fn arguments(instance: &Instance, name: &str) -> Vec<Value> {
    let export: DynFunc = instance.exports.get(name).unwrap_or_else(|e| fail(&format!("{name}: {e:?}")));
    let params = export.signature().params();
    let words = &options().args;
    if params.len() != words.len() {
        fail(&format!("{name} takes {} arguments, {} are given", params.len(), words.len()));
    }
    let bad = |word: &str| -> ! { fail(&format!("{word} is no value for a parameter of {name}")) };
    params
        .iter()
        .zip(words)
        .map(|(ty, word)| match ty {
            Type::I32 => Value::I32(word.parse().unwrap_or_else(|_| bad(word))),
            Type::I64 => Value::I64(word.parse().unwrap_or_else(|_| bad(word))),
            Type::F32 => Value::F32(word.parse().unwrap_or_else(|_| bad(word))),
            Type::F64 => Value::F64(word.parse().unwrap_or_else(|_| bad(word))),
            Type::V128 => bad(word),
        })
        .collect()
}

/// Three instances, each of which imports from the next, and an idle fourth.
fn modules() {
    let shared = |module: &Module, from: Option<(&str, Arc<Mutex<Instance>>)>| {
        let mut imports = imports_of(module);
        if let Some((name, instance)) = from {
            imports.register(name, instance);
        }
        Arc::new(Mutex::new(instantiate_with(module, &imports)))
    };
    let third = shared(&compile_text(&guests::modules_inner()), None);
    let idle = shared(&compile_text(&guests::globals()), None);
    let second = shared(&compile_text(&guests::modules_middle()), Some(("third", third.clone())));
    let first = shared(&compile_text(&guests::modules_outer()), Some(("other", second.clone())));
    let first = first.lock().unwrap();
    run(&first, "run", &[]);
    drop((third, idle, second));
}

/// Several threads, each with an instance of its own.
fn threads() {
    let guests: [(&str, String); 5] = [
        ("sleep", guests::sleep()),
        ("deep", guests::deep(100)),
        ("call-indirect", guests::call_indirect()),
        ("trap-div", guests::trap_div()),
        ("spin", guests::spin(3)),
    ];
    report::EXPECTED.store(guests.len(), Ordering::SeqCst);
    let threads = guests.map(|(name, text)| {
        let body = move || {
            report::LABEL.set(Some(name.into()));
            run_text(&text);
        };
        thread::Builder::new().name(name.into()).spawn(body).expect("a thread")
    });
    for thread in threads {
        thread.join().expect("a guest's thread panicked");
    }
}

/// The first function of the first version is patched to jump to the second version's, as tiering.rs does it.
///
/// With `instantiate_second`, `Instance::new` pushes the second version as a baseline first, as in `run_tiering`;
/// without, it is known as an optimized version only, so that the runtime uses the registers kept at the boundary.
fn tiering(text: &str, instantiate_second: bool) {
    let first = instantiate(&compile_text(text));
    let module = compile_text(text);
    let second = instantiate(&module);
    let inner = second.module.clone();
    if instantiate_second {
        Box::leak(Box::new(second));
    } else {
        // Dropping pops the code version that instantiating pushed.
        drop(second);
        truth::VERSIONS.lock().unwrap().pop();
    }
    let version = truth::code_version(&inner, false);
    let offsets = inner.runnable_module.get_local_function_offsets().expect("singlepass has offsets");
    unsafe { first.module.runnable_module.patch_local_function(0, version.base + offsets[0]) };
    truth::VERSIONS.lock().unwrap().push(version.clone());
    fault::push_code_version(version);
    run(&first, "run", &[]);
}

fn main() {
    let options: &'static Options = Box::leak(Box::new(Options::parse()));
    let _ = OPTIONS.set(options);
    if !options.stay {
        report::end_with_parent();
    }
    // Where Yama lets only parents attach, a host that exists to be looked at says that everyone may.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    if options.spin {
        let spin = || {
            loop {
                std::hint::spin_loop();
            }
        };
        thread::Builder::new().name("spinner".into()).spawn(spin).expect("a thread");
    }
    if let Some(dir) = &options.cwd {
        std::env::set_current_dir(dir).unwrap_or_else(|e| fail(&format!("{}: {e}", dir.display())));
    }
    if options.end != End::Sleep {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        unsafe {
            libc::getrlimit(libc::RLIMIT_CORE, &mut limit);
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_CORE, &limit);
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
    }
    if options.thread {
        thread::Builder::new()
            .name("wasm".into())
            .spawn(|| stop_here(&options.stop))
            .expect("a thread")
            .join()
            .expect("the guest's thread panicked");
    } else {
        stop_here(&options.stop);
    }
}
