//! Symbol files in the debuggers that they are for: gdb, and lldb where there is one with that name.

use crate::support;
use crate::support::missing::missing;
use crate::support::{Core, Host, NoCore, Profile, Version, gcore, host_wasmtime, kernel_core, wstate};
use object::{Object, ObjectSymbol};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The first of these commands that is there.
fn tool(names: &[&str]) -> Option<String> {
    let there = |name: &&str| {
        let status = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|s| s.success())
    };
    let found = names.iter().copied().find(|name| there(name));
    if found.is_none() {
        missing(format!("none of {names:?} is installed"));
    }
    found.map(str::to_string)
}

fn gdb() -> Option<String> {
    tool(&["gdb"])
}

fn lldb() -> Option<String> {
    tool(&["lldb-19", "lldb-16", "lldb"])
}

fn text(output: std::process::Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Runs gdb; `target` are the arguments that choose what to debug. A failing command ends it.
fn run_gdb(gdb: &str, target: &[&str], symbols: Option<&Path>, commands: &[&str], directory: &Path) -> String {
    let script = directory.join("script.gdb");
    let mut lines = vec!["set confirm off".to_string(), "set print frame-arguments all".to_string()];
    if let Some(path) = symbols {
        lines.push(format!("add-symbol-file {}", path.display()));
    }
    lines.extend(commands.iter().map(|c| c.to_string()));
    std::fs::write(&script, lines.join("\n") + "\n").unwrap();
    let output = Command::new(gdb)
        .args(["-nx", "-batch", "-iex", "set width 0", "-iex", "set debuginfod enabled off"])
        .args(target)
        .arg("-x")
        .arg(&script)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = text(output.clone());
    assert!(output.status.success(), "{text}");
    text
}

fn run_lldb(lldb: &str, target: &[&str], symbols: &Path, commands: &[&str]) -> String {
    let load = [
        format!("target modules add \"{}\"", symbols.display()),
        format!("target modules load --file \"{}\" --slide 0", symbols.display()),
    ];
    let mut command = Command::new(lldb);
    command.args(["-x", "-b"]).args(target);
    for line in load.iter().map(String::as_str).chain(commands.iter().copied()) {
        command.args(["-o", line]);
    }
    text(command.stdin(Stdio::null()).output().unwrap())
}

/// `wstate symbols` of a target.
fn symbols(target: &[&str], wasm: Option<&Path>, directory: &Path) -> PathBuf {
    let out = directory.join("wasm.sym");
    let mut args = vec!["symbols", "-o", out.to_str().unwrap()];
    args.extend(target);
    if let Some(wasm) = wasm {
        args.extend(["--wasm", wasm.to_str().unwrap()]);
    }
    let output = wstate(&args);
    assert!(output.status.success(), "{args:?}: {}", text(output));
    let commands = text(output);
    assert!(commands.contains(&format!("add-symbol-file \"{}\"", out.display())), "{commands}");
    assert!(commands.contains("--slide 0"), "{commands}");
    out
}

/// A host whose guest is written beside its other files.
fn host(stop: &str, profile: Profile) -> (Host, PathBuf) {
    let wasm = tempfile::Builder::new().suffix(".wasm").tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dump = wasm.path().to_str().unwrap().to_string();
    let host = Host::start(stop, &["--dump-wasm", &dump], profile);
    let kept = host.directory.path().join("guest.wasm");
    std::fs::copy(&dump, &kept).unwrap();
    (host, kept)
}

/// The frames of a backtrace, without numbers and addresses. `frame` prints the like behind it.
fn frames(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix('#')) {
        let Some((number, rest)) = line.split_once(' ') else { continue };
        if number != out.len().to_string() {
            continue;
        }
        let rest = rest.trim_start();
        out.push(match rest.split_once(" in ") {
            Some((address, rest)) if address.starts_with("0x") => rest.to_string(),
            _ => rest.to_string(),
        });
    }
    out
}

/// Whether the frames of `wanted` follow each other in `frames`, each by how it begins.
fn assert_in_row(frames: &[String], wanted: &[&str]) {
    let fits = |from: usize| wanted.iter().zip(&frames[from..]).all(|(w, f)| f.starts_with(w));
    let found = (0..frames.len()).any(|from| frames.len() - from >= wanted.len() && fits(from));
    assert!(found, "not in the stack: {wanted:#?}\nthe stack: {frames:#?}");
}

/// The nest of Wasm frames with the arguments that the guest gave: `names` are those of leaf's parameters and fact's.
fn nest(leaf: [&str; 3], fact: [&str; 2]) -> Vec<String> {
    let mut out = vec![format!("leaf ({}=9, {}=1229782938247303441, {}=3.25)", leaf[0], leaf[1], leaf[2])];
    for n in 0..=5u64 {
        out.push(format!("fact ({}={n}, {}={})", fact[0], fact[1], n * 0x0101_0101_0101_0101));
    }
    out.extend(["run ()".to_string(), "call_wasm_trampoline ()".to_string()]);
    out
}

fn assert_nest(text: &str, leaf: [&str; 3], fact: [&str; 2]) {
    let wanted = nest(leaf, fact);
    assert_in_row(&frames(text), &wanted.iter().map(String::as_str).collect::<Vec<_>>());
}

/// The values that `info locals` and `info args` show.
fn values(text: &str) -> HashMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(" = ")).map(|(n, v)| (n.trim(), v.trim())).collect()
}

/// The part of `text` after the line `@@ name`.
fn part<'t>(text: &'t str, name: &str) -> &'t str {
    let start = text.split_once(&format!("@@ {name}\n")).unwrap_or_else(|| panic!("no part {name} in\n{text}")).1;
    start.split_once("@@ ").map_or(start, |(part, _)| part)
}

const LOOK: &[&str] = &[
    "printf \"@@ stack\\n\"",
    "bt",
    "frame function leaf",
    "printf \"@@ leaf\\n\"",
    "info args",
    "info locals",
    "up 3",
    "printf \"@@ fact\\n\"",
    "info args",
    "info locals",
    "frame function host_singlepass::run",
    "printf \"@@ native\\n\"",
    "info args",
];

