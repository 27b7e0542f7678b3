//! Tests each form of output with one report that has everything in it.

use super::facts::{Fits, NativeObject, SignalDetails, TargetFacts, ThreadState, ThreadStateKind};
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

const PLAIN: TextOptions = TextOptions {
    brief: false,
    wasm_only: false,
    color: false,
    verbose: false,
    fold: false,
    all: false,
    full_paths: false,
    full_names: false,
    how_to_see_all: Some("--all"),
};

const CARGO: &str = "/home/user/.cargo/registry/src/index-0123456789abcdef";
const LIBRARY: &str = "/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library";

fn at_line(index: u32, pc: u64, name: &str, file: &str, line: u32, inlined: bool) -> Frame {
    let mut frame = native(index, pc, Some(name), "host");
    if let Some(f) = &mut frame.function {
        (f.name_source, f.file, f.line) = (Some(NameSource::Dwarf), Some(file.to_string()), Some(line));
        f.inlined = Some(inlined);
    }
    frame
}

/// What an attach finds of a host of Wasmtime in its default configuration: a thread in a host function that a guest called,
/// the main thread that waits for it, and threads of an executor.
fn wasmtime() -> Report {
    let mut report = Report::new(Target {
        kind: TargetKind::Process,
        pid: Some(4711),
        executable: Some("/srv/host".to_string()),
        description: Some("process 4711 (host)".to_string()),
        path: None,
        signal: None,
        facts: TargetFacts::default(),
    });
    report.runtimes.push(Runtime {
        name: RuntimeName::Wasmtime,
        modules: vec![Module {
            index: Some(0),
            name: Some("nest".to_string()),
            code_start: Some(Hex(0x7f1b_e54a_e000)),
            code_end: Some(Hex(0x7f1b_e54a_f000)),
            functions: Some(4),
            tracked: Some(false),
            backend: Some("wasmtime 48".to_string()),
            routes: vec![FoundBy::Image],
            checks: vec![],
            wasm_file: None,
            wasm_compared: None,
            problem: Some(crate::runtime::UNRECORDED.to_string()),
        }],
    });
    let guest = |index, pc, name, function| {
        let mut frame = wasm(index, pc, Some(name), function, OpPosition::At);
        frame.module = Some("nest".to_string());
        (frame.locals_why, frame.stack_why) = (Some(Why::NoGuestDebug), Some(Why::NoGuestDebug));
        if let Some(place) = &mut frame.wasm {
            (place.op, place.op_index) = (None, None);
        }
        frame
    };
    let started = |first: u32| {
        let call = "<&dyn core::ops::function::Fn<(), Output = i32> + core::marker::Sync + \
                    core::panic::unwind_safe::RefUnwindSafe as core::ops::function::FnOnce<()>>::call_once";
        let library = |file: &str| format!("{LIBRARY}/{file}");
        vec![
            at_line(first, 0x5576, "call_once<fn(), ()>", &library("core/src/ops/function.rs"), 250, true),
            at_line(
                first + 1,
                0x5576,
                "std::sys::backtrace::__rust_begin_short_backtrace",
                &library("std/src/sys/backtrace.rs"),
                166,
                false,
            ),
            at_line(first + 2, 0x5577, call, &library("core/src/ops/function.rs"), 287, true),
            at_line(first + 3, 0x5577, "std::rt::lang_start_internal", &library("std/src/rt.rs"), 171, false),
            native(first + 4, 0x5578, Some("main"), "host"),
            at_line(first + 5, 0x7f1b, "__libc_start_main_impl", "./csu/../csu/libc-start.c", 360, false),
            native(first + 6, 0x5579, Some("_start"), "host"),
        ]
    };
    let end = || Some(End { kind: EndKind::Bottom, why: None });
    let sleep = "./time/../sysdeps/unix/sysv/linux/clock_nanosleep.c";
    let mut frames = vec![
        at_line(0, 0x7f1b_e5d8_4545, "__GI___clock_nanosleep", sleep, 48, false),
        at_line(
            1,
            0x5576_78f4,
            "std::thread::functions::sleep",
            &format!("{LIBRARY}/std/src/thread/functions.rs"),
            289,
            false,
        ),
        at_line(2, 0x5576_77af, "host::at_stop", "src/main.rs", 73, false),
        at_line(
            3,
            0x5576_77b1,
            "{closure#0}<host::truth::State, wasmtime::runtime::func::{impl#11}::new::{closure_env#0}<host::truth::State, \
             host::import_for::{closure_env#0}>>",
            &format!("{CARGO}/wasmtime-48.0.8/src/runtime/func.rs"),
            2403,
            true,
        ),
        guest(4, 0x7f1b_e54a_e02b, "leaf", 1),
        guest(5, 0x7f1b_e54a_e112, "fact", 2),
        guest(6, 0x7f1b_e54a_e1a6, "run", 4),
        at_line(
            7,
            0x5576_77b0,
            "wasmtime::runtime::func::Func::call_unchecked_raw",
            &format!("{CARGO}/wasmtime-48.0.8/src/runtime/func.rs"),
            1033,
            false,
        ),
        at_line(8, 0x5576_77ac, "host::main", "src/main.rs", 684, false),
    ];
    frames.extend(started(9));
    let thread = |tid, name: &str, frames, end| Thread {
        tid: Some(tid),
        name: Some(name.to_string()),
        frames,
        end,
        signal: None,
        state: None,
        notes: vec![],
    };
    report.threads.push(thread(4711, "host", frames, end()));
    let worker = |tid| {
        let mut frames = vec![
            native(0, 0x7f1b_e5d3, Some("syscall"), "libc.so.6"),
            native(1, 0x5576_1111, Some("std::sys::pal::unix::futex::futex_wait"), "host"),
            native(2, 0x5576_2222, Some("tokio::runtime::scheduler::multi_thread::park::Parker::park"), "host"),
            native(3, 0x5576_3333, Some("tokio::runtime::scheduler::multi_thread::worker::run"), "host"),
        ];
        frames.extend(started(4));
        thread(tid, "tokio-runtime-w", frames, end())
    };
    report.threads.extend([worker(4712), worker(4713)]);
    let mut lost = worker(4714);
    lost.frames.truncate(3);
    lost.frames[2].trust = Some(Trust::FramePointer);
    lost.end = Some(End { kind: EndKind::Lost, why: Some("nothing explains the code at 0x1234".to_string()) });
    lost.notes.push("registers are from after the stop".to_string());
    report.threads.push(lost);
    report.threads.push(thread(4715, "gone", vec![], Some(End::no_registers(Some("it ended")))));
    report
}

