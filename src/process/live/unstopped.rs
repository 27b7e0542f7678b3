//! Looks at a live process that is not stopped at all (`--nonblocking`).
//!
//! The kernel tells the stack pointer and the program counter of a thread that is not running
//! (`/proc/PID/task/TID/syscall`), and nothing else. Registers that callees keep are unknown until a younger frame is
//! found to have saved them. A stack is believed only if its thread cannot have run while it was copied: before and
//! after the copy the thread was off its processor, was at the same place, and had left a processor the same number
//! of times.

use super::evidence::Evidence;
use super::proc::{Process, is_gone, list_threads, status_field, thread_of, thread_state};
use super::stacks::copy_stacks;
use super::{CaptureOptions, LiveTarget, attachable, refusal};
use crate::arch::{Interrupted, Machine};
use crate::error::Error;
use crate::limits;
use crate::process::facts::Activity;
use crate::process::{Thread, ThreadId};
use std::collections::HashMap;

/// Why a thread that is running has no frames.
const RUNNING: &str = "it is running, and was not stopped: registers of running threads cannot be read";
/// Why the frames of a thread that woke up are not shown.
const WOKEN: &str = "it ran while its stack was read, and was not stopped: try again, or without --nonblocking";

/// Where a thread is that is not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sleeping {
    sp: u64,
    pc: u64,
    // The number of the system call in which it sleeps, if it is in one.
    call: Option<u64>,
    // Whether it was stopped by a signal.
    stopped: bool,
    // How many times the thread has left a processor.
    switches: u64,
}

impl Sleeping {
    /// What the thread does. `read` reads the memory of the process.
    fn activity(&self, read: impl FnOnce(u64, &mut [u8]) -> bool) -> Option<Activity> {
        if self.stopped {
            return Some(Activity::Stopped);
        }
        // A thread that sleeps outside of system calls waits for a page of its memory.
        let told = Interrupted::Waiting { number: self.call?, pc: self.pc, by_instruction: false };
        Activity::of(Machine::HERE, told, Some(false), read)
    }
}

impl LiveTarget {
    /// Copies the stacks of the threads that sleep, without stopping anything and without ptrace. The other threads
    /// are listed with the reason why they have no frames. Needs the same rights as [`LiveTarget::capture`].
    pub fn observe(pid: u32, options: &CaptureOptions) -> Result<LiveTarget, Error> {
        let pid = attachable(pid)?;
        let mut refused = None;
        let mut seen: Vec<(libc::pid_t, Option<Sleeping>)> = Vec::new();
        for tid in list_threads(pid).into_iter().take(limits::MAX_THREADS) {
            match place(pid, tid) {
                _ if is_gone(pid, tid) => {}
                Ok(place) => seen.push((tid, place)),
                Err(e) => refused = refused.or(Some((tid, e))),
            }
        }
        let Some(&(reader, _)) = seen.first() else {
            let why = match refused {
                Some((_, e)) if e.kind() == std::io::ErrorKind::NotFound => {
                    "this kernel does not tell where threads sleep (/proc/PID/syscall); attach without --nonblocking"
                        .into()
                }
                Some((tid, e)) => refusal(pid, tid as u32, &e),
                None => "it has just ended".to_string(),
            };
            return Err(Error::Attach { pid, why });
        };
        let process = Process::open(pid, reader)?;
        let mut threads: Vec<Thread> = seen.iter().map(|&(tid, place)| thread_at(pid, tid, place)).collect();
        let mut notes = Vec::new();
        let captured = copy_stacks(&threads, &process.mappings, &process.source, pid, options, &mut notes);
        // The evidence is taken before the threads are checked once more: threads that turn out to have slept until
        // then slept at this instant, too.
        let evidence = Evidence::take(pid, &threads, &process, &captured);
        let mut activities = HashMap::new();
        for (thread, &(tid, before)) in threads.iter_mut().zip(&seen) {
            if before.is_some() && place(pid, tid).ok().flatten() != before {
                *thread = Thread { problem: Some(WOKEN.to_string()), ..thread_of(pid, tid) };
                continue;
            }
            let read = |address, buf: &mut [u8]| process.source.read(address, buf).is_ok();
            let activity = before.map_or(Some(Activity::Running), |place| place.activity(read));
            activities.extend(activity.map(|activity| (thread.id, activity)));
        }
        let target = process.target(pid, threads, notes, captured, evidence);
        let slept = seen.into_iter().filter_map(|(tid, place)| Some((tid, place?))).collect();
        let facts = target.facts_of_now();
        Ok(LiveTarget { slept: Some(slept), activities, facts, ..target })
    }

    /// Threads that have run since [`LiveTarget::observe`] saw them sleep. A thread that sleeps on is still inside
    /// the modules on its stack, so these modules are still there.
    pub fn ran_since(&self) -> Vec<ThreadId> {
        let ran = |&&(tid, before): &&(libc::pid_t, Sleeping)| place(self.pid, tid).ok().flatten() != Some(before);
        self.slept.iter().flatten().filter(ran).map(|(tid, _)| ThreadId(*tid as u32)).collect()
    }
}

fn thread_at(pid: u32, tid: libc::pid_t, place: Option<Sleeping>) -> Thread {
    let mut thread = thread_of(pid, tid);
    match place {
        Some(place) => {
            let machine = thread.registers.machine().description();
            thread.registers.set(machine.sp, place.sp);
            thread.registers.set(machine.pc, place.pc);
        }
        None => thread.problem = Some(RUNNING.to_string()),
    }
    thread
}

/// Returns where thread `tid` is. `None` means that it runs or waits for a processor.
fn place(pid: u32, tid: libc::pid_t) -> std::io::Result<Option<Sleeping>> {
    let directory = format!("/proc/{pid}/task/{tid}");
    let Some((call, sp, pc)) = sleeping(&std::fs::read_to_string(format!("{directory}/syscall"))?) else {
        return Ok(None);
    };
    // The order matters: a thread that wakes up after the line above was read has not left a processor yet.
    let count = |key| status_field(&format!("{directory}/status"), key)?.parse::<u64>().ok();
    let switches = count("voluntary_ctxt_switches").zip(count("nonvoluntary_ctxt_switches"));
    let stopped = thread_state(pid, tid) == Some(b'T');
    Ok(switches.map(|(voluntary, forced)| Sleeping {
        sp,
        pc,
        call,
        stopped,
        switches: voluntary.saturating_add(forced),
    }))
}

/// Returns the number of the system call, the stack pointer and the program counter in a line of `/proc/PID/syscall`. Such
/// a line is `running`, or `-1 SP PC` for a thread that is blocked outside of system calls, or a number, six arguments, SP
/// and PC.
fn sleeping(line: &str) -> Option<(Option<u64>, u64, u64)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let hex = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    match words.as_slice() {
        ["-1", sp, pc] => Some((None, hex(sp)?, hex(pc)?)),
        [call, _, _, _, _, _, _, sp, pc] => Some((call.parse().ok(), hex(sp)?, hex(pc)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_syscall() {
        assert_eq!(sleeping("running\n"), None);
        assert_eq!(sleeping("-1 0x7ffd1000 0x401000\n"), Some((None, 0x7ffd_1000, 0x40_1000)));
        let line = "230 0x0 0x1 0x2 0x3 0x4 0x5 0x7fff337122e8 0x7f803135f503\n";
        assert_eq!(sleeping(line), Some((Some(230), 0x7fff_3371_22e8, 0x7f80_3135_f503)));
        assert_eq!(sleeping(""), None);
        assert_eq!(sleeping("-1 0x7ffd1000"), None);
    }
}
