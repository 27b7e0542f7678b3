//! What both plugins do, each in its debugger.

use crate::support;
use crate::support::debuggers::{Debugger, Layout, arg, assert_emptied, at_rest, missing, same, symbol_files, text};
use crate::support::{Host, Profile, kernel_core};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Makes two tests of each function, one in each debugger.
macro_rules! in_both {
    ($($name:ident)*) => {
        mod gdb {
            $(#[test] fn $name() { super::$name(super::Debugger::Gdb) })*
        }
        mod lldb {
            $(#[test] fn $name() { super::$name(super::Debugger::Lldb) })*
        }
    };
}

in_both! {
    a_kernel_core_is_the_same
    every_command_has_its_say
    deep_recursion_is_folded
    why_there_are_no_symbols_is_told_once
    what_was_loaded_on_request_stays
    symbol_files_go_with_a_debugger_that_is_killed
    modules_and_symbols_need_no_selected_thread
    one_line_loads_it_from_wherever_its_files_are
    the_file_that_is_named_is_the_one_that_is_loaded
    the_program_that_has_installed_it_is_started_wherever_it_is
    without_its_shared_file_or_with_another_it_says_what_to_do
    a_load_that_fails_leaves_the_earlier_one_whole
    of_two_versions_the_one_that_was_loaded_last_serves
    nothing_of_a_version_that_was_a_single_file_stays
}

/// Notes each request to the engine in `asked`, with what it says of `all`. The engine is never sure of its symbols.
const SPY: &str = "python target, = wstate.targets.values(); asked = []; ask = target.ask; \
                   target.ask = lambda op, **keys: (asked.append((op, keys.get('all'))), {**ask(op, **keys), 'unsure': True})[1]";
/// Notes each engine that is started from now on, by whichever plugin, in `engines`.
const NOTE_ENGINES: &str = "python import subprocess; engines = []; popen = subprocess.Popen; \
                            note = lambda p: ('serve' in p.args and engines.append(p), p)[1]; \
                            subprocess.Popen = lambda *a, **k: note(popen(*a, **k))";
/// Prints of each of them whether it has ended.
const ENDED: &str = "python print([e.poll() is not None for e in engines])";

fn a_kernel_core_is_the_same(debugger: Debugger) {
    for profile in [Profile::Debug, Profile::Release, Profile::Stripped] {
        for stop in ["abort", "trap-div"] {
            let core = match kernel_core(stop, &[], profile) {
                Ok(core) => core,
                Err(why) => return missing(&why),
            };
            let of_core = text(&["core", arg(&core.path), arg(&core.exe), "--no-color"]);
            assert!(of_core.contains(" * leaf"), "{of_core}");
            let session = debugger.run(&debugger.on_core(&core.exe, &core.path), &[&debugger.wasm("bt full all")]);
            same(&format!("{stop} {profile}: {debugger:?} on the kernel's core, core"), &session.texts[0], &of_core);
        }
    }
}

fn every_command_has_its_say(debugger: Debugger) {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let wasm = |command: &str| debugger.wasm(command);
    let sideways = format!("error: wstate: {} does not know 'sideways'", wasm("bt"));
    let needs = format!("error: wstate: {} needs an expression", wasm("print"));
    let usage = format!("Usage: {} EXPRESSION", wasm("print"));
    let mut expected: Vec<(String, &[&str])> = vec![
        (wasm("locals"), &["* leaf", "params  0 i32 9 (r12)", "locals  3 0x14d (rbx)"]),
        (wasm("stack"), &["* leaf", "stack   0 0x154 [rsp+0x8]"]),
        (wasm("up"), &["* leaf"]),
        (wasm("up 2"), &["* fact"]),
        ("wasm locals".into(), &["* fact", "params  0 i32 1 (r12)"]),
        (wasm("down"), &["* fact"]),
        (wasm("down 9"), &["* leaf"]),
        (wasm("down"), &["error: wstate: this is the youngest Wasm frame"]),
        (wasm("print l0"), &["(i32) 9 "]),
        (wasm("print g0"), &["error: wstate: global 0 is not known"]),
        (wasm("memory 0 4"), &["error: wstate: memory 0 is not known"]),
        (wasm("modules"), &["module0", "3 functions"]),
        (wasm("list"), &["error: wstate: the .wasm file of module0 is not known (name it"]),
        (wasm("bt wasm"), &["other frames not shown"]),
        (wasm("bt"), &["frames of Rust's runtime and the C library (wasm-bt whole shows them)", "at std/src/thread/"]),
        (wasm("bt whole"), &["std::rt::lang_start_internal at /rustc/", "_start", "bottom of the stack"]),
        // This form is there in both.
        ("wasm-bt wasm".into(), &["other frames not shown"]),
        ("wasm bt 2".into(), &["#0", "more frames not asked for (after 2 frames)"]),
        (wasm("locals 0"), &["error: wstate: frame #0 is not a Wasm frame"]),
    ];
    let texts: [[&str; 1]; 3] = [[&sideways], [&needs], [&usage]];
    let commands = [wasm("bt sideways"), wasm("print"), format!("help {}", wasm("print"))];
    expected.extend(commands.into_iter().zip(texts.iter().map(|t| &t[..])));
    let own: &[(&str, &[&str])] = match debugger {
        Debugger::Gdb => &[
            ("help wasm", &["wasm bt", "wasm memory", "command is there as wasm-NAME too"]),
            ("complete wasm-bt f", &["wasm-bt full"]),
            ("complete wasm-", &["wasm-bt", "wasm-down", "wasm-load", "wasm-up"]),
            ("show wasm timeout", &["wasm timeout: 60"]),
            ("set wasm files 'a", &["error: wstate:"]),
            ("show wasm server", &[]),
        ],
        Debugger::Lldb => &[
            ("wasm help", &["wasm memory   Print bytes"]),
            ("wasm set colour blue", &["error: wstate: wasm set takes one of "]),
            ("wasm show", &["auto-load    True"]),
            ("wasm set server /no/such/wstate", &[]),
            ("wasm locals 8", &["error: wstate: cannot start /no/such/wstate"]),
            ("detach", &[]),
            // Or that the engine cannot be started: lldb may count a process as there for a moment after it was let go.
            ("wasm bt full", &["error: wstate: "]),
        ],
    };
    expected.extend(own.iter().map(|(command, parts)| (command.to_string(), *parts)));
    if debugger == Debugger::Gdb {
        expected.push(("detach".into(), &[]));
    }
    let commands: Vec<&str> = expected.iter().map(|(command, _)| command.as_str()).collect();
    let session = debugger.run(&["-p", &host.pid().to_string()], &commands);
    for ((command, parts), said) in expected.iter().zip(&session.texts) {
        for part in *parts {
            assert!(said.contains(part), "{command}: {part}: {said}\n{}", session.log);
        }
    }
    assert!(!session.texts[1].contains("locals") && !session.texts[1].contains("params"), "{}", session.texts[1]);
    // Nothing is printed twice or beside.
    assert!(!session.log.contains("Traceback"), "{}", session.log);
}

fn deep_recursion_is_folded(debugger: Debugger) {
    let host = Host::start("deep", &["--depth", "1000"], Profile::Debug);
    at_rest(&host);
    let pid = host.pid().to_string();
    let attached = text(&["attach", &pid, "--no-color", "--fold"]);
    assert!(attached.contains(": the frame above ") && attached.lines().count() < 300, "{attached}");
    let [all, fold, plain] = ["bt full all --fold", "bt fold", "bt"].map(|command| debugger.wasm(command));
    let session = debugger.run(&["-p", &pid], &[&all, &fold, &plain, &format!("help {plain}"), "detach"]);
    same(&format!("{debugger:?}, attach"), &session.texts[0], &attached);
    let times = |text: &str| text.lines().filter(|l| l.ends_with(" times more")).count();
    assert_eq!((times(&session.texts[1]), times(&session.texts[2])), (1, 0), "{}", session.texts[1]);
    assert!(session.texts[2].lines().count() > 1000);
    assert!(session.texts[3].contains("[fold]"), "{}", session.texts[3]);
}

fn why_there_are_no_symbols_is_told_once(debugger: Debugger) {
    let exe = support::host_singlepass(Profile::Debug);
    let bad = debugger.set("server /no/such/wstate");
    let [stop, run] = debugger.run_to("sleep");
    let (good, step) = (debugger.set_server(), debugger.step());
    let commands = [&stop, &bad, &run, step, step, step, &good, step, "bt", &bad, step, step, debugger.kill()];
    let session = debugger.run(&[arg(&exe)], &commands);
    let all = session.texts.concat() + &session.log;
    let told = all.matches("symbols of Wasm code were not loaded: cannot start /no/such/wstate").count();
    assert_eq!(told, 1, "{:#?}\n{}", session.texts, session.log);
    for part in ["leaf", "(local0=9"] {
        assert!(session.texts[8].contains(part), "{}\n{}", session.texts[8], session.log);
    }
}

/// Symbols are looked for at stops, and in lldb after each command. Even where the engine is not sure of them, that takes
/// none away that the user asked for.
fn what_was_loaded_on_request_stays(debugger: Debugger) {
    let exe = support::host_singlepass(Profile::Debug);
    let [stop, run] = debugger.run_to("sleep");
    let (load, printed, list) = (debugger.wasm("load all"), "python print(asked)", debugger.list_files());
    let commands = [&stop, &run, SPY, &load, printed, list, debugger.kill()];
    let session = debugger.run(&[arg(&exe)], &commands);
    assert!(session.texts[3].contains("1 symbol file of Wasm code loaded"), "{:?}\n{}", session.texts, session.log);
    assert_eq!(session.texts[4], "[('symbols', True)]\n", "{:?}\n{}", session.texts, session.log);
    assert_eq!(symbol_files(&session.texts[5]), 1, "{}", session.texts[5]);
}

/// That they go with one that ends by itself, [`Debugger::run_plain`] sees at the end of every session.
fn symbol_files_go_with_a_debugger_that_is_killed(debugger: Debugger) {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let temporary = support::work_directory();
    let names = || std::fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path());
    // It says that it is there by a file, and waits to be killed.
    let wait = "python import os, time; open(os.environ['HOME'] + '/there', 'w').close(); time.sleep(3600)";
    let home = support::work_directory();
    let mut commands = debugger.load();
    commands.extend([debugger.wasm("load"), wait.replace("python", debugger.python())]);
    let mut child = debugger.command(&["-p", &host.pid().to_string()], &commands);
    let child = child.env("HOME", home.path()).env("TMPDIR", temporary.path()).stdin(Stdio::null());
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !home.path().join("there").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    let held: Vec<_> = names().filter(|directory| directory.read_dir().unwrap().next().is_some()).collect();
    assert_eq!(held.len(), 1, "a symbol file was loaded: {held:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_emptied(temporary.path());
}

/// A debugger has none selected after the thread that was selected has ended.
fn modules_and_symbols_need_no_selected_thread(debugger: Debugger) {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let none = match debugger {
        Debugger::Gdb => "python gdb.selected_thread = lambda: None",
        Debugger::Lldb => "python lldb.SBProcess.GetSelectedThread = lambda process: lldb.SBThread()",
    };
    let [modules, load, bt] = ["modules", "load", "bt"].map(|command| debugger.wasm(command));
    let session = debugger.run(&["-p", &host.pid().to_string()], &[none, &modules, &load, &bt, "detach"]);
    let expected = ["3 functions", "1 symbol file of Wasm code loaded", "error: wstate: no thread "];
    for (said, part) in session.texts[1..].iter().zip(expected) {
        assert!(said.contains(part), "{part}: {said}\n{}", session.log);
    }
}

fn one_line_loads_it_from_wherever_its_files_are(debugger: Debugger) {
    let place = tempfile::tempdir().unwrap();
    let installed = debugger.install(place.path());
    let clone = debugger.plugin();
    let link = place.path().join("linked.py");
    std::os::unix::fs::symlink(&clone, &link).unwrap();
    let load = |path: &Path| debugger.load_script(path);
    let name = clone.file_name().unwrap();
    let above = Path::new("..").join(clone.parent().unwrap().file_name().unwrap()).join(name);
    let go = |directory: &str| format!("python import os; os.chdir('{directory}')");
    let there = go(arg(clone.parent().unwrap()));
    let loads = [
        vec![load(&installed)],
        vec![load(&clone)],
        vec![there.clone(), load(Path::new(name)), go("/")],
        vec![there, load(&above)],
        vec![load(&link)],
    ];
    for load in loads {
        let bt = debugger.wasm("bt");
        let commands: Vec<&str> = load.iter().chain([&bt]).map(String::as_str).collect();
        let session = debugger.run_plain(&[], &commands);
        let last = session.texts.last().unwrap();
        assert!(last.contains("error: wstate: there is no process and no core"), "{load:?}: {last}\n{}", session.log);
        assert!(!session.log.contains("Traceback"), "{}", session.log);
    }
    // Python keeps nothing where the files are.
    assert!(!installed.with_file_name("__pycache__").exists());
}

/// wstate is not in PATH, as after `cargo install` in a debugger that no shell has started.
fn the_program_that_has_installed_it_is_started_wherever_it_is(debugger: Debugger) {
    let place = tempfile::tempdir().unwrap();
    let load = debugger.load_script(&debugger.install(place.path()));
    let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // One byte through it: cat has replaced the forked image.
    cat.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    cat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = cat.id().to_string();
    let nowhere = "python import os; os.environ.update(PATH='/nonexistent', HOME='/nonexistent')";
    let (bt, server) = (debugger.wasm("bt"), debugger.set_server());
    let session = debugger.run_plain(&["-p", &pid], &[nowhere, &load, &bt, "detach"]);
    assert!(session.texts[2].contains("no Wasm module found") && session.texts[2].contains(" #0 "), "{}", session.log);
    // That program is gone, and no other is found.
    let record = place.path().join(".local/share/wstate/wstate_program.txt");
    assert_eq!(std::fs::read_to_string(&record).unwrap(), format!("{}\n", env!("CARGO_BIN_EXE_wstate")));
    std::fs::write(&record, "/gone/wstate\n").unwrap();
    let session = debugger.run_plain(&["-p", &pid], &[nowhere, &load, &bt, &server, &bt, "detach"]);
    let set = debugger.set("server PATH");
    let told = format!(
        "wstate: cannot start wstate: /gone/wstate, which has installed the plugin, is gone, PATH has none, \
         /nonexistent/.cargo/bin/wstate is not there; run `wstate plugin install` with the program that is there now, or say \
         where it is: {set}\n"
    );
    assert!(session.texts[2].contains(&told), "{:?}\n{}", session.texts, session.log);
    assert!(session.texts[4].contains(" #0 ") && !session.log.contains("Traceback"), "{}", session.log);
    cat.kill().unwrap();
    cat.wait().unwrap();
}

/// From one directory, from another one, from the first again, and through a link: each time it is the file there.
fn the_file_that_is_named_is_the_one_that_is_loaded(debugger: Debugger) {
    let exe = support::host_singlepass(Profile::Debug);
    let place = tempfile::tempdir().unwrap();
    let other = debugger.copy_plugin(place.path(), "other", Layout::OtherVersion);
    let link = place.path().join("linked.py");
    std::os::unix::fs::symlink(&other, &link).unwrap();
    let [stop, run] = debugger.run_to("sleep");
    let (help, list) = (format!("help {}", debugger.wasm("bt")), debugger.list_files());
    let mut commands = vec![NOTE_ENGINES.to_string(), stop, run];
    let own = debugger.plugin();
    let files = [&own, &other, &own, &link, &own, &link];
    for file in files {
        commands.extend([debugger.load_script(file), debugger.set_server(), help.clone(), debugger.step().into()]);
        commands.extend([list.into(), ENDED.into()]);
    }
    commands.push(debugger.kill().into());
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let session = debugger.run_plain(&[arg(&exe)], &commands);
    assert!(!session.log.contains("Traceback"), "{}", session.log);
    for (n, (file, texts)) in files.iter().zip(session.texts[3..].chunks(6)).enumerate() {
        assert_eq!(texts[2].contains("THE OTHER"), *file != &own, "{n}: {texts:?}\n{}", session.log);
        // The earlier ones have ended, and took their symbol files along.
        assert_eq!(symbol_files(&texts[4]), 1, "{n}: {texts:?}\n{}", session.log);
        let ended = format!("[{}False]\n", "True, ".repeat(n));
        assert_eq!(texts[5], ended, "{n}: {texts:?}\n{}", session.log);
    }
}

fn without_its_shared_file_or_with_another_it_says_what_to_do(debugger: Debugger) {
    let place = tempfile::tempdir().unwrap();
    let alone = debugger.copy_plugin(place.path(), "alone", Layout::Alone);
    let mixed = debugger.copy_plugin(place.path(), "mixed", Layout::Mixed);
    let [good, no_file, other_file] = [&debugger.plugin(), &alone, &mixed].map(|p| debugger.load_script(p));
    let bt = debugger.wasm("bt");
    let session = debugger.run_plain(&[], &[&no_file, &bt, &other_file, &good, &bt, &no_file, &bt]);
    let shown = session.texts.concat() + &session.log;
    let (version, name) = (env!("CARGO_PKG_VERSION"), alone.file_name().unwrap().display().to_string());
    let told = [
        format!(
            "wstate: the Wasm commands are not there: {} is missing; run: wstate plugin install, or load {name} by its full \
             path\n",
            alone.with_file_name("wstate_client.py").display()
        ),
        format!(
            "wstate: the Wasm commands are not there: {} belongs to wstate 0.0.1, {name} to {version}; run: wstate plugin \
             install\n",
            mixed.with_file_name("wstate_client.py").display()
        ),
    ];
    for told in told {
        assert!(shown.contains(&told), "{told}\n{shown}");
    }
    let unknown = match debugger {
        Debugger::Gdb => "Undefined command",
        Debugger::Lldb => "error: 'wasm' is not a valid command",
    };
    assert!(session.texts[1].contains(unknown), "{:?}", session.texts);
    // A load that fails takes nothing away.
    for n in [4, 6] {
        assert!(session.texts[n].contains("error: wstate: there is no process"), "{:?}", session.texts);
    }
    assert!(!session.log.contains("Traceback"), "{}", session.log);
}

/// Not even the names of the functions are those of the load that failed: in another version they may do something else.
fn a_load_that_fails_leaves_the_earlier_one_whole(debugger: Debugger) {
    let exe = support::host_singlepass(Profile::Debug);
    let place = tempfile::tempdir().unwrap();
    let [different, mixed, broken] =
        [("different", Layout::Different), ("mixed", Layout::Mixed), ("broken", Layout::Broken)]
            .map(|(name, layout)| debugger.load_script(&debugger.copy_plugin(place.path(), name, layout)));
    let [stop, run] = debugger.run_to("sleep");
    let (bt, list) = (debugger.wasm("bt wasm"), debugger.list_files());
    let commands = [
        NOTE_ENGINES,
        &debugger.load_script(&debugger.plugin()),
        &debugger.set_server(),
        &stop,
        &run,
        &bt,
        &mixed,
        &different,
        &broken,
        list,
        debugger.step(),
        &bt,
        &debugger.wasm("locals"),
        &debugger.wasm("load"),
        list,
        ENDED,
        debugger.kill(),
    ];
    let session = debugger.run_plain(&[arg(&exe)], &commands);
    let shown = session.texts.concat() + &session.log;
    assert_eq!(shown.matches("the Wasm commands are not there").count(), 3, "{shown}");
    assert!(!shown.contains("Traceback") && !shown.contains("rror: "), "{shown}");
    // It is the next instruction of the same frames.
    assert!(session.texts[5].contains("* leaf") && session.texts[5] == session.texts[11], "{:?}", session.texts);
    assert!(session.texts[12].contains("params  0 i32 9 (r12)"), "{:?}", session.texts);
    assert!(session.texts[13].contains("1 symbol file of Wasm code loaded"), "{:?}", session.texts);
    assert_eq!([9, 14].map(|n| symbol_files(&session.texts[n])), [1, 1], "{:?}", session.texts);
    assert_eq!(session.texts[15], "[False]\n", "{:?}", session.texts);
}

fn of_two_versions_the_one_that_was_loaded_last_serves(debugger: Debugger) {
    let exe = support::host_singlepass(Profile::Debug);
    let place = tempfile::tempdir().unwrap();
    let other = debugger.copy_plugin(place.path(), "other", Layout::OtherVersion);
    let load = [other, debugger.plugin()].map(|plugin| debugger.load_script(&plugin));
    let state = "python print('engines', len(engines), 'asked', *[t.engine._last_id for t in wstate.targets.values()], 'of', \
                 VERSION)";
    let [stop, run] = debugger.run_to("sleep");
    let (server, step, list) = (debugger.set_server(), debugger.step(), debugger.list_files());
    let (bt, help) = (debugger.wasm("bt wasm"), format!("help {}", debugger.wasm("bt")));
    let commands = [
        NOTE_ENGINES,
        &load[0],
        &server,
        &stop,
        &run,
        state,
        &help,
        // The other one comes, and this one is loaded twice.
        &load[1],
        &load[1],
        &server,
        list,
        step,
        state,
        list,
        ENDED,
        "bt",
        &bt,
        &help,
        &load[0],
        &server,
        step,
        state,
        list,
        ENDED,
        &bt,
        debugger.kill(),
    ];
    let session = debugger.run_plain(&[arg(&exe)], &commands);
    let texts = &session.texts;
    assert!(!session.log.contains("Traceback") && !session.log.contains("Error"), "{}", session.log);
    assert!(texts[5].starts_with("engines 1 asked ") && texts[5].ends_with("of 0.0.1\n"), "{texts:?}");
    assert!(texts[6].contains("THE OTHER") && !texts[17].contains("THE OTHER"), "{texts:?}");
    assert_eq!([10, 13, 22].map(|n| symbol_files(&texts[n])), [0, 1, 1], "{texts:?}");
    // Each stop is for one of them, which asks as often as the first did.
    let asked = |text: &str| text.split("asked ").nth(1).unwrap().split(' ').next().unwrap().to_string();
    assert!(texts[12].starts_with("engines 2 ") && texts[21].starts_with("engines 3 "), "{texts:?}");
    assert_eq!([asked(&texts[12]), asked(&texts[21])], [asked(&texts[5]), asked(&texts[5])], "{texts:?}");
    assert_eq!((texts[14].as_str(), texts[23].as_str()), ("[True, False]\n", "[True, True, False]\n"));
    for part in ["leaf", "(local0=9"] {
        assert!(texts[15].contains(part), "{texts:?}\n{}", session.log);
    }
    assert!(texts[16].contains("* leaf") && texts[24].contains("* leaf"), "{texts:?}");
}

/// What such a version left among the global names. It does what those versions did to load symbols.
fn single_file(debugger: Debugger, symbols: &Path) -> String {
    let shared = format!(
        "class Target:\n    loaded = None\n    def close(self):\n        closed.append(self)\n\
         closed, targets, SYMBOLS = [], {{}}, {symbols:?}\n"
    );
    let own = match debugger {
        Debugger::Gdb => {
            "import gdb\n\
             class NewCode(gdb.Breakpoint):\n    def stop(self):\n        return False\n\
             def load_what_is_new(inferior):\n    pass\n\
             def forget_what_ran(*_):\n    gdb.write('THE OLD ONE hears\\n')\n\
             gdb.events.register_changed.connect(forget_what_ran)\n\
             gdb.execute(f'add-symbol-file {SYMBOLS}', to_string=True)\n\
             targets[1] = Target()\n\
             targets[1].loaded = {SYMBOLS: (hex(gdb.decode_line('leaf')[1][0].pc), [])}\n\
             new_code = {'setjmp': NewCode('setjmp', internal=True)}\n"
        }
        Debugger::Lldb => {
            "import lldb\n\
             class AutoLoad:\n    def __init__(self, target, extra, internal):\n        pass\n    \
             def handle_stop(self, context, stream):\n        return True\n\
             def close_all():\n    for target in targets.values():\n        target.close()\n    targets.clear()\n\
             def __lldb_init_module(debugger, internal):\n    \
             program = debugger.GetSelectedTarget()\n    \
             program.SetModuleLoadAddress(program.AddModule(SYMBOLS, None, None), 0)\n    \
             targets[1] = Target()\n    \
             targets[1].process, targets[1].loaded = program.GetProcess(), [SYMBOLS]\n    \
             debugger.HandleCommand('target stop-hook add -P wstate_lldb.AutoLoad')\n"
        }
    };
    shared + own
}

fn nothing_of_a_version_that_was_a_single_file_stays(debugger: Debugger) {
    let host = Host::start("sleep", &[], Profile::Debug);
    at_rest(&host);
    let pid = host.pid().to_string();
    let place = tempfile::tempdir().unwrap();
    let symbols = place.path().join("wasm-old.sym");
    text(&["symbols", "-p", &pid, "-o", arg(&symbols)]);
    let old = place.path().join(debugger.plugin().file_name().unwrap());
    std::fs::write(&old, single_file(debugger, &symbols)).unwrap();
    let list = debugger.list_files();
    let write = match debugger {
        Debugger::Gdb => "set $rbx = $rbx",
        Debugger::Lldb => "register write rbx `$rbx`",
    };
    let watched = match debugger {
        Debugger::Gdb => "maintenance info breakpoints",
        Debugger::Lldb => "breakpoint list --internal",
    };
    let load = debugger.load_script(&debugger.plugin());
    let commands = [
        &debugger.load_script(&old),
        list,
        write,
        watched,
        &load,
        "python print(len(closed), 'closed')",
        list,
        write,
        watched,
        &debugger.set_server(),
        &debugger.wasm("load"),
        list,
        &debugger.wasm("bt wasm"),
        "detach",
    ];
    let session = debugger.run_plain(&["-p", &pid], &commands);
    let texts = &session.texts;
    assert!(!session.log.contains("Traceback"), "{texts:?}\n{}", session.log);
    assert!(texts[1].contains("wasm-old.sym") && !texts[6].contains("/wasm-"), "{texts:?}\n{}", session.log);
    let is_gdb = debugger == Debugger::Gdb;
    assert_eq!([2, 7].map(|n| texts[n].contains("THE OLD ONE hears")), [is_gdb, false], "{texts:?}");
    assert_eq!([3, 8].map(|n| texts[n].contains("setjmp")), [is_gdb, false], "{texts:?}");
    assert_eq!(texts[5], "1 closed\n", "{texts:?}\n{}", session.log);
    assert_eq!(symbol_files(&texts[11]), 1, "{texts:?}");
    assert!(!texts[11].contains("wasm-old.sym") && texts[12].contains("* leaf"), "{texts:?}\n{}", session.log);
}
