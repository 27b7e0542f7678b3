//! The example for users of the library prints what a real process runs.

use crate::support::{self, Host, Profile};
use std::process::Command;

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
    // Each line has the number of the frame and its function; the runtime's own threads, which run no Wasm, come after.
    let frames = lines.take_while(|line| line.starts_with("  #"));
    let functions: Vec<&str> = frames.filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(functions, ["leaf", "fact", "fact", "fact", "fact", "fact", "fact", "run"]);
}
