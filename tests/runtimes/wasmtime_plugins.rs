//! The plugins on Wasmtime, in gdb and lldb, live and on cores: what they print, and what the debuggers' own `bt` and
//! variables print with the symbols that they load, is what `wstate attach` tells of the same stop.

use crate::support::debuggers::{Debugger, Session, arg, at_rest, missing, same, text};
use crate::support::{Host, NoCore, Profile, Version, gcore, host_wasmtime, kernel_core_exe, wstate};
use serde_json::Value;
use std::path::{Path, PathBuf};

const KINDS: [(Version, &[&str]); 3] = [(Version::V36, &[]), (Version::V48, &[]), (Version::V48, &["--guest-debug"])];

fn start(version: Version, stop: &str, flags: &[&str]) -> Host {
    let host = Host::start_exe(host_wasmtime(version, Profile::Release), stop, flags);
    at_rest(&host);
    host
}

fn is_here(debugger: Debugger) -> bool {
    debugger.program().map_err(|why| missing(&why)).is_ok()
}

/// What each command prints on the live host, and on this core of its stop. Symbols are loaded by a stop or by the first
/// command, as for a user; those of a core gdb would load before a prompt, which is not there.
fn in_both(
    debugger: Debugger,
    host: &Host,
    core: Result<&Path, &NoCore>,
    commands: &[String],
) -> Vec<(&'static str, Session)> {
    let pid = host.pid().to_string();
    let exe = arg(&host.exe);
    let run = |arguments: &[&str], first: &str| {
        let all: Vec<&str> = [first].into_iter().chain(commands.iter().map(String::as_str)).chain(["detach"]).collect();
        let mut session = debugger.run(arguments, &all);
        session.texts.remove(0);
        session
    };
    let live = match debugger {
        Debugger::Gdb => run(&[exe], &format!("attach {pid}")),
        Debugger::Lldb => run(&["-p", &pid], "wasm bt 1"),
    };
    let mut all = vec![("live", live)];
    match core {
        Ok(core) => all.push((
            "core",
            match debugger {
                Debugger::Gdb => run(&[exe, arg(core)], "wasm-load"),
                Debugger::Lldb => run(&[exe, "-c", arg(core)], "wasm bt 1"),
            },
        )),
        Err(why) => missing(why),
    }
    all
}

/// The Wasm frames of the thread at the stop as `wstate attach --json` has them.
fn frames(host: &Host) -> Vec<Value> {
    let out = wstate(&["attach", &host.pid().to_string(), "--json"]);
    let report: Value = serde_json::from_slice(&out.stdout).expect("a report");
    let threads = report["threads"].as_array().expect("threads");
    let thread = threads.iter().find(|t| t["tid"] == host.tid()).expect("the thread at the stop");
    thread["frames"].as_array().expect("frames").iter().filter(|f| f["kind"] == "wasm").cloned().collect()
}

