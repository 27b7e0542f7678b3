//! Hostile debug information, and what has an end however much of it there is.

use std::time::Duration;

use gimli::write::{Location, LocationList, Range, RangeList};
use proptest::prelude::*;

use super::*;
use crate::arch::x64::TABLE;
use crate::runtime::wasmtime::testing::fixture;

#[test]
fn deep_nesting_is_no_recursion() {
    // The debug information has 200,000 inlined functions in each other, of one byte each.
    let mut it = Synthetic::new("clang", None);
    let function = it.function;
    it.entry(function, gimli::DW_TAG_inlined_subroutine, vec![]);
    let mut bytes = it.sections();
    let function = of_sections(bytes.clone()).units.function_at(BIAS + 0x150).unwrap();
    let info = bytes.get_mut(".debug_info").unwrap();
    // Everything from the child on is replaced. The unit begins the section, so offsets in both are the same.
    let child = {
        let mut entries = function.unit.unit.entries_at_offset(function.die.offset()).unwrap();
        entries.next_dfs().unwrap();
        entries.next_dfs().unwrap().unwrap().offset().0
    };
    info.truncate(child);
    info.extend(std::iter::repeat_n(9, 200_000));
    let length = (info.len() as u32 - 4).to_le_bytes();
    info[..4].copy_from_slice(&length);
    // Abbreviation 9 is an inlined subroutine with children and without attributes.
    let abbreviations = bytes.get_mut(".debug_abbrev").unwrap();
    assert_eq!(abbreviations.pop(), Some(0));
    abbreviations.extend([9, gimli::DW_TAG_inlined_subroutine.0 as u8, 1, 0, 0, 0]);
    let dwarf = of_sections(bytes);
    assert_eq!(dwarf.frames(0x150).len(), 1);
    assert!(stopped(&dwarf, 0x150).is_empty());
}

/// Asks everything that can be asked, at some offsets in the code.
fn ask(bytes: &[u8]) {
    let Ok(image) = Image::from_bytes(bytes) else { return };
    let memory = SliceMemory::new(0, bytes);
    let Ok(Some(dwarf)) = ImageDwarf::load(&image, &memory) else { return };
    let mut known = Registers::unknown(Machine::X64);
    for (i, row) in TABLE.iter().enumerate() {
        known.set(row.reg, [0x1000, u64::MAX, 8][i % 3]);
    }
    for at in (0..0x340).step_by(13) {
        dwarf.frames(at);
        dwarf.variables(at, &known, Some(0x2000), &memory);
        dwarf.variables(at, &Registers::unknown(Machine::X64), None, &memory);
        dwarf.vmctx(at, &known, Some(0x2000), &memory);
    }
}

