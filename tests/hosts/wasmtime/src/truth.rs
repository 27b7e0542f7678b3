//! The runtime's own answer for a stop, taken in process and written as JSON.

use crate::{
    exports::{Export, Kind},
    options::Options,
    report,
};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex},
};
use wasmtime::{
    AsContext, AsContextMut, Extern, Func, Global, Instance, Memory, Mutability, Ref, StoreContextMut, Table, Val,
    WasmBacktrace,
};

#[cfg(feature = "v48")]
pub const VERSION: &str = "48.0.8";
#[cfg(not(feature = "v48"))]
pub const VERSION: &str = "36.0.20";

/// An instance that the host made, and what its module exports.
#[derive(Clone)]
pub struct Named {
    pub name: String,
    pub instance: Instance,
    pub exports: Arc<Vec<Export>>,
}

/// What every store holds.
#[derive(Default)]
pub struct State {
    pub instances: Vec<Named>,
    /// Names of the instances of the frames at the stop, youngest first, where the guest's text says them.
    pub frame_instances: Option<Vec<&'static str>>,
    /// What `env.nested` calls.
    pub nested: Option<Func>,
    /// Where the frames of a run go that is made only to learn them.
    pub rehearsal: Option<Frames>,
}

/// Frames as JSON, youngest first.
pub type Frames = Arc<Mutex<Vec<Value>>>;

/// The stores that are there beside the running one.
pub static IDLE_STORES: Mutex<Vec<Value>> = Mutex::new(Vec::new());
/// The images of all modules and components.
pub static IMAGES: Mutex<Vec<Value>> = Mutex::new(Vec::new());

thread_local! {
    /// Wasm frames of this thread that are not of the running store, as JSON, youngest first.
    pub static OTHER_STORE: RefCell<Vec<Value>> = const { RefCell::new(Vec::new()) };
    /// The same by the debug API: a list of activations.
    #[cfg(feature = "v48")]
    pub static OTHER_DEBUG: RefCell<Value> = const { RefCell::new(Value::Null) };
    /// How many frames each outer activation has, oldest first.
    pub static OUTER: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    /// Frames that were learned before the stop: where the stop itself has no way to ask.
    pub static REHEARSED: RefCell<Option<Vec<Value>>> = const { RefCell::new(None) };
    /// Frames of the same guest without inlining.
    pub static LOGICAL: RefCell<Option<Vec<Value>>> = const { RefCell::new(None) };
}

fn hex(address: usize) -> Value {
    json!(format!("{address:#x}"))
}

fn range<T>(range: Range<*const T>) -> Value {
    json!([hex(range.start as usize), hex(range.end as usize)])
}

/// Remembers where an image is.
pub fn image(kind: &str, name: Option<&str>, image: Range<*const u8>, text: Option<&[u8]>) {
    IMAGES.lock().unwrap().push(json!({
        "kind": kind,
        "name": name,
        "image": range(image),
        "text": text.map(|t| range(t.as_ptr_range())),
    }));
}

/// The frames of a backtrace, youngest first.
pub fn frames(trace: &WasmBacktrace) -> Vec<Value> {
    trace
        .frames()
        .iter()
        .map(|frame| {
            let symbols: Vec<Value> = frame
                .symbols()
                .iter()
                .map(|s| json!({"name": s.name(), "file": s.file(), "line": s.line(), "column": s.column()}))
                .collect();
            json!({
                "module": frame.module().name(),
                "func_index": frame.func_index(),
                "func_name": frame.func_name(),
                "module_offset": frame.module_offset(),
                "func_offset": frame.func_offset(),
                "symbols": symbols,
            })
        })
        .collect()
}

/// A value's type and bits.
fn value(store: &mut impl AsContextMut, value: Val) -> Value {
    let (ty, bits) = match value {
        Val::I32(v) => ("i32", format!("{:#010x}", v as u32)),
        Val::I64(v) => ("i64", format!("{:#018x}", v as u64)),
        Val::F32(v) => ("f32", format!("{v:#010x}")),
        Val::F64(v) => ("f64", format!("{v:#018x}")),
        Val::V128(v) => ("v128", format!("{:#034x}", v.as_u128())),
        Val::FuncRef(None) => ("funcref", "null".into()),
        Val::FuncRef(Some(f)) => ("funcref", format!("{:#x}", f.to_raw(store) as usize)),
        Val::ExternRef(None) => ("externref", "null".into()),
        Val::ExternRef(Some(r)) => ("externref", format!("{:#x}", r.to_raw(store).expect("a rooted reference"))),
        Val::AnyRef(None) => ("anyref", "null".into()),
        Val::AnyRef(Some(r)) => ("anyref", format!("{:#x}", r.to_raw(store).expect("a rooted reference"))),
        _ => ("other", "unknown".into()),
    };
    json!({"type": ty, "bits": bits})
}

