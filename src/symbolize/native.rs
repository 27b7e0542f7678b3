//! Names native code from symbol tables and DWARF, of a file or of its separate debug file.
//!
//! Not read are `.gnu_debugdata` (symbol tables compressed with xz), split DWARF (`.dwo`, `.dwp`) and
//! `.gnu_debugaltlink`. Addresses in files with these get what the plain symbol tables give.

mod dwarf;
mod excerpt;

use self::dwarf::Dwarf;
use crate::arch::CodeAddress;
use crate::limits;
use crate::process::objects::{LoadedObject, Objects};
use crate::unwind::by_code;
use crate::unwind::cfi::CfiUnwinder;
use object::read::elf::{ElfFile64, Sym};
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SectionFlags, SymbolIndex, elf};
use std::cell::OnceCell;
use std::fmt::{self, Write};

/// One source-level frame at a native address. One address has several where functions were inlined, innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NativeSymbol {
    /// Demangled name of the function.
    pub name: Option<String>,
    /// Path of the source file, as the debug information has it.
    pub file: Option<String>,
    /// Line in the source file, counted from 1.
    pub line: Option<u32>,
    /// Whether the function was inlined into the function of the next frame.
    pub inlined: bool,
    /// Byte offset of the address from the start of the function. Only the outermost frame has it.
    pub offset: Option<u64>,
}

/// Names addresses of a target's native code.
pub struct NativeSymbolizer<'a> {
    objects: Vec<Source<'a>>,
    tables: CfiUnwinder<'a>,
    lines: bool,
}

/// A function of native code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativeFunction {
    /// Address of the function's first byte, in the target.
    pub start: u64,
    /// Address one past the function's last byte, if the function's symbol has a size.
    pub end: Option<u64>,
    /// Whether calls lead to `start`: the symbol is no label, and no part that was moved out of a function.
    pub is_entry: bool,
}

impl<'a> NativeSymbolizer<'a> {
    /// A symbolizer over `objects`. A file is parsed only when it is first asked for.
    pub fn new(objects: &'a Objects) -> Self {
        let source = |object| Source { object, symbols: OnceCell::new(), dwarf: OnceCell::new() };
        NativeSymbolizer {
            objects: objects.iter().map(source).collect(),
            tables: CfiUnwinder::new(objects),
            lines: true,
        }
    }

    /// With `lines` false, uses symbol tables alone: there are no files, lines and inlined functions, and no debug
    /// information is read.
    pub fn with_lines(mut self, lines: bool) -> Self {
        self.lines = lines;
        self
    }

    /// Reads what these addresses will need. Reading debug information for many addresses at once takes less time
    /// than for each by itself.
    pub fn prepare(&self, addresses: &[CodeAddress]) {
        if !self.lines {
            return;
        }
        for source in &self.objects {
            let (start, end) = source.object.range;
            let mut svmas = addresses.iter().map(|a| a.lookup()).filter(|pc| (start..end).contains(pc)).peekable();
            if svmas.peek().is_some()
                && let Some(dwarf) = source.dwarf()
            {
                dwarf.prepare(svmas.map(|pc| source.object.svma(pc)));
            }
        }
    }

    /// Notes for a reader of the names: they say in which files functions were left out.
    pub fn notes(&self) -> Vec<String> {
        let left_out = |s: &&Source<'_>| s.dwarf.get().and_then(Option::as_ref).is_some_and(Dwarf::has_left_out);
        let deep = self.objects.iter().filter(left_out).map(|s| {
            format!(
                "{}: functions are inlined into each other more than {} levels deep: inlined functions are left out there, \
                 and the line is of the innermost",
                s.object.path.display(),
                limits::MAX_INLINE_DEPTH
            )
        });
        deep.collect()
    }

    /// The source-level frames at `address`, innermost first. The list is empty if nothing is known.
    pub fn symbolize(&self, address: CodeAddress) -> Vec<NativeSymbol> {
        let pc = address.lookup();
        let Some(source) = self.objects.iter().find(|s| s.object.range.0 <= pc && pc < s.object.range.1) else {
            return Vec::new();
        };
        let svma = source.object.svma(pc);
        let mut frames = self.lines.then(|| source.dwarf()).flatten().map_or_else(Vec::new, |dwarf| dwarf.frames(svma));
        let symbol = self.find(source, address);
        if frames.is_empty() && symbol.is_some() {
            frames.push(NativeSymbol::default());
        }
        if let (Some(outermost), Some(symbol)) = (frames.last_mut(), symbol) {
            outermost.offset = source.object.svma(address.raw()).checked_sub(symbol.start);
            // In a file with line tables only, DWARF has `{closure#0}` where the symbol has the whole path.
            match (&outermost.name, mangled(symbol.name)) {
                (Some(name), Some(demangled)) if is_last_part(name, &demangled) => outermost.name = Some(demangled),
                (Some(_), _) => {}
                (None, demangled) => outermost.name = Some(demangled.unwrap_or_else(|| symbol.name.to_string())),
            }
        }
        // If nothing is known of the outermost function, the functions inlined into it must not be taken for it.
        let is_known = |f: &NativeSymbol| f.name.is_some() || f.file.is_some();
        let outermost = frames.pop();
        frames.retain(is_known);
        let none_inlined = frames.is_empty();
        frames.extend(outermost.filter(|f| !none_inlined || is_known(f)));
        frames
    }

