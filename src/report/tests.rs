//! Tests each form of output with one report that has everything in it.

use super::facts::{Fits, NativeObject, SignalDetails, ThreadState, ThreadStateKind};
use super::text::TextOptions;
use super::*;
use crate::arch::{Reg, x64};
use crate::runtime::{self, Place, Slot, Why};
use crate::wasm::ValType;

fn known(ty: Option<ValType>, bits: u64, place: Place) -> runtime::Value {
    runtime::Value { ty, slot: Slot::Known { bits: bits.into(), place } }
}

fn reg(reg: Reg) -> Place {
    Place::Register { reg, saved_at: None }
}

fn memory(base: Reg, offset: i64) -> Place {
    Place::Memory { base, offset, address: 0x7ffd_3000u64.wrapping_add_signed(offset) }
}

fn native(index: u32, pc: u64, name: Option<&str>, module: &str) -> Frame {
    Frame {
        trust: Some(Trust::Cfi),
        module: Some(module.to_string()),
        module_offset: Some(Hex(pc & 0xf_ffff)),
        function: name.map(|n| Function {
            name: Some(n.to_string()),
            name_source: Some(NameSource::Symbol),
            offset: Some(Hex(0x1f)),
            inlined: Some(false),
            ..Function::default()
        }),
        ..Frame::new(index, pc, FrameKind::Native)
    }
}

fn wasm(index: u32, pc: u64, name: Option<&str>, function: u32, position: OpPosition) -> Frame {
    Frame {
        trust: Some(Trust::Runtime),
        module: Some("app.wasm".to_string()),
        module_offset: Some(Hex(pc & 0xffff)),
        function: Some(Function {
            name: name.map(str::to_string),
            name_source: name.map(|_| NameSource::NameSection),
            index: Some(function),
            local_index: function.checked_sub(1),
            offset: Some(Hex(0x41)),
            ..Function::default()
        }),
        wasm: Some(WasmPosition {
            module_index: Some(0),
            op_index: Some(23),
            op_position: position,
            offset: Some(Hex(0x10d)),
            op: (position == OpPosition::At).then(|| "call 0".to_string()),
            file: None,
            line: None,
        }),
        instance: Some(Hex(0x558d_2b00_1000)),
        ..Frame::new(index, pc, FrameKind::Wasm)
    }
}

