//! `wstate export` on real hosts, read back with wasmparser: values of the guests' sources and of the runtime's own answer.

use crate::support::{Host, Profile, Version, gcore, host_wasmtime, wstate};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use wasmparser::{
    CoreDumpInstance, CoreDumpStackFrame, CoreDumpValue, DataKind, KnownCustom, MemoryType, Operator, Parser, Payload,
};

fn run(args: &[&str]) -> (Option<i32>, Vec<u8>, String) {
    let out = wstate(args);
    (out.status.code(), out.stdout, String::from_utf8_lossy(&out.stderr).into_owned())
}

struct Segment {
    memory: u32,
    start: u64,
    data: Vec<u8>,
}

#[derive(Default)]
struct Dump {
    modules: Vec<String>,
    instances: Vec<CoreDumpInstance>,
    stacks: BTreeMap<String, Vec<CoreDumpStackFrame>>,
    globals: Vec<String>,
    memories: Vec<MemoryType>,
    segments: Vec<Segment>,
}

fn read(bytes: &[u8]) -> Dump {
    wasmparser::Validator::new().validate_all(bytes).unwrap();
    let mut out = Dump::default();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.unwrap() {
            Payload::CustomSection(section) => match section.as_known() {
                KnownCustom::CoreDumpStack(s) => drop(out.stacks.insert(s.name.to_string(), s.frames)),
                KnownCustom::CoreDumpModules(m) => out.modules = m.modules.iter().map(|m| m.to_string()).collect(),
                KnownCustom::CoreDumpInstances(i) => out.instances = i.instances,
                _ => {}
            },
            Payload::MemorySection(all) => out.memories = all.into_iter().map(Result::unwrap).collect(),
            Payload::GlobalSection(all) => {
                out.globals = all.into_iter().map(|g| constant(&g.unwrap().init_expr)).collect();
            }
            Payload::DataSection(all) => out.segments = all.into_iter().map(|d| segment(d.unwrap())).collect(),
            _ => {}
        }
    }
    out
}

/// The value of a constant, its bits in hex for all but references.
fn constant(init: &wasmparser::ConstExpr) -> String {
    match init.get_operators_reader().read().unwrap() {
        Operator::I32Const { value } => format!("i32 {:#x}", value as u32),
        Operator::I64Const { value } => format!("i64 {:#x}", value as u64),
        Operator::F32Const { value } => format!("f32 {:#x}", value.bits()),
        Operator::F64Const { value } => format!("f64 {:#x}", value.bits()),
        Operator::V128Const { value } => format!("v128 {:#x}", value.i128() as u128),
        other => format!("{other:?}"),
    }
}

