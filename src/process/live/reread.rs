//! Looks at a process again, to get all memory as it was at one instant.
//!
//! What is read of a running process belongs to a later moment than its stacks. If [`Evidence`] does not tell that it
//! is the same all the same, the process is stopped once more, and the memory that the first look read is copied
//! together with the stacks. A second look then reads the same addresses from the copy and finds all or nearly all of
//! them there. What it misses is copied at the next stop. Modules that come and go are loaded at the same few
//! addresses, so this ends soon.

use super::proc::{LiveMemory, Process};
use super::stacks::Plan;
use super::stop::{Stopped, on_own_thread};
use super::system::read_ranges;
use super::{CaptureOptions, LiveTarget, SMALL_READ};
use crate::error::Error;
use crate::limits;
use crate::process::memory::{Content, PAGE, Piece, Splice};
use crate::process::{Mapping, Memory, MemoryError, mapping_at};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

/// Size in bytes of one sample of a range that is too large to be copied.
const SAMPLE: usize = 64;
/// Number of pages before and behind a wanted page that are copied too. The structures of the next module lie beside
/// those of this one.
const BESIDE: u64 = 16;

/// Memory that the next capture is to copy while the process is stopped.
#[derive(Clone, Debug, Default)]
pub struct ReadSet {
    // First addresses of pages that were read.
    pages: BTreeSet<u64>,
    // Larger reads, of more than two pages: start and end, rounded to whole pages.
    large: BTreeSet<(u64, u64)>,
    sealed: bool,
}

impl ReadSet {
    /// Makes memory that was not copied unreadable from now on.
    pub fn seal(&mut self) {
        self.sealed = true;
    }

    /// Adds the memory that was read of the running process through `target`.
    pub fn add_reads_of(&mut self, target: &LiveTarget) {
        let Ok(log) = target.log.lock() else { return };
        self.pages.extend(log.pages.iter().chain(&log.proven.0));
        self.large.extend(log.large.iter().chain(&log.proven.1));
        self.pages.extend(target.evidence.blocks().map(page_of));
    }

    fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.large.is_empty()
    }
}

/// Records what was read of the running process because it was not in the copy.
#[derive(Default)]
pub(super) struct Log {
    pages: BTreeSet<u64>,
    large: BTreeSet<(u64, u64)>,
    // Whether more was read than is kept here, or something was read that cannot be proven.
    beyond: bool,
    refused: bool,
    // Pages and large ranges that were read and are proven to be of the instant of the capture.
    proven: (BTreeSet<u64>, BTreeSet<(u64, u64)>),
}

impl Log {
    fn page(&mut self, page: u64) {
        match self.pages.len() < limits::MAX_READ_PAGES {
            true => drop(self.pages.insert(page)),
            false => self.beyond = true,
        }
    }

    #[cfg(test)]
    pub(super) fn is_beyond(&self) -> bool {
        self.beyond
    }

    pub(super) fn add(&mut self, address: u64, len: usize) {
        let end = address.saturating_add(len as u64);
        let (start, end) = (page_of(address), end.checked_next_multiple_of(PAGE).unwrap_or(end));
        if end - start <= 2 * PAGE {
            (start..end).step_by(PAGE as usize).for_each(|page| self.page(page));
        } else if self.large.len() < limits::MAX_READ_PAGES {
            self.large.insert((start, end));
        } else {
            self.beyond = true;
        }
    }
}

fn page_of(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// What is known about a copy besides its bytes.
#[derive(Default)]
pub(super) struct Copied {
    /// Whether any memory was asked for. If so, the mappings are those of the moment of the copy and tell what cannot
    /// be read.
    again: bool,
    sealed: bool,
    /// Whether pages were left out because of the limit. The next attempt would miss them again.
    too_much: bool,
    // Ranges that were too large to be copied, and samples: addresses in them and the bytes there.
    sampled: Vec<(u64, u64)>,
    pub(super) samples: Vec<(u64, [u8; SAMPLE])>,
}

/// Copies the memory that `set` asks for into `captured`. To be called while the threads are stopped.
pub(super) fn copy(set: &ReadSet, process: &Process, captured: &mut Splice) -> Copied {
    let mut copied = Copied { again: !set.is_empty(), sealed: set.sealed, ..Copied::default() };
    if set.is_empty() {
        return copied;
    }
    let mut plan = Pages { mappings: &process.mappings, ranges: BTreeSet::new(), left: limits::MAX_REREAD_BYTES };
    let mut large: Vec<(u64, u64)> = Vec::new();
    for &page in &set.pages {
        copied.too_much |= !plan.take(page, page.saturating_add(PAGE));
    }
    let mut by_size = merged(set.large.clone());
    by_size.sort_by_key(|(start, end)| end - start);
    for (start, end) in by_size {
        if !plan.take(start, end) {
            large.push((start, end));
        }
    }
    plan.take_beside(&set.pages);
    let ranges = merged(plan.ranges);
    Plan { ranges: ranges.iter().map(|&(start, end)| (start, (end - start) as usize)).collect() }
        .copy(&process.source, captured);
    // Bytes that could not be copied are marked as absent: they could not be read at that instant.
    for (start, end) in ranges {
        let mut at = start;
        while at < end {
            let next = match captured.piece(at) {
                Piece::Bytes(bytes) => at.saturating_add(bytes.len() as u64),
                Piece::Zero(n) | Piece::Absent(n, _) => at.saturating_add(n),
                Piece::Gap(n) => {
                    let next = at.saturating_add(n).min(end);
                    captured.add(at, next, Content::Absent(UNREADABLE));
                    next
                }
            };
            at = next.max(at + 1);
        }
    }
    copied.sample(&merged(large.into_iter().collect()), &process.source);
    copied
}

/// Why there are no bytes at an address that was to be copied.
const UNREADABLE: &str = "it could not be read while the process was stopped";

/// Ranges that are to be copied, and the bytes that may still be added.
struct Pages<'a> {
    mappings: &'a [Mapping],
    ranges: BTreeSet<(u64, u64)>,
    left: u64,
}

