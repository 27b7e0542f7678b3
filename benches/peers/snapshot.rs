//! A snapshot beside gcore, which writes down the same memory: on a process whose Wasm thread waits in an import, with a
//! linear memory of which a part is touched. How long the process stands is told by a thread of it that computes all the
//! time: what that neither ran nor waited for a processor, by the kernel's count, it stood.
#![allow(unsafe_code)] // clock_gettime of another process, syncfs.

use crate::measure::bar;
use crate::support::{Host, Profile};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const WSTATE: &str = env!("CARGO_BIN_EXE_wstate");

/// MiB of linear memory, of which so many are touched, and rounds.
const CASES: [(u64, u64, usize); 3] = [(1, 1, 11), (64, 16, 7), (1024, 64, 3)];

/// Writes to each page of the first `touched` MiB. The memory has no maximum: with one the runtime reserves 6 GiB of address
/// space, which gcore would write out in full.
fn guest(size: u64, touched: u64) -> String {
    format!(
        r#"(module
  (import "env" "stop" (func $stop))
  (memory {pages})
  (func (export "run") (local $at i32)
    (loop $again
      (i64.store (local.get $at) (i64.mul (i64.extend_i32_u (local.get $at)) (i64.const 0x9e3779b97f4a7c15)))
      (local.set $at (i32.add (local.get $at) (i32.const 64)))
      (br_if $again (i32.lt_u (local.get $at) (i32.const {bytes}))))
    (call $stop)))"#,
        pages = size * 16,
        bytes = touched << 20,
    )
}

/// What one run took and made.
#[derive(Clone, Copy)]
struct Run {
    wall: Duration,
    stood: Duration,
    apparent: u64,
    on_disk: u64,
}

pub fn run() {
    for (size, touched, rounds) in CASES {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let wasm = directory.path().join("guest.wasm");
        std::fs::write(&wasm, wat::parse_str(guest(size, touched)).expect("a module")).expect("a file");
        let wasm = wasm.to_str().expect("a path of ours");
        println!("a process with {size} MiB of linear memory, {touched} MiB of them touched, medians of {rounds}:");
        println!("{:36} {:>10} {:>10} {:>12} {:>12}", "", "all ms", "pause ms", "file MiB", "on disk MiB");
        let (image, prefix) = (directory.path().join("image"), directory.path().join("core"));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            // A process each time, and gcore second: it reads every page, and the kernel then has an entry for each, so that
            // nobody can tell any more which were touched.
            let host = Host::start("wasm", &["--wasm", wasm, "--call", "run", "--spin"], Profile::Release);
            let pid = host.pid().to_string();
            let core = PathBuf::from(format!("{}.{pid}", prefix.display()));
            let snapshot = [WSTATE, "snapshot", "-p", &pid, "-o", image.to_str().expect("a path of ours")];
            ours.extend(once(&host, &snapshot, &image));
            theirs.extend(once(&host, &["gcore", "-o", prefix.to_str().expect("a path of ours"), &pid], &core));
        }
        let (ours, theirs) = (row("wstate snapshot", ours), row("gcore", theirs));
        for (what, part) in [("time", wall as fn(&Run) -> f64), ("pause", stood), ("file on disk", on_disk)] {
            bar(what, ours.as_ref().map(part), theirs.as_ref().map(part), 1.0);
        }
        println!();
    }
}

fn wall(run: &Run) -> f64 {
    run.wall.as_secs_f64() * 1e3
}

fn stood(run: &Run) -> f64 {
    run.stood.as_secs_f64() * 1e3
}

fn on_disk(run: &Run) -> f64 {
    run.on_disk as f64 / (1 << 20) as f64
}

/// Runs a command that makes `file`, and removes that; `None` if there is no such command.
fn once(host: &Host, command: &[&str], file: &Path) -> Option<Run> {
    let mut tool = Command::new(command[0]);
    tool.args(&command[1..]).env("DEBUGINFOD_URLS", "");
    tool.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Who writes while the last one's file is still on its way to the disk is made to wait for it.
    let directory = File::open(file.parent().expect("a directory")).expect("a directory of ours");
    // SAFETY: a system call on a file of ours.
    assert_eq!(unsafe { libc::syncfs(directory.as_raw_fd()) }, 0);
    let (begin, before) = (Instant::now(), scheduled(host));
    let status = tool.status().ok()?;
    let wall = begin.elapsed();
    let stood = begin.elapsed().saturating_sub(scheduled(host) - before);
    assert!(status.success(), "{command:?}: {status}");
    let made = file.metadata().unwrap_or_else(|e| panic!("{command:?} made nothing: {e}"));
    std::fs::remove_file(file).expect("a file of ours");
    Some(Run { wall, stood, apparent: made.len(), on_disk: made.blocks() * 512 })
}

/// How long the process's only thread that runs has run, or waited for a processor that others had.
fn scheduled(host: &Host) -> Duration {
    // The clock of a process, as pthread_getcpuclockid(3) makes it.
    const CPUCLOCK_SCHED: libc::clockid_t = 2;
    let clock = !host.pid() << 3 | CPUCLOCK_SCHED;
    let mut ran = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ran` is valid for writes.
    assert_eq!(unsafe { libc::clock_gettime(clock, &mut ran) }, 0);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid())).expect("the process is there");
    let waited = |task: PathBuf| {
        let line = std::fs::read_to_string(task.join("schedstat")).expect("a kernel with CONFIG_SCHED_INFO");
        line.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("three numbers")
    };
    let spins = |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "spinner\n");
    let waited: u64 = tasks.map(|task| task.expect("a thread").path()).find(spins).map(waited).expect("a spinner");
    Duration::new(ran.tv_sec as u64, ran.tv_nsec as u32) + Duration::from_nanos(waited)
}

/// Prints and returns the medians.
fn row(name: &str, runs: Vec<Run>) -> Option<Run> {
    let of = |part: fn(&Run) -> Duration| {
        let mut all: Vec<Duration> = runs.iter().map(part).collect();
        all.sort();
        all.get(all.len() / 2).copied()
    };
    let Some((last, wall, stood)) = runs.last().zip(of(|r| r.wall)).zip(of(|r| r.stood)).map(|((l, w), s)| (l, w, s))
    else {
        println!("{name:36} not installed");
        return None;
    };
    let medians = Run { wall, stood, ..*last };
    let apparent = medians.apparent as f64 / (1 << 20) as f64;
    println!(
        "{name:36} {:10.1} {:10.3} {apparent:12.1} {:12.1}",
        self::wall(&medians),
        self::stood(&medians),
        self::on_disk(&medians)
    );
    Some(medians)
}
