//! Why a process cannot be looked at, and what its user can try.
#![allow(unsafe_code)] // For geteuid.

use super::proc::{list_threads, stat, status_field};
use crate::arch::Machine;
use crate::error::Error;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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
