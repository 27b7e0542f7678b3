//! The system calls by which another process is traced and read: ptrace, waiting for its threads, copying its memory,
//! and the priority of the thread that does so.
#![allow(unsafe_code)] // For system calls that the standard library does not have.

/// Size of the floating point state of a thread (NT_PRFPREG), in bytes.
pub(super) const FLOATING_POINT_STATE: usize = 512;

/// A stopped thread.
pub(super) struct Stop {
    pub(super) tid: libc::pid_t,
    // A signal that was about to be delivered when the thread stopped, or 0. It is delivered when the thread is let
    // go.
    pub(super) held: i32,
    // Whether the thread was already stopped by SIGSTOP or the like. It stays so when we detach.
    pub(super) group_stop: bool,
}

/// While this value lives, the calling thread goes before others where the system allows it: a process is stopped for
/// as long as its tracer waits for a processor. It is not used while a thread is stepped, because that thread needs a
/// processor too.
pub(super) struct Urgent {
    // The thread's own priority ("nice" value).
    before: libc::c_int,
}

impl Urgent {
    pub(super) fn begin() -> Urgent {
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

pub(super) enum Wait {
    Running,
    Gone,
    Stopped(Stop),
}

/// Asks whether thread `tid` is stopped. With `keep` the stop is not consumed, so that its signal is not lost if we
/// die.
pub(super) fn stop_of(tid: libc::pid_t, keep: bool) -> Wait {
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
pub(super) type Request = libc::c_uint;
#[cfg(target_env = "musl")]
pub(super) type Request = libc::c_int;

/// Makes a ptrace request that has no result of its own. `address` and `data` are numbers, or point to what the
/// request reads and to writable memory of the size that it writes.
pub(super) fn ptrace(request: Request, tid: libc::pid_t, address: usize, data: usize) -> std::io::Result<()> {
    // SAFETY: no request used here reads or writes our memory except through these two, which are as described.
    let result = unsafe { libc::ptrace(request, tid, address as *mut libc::c_void, data as *mut libc::c_void) };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads a register set of a thread into `buf` and returns how many bytes it has.
pub(super) fn get_regset(tid: libc::pid_t, set: libc::c_int, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut vector = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    ptrace(libc::PTRACE_GETREGSET, tid, set as usize, &raw mut vector as usize)?;
    Ok(vector.iov_len)
}

/// Writes a register set of a thread.
pub(super) fn set_regset(tid: libc::pid_t, set: libc::c_int, bytes: &[u8]) -> std::io::Result<()> {
    // The kernel only reads the bytes, so the pointer may come from a shared reference.
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    ptrace(libc::PTRACE_SETREGSET, tid, set as usize, &raw mut vector as usize)
}

/// Copies ranges of memory of another process, one after the other, into `buf`. Returns how many bytes were copied up
/// to the first hole.
pub(super) fn read_ranges(tid: libc::pid_t, ranges: &[(u64, usize)], buf: &mut [u8]) -> std::io::Result<usize> {
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
