//! What is missing is missing, and never something else: cores cut off at every page and readings that fail one by one
//! show a part of what the whole shows.
//!
//! The cores are the kernel's, of hosts whose guest is in a trap, reduced to the pages that an analysis reads.

mod support;

use serde_json::Value;
use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::small_core::{Overheard, PAGE, SmallCore, question, wasm_frames};
use support::{Profile, Version, host_singlepass, host_wasmtime, kernel_core_exe};
use wstate::report::Report;
use wstate::session;
use wstate::target::Target;
use wstate::target::core::CoreTarget;
use wstate::target::objects::SearchPaths;

/// Longest time of one case.
const PATIENCE: Duration = Duration::from_secs(20);

/// The core of `trap-div` of each runtime, and of how many cases one is tried: looking at native code takes a tenth of a
/// second. A kernel that writes no cores is a failure in CI.
fn small_cores() -> Vec<(&'static str, SmallCore, usize)> {
    let wasmtime = || host_wasmtime(Version::V48, Profile::Release);
    let hosts = [
        ("singlepass", host_singlepass(Profile::Debug), &["--thread"][..]),
        ("wasmtime", wasmtime(), &["--thread"]),
        ("wasmtime with guest_debug", wasmtime(), &["--thread", "--guest-debug"]),
    ];
    let mut out = Vec::new();
    for (name, exe, flags) in hosts {
        // With guest_debug a trap has called the host.
        let native = flags.contains(&"--guest-debug");
        let step = if native && std::env::var_os("WSTATE_HOSTILE_ALL").is_none() { 20 } else { 1 };
        let listed = |path: &Path| match native {
            true => path.display().to_string(),
            false => format!("/srv/{}", path.file_name().unwrap_or_default().display()),
        };
        match kernel_core_exe(exe, "trap-div", flags) {
            Ok(core) => {
                let core = CoreTarget::open(&core.path, &SearchPaths::default()).unwrap();
                out.push((name, SmallCore::of(&core, &[], &listed), step));
            }
            Err(why) => {
                assert!(std::env::var_os("CI").is_none(), "{name}: {}", why.0);
                eprintln!("SKIPPED 1: {name}: {}", why.0);
            }
        }
    }
    out
}

fn open(bytes: Vec<u8>) -> Result<CoreTarget, wstate::error::Error> {
    CoreTarget::from_bytes(Path::new("core.test"), Arc::new(bytes), &SearchPaths::default())
}

fn analyse(target: &dyn Target) -> Report {
    let mut options = question();
    // Registers tell frames of one function from each other.
    options.verbose = true;
    // Names of native code are another file's, not the core's.
    options.names = false;
    session::run_on(target, &options).unwrap().report
}

/// Keys whose text explains a value and is none.
const EXPLANATIONS: [&str; 14] = [
    "checks",
    "description",
    "end",
    "index",
    "locals_why",
    "name_source",
    "notes",
    "objects_problems",
    "place",
    "problem",
    "routes",
    "stack_why",
    "trust",
    "why",
];

/// What tells items of one list from each other, inlined functions apart.
fn key(item: &Value) -> Option<String> {
    let runtime = if item["modules"].is_null() { &Value::Null } else { &item["name"] };
    let keys = [runtime, &item["tid"], &item["code_start"], &item["pc"], &item["registers"]["rsp"]];
    let keys: Vec<String> = keys.iter().filter(|k| !k.is_null()).map(|k| k.to_string()).collect();
    (!keys.is_empty()).then(|| keys.join(" "))
}