/// A report with two threads, and with every kind of frame, value, place, reason and end but one.
fn rich() -> Report {
    let mut report = Report::new(Target {
        kind: TargetKind::Core,
        pid: Some(4711),
        executable: Some("/srv/near-host".to_string()),
        description: Some("core core.4711 of near-host (pid 4711)".to_string()),
        path: Some("core.4711".to_string()),
        signal: Some(6),
        facts: Default::default(),
    });
    report.wstate_version = "0.0.0-test".to_string();
    report.runtimes.push(Runtime {
        name: RuntimeName::Singlepass,
        modules: vec![
            Module {
                index: Some(0),
                name: Some("app.wasm".to_string()),
                code_start: Some(Hex(0x7f3a_b0d6_0000)),
                code_end: Some(Hex(0x7f3a_b0d6_4000)),
                functions: Some(12),
                tracked: Some(true),
                backend: Some("singlepass".to_string()),
                routes: vec![FoundBy::Vmctx, FoundBy::Heap],
                checks: vec!["code equals the mapping".to_string(), "12 of 12 functions lie in it".to_string()],
                wasm_file: Some("/srv/app.wasm".to_string()),
                wasm_compared: Some(Compared::PositionsDescription),
                problem: None,
            },
            Module {
                index: Some(1),
                name: None,
                code_start: None,
                code_end: None,
                functions: Some(1),
                tracked: Some(false),
                backend: Some("singlepass".to_string()),
                routes: vec![],
                checks: vec![],
                wasm_file: None,
                wasm_compared: None,
                problem: Some("/srv/other.wasm does not fit: 3 functions, the module has 1".to_string()),
            },
        ],
    });
    report.objects_problems.push("/usr/lib/libfoo.so.1 is not there: its frames have no names".to_string());
    report.notes.push("the core is cut off: 3 of 7 MiB".to_string());

    let mut stop = native(3, 0x558d_2a1f_4c10, Some("near_host::stop"), "/srv/near-host");
    if let Some(f) = &mut stop.function {
        f.file = Some("src/main.rs".to_string());
        f.line = Some(93);
        f.inlined = Some(true);
    }
    let mut leaf = wasm(4, 0x7f3a_b0d6_0a31, Some("leaf"), 2, OpPosition::At);
    leaf.registers = Some([("rsp".to_string(), Hex(0x7ffd_3000)), ("r12".to_string(), Hex(9))].into());
    let saved = Place::Register { reg: x64::RBX, saved_at: Some(0x7ffd_2ff0) };
    let locals = vec![
        known(Some(ValType::I32), 0xffff_ffff_0000_0009, reg(x64::R12)),
        known(Some(ValType::I64), 0x1111_1111_1111_1111, reg(x64::R13)),
        known(Some(ValType::F64), 3.25f64.to_bits(), reg(x64::R14)),
        known(Some(ValType::I32), 333, saved),
        known(Some(ValType::I32), 444, memory(x64::RBP, -0x28)),
        known(None, 0xffff_8000_0000_0001, memory(x64::RBP, -0x30)),
        runtime::Value {
            ty: Some(ValType::F32),
            slot: Slot::Unknown(Why::other("r10 is not preserved by calls, and no callee that is known saved it")),
        },
        known(Some(ValType::F32), 0x7fc0_0001, reg(x64::XMM15)),
    ];
    (leaf.locals, leaf.locals_why) = Value::list(&Ok(locals));
    (leaf.stack, leaf.stack_why) = Value::list(&Ok(vec![
        known(Some(ValType::I32), 340, memory(x64::RSP, 0x18)),
        known(Some(ValType::F64), 4.25f64.to_bits(), memory(x64::RSP, 0x10)),
        known(Some(ValType::I64), 99, Place::Constant),
    ]));
    let mut fact = wasm(5, 0x7f3a_b0d6_0c02, None, 3, OpPosition::After);
    fact.locals = Some(vec![]);
    fact.stack_why = Some(Why::other("between two points of the map"));
    fact.notes.push("stopped in the epilogue".to_string());
    let mut trampoline = Frame::new(6, 0x7f3a_b0d6_0005, FrameKind::Trampoline);
    trampoline.trust = Some(Trust::Recognised);
    let mut by_pointer = native(7, 0x558d_2a1f_5000, Some("near_host::main"), "/srv/near-host");
    by_pointer.trust = Some(Trust::FramePointer);
    let mut innermost = native(0, 0x7f3a_b100_0123, None, "/usr/lib/libfoo.so.1");
    innermost.trust = Some(Trust::Context);
    report.threads.push(Thread {
        tid: Some(4711),
        name: Some("near-host".to_string()),
        frames: vec![
            innermost,
            native(1, 0x7f3a_b110_0123, Some("abort"), "/usr/lib/libc.so.6"),
            Frame::new(2, 0x1234, FrameKind::Unknown),
            stop,
            leaf,
            fact,
            trampoline,
            by_pointer,
        ],
        end: Some(End { kind: EndKind::Bottom, why: None }),
        signal: Some(6),
        state: None,
        notes: vec![],
    });
    let mut deep = wasm(12, 0x7f3a_b0d6_0a31, Some("spin"), 4, OpPosition::Unknown);
    deep.locals_why = Some(Why::other("the frame's base is not known"));
    report.threads.push(Thread {
        tid: Some(4712),
        name: None,
        frames: vec![deep],
        end: Some(End {
            kind: EndKind::Lost,
            why: Some("no memory can be read at 0x7ffd10000000 (8 bytes), the core is cut off".to_string()),
        }),
        signal: None,
        state: None,
        notes: vec!["registers are from after the stop".to_string()],
    });
    report.threads.push(Thread {
        tid: Some(4713),
        name: Some("gone".to_string()),
        frames: vec![],
        end: Some(End::no_registers(Some("not in the core"))),
        signal: Some(77),
        state: None,
        notes: vec![],
    });
    report
}

const PLAIN: TextOptions = TextOptions { brief: false, wasm_only: false, color: false, verbose: false, fold: false };

#[test]
fn text() {
    insta::assert_snapshot!(rich().to_text(PLAIN));
}

