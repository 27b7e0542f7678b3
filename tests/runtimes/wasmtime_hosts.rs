//! The Wasmtime hosts themselves: every stop is reached, and the runtime's answer is what the host's README says.

use crate::support::missing::missing;
use crate::support::{Host, Profile, Version, gcore, host_wasmtime, kernel_core_exe, third_party_module};
use serde_json::Value;

const NEST: &[&str] = &["leaf", "fact", "fact", "fact", "fact", "fact", "fact", "", "run"];
const OUTER: &[&str] = &["middle", "run"];

/// The functions of each activation by the runtime itself, youngest first; `""` is a function without a name.
type Activations = [&'static [&'static str]];

/// Stop, flags, frames.
const STOPS: [(&str, &[&str], &Activations); 21] = [
    ("sleep", &[], &[NEST]),
    ("sleep", &["--thread"], &[NEST]),
    ("sleep", &["--stores", "2", "--engines", "2"], &[NEST]),
    ("sleep", &["--unwind-info", "off", "--address-map", "off"], &[NEST]),
    ("sleep", &["--debug-info", "--opt", "none"], &[NEST]),
    ("sleep", &["--pooling"], &[NEST]),
    ("sleep", &["--load", "deserialize"], &[NEST]),
    ("sleep", &["--load", "deserialize-file"], &[NEST]),
    ("async", &[], &[NEST]),
    ("async-suspended", &[], &[NEST]),
    ("memories", &[], &[&["show", "run"]]),
    ("nested", &[], &[NEST, OUTER]),
    ("nested-stores", &[], &[NEST, OUTER]),
    ("modules", &[], &[&["", "middle", "middle", "run"]]),
    ("component", &[], &[&["leaf", "", "run"]]),
    ("dwarf", &["--backtrace-details"], &[&["scale", "visit", "walk", "walk", "walk", "walk", "run"]]),
    ("trap-unreachable", &[], &[NEST]),
    ("trap-div", &[], &[NEST]),
    ("trap-memory", &[], &[NEST]),
    ("trap-memory", &["--load", "deserialize", "--pooling"], &[NEST]),
    ("spin", &["--depth", "2"], &[&["spin", "down", "down", "down", "run"]]),
];

fn start(version: Version, stop: &str, flags: &[&str], profile: Profile) -> Host {
    Host::start_exe(host_wasmtime(version, profile), stop, flags)
}

fn names(frames: &Value) -> Vec<&str> {
    let frames = frames.as_array().expect("a list");
    frames.iter().map(|frame| frame["func_name"].as_str().unwrap_or("")).collect()
}

fn reaches(version: Version, stop: &str, flags: &[&str], profile: Profile, activations: &Activations) -> Value {
    let mut host = start(version, stop, flags, profile);
    let case = format!("{version:?} {stop} {flags:?} {profile}");
    assert_eq!(host.ready.stop, stop, "{case}");
    let truth = host.truth_json();
    assert_eq!(names(&truth["frames"]), activations.concat(), "{case}");
    let counts: Vec<usize> = activations.iter().map(|frames| frames.len()).collect();
    assert_eq!(truth["activations"], serde_json::json!(counts), "{case}");
    assert_eq!((&truth["pid"], &truth["tid"]), (&host.pid().into(), &host.tid().into()), "{case}");
    assert!(host.is_alive(), "{case}");
    truth
}

#[test]
fn every_stop_is_reached() {
    for version in Version::ALL {
        for (stop, flags, activations) in STOPS {
            let truth = reaches(version, stop, flags, Profile::Release, activations);
            let without_map = flags.contains(&"--address-map");
            for frame in truth["frames"].as_array().expect("a list") {
                assert_eq!(frame["module_offset"].is_null(), without_map, "{version:?} {stop} {flags:?}: {frame}");
            }
            if stop != "component" {
                let instances = truth["stores"][0]["instances"].as_array().expect("a list");
                assert!(instances.iter().all(|i| i["vmctx"].is_string()), "{version:?} {stop} {flags:?}");
            }
        }
    }
}

#[test]
fn stripped_hosts_reach_their_stops() {
    for version in Version::ALL {
        for stop in ["sleep", "async", "trap-div"] {
            reaches(version, stop, &[], Profile::Stripped, &[NEST]);
        }
    }
}

