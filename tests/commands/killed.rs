//! Whatever ends wstate while it writes, nothing is left beside the output, and the output is the old one or the new one.

use crate::support::{Core, Profile, host_singlepass, kernel_core_exe};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// A guest with some pages of memory that are not zero.
const GUEST: &str = r#"(module
  (import "env" "stop" (func $stop (param i32)))
  (memory (export "memory") 40)
  (func (export "run") (local i32)
    (loop
      (i32.store (local.get 0) (i32.const 0x5a5a5a5a))
      (local.set 0 (i32.add (local.get 0) (i32.const 8192)))
      (br_if 0 (i32.lt_u (local.get 0) (i32.const 2600000))))
    (call $stop (i32.const 1))))"#;

fn core() -> Core {
    let directory = tempfile::tempdir().unwrap();
    let guest = directory.path().join("guest.wasm");
    std::fs::write(&guest, wat::parse_str(GUEST).unwrap()).unwrap();
    let flags = ["--wasm", guest.to_str().unwrap(), "--call", "run", "--stop-at", "env.stop"];
    kernel_core_exe(host_singlepass(Profile::Release), "wasm", &flags).expect("the kernel writes cores here")
}

/// Every command that writes a file: to `out`, without a sandbox, so that there is one process to end.
fn commands(core: &str, out: &str) -> Vec<Vec<String>> {
    let all: [&[&str]; 5] = [
        &["core", core, "--no-sandbox", "--json", "--output", out],
        &["symbols", "-c", core, "-o", out],
        &["memory", "-c", core, "--no-sandbox", "0", "2621440", "--output", out],
        &["export", "-c", core, "--no-sandbox", "--wasm-coredump", out],
        &["snapshot", "-c", core, "--no-sandbox", "-o", out],
    ];
    all.iter().map(|command| command.iter().map(|word| word.to_string()).collect()).collect()
}

/// strace, with no signal ignored. A shell that starts this test in the background lets it ignore SIGINT and SIGQUIT, and
/// wstate would ignore them too.
fn strace() -> Command {
    let mut strace = Command::new("env");
    strace.args(["--default-signal", "strace"]);
    strace
}

/// Runs wstate under strace with these injections; its status, and the calls that it made.
fn run(command: &[String], inject: &[String], log: &Path) -> (ExitStatus, Vec<String>) {
    let mut strace = strace();
    strace.args(["-f", "-qq", "-e", "trace=open,write,lseek,linkat,rename,renameat,renameat2", "-o"]).arg(log);
    for inject in inject {
        strace.args(["-e", inject]);
    }
    strace.arg(env!("CARGO_BIN_EXE_wstate")).args(command);
    let status = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let calls = String::from_utf8_lossy(&std::fs::read(log).unwrap()).lines().map(str::to_string).collect();
    (status.expect("this test needs strace"), calls)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// How often wstate was ended.
fn sweep(signals: &[&str]) -> usize {
    let core = core();
    let scratch = tempfile::tempdir().unwrap();
    let (directory, log) = (scratch.path().join("out"), scratch.path().join("log"));
    std::fs::create_dir(&directory).unwrap();
    let out = directory.join("file");
    let mut ended = 0;
    for command in commands(core.path.to_str().unwrap(), out.to_str().unwrap()) {
        let (status, calls) = run(&command, &[], &log);
        assert!(status.code().is_some_and(|code| code < 2), "{command:?}: {status}");
        let whole = std::fs::read(&out).unwrap();
        let beside = names(&directory);
        for name in ["write", "lseek", "linkat"] {
            let count = calls.iter().filter(|c| c.contains(&format!(" {name}("))).count();
            let step = (count / 6).max(1);
            for number in (1..=count).step_by(step) {
                for signal in signals {
                    for old in [None, Some("old")] {
                        // The file has a name between the two calls that let it replace another one.
                        if name == "linkat" && old.is_some() && *signal == "KILL" {
                            continue;
                        }
                        for name in names(&directory) {
                            std::fs::remove_file(directory.join(name)).unwrap();
                        }
                        if let Some(old) = old {
                            std::fs::write(&out, old).unwrap();
                        }
                        let inject = format!("inject={name}:signal={signal}:when={number}");
                        let (status, calls) = run(&command, &[inject], &log);
                        let what = format!("{command:?} {name} {number} {signal} {old:?}: {status}");
                        let there = names(&directory);
                        assert!(there.iter().all(|name| beside.contains(name)), "{what}: {there:?}, {calls:#?}");
                        let found = std::fs::read(&out).ok();
                        let is_old = found.as_deref() == old.map(str::as_bytes);
                        assert!(is_old || found.as_ref() == Some(&whole), "{what}");
                        ended += usize::from(status.signal().is_some() || status.code() > Some(128));
                    }
                }
            }
        }
    }
    ended
}

#[test]
fn nothing_is_left_where_files_need_no_names() {
    let ended = sweep(&["KILL", "INT", "TERM"]);
    println!("ended {ended} times");
    assert!(ended > 100, "{ended}");
}

/// On a file system without unnamed files, each signal at a moment when the file is there.
#[test]
fn signals_remove_what_has_a_name() {
    let core = core();
    let scratch = tempfile::tempdir().unwrap();
    let (directory, log) = (scratch.path().join("out"), scratch.path().join("log"));
    std::fs::create_dir(&directory).unwrap();
    let out = directory.join("file");
    for command in commands(core.path.to_str().unwrap(), out.to_str().unwrap()) {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            // On a machine that does other things, this test may not run in time to send the signal.
            let ended = (0..10).any(|_| {
                std::fs::write(&out, "old").unwrap();
                let status = end_with(signal, &command, &directory, &log);
                let there = names(&directory);
                assert!(!there.iter().any(|name| is_temporary(name)), "{command:?} {signal}: {status}, {there:?}");
                let ended = status.signal() == Some(signal as i32);
                assert!(!ended || std::fs::read(&out).unwrap() == b"old", "{command:?} {signal}");
                ended
            });
            assert!(ended, "{command:?}: {signal} never ended it");
        }
    }
}

fn is_temporary(name: &str) -> bool {
    name.starts_with(".wstate-")
}

/// Runs a command where no file can be without a name, and sends it a signal when its file is there. The file stays there
/// for a second: the call that gives it its last name waits.
fn end_with(signal: Signal, command: &[String], directory: &Path, log: &Path) -> ExitStatus {
    let mut strace = strace();
    strace.args(["-f", "-qq", "-e", "trace=open,rename,renameat,renameat2", "-o"]).arg(log);
    strace.arg("-P").arg(directory).arg("-P").arg(directory.join("file"));
    strace.args(["-e", "inject=open:error=EOPNOTSUPP", "-e", "inject=rename,renameat,renameat2:delay_enter=1000000"]);
    strace.arg(env!("CARGO_BIN_EXE_wstate")).args(command);
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut strace = strace.spawn().expect("this test needs strace");
    let children = format!("/proc/{0}/task/{0}/children", strace.id());
    loop {
        if let Some(status) = strace.try_wait().unwrap() {
            return status;
        }
        if names(directory).iter().any(|name| is_temporary(name)) {
            let child = std::fs::read_to_string(&children).unwrap_or_default();
            if let Some(child) = child.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
                let _ = kill(Pid::from_raw(child), signal);
            }
            return strace.wait().unwrap();
        }
        std::thread::yield_now();
    }
}
