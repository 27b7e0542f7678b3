//! Changes a stopped process through one of its threads. The thread makes system calls and calls functions that
//! it would not have called itself. At the end it gets other registers, or its old ones back.
//!
//! Signals that come meanwhile are kept, and sent again when the thread has its own registers. A stop (SIGSTOP) is
//! reported to the kernel at once, which renews it when the thread is let go.
//!
//! While a thread is borrowed it has other registers and blocked signals. If this program is killed in these
//! milliseconds, the process goes on with them, and breaks.

use super::general::GeneralRegisters;
use super::held::Held;
use super::proc::{LiveMemory, parse_maps, status_field};
use super::step::{SYNCHRONOUS, SignalInfo, end_stepping, is_queued};
use super::system::{FLOATING_POINT_STATE, Request, Wait, get_regset, ptrace, set_regset, stop_of};
use crate::arch::x64::{self, SYSCALL};
use crate::arch::{Machine, Reg, Slot};
use crate::limits;
use crate::process::{Mapping, Memory, MemoryError, ThreadId};
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A thread of a stopped process, borrowed to make system calls and call functions.
pub struct Borrowed<'h> {
    held: &'h Held,
    tid: libc::pid_t,
    memory: LiveMemory,
    saved: Saved,
    syscall_at: u64,
    given_back: bool,
    // Signals that came while the thread was borrowed.
    pub(super) others: RefCell<Vec<SignalInfo>>,
}

/// The state that a borrowed thread gets back.
#[derive(Clone)]
struct Saved {
    registers: GeneralRegisters,
    // FPU and vector registers, in the processor's own format.
    extended: Vec<u8>,
    blocked: u64,
}

const GETSIGMASK: Request = 0x420a;
const SETSIGMASK: Request = 0x420b;
/// Type of the extended floating point state.
const EXTENDED: libc::c_int = x64::KERNEL.extended_note as libc::c_int;
/// The return address of functions that are called. Nothing is mapped here, so a function that returns to it stops
/// the thread.
const RETURN: u64 = 8;
/// A system call or a function call that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(10);

impl Held {
    /// Checks whether [`Held::borrow`] would be refused, as far as that can be told without a change.
    ///
    /// # Errors
    /// The reason why the thread cannot be borrowed.
    pub fn can_be_borrowed(&self, tid: ThreadId) -> Result<(), String> {
        self.before_borrowing(tid).map(|_| ())
    }

    /// Finds out what can be known of a thread before it is borrowed: the state that it gets back, and the address of
    /// a system call instruction. Nothing changes.
    fn before_borrowing(&self, tid: ThreadId) -> Result<(Saved, u64), String> {
        let pid = self.target().pid;
        let id = tid.0 as libc::pid_t;
        let status = format!("/proc/{pid}/task/{}/status", tid.0);
        // A seccomp filter may end the process for a system call that the thread would not have made itself.
        match status_field(&status, "Seccomp").as_deref() {
            None | Some("0") => {}
            Some("1") => return Err("it is in seccomp's strict mode, which allows no system calls".to_string()),
            Some(_) => {
                let why =
                    "a seccomp filter decides about its system calls, and may end the process for one of wstate's";
                return Err(why.to_string());
            }
        }
        if status_field(&status, "x86_Thread_features").is_some_and(|features| has_shadow_stack(&features)) {
            return Err("it has a shadow stack, by which it faults where it returns from frames that were not called"
                .to_string());
        }
        let vdso = self.target().mappings.iter().find(|m| m.path.as_deref() == Some(Path::new("[vdso]")));
        let syscall_at = vdso.and_then(|m| {
            let code = self.target().read_vec(m.start, m.size().min(limits::MAX_VDSO) as usize).ok()?;
            Some(m.start + code.windows(SYSCALL.len()).position(|w| w == SYSCALL)? as u64)
        });
        let syscall_at = syscall_at.ok_or("the process has no vdso with a system call in it")?;
        let saved = self.on_tracer(move |stopped| -> Result<Saved, String> {
            let thread = stopped.threads.iter().find(|t| t.tid == id).ok_or("the thread is not stopped")?;
            if thread.held != 0 {
                return Err(format!("signal {} is about to come", thread.held));
            }
            if thread.group_stop {
                return Err("the process is stopped; let it go on first (kill -CONT)".to_string());
            }
            let saved = Saved::of(id).map_err(|e| format!("its registers cannot be read: {e}"))?;
            if saved.registers.is_in_system_call() {
                return Err("it is in a system call".to_string());
            }
            Ok(saved)
        })??;
        Ok((saved, syscall_at))
    }

