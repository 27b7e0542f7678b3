//! Every recursion over foreign data ends before the stack does.
//!
//! The list is complete as of the dependencies in `Cargo.toml`; each line has its bound, and a test of it, here or beside
//! the code. Those that are not in the list are loops: reading ELF (`object`), DWARF entries, lines and expressions (`gimli`),
//! modules and components (`wasmparser`, which keeps what is open in a list), `/proc` (`procfs`), postcard and bincode images.
//!
//! | recursion | over | bound |
//! |---|---|---|
//! | `addr2line` `parse_children` | functions inlined into each other, of native files and `.wasm` files | `MAX_INLINE_DEPTH`, checked before (here) |
//! | `addr2line` `name_attr` | abstract origins | 16, its own (here) |
//! | `cpp_demangle` parser and printer | mangled names | 96 and 128, its own, and `MAX_NAME_BYTES` (here) |
//! | `rustc_demangle` v0 | mangled names | 500, its own, and `MAX_NAME_BYTES` (here) |
//! | `serde_json` | requests of debuggers | 128, its own (here) |
//! | `wasmprinter` | blocks of a function, nested or not | none needed: it keeps a list (here) |
//! | `state::codec` in borsh and bincode | halves of machine values | `MAX_VALUE_DEPTH` (here) |
//! | `runtime::singlepass::module::map_in_memory` | halves of machine values in memory | `MAX_VALUE_DEPTH` (beside the code) |
//! | `runtime::singlepass::module::map_in_memory` | B-trees in memory | `MAX_TREE_HEIGHT` (beside the code) |
//! | `runtime::wasmtime::tables::dwarf::types` | types within types | `MAX_REFERENCE_DEPTH` (beside the code) |
//! | `report::elf_symbols`, `runtime::code_map` | inlined functions that are written | `MAX_INLINE_DEPTH` where they are laid out (beside the code) |
//! | dropping `process::objects::Excerpts` | one for each part of debug information | a loop (beside the code) |

use std::io::Cursor;
use std::sync::{Arc, Mutex};
use wstate::arch::CodeAddress;
use wstate::limits;
use wstate::process::objects::{LoadedObject, ObjectData, Objects};
use wstate::state::MachineValue;
use wstate::state::codec::{decode_bincode, decode_borsh};
use wstate::symbolize::native::{NativeSymbolizer, demangle};
use wstate::wasm::WasmModule;

const BIAS: u64 = 0x5000_0000;
const START: u64 = 0x1000;
const DEPTH: usize = 100_000;

/// Runs `work` with so little stack that a recursion without a bound overflows it at once.
fn on_small_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    on_stack(512 << 10, work)
}

fn on_stack<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(bytes).spawn_scoped(scope, work).unwrap();
        thread.join().unwrap()
    })
}

/// A unit with one function, into which functions are inlined `depth` levels deep, and each level's name is at the end of
/// `chain` abstract origins: abbreviations and entries.
fn debug_info(depth: usize, chain: usize) -> (Vec<u8>, Vec<u8>) {
    // Code, tag, has children, then (attribute, form) up to (0, 0).
    let abbreviations: &[&[u8]] = &[
        &[1, 0x11, 1, 0x11, 0x01, 0x12, 0x07, 0, 0],
        &[2, 0x2e, 1, 0x03, 0x08, 0x11, 0x01, 0x12, 0x07, 0, 0],
        &[3, 0x1d, 1, 0x31, 0x13, 0x11, 0x01, 0x12, 0x07, 0x59, 0x0b, 0, 0],
        &[4, 0x2e, 0, 0x31, 0x13, 0, 0],
        &[5, 0x2e, 0, 0x03, 0x08, 0, 0],
        &[0],
    ];
    let range = |out: &mut Vec<u8>| {
        out.extend(START.to_le_bytes());
        out.extend(0x100u64.to_le_bytes());
    };
    // Version 4, abbreviations at 0, addresses of 8 bytes; the length comes last.
    let mut out = vec![0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8];
    out.push(1);
    range(&mut out);
    out.push(2);
    out.extend(b"outer\0");
    range(&mut out);
    let origins = out.len() + depth * (1 + 4 + 16 + 1) + depth + 1;
    for _ in 0..depth {
        out.push(3);
        out.extend((origins as u32).to_le_bytes());
        range(&mut out);
        out.push(1);
    }
    out.extend(vec![0; depth + 1]);
    assert_eq!(out.len(), origins);
    for i in 1..=chain {
        out.push(4);
        out.extend(((origins + 5 * i) as u32).to_le_bytes());
    }
    out.push(5);
    out.extend(b"inner\0");
    out.push(0);
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_le_bytes());
    (abbreviations.concat(), out)
}

/// An ELF file with these sections.
fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
    use object::write::{Object, StandardSegment};
    use object::{Architecture, BinaryFormat, Endianness, SectionKind};
    let mut out = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let debug = out.segment_name(StandardSegment::Debug).to_vec();
    for (name, bytes) in sections {
        let id = out.add_section(debug.clone(), name.as_bytes().to_vec(), SectionKind::Debug);
        out.append_section_data(id, bytes, 1);
    }
    out.write().unwrap()
}