#[test]
fn text_brief() {
    insta::assert_snapshot!(rich().to_text(TextOptions { brief: true, ..PLAIN }));
}

#[test]
fn text_wasm_only() {
    insta::assert_snapshot!(rich().to_text(TextOptions { wasm_only: true, ..PLAIN }));
}

#[test]
fn text_verbose() {
    insta::assert_snapshot!(rich().to_text(TextOptions { verbose: true, ..PLAIN }));
}

#[test]
fn text_color() {
    insta::assert_snapshot!(rich().to_text(TextOptions { color: true, ..PLAIN }).replace('\u{1b}', "^["));
}

#[test]
fn json_compact() {
    insta::assert_snapshot!(rich().to_json(false));
}

#[test]
fn json_pretty() {
    insta::assert_snapshot!(rich().to_json(true));
}

#[cfg(feature = "cli")]
#[test]
fn json_schema() {
    insta::assert_snapshot!(json::schema());
}

#[test]
fn colour_adds_nothing_but_escapes() {
    let mut plain = String::new();
    let colored = rich().to_text(TextOptions { color: true, ..PLAIN });
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain += before;
        rest = after.split_once('m').map_or("", |(_, r)| r);
    }
    assert_eq!(plain + rest, rich().to_text(PLAIN));
}

#[test]
fn lists_of_values_fit_the_width() {
    for line in rich().to_text(TextOptions { verbose: true, ..PLAIN }).lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("locals") || trimmed.starts_with("stack") {
            assert!(line.chars().count() <= 120, "{line}");
        }
    }
}

#[test]
fn a_reason_longer_than_a_line_is_broken_between_words() {
    let mut report = rich();
    report.threads.truncate(1);
    report.threads[0].frames.truncate(1);
    report.threads[0].frames[0].stack_why = Some(Why::other("word ".repeat(55).trim()));
    let text = report.to_text(PLAIN);
    let lines: Vec<&str> = text.lines().filter(|l| l.contains("word")).collect();
    assert!(lines.len() >= 3 && lines.iter().all(|l| l.chars().count() <= 120), "{text}");
    assert_eq!(lines.iter().map(|l| l.matches("word").count()).sum::<usize>(), 55);
}

#[test]
fn the_keys_that_others_rely_on() {
    let json: serde_json::Value = serde_json::from_str(&rich().to_json(false)).unwrap();
    let has = |v: &serde_json::Value, keys: &[&str]| {
        let object = v.as_object().unwrap();
        for key in keys {
            assert!(object.contains_key(*key), "{key} in {object:?}");
        }
    };
    let thread = &json["threads"][0];
    has(thread, &["tid", "name", "frames", "end"]);
    for frame in thread["frames"].as_array().unwrap() {
        has(frame, &["index", "pc", "kind", "trust", "module", "function", "wasm", "locals", "stack"]);
    }
    let leaf = &thread["frames"][4];
    has(&leaf["function"], &["name", "index", "local_index", "file", "line", "inlined"]);
    has(&leaf["wasm"], &["op_index", "offset"]);
    for value in leaf["locals"].as_array().unwrap() {
        has(value, &["index", "type", "bits", "place", "why"]);
    }
    assert_eq!(leaf["pc"], "0x7f3ab0d60a31");
    assert_eq!(leaf["locals"][0]["bits"], "0xffffffff00000009");
}

#[test]
fn a_place_without_an_operator_number_is_its_offset() {
    let report = rich();
    let mut frame = wasm(4, 0x7f3a_b0d6_0a31, Some("leaf"), 1, OpPosition::At);
    let place = frame.wasm.as_mut().unwrap();
    (place.op_index, place.op, place.offset) = (None, None, Some(Hex(0x72)));
    frame.function.as_mut().unwrap().inlined = Some(true);
    let line = text::render_frame(&report, &frame, PLAIN);
    assert_eq!(line, " #4  0x00007f3ab0d60a31 * leaf (inlined)  [app.wasm func 1 +0x72]  singlepass\n");
    frame.wasm.as_mut().unwrap().op = Some("call 0".to_string());
    assert!(text::render_frame(&report, &frame, PLAIN).contains("[app.wasm func 1, call 0, +0x72]"));
}

