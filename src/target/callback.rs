//! A stopped process or a core that a debugger holds: the debugger lends memory and registers, this side keeps what it
//! was lent until the target runs.
//!
//! Two short cuts, both only where the debugger says that the target is on this machine, and neither for code, where a
//! debugger may have breakpoints that only it can hide: other memory of a live process is read from `/proc/PID/mem`
//! (gdb's Python needs longer for a heap than we do), and a core that can be opened is read as `wstate core` reads it.
//! What a short cut cannot answer, the debugger is asked.

use super::core::CoreTarget;
use super::live::parse_maps;
use super::memory::PAGE;
use super::notes::{parse_auxv, without_deleted};
use super::objects::SearchPaths;
use super::{Mapping, Memory, MemoryError, Target, Thread, ThreadId};
use crate::arch::{Reg, Registers};
use crate::limits;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What a debugger lends while a target stands.
pub trait Lender {
    /// Reads ranges (address, length in bytes). `None`: not readable as a whole. As many answers as questions.
    ///
    /// At most [`limits::MAX_LENT_READS`] ranges and [`limits::MAX_LENT_BYTES`] bytes are asked for at once.
    fn memory(&self, ranges: &[(u64, usize)]) -> Vec<Option<Vec<u8>>>;
    /// Registers of threads; `None` where the debugger has none.
    fn registers(&self, threads: &[u32]) -> Vec<Option<LentRegisters>>;
}

/// Registers of one thread as the debugger knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LentRegisters {
    /// By name: `rip`, `rsp`, `xmm0` (its low 64 bits), ...
    pub values: Vec<(String, u64)>,
    /// Thread pointer.
    pub fs_base: Option<u64>,
}

/// What a debugger says of its target.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Process id, if it has one.
    pub pid: Option<u32>,
    /// Whether `pid` is a process of this machine that we see under the same number.
    pub local: bool,
    /// Path of the core, if the target is one and the file is on this machine.
    pub core: Option<PathBuf>,
    /// Main executable as the target names it.
    pub executable: Option<PathBuf>,
    /// Mappings, in the form of `/proc/PID/maps`.
    pub maps: Option<String>,
    /// Auxiliary vector.
    pub auxv: Option<Vec<u8>>,
    /// Threads: id and name.
    pub threads: Vec<(u32, Option<String>)>,
}

/// A target that a debugger holds.
pub struct CallbackTarget {
    lender: Rc<dyn Lender>,
    pid: Option<u32>,
    local: bool,
    threads: Vec<Thread>,
    mappings: Vec<Mapping>,
    executable: Option<PathBuf>,
    auxv: Vec<(u64, u64)>,
    notes: Vec<String>,
    core: Option<CoreTarget>,
    /// The address space of the process, for what is not code.
    mem: Option<File>,
    lent: RefCell<Lent>,
    sysroot: Option<PathBuf>,
}

/// Pages that were lent; an empty one could not be read.
#[derive(Default)]
struct Lent {
    pages: HashMap<u64, Box<[u8]>>,
}

/// Pages asked for at once around a small read: a walk reads a stack upwards.
const AHEAD: u64 = 4;

impl CallbackTarget {
    /// Puts together what the debugger says and what this machine knows of the same target. Never fails: what is
    /// missing is a note.
    pub fn new(lender: Rc<dyn Lender>, what: Description, search: &SearchPaths) -> CallbackTarget {
        let mut notes = Vec::new();
        let core = what.core.as_deref().and_then(|path| match CoreTarget::open(path, search) {
            Ok(core) => Some(core),
            Err(e) => {
                notes.push(format!("{e}; only what the debugger knows of it is used"));
                None
            }
        });
        let proc = |file: &str| what.pid.filter(|_| what.local).map(|pid| PathBuf::from(format!("/proc/{pid}/{file}")));
        let own = |file: &str| proc(file).and_then(|path| std::fs::read(path).ok()).filter(|bytes| !bytes.is_empty());
        let maps = own("maps").or_else(|| what.maps.map(String::into_bytes));
        let mut mappings: Vec<Mapping> = match (&core, &maps) {
            (Some(core), _) => core.mappings().to_vec(),
            (None, Some(maps)) => parse_maps(maps),
            (None, None) => Vec::new(),
        };
        mappings.truncate(limits::MAX_MAPPINGS);
        mappings.sort_by_key(|m| m.start);
        let mut end = 0;
        mappings.retain(|m| {
            let apart = m.start >= end;
            end = end.max(m.end);
            apart
        });
        if mappings.is_empty() {
            notes.push("the debugger does not know the target's mappings: Wasm code cannot be told from other code".into());
        }
        let auxv = own("auxv").or(what.auxv).map(|bytes| parse_auxv(&bytes)).unwrap_or_default();
        let executable = proc("exe").and_then(|path| std::fs::read_link(path).ok()).or(what.executable);
        let mem = proc("mem").and_then(|path| File::open(path).ok());
        let mut target = CallbackTarget {
            lender,
            pid: what.pid,
            local: what.local,
            threads: Vec::new(),
            mappings,
            executable,
            auxv,
            notes,
            core,
            mem,
            lent: RefCell::default(),
            sysroot: search.sysroot.clone(),
        };
        if let Some(core) = &target.core {
            target.notes.extend(core.notes().iter().cloned());
            target.pid = core.pid().or(target.pid);
        }
        target.threads = target.lend_threads(&what.threads);
        target
    }

