//! Reads std's `HashMap`s.
//!
//! The table of such a map (hashbrown) has one control byte per bucket, with the top bit clear where the bucket is
//! full. Bucket i lies `i + 1` sizes *below* the control bytes.

use super::memory::{Budgeted, StructureError, View};
use crate::limits::MAX_HASH_BUCKETS;

/// Offsets of a table's fields in bytes.
#[derive(Clone, Copy)]
pub(crate) struct TableLayout {
    /// Offset of the pointer to the control bytes.
    pub ctrl: u64,
    /// Offset of the number of buckets minus one.
    pub mask: u64,
    /// Offset of the number of full buckets.
    pub items: u64,
}

/// Calls `visit` with each full bucket of the table at offset `at` of `owner`, until it returns false. A bucket has
/// `size` bytes.
///
/// # Errors
/// If the table contradicts itself, has more than [`MAX_HASH_BUCKETS`] buckets or cannot be read, or if `visit` fails.
pub(crate) fn full_buckets(
    heap: &Budgeted<'_>,
    what: &'static str,
    owner: View<'_>,
    (at, layout): (u64, TableLayout),
    size: u64,
    visit: &mut dyn FnMut(View<'_>) -> Result<bool, StructureError>,
) -> Result<(), StructureError> {
    let word = |field: u64| owner.u64(at + field);
    let (ctrl, mask, items) = (word(layout.ctrl)?, word(layout.mask)?, word(layout.items)?);
    if items == 0 {
        return Ok(());
    }
    let buckets = mask.checked_add(1).filter(|b| b.is_power_of_two() && *b <= MAX_HASH_BUCKETS);
    let Some(buckets) = buckets.filter(|b| items <= *b) else { return Err(owner.bad(what, mask)) };
    let control = heap.read(what, ctrl, buckets)?;
    let full = control.iter().filter(|&&c| c & 0x80 == 0).count() as u64;
    if full != items {
        return Err(owner.bad(what, items));
    }
    for (i, _) in control.iter().enumerate().filter(|(_, c)| **c & 0x80 == 0) {
        let below = (i as u64 + 1).checked_mul(size).and_then(|b| ctrl.checked_sub(b));
        let address = below.ok_or_else(|| owner.bad(what, ctrl))?;
        let bytes = heap.read(what, address, size)?;
        if !visit(View::new(what, address, &bytes))? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_MODULE_INFO_BYTES;
    use crate::unwind::testing::Pieces;

    const CTRL: u64 = 0x1_0000;
    const EMPTY: u8 = 0xff;
    const DELETED: u8 = 0x80;

    /// The values of the full buckets of a table with these control bytes, in which bucket i has the value i.
    fn read(words: [u64; 3], control: &[u8], most: usize) -> Result<Vec<u64>, StructureError> {
        let buckets: Vec<u8> = (0..control.len() as u64).rev().flat_map(u64::to_le_bytes).collect();
        let memory = Pieces::default().bytes(CTRL - buckets.len() as u64, &buckets).bytes(CTRL, control);
        let heap = Budgeted::new(&memory, MAX_MODULE_INFO_BYTES);
        let bytes: Vec<u8> = [0, words[0], words[1], words[2]].into_iter().flat_map(u64::to_le_bytes).collect();
        let layout = TableLayout { ctrl: 0, mask: 8, items: 16 };
        let mut out = Vec::new();
        full_buckets(&heap, "table", View::new("map", 0x1000, &bytes), (8, layout), 8, &mut |bucket| {
            out.push(bucket.u64(0)?);
            Ok(out.len() < most)
        })?;
        Ok(out)
    }

    fn implausible(found: Result<Vec<u64>, StructureError>) -> bool {
        matches!(found, Err(StructureError::Implausible { .. }))
    }

    #[test]
    fn the_full_buckets_are_visited() {
        let control = [0x11, EMPTY, 0x7f, DELETED];
        assert_eq!(read([CTRL, 3, 2], &control, 9), Ok(vec![0, 2]));
        assert_eq!(read([CTRL, 3, 2], &control, 1), Ok(vec![0]));
        // Nothing is read of an empty table: its control bytes are a constant of the host's code.
        assert_eq!(read([8, u64::MAX, 0], &control, 9), Ok(vec![]));
    }

    /// std keeps an eighth of the buckets free, so that a search ends. A table in which all are full has an end too.
    #[test]
    fn a_table_in_which_all_buckets_are_full_has_an_end() {
        assert_eq!(read([CTRL, 7, 8], &[0; 8], 99), Ok((0..8).collect()));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let control = [0; 4];
        // The number of items is not that of the full control bytes, or is larger than the number of buckets.
        assert!(implausible(read([CTRL, 3, 3], &control, 9)));
        assert!(implausible(read([CTRL, 3, 5], &control, 9)));
        assert!(implausible(read([CTRL, 3, u64::MAX], &control, 9)));
        // The number of buckets is no power of two, or does not fit into a word.
        assert!(implausible(read([CTRL, 2, 3], &control, 9)));
        assert!(implausible(read([CTRL, u64::MAX, 1], &control, 9)));
        // The buckets would lie below address 0.
        let memory = Pieces::default().bytes(4, &control);
        let heap = Budgeted::new(&memory, 99);
        let bytes: Vec<u8> = [4u64, 3, 4].into_iter().flat_map(u64::to_le_bytes).collect();
        let layout = TableLayout { ctrl: 0, mask: 8, items: 16 };
        let found = full_buckets(&heap, "table", View::new("map", 0x1000, &bytes), (0, layout), 8, &mut |_| Ok(true));
        assert!(implausible(found.map(|()| Vec::new())));
    }

    /// What is above the limit is refused before memory is read.
    #[test]
    fn so_many_buckets_are_believed() {
        let of = |buckets: u64| read([0x9000_0000, buckets - 1, 1], &[], 9);
        assert!(matches!(of(MAX_HASH_BUCKETS), Err(StructureError::Memory { .. })));
        assert!(implausible(of(MAX_HASH_BUCKETS * 2)));
    }
}