    /// The function around `address`, as far as symbols tell it.
    pub fn function(&self, address: CodeAddress) -> Option<NativeFunction> {
        let pc = address.lookup();
        let source = self.objects.iter().find(|s| s.object.range.0 <= pc && pc < s.object.range.1)?;
        let symbol = self.find(source, address)?;
        let start = symbol.start.wrapping_add(source.object.bias);
        let end = (symbol.size > 0).then(|| start.saturating_add(symbol.size));
        // Jumps lead to `f.cold`, with the frame that `f` has at that point.
        let is_entry = symbol.is_function && !symbol.name.contains(".cold");
        Some(NativeFunction { start, end, is_entry })
    }

    fn find<'s>(&'s self, source: &'s Source<'a>, address: CodeAddress) -> Option<Named<'s>> {
        let bias = source.object.bias;
        let function_before = |svma: u64| {
            let (start, end) = self.tables.function_before(svma.wrapping_add(bias))?;
            Some((start.wrapping_sub(bias), end.wrapping_sub(bias)))
        };
        let symbols = source.symbols.get_or_init(|| Symbols::load(source.object));
        symbols.find(source.object.svma(address.lookup()), source.object.svma(address.raw()), &function_before)
    }
}

/// Whether the path `demangled` ends with `name`, a name that DWARF without linkage names has: `do_call<F, R>` and
/// `std::panicking::catch_unwind::do_call`, `{closure#0}<()>` and `std::rt::lang_start::{{closure}}`.
fn is_last_part(name: &str, demangled: &str) -> bool {
    let plain = name.split_once('<').map_or(name, |(plain, _)| plain);
    if plain.is_empty() {
        return false;
    }
    // Names in the v0 mangling may end with generic arguments, too: `do_call::<F, R>`.
    let mut end = demangled.len();
    let mut depth = 0usize;
    if demangled.ends_with('>') {
        for (i, c) in demangled.char_indices().rev() {
            match c {
                // The arrow of `fn() -> T` does not count.
                '>' if !demangled[..i].ends_with('-') => depth += 1,
                '<' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                end = i;
                break;
            }
        }
    }
    let path = demangled[..end].trim_end_matches("::");
    demangled.ends_with(name) || path.ends_with(plain) || plain.starts_with("{closure") && path.ends_with("{{closure}}")
}

struct Source<'a> {
    object: &'a LoadedObject,
    symbols: OnceCell<Symbols<'a>>,
    dwarf: OnceCell<Option<Dwarf<'a>>>,
}

impl<'a> Source<'a> {
    fn dwarf(&self) -> Option<&Dwarf<'a>> {
        self.dwarf.get_or_init(|| Dwarf::load(self.object)).as_ref()
    }
}

type Elf = object::elf::FileHeader64<LittleEndian>;
type SymbolTable<'a> = object::read::elf::SymbolTable<'a, Elf>;

/// The parsed file and its parsed debug file, as far as they exist.
fn files(object: &LoadedObject) -> impl Iterator<Item = ElfFile64<'_, LittleEndian>> {
    let data = object.data.iter().chain(object.debug.iter().map(|(_, data)| data));
    data.filter_map(|data| ElfFile64::parse(&**data).ok())
}

/// Calls `each` with the names that a file and its debug file define, until `each` returns false.
pub fn symbol_names(object: &LoadedObject, mut each: impl FnMut(&str) -> bool) {
    for file in files(object) {
        for symbol in file.symbols().chain(file.dynamic_symbols()).filter(|s| !s.is_undefined()) {
            let Ok(name) = symbol.name() else { continue };
            if !each(plain_name(name)) {
                return;
            }
        }
    }
}

/// `name` without its version, such as `read` for `read@@GLIBC_2.2.5` in the `.symtab` of a library.
fn plain_name(name: &str) -> &str {
    name.split_once('@').map_or(name, |(plain, _)| plain)
}

/// Function symbols of a file and its debug file. All addresses are svmas.
///
/// A table of a hundred thousand symbols is read for some dozens of addresses, so little is kept of each symbol. Its
/// size and its name (the names are ten times as much data) are looked up only when they are asked for.
struct Symbols<'a> {
    files: Vec<ElfFile64<'a, LittleEndian>>,
    tables: Vec<SymbolTable<'a>>,
    /// The symbols, in ascending order of their starts.
    symbols: Vec<Symbol>,
    /// Address ranges of the executable sections.
    code: Vec<(u64, u64)>,
}

