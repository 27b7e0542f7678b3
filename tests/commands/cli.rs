//! The binary from outside: help, exit codes, streams. Nothing here needs a target that runs Wasm.

use crate::support::schema;
use std::io::Read;
use std::process::{Command, Output, Stdio};

fn wstate(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_wstate"));
    c.args(args).stdin(Stdio::null()).env("COLUMNS", "100").env_remove("NO_COLOR").env_remove("CLICOLOR");
    c
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = wstate(args).output().unwrap();
    schema::check_output(&args.iter().map(|a| a.as_ref()).collect::<Vec<_>>(), &stdout);
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A process id beyond any `pid_max` (2^22).
const NOBODY: &str = "4200000";

fn help(args: &[&str]) -> String {
    let (code, out, err) = run(args);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    out
}

#[test]
fn help_of_wstate() {
    insta::assert_snapshot!(help(&["--help"]));
}

#[test]
fn short_help_of_wstate() {
    insta::assert_snapshot!(help(&["-h"]));
}

#[test]
fn help_of_attach() {
    insta::assert_snapshot!(help(&["attach", "--help"]));
}

#[test]
fn help_of_core() {
    insta::assert_snapshot!(help(&["core", "--help"]));
}

#[test]
fn help_of_symbols() {
    insta::assert_snapshot!(help(&["symbols", "--help"]));
}

#[test]
fn help_of_modules() {
    insta::assert_snapshot!(help(&["modules", "--help"]));
}

#[test]
fn help_of_snapshot() {
    insta::assert_snapshot!(help(&["snapshot", "--help"]));
}

#[test]
fn help_of_restore() {
    insta::assert_snapshot!(help(&["restore", "--help"]));
}

#[test]
fn help_of_image() {
    insta::assert_snapshot!(help(&["image", "--help"]));
}

#[test]
fn help_of_memory() {
    insta::assert_snapshot!(help(&["memory", "--help"]));
}

#[test]
fn help_of_export() {
    insta::assert_snapshot!(help(&["export", "--help"]));
}

#[test]
fn help_of_doctor() {
    insta::assert_snapshot!(help(&["doctor", "--help"]));
}

#[test]
fn help_of_schema() {
    insta::assert_snapshot!(help(&["schema", "--help"]));
}

#[test]
fn help_of_plugin() {
    insta::assert_snapshot!(help(&["plugin", "--help"]));
}

#[test]
fn plugins_come_and_go() {
    let home = tempfile::tempdir().unwrap();
    let plugin = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_wstate"));
        let command = command.arg("plugin").args(args).env("HOME", home.path()).env_remove("XDG_DATA_HOME");
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    plugin(&["install"]);
    plugin(&["install", "gdb"]);
    let path = plugin(&["path", "gdb"]);
    assert!(std::path::Path::new(path.trim()).starts_with(home.path()));
    let init = std::fs::read_to_string(home.path().join(".gdbinit")).unwrap();
    let loaded = init.strip_prefix("source ").map(str::trim_end).expect("one line");
    assert!(std::fs::read_to_string(loaded).unwrap().contains(&format!("source {path}")));
    assert!(home.path().join(".lldbinit").exists());
    plugin(&["uninstall"]);
    let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".local"]);
    assert!(!std::path::Path::new(path.trim()).exists());
}

/// An init file that no reading would end, or that is too large, is told by doctor, and no install touches it.
#[test]
fn init_files_that_are_not_read() {
    use std::os::unix::fs::FileTypeExt;
    use wstate::limits::MAX_INIT_BYTES;
    for name in [".gdbinit", ".lldbinit"] {
        let debugger = name.trim_start_matches('.').trim_end_matches("init");
        let home = tempfile::tempdir().unwrap();
        let init = home.path().join(name);
        let wstate = |args: &[&str]| {
            let out = wstate(args).env("HOME", home.path()).env_remove("XDG_DATA_HOME").output().unwrap();
            (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
        };
        let refused = |why: &str| {
            let path = init.display();
            let (_, text, _) = wstate(&["doctor"]);
            let told =
                format!("warn  {path} cannot be read, so it is not known which {debugger} plugin it loads: {why}\n");
            assert!(text.contains(&told), "{told}{text}");
            for action in ["install", "uninstall"] {
                let (code, out, err) = wstate(&["plugin", action, debugger]);
                assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
                assert!(err.contains(&path.to_string()) && err.contains(why), "{err}");
            }
            assert!(!home.path().join(".local").exists());
        };
        assert!(Command::new("mkfifo").arg(&init).status().unwrap().success());
        refused("it is a FIFO, not a regular file");
        assert!(init.symlink_metadata().unwrap().file_type().is_fifo());
        std::fs::remove_file(&init).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &init).unwrap();
        refused("it is a device, not a regular file");
        std::fs::remove_file(&init).unwrap();
        // Sparse: neither written nor read.
        std::fs::File::create(&init).unwrap().set_len(MAX_INIT_BYTES + 1).unwrap();
        refused(&format!("it has {} bytes, and wstate reads at most {MAX_INIT_BYTES}", MAX_INIT_BYTES + 1));
        assert_eq!(init.metadata().unwrap().len(), MAX_INIT_BYTES + 1);
    }
}

