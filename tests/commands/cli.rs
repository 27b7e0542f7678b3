//! The binary from outside: help, exit codes, streams. Nothing here needs a target that runs Wasm.

use crate::support::schema;
use clap::{CommandFactory, ValueEnum};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use wstate::cli::{Cli, Refused, Usage};

fn wstate(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_wstate"));
    c.args(args).stdin(Stdio::null()).env("COLUMNS", "100");
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM"] {
        c.env_remove(name);
    }
    c
}

/// The commands that the help lists, and their definitions.
fn commands() -> Vec<(String, clap::Command)> {
    let mut root = Cli::command();
    root.build();
    let commands = root.get_subcommands().filter(|c| c.get_name() != "help");
    commands.map(|c| (c.get_name().to_string(), c.clone())).collect()
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = wstate(args).output().unwrap();
    schema::check_output(&args.iter().map(|a| a.as_ref()).collect::<Vec<_>>(), &stdout);
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A process id beyond any `pid_max` (2^22).
const NOBODY: &str = "4200000";

/// An executable, which wrote no core.
const EXE: &str = env!("CARGO_BIN_EXE_wstate");

fn help(args: &[&str]) -> String {
    let (code, out, err) = run(args);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    out
}

#[test]
fn help_of_wstate() {
    insta::assert_snapshot!(help(&["--help"]));
}

#[test]
fn help_of_attach() {
    insta::assert_snapshot!(help(&["attach", "--help"]));
}

#[test]
fn help_of_core() {
    insta::assert_snapshot!(help(&["core", "--help"]));
}

#[test]
fn help_of_symbols() {
    insta::assert_snapshot!(help(&["symbols", "--help"]));
}

#[test]
fn help_of_modules() {
    insta::assert_snapshot!(help(&["modules", "--help"]));
}

#[test]
fn help_of_snapshot() {
    insta::assert_snapshot!(help(&["snapshot", "--help"]));
}

#[test]
fn help_of_restore() {
    insta::assert_snapshot!(help(&["restore", "--help"]));
}

#[test]
fn help_of_image() {
    insta::assert_snapshot!(help(&["image", "--help"]));
}

#[test]
fn help_of_memory() {
    insta::assert_snapshot!(help(&["memory", "--help"]));
}

#[test]
fn help_of_export() {
    insta::assert_snapshot!(help(&["export", "--help"]));
}

#[test]
fn help_of_doctor() {
    insta::assert_snapshot!(help(&["doctor", "--help"]));
}

#[test]
fn help_of_schema() {
    insta::assert_snapshot!(help(&["schema", "--help"]));
}

#[test]
fn help_of_plugin() {
    insta::assert_snapshot!(help(&["plugin", "--help"]));
}

#[test]
fn help_of_completions() {
    insta::assert_snapshot!(help(&["completions", "--help"]));
}

#[test]
fn help_of_man() {
    insta::assert_snapshot!(help(&["man", "--help"]));
}

#[test]
fn help_of_serve() {
    insta::assert_snapshot!(help(&["serve", "--help"]));
}

#[test]
fn plugins_come_and_go() {
    let home = tempfile::tempdir().unwrap();
    let plugin = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_wstate"));
        let command = command.arg("plugin").args(args).env("HOME", home.path()).env_remove("XDG_DATA_HOME");
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    plugin(&["install"]);
    plugin(&["install", "gdb"]);
    let path = plugin(&["path", "gdb"]);
    assert!(std::path::Path::new(path.trim()).starts_with(home.path()));
    let init = std::fs::read_to_string(home.path().join(".gdbinit")).unwrap();
    let loaded = init.strip_prefix("source ").map(str::trim_end).expect("one line");
    assert!(std::fs::read_to_string(loaded).unwrap().contains(&format!("source {path}")));
    assert!(home.path().join(".lldbinit").exists());
    plugin(&["uninstall"]);
    let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".local"]);
    assert!(!std::path::Path::new(path.trim()).exists());
}

