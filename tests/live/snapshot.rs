//! `wstate snapshot` and `wstate image`: images from outside are those that the runtime makes in process, byte for byte.

use crate::support;
use crate::support::{
    Host, Profile, Stopped, Truth, Version, fixture, gcore, host_singlepass, host_wasmtime, kernel_core, wstate,
};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use wstate::session::SparseWrite;
use wstate::session::{Options, Session, SnapshotOptions, Source};
use wstate::state::{ExecutionStateImage, ImageView};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Takes an image and returns where it is, and what was said.
fn snapshot(directory: &TempDir, target: &[&str], code: i32) -> (PathBuf, String) {
    let path = directory.path().join("image");
    let Output { status, stdout, stderr } =
        wstate(&[&["snapshot", "-o", path.to_str().expect("text")], target].concat());
    assert_eq!(status.code(), Some(code), "{target:?}: {}{}", text(&stdout), text(&stderr));
    (path, text(&stdout))
}

/// Compares without a copy of either.
fn same(ours: &Path, theirs: &Path) -> bool {
    // SAFETY: nothing else has these files open for writing.
    #[allow(unsafe_code)]
    let map = |path: &Path| unsafe { memmap2::Mmap::map(&std::fs::File::open(path).expect("a file")) }.expect("a map");
    map(ours)[..] == map(theirs)[..]
}

fn wasm(directory: &TempDir, text: &str) -> String {
    let path = directory.path().join("guest.wasm");
    std::fs::write(&path, wat::parse_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))).expect("a file");
    path.to_str().expect("text").to_string()
}

/// The stops that the host's own help lists.
fn stops() -> Vec<String> {
    let help = Command::new(host_singlepass(Profile::Debug)).arg("--help").output().expect("the host starts");
    let (mut out, mut listed) = (Vec::new(), false);
    for line in text(&help.stdout).lines() {
        if line.starts_with(|c: char| c.is_alphabetic()) {
            listed = line.starts_with("Stops ") || line == "Both";
        }
        let row = line.strip_prefix("  ").filter(|row| listed && row.starts_with(|c: char| c.is_ascii_lowercase()));
        // Names, with a remark in parentheses each, then what they are about.
        let names = row.and_then(|row| row.split("  ").next()).unwrap_or_default();
        let mut depth = 0;
        let bare = names.chars().filter(|c| {
            depth += i32::from(*c == '(');
            depth -= i32::from(*c == ')');
            depth == 0
        });
        let bare: String = bare.collect();
        out.extend(
            bare.split(',').filter_map(|name| name.trim_matches([' ', ')']).split(' ').next().map(str::to_string)),
        );
    }
    out.retain(|name| !name.is_empty());
    out
}

/// Where the runtime has no answer, and the stops that other tests look at.
const NO_ANSWER: [&str; 6] = ["args7-spilled", "spin", "spin-deep", "sqlite-busy", "grow", "wasm"];
/// Linear memories with guard pages reserve 6 GiB, which gdb writes out in full; the kernel's own core serves as well.
const RESERVED: [&str; 5] = ["globals", "trap-memory", "interrupt", "modules", "abort"];

#[derive(Default)]
struct Tally {
    compared: usize,
    equal: usize,
    /// The runtime's image has no frames; there is none of ours.
    empty: usize,
    different: Vec<String>,
}

impl Tally {
    /// An image of ours beside the runtime's.
    fn compare(&mut self, name: &str, target: &[&str], truth: &[u8]) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        let done = wstate(&[&["snapshot", "-o", path.to_str().expect("text")], target].concat());
        let said = format!("{name}: {}{}", text(&done.stdout), text(&done.stderr));
        let frames = ImageView::parse(truth).expect("the runtime's image").execution_state.frames.len();
        self.compared += 1;
        if said.contains("resumable: no") && !said.contains("\nhint: ") {
            self.different.push(format!("no next step: {said}"));
        }
        match (frames, done.status.code()) {
            (0, Some(2)) if !path.exists() && said.contains("has no image at") => self.empty += 1,
            // Whether it can be gone on from is another question.
            (1.., Some(0 | 1)) if std::fs::read(&path).expect("an image") == truth => self.equal += 1,
            _ => self.different.push(said),
        }
    }
}

