//! The symbol tables of a file and its debug file.

use object::read::elf::{ElfFile64, Sym};
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SectionFlags, SymbolIndex, elf};

use crate::arch::CodeAddress;
use crate::limits;
use crate::process::objects::LoadedObject;
use crate::unwind::by_code;

type Elf = object::elf::FileHeader64<LittleEndian>;

type SymbolTable<'a> = object::read::elf::SymbolTable<'a, Elf>;

/// The parsed file and its parsed debug file, as far as they exist.
pub(super) fn elf_files(object: &LoadedObject) -> impl Iterator<Item = ElfFile64<'_, LittleEndian>> {
    let data = object.data.iter().chain(object.debug.iter().map(|(_, data)| data));
    data.filter_map(|data| ElfFile64::parse(&**data).ok())
}

/// Calls `each` with the names that a file and its debug file define, until `each` returns false.
pub fn symbol_names(object: &LoadedObject, mut each: impl FnMut(&str) -> bool) {
    for file in elf_files(object) {
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
pub(super) struct Symbols<'a> {
    files: Vec<ElfFile64<'a, LittleEndian>>,
    tables: Vec<SymbolTable<'a>>,
    /// The symbols, in ascending order of their starts.
    pub(super) symbols: Vec<Symbol>,
    /// Address ranges of the executable sections.
    code: Vec<(u64, u64)>,
}

#[derive(Clone, Copy)]
pub(super) struct Symbol {
    pub(super) start: u64,
    /// Position of the symbol in its table.
    index: u32,
    /// Position of the symbol's table in `tables`.
    table: u8,
    kind: SymbolKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SymbolKind {
    Function,
    /// A symbol of assembly without `.type`: a function, or a place in a function.
    Label,
    /// Data among code. It names nothing here, but whatever comes before it ends there.
    Data,
}

/// Ranges of addresses, prepared for many questions: a file may have as many sections as symbols.
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    pub(super) fn of(ranges: &[(u64, u64)]) -> Ranges {
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

    pub(super) fn contain(&self, address: u64) -> bool {
        let behind = self.0.partition_point(|range| range.0 <= address);
        behind.checked_sub(1).and_then(|i| self.0.get(i)).is_some_and(|range| address < range.1)
    }
}

/// A symbol with its name.
pub(super) struct NamedSymbol<'a> {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) name: &'a str,
    pub(super) is_function: bool,
}

impl<'a> Symbols<'a> {
    pub(super) fn load(object: &'a LoadedObject) -> Symbols<'a> {
        let (mut tables, mut symbols, mut code) = (Vec::new(), Vec::new(), Vec::new());
        let mut left = limits::MAX_SYMBOLS;
        let files: Vec<_> = elf_files(object).collect();
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
                    let kind = match symbol.st_type() {
                        elf::STT_FUNC | elf::STT_GNU_IFUNC => SymbolKind::Function,
                        elf::STT_SECTION | elf::STT_FILE | elf::STT_TLS => continue,
                        elf::STT_OBJECT | elf::STT_COMMON if is_code(start) => SymbolKind::Data,
                        elf::STT_OBJECT | elf::STT_COMMON => continue,
                        // This is a symbol of assembly without `.type`, such as `run_on_alternative_stack`.
                        _ if is_code(start) => SymbolKind::Label,
                        _ => continue,
                    };
                    // Symbols of other files, and data that has no address yet.
                    if [elf::SHN_UNDEF, elf::SHN_COMMON].contains(&symbol.st_shndx(LittleEndian)) {
                        continue;
                    }
                    symbols.push(Symbol { start, index, table: number, kind });
                }
            }
        }
        radsort::sort_by_key(&mut symbols, |s| s.start);
        Symbols { files, tables, symbols, code }
    }

    /// The entry of a symbol in its table, and the symbol's name.
    pub(super) fn named(&self, symbol: &Symbol) -> Option<(&'a elf::Sym64<LittleEndian>, &'a str)> {
        let table = self.tables.get(usize::from(symbol.table))?;
        let found = table.symbol(SymbolIndex(symbol.index.try_into().ok()?)).ok()?;
        let name = plain_name(str::from_utf8(table.symbol_name(LittleEndian, found).ok()?).ok()?);
        // Symbols whose name begins with `$` only mark code and data.
        (!name.is_empty() && !name.starts_with('$')).then_some((found, name))
    }

    /// Chooses from several names for one start the one that is shown: functions before labels, exported before
    /// local, `read` before `__read`.
    fn preferred(&self, same_start: &[Symbol]) -> Option<NamedSymbol<'a>> {
        let some = same_start.iter().filter(|s| s.kind != SymbolKind::Data).take(limits::MAX_NESTED_SYMBOLS);
        let named = some.filter_map(|s| {
            let (found, name) = self.named(s)?;
            let is_local = found.st_bind() == elf::STB_LOCAL;
            Some((
                is_local,
                NamedSymbol {
                    start: s.start,
                    size: found.st_size(LittleEndian),
                    name,
                    is_function: s.kind == SymbolKind::Function,
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
    pub(super) fn find(
        &self,
        svma: u64,
        raw: u64,
        function_before: &dyn Fn(u64) -> Option<(u64, u64)>,
    ) -> Option<NamedSymbol<'a>> {
        let i = self.symbols.partition_point(|s| s.start <= svma);
        let before = self.symbols.get(..i)?;
        // Between a function's start and the address there may be labels and nested parts (`.cold` never is one).
        let near = || before.chunk_by(|a, b| a.start == b.start).rev().take(limits::MAX_NESTED_SYMBOLS);
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
        label: &NamedSymbol<'_>,
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
