//! Wasmtime in unmodified hosts, live and in cores, against what the runtime itself says of the same stop.

use crate::support::debuggers::{Debugger, at_rest, missing};
use crate::support::{Host, Profile, Version, gcore, host_wasmtime, kernel_core_exe, wstate};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What is compared: how often it was right, not known, wrong.
#[derive(Default)]
struct Counts(BTreeMap<&'static str, [usize; 3]>);

impl Counts {
    fn add(&mut self, what: &'static str, verdict: usize) {
        self.0.entry(what).or_default()[verdict] += 1;
    }

    /// `None` is not known.
    fn compare<T: PartialEq + std::fmt::Debug>(&mut self, case: &str, what: &'static str, ours: Option<T>, theirs: T) {
        let verdict = match &ours {
            None => 1,
            Some(ours) if *ours == theirs => 0,
            Some(ours) => {
                eprintln!("wrong: {case}: {what}: {ours:?}, the runtime says {theirs:?}");
                2
            }
        };
        self.add(what, verdict);
    }
}

fn number(v: &Value) -> Option<u128> {
    let text = v.as_str()?;
    u128::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn json(args: &[&str]) -> Value {
    let out = wstate(args);
    serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&out.stderr)))
}

/// Values of one list against the runtime's: bits by type. References are numbers of the runtime's own.
fn values(case: &str, counts: &mut Counts, what: &'static str, ours: &Value, theirs: &Value) {
    let theirs = theirs.as_array().expect("a list");
    let Some(ours) = ours.as_array() else {
        theirs.iter().for_each(|_| counts.add(what, 1));
        return;
    };
    if ours.len() != theirs.len() {
        eprintln!("wrong: {case}: {} {what}, the runtime has {}", ours.len(), theirs.len());
        return counts.add(what, 2);
    }
    for (our, their) in ours.iter().zip(theirs) {
        let width = match their["type"].as_str() {
            Some("i32" | "f32") => u128::from(u32::MAX),
            Some("i64" | "f64") => u128::from(u64::MAX),
            _ => u128::MAX,
        };
        let expected = match their["bits"].as_str() {
            Some("null") => 0,
            _ => number(&their["bits"]).expect("bits"),
        };
        counts.compare(case, what, number(&our["bits"]).map(|b| b & width), expected & width);
    }
}

fn frames_of(report: &Value, tid: i32) -> Vec<&Value> {
    let threads = report["threads"].as_array().expect("threads");
    let thread = threads.iter().find(|t| t["tid"] == tid).unwrap_or_else(|| panic!("no thread {tid}"));
    thread["frames"].as_array().expect("frames").iter().filter(|f| f["kind"] == "wasm").collect()
}

