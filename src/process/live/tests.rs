//! Tests of captures, with a process that is this test program once more, in a role of its own.

mod cores;
mod inject;
mod proc;
mod refusal;
mod reread;
mod stacks;
mod step;
mod stop;

use super::super::objects::{ObjectData, Objects, SearchPaths};
use super::held::{Held, Steps};
use super::proc::{list_threads, thread_state};
use super::*;
use crate::arch::x64;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const ROLE: &str = "WSTATE_TEST_ROLE";
static SIGNALS: AtomicU64 = AtomicU64::new(0);
static SPUN: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

// This handler never returns, so the thread stays on its alternate stack, like a thread that reports a fault.
extern "C" fn park(_: libc::c_int) {
    println!("\nparked");
    loop {
        // SAFETY: the call has no arguments.
        unsafe { libc::pause() };
    }
}

fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int), flags: libc::c_int) {
    // SAFETY: a zeroed sigaction is valid, the handler has the plain signature.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags | libc::SA_RESTART;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

extern "C" fn double(n: u64) -> u64 {
    2 * n
}

/// Turns on seccomp for this thread: a filter that allows everything, or the mode that allows hardly anything.
fn restrict(mode: &std::ffi::OsStr) {
    if mode == "strict" {
        // SAFETY: prctl touches no memory here.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) }, 0);
        return;
    }
    let all = libc::sock_filter { code: libc::BPF_RET as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let program = libc::sock_fprog { len: 1, filter: (&raw const all).cast_mut() };
    // SAFETY: the program is read during the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[inline(never)]
fn spin() {
    loop {
        SPUN.fetch_add(1, Ordering::Relaxed);
    }
}

/// The process that the other tests look at or that traces for them. It is this test, started in a process of its
/// own.
#[test]
#[ignore = "a role for other tests"]
fn child() {
    match std::env::var(ROLE).as_deref() {
        Ok("target") => target(),
        Ok("tracer") => tracer(),
        Ok("stepper") => stepper(),
        _ => {}
    }
}

fn target() {
    handle(libc::SIGRTMIN() + 1, count, 0);
    handle(libc::SIGUSR1, park, libc::SA_ONSTACK);
    if std::env::var_os("WSTATE_TEST_HANDLES_CONT").is_some() {
        handle(libc::SIGCONT, count, 0);
    }
    for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGTRAP] {
        handle(signal, count, 0);
    }
    let shared = Box::new(*b"0123456789abcdef");
    let (ready, all_ready) = std::sync::mpsc::channel();
    for name in ["one", "two", "spinner"] {
        let ready = ready.clone();
        let body = move || {
            // SAFETY: gettid has no arguments.
            let tid = unsafe { libc::gettid() };
            ready.send((name, tid)).unwrap();
            if name == "spinner" {
                if let Some(mode) = std::env::var_os("WSTATE_TEST_SECCOMP") {
                    restrict(&mode);
                }
                spin();
            }
            loop {
                std::thread::park();
            }
        };
        std::thread::Builder::new().name(name.into()).spawn(body).unwrap();
    }
    let ready: std::collections::BTreeMap<_, _> = (0..3).map(|_| all_ready.recv().unwrap()).collect();
    // The spinner has sent its id with a system call, in which it cannot be stepped. Wait until it spins.
    while SPUN.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    println!("\nready {} {:x}", ready["spinner"], shared.as_ptr() as usize);
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "count" => println!("\ncount {}", SIGNALS.load(Ordering::SeqCst)),
            "double" => println!("\ndouble {:x}", double as *const () as usize),
            "spun" => println!("\nspun {}", SPUN.load(Ordering::SeqCst)),
            line if line.starts_with("load ") => reread::load(line),
            "alternate" => {
                let body = || {
                    let mut stack = vec![0u8; 64 << 10];
                    let local = [0x5eed_5eed_5eed_5eedu64; 4];
                    println!("\nlocal {:x}", local.as_ptr() as usize);
                    // SAFETY: the stack lives as long as the thread, which never leaves the handler.
                    unsafe {
                        let alternate =
                            libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
                        libc::sigaltstack(&alternate, std::ptr::null_mut());
                        libc::raise(libc::SIGUSR1);
                    }
                    std::hint::black_box((&local, &stack));
                };
                std::thread::Builder::new().name("alternate".into()).spawn(body).unwrap();
            }
            other => println!("\n{other}"),
        }
    }
    std::hint::black_box(&shared);
}

