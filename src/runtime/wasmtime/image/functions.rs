//! The functions of an image: what each piece of code is, as its symbol says or as `.wasmtime.info` lists it.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::string_at;
use crate::limits::{MAX_IMAGE_MODULES, MAX_IMAGE_SYMBOL_BYTES};

// The name of a symbol, which is cut at `MAX_IMAGE_SYMBOL_BYTES`.
pub(super) fn symbol_at(strings: &[u8], at: u32) -> Option<&[u8]> {
    string_at(strings, at).map(|name| &name[..name.len().min(MAX_IMAGE_SYMBOL_BYTES)])
}

/// What a piece of code is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FunctionKind {
    /// A function of a Wasm module.
    Wasm {
        /// Index of the module in the image. It is 0 except in components.
        module: u32,
        /// Index of the function in the module, where imported functions come first.
        function: u32,
        /// Name of the function, if the module has a name section. Each run of characters that are not graphic ASCII
        /// is one "?", and the name is cut at 96 characters.
        name: Option<String>,
    },
    /// Code with which the host calls a Wasm function: the entry trampoline.
    ArrayToWasm {
        /// Index of the module in the image.
        module: u32,
        /// Index of the function that it calls, where imported functions come first.
        function: u32,
    },
    /// Code with which Wasm calls a host function: the exit trampoline.
    WasmToArray {
        /// Index of the signature among the image's types.
        signature: u32,
    },
    /// Code with which Wasm calls a routine of the runtime, with the routine's name ("memory_grow").
    Builtin(String),
    /// Code that runs a module's initializers (from version 46 on).
    ModuleStart {
        /// Index of the module in the image.
        module: u32,
    },
    /// Glue code of the component model, with the symbol's name.
    Component(String),
    /// Other code, with its symbol's name.
    Other(String),
}

impl FunctionKind {
    /// Tells the kind from a symbol's name (`compile.rs`).
    pub fn of_symbol(symbol: &str) -> FunctionKind {
        FunctionKind::parse(symbol).unwrap_or_else(|| FunctionKind::Other(symbol.to_string()))
    }

    fn parse(symbol: &str) -> Option<FunctionKind> {
        if let Some(wasm) = wasm_symbol(symbol) {
            let WasmSymbol { module, function, name } = wasm;
            return Some(FunctionKind::Wasm { module, function, name: name.map(str::to_string) });
        }
        if let Some(rest) = symbol.strip_prefix("wasm[") {
            let (module, used) = number(rest)?;
            let rest = rest.get(used..)?.strip_prefix("::")?;
            let rest = rest.strip_prefix("array_to_wasm_trampoline[")?;
            let (function, used) = number(rest)?;
            return rest.get(used..)?.is_empty().then_some(FunctionKind::ArrayToWasm { module, function });
        }
        if let Some(rest) = symbol.strip_prefix("signatures[") {
            let (signature, used) = number(rest)?;
            return (rest.get(used..)? == "::wasm_to_array_trampoline")
                .then_some(FunctionKind::WasmToArray { signature });
        }
        if let Some(rest) = symbol.strip_prefix("module_start[") {
            let (module, _) = number(rest)?;
            return Some(FunctionKind::ModuleStart { module });
        }
        // Code named "wasmtime_patchable_builtin_" (from version 41 on) is called at breakpoints and saves all
        // registers.
        for prefix in ["wasmtime_builtin_", "wasmtime_patchable_builtin_"] {
            if let Some(name) = symbol.strip_prefix(prefix) {
                return Some(FunctionKind::Builtin(name.to_string()));
            }
        }
        let component = symbol.starts_with("component-")
            || symbol.starts_with("unsafe-intrinsics-")
            || symbol.starts_with("resource_drop_trampoline");
        component.then(|| FunctionKind::Component(symbol.to_string()))
    }

    /// Index of the module that the code is of.
    fn module(&self) -> Option<u32> {
        match *self {
            FunctionKind::Wasm { module, .. }
            | FunctionKind::ArrayToWasm { module, .. }
            | FunctionKind::ModuleStart { module } => Some(module),
            _ => None,
        }
    }

