//! Units and their entries: where each function is, what an entry refers to, and which lines the code comes from.
//!
//! Nothing here recurses over the entries' tree, and every walk spends from a budget: an image in a broken core may
//! nest entries as deep as it has bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use gimli::{AttributeValue, ColumnType, DebuggingInformationEntry, Reader, UnitHeader, UnitOffset};

use super::sections::Slice;
use crate::limits::{
    MAX_CACHED_UNITS, MAX_DEBUG_INDEX_SECONDS, MAX_DEBUG_INDEX_WORK, MAX_FUNCTIONS, MAX_LINE_ROWS, MAX_NAME_BYTES,
    MAX_NESTED_SYMBOLS, MAX_REFERENCE_DEPTH, MAX_SCOPE_RANGES, MAX_UNITS,
};

/// Number of sequences of a line table that are looked at. They may overlap, so one is not enough, but a few are.
const NEAR_SEQUENCES: usize = 64;

/// An entry with its attributes.
pub(super) type Die = DebuggingInformationEntry<Slice>;
/// The value of an attribute.
pub(super) type Attribute = AttributeValue<Slice>;

/// A unit that was parsed.
pub(super) struct Unit {
    pub(super) unit: gimli::Unit<Slice>,
    /// Whether Wasmtime's compiler wrote the unit for code that had no debug information. Then its variables are Wasm
    /// locals, and its lines are offsets in the Wasm file.
    pub(super) generated: bool,
    lines: OnceLock<Lines>,
}

/// An entry and the unit that it is in.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) unit: Arc<Unit>,
    pub(super) die: Die,
}

/// How a walk over entries goes on.
pub(super) enum Visit {
    /// The walk goes on to the entry's children.
    Enter,
    /// The walk goes on to what follows behind the entry's children.
    Skip,
    /// The walk ends.
    Stop,
}

/// A place in a source file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FileLine {
    pub(super) file: Option<String>,
    pub(super) line: Option<u32>,
    pub(super) column: Option<u32>,
}

pub(super) struct FunctionRange {
    begin: u64,
    end: u64,
    unit: usize,
    offset: UnitOffset,
}

#[derive(Default)]
struct Lines {
    /// Sequences in ascending order of their first address: first address, the address behind the last, and the rows.
    sequences: Vec<(u64, u64, std::ops::Range<usize>)>,
    rows: Vec<Row>,
}

#[derive(Clone, Copy)]
struct Row {
    address: u64,
    file: u32,
    line: u32,
    column: u32,
}

/// All units of an image.
pub(super) struct Units {
    pub(super) dwarf: gimli::Dwarf<Slice>,
    headers: Vec<UnitHeader<Slice>>,
    pub(super) parsed: Mutex<HashMap<usize, Arc<Unit>>>,
    functions: OnceLock<Vec<FunctionRange>>,
}

impl Units {
    pub(super) fn new(dwarf: gimli::Dwarf<Slice>) -> Units {
        let mut headers = Vec::new();
        let mut iter = dwarf.units();
        while let Ok(Some(header)) = iter.next() {
            if headers.len() >= MAX_UNITS {
                break;
            }
            headers.push(header);
        }
        Units { dwarf, headers, parsed: Mutex::default(), functions: OnceLock::new() }
    }

    pub(super) fn count(&self) -> usize {
        self.headers.len()
    }

    pub(super) fn unit(&self, index: usize) -> Option<Arc<Unit>> {
        // A poisoned lock only means that a reader panicked between whole insertions.
        let mut parsed = self.parsed.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(unit) = parsed.get(&index) {
            return Some(unit.clone());
        }
        let unit = self.dwarf.unit(self.headers.get(index)?.clone()).ok()?;
        let root = unit.entry(unit.header.root_offset()).ok()?;
        let producer = root.attr_value(gimli::DW_AT_producer).and_then(|v| text(&self.dwarf, &unit, v));
        let generated = producer.as_deref() == Some("wasmtime");
        let unit = Arc::new(Unit { unit, generated, lines: OnceLock::new() });
        if parsed.len() >= MAX_CACHED_UNITS {
            parsed.clear();
        }
        parsed.insert(index, unit.clone());
        Some(unit)
    }

