//! Stops between the points of the state map: random ones of a running process, and every single instruction. The guest
//! is a busy loop whose locals have known relations (`tests/hosts/singlepass/README.md`).

use crate::support::traced::{Traced, ask, question, thread};
use crate::support::{Host, Profile, host_singlepass};
use std::sync::Mutex;
use wstate::arch::CodeAddress;
use wstate::process::Target;
use wstate::process::live::{CaptureOptions, LiveTarget};
use wstate::process::objects::{Objects, SearchPaths};
use wstate::report::{Frame, FrameKind, Value};
use wstate::runtime::singlepass::find::{Search, SinglepassProvider};
use wstate::runtime::{GuestKind, Provider, Runtime, Scene, Slot};
use wstate::session::Source;
use wstate::unwind::cfi::CfiUnwinder;
use wstate::unwind::frame_pointer::FramePointerUnwinder;
use wstate::unwind::{Cursor, End, Unwinder, walk};

/// Function indices of the guest.
const LEAF: u32 = 1;
const SPIN: u32 = 2;
const DOWN: u32 = 3;
const RUN: u32 = 4;

/// A Wasm frame as it is displayed, from the report or from the runtime itself.
struct Shown {
    function: u32,
    locals: Vec<Result<u64, String>>,
    stack: Result<Vec<Result<u64, String>>, String>,
}

#[derive(Clone, Debug, Default)]
struct Count {
    stops: usize,
    right: usize,
    unknown: usize,
    /// Operand stacks that are known, and right.
    stacks: usize,
    /// Stops in the middle of leaf, spin.
    leaf: usize,
    spin: usize,
    wrong: Vec<String>,
}

impl Count {
    fn add(&mut self, other: Count) {
        self.stops += other.stops;
        self.right += other.right;
        self.unknown += other.unknown;
        self.stacks += other.stacks;
        self.leaf += other.leaf;
        self.spin += other.spin;
        self.wrong.extend(other.wrong);
    }

    fn row(&self, name: &str) -> String {
        format!(
            "{name:46} stops {:5} (leaf {:5} spin {:5})  locals right {:7} unknown {:4} wrong {:3}  stacks {:6}",
            self.stops,
            self.leaf,
            self.spin,
            self.right,
            self.unknown,
            self.wrong.len(),
            self.stacks
        )
    }

    fn value(&mut self, name: &str, got: &Result<u64, String>, mask: u64, allowed: &[u64]) {
        match got {
            Ok(bits) if allowed.contains(&(bits & mask)) => self.right += 1,
            Ok(bits) => self.wrong.push(format!("{name} is {:#x}, the program allows {allowed:x?}", bits & mask)),
            Err(why) if why.contains("returning") => self.unknown += 1,
            Err(why) => self.wrong.push(format!("{name} is unknown: {why}")),
        }
    }

    fn operands(&mut self, name: &str, got: &Shown, mask: u64, expected: &[u64]) {
        match &got.stack {
            Ok(list) => {
                let bits: Vec<Option<u64>> = list.iter().map(|v| v.as_ref().ok().map(|b| b & mask)).collect();
                if bits == expected.iter().map(|v| Some(*v)).collect::<Vec<_>>() {
                    self.stacks += 1;
                } else {
                    self.wrong.push(format!("the operand stack of {name} is {bits:x?}, it is {expected:x?}"));
                }
            }
            Err(why) => self.wrong.push(format!("the operand stack of {name} is unknown: {why}")),
        }
    }
}

const U32: u64 = u32::MAX as u64;
const U64: u64 = u64::MAX;

