//! Live processes that are not simply sleeping: stopped, traced, ended, changing, in containers; and that an attach
//! leaves each of them as it was.
#![allow(unsafe_code)] // Signal handlers and timers of the processes that are looked at.

mod support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Host, Profile, host_singlepass, wstate};

/// Bounds only a failing test.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for `done`, looking again and again.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// A missing tool or right is said aloud, and a failure in CI unless the environment forbids it.
fn not_tested(reason: &str, allowed_in_ci: bool) {
    assert!(allowed_in_ci || std::env::var_os("CI").is_none(), "{reason}");
    println!("not tested: {reason}");
}

// ---- the processes that are looked at ----

const ROLE: &str = "WSTATE_LIVE_ROLE";
static ALARMS: AtomicU64 = AtomicU64::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);
static STOP_SENDING: AtomicBool = AtomicBool::new(false);
static WORK: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
static MADE: AtomicU64 = AtomicU64::new(0);

extern "C" fn alarm(_: libc::c_int) {
    ALARMS.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn handled(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

fn on_signal(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// Not a test: this binary run again as the process to look at. Ends when its stdin is closed.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    match role.as_str() {
        "busy" => {
            on_signal(libc::SIGALRM, alarm);
            on_signal(libc::SIGRTMIN(), handled);
            for work in &WORK {
                std::thread::spawn(move || {
                    loop {
                        work.fetch_add(1, Ordering::SeqCst);
                        // A system call in every round, so that a signal can also interrupt one.
                        std::thread::yield_now();
                    }
                });
            }
            // Real-time signals are queued, so that every one of them must arrive.
            std::thread::spawn(|| {
                while !STOP_SENDING.load(Ordering::SeqCst) {
                    if SENT.load(Ordering::SeqCst) - HANDLED.load(Ordering::SeqCst).min(SENT.load(Ordering::SeqCst))
                        < 64
                        && unsafe { libc::kill(libc::getpid(), libc::SIGRTMIN()) } == 0
                    {
                        SENT.fetch_add(1, Ordering::SeqCst);
                    }
                    std::thread::yield_now();
                }
            });
            let every = libc::timeval { tv_sec: 0, tv_usec: 1000 };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }, 0);
        }
        "churn" => {
            for _ in 0..4 {
                std::thread::spawn(|| {
                    loop {
                        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(std::thread::yield_now)).collect();
                        threads.into_iter().for_each(|t| t.join().expect("an empty thread"));
                        MADE.fetch_add(4, Ordering::SeqCst);
                    }
                });
            }
        }
        // Threads that sleep, but never for long.
        "naps" => {
            for _ in 0..8 {
                std::thread::spawn(|| {
                    loop {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                });
            }
        }
        // Several threads at the same known place, and no Wasm.
        "threads" => {
            for n in 0..4 {
                let name = format!("sleeper {n}");
                std::thread::Builder::new().name(name).spawn(native_outer).expect("a thread");
            }
        }
        other => panic!("no role {other}"),
    }
    println!("\nROLE ready");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        if line == "stop" {
            STOP_SENDING.store(true, Ordering::SeqCst);
        }
        let numbers: Vec<u64> =
            (WORK.iter().chain([&ALARMS, &SENT, &HANDLED, &MADE])).map(|n| n.load(Ordering::SeqCst)).collect();
        println!("\nROLE {}", serde_json::to_string(&numbers).expect("numbers"));
    }
    unsafe { libc::_exit(0) };
}

#[inline(never)]
fn native_outer() {
    native_inner();
    std::hint::black_box(());
}