    /// Whether the target is a core.
    pub fn core(&self) -> Option<&CoreTarget> {
        self.core.as_ref()
    }

    fn lend_threads(&self, listed: &[(u32, Option<String>)]) -> Vec<Thread> {
        let listed = listed.get(..listed.len().min(limits::MAX_THREADS)).unwrap_or_default();
        let of_core: &[Thread] = self.core.as_ref().map(|c| c.threads()).unwrap_or_default();
        let mut threads: Vec<Thread> = of_core.to_vec();
        let ids: Vec<u32> = match threads.is_empty() {
            true => listed.iter().map(|(id, _)| *id).collect(),
            // Nothing but a core says in which order its threads stand.
            false => threads.iter().map(|t| t.id.0).collect(),
        };
        let mut lent = Vec::new();
        for some in ids.chunks(limits::MAX_LENT_READS) {
            let mut answer = self.lender.registers(some);
            answer.resize(some.len(), None);
            lent.append(&mut answer);
        }
        for (i, id) in ids.iter().enumerate() {
            let known = lent.get(i).cloned().flatten();
            let name = listed.iter().find(|(tid, _)| tid == id).and_then(|(_, name)| name.clone());
            match threads.get_mut(i) {
                Some(thread) => {
                    if let Some(lent) = known {
                        put(&mut thread.registers, &lent);
                        thread.fs_base = lent.fs_base.or(thread.fs_base);
                    }
                }
                None => {
                    let mut registers = Registers::unknown();
                    known.iter().for_each(|lent| put(&mut registers, lent));
                    let problem = registers.pc().is_none().then(|| "the debugger has no registers of it".to_string());
                    threads.push(Thread {
                        id: ThreadId(*id),
                        name: self.comm(*id).or(name),
                        registers,
                        fs_base: known.and_then(|lent| lent.fs_base),
                        signal: None,
                        problem,
                    });
                }
            }
        }
        if of_core.is_empty() {
            threads.sort_by_key(|t| (Some(t.id.0) != self.pid, t.id));
            threads.dedup_by_key(|t| t.id);
        }
        threads
    }

    fn comm(&self, tid: u32) -> Option<String> {
        let path = format!("/proc/{}/task/{tid}/comm", self.pid.filter(|_| self.local)?);
        Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).trim_end_matches('\n').to_string())
    }

    fn read_here(&self, address: u64, buf: &mut [u8]) -> bool {
        if let Some(core) = &self.core {
            return core.read(address, buf).is_ok();
        }
        let Some(mem) = &self.mem else { return false };
        let last = address.saturating_add(buf.len() as u64);
        // No mapping of code in between either.
        let mut at = address;
        while at < last {
            match self.mapping_at(at) {
                Some(m) if !m.execute => at = m.end,
                _ => return false,
            }
        }
        last <= i64::MAX as u64 && mem.read_exact_at(buf, address).is_ok()
    }

    /// Bytes that can be there at all, by the mappings.
    fn is_mapped(&self, address: u64, len: usize) -> bool {
        if self.mappings.is_empty() {
            return true;
        }
        let end = address.saturating_add(len as u64);
        let mut at = address;
        while at < end {
            match self.mapping_at(at) {
                Some(m) => at = m.end,
                None => return false,
            }
        }
        true
    }

    fn ask(&self, ranges: &[(u64, usize)]) -> Vec<Option<Vec<u8>>> {
        let mut answers = self.lender.memory(ranges);
        answers.resize(ranges.len(), None);
        for (answer, (_, len)) in answers.iter_mut().zip(ranges) {
            // A debugger that lends something else than what it was asked for lends nothing.
            if answer.as_ref().is_some_and(|bytes| bytes.len() != *len) {
                *answer = None;
            }
        }
        answers
    }

    fn read_large(&self, address: u64, buf: &mut [u8]) -> bool {
        let mut at = address;
        for piece in buf.chunks_mut(limits::MAX_LENT_BYTES) {
            match self.ask(&[(at, piece.len())]).pop().flatten() {
                Some(bytes) => piece.copy_from_slice(&bytes),
                None => return false,
            }
            at = at.wrapping_add(piece.len() as u64);
        }
        true
    }

    fn read_pages(&self, address: u64, buf: &mut [u8]) -> bool {
        let first = address & !(PAGE - 1);
        let Some(end) = address.checked_add(buf.len() as u64) else { return false };
        let missing: Vec<u64> = {
            let lent = self.lent.borrow();
            pages(first, end).filter(|page| !lent.pages.contains_key(page)).collect()
        };
        if !missing.is_empty() {
            self.borrow_pages(&missing, end);
        }
        let lent = self.lent.borrow();
        let mut done = 0;
        for page in pages(first, end) {
            let skip = address.saturating_sub(page) as usize;
            let from = lent.pages.get(&page).map(|p| &p[..]).unwrap_or_default();
            let n = (PAGE as usize - skip).min(buf.len() - done);
            match (from.get(skip..skip + n), buf.get_mut(done..done + n)) {
                (Some(from), Some(to)) => to.copy_from_slice(from),
                _ => return false,
            }
            done += n;
        }
        true
    }

    /// Asks for pages that are missing, and for the ones behind them, as far as they are mapped.
    fn borrow_pages(&self, missing: &[u64], end: u64) {
        let mut wanted = missing.to_vec();
        let ahead = pages(end.saturating_add(PAGE - 1) & !(PAGE - 1), end.saturating_add(AHEAD * PAGE));
        if !self.mappings.is_empty() {
            let lent = self.lent.borrow();
            wanted.extend(ahead.take_while(|page| {
                self.mapping_at(*page).is_some_and(|m| m.read) && !lent.pages.contains_key(page)
            }));
        }
        wanted.truncate(limits::MAX_LENT_READS.min(limits::MAX_LENT_BYTES / PAGE as usize));
        let ranges: Vec<(u64, usize)> = wanted.iter().map(|page| (*page, PAGE as usize)).collect();
        let answers = self.ask(&ranges);
        let mut lent = self.lent.borrow_mut();
        if lent.pages.len() + answers.len() > limits::MAX_LENT_PAGES {
            lent.pages.clear();
        }
        for (page, answer) in wanted.iter().zip(answers) {
            lent.pages.insert(*page, answer.unwrap_or_default().into_boxed_slice());
        }
    }
}

