//! The example for users of the library prints what a real process runs.

mod support;

use std::process::Command;
use support::{Host, Profile};

#[test]
fn the_example_prints_the_wasm_frames() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut example = Command::new(cargo);
    example.current_dir(support::repository()).args(["run", "--quiet", "--example", "backtrace"]);
    let output = example.arg(host.pid().to_string()).output().expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said, "");
    let text = String::from_utf8(output.stdout).expect("it is text");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(format!("thread {}", host.tid()).as_str()));
    // The guest's function `run` has called `fact`, which has called itself five times and then `leaf`.
    let functions: Vec<&str> = lines.map(|line| line.split_once(' ').expect("a number").1.trim_start()).collect();
    assert_eq!(functions, ["leaf"]);
}