#[inline(never)]
fn native_inner() {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// What a `Role` counted.
#[derive(Clone, Debug)]
struct Counters {
    work: Vec<u64>,
    alarms: u64,
    sent: u64,
    handled: u64,
    made: u64,
}

struct Role {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Role {
    fn start(role: &str) -> Role {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["role", "--exact", "--nocapture", "--test-threads", "1"]).env(ROLE, role);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        let mut child = command.spawn().expect("this test starts again");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut role = Role { child, stdin, stdout };
        assert_eq!(role.answer(), "ready");
        role
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Only a process that runs answers; one that does not ends the test by the harness' time limit.
    fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).expect("a line"), 0, "the process ended");
            if let Some(answer) = line.trim_end().strip_prefix("ROLE ") {
                return answer.to_string();
            }
        }
    }

    fn ask(&mut self, question: &str) -> Counters {
        writeln!(self.stdin, "{question}").expect("the process reads");
        let numbers: Vec<u64> = serde_json::from_str(&self.answer()).expect("numbers");
        let (work, rest) = numbers.split_at(WORK.len());
        Counters { work: work.to_vec(), alarms: rest[0], sent: rest[1], handled: rest[2], made: rest[3] }
    }

    /// That no thread is stopped and every counter goes on.
    fn assert_runs(&mut self, what: &str) {
        until(&format!("{what}: a thread is stopped"), || {
            states(self.child.id()).iter().all(|s| !matches!(s, 't' | 'T'))
        });
        let before = self.ask("counters");
        until(&format!("{what}: a counter stands still, {before:?}"), || {
            let now = self.ask("counters");
            now.alarms > before.alarms && now.work.iter().zip(&before.work).all(|(now, before)| now > before)
        });
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The state letters of all threads.
fn states(pid: u32) -> Vec<char> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there").flatten();
    let stats = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("stat")).ok());
    stats.filter_map(|s| s.rsplit_once(')')?.1.trim_start().chars().next()).collect()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The names in a thread, or in all of them.
fn names(report: &Value) -> Vec<String> {
    let frames = report["threads"].as_array().into_iter().flatten().flat_map(|t| t["frames"].as_array()).flatten();
    frames.filter_map(|f| Some(f["function"]["name"].as_str()?.to_string())).collect()
}

/// One attach of a process in which everything is expected to be found.
fn attach(pid: u32) -> Value {
    let output = wstate(&["attach", &pid.to_string(), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    report(&output)
}

fn assert_sleep_host(report: &Value) {
    let names = names(report);
    for name in ["host_singlepass::stopped", "leaf", "fact", "run", "host_singlepass::main", "__libc_start_call_main"] {
        assert!(names.iter().any(|n| n == name), "{name} is not in {names:?}");
    }
}

/// An attach that must fail with one line that says why.
fn refused(pid: u32, why: &str) {
    refused_with(&["attach", &pid.to_string()], why);
}

fn refused_with(arguments: &[&str], why: &str) {
    let output = wstate(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty());
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("wstate: error: ") && lines[0].contains(why), "{text}");
    assert!(lines.len() == 1 || lines.len() == 2 && lines[1].starts_with("hint: "), "{text}");
}

fn doctor(pid: u32) -> String {
    let output = wstate(&["doctor", &pid.to_string()]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

// ---- states ----

#[test]
fn a_stopped_process_is_shown_and_stays_stopped() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let pid = host.pid() as u32;
    assert_eq!(unsafe { libc::kill(host.pid(), libc::SIGSTOP) }, 0);
    until("the process stops", || states(pid).iter().all(|&s| s == 'T'));
    for _ in 0..3 {
        assert_sleep_host(&attach(pid));
        assert!(states(pid).iter().all(|&s| s == 'T'), "{:?}", states(pid));
    }
    assert_eq!(unsafe { libc::kill(host.pid(), libc::SIGCONT) }, 0);
    until("the process goes on", || states(pid).iter().all(|&s| s != 'T'));
}

#[test]
fn a_process_under_gdb_is_refused_with_the_tracer() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-iex", "set debuginfod enabled off", "-iex", "set pagination off", "-p"]);
    gdb.arg(host.pid().to_string()).args(["-ex", r"echo \nATTACHED\n"]);
    let gdb = gdb.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut gdb) = gdb else { return not_tested("gdb is not installed", false) };
    let lines = BufReader::new(gdb.stdout.take().expect("a pipe")).lines();
    assert!(lines.map_while(Result::ok).any(|l| l == "ATTACHED"), "gdb did not attach");
    refused(host.pid() as u32, "(gdb) traces it already");
    let text = doctor(host.pid() as u32);
    assert!(text.contains(&format!("process {} (gdb) already traces it", gdb.id())), "{text}");
    // Closing gdb's input makes it detach and end.
    drop(gdb.stdin.take());
    gdb.wait().expect("gdb ends");
    assert_sleep_host(&attach(host.pid() as u32));
}

