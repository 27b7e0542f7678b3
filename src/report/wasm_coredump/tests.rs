//! Checks with wasmparser that the coredumps that are written can be read back.

use super::super::contents::{GlobalRow, Instance, MemoryRow, ModuleContents};
use super::super::{
    Bits, Frame, Function, Hex, Module as ReportModule, Runtime, RuntimeName, Target, TargetKind, Thread, WasmPosition,
    Why,
};
use super::*;
use wasmparser::{CoreDumpInstance, CoreDumpStackFrame, KnownCustom, Parser, Payload};

fn value(index: u32, ty: Option<Ty>, bits: Option<u128>, address: Option<u64>) -> Value {
    Value {
        index: Some(index),
        ty,
        bits: bits.map(Bits),
        value: None,
        place: None,
        address: address.map(Hex),
        why: bits.is_none().then(|| Why::other("gone")),
    }
}

fn memory(index: u32, base: u64, size: u64) -> MemoryRow {
    MemoryRow {
        index,
        base: Some(Hex(base)),
        size: Some(size),
        memory64: false,
        shared: false,
        maximum: Some(100),
        why: None,
    }
}

fn instance(number: u32, address: u64, memories: Vec<MemoryRow>, globals: Vec<Value>) -> Instance {
    Instance {
        number,
        address: Hex(address),
        threads: Vec::new(),
        memories,
        memories_why: None,
        globals: globals.into_iter().map(|value| GlobalRow { value, mutable: Some(true) }).collect(),
        globals_why: None,
        tables: Vec::new(),
        tables_why: None,
    }
}

fn frame(module: u32, function: u32, instance: Option<u64>, offset: Option<u64>) -> Frame {
    Frame {
        function: Some(Function { index: Some(function), local_index: function.checked_sub(1), ..Function::default() }),
        wasm: Some(WasmPosition {
            module_index: Some(module),
            op_index: None,
            op_position: if offset.is_some() { OpPosition::At } else { OpPosition::Unknown },
            offset: offset.map(Hex),
            op: None,
            file: None,
            line: None,
        }),
        instance: instance.map(Hex),
        locals: Some(Vec::new()),
        stack: Some(Vec::new()),
        ..Frame::new(0, 0x1000, FrameKind::Wasm)
    }
}

/// Two modules. The second has two instances, which share a memory and a global.
fn example() -> (Report, Contents) {
    let mut report = Report::new(Target {
        kind: TargetKind::Core,
        pid: None,
        executable: Some("/srv/host".to_string()),
        description: None,
        path: None,
        signal: None,
        facts: Default::default(),
    });
    let module = |index: u32, name: &str| ReportModule {
        index: Some(index),
        name: Some(name.to_string()),
        code_start: None,
        code_end: None,
        functions: None,
        tracked: None,
        backend: None,
        routes: Vec::new(),
        checks: Vec::new(),
        wasm_file: None,
        wasm_compared: None,
        problem: None,
    };
    let modules = vec![module(0, "one"), module(1, "two")];
    report.runtimes.push(Runtime { name: RuntimeName::Wasmtime, modules });
    let mut youngest = frame(1, 7, Some(0x300), Some(0x72));
    youngest.locals = Some(vec![
        value(0, Some(Ty::I32), Some(0xffff_ffff_ffff_fff7), None),
        value(1, Some(Ty::I64), Some(u128::from(u64::MAX)), None),
        value(2, Some(Ty::F32), Some(1.5f32.to_bits().into()), None),
        value(3, Some(Ty::F64), Some((-2.25f64).to_bits().into()), None),
        value(4, Some(Ty::V128), Some(1), None),
        value(5, None, Some(5), None),
        value(6, Some(Ty::I32), None, None),
    ]);
    youngest.stack = Some(vec![value(0, Some(Ty::I32), Some(12), None)]);
    let mut old = frame(0, 1, None, None);
    old.stack = None;
    let thread = |tid, name: Option<&str>, frames| Thread {
        tid: Some(tid),
        name: name.map(str::to_string),
        frames,
        end: None,
        signal: None,
        state: None,
        notes: Vec::new(),
    };
    let native = Frame::new(1, 0x2000, FrameKind::Native);
    report.threads = vec![
        thread(10, Some("main"), vec![youngest, native.clone(), old, frame(1, 2, Some(0xbad), Some(2))]),
        thread(11, None, vec![native]),
        thread(12, None, vec![frame(1, 3, Some(0x200), None)]),
    ];
    let shared = value(0, Some(Ty::I64), Some(7), Some(0x9000));
    let mut contents = Contents::of(&report);
    let module = |module_index, instances| ModuleContents {
        module_index,
        functions: None,
        functions_why: None,
        exports: None,
        exports_why: None,
        instances_why: None,
        instances,
    };
    let own = vec![
        shared.clone(),
        value(1, Some(Ty::F32), Some(0x7fc0_0001), Some(0x9010)),
        value(2, Some(Ty::V128), Some(3 << 100), Some(0x9020)),
        value(3, Some(Ty::FuncRef), Some(0x1234), Some(0x9030)),
        value(4, Some(Ty::F64), None, None),
    ];
    let unknown = MemoryRow { base: None, size: None, why: Some(Why::other("torn")), ..memory(0, 0, 0) };
    contents.contents = vec![
        module(0, vec![instance(0, 0x100, vec![unknown], Vec::new())]),
        module(
            1,
            vec![
                instance(1, 0x200, vec![memory(0, 0x10_0000, 0x2_0000)], vec![shared.clone()]),
                instance(2, 0x300, vec![memory(0, 0x20_0000, 0x1_0000), memory(1, 0x10_0000, 0x2_0000)], own),
            ],
        ),
    ];
    (report, contents)
}

