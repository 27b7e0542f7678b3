//! A computation goes on in another process than the one in which it began: through the runtime's own resume, and through
//! `wstate restore`; and a restore that fails leaves the process as it was.

use crate::support;
use crate::support::{Host, PATIENCE, Profile, wstate};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wstate::error::Error;
use wstate::session::{Options, RestoreOptions, Restored, Session, SignalsLater, Source};

/// `run` computes with everything that an image has: locals and operands of several frames, floats, globals, memory that
/// was grown. `watch` goes on until the byte at 0 is set, and tells (1) whether all that it wrote is still there. So long `dive`
/// waits before it calls itself until it traps, and `climb` calls `mix` and nothing else.
fn guest(memory: &str) -> String {
    format!(
        r#"(module
  (import "env" "ready" (func $ready))
  (import "env" "stop" (func $stop (param i32) (result i64)))
  (import "env" "again" (func $again (result i64)))
  {memory}
  (global $sum (mut i64) (i64.const 0))
  (global $part (mut f64) (f64.const 0.5))
  (func $mix (param $x i64) (param $n i32) (result i64) (local $f f64)
    (local.set $f (f64.mul (f64.convert_i32_u (local.get $n)) (f64.const 1.25)))
    (global.set $part (f64.add (f64.mul (global.get $part) (f64.const 0.75)) (local.get $f)))
    (i64.add
      (i64.rotl (local.get $x) (i64.const 7))
      (if (result i64) (i32.eqz (local.get $n))
        (then (i64.reinterpret_f64 (global.get $part)))
        (else (i64.mul (i64.const 0x9e3779b97f4a7c15)
          (call $mix (i64.xor (local.get $x) (i64.extend_i32_u (local.get $n)))
            (i32.sub (local.get $n) (i32.const 1))))))))
  (func (export "run") (param $x i64) (param $rounds i64) (param $pages i32) (result i64) (local $at i32)
    (drop (memory.grow (local.get $pages)))
    (call $ready)
    (loop $again
      (local.set $x (call $mix (local.get $x) (i32.const 5)))
      (local.set $at
        (i32.and (i32.wrap_i64 (local.get $x)) (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 8))))
      (i64.store (local.get $at) (i64.add (i64.load (local.get $at)) (local.get $x)))
      (global.set $sum (i64.xor (global.get $sum) (i64.load (local.get $at))))
      (local.set $rounds (i64.sub (local.get $rounds) (i64.const 1)))
      (br_if $again (i64.ne (local.get $rounds) (i64.const 0))))
    (i64.add (i64.add (local.get $x) (global.get $sum)) (i64.extend_i32_u (memory.size))))
  (func (export "ask") (param $x i64) (result i64)
    (i64.sub (i64.mul (local.get $x) (i64.const 1000)) (call $stop (i32.const 1))))
  (func $fill (param $check i32) (result i32) (local $at i32) (local $bad i32)
    (local.set $at (i32.const 8))
    (loop $again
      (if (local.get $check)
        (then (if (i32.ne (i32.load (local.get $at)) (i32.mul (local.get $at) (i32.const 77)))
          (then (local.set $bad (i32.const 1)))))
        (else (i32.store (local.get $at) (i32.mul (local.get $at) (i32.const 77)))))
      (local.set $at (i32.add (local.get $at) (i32.const 4)))
      (br_if $again (i32.lt_u (local.get $at) (i32.const 65536))))
    (i32.eqz (local.get $bad)))
  (func $down (param $n i32) (result i32)
    (i32.store (i32.const 1024) (local.get $n))
    (i32.add (local.get $n) (call $down (i32.add (local.get $n) (i32.const 1)))))
  (func $sink (export "sink") (param $n i32) (result i64) (local $i i64)
    (if (i32.eqz (local.get $n))
      (then
        (call $ready)
        (loop $again (br_if $again (i64.ne
          (local.tee $i (i64.add (local.get $i) (i64.const 1))) (i64.const 1000000000000)))))
      (else (local.set $i (call $sink (i32.sub (local.get $n) (i32.const 1))))))
    (i64.add (local.get $i) (i64.const 1)))
  (func (export "climb") (param $x i64) (result i64)
    (call $ready)
    (loop $again
      (local.set $x (call $mix (local.get $x) (i32.const 5)))
      (br_if $again (i32.eqz (i32.load8_u (i32.const 0)))))
    (local.get $x))
  (func (export "dive") (result i64) (local $rounds i64)
    (call $ready)
    (loop $again
      (local.set $rounds (i64.add (local.get $rounds) (i64.const 1)))
      (br_if $again (i32.eqz (i32.load8_u (i32.const 0)))))
    (i64.extend_i32_u (call $down (i32.const 0))))
  (func (export "outer") (result i64) (call $again))
  (func (export "watch") (export "again") (result i64) (local $a i64) (local $b i64)
    (drop (call $fill (i32.const 0)))
    (global.set $sum (i64.const 1234567))
    (local.set $b (i64.const 7))
    (call $ready)
    (loop $again
      (local.set $a (i64.add (local.get $a) (i64.const 1)))
      (local.set $b (i64.add (local.get $b) (i64.const 3)))
      (br_if $again (i32.eqz (i32.load8_u (i32.const 0)))))
    (i64.extend_i32_u (i32.and
      (i32.and (call $fill (i32.const 1)) (i64.eq (global.get $sum) (i64.const 1234567)))
      (i32.and (i32.eq (memory.size) (i32.const 1))
        (i64.eq (local.get $b) (i64.add (i64.mul (local.get $a) (i64.const 3)) (i64.const 7))))))))"#
    )
}

