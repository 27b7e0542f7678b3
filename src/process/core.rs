//! Reads core files, which the kernel or gdb wrote of a process.

mod arguments;
mod files;
mod headers;
mod mappings;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::elf::{Phdr, pt};
use super::facts::{Activity, Facts};
use super::file_kind::{self, Door};
use super::files::{FileLocation, map_file};
use super::memory::{CUT_OFF, Content, Holder, Splice};
use super::notes::{Notes, without_deleted};
use super::objects::SearchPaths;
use super::{Mapping, Memory, MemoryError, Target, Thread, ThreadId};
use crate::arch::Machine;
use crate::error::Error;
#[cfg(any(test, feature = "internals"))]
pub(super) use headers::{PN_XNUM, SH_INFO};
use headers::{present, program_headers, sane};
use mappings::mappings;

/// The reason that is given for bytes which the writer of the core left out.
const NOT_DUMPED: &str = "not dumped";
const OTHER_FILE: &str = "not dumped, and the file on disk is another build";

/// A core file as a target.
pub struct CoreTarget {
    path: PathBuf,
    machine: Machine,
    notes: Notes,
    lines: Vec<String>,
    // When the file was written, in seconds since 1970.
    written: Option<i64>,
    mappings: Vec<Mapping>,
    executable: Option<PathBuf>,
    search: SearchPaths,
    memory: Splice,
    /// The part of `memory` that the core itself holds, without what files add.
    own: Splice,
}

impl CoreTarget {
    /// Maps the core and reads its headers and notes. The memory that it holds is read only when somebody asks for
    /// it.
    pub fn open(path: &Path, search: &SearchPaths) -> Result<CoreTarget, Error> {
        let file = match map_file(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                let why = file_kind::refusal(&[], Door::Core).unwrap_or_default();
                return Err(Error::Core { path: path.into(), why });
            }
            Err(source) => return Err(Error::File { path: path.into(), source }),
        };
        let written = Some(file.identity().modified.0);
        Ok(CoreTarget { written, ..CoreTarget::from_bytes(path, Arc::new(file), search)? })
    }

    /// Opens a core as [`CoreTarget::open`] does, from bytes that are already in memory. `path` is only used in
    /// messages and to find files beside the core.
    pub fn from_bytes(path: &Path, holder: Holder, search: &SearchPaths) -> Result<CoreTarget, Error> {
        let data: &[u8] = (*holder).as_ref();
        let mut lines = Vec::new();
        let (machine, phdrs) =
            program_headers(data, &mut lines).map_err(|why| Error::Core { path: path.into(), why })?;

        let segments = phdrs.iter().filter(|p| p.kind == pt::NOTE).map(|p| present(data, p));
        let notes = Notes::parse(machine, segments);
        lines.extend(notes.problems.iter().cloned());
        if notes.threads.is_empty() {
            lines.push(
                "the core lists no thread (it has no NT_PRSTATUS note), so there are no stacks; write the core again"
                    .to_string(),
            );
        }

        let needed = phdrs.iter().map(|p| p.offset.saturating_add(p.filesz)).max().unwrap_or(0);
        if needed > data.len() as u64 {
            lines.push(format!(
                "the core is cut off: {} of {needed} bytes are there; copy it again, or write it again with more space",
                data.len()
            ));
        }
        let loads: Vec<Phdr> =
            phdrs.iter().filter(|p| p.kind == pt::LOAD).filter_map(|p| sane(p, &mut lines)).collect();
        let mut memory = Splice::new();
        for p in &loads {
            let end = p.vaddr + p.memsz;
            let dumped = p.vaddr + p.filesz;
            let there = (data.len() as u64).saturating_sub(p.offset).min(p.filesz);
            // The kernel leaves out what coredump_filter does not ask for, and gdb leaves out what it could not read.
            // Therefore bytes that a segment does not hold are unknown. They are never zero, as they are in an
            // executable.
            memory.add(dumped, end, Content::Absent(NOT_DUMPED));
            memory.add(p.vaddr + there, dumped, Content::Absent(CUT_OFF));
            if let Ok(offset) = usize::try_from(p.offset) {
                memory.add(p.vaddr, p.vaddr + there, Content::Bytes { holder: holder.clone(), offset });
            }
        }
        let (mappings, unlisted) = mappings(&loads, &notes);
        // gdb writes no segment at all for memory that coredump_filter leaves out, but NT_FILE still lists it.
        for &(start, end) in &unlisted {
            memory.add(start, end, Content::Absent(NOT_DUMPED));
        }
        let mut core = CoreTarget {
            path: path.into(),
            machine,
            notes,
            lines,
            written: None,
            mappings,
            executable: None,
            search: search.clone(),
            own: memory.clone(),
            memory,
        };
        core.executable = core.find_executable();
        core.fill_from_files(&unlisted);
        Ok(core)
    }
}