fn segment(data: wasmparser::Data) -> Segment {
    let DataKind::Active { memory_index, offset_expr } = data.kind else { panic!("{:?}", data.kind) };
    let start = constant(&offset_expr);
    let start = u64::from_str_radix(start.split_once(" 0x").unwrap().1, 16).unwrap();
    Segment { memory: memory_index, start, data: data.data.to_vec() }
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
    assert_eq!((dump.instances.len(), dump.stacks.len()), (1, 1));
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
    assert_eq!((dump.globals.len(), dump.memories[0].initial, dump.segments.len()), (6, 1, 1));
    assert_eq!(&dump.segments[0].data[16..28], b"recognise me");
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

/// Values of a frame as the runtime says them, as [`numbers`] writes those of a coredump: the four numbers, else missing.
fn theirs(values: &Value) -> Vec<String> {
    let one = |v: &Value| {
        let bits = v["bits"].as_str().unwrap();
        let bits = u128::from_str_radix(bits.trim_start_matches("0x"), 16);
        match (v["type"].as_str().unwrap(), bits) {
            ("i32", Ok(bits)) => (bits as u32 as i32).to_string(),
            ("i64", Ok(bits)) => format!("{bits:#x}"),
            ("f32", Ok(bits)) => f32::from_bits(bits as u32).to_string(),
            ("f64", Ok(bits)) => f64::from_bits(bits as u64).to_string(),
            _ => "missing".to_string(),
        }
    };
    values.as_array().unwrap().iter().map(one).collect()
}

/// The instances' addresses by their number, which is their index in the coredump.
fn addresses(target: &[&str]) -> Vec<String> {
    let out = wstate(&[&["modules", "--json"], target].concat());
    let listed: Value = serde_json::from_slice(&out.stdout).unwrap();
    let modules = listed["contents"].as_array().unwrap().iter();
    let all = modules.flat_map(|m| m["instances"].as_array().unwrap());
    let mut all: Vec<(u64, String)> =
        all.map(|i| (i["number"].as_u64().unwrap(), i["address"].as_str().unwrap().to_string())).collect();
    all.sort();
    all.into_iter().map(|(_, address)| address).collect()
}

fn wasmtime(version: Version, stop: &str, flags: &[&str]) -> Host {
    Host::start_exe(host_wasmtime(version, Profile::Stripped), stop, flags)
}

/// Frames, values, memories and globals of one target against what Wasmtime says of the same stop.
fn compare(case: &str, dump: &Dump, addresses: &[String], truth: &Value) {
    let frames: Vec<&Value> = truth["frames"].as_array().unwrap().iter().collect();
    let stack = dump.stacks.iter().find(|(name, _)| name.ends_with(&format!("({})", truth["tid"])));
    let stack = stack.unwrap_or_else(|| panic!("{case}: no stack of the thread")).1;
    assert_eq!(stack.len(), frames.len(), "{case}");
    let debug: Option<Vec<&Value>> =
        truth["debug"].as_array().map(|all| all.iter().flat_map(|a| a.as_array().unwrap()).collect());
    for (at, (our, their)) in stack.iter().zip(&frames).enumerate() {
        assert_eq!(our.funcidx, their["func_index"].as_u64().unwrap() as u32, "{case} frame {at}");
        assert_eq!(our.codeoffset, their["func_offset"].as_u64().unwrap() as u32, "{case} frame {at}");
        match &debug {
            Some(debug) => {
                assert_eq!(numbers(&our.locals), theirs(&debug[at]["locals"]), "{case} frame {at}");
                assert_eq!(numbers(&our.stack), theirs(&debug[at]["stack"]), "{case} frame {at}");
                assert_eq!(addresses[our.instanceidx as usize], debug[at]["vmctx"], "{case} frame {at}");
            }
            None => assert_eq!((our.locals.len(), our.stack.len()), (0, 0), "{case} frame {at}"),
        }
    }
    let instances = truth["stores"].as_array().unwrap().iter().flat_map(|s| s["instances"].as_array().unwrap());
    let mut compared = 0;
    for their in instances.filter(|i| i["complete"] == true) {
        let Some(number) = addresses.iter().position(|a| their["vmctx"] == a.as_str()) else { continue };
        let our = &dump.instances[number];
        let globals: Vec<String> = our.globals.iter().map(|&g| dump.globals[g as usize].clone()).collect();
        let expected = their["globals"].as_array().unwrap().iter().map(|g| {
            let (ty, bits) = (g["type"].as_str().unwrap(), g["bits"].as_str().unwrap());
            match (ty, bits) {
                ("i32" | "i64" | "f32" | "f64" | "v128", bits) => {
                    let bits = u128::from_str_radix(bits.trim_start_matches("0x"), 16).unwrap();
                    format!("{ty} {bits:#x}")
                }
                ("funcref", "null") => "RefNull { hty: Abstract { shared: false, ty: Func } }".to_string(),
                _ => "RefNull { hty: Abstract { shared: false, ty: Extern } }".to_string(),
            }
        });
        assert_eq!(globals, expected.collect::<Vec<_>>(), "{case} instance {number}");
        let memories = their["memories"].as_array().unwrap();
        assert_eq!(our.memories.len(), memories.len(), "{case} instance {number}");
        for (&index, memory) in our.memories.iter().zip(memories) {
            let ours = &dump.memories[index as usize];
            assert_eq!(
                (ours.initial << 16, ours.memory64),
                (memory["bytes"].as_u64().unwrap(), memory["64"] == true),
                "{case} instance {number}"
            );
            let head = memory["head"].as_str().unwrap();
            let of_this = dump.segments.iter().filter(|s| s.memory == index);
            let first: Vec<u8> = of_this.filter(|s| s.start == 0).flat_map(|s| s.data[..64].to_vec()).collect();
            let text: String = first.iter().map(|b| format!("{b:02x}")).collect();
            match text.is_empty() {
                true => assert!(head.bytes().all(|b| b == b'0'), "{case} instance {number}: {head}"),
                false => assert_eq!(text, head, "{case} instance {number}"),
            }
        }
        compared += 1;
    }
    assert!(compared > 0 || debug.is_none(), "{case}");
}

#[test]
fn wasmtime_has_frames_values_memories_and_globals_of_every_instance() {
    for (version, stop, flags) in [
        (Version::V36, "sleep", &[][..]),
        (Version::V48, "modules", &[]),
        (Version::V48, "sleep", &["--guest-debug"]),
        (Version::V48, "trap-memory", &["--guest-debug"]),
        (Version::V48, "memories", &["--guest-debug"]),
        (Version::V48, "modules", &["--guest-debug"]),
        (Version::V48, "nested", &["--guest-debug"]),
        (Version::V48, "component", &["--guest-debug"]),
    ] {
        let host = wasmtime(version, stop, flags);
        let (pid, file) = (host.pid().to_string(), host.directory.path().join("out.coredump"));
        let case = format!("{version:?} {stop} {flags:?}");
        let (code, _, err) = run(&["export", "-p", &pid, "--wasm-coredump", file.to_str().unwrap()]);
        assert!(matches!(code, Some(0 | 1)), "{case}: {err}");
        let live = std::fs::read(&file).unwrap();
        compare(&case, &read(&live), &addresses(&["-p", &pid]), &host.truth_json());
        if flags.is_empty() {
            assert!(err.contains("frames have no locals"), "{case}: {err}");
        }

        // gcore writes reserved memory in full: seconds each.
        if !["sleep", "memories"].contains(&stop) {
            continue;
        }
        let core = gcore(&host).unwrap_or_else(|e| panic!("{e:?}"));
        let target = ["-c", core.to_str().unwrap(), "-e", host.exe.to_str().unwrap()];
        run(&[&["export", "--wasm-coredump", file.to_str().unwrap()], &target[..]].concat());
        assert!(std::fs::read(&file).unwrap() == live, "{case}: the core's is another");
    }
}

#[test]
fn wasmtime_has_one_stack_for_each_thread() {
    let host = wasmtime(Version::V48, "threads", &["--guest-debug"]);
    let (pid, file) = (host.pid().to_string(), host.directory.path().join("out.coredump"));
    run(&["export", "-p", &pid, "--wasm-coredump", file.to_str().unwrap()]);
    let (dump, addresses) = (read(&std::fs::read(&file).unwrap()), addresses(&["-p", &pid]));
    assert_eq!(dump.stacks.len(), 6);
    for thread in ["sleep", "sleep-too", "deep", "memories", "trap-div"] {
        compare(thread, &dump, &addresses, &host.truth_json_of(thread));
    }
}

/// A memory of more than two gigabytes with three pages that are not zero: neither the tool nor the file grows with it.
#[test]
fn a_large_memory_is_neither_held_nor_written() {
    let wat = r#"(module (import "env" "stop" (func $stop)) (memory (export "memory") 40000)
        (data (i32.const 16) "the beginning")
        (func (export "run")
            (i64.store (i32.const 1610612736) (i64.const 0x1122334455667788))
            (i64.store (i32.const 2621439992) (i64.const -2))
            (call $stop)))"#;
    let directory = tempfile::tempdir().unwrap();
    let module = directory.path().join("large.wasm");
    std::fs::write(&module, wat::parse_str(wat).unwrap()).unwrap();
    for version in Version::ALL {
        let host = wasmtime(version, "wasm", &["--wasm", module.to_str().unwrap(), "--call", "run"]);
        let file = directory.path().join("out.coredump");
        let mut tool = Command::new("sh");
        // In kilobytes; the tool's executable is a good part of it.
        tool.args(["-c", "ulimit -v 600000 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_wstate")]);
        tool.args(["export", "-p", &host.pid().to_string(), "--wasm-coredump", file.to_str().unwrap()]);
        let out = tool.output().unwrap();
        assert!(matches!(out.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&out.stderr));
        let bytes = std::fs::read(&file).unwrap();
        assert!(bytes.len() < 20_000, "{} bytes", bytes.len());
        let dump = read(&bytes);
        assert_eq!(dump.memories[0].initial, 40_000);
        let byte = |address: u64| {
            let segment = dump.segments.iter().rfind(|s| s.start <= address).unwrap();
            segment.data[(address - segment.start) as usize..].to_vec()
        };
        assert!(byte(16).starts_with(b"the beginning"));
        assert!(byte(1_610_612_736).starts_with(&0x1122_3344_5566_7788u64.to_le_bytes()));
        assert_eq!(byte(2_621_439_992), (-2i64).to_le_bytes());
    }
}