/// Checks a chain of Wasm frames, youngest first, against the program.
fn check(frames: &[Shown], depth: u32, tracked: bool, count: &mut Count) {
    count.stops += 1;
    let functions: Vec<u32> = frames.iter().map(|f| f.function).collect();
    let in_leaf = functions.first() == Some(&LEAF);
    let mut expected = if in_leaf { vec![LEAF, SPIN] } else { vec![SPIN] };
    expected.extend(std::iter::repeat_n(DOWN, depth as usize + 1));
    expected.push(RUN);
    if functions != expected {
        count.wrong.push(format!("the chain is {functions:?}"));
        return;
    }
    *(if in_leaf { &mut count.leaf } else { &mut count.spin }) += 1;
    let spin = &frames[in_leaf as usize];
    if spin.locals.len() != 7 {
        count.wrong.push(format!("spin has {} locals", spin.locals.len()));
        return;
    }
    let constants =
        [(0, U32, 9), (1, U64, 0x1111_1111_1111_1111), (2, U64, 3.25f64.to_bits()), (6, U32, 1.5f32.to_bits().into())];
    for (i, mask, value) in constants {
        count.value(&format!("spin local {i}"), &spin.locals[i], mask, &[value]);
    }
    let Ok(i) = &spin.locals[3] else {
        count.wrong.push(format!("spin local 3 is unknown: {:?}", spin.locals[3]));
        return;
    };
    count.right += 1;
    let i = *i as u32;
    let before = i.wrapping_sub(1);
    let k = |i: u32| u64::from(i.wrapping_mul(3).wrapping_add(7));
    let m = |i: u32| u64::from(i) * 12 + 12;
    let ks = if in_leaf { vec![k(i)] } else { vec![k(i), k(before)] };
    count.value("spin local 4", &spin.locals[4], U32, &ks);
    let mut ms = vec![m(before)];
    // Before the first pass local 5 is 12.
    ms.extend(if i <= 1 { Some(12) } else { None });
    if !in_leaf {
        ms.push(m(i));
    }
    count.value("spin local 5", &spin.locals[5], U64, &ms);
    if in_leaf {
        let leaf = &frames[0];
        if leaf.locals.len() != 3 {
            count.wrong.push(format!("leaf has {} locals", leaf.locals.len()));
            return;
        }
        count.value("leaf local 0", &leaf.locals[0], U64, &[i.into()]);
        count.value("leaf local 1", &leaf.locals[1], U64, &[2.5f64.to_bits()]);
        count.value("leaf local 2", &leaf.locals[2], U64, &[0, u64::from(i) * 5 + 11]);
        if tracked {
            count.operands("spin at its call", spin, U64, &[u64::from(i) * 7]);
        }
    }
    let from = frames.len() - 2 - depth as usize;
    for (n, down) in frames[from..frames.len() - 1].iter().enumerate() {
        let n = n as u64;
        for (j, mask, value) in [(0, U32, n), (1, U64, 7 * n + 1)] {
            match down.locals.get(j) {
                Some(local) => count.value(&format!("down {n} local {j}"), local, mask, &[value]),
                None => count.wrong.push(format!("down {n} has no local {j}")),
            }
        }
        if tracked {
            count.operands(&format!("down {n}"), down, U32, &[n + 500]);
        }
    }
    if tracked {
        count.operands("run", &frames[frames.len() - 1], U64, &[]);
    } else if let Some(known) = frames.iter().find(|f| f.stack.as_ref().is_ok_and(|s| !s.is_empty())) {
        // The initial state is there even without track_state: in a function's header the stack is empty.
        count.wrong.push(format!("an operand stack of function {} without track_state", known.function));
    }
    // Where the thread itself stands the stack may be known or not.
    if let (true, Ok(stack)) = (tracked, &frames[0].stack) {
        let expected = if in_leaf || stack.is_empty() { vec![] } else { vec![u64::from(i) * 7] };
        count.operands("the youngest frame", &frames[0], U64, &expected);
    }
}

fn from_report(frames: &[Frame]) -> Vec<Shown> {
    let value = |v: &Value| match v.bits {
        Some(bits) => Ok(bits.0 as u64),
        None => Err(v.why.as_ref().map(ToString::to_string).unwrap_or_default()),
    };
    let list = |values: &[Value]| values.iter().map(value).collect::<Vec<_>>();
    let wasm = frames.iter().filter(|f| f.kind == FrameKind::Wasm);
    wasm.map(|f| Shown {
        function: f.function.as_ref().and_then(|f| f.index).unwrap_or(u32::MAX),
        locals: f.locals.as_deref().map(list).unwrap_or_default(),
        stack: f
            .stack
            .as_deref()
            .map(list)
            .ok_or_else(|| f.stack_why.as_ref().map(ToString::to_string).unwrap_or_default()),
    })
    .collect()
}

