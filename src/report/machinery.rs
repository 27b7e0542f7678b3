//! Tells native frames that only lead from one piece of the host's code to the next: how Rust starts programs and threads,
//! catches panics and calls closures, how executors poll futures, and how the C library starts all of it. Where several
//! stand in a row, the text form has one line for them.
//!
//! What a thread waits in, what a panic goes through and all code of the host are none of them. A frame of which that is
//! not sure is none either: a line too many costs less than one that is missing.

use super::names::{self, Pair};
use super::paths::{self, Home};
use super::{Frame, FrameKind};
use crate::phrases::joined;
use std::collections::BTreeSet;
use std::ops::Range;

/// Whose machinery a frame is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// std, core and alloc.
    Rust,
    /// The executor tokio.
    Tokio,
    /// The thread pools of rayon.
    Rayon,
    /// The executor of the crates futures.
    Futures,
    /// async-executor and async-task, of smol and async-std.
    AsyncExecutor,
    /// What the C library does before `main` and before a thread's first function.
    CLibrary,
}

impl Owner {
    /// What a line calls it.
    fn name(self) -> &'static str {
        match self {
            Owner::Rust => "Rust's runtime",
            Owner::Tokio => "tokio",
            Owner::Rayon => "rayon",
            Owner::Futures => "futures",
            Owner::AsyncExecutor => "async-executor",
            Owner::CLibrary => "the C library",
        }
    }

    /// Whose code a crate is, if it is machinery at all.
    fn of_crate(name: &str) -> Option<Owner> {
        Some(match name {
            "std" | "core" | "alloc" => Owner::Rust,
            "tokio" => Owner::Tokio,
            "rayon_core" | "rayon-core" => Owner::Rayon,
            "futures_executor" | "futures-executor" => Owner::Futures,
            "async_executor" | "async-executor" | "async_task" | "async-task" => Owner::AsyncExecutor,
            _ => return None,
        })
    }
}

/// Frames of machinery in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Their positions in the list that was given: two or more.
    pub frames: Range<usize>,
    /// Whose each of them is.
    pub owners: Vec<Owner>,
    /// Whether they were read without stopping their thread. All were, or none.
    pub unstopped: bool,
}

impl Run {
    /// The owners of some of the frames, for people: `Rust's runtime, tokio and the C library`. `part` has positions in the
    /// list that was given.
    pub fn owners(&self, part: Range<usize>) -> String {
        let owners = (self.frames.start..).zip(&self.owners).filter(|(at, _)| part.contains(at));
        let owners: BTreeSet<Owner> = owners.map(|(_, owner)| *owner).collect();
        let names: Vec<&str> = owners.iter().map(|owner| owner.name()).collect();
        joined(&names, "and")
    }
}

/// The rows of machinery among the frames of a thread, youngest first. A row of one frame is none, because a line for it
/// would take as much room. The youngest frame belongs to none: it says what the thread does now.
pub fn runs(frames: &[&Frame]) -> Vec<Run> {
    let mut found: Vec<Run> = Vec::new();
    for (at, frame) in frames.iter().enumerate().skip(1) {
        let owner = owner(frame).or_else(|| is_generated_main(frame, frames[at - 1]).then_some(Owner::Rust));
        let Some(owner) = owner else { continue };
        match found.last_mut() {
            Some(run) if run.frames.end == at && run.unstopped == frame.unstopped => {
                run.frames.end = at + 1;
                run.owners.push(owner);
            }
            _ => {
                let (frames, owners) = (at..at + 1, vec![owner]);
                found.push(Run { frames, owners, unstopped: frame.unstopped });
            }
        }
    }
    found.retain(|run| run.frames.len() > 1);
    found
}

