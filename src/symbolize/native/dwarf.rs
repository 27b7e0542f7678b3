//! Reads lines and inlined functions from DWARF.

use super::excerpt::{Extent, NoExcerpt, excerpt};
use super::symbols::elf_files;
use super::{NativeSymbol, demangle};
use crate::limits;
use crate::process::objects::{Excerpts, LoadedObject};
use crate::process::unpack;
use crate::process::unpack::section_bytes;
use crate::symbolize::nesting::is_too_deep;
use gimli::{EndianSlice, LittleEndian, Reader, Section as _};
use object::{Object, ObjectSection};
use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// Contents of a section of the file.
pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Context<'a> = addr2line::Context<Slice<'a>>;

/// Debug information of one file.
///
/// `addr2line::Context` keeps the abbreviations of every unit for good, which takes most of the memory and half of
/// the time that a distribution's libc costs. Here only units are parsed that have one of the addresses in question:
/// each unit as a context of its own, or, where units refer to others, all units that are needed together as one
/// context ([`super::excerpt`]).
pub(super) struct Dwarf<'a> {
    sections: gimli::DwarfSections<Slice<'a>>,
    units: Units,
    /// The parsed units, by the unit's offset in `.debug_info`.
    contexts: RefCell<HashMap<usize, Rc<Option<Context<'a>>>>>,
    /// Offsets of the units whose functions cannot be read.
    too_deep: RefCell<BTreeSet<usize>>,
    /// Whether an address was in such a unit.
    met_too_deep: Cell<bool>,
    excerpts: &'a Excerpts,
    /// A context of all units, for the case that an excerpt cannot be made.
    whole: OnceCell<Option<Context<'a>>>,
}

/// The units of a file, and which addresses each of them covers.
#[derive(Default)]
struct Units {
    /// All units, in ascending order.
    all: Vec<Extent>,
    /// The address ranges of all units, in ascending order of their starts.
    ranges: Vec<UnitRange>,
    /// For each range, the highest end of all ranges up to and including it.
    reach: Vec<u64>,
}

struct UnitRange {
    start: u64,
    end: u64,
    unit: Extent,
}

impl Units {
    /// Takes the ranges from `.debug_aranges`. The ranges of units that are not there come from the units' own
    /// entries.
    fn of(mut dwarf: gimli::Dwarf<Slice<'_>>) -> Units {
        // If many units share one large table of abbreviations, it would be parsed once for each of them.
        dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::Duplicates);
        let mut listed: HashMap<usize, Vec<(u64, u64)>> = HashMap::new();
        let mut headers = dwarf.debug_aranges.headers();
        while let Ok(Some(header)) = headers.next() {
            let ranges = listed.entry(header.debug_info_offset().0).or_default();
            let mut entries = header.entries();
            while let Ok(Some(entry)) = entries.next() {
                ranges.push((entry.address(), entry.address().saturating_add(entry.length())));
            }
        }
        let (mut all, mut ranges) = (Vec::new(), Vec::new());
        let mut units = dwarf.units();
        while let Ok(Some(header)) = units.next() {
            let Some(offset) = header.debug_info_offset().map(|o| o.0) else { continue };
            let unit = (offset, header.length_including_self());
            all.push(unit);
            let mut add = |start: u64, end: u64| {
                // Linkers leave zero as the start of functions that they threw away.
                if start < end && start != 0 && ranges.len() < limits::MAX_SYMBOLS {
                    ranges.push(UnitRange { start, end, unit });
                }
            };
            match listed.get(&offset).filter(|ranges| !ranges.is_empty()) {
                Some(listed) => listed.iter().for_each(|&(start, end)| add(start, end)),
                None => {
                    let Ok(unit) = dwarf.unit(header) else { continue };
                    // The ranges that were read before an error count.
                    let _ = unit_ranges(&dwarf, &unit, &mut add);
                }
            }
        }
        ranges.sort_by_key(|r| r.start);
        let highest = |reach: &mut u64, r: &UnitRange| {
            *reach = r.end.max(*reach);
            Some(*reach)
        };
        Units { all, reach: ranges.iter().scan(0, highest).collect(), ranges }
    }

    /// The units around `svma`. The unit whose range begins last comes first.
    fn around(&self, svma: u64) -> impl Iterator<Item = Extent> {
        let before = self.ranges.partition_point(|r| r.start <= svma);
        let reaches = self.ranges[..before].iter().zip(&self.reach).rev().take_while(move |&(_, &reach)| svma < reach);
        reaches.filter(move |(r, _)| svma < r.end).map(|(r, _)| r.unit).take(limits::MAX_NESTED_SYMBOLS)
    }
}