/// An init file that no reading would end, or that is too large, is told by doctor, and no install touches it.
#[test]
fn init_files_that_are_not_read() {
    use std::os::unix::fs::FileTypeExt;
    use wstate::limits::MAX_INIT_BYTES;
    for name in [".gdbinit", ".lldbinit"] {
        let debugger = name.trim_start_matches('.').trim_end_matches("init");
        let home = tempfile::tempdir().unwrap();
        let init = home.path().join(name);
        let wstate = |args: &[&str]| {
            let out = wstate(args).env("HOME", home.path()).env_remove("XDG_DATA_HOME").output().unwrap();
            (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
        };
        let refused = |why: &str| {
            let path = init.display();
            let (_, text, _) = wstate(&["doctor"]);
            let told =
                format!("warn  {path} cannot be read, so it is not known which {debugger} plugin it loads: {why}\n");
            assert!(text.contains(&told), "{told}{text}");
            for action in ["install", "uninstall"] {
                let (code, out, err) = wstate(&["plugin", action, debugger]);
                assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
                assert!(err.contains(&path.to_string()) && err.contains(why), "{err}");
            }
            assert!(!home.path().join(".local").exists());
        };
        assert!(Command::new("mkfifo").arg(&init).status().unwrap().success());
        refused("it is a FIFO, not a regular file");
        assert!(init.symlink_metadata().unwrap().file_type().is_fifo());
        std::fs::remove_file(&init).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &init).unwrap();
        refused("it is a device, not a regular file");
        std::fs::remove_file(&init).unwrap();
        // Sparse: neither written nor read.
        std::fs::File::create(&init).unwrap().set_len(MAX_INIT_BYTES + 1).unwrap();
        refused(&format!("it has {} bytes, and wstate reads at most {MAX_INIT_BYTES}", MAX_INIT_BYTES + 1));
        assert_eq!(init.metadata().unwrap().len(), MAX_INIT_BYTES + 1);
    }
}

#[test]
fn version_is_data() {
    assert_eq!(run(&["--version"]), (Some(0), format!("wstate {}\n", env!("CARGO_PKG_VERSION")), String::new()));
}