    /// Borrows a thread that is in user code, not in a system call, and has no signal about to be delivered.
    ///
    /// # Errors
    /// The reason why the thread cannot be borrowed. Nothing has changed then.
    pub fn borrow(&self, tid: ThreadId) -> Result<Borrowed<'_>, String> {
        let pid = self.target().pid;
        let id = tid.0 as libc::pid_t;
        let (saved, syscall_at) = self.before_borrowing(tid)?;
        let mem = File::options().read(true).write(true).open(format!("/proc/{pid}/task/{}/mem", tid.0));
        let mem = mem.map_err(|e| format!("the memory of the process cannot be opened for writing: {e}"))?;
        self.on_tracer(move |_| {
            // All signals are blocked but those that report faults and steps.
            let blocked = !SYNCHRONOUS.iter().fold(0, |mask, s| mask | 1u64 << (s - 1));
            sigmask(SETSIGMASK, id, blocked).map_err(|e| format!("its signals cannot be blocked: {e}"))
        })??;
        let memory = LiveMemory { tid: id, mem: Some(mem) };
        Ok(Borrowed { held: self, tid: id, memory, saved, syscall_at, given_back: false, others: RefCell::default() })
    }
}

impl Borrowed<'_> {
    /// Makes the thread do a system call, and returns the call's result.
    ///
    /// # Errors
    /// The call itself failed, or the thread could not make it.
    pub fn system_call(&self, number: libc::c_long, arguments: [u64; 6]) -> Result<u64, String> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let at = self.syscall_at;
        let registers = self.with(&[
            (x64::RAX, number as u64),
            (x64::RDI, rdi),
            (x64::RSI, rsi),
            (x64::RDX, rdx),
            (x64::R10, r10),
            (x64::R8, r8),
            (x64::R9, r9),
            (x64::RIP, at),
        ]);
        let result = self.go(registers, libc::PTRACE_SINGLESTEP, at + SYSCALL.len() as u64)?;
        match result as i64 {
            -4095..0 => Err(std::io::Error::from_raw_os_error(-(result as i64) as i32).to_string()),
            _ => Ok(result),
        }
    }

    /// Makes the thread call a function and returns the function's result. The function's stack grows down from
    /// `stack`, which is a multiple of 16.
    ///
    /// # Errors
    /// The function faults or does not return in time.
    pub fn call(&self, function: u64, arguments: [u64; 3], stack: u64) -> Result<u64, String> {
        let sp = stack.wrapping_sub(8);
        self.write(sp, &RETURN.to_le_bytes())?;
        let [rdi, rsi, rdx] = arguments;
        let registers = self.with(&[
            (x64::RDI, rdi),
            (x64::RSI, rsi),
            (x64::RDX, rdx),
            (x64::RAX, 0),
            (x64::RSP, sp),
            (x64::RIP, function),
        ]);
        self.go(registers, libc::PTRACE_CONT, RETURN)
    }

    /// Lets the thread go on from `registers` until it is at `goal`, and returns what is in RAX then.
    fn go(&self, registers: GeneralRegisters, request: Request, goal: u64) -> Result<u64, String> {
        let tid = self.tid;
        let (ended, others) = self.held.on_tracer(move |_| {
            let mut others = Vec::new();
            let set = registers.write(tid).map_err(|e| e.to_string());
            let ended = set.and_then(|()| go(tid, request, goal, &mut others));
            // Whatever happened, single-step mode is ended: it would end the process if we died.
            let stepping = request == libc::PTRACE_SINGLESTEP;
            let normal = if stepping { end_stepping(tid).map(|_| ()).map_err(|e| e.to_string()) } else { Ok(()) };
            (ended.and_then(|now| normal.map(|()| now)), others)
        })?;
        self.others.borrow_mut().extend(others);
        ended.map(|now| now.get(x64::RAX))
    }

    /// The mappings that the process has now.
    ///
    /// # Errors
    /// The list of mappings in `/proc` cannot be read.
    pub fn mappings(&self) -> std::io::Result<Vec<Mapping>> {
        std::fs::read(format!("/proc/{}/task/{}/maps", self.held.target().pid, self.tid)).map(|text| parse_maps(&text))
    }

    /// Writes `bytes` to the memory of the process.
    ///
    /// # Errors
    /// The memory cannot be written. A part of `bytes` may have been written then.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let mem = self.memory.mem.as_ref().ok_or("the memory is not open")?;
        mem.write_all_at(bytes, address).map_err(|e| format!("{} bytes at {address:#x}: {e}", bytes.len()))
    }

    /// Gives the thread the program counter `pc`, and the general purpose registers and low halves of vector
    /// registers that `known` returns, to go on with. Registers for which it returns `None` become zero.
    ///
    /// # Errors
    /// The kernel refused a change. The thread still has to be given back then.
    pub fn set_registers(&self, pc: u64, known: impl Fn(Reg) -> Option<u64>) -> Result<(), String> {
        let mut all: Vec<(Reg, u64)> = Machine::HERE.registers().map(|reg| (reg, known(reg).unwrap_or(0))).collect();
        all.push((Machine::HERE.description().pc, pc));
        let registers = self.with(&all);
        let tid = self.tid;
        self.held
            .on_tracer(move |_| -> std::io::Result<()> {
                let mut state = [0; FLOATING_POINT_STATE];
                get_regset(tid, libc::NT_PRFPREG, &mut state)?;
                for (reg, value) in all {
                    if let Slot::Vector(offset) = reg.info().slot {
                        state[offset..][..16].copy_from_slice(&u128::from(value).to_le_bytes());
                    }
                }
                set_regset(tid, libc::NT_PRFPREG, &state)?;
                registers.write(tid)
            })?
            .map_err(|e| format!("the registers cannot be set: {e}"))
    }

    /// Lets the thread go on with the registers that it was given. Only its signal mask is restored.
    ///
    /// # Errors
    /// The kernel refused to set the signal mask.
    pub fn keep(mut self) -> Result<(), String> {
        let (tid, pid, blocked) = (self.tid, self.held.target().pid, self.saved.blocked);
        let others = self.others.take();
        let done = self.held.on_tracer(move |_| {
            others.iter().for_each(|info| info.send_again(pid, tid));
            sigmask(SETSIGMASK, tid, blocked)
        })?;
        self.given_back = done.is_ok();
        done.map(|_| ()).map_err(|e| format!("the signal mask cannot be set: {e}"))
    }

    /// Gives the thread back with the registers and the signal mask that it had.
    ///
    /// # Errors
    /// The kernel refused a change. The thread is broken then.
    pub fn give_back(mut self) -> Result<(), String> {
        self.restore()
    }

    fn restore(&mut self) -> Result<(), String> {
        self.given_back = true;
        let (tid, pid, saved) = (self.tid, self.held.target().pid, self.saved.clone());
        let others = self.others.take();
        let done = self.held.on_tracer(move |_| -> std::io::Result<()> {
            others.iter().for_each(|info| info.send_again(pid, tid));
            set_regset(tid, EXTENDED, &saved.extended)?;
            saved.registers.write(tid)?;
            sigmask(SETSIGMASK, tid, saved.blocked).map(|_| ())
        })?;
        done.map_err(|e| format!("the thread's registers could not be given back: {e}"))
    }

    fn with(&self, changes: &[(Reg, u64)]) -> GeneralRegisters {
        let mut out = self.saved.registers.clone();
        changes.iter().for_each(|&(reg, value)| out.set(reg, value));
        out.leave_system_call();
        out
    }
}

