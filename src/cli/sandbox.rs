//! Analysis of what strangers made, in a process that can do no harm.
//!
//! A core, the files that it names, or an image may have been made to exploit a bug in a parser. So they are read by
//! a child process that has given up all but what reading and computing need: a seccomp filter lets it open files for
//! reading, map them, allocate memory, start threads and write to what was open before. It does not let through calls
//! for sockets, programs, other processes and executable memory, nor calls that open files for writing, or rename,
//! remove or change them. The parent reads nothing of the input; it puts the output in its place when the child says
//! that it is whole, and tells the user if the child crashed. Files are opened by a helper outside of the child
//! ([`helper`]), which does not read them either, except for copying.
//!
//! Landlock is not used in addition: of the calls that Landlock would rule on, the filter lets only those for reading
//! through, and any file may be one that the user wants read (`--debug-dir`, executables named in the core).
#![allow(unsafe_code)] // fork, prctl, _exit, a signal handler and an allocator.

use crate::cli::messages::{self, Kind};
use crate::error::{Error, MORE_MEMORY, REPORT_IT};
use crate::process::files::helper;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

/// How the work went, as far as an exit status can tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The exit code of the command.
    pub code: u8,
    /// Whether all output was written.
    pub whole: bool,
}

/// The bit in the child's exit status that says that the output is not whole. The exit codes of the commands are
/// smaller.
const NOT_WHOLE: u8 = 0x80;
/// The exit code of the commands for an error.
const FATAL: u8 = 2;
/// Whether this process is the child, whose exit status says whether the output is whole.
static CONFINED: AtomicBool = AtomicBool::new(false);
/// Whether this process has given up its rights.
static HARMLESS: AtomicBool = AtomicBool::new(false);
/// Whether the command prints stacks, and has the options that make it print less of them.
static ASKS_FOR_STACKS: AtomicBool = AtomicBool::new(false);
/// The exit code with which a Rust program ends after a panic.
const PANICKED: u8 = 101;

/// With this environment variable a caller says that nothing is to be analysed without a sandbox: its value is then
/// `required`. It is no option of the command line, so that a program that starts wstate can set it whatever command it
/// starts.
const VARIABLE: &str = "WSTATE_SANDBOX";

/// Why the work is not done, if it cannot be confined for the reason `why` and the caller wants it in no other way.
fn refusal(why: &str) -> Option<Error> {
    let is_required = std::env::var_os(VARIABLE).is_some_and(|value| value == "required");
    is_required.then(|| Error::Unsupported {
        what: format!(
            "nothing is analysed, because {VARIABLE} says that a sandbox is required and there is none: {why}"
        ),
    })
}

/// Does `work` in a child process without rights. This must be called while the process has only one thread. If the
/// system does not let the rights be given up, `work` is told why. If no child can be started, `work` is done in this
/// process. Where the user requires a sandbox, nothing is done in either case. An error says that, or how the child died.
pub fn run(work: impl FnOnce(Option<String>) -> Ended) -> Result<Ended, Error> {
    let parent = getpid();
    let (keeper, kept) = helper::keep().unzip();
    // SAFETY: there is one thread, so the child may do whatever this process may.
    match unsafe { fork() } {
        Err(e) => {
            let why = format!("no child process can be started: {e}");
            refusal(&why).map_or_else(|| Ok(work(Some(why))), Err)
        }
        Ok(ForkResult::Parent { child }) => {
            drop(kept);
            if let Some(keeper) = keeper {
                keeper.keep();
            }
            wait(child)
        }
        Ok(ForkResult::Child) => {
            CONFINED.store(true, Ordering::Relaxed);
            drop(keeper);
            if let Some(kept) = kept {
                kept.take();
            }
            let unconfined = enter(parent).err();
            HARMLESS.store(unconfined.is_none(), Ordering::Relaxed);
            let ended = match unconfined.as_deref().and_then(refusal) {
                Some(refused) => {
                    messages::print(Kind::Error, &refused);
                    messages::print(
                        Kind::Hint,
                        format!("allow seccomp, or unset {VARIABLE} to read the file with all rights of this user"),
                    );
                    Ended { code: FATAL, whole: false }
                }
                None => catch_unwind(AssertUnwindSafe(|| work(unconfined)))
                    .unwrap_or(Ended { code: PANICKED, whole: false }),
            };
            // SAFETY: this ends the process at once. What this process has yet to do at its end is done by its
            // parent.
            unsafe { libc::_exit(i32::from(ended.code | if ended.whole { 0 } else { NOT_WHOLE })) }
        }
    }
}

