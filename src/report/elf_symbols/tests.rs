//! Checks that the symbol files that are written can be read back.

use super::*;
use crate::runtime::code_map::{Line, Operand};
use gimli::read::{AttributeValue as Read, EhFrame as ReadEhFrame, UnwindSection};
use gimli::{BaseAddresses, CfaRule, EndianSlice, RegisterRule, UnwindContext};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol};

const BASE: u64 = 0x7f12_3456_7000;

fn function(name: &str, at: u64) -> CompiledFunction {
    let operand = |ty, place| -> Operand { (ty, place) };
    CompiledFunction {
        name: Some(name.to_string()),
        start: BASE + at,
        len: 0x100,
        frame: vec![
            (38, FrameChange::Cfa(x64::RSP, 16)),
            (38, FrameChange::Saved(x64::RBP, -16)),
            (41, FrameChange::Cfa(x64::RBP, 16)),
            (43, FrameChange::Saved(x64::R12, -24)),
            (0xf0, FrameChange::Undefined(x64::RBX)),
            // One change is behind the function's end, and one goes back to a smaller offset.
            (0x100, FrameChange::Same(x64::RBX)),
            (5, FrameChange::Undefined(x64::RIP)),
        ],
        wasm: true,
        described: true,
        variables: vec![
            Variable {
                name: "n".to_string(),
                ty: Some(ValType::I32),
                parameter: true,
                places: vec![(0, 50, Location::Register(x64::RSI)), (50, u32::MAX, Location::Register(x64::R12))],
            },
            Variable { name: "lost\0\n".to_string(), ty: None, parameter: false, places: Vec::new() },
        ],
        operands: vec![
            Operands {
                range: (0x80, 0x82),
                operands: vec![
                    operand(Some(ValType::F64), Some(Location::Constant(7))),
                    operand(None, None),
                    operand(None, Some(Location::Frame(-40))),
                ],
            },
            // This range lies within the one before, so it is left out.
            Operands { range: (0x81, 0x82), operands: vec![operand(None, None)] },
        ],
        lines: vec![
            Line { offset: 0, at: SourceLine { file: 0, line: 10 }, prologue_end: false, statement: true },
            Line { offset: 0x60, at: SourceLine { file: 0, line: 12 }, prologue_end: true, statement: true },
        ],
        inlined: Vec::new(),
    }
}

fn map() -> CodeMap {
    let routine = CompiledFunction {
        name: None,
        start: 0x1000,
        len: 16,
        frame: vec![(0, FrameChange::CfaDeref(x64::RSP, 56)), (0, FrameChange::Saved(x64::RBP, -56))],
        ..CompiledFunction::default()
    };
    CodeMap {
        modules: vec![
            CompiledModule {
                name: "app".to_string(),
                base: BASE,
                code: vec![0x90; 0x200],
                functions: vec![function("first", 0), function("second", 0x100)],
                files: vec![SourceFile::Text],
                text: Some("(module)".into()),
                copied: None,
            },
            CompiledModule { base: 0x1000, functions: vec![routine], ..CompiledModule::default() },
            // This module overlaps the first.
            CompiledModule { base: BASE + 0x10, code: vec![0; 16], ..CompiledModule::default() },
        ],
        notes: Vec::new(),
    }
}

fn written() -> Vec<u8> {
    write(&map(), "/src", &[Some("app.wat".to_string()), None, None]).unwrap()
}

#[test]
fn the_file_has_absolute_addresses_and_the_code() {
    let bytes = written();
    let file = object::File::parse(&*bytes).unwrap();
    assert_eq!(file.kind(), object::ObjectKind::Dynamic);
    let segments: Vec<_> = file.segments().map(|s| (s.address(), s.size())).collect();
    assert_eq!(segments, [(BASE, 0x200)]);
    let text = file.section_by_name(".text").unwrap();
    assert_eq!((text.address(), text.data().unwrap()), (BASE, &[0x90; 0x200][..]));
    let symbols: Vec<_> = file.symbols().map(|s| (s.name().unwrap(), s.address(), s.size())).collect();
    assert_eq!(symbols, [("first", BASE, 0x100), ("second", BASE + 0x100, 0x100)]);
    let frames = file.section_by_name(".eh_frame").unwrap();
    assert!(frames.data().unwrap().ends_with(&[0; 4]));
}

