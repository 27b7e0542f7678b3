//! Tests of [`NativeSymbolizer`].

use object::{Object, ObjectSymbol};

use super::symbols::Ranges;
use super::*;
use crate::process::objects::ObjectData;
use crate::process::unpack::section_bytes;
use crate::unwind::testing::{Section, elf, has_tool, here, object, own_objects};
use std::process::Command;

const BIAS: u64 = 0x7000_0000_0000;

/// A symbol table of `(name, value, size, type, binding)` entries, and the string table with their names.
fn symtab(symbols: &[(&str, u64, u64, u8, u8)]) -> (Vec<u8>, Vec<u8>) {
    let (mut table, mut names) = (vec![0u8; 24], vec![0u8]);
    for (name, value, size, kind, binding) in symbols {
        table.extend((names.len() as u32).to_le_bytes());
        table.extend([binding << 4 | kind, 0]);
        table.extend(1u16.to_le_bytes());
        table.extend(value.to_le_bytes());
        table.extend(size.to_le_bytes());
        names.extend(name.bytes().chain([0]));
    }
    (table, names)
}

fn with_symbols(symbols: &[(&str, u64, u64, u8, u8)]) -> Vec<u8> {
    let (table, names) = symtab(symbols);
    elf(&[
        Section { name: ".text", flags: 6, address: 0x1000, bytes: &[0x90; 0x1000] },
        Section { name: ".symtab", flags: 0, address: 0, bytes: &table },
        Section { name: ".strtab", flags: 0, address: 0, bytes: &names },
    ])
}

fn name_at(objects: &Objects, svma: u64) -> Option<(String, u64)> {
    let found = NativeSymbolizer::new(objects).symbolize(CodeAddress::Exact(BIAS + svma));
    let [only] = found.as_slice() else {
        assert!(found.is_empty());
        return None;
    };
    Some((only.name.clone()?, only.offset?))
}

const FUNC: u8 = 2;
const NOTYPE: u8 = 0;

#[test]
fn names_without_a_path_are_known_in_the_symbol() {
    for (name, symbol) in [
        ("do_call<core::panic::A<fn() -> u8>, ()>", "std::panicking::catch_unwind::do_call"),
        ("do_call<F, R>", "std::panicking::catch_unwind::do_call::<F, fn() -> R>"),
        ("{closure#0}<()>", "std::rt::lang_start::{{closure}}"),
        ("{closure#1}", "std::rt::lang_start::{closure#1}"),
        ("call_once", "<alloc::boxed::Box<F> as core::ops::function::FnOnce<()>>::call_once"),
    ] {
        assert!(is_last_part(name, symbol), "{name} {symbol}");
    }
    // Identical functions share their code, so the symbol may be that of another function.
    for (name, symbol) in [("do_call<F>", "a::do_other"), ("<F>", "a::b"), ("b", "a::c::<b>"), ("", "a")] {
        assert!(!is_last_part(name, symbol), "{name} {symbol}");
    }
}

#[test]
fn ranges_contain_what_one_of_them_does() {
    let ranges = [(10, 20), (15, 17), (40, 50), (40, 60), (70, 70), (5, 12), (90, 80)];
    let prepared = Ranges::of(&ranges);
    for address in 0..100 {
        let one_does = ranges.iter().any(|&(start, end)| start <= address && address < end);
        assert_eq!(prepared.contain(address), one_does, "{address}");
    }
    assert!(!Ranges::of(&[]).contain(0));
}

#[test]
fn the_first_entry_of_a_table_is_no_symbol_whatever_is_in_it() {
    let (mut table, names) = symtab(&[("label", 0x1100, 0, NOTYPE, 0)]);
    // A function in `.text` at 0x1110.
    table[4] = FUNC;
    table[6] = 1;
    table[8..16].copy_from_slice(&0x1110u64.to_le_bytes());
    let file = elf(&[
        Section { name: ".text", flags: 6, address: 0x1000, bytes: &[0x90; 0x1000] },
        Section { name: ".symtab", flags: 0, address: 0, bytes: &table },
        Section { name: ".strtab", flags: 0, address: 0, bytes: &names },
    ]);
    let objects = Objects::from_parts(vec![object("/lib/a.so", BIAS, (BIAS, BIAS + 0x10000), file)]);
    assert_eq!(name_at(&objects, 0x1120), Some(("label".to_string(), 0x20)));
}