impl Memory for CoreTarget {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(address, buf)
    }

    fn read_some(&self, address: u64, buf: &mut [u8]) -> usize {
        let n = self.memory.available(address, buf.len());
        if self.memory.read(address, &mut buf[..n]).is_ok() { n } else { 0 }
    }
}

impl Target for CoreTarget {
    fn description(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
        let of = self.executable.as_ref().and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
        match of.or_else(|| self.notes.command.clone()) {
            Some(of) => format!("core {name} of {of}"),
            None => format!("core {name}"),
        }
    }

    fn machine(&self) -> Machine {
        self.machine
    }

    fn threads(&self) -> &[Thread] {
        &self.notes.threads
    }

    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn executable(&self) -> Option<&Path> {
        self.executable.as_deref().or(self.search.executable.as_deref())
    }

    fn pid(&self) -> Option<u32> {
        self.notes.pid
    }

    fn auxv(&self, key: u64) -> Option<u64> {
        self.notes.auxv(key)
    }

    fn file_candidates(&self, mapping: &Mapping) -> Vec<FileLocation> {
        if mapping.is_anonymous() {
            return Vec::new();
        }
        let Some((path, _)) = without_deleted(mapping) else { return Vec::new() };
        let mut out = Vec::new();
        if self.executable.is_some() && self.executable == mapping.path {
            out.extend(self.search.executable.clone().map(FileLocation::user));
        }
        if let Some(root) = self.search.sysroot.as_ref().filter(|_| path.is_absolute()) {
            out.push(FileLocation::within(root, &path));
        }
        // Cores are often handed on together with the files, in one directory.
        let neighbour = path.file_name().and_then(|name| Some(self.path.parent()?.join(name)));
        out.push(FileLocation::named(path));
        out.extend(neighbour.map(FileLocation::named));
        out
    }

    fn facts(&self) -> Facts {
        let (uid, gid) = self.notes.user.unzip();
        let ended_by = self.notes.threads.first().and_then(|thread| thread.signal);
        let command_line = arguments::of(self, &self.notes).or_else(|| self.notes.command_line.clone());
        let written = self.written;
        // A record of another signal than the one that the thread has is not about this end.
        Facts { signal: self.notes.signal.filter(|s| Some(s.number) == ended_by), uid, gid, command_line, written }
    }

    fn activity(&self, thread: ThreadId) -> Option<Activity> {
        let told = (*self.notes.told.get(&thread)?)?;
        Activity::of(self.machine, told, None, |address, buf| self.read(address, buf).is_ok())
    }

    fn notes(&self) -> &[String] {
        &self.lines
    }

    fn is_live(&self) -> bool {
        false
    }

    fn read_own(&self, address: u64, buf: &mut [u8]) -> usize {
        let n = self.own.available(address, buf.len());
        if self.own.read(address, &mut buf[..n]).is_ok() { n } else { 0 }
    }
}
