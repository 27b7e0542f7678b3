//! The process that is looked at: this very program run again, four threads with some thirty frames each.
#![allow(unsafe_code)] // prctl: under Yama only a parent may attach without being told so.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ROLE: &str = "WSTATE_BENCH_TARGET";
const DEPTH: u32 = 30;
/// Nanoseconds of the longest time in which the spinning thread did not see the clock.
static LONGEST: AtomicU64 = AtomicU64::new(0);

/// Whether this is the process that is looked at; does not come back before its input is closed.
pub fn role() -> bool {
    if std::env::var_os(ROLE).is_none() {
        return false;
    }
    // SAFETY: prctl with these arguments touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    for _ in 0..2 {
        std::thread::spawn(|| deep(DEPTH, &mut sleep));
    }
    std::thread::spawn(|| {
        deep(DEPTH, &mut answer);
        std::process::exit(0);
    });
    // The main thread: a tool that stops one thread after the other reads its tables while the first one stands.
    deep(DEPTH, &mut spin);
    true
}

/// Runs `work` below `depth` frames.
#[inline(never)]
fn deep(depth: u32, work: &mut dyn FnMut()) {
    match depth {
        0 => work(),
        _ => deep(black_box(depth - 1), work),
    }
    // Not a tail call.
    black_box(depth);
}

fn sleep() {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Looks at the clock all the time and keeps the longest time between two looks.
fn spin() {
    let mut last = Instant::now();
    loop {
        let now = Instant::now();
        LONGEST.fetch_max((now - last).as_nanos() as u64, Ordering::Relaxed);
        last = now;
    }
}

/// Prints the longest gap since the last question, once for each line of input.
fn answer() {
    println!("ready");
    for _ in std::io::stdin().lines().map_while(Result::ok) {
        println!("{}", LONGEST.swap(0, Ordering::Relaxed));
    }
}

/// The process, from outside; ends with this value.
pub struct Target {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Target {
    pub fn start() -> Target {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.env(ROLE, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program starts again");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut target = Target { child, stdin, stdout };
        assert_eq!(target.line(), "ready");
        target
    }

    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line.trim_end().to_string()
    }

    /// The longest time in which the spinning thread did not run since the last question.
    pub fn longest_gap(&mut self) -> Duration {
        self.stdin.write_all(b"\n").expect("the process reads");
        Duration::from_nanos(self.line().parse().expect("a number"))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