#[test]
fn what_cannot_be_attached_to_is_said() {
    // One more than the largest process id of 64-bit Linux.
    refused(4_194_305, "there is no such process");
    assert!(doctor(4_194_305).contains("there is no process 4194305"));

    let mut ended = Command::new("true").spawn().expect("true starts");
    until("the child ends", || states(ended.id()) == ['Z']);
    refused(ended.id(), "zombie");
    assert!(doctor(ended.id()).contains("has ended"));
    ended.wait().expect("it is a child");

    match std::fs::read_to_string("/proc/2/comm") {
        Ok(name) if name.trim() == "kthreadd" => {
            refused(2, "kernel thread");
            assert!(doctor(2).contains("kernel thread"));
        }
        // A pid namespace of its own has none.
        _ => not_tested("there is no kernel thread to see", true),
    }
}

#[test]
fn fifty_attaches_lose_no_signal_and_stop_nothing() {
    let mut busy = Role::start("busy");
    let before = busy.ask("counters");
    for _ in 0..50 {
        let output = wstate(&["attach", &busy.pid().to_string(), "--json"]);
        let report = report(&output);
        // 8 that work, the sender, the role itself and the harness' own.
        assert!(report["threads"].as_array().expect("threads").len() >= 10, "{report}");
        assert!(names(&report).iter().any(|n| n.contains("live::role")), "{:?}", names(&report));
    }
    busy.assert_runs("after 50 attaches");
    let mut last = busy.ask("stop");
    until("a queued signal was lost", || {
        last = busy.ask("counters");
        last.sent == last.handled
    });
    println!(
        "50 attaches: {} queued signals sent and handled, {} alarms, {} rounds of work",
        last.handled - before.handled,
        last.alarms - before.alarms,
        last.work.iter().sum::<u64>() - before.work.iter().sum::<u64>()
    );
    assert!(last.sent > before.sent);
}

#[test]
fn killing_wstate_at_any_moment_leaves_nothing_stopped() {
    let mut busy = Role::start("busy");
    let (mut state, mut finished) = (0x2545_f491_4f6c_dd1d_u64, 0);
    for round in 0..100 {
        // xorshift: the same instants in every run, as far as the machine allows.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut wstate = Command::new(env!("CARGO_BIN_EXE_wstate"));
        wstate.args(["attach", &busy.pid().to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut wstate = wstate.spawn().expect("wstate starts");
        let after = Duration::from_micros(state % 30_000);
        // The instant is what is tested here, not something to wait for.
        std::thread::sleep(after);
        finished += usize::from(matches!(wstate.try_wait(), Ok(Some(_))));
        wstate.kill().expect("it is a child");
        wstate.wait().expect("it is a child");
        busy.assert_runs(&format!("round {round}, killed after {after:?}"));
    }
    println!("100 kills, {finished} of them after wstate's end");
    let last = busy.ask("stop");
    until("a queued signal was lost", || {
        let now = busy.ask("counters");
        now.sent == now.handled && now.handled >= last.handled
    });
}

#[test]
fn threads_that_come_and_go_never_make_an_attach_fail() {
    let mut churn = Role::start("churn");
    let before = churn.ask("counters").made;
    let mut partial = 0;
    let mut why = BTreeSet::new();
    for _ in 0..30 {
        let output = wstate(&["attach", &churn.pid().to_string(), "--json"]);
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 1)), "{code:?} {}", String::from_utf8_lossy(&output.stderr));
        // A thread that is just being made or is ending has no whole stack.
        partial += usize::from(code == Some(1));
        let report = report(&output);
        assert!(names(&report).iter().any(|n| n.contains("live::role")));
        for thread in report["threads"].as_array().expect("threads").iter().filter(|t| t["end"]["kind"] != "bottom") {
            let youngest = &thread["frames"][0]["function"]["name"];
            why.insert(format!("{} at {}", thread["end"]["kind"], youngest));
        }
    }
    let made = churn.ask("counters").made - before;
    println!("30 attaches during {made} new threads, {partial} with a stack that was not whole: {why:?}");
    until("no new threads", || churn.ask("counters").made > before + made);
}

// ---- files and namespaces ----