    /// The subprogram that covers an address. If several do, it is the one with the smallest range.
    pub(super) fn function_at(&self, address: u64) -> Option<Entry> {
        let functions = self.functions.get_or_init(|| self.index(Duration::from_secs(MAX_DEBUG_INDEX_SECONDS)));
        let behind = functions.partition_point(|f| f.begin <= address);
        // Ranges of different functions overlap only by accident, so that looking at a few is enough.
        let near = functions[..behind].iter().rev().take(MAX_NESTED_SYMBOLS).filter(|f| address < f.end);
        let found = near.min_by_key(|f| f.end - f.begin)?;
        let unit = self.unit(found.unit)?;
        let die = unit.unit.entry(found.offset).ok()?;
        Some(Entry { unit, die })
    }

    /// The functions that are found within the time `most`, in ascending order of address.
    pub(super) fn index(&self, most: Duration) -> Vec<FunctionRange> {
        let mut found = Vec::new();
        let mut work = MAX_DEBUG_INDEX_WORK;
        // Units may share one large table of abbreviations or files, which is read anew for each of them.
        let deadline = Instant::now() + most;
        for (index, header) in self.headers.iter().enumerate() {
            if work == 0 || Instant::now() >= deadline {
                break;
            }
            let Ok(unit) = self.dwarf.unit(header.clone()) else { continue };
            // If an entry cannot be read, what was found before it stays.
            let _ = self.index_unit(index, &unit, &mut work, &mut found);
        }
        found.sort_by_key(|f| (f.begin, f.end, f.unit, f.offset.0));
        found
    }

    fn index_unit(
        &self,
        index: usize,
        unit: &gimli::Unit<Slice>,
        work: &mut u64,
        found: &mut Vec<FunctionRange>,
    ) -> gimli::Result<()> {
        let mut entries = unit.entries_raw(None)?;
        while !entries.is_empty() {
            let offset = entries.next_offset();
            let Some(abbreviation) = entries.read_abbreviation()? else { continue };
            *work = work.saturating_sub(1 + abbreviation.attributes().len() as u64);
            if *work == 0 {
                break;
            }
            if abbreviation.tag() != gimli::DW_TAG_subprogram {
                entries.skip_attributes(abbreviation.attributes())?;
                continue;
            }
            let mut attributes = Vec::new();
            entries.read_attributes(abbreviation.attributes(), &mut attributes)?;
            let die = Die::new(abbreviation.tag(), abbreviation.has_children(), attributes, offset);
            for (begin, end) in self.ranges(unit, &die, work) {
                if found.len() >= MAX_FUNCTIONS {
                    return Ok(());
                }
                found.push(FunctionRange { begin, end, unit: index, offset });
            }
        }
        Ok(())
    }

    /// The address ranges that an entry covers. gimli's own function is not used, because it adds the length to the
    /// address without a check.
    pub(super) fn ranges(&self, unit: &gimli::Unit<Slice>, die: &Die, work: &mut u64) -> Vec<(u64, u64)> {
        if let Some(value) = die.attr_value(gimli::DW_AT_ranges) {
            let mut out = Vec::new();
            let Ok(Some(mut list)) = self.dwarf.attr_ranges(unit, value) else { return out };
            // The ranges are read one by one, because gimli's `next` skips any number of empty ranges at once.
            while let Ok(Some(raw)) = list.next_raw() {
                *work = work.saturating_sub(1);
                if *work == 0 || out.len() >= MAX_SCOPE_RANGES {
                    break;
                }
                match list.convert_raw(raw) {
                    Ok(range) => out.extend(range.map(|r| (r.begin, r.end))),
                    Err(_) => break,
                }
            }
            return out;
        }
        let address = |value| self.dwarf.attr_address(unit, value).ok().flatten();
        let low = die.attr_value(gimli::DW_AT_low_pc).and_then(address);
        let high = match die.attr_value(gimli::DW_AT_high_pc) {
            Some(AttributeValue::Udata(len)) => low.and_then(|low| low.checked_add(len)),
            Some(value) => address(value),
            None => None,
        };
        low.zip(high).filter(|(low, high)| low < high).into_iter().collect()
    }