/// Calls `add` with the ranges that a unit's own entry states. `gimli::Dwarf::unit_ranges` is not used, because for
/// functions that linkers threw away it adds a size to the highest address, which linkers leave as their start.
fn unit_ranges<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    unit: &gimli::Unit<Slice<'a>>,
    add: &mut impl FnMut(u64, u64),
) -> gimli::Result<()> {
    let mut entries = unit.entries_raw(None)?;
    let (mut low, mut high, mut size) = (None, None, None);
    for spec in entries.read_abbreviation()?.map_or(&[][..], |kind| kind.attributes()) {
        let attribute = entries.read_attribute(*spec)?;
        match (attribute.name(), attribute.value()) {
            (gimli::DW_AT_low_pc, value) => low = dwarf.attr_address(unit, value)?,
            (gimli::DW_AT_high_pc, gimli::AttributeValue::Udata(bytes)) => size = Some(bytes),
            (gimli::DW_AT_high_pc, value) => high = dwarf.attr_address(unit, value)?,
            (gimli::DW_AT_ranges, value) => {
                let Some(mut list) = dwarf.attr_ranges(unit, value)? else { continue };
                while let Some(range) = list.next()? {
                    add(range.begin, range.end);
                }
                return Ok(());
            }
            _ => {}
        }
    }
    let end = |low: u64| size.and_then(|size| low.checked_add(size)).or(high);
    if let Some((low, high)) = low.and_then(|low| Some((low, end(low)?))) {
        add(low, high);
    }
    Ok(())
}

/// Whether entries of a unit with the abbreviations at `offset` may refer to places outside of the unit.
fn refers_outside(abbreviations: &Slice<'_>, offset: usize) -> bool {
    fn scan(mut input: Slice<'_>, offset: usize) -> gimli::Result<bool> {
        input.skip(offset)?;
        while input.read_uleb128()? != 0 {
            input.read_uleb128()?;
            input.read_u8()?;
            loop {
                let (name, form) = (input.read_uleb128()?, input.read_uleb128()?);
                match (name, gimli::DwForm(u16::try_from(form).unwrap_or(0))) {
                    (0, gimli::DwForm(0)) => break,
                    (_, gimli::DW_FORM_implicit_const) => _ = input.read_sleb128()?,
                    (
                        _,
                        gimli::DW_FORM_ref_addr
                        | gimli::DW_FORM_indirect
                        | gimli::DW_FORM_ref_sup4
                        | gimli::DW_FORM_ref_sup8
                        | gimli::DW_FORM_GNU_ref_alt,
                    ) => return Ok(true),
                    _ => {}
                }
            }
        }
        Ok(false)
    }
    scan(*abbreviations, offset).unwrap_or(true)
}

/// The sections that names, lines and inlined functions come from. The sections with places of variables and with
/// macros, which are as large, are left compressed.
const SECTIONS: [gimli::SectionId; 10] = {
    use gimli::SectionId as Id;
    [
        Id::DebugAbbrev,
        Id::DebugAddr,
        Id::DebugAranges,
        Id::DebugInfo,
        Id::DebugLine,
        Id::DebugLineStr,
        Id::DebugRanges,
        Id::DebugRngLists,
        Id::DebugStr,
        Id::DebugStrOffsets,
    ]
};