const ROUNDS: &str = "100000000";

struct Setting {
    directory: tempfile::TempDir,
    wasm: String,
}

impl Setting {
    fn new(maximum: &str) -> Setting {
        Setting::with_memory(&format!("(memory 1 {maximum})"))
    }

    fn with_memory(memory: &str) -> Setting {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("guest.wasm");
        std::fs::write(&path, wat::parse_str(guest(memory)).expect("a module")).expect("a file");
        Setting { wasm: path.to_str().expect("text").to_string(), directory }
    }

    fn start(&self, call: &[&str], flags: &[&str]) -> Host {
        // What follows the arguments of the call ends them.
        let fixed = ["--wasm", &self.wasm, "--call"];
        Host::start("wasm", &[&fixed[..], call, &["--full-preemption"], flags].concat(), Profile::Debug)
    }

    fn run(&self) -> Host {
        self.start(&["run", "42", ROUNDS, "3"], &[])
    }

    /// An image of `run` after `pause`; `None` if it was over by then: how fast the machine is changes.
    fn image(&self, pause: Duration) -> Option<PathBuf> {
        self.image_of(&self.run(), pause)
    }

    /// A computation that goes on, and an image of it. However slow the machine is, one of so many is not over when wstate
    /// comes to it.
    fn begun(&self, call: &[&str]) -> (Host, PathBuf) {
        let one = || {
            let host = self.start(call, &[]);
            self.image_of(&host, Duration::ZERO).map(|image| (host, image))
        };
        (0..20).find_map(|_| one()).expect("one of twenty computations is not over")
    }

    fn begun_run(&self) -> PathBuf {
        self.begun(&["run", "42", ROUNDS, "3"]).1
    }

    fn image_of(&self, host: &Host, pause: Duration) -> Option<PathBuf> {
        std::thread::sleep(pause);
        let path = self.directory.path().join("image");
        let pid = host.pid().to_string();
        let done = wstate(&["snapshot", "-p", &pid, "--settle", "-o", path.to_str().expect("text")]);
        let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        if said.contains("no thread that was looked at has a Wasm frame") {
            // It ends with a result, or what was said is wrong.
            result(host);
            return None;
        }
        assert_eq!(done.status.code(), Some(0), "after {pause:?}: {said}");
        assert!(said.contains("resumable: yes"), "after {pause:?}: {said}");
        Some(path)
    }
}

