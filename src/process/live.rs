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

mod evidence;
mod general;
pub mod held;
pub mod inject;
mod proc;
mod refusal;
mod reread;
mod stacks;
mod step;
mod stop;
mod system;
#[cfg(test)]
#[allow(unsafe_code)] // signal handlers, and system calls that the library does not make
mod tests;
mod unstopped;

use self::evidence::Evidence;
#[cfg(any(test, feature = "cli"))]
pub use self::proc::parse_maps;
use self::proc::{LiveMemory, Process, are_private, facts_of, thread_named};
pub(crate) use self::refusal::attachable;
pub use self::refusal::refusal;
pub use self::reread::ReadSet;
use self::stacks::copy_stacks;
pub use self::step::{Refusal, SettleReport, Settled, Verdict};
use self::stop::{Stopped, on_own_thread};
use self::system::Urgent;
use super::facts::{Activity, Facts};
use super::files::{FileLocation, Identity};
use super::memory::{PageCache, Piece, Splice};
use super::notes::without_deleted;
use super::{Mapping, Memory, MemoryError, Target, Thread, ThreadId};
use crate::arch::Machine;
use crate::error::Error;
use crate::limits;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

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
    activities: HashMap<ThreadId, Activity>,
    facts: Facts,
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
        target.facts = target.facts_of_now();
        Ok(target)
    }

    /// Copies what is needed of a stopped process.
    fn look(stopped: &mut Stopped, options: &CaptureOptions, set: &ReadSet) -> Result<LiveTarget, Error> {
        let _urgent = Urgent::begin();
        let pid = stopped.pid;
        let process = Process::open(pid, stopped.reader())?;
        let name = |tid: libc::pid_t| stopped.names.get(&tid).cloned().flatten();
        let mut threads = Vec::new();
        let mut activities = HashMap::new();
        for stop in &stopped.threads {
            let (thread, told) = stop.registers(name(stop.tid));
            let ran = Some(stopped.ran.contains(&stop.tid));
            let read = |address, buf: &mut [u8]| process.source.read(address, buf).is_ok();
            let activity = match stop.group_stop {
                true => Some(Activity::Stopped),
                false => told.and_then(|told| Activity::of(Machine::HERE, told, ran, read)),
            };
            activities.extend(activity.map(|activity| (thread.id, activity)));
            threads.push(thread);
        }
        let mut notes = std::mem::take(&mut stopped.notes);
        let mut captured = copy_stacks(&threads, &process.mappings, &process.source, pid, options, &mut notes);
        let copied = reread::copy(set, &process, &mut captured);
        let evidence = Evidence::take(pid, &threads, &process, &captured);
        for &(tid, why) in &stopped.unstopped {
            threads.push(Thread { problem: Some(why.to_string()), ..thread_named(tid, name(tid)) });
        }
        threads.sort_by_key(|t| (t.id.0 != pid, t.id));
        Ok(LiveTarget { copied, activities, ..process.target(pid, threads, notes, captured, evidence) })
    }
}

impl Process {
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
            activities: HashMap::new(),
            facts: Facts::default(),
        }
    }
}

impl LiveTarget {
    /// What `/proc` says about the process. It is asked when the threads run again, because it does not change with
    /// them.
    fn facts_of_now(&self) -> Facts {
        let facts = facts_of(self.pid);
        // If the process runs another program meanwhile, that program's facts are not those of the stop. The memory file
        // is bound to the address space that was seen.
        let same = self.mappings.iter().find(|m| m.read).is_some_and(|m| self.source.read(m.start, &mut [0]).is_ok());
        if same { facts } else { Facts::default() }
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

    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn activity(&self, thread: ThreadId) -> Option<Activity> {
        self.activities.get(&thread).copied()
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
