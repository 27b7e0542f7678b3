//! Single-steps one thread. Tells the stops that end a step from others, and signals that come meanwhile from those
//! that the steps themselves make.
#![allow(unsafe_code)] // For sending a signal again.

use super::general::GeneralRegisters;
use super::proc::{LiveMemory, status_field};
use super::stop::Stopped;
use super::system::{Stop, Wait, ptrace, stop_of};
use crate::arch::x64;
use crate::error::Error;
use crate::process::{Memory, ThreadId};
use std::fs::File;
use std::time::{Duration, Instant};

/// What the caller of `LiveTarget::settle` says about the instruction that would be executed next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The instruction is a point: stop here.
    Point,
    /// The instruction is in code that can be stepped through: go on.
    Step,
    /// The instruction is not in the caller's code (but in a callee or the runtime): do not step any further.
    Outside,
}

/// How `LiveTarget::settle` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The thread is at a point.
    Point,
    /// The thread is at an instruction that is outside of the caller's code.
    Left,
    /// The thread has made the given number of steps.
    Limit,
    /// The thread got a signal that the process does not ignore. It is delivered when the thread runs on.
    Signal(i32),
    /// The thread could not be stepped, for the given reason.
    Refused(Refusal),
}

/// Why a thread could not be stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The registers of the thread cannot be read, so nothing is known of where it is.
    #[error("its registers cannot be read")]
    Registers,
    /// The process is stopped by job control.
    #[error("the process is stopped")]
    Stopped,
    /// The thread is in a system call, where it may stay for ever.
    #[error("the thread is in a system call")]
    SystemCall,
    /// The kernel refused `PTRACE_SINGLESTEP`.
    #[error("the kernel refuses to step it")]
    Kernel,
    /// The thread has ended, or does not stop any more.
    #[error("the thread ended or did not stop again")]
    Gone,
    /// A step did not end and had to be interrupted.
    #[error("a step did not end")]
    NoEnd,
}

/// What `LiveTarget::settle` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettleReport {
    /// Number of instructions that were executed.
    pub steps: usize,
    /// How the stepping ended.
    pub outcome: Settled,
}

impl SettleReport {
    /// Whether the thread is at a point now.
    pub fn reached(&self) -> bool {
        self.outcome == Settled::Point
    }
}

impl Stop {
    /// Whether this stop says that a single step has ended.
    pub(super) fn is_step(&self) -> bool {
        self.held == libc::SIGTRAP && SignalInfo::of(self.tid).is_ok_and(|info| info.is_step())
    }

    /// Whether a step that was begun can go on after this stop. That is so after a stop of the kernel's own, which
    /// SIGCONT makes and which comes before any signal, and after a signal without effect. A process that is stopped
    /// cannot begin a step, but can end one.
    pub(super) fn is_passing(&self, pid: u32) -> bool {
        match self.held {
            0 => !self.group_stop || is_queued(self.tid, SignalInfo::is_step),
            libc::SIGTRAP => false,
            signal => is_ignored(pid, signal),
        }
    }
}

