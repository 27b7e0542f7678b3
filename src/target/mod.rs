//! What is looked at: a live process or a core. Everything above this layer sees only [`Target`] and [`Memory`].

pub mod callback;
pub mod core;
pub mod elf;
pub mod files;
pub mod live;
pub mod mapped_file;
pub mod memory;
pub mod notes;
pub mod objects;
pub mod same_file;
#[doc(hidden)]
pub mod testing;
pub mod unpack;

use self::files::Place;
use crate::arch::Registers;
use std::path::{Path, PathBuf};

/// Why memory could not be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum MemoryError {
    /// No mapping covers the address.
    #[error("no memory at {address:#x} ({len} bytes)")]
    Unmapped {
        /// First address of the failed read.
        address: u64,
        /// Bytes wanted.
        len: usize,
    },
    /// A mapping covers the address, but its bytes are not in the core (filtered out, or the core is cut off).
    #[error("memory at {address:#x} ({len} bytes) is not in the core: {why}")]
    Absent {
        /// First address of the failed read.
        address: u64,
        /// Bytes wanted.
        len: usize,
        /// Why ("the core is truncated", "not dumped").
        why: &'static str,
    },
    /// The process runs on, and what is there now may be something else than what was there at the stop.
    #[error("cannot read memory at {address:#x} ({len} bytes): the module was gone before it could be read")]
    Gone {
        /// First address of the failed read.
        address: u64,
        /// Bytes wanted.
        len: usize,
    },
    /// The kernel refused or the process is gone.
    #[error("cannot read memory at {address:#x} ({len} bytes): {errno}")]
    Os {
        /// First address of the failed read.
        address: u64,
        /// Bytes wanted.
        len: usize,
        /// The errno's text.
        errno: String,
    },
}

/// Reads the target's memory. A read is all or nothing.
pub trait Memory {
    /// Fills `buf` from `address`, or fails without a partial result.
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// Reads up to `buf.len()` bytes and returns how many could be read (a prefix).
    fn read_some(&self, address: u64, buf: &mut [u8]) -> usize {
        // Page-wise: what lies behind a hole is not a prefix.
        let mut done = 0;
        while done < buf.len() {
            let at = match address.checked_add(done as u64) {
                Some(a) => a,
                None => break,
            };
            let step = (0x1000 - (at & 0xfff) as usize).min(buf.len() - done);
            if self.read(at, &mut buf[done..done + step]).is_err() {
                break;
            }
            done += step;
        }
        done
    }

    /// As [`Memory::read_some`], of a search: what is found is a hint, and read again by whoever takes it.
    fn scan(&self, address: u64, buf: &mut [u8]) -> usize {
        match self.read(address, buf) {
            Ok(()) => buf.len(),
            Err(_) => self.read_some(address, buf),
        }
    }

    /// A little-endian u64.
    fn read_u64(&self, address: u64) -> Result<u64, MemoryError> {
        let mut b = [0; 8];
        self.read(address, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    /// A little-endian u32.
    fn read_u32(&self, address: u64) -> Result<u32, MemoryError> {
        let mut b = [0; 4];
        self.read(address, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    /// `len` bytes. The caller has bounded `len` (see [`crate::limits`]).
    fn read_vec(&self, address: u64, len: usize) -> Result<Vec<u8>, MemoryError> {
        let mut v = vec![0; len];
        self.read(address, &mut v)?;
        Ok(v)
    }
}

/// A kernel thread id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadId(pub u32);

/// One mapping of the target's address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// File or pseudo name such as `[stack]`; `None` is anonymous (or, in a core, not named by NT_FILE).
    pub path: Option<PathBuf>,
}

impl Mapping {
    /// Whether `address` lies inside.
    pub fn contains(&self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether code may lie here: a core may say no more of a mapped file than its name.
    pub fn may_execute(&self) -> bool {
        self.execute || !(self.read || self.write || self.is_anonymous())
    }

    /// Whether this maps no file: anonymous, `[heap]`, `[stack]`, `[anon:...]`.
    pub fn is_anonymous(&self) -> bool {
        match &self.path {
            None => true,
            Some(p) => p.as_os_str().to_string_lossy().starts_with('['),
        }
    }
}

/// A thread as it was when the target was captured.
#[derive(Clone, Debug)]
pub struct Thread {
    /// Kernel thread id.
    pub id: ThreadId,
    /// Its name (`comm`), if known.
    pub name: Option<String>,
    /// Registers at the stop; nothing is known if they could not be read.
    pub registers: Registers,
    /// Thread pointer, for thread-local variables.
    pub fs_base: Option<u64>,
    /// The signal it died from or was stopped by (cores).
    pub signal: Option<i32>,
    /// Why registers are missing, if they are.
    pub problem: Option<String>,
}

/// A process that is looked at. Captured once; does not change while it is analysed, as far as the source allows.
pub trait Target: Memory {
    /// One line: what this is ("process 4711 (near-host)", "core core.1234 of near-host").
    fn description(&self) -> String;
    /// Threads, the main thread (or the one that crashed) first.
    fn threads(&self) -> &[Thread];
    /// Mappings in ascending order, not overlapping.
    fn mappings(&self) -> &[Mapping];
    /// Path of the main executable as the target names it.
    fn executable(&self) -> Option<&Path>;
    /// Process id, where known.
    fn pid(&self) -> Option<u32>;
    /// Value of an auxiliary vector entry (`libc::AT_*`).
    fn auxv(&self, key: u64) -> Option<u64>;
    /// Where the file that `mapping` names can be opened from here (`/proc/PID/root/...`, map_files, a sysroot); the
    /// first that opens is right. Empty for anonymous mappings.
    fn file_candidates(&self, mapping: &Mapping) -> Vec<Place>;
    /// Whether `file` is certainly not the one that `mapping` maps, though it is at one of these places by now.
    fn maps_another(&self, mapping: &Mapping, file: &files::Identity) -> bool {
        let _ = (mapping, file);
        false
    }
    /// Things the reader should know: truncated core, threads that vanished. One line each.
    fn notes(&self) -> &[String];
    /// Whether memory may have changed since the registers were captured (a live process that runs on).
    fn is_live(&self) -> bool;

    /// Whether all that was read so far is of the instant of registers and stacks, or nothing can be done about it: to be
    /// asked before what was read is used for more than the next read.
    fn prove(&self) -> bool {
        true
    }

    /// Whether memory was asked for that could not be had as it was at the stop.
    fn is_gone(&self) -> bool {
        false
    }

    /// The parts of `start..end` that can hold anything but zeros, as far as that is known without reading them.
    fn touched(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        vec![(start, end)]
    }

    /// Reads what the target itself holds, as [`Memory::read_some`], but nothing of a file in its place.
    fn read_own(&self, address: u64, buf: &mut [u8]) -> usize {
        // All at once costs a running process the least.
        if self.read(address, buf).is_ok() { buf.len() } else { self.read_some(address, buf) }
    }

    /// The mapping that covers `address`.
    fn mapping_at(&self, address: u64) -> Option<&Mapping> {
        let maps = self.mappings();
        let i = maps.partition_point(|m| m.end <= address);
        maps.get(i).filter(|m| m.contains(address))
    }
}