impl Memory for Borrowed<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(address, buf)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if !self.given_back {
            let _ = self.restore();
        }
    }
}

impl Saved {
    fn of(tid: libc::pid_t) -> std::io::Result<Saved> {
        // The largest extended state so far, with tile registers, has 11 KiB.
        let mut extended = vec![0; 64 << 10];
        let used = get_regset(tid, EXTENDED, &mut extended)?;
        extended.truncate(used);
        Ok(Saved { registers: Saved::registers(tid)?, extended, blocked: sigmask(GETSIGMASK, tid, 0)? })
    }

    fn registers(tid: libc::pid_t) -> std::io::Result<GeneralRegisters> {
        GeneralRegisters::read(tid)?.ok_or_else(|| std::io::Error::other("it is a 32-bit thread"))
    }
}

/// Whether the thread's features in `/proc/PID/task/TID/status` name a user shadow stack (Linux 6.6,
/// `CONFIG_X86_USER_SHADOW_STACK`).
fn has_shadow_stack(features: &str) -> bool {
    features.split_ascii_whitespace().any(|feature| feature == "shstk")
}

/// Reads or sets the mask of blocked signals, and returns the mask.
fn sigmask(request: Request, tid: libc::pid_t, mask: u64) -> std::io::Result<u64> {
    let mut mask = mask;
    ptrace(request, tid, size_of::<u64>(), &raw mut mask as usize)?;
    Ok(mask)
}

