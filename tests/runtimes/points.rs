//! Generated modules whose frames, operators, locals and operands are known by construction (`tests/tools/points.py`), in a real
//! host that stops in them.

use crate::support::{Profile, Version, host_wasmtime};
use std::path::Path;
use std::process::Command;

/// The table of so many modules; fails if anything is wrong or, of the kinds in `sure`, unknown.
fn generated(version: Version, flags: &str, seed: u32, count: u32, sure: &str) {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/points.py");
    let mut command = Command::new("python3");
    command.arg(tool).arg("--wstate").arg(env!("CARGO_BIN_EXE_wstate"));
    command.arg("--host").arg(host_wasmtime(version, Profile::Release));
    command.args(["--seed", &seed.to_string(), "--count", &count.to_string(), "--sure", sure]);
    let output = command.arg(format!("--flags={flags}")).output().expect("python3 runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{flags}:\n{text}");
    assert!(output.status.success(), "{version:?} {flags}: {text}{}", String::from_utf8_lossy(&output.stderr));
}

const ALL: &str = "frames,functions,inlined,operators,locals,operands";

#[test]
fn all_is_known_with_guest_debug() {
    generated(Version::V48, "--guest-debug", 1, 8, ALL);
    generated(Version::V48, "--guest-debug --inlining", 11, 8, ALL);
    generated(Version::V48, "--guest-debug --inlining --address-map off", 21, 4, ALL);
}

#[test]
fn what_may_be_missing_is_said() {
    generated(Version::V48, "--inlining", 31, 6, "functions");
    generated(Version::V48, "--inlining --address-map off", 41, 3, "functions");
}

/// 36 inlines between modules only.
#[test]
fn nothing_is_missing_where_nothing_is_inlined() {
    generated(Version::V48, "", 51, 4, "frames,functions,inlined,operators");
    generated(Version::V36, "--inlining", 61, 4, "frames,functions,inlined,operators");
}
