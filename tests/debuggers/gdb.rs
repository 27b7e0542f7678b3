//! Native frames against gdb: the same functions in the same order with the same registers, above and below Wasm.
//!
//! gdb cannot unwind Wasm code. Above it gdb is asked alone; to get below it is led over the Wasm frames with the
//! registers that wstate reports for the native caller (`tests/tools/frames.py`), and must then find from there, by
//! itself, what wstate found: wrong registers there give wrong frames or none.

use crate::support;
use crate::support::missing::missing;
use crate::support::{Host, Profile, host_singlepass, kernel_core, repository, wstate};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Stops with flags. The first frames are native in all but `spin` of `threads`.
const STOPS: [(&str, &[&str]); 14] = [
    ("sleep", &[]),
    ("abort", &[]),
    ("trap-unreachable", &[]),
    ("trap-div", &[]),
    ("trap-memory", &[]),
    ("call-indirect", &[]),
    ("args-float", &[]),
    ("nested", &[]),
    ("modules", &[]),
    ("deep", &["--depth", "100"]),
    ("tiering", &[]),
    ("threads", &[]),
    ("moved", &[]),
    ("cache-loaded", &[]),
];

/// What a caller may rely on to be as before a call, and where it is.
const REGISTERS: [&str; 8] = ["rip", "rsp", "rbp", "rbx", "r12", "r13", "r14", "r15"];

#[derive(Clone, Debug)]
struct Frame {
    name: Option<String>,
    pc: u64,
    inlined: bool,
    guest: bool,
    /// Inferred by gdb, not on the stack.
    tail_call: bool,
    registers: BTreeMap<String, u64>,
}

/// A thread's frames, with runs of guest frames as one.
type Stack = Vec<Frame>;

fn number(text: &Value) -> Option<u64> {
    u64::from_str_radix(text.as_str()?.strip_prefix("0x")?, 16).ok()
}

fn registers(value: &Value) -> BTreeMap<String, u64> {
    let known = value.as_object().into_iter().flatten().filter(|(name, _)| REGISTERS.contains(&name.as_str()));
    known.filter_map(|(name, v)| Some((name.clone(), number(v)?))).collect()
}

/// The same as hex strings.
fn known(value: &Value) -> BTreeMap<String, String> {
    registers(value).into_iter().map(|(name, v)| (name, format!("{v:#x}"))).collect()
}

fn joined(frames: impl Iterator<Item = Frame>) -> Stack {
    let mut out: Stack = Vec::new();
    for frame in frames {
        if !(frame.guest && out.last().is_some_and(|f| f.guest)) {
            out.push(frame);
        }
    }
    out
}

/// Wasm code, and the runtime's glue outside of any file. Glue in a file (`run_on_alternative_stack`) is native code.
fn is_guest(frame: &Value, executable: &str) -> bool {
    match frame["kind"].as_str() {
        Some("wasm") => true,
        Some("trampoline") => frame["module"].as_str() != Some(executable),
        _ => false,
    }
}

/// What wstate says, and from it what gdb must be told.
struct Ours {
    threads: BTreeMap<String, Stack>,
    ends: BTreeMap<String, String>,
    /// pc and rsp of frames in native code without call frame information.
    stubs: BTreeSet<(u64, Option<u64>)>,
    guide: Value,
}

