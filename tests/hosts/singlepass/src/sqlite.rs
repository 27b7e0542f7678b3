//! SQLite as sql.js ships it: just enough of emscripten's environment to open a database and run a statement.

use crate::{fail, options::Options, run};
use wasmer_runtime_core::{Instance, memory::MemoryView, types::Value, vm};

/// Creating a table asks for the time too (for the seed of a journal's name); that is not the stop.
const SETUP: &str = "
    CREATE TABLE host(id INTEGER PRIMARY KEY, name TEXT);
    INSERT INTO host VALUES (1, 'near'), (2, 'wasmer'), (3, 'singlepass');";

/// Joins with a recursive query; at n = 1000 the current time is asked for, which leaves through an import deep inside of
/// the virtual machine that runs the statement.
const STOPPING: &str = "
    WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < 1000)
    SELECT h.name, sum(c.n) FROM host h JOIN count c
    WHERE c.n % h.id = 0 AND (c.n < 1000 OR strftime('%s', 'now') > 0)
    GROUP BY h.name;";

/// The same without an end and without an import.
const BUSY: &str = "
    WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count)
    SELECT sum(n * n % 7) FROM count;";

/// The imports that SQLite needs a true answer from; `None` for those where 0 is good enough.
pub fn import(name: &str) -> Option<usize> {
    Some(match name {
        "env.emscripten_memcpy_big" => copy as *const () as usize,
        "env._emscripten_date_now" | "env.emscripten_get_now" => now as *const () as usize,
        "wasi_snapshot_preview1.environ_sizes_get" => environment_sizes as *const () as usize,
        "env.__syscall_openat" => not_found as *const () as usize,
        _ => return None,
    })
}

/// Guest memory 0 at `address`, for `length` bytes; `None` outside of the memory.
fn guest(vmctx: *mut vm::Ctx, address: u32, length: u32) -> Option<*mut u8> {
    let internal = unsafe { &(*vmctx).internal };
    (u64::from(address) + u64::from(length) <= internal.memory_bound as u64)
        .then(|| unsafe { internal.memory_base.add(address as usize) })
}

extern "C" fn copy(vmctx: *mut vm::Ctx, to: u32, from: u32, length: u32) {
    if let (Some(to), Some(from)) = (guest(vmctx, to, length), guest(vmctx, from, length)) {
        unsafe { std::ptr::copy(from, to, length as usize) };
    }
}

/// Milliseconds since 1970 of a fixed moment: runs are comparable.
extern "C" fn now(_vmctx: *mut vm::Ctx) -> f64 {
    1_600_000_000_000.0
}

extern "C" fn environment_sizes(vmctx: *mut vm::Ctx, count: u32, size: u32) -> u64 {
    for address in [count, size] {
        if let Some(cell) = guest(vmctx, address, 4) {
            unsafe { cell.cast::<u32>().write_unaligned(0) };
        }
    }
    0
}

/// emscripten's `-ENOENT`.
extern "C" fn not_found(_vmctx: *mut vm::Ctx) -> u64 {
    -44i32 as u32 as u64
}

fn call(instance: &Instance, name: &str, args: &[i32]) -> i32 {
    let args: Vec<Value> = args.iter().map(|&a| Value::I32(a)).collect();
    match run(instance, name, &args).first() {
        Some(Value::I32(value)) => *value,
        _ => 0,
    }
}

fn string(instance: &Instance, text: &str) -> i32 {
    let address = call(instance, "malloc", &[text.len() as i32 + 1]);
    let memory: wasmer_runtime_core::memory::Memory =
        instance.exports.get("memory").unwrap_or_else(|e| fail(&format!("no memory: {e:?}")));
    let view: MemoryView<u8> = memory.view();
    for (i, byte) in text.bytes().chain([0]).enumerate() {
        view[address as usize + i].set(byte);
    }
    address
}

/// Opens a database in memory and runs the statement; `before` is called just before.
pub fn query(instance: &Instance, options: &Options, before: impl FnOnce()) {
    call(instance, "__wasm_call_ctors", &[]);
    let name = string(instance, ":memory:");
    let handle = call(instance, "malloc", &[4]);
    let status = call(instance, "sqlite3_open", &[name, handle]);
    if status != 0 {
        fail(&format!("sqlite3_open returned {status}"));
    }
    let setup = string(instance, SETUP);
    let sql = string(instance, if options.stop == "sqlite-busy" { BUSY } else { STOPPING });
    let memory: wasmer_runtime_core::memory::Memory = instance.exports.get("memory").expect("it was there");
    let view: MemoryView<u32> = memory.view();
    let database = view[handle as usize / 4].get() as i32;
    let status = call(instance, "sqlite3_exec", &[database, setup, 0, 0, 0]);
    if status != 0 {
        fail(&format!("sqlite3_exec returned {status} for the setup"));
    }
    before();
    let status = call(instance, "sqlite3_exec", &[database, sql, 0, 0, 0]);
    crate::report::note(&format!("sqlite3_exec returned {status}"));
}