#[test]
fn variables_of_the_source_stand_below_the_locals() {
    let variable = |name: &str, value: Result<&str, &str>| {
        let known = |text: &str| runtime::SourceValue { text: text.into(), bytes: vec![5], place: "[fp-0x10]".into() };
        let value = value.map(known).map_err(Why::other);
        Variable::new(&runtime::SourceVariable { name: name.to_string(), ty: Some("int".to_string()), value })
    };
    let mut frame = wasm(0, 0x7f3a_b0d6_0a31, Some("leaf"), 1, OpPosition::Unknown);
    let json = |frame: &Frame| serde_json::to_value(frame).unwrap();
    assert!(json(&frame).get("variables").is_none());
    let vector = known(Some(ValType::V128), 1, Place::Address(0x7f00));
    let vector = match vector.slot {
        Slot::Known { bits, place } => runtime::Value { slot: Slot::Known { bits: bits << 127, place }, ..vector },
        other => runtime::Value { slot: other, ..vector },
    };
    frame.locals = Some(vec![Value::new(0, &vector)]);
    frame.stack_why = Some(Why::other("not recorded"));
    frame.variables = vec![variable("n", Ok("5")), variable("gone", Err("optimized out"))];
    let text = text::render_frame(&rich(), &frame, PLAIN);
    let lines: Vec<&str> = text.lines().skip(1).map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "locals  0 v128 0x80000000000000000000000000000000 [0x7f00]",
            "vars    n int 5 [fp-0x10]   gone int ? (optimized out)",
            "stack   not known: not recorded"
        ]
    );
    assert_eq!(json(&frame)["variables"][1]["why"], "optimized out");
    assert_eq!(json(&frame)["locals"][0]["bits"], "0x80000000000000000000000000000000");
}

#[cfg(feature = "cli")]
#[test]
fn the_schema_describes_every_key_and_leaves_room_for_more() {
    let schema: serde_json::Value = serde_json::from_str(&json::schema()).unwrap();
    fn check(name: &str, object: &serde_json::Value) {
        if let Some(properties) = object["properties"].as_object() {
            for (key, property) in properties {
                assert!(property["description"].is_string(), "{name}.{key} has no description");
            }
        }
        assert!(object.get("additionalProperties").is_none(), "{name} is closed");
    }
    check("Report", &schema);
    for (name, object) in schema["$defs"].as_object().unwrap() {
        check(name, object);
    }
}

fn object(text: &str) -> NativeObject {
    NativeObject {
        path: text.to_string(),
        start: Hex(0x40_0000),
        end: Hex(0x40_2000),
        build_id: Some(text.to_string()),
        file: None,
        fits: Some(Fits::BuildId),
        from_memory: false,
        deleted: false,
        symbols: None,
        debug_info: None,
        debug_file: None,
        problem: Some(text.to_string()),
    }
}

fn details(system_call: Option<&str>) -> SignalDetails {
    SignalDetails {
        code: 1,
        meaning: None,
        address: None,
        sender_pid: None,
        sender_uid: None,
        system_call: system_call.map(str::to_string),
    }
}

#[test]
fn the_first_lines_say_how_a_process_ended_and_who_it_was() {
    let mut target = rich().target;
    let end = |target: &Target| header::end_of(target).unwrap();
    assert_eq!(end(&target), "ended by SIGABRT");
    let say = |target: &mut Target, meaning: &str| SignalDetails {
        code: 1,
        meaning: Some(meaning.to_string()),
        ..target.facts.signal_details.take().unwrap_or(details(None))
    };
    target.signal = Some(libc::SIGSEGV);
    let details = SignalDetails { address: Some(Hex(0x10)), ..say(&mut target, "address not mapped") };
    target.facts.signal_details = Some(details);
    assert_eq!(end(&target), "ended by SIGSEGV (address not mapped) at 0x0000000000000010");
    for (pid, expected) in [
        (Some(4711), "ended by SIGSEGV (sent by tgkill by itself)"),
        (Some(7), "ended by SIGSEGV (sent by tgkill by process 7 of user 1000)"),
        (None, "ended by SIGSEGV (sent by tgkill by a process outside of its pid namespace)"),
    ] {
        let details = say(&mut target, "sent by tgkill");
        let details = SignalDetails { address: None, sender_pid: pid, sender_uid: Some(1000), ..details };
        target.facts.signal_details = Some(details);
        assert_eq!(end(&target), expected);
    }
    target.signal = Some(libc::SIGSTOP);
    assert_eq!(end(&target), "stopped by SIGSTOP");
    target.signal = None;
    assert_eq!(header::end_of(&target), None);

    assert_eq!(header::lines(&target, true), Vec::<String>::new());
    target.facts.uid = Some(1000);
    target.facts.gid = Some(100);
    target.facts.command_line = Some("near-host --flag".to_string());
    target.facts.command_line_cut = true;
    target.facts.written = Some("2026-01-02T03:04:05Z".to_string());
    let file = Some("/srv/near-host".to_string());
    target.facts.executable_file = Some(NativeObject { file, ..object("0123abcd") });
    let who = "user 1000, group 100, command line near-host --flag (may be longer)";
    let names = "names from /srv/near-host, build id 0123abcd as in the core";
    let written = "the core file was last changed at 2026-01-02T03:04:05Z";
    assert_eq!(header::lines(&target, true), [who, names, written]);
    assert_eq!(header::lines(&target, false), [who, names]);
    target.kind = TargetKind::Process;
    target.facts.executable_file = None;
    assert_eq!(header::lines(&target, false), [who]);
}

