//! Names native code from symbol tables and DWARF, of a file or of its separate debug file.
//!
//! Not read are `.gnu_debugdata` (symbol tables compressed with xz), split DWARF (`.dwo`, `.dwp`) and
//! `.gnu_debugaltlink`. Addresses in files with these get what the plain symbol tables give.

mod demangle;
mod dwarf;
mod excerpt;
mod symbols;
#[cfg(test)]
mod tests;

use std::cell::OnceCell;

use crate::arch::CodeAddress;
use crate::limits;
use crate::process::objects::{LoadedObject, Objects};
use crate::unwind::cfi::CfiUnwinder;
pub use demangle::demangle;
use demangle::{demangle_if_mangled, is_last_part};
use dwarf::Dwarf;
pub use symbols::symbol_names;
use symbols::{NamedSymbol, Symbols};

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
    objects: Vec<File<'a>>,
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
        let source = |object| File { object, symbols: OnceCell::new(), dwarf: OnceCell::new() };
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
        let left_out = |s: &&File<'_>| s.dwarf.get().and_then(Option::as_ref).is_some_and(Dwarf::has_left_out);
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
            match (&outermost.name, demangle_if_mangled(symbol.name)) {
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

    fn find<'s>(&'s self, source: &'s File<'a>, address: CodeAddress) -> Option<NamedSymbol<'s>> {
        let bias = source.object.bias;
        let function_before = |svma: u64| {
            let (start, end) = self.tables.function_before(svma.wrapping_add(bias))?;
            Some((start.wrapping_sub(bias), end.wrapping_sub(bias)))
        };
        let symbols = source.symbols.get_or_init(|| Symbols::load(source.object));
        symbols.find(source.object.svma(address.lookup()), source.object.svma(address.raw()), &function_before)
    }
}

struct File<'a> {
    object: &'a LoadedObject,
    symbols: OnceCell<Symbols<'a>>,
    dwarf: OnceCell<Option<Dwarf<'a>>>,
}

impl<'a> File<'a> {
    fn dwarf(&self) -> Option<&Dwarf<'a>> {
        self.dwarf.get_or_init(|| Dwarf::load(self.object)).as_ref()
    }
}
