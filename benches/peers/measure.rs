//! Commands as whole processes: when the first frame is printed, when all is, and how much memory that took.
#![allow(unsafe_code)] // wait4, for the memory of this very child.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one run took.
#[derive(Clone, Copy)]
struct Run {
    /// Until the line of a frame 0 could be read.
    first: Option<Duration>,
    /// Until the process was gone.
    total: Duration,
    /// Most memory that it held, in KiB.
    peak: u64,
}

/// Medians of a command's runs.
#[derive(Clone, Copy)]
pub struct Medians {
    /// Milliseconds until the first frame, if one was printed.
    pub first: Option<f64>,
    /// Milliseconds until the end.
    pub total: f64,
    /// MiB.
    pub peak: f64,
}

/// Whether a tool's line begins frame 0: ` #0 ...`.
fn is_first_frame(line: &str) -> bool {
    line.trim_start().strip_prefix("#0").is_some_and(|rest| rest.starts_with(' '))
}

fn run(command: &[&str]) -> Option<Run> {
    let mut tool = Command::new(command[0]);
    tool.args(&command[1..]).env("DEBUGINFOD_URLS", "");
    tool.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let begin = Instant::now();
    let mut child = tool.spawn().ok()?;
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let (mut first, mut line) = (None, Vec::new());
    while output.read_until(b'\n', &mut line).expect("the pipe is read") > 0 {
        if first.is_none() && is_first_frame(&String::from_utf8_lossy(&line)) {
            first = Some(begin.elapsed());
        }
        line.clear();
    }
    let mut status = 0;
    // SAFETY: all zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to variables of ours; the child is not waited for anywhere else.
    let pid = unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage) };
    assert_eq!(pid as u32, child.id());
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) < 2, "{command:?}: {status:#x}");
    Some(Run { first, total: begin.elapsed(), peak: usage.ru_maxrss as u64 })
}

/// The medians of `rounds` runs of each command, taken in turns, so that all of them meet the same machine; `None` of what
/// is not installed.
pub fn medians(commands: &[Vec<&str>], rounds: usize) -> Vec<Option<Medians>> {
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); commands.len()];
    for round in 0..rounds {
        // Forth and back: each is as often the first.
        for turn in 0..commands.len() {
            let i = if round % 2 == 0 { turn } else { commands.len() - 1 - turn };
            runs[i].extend(run(&commands[i]));
        }
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let of = |runs: &Vec<Run>| {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Some(Medians {
            first: median(runs.iter().filter_map(|r| r.first).map(ms).collect()),
            total: median(runs.iter().map(|r| ms(r.total)).collect())?,
            peak: median(runs.iter().map(|r| r.peak as f64 / 1024.0).collect())?,
        })
    };
    runs.iter().map(of).collect()
}

/// A table of commands under their names.
pub fn table(title: &str, commands: &[(&str, Vec<&str>)], rounds: usize) -> Vec<Option<Medians>> {
    println!("{title}, medians of {rounds}:");
    println!("{:36} {:>14} {:>8} {:>9}", "", "first frame ms", "all ms", "peak MiB");
    let all: Vec<Vec<&str>> = commands.iter().map(|(_, command)| command.clone()).collect();
    let medians = medians(&all, rounds);
    for ((name, _), medians) in commands.iter().zip(&medians) {
        match medians {
            Some(m) => {
                let first = m.first.map_or("none".to_string(), |first| format!("{first:.1}"));
                println!("{name:36} {first:>14} {:8.1} {:9.1}", m.total, m.peak);
            }
            None => println!("{name:36} not installed"),
        }
    }
    medians
}

/// Says whether a figure is at most `most` times that of the peer.
pub fn bar(what: &str, ours: Option<f64>, peer: Option<f64>, most: f64) {
    let Some((ours, peer)) = ours.zip(peer) else { return println!("bar: {what}: no peer") };
    let ratio = ours / peer;
    println!("bar: {what}: {ratio:.2} of at most {most}: {}", if ratio <= most { "met" } else { "MISSED" });
}