fn pages(from: u64, end: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(from), |page| page.checked_add(PAGE)).take_while(move |page| *page < end)
}

fn put(registers: &mut Registers, lent: &LentRegisters) {
    for (name, value) in &lent.values {
        if let Some(row) = crate::arch::x64::TABLE.iter().find(|row| row.name == name) {
            registers.set(Reg(row.reg.0), *value);
        }
    }
}

impl Memory for CallbackTarget {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        if len == 0 || self.read_here(address, buf) {
            return Ok(());
        }
        let unmapped = Err(MemoryError::Unmapped { address, len });
        if address.checked_add(len as u64).is_none() || !self.is_mapped(address, len) {
            return unmapped;
        }
        let large = len > limits::MAX_LENT_BYTES / 4;
        match if large { self.read_large(address, buf) } else { self.read_pages(address, buf) } {
            true => Ok(()),
            false => unmapped,
        }
    }
}

impl Target for CallbackTarget {
    fn description(&self) -> String {
        if let Some(core) = &self.core {
            return core.description();
        }
        let name = self.executable.as_ref().and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
        let name = name.or_else(|| self.threads.first().and_then(|t| t.name.clone()));
        match (self.pid, name) {
            (Some(pid), Some(name)) => format!("process {pid} ({name})"),
            (Some(pid), None) => format!("process {pid}"),
            (None, Some(name)) => format!("the debugger's target ({name})"),
            (None, None) => "the debugger's target".to_string(),
        }
    }

    fn threads(&self) -> &[Thread] {
        &self.threads
    }

    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn executable(&self) -> Option<&Path> {
        self.core.as_ref().and_then(|c| c.executable()).or(self.executable.as_deref())
    }

    fn pid(&self) -> Option<u32> {
        self.pid
    }

    fn auxv(&self, key: u64) -> Option<u64> {
        let own = self.auxv.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        own.or_else(|| self.core.as_ref().and_then(|c| c.auxv(key)))
    }

    fn file_candidates(&self, mapping: &Mapping) -> Vec<PathBuf> {
        if let Some(core) = &self.core {
            return core.file_candidates(mapping);
        }
        if mapping.is_anonymous() {
            return Vec::new();
        }
        let Some((path, deleted)) = without_deleted(mapping) else { return Vec::new() };
        let inside = path.strip_prefix("/").ok();
        let mut out = Vec::new();
        if let Some(pid) = self.pid.filter(|_| self.local) {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            if let (false, Some(inside)) = (deleted, inside) {
                out.push(proc.join("root").join(inside));
            }
            if self.executable.is_some() && self.executable == mapping.path {
                out.push(proc.join("exe"));
            }
            out.push(proc.join(format!("map_files/{:x}-{:x}", mapping.start, mapping.end)));
        }
        if let (Some(root), Some(inside)) = (&self.sysroot, inside) {
            out.push(root.join(inside));
        }
        out.push(path);
        out
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn is_live(&self) -> bool {
        // The debugger has stopped it.
        false
    }
}