/// Wrong usages of every command. The snapshot has what is said of each in its first line.
const WRONG: &[&[&str]] = &[
    &["atach", "4711"],
    &["frobnicate"],
    &["help", "atach"],
    &["help", "frobnicate"],
    &["--json"],
    &["--frobnicate"],
    &["--color", "blue", "4711"],
    &["--color"],
    &["-p", "1", "-c", "c"],
    &["-p", "1", "-e", "e"],
    &["-e", "e"],
    &["-p", "1", "doctor"],
    &["4711", "modules"],
    &["-c", "c", "--settle"],
    &["-c", "c", "--nonblocking"],
    &["4711", "--no-sandbox"],
    &["4711", "--settle", "--nonblocking"],
    &["4711", "4712"],
    &["4711", "./near-host"],
    &["4711 4712"],
    &["0"],
    &["99999999999"],
    &[""],
    &["-pid", "4711"],
    &["-json", "4711"],
    &["attach"],
    &["attach", "0"],
    &["attach", "-5"],
    &["attach", "near-host"],
    &["attach", "1", "2"],
    &["attach", "1", "-p", "2"],
    &["attach", "-p", "x"],
    &["attach", "-p", "0"],
    &["attach", "-p", "-1"],
    &["attach", "-p", "4294967296"],
    &["attach", "-p", "1", "-p", "2"],
    &["attach", "1", "-t", "main"],
    &["attach", "1", "-t", "0"],
    &["attach", "1", "--format", "xml"],
    &["attach", "1", "--format"],
    &["attach", "1", "-j", "--format", "text"],
    &["attach", "1", "--pretty", "--format", "classic"],
    &["attach", "1", "--json", "--json-output", "f"],
    &["attach", "1", "--format", "json", "--json-output", "f"],
    &["attach", "1", "-o", "f", "--json-output", "./f"],
    &["attach", "1", "--json=yes"],
    &["attach", "1", "--brief", "-l"],
    &["attach", "1", "-n", "-1"],
    &["attach", "1", "-n", "ten"],
    &["attach", "1", "--route", "artifact"],
    &["attach", "1", "--route", "stack"],
    &["attach", "1", "--wasm"],
    &["attach", "1", "--functions"],
    &["attach", "1", "--wams", "a.wasm"],
    &["core"],
    &["core", "4711"],
    &["core", "c", "e", "x"],
    &["core", "-c", "c", "e", "x"],
    &["core", "-c", "c", "-e", "e", "x"],
    &["core", "c", "--settle"],
    &["modules"],
    &["modules", "0"],
    &["modules", "near-host"],
    &["modules", "-p", "1", "-c", "c"],
    &["modules", "1", "--no-sandbox"],
    &["modules", "1", "--settle"],
    &["modules", "1", "--functons"],
    &["modules", "-p", "1", "--route", "artifact"],
    &["memory"],
    &["memory", "4711"],
    &["memory", "4711", "0x400"],
    &["memory", "-p", "1", "0"],
    &["memory", "-p", "1", "0", "-1"],
    &["memory", "-p", "1", "0x", "1"],
    &["memory", "4711", "0xzz", "64"],
    &["memory", "4711", "0", "18446744073709551616"],
    &["memory", "4711", "0", "64K"],
    &["memory", "-p", "1", "--instance", "x", "0", "1"],
    &["memory", "-p", "1", "--memory", "first", "0", "1"],
    &["memory", "-p", "1", "2", "0", "1"],
    &["symbols"],
    &["symbols", "4711"],
    &["symbols", "-o", "f"],
    &["symbols", "-p", "4711", "-o"],
    &["symbols", "4711", "-o", "/dev/null"],
    &["export"],
    &["export", "-p", "1"],
    &["export", "--wasm-coredump", "f"],
    &["export", "-p", "1", "--wasm-coredump", "f", "-o", "f"],
    &["export", "-p", "1", "--wasm-coredump", "f", "--compat", "gdb"],
    &["export", "-p", "1", "-o", "f", "--format", "elf"],
    &["snapshot", "4711"],
    &["snapshot", "-o", "f"],
    &["snapshot", "./c", "--settle", "-o", "f"],
    &["snapshot", "4711", "-o", "f", "--execution-state", "--with-imports"],
    &["image"],
    &["image", "f", "--hexdump", "1"],
    &["image", "f", "--hexdump", "1", "many"],
    &["image", "f", "--hexdump", "1", "2", "--diff", "g"],
    &["image", "f", "g"],
    &["restore"],
    &["restore", "4711"],
    &["restore", "./c", "app.image"],
    &["restore", "-p", "4711"],
    &["restore", "x", "app.image"],
    &["restore", "4711", "app.image", "--return", "true"],
    &["doctor", "x"],
    &["doctor", "0"],
    &["doctor", "--wasm", "app.wasm"],
    &["doctor", "--sysroot", "/"],
    &["doctor", "--no-sandbox"],
    &["doctor", "1", "./near-host"],
    &["plugin"],
    &["plugin", "remove"],
    &["plugin", "install", "gbd"],
    &["serve"],
    &["schema", "frames"],
    &["schema", "report", "modules"],
    &["completions"],
    &["completions", "tcsh"],
    &["man"],
    &["man", "a", "b"],
];

/// What no user has to read: words of the parser and of the language's library.
const PARSERS_WORDS: &[&str] =
    &["digit found", "invalid value", "required arguments", "unexpected argument", "os error", "parse", "panicked"];

#[test]
fn wrong_usage_is_64_and_says_in_one_line_what_to_type() {
    let directory = tempfile::tempdir().unwrap();
    let mut told = String::new();
    let mut seen = std::collections::BTreeSet::new();
    for args in WRONG {
        let Output { status, stdout, stderr } = wstate(args).current_dir(directory.path()).output().unwrap();
        let err = String::from_utf8(stderr).unwrap();
        assert_eq!((status.code(), stdout.as_slice()), (Some(64), &b""[..]), "{args:?}: {err}");
        let lines: Vec<&str> = err.lines().collect();
        let first = lines[0].strip_prefix("wstate: error: ").unwrap_or_else(|| panic!("{args:?}: {err}"));
        assert!(first.len() < 200 && PARSERS_WORDS.iter().all(|w| !first.contains(w)), "{args:?}: {first}");
        // The usage is that of the command, if there is one.
        let command = args.iter().find(|a| commands().iter().any(|(name, _)| name == *a)).copied();
        let of = command.map_or("wstate".to_string(), |name| format!("wstate {name}"));
        assert_eq!(lines[1], "", "{args:?}: {err}");
        assert!(lines[2].starts_with(&format!("Usage: {of} ")), "{args:?}: {err}");
        assert_eq!(*lines.last().unwrap(), format!("For more information, try '{of} --help'."), "{args:?}");
        seen.extend(command);
        let quoted =
            args.iter().map(|a| if a.is_empty() || a.contains(' ') { format!("'{a}'") } else { a.to_string() });
        let line = ["wstate".to_string()].into_iter().chain(quoted).collect::<Vec<_>>().join(" ");
        writeln!(told, "{line}\n    {first} [{}]", status.code().unwrap()).unwrap();
    }
    assert!(WRONG.len() >= 60 && seen.len() == commands().len(), "{seen:?}");
    insta::assert_snapshot!(told);
}

