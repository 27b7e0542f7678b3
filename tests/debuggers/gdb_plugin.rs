//! The gdb plugin in gdb, on live hosts and cores: what it prints is what `wstate` prints of the same stop.

use crate::support;
use crate::support::debuggers::{Debugger, Layout, arg, at_rest, missing, same, text};
use crate::support::{Host, Profile, gcore};

#[test]
fn a_stop_that_cannot_be_visited_twice_is_the_same_in_its_core() {
    let host = Host::start("spin", &[], Profile::Release);
    let core = host.directory.path().join("core.spin");
    let write = format!("generate-core-file {}", core.display());
    let live = Debugger::Gdb.run(&["-p", &host.pid().to_string()], &["wasm-bt full all", &write]);
    let of_core = text(&["core", arg(&core), arg(&host.exe), "--no-color"]);
    same("spin: gdb, core", &live.texts[0], &of_core);
    let in_gdb = Debugger::Gdb.run(&[arg(&host.exe), arg(&core)], &["wasm-bt full all"]);
    same("spin: gdb on the core, core", &in_gdb.texts[0], &of_core);
}

#[test]
fn numbers_are_gdbs() {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let pid = host.pid().to_string();
    let session = Debugger::Gdb.run(
        &["-p", &pid],
        &[
            "bt 8",
            "wasm-bt whole 8",
            "frame 4",
            "wasm-locals",
            "frame 8",
            "wasm-locals",
            "wasm-up",
            "frame",
            "wasm-bt 8",
            "wasm-bt",
        ],
    );
    let numbered = |text: &str| -> Vec<(u32, String)> {
        let one = |line: &str| {
            let (n, rest) = line.trim_start().strip_prefix('#')?.split_once(' ')?;
            // The last part of the name: gdb and wstate print paths and generics each in its own way.
            let name = rest.trim_start().trim_start_matches("0x").trim_start_matches(|c: char| c.is_ascii_hexdigit());
            let name = name.trim_start().trim_start_matches("in ").split([' ', '(', '+']).next()?;
            Some((n.parse().ok()?, name.rsplit("::").next()?.to_string()))
        };
        text.lines().filter_map(one).collect()
    };
    let (theirs, ours) = (numbered(&session.texts[0]), numbered(&session.texts[1]));
    assert_eq!(theirs.len(), 8, "{}", session.texts[0]);
    let numbers = |list: &[(u32, String)]| list.iter().map(|(n, _)| *n).collect::<Vec<_>>();
    assert_eq!(numbers(&theirs), numbers(&ours));
    // Without `whole` the frames are the same, and rows of machinery, which the youngest of these are not, are one line.
    let [of_eight, of_all] = [8, 9].map(|at| session.texts[at].as_str());
    assert_eq!(numbered(of_eight), ours, "{of_eight}");
    assert!(numbered(of_all).starts_with(&ours) && of_all.contains(" * leaf "), "{of_all}");
    assert!(of_all.contains(" frames of ") && of_all.contains("Rust's runtime"), "{of_all}");
    for ((n, a), (_, b)) in theirs.iter().zip(&ours) {
        // Of two names for one address each has its own favourite.
        assert!(a == b || *n == 0 || *n == 6, "{theirs:?} {ours:?}");
    }
    // gdb's choice counts, until it lost its way, which is told.
    assert!(session.texts[3].contains("error: wstate: frame #4 is not a Wasm frame"), "{}", session.texts[3]);
    assert!(session.texts[5].contains("* leaf"), "{}", session.texts[5]);
    assert!(session.texts[6].contains("* fact"), "{}", session.texts[6]);
}

