//! A live process: all its threads are stopped for a moment, registers and used stacks are copied, and it runs on. What
//! else is read later comes from the running process.
//!
//! Nothing is ever written to the process, and it is seized, not attached: if this program dies at any instant, the
//! kernel lets every thread go on as if nothing had been. Two details carry that promise. Stops are looked at with
//! `WNOWAIT`: a consumed stop has lost the signal it was about (`wait_task_stopped` clears `exit_code`), and with it the
//! signal would be lost if we died before the detach. And all of it happens on a thread of its own, whose end detaches
//! what could not be detached, such as a thread in uninterruptible sleep that would otherwise stop much later and
//! wait for us. [`LiveTarget::settle`] is the exception, see there.
//!
//! As with any debugger, a few system calls (epoll_wait, semtimedop, ...) see EINTR where they were interrupted:
//! signal(7), "Interruption of system calls and library functions by stop signals". A blocking write that has written a
//! part returns with it. All others go on as if nothing had been, sleeps with the time that was left.
#![allow(unsafe_code)]

pub mod held;
pub mod inject;
mod unstopped;

use super::memory::{Content, Holder, PageCache, Piece, Splice};
use super::notes::{parse_auxv, without_deleted};
use super::{Mapping, Memory, MemoryError, Target, Thread, ThreadId};
use crate::arch::x64::{USER_REGS_ORIG_RAX, USER_REGS_WORDS};
use crate::arch::{Reg, Registers};
use crate::error::Error;
use crate::limits;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a capture may cost.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Bytes of one thread's stack that are copied.
    pub max_stack: u64,
    /// Bytes of all stacks together.
    pub max_total: u64,
    /// How long to wait for threads that do not stop. Threads in uninterruptible sleep are given up earlier.
    pub stop_timeout: Duration,
}

impl Default for CaptureOptions {
    fn default() -> CaptureOptions {
        CaptureOptions {
            max_stack: limits::MAX_STACK_CAPTURE,
            max_total: limits::MAX_CAPTURE_TOTAL,
            stop_timeout: Duration::from_secs(2),
        }
    }
}

/// What the caller of [`LiveTarget::settle`] says about the instruction that would be executed next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A point: stop here.
    Point,
    /// Code that can be stepped through.
    Step,
    /// Not the caller's code (a callee, the runtime): do not step any further.
    Outside,
}

/// How [`LiveTarget::settle`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// At a point.
    Point,
    /// At an instruction that is outside.
    Left,
    /// After the given number of steps.
    Limit,
    /// At a signal that the process does not ignore, which is delivered when the thread runs on.
    Signal(i32),
    /// Stepping was not possible: the reason.
    Refused(Refusal),
}

/// Why a thread could not be stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing is known of where it is.
    #[error("its registers cannot be read")]
    Registers,
    /// By job control.
    #[error("the process is stopped")]
    Stopped,
    /// Where it may stay for ever.
    #[error("the thread is in a system call")]
    SystemCall,
    /// `PTRACE_SINGLESTEP` failed.
    #[error("the kernel refuses to step it")]
    Kernel,
    /// It has ended, or does not answer.
    #[error("the thread ended or did not stop again")]
    Gone,
    /// A step had to be interrupted.
    #[error("a step did not end")]
    NoEnd,
}

/// What [`LiveTarget::settle`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettleReport {
    /// Instructions executed.
    pub steps: usize,
    /// How it ended.
    pub outcome: Settled,
}

impl SettleReport {
    /// Whether the thread is at a point now.
    pub fn reached(&self) -> bool {
        self.outcome == Settled::Point
    }
}

/// A process as it was at one moment.
pub struct LiveTarget {
    pid: u32,
    threads: Vec<Thread>,
    mappings: Vec<Mapping>,
    executable: Option<PathBuf>,
    auxv: Vec<(u64, u64)>,
    notes: Vec<String>,
    captured: Splice,
    source: Source,
    cache: Mutex<PageCache>,
    pause: Duration,
}

/// The running process's memory.
struct Source {
    // A thread that was alive at the capture; the main thread may have ended.
    tid: libc::pid_t,
    // Bound to the address space at the capture: after an exec or the end it reads nothing, where `process_vm_readv`
    // would read a stranger's memory through a reused id.
    mem: Option<File>,
}

impl Source {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let os = |e: std::io::Error| match e.raw_os_error() {
            Some(libc::EIO | libc::EFAULT) => MemoryError::Unmapped { address, len },
            _ => MemoryError::Os { address, len, errno: e.to_string() },
        };
        match &self.mem {
            Some(mem) if address <= i64::MAX as u64 => {
                let mut done = 0;
                while done < len {
                    match mem.read_at(&mut buf[done..], address + done as u64) {
                        Ok(0) => {
                            let errno = "the process has ended or runs another program".to_string();
                            return Err(MemoryError::Os { address, len, errno });
                        }
                        Ok(n) => done += n,
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(os(e)),
                    }
                }
                Ok(())
            }
            Some(_) => Err(MemoryError::Unmapped { address, len }),
            None => match read_ranges(self.tid, &[(address, len)], buf) {
                Ok(n) if n == len => Ok(()),
                Ok(_) => Err(MemoryError::Unmapped { address, len }),
                Err(e) => Err(os(e)),
            },
        }
    }
}

impl Source {
    /// The ranges of anonymous memory from `start` to `end` that have pages, in memory or swapped out.
    fn page_table(&self, start: u64, end: u64) -> Option<Vec<(u64, u64)>> {
        const PAGE: u64 = 0x1000;
        // proc(5): present, swapped.
        const HAS_PAGE: u64 = 1 << 63 | 1 << 62;
        let table = File::open(format!("/proc/{}/pagemap", self.tid)).ok()?;
        let (first, last) = (start / PAGE, end.div_ceil(PAGE));
        let mut entries = vec![0u8; 1 << 16];
        let mut out: Vec<(u64, u64)> = Vec::new();
        let mut page = first;
        while page < last {
            let wanted = (last - page).min(entries.len() as u64 / 8) as usize * 8;
            table.read_exact_at(&mut entries[..wanted], page * 8).ok()?;
            for entry in entries[..wanted].chunks_exact(8) {
                if entry.try_into().map_or(u64::MAX, u64::from_le_bytes) & HAS_PAGE != 0 {
                    let (from, to) = ((page * PAGE).max(start), ((page + 1) * PAGE).min(end));
                    match out.last_mut() {
                        Some(range) if range.1 == from => range.1 = to,
                        _ => out.push((from, to)),
                    }
                }
                page += 1;
            }
        }
        Some(out)
    }
}

impl Memory for Source {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        Source::read(self, address, buf)
    }
}

/// Reads below this size go through the page cache.
const SMALL_READ: usize = 1024;

impl Memory for LiveTarget {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let mut done = 0;
        while done < len {
            let at = address.checked_add(done as u64).ok_or(MemoryError::Unmapped { address, len })?;
            done += match self.captured.piece(at) {
                Piece::Bytes(bytes) => {
                    let n = bytes.len().min(len - done);
                    buf[done..done + n].copy_from_slice(&bytes[..n]);
                    n
                }
                Piece::Zero(n) | Piece::Absent(n, _) | Piece::Gap(n) => {
                    let n = usize::try_from(n).unwrap_or(usize::MAX).min(len - done);
                    self.read_running(at, &mut buf[done..done + n])?;
                    n
                }
            };
        }
        Ok(())
    }

    fn read_some(&self, address: u64, buf: &mut [u8]) -> usize {
        if self.read(address, buf).is_ok() {
            return buf.len();
        }
        // Halves instead of pages: a search of the heap reads megabytes that are there as a whole.
        let mut done = 0;
        let mut step = (buf.len() / 2).max(1);
        while done < buf.len() && step > 0 {
            let n = step.min(buf.len() - done);
            match address.checked_add(done as u64).map(|at| self.read(at, &mut buf[done..done + n])) {
                Some(Ok(())) => done += n,
                _ => step = if step > 1 { step.min(n) / 2 } else { 0 },
            }
        }
        done
    }
}