/// What gdb must show at `sleep` and at `trap-unreachable`, whose operands are the same. At the trap the second operand is
/// in a vector register: frames of a handler do not keep it, and a core may lack it.
fn assert_shown(shown: &str, with_wasm: bool, trap: bool) {
    let stack = part(shown, "stack");
    let (leaf, fact) =
        if with_wasm { (["n", "s", "d"], ["n", "m"]) } else { (["local0", "local1", "local2"], ["local0", "local1"]) };
    assert_nest(stack, leaf, fact);
    let all = frames(stack);
    assert!(all.iter().any(|f| f.starts_with("main (")), "{all:#?}");
    assert!(all.last().unwrap().starts_with("_start ("), "{all:#?}");

    let in_leaf = values(part(shown, "leaf"));
    assert_eq!((in_leaf[leaf[0]], in_leaf[leaf[1]], in_leaf[leaf[2]]), ("9", "1229782938247303441", "3.25"));
    let (x, y) = if with_wasm { ("x", "y") } else { ("local3", "local4") };
    // Without the types these are raw bits.
    let second = if with_wasm { "4.25".to_string() } else { 4.25f64.to_bits().to_string() };
    let operands = |second: &str| format!("{{s0 = 340, s1 = {second}, s2 = 99}}");
    let mut right = vec![operands(&second)];
    if trap {
        right.extend([operands("<optimized out>"), operands("<unavailable>")]);
    }
    assert_eq!((in_leaf[x], in_leaf[y]), ("333", "444"));
    assert!(right.iter().any(|r| r == in_leaf["wasm_stack"]), "{}", in_leaf["wasm_stack"]);

    let in_fact = values(part(shown, "fact"));
    assert_eq!((in_fact[fact[0]], in_fact[fact[1]]), ("2", "144680345676153346"));
    assert_eq!(in_fact["wasm_stack"], "{s0 = 1002}");

    // A native frame above the Wasm frames: its values are found through registers that Wasm frames have saved.
    assert!(part(shown, "native").contains("name = \"run\""), "{}", part(shown, "native"));
}

#[test]
fn gdb_shows_a_live_process() {
    let Some(gdb) = gdb() else { return };
    let (host, wasm) = host("sleep", Profile::Debug);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    for with in [None, Some(wasm.as_path())] {
        let file = symbols(&["-p", &pid], with, directory);
        let shown = run_gdb(&gdb, &["-p", &pid], Some(&file), LOOK, directory);
        assert_shown(&shown, with.is_some(), false);
    }
    // Without the file gdb gets no further than the first Wasm frame.
    let shown = run_gdb(&gdb, &["-p", &pid], None, &["bt"], directory);
    assert!(!frames(&shown).iter().any(|f| f.starts_with("main (")), "{shown}");
}

/// With guest_debug each store runs a copy of the code, and the original gets no names: a breakpoint in it would be copied
/// to where no debugger knows of it, and end the process.
#[test]
fn a_process_has_the_symbols_that_its_core_has() {
    for flags in [&[][..], &["--guest-debug"]] {
        let host = Host::start_exe(host_wasmtime(Version::V48, Profile::Release), "sleep", flags);
        let directory = host.directory.path();
        let named = |target: &[&str]| {
            let out = directory.join("wasm.sym");
            let output = wstate(&[&["symbols", "-o", out.to_str().unwrap()], target].concat());
            // 1: something has no names, and a note says so.
            let withheld = flags.contains(&"--guest-debug");
            assert_eq!(output.status.code(), Some(i32::from(withheld)), "{flags:?} {target:?}: {output:?}");
            let file = std::fs::read(out).unwrap();
            let file = object::File::parse(&*file).unwrap();
            let functions = file.symbols().filter(|s| s.kind() == object::SymbolKind::Text);
            let mut all: Vec<_> = functions.map(|s| (s.name().unwrap().to_string(), s.address())).collect();
            all.sort();
            all
        };
        let live = named(&["-p", &host.pid().to_string()]);
        assert!(live.iter().any(|(name, _)| name == "leaf"), "{flags:?}: {live:x?}");
        let of_runtime = |name: &str| name.contains("trampoline") || name.starts_with("wasmtime_builtin");
        let twice: Vec<_> = live.windows(2).filter(|two| two[0].0 == two[1].0 && !of_runtime(&two[0].0)).collect();
        assert!(twice.is_empty(), "{flags:?}: {twice:x?}");
        let core = gcore(&host).unwrap_or_else(|why| panic!("{}", why.0));
        assert_eq!(live, named(&["-c", core.to_str().unwrap()]), "{flags:?}");
    }
}

#[test]
fn gdb_shows_lines_of_the_text_form() {
    let Some(gdb) = gdb() else { return };
    let (host, wasm) = host("sleep", Profile::Debug);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    let file = symbols(&["-p", &pid], Some(&wasm), directory);
    let shown = run_gdb(
        &gdb,
        &["-p", &pid],
        Some(&file),
        &["frame function leaf", "printf \"@@ list\\n\"", "list", "break leaf", "info breakpoints"],
        directory,
    );
    let (line, source) =
        shown.lines().filter_map(|l| l.split_once('\t')).find(|(_, l)| l.contains("call $stop")).unwrap_or_default();
    let texts: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "wat"))
        .collect();
    let [wat] = texts.as_slice() else { panic!("{texts:?}") };
    let wat = std::fs::read_to_string(wat).unwrap();
    assert_eq!(wat.lines().nth(line.parse::<usize>().unwrap() - 1), Some(source), "{shown}");
    assert!(part(&shown, "list").contains("f64.const 0x1p+0"), "{shown}");
    assert!(shown.contains("Breakpoint 1 at"), "{shown}");
}

#[test]
fn gdb_shows_a_trap_in_the_handler_of_the_host() {
    let Some(gdb) = gdb() else { return };
    let (host, wasm) = host("trap-unreachable", Profile::Debug);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    let file = symbols(&["-p", &pid], Some(&wasm), directory);
    let shown = run_gdb(&gdb, &["-p", &pid], Some(&file), LOOK, directory);
    assert!(shown.contains("<signal handler called>"), "{shown}");
    assert_shown(&shown, true, true);
}

