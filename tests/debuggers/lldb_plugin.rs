//! The lldb plugin in lldb, on live hosts and cores: what it prints is what `wstate` prints of the same stop.

use crate::support;
use crate::support::debuggers::{Debugger, Layout, arg, at_rest, missing, same, text};
use crate::support::{Host, Profile, gcore, kernel_core};

fn lldb_is_here() -> bool {
    Debugger::Lldb.is_here()
}

#[test]
fn debug_stops_are_the_same_through_every_door() {
    doors(Profile::Debug);
}

fn doors(profile: Profile) {
    if !lldb_is_here() {
        return;
    }
    for stop in ["sleep", "trap-div", "nested"] {
        let what = format!("{stop} {profile}");
        let host = Host::start(stop, &[], profile);
        let pid = host.pid().to_string();
        at_rest(&host);
        let attached = text(&["attach", &pid, "--no-color"]);
        let live = Debugger::Lldb.run(&["-p", &pid], &["wasm bt full all", "detach"]);
        same(&format!("{what}: lldb, attach"), &live.texts[0], &attached);
        let core = match gcore(&host) {
            Ok(core) => core,
            Err(why) => return missing(&why),
        };
        let (core, exe) = (arg(&core), arg(&host.exe));
        let of_core = text(&["core", core, exe, "--no-color"]);
        let in_lldb = Debugger::Lldb.run(&[exe, "-c", core], &["wasm bt full all"]);
        same(&format!("{what}: lldb on the core, core"), &in_lldb.texts[0], &of_core);
    }
}

#[test]
fn a_kernel_core_is_the_same_in_lldb() {
    if !lldb_is_here() {
        return;
    }
    for profile in [Profile::Debug, Profile::Release, Profile::Stripped] {
        for stop in ["abort", "trap-div"] {
            let core = match kernel_core(stop, &[], profile) {
                Ok(core) => core,
                Err(why) => return missing(&why),
            };
            let of_core = text(&["core", arg(&core.path), arg(&core.exe), "--no-color"]);
            assert!(of_core.contains(" * "), "{of_core}");
            let in_lldb = Debugger::Lldb.run(&[arg(&core.exe), "-c", arg(&core.path)], &["wasm bt full all"]);
            same(&format!("{stop} {profile}: lldb on the kernel's core, core"), &in_lldb.texts[0], &of_core);
        }
    }
}

#[test]
fn every_command_has_its_say() {
    if !lldb_is_here() {
        return;
    }
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let pid = host.pid().to_string();
    let commands = [
        "wasm locals",
        "wasm stack",
        "wasm up 2",
        "wasm down 9",
        "wasm print l0",
        "wasm print",
        "wasm memory 0 4",
        "wasm modules",
        "wasm list",
        "wasm-bt wasm",
        "wasm bt 2",
        "wasm bt sideways",
        "wasm help",
        "help wasm print",
        "wasm set colour blue",
        "wasm show",
        "wasm set server /no/such/wstate",
        "wasm locals 8",
        "detach",
        "wasm bt full",
    ];
    let session = Debugger::Lldb.run(&["-p", &pid], &commands);
    let has = |command: &str, part: &str| {
        let said = &session.texts[commands.iter().position(|c| *c == command).unwrap()];
        assert!(said.contains(part), "{command}: {said}\n{}", session.log);
    };
    has("wasm locals", "locals  0 i32 9 (r12)");
    has("wasm stack", "stack   0 0x154 [rsp+0x8]");
    has("wasm up 2", "* fact");
    has("wasm down 9", "* leaf");
    has("wasm print l0", "(i32) 9 ");
    has("wasm print", "error: wstate: wasm print needs an expression");
    has("wasm memory 0 4", "error: wstate: memory 0 is not known");
    has("wasm modules", "3 functions");
    has("wasm list", "error: wstate: the .wasm file of module0 is not known");
    has("wasm-bt wasm", "other frames not shown");
    has("wasm bt 2", "more frames not asked for (after 2 frames)");
    has("wasm bt sideways", "error: wstate: wasm bt does not know 'sideways'");
    has("wasm help", "wasm memory   Print bytes");
    has("help wasm print", "Usage: wasm print EXPRESSION");
    has("wasm set colour blue", "error: wstate: wasm set takes one of ");
    has("wasm show", "auto-load    True");
    has("wasm locals 8", "error: wstate: cannot start /no/such/wstate");
    // Or that the engine cannot be started: lldb may count a process as there for a moment after it was let go.
    has("wasm bt full", "error: wstate: ");
    assert!(!session.log.contains("Traceback"), "{}", session.log);
}

