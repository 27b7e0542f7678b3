//! Reads the notes of a core: threads, registers, file mappings and the auxiliary vector. The kernel and gdb write
//! the same records in different orders; both begin a thread with NT_PRSTATUS.

use super::facts::{self, COMMAND_LINE_BYTES, CommandLine, SignalDetails};
use super::{Mapping, Thread, ThreadId};
use crate::arch::{Interrupted, Machine, Registers, Slot};
use crate::bytes::{Bytes, Short};
use crate::limits;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Note about a core with more than [`limits::MAX_THREADS`] threads.
const MORE_THREADS: &str = "the core lists more threads than wstate looks at: the others are left out";
/// Note about a core with more than [`limits::MAX_MAPPINGS`] entries in NT_FILE.
const MORE_FILES: &str = "the core lists more mapped files than wstate looks at: the others are left out";

/// Note types (`linux/elf.h`). The owner of all of them is "CORE", except for the extended state, whose owner is
/// "LINUX".
#[allow(missing_docs)]
pub mod kind {
    pub const PRSTATUS: u32 = 1;
    pub const FPREGSET: u32 = 2;
    pub const PRPSINFO: u32 = 3;
    pub const AUXV: u32 = 6;
    pub const SIGINFO: u32 = 0x5349_4749;
    pub const FILE: u32 = 0x4649_4c45;
}

/// One entry of NT_FILE: a range of memory that a file is mapped to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMapping {
    /// First address of the range.
    pub start: u64,
    /// One past the last address of the range.
    pub end: u64,
    /// Offset of the range's first byte in the file, in bytes.
    pub offset: u64,
    /// Path of the file.
    pub path: PathBuf,
}

/// Everything that the notes of a core say.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Threads in the order of their NT_PRSTATUS: the one that crashed, or that the debugger was at, is first.
    pub threads: Vec<Thread>,
    /// Process id (NT_PRPSINFO).
    pub pid: Option<u32>,
    /// Name of the main thread (`comm`) if the kernel wrote the core, name of the executable if gdb did.
    pub command: Option<String>,
    /// Real user id and group id of the process (NT_PRPSINFO).
    pub user: Option<(u32, u32)>,
    /// Start of the command line (NT_PRPSINFO).
    pub command_line: Option<CommandLine>,
    /// What the registers of each thread tell about what it did. `None` where that is not known, or where two threads claim
    /// to be the same one.
    pub told: HashMap<ThreadId, Option<Interrupted>>,
    /// Why the first thread got its signal (NT_SIGINFO).
    pub signal: Option<SignalDetails>,
    /// Auxiliary vector, as keys and values.
    pub auxv: Vec<(u64, u64)>,
    /// File mappings (NT_FILE).
    pub files: Vec<FileMapping>,
    /// What could not be read in the notes, one line each.
    pub problems: Vec<String>,
}

/// One note of a note segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note<'a> {
    /// Owner of the note, without the zero byte at its end.
    pub owner: &'a [u8],
    /// Type of the note, whose meaning depends on the owner.
    pub kind: u32,
    /// Contents of the note.
    pub data: &'a [u8],
}

/// Reads the next note. Returns `None` at the end of the segment.
pub fn next_note<'a>(bytes: &mut Bytes<'a>) -> Option<Result<Note<'a>, Short>> {
    if bytes.remaining() == 0 {
        return None;
    }
    Some(note(bytes))
}

fn note<'a>(bytes: &mut Bytes<'a>) -> Result<Note<'a>, Short> {
    let name_size = bytes.u32()? as u64;
    let data_size = bytes.u32()? as u64;
    let kind = bytes.u32()?;
    let name = bytes.take(name_size)?;
    pad(bytes, name_size)?;
    let data = bytes.take(data_size)?;
    pad(bytes, data_size)?;
    Ok(Note { owner: name.strip_suffix(&[0]).unwrap_or(name), kind, data })
}

// Skips padding to a multiple of 4 bytes, even where the segment says 8: neither kernel nor gdb write anything else
// into cores. It does no harm if padding is missing at the very end.
fn pad(bytes: &mut Bytes<'_>, size: u64) -> Result<(), Short> {
    let padding = (4 - size % 4) % 4;
    bytes.skip(padding.min(bytes.remaining() as u64))
}

/// What has been seen of the current thread since its NT_PRSTATUS.
struct Current {
    machine: Machine,
    has_vectors: bool,
    has_siginfo: bool,
}

impl Current {
    fn new(machine: Machine) -> Current {
        Current { machine, has_vectors: false, has_siginfo: false }
    }
}