#[test]
fn text_of_a_default_wasmtime() {
    insta::assert_snapshot!(wasmtime().to_text(PLAIN));
}

#[test]
fn text_of_a_default_wasmtime_in_full() {
    let full = TextOptions { all: true, full_paths: true, full_names: true, ..PLAIN };
    insta::assert_snapshot!(wasmtime().to_text(full));
}

#[test]
fn text_of_a_default_wasmtime_wasm_only() {
    insta::assert_snapshot!(wasmtime().to_text(TextOptions { wasm_only: true, ..PLAIN }));
}

/// The frames of a text: the first and the last number of each line of frames.
fn numbers(text: &str) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let numbers = line.trim_start().strip_prefix('#')?.split(' ').next()?;
        let (first, last) = numbers.split_once("-#").unwrap_or((numbers, numbers));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

#[test]
fn every_frame_is_on_a_line_of_its_own_or_in_one_of_several() {
    let mut report = wasmtime();
    report.threads.retain(|thread| !thread.frames.is_empty());
    for (options, folded) in [
        (PLAIN, true),
        (TextOptions { fold: true, ..PLAIN }, true),
        (TextOptions { all: true, ..PLAIN }, false),
        (TextOptions { verbose: true, ..PLAIN }, false),
    ] {
        let shown = numbers(&report.to_text(options));
        let all: Vec<u32> = shown.iter().flat_map(|(first, last)| *first..=*last).collect();
        let expected: Vec<u32> = report.threads.iter().flat_map(|t| t.frames.iter().filter_map(|f| f.index)).collect();
        assert_eq!(all, expected);
        assert_eq!(shown.len() < expected.len(), folded);
    }
    // JSON has them all, with whole names and paths.
    let json: serde_json::Value = serde_json::from_str(&report.to_json(false)).unwrap();
    let frames = json["threads"][0]["frames"].as_array().unwrap();
    assert_eq!(frames.len(), report.threads[0].frames.len());
    assert!(frames[9]["function"]["file"].as_str().unwrap().starts_with(LIBRARY));
    // A library has no options to name.
    let text = report.to_text(TextOptions::default());
    assert!(text.contains("... 7 frames of Rust's runtime and the C library\n"), "{text}");
}