/// A core of the kernel where it writes one here, else one of gdb.
fn core(stop: &str, profile: Profile) -> Option<(PathBuf, PathBuf, Box<dyn std::any::Any>)> {
    let kernel = match kernel_core(stop, &[], profile) {
        Ok(core) => {
            let Core { path, exe, .. } = &core;
            return Some((path.clone(), exe.clone(), Box::new(core)));
        }
        Err(NoCore(why)) => why,
    };
    let host = Host::start(stop, &[], profile);
    match gcore(&host) {
        Ok(path) => Some((path, host.exe.clone(), Box::new(host))),
        Err(NoCore(why)) => {
            missing(format!("no core: {kernel}; {why}"));
            None
        }
    }
}

#[test]
fn gdb_shows_cores() {
    let Some(gdb) = gdb() else { return };
    for stop in ["sleep", "trap-unreachable"] {
        let Some((path, exe, _kept)) = core(stop, Profile::Debug) else { continue };
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (path, exe) = (path.to_str().unwrap(), exe.to_str().unwrap());
        let file = symbols(&["-c", path, "-e", exe], None, directory.path());
        let shown = run_gdb(&gdb, &[exe, path], Some(&file), LOOK, directory.path());
        assert_shown(&shown, false, stop != "sleep");
    }
}

#[test]
fn gdb_shows_a_stripped_host() {
    let Some(gdb) = gdb() else { return };
    for stop in ["sleep", "trap-unreachable"] {
        let (host, wasm) = host(stop, Profile::Stripped);
        let pid = host.pid().to_string();
        let file = symbols(&["-p", &pid], Some(&wasm), host.directory.path());
        let shown = run_gdb(&gdb, &["-p", &pid], Some(&file), &["bt"], host.directory.path());
        assert_nest(&shown, ["n", "s", "d"], ["n", "m"]);
        assert!(shown.contains("__libc_start_main"), "{shown}");
    }
}

