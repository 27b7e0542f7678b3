//! A stopped process as a debugger sees it, and the questions that tests ask within their own process.

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use wstate::arch::{Machine, Registers, x64};
use wstate::process::{Mapping, Memory, MemoryError, Target, Thread, ThreadId};
use wstate::report::Report;
use wstate::session::{Options, Outcome, Session, Source};

/// A question about a process without the names of native functions, which take most of the time.
pub fn question(source: Source) -> Options {
    let mut options = Options::new(source);
    options.names = false;
    options
}

/// Answers a question in this process.
pub fn ask(options: &Options) -> Outcome {
    Session::open(options).and_then(|session| session.stacks()).unwrap_or_else(|e| panic!("{options:?}: {e}"))
}

/// The report's thread.
pub fn thread(report: &Report, tid: u32) -> &wstate::report::Thread {
    report.threads.iter().find(|t| t.tid == Some(tid)).unwrap_or_else(|| panic!("no thread {tid} in the report"))
}

/// General registers of a thread that this thread traces.
pub fn registers_of(tid: u32) -> Registers {
    let r = ptrace::getregs(Pid::from_raw(tid as i32)).expect("a traced thread's registers");
    let mut out = Registers::unknown(Machine::X64);
    for (reg, value) in [
        (x64::RAX, r.rax),
        (x64::RCX, r.rcx),
        (x64::RDX, r.rdx),
        (x64::RBX, r.rbx),
        (x64::RSP, r.rsp),
        (x64::RBP, r.rbp),
        (x64::RSI, r.rsi),
        (x64::RDI, r.rdi),
        (x64::R8, r.r8),
        (x64::R9, r.r9),
        (x64::R10, r.r10),
        (x64::R11, r.r11),
        (x64::R12, r.r12),
        (x64::R13, r.r13),
        (x64::R14, r.r14),
        (x64::R15, r.r15),
        (x64::RIP, r.rip),
    ] {
        out.set(reg, value);
    }
    out
}

/// A stopped thread of a process that this thread traces: what a debugger sees. `LiveTarget` cannot be used there, since
/// a thread has one tracer.
pub struct Traced {
    pid: u32,
    memory: fs::File,
    mappings: Vec<Mapping>,
    executable: PathBuf,
    threads: Vec<Thread>,
}

impl Traced {
    /// Stops thread `tid` of process `pid`.
    pub fn seize(pid: u32, tid: u32) -> Traced {
        let id = Pid::from_raw(tid as i32);
        ptrace::seize(id, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(id).unwrap();
        wait_for_stop(id);
        let maps = procfs::process::Process::new(pid as i32).and_then(|p| p.maps()).unwrap();
        use procfs::process::{MMPermissions, MMapPath};
        let mappings = maps.into_iter().map(|m| Mapping {
            start: m.address.0,
            end: m.address.1,
            read: m.perms.contains(MMPermissions::READ),
            write: m.perms.contains(MMPermissions::WRITE),
            execute: m.perms.contains(MMPermissions::EXECUTE),
            offset: m.offset,
            path: match m.pathname {
                MMapPath::Path(p) => Some(p),
                MMapPath::Anonymous => None,
                MMapPath::Stack => Some("[stack]".into()),
                MMapPath::Vdso => Some("[vdso]".into()),
                _ => Some("[heap]".into()),
            },
        });
        let thread = Thread {
            id: ThreadId(tid),
            name: None,
            registers: registers_of(tid),
            fs_base: None,
            signal: None,
            problem: None,
        };
        Traced {
            pid,
            memory: fs::File::open(format!("/proc/{pid}/mem")).unwrap(),
            mappings: mappings.collect(),
            executable: fs::read_link(format!("/proc/{pid}/exe")).unwrap(),
            threads: vec![thread],
        }
    }

    fn id(&self) -> Pid {
        Pid::from_raw(self.threads[0].id.0 as i32)
    }

    /// Executes one instruction.
    pub fn step(&self) {
        ptrace::step(self.id(), None).unwrap();
        wait_for_stop(self.id());
    }

    /// The registers as they are now.
    pub fn registers(&self) -> Registers {
        registers_of(self.threads[0].id.0)
    }
}

/// Lets the thread go. Without that the process could not end: its tracer has to wait for the thread.
impl Drop for Traced {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.id(), None);
    }
}

fn wait_for_stop(id: Pid) {
    match waitpid(id, Some(WaitPidFlag::__WALL)).unwrap() {
        WaitStatus::Stopped(_, Signal::SIGTRAP) | WaitStatus::PtraceEvent(..) => {}
        other => panic!("thread {id} does not stand: {other:?}"),
    }
}

impl Memory for Traced {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        use std::os::unix::fs::FileExt;
        let unmapped = MemoryError::Unmapped { address, len: buf.len() };
        if address > i64::MAX as u64 {
            return Err(unmapped);
        }
        self.memory.read_exact_at(buf, address).map_err(|_| unmapped)
    }
}

impl Target for Traced {
    fn machine(&self) -> Machine {
        Machine::X64
    }
    fn description(&self) -> String {
        format!("stepped process {}", self.pid)
    }
    fn threads(&self) -> &[Thread] {
        &self.threads
    }
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }
    fn executable(&self) -> Option<&Path> {
        Some(&self.executable)
    }
    fn pid(&self) -> Option<u32> {
        Some(self.pid)
    }
    fn auxv(&self, _: u64) -> Option<u64> {
        None
    }
    fn file_candidates(&self, mapping: &Mapping) -> Vec<wstate::process::files::FileLocation> {
        mapping
            .path
            .iter()
            .filter(|_| !mapping.is_anonymous())
            .map(wstate::process::files::FileLocation::user)
            .collect()
    }
    fn notes(&self) -> &[String] {
        &[]
    }
    fn is_live(&self) -> bool {
        true
    }
}