fn tracer() {
    let pid = std::env::var("WSTATE_TEST_PID").unwrap().parse().unwrap();
    loop {
        LiveTarget::capture(pid, &CaptureOptions::default()).unwrap();
        println!("\ncaptured");
    }
}

/// Steps a thread, sends it a signal meanwhile if that is wanted, and holds the process until the end.
fn stepper() {
    let number = |name| std::env::var(name).unwrap().parse::<u32>().unwrap();
    let (pid, tid, at) = (number("WSTATE_TEST_PID"), number("WSTATE_TEST_TID"), number("WSTATE_TEST_SIGNAL_AT"));
    let mut seen = 0;
    let verdict = move |_: u64, _: &dyn Memory| {
        seen += 1;
        if seen == at {
            // SAFETY: tgkill touches no memory.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGRTMIN() + 1) };
        }
        if seen == 9 { Verdict::Point } else { Verdict::Step }
    };
    let steps = Steps { thread: ThreadId(tid), verdict: Box::new(verdict) };
    let held = Held::hold(pid, &CaptureOptions::default(), Some(steps)).unwrap();
    if std::env::var_os("WSTATE_TEST_BORROW").is_some() {
        let thread = held.borrow(ThreadId(tid)).unwrap();
        assert_eq!(thread.system_call(libc::SYS_getpid, [0; 6]), Ok(u64::from(pid)));
        thread.give_back().unwrap();
    }
    println!("\nheld {:?}", held.settled().unwrap().outcome);
    for _ in std::io::stdin().lock().lines() {}
}

struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    spinner: u32,
    shared: u64,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    fn spawn(command: &mut Command, role: &str) -> Peer {
        command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Peer { child, to, from, spinner: 0, shared: 0 }
    }

    fn command() -> Command {
        let mut c = Command::new(std::env::current_exe().unwrap());
        c.args(["process::live::tests::child", "--exact", "--ignored", "--nocapture"]);
        c
    }

    fn target() -> Peer {
        Peer::target_of(&mut Peer::command())
    }

    fn target_of(command: &mut Command) -> Peer {
        let mut peer = Peer::spawn(command, "target");
        let ready = peer.line("ready ");
        let (spinner, shared) = ready.split_once(' ').unwrap();
        peer.spinner = spinner.parse().unwrap();
        peer.shared = u64::from_str_radix(shared, 16).unwrap();
        peer
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self, prefix: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the peer has ended");
            if let Some(rest) = line.trim_end().strip_prefix(prefix) {
                return rest.to_string();
            }
        }
    }

    fn ask(&mut self, question: &str, prefix: &str) -> String {
        writeln!(self.to, "{question}").unwrap();
        self.line(prefix)
    }

    /// Number of signals that the peer has handled. Another of its threads may still be on the way into the handler,
    /// so this asks again until all signals are there or enough time has passed.
    fn counted(&mut self, want: u64) -> u64 {
        let begin = Instant::now();
        loop {
            let n = self.ask("count", "count ").parse().unwrap();
            if n == want || begin.elapsed() > Duration::from_secs(600) {
                return n;
            }
        }
    }

    fn capture(&self) -> LiveTarget {
        LiveTarget::capture(self.pid(), &CaptureOptions::default()).unwrap()
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill touches no memory.
        assert_eq!(unsafe { libc::kill(self.pid() as libc::pid_t, signal) }, 0);
    }

    fn stop(&self) {
        self.signal(libc::SIGSTOP);
        // SAFETY: siginfo_t is plain data, valid for writes.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let r = unsafe { libc::waitid(libc::P_PID, self.pid(), &mut info, libc::WSTOPPED | libc::WNOWAIT) };
        assert_eq!(r, 0);
        for tid in list_threads(self.pid()) {
            while thread_state(self.pid(), tid) != Some(b'T') {
                std::thread::yield_now();
            }
        }
    }

    fn states(&self) -> Vec<u8> {
        list_threads(self.pid()).into_iter().filter_map(|tid| thread_state(self.pid(), tid)).collect()
    }
}

