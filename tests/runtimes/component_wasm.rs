//! Files of components: whole, and the core modules cut out of them. And files that are none.

use crate::support::{Host, Profile, Version, host_wasmtime, wstate};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use wstate::wasm::file::WasmFile;

fn attach(host: &Host, options: &[&str]) -> (Option<i32>, Value) {
    let pid = host.pid().to_string();
    let output = wstate(&[&["attach", &pid, "--json"], options].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code(), report)
}

fn wasm_frames(report: &Value) -> Vec<&Value> {
    let threads = report["threads"].as_array().unwrap();
    threads.iter().flat_map(|t| t["frames"].as_array().unwrap()).filter(|f| f["kind"] == "wasm").collect()
}

fn offset(frame: &Value) -> usize {
    usize::from_str_radix(&frame["wasm"]["offset"].as_str().unwrap()[2..], 16).unwrap()
}

fn notes(report: &Value) -> Vec<&str> {
    report["notes"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect()
}

/// Module and file of each frame whose module has a file.
fn files(report: &Value) -> Vec<(u64, String)> {
    let all = report["runtimes"].as_array().unwrap().iter().flat_map(|r| r["modules"].as_array().unwrap());
    let with_file = all.filter_map(|m| Some((m["index"].as_u64()?, m["wasm_file"].as_str()?.to_string())));
    with_file.collect()
}

#[test]
fn positions_count_from_the_start_of_the_component() {
    let mut compared = 0;
    for (version, stop, more) in [
        (Version::V36, "component", &[][..]),
        (Version::V36, "component-adapter", &[]),
        (Version::V48, "component", &[]),
        (Version::V48, "component", &["--guest-debug"]),
        (Version::V48, "component-adapter", &[]),
        (Version::V48, "component-adapter", &["--guest-debug"]),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("component.wasm");
        let name = path.to_str().unwrap();
        let exe = host_wasmtime(version, Profile::Release);
        let host = Host::start_exe(exe, stop, &[&["--dump-wasm", name], more].concat());
        let bytes = std::fs::read(&path).unwrap();
        let what = format!("{version:?} {stop} {more:?}");
        let is_right = |frame: &Value| {
            // Every frame stands at a call.
            assert_eq!(bytes[offset(frame)], 0x10, "{what}: {frame:#}");
            assert!(frame["wasm"]["op"].as_str().is_some_and(|op| op.starts_with("call ")), "{what}: {frame:#}");
        };

        let (code, report) = attach(&host, &["--wasm", name]);
        assert!(!notes(&report).iter().any(|n| n.contains("component.wasm")), "{what}: {:#}", report["notes"]);
        let (_, without) = attach(&host, &[]);
        let own = files(&report);
        let in_file = |frame: &&&Value| own.iter().any(|(index, _)| frame["wasm"]["module_index"] == *index);
        let frames = wasm_frames(&report);
        let checked: Vec<_> = frames.iter().filter(in_file).collect();
        assert!(checked.len() >= 2, "{what}: {report:#}");
        checked.iter().for_each(|frame| is_right(frame));
        // The file adds operators and changes nothing else.
        for (with, without) in frames.iter().zip(wasm_frames(&without)) {
            assert_eq!(with["wasm"]["offset"], without["wasm"]["offset"], "{what}");
            assert_eq!(with["function"]["name"], without["function"]["name"], "{what}");
        }
        let (plain, _) = attach(&host, &[]);
        assert_eq!(code, plain, "{what}: a file that fits is no reason for another exit code");

        // Each core module alone fits its own module, and the positions stay.
        for (number, core) in WasmFile::parse(&path, bytes.clone()).unwrap().modules.iter().enumerate() {
            let base = core.base.unwrap() as usize;
            let one = scratch.path().join(format!("core{number}.wasm"));
            std::fs::write(&one, &bytes[base..base + core.wasm.bytes().len()]).unwrap();
            let (_, report) = attach(&host, &["--wasm", one.to_str().unwrap()]);
            let own = files(&report);
            assert!(!own.is_empty(), "{what} {number}: {:#}", report["notes"]);
            for frame in wasm_frames(&report) {
                if own.iter().any(|(index, _)| frame["wasm"]["module_index"] == *index) {
                    is_right(frame);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared >= 12, "{compared}");
}

/// What is wrong with a file is told beside the report, which is the same as without it.
#[test]
fn a_file_that_is_none_does_not_end_the_command() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let host = Host::start_exe(
        host_wasmtime(Version::V48, Profile::Release),
        "component",
        &["--dump-wasm", path("c.wasm").to_str().unwrap()],
    );
    let component = std::fs::read(path("c.wasm")).unwrap();
    std::fs::write(path("cut.wasm"), &component[..component.len() - 20]).unwrap();
    std::fs::write(path("garbage.wasm"), [0x5a; 300]).unwrap();
    std::fs::write(path("empty.wasm"), b"").unwrap();
    std::fs::write(path("text.wasm"), "(module)").unwrap();
    std::fs::File::create(path("huge.wasm")).unwrap().set_len(1 << 40).unwrap();
    assert!(Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
    let bad = ["missing.wasm", "cut.wasm", "garbage.wasm", "empty.wasm", "text.wasm", "huge.wasm", "fifo", "."]
        .map(|name| path(name).to_str().unwrap().to_string());
    let (_, plain) = attach(&host, &[]);
    for file in bad.iter().map(String::as_str).chain(["/dev/zero", "/dev/null", "/proc/self/mem"]) {
        for option in ["--wasm", "--artifact"] {
            // Any bytes may be an artifact, as far as is known before compiled code of that runtime is met.
            let is_read = option == "--artifact" && Path::new(file).is_file() && !file.ends_with("huge.wasm");
            if is_read {
                continue;
            }
            let (code, report) = attach(&host, &[option, file]);
            let told = notes(&report).into_iter().filter(|n| n.contains(file)).count();
            assert_eq!((code, told), (Some(1), 1), "{option} {file}: {:#}", report["notes"]);
            let names = |report: &Value| wasm_frames(report).iter().map(|f| f["function"].clone()).collect::<Vec<_>>();
            assert_eq!(names(&report), names(&plain));
        }
        let pid = host.pid().to_string();
        for command in [
            &["modules", "-p", &pid, "--wasm", file][..],
            &["symbols", "-p", &pid, "-o", path("sym").to_str().unwrap(), "--wasm", file],
            &["export", "-p", &pid, "--wasm-coredump", path("dump").to_str().unwrap(), "--wasm", file],
        ] {
            let output = wstate(command);
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
            assert!(said.contains(&format!("{file} is not used: ")), "{command:?}: {said}");
        }
    }
}
