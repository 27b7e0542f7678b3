//! The binary on real hosts: each route by itself, what a `.wasm` adds, selection, exit codes.

use crate::support::{
    Host, Profile, copy_program, gcore, host_singlepass, host_singlepass_publishing, kernel_core_exe, work_directory,
    wstate_json, wstate_text,
};
use serde_json::Value;

fn wasm_frames(report: &Value) -> Vec<&Value> {
    let threads = report["threads"].as_array().unwrap();
    let frames = threads.iter().flat_map(|t| t["frames"].as_array().unwrap());
    frames.filter(|f| f["kind"] == "wasm").collect()
}

/// What does not depend on how the module was found: addresses, functions, values.
fn essence(report: &Value) -> Vec<String> {
    let one = |f: &Value| {
        let bits = |key: &str| f[key].as_array().map(|l| l.iter().map(|v| v["bits"].clone()).collect::<Vec<_>>());
        let (function, wasm) = (&f["function"], &f["wasm"]);
        let place = format!("{} {} {}", f["pc"], function["local_index"], wasm["op_index"]);
        format!("{place} {:?} {:?}", bits("locals"), bits("stack"))
    };
    wasm_frames(report).into_iter().map(one).collect()
}

fn routes(report: &Value) -> Vec<String> {
    let modules = report["runtimes"].as_array().unwrap().iter().flat_map(|r| r["modules"].as_array().unwrap());
    let names = modules.flat_map(|m| m["routes"].as_array().unwrap()).map(|r| r.as_str().unwrap().to_string());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn each_route_alone_gives_the_same_frames() {
    let dir = work_directory();
    let artifact = dir.path().join("artifact");
    let artifact = artifact.to_str().unwrap();
    // The thread-local list needs the runtime's symbol; what else a stripped host allows is not promised.
    for (profile, routes_here) in [
        (Profile::Debug, &["vmctx", "heap", "tls", "artifact"][..]),
        (Profile::Release, &["vmctx", "heap", "tls", "artifact"]),
        (Profile::ReleaseDebug, &["vmctx", "heap", "tls", "artifact"]),
        (Profile::Stripped, &["vmctx", "heap", "artifact"]),
    ] {
        let host = Host::start("sleep", &["--artifact", artifact], profile);
        let pid = host.pid().to_string();
        let (code, all) = wstate_json(&["attach", &pid]);
        assert_eq!((code, wasm_frames(&all).len()), (0, 8), "{profile:?}");
        for route in routes_here {
            let mut args = vec!["attach", &pid, "--route", route];
            if *route == "artifact" {
                args.extend(["--artifact", artifact]);
            }
            let (code, report) = wstate_json(&args);
            assert_eq!(code, 0, "{profile:?} {route}");
            assert_eq!(routes(&report), [*route], "{profile:?}");
            assert_eq!(essence(&report), essence(&all), "{profile:?} {route}");
        }
        host.assert_unharmed();
        assert!(host.finish());
    }
}

#[test]
fn a_published_module_is_found() {
    let host = Host::start_exe(host_singlepass_publishing(), "sleep", &["--publish"]);
    let pid = host.pid().to_string();
    let (_, all) = wstate_json(&["attach", &pid]);
    let (code, report) = wstate_json(&["attach", &pid, "--route", "descriptor"]);
    assert_eq!((code, routes(&report)), (0, vec!["descriptor".to_string()]));
    assert_eq!(essence(&report), essence(&all));
    assert_eq!(essence(&report).len(), 8);
    // A host that publishes nothing.
    let host = Host::start("sleep", &[], Profile::Debug);
    let (_, report) = wstate_json(&["attach", &host.pid().to_string(), "--route", "descriptor"]);
    assert!(wasm_frames(&report).is_empty());
}

#[test]
fn an_artifact_of_another_module_is_refused_with_the_reason() {
    let dir = work_directory();
    let artifact = dir.path().join("artifact");
    let artifact = artifact.to_str().unwrap();
    drop(Host::start("floats", &["--artifact", artifact], Profile::Debug));
    let host = Host::start("sleep", &[], Profile::Debug);
    let (code, report) =
        wstate_json(&["attach", &host.pid().to_string(), "--route", "artifact", "--artifact", artifact]);
    assert!(wasm_frames(&report).is_empty());
    assert!(code <= 1, "{code}");
    assert!(report["notes"].as_array().unwrap().iter().any(|n| n.as_str().unwrap().contains("artifact")), "{report:#}");
}

#[test]
fn several_modules_and_a_moved_instance() {
    for route in ["vmctx", "heap", "tls"] {
        let host = Host::start("modules", &[], Profile::Release);
        let (code, report) = wstate_json(&["attach", &host.pid().to_string(), "--route", route]);
        assert_eq!(code, 0, "{route}");
        let frames = wasm_frames(&report);
        assert_eq!(frames.len(), 3, "{route}");
        let modules: std::collections::BTreeSet<String> =
            frames.iter().map(|f| f["wasm"]["module_index"].to_string()).collect();
        assert_eq!(modules.len(), 3, "{route}: three instances of three modules");

        // Made by the main thread, runs on another.
        let host = Host::start("moved", &[], Profile::Release);
        assert_ne!(host.pid(), host.tid());
        let tid = host.tid().to_string();
        let (code, report) = wstate_json(&["attach", &host.pid().to_string(), "--route", route, "-t", &tid]);
        assert_eq!((code, wasm_frames(&report).len()), (0, 8), "{route}");
        assert_eq!(report["threads"][0]["name"], "mover");
    }
}

#[test]
fn a_wasm_file_gives_types_names_and_offsets_or_is_refused() {
    let dir = work_directory();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (right, wrong) = (path("right.wasm"), path("wrong.wasm"));
    drop(Host::start("floats", &["--dump-wasm", &wrong], Profile::Debug));
    let host = Host::start("sleep", &["--dump-wasm", &right], Profile::Debug);
    let pid = host.pid().to_string();

    let (code, report) = wstate_json(&["attach", &pid, "--wasm", &right]);
    assert_eq!(code, 0);
    let bytes = std::fs::read(&right).unwrap();
    let frames = wasm_frames(&report);
    for frame in &frames {
        assert_eq!(frame["module"], "right.wasm");
        let offset = frame["wasm"]["offset"].as_str().and_then(|o| u64::from_str_radix(&o[2..], 16).ok()).unwrap();
        // `call`: every frame stands at one.
        assert_eq!(bytes[offset as usize], 0x10, "{frame:#}");
    }
    let leaf = frames[0];
    assert_eq!(leaf["function"]["name"], "leaf");
    let types = |key: &str| leaf[key].as_array().unwrap().iter().map(|v| v["type"].clone()).collect::<Vec<_>>();
    assert_eq!(types("locals"), ["i32", "i64", "f64", "i32", "i32"]);
    assert_eq!(types("stack"), ["i32", "f64", "i64"]);
    assert_eq!(leaf["stack"][1]["value"], "4.25");

    let (code, report) = wstate_json(&["attach", &pid, "--wasm", &wrong]);
    assert_eq!((code, wasm_frames(&report).len()), (1, 8), "the frames are there without it");
    assert!(wasm_frames(&report).iter().all(|f| f["wasm"]["offset"].is_null()));
    let refused = |n: &Value| n.as_str().is_some_and(|n| n.contains("wrong.wasm does not fit and is not used: "));
    assert!(report["notes"].as_array().unwrap().iter().any(refused), "{:#}", report["notes"]);

    for (file, why) in
        [("/dev/null", "not a regular file"), ("/nonexistent", "No such file"), ("/", "not a regular file")]
    {
        for option in ["--wasm", "--artifact"] {
            let (code, report) = wstate_json(&["attach", &pid, option, file]);
            let told = |n: &Value| {
                n.as_str().is_some_and(|n| n.starts_with(&format!("{file} is not used: ")) && n.contains(why))
            };
            assert!(report["notes"].as_array().unwrap().iter().any(told), "{:#}", report["notes"]);
            assert_eq!((code, wasm_frames(&report).len()), (1, 8));
        }
    }
}

const FULL: &str = r#"(module $full
  (type $t (func (param i32 i64)))
  (import "env" "stop" (func $stop (param i32)))
  (memory (export "memory") 2 5)
  (table (export "table") 4 funcref)
  (global $g (mut i64) (i64.const 7))
  (global $h f32 (f32.const 1))
  (elem (i32.const 0) $spun)
  (data (i32.const 16) "hello")
  (func $spun (export "spun") (param i32) (result i32) (local i64 f64)
    (i32.const 5)
    (i64.const 9)
    (call $stop (local.get 0))
    (drop)))"#;