/// What protects this system from what this process reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// This process has given up its rights.
    Sandbox,
    /// The system did not let it give up its rights.
    Refused,
    /// Nobody asked for that.
    None,
}

/// What protects this system from what this process reads.
pub fn protection() -> Protection {
    match (HARMLESS.load(Ordering::Relaxed), CONFINED.load(Ordering::Relaxed)) {
        (true, _) => Protection::Sandbox,
        (false, true) => Protection::Refused,
        (false, false) => Protection::None,
    }
}

/// Ends the process with an error and a hint. This uses bare system calls, because nothing can be allocated or locked
/// any more.
fn end_with(error: &str, hint: &str) -> ! {
    let confined = if CONFINED.load(Ordering::Relaxed) { NOT_WHOLE } else { 0 };
    messages::write_bare(error.as_bytes(), hint.as_bytes());
    // SAFETY: this ends the process at once.
    unsafe { libc::_exit(i32::from(FATAL | confined)) }
}

/// Says that the command prints stacks, so that advice names its options. This is asked for when nothing can be allocated
/// any more, so it is said before anything is done.
pub fn stacks_are_asked_for() {
    ASKS_FOR_STACKS.store(true, Ordering::Relaxed);
}

/// Makes an abort of this process, such as that for a stack overflow, print an error and end with the exit code of
/// one, after what Rust itself says about the abort.
pub fn tell_of_abort() {
    extern "C" fn aborted(_: libc::c_int) {
        let error = match ASKS_FOR_STACKS.load(Ordering::Relaxed) {
            true => {
                "it could not go on, for the reason above; it may be about debug information, and --no-lines reads none"
            }
            false => "it could not go on, for the reason above",
        };
        end_with(error, REPORT_IT)
    }
    // SAFETY: the handler does only what a signal handler may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = aborted as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(libc::SIGABRT, &raw const action, std::ptr::null_mut());
    }
}

/// The system's allocator. If there is no memory left, the process ends with an error that says so, and with the exit
/// code of an error. Rust itself would abort with a trace of its own stack.
pub struct Allocator;

fn no_memory() -> ! {
    let hint = match ASKS_FOR_STACKS.load(Ordering::Relaxed) {
        true => "raise the limit (ulimit -v, or the container's), or ask for less: --no-lines, --brief, -n N",
        false => MORE_MEMORY,
    };
    end_with("there is not enough memory", hint)
}

fn given(pointer: *mut u8) -> *mut u8 {
    if pointer.is_null() {
        no_memory()
    }
    pointer
}

/// Address space that every look at a target needs, in bytes: stacks of threads, the helper's buffers, pieces of files.
const LEAST_ROOM: usize = 8 << 20;

/// Ends the process with an error if the limit of its address space leaves no room for a look at any target. Otherwise
/// it would run into the limit somewhere on the way, where the system gives other reasons: no thread can be started, a
/// helper process does not answer.
pub fn need_room() {
    if memmap2::MmapOptions::new().len(LEAST_ROOM).map_anon().is_err() {
        no_memory()
    }
}