#[derive(Clone, Copy)]
struct Symbol {
    start: u64,
    /// Position of the symbol in its table.
    index: u32,
    /// Position of the symbol's table in `tables`.
    table: u8,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Function,
    /// A symbol of assembly without `.type`: a function, or a place in a function.
    Label,
    /// Data among code. It names nothing here, but whatever stands before it ends there.
    Data,
}

/// Ranges of addresses, prepared for many questions: a file may have as many sections as symbols.
struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    fn of(ranges: &[(u64, u64)]) -> Ranges {
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        // Where ranges overlap, the last one that begins before an address ends where the longest of them does.
        let mut end = 0;
        for range in &mut sorted {
            end = range.1.max(end);
            range.1 = end;
        }
        Ranges(sorted)
    }

    fn contain(&self, address: u64) -> bool {
        let behind = self.0.partition_point(|range| range.0 <= address);
        behind.checked_sub(1).and_then(|i| self.0.get(i)).is_some_and(|range| address < range.1)
    }
}

/// A symbol with its name.
struct Named<'a> {
    start: u64,
    size: u64,
    name: &'a str,
    is_function: bool,
}

impl<'a> Symbols<'a> {
    fn load(object: &'a LoadedObject) -> Symbols<'a> {
        let (mut tables, mut symbols, mut code) = (Vec::new(), Vec::new(), Vec::new());
        let mut left = limits::MAX_SYMBOLS;
        let files: Vec<_> = files(object).collect();
        for file in &files {
            for section in file.sections() {
                if let SectionFlags::Elf { sh_flags, .. } = section.flags()
                    && sh_flags.0 & elf::SHF_EXECINSTR.0 != 0
                {
                    code.push((section.address(), section.address().saturating_add(section.size())));
                }
            }
            let ranges = Ranges::of(&code);
            let is_code = |address| ranges.contain(address);
            for table in [*file.elf_symbol_table(), *file.elf_dynamic_symbol_table()] {
                // There are at most two files, which have four tables.
                let number = u8::try_from(tables.len()).unwrap_or(u8::MAX);
                tables.push(table);
                // The first entry of a table is no symbol.
                for (index, symbol) in (1..).zip(table.symbols().iter().skip(1).take(left)) {
                    left -= 1;
                    let start = symbol.st_value(LittleEndian);
                    let what = match symbol.st_type() {
                        elf::STT_FUNC | elf::STT_GNU_IFUNC => What::Function,
                        elf::STT_SECTION | elf::STT_FILE | elf::STT_TLS => continue,
                        elf::STT_OBJECT | elf::STT_COMMON if is_code(start) => What::Data,
                        elf::STT_OBJECT | elf::STT_COMMON => continue,
                        // This is a symbol of assembly without `.type`, such as `run_on_alternative_stack`.
                        _ if is_code(start) => What::Label,
                        _ => continue,
                    };
                    // Symbols of other files, and data that has no address yet.
                    if [elf::SHN_UNDEF, elf::SHN_COMMON].contains(&symbol.st_shndx(LittleEndian)) {
                        continue;
                    }
                    symbols.push(Symbol { start, index, table: number, what });
                }
            }
        }
        radsort::sort_by_key(&mut symbols, |s| s.start);
        Symbols { files, tables, symbols, code }
    }

    /// The entry of a symbol in its table, and the symbol's name.
    fn named(&self, symbol: &Symbol) -> Option<(&'a elf::Sym64<LittleEndian>, &'a str)> {
        let table = self.tables.get(usize::from(symbol.table))?;
        let found = table.symbol(SymbolIndex(symbol.index.try_into().ok()?)).ok()?;
        let name = plain_name(str::from_utf8(table.symbol_name(LittleEndian, found).ok()?).ok()?);
        // Symbols whose name begins with `$` only mark code and data.
        (!name.is_empty() && !name.starts_with('$')).then_some((found, name))
    }

    /// Chooses from several names for one start the one that is shown: functions before labels, exported before
    /// local, `read` before `__read`.
    fn preferred(&self, same_start: &[Symbol]) -> Option<Named<'a>> {
        let some = same_start.iter().filter(|s| s.what != What::Data).take(limits::MAX_NESTED_SYMBOLS);
        let named = some.filter_map(|s| {
            let (found, name) = self.named(s)?;
            let is_local = found.st_bind() == elf::STB_LOCAL;
            Some((
                is_local,
                Named {
                    start: s.start,
                    size: found.st_size(LittleEndian),
                    name,
                    is_function: s.what == What::Function,
                },
            ))
        });
        let best = named.min_by_key(|(is_local, named)| {
            let underscores = named.name.bytes().take_while(|&b| b == b'_').count();
            (named.size == 0, *is_local, underscores, named.name)
        });
        best.map(|(_, named)| named)
    }

