//! How deep functions are inlined into each other.
//!
//! `addr2line` calls itself once per level while it reads a function, so that a unit with fifty thousand levels overflows the
//! stack. Units are looked through before they are handed over; of those that are too deep only lines are asked for.

use crate::limits::MAX_INLINE_DEPTH;
use gimli::{Dwarf, Reader, UnitHeader};

/// Whether a unit has functions that are inlined into each other more than [`MAX_INLINE_DEPTH`] levels deep. One that cannot
/// be read is not: `addr2line` comes no further in it.
pub(super) fn is_too_deep<R: Reader<Offset = usize>>(dwarf: &Dwarf<R>, header: &UnitHeader<R>) -> bool {
    // An entry and the end of its children take a byte each.
    header.length_including_self() > 2 * MAX_INLINE_DEPTH && deeper(dwarf, header).unwrap_or_else(|found| found)
}

/// An error is what was found before it.
fn deeper<R: Reader<Offset = usize>>(dwarf: &Dwarf<R>, header: &UnitHeader<R>) -> Result<bool, bool> {
    let table = dwarf.abbreviations(header).map_err(|_| false)?;
    let mut entries = header.entries_raw(&table, None).map_err(|_| false)?;
    // Depths of the inlined functions around the entry.
    let mut around: Vec<isize> = Vec::new();
    while !entries.is_empty() {
        let depth = entries.next_depth();
        while around.last().is_some_and(|&outer| outer >= depth) {
            around.pop();
        }
        let Some(kind) = entries.read_abbreviation().map_err(|_| false)? else { continue };
        if kind.tag() == gimli::DW_TAG_inlined_subroutine {
            if around.len() >= MAX_INLINE_DEPTH {
                return Ok(true);
            }
            if kind.has_children() {
                around.push(depth);
            }
        }
        entries.skip_attributes(kind.attributes()).map_err(|_| false)?;
    }
    Ok(false)
}