fn ours(args: &[&str]) -> Ours {
    let args: Vec<&str> = args.iter().chain(&["--json", "--verbose", "--brief"]).copied().collect();
    let output = wstate(&args);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&output.stderr)));
    let executable = report["target"]["executable"].as_str().unwrap_or_default();
    let executable = Path::new(executable).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut ranges = BTreeSet::new();
    for module in report["runtimes"].as_array().into_iter().flatten().flat_map(|r| r["modules"].as_array()).flatten() {
        ranges.extend(number(&module["code_start"]).zip(number(&module["code_end"])));
    }
    let (mut threads, mut ends) = (BTreeMap::new(), BTreeMap::new());
    let (mut boundaries, mut all_stubs) = (BTreeMap::new(), BTreeMap::new());
    for thread in report["threads"].as_array().expect("threads") {
        let tid = thread["tid"].to_string();
        let raw = thread["frames"].as_array().expect("frames");
        let frames = raw.iter().map(|f| Frame {
            name: f["function"]["name"].as_str().map(str::to_string),
            pc: number(&f["pc"]).expect("a pc"),
            inlined: f["function"]["inlined"].as_bool().unwrap_or(false),
            guest: is_guest(f, &executable),
            tail_call: false,
            registers: registers(&f["registers"]),
        });
        let frames: Vec<Frame> = frames.collect();
        ranges.extend(frames.iter().filter(|f| f.guest).map(|f| (f.pc, f.pc + 1)));
        let callers = raw.windows(2).zip(frames.windows(2)).filter(|(_, w)| w[0].guest && !w[1].guest);
        let callers = callers.map(|(raw, _)| known(&raw[1]["registers"]));
        boundaries.insert(tid.clone(), callers.collect::<Vec<_>>());
        let stubs: Vec<Value> = (raw.windows(2).zip(frames.windows(2)))
            .filter(|(raw, w)| raw[0]["kind"] == "trampoline" && !w[0].guest)
            .map(|(raw, _)| {
                let caller = &raw[1]["registers"];
                json!({ "pc": raw[0]["pc"], "rsp": raw[0]["registers"]["rsp"], "caller": known(caller) })
            })
            .collect();
        all_stubs.insert(tid.clone(), stubs);
        threads.insert(tid.clone(), joined(frames.into_iter()));
        ends.insert(tid, thread["end"]["kind"].as_str().unwrap_or_default().to_string());
    }
    let stubs = all_stubs.values().flatten();
    let stubs = stubs.filter_map(|s| Some((number(&s["pc"])?, number(&s["rsp"]))));
    Ours {
        threads,
        ends,
        stubs: stubs.collect(),
        guide: json!({ "ranges": ranges, "boundaries": boundaries, "stubs": all_stubs }),
    }
}

