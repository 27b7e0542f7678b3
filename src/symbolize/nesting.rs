//! Measures how deep functions are inlined into each other.
//!
//! `addr2line` calls itself once per level while it reads a function, so a unit with fifty thousand levels overflows
//! the stack. Therefore units are checked before they are handed to it, and units that are too deep are asked for
//! lines only.

use super::entries::Skim;
use crate::limits::MAX_INLINE_DEPTH;
use gimli::{Abbreviation, Dwarf, Reader, UnitHeader};

/// Whether a unit has functions that are inlined into each other more than [`MAX_INLINE_DEPTH`] levels deep. A unit
/// that cannot be read is not too deep, because `addr2line` does not get further in it either.
pub(crate) fn is_too_deep<R: Reader<Offset = usize>>(dwarf: &Dwarf<R>, header: &UnitHeader<R>) -> bool {
    // An entry and the end of its children take at least a byte each.
    header.length_including_self() > 2 * MAX_INLINE_DEPTH && deeper(dwarf, header).unwrap_or_else(|found| found)
}

/// The inlined functions around the current entry, while the entries of a unit are read in order.
#[derive(Default)]
pub(super) struct Around {
    /// Depths of these functions in the tree of entries.
    depths: Vec<isize>,
}

impl Around {
    /// Takes the next entry, which is at `depth` in the tree. Returns whether the entry is inlined too deep.
    pub fn enter(&mut self, depth: isize, kind: &Abbreviation) -> bool {
        while self.depths.last().is_some_and(|&outer| outer >= depth) {
            self.depths.pop();
        }
        if kind.tag() != gimli::DW_TAG_inlined_subroutine {
            return false;
        }
        if kind.has_children() && self.depths.len() < MAX_INLINE_DEPTH {
            self.depths.push(depth);
            return false;
        }
        self.depths.len() >= MAX_INLINE_DEPTH
    }
}

/// Whether the unit is too deep. `Err` holds the answer for the part before a read error.
fn deeper<R: Reader<Offset = usize>>(dwarf: &Dwarf<R>, header: &UnitHeader<R>) -> Result<bool, bool> {
    let table = dwarf.abbreviations(header).map_err(|_| false)?;
    let mut entries = Skim::new(header, &table, |_| false).map_err(|_| false)?;
    let mut around = Around::default();
    while let Some(entry) = entries.next().map_err(|_| false)? {
        if around.enter(entry.depth, entry.kind) {
            return Ok(true);
        }
    }
    Ok(false)
}
