use std::collections::BTreeMap;
use std::time::Duration;

use gimli::write::{Address, AttributeValue as Write, DwarfUnit, EndianVec, Expression, Location, LocationList};
use gimli::write::{Range, RangeList, Sections, UnitEntryId};
use gimli::{DwAte, DwTag, LittleEndian};
use proptest::prelude::*;

use super::*;
use crate::arch::x64::{self, TABLE};
use crate::arch::{Machine, Reg};
use crate::limits;
use crate::process::memory::{Content, Piece, Splice};
use crate::process::{Memory, MemoryError};
use crate::runtime::wasmtime::image::SliceMemory;
use crate::runtime::wasmtime::testing::fixture;

fn load(name: &str) -> (Image, ImageDwarf, Vec<u8>) {
    let bytes = fixture(name);
    let image = Image::from_bytes(&bytes).unwrap();
    let dwarf = ImageDwarf::load(&image, &SliceMemory::new(0, &bytes)).unwrap().unwrap();
    (image, dwarf, bytes)
}

/// Memory with some bytes at some addresses.
struct Bytes(Splice);

impl Bytes {
    fn new(regions: &[(u64, &[u8])]) -> Bytes {
        let mut splice = Splice::new();
        for (start, bytes) in regions {
            let holder = std::sync::Arc::new(bytes.to_vec());
            splice.add(*start, start + bytes.len() as u64, Content::Bytes { holder, offset: 0 });
        }
        Bytes(splice)
    }
}

impl Memory for Bytes {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        match self.0.piece(address) {
            Piece::Bytes(bytes) if bytes.len() >= buf.len() => buf.copy_from_slice(&bytes[..buf.len()]),
            _ => return Err(MemoryError::Unmapped { address, len: buf.len() }),
        }
        Ok(())
    }
}

fn registers(values: &[(Reg, u64)]) -> Registers {
    let mut registers = Registers::unknown(Machine::X64);
    values.iter().for_each(|(reg, value)| registers.set(*reg, *value));
    registers
}

/// One line for each variable: "int x = 3 @ rax" or "int x: why".
fn lines(variables: &[SourceVariable]) -> Vec<String> {
    let line = |v: &SourceVariable| {
        let ty = v.ty.as_deref().unwrap_or("-");
        match &v.value {
            Ok(value) => format!("{ty} {} = {} @ {}", v.name, value.text, value.place),
            Err(why) => format!("{ty} {}: {why}", v.name),
        }
    };
    variables.iter().map(line).collect()
}

#[test]
fn an_image_without_debug_information() {
    let bytes = fixture("48-default");
    let image = Image::from_bytes(&bytes).unwrap();
    assert!(ImageDwarf::load(&image, &SliceMemory::new(0, &bytes)).unwrap().is_none());
}

#[test]
fn functions_begin_where_the_symbols_say() {
    for (name, functions) in
        [("48-debug-info", 4), ("36-debug-info", 4), ("c/48", 4), ("c/48-optimized", 3), ("c/36", 4)]
    {
        let (image, dwarf, bytes) = load(name);
        let symbols = image.symbols(&SliceMemory::new(0, &bytes)).unwrap();
        let mut seen = 0;
        for symbol in symbols.iter() {
            let found = dwarf.units.function_at(BIAS + u64::from(symbol.start));
            let crate::runtime::wasmtime::image::FunctionKind::Wasm { function, name: own, .. } = &symbol.kind else {
                assert!(found.is_none(), "{name}: {symbol:?}");
                assert!(dwarf.frames(symbol.start).is_empty());
                continue;
            };
            let low = found.unwrap().die.attr_value(gimli::DW_AT_low_pc).unwrap();
            assert_eq!(low, gimli::AttributeValue::Addr(BIAS + u64::from(symbol.start)), "{name}: {symbol:?}");
            let expected = own.clone().unwrap_or_else(|| format!("wasm-function[{function}]"));
            for at in [symbol.start, symbol.start + symbol.len / 2, symbol.end() - 1] {
                let frames = dwarf.frames(at);
                assert_eq!(frames.last().unwrap().function.as_deref(), Some(&*expected), "{name}: {at:#x}");
            }
            seen += 1;
        }
        assert_eq!(seen, functions, "{name}");
        assert!(dwarf.frames(image.text().end as u32).is_empty());
        assert!(dwarf.frames(u32::MAX).is_empty());
    }
}

#[test]
fn the_image_may_lie_anywhere() {
    let bytes = fixture("c/48");
    let memory = SliceMemory::new(0x7f00_0000_0000, &bytes);
    let image = Image::read(&memory, 0x7f00_0000_0000).unwrap();
    let there = ImageDwarf::load(&image, &memory).unwrap().unwrap();
    let (_, here, _) = load("c/48");
    for at in 0..0x400 {
        assert_eq!(there.frames(at), here.frames(at));
    }
}