fn result_now(host: &Host) -> Option<u64> {
    std::fs::read_to_string(host.directory.path().join("truth.result")).ok()?.parse().ok()
}

fn result(host: &Host) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(bits) = result_now(host) {
            return bits;
        }
        assert!(Instant::now() < deadline, "no result within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many random moments: some in a test, `WSTATE_MIGRATIONS` for more.
fn moments() -> usize {
    std::env::var("WSTATE_MIGRATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

/// Less than so many milliseconds.
fn random(below: u64) -> Duration {
    Duration::from_micros(RandomState::new().hash_one(0) % (below * 1000).max(1))
}

fn migrate(maximum: &str) {
    let setting = Setting::new(maximum);
    let began = Instant::now();
    let undisturbed = result(&setting.run());
    let mut longest = began.elapsed().as_millis() as u64 / 3;
    for moment in 0..moments() {
        let (pause, path) = loop {
            let pause = random(longest);
            match setting.image(pause) {
                Some(path) => break (pause, path),
                None => longest /= 2,
            }
        };
        let image = path.to_str().expect("text");

        let theirs = setting.start(&["run", "42", ROUNDS, "3"], &["--resume", image]);
        assert_eq!(result(&theirs), undisturbed, "the runtime's own resume, moment {moment}, after {pause:?}");

        let ours = setting.start(&["watch"], &[]);
        std::thread::sleep(random(50));
        let (code, said) = restore_into(&ours, &path, &["--yes"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("grown by 3 pages"), "{said}");
        assert_eq!(result(&ours), undisturbed, "wstate restore, moment {moment}, after {pause:?}");
        println!("moment {moment}, after {pause:?}: equal");
    }
}

#[test]
fn a_computation_goes_on_elsewhere_with_a_memory_that_moves_when_it_grows() {
    migrate("");
}

#[test]
fn a_computation_goes_on_elsewhere_with_a_memory_that_grows_in_place() {
    migrate("64");
}

/// A thread is told to be ready by a function of the host, and `run` asks the runtime for the memory's size in each round:
/// another moment is another place.
const NATIVE: &str = "is in native code that Wasm has called";

/// Does it again for as long as the thread is in native code.
fn in_wasm<T>(host: &Host, mut once: impl FnMut() -> T, said: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let done = once();
        if !said(&done) {
            return done;
        }
        assert!(result_now(host).is_none(), "the computation is too short");
        assert!(Instant::now() < deadline, "the thread is in native code for {PATIENCE:?}");
    }
}

/// Exit code and output of `wstate restore` into a thread in Wasm code.
fn restore_into(host: &Host, image: &Path, more: &[&str]) -> (Option<i32>, String) {
    in_wasm(host, || restore_once_into(host, image, more), |(_, said)| said.contains(NATIVE))
}

/// The same, wherever the thread is.
fn restore_once_into(host: &Host, image: &Path, more: &[&str]) -> (Option<i32>, String) {
    let pid = host.pid().to_string();
    let done = wstate(&[&["restore", &pid, image.to_str().expect("text")], more].concat());
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    (done.status.code(), said.into_owned())
}

#[test]
fn behind_a_call_its_result_is_given_and_refusals_are_explained() {
    let setting = Setting::new("");
    let asking = setting.start(&["ask", "9"], &[]);
    let image = setting.directory.path().join("image");
    let pid = asking.pid().to_string();
    let taken = wstate(&["snapshot", "-p", &pid, "-o", image.to_str().expect("text")]);
    assert!(String::from_utf8_lossy(&taken.stdout).contains("behind a call whose result"), "{taken:?}");

    let host = setting.start(&["watch"], &[]);
    let before = maps(&host);
    let refused = |host: &Host, image: &Path, more: &[&str], why: &str| {
        let (code, said) = restore_into(host, image, more);
        assert!(code == Some(2) && said.contains(why), "{why}: {said}");
    };
    refused(&host, &image, &["--yes"], "give it with --return");
    let (code, said) = restore_once_into(&asking, &image, &["--yes", "--return", "0"]);
    assert!(code == Some(2) && said.contains(NATIVE), "{said}");
    let frames = setting.directory.path().join("frames");
    wstate(&["snapshot", "-p", &pid, "--execution-state", "-o", frames.to_str().expect("text")]);
    refused(&host, &frames, &["--yes"], "an InstanceImage is needed");
    refused(&host, Path::new("/bin/true"), &["--yes"], "is no image");
    let mut other = std::fs::read(&image).expect("the image");
    let length = other.len();
    // The number of locals of its only frame, behind which there is one of 8 bytes and a tag.
    other[length - 17] = 0;
    other.truncate(length - 9);
    let changed = setting.directory.path().join("changed");
    std::fs::write(&changed, other).expect("a file");
    refused(&host, &changed, &["--yes", "--return", "0"], "does not fit the module: frame 0 has 0 locals");

    let (code, said) = restore_into(&host, &image, &["--return", "-77"]);
    assert!(code == Some(1) && said.contains("nothing was changed"), "{said}");
    assert_eq!(maps(&host), before);
    let (code, said) = restore_into(&host, &image, &["--yes", "--return", "-77"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(result(&host), 9077);
}

/// Whoever else is in the instance would go on with what is not its own.
#[test]
fn what_others_are_in_the_middle_of_is_not_replaced() {
    let setting = Setting::new("");
    let image = setting.begun_run();
    let refused = |host: &Host, more: &[&str], why: &str| {
        let before = maps(host);
        let (code, said) = restore_into(host, &image, &[&["--yes"], more].concat());
        assert!(code == Some(2) && said.contains(why), "{why}: {said}");
        assert_eq!(maps(host), before);
    };
    // Wasm, the host, and Wasm again.
    let nested = setting.start(&["outer"], &[]);
    refused(&nested, &[], "an older Wasm frame of the thread");

    let both = setting.start(&["watch"], &["--also", "same"]);
    let also = both.tid_at("also").expect("a second thread").to_string();
    refused(&both, &[], "choose one with --thread");
    for (tid, other) in [(both.pid().to_string(), &also), (also.clone(), &both.pid().to_string())] {
        refused(&both, &["--thread", &tid], &format!("thread {other} is in the same instance"));
    }

    let apart = setting.start(&["watch"], &["--also", "other"]);
    let (code, said) = restore_into(&apart, &image, &["--thread", &apart.pid().to_string()]);
    assert!(code == Some(1) && said.contains("could go on"), "{said}");

    // A thread that somebody else traces.
    let host = setting.start(&["watch"], &[]);
    maps(&host);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid())).expect("threads").flatten();
    let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    let stdin = tasks.into_iter().find(|t| name(t) == "stdin\n").expect("a thread that reads").file_name();
    let stdin = nix::unistd::Pid::from_raw(stdin.to_str().and_then(|n| n.parse().ok()).expect("a number"));
    let (seized, is_seized) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    // Its end lets the thread go.
    let tracer = std::thread::spawn(move || {
        let done = nix::sys::ptrace::seize(stdin, nix::sys::ptrace::Options::empty());
        seized.send(done).expect("somebody waits");
        let _ = ended.recv();
    });
    is_seized.recv().expect("an answer").expect("it may be traced");
    let (code, said) = restore_into(&host, &image, &["--yes"]);
    drop(end);
    tracer.join().expect("it ends");
    assert!(
        code == Some(2) && said.contains(&format!("traced, so thread {stdin} may be in the same instance")),
        "{said}"
    );
}

#[test]
fn a_memory_that_another_instance_has_is_not_replaced() {
    let setting = Setting::with_memory("(import \"env\" \"memory\" (memory 1))");
    // Imported, it cannot be made to grow.
    let asking = setting.start(&["ask", "9"], &[]);
    let image = setting.directory.path().join("image");
    wstate(&["snapshot", "-p", &asking.pid().to_string(), "-o", image.to_str().expect("text")]);
    let both = setting.start(&["watch"], &["--also", "memory"]);
    let tid = both.pid().to_string();
    let (code, said) = restore_into(&both, &image, &["--yes", "--return", "7", "--thread", &tid]);
    assert!(code == Some(2) && said.contains("has the same memory"), "{said}");

    let host = setting.start(&["watch"], &[]);
    let (code, said) = restore_into(&host, &image, &["--yes", "--return", "7"]);
    assert!(code == Some(0) && said.contains("note: the memory is imported"), "{said}");
    assert_eq!(result(&host), 8993);
}

/// Where `internal.stack_lower_bound` is in an instance's context.
const STACK_LIMIT: u64 = 0x48;

/// A module with stack checks fails at the depth at which it would have failed, and a host's stack is not below the new one.
#[test]
fn a_stack_limit_is_as_far_from_the_frames_as_it_was() {
    let setting = Setting::new("");
    for flags in [&["--stack-checks"][..], &["--stack-checks", "--thread"]] {
        let undisturbed = setting.start(&["dive"], flags);
        let base = places(&undisturbed)[0];
        let image = setting.image_of(&undisturbed, Duration::ZERO).expect("it waits");
        set_byte(&undisturbed, base);
        assert_eq!(result(&undisturbed), u64::MAX, "a trap");
        let depth = word_at(&undisturbed, base + 1024);
        assert!(depth > 10_000, "{depth}");

        let host = setting.start(&["dive"], flags);
        let [base, instance] = places(&host);
        let before = word_at(&host, instance + STACK_LIMIT);
        let mut failed = 0;
        let done = loop {
            match attempt(&host, &image, Some(failed), 0) {
                Ok(done) => break done,
                Err(e) => assert!(e.to_string().contains("is as it was"), "{e}"),
            }
            assert_eq!(word_at(&host, instance + STACK_LIMIT), before, "step {failed}");
            failed += 1;
        };
        assert!(done.notes.iter().any(|n| n.contains(&format!("{before:#x}"))), "{done:?}");
        let now = word_at(&host, instance + STACK_LIMIT);
        assert!(now < before, "{now:#x} {before:#x}");
        // What is there now is not the host's own.
        let again = attempt(&host, &image, None, 0).expect("it goes on");
        let told = again.notes.join("\n");
        assert!(told.contains("its own again, which is not known any more") && !told.contains("0x"), "{told}");
        assert!(word_at(&host, instance + STACK_LIMIT) < now);
        set_byte(&host, base);
        assert_eq!(result(&host), u64::MAX, "a trap");
        assert_eq!(word_at(&host, base + 1024), depth);
    }
}

#[test]
fn frames_that_a_stack_limit_has_no_room_for_are_refused() {
    let setting = Setting::new("");
    let deep = setting.start(&["sink", "20000"], &["--stack-checks"]);
    let image = setting.image_of(&deep, Duration::ZERO).expect("it has no end");
    // A megabyte.
    let host = setting.start(&["sink", "0"], &["--stack-checks", "--thread"]);
    let before = maps(&host);
    let error = attempt(&host, &image, None, 0).expect_err("there is no room").to_string();
    assert!(error.contains("is as it was: the image's frames need"), "{error}");
    assert_eq!(maps(&host), before);
}

/// At random moments, of which some are in the prologue or epilogue of a function: there the thread has an instance too.
#[test]
fn a_thread_is_taken_wherever_it_is_in_wasm_code() {
    let setting = Setting::new("");
    let image = setting.begun_run();
    let host = setting.start(&["climb", "42"], &[]);
    let dry = || {
        let options = Options::new(Source::Pid(host.pid() as u32));
        let session = Session::open(&options)?;
        session.restore(&RestoreOptions::new(&image), &SignalsLater::default())
    };
    in_wasm(&host, dry, is_in_native).expect("it could go on");
    // It is in native code no more.
    for moment in 0..55 {
        let done = dry();
        assert!(done.is_ok(), "moment {moment}: {done:?}");
    }
}

/// Whoever ends wstate in the middle of it ends it when it is done, and has been told.
#[test]
fn a_signal_to_wstate_waits_until_the_process_is_whole() {
    use nix::sys::signal::{Signal, kill};
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;
    let setting = Setting::new("");
    // A memory that takes a while to be copied.
    let (host, image) = setting.begun(&["run", "42", "10000000", "255"]);
    let undisturbed = result(&host);
    drop(host);
    let waits = |wstate: u32, signal: Signal| {
        let status = std::fs::read_to_string(format!("/proc/{wstate}/status")).unwrap_or_default();
        let mask = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigBlk:")?.trim(), 16).ok());
        // While it makes a thread, the C library blocks its own two as well, of which the first is 32.
        mask.is_some_and(|mask| mask & 1 << (signal as i32 - 1) != 0 && mask & 1 << 31 == 0)
    };
    // Until a restore begins: signals are blocked then, and there is another stack.
    let untouched = |host: &Host| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).expect("a status");
        (status.lines().find(|l| l.starts_with("SigBlk")).map(str::to_string), maps(host))
    };
    let mut attempts = 0;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        loop {
            attempts += 1;
            assert!(attempts < 200, "no signal comes in time");
            let host = setting.start(&["watch"], &[]);
            let before = untouched(&host);
            let pid = host.pid().to_string();
            let restore = support::wstate_command(&["restore", &pid, image.to_str().expect("text"), "--yes"]);
            // What a shell starts beside itself ignores SIGINT.
            let mut command = std::process::Command::new("env");
            command.arg("--default-signal").arg(restore.get_program()).args(restore.get_args()).stdin(Stdio::null());
            let mut restoring = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("wstate starts");
            // From before the process is held until all is told.
            while !waits(restoring.id(), signal) && restoring.try_wait().expect("a child").is_none() {}
            let _ = kill(nix::unistd::Pid::from_raw(restoring.id() as i32), signal);
            let done = restoring.wait_with_output().expect("it ends");
            let in_native = String::from_utf8_lossy(&done.stderr).contains(NATIVE);
            // The process is not held yet.
            let too_early = done.stdout.is_empty() && untouched(&host) == before;
            if done.status.signal() == Some(signal as i32) && !in_native && !too_early {
                let said = String::from_utf8_lossy(&done.stdout);
                assert!(said.contains(&format!("process {pid} goes on in thread")), "{done:?}");
                assert_eq!(result(&host), undisturbed);
                break;
            }
            assert!(in_native || too_early || done.status.code() == Some(0), "{done:?}");
        }
    }
}