#[test]
fn symbols_cover_their_size_and_labels_reach_to_the_next() {
    let file = with_symbols(&[
        ("sized", 0x1000, 0x20, FUNC, 1),
        ("inside", 0x1010, 0, NOTYPE, 0),
        ("_ZN3foo3barEv", 0x1040, 0x10, FUNC, 1),
        ("label", 0x1100, 0, NOTYPE, 0),
        ("label.second", 0x1110, 0, NOTYPE, 0),
        ("data", 0x9000, 0, NOTYPE, 1),
    ]);
    let objects = Objects::from_parts(vec![object("/lib/a.so", BIAS, (BIAS, BIAS + 0x10000), file)]);
    let at = |svma| name_at(&objects, svma);
    let some = |name: &str, offset| Some((name.to_string(), offset));
    assert_eq!(at(0x1000), some("sized", 0));
    assert_eq!(at(0x1018), some("sized", 0x18));
    assert_eq!(at(0x1030), None);
    assert_eq!(at(0x104f), some("foo::bar()", 0xf));
    assert_eq!(at(0x1105), some("label", 5));
    assert_eq!(at(0x1fff), some("label.second", 0xeef));
    // The first address is behind the section, the second is at data.
    assert_eq!(at(0x2000), None);
    assert_eq!(at(0x9000), None);
    assert_eq!(at(0xfff), None);
    // If a call is the last instruction of a function, it returns to the address behind the function.
    let found = NativeSymbolizer::new(&objects).symbolize(CodeAddress::Return(BIAS + 0x1020));
    assert_eq!((found[0].name.as_deref(), found[0].offset), (Some("sized"), Some(0x20)));
}

/// A file with these symbols. Its code is `code` at the addresses given there, and does nothing elsewhere.
/// `tables` are the functions that have unwind tables: start and length.
fn coded(symbols: &[(&str, u64, u64, u8, u8)], code: &[(u64, &[u8])], tables: &[(u64, u64)]) -> Objects {
    let mut text = vec![0x90; 0x1000];
    for (at, bytes) in code {
        text[*at as usize - 0x1000..][..bytes.len()].copy_from_slice(bytes);
    }
    let (table, names) = symtab(symbols);
    let functions: Vec<_> = tables.iter().map(|&(start, len)| (start, len as u32, vec![16])).collect();
    let frames = crate::unwind::testing::eh_frame(&functions);
    let mut sections = vec![
        Section { name: ".text", flags: 6, address: 0x1000, bytes: &text },
        Section { name: ".symtab", flags: 0, address: 0, bytes: &table },
        Section { name: ".strtab", flags: 0, address: 0, bytes: &names },
    ];
    if !tables.is_empty() {
        sections.push(Section { name: ".eh_frame", flags: 2, address: 0x3000, bytes: &frames });
    }
    Objects::from_parts(vec![object("/lib/a.so", BIAS, (BIAS, BIAS + 0x10000), elf(&sections))])
}

const OBJECT: u8 = 1;
const IFUNC: u8 = 10;
const RET: &[u8] = &[0xc3];

/// musl's `memset` is assembly without `.size`, and in a stripped library the code behind it has no symbol.
#[test]
fn a_symbol_without_a_size_reaches_as_far_as_its_code() {
    let memset = [("memset", 0x1100, 0, FUNC, 1)];
    let some = |name: &str, offset| Some((name.to_string(), offset));
    let objects = coded(&memset, &[(0x1120, RET)], &[]);
    assert_eq!(name_at(&objects, 0x1110), some("memset", 0x10));
    assert_eq!(name_at(&objects, 0x1120), some("memset", 0x20));
    // The code behind the end is another function, however far the next symbol is.
    assert_eq!(name_at(&objects, 0x1121), None);
    assert_eq!(name_at(&objects, 0x1247), None);
    // A branch leads to code behind an end: je +0x10; ret
    let objects = coded(&memset, &[(0x1110, &[0x74, 0x10, 0xc3]), (0x1130, RET)], &[]);
    let names = [0x1112, 0x1113, 0x1122, 0x1130, 0x1131].map(|at| name_at(&objects, at).is_some());
    assert_eq!(names, [true, false, true, true, false]);
    // A return address counts as a place of the code only behind a call.
    let objects = coded(&memset, &[(0x1110, &[0xe8, 0, 1, 0, 0]), (0x1120, RET)], &[]);
    let returns = |svma| NativeSymbolizer::new(&objects).symbolize(CodeAddress::Return(BIAS + svma)).len();
    assert_eq!([0x1115, 0x1114, 0x1118].map(returns), [1, 0, 0]);
}