/// What gdb says alone and led, by thread.
fn theirs(target: &[&str], guide: &Value, directory: &Path) -> [BTreeMap<String, Stack>; 2] {
    let file = directory.join("guide.json");
    std::fs::write(&file, guide.to_string()).expect("the guide is written");
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set width 0"]);
    gdb.args(["-iex", "set pagination off", "-iex", "set backtrace past-main on"]).args(target);
    gdb.arg("-x").arg(repository().join("tests/tools/frames.py")).env("WSTATE_GUIDE", &file);
    let output = gdb.stdin(Stdio::null()).output().expect("gdb starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|l| l.strip_prefix("FRAMES "));
    let line = line.unwrap_or_else(|| panic!("gdb {target:?}: {text}\n{}", String::from_utf8_lossy(&output.stderr)));
    let mut all: Value = serde_json::from_str(line).expect("JSON of our own script");
    ["alone", "led"].map(|walk| {
        let threads = all[walk].as_object_mut().expect("threads");
        let stack = |thread: &Value| {
            let frames = thread.as_array().expect("frames").iter().map(|f| Frame {
                name: f["name"].as_str().map(str::to_string),
                pc: number(&f["pc"]).expect("a pc"),
                inlined: f["inlined"] == true,
                guest: f["guest"] == true,
                tail_call: f["tail_call"] == true,
                registers: registers(&f["registers"]),
            });
            joined(frames)
        };
        threads.iter().map(|(tid, thread)| (tid.clone(), stack(thread))).collect()
    })
}

/// A function's name as a path whose parts can be compared: without generic arguments, parameters and hashes. `None`
/// stands for a part that is written differently by everyone (`<A as B>`, `{impl#3}`).
fn path(name: &str) -> Vec<Option<String>> {
    let mut parts = Vec::new();
    let mut part = String::new();
    // Whether the part has something in angle brackets and nothing else: `<A as B>`, but not `f<A>`.
    let (mut depth, mut bracketed) = (0usize, false);
    let mut chars = name.chars().peekable();
    let mut previous = ' ';
    while let Some(c) = chars.next() {
        match c {
            '<' => {
                depth += 1;
                bracketed = true;
            }
            // Not the arrow of `fn() -> T`.
            '>' if previous != '-' => depth = depth.saturating_sub(1),
            '(' if depth == 0 => break,
            ':' if depth == 0 && chars.peek() == Some(&':') => {
                chars.next();
                finish(&mut parts, &mut part, &mut bracketed);
            }
            _ if depth == 0 => part.push(c),
            _ => {}
        }
        previous = c;
    }
    finish(&mut parts, &mut part, &mut bracketed);
    parts
}

fn finish(parts: &mut Vec<Option<String>>, part: &mut String, bracketed: &mut bool) {
    let text = std::mem::take(part);
    let text = text.trim_end_matches("{{vtable.shim}}");
    // The crate's hash: gdb without debug info has `std[e28293b1aa0f68bd]`.
    let text = text.split_once('[').filter(|(name, _)| !name.is_empty()).map_or(text, |(name, _)| name);
    let generic = std::mem::take(bracketed);
    let hash = text.len() == 17 && text.starts_with('h') && text[1..].bytes().all(|b| b.is_ascii_hexdigit());
    if text.is_empty() {
        // `f::<T>` has its arguments as a part; `<A as B>::f` begins with one.
        if generic && parts.is_empty() {
            parts.push(None);
        }
    } else if text.starts_with("{impl#") {
        parts.push(None);
    } else if text.starts_with("{closure") || text.starts_with("{{closure") {
        parts.push(Some("closure".into()));
    } else if text.starts_with("{shim") || hash {
    } else {
        parts.push(Some(text.to_string()));
    }
}

/// Compared from the end; a name may lack its first parts (`#[no_mangle]`), and nothing is compared before a `None`.
fn same_function(a: &str, b: &str) -> bool {
    let (a, b) = (path(a), path(b));
    let mut compared = false;
    for pair in a.iter().rev().zip(b.iter().rev()) {
        match pair {
            (Some(a), Some(b)) if a != b => return false,
            (Some(_), Some(_)) => compared = true,
            _ => return compared,
        }
    }
    compared && (a.len() == b.len() || a.len() == 1 || b.len() == 1)
}

#[test]
fn names_are_compared_by_what_they_mean() {
    for (a, b) in [
        ("std::rt::lang_start::{{closure}}", "std::rt::lang_start::{closure#0}<()>"),
        (
            "<core::panic::unwind_safe::AssertUnwindSafe<F> as core::ops::function::FnOnce<()>>::call_once",
            "core::panic::unwind_safe::{impl#23}::call_once<!, fn() -> u8>",
        ),
        (
            "std::panicking::catch_unwind::<i32, &dyn core::ops::function::Fn<(), Output = i32>>",
            "std::panicking::catch_unwind<i32, u8>",
        ),
        ("host_stop", "host_singlepass::host_stop"),
        ("core::ops::function::FnOnce::call_once{{vtable.shim}}", "core::ops::function::FnOnce::call_once<a, ()>"),
        ("a::b", "a::b::h0123456789abcdef"),
        ("std::rt::lang_start_internal", "std[e28293b1aa0f68bd]::rt::lang_start_internal"),
        ("foo::bar(int, char)", "foo::bar(int, char)"),
    ] {
        assert!(same_function(a, b), "{a} {b}: {:?} {:?}", path(a), path(b));
        assert!(same_function(b, a), "{b} {a}");
    }
    for (a, b) in [
        ("std::rt::lang_start::{{closure}}", "std::rt::lang_start<()>"),
        ("a::b::c", "a::d::c"),
        ("x::a::b", "y::a::b"),
        ("a::b::c", "b::c"),
        ("<A as B>::f", "a::{impl#1}::g"),
        ("read", "write"),
        ("", ""),
    ] {
        assert!(!same_function(a, b), "{a} {b}: {:?} {:?}", path(a), path(b));
    }
}

const TAIL_CALL: &str = "gdb infers a frame that is not on the stack, of a function that ended with a jump";
const IN_CLONE: &str =
    "the C library ends its table at the system call that makes a thread: wstate is lost, gdb guesses";

/// A thread that is being made, or its maker, for the few instructions behind the system call in `clone3`.
fn in_clone(stack: &[Frame]) -> bool {
    matches!(stack, [only] if only.name.as_deref().is_some_and(|n| n.contains("clone")))
}

/// What was compared, over all stops of a test.
#[derive(Default)]
struct Tally {
    stops: usize,
    threads: usize,
    frames: usize,
    inlined: usize,
    below: usize,
    registers: usize,
    explained: BTreeMap<&'static str, usize>,
    wrong: Vec<String>,
}

impl Tally {
    fn stack(&mut self, what: &str, ours: &[Frame], theirs: &[Frame]) {
        let inferred = theirs.iter().filter(|f| f.tail_call).count();
        if inferred > 0 {
            *self.explained.entry(TAIL_CALL).or_default() += inferred;
        }
        let (mut ours, theirs) = (ours, theirs.iter().filter(|f| !f.tail_call).cloned().collect::<Vec<_>>());
        let mut theirs = &theirs[..];
        if in_clone(ours)
            && let [b, _, ..] = theirs
            && ours[0].pc == b.pc
        {
            *self.explained.entry(IN_CLONE).or_default() += 1;
            (ours, theirs) = (&ours[..1], &theirs[..1]);
        }
        let mut below = false;
        for i in 0..ours.len().max(theirs.len()) {
            let (a, b) = (ours.get(i), theirs.get(i));
            let (Some(a), Some(b)) = (a, b) else {
                self.wrong.push(format!("{what} #{i}: wstate {}, gdb {}", show(a), show(b)));
                return;
            };
            if a.guest && b.guest {
                below = true;
                continue;
            }
            self.frames += 1;
            self.below += usize::from(below);
            self.inlined += usize::from(b.inlined);
            let same_name = match (&a.name, &b.name) {
                (Some(a), Some(b)) => same_function(a, b),
                (None, None) => true,
                _ => false,
            };
            if let Some(why) = explained_name(a, b).filter(|_| !same_name) {
                *self.explained.entry(why).or_default() += 1;
            } else if !same_name || a.guest != b.guest || a.inlined != b.inlined || a.pc != b.pc {
                self.wrong.push(format!("{what} #{i}: wstate {}, gdb {}", show(Some(a)), show(Some(b))));
                if a.pc != b.pc {
                    return; // Everything after would be shifted.
                }
            }
            for name in REGISTERS {
                let (a, b) = (a.registers.get(name), b.registers.get(name));
                self.registers += usize::from(a.is_some() && a == b);
                if a != b {
                    self.wrong.push(format!("{what} #{i} {name}: wstate {a:x?}, gdb {b:x?}"));
                }
            }
        }
    }

    fn threads(&mut self, what: &str, ours: &Ours, theirs: &[BTreeMap<String, Stack>; 2]) {
        let [alone, led] = theirs;
        self.stops += 1;
        let tids = |m: &BTreeMap<String, Stack>| m.keys().cloned().collect::<Vec<_>>();
        if tids(&ours.threads) != tids(led) {
            self.wrong.push(format!("{what}: wstate has threads {:?}, gdb {:?}", tids(&ours.threads), tids(led)));
        }
        for (tid, stack) in &ours.threads {
            self.threads += 1;
            // Where gdb alone has no way on: Wasm, or behind code of the executable without call frame information.
            let guest = stack.iter().position(|f| f.guest).unwrap_or(stack.len());
            let stub = |f: &Frame| ours.stubs.contains(&(f.pc, f.registers.get("rsp").copied()));
            let above = stack[..guest].iter().position(stub).map_or(guest, |i| i + 1);
            for (walk, ours, theirs) in [("alone", &stack[..above], alone.get(tid)), ("led", &stack[..], led.get(tid))]
            {
                let Some(theirs) = theirs else { continue };
                // Led, gdb walks the part above once more.
                let counted = (self.frames, self.inlined, self.registers, self.explained.clone());
                self.stack(&format!("{what} thread {tid} {walk}"), ours, theirs);
                if walk == "alone" {
                    (self.frames, self.inlined, self.registers, self.explained) = counted;
                }
            }
            if ours.ends[tid] != "bottom" && !in_clone(stack) {
                self.wrong.push(format!("{what} thread {tid}: the walk ended with {}", ours.ends[tid]));
            }
        }
    }

    fn verdict(self, title: &str) {
        let explained: usize = self.explained.values().sum();
        println!(
            "{title}: {} stops, {} threads: {} native frames ({} inlined, {} below Wasm): {} equal, {explained} \
             different with a reason, {} wrong; {} registers equal",
            self.stops,
            self.threads,
            self.frames,
            self.inlined,
            self.below,
            self.frames - explained - self.wrong.len().min(self.frames - explained),
            self.wrong.len(),
            self.registers
        );
        self.explained.iter().for_each(|(why, n)| println!("  {n} x {why}"));
        assert!(self.wrong.is_empty(), "{title}:\n{}", self.wrong.join("\n"));
        assert!(self.frames > 0 && self.below > 0, "{title}: nothing was compared");
    }
}

fn show(frame: Option<&Frame>) -> String {
    let Some(f) = frame else { return "no frame".into() };
    let name = f.name.as_deref().unwrap_or("??");
    let inlined = if f.inlined { " (inlined)" } else { "" };
    format!("{:#x} {name}{inlined}{}", f.pc, if f.guest { " (guest)" } else { "" })
}

/// Why the names differ although both are right.
fn explained_name(a: &Frame, b: &Frame) -> Option<&'static str> {
    let (ours, theirs) = (a.name.as_deref()?, b.name.as_deref()?);
    if a.pc == b.pc && theirs == "<signal handler called>" && ours.contains("restore_rt") {
        return Some("gdb says <signal handler called> for the C library's __restore_rt");
    }
    None
}