/// Whatever stands in the place of a value, of a word or of an option: the answer is one line in words for people.
#[test]
fn no_argument_gets_more_than_a_line_or_the_words_of_a_parser() {
    let texts = ["", "-1", "0", "99999999999999999999", "0x", "a\nb\u{1b}[2Jx", "--", "٣"].map(OsString::from);
    let long = ["9", "x"].map(|text| OsString::from(text.repeat(3000)));
    let values = [texts.as_slice(), &long, &[OsString::from_vec(b"\xff\xfe".to_vec())]].concat();
    let (mut asked, mut refused) = (0, 0);
    let mut ask = |args: Vec<OsString>| {
        asked += 1;
        let told = match Cli::read(&args) {
            Ok(cli) => cli.check_word().err(),
            Err(Refused::Usage(usage)) => Some(usage),
            Err(Refused::Help(_)) => None,
        };
        let Some(Usage(why)) = told else { return };
        refused += 1;
        let shown = || args.iter().map(|a| a.to_string_lossy().chars().take(40).collect()).collect::<Vec<String>>();
        assert!(!why.contains(['\n', '\u{1b}']) && why.len() < 2000, "{:?}: {why}", shown());
        assert!(PARSERS_WORDS.iter().all(|w| !why.contains(w)), "{:?}: {why}", shown());
    };
    for (name, command) in commands() {
        for value in &values {
            let start = || vec![OsString::from("wstate"), OsString::from(&name)];
            ask([start(), vec![value.clone()]].concat());
            ask([start(), vec![value.clone(); 5]].concat());
            ask(vec!["wstate".into(), value.clone(), (&name).into()]);
            // Apart from the option, joined to it, and with one dash, in turns.
            for (at, long) in command.get_arguments().filter_map(|a| a.get_long()).enumerate() {
                let mut joined = OsString::from(format!("--{long}="));
                joined.push(value);
                let given = match at % 3 {
                    0 => vec![joined],
                    1 => vec![format!("--{long}").into(), value.clone()],
                    _ => vec![format!("-{long}").into(), value.clone()],
                };
                ask([start(), given].concat());
            }
        }
    }
    assert!(asked > 2000 && refused > asked / 3, "{refused} of {asked}");
}

/// Words, flags and both are the same target to every command that has one.
#[test]
fn a_target_is_named_alike_in_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let out = out.to_str().unwrap();
    let core = "/nonexistent/core";
    let commands: [(&str, &[&str], &[&str]); 8] = [
        ("attach", &[], &[]),
        ("core", &[], &[]),
        ("modules", &[], &[]),
        ("memory", &["0x400", "64"], &[]),
        ("symbols", &[], &["-o", out]),
        ("export", &[], &["--wasm-coredump", out]),
        ("snapshot", &[], &["-o", out]),
        ("doctor", &[], &[]),
    ];
    for (command, behind, options) in commands {
        let ask = |target: &[&str]| run(&[&[command], target, behind, options].concat());
        let by_words = ask(&[core]);
        assert_eq!(by_words.0, Some(2), "{command}: {by_words:?}");
        assert!((by_words.1.clone() + &by_words.2).contains(core), "{command}: {by_words:?}");
        for target in [&["-c", core][..], &["--core", core], &["--core=/nonexistent/core"]] {
            assert_eq!(ask(target), by_words, "{command} {target:?}");
        }
        let with_exe = ask(&[core, EXE]);
        for target in
            [&[core, "-e", EXE][..], &["-c", core, EXE], &["-c", core, "-e", EXE], &["--executable", EXE, core]]
        {
            assert_eq!(ask(target), with_exe, "{command} {target:?}");
        }
        if command == "core" {
            continue;
        }
        let by_word = ask(&[NOBODY]);
        assert_eq!(by_word.0, Some(2), "{command}: {by_word:?}");
        for target in [&["-p", NOBODY][..], &["--pid", NOBODY], &["--pid=4200000"]] {
            assert_eq!(ask(target), by_word, "{command} {target:?}");
        }
        // Options may stand before the words.
        assert_eq!(run(&[&[command], options, &[NOBODY], behind].concat()), by_word, "{command}");
    }
    assert_eq!(run(&["restore", NOBODY, "/nonexistent/image"]), run(&["restore", "-p", NOBODY, "/nonexistent/image"]));
}

