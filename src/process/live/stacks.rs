//! Copies the used parts of stacks, and memory in general, with few system calls.

use super::CaptureOptions;
use super::proc::LiveMemory;
use super::system::read_ranges;
use crate::arch::Machine;
use crate::process::memory::{Content, Holder, Splice};
use crate::process::{Mapping, Memory, Thread};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

/// Copies the used part of every stack. For threads on alternate or heap-allocated stacks, the stacks that they came
/// from are copied too.
pub(super) fn copy_stacks(
    threads: &[Thread],
    mappings: &[Mapping],
    source: &LiveMemory,
    pid: u32,
    options: &CaptureOptions,
    notes: &mut Vec<String>,
) -> Splice {
    let at = |address: u64| {
        let i = mappings.partition_point(|m| m.end <= address);
        mappings.get(i).filter(|m| m.contains(address))
    };
    let red_zone = Machine::HERE.description().red_zone;
    let main_stack = mappings.iter().find(|m| m.path.as_deref() == Some(Path::new("[stack]")));
    let mut budget = options.max_total;
    let mut capped = false;
    let mut plan = Plan::default();
    let mut elsewhere = Vec::new();
    for thread in threads {
        let Some(sp) = thread.registers.sp() else { continue };
        let Some(stack) = at(sp).filter(|m| m.read) else { continue };
        let own = if thread.id.0 == pid { main_stack } else { thread.fs_base.and_then(&at) };
        let from = sp.saturating_sub(red_zone).max(stack.start);
        capped |= plan.add(from, stack.end, options.max_stack, &mut budget);
        // glibc keeps the thread control block, which fs_base points to, at the top of the stack that it allocates.
        if own.is_some_and(|own| own != stack) {
            elsewhere.push((sp, own));
        }
    }
    let mut captured = Splice::new();
    plan.copy(source, &mut captured);

    // A thread that is on another stack than its own most often runs a signal handler on an alternate stack, whose
    // frame names the interrupted stack. That stack may be one that a coroutine library took from the heap, so the
    // words on the stack tell where it is, not the names of mappings.
    const WORDS: usize = 4096;
    const SMALL_MAPPING: u64 = 1 << 20;
    const PER_THREAD: usize = 64;
    let mut more = Plan::default();
    let mut taken = HashSet::new();
    for (sp, own) in elsewhere {
        let mut words = vec![0; captured.available(sp, usize::MAX)];
        if captured.read(sp, &mut words).is_err() {
            words.clear();
        }
        let words = words.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
        if let Some(own) = own.filter(|own| own.read && taken.insert(own.start)) {
            // Whoever left the thread's own stack has stored its stack pointer: the kernel that of the interrupted
            // code, a coroutine that of its caller.
            let lowest = words.clone().filter(|w| own.contains(*w)).min();
            let used = lowest.map_or(own.start, |w| w.saturating_sub(red_zone));
            let limit = own.end.saturating_sub(options.max_stack);
            capped |= limit > used;
            capped |= more.add(used.max(limit).max(own.start), own.end, options.max_stack, &mut budget);
        }
        let mut found = 0;
        for word in words.take(WORDS) {
            let Some(m) = at(word) else { continue };
            let fits = m.read && m.write && m.size() <= SMALL_MAPPING && !m.contains(sp);
            if fits && found < PER_THREAD && taken.insert(m.start) {
                found += 1;
                capped |= more.add(m.start, m.end, SMALL_MAPPING, &mut budget);
            }
        }
    }
    more.copy(source, &mut captured);
    if capped {
        notes.push("large stacks were copied in part; the rest is read from the running process".to_string());
    }
    captured
}

/// Ranges that are to be copied with as few system calls as possible.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) ranges: Vec<(u64, usize)>,
}

impl Plan {
    /// Adds `from..to` to the plan. Returns whether the range had to be shortened.
    pub(super) fn add(&mut self, from: u64, to: u64, limit: u64, budget: &mut u64) -> bool {
        let want = to.saturating_sub(from);
        let len = want.min(limit).min(*budget);
        *budget -= len;
        if len > 0 {
            self.ranges.push((from, len as usize));
        }
        len < want
    }

    pub(super) fn copy(self, source: &LiveMemory, into: &mut Splice) {
        let total = self.ranges.iter().map(|r| r.1).sum();
        // Zeroed pages that come from the allocator are untouched memory: only pages that are copied into cost
        // anything.
        let mut bytes: Vec<u8> = vec![0; total];
        let mut copied = Vec::new();
        let mut done = 0;
        let mut ranges = self.ranges.as_slice();
        while let Some(&(address, len)) = ranges.first() {
            let got = read_ranges(source.tid, ranges, &mut bytes[done..]).unwrap_or(0);
            let mut left = got;
            while let Some(&(address, len)) = ranges.first()
                && left >= len
            {
                copied.push((address, done, len));
                (done, left, ranges) = (done + len, left - len, &ranges[1..]);
            }
            if got == 0 || left > 0 {
                // There is a hole in this range, or the call is forbidden (seccomp): what is there is copied page by
                // page.
                let (address, len) = ranges.first().copied().unwrap_or((address, len));
                let n = source.read_some(address, &mut bytes[done..done + len]);
                if n > 0 {
                    copied.push((address, done, n));
                }
                (done, ranges) = (done + len, ranges.get(1..).unwrap_or_default());
            }
        }
        let holder: Holder = Arc::new(bytes);
        for (address, offset, len) in copied {
            into.add(address, address.saturating_add(len as u64), Content::Bytes { holder: holder.clone(), offset });
        }
    }
}