#[test]
fn a_symbol_without_a_size_ends_where_tables_or_other_symbols_begin() {
    let some = |name: &str, offset| Some((name.to_string(), offset));
    for kind in [FUNC, NOTYPE, IFUNC] {
        let label = [("label", 0x1100, 0, kind, 1)];
        // A table entry that begins at the label says how far the label reaches; an entry behind it says where
        // the label has ended.
        let objects = coded(&label, &[(0x1110, RET)], &[(0x1100, 0x40), (0x1200, 0x20)]);
        assert_eq!(name_at(&objects, 0x113f), some("label", 0x3f), "{kind}");
        assert_eq!([0x1140, 0x1180, 0x1210, 0x1230].map(|at| name_at(&objects, at)), [(); 4].map(|()| None));
        let objects = coded(&label, &[], &[(0x1200, 0x20)]);
        assert_eq!(name_at(&objects, 0x11ff), some("label", 0xff), "{kind}");
        assert_eq!(name_at(&objects, 0x1200), None);
        // Data among code ends the label, and so does a symbol that is no name (`$x`).
        for (name, kind) in [("table", OBJECT), ("$x", NOTYPE)] {
            let objects = coded(&[label[0], (name, 0x1180, 0, kind, 0)], &[], &[]);
            let found = [0x117f, 0x1180, 0x1190].map(|at| name_at(&objects, at));
            assert_eq!(found, [some("label", 0x7f), None, None], "{name}");
        }
    }
    // A label inside of a function that begins before it does not name that function.
    let inside = [("loop", 0x1110, 0, NOTYPE, 0)];
    assert_eq!(name_at(&coded(&inside, &[], &[(0x1100, 0x40)]), 0x1120), None);
    assert_eq!(name_at(&coded(&inside, &[], &[]), 0x1120), some("loop", 0x10));
}

#[test]
fn functions_have_a_start_and_parts_that_were_moved_out_of_them_have_none() {
    let objects = coded(
        &[("f", 0x1000, 0x20, FUNC, 1), ("f.cold", 0x1040, 0x20, FUNC, 0), ("label", 0x1100, 0, NOTYPE, 1)],
        &[],
        &[],
    );
    let symbolizer = NativeSymbolizer::new(&objects);
    let at = |svma| symbolizer.function(CodeAddress::Exact(BIAS + svma));
    let function = |start: u64, end: Option<u64>, is_entry| {
        Some(NativeFunction { start: BIAS + start, end: end.map(|e| BIAS + e), is_entry })
    };
    assert_eq!(at(0x1010), function(0x1000, Some(0x1020), true));
    assert_eq!(at(0x1050), function(0x1040, Some(0x1060), false));
    assert_eq!(at(0x1110), function(0x1100, None, false));
    assert_eq!(at(0x1030), None);
}

#[test]
fn of_several_names_one_is_preferred_and_versions_are_cut() {
    let file = with_symbols(&[
        ("__GI_read", 0x1000, 0x20, FUNC, 0),
        ("__read@@GLIBC_2.2.5", 0x1000, 0x20, FUNC, 1),
        ("read@@GLIBC_2.2.5", 0x1000, 0x20, FUNC, 2),
        ("label", 0x1000, 0, NOTYPE, 1),
    ]);
    let objects = Objects::from_parts(vec![object("/lib/a.so", BIAS, (BIAS, BIAS + 0x10000), file)]);
    assert_eq!(name_at(&objects, 0x1004), Some(("read".to_string(), 4)));
}

#[test]
fn a_stripped_file_takes_names_from_its_debug_file() {
    let stripped = elf(&[Section { name: ".text", flags: 6, address: 0x1000, bytes: &[0x90; 0x100] }]);
    let mut object = object("/lib/a.so", BIAS, (BIAS, BIAS + 0x10000), stripped);
    let debug = with_symbols(&[("hidden", 0x1000, 0x20, FUNC, 0)]);
    object.debug = Some(("/debug/a".into(), ObjectData::Memory(debug)));
    let objects = Objects::from_parts(vec![object]);
    assert_eq!(name_at(&objects, 0x1008), Some(("hidden".to_string(), 8)));
}

