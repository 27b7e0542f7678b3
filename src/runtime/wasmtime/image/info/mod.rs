//! `.wasmtime.info`: the modules of an image with their types, and all its functions.
//!
//! The section is in postcard, which describes nothing, so every field must be known, and nearly every major version
//! changed some fields. What differs is marked by the version beside the field (in `decode.rs` and `shape.rs`); the rest
//! is common to all. A section is believed only if it is used up to the last byte and its parts fit together.
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

mod decode;

use std::sync::Arc;

use self::decode::Decoder;
use super::postcard::{Malformed, Reader};
use super::version::Version;
use super::{Function, FunctionKind, FunctionTable, Kind};
use crate::limits::MAX_NAME_BYTES;

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
    /// Offset of the body in the file that was compiled, if this is a Wasm function.
    pub body: Option<u32>,
}

/// All that is taken from `.wasmtime.info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The version whose layout fits.
    pub version: Version,
    /// The core modules: the only one, or those of a component.
    pub modules: Vec<ModuleInfo>,
    /// Types of all modules together. `None` stands for a type that is no function type.
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

#[cfg(test)]
mod tests;
