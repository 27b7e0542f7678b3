//! Native code: symbol tables and DWARF, of a file or its separate debug file.
//!
//! Not read: `.gnu_debugdata` (xz-packed symbol tables), split DWARF (`.dwo`, `.dwp`) and `.gnu_debugaltlink`. Addresses
//! in such files get what the plain symbol tables give.

use crate::arch::CodeAddress;
use crate::limits;
use crate::target::objects::{LoadedObject, Objects};
use crate::unwind::cfi::section_bytes;
use gimli::{EndianRcSlice, EndianSlice, LittleEndian, Reader};
use object::{Object, ObjectSection, ObjectSymbol, SectionFlags, SymbolKind};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt::{self, Write};
use std::rc::Rc;

/// One source-level frame at a native address. Several for one address where functions were inlined, innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NativeSymbol {
    /// Demangled name.
    pub name: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line, 1-based.
    pub line: Option<u32>,
    /// Whether the function was inlined into the next.
    pub inlined: bool,
    /// Byte offset of the address in the function, for the outermost.
    pub offset: Option<u64>,
}

/// Names addresses of a target's native code.
pub struct NativeSymbolizer<'a> {
    objects: Vec<Source<'a>>,
}

impl<'a> NativeSymbolizer<'a> {
    /// A symbolizer over `objects`. Parses nothing until asked.
    pub fn new(objects: &'a Objects) -> Self {
        let source = |object| Source { object, symbols: OnceCell::new(), dwarf: OnceCell::new() };
        NativeSymbolizer { objects: objects.iter().map(source).collect() }
    }

    /// The source-level frames at `address`, innermost first; empty if nothing is known.
    pub fn symbolize(&self, address: CodeAddress) -> Vec<NativeSymbol> {
        let pc = address.lookup();
        let Some(source) = self.objects.iter().find(|s| s.object.range.0 <= pc && pc < s.object.range.1) else {
            return Vec::new();
        };
        let svma = source.object.svma(pc);
        let mut frames = source.dwarf.get_or_init(|| Dwarf::load(source.object)).frames(svma);
        let symbol = source.symbols.get_or_init(|| Symbols::load(source.object)).find(svma);
        if frames.is_empty() && symbol.is_some() {
            frames.push(NativeSymbol::default());
        }
        if let (Some(outermost), Some(symbol)) = (frames.last_mut(), symbol) {
            outermost.offset = source.object.svma(address.raw()).checked_sub(symbol.start);
            // With line tables only, DWARF has `{closure#0}` where the symbol has the whole path.
            match (&outermost.name, mangled(symbol.name)) {
                (Some(name), Some(demangled)) if demangled.ends_with(name.as_str()) => outermost.name = Some(demangled),
                (Some(_), _) => {}
                (None, demangled) => outermost.name = Some(demangled.unwrap_or_else(|| symbol.name.to_string())),
            }
        }
        frames.retain(|f| f.name.is_some() || f.file.is_some());
        frames
    }
}

struct Source<'a> {
    object: &'a LoadedObject,
    symbols: OnceCell<Symbols<'a>>,
    dwarf: OnceCell<Dwarf<'a>>,
}

/// The file and its debug file, as far as they are there.
fn files(object: &LoadedObject) -> impl Iterator<Item = object::File<'_>> {
    let data = object.data.iter().chain(object.debug.iter().map(|(_, data)| data));
    data.filter_map(|data| object::File::parse(&**data).ok())
}

/// Function symbols of a file and its debug file. All addresses are svmas.
struct Symbols<'a> {
    /// Ascending by start, the preferred name for a start only.
    symbols: Vec<Symbol<'a>>,
    /// Ranges of executable sections.
    code: Vec<(u64, u64)>,
}

#[derive(Clone, Copy)]
struct Symbol<'a> {
    start: u64,
    size: u64,
    local: bool,
    name: &'a str,
}

impl Symbol<'_> {
    /// Of several names for one start, the smallest is shown: functions before labels, exported before local, `read`
    /// before `__read`.
    fn preference(&self) -> (u64, bool, bool, usize, &str) {
        let underscores = self.name.bytes().take_while(|&b| b == b'_').count();
        (self.start, self.size == 0, self.local, underscores, self.name)
    }
}