/// A copy of the host in a directory of its own.
fn copied_host() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let copy = directory.path().join("host-copy");
    support::copy_program(&host_singlepass(Profile::Debug), &copy);
    (directory, copy)
}

#[test]
fn a_deleted_executable_still_gives_names() {
    let (_directory, exe) = copied_host();
    let host = Host::start_exe(exe.clone(), "sleep", &[]);
    std::fs::remove_file(exe).expect("it is there");
    assert_sleep_host(&attach(host.pid() as u32));
    let text = doctor(host.pid() as u32);
    assert!(text.contains("replaced or deleted"), "{text}");
}

#[test]
fn a_replaced_executable_still_gives_names() {
    let (directory, exe) = copied_host();
    let host = Host::start_exe(exe.clone(), "sleep", &[]);
    // As a package manager does it: another file gets the name.
    let other = directory.path().join("other");
    std::fs::copy(env!("CARGO_BIN_EXE_wstate"), &other).expect("a copy");
    std::fs::rename(other, exe).expect("it is replaced");
    assert_sleep_host(&attach(host.pid() as u32));
    let text = doctor(host.pid() as u32);
    assert!(text.contains("replaced or deleted"), "{text}");
}

/// Whether `unshare` with these flags works here.
fn can_unshare(flags: &str) -> bool {
    let output = Command::new("unshare").args([flags, "true"]).output();
    match output {
        Ok(o) if o.status.success() => true,
        Ok(o) => {
            not_tested(&format!("unshare {flags}: {}", String::from_utf8_lossy(&o.stderr).trim()), true);
            false
        }
        Err(e) => {
            not_tested(&format!("unshare does not start: {e}"), false);
            false
        }
    }
}

