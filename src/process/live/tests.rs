use super::super::core::CoreTarget;
use super::super::objects::{ObjectData, Objects, SearchPaths};
use super::general::GeneralRegisters;
use super::held::{Held, Steps};
use super::proc::{list_threads, strangers, thread_state};
use super::stacks::Plan;
use super::stop::until_quiet;
use super::system::ptrace;
use super::*;
use crate::arch::x64;

mod reread;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
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

#[test]
fn pages_that_are_not_there_are_zero_in_private_memory_alone() {
    let maps = "\
10000-20000 rw-p 00000000 00:00 0
20000-30000 rw-p 00000000 00:00 0                        [anon:heap]
30000-40000 ---p 00000000 00:00 0
50000-60000 rw-s 00000000 00:01 153                      /dev/zero (deleted)
60000-70000 rw-s 00000000 00:01 154                      [anon_shmem:pool]
70000-80000 rw-p 00000000 fe:00 77                       /srv/data
80000-90000 rw-p 00000000 00:00 0                        [heap]
";
    let maps = parse_maps(maps.as_bytes());
    for (start, end, private) in [
        (0x10000, 0x20000, true),
        (0x18000, 0x30000, true),
        (0x10000, 0x30001, false),
        (0x30000, 0x40000, false),
        (0x0f000, 0x11000, false),
        (0x50000, 0x51000, false),
        (0x60000, 0x61000, false),
        (0x70000, 0x71000, false),
        (0x88000, 0x90000, true),
        (0x88000, 0x90001, false),
        (0xa0000, 0xb0000, false),
    ] {
        assert_eq!(are_private(&maps, start, end), private, "{start:#x}-{end:#x}");
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

#[test]
fn a_stopped_process_stays_stopped() {
    let mut peer = Peer::target();
    peer.stop();
    let live = peer.capture();
    assert!(live.threads().len() >= 4 && live.threads().iter().all(|t| t.registers.pc().is_some()));
    while peer.states().iter().any(|&s| s != b'T') {
        std::thread::yield_now();
    }
    peer.signal(libc::SIGCONT);
    assert_eq!(peer.ask("ping 2", "ping"), " 2");
}

#[test]
fn signals_that_arrive_during_captures_are_not_lost() {
    let mut peer = Peer::target();
    let real_time = libc::SIGRTMIN() + 1;
    let (pid, n) = (peer.pid(), 3000u64);
    let sender = std::thread::spawn(move || {
        for _ in 0..n {
            // SAFETY: kill touches no memory.
            unsafe { libc::kill(pid as libc::pid_t, real_time) };
            std::thread::yield_now();
        }
    });
    let mut held = 0;
    while !sender.is_finished() {
        held += peer.capture().threads().iter().filter(|t| t.signal == Some(real_time)).count();
    }
    sender.join().unwrap();
    assert_eq!(peer.counted(n), n, "{held} captures met a signal");
}

#[test]
fn a_signal_that_arrives_before_the_interrupt_is_delivered_in_any_case() {
    // Between seize and interrupt the thread can stop for a signal. It must get that signal when it is let go, and
    // also when the tracer ends without letting it go.
    for let_go in [true, false] {
        let mut peer = Peer::target();
        let (pid, tid, signal) = (peer.pid(), peer.pid() as libc::pid_t, libc::SIGRTMIN() + 1);
        let tracer = std::thread::spawn(move || {
            let mut stopped = Stopped::none(pid);
            ptrace(libc::PTRACE_SEIZE, tid, 0, 0).unwrap();
            // SAFETY: tgkill touches no memory.
            assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, tid, tid, signal) }, 0);
            while thread_state(pid, tid) != Some(b't') {
                std::thread::yield_now();
            }
            ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0).unwrap();
            assert_eq!(stopped.wait_for(vec![tid], Duration::from_secs(10)), 0);
            assert_eq!(stopped.threads[0].held, signal);
            assert_eq!(stopped.threads[0].registers(None).signal, Some(signal));
            if let_go {
                stopped.release();
            }
            std::mem::forget(stopped);
        });
        tracer.join().unwrap();
        assert_eq!(peer.counted(1), 1, "let go: {let_go}");
    }
}

