//! Tests that compare what is read with what the compiled Wasm declares and what the runtime lists, and tests with damaged
//! sections.

use super::*;
use crate::runtime::wasmtime::image::{INFO, Image, NAMES, SliceMemory};
use crate::runtime::wasmtime::testing;
use proptest::prelude::*;

/// The `.wasmtime.info` of an image, or one that was kept without the rest of its image: "43-default", "43-two".
fn section(name: &str) -> (Vec<u8>, Kind, Version) {
    if let Some(bytes) = testing::section(name) {
        let (major, mode) = name.split_once('-').unwrap();
        let kind = if mode == "two" { Kind::Component } else { Kind::Module };
        return (bytes, kind, Version(major.parse().unwrap()));
    }
    let bytes = testing::fixture(name);
    let memory = SliceMemory::new(0, &bytes);
    let image = Image::from_bytes(&bytes).unwrap();
    let version = image.engine(&memory).unwrap().version().unwrap();
    (image.contents(INFO, &memory).unwrap().to_vec(), image.header().kind, version)
}

fn info(name: &str) -> ImageInfo {
    let (bytes, kind, version) = section(name);
    ImageInfo::decode(&bytes, kind, version).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Checks `values.wat` in every mode and version.
#[test]
fn types_and_names_of_real_modules() {
    use WasmType::*;
    let all = testing::fixtures().into_iter().chain(testing::sections());
    let mut versions = std::collections::BTreeSet::new();
    for name in all.filter(|n| !n.contains("two")) {
        let info = info(&name);
        let [m] = &info.modules[..] else { panic!("{name}") };
        assert_eq!((m.index, m.name.as_deref()), (0, Some("values")), "{name}");
        let imports: Vec<_> = m.imports.iter().map(|i| (&*i.module, &*i.field, i.entity)).collect();
        assert_eq!(imports, [("env", "stop", Entity::Function(0)), ("env", "base", Entity::Global(0))], "{name}");
        let exports: Vec<_> = m.exports.iter().map(|e| (&*e.name, e.entity)).collect();
        let expected = [
            ("memory", Entity::Memory(0)),
            ("table", Entity::Table(0)),
            ("counter", Entity::Global(1)),
            ("leaf", Entity::Function(1)),
            ("middle", Entity::Function(2)),
            ("run", Entity::Function(3)),
        ];
        assert_eq!(exports, expected, "{name}");
        let imported = Counts { functions: 1, globals: 1, ..Counts::default() };
        assert_eq!(m.imported, imported, "{name}");
        let defined = Counts { functions: 4, tables: 1, memories: 1, globals: 3, tags: 0 };
        assert_eq!((m.defined(), m.owned_memories()), (defined, 1), "{name}");
        let limits = |min, max| Limits { min, max: Some(max) };
        let memory = MemoryType { memory64: false, limits: limits(1, 3), shared: false, page_size_log2: 16 };
        assert_eq!(m.memories, [memory], "{name}");
        let funcref = Ref { nullable: true, to: RefTo::Func };
        assert_eq!(m.tables, [TableType { table64: false, limits: limits(2, 4), element: funcref }], "{name}");
        let global = |ty, mutable| GlobalType { ty, mutable };
        let globals = [global(I32, false), global(I64, true), global(F64, false), global(V128, true)];
        assert_eq!(m.globals, globals, "{name}");
        let signature = |f| info.signature(0, f).unwrap();
        assert_eq!(*signature(0), FuncType { params: vec![I32], results: vec![] }, "{name}");
        assert_eq!(*signature(1), FuncType { params: vec![I32, I64], results: vec![I32] }, "{name}");
        assert_eq!(*signature(3), FuncType { params: vec![], results: vec![I32] }, "{name}");
        // In code for a debugger, every function can be referred to.
        let all = name.ends_with("guest-debug") || name.ends_with("inline");
        assert_eq!(
            m.functions.iter().skip(1).map(|f| f.func_ref.is_some()).collect::<Vec<_>>(),
            [true, true, true, all]
        );
        assert!(m.meta.code_section_offset > 0, "{name}");
        versions.insert(info.version);
    }
    assert!(Version::all().eq(versions.into_iter().rev()), "each version once");
}

/// The functions in `.wasmtime.info` are those of `.symtab`, and those that the runtime lists
/// (`Module::functions`).
#[test]
fn functions_are_those_of_the_symbols() {
    let mut compared = 0;
    for name in testing::fixtures() {
        let bytes = testing::fixture(&name);
        let memory = SliceMemory::new(0, &bytes);
        let image = Image::from_bytes(&bytes).unwrap();
        let names = image.contents(NAMES, &memory).unwrap_or_else(|_| Vec::new().into());
        let table = info(&name).function_table(&names);
        let symbols = image.symbols(&memory).unwrap();
        // Up to version 37 the section does not list calls of the runtime's routines.
        let old = info(&name).version < Version(38);
        let listed = |f: &Function| !(old && matches!(f.kind, FunctionKind::Builtin(_)));
        let places = |t: &FunctionTable| t.iter().filter(listed).map(|f| (f.start, f.len)).collect::<Vec<_>>();
        if name.ends_with("no-symbols") {
            assert!(symbols.is_empty(), "{name}");
        } else {
            assert_eq!(places(&table), places(&symbols), "{name}");
            for (ours, theirs) in table.iter().zip(symbols.iter().filter(listed)) {
                // Routines and component glue have names in symbols only.
                let named = |k: &FunctionKind| {
                    !matches!(k, FunctionKind::Builtin(_) | FunctionKind::Component(_) | FunctionKind::Other(_))
                };
                if named(&ours.kind) || named(&theirs.kind) {
                    assert_eq!(ours, theirs, "{name}");
                    compared += 1;
                }
            }
        }
        let Some(facts) = testing::facts(&name) else { continue };
        for line in facts.lines().filter_map(|l| l.strip_prefix("func ")) {
            let words: Vec<_> = line.split(' ').collect();
            let hex = |s: &str| u32::from_str_radix(s.trim_start_matches("0x"), 16).unwrap();
            let (start, len) = (hex(words[2]), hex(words[3]));
            let f = table.at(start).unwrap();
            let FunctionKind::Wasm { module: 0, function, name: n } = &f.kind else { panic!("{name}: {f:?}") };
            assert_eq!((f.start, f.len, function.to_string().as_str()), (start, len, words[0]), "{name}");
            assert_eq!(format!("{n:?}"), words[1], "{name}");
        }
    }
    assert!(compared > 10);
}

#[test]
fn components_have_several_modules() {
    let all = testing::fixtures().into_iter().chain(testing::sections());
    for name in all.filter(|n| n.contains("-two")) {
        let info = info(&name);
        let names: Vec<_> = info.modules.iter().map(|m| m.name.as_deref()).collect();
        assert_eq!(names, [Some("a"), Some("b")], "{name}");
        assert_eq!(info.modules.iter().map(|m| m.index).collect::<Vec<_>>(), [0, 1], "{name}");
        assert_eq!(info.modules[1].globals[0].ty, WasmType::I64, "{name}");
        let both = FuncType { params: vec![WasmType::I32], results: vec![WasmType::I32] };
        assert_eq!((info.signature(0, 1), info.signature(1, 1)), (Some(&both), Some(&both)), "{name}");
        let wasm = |module| FuncKey { kind: FuncKind::Wasm, namespace: module, index: 0 };
        for module in [0, 1] {
            let f = info.functions.iter().find(|f| f.key == wasm(module)).unwrap();
            assert!(f.body.is_some() && f.len > 0, "{name}");
        }
    }
}

#[test]
fn a_wrong_or_unknown_version() {
    let modules = testing::sections().into_iter().filter(|n| n.ends_with("-default"));
    for name in modules.chain(["48-default".to_string(), "36-default".into()]) {
        let (bytes, kind, version) = section(&name);
        // The first version of each run of versions that differ only in components, or in what this module does
        // not have.
        let run = |v: Version| [36, 38, 41, 43, 46].iter().rposition(|first| *first <= v.0);
        for v in Version::all() {
            if ImageInfo::decode(&bytes, kind, v).is_ok() {
                assert_eq!(run(v), run(version), "{name} as {v}");
            } else {
                assert_ne!(v, version, "{name}");
            }
        }
        for v in [Version(35), Version(51)] {
            assert_eq!(ImageInfo::decode(&bytes, kind, v), Err(InfoError::UnknownVersion(v)));
        }
        let guessed = ImageInfo::guess(&bytes, kind).unwrap();
        let known = ImageInfo::decode(&bytes, kind, version).unwrap();
        assert_eq!((guessed.modules, guessed.functions), (known.modules, known.functions), "{name}");
        assert_eq!(ImageInfo::guess(&bytes[..bytes.len() - 1], kind), Err(InfoError::UnknownLayout));
    }
}

#[test]
fn keys_of_functions() {
    let three = |n| FuncKey::from_parts(n, 5, FuncKeyBits::Three).map(|k| (k.kind, k.namespace, k.index));
    let four = |n| FuncKey::from_parts(n, 5, FuncKeyBits::Four).map(|k| (k.kind, k.namespace, k.index));
    assert_eq!((three(2), four(2)), (Some((FuncKind::Wasm, 2, 5)), Some((FuncKind::Wasm, 2, 5))));
    assert_eq!(three(0b001 << 29 | 7), Some((FuncKind::ArrayToWasm, 7, 5)));
    assert_eq!(four(0b0001 << 28 | 7), Some((FuncKind::ArrayToWasm, 7, 5)));
    assert_eq!(three(0b100 << 29), Some((FuncKind::PulleyHostCall, 0, 5)));
    assert_eq!(four(0b0100 << 28), Some((FuncKind::PatchableToBuiltin, 0, 5)));
    assert_eq!((four(0b1001 << 28 | 1), four(0b1010 << 28)), (Some((FuncKind::ModuleStartup, 1, 5)), None));
}

fn sections() -> impl Strategy<Value = (Vec<u8>, Kind, Version)> {
    let all = testing::fixtures().into_iter().chain(testing::sections()).collect::<Vec<_>>();
    prop::sample::select(all).prop_map(|n| section(&n))
}

proptest! {
    #[test]
    fn damaged_sections((mut bytes, kind, version) in sections(), hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut: prop::sample::Index) {
        for (at, byte) in &hits {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
            if let Ok(info) = ImageInfo::decode(bytes, kind, version) {
                let table = info.function_table(&[b'x'; 64]);
                prop_assert!(table.len() <= info.functions.len());
            }
        }
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), component: bool) {
        let kind = if component { Kind::Component } else { Kind::Module };
        for version in Version::all() {
            let _ = ImageInfo::decode(&bytes, kind, version);
        }
    }
}
