//! A live process. All its threads are stopped for a moment, registers and the used parts of stacks are copied, and
//! the process runs on. Whatever else is read later comes from the running process.
//!
//! Nothing is ever written to the process, and it is seized, not attached: if this program dies at any instant, the
//! kernel lets every thread go on as if nothing had been. Two details carry that promise:
//!
//! - Stops are looked at with `WNOWAIT`. A consumed stop has lost the signal it was about (`wait_task_stopped` clears
//!   `exit_code`), and the signal would be lost if we died before the detach.
//! - All of it happens on a thread of its own. The end of that thread detaches what could not be detached before,
//!   such as a thread in uninterruptible sleep, which would otherwise stop much later and wait for us.
//!
//! [`LiveTarget::settle`] is the exception, see there.
//!
//! As with any debugger, a few system calls (epoll_wait, semtimedop, ...) see EINTR where they were interrupted:
//! signal(7), "Interruption of system calls and library functions by stop signals". A blocking write that has written
//! a part returns the size of that part. All others go on as if nothing had been, sleeps with the time that was left.
#![allow(unsafe_code)]

mod evidence;
mod general;
pub mod held;
pub mod inject;
mod reread;
mod step;
#[cfg(test)]
mod tests;
mod unstopped;

use self::evidence::Evidence;
use self::general::GeneralRegisters;
pub use self::reread::ReadSet;
pub use self::step::{Refusal, SettleReport, Settled, Verdict};
use super::files::{FileLocation, Identity};
use super::memory::{Content, Holder, PageCache, Piece, Splice};
use super::notes::{parse_auxv, without_deleted};
use super::{Mapping, Memory, MemoryError, Target, Thread, ThreadId};
use crate::arch::{Machine, Registers};
use crate::error::Error;
use crate::limits;
use std::collections::{HashMap, HashSet};
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
    /// Bytes of one thread's stack that are copied at most.
    pub max_stack: u64,
    /// Bytes of all stacks together that are copied at most.
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

/// A process as it was at one moment.
pub struct LiveTarget {
    pid: u32,
    threads: Vec<Thread>,
    mappings: Vec<Mapping>,
    executable: Option<PathBuf>,
    auxv: Vec<(u64, u64)>,
    notes: Vec<String>,
    captured: Splice,
    source: LiveMemory,
    cache: Mutex<PageCache>,
    pause: Duration,
    evidence: Evidence,
    copied: reread::Copied,
    log: Mutex<reread::Log>,
    files: evidence::MappedFiles,
    // Where the threads slept, if the process was not stopped (see `observe`).
    slept: Option<Vec<(libc::pid_t, unstopped::Sleeping)>>,
}

/// The memory of the running process.
struct LiveMemory {
    // A thread that was alive at the capture. It need not be the main thread, which may have ended.
    tid: libc::pid_t,
    // This file is bound to the address space that the process had at the capture. After an exec or the end of the
    // process it reads nothing, where `process_vm_readv` would read a stranger's memory through a reused id.
    mem: Option<File>,
}

impl LiveMemory {
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

impl LiveMemory {
    /// Returns the parts of the anonymous memory from `start` to `end` that have pages, in memory or swapped out.
    fn page_table(&self, start: u64, end: u64) -> Option<Vec<(u64, u64)>> {
        const PAGE: u64 = 0x1000;
        // proc(5): the bits for "present" and "swapped".
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

impl Memory for LiveMemory {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        LiveMemory::read(self, address, buf)
    }
}

/// Reads of up to this many bytes go through the page cache.
const SMALL_READ: usize = 1024;

impl Memory for LiveTarget {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.read_with(address, buf, |at, part| self.read_running(at, part))
    }

    fn read_some(&self, address: u64, buf: &mut [u8]) -> usize {
        if self.read(address, buf).is_ok() {
            return buf.len();
        }
        in_halves(address, buf, |at, part| self.read(at, part))
    }

