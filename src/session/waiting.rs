//! Notes about guests that are on no thread.

use super::walking::{AsUnwinder, Native};
use crate::limits::{MAX_WAITING, MIN_FRAMES};
use crate::process::{Target, Thread};
use crate::report::counted;
use crate::runtime::{GuestKind, Runtime};
use crate::unwind::{Cursor, End, Stack, Unwinder, walk};
use std::collections::{BTreeMap, BTreeSet};

/// The address range of a code image. Its modules are compiled together, and a note names one of them for all.
type Image = (u64, u64);

/// Notes about the guests that were found to wait in async calls, and about the modules that may have guests that
/// wait because no thread has a frame of them.
pub(super) fn notes(
    target: &dyn Target,
    native: &Native<'_>,
    runtime: &dyn Runtime,
    threads: &[&Thread],
    stacks: &[Option<Stack>],
) -> Vec<String> {
    let modules = runtime.modules();
    if !(0..modules.len()).any(|i| runtime.may_wait(i)) {
        return Vec::new();
    }
    let mut out = Vec::new();
    let mut seen: BTreeSet<Image> = BTreeSet::new();
    let waiting = runtime.waiting(target);
    let more = if waiting.len() >= MAX_WAITING { "at least " } else { "" };
    let mut guests: BTreeMap<usize, u64> = BTreeMap::new();
    for at in waiting {
        if let Some(module) = youngest_module(at, target, native, runtime) {
            *guests.entry(module).or_default() += 1;
        }
    }
    for (module, count) in guests {
        let Some(found) = modules.get(module) else { continue };
        seen.insert(found.code);
        let (verb, pronoun, shown) = if count == 1 { ("waits", "it is", "is") } else { ("wait", "they are", "are") };
        out.push(format!(
            "{more}{} of module {} {verb} in an async call: {pronoun} on no thread, and {shown} not shown",
            counted(count, "guest"),
            found.name
        ));
    }
    // If a thread was left out, nobody knows which modules have frames on it.
    if threads.len() != target.threads().len() {
        return out;
    }
    // Nor is that known of a stack that was not followed to its end. The note then says that it is only about the
    // others.
    let whole = |stack: &Option<Stack>| stack.as_ref().is_some_and(|s| matches!(s.end, End::Bottom));
    let thread = if stacks.iter().all(whole) { "thread" } else { "thread that is shown to its end" };
    let places: BTreeSet<u64> =
        stacks.iter().flatten().flat_map(|s| &s.frames).map(|f| f.cursor.address.lookup()).collect();
    let running: BTreeSet<usize> = places.into_iter().filter_map(|at| runtime.module_of(at)).collect();
    seen.extend(running.iter().filter_map(|&i| Some(modules.get(i)?.code)));
    // For a debugger, an engine keeps the code that it compiled, and each store runs a copy of it. The original is
    // not idle if a copy of it runs.
    let wasm = |i: usize| runtime.wasm_file(i).map(std::ptr::from_ref);
    let copies: Vec<_> = running.iter().filter_map(|&i| wasm(i)).collect();
    let is_copy = |i: usize| wasm(i).is_some_and(|w| copies.contains(&w));
    let mut idle: Vec<&str> = Vec::new();
    for (i, module) in modules.iter().enumerate() {
        if runtime.may_wait(i) && !is_copy(i) && seen.insert(module.code) {
            idle.push(&module.name);
        }
    }
    let (what, them) = match idle.as_slice() {
        [] => return out,
        [one] => (format!("module {one} is loaded"), "it"),
        [first, second] => (format!("modules {first} and {second} are loaded"), "them"),
        [first, second, more @ ..] => (format!("modules {first}, {second} and {} more are loaded", more.len()), "them"),
    };
    out.push(format!(
        "{what}, and no {thread} has a frame of {them}: guests that wait in an async call are on no thread, and not shown"
    ));
    out
}

/// The module of the youngest Wasm frame of a guest that will go on at `at`.
fn youngest_module(at: Cursor, target: &dyn Target, native: &Native<'_>, runtime: &dyn Runtime) -> Option<usize> {
    let unwinders: [&dyn Unwinder; 5] =
        [&AsUnwinder(runtime), &native.cfi, &native.recognised, &native.code, &native.frame_pointer];
    let stack = walk(at, &unwinders, target, MIN_FRAMES);
    stack.frames.iter().find_map(|f| {
        let guests = runtime.describe(&f.cursor, target);
        guests.into_iter().find(|g| g.kind == GuestKind::Wasm).map(|g| g.module)
    })
}