#[test]
fn deep_recursion_is_folded() {
    if !lldb_is_here() {
        return;
    }
    let host = Host::start("deep", &["--depth", "1000"], Profile::Debug);
    at_rest(&host);
    let pid = host.pid().to_string();
    let attached = text(&["attach", &pid, "--no-color", "--fold"]);
    let commands = ["wasm bt full all --fold", "wasm-bt fold", "wasm bt", "help wasm bt", "detach"];
    let session = Debugger::Lldb.run(&["-p", &pid], &commands);
    same("lldb, attach", &session.texts[0], &attached);
    let times = |text: &str| text.lines().filter(|l| l.ends_with(" times more")).count();
    assert_eq!((times(&session.texts[1]), times(&session.texts[2])), (1, 0), "{}", session.texts[1]);
    assert!(session.texts[3].contains("[fold]"), "{}", session.texts[3]);
}

#[test]
fn a_running_process_is_told() {
    if !lldb_is_here() {
        return;
    }
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let commands = ["script lldb.debugger.SetAsync(True)", "process continue", "wasm bt", "process interrupt"];
    let session = Debugger::Lldb.run(&["-p", &host.pid().to_string()], &commands);
    assert!(session.texts[2].contains("the process is running"), "{:?}\n{}", session.texts, session.log);
}

#[test]
fn symbols_come_by_themselves() {
    if !lldb_is_here() {
        return;
    }
    let exe = support::host_singlepass(Profile::Debug);
    let commands = [
        "target stop-hook add -P wstate_lldb.AutoLoad",
        "breakpoint set -n host_stop",
        "process launch -i /dev/null -o /dev/null -e /dev/null -- sleep",
        "bt",
        "wasm-bt wasm",
        "thread step-inst",
        "wasm load all",
        "bt",
        "image list",
        "process kill",
        "wasm bt",
    ];
    let session = Debugger::Lldb.run(&[arg(&exe)], &commands);
    for bt in [&session.texts[3], &session.texts[7]] {
        for part in ["leaf(local0=9", "fact(local0=5", "host_singlepass::main"] {
            assert!(bt.contains(part), "{part}: {bt}\n{:?}\n{}", session.texts.get(2), session.log);
        }
    }
    assert!(session.texts[4].contains("* leaf"), "{}", session.texts[4]);
    assert_eq!(session.texts[8].lines().filter(|l| l.contains("/wasm-")).count(), 1, "{}", session.texts[8]);
    // A killed process may be on its way out yet.
    let gone = ["error: wstate: ", "no registers: the debugger has no registers of it"];
    assert!(gone.iter().any(|part| session.texts[10].contains(part)), "{}", session.texts[10]);
}

#[test]
fn after_an_attach_and_in_a_core_they_come_with_the_first_command() {
    if !lldb_is_here() {
        return;
    }
    let host = Host::start("sleep", &[], Profile::Release);
    at_rest(&host);
    let commands = ["wasm bt 1", "bt", "wasm set auto-load off", "detach"];
    let live = Debugger::Lldb.run(&["-p", &host.pid().to_string()], &commands);
    assert!(live.texts[1].contains("leaf(local0=9"), "{}\n{}", live.texts[1], live.log);
    let core = match gcore(&host) {
        Ok(core) => core,
        Err(why) => return missing(&why),
    };
    let session = Debugger::Lldb.run(&[arg(&host.exe), "-c", arg(&core)], &["wasm bt 1", "bt"]);
    assert!(session.texts[1].contains("leaf(local0=9"), "{}\n{}", session.texts[1], session.log);
}

#[test]
fn what_the_user_writes_is_seen() {
    if !lldb_is_here() {
        return;
    }
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let frames = text(&["attach", &host.pid().to_string(), "--wasm-only", "--brief", "--no-color"]);
    let leaf = frames.lines().find(|l| l.contains("* leaf")).and_then(|l| l.trim().strip_prefix('#')).expect("leaf");
    let select = format!("frame select {}", leaf.split_whitespace().next().expect("a number"));
    // Local 4 of leaf lies in memory.
    let commands = ["wasm print l4", &select, "memory write -s 4 `$rbp-8` 0x7b", "wasm print l4", "detach"];
    let session = Debugger::Lldb.run(&["-p", &host.pid().to_string()], &commands);
    assert!(session.texts[0].contains("0x1bc "), "{:?}", session.texts);
    assert!(session.texts[3].contains("0x7b "), "{:?}\n{}", session.texts, session.log);
}