impl Pages<'_> {
    /// Takes the parts of `start..end` that are mapped. Returns `false` and takes nothing if there is no room for
    /// them.
    fn take(&mut self, start: u64, end: u64) -> bool {
        let first = self.mappings.partition_point(|m| m.end <= start);
        let within = self.mappings[first..].iter().take_while(|m| m.start < end);
        let parts: Vec<(u64, u64)> = within.map(|m| (m.start.max(start), m.end.min(end))).collect();
        let size = parts.iter().map(|(start, end)| end - start).sum();
        let Some(left) = self.left.checked_sub(size) else { return false };
        let new = parts.into_iter().filter(|part| self.ranges.insert(*part)).count();
        if new > 0 {
            self.left = left;
        }
        true
    }
}

impl Pages<'_> {
    /// Takes readable pages around these pages that can be written or are of no file, as long as there is room for
    /// them.
    fn take_beside(&mut self, pages: &BTreeSet<u64>) {
        let mut left = limits::MAX_REREAD_BESIDE;
        // The nearest pages come first, so that every page gets some neighbours before one page gets all of its own.
        for distance in (1..=BESIDE).map(|n| n * PAGE) {
            for page in pages {
                for beside in [page.checked_sub(distance), page.checked_add(distance)].into_iter().flatten() {
                    let wanted =
                        mapping_at(self.mappings, beside).is_some_and(|m| m.read && (m.write || m.is_anonymous()));
                    if !wanted || self.ranges.contains(&(beside, beside.saturating_add(PAGE))) {
                        continue;
                    }
                    if left < PAGE || !self.take(beside, beside.saturating_add(PAGE)) {
                        return;
                    }
                    left -= PAGE;
                }
            }
        }
    }
}