/// What cannot be done is told by a dry run too.
#[test]
fn a_dry_run_says_what_would_be_refused() {
    use nix::sys::signal::{Signal, kill};
    // Both in place, so that the code is the same.
    let (small, large) = (Setting::new("2"), Setting::new("64"));
    let image = large.begun_run();
    let host = small.start(&["watch"], &[]);
    let (code, said) = restore_into(&host, &image, &[]);
    assert!(
        code == Some(1) && said.contains("note: the runtime decides whether the memory grows by 3 pages"),
        "{said}"
    );
    let before = maps(&host);
    let (code, said) = restore_into(&host, &image, &["--yes"]);
    assert!(
        code == Some(2) && said.contains("is as it was: the runtime does not grow the memory by 3 pages"),
        "{said}"
    );
    for really in [false, true] {
        let mut options = Options::new(Source::Pid(host.pid() as u32));
        options.wasm = vec![PathBuf::from(&small.wasm)];
        let mut wanted = RestoreOptions::new(&image);
        wanted.really = really;
        let session = Session::open(&options).expect("the process is there");
        let error = session.restore(&wanted, &SignalsLater::default()).expect_err("it is too large").to_string();
        assert!(error.ends_with("the image's memory has 4 pages, the module's at most 2 pages"), "{really}: {error}");
    }

    let signal = |signal| kill(nix::unistd::Pid::from_raw(host.pid()), signal).expect("a signal is sent");
    let stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", host.pid())).expect("a state");
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
    };
    signal(Signal::SIGSTOP);
    while !stopped() {
        std::thread::yield_now();
    }
    for more in [&[][..], &["--yes"]] {
        let (code, said) = restore_into(&host, &image, more);
        assert!(code == Some(2) && said.contains("the process is stopped; let it go on first"), "{more:?}: {said}");
    }
    assert_eq!(maps(&host), before);
    signal(Signal::SIGCONT);
    end_watch(&host);
    assert_eq!(result(&host), 1, "what the guest wrote is there");
}