/// Whose machinery a frame is of, if it is and says nothing that is worth a line.
pub fn owner(frame: &Frame) -> Option<Owner> {
    if !is_plain(frame) {
        return None;
    }
    let function = frame.function.as_ref()?;
    let name = function.name.as_deref()?;
    let file = function.file.as_deref();
    if starts_in_c(name, file, frame) {
        return Some(Owner::CLibrary);
    }
    // The only function of this kind that has no path: the compiler makes it.
    if name == "__rust_try" && file.is_none() {
        return Some(Owner::Rust);
    }
    let name = Name::parse(name)?;
    // A file of a package that is no machinery says that the function is none, whatever its name is. A file in an unknown
    // place says nothing: libraries are built anywhere.
    let source = match file.and_then(paths::home) {
        Some((home, rest)) if home != Home::Checkout => Some(Source::of(home, rest)?),
        _ => None,
    };
    let Some(root) = name.root() else {
        // Names from debug information of inlined functions lack their paths, so the file has to say whose they are.
        return by_file(&name, &source?);
    };
    let owner = Owner::of_crate(root)?;
    match source {
        Some(source) if source.owner != owner => None,
        Some(source) => by_path(&name, owner).or_else(|| by_file(&name, &source)),
        None => by_path(&name, owner),
    }
}

/// Whether a frame is native and sure, and has nothing besides its name that a reader should know.
fn is_plain(frame: &Frame) -> bool {
    let values = frame.locals.is_some() || frame.stack.is_some() || !frame.variables.is_empty();
    frame.kind == FrameKind::Native && frame.is_sure() && frame.notes.is_empty() && !values
}

/// The compiler makes a function `main` for the C library, which calls `std::rt::lang_start` with the program's own `main`.
/// A `main` that somebody wrote has a source file, or another name.
fn is_generated_main(frame: &Frame, younger: &Frame) -> bool {
    let named = |frame: &Frame, names: &[&str]| {
        let name = frame.function.as_ref().and_then(|f| f.name.as_deref()).unwrap_or_default();
        names.contains(&name) || Name::parse(name).is_some_and(|n| names.contains(&n.path.join("::").as_str()))
    };
    let written = frame.function.as_ref().is_some_and(|f| f.file.is_some() || f.inlined == Some(true));
    let starts = ["std::rt::lang_start", "std::rt::lang_start_internal"];
    is_plain(frame) && !written && named(frame, &["main"]) && owner(younger).is_some() && named(younger, &starts)
}

/// Whether this is a function of the C library that starts a program or a thread. Some of the names are those of other
/// functions too, so the library or the file has to be that of the C library.
fn starts_in_c(name: &str, file: Option<&str>, frame: &Frame) -> bool {
    if frame.function.as_ref().is_some_and(|f| f.inlined == Some(true)) {
        return false;
    }
    let own_file = |file: &str| ["/csu/", "/nptl/", "/sysdeps/"].iter().any(|part| file.contains(part));
    let library = frame.module.as_deref().map(|module| module.rsplit('/').next().unwrap_or(module));
    let in_library = library.is_some_and(|name| {
        ["libc.so", "libc-2.", "libpthread", "ld-musl-"].iter().any(|start| name.starts_with(start))
    });
    match name {
        "_start" | "__libc_start_main" | "__libc_start_main_impl" | "__libc_start_call_main" => {
            file.is_none_or(own_file)
        }
        "libc_start_main_stage2" | "start_thread" | "clone3" | "__clone3" | "__GI___clone3" | "clone" | "__clone" => {
            match file {
                Some(file) => own_file(file),
                None => in_library,
            }
        }
        _ => false,
    }
}

/// The source file of a crate that may be machinery.
struct Source<'a> {
    owner: Owner,
    crate_name: &'a str,
    /// Path below the crate's `src`.
    file: &'a str,
}