impl LiveTarget {
    fn read_running(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        if buf.len() > SMALL_READ {
            return self.source.read(address, buf);
        }
        match self.cache.lock() {
            Ok(mut cache) => cache.read(address, buf, |page, into| self.source.read(page, into)),
            Err(_) => self.source.read(address, buf),
        }
    }

    /// Stops all threads of process `pid`, copies what a backtrace needs and lets them go.
    pub fn capture(pid: u32, options: &CaptureOptions) -> Result<LiveTarget, Error> {
        on_own_thread(pid, || {
            let mut stopped = Stopped::all(pid, options)?;
            LiveTarget::of(&mut stopped, options)
        })
    }

    /// Like [`LiveTarget::capture`], but first single-steps thread `tid` until `verdict` says [`Verdict::Point`] or
    /// [`Verdict::Outside`], a signal is about to be delivered to the thread, or `max_steps` instructions are done. The
    /// other threads stand meanwhile. `verdict` gets the address of the next instruction and the memory.
    ///
    /// Unlike a capture this changes when things happen in the process, and it is not safe against being killed: the
    /// kernel does not end single-step mode of a thread whose tracer dies (`exit_ptrace` does not call
    /// `ptrace_disable`), so the next SIGTRAP would end the process. The window is `max_steps` instructions: the mode is
    /// ended before anything is read.
    pub fn settle(
        pid: u32,
        tid: ThreadId,
        max_steps: usize,
        options: &CaptureOptions,
        verdict: &mut (dyn FnMut(u64, &dyn Memory) -> Verdict + Send),
    ) -> Result<(LiveTarget, SettleReport), Error> {
        on_own_thread(pid, || {
            let mut stopped = Stopped::all(pid, options)?;
            let report = stopped.step(tid, max_steps.min(limits::MAX_SETTLE_STEPS), verdict)?;
            Ok((LiveTarget::of(&mut stopped, options)?, report))
        })
    }

    /// How long the threads stood; nothing after [`LiveTarget::observe`].
    pub fn pause(&self) -> Duration {
        self.pause
    }

    fn of(stopped: &mut Stopped, options: &CaptureOptions) -> Result<LiveTarget, Error> {
        let mut target = LiveTarget::look(stopped, options)?;
        stopped.release();
        target.pause = stopped.since.elapsed();
        Ok(target)
    }

    /// What is copied of a process that stands.
    fn look(stopped: &mut Stopped, options: &CaptureOptions) -> Result<LiveTarget, Error> {
        let pid = stopped.pid;
        let process = Process::open(pid, stopped.reader())?;
        let mut threads: Vec<Thread> = stopped.threads.iter().map(|s| s.registers(pid)).collect();
        let mut notes = std::mem::take(&mut stopped.notes);
        let captured = copy_stacks(&threads, &process.mappings, &process.source, pid, options, &mut notes);
        for &(tid, why) in &stopped.unstopped {
            threads.push(Thread { problem: Some(why.to_string()), ..thread_of(pid, tid) });
        }
        threads.sort_by_key(|t| (t.id.0 != pid, t.id));
        Ok(process.target(pid, threads, notes, captured, Duration::ZERO))
    }
}

/// What `/proc` tells about a process as a whole.
struct Process {
    mappings: Vec<Mapping>,
    executable: Option<PathBuf>,
    auxv: Vec<(u64, u64)>,
    source: Source,
}

impl Process {
    /// Process `pid` as its thread `tid` shows it: an ended main thread has no memory any more.
    fn open(pid: u32, tid: libc::pid_t) -> Result<Process, Error> {
        let proc = PathBuf::from(format!("/proc/{pid}/task/{tid}"));
        let mappings = match std::fs::read(proc.join("maps")) {
            Ok(text) => parse_maps(&text),
            Err(source) => return Err(Error::File { path: proc.join("maps"), source }),
        };
        Ok(Process {
            mappings,
            executable: std::fs::read_link(proc.join("exe")).ok(),
            auxv: std::fs::read(proc.join("auxv")).map(|b| parse_auxv(&b)).unwrap_or_default(),
            source: Source { tid, mem: File::open(proc.join("mem")).ok() },
        })
    }

    fn target(
        self,
        pid: u32,
        threads: Vec<Thread>,
        notes: Vec<String>,
        captured: Splice,
        pause: Duration,
    ) -> LiveTarget {
        let Process { mappings, executable, auxv, source } = self;
        LiveTarget { pid, threads, mappings, executable, auxv, notes, captured, source, cache: Mutex::default(), pause }
    }
}

/// Whether nobody but the process itself gives the pages of a range their contents, so that one without a page is zero: of a
/// file's pages, and of memory that is shared, only some are mapped. A memory that has grown may be several mappings.
fn are_private(mappings: &[Mapping], start: u64, end: u64) -> bool {
    let first = mappings.partition_point(|m| m.end <= start);
    let mut at = start;
    for mapping in &mappings[first..] {
        if at >= end {
            break;
        }
        // A name that prctl(PR_SET_VMA_ANON_NAME) gave to shared memory, which has no file either.
        let shared = mapping.path.as_ref().is_some_and(|p| p.as_os_str().as_bytes().starts_with(b"[anon_shmem:"));
        if mapping.start > at || !mapping.read || !mapping.is_anonymous() || shared {
            return false;
        }
        at = mapping.end;
    }
    at >= end
}

/// A thread of which nothing but its name is known yet.
fn thread_of(pid: u32, tid: libc::pid_t) -> Thread {
    Thread {
        id: ThreadId(tid as u32),
        name: thread_name(pid, tid),
        registers: Registers::unknown(),
        fs_base: None,
        signal: None,
        problem: None,
    }
}

impl Target for LiveTarget {
    fn description(&self) -> String {
        let name = self.executable.as_ref().and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
        match name.or_else(|| self.threads.first().and_then(|t| t.name.clone())) {
            Some(name) => format!("process {} ({name})", self.pid),
            None => format!("process {}", self.pid),
        }
    }

    fn threads(&self) -> &[Thread] {
        &self.threads
    }

    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn executable(&self) -> Option<&Path> {
        self.executable.as_deref()
    }

    fn pid(&self) -> Option<u32> {
        Some(self.pid)
    }

    fn auxv(&self, key: u64) -> Option<u64> {
        self.auxv.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }

    fn file_candidates(&self, mapping: &Mapping) -> Vec<PathBuf> {
        if mapping.is_anonymous() {
            return Vec::new();
        }
        let Some((path, deleted)) = without_deleted(mapping) else { return Vec::new() };
        let proc = PathBuf::from(format!("/proc/{}/task/{}", self.pid, self.source.tid));
        let mut out = Vec::new();
        // Through the mount namespace of the process. A file that was replaced since has another build id, which the
        // loader checks; the links behind it lead to the very file that is mapped.
        if !deleted && let Ok(inside) = path.strip_prefix("/") {
            out.push(proc.join("root").join(inside));
        }
        if self.executable.is_some() && self.executable == mapping.path {
            out.push(proc.join("exe"));
        }
        out.push(PathBuf::from(format!("/proc/{}/map_files/{:x}-{:x}", self.pid, mapping.start, mapping.end)));
        out
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn touched(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let table = are_private(&self.mappings, start, end).then(|| self.source.page_table(start, end)).flatten();
        table.unwrap_or_else(|| vec![(start, end)])
    }

    fn is_live(&self) -> bool {
        true
    }
}

/// Runs `work` on a thread that ends with it, so that the kernel detaches whatever is still seized.
fn on_own_thread<T: Send>(pid: u32, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("tracer".to_string()).spawn_scoped(scope, work);
        match thread.map(|t| t.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(e) => Err(Error::Attach { pid, why: format!("no thread for tracing could be started: {e}") }),
        }
    })
}

/// Why a thread does not stop that waits in vfork or posix_spawn.
const VFORK: &str =
    "it waits until the child that it has started (vfork) executes a program or ends, and cannot be stopped";

/// Whether the thread is in a system call that starts a process.
fn starts_child(pid: u32, tid: libc::pid_t) -> bool {
    let calls = [libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3];
    let line = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
    line.split(' ').next().and_then(|n| n.parse().ok()).is_some_and(|n| calls.contains(&n))
}

/// A thread that stands.
struct Stop {
    tid: libc::pid_t,
    // A signal that was about to be delivered when the thread stopped; it goes on with the thread.
    held: i32,
    // Stopped by SIGSTOP or the like already; it stays so when we detach.
    group_stop: bool,
}

impl Stop {
    /// Whether it tells that a single step has ended.
    fn is_step(&self) -> bool {
        self.held == libc::SIGTRAP && SignalInfo::of(self.tid).is_ok_and(|info| info.is_step())
    }

    /// Whether a step that was begun can go on behind this stop: one of the kernel's own, which SIGCONT makes and which
    /// comes before any signal, or at a signal without effect. A process that is stopped makes no step, but ends one.
    fn is_passing(&self, pid: u32) -> bool {
        match self.held {
            0 => !self.group_stop || is_queued(self.tid, SignalInfo::is_step),
            libc::SIGTRAP => false,
            signal => is_ignored(pid, signal),
        }
    }

    fn registers(&self, pid: u32) -> Thread {
        let mut thread = Thread { signal: (self.held != 0).then_some(self.held), ..thread_of(pid, self.tid) };
        let mut regs = [0; USER_REGS_WORDS * 8];
        match get_regset(self.tid, libc::NT_PRSTATUS, &mut regs) {
            Ok(n) if n == regs.len() => thread.set_user_regs(&regs),
            Ok(_) => thread.problem = Some("it is a 32-bit thread; only x86-64 is supported".to_string()),
            Err(e) => thread.problem = Some(format!("its registers cannot be read: {e}")),
        }
        let mut fxsave = [0; 512];
        if thread.problem.is_none() && matches!(get_regset(self.tid, libc::NT_PRFPREG, &mut fxsave), Ok(512)) {
            thread.set_fxsave(&fxsave);
        }
        thread
    }
}

/// All threads of a process, standing. Dropping it lets them go.
struct Stopped {
    pid: u32,
    threads: Vec<Stop>,
    // Seized, but they did not stop in time.
    unstopped: Vec<(libc::pid_t, &'static str)>,
    notes: Vec<String>,
    since: Instant,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.release();
    }
}

/// Repeats `round` until it says that there was nothing to do. `false`: there always was.
fn until_quiet(mut round: impl FnMut() -> bool) -> bool {
    (0..limits::MAX_STOP_ROUNDS).any(|_| round())
}