/// One stop, as an attach or a core shows it, against the truth.
fn check(case: &str, counts: &mut Counts, target: &[&str], modules: &[&str], truth: &Value) {
    let report = json(&[target, &["--json"]].concat());
    let tid = truth["tid"].as_i64().expect("a thread") as i32;
    let thread = report["threads"].as_array().expect("threads").iter().find(|t| t["tid"] == tid).expect("the thread");
    let end = thread["end"]["kind"].as_str().map(str::to_string);
    counts.compare(case, "walk to main", end, "bottom".to_string());
    let ours = frames_of(&report, tid);
    let theirs = truth["frames"].as_array().expect("frames");
    let shown: Vec<&&Value> = ours.iter().filter(|f| f["function"]["inlined"] != true).collect();
    counts.compare(case, "frames", Some(shown.len()), theirs.len());
    for (our, their) in shown.iter().zip(theirs) {
        counts.compare(case, "functions", our["function"]["index"].as_u64(), their["func_index"].as_u64().unwrap());
        if let Some(name) = their["func_name"].as_str().filter(|n| !n.is_empty()) {
            counts.compare(case, "names", our["function"]["name"].as_str(), name);
        }
        // The position of an inlined function is that of its own frame.
        let inlined = ours.iter().any(|f| f["function"]["inlined"] == true);
        if let Some(offset) = their["module_offset"].as_u64().filter(|_| !inlined) {
            let our = number(&our["wasm"]["offset"]).map(|o| o as u64);
            if truth["stop"] != "spin" {
                counts.compare(case, "offsets", our, offset);
            }
        }
    }
    if let Some(debug) = truth["debug"].as_array() {
        let all: Vec<&Value> = debug.iter().flat_map(|a| a.as_array().expect("frames")).collect();
        for (our, their) in ours.iter().zip(all) {
            counts.compare(case, "instances", number(&our["instance"]), number(&their["vmctx"]).expect("an address"));
            values(case, counts, "locals", &our["locals"], &their["locals"]);
            values(case, counts, "operands", &our["stack"], &their["stack"]);
        }
    } else if let Some(stores) = truth["stores"].as_array().filter(|stores| stores.len() > 1) {
        // Which store a frame runs in the host does not say; each has its own instances.
        let all = stores.iter().flat_map(|s| s["instances"].as_array().into_iter().flatten());
        let all: Vec<u128> = all.filter_map(|i| number(&i["vmctx"])).collect();
        for our in &ours {
            let found = number(&our["instance"]);
            let fits = found.filter(|i| all.contains(i)).unwrap_or(all[0]);
            counts.compare(case, "instances", found, fits);
        }
    } else if theirs.iter().any(|f| f["instance"].is_string()) {
        // The host knows the name of each frame's.
        let named = truth["stores"][0]["instances"].as_array().expect("instances");
        for (our, their) in shown.iter().zip(theirs) {
            let one = named.iter().find(|i| i["name"] == their["instance"]).expect("an instance");
            counts.compare(case, "instances", number(&our["instance"]), number(&one["vmctx"]).expect("an address"));
        }
    } else if let Some([one]) = truth["stores"][0]["instances"].as_array().map(Vec::as_slice) {
        // One instance: every frame runs in it.
        for our in &ours {
            counts.compare(case, "instances", number(&our["instance"]), number(&one["vmctx"]).expect("an address"));
        }
    }
    contents(case, counts, modules, truth);
}

/// Memories, globals and tables of the instances that frames run in.
fn contents(case: &str, counts: &mut Counts, modules: &[&str], truth: &Value) {
    let listed = json(&[modules, &["--json"]].concat());
    let instances = listed["contents"].as_array().expect("contents").iter();
    let instances: Vec<&Value> = instances.flat_map(|m| m["instances"].as_array().expect("instances")).collect();
    let stores = truth["stores"].as_array().expect("stores");
    for their in stores.iter().take(1).flat_map(|s| s["instances"].as_array().expect("instances")) {
        let Some(our) = instances.iter().find(|i| number(&i["address"]) == number(&their["vmctx"])) else {
            continue;
        };
        let by_index = |kind: &str, index: &Value| {
            our[kind]
                .as_array()
                .and_then(|list| list.iter().find(|x| x["index"] == *index))
                .cloned()
                .unwrap_or_default()
        };
        for memory in their["memories"].as_array().expect("memories") {
            let our = by_index("memories", &memory["index"]);
            counts.compare(case, "memories", number(&our["base"]), number(&memory["base"]).expect("a base"));
            counts.compare(
                case,
                "memories",
                our["size"].as_u64().map(u128::from),
                memory["bytes"].as_u64().unwrap().into(),
            );
        }
        for global in their["globals"].as_array().expect("globals") {
            // Counts on while the host is looked at.
            if global["export"] == "count" {
                continue;
            }
            let our = by_index("globals", &global["index"]);
            values(case, counts, "globals", &Value::from(vec![our]), &Value::from(vec![global.clone()]));
        }
        for table in their["tables"].as_array().expect("tables") {
            let our = by_index("tables", &table["index"]);
            counts.compare(case, "tables", our["elements"].as_u64(), table["size"].as_u64().expect("a size"));
        }
    }
}

const MODES: [&[&str]; 8] = [
    &[],
    &["--unwind-info", "off"],
    &["--address-map", "off"],
    &["--debug-info", "--opt", "none"],
    &["--pooling"],
    &["--load", "deserialize"],
    &["--load", "deserialize-file"],
    &["--stores", "2", "--engines", "2", "--thread"],
];
/// Of 48 only.
const MODES_48: [&[&str]; 3] =
    [&["--guest-debug"], &["--symbols", "off"], &["--guest-debug", "--pooling", "--load", "deserialize"]];
const STOPS: [&str; 14] = [
    "async",
    "memories",
    "nested",
    "nested-stores",
    "modules",
    "component",
    "component-adapter",
    "component-inlined",
    "inlined",
    "trap-unreachable",
    "trap-div",
    "trap-memory",
    "dwarf",
    "threads",
];

