//! What a stop keeps in addition to registers and stacks. It tells later whether memory that was read of the running
//! process after the stop is as it was at the instant of the stop.
//!
//! Two things together tell that no code was loaded or unloaded. Code that is loaded is written into fresh memory,
//! and the first write to each page is a page fault of the process, which the kernel counts: a count that does not
//! change says that nothing was loaded. Code that is unloaded leaves the list of mappings. A host may load code
//! without a page fault, into memory that it has kept for that purpose. This is seen from the code itself: during the
//! stop, the bytes around each address in registers and on the stacks are copied.

use super::proc::{LiveMemory, Process, parse_maps};
use super::system::read_ranges;
use crate::limits;
use crate::process::files::Identity;
use crate::process::memory::{Piece, Splice};
use crate::process::{Mapping, Thread};
use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

/// Size in bytes of the code that is kept around an address: the aligned block of this size that the address lies in.
/// A block crosses no page.
const BLOCK: u64 = 64;

/// Evidence that was taken while the threads were stopped.
#[derive(Default)]
pub(super) struct Evidence {
    // Number of page faults of all threads so far. `None` means that the kernel does not tell.
    pub(super) faults: Option<u64>,
    // Blocks of code that the dynamic linker did not load, by address.
    pub(super) code: Vec<(u64, [u8; BLOCK as usize])>,
}

impl Evidence {
    /// Takes the evidence. To be called while the threads are stopped, when everything else is copied.
    pub fn take(pid: u32, threads: &[Thread], process: &Process, captured: &Splice) -> Evidence {
        let source = &process.source;
        let blocks = blocks(threads, &process.mappings, process.executable.as_deref(), captured);
        let ranges: Vec<(u64, usize)> = blocks.iter().map(|&at| (at, BLOCK as usize)).collect();
        let mut bytes = vec![0; ranges.len() * BLOCK as usize];
        let got = read_ranges(source.tid, &ranges, &mut bytes).unwrap_or(0);
        bytes.truncate(got);
        let code = blocks.into_iter().zip(bytes.as_chunks().0).map(|(at, bytes)| (at, *bytes)).collect();
        Evidence { faults: faults(pid), code }
    }

    /// Whether no code was loaded or unloaded since the evidence was taken, as far as the evidence tells.
    pub fn holds(&self, pid: u32, mappings: &[Mapping], source: &LiveMemory) -> bool {
        let Some(faults) = self.faults else { return false };
        // The cheap check comes first. The faults are counted again at the end, so that no fault during the other
        // checks is missed.
        let unchanged = |now: Option<u64>| now == Some(faults);
        unchanged(self::faults(pid))
            && self.is_code_there(source)
            && is_same_code_mapped(mappings, pid, source)
            && unchanged(self::faults(pid))
    }

    #[cfg(test)]
    pub fn agrees_with_now(&self, pid: u32) -> bool {
        self.faults == faults(pid)
    }

    /// Whether `later`, taken of the same process, was taken before any code was loaded or unloaded.
    pub fn agrees(&self, later: &Evidence) -> bool {
        self.faults.is_some() && self.faults == later.faults
    }

    /// Addresses of the blocks of code that were copied.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        self.code.iter().map(|(at, _)| *at)
    }

    fn is_code_there(&self, source: &LiveMemory) -> bool {
        let ranges: Vec<(u64, usize)> = self.code.iter().map(|&(at, bytes)| (at, bytes.len())).collect();
        let mut now = vec![0; ranges.len() * BLOCK as usize];
        let got = read_ranges(source.tid, &ranges, &mut now).unwrap_or(0);
        got == now.len()
            && self.code.iter().zip(now.as_chunks::<{ BLOCK as usize }>().0).all(|((_, then), now)| then == now)
    }
}

/// Whether the executable mappings of the process are now the same as in `mappings`.
fn is_same_code_mapped(mappings: &[Mapping], pid: u32, source: &LiveMemory) -> bool {
    let Ok(now) = std::fs::read(format!("/proc/{pid}/task/{}/maps", source.tid)) else { return false };
    let now = parse_maps(&now);
    now.iter().filter(|m| m.execute).eq(mappings.iter().filter(|m| m.execute))
}

/// Number of page faults of all threads of process `pid` since it began.
fn faults(pid: u32) -> Option<u64> {
    // proc(5): minflt and majflt are fields 10 and 12. Field 3 is the first one behind the name.
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let behind = text.iter().rposition(|&c| c == b')')? + 1;
    let fields = std::str::from_utf8(text.get(behind..)?).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let minor: u64 = fields.nth(7)?.parse().ok()?;
    let major: u64 = fields.nth(1)?.parse().ok()?;
    minor.checked_add(major)
}