/// Names of the frames at the start of the function, and what is noted.
fn native(depth: usize, chain: usize) -> (Vec<Option<String>>, Vec<String>) {
    let (abbreviations, info) = debug_info(depth, chain);
    let object = LoadedObject {
        path: "/lib/file.so".into(),
        opened: None,
        bias: BIAS,
        range: (BIAS, BIAS + 0x10000),
        build_id: None,
        data: Some(ObjectData::Memory(elf(&[(".debug_abbrev", &abbreviations), (".debug_info", &info)]))),
        fits: None,
        debug: None,
        unpacked: Default::default(),
        excerpts: Default::default(),
        problem: None,
    };
    let objects = Objects::from_parts(vec![object]);
    let symbols = NativeSymbolizer::new(&objects);
    let found = symbols.symbolize(CodeAddress::Exact(BIAS + START + 4));
    (found.into_iter().map(|f| f.name).collect(), symbols.notes())
}

#[test]
fn functions_inlined_into_each_other() {
    for depth in [limits::MAX_INLINE_DEPTH + 1, DEPTH] {
        let (names, notes) = on_small_stack(move || native(depth, 0));
        assert_eq!(names, [], "{depth}: there is no symbol table that could have the name");
        assert!(notes[0].contains("/lib/file.so") && notes[0].contains("left out"), "{notes:?}");
    }
    // As many as are allowed are shown, with the function around them.
    let (names, notes) = native(limits::MAX_INLINE_DEPTH, 0);
    assert_eq!((names.len(), notes.as_slice()), (limits::MAX_INLINE_DEPTH + 1, &[][..]));
    assert_eq!((names[0].as_deref(), names.last().unwrap().as_deref()), (Some("inner"), Some("outer")));
}

#[test]
fn names_that_refer_to_names() {
    let (names, _) = on_small_stack(|| native(1, DEPTH));
    assert_eq!(names.last().unwrap().as_deref(), Some("outer"));
    let (names, _) = native(1, 10);
    assert_eq!(names[0].as_deref(), Some("inner"));
}

#[test]
fn functions_inlined_into_each_other_in_a_wasm_file() {
    let module = |depth| {
        let (abbreviations, info) = debug_info(depth, 0);
        let mut bytes = wat::parse_str("(module (func (export \"f\") i32.const 1 drop))").unwrap();
        let custom = |bytes: &mut Vec<u8>, name: &str, data: &[u8]| {
            use wasm_encoder::Encode;
            bytes.push(0);
            let mut section = Vec::new();
            name.encode(&mut section);
            section.extend(data);
            section.encode(bytes);
        };
        custom(&mut bytes, ".debug_abbrev", &abbreviations);
        custom(&mut bytes, ".debug_info", &info);
        WasmModule::parse("deep.wasm".to_string(), bytes).unwrap()
    };
    // The addresses of this file begin with the contents of the code section, wherever it is.
    let found = |depth: usize| {
        let module = module(depth);
        (0..0x200).map(|code| module.source(START + code).len()).max()
    };
    assert_eq!(on_small_stack(move || found(DEPTH)), Some(0));
    assert_eq!(found(3), Some(4));
}

#[test]
fn mangled_names() {
    let most = limits::MAX_NAME_BYTES - 64;
    let repeated = |begin: &str, part: &str, end: &str| {
        format!("{begin}{}{end}", part.repeat((most - begin.len() - end.len()) / part.len()))
    };
    for name in [
        // Pointers to pointers, nested templates, local names, expressions of C++; then Rust's of both kinds.
        repeated("_Z1f", "P", "i"),
        repeated("_Z1fI", "1aI", ""),
        repeated("_Z1fN", "1a", "Ev"),
        repeated("_ZZ", "Z", "1fvE1g"),
        repeated("_Z1fIXad", "ad", "L_Z1gvEEEvv"),
        repeated("_Z1f", "FvP", "v"),
        repeated("_RI", "NvC1a1b", "E"),
        repeated("_R", "INtC1a1bR", "uE"),
        repeated("_RNvC1a1b", "S", "u"),
        repeated("_RMC1aT", "T", "E"),
        repeated("_RYB", "YB", "_"),
        repeated("_ZN", "3foo", "17h0123456789abcdefE"),
    ] {
        let start = name[..8].to_string();
        // Half of what a main thread has: without optimization a level takes twelve kilobytes.
        let shown = on_stack(4 << 20, move || demangle(&name));
        assert!(!shown.is_empty() && shown.len() <= limits::MAX_NAME_BYTES, "{start}");
    }
}

#[test]
fn requests_of_a_debugger() {
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let said = Shared::default();
    let out = said.clone();
    on_small_stack(move || {
        let request =
            format!("{}{}\n{}{}\n", "[".repeat(DEPTH), "]".repeat(DEPTH), "{\"a\":".repeat(DEPTH), "}".repeat(DEPTH));
        wstate::server::serve(Box::new(Cursor::new(request.into_bytes())), Box::new(out));
    });
    let said = String::from_utf8(said.0.lock().unwrap().clone()).unwrap();
    assert!(said.lines().count() >= 1 && said.contains("error"), "{said}");
}

#[test]
fn machine_values() {
    let borsh = vec![8u8; DEPTH];
    let bincode: Vec<u8> = [8u8, 0, 0, 0].repeat(DEPTH);
    assert!(on_small_stack(move || decode_borsh::<MachineValue>(&borsh).is_err()));
    assert!(on_small_stack(move || decode_bincode::<MachineValue>(&bincode).is_err()));
}

#[test]
fn blocks_of_a_function() {
    let deep = format!("(module (func (export \"f\") {} {}))", "block ".repeat(DEPTH), "end ".repeat(DEPTH));
    let bytes = wat::parse_str(deep).unwrap();
    let printed = on_small_stack(move || {
        let module = WasmModule::parse("deep.wasm".to_string(), bytes).unwrap();
        module.printed().is_some()
    });
    assert!(printed);
}