impl Stopped {
    /// Seizes and interrupts every thread.
    fn all(pid: u32, options: &CaptureOptions) -> Result<Stopped, Error> {
        let pid = attachable(pid)?;
        let mut all =
            Stopped { pid, threads: Vec::new(), unstopped: Vec::new(), notes: Vec::new(), since: Instant::now() };
        let mut known = HashSet::new();
        let mut refused = None;
        let mut vanished = 0;
        // A thread that does not stand yet can start another behind our back.
        let complete = until_quiet(|| {
            let mut pending = Vec::new();
            for tid in list_threads(pid) {
                if known.len() >= limits::MAX_THREADS || !known.insert(tid) {
                    continue;
                }
                match ptrace(libc::PTRACE_SEIZE, tid, 0, 0).and_then(|()| ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)) {
                    Ok(()) => pending.push(tid),
                    Err(_) if is_gone(pid, tid) => vanished += 1,
                    Err(e) => {
                        all.unstopped.push((tid, "it could not be traced"));
                        refused.get_or_insert((tid, e));
                    }
                }
            }
            if pending.is_empty() {
                return true;
            }
            vanished += all.wait_for(pending, options.stop_timeout);
            false
        });
        if all.threads.is_empty() {
            let why = match refused {
                Some((tid, e)) => refusal(pid, tid as u32, &e),
                None => match all.unstopped.first() {
                    Some((_, why)) => format!("no thread stops: {why}; try again later, or with --nonblocking"),
                    None => "it has just ended".to_string(),
                },
            };
            return Err(Error::Attach { pid, why });
        }
        if !complete {
            all.notes.push("the process starts threads faster than they can be stopped; some are missing".to_string());
        }
        if vanished > 0 {
            all.notes.push(format!("{vanished} thread(s) ended while the process was being stopped"));
        }
        if let Some((tid, e)) = refused {
            all.notes.push(format!("thread {tid} could not be traced: {}", refusal(pid, tid as u32, &e)));
        }
        Ok(all)
    }

    /// Waits for interrupted threads and returns how many of them ended instead.
    fn wait_for(&mut self, mut pending: Vec<libc::pid_t>, timeout: Duration) -> usize {
        // A thread in uninterruptible sleep is given up early: every other thread waits with it.
        const LOOK_AT_STATE: Duration = Duration::from_millis(200);
        let begin = Instant::now();
        let mut looks = 0u32;
        let mut vanished = 0;
        loop {
            pending.retain(|&tid| match stop_of(tid, true) {
                Wait::Running => true,
                Wait::Gone => {
                    vanished += 1;
                    false
                }
                Wait::Stopped(stop) => {
                    self.threads.push(stop);
                    false
                }
            });
            let waited = begin.elapsed();
            if waited > LOOK_AT_STATE {
                pending.retain(|&tid| {
                    let state = thread_state(self.pid, tid);
                    let why = match state {
                        Some(b'D') if starts_child(self.pid, tid) => VFORK,
                        Some(b'D') => "it is in uninterruptible sleep (state D) and could not be stopped",
                        _ if waited > timeout => "it did not stop in time",
                        _ => return true,
                    };
                    self.unstopped.push((tid, why));
                    false
                });
            }
            if pending.is_empty() {
                return vanished;
            }
            // Most threads stop within microseconds.
            looks += 1;
            match looks {
                0..100 => std::thread::yield_now(),
                100..300 => std::thread::sleep(Duration::from_micros(50)),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// A thread through which `/proc` shows the process: an ended main thread has no memory any more.
    fn reader(&self) -> libc::pid_t {
        let main = self.pid as libc::pid_t;
        match self.threads.iter().find(|t| t.tid == main).or_else(|| self.threads.first()) {
            Some(thread) => thread.tid,
            None => main,
        }
    }

    /// Lets every thread go, with the signal it was about to get. A stopped process stays stopped: the kernel renews
    /// the group stop on detach (`__ptrace_unlink`).
    fn release(&mut self) {
        for thread in self.threads.drain(..) {
            let _ = ptrace(libc::PTRACE_DETACH, thread.tid, 0, thread.held as usize);
        }
        for (tid, _) in &self.unstopped {
            if let Wait::Stopped(stop) = stop_of(*tid, true) {
                let _ = ptrace(libc::PTRACE_DETACH, stop.tid, 0, stop.held as usize);
            }
        }
    }

    fn step(
        &mut self,
        tid: ThreadId,
        max_steps: usize,
        verdict: &mut (dyn FnMut(u64, &dyn Memory) -> Verdict + Send),
    ) -> Result<SettleReport, Error> {
        // A step that takes longer is a system call.
        const STEP_TIMEOUT: Duration = Duration::from_millis(500);
        let pid = self.pid;
        let source = Source { tid: self.reader(), mem: File::open(format!("/proc/{pid}/task/{}/mem", tid.0)).ok() };
        let Some(thread) = self.threads.iter_mut().find(|t| t.tid as u32 == tid.0) else {
            return Err(Error::NotFound { what: format!("process {pid} has no thread {} that can be stepped", tid.0) });
        };
        let mut steps = 0;
        let (mut stepping, mut again) = (false, None);
        let outcome = loop {
            let mut regs = [0; USER_REGS_WORDS * 8];
            match get_regset(thread.tid, libc::NT_PRSTATUS, &mut regs) {
                Ok(n) if n == regs.len() => {}
                _ => break Settled::Refused(Refusal::Registers),
            }
            let pc = Reg::RIP.info().user_regs.map_or(0, |i| word(&regs, i));
            match verdict(pc, &source) {
                Verdict::Point => break Settled::Point,
                Verdict::Outside => break Settled::Left,
                Verdict::Step => {}
            }
            if thread.held != 0 {
                break Settled::Signal(thread.held);
            }
            if thread.group_stop {
                break Settled::Refused(Refusal::Stopped);
            }
            // Resuming would restart the system call and perhaps never come back.
            if steps == 0 && word(&regs, USER_REGS_ORIG_RAX) as i64 >= 0 {
                break Settled::Refused(Refusal::SystemCall);
            }
            if steps >= max_steps {
                break Settled::Limit;
            }
            if ptrace(libc::PTRACE_SINGLESTEP, thread.tid, 0, 0).is_err() {
                break Settled::Refused(Refusal::Kernel);
            }
            stepping = true;
            let begin = Instant::now();
            let mut interrupted = false;
            // The stop after a step is consumed: it is a SIGTRAP that must not reach the process if we die now.
            let next = loop {
                match stop_of(thread.tid, false) {
                    Wait::Running if begin.elapsed() > STEP_TIMEOUT && !interrupted => {
                        interrupted = true;
                        let _ = ptrace(libc::PTRACE_INTERRUPT, thread.tid, 0, 0);
                    }
                    Wait::Running if begin.elapsed() > STEP_TIMEOUT * 4 => break None,
                    Wait::Running => std::thread::yield_now(),
                    Wait::Gone => break None,
                    // What is told before the step's own stop and is no end of it: if the instruction is done already,
                    // its SIGTRAP comes next, without another one.
                    Wait::Stopped(stop) if !interrupted && begin.elapsed() <= STEP_TIMEOUT && stop.is_passing(pid) => {
                        thread.group_stop = stop.group_stop;
                        if ptrace(libc::PTRACE_SINGLESTEP, stop.tid, 0, 0).is_err() {
                            break Some(stop);
                        }
                    }
                    Wait::Stopped(stop) => break Some(stop),
                }
            };
            match next {
                None => {
                    self.threads.retain(|t| t.tid as u32 != tid.0);
                    break Settled::Refused(Refusal::Gone);
                }
                Some(stop) if stop.is_step() && is_to_restart(stop.tid) => break Settled::Refused(Refusal::NoEnd),
                Some(stop) if stop.is_step() => steps += 1,
                Some(stop) => {
                    let (held, group_stop) = (stop.held, stop.group_stop);
                    // This stop is consumed, too: the signal goes back to the kernel, and comes again.
                    again = SignalInfo::of(stop.tid).ok().filter(|info| held != 0 && !info.recurs());
                    *thread = stop;
                    break match held {
                        0 if group_stop => Settled::Refused(Refusal::Stopped),
                        0 => Settled::Refused(Refusal::NoEnd),
                        signal => Settled::Signal(signal),
                    };
                }
            }
        };
        if let Some(thread) = self.threads.iter_mut().find(|t| t.tid as u32 == tid.0 && stepping) {
            // Reported as about to come, whoever keeps it: a stop like this one has no use for it.
            let held = thread.held;
            match end_stepping(thread.tid) {
                Ok(stop) => *thread = Stop { held: if stop.held == 0 { held } else { stop.held }, ..stop },
                Err(e) => return Err(Error::Attach { pid, why: format!("thread {} after its steps: {e}", tid.0) }),
            }
            if let Some(info) = again {
                info.send_again(pid, thread.tid);
            }
        }
        Ok(SettleReport { steps, outcome })
    }
}

/// Ends the single-step mode of a thread that stands. The mode outlives us, and only `PTRACE_CONT` and a detach end it; the
/// interrupt that is there already stops the thread before its next instruction. The signal that it stands for is dropped,
/// and so is a last step's SIGTRAP that has not been told yet: nobody but a tracer has a use for it.
fn end_stepping(tid: libc::pid_t) -> std::io::Result<Stop> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let before = pc(tid)?;
    let begin = Instant::now();
    loop {
        // An interrupt would be told first. A step, in case that what is queued does not stop it.
        let queued = is_queued(tid, SignalInfo::is_step);
        if queued {
            ptrace(libc::PTRACE_SINGLESTEP, tid, 0, 0)?;
        } else {
            ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)?;
            ptrace(libc::PTRACE_CONT, tid, 0, 0)?;
        }
        let stop = loop {
            match stop_of(tid, !queued) {
                Wait::Stopped(stop) if pc(tid)? == before => break stop,
                Wait::Stopped(_) => return Err(std::io::Error::other("it has gone on")),
                Wait::Gone => return Err(std::io::Error::other("it has ended")),
                Wait::Running if begin.elapsed() > PATIENCE => return Err(std::io::Error::other("it does not stop")),
                Wait::Running => std::thread::yield_now(),
            }
        };
        if !stop.is_step() && (!queued || stop.held != 0) {
            return Ok(stop);
        }
    }
}

/// Whether a signal of which `is` holds waits for this very thread, which stands.
fn is_queued(tid: libc::pid_t, is: impl Fn(&SignalInfo) -> bool) -> bool {
    const BATCH: usize = 16;
    // The kernel counts its queue from the start for each signal that it shows.
    let pending = status_mask(&format!("/proc/{tid}/status"), "SigPnd");
    if pending.is_some_and(|mask| SYNCHRONOUS.iter().all(|s| mask >> (s - 1) & 1 == 0)) {
        return false;
    }
    let mut off = 0;
    loop {
        let mut infos = [[0u64; 16]; BATCH];
        let args = libc::ptrace_peeksiginfo_args { off, flags: 0, nr: BATCH as i32 };
        let shown =
            ptrace(libc::PTRACE_PEEKSIGINFO, tid, &raw const args as usize, infos.as_mut_ptr() as usize).is_ok();
        let infos = infos.map(SignalInfo);
        if shown && infos.iter().any(&is) {
            return true;
        }
        // Signal 0 is none: the end.
        if !shown || infos.iter().any(|info| info.signal() == 0) {
            return false;
        }
        off += BATCH as u64;
    }
}