    /// Whether an entry says that it covers `address`.
    pub(super) fn covers(&self, unit: &gimli::Unit<Slice>, die: &Die, address: u64, work: &mut u64) -> bool {
        self.ranges(unit, die, work).iter().any(|&(begin, end)| begin <= address && address < end)
    }

    /// Visits the entries below the one at `root`, in order. The walk ends when `work` is used up.
    pub(super) fn walk(
        &self,
        unit: &Unit,
        root: UnitOffset,
        work: &mut u64,
        visit: &mut dyn FnMut(Die, isize, &mut u64) -> Visit,
    ) -> gimli::Result<()> {
        let mut entries = unit.unit.entries_raw(Some(root))?;
        let top = entries.next_depth();
        let Some(abbreviation) = entries.read_abbreviation()? else { return Ok(()) };
        entries.skip_attributes(abbreviation.attributes())?;
        let mut skipped = None;
        while !entries.is_empty() && entries.next_depth() > top {
            let depth = entries.next_depth();
            let offset = entries.next_offset();
            let Some(abbreviation) = entries.read_abbreviation()? else { continue };
            *work = work.saturating_sub(1 + abbreviation.attributes().len() as u64);
            if *work == 0 {
                break;
            }
            if skipped.is_some_and(|above| depth > above) {
                entries.skip_attributes(abbreviation.attributes())?;
                continue;
            }
            skipped = None;
            let mut attributes = Vec::new();
            entries.read_attributes(abbreviation.attributes(), &mut attributes)?;
            let die = Die::new(abbreviation.tag(), abbreviation.has_children(), attributes, offset);
            match visit(die, depth - top, work) {
                Visit::Enter => {}
                Visit::Skip => skipped = Some(depth),
                Visit::Stop => break,
            }
        }
        Ok(())
    }

    /// The entry that a reference names, in this or another unit.
    pub(super) fn resolve(&self, from: &Arc<Unit>, reference: Attribute) -> Option<Entry> {
        let (unit, offset) = match reference {
            AttributeValue::UnitRef(offset) => (from.clone(), offset),
            AttributeValue::DebugInfoRef(offset) => {
                let start = |h: &UnitHeader<Slice>| h.debug_info_offset().map_or(usize::MAX, |o| o.0);
                let index = self.headers.partition_point(|h| start(h) <= offset.0).checked_sub(1)?;
                let unit = self.unit(index)?;
                let offset = offset.to_unit_offset(&unit.unit.header)?;
                (unit, offset)
            }
            _ => return None,
        };
        let die = unit.unit.entry(offset).ok()?;
        Some(Entry { unit, die })
    }

    /// An attribute of an entry, or of the declaration or abstract function that it belongs to.
    pub(super) fn inherited(&self, entry: &Entry, name: gimli::DwAt) -> Option<(Arc<Unit>, Attribute)> {
        let mut at = entry.clone();
        for _ in 0..MAX_REFERENCE_DEPTH {
            if let Some(value) = at.die.attr_value(name) {
                return Some((at.unit, value));
            }
            let next = at.die.attr_value(gimli::DW_AT_abstract_origin);
            let next = next.or_else(|| at.die.attr_value(gimli::DW_AT_specification))?;
            at = self.resolve(&at.unit, next)?;
        }
        None
    }

    /// An entry's name.
    pub(super) fn name(&self, entry: &Entry) -> Option<String> {
        let (unit, value) = self.inherited(entry, gimli::DW_AT_name)?;
        text(&self.dwarf, &unit.unit, value)
    }

    /// The name of an entry that the linker uses.
    pub(super) fn linkage_name(&self, entry: &Entry) -> Option<String> {
        let found = self.inherited(entry, gimli::DW_AT_linkage_name);
        let (unit, value) = found.or_else(|| self.inherited(entry, gimli::DW_AT_MIPS_linkage_name))?;
        text(&self.dwarf, &unit.unit, value)
    }

    /// An entry's type. `None` if it has none (`void`), or it cannot be read.
    pub(super) fn type_of(&self, entry: &Entry) -> Option<Entry> {
        let (unit, value) = self.inherited(entry, gimli::DW_AT_type)?;
        self.resolve(&unit, value)
    }

