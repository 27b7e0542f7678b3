//! `.wasmtime.info`: the modules of an image with their types, and all its functions.
//!
//! The section is in postcard, which describes nothing, so every field must be known, and nearly every major version
//! changed some fields. What differs is marked by the version beside the field (here and in `shape.rs`); the rest is
//! common to all. A section is believed only if it is used up to the last byte and its parts fit together.
//!
//! | version | change |
//! |---|---|
//! | 37 | a tag has an exception type; `ref.null` in initializers a type |
//! | 38 | one table of all functions in place of lists; a module knows its index |
//! | 39, 40, 42, 44, 48, 49, 50 | components only |
//! | 41 | functions have four bits for their kind (39 and 40: three) |
//! | 43 | strings of a module are numbered; parameters and results of a signature are one list; checksums |
//! | 45 | expressions in element segments have a type |
//! | 46 | initializers became code: no expressions any more, but a start function and data segments for the runtime |

use std::sync::Arc;

use super::postcard::{Malformed, Reader};
use super::shape;
use super::version::Version;
use super::{Function, FunctionKind, FunctionTable, Kind};
use crate::limits::{MAX_FUNCTIONS, MAX_IMAGE_MODULES, MAX_NAME_BYTES};

/// Why the section cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    /// The layout of this version is not known.
    #[error("the layout of .wasmtime.info in version {0} is not known (known are {first} to {last})", first = Version::OLDEST, last = Version::NEWEST)]
    UnknownVersion(Version),
    /// The version is not known, and no known layout fits.
    #[error(".wasmtime.info has none of the known layouts ({first} to {last})", first = Version::OLDEST, last = Version::NEWEST)]
    UnknownLayout,
    /// The section does not have the version's layout.
    #[error(".wasmtime.info does not have the layout of version {version}: {cause}")]
    Malformed {
        /// The version whose layout was expected.
        version: Version,
        /// The first thing that is wrong.
        cause: Malformed,
    },
}

/// A Wasm value type. Reference types are told apart by what they refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WasmType {
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// 128-bit vector.
    V128,
    /// A reference.
    Ref {
        /// Whether it can be null.
        nullable: bool,
        /// What it refers to.
        to: RefTo,
    },
}

/// What a reference refers to: the top of its type hierarchy, which decides how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefTo {
    /// A function, stored as a pointer to a `VMFuncRef`.
    Func,
    /// A value of the host, stored as an index into the GC heap.
    Extern,
    /// A struct, an array or an i31, stored as an index into the GC heap, or as the number itself.
    Any,
    /// An exception, stored as an index into the GC heap.
    Exn,
    /// A continuation, stored as two words.
    Cont,
}

impl WasmType {
    /// Bytes that a value takes in a global or a `ValRaw` (both have 16 bytes of room).
    pub fn bytes(self) -> usize {
        match self {
            WasmType::I32 | WasmType::F32 => 4,
            WasmType::I64 | WasmType::F64 => 8,
            WasmType::V128 => 16,
            WasmType::Ref { to, .. } => match to {
                RefTo::Func => 8,
                RefTo::Extern | RefTo::Any | RefTo::Exn => 4,
                RefTo::Cont => 16,
            },
        }
    }

    /// Name of the type in the text format. A reference type has its abstract name.
    pub fn name(self) -> &'static str {
        match self {
            WasmType::I32 => "i32",
            WasmType::I64 => "i64",
            WasmType::F32 => "f32",
            WasmType::F64 => "f64",
            WasmType::V128 => "v128",
            WasmType::Ref { to, .. } => match to {
                RefTo::Func => "funcref",
                RefTo::Extern => "externref",
                RefTo::Any => "anyref",
                RefTo::Exn => "exnref",
                RefTo::Cont => "contref",
            },
        }
    }
}

/// The signature of a function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FuncType {
    /// Types of the parameters.
    pub params: Vec<WasmType>,
    /// Types of the results.
    pub results: Vec<WasmType>,
}

/// Limits of the size of a memory or table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// The smallest size.
    pub min: u64,
    /// The largest size, if there is one.
    pub max: Option<u64>,
}

/// A linear memory's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryType {
    /// Whether addresses have 64 bits.
    pub memory64: bool,
    /// Limits of the memory's size, in pages.
    pub limits: Limits,
    /// Whether the memory is shared between threads. Such a memory is not kept in the instance itself.
    pub shared: bool,
    /// Binary logarithm of the page size: 16, or 0 for pages of one byte.
    pub page_size_log2: u8,
}

