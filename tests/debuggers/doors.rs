//! One stop through five doors: `wstate attach`, `wstate core`, and the plugins in gdb and lldb, live and on the core.

use crate::support::debuggers::{Debugger, arg, at_rest, in_a_debugger, missing, normalized, text};
use crate::support::{Host, Profile, gcore};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Holds a process where it is. Its visitors find it stopped and leave it so.
fn hold(host: &Host) {
    kill(Pid::from_raw(host.pid()), Signal::SIGSTOP).expect("a child of ours");
    while !is_held(host) {
        std::thread::yield_now();
    }
}

fn is_held(host: &Host) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid())).expect("the host is there").flatten();
    let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
    tasks.map(stat).all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
}

/// Cases compared and equal.
#[derive(Default)]
struct Counts {
    compared: usize,
    different: Vec<String>,
}

impl Counts {
    fn compare(&mut self, what: &str, a: &str, b: &str) {
        self.compared += 1;
        let (a, b) = (normalized(a), normalized(b));
        if a != b {
            let lines = a.lines().zip(b.lines()).filter(|(a, b)| a != b).take(6);
            let lines: String = lines.map(|(a, b)| format!("- {a}\n+ {b}\n")).collect();
            self.different.push(format!("{what}: {} and {} lines\n{lines}", a.lines().count(), b.lines().count()));
        }
    }
}

fn doors(profile: Profile) {
    for debugger in [Debugger::Gdb, Debugger::Lldb] {
        if let Err(why) = debugger.program() {
            return missing(&why);
        }
    }
    let mut counts = Counts::default();
    for (stop, frame) in
        [("sleep", "leaf"), ("trap-div", "leaf"), ("nested", "leaf"), ("spin", "spin"), ("abort", "leaf")]
    {
        let what = |door: &str| format!("{stop} {profile}: {door}");
        let host = match stop {
            "abort" => Host::start_aborting(profile),
            _ => Host::start(stop, &[], profile),
        };
        let held = stop == "spin" || stop == "abort";
        match held {
            true => hold(&host),
            false => at_rest(&host),
        }
        let still = |door: &str| assert!(!held || is_held(&host), "{}: it runs", what(door));
        let pid = host.pid().to_string();
        let attached = text(&["attach", &pid, "--no-color"]);
        let shown = attached.contains(&format!(" * {frame}")) && attached.contains("bottom of the stack");
        assert!(shown, "{}: {attached}", what("attach"));
        still("attach");
        let core = match gcore(&host) {
            Ok(core) => core,
            Err(why) => return missing(&why),
        };
        still("gcore");
        let (core, exe) = (arg(&core), arg(&host.exe));
        counts.compare(&what("core"), &text(&["core", core, exe, "--no-color"]), &attached);
        let attached = in_a_debugger(&attached);
        let in_gdb = Debugger::Gdb.run(&["-p", &pid], &["wasm-bt full all"]);
        counts.compare(&what("gdb"), &in_gdb.texts[0], &attached);
        still("gdb");
        let in_gdb = Debugger::Gdb.run(&[exe, core], &["wasm-bt full all"]);
        counts.compare(&what("gdb on the core"), &in_gdb.texts[0], &attached);
        let in_lldb = Debugger::Lldb.run(&[exe, "-c", core], &["wasm bt full all"]);
        counts.compare(&what("lldb on the core"), &in_lldb.texts[0], &attached);
        // The last: lldb-server lets a process that was stopped run on.
        let in_lldb = Debugger::Lldb.run(&["-p", &pid], &["wasm bt full all", "detach"]);
        counts.compare(&what("lldb"), &in_lldb.texts[0], &attached);
    }
    let (compared, different) = (counts.compared, counts.different.len());
    println!(
        "{profile}: {compared} answers compared with attach, {} equal, {different} different",
        compared - different
    );
    assert!(counts.different.is_empty(), "{}", counts.different.join("\n"));
    assert_eq!(compared, 25);
}

#[test]
fn debug_stops_are_the_same_through_every_door() {
    doors(Profile::Debug);
}

#[test]
fn release_stops_are_the_same_through_every_door() {
    doors(Profile::Release);
}

#[test]
fn stripped_stops_are_the_same_through_every_door() {
    doors(Profile::Stripped);
}