#[test]
fn without_a_command_a_target_means_its_stacks() {
    let core = "/nonexistent/core";
    assert_eq!(run(&[NOBODY]), run(&["attach", NOBODY]));
    assert_eq!(run(&[core]), run(&["core", core]));
    assert_eq!(run(&[core, EXE, "--json"]), run(&["core", core, EXE, "--json"]));
    // The other command does what is meant, too.
    assert_eq!(run(&["attach", core]), run(&["core", core]));
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("4711"), "no core").unwrap();
    std::fs::write(directory.path().join("core"), "no core").unwrap();
    let ask = |args: &[&str]| {
        let done = wstate(args).current_dir(directory.path()).output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    for args in [&["core", "4711"][..], &["./4711"], &["modules", "./4711"], &["core", "core"]] {
        let (code, err) = ask(args);
        assert!(code == Some(2) && err.contains("is not a core that wstate can read"), "{args:?}: {err}");
    }
    let (code, err) = ask(&["core"]);
    assert!(code == Some(64) && err.contains("type: wstate core core\n"), "{err}");
}

#[test]
fn help_of_a_command_is_the_same_in_both_ways() {
    for (name, _) in commands() {
        let text = help(&["help", &name]);
        assert_eq!(text, help(&[&name, "--help"]), "{name}");
        assert!(text.contains("\nExamples:\n  wstate ") && text.contains("Exit codes: 0 "), "{name}: {text}");
    }
    assert_eq!(help(&["help"]), help(&["--help"]));
    assert_eq!(help(&["-h"]), help(&["--help"]));
    let (code, out, err) = run(&[]);
    assert_eq!((code, out.as_str(), err), (Some(64), "", help(&["--help"])));
    let lines = help(&["--help"]).lines().count();
    assert!(lines <= 40, "{lines} lines are more than a screen");
}

#[test]
fn colour_is_where_it_is_wanted_and_nowhere_else() {
    type Case = (&'static [&'static str], &'static [(&'static str, &'static str)], bool);
    // None of it is printed to a terminal here.
    let cases: &[Case] = &[
        (&[], &[], false),
        (&["--color", "auto"], &[], false),
        (&["--color", "always"], &[], true),
        (&["--color=always"], &[("NO_COLOR", "1")], true),
        (&["--color", "never"], &[("CLICOLOR_FORCE", "1")], false),
        (&["--no-color"], &[("CLICOLOR_FORCE", "1")], false),
        (&["--color=always", "--no-color"], &[], false),
        (&[], &[("CLICOLOR_FORCE", "1")], true),
        (&[], &[("CLICOLOR_FORCE", "0")], false),
        (&[], &[("CLICOLOR_FORCE", "")], false),
        (&["--color", "auto"], &[("CLICOLOR_FORCE", "1")], true),
        (&[], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
        (&[], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "")], true),
        (&[], &[("CLICOLOR", "1")], false),
    ];
    let me = std::process::id().to_string();
    // Results, errors with hints, usage errors of wstate and of the parser, and helps.
    let kinds: &[&[&str]] = &[
        &["doctor"],
        &["attach", &me, "--brief", "--no-lines"],
        &["attach", NOBODY],
        &["attach", "near-host"],
        &["attach", NOBODY, "--format", "xml"],
        &["attach", "--help"],
        &["help", "attach"],
    ];
    for (options, set, colored) in cases {
        for kind in kinds {
            // `help` takes no options behind itself.
            let args = if kind[0] == "help" { [options, *kind].concat() } else { [*kind, options].concat() };
            let done = wstate(&args).envs(set.iter().copied()).output().unwrap();
            let text = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
            assert_eq!(text.contains('\u{1b}'), *colored, "{args:?} {set:?}: {text}");
        }
    }
    // A file gets colour only if it is asked for.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("text");
    for (color, colored) in [("auto", false), ("always", true)] {
        let done = run(&["doctor", "--color", color, "-o", file.to_str().unwrap()]);
        assert!(done.1.is_empty() && done.2.is_empty(), "{done:?}");
        assert_eq!(std::fs::read_to_string(&file).unwrap().contains('\u{1b}'), colored);
    }
    let (_, out, _) = run(&["doctor", "--json", "--color", "always"]);
    assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok(), "JSON has no colour");
}

