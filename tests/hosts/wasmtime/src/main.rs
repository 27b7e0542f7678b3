//! A real Wasmtime host that stops in known ways; `--help` prints the README beside this source.

mod exports;
mod guests;
mod options;
#[path = "../../singlepass/src/report.rs"]
mod report;
mod truth;

use options::{End, Load, Options};
use std::{
    borrow::Cow,
    cell::RefCell,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};
use truth::{Frames, Named, State};
use wasmtime::{
    AsContextMut, Caller, Engine, Extern, ExternRef, ExternType, Func, FuncType, Global, GlobalType, Instance, Memory,
    Module, Mutability, Ref, Result, Store, StoreContextMut, Table, Val, ValType, WasmBacktrace, component,
    unix::StoreExt,
};

static OPTIONS: OnceLock<&'static Options> = OnceLock::new();

fn options() -> &'static Options {
    OPTIONS.get().expect("set by main")
}

fn fail(problem: &str) -> ! {
    eprintln!("host: {problem}");
    std::process::exit(2)
}

/// Says READY and ends as the options ask for.
fn stopped(stop: &str) -> ! {
    report::reached(stop);
    if stop == "abort" || options().end != End::Sleep {
        unsafe { libc::abort() }
    }
    report::sleep_forever()
}

/// Drives a future. Where it has to wait, nothing will ever wake it: that is the stop `async-suspended`.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => stopped(&report::label(&options().stop).0),
    }
}

// ---- What the guests import.

/// In a rehearsal the frames at the stop are noted, and an error takes the guest back to the host.
fn note_rehearsal(store: &mut StoreContextMut<'_, State>) -> Result<()> {
    let Some(frames) = store.data().rehearsal.clone() else { return Ok(()) };
    *frames.lock().unwrap() = truth::frames(&WasmBacktrace::force_capture(store));
    Err(wasmtime::Error::msg("end of the rehearsal"))
}

/// `env.stop`: the stop itself.
fn at_stop(mut store: StoreContextMut<'_, State>) -> Result<()> {
    note_rehearsal(&mut store)?;
    truth::write(options(), store);
    stopped(&report::label(&options().stop).0)
}

/// `env.ready`: the guest is about to spin.
fn ready(caller: &mut Caller<'_, State>) -> Result<()> {
    note_rehearsal(&mut caller.as_context_mut())?;
    truth::write(options(), caller.as_context_mut());
    let name = report::label(&options().stop).0;
    if options().end == End::Sleep || name != options().stop {
        report::reached(&name);
        return Ok(());
    }
    let tid = report::tid();
    report::reached(&name);
    end_from_outside(tid);
    Ok(())
}

/// Ends the process by a signal to the guest's own thread, which is then in the middle of Wasm.
fn end_from_outside(tid: i32) {
    let body = move || {
        thread::sleep(Duration::from_millis(50));
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGABRT) };
    };
    thread::Builder::new().name("ender".into()).spawn(body).expect("a thread");
}

thread_local! {
    /// The store of its own that `env.nested` calls into.
    static NESTED: RefCell<Option<Guest>> = const { RefCell::new(None) };
}

/// `env.nested`: calls back into Wasm, in the same store or in another.
fn nested(caller: &mut Caller<'_, State>) -> Result<()> {
    let frames = truth::frames(&WasmBacktrace::force_capture(&mut *caller));
    truth::OUTER.with_borrow_mut(|outer| outer.push(frames.len()));
    if let Some(mut guest) = NESTED.take() {
        truth::OTHER_STORE.set(frames);
        #[cfg(feature = "v48")]
        truth::OTHER_DEBUG.set(truth::debug_frames(caller.as_context_mut()));
        guest.run("run", &[]);
        return Ok(());
    }
    let inner = caller.data().nested.expect("set with the instance");
    call(caller, inner, &[]).map(|_| ())
}