impl Notes {
    /// Reads the notes of all segments of a core of `machine`, in their order. Never fails: what cannot be read is in `problems`.
    pub fn parse<'a>(machine: Machine, segments: impl IntoIterator<Item = &'a [u8]>) -> Notes {
        let mut notes = Notes::default();
        let mut current = Current::new(machine);
        let mut other_signals = Vec::new();
        for segment in segments {
            let mut bytes = Bytes::new(segment);
            while let Some(next) = next_note(&mut bytes) {
                match next {
                    Ok(note) => notes.take(&note, &mut current, &mut other_signals),
                    Err(short) => {
                        notes.problems.push(format!(
                            "the notes of the core end in the middle of one, and what follows is missing ({short})"
                        ));
                        break;
                    }
                }
            }
        }
        // The kernel writes the fatal signal into every thread's NT_PRSTATUS (`fill_prstatus(.., signr)`), but only
        // one thread died of it. gdb writes NT_SIGINFO for each thread that has a signal of its own.
        for (thread, own) in notes.threads.iter_mut().zip(other_signals).skip(1) {
            if !own {
                thread.signal = None;
            }
        }
        if let (Some(pid), Some(command)) = (notes.pid, &notes.command)
            && let Some(main) = notes.threads.iter_mut().find(|t| t.id.0 == pid)
        {
            main.name = Some(command.clone());
        }
        notes
    }

    fn take(&mut self, note: &Note<'_>, current: &mut Current, own_signal: &mut Vec<bool>) {
        let extended = current.machine.description().kernel.extended_note;
        let problem = match (note.owner, note.kind) {
            (b"CORE", kind::PRSTATUS) => {
                if self.threads.len() >= limits::MAX_THREADS {
                    // The problem is listed once, not for each thread that is left out.
                    if !self.problems.iter().any(|p| p == MORE_THREADS) {
                        self.problems.push(MORE_THREADS.to_string());
                    }
                    return;
                }
                *current = Current::new(current.machine);
                self.prstatus(current.machine, note.data).map(|(thread, told)| {
                    self.told.entry(thread.id).and_modify(|told| *told = None).or_insert(told);
                    self.threads.push(thread);
                    own_signal.push(false);
                })
            }
            (b"CORE", kind::FPREGSET) => self.vectors(note.data, current),
            (b"LINUX", kind) if kind == extended && !current.has_vectors => self.vectors(note.data, current),
            (b"CORE", kind::PRPSINFO) => self.prpsinfo(note.data),
            (b"CORE", kind::SIGINFO) if !current.has_siginfo => {
                current.has_siginfo = true;
                Bytes::new(note.data).u32().map(|signal| {
                    if let (Some(thread), Some(own)) = (self.threads.last_mut(), own_signal.last_mut())
                        && signal != 0
                    {
                        *own = true;
                        thread.signal = thread.signal.or(Some(signal as i32));
                    }
                    if self.threads.len() == 1 {
                        self.signal = SignalDetails::parse(note.data);
                    }
                })
            }
            (b"CORE", kind::AUXV) => {
                self.auxv = parse_auxv(note.data);
                Ok(())
            }
            (b"CORE", kind::FILE) => self.file_mappings(note.data),
            _ => Ok(()),
        };
        if let Err(short) = problem {
            let what = match note.kind {
                kind::PRSTATUS => "a thread's registers (NT_PRSTATUS)",
                kind if kind == kind::FPREGSET || kind == extended => "a thread's vector registers",
                kind::PRPSINFO => "the process's name (NT_PRPSINFO)",
                kind::SIGINFO => "a signal (NT_SIGINFO)",
                _ => "the list of mapped files (NT_FILE)",
            };
            if self.problems.len() < 64 {
                self.problems.push(format!("{what} cannot be read: {short}"));
            }
        }
    }

    fn prstatus(&self, machine: Machine, data: &[u8]) -> Result<(Thread, Option<Interrupted>), Short> {
        let mut b = Bytes::new(data);
        b.skip(12)?;
        let cursig = b.u16()?;
        b.skip(18)?;
        let id = ThreadId(b.u32()?);
        // An i386 record is shorter (144 bytes). A thread of such a core is listed without registers.
        let mut thread = Thread {
            id,
            name: None,
            registers: Registers::unknown(machine),
            fs_base: None,
            signal: (cursig != 0).then_some(i32::from(cursig)),
            problem: None,
        };
        let mut b = Bytes::new(data);
        let kernel = machine.description().kernel;
        let mut told = None;
        match b.skip(kernel.prstatus_registers as u64).and_then(|()| b.take(kernel.general_words as u64 * 8)) {
            Ok(regs) => {
                thread.set_general(regs);
                told = facts::interrupted(machine, regs);
            }
            Err(_) => {
                let expected = kernel.prstatus_size;
                thread.problem = Some(format!("its NT_PRSTATUS has {} bytes, not {expected}", data.len()));
            }
        }
        Ok((thread, told))
    }

    fn vectors(&mut self, data: &[u8], current: &mut Current) -> Result<(), Short> {
        let area = Bytes::new(data).take(current.machine.description().kernel.vectors_size as u64)?;
        if let Some(thread) = self.threads.last_mut() {
            thread.set_vectors(area);
            current.has_vectors = true;
        }
        Ok(())
    }

    fn prpsinfo(&mut self, data: &[u8]) -> Result<(), Short> {
        let mut b = Bytes::new(data);
        b.skip(16)?;
        let (uid, gid) = (b.u32()?, b.u32()?);
        let pid = b.u32()?;
        b.skip(12)?;
        // The kernel's name ends with a zero byte at this place at the latest (TASK_COMM_LEN). gdb's gcore fills all
        // 16 bytes with the file's name.
        let name = text(&b.take(16)?[..15]);
        self.pid = (pid != 0).then_some(pid);
        self.command = (!name.is_empty()).then_some(name);
        self.command_line = CommandLine::of_note(b.take(COMMAND_LINE_BYTES as u64)?);
        self.user = Some((uid, gid));
        Ok(())
    }

    fn file_mappings(&mut self, data: &[u8]) -> Result<(), Short> {
        let mut b = Bytes::new(data);
        let count = b.u64()?;
        let page_size = b.u64()?;
        let mut table = Bytes::new(b.take(count.saturating_mul(24))?);
        for i in 0..count {
            let (start, end, page) = (table.u64()?, table.u64()?, table.u64()?);
            let rest = data.get(b.offset()..).unwrap_or_default();
            let Some(len) = rest.iter().position(|&c| c == 0) else {
                self.problems.push(format!("the list of mapped files (NT_FILE) has {count} mappings and {i} names"));
                return Ok(());
            };
            let path = PathBuf::from(OsStr::from_bytes(b.take(len as u64)?));
            b.skip(1)?;
            let Some(offset) = page.checked_mul(page_size) else { continue };
            if self.files.len() >= limits::MAX_MAPPINGS {
                self.problems.push(MORE_FILES.to_string());
                return Ok(());
            }
            if start < end && len <= limits::MAX_PATH {
                self.files.push(FileMapping { start, end, offset, path });
            }
        }
        Ok(())
    }

    /// Value of an auxiliary vector entry.
    pub fn auxv(&self, key: u64) -> Option<u64> {
        self.auxv.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }
}

