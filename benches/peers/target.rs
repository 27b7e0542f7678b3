//! The process that is looked at: this very program run again, four threads with some thirty frames each.
#![allow(unsafe_code)] // prctl: under Yama only a parent may attach without being told so.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ROLE: &str = "WSTATE_BENCH_TARGET";
const DEPTH: u32 = 30;
/// Nanoseconds of the longest time in which the spinning thread did not see the clock.
static LONGEST: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds in which it neither ran nor waited for a processor, since it began.
static STOPPED: AtomicU64 = AtomicU64::new(0);
/// It is to say so again.
static ASKED: AtomicBool = AtomicBool::new(false);

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
    let begin = Instant::now();
    let scheduled = scheduled();
    let mut last = begin;
    loop {
        let now = Instant::now();
        LONGEST.fetch_max((now - last).as_nanos() as u64, Ordering::Relaxed);
        last = now;
        if ASKED.load(Ordering::Relaxed) {
            let wall = begin.elapsed().as_nanos() as u64;
            STOPPED.store(wall.saturating_sub(self::scheduled() - scheduled), Ordering::Relaxed);
            ASKED.store(false, Ordering::Release);
            last = Instant::now();
        }
    }
}

/// Nanoseconds that this thread ran or waited for a processor that others had. What else passes it stood.
fn scheduled() -> u64 {
    let mut ran = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ran` is valid for writes.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut ran) }, 0);
    let line = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel with CONFIG_SCHED_INFO");
    let waited: u64 = line.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("three numbers");
    ran.tv_sec as u64 * 1_000_000_000 + ran.tv_nsec as u64 + waited
}

/// Prints, once for each line of input, how long the spinning thread stood and its longest gap since the last question.
fn answer() {
    println!("ready");
    let mut before = 0;
    for _ in std::io::stdin().lines().map_while(Result::ok) {
        ASKED.store(true, Ordering::Release);
        while ASKED.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let stopped = STOPPED.load(Ordering::Relaxed);
        println!("{} {}", stopped.saturating_sub(before), LONGEST.swap(0, Ordering::Relaxed));
        before = stopped;
    }
}

/// What a process saw of being looked at.
#[derive(Clone, Copy)]
pub struct Seen {
    /// How long its spinning thread stood: neither ran nor waited for a processor.
    pub stopped: Duration,
    /// The longest time between two looks at the clock: with the waits for a processor.
    pub gap: Duration,
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

    /// What happened since the last question.
    pub fn seen(&mut self) -> Seen {
        self.stdin.write_all(b"\n").expect("the process reads");
        let line = self.line();
        let mut numbers = line.split(' ').map(|n| Duration::from_nanos(n.parse().expect("a number")));
        let mut number = || numbers.next().expect("two numbers");
        Seen { stopped: number(), gap: number() }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