/// Every instruction of a loop, through a function's prologue, body and epilogue: what is shown is right, and the stack
/// reaches its end.
#[test]
fn gdb_shows_nothing_wrong_at_any_instruction() {
    let Some(gdb) = gdb() else { return };
    let (host, wasm) = host("spin", Profile::Debug);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    let file = symbols(&["-p", &pid], Some(&wasm), directory);
    let steps = [
        "set $i = 0",
        "while $i < 250",
        "printf \"@@ step\\n\"",
        "bt",
        "frame function spin",
        "printf \"@@ spin\\n\"",
        "info args",
        "info locals",
        "frame 0",
        "printf \"@@ inner\\n\"",
        "info args",
        "info locals",
        "stepi",
        "set $i = $i + 1",
        "end",
    ];
    let shown = run_gdb(&gdb, &["-p", &pid], Some(&file), &steps, directory);
    let (mut seen, mut in_leaf, mut stacks, mut whole) = (0, 0, 0, 0);
    for step in shown.split("@@ step\n").skip(1) {
        let (stack, rest) = step.split_once("@@ spin\n").unwrap();
        let (spin, inner) = rest.split_once("@@ inner\n").unwrap();
        let stack = frames(stack);
        assert!(stack.iter().any(|f| f.starts_with("main (")), "{step}");
        assert!(stack.last().unwrap().starts_with("_start ("), "{step}");
        let locals = values(spin);
        let known = |name: &str| locals.get(name).copied().filter(|v| *v != "<optimized out>");
        for (name, value) in [("c0", "9"), ("c1", "1229782938247303441"), ("c2", "3.25"), ("c6", "1.5")] {
            assert!(known(name).is_none_or(|v| v == value), "{name}: {step}");
        }
        if let Some(i) = known("i").map(|i| i.parse::<i32>().unwrap() as u32) {
            whole += 1;
            let k = known("k").unwrap().parse::<i32>().unwrap() as u32;
            let m = known("m").unwrap().parse::<i64>().unwrap() as u64;
            let of = |i: u32| 3u32.wrapping_mul(i).wrapping_add(7);
            assert!(k == of(i) || k == of(i.wrapping_sub(1)), "{step}");
            let of = |i: u32| 12 * u64::from(i) + 12;
            assert!(m == of(i) || m == of(i.wrapping_sub(1)), "{step}");
            if stack[0].starts_with("leaf (") {
                let stack = locals["wasm_stack"].strip_prefix("{s0 = ").and_then(|s| s.strip_suffix('}')).unwrap();
                assert_eq!(stack.parse::<i32>().unwrap() as u32, i.wrapping_mul(7), "{step}");
                stacks += 1;
                let values = values(inner);
                in_leaf += 1;
                assert!(["2.5", "<optimized out>"].contains(&values["q"]), "{step}");
                assert!([i.to_string().as_str(), "<optimized out>"].contains(&values["p"]), "{step}");
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 250);
    assert!(in_leaf > 20 && stacks > 20 && whole > 200, "{in_leaf} in leaf, {stacks} stacks, {whole} with locals");
}

#[test]
fn gdb_stops_at_a_function_by_its_name() {
    let Some(gdb) = gdb() else { return };
    let (host, wasm) = host("spin", Profile::Debug);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    let file = symbols(&["-p", &pid], Some(&wasm), directory);
    let commands = ["break leaf", "continue", "printf \"@@ in\\n\"", "bt 2", "finish", "printf \"@@ out\\n\"", "bt 1"];
    let shown = run_gdb(&gdb, &["-p", &pid], Some(&file), &commands, directory);
    let inside = frames(part(&shown, "in"));
    assert!(inside[0].starts_with("leaf (") && inside[0].contains("q=2.5"), "{shown}");
    assert!(inside[1].starts_with("spin (c0=9, c1=1229782938247303441, c2=3.25)"), "{shown}");
    assert!(frames(part(&shown, "out"))[0].starts_with("spin (c0=9,"), "{shown}");
}

#[test]
fn the_machine_interface_shows_frames_and_variables() {
    let Some(gdb) = gdb() else { return };
    let (host, wasm) = host("sleep", Profile::Debug);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    let file = symbols(&["-p", &pid], Some(&wasm), directory);
    let commands = [
        "frame function leaf",
        "interpreter-exec mi3 \"-stack-list-frames\"",
        "interpreter-exec mi3 \"-stack-list-variables --all-values\"",
    ];
    let shown = run_gdb(&gdb, &["-p", &pid], Some(&file), &commands, directory);
    for wanted in [
        "func=\"leaf\",file=\"wasm.sym.0.wat\"",
        "func=\"run\",file=\"wasm.sym.0.wat\"",
        "func=\"call_wasm_trampoline\"",
        "func=\"main\"",
        "{name=\"n\",arg=\"1\",value=\"9\"}",
        "{name=\"d\",arg=\"1\",value=\"3.25\"}",
        "{name=\"y\",value=\"444\"}",
        "{name=\"wasm_stack\",value=\"{s0 = 340, s1 = 4.25, s2 = 99}\"}",
    ] {
        assert!(shown.contains(wanted), "no {wanted} in\n{shown}");
    }
}

/// The commands of an editor, which loads the file before it attaches (VS Code's `setupCommands`).
#[test]
fn a_session_of_the_machine_interface_shows_frames_and_variables() {
    let Some(gdb) = gdb() else { return };
    let (host, wasm) = host("sleep", Profile::Debug);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    let file = symbols(&["-p", &pid], Some(&wasm), directory);
    let session = |commands: &[String]| {
        let script = directory.join("script.mi");
        std::fs::write(&script, commands.join("\n") + "\n-gdb-exit\n").unwrap();
        let output = Command::new(&gdb)
            .args(["-nx", "--interpreter=mi3", "-iex", "set debuginfod enabled off"])
            .stdin(std::fs::File::open(&script).unwrap())
            .output()
            .unwrap();
        let shown = text(output);
        assert!(!shown.contains("^error"), "{shown}");
        shown
    };
    let mut commands = vec![
        format!("-interpreter-exec console \"add-symbol-file {}\"", file.display()),
        format!("-file-exec-and-symbols {}", host.exe.display()),
        format!("-target-attach {pid}"),
        "-stack-list-frames --thread 1".to_string(),
    ];
    let shown = session(&commands);
    let list = shown.lines().find(|l| l.starts_with("^done,stack=[")).unwrap_or_else(|| panic!("{shown}"));
    let functions: Vec<&str> = list.split("func=\"").skip(1).filter_map(|f| f.split('"').next()).collect();
    let leaf = functions.iter().position(|f| *f == "leaf").unwrap_or_else(|| panic!("{functions:?}"));
    let wasm = ["leaf", "fact", "fact", "fact", "fact", "fact", "fact", "run", "call_wasm_trampoline"];
    assert_eq!(functions[leaf..leaf + wasm.len()], wasm);
    assert_eq!(functions[leaf - 1], "host_stop_import");
    assert!(functions[leaf..].contains(&"main"), "{functions:?}");
    assert_eq!(functions.last(), Some(&"_start"));

    commands.push(format!("-stack-list-variables --thread 1 --frame {leaf} --all-values"));
    let shown = session(&commands);
    let list = shown.lines().find(|l| l.starts_with("^done,variables=[")).unwrap_or_else(|| panic!("{shown}"));
    for wanted in [
        "{name=\"n\",arg=\"1\",value=\"9\"}",
        "{name=\"s\",arg=\"1\",value=\"1229782938247303441\"}",
        "{name=\"d\",arg=\"1\",value=\"3.25\"}",
        "{name=\"x\",value=\"333\"}",
        "{name=\"y\",value=\"444\"}",
    ] {
        assert!(list.contains(wanted), "no {wanted} in\n{list}");
    }
}

fn assert_lldb_shows(shown: &str) {
    let frames: Vec<&str> = shown.lines().filter(|l| l.contains("frame #")).collect();
    let has = |wanted: &str| assert!(frames.iter().any(|f| f.contains(wanted)), "no {wanted} in\n{shown}");
    has("`leaf(n=9, s=1229782938247303441, d=3.25)");
    for n in 0..=5u64 {
        has(&format!("`fact(n={n}, m={})", n * 0x0101_0101_0101_0101));
    }
    has("`run");
    has("`call_wasm_trampoline");
    has("`main");
    has("`_start");
}

#[test]
fn lldb_shows_a_live_process_and_a_core() {
    let Some(lldb) = lldb() else { return };
    let (host, wasm) = host("sleep", Profile::Debug);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    let file = symbols(&["-p", &pid], Some(&wasm), directory);
    let shown = run_lldb(&lldb, &["-p", &pid], &file, &["bt"]);
    assert_lldb_shows(&shown);
    let number = shown.lines().find(|l| l.contains("`leaf(")).and_then(|l| l.split_once('#')?.1.split(':').next());
    let select = format!("frame select {}", number.unwrap());
    let shown = run_lldb(&lldb, &["-p", &pid], &file, &[&select, "frame variable"]);
    for value in ["(i32) n = 9", "(i64) s = 1229782938247303441", "(f64) d = 3.25", "(i32) x = 333", "(i32) y = 444"] {
        assert!(shown.contains(value), "no {value} in\n{shown}");
    }
    assert!(shown.contains("wasm_stack = (s0 = 340, s1 = 4.25, s2 = 99)"), "{shown}");

    let Some((path, exe, _kept)) = core("sleep", Profile::Debug) else { return };
    let (path, exe) = (path.to_str().unwrap(), exe.to_str().unwrap());
    let file = symbols(&["-c", path, "-e", exe], Some(&wasm), directory);
    assert_lldb_shows(&run_lldb(&lldb, &[exe, "-c", path], &file, &["bt"]));
}

#[test]
fn lldb_shows_a_core_of_a_trap() {
    let Some(lldb) = lldb() else { return };
    let core = match kernel_core("trap-unreachable", &[], Profile::Debug) {
        Ok(core) => core,
        Err(NoCore(why)) => return missing(format!("no core: {why}")),
    };
    let (path, exe) = (core.path.to_str().unwrap(), core.exe.to_str().unwrap());
    let file = symbols(&["-c", path, "-e", exe], None, core.directory.path());
    let shown = run_lldb(&lldb, &[exe, "-c", path], &file, &["bt", "frame variable"]);
    let has = |wanted: &str| assert!(shown.contains(wanted), "no {wanted} in\n{shown}");
    has("`leaf(local0=9, local1=1229782938247303441, local2=3.25)");
    has("`fact(local0=5, local1=361700864190383365)");
    has("`call_wasm_trampoline");
    has("`main");
    has("(raw) local3 = 333");
    has("wasm_stack = (s0 = 340, s1 = ");
}

/// A guest with what the hosts' own do not have: twelve parameters of all types, `call_indirect`, blocks that leave values
/// on the operand stack, and functions named as the process's own.
const ORDERS: &str = r#"
(module $orders
  (import "env" "stop" (func $stop (param i32)))
  (type $op (func (param $left i32) (param $price i64) (param $a f32) (param $b f64) (result i64)))
  (memory (export "memory") 1)
  (table 4 funcref)
  (elem (i32.const 1) $discount $total)
  (func $malloc (export "malloc") (param $size i32) (result i32)
    (i32.store (i32.const 64) (local.get $size))
    (i32.const 1024))
  (func $wide (param $a i32) (param $b i64) (param $c f32) (param $d f64) (param $e i32) (param $f i64)
              (param $g f32) (param $h f64) (param $i i32) (param $j i64) (param $k f32) (param $l f64) (result i64)
    (local $sum i64) (local $mean f64) (local $ratio f32) (local $flag i32)
    (local.set $sum (i64.add (local.get $b) (i64.add (local.get $f) (local.get $j))))
    (local.set $mean (f64.div (f64.add (local.get $d) (local.get $h)) (f64.const 2)))
    (local.set $ratio (f32.mul (local.get $c) (local.get $k)))
    (local.set $flag (i32.const -7))
    i64.const 1000
    local.get $mean
    (block (result f32)
      local.get $ratio
      (call $stop (i32.const 77)))
    drop
    drop
    local.get $sum
    i64.add)
  (func $discount (type $op) (param $left i32) (param $price i64) (param $a f32) (param $b f64) (result i64)
    (local $x i64)
    (local.set $x (i64.mul (local.get $price) (i64.const 3)))
    i64.const -5
    (if (result i64) (i32.gt_s (local.get $left) (i32.const 0))
      (then
        (call_indirect (type $op)
          (i32.sub (local.get $left) (i32.const 1))
          (i64.add (local.get $x) (i64.const 1))
          (f32.mul (local.get $a) (f32.const 2))
          (f64.add (local.get $b) (f64.const 0.5))
          (i32.const 1)))
      (else
        (call_indirect (type $op) (local.get $left) (local.get $x) (local.get $a) (local.get $b) (i32.const 2))))
    i64.sub)
  (func $total (type $op) (param $left i32) (param $price i64) (param $a f32) (param $b f64) (result i64)
    (local $acc f64)
    (local.set $acc (f64.mul (local.get $b) (f64.promote_f32 (local.get $a))))
    i64.const 0x7fffffffffffffff
    local.get $a
    (call $wide (i32.const -1) (local.get $price) (local.get $a) (local.get $b) (i32.const 0x80000000) (i64.const -2)
      (f32.const -0.5) (f64.const 3.5) (i32.const 9) (i64.const 0x8000000000000000) (f32.const 0.25) (f64.const -inf))
    drop
    drop)
  (func $main (export "main") (param $n i32) (result i64)
    (i64.mul
      (block (result i64)
        i64.const 77
        (call $discount (local.get $n) (i64.const 11) (f32.const 1.5) (f64.const 100.25))
        i64.add)
      (i64.const 2))))
"#;

/// The frames of [`ORDERS`] and their arguments, computed from its text, and what `wide` has beside its arguments.
const ORDERS_FRAMES: [&str; 6] = [
    "wide (a=-1, b=309, c=6, d=101.25, e=-2147483648, f=-2, g=-0.5, h=3.5, i=9, j=-9223372036854775808, k=0.25, l=-inf)",
    "total (left=0, price=309, a=6, b=101.25)",
    "discount (left=0, price=103, a=6, b=101.25)",
    "discount (left=1, price=34, a=3, b=100.75)",
    "discount (left=2, price=11, a=1.5, b=100.25)",
    "main.wasm (n=2)",
];
const ORDERS_WIDE: [(&str, &str); 5] = [
    ("sum", "-9223372036854775501"),
    ("mean", "52.375"),
    ("ratio", "1.5"),
    ("flag", "-7"),
    ("wasm_stack", "{s0 = 1000, s1 = 52.375, s2 = 1.5}"),
];

fn orders(profile: Profile) -> (Host, PathBuf) {
    let wasm = tempfile::Builder::new().suffix(".wasm").tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(wasm.path(), wat::parse_str(ORDERS).unwrap()).unwrap();
    let path = wasm.path().to_str().unwrap();
    let flags = ["--wasm", path, "--call", "main", "2", "--stop-at", "env.stop"];
    let host = Host::start("wasm", &flags, profile);
    let kept = host.directory.path().join("orders.wasm");
    std::fs::copy(path, &kept).unwrap();
    (host, kept)
}

/// The values are those that the guest's text gives. The guest's `main` is not where gdb ends the stack of a stripped host,
/// and its `malloc` is not what gdb calls to have room for a string.
#[test]
fn gdb_does_not_take_a_guest_for_the_process() {
    let Some(gdb) = gdb() else { return };
    let (host, wasm) = orders(Profile::Stripped);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    let file = symbols(&["-p", &pid], Some(&wasm), directory);
    let commands = [
        "printf \"@@ stack\\n\"",
        "bt",
        "frame function wide",
        "printf \"@@ wide\\n\"",
        "info locals",
        "up",
        "printf \"@@ total\\n\"",
        "info locals",
        "up 4",
        "printf \"@@ main\\n\"",
        "info locals",
        "printf \"@@ break\\n\"",
        "break malloc.wasm",
    ];
    let shown = run_gdb(&gdb, &["-p", &pid], Some(&file), &commands, directory);
    let stack = frames(part(&shown, "stack"));
    assert_in_row(&stack, &ORDERS_FRAMES);
    assert!(stack.iter().any(|f| f.starts_with("__libc_start_main")), "{stack:#?}");
    let wide = values(part(&shown, "wide"));
    for (name, value) in ORDERS_WIDE {
        assert_eq!(wide[name], value, "{name}");
    }
    let total = values(part(&shown, "total"));
    assert_eq!((total["acc"], total["wasm_stack"]), ("607.5", "{s0 = 9223372036854775807, s1 = 6}"));
    assert_eq!(values(part(&shown, "main"))["wasm_stack"], "{s0 = 77}");
    assert!(part(&shown, "break").contains("Breakpoint 1 at"), "{shown}");
    // gdb calls the process's strlen and malloc, not the guest's. Where it cannot call at all (gdb 13 does not know the
    // larger register sets of some processors) the file changes nothing about it.
    let call = |with: bool| {
        let (host, wasm) = orders(Profile::Stripped);
        let pid = host.pid().to_string();
        let mut command = Command::new(&gdb);
        command.args(["-nx", "-batch", "-iex", "set debuginfod enabled off", "-p", &pid]);
        if with {
            let file = symbols(&["-p", &pid], Some(&wasm), host.directory.path());
            command.args(["-ex".to_string(), format!("add-symbol-file {}", file.display())]);
        }
        command.args(["-ex", "set language c", "-ex", "print (unsigned long)strlen(\"abcde\")"]);
        let shown = text(command.stdin(Stdio::null()).output().unwrap());
        (shown.contains("$1 = 5\n"), shown.contains("Couldn't write extended state"), shown)
    };
    let ((with, _, shown), (without, cannot, plain)) = (call(true), call(false));
    assert!(with == without && (without || cannot), "{shown}\n{plain}");
}

#[test]
fn lldb_shows_a_guest_of_its_own() {
    let Some(lldb) = lldb() else { return };
    let (host, wasm) = orders(Profile::Debug);
    let pid = host.pid().to_string();
    let file = symbols(&["-p", &pid], Some(&wasm), host.directory.path());
    let shown = run_lldb(&lldb, &["-p", &pid], &file, &["bt", "frame select 8", "frame variable"]);
    for frame in ORDERS_FRAMES {
        let wanted = format!("`{}", frame.replacen(" (", "(", 1).replace("-inf", "-Inf"));
        assert!(shown.contains(&wanted), "no {wanted} in\n{shown}");
    }
    for (name, value) in ORDERS_WIDE {
        let wanted = format!("{name} = {}", value.replace('{', "(").replace('}', ")"));
        assert!(shown.contains(&wanted), "no {wanted} in\n{shown}");
    }
    assert!(shown.contains("`main") && shown.contains("`_start"), "{shown}");
}

/// A debugger that was killed, or lldb at a stop, leaves `int3` in the code: no value becomes wrong by that, wherever it is.
#[test]
fn breakpoints_that_were_left_make_nothing_wrong() {
    use std::os::unix::fs::FileExt;
    let Some(gdb) = gdb() else { return };
    let (host, wasm) = host("sleep", Profile::Debug);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    let memory = std::fs::File::options().write(true).open(format!("/proc/{pid}/mem")).unwrap();
    let file = symbols(&["-p", &pid], Some(&wasm), directory);
    let commands = ["print (long)&leaf", "frame function leaf", "print (long)$pc"];
    let shown = run_gdb(&gdb, &["-p", &pid], Some(&file), &commands, directory);
    let number = |name: &str| values(&shown)[name].parse::<u64>().unwrap_or_else(|e| panic!("{name}: {e}\n{shown}"));
    let (start, pc) = (number("$1"), number("$2"));
    // The return address, the body, the moves of locals, the frame's set-up, the entry: one after the other, all kept.
    for at in [pc, pc - 20, start + 0x50, start + 38, start] {
        memory.write_all_at(&[0xcc], at).unwrap();
        let shown = wstate(&["symbols", "-p", &pid, "--wasm", wasm.to_str().unwrap(), "-o", file.to_str().unwrap()]);
        // The runtime's own copy of the code is another one now, which is told.
        assert!(text(shown).contains("differs from its image"));
        let commands = ["bt", "frame function leaf", "printf \"@@ leaf\\n\"", "info locals", "printf \"@@ end\\n\""];
        let shown = run_gdb(&gdb, &["-p", &pid], Some(&file), &commands, directory);
        let stack = frames(&shown);
        let facts = nest(["n", "s", "d"], ["n", "m"]);
        assert_in_row(&stack, &facts[1..].iter().map(String::as_str).collect::<Vec<_>>());
        let leaf = stack.iter().find(|f| f.starts_with("leaf (")).unwrap();
        assert!(leaf.starts_with(&facts[0]) || leaf.starts_with("leaf ()"), "{at:#x}: {leaf}");
        let locals = values(part(&shown, "leaf"));
        for (name, right) in [("x", "333"), ("y", "444"), ("wasm_stack", "{s0 = 340, s1 = 4.25, s2 = 99}")] {
            assert!(locals.get(name).is_none_or(|v| *v == right), "{at:#x}: {name}: {shown}");
        }
    }
}

/// The same in lldb as [`gdb_shows_nothing_wrong_at_any_instruction`].
#[test]
fn lldb_shows_nothing_wrong_at_any_instruction() {
    let Some(lldb) = lldb() else { return };
    let (host, wasm) = host("spin", Profile::Debug);
    let pid = host.pid().to_string();
    let directory = host.directory.path();
    let file = symbols(&["-p", &pid], Some(&wasm), directory);
    let script = directory.join("steps.py");
    std::fs::write(
        &script,
        r#"
import lldb
def value(frame, name):
    v = frame.FindVariable(name)
    return v.GetValue() if v.IsValid() and v.GetError().Success() else None
def u32(n): return int(n) & 0xffffffff
def steps(debugger, command, result, internal):
    thread = debugger.GetSelectedTarget().process.GetSelectedThread()
    wrong, known, in_leaf, stacks = [], 0, 0, 0
    for step in range(250):
        frames = [thread.GetFrameAtIndex(i) for i in range(thread.GetNumFrames())]
        names = [f.GetFunctionName() for f in frames]
        at = "step %d, %#x: " % (step, frames[0].pc)
        if "main" not in names or names[-1] != "_start" or "spin" not in names[:2]:
            wrong.append(at + repr(names))
        else:
            spin = frames[names.index("spin")]
            for name, right in (("c0", "9"), ("c1", "1229782938247303441"), ("c2", "3.25"), ("c6", "1.5")):
                if value(spin, name) not in (None, right): wrong.append(at + name)
            i = value(spin, "i")
            if i is not None:
                i, known = u32(i), known + 1
                if u32(value(spin, "k")) not in (u32(3 * i + 7), u32(3 * (i - 1) + 7)): wrong.append(at + "k")
                if int(value(spin, "m")) not in (12 * i + 12, 12 * u32(i - 1) + 12): wrong.append(at + "m")
            if names[0] == "leaf":
                in_leaf += 1
                p, q = value(frames[0], "p"), value(frames[0], "q")
                if q not in (None, "2.5") or p is not None and u32(p) != i: wrong.append(at + "leaf")
                stack = spin.FindVariable("wasm_stack")
                if stack.IsValid():
                    stacks += 1
                    if u32(stack.GetChildAtIndex(0).GetValue()) != u32(7 * i): wrong.append(at + "wasm_stack")
        thread.StepInstruction(False)
    result.Print("@@ known %d, in leaf %d, stacks %d, wrong %s @@" % (known, in_leaf, stacks, wrong))
"#,
    )
    .unwrap();
    let import = format!("command script import {}", script.display());
    let shown =
        run_lldb(&lldb, &["-p", &pid], &file, &[&import, "command script add -f steps.steps wasm-steps", "wasm-steps"]);
    let found = shown.split("@@ ").nth(1).unwrap_or_else(|| panic!("{shown}"));
    let count = |name: &str| -> u32 {
        let text = found.split_once(&format!("{name} ")).unwrap().1.split(',').next().unwrap();
        text.parse().unwrap()
    };
    assert!(found.contains("wrong []"), "{found}");
    assert!(count("known") > 200 && count("in leaf") > 20 && count("stacks") > 20, "{found}");
}

#[test]
fn what_cannot_be_written_is_told() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = directory.path().join("none.sym");
    let output = wstate(&["symbols", "-p", &std::process::id().to_string(), "-o", out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(output).contains("no Wasm code was found"));
    assert!(!out.exists());
    let output = wstate(&["symbols", "-p", "1"]);
    assert_eq!(output.status.code(), Some(64));
}

/// A guest with each kind of trap, each with accesses and calls around it that do not trap.
const TRAPS: &str = r#"(module
  (import "env" "note" (func $note (param i32)))
  (memory 1 1)
  (table 4 funcref)
  (elem (i32.const 0) $other $same)
  (type $wanted (func (param i32) (result i32)))
  (global $g (mut i32) (i32.const 0))
  (func $other (param i64) (result i64) (local.get 0))
  (func $same (type $wanted) (i32.load (i32.const 8)))
  (func $around (param i32) (result i32)
    (i32.store (i32.const 16) (local.get 0))
    (call $note (i32.load (i32.const 16)))
    (i32.load8_u offset=3 (i32.const 16)))
  (func (export "load") (param i32) (result i32)
    (i32.store offset=4 (i32.const 0) (local.get 0))
    (drop (i32.load (i32.const 4)))
    (global.set $g (i32.add (global.get $g) (local.get 0)))
    (drop (i64.load32_u offset=24 (local.get 0)))
    (call $around (i32.load (i32.const 4))))
  (func (export "store") (param i32) (result i32)
    (drop (call $around (i32.const 1)))
    (drop (i32.load (i32.const 4)))
    (f64.store (local.get 0) (f64.const 1))
    (i32.load (i32.const 4)))
  (func (export "nested") (param i32) (result i32)
    (loop $again (result i32)
      (if (i32.load (i32.const 64)) (then (return (i32.const 1))))
      (drop (i32.load16_u (i32.load16_s (i32.const 70))))
      (i32.store8 (local.get 0) (i32.const 1))
      (br_if $again (i32.const 0))
      (i32.load (i32.const 4))))
  (func (export "dead") (param i32) (result i32)
    (block $out (br $out) (drop (i32.load (i32.const 0))))
    (if (i32.eqz (local.get 0)) (then (unreachable)) (else (drop (i32.load (i32.const 4)))))
    (i64.store (i32.const 8) (i64.const 0))
    (drop (i64.load16_u (local.get 0)))
    (i32.const 0))
  (func (export "trunc") (param i32) (result i32)
    (drop (i32.trunc_f64_s (f64.const 5)))
    (drop (i32.load (i32.const 4)))
    (i32.trunc_f32_u (f32.mul (f32.const -1e10) (f32.convert_i32_u (local.get 0)))))
  (func (export "divide") (param i32) (result i32)
    (drop (i32.load (i32.const 4)))
    (drop (i32.div_u (local.get 0) (i32.const 3)))
    (i32.rem_u (local.get 0) (i32.load (i32.const 128))))
  (func (export "overflow") (param i32) (result i32)
    (i32.store (i32.const 4) (i32.const -1))
    (i32.div_s (i32.const 0x80000000) (i32.load (i32.const 4))))
  (func (export "unreachable") (param i32) (result i32)
    (drop (call $around (i32.const 1)))
    (i32.store (i32.const 4) (i32.const -1))
    (unreachable))
  (func (export "bounds") (param i32) (result i32)
    (drop (call_indirect (type $wanted) (i32.const 1) (i32.const 1)))
    (drop (i32.load (i32.const 4)))
    (call_indirect (type $wanted) (i32.load (i32.const 4)) (local.get 0)))
  (func (export "empty") (param i32) (result i32)
    (call_indirect (type $wanted) (i32.load (i32.const 4)) (i32.const 3)))
  (func (export "signature") (param i32) (result i32)
    (drop (i32.load (i32.const 4)))
    (call_indirect (type $wanted) (i32.load (i32.const 4)) (i32.const 0))))"#;

/// Export, its argument, and the operator that traps.
const TRAPPING: [(&str, &str, &str); 11] = [
    ("load", "70000", "i64.load32_u offset=24"),
    ("store", "65530", "f64.store"),
    ("nested", "65536", "i32.store8"),
    ("dead", "90000", "i64.load16_u"),
    ("trunc", "3", "i32.trunc_f32_u"),
    ("divide", "7", "i32.rem_u"),
    ("overflow", "7", "i32.div_s"),
    ("unreachable", "7", "unreachable"),
    ("bounds", "9", "call_indirect"),
    ("empty", "0", "call_indirect"),
    ("signature", "0", "call_indirect"),
];

/// A guest's file beside the host's other ones.
fn guest(text: &str, directory: &Path) -> PathBuf {
    let path = directory.join("guest.wasm");
    std::fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
    path
}

/// What wstate says of the youngest Wasm frame of a stopped host.
fn youngest(pid: &str, wasm: &Path) -> serde_json::Value {
    let output = wstate(&["attach", pid, "--json", "--wasm", wasm.to_str().unwrap()]);
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(output)));
    let frames = report["threads"].as_array().unwrap().iter().flat_map(|t| t["frames"].as_array().unwrap());
    frames.into_iter().find(|f| f["kind"] == "wasm").unwrap_or_else(|| panic!("{report:#}")).clone()
}