    /// The same code without its module, for code of a module that is not believed to exist: only its symbol's name
    /// is left.
    fn of_no_module(self) -> FunctionKind {
        FunctionKind::Other(match self {
            FunctionKind::Wasm { module, function, name: Some(name) } => {
                format!("wasm[{module}]::function[{function}]::{name}")
            }
            FunctionKind::Wasm { module, function, name: None } => format!("wasm[{module}]::function[{function}]"),
            FunctionKind::ArrayToWasm { module, function } => {
                format!("wasm[{module}]::array_to_wasm_trampoline[{function}]")
            }
            FunctionKind::ModuleStart { module } => format!("module_start[{module}]"),
            other => return other,
        })
    }

    /// Whether a frame of this code is a frame of the guest.
    pub fn is_wasm(&self) -> bool {
        matches!(self, FunctionKind::Wasm { .. })
    }
}

/// A piece of code in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Offset of the piece from the start of the code.
    pub start: u32,
    /// Length of the piece in bytes.
    pub len: u32,
    /// What the piece is.
    pub kind: FunctionKind,
}

impl Function {
    /// Offset of the first byte behind the piece, from the start of the code.
    pub fn end(&self) -> u32 {
        self.start.saturating_add(self.len)
    }
}

/// Which Wasm function a symbol names.
struct WasmSymbol<'a> {
    module: u32,
    function: u32,
    name: Option<&'a str>,
}

/// Parses `wasm[MODULE]::function[FUNCTION]`, with or without `::NAME`.
fn wasm_symbol(symbol: &str) -> Option<WasmSymbol<'_>> {
    let rest = symbol.strip_prefix("wasm[")?;
    let (module, used) = number(rest)?;
    let rest = rest.get(used..)?.strip_prefix("::function[")?;
    let (function, used) = number(rest)?;
    let rest = rest.get(used..)?;
    let name = if rest.is_empty() { None } else { Some(rest.strip_prefix("::")?) };
    Some(WasmSymbol { module, function, name })
}

/// Parses "NUMBER]REST" and returns the number, and the length of the number with the bracket.
fn number(s: &str) -> Option<(u32, usize)> {
    let digits = s.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = s.split_at(digits);
    Some((number.parse().ok().filter(|_| rest.starts_with(']'))?, digits + 1))
}

/// The pieces of code of an image, sorted by offset. A large module has many of them and few are asked for, so the
/// name of a symbol is only parsed when its piece is asked for.
#[derive(Clone, Debug)]
pub struct FunctionTable {
    pieces: Vec<CodePiece>,
    kinds: Kinds,
    /// Modules with this index or a higher one are not believed to exist.
    modules: u32,
    /// For each Wasm function that has a name in the table, by module and function: the number of its piece in the
    /// table. Of several pieces of a function it is the first.
    named: OnceLock<HashMap<(u32, u32), usize>>,
}

/// A piece of a table that is a Wasm function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WasmPiece {
    /// Number of the piece in the table.
    pub number: usize,
    /// Index of the module in the image.
    pub module: u32,
    /// Index of the function in the module, where imported functions come first.
    pub function: u32,
    /// Whether the function has a name in the table.
    pub named: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodePiece {
    pub(super) start: u32,
    pub(super) len: u32,
    /// Where the name of the piece's symbol begins in the strings, or the index of the piece's kind.
    pub(super) kind: u32,
}

/// How the kinds of the pieces are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kinds {
    /// The kinds are told by the names of symbols, which are in this string table.
    Symbols(Vec<u8>),
    Known(Vec<FunctionKind>),
}

impl Default for FunctionTable {
    fn default() -> FunctionTable {
        FunctionTable::new(Vec::new())
    }
}

impl FunctionTable {
    /// Makes a table of these functions, sorted.
    pub fn new(functions: Vec<Function>) -> FunctionTable {
        let piece = |(f, kind): (&Function, u32)| CodePiece { start: f.start, len: f.len, kind };
        let pieces = functions.iter().zip(0..).map(piece).collect();
        FunctionTable::sorted(pieces, Kinds::Known(functions.into_iter().map(|f| f.kind).collect()))
    }