#[test]
fn frames_that_were_not_stopped_say_so_in_a_row_too() {
    let mut report = wasmtime();
    report.threads.truncate(2);
    report.threads[1].frames.iter_mut().for_each(|frame| frame.unstopped = true);
    // One that was stopped is in no row with the others.
    report.threads[1].frames[6].unstopped = false;
    let text = report.to_text(PLAIN);
    let rows: Vec<&str> = text.lines().filter(|line| line.contains("... ")).map(str::trim).collect();
    assert_eq!(
        rows,
        [
            "#9-#15  ... 7 frames of Rust's runtime and the C library (--all shows them)",
            "#3-#5  ... 3 frames of Rust's runtime and tokio (--all shows them)  (not stopped)",
            "#7-#10  ... 4 frames of Rust's runtime and the C library (--all shows them)  (not stopped)",
        ]
    );
}

#[test]
fn a_row_that_reaches_into_repeated_frames_loses_none() {
    let mut report = wasmtime();
    report.threads.truncate(1);
    let start = report.threads[0].frames.split_off(9);
    let call = &start[0];
    let user = &report.threads[0].frames[2].clone();
    // A recursion through closures, and the start behind it: the last cycle and the start are one row.
    let mut frames = vec![user.clone()];
    for _ in 0..4 {
        frames.extend([user.clone(), call.clone(), start[1].clone()]);
    }
    frames.extend(start[2..].iter().cloned());
    for (index, frame) in (0..).zip(&mut frames) {
        frame.index = Some(index);
    }
    let count = frames.len() as u32;
    report.threads[0].frames = frames;
    let text = report.to_text(TextOptions { fold: true, ..PLAIN });
    assert!(text.contains("the 3 frames above 3 times more"), "{text}");
    let mut next = 0;
    for line in text.lines().filter(|line| line.trim_start().starts_with('#')) {
        let (first, mut last) = numbers(line)[0];
        if let Some((_, rest)) = line.split_once("to #") {
            last = rest.split(':').next().unwrap().parse().unwrap();
        }
        assert_eq!(first, next, "{text}");
        next = last + 1;
    }
    assert_eq!(next, count, "{text}");
}

#[test]
fn a_row_names_only_those_whose_frames_it_stands_for() {
    let mut report = wasmtime();
    report.threads.truncate(1);
    let start = report.threads[0].frames.split_off(9);
    let user = report.threads[0].frames[2].clone();
    let call = &start[0];
    let mut c_start = call.clone();
    let function = c_start.function.as_mut().unwrap();
    (function.name, function.file, function.inlined) = (Some("_start".to_string()), None, Some(false));
    // The row of machinery begins in the last of the repeated cycles, which has a line of its own.
    let mut frames = vec![user.clone()];
    for _ in 0..4 {
        frames.extend([user.clone(), call.clone(), call.clone()]);
    }
    frames.extend([c_start.clone(), c_start]);
    for (index, frame) in (0..).zip(&mut frames) {
        frame.index = Some(index);
    }
    report.threads[0].frames = frames;
    let text = report.to_text(TextOptions { fold: true, ..PLAIN });
    assert!(text.contains("the 3 frames above 3 times more"), "{text}");
    let rows: Vec<&str> = text.lines().filter(|line| line.contains("... ")).map(str::trim).collect();
    let how = "(--all shows them)";
    assert_eq!(
        rows,
        [
            format!("#2-#3  ... 2 frames of Rust's runtime {how}"),
            format!("#13-#14  ... 2 frames of the C library {how}")
        ]
    );
}

#[test]
fn full_names_and_paths_are_not_cut() {
    let mut report = rich();
    let (name, file) = (format!("app::f<{}\u{1b}>", "n".repeat(5000)), format!("/{}/x.rs", "d".repeat(5000)));
    for frame in &mut report.threads[0].frames {
        if let Some(function) = &mut frame.function {
            (function.name, function.file) = (Some(name.clone()), Some(file.clone()));
        }
    }
    let shown = |full_names, full_paths| {
        let text = report.to_text(TextOptions { full_names, full_paths, ..PLAIN });
        assert!(!text.contains('\u{1b}'), "{text:?}");
        (text.contains(&*escape::escaped(&name)), text.contains(&file))
    };
    assert_eq!(shown(false, false), (false, false));
    assert_eq!(shown(true, false), (true, false));
    assert_eq!(shown(false, true), (false, true));
}