/// The bytes of the memories: byte `0x100` of each unit that is not zero has that unit's number. One page cannot be
/// read.
fn bytes(address: u64, buf: &mut [u8]) -> bool {
    for (i, b) in buf.iter_mut().enumerate() {
        let at = address + i as u64;
        *b = match at {
            0x10_0100 => 1,
            0x10_1100 => 2,
            0x11_f100 => 3,
            0x20_ffff => 4,
            0x20_5000..0x20_6000 => return false,
            _ => 0,
        };
    }
    true
}

fn dump(report: &Report, contents: &Contents, compat: Option<Compat>) -> (Vec<u8>, Vec<String>) {
    let mut out = Vec::new();
    let mut input =
        CoredumpInput { report, contents, read: &mut bytes, body_offset: &mut |_, local| (local != 1).then_some(0x70) };
    let notes = write(&mut input, compat, &mut out).unwrap();
    (out, notes)
}

#[derive(Default)]
struct Read {
    name: String,
    modules: Vec<String>,
    instances: Vec<CoreDumpInstance>,
    stacks: Vec<(String, Vec<CoreDumpStackFrame>)>,
    memories: Vec<u64>,
    globals: Vec<wasmparser::ValType>,
    data: Vec<(u32, i32, Vec<u8>)>,
}

fn read(bytes: &[u8]) -> Read {
    wasmparser::Validator::new_with_features(wasmparser::WasmFeatures::all()).validate_all(bytes).unwrap();
    let mut out = Read::default();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.unwrap() {
            Payload::CustomSection(section) => match section.as_known() {
                KnownCustom::CoreDump(core) => out.name = core.name.to_string(),
                KnownCustom::CoreDumpModules(m) => out.modules = m.modules.iter().map(|m| m.to_string()).collect(),
                KnownCustom::CoreDumpInstances(i) => out.instances = i.instances,
                KnownCustom::CoreDumpStack(s) => out.stacks.push((s.name.to_string(), s.frames)),
                _ => panic!("{}", section.name()),
            },
            Payload::MemorySection(all) => out.memories = all.into_iter().map(|m| m.unwrap().initial).collect(),
            Payload::GlobalSection(all) => out.globals = all.into_iter().map(|g| g.unwrap().ty.content_type).collect(),
            Payload::DataSection(all) => {
                for data in all {
                    let data = data.unwrap();
                    let wasmparser::DataKind::Active { memory_index, offset_expr } = data.kind else { panic!() };
                    let wasmparser::Operator::I32Const { value } = offset_expr.get_operators_reader().read().unwrap()
                    else {
                        panic!()
                    };
                    out.data.push((memory_index, value, data.data.to_vec()));
                }
            }
            _ => {}
        }
    }
    out
}