impl<'a> Dwarf<'a> {
    /// Loads the debug information of a file, or of its separate debug file.
    pub fn load(object: &'a LoadedObject) -> Option<Dwarf<'a>> {
        let file = elf_files(object).find(|file| {
            let sections = [".debug_info", ".zdebug_info"];
            sections
                .iter()
                .any(|name| file.section_by_name(name).is_some_and(|s| s.size() > 0 && s.file_range().is_some()))
        })?;
        if !file.is_little_endian() {
            return None;
        }
        let claims = |id: &gimli::SectionId| {
            let range = file.section_by_name(id.name())?.compressed_file_range().ok()?;
            (range.format != object::CompressionFormat::None)
                .then_some((range.compressed_size, range.uncompressed_size))
        };
        let packed: Vec<(u64, u64)> = SECTIONS.iter().filter_map(claims).collect();
        if !packed.is_empty() && !unpack::affordable(&object.path.display().to_string(), &packed) {
            return None;
        }
        let bytes = |id: gimli::SectionId| file.section_by_name(id.name()).and_then(|s| section_bytes(&s));
        let unpack = || {
            let owned = |id: gimli::SectionId| match bytes(id) {
                Some(Cow::Owned(bytes)) => Some((id.name(), bytes)),
                _ => None,
            };
            SECTIONS.into_iter().filter_map(owned).collect()
        };
        let is_packed = |id: gimli::SectionId| {
            let section = file.section_by_name(id.name())?;
            Some(section.compressed_file_range().ok()?.format != object::CompressionFormat::None)
        };
        let section = |id: gimli::SectionId| -> &'a [u8] {
            if !SECTIONS.contains(&id) {
                return &[];
            }
            match is_packed(id) {
                Some(true) => object.unpacked.get(id.name(), unpack).unwrap_or_default(),
                Some(false) => match bytes(id) {
                    Some(Cow::Borrowed(bytes)) => bytes,
                    _ => &[],
                },
                None => &[],
            }
        };
        let load = |id| Ok::<_, ()>(EndianSlice::new(section(id), LittleEndian));
        let sections = gimli::DwarfSections::load(load).ok()?;
        let units = Units::of(sections.borrow(|section| *section));
        let excerpts = &object.excerpts;
        Some(Dwarf {
            sections,
            units,
            contexts: RefCell::default(),
            too_deep: RefCell::default(),
            met_too_deep: Cell::new(false),
            excerpts,
            whole: OnceCell::new(),
        })
    }

    /// Parses the units around these addresses.
    pub fn prepare(&self, svmas: impl Iterator<Item = u64>) {
        let mut together = BTreeSet::new();
        for unit in svmas.flat_map(|svma| self.units.around(svma)) {
            if self.contexts.borrow().contains_key(&unit.0) || together.contains(&unit) {
                continue;
            }
            match self.unit(unit) {
                Alone::Complete(context) => {
                    self.contexts.borrow_mut().insert(unit.0, Rc::new(Some(context)));
                }
                Alone::TooDeep => self.lines_only(unit),
                Alone::NeedsOthers => {
                    together.insert(unit);
                }
                Alone::Broken => {
                    self.contexts.borrow_mut().insert(unit.0, Rc::new(None));
                }
            }
        }
        let mut together: Vec<Extent> = together.into_iter().collect();
        while !together.is_empty() {
            let context = match self.excerpt(&together) {
                Err(NoExcerpt::TooDeep(units)) => {
                    together.retain(|unit| !units.contains(unit));
                    units.into_iter().for_each(|unit| self.lines_only(unit));
                    continue;
                }
                Err(NoExcerpt::Broken) => Rc::new(None),
                Ok(context) => Rc::new(Some(context)),
            };
            self.contexts.borrow_mut().extend(together.iter().map(|unit| (unit.0, Rc::clone(&context))));
            break;
        }
    }

    /// Makes a context for a unit that is too deep, of which only lines are read.
    fn lines_only(&self, unit: Extent) {
        self.too_deep.borrow_mut().insert(unit.0);
        let context = self.alone(unit).and_then(|(dwarf, _)| Context::from_dwarf(dwarf).ok());
        self.contexts.borrow_mut().insert(unit.0, Rc::new(context));
    }

    /// The source-level frames at an address of the file, innermost first.
    pub fn frames(&self, svma: u64) -> Vec<NativeSymbol> {
        self.prepare(std::iter::once(svma));
        for (offset, _) in self.units.around(svma) {
            let Some(context) = self.contexts.borrow().get(&offset).cloned() else { continue };
            let found = match &*context {
                Some(context) if self.too_deep.borrow().contains(&offset) => {
                    self.met_too_deep.set(true);
                    line(context, svma)
                }
                Some(context) => frames(context, svma),
                None if !self.too_deep.borrow().is_empty() => Vec::new(),
                None => {
                    let whole = self.whole.get_or_init(|| {
                        let mut dwarf = self.sections.borrow(|section| *section);
                        dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::Duplicates);
                        Context::from_dwarf(dwarf).ok()
                    });
                    whole.as_ref().map_or_else(Vec::new, |context| frames(context, svma))
                }
            };
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// Whether functions were left out because they are inlined too deep into each other.
    pub fn has_left_out(&self) -> bool {
        self.met_too_deep.get()
    }

    fn alone(&self, (offset, length): Extent) -> Option<(gimli::Dwarf<Slice<'a>>, gimli::UnitHeader<Slice<'a>>)> {
        let mut dwarf = self.without_ranges();
        let mut info = *dwarf.debug_info.reader();
        info.skip(offset).and_then(|()| info.truncate(length)).ok()?;
        // Its offsets count from the start of the whole section.
        dwarf.debug_info = gimli::DebugInfo::from(info);
        let header = dwarf.units().next().ok()??;
        Some((dwarf, header))
    }

    fn unit(&self, unit: Extent) -> Alone<'a> {
        let Some((dwarf, header)) = self.alone(unit) else { return Alone::Broken };
        if refers_outside(dwarf.debug_abbrev.reader(), header.debug_abbrev_offset().0) {
            return Alone::NeedsOthers;
        }
        if is_too_deep(&dwarf, &header) {
            return Alone::TooDeep;
        }
        Context::from_dwarf(dwarf).map_or(Alone::Broken, Alone::Complete)
    }

