//! The lldb plugin in lldb, on live hosts and cores: what it prints is what `wstate` prints of the same stop.

use crate::support;
use crate::support::debuggers::{Debugger, arg, at_rest, missing, text};
use crate::support::{Host, Profile, gcore};

#[test]
fn a_running_process_is_told() {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let commands = ["script lldb.debugger.SetAsync(True)", "process continue", "wasm bt", "process interrupt"];
    let session = Debugger::Lldb.run(&["-p", &host.pid().to_string()], &commands);
    assert!(session.texts[2].contains("the process is running"), "{:?}\n{}", session.texts, session.log);
}

#[test]
fn symbols_come_by_themselves() {
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