fn memory(store: &mut impl AsContextMut, index: u32, name: Option<&str>, memory: Memory) -> Value {
    let size = memory.data_size(&*store);
    let base = memory.data_ptr(&*store);
    let head = unsafe { std::slice::from_raw_parts(base.cast_const(), size.min(64)) };
    let head: String = head.iter().map(|b| format!("{b:02x}")).collect();
    let is_64 = memory.ty(&*store).is_64();
    json!({"index": index, "export": name, "base": hex(base as usize), "bytes": size, "64": is_64, "head": head})
}

fn global(store: &mut impl AsContextMut, index: u32, name: Option<&str>, global: Global) -> Value {
    let mutable = global.ty(&*store).mutability() == Mutability::Var;
    let bits = global.get(&mut *store);
    let mut row = value(store, bits);
    row["index"] = json!(index);
    row["export"] = json!(name);
    row["mutable"] = json!(mutable);
    row
}

fn table(store: &mut impl AsContextMut, index: u32, name: Option<&str>, table: Table) -> Value {
    let size = table.size(&*store);
    let ty = table.ty(&*store).element().to_string();
    let elements: Vec<Value> = (0..size.min(16))
        .map(|at| match table.get(&mut *store, at).expect("inside of the table") {
            Ref::Func(f) => value(store, Val::FuncRef(f))["bits"].take(),
            Ref::Extern(r) => value(store, Val::ExternRef(r))["bits"].take(),
            _ => Value::Null,
        })
        .collect();
    json!({"index": index, "export": name, "type": ty, "size": size, "elements": elements})
}

/// The VMContext of the instance that defines `func`, by way of the function's own record; `None` for host functions.
fn vmctx(store: &mut impl AsContextMut, func: Func) -> Option<usize> {
    let record = func.to_raw(store).cast::<usize>();
    // array_call, wasm_call, type_index (u32), vmctx: the same in both versions.
    let vmctx = unsafe { record.add(3).read() };
    (unsafe { (vmctx as *const [u8; 4]).read() } == *b"core").then_some(vmctx)
}

fn imported_functions(store: &mut impl AsContextMut<Data = State>, instance: &Instance) -> u32 {
    let module = instance.module(store.as_context());
    module.imports().filter(|import| import.ty().func().is_some()).count() as u32
}

/// An instance as far as its exports show it.
fn exported(store: &mut impl AsContextMut<Data = State>, named: &Named) -> Value {
    let imported = imported_functions(store, &named.instance);
    let (mut memories, mut globals, mut tables, mut context) = (vec![], vec![], vec![], None);
    for Export { name, kind, index } in named.exports.iter() {
        let (index, name) = (*index, Some(name.as_str()));
        match (named.instance.get_export(&mut *store, name.expect("just made")), kind) {
            (Some(Extern::Memory(m)), _) => memories.push(memory(store, index, name, m)),
            (Some(Extern::Global(g)), _) => globals.push(global(store, index, name, g)),
            (Some(Extern::Table(t)), _) => tables.push(table(store, index, name, t)),
            (Some(Extern::Func(f)), Kind::Func) if index >= imported && context.is_none() => context = vmctx(store, f),
            _ => {}
        }
    }
    let module = named.instance.module(store.as_context()).name().map(str::to_owned);
    json!({
        "name": named.name, "module": module, "vmctx": context.map(hex), "complete": false,
        "memories": memories, "globals": globals, "tables": tables,
    })
}

/// An instance as the debug API shows it: all of its indices.
#[cfg(feature = "v48")]
fn debugged(store: &mut impl AsContextMut<Data = State>, instance: &Instance) -> Value {
    let imported = imported_functions(store, instance);
    let named = store.as_context().data().instances.clone();
    let named = named.iter().find(|n| n.instance.debug_index_in_store() == instance.debug_index_in_store());
    let exports = named.map(|n| n.exports.clone()).unwrap_or_default();
    let name_of = |wanted: Kind, index: u32| {
        exports.iter().find(|e| e.kind == wanted && e.index == index).map(|e| e.name.clone())
    };
    let (mut memories, mut globals, mut tables) = (vec![], vec![], vec![]);
    for index in 0.. {
        let Some(m) = instance.debug_memory(&mut *store, index) else { break };
        memories.push(memory(store, index, name_of(Kind::Memory, index).as_deref(), m));
    }
    for index in 0.. {
        let Some(g) = instance.debug_global(&mut *store, index) else { break };
        globals.push(global(store, index, name_of(Kind::Global, index).as_deref(), g));
    }
    for index in 0.. {
        let Some(t) = instance.debug_table(&mut *store, index) else { break };
        tables.push(table(store, index, name_of(Kind::Table, index).as_deref(), t));
    }
    let module = instance.module(store.as_context()).name().map(str::to_owned);
    json!({
        "name": named.map(|n| n.name.as_str()), "module": module, "vmctx": context_of(store, instance).map(hex),
        "complete": true, "memories": memories, "globals": globals, "tables": tables,
        "functions_imported": imported,
    })
}