    fn scan(&self, address: u64, buf: &mut [u8]) -> usize {
        if self.copied.is_sealed() {
            let len = self.captured.available(address, buf.len());
            let read = self.captured.read(address, &mut buf[..len]);
            return if read.is_ok() { len } else { 0 };
        }
        let read = |at: u64, part: &mut [u8]| self.read_with(at, part, |at, part| self.source.read(at, part));
        if read(address, buf).is_ok() {
            return buf.len();
        }
        in_halves(address, buf, read)
    }
}

/// Reads as much as `read` can read from `address` on, and returns how many bytes that is. It tries halves of the
/// range and not single pages, because a search of the heap reads megabytes that are there as a whole.
fn in_halves(address: u64, buf: &mut [u8], read: impl Fn(u64, &mut [u8]) -> Result<(), MemoryError>) -> usize {
    let mut done = 0;
    let mut step = (buf.len() / 2).max(1);
    while done < buf.len() && step > 0 {
        let n = step.min(buf.len() - done);
        match address.checked_add(done as u64).map(|at| read(at, &mut buf[done..done + n])) {
            Some(Ok(())) => done += n,
            _ => step = if step > 1 { step.min(n) / 2 } else { 0 },
        }
    }
    done
}

impl LiveTarget {
    /// Fills `buf` from the copy, and calls `running` for the parts that were not copied.
    fn read_with(
        &self,
        address: u64,
        buf: &mut [u8],
        running: impl Fn(u64, &mut [u8]) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
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
                Piece::Absent(..) => return Err(MemoryError::Unmapped { address, len }),
                Piece::Zero(n) | Piece::Gap(n) => {
                    let n = usize::try_from(n).unwrap_or(usize::MAX).min(len - done);
                    running(at, &mut buf[done..done + n])?;
                    n
                }
            };
        }
        Ok(())
    }

    /// Stops all threads of process `pid`, copies what a backtrace needs, and lets them go.
    pub fn capture(pid: u32, options: &CaptureOptions) -> Result<LiveTarget, Error> {
        LiveTarget::capture_again(pid, options, &ReadSet::default())
    }

    /// Captures as [`LiveTarget::capture`] does, but first single-steps thread `tid` until `verdict` says
    /// `Verdict::Point` or `Verdict::Outside`, a signal is about to be delivered to the thread, or `max_steps`
    /// instructions are done. The other threads stay stopped meanwhile. `verdict` gets the address of the next
    /// instruction and the memory.
    ///
    /// Unlike a capture this changes when things happen in the process, and it is not safe against being killed: the
    /// kernel does not end the single-step mode of a thread whose tracer dies (`exit_ptrace` does not call
    /// `ptrace_disable`), so the next SIGTRAP would end the process. This danger lasts for at most `max_steps`
    /// instructions: the mode is ended before anything is read.
    #[cfg(any(test, feature = "internals"))]
    pub fn settle(
        pid: u32,
        tid: ThreadId,
        max_steps: usize,
        options: &CaptureOptions,
        verdict: &mut (dyn FnMut(u64, &dyn Memory) -> Verdict + Send),
    ) -> Result<(LiveTarget, SettleReport), Error> {
        LiveTarget::settle_again(pid, tid, max_steps, options, &ReadSet::default(), verdict)
    }

    /// Does the same as `settle`, and also copies the memory that `set` asks for at the instant of the capture.
    pub fn settle_again(
        pid: u32,
        tid: ThreadId,
        max_steps: usize,
        options: &CaptureOptions,
        set: &ReadSet,
        verdict: &mut (dyn FnMut(u64, &dyn Memory) -> Verdict + Send),
    ) -> Result<(LiveTarget, SettleReport), Error> {
        on_own_thread(pid, || {
            let mut stopped = Stopped::all(pid, options)?;
            let report = stopped.step(tid, max_steps.min(limits::MAX_SETTLE_STEPS), verdict)?;
            Ok((LiveTarget::of(&mut stopped, options, set)?, report))
        })
    }

    /// How long the threads were stopped. Zero after [`LiveTarget::observe`].
    pub fn pause(&self) -> Duration {
        self.pause
    }

    fn of(stopped: &mut Stopped, options: &CaptureOptions, set: &ReadSet) -> Result<LiveTarget, Error> {
        let mut target = LiveTarget::look(stopped, options, set)?;
        stopped.release();
        target.pause = stopped.since.elapsed();
        Ok(target)
    }

    /// Copies what is needed of a stopped process.
    fn look(stopped: &mut Stopped, options: &CaptureOptions, set: &ReadSet) -> Result<LiveTarget, Error> {
        let _urgent = Urgent::begin();
        let pid = stopped.pid;
        let process = Process::open(pid, stopped.reader())?;
        let name = |tid: libc::pid_t| stopped.names.get(&tid).cloned().flatten();
        let mut threads: Vec<Thread> = stopped.threads.iter().map(|s| s.registers(name(s.tid))).collect();
        let mut notes = std::mem::take(&mut stopped.notes);
        let mut captured = copy_stacks(&threads, &process.mappings, &process.source, pid, options, &mut notes);
        let copied = reread::copy(set, &process, &mut captured);
        let evidence = Evidence::take(pid, &threads, &process, &captured);
        for &(tid, why) in &stopped.unstopped {
            threads.push(Thread { problem: Some(why.to_string()), ..thread_named(tid, name(tid)) });
        }
        threads.sort_by_key(|t| (t.id.0 != pid, t.id));
        Ok(LiveTarget { copied, ..process.target(pid, threads, notes, captured, evidence) })
    }
}

