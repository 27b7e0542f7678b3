//! Tests with instances that are written word by word where [`VmLayout`] says, for the modules that the fixtures
//! describe. `offsets.rs` shows that the layout is the runtime's own.

use super::super::image::{FunctionKind, Image, NAMES, SliceMemory};
use super::super::testing;
use super::*;
use crate::runtime::wasmtime::image::info::{Export, FuncType, GlobalType, Import, Limits, MemoryType, ModuleFunction};
use crate::wasm::{ExternKind, MemoryDecl};
use proptest::prelude::*;

const ARENA: u64 = 0x5000_0000;
const STORE: u64 = ARENA;
const ROUTINES: u64 = ARENA + 0x100;
const TYPES: u64 = ARENA + 0x180;
const HOST: u64 = ARENA + 0x200;
const GLOBAL: u64 = ARENA + 0x280;
const TABLE: u64 = ARENA + 0x300;
const ELSEWHERE: u64 = ARENA + 0x380;
const FIRST: u64 = ARENA + 0x400;
const SECOND: u64 = ARENA + 0x800;
const DUMMY: u64 = ARENA + 0xc00;
const ARENA_BYTES: usize = 0x2000;
const TEXT: u64 = 0x6000_0000;
const HOST_CODE: u64 = 0x7000_0000;
const LINEAR: u64 = 0x8000_0000;
const PAGE: u64 = 0x1_0000;

/// A process in which all data is in one place.
#[derive(Clone)]
struct World {
    bytes: Vec<u8>,
    mappings: Vec<Mapping>,
}

impl World {
    fn new() -> World {
        let mapping = |start, bytes, write, execute| Mapping {
            start,
            end: start + bytes,
            read: true,
            write,
            execute,
            offset: 0,
            path: None,
        };
        let mappings = vec![
            mapping(ARENA, ARENA_BYTES as u64, true, false),
            mapping(TEXT, 0x1_0000, false, true),
            mapping(HOST_CODE, 0x1000, false, true),
            // A memory of two pages, in two mappings.
            mapping(LINEAR, PAGE, true, false),
            mapping(LINEAR + PAGE, PAGE, true, false),
        ];
        // Memory as malloc may leave it has no zeros.
        let mut world = World { bytes: vec![0xa5; ARENA_BYTES], mappings };
        world.words(ROUTINES, &[HOST_CODE + 0x10; 4]);
        world.words(STORE, &[0; 20]);
        // The context of a host function has the magic and then a `VMFuncRef`.
        world.put(HOST, b"ACHF");
        world.words(HOST + 8, &[HOST_CODE + 0x20, 0, 1, HOST]);
        world.words(GLOBAL, &[41, 0]);
        for i in 0..20 {
            world.put(TYPES + i * 4, &(100 + i as u32).to_le_bytes());
        }
        world.header(DUMMY, 4);
        world
    }

    fn put(&mut self, address: u64, bytes: &[u8]) {
        let at = (address - ARENA) as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn words(&mut self, address: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            self.put(address + i as u64 * 8, &word.to_le_bytes());
        }
    }

    fn header(&mut self, vmctx: u64, types: u64) {
        self.put(vmctx, b"core");
        self.words(vmctx + 8, &[STORE, ROUTINES, 0, 0, types]);
    }

    fn import(&mut self, of: &Described<'_>, vmctx: u64, wasm: u64, array: u64, callee: u64) {
        let (fields, at) = (of.function_import, vmctx + of.layout.imported_functions.at(0).unwrap());
        self.words(at + fields.wasm_call, &[wasm]);
        self.words(at + fields.array_call, &[array]);
        self.words(at + fields.vmctx, &[callee]);
    }

    fn memory(&mut self, of: &Described<'_>, vmctx: u64, pages: u64) {
        let definition = vmctx + of.layout.owned_memories.at(0).unwrap();
        self.words(vmctx + of.layout.memories.at(0).unwrap(), &[definition]);
        self.words(definition, &[LINEAR, pages * PAGE]);
    }

