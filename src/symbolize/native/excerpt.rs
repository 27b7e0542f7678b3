//! Rebuilds the part of a file's debug information that some of its units need.
//!
//! `addr2line` parses the head of every unit that it is given, with the names of the unit's source files, which is
//! most of the cost of a large program. A unit that needs no other unit is given to it alone. Units of a Rust program
//! do need others: a function that was inlined from another unit has its name in that unit. For such units
//! `.debug_info` is rebuilt with every part at its original place, in memory that costs nothing where it is empty:
//!
//! ```text
//! a unit that is asked for      all of it
//! a unit with a needed name     its head, its first entry, and the entries on the way to the name
//! all other units               runs of them become one unit of types, which readers of addresses pass over
//! ```

use super::dwarf::Slice;
use crate::symbolize::entries::Skim;
use crate::symbolize::nesting::Around;
use gimli::{
    Abbreviation, AttributeSpecification, AttributeValue, DebugInfoOffset, Section as _, UnitHeader, UnitOffset,
};
use memmap2::{Mmap, MmapOptions};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The place of a unit in `.debug_info`: its offset and its length in bytes.
pub(super) type Extent = (usize, usize);

/// Size in bytes of the smallest unit of types: length, version, kind, size of addresses, abbreviations, signature,
/// type.
const TYPE_UNIT: usize = 24;
/// Upper bound in bytes for a unit that is put in place of others: lengths from 0xffff_fff0 on have another meaning.
const MOST: usize = 1 << 30;

/// A `.debug_info` with all that the units `wanted` need. `all` are all units of the file, in ascending order, each
/// beginning where the one before ends. Fails with `Broken` if the section is damaged or there is no memory, and with
/// `TooDeep` if there are units of which `addr2line` can read no functions ([`nesting`](crate::symbolize::nesting)):
/// the error lists these units, and the caller must ask again without them.
pub(super) fn excerpt(dwarf: &gimli::Dwarf<Slice<'_>>, all: &[Extent], wanted: &[Extent]) -> Result<Mmap, NoExcerpt> {
    let mut needs = Needs { dwarf, all, entries: BTreeMap::new(), tables: HashMap::new(), units: HashMap::new() };
    let mut open = Vec::new();
    let mut too_deep = Vec::new();
    let mut is_broken = false;
    for &unit @ (offset, length) in wanted {
        needs.entries.insert(offset, offset + length);
        match needs.references(offset, &mut open) {
            Ok(false) => {}
            Ok(true) => too_deep.push(unit),
            // The other units are looked at as well, because no unit that is too deep may be read.
            Err(_) => is_broken = true,
        }
    }
    match (too_deep.is_empty(), is_broken) {
        (false, _) => Err(NoExcerpt::TooDeep(too_deep)),
        (true, true) => Err(NoExcerpt::Broken),
        (true, false) => needs.complete(wanted, open).ok_or(NoExcerpt::Broken),
    }
}

/// Why there is no excerpt.
#[derive(Debug)]
pub(super) enum NoExcerpt {
    TooDeep(Vec<Extent>),
    Broken,
}

struct Needs<'a, 'd> {
    dwarf: &'a gimli::Dwarf<Slice<'d>>,
    all: &'a [Extent],
    /// Starts and ends of the parts of `.debug_info` that are copied, as offsets.
    entries: BTreeMap<usize, usize>,
    /// Tables of abbreviations, by their offset in `.debug_abbrev`.
    tables: HashMap<usize, Arc<gimli::Abbreviations>>,
    units: HashMap<usize, UnitHeader<Slice<'d>>>,
}

/// Whether an attribute leads to the entry that has the name of a function.
fn leads_to_name(spec: &AttributeSpecification) -> bool {
    matches!(spec.name(), gimli::DW_AT_abstract_origin | gimli::DW_AT_specification)
}

