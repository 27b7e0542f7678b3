//! Builds cores piece by piece, for the tests of everything that reads cores. Not part of the public interface.

use super::core::{CoreTarget, PN_XNUM, SH_INFO};
use super::elf::{HEADER_SIZE, PHDR_SIZE, pt};
use super::notes::kind;
use super::objects::SearchPaths;
use crate::arch::{Registers, Slot};
use crate::error::Error;
use std::path::Path;
use std::sync::Arc;

/// A core under construction. Segments and notes are written in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct CoreBuilder {
    notes: Vec<u8>,
    files: Vec<(u64, u64, u64, String)>,
    auxv: Vec<(u64, u64)>,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug)]
struct Segment {
    address: u64,
    size: u64,
    flags: u32,
    bytes: Vec<u8>,
}

impl CoreBuilder {
    /// A core without threads, memory or files.
    pub fn new() -> CoreBuilder {
        CoreBuilder::default()
    }

    /// Adds memory at `address` that holds `bytes`. `flags` are the segment's `p_flags` (1 X, 2 W, 4 R).
    pub fn memory(self, address: u64, flags: u32, bytes: &[u8]) -> CoreBuilder {
        self.segment(address, bytes.len() as u64, flags, bytes)
    }

    /// Adds a segment of `size` bytes in memory, of which only `bytes` are in the core.
    pub fn segment(mut self, address: u64, size: u64, flags: u32, bytes: &[u8]) -> CoreBuilder {
        self.segments.push(Segment { address, size, flags, bytes: bytes.to_vec() });
        self
    }

    /// Adds a thread with the registers that are known in `registers`. The others are zero, because a core has no
    /// unknown registers.
    pub fn thread(self, tid: u32, signal: u16, registers: &Registers, fs_base: u64) -> CoreBuilder {
        let machine = registers.machine().description();
        let mut status = vec![0; machine.kernel.prstatus_size];
        status[12..14].copy_from_slice(&signal.to_le_bytes());
        status[32..36].copy_from_slice(&tid.to_le_bytes());
        let at = |word: usize| machine.kernel.prstatus_registers + word * 8;
        if let Some(word) = machine.kernel.thread_pointer {
            status[at(word)..at(word) + 8].copy_from_slice(&fs_base.to_le_bytes());
        }
        let mut fxsave = vec![0; 512];
        for row in machine.registers {
            let value = registers.get(row.reg).unwrap_or(0).to_le_bytes();
            match row.slot {
                Slot::General(word) => status[at(word)..at(word) + 8].copy_from_slice(&value),
                Slot::Vector(offset) => fxsave[offset..offset + 8].copy_from_slice(&value),
            }
        }
        self.note(b"CORE", kind::PRSTATUS, &status).note(b"CORE", kind::FPREGSET, &fxsave)
    }

    /// Adds the note NT_PRPSINFO with the process id, the name and the start of the command line.
    pub fn process(self, pid: u32, name: &str, arguments: &str) -> CoreBuilder {
        let mut info = vec![0; 136];
        info[24..28].copy_from_slice(&pid.to_le_bytes());
        let put = |into: &mut [u8], s: &str| into.iter_mut().zip(s.bytes()).for_each(|(d, b)| *d = b);
        put(&mut info[40..55], name);
        put(&mut info[56..135], arguments);
        self.note(b"CORE", kind::PRPSINFO, &info)
    }

    /// Adds an entry of NT_FILE. `offset` is in bytes and a multiple of 0x1000.
    pub fn file(mut self, start: u64, end: u64, offset: u64, path: &str) -> CoreBuilder {
        self.files.push((start, end, offset, path.to_string()));
        self
    }

    /// Adds an entry of the auxiliary vector.
    pub fn auxv(mut self, key: u64, value: u64) -> CoreBuilder {
        self.auxv.push((key, value));
        self
    }

    /// Adds a note of any owner and type.
    pub fn note(mut self, owner: &[u8], kind: u32, data: &[u8]) -> CoreBuilder {
        self.notes.extend((owner.len() as u32 + 1).to_le_bytes());
        self.notes.extend((data.len() as u32).to_le_bytes());
        self.notes.extend(kind.to_le_bytes());
        self.notes.extend(owner);
        self.notes.push(0);
        self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        self.notes.extend(data);
        self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        self
    }