#[test]
fn deep_has_all_of_its_frames() {
    for version in Version::ALL {
        for flags in [&["--depth", "10000"][..], &["--depth", "3000", "--async", "--pooling"]] {
            let truth = start(version, "deep", flags, Profile::Release).truth_json();
            let depth: usize = flags[1].parse().expect("a number");
            assert_eq!(names(&truth["frames"]).len(), depth + 2, "{version:?} {flags:?}");
        }
    }
}

#[test]
fn inlining_hides_frames_from_the_runtime() {
    for version in Version::ALL {
        let truth = start(version, "component-inlined", &[], Profile::Release).truth_json();
        assert_eq!(names(&truth["frames"]), ["run"], "{version:?}");
        assert_eq!(names(&truth["logical"]), ["inner", "", "run"], "{version:?}");
    }
    let truth = start(Version::V48, "inlined", &["--guest-debug"], Profile::Release).truth_json();
    assert_eq!(names(&truth["frames"]), ["run"]);
    assert_eq!(names(&truth["logical"]), ["inner", "middle", "", "run"]);
    let logical = truth["logical"].as_array().expect("a list").iter();
    let debug = truth["debug"][0].as_array().expect("a list").iter();
    assert!(logical.map(|frame| &frame["func_index"]).eq(debug.map(|frame| &frame["func_index"])), "{truth:#}");
}

#[test]
fn memories_and_globals_are_known() {
    for version in Version::ALL {
        let truth = start(version, "memories", &[], Profile::Release).truth_json();
        let instance = &truth["stores"][0]["instances"][0];
        let row = |list: &str, index: u64| {
            let rows = instance[list].as_array().expect("a list");
            rows.iter().find(|row| row["index"] == index).unwrap_or_else(|| panic!("{version:?} {list} {index}"))
        };
        let sizes: Vec<_> = (0..4).map(|index| row("memories", index)["bytes"].as_u64().expect("a number")).collect();
        assert_eq!(sizes, [65536, 3 * 65536, 65536, 0], "{version:?}");
        for (index, bits) in [
            (0, "0x00001092"),
            (1, "0xeeddef0b82167eeb"),
            (2, "0xfeedfacecafebeef0011223344556677"),
            (4, "0xffffff9c"),
            (8, "0x7edcba98765432100123456789abcdef"),
            (9, "0x7fa00001"),
            (10, "0x7ff4000000000123"),
            (12, "null"),
            (14, "null"),
        ] {
            assert_eq!(row("globals", index)["bits"], bits, "{version:?} global {index}");
        }
        let sizes: Vec<_> = (0..3).map(|index| row("tables", index)["size"].as_u64().expect("a number")).collect();
        assert_eq!(sizes, [3, 4, 3], "{version:?}");
    }
}

/// The values of frame `at`, as `type:bits`.
fn values<'a>(truth: &'a Value, at: usize, list: &str) -> Vec<(&'a str, &'a str)> {
    let values = truth["debug"][0][at][list].as_array().expect("a list");
    values.iter().map(|v| (v["type"].as_str().expect("text"), v["bits"].as_str().expect("text"))).collect()
}

#[test]
fn guest_debugging_tells_locals_and_operands() {
    let sets: [&[&str]; 5] = [&[], &["--pooling"], &["--load", "deserialize-file"], &["--async"], &["--debug-info"]];
    for (stop, flags) in sets.map(|flags| ("sleep", flags)).into_iter().chain([("trap-div", [].as_slice())]) {
        let flags = [flags, &["--guest-debug"]].concat();
        let truth = reaches(Version::V48, stop, &flags, Profile::Release, &[NEST]);
        let locals = [
            ("i32", "0x00000009"),
            ("i64", "0x1111111111111111"),
            ("f64", "0x400a000000000000"),
            ("i32", "0x0000014d"),
            ("i32", "0x000001bc"),
            ("f32", "0x3fc00000"),
            ("v128", "0x7edcba98765432100123456789abcdef"),
        ];
        assert_eq!(values(&truth, 0, "locals"), locals, "{stop} {flags:?}");
        let stack = [
            ("i32", "0x00000154"),
            ("f64", "0x4011000000000000"),
            ("v128", "0x8123456789abcdeffedcba9876543210"),
            ("i64", "0x0000000000000063"),
        ];
        assert_eq!(values(&truth, 0, "stack")[..4], stack, "{stop} {flags:?}");
        for n in 0..6 {
            let expected = [format!("{n:#010x}"), format!("{:#018x}", n * 0x0101_0101_0101_0101u64)];
            let locals: Vec<_> = values(&truth, 1 + n as usize, "locals").into_iter().map(|v| v.1).collect();
            assert_eq!(locals, expected, "{stop} {flags:?} fact({n})");
        }
        // The backtrace and the debug API are asked separately.
        for (frame, debugged) in truth["frames"].as_array().expect("a list").iter().zip(0..) {
            assert_eq!(frame["func_index"], truth["debug"][0][debugged]["func_index"], "{stop} {flags:?}");
        }
    }
}