/// Whether the thread stands in a system call that was interrupted and that it makes anew when it goes on.
fn is_to_restart(tid: libc::pid_t) -> bool {
    // ERESTARTSYS to ERESTART_RESTARTBLOCK, which only tracers see.
    const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;
    let mut regs = [0; USER_REGS_WORDS * 8];
    let read = get_regset(tid, libc::NT_PRSTATUS, &mut regs).is_ok();
    let result = Reg::RAX.info().user_regs.map_or(0, |i| word(&regs, i) as i64);
    read && word(&regs, USER_REGS_ORIG_RAX) as i64 >= 0 && RESTARTS.contains(&result)
}

/// Whether a signal does nothing to the process: by default, or because the process ignores it. The kernel does not even
/// send these, but for a tracer.
fn is_ignored(pid: u32, signal: i32) -> bool {
    const BY_DEFAULT: [i32; 4] = [libc::SIGCONT, libc::SIGCHLD, libc::SIGWINCH, libc::SIGURG];
    let status = format!("/proc/{pid}/status");
    let has = |key| status_mask(&status, key).map(|mask| mask >> (signal - 1) & 1 != 0);
    has("SigCgt") == Some(false) && (BY_DEFAULT.contains(&signal) || has("SigIgn") == Some(true))
}

fn status_mask(path: &str, key: &str) -> Option<u64> {
    u64::from_str_radix(&status_field(path, key)?, 16).ok()
}

fn pc(tid: libc::pid_t) -> std::io::Result<u64> {
    let mut regs = [0; USER_REGS_WORDS * 8];
    get_regset(tid, libc::NT_PRSTATUS, &mut regs)?;
    Ok(Reg::RIP.info().user_regs.map_or(0, |i| word(&regs, i)))
}

/// Signals by which faults and steps are told.
const SYNCHRONOUS: [i32; 6] = [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS];

/// A `siginfo_t`, which itself holds pointers of the other process and cannot go from thread to thread.
struct SignalInfo([u64; 16]);

impl SignalInfo {
    /// Of the signal that a thread stands for.
    fn of(tid: libc::pid_t) -> std::io::Result<SignalInfo> {
        const { assert!(size_of::<SignalInfo>() == size_of::<libc::siginfo_t>()) };
        let mut info = SignalInfo([0; 16]);
        ptrace(libc::PTRACE_GETSIGINFO, tid, 0, info.0.as_mut_ptr() as usize)?;
        Ok(info)
    }

    // `si_signo`, `si_errno`, `si_code` come first, 4 bytes each.
    fn signal(&self) -> i32 {
        self.0[0] as i32
    }

    fn code(&self) -> i32 {
        self.0[1] as i32
    }

    /// Whether it says that a single step has ended: TRAP_TRACE, and TRAP_BRKPT behind a system call.
    fn is_step(&self) -> bool {
        self.signal() == libc::SIGTRAP && [libc::TRAP_TRACE, libc::TRAP_BRKPT].contains(&self.code())
    }

    /// Whether the kernel tells of what the thread itself did, which it does with a positive code: people send signals with
    /// others.
    fn is_own(&self) -> bool {
        SYNCHRONOUS.contains(&self.signal()) && self.code() > 0
    }

    /// Whether the signal comes from the thread's next instruction, and so comes again.
    fn recurs(&self) -> bool {
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE].contains(&self.signal()) && self.code() > 0
    }

    /// Sends a thread the signal that it was about to get, with what came with it as far as the kernel allows: it does not
    /// let anybody speak in its own or in kill(2)'s name.
    fn send_again(&self, pid: u32, tid: libc::pid_t) {
        let signal = self.signal();
        // SAFETY: the kernel reads a siginfo_t, which has this size, and nothing else.
        let sent = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, self.0.as_ptr()) };
        if sent != 0 {
            // SAFETY: tgkill touches no memory.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
        }
    }
}

enum Wait {
    Running,
    Gone,
    Stopped(Stop),
}

/// Whether thread `tid` stands. With `keep`, the stop stays to be waited for, and its signal is not lost with us.
fn stop_of(tid: libc::pid_t, keep: bool) -> Wait {
    // SAFETY: siginfo_t is plain data for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::__WALL | if keep { libc::WNOWAIT } else { 0 };
    // SAFETY: `info` is valid for writes for the whole call.
    let result = unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, &mut info, flags) };
    if result != 0 {
        return if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) {
            Wait::Running
        } else {
            Wait::Gone
        };
    }
    // SAFETY: waitid fills the SIGCHLD fields, or leaves zero if there is nothing to report.
    let (who, status) = unsafe { (info.si_pid(), info.si_status()) };
    if who == 0 {
        return Wait::Running;
    }
    if !matches!(info.si_code, libc::CLD_TRAPPED | libc::CLD_STOPPED) {
        return Wait::Gone;
    }
    let (signal, event) = (status & 0x7f, status >> 8);
    if event == libc::PTRACE_EVENT_STOP {
        // SIGTRAP: our interrupt. Anything else is the signal of a group stop.
        Wait::Stopped(Stop { tid, held: 0, group_stop: signal != libc::SIGTRAP })
    } else {
        Wait::Stopped(Stop { tid, held: signal, group_stop: false })
    }
}

