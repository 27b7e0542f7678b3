//! What the churn hosts load in turns: three modules whose frames tell by themselves of which module they are.
//!
//! Module `a`, `b` or `c` has the functions `fa_0` to `fa_5` (`fb_0`, ..) and `run`, which calls `f_0`, which calls `f_1`,
//! and so on; the last one counts down. Each is called with the count and with the number of its module (10, 11, 12). Local
//! 2 of each is `module << 16 | k`, where k is the number of the function (255 of `run`), and around each call the operand
//! `module << 16 | 256 | k` is kept. While a module runs its thread is called `m_a`, `m_b` or `m_c`, else `m_-`. So a
//! frame whose name is another module's than its thread's, or whose values are, is wrong.

use std::fmt::Write;

/// The kinds of modules.
pub const KINDS: [&str; 4] = ["different", "names", "exports", "globals"];

/// Module number `module` (0 to 2), as text.
///
/// - `different`: the functions stand in another order in each, and have other lengths.
/// - `names`: all are the same but for the names of their functions.
/// - `exports`: the same, and the names are those of exports; there is no name section.
/// - `globals`: the same code and other names, and the module's number comes from a global with another initial value.
pub fn wat(kind: &str, module: usize) -> String {
    let letter = ["a", "b", "c"][module];
    let number = 10 + module;
    let order: [usize; 6] = match (kind, module) {
        ("different", 0) => [3, 1, 5, 0, 4, 2],
        ("different", 1) => [5, 3, 1, 4, 2, 0],
        ("different", 2) => [2, 4, 0, 5, 1, 3],
        _ => [0, 1, 2, 3, 4, 5],
    };
    let of_module = match kind {
        "different" => format!("(i32.const {})", number << 16),
        "globals" => "(global.get 0)".to_string(),
        _ => "(i32.shl (local.get 1) (i32.const 16))".to_string(),
    };
    let value = |k: usize| format!("(i32.or {of_module} (i32.const {k}))");
    let has_ids = kind != "exports";
    let place = |k: usize| order.iter().position(|&o| o == k).unwrap_or_default();
    let mut text = "(module (memory (export \"memory\") 1)\n".to_string();
    if kind == "globals" {
        let _ = writeln!(text, "(global (mut i32) (i32.const {}))", number << 16);
    }
    let types = "(param i32 i32) (local i32 i32)";
    for k in order {
        let name = format!("f{letter}_{k}");
        let head = if has_ids { format!("${name}") } else { format!("(export \"{name}\")") };
        let _ = writeln!(text, "(func {head} {types} (local.set 2 {})", value(k));
        // A length of its own.
        for _ in 0..(if kind == "different" { 5 * (k + module) } else { 5 * k }) {
            text += "(local.set 3 (i32.add (local.get 3) (local.get 0)))\n";
        }
        if k < 5 {
            let callee = place(k + 1);
            let _ = writeln!(text, "{} (call {callee} (local.get 0) (local.get 1)) drop)", value(0x100 | k));
        } else {
            text += "(loop (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0))))\n";
        }
    }
    let _ = writeln!(text, "(func (export \"run\") {types} (local.set 2 {})", value(0xff));
    let _ = writeln!(text, "{} (call {} (local.get 0) (local.get 1)) drop))", value(0x1ff), place(0));
    text
}

/// What the command line asks for.
pub struct Asked {
    pub count: i32,
    pub modules: Vec<Vec<u8>>,
    /// Other words.
    pub how: Vec<String>,
}

/// Reads `KIND COUNT [HOW..]`; `print DIRECTORY KIND` writes the three modules there, as text and binary, and ends.
pub fn asked() -> Asked {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let binary = |kind: &str, module| wat::parse_str(wat(kind, module)).expect("the modules are right");
    if let [print, directory, kind] = words.as_slice()
        && print == "print"
    {
        for module in 0..3 {
            let path = |end| std::path::Path::new(directory).join(format!("{kind}-{}.{end}", ["a", "b", "c"][module]));
            std::fs::write(path("wat"), wat(kind, module)).expect("the directory can be written to");
            std::fs::write(path("wasm"), binary(kind, module)).expect("the directory can be written to");
        }
        std::process::exit(0);
    }
    let [kind, count, how @ ..] = words.as_slice() else { panic!("KIND COUNT [HOW..], with one of {KINDS:?}") };
    assert!(KINDS.contains(&kind.as_str()), "{kind} is none of {KINDS:?}");
    Asked {
        count: count.parse().expect("a count"),
        modules: (0..3).map(|module| binary(kind, module)).collect(),
        how: how.to_vec(),
    }
}

/// Gives this thread a name.
fn call_thread(name: &std::ffi::CStr) {
    // SAFETY: the name ends with a zero byte.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Says READY, then calls `load_and_run` with 0, 1, 2, 0, .. until the parent ends; for each line on stdin it says how often
/// that was. What `load_and_run` does within the function that it is given is the module's.
pub fn churn(mut load_and_run: impl FnMut(usize, &dyn Fn(&mut dyn FnMut()))) -> ! {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LOADED: AtomicU64 = AtomicU64::new(0);
    // SAFETY: no memory is touched.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    std::thread::spawn(|| {
        for _ in std::io::stdin().lines() {
            println!("LOADED {}", LOADED.load(Ordering::Relaxed));
        }
        std::process::exit(0);
    });
    // Once, so that what is made at the first use is there.
    load_and_run(0, &|run| run());
    println!("READY {}", std::process::id());
    for module in [0, 1, 2].into_iter().cycle() {
        load_and_run(module, &|run| {
            call_thread([c"m_a", c"m_b", c"m_c"][module]);
            run();
            call_thread(c"m_-");
        });
        LOADED.fetch_add(1, Ordering::Relaxed);
    }
    unreachable!("a cycle has no end");
}