fn call(mut store: impl AsContextMut<Data = State>, func: Func, args: &[Val]) -> Result<Vec<Val>> {
    let mut results = vec![Val::I32(0); func.ty(&store).results().len()];
    if options().is_async() {
        block_on(func.call_async(&mut store, args, &mut results))?;
    } else {
        func.call(&mut store, args, &mut results)?;
    }
    Ok(results)
}

fn zero(ty: &ValType) -> Val {
    Val::default_for_ty(ty).unwrap_or(Val::I32(0))
}

fn zeros(ty: &FuncType) -> Vec<Val> {
    ty.results().map(|ty| zero(&ty)).collect()
}

/// The import of this name: the host's own functions, the chosen stop, known values for `memories`, else stubs.
fn import_for(store: &mut Store<State>, namespace: &str, name: &str, ty: ExternType) -> Result<Extern> {
    let options = options();
    let full = format!("{namespace}.{name}");
    Ok(match ty {
        ExternType::Func(ty) => {
            let is_stop = match &options.stop_at {
                Some(wanted) => *wanted == full || wanted == name,
                None => full == "env.stop",
            };
            let zeros = zeros(&ty);
            let func = match full.as_str() {
                _ if is_stop && options.stop == "async-suspended" => suspending(store, ty),
                _ if is_stop => Func::new(store, ty, |mut caller, _, _| at_stop(caller.as_context_mut())),
                "env.nested" => Func::new(store, ty, |mut caller, _, _| nested(&mut caller)),
                "env.ready" => Func::new(store, ty, |mut caller, _, _| ready(&mut caller)),
                _ => Func::new(store, ty, move |_, _, results| {
                    results.clone_from_slice(&zeros);
                    Ok(())
                }),
            };
            func.into()
        }
        ExternType::Memory(ty) => {
            let memory = Memory::new(&mut *store, ty)?;
            if full == "host.memory" {
                memory.write(&mut *store, 16, b"imported memory")?;
            }
            memory.into()
        }
        ExternType::Table(ty) => Table::new(store, ty.clone(), Ref::null(ty.element().heap_type()))?.into(),
        ExternType::Global(ty) => {
            let value = match full.as_str() {
                "host.g0" => Val::I32(4242),
                "host.g1" => Val::I64(1),
                "host.g2" => Val::V128(0xfeed_face_cafe_beef_0011_2233_4455_6677u128.into()),
                "host.g3" if options.is_async() => {
                    Val::ExternRef(Some(block_on(ExternRef::new_async(&mut *store, 4242u32))?))
                }
                "host.g3" => Val::ExternRef(Some(ExternRef::new(&mut *store, 4242u32)?)),
                _ => zero(ty.content()),
            };
            Global::new(store, ty, value)?.into()
        }
        other => fail(&format!("no import for {full}: {other:?}")),
    })
}

/// `env.stop` of `async-suspended`: a host future that is never ready.
fn suspending(store: &mut Store<State>, ty: FuncType) -> Func {
    Func::new_async(store, ty, |mut caller, _, _| {
        Box::new(async move {
            note_rehearsal(&mut caller.as_context_mut())?;
            truth::write(options(), caller.as_context_mut());
            std::future::pending().await
        })
    })
}

// ---- Engines, modules, instances.

fn new_engine(options: &Options) -> Engine {
    Engine::new(&options.config()).unwrap_or_else(|e| fail(&format!("these settings do not go together: {e:?}")))
}

/// Where the next compiled module is written.
fn cwasm() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let path = options().cwasm.clone().unwrap_or_else(|| "guest.cwasm".into());
    match NEXT.fetch_add(1, Ordering::SeqCst) {
        0 => path,
        n => PathBuf::from(format!("{}.{n}", path.display())),
    }
}