/// What is mapped, once the host's own thread waits for its input: until then it maps what it needs itself.
fn maps(host: &Host) -> String {
    let process = PathBuf::from(format!("/proc/{}", host.pid()));
    let waits = || {
        let tasks = std::fs::read_dir(process.join("task")).expect("threads").flatten();
        let read = |path: &Path, name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        // It is in `read` of descriptor 0.
        tasks.map(|t| t.path()).any(|t| read(&t, "comm") == "stdin\n" && read(&t, "syscall").starts_with("0 0x0 "))
    };
    let deadline = Instant::now() + PATIENCE;
    while !waits() {
        assert!(Instant::now() < deadline, "the host's thread does not wait within {PATIENCE:?}");
        std::thread::yield_now();
    }
    std::fs::read_to_string(process.join("maps")).expect("maps")
}

/// The first address of the memory, and of the instance: while the guest runs.
fn places(host: &Host) -> [u64; 2] {
    let found = wstate(&["modules", "--json", "-p", &host.pid().to_string()]);
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).expect("JSON");
    let instance = &found["contents"][0]["instances"][0];
    [&instance["memories"][0]["base"], &instance["address"]].map(|address| {
        let address = address.as_str().expect("an instance with a memory");
        u64::from_str_radix(address.trim_start_matches("0x"), 16).expect("an address")
    })
}