    /// Makes one context of several units and the parts of other units that they need.
    fn excerpt(&self, units: &[Extent]) -> Result<Context<'a>, NoExcerpt> {
        let mut dwarf = self.without_ranges();
        let info = self.excerpts.keep(excerpt(&dwarf, &self.units.all, units)?).ok_or(NoExcerpt::Broken)?;
        dwarf.debug_info = gimli::DebugInfo::from(EndianSlice::new(info, LittleEndian));
        dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::Duplicates);
        Context::from_dwarf(dwarf).map_err(|_| NoExcerpt::Broken)
    }

    fn without_ranges(&self) -> gimli::Dwarf<Slice<'a>> {
        let mut dwarf = self.sections.borrow(|section| *section);
        dwarf.debug_aranges = gimli::DebugAranges::new(&[], LittleEndian);
        dwarf
    }
}

/// The result of parsing one unit by itself.
enum Alone<'a> {
    Complete(Context<'a>),
    /// The unit may be asked for lines only.
    TooDeep,
    /// The unit has names in other units. It may be too deep as well.
    NeedsOthers,
    Broken,
}

fn frames<R: Reader>(context: &addr2line::Context<R>, svma: u64) -> Vec<NativeSymbol> {
    let mut out = Vec::new();
    let Ok(mut frames) = context.find_frames(svma).skip_all_loads() else { return out };
    while let Ok(Some(frame)) = frames.next() {
        // There are at most as many frames as may be inlined, and the function around them.
        if out.len() > limits::MAX_INLINE_DEPTH {
            break;
        }
        let name = frame.function.and_then(|f| Some(demangle(&f.raw_name().ok()?)));
        let (file, line) = frame.location.map_or((None, None), |l| (l.file.map(str::to_string), l.line));
        out.push(NativeSymbol { name, file, line, inlined: true, offset: None });
    }
    if let Some(outermost) = out.last_mut() {
        outermost.inlined = false;
    }
    out
}

/// The file and the line alone. The name of the function comes from the symbol table.
fn line<R: Reader>(context: &addr2line::Context<R>, svma: u64) -> Vec<NativeSymbol> {
    let Ok(Some(found)) = context.find_location(svma) else { return Vec::new() };
    vec![NativeSymbol { file: found.file.map(str::to_string), line: found.line, ..NativeSymbol::default() }]
}

#[cfg(test)]
mod tests {
    use super::super::symbols::{Symbol, Symbols};
    use super::*;
    use crate::unwind::testing::own_objects;
    use object::read::elf::Sym;
    use proptest::prelude::any;

    /// This test's own executable (Rust, no `.debug_aranges`) and the C library's debug file or a C file with them.
    #[test]
    fn units_by_themselves_say_what_all_together_say() {
        let objects = own_objects();
        let mut compared = 0;
        for object in objects.iter() {
            let Some(dwarf) = Dwarf::load(object) else { continue };
            let whole = Context::from_dwarf(dwarf.sections.borrow(|section| *section)).unwrap();
            let symbols = Symbols::load(object);
            let step = (symbols.symbols.len() / 1500).max(1);
            let places = |s: &Symbol| {
                let size = symbols.named(s).map_or(0, |(found, _)| found.st_size(object::LittleEndian));
                [s.start, s.start + size / 2, s.start + size]
            };
            let svmas: Vec<u64> = symbols.symbols.iter().step_by(step).flat_map(places).collect();
            // Some addresses are prepared together, the others one by one.
            for (at, &svma) in svmas.iter().enumerate() {
                if at % 60 == 30 {
                    dwarf.prepare(svmas[at..].iter().take(30).copied());
                }
                assert_eq!(dwarf.frames(svma), frames(&whole, svma), "{:?} {svma:#x}", object.path);
                compared += 1;
            }
            assert!(dwarf.whole.get().is_none(), "{:?}: something was read as a whole", object.path);
            assert!(dwarf.contexts.borrow().len() > 1, "{:?}: no unit was read by itself", object.path);
        }
        assert!(compared > 1000, "{compared}");
        println!("{compared} addresses");
    }