#[test]
fn threads_that_run_are_stopped_before_those_that_sleep() {
    let peer = Peer::target();
    let pid = peer.pid();
    // While the spinner runs, each thread that has to wake up in order to stop may have to wait for it.
    let spinner = peer.spinner as libc::pid_t;
    while list_threads(pid).iter().any(|&tid| tid != spinner && thread_state(pid, tid) != Some(b'S')) {
        std::thread::yield_now();
    }
    let order = on_own_thread(pid, || {
        let stopped = Stopped::all(pid, &CaptureOptions::default())?;
        Ok(stopped.threads.iter().map(|t| t.tid).collect::<Vec<_>>())
    });
    let order = order.unwrap();
    assert_eq!(order.len(), 5);
    assert_eq!(order.iter().position(|&tid| tid == spinner), Some(0), "{spinner} in {order:?}");
}

#[test]
fn a_tracer_that_is_killed_leaves_the_process_and_its_signals_alone() {
    let mut peer = Peer::target();
    let mut sent = 0;
    for round in 0..8 {
        let mut tracer = Peer::spawn(Peer::command().env("WSTATE_TEST_PID", peer.pid().to_string()), "tracer");
        for _ in 0..=round {
            tracer.line("captured");
            for _ in 0..20 {
                peer.signal(libc::SIGRTMIN() + 1);
                sent += 1;
            }
        }
        drop(tracer);
        assert_eq!(peer.counted(sent), sent);
    }
    assert!(!peer.states().contains(&b't'));
}

#[test]
fn stepping_ends_at_the_point_and_the_thread_goes_on() {
    let mut peer = Peer::target();
    let tid = ThreadId(peer.spinner);
    let options = CaptureOptions::default();
    let mut seen = Vec::new();
    let mut verdict = |pc, memory: &dyn Memory| {
        assert!(memory.read_u32(pc).is_ok());
        seen.push(pc);
        if seen.len() == 6 { Verdict::Point } else { Verdict::Step }
    };
    let (live, report) = LiveTarget::settle(peer.pid(), tid, 64, &options, &mut verdict).unwrap();
    assert_eq!(report, SettleReport { steps: 5, outcome: Settled::Point });
    let spinner = live.threads().iter().find(|t| t.id == tid).unwrap();
    assert_eq!(spinner.registers.pc(), seen.last().copied());
    assert!(seen.windows(2).any(|w| w[0] != w[1]), "{seen:x?}");

    let mut never = |_: u64, _: &dyn Memory| Verdict::Step;
    let (_, report) = LiveTarget::settle(peer.pid(), tid, 10, &options, &mut never).unwrap();
    assert_eq!(report, SettleReport { steps: 10, outcome: Settled::Limit });
    let (_, report) = LiveTarget::settle(peer.pid(), tid, usize::MAX, &options, &mut never).unwrap();
    assert_eq!(report, SettleReport { steps: limits::MAX_SETTLE_STEPS, outcome: Settled::Limit });
    let steps = Steps { thread: tid, verdict: Box::new(|_, _| Verdict::Step) };
    let held = Held::hold(peer.pid(), &options, Some(steps)).unwrap();
    let report = SettleReport { steps: limits::MAX_SNAPSHOT_STEPS, outcome: Settled::Limit };
    assert_eq!(held.settled(), Some(report));
    drop(held);
    let mut outside = |_: u64, _: &dyn Memory| Verdict::Outside;
    let (_, report) = LiveTarget::settle(peer.pid(), tid, 10, &options, &mut outside).unwrap();
    assert_eq!(report, SettleReport { steps: 0, outcome: Settled::Left });
    // The main thread waits in read(2).
    let (_, report) = LiveTarget::settle(peer.pid(), ThreadId(peer.pid()), 10, &options, &mut never).unwrap();
    assert!(matches!((report.steps, report.outcome), (0, Settled::Refused(_))), "{report:?}");

    let before: u64 = peer.ask("spun", "spun ").parse().unwrap();
    while peer.ask("spun", "spun ").parse::<u64>().unwrap() == before {}
}

