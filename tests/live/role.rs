//! The processes that are looked at: this very binary run again.

use super::{states, until};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ROLE: &str = "WSTATE_LIVE_ROLE";
static ALARMS: AtomicU64 = AtomicU64::new(0);
static SENT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static HANDLED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static STOP_SENDING: AtomicBool = AtomicBool::new(false);
static MADE: AtomicU64 = AtomicU64::new(0);
/// Rounds of eight that only work and of those that check what system calls give.
static WORK: [AtomicU64; 14] = [const { AtomicU64::new(0) }; 14];
static WRONG: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
static SHORT: AtomicU64 = AtomicU64::new(0);

extern "C" fn alarm(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    ALARMS.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn handled(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Number and sum of the values that came: neither can be right by one lost and another doubled.
    HANDLED[0].fetch_add(1, Ordering::SeqCst);
    HANDLED[1].fetch_add(unsafe { (*info).si_value() }.sival_ptr as u64, Ordering::SeqCst);
}

fn on_signal(signal: libc::c_int, handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void)) {
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// A thread that no signal reaches and that says of each round of system calls whether it gave what it must.
fn check(index: usize, mut right: impl FnMut() -> bool + Send + 'static) {
    std::thread::spawn(move || {
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
        }
        loop {
            if !right() {
                // Bit by bit, so that the failing test tells which.
                WRONG.fetch_or(1 << index, Ordering::SeqCst);
            }
            WORK[index].fetch_add(1, Ordering::SeqCst);
        }
    });
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

const NAP: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 2_000_000 };
const NAP_TIME: Duration = Duration::from_millis(2);

/// Threads in system calls of every kind that signal(7) tells apart.
fn checked_system_calls() {
    // Restarted with the time that is left.
    check(8, || {
        let began = Instant::now();
        unsafe { libc::nanosleep(&NAP, std::ptr::null_mut()) == 0 && began.elapsed() >= NAP_TIME }
    });
    let (quiet, quiet_end) = std::io::pipe().expect("a pipe");
    let (fd, _keep) = (quiet.as_raw_fd(), Box::leak(Box::new((quiet, quiet_end))));
    check(9, move || {
        let began = Instant::now();
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        unsafe { libc::poll(&mut poll, 1, 2) == 0 && began.elapsed() >= NAP_TIME }
    });
    static WORD: AtomicU64 = AtomicU64::new(0);
    check(10, || {
        let began = Instant::now();
        let futex = unsafe { libc::syscall(libc::SYS_futex, &WORD, libc::FUTEX_WAIT, 0, &NAP, 0, 0) };
        futex == -1 && errno() == libc::ETIMEDOUT && began.elapsed() >= NAP_TIME
    });
    // The one that stops make fail: signal(7), "Interruption ... by stop signals".
    let epoll = unsafe { libc::epoll_create1(0) };
    check(11, move || {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let began = Instant::now();
        match unsafe { libc::epoll_wait(epoll, &mut event, 1, 2) } {
            0 => began.elapsed() >= NAP_TIME,
            -1 if errno() == libc::EINTR => INTERRUPTED.fetch_add(1, Ordering::SeqCst) < u64::MAX,
            _ => false,
        }
    });
    // A blocking read and a write of more than the pipe holds: no byte more or less.
    let (mut from, to) = std::io::pipe().expect("a pipe");
    let mut expected = 0_u8;
    check(12, move || {
        let mut bytes = [0; 10_007];
        let Ok(n) = from.read(&mut bytes) else { return false };
        let right = n > 0 && bytes[..n].iter().all(|&b| (b == expected, expected = expected.wrapping_add(1)).0);
        std::thread::sleep(Duration::from_micros(50));
        right
    });
    let block: Vec<u8> = (0..=255).cycle().take(1 << 17).collect();
    let (mut at, fd) = (0, to.as_raw_fd());
    Box::leak(Box::new(to));
    check(13, move || {
        let want = block.len() - at;
        let n = unsafe { libc::write(fd, block[at..].as_ptr().cast(), want) };
        SHORT.fetch_add(u64::from((0..want as isize).contains(&n)), Ordering::SeqCst);
        at = (at + n.max(0) as usize) % block.len();
        n > 0
    });
}