#[test]
fn version_is_data() {
    assert_eq!(run(&["--version"]), (Some(0), format!("wstate {}\n", env!("CARGO_PKG_VERSION")), String::new()));
}

#[test]
fn wrong_usage_is_64_and_says_so_on_stderr_only() {
    for args in [
        &[][..],
        &["attach"],
        &["attach", "0"],
        &["attach", "near-host"],
        &["attach", "1", "2"],
        &["attach", "1", "-p", "2"],
        &["attach", "1", "--format", "xml"],
        &["attach", "1", "-j", "--format", "text"],
        &["attach", "1", "--pretty", "--format", "classic"],
        &["attach", "1", "--brief", "-l"],
        &["attach", "1", "-n", "-1"],
        &["attach", "1", "--route", "artifact"],
        &["core"],
        &["core", "c", "e", "x"],
        &["core", "-c", "c", "e", "x"],
        &["core", "-c", "c", "-e", "e", "x"],
        &["core", "c", "--settle"],
        &["-p", "1", "-c", "c"],
        &["-p", "1", "-e", "e"],
        &["-e", "e"],
        &["-c", "c", "--settle"],
        &["--json"],
        &["-p", "1", "doctor"],
        &["doctor", "x"],
        &["modules"],
        &["modules", "-p", "1", "-c", "c"],
        &["modules", "-p", "1", "--route", "artifact"],
        &["memory", "-p", "1", "0"],
        &["memory", "-p", "1", "0", "-1"],
        &["memory", "-p", "1", "0x", "1"],
        &["memory", "-p", "1", "--instance", "x", "0", "1"],
        &["export", "-p", "1"],
        &["export", "-p", "1", "--wasm-coredump", "/tmp/x", "--compat", "gdb"],
        &["schema", "frames"],
        &["frobnicate"],
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, out.as_str()), (Some(64), ""), "{args:?}");
        assert!(err.contains("Usage:") || err.contains("error:"), "{args:?}: {err}");
    }
}

#[test]
fn every_spelling_of_a_target_is_taken() {
    for args in [
        &["attach", NOBODY][..],
        &["attach", "-p", NOBODY],
        &["-p", NOBODY],
        &["--pid", NOBODY, "--settle", "-t", NOBODY, "--json", "--pretty"],
        &["attach", NOBODY, "-1", "-n", "0", "--route", "vmctx", "--route", "heap", "-l", "--stack", "-v"],
        &["core", "/nonexistent/core"],
        &["core", "/nonexistent/core", "/nonexistent/exe", "--wasm", "a", "--wasm", "b", "--debug-dir", "d"],
        &["core", "-c", "/nonexistent/core", "/nonexistent/exe"],
        &["core", "/nonexistent/core", "-e", "/nonexistent/exe"],
        &["-c", "/nonexistent/core", "-e", "/nonexistent/exe", "--sysroot", "/nonexistent"],
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert!(err.starts_with("wstate: error: "), "{args:?}: {err}");
        assert!(!err.contains("panicked"), "{args:?}: {err}");
    }
}

