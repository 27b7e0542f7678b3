//! A stopped process or a core that a debugger holds. The debugger lends memory and registers, and this side keeps
//! what it was lent until the target runs.
//!
//! There are two short cuts. Both are taken only where the debugger says that the target is on this machine, and
//! neither for code, where a debugger may have breakpoints that only it can hide. Other memory of a live process is
//! read from `/proc/PID/mem` (gdb's Python needs longer for a heap than we do), and a core that can be opened is read
//! as `wstate core` reads it. The debugger is asked for what a short cut cannot answer.

use super::core::CoreTarget;
use super::files::FileLocation;
use super::live::parse_maps;
use super::memory::PAGE;
use super::notes::{parse_auxv, without_deleted};
use super::objects::SearchPaths;
use super::{Mapping, Memory, MemoryError, Target, Thread, ThreadId};
use crate::arch::{Machine, Registers};
use crate::limits;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Lends what a debugger knows of a target, while the target is stopped.
pub trait Lender {
    /// Reads ranges of memory, each given by its address and its length in bytes. Returns one answer for each range;
    /// `None` means that the range cannot be read as a whole.
    ///
    /// At most [`limits::MAX_LENT_READS`] ranges and [`limits::MAX_LENT_BYTES`] bytes are asked for at once.
    fn memory(&self, ranges: &[(u64, usize)]) -> Vec<Option<Vec<u8>>>;
    /// Reads the registers of threads. Returns one answer for each thread id; `None` means that the debugger has
    /// none.
    fn registers(&self, threads: &[u32]) -> Vec<Option<LentRegisters>>;
}

/// Registers of one thread as the debugger knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LentRegisters {
    /// Names and values: `rip`, `rsp`, `xmm0` (its low 64 bits), ...
    pub values: Vec<(String, u64)>,
    /// Thread pointer (FS base), if the debugger knows it.
    pub fs_base: Option<u64>,
}

/// What a debugger says about its target.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Process id of the target, if it has one.
    pub pid: Option<u32>,
    /// Whether `pid` is a process of this machine that we see under the same number.
    pub local: bool,
    /// Path of the core, if the target is one and the file is on this machine.
    pub core: Option<PathBuf>,
    /// Path of the main executable as the target names it.
    pub executable: Option<PathBuf>,
    /// Mappings of the target, in the form of `/proc/PID/maps`.
    pub maps: Option<String>,
    /// Auxiliary vector of the target, as bytes in the target's format.
    pub auxv: Option<Vec<u8>>,
    /// Ids of the threads, and their names where they are known.
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
    /// The `/proc/PID/mem` of the process, from which memory is read that is not code.
    mem: Option<File>,
    lent: RefCell<Lent>,
    sysroot: Option<PathBuf>,
}

/// Pages that were lent, by address. A page that could not be read is kept as an empty one.
#[derive(Default)]
struct Lent {
    pages: HashMap<u64, Box<[u8]>>,
}

/// Bytes of a stack that are compared to recognise a process.
const COMPARED: usize = 64;

/// Pages behind a small read that are asked for together with it, because a walk reads a stack upwards.
const AHEAD: u64 = 4;

/// Reads of more bytes than this are not kept as pages.
const LARGE: usize = limits::MAX_LENT_READS / 2 * PAGE as usize;

impl CallbackTarget {
    /// Makes a target from what the debugger says and what this machine knows of the same target. Never fails: what
    /// is missing is told in a note.
    pub fn new(lender: Rc<dyn Lender>, what: Description, search: &SearchPaths) -> CallbackTarget {
        let target = CallbackTarget::build(Rc::clone(&lender), what.clone(), search);
        // If the debugger is connected to a server on another machine, its process may have the same number as
        // another process here.
        if what.local && target.core.is_none() && !target.is_our_process() {
            return CallbackTarget::build(lender, Description { local: false, ..what }, search);
        }
        target
    }

    /// Whether the process that we see under this number is the one that the debugger holds. It is if the bytes at a
    /// stack pointer are the same.
    fn is_our_process(&self) -> bool {
        let Some(mem) = &self.mem else { return false };
        for sp in self.threads.iter().filter_map(|t| t.registers.sp()).take(8) {
            let Some(lent) = self.ask(&[(sp, COMPARED)]).pop().flatten() else { continue };
            let mut own = [0; COMPARED];
            return sp <= i64::MAX as u64 && mem.read_exact_at(&mut own, sp).is_ok() && own[..] == lent[..];
        }
        false
    }