fn memory_of(host: &Host) -> std::fs::File {
    let path = format!("/proc/{}/mem", host.pid());
    std::fs::File::options().read(true).write(true).open(path).expect("the memory")
}

fn word_at(host: &Host, address: u64) -> u64 {
    let mut word = [0; 8];
    memory_of(host).read_exact_at(&mut word, address).expect("a word is read");
    u64::from_le_bytes(word)
}

/// Sets the byte that `watch` and `dive` look at.
fn end_watch(host: &Host) {
    set_byte(host, places(host)[0]);
}

fn set_byte(host: &Host, address: u64) {
    memory_of(host).write_all_at(&[1], address).expect("a byte is written");
}

fn attempt(host: &Host, image: &Path, fail_at: Option<usize>, fail_back: usize) -> Result<Restored, Error> {
    let options = Options::new(Source::Pid(host.pid() as u32));
    let mut wanted = RestoreOptions::new(image);
    (wanted.really, wanted.fail_at, wanted.fail_back) = (true, fail_at, fail_back);
    let session = Session::open(&options)?;
    in_wasm(host, || session.restore(&wanted, &SignalsLater::default()), is_in_native)
}

fn is_in_native(done: &Result<Restored, Error>) -> bool {
    matches!(done, Err(Error::NotInWasm { .. }))
}