#[test]
fn a_reason_stands_once_and_where_it_belongs() {
    let reason = "the module was compiled without guest_debug";
    let mut report = wasmtime();
    let text = report.to_text(PLAIN);
    assert_eq!(text.matches(reason).count(), 1, "{text}");
    // The two other ways to say it are not needed then.
    assert!(!text.contains("not tracked") && !text.contains(crate::runtime::UNRECORDED), "{text}");
    // Where no values are shown frames give no reasons, and the module says what is wrong with it.
    for text in [
        report.to_text(TextOptions { brief: true, ..PLAIN }),
        text::render_head(&Report { threads: Vec::new(), ..report.clone() }, PLAIN),
    ] {
        assert!(text.matches(reason).count() == 1 && !text.contains("not tracked"), "{text}");
        assert_eq!(text.matches(crate::runtime::UNRECORDED).count(), 1, "{text}");
    }
    // Every place gives the reason in the same words.
    assert!(crate::runtime::UNRECORDED.ends_with(&format!(": {}", Why::NoGuestDebug)));
    // Those of singlepass are the same.
    let mut singlepass = report.clone();
    singlepass.runtimes[0].modules[0].problem = Some(crate::runtime::UNTRACKED.to_string());
    for frame in &mut singlepass.threads[0].frames[4..7] {
        (frame.locals, frame.locals_why, frame.stack_why) = (Some(vec![]), None, Some(Why::NotTracked));
    }
    let text = singlepass.to_text(PLAIN);
    assert!(text.contains("\n  operand stacks are not known in its frames: "), "{text}");
    assert_eq!((text.matches("track_state").count(), text.matches("not known").count()), (1, 1), "{text}");
    // Another problem stays.
    report.runtimes[0].modules[0].problem = Some(format!("the file differs; {}", crate::runtime::UNRECORDED));
    assert!(report.to_text(PLAIN).contains("\n  the file differs\n"));
    // A frame that has its values takes the reason from the module: the others say it themselves.
    let known = |frame: &mut Frame| (frame.locals, frame.locals_why) = (Some(vec![]), None);
    known(&mut report.threads[0].frames[5]);
    let text = report.to_text(PLAIN);
    assert_eq!(text.matches("       locals  not known: the module was").count(), 2, "{text}");
    assert!(text.contains("\n  operand stacks are not known in its frames: the module was"), "{text}");
    assert!(!text.contains("       stack"), "{text}");
    // A reason of a frame stays with it.
    report.threads[0].frames[5].locals = None;
    report.threads[0].frames[5].locals_why = Some(Why::Returning);
    let text = report.to_text(PLAIN);
    assert!(text.contains("\n  locals and operand stacks are not known in its frames: "), "{text}");
    assert_eq!(text.matches("       locals  not known: ").count(), 1, "{text}");
}

#[test]
fn positions_that_were_not_recorded_are_told_once() {
    let note = crate::runtime::NO_POSITIONS;
    let mut report = wasmtime();
    for frame in &mut report.threads[0].frames[4..7] {
        frame.notes = vec![note.to_string(), "another note".to_string()];
    }
    for brief in [false, true] {
        let text = report.to_text(TextOptions { brief, ..PLAIN });
        let said = "\n  positions are not known in its frames: the module was compiled without generate_address_map\n";
        assert!(text.contains(said) && text.matches("generate_address_map").count() == 1, "{text}");
        assert_eq!(text.matches("note: another note").count(), 3, "{text}");
    }
    // One frame knows better.
    report.threads[0].frames[5].notes.clear();
    assert_eq!(report.to_text(PLAIN).matches(&format!("note: {note}")).count(), 2);
}

#[cfg(feature = "cli")]
#[test]
fn what_stands_under_no_module_is_told_elsewhere() {
    let report = wasmtime();
    let reason =
        "locals and operand stacks are not known in frames of nest: the module was compiled without guest_debug";
    let text = text::render_threads(&report, PLAIN);
    assert!(text.starts_with(&format!("note: {reason}")) && text.matches("guest_debug").count() == 1, "{text}");
    assert!(!text::render_threads(&report, TextOptions { brief: true, ..PLAIN }).contains("guest_debug"));
    let whole = report.to_text(PLAIN);
    let threads = text.split_once("\nThread").unwrap().1;
    assert!(whole.ends_with(threads), "the threads are those of the whole report");
    // A frame alone has nothing above it.
    let frame = text::render_frame(&report, &report.threads[0].frames[4], PLAIN);
    assert_eq!(frame.matches("not known: the module was compiled without guest_debug").count(), 2, "{frame}");
    let mut frame = report.threads[0].frames[4].clone();
    (frame.locals, frame.locals_why) = (Some(vec![]), None);
    assert!(text::render_frame(&report, &frame, PLAIN).contains("\n       locals  none\n"));
}

