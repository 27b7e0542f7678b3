//! Hosts of other people: releases of PyPI's `wasmtime` package, built by its authors, against what the runtime itself says
//! (tests/tools/foreign). The oldest one was built to abort on panic: much of its own code has neither unwind information
//! nor a frame pointer.

mod support;

use std::path::Path;
use std::process::Command;

/// The table of these releases and stops; fails if anything is wrong or, where the process holds the answer, unknown.
fn sweep(stops: &str, more: &[&str], versions: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cache = root.join("target/foreign");
    let mut command = Command::new("python3");
    command.arg(root.join("tests/tools/foreign/sweep.py")).arg("--wstate").arg(env!("CARGO_BIN_EXE_wstate"));
    command.arg("--cache").arg(&cache).args(["--verbose", "--stops", stops]).args(more).args(versions);
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
