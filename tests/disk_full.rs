//! No room for what is written: a failing exit code, one clear line and what to do next, and no half file. What was there
//! before is as it was.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::{Core, Host, Profile, Version, host_wasmtime, kernel_core_exe, wstate};

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
        for command in commands(source, wasm, out_name) {
            // Nothing at all, or a half of a kilobyte.
            for blocks in ["0", "1"] {
                std::fs::write(&out, "old").unwrap();
                std::fs::write(directory.join(".gdbinit"), "set pagination off\n").unwrap();
                let output = Command::new("sh")
                    .args(["-c", "ulimit -f $0; exec \"$@\"", blocks, env!("CARGO_BIN_EXE_wstate")])
                    .args(&command)
                    .env("HOME", &directory)
                    .env("XDG_DATA_HOME", directory.join("data"))
                    .stdin(Stdio::null())
                    .output()
                    .unwrap();
                assert_refused(&command, &output);
                assert_eq!(std::fs::read(&out).unwrap(), b"old", "{command:?}");
                assert_eq!(std::fs::read(directory.join(".gdbinit")).unwrap(), b"set pagination off\n");
                let left = names(&directory.join("data/wstate").canonicalize().unwrap_or(directory.clone()));
                let _ = std::fs::remove_dir_all(directory.join("data"));
                assert!(left.iter().all(|n| [".gdbinit", "out"].contains(&n.as_str())), "{command:?}: {left:?}");
                assert_eq!(names(&directory), [".gdbinit", "out"], "{command:?}");
            }
        }
    }
    // The same commands with room: each is refused for its output alone.
    for command in commands(&["-c", core_name], wasm, out_name) {
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        if arguments[0] != "plugin" {
            let output = wstate(&arguments);
            assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(std::fs::read(&out).unwrap().len() > 512, "{command:?}: nothing that a limit would cut");
        }
    }
}

#[test]
fn a_full_file_system_is_an_error_and_leaves_what_was_there() {
    // Without root's rights it takes a user namespace to mount something; not every machine lets its users have one.
    let root = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
    let flags = if root.expect("unshare is part of util-linux").success() { "-m" } else { "-Urm" };
    let (core, wasm) = core();
    let directory = core.directory.path().join("full");
    std::fs::create_dir(&directory).unwrap();
    let out = directory.join("out");
    // Full before anything is written, and with room for the texts of a symbol file alone.
    for room in ["0", "4"] {
        for command in commands(&["-c", core.path.to_str().unwrap()], wasm.to_str().unwrap(), out.to_str().unwrap()) {
            if room != "0" && command[0] != "symbols" {
                continue;
            }
            let script =
                "set -e; mount -t tmpfs -o size=64k none \"$1\"; cd \"$1\"; echo old > out; mkdir -p data/wstate
                echo 'set pagination off' > .gdbinit
                head -c $(($(stat -f -c %a .) * 4096 - $2 * 1024)) /dev/zero > filler; shift 2
                code=0; \"$@\" || code=$?
                echo left: $(cat out) $(cat .gdbinit) $(ls -A . data/wstate) >&3; exit $code";
            let output = Command::new("unshare")
                .args([flags, "sh", "-c", &format!("exec 3>&1; ({script}) >/dev/null"), "sh"])
                .args([directory.to_str().unwrap(), room, env!("CARGO_BIN_EXE_wstate")])
                .args(&command)
                .env("HOME", &directory)
                .env("XDG_DATA_HOME", directory.join("data"))
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let err = String::from_utf8_lossy(&output.stderr);
            if err.contains("unshare: ") || err.contains("mount: ") {
                println!("not tested: {}", err.trim_end());
                return;
            }
            let left = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(left, "left: old set pagination off .: .gdbinit data filler out data/wstate:\n", "{command:?}");
            assert_refused(&command, &Output { stdout: Vec::new(), ..output });
        }
    }
}