#[test]
fn a_thread_says_what_it_did_unless_a_signal_ended_it() {
    let mut thread = rich().threads.remove(1);
    let mut of = |kind, call: Option<&str>, signal| {
        thread.state = Some(ThreadState { kind, system_call: call.map(str::to_string) });
        thread.signal = signal;
        header::state_of(&thread)
    };
    for (kind, call, expected) in [
        (ThreadStateKind::Idle, Some("futex"), "idle in futex"),
        (ThreadStateKind::Idle, Some("999"), "idle in system call 999"),
        (ThreadStateKind::Idle, None, "idle in a system call"),
        (ThreadStateKind::Running, None, "running"),
        (ThreadStateKind::Stopped, None, "stopped"),
    ] {
        assert_eq!(of(kind, call, None).as_deref(), Some(expected));
        // gcore gives each thread the signal with which it stopped it.
        assert_eq!(of(kind, call, Some(libc::SIGSTOP)).as_deref(), Some(expected));
        assert_eq!(of(kind, call, Some(libc::SIGSEGV)), None);
    }
    thread.state = None;
    assert_eq!(header::state_of(&thread), None);
}

#[test]
fn native_objects_as_text() {
    let found = |path: &str, file: &str| NativeObject {
        file: Some(file.to_string()),
        problem: None,
        build_id: Some("0123abcd".to_string()),
        symbols: Some(true),
        debug_info: Some(true),
        ..object(path)
    };
    let objects = [
        found("/srv/app", "/srv/app"),
        NativeObject {
            start: Hex(0x7fff_0000_0000),
            end: Hex(0x7fff_0000_1000),
            deleted: true,
            debug_info: Some(false),
            debug_file: Some("/usr/lib/debug/x.debug".to_string()),
            fits: Some(Fits::Kernel),
            ..found("/srv/lib.so", "/proc/7/map_files/1-2")
        },
        NativeObject { file: None, fits: None, debug_info: Some(false), symbols: Some(false), ..found("[vdso]", "") },
        NativeObject {
            fits: None,
            from_memory: true,
            symbols: Some(false),
            build_id: None,
            problem: Some("/srv/gone.so cannot be opened; try this".to_string()),
            ..object("/srv/gone.so")
        },
        NativeObject { fits: None, problem: Some("it is another one".to_string()), ..object("/srv/\u{1b}.so") },
    ];
    insta::assert_snapshot!(header::objects_lines(&objects).join("\n"));
}