    fn build(lender: Rc<dyn Lender>, what: Description, search: &SearchPaths) -> CallbackTarget {
        let mut notes = Vec::new();
        let core = what.core.as_deref().and_then(|path| match CoreTarget::open(path, search) {
            Ok(core) => Some(core),
            Err(e) => {
                notes.push(format!("{e}; only what the debugger knows of the core is used"));
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
            notes.push(
                "the debugger does not know the target's mappings, so Wasm code cannot be told from other code".into(),
            );
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

    /// The core, if the target is one that could be opened.
    #[cfg(any(test, feature = "internals"))]
    pub fn core(&self) -> Option<&CoreTarget> {
        self.core.as_ref()
    }

    fn lend_threads(&self, listed: &[(u32, Option<String>)]) -> Vec<Thread> {
        let listed = listed.get(..listed.len().min(limits::MAX_THREADS)).unwrap_or_default();
        let of_core: &[Thread] = self.core.as_ref().map(|c| c.threads()).unwrap_or_default();
        let mut threads: Vec<Thread> = of_core.to_vec();
        let ids: Vec<u32> = match threads.is_empty() {
            true => listed.iter().map(|(id, _)| *id).collect(),
            // Only a core says in which order its threads are listed.
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
                    let mut registers = Registers::unknown(self.machine());
                    known.iter().for_each(|lent| put(&mut registers, lent));
                    let problem =
                        registers.pc().is_none().then(|| "the debugger has no registers of this thread".to_string());
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
        // A read that touches a mapping of code is refused, also where only a middle part of it is code.
        let mut at = address;
        while at < last {
            match self.mapping_at(at) {
                Some(m) if !m.execute => at = m.end,
                _ => return false,
            }
        }
        last <= i64::MAX as u64 && mem.read_exact_at(buf, address).is_ok()
    }

    /// Whether all bytes of the range can be there at all, as the mappings say. True if no mappings are known.
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
            // An answer of another length than was asked for counts as none.
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

    /// Asks for pages that are missing, and for some pages behind them, as far as those are mapped.
    fn borrow_pages(&self, missing: &[u64], end: u64) {
        let mut wanted = missing.to_vec();
        let ahead = pages(end.saturating_add(PAGE - 1) & !(PAGE - 1), end.saturating_add(AHEAD * PAGE));
        if !self.mappings.is_empty() {
            let lent = self.lent.borrow();
            wanted.extend(
                ahead.take_while(|page| {
                    self.mapping_at(*page).is_some_and(|m| m.read) && !lent.pages.contains_key(page)
                }),
            );
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
        if let Some(reg) = registers.machine().from_name(name) {
            registers.set(reg, *value);
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
        // A small read is answered from pages, which fit into one question to the debugger wherever the read begins.
        let large = len > LARGE;
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

    fn machine(&self) -> Machine {
        // A debugger does not say which machine its target runs on, but a core does.
        self.core.as_ref().map_or(Machine::HERE, |core| core.machine())
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

    fn file_candidates(&self, mapping: &Mapping) -> Vec<FileLocation> {
        if let Some(core) = &self.core {
            return core.file_candidates(mapping);
        }
        if mapping.is_anonymous() {
            return Vec::new();
        }
        let Some((path, deleted)) = without_deleted(mapping) else { return Vec::new() };
        let mut out = Vec::new();
        if let Some(pid) = self.pid.filter(|_| self.local) {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            if self.executable.is_some() && self.executable == mapping.path {
                out.push(FileLocation::kernel(proc.join("exe")));
            }
            if !deleted && path.is_absolute() {
                out.push(FileLocation::within(&proc.join("root"), &path));
            }
            out.push(FileLocation::kernel(proc.join(format!("map_files/{:x}-{:x}", mapping.start, mapping.end))));
        }
        if let Some(root) = self.sysroot.as_ref().filter(|_| path.is_absolute()) {
            out.push(FileLocation::within(root, &path));
        }
        out.push(FileLocation::named(path));
        out
    }

    fn read_own(&self, address: u64, buf: &mut [u8]) -> usize {
        match (&self.core, &self.mem) {
            (Some(core), _) => core.read_own(address, buf),
            (None, Some(_)) if self.read(address, buf).is_ok() => buf.len(),
            // A debugger may itself take the bytes that it lends from the file, and asking for all code takes long.
            (None, _) => 0,
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn is_live(&self) -> bool {
        // The debugger has stopped the target.
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x64;
    use crate::process::testing::CoreBuilder;

    /// A debugger that has memory from 0x10000 on, and records what it is asked for.
    #[derive(Default)]
    struct Fake {
        bytes: Vec<u8>,
        holes: Vec<u64>,
        asked: RefCell<Vec<Vec<(u64, usize)>>>,
        lies: bool,
    }

    impl Lender for Fake {
        fn memory(&self, ranges: &[(u64, usize)]) -> Vec<Option<Vec<u8>>> {
            self.asked.borrow_mut().push(ranges.to_vec());
            assert!(ranges.len() <= limits::MAX_LENT_READS);
            assert!(ranges.iter().map(|r| r.1).sum::<usize>() <= limits::MAX_LENT_BYTES);
            let one = |(at, len): &(u64, usize)| {
                let from = usize::try_from(at.checked_sub(0x10000)?).ok()?;
                let hole = self.holes.iter().any(|h| *h < at + *len as u64 && *at < h + PAGE);
                let end = if self.lies { from + 1 } else { from + len };
                self.bytes.get(from..end).filter(|_| !hole).map(<[u8]>::to_vec)
            };
            ranges.iter().map(one).collect()
        }

        fn registers(&self, threads: &[u32]) -> Vec<Option<LentRegisters>> {
            assert!(threads.len() <= limits::MAX_LENT_READS);
            let of = |tid: &u32| {
                let values = [("rip", 0x11000), ("rsp", 0x12000 + u64::from(*tid)), ("eflags", 2)];
                let values = values.iter().map(|(n, v)| (n.to_string(), *v)).collect();
                (*tid != 9).then_some(LentRegisters { values, fs_base: Some(0x77) })
            };
            threads.iter().map(of).collect()
        }
    }

    fn pattern(pages: usize) -> Vec<u8> {
        (0..pages * PAGE as usize).map(|i| (i / 7) as u8).collect()
    }

    fn target(fake: Fake, maps: &str, threads: &[u32]) -> (CallbackTarget, Rc<Fake>) {
        let fake = Rc::new(fake);
        let lender: Rc<dyn Lender> = Rc::<Fake>::clone(&fake);
        let what = Description {
            pid: Some(7),
            maps: Some(maps.into()),
            threads: threads.iter().map(|t| (*t, Some(format!("t{t}")))).collect(),
            ..Description::default()
        };
        (CallbackTarget::new(lender, what, &SearchPaths::default()), fake)
    }

    #[test]
    fn pages_are_asked_for_once_and_some_ahead() {
        let maps = "10000-20000 rw-p 0 00:00 0\n";
        let (t, fake) = target(Fake { bytes: pattern(16), ..Fake::default() }, maps, &[]);
        let mut word = [0; 8];
        t.read(0x10ffc, &mut word).unwrap();
        assert_eq!(word[..], pattern(16)[0xffc..0x1004]);
        let asked = fake.asked.borrow().len();
        assert_eq!(asked, 1);
        t.read(0x12000, &mut word).unwrap();
        t.read(0x10000, &mut word).unwrap();
        assert_eq!(fake.asked.borrow().len(), asked, "{:x?}", fake.asked);
        let mut all = vec![0; 16 * PAGE as usize];
        t.read(0x10000, &mut all).unwrap();
        assert_eq!(all, pattern(16));
    }

    #[test]
    fn what_is_not_mapped_is_not_asked_for_and_what_is_not_lent_is_not_read() {
        let maps = "10000-14000 rw-p 0 00:00 0\n";
        let (t, fake) = target(Fake { bytes: pattern(4), holes: vec![0x12000], ..Fake::default() }, maps, &[]);
        let mut word = [0; 8];
        for address in [0, 0xfffc, 0x13ffc, 0x14000, u64::MAX - 3, u64::MAX] {
            assert!(matches!(t.read(address, &mut word), Err(MemoryError::Unmapped { .. })), "{address:#x}");
        }
        assert!(fake.asked.borrow().is_empty());
        assert!(t.read(0x11ffc, &mut word).is_err());
        t.read(0x13000, &mut word).unwrap();
        let mut all = vec![0; 4 * PAGE as usize];
        assert_eq!(t.read_some(0x10000, &mut all), 2 * PAGE as usize);
    }

    #[test]
    fn large_reads_come_in_pieces() {
        let pages = 3 * limits::MAX_LENT_BYTES / PAGE as usize;
        let maps = format!("10000-{:x} rw-p 0 00:00 0\n", 0x10000 + pages * PAGE as usize);
        let (t, fake) = target(Fake { bytes: pattern(pages), ..Fake::default() }, &maps, &[]);
        let mut all = vec![0; pages * PAGE as usize - 5];
        t.read(0x10003, &mut all).unwrap();
        assert!(all == pattern(pages)[3..pages * PAGE as usize - 2]);
        assert_eq!(fake.asked.borrow().len(), 3);
    }

    #[test]
    fn so_many_pages_are_asked_for_and_kept() {
        let pages = limits::MAX_LENT_PAGES + 2 * limits::MAX_LENT_READS;
        let maps = format!("10000-{:x} rw-p 0 00:00 0\n", 0x10000 + pages * PAGE as usize);
        let (t, _) = target(Fake { bytes: pattern(pages), ..Fake::default() }, &maps, &[]);
        for len in [LARGE - 1, LARGE, LARGE + 1, 2 * LARGE] {
            let mut all = vec![0; len];
            t.read(0x10fff, &mut all).unwrap();
            assert!(all == pattern(pages)[0xfff..][..len], "{len:#x}");
        }
        for page in 0..pages as u64 {
            t.read(0x10000 + page * PAGE, &mut [0; 8]).unwrap();
            assert!(t.lent.borrow().pages.len() <= limits::MAX_LENT_PAGES);
        }
    }

    #[test]
    fn too_few_bytes_are_none() {
        let maps = "10000-14000 rw-p 0 00:00 0\n";
        let (t, _) = target(Fake { bytes: pattern(4), lies: true, ..Fake::default() }, maps, &[]);
        assert!(t.read(0x10000, &mut [0; 8]).is_err());
    }

    #[test]
    fn threads_stand_as_they_do_in_a_capture() {
        let ids: Vec<u32> = (3..3 + 2 * limits::MAX_LENT_READS as u32).collect();
        let (t, _) = target(Fake::default(), "10000-14000 r-xp 0 00:00 0\n", &ids);
        assert_eq!(t.threads().len(), ids.len());
        // The main thread comes first.
        let order: Vec<u32> = t.threads().iter().take(4).map(|t| t.id.0).collect();
        assert_eq!(order, [7, 3, 4, 5]);
        for thread in t.threads() {
            let id = u64::from(thread.id.0);
            let sp = (id != 9).then_some(0x12000 + id);
            assert_eq!((thread.registers.sp(), thread.problem.is_some()), (sp, id == 9), "{thread:?}");
        }
    }

    #[test]
    fn mappings_that_overlap_or_are_missing_do_no_harm() {
        let (t, _) = target(Fake::default(), "20000-30000 rw-p 0 0 0\n10000-28000 r--p 0 0 0\nx\n", &[]);
        assert_eq!(t.mappings().iter().map(|m| (m.start, m.end)).collect::<Vec<_>>(), [(0x10000, 0x28000)]);
        let (t, _) = target(Fake { bytes: pattern(2), ..Fake::default() }, "", &[]);
        assert!(t.notes().iter().any(|n| n.contains("mappings")), "{:?}", t.notes());
        t.read(0x10ffc, &mut [0; 8]).unwrap();
    }

    #[test]
    fn a_number_that_is_another_process_here_is_not_believed() {
        let fake = Rc::new(Fake { bytes: pattern(4), ..Fake::default() });
        let what = Description {
            // The number is that of this process, whose stack is not the one that the fake debugger has.
            pid: Some(std::process::id()),
            local: true,
            maps: Some("10000-14000 rw-p 0 00:00 0\n".into()),
            threads: vec![(1, None)],
            ..Description::default()
        };
        let t = CallbackTarget::new(fake, what, &SearchPaths::default());
        assert_eq!(t.mappings().len(), 1);
        assert!(t.mem.is_none() && t.executable().is_none());
    }

    #[test]
    fn a_core_gives_what_the_debugger_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core.test");
        let mut registers = Registers::unknown(Machine::X64);
        registers.set(x64::RIP, 0x5000);
        registers.set(x64::RBX, 5);
        let core =
            CoreBuilder::new().thread(11, 6, &registers, 0x99).process(11, "host", "host").memory(0x30000, 6, b"core");
        std::fs::write(&path, core.build()).unwrap();
        let fake = Rc::new(Fake { bytes: pattern(4), ..Fake::default() });
        let what = Description { core: Some(path), threads: vec![(11, None), (12, None)], ..Description::default() };
        let t = CallbackTarget::new(fake, what, &SearchPaths::default());
        let [thread] = t.threads() else { panic!("{:?}", t.threads()) };
        // Registers that the debugger lends replace those of the core.
        assert_eq!((thread.registers.pc(), thread.registers.get(x64::RBX)), (Some(0x11000), Some(5)));
        assert_eq!((thread.fs_base, thread.signal), (Some(0x77), Some(6)));
        let mut bytes = [0; 4];
        t.read(0x30000, &mut bytes).unwrap();
        assert_eq!((&bytes, t.pid()), (b"core", Some(11)));
    }
}