/// Lets a thread go on until it is at `goal`, and returns its registers. If that takes longer than [`PATIENCE`], the
/// thread is made to stop.
fn go(tid: libc::pid_t, request: Request, goal: u64, others: &mut Vec<SignalInfo>) -> Result<GeneralRegisters, String> {
    let resume = |request, signal| ptrace(request, tid, 0, signal).map_err(|e| e.to_string());
    resume(request, 0)?;
    let begin = Instant::now();
    let mut interrupted = false;
    loop {
        let stop = match stop_of(tid, false) {
            Wait::Stopped(stop) => stop,
            Wait::Gone => return Err("the thread has ended".to_string()),
            Wait::Running if begin.elapsed() > PATIENCE * 2 => {
                return Err("the thread does not stop again".to_string());
            }
            Wait::Running => {
                if begin.elapsed() > PATIENCE && !interrupted {
                    interrupted = true;
                    resume(libc::PTRACE_INTERRUPT, 0)?;
                }
                std::thread::yield_now();
                continue;
            }
        };
        // SIGCONT makes a stop that is reported before any signal. The signal that reports the end must not stay
        // queued for the process.
        if stop.held == 0 && is_queued(tid, SignalInfo::is_own) {
            resume(request, 0)?;
            continue;
        }
        let info = if stop.held == 0 { None } else { Some(SignalInfo::of(tid).map_err(|e| e.to_string())?) };
        let own = info.as_ref().is_some_and(SignalInfo::is_own);
        if stop.held == libc::SIGSTOP {
            // The thread cannot block SIGSTOP. The kernel must know that the process is to be stopped, and whether
            // SIGCONT comes later.
            resume(libc::PTRACE_INTERRUPT, 0)?;
            resume(libc::PTRACE_CONT, libc::SIGSTOP as usize)?;
            continue;
        }
        others.extend(info.filter(|_| !own));
        let now = Saved::registers(tid).map_err(|e| e.to_string())?;
        // The place counts, not the signal: a signal that is pending already takes the place of the one that would
        // report the fault.
        if now.pc() == goal {
            return Ok(now);
        }
        if own || interrupted {
            return Err(format!("the thread stopped elsewhere (signal {} at {:#x})", stop.held, now.pc()));
        }
        resume(request, 0)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_stack_is_among_the_features() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let has = |status: &str| {
            std::fs::write(file.path(), status).unwrap();
            let features = status_field(file.path().to_str().unwrap(), "x86_Thread_features");
            features.is_some_and(|features| has_shadow_stack(&features))
        };
        assert!(has("Seccomp:\t0\nx86_Thread_features:\tshstk \nx86_Thread_features_locked:\t\n"));
        assert!(has("x86_Thread_features:\tshstk wrss \n") && has("x86_Thread_features:\twrss shstk\n"));
        // Locked features are those that cannot be changed, not those that are on.
        assert!(!has("x86_Thread_features:\t\nx86_Thread_features_locked:\tshstk wrss \n"));
        assert!(!has("x86_Thread_features:\twrss\n") && !has("Seccomp:\t0\n") && !has(""));
    }
}