impl Thread {
    /// Sets the general registers and the thread pointer from the words that the kernel writes
    /// (`struct user_regs_struct`).
    pub(super) fn set_general(&mut self, words: &[u8]) {
        let machine = self.registers.machine().description();
        for row in machine.registers {
            if let Slot::General(i) = row.slot
                && let Some(value) = word_at(words, i * 8)
            {
                self.registers.set(row.reg, value);
            }
        }
        self.fs_base = machine.kernel.thread_pointer.and_then(|i| word_at(words, i * 8));
    }

    /// Sets the low halves of the vector registers from the floating point state that the kernel writes.
    pub(super) fn set_vectors(&mut self, state: &[u8]) {
        for row in self.registers.machine().description().registers {
            if let Slot::Vector(offset) = row.slot
                && let Some(value) = word_at(state, offset)
            {
                self.registers.set(row.reg, value);
            }
        }
    }
}

fn word_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..offset + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
}

/// Reads the keys and values of an auxiliary vector, up to AT_NULL or the end of the bytes.
pub fn parse_auxv(data: &[u8]) -> Vec<(u64, u64)> {
    let mut b = Bytes::new(data);
    let mut out = Vec::new();
    while let (Ok(key), Ok(value)) = (b.u64(), b.u64()) {
        if key == 0 || out.len() >= limits::MAX_AUXV {
            break;
        }
        out.push((key, value));
    }
    out
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&c| c == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end().to_string()
}

/// Returns the path of a mapping without the mark that the kernel appends to the paths of deleted files, and whether
/// the mark was there. Returns `None` if the mapping has no path.
pub fn without_deleted(mapping: &Mapping) -> Option<(PathBuf, bool)> {
    let path = mapping.path.as_ref()?;
    let bytes = path.as_os_str().as_bytes();
    Some(match bytes.strip_suffix(b" (deleted)") {
        Some(p) => (PathBuf::from(OsStr::from_bytes(p)), true),
        None => (path.clone(), false),
    })
}
