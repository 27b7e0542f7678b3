//! How long a process stands while it is looked at, as one of its own threads sees it. That thread runs all the time: what
//! it neither ran nor waited for a processor, by the kernel's count, it stood. The longest time between two of its looks at
//! the clock stands beside it; on a machine that does other things it holds these, too.

use crate::target::{Seen, Target};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 101;
/// gdb takes half a second for one.
const ROUNDS_OF_SLOW: usize = 11;
/// What the median of wstate must stay under.
const BAR: Duration = Duration::from_micros(500);

pub fn run() {
    let mut target = Target::start();
    let pid = target.pid();
    println!("pause of a process of 4 threads x 30 frames, as its own thread sees it, in ms:");
    println!("{:36} {:>8} {:>8} {:>8}  {:>12}   rounds", "", "median", "p90", "longest", "gap (median)");
    let wstate = env!("CARGO_BIN_EXE_wstate");
    let cases: [(&str, &[&str], usize); 4] = [
        ("wstate attach", &[wstate, "attach", &pid], ROUNDS),
        ("wstate attach --no-lines", &[wstate, "attach", "--no-lines", &pid], ROUNDS),
        ("eu-stack -p", &["eu-stack", "-p", &pid], ROUNDS),
        (
            "gdb -p, thread apply all bt",
            &["gdb", "-nx", "-batch", "-p", &pid, "-ex", "thread apply all bt"],
            ROUNDS_OF_SLOW,
        ),
    ];
    let begin = Instant::now();
    let mut median = None;
    for (name, command, rounds) in cases {
        let Some(seen) = look(&mut target, command, rounds) else {
            println!("{name:36} not installed");
            continue;
        };
        let this = print_row(name, &seen);
        median = median.or(Some(this));
    }
    // What the machine does by itself: the same number of rounds of about an attach's length.
    let each = begin.elapsed() / (3 * ROUNDS + ROUNDS_OF_SLOW) as u32;
    let idle: Vec<Seen> = (0..ROUNDS)
        .map(|_| {
            std::thread::sleep(each);
            target.seen()
        })
        .collect();
    print_row(&format!("nobody, for {:.0} ms", each.as_secs_f64() * 1e3), &idle);
    print_reported(&target.pid());
    let met = median.is_some_and(|m| m < BAR);
    println!("bar: median of wstate under {:.1} ms: {}\n", milliseconds(BAR), if met { "met" } else { "MISSED" });
}

/// What the process saw in each round; `None` if there is no such command.
fn look(target: &mut Target, command: &[&str], rounds: usize) -> Option<Vec<Seen>> {
    let mut seen = Vec::new();
    for _ in 0..rounds {
        target.seen();
        let mut run = Command::new(command[0]);
        run.args(&command[1..]).env("DEBUGINFOD_URLS", "");
        let status = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
        assert!(status.success(), "{command:?}: {status}");
        seen.push(target.seen());
    }
    Some(seen)
}

/// What wstate itself says about the same.
fn print_reported(pid: &str) {
    let reported = |_| {
        let output = Command::new(env!("CARGO_BIN_EXE_wstate")).args(["attach", "--json", "--timing", pid]).output();
        let report: serde_json::Value = serde_json::from_slice(&output.expect("wstate starts").stdout).expect("JSON");
        Duration::from_secs_f64(report["timing"]["stopped_ms"].as_f64().expect("a number") / 1e3)
    };
    let mut reported: Vec<Duration> = (0..ROUNDS).map(reported).collect();
    reported.sort();
    println!("{} {:12}   {ROUNDS}", columns("as wstate attach --timing says", &reported), "");
}

/// Prints a row and returns its median.
fn print_row(name: &str, seen: &[Seen]) -> Duration {
    let sorted = |part: fn(&Seen) -> Duration| {
        let mut all: Vec<Duration> = seen.iter().map(part).collect();
        all.sort();
        all
    };
    let (stopped, gaps) = (sorted(|s| s.stopped), sorted(|s| s.gap));
    println!("{} {:12.3}   {}", columns(name, &stopped), milliseconds(gaps[gaps.len() / 2]), seen.len());
    stopped[stopped.len() / 2]
}

fn columns(name: &str, sorted: &[Duration]) -> String {
    let at = |percent: usize| milliseconds(sorted[(sorted.len() - 1) * percent / 100]);
    format!("{name:36} {:8.3} {:8.3} {:8.3} ", at(50), at(90), at(100))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