impl<'a> Source<'a> {
    /// The file `rest` of Rust's library or of a package.
    fn of(home: Home, rest: &'a str) -> Option<Source<'a>> {
        let (crate_name, file) = match home {
            Home::Library => rest.split_once('/')?,
            _ => paths::name_of_package(rest)?,
        };
        Some(Source { owner: Owner::of_crate(crate_name)?, crate_name, file: file.strip_prefix("src/")? })
    }
}

/// The parts of a demangled name.
struct Name<'a> {
    /// The words of the path without generic arguments, closures and hashes. Of an inherent method the words of the type
    /// come first; of a method of a trait, those of the trait.
    path: Vec<&'a str>,
    /// The type in `<TYPE as TRAIT>::method`.
    implemented_for: Option<&'a str>,
    /// Whether the name is that of a closure, or of something in one.
    closure: bool,
}

impl<'a> Name<'a> {
    /// `None` if the name is not one of Rust, because it has a list of parameters.
    fn parse(name: &'a str) -> Option<Name<'a>> {
        let all = names::pairs(name);
        let outermost: Vec<Pair> = all.iter().filter(|pair| pair.depth == 0).copied().collect();
        let mut out = Name { path: Vec::new(), implemented_for: None, closure: false };
        let mut rest = (name, 0);
        if let Some(first) = outermost.first().filter(|pair| pair.open == 0) {
            let inside = &name[1..first.close];
            // ` as ` between a type and a trait is not inside of the type's own brackets.
            let inner = all.iter().filter(|pair| pair.depth == 1 && pair.close < first.close);
            let mut at = 1;
            let mut middle = None;
            for (end, next) in inner.map(|pair| (pair.open, pair.close + 1)).chain([(first.close, first.close)]) {
                middle = middle.or_else(|| name[at..end].find(" as ").map(|found| at + found));
                at = next;
            }
            match middle {
                Some(middle) => {
                    out.implemented_for = Some(&name[1..middle]);
                    words(&name[middle + 4..first.close], &mut out)?;
                }
                None => words(inside, &mut out)?,
            }
            rest = (&name[first.close + 1..], first.close + 1);
        }
        words(rest.0, &mut out)?;
        Some(out)
    }

    /// The crate that the function is of, if the name has a path. For a method of a trait, that of the type decides, for it
    /// may be anybody's. Only the crate of a trait implements it for all types, which are then a parameter.
    fn root(&self) -> Option<&str> {
        let [first, _, ..] = self.path.as_slice() else { return None };
        let Some(ty) = self.implemented_for else { return Some(first) };
        let ty = ty.trim_start_matches(['&', '*', '(']);
        let ty = ["mut ", "const ", "dyn "].iter().fold(ty, |ty, word| ty.strip_prefix(word).unwrap_or(ty));
        if ty.starts_with("fn(") || is_parameter(ty) {
            return Some(first);
        }
        // A type that is no path, as `[T; 4]`, or one of the language, as `u8`, has no crate: it is nobody's machinery.
        Some(ty.split_once("::").map_or(ty, |(root, _)| without_hash(root)))
    }

    /// The last word.
    fn function(&self) -> &str {
        self.path.last().copied().unwrap_or_default()
    }
}

/// Whether a type is only the name of a generic parameter: `F`.
fn is_parameter(ty: &str) -> bool {
    matches!(ty.as_bytes(), [b'A'..=b'Z'] | [b'A'..=b'Z', b'0'..=b'9'])
}

/// `std` of `std[e28293b1aa0f68bd]`.
fn without_hash(word: &str) -> &str {
    word.split_once('[').map_or(word, |(word, _)| word)
}

/// Adds the words of a path, without what is in angle brackets.
fn words<'a>(path: &'a str, out: &mut Name<'a>) -> Option<()> {
    let mut at = 0;
    let outermost: Vec<Pair> = names::pairs(path).into_iter().filter(|pair| pair.depth == 0).collect();
    for (end, next) in outermost.iter().map(|pair| (pair.open, pair.close + 1)).chain([(path.len(), path.len())]) {
        for word in path[at..end].split("::").filter(|word| !word.is_empty()) {
            let is_hash = word.len() == 17 && word.starts_with('h') && word[1..].bytes().all(|b| b.is_ascii_hexdigit());
            if word.starts_with('{') {
                // Others are the block of an implementation, and a shim through which a closure is called.
                out.closure |= word.contains("closure") || word.contains("async");
            } else if word.contains(['(', ' ', '<', '>']) {
                return None;
            } else if !is_hash {
                let word = word.split_once("{{").map_or(word, |(word, _)| word);
                out.path.push(without_hash(word));
            }
        }
        at = next;
    }
    Some(())
}

