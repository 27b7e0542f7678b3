//! No room for what is written: a failing exit code, one clear line and what to do next, and no half file. What was there
//! before is as it was.

use crate::support::missing::missing;
use crate::support::{Core, Host, Profile, Version, host_singlepass, host_wasmtime, kernel_core_exe, wstate};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A core with everything in it that can be written down, and a directory for what is written. In the directory is the
/// guest: its text form belongs to a symbol file.
fn core() -> (Core, PathBuf) {
    let exe = host_wasmtime(Version::V48, Profile::Stripped);
    let core = kernel_core_exe(exe, "memories", &["--dump-wasm", "guest.wasm"]).expect("the kernel writes cores here");
    let wasm = core.directory.path().join("guest.wasm");
    (core, wasm)
}

/// Every command that writes a file, with `out` in `directory` for it; what it reads is `source`.
fn commands(source: &[&str], wasm: &str, out: &str) -> Vec<Vec<String>> {
    let show = |more: &[&'static str]| {
        let command = match source {
            ["-p", pid] => vec!["attach", *pid],
            _ => [&["core"], source].concat(),
        };
        [&command[..], more, &["--output", out]].concat()
    };
    let of = |command: &'static str, more: &[&'static str]| [&[command], source, more].concat();
    let all = [
        show(&[]),
        show(&["--json", "--pretty"]),
        [of("symbols", &["-o"]), vec![out, "--wasm", wasm]].concat(),
        [of("memory", &["0", "65536", "--output"]), vec![out]].concat(),
        [of("memory", &["0", "65536", "--raw", "--output"]), vec![out]].concat(),
        [of("export", &["--wasm-coredump"]), vec![out]].concat(),
        vec!["plugin", "install"],
    ];
    all.into_iter().map(|command| command.into_iter().map(str::to_string).collect()).collect()
}

/// A guest with what an image holds: memory, globals, one of them imported, and frames enough for more than a kilobyte.
const GUEST: &str = r#"(module
  (import "env" "stop" (func $stop (param i32)))
  (import "env" "answer" (global $answer i32))
  (global $sum (mut i64) (i64.const 7))
  (memory 1)
  (func $down (param $n i32)
    (if (local.get $n)
      (then (call $down (i32.sub (local.get $n) (i32.const 1))))
      (else (i32.store (i32.const 40000) (global.get $answer)) (call $stop (i32.const 1)))))
  (func (export "run") (call $down (i32.const 30))))"#;

/// Every command that writes an image or the runtime's own text, as [`commands`].
fn image_commands(source: &[&str], out: &str) -> Vec<Vec<String>> {
    let show = if source[0] == "-p" { "attach" } else { "core" };
    let all: [(&str, &[&str]); 5] = [
        ("snapshot", &["-o", out]),
        ("snapshot", &["--with-imports", "-o", out]),
        ("snapshot", &["--execution-state", "-o", out]),
        (show, &["--format", "image", "--output", out]),
        (show, &["--format", "classic", "--output", out]),
    ];
    let words = |command: &str, more: &[&str]| {
        let place = if command == "snapshot" { source } else { &source[1..] };
        [&[command], place, more].concat().into_iter().map(str::to_string).collect()
    };
    all.iter().map(|(command, more)| words(command, more)).collect()
}