#[test]
fn a_place_that_cannot_be_written_is_told_before_anything_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("missing/report.json");
    let (code, out, err) = run(&["attach", NOBODY, "--output", path.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert_eq!(
        err,
        format!("wstate: error: cannot write {}: No such file or directory (os error 2)\n", path.display())
    );
    let (code, _, err) = run(&["attach", NOBODY, "--output", dir.path().to_str().unwrap()]);
    assert_eq!(code, Some(2));
    assert!(err.contains("directory"), "{err}");
}

#[test]
fn an_output_does_not_replace_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (core, link, exe, wasm) = (path("core"), path("link"), path("exe"), path("a.wasm"));
    for file in [&core, &exe, &wasm] {
        std::fs::write(file, file).unwrap();
    }
    std::os::unix::fs::symlink(&core, &link).unwrap();
    let all: [&[&str]; 7] = [
        &["core", &core, "--output", &link],
        &["core", &core, &exe, "--output", &exe],
        &["core", &core, "--wasm", &wasm, "--output", &wasm],
        &["memory", "-c", &core, "0", "8", "--output", &core],
        &["export", "-c", &core, "--wasm-coredump", &core],
        &["snapshot", "-c", &core, "--output", &core],
        &["symbols", "-c", &core, "--output", &core],
    ];
    for args in all {
        let (code, out, err) = run(args);
        assert_eq!((code, out.as_str()), (Some(64), ""), "{args:?}: {err}");
        assert!(err.contains("which is read"), "{args:?}: {err}");
    }
    for file in [core, exe, wasm] {
        assert_eq!(std::fs::read_to_string(&file).unwrap(), file);
    }
}

/// A log that a shell appends to keeps what it has, and gets what comes later behind it; nothing is made in `/dev`.
#[test]
fn standard_output_by_its_path_is_written_and_not_replaced() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let me = std::process::id().to_string();
    for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "-"] {
        let args = ["attach", &me, "--output", name, "--no-lines"];
        std::fs::write(&log, "before\n").unwrap();
        let mut file = std::fs::File::options().append(true).open(&log).unwrap();
        let done = wstate(&args).stdout(file.try_clone().unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(said.is_empty() && matches!(done.status.code(), Some(0 | 1)), "{name}: {said}");
        file.write_all(b"after\n").unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(text.starts_with("before\nprocess ") && text.ends_with("\nafter\n"), "{name}: {text}");
        // A file without a name is one, too.
        std::fs::remove_file(&log).unwrap();
        let done = wstate(&args).stdout(file).output().unwrap();
        assert!(done.stderr.is_empty() && !log.exists(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    }
    assert!(std::fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());
    let (code, _, err) = run(&["symbols", "-p", &me, "-o", "-"]);
    assert_eq!(code, Some(64), "{err}");
}

#[test]
fn a_failed_run_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let (code, ..) = run(&["attach", NOBODY, "--output", path.to_str().unwrap()]);
    assert_eq!(code, Some(2));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_a_clear_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let out = wstate(&["schema"]).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let err = String::from_utf8(out.stderr).unwrap();
    assert_eq!(
        err,
        "wstate: error: cannot write standard output: No space left on device (os error 28)\n\
         hint: make room, or name a place that has some; no file was replaced by half of one\n"
    );
}

#[test]
fn a_closed_pipe_is_quiet() {
    for args in [&["schema"][..], &["--help"], &["--version"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let out = wstate(args).stdout(writer).output().unwrap();
        assert_eq!((out.status.code(), out.stderr.as_slice()), (Some(0), &b""[..]), "{args:?}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let code = wstate(&["attach", NOBODY]).stderr(writer).output().unwrap().status.code();
    assert_eq!(code, Some(2), "the error cannot be told, but the code can");
}

#[test]
fn the_schema_is_json() {
    let schema: serde_json::Value = serde_json::from_str(&help(&["schema"])).unwrap();
    assert!(schema["properties"]["threads"].is_object());
}

#[test]
fn doctor_finds_a_living_process() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // One byte through it: cat has replaced the forked image.
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = child.id().to_string();
    let (_, text, err) = run(&["doctor", &pid]);
    assert!(text.contains(&format!("ok    process {pid} (cat) is there")), "{text}{err}");
    assert!(text.contains("no code was compiled at run time"), "{text}");
    let (code, json, _) = run(&["doctor", &pid, "-j"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["pid"].to_string(), pid);
    let worst = |s: &str| json["checks"].as_array().unwrap().iter().any(|c| c["status"] == s);
    assert_eq!(code, Some(if worst("fail") { 2 } else { i32::from(worst("warn")) }));
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn doctor_says_that_a_process_is_missing_or_dead() {
    let (code, text, _) = run(&["doctor", NOBODY]);
    assert_eq!(code, Some(2));
    assert!(text.contains(&format!("FAIL  there is no process {NOBODY}\n      next: ")), "{text}");
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    // The end of its output: it has exited or is about to; the zombie stays until wait.
    child.stdout.as_mut().unwrap().read_to_end(&mut Vec::new()).unwrap();
    let pid = child.id();
    while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ") {
        std::thread::yield_now();
    }
    let (code, text, _) = run(&["doctor", &pid.to_string()]);
    child.wait().unwrap();
    assert_eq!(code, Some(2));
    assert!(text.contains("has ended"), "{text}");
}
