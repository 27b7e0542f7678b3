//! The target: a live process or a core. Everything above this layer sees it only through [`Target`] and [`Memory`].

#[cfg(feature = "cli")]
pub mod callback;
pub mod core;
pub mod debuginfod;
pub mod elf;
pub mod facts;
pub mod file_kind;
pub mod files;
pub mod live;
pub mod mapped_file;
pub mod memory;
pub mod notes;
pub mod objects;
pub mod same_file;
#[cfg(any(test, feature = "internals"))]
#[doc(hidden)]
pub mod testing;
pub mod unpack;

use self::facts::{Activity, Facts};
use self::files::FileLocation;
use crate::arch::{Machine, Registers};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why memory could not be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum MemoryError {
    /// The address, or a part of the bytes from there on, is in no mapping, or the kernel does not let it be read.
    #[error("no memory can be read at {address:#x} ({len} bytes)")]
    Unmapped {
        /// First address of the failed read.
        address: u64,
        /// Size of the read in bytes.
        len: usize,
    },
    /// A mapping covers the address, but its bytes are not in the core (filtered out, or the core is cut off).
    #[error("memory at {address:#x} ({len} bytes) is not in the core: {why}")]
    Absent {
        /// First address of the failed read.
        address: u64,
        /// Size of the read in bytes.
        len: usize,
        /// Why the core does not have the bytes ("the core is truncated", "not dumped").
        why: &'static str,
    },
    /// The process runs on, and the bytes that are at the address now may be others than those that were there at the
    /// stop.
    #[error("cannot read memory at {address:#x} ({len} bytes): the module was gone before it could be read")]
    Gone {
        /// First address of the failed read.
        address: u64,
        /// Size of the read in bytes.
        len: usize,
    },
    /// The kernel refused the read, or the process is gone.
    #[error("cannot read memory at {address:#x} ({len} bytes): {errno}")]
    Os {
        /// First address of the failed read.
        address: u64,
        /// Size of the read in bytes.
        len: usize,
        /// The system's text for the error number.
        errno: String,
    },
}