fn images_of_every_stop(profile: Profile) {
    let sqlite = fixture("sqljs/sql-wasm-debug.wasm");
    let sqlite = sqlite.to_str().expect("a path of ours");
    let mut stops = stops();
    stops.retain(|stop| !NO_ANSWER.contains(&&stop[..]));
    // The runtime's answer there has the registers of another boundary, which are not found without symbols: tests/live/tiering.rs.
    stops.retain(|stop| profile != Profile::Stripped || stop != "tiering-alternating-boundary");
    assert!(stops.len() > 20, "{stops:?}");
    let (next, tally) = (AtomicUsize::new(0), Mutex::new([Tally::default(), Tally::default()]));
    let examine = |stop: &str| {
        let flags: &[&str] = match stop {
            "sqlite" => &["--wasm", sqlite, "--truth-memory"],
            // The runtime says a line about each frame, and the host would wait for a reader.
            "deep" => &["--depth", "1000"],
            _ => &[],
        };
        let name = |kind: &str| format!("{stop}, {profile}, {kind}");
        // A thread's truth, and how to ask for that thread.
        let truths = |stopped: &[Stopped], truth: &dyn Fn(Option<&str>) -> Option<Truth>| {
            let several = stopped.len() > 1;
            let of = |s: &Stopped| Some((s.tid.to_string(), truth(several.then_some(&s.stop[..]))?.instance?));
            let found: Vec<(String, Vec<u8>)> = stopped.iter().filter_map(of).collect();
            assert!(!found.is_empty(), "{stop}: the runtime has no answer");
            found
        };
        let compare = |at: usize, kind: &str, target: [&str; 2], truths: &[(String, Vec<u8>)]| {
            let mut one = Tally::default();
            for (tid, truth) in truths {
                one.compare(&name(kind), &[target[0], target[1], "--thread", tid], truth);
            }
            let mut tally = tally.lock().unwrap();
            tally[at].compared += one.compared;
            tally[at].equal += one.equal;
            tally[at].empty += one.empty;
            tally[at].different.extend(one.different);
        };
        if stop != "abort" {
            let host = Host::start(stop, flags, profile);
            let truths = truths(&host.stopped, &|of| of.map_or_else(|| host.truth(), |name| host.truth_of(name)));
            compare(0, "live", ["-p", &host.pid().to_string()], &truths);
            if !RESERVED.contains(&stop) {
                let core = gcore(&host).expect("gcore writes a core");
                return compare(1, "gcore", ["-c", core.to_str().expect("text")], &truths);
            }
        }
        let core = kernel_core(stop, flags, profile).expect("the kernel writes cores here");
        let truths = truths(&core.stopped, &|_| core.truth());
        compare(1, "kernel core", ["-c", core.path.to_str().expect("text")], &truths);
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(stop) = stops.get(next.fetch_add(1, Ordering::SeqCst)) {
                    examine(stop);
                }
            });
        }
    });
    let mut different = Vec::new();
    for (of, tally) in ["live", "cores"].iter().zip(tally.into_inner().unwrap()) {
        let Tally { compared, equal, empty, different: these } = tally;
        println!(
            "{profile}, {of}: {compared} cases compared, {equal} equal, {} different, {empty} without frames",
            these.len()
        );
        different.extend(these);
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn images_of_every_stop_are_the_runtimes_own_in_a_debug_host() {
    images_of_every_stop(Profile::Debug);
}

#[test]
fn images_of_every_stop_are_the_runtimes_own_in_a_stripped_host() {
    images_of_every_stop(Profile::Stripped);
}

#[test]
fn frames_alone_are_the_runtimes_own() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let directory = tempfile::tempdir().expect("a directory");
    let (path, _) = snapshot(&directory, &["-p", &host.pid().to_string(), "--execution-state"], 0);
    assert!(std::fs::read(&path).expect("an image") == host.truth().expect("a truth").image);
}

