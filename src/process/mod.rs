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
use std::ops::Range;
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

    /// Reads what lies around `address` into `buf`, whose first `before` bytes are those before it, and returns which of
    /// `buf` could be read. Before a hole, or at the beginning of what is there, it is less.
    fn read_around(&self, address: u64, before: usize, buf: &mut [u8]) -> Range<usize> {
        // Memory begins and ends on pages, and what was copied of it anywhere: few bytes are tried one by one.
        const ONE_BY_ONE: usize = 9;
        let start = |n: usize| address.checked_sub(n as u64);
        let page = (address & 0xfff) as usize;
        for n in [before, page].into_iter().filter(|&n| n == before || (ONE_BY_ONE + 1..before).contains(&n)) {
            let place = start(n).zip(buf.get_mut(before - n..));
            if place.is_some_and(|(start, bytes)| self.read(start, bytes).is_ok()) {
                return before - n..buf.len();
            }
        }
        let Some((left, right)) = buf.split_at_mut_checked(before) else { return 0..0 };
        let mut is_before = |n: usize| {
            let place = start(n).zip(left.get_mut(before - n..));
            place.is_some_and(|(start, bytes)| self.read(start, bytes).is_ok())
        };
        let found = match before {
            0 => 0,
            _ if !is_before(1) => 0,
            _ => {
                let large = [before, page].into_iter().filter(|n| (ONE_BY_ONE + 1..=before).contains(n));
                large.chain((1..=before.min(ONE_BY_ONE)).rev()).find(|&n| is_before(n)).unwrap_or(0)
            }
        };
        let mut behind = self.read_some(address, right);
        if behind == 0 && right.get_mut(..1).is_some_and(|byte| self.read(address, byte).is_ok()) {
            let fits = |n: &usize| right.get_mut(..*n).is_some_and(|bytes| self.read(address, bytes).is_ok());
            behind = (1..=ONE_BY_ONE).rev().find(fits).unwrap_or(0);
        }
        before - found..before + behind
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    /// So many bytes from an address on, each the low byte of its place.
    struct Piece(u64, u64);

    impl Memory for Piece {
        fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
            let end = address.checked_add(buf.len() as u64);
            if address < self.0 || end.is_none_or(|end| end > self.1) {
                return Err(MemoryError::Unmapped { address, len: buf.len() });
            }
            buf.iter_mut().zip(address..).for_each(|(byte, at)| *byte = at as u8);
            Ok(())
        }
    }

    #[test]
    fn what_is_around_an_address_is_what_is_there() {
        let memory = Piece(0x1ffd, 0x200b);
        for address in 0x1ff0..0x2020u64 {
            for (before, behind) in (0..9).flat_map(|before| (0..10).map(move |behind| (before, behind))) {
                let mut buf = vec![0; before + behind];
                let there = memory.read_around(address, before, &mut buf);
                let first = address - before as u64;
                let is_there = |at: u64| (memory.0..memory.1).contains(&at);
                let left = (first..address).rev().take_while(|&at| is_there(at)).count();
                let right = (address..address + behind as u64).take_while(|&at| is_there(at)).count();
                // A reading of some bytes goes page by page, and ends before one that is not whole.
                let wanted = before - left..before + right;
                let whole = 0x2000u64
                    .checked_sub(address)
                    .filter(|n| *n < right as u64)
                    .map_or(wanted.end, |n| before + n as usize);
                assert!(there == wanted || there == (wanted.start..whole), "{there:?} {wanted:?} at {address:#x}");
                assert!(there.clone().all(|i| buf[i] == (first + i as u64) as u8));
            }
        }
        // A large window begins where its page does.
        let page = Piece(0x2000, 0x3000);
        assert_eq!(page.read_around(0x2080, 0x100, &mut [0; 0x200]), 0x80..0x200);
        assert_eq!(page.read_around(u64::MAX, 8, &mut [0; 16]), 8..8);
        assert_eq!(page.read_around(0x2000, 8, &mut [0; 4]), 0..0);
    }
}
