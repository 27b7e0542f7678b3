//! How long a process stands while it is looked at, as one of its own threads sees it: the longest time in which that
//! thread, which looks at the clock all the time, did not run.

use crate::target::Target;
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
    println!("{:36} {:>8} {:>8} {:>8}   rounds", "", "median", "p90", "longest");
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
        let Some(gaps) = gaps(&mut target, command, rounds) else {
            println!("{name:36} not installed");
            continue;
        };
        print_row(name, &gaps);
        median = median.or(Some(gaps[gaps.len() / 2]));
    }
    // What the machine does by itself: the same number of rounds of about an attach's length.
    let each = begin.elapsed() / (3 * ROUNDS + ROUNDS_OF_SLOW) as u32;
    let mut idle: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            std::thread::sleep(each);
            target.longest_gap()
        })
        .collect();
    idle.sort();
    print_row(&format!("nobody, for {:.0} ms", each.as_secs_f64() * 1e3), &idle);
    let met = median.is_some_and(|m| m < BAR);
    println!("bar: median of wstate under {:.1} ms: {}\n", milliseconds(BAR), if met { "met" } else { "MISSED" });
}

/// The longest gap of each round, in order; `None` if there is no such command.
fn gaps(target: &mut Target, command: &[&str], rounds: usize) -> Option<Vec<Duration>> {
    let mut gaps = Vec::new();
    for _ in 0..rounds {
        target.longest_gap();
        let mut run = Command::new(command[0]);
        run.args(&command[1..]).env("DEBUGINFOD_URLS", "");
        let status = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
        assert!(status.success(), "{command:?}: {status}");
        gaps.push(target.longest_gap());
    }
    gaps.sort();
    Some(gaps)
}

fn print_row(name: &str, sorted: &[Duration]) {
    let at = |percent: usize| milliseconds(sorted[(sorted.len() - 1) * percent / 100]);
    println!("{name:36} {:8.3} {:8.3} {:8.3}   {}", at(50), at(90), at(100), sorted.len());
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