/// The operator of a trap is the one that traps, whether the processor faults at it or a check before it does.
#[test]
fn a_trap_is_shown_at_the_operator_that_trapped() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let wasm = guest(TRAPS, directory.path());
    for (name, argument, operator) in TRAPPING {
        for flags in [&[][..], &["--bounds-checks", "on"], &["--full-preemption"], &["--track-state", "off"]] {
            let call = ["--call", name, argument, "--wasm", wasm.to_str().unwrap()];
            let all: Vec<&str> = call.iter().chain(flags).copied().collect();
            let host = Host::start("wasm", &all, Profile::Debug);
            let frame = youngest(&host.pid().to_string(), &wasm);
            let what = format!("{name} {flags:?}: {frame:#}");
            assert!(frame["wasm"]["op"].as_str().is_some_and(|op| op.starts_with(operator)), "{what}");
            assert_eq!(frame["wasm"]["op_position"], "at", "{what}");
        }
    }
}

/// At every byte of every function the line that a debugger is given is the one of the place that a report names.
fn lines_are_those_of_positions(pid: i32, wasm: &Path) -> usize {
    use wstate::arch::{CodeAddress, Machine, Registers};
    use wstate::runtime::code_map::SourceFile;
    use wstate::runtime::{Position, Provider};
    let module = wstate::wasm::WasmModule::parse("guest.wasm".into(), std::fs::read(wasm).unwrap()).unwrap();
    let target = wstate::process::live::LiveTarget::capture(pid as u32, &Default::default()).unwrap();
    let objects = wstate::process::objects::Objects::load(&target, &Default::default());
    let find = wstate::runtime::all::FindOptions::read(Vec::new(), &[], &[wasm.to_path_buf()]);
    let mut provider = wstate::runtime::all::Runtimes::new(&find);
    let options = wstate::session::Options::new(wstate::session::Source::Pid(pid as u32));
    let progress = &wstate::progress::Silent;
    let look = wstate::session::Look { target: &target, objects: &objects, options: &options, progress };
    let map = look.code_map(&mut provider, true);
    let mut compared = 0;
    for (compiled, function) in map.modules.iter().flat_map(|m| m.functions.iter().map(move |f| (m, f))) {
        for pc in (function.start..function.start + u64::from(function.len)).filter(|_| !function.lines.is_empty()) {
            let cursor =
                wstate::unwind::Cursor { address: CodeAddress::Exact(pc), registers: Registers::unknown(Machine::X64) };
            let frame = provider.runtime().describe(&cursor, &target).remove(0);
            let row = function.lines.partition_point(|l| function.start + u64::from(l.offset) <= pc);
            let row = function.lines[row - 1].at;
            let local = frame.local_function.unwrap();
            let operators = module.operators(local).unwrap();
            let at = |index: u64| operators.get(index as usize).copied();
            let expected = if module.has_sources() {
                frame.operator.as_ref().and_then(|o| o.line).unwrap_or(0)
            } else {
                assert_eq!(compiled.files[row.file as usize], SourceFile::Text);
                let line = |offset: Option<u64>| module.printed().unwrap().line(offset.unwrap()).unwrap();
                match frame.position {
                    Position::Operator(index) => line(at(index)),
                    Position::After(index) => line(at(index + 1)),
                    // Before the first operator, and before the first that has a place of its own.
                    _ if row.line == line(at(0)) => row.line,
                    _ => line(module.body_offset(local)),
                }
            };
            assert_eq!(row.line, expected, "{pc:#x}: {:?} {:?} in {:?}", frame.position, frame.operator, function.name);
            compared += 1;
        }
    }
    compared
}

#[test]
fn lines_for_debuggers_are_those_of_reports_at_every_instruction() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let wasm = guest(TRAPS, directory.path());
    let mut compared = 0;
    for flags in [&[][..], &["--bounds-checks", "on"], &["--full-preemption"], &["--track-state", "off"]] {
        let call = ["--call", "load", "70000", "--wasm", wasm.to_str().unwrap()];
        let all: Vec<&str> = call.iter().chain(flags).copied().collect();
        let host = Host::start("wasm", &all, Profile::Debug);
        compared += lines_are_those_of_positions(host.pid(), &wasm);
    }
    // Lines of a source, with DWARF.
    let wasm = support::repository().join("tests/hosts/wasmtime/guests/c-guest.wasm");
    let host = Host::start("wasm", &["--call", "run", "3", "--wasm", wasm.to_str().unwrap()], Profile::Debug);
    compared += lines_are_those_of_positions(host.pid(), &wasm);
    let (host, wasm) = host_of("sleep");
    compared += lines_are_those_of_positions(host.pid(), &wasm);
    assert!(compared > 10_000, "{compared}");
    println!("{compared} places, all with one line");
}

fn host_of(stop: &str) -> (Host, PathBuf) {
    host(stop, Profile::Debug)
}