#[test]
fn frames_are_found_at_every_place() {
    let bytes = written();
    let file = object::File::parse(&*bytes).unwrap();
    let data = file.section_by_name(".eh_frame").unwrap().data().unwrap();
    let frames = ReadEhFrame::new(data, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(0);
    let row = |address: u64| {
        let mut context = UnwindContext::new();
        let row = frames
            .unwind_info_for_address(&bases, &mut context, address, ReadEhFrame::cie_from_offset)
            .unwrap()
            .clone();
        let rule = |reg: Reg| row.register(number(reg)).unwrap_or(RegisterRule::Architectural);
        (row.cfa().clone(), rule(x64::RBP), rule(x64::R12), rule(x64::RBX), rule(x64::RIP), rule(x64::RSI))
    };
    let cfa = |reg: Reg, offset| CfaRule::RegisterAndOffset { register: number(reg), offset };
    use RegisterRule::{Offset, SameValue, Undefined};
    for base in [BASE, BASE + 0x100] {
        let entry = (cfa(x64::RSP, 8), SameValue, SameValue, SameValue, Offset(-8), Undefined);
        assert_eq!(row(base), entry);
        assert_eq!(row(base + 37), entry);
        assert_eq!(row(base + 38).0, cfa(x64::RSP, 16));
        let body = (cfa(x64::RBP, 16), Offset(-16), Offset(-24), SameValue, Offset(-8), Undefined);
        assert_eq!(row(base + 43), body);
        assert_eq!(row(base + 0xef), body);
        assert_eq!(row(base + 0xff).3, Undefined);
    }
    let routine = row(0x1008);
    assert!(matches!(routine.0, CfaRule::Expression(_)), "{routine:?}");
    assert_eq!(routine.1, Offset(-56));
}

fn sections(bytes: &[u8]) -> gimli::Dwarf<EndianSlice<'_, LittleEndian>> {
    let file = object::File::parse(bytes).unwrap();
    gimli::Dwarf::load(|id| {
        let data = file.section_by_name(id.name()).and_then(|s| s.data().ok()).unwrap_or(&[]);
        Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
    })
    .unwrap()
}

/// A file that was written by two threads says the same about every function as a file with only that function does:
/// its name, the place of its parameter and its line. All of these lie behind offsets that had to be adjusted.
#[test]
fn both_parts_of_a_large_file_are_right() {
    let count = 2 * (WORTH_TWO_PARTS * UNIT_FUNCTIONS) as u64 + 1;
    let functions = (0..count).map(|i| {
        let mut f = function(&format!("f{i}"), i * 0x100);
        f.variables[0].name = format!("v{i}");
        f.variables[0].places = vec![(0, 0x90, Location::Frame(-(i as i64) * 8))];
        f.lines[0].at.line = i as u32 + 1;
        f
    });
    let module = CompiledModule {
        name: "large".to_string(),
        base: BASE,
        functions: functions.collect(),
        files: vec![SourceFile::Text],
        ..CompiledModule::default()
    };
    let map = CodeMap { modules: vec![module], notes: Vec::new() };
    let bytes = write(&map, "/src", &[Some("large.wat".to_string())]).unwrap();
    let dwarf = sections(&bytes);
    let mut seen = 0;
    let mut headers = dwarf.units();
    while let Some(header) = headers.next().unwrap() {
        let unit = dwarf.unit(header).unwrap();
        let rows: Vec<(u64, u64)> = {
            let mut rows = unit.line_program.clone().unwrap().rows();
            std::iter::from_fn(|| rows.next_row().unwrap().map(|(_, r)| *r))
                .filter(|r| !r.end_sequence())
                .map(|r| (r.address(), r.line().unwrap().get()))
                .collect()
        };
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs().unwrap() {
            let text = |at| {
                let value = entry.attr_value(at).unwrap();
                dwarf.attr_string(&unit, value).unwrap().to_string().unwrap().to_string()
            };
            if entry.tag() == dw::DW_TAG_subprogram {
                assert_eq!(text(dw::DW_AT_name), format!("f{seen}"));
                assert!(rows.contains(&(BASE + seen * 0x100, seen + 1)));
                seen += 1;
            } else if entry.tag() == dw::DW_TAG_formal_parameter {
                assert_eq!(text(dw::DW_AT_name), format!("v{}", seen - 1));
                let at = entry.attr_value(dw::DW_AT_location).unwrap();
                let mut list = dwarf.attr_locations(&unit, at).unwrap().unwrap();
                let place = list.next().unwrap().unwrap();
                assert_eq!(place.range.begin, BASE + (seen - 1) * 0x100);
                let expected = operations(Location::Frame(-(seen as i64 - 1) * 8));
                assert_eq!(place.data.0.slice(), expected);
            }
        }
    }
    assert_eq!(seen, count);
}