#[test]
fn hostile_names_do_nothing_to_the_terminal() {
    let evil = "\u{1b}]0;owned\u{7}\r\n\u{9b}2J\u{202e}x";
    let mut report = rich();
    let all_strings = |report: &mut Report, text: &str| {
        report.target.description = Some(text.to_string());
        report.target.executable = Some(text.to_string());
        report.notes = vec![text.to_string()];
        let object = NativeObject { file: Some(text.to_string()), debug_file: Some(text.to_string()), ..object(text) };
        let details = SignalDetails { meaning: Some(text.to_string()), ..details(Some(text)) };
        report.target.facts.signal_details = Some(details);
        report.target.facts.command_line = Some(text.to_string());
        report.target.facts.written = Some(text.to_string());
        report.target.facts.executable_file = Some(object);
        let module = &mut report.runtimes[0].modules[0];
        module.name = Some(text.to_string());
        module.backend = Some(text.to_string());
        let thread = &mut report.threads[0];
        thread.name = Some(text.to_string());
        thread.signal = None;
        thread.state = Some(ThreadState { kind: ThreadStateKind::Idle, system_call: Some(text.to_string()) });
        thread.notes = vec![text.to_string()];
        thread.end = Some(End { kind: EndKind::Lost, why: Some(text.to_string()) });
        for frame in &mut thread.frames {
            frame.module = Some(text.to_string());
            frame.locals_why = Some(Why::other(text));
            frame.notes = vec![text.to_string()];
            if let Some(f) = &mut frame.function {
                f.name = Some(text.to_string());
                f.file = Some(text.to_string());
            }
            for v in frame.locals.iter_mut().chain(&mut frame.stack).flatten() {
                v.why = Some(Why::other(text));
            }
        }
    };
    all_strings(&mut report, evil);
    let text = report.to_text(PLAIN);
    assert!(!text.chars().any(|c| c != '\n' && text::is_unprintable(c)), "{text:?}");
    assert!(text.contains("\\u{1b}]0;owned\\u{7}\\u{d}\\u{a}\\u{9b}2J\\u{202e}x"));
    let json = report.to_json(true);
    assert!(!json.chars().any(|c| c != '\n' && text::is_unprintable(c)), "{json:?}");
    let back: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(back["threads"][0]["name"], evil);

    let lines = report.to_text(PLAIN).lines().count();
    all_strings(&mut report, &"n".repeat(1_000_000));
    let text = report.to_text(PLAIN);
    assert!(text.len() < 80_000, "{}", text.len());
    assert!(text.contains('…') && text.lines().count() < lines * 4);
    all_strings(&mut report, "");
    report.to_text(PLAIN);
}

#[test]
fn a_report_of_nulls_still_shows_every_frame() {
    let mut frame = Frame::new(0, 0, FrameKind::Wasm);
    (frame.index, frame.pc) = (None, None);
    let mut report = Report::new(Target {
        kind: TargetKind::Process,
        pid: None,
        executable: None,
        description: None,
        path: None,
        signal: None,
        facts: Default::default(),
    });
    report.threads.push(Thread {
        tid: None,
        name: None,
        frames: vec![frame.clone(), Frame { kind: FrameKind::Unknown, ..frame }],
        end: None,
        signal: None,
        state: None,
        notes: vec![],
    });
    report.wstate_version = String::new();
    insta::assert_snapshot!(report.to_text(PLAIN));
}

#[test]
fn completeness_is_that_of_the_worst_thread() {
    let mut report = rich();
    assert_eq!(report.completeness(), Completeness::Partial);
    report.threads.truncate(1);
    // If code is explained by nothing, or was walked by frame pointer or search, frames may be missing around it.
    assert_eq!(report.completeness(), Completeness::Partial);
    report.threads[0].frames.retain(|f| f.kind != FrameKind::Unknown);
    assert_eq!(report.completeness(), Completeness::Partial);
    report.threads[0].frames.retain(|f| f.trust != Some(Trust::FramePointer));
    assert_eq!(report.completeness(), Completeness::All);
    report.threads[0].end = Some(End { kind: EndKind::Limit, why: None });
    assert_eq!(report.completeness(), Completeness::All);
    report.threads[0].end = None;
    assert_eq!(report.completeness(), Completeness::Partial);
    report.threads[0].frames.clear();
    assert_eq!(report.completeness(), Completeness::Nothing);
    report.threads.clear();
    assert_eq!(report.completeness(), Completeness::Nothing);
}

#[test]
fn selection_keeps_numbers() {
    let mut report = rich();
    report.select(true, true);
    let numbers: Vec<_> = report.threads[0].frames.iter().filter_map(|f| f.index).collect();
    assert_eq!(numbers, [4, 5]);
    assert!(report.threads[0].frames.iter().all(|f| f.locals.is_none() && f.stack_why.is_none()));
}