fn gdb_has_python() -> bool {
    let output = Command::new("gdb").args(["-nx", "-batch", "-ex", "python print(6 * 7)"]).output();
    let works = output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("42"));
    if !works {
        missing("gdb with Python is not installed");
    }
    works
}

/// Waits until every thread but the spinning one sleeps: READY is said a few instructions before.
fn at_rest(host: &Host) {
    let spin = host.tid_at("spin");
    let asleep = |tid: i32| {
        let syscall = std::fs::read_to_string(format!("/proc/{}/task/{tid}/syscall", host.pid())).unwrap_or_default();
        let stat = std::fs::read_to_string(format!("/proc/{}/task/{tid}/stat", host.pid())).unwrap_or_default();
        let sleeps = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('S'));
        // READY is a write; nothing else writes here.
        sleeps && !syscall.starts_with(&format!("{} ", libc::SYS_write))
    };
    let deadline = Instant::now() + support::PATIENCE;
    while Instant::now() < deadline {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid())).expect("the host is there");
        let mut tids = tasks.filter_map(|t| t.ok()?.file_name().to_str()?.parse::<i32>().ok());
        if tids.all(|tid| Some(tid) == spin || asleep(tid)) {
            return;
        }
        std::thread::yield_now();
    }
    panic!("the host does not come to rest");
}