#[test]
fn functions_variables_and_operands_can_be_read_back() {
    let bytes = written();
    let dwarf = sections(&bytes);
    let header = dwarf.units().next().unwrap().unwrap();
    let unit = dwarf.unit(header).unwrap();
    assert_eq!(unit.low_pc, BASE);
    let name = |entry: &gimli::read::DebuggingInformationEntry<EndianSlice<'_, LittleEndian>>| {
        let value = entry.attr_value(dw::DW_AT_name)?;
        Some(dwarf.attr_string(&unit, value).unwrap().to_string_lossy().into_owned())
    };
    let mut entries = unit.entries();
    let (mut functions, mut parameters, mut locals, mut blocks) = (Vec::new(), 0, Vec::new(), Vec::new());
    while let Some(entry) = entries.next_dfs().unwrap() {
        match entry.tag() {
            dw::DW_TAG_subprogram => {
                let Some(Read::Exprloc(base)) = entry.attr_value(dw::DW_AT_frame_base) else { panic!() };
                assert_eq!(base.0.slice(), [dw::DW_OP_call_frame_cfa.0]);
                functions.push(name(entry).unwrap());
            }
            dw::DW_TAG_formal_parameter => {
                parameters += 1;
                let value = entry.attr_value(dw::DW_AT_location).unwrap();
                let mut list = dwarf.attr_locations(&unit, value).unwrap().unwrap();
                let mut found = Vec::new();
                while let Some(one) = list.next().unwrap() {
                    found.push((one.range.begin, one.range.end, one.data.0.slice().to_vec()));
                }
                let base = BASE + if functions.len() == 1 { 0 } else { 0x100 };
                // The DWARF number of rsi is 4, that of r12 is 12.
                assert_eq!(found, [(base, base + 50, vec![0x54]), (base + 50, base + 0x100, vec![0x5c])]);
            }
            dw::DW_TAG_variable => locals.push((name(entry).unwrap(), entry.attr_value(dw::DW_AT_location))),
            dw::DW_TAG_lexical_block => {
                let Some(Read::Addr(low)) = entry.attr_value(dw::DW_AT_low_pc) else { panic!() };
                blocks.push((low, entry.attr_value(dw::DW_AT_high_pc).unwrap().udata_value().unwrap()));
            }
            _ => {}
        }
    }
    assert_eq!((functions.as_slice(), parameters), (&["first".to_string(), "second".to_string()][..], 2));
    assert_eq!(blocks, [(BASE + 0x80, 2), (BASE + 0x180, 2)]);
    let names: Vec<&str> = locals.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [r"lost\u{0}\u{a}", "wasm_stack", r"lost\u{0}\u{a}", "wasm_stack"]);
    assert_eq!(locals[0].1, None);
    let Some(Read::Exprloc(stack)) = &locals[1].1 else { panic!() };
    let (constant, piece) = (dw::DW_OP_constu.0, dw::DW_OP_piece.0);
    let expected = [constant, 7, dw::DW_OP_stack_value.0, piece, 8, piece, 8, dw::DW_OP_fbreg.0, 0x58, piece, 8];
    assert_eq!(stack.0.slice(), expected);
}

#[test]
fn lines_can_be_read_back() {
    let bytes = written();
    let context = addr2line::Context::from_dwarf(sections(&bytes)).unwrap();
    let at = |address| context.find_location(address).unwrap().map(|l| (l.file.unwrap().to_string(), l.line.unwrap()));
    assert_eq!(at(BASE), Some(("/src/app.wat".to_string(), 10)));
    assert_eq!(at(BASE + 0x15f), Some(("/src/app.wat".to_string(), 10)));
    assert_eq!(at(BASE + 0x160), Some(("/src/app.wat".to_string(), 12)));
    assert_eq!(at(BASE + 0x200), None);
}