fn number(v: &Value) -> Option<u128> {
    u128::from_str_radix(v.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// The debugger's own stack has these frames at these places and no others of Wasm, and goes on to `main`.
fn assert_bt(what: &str, bt: &str, frames: &[Value]) {
    let place = |f: &Value| format!("{:#018x}", number(&f["pc"]).expect("a pc"));
    let places: Vec<String> = frames.iter().map(place).collect();
    let shown: Vec<&str> = bt.lines().filter(|line| places.iter().any(|p| line.contains(p.as_str()))).collect();
    assert_eq!(shown.len(), frames.len(), "{what}: {bt}");
    for ((line, place), frame) in shown.iter().zip(&places).zip(frames) {
        let unnamed = || format!("wasm_function_{}", frame["function"]["index"]);
        let name = frame["function"]["name"].as_str().map_or_else(unnamed, str::to_string);
        assert!(line.contains(place.as_str()) && line.contains(&name), "{what}: {place} {name}: {bt}");
    }
    let mut behind = bt.lines().skip_while(|line| line != shown.last().expect("frames"));
    let is_main = |line: &str| line.contains(" main (") || line.contains("`main + ");
    assert!(behind.any(is_main), "{what}: {bt}");
}

/// Locals and operands that the debugger printed of a frame, in its order: by gdb's `info args` and `info locals` or
/// lldb's `frame variable`.
fn variables(printed: &str) -> (Vec<&str>, Vec<&str>) {
    let parts = printed.split(['{', '}', '(', ')', ',', '\n']).filter_map(|part| part.trim().split_once(" = "));
    let (operands, locals): (Vec<_>, Vec<_>) = parts.partition(|(name, _)| {
        let number = name.strip_prefix('s');
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    (locals.into_iter().map(|v| v.1).collect(), operands.into_iter().map(|v| v.1).collect())
}

/// The bits of what a debugger printed of a type, `None` if it said that it does not know.
fn bits(ty: &str, printed: &str) -> Option<u128> {
    if printed.starts_with('<') {
        return None;
    }
    let wrong = || -> ! { panic!("{printed:?} is no {ty}") };
    Some(match ty {
        "i32" => printed.parse::<i32>().unwrap_or_else(|_| wrong()) as u32 as u128,
        "i64" => printed.parse::<i64>().unwrap_or_else(|_| wrong()) as u64 as u128,
        "f32" => printed.parse::<f32>().unwrap_or_else(|_| wrong()).to_bits().into(),
        "f64" => printed.parse::<f64>().unwrap_or_else(|_| wrong()).to_bits().into(),
        "v128" => printed.parse::<u128>().unwrap_or_else(|_| wrong()),
        _ => panic!("{ty} = {printed}"),
    })
}

/// Each value that the debugger shows is the one of the report; how many, and how many it does not know.
fn assert_values(what: &str, list: &Value, printed: &[&str]) -> (usize, usize) {
    let Some(list) = list.as_array() else {
        assert!(printed.is_empty(), "{what}: {printed:?}, not known to attach");
        return (0, 0);
    };
    assert_eq!(list.len(), printed.len(), "{what}: {list:?} {printed:?}");
    let mut counts = (0, 0);
    for (ours, theirs) in list.iter().zip(printed) {
        match bits(ours["type"].as_str().expect("a type"), theirs) {
            Some(theirs) => {
                assert_eq!(number(&ours["bits"]), Some(theirs), "{what}: {ours} {printed:?}");
                counts.0 += 1;
            }
            None => counts.1 += 1,
        }
    }
    counts
}

fn doors(debugger: Debugger) {
    if !is_here(debugger) {
        return;
    }
    for (version, flags) in KINDS {
        let host = start(version, "sleep", flags);
        let attached = text(&["attach", &host.pid().to_string(), "--no-color"]);
        let frames = frames(&host);
        assert_eq!(frames.len(), 9, "{attached}");
        // The image describes the signatures, whatever else it records.
        let params: Vec<Option<u64>> = frames.iter().map(|f| f["function"]["params"].as_u64()).collect();
        assert_eq!(params[..7], [3, 2, 2, 2, 2, 2, 2].map(Some), "{attached}");
        assert_eq!(attached.contains("       params  0 i32 9 [rbp"), !flags.is_empty(), "{attached}");
        assert_eq!(
            attached.matches("locals and operand stacks are not known in its frames: ").count(),
            usize::from(flags.is_empty())
        );
        let (select, show): (_, &[&str]) = match debugger {
            Debugger::Gdb => ("frame", &["info args", "info locals"]),
            Debugger::Lldb => ("frame select", &["frame variable"]),
        };
        let mut commands = vec![debugger.wasm("bt full all"), "bt".to_string()];
        for frame in &frames {
            commands.push(format!("{select} {}", frame["index"]));
            commands.extend(show.iter().map(|command| command.to_string()));
        }
        let core = gcore(&host);
        let (mut known, mut unknown) = (0, 0);
        for (door, session) in in_both(debugger, &host, core.as_ref().map(PathBuf::as_path), &commands) {
            let what = format!("{version:?} {flags:?} {debugger:?} {door}");
            same(&what, &session.texts[0], &attached);
            assert_bt(&what, &session.texts[1], &frames);
            for (frame, texts) in frames.iter().zip(session.texts[2..].chunks(1 + show.len())) {
                let printed = texts[1..].concat();
                let (locals, operands) = variables(&printed);
                let what = format!("{what} #{}: {printed}", frame["index"]);
                for (list, printed) in [("locals", &locals), ("stack", &operands)] {
                    let counts = assert_values(&what, &frame[list], printed);
                    known += counts.0;
                    unknown += counts.1;
                }
            }
        }
        println!("{version:?} {flags:?} {debugger:?}: {known} values right, {unknown} unknown, 0 wrong");
        assert!(flags.is_empty() || known > 80, "{known} values");
    }
}

#[test]
fn gdb_is_the_same_through_every_door() {
    doors(Debugger::Gdb);
}

#[test]
fn lldb_is_the_same_through_every_door() {
    doors(Debugger::Lldb);
}

/// The commands beside `bt`, on a module with memories of both widths and globals of all types, without and with its file.
fn commands(debugger: Debugger) {
    if !is_here(debugger) {
        return;
    }
    let not_recorded = |version| match version {
        Version::V36 => "Wasmtime records locals and operand stacks from version 39 on, with guest_debug",
        _ => "the module was compiled without guest_debug (enable it in the host's Config)",
    };
    for version in Version::ALL {
        let directory = tempfile::tempdir().expect("a directory");
        let wasm = directory.path().join("memories.wasm");
        let host = start(version, "memories", &["--dump-wasm", arg(&wasm)]);
        // Not gcore: it writes what is only reserved for memories in full.
        let core = kernel_core_exe(host_wasmtime(version, Profile::Release), "memories", &[]);
        let frames = frames(&host);
        let files = match debugger {
            Debugger::Gdb => format!("set wasm files {}", wasm.display()),
            Debugger::Lldb => format!("wasm set files {}", wasm.display()),
        };
        let offset = number(&frames[0]["wasm"]["offset"]).expect("an offset");
        let marked = format!("  +{offset:#x}  call 0\n");
        // The 64-bit memory's bytes at 8 are "sixty-four".
        let double = f64::from_le_bytes(*b"sixty-fo");
        let asked = [
            ("list", "error: wstate: the .wasm file of memories is not known".to_string()),
            ("locals", not_recorded(version).into()),
            ("stack", not_recorded(version).into()),
            ("print l0", not_recorded(version).into()),
            ("print g1", "(i64) 0xeeddef0b82167eeb".into()),
            ("print g4", "(i32) -100".into()),
            ("print g7", "(f64) -44.25".into()),
            ("print g8", "(v128) 0x7edcba98765432100123456789abcdef".into()),
            ("print g99", "error: wstate: global 99 is not known".into()),
            ("print u32[4]", "0x600df00d".into()),
            ("print u8[8] @2", "115".into()),
            ("print u8[9] @2", "105".into()),
            ("print f64[8] @2", format!("{double:?}")),
            ("print u8[0x10000] @2", "error: wstate: memory 2 has 0x10000 bytes".into()),
            ("print u8[0xffffffffffffffff] @2", "error: wstate: memory 2 has 0x10000 bytes".into()),
            ("print u8[0] @3", "error: wstate: memory 3 has 0x0 bytes".into()),
            ("memory 16 16 1", "second memory".into()),
            ("memory 8 16 2", "sixty-four".into()),
            ("memory 0 16 4", "not exported".into()),
            ("modules", "memories".into()),
        ];
        let with_file = [("list", marked), ("print g4", "(i32) -100".to_string())];
        let mut lines: Vec<String> = asked.iter().map(|(rest, _)| debugger.wasm(rest)).collect();
        lines.push(files);
        lines.extend(with_file.iter().map(|(rest, _)| debugger.wasm(rest)));
        let expected: Vec<&str> =
            asked.iter().map(|a| a.1.as_str()).chain([""]).chain(with_file.iter().map(|a| a.1.as_str())).collect();
        for (door, session) in in_both(debugger, &host, core.as_ref().map(|c| c.path.as_path()), &lines) {
            for ((line, part), said) in lines.iter().zip(&expected).zip(&session.texts) {
                assert!(
                    said.contains(part),
                    "{version:?} {debugger:?} {door}: {line}: {said}, not {part}\n{}",
                    session.log
                );
            }
            // The mark is at the call.
            let list = &session.texts[asked.len() + 1];
            let call = list.lines().find(|l| l.starts_with("=>")).unwrap_or_else(|| panic!("{list}"));
            assert!(call.ends_with(with_file[0].1.trim_end()), "{version:?} {debugger:?} {door}: {list}");
        }
    }
}

#[test]
fn gdb_commands_have_their_say() {
    commands(Debugger::Gdb);
}

#[test]
fn lldb_commands_have_their_say() {
    commands(Debugger::Lldb);
}

/// Breakpoints that wait for code are hit at the guest's first call, whichever code that call runs: with guest debugging
/// each store has a copy of its own, and what is in the original when it is made would be in the copy.
#[test]
fn breakpoints_are_hit_in_the_code_that_runs() {
    if !is_here(Debugger::Gdb) {
        return;
    }
    let kinds: [(Version, &str); 5] = [
        (Version::V36, ""),
        (Version::V48, ""),
        (Version::V48, "--guest-debug"),
        (Version::V48, "--guest-debug --stores 3"),
        (Version::V48, "--debug-info"),
    ];
    for (version, flags) in kinds {
        let exe = host_wasmtime(version, Profile::Release);
        let run = format!("run sleep {flags} < /dev/null > /dev/null");
        let commands =
            ["break fact", &run, "bt 3", "continue", "delete", "break leaf", "continue", "bt 2", "stepi 3", "kill"];
        let session = Debugger::Gdb.run(&["-ex", "set breakpoint pending on", arg(&exe)], &commands);
        let what = format!("{version:?} {flags}: {:#?}\n{}", session.texts, session.log);
        // gdb says it where a script runs the program, not always in the command's own text.
        let all = session.texts.concat() + &session.log;
        // One that is in several copies of the code has a number of its own for each: `Breakpoint 1.2, `.
        let is_hit = |line: &&str, breakpoint: &str| {
            line.strip_prefix(breakpoint).is_some_and(|rest| rest.starts_with(", ") || rest.starts_with('.'))
        };
        let hit = |breakpoint: &str| all.lines().filter(|line| is_hit(line, breakpoint)).count();
        assert!(hit("Breakpoint 1") >= 2 && session.texts[2].contains("fact ("), "{what}");
        assert!(hit("Breakpoint 2") >= 1 && session.texts[7].contains("leaf ("), "{what}");
        assert!(!session.log.contains("SIGTRAP") && !session.texts.concat().contains("SIGTRAP"), "{what}");
    }
}

/// Where the runtime itself describes its code to the debugger, the variables of the source are shown as without the plugin.
fn variables_stay(debugger: Debugger) {
    if !is_here(debugger) {
        return;
    }
    let exe = host_wasmtime(Version::V48, Profile::Release);
    let commands: &[&str] = match debugger {
        Debugger::Gdb => &[
            "set breakpoint pending on",
            "break c-guest.c:35",
            "run dwarf --debug-info < /dev/null > /dev/null",
            "info args",
            "info locals",
            "kill",
        ],
        Debugger::Lldb => &[
            "settings set plugin.jit-loader.gdb.enable on",
            "breakpoint set -f c-guest.c -l 35",
            "process launch -i /dev/null -o /dev/null -- dwarf --debug-info",
            "frame variable",
            "bt 2",
            "process kill",
        ],
    };
    let [alone, with] = [debugger.run_plain(&[arg(&exe)], commands), debugger.run(&[arg(&exe)], commands)];
    // Addresses of the heap differ.
    let values = |text: &str| {
        let lines = text.lines().filter(|l| !l.contains("__vmctx") && !l.contains("frame #"));
        lines.map(str::to_string).collect::<Vec<_>>()
    };
    assert!(values(&alone.texts[3]).len() >= 2, "{:#?}\n{}", alone.texts, alone.log);
    for n in [3, 4] {
        assert_eq!(values(&with.texts[n]), values(&alone.texts[n]), "{}: {:#?}\n{}", commands[n], with.texts, with.log);
    }
}

#[test]
fn gdb_shows_the_variables_that_the_runtime_describes() {
    variables_stay(Debugger::Gdb);
}

#[test]
fn lldb_shows_the_variables_that_the_runtime_describes() {
    variables_stay(Debugger::Lldb);
}
