//! What `/proc` tells about a process and its threads: mappings, memory, names, states and system calls.

use super::evidence::MappedFiles;
use super::system::read_ranges;
use crate::arch::{Machine, Registers};
use crate::error::Error;
use crate::limits;
use crate::process::facts::{CommandLine, Facts};
use crate::process::notes::parse_auxv;
use crate::process::{Mapping, Memory, MemoryError, Thread, ThreadId};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The memory of the running process.
pub(super) struct LiveMemory {
    // A thread that was alive at the capture. It need not be the main thread, which may have ended.
    pub(super) tid: libc::pid_t,
    // This file is bound to the address space that the process had at the capture. After an exec or the end of the
    // process it reads nothing, where `process_vm_readv` would read a stranger's memory through a reused id.
    pub(super) mem: Option<File>,
}

impl LiveMemory {
    pub(super) fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
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
    pub(super) fn page_table(&self, start: u64, end: u64) -> Option<Vec<(u64, u64)>> {
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

/// What `/proc` tells about a process as a whole.
pub(super) struct Process {
    pub(super) mappings: Vec<Mapping>,
    pub(super) executable: Option<PathBuf>,
    pub(super) auxv: Vec<(u64, u64)>,
    pub(super) source: LiveMemory,
    pub(super) files: MappedFiles,
}

impl Process {
    /// Reads what `/proc` tells about process `pid`, through its thread `tid`: a main thread that has ended has no
    /// memory any more.
    pub(super) fn open(pid: u32, tid: libc::pid_t) -> Result<Process, Error> {
        let proc = PathBuf::from(format!("/proc/{pid}/task/{tid}"));
        let (mappings, files) = match std::fs::read(proc.join("maps")) {
            Ok(text) => (parse_maps(&text), MappedFiles::new(text)),
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
}

/// Whether all of the range is readable private memory without a file. Then only the process itself gives its pages
/// their contents, and a part without a page is zero. Of a file's pages, and of shared memory, only some are mapped,
/// so nothing follows from a missing page. A memory that has grown may be several mappings.
pub(super) fn are_private(mappings: &[Mapping], start: u64, end: u64) -> bool {
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
pub(super) fn thread_of(pid: u32, tid: libc::pid_t) -> Thread {
    thread_named(tid, thread_name(pid, tid))
}

pub(super) fn thread_named(tid: libc::pid_t, name: Option<String>) -> Thread {
    Thread {
        id: ThreadId(tid as u32),
        name,
        registers: Registers::unknown(Machine::HERE),
        fs_base: None,
        signal: None,
        problem: None,
    }
}

/// Whether the thread is in a system call that starts a process.
pub(super) fn starts_child(pid: u32, tid: libc::pid_t) -> bool {
    let calls = [
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork,
        libc::SYS_clone,
        libc::SYS_clone3,
    ];
    let line = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
    line.split(' ').next().and_then(|n| n.parse().ok()).is_some_and(|n| calls.contains(&n))
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

pub(super) fn list_threads(pid: u32) -> Vec<libc::pid_t> {
    let Ok(dir) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tids: Vec<libc::pid_t> = dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    // The main thread comes first, because its refusal is the one that is explained.
    tids.sort_by_key(|&tid| (tid as u32 != pid, tid));
    tids
}

/// Ids of living threads of the process that are not among the known ones.
pub(super) fn strangers(pid: u32, known: &[Thread]) -> Vec<u32> {
    let is_known = |tid: libc::pid_t| known.iter().any(|t| t.id.0 == tid as u32);
    let unknown = list_threads(pid).into_iter().filter(|&tid| !is_known(tid) && !is_gone(pid, tid));
    unknown.map(|tid| tid as u32).collect()
}

pub(super) fn thread_name(pid: u32, tid: libc::pid_t) -> Option<String> {
    name_of(&std::fs::read(comm(pid, tid)).ok()?)
}

pub(super) fn comm(pid: u32, tid: libc::pid_t) -> String {
    format!("/proc/{pid}/task/{tid}/comm")
}

/// Returns a thread's name from the contents of its `comm` file, which end with a line feed.
pub(super) fn name_of(said: &[u8]) -> Option<String> {
    let name = String::from_utf8_lossy(said.strip_suffix(b"\n").unwrap_or(said)).into_owned();
    (!name.is_empty()).then_some(name)
}

/// Returns the state letter and the flags in `/proc/PID/task/TID/stat`. The name before them may hold anything, also
/// brackets.
pub(super) fn stat(pid: u32, tid: libc::pid_t) -> Option<(u8, u64)> {
    let text = std::fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    let behind = text.iter().rposition(|&c| c == b')')? + 1;
    let fields: Vec<&str> = std::str::from_utf8(text.get(behind..)?).ok()?.split_ascii_whitespace().collect();
    Some((*fields.first()?.as_bytes().first()?, fields.get(6)?.parse().ok()?))
}

pub(super) fn thread_state(pid: u32, tid: libc::pid_t) -> Option<u8> {
    stat(pid, tid).map(|s| s.0)
}

pub(super) fn is_gone(pid: u32, tid: libc::pid_t) -> bool {
    matches!(thread_state(pid, tid), None | Some(b'Z' | b'X'))
}

/// The directory in `/proc` that tells about a process. If its main thread has ended before the others, the process's own
/// directory has neither a command line nor an owner, and that of a thread that lives has them.
fn living(pid: u32) -> String {
    let own = format!("/proc/{pid}");
    match thread_state(pid, pid as libc::pid_t) {
        Some(b'Z' | b'X') => {
            let other = list_threads(pid).into_iter().find(|&tid| !is_gone(pid, tid));
            other.map_or(own, |tid| format!("/proc/{pid}/task/{tid}"))
        }
        _ => own,
    }
}

/// What `/proc` says about a process as a whole, besides its memory and files.
pub(super) fn facts_of(pid: u32) -> Facts {
    let directory = living(pid);
    let status = format!("{directory}/status");
    // The first of four ids is the real one.
    let id = |key| status_field(&status, key)?.split_ascii_whitespace().next()?.parse().ok();
    let mut line = Vec::new();
    let most = limits::MAX_COMMAND_LINE_BYTES;
    let read =
        File::open(format!("{directory}/cmdline")).and_then(|file| file.take(most as u64 + 1).read_to_end(&mut line));
    let cut = line.len() > most;
    line.truncate(most);
    Facts {
        uid: id("Uid"),
        gid: id("Gid"),
        command_line: read.ok().and_then(|_| CommandLine::of_arguments(&line, cut)),
        ..Facts::default()
    }
}

/// Returns the value of a field in a file such as `/proc/PID/status`.
pub(super) fn status_field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(|v| v.trim().to_string())
}
