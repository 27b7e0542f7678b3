//! A module whose state map is too large to be decoded as a whole: its functions are looked up in the process and in a
//! core, and say what the runtime says.

use crate::support::{Host, Profile, gcore, large_module, wstate};
use serde_json::Value;
use wstate::state::ExecutionStateImage;

const FUNCTIONS: u32 = 6000;

fn bits(value: &Value) -> Option<u64> {
    u64::from_str_radix(value["bits"].as_str()?.strip_prefix("0x")?, 16).ok()
}

#[test]
fn functions_of_a_large_map_are_looked_up() {
    let directory = tempfile::tempdir().unwrap();
    let wasm = directory.path().join("large.wasm");
    std::fs::write(&wasm, large_module::module(FUNCTIONS)).unwrap();
    let wasm = wasm.to_str().unwrap();
    let flags = ["--wasm", wasm, "--call", "run", "--stop-at", "env.stop"];
    let host = Host::start("wasm", &flags, Profile::Stripped);
    let pid = host.pid().to_string();
    let truth = host.truth().expect("the runtime has an answer");
    let image = ExecutionStateImage::from_bytes(&truth.image).unwrap();
    assert_eq!(image.frames.len(), 42);

    let core = gcore(&host).unwrap_or_else(|e| panic!("{e:?}"));
    let (core, exe) = (core.to_str().unwrap(), host.exe.to_str().unwrap());
    for target in [&["attach", pid.as_str()][..], &["core", core, exe], &["attach", &pid, "--wasm", wasm]] {
        let out = wstate(&[target, &["--json"]].concat());
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        let frames = report["threads"][0]["frames"].as_array().unwrap();
        let frames: Vec<&Value> = frames.iter().filter(|f| f["kind"] == "wasm").collect();
        assert_eq!(frames.len(), image.frames.len(), "{target:?}");
        for (ours, theirs) in frames.iter().zip(&image.frames) {
            assert_eq!(ours["function"]["local_index"].as_u64(), Some(theirs.local_function_id as u64), "{target:?}");
            let list = |name: &str| ours[name].as_array().unwrap().iter().map(bits).collect::<Vec<_>>();
            assert_eq!((list("locals"), list("stack")), (theirs.locals.clone(), theirs.stack.clone()), "{target:?}");
        }
    }
    // The image is made from the map of all functions.
    let out = wstate(&["attach", &pid, "-t", &host.tid().to_string(), "--format", "image"]);
    assert!(out.stdout == truth.image, "{}", String::from_utf8_lossy(&out.stderr));
}