/// A ptrace request without a result of its own. `address` and `data` are numbers, or point to what the request reads and
/// to writable memory of the size that it writes.
fn ptrace(request: libc::c_uint, tid: libc::pid_t, address: usize, data: usize) -> std::io::Result<()> {
    // SAFETY: no request used here reads or writes our memory except through these two, which are as described.
    let result = unsafe { libc::ptrace(request, tid, address as *mut libc::c_void, data as *mut libc::c_void) };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Word `i` of a register set.
fn word(regs: &[u8], i: usize) -> u64 {
    regs.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Reads a register set and returns how many bytes it has.
fn get_regset(tid: libc::pid_t, set: libc::c_int, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut vector = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    ptrace(libc::PTRACE_GETREGSET, tid, set as usize, &raw mut vector as usize)?;
    Ok(vector.iov_len)
}

/// Copies ranges of another process, one after the other, into `buf`; returns the bytes copied up to the first hole.
fn read_ranges(tid: libc::pid_t, ranges: &[(u64, usize)], buf: &mut [u8]) -> std::io::Result<usize> {
    const IOV_MAX: usize = 1024;
    let mut done = 0;
    for batch in ranges.chunks(IOV_MAX) {
        let want: usize = batch.iter().map(|r| r.1).sum();
        let Some(into) = buf.get_mut(done..done + want) else { break };
        let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        let remote: Vec<libc::iovec> =
            batch.iter().map(|&(at, len)| libc::iovec { iov_base: at as *mut libc::c_void, iov_len: len }).collect();
        // SAFETY: `local` is valid for writes of its length; the remote addresses are checked by the kernel.
        let n = unsafe { libc::process_vm_readv(tid, &local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0) };
        if n < 0 {
            return if done > 0 { Ok(done) } else { Err(std::io::Error::last_os_error()) };
        }
        done += n as usize;
        if (n as usize) < want {
            break;
        }
    }
    Ok(done)
}

/// Bytes below the stack pointer that belong to a leaf function (psABI, "red zone").
const RED_ZONE: u64 = 128;

/// Copies the used part of every stack, and the stacks behind alternate and heap-allocated ones.
fn copy_stacks(
    threads: &[Thread],
    mappings: &[Mapping],
    source: &Source,
    pid: u32,
    options: &CaptureOptions,
    notes: &mut Vec<String>,
) -> Splice {
    let at = |address: u64| {
        let i = mappings.partition_point(|m| m.end <= address);
        mappings.get(i).filter(|m| m.contains(address))
    };
    let main_stack = mappings.iter().find(|m| m.path.as_deref() == Some(Path::new("[stack]")));
    let mut budget = options.max_total;
    let mut capped = false;
    let mut plan = Plan::default();
    let mut elsewhere = Vec::new();
    for thread in threads {
        let Some(sp) = thread.registers.sp() else { continue };
        let Some(stack) = at(sp).filter(|m| m.read) else { continue };
        let own = if thread.id.0 == pid { main_stack } else { thread.fs_base.and_then(&at) };
        let from = sp.saturating_sub(RED_ZONE).max(stack.start);
        capped |= plan.add(from, stack.end, options.max_stack, &mut budget);
        // glibc keeps the thread control block, where fs_base points, at the top of the stack it allocates.
        if own.is_some_and(|own| own != stack) {
            elsewhere.push((sp, own));
        }
    }
    let mut captured = Splice::new();
    plan.copy(source, &mut captured);

    // A thread on another stack: most often a signal handler on an alternate stack, whose frame names the interrupted
    // stack. That may be one that a coroutine library took from the heap, so words decide, not names.
    const WORDS: usize = 4096;
    const SMALL_MAPPING: u64 = 1 << 20;
    const PER_THREAD: usize = 64;
    let mut more = Plan::default();
    let mut taken = HashSet::new();
    for (sp, own) in elsewhere {
        let mut words = vec![0; captured.available(sp, usize::MAX)];
        if captured.read(sp, &mut words).is_err() {
            words.clear();
        }
        let words = words.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
        if let Some(own) = own.filter(|own| own.read && taken.insert(own.start)) {
            // What left it keeps where it was: the kernel the interrupted stack pointer, a coroutine its caller's.
            let lowest = words.clone().filter(|w| own.contains(*w)).min();
            let used = lowest.map_or(own.start, |w| w.saturating_sub(RED_ZONE));
            let limit = own.end.saturating_sub(options.max_stack);
            capped |= limit > used;
            capped |= more.add(used.max(limit).max(own.start), own.end, options.max_stack, &mut budget);
        }
        let mut found = 0;
        for word in words.take(WORDS) {
            let Some(m) = at(word) else { continue };
            let fits = m.read && m.write && m.size() <= SMALL_MAPPING && !m.contains(sp);
            if fits && found < PER_THREAD && taken.insert(m.start) {
                found += 1;
                capped |= more.add(m.start, m.end, SMALL_MAPPING, &mut budget);
            }
        }
    }
    more.copy(source, &mut captured);
    if capped {
        notes.push("large stacks were copied in part; the rest is read from the running process".to_string());
    }
    captured
}

/// Ranges that are copied in as few calls as possible.
#[derive(Default)]
struct Plan {
    ranges: Vec<(u64, usize)>,
}

impl Plan {
    /// Plans `from..to` and returns whether it had to be shortened.
    fn add(&mut self, from: u64, to: u64, limit: u64, budget: &mut u64) -> bool {
        let want = to.saturating_sub(from);
        let len = want.min(limit).min(*budget);
        *budget -= len;
        if len > 0 {
            self.ranges.push((from, len as usize));
        }
        len < want
    }

    fn copy(self, source: &Source, into: &mut Splice) {
        let total = self.ranges.iter().map(|r| r.1).sum();
        // Zeroed pages of the allocator are untouched memory: only what is copied costs anything.
        let mut bytes: Vec<u8> = vec![0; total];
        let mut copied = Vec::new();
        let mut done = 0;
        let mut ranges = self.ranges.as_slice();
        while let Some(&(address, len)) = ranges.first() {
            let got = read_ranges(source.tid, ranges, &mut bytes[done..]).unwrap_or(0);
            let mut left = got;
            while let Some(&(address, len)) = ranges.first()
                && left >= len
            {
                copied.push((address, done, len));
                (done, left, ranges) = (done + len, left - len, &ranges[1..]);
            }
            if got == 0 || left > 0 {
                // A hole in this range, or the call is forbidden (seccomp): what is there page by page.
                let (address, len) = ranges.first().copied().unwrap_or((address, len));
                let n = source.read_some(address, &mut bytes[done..done + len]);
                if n > 0 {
                    copied.push((address, done, n));
                }
                (done, ranges) = (done + len, ranges.get(1..).unwrap_or_default());
            }
        }
        let holder: Holder = Arc::new(bytes);
        for (address, offset, len) in copied {
            into.add(address, address.saturating_add(len as u64), Content::Bytes { holder: holder.clone(), offset });
        }
    }
}

/// The lines of `/proc/PID/maps`.
pub fn parse_maps(text: &[u8]) -> Vec<Mapping> {
    fn line(line: &[u8]) -> Option<Mapping> {
        let mut fields = line.splitn(6, |&c| c == b' ');
        let mut field = || fields.next().and_then(|f| std::str::from_utf8(f).ok());
        let hex = |s: &str| u64::from_str_radix(s, 16).ok();
        let (start, end) = field()?.split_once('-')?;
        let flags = field()?.as_bytes();
        let offset = hex(field()?)?;
        let (_device, _inode) = (field()?, field()?);
        let name = fields.next().unwrap_or_default().trim_ascii_start();
        let flag = |i: usize, c: u8| flags.get(i) == Some(&c);
        Some(Mapping {
            start: hex(start)?,
            end: hex(end)?,
            read: flag(0, b'r'),
            write: flag(1, b'w'),
            execute: flag(2, b'x'),
            offset,
            path: (!name.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(&unescaped(name)))),
        })
    }
    text.split(|&c| c == b'\n').filter_map(line).filter(|m| m.start < m.end).collect()
}

// `seq_path(m, .., "\n")`: a line feed in a name is the only character that is escaped.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&c, tail)) = rest.split_first() {
        match rest.strip_prefix(b"\\012") {
            Some(behind) => {
                out.push(b'\n');
                rest = behind;
            }
            None => {
                out.push(c);
                rest = tail;
            }
        }
    }
    out
}

fn list_threads(pid: u32) -> Vec<libc::pid_t> {
    let Ok(dir) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tids: Vec<libc::pid_t> = dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    // The main thread first: its refusal is the one that is explained.
    tids.sort_by_key(|&tid| (tid as u32 != pid, tid));
    tids
}

/// Threads of the process, living ones, that are not among the known.
fn strangers(pid: u32, known: &[Thread]) -> Vec<u32> {
    let is_known = |tid: libc::pid_t| known.iter().any(|t| t.id.0 == tid as u32);
    let unknown = list_threads(pid).into_iter().filter(|&tid| !is_known(tid) && !is_gone(pid, tid));
    unknown.map(|tid| tid as u32).collect()
}

fn thread_name(pid: u32, tid: libc::pid_t) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/task/{tid}/comm")).ok()?;
    let name = String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned();
    (!name.is_empty()).then_some(name)
}