impl<'a> Symbols<'a> {
    fn load(object: &'a LoadedObject) -> Symbols<'a> {
        let (mut symbols, mut code) = (Vec::new(), Vec::new());
        for file in files(object) {
            for section in file.sections() {
                if let SectionFlags::Elf { sh_flags, .. } = section.flags()
                    && sh_flags.0 & object::elf::SHF_EXECINSTR.0 != 0
                {
                    code.push((section.address(), section.address().saturating_add(section.size())));
                }
            }
            let is_code = |address| code.iter().any(|&(start, end)| start <= address && address < end);
            for symbol in file.symbols().chain(file.dynamic_symbols()) {
                let start = symbol.address();
                let kind = match symbol.kind() {
                    SymbolKind::Text => true,
                    // Assembly without `.type`: `run_on_alternative_stack`.
                    SymbolKind::Unknown | SymbolKind::Label => is_code(start),
                    _ => false,
                };
                let Some(name) = symbol.name().ok().filter(|n| !n.is_empty() && !n.starts_with('$')) else { continue };
                if !kind || symbol.is_undefined() || symbols.len() >= limits::MAX_SYMBOLS {
                    continue;
                }
                // `read@@GLIBC_2.2.5` in the `.symtab` of a library.
                let name = name.split_once('@').map_or(name, |(plain, _)| plain);
                symbols.push(Symbol { start, size: symbol.size(), local: symbol.is_local(), name });
            }
        }
        symbols.sort_by(|a, b| a.preference().cmp(&b.preference()));
        symbols.dedup_by_key(|s| s.start);
        Symbols { symbols, code }
    }

    /// The function around `svma`: one whose size covers it, else the label before it in the same section.
    fn find(&self, svma: u64) -> Option<&Symbol<'a>> {
        let i = self.symbols.partition_point(|s| s.start <= svma);
        let before = self.symbols.get(..i)?;
        // Labels and nested parts (`.cold` never is one) may stand between a function's start and the address.
        let near = before.iter().rev().take(limits::MAX_NESTED_SYMBOLS);
        if let Some(covering) = near.clone().find(|s| svma - s.start < s.size) {
            return Some(covering);
        }
        let last = before.last().filter(|s| s.size == 0)?;
        let same_section = |&&(start, end): &&(u64, u64)| start <= last.start && last.start < end && svma < end;
        self.code.iter().find(same_section).map(|_| last)
    }
}

/// Debug information of one file.
enum Dwarf<'a> {
    None,
    /// Read in place.
    InPlace(Box<addr2line::Context<EndianSlice<'a, LittleEndian>>>),
    /// Sections were compressed.
    Unpacked(Box<addr2line::Context<EndianRcSlice<LittleEndian>>>),
}

impl<'a> Dwarf<'a> {
    fn load(object: &'a LoadedObject) -> Dwarf<'a> {
        let with_dwarf = files(object).find(|file| {
            let sections = [".debug_info", ".zdebug_info"];
            sections
                .iter()
                .any(|name| file.section_by_name(name).is_some_and(|s| s.size() > 0 && s.file_range().is_some()))
        });
        with_dwarf.and_then(Dwarf::of_file).unwrap_or(Dwarf::None)
    }

    fn of_file(file: object::File<'a>) -> Option<Dwarf<'a>> {
        if !file.is_little_endian() {
            return None;
        }
        let bytes = |id: gimli::SectionId| -> Cow<'a, [u8]> {
            file.section_by_name(id.name()).and_then(|s| section_bytes(&s)).unwrap_or_default()
        };
        let in_place = gimli::Dwarf::load(|id| match bytes(id) {
            Cow::Borrowed(bytes) => Ok(EndianSlice::new(bytes, LittleEndian)),
            Cow::Owned(_) => Err(()),
        });
        if let Ok(dwarf) = in_place {
            return Some(Dwarf::InPlace(Box::new(addr2line::Context::from_dwarf(dwarf).ok()?)));
        }
        let unpacked = |id| Ok::<_, ()>(EndianRcSlice::new(Rc::from(bytes(id)), LittleEndian));
        let context = addr2line::Context::from_dwarf(gimli::Dwarf::load(unpacked).ok()?).ok()?;
        Some(Dwarf::Unpacked(Box::new(context)))
    }

    fn frames(&self, svma: u64) -> Vec<NativeSymbol> {
        match self {
            Dwarf::None => Vec::new(),
            Dwarf::InPlace(context) => frames(context, svma),
            Dwarf::Unpacked(context) => frames(context, svma),
        }
    }
}

fn frames<R: Reader>(context: &addr2line::Context<R>, svma: u64) -> Vec<NativeSymbol> {
    let mut out = Vec::new();
    let Ok(mut frames) = context.find_frames(svma).skip_all_loads() else { return out };
    while let Ok(Some(frame)) = frames.next() {
        if out.len() >= limits::MAX_INLINE_DEPTH {
            break;
        }
        let name = frame.function.and_then(|f| Some(demangle(&f.raw_name().ok()?)));
        let (file, line) = frame.location.map_or((None, None), |l| (l.file.map(str::to_string), l.line));
        out.push(NativeSymbol { name, file, line, inlined: true, offset: None });
    }
    if let Some(outermost) = out.last_mut() {
        outermost.inlined = false;
    }
    out
}

/// The source's name for a symbol: Rust (both manglings, without the hash) and C++; anything else is its own name.
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
        let cpp = cpp_demangle::Symbol::new(name).ok()?;
        cpp.structured_demangle(&mut out, &cpp_demangle::DemangleOptions::new()).ok()?;
    }
    Some(out.0)
}

/// A few substitutions in a mangled name can stand for gigabytes of text.
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