/// A kind or a position that is not known, a number that stands for a module's name.
fn says_nothing(text: &str) -> bool {
    let number = text.strip_prefix("module").unwrap_or_default();
    const NUMBERS_AND_EXCUSES: [&str; 4] = [
        "of an unknown version",
        "whose tables cannot be read",
        "entry trampoline of func ",
        "call of the runtime's #",
    ];
    text == "unknown"
        || NUMBERS_AND_EXCUSES.iter().any(|e| text.contains(e))
        || (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// The first value in `part` that is not in `whole`.
fn differs(part: &Value, whole: &Value, at: &str) -> Option<String> {
    match (part, whole) {
        (Value::Null, _) => None,
        (Value::String(text), _) if says_nothing(text) => None,
        // A loaded file goes by its name, one that cannot be looked at by its path.
        (Value::String(part), Value::String(whole)) if at.ends_with(".module") => {
            let name = |path: &str| path.rsplit('/').next().map(str::to_string);
            (name(part) != name(whole)).then(|| format!("{at}: {part} instead of {whole}"))
        }
        (Value::Object(part), Value::Object(whole)) => part
            .iter()
            .filter(|(k, _)| !EXPLANATIONS.contains(&k.as_str()))
            .find_map(|(k, v)| differs(v, whole.get(k).unwrap_or(&Value::Null), &format!("{at}.{k}"))),
        (Value::Array(part), Value::Array(whole)) => {
            let mut keyed: HashMap<String, Vec<&Value>> = HashMap::new();
            for item in whole.iter().rev() {
                keyed.entry(key(item).unwrap_or_default()).or_default().push(item);
            }
            if keyed.contains_key("") && part.len() != whole.len() {
                return Some(format!("{at}: {} of {}", part.len(), whole.len()));
            }
            part.iter().enumerate().find_map(|(i, item)| {
                let at = format!("{at}[{i}]");
                match keyed.get_mut(&key(item).unwrap_or_default()).and_then(Vec::pop) {
                    Some(same) => differs(item, same, &at),
                    None => Some(format!("{at} is not there: {item}")),
                }
            })
        }
        _ => (part != whole).then(|| format!("{at}: {part} instead of {whole}")),
    }
}

fn value(report: &Report) -> Value {
    serde_json::to_value(report).unwrap()
}

#[test]
fn a_core_cut_off_at_any_page_shows_a_part_of_the_whole() {
    for (name, small, step) in small_cores() {
        let bytes = small.builder().build();
        let whole = analyse(&open(bytes.clone()).unwrap());
        let all = wasm_frames(&whole);
        assert!(all >= 8, "{name}: {whole:?}");
        let whole = value(&whole);
        let (began, mut cuts, mut fewer) = (Instant::now(), 0, 0);
        for size in (0..bytes.len()).step_by(PAGE as usize / 32 * step) {
            let Ok(core) = open(bytes[..size].to_vec()) else {
                assert!(size < 64 + 56, "{name}: refused at {size}");
                continue;
            };
            let one = Instant::now();
            let report = analyse(&core);
            assert!(one.elapsed() < PATIENCE, "{name}: {:?} at {size}", one.elapsed());
            let wrong = differs(&value(&report), &whole, "");
            assert_eq!(wrong, None, "{name}: cut off at {size} of {}", bytes.len());
            assert!(report.notes.iter().any(|n| n.contains("cut off")), "{name}: {size}: {:?}", report.notes);
            cuts += 1;
            fewer += usize::from(wasm_frames(&report) < all);
        }
        assert!(fewer > 0 && fewer < cuts, "{name}: {fewer} of {cuts}");
        println!("{name}: {cuts} cuts of {} bytes, {fewer} with fewer frames, {:?}", bytes.len(), began.elapsed());
    }
}

/// How readings fail.
#[derive(Clone, Copy, Debug)]
enum Failing {
    /// The k-th alone.
    One,
    /// The k-th and all behind it: the process is gone.
    AllFrom,
}

#[test]
fn any_reading_may_fail() {
    for (name, small, step) in small_cores() {
        let core = small.builder().open().unwrap();
        let count = Cell::new(0usize);
        let run = |allows: &dyn Fn(u64, usize, bool) -> bool| {
            analyse(&Overheard { core: &core, threads: core.threads(), allows })
        };
        let undisturbed = run(&|_, _, _| {
            count.set(count.get() + 1);
            true
        });
        let all = wasm_frames(&undisturbed);
        assert!(all >= 8, "{name}: {undisturbed:?}");
        let (whole, total) = (value(&undisturbed), count.get());
        let (began, mut fewer) = (Instant::now(), 0);
        for k in (0..total).step_by(step) {
            for failing in [Failing::One, Failing::AllFrom] {
                count.set(0);
                let report = run(&|_, _, _| {
                    let i = count.replace(count.get() + 1);
                    match failing {
                        Failing::One => i != k,
                        Failing::AllFrom => i < k,
                    }
                });
                let wrong = differs(&value(&report), &whole, "");
                assert_eq!(wrong, None, "{name}: reading {k} of {total} fails ({failing:?})");
                // The frame that the registers point to needs no stack.
                assert_eq!(report.threads.len(), undisturbed.threads.len(), "{name}: {k} {failing:?}");
                assert!(report.threads.iter().all(|t| !t.frames.is_empty()), "{name}: {k} {failing:?}");
                fewer += usize::from(wasm_frames(&report) < all);
            }
        }
        assert!(fewer > 0 && fewer < 2 * total.div_ceil(step), "{name}: {fewer} of {total}");
        println!("{name}: {total} readings, {fewer} reports with fewer frames, {:?}", began.elapsed());
    }
}