fn failing(maximum: &str) {
    let setting = Setting::new(maximum);
    let image = setting.begun_run();
    let steps = attempt(&setting.start(&["watch"], &[]), &image, None, 0).expect("it goes on").steps;
    assert!(steps > 10, "{steps} steps");

    let host = setting.start(&["watch"], &[]);
    let before = maps(&host);
    for step in 0..steps {
        // Each step back is tried three times.
        let error = attempt(&host, &image, Some(step), 2).expect_err("it was made to fail").to_string();
        assert!(error.contains("is as it was") && error.ends_with("was made to fail"), "step {step}: {error}");
        assert_eq!(maps(&host), before, "step {step}");
    }
    end_watch(&host);
    assert_eq!(result(&host), 1, "what the guest wrote is there");
}

#[test]
fn a_restore_that_fails_leaves_the_process_as_it_was_with_a_memory_that_moves() {
    failing("");
}

#[test]
fn a_restore_that_fails_leaves_the_process_as_it_was_with_a_memory_in_place() {
    failing("64");
}

/// What cannot be taken back is told, and everything else is taken back.
#[test]
fn a_step_that_cannot_be_taken_back_is_the_only_one() {
    let setting = Setting::new("");
    let image = setting.begun_run();
    let steps = attempt(&setting.start(&["watch"], &[]), &image, None, 0).expect("it goes on").steps;
    let host = setting.start(&["watch"], &[]);
    let before = maps(&host);
    // Behind the first step is the stack, and nothing else.
    let error = attempt(&host, &image, Some(1), 3).expect_err("it was made to fail").to_string();
    assert!(
        error.contains("is broken and should be ended") && error.contains("on the way back: a way back"),
        "{error}"
    );
    let after = maps(&host);
    // Mappings side by side may be one.
    let mapped = |maps: &str| -> u64 {
        let range = |line: &str| {
            let (from, to) = line.split_once(' ')?.0.split_once('-')?;
            Some(u64::from_str_radix(to, 16).ok()? - u64::from_str_radix(from, 16).ok()?)
        };
        maps.lines().filter_map(range).sum()
    };
    let more = mapped(&after) - mapped(&before);
    assert!((8 << 20..9 << 20).contains(&more), "{more:#x}");
    // The first step back fails, of a global that `watch` does not look at.
    let error = attempt(&host, &image, Some(steps - 1), 3).expect_err("it was made to fail").to_string();
    assert!(error.contains("is broken"), "{error}");
    assert_eq!(mapped(&maps(&host)), mapped(&after));
    end_watch(&host);
    assert_eq!(result(&host), 1, "all the rest was taken back");
}

