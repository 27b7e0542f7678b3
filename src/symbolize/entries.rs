//! Goes over the entries of a unit of debug information without reading their attributes.

use gimli::{Abbreviation, Abbreviations, AttributeSpecification, Reader, UnitHeader, UnitOffset};

/// The entries of a unit in order, without their attributes. Most kinds of entries always have the same length, which
/// is worked out once. gimli adds up the lengths of the attributes at each entry, which takes most of the time for a
/// large unit.
pub(super) struct Skim<'t, R: Reader<Offset = usize>> {
    header: &'t UnitHeader<R>,
    table: &'t Abbreviations,
    rest: R,
    /// Offset of the unit's end from the unit's start, in bytes.
    end: usize,
    depth: isize,
    is_wanted: fn(&AttributeSpecification) -> bool,
    /// The kinds of entries that were met, by their abbreviation code.
    kinds: Vec<Option<Kind<'t>>>,
}

#[derive(Clone, Copy)]
struct Kind<'t> {
    kind: &'t Abbreviation,
    /// Length of the attributes in bytes, if it is the same for all entries of this kind.
    length: Option<usize>,
    is_wanted: bool,
}

/// An entry that the walk has gone over.
pub(super) struct Entry<'t> {
    /// Offset of the entry in the unit, in bytes.
    pub offset: UnitOffset,
    /// Depth of the entry in the tree of entries.
    pub depth: isize,
    pub kind: &'t Abbreviation,
    /// Whether the entry has an attribute that was asked for.
    pub is_wanted: bool,
}

impl<'t, R: Reader<Offset = usize>> Skim<'t, R> {
    /// The kinds with codes up to this one are remembered. Compilers number the codes from 1.
    const REMEMBERED: u64 = 4096;

    /// `is_wanted` says which attributes are looked for.
    pub fn new(
        header: &'t UnitHeader<R>,
        table: &'t Abbreviations,
        is_wanted: fn(&AttributeSpecification) -> bool,
    ) -> gimli::Result<Self> {
        let start = header.header_size();
        let rest = header.range_from(UnitOffset(start)..)?;
        let end = start + rest.len();
        Ok(Skim { header, table, rest, end, depth: 0, is_wanted, kinds: Vec::new() })
    }

    fn kind(&mut self, code: u64) -> gimli::Result<Kind<'t>> {
        let known = usize::try_from(code).ok().and_then(|at| self.kinds.get(at).copied().flatten());
        if let Some(known) = known {
            return Ok(known);
        }
        let kind = self.table.get(code).ok_or(gimli::Error::InvalidAbbreviationCode(code))?;
        let sizes = kind.attributes().iter().map(|spec| spec.size(self.header));
        let length = sizes.sum::<Option<usize>>();
        let new = Kind { kind, length, is_wanted: kind.attributes().iter().any(self.is_wanted) };
        if code <= Self::REMEMBERED {
            let at = code as usize;
            self.kinds.resize(self.kinds.len().max(at + 1), None);
            self.kinds[at] = Some(new);
        }
        Ok(new)
    }

    /// The next entry. The marker at the end of a list of children does not count as an entry.
    pub fn next(&mut self) -> gimli::Result<Option<Entry<'t>>> {
        while !self.rest.is_empty() {
            let offset = UnitOffset(self.end - self.rest.len());
            let code = self.rest.read_uleb128()?;
            if code == 0 {
                self.depth -= 1;
                continue;
            }
            let known = self.kind(code)?;
            match known.length {
                Some(length) => self.rest.skip(length)?,
                None => {
                    let mut entries = self.header.entries_raw(self.table, Some(offset))?;
                    entries.read_abbreviation()?;
                    entries.skip_attributes(known.kind.attributes())?;
                    let behind = entries.next_offset().0;
                    self.rest.skip((behind + self.rest.len()).saturating_sub(self.end))?;
                }
            }
            let entry = Entry { offset, depth: self.depth, kind: known.kind, is_wanted: known.is_wanted };
            self.depth += isize::from(known.kind.has_children());
            return Ok(Some(entry));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::own_objects;
    use gimli::{EndianSlice, LittleEndian};
    use object::{Object, ObjectSection};

    /// Checks that all entries of this test's own executable and of its libraries are found as gimli reads them one
    /// by one.
    #[test]
    fn entries_are_passed_as_gimli_reads_them() {
        let objects = own_objects();
        let mut passed = 0;
        for object in objects.iter() {
            let Some(file) = object.data.as_ref().and_then(|data| object::File::parse(&**data).ok()) else { continue };
            let section = |id: gimli::SectionId| {
                Ok::<_, ()>(
                    file.section_by_name(id.name()).map_or(Default::default(), |s| s.uncompressed_data().unwrap()),
                )
            };
            let sections = gimli::DwarfSections::load(section).unwrap();
            let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
            let mut units = dwarf.units();
            while let Some(header) = units.next().unwrap() {
                let table = dwarf.abbreviations(&header).unwrap();
                let mut skim = Skim::new(&header, &table, |spec| spec.name() == gimli::DW_AT_type).unwrap();
                let mut entries = header.entries_raw(&table, None).unwrap();
                while !entries.is_empty() {
                    let (offset, depth) = (entries.next_offset(), entries.next_depth());
                    let Some(kind) = entries.read_abbreviation().unwrap() else { continue };
                    entries.skip_attributes(kind.attributes()).unwrap();
                    let found = skim.next().unwrap().unwrap();
                    assert_eq!((found.offset, found.depth, found.kind.code()), (offset, depth, kind.code()));
                    let has_type = kind.attributes().iter().any(|spec| spec.name() == gimli::DW_AT_type);
                    assert_eq!(found.is_wanted, has_type);
                    passed += 1;
                }
                assert!(skim.next().unwrap().is_none());
            }
            if passed > 3_000_000 {
                break;
            }
        }
        assert!(passed > 10_000, "{passed}");
    }
}