/// Globals whose raw bits are easily lost, two of them imported, and a memory with something at both ends.
fn guest(pages: u32) -> String {
    let end = u64::from(pages) * 65536 - 4;
    format!(
        r#"(module
  (import "env" "stop" (func $stop (param i32)))
  (import "env" "answer" (global $answer i32))
  (import "env" "ratio" (global $ratio (mut f64)))
  (global $a (mut i32) (i32.const 1))
  (global $b (mut i64) (i64.const -2))
  (global $c (mut f32) (f32.const 3))
  (global $d (mut f64) (f64.const 4))
  (global $e i32 (i32.const -5))
  (global $f i64 (i64.const 0x7fffffffffffffff))
  (global $g f32 (f32.const nan:0x2abcde))
  (global $h f64 (f64.const -nan:0x7123456789abc))
  (global $i f32 (f32.const -0))
  (global $j (mut i32) (global.get $answer))
  (memory (export "memory") {pages} {pages})
  (data (i32.const 16) "recognise me")
  (func (export "run") (local $x i32)
    (i32.store (i32.const {end}) (i32.const 0x5eed5eed))
    (i32.store (i32.const {middle}) (i32.const 0x5eed))
    (drop (i32.load (i32.const {read})))
    (global.set $a (i32.const -100))
    (global.set $b (i64.const 0x8000000000000001))
    (global.set $c (f32.const -nan:0x1))
    (global.set $d (f64.const nan:0x8000000000001))
    (local.set $x (global.get $answer))
    (call $stop (i32.const 45))))"#,
        middle = end / 2,
        read = (end / 4) & !3,
    )
}

/// From outside, live and from a core, against the runtime's own image.
fn memory_of(pages: u32, with_core: bool) {
    let directory = tempfile::tempdir().expect("a directory");
    let wasm = wasm(&directory, &guest(pages));
    let flags = ["--wasm", &wasm, "--call", "run", "--truth-memory"];
    let host = Host::start("wasm", &flags, Profile::Release);
    let truth = host.directory.path().join("truth.instance");
    let pid = host.pid().to_string();
    let (image, said) = snapshot(&directory, &["-p", &pid, "--with-imports"], 0);
    assert!(same(&image, &truth), "{pages} pages: {said}");
    assert!(said.contains("resumable: behind a call"), "{said}");
    let imports = std::fs::read_to_string(image.with_extension("imports.json")).expect("the imports");
    let imports: serde_json::Value = serde_json::from_str(&imports).expect("JSON");
    support::schema::check("imports", &imports);
    assert_eq!(
        imports,
        serde_json::json!([
            {"index": 0, "type": "i32", "bits": format!("{:#034x}", 4242)},
            {"index": 1, "type": "f64", "bits": format!("{:#034x}", 4242f64.to_bits())},
        ])
    );
    let size = image.metadata().expect("a file");
    assert!(size.len() > u64::from(pages) * 65536);
    assert!(size.blocks() * 512 < 128 << 10, "{} bytes on disk", size.blocks() * 512);
    if with_core {
        let prefix = directory.path().join("core");
        let made = std::process::Command::new("gcore").arg("-o").arg(&prefix).arg(&pid).output().expect("gcore");
        let core = directory.path().join(format!("core.{pid}"));
        assert!(core.exists(), "{}", text(&made.stderr));
        std::fs::remove_file(&image).expect("the image");
        let (image, said) = snapshot(&directory, &["-c", core.to_str().expect("text")], 0);
        assert!(same(&image, &truth), "{pages} pages, core: {said}");
        assert!(image.metadata().expect("a file").blocks() * 512 < 128 << 10);
    }
}

#[test]
fn a_memory_of_one_page() {
    memory_of(1, true);
}

#[test]
fn a_memory_of_a_mebibyte() {
    memory_of(16, true);
}

#[test]
fn a_memory_of_a_gibibyte() {
    memory_of(16384, false);
}

