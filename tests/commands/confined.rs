//! The library lets the program answer: a core is analysed in the program's sandbox, and whatever the program does, the caller
//! gets an answer or an error within its limits.

use crate::support::{self, Host, Profile, work_directory};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use wstate::confined::Program;
use wstate::model::Lists;
use wstate::{Error, Options, Session, Source};

fn real() -> Program {
    Program::new(env!("CARGO_BIN_EXE_wstate")).within(Duration::from_secs(120))
}

/// A program that does what this shell script says.
fn script(directory: &Path, text: &str) -> Program {
    let path = directory.join("program");
    // A file that this process has open for writing cannot be started by any thread.
    let written = directory.join("written");
    std::fs::write(&written, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o755)).unwrap();
    support::copy_program(&written, &path);
    Program::new(path)
}

fn question() -> Options {
    Options::new(Source::Core { core: "core".into(), executable: None })
}

#[test]
fn the_program_answers_what_a_session_answers() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let core = support::gcore(&host).expect("gcore writes a core");
    let mut options = Options::new(Source::Core { core, executable: None });
    for (limit, values, lines, verbose) in [(None, true, true, false), (Some(3), false, false, true)] {
        (options.limit, options.values, options.lines, options.verbose) = (limit, values, lines, verbose);
        let own = Session::open(&options).unwrap().stacks().unwrap().report;
        assert!(own.threads.iter().any(|thread| !thread.frames.is_empty()));
        let confined = real().stacks(&options).unwrap();
        assert_eq!(confined.to_json(true), own.to_json(true));
    }
    let (options, lists) =
        (Options::new(options.source.clone()), Lists { functions: true, exports: true, native: true });
    let own = Session::open(&options).unwrap().modules(lists).unwrap();
    let confined = real().modules(&options, lists).unwrap();
    assert_eq!(serde_json::to_value(confined).unwrap(), serde_json::to_value(own).unwrap());

    let report = real().stacks(&Options::new(Source::Pid(host.pid() as u32))).unwrap();
    assert_eq!(report.target.pid, Some(host.pid() as u32));
    host.assert_unharmed();
}

#[test]
fn what_the_program_says_is_the_error() {
    let mut options = question();
    options.source = Source::Core { core: "/there/is/none".into(), executable: None };
    let error = real().stacks(&options).unwrap_err();
    let Error::Program { program, why, .. } = &error else { panic!("{error}") };
    assert_eq!(program, Path::new(env!("CARGO_BIN_EXE_wstate")));
    assert!(why.starts_with("cannot read /there/is/none: ") || why.contains("/there/is/none"), "{why}");
    assert!(!why.contains("wstate: error"), "{why}");
    let error = Program::new("/there/is/no/wstate").stacks(&options).unwrap_err();
    assert!(error.to_string().contains("/there/is/no/wstate gives no answer: it cannot be started"), "{error}");
    assert!(error.hint().unwrap().contains("path"));
}

/// A program that was taken over by the core that it reads may do anything.
#[test]
fn no_program_keeps_its_caller_or_fills_its_memory() {
    let directory = work_directory();
    let say = |text: &str, wanted: &str| {
        let began = Instant::now();
        let program = script(directory.path(), text).within(Duration::from_secs(2)).at_most(1 << 20);
        let error = program.stacks(&question()).unwrap_err();
        let said = format!("{error} ({})", error.hint().unwrap_or_default());
        assert!(said.contains(wanted), "{text}: {said}");
        assert!(began.elapsed() < Duration::from_secs(20), "{text}: {:?}", began.elapsed());
    };
    say("exec sleep 1000", "it was ended after 2s (allow more time");
    say("exec >&- 2>&-; exec sleep 1000", "it was ended after 2s");
    say("exec 2>&-; echo '{'; exec sleep 1000", "it was ended after 2s");
    // Somebody else keeps the pipes open.
    say("sleep 30 & exit 0", "it was ended after 2s");
    say("exec yes", "its answer has more than 1048576 bytes (allow more bytes");
    say("exec yes >&2", "it was ended after 2s");
    say("head -c 3000000 /dev/zero >&2; exit 2", "gives no answer");
    say("exit 0", "it says nothing");
    say("exit 77", "it says nothing, and has ended with exit status: 77");
    say("kill -SEGV $$", "it was ended by signal 11");
    say("echo 'wstate: error: no core'; exit 64", "it says nothing");
    say("echo 'wstate: error: no core' >&2; echo 'hint: another' >&2; exit 2", "no core (another)");
    say("echo 'error: unexpected argument' >&2; exit 64", "unexpected argument");
    say("echo nonsense", "as JSON it is broken");
    say("printf '\\377'", "its answer is no text");
    say("echo '{\"schema_version\": 2}'", "its form is number 2");
    say("printf '{\"schema_version\": 1, \"threads\": [{}'; yes ',{}' | head -n 200000; echo ]}", "more rows");
}