/// A sequence of numbers that looks random and is the same in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Lets the process run on for a while: the stops must not keep in step with the loop.
    fn pause(&mut self) {
        let begin = std::time::Instant::now();
        let length = std::time::Duration::from_nanos(self.next() % 300_000);
        while begin.elapsed() < length {
            std::hint::spin_loop();
        }
    }
}

/// (stop, its number of `down` frames below the first, compiler flags, random stops).
const RUNS: &[(&str, u32, &[&str], usize)] = &[
    ("spin", 0, &[], 150),
    ("spin", 0, &["--track-state", "off"], 150),
    ("spin-deep", 200, &[], 40),
    ("spin-deep", 200, &["--track-state", "off"], 40),
    ("spin", 0, &["--full-preemption"], 75),
    ("spin", 0, &["--stack-checks"], 75),
    ("spin", 0, &["--full-preemption", "--stack-checks", "--track-state", "off"], 75),
    ("spin", 0, &["--thread", "--full-preemption"], 50),
];

fn tracked(flags: &[&str]) -> bool {
    !flags.windows(2).any(|w| w == ["--track-state", "off"])
}

/// Runs every row on a few threads and returns the counts by name, in order.
fn each_run<T: Send>(
    run: impl Fn(usize, &'static (&'static str, u32, &'static [&'static str], usize)) -> T + Sync,
) -> Vec<(String, T)> {
    host_singlepass(Profile::Debug);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    let Some(row) = RUNS.get(i) else { break };
                    let result = run(i, row);
                    done.lock().unwrap().push((i, format!("{} {}", row.0, row.2.join(" ")), result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(i, ..)| *i);
    done.into_iter().map(|(_, name, result)| (name, result)).collect()
}

fn total(counts: Vec<(String, Count)>) -> Count {
    let mut sum = Count::default();
    for (name, count) in counts {
        println!("{}", count.row(&name));
        let wrong = count.wrong.clone();
        sum.add(Count { wrong: wrong.into_iter().map(|w| format!("{name}: {w}")).collect(), ..count });
    }
    println!("{}", sum.row("all"));
    sum
}

fn first_wrong(count: &Count) -> String {
    count.wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
}

#[test]
fn random_stops() {
    let counts = each_run(|i, (stop, depth, flags, stops)| {
        // The frames do not depend on how the host was built; finding the module does.
        let host = Host::start(stop, flags, Profile::ALL[i % 4]);
        let (pid, tid) = (host.pid() as u32, host.tid() as u32);
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ i as u64);
        let mut count = Count::default();
        // The modules and files are looked for once; registers and stacks are captured at each stop.
        let capture = || LiveTarget::capture(pid, &CaptureOptions::default()).unwrap();
        let first = capture();
        let objects = Objects::load(&first, &SearchPaths::default());
        let (cfi, recognised) = (CfiUnwinder::new(&objects), wstate::runtime::all::recognised());
        let mut provider = SinglepassProvider::new(Search::default());
        for stop in 0..*stops {
            random.pause();
            if stop % 25 == 0 {
                // The whole way.
                let report = ask(&question(Source::Pid(pid))).report;
                check(&from_report(&thread(&report, tid).frames), *depth, tracked(flags), &mut count);
                continue;
            }
            let target = capture();
            let frame_pointer = FramePointerUnwinder::new(target.mappings());
            for t in target.threads() {
                let start =
                    Cursor { address: CodeAddress::Exact(t.registers.pc().unwrap()), registers: t.registers.clone() };
                let mut stack = None;
                for _ in 0..2 {
                    let unwinder: &dyn Unwinder = provider.runtime();
                    let walked = walk(start.clone(), &[unwinder, &cfi, &recognised, &frame_pointer], &target, 10_000);
                    let is_unknown = |c: &Cursor| {
                        let mapping = target.mapping_at(c.address.lookup());
                        mapping.is_some_and(|m| m.execute && m.path.is_none())
                            && provider.runtime().module_of(c.address.lookup()).is_none()
                            && recognised.stub_name(c.address, &target).is_none()
                    };
                    let unknown: Vec<Cursor> =
                        walked.frames.iter().map(|f| f.cursor.clone()).filter(is_unknown).collect();
                    stack = Some(walked);
                    if unknown.is_empty() {
                        break;
                    }
                    let scene = Scene { target: &target, objects: &objects, progress: &wstate::progress::Silent };
                    provider.discover(&scene, &unknown, false);
                }
                let stack = stack.unwrap();
                if stack.end != End::Bottom {
                    count.wrong.push(format!("thread {:?} does not end at the bottom: {:?}", t.name, stack.end));
                }
                if t.id.0 == tid {
                    check(&from_stack(&stack, provider.runtime(), &target), *depth, tracked(flags), &mut count);
                }
            }
        }
        host.assert_unharmed();
        assert!(host.finish(), "the host ended by itself");
        count
    });
    let sum = total(counts);
    assert!(sum.wrong.is_empty(), "{} wrong:\n{}", sum.wrong.len(), first_wrong(&sum));
    assert!(sum.stops >= 500 && sum.leaf > 50 && sum.spin > 50, "{sum:?}");
}

