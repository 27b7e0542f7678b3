//! Guests of Wasmtime that wait in an async call are on no thread: that there are some is told at every door, live and in cores,
//! and a module that is merely idle is not said to have one.

use crate::support::debuggers::{Debugger, arg, at_rest, missing};
use crate::support::{Host, Profile, Version, gcore, host_wasmtime, wstate, wstate_json};
use serde_json::Value;

const WAITS: &str = "1 guest of module";
const IN_A_CALL: &str = "waits in an async call: it is on no thread, and is not shown";
const IDLE: &str = "and no thread has a frame of";

fn start(version: Version, profile: Profile, stop: &str, flags: &[&str]) -> Host {
    Host::start_exe(host_wasmtime(version, profile), stop, flags)
}

fn notes(report: &Value) -> Vec<String> {
    report["notes"].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_string()).collect()
}

fn guests(notes: &[String]) -> usize {
    notes.iter().filter(|n| n.starts_with(WAITS) && n.ends_with(IN_A_CALL)).count()
}

#[test]
fn a_guest_that_waits_is_told_at_every_door() {
    for version in Version::ALL {
        for profile in [Profile::Release, Profile::Stripped] {
            for flags in [&[][..], &["--pooling"]] {
                let host = start(version, profile, "async-suspended", flags);
                at_rest(&host);
                let pid = host.pid().to_string();
                let what = format!("{version:?} {profile} {flags:?}");
                let (code, report) = wstate_json(&["attach", &pid]);
                assert_eq!(code, 0, "{what}: {report}");
                assert_eq!(guests(&notes(&report)), 1, "{what}: {:?}", notes(&report));
                let idle = notes(&report).iter().any(|n| n.contains(IDLE));
                assert!(!idle, "{what}: told once: {:?}", notes(&report));
                let (_, modules) = wstate_json(&["modules", "-p", &pid]);
                assert_eq!(guests(&notes(&modules)), 1, "{what}: {:?}", notes(&modules));
                let text = String::from_utf8(wstate(&["attach", &pid]).stdout).unwrap();
                assert!(
                    text.lines().any(|l| l.starts_with("note: 1 guest of module") && l.ends_with(IN_A_CALL)),
                    "{text}"
                );

                // gcore writes all the memory that a pool reserves.
                if !flags.is_empty() {
                    continue;
                }
                let core = gcore(&host).unwrap_or_else(|e| panic!("{}", e.0));
                let (core, exe) = (core.to_str().unwrap(), host.exe.to_str().unwrap());
                let (_, report) = wstate_json(&["core", core, exe]);
                assert_eq!(guests(&notes(&report)), 1, "{what}: in a core: {:?}", notes(&report));
            }
        }
    }
}

/// A guest that runs on a fiber is on a thread.
#[test]
fn a_guest_that_runs_does_not_wait() {
    for version in Version::ALL {
        for (stop, flags) in [("async", &[][..]), ("sleep", &[]), ("sleep", &["--async", "--pooling"])] {
            let host = start(version, Profile::Release, stop, flags);
            at_rest(&host);
            let (code, report) = wstate_json(&["attach", &host.pid().to_string()]);
            let notes = notes(&report);
            assert_eq!((code, guests(&notes)), (0, 0), "{version:?} {stop} {flags:?}: {notes:?}");
            assert!(!notes.iter().any(|n| n.contains(IDLE)), "{version:?} {stop} {flags:?}: {notes:?}");
        }
    }
}

#[test]
fn debuggers_tell_it_too() {
    let host = start(Version::V48, Profile::Release, "async-suspended", &[]);
    at_rest(&host);
    let (exe, pid) = (arg(&host.exe), host.pid().to_string());
    let attach = format!("attach {pid}");
    for (debugger, arguments, commands) in [
        (Debugger::Gdb, &[exe][..], &[attach.as_str(), "wasm-bt all", "detach"][..]),
        (Debugger::Lldb, &["-p", &pid], &["wasm bt all", "detach"]),
    ] {
        if let Err(why) = debugger.program() {
            missing(&why);
            continue;
        }
        let session = debugger.run(arguments, commands);
        let said = session.texts.concat();
        assert!(said.contains(IN_A_CALL), "{debugger:?}: {said}{}", session.log);
    }
}