impl<'d> Needs<'_, 'd> {
    /// Takes the entries at the offsets in `open`, then those that they lead to, and builds the result.
    fn complete(&mut self, wanted: &[Extent], mut open: Vec<usize>) -> Option<Mmap> {
        let whole: BTreeSet<usize> = wanted.iter().map(|w| w.0).collect();
        while let Some(offset) = open.pop() {
            let (unit, length) = self.unit_around(offset)?;
            if whole.contains(&unit) || self.entries.contains_key(&offset) || offset >= unit + length {
                continue;
            }
            self.entry(unit, offset, &mut open).ok()?;
        }
        self.build()
    }

    fn unit_around(&self, offset: usize) -> Option<Extent> {
        self.all.get(self.all.partition_point(|u| u.0 <= offset).checked_sub(1)?).copied()
    }

    fn unit(&mut self, offset: usize) -> gimli::Result<(UnitHeader<Slice<'d>>, Arc<gimli::Abbreviations>)> {
        let header = match self.units.get(&offset) {
            Some(header) => *header,
            None => self.dwarf.debug_info.header_from_offset(DebugInfoOffset(offset))?,
        };
        self.units.insert(offset, header);
        let at = header.debug_abbrev_offset();
        let table = match self.tables.get(&at.0) {
            Some(table) => table.clone(),
            None => self.dwarf.abbreviations(&header)?,
        };
        self.tables.insert(at.0, table.clone());
        Ok((header, table))
    }

    /// Adds to `open` the entries of other units that the entries of a whole unit lead to. Returns whether functions
    /// of the unit are inlined too deep into each other. This is checked on the way, so that no unit is read twice
    /// for it.
    fn references(&mut self, unit: usize, open: &mut Vec<usize>) -> gimli::Result<bool> {
        let (header, table) = self.unit(unit)?;
        let mut entries = Skim::new(&header, &table, |spec| {
            leads_to_name(spec) && matches!(spec.form(), gimli::DW_FORM_ref_addr | gimli::DW_FORM_indirect)
        })?;
        let mut around = Around::default();
        while let Some(entry) = entries.next()? {
            if around.enter(entry.depth, entry.kind) {
                return Ok(true);
            }
            if !entry.is_wanted {
                continue;
            }
            let mut attributes = header.entries_raw(&table, Some(entry.offset))?;
            attributes.read_abbreviation()?;
            for spec in entry.kind.attributes() {
                if let AttributeValue::DebugInfoRef(there) = attributes.read_attribute(*spec)?.value()
                    && leads_to_name(spec)
                {
                    open.push(there.0);
                }
            }
        }
        Ok(false)
    }

    /// Takes the entry at `offset` in `unit`, and the head of the unit.
    fn entry(&mut self, unit: usize, offset: usize, open: &mut Vec<usize>) -> gimli::Result<()> {
        let (header, table) = self.unit(unit)?;
        for start in [None, Some(UnitOffset(offset - unit))] {
            let mut entries = header.entries_raw(&table, start)?;
            let Some(kind): Option<&Abbreviation> = entries.read_abbreviation()? else { continue };
            for spec in kind.attributes() {
                let value = entries.read_attribute(*spec)?.value();
                match value {
                    _ if start.is_none() || !leads_to_name(spec) => {}
                    AttributeValue::UnitRef(there) => open.push(unit.saturating_add(there.0)),
                    AttributeValue::DebugInfoRef(there) => open.push(there.0),
                    _ => {}
                }
            }
            let end = unit + entries.next_offset().0;
            self.entries.insert(start.map_or(unit, |_| offset), end);
        }
        Ok(())
    }

    fn build(&self) -> Option<Mmap> {
        let info = self.dwarf.debug_info.reader().slice();
        let end = self.entries.keys().filter_map(|&offset| self.unit_around(offset)).map(|(at, len)| at + len).max()?;
        let mut out = MmapOptions::new().len(end).map_anon().ok()?;
        for (&start, &end) in &self.entries {
            out.get_mut(start..end)?.copy_from_slice(info.get(start..end)?);
        }
        let needed: BTreeSet<usize> = self.entries.keys().filter_map(|&o| Some(self.unit_around(o)?.0)).collect();
        let mut passed = None;
        for &(at, length) in self.all.iter().take_while(|u| u.0 < end) {
            let is_needed = needed.contains(&at);
            match passed {
                Some(first) if is_needed => {
                    pass_over(&mut out, info, first, at)?;
                    passed = None;
                }
                None if !is_needed => passed = Some(at),
                _ => {}
            }
            // Each unit must lie where `all` says.
            if at.checked_add(length)? > info.len() {
                return None;
            }
        }
        out.make_read_only().ok()
    }
}

/// Puts units of types in place of the units from `start` to `end`.
fn pass_over(out: &mut [u8], info: &[u8], mut start: usize, end: usize) -> Option<()> {
    while start < end {
        let length = match end - start {
            // The part is too short to be replaced, so it is copied as it is.
            short if short < TYPE_UNIT => {
                out.get_mut(start..end)?.copy_from_slice(info.get(start..end)?);
                return Some(());
            }
            long if long > MOST => MOST - TYPE_UNIT,
            length => length,
        };
        let head = out.get_mut(start..start + 8)?;
        head[..4].copy_from_slice(&u32::try_from(length - 4).ok()?.to_le_bytes());
        head[4..6].copy_from_slice(&5u16.to_le_bytes());
        head[6] = gimli::DW_UT_type.0;
        head[7] = 8;
        start += length;
    }
    Some(())
}