/// A core of [`GUEST`] and the flags of a host that runs it, which are of use as long as the core's directory is there.
fn image_core() -> (Core, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let wasm = directory.path().join("guest.wasm");
    std::fs::write(&wasm, wat::parse_str(GUEST).unwrap()).unwrap();
    let mut flags = ["--wasm", wasm.to_str().unwrap(), "--call", "run", "--bounds-checks", "on"].map(str::to_string);
    let core = kernel_core_exe(host_singlepass(Profile::Debug), "wasm", &flags.each_ref().map(String::as_str));
    let core = core.expect("the kernel writes cores here");
    let kept = core.directory.path().join("guest.wasm");
    std::fs::copy(&wasm, &kept).unwrap();
    flags[1] = kept.to_str().unwrap().to_string();
    (core, flags.to_vec())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

fn assert_refused(command: &[String], output: &Output) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{command:?}: {:?} {err}", output.status);
    assert!(output.stdout.is_empty(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    let lines: Vec<&str> = err.lines().collect();
    let [error, hint] = lines.as_slice() else { panic!("{command:?}: {err}") };
    assert!(error.starts_with("wstate: error: cannot write /"), "{command:?}: {err}");
    assert!(hint.starts_with("hint: make room"), "{command:?}: {err}");
}

/// Runs each command with no room at all and with room for half of a kilobyte.
fn assert_limited(all: &[Vec<String>], directory: &Path) {
    let out = directory.join("out");
    for command in all {
        for blocks in ["0", "1"] {
            std::fs::write(&out, "old").unwrap();
            std::fs::write(directory.join(".gdbinit"), "set pagination off\n").unwrap();
            let output = Command::new("sh")
                .args(["-c", "ulimit -f $0; exec \"$@\"", blocks, env!("CARGO_BIN_EXE_wstate")])
                .args(command)
                .env("HOME", directory)
                .env("XDG_DATA_HOME", directory.join("data"))
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert_refused(command, &output);
            assert_eq!(std::fs::read(&out).unwrap(), b"old", "{command:?}");
            assert_eq!(std::fs::read(directory.join(".gdbinit")).unwrap(), b"set pagination off\n");
            let left = names(&directory.join("data/wstate").canonicalize().unwrap_or(directory.to_path_buf()));
            let _ = std::fs::remove_dir_all(directory.join("data"));
            assert!(left.iter().all(|n| [".gdbinit", "out"].contains(&n.as_str())), "{command:?}: {left:?}");
            assert_eq!(names(directory), [".gdbinit", "out"], "{command:?}");
        }
    }
}

/// The same commands with room: each is refused for its output alone.
fn assert_written(all: &[Vec<String>], out: &Path) {
    for command in all.iter().filter(|c| c[0] != "plugin") {
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        let output = wstate(&arguments);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(std::fs::read(out).unwrap().len() > 512, "{command:?}: nothing that a limit would cut");
    }
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_leaves_what_was_there() {
    let (core, wasm) = core();
    let host = Host::start_exe(core.exe.clone(), "memories", &[]);
    let (pid, core_name) = (host.pid().to_string(), core.path.to_str().unwrap());
    let directory = core.directory.path().join("small");
    std::fs::create_dir(&directory).unwrap();
    let out = directory.join("out");
    let (out_name, wasm) = (out.to_str().unwrap(), wasm.to_str().unwrap());
    for source in [&["-p", &pid][..], &["-c", core_name]] {
        assert_limited(&commands(source, wasm, out_name), &directory);
    }
    assert_written(&commands(&["-c", core_name], wasm, out_name), &out);
}

#[test]
fn a_limit_of_file_sizes_leaves_no_half_image() {
    let (core, flags) = image_core();
    let host = Host::start_exe(core.exe.clone(), "wasm", &flags.iter().map(String::as_str).collect::<Vec<_>>());
    let (pid, core_name) = (host.pid().to_string(), core.path.to_str().unwrap());
    let directory = core.directory.path().join("small");
    std::fs::create_dir(&directory).unwrap();
    let out = directory.join("out");
    let out_name = out.to_str().unwrap();
    for source in [&["-p", &pid][..], &["-c", core_name]] {
        assert_limited(&image_commands(source, out_name), &directory);
    }
    assert_written(&image_commands(&["-c", core_name], out_name), &out);
}

#[test]
fn an_image_is_not_there_without_its_imports_or_what_is_said_of_it() {
    let (core, flags) = image_core();
    let host = Host::start_exe(core.exe.clone(), "wasm", &flags.iter().map(String::as_str).collect::<Vec<_>>());
    let (pid, core_name) = (host.pid().to_string(), core.path.to_str().unwrap());
    let directory = core.directory.path().join("some");
    std::fs::create_dir(&directory).unwrap();
    let out = directory.join("out");
    let imports = directory.join("out.imports.json");
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    for source in [["-p", &pid], ["-c", core_name]] {
        let snapshot = |out: &str, more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_wstate"));
            command.arg("snapshot").args(source).args(["-o", out]).args(more).stdin(Stdio::null());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        std::fs::write(&out, "old").unwrap();
        std::os::unix::fs::symlink("/dev/full", &imports).unwrap();
        let output = snapshot(out.to_str().unwrap(), &["--with-imports"]).output().unwrap();
        assert_refused(&["--with-imports".to_string()], &output);
        std::fs::remove_file(&imports).unwrap();
        assert_eq!((std::fs::read(&out).unwrap(), names(&directory)), (b"old".to_vec(), vec!["out".to_string()]));

        let output = snapshot(out.to_str().unwrap(), &["--with-imports"]).stdout(full()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("wstate: error: cannot write standard output: No space left"), "{said}");
        assert_eq!((std::fs::read(&out).unwrap(), names(&directory)), (b"old".to_vec(), vec!["out".to_string()]));

        assert_refused(&["/dev/full".to_string()], &snapshot("/dev/full", &[]).output().unwrap());
        // A reader that goes away in the middle: an image is larger than what a pipe holds.
        let mut child = snapshot("/dev/stdout", &[]).spawn().unwrap();
        let mut reader = child.stdout.take().unwrap();
        std::io::Read::read_exact(&mut reader, &mut [0]).unwrap();
        drop(reader);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("wstate: error: cannot write /dev/stdout: Broken pipe"), "{said}");
    }
}

/// What a pipe gets is in a temporary file first, which needs room, too.
#[test]
fn no_room_for_an_image_that_goes_into_a_pipe() {
    let (core, flags) = image_core();
    let host = Host::start_exe(core.exe.clone(), "wasm", &flags.iter().map(String::as_str).collect::<Vec<_>>());
    let directory = core.directory.path().join("temporary");
    std::fs::create_dir(&directory).unwrap();
    let snapshot = |temporary: &Path| {
        Command::new("sh")
            .args(["-c", "ulimit -f 1; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_wstate")])
            .args(["snapshot", "-p", &host.pid().to_string(), "-o", "/dev/null"])
            .env("TMPDIR", temporary)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    for (temporary, why, hint) in
        [(&directory, "File too large", "hint: make room"), (&directory.join("none"), "No such file or directory", "")]
    {
        let output = snapshot(temporary);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && output.stdout.is_empty(), "{said}");
        let temporary = temporary.display();
        let error =
            format!("wstate: error: cannot write a temporary file in {temporary} (TMPDIR names another place): {why}");
        assert!(said.starts_with(&error) && said.contains(hint), "{said}");
        assert!(names(&directory).is_empty(), "{:?}", names(&directory));
    }
}

#[test]
fn a_full_file_system_is_an_error_and_leaves_what_was_there() {
    let (core, wasm) = core();
    let directory = core.directory.path().join("full");
    std::fs::create_dir(&directory).unwrap();
    let out = directory.join("out");
    let all = commands(&["-c", core.path.to_str().unwrap()], wasm.to_str().unwrap(), out.to_str().unwrap());
    for command in &all {
        // Full before anything is written, and with room for the texts of a symbol file alone.
        let rooms: &[u32] = if command[0] == "symbols" { &[0, 4] } else { &[0] };
        assert_no_room(command, &directory, rooms);
    }
}

#[test]
fn a_full_file_system_leaves_no_half_image() {
    let (core, _) = image_core();
    let directory = core.directory.path().join("full");
    std::fs::create_dir(&directory).unwrap();
    let out = directory.join("out");
    for command in image_commands(&["-c", core.path.to_str().unwrap()], out.to_str().unwrap()) {
        // With less than an image needs, and with all of that but for its imports.
        let imports = command.iter().any(|word| word == "--with-imports");
        let rooms: &[u32] = if imports { &[0, 4, 8, 12, 16] } else { &[0] };
        assert_no_room(&command, &directory, rooms);
    }
}

/// Runs a command in file systems with so many free KiB.
fn assert_no_room(command: &[String], directory: &Path, rooms: &[u32]) {
    // Without root's rights it takes a user namespace to mount something; not every machine lets its users have one.
    let root = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
    let flags = if root.expect("unshare is part of util-linux").success() { "-m" } else { "-Urm" };
    let script = "set -e; mount -t tmpfs -o size=64k none \"$1\"; cd \"$1\"; echo old > out; mkdir -p data/wstate
        echo 'set pagination off' > .gdbinit
        head -c $(($(stat -f -c %a .) * 4096 - $2 * 1024)) /dev/zero > filler; shift 2
        code=0; \"$@\" || code=$?
        echo left: $(cat out) $(cat .gdbinit) $(ls -A . data/wstate) >&3; exit $code";
    for room in rooms {
        let output = Command::new("unshare")
            .args([flags, "sh", "-c", &format!("exec 3>&1; ({script}) >/dev/null"), "sh"])
            .args([directory.to_str().unwrap(), &room.to_string(), env!("CARGO_BIN_EXE_wstate")])
            .args(command)
            .env("HOME", directory)
            .env("XDG_DATA_HOME", directory.join("data"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        if err.contains("unshare: ") || err.contains("mount: ") {
            return missing(err.trim_end());
        }
        let left = String::from_utf8_lossy(&output.stdout).into_owned();
        let wanted = "left: old set pagination off .: .gdbinit data filler out data/wstate:\n";
        assert_eq!(left, wanted, "{command:?}, {room} KiB");
        assert_refused(command, &Output { stdout: Vec::new(), ..output });
    }
}