    /// The source file, line and column that the code at an address comes from.
    pub(super) fn line_at(&self, unit: &Unit, address: u64) -> FileLine {
        let lines = unit.lines.get_or_init(|| Lines::read(&unit.unit));
        let Some(row) = lines.at(address) else { return FileLine::default() };
        FileLine {
            file: self.file(unit, u64::from(row.file)),
            line: Some(row.line).filter(|&l| l != 0),
            column: Some(row.column).filter(|&c| c != 0),
        }
    }

    /// The addresses in a range at which a row of the line table begins or the last row of a sequence ends.
    pub(super) fn row_addresses(&self, unit: &Unit, range: &std::ops::Range<u64>) -> Vec<u64> {
        let lines = unit.lines.get_or_init(|| Lines::read(&unit.unit));
        let (first, behind) = (
            lines.sequences.partition_point(|s| s.0 <= range.start).saturating_sub(NEAR_SEQUENCES),
            lines.sequences.partition_point(|s| s.0 < range.end),
        );
        let mut out = Vec::new();
        for (_, end, rows) in lines.sequences.get(first..behind).unwrap_or_default() {
            let rows = lines.rows.get(rows.clone()).unwrap_or_default();
            let part = |limit| rows.partition_point(|r| r.address < limit);
            let inside = rows.get(part(range.start)..part(range.end)).unwrap_or_default();
            out.extend(inside.iter().map(|r| r.address).chain([*end]).filter(|address| range.contains(address)));
        }
        out
    }

    /// The path of a file of the unit's line table.
    pub(super) fn file(&self, unit: &Unit, index: u64) -> Option<String> {
        let header = unit.unit.line_program.as_ref()?.header();
        let file = header.file(index)?;
        let part = |value| text(&self.dwarf, &unit.unit, value);
        let mut path = unit.unit.comp_dir.as_ref().and_then(limited).unwrap_or_default();
        // Directory 0 is that of the compilation, with which the path begins.
        if file.directory_index() != 0
            && let Some(directory) = file.directory(header).and_then(part)
        {
            join(&mut path, &directory);
        }
        join(&mut path, &part(file.path_name())?);
        Some(path)
    }
}

fn join(path: &mut String, part: &str) {
    if part.starts_with('/') {
        path.clear();
    } else if !path.is_empty() && !path.ends_with('/') {
        path.push('/');
    }
    path.push_str(part);
}

fn text(dwarf: &gimli::Dwarf<Slice>, unit: &gimli::Unit<Slice>, value: Attribute) -> Option<String> {
    limited(&dwarf.attr_string(unit, value).ok()?)
}

fn limited(bytes: &Slice) -> Option<String> {
    (bytes.len() <= MAX_NAME_BYTES).then(|| String::from_utf8_lossy(bytes.bytes()).into_owned())
}

impl Lines {
    fn read(unit: &gimli::Unit<Slice>) -> Lines {
        let mut lines = Lines::default();
        let Some(program) = unit.line_program.clone() else { return lines };
        let mut rows = program.rows();
        let mut first = 0;
        while let Ok(Some((_, row))) = rows.next_row() {
            if lines.rows.len() >= MAX_LINE_ROWS {
                break;
            }
            if row.end_sequence() {
                if let Some(begin) = lines.rows.get(first).map(|r| r.address)
                    && begin < row.address()
                {
                    lines.sequences.push((begin, row.address(), first..lines.rows.len()));
                }
                first = lines.rows.len();
                continue;
            }
            let column = match row.column() {
                ColumnType::LeftEdge => 0,
                ColumnType::Column(column) => column.get() as u32,
            };
            let line = row.line().map_or(0, |l| l.get() as u32);
            lines.rows.push(Row { address: row.address(), file: row.file_index() as u32, line, column });
        }
        lines.sequences.sort_by_key(|s| (s.0, s.1));
        lines
    }

    fn at(&self, address: u64) -> Option<Row> {
        let behind = self.sequences.partition_point(|s| s.0 <= address);
        let (_, _, rows) = self.sequences[..behind].iter().rev().take(NEAR_SEQUENCES).find(|s| address < s.1)?;
        let rows = self.rows.get(rows.clone())?;
        let behind = rows.partition_point(|r| r.address <= address);
        rows[..behind].last().copied()
    }
}