/// Images with some bytes of their debug sections changed.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let images = ["48-debug-info", "c/48", "c/48-optimized", "c/36"].map(|name| {
        let bytes = fixture(name);
        let image = Image::from_bytes(&bytes).unwrap();
        let sections = image.sections().iter();
        let debug = sections.filter(|s| s.name.starts_with(".debug_") || s.name.starts_with(".rela.debug_"));
        let at: Vec<usize> = debug.flat_map(|s| s.offset as usize..(s.offset + s.size) as usize).collect();
        (bytes, at)
    });
    let change = (any::<prop::sample::Index>(), any::<u8>());
    (prop::sample::select(images.to_vec()), prop::collection::vec(change, 1..40)).prop_map(
        |((mut bytes, at), changes)| {
            for (index, value) in changes {
                let position = at[index.index(at.len())];
                bytes[position] = value;
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damaged_debug_information(bytes in hostile()) {
        // What this may cost is counted, entry by entry (MAX_SCOPE_WORK, MAX_LAYOUT_WORK and others).
        ask(&bytes);
    }
}

#[test]
fn what_is_shown_of_a_value_has_an_end() {
    let mut it = Synthetic::new("clang", None);
    let root = it.dwarf.unit.root();
    let array = |it: &mut Synthetic, of, count: usize| {
        let array = it.ty(gimli::DW_TAG_array_type, vec![], Some(of));
        it.entry(array, gimli::DW_TAG_subrange_type, vec![(gimli::DW_AT_count, Write::Udata(count as u64))]);
        array
    };
    let char = it.base("char", 1, gimli::DW_ATE_signed_char);
    for count in [limits::MAX_SHOWN_CHARS, limits::MAX_SHOWN_CHARS + 1] {
        let text = array(&mut it, char, count);
        it.constant("text", text, &vec![b'x'; count]);
    }
    let byte = it.base("byte", 1, gimli::DW_ATE_unsigned);
    for count in [limits::MAX_SHOWN_MEMBERS, limits::MAX_SHOWN_MEMBERS + 1] {
        let bytes = array(&mut it, byte, count);
        it.constant("bytes", bytes, &vec![1; count]);
        let fields = it.entry(root, gimli::DW_TAG_structure_type, vec![named("s"), sized(1)]);
        for _ in 0..count {
            it.entry(fields, gimli::DW_TAG_member, vec![named("m"), of_type(byte)]);
        }
        it.constant("fields", fields, &[1]);
    }
    // Bytes of a value beyond the first MAX_SOURCE_VALUE_BYTES are not even read.
    let large = array(&mut it, byte, limits::MAX_SOURCE_VALUE_BYTES as usize + 1);
    let mut place = Expression::new();
    place.op_breg(RAX, 0);
    it.variable("large", large, Write::Exprloc(place));
    let long = it.base(&"n".repeat(limits::MAX_TEXT_NAME + 1), 1, gimli::DW_ATE_unsigned);
    it.constant("long", long, &[1]);
    let too_long = it.base(&"n".repeat(limits::MAX_NAME_BYTES + 1), 1, gimli::DW_ATE_unsigned);
    it.constant("too_long", too_long, &[1]);
    let dwarf = it.finish();
    let memory = Bytes::new(&[(0x1000, &[1; limits::MAX_SOURCE_VALUE_BYTES as usize])]);
    let all = dwarf.variables(0x150, &registers(&[(x64::RAX, 0x1000)]), None, &memory);
    let values: Vec<&str> = all.iter().map(|v| v.value.as_ref().unwrap().text.as_str()).collect();
    let text = "x".repeat(limits::MAX_SHOWN_CHARS);
    let list = |part: &str, more: &str| format!("{{{}{more}}}", vec![part; limits::MAX_SHOWN_MEMBERS].join(", "));
    let expected = [
        format!("\"{text}\""),
        format!("\"{text}\".."),
        list("1", ""),
        list("m = 1", ""),
        list("1", ", ..."),
        list("m = 1", ", ..."),
        list("1", ", ..."),
        "1".to_string(),
        "1".to_string(),
    ];
    assert_eq!(values, expected);
    let types: Vec<&str> = all[7..].iter().map(|v| v.ty.as_deref().unwrap()).collect();
    assert_eq!(types, [format!("{}..", "n".repeat(limits::MAX_TEXT_NAME)), "?".to_string()]);
}

#[test]
fn variables_and_places_have_an_end() {
    let mut it = Synthetic::new("clang", None);
    for _ in 0..=limits::MAX_SOURCE_VARIABLES {
        it.at("x", |e| e.op_reg(RBX));
    }
    assert_eq!(stopped(&it.finish(), 0x150).len(), limits::MAX_SOURCE_VARIABLES);

    // The place that covers the address stands behind `others` places that do not cover it.
    for (others, expected) in [
        (limits::MAX_LOCATIONS - 1, "int x = -7 @ rbx"),
        (limits::MAX_LOCATIONS, "int x: its places are too many to look at"),
    ] {
        let mut it = Synthetic::new("clang", None);
        let mut data = Expression::new();
        data.op_reg(RBX);
        let place = |at| Location::StartLength { begin: Address::Constant(BIAS + at), length: 1, data: data.clone() };
        let list = (0..others).map(|_| place(0x10)).chain([place(0x150)]).collect();
        let list = it.dwarf.unit.locations.add(LocationList(list));
        it.variable("x", it.int, Write::LocationListRef(list));
        assert_eq!(stopped(&it.finish(), 0x150), [expected]);
    }
    for (operations, expected) in [
        (limits::MAX_EXPRESSION_STEPS, "int x = -7 @ rbx"),
        (
            limits::MAX_EXPRESSION_STEPS + 1,
            "int x: the debug information is broken: exceeded maximum expression iterations",
        ),
    ] {
        let mut it = Synthetic::new("clang", None);
        it.at("x", |e| {
            (1..operations).for_each(|_| e.op(gimli::DW_OP_nop));
            e.op_reg(RBX);
        });
        assert_eq!(stopped(&it.finish(), 0x150), [expected]);
    }
}

#[test]
fn scopes_have_an_end() {
    let mut it = Synthetic::new("clang", None);
    let function = it.function;
    (0..limits::MAX_INLINE_DEPTH)
        .fold(function, |parent, _| it.entry(parent, gimli::DW_TAG_inlined_subroutine, covers(0x100, 0x100)));
    assert_eq!(it.finish().frames(0x150).len(), limits::MAX_INLINE_DEPTH);

    // The range that covers the address stands behind `others` ranges that do not cover it.
    for (others, found) in [(limits::MAX_SCOPE_RANGES - 1, 2), (limits::MAX_SCOPE_RANGES, 1)] {
        let mut it = Synthetic::new("clang", None);
        let range = |at| Range::StartLength { begin: Address::Constant(BIAS + at), length: 1 };
        let ranges = (0..others).map(|_| range(0x10)).chain([range(0x150)]).collect();
        let ranges = (gimli::DW_AT_ranges, Write::RangeListRef(it.dwarf.unit.ranges.add(RangeList(ranges))));
        it.entry(it.function, gimli::DW_TAG_inlined_subroutine, vec![ranges]);
        assert_eq!(it.finish().frames(0x150).len(), found);
    }

    // Entries that mean nothing stand before the variable.
    for (labels, found) in [(limits::MAX_SCOPE_WORK as usize - 10, 1), (limits::MAX_SCOPE_WORK as usize, 0)] {
        let mut it = Synthetic::new("clang", None);
        for _ in 0..labels {
            it.entry(it.function, gimli::DW_TAG_label, vec![]);
        }
        it.at("x", |e| e.op_reg(RBX));
        assert_eq!(stopped(&it.finish(), 0x150).len(), found);
    }

    // Each of the functions is compared with the two places of every function, at the cost of one for the function
    // and one for its range.
    for (functions, whole) in [(100, true), (400, false)] {
        let mut it = Synthetic::new("clang", None);
        let function = it.function;
        it.dwarf.unit.get_mut(function).set(gimli::DW_AT_high_pc, Write::Udata(0x1000));
        for n in 0..functions {
            it.entry(function, gimli::DW_TAG_inlined_subroutine, covers(0x100 + n * 4, 2));
        }
        const { assert!(limits::MAX_LAYOUT_WORK > 2 * 200 * 100 && limits::MAX_LAYOUT_WORK < 2 * 800 * 400) };
        let layout = it.finish().layout(0x100..0x1100).unwrap();
        assert_eq!(layout.iter().all(|(_, frames)| !frames.is_empty()), whole);
    }
}

#[test]
fn units_and_functions_have_an_end() {
    // An empty unit: version 4, no abbreviations, addresses of eight bytes.
    let unit = [7, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8];
    let units = of_sections([(".debug_info".to_string(), unit.repeat(limits::MAX_UNITS + 1))].into()).units;
    assert_eq!(units.count(), limits::MAX_UNITS);

    let mut sections = Synthetic::new("clang", None).sections();
    let one = sections[".debug_info"].clone();
    sections.insert(".debug_info".to_string(), one.repeat(limits::MAX_CACHED_UNITS + 1));
    let units = of_sections(sections).units;
    for index in 0..=limits::MAX_CACHED_UNITS {
        assert!(units.unit(index).is_some());
        assert!(units.parsed.lock().unwrap().len() <= limits::MAX_CACHED_UNITS);
    }
    assert!(units.index(Duration::ZERO).is_empty());
    // This time is enough however slow the machine is.
    let all = units.index(Duration::from_secs(limits::MAX_DEBUG_INDEX_SECONDS << 20));
    assert_eq!(all.len(), limits::MAX_CACHED_UNITS + 1);
    // As many functions begin behind the one that covers the address.
    assert!(units.function_at(BIAS + 0x150).is_some());

    // Entries that mean nothing stand before the only function.
    for (labels, found) in [(limits::MAX_DEBUG_INDEX_WORK - 100, true), (limits::MAX_DEBUG_INDEX_WORK, false)] {
        let mut it = Synthetic::new("clang", None);
        let root = it.dwarf.unit.root();
        for _ in 0..labels {
            it.entry(root, gimli::DW_TAG_label, vec![]);
        }
        it.entry(root, gimli::DW_TAG_subprogram, covers(0x1000, 1));
        assert_eq!(it.finish().units.function_at(BIAS + 0x1000).is_some(), found);
    }
}

#[test]
fn line_tables_have_an_end() {
    for (rows, found) in [(limits::MAX_LINE_ROWS - 1, true), (limits::MAX_LINE_ROWS + 1, false)] {
        let mut it = Synthetic::new("clang", None);
        let encoding = it.dwarf.unit.encoding();
        let string = |text: &str| gimli::write::LineString::String(text.into());
        let mut program = gimli::write::LineProgram::new(
            encoding,
            gimli::LineEncoding::default(),
            string("/src"),
            None,
            string("a.c"),
            None,
        );
        let directory = program.default_directory();
        let file = program.add_file(string("a.c"), directory, None);
        program.begin_sequence(Some(Address::Constant(BIAS + 0x100)));
        for row in 0..rows as u64 {
            program.row().file = file;
            program.row().line = 7;
            program.row().address_offset = row * 0x100 / rows as u64;
            program.generate_row();
        }
        program.end_sequence(0x100);
        it.dwarf.unit.line_program = program;
        assert_eq!(it.finish().frames(0x150)[0].line, found.then_some(7));
    }
}