    /// The function around `svma`: a symbol whose size covers it, else the label before it, if the label reaches so
    /// far. `raw` is the svma of the address itself, which is one byte behind `svma` if a call returns to it.
    /// `function_before` tells which function the unwind tables have.
    fn find(&self, svma: u64, raw: u64, function_before: &dyn Fn(u64) -> Option<(u64, u64)>) -> Option<Named<'a>> {
        let i = self.symbols.partition_point(|s| s.start <= svma);
        let starts = self.symbols.get(..i)?.chunk_by(|a, b| a.start == b.start).rev();
        // Between a function's start and the address there may be labels and nested parts (`.cold` never is one).
        let near = || starts.clone().take(limits::MAX_NESTED_SYMBOLS);
        let named = || near().filter_map(|same| self.preferred(same));
        if let Some(covering) = named().find(|s| svma - s.start < s.size) {
            return Some(covering);
        }
        // A label ends at the next symbol, whether that has a name or not.
        let last = near().next().and_then(|same| self.preferred(same)).filter(|s| s.size == 0)?;
        // A label in a function ends with the function.
        if named().any(|s| last.start - s.start < s.size) {
            return None;
        }
        self.reaches(&last, svma, raw, function_before).then_some(last)
    }

    /// Whether the code that begins at a symbol without a size goes on at `svma`. Stripped files keep only symbols
    /// that others may call, so it says nothing if there is no other symbol in between.
    fn reaches(
        &self,
        label: &Named<'_>,
        svma: u64,
        raw: u64,
        function_before: &dyn Fn(u64) -> Option<(u64, u64)>,
    ) -> bool {
        let same_section = |&&(start, end): &&(u64, u64)| start <= label.start && label.start < end && svma < end;
        let Some((_, end)) = self.code.iter().find(same_section) else { return false };
        match function_before(svma) {
            // Another function begins behind the label.
            Some((start, _)) if start > label.start => return false,
            // The label is in this function, or at its start: the label's code ends with the function at the latest.
            Some((start, end)) if start == label.start || label.start < end => {
                return svma < end && (start == label.start || label.is_function);
            }
            _ => {}
        }
        // No table covers the address, so the label's own code has to lead there.
        let len = end.saturating_sub(label.start).min(limits::MAX_BODY_BYTES);
        let code = self.files.iter().flat_map(|f| f.sections()).find_map(|s| {
            let bytes = s.data_range(label.start, len).ok().flatten()?;
            (!bytes.is_empty()).then_some(bytes)
        });
        let at = if raw == svma { CodeAddress::Exact(raw) } else { CodeAddress::Return(raw) };
        code.is_some_and(|code| by_code::leads_to(label.start, code, at))
    }
}

/// The name in the source for a symbol: Rust names (both manglings, without the hash) and C++ names are demangled,
/// any other symbol keeps its name.
pub fn demangle(name: &str) -> String {
    mangled(name).unwrap_or_else(|| name.to_string())
}

/// The demangled name, if `name` is mangled.
fn mangled(name: &str) -> Option<String> {
    if name.len() > limits::MAX_NAME_BYTES {
        return None;
    }
    let mut out = Bounded(String::new());
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        write!(out, "{rust:#}").ok()?;
    } else {
        // The crate also demangles types: it would turn `f`, a C function, into `float`.
        let is_symbol = ["_Z", "__Z", "_GLOBAL_"].iter().any(|start| name.starts_with(start));
        let cpp = cpp_demangle::Symbol::new(name).ok().filter(|_| is_symbol)?;
        cpp.structured_demangle(&mut out, &cpp_demangle::DemangleOptions::new()).ok()?;
    }
    Some(out.0)
}

/// A text of bounded length: a few substitutions in a mangled name can stand for gigabytes of text.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if self.0.len() + s.len() > limits::MAX_NAME_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(s);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
        assert!(outer.file.as_deref().is_some_and(|f| f.ends_with("src/symbolize/native.rs")), "{outer:?}");
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
        for (labels, found) in
            [(limits::MAX_NESTED_SYMBOLS as u64 - 1, true), (limits::MAX_NESTED_SYMBOLS as u64, false)]
        {
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
        let sections: Vec<_> =
            sections.iter().map(|(name, bytes)| Section { name, flags: 0, address: 0, bytes }).collect();
        let objects = Objects::from_parts(vec![object("/lib/x", BIAS, (BIAS, BIAS + 0x2000), elf(&sections))]);
        let found = NativeSymbolizer::new(&objects).with_lines(true).symbolize(CodeAddress::Exact(BIAS + 0x1000));
        assert_eq!(found.len(), limits::MAX_INLINE_DEPTH + 1);
    }
}