fn twice(maximum: &str) {
    let setting = Setting::new(maximum);
    let small = setting.begun_run();
    let kept = setting.directory.path().join("small");
    std::fs::rename(&small, &kept).expect("an image");
    // The same, with more memory.
    let (longer, large) = setting.begun(&["run", "43", ROUNDS, "40"]);
    let undisturbed = result(&longer);
    let host = setting.start(&["watch"], &[]);
    for (image, grown) in [(&kept, 3), (&large, 37), (&large, 0)] {
        let (code, said) = restore_into(&host, image, &["--yes"]);
        assert!(code == Some(0) && said.contains(&format!("grown by {grown} pages")), "{said}");
    }
    assert_eq!(result(&host), undisturbed);
}

#[test]
fn one_restore_follows_another_with_a_memory_that_moves() {
    twice("");
}

#[test]
fn one_restore_follows_another_with_a_memory_in_place() {
    twice("64");
}

/// The place that the old memory is moved to costs none.
#[test]
fn a_limit_of_data_counts_the_image_once() {
    let setting = Setting::new("");
    let (_computing, image) = setting.begun(&["run", "42", ROUNDS, "1023"]);
    let host = setting.start(&["watch"], &[]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).expect("a status");
    let data = status.lines().find_map(|l| l.strip_prefix("VmData:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    // The memory grown, the image, the stack (8 MiB), and half of the image.
    let limit = data.expect("a number") * 1024 + ((64 + 64 + 8 + 32) << 20);
    let (pid, data) = (format!("--pid={}", host.pid()), format!("--data={limit}"));
    let set = std::process::Command::new("prlimit").args([pid, data]).status().expect("prlimit, of util-linux");
    assert!(set.success());
    let (code, said) = restore_into(&host, &image, &["--yes"]);
    assert!(code == Some(0) && said.contains("grown by 1023 pages"), "{said}");
}
