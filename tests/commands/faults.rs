//! What is missing is missing, and never something else: cores cut off at every page and readings that fail one by one
//! show a part of what the whole shows.
//!
//! The cores are the kernel's, of hosts whose guest is in a trap, reduced to the pages that an analysis reads.

use crate::support::missing::missing;
use crate::support::small_core::{Overheard, PAGE, SmallCore, Work, counted, question, wasm_frames};
use crate::support::{Profile, Version, host_singlepass, host_wasmtime, kernel_core_exe};
use proptest::prelude::*;
use serde_json::Value;
use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use wstate::arch::{Machine, Registers, x64};
use wstate::limits;
use wstate::process::Target;
use wstate::process::core::CoreTarget;
use wstate::process::objects::SearchPaths;
use wstate::report::{Report, text};
use wstate::session::{Options, Session};

/// The core of `trap-div` of each runtime, and of how many cases one is tried: looking at native code takes a tenth of a
/// second.
fn small_cores() -> &'static [(&'static str, SmallCore, usize)] {
    static CORES: OnceLock<Vec<(&str, SmallCore, usize)>> = OnceLock::new();
    CORES.get_or_init(make_small_cores)
}

fn make_small_cores() -> Vec<(&'static str, SmallCore, usize)> {
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
            Err(why) => missing(format!("{name}: {}", why.0)),
        }
    }
    out
}

fn open(bytes: Vec<u8>) -> Result<CoreTarget, wstate::error::Error> {
    CoreTarget::from_bytes(Path::new("core.test"), Arc::new(bytes), &SearchPaths::default())
}

fn options() -> Options {
    // Registers tell frames of one function from each other. Names of native code are another file's, not the core's.
    let mut options = question();
    (options.verbose, options.names) = (true, false);
    options
}

fn analyse(target: &dyn Target) -> Report {
    Session::on(target, &options()).stacks().unwrap().report
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

/// Whether a part of a core costs about what the whole does. Where a module is not found it is searched for, on all routes.
fn within(work: Work, whole: Work) -> bool {
    // Where the core does not say which file it was, files are compared with it.
    let compared = 4 * limits::MAX_COMPARED_BYTES as usize;
    work.reads < 10 * whole.reads + 10_000 && work.bytes < 10 * whole.bytes + (64 << 20) + compared
}

/// Of a core with any words in it, which may lead anywhere.
const MOST_READS: usize = 2_000_000;
const MOST_BYTES: usize = 2 << 30;

/// What is told of the target's code. Engines are named where it is not understood, so more of them where less can be read.
fn value(report: &Report) -> Value {
    let mut report = report.clone();
    report.engines.clear();
    serde_json::to_value(report).unwrap()
}

#[test]
fn a_core_cut_off_at_any_page_shows_a_part_of_the_whole() {
    for &(name, ref small, step) in small_cores() {
        let bytes = small.builder().build();
        let whole = analyse(&open(bytes.clone()).unwrap());
        let all = wasm_frames(&whole);
        assert!(all >= 8, "{name}: {whole:?}");
        let whole = value(&whole);
        let most = counted(&open(bytes.clone()).unwrap(), &options()).1;
        let (mut cuts, mut fewer) = (0, 0);
        for size in (0..bytes.len()).step_by(PAGE as usize / 32 * step) {
            let Ok(core) = open(bytes[..size].to_vec()) else {
                assert!(size < 64 + 56, "{name}: refused at {size}");
                continue;
            };
            let (report, work) = counted(&core, &options());
            assert!(within(work, most), "{name}: {work:?} at {size}, the whole takes {most:?}");
            let wrong = differs(&value(&report), &whole, "");
            assert_eq!(wrong, None, "{name}: cut off at {size} of {}", bytes.len());
            assert!(report.notes.iter().any(|n| n.contains("cut off")), "{name}: {size}: {:?}", report.notes);
            cuts += 1;
            fewer += usize::from(wasm_frames(&report) < all);
        }
        assert!(fewer > 0 && fewer < cuts, "{name}: {fewer} of {cuts}");
        println!("{name}: {cuts} cuts of {} bytes, {fewer} with fewer frames", bytes.len());
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
    for &(name, ref small, step) in small_cores() {
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
        let mut fewer = 0;
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
        println!("{name}: {total} readings, {fewer} reports with fewer frames");
    }
}

/// A word out of any number: mostly near something that exists.
fn word(small: &SmallCore, n: u64) -> u64 {
    let (start, _, content) = &small.segments[(n >> 32) as usize % small.segments.len()];
    let size = content.as_ref().map_or_else(|size| *size, |bytes| bytes.len() as u64);
    match n % 8 {
        0 => n,
        1 => n % 0x1000,
        2 => u64::MAX,
        3 | 4 => start + (n >> 3) % size,
        _ => start + (((n >> 3) % size) & !7),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// The whole line over real code and maps with any words in any place: it ends, within bounds.
    #[test]
    fn any_registers_and_any_memory(
        which in any::<prop::sample::Index>(),
        registers in prop::option::of(prop::collection::vec(any::<u64>(), 17)),
        stack in prop::collection::vec((0..500u64, any::<u64>()), 0..60),
        writes in prop::collection::vec((any::<u64>(), any::<u64>()), 0..60),
    ) {
        let cores = small_cores();
        prop_assume!(!cores.is_empty());
        let (name, small, _) = &cores[which.index(cores.len())];
        let mut changed = small.clone();
        let sp = small.threads[0].registers.sp().unwrap();
        if let Some(values) = registers {
            let mut all = Registers::unknown(Machine::X64);
            for (reg, n) in Machine::X64.registers().filter(|reg| *reg != x64::RIP).zip(values) {
                all.set(reg, word(small, n));
            }
            changed.threads[0].registers = all;
        }
        let on_stack = stack.iter().map(|(i, value)| (sp + 8 * i, value));
        for (at, value) in on_stack.chain(writes.iter().map(|(at, value)| (word(small, *at), value))) {
            let held = changed.segments.iter_mut().find_map(|(start, _, content)| {
                let at = usize::try_from(at.checked_sub(*start)?).ok()?;
                content.as_mut().ok()?.get_mut(at..at.checked_add(8)?)
            });
            if let Some(slot) = held {
                slot.copy_from_slice(&word(small, *value).to_le_bytes());
            }
        }
        let mut options = question();
        options.limit = Some(500);
        let core = changed.builder().open().unwrap();
        let (report, work) = counted(&core, &options);
        prop_assert!(work.reads < MOST_READS && work.bytes < MOST_BYTES, "{}: {:?}", name, work);
        prop_assert!(report.threads.iter().all(|t| t.frames.len() <= 500));
        let shown = report.to_text(text::TextOptions { verbose: true, fold: true, ..Default::default() });
        let bound = 4 << 20;
        prop_assert!(shown.len() + report.to_json(true).len() < bound, "{}: {} bytes", name, shown.len());
    }
}