/// Whether a function of an executor says what its thread waits for.
fn tells(function: &str) -> bool {
    ["park", "sleep", "wait", "recv"].iter().any(|word| function.contains(word))
}

const CALLS: [&str; 3] = ["call", "call_mut", "call_once"];
const STARTS: [&str; 2] = ["lang_start", "lang_start_internal"];
const CATCHES: [&str; 4] = ["catch_unwind", "do_call", "try", "r#try"];
const SPAWNS: [&str; 2] = ["spawn_unchecked", "spawn_unchecked_"];
const SHORT_BACKTRACE: &str = "__rust_begin_short_backtrace";
/// Parts of tokio's `runtime` in which its threads wait for the kernel.
const DRIVERS: [&str; 5] = ["driver", "io", "process", "signal", "time"];

/// What the path of a name says.
fn by_path(name: &Name<'_>, owner: Owner) -> Option<Owner> {
    let (path, function) = (name.path.as_slice(), name.function());
    let is_in = |place: &[&str]| path.get(1..).is_some_and(|rest| rest.starts_with(place));
    let found = match owner {
        Owner::Rust if name.implemented_for.is_some() => !name.closure && is_call_or_poll(path),
        Owner::Rust => {
            let call = is_in(&["ops", "function"]) && CALLS.contains(&function);
            let start = is_in(&["rt"]) && STARTS.contains(&function);
            let caught = is_in(&["panicking"]) || is_in(&["panic"]) || is_in(&["intrinsics"]);
            let spawn = is_in(&["thread"]) && SPAWNS.contains(&function) && name.closure;
            let local = is_in(&["thread", "local"]) && ["with", "try_with"].contains(&function);
            let thread = is_in(&["sys"]) && function == "thread_start";
            let catch = caught && CATCHES.contains(&function) && !name.closure;
            let backtrace = function == SHORT_BACKTRACE;
            call || start || catch || spawn || (local && !name.closure) || thread || backtrace
        }
        Owner::Tokio => {
            let place = path.get(2).copied().unwrap_or_default();
            let runtime = is_in(&["runtime"]) && !DRIVERS.contains(&place);
            let task = is_in(&["task", "coop"]) || is_in(&["task", "local"]);
            (runtime || task || is_in(&["loom"]) || is_in(&["macros"])) && !tells(function)
        }
        Owner::Rayon | Owner::Futures | Owner::AsyncExecutor => path.len() > 2 && !tells(function),
        Owner::CLibrary => false,
    };
    found.then_some(owner)
}

/// `core::ops::function::FnOnce::call_once`, `core::future::future::Future::poll`.
fn is_call_or_poll(path: &[&str]) -> bool {
    match path {
        ["core", "ops", "function", "Fn" | "FnMut" | "FnOnce", function] => CALLS.contains(function),
        ["core", "future", "future", "Future", "poll"] => true,
        _ => false,
    }
}