fn script(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("start");
    std::fs::write(&path, text).expect("the script is written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

/// The process that runs this very file, as seen from here.
fn process_of(exe: &Path) -> u32 {
    let file = exe.metadata().expect("the copy is there");
    let is_it = |pid: u32| {
        let running = std::fs::metadata(format!("/proc/{pid}/exe"));
        running.is_ok_and(|r| (r.dev(), r.ino()) == (file.dev(), file.ino()))
    };
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let mut pids = processes.filter_map(|p| p.file_name().to_str()?.parse().ok());
    pids.find(|&pid| is_it(pid)).expect("the host runs")
}

#[test]
fn libraries_of_another_mount_namespace_are_found_through_its_root() {
    if !can_unshare("-m") {
        return;
    }
    let (directory, exe) = copied_host();
    let mount = directory.path().join("mount");
    let files = directory.path().join("files");
    std::fs::create_dir(&mount).and_then(|()| std::fs::create_dir(&files)).expect("directories");
    std::fs::rename(&exe, files.join("host")).expect("it is moved");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("our maps");
    let libc = maps.lines().find_map(|l| Some(&l[l.find('/')?..]).filter(|p| p.contains("/libc.so"))).expect("libc");
    std::fs::copy(libc, files.join("libc.so.6")).expect("a copy");
    let (mount, files) = (mount.display(), files.display());
    let start = script(
        directory.path(),
        &format!(
            "#!/bin/sh\nexec unshare -m /bin/sh -c 'mount --bind \"{files}\" \"{mount}\" && \
             LD_LIBRARY_PATH=\"{mount}\" exec \"{mount}/host\" \"$@\"' sh \"$@\"\n"
        ),
    );
    let host = Host::start_exe(start, "sleep", &[]);
    let mount = directory.path().join("mount");
    assert!(!mount.join("libc.so.6").exists(), "the mount is seen here too: nothing is tested");
    let pid = host.pid() as u32;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    assert!(maps.contains(mount.join("libc.so.6").to_str().expect("a path of ours")), "{maps}");
    let report = attach(pid);
    assert_sleep_host(&report);
    assert_eq!(report["objects_problems"], Value::Array(vec![]));
    let text = doctor(pid);
    assert!(text.contains(&format!("its files are read through /proc/{pid}/root")), "{text}");
}

#[test]
fn a_process_in_a_pid_namespace_is_attached_to_by_its_id_here() {
    if !can_unshare("-pf") {
        return;
    }
    let (directory, exe) = copied_host();
    let start = format!("#!/bin/sh\nexec unshare -pf --kill-child \"{}\" \"$@\"\n", exe.display());
    let host = Host::start_exe(script(directory.path(), &start), "sleep", &[]);
    assert!(host.pid() < 10, "the host's own id is that of its namespace: {}", host.pid());
    let pid = process_of(&exe);
    assert_ne!(pid, host.pid() as u32);
    let report = attach(pid);
    assert_sleep_host(&report);
    assert_eq!(report["target"]["pid"], pid);
    let text = doctor(pid);
    assert!(text.contains("other pid namespace, as pid 1 inside"), "{text}");
}

// ---- what an attach does, as others see it ----

#[test]
fn an_attach_changes_nothing_in_the_process() {
    let host = Host::start("threads", &[], Profile::Debug);
    let Some((output, requests)) = ptrace_requests(&host, &[]) else { return };
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    println!("ptrace requests: {requests:?}");
    let allowed = ["PTRACE_SEIZE", "PTRACE_INTERRUPT", "PTRACE_GETREGSET", "PTRACE_GETSIGINFO", "PTRACE_DETACH"];
    let others: Vec<&String> = requests.iter().filter(|r| !allowed.contains(&r.as_str())).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(requests.contains("PTRACE_SEIZE") && requests.contains("PTRACE_GETREGSET"), "{requests:?}");
}

/// What an attach with these options writes, and the ptrace requests that it makes as strace sees them; that it only reads
/// the process' files and sends no signal. `None` if strace cannot be used here.
fn ptrace_requests(host: &Host, options: &[&str]) -> Option<(Output, BTreeSet<String>)> {
    let log = host.directory.path().join("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "trace=ptrace,process_vm_writev,pwrite64,pwritev,openat,kill,tgkill", "-o"]);
    strace.arg(&log).arg(env!("CARGO_BIN_EXE_wstate")).args(["attach", &host.pid().to_string()]).args(options);
    let Ok(output) = strace.stdin(Stdio::null()).output() else {
        not_tested("strace is not installed", false);
        return None;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("PTRACE_TRACEME") || text.contains("ptrace(") {
        not_tested(&format!("strace: {}", text.trim()), true);
        return None;
    }
    let log = std::fs::read_to_string(log).expect("strace writes its log");
    let mut requests = BTreeSet::new();
    for line in log.lines() {
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        if let Some(arguments) = call.strip_prefix("ptrace(") {
            requests.insert(arguments.split([',', ')']).next().unwrap_or_default().to_string());
        } else if let Some(arguments) = call.strip_prefix("openat(") {
            // Of the process' files, all are only read.
            let theirs = arguments.contains(&format!("/proc/{}", host.pid()));
            assert!(!theirs || arguments.contains("O_RDONLY"), "{line}");
        } else {
            assert!(call.starts_with("<...") || call.starts_with("+++") || call.starts_with("---"), "{line}");
        }
    }
    Some((output, requests))
}

/// What a frame is, whichever way its thread was read.
fn frame_without_the_way(frame: &Value) -> Value {
    let mut frame = frame.clone();
    let keys = frame.as_object_mut().expect("a frame");
    // Values in registers that nothing saved are known only where the thread was stopped.
    for key in ["unstopped", "locals", "locals_why", "stack", "stack_why", "instance"] {
        keys.remove(key);
    }
    frame
}

#[test]
fn nonblocking_stops_nothing_and_shows_the_same_frames_of_what_sleeps() {
    let host = Host::start("sleep", &[], Profile::Debug);
    until("the host sleeps", || states(host.pid() as u32).iter().all(|&s| s == 'S'));
    let Some((output, requests)) = ptrace_requests(&host, &["--nonblocking", "--json", "--timing"]) else { return };
    assert!(requests.is_empty(), "{requests:?}");
    let unstopped = report(&output);
    assert_eq!(unstopped["timing"]["stopped_ms"], Value::Null);
    let stopped = attach(host.pid() as u32);
    let threads = |report: &Value| report["threads"].as_array().expect("threads").clone();
    assert_eq!(threads(&unstopped).len(), threads(&stopped).len());
    let mut whole = true;
    for (thread, same) in threads(&unstopped).iter().zip(threads(&stopped)) {
        let frames = |thread: &Value| thread["frames"].as_array().expect("frames").clone();
        let (ours, all) = (frames(thread), frames(&same));
        assert!(ours.len() > 1 && ours.iter().all(|f| f["unstopped"] == true), "{thread}");
        assert!(all.iter().all(|f| f.get("unstopped").is_none()), "{same}");
        let without_the_way = |frames: &[Value]| frames.iter().map(frame_without_the_way).collect::<Vec<_>>();
        // Never another frame, and a reason where one is missing.
        assert_eq!(without_the_way(&ours), without_the_way(&all[..ours.len()]));
        if ours.len() < all.len() {
            whole = false;
            let why = thread["end"]["why"].as_str().expect("a reason");
            assert!(why.starts_with("register ") && why.ends_with(" of this frame is not known"), "{why}");
        }
    }
    assert_eq!(output.status.code(), Some(if whole { 0 } else { 1 }), "{unstopped}");
    let text = wstate(&["attach", &host.pid().to_string(), "--nonblocking", "--brief"]).stdout;
    let text = String::from_utf8(text).expect("text");
    let lines: Vec<&str> = text.lines().filter(|l| l.trim_start().starts_with('#')).collect();
    assert!(!lines.is_empty() && lines.iter().all(|l| l.ends_with("  (not stopped)")), "{text}");
}

#[test]
fn nonblocking_says_which_threads_ran_while_they_were_read() {
    let naps = Role::start("naps");
    let mut why = BTreeSet::new();
    until("no thread is seen to wake up", || {
        let report = report(&wstate(&["attach", &naps.pid().to_string(), "--nonblocking", "--json"]));
        for thread in report["threads"].as_array().expect("threads") {
            let frames = thread["frames"].as_array().expect("frames");
            let reason = thread["end"]["why"].as_str().unwrap_or_default();
            // Nothing is shown of a stack that may have changed.
            assert!(frames.is_empty() || !reason.contains("it ran while"), "{thread}");
            why.insert(reason.split(',').next().unwrap_or_default().to_string());
        }
        why.contains("it ran while its stack was read")
    });
}

#[test]
fn nonblocking_lists_running_threads_without_frames() {
    let busy = Role::start("busy");
    let output = wstate(&["attach", &busy.pid().to_string(), "--nonblocking", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report = report(&output);
    let threads = report["threads"].as_array().expect("threads");
    assert!(threads.len() >= 10, "{report}");
    let mut running = 0;
    for thread in threads.iter().filter(|t| t["frames"].as_array().expect("frames").is_empty()) {
        let why = thread["end"]["why"].as_str().expect("a reason");
        assert!(why.starts_with("it is running, and was not") || why.starts_with("it ran while its stack"), "{why}");
        running += 1;
    }
    // Eight work and one sends, all the time.
    assert!(running >= 9, "{report}");
    refused_with(&["attach", "4194305", "--nonblocking"], "there is no such process");
}

/// The line of `--timing`, by part: milliseconds.
fn timing_line(output: &Output) -> Vec<(String, f64)> {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|l| l.strip_prefix("wstate: timing: ")).unwrap_or_else(|| panic!("{text}"));
    let part = |p: &str| {
        let (name, time) = p.strip_suffix(" ms").expect("a time").rsplit_once(' ').expect("a name");
        (name.to_string(), time.parse().expect("a number"))
    };
    line.split(", ").map(part).collect()
}

#[test]
fn timing_tells_how_long_the_target_was_stopped_and_what_took_how_long() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let pid = host.pid().to_string();
    let began = Instant::now();
    let output = wstate(&["attach", &pid, "--json", "--timing"]);
    let wall = began.elapsed().as_secs_f64() * 1e3;
    let line = timing_line(&output);
    let names: Vec<&str> = line.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["stopped", "reading", "walking", "symbolizing", "printing"]);
    assert!(line.iter().all(|(_, time)| *time > 0.0), "{line:?}");
    assert!(
        line[0].1 < line[1].1 && line[1..].iter().map(|(_, t)| t).sum::<f64>() < wall,
        "{line:?}, {wall} ms in all"
    );
    let timing = report(&output)["timing"].clone();
    for (name, time) in &line[..4] {
        let same = timing[format!("{name}_ms")].as_f64().expect("a number");
        assert!((same - time).abs() < 0.001, "{name}: {same} in JSON, {time} in the line");
    }
    assert_eq!(timing["printing_ms"], Value::Null);
    assert!(report(&wstate(&["attach", &pid, "--json"])).get("timing").is_none());

    let core = support::gcore(&host).expect("gcore writes a core");
    let output = wstate(&["core", core.to_str().expect("a path of ours"), "--timing"]);
    let names: Vec<String> = timing_line(&output).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["reading", "walking", "symbolizing", "printing"], "a core is not stopped");
}

/// A second opinion on a process without Wasm.
#[test]
fn eu_stack_sees_the_same_functions() {
    let role = Role::start("threads");
    let asleep = || states(role.pid()).iter().filter(|&&s| s == 'S').count();
    until("the threads sleep", || asleep() >= 5 && states(role.pid()).len() == asleep());
    let output = Command::new("eu-stack").args(["-p", &role.pid().to_string()]).stdin(Stdio::null()).output();
    let Ok(output) = output else { return not_tested("eu-stack (elfutils) is not installed", false) };
    let report = report(&wstate(&["attach", &role.pid().to_string(), "--json"]));
    let text = String::from_utf8_lossy(&output.stdout);
    let (mut tid, mut compared, mut named, mut sleepers) = (String::new(), 0, 0, 0);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("TID ") {
            tid = rest.trim_end_matches(':').to_string();
            continue;
        }
        // `#1  0x00007f... name` or `#1  0x00007f... - 1 name`.
        let mut words = line.split_whitespace();
        let (Some(number), Some(pc)) = (words.next(), words.next()) else { continue };
        let Some(index) = number.strip_prefix('#').and_then(|n| n.parse::<usize>().ok()) else { continue };
        let name = words.find(|w| !matches!(*w, "-" | "1")).map(|w| w.trim_end_matches(':'));
        let thread =
            report["threads"].as_array().expect("threads").iter().find(|t| t["tid"].as_u64() == tid.parse().ok());
        let thread = thread.unwrap_or_else(|| panic!("wstate has no thread {tid}"));
        // Physical frames: eu-stack shows no inlined ones.
        let frames = thread["frames"].as_array().expect("frames").iter();
        let frame = frames.filter(|f| f["function"]["inlined"] != true).nth(index);
        let frame = frame.unwrap_or_else(|| panic!("wstate has no frame {index} in {tid}: {text}"));
        let parse = |s: &str| u64::from_str_radix(s.trim_start_matches("0x"), 16).expect("an address");
        assert_eq!(parse(frame["pc"].as_str().expect("a pc")), parse(pc), "{line}: {frame}");
        let ours = frame["function"]["name"].as_str();
        // Closures are half demangled: `_$u7b$$u7b$closure$u7d$$u7d$`.
        if let (Some(name), Some(ours)) = (name.filter(|n| !n.contains('$')), ours) {
            let demangled = format!("{:#}", rustc_demangle::demangle(name));
            // It demangles some, and leaves the hash.
            let hash = |h: &str| h.len() == 17 && h.starts_with('h') && h[1..].bytes().all(|b| b.is_ascii_hexdigit());
            let demangled = demangled.rsplit_once("::").filter(|(_, h)| hash(h)).map_or(&*demangled, |(n, _)| n);
            let last = |n: &str| n.rsplit("::").next().unwrap_or_default().trim_matches('_').to_string();
            assert!(same_symbol(&last(demangled), &last(ours)), "{line}: {ours}");
            named += 1;
            sleepers += usize::from(demangled.ends_with("native_inner"));
        }
        compared += 1;
    }
    println!("eu-stack: {compared} frames equal, {named} of them by name too");
    assert_eq!(sleepers, 4, "{text}");
}

/// The C library has several names for one function (`__GI_`, `__libc_`, version suffixes).
fn same_symbol(a: &str, b: &str) -> bool {
    let plain = |n: &str| {
        let n = n.split('@').next().unwrap_or_default();
        let n = n.trim_start_matches("GI_").trim_matches('_').trim_start_matches("libc_").to_string();
        n.split('<').next().unwrap_or_default().to_string()
    };
    let (a, b) = (plain(a), plain(b));
    a == b || a.contains(&b) || b.contains(&a)
}