/// Whoever reads an image may take as long as they like: the process has been let go before the first byte comes.
#[test]
fn a_slow_reader_does_not_hold_the_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let wasm = wasm(&directory, &guest(16));
    let host = Host::start("wasm", &["--wasm", &wasm, "--call", "run", "--truth-memory"], Profile::Debug);
    let (pid, truth) = (host.pid().to_string(), host.truth().expect("a truth").instance.expect("an image"));
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo starts").success());
    let temporary = directory.path().join("temporary");
    std::fs::create_dir(&temporary).expect("a directory");
    let traced = || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the host's threads");
        let status = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task?.path().join("status"));
        let statuses: Vec<String> = tasks.map(status).collect::<Result<_, _>>().expect("their status");
        assert!(!statuses.is_empty() && statuses.iter().all(|s| s.contains("\nTracerPid:")), "{statuses:?}");
        statuses.iter().any(|s| !s.contains("\nTracerPid:\t0\n"))
    };
    for output in ["/dev/stdout", fifo.to_str().expect("text")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wstate"));
        command.args(["snapshot", "-p", &pid, "-o", output]).env("TMPDIR", &temporary);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("wstate starts");
        let mut out: Box<dyn Read> = match output {
            "/dev/stdout" => Box::new(child.stdout.take().expect("a pipe")),
            _ => Box::new(std::fs::File::open(&fifo).expect("the pipe")),
        };
        // A pipe holds less than a mebibyte: what is not read cannot be written.
        let mut bytes = vec![0];
        out.read_exact(&mut bytes).expect("an image");
        assert!(!traced(), "{output}: the process is held while its image waits for a reader");
        assert!(std::fs::read_dir(&temporary).expect("the directory").next().is_none(), "something would be left");
        out.read_to_end(&mut bytes).expect("an image");
        let done = child.wait_with_output().expect("wstate ends");
        let (said, complained) = (text(&done.stdout), text(&done.stderr));
        assert!(done.status.code() == Some(0) && bytes == truth, "{output}: {said}{complained}");
        // What is said about it is not in it.
        let summary = if output == "/dev/stdout" { &complained } else { &said };
        assert!(summary.contains("resumable: behind a call"), "{output}: {said} / {complained}");
    }
    // Led into a file, /dev/stdout is that file.
    let file = directory.path().join("led");
    let mut command = Command::new(env!("CARGO_BIN_EXE_wstate"));
    command.args(["snapshot", "-p", &pid, "-o", "/dev/stdout"]).stdin(Stdio::null());
    let done = command.stdout(std::fs::File::create(&file).expect("a file")).output().expect("wstate starts");
    assert!(text(&done.stderr).contains("resumable: behind a call"), "{}", text(&done.stderr));
    assert!(std::fs::read(&file).expect("the image") == truth);
    // There is no second file beside a pipe.
    for output in ["/dev/null", fifo.to_str().expect("text")] {
        let done = wstate(&["snapshot", "-p", &pid, "-o", output, "--with-imports"]);
        assert_eq!(done.status.code(), Some(64), "{}", text(&done.stderr));
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_wstate"));
    command.args(["snapshot", "-p", &pid, "-o", "/dev/stdout", "--with-imports"]).stdin(Stdio::null());
    let done = command.stdout(std::fs::File::create(&file).expect("a file")).output().expect("wstate starts");
    assert_eq!(done.status.code(), Some(64), "{}", text(&done.stderr));
}

/// A division that may trap is a point at which there is an image, but what it divides is in no image.
#[test]
fn settling_does_not_end_at_a_division() {
    let directory = tempfile::tempdir().expect("a directory");
    let divisions = "(local.set $x (i64.rem_u (i64.const 1000003) (i64.add (local.get $x) (i64.const 3))))\n".repeat(9);
    let text = format!(
        r#"(module (import "env" "ready" (func $ready))
  (func (export "run") (local $x i64) (call $ready) (loop $again {divisions} (br $again))))"#
    );
    let wasm = wasm(&directory, &text);
    let host = Host::start("wasm", &["--wasm", &wasm, "--call", "run", "--full-preemption"], Profile::Debug).spinning();
    for _ in 0..10 {
        let (_, said) = snapshot(&directory, &["-p", &host.pid().to_string(), "--settle"], 0);
        assert!(said.contains("resumable: yes, at a loop point"), "{said}");
    }
}