/// Returns the same addresses in ranges that neither overlap nor touch.
fn merged(ranges: BTreeSet<(u64, u64)>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match out.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

impl Copied {
    /// Whether memory that was not copied cannot be read.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Takes samples at even distances in the ranges.
    fn sample(&mut self, ranges: &[(u64, u64)], source: &LiveMemory) {
        let pages: u64 = ranges.iter().map(|(start, end)| (end - start) / PAGE).sum();
        let step = pages.div_ceil(limits::MAX_REREAD_SAMPLES).max(1);
        let at = ranges.iter().flat_map(|&(start, end)| (start..end).step_by((step * PAGE) as usize));
        let at: Vec<(u64, usize)> = at.map(|at| (at, SAMPLE)).collect();
        let mut bytes = vec![0; at.len() * SAMPLE];
        let got = read_ranges(source.tid, &at, &mut bytes).unwrap_or(0);
        // Reading ends at a hole, so nothing is known of the ranges behind it: they stay unproven.
        let sampled = at.get(got / SAMPLE).map_or(u64::MAX, |(hole, _)| *hole);
        self.samples = at.iter().map(|(at, _)| *at).zip(bytes[..got].as_chunks().0.iter().copied()).collect();
        self.sampled = ranges.iter().copied().filter(|(_, end)| *end <= sampled).collect();
    }

    fn is_sampled(&self, address: u64, len: usize) -> bool {
        let at = self.sampled.partition_point(|(_, end)| *end <= address);
        self.sampled.get(at).is_some_and(|(start, end)| *start <= address && len as u64 <= end - address)
    }

    /// Whether `bytes`, which were read now, are the same as at the copy, as far as the samples tell.
    fn agrees(&self, address: u64, bytes: &[u8]) -> bool {
        let first = self.samples.partition_point(|(at, _)| *at < address);
        let within = self.samples[first..].iter().map_while(|(at, then)| {
            let from = usize::try_from(at - address).ok()?;
            Some((bytes.get(from..from.checked_add(SAMPLE)?)?, then))
        });
        within.into_iter().all(|(now, then)| now == then)
    }

    fn still_agrees(&self, source: &LiveMemory) -> bool {
        let at: Vec<(u64, usize)> = self.samples.iter().map(|(at, _)| (*at, SAMPLE)).collect();
        let mut now = vec![0; at.len() * SAMPLE];
        let got = read_ranges(source.tid, &at, &mut now).unwrap_or(0);
        got == now.len() && self.samples.iter().zip(now.as_chunks().0).all(|((_, then), now)| then == now)
    }
}

impl LiveTarget {
    /// Captures as [`LiveTarget::capture`] does, and also copies the memory that `set` asks for at the same instant.
    pub fn capture_again(pid: u32, options: &CaptureOptions, set: &ReadSet) -> Result<LiveTarget, Error> {
        on_own_thread(pid, || {
            let mut stopped = Stopped::all(pid, options)?;
            LiveTarget::of(&mut stopped, options, set)
        })
    }

    /// Whether everything that was read of this target so far is as it was at the instant of its registers and
    /// stacks.
    pub fn is_proven(&self) -> bool {
        let Ok(log) = self.log.lock() else { return false };
        if log.refused {
            return false;
        }
        let nothing_else = log.pages.is_empty() && log.large.is_empty() && !log.beyond;
        if nothing_else && self.copied.still_agrees(&self.source) {
            return true;
        }
        self.evidence.holds(self.pid, &self.mappings, &self.source)
    }

    /// Waits until the process has had a page fault.
    #[cfg(test)]
    pub fn wait_for_a_fault(&self) {
        while self.evidence.agrees_with_now(self.pid) {
            std::thread::yield_now();
        }
    }

    /// Memory of the process as it is now.
    pub fn running(&self) -> &dyn Memory {
        &self.source
    }

    /// Returns this target in a form in which only what was copied can be read.
    pub fn sealed(mut self) -> LiveTarget {
        (self.copied.again, self.copied.sealed) = (true, true);
        self.cache = Mutex::default();
        self.log = Mutex::default();
        self.pause = Duration::ZERO;
        self
    }

    /// Adds the time for which the process was stopped in earlier captures for the same answer.
    pub fn stood_also(self, before: Duration) -> LiveTarget {
        LiveTarget { pause: self.pause + before, ..self }
    }

    /// Whether more was to be copied than the limit allows, so that another attempt would end like this one.
    pub fn is_too_much(&self) -> bool {
        self.copied.too_much
    }

    /// Checks as [`LiveTarget::is_proven`] does, but what is proven now need not be proven again later. Also true
    /// where there can be no other capture that would be proven.
    pub(super) fn prove_so_far(&self) -> bool {
        if self.is_proven() {
            if let Ok(mut log) = self.log.lock() {
                let log = &mut *log;
                log.proven.0.append(&mut log.pages);
                log.proven.1.append(&mut log.large);
                log.beyond = false;
            }
            return true;
        }
        self.copied.sealed || self.slept.is_some()
    }

    /// Whether no code was loaded or unloaded between the capture of this target and that of `later`, which is of the
    /// same process.
    pub fn is_same_code(&self, later: &LiveTarget) -> bool {
        let code = |target: &LiveTarget| target.mappings.iter().filter(|m| m.execute).cloned().collect::<Vec<_>>();
        self.evidence.agrees(&later.evidence) && code(self) == code(later)
    }

    /// Whether a read was refused because the memory is not of the instant of the registers.
    pub(super) fn has_refused(&self) -> bool {
        self.log.lock().is_ok_and(|log| log.refused)
    }

    /// Reads memory that was not copied; the bytes come from the running process.
    pub(super) fn read_running(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        if self.copied.again && !self.mappings_cover(address, len) {
            return Err(MemoryError::Unmapped { address, len });
        }
        if self.copied.sealed {
            if let Ok(mut log) = self.log.lock() {
                log.refused = true;
            }
            return Err(MemoryError::Gone { address, len });
        }
        let fetch = |at: u64, into: &mut [u8]| {
            let read = self.source.read(at, into);
            let sampled = self.copied.is_sampled(at, into.len());
            if let Ok(mut log) = self.log.lock() {
                if !sampled {
                    log.add(at, into.len());
                } else if read.is_err() || !self.copied.agrees(at, into) {
                    log.beyond = true;
                }
            }
            read
        };
        if len > SMALL_READ {
            return fetch(address, buf);
        }
        match self.cache.lock() {
            Ok(mut cache) => cache.read(address, buf, fetch),
            Err(_) => fetch(address, buf),
        }
    }

    /// Whether every byte of the range was mapped at the capture.
    fn mappings_cover(&self, address: u64, len: usize) -> bool {
        let end = address.saturating_add(len as u64);
        let first = self.mappings.partition_point(|m| m.end <= address);
        let mut at = address;
        for mapping in &self.mappings[first..] {
            if at >= end || mapping.start > at {
                break;
            }
            at = mapping.end;
        }
        at >= end
    }
}
