//! `wstate modules` and `memory` on real hosts: what the guests' sources say is there, live and in a core.

use crate::support::{Host, Profile, gcore, wstate};
use serde_json::Value;

fn run(args: &[&str]) -> (Option<i32>, Vec<u8>, String) {
    let out = wstate(args);
    (out.status.code(), out.stdout, String::from_utf8_lossy(&out.stderr).into_owned())
}

fn json(args: &[&str]) -> (Option<i32>, Value) {
    let (code, out, err) = run(args);
    (code, serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {err}")))
}

#[test]
fn globals_memories_and_exports_are_the_guests() {
    let host = Host::start("globals", &[], Profile::Debug);
    let pid = host.pid().to_string();
    let (code, live) = json(&["modules", "-p", &pid, "--functions", "--exports", "--json"]);
    assert_eq!(code, Some(0), "{live}");
    let module = &live["contents"][0];
    let exports: Vec<String> = module["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| format!("{} {} {}", e["kind"].as_str().unwrap(), e["index"], e["name"].as_str().unwrap()))
        .collect();
    assert_eq!(exports, ["memory 0 memory", "func 1 run"]);
    let functions = module["functions"].as_array().unwrap();
    assert_eq!(functions.len(), 2);
    assert_eq!((&functions[0]["imported"], &functions[0]["params"][0]), (&true.into(), &"i32".into()));
    assert_eq!((&functions[1]["name"], &functions[1]["imported"]), (&"run".into(), &false.into()));
    let instance = &module["instances"][0];
    assert_eq!((module["instances"].as_array().unwrap().len(), &instance["threads"][0]), (1, &host.tid().into()));
    let globals: Vec<String> = instance["globals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| format!("{} {} {}", g["mutable"], g["type"].as_str().unwrap(), g["value"].as_str().unwrap()))
        .collect();
    let expected = [
        "false i32 4242",
        "true i32 -100",
        "true i64 0x1234567890abcdef",
        "true f32 33.5",
        "true f64 -44.25",
        "false i32 -5",
    ];
    assert_eq!(globals, expected);
    assert_eq!((&instance["memories"][0]["size"], &instance["memories"][0]["why"]), (&0x1_0000.into(), &Value::Null));

    let core = gcore(&host).unwrap_or_else(|e| panic!("{e:?}"));
    let core = core.to_str().unwrap();
    let exe = host.exe.to_str().unwrap();
    let (code, in_core) = json(&["modules", "-c", core, "-e", exe, "--functions", "--exports", "--json"]);
    assert_eq!((code, &in_core["contents"]), (Some(0), &live["contents"]));

    let (code, out, err) = run(&["memory", "-p", &pid, "0x8", "32"]);
    let expected = "0x00000008  00 00 00 00 00 00 00 00 72 65 63 6f 67 6e 69 73  ........recognis\n\
                    0x00000018  65 20 6d 65 00 00 00 00 00 00 00 00 00 00 00 00  e me............\n";
    assert_eq!((code, String::from_utf8(out).unwrap().as_str()), (Some(0), expected), "{err}");
    let (code, raw, _) = run(&["memory", "-c", core, "--instance", "0", "16", "12", "--raw"]);
    assert_eq!((code, raw), (Some(0), b"recognise me".to_vec()));
    let (code, whole, _) = run(&["memory", "-c", core, "0", "0x10000", "--raw"]);
    assert_eq!((code, whole.len(), &whole[16..28]), (Some(0), 0x1_0000, &b"recognise me"[..]));
    for (args, why) in [
        (&["0xffff", "2"][..], "memory 0 has 0x10000 bytes; 0x2 bytes at 0xffff are not inside"),
        (&["0", "1", "--memory", "1"], "there is no memory 1: the instance has 1 that are known"),
        (&["0", "1", "--instance", "5"], "there is no such instance; there are: 0 at "),
    ] {
        let (code, _, err) = run(&[&["memory", "-c", core], args].concat());
        assert!(code == Some(2) && err.contains(why), "{err}");
    }
    let text = String::from_utf8(run(&["modules", "-c", core, "-e", exe]).1).unwrap();
    assert!(text.contains("    global 2 mut i64 0x1234567890abcdef ["), "{text}");
}

#[test]
fn instances_of_several_modules_have_numbers() {
    let host = Host::start("modules", &[], Profile::Debug);
    let pid = host.pid().to_string();
    let (_, modules) = json(&["modules", "-p", &pid, "--json"]);
    let instances = modules["contents"].as_array().unwrap().iter().flat_map(|m| m["instances"].as_array().unwrap());
    let numbers: Vec<u64> = instances.map(|i| i["number"].as_u64().unwrap()).collect();
    assert!(numbers.len() >= 3 && numbers == (0..numbers.len() as u64).collect::<Vec<_>>(), "{modules}");
}