#[test]
fn output_goes_to_a_file_in_every_command_that_has_some() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("out");
    let path = file.to_str().unwrap();
    let me = std::process::id().to_string();
    for args in [
        &["schema", "modules"][..],
        &["completions", "bash"],
        &["doctor", "-j"],
        &["modules", &me],
        &["attach", &me, "--brief", "--no-lines", "-1"],
        &[&me, "--brief", "--no-lines", "-1"],
    ] {
        let (code, out, err) = run(&[args, &["-o", path]].concat());
        assert!(out.is_empty() && err.is_empty(), "{args:?}: {out}{err}");
        let (same, printed, _) = run(args);
        assert_eq!(code, same, "{args:?}");
        let written = std::fs::read_to_string(&file).unwrap();
        // Addresses of this process stay, and where its threads are does not.
        assert_eq!(written.lines().next(), printed.lines().next(), "{args:?}");
        std::fs::remove_file(&file).unwrap();
    }
    for (name, command) in commands() {
        let has = command.get_arguments().any(|a| a.get_long() == Some("output") && a.get_short() == Some('o'));
        assert_eq!(has, !["restore", "plugin", "serve", "man"].contains(&name.as_str()), "{name}");
    }
    // An image is not replaced by its own text.
    std::fs::write(&file, "image").unwrap();
    let (code, _, err) = run(&["image", path, "-o", path]);
    assert!(code == Some(64) && err.contains("which is read"), "{err}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "image");
}

#[test]
fn text_and_json_of_one_stop_come_from_one_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (json, text) = (path("out.json"), path("out.txt"));
    let read = |document: &'static str| {
        let value: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
        schema::check(document, &value);
        std::fs::remove_file(&json).unwrap();
        value
    };
    let me = std::process::id().to_string();
    // The test harness runs other threads meanwhile: the text is of the same stop only if it has the same addresses.
    let (_, out, err) = run(&["attach", &me, "--all", "--no-lines", "--json-output", &json]);
    let report = read("report");
    let mut frames = 0;
    for frame in report["threads"].as_array().unwrap().iter().flat_map(|t| t["frames"].as_array().unwrap()) {
        let pc = frame["pc"].as_str().unwrap_or_else(|| panic!("{frame}"));
        let digits = pc.trim_start_matches("0x");
        assert!(out.contains(&format!("{digits:0>16}")), "{pc} is not in the text: {out}{err}");
        frames += 1;
    }
    assert!(frames > 3, "{report}");
    let (_, out, _) =
        run(&["attach", &me, "--no-lines", "--brief", "-1", "-o", &text, "--json-output", &json, "--pretty"]);
    assert!(out.is_empty() && std::fs::read_to_string(&text).unwrap().starts_with("process "));
    assert!(std::fs::read_to_string(&json).unwrap().starts_with("{\n"));
    read("report");
    run(&["modules", &me, "--json-output", &json]);
    read("modules");
    let (_, out, _) = run(&["doctor", "--json-output", &json]);
    assert!(out.starts_with("ok "), "{out}");
    assert!(read("doctor")["checks"].is_array());
    // Nothing is left where there is no answer.
    let (code, ..) = run(&["attach", NOBODY, "-o", &text, "--json-output", &json]);
    assert!(code == Some(2) && !Path::new(&json).exists());
    for place in ["-", "/dev/stdout"] {
        let (code, out, err) = run(&["attach", &me, "--json-output", place]);
        assert!(code == Some(64) && out.is_empty() && err.contains("the same place"), "{place}: {err}");
    }
}