/// Runs `wstate snapshot`, and what is said on both ways out.
fn said(directory: &TempDir, target: &[&str], code: i32) -> String {
    let path = directory.path().join("image");
    let done = wstate(&[&["snapshot", "-o", path.to_str().expect("text")], target].concat());
    let said = text(&done.stdout) + &text(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{target:?}: {said}");
    said
}

/// `wstate attach --settle` says what it did in a note.
fn attach_note(pid: &str) -> String {
    let done = wstate(&["attach", pid, "--settle"]);
    let said = text(&done.stdout);
    said.lines().find(|l| l.starts_with("note: ") && l.contains("settle")).unwrap_or(&said).to_string()
}

#[test]
fn without_track_state_nothing_is_stepped() {
    let directory = tempfile::tempdir().expect("a directory");
    // With full preemption the headers of functions have states even so.
    for more in [&[][..], &["--full-preemption", "--stack-checks"]] {
        let host = Host::start("spin", &[&["--track-state", "off"], more].concat(), Profile::Debug);
        let pid = host.pid().to_string();
        for settle in [&[][..], &["--settle"]] {
            let said = said(&directory, &[&["-p", &pid], settle].concat(), 2);
            let why = "compiled without track_state; have the host compile it with track_state\n";
            assert!(said.ends_with(why) && !said.contains("stepped"), "{said}");
        }
        let note = attach_note(&pid);
        assert!(note.contains("was not stepped: the module was compiled without track_state"), "{note}");
    }
    let host = Host::start_exe(host_wasmtime(Version::V48, Profile::Release), "spin", &[]);
    let note = attach_note(&host.pid().to_string());
    assert!(note.contains("was not stepped: wasmtime has no points"), "{note}");
}

#[test]
fn a_bound_that_was_reached_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let wasm = wasm(
        &directory,
        r#"(module (import "env" "ready" (func $ready))
  (func (export "run") (local $x i64) (call $ready)
    ;; The loop must not begin behind the call.
    (local.set $x (i64.const 5))
    (loop $again (local.set $x (i64.add (local.get $x) (i64.const 3))) (br $again))))"#,
    );
    let flags = ["--wasm", &wasm, "--call", "run", "--track-state", "on"];
    let host = Host::start("wasm", &flags, Profile::Debug).spinning();
    let pid = host.pid().to_string();
    let before = said(&directory, &["-p", &pid], 2);
    assert!(
        before.contains("no state is recorded at this instruction; --settle steps it to where there is one"),
        "{before}"
    );
    let most = wstate::limits::MAX_SNAPSHOT_STEPS;
    let said = said(&directory, &["-p", &pid, "--settle"], 2);
    let steps = format!("was stepped {most} instructions, which is the most that snapshot takes, and reached no point");
    assert!(said.contains("has no image at 0x") && said.contains(&steps) && said.contains("; try again"), "{said}");
    assert!(!said.contains("--settle steps"), "{said}");
    let note = attach_note(&pid);
    let most = wstate::limits::MAX_SETTLE_STEPS;
    assert!(note.contains(&format!("was stepped {most} instructions, which is the most that attach takes")), "{note}");
    let frames = text(&wstate(&["attach", &pid, "--settle", "--wasm-only"]).stdout);
    assert!(frames.contains("not known: no state is recorded at this instruction\n"), "{frames}");
    // What would tell more is no part of the answer, which is the same for a process and its core.
    let attached = wstate(&["attach", &pid, "--wasm-only"]);
    let frames = text(&attached.stdout);
    assert!(frames.contains("not known: no state is recorded at this instruction\n"), "{frames}");
    let hint = text(&attached.stderr);
    assert_eq!(hint, "hint: --settle steps a thread on to where its operand stack is known\n");
    // A core stays where it is.
    let core = gcore(&host).expect("gcore writes a core");
    let core = core.to_str().expect("text");
    let said = self::said(&directory, &["-c", core], 2);
    assert!(said.contains("; take the image at another moment"), "{said}");
    let seen = wstate(&["core", core, "--wasm-only"]);
    assert!(!(text(&seen.stdout) + &text(&seen.stderr)).contains("--settle"));
    // Nor is it replaced by its own image.
    let size = std::fs::metadata(core).expect("the core").len();
    let done = wstate(&["snapshot", "-c", core, "-o", core]);
    assert_eq!(done.status.code(), Some(64), "{}", text(&done.stderr));
    assert_eq!(std::fs::metadata(core).expect("the core").len(), size);
}