#[test]
fn names_are_demangled() {
    assert_eq!(demangle("_RNvCs15kBYyAo9fc_7mycrate7example"), "mycrate::example");
    assert_eq!(demangle("_ZN3std2io5stdio6_print17h0123456789abcdefE"), "std::io::stdio::_print");
    assert_eq!(
        demangle("_ZNSt6vectorIiSaIiEE9push_backERKi"),
        "std::vector<int, std::allocator<int> >::push_back(int const&)"
    );
    for plain in ["main", "f", "l", "Pc", "v"] {
        assert_eq!(demangle(plain), plain);
    }
    assert_eq!(demangle("_Z"), "_Z");
}

#[test]
fn a_name_that_stands_for_gigabytes_stays_as_it_is() {
    // f(a<int, int>, a<S0_, S0_>, a<S1_, S1_>, ...): each parameter is twice as long as the one before.
    let mut bomb = String::from("_Z1f1aIiiE");
    for i in 0..30 {
        let before = char::from_digit(i, 36).unwrap().to_ascii_uppercase();
        bomb += &format!("S_IS{before}_S{before}_E");
    }
    assert!(cpp_demangle::Symbol::new(&bomb).is_ok());
    assert_eq!(demangle(&bomb), bomb);
    let short = &bomb[..bomb.find("S_IS3_").unwrap()];
    assert!(demangle(short).contains("a<a<a<a<int, int>, a<int, int> >"), "{}", demangle(short));
}

#[inline(always)]
fn inlined_here() -> crate::unwind::Cursor {
    here!()
}

#[test]
fn inlined_functions_come_first_with_file_and_line() {
    let at = inlined_here();
    let line = line!() - 1;
    let objects = own_objects();
    let found = NativeSymbolizer::new(&objects).symbolize(at.address);
    let [inner, outer] = found.as_slice() else { panic!("{found:#?}") };
    assert!(inner.name.as_deref().is_some_and(|n| n.ends_with("inlined_here")), "{inner:?}");
    assert!(inner.inlined && inner.offset.is_none());
    let name = "wstate::symbolize::native::tests::inlined_functions_come_first_with_file_and_line";
    assert_eq!(outer.name.as_deref(), Some(name));
    assert!(!outer.inlined && outer.offset.is_some_and(|o| o > 0));
    assert_eq!(outer.line, Some(line));
    assert!(outer.file.as_deref().is_some_and(|f| f.ends_with("src/symbolize/native/tests.rs")), "{outer:?}");
}

#[test]
fn compressed_and_separate_debug_information_say_the_same() {
    if !(has_tool("gcc") && has_tool("objcopy")) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let source = "static inline __attribute__((always_inline)) int in(volatile int *x) {\n return *x + 1;\n}\n\
                  int outer(volatile int *x) {\n return in(x);\n}\n";
    std::fs::write(path("a.c"), source).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).current_dir(dir.path()).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    };
    let gcc = |out: &str, gz: &str| run("gcc", &["-O2", "-g", gz, "-fPIC", "-shared", "-o", out, "a.c"]);
    gcc("plain.so", "-gz=none");
    gcc("packed.so", "-gz=zlib");
    // The forms are ELFCOMPRESS_ZSTD, and sections called .zdebug_*, as tools older than SHF_COMPRESSED made
    // them.
    for form in ["zstd", "zlib-gnu"] {
        run("objcopy", &[&format!("--compress-debug-sections={form}"), "plain.so", &format!("{form}.so")]);
    }
    run("objcopy", &["--only-keep-debug", "packed.so", "a.debug"]);
    run("objcopy", &["--strip-all", "packed.so", "stripped.so"]);
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    let outer = {
        let bytes = read("plain.so");
        let file = object::File::parse(&*bytes).unwrap();
        file.symbols().find(|s| s.name() == Ok("outer")).unwrap().address()
    };
    let loaded = |name: &str| object("/lib/a.so", BIAS, (BIAS, BIAS + 0x10000), read(name));
    let mut separate = loaded("stripped.so");
    separate.debug = Some((path("a.debug"), ObjectData::Memory(read("a.debug"))));
    assert!(read("zstd.so").len() < read("plain.so").len());
    for object in [loaded("plain.so"), loaded("packed.so"), loaded("zstd.so"), loaded("zlib-gnu.so"), separate] {
        let objects = Objects::from_parts(vec![object]);
        // The loop looks for the load that `in` consists of; with CET the function begins with a 4-byte endbr64.
        let symbols = NativeSymbolizer::new(&objects);
        let found = (0..8).map(|i| symbols.symbolize(CodeAddress::Exact(BIAS + outer + i))).find(|f| f.len() == 2);
        let found = found.unwrap_or_default();
        let [inner, outer] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((inner.name.as_deref(), inner.line, inner.inlined), (Some("in"), Some(2), true));
        assert_eq!((outer.name.as_deref(), outer.line, outer.inlined), (Some("outer"), Some(5), false));
        assert!(outer.file.as_deref().is_some_and(|f| f.ends_with("a.c")));
        assert!(outer.offset.is_some_and(|o| o < 8));
    }
}