/// A table's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableType {
    /// Whether indices have 64 bits.
    pub table64: bool,
    /// Limits of the table's size, in elements.
    pub limits: Limits,
    /// Type of the elements.
    pub element: WasmType,
}

/// A global's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GlobalType {
    /// Type of the value.
    pub ty: WasmType,
    /// Whether the value can be changed.
    pub mutable: bool,
}

/// A function's type and whether it can be referred to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModuleFunction {
    /// Index of the signature in [`ImageInfo::types`].
    pub signature: Option<u32>,
    /// Index of the function's entry among the instance's `VMFuncRef`s, if something may refer to the function.
    pub func_ref: Option<u32>,
}

/// An item in one of a module's index spaces, with its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entity {
    /// The function with this index.
    Function(u32),
    /// The table with this index.
    Table(u32),
    /// The memory with this index.
    Memory(u32),
    /// The global with this index.
    Global(u32),
    /// The tag with this index.
    Tag(u32),
}

/// An import of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Name of the module to import from.
    pub module: Arc<str>,
    /// Name of the item in that module.
    pub field: Arc<str>,
    /// The item that the import becomes.
    pub entity: Entity,
}

/// An export of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Name of the export.
    pub name: Arc<str>,
    /// The item that is exported.
    pub entity: Entity,
}

/// Number of items of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Number of functions.
    pub functions: u32,
    /// Number of tables.
    pub tables: u32,
    /// Number of memories.
    pub memories: u32,
    /// Number of globals.
    pub globals: u32,
    /// Number of tags.
    pub tags: u32,
}

/// Where a function's name is in `.name.wasm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameRange {
    /// Index of the function, where imported functions come first.
    pub function: u32,
    /// Offset of the name in the section, in bytes.
    pub offset: u32,
    /// Length of the name in bytes.
    pub len: u32,
}

/// What is known of the debug information that came with the Wasm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Whether the Wasm had debug information that was thrown away.
    pub unparsed_debug_info: bool,
    /// Offset of the code section's contents in the Wasm file. The addresses in DWARF count from there.
    pub code_section_offset: u64,
    /// Whether the Wasm's own DWARF is kept in the section `.wasmtime.dwarf`.
    pub wasm_debug_info: bool,
    /// Sections of that DWARF: `gimli::SectionId` as a number, begin and end in `.wasmtime.dwarf`.
    pub dwarf: Vec<(u8, u64, u64)>,
}

/// A core module of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Index of the module in the image.
    pub index: u32,
    /// Name of the module from its name section.
    pub name: Option<Arc<str>>,
    /// Imports in order.
    pub imports: Vec<Import>,
    /// Exports in order.
    pub exports: Vec<Export>,
    /// Index of the module's own start function. From version 46 on the compiled initializer calls it, and it is not
    /// recorded.
    pub start: Option<u32>,
    /// Whether there is a compiled initializer (from version 46 on). The instance has a `VMFuncRef` for it.
    pub has_startup: bool,
    /// Numbers of imported items. Imported items come first in their index spaces.
    pub imported: Counts,
    /// Whether the module uses the GC heap.
    pub needs_gc_heap: bool,
    /// Number of functions for which the instance has a `VMFuncRef`.
    pub escaped_functions: u32,
    /// Data segments to which the instance has pointers (from version 46 on): begin and end in `.rodata.wasm`.
    pub runtime_data: Vec<(u32, u32)>,
    /// Functions, imported ones first.
    pub functions: Vec<ModuleFunction>,
    /// Tables, imported ones first.
    pub tables: Vec<TableType>,
    /// Memories, imported ones first.
    pub memories: Vec<MemoryType>,
    /// Globals, imported ones first.
    pub globals: Vec<GlobalType>,
    /// Number of tags, imported ones first.
    pub tags: u32,
    /// Names of functions, sorted by function.
    pub function_names: Vec<NameRange>,
    /// What is known of the module's debug information.
    pub meta: Meta,
}

impl ModuleInfo {
    /// Numbers of defined items.
    pub fn defined(&self) -> Counts {
        let less = |all: usize, imported: u32| (all as u32).saturating_sub(imported);
        Counts {
            functions: less(self.functions.len(), self.imported.functions),
            tables: less(self.tables.len(), self.imported.tables),
            memories: less(self.memories.len(), self.imported.memories),
            globals: less(self.globals.len(), self.imported.globals),
            tags: self.tags.saturating_sub(self.imported.tags),
        }
    }