#[test]
fn everything_stands_where_a_reader_looks_for_it() {
    let (report, contents) = example();
    let (bytes, notes) = dump(&report, &contents, None);
    let r = read(&bytes);
    assert_eq!((r.name.as_str(), r.modules.as_slice()), ("/srv/host", &["one".to_string(), "two".to_string()][..]));
    // The unknown memory comes first, then each known memory once.
    assert_eq!(r.memories, [0, 2, 1]);
    let instances: Vec<_> =
        r.instances.iter().map(|i| (i.module_index, i.memories.clone(), i.globals.clone())).collect();
    let expected = [
        (0, vec![0], vec![]),
        (1, vec![1], vec![0]),
        (1, vec![2, 1], vec![0, 1, 2, 3, 4]),
        // The first is for the frame whose instance is not known, although one instance of its module is listed; the
        // second for the frame whose instance is not among those listed.
        (0, vec![], vec![]),
        (1, vec![], vec![]),
    ];
    assert_eq!(instances, expected);
    let types: Vec<String> = r.globals.iter().map(|t| t.to_string()).collect();
    assert_eq!(types, ["i64", "f32", "v128", "externref", "externref"]);
    // Segments are whole units that are not zero, joined where they touch.
    let data: Vec<_> = r.data.iter().map(|(m, at, d)| (*m, *at, d.len())).collect();
    assert_eq!(data, [(1, 0, 0x2000), (1, 0x1_f000, 0x1000), (2, 0xf000, 0x1000)]);
    assert_eq!((r.data[0].2[0x100], r.data[0].2[0x1100], r.data[1].2[0x100], r.data[2].2[0xfff]), (1, 2, 3, 4));

    let names: Vec<&str> = r.stacks.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["main (10)", "12"]);
    let frames = &r.stacks[0].1;
    let places: Vec<_> = frames.iter().map(|f| (f.instanceidx, f.funcidx, f.codeoffset)).collect();
    assert_eq!(places, [(2, 7, 2), (3, 1, 0), (4, 2, 0)]);
    let values: Vec<String> = frames[0].locals.iter().map(|v| format!("{v:?}")).collect();
    assert_eq!(values[..2], ["I32(-9)", "I64(-1)"]);
    let floats = [format!("F32(Ieee32({}))", 1.5f32.to_bits()), format!("F64(Ieee64({}))", (-2.25f64).to_bits())];
    assert_eq!(values[2..4], floats);
    assert_eq!(values[4..], ["Missing", "Missing", "Missing"]);
    assert_eq!(format!("{:?}", frames[0].stack), "[I32(12)]");

    let expected = [
        "memory 0 of instance 0 is not known and stands as an empty one: torn",
        "0x1000 bytes of the memory at 0x200000 cannot be read and are left out",
        "the instance of some frames of one is not known: they stand in one without memories and globals",
        "the instance of some frames of two is not known: they stand in one without memories and globals",
        "3 frames have no code offset (0 stands for it): name the .wasm with --wasm",
        "1 frames have no operand stack: it is not known",
        "2 globals are references or not known: each stands as a null externref",
        "3 values are missing: not known, without a type, or of one that the format does not have",
    ];
    assert_eq!(notes, expected);
}

#[test]
fn wasmgdb_gets_one_memory_and_words_of_full_length() {
    let (report, contents) = example();
    let (bytes, _) = dump(&report, &contents, Some(Compat::Wasmgdb));
    let sections: Vec<_> = Parser::new(0).parse_all(&bytes).map(Result::unwrap).collect();
    let mut stacks = Vec::new();
    for payload in &sections {
        match payload {
            Payload::MemorySection(all) => assert_eq!(all.count(), 1),
            Payload::GlobalSection(_) => panic!(),
            Payload::DataSection(all) => {
                let all: Vec<_> = all.clone().into_iter().map(Result::unwrap).collect();
                assert_eq!((all.len(), all[0].data.len(), all[0].data[0xffff]), (1, 0x1_0000, 4));
            }
            Payload::CustomSection(s) if s.name() == "corestack" => stacks.push(s.data()),
            _ => {}
        }
    }
    // The section has version, name and frames. A frame has version, instance, function, offset, both counts and
    // locals.
    let mut expected = b"\x00\x09main (10)\x03\x00\x02\x07\x02\x07\x00".to_vec();
    expected.extend(b"\x7f\xf7\xff\xff\xff\x7e\xff\xff\xff\xff\xff\xff\xff\xff\x7d");
    expected.extend(1.5f32.to_le_bytes());
    assert_eq!(stacks[0][..expected.len()], expected);
}