#[test]
fn parameters_stand_apart_from_locals_where_their_number_is_known() {
    let mut report = rich();
    let lines = |report: &Report| -> Vec<String> {
        let text = report.to_text(PLAIN);
        let is_list = |line: &&str| line.starts_with("       params") || line.starts_with("       locals");
        text.lines().filter(is_list).map(|line| line.trim().split("   ").next().unwrap().to_string()).collect()
    };
    let frame = 4;
    report.threads.truncate(1);
    assert_eq!(lines(&report), ["locals  0 i32 9 (r12)"]);
    let mut with = |params: Option<u32>| {
        report.threads[0].frames[frame].function.as_mut().unwrap().params = params;
        lines(&report)
    };
    assert_eq!(with(Some(3)), ["params  0 i32 9 (r12)", "locals  3 i32 333 (rbx)"]);
    assert_eq!(with(Some(0)), ["locals  0 i32 9 (r12)"]);
    assert_eq!(with(Some(8)), ["params  0 i32 9 (r12)"]);
    // A number that cannot be right parts nothing.
    assert_eq!(with(Some(9)), ["locals  0 i32 9 (r12)"]);
    assert_eq!(with(Some(u32::MAX)), ["locals  0 i32 9 (r12)"]);
    let json: serde_json::Value = serde_json::from_str(&report.to_json(false)).unwrap();
    assert_eq!(json["threads"][0]["frames"][frame]["function"]["params"], u32::MAX);
    assert!(json["threads"][0]["frames"][0].get("params").is_none());
}

#[test]
fn a_thousand_threads_without_wasm_are_a_thousand_lines() {
    let mut report = wasmtime();
    let worker = report.threads[1].clone();
    report.threads = (1..=1000).map(|tid| Thread { tid: Some(tid), ..worker.clone() }).collect();
    let text = report.to_text(TextOptions { wasm_only: true, ..PLAIN });
    let lines = text.lines().filter(|l| l.ends_with(" \"tokio-runtime-w\"  no Wasm frames (11 other frames)")).count();
    assert_eq!((lines, text.lines().count()), (1000, 1004));
}

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

#[test]
fn json_is_read_again_as_the_same_report() {
    let report = rich();
    for pretty in [false, true] {
        assert_eq!(Report::from_json(&report.to_json(pretty)).unwrap(), report);
    }
}

#[cfg(feature = "cli")]
#[test]
fn json_schema() {
    insta::assert_snapshot!(json::schema());
}

#[test]
fn colour_adds_nothing_but_escapes() {
    let wasm_only = TextOptions { wasm_only: true, ..PLAIN };
    for (report, options) in [(rich(), PLAIN), (wasmtime(), PLAIN), (wasmtime(), wasm_only)] {
        let mut plain = String::new();
        let colored = report.to_text(TextOptions { color: true, ..options });
        let mut rest = colored.as_str();
        while let Some((before, after)) = rest.split_once('\u{1b}') {
            plain += before;
            rest = after.split_once('m').map_or("", |(_, r)| r);
        }
        assert_eq!(plain + rest, report.to_text(options));
    }
}