    /// Writes a reference to the module's own function, as the runtime does.
    fn refer(&mut self, of: &Described<'_>, vmctx: u64, function: u32) {
        let f = of.module.functions[function as usize];
        let own = function - of.module.imported.functions;
        let compiled = of.compiled(&[own]);
        let code = |kind| of.text.start + compiled[&FuncKey { kind, namespace: of.number, index: own }];
        let at = vmctx + of.layout.func_refs.at(f.func_ref.unwrap()).unwrap();
        let ty = 100 + u64::from(f.signature.unwrap());
        self.words(at, &[code(FuncKind::ArrayToWasm), code(FuncKind::Wasm), 0xdead_0000_0000 | ty, vmctx]);
        self.words(at + 16, &[ty]);
    }

    /// A world with an instance of `values.wat` at `FIRST`, whose imports come from the host.
    fn values(of: &Described<'_>) -> World {
        let mut w = World::new();
        w.header(FIRST, TYPES);
        w.memory(of, FIRST, 2);
        w.import(of, FIRST, TEXT + 0x40, HOST_CODE + 0x20, HOST);
        w.words(FIRST + of.layout.imported_globals.at(0).unwrap(), &[GLOBAL, 0, 0]);
        w.words(FIRST + of.layout.tables.at(0).unwrap(), &[TABLE, 3]);
        let global = |i| FIRST + of.layout.globals.at(i).unwrap();
        w.words(global(0), &[8, 0x5a5a]);
        w.words(global(1), &[3.25f64.to_bits(), 0]);
        w.words(global(2), &[1, 2]);
        w.refer(of, FIRST, 3);
        for i in 0..of.module.runtime_data.len() as u32 {
            let (begin, end) = of.module.runtime_data[i as usize];
            w.words(FIRST + of.layout.data_bases.at(i).unwrap(), &[TEXT + 0x8000 + u64::from(begin)]);
            w.put(FIRST + of.layout.data_lengths.at(i).unwrap(), &(end - begin).to_le_bytes());
        }
        w
    }

    fn memory_of(&self) -> SliceMemory<'_> {
        SliceMemory::new(ARENA, &self.bytes)
    }

    fn validate(&self, of: &Described<'_>, vmctx: u64) -> Result<Checked, String> {
        of.validate(vmctx, &self.mappings, &self.memory_of()).map_err(|why| why.to_string())
    }
}

fn text() -> Range<u64> {
    TEXT..TEXT + 0x1_0000
}