#[test]
fn threads_stop_with_a_truth_each() {
    for version in Version::ALL {
        let host = start(version, "threads", &[], Profile::Release);
        let mut stops: Vec<_> = host.stopped.iter().map(|s| s.stop.as_str()).collect();
        stops.sort_unstable();
        assert_eq!(stops, ["deep", "memories", "sleep", "sleep-too", "spin", "trap-div"], "{version:?}");
        for (stop, frames) in
            [("deep", 102), ("memories", 2), ("sleep", 9), ("sleep-too", 9), ("spin", 6), ("trap-div", 9)]
        {
            assert_eq!(names(&host.truth_json_of(stop)["frames"]).len(), frames, "{version:?} {stop}");
        }
    }
}

#[test]
fn dwarf_has_lines() {
    for version in Version::ALL {
        let truth = start(version, "dwarf", &["--backtrace-details"], Profile::Release).truth_json();
        let symbol = &truth["frames"][1]["symbols"][0];
        assert_eq!(symbol["name"], "visit", "{version:?}");
        assert!(symbol["file"].as_str().expect("a file").ends_with("c-guest.c"), "{version:?}");
        assert!(symbol["line"].is_u64(), "{version:?}");
    }
}

#[test]
fn a_third_party_module_stops_too() {
    let module = match third_party_module() {
        Ok(path) => path,
        Err(reason) => return missing(&reason),
    };
    assert!(module.metadata().expect("it was just fetched").len() > 1 << 20);
    let module = module.to_str().expect("a path of ours");
    for version in Version::ALL {
        let flags = ["--wasm", module, "--stop-at", "fd_read", "--load", "deserialize-file"];
        let first = start(version, "wasm", &flags, Profile::Release);
        // It has no name section.
        assert_eq!(names(&first.truth_json()["frames"]), [""; 9], "{version:?}");
        // What was compiled once, which takes most of a minute, runs again.
        let compiled = first.directory.path().join("guest.cwasm");
        let compiled = compiled.to_str().expect("a path of ours");
        let flags = ["--wasm", module, "--stop-after", "100", "--load", "existing", "--cwasm", compiled];
        let busy = start(version, "wasm", &flags, Profile::Release);
        let stat = std::fs::read_to_string(format!("/proc/{0}/task/{0}/stat", busy.pid())).expect("it runs");
        assert_eq!(stat.rsplit(") ").next().expect("a state").as_bytes()[0], b'R', "{version:?}: {stat}");
    }
}

#[test]
fn cores_are_written() {
    for version in Version::ALL {
        for (stop, flags) in [
            ("sleep", [].as_slice()),
            ("abort", &[]),
            ("async-suspended", &[]),
            ("spin", &[]),
            ("trap-div", &[]),
            ("trap-div", &["--core-in-handler"]),
        ] {
            match kernel_core_exe(host_wasmtime(version, Profile::Release), stop, flags) {
                Ok(core) => {
                    assert!(core.path.metadata().expect("the core is there").len() > 1 << 16, "{stop} {flags:?}");
                    assert!(core.truth_json()["frames"].is_array(), "{stop} {flags:?}");
                }
                Err(reason) => missing(&reason.0),
            }
        }
        match gcore(&start(version, "sleep", &[], Profile::Release)) {
            Ok(path) => assert!(path.metadata().expect("the core is there").len() > 1 << 16),
            Err(reason) => missing(&reason.0),
        }
    }
}