/// Whether `mapping` can hold code of a module: it is executable, and it is of no file or of a file that the dynamic
/// linker does not load.
pub(super) fn may_be_module(mapping: &Mapping, executable: Option<&Path>) -> bool {
    let Some(path) = mapping.path.as_deref() else { return mapping.execute };
    let name = path.as_os_str().as_bytes();
    let special = name.starts_with(b"[v");
    let loaded = Some(path) == executable || memchr::memmem::find(name, b".so").is_some();
    mapping.execute && !special && !loaded
}

/// Addresses of the blocks of module code that registers and words on the stacks point into.
pub(super) fn blocks(
    threads: &[Thread],
    mappings: &[Mapping],
    executable: Option<&Path>,
    captured: &Splice,
) -> Vec<u64> {
    let code: Vec<&Mapping> = mappings.iter().filter(|m| may_be_module(m, executable)).collect();
    let (Some(first), Some(last)) = (code.first(), code.last()) else { return Vec::new() };
    let (low, size) = (first.start, last.end - first.start);
    let mut found: HashSet<u64> = HashSet::new();
    let mut take = |word: u64| {
        let at = code.partition_point(|m| m.end <= word);
        let Some(mapping) = code.get(at).filter(|m| m.contains(word)) else { return };
        // A word may be a return address, so the byte before it, where the call ends, is taken too.
        for byte in [word - 1, word] {
            if mapping.contains(byte) && found.len() < limits::MAX_CODE_BLOCKS {
                found.insert(byte & !(BLOCK - 1));
            }
        }
    };
    for thread in threads {
        let general = thread.registers.iter().filter(|(reg, _)| reg.word().is_some());
        let words = general.map(|(_, value)| value);
        words.filter(|word| word.wrapping_sub(low) < size).for_each(&mut take);
    }
    let mut left = limits::MAX_CODE_SCAN;
    let share = (left / threads.len().max(1)).max(512);
    for sp in threads.iter().filter_map(|t| t.registers.sp()) {
        let Piece::Bytes(stack) = captured.piece(sp) else { continue };
        let stack = &stack[..stack.len().min(share).min(left)];
        left -= stack.len();
        for word in stack.as_chunks::<8>().0 {
            let word = u64::from_le_bytes(*word);
            if word.wrapping_sub(low) < size {
                take(word);
            }
        }
    }
    let mut found: Vec<u64> = found.into_iter().collect();
    found.sort_unstable();
    found
}

/// Tells which files were mapped at the stop. A path may lead to another file when it is opened later, and so may the
/// kernel's link to a mapping.
#[derive(Default)]
pub(super) struct MappedFiles {
    text: Vec<u8>,
    // Device and inode number of the file, by the first address of the mapping. They are read from the text when they
    // are first needed, which is not during the stop.
    read: OnceLock<HashMap<u64, (u64, u64)>>,
}

impl MappedFiles {
    /// Makes the list from the text of `/proc/PID/maps`.
    pub fn new(text: Vec<u8>) -> MappedFiles {
        MappedFiles { text, read: OnceLock::new() }
    }

    /// Whether `file` is certainly another file than the one that was mapped here. File systems that lie on others
    /// show one device in the mappings and another one of an opened file. For files on them it cannot be told, and
    /// the answer is `false`.
    pub fn is_another(&self, mapping: &Mapping, file: &Identity) -> bool {
        let all = self.read.get_or_init(|| self.text.split(|&c| c == b'\n').filter_map(identity).collect());
        let Some(&(device, inode)) = all.get(&mapping.start) else { return false };
        file.device == device && file.inode != inode
    }
}

/// Returns the first address, the device and the inode number in a line of `/proc/PID/maps`, if the mapping is of a
/// file.
fn identity(line: &[u8]) -> Option<(u64, (u64, u64))> {
    let mut fields = line.splitn(6, |&c| c == b' ').map(|f| std::str::from_utf8(f).unwrap_or_default());
    let start = u64::from_str_radix(fields.next()?.split_once('-')?.0, 16).ok()?;
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    let hex = |s: &str| u32::from_str_radix(s, 16).ok();
    let device = libc::makedev(hex(major)?, hex(minor)?);
    let inode: u64 = fields.next()?.parse().ok()?;
    (inode != 0).then_some((start, (device, inode)))
}