/// What `/proc` tells about a process as a whole.
struct Process {
    mappings: Vec<Mapping>,
    executable: Option<PathBuf>,
    auxv: Vec<(u64, u64)>,
    source: LiveMemory,
    files: evidence::MappedFiles,
}

impl Process {
    /// Reads what `/proc` tells about process `pid`, through its thread `tid`: a main thread that has ended has no
    /// memory any more.
    fn open(pid: u32, tid: libc::pid_t) -> Result<Process, Error> {
        let proc = PathBuf::from(format!("/proc/{pid}/task/{tid}"));
        let (mappings, files) = match std::fs::read(proc.join("maps")) {
            Ok(text) => (parse_maps(&text), evidence::MappedFiles::new(text)),
            Err(source) => return Err(Error::File { path: proc.join("maps"), source }),
        };
        Ok(Process {
            mappings,
            executable: std::fs::read_link(proc.join("exe")).ok(),
            auxv: std::fs::read(proc.join("auxv")).map(|b| parse_auxv(&b)).unwrap_or_default(),
            source: LiveMemory { tid, mem: File::open(proc.join("mem")).ok() },
            files,
        })
    }

    fn target(
        self,
        pid: u32,
        threads: Vec<Thread>,
        notes: Vec<String>,
        captured: Splice,
        evidence: Evidence,
    ) -> LiveTarget {
        let Process { mappings, executable, auxv, source, files } = self;
        LiveTarget {
            pid,
            threads,
            mappings,
            executable,
            auxv,
            notes,
            captured,
            source,
            cache: Mutex::default(),
            pause: Duration::ZERO,
            evidence,
            copied: reread::Copied::default(),
            log: Mutex::default(),
            files,
            slept: None,
        }
    }
}

/// Whether all of the range is readable private memory without a file. Then only the process itself gives its pages
/// their contents, and a part without a page is zero. Of a file's pages, and of shared memory, only some are mapped,
/// so nothing follows from a missing page. A memory that has grown may be several mappings.
fn are_private(mappings: &[Mapping], start: u64, end: u64) -> bool {
    let first = mappings.partition_point(|m| m.end <= start);
    let mut at = start;
    for mapping in &mappings[first..] {
        if at >= end {
            break;
        }
        // prctl(PR_SET_VMA_ANON_NAME) gives such a name to shared memory, which has no file either.
        let shared = mapping.path.as_ref().is_some_and(|p| p.as_os_str().as_bytes().starts_with(b"[anon_shmem:"));
        if mapping.start > at || !mapping.read || !mapping.is_anonymous() || shared {
            return false;
        }
        at = mapping.end;
    }
    at >= end
}