#[test]
fn many_stretches_are_joined_over_their_smallest_gaps() {
    let unit = |memory, n: u64| Segment { memory, start: n * UNIT, len: UNIT };
    let mut all: Vec<Segment> = (0..100).map(|n| unit(0, 2 * n)).chain([unit(0, 1000), unit(1, 1001)]).collect();
    thin(&mut all, 10);
    assert_eq!(all, [Segment { memory: 0, start: 0, len: 199 * UNIT }, unit(0, 1000), unit(1, 1001)]);
    let mut few = vec![unit(0, 0), unit(0, 2)];
    thin(&mut few, 10);
    assert_eq!(few.len(), 2);
}

#[test]
fn damaged_descriptions_do_no_harm() {
    let (report, mut contents) = example();
    let wild = MemoryRow { base: Some(Hex(u64::MAX - 10)), size: Some(0x2_0000), ..memory(0, 0, 0) };
    contents.contents[0].instances[0].memories = vec![wild];
    contents.contents[1].instances.clear();
    let mut out = Vec::new();
    let mut input =
        CoredumpInput { report: &report, contents: &contents, read: &mut |_, _| false, body_offset: &mut |_, _| None };
    let notes = write(&mut input, None, &mut out).unwrap();
    assert!(notes.iter().any(|n| n.contains("cannot be read")), "{notes:?}");
    let r = read(&out);
    assert!(r.data.is_empty() && r.instances.len() == 3);
}

#[test]
fn notes_memories_and_data_have_an_end() {
    let mut notes = Notes::default();
    (0..=limits::MAX_ROUTE_NOTES).for_each(|n| notes.add(n.to_string()));
    assert_eq!(notes.finish().len(), limits::MAX_ROUTE_NOTES);

    let (_, mut contents) = example();
    for (memory64, size, known) in [
        (true, limits::MAX_EXPORTED_MEMORY, true),
        (true, limits::MAX_EXPORTED_MEMORY + 1, false),
        (false, 1 << 32, true),
        (false, (1 << 32) + 1, false),
    ] {
        let row = MemoryRow { memory64, ..memory(0, 0x10_0000, size) };
        contents.contents = vec![ModuleContents {
            instances: vec![instance(0, 0x100, vec![row], Vec::new())],
            ..contents.contents.remove(0)
        }];
        let (memories, _) = memories(&contents, None, None, &mut Notes::default());
        assert_eq!(memories[0].size, if known { size } else { 0 });
    }

    let of = |size| vec![Memory { base: 0, size, memory64: true, row: memory(0, 0, size) }];
    // Every eighth unit is not zero.
    let mut sparse = |at: u64, buf: &mut [u8]| {
        buf.iter_mut().zip(at..).for_each(|(b, at)| *b = u8::from((at / UNIT).is_multiple_of(8)));
        true
    };
    let size = (limits::MAX_DATA_SEGMENTS as u64 + 1) * 8 * UNIT;
    let few = segments(&mut sparse, &of(size - 8 * UNIT), &mut Notes::default());
    assert_eq!(few.len(), limits::MAX_DATA_SEGMENTS);
    assert_eq!(segments(&mut sparse, &of(size), &mut Notes::default()).len(), 1);

    let mut full = |_, buf: &mut [u8]| {
        buf.fill(1);
        true
    };
    for most in [segments, one_segment] {
        let mut notes = Notes::default();
        let all = most(&mut full, &of(limits::MAX_DATA_BYTES + UNIT), &mut notes);
        assert_eq!(all.iter().map(|s| s.len).collect::<Vec<_>>(), [limits::MAX_DATA_BYTES]);
        assert!(notes.finish()[0].contains("are left out"));
    }
}

#[test]
fn frames_without_locals_and_operands_are_told_of_once() {
    let noted = |locals: usize, operands: usize| {
        let mut notes = Notes::default();
        (0..locals).for_each(|_| notes.count(NO_LOCALS));
        (0..operands).for_each(|_| notes.count(NO_OPERANDS));
        notes.finish()
    };
    assert_eq!(noted(9, 9), ["9 frames have no locals and no operand stack: they are not known"]);
    assert_eq!(noted(2, 1), [format!("2 {NO_LOCALS}"), format!("1 {NO_OPERANDS}")]);
    assert_eq!(noted(0, 1), [format!("1 {NO_OPERANDS}")]);
    assert_eq!(noted(0, 0), [""; 0]);
}