#[test]
fn bad_days_are_one_line() {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let pid = host.pid().to_string();
    // Not an engine, an engine that ends, one that is silent, one of another version.
    let bin = tempfile::tempdir().unwrap();
    let engine = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = bin.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        format!("set wasm server {}", path.display())
    };
    let ends = engine("ends", "read line; echo 'out of memory' >&2; exit 1");
    let silent = engine("silent", "sleep 600");
    let babbles = engine("babbles", "while read line; do echo hello; done");
    let other = engine(
        "other",
        r#"read line; echo '{"id": 1, "ok": false, "error": {"kind": "version", "message": "speaks 99", "hint": "run: wstate plugin install"}}'; cat >/dev/null"#,
    );
    let good = format!("set wasm server {}", env!("CARGO_BIN_EXE_wstate"));
    let commands = [
        "set wasm server /no/such/wstate",
        "wasm-bt",
        &ends,
        "wasm-bt",
        "set wasm timeout 1",
        &silent,
        "wasm-bt",
        "set wasm timeout 60",
        &babbles,
        "wasm-bt",
        &other,
        "wasm-bt",
        &good,
        "wasm-bt wasm",
        // Killed between two commands.
        "python import os, signal; engine = wstate.targets[1].engine; os.kill(engine._process.pid, signal.SIGKILL); engine._process.wait()",
        "wasm-bt wasm",
        "set wasm files /no/such.wasm",
        "wasm-bt",
        "set wasm files",
        "wasm-load",
        "detach",
        "wasm-bt",
        "info threads",
    ];
    let session = Debugger::Gdb.run(&["-p", &pid], &commands);
    let expected = [
        (1, "error: wstate: cannot start /no/such/wstate: No such file or directory"),
        (3, "has ended: out of memory"),
        (6, "error: wstate: wstate did not answer within 1 s"),
        (9, "has ended: "),
        (11, "error: wstate: speaks 99 (run: wstate plugin install)"),
        (13, "* leaf"),
        (15, "* leaf"),
        (17, "/no/such.wasm is not used: it cannot be read"),
        (21, "error: wstate: there is no process and no core"),
        (22, "No threads."),
    ];
    for (n, part) in expected {
        let text = &session.texts[n];
        assert!(text.contains(part), "{}: {text}\n{}", commands[n], session.log);
        if text.starts_with("error") {
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
    assert!(!session.log.contains("Traceback"), "{}", session.log);
    let without = Debugger::Gdb.run(&[], &["wasm-bt", "wasm-locals"]);
    assert!(without.texts.iter().all(|t| t.contains("there is no process and no core")), "{:?}", without.texts);
    // No Wasm anywhere.
    let session = Debugger::Gdb.run(&["/bin/true"], &["starti", "wasm-bt", "wasm-locals"]);
    assert!(session.texts[1].contains("no Wasm module found"), "{}\n{}", session.texts[1], session.log);
    assert!(session.texts[2].contains("has no Wasm frame"), "{}", session.texts[2]);
}

#[test]
fn two_inferiors_have_an_engine_each() {
    let (sleep, floats) = (Host::start("sleep", &[], Profile::Debug), Host::start("floats", &[], Profile::Debug));
    let attach = format!("attach {}", floats.pid());
    let commands =
        ["wasm-bt wasm", "add-inferior", "inferior 2", &attach, "wasm-bt wasm", "inferior 1", "wasm-bt wasm"];
    let session = Debugger::Gdb.run(&["-p", &sleep.pid().to_string()], &commands);
    assert!(session.texts[0].contains("* leaf"), "{}", session.log);
    assert!(session.texts[4].contains(" * ") && !session.texts[4].contains("* fact"), "{}", session.texts[4]);
    assert_eq!(session.texts[6], session.texts[0]);
}

#[test]
fn a_process_that_ran_is_looked_at_again() {
    let exe = support::host_singlepass(Profile::Debug);
    let commands = [
        "break host_stop",
        "run sleep < /dev/null > /dev/null 2>&1",
        "wasm-bt wasm",
        "up",
        "wasm-bt wasm",
        "kill",
        "wasm-bt",
    ];
    let session = Debugger::Gdb.run(&["-ex", "set breakpoint pending on", arg(&exe)], &commands);
    assert!(
        session.texts[2].contains("* leaf") && session.texts[2].contains("* run"),
        "{}\n{}",
        session.texts[2],
        session.log
    );
    assert_eq!(session.texts[2], session.texts[4]);
    assert!(session.texts[6].contains("there is no process"), "{}", session.texts[6]);
}

#[test]
fn symbols_come_by_themselves_and_only_where_code_came() {
    let exe = support::host_singlepass(Profile::Debug);
    let count = "python print('requests', wstate.targets[1].engine._last_id if 1 in wstate.targets else 0)";
    let commands = [
        "break host_stop",
        "run sleep < /dev/null > /dev/null 2>&1",
        "bt",
        "frame function leaf",
        "info locals",
        count,
        "stepi",
        "next",
        count,
        "wasm-load",
        "info files",
    ];
    let session = Debugger::Gdb.run(&["-ex", "set breakpoint pending on", arg(&exe)], &commands);
    let bt = &session.texts[2];
    for part in ["in leaf (local0=9", "in fact (local0=5", "in run", "host_singlepass::main", " main ("] {
        assert!(bt.contains(part), "{part}: {bt}\n{}", session.log);
    }
    assert!(session.texts[4].contains("local3 = 333"), "{}", session.texts[4]);
    assert!(session.texts[5] != "requests 0\n" && session.texts[5] == session.texts[8], "{:?}", session.texts);
    assert!(session.texts[9].contains("1 symbol file of Wasm code loaded"), "{}", session.texts[9]);
    let loaded = session.texts[10].lines().filter(|l| l.contains("is .text in ") && l.contains("/wasm-")).count();
    assert_eq!(loaded, 1, "{}", session.texts[10]);
}

#[test]
fn symbols_of_old_code_go_away() {
    let (sleep, nested) = (Host::start("sleep", &[], Profile::Debug), Host::start("nested", &[], Profile::Debug));
    at_rest(&sleep);
    at_rest(&nested);
    let attach = format!("attach {}", nested.pid());
    let commands = ["wasm-load", "info symbol leaf", "detach", &attach, "wasm-load", "bt", "wasm-bt wasm"];
    let session = Debugger::Gdb.run(&["-p", &sleep.pid().to_string()], &commands);
    assert!(session.texts[1].contains("leaf in section"), "{}\n{}", session.texts[1], session.log);
    let wasm = session.texts[6].lines().filter(|l| l.contains(" * ")).count();
    assert!(wasm > 1 && session.texts[5].contains("main"), "{}\n{}", session.texts[5], session.texts[6]);
}

#[test]
fn a_remote_target_is_lent_page_by_page() {
    if std::process::Command::new("gdbserver").arg("--version").output().is_err() {
        return missing(&support::NoCore("gdbserver is not installed".into()));
    }
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let pid = host.pid().to_string();
    let attached = text(&["attach", &pid, "--no-color"]);
    // Through its own standard input and output: no port.
    let connect = format!("target remote | gdbserver --once --attach stdio {pid}");
    let session = Debugger::Gdb.run(&[arg(&host.exe)], &[&connect, "wasm-bt full all", "wasm-locals", "disconnect"]);
    same("gdbserver, attach", &session.texts[1], &attached);
    assert!(session.texts[2].contains("0 i32 9 (r12)"), "{}", session.texts[2]);
}

#[test]
fn control_c_leaves_gdb_usable() {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let bin = tempfile::tempdir().unwrap();
    let path = bin.path().join("silent");
    // Says when it was asked, so that the signal comes while gdb waits for the answer; then never answers.
    let asked = bin.path().join("asked");
    std::fs::write(&path, format!("#!/bin/sh\nread line\ntouch {}\nexec sleep 600\n", asked.display())).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let interrupt = format!(
        "python import threading, os, time, signal\n\
         def interrupt():\n    \
             while not os.path.exists({asked:?}): time.sleep(0.01)\n    \
             os.kill(os.getpid(), signal.SIGINT)\n\
         threading.Thread(target=interrupt, daemon=True).start()"
    );
    let script = bin.path().join("interrupt.py");
    std::fs::write(&script, interrupt.strip_prefix("python ").unwrap()).unwrap();
    let source = format!("source {}", script.display());
    let silent = format!("set wasm server {}", path.display());
    let good = format!("set wasm server {}", env!("CARGO_BIN_EXE_wstate"));
    let commands = [&silent, &source, "wasm-bt", &good, "wasm-bt wasm"];
    let session = Debugger::Gdb.run(&["-p", &host.pid().to_string()], &commands);
    assert!(session.texts[2].contains("error: wstate: interrupted"), "{}\n{}", session.texts[2], session.log);
    assert!(session.texts[4].contains("* leaf"), "{}\n{}", session.texts[4], session.log);
}

/// gdb as a user starts it, with the plugin before the target: what it prints in all.
fn plain_gdb(arguments: &[&str], input: &str) -> String {
    use std::io::Write;
    let home = tempfile::tempdir().unwrap();
    let mut gdb = std::process::Command::new("gdb");
    gdb.args(["-nx", "-iex", "set width 0", "-iex", "set debuginfod enabled off"]);
    for line in Debugger::Gdb.load() {
        gdb.args(["-iex", &line]);
    }
    gdb.args(arguments).env("HOME", home.path()).env("PYTHONDONTWRITEBYTECODE", "1");
    let (mut read, write) = std::io::pipe().unwrap();
    let child = gdb.stdin(std::process::Stdio::piped()).stdout(write.try_clone().unwrap()).stderr(write).spawn();
    drop(gdb);
    let mut child = child.expect("gdb starts");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut read, &mut text).unwrap();
    child.wait().unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

/// There is no prompt in a batch and none in the machine interface, and commands follow at once.
#[test]
fn frames_of_a_core_have_names_from_the_first_command_on() {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let core = match gcore(&host) {
        Ok(core) => core,
        Err(why) => return missing(&why),
    };
    let (exe, core) = (arg(&host.exe), arg(&core));
    let batch = plain_gdb(&["-batch", exe, core, "-ex", "bt"], "");
    let later = plain_gdb(&["-batch", exe, "-ex", &format!("core-file {core}"), "-ex", "bt"], "");
    let mi = plain_gdb(&["--interpreter=mi3", exe, core], "-stack-list-frames\n-gdb-exit\n");
    let mi_later = format!("-target-select core {core}\n-stack-list-frames\n-gdb-exit\n");
    let mi_later = plain_gdb(&["--interpreter=mi3", exe], &mi_later);
    for (what, shown) in [("batch", batch), ("core-file", later)] {
        for part in ["in leaf (local0=9", "in fact (local0=5", "in run", " main ("] {
            assert!(shown.contains(part), "{what}: {part}: {shown}");
        }
        assert!(!shown.contains("Traceback"), "{what}: {shown}");
    }
    for (what, shown) in [("mi", mi), ("mi, later", mi_later)] {
        for part in ["func=\"leaf\"", "func=\"fact\"", "func=\"run\"", "func=\"main\""] {
            assert!(shown.contains(part), "{what}: {part}: {shown}");
        }
    }
}

/// The guest's code is there from the middle of the run on, and the guest is called once.
#[test]
fn a_breakpoint_is_hit_in_code_that_was_not_there_when_it_was_set() {
    let exe = support::host_singlepass(Profile::Debug);
    // Before the first call the names are in the file alone.
    let directory = tempfile::tempdir().unwrap();
    let wasm = directory.path().join("guest.wasm");
    drop(Host::start("sleep", &["--dump-wasm", arg(&wasm)], Profile::Debug));
    let files = format!("set wasm files {}", wasm.display());
    let run = "run sleep < /dev/null > /dev/null 2>&1";
    let commands = [&files, "break leaf", run, "bt", "info locals", "delete", "next", "kill"];
    let session = Debugger::Gdb.run(&["-ex", "set breakpoint pending on", arg(&exe)], &commands);
    assert!(session.texts[1].contains("Breakpoint 1 (leaf) pending"), "{:?}", session.texts);
    // gdb says it where a script runs the program, not in the command's own text.
    let stop = format!("{}{}", session.texts[2], session.log);
    assert!(stop.contains("Breakpoint 1, leaf (n=9"), "{stop}");
    for part in ["leaf (n=9", "in fact (n=0", "in run", " main ("] {
        assert!(session.texts[3].contains(part), "{part}: {:?}\n{}", session.texts, session.log);
    }
    assert!(!session.log.contains("Traceback"), "{}", session.log);
    // Off: as before.
    let off = [&files, "set wasm auto-load off", "break leaf", "break host_stop", run, "info breakpoints", "kill"];
    let session = Debugger::Gdb.run(&["-ex", "set breakpoint pending on", arg(&exe)], &off);
    let pending = |line: &str| line.split_whitespace().rev().take(2).eq(["leaf", "<PENDING>"]);
    assert!(session.texts[5].lines().any(pending), "{:?}", session.texts);
}

/// gdb would pass the arguments by the machine's convention, to a function that takes an instance first.
#[test]
fn guests_are_not_called_by_print() {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let commands = ["wasm-load", "print leaf(1, 2, 3)", "print fact(1, 2)", "call run()", "wasm-bt wasm"];
    let session = Debugger::Gdb.run(&["-p", &host.pid().to_string()], &commands);
    for text in &session.texts[1..4] {
        assert!(text.contains("does not follow the target calling convention"), "{text}\n{}", session.log);
    }
    assert!(session.texts[4].contains("* leaf"), "{}", session.texts[4]);
}

/// Breakpoints that watch for new code are those of the last load, whichever version the earlier one was. They are set
/// again at once, because the user's breakpoint waits on, and in a frame of Rust code too.
#[test]
fn of_two_loads_the_last_watches_for_new_code() {
    let exe = support::host_singlepass(Profile::Debug);
    let place = tempfile::tempdir().unwrap();
    let [stop, run] = Debugger::Gdb.run_to("sleep");
    let load = Debugger::Gdb.load_script(&Debugger::Gdb.plugin());
    let fails = Debugger::Gdb.load_script(&Debugger::Gdb.copy_plugin(place.path(), "alone", Layout::Alone));
    let names = "python print(*sorted(wstate.new_code), all(b.is_valid() for b in wstate.new_code.values()))";
    let watched = "maintenance info breakpoints";
    // As in a version that had them, and what ends it, among the global names.
    let global = "python new_code = wstate.new_code; del wstate.new_code, wstate.close_all";
    let commands = [
        "break not_there",
        &stop,
        &run,
        names,
        watched,
        &fails,
        names,
        watched,
        &load,
        names,
        watched,
        global,
        &load,
        names,
        watched,
        "delete 1",
        "stepi",
        watched,
        "kill",
    ];
    let session = Debugger::Gdb.run(&["-ex", "set breakpoint pending on", arg(&exe)], &commands);
    let texts = &session.texts;
    assert!(!session.log.contains("Traceback"), "{}", session.log);
    for n in [3, 6, 9, 13] {
        assert_eq!(texts[n], "__register_frame setjmp sigaltstack True\n", "{}: {texts:?}", commands[n]);
    }
    let set = |text: &str| {
        let names = ["<__register_frame>", "in sigaltstack ", "in setjmp "];
        let is_breakpoint = |line: &str| line.split_whitespace().nth(1) == Some("breakpoint");
        let lines = text.lines().filter(|line| is_breakpoint(line) && names.iter().any(|name| line.contains(name)));
        lines.count()
    };
    assert_eq!([4, 7, 10, 14, 17].map(|n| set(&texts[n])), [3, 3, 3, 3, 0], "{texts:#?}");
}

/// What gdb opened before a load that fails is not looked at again.
#[test]
fn after_a_load_that_fails_a_core_is_not_looked_at_again() {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let core = match gcore(&host) {
        Ok(core) => core,
        Err(why) => return missing(&why),
    };
    let place = tempfile::tempdir().unwrap();
    let fails = Debugger::Gdb.load_script(&Debugger::Gdb.copy_plugin(place.path(), "different", Layout::Different));
    let requests = "python print(wstate.targets[1].engine._last_id, wstate.cores_seen)";
    let open = format!("core-file {}", core.display());
    let commands = [&open, requests, &fails, "python auto_load_core()", requests, "bt"];
    let session = Debugger::Gdb.run(&[arg(&host.exe)], &commands);
    assert!(!session.log.contains("Traceback"), "{}", session.log);
    assert!(session.texts[1].ends_with(": 1}\n"), "{:?}", session.texts);
    assert_eq!(session.texts[1], session.texts[4]);
    assert!(session.texts[5].contains("in leaf (local0=9"), "{:?}", session.texts);
}
