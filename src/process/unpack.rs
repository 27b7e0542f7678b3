//! One memory budget for everything that is decompressed for a report.
//!
//! Seven megabytes of compressed data can become seven gigabytes of zeros. A section that claims to become larger
//! than its compressed bytes can honestly hold is not believed, and all sections of all files together may use only a
//! share of the memory that is free.

use crate::limits;
use object::ObjectSection;
use std::borrow::Cow;
use std::cell::RefCell;

#[derive(Default)]
struct Budget {
    left: Option<u64>,
    notes: Vec<String>,
}

thread_local! {
    static BUDGET: RefCell<Budget> = RefCell::default();
}

/// Resets the budget and the notes of this thread. To be called when a report begins.
pub fn begin() {
    BUDGET.set(Budget::default());
}

/// Notes for the reader of the report about what was left out since it began.
pub fn notes() -> Vec<String> {
    BUDGET.with_borrow(|budget| budget.notes.clone())
}

/// The largest decompressed size, in bytes, that is believed of a section with `compressed` bytes.
pub fn believed(compressed: u64) -> u64 {
    let small = compressed.saturating_mul(limits::MAX_COMPRESSION_RATIO).min(limits::MAX_SMALL_SECTION_BYTES);
    let large = compressed.saturating_mul(limits::MAX_LARGE_COMPRESSION_RATIO);
    small.max(large).min(limits::MAX_DEBUG_SECTION_BYTES)
}

/// Takes `bytes` from the budget. Returns `false` and takes nothing if fewer are left.
pub fn take(bytes: u64) -> bool {
    BUDGET.with_borrow_mut(|budget| {
        let left = budget.left.get_or_insert_with(|| share(free()));
        match left.checked_sub(bytes) {
            Some(rest) => {
                *left = rest;
                true
            }
            None => false,
        }
    })
}

/// Whether the debug sections of the file `name` may be decompressed. Each element of `sections` is the compressed
/// size of one section and the size that it claims to have when decompressed, in bytes. If not, a note is added, and
/// no section of the file is to be used: answers from half of the sections would be worse than none.
pub fn affordable(name: &str, sections: &[(u64, u64)]) -> bool {
    let all = sections.iter().fold(0u64, |sum, &(_, claimed)| sum.saturating_add(claimed));
    let honest = sections.iter().all(|&(compressed, claimed)| claimed <= believed(compressed));
    BUDGET.with_borrow_mut(|budget| {
        let left = *budget.left.get_or_insert_with(|| share(free()));
        let why = match honest {
            true if all <= left => return true,
            true => {
                format!("needs {all} bytes of memory, of which {left} are left for it (--no-lines needs none)")
            }
            false => "claims to be larger than its compressed bytes can be".to_string(),
        };
        let note =
            format!("{name}: its debug information {why}; it is not used, so names come from the symbol table and there are no lines");
        if budget.notes.len() < limits::MAX_UNPACKED_NOTES && !budget.notes.contains(&note) {
            budget.notes.push(note);
        }
        false
    })
}

fn share(free: u64) -> u64 {
    (free / limits::MAX_UNPACKED_SHARE).min(limits::MAX_UNPACKED_BYTES)
}

/// Bytes of memory that this process can still get, as far as the system tells.
fn free() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let system = meminfo(&read("/proc/meminfo")).unwrap_or(limits::MAX_UNPACKED_BYTES);
    let used = address_space_used(&read("/proc/self/status"));
    let limit = address_space(&read("/proc/self/limits")).map(|limit| limit.saturating_sub(used.unwrap_or(0)));
    let cgroup = read("/proc/self/cgroup").lines().find_map(|line| {
        let directory = format!("/sys/fs/cgroup{}", line.strip_prefix("0::")?);
        let number = |name: &str| read(&format!("{directory}/{name}")).trim().parse::<u64>().ok();
        Some(number("memory.max")?.saturating_sub(number("memory.current")?))
    });
    [Some(system), limit, cgroup].into_iter().flatten().min().unwrap_or(system)
}

fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn address_space_used(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn address_space(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns the bytes of a section, decompressed if they are compressed. Returns `None` if the bytes are not in the
/// file, if the compression header claims more than its input can hold, or if the section is larger than what is left
/// of the budget.
pub fn section_bytes<'a>(section: &impl ObjectSection<'a>) -> Option<Cow<'a, [u8]>> {
    let range = section.compressed_file_range().ok()?;
    if range.format != object::CompressionFormat::None
        && (range.uncompressed_size > believed(range.compressed_size) || !take(range.uncompressed_size))
    {
        return None;
    }
    section.uncompressed_data().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_section_may_claim() {
        let small = limits::MAX_SMALL_SECTION_BYTES;
        for (compressed, claimed) in [
            (100, 100 * limits::MAX_COMPRESSION_RATIO),
            // A megabyte of deflated zeros would become a gigabyte, which is more than it may claim.
            (1 << 20, limits::MAX_LARGE_COMPRESSION_RATIO << 20),
            (small / limits::MAX_COMPRESSION_RATIO + 1, small),
            (u64::MAX / 2, limits::MAX_DEBUG_SECTION_BYTES),
        ] {
            assert_eq!(believed(compressed), claimed, "{compressed}");
            assert!(affordable("x", &[(compressed, claimed.min(1 << 20))]));
            begin();
            assert!(!affordable("x", &[(10, 10), (compressed, claimed + 1)]));
            assert!(notes()[0].contains("larger than its compressed bytes"), "{:?}", notes());
        }
    }

    #[test]
    fn one_budget_for_all() {
        begin();
        BUDGET.with_borrow_mut(|budget| budget.left = Some(100));
        assert!(affordable("a", &[(10, 40), (10, 60)]));
        assert!(take(60) && !take(41));
        assert!(!affordable("b", &[(10, 20), (10, 21)]));
        assert!(!affordable("b", &[(10, 20), (10, 21)]));
        assert_eq!(notes().len(), 1);
        assert!(notes()[0].contains("41 bytes of memory, of which 40 are left"), "{:?}", notes());
        for i in 0..2 * limits::MAX_UNPACKED_NOTES {
            assert!(!affordable(&i.to_string(), &[(10, 41)]));
        }
        assert_eq!(notes().len(), limits::MAX_UNPACKED_NOTES);
        assert!(take(40) && !take(1));
        begin();
        assert!(notes().is_empty() && take(1));
    }

    #[test]
    fn a_share_of_what_is_free() {
        assert_eq!(meminfo("MemTotal:  9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(
            address_space("Max address space         61440000             61440000             bytes \n"),
            Some(61440000)
        );
        assert_eq!(address_space("Max address space         unlimited            unlimited            bytes \n"), None);
        assert_eq!(address_space_used("VmPeak:\t   40 kB\nVmSize:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(share(40 << 20), (40 << 20) / limits::MAX_UNPACKED_SHARE);
        assert_eq!(share(u64::MAX), limits::MAX_UNPACKED_BYTES);
        assert!(free() > 0);
    }
}
