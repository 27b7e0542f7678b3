//! What the debug information of real images says of functions, lines, inlined functions and variables.

use super::*;
use crate::runtime::wasmtime::testing::fixture;

fn load(name: &str) -> (Image, ImageDwarf, Vec<u8>) {
    let bytes = fixture(name);
    let image = Image::from_bytes(&bytes).unwrap();
    let dwarf = ImageDwarf::load(&image, &SliceMemory::new(0, &bytes)).unwrap().unwrap();
    (image, dwarf, bytes)
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