/// Of a file that is nearly the module's, the process's own description tells what is different.
#[test]
fn a_wasm_file_is_compared_with_the_modules_description() {
    let edits = [
        (
            "(export \"spun\")",
            "(export \"spin\")",
            "the module in the process exports func 1 as \"spun\", edited.wasm does not",
        ),
        ("(export \"spun\")", "", "the module in the process exports func 1 as \"spun\", edited.wasm does not"),
        ("(export \"spun\")", "(export \"spun\") (export \"more\")", "edited.wasm exports func 1 as \"more\""),
        ("\"env\" \"stop\"", "\"enw\" \"stop\"", "imported func 0 is env.stop in the process, enw.stop in edited.wasm"),
        ("\"stop\"", "\"stopp\"", "imported func 0 is env.stop in the process, env.stopp in edited.wasm"),
        ("2 5)", "9 50)", "memory 0 is 2..5 pages in the process, 9..50 pages in edited.wasm"),
        ("4 funcref", "400 funcref", "table 0 is 4.. elements of funcref in the process, 400.. elements of funcref in"),
        (
            "(global $h f32 (f32.const 1))",
            "(global $h i32 (i32.const 1))",
            "global 1 is f32 in the process, i32 in edited",
        ),
        ("(global $h f32 (f32.const 1))", "", "global 1 is f32 in the process, not there in edited.wasm"),
        ("(mut i64)", "i64", "global 0 is mut i64 in the process, i64 in edited.wasm"),
        ("\"hello\"", "\"hell\"", "data segment 0 is 5 bytes in the process, 4 bytes in edited.wasm"),
        ("(elem (i32.const 0) $spun)", "", "the module in the process has 1 element segments, edited.wasm has 0"),
        ("(data", "(start 0) (data", "the start function in the process is none, in edited.wasm function 0"),
        (
            "(i64.const 9)",
            "(f64.const 9)",
            "operand 1 is the constant 0x9 in the process, the constant 0x4022000000000000",
        ),
        (
            "(result i32)",
            "(result f32)",
            "function 1 of all is (i32) -> (i32) in the process, (i32) -> (f32) in edited.wasm",
        ),
    ];
    let dir = work_directory();
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    };
    let bytes = wat::parse_str(FULL).unwrap();
    let full = put("full.wasm", &bytes);
    for profile in [Profile::Debug, Profile::Stripped] {
        let host = Host::start("wasm", &["--call", "spun", "42", "--wasm", &full], profile);
        let pid = host.pid().to_string();
        // Custom sections are not part of the module: one more, and no names.
        let more = put("more.wasm", &[&bytes[..8], &[0, 2, 1, b'x'], &bytes[8..]].concat());
        let bare = FULL.replace("$full", "").replace("(func $spun (export", "(func (export").replace("$spun", "1");
        let bare = put("bare.wasm", &wat::parse_str(bare).unwrap());
        for file in [&full, &more, &bare] {
            let (code, text, err) = wstate_text(&["attach", &pid, "--wasm", file, "--verbose"]);
            assert_eq!(code, 0, "{text}{err}");
            assert!(text.contains(&format!(", fits {file} (positions, description)")), "{text}");
            assert!(text.contains("types of declared locals are taken from it unchecked"), "{text}");
        }
        // The same file twice is one.
        let (code, text, _) = wstate_text(&["attach", &pid, "--wasm", &full, "--wasm", &full]);
        assert_eq!(code, 0, "{text}");
        for (from, to, reason) in edits {
            let text = FULL.replacen(from, to, 1);
            assert_ne!(text, FULL);
            let edited = put("edited.wasm", &wat::parse_str(text).unwrap());
            let (code, text, _) = wstate_text(&["attach", &pid, "--wasm", &edited]);
            assert!(text.contains(reason), "{reason}: {text}");
            assert_eq!(code, 1, "{text}");
            let (_, modules, _) = wstate_text(&["modules", "-p", &pid, "--wasm", &edited, "--exports"]);
            assert!(modules.contains("spun"), "{modules}");
        }
    }
}