#[test]
fn generated_lines_are_the_address_map() {
    let (_, dwarf, _) = load("48-debug-info");
    let facts = crate::runtime::wasmtime::testing::facts("48-debug-info").unwrap();
    let mut compared = 0;
    for line in facts.lines() {
        let ["map", code, position] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let (Some(code), Some(position)) = (hex(code), hex(position)) else { continue };
        let frames = dwarf.frames(code);
        let [frame] = frames.as_slice() else { panic!("{frames:?}") };
        assert_eq!((frame.line, frame.generated), (Some(position), true), "{code:#x}");
        assert_eq!(frame.file.as_deref(), Some("/<wasm-module>/values"));
        compared += 1;
    }
    assert!(compared > 15, "{compared}");
}

#[test]
fn lines_and_inlined_functions_of_c() {
    let (_, dwarf, _) = load("c/48");
    let place = |f: &SourceFrame| (f.function.clone().unwrap(), f.line.unwrap(), f.column.unwrap(), f.inlined);
    let frames = dwarf.frames(0x309);
    assert_eq!(frames.iter().map(place).collect::<Vec<_>>(), [("scale".into(), 20, 3, false)]);
    assert_eq!(frames[0].file.as_deref(), Some("./c-guest.c"));
    assert!(!frames[0].generated);

    let (_, dwarf, _) = load("c/48-optimized");
    let frames = dwarf.frames(0x1b9);
    let places: Vec<_> = frames.iter().map(place).collect();
    assert_eq!(places, [("scale".into(), 20, 3, true), ("visit".into(), 30, 10, false)]);
    assert_eq!(frames[1].file.as_deref(), Some("./c-guest.c"));
}