fn all(test: impl Fn(&Described<'_>)) {
    for major in Version::OLDEST.0..=Version::NEWEST.0 {
        let info = testing::info(&format!("{major}-default"));
        test(&Described::new(&info, 0, Version(major), text()).unwrap());
    }
}

#[test]
fn an_instance_of_each_version() {
    all(|of| {
        let w = World::values(of);
        let version = of.version();
        let checked = w.validate(of, FIRST).unwrap_or_else(|e| panic!("{version}: {e}"));
        assert!(checked.tied, "{version}");
        let types = of.info.types.len();
        let mut expected = vec![
            format!("context of a store at {STORE:#x}"),
            format!("numbers of the module's {types} types"),
            "1 imported function with code and context".into(),
            "1 memory in mapped memory, sizes within limits".into(),
            "1 table in mapped memory, sizes within limits".into(),
            "1 imported global readable".into(),
            "1 reference to a function with the module's own code and type".into(),
        ];
        if !of.module.runtime_data.is_empty() {
            expected.push("1 data segment of the module's lengths".into());
        }
        assert_eq!(checked.facts, expected, "{version}");

        let m = w.memory_of();
        assert_eq!(of.linear_memory(FIRST, 0, &m), Ok((LINEAR, 2 * PAGE)), "{version}");
        assert_eq!(of.table(FIRST, 0, &m), Ok(3), "{version}");
        let known = |index, ty, bits, address| {
            let value = Value { ty: Some(ty), slot: Slot::Known { bits, place: Place::Address(address) } };
            assert_eq!(of.global(FIRST, index, &m), Ok(value), "{version}");
        };
        let own = |i| FIRST + of.layout().globals.at(i).unwrap();
        known(0, ValType::I32, 41, GLOBAL);
        known(1, ValType::I64, 8, own(0));
        known(2, ValType::F64, 3.25f64.to_bits().into(), own(1));
        known(3, ValType::V128, 1 | 2 << 64, own(2));
        let why = |text: &str| Err(Why::other(text));
        assert_eq!(of.global(FIRST, 4, &m), why("the module has 4 globals"));
        assert_eq!(of.linear_memory(FIRST, 1, &m).unwrap_err().to_string(), "the module has one memory");
        assert_eq!(of.table(FIRST, 9, &m).unwrap_err().to_string(), "the module has one table");
        assert_eq!(of.global(HOST, 0, &m).unwrap_err().to_string(), format!("there is no instance at {HOST:#x}"));
        for odd in [FIRST + 8, 0, u64::MAX - 15] {
            assert_eq!(of.table(odd, 0, &m).unwrap_err().to_string(), format!("no instance can be at {odd:#x}"));
        }
        let host = Neighbour { import: Entity::Function(0), context: Context::HostFunction, address: HOST };
        assert_eq!(of.imports_of(FIRST, &m), Ok(vec![host]), "{version}");
    });
}

#[test]
fn the_stores_context() {
    for (major, words) in
        [(36, [10, 11, 12, 13, 14, 15]), (40, [10, 11, 12, 13, 14, 15]), (48, [9, 10, 11, 12, 13, 14])]
    {
        let info = testing::info(&format!("{major}-default"));
        let of = Described::new(&info, 0, Version(major), text()).unwrap();
        let mut w = World::values(&of);
        // These are the words from +0x28 on. Before version 43 the first of them is the frame pointer at the last
        // exit.
        w.words(STORE + 0x28, &words);
        let s = of.store(FIRST, &w.memory_of()).unwrap();
        let all = (s.last_exit_fp, s.last_exit_pc, s.last_entry_sp, s.last_entry_fp, s.last_entry_trap_handler);
        let expected = match major {
            36 => (10, 11, None, 12, None),
            _ => (10, 11, Some(12), 13, Some(14)),
        };
        assert_eq!((all, s.address, s.exit_fp_is_trampolines), (expected, STORE, major > 36), "{major}");
    }
}

#[test]
fn what_the_store_makes_for_itself_is_rejected() {
    all(|of| {
        let w = World::values(of);
        let e = w.validate(of, DUMMY).unwrap_err();
        assert!(e.contains("like the instance that each store makes for itself"), "{e}");
        // Without this only mark it is rejected as well: the memory behind it is nothing that the module declares.
        let mut w = w;
        w.header(DUMMY, TYPES);
        let e = w.validate(of, DUMMY).unwrap_err();
        assert!(e.contains("imported function 0 has no code"), "{e}");
    });
}

#[test]
fn each_contradiction_is_one() {
    all(|of| {
        let good = World::values(of);
        let l = of.layout;
        let bad = |change: &dyn Fn(&mut World), expected: &str| {
            let mut w = good.clone();
            change(&mut w);
            let e = w.validate(of, FIRST).unwrap_err();
            assert!(e.contains(expected), "{}: {e}", of.version());
        };
        let definition = FIRST + l.owned_memories.at(0).unwrap();
        let global = FIRST + l.imported_globals.at(0).unwrap();
        let table = FIRST + l.tables.at(0).unwrap();
        bad(&|w| w.put(FIRST, b"comp"), "there is no instance");
        bad(&|w| w.words(FIRST + 8, &[0]), "belongs to no store");
        bad(&|w| w.words(FIRST + 8, &[TEXT]), "no memory can be read at");
        bad(&|w| w.mappings[0].write = false, "not in writable memory");
        bad(&|w| w.words(ROUTINES, &[GLOBAL]), "is not code");
        bad(&|w| w.put(TYPES, &[0xff; 4]), "are not the numbers of its types");
        bad(&|w| w.words(FIRST + 40, &[0x1000]), "no memory can be read at 0x1000");
        bad(&|w| w.import(of, FIRST, GLOBAL, HOST_CODE + 0x20, HOST), "has no code at");
        bad(&|w| w.import(of, FIRST, TEXT, HOST_CODE + 0x28, HOST), "that leads to another one");
        bad(&|w| w.import(of, FIRST, TEXT, HOST_CODE + 0x20, GLOBAL), "where there is no context");
        bad(&|w| w.words(HOST + 32, &[HOST + 8]), "that leads to another one");
        bad(&|w| w.words(FIRST + l.memories.at(0).unwrap(), &[STORE]), "does not lead into the instance");
        bad(&|w| w.words(definition, &[0]), "no memory has such an address");
        bad(&|w| w.words(definition, &[u64::MAX - PAGE, 2 * PAGE]), "no memory has such an address");
        bad(&|w| w.words(definition + 8, &[PAGE + 1]), "not a whole number of pages");
        for size in [0, 4 * PAGE] {
            bad(&|w| w.words(definition + 8, &[size]), "not within the declared limits");
        }
        bad(&|w| w.words(definition + 8, &[3 * PAGE]), "is not mapped");
        bad(&|w| w.words(table, &[0]), "its address is null");
        for elements in [1, 5, u64::MAX] {
            bad(&|w| w.words(table + 8, &[elements]), "not within the declared limits");
        }
        bad(&|w| w.words(table, &[ARENA + ARENA_BYTES as u64 - 8]), "table 0 of 3 elements");
        bad(&|w| w.words(global, &[GLOBAL + 8]), "no global can be at");
        bad(&|w| w.words(global, &[GLOBAL, TABLE]), "where there is no context");
        let func_ref = FIRST + l.func_refs.at(of.module.functions[3].func_ref.unwrap()).unwrap();
        for field in [offsets::FUNC_REF_ARRAY_CALL, offsets::FUNC_REF_WASM_CALL, offsets::FUNC_REF_TYPE] {
            bad(&|w| w.words(func_ref + field, &[TEXT + 1]), "lead to other code");
        }
        if let Some(at) = l.data_lengths.at(0) {
            bad(&|w| w.put(FIRST + at, &[9, 9, 9, 9]), "its data segment 0 is that of another module");
        }
    });
}

#[test]
fn no_function_was_referred_to_yet() {
    all(|of| {
        let mut w = World::values(of);
        for i in 0..of.layout.func_refs.count {
            w.words(FIRST + of.layout.func_refs.at(i).unwrap(), &[0xa5a5; 4]);
        }
        if let Some(at) = of.layout.data_lengths.at(0) {
            w.put(FIRST + at, &[0; 4]);
        }
        let checked = w.validate(of, FIRST).unwrap();
        assert!(!checked.tied && checked.facts.len() == 6, "{checked:?}");
        // A reference that a freed instance left there does not matter beside a good one.
        w.refer(of, FIRST, 1);
        let stale = of.layout.func_refs.at(of.module.functions[2].func_ref.unwrap()).unwrap();
        w.words(FIRST + stale, &[TEXT + 5, TEXT + 6, 7, FIRST]);
        assert!(w.validate(of, FIRST).unwrap().tied);
    });
}

/// The modules of `two.wat`: `a` has a memory and calls the host through the component, `b` calls `a`.
#[test]
fn two_modules_of_one_component() {
    for major in Version::OLDEST.0..=Version::NEWEST.0 {
        let info = testing::info(&format!("{major}-two"));
        let [a, b] = [0, 1].map(|n| Described::new(&info, n, Version(major), text()).unwrap());
        let mut w = World::new();
        w.put(ELSEWHERE, b"comp");
        w.header(FIRST, TYPES);
        w.memory(&a, FIRST, 1);
        w.import(&a, FIRST, TEXT + 0x100, TEXT + 0x200, ELSEWHERE);
        w.refer(&a, FIRST, 1);
        w.header(SECOND, TYPES);
        w.import(&b, SECOND, TEXT + 0x10, TEXT + 0x20, FIRST);
        w.words(SECOND + b.layout.globals.at(0).unwrap(), &[9, 0]);
        w.refer(&b, SECOND, 1);
        let m = w.memory_of();
        let imported = |context, address| Ok(vec![Neighbour { import: Entity::Function(0), context, address }]);
        assert_eq!(a.imports_of(FIRST, &m), imported(Context::Component, ELSEWHERE));
        assert_eq!(b.imports_of(SECOND, &m), imported(Context::Instance, FIRST));
        assert!(w.validate(&a, FIRST).unwrap().tied && w.validate(&b, SECOND).unwrap().tied, "{major}");
        assert!(w.validate(&a, SECOND).is_err() && w.validate(&b, FIRST).is_err(), "{major}");
        // Instances of two stores do not import from each other.
        w.words(SECOND + 8, &[STORE + 8]);
        assert!(w.validate(&b, SECOND).unwrap_err().contains("which is of another store"), "{major}");
    }
}

/// The module has segments of 5, 3 and 4 bytes, of which the second was dropped. From version 46 on the instance
/// points to them.
#[test]
fn data_segments() {
    let m = ModuleInfo { runtime_data: vec![(0, 5), (5, 8), (8, 12)], tags: 1, ..module() };
    let info = image(m, vec![None]);
    for major in [45, 46, 47, 48, 50] {
        let of = Described::new(&info, 0, Version(major), text()).unwrap();
        let mut w = World::new();
        w.header(FIRST, TYPES);
        if let (Some(bases), Some(lengths)) = (of.layout.data_bases.at(0), of.layout.data_lengths.at(0)) {
            w.words(FIRST + bases, &[TEXT, 0, TEXT + 8]);
            for (i, length) in [5u32, 0, 4].into_iter().enumerate() {
                w.put(FIRST + lengths + i as u64 * 4, &length.to_le_bytes());
            }
        }
        let checked = w.validate(&of, FIRST).unwrap();
        let fact = "2 data segments of the module's lengths".to_string();
        assert_eq!((checked.tied, checked.facts.contains(&fact)), (major > 45, major > 45), "{major}");
        if major > 45 {
            w.words(FIRST + of.layout.data_bases.at(2).unwrap(), &[TEXT + 9]);
            assert!(
                w.validate(&of, FIRST).unwrap_err().contains("its data segment 2 is that of another module"),
                "{major}"
            );
        }
    }
}

fn module() -> ModuleInfo {
    ModuleInfo {
        index: 0,
        name: None,
        imports: vec![],
        exports: vec![],
        start: None,
        has_startup: false,
        imported: Default::default(),
        needs_gc_heap: false,
        escaped_functions: 0,
        runtime_data: vec![],
        functions: vec![],
        tables: vec![],
        memories: vec![],
        globals: vec![],
        tags: 0,
        function_names: vec![],
        meta: Default::default(),
    }
}

fn image(module: ModuleInfo, types: Vec<Option<FuncType>>) -> ImageInfo {
    ImageInfo { version: Version(48), modules: vec![module], types, functions: vec![] }
}

#[test]
fn what_cannot_be_told() {
    let w = World::new();
    let info = image(module(), vec![]);
    let of = Described::new(&info, 0, Version(48), text()).unwrap();
    assert!(w.validate(&of, DUMMY).unwrap_err().contains("declares nothing by which"));
    // `Memory::new` of the host makes such an instance.
    let memory =
        MemoryType { memory64: false, limits: Limits { min: 1, max: None }, shared: false, page_size_log2: 16 };
    let info = image(ModuleInfo { memories: vec![memory], ..module() }, vec![]);
    let of = Described::new(&info, 0, Version(48), text()).unwrap();
    let mut w = w;
    w.memory(&of, DUMMY, 1);
    assert!(w.validate(&of, DUMMY).unwrap_err().contains("cannot be told from what the host makes"));

    for unknown in [35, 51] {
        let why = Described::new(&info, 0, Version(unknown), text()).unwrap_err().to_string();
        assert!(why.contains("frames, names and positions do not depend on it"), "{why}");
    }
    assert_eq!(Described::new(&info, 1, Version(48), text()).unwrap_err().to_string(), "there is no such module");
}

#[test]
fn shared_memories_small_pages_and_references() {
    let memory = |shared, page_size_log2| MemoryType {
        memory64: false,
        limits: Limits { min: 0, max: Some(5) },
        shared,
        page_size_log2,
    };
    let reference = |nullable, to| GlobalType { ty: WasmType::Ref { nullable, to }, mutable: true };
    let info = image(
        ModuleInfo {
            memories: vec![memory(true, 16), memory(false, 0), memory(false, 200)],
            globals: vec![
                reference(true, RefTo::Func),
                reference(false, RefTo::Extern),
                reference(false, RefTo::Any),
                reference(true, RefTo::Exn),
            ],
            ..module()
        },
        vec![],
    );
    let of = Described::new(&info, 0, Version(44), text()).unwrap();
    let mut w = World::new();
    w.header(FIRST, 4);
    let own = |i| FIRST + of.layout.owned_memories.at(i).unwrap();
    w.words(FIRST + of.layout.memories.begin, &[ELSEWHERE, own(0), own(1)]);
    w.words(ELSEWHERE, &[LINEAR, PAGE]);
    w.words(own(0), &[LINEAR + 3, 5, LINEAR, 0]);
    let global = |i| FIRST + of.layout.globals.at(i).unwrap();
    w.words(global(0), &[GLOBAL, 0]);
    w.words(global(1), &[0xffff_ffff_0000_0000, 0]);
    w.words(global(2), &[0xffff_ffff_0000_0007, 0]);
    w.words(global(3), &[0xffff_ffff_0000_0000, 0]);
    let m = w.memory_of();
    assert_eq!(of.linear_memory(FIRST, 0, &m), Ok((LINEAR, PAGE)));
    assert_eq!(of.linear_memory(FIRST, 1, &m), Ok((LINEAR + 3, 5)));
    assert!(of.linear_memory(FIRST, 2, &m).unwrap_err().to_string().contains("no page has such a size"));
    let bits = |i| match of.global(FIRST, i, &m).unwrap().slot {
        Slot::Known { bits, .. } => Ok(bits),
        Slot::Unknown(why) => Err(why.to_string()),
    };
    // A reference into the GC heap has 32 bits.
    assert_eq!((bits(0), bits(2), bits(3)), (Ok(GLOBAL.into()), Ok(7), Ok(0)));
    assert!(bits(1).unwrap_err().contains("not initialized yet"));
    let types: Vec<_> = (0..4).map(|i| of.global(FIRST, i, &m).unwrap().ty.unwrap()).collect();
    assert_eq!(types, [ValType::FuncRef, ValType::ExternRef, ValType::Ref, ValType::Ref]);
    let maxima: Vec<_> = of.declared(&FunctionTable::default(), &[]).memories.unwrap();
    assert_eq!(maxima.iter().map(|m| m.maximum_in_wasm_pages()).collect::<Vec<_>>(), [Some(5), Some(1), None]);
}

#[test]
fn what_real_images_declare() {
    for name in ["36-default", "48-default", "48-no-symbols", "48-guest-debug"] {
        let bytes = testing::fixture(name);
        let memory = SliceMemory::new(0, &bytes);
        let image = Image::from_bytes(&bytes).unwrap();
        let info = testing::info(name);
        let symbols = image.symbols(&memory).unwrap();
        let names = image.contents(NAMES, &memory).unwrap();
        let d = declared(&info, 0, image.text(), &symbols, &names);
        let memories = [MemoryDecl { minimum: 1, maximum: Some(3), ..MemoryDecl::default() }];
        assert_eq!((&d.memories.unwrap()[..], d.tables), (&memories[..], Ok(1)), "{name}");
        let globals: Vec<_> = d.globals.unwrap().iter().map(|g| (g.ty.unwrap(), g.mutable.unwrap())).collect();
        let expected = [(ValType::I32, false), (ValType::I64, true), (ValType::F64, false), (ValType::V128, true)];
        assert_eq!(globals, expected, "{name}");
        let exports = d.exports.unwrap();
        assert_eq!(exports[3], GuestExport { name: "leaf".into(), kind: ExternKind::Function, index: 1 });
        let functions = d.functions.unwrap();
        let of: Vec<_> = functions.iter().map(|f| f.name.as_ref().map(|(n, from)| (n.as_str(), *from))).collect();
        let section = |n| Some((n, NameSource::NameSection));
        let expected = [
            section("stop"),
            section("leaf"),
            section("middle"),
            Some(("run", NameSource::Export)),
            section("indirect"),
        ];
        assert_eq!(of, expected, "{name}");
        assert_eq!(functions[1].signature, Some((vec![ValType::I32, ValType::I64], vec![ValType::I32])));
        assert_eq!((functions[0].imported, functions[0].code), (true, None));
        // The functions are where the symbols have them.
        for (index, f) in functions.iter().enumerate().skip(1) {
            let (begin, end) = f.code.unwrap();
            let symbol = symbols.at(image.text_offset(begin).unwrap());
            if !symbols.is_empty() {
                let symbol = symbol.unwrap();
                let is =
                    |k: &FunctionKind| matches!(k, FunctionKind::Wasm { function, .. } if *function == index as u32);
                assert!(is(&symbol.kind) && u64::from(symbol.len) == end - begin, "{name}: {symbol:?}");
            }
        }
        // The same without the section of names.
        let d = declared(&info, 0, image.text(), &symbols, &[]);
        let of: Vec<_> =
            d.functions.unwrap().into_iter().map(|f| f.name.unwrap_or((String::new(), NameSource::Symbol))).collect();
        assert_eq!(of[0], ("env.stop".into(), NameSource::Import), "{name}");
        let leaf = if symbols.is_empty() { NameSource::Export } else { NameSource::Symbol };
        assert_eq!(of[1], ("leaf".into(), leaf), "{name}");
    }
    let info = testing::info("48-default");
    assert!(declared(&info, 1, text(), &FunctionTable::default(), &[]).functions.is_err());
}

/// A small section can name one long string and one long signature many times.
#[test]
fn repeated_names_and_signatures_are_bounded() {
    let long: std::sync::Arc<str> = "x".repeat(1 << 20).into();
    let import = |i| Import { module: long.clone(), field: long.clone(), entity: Entity::Function(i) };
    let export = Export { name: long.clone(), entity: Entity::Function(0) };
    let function = ModuleFunction { signature: Some(0), func_ref: None };
    let m = ModuleInfo {
        imports: (0..200).map(import).collect(),
        exports: vec![export; 300],
        functions: vec![function; 200],
        imported: crate::runtime::wasmtime::image::info::Counts { functions: 200, ..Default::default() },
        ..module()
    };
    let ty = FuncType { params: vec![WasmType::I32; 1 << 20], results: vec![] };
    let d = declared(&image(m, vec![Some(ty)]), 0, text(), &FunctionTable::default(), &[]);
    assert!(d.exports.unwrap_err().to_string().contains("names of the exports"));
    let functions = d.functions.unwrap();
    assert_eq!(functions.iter().filter(|f| f.signature.is_some()).count(), MAX_SIGNATURE_TYPES >> 20);
    // The first function is also exported, and so takes one name and not two.
    let names = MAX_NAME_SECTION_BYTES >> 20;
    assert_eq!(functions.iter().filter(|f| f.name.is_some()).count(), 1 + (names - 1) / 2);
    assert_eq!(items(Array { begin: 0, stride: 8, count: u32::MAX }).len() as u32, MAX_INSTANCE_ITEMS);
}

// Words to damage an instance with. No word may make a reader panic, whatever it is.
fn hostile_words() -> impl Strategy<Value = Vec<(usize, u64)>> {
    let interesting = prop::sample::select(vec![
        0,
        4,
        8,
        u64::MAX,
        u64::MAX - 7,
        u64::MAX - 15,
        1 << 63,
        FIRST,
        SECOND,
        STORE,
        TYPES,
        HOST,
        GLOBAL,
        TEXT,
        LINEAR,
        ARENA + ARENA_BYTES as u64 - 4,
    ]);
    let word = prop_oneof![interesting, any::<u64>()];
    prop::collection::vec((0..ARENA_BYTES / 8, word), 0..12)
}

fn read_all(of: &Described<'_>, vmctx: u64, mappings: &[Mapping], memory: &dyn Memory) {
    let _ = of.validate(vmctx, mappings, memory);
    let _ = of.store(vmctx, memory);
    let _ = of.imports_of(vmctx, memory);
    for index in [0, 1, 2, 3, 4, u32::MAX] {
        let _ = of.linear_memory(vmctx, index, memory);
        let _ = of.global(vmctx, index, memory);
        let _ = of.table(vmctx, index, memory);
    }
}

proptest! {
    #[test]
    fn damaged_instances(changes in hostile_words(), major in prop::sample::select(vec![36u32, 40, 44, 45, 48]), cut in 0..ARENA_BYTES) {
        let info = testing::info(&format!("{major}-default"));
        let of = Described::new(&info, 0, Version(major), text()).unwrap();
        let mut w = World::values(&of);
        for (at, word) in changes {
            w.words(ARENA + at as u64 * 8, &[word]);
        }
        for bytes in [&w.bytes[..], &w.bytes[..cut]] {
            read_all(&of, FIRST, &w.mappings, &SliceMemory::new(ARENA, bytes));
        }
    }

    #[test]
    fn any_memory(bytes in prop::collection::vec(any::<u8>(), 0..600), base in prop_oneof![Just(ARENA), Just(u64::MAX - 0x3ff), Just(!15)], major in 36u32..=50, offset in 0u64..4) {
        let info = testing::info(&format!("{major}-default"));
        let of = Described::new(&info, 0, Version(major), text()).unwrap();
        let mut bytes = bytes;
        if let Some(magic) = bytes.get_mut(..4) {
            magic.copy_from_slice(b"core");
        }
        let w = World::new();
        let vmctx = base.saturating_add(offset * 16);
        read_all(&of, vmctx, &w.mappings, &SliceMemory::new(base, &bytes));
    }
}
