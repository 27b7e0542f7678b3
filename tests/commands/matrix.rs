//! Every stop, every build of the host, live and from two kinds of cores: what wstate finds is what the runtime itself
//! says, byte for byte, and what wstate displays (by another way: fixed homes of locals) is the same again.

use crate::support::traced::{ask, question, thread};
use crate::support::{Host, Profile, Stopped, Truth, gcore, host_singlepass, kernel_core, wstate};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use wstate::report::{EndKind, Frame, FrameKind, Report};
use wstate::session::{Options, Source};
use wstate::state::ExecutionStateImage;
use wstate::state::codec::decode_bincode;

/// Linear memories with guard pages reserve 6 GiB, which gdb writes out in full: no gcore of those.
const NO_GCORE: bool = false;
const GCORE: bool = true;

/// Stop, options, whether gcore is tried.
type Stop = (&'static str, &'static [&'static str], bool);

/// Each comes once per build of the host.
const STOPS: &[Stop] = &[
    ("sleep", &[], GCORE),
    ("abort", &[], NO_GCORE), // It is gone after its stop.
    ("call-indirect", &[], GCORE),
    ("args7", &[], GCORE),
    ("args7-spilled", &[], GCORE),
    ("args-float", &[], GCORE),
    ("floats", &[], GCORE),
    ("globals", &[], NO_GCORE),
    ("deep", &["--depth", "1000"], GCORE),
    ("nested", &[], GCORE),
    ("modules", &[], NO_GCORE),
    ("moved", &[], GCORE),
    ("cache-loaded", &[], GCORE),
    ("tiering", &[], GCORE),
    ("tiering-boundary", &[], GCORE),
    ("trap-unreachable", &[], GCORE),
    ("trap-div", &[], GCORE),
    ("trap-memory", &[], NO_GCORE),
    ("trap-memory-checked", &[], NO_GCORE),
    ("trap-table", &[], GCORE),
    ("trap-table-null", &[], GCORE),
    ("trap-table-signature", &[], GCORE),
    ("stack-overflow", &[], NO_GCORE),
    ("interrupt", &[], NO_GCORE),
    ("threads", &[], GCORE),
];

/// What compiler and host flags add; on one build of the host, since the code that they change is the guest's.
const FLAGS: &[Stop] = &[
    ("deep", &["--depth", "10000"], NO_GCORE),
    ("sleep", &["--func"], GCORE),
    ("sleep", &["--thread"], GCORE),
    ("sleep", &["--compile-with"], NO_GCORE),
    ("floats", &["--full-preemption"], GCORE),
    ("call-indirect", &["--stack-checks"], GCORE),
    ("trap-div", &["--thread", "--full-preemption", "--stack-checks"], GCORE),
    ("stack-overflow", &["--stack-checks"], NO_GCORE),
    ("trap-memory", &["--bounds-checks", "on"], NO_GCORE),
    ("trap-memory", &["--bounds-checks", "off"], NO_GCORE),
    ("sleep", &["--track-state", "off"], NO_GCORE),
];

#[derive(Default)]
struct Tally {
    compared: usize,
    equal: usize,
    /// The runtime answers with no frames, and so do we.
    empty: usize,
    /// The runtime has no answer.
    no_truth: usize,
    /// Frames and values of the display that were compared.
    frames: usize,
    values: usize,
    threads: usize,
    lost: usize,
}

#[derive(Default)]
struct Results {
    table: BTreeMap<(Profile, &'static str), Tally>,
    different: Vec<String>,
}

/// One target and the truth about it.
struct Case<'a> {
    name: String,
    profile: Profile,
    kind: &'static str,
    source: Source,
    /// The thread that said READY.
    ready: &'a Stopped,
    /// All threads that reached a stop.
    stopped: &'a [Stopped],
    /// Where the runtime's own answers are.
    directory: &'a Path,
}

impl Case<'_> {
    /// The runtime's own answers: one, or one for each thread where there are several.
    fn truths(&self) -> Vec<(&Stopped, Truth)> {
        let suffix = |s: &Stopped| if self.stopped.len() > 1 { format!(".{}", s.stop) } else { String::new() };
        self.stopped.iter().filter_map(|s| Some((s, Truth::read(self.directory, &suffix(s))?))).collect()
    }
}

fn arguments(source: &Source) -> Vec<String> {
    match source {
        Source::Pid(pid) => vec!["attach".into(), pid.to_string()],
        Source::Core { core, .. } => vec!["core".into(), core.display().to_string()],
        other => unreachable!("{other:?}"),
    }
}

/// The first run of Wasm frames, without a native or trampoline frame between.
fn first_run(frames: &[Frame]) -> Vec<&Frame> {
    let from = frames.iter().skip_while(|f| f.kind != FrameKind::Wasm);
    from.take_while(|f| f.kind == FrameKind::Wasm).collect()
}

/// Compares what is displayed with the runtime's answer; returns how many values were compared.
fn compare_display(frames: &[&Frame], image: &ExecutionStateImage) -> Result<usize, String> {
    let mut values = 0;
    if frames.len() < image.frames.len() {
        return Err(format!("{} frames are displayed, the runtime has {}", frames.len(), image.frames.len()));
    }
    for (i, (shown, dump)) in frames.iter().zip(&image.frames).enumerate() {
        let function = shown.function.as_ref().and_then(|f| f.local_index);
        if function != Some(dump.local_function_id as u32) {
            return Err(format!("frame {i}: function {function:?} is displayed, it is {}", dump.local_function_id));
        }
        let operator = shown.wasm.as_ref().and_then(|w| w.op_index);
        if dump.wasm_inst_offset != usize::MAX && operator != Some(dump.wasm_inst_offset as u64) {
            return Err(format!("frame {i}: operator {operator:?} is displayed, it is {}", dump.wasm_inst_offset));
        }
        for (what, shown, why, truth) in [
            ("locals", &shown.locals, &shown.locals_why, &dump.locals),
            ("stack", &shown.stack, &shown.stack_why, &dump.stack),
        ] {
            let Some(list) = shown else { return Err(format!("frame {i}: no {what}: {why:?}")) };
            if list.len() != truth.len() {
                return Err(format!("frame {i}: {} {what} are displayed, it has {}", list.len(), truth.len()));
            }
            for (j, (value, truth)) in list.iter().zip(truth).enumerate() {
                let bits = value.bits.and_then(|b| u64::try_from(b.0).ok());
                // The runtime may know less than we do, but never another value.
                if truth.is_some() && bits != *truth {
                    let why = &value.why;
                    return Err(format!("frame {i}: {what} {j} is displayed as {bits:x?} ({why:?}), it is {truth:x?}"));
                }
                values += truth.is_some() as usize;
            }
        }
    }
    Ok(values)
}

/// The values that the guest's text says, where the first frame is `leaf` of the usual guest.
fn compare_program(stop: &str, frames: &[&Frame]) -> Result<usize, String> {
    let usual = [
        "sleep",
        "abort",
        "moved",
        "cache-loaded",
        "tiering",
        "tiering-boundary",
        "args7",
        "args7-spilled",
        "args-float",
    ];
    let leaf_at = match stop {
        "call-indirect" => 1,
        s if usual.contains(&s) || s.starts_with("trap-") => 0,
        _ => return Ok(0),
    };
    let leaf = frames.get(leaf_at).ok_or_else(|| "there is no frame of leaf".to_string())?;
    let locals = leaf.locals.as_deref().ok_or_else(|| format!("leaf has no locals: {:?}", leaf.locals_why))?;
    let expected: [(u64, u64); 5] = [
        (9, u32::MAX.into()),
        (0x1111_1111_1111_1111, u64::MAX),
        (3.25f64.to_bits(), u64::MAX),
        (333, u32::MAX.into()),
        (444, u32::MAX.into()),
    ];
    for (i, (value, mask)) in expected.iter().enumerate() {
        let bits = locals.get(i).and_then(|v| v.bits).and_then(|b| u64::try_from(b.0).ok()).map(|b| b & mask);
        if bits != Some(*value) {
            return Err(format!("local {i} of leaf is {bits:x?}, the program says {value:x}"));
        }
    }
    Ok(expected.len())
}

/// Every walk ends at the bottom, except that a stack overflow has more frames than are shown.
fn check_threads(stop: &str, report: &Report, tally: &mut Tally, fault: &mut dyn FnMut(String)) {
    for thread in &report.threads {
        tally.threads += 1;
        let end = thread.end.as_ref();
        let kind = end.map(|e| e.kind);
        let expected = kind == Some(EndKind::Bottom) || (kind == Some(EndKind::Limit) && stop == "stack-overflow");
        if !expected {
            tally.lost += 1;
            let last = thread.frames.last().map(|f| (f.pc, f.kind, f.module.clone()));
            fault(format!("thread {:?} does not end at the bottom: {end:?} after {last:x?}", thread.name));
        }
    }
}

fn check(case: &Case<'_>, results: &Mutex<Results>) {
    let mut tally = Tally::default();
    let mut faults = Vec::new();
    let mut fault = |what: String| faults.push(what);
    let truths = case.truths();
    let asked = question(case.source.clone());
    let report = ask(&asked).report;
    check_threads(&case.stopped[0].stop, &report, &mut tally, &mut fault);
    let answered: Vec<i32> = truths.iter().map(|(thread, _)| thread.tid).collect();
    for Stopped { stop, tid, .. } in case.stopped {
        let run = first_run(&thread(&report, *tid as u32).frames);
        match compare_program(stop, &run) {
            Ok(n) => tally.values += n,
            Err(e) => fault(format!("{stop}: {e}")),
        }
        tally.no_truth += !answered.contains(tid) as usize;
    }
    for (stopped, truth) in &truths {
        tally.compared += 1;
        match check_truth(case, (stopped, truth), &asked, &report, &mut tally) {
            Ok(()) => tally.equal += 1,
            Err(e) => fault(format!("{}: {e}", stopped.stop)),
        }
    }
    if let Some(outer) = Truth::read(case.directory, ".outer") {
        tally.compared += 1;
        let image = decoded(&outer);
        let frames = &thread(&report, case.ready.tid as u32).frames;
        let behind: Vec<Frame> = frames
            .iter()
            .skip_while(|f| f.kind != FrameKind::Wasm)
            .skip_while(|f| f.kind == FrameKind::Wasm)
            .cloned()
            .collect();
        match compare_display(&first_run(&behind), &image) {
            Ok(n) => {
                tally.equal += 1;
                tally.values += n;
                tally.frames += image.frames.len();
            }
            Err(e) => fault(format!("outer frames: {e}")),
        }
    }
    let mut results = results.lock().unwrap();
    let name = format!("{} {} {}", case.name, case.profile, case.kind);
    results.different.extend(faults.into_iter().map(|f| format!("{name}: {f}")));
    let sum = results.table.entry((case.profile, case.kind)).or_default();
    sum.compared += tally.compared;
    sum.equal += tally.equal;
    sum.empty += tally.empty;
    sum.no_truth += tally.no_truth;
    sum.frames += tally.frames;
    sum.values += tally.values;
    sum.threads += tally.threads;
    sum.lost += tally.lost;
}

fn decoded(truth: &Truth) -> ExecutionStateImage {
    decode_bincode(&truth.image).expect("the runtime's own image decodes")
}

fn check_truth(
    case: &Case<'_>,
    (stopped, truth): (&Stopped, &Truth),
    asked: &Options,
    report: &Report,
    tally: &mut Tally,
) -> Result<(), String> {
    let image = decoded(truth);
    let tid = stopped.tid as u32;
    let run = first_run(&thread(report, tid).frames);
    let mut words = arguments(&case.source);
    words.extend(["--format".into(), "image".into(), "-t".into(), tid.to_string()]);
    let output = wstate(&words.iter().map(String::as_str).collect::<Vec<_>>());
    if image.frames.is_empty() {
        // `read_stack` stops at the first frame without a state.
        tally.empty += 1;
        return match output.status.code() {
            Some(2) if output.stdout.is_empty() => Ok(()),
            code => Err(format!("the runtime's image is empty; ours: exit {code:?}, {} bytes", output.stdout.len())),
        };
    }
    if output.status.code() != Some(0) {
        return Err(format!("exit {:?}: {}", output.status.code(), String::from_utf8_lossy(&output.stderr)));
    }
    if output.stdout != truth.image {
        let ours: Option<ExecutionStateImage> = decode_bincode(&output.stdout).ok();
        return Err(format!("the images differ: ours {ours:x?}\nruntime's {image:x?}"));
    }
    let mut with_image = asked.clone();
    (with_image.image, with_image.threads) = (true, vec![tid]);
    let both = ask(&with_image);
    if both.image.as_ref() != Some(&truth.image) {
        return Err("a second image differs".into());
    }
    if both.classic.as_ref() != Some(&truth.text) {
        return Err(format!("the classic text differs:\n{}\n{}", both.classic.unwrap_or_default(), truth.text));
    }
    tally.values += compare_display(&run, &image)?;
    tally.frames += image.frames.len();
    Ok(())
}

fn examine(profile: Profile, (stop, args, has_gcore): Stop, results: &Mutex<Results>) {
    let name = [&[stop], args].concat().join(" ");
    if stop != "abort" {
        let host = Host::start(stop, args, profile);
        let case = |kind, source| {
            let (ready, stopped, directory) = (&host.ready, &host.stopped[..], host.directory.path());
            Case { name: name.clone(), profile, kind, source, ready, stopped, directory }
        };
        check(&case("live", Source::Pid(host.pid() as u32)), results);
        host.assert_unharmed();
        if has_gcore {
            let core = gcore(&host).unwrap_or_else(|why| panic!("{}", why.0));
            check(&case("gcore", core_of(&core)), results);
        }
        if !host.finish() {
            let fault = format!("{name} {profile}: the host did not end by itself");
            results.lock().unwrap().different.push(fault);
        }
    }
    if stop != "threads" {
        let core = kernel_core(stop, args, profile).unwrap_or_else(|why| panic!("{}", why.0));
        let (ready, stopped, directory) = (&core.ready, &core.stopped[..], core.directory.path());
        let source = core_of(&core.path);
        check(&Case { name, profile, kind: "kernel core", source, ready, stopped, directory }, results);
    }
}

fn core_of(core: &Path) -> Source {
    Source::Core { core: core.into(), executable: None }
}

#[test]
fn images_equal_the_runtimes_own() {
    let mut work: Vec<(Profile, Stop)> = Vec::new();
    work.extend(Profile::ALL.iter().flat_map(|v| STOPS.iter().map(|s| (*v, *s))));
    work.extend(FLAGS.iter().map(|s| (Profile::Release, *s)));
    work.extend(FLAGS.iter().filter(|s| s.0.starts_with("trap")).map(|s| (Profile::Debug, *s)));
    if let Ok(only) = std::env::var("WSTATE_MATRIX") {
        work.retain(|(v, (stop, ..))| format!("{v} {stop} ").contains(&only));
    }
    host_singlepass(Profile::Debug);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Results::default());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((profile, stop)) = work.get(next.fetch_add(1, Ordering::SeqCst)) {
                    examine(*profile, *stop, &results);
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    println!("build              target       compared  equal  (empty)  no answer  frames  values  threads  lost");
    let mut all = (0, 0);
    for ((profile, kind), t) in &results.table {
        println!(
            "{:18} {kind:12} {:8} {:6} {:8} {:10} {:7} {:7} {:8} {:5}",
            profile.to_string(),
            t.compared,
            t.equal,
            t.empty,
            t.no_truth,
            t.frames,
            t.values,
            t.threads,
            t.lost
        );
        all = (all.0 + t.compared, all.1 + t.equal);
    }
    println!("compared {}, equal {}, different {}", all.0, all.1, all.0 - all.1);
    assert!(results.different.is_empty(), "{} faults:\n{}", results.different.len(), results.different.join("\n"));
    assert!(all.0 > 0, "nothing was compared");
}