#[test]
fn threads_frames_and_numbers_are_selected() {
    let host = Host::start("threads", &[], Profile::Release);
    let pid = host.pid().to_string();
    let (code, all) = wstate_json(&["attach", &pid]);
    assert_eq!(code, 0);
    assert!(all["threads"].as_array().unwrap().len() > host.stopped.len());
    let deep = host.tid_at("deep").unwrap().to_string();
    let (_, one) = wstate_json(&["attach", &pid, "-t", &deep]);
    let threads = one["threads"].as_array().unwrap();
    assert_eq!((threads.len(), threads[0]["tid"].to_string()), (1, deep.clone()));

    let (_, first) = wstate_json(&["attach", &pid, "-1"]);
    assert_eq!(first["threads"].as_array().unwrap().len(), 1);
    assert_eq!(first["threads"][0]["tid"], all["threads"][0]["tid"]);

    let (code, short) = wstate_json(&["attach", &pid, "-t", &deep, "-n", "5"]);
    assert_eq!((code, short["threads"][0]["end"]["kind"].as_str()), (0, Some("limit")));
    assert_eq!(short["threads"][0]["frames"].as_array().unwrap().len(), 5);

    // Numbers are those of the whole list.
    let (_, wasm) = wstate_json(&["attach", &pid, "-t", &deep, "--wasm-only"]);
    let numbers =
        |frames: Vec<&Value>| frames.iter().map(|f| (f["index"].clone(), f["pc"].clone())).collect::<Vec<_>>();
    assert_eq!(numbers(wasm["threads"][0]["frames"].as_array().unwrap().iter().collect()), numbers(wasm_frames(&one)));
    assert!(wasm_frames(&wasm)[0]["index"].as_u64().unwrap() > 0);
    let (_, text, _) = wstate_text(&["attach", &pid, "-t", &deep, "--wasm-only"]);
    let printed = text.lines().filter_map(|l| l.trim_start().strip_prefix('#')?.split(' ').next()?.parse::<u64>().ok());
    let expected: Vec<u64> = wasm_frames(&one).iter().map(|f| f["index"].as_u64().unwrap()).collect();
    assert_eq!(printed.collect::<Vec<_>>(), expected);

    // Several threads run Wasm: an image is of one.
    let (code, out, err) = wstate_text(&["attach", &pid, "--format", "image"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("--thread TID"), "{err}");
    let (code, _, err) = wstate_text(&["attach", &pid, "-t", "1"]);
    assert_eq!(code, 2);
    assert!(err.contains(&deep), "the error lists the threads: {err}");
}

#[test]
fn recursion_is_folded_in_text_alone() {
    let host = Host::start("deep", &["--depth", "1000"], Profile::Release);
    let pid = host.pid().to_string();
    let (code, report) = wstate_json(&["attach", &pid, "-1", "--fold"]);
    let frames = report["threads"][0]["frames"].as_array().unwrap();
    assert!(code == 0 && frames.len() > 1000, "{} frames", frames.len());
    let (_, text, _) = wstate_text(&["attach", &pid, "-1", "--fold"]);
    // Each frame is on its own line or in one for many, in order.
    let mut next = 0;
    for line in text.lines() {
        let Some((number, rest)) = line.trim_start().strip_prefix('#').and_then(|l| l.split_once("  ")) else {
            continue;
        };
        // Frames of Rust's runtime have one line too, with both numbers.
        let (first, in_row) = number.split_once("-#").map_or((number, None), |(first, last)| (first, Some(last)));
        assert_eq!(first.parse(), Ok(next), "{line}");
        let row = in_row.map(|last| last.parse::<usize>().expect("a number") + 1 - next);
        let of_row = |count| format!("... {count} frames of Rust's runtime and the C library (--all shows them)");
        assert!(row.is_none_or(|count| rest == of_row(count)), "{line}");
        let last = rest.strip_prefix("to #").and_then(|l| l.split_once(": the frame above ")?.0.parse::<usize>().ok());
        let repeated = last.map(|last| last + 1 - next);
        assert!(repeated.is_none_or(|count| line.ends_with(&format!(" {count} times more"))), "{line}");
        next += row.or(repeated).unwrap_or(1);
    }
    assert_eq!(next, frames.len());
    assert!(text.lines().count() < 100, "{text}");
}

#[test]
fn exit_codes_and_output() {
    let host = Host::start("sleep", &[], Profile::Release);
    let pid = host.pid().to_string();
    let dir = work_directory();
    let file = dir.path().join("report.json");
    let (code, out, err) = wstate_text(&["attach", &pid, "--json", "--output", file.to_str().unwrap()]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""));
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(wasm_frames(&report).len(), 8);

    // Without any route to the module the walk is lost in its code, or goes on by frame pointers.
    let core = gcore(&host).unwrap_or_else(|why| panic!("{}", why.0));
    let (code, _, err) = wstate_text(&["core", core.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    // The stack is cut off: frames are there, the bottom is not.
    let bytes = std::fs::read(&core).unwrap();
    let cut = dir.path().join("cut");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let (code, out, _) = wstate_text(&["core", cut.to_str().unwrap(), "--json"]);
    assert!(code == 1 || code == 2, "{code}");
    assert!(serde_json::from_str::<Value>(&out).is_ok() || code == 2);
    let (code, _, err) = wstate_text(&["core", "/dev/null"]);
    assert_eq!(code, 2, "{err}");

    let dead = host.pid().to_string();
    drop(host);
    let (code, out, err) = wstate_text(&["attach", &dead]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("no such process"), "{err}");
}

/// Without the executable there is no CFI for the host's frames, and without frame pointers rbp leads past the Wasm function
/// that called the host: it must be found all the same, and no value may be another one.
#[test]
fn a_core_without_its_executable_keeps_all_wasm_frames() {
    for profile in [Profile::Debug, Profile::Release] {
        let dir = work_directory();
        let (exe, kept) = (dir.path().join("host"), dir.path().join("kept"));
        copy_program(&host_singlepass(profile), &exe);
        let core = kernel_core_exe(exe.clone(), "abort", &[]).unwrap_or_else(|why| panic!("{}", why.0));
        let core = core.path.to_str().unwrap();
        let (code, with) = wstate_json(&["core", core]);
        assert_eq!(code, 0, "{profile:?}");
        std::fs::rename(&exe, &kept).unwrap();
        let (code, without) = wstate_json(&["core", core]);
        assert_eq!(code, 1, "{profile:?}");
        let (code, _) = wstate_json(&["core", core, kept.to_str().unwrap()]);
        assert_eq!(code, 0, "{profile:?}: the executable where the user says it is");
        let (with, without) = (wasm_frames(&with), wasm_frames(&without));
        let functions = |frames: &[&Value]| frames.iter().map(|f| f["function"]["index"].clone()).collect::<Vec<_>>();
        assert_eq!(functions(&with), functions(&without), "{profile:?}");
        for (a, b) in with.iter().zip(&without) {
            for key in ["locals", "stack"] {
                let pairs = a[key].as_array().into_iter().flatten().zip(b[key].as_array().into_iter().flatten());
                for (a, b) in pairs {
                    assert!(b["bits"].is_null() || a["bits"] == b["bits"], "{profile:?}: {a} became {b}");
                }
            }
        }
    }
}