#[test]
fn odd_descriptions_make_a_file_too() {
    assert!(object::File::parse(&*write(&CodeMap::default(), "", &[]).unwrap()).is_ok());
    let mut map = map();
    for module in &mut map.modules {
        module.name = String::new();
        module.files.clear();
        for function in &mut module.functions {
            function.name = Some("\0".repeat(3));
            function.start = u64::MAX - 3;
            function.len = u32::MAX;
            for variable in &mut function.variables {
                variable.places = vec![(u32::MAX, 0, Location::Constant(u64::MAX)), (5, 5, Location::Frame(i64::MIN))];
            }
        }
    }
    let _ = write(&map, "\0", &[]);
}

/// What addr2line says about an address: function, file and line of each frame, innermost first.
fn frames_at(bytes: &[u8], address: u64) -> Vec<(String, Option<String>, Option<u32>)> {
    let context = addr2line::Context::from_dwarf(sections(bytes)).unwrap();
    let mut frames = context.find_frames(address).skip_all_loads().unwrap();
    let mut out = Vec::new();
    while let Some(frame) = frames.next().unwrap() {
        let name = frame.function.map(|f| f.raw_name().unwrap().into_owned()).unwrap_or_default();
        let (file, line) = frame.location.map_or((None, None), |l| (l.file.map(str::to_string), l.line));
        out.push((name, file, line));
    }
    out
}

#[test]
fn inlined_functions_say_from_where_they_are_called() {
    let mut map = map();
    let at = |line| SourceLine { file: 0, line };
    let row = |offset, line| Line { offset, at: at(line), prologue_end: false, statement: true };
    let leaf = Inlined { name: "leaf".into(), ranges: vec![(0x24, 0x28)], call: None, inner: Vec::new() };
    let inner = Inlined {
        name: "inner".into(),
        ranges: vec![(0x20, 0x30), (0x40, 0x44), (0xf0, u32::MAX), (5, 5)],
        call: Some(at(12)),
        inner: vec![leaf],
    };
    let function = &mut map.modules[0].functions[0];
    function.inlined = vec![inner];
    function.lines = vec![row(0, 10), row(0x20, 40), row(0x24, 0), row(0x30, 13), row(0x40, 41), row(0x44, 0)];
    let bytes = write(&map, "/src", &[Some("app.wat".to_string()), None, None]).unwrap();
    let is = |name: &str, line: u32| (name.to_string(), Some("/src/app.wat".to_string()), Some(line));
    assert_eq!(frames_at(&bytes, BASE), [is("first", 10)]);
    assert_eq!(frames_at(&bytes, BASE + 0x20), [is("inner", 40), is("first", 12)]);
    assert_eq!(frames_at(&bytes, BASE + 0x43), [is("inner", 41), is("first", 12)]);
    // The inlined function reaches up to the end of the function, and no further.
    assert_eq!(frames_at(&bytes, BASE + 0xff).len(), 2);
    assert_eq!(frames_at(&bytes, BASE + 0x30), [is("first", 13)]);
    // Line 0 is shown as no line, and it is not known where leaf is called.
    let names = |frames: &[(String, Option<String>, Option<u32>)]| -> Vec<String> {
        frames.iter().map(|f| f.0.clone()).collect()
    };
    let at_leaf = frames_at(&bytes, BASE + 0x24);
    assert_eq!(names(&at_leaf), ["leaf", "inner", "first"]);
    assert!(at_leaf[..2].iter().all(|f| f.2.unwrap_or(0) == 0), "{at_leaf:?}");
    assert_eq!(at_leaf[2], is("first", 12));
    assert!(frames_at(&bytes, BASE + 0x44)[0].2.unwrap_or(0) == 0);
    // The function that is inlined at two places has one description, and so has each other inlined function.
    let dwarf = sections(&bytes);
    let unit = dwarf.unit(dwarf.units().next().unwrap().unwrap()).unwrap();
    let mut entries = unit.entries();
    let (mut described, mut places) = (0, 0);
    while let Some(entry) = entries.next_dfs().unwrap() {
        described += usize::from(entry.attr_value(dw::DW_AT_inline).is_some());
        places += usize::from(entry.tag() == dw::DW_TAG_inlined_subroutine);
    }
    assert_eq!((described, places), (2, 2));
}