/// Registers and memory are as a stopped process had them: at the call in `scale` of c-guest.c, and in `walk(1)`.
#[test]
fn variables_in_linear_memory() {
    let (vmctx, base, guest) = (0x5572_3928_2520u64, 0x7fbe_6980_0000u64, 0x103b0u64);
    let mut stack = [0; 0x40];
    for (at, value) in [(0x4, 171u32), (0x8, 9), (0xc, 19), (0x30, 100), (0x34, 0x10410), (0x38, 1)] {
        stack[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let memory = Bytes::new(&[(vmctx + 56, &base.to_le_bytes()), (base + guest, &stack)]);
    let (_, dwarf, _) = load("c/48");

    let known = registers(&[(x64::RBX, vmctx), (x64::R14, guest)]);
    assert_eq!(
        lines(&dwarf.variables(0x309, &known, Some(0x7fff_0000), &memory)),
        [
            "int value = 19 @ [0x7fbe698103bc]",
            "int factor = 9 @ [0x7fbe698103b8]",
            "int scaled = 171 @ [0x7fbe698103b4]"
        ]
    );
    assert_eq!(dwarf.vmctx(0x309, &known, None, &memory), Some(vmctx));

    let known = registers(&[(x64::R13, vmctx), (x64::RBX, 0x103e0)]);
    assert_eq!(
        lines(&dwarf.variables(0x175, &known, None, &memory)),
        [
            "int depth = 1 @ [0x7fbe698103e8]",
            "point * p = 0x10410 @ [0x7fbe698103e4]",
            "volatile int mark = 100 @ [0x7fbe698103e0]"
        ]
    );

    // The reason names what is missing.
    let known = registers(&[(x64::R13, vmctx)]);
    let all = lines(&dwarf.variables(0x175, &known, None, &memory));
    assert_eq!(all[0], "int depth: register rbx is not known in this frame");
    let known = registers(&[(x64::R13, vmctx), (x64::RBX, 0x20000)]);
    let all = lines(&dwarf.variables(0x175, &known, None, &memory));
    assert_eq!(all[0], "int depth: memory at 0x7fbe69820008 is not readable");
    assert_eq!(dwarf.vmctx(0x175, &Registers::unknown(Machine::X64), None, &memory), None);
    assert_eq!(
        lines(&dwarf.variables(0xa7, &known, None, &memory)),
        ["int depth: optimized out here", "point here: optimized out here"]
    );

    // A structure is shown where its place is described: `here` of `run`, through rdi and rcx.
    let here: Vec<u8> = [19u64.to_le_bytes(), 0x1122_3344_5566_7788u64.to_le_bytes(), 2.5f64.to_le_bytes()].concat();
    let memory = Bytes::new(&[(vmctx + 56, &base.to_le_bytes()), (base + 0x10410, &here)]);
    let known = registers(&[(x64::RDI, vmctx), (x64::RCX, 0x10410)]);
    let all = lines(&dwarf.variables(0x36, &known, None, &memory));
    assert_eq!(all[1], "point here = {x = 19, weight = 1234605616436508552, height = 2.5} @ [0x7fbe69810410]");
}

#[test]
fn variables_of_inlined_functions_are_theirs() {
    let (_, dwarf, _) = load("c/48-optimized");
    let known = registers(&[(x64::R12, 11), (x64::R13, 171), (x64::R14, 0x1000)]);
    let memory = SliceMemory::new(0, &[]);
    let scopes = dwarf.scoped_variables(0x1b9, &known, None, &memory);
    let [inner, outer] = scopes.as_slice() else { panic!("{scopes:?}") };
    assert_eq!(lines(inner), ["int value: optimized out here", "int factor = 9 @ constant", "int scaled = 171 @ r13"]);
    assert_eq!(lines(outer)[3], "int before = 11 @ r12");
    assert_eq!(lines(outer)[1], "const char * text: optimized out: no place is described");
    let flat = dwarf.variables(0x1b9, &known, None, &memory);
    assert_eq!(flat, [inner.as_slice(), outer.as_slice()].concat());
    // The call clobbers rax.
    let scopes = dwarf.scoped_variables(0x1b7, &known, None, &memory);
    assert_eq!(lines(&scopes[0])[0], "int value: register rax is not known in this frame");
}

#[test]
fn locals_of_what_had_no_debug_information() {
    for name in ["48-debug-info", "36-debug-info"] {
        let (_, dwarf, _) = load(name);
        let known = registers(&[(x64::RDX, 0xffff_ffff_0000_0005), (x64::RDI, 0x5000)]);
        let all = dwarf.variables(0xa8, &known, None, &SliceMemory::new(0, &[]));
        assert_eq!(lines(&all), ["i32 var0 = 5 @ rdx"], "{name}");
        assert_eq!(dwarf.vmctx(0xa8, &known, None, &SliceMemory::new(0, &[])), Some(0x5000));
    }
}

// Debug information that a test writes, with one function at 0x100..0x200.
struct Synthetic {
    dwarf: DwarfUnit,
    function: UnitEntryId,
    int: UnitEntryId,
}

impl Synthetic {
    fn new(producer: &str, frame_base: Option<Expression>) -> Synthetic {
        let encoding = gimli::Encoding { format: gimli::Format::Dwarf32, version: 4, address_size: 8 };
        let mut dwarf = DwarfUnit::new(encoding);
        let root = dwarf.unit.root();
        dwarf.unit.get_mut(root).set(gimli::DW_AT_producer, Write::String(producer.into()));
        let function = dwarf.unit.add(root, gimli::DW_TAG_subprogram);
        let entry = dwarf.unit.get_mut(function);
        entry.set(gimli::DW_AT_low_pc, Write::Address(Address::Constant(BIAS + 0x100)));
        entry.set(gimli::DW_AT_high_pc, Write::Udata(0x100));
        entry.set(gimli::DW_AT_linkage_name, Write::String("_ZN3foo3barEv".into()));
        if let Some(base) = frame_base {
            entry.set(gimli::DW_AT_frame_base, Write::Exprloc(base));
        }
        let mut it = Synthetic { dwarf, function, int: function };
        it.int = it.base("int", 4, gimli::DW_ATE_signed);
        it
    }

    fn entry(&mut self, parent: UnitEntryId, tag: DwTag, attributes: Vec<(gimli::DwAt, Write)>) -> UnitEntryId {
        let id = self.dwarf.unit.add(parent, tag);
        attributes.into_iter().for_each(|(name, value)| self.dwarf.unit.get_mut(id).set(name, value));
        id
    }

    fn base(&mut self, name: &str, size: u64, encoding: DwAte) -> UnitEntryId {
        let size = (gimli::DW_AT_byte_size, Write::Udata(size));
        let encoding = (gimli::DW_AT_encoding, Write::Encoding(encoding));
        let root = self.dwarf.unit.root();
        self.entry(root, gimli::DW_TAG_base_type, vec![named(name), size, encoding])
    }

    fn ty(&mut self, tag: DwTag, mut attributes: Vec<(gimli::DwAt, Write)>, of: Option<UnitEntryId>) -> UnitEntryId {
        attributes.extend(of.map(of_type));
        let root = self.dwarf.unit.root();
        self.entry(root, tag, attributes)
    }

    fn variable(&mut self, name: &str, ty: UnitEntryId, place: Write) {
        let attributes = vec![named(name), of_type(ty), (gimli::DW_AT_location, place)];
        self.entry(self.function, gimli::DW_TAG_variable, attributes);
    }

    fn at(&mut self, name: &str, build: impl FnOnce(&mut Expression)) {
        let mut expression = Expression::new();
        build(&mut expression);
        self.variable(name, self.int, Write::Exprloc(expression));
    }

    /// Adds a variable that is a constant with these bytes.
    fn constant(&mut self, name: &str, ty: UnitEntryId, bytes: &[u8]) {
        let mut expression = Expression::new();
        expression.op_implicit_value(bytes.into());
        self.variable(name, ty, Write::Exprloc(expression));
    }

    fn sections(mut self) -> BTreeMap<String, Vec<u8>> {
        let mut sections = Sections::new(EndianVec::new(LittleEndian));
        self.dwarf.write(&mut sections).unwrap();
        let mut bytes = BTreeMap::new();
        let copied = sections.for_each(|id, data| {
            bytes.insert(id.name().to_string(), data.slice().to_vec());
            Ok::<_, gimli::write::Error>(())
        });
        copied.unwrap();
        bytes
    }

    fn finish(self) -> ImageDwarf {
        of_sections(self.sections())
    }
}

fn of_sections(sections: BTreeMap<String, Vec<u8>>) -> ImageDwarf {
    ImageDwarf { units: Units::new(sections::dwarf(sections)) }
}

fn named(name: &str) -> (gimli::DwAt, Write) {
    (gimli::DW_AT_name, Write::String(name.into()))
}

fn of_type(id: UnitEntryId) -> (gimli::DwAt, Write) {
    (gimli::DW_AT_type, Write::UnitRef(id))
}

fn sized(size: u64) -> (gimli::DwAt, Write) {
    (gimli::DW_AT_byte_size, Write::Udata(size))
}

const RAX: gimli::Register = gimli::Register(0);
const RBX: gimli::Register = gimli::Register(3);
const R9: gimli::Register = gimli::Register(9);
const XMM1: gimli::Register = gimli::Register(18);

fn frame_address() -> Expression {
    let mut base = Expression::new();
    base.op(gimli::DW_OP_call_frame_cfa);
    base
}

/// The variables at an offset in the code, in a frame with the CFA 0x8000 and the frame pointer 0x7ff0.
fn stopped(dwarf: &ImageDwarf, at: u32) -> Vec<String> {
    let stack: Vec<u8> = (0..0x40u8).flat_map(|i| u32::from(i).to_le_bytes()).collect();
    let memory = Bytes::new(&[(0x7f80, &stack), (0x1000, &[0xfe, 0xff, 0xff, 0xff, 1, 2, 3, 4])]);
    let known = [(x64::RAX, 0x1000), (x64::RBX, 0xffff_ffff_ffff_fff9), (x64::RBP, 0x7ff0), (x64::RSP, 0x7f80)];
    let known = registers(&[known.as_slice(), &[(x64::XMM1, 2.5f64.to_bits())]].concat());
    lines(&dwarf.variables(at, &known, Some(0x8000), &memory))
}

#[test]
fn kinds_of_places() {
    let mut it = Synthetic::new("clang", Some(frame_address()));
    let (int, double, wide) =
        (it.int, it.base("double", 8, gimli::DW_ATE_float), it.base("__int128", 16, gimli::DW_ATE_signed));
    it.at("register", |e| e.op_reg(RBX));
    it.at("missing", |e| e.op_reg(R9));
    it.at("odd", |e| e.op_reg(gimli::Register(70)));
    it.at("at_register", |e| e.op_breg(RAX, 4));
    it.at("based", |e| e.op_fbreg(-0x20));
    it.at("above", |e| e.op_fbreg(8));
    it.at("own_frame", |e| {
        e.op(gimli::DW_OP_call_frame_cfa);
        e.op_consts(-0x40);
        e.op(gimli::DW_OP_plus);
    });
    it.at("computed", |e| {
        e.op_breg(RAX, 0);
        e.op_deref_size(4);
        e.op_constu(3);
        e.op(gimli::DW_OP_plus);
        e.op(gimli::DW_OP_stack_value);
    });
    it.at("typed", |e| {
        e.op_deref_type(4, int);
        e.op(gimli::DW_OP_stack_value);
    });
    it.at("typed_twice", |e| {
        e.op_breg(RAX, 0);
        e.op_deref_type(4, int);
        e.op_const_type(int, Box::new(1u32.to_le_bytes()));
        e.op(gimli::DW_OP_minus);
        e.op(gimli::DW_OP_stack_value);
    });
    it.at("pieces", |e| {
        e.op_reg(RBX);
        e.op_piece(1);
        e.op_breg(RAX, 4);
        e.op_piece(3);
    });
    it.at("half", |e| {
        e.op_reg(RBX);
        e.op_piece(2);
        e.op_piece(2);
    });
    it.at("too_few", |e| {
        e.op_reg(RBX);
        e.op_piece(2);
    });
    it.at("bits", |e| {
        e.op_reg(RBX);
        e.op_bit_piece(12, 0);
    });
    it.at("constant", |e| e.op_implicit_value(Box::new(77u32.to_le_bytes())));
    it.at("nothing", |_| {});
    it.at("fixed", |e| e.op_addr(Address::Constant(0x400)));
    it.at("far", |e| e.op_constu(0x99_0000));
    it.at("local", |e| {
        e.op_wasm_local(3);
        e.op(gimli::DW_OP_stack_value);
    });
    it.at("entry", |e| {
        let mut inner = Expression::new();
        inner.op_reg(RBX);
        e.op_entry_value(inner);
        e.op(gimli::DW_OP_stack_value);
    });
    it.at("endless", |e| {
        e.op(gimli::DW_OP_nop);
        let back = e.op_skip();
        e.set_target(back, 0);
    });
    it.at("broken", |e| e.op(gimli::DW_OP_plus));
    let mut vector = Expression::new();
    vector.op_reg(XMM1);
    it.variable("vector", double, Write::Exprloc(vector.clone()));
    it.variable("whole_vector", wide, Write::Exprloc(vector));
    let function = it.function;
    let value = (gimli::DW_AT_const_value, Write::Sdata(-9));
    it.entry(function, gimli::DW_TAG_formal_parameter, vec![named("known"), of_type(int), value]);
    it.entry(function, gimli::DW_TAG_variable, vec![named("gone"), of_type(int)]);
    it.entry(function, gimli::DW_TAG_variable, vec![named("untyped")]);
    it.at("__vmctx", |e| e.op_reg(RAX));
    let dwarf = it.finish();
    assert_eq!(
        stopped(&dwarf, 0x150),
        [
            "int register = -7 @ rbx",
            "int missing: register r9 is not known in this frame",
            "int odd: it is in register 70 of DWARF, which is not read",
            "int at_register = 67305985 @ [0x1004]",
            "int based = 24 @ [fp-0x10]",
            "int above = 34 @ [fp+0x18]",
            "int own_frame = 16 @ [fp-0x30]",
            "int computed = 1 @ computed",
            "int typed: the debug information is broken: expression stack underflow",
            "int typed_twice = -3 @ computed",
            "int pieces = 50463225 @ rbx:1 [0x1004]:3",
            "int half: parts of it are optimized out here",
            "int too_few: only a part of it is described",
            "int bits: it is in pieces that are not whole bytes",
            "int constant = 77 @ constant",
            "int nothing: optimized out here",
            "int fixed: its place is described with a fixed address",
            "int far: memory at 0x990000 is not readable",
            "int local: its place is described with a local that was not translated",
            "int entry: optimized out: only its value at the call is described",
            "int endless: the debug information is broken: exceeded maximum expression iterations",
            "int broken: the debug information is broken: expression stack underflow",
            "double vector = 2.5 @ xmm1",
            "__int128 whole_vector: it is larger than what is known of xmm1",
            "int known = -9 @ constant",
            "int gone: optimized out: no place is described",
            "- untyped: its type is not described",
        ]
    );
    let known = registers(&[(x64::RAX, 0x4242)]);
    let memory = SliceMemory::new(0, &[]);
    assert_eq!(dwarf.vmctx(0x150, &known, None, &memory), Some(0x4242));
    let unknown = lines(&dwarf.variables(0x150, &known, None, &memory));
    assert_eq!(unknown[4], "int based: the address of this frame is not known");
    assert_eq!(dwarf.frames(0x150)[0].function.as_deref(), Some("foo::bar()"));
    assert!(stopped(&dwarf, 0xff).is_empty() && stopped(&dwarf, 0x200).is_empty());
}

#[test]
fn frame_bases() {
    let mut by_register = Expression::new();
    by_register.op_reg(gimli::Register(7));
    let mut by_itself = Expression::new();
    by_itself.op_fbreg(0);
    for (base, expected) in [
        // Functions that Wasmtime describes itself have no frame base.
        (None, "int x = 24 @ [fp-0x10]"),
        (Some(by_register), "int x: memory at 0x7f60 is not readable"),
        (Some(by_itself), "int x: its place is described with a frame base that refers to itself"),
    ] {
        let mut it = Synthetic::new("wasmtime", base);
        it.at("x", |e| e.op_fbreg(-0x20));
        let dwarf = it.finish();
        assert_eq!(stopped(&dwarf, 0x150), [expected]);
        assert!(dwarf.frames(0x150)[0].generated);
    }
}

#[test]
fn places_depend_on_the_address() {
    for based in [false, true] {
        let mut it = Synthetic::new("clang", None);
        let mut register = Expression::new();
        register.op_reg(RBX);
        let mut frame = Expression::new();
        frame.op_fbreg(-0x20);
        let list = if based {
            let pair = |begin, end, data| Location::OffsetPair { begin, end, data };
            let base = Location::BaseAddress { address: Address::Constant(BIAS + 0x100) };
            vec![base, pair(0x10, 0x20, register), pair(0x20, 0x30, frame)]
        } else {
            let begin = |at| Address::Constant(BIAS + at);
            let entry = |at, data| Location::StartLength { begin: begin(at), length: 0x10, data };
            vec![entry(0x110, register), entry(0x120, frame)]
        };
        let list = it.dwarf.unit.locations.add(LocationList(list));
        it.variable("x", it.int, Write::LocationListRef(list));
        let dwarf = it.finish();
        assert_eq!(stopped(&dwarf, 0x10f), ["int x: optimized out here"]);
        assert_eq!(stopped(&dwarf, 0x110), ["int x = -7 @ rbx"]);
        assert_eq!(stopped(&dwarf, 0x11f), ["int x = -7 @ rbx"]);
        assert_eq!(stopped(&dwarf, 0x120), ["int x = 24 @ [fp-0x10]"]);
        assert_eq!(stopped(&dwarf, 0x130), ["int x: optimized out here"]);
    }
}

#[test]
fn blocks_and_inlined_functions() {
    let mut it = Synthetic::new("clang", None);
    let (function, int) = (it.function, it.int);
    let root = it.dwarf.unit.root();
    let one = |n| (gimli::DW_AT_const_value, Write::Udata(n));
    let origin = it.entry(root, gimli::DW_TAG_subprogram, vec![named("inner")]);
    let parameter = it.entry(origin, gimli::DW_TAG_formal_parameter, vec![named("p"), of_type(int)]);
    let of = |id| (gimli::DW_AT_abstract_origin, Write::UnitRef(id));

    let block = it.entry(function, gimli::DW_TAG_lexical_block, covers(0x110, 0x10));
    it.entry(block, gimli::DW_TAG_variable, vec![named("in_block"), of_type(int), one(1)]);
    let ranges = [(0x140, 0x10), (0x160, 0x10)];
    let ranges = ranges.map(|(at, length)| Range::StartLength { begin: Address::Constant(BIAS + at), length });
    let ranges = it.dwarf.unit.ranges.add(RangeList(ranges.to_vec()));
    let ranges = (gimli::DW_AT_ranges, Write::RangeListRef(ranges));
    let call = (gimli::DW_AT_call_line, Write::Udata(33));
    let inlined = it.entry(function, gimli::DW_TAG_inlined_subroutine, vec![of(origin), ranges, call]);
    it.entry(inlined, gimli::DW_TAG_formal_parameter, vec![of(parameter), one(2)]);
    let nested = it.entry(inlined, gimli::DW_TAG_inlined_subroutine, covers(0x164, 4));
    it.entry(nested, gimli::DW_TAG_variable, vec![named("deepest"), of_type(int), one(3)]);
    it.entry(inlined, gimli::DW_TAG_variable, vec![named("behind"), of_type(int), one(4)]);
    it.entry(function, gimli::DW_TAG_variable, vec![named("last"), of_type(int), one(5)]);
    let unknown_block = it.entry(function, gimli::DW_TAG_lexical_block, vec![]);
    it.entry(unknown_block, gimli::DW_TAG_variable, vec![named("nowhere"), of_type(int), one(6)]);
    let dwarf = it.finish();

    let names = |at| {
        let scopes = dwarf.scoped_variables(at, &Registers::unknown(Machine::X64), None, &SliceMemory::new(0, &[]));
        let names = |v: Vec<SourceVariable>| v.into_iter().map(|v| v.name).collect::<Vec<_>>();
        scopes.into_iter().map(names).collect::<Vec<_>>()
    };
    assert_eq!(names(0x100), [vec!["last"]]);
    assert_eq!(names(0x110), [vec!["in_block", "last"]]);
    assert_eq!(names(0x150), [vec!["last"]]);
    assert_eq!(names(0x14f), [vec!["p", "behind"], vec!["last"]]);
    assert_eq!(names(0x164), [vec!["deepest"], vec!["p", "behind"], vec!["last"]]);
    let frames = dwarf.frames(0x14f);
    assert_eq!((frames[0].function.as_deref(), frames[0].inlined), (Some("inner"), true));
    assert_eq!((frames[1].function.as_deref(), frames[1].line), (Some("foo::bar()"), Some(33)));
}

#[test]
fn kinds_of_types() {
    let mut it = Synthetic::new("clang", None);
    let int = it.int;
    let tag = |it: &mut Synthetic, parent, tag, attributes| it.entry(parent, tag, attributes);
    for (name, size, encoding, bytes) in [
        ("unsigned int", 4, gimli::DW_ATE_unsigned, &[0xff; 4][..]),
        ("_Bool", 1, gimli::DW_ATE_boolean, &[1]),
        ("bad bool", 1, gimli::DW_ATE_boolean, &[7]),
        ("char", 1, gimli::DW_ATE_signed_char, b"a"),
        ("signed char", 1, gimli::DW_ATE_signed_char, &[0xff]),
        ("char32_t", 4, gimli::DW_ATE_UTF, &[0xac, 0x20, 0, 0]),
        ("float", 4, gimli::DW_ATE_float, &[0, 0, 0xc0, 0x3f]),
        ("double", 8, gimli::DW_ATE_float, &[0, 0, 0, 0, 0, 0, 0xf8, 0x7f]),
        ("long long", 8, gimli::DW_ATE_signed, &[0xff; 8]),
        (
            "__int128",
            16,
            gimli::DW_ATE_signed,
            &[0xfe, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
        ),
        ("()", 0, gimli::DW_ATE_unsigned, &[]),
    ] {
        let ty = it.base(name, size, encoding);
        it.constant("x", ty, bytes);
    }
    // A pointer of the guest, and one of the process.
    let short = it.base("short", 2, gimli::DW_ATE_signed);
    let constant = it.ty(gimli::DW_TAG_const_type, vec![], Some(short));
    let wrapper =
        it.ty(gimli::DW_TAG_structure_type, vec![named("WebAssemblyPtrWrapper<const short>"), sized(4)], None);
    tag(&mut it, wrapper, gimli::DW_TAG_template_type_parameter, vec![named("T"), of_type(constant)]);
    it.constant("guest", wrapper, &0x1_0410u32.to_le_bytes());
    let void = it.ty(gimli::DW_TAG_structure_type, vec![named("WebAssemblyPtrWrapper<??>"), sized(4)], None);
    tag(&mut it, void, gimli::DW_TAG_template_type_parameter, vec![named("T")]);
    it.constant("void_guest", void, &[0; 4]);
    let own = it.ty(gimli::DW_TAG_pointer_type, vec![], Some(int));
    it.constant("own", own, &0x7fff_0000_1000u64.to_le_bytes());
    // Names for types.
    let volatile = it.ty(gimli::DW_TAG_volatile_type, vec![], Some(short));
    let alias = it.ty(gimli::DW_TAG_typedef, vec![named("alias")], Some(volatile));
    it.constant("aliased", alias, &[0xfe, 0xff]);
    // Enumerations.
    let color = it.ty(gimli::DW_TAG_enumeration_type, vec![named("color"), sized(4)], None);
    for (name, value) in [("red", 1), ("dark", -2)] {
        let value = (gimli::DW_AT_const_value, Write::Sdata(value));
        tag(&mut it, color, gimli::DW_TAG_enumerator, vec![named(name), value]);
    }
    it.constant("dark", color, &(-2i32).to_le_bytes());
    it.constant("none", color, &7u32.to_le_bytes());
    // Arrays.
    let array = |it: &mut Synthetic, of, counts: &[(gimli::DwAt, u64)]| {
        let array = it.ty(gimli::DW_TAG_array_type, vec![], Some(of));
        for (name, count) in counts {
            it.entry(array, gimli::DW_TAG_subrange_type, vec![(*name, Write::Udata(*count))]);
        }
        array
    };
    let shorts = array(&mut it, short, &[(gimli::DW_AT_count, 3)]);
    it.constant("shorts", shorts, &[1, 0, 2, 0, 3, 0]);
    let table = array(&mut it, short, &[(gimli::DW_AT_upper_bound, 1), (gimli::DW_AT_count, 10)]);
    it.constant("table", table, &[0; 40]);
    let char = it.base("char", 1, gimli::DW_ATE_signed_char);
    let text = array(&mut it, char, &[(gimli::DW_AT_count, 8)]);
    it.constant("text", text, b"a\"b\0....");
    let open = array(&mut it, char, &[]);
    it.constant("open", open, b"abc");
    // A structure with members of every kind.
    let all = it.ty(gimli::DW_TAG_structure_type, vec![named("all"), sized(32)], None);
    let at = |n| (gimli::DW_AT_data_member_location, Write::Udata(n));
    let member = |it: &mut Synthetic, attributes| it.entry(all, gimli::DW_TAG_member, attributes);
    member(&mut it, vec![named("i"), of_type(int), at(0)]);
    member(&mut it, vec![named("p"), of_type(wrapper), at(4)]);
    member(&mut it, vec![named("s"), of_type(shorts), at(8)]);
    member(&mut it, vec![named("t"), of_type(text), at(14)]);
    let bits = |n| (gimli::DW_AT_bit_size, Write::Udata(n));
    member(
        &mut it,
        vec![named("new"), of_type(int), bits(3), (gimli::DW_AT_data_bit_offset, Write::Udata(8 * 24 + 2))],
    );
    let old = (gimli::DW_AT_bit_offset, Write::Udata(32 - 8 - 4));
    member(&mut it, vec![named("old"), of_type(int), bits(4), old, at(24), sized(4)]);
    member(&mut it, vec![named("beyond"), of_type(int), at(30)]);
    it.entry(
        all,
        gimli::DW_TAG_member,
        vec![named("shared"), of_type(int), (gimli::DW_AT_external, Write::Flag(true))],
    );
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&(-5i32).to_le_bytes());
    bytes[4] = 0x40;
    bytes[8] = 9;
    bytes[14..17].copy_from_slice(b"xyz");
    bytes[24] = 0b11100;
    bytes[25] = 0b0101;
    it.constant("all", all, &bytes);
    let outer = it.ty(gimli::DW_TAG_class_type, vec![named("outer"), sized(36)], None);
    it.entry(outer, gimli::DW_TAG_inheritance, vec![of_type(all), at(0)]);
    it.entry(outer, gimli::DW_TAG_member, vec![named("n"), of_type(int), at(32)]);
    it.constant("outer", outer, &[bytes.as_slice(), &[6, 0, 0, 0]].concat());
    // An enumeration of Rust.
    let variants = it.ty(gimli::DW_TAG_structure_type, vec![named("Option<u8>"), sized(2)], None);
    it.entry(variants, gimli::DW_TAG_variant_part, vec![]);
    it.constant("option", variants, &[1, 2]);
    // A type that refers to itself, and one that is only declared.
    let endless = it.ty(gimli::DW_TAG_const_type, vec![], None);
    it.dwarf.unit.get_mut(endless).set(gimli::DW_AT_type, Write::UnitRef(endless));
    it.constant("endless", endless, &[0; 8]);
    let declared = it.ty(gimli::DW_TAG_structure_type, vec![named("declared")], None);
    it.constant("declared", declared, &[0; 8]);
    let qualifiers = "const ".repeat(limits::MAX_REFERENCE_DEPTH + 1);
    assert_eq!(
        stopped(&it.finish(), 0x150),
        [
            "unsigned int x = 4294967295 @ constant",
            "_Bool x = true @ constant",
            "bad bool x = 7 @ constant",
            "char x = 97 'a' @ constant",
            "signed char x = -1 @ constant",
            "char32_t x = '\\u{20ac}' @ constant",
            "float x = 1.5 @ constant",
            "double x = NaN @ constant",
            "long long x = -1 @ constant",
            "__int128 x = -2 @ constant",
            "() x = () @ constant",
            "const short * guest = 0x10410 @ constant",
            "void * void_guest = 0x0 @ constant",
            "int * own = 0x7fff00001000 @ constant",
            "alias aliased = -2 @ constant",
            "color dark = dark @ constant",
            "color none = 7 @ constant",
            "short[3] shorts = {1, 2, 3} @ constant",
            "short[2][10] table = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ...} @ constant",
            "char[8] text = \"a\\\"b\" @ constant",
            "char open: its type has no size",
            "all all = {i = -5, p = 0x40, s = {...}, t = \"xyz\", new = -1, old = 5, beyond = ?} @ constant",
            "outer outer = {all = {...}, n = 6} @ constant",
            "Option<u8> option = {...} @ constant",
            &format!("{qualifiers}.. endless: its type has no size"),
            "declared declared: its type has no size",
        ]
    );
}

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

fn covers(from: u64, len: u64) -> Vec<(gimli::DwAt, Write)> {
    let low = (gimli::DW_AT_low_pc, Write::Address(Address::Constant(BIAS + from)));
    vec![low, (gimli::DW_AT_high_pc, Write::Udata(len))]
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