#[test]
fn a_section_that_claims_too_much_is_not_unpacked() {
    // The section claims ELFCOMPRESS_ZLIB, 3 GiB, alignment 1, and has four bytes of input.
    let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend((3u64 << 30).to_le_bytes().into_iter().chain(1u64.to_le_bytes()).chain([0x78, 0x9c, 3, 0]));
    let file = elf(&[Section { name: ".debug_frame", flags: 0x800, address: 0, bytes: &bytes }]);
    let file = object::File::parse(&*file).unwrap();
    assert!(section_bytes(&file.section_by_name(".debug_frame").unwrap()).is_none());
}

#[test]
fn names_have_an_end() {
    let (short, long) = ("x".repeat(limits::MAX_NAME_BYTES - 10), "x".repeat(limits::MAX_NAME_BYTES));
    assert_eq!(demangle(&format!("_Z{}{short}v", short.len())), format!("{short}()"));
    let mangled = format!("_Z{}{long}v", long.len());
    assert_eq!(demangle(&mangled), mangled);
    // Each argument is a pair of the argument before it, and takes only eleven bytes.
    let pairs = |count| {
        (1..count).fold("_Z1f1A1BIS_S_E".to_string(), |name, i| {
            let last = char::from_digit(i, 36).unwrap().to_ascii_uppercase();
            format!("{name}S0_IS{last}_S{last}_E")
        })
    };
    assert_eq!(demangle(&pairs(2)), "f(A, B<A, A>, B<B<A, A>, B<A, A> >)");
    assert_eq!(demangle(&pairs(30)), pairs(30));
}

#[test]
fn so_many_symbols_are_looked_at() {
    let function = |name, value, size| (name, value, size, FUNC, 1);
    let at = |symbols: &[_], svma| {
        let range = (BIAS, BIAS + 0x1000_0000);
        name_at(&Objects::from_parts(vec![object("/lib/x", BIAS, range, with_symbols(symbols))]), svma).map(|f| f.0)
    };
    let most = limits::MAX_SYMBOLS as u64;
    let all: Vec<_> = (0..=most).map(|i| function("f", 0x1000 + i * 16, 16)).collect();
    assert_eq!(at(&all, 0x1000 + (most - 1) * 16), Some("f".into()));
    assert_eq!(at(&all, 0x1000 + most * 16), None);

    // There are this many labels between the start of a function and the address.
    for (labels, found) in [(limits::MAX_NESTED_SYMBOLS as u64 - 1, true), (limits::MAX_NESTED_SYMBOLS as u64, false)] {
        let mut all = vec![function("f", 0x1000, 0x1000)];
        all.extend((1..=labels).map(|i| ("l", 0x1000 + i, 0, NOTYPE, 1)));
        assert_eq!(at(&all, 0x1800) == Some("f".into()), found);
    }
    // Of the names for one start, the best of the first ones is chosen.
    let names: Vec<String> = (0..=limits::MAX_NESTED_SYMBOLS).rev().map(|i| format!("f{i:03}")).collect();
    let all: Vec<_> = names.iter().map(|name| function(name.as_str(), 0x1000, 0x1000)).collect();
    assert_ne!(at(&all, 0x1800), Some("f000".into()));
    assert_eq!(at(&all[1..], 0x1800), Some("f000".into()));
}

#[test]
fn so_many_inlined_functions_are_shown() {
    let sections = crate::unwind::testing::inlined(0x1000, limits::MAX_INLINE_DEPTH);
    let sections: Vec<_> = sections.iter().map(|(name, bytes)| Section { name, flags: 0, address: 0, bytes }).collect();
    let objects = Objects::from_parts(vec![object("/lib/x", BIAS, (BIAS, BIAS + 0x2000), elf(&sections))]);
    let found = NativeSymbolizer::new(&objects).with_lines(true).symbolize(CodeAddress::Exact(BIAS + 0x1000));
    assert_eq!(found.len(), limits::MAX_INLINE_DEPTH + 1);
}