/// Not a test: ends when its stdin is closed.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    match role.as_str() {
        "busy" => {
            on_signal(libc::SIGALRM, alarm);
            on_signal(libc::SIGRTMIN(), handled);
            checked_system_calls();
            for work in &WORK[..8] {
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
                for n in 1.. {
                    while SENT[0].load(Ordering::SeqCst) >= HANDLED[0].load(Ordering::SeqCst) + 64
                        || STOP_SENDING.load(Ordering::SeqCst)
                    {
                        std::thread::yield_now();
                    }
                    let value = libc::sigval { sival_ptr: n as *mut libc::c_void };
                    SENT[0].fetch_add(1, Ordering::SeqCst);
                    SENT[1].fetch_add(n, Ordering::SeqCst);
                    assert_eq!(unsafe { libc::sigqueue(libc::getpid(), libc::SIGRTMIN(), value) }, 0);
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
        // A thread waits, as in posix_spawn, for a child that shares its memory.
        "vfork" => {
            let parent = std::thread::Builder::new().name("parent".to_string());
            let thread = parent.spawn(|| {
                extern "C" fn child(_: *mut libc::c_void) -> libc::c_int {
                    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                    loop {
                        unsafe { libc::pause() };
                    }
                }
                let stack = Box::leak(vec![0_u128; 1 << 14].into_boxed_slice()).as_mut_ptr_range().end;
                let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
                unsafe { libc::clone(child, stack.cast(), flags, std::ptr::null_mut()) };
                MADE.fetch_add(1, Ordering::SeqCst);
            });
            thread.expect("a thread");
        }
        // The main thread ends and the others go on.
        "leaderless" => {
            extern "C" fn end(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
                unsafe { libc::syscall(libc::SYS_exit, 0) };
            }
            on_signal(libc::SIGUSR1, end);
            std::thread::spawn(native_outer);
            std::thread::spawn(serve);
            let main = unsafe { libc::getpid() };
            // The harness may run this on another thread, or on this one.
            unsafe { libc::syscall(libc::SYS_tgkill, main, main, libc::SIGUSR1) };
            native_inner();
        }
        // Several threads at the same known place, and no Wasm.
        "threads" => {
            for n in 0..4 {
                let name = format!("sleeper {n}");
                std::thread::Builder::new().name(name).spawn(native_outer).expect("a thread");
            }
        }
        // Threads that wait in one system call each, and one that runs outside of all of them.
        "states" => {
            let start = |name: &str, work: fn()| {
                std::thread::Builder::new().name(name.to_string()).spawn(work).expect("a thread");
            };
            start("in sleep", native_inner);
            start("in futex", || {
                loop {
                    std::thread::park();
                }
            });
            start("in read", || {
                let (mut from, to) = std::io::pipe().expect("a pipe");
                Box::leak(Box::new(to));
                let _ = from.read(&mut [0]);
            });
            start("in epoll", || unsafe {
                let events = libc::epoll_create1(0);
                let mut event: libc::epoll_event = std::mem::zeroed();
                loop {
                    libc::epoll_wait(events, &mut event, 1, -1);
                }
            });
            start("in user", || {
                loop {
                    std::hint::black_box(0);
                }
            });
        }
        other => panic!("no role {other}"),
    }
    serve();
}

fn serve() {
    println!("\nROLE ready");
    let load = |n: &AtomicU64| n.load(Ordering::SeqCst);
    for line in std::io::stdin().lines().map_while(Result::ok) {
        if line == "stop" {
            STOP_SENDING.store(true, Ordering::SeqCst);
        }
        let counters = Counters {
            work: WORK.iter().map(load).collect(),
            alarms: load(&ALARMS),
            handled: HANDLED.each_ref().map(load),
            sent: SENT.each_ref().map(load),
            made: load(&MADE),
            wrong: load(&WRONG),
            interrupted: load(&INTERRUPTED),
            short: load(&SHORT),
        };
        println!("\nROLE {}", serde_json::to_string(&counters).expect("numbers"));
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
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Counters {
    pub work: Vec<u64>,
    pub alarms: u64,
    /// Queued signals: their number and the sum of their values.
    pub sent: [u64; 2],
    pub handled: [u64; 2],
    pub made: u64,
    /// A bit for each index into `work` with a system call that gave what it must not.
    pub wrong: u64,
    /// Waits for events that failed with EINTR.
    pub interrupted: u64,
    /// Writes that wrote less than they were given.
    pub short: u64,
}

pub struct Role {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Role {
    pub fn start(role: &str) -> Role {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["role::role", "--exact", "--nocapture", "--test-threads", "1"]).env(ROLE, role);
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

    pub fn pid(&self) -> u32 {
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

    pub fn ask(&mut self, question: &str) -> Counters {
        writeln!(self.stdin, "{question}").expect("the process reads");
        serde_json::from_str(&self.answer()).expect("numbers")
    }

    /// That each signal which was sent arrives once, and no system call gave a wrong result.
    pub fn assert_unharmed(&mut self) -> Counters {
        self.ask("stop");
        let mut last = None;
        until("a queued signal was lost or doubled", || {
            let now = self.ask("counters");
            let equal = now.sent == now.handled;
            last = Some(now);
            equal
        });
        let last = last.expect("an answer");
        assert_eq!(last.wrong, 0, "{last:?}");
        last
    }

    /// That no thread is stopped and every counter goes on.
    pub fn assert_runs(&mut self, what: &str) {
        until(&format!("{what}: a thread is stopped"), || {
            states(self.child.id()).iter().all(|s| !matches!(s, 't' | 'T'))
        });
        let before = self.ask("counters");
        until(&format!("{what}: a counter stands still, {before:?}"), || {
            let now = self.ask("counters");
            now.alarms > before.alarms
                && now.handled > before.handled
                && now.work.iter().zip(&before.work).all(|(now, before)| now > before)
        });
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