    /// Returns the bytes of the core: ELF header, program headers, notes, and segments at multiples of 16. If there
    /// are more program headers than the ELF header can count (PN_XNUM), a section header with their number follows.
    pub fn build(&self) -> Vec<u8> {
        let mut with_tables = self.clone();
        if !self.auxv.is_empty() {
            let words = self.auxv.iter().flat_map(|(k, v)| [*k, *v]).chain([0, 0]);
            with_tables = with_tables.note(b"CORE", kind::AUXV, &words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
        }
        if !self.files.is_empty() {
            let mut table: Vec<u8> = [self.files.len() as u64, 0x1000].into_iter().flat_map(u64::to_le_bytes).collect();
            for (start, end, offset, _) in &self.files {
                table.extend([*start, *end, offset / 0x1000].into_iter().flat_map(u64::to_le_bytes));
            }
            for (_, _, _, path) in &self.files {
                table.extend(path.bytes().chain([0]));
            }
            with_tables = with_tables.note(b"CORE", kind::FILE, &table);
        }
        let notes = with_tables.notes;

        let count = self.segments.len() + 1;
        let mut out = Vec::new();
        out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        out.extend([4u16, 62].into_iter().flat_map(u16::to_le_bytes));
        out.extend(1u32.to_le_bytes());
        out.extend([0, HEADER_SIZE, 0].into_iter().flat_map(u64::to_le_bytes));
        out.extend(0u32.to_le_bytes());
        let phnum = u16::try_from(count).unwrap_or(PN_XNUM);
        out.extend([64, 56, phnum, 64, u16::from(phnum == PN_XNUM), 0].into_iter().flat_map(u16::to_le_bytes));
        let mut contents = Vec::new();
        let base = HEADER_SIZE + PHDR_SIZE * count as u64;
        let mut put = |out: &mut Vec<u8>, kind: u32, flags: u32, address: u64, size: u64, bytes: &[u8]| {
            contents.resize(contents.len().next_multiple_of(16), 0);
            let offset = base + contents.len() as u64;
            contents.extend(bytes);
            out.extend([kind, flags].into_iter().flat_map(u32::to_le_bytes));
            let words = [offset, address, 0, bytes.len() as u64, size, 4];
            out.extend(words.into_iter().flat_map(u64::to_le_bytes));
        };
        put(&mut out, pt::NOTE, 0, 0, 0, &notes);
        for s in &self.segments {
            put(&mut out, pt::LOAD, s.flags, s.address, s.size, &s.bytes);
        }
        out.extend(contents);
        if phnum == PN_XNUM {
            let shoff = out.len();
            out[40..48].copy_from_slice(&(shoff as u64).to_le_bytes());
            out.resize(shoff + 64, 0);
            out[shoff + SH_INFO..shoff + SH_INFO + 4].copy_from_slice(&(count as u32).to_le_bytes());
        }
        out
    }

    /// Opens the core from memory, without a file.
    pub fn open(&self) -> Result<CoreTarget, Error> {
        self.open_with(&SearchPaths::default())
    }

    /// Opens the core from memory, without a file, and with search paths for the files that it names.
    pub fn open_with(&self, search: &SearchPaths) -> Result<CoreTarget, Error> {
        CoreTarget::from_bytes(Path::new("core.test"), Arc::new(self.build()), search)
    }
}

/// A segment of a shared object: type, rights, offset, address, size in the file, size in memory, alignment.
#[cfg(test)]
pub type FileSegment = (u32, u32, u64, u64, u64, u64, u64);

/// The first page of a shared object with these segments. At offset 0x400 there is a note with a build id of four
/// bytes `id`.
#[cfg(test)]
pub fn shared_object(segments: &[FileSegment], id: u8) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend([3u16, 62].into_iter().flat_map(u16::to_le_bytes));
    out.extend(1u32.to_le_bytes());
    out.extend([0u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    out.extend(0u32.to_le_bytes());
    out.extend([64u16, 56, segments.len() as u16, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    for &(kind, flags, offset, address, filesz, memsz, align) in segments {
        out.extend([kind, flags].into_iter().flat_map(u32::to_le_bytes));
        out.extend([offset, address, address, filesz, memsz, align].into_iter().flat_map(u64::to_le_bytes));
    }
    out.resize(0x400, 0);
    out.extend([4u32, 4, 3].into_iter().flat_map(u32::to_le_bytes));
    out.extend(b"GNU\0");
    out.extend([id; 4]);
    out.resize(0x1000, 0);
    out
}
