//! Live processes that are not simply sleeping: stopped, traced, ended, changing, in containers; and that an attach
//! leaves each of them as it was.
#![allow(unsafe_code)] // Signal handlers and timers of the processes that are looked at.

mod attach;
mod churn;
mod example;
mod migrate;
mod namespaces;
mod nonblocking;
mod processes;
mod role;
mod server;
mod snapshot;
mod steps;
mod stops;
#[path = "../support/mod.rs"]
mod support;
mod tiering;
mod unharmed;

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::missing::missing;
use support::{Host, PATIENCE, Profile, host_singlepass, wstate};

/// Waits for `done`, looking again and again.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// What the environment does not let be tested: a right that this user does not have, a kernel without something. A missing
/// tool is a failure.
fn not_tested(reason: &str) {
    println!("not tested: {reason}");
}

/// The state letters of all threads.
fn states(pid: u32) -> Vec<char> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there").flatten();
    let stats = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("stat")).ok());
    stats.filter_map(|s| s.rsplit_once(')')?.1.trim_start().chars().next()).collect()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The names in a thread, or in all of them.
fn names(report: &Value) -> Vec<String> {
    let frames = report["threads"].as_array().into_iter().flatten().flat_map(|t| t["frames"].as_array()).flatten();
    frames.filter_map(|f| Some(f["function"]["name"].as_str()?.to_string())).collect()
}

/// One attach of a process in which everything is expected to be found.
fn attach(pid: u32) -> Value {
    let output = wstate(&["attach", &pid.to_string(), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    report(&output)
}

fn assert_sleep_host(report: &Value) {
    let names = names(report);
    for name in ["host_singlepass::stopped", "leaf", "fact", "run", "host_singlepass::main", "__libc_start_call_main"] {
        assert!(names.iter().any(|n| n == name), "{name} is not in {names:?}");
    }
}

/// An attach that must fail with one line that says why.
fn refused(pid: u32, why: &str) {
    refused_with(&["attach", &pid.to_string()], why);
}

fn refused_with(arguments: &[&str], why: &str) {
    assert_refusal(&wstate(arguments), why);
}

fn assert_refusal(output: &Output, why: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty());
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("wstate: error: ") && lines[0].contains(why), "{text}");
    assert!(lines.len() == 1 || lines.len() == 2 && lines[1].starts_with("hint: "), "{text}");
}

fn doctor(pid: u32) -> String {
    let output = wstate(&["doctor", &pid.to_string()]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