#[test]
fn bash_reads_its_completions_and_completes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wstate");
    run(&["completions", "bash", "-o", file.to_str().unwrap()]);
    let bash = |script: &str| {
        let done = Command::new("bash").args(["--norc", "-c", script, "bash"]).arg(&file).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    bash("bash -n \"$1\"");
    assert!(bash("source \"$1\"; complete -p wstate").contains("-F _wstate wstate"));
    let complete = |words: &str| {
        let script = format!(
            "source \"$1\"; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _wstate wstate \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        bash(&script).trim().to_string()
    };
    assert_eq!(complete("wstate mod"), "modules");
    assert_eq!(complete("wstate memory --ins"), "--instance");
    assert_eq!(complete("wstate attach --json-"), "--json-output");
    assert_eq!(complete("wstate attach --format ''"), "text json classic image");
    assert_eq!(complete("wstate help exp"), "export");
    for name in wstate::cli::Shell::value_variants() {
        let name = name.to_possible_value().unwrap();
        assert!(help(&["completions", name.get_name()]).len() > 10_000);
    }
}

#[test]
fn man_pages_come_into_a_new_directory() {
    let directory = tempfile::tempdir().unwrap();
    let man = directory.path().join("share/man/man1");
    let told = help(&["man", man.to_str().unwrap()]);
    let names: Vec<_> = commands().into_iter().map(|(name, _)| format!("wstate-{name}.1")).collect();
    for name in names.iter().map(String::as_str).chain(["wstate.1"]) {
        assert!(told.contains(name), "{told}");
        let page = std::fs::read_to_string(man.join(name)).unwrap();
        assert!(page.contains(".SH EXAMPLES\n.nf\nwstate "), "{name}: {page}");
    }
    assert_eq!(std::fs::read_dir(&man).unwrap().count(), names.len() + 1);
}

#[test]
fn every_spelling_of_a_target_is_taken() {
    for args in [
        &["attach", NOBODY][..],
        &["attach", "-p", NOBODY],
        &["-p", NOBODY],
        &["--pid", NOBODY, "--settle", "-t", NOBODY, "--json", "--pretty"],
        &["attach", NOBODY, "-1", "-n", "0", "--route", "vmctx", "--route", "heap", "-l", "--stack", "-v"],
        &["core", "/nonexistent/core"],
        &["core", "/nonexistent/core", "/nonexistent/exe", "--wasm", "a", "--wasm", "b", "--debug-dir", "d"],
        &["core", "-c", "/nonexistent/core", "/nonexistent/exe"],
        &["core", "/nonexistent/core", "-e", "/nonexistent/exe"],
        &["-c", "/nonexistent/core", "-e", "/nonexistent/exe", "--sysroot", "/nonexistent"],
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert!(err.starts_with("wstate: error: "), "{args:?}: {err}");
        assert!(!err.contains("panicked"), "{args:?}: {err}");
    }
}

#[test]
fn a_place_that_cannot_be_written_is_told_before_anything_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("missing/report.json");
    let (code, out, err) = run(&["attach", NOBODY, "--output", path.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert_eq!(
        err,
        format!(
            "wstate: error: cannot write {}: the directory {} does not exist; make it first\n",
            path.display(),
            path.parent().unwrap().display()
        )
    );
    let (code, _, err) = run(&["attach", NOBODY, "--output", dir.path().to_str().unwrap()]);
    assert_eq!(code, Some(2));
    assert!(err.contains("directory"), "{err}");
}

#[test]
fn an_output_does_not_replace_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (core, link, exe, wasm) = (path("core"), path("link"), path("exe"), path("a.wasm"));
    for file in [&core, &exe, &wasm] {
        std::fs::write(file, file).unwrap();
    }
    std::os::unix::fs::symlink(&core, &link).unwrap();
    let all: [&[&str]; 7] = [
        &["core", &core, "--output", &link],
        &["core", &core, &exe, "--output", &exe],
        &["core", &core, "--wasm", &wasm, "--output", &wasm],
        &["memory", "-c", &core, "0", "8", "--output", &core],
        &["export", "-c", &core, "--wasm-coredump", &core],
        &["snapshot", "-c", &core, "--output", &core],
        &["symbols", "-c", &core, "--output", &core],
    ];
    for args in all {
        let (code, out, err) = run(args);
        assert_eq!((code, out.as_str()), (Some(64), ""), "{args:?}: {err}");
        assert!(err.contains("which is read"), "{args:?}: {err}");
    }
    for file in [core, exe, wasm] {
        assert_eq!(std::fs::read_to_string(&file).unwrap(), file);
    }
}

/// A log that a shell appends to keeps what it has, and gets what comes later behind it; nothing is made in `/dev`.
#[test]
fn standard_output_by_its_path_is_written_and_not_replaced() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let me = std::process::id().to_string();
    for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "-"] {
        let args = ["attach", &me, "--output", name, "--no-lines"];
        std::fs::write(&log, "before\n").unwrap();
        let mut file = std::fs::File::options().append(true).open(&log).unwrap();
        let done = wstate(&args).stdout(file.try_clone().unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(said.is_empty() && matches!(done.status.code(), Some(0 | 1)), "{name}: {said}");
        file.write_all(b"after\n").unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(text.starts_with("before\nprocess ") && text.ends_with("\nafter\n"), "{name}: {text}");
        // A file without a name is one, too.
        std::fs::remove_file(&log).unwrap();
        let done = wstate(&args).stdout(file).output().unwrap();
        assert!(done.stderr.is_empty() && !log.exists(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    }
    assert!(std::fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());
    let (code, _, err) = run(&["symbols", "-p", &me, "-o", "-"]);
    assert_eq!(code, Some(64), "{err}");
}

#[test]
fn a_failed_run_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let (code, ..) = run(&["attach", NOBODY, "--output", path.to_str().unwrap()]);
    assert_eq!(code, Some(2));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_a_clear_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let out = wstate(&["schema"]).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let err = String::from_utf8(out.stderr).unwrap();
    assert_eq!(
        err,
        "wstate: error: cannot write standard output: No space left on device (os error 28)\n\
         hint: make room, or name a place that has some; no file was replaced by half of one\n"
    );
}

#[test]
fn a_closed_pipe_is_quiet() {
    for args in [&["schema"][..], &["--help"], &["--version"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let out = wstate(args).stdout(writer).output().unwrap();
        assert_eq!((out.status.code(), out.stderr.as_slice()), (Some(0), &b""[..]), "{args:?}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let code = wstate(&["attach", NOBODY]).stderr(writer).output().unwrap().status.code();
    assert_eq!(code, Some(2), "the error cannot be told, but the code can");
}

#[test]
fn the_schema_is_json() {
    let schema: serde_json::Value = serde_json::from_str(&help(&["schema"])).unwrap();
    assert!(schema["properties"]["threads"].is_object());
}

#[test]
fn doctor_finds_a_living_process() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // One byte through it: cat has replaced the forked image.
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = child.id().to_string();
    let (_, text, err) = run(&["doctor", &pid]);
    assert!(text.contains(&format!("ok    process {pid} (cat) is there")), "{text}{err}");
    assert!(text.contains("no code was compiled at run time"), "{text}");
    let (code, json, _) = run(&["doctor", &pid, "-j"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["pid"].to_string(), pid);
    let worst = |s: &str| json["checks"].as_array().unwrap().iter().any(|c| c["status"] == s);
    assert_eq!(code, Some(if worst("fail") { 2 } else { i32::from(worst("warn")) }));
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn doctor_says_that_a_process_is_missing_or_dead() {
    let (code, text, _) = run(&["doctor", NOBODY]);
    assert_eq!(code, Some(2));
    assert!(text.contains(&format!("FAIL  there is no process {NOBODY}\n      next: ")), "{text}");
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    // The end of its output: it has exited or is about to; the zombie stays until wait.
    child.stdout.as_mut().unwrap().read_to_end(&mut Vec::new()).unwrap();
    let pid = child.id();
    while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ") {
        std::thread::yield_now();
    }
    let (code, text, _) = run(&["doctor", &pid.to_string()]);
    child.wait().unwrap();
    assert_eq!(code, Some(2));
    assert!(text.contains("has ended"), "{text}");
}
