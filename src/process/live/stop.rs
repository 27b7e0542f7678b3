//! Stops all threads of a process and lets them go again.

use super::general::GeneralRegisters;
use super::proc::{comm, is_gone, list_threads, name_of, starts_child, thread_name, thread_named, thread_state};
use super::system::{FLOATING_POINT_STATE, Stop, Urgent, Wait, get_regset, ptrace, stop_of};
use super::{CaptureOptions, attachable, refusal};
use crate::arch::{Interrupted, Machine};
use crate::error::Error;
use crate::limits;
use crate::process::Thread;
use crate::process::facts;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Runs `work` on a thread of its own, which ends with it, so that the kernel detaches whatever is still seized.
pub(super) fn on_own_thread<T: Send>(pid: u32, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("tracer".to_string()).spawn_scoped(scope, work);
        match thread.map(|t| t.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(e) => Err(Error::Attach { pid, why: format!("no thread for tracing could be started: {e}") }),
        }
    })
}

/// Note about a process whose main thread has ended before the others.
const MAIN_ENDED: &str = "the main thread has ended, and the other threads go on";
/// Why a thread that waits in vfork or posix_spawn does not stop.
const VFORK: &str =
    "it waits until the child that it has started (vfork) executes a program or ends, and cannot be stopped";

impl Stop {
    /// The thread with its registers, and what they tell about what it did.
    pub(super) fn registers(&self, name: Option<String>) -> (Thread, Option<Interrupted>) {
        let mut told = None;
        let mut thread = Thread { signal: (self.held != 0).then_some(self.held), ..thread_named(self.tid, name) };
        match GeneralRegisters::read(self.tid) {
            Ok(Some(registers)) => {
                thread.set_general(registers.bytes());
                told = facts::interrupted(Machine::HERE, registers.bytes());
            }
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
        (thread, told)
    }
}

/// All threads of a process, which are stopped. Dropping this lets them go.
pub(super) struct Stopped {
    pub(super) pid: u32,
    pub(super) threads: Vec<Stop>,
    // Threads that are not stopped, with the reason: they could not be seized, or did not stop in time.
    pub(super) unstopped: Vec<(libc::pid_t, &'static str)>,
    // Names of the threads, read while all are stopped: a thread may name itself after the work that it does.
    pub(super) names: HashMap<libc::pid_t, Option<String>>,
    // Open files from which the names are read. They are closed when everything runs again.
    name_files: HashMap<libc::pid_t, File>,
    pub(super) notes: Vec<String>,
    // Threads that ran or waited for a processor just before they were interrupted.
    pub(super) ran: HashSet<libc::pid_t>,
    // When the first thread was interrupted.
    pub(super) since: Instant,
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

/// Repeats `round` until it returns `true`, which means that there was nothing to do. Returns `false` if there was
/// always something to do.
pub(super) fn until_quiet(mut round: impl FnMut() -> bool) -> bool {
    (0..limits::MAX_STOP_ROUNDS).any(|_| round())
}

impl Stopped {
    /// A value for process `pid` that holds no thread yet.
    pub(super) fn none(pid: u32) -> Stopped {
        Stopped {
            pid,
            threads: Vec::new(),
            unstopped: Vec::new(),
            names: HashMap::new(),
            name_files: HashMap::new(),
            notes: Vec::new(),
            ran: HashSet::new(),
            since: Instant::now(),
        }
    }

    /// Stops every thread.
    ///
    /// Threads are seized first, which stops nothing and takes most of the time. Then those that run are interrupted,
    /// and the rest when those are stopped. A thread that sleeps has to wake up in order to stop, and so does this
    /// one between two threads, and each time a thread that still runs may take the processor for milliseconds.
    pub(super) fn all(pid: u32, options: &CaptureOptions) -> Result<Stopped, Error> {
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
                    // A main thread that ends before the others stays as a zombie for as long as they live.
                    Err(_) if tid as u32 == pid && thread_state(pid, tid) == Some(b'Z') => {
                        all.notes.push(MAIN_ENDED.to_string())
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
            all.ran.extend(&running);
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
    pub(super) fn wait_for(&mut self, mut pending: Vec<libc::pid_t>, timeout: Duration) -> usize {
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
    pub(super) fn reader(&self) -> libc::pid_t {
        let main = self.pid as libc::pid_t;
        match self.threads.iter().find(|t| t.tid == main).or_else(|| self.threads.first()) {
            Some(thread) => thread.tid,
            None => main,
        }
    }

    /// Lets every thread go, with the signal that it was about to get. A stopped process stays stopped: the kernel
    /// renews the group stop on detach (`__ptrace_unlink`).
    pub(super) fn release(&mut self) {
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