#[test]
fn lists_of_values_fit_the_width() {
    for line in rich().to_text(TextOptions { verbose: true, ..PLAIN }).lines() {
        let trimmed = line.trim_start();
        if ["locals", "params", "stack"].iter().any(|label| trimmed.starts_with(label)) {
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
        start: Some(Hex(0x40_0000)),
        end: Some(Hex(0x40_2000)),
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
        code: Some(1),
        meaning: None,
        address: None,
        sender_pid: None,
        sender_uid: None,
        system_call: system_call.map(str::to_string),
    }
}

#[test]
fn the_first_lines_say_the_signal_of_a_core_and_who_it_was() {
    let mut target = rich().target;
    let end = |target: &Target| header::signal_of(target).unwrap();
    assert_eq!(end(&target), "signal SIGABRT");
    let say = |target: &mut Target, meaning: &str| SignalDetails {
        code: Some(1),
        meaning: Some(meaning.to_string()),
        ..target.facts.signal_details.take().unwrap_or(details(None))
    };
    target.signal = Some(libc::SIGSEGV);
    let details = SignalDetails { address: Some(Hex(0x10)), ..say(&mut target, "address not mapped") };
    target.facts.signal_details = Some(details);
    assert_eq!(end(&target), "signal SIGSEGV (address not mapped) at 0x0000000000000010");
    for (pid, expected) in [
        (Some(4711), "signal SIGSEGV (sent by tgkill by itself)"),
        (Some(7), "signal SIGSEGV (sent by tgkill by process 7 of user 1000)"),
        (None, "signal SIGSEGV (sent by tgkill by a process outside of its pid namespace)"),
    ] {
        let details = say(&mut target, "sent by tgkill");
        let details = SignalDetails { address: None, sender_pid: pid, sender_uid: Some(1000), ..details };
        target.facts.signal_details = Some(details);
        assert_eq!(end(&target), expected);
    }
    // A debugger's gcore at a breakpoint or after Ctrl-C writes what the kernel writes at a death, so nothing says that the
    // process ended.
    target.facts.signal_details = None;
    for (signal, expected) in [
        (libc::SIGTRAP, "signal SIGTRAP"),
        (libc::SIGINT, "signal SIGINT"),
        (libc::SIGKILL, "signal SIGKILL"),
        (40, "signal 40"),
        (libc::SIGTSTP, "stopped by SIGTSTP"),
    ] {
        target.signal = Some(signal);
        assert_eq!(end(&target), expected);
    }
    target.signal = Some(libc::SIGSTOP);
    assert_eq!(end(&target), "stopped by SIGSTOP");
    target.signal = None;
    assert_eq!(header::signal_of(&target), None);

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
fn a_thread_says_what_it_did_unless_its_signal_is_one_of_a_death() {
    let mut thread = rich().threads.remove(1);
    let mut of = |kind, call: Option<&str>, signal| {
        thread.state = Some(ThreadState { kind, system_call: call.map(str::to_string) });
        thread.signal = signal;
        header::state_of(&thread)
    };
    for (kind, call, expected) in [
        (ThreadStateKind::Idle, Some("futex"), "idle in futex"),
        (
            ThreadStateKind::Idle,
            Some("restart_syscall"),
            "idle in a call that was interrupted before (restart_syscall)",
        ),
        (ThreadStateKind::Idle, Some("999"), "idle in system call 999"),
        (ThreadStateKind::Idle, None, "idle in a system call"),
        (ThreadStateKind::Running, None, "running"),
        (ThreadStateKind::Stopped, None, "stopped"),
    ] {
        assert_eq!(of(kind, call, None).as_deref(), Some(expected));
        // gcore gives a thread the signal with which it stopped it, also that of Ctrl-C.
        for signal in [libc::SIGSTOP, libc::SIGINT, libc::SIGUSR1] {
            assert_eq!(of(kind, call, Some(signal)).as_deref(), Some(expected));
        }
        for signal in [libc::SIGSEGV, libc::SIGABRT, libc::SIGTRAP] {
            assert_eq!(of(kind, call, Some(signal)), None);
        }
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
            start: Some(Hex(0x7fff_0000_0000)),
            end: Some(Hex(0x7fff_0000_1000)),
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
    let lines = |kind| header::objects_lines(&objects, kind).join("\n");
    insta::assert_snapshot!(lines(TargetKind::Process));
    // The sandbox of a core has no network, so `--debuginfod` alone is refused.
    let (live, core) = (lines(TargetKind::Process), lines(TargetKind::Core));
    let advice = core.matches("--debuginfod --no-sandbox").count();
    assert_eq!((advice, core.matches("--debuginfod").count()), (1, live.matches("--debuginfod").count()), "{core}");
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
    assert!(!text.chars().any(|c| c != '\n' && escape::is_unprintable(c)), "{text:?}");
    assert!(text.contains("\\u{1b}]0;owned\\u{7}\\u{d}\\u{a}\\u{9b}2J\\u{202e}x"));
    let json = report.to_json(true);
    assert!(!json.chars().any(|c| c != '\n' && escape::is_unprintable(c)), "{json:?}");
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
