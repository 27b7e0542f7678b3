//! Native code: symbol tables and DWARF.

use crate::arch::CodeAddress;
use crate::target::objects::Objects;

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
    objects: &'a Objects,
}

impl<'a> NativeSymbolizer<'a> {
    /// A symbolizer over `objects`. Parses nothing until asked.
    pub fn new(objects: &'a Objects) -> Self {
        NativeSymbolizer { objects }
    }

    /// The source-level frames at `address`, innermost first; empty if nothing is known.
    pub fn symbolize(&self, address: CodeAddress) -> Vec<NativeSymbol> {
        let _ = (self.objects, address);
        Vec::new()
    }
}