#[test]
fn a_stepper_that_is_killed_while_it_holds_leaves_the_process_and_its_signals_alone() {
    for (signal_at, borrow) in [(0, false), (4, false), (0, true)] {
        let mut peer = Peer::target();
        let mut command = Peer::command();
        command.env("WSTATE_TEST_PID", peer.pid().to_string()).env("WSTATE_TEST_TID", peer.spinner.to_string());
        command.env("WSTATE_TEST_SIGNAL_AT", signal_at.to_string());
        command.envs(borrow.then_some(("WSTATE_TEST_BORROW", "1")));
        let mut stepper = Peer::spawn(&mut command, "stepper");
        let outcome = stepper.line("held ");
        let (wanted, signals) = match signal_at {
            0 => ("Point".to_string(), 0),
            _ => (format!("Signal({})", libc::SIGRTMIN() + 1), 1),
        };
        assert_eq!(outcome, wanted);
        drop(stepper);
        let before: u64 = peer.ask("spun", "spun ").parse().unwrap();
        while peer.ask("spun", "spun ").parse::<u64>().unwrap() == before {}
        assert_eq!(peer.counted(signals), signals);
    }
}

#[test]
fn signals_that_come_while_a_thread_is_borrowed_are_not_lost_and_disturb_nothing() {
    let send = |pid: u32, tid: u32, signal: libc::c_int| {
        // SAFETY: tgkill touches no memory.
        assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }, 0);
    };
    for keep in [false, true] {
        let mut peer = Peer::target();
        let (pid, tid) = (peer.pid(), peer.spinner);
        let double = u64::from_str_radix(&peer.ask("double", "double "), 16).unwrap();
        let held = Held::hold(pid, &CaptureOptions::default(), None).unwrap();
        let thread = held.borrow(ThreadId(tid)).unwrap();
        let sp = held.target().threads().iter().find(|t| t.id.0 == tid).unwrap().registers.sp().unwrap();
        let who = || thread.system_call(libc::SYS_getpid, [0; 6]);
        let call = || thread.call(double, [21, 0, 0], (sp - 4096) & !15);
        // SIGSEGV and SIGTRAP are the signals that report the end of a call and of a step.
        for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGTRAP, libc::SIGSTOP] {
            send(pid, tid, signal);
            assert_eq!(who(), Ok(u64::from(pid)), "signal {signal}");
            send(pid, tid, signal);
            assert_eq!(call(), Ok(42), "signal {signal}");
        }
        // SIGCONT takes back only a stop that the kernel knows of.
        assert!(thread.others.borrow().iter().all(|info| info.signal() != libc::SIGSTOP));
        send(pid, tid, libc::SIGCONT);
        assert_eq!((who(), call()), (Ok(u64::from(pid)), Ok(42)));
        send(pid, tid, libc::SIGSTOP);
        assert_eq!((who(), call()), (Ok(u64::from(pid)), Ok(42)));
        if keep {
            let now = held.target().threads().iter().find(|t| t.id.0 == tid).unwrap().registers.clone();
            thread.set_registers(now.pc().unwrap(), |reg| now.get(reg)).unwrap();
            thread.keep().unwrap();
        } else {
            thread.give_back().unwrap();
        }
        held.release();
        // The last SIGSTOP was not taken back.
        while peer.states().iter().any(|&s| s != b'T') {
            std::thread::yield_now();
        }
        peer.signal(libc::SIGCONT);
        assert_eq!(peer.counted(3), 3);
        let before: u64 = peer.ask("spun", "spun ").parse().unwrap();
        while peer.ask("spun", "spun ").parse::<u64>().unwrap() == before {}
    }
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
fn a_step_whose_end_is_told_late_leaves_no_signal_behind() {
    // If the system call is interrupted, the step over it ends with a SIGTRAP that is queued behind the stop which
    // reports the interruption. pause would be made again, rt_sigtimedwait returns EINTR.
    let restarts = SettleReport { steps: 0, outcome: Settled::Refused(Refusal::NoEnd) };
    let returns = SettleReport { steps: 1, outcome: Settled::Point };
    for (number, wake_up, report) in [
        (libc::SYS_pause, true, restarts),
        (libc::SYS_rt_sigtimedwait, true, returns),
        (libc::SYS_rt_sigtimedwait, false, restarts),
    ] {
        let mut peer = Peer::target();
        let (pid, tid) = (peer.pid(), peer.spinner);
        let stepped = on_own_thread(pid, || {
            let mut stopped = Stopped::all(pid, &CaptureOptions::default())?;
            let maps = parse_maps(&std::fs::read(format!("/proc/{pid}/maps")).unwrap());
            let vdso = maps.iter().find(|m| m.path.as_deref() == Some(Path::new("[vdso]"))).unwrap().start;
            let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
            let mut code = [0; 0x1000];
            mem.read_exact_at(&mut code, vdso).unwrap();
            let call = vdso + code.windows(2).position(|w| w == [0x0f, 0x05]).unwrap() as u64;
            let id = tid as libc::pid_t;
            let saved = GeneralRegisters::read(id).unwrap().unwrap();
            let mut registers = saved.clone();
            // The call waits for an empty set of signals: these eight bytes of an ELF header are zero.
            assert_eq!(code[8..16], [0; 8]);
            for (reg, value) in [
                (x64::RIP, call),
                (x64::RAX, number as u64),
                (x64::RDI, vdso + 8),
                (x64::RSI, 0),
                (x64::RDX, 0),
                (x64::R10, 8),
            ] {
                registers.set(reg, value);
            }
            registers.write(id).unwrap();
            let waker = wake_up.then(|| wake_up_asleep(pid, tid));
            let mut verdict = |pc: u64, _: &dyn Memory| if pc == call { Verdict::Step } else { Verdict::Point };
            let report = stopped.step(ThreadId(tid), 10, &mut verdict);
            waker.into_iter().for_each(|w| w.join().unwrap());
            assert!(stopped.threads.iter().all(|t| t.held == 0));
            saved.write(id).unwrap();
            report
        });
        assert_eq!(stepped.unwrap(), report, "{number} {wake_up}");
        is_unharmed(&mut peer);
    }
}