/// Instructions per row of [`RUNS`].
const STEPS: usize = 2000;

#[test]
fn every_instruction() {
    let counts = each_run(|i, (stop, depth, flags, _)| {
        // 200 frames at each of 2000 instructions add nothing.
        let depth = if *depth > 0 { 5 } else { 0 };
        let deep = depth.to_string();
        let host = Host::start(stop, &[*flags, &["--depth", &deep]].concat(), Profile::ALL[(i + 2) % 4]);
        let (pid, tid) = (host.pid() as u32, host.tid() as u32);
        let target = Traced::seize(pid, tid);
        let objects = Objects::load(&target, &SearchPaths::default());
        let (cfi, recognised) = (CfiUnwinder::new(&objects), wstate::runtime::all::recognised());
        let frame_pointer = FramePointerUnwinder::new(target.mappings());
        let mut provider = SinglepassProvider::new(Search::default());
        let mut count = Count::default();
        let mut seen = std::collections::BTreeSet::new();
        // READY is said by an import: the thread comes back to Wasm from there.
        let in_guest = || {
            let pc = target.registers().pc().unwrap();
            target.mapping_at(pc).is_some_and(|m| m.execute && m.is_anonymous() && m.path.is_none())
        };
        for _ in 0..1_000_000 {
            if in_guest() {
                break;
            }
            target.step();
        }
        for _ in 0..STEPS {
            let registers = target.registers();
            let pc = registers.pc().unwrap();
            let start = Cursor { address: CodeAddress::Exact(pc), registers };
            if provider.runtime().module_of(pc).is_none() {
                let scene = Scene { target: &target, objects: &objects, progress: &wstate::progress::Silent };
                assert_eq!(provider.discover(&scene, std::slice::from_ref(&start), false), 1, "no module at {pc:#x}");
            }
            seen.insert(pc);
            let runtime = provider.runtime();
            let unwinder: &dyn Unwinder = runtime;
            let stack = walk(start, &[unwinder, &cfi, &recognised, &frame_pointer], &target, 1000);
            let before = count.wrong.len();
            if stack.end != End::Bottom {
                count.wrong.push(format!("the walk does not end at the bottom: {:?}", stack.end));
            }
            check(&from_stack(&stack, runtime, &target), depth, tracked(flags), &mut count);
            let function_offset =
                runtime.describe(&stack.frames[0].cursor, &target).first().and_then(|f| f.function_offset);
            for wrong in &mut count.wrong[before..] {
                *wrong = format!("{wrong} (at {function_offset:x?} of the function)");
            }
            target.step();
        }
        drop(target);
        host.assert_unharmed();
        assert!(host.finish(), "the host ended by itself");
        assert!(seen.len() > 40, "only {} different instructions", seen.len());
        count
    });
    let sum = total(counts);
    assert!(sum.wrong.is_empty(), "{} wrong:\n{}", sum.wrong.len(), first_wrong(&sum));
    assert!(sum.stops >= 2000 && sum.leaf > 500 && sum.spin > 500, "{sum:?}");
}