/// Without full preemption there is no better place than behind a call, and its result is where its type has it.
#[test]
fn settling_without_full_preemption_ends_behind_a_call() {
    let directory = tempfile::tempdir().expect("a directory");
    let wasm = wasm(
        &directory,
        r#"(module (import "env" "ready" (func $ready))
  (func $ratio (param $n i64) (result f64) (f64.const 3.25))
  (func (export "run") (local $x i64) (local $f f64) (call $ready)
    (loop $again
      (local.set $f (call $ratio (local.get $x)))
      (local.set $x (i64.add (local.get $x) (i64.const 3)))
      (br $again))))"#,
    );
    let flags = ["--wasm", &wasm, "--call", "run", "--track-state", "on"];
    let host = Host::start("wasm", &flags, Profile::Debug).spinning();
    for _ in 0..5 {
        let said = said(&directory, &["-p", &host.pid().to_string(), "--settle"], 0);
        assert!(said.contains(" to the place behind a call: "), "{said}");
        let result = format!(", {:#x} if it is a float\nhint: ", 3.25f64.to_bits());
        assert!(said.contains("resumable: behind a call that has returned 0x") && said.contains(&result), "{said}");
    }
}

/// Ends a process when its image has begun.
struct Killer(i32, Vec<u8>);

impl Write for Killer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.0)).expect("its memory");
        let pid = nix::unistd::Pid::from_raw(self.0);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it is there");
        // An error of an address without memory, until there is none at all. (It cannot be waited for: its threads are traced.)
        while !matches!(memory.read_at(&mut [0], 0), Ok(0)) {
            std::thread::yield_now();
        }
        self.1.extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl SparseWrite for Killer {
    fn zeros(&mut self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_process_that_ends_in_the_middle_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let wasm = wasm(&directory, &guest(16));
    let host = Host::start("wasm", &["--wasm", &wasm, "--call", "run", "--truth-memory"], Profile::Debug);
    let (mut out, source) = (Killer(host.pid(), Vec::new()), Source::Pid(host.pid() as u32));
    let session = Session::open(&Options::new(source)).expect("the process is there");
    let done = session.snapshot(SnapshotOptions::default(), &mut out);
    let said = done.expect_err("half an image").to_string();
    assert!(said.contains("the linear memory cannot be read from") && said.contains("the process has ended"), "{said}");
    // Nothing but what comes before the memory: no byte of it was made up.
    assert_eq!(out.1.len(), 9);
}

#[test]
fn a_thread_that_cannot_be_stepped_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let host = Host::start("sleep", &[], Profile::Debug);
    let pid = host.pid().to_string();
    let said = said(&directory, &["-p", &pid, "--settle"], 0);
    assert!(
        said.contains("could not be stepped: the thread is in a system call; try again when that is over"),
        "{said}"
    );
    assert!(said.contains("\nhint: wstate restore PID IMAGE --return VALUE"), "{said}");
    let note = attach_note(&pid);
    assert!(note.contains("nothing to settle"), "{note}");
}

#[test]
fn a_file_that_is_there_stays_where_there_is_no_image() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    std::fs::write(&path, "old").expect("a file");
    let host = Host::start("grow", &["--track-state", "off"], Profile::Debug);
    let (_, _) = snapshot(&directory, &["-p", &host.pid().to_string()], 2);
    assert_eq!(std::fs::read(&path).expect("the file"), b"old");
    assert_eq!(std::fs::read_dir(directory.path()).expect("the directory").count(), 1);
}