/// The state letter and flags of `/proc/PID/task/TID/stat`. The name before them may hold anything, also brackets.
fn stat(pid: u32, tid: libc::pid_t) -> Option<(u8, u64)> {
    let text = std::fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    let behind = text.iter().rposition(|&c| c == b')')? + 1;
    let fields: Vec<&str> = std::str::from_utf8(text.get(behind..)?).ok()?.split_ascii_whitespace().collect();
    Some((*fields.first()?.as_bytes().first()?, fields.get(6)?.parse().ok()?))
}

fn thread_state(pid: u32, tid: libc::pid_t) -> Option<u8> {
    stat(pid, tid).map(|s| s.0)
}

fn is_gone(pid: u32, tid: libc::pid_t) -> bool {
    matches!(thread_state(pid, tid), None | Some(b'Z' | b'X'))
}

/// A field of a `/proc/PID/status`.
fn status_field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(|v| v.trim().to_string())
}

/// Refuses what can never be captured, and gives the process id of what may be a thread id.
fn attachable(pid: u32) -> Result<u32, Error> {
    let refuse = |why: &str| Err(Error::Attach { pid, why: why.to_string() });
    if pid == 0 || pid > i32::MAX as u32 {
        return refuse("there is no such process id");
    }
    let status = format!("/proc/{pid}/status");
    let Some(leader) = status_field(&status, "Tgid").and_then(|v| v.parse().ok()) else {
        if !Path::new("/proc/self/stat").exists() {
            return refuse("/proc is not mounted; mount it (mount -t proc proc /proc)");
        }
        return refuse("there is no such process; look for it with: ps -e (a container has process ids of its own)");
    };
    if leader == std::process::id() {
        return refuse("this is wstate itself; a process cannot trace itself");
    }
    const PF_KTHREAD: u64 = 0x0020_0000;
    let (state, flags) = stat(leader, leader as libc::pid_t).unwrap_or((b'X', 0));
    if flags & PF_KTHREAD != 0 {
        return refuse("it is a kernel thread, which has no user code");
    }
    // The main thread of a process whose others go on is listed as a zombie, too.
    if matches!(state, b'Z' | b'X') && list_threads(leader).len() <= 1 {
        return refuse("it has ended already (zombie); its parent has not waited for it yet");
    }
    Ok(leader)
}

/// Why the kernel refused to trace thread `tid` of process `pid`, and what to do: one line. `error` is what it said.
pub fn refusal(pid: u32, tid: u32, error: &std::io::Error) -> String {
    const CAP_SYS_PTRACE: u64 = 19;
    let theirs = format!("/proc/{pid}/task/{tid}/status");
    match error.raw_os_error() {
        // ptrace says the one, the files in /proc say the other.
        Some(libc::EPERM | libc::EACCES) => {}
        Some(libc::ESRCH) => return "it has just ended".to_string(),
        Some(libc::ENOSYS) => {
            return "this system has no ptrace (an emulator or a sandbox); run wstate outside it".into();
        }
        _ => return format!("the kernel says: {error}"),
    }
    if let Some(tracer) = status_field(&theirs, "TracerPid").filter(|t| t != "0") {
        // A thread traces; people know the process.
        let tracer = status_field(&format!("/proc/{tracer}/status"), "Tgid").unwrap_or(tracer);
        let name = std::fs::read_to_string(format!("/proc/{tracer}/comm")).unwrap_or_default();
        let name = name.trim();
        return format!(
            "process {tracer} ({name}) traces it already, and only one can; let that one detach first, or take a core \
             with it and use: wstate core"
        );
    }
    let mine = |key| status_field("/proc/thread-self/status", key);
    let capable = mine("CapEff")
        .and_then(|v| u64::from_str_radix(&v, 16).ok())
        .is_some_and(|caps| caps & (1 << CAP_SYS_PTRACE) != 0);
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if scope.trim() == "3" {
        return "Yama forbids tracing until the next boot (kernel.yama.ptrace_scope = 3); use a core instead".into();
    }
    if capable {
        return "the kernel refuses although CAP_SYS_PTRACE is there: the process is in another user namespace, or a \
                seccomp or LSM policy forbids it; run wstate on the host, outside the container"
            .into();
    }
    let uids = |v: Option<String>| v.map(|v| v.split_ascii_whitespace().map(str::to_string).collect::<Vec<_>>());
    // SAFETY: geteuid has no failure and touches no memory.
    let me = unsafe { libc::geteuid() }.to_string();
    if let Some(owner) = uids(status_field(&theirs, "Uid"))
        && let Some(whose) = owner.iter().take(3).find(|u| **u != me)
    {
        if owner.first() == Some(&me) {
            return format!("it is a set-user-id program, which runs with the rights of user id {whose}; use sudo");
        }
        return format!("it belongs to user id {whose} and wstate runs as {me}; run wstate as that user or with sudo");
    }
    // With a user of its own, /proc shows a process as root's only for this reason (proc(5)).
    let undumpable = "it does not let itself be traced (set-user-id, file capabilities, an unreadable executable or \
         prctl(PR_SET_DUMPABLE)); use sudo";
    if std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid().to_string() != me) {
        return undumpable.into();
    }
    match scope.trim() {
        "1" => {
            return "Yama lets only a parent trace (kernel.yama.ptrace_scope = 1); use sudo, or: sudo sysctl -w \
                    kernel.yama.ptrace_scope=0"
                .into();
        }
        "2" => return "Yama lets only CAP_SYS_PTRACE trace (kernel.yama.ptrace_scope = 2); use sudo".into(),
        _ => {}
    }
    if mine("Seccomp").is_some_and(|s| s == "2") {
        return "a seccomp filter (a container's) may forbid ptrace; start the container with --cap-add=SYS_PTRACE"
            .into();
    }
    undumpable.into()
}

#[cfg(test)]
mod tests {
    use super::super::core::CoreTarget;
    use super::super::objects::{ObjectData, Objects, SearchPaths};
    use super::held::{Held, Steps};
    use super::*;
    use crate::state::KnownRegisters;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
    use std::sync::atomic::{AtomicU64, Ordering};

    const ROLE: &str = "WSTATE_TEST_ROLE";
    static SIGNALS: AtomicU64 = AtomicU64::new(0);
    static SPUN: AtomicU64 = AtomicU64::new(0);

    extern "C" fn count(_: libc::c_int) {
        SIGNALS.fetch_add(1, Ordering::SeqCst);
    }