#[test]
fn every_option_is_passed_on_or_refused() {
    let directory = work_directory();
    let said = directory.path().join("arguments");
    let text =
        format!("printf '%s\\n' \"$WSTATE_SANDBOX\" \"$@\" > '{}'; echo '{{\"schema_version\": 1}}'", said.display());
    let program = script(directory.path(), &text);
    let asked = |program: &Program, options: &Options| {
        program.stacks(options).unwrap();
        let said = std::fs::read_to_string(&said).unwrap();
        said.lines().map(str::to_string).collect::<Vec<String>>()
    };
    let mut options = question();
    assert_eq!(asked(&program, &options), ["required", "core", "--json", "--core=core", "--color=never"]);
    assert_eq!(asked(&program.clone().or_without_sandbox(), &options)[0], "");
    options.source = Source::Core { core: "-core".into(), executable: Some("-exe".into()) };
    (options.threads, options.first_thread_only, options.limit) = (vec![1, 2], true, Some(9));
    (options.wasm, options.artifacts) = (vec!["-a".into(), "b c".into()], vec!["art".into()]);
    options.routes = vec![wstate::Route::Heap, wstate::Route::Artifact];
    (options.sysroot, options.debug_dirs) = (Some("root".into()), vec!["debug".into()]);
    (options.values, options.lines, options.verbose, options.timing) = (false, false, true, true);
    let all = [
        "required",
        "core",
        "--json",
        "--thread=1",
        "--thread=2",
        "-n9",
        "-1",
        "--brief",
        "--no-lines",
        "--timing",
        "--core=-core",
        "--executable=-exe",
        "--wasm=-a",
        "--wasm=b c",
        "--artifact=art",
        "--sysroot=root",
        "--debug-dir=debug",
        "--route=heap",
        "--route=artifact",
        "--verbose",
        "--color=never",
    ];
    assert_eq!(asked(&program, &options), all);
    let mut with_servers = question();
    with_servers.debuginfod = true;
    assert!(asked(&program, &with_servers).contains(&"--debuginfod".to_string()));
    // The sandbox has no network, and the program says so.
    let error = real().stacks(&with_servers).unwrap_err().to_string();
    assert!(error.contains("--no-sandbox"), "{error}");
    // The real program takes every one of them: it complains about the files, and not about the command line.
    let here = directory.path().to_path_buf();
    (options.sysroot, options.debug_dirs) = (Some(here.clone()), vec![here]);
    let error = real().stacks(&options).unwrap_err().to_string();
    assert!(error.contains("-core") && !error.contains("unexpected"), "{error}");
    let error = real().modules(&question(), Lists::default()).unwrap_err().to_string();
    assert!(error.contains("core") && !error.contains("unexpected"), "{error}");

    options = Options::new(Source::Pid(4711));
    (options.settle, options.nonblocking) = (true, true);
    assert_eq!(
        asked(&program, &options)[1..],
        ["attach", "--json", "--settle", "--nonblocking", "--pid=4711", "--color=never"]
    );

    let refused = |change: fn(&mut Options)| {
        let mut options = question();
        change(&mut options);
        program.stacks(&options).unwrap_err().to_string()
    };
    assert!(refused(|o| o.image = true).contains("Options::image"));
    assert!(refused(|o| o.names = false).contains("Options::names"));
    assert!(refused(|o| o.limit = Some(0)).contains("Options::limit"));
    let mut options = question();
    options.limit = Some(1);
    assert!(program.modules(&options, Lists::default()).unwrap_err().to_string().contains("select threads"));
}