/// A thread of which only the name is known yet.
fn thread_of(pid: u32, tid: libc::pid_t) -> Thread {
    thread_named(tid, thread_name(pid, tid))
}

fn thread_named(tid: libc::pid_t, name: Option<String>) -> Thread {
    Thread {
        id: ThreadId(tid as u32),
        name,
        registers: Registers::unknown(Machine::HERE),
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

    fn machine(&self) -> Machine {
        Machine::HERE
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

    fn file_candidates(&self, mapping: &Mapping) -> Vec<FileLocation> {
        if mapping.is_anonymous() {
            return Vec::new();
        }
        let Some((path, deleted)) = without_deleted(mapping) else { return Vec::new() };
        let proc = PathBuf::from(format!("/proc/{}/task/{}", self.pid, self.source.tid));
        let mut out = Vec::new();
        // This link leads to the very file that runs, whatever is at its path by now.
        if self.executable.is_some() && self.executable == mapping.path {
            out.push(FileLocation::kernel(proc.join("exe")));
        }
        // This place goes through the mount namespace of the process. The loader checks whether the file was replaced
        // since. The link that comes next leads to the very file that is mapped, but needs more rights.
        if !deleted && path.is_absolute() {
            out.push(FileLocation::within(&proc.join("root"), &path));
        }
        out.push(FileLocation::kernel(format!("/proc/{}/map_files/{:x}-{:x}", self.pid, mapping.start, mapping.end)));
        out
    }

    fn maps_another(&self, mapping: &Mapping, file: &Identity) -> bool {
        self.files.is_another(mapping, file)
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

    fn prove(&self) -> bool {
        self.prove_so_far()
    }

    fn is_gone(&self) -> bool {
        self.has_refused()
    }
}

/// Runs `work` on a thread of its own, which ends with it, so that the kernel detaches whatever is still seized.
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

/// Why a thread that waits in vfork or posix_spawn does not stop.
const VFORK: &str =
    "it waits until the child that it has started (vfork) executes a program or ends, and cannot be stopped";

/// Whether the thread is in a system call that starts a process.
fn starts_child(pid: u32, tid: libc::pid_t) -> bool {
    let calls = [
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork,
        libc::SYS_clone,
        libc::SYS_clone3,
    ];
    let line = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
    line.split(' ').next().and_then(|n| n.parse().ok()).is_some_and(|n| calls.contains(&n))
}

/// Size of the floating point state of a thread (NT_PRFPREG), in bytes.
const FLOATING_POINT_STATE: usize = 512;

/// A stopped thread.
struct Stop {
    tid: libc::pid_t,
    // A signal that was about to be delivered when the thread stopped, or 0. It is delivered when the thread is let
    // go.
    held: i32,
    // Whether the thread was already stopped by SIGSTOP or the like. It stays so when we detach.
    group_stop: bool,
}

impl Stop {
    fn registers(&self, name: Option<String>) -> Thread {
        let mut thread = Thread { signal: (self.held != 0).then_some(self.held), ..thread_named(self.tid, name) };
        match GeneralRegisters::read(self.tid) {
            Ok(Some(registers)) => thread.set_general(registers.bytes()),
            Ok(None) => {
                let supported = Machine::HERE.description().name;
                thread.problem = Some(format!("it is a 32-bit thread; only {supported} is supported"));
            }
            Err(e) => thread.problem = Some(format!("its registers cannot be read: {e}")),
        }
        let mut vectors = [0; FLOATING_POINT_STATE];
        if thread.problem.is_none()
            && get_regset(self.tid, libc::NT_PRFPREG, &mut vectors).is_ok_and(|n| n == vectors.len())
        {
            thread.set_vectors(&vectors);
        }
        thread
    }
}

/// All threads of a process, which are stopped. Dropping this lets them go.
struct Stopped {
    pid: u32,
    threads: Vec<Stop>,
    // Threads that are not stopped, with the reason: they could not be seized, or did not stop in time.
    unstopped: Vec<(libc::pid_t, &'static str)>,
    // Names of the threads, read while all are stopped: a thread may name itself after the work that it does.
    names: HashMap<libc::pid_t, Option<String>>,
    // Open files from which the names are read. They are closed when everything runs again.
    name_files: HashMap<libc::pid_t, File>,
    notes: Vec<String>,
    // When the first thread was interrupted.
    since: Instant,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.release();
    }
}

/// Returns the threads that run or wait for a processor, and the other threads, each in the order of `tids`.
fn running_and_sleeping(pid: u32, tids: Vec<libc::pid_t>) -> (Vec<libc::pid_t>, Vec<libc::pid_t>) {
    tids.into_iter().partition(|&tid| thread_state(pid, tid) == Some(b'R'))
}

/// While this value lives, the calling thread goes before others where the system allows it: a process is stopped for
/// as long as its tracer waits for a processor. It is not used while a thread is stepped, because that thread needs a
/// processor too.
struct Urgent {
    // The thread's own priority ("nice" value).
    before: libc::c_int,
}

impl Urgent {
    fn begin() -> Urgent {
        // SAFETY: neither call touches memory. On Linux both concern only the calling thread. If a call is refused,
        // nothing changes.
        unsafe {
            let before = libc::getpriority(libc::PRIO_PROCESS, 0);
            libc::setpriority(libc::PRIO_PROCESS, 0, -20);
            Urgent { before }
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // SAFETY: as in `begin`.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, self.before) };
    }
}

/// Repeats `round` until it returns `true`, which means that there was nothing to do. Returns `false` if there was
/// always something to do.
fn until_quiet(mut round: impl FnMut() -> bool) -> bool {
    (0..limits::MAX_STOP_ROUNDS).any(|_| round())
}

impl Stopped {
    /// A value for process `pid` that holds no thread yet.
    fn none(pid: u32) -> Stopped {
        Stopped {
            pid,
            threads: Vec::new(),
            unstopped: Vec::new(),
            names: HashMap::new(),
            name_files: HashMap::new(),
            notes: Vec::new(),
            since: Instant::now(),
        }
    }

    /// Stops every thread.
    ///
    /// Threads are seized first, which stops nothing and takes most of the time. Then those that run are interrupted,
    /// and the rest when those are stopped. A thread that sleeps has to wake up in order to stop, and so does this
    /// one between two threads, and each time a thread that still runs may take the processor for milliseconds.
    fn all(pid: u32, options: &CaptureOptions) -> Result<Stopped, Error> {
        let pid = attachable(pid)?;
        let mut all = Stopped::none(pid);
        let mut known = HashSet::new();
        let mut refused = None;
        let mut vanished = 0;
        let _urgent = Urgent::begin();
        // Threads are listed again after each round, because a thread that is not stopped yet can start another one
        // unseen.
        let complete = until_quiet(|| {
            let mut seized = Vec::new();
            for tid in list_threads(pid) {
                if known.len() >= limits::MAX_THREADS || !known.insert(tid) {
                    continue;
                }
                match ptrace(libc::PTRACE_SEIZE, tid, 0, 0) {
                    Ok(()) => {
                        // The file is opened now, because opening it takes as long as all the rest of a stop. Reading
                        // it does not.
                        if all.name_files.len() < limits::MAX_OPEN_NAMES
                            && let Ok(file) = File::open(comm(pid, tid))
                        {
                            all.name_files.insert(tid, file);
                        }
                        seized.push(tid);
                    }
                    Err(_) if is_gone(pid, tid) => vanished += 1,
                    Err(e) => {
                        all.unstopped.push((tid, "it could not be traced"));
                        refused.get_or_insert((tid, e));
                    }
                }
            }
            if seized.is_empty() {
                return true;
            }
            let (running, sleeping) = running_and_sleeping(pid, seized);
            if all.threads.is_empty() {
                all.since = Instant::now();
            }
            for batch in [running, sleeping] {
                vanished += all.interrupt(batch, options.stop_timeout);
            }
            false
        });
        for &tid in all.threads.iter().map(|stop| &stop.tid).chain(all.unstopped.iter().map(|(tid, _)| tid)) {
            let name = match all.name_files.get(&tid) {
                Some(file) => {
                    let mut name = [0; 64];
                    file.read_at(&mut name, 0).ok().and_then(|len| name_of(&name[..len]))
                }
                None => thread_name(pid, tid),
            };
            all.names.insert(tid, name);
        }
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

    /// Interrupts seized threads, waits until they are stopped and returns how many of them ended instead.
    fn interrupt(&mut self, seized: Vec<libc::pid_t>, timeout: Duration) -> usize {
        let all = seized.len();
        let mut pending = seized;
        pending.retain(|&tid| match ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) {
            Ok(()) => true,
            // The thread has ended, or is still ending and its end will be seen later: nothing else can be wrong with
            // a thread that is seized.
            Err(_) => !is_gone(self.pid, tid),
        });
        let ended = all - pending.len();
        ended + self.wait_for(pending, timeout)
    }

    /// Waits for interrupted threads and returns how many of them ended instead.
    fn wait_for(&mut self, mut pending: Vec<libc::pid_t>, timeout: Duration) -> usize {
        // A thread in uninterruptible sleep is given up early, because every other thread is stopped while we wait
        // for it.
        const LOOK_AT_STATE: Duration = Duration::from_millis(200);
        let begin = Instant::now();
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
            // Most threads stop within microseconds. Sleeping lets the other threads run before this urgent one;
            // yielding does not.
            match waited.as_micros() {
                0..200 => std::thread::yield_now(),
                200..20_000 => std::thread::sleep(Duration::from_micros(50)),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// A thread through which `/proc` shows the process: a main thread that has ended has no memory any more.
    fn reader(&self) -> libc::pid_t {
        let main = self.pid as libc::pid_t;
        match self.threads.iter().find(|t| t.tid == main).or_else(|| self.threads.first()) {
            Some(thread) => thread.tid,
            None => main,
        }
    }

    /// Lets every thread go, with the signal that it was about to get. A stopped process stays stopped: the kernel
    /// renews the group stop on detach (`__ptrace_unlink`).
    fn release(&mut self) {
        let _urgent = Urgent::begin();
        // Threads that were running are let go last: each of them may take the processor from us while the others
        // are still stopped.
        for thread in self.threads.drain(..).rev() {
            let _ = ptrace(libc::PTRACE_DETACH, thread.tid, 0, thread.held as usize);
        }
        for (tid, _) in &self.unstopped {
            if let Wait::Stopped(stop) = stop_of(*tid, true) {
                let _ = ptrace(libc::PTRACE_DETACH, stop.tid, 0, stop.held as usize);
            }
        }
    }
}

enum Wait {
    Running,
    Gone,
    Stopped(Stop),
}

/// Asks whether thread `tid` is stopped. With `keep` the stop is not consumed, so that its signal is not lost if we
/// die.
fn stop_of(tid: libc::pid_t, keep: bool) -> Wait {
    // SAFETY: siginfo_t is plain data, and all zeros is a valid value of it.
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
    // SAFETY: waitid fills the SIGCHLD fields, or leaves them zero if there is nothing to report.
    let (who, status) = unsafe { (info.si_pid(), info.si_status()) };
    if who == 0 {
        return Wait::Running;
    }
    if !matches!(info.si_code, libc::CLD_TRAPPED | libc::CLD_STOPPED) {
        return Wait::Gone;
    }
    let (signal, event) = (status & 0x7f, status >> 8);
    if event == libc::PTRACE_EVENT_STOP {
        // SIGTRAP means our interrupt. Anything else is the signal of a group stop.
        Wait::Stopped(Stop { tid, held: 0, group_stop: signal != libc::SIGTRAP })
    } else {
        Wait::Stopped(Stop { tid, held: signal, group_stop: false })
    }
}

/// A number that says what ptrace is to do. The C libraries do not agree on its type.
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;
#[cfg(target_env = "musl")]
type Request = libc::c_int;

/// Makes a ptrace request that has no result of its own. `address` and `data` are numbers, or point to what the
/// request reads and to writable memory of the size that it writes.
fn ptrace(request: Request, tid: libc::pid_t, address: usize, data: usize) -> std::io::Result<()> {
    // SAFETY: no request used here reads or writes our memory except through these two, which are as described.
    let result = unsafe { libc::ptrace(request, tid, address as *mut libc::c_void, data as *mut libc::c_void) };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads a register set of a thread into `buf` and returns how many bytes it has.
fn get_regset(tid: libc::pid_t, set: libc::c_int, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut vector = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    ptrace(libc::PTRACE_GETREGSET, tid, set as usize, &raw mut vector as usize)?;
    Ok(vector.iov_len)
}

/// Writes a register set of a thread.
fn set_regset(tid: libc::pid_t, set: libc::c_int, bytes: &[u8]) -> std::io::Result<()> {
    // The kernel only reads the bytes, so the pointer may come from a shared reference.
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    ptrace(libc::PTRACE_SETREGSET, tid, set as usize, &raw mut vector as usize)
}

/// Copies ranges of memory of another process, one after the other, into `buf`. Returns how many bytes were copied up
/// to the first hole.
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

/// Copies the used part of every stack. For threads on alternate or heap-allocated stacks, the stacks that they came
/// from are copied too.
fn copy_stacks(
    threads: &[Thread],
    mappings: &[Mapping],
    source: &LiveMemory,
    pid: u32,
    options: &CaptureOptions,
    notes: &mut Vec<String>,
) -> Splice {
    let at = |address: u64| {
        let i = mappings.partition_point(|m| m.end <= address);
        mappings.get(i).filter(|m| m.contains(address))
    };
    let red_zone = Machine::HERE.description().red_zone;
    let main_stack = mappings.iter().find(|m| m.path.as_deref() == Some(Path::new("[stack]")));
    let mut budget = options.max_total;
    let mut capped = false;
    let mut plan = Plan::default();
    let mut elsewhere = Vec::new();
    for thread in threads {
        let Some(sp) = thread.registers.sp() else { continue };
        let Some(stack) = at(sp).filter(|m| m.read) else { continue };
        let own = if thread.id.0 == pid { main_stack } else { thread.fs_base.and_then(&at) };
        let from = sp.saturating_sub(red_zone).max(stack.start);
        capped |= plan.add(from, stack.end, options.max_stack, &mut budget);
        // glibc keeps the thread control block, which fs_base points to, at the top of the stack that it allocates.
        if own.is_some_and(|own| own != stack) {
            elsewhere.push((sp, own));
        }
    }
    let mut captured = Splice::new();
    plan.copy(source, &mut captured);

    // A thread that is on another stack than its own most often runs a signal handler on an alternate stack, whose
    // frame names the interrupted stack. That stack may be one that a coroutine library took from the heap, so the
    // words on the stack tell where it is, not the names of mappings.
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
            // Whoever left the thread's own stack has stored its stack pointer: the kernel that of the interrupted
            // code, a coroutine that of its caller.
            let lowest = words.clone().filter(|w| own.contains(*w)).min();
            let used = lowest.map_or(own.start, |w| w.saturating_sub(red_zone));
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

/// Ranges that are to be copied with as few system calls as possible.
#[derive(Default)]
struct Plan {
    ranges: Vec<(u64, usize)>,
}

impl Plan {
    /// Adds `from..to` to the plan. Returns whether the range had to be shortened.
    fn add(&mut self, from: u64, to: u64, limit: u64, budget: &mut u64) -> bool {
        let want = to.saturating_sub(from);
        let len = want.min(limit).min(*budget);
        *budget -= len;
        if len > 0 {
            self.ranges.push((from, len as usize));
        }
        len < want
    }

    fn copy(self, source: &LiveMemory, into: &mut Splice) {
        let total = self.ranges.iter().map(|r| r.1).sum();
        // Zeroed pages that come from the allocator are untouched memory: only pages that are copied into cost
        // anything.
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
                // There is a hole in this range, or the call is forbidden (seccomp): what is there is copied page by
                // page.
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

/// Parses the text of `/proc/PID/maps`. Lines that cannot be parsed are left out.
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

// `seq_path(m, .., "\n")` writes the name: a line feed is the only character in it that is escaped.
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
    // The main thread comes first, because its refusal is the one that is explained.
    tids.sort_by_key(|&tid| (tid as u32 != pid, tid));
    tids
}

/// Ids of living threads of the process that are not among the known ones.
fn strangers(pid: u32, known: &[Thread]) -> Vec<u32> {
    let is_known = |tid: libc::pid_t| known.iter().any(|t| t.id.0 == tid as u32);
    let unknown = list_threads(pid).into_iter().filter(|&tid| !is_known(tid) && !is_gone(pid, tid));
    unknown.map(|tid| tid as u32).collect()
}

fn thread_name(pid: u32, tid: libc::pid_t) -> Option<String> {
    name_of(&std::fs::read(comm(pid, tid)).ok()?)
}

fn comm(pid: u32, tid: libc::pid_t) -> String {
    format!("/proc/{pid}/task/{tid}/comm")
}

/// Returns a thread's name from the contents of its `comm` file, which end with a line feed.
fn name_of(said: &[u8]) -> Option<String> {
    let name = String::from_utf8_lossy(said.strip_suffix(b"\n").unwrap_or(said)).into_owned();
    (!name.is_empty()).then_some(name)
}

/// Returns the state letter and the flags in `/proc/PID/task/TID/stat`. The name before them may hold anything, also
/// brackets.
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

/// Returns the value of a field in a file such as `/proc/PID/status`.
fn status_field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(|v| v.trim().to_string())
}

/// Refuses what can never be captured. Otherwise returns the process id, also if `pid` is the id of another thread of
/// the process.
pub(crate) fn attachable(pid: u32) -> Result<u32, Error> {
    let refuse = |why: &str| Err(Error::Attach { pid, why: why.to_string() });
    if Machine::OF_THIS_PROGRAM.is_none() {
        let here = std::env::consts::ARCH;
        return refuse(&format!("processes of this machine ({here}) are not supported, only cores of others are"));
    }
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
    // A main thread that has ended while the others go on is listed as a zombie, too.
    if matches!(state, b'Z' | b'X') && list_threads(leader).len() <= 1 {
        return refuse("it has ended already (zombie); its parent has not waited for it yet");
    }
    Ok(leader)
}

/// Explains in one line why the kernel refused to trace thread `tid` of process `pid`, and what to do. `error` is the
/// kernel's error.
pub fn refusal(pid: u32, tid: u32, error: &std::io::Error) -> String {
    const CAP_SYS_PTRACE: u64 = 19;
    let theirs = format!("/proc/{pid}/task/{tid}/status");
    match error.raw_os_error() {
        // ptrace fails with EPERM, files in /proc may fail with EACCES.
        Some(libc::EPERM | libc::EACCES) => {}
        Some(libc::ESRCH) => return "it has just ended".to_string(),
        Some(libc::ENOSYS) => {
            return "this system has no ptrace (an emulator or a sandbox); run wstate outside it".into();
        }
        _ => return format!("the kernel says: {error}"),
    }
    if let Some(tracer) = status_field(&theirs, "TracerPid").filter(|t| t != "0") {
        // The tracer is a thread, but people know the id of its process.
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
    // If the process runs as our user, only this can be the reason why /proc shows it as root's (proc(5)).
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