    // A handler that never returns: the thread stays on its alternate stack, like one that reports a fault.
    extern "C" fn park(_: libc::c_int) {
        println!("\nparked");
        loop {
            // SAFETY: no arguments.
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

    /// Seccomp for this thread: a filter that allows everything, or the mode that allows hardly anything.
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

    /// What the other tests look at, in a process of its own.
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
        // Telling its id took the spinner a system call, which it cannot be stepped in.
        while SPUN.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        println!("\nready {} {:x}", ready["spinner"], shared.as_ptr() as usize);
        for line in std::io::stdin().lock().lines() {
            match line.unwrap().as_str() {
                "count" => println!("\ncount {}", SIGNALS.load(Ordering::SeqCst)),
                "double" => println!("\ndouble {:x}", double as *const () as usize),
                "spun" => println!("\nspun {}", SPUN.load(Ordering::SeqCst)),
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

    /// Steps a thread, which gets a signal meanwhile if that is wanted, and holds the process until the end.
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
            c.args(["target::live::tests::child", "--exact", "--ignored", "--nocapture"]);
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

        /// Signals that the peer has handled. Another of its threads may be on the way into the handler yet: asks again
        /// until all are there or enough time has passed.
        fn counted(&mut self, want: u64) -> u64 {
            let begin = Instant::now();
            loop {
                let n = self.ask("count", "count ").parse().unwrap();
                if n == want || begin.elapsed() > Duration::from_secs(5) {
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
        for t in live.threads() {
            assert!(t.problem.is_none() && t.fs_base.is_some() && t.registers.get(Reg::XMM15).is_some());
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

        // A process that is gone answers nothing, rather than something of another.
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
        // Between seize and interrupt the thread can stop for a signal. It must get it when it is let go, and also when
        // the tracer ends without letting it go.
        for let_go in [true, false] {
            let mut peer = Peer::target();
            let (pid, tid, signal) = (peer.pid(), peer.pid() as libc::pid_t, libc::SIGRTMIN() + 1);
            let tracer = std::thread::spawn(move || {
                let (threads, unstopped, notes) = (Vec::new(), Vec::new(), Vec::new());
                let mut stopped = Stopped { pid, threads, unstopped, notes, since: Instant::now() };
                ptrace(libc::PTRACE_SEIZE, tid, 0, 0).unwrap();
                // SAFETY: tgkill touches no memory.
                assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, tid, tid, signal) }, 0);
                while thread_state(pid, tid) != Some(b't') {
                    std::thread::yield_now();
                }
                ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0).unwrap();
                assert_eq!(stopped.wait_for(vec![tid], Duration::from_secs(10)), 0);
                assert_eq!(stopped.threads[0].held, signal);
                assert_eq!(stopped.threads[0].registers(pid).signal, Some(signal));
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
            // SIGSEGV and SIGTRAP are those by which the end of a call and of a step is told.
            for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGTRAP, libc::SIGSTOP] {
                send(pid, tid, signal);
                assert_eq!(who(), Ok(u64::from(pid)), "signal {signal}");
                send(pid, tid, signal);
                assert_eq!(call(), Ok(42), "signal {signal}");
            }
            // SIGCONT takes a stop back that the kernel knows of, and no other.
            assert!(thread.others.borrow().iter().all(|info| info.signal() != libc::SIGSTOP));
            send(pid, tid, libc::SIGCONT);
            assert_eq!((who(), call()), (Ok(u64::from(pid)), Ok(42)));
            send(pid, tid, libc::SIGSTOP);
            assert_eq!((who(), call()), (Ok(u64::from(pid)), Ok(42)));
            if keep {
                let now = held.target().threads().iter().find(|t| t.id.0 == tid).unwrap().registers.clone();
                let mut known = KnownRegisters::UNKNOWN;
                for row in crate::arch::x64::TABLE.iter() {
                    if let Some(slot) = known.0.get_mut(row.reg.index()) {
                        *slot = now.get(row.reg);
                    }
                }
                thread.set_registers(now.pc().unwrap(), &known).unwrap();
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

    /// Sends SIGCONT to a process when its thread `tid` sleeps.
    fn wake_up_asleep(pid: u32, tid: u32) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            while thread_state(pid, tid as libc::pid_t) != Some(b'S') {
                std::thread::yield_now();
            }
            // SAFETY: kill touches no memory.
            assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGCONT) }, 0);
        })
    }

    /// No step's SIGTRAP has come, and the spinner, which it would have come to, goes on.
    fn is_unharmed(peer: &mut Peer) {
        let before: u64 = peer.ask("spun", "spun ").parse().unwrap();
        while peer.ask("spun", "spun ").parse::<u64>().unwrap() == before {}
        assert_eq!(peer.counted(0), 0);
    }

    #[test]
    fn a_step_whose_end_is_told_late_leaves_no_signal_behind() {
        // The step over a system call that is interrupted ends with a SIGTRAP that is queued behind the stop by which the
        // interruption is told. pause would be made again, rt_sigtimedwait returns EINTR.
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
                let mut saved = [0; USER_REGS_WORDS * 8];
                get_regset(id, libc::NT_PRSTATUS, &mut saved).unwrap();
                let mut registers = saved;
                // No signals are waited for: eight bytes of an ELF header are zero.
                assert_eq!(code[8..16], [0; 8]);
                for (reg, value) in [
                    (Reg::RIP, call),
                    (Reg::RAX, number as u64),
                    (Reg::RDI, vdso + 8),
                    (Reg::RSI, 0),
                    (Reg::RDX, 0),
                    (Reg::R10, 8),
                ] {
                    let at = reg.info().user_regs.unwrap() * 8;
                    registers[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
                }
                inject::set_regset(id, libc::NT_PRSTATUS, &registers).unwrap();
                let waker = wake_up.then(|| wake_up_asleep(pid, tid));
                let mut verdict = |pc: u64, _: &dyn Memory| if pc == call { Verdict::Step } else { Verdict::Point };
                let report = stopped.step(ThreadId(tid), 10, &mut verdict);
                waker.into_iter().for_each(|w| w.join().unwrap());
                assert!(stopped.threads.iter().all(|t| t.held == 0));
                inject::set_regset(id, libc::NT_PRSTATUS, &saved).unwrap();
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
                // As many without a pause would never let the thread make a step.
                while !done.load(Ordering::Relaxed) {
                    let before = progress.load(Ordering::Relaxed);
                    (0..20).for_each(|_| go_on());
                    while progress.load(Ordering::Relaxed) == before && !done.load(Ordering::Relaxed) {
                        std::thread::yield_now();
                    }
                }
            });
            // However this ends, so does the flood.
            struct Done<'a>(&'a std::sync::atomic::AtomicBool);
            impl Drop for Done<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let _done = Done(&done);
            for _ in 0..100 {
                // At least one comes before every step.
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
        // Its used end, however little of a stack is copied.
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
        // Another file of that name must not be taken for it.
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
            for reg in [Reg::RBX, Reg::RBP, Reg::R12, Reg::R13, Reg::R14, Reg::R15, Reg::XMM1, Reg::XMM15] {
                assert_eq!(other.registers.get(reg), thread.registers.get(reg), "{reg} of {:?}", thread.id);
            }
            let sp = thread.registers.sp().unwrap();
            assert_eq!(other.registers.sp(), Some(sp));
            assert_eq!(core.read_vec(sp, 256).unwrap(), live.read_vec(sp, 256).unwrap());
            let pc = thread.registers.pc().unwrap();
            // Code: in the core if gdb wrote it, from the file on disk if the kernel did not.
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
        let libc = ours.iter().find(|o| o.name().starts_with("libc.so")).unwrap();
        assert!(libc.tls_block().is_some_and(|t| t.memsz > 0 && t.align > 0));
    }

    /// The front of a core.
    struct Front(Arc<memmap2::Mmap>, usize);

    impl AsRef<[u8]> for Front {
        fn as_ref(&self) -> &[u8] {
            &self.0[..self.1]
        }
    }

    /// Cuts a core at many places; returns how many threads the one with most of them has.
    fn most_threads_of_cut(path: &Path) -> usize {
        let whole = Arc::new(super::super::memory::map_file(path).unwrap());
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

        // gdb writes its notes behind the memory.
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
        // Reads what the dead process cannot answer any more.
        let text: Vec<(u64, Vec<u8>)> = live
            .threads()
            .iter()
            .filter_map(|t| t.registers.pc())
            .map(|pc| (pc, live.read_vec(pc, 8).unwrap()))
            .collect();
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
            .map(|m| {
                format!("{:x} {:x} {}{}{} {:x} {:?}", m.start, m.end, m.read, m.write, m.execute, m.offset, m.path)
            })
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
}