fn live(profile: Profile) {
    if !gdb_has_python() {
        return;
    }
    let mut tally = Tally::default();
    // A process that aborts has only a core.
    for (stop, flags) in STOPS.into_iter().filter(|(stop, _)| *stop != "abort") {
        let host = Host::start(stop, flags, profile);
        at_rest(&host);
        let pid = host.pid().to_string();
        let ours = ours(&["attach", &pid]);
        let theirs = theirs(&["-p", &pid], &ours.guide, host.directory.path());
        tally.threads(&format!("{stop} ({profile}, live)"), &ours, &theirs);
    }
    tally.verdict(&format!("live, {profile}"));
}

fn core(profile: Profile) {
    if !gdb_has_python() {
        return;
    }
    let mut tally = Tally::default();
    // The first thread that ends the process would not let the others get to their stops.
    for (stop, flags) in STOPS.into_iter().filter(|(stop, _)| *stop != "threads") {
        let core = match kernel_core(stop, flags, profile) {
            Ok(core) => core,
            Err(reason) => return missing(&reason.0),
        };
        let (exe, path) = (core.exe.to_str().expect("a path of ours"), core.path.to_str().expect("a path of ours"));
        let ours = ours(&["core", path, exe]);
        let theirs = theirs(&[exe, path], &ours.guide, core.directory.path());
        tally.threads(&format!("{stop} ({profile}, core)"), &ours, &theirs);
    }
    tally.verdict(&format!("core, {profile}"));
}