    /// Reads debug information of this test's own executable with some bytes changed. It must not panic, whatever is
    /// found.
    #[test]
    fn damaged_units_are_put_together_or_not() {
        let objects = own_objects();
        let object = objects.iter().find(|o| Dwarf::load(o).is_some()).unwrap();
        let dwarf = Dwarf::load(object).unwrap();
        let needy = |unit: &&Extent| matches!(dwarf.unit(**unit), Alone::NeedsOthers) && unit.1 < 1 << 20;
        let wanted: Vec<Extent> = dwarf.units.all.iter().filter(needy).take(3).copied().collect();
        assert!(wanted.len() > 1);
        let plain = dwarf.sections.borrow(|section| *section);
        let info = plain.debug_info.reader().slice().to_vec();
        let range = |unit: &Extent| dwarf.units.ranges.iter().find(|r| r.unit == *unit).map(|r| r.start);
        let svmas: Vec<u64> = wanted.iter().filter_map(range).collect();
        let mut runner = proptest::test_runner::TestRunner::new(proptest::test_runner::Config::with_cases(200));
        let changes = proptest::collection::vec((0..wanted.len(), any::<usize>(), any::<u8>()), 0..6);
        let made = std::cell::Cell::new(0);
        runner
            .run(&changes, |changes| {
                let mut info = info.clone();
                for (unit, at, byte) in changes {
                    info[wanted[unit].0 + at % wanted[unit].1] = byte;
                }
                let mut damaged = dwarf.sections.borrow(|section| *section);
                damaged.debug_info = gimli::DebugInfo::from(EndianSlice::new(&info, LittleEndian));
                let Ok(part) = excerpt(&damaged, &dwarf.units.all, &wanted) else { return Ok(()) };
                damaged.debug_info = gimli::DebugInfo::from(EndianSlice::new(&part, LittleEndian));
                if let Ok(context) = Context::from_dwarf(damaged) {
                    svmas.iter().for_each(|&svma| drop(frames(&context, svma)));
                }
                made.set(made.get() + 1);
                Ok(())
            })
            .unwrap();
        assert!(made.get() > 10, "{made:?}");
    }

    #[test]
    fn a_unit_at_the_highest_address_is_nowhere() {
        // The abbreviation is DW_TAG_compile_unit without children: DW_AT_low_pc as DW_FORM_addr, DW_AT_high_pc as
        // DW_FORM_data8.
        let abbreviations = [1, 0x11, 0, 0x11, 0x01, 0x12, 0x07, 0, 0, 0];
        for (low, ranges) in [(0x1000, &[(0x1000, 0x1010)][..]), (u64::MAX, &[])] {
            // The unit has: length, version 4, abbreviations at 0, addresses of 8 bytes, code 1.
            let mut info =
                [&[24, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8, 1][..], &low.to_le_bytes(), &0x10u64.to_le_bytes()].concat();
            info[0] = info.len() as u8 - 4;
            let section = |id| match id {
                gimli::SectionId::DebugInfo => &info[..],
                gimli::SectionId::DebugAbbrev => &abbreviations,
                _ => &[],
            };
            let dwarf = gimli::Dwarf::load(|id| Ok::<_, ()>(EndianSlice::new(section(id), LittleEndian))).unwrap();
            let found: Vec<_> = Units::of(dwarf).ranges.iter().map(|r| (r.start, r.end)).collect();
            assert_eq!(found, ranges);
        }
    }

    #[test]
    fn units_that_refer_to_others_are_told() {
        // Code 1 is a unit without children: DW_AT_name as DW_FORM_strp. Code 2 has DW_AT_high_pc as
        // DW_FORM_implicit_const -1.
        let plain = [1, 0x11, 0, 3, 0x0e, 0, 0, 2, 0x2e, 0, 0x12, 0x21, 0x7f, 0, 0, 0];
        let told = |bytes: &[u8], offset| refers_outside(&EndianSlice::new(bytes, LittleEndian), offset);
        assert!(!told(&plain, 0));
        assert!(!told(&plain, 7));
        // The second entry refers to a place in the whole section: DW_AT_abstract_origin, DW_FORM_ref_addr.
        let mut outside = plain;
        outside[10..13].copy_from_slice(&[0x31, 0x10, 0]);
        outside[13] = 0;
        assert!(told(&outside, 0));
        assert!(told(&plain[..9], 0), "cut short");
        assert!(told(&plain, 99), "not in the section");
    }
}