/// What the file of a function says, whose name may have lost its path: `do_call<..>` at `std/src/panicking.rs`.
fn by_file(name: &Name<'_>, source: &Source<'_>) -> Option<Owner> {
    let function = name.function();
    let bare_closure = name.path.is_empty() && name.closure;
    let file = source.file;
    let found = match (source.crate_name, file) {
        ("core", "ops/function.rs") => CALLS.contains(&function),
        ("core", "panic/unwind_safe.rs") => CALLS.contains(&function) || function == "poll",
        ("core", "future/future.rs" | "future/poll_fn.rs") => function == "poll",
        ("core", "intrinsics.rs" | "intrinsics/mod.rs") => CATCHES.contains(&function),
        ("alloc", "boxed.rs") => CALLS.contains(&function) || function == "poll",
        ("std", "rt.rs") => STARTS.contains(&function) || bare_closure,
        ("std", "panicking.rs" | "panic.rs") => CATCHES.contains(&function) && !name.closure,
        ("std", "sys/backtrace.rs" | "sys_common/backtrace.rs") => function == SHORT_BACKTRACE,
        ("std", "thread/lifecycle.rs" | "thread/mod.rs") => {
            bare_closure || (SPAWNS.contains(&function) && name.closure)
        }
        ("std", "thread/local.rs") => ["with", "try_with"].contains(&function) && !name.closure,
        ("std", "sys/thread/unix.rs" | "sys/pal/unix/thread.rs" | "sys/unix/thread.rs") => function == "thread_start",
        ("tokio", _) => {
            let driver = |rest: &str| DRIVERS.contains(&rest.split(['/', '.']).next().unwrap_or_default());
            let runtime = file.strip_prefix("runtime/").is_some_and(|rest| !driver(rest));
            let other = ["task/coop", "task/local.rs", "loom/", "macros/"].iter().any(|start| file.starts_with(start));
            (runtime || other) && !tells(function)
        }
        ("std" | "core" | "alloc", _) => false,
        _ => !tells(function),
    };
    found.then_some(source.owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Function, Trust};
    use proptest::prelude::*;

    const RUSTC: &str = "/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library/";
    const CARGO: &str = "/home/user/.cargo/registry/src/index-0123456789abcdef/";

    fn frame(name: &str, file: Option<String>) -> Frame {
        let function = Function { name: Some(name.to_string()), file, ..Function::default() };
        let mut frame = Frame::new(1, 0x1000, FrameKind::Native);
        (frame.trust, frame.function, frame.module) = (Some(Trust::Cfi), Some(function), Some("host".to_string()));
        frame
    }

    fn of(name: &str, file: &str) -> Option<Owner> {
        owner(&frame(name, (!file.is_empty()).then(|| file.replace("RUST/", RUSTC).replace("CARGO/", CARGO))))
    }

    /// Names and files as they are in processes: of debug builds, of release builds with and without debug information,
    /// of older versions of Rust.
    #[test]
    fn machinery_is_told_by_its_name_and_its_file() {
        let rust = [
            ("core::ops::function::FnOnce::call_once", "RUST/core/src/ops/function.rs"),
            ("core::ops::function::FnOnce::call_once", ""),
            ("core::ops::function::FnOnce::call_once{{vtable.shim}}", "RUST/core/src/ops/function.rs"),
            ("core::ops::function::FnOnce::call_once::h0123456789abcdef", ""),
            ("core::ops::function::impls::<impl core::ops::function::FnOnce<A> for &F>::call_once", ""),
            ("call_once<fn(), ()>", "RUST/core/src/ops/function.rs"),
            ("call_once<app::main::{closure_env#0}, ()>", "RUST/core/src/panic/unwind_safe.rs"),
            (
                "<&dyn core::ops::function::Fn<(), Output = i32> + core::marker::Sync as \
                 core::ops::function::FnOnce<()>>::call_once",
                "RUST/core/src/ops/function.rs",
            ),
            ("<core::panic::unwind_safe::AssertUnwindSafe<F> as core::ops::function::FnOnce<()>>::call_once", ""),
            (
                "<alloc::boxed::Box<dyn core::ops::function::FnOnce<(), Output = ()> + core::marker::Send> as \
              core::ops::function::FnOnce<()>>::call_once",
                "RUST/alloc/src/boxed.rs",
            ),
            ("<alloc::boxed::Box<F,A> as core::ops::function::FnOnce<Args>>::call_once", ""),
            ("<F as core::ops::function::FnOnce<()>>::call_once", ""),
            ("<core::pin::Pin<P> as core::future::future::Future>::poll", "RUST/core/src/future/future.rs"),
            ("std::sys::backtrace::__rust_begin_short_backtrace", "RUST/std/src/sys/backtrace.rs"),
            ("std::sys_common::backtrace::__rust_begin_short_backtrace", ""),
            ("std::rt::lang_start::{{closure}}", "RUST/std/src/rt.rs"),
            ("std::rt::lang_start", ""),
            ("std::rt::lang_start_internal::{closure#0}", "RUST/std/src/rt.rs"),
            ("std[e28293b1aa0f68bd]::rt::lang_start_internal", ""),
            ("std::panicking::try", ""),
            ("std::panicking::try::do_call", "RUST/std/src/panicking.rs"),
            ("std::panicking::catch_unwind::do_call::<app::main::{closure#0}, i32>", "RUST/std/src/panicking.rs"),
            ("do_call<core::panic::unwind_safe::AssertUnwindSafe<app::X>, ()>", "RUST/std/src/panicking.rs"),
            ("catch_unwind<(), app::X>", "RUST/std/src/panic.rs"),
            ("std::panic::catch_unwind", "/usr/src/rustc-1.63.0/library/std/src/panic.rs"),
            ("__rust_try", ""),
            ("std::thread::lifecycle::spawn_unchecked::{{closure}}::{{closure}}", "RUST/std/src/thread/lifecycle.rs"),
            ("std::thread::Builder::spawn_unchecked_::{{closure}}", ""),
            ("{closure#1}<fn(), ()>", "RUST/std/src/thread/mod.rs"),
            ("<std::sys::thread::unix::Thread>::new::thread_start", "RUST/std/src/sys/thread/unix.rs"),
            ("std::sys::pal::unix::thread::Thread::new::thread_start", ""),
            ("std::thread::local::LocalKey<T>::with", ""),
            ("try_with<core::cell::Cell<u8>, app::{closure_env#0}, ()>", "RUST/std/src/thread/local.rs"),
        ];
        for (name, file) in rust {
            assert_eq!(of(name, file), Some(Owner::Rust), "{name} {file}");
        }
        let others = [
            ("tokio::runtime::task::harness::Harness<T,S>::poll", "CARGO/tokio-1.47.1/src/runtime/task/harness.rs"),
            ("<tokio::runtime::task::core::Core<T, S>>::poll::{closure#0}", ""),
            ("tokio::runtime::park::CachedParkThread::block_on", ""),
            ("{closure#0}<app::Fut>", "CARGO/tokio-1.47.1/src/runtime/context/runtime.rs"),
            ("with_mut<u8>", "CARGO/tokio-1.47.1/src/loom/std/unsafe_cell.rs"),
            ("tokio::task::coop::budget", "/srv/vendor/tokio/src/task/coop/mod.rs"),
            ("rayon_core::registry::ThreadBuilder::run", "CARGO/rayon-core-1.12.1/src/registry.rs"),
            ("<rayon_core::job::StackJob<L,F,R> as rayon_core::job::Job>::execute", ""),
            ("futures_executor::local_pool::run_executor", ""),
            ("async_executor::Executor::run::{{closure}}", ""),
        ];
        for (name, file) in others {
            assert!(of(name, file).is_some_and(|owner| owner > Owner::Rust), "{name} {file}");
        }
    }

    #[test]
    fn what_says_something_is_no_machinery() {
        let shown = [
            // The host's own code, and code of its crates.
            ("main", ""),
            ("app::main", "src/main.rs"),
            ("app::main::{{closure}}", "src/main.rs"),
            ("{closure#0}", "/home/user/app/src/main.rs"),
            ("{closure#0}<app::X>", "CARGO/wasmtime-48.0.8/src/runtime/func.rs"),
            ("call_once<app::X>", "CARGO/wasmtime-48.0.8/src/runtime/func.rs"),
            ("call_once<app::X>", ""),
            ("catch_unwind", "src/panics.rs"),
            ("<app::Handler as core::ops::function::FnOnce<()>>::call_once", ""),
            ("<app::Handler as core::ops::function::FnOnce<()>>::call_once", "RUST/core/src/ops/function.rs"),
            ("<&app::Handler as core::ops::function::Fn<()>>::call", ""),
            ("<app::Task<core::option::Option<u8>> as core::future::future::Future>::poll", ""),
            ("<F as app::Handler>::call", ""),
            ("<[u8; 4] as app::Handler>::call", ""),
            // A name that the file contradicts.
            ("core::ops::function::FnOnce::call_once", "CARGO/wasmtime-48.0.8/src/runtime/func.rs"),
            ("std::rt::lang_start", "CARGO/tokio-1.47.1/src/runtime/context.rs"),
            // What a thread waits in.
            ("std::thread::functions::sleep", "RUST/std/src/thread/functions.rs"),
            ("std::sys::thread::unix::sleep", "RUST/std/src/sys/thread/unix.rs"),
            ("std::thread::lifecycle::JoinInner<T>::join", "RUST/std/src/thread/lifecycle.rs"),
            ("join<()>", "RUST/std/src/thread/join_handle.rs"),
            ("std::sync::mpsc::Receiver<T>::recv", ""),
            ("std::sync::once::Once::call_once", ""),
            ("std::sys::sync::mutex::futex::Mutex::lock_contended", ""),
            ("std::thread::spawn", ""),
            ("std::thread::Builder::spawn_unchecked_", ""),
            ("tokio::runtime::park::Inner::park", ""),
            ("tokio::runtime::io::driver::Driver::turn", ""),
            ("turn", "CARGO/tokio-1.47.1/src/runtime/io/driver.rs"),
            ("tokio::time::sleep::Sleep::poll_elapsed", ""),
            ("tokio::sync::mutex::Mutex<T>::lock::{{closure}}", ""),
            ("rayon_core::sleep::Sleep::sleep", ""),
            // A panic.
            ("rust_panic", ""),
            ("core::panicking::panic_fmt", "RUST/core/src/panicking.rs"),
            ("std::panicking::begin_panic_handler", "RUST/std/src/panicking.rs"),
            ("std::panicking::begin_panic_handler::{{closure}}", "RUST/std/src/panicking.rs"),
            ("{closure#0}", "RUST/std/src/panicking.rs"),
            ("std::panicking::rust_panic_with_hook", "RUST/std/src/panicking.rs"),
            ("std::panicking::try::do_catch", ""),
            // C++.
            ("std::call_once<void (&)()>(std::once_flag&, void (&)())", ""),
            ("std::thread::_Invoker<std::tuple<app> >::operator()", ""),
            ("std::call_once<int>", "/usr/include/c++/12/mutex"),
            // Code of functions that others have too.
            ("clone", ""),
            ("clone", "src/clone.c"),
            ("start_thread", "src/threads.c"),
            ("", ""),
            ("??", ""),
            ("<", ""),
            ("core::", ""),
            ("<core as >::", ""),
        ];
        for (name, file) in shown {
            assert_eq!(of(name, file), None, "{name} {file}");
        }
    }

    #[test]
    fn the_c_library_starts_programs_and_threads() {
        let c = Some(Owner::CLibrary);
        assert_eq!(of("_start", ""), c);
        assert_eq!(of("__libc_start_call_main", "./csu/../sysdeps/nptl/libc_start_call_main.h"), c);
        assert_eq!(of("start_thread", "./nptl/pthread_create.c"), c);
        assert_eq!(of("clone3", "./misc/../sysdeps/unix/sysv/linux/x86_64/clone3.S"), c);
        let mut clone = frame("clone", None);
        clone.module = Some("/usr/lib/x86_64-linux-gnu/libc.so.6".into());
        assert_eq!(owner(&clone), c);
        // A method of that name that was inlined there.
        clone.function.as_mut().unwrap().inlined = Some(true);
        assert_eq!(owner(&clone), None);
    }

    #[test]
    fn a_frame_with_something_to_say_is_no_machinery() {
        let plain = frame("std::rt::lang_start", None);
        assert_eq!(owner(&plain), Some(Owner::Rust));
        let changes: [fn(&mut Frame); 8] = [
            |f| f.kind = FrameKind::Wasm,
            |f| f.kind = FrameKind::Trampoline,
            |f| f.trust = Some(Trust::FramePointer),
            |f| f.trust = Some(Trust::Scan),
            |f| f.may_miss_inlined = true,
            |f| f.notes.push("a signal handler was called here".into()),
            |f| f.locals = Some(Vec::new()),
            |f| f.function = None,
        ];
        for (n, change) in changes.iter().enumerate() {
            let mut frame = plain.clone();
            change(&mut frame);
            assert_eq!(owner(&frame), None, "{n}");
        }
    }

    fn found(names: &[&str]) -> Vec<(Range<usize>, String)> {
        let frames: Vec<Frame> = names.iter().map(|name| frame(name, None)).collect();
        runs(&frames.iter().collect::<Vec<_>>())
            .iter()
            .map(|run| (run.frames.clone(), run.owners(run.frames.clone())))
            .collect()
    }

    #[test]
    fn rows_are_of_two_frames_or_more_and_never_begin_a_thread() {
        let (call, start, internal) =
            ("core::ops::function::FnOnce::call_once", "std::rt::lang_start", "std::rt::lang_start_internal");
        assert_eq!(found(&[]), []);
        assert_eq!(found(&[call, start]), [], "one is left behind the youngest");
        assert_eq!(found(&[call, start, internal]), [(1..3, "Rust's runtime".to_string())]);
        assert_eq!(found(&["app::main", call, "app::f", start]), []);
        // The `main` that the compiler makes belongs to what calls it and to what it calls.
        let whole = ["app::f", "app::main", call, internal, "main", "__libc_start_main", "_start"];
        assert_eq!(found(&whole), [(2..7, "Rust's runtime and the C library".to_string())]);
        assert_eq!(found(&["f", "main", "__libc_start_main", "_start"]), [(2..4, "the C library".to_string())]);
        let mixed = ["app::f", call, "tokio::runtime::task::raw::poll", "_start"];
        assert_eq!(found(&mixed), [(1..4, "Rust's runtime, tokio and the C library".to_string())]);
        // Somebody's own `main` stays.
        let mut frames: Vec<Frame> = whole.iter().map(|name| frame(name, None)).collect();
        frames[4].function.as_mut().unwrap().file = Some("src/main.c".into());
        let rows = runs(&frames.iter().collect::<Vec<_>>());
        assert_eq!(rows.iter().map(|run| run.frames.clone()).collect::<Vec<_>>(), [2..4, 5..7]);
    }

    proptest! {
        #[test]
        fn nothing_that_a_host_calls_itself_is_machinery(
            name in "([<>(){}]|->|operator| as |::|core|std|alloc|tokio|call_once|poll|runtime|[a-z]{1,4}|&|dyn |, ){0,25}",
            file in "(/rustc/|/library/|std|core|src|rt\\.rs|/registry/src/|[a-z]-[0-9a-f]{16}|tokio-1\\.0|/){0,8}"
        ) {
            // Any text is taken without a panic.
            let _ = of(&name, &file);
            // A path that begins with another crate's name is never machinery, whatever stands behind it.
            prop_assert_eq!(of(&format!("app::{name}"), &file), None);
            prop_assert_eq!(of(&format!("<app::T as core::ops::function::FnOnce<{name}>>::call_once"), &file), None);
        }
    }
}