fn live(version: Version, profile: Profile, stop: &str, flags: &[&str], counts: &mut Counts) {
    let case = format!("{version:?} {profile} {stop} {flags:?}");
    let host = Host::start_exe(host_wasmtime(version, profile), stop, flags);
    let pid = host.pid().to_string();
    let truth = if stop == "threads" { host.truth_json_of("sleep") } else { host.truth_json() };
    check(&case, counts, &["attach", &pid], &["modules", "-p", &pid], &truth);
}

fn core(version: Version, profile: Profile, stop: &str, flags: &[&str], counts: &mut Counts) {
    let case = format!("{version:?} {profile} {stop} {flags:?} core");
    let core = match kernel_core_exe(host_wasmtime(version, profile), stop, flags) {
        Ok(core) => core,
        Err(why) => return missing(&why),
    };
    let (path, exe) = (arg(&core.path), arg(&core.exe));
    check(&case, counts, &["core", path, exe], &["modules", "-c", path, "-e", exe], &core.truth_json());
}

fn arg(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

/// Prints the table, and fails on anything wrong; `sure` must be known too.
fn conclude(what: &str, counts: &Counts, sure: &[&str]) {
    eprintln!("{what:<28} {:>8} {:>8} {:>8}", "right", "unknown", "wrong");
    for (name, [right, unknown, wrong]) in &counts.0 {
        eprintln!("{name:<28} {right:>8} {unknown:>8} {wrong:>8}");
    }
    for (name, [right, unknown, wrong]) in &counts.0 {
        assert!(*right > 0 && *wrong == 0, "{what}: {name}: {right} right, {wrong} wrong");
        assert!(*unknown == 0 || !sure.contains(name), "{what}: {name}: {unknown} not known");
    }
}

const SURE: [&str; 9] =
    ["walk to main", "frames", "functions", "names", "locals", "operands", "memories", "globals", "tables"];

#[test]
fn every_mode_live_and_in_a_core() {
    let mut counts = Counts::default();
    for version in Version::ALL {
        let more: &[&[&str]] = if version == Version::V48 { &MODES_48 } else { &[] };
        for flags in MODES.iter().chain(more) {
            live(version, Profile::Release, "sleep", flags, &mut counts);
            core(version, Profile::Release, "abort", flags, &mut counts);
        }
    }
    conclude("modes", &counts, &SURE);
}

#[test]
fn every_stop() {
    let mut counts = Counts::default();
    for version in Version::ALL {
        for stop in STOPS {
            live(version, Profile::Release, stop, &[], &mut counts);
            // Of code that was inlined between two places the runtime records no more than the place before.
            if version == Version::V48 && !["threads", "component-inlined"].contains(&stop) {
                live(version, Profile::Stripped, stop, &["--guest-debug"], &mut counts);
            }
        }
        for stop in ["trap-unreachable", "trap-div", "trap-memory"] {
            live(version, Profile::Release, stop, &["--async"], &mut counts);
        }
    }
    conclude("stops", &counts, &["walk to main", "frames", "functions", "names", "locals", "operands"]);
}

#[test]
fn gcore_is_as_good() {
    let mut counts = Counts::default();
    for version in Version::ALL {
        let host = Host::start_exe(host_wasmtime(version, Profile::Stripped), "sleep", &[]);
        match gcore(&host) {
            Ok(path) => {
                let (path, exe) = (arg(&path), arg(&host.exe));
                let modules = ["modules", "-c", path, "-e", exe];
                check("gcore", &mut counts, &["core", path, exe], &modules, &host.truth_json());
            }
            Err(why) => return missing(&why),
        }
    }
    conclude("gcore", &counts, &SURE);
}

/// A core that holds nothing of a mapped image, not even its first page: the file is read, and said to be. A file of
/// another compilation under that name shows no frame, and without one it is said what is missing.
#[test]
fn an_image_that_the_core_leaves_out() {
    let mut counts = Counts::default();
    for version in Version::ALL {
        let flags = ["--load", "deserialize-file"];
        let host = Host::start_exe(host_wasmtime(version, Profile::Release), "sleep", &flags);
        let filter = format!("/proc/{}/coredump_filter", host.pid());
        std::fs::write(filter, "0x23").expect("the host is ours");
        let path = match gcore(&host) {
            Ok(path) => path,
            Err(why) => return missing(&why),
        };
        let (path, exe) = (arg(&path), arg(&host.exe));
        let target = ["core", path, exe];
        check("left out", &mut counts, &target, &["modules", "-c", path, "-e", exe], &host.truth_json());
        let text = |args: &[&str]| String::from_utf8_lossy(&wstate(args).stdout).into_owned();
        assert!(text(&target).contains("make sure that it is the file of that run"), "{}", text(&target));

        let mapped = host.directory.path().join("guest.cwasm");
        let other = Host::start_exe(
            host_wasmtime(version, Profile::Release),
            "sleep",
            &[&flags[..], &["--opt", "none", "--debug-info"]].concat(),
        );
        // The mapping keeps the old one.
        std::fs::rename(other.directory.path().join("guest.cwasm"), &mapped).expect("it was written");
        let report = text(&target);
        assert!(report.contains("is not the file that was mapped"), "{report}");
        assert!(!report.contains("leaf"), "{report}");

        std::fs::remove_file(&mapped).expect("it is there");
        let report = text(&target);
        assert!(report.contains("neither in the core nor here"), "{report}");
    }
    conclude("left out", &counts, &SURE);
}

/// A core whose code images say that a version made them that nobody has heard of: what no version changes is shown, what
/// it may change is not, and why.
#[test]
fn a_version_that_is_not_known() {
    let mut counts = Counts::default();
    for version in Version::ALL {
        let core = match kernel_core_exe(host_wasmtime(version, Profile::Stripped), "abort", &[]) {
            Ok(core) => core,
            Err(why) => return missing(&why),
        };
        let mut bytes = std::fs::read(&core.path).expect("the core is there");
        // The header's kind of system, and the version in one of the sections that lie before the code.
        let header = *b"\x7fELF\x02\x01\x01\xc8";
        // Since 37 it is the number of the line alone, behind its length.
        let written: &[u8] = if version == Version::V36 { b"\x0736.0.20" } else { b"\x0248" };
        let mut changed = 0;
        for image in (0..bytes.len()).step_by(0x1000).filter(|at| bytes[*at..].starts_with(&header)).collect::<Vec<_>>()
        {
            let end = bytes.len().min(image + 0x10000);
            if let Some(at) = bytes[image..end].windows(written.len()).position(|w| w == written) {
                bytes[image + at + 1..][..2].copy_from_slice(b"99");
                changed += 1;
            }
        }
        assert!(changed > 0, "{version:?}");
        std::fs::write(&core.path, &bytes).expect("the core is ours");

        let (path, exe) = (arg(&core.path), arg(&core.exe));
        let (target, modules) = (["core", path, exe], ["modules", "-c", path, "-e", exe]);
        // Of an instance nothing is compared that it does not have.
        let mut truth = core.truth_json();
        truth["stores"] = serde_json::json!([]);
        check(&format!("{version:?} as 99"), &mut counts, &target, &modules, &truth);
        let listed = json(&[&modules[..], &["--json"]].concat());
        for module in listed["contents"].as_array().expect("a list") {
            assert_eq!(module["instances"], serde_json::json!([]), "{listed:#}");
        }
        let report = wstate(&[&target[..], &["--verbose"]].concat());
        let text = String::from_utf8_lossy(&report.stdout);
        assert!(text.contains("\"99") && text.contains("instances, memories and globals are not"), "{text}");
    }
    conclude("a version that is not known", &counts, &["walk to main", "frames", "functions", "names", "offsets"]);
}

/// A busy loop, stopped anywhere: what is shown of its locals is what the host's README says of them at every instruction.
#[test]
fn a_busy_loop_stopped_anywhere() {
    let host =
        Host::start_exe(host_wasmtime(Version::V48, Profile::Release), "spin", &["--guest-debug", "--depth", "2"]);
    let (mut right, mut unknown) = (0, 0);
    for _ in 0..60 {
        let report = json(&["attach", &host.pid().to_string(), "--json"]);
        let frames = frames_of(&report, host.tid());
        let end = report["threads"].as_array().unwrap().iter().find(|t| t["tid"] == host.tid()).unwrap();
        assert_eq!(end["end"]["kind"], "bottom", "{end}");
        for frame in frames {
            let local = |i: usize| number(&frame["locals"][i]["bits"]);
            match (frame["function"]["name"].as_str(), frame["locals"].is_array()) {
                (Some("spin"), true) => {
                    let fixed = [local(0), local(1), local(2), local(6)].map(|v| v.expect("a value"));
                    let [a, b, c, d] = fixed;
                    assert_eq!((a as u32, b as u64), (9, 0x1111_1111_1111_1111), "{frame}");
                    assert_eq!((c as u64, d as u32), (3.25f64.to_bits(), 1.5f32.to_bits()), "{frame}");
                    let i = local(3).unwrap() as u32;
                    let of = |i: u32| i.wrapping_mul(3).wrapping_add(7);
                    let now = local(4).unwrap() as u32;
                    assert!(now == of(i) || now == of(i.wrapping_sub(1)), "{frame}");
                    right += 1;
                }
                (Some("down"), true) => {
                    let n = local(0).unwrap();
                    assert_eq!(local(1), Some(7 * n + 1), "{frame}");
                    assert_eq!(number(&frame["stack"][0]["bits"]), Some(n + 500), "{frame}");
                    right += 1;
                }
                (_, false) => unknown += 1,
                _ => {}
            }
        }
    }
    eprintln!("frames of a busy loop: {right} right, {unknown} without values");
    assert!(right > 120);
}

/// Plain `bt` of a gdb that has nothing but the symbol file. Of a whole fiber gdb 13 shows nothing: it takes the rule of the
/// fiber's bottom (`DW_OP_reg7` in an expression) for an error of the command.
fn gdb_bt(stop: &str, flags: &[&str]) -> String {
    let host = Host::start_exe(host_wasmtime(Version::V48, Profile::Stripped), stop, flags);
    // The symbols and the stack are two looks at one stop.
    at_rest(&host);
    let pid = host.pid().to_string();
    let file = host.directory.path().join("wasm.sym");
    let made = wstate(&["symbols", "-p", &pid, "-o", arg(&file)]);
    // With guest_debug the original of the code has no names, and a note says so.
    let said = String::from_utf8_lossy(&made.stderr);
    let withheld = flags.contains(&"--guest-debug");
    assert_eq!(
        (made.status.code(), said.contains("each store runs a copy")),
        (Some(withheld.into()), withheld),
        "{said}"
    );
    let load = format!("add-symbol-file {}", file.display());
    let session = Debugger::Gdb
        .run_plain(&["-p", &pid], &["set confirm off", &load, "bt 100", "frame function leaf", "info locals"]);
    // Shown if the test fails.
    eprintln!("{}", session.log);
    format!("{}{}", session.texts[2], session.texts[4])
}

#[test]
fn plain_bt_of_gdb_goes_through_to_the_host() {
    if let Err(why) = Debugger::Gdb.program() {
        return missing(&why);
    }
    let bt = gdb_bt("sleep", &["--guest-debug"]);
    for part in [
        "in leaf (n=9, s=1229782938247303441, d=3.25)",
        "in fact (n=5, m=361700864190383365)",
        "in wasm_function_3 (local0=5)",
        "in entry_trampoline_of_run ()",
        "__libc_start_main",
        "wasm_stack = {s0 = 340, s1 = 4.25, s2 = 171653549535673402679019659085567242768, s3 = 99, s4 = 42}",
        "x = 333",
        "f = 1.5",
    ] {
        assert!(bt.contains(part), "{part}: {bt}");
    }
    // Without recorded locals there are names, and no values.
    let plain = gdb_bt("sleep", &["--unwind-info", "off"]);
    for part in ["in leaf ()", "in fact ()", "in entry_trampoline_of_run ()", "__libc_start_main"] {
        assert!(plain.contains(part), "{part}: {plain}");
    }
}

#[test]
fn a_frame_that_was_never_filled_has_no_values() {
    if let Err(why) = Debugger::Gdb.program() {
        return missing(&why);
    }
    let bt = gdb_bt("stack-overflow", &["--guest-debug"]);
    let mut down = bt.lines().filter(|line| line.contains(" in down ("));
    let (first, second) = (down.next().unwrap_or_else(|| panic!("{bt}")), down.next().expect("two frames"));
    assert!(first.contains("(n=<optimized out>, t=<optimized out>)"), "{first}");
    assert!(!second.contains("optimized out"), "{second}");
}