#[test]
fn an_injected_system_call_that_is_interrupted_leaves_no_signal_behind() {
    let mut peer = Peer::target();
    let (pid, tid) = (peer.pid(), peer.spinner);
    let held = Held::hold(pid, &CaptureOptions::default(), None).unwrap();
    let thread = held.borrow(ThreadId(tid)).unwrap();
    let waker = wake_up_asleep(pid, tid);
    assert!(thread.system_call(libc::SYS_pause, [0; 6]).is_err());
    waker.join().unwrap();
    assert_eq!(thread.system_call(libc::SYS_getpid, [0; 6]), Ok(u64::from(pid)));
    thread.give_back().unwrap();
    held.release();
    is_unharmed(&mut peer);
}

#[test]
fn a_signal_ends_steps_if_the_process_handles_it() {
    for handles in [false, true] {
        let mut command = Peer::command();
        command.envs(handles.then_some(("WSTATE_TEST_HANDLES_CONT", "1")));
        let mut peer = Peer::target_of(&mut command);
        let (pid, tid, options) = (peer.pid(), ThreadId(peer.spinner), CaptureOptions::default());
        let mut seen = 0;
        let mut verdict = |_: u64, _: &dyn Memory| {
            seen += 1;
            if seen == 4 {
                peer.signal(libc::SIGCONT);
            }
            Verdict::Step
        };
        let (_, report) = LiveTarget::settle(pid, tid, 10, &options, &mut verdict).unwrap();
        let (steps, outcome) = if handles { (3, Settled::Signal(libc::SIGCONT)) } else { (10, Settled::Limit) };
        assert_eq!(report, SettleReport { steps, outcome });
        assert_eq!(peer.counted(u64::from(handles)), u64::from(handles));
    }
}