    /// Number of defined memories that are kept in the instance: all but shared ones.
    pub fn owned_memories(&self) -> u32 {
        self.memories.iter().skip(self.imported.memories as usize).filter(|m| !m.shared).count() as u32
    }

    /// Name of a function. `names` is the contents of `.name.wasm`.
    pub fn function_name<'a>(&self, function: u32, names: &'a [u8]) -> Option<&'a str> {
        let at = self.function_names.binary_search_by_key(&function, |n| n.function).ok()?;
        let range = self.function_names.get(at)?;
        let (begin, len) = (range.offset as usize, range.len as usize);
        if len > MAX_NAME_BYTES {
            return None;
        }
        std::str::from_utf8(names.get(begin..begin.checked_add(len)?)?).ok()
    }

    fn consistent(&self) -> bool {
        let within = |n: u32, all: usize| n as usize <= all;
        let exists = |entity: &Entity| match *entity {
            Entity::Function(i) => (i as usize) < self.functions.len(),
            Entity::Table(i) => (i as usize) < self.tables.len(),
            Entity::Memory(i) => (i as usize) < self.memories.len(),
            Entity::Global(i) => (i as usize) < self.globals.len(),
            Entity::Tag(i) => i < self.tags,
        };
        within(self.imported.functions, self.functions.len())
            && within(self.imported.tables, self.tables.len())
            && within(self.imported.memories, self.memories.len())
            && within(self.imported.globals, self.globals.len())
            && self.imported.tags <= self.tags
            && within(self.escaped_functions, self.functions.len())
            && self.functions.iter().all(|f| f.func_ref.is_none_or(|r| r < self.escaped_functions))
            && self.exports.iter().all(|e| exists(&e.entity))
            && self.imports.iter().all(|i| exists(&i.entity))
            && self.function_names.is_sorted_by_key(|n| n.function)
            && self.runtime_data.iter().all(|(begin, end)| begin <= end)
    }
}

/// How many bits of a function's key hold its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuncKeyBits {
    /// Three bits, in versions 38 to 40.
    Three,
    /// Four bits, from version 41 on.
    Four,
}

/// What a compiled function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FuncKind {
    /// The Wasm function `index` of module `namespace`, where imported functions are not counted.
    Wasm,
    /// The entry trampoline of the Wasm function `index` of module `namespace`.
    ArrayToWasm,
    /// The exit trampoline of signature `index`.
    WasmToArray,
    /// Code that calls the runtime's routine `index`.
    WasmToBuiltin,
    /// Code for breakpoints that calls the runtime's routine `index` and saves all registers.
    PatchableToBuiltin,
    /// Code that calls out of the Pulley interpreter.
    PulleyHostCall,
    /// Glue code of a component, with number `index`.
    ComponentTrampoline,
    /// Code that drops a component's resource.
    ResourceDrop,
    /// Code that accesses host memory, with number `index`.
    UnsafeIntrinsic,
    /// The initializer of module `namespace`.
    ModuleStartup,
}

impl FuncKind {
    // Whether functions of this kind are numbered without gaps, so that their numbers are not written.
    fn dense(self) -> bool {
        use FuncKind::*;
        !matches!(self, ArrayToWasm | WasmToBuiltin | PatchableToBuiltin | ModuleStartup)
    }
}

/// Which function a piece of code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FuncKey {
    /// Kind of the function.
    pub kind: FuncKind,
    /// Index of the module, or the calling convention of component glue (0 Wasm, 1 array, 2 patchable).
    pub namespace: u32,
    /// Index of the function. What it counts depends on the kind.
    pub index: u32,
}