// SAFETY: all arguments are handed on to the system's allocator as they came.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        given(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        given(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        given(unsafe { System.realloc(pointer, layout, size) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn wait(child: Pid) -> Result<Ended, Error> {
    let why = loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) => {
                let status = status as u8;
                return Ok(Ended { code: status & !NOT_WHOLE, whole: status & NOT_WHOLE == 0 });
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => break format!("the child process was ended by {signal}"),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => break format!("the end of the child process cannot be waited for: {e}"),
        }
    };
    Err(Error::Analysis { why })
}

/// Gives up the rights of this process, for good. The error says what the system does not support.
fn enter(parent: Pid) -> Result<(), String> {
    // SAFETY: prctl with these arguments touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if getppid() != parent {
        // SAFETY: as in `run`. Nobody waits for a result any more.
        unsafe { libc::_exit(i32::from(PANICKED | NOT_WHOLE)) }
    }
    let failed = |e: &dyn std::fmt::Display| format!("the seccomp filter cannot be set: {e}");
    let filter = filter().map_err(|e| failed(&e))?;
    seccompiler::apply_filter(&filter).map_err(|e| failed(&e))
}

/// Numbers of the system calls that are let through whatever their arguments are. The older ones are there on x86-64
/// only.
const ALWAYS: &[i64] = &[
    // Calls for what is open already.
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_write,
    // Messages to and from the helper that opens files.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_getdents64,
    libc::SYS_fadvise64,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Questions about files and paths.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads and their signals.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The time, random numbers, and questions about this process and the system.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrlimit,
];

/// The seccomp filter. A call that is not named fails with ENOSYS, so that C libraries fall back to what older
/// kernels have: from clone3, whose flags a filter cannot see, to clone.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    // The condition that the bits `mask` of an argument are those of `value`.
    let bits = |argument: u8, mask: i64, value: i64| {
        let compare = SeccompCmpOp::MaskedEq(mask as u64);
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, compare, value as u64)
    };
    let all = |conditions: Vec<SeccompCondition>| SeccompRule::new(conditions);
    let is = |argument: u8, value: i64| bits(argument, -1, value).and_then(|c| all(vec![c]));
    let int_is = |argument: u8, value: i64| {
        bits(argument, u32::MAX.into(), value & i64::from(u32::MAX)).and_then(|c| all(vec![c]))
    };
    let without = |argument: u8, flags: i32| bits(argument, flags.into(), 0).and_then(|c| all(vec![c]));

    let writing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    let thread = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;
    let me = i64::from(std::process::id());
    let some = [
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, vec![without(1, writing)?]),
        (libc::SYS_openat, vec![without(2, writing)?]),
        (libc::SYS_mmap, vec![without(2, libc::PROT_EXEC)?]),
        (libc::SYS_mprotect, vec![without(2, libc::PROT_EXEC)?]),
        (libc::SYS_clone, vec![all(vec![bits(0, thread.into(), thread.into())?])?]),
        (libc::SYS_prlimit64, vec![all(vec![bits(0, u32::MAX.into(), 0)?, bits(2, -1, 0)?])?]),
        // A signal is let through if this process sends it to itself, as abort does.
        (libc::SYS_tgkill, vec![int_is(0, me)?]),
        (libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME.into())?, is(0, libc::PR_SET_VMA.into())?]),
        (
            libc::SYS_fcntl,
            vec![
                int_is(1, libc::F_GETFD.into())?,
                int_is(1, libc::F_SETFD.into())?,
                int_is(1, libc::F_GETFL.into())?,
                int_is(1, libc::F_DUPFD_CLOEXEC.into())?,
            ],
        ),
        // These requests ask whether a file is a terminal, and how wide it is. Other requests put characters into the
        // terminal's input.
        (
            libc::SYS_ioctl,
            vec![
                int_is(1, libc::TCGETS as i64)?,
                int_is(1, libc::TCGETS2 as i64)?,
                int_is(1, libc::TIOCGWINSZ as i64)?,
            ],
        ),
    ];
    let rules = ALWAYS.iter().map(|&call| (call, Vec::new())).chain(some).collect();
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, refused, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?.try_into()
}