#[test]
fn a_runtime_without_images_is_named() {
    let host = Host::start_exe(host_wasmtime(Version::V48, Profile::Release), "sleep", &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    let done = wstate(&["snapshot", "-p", &host.pid().to_string(), "-o", path.to_str().expect("text")]);
    let said = text(&done.stderr);
    assert!(done.status.code() == Some(2) && said.contains("wasmtime has no images of frames"), "{said}");
    assert!(!path.exists());
}

/// Output and exit code of `wstate image`.
fn image(arguments: &[&str]) -> (String, Option<i32>) {
    let done = wstate(&[&["image"], arguments].concat());
    (text(&done.stdout) + &text(&done.stderr), done.status.code())
}

#[test]
fn images_are_printed_and_compared() {
    let host = Host::start("globals", &[], Profile::Debug);
    let directory = tempfile::tempdir().expect("a directory");
    let (path, _) = snapshot(&directory, &["-p", &host.pid().to_string()], 0);
    let file = path.to_str().expect("text");

    let (all, code) = image(&[file]);
    assert_eq!(code, Some(0), "{all}");
    assert!(all.starts_with(&host.truth().expect("a truth").text), "{all}");
    assert!(all.contains("\nMemory: 65536 bytes (1 pages)\nGlobals:\n"), "{all}");
    assert!(all.contains("  [0] = 0xffffffffffffffffffffffffffffff9c (-100)\n"), "{all}");
    let (bytes, code) = image(&[file, "--hexdump", "16", "12"]);
    assert_eq!(code, Some(0), "{bytes}");
    assert!(bytes.starts_with("0x00000010  72 65 63 6f") && bytes.contains("recognise me"), "{bytes}");
    let (beyond, code) = image(&[file, "--hexdump", "65530", "12"]);
    assert_eq!((code, beyond.contains("are not inside")), (Some(2), true), "{beyond}");
    let json: serde_json::Value = serde_json::from_str(&image(&[file, "--json"]).0).expect("JSON");
    assert_eq!((&json["kind"], &json["memory_bytes"]), (&"instance".into(), &65536.into()));
    assert_eq!(json["globals"][2], "0x42060000");

    let none = serde_json::json!({"memory": [], "memory_more": false, "globals": [], "frames": []});
    let (json, code) = image(&[file, "--diff", file, "--json"]);
    assert_eq!((serde_json::from_str::<serde_json::Value>(&json).expect("JSON"), code), (none, Some(0)));
    assert_eq!(image(&[file, "--diff", file]), ("no difference\n".to_string(), Some(0)));
    let mut other = std::fs::read(&path).expect("the image");
    other[9 + 18] ^= 1;
    other[9 + 65536 + 8] ^= 1;
    let changed = directory.path().join("changed");
    std::fs::write(&changed, other).expect("a file");
    let (json, code) = image(&[file, "--diff", changed.to_str().expect("text"), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (code, json["memory"][0][0].as_u64(), json["globals"][0]["index"].as_u64()),
        (Some(1), Some(0x12), Some(0))
    );
    let (difference, code) = image(&[file, "--diff", changed.to_str().expect("text")]);
    assert_eq!(code, Some(1));
    let global = "global 0: 0xffffffffffffffffffffffffffffff9c -> 0xffffffffffffffffffffffffffffff9d";
    assert_eq!(difference, format!("memory 0x00000012: 1 bytes\n{global}\n"));
    let (error, code) = image(&["/bin/true"]);
    assert_eq!((code, error.contains("is no image")), (Some(2), true), "{error}");
    assert!(
        error.contains("it is an executable or a library, not an image; wstate snapshot -o FILE makes one"),
        "{error}"
    );

    // What nothing goes on from is told, beside what is printed.
    let (frames, whole) = (wstate(&["image", file]), directory.path().join("frames"));
    assert!(frames.stderr.is_empty(), "{}", text(&frames.stderr));
    let path = whole.to_str().expect("text");
    let done = wstate(&["snapshot", "-p", &host.pid().to_string(), "--execution-state", "-o", path]);
    assert!(text(&done.stdout).starts_with(&format!("thread {}: 1 frame, nothing else; ", host.ready.tid)), "{done:?}");
    let shown = wstate(&["image", path]);
    assert_eq!(text(&shown.stdout), host.truth().expect("a truth").text);
    for said in [&done.stdout, &shown.stderr] {
        assert!(
            text(said).contains("hint: the runtime itself takes frames alone; wstate restore needs"),
            "{}",
            text(said)
        );
    }
    std::fs::write(&whole, ExecutionStateImage::default().to_bytes().expect("bytes")).expect("a file");
    let shown = text(&wstate(&["image", path]).stderr);
    assert!(shown.starts_with("hint: nothing can go on from an image without frames"), "{shown}");
}