/// Reads the target's memory. A read either fills the whole buffer or fails.
pub trait Memory {
    /// Fills `buf` from `address`, or fails without a partial result.
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// Reads the memory around `address` into `buf`: the first `before` bytes of `buf` are for the bytes before
    /// `address`, the rest is for those from `address` on. Returns the range of `buf` that was filled. The range is
    /// shorter than `buf` where the memory around `address` begins late or has a hole.
    fn read_around(&self, address: u64, before: usize, buf: &mut [u8]) -> Range<usize> {
        // Mapped memory begins and ends at page boundaries, but a copied part of it can begin and end anywhere.
        // Therefore sizes of up to nine bytes are tried one after the other, and of larger sizes only the whole
        // window and the part that begins with the page.
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

    /// Reads up to `buf.len()` bytes from `address` on and returns how many could be read. The bytes that were read
    /// are always the first ones of `buf`.
    fn read_some(&self, address: u64, buf: &mut [u8]) -> usize {
        // Reads page by page and stops at the first hole: bytes behind a hole would not be at the start of `buf`.
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

    /// Reads as [`Memory::read_some`] does, but for a search: a hit is only a hint, and whoever uses it reads the
    /// memory again.
    fn scan(&self, address: u64, buf: &mut [u8]) -> usize {
        match self.read(address, buf) {
            Ok(()) => buf.len(),
            Err(_) => self.read_some(address, buf),
        }
    }

    /// Reads a little-endian `u64` at `address`.
    fn read_u64(&self, address: u64) -> Result<u64, MemoryError> {
        let mut b = [0; 8];
        self.read(address, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    /// Reads a little-endian `u32` at `address`.
    fn read_u32(&self, address: u64) -> Result<u32, MemoryError> {
        let mut b = [0; 4];
        self.read(address, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    /// Reads `len` bytes from `address` on. The caller has checked that `len` is within its limit (see
    /// `crate::limits`).
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
    /// First address of the mapping.
    pub start: u64,
    /// One past the last address of the mapping.
    pub end: u64,
    /// Whether the mapping can be read.
    pub read: bool,
    /// Whether the mapping can be written.
    pub write: bool,
    /// Whether code in the mapping can be executed.
    pub execute: bool,
    /// Offset of the mapping's first byte in the file, in bytes.
    pub offset: u64,
    /// Path of the mapped file, or a pseudo name such as `[stack]`. `None` means that the mapping is anonymous (or,
    /// in a core, that NT_FILE does not name it).
    pub path: Option<PathBuf>,
}

impl Mapping {
    /// Whether `address` lies in the mapping.
    pub fn contains(&self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Size of the mapping in bytes.
    pub fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether code may lie in the mapping. A mapping of a file that has no access rights at all counts too, because
    /// a core may know only the name of a mapped file.
    pub fn may_execute(&self) -> bool {
        self.execute || !(self.read || self.write || self.is_anonymous())
    }

    /// Whether the mapping is of no file: it has no name, or a name such as `[heap]`, `[stack]` or `[anon:...]`.
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
    /// Name of the thread (`comm`), if known.
    pub name: Option<String>,
    /// Registers of the thread at the stop. All of them are unknown if they could not be read.
    pub registers: Registers,
    /// Thread pointer (FS base), from which thread-local variables are found.
    pub fs_base: Option<u64>,
    /// The signal that the thread died from or was stopped by (in cores), or that was about to be delivered when it
    /// stopped (in live processes).
    pub signal: Option<i32>,
    /// Why the registers are missing. `None` if they are there.
    pub problem: Option<String>,
}

/// The process or core that is looked at. It is captured once and does not change while it is analysed, as far as the
/// source allows that.
pub trait Target: Memory {
    /// One line that says what the target is ("process 4711 (near-host)", "core core.1234 of near-host").
    fn description(&self) -> String;
    /// The machine that the target runs on.
    fn machine(&self) -> Machine;
    /// Threads of the target. The main thread (or the one that crashed) comes first.
    fn threads(&self) -> &[Thread];
    /// Mappings of the target, in ascending order and not overlapping.
    fn mappings(&self) -> &[Mapping];
    /// Path of the main executable as the target names it.
    fn executable(&self) -> Option<&Path>;
    /// Process id, if it is known.
    fn pid(&self) -> Option<u32>;
    /// Value of an auxiliary vector entry (`libc::AT_*`).
    fn auxv(&self, key: u64) -> Option<u64>;
    /// Places at which this process can open the file that `mapping` names (`/proc/PID/root/...`, map_files, a
    /// sysroot). They are to be tried in this order, and the first one that opens and passes the caller's checks is
    /// right. Empty for anonymous mappings.
    fn file_candidates(&self, mapping: &Mapping) -> Vec<FileLocation>;
    /// Whether `file`, which was opened at one of these places, is certainly another file than the one that `mapping`
    /// maps.
    fn maps_another(&self, mapping: &Mapping, file: &files::Identity) -> bool {
        let _ = (mapping, file);
        false
    }
    /// What is known of the target besides its memory, its threads and its files.
    fn facts(&self) -> Facts {
        Facts::default()
    }
    /// What a thread did at the instant of its registers. `None` if that is not known.
    fn activity(&self, thread: ThreadId) -> Option<Activity> {
        let _ = thread;
        None
    }
    /// What the reader of a report should know about the target, such as a truncated core or threads that vanished.
    /// One line each.
    fn notes(&self) -> &[String];
    /// Whether memory may have changed since the registers were captured (a live process that runs on).
    fn is_live(&self) -> bool;

    /// Whether everything that was read so far is as it was at the instant of the registers and stacks. Also true
    /// where the target has no way to improve on that. Callers ask this before they use what they read for more than
    /// the next read.
    fn prove(&self) -> bool {
        true
    }

    /// Whether somebody asked for memory that could not be read as it was at the stop.
    fn is_gone(&self) -> bool {
        false
    }

    /// The parts of `start..end` that may hold anything but zeros, as far as that is known without reading them.
    fn touched(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        vec![(start, end)]
    }

    /// Reads as [`Memory::read_some`] does, but only bytes that the target itself holds, never bytes that a file on
    /// disk has in their place.
    fn read_own(&self, address: u64, buf: &mut [u8]) -> usize {
        // One read of the whole range disturbs a running process the least.
        if self.read(address, buf).is_ok() { buf.len() } else { self.read_some(address, buf) }
    }

    /// The mapping that covers `address`.
    fn mapping_at(&self, address: u64) -> Option<&Mapping> {
        mapping_at(self.mappings(), address)
    }
}

/// The mapping that covers `address`, out of mappings that are ascending and do not overlap.
pub fn mapping_at(mappings: &[Mapping], address: u64) -> Option<&Mapping> {
    let i = mappings.partition_point(|m| m.end <= address);
    mappings.get(i).filter(|m| m.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory from the first address up to the second. Each byte is the low byte of its own address.
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
                // `read_some` goes page by page, so it may end before a page that is not there as a whole.
                let wanted = before - left..before + right;
                let whole = 0x2000u64
                    .checked_sub(address)
                    .filter(|n| *n < right as u64)
                    .map_or(wanted.end, |n| before + n as usize);
                assert!(there == wanted || there == (wanted.start..whole), "{there:?} {wanted:?} at {address:#x}");
                assert!(there.clone().all(|i| buf[i] == (first + i as u64) as u8));
            }
        }
        // A large window is cut at the start of its page.
        let page = Piece(0x2000, 0x3000);
        assert_eq!(page.read_around(0x2080, 0x100, &mut [0; 0x200]), 0x80..0x200);
        assert_eq!(page.read_around(u64::MAX, 8, &mut [0; 16]), 8..8);
        assert_eq!(page.read_around(0x2000, 8, &mut [0; 4]), 0..0);
    }
}
