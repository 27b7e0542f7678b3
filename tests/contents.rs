//! `wstate modules`, `memory` and `export` on real hosts: what the guests' sources say is there, live and in a core.

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use support::{Host, Profile, gcore, wstate};
use wasmparser::{CoreDumpStackFrame, CoreDumpValue, KnownCustom, Parser, Payload};

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

#[derive(Default)]
struct Dump {
    instances: usize,
    stacks: BTreeMap<String, Vec<CoreDumpStackFrame>>,
    globals: usize,
    memories: Vec<u64>,
    segments: Vec<Vec<u8>>,
}

fn read(bytes: &[u8]) -> Dump {
    wasmparser::Validator::new().validate_all(bytes).unwrap();
    let mut out = Dump::default();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.unwrap() {
            Payload::CustomSection(section) => match section.as_known() {
                KnownCustom::CoreDumpStack(s) => drop(out.stacks.insert(s.name.to_string(), s.frames)),
                KnownCustom::CoreDumpInstances(i) => out.instances = i.instances.len(),
                _ => {}
            },
            Payload::MemorySection(all) => out.memories = all.into_iter().map(|m| m.unwrap().initial).collect(),
            Payload::GlobalSection(all) => out.globals = all.count() as usize,
            Payload::DataSection(all) => out.segments = all.into_iter().map(|d| d.unwrap().data.to_vec()).collect(),
            _ => {}
        }
    }
    out
}

fn numbers(values: &[CoreDumpValue]) -> Vec<String> {
    let one = |v: &CoreDumpValue| match v {
        CoreDumpValue::Missing => "missing".to_string(),
        CoreDumpValue::I32(n) => n.to_string(),
        CoreDumpValue::I64(n) => format!("{n:#x}"),
        CoreDumpValue::F32(n) => f32::from_bits(n.bits()).to_string(),
        CoreDumpValue::F64(n) => f64::from_bits(n.bits()).to_string(),
    };
    values.iter().map(one).collect()
}

#[test]
fn a_coredump_has_the_frames_with_their_values() {
    let wasm = tempfile::tempdir().unwrap();
    let wasm = wasm.path().join("guest.wasm");
    let host = Host::start("sleep", &["--dump-wasm", wasm.to_str().unwrap()], Profile::Debug);
    let (pid, file) = (host.pid().to_string(), host.directory.path().join("out.coredump"));
    let (path, wasm) = (file.to_str().unwrap(), wasm.to_str().unwrap());
    let (code, _, err) = run(&["export", "-p", &pid, "--wasm", wasm, "--wasm-coredump", path]);
    assert_eq!(code, Some(0), "{err}");
    let dump = read(&std::fs::read(&file).unwrap());
    assert_eq!((dump.instances, dump.stacks.len()), (1, 1));
    let frames = dump.stacks.values().next().unwrap();
    assert_eq!(frames.len(), 8);
    // leaf: locals 9, 0x1111111111111111, 3.25, 333, 444, operands 340, 4.25, 99.
    assert_eq!(numbers(&frames[0].locals), ["9", "0x1111111111111111", "3.25", "333", "444"]);
    assert_eq!(numbers(&frames[0].stack)[..3], ["340", "4.25", "0x63"]);
    // fact(n): locals n and n * 0x0101010101010101, operand n + 1000.
    for (n, frame) in frames[1..7].iter().enumerate() {
        let m = n as u64 * 0x0101_0101_0101_0101;
        assert_eq!(numbers(&frame.locals)[..2], [n.to_string(), format!("{m:#x}")]);
        assert_eq!(numbers(&frame.stack)[0], (n + 1000).to_string());
    }
    // Where the offsets are, the module has calls.
    let module = std::fs::read(wasm).unwrap();
    let bodies: Vec<_> = Parser::new(0)
        .parse_all(&module)
        .filter_map(|p| match p.unwrap() {
            Payload::CodeSectionEntry(body) => Some(body),
            _ => None,
        })
        .collect();
    let imports: u32 = Parser::new(0)
        .parse_all(&module)
        .map(|p| match p.unwrap() {
            Payload::ImportSection(all) => {
                all.into_imports().filter(|i| matches!(i.as_ref().unwrap().ty, wasmparser::TypeRef::Func(_))).count()
                    as u32
            }
            _ => 0,
        })
        .sum();
    for frame in frames {
        let body = &bodies[(frame.funcidx - imports) as usize];
        let at = body.range().start as usize + frame.codeoffset as usize;
        assert_eq!(module[at], 0x10, "call at {at:#x}");
    }

    // Without types little can be written, and that is told.
    let (code, _, err) = run(&["export", "-p", &pid, "--wasm-coredump", path]);
    assert!(code == Some(1) && err.contains("code offset"), "{err}");
    read(&std::fs::read(&file).unwrap());
}

#[test]
fn a_coredump_has_memories_and_globals() {
    let host = Host::start("globals", &[], Profile::Debug);
    let (pid, file) = (host.pid().to_string(), host.directory.path().join("out.coredump"));
    run(&["export", "-p", &pid, "--wasm-coredump", file.to_str().unwrap()]);
    let dump = read(&std::fs::read(&file).unwrap());
    assert_eq!((dump.globals, dump.memories.as_slice(), dump.segments.len()), (6, &[1][..], 1));
    assert_eq!(&dump.segments[0][16..28], b"recognise me");
    run(&["export", "-p", &pid, "--wasm-coredump", file.to_str().unwrap(), "--compat", "wasmgdb"]);
    let dump = Parser::new(0).parse_all(&std::fs::read(&file).unwrap()).map(Result::unwrap).fold(0, |n, p| match p {
        Payload::DataSection(all) => {
            let first = all.into_iter().next().unwrap().unwrap();
            assert_eq!(&first.data[16..], b"recognise me");
            n + 1
        }
        Payload::GlobalSection(_) => panic!(),
        _ => n,
    });
    assert_eq!(dump, 1);
}
