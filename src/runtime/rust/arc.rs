//! Recognises the allocations of `Arc`s: two reference counts, then the payload (`alloc::sync::ArcInner`, which is
//! `repr(C)`).

use crate::process::Memory;

/// Bytes of the two reference counts.
pub(crate) const COUNTS: u64 = 16;

/// The numbers of strong and weak references that the allocation at `arc` begins with. `None` if they cannot be read,
/// or if one of them is zero or more than `most`: then no live `Arc` is there.
pub(crate) fn counts(memory: &dyn Memory, arc: u64, most: u64) -> Option<(u64, u64)> {
    let count = |at: u64| memory.read_u64(at).ok().filter(|n| (1..=most).contains(n));
    Some((count(arc)?, count(arc.checked_add(8)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::Pieces;

    #[test]
    fn counts_that_no_live_arc_has_are_refused() {
        let of = |words: &[u64]| counts(&Pieces::default().words(0x1000, words), 0x1000, 100);
        assert_eq!(of(&[1, 100]), Some((1, 100)));
        assert_eq!([of(&[0, 1]), of(&[1, 0]), of(&[101, 1]), of(&[1, 101]), of(&[1])], [None; 5]);
        assert_eq!(counts(&Pieces::default(), u64::MAX - 7, 100), None);
    }
}
