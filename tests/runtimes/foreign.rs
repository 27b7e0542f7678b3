//! Hosts of other people: releases of PyPI's `wasmtime` package, built by its authors, against what the runtime itself says
//! (tests/tools/foreign). The oldest one was built to abort on panic: much of its own code has neither unwind information
//! nor a frame pointer.

use std::path::Path;
use std::process::Command;

/// The table of these releases and stops; fails if anything is wrong or, where the process holds the answer, unknown.
fn sweep(stops: &str, more: &[&str], versions: &[&str]) {
    table("sweep.py", &[&["--stops", stops][..], more, versions].concat());
}

fn table(tool: &str, arguments: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cache = root.join("target/foreign");
    let mut command = Command::new("python3");
    command.arg(root.join("tests/tools/foreign").join(tool)).arg("--wstate").arg(env!("CARGO_BIN_EXE_wstate"));
    command.arg("--cache").arg(&cache).arg("--verbose").args(arguments);
    let output = command.output().expect("python3 runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_newest_release() {
    sweep("call,file,nested,stores,threads,indirect,after-trap,spin", &[], &["50.0.1"]);
}

#[test]
fn the_oldest_release_whose_own_code_has_no_unwind_information() {
    sweep("call,file,stores,indirect", &[], &["36.0.0"]);
}

/// The official command line tool: of 36 much code has no unwind tables, so that idle threads may be lost, and `main` has
/// none in any release.
#[test]
fn command_line_tools() {
    table("cli_sweep.py", &["--kinds", "cli,waits", "36.0.9"]);
    table("cli_sweep.py", &["--kinds", "cli,waits", "--complete", "49.0.4"]);
}

/// Native code without unwind tables that uses rbp for other things, with symbols and without, one and three activations
/// deep.
#[test]
fn c_hosts_without_unwind_tables() {
    table("cli_sweep.py", &["--kinds", "c", "--complete", "36.0.0", "50.0.1"]);
    table("cli_sweep.py", &["--kinds", "c-stripped", "36.0.0", "50.0.1"]);
}

/// A Wasmer host, which wstate does not know yet: its coroutines are no signals.
#[test]
fn coroutines_of_wasmer_are_no_signal_frames() {
    table("wasmer_host.py", &[]);
}