fn from_stack(stack: &wstate::unwind::Stack, runtime: &dyn Runtime, target: &dyn Target) -> Vec<Shown> {
    let bits = |v: &wstate::runtime::Value| match &v.slot {
        Slot::Known { bits, .. } => Ok(*bits as u64),
        Slot::Unknown(why) => Err(why.to_string()),
    };
    let list = |values: &[wstate::runtime::Value]| values.iter().map(bits).collect::<Vec<_>>();
    let frames = stack.frames.iter().flat_map(|f| runtime.describe(&f.cursor, target));
    frames
        .filter(|f| f.kind == GuestKind::Wasm)
        .map(|f| Shown {
            function: f.function.unwrap_or(u32::MAX),
            locals: f.locals.as_deref().map(list).unwrap_or_default(),
            stack: f.stack.as_deref().map(list).map_err(ToString::to_string),
        })
        .collect()
}

#[test]
fn settling() {
    let counts = each_run(|i, (stop, depth, flags, _)| {
        let mut count = Count::default();
        let host = Host::start(stop, flags, Profile::ALL[(i + 1) % 4]);
        let (pid, tid) = (host.pid() as u32, host.tid() as u32);
        let mut random = Random(0x1234_5678_9abc_def1 ^ i as u64);
        for _ in 0..8 {
            random.pause();
            let mut options = question(Source::Pid(pid));
            (options.settle, options.threads) = (true, vec![tid]);
            let report = ask(&options).report;
            let frames = &thread(&report, tid).frames;
            let note = report.notes.iter().find(|n| n.starts_with("--settle")).cloned().unwrap_or_default();
            let shown = from_report(frames);
            check(&shown, *depth, tracked(flags), &mut count);
            let steps = note.split(' ').skip_while(|w| *w != "stepped").nth(1).and_then(|w| w.parse::<usize>().ok());
            if !tracked(flags) {
                // There is nothing to come to: the headers of functions, where full preemption has points, tell no more.
                let said = note.contains("was not stepped: the module was compiled without track_state");
                if !said
                    || frames
                        .iter()
                        .any(|f| f.kind == FrameKind::Wasm && f.stack.as_ref().is_some_and(|s| !s.is_empty()))
                {
                    count.wrong.push(format!("settled without track_state: {note}"));
                }
                continue;
            }
            if !note.contains("to a point") || steps.is_none_or(|n| n > 64) {
                count.wrong.push(format!("not settled: {note}"));
                continue;
            }
            let top = frames.iter().find(|f| f.kind == FrameKind::Wasm).unwrap();
            let i = shown[0].locals.get(3).and_then(|v| v.as_ref().ok()).copied().unwrap_or(0) as u32;
            match (shown[0].function, top.wasm.as_ref().and_then(|w| w.op_index)) {
                // Behind the call of leaf the stack is as it was at the call, without the arguments.
                (SPIN, Some(op)) if op > 15 => {
                    count.operands("spin behind its call", &shown[0], U64, &[u64::from(i) * 7])
                }
                (SPIN, _) => count.operands("spin at its loop", &shown[0], U64, &[]),
                (LEAF, _) => count.operands("leaf", &shown[0], U64, &[]),
                other => count.wrong.push(format!("settled in {other:?}")),
            }
        }
        host.assert_unharmed();
        // It counts on.
        let counter = || {
            let report = ask(&question(Source::Pid(pid))).report;
            let shown = from_report(&thread(&report, tid).frames);
            let spin = shown.iter().find(|f| f.function == SPIN).unwrap();
            spin.locals[3].clone().unwrap() as u32
        };
        // On a busy machine two captures may come before the host's next turn.
        let (first, until) = (counter(), std::time::Instant::now() + std::time::Duration::from_secs(600));
        while counter() == first {
            assert!(std::time::Instant::now() < until, "the loop runs on");
        }
        assert!(host.finish(), "the host ended by itself");
        count
    });
    let sum = total(counts);
    assert!(sum.wrong.is_empty(), "{} wrong:\n{}", sum.wrong.len(), first_wrong(&sum));
}