#[test]
fn a_capture_has_all_threads_and_the_process_runs_on() {
    let mut peer = Peer::target();
    let live = peer.capture();
    assert!(!peer.states().contains(&b't') && !peer.states().contains(&b'T'));
    assert_eq!(peer.ask("ping 1", "ping"), " 1");

    let tids: Vec<u32> = live.threads().iter().map(|t| t.id.0).collect();
    let mut listed: Vec<u32> = list_threads(peer.pid()).into_iter().map(|t| t as u32).collect();
    listed.sort_by_key(|&t| (t != peer.pid(), t));
    assert_eq!(tids, listed);
    let names: Vec<_> = live.threads().iter().filter_map(|t| t.name.as_deref()).collect();
    assert!(["one", "two", "spinner"].iter().all(|n| names.contains(n)), "{names:?}");
    // There are more threads than files that are kept open for names, and all threads have their names.
    assert!(live.threads().len() > limits::MAX_OPEN_NAMES && live.threads().iter().all(|t| t.name.is_some()));
    for t in live.threads() {
        assert!(t.problem.is_none() && t.fs_base.is_some() && t.registers.get(x64::XMM15).is_some());
        let (pc, sp) = (t.registers.pc().unwrap(), t.registers.sp().unwrap());
        assert!(live.mapping_at(pc).is_some_and(|m| m.execute));
        assert!(live.captured.available(sp, 64) == 64, "its stack was copied");
        assert!(live.read_u64(sp).is_ok());
    }
    let spinner = live.threads().iter().find(|t| t.id.0 == peer.spinner).unwrap();
    assert_eq!(live.mapping_at(spinner.registers.pc().unwrap()).unwrap().path.as_deref(), live.executable());

    assert_eq!(live.read_vec(peer.shared, 16).unwrap(), b"0123456789abcdef");
    let mut large = vec![0; 2048];
    assert_eq!(live.read_some(peer.shared, &mut large), 2048);
    assert_eq!(&large[..16], b"0123456789abcdef");
    assert!(matches!(live.read_u64(8), Err(MemoryError::Unmapped { .. })));
    let hole = live.mappings().windows(2).find(|w| w[0].read && w[0].end < w[1].start).map(|w| w[0].end).unwrap();
    assert_eq!(live.read_some(hole - 100, &mut large), 100);
    assert!(live.pause() > Duration::ZERO);

    // Reads of a process that is gone fail. They do not return bytes of another process.
    drop(peer);
    assert!(matches!(live.read_u64(spinner.registers.pc().unwrap() & !0xfff), Err(MemoryError::Os { .. })));
}

/// Sends SIGCONT to a process as soon as its thread `tid` sleeps.
fn wake_up_asleep(pid: u32, tid: u32) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while thread_state(pid, tid as libc::pid_t) != Some(b'S') {
            std::thread::yield_now();
        }
        // SAFETY: kill touches no memory.
        assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGCONT) }, 0);
    })
}

/// Checks that no SIGTRAP of a step has come, and that the spinner, which would have got it, goes on.
fn is_unharmed(peer: &mut Peer) {
    let before: u64 = peer.ask("spun", "spun ").parse().unwrap();
    while peer.ask("spun", "spun ").parse::<u64>().unwrap() == before {}
    assert_eq!(peer.counted(0), 0);
}

#[test]
fn an_executable_that_was_deleted_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let inner = Peer::command();
    let mut command = Command::new(&copy);
    command.args(inner.get_args());
    let peer = Peer::target_of(&mut command);
    std::fs::remove_file(&copy).unwrap();
    let live = peer.capture();
    let objects = Objects::load(&live, &SearchPaths::default());
    let executable = objects.executable().unwrap();
    assert!(executable.path.to_string_lossy().ends_with("/copy (deleted)"));
    assert!(matches!(executable.data, Some(ObjectData::File(_))) && executable.problem.is_none());
    // Another file of that name must not be taken for the executable.
    std::fs::copy("/bin/true", &copy).unwrap();
    let objects = Objects::load(&live, &SearchPaths { executable: Some(copy.clone()), ..SearchPaths::default() });
    let executable = objects.executable().unwrap();
    assert_ne!(executable.opened.as_ref(), Some(&copy));
    assert!(executable.data.is_some());
    let what = &executable.problem.as_ref().unwrap().what;
    assert!(what.contains("is not the file that was loaded"), "{what}");
    // The right one was found, so nobody has to name it.
    let used = executable.opened.as_ref().unwrap().display();
    assert!(what.ends_with(&format!("; {used} is used instead")) && !what.contains("give the right one"), "{what}");
}