#[test]
fn why_there_are_no_symbols_is_told_once() {
    if !lldb_is_here() {
        return;
    }
    let exe = support::host_singlepass(Profile::Debug);
    let good = format!("wasm set server {}", env!("CARGO_BIN_EXE_wstate"));
    let commands = [
        "breakpoint set -n host_stop",
        "wasm set server /no/such/wstate",
        "process launch -i /dev/null -o /dev/null -- sleep",
        "thread step-inst",
        "thread step-inst",
        &good,
        "thread step-inst",
        "bt",
        "process kill",
    ];
    let session = Debugger::Lldb.run(&[arg(&exe)], &commands);
    let all = session.texts.concat() + &session.log;
    let told = all.matches("symbols of Wasm code were not loaded: cannot start /no/such/wstate").count();
    assert_eq!(told, 1, "{:#?}\n{}", session.texts, session.log);
    assert!(session.texts[7].contains("leaf(local0=9"), "{}\n{}", session.texts[7], session.log);
}

#[test]
fn one_line_loads_it_from_wherever_its_files_are() {
    if !lldb_is_here() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    for plugin in [Debugger::Lldb.install(place.path()), Debugger::Lldb.plugin()] {
        let load = format!("command script import {}", plugin.display());
        let session = Debugger::Lldb.run_plain(&[], &[&load, "wasm bt"]);
        assert!(session.texts[1].contains("error: wstate: there is no process and no core"), "{:?}", session.texts);
        assert!(!session.log.contains("Traceback"), "{}", session.log);
    }
}

#[test]
fn without_its_shared_file_or_with_another_it_says_what_to_do() {
    if !lldb_is_here() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let alone = Debugger::Lldb.copy_plugin(place.path(), "alone", Layout::Alone);
    let mixed = Debugger::Lldb.copy_plugin(place.path(), "mixed", Layout::Mixed);
    let load = [&alone, &mixed, &Debugger::Lldb.plugin()].map(|p| format!("command script import {}", p.display()));
    let session = Debugger::Lldb.run_plain(&[], &[&load[0], "wasm bt", &load[1], &load[2], "wasm bt"]);
    let shown = session.texts.concat() + &session.log;
    let version = env!("CARGO_PKG_VERSION");
    let told = [
        format!(
            "wstate: the Wasm commands are not there: {} is missing; run: wstate plugin install, or load wstate_lldb.py by \
             its full path\n",
            alone.with_file_name("wstate_client.py").display()
        ),
        format!(
            "wstate: the Wasm commands are not there: {} belongs to wstate 0.0.1, wstate_lldb.py to {version}; run: \
             wstate plugin install\n",
            mixed.with_file_name("wstate_client.py").display()
        ),
    ];
    for told in told {
        assert!(shown.contains(&told), "{told}\n{shown}");
    }
    assert!(session.texts[1].contains("error: 'wasm' is not a valid command"), "{:?}", session.texts);
    assert!(session.texts[4].contains("error: wstate: there is no process"), "{:?}", session.texts);
    assert!(!session.log.contains("Traceback"), "{}", session.log);
}

#[test]
fn of_two_versions_the_one_that_was_loaded_last_serves() {
    if !lldb_is_here() {
        return;
    }
    let exe = support::host_singlepass(Profile::Debug);
    let place = tempfile::tempdir().unwrap();
    let other = Debugger::Lldb.copy_plugin(place.path(), "other", Layout::OtherVersion);
    let load = [other, Debugger::Lldb.plugin()].map(|plugin| format!("command script import {}", plugin.display()));
    let server = format!("wasm set server {}", env!("CARGO_BIN_EXE_wstate"));
    let engines = "script import subprocess; engines = []; popen = subprocess.Popen; \
                   subprocess.Popen = lambda *a, **k: engines.append(popen(*a, **k)) or engines[-1]";
    let ended = "script print([e.poll() is not None for e in engines])";
    let commands = [
        engines,
        &load[0],
        &server,
        "breakpoint set -n host_stop",
        "process launch -i /dev/null -o /dev/null -e /dev/null -- sleep",
        "bt",
        "help wasm bt",
        // The other one comes, and it comes twice.
        &load[1],
        &load[1],
        &server,
        "thread step-inst",
        ended,
        "bt",
        "wasm-bt wasm",
        "help wasm bt",
        "image list",
        "process kill",
    ];
    let session = Debugger::Lldb.run_plain(&[arg(&exe)], &commands);
    let texts = &session.texts;
    assert!(!session.log.contains("Traceback"), "{}", session.log);
    assert!(texts[5].contains("leaf(local0=9") && texts[12].contains("leaf(local0=9"), "{texts:?}\n{}", session.log);
    assert!(texts[6].contains("THE OTHER") && !texts[14].contains("THE OTHER"), "{texts:?}");
    assert!(session.log.contains("[True, False]\n"), "{}", session.log);
    assert!(texts[13].contains("* leaf"), "{texts:?}");
    assert_eq!(texts[15].lines().filter(|l| l.contains("/wasm-")).count(), 1, "{}", texts[15]);
}