impl FuncKey {
    /// Makes a key of its two words (`key.rs`). `None` if the kind is unknown.
    pub fn from_parts(namespace: u32, index: u32, bits: FuncKeyBits) -> Option<FuncKey> {
        use FuncKind::*;
        let (width, kinds): (u32, &[FuncKind]) = match bits {
            FuncKeyBits::Three => (
                3,
                &[
                    Wasm,
                    ArrayToWasm,
                    WasmToArray,
                    WasmToBuiltin,
                    PulleyHostCall,
                    ComponentTrampoline,
                    ResourceDrop,
                    UnsafeIntrinsic,
                ],
            ),
            FuncKeyBits::Four => (
                4,
                &[
                    Wasm,
                    ArrayToWasm,
                    WasmToArray,
                    WasmToBuiltin,
                    PatchableToBuiltin,
                    PulleyHostCall,
                    ComponentTrampoline,
                    ResourceDrop,
                    UnsafeIntrinsic,
                    ModuleStartup,
                ],
            ),
        };
        let kind = *kinds.get((namespace >> (32 - width)) as usize)?;
        Some(FuncKey { kind, namespace: namespace & (u32::MAX >> width), index })
    }
}

/// A compiled function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompiledFunction {
    /// Which function it is.
    pub key: FuncKey,
    /// Offset from the start of the code.
    pub start: u32,
    /// Length of the code in bytes.
    pub len: u32,
    /// Of a Wasm function: offset of its body in the file that was compiled.
    pub body: Option<u32>,
}

/// All that is taken from `.wasmtime.info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The version whose layout fits.
    pub version: Version,
    /// The core modules: the only one, or those of a component.
    pub modules: Vec<ModuleInfo>,
    /// Types of all modules together. `None`: a type that is no function type.
    pub types: Vec<Option<FuncType>>,
    /// All compiled functions, sorted by offset.
    pub functions: Vec<CompiledFunction>,
}

impl ImageInfo {
    /// Decodes the section in the layout of `version`.
    ///
    /// # Errors
    /// If that layout is not known or does not fit.
    pub fn decode(section: &[u8], kind: Kind, version: Version) -> Result<ImageInfo, InfoError> {
        if !version.known() {
            return Err(InfoError::UnknownVersion(version));
        }
        let mut d = Decoder { r: Reader::new(section), v: version };
        let info = match kind {
            Kind::Module => d.module_image(),
            Kind::Component => d.component_image(),
        };
        let info = info.and_then(|info| {
            if d.r.remaining() > 0 {
                return Err(d.r.wrong("bytes behind the end"));
            }
            if !info.modules.iter().all(ModuleInfo::consistent) {
                return Err(d.r.wrong("a module's parts do not fit together"));
            }
            Ok(info)
        });
        info.map_err(|cause| InfoError::Malformed { version, cause })
    }

    /// Decodes the section of an image that hides its version, in the newest layout that fits. Layouts that differ
    /// only in components fit a module equally well, so [`ImageInfo::version`] is then one of several versions that
    /// are possible.
    ///
    /// # Errors
    /// If no known layout fits.
    pub fn guess(section: &[u8], kind: Kind) -> Result<ImageInfo, InfoError> {
        Version::all().find_map(|v| ImageInfo::decode(section, kind, v).ok()).ok_or(InfoError::UnknownLayout)
    }

    /// The signature of a module's function.
    pub fn signature(&self, module: u32, function: u32) -> Option<&FuncType> {
        let f = self.modules.get(module as usize)?.functions.get(function as usize)?;
        self.types.get(f.signature? as usize)?.as_ref()
    }

    /// The table of functions for images without symbols, the same that symbols would give. Names come from
    /// `.name.wasm` and are whole, while symbols are cleaned and cut.
    pub fn function_table(&self, names: &[u8]) -> FunctionTable {
        // Names do not overlap, so together they are no longer than the section.
        let mut left = names.len();
        let mut take = |name: &str| {
            left = left.checked_sub(name.len())?;
            Some(name.to_string())
        };
        let function = |f: &CompiledFunction| {
            let (module, index) = (f.key.namespace, f.key.index);
            let wasm = || self.modules.get(module as usize).map(|m| (m, m.imported.functions.saturating_add(index)));
            let kind = match f.key.kind {
                FuncKind::Wasm => {
                    let (m, function) = wasm()?;
                    FunctionKind::Wasm { module, function, name: m.function_name(function, names).and_then(&mut take) }
                }
                FuncKind::ArrayToWasm => FunctionKind::ArrayToWasm { module, function: wasm()?.1 },
                FuncKind::WasmToArray => FunctionKind::WasmToArray { signature: index },
                // The numbers of routines change with each version and with the features of the build.
                FuncKind::WasmToBuiltin | FuncKind::PatchableToBuiltin => FunctionKind::Builtin(format!("#{index}")),
                FuncKind::ModuleStartup => FunctionKind::ModuleStart { module },
                FuncKind::ComponentTrampoline => FunctionKind::Component(format!("component-trampolines[{index}]")),
                FuncKind::ResourceDrop => FunctionKind::Component("resource_drop_trampoline".into()),
                FuncKind::UnsafeIntrinsic => FunctionKind::Component(format!("unsafe-intrinsics[{index}]")),
                FuncKind::PulleyHostCall => FunctionKind::Other(format!("pulley host call {index}")),
            };
            Some(Function { start: f.start, len: f.len, kind })
        };
        FunctionTable::new(self.functions.iter().filter_map(function).collect())
    }
}

