//! Limits of the address space from too small to ample: whatever there is room for is right, and what there is no room for
//! is one clear error.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use wstate::arch::{Machine, Registers, x64};
use wstate::process::testing::CoreBuilder;

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs wstate within so many megabytes of address space, or without a limit.
fn run(megabytes: Option<u64>, args: &[&str]) -> Ran {
    let limit = megabytes.map_or("unlimited".to_string(), |n| (n << 10).to_string());
    let script = format!("ulimit -v {limit}; exec timeout 120 \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_wstate")]).args(args).env("RUST_BACKTRACE", "1");
    let out = command.stdin(Stdio::null()).output().expect("sh starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Ran { code: out.status.code(), out: text(out.stdout), err: text(out.stderr) }
}

#[test]
fn each_limit_gives_an_answer_or_one_clear_error() {
    let mut peer = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // One byte through it: cat has replaced the forked image.
    peer.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    peer.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = peer.id().to_string();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (core, symbols) = (path("core"), path("symbols"));
    let mut registers = Registers::unknown(Machine::X64);
    registers.set(x64::RIP, 0x10_0000);
    let bytes = CoreBuilder::new().thread(7, 0, &registers, 0).memory(0x10_0000, 5, &[0x90; 0x1000]).build();
    std::fs::write(&core, bytes).unwrap();
    // Each with a part of what it prints, where it prints something.
    let all: [(&[&str], &str); 8] = [
        (&["attach", &pid], "Thread "),
        (&["core", &core], "Thread "),
        (&["doctor", &pid], "this is x86-64 Linux"),
        (&["modules", "-p", &pid], ""),
        (&["symbols", "-p", &pid, "-o", &symbols], ""),
        (&["schema"], "schema_version"),
        (&["plugin", "path"], "wstate_gdb.py"),
        (&["--help"], "Usage:"),
    ];
    let (mut answers, mut errors) = (0, 0);
    for (args, part) in all {
        let free = run(None, args);
        assert!(free.code.is_some_and(|code| code <= 2) && free.out.contains(part), "{args:?}: {}", free.err);
        for megabytes in (20..=60).step_by(4).chain((70..=200).step_by(26)) {
            // Below some limit the program cannot even be loaded, and nothing of it runs.
            if run(Some(megabytes), &["--version"]).code != Some(0) {
                continue;
            }
            let ran = run(Some(megabytes), args);
            let what = format!("{args:?} in {megabytes} MB: {:?}\n{}{}", ran.code, ran.out, ran.err);
            for bad in ["panicked", "stack backtrace", "memory allocation of", "does not answer"] {
                assert!(!ran.err.contains(bad) && !ran.out.contains(bad), "{what}");
            }
            let is_error = ran.code == Some(2) && ran.err.starts_with("wstate: error: ");
            if is_error && ran.err.contains("memory") {
                assert!(
                    ran.err.lines().count() == 2 && ran.err.contains("\nhint: raise the limit (ulimit -v"),
                    "{what}"
                );
                // Only a command that prints stacks has options that make it print less.
                assert_eq!(ran.err.contains("--brief"), ["attach", "core"].contains(&args[0]), "{what}");
                errors += 1;
            } else {
                // A report may be without names that there was no room for, and says so.
                let is_partial = free.code == Some(0) && ran.code == Some(1) && ran.out.contains("note: ");
                assert!(ran.code == free.code || is_partial, "{what}");
                assert!(ran.out.contains(part) && (is_error || ran.err == free.err), "{what}");
                answers += 1;
            }
        }
    }
    peer.kill().unwrap();
    peer.wait().unwrap();
    assert!(answers > errors, "{answers} answers, {errors} errors");
    println!("{answers} answers, {errors} errors");
}

#[test]
fn a_core_that_is_larger_than_the_limit_is_told_with_what_helps() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    let core = path.to_str().unwrap();
    let mut registers = Registers::unknown(Machine::X64);
    registers.set(x64::RIP, 0x10_0000);
    let built = CoreBuilder::new().thread(7, 0, &registers, 0).memory(0x10_0000, 5, &[0x90; 0x1000]);
    std::fs::write(&path, built.build()).unwrap();
    // Most of it is a hole.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(100 << 20).unwrap();
    let symbols = directory.path().join("symbols");
    let symbols = symbols.to_str().unwrap();
    let all: [&[&str]; 4] = [&["core", core], &["doctor", core], &["modules", core], &["symbols", core, "-o", symbols]];
    let mut told = 0;
    for args in all {
        for megabytes in (30..=90).step_by(10) {
            if run(Some(megabytes), &["--version"]).code != Some(0) {
                continue;
            }
            let ran = run(Some(megabytes), args);
            let said = format!("{}{}", ran.out, ran.err);
            let what = format!("{args:?} in {megabytes} MB: {:?}\n{said}", ran.code);
            assert_eq!(ran.code, Some(2), "{what}");
            assert!(said.contains("raise the limit (ulimit -v, or the container's)"), "{what}");
            assert!(!said.contains("gcore") && !said.contains("panicked"), "{what}");
            told += 1;
        }
    }
    assert!(told > 0, "no limit lets the program start and is too small for the core");
}