/// Checks the members of an operand stack with a vector, and the pieces that it is put together from.
#[test]
fn vectors_have_sixteen_bytes() {
    let mut map = map();
    let function = &mut map.modules[0].functions[0];
    let place = Some(Location::Frame(-64));
    let operands = [ValType::I32, ValType::V128, ValType::I64].map(|ty| (Some(ty), place));
    function.operands = vec![Operands { range: (0x80, 0x82), operands: operands.to_vec() }];
    let bytes = write(&map, "/src", &[Some("app.wat".to_string()), None, None]).unwrap();
    let dwarf = sections(&bytes);
    let unit = dwarf.unit(dwarf.units().next().unwrap().unwrap()).unwrap();
    let mut entries = unit.entries();
    let (mut sizes, mut offsets, mut stacks) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(entry) = entries.next_dfs().unwrap() {
        let number = |at| entry.attr_value(at).and_then(|v| v.udata_value());
        match entry.tag() {
            dw::DW_TAG_base_type => sizes.extend(number(dw::DW_AT_byte_size)),
            dw::DW_TAG_structure_type => offsets.extend(number(dw::DW_AT_byte_size)),
            dw::DW_TAG_member => offsets.extend(number(dw::DW_AT_data_member_location)),
            dw::DW_TAG_variable => {
                if let Some(Read::Exprloc(place)) = entry.attr_value(dw::DW_AT_location) {
                    stacks.push(place.0.slice().to_vec());
                }
            }
            _ => {}
        }
    }
    assert!(sizes.contains(&16), "{sizes:?}");
    assert_eq!(offsets[..4], [32, 0, 8, 24]);
    let piece = |size| [dw::DW_OP_fbreg.0, 0x40, dw::DW_OP_piece.0, size];
    assert_eq!(stacks[0], [piece(8), piece(16), piece(8)].concat());
}

#[test]
fn long_names_are_cut() {
    for (name, len) in [
        ("x".repeat(MAX_NAME_BYTES), MAX_NAME_BYTES),
        ("x".repeat(MAX_NAME_BYTES + 1), MAX_NAME_BYTES),
        // The name is not cut off inside of a character.
        (format!("x{}", "ä".repeat(MAX_NAME_BYTES)), MAX_NAME_BYTES - 1),
    ] {
        assert_eq!(clean(&name).len(), len);
    }
}

/// Characters that a terminal would obey are in no name of the file, however the name gets there, and are written as
/// in a report.
#[test]
fn names_are_escaped_as_in_the_text_report() {
    let bad = "a\u{202e}b\u{200b}c\u{1b}d\u{feff}";
    let mut map = map();
    map.modules[0].name = bad.to_string();
    map.modules[0].files = vec![SourceFile::Path(format!("/src/{bad}.c"))];
    let function = &mut map.modules[0].functions[0];
    function.name = Some(bad.to_string());
    function.variables[0].name = bad.to_string();
    let at = SourceLine { file: 0, line: 10 };
    function.inlined =
        vec![Inlined { name: bad.to_string(), ranges: vec![(0x24, 0x28)], call: Some(at), inner: Vec::new() }];
    let bytes = write(&map, "/src", &[]).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let shown = crate::report::text::clean(bad);
    assert_eq!(file.symbols().next().unwrap().name(), Ok(shown.as_str()));
    let (mut sections, mut found) = (0, 0);
    for section in file.sections().filter(|s| s.name().is_ok_and(|n| n.starts_with(".debug") || n.contains("str"))) {
        let text = String::from_utf8_lossy(section.data().unwrap()).into_owned();
        let raw = |c: char| crate::report::escape::is_unprintable(c) && !c.is_control();
        assert!(!text.contains(raw), "{:?}", section.name());
        found += text.matches(&shown).count();
        sections += 1;
    }
    assert!(sections >= 4 && found >= 4, "{sections} sections, {found} names");
}

/// If Wasm code is called by the machine's calling convention, it takes whatever is in a register for its instance.
#[test]
fn no_function_may_be_called() {
    let mut map = map();
    map.modules[0].functions[0].inlined =
        vec![Inlined { name: "leaf".into(), ranges: vec![(0x24, 0x28)], call: None, inner: Vec::new() }];
    let bytes = write(&map, "/src", &[Some("app.wat".to_string()), None, None]).unwrap();
    let dwarf = sections(&bytes);
    let unit = dwarf.unit(dwarf.units().next().unwrap().unwrap()).unwrap();
    let mut entries = unit.entries();
    let mut functions = 0;
    while let Some(entry) = entries.next_dfs().unwrap() {
        if entry.tag() == dw::DW_TAG_subprogram {
            let convention = entry.attr_value(dw::DW_AT_calling_convention);
            assert_eq!(convention, Some(Read::CallingConvention(dw::DW_CC_nocall)));
            functions += 1;
        }
    }
    assert_eq!(functions, 3);
}