type Result<T, E = Malformed> = std::result::Result<T, E>;

// Reads the runtime's structures. Each method has the name of the structure that it reads.
struct Decoder<'a> {
    r: Reader<'a>,
    v: Version,
}

impl<'a> Decoder<'a> {
    fn since(&self, first: u32) -> bool {
        self.v.0 >= first
    }

    fn skip(&mut self, shape: &shape::Shape) -> Result<()> {
        shape.skip(&mut self.r, self.v)
    }

    fn seq<T>(&mut self, mut element: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let n = self.r.count()?;
        let mut out = Vec::new();
        for _ in 0..n {
            out.push(element(self)?);
        }
        Ok(out)
    }

    fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.r.bool()? { value(self).map(Some) } else { Ok(None) }
    }

    fn module_image(&mut self) -> Result<ImageInfo> {
        let mut functions = Vec::new();
        let module = self.compiled_module_info(0, &mut functions)?;
        if self.since(38) {
            self.compiled_functions_table(&mut functions)?;
        }
        let types = self.module_types()?;
        Ok(self.finish(vec![module], types, functions))
    }

    fn component_image(&mut self) -> Result<ImageInfo> {
        let mut functions = Vec::new();
        self.r.u32()?;
        self.skip(&shape::COMPONENT)?;
        if self.since(38) {
            self.compiled_functions_table(&mut functions)?;
        } else {
            self.component_functions(&mut functions)?;
        }
        self.skip(&shape::COMPONENT_TYPES_BEFORE)?;
        let types = self.option(Self::module_types)?.unwrap_or_default();
        self.skip(&shape::COMPONENT_TYPES_BEHIND)?;
        let mut modules = Vec::new();
        let count = self.r.count()?;
        if count > MAX_IMAGE_MODULES as usize {
            return Err(self.r.wrong("more modules than are looked at"));
        }
        for index in 0..count {
            modules.push(self.compiled_module_info(index as u32, &mut functions)?);
        }
        self.skip(&shape::CHECKSUM)?;
        Ok(self.finish(modules, types, functions))
    }

    fn finish(
        &self,
        modules: Vec<ModuleInfo>,
        types: Vec<Option<FuncType>>,
        mut functions: Vec<CompiledFunction>,
    ) -> ImageInfo {
        functions.sort_by_key(|f| (f.start, f.len));
        // Each core module of an old component lists the same exit trampolines.
        functions.dedup();
        ImageInfo { version: self.v, modules, types, functions }
    }

    fn compiled_module_info(&mut self, index: u32, functions: &mut Vec<CompiledFunction>) -> Result<ModuleInfo> {
        let mut module = self.module(index)?;
        if self.since(38) {
            module.meta = self.metadata()?;
            module.function_names = self.seq(Self::function_name)?;
        } else {
            self.compiled_functions(module.index, functions)?;
            module.function_names = self.seq(Self::function_name)?;
            let exits = self.seq(|d| Ok((d.r.u32()?, d.function_loc()?)))?;
            let exit = |(index, (start, len))| compiled(FuncKind::WasmToArray, 0, index, start, len);
            functions.extend(exits.into_iter().map(exit));
            module.meta = self.metadata()?;
        }
        self.skip(&shape::CHECKSUM)?;
        Ok(module)
    }

    fn module(&mut self, index: u32) -> Result<ModuleInfo> {
        let index = if self.since(38) { self.r.u32()? } else { index };
        let pool: Option<Vec<Arc<str>>> =
            if self.since(43) { Some(self.seq(|d| d.r.str().map(Arc::from))?) } else { None };
        // A string is a number in the pool, counted from one, or stands here. Strings are shared, because a few bytes
        // of input can name a long string many times.
        let text = |d: &mut Self| -> Result<Arc<str>> {
            match &pool {
                None => d.r.str().map(Arc::from),
                Some(pool) => {
                    let wrong = d.r.wrong("no such string");
                    let number = d.r.u32()? as usize;
                    number.checked_sub(1).and_then(|i| pool.get(i)).cloned().ok_or(wrong)
                }
            }
        };
        let name = self.option(text)?;
        let imports = self.seq(|d| {
            let wrong = d.r.wrong("no import");
            if d.r.u64()? != 0 {
                return Err(wrong);
            }
            Ok(Import { module: text(d)?, field: text(d)?, entity: d.entity_index()? })
        })?;
        let exports = self.seq(|d| Ok(Export { name: text(d)?, entity: d.entity_index()? }))?;
        let (mut start, mut has_startup, mut runtime_data) = (None, false, Vec::new());
        if self.since(46) {
            has_startup = self.module_startup()?;
            self.seq(|d| d.seq(|d| d.r.u32()))?;
            self.skip(&shape::MEMORY_INITIALIZATION)?;
            self.seq(|d| {
                d.skip(&shape::REF_TYPE)?;
                d.r.u64()
            })?;
            runtime_data = self.seq(|d| Ok((d.r.u32()?, d.r.u32()?)))?;
        } else {
            start = self.option(|d| d.r.u32())?;
            self.skip(&shape::TABLE_INITIALIZATION)?;
            self.skip(&shape::MEMORY_INITIALIZATION)?;
            self.seq(|d| d.skip(&shape::TABLE_SEGMENT_ELEMENTS))?;
            // Two lists about element and data segments, by their index.
            self.seq(|d| Ok((d.r.u64()?, d.r.u64()?)))?;
            self.seq(|d| Ok((d.r.u64()?, d.r.u64()?, d.r.u64()?)))?;
        }
        self.seq(|d| d.skip(&shape::TYPE_INDEX))?;
        let imported = Counts {
            functions: self.r.u32()?,
            tables: self.r.u32()?,
            memories: self.r.u32()?,
            globals: self.r.u32()?,
            tags: self.r.u32()?,
        };
        let needs_gc_heap = self.r.bool()?;
        let escaped_functions = self.r.u32()?;
        let functions = self.seq(|d| {
            let signature = d.type_index()?;
            let func_ref = d.r.u32()?;
            Ok(ModuleFunction { signature, func_ref: (func_ref != u32::MAX).then_some(func_ref) })
        })?;
        let tables =
            self.seq(|d| Ok(TableType { table64: d.index_type()?, limits: d.limits()?, element: d.ref_type()? }))?;
        let memories = self.seq(|d| {
            Ok(MemoryType {
                memory64: d.index_type()?,
                limits: d.limits()?,
                shared: d.r.bool()?,
                page_size_log2: d.r.byte()?,
            })
        })?;
        let globals = self.seq(|d| Ok(GlobalType { ty: d.val_type()?, mutable: d.r.bool()? }))?;
        if self.since(46) {
            self.seq(|d| {
                d.r.u32()?;
                d.skip(&shape::GLOBAL_CONST)
            })?;
        } else {
            self.seq(|d| d.skip(&shape::CONST_EXPR))?;
        }
        let tags = self.seq(|d| d.skip(&shape::TAG))?.len() as u32;
        Ok(ModuleInfo {
            index,
            name,
            imports,
            exports,
            start,
            has_startup,
            imported,
            needs_gc_heap,
            escaped_functions,
            runtime_data,
            functions,
            tables,
            memories,
            globals,
            tags,
            function_names: Vec::new(),
            meta: Meta::default(),
        })
    }

    fn metadata(&mut self) -> Result<Meta> {
        Ok(Meta {
            unparsed_debug_info: self.r.bool()?,
            code_section_offset: self.r.u64()?,
            wasm_debug_info: self.r.bool()?,
            dwarf: self.seq(|d| Ok((d.r.byte()?, d.r.u64()?, d.r.u64()?)))?,
        })
    }

    fn function_name(&mut self) -> Result<NameRange> {
        Ok(NameRange { function: self.r.u32()?, offset: self.r.u32()?, len: self.r.u32()? })
    }

    fn function_loc(&mut self) -> Result<(u32, u32)> {
        Ok((self.r.u32()?, self.r.u32()?))
    }

    // Reads the `CompiledFunctionInfo` of each defined function, up to version 37.
    fn compiled_functions(&mut self, module: u32, functions: &mut Vec<CompiledFunction>) -> Result<()> {
        for index in 0..self.r.count()? as u32 {
            let body = self.r.u32()?;
            let (start, len) = self.function_loc()?;
            let entry = self.option(Self::function_loc)?;
            let body = (body != u32::MAX).then_some(body);
            functions.push(CompiledFunction { body, ..compiled(FuncKind::Wasm, module, index, start, len) });
            if let Some((start, len)) = entry {
                functions.push(compiled(FuncKind::ArrayToWasm, module, index, start, len));
            }
        }
        Ok(())
    }

    // Reads the glue code of a component, up to version 37: each piece in two calling conventions, and the code that
    // drops resources.
    fn component_functions(&mut self, functions: &mut Vec<CompiledFunction>) -> Result<()> {
        for index in 0..self.r.count()? as u32 {
            for convention in [0, 1] {
                let (start, len) = self.function_loc()?;
                functions.push(compiled(FuncKind::ComponentTrampoline, convention, index, start, len));
            }
        }
        if let Some((start, len)) = self.option(Self::function_loc)? {
            functions.push(compiled(FuncKind::ResourceDrop, 0, 0, start, len));
        }
        Ok(())
    }

    // Reads the table of functions, from version 38 on: `namespaces` are runs of functions of one kind and module.
    fn compiled_functions_table(&mut self, functions: &mut Vec<CompiledFunction>) -> Result<()> {
        let at = self.r.wrong("the table of functions does not fit together");
        let numbers = |d: &mut Self| d.seq(|d| d.r.u32());
        let namespaces = numbers(self)?;
        let loc_starts = numbers(self)?;
        let sparse_starts = numbers(self)?;
        let body_starts = numbers(self)?;
        let sparse = numbers(self)?;
        let locs = self.seq(Self::function_loc)?;
        let bodies = numbers(self)?;
        let bits = if self.since(41) { FuncKeyBits::Four } else { FuncKeyBits::Three };
        if locs.len() > MAX_FUNCTIONS {
            return Err(at);
        }
        for (i, &namespace) in namespaces.iter().enumerate() {
            let start = |of: &[u32], end: usize| {
                let begin = *of.get(i)? as usize;
                Some((begin, of.get(i + 1).map_or(end, |n| *n as usize)))
            };
            let (begin, end) = start(&loc_starts, locs.len()).ok_or(at)?;
            let (sparse_begin, _) = start(&sparse_starts, sparse.len()).ok_or(at)?;
            let (body_begin, _) = start(&body_starts, bodies.len()).ok_or(at)?;
            // Each run begins where the last one ended, so that no entry is taken twice.
            if begin > end || (i == 0 && begin != 0) {
                return Err(at);
            }
            for (k, &(start, len)) in locs.get(begin..end).ok_or(at)?.iter().enumerate() {
                let mut key = FuncKey::from_parts(namespace, k as u32, bits).ok_or(at)?;
                if !key.kind.dense() {
                    key.index = *sparse.get(sparse_begin.saturating_add(k)).ok_or(at)?;
                }
                let body = match key.kind {
                    FuncKind::Wasm => *bodies.get(body_begin.saturating_add(k)).ok_or(at)?,
                    _ => u32::MAX,
                };
                // An entry without bytes is a number that was not compiled.
                if len > 0 {
                    functions.push(CompiledFunction { key, start, len, body: (body != u32::MAX).then_some(body) });
                }
            }
        }
        Ok(())
    }

    fn module_types(&mut self) -> Result<Vec<Option<FuncType>>> {
        // Recursion groups, which are ranges of types.
        self.seq(|d| Ok((d.r.u32()?, d.r.u32()?)))?;
        let types = self.seq(Self::wasm_sub_type)?;
        self.skip(&shape::TRAMPOLINE_TYPES)?;
        Ok(types)
    }

    fn wasm_sub_type(&mut self) -> Result<Option<FuncType>> {
        self.r.bool()?;
        self.option(Self::type_index)?;
        let wrong = self.r.wrong("no such type");
        let function = match self.r.u64()? {
            0 => {
                self.field_type()?;
                None
            }
            1 => Some(self.wasm_func_type()?),
            2 => {
                self.seq(Self::field_type)?;
                None
            }
            3 => {
                self.type_index()?;
                None
            }
            4 => {
                self.type_index()?;
                self.seq(Self::field_type)?;
                None
            }
            _ => return Err(wrong),
        };
        // The flag `shared`.
        self.r.bool()?;
        Ok(function)
    }

    fn wasm_func_type(&mut self) -> Result<FuncType> {
        if !self.since(43) {
            let params = self.seq(Self::val_type)?;
            self.r.u64()?;
            let results = self.seq(Self::val_type)?;
            self.r.u64()?;
            return Ok(FuncType { params, results });
        }
        let mut params = self.seq(Self::val_type)?;
        let wrong = self.r.wrong("more parameters than types");
        let split = self.r.u32()? as usize;
        self.r.u32()?;
        self.r.u32()?;
        if split > params.len() {
            return Err(wrong);
        }
        let results = params.split_off(split);
        Ok(FuncType { params, results })
    }

    fn field_type(&mut self) -> Result<()> {
        let wrong = self.r.wrong("no such storage type");
        match self.r.u64()? {
            0 | 1 => {}
            2 => self.skip(&shape::VAL_TYPE)?,
            _ => return Err(wrong),
        }
        self.r.bool().map(|_| ())
    }

    fn module_startup(&mut self) -> Result<bool> {
        let wrong = self.r.wrong("no such way to start");
        match self.r.u64()? {
            0 => Ok(false),
            1 | 2 => self.type_index().map(|_| true),
            _ => Err(wrong),
        }
    }

    fn index_type(&mut self) -> Result<bool> {
        let wrong = self.r.wrong("no such index type");
        match self.r.u64()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(wrong),
        }
    }

    fn limits(&mut self) -> Result<Limits> {
        Ok(Limits { min: self.r.u64()?, max: self.option(|d| d.r.u64())? })
    }

    // Reads an index among the image's types. In an image such indices are not yet the engine's.
    fn type_index(&mut self) -> Result<Option<u32>> {
        let wrong = self.r.wrong("no such kind of type index");
        let kind = self.r.u64()?;
        let index = self.r.u32()?;
        match kind {
            0 | 2 => Ok(None),
            1 => Ok(Some(index)),
            _ => Err(wrong),
        }
    }

    fn entity_index(&mut self) -> Result<Entity> {
        let wrong = self.r.wrong("no such kind of item");
        let kind = self.r.u64()?;
        let index = self.r.u32()?;
        match kind {
            0 => Ok(Entity::Function(index)),
            1 => Ok(Entity::Table(index)),
            2 => Ok(Entity::Memory(index)),
            3 => Ok(Entity::Global(index)),
            4 => Ok(Entity::Tag(index)),
            _ => Err(wrong),
        }
    }

    fn val_type(&mut self) -> Result<WasmType> {
        let wrong = self.r.wrong("no such value type");
        match self.r.u64()? {
            0 => Ok(WasmType::I32),
            1 => Ok(WasmType::I64),
            2 => Ok(WasmType::F32),
            3 => Ok(WasmType::F64),
            4 => Ok(WasmType::V128),
            5 => self.ref_type(),
            _ => Err(wrong),
        }
    }

    fn ref_type(&mut self) -> Result<WasmType> {
        let nullable = self.r.bool()?;
        let wrong = self.r.wrong("no such heap type");
        // extern, func, exn and cont have an abstract, a concrete and a bottom type each (extern has no concrete
        // one). The other numbers are types below any.
        let to = match self.r.u64()? {
            0 | 1 => RefTo::Extern,
            n @ 2..=4 => self.heap(n == 3, RefTo::Func)?,
            n @ 5..=7 => self.heap(n == 6, RefTo::Exn)?,
            n @ 8..=10 => self.heap(n == 9, RefTo::Cont)?,
            n @ 11..=18 => self.heap(n == 15 || n == 17, RefTo::Any)?,
            _ => return Err(wrong),
        };
        Ok(WasmType::Ref { nullable, to })
    }

    fn heap(&mut self, concrete: bool, to: RefTo) -> Result<RefTo> {
        if concrete {
            self.type_index()?;
        }
        Ok(to)
    }
}

fn compiled(kind: FuncKind, namespace: u32, index: u32, start: u32, len: u32) -> CompiledFunction {
    CompiledFunction { key: FuncKey { kind, namespace, index }, start, len, body: None }
}

#[cfg(test)]
mod tests {
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
}