#[test]
fn a_flood_of_sigcont_neither_ends_steps_nor_makes_signals_of_them() {
    let mut peer = Peer::target();
    let (pid, tid, options) = (peer.pid(), ThreadId(peer.spinner), CaptureOptions::default());
    let double = u64::from_str_radix(&peer.ask("double", "double "), 16).unwrap();
    let (done, progress) = (std::sync::atomic::AtomicBool::new(false), AtomicU64::new(0));
    let go_on = || {
        // SAFETY: kill touches no memory.
        assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGCONT) }, 0);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // So many signals without a pause would never let the thread make a step.
            while !done.load(Ordering::Relaxed) {
                let before = progress.load(Ordering::Relaxed);
                (0..20).for_each(|_| go_on());
                while progress.load(Ordering::Relaxed) == before && !done.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
        });
        // However this test ends, the flood of signals ends with it.
        struct Done<'a>(&'a std::sync::atomic::AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _done = Done(&done);
        for _ in 0..100 {
            // At least one SIGCONT comes before every step.
            let mut verdict = |_: u64, _: &dyn Memory| {
                go_on();
                progress.fetch_add(1, Ordering::Relaxed);
                Verdict::Step
            };
            let (_, report) = LiveTarget::settle(pid, tid, 20, &options, &mut verdict).unwrap();
            assert_eq!(report, SettleReport { steps: 20, outcome: Settled::Limit });
        }
        for _ in 0..20 {
            let held = Held::hold(pid, &options, None).unwrap();
            let sp = held.target().threads().iter().find(|t| t.id == tid).unwrap().registers.sp().unwrap();
            let thread = held.borrow(tid).unwrap();
            for _ in 0..100 {
                progress.fetch_add(1, Ordering::Relaxed);
                assert_eq!(thread.system_call(libc::SYS_getpid, [0; 6]), Ok(u64::from(pid)));
                progress.fetch_add(1, Ordering::Relaxed);
                assert_eq!(thread.call(double, [21, 0, 0], (sp - 4096) & !15), Ok(42));
            }
            thread.give_back().unwrap();
        }
    });
    is_unharmed(&mut peer);
}

#[test]
fn a_thread_with_seccomp_is_not_borrowed() {
    for (mode, what) in [("filter", "a seccomp filter decides"), ("strict", "it is in seccomp's strict mode")] {
        let peer = Peer::target_of(Peer::command().env("WSTATE_TEST_SECCOMP", mode));
        let held = Held::hold(peer.pid(), &CaptureOptions::default(), None).unwrap();
        let why = held.borrow(ThreadId(peer.spinner)).err().unwrap();
        assert!(why.starts_with(what), "{why}");
    }
}

#[test]
fn rounds_and_copies_have_an_end() {
    let mut rounds = 0;
    let quiet = until_quiet(|| {
        rounds += 1;
        false
    });
    assert_eq!((quiet, rounds), (false, limits::MAX_STOP_ROUNDS));
    assert!(until_quiet(|| true));

    let CaptureOptions { max_stack, max_total, .. } = CaptureOptions::default();
    let (mut plan, mut budget) = (Plan::default(), max_total);
    let stacks = (limits::MAX_CAPTURE_TOTAL / limits::MAX_STACK_CAPTURE) as usize + 1;
    for _ in 0..stacks {
        assert!(plan.add(0x1000, u64::MAX, max_stack, &mut budget));
    }
    assert!(plan.ranges.iter().all(|r| r.1 as u64 <= limits::MAX_STACK_CAPTURE));
    assert_eq!(plan.ranges.iter().map(|r| r.1 as u64).sum::<u64>(), limits::MAX_CAPTURE_TOTAL);
}

#[test]
fn the_stack_behind_an_alternate_stack_is_copied() {
    let mut peer = Peer::target();
    let local = u64::from_str_radix(&peer.ask("alternate", "local "), 16).unwrap();
    peer.line("parked");
    // The used end of the stack is copied, however little of a stack may be copied.
    for max_stack in [CaptureOptions::default().max_stack, 0x8000] {
        let options = CaptureOptions { max_stack, ..CaptureOptions::default() };
        let live = LiveTarget::capture(peer.pid(), &options).unwrap();
        let mut words = [0; 32];
        live.captured.read(local, &mut words).unwrap();
        assert_eq!(words, [0xed, 0x5e].repeat(16)[..], "{max_stack:#x}");
    }
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
    assert!(executable.problem.as_deref().is_some_and(|p| p.contains("is not the file that was loaded")));
}