fn dump(wasm: &[u8]) {
    if let Some(path) = &options().dump_wasm {
        std::fs::write(path, wasm).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

fn compile(engine: &Engine, wasm: &[u8]) -> Module {
    dump(wasm);
    let module = match options().load {
        Load::New => Module::new(engine, wasm),
        Load::Deserialize => {
            engine.precompile_module(wasm).and_then(|bytes| unsafe { Module::deserialize(engine, bytes) })
        }
        Load::DeserializeFile => engine.precompile_module(wasm).and_then(|bytes| {
            let path = cwasm();
            std::fs::write(&path, bytes)?;
            unsafe { Module::deserialize_file(engine, path) }
        }),
        Load::Existing => unsafe { Module::deserialize_file(engine, cwasm()) },
    };
    let module = module.unwrap_or_else(|e| fail(&format!("the module does not compile: {e:?}")));
    truth::image("module", module.name(), module.image_range(), Some(module.text()));
    module
}

fn parse(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// A module, and a store to instantiate it in.
struct Guest {
    store: Store<State>,
}

impl Guest {
    fn new(engine: &Engine) -> Guest {
        Guest { store: Store::new(engine, State::default()) }
    }

    /// Instantiates `module` with the imports of `links` first.
    fn add(&mut self, name: &str, module: &Module, wasm: &[u8], links: &[(&str, &str, Extern)]) -> Instance {
        let store = &mut self.store;
        let imports: Result<Vec<Extern>> = module
            .imports()
            .map(|import| {
                let linked = links.iter().find(|(ns, name, _)| (*ns, *name) == (import.module(), import.name()));
                match linked {
                    Some((_, _, item)) => Ok(item.clone()),
                    None => import_for(store, import.module(), import.name(), import.ty()),
                }
            })
            .collect();
        let instance = imports.and_then(|imports| match options().is_async() {
            true => block_on(Instance::new_async(&mut *store, module, &imports)),
            false => Instance::new(&mut *store, module, &imports),
        });
        let instance = instance.unwrap_or_else(|e| fail(&format!("the module does not link: {e:?}")));
        let exports = Arc::new(exports::of(wasm));
        store.data_mut().instances.push(Named { name: name.into(), instance, exports });
        instance
    }

    fn export(&mut self, instance: &Instance, name: &str) -> Extern {
        instance.get_export(&mut self.store, name).unwrap_or_else(|| fail(&format!("no export {name}")))
    }

    /// Calls an export of the last instance; a stop does not come back from here.
    fn run(&mut self, name: &str, args: &[Val]) {
        let instance = self.store.data().instances.last().expect("one instance").instance;
        let func = instance.get_func(&mut self.store, name).unwrap_or_else(|| fail(&format!("no function {name}")));
        match call(&mut self.store, func, args) {
            Ok(values) => report::note(&format!("{name} returned {values:?}")),
            Err(error) => report::note(&format!("{name} failed: {error:?}")),
        }
        report::reached("returned");
        report::sleep_forever()
    }

    /// Lets a trap of this guest be the stop.
    fn stop_at_trap(&mut self, stop: &str) {
        if options().guest_debug {
            #[cfg(feature = "v48")]
            self.store.set_debug_handler(OnTrap);
            return;
        }
        truth::write(options(), self.store.as_context_mut());
        let stop = stop.to_owned();
        let handler = move |_: libc::c_int, _: *const libc::siginfo_t, _: *const libc::c_void| {
            report::reached(&stop);
            match options().end {
                End::Sleep => report::sleep_forever(),
                End::CoreInHandler => unsafe { libc::abort() },
                // The instruction faults again, now without a handler: the kernel dumps the same registers.
                End::Core => unsafe {
                    for signal in [libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGBUS, libc::SIGTRAP] {
                        libc::signal(signal, libc::SIG_DFL);
                    }
                    true
                },
            }
        };
        unsafe { self.store.set_signal_handler(handler) };
    }
}

/// With guest debugging traps are calls into the runtime, which asks this handler.
#[cfg(feature = "v48")]
#[derive(Clone)]
struct OnTrap;

#[cfg(feature = "v48")]
impl wasmtime::DebugHandler for OnTrap {
    type Data = State;

    fn handle(
        &self,
        mut store: StoreContextMut<'_, State>,
        event: wasmtime::DebugEvent<'_>,
    ) -> impl Future<Output = ()> + Send {
        if matches!(event, wasmtime::DebugEvent::Trap(_)) {
            truth::write(options(), store.as_context_mut());
            stopped(&report::label(&options().stop).0)
        }
        std::future::ready(())
    }
}

/// Stores and engines beside the one that runs, with an instance each.
fn bystanders(engine: &Engine, module: &Module, wasm: &[u8]) {
    let options = options();
    let mut guests: Vec<Guest> = (1..options.stores).map(|_| Guest::new(engine)).collect();
    for guest in &mut guests {
        guest.add("bystander", module, wasm, &[]);
    }
    for _ in 1..options.engines {
        let engine = new_engine(options);
        let module = compile(&engine, wasm);
        let mut guest = Guest::new(&engine);
        guest.add("bystander", &module, wasm, &[]);
        guests.push(guest);
    }
    for mut guest in guests {
        let store = truth::store(&mut guest.store);
        truth::IDLE_STORES.lock().unwrap().push(store);
        std::mem::forget(guest);
    }
}

// ---- The stops.

fn run_wasm(engine: &Engine, name: &str, wasm: &[u8], call: &str, args: impl Fn(&mut Guest) -> Vec<Val>) {
    let stop = report::label(&options().stop).0;
    if is_trap(&stop) && !options().guest_debug {
        truth::REHEARSED.set(Some(rehearse_trap(wasm)));
    }
    let module = compile(engine, wasm);
    bystanders(engine, &module, wasm);
    let mut guest = Guest::new(engine);
    guest.add(name, &module, wasm, &[]);
    if is_trap(&stop) {
        guest.stop_at_trap(&stop);
    }
    let args = args(&mut guest);
    guest.run(call, &args)
}

fn is_trap(stop: &str) -> bool {
    stop.starts_with("trap-") || stop == "stack-overflow"
}

fn run_text(engine: &Engine, text: &str) {
    let wasm = parse(text);
    if options().inlining {
        truth::LOGICAL.set(Some(rehearse_inlined(&wasm)));
    }
    let name = text.split(['$', '\n']).nth(1).unwrap_or("guest").to_owned();
    run_wasm(engine, &name, &wasm, "run", |_| Vec::new())
}

/// The frames of a trap, from the error of a first run in an engine that is gone afterwards.
fn rehearse_trap(wasm: &[u8]) -> Vec<serde_json::Value> {
    let engine = new_engine(options());
    let module = Module::new(&engine, wasm).unwrap_or_else(|e| fail(&format!("the module does not compile: {e:?}")));
    let mut guest = Guest::new(&engine);
    let instance = guest.add("rehearsal", &module, wasm, &[]);
    let run = instance.get_func(&mut guest.store, "run").expect("a guest of ours");
    let error = call(&mut guest.store, run, &[]).expect_err("the guest traps");
    truth::frames(error.downcast_ref().expect("a trap has a backtrace"))
}

/// An engine without inlining, for the frames as they are in the guest's text.
fn plain_engine() -> Engine {
    new_engine(&Options { inlining: false, ..Options::parse() })
}

/// The frames at the stop as they are without inlining.
fn rehearse_inlined(wasm: &[u8]) -> Vec<serde_json::Value> {
    let engine = plain_engine();
    let module = Module::new(&engine, wasm).unwrap_or_else(|e| fail(&format!("the module does not compile: {e:?}")));
    let mut guest = Guest::new(&engine);
    let frames: Frames = Frames::default();
    guest.store.data_mut().rehearsal = Some(frames.clone());
    let instance = guest.add("rehearsal", &module, wasm, &[]);
    let run = instance.get_func(&mut guest.store, "run").expect("a guest of ours");
    // It ends at the stop, or in its trap.
    let error = call(&mut guest.store, run, &[]).expect_err("the guest does not return");
    let frames = std::mem::take(&mut *frames.lock().unwrap());
    match frames.is_empty() {
        true => truth::frames(error.downcast_ref().expect("a trap has a backtrace")),
        false => frames,
    }
}

/// Four instances of three modules, each of which calls the next, and an idle one.
fn modules(engine: &Engine) {
    let compiled = |text: String| {
        let wasm = parse(&text);
        (compile(engine, &wasm), wasm)
    };
    let (first, first_wasm) = compiled(guests::modules_outer());
    let (second, second_wasm) = compiled(guests::modules_middle());
    let (third, third_wasm) = compiled(guests::modules_inner());
    let (idle, idle_wasm) = compiled(guests::idle());
    bystanders(engine, &second, &second_wasm);
    let mut guest = Guest::new(engine);
    guest.store.data_mut().frame_instances = Some(vec!["third", "second-b", "second-a", "first"]);
    let start = |guest: &mut Guest, value: i32| -> Extern {
        let ty = GlobalType::new(ValType::I32, Mutability::Const);
        Global::new(&mut guest.store, ty, value.into()).expect("a global").into()
    };
    let instance = guest.add("third", &third, &third_wasm, &[]);
    guest.add("idle", &idle, &idle_wasm, &[]);
    let next = guest.export(&instance, "middle");
    let begin = start(&mut guest, 2000);
    let instance = guest.add("second-b", &second, &second_wasm, &[("other", "middle", next), ("env", "start", begin)]);
    let next = guest.export(&instance, "middle");
    let begin = start(&mut guest, 1000);
    let instance = guest.add("second-a", &second, &second_wasm, &[("other", "middle", next), ("env", "start", begin)]);
    let next = guest.export(&instance, "middle");
    guest.add("first", &first, &first_wasm, &[("other", "middle", next)]);
    guest.run("run", &[])
}

fn nested_stop(engine: &Engine, own_store: bool) {
    let (outer_wasm, inner_wasm) = (parse(&guests::nested_outer()), parse(&guests::sleep()));
    let (outer, inner) = (compile(engine, &outer_wasm), compile(engine, &inner_wasm));
    bystanders(engine, &inner, &inner_wasm);
    let mut guest = Guest::new(engine);
    if own_store {
        let mut other = Guest::new(engine);
        other.add("nest", &inner, &inner_wasm, &[]);
        guest.add("outer", &outer, &outer_wasm, &[]);
        let store = truth::store(&mut guest.store);
        truth::IDLE_STORES.lock().unwrap().push(store);
        NESTED.set(Some(other));
    } else {
        let instance = guest.add("nest", &inner, &inner_wasm, &[]);
        let run = instance.get_func(&mut guest.store, "run");
        guest.store.data_mut().nested = run;
        guest.add("outer", &outer, &outer_wasm, &[]);
    }
    guest.run("run", &[])
}

/// Several threads, each with a store of its own; two of them share a module.
fn threads(engine: &Engine) {
    let guests: [(&str, String); 6] = [
        ("sleep", guests::sleep()),
        ("sleep-too", guests::sleep()),
        ("deep", guests::deep(100)),
        ("memories", guests::memories()),
        ("trap-div", guests::trap_div()),
        ("spin", guests::spin(3)),
    ];
    report::EXPECTED.store(guests.len(), Ordering::SeqCst);
    let shared = parse(&guests::sleep());
    let shared = Arc::new((compile(engine, &shared), shared));
    let threads = guests.map(|(name, text)| {
        let (engine, shared) = (engine.clone(), shared.clone());
        let body = move || {
            report::LABEL.set(Some(name.into()));
            if !name.starts_with("sleep") {
                return run_text(&engine, &text);
            }
            let mut guest = Guest::new(&engine);
            guest.add("nest", &shared.0, &shared.1, &[]);
            guest.run("run", &[])
        };
        thread::Builder::new().name(name.into()).spawn(body).expect("a thread")
    });
    for thread in threads {
        thread.join().expect("a guest's thread panicked");
    }
}

fn component(engine: &Engine, text: &str) {
    let wasm = parse(text);
    dump(&wasm);
    if options().inlining {
        let engine = plain_engine();
        let component = component::Component::new(&engine, &wasm).expect("it compiles with inlining too");
        let frames = Frames::default();
        let mut store = Store::new(&engine, State { rehearsal: Some(frames.clone()), ..State::default() });
        run_component(&mut store, &component).expect_err("it ends at the stop");
        truth::LOGICAL.set(Some(std::mem::take(&mut *frames.lock().unwrap())));
    }
    let component = match options().load {
        Load::New => component::Component::new(engine, &wasm),
        Load::Deserialize => engine
            .precompile_component(&wasm)
            .and_then(|bytes| unsafe { component::Component::deserialize(engine, bytes) }),
        Load::DeserializeFile => engine.precompile_component(&wasm).and_then(|bytes| {
            let path = cwasm();
            std::fs::write(&path, bytes)?;
            unsafe { component::Component::deserialize_file(engine, path) }
        }),
        Load::Existing => unsafe { component::Component::deserialize_file(engine, cwasm()) },
    };
    let component = component.unwrap_or_else(|e| fail(&format!("the component does not compile: {e:?}")));
    truth::image("component", None, component.image_range(), None);
    for _ in 1..options().stores {
        let mut store = Store::new(engine, State::default());
        instantiate_component(&mut store, &component).unwrap_or_else(|e| fail(&format!("{e:?}")));
        let seen = truth::store(&mut store);
        truth::IDLE_STORES.lock().unwrap().push(seen);
        std::mem::forget(store);
    }
    let mut store = Store::new(engine, State::default());
    let returned = run_component(&mut store, &component);
    fail(&format!("run returned {returned:?}"))
}

fn instantiate_component(store: &mut Store<State>, component: &component::Component) -> Result<component::Instance> {
    let mut linker = component::Linker::<State>::new(store.engine());
    linker.root().func_wrap("stop", |store: StoreContextMut<'_, State>, _: (u32,)| at_stop(store))?;
    match options().is_async() {
        true => block_on(linker.instantiate_async(store, component)),
        false => linker.instantiate(store, component),
    }
}

fn run_component(store: &mut Store<State>, component: &component::Component) -> Result<(u32,)> {
    let instance = instantiate_component(store, component)?;
    let run = instance.get_typed_func::<(), (u32,)>(&mut *store, "run")?;
    match options().is_async() {
        true => block_on(run.call_async(store, ())),
        false => run.call(store, ()),
    }
}

fn wasm_file() -> Cow<'static, [u8]> {
    match &options().wasm {
        Some(path) => std::fs::read(path).unwrap_or_else(|e| fail(&format!("{}: {e}", path.display()))).into(),
        None if options().stop == "dwarf" => include_bytes!("../guests/c-guest.wasm").as_slice().into(),
        None => fail("the stop `wasm` needs --wasm FILE"),
    }
}

/// A module of someone else, with stubs for its imports.
fn foreign(engine: &Engine) {
    let options = options();
    let wasm = wasm_file();
    let name = match &options.call {
        Some(name) => name.as_str(),
        None if options.stop == "dwarf" => "run",
        None => "_start",
    };
    if let Some(milliseconds) = options.stop_after {
        let (tid, stop) = (report::tid(), options.stop.as_str());
        let body = move || {
            thread::sleep(Duration::from_millis(milliseconds));
            println!("READY pid={} tid={tid} stop={stop}", std::process::id());
            if options.end != End::Sleep {
                end_from_outside(tid);
            }
        };
        let start_watch = || thread::Builder::new().name("watch".into()).spawn(body).expect("a thread");
        return run_wasm(engine, "guest", &wasm, name, |guest| {
            truth::REHEARSED.set(Some(Vec::new()));
            truth::write(options, guest.store.as_context_mut());
            let args = arguments(guest, name);
            start_watch();
            args
        });
    }
    report::EXPECTED.store(1 + options.more.len(), Ordering::SeqCst);
    for (number, path) in options.more.iter().enumerate() {
        let engine = engine.clone();
        let body = move || {
            report::LABEL.set(Some(format!("more{number}")));
            let wasm = std::fs::read(path).unwrap_or_else(|e| fail(&format!("{}: {e}", path.display())));
            run_wasm(&engine, "guest", &wasm, name, |guest| arguments(guest, name))
        };
        thread::Builder::new().name(format!("more{number}")).spawn(body).expect("a thread");
    }
    run_wasm(engine, "guest", &wasm, name, |guest| arguments(guest, name))
}

/// The words after `--call NAME` as values; parameters without a word are zero.
fn arguments(guest: &mut Guest, name: &str) -> Vec<Val> {
    let instance = guest.store.data().instances.last().expect("one instance").instance;
    let func = instance.get_func(&mut guest.store, name).unwrap_or_else(|| fail(&format!("no function {name}")));
    let mut words = options().args.iter();
    let params: Vec<ValType> = func.ty(&guest.store).params().collect();
    params
        .iter()
        .map(|ty| {
            let Some(word) = words.next() else { return zero(ty) };
            let bad = |word: &str| -> ! { fail(&format!("{word} is no value for a parameter of {name}")) };
            match ty {
                ValType::I32 => Val::I32(word.parse().unwrap_or_else(|_| bad(word))),
                ValType::I64 => Val::I64(word.parse().unwrap_or_else(|_| bad(word))),
                ValType::F32 => Val::F32(word.parse::<f32>().unwrap_or_else(|_| bad(word)).to_bits()),
                ValType::F64 => Val::F64(word.parse::<f64>().unwrap_or_else(|_| bad(word)).to_bits()),
                _ => bad(word),
            }
        })
        .collect()
}

fn stop_here() {
    let options = options();
    let engine = new_engine(options);
    let engine = &engine;
    match options.stop.as_str() {
        "sleep" | "abort" | "async" | "async-suspended" => run_text(engine, &guests::sleep()),
        "trap-unreachable" => run_text(engine, &guests::trap_unreachable()),
        "trap-div" => run_text(engine, &guests::trap_div()),
        "trap-memory" => run_text(engine, &guests::trap_memory()),
        "stack-overflow" => run_text(engine, &guests::stack_overflow()),
        "deep" => run_text(engine, &guests::deep(options.depth.unwrap_or(10_000))),
        "spin" => run_text(engine, &guests::spin(options.depth.unwrap_or(0))),
        "memories" => run_text(engine, &guests::memories()),
        "inlined" => run_text(engine, &guests::inlined()),
        "nested" => nested_stop(engine, false),
        "nested-stores" => nested_stop(engine, true),
        "modules" => modules(engine),
        "threads" => threads(engine),
        "component" => component(engine, &guests::component()),
        "component-adapter" | "component-inlined" => component(engine, &guests::component_adapter()),
        "dwarf" | "wasm" => foreign(engine),
        other => fail(&format!("no stop {other}; see --help")),
    }
}

fn main() {
    let mut options = Options::parse();
    options.inlining |= options.stop.ends_with("inlined");
    let options: &'static Options = Box::leak(Box::new(options));
    let _ = OPTIONS.set(options);
    if !options.stay {
        report::end_with_parent();
    }
    // Where Yama lets only parents attach, a host that exists to be looked at says that everyone may.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    if let Some(dir) = &options.cwd {
        std::env::set_current_dir(dir).unwrap_or_else(|e| fail(&format!("{}: {e}", dir.display())));
    }
    if options.end != End::Sleep || options.stop == "abort" {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        unsafe {
            libc::getrlimit(libc::RLIMIT_CORE, &mut limit);
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_CORE, &limit);
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
    }
    if options.thread {
        let thread = thread::Builder::new().name("wasm".into()).stack_size(8 << 20).spawn(stop_here);
        thread.expect("a thread").join().expect("the guest's thread panicked");
    } else {
        stop_here();
    }
}