#[test]
fn live_debug() {
    live(Profile::Debug);
}

#[test]
fn live_release() {
    live(Profile::Release);
}

#[test]
fn live_release_with_debug_info() {
    live(Profile::ReleaseDebug);
}

#[test]
fn core_debug() {
    core(Profile::Debug);
}

#[test]
fn core_release() {
    core(Profile::Release);
}

#[test]
fn core_release_with_debug_info() {
    core(Profile::ReleaseDebug);
}

/// Led by wrong registers gdb would repeat them. So what wstate says of the native caller of Wasm is compared with what
/// gdb saw in the registers when that caller called.
fn boundary(profile: Profile) {
    if !gdb_has_python() {
        return;
    }
    let mut compared = 0;
    for stop in ["sleep", "call-indirect", "args-float", "trap-div", "modules", "moved"] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let (start, file) = (directory.path().join("start"), directory.path().join("boundary.json"));
        let text = format!(
            "#!/bin/sh\nWSTATE_BOUNDARY='{}' WSTATE_BREAK={CALL_OF_WASM} exec gdb -nx -q -batch -iex 'set debuginfod enabled \
             off' -x '{}' --args '{}' \"$@\"\n",
            file.display(),
            repository().join("tests/tools/boundary.py").display(),
            host_singlepass(profile).display()
        );
        std::fs::write(&start, text).expect("the script is written");
        std::fs::set_permissions(&start, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        let host = Host::start_exe(start, stop, &[]);
        let text = std::fs::read(&file).expect("gdb wrote the registers");
        let expected = registers(&serde_json::from_slice(&text).expect("JSON of our own script"));
        assert_eq!(expected.len(), REGISTERS.len());
        let ours = ours(&["attach", &host.pid().to_string()]);
        let stack = &ours.threads[&host.tid().to_string()];
        let called = stack.windows(2).rfind(|w| w[0].guest && !w[1].guest).expect("a native frame below Wasm");
        assert_eq!(called[1].registers, expected, "{stop} ({profile})");
        compared += expected.len();
    }
    println!("boundary, {profile}: {compared} registers equal to those at the call");
}

/// Where the runtime is about to call its trampoline.
const CALL_OF_WASM: &str = "codegen_x64.rs:530";

#[test]
fn boundary_debug() {
    boundary(Profile::Debug);
}

#[test]
fn boundary_release_with_debug_info() {
    boundary(Profile::ReleaseDebug);
}