#[cfg(feature = "v48")]
fn context_of(store: &mut impl AsContextMut<Data = State>, instance: &Instance) -> Option<usize> {
    let imported = imported_functions(store, instance);
    let func = instance.debug_function(&mut *store, imported)?;
    vmctx(store, func)
}

/// Every activation's frames with locals and operand stacks, by the debug API.
#[cfg(feature = "v48")]
pub fn debug_frames(mut store: StoreContextMut<'_, State>) -> Value {
    let exits: Vec<_> = store.debug_exit_frames().collect();
    let activations = exits.into_iter().map(|exit| {
        let mut rows = Vec::new();
        let mut next = Some(exit);
        while let Some(frame) = next {
            // The runtime panics at a function that ran out of stack: its frame holds nothing yet.
            let instance = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| frame.instance(&mut store)));
            let Ok(instance) = instance else {
                rows.push(Value::Null);
                next = frame.parent(&mut store).expect("the frame is current");
                continue;
            };
            let instance = instance.expect("the frame is current");
            let at = frame.wasm_function_index_and_pc(&mut store).expect("the frame is current");
            let imported = imported_functions(&mut store, &instance);
            let module = instance.module(store.as_context()).name().map(str::to_owned);
            let locals = frame.num_locals(&mut store).expect("the frame is current");
            let locals: Vec<Value> = (0..locals)
                .map(|i| {
                    let local = frame.local(&mut store, i).expect("the frame is current");
                    value(&mut store, local)
                })
                .collect();
            let stack = frame.num_stacks(&mut store).expect("the frame is current");
            let stack: Vec<Value> = (0..stack)
                .map(|i| {
                    let operand = frame.stack(&mut store, i).expect("the frame is current");
                    value(&mut store, operand)
                })
                .collect();
            rows.push(json!({
                "module": module,
                "func_index": at.map(|(func, _)| func.as_u32() + imported),
                "module_offset": at.map(|(_, pc)| pc.raw()),
                "vmctx": context_of(&mut store, &instance).map(hex),
                "locals": locals,
                "stack": stack,
            }));
            next = frame.parent(&mut store).expect("the frame is current");
        }
        Value::Array(rows)
    });
    Value::Array(activations.collect())
}

/// What a store holds.
pub fn store(store: &mut impl AsContextMut<Data = State>) -> Value {
    #[cfg(feature = "v48")]
    {
        let instances = store.as_context_mut().debug_all_instances();
        if !instances.is_empty() {
            let rows: Vec<Value> = instances.iter().map(|instance| debugged(store, instance)).collect();
            return json!({"instances": rows});
        }
    }
    let named = store.as_context().data().instances.clone();
    let rows: Vec<Value> = named.iter().map(|n| exported(store, n)).collect();
    json!({"instances": rows})
}

/// Where the truth of this thread's stop goes.
fn path(options: &Options, suffix: &str) -> Option<PathBuf> {
    options.truth.as_ref().map(|path| PathBuf::from(format!("{}{suffix}", path.display())))
}

/// Writes the truth of a stop. To be called where the store can be asked: in an import, or before the guest is called.
pub fn write(options: &Options, mut context: StoreContextMut<'_, State>) {
    let (stop, suffix) = report::label(&options.stop);
    let Some(path) = path(options, &suffix) else { return };
    let mut all = REHEARSED.take().unwrap_or_else(|| frames(&WasmBacktrace::force_capture(context.as_context())));
    let own = all.len();
    all.extend(OTHER_STORE.take());
    // Youngest first, like the frames.
    let mut activations = OUTER.take();
    let outer: usize = activations.iter().sum();
    activations.push(all.len() - outer);
    activations.reverse();
    if let Some(names) = &context.data().frame_instances {
        for (frame, name) in all[..own].iter_mut().zip(names) {
            frame["instance"] = json!(name);
        }
    }
    #[cfg(feature = "v48")]
    let debug = options.guest_debug.then(|| {
        let mut activations = debug_frames(context.as_context_mut());
        if let (Value::Array(activations), Value::Array(others)) = (&mut activations, OTHER_DEBUG.take()) {
            activations.extend(others);
        }
        activations
    });
    #[cfg(not(feature = "v48"))]
    let debug = Value::Null;
    let mut stores = vec![store(&mut context)];
    stores.extend(IDLE_STORES.lock().unwrap().iter().cloned());
    let truth = json!({
        "wasmtime": VERSION,
        "stop": stop,
        "pid": std::process::id(),
        "tid": report::tid(),
        "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
        "frames": all,
        "activations": activations,
        "logical": LOGICAL.take(),
        "debug": debug,
        "stores": stores,
        "images": *IMAGES.lock().unwrap(),
    });
    let text = serde_json::to_string_pretty(&truth).expect("JSON of our own");
    std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