fn refused(pid: u32) -> String {
    match LiveTarget::capture(pid, &CaptureOptions::default()) {
        Ok(_) => panic!("captured"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn threads_that_were_not_seen_are_told() {
    let peer = Peer::target();
    let live = peer.capture();
    assert!(strangers(peer.pid(), live.threads()).is_empty());
    let (last, rest) = live.threads().split_last().unwrap();
    assert_eq!(strangers(peer.pid(), rest), [last.id.0]);
}

#[test]
fn what_cannot_be_captured_is_explained() {
    assert!(refused(0).contains("no such process id"));
    assert!(refused(std::process::id()).contains("itself"));
    let mut peer = Peer::target();
    let thread = LiveTarget::capture(peer.spinner, &CaptureOptions::default()).unwrap();
    assert_eq!(thread.pid(), Some(peer.pid()), "a thread id means its process");

    peer.signal(libc::SIGKILL);
    while thread_state(peer.pid(), peer.pid() as libc::pid_t) != Some(b'Z') || list_threads(peer.pid()).len() > 1 {
        std::thread::yield_now();
    }
    assert!(refused(peer.pid()).contains("zombie"));
    peer.child.wait().unwrap();
    assert!(refused(peer.pid()).contains("no such process"));
}

#[test]
fn another_tracer_is_named() {
    let peer = Peer::target();
    let stopped = Stopped::all(peer.pid(), &CaptureOptions::default()).unwrap();
    let message = refused(peer.pid());
    assert!(message.contains(&format!("process {} (", std::process::id())), "{message}");
    drop(stopped);
    peer.capture();
}

fn same_as_live(live: &LiveTarget, core: &CoreTarget) {
    assert_eq!(core.pid(), Some(live.pid));
    assert_eq!(core.executable(), live.executable());
    let ids = |t: &dyn Target| t.threads().iter().map(|t| t.id).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(core), ids(live));
    for thread in live.threads() {
        let other = core.threads().iter().find(|t| t.id == thread.id).unwrap();
        assert_eq!(other.fs_base, thread.fs_base);
        for reg in [x64::RBX, x64::RBP, x64::R12, x64::R13, x64::R14, x64::R15, x64::XMM1, x64::XMM15] {
            assert_eq!(other.registers.get(reg), thread.registers.get(reg), "{reg} of {:?}", thread.id);
        }
        let sp = thread.registers.sp().unwrap();
        assert_eq!(other.registers.sp(), Some(sp));
        assert_eq!(core.read_vec(sp, 256).unwrap(), live.read_vec(sp, 256).unwrap());
        let pc = thread.registers.pc().unwrap();
        // Code is in the core if gdb wrote it. If the kernel wrote it, code comes from the file on disk.
        assert_eq!(core.read_vec(pc, 8).unwrap(), live.read_vec(pc, 8).unwrap());
    }
    let search = SearchPaths::default();
    let (ours, theirs) = (Objects::load(live, &search), Objects::load(core, &search));
    let show = |objects: &Objects| -> Vec<String> {
        objects
            .iter()
            .map(|o| format!("{} {:x} {:?} {:?} {:?}", o.name(), o.bias, o.build_id, o.data.is_some(), o.problem))
            .collect()
    };
    assert_eq!(show(&ours), show(&theirs));
    assert_eq!(ours.executable().map(|o| o.path.clone()), live.executable);
    assert!(ours.iter().any(|o| o.name() == "[vdso]" && matches!(o.data, Some(ObjectData::Memory(_)))));
    for object in ours.iter() {
        assert!(object.problem.is_none(), "{:?}", object.problem);
        assert!(object::File::parse(&**object.data.as_ref().unwrap()).is_ok());
    }
}

/// The first bytes of a core, up to the given length.
struct Front(Arc<crate::process::files::Mapped>, usize);

impl AsRef<[u8]> for Front {
    fn as_ref(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

/// Cuts a core at many places, and returns the largest number of threads that a cut core has.
fn most_threads_of_cut(path: &Path) -> usize {
    let whole = Arc::new(super::super::files::map_file(path).unwrap());
    let mut most = 0;
    for i in 1..64 {
        let front = Front(whole.clone(), whole.len() * i / 64);
        let core = CoreTarget::from_bytes(path, Arc::new(front), &SearchPaths::default()).unwrap();
        assert!(core.notes().iter().any(|n| n.contains("cut off")), "{i}");
        let objects = Objects::load(&core, &SearchPaths::default());
        assert_eq!(objects.executable().is_some(), core.executable().is_some());
        most = most.max(core.threads().len());
    }
    most
}

#[test]
fn a_debuggers_core_equals_the_live_view() {
    let dir = tempfile::tempdir().unwrap();
    let peer = Peer::target();
    peer.stop();
    let live = peer.capture();
    let prefix = dir.path().join("core");
    let made = Command::new("gcore").arg("-o").arg(&prefix).arg(peer.pid().to_string()).output();
    let made = made.expect("this test needs gdb's gcore");
    let path = dir.path().join(format!("core.{}", peer.pid()));
    assert!(path.exists(), "gcore: {}", String::from_utf8_lossy(&made.stderr));
    let core = CoreTarget::open(&path, &SearchPaths::default()).unwrap();
    same_as_live(&live, &core);
    assert_eq!(core.read_vec(peer.shared, 16).unwrap(), b"0123456789abcdef");

    // gdb writes its notes behind the memory, so every cut core has lost them.
    assert_eq!(most_threads_of_cut(&path), 0);
}

#[test]
fn a_kernel_core_equals_the_live_view() {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if pattern.trim() != "core" {
        println!("not tested: kernel cores go to {pattern}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.arg("-c").arg("ulimit -c unlimited && exec \"$0\" \"$@\"").current_dir(dir.path());
    let inner = Peer::command();
    command.arg(inner.get_program()).args(inner.get_args());
    let mut peer = Peer::target_of(&mut command);
    peer.stop();
    let live = peer.capture();
    let shared = live.read_vec(peer.shared, 16).unwrap();
    let objects = Objects::load(&live, &SearchPaths::default());
    assert!(objects.executable().is_some());
    peer.signal(libc::SIGABRT);
    // Reads now what the process cannot answer any more when it is dead.
    let text: Vec<(u64, Vec<u8>)> =
        live.threads().iter().filter_map(|t| t.registers.pc()).map(|pc| (pc, live.read_vec(pc, 8).unwrap())).collect();
    peer.signal(libc::SIGCONT);
    peer.child.wait().unwrap();
    let path = ["core".to_string(), format!("core.{}", peer.pid())].map(|n| dir.path().join(n));
    let path = path.iter().find(|p| p.exists()).expect("the kernel wrote no core");
    let core = CoreTarget::open(path, &SearchPaths::default()).unwrap();
    assert_eq!(core.threads().iter().filter(|t| t.signal == Some(libc::SIGABRT)).count(), 1);
    assert_eq!(core.threads()[0].signal, Some(libc::SIGABRT));
    assert_eq!((core.pid(), core.executable()), (live.pid(), live.executable()));
    for thread in live.threads().iter().filter(|t| t.id.0 != peer.spinner) {
        let other = core.threads().iter().find(|t| t.id == thread.id).unwrap();
        assert_eq!((other.fs_base, other.registers.sp()), (thread.fs_base, thread.registers.sp()));
        let sp = thread.registers.sp().unwrap();
        let mut copied = [0; 256];
        live.captured.read(sp, &mut copied).unwrap();
        assert_eq!(core.read_vec(sp, 256).unwrap(), copied);
    }
    for (pc, bytes) in text {
        assert_eq!(core.read_vec(pc, 8).unwrap(), bytes);
    }
    assert_eq!(core.read_vec(peer.shared, 16).unwrap(), shared);
    let theirs = Objects::load(&core, &SearchPaths::default());
    let show = |objects: &Objects| -> Vec<String> {
        objects
            .iter()
            .map(|o| format!("{} {:x} {:?} {:?} {:?}", o.name(), o.bias, o.build_id, o.data.is_some(), o.problem))
            .collect()
    };
    assert_eq!(show(&objects), show(&theirs));
    assert_eq!(most_threads_of_cut(path), core.threads().len());
}

#[test]
fn lines_of_maps() {
    let text = b"00400000-00401000 r-xp 00002000 08:02 17 /usr/bin/a b (deleted)\n\
        7ffe0000-7fff0000 rw-p 00000000 00:00 0                          [stack]\n\
        7fff1000-7fff2000 ---s 00000000 00:00 0 \nnonsense\n\
        7fff3000-7fff4000 r--p 00000000 08:02 17                         /x\\012y\n";
    let maps = parse_maps(text);
    let show: Vec<String> = maps
        .iter()
        .map(|m| format!("{:x} {:x} {}{}{} {:x} {:?}", m.start, m.end, m.read, m.write, m.execute, m.offset, m.path))
        .collect();
    assert_eq!(
        show,
        [
            "400000 401000 truefalsetrue 2000 Some(\"/usr/bin/a b (deleted)\")",
            "7ffe0000 7fff0000 truetruefalse 0 Some(\"[stack]\")",
            "7fff1000 7fff2000 falsefalsefalse 0 None",
            "7fff3000 7fff4000 truefalsefalse 0 Some(\"/x\\ny\")",
        ]
    );
}