    pub(super) fn sorted(mut pieces: Vec<CodePiece>, kinds: Kinds) -> FunctionTable {
        pieces.sort_by_key(|p| (p.start, p.len));
        FunctionTable { pieces, kinds, modules: MAX_IMAGE_MODULES, named: OnceLock::new() }
    }

    /// Believes that the image has so many modules: code that is said to be of another module counts as code with a
    /// name of another form.
    pub fn of_modules(mut self, modules: usize) -> FunctionTable {
        self.modules = u32::try_from(modules).unwrap_or(u32::MAX).min(MAX_IMAGE_MODULES);
        self.named = OnceLock::new();
        self
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there are no pieces.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Offset and length in bytes of the piece with this number.
    pub fn piece(&self, number: usize) -> Option<(u32, u32)> {
        self.pieces.get(number).map(|piece| (piece.start, piece.len))
    }

    /// All pieces. The name of each is parsed when the iterator comes to it.
    pub fn iter(&self) -> impl Iterator<Item = Function> + '_ {
        self.pieces.iter().map(|piece| self.function(piece))
    }

    /// The pieces that are Wasm functions. Their names are not copied.
    pub fn wasm(&self) -> impl Iterator<Item = WasmPiece> + '_ {
        self.pieces.iter().enumerate().filter_map(|(number, piece)| {
            let (module, function, named) = match &self.kinds {
                Kinds::Symbols(strings) => {
                    let symbol = String::from_utf8_lossy(symbol_at(strings, piece.kind)?);
                    wasm_symbol(&symbol).map(|s| (s.module, s.function, s.name.is_some()))?
                }
                Kinds::Known(kinds) => match kinds.get(piece.kind as usize)? {
                    FunctionKind::Wasm { module, function, name } => (*module, *function, name.is_some()),
                    _ => return None,
                },
            };
            (module < self.modules).then_some(WasmPiece { number, module, function, named })
        })
    }

    /// Name that a Wasm function has in this table.
    pub fn name_of(&self, module: u32, function: u32) -> Option<String> {
        let named = self.named.get_or_init(|| {
            let mut named = HashMap::new();
            for piece in self.wasm().filter(|piece| piece.named) {
                named.entry((piece.module, piece.function)).or_insert(piece.number);
            }
            named
        });
        self.wasm_name(*named.get(&(module, function))?)
    }

    // Name of the Wasm function whose piece has this number in the table.
    fn wasm_name(&self, number: usize) -> Option<String> {
        match self.function(self.pieces.get(number)?).kind {
            FunctionKind::Wasm { name, .. } => name,
            _ => None,
        }
    }

    /// The piece that covers an offset from the start of the code. For a return address, ask for one byte before it.
    pub fn at(&self, text_offset: u32) -> Option<Function> {
        let behind = self.pieces.partition_point(|p| p.start <= text_offset);
        let piece = self.pieces[..behind].last().filter(|p| text_offset - p.start < p.len)?;
        Some(self.function(piece))
    }

    fn function(&self, piece: &CodePiece) -> Function {
        let kind = match &self.kinds {
            Kinds::Symbols(strings) => {
                let name = String::from_utf8_lossy(symbol_at(strings, piece.kind).unwrap_or_default());
                let kind = FunctionKind::of_symbol(&name);
                match kind.module().is_some_and(|module| module >= self.modules) {
                    true => FunctionKind::Other(name.into_owned()),
                    false => kind,
                }
            }
            // The constructor makes pieces and kinds together, so each piece has its kind.
            Kinds::Known(kinds) => {
                kinds.get(piece.kind as usize).cloned().unwrap_or(FunctionKind::Other(String::new()))
            }
        };
        let kind = match kind.module() {
            Some(module) if module >= self.modules => kind.of_no_module(),
            _ => kind,
        };
        Function { start: piece.start, len: piece.len, kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wasmtime::image::version::Version;
    use crate::runtime::wasmtime::image::{ADDRMAP, FRAMES, INFO, Image, Kind, SliceMemory};
    use crate::runtime::wasmtime::testing::fixture;

    #[test]
    fn symbols_names() {
        let of = FunctionKind::of_symbol;
        assert_eq!(
            of("wasm[0]::function[3]::a::b]"),
            FunctionKind::Wasm { module: 0, function: 3, name: Some("a::b]".into()) }
        );
        assert_eq!(of("wasm[2]::function[30]"), FunctionKind::Wasm { module: 2, function: 30, name: None });
        assert_eq!(of("wasm[1]::array_to_wasm_trampoline[7]"), FunctionKind::ArrayToWasm { module: 1, function: 7 });
        assert_eq!(of("signatures[9]::wasm_to_array_trampoline"), FunctionKind::WasmToArray { signature: 9 });
        assert_eq!(of("wasmtime_builtin_memory_grow"), FunctionKind::Builtin("memory_grow".into()));
        assert_eq!(of("module_start[0]::Array"), FunctionKind::ModuleStart { module: 0 });
        assert!(matches!(of("component-trampolines[0]-array-call-lower_import"), FunctionKind::Component(_)));
        for odd in ["wasm[", "wasm[x]::function[0]", "wasm[0]::function[0]x", "signatures[1]", "wasm[0]::é", ""] {
            assert_eq!(of(odd), FunctionKind::Other(odd.into()));
        }
    }

    #[test]
    fn sections_and_functions_of_a_real_image() {
        for (name, version, functions) in [("48-default", 48, 6), ("36-default", 36, 6)] {
            let bytes = fixture(name);
            // The image is at some address, as in a process.
            let memory = SliceMemory::new(0x7000_0000, &bytes);
            let image = Image::read(&memory, 0x7000_0000).unwrap();
            assert_eq!((image.header().kind, image.header().machine, image.header().pulley), (Kind::Module, 62, None));
            assert_eq!(image.size(), bytes.len() as u64);
            let engine = image.engine(&memory).unwrap();
            assert_eq!(engine.version(), Some(Version(version)));
            assert!(engine.target.unwrap().starts_with("x86_64"));
            assert!(image.has(ADDRMAP) && image.has(INFO) && !image.has(FRAMES), "{name}");
            let table = image.symbols(&memory).unwrap();
            let wasm = table.iter().filter(|f| f.kind.is_wasm()).count();
            assert!(wasm + 2 >= functions - 2 && wasm == 4, "{name}: {table:?}");
            for f in table.iter() {
                assert_eq!(table.at(f.start).as_ref(), Some(&f));
                assert_eq!(table.at(f.end() - 1).as_ref(), Some(&f));
                assert_ne!(table.at(f.end()).as_ref(), Some(&f));
            }
            let known = FunctionTable::new(table.iter().collect());
            assert!(known.iter().eq(table.iter()) && known.wasm().eq(table.wasm()));
            // Code of a module that does not exist is of no module.
            for none in [table.clone().of_modules(0), known.of_modules(0)] {
                assert!(none.wasm().next().is_none() && none.name_of(0, 1).is_none());
                for (f, other) in table.iter().zip(none.iter()) {
                    assert_eq!(f.kind.module().is_some(), f.kind != other.kind);
                    assert!(f.kind.module().is_none() || matches!(&other.kind, FunctionKind::Other(n) if n.len() > 9));
                }
            }
            for WasmPiece { number, module, function, named } in table.wasm() {
                let name = table.wasm_name(number);
                assert_eq!((name.is_some(), &name), (named, &table.name_of(module, function)));
                assert_eq!(table.iter().nth(number).unwrap().kind, FunctionKind::Wasm { module, function, name });
            }
            assert_eq!(table.wasm().count(), wasm);
            assert_eq!(image.text_offset(image.text().start + 3), Some(3));
            assert_eq!((image.text_offset(image.text().end), image.text_offset(0)), (None, None));
        }
    }

    #[test]
    fn a_symbol_is_cut() {
        let strings = |len: usize| [vec![b'a'; len], vec![0]].concat();
        for len in [0, 5, MAX_IMAGE_SYMBOL_BYTES, MAX_IMAGE_SYMBOL_BYTES + 1, 3 * MAX_IMAGE_SYMBOL_BYTES] {
            assert_eq!(symbol_at(&strings(len), 0).unwrap().len(), len.min(MAX_IMAGE_SYMBOL_BYTES));
        }
    }
}