impl Stopped {
    pub(super) fn step(
        &mut self,
        tid: ThreadId,
        max_steps: usize,
        verdict: &mut (dyn FnMut(u64, &dyn Memory) -> Verdict + Send),
    ) -> Result<SettleReport, Error> {
        // A step that takes longer than this is a system call.
        const STEP_TIMEOUT: Duration = Duration::from_millis(500);
        let pid = self.pid;
        let source = LiveMemory { tid: self.reader(), mem: File::open(format!("/proc/{pid}/task/{}/mem", tid.0)).ok() };
        let Some(thread) = self.threads.iter_mut().find(|t| t.tid as u32 == tid.0) else {
            return Err(Error::NoSuchThread {
                tid: tid.0,
                what: format!("process {pid} has no thread {} that can be stepped", tid.0),
            });
        };
        let mut steps = 0;
        let (mut stepping, mut again) = (false, None);
        let outcome = loop {
            let Ok(Some(registers)) = GeneralRegisters::read(thread.tid) else {
                break Settled::Refused(Refusal::Registers);
            };
            match verdict(registers.pc(), &source) {
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
            // Going on would restart the system call, and the thread would perhaps never come back.
            if steps == 0 && registers.is_in_system_call() {
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
            // The stop after a step is consumed, because it is a SIGTRAP that must not reach the process if we die
            // now.
            let next = loop {
                match stop_of(thread.tid, false) {
                    Wait::Running if begin.elapsed() > STEP_TIMEOUT && !interrupted => {
                        interrupted = true;
                        let _ = ptrace(libc::PTRACE_INTERRUPT, thread.tid, 0, 0);
                    }
                    Wait::Running if begin.elapsed() > STEP_TIMEOUT * 4 => break None,
                    Wait::Running => std::thread::yield_now(),
                    Wait::Gone => break None,
                    // This stop is reported before the step's own stop and does not end the step. If the instruction
                    // is done already, its SIGTRAP comes next, before another instruction is executed.
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
                    // This stop is consumed, too. Its signal goes back to the kernel, and comes again.
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
            // The signal is recorded as about to be delivered, whether this program or the kernel keeps it. That does
            // no harm, because a stop like this one has no use for it.
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

/// Ends the single-step mode of a stopped thread. The mode outlives us, and only `PTRACE_CONT` and a detach end
/// it. The interrupt that is there already stops the thread before its next instruction. The signal that the thread
/// is stopped for is dropped, and so is the SIGTRAP of a last step that has not been reported yet: nobody but a tracer
/// has a use for it.
pub(super) fn end_stepping(tid: libc::pid_t) -> std::io::Result<Stop> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let before = pc(tid)?;
    let begin = Instant::now();
    loop {
        // If the SIGTRAP of a step is queued, the thread is stepped and not interrupted: an interrupt would be
        // reported first. It is a step and no continuation, in case the queued signal does not stop the thread.
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

/// Which queued signals `PTRACE_PEEKSIGINFO` is to show, as ptrace(2) describes it. Not every C library declares it.
#[repr(C)]
struct WhichSignals {
    off: u64,
    flags: u32,
    nr: i32,
}

/// Whether a signal for which `is` is true is queued for this very thread, which is stopped.
pub(super) fn is_queued(tid: libc::pid_t, is: impl Fn(&SignalInfo) -> bool) -> bool {
    const BATCH: usize = 16;
    // This check comes first because the kernel counts its queue from the start for each signal that it shows.
    let pending = status_mask(&format!("/proc/{tid}/status"), "SigPnd");
    if pending.is_some_and(|mask| SYNCHRONOUS.iter().all(|s| mask >> (s - 1) & 1 == 0)) {
        return false;
    }
    let mut off = 0;
    loop {
        let mut infos = [[0u64; 16]; BATCH];
        let args = WhichSignals { off, flags: 0, nr: BATCH as i32 };
        let shown =
            ptrace(libc::PTRACE_PEEKSIGINFO, tid, &raw const args as usize, infos.as_mut_ptr() as usize).is_ok();
        let infos = infos.map(SignalInfo);
        if shown && infos.iter().any(&is) {
            return true;
        }
        // Signal 0 is no signal, but the end of the queue.
        if !shown || infos.iter().any(|info| info.signal() == 0) {
            return false;
        }
        off += BATCH as u64;
    }
}

/// Whether the thread is stopped in a system call that was interrupted and that it will make anew when it goes on.
fn is_to_restart(tid: libc::pid_t) -> bool {
    // ERESTARTSYS to ERESTART_RESTARTBLOCK, results that only tracers see.
    const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;
    let Ok(Some(registers)) = GeneralRegisters::read(tid) else { return false };
    registers.is_in_system_call() && RESTARTS.contains(&(registers.get(x64::RAX) as i64))
}

/// Whether a signal does nothing to the process, by default or because the process ignores it. The kernel does not
/// even send such signals, except to a process that is traced.
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
    let registers = GeneralRegisters::read(tid)?;
    Ok(registers.map_or(0, |registers| registers.pc()))
}

/// Signals that report faults and steps of the thread itself.
pub(super) const SYNCHRONOUS: [i32; 6] =
    [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS];

/// The bytes of a `siginfo_t`. The structure itself holds pointers of the other process and cannot be sent from
/// thread to thread.
pub(super) struct SignalInfo([u64; 16]);

impl SignalInfo {
    /// Reads the information on the signal that a thread is stopped for.
    pub fn of(tid: libc::pid_t) -> std::io::Result<SignalInfo> {
        const { assert!(size_of::<SignalInfo>() == size_of::<libc::siginfo_t>()) };
        let mut info = SignalInfo([0; 16]);
        ptrace(libc::PTRACE_GETSIGINFO, tid, 0, info.0.as_mut_ptr() as usize)?;
        Ok(info)
    }

    // `si_signo`, `si_errno`, `si_code` come first, 4 bytes each.
    pub fn signal(&self) -> i32 {
        self.0[0] as i32
    }

    pub fn code(&self) -> i32 {
        self.0[1] as i32
    }

    /// Whether the signal says that a single step has ended: TRAP_TRACE, or TRAP_BRKPT after a system call.
    pub fn is_step(&self) -> bool {
        self.signal() == libc::SIGTRAP && [libc::TRAP_TRACE, libc::TRAP_BRKPT].contains(&self.code())
    }

    /// Whether the kernel reports something that the thread itself did. The signal's code is positive then; signals
    /// that somebody sends have other codes.
    pub fn is_own(&self) -> bool {
        SYNCHRONOUS.contains(&self.signal()) && self.code() > 0
    }

    /// Whether the signal comes from the thread's next instruction, and so will come again.
    pub fn recurs(&self) -> bool {
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE].contains(&self.signal()) && self.code() > 0
    }

    /// Sends a thread the signal that it was about to get, with the information that came with it as far as the
    /// kernel allows: nobody may send a signal in the name of the kernel or of kill(2).
    pub fn send_again(&self, pid: u32, tid: libc::pid_t) {
        let signal = self.signal();
        // SAFETY: the kernel reads only a siginfo_t, which has this size.
        let sent = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, self.0.as_ptr()) };
        if sent != 0 {
            // SAFETY: tgkill touches no memory.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
        }
    }
}
