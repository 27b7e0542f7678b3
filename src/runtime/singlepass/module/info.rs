//! The runtime's module description and its artifact files with their cache images, all encoded in borsh.
//!
//! borsh writes integers little-endian, lengths as `u32`, `usize` as `u64`, one byte for an enum's variant, for
//! `Option` and for `bool`, and fields in declaration order. The structs are those of `module.rs`, `types.rs`,
//! `cache.rs` of the runtime's core and `codegen_x64.rs: CacheImage` of the backend.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::bytes::{Bytes, Short};
use crate::limits::{MAX_IMAGE_BYTES, MAX_IMPORT_NAME_BYTES};
use crate::wasm::names::{self, Naming};
use crate::wasm::{NameSource, ValType};

/// First bytes of an artifact file (`cache.rs: WASMER_CACHE_MAGIC`).
const MAGIC: &[u8; 8] = b"WASMER\0\0";
/// The only version of artifact files that there is (`cache.rs: CURRENT_CACHE_VERSION`).
const VERSION: u64 = 0;

/// Why encoded bytes were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes end too early.
    #[error(transparent)]
    Short(#[from] Short),
    /// A field holds a value that its type does not have.
    #[error("{what} is {value} at offset {offset}")]
    Value {
        /// Name of the field.
        what: &'static str,
        /// The value that was read.
        value: u64,
        /// Offset of the field's end in the encoded bytes.
        offset: usize,
    },
    /// Fields contradict each other. The string says how.
    #[error("{0}")]
    Contradiction(String),
}

type Read<T> = Result<T, Malformed>;

fn wrong<T>(what: &'static str, value: u64, b: &Bytes<'_>) -> Read<T> {
    Err(Malformed::Value { what, value, offset: b.offset() })
}

fn flag(b: &mut Bytes<'_>, what: &'static str) -> Read<bool> {
    match b.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => wrong(what, other.into(), b),
    }
}

fn option<T>(b: &mut Bytes<'_>, what: &'static str, read: impl FnOnce(&mut Bytes<'_>) -> Read<T>) -> Read<Option<T>> {
    Ok(if flag(b, what)? { Some(read(b)?) } else { None })
}

/// Reads a `u32` count of elements that have at least `size` bytes each. A count that the rest of the input cannot
/// hold is refused before anything is allocated for it.
fn count(b: &mut Bytes<'_>, size: u64) -> Read<u32> {
    let n = b.u32()?;
    let wanted = u64::from(n) * size;
    if wanted > b.remaining() as u64 {
        return Err(Short { offset: b.offset(), wanted }.into());
    }
    Ok(n)
}

fn list<T>(b: &mut Bytes<'_>, size: u64, mut read: impl FnMut(&mut Bytes<'_>) -> Read<T>) -> Read<Vec<T>> {
    let n = count(b, size)?;
    (0..n).map(|_| read(b)).collect()
}

fn blob<'a>(b: &mut Bytes<'a>) -> Read<&'a [u8]> {
    let n = b.u32()?;
    Ok(b.take(n.into())?)
}

fn text(b: &mut Bytes<'_>) -> Read<String> {
    let bytes = blob(b)?;
    // Replacement characters are used, since one name that is not UTF-8 must not cost all the others.
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

fn value_type(b: &mut Bytes<'_>) -> Read<ValType> {
    Ok(match b.u8()? {
        0 => ValType::I32,
        1 => ValType::I64,
        2 => ValType::F32,
        3 => ValType::F64,
        4 => ValType::V128,
        other => return wrong("value type", other.into(), b),
    })
}

/// A memory that a module declares or imports (`types.rs: MemoryDescriptor`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Smallest size in pages of 64 KiB.
    pub minimum: u32,
    /// Largest size in pages of 64 KiB, if there is a limit.
    pub maximum: Option<u32>,
    /// Whether threads may share the memory.
    pub shared: bool,
    /// How the memory is mapped.
    pub kind: MemoryKind,
}

/// How a memory is mapped (`memory/mod.rs: MemoryType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// The memory may move when it grows.
    Dynamic,
    /// All addresses are reserved from the start.
    Static,
    /// The memory is mapped like `Static`, and shared.
    SharedStatic,
}

/// A table that a module declares or imports (`types.rs: TableDescriptor`). Its elements are functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Smallest number of elements.
    pub minimum: u32,
    /// Largest number of elements, if there is a limit.
    pub maximum: Option<u32>,
}

/// A global that a module declares or imports (`types.rs: GlobalDescriptor`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalInfo {
    /// Type of the value.
    pub ty: ValType,
    /// Whether code may write the global.
    pub mutable: bool,
}

/// An imported item of type `T`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import<T> {
    /// Module part of the import's name.
    pub module: String,
    /// Field part of the import's name.
    pub name: String,
    /// Description of what is imported.
    pub item: T,
}

/// What an export is (`module.rs: ExportIndex`), with the index of the item in the index space of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Export {
    /// The function with this index.
    Function(u32),
    /// The memory with this index.
    Memory(u32),
    /// The global with this index.
    Global(u32),
    /// The table with this index.
    Table(u32),
}

/// Parameter and result types of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Types of the parameters.
    pub params: Vec<ValType>,
    /// Types of the results.
    pub results: Vec<ValType>,
}

/// The runtime's `ModuleInfo`, without the initial data of memories and tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Memories that the module defines.
    pub memories: Vec<MemoryInfo>,
    /// Globals that the module defines.
    pub globals: Vec<GlobalInfo>,
    /// Tables that the module defines.
    pub tables: Vec<TableInfo>,
    /// Imported functions. Their signatures are the first of `function_types`.
    pub imported_functions: Vec<Import<()>>,
    /// Imported memories.
    pub imported_memories: Vec<Import<MemoryInfo>>,
    /// Imported tables.
    pub imported_tables: Vec<Import<TableInfo>>,
    /// Imported globals.
    pub imported_globals: Vec<Import<GlobalInfo>>,
    /// Names and items of the exports, in the module's order.
    pub exports: Vec<(String, Export)>,
    /// Length of each data segment in bytes.
    pub data: Vec<u64>,
    /// Number of element segments.
    pub elements: u64,
    /// Index of the start function, if there is one.
    pub start: Option<u32>,
    /// For every function, imports first, the index of its signature in `signatures` (`func_assoc`).
    pub function_types: Vec<u32>,
    /// Signatures that `function_types` refers to.
    pub signatures: Vec<Signature>,
    /// Name of the compiler ("singlepass").
    pub backend: String,
    /// Function names that the host supplied, by function index (`em_symbol_map`).
    pub symbol_map: Option<BTreeMap<u32, String>>,
    /// Contents of the custom sections, by name. The runtime keeps custom sections with `compile_with`, not with
    /// `compile_with_config`.
    pub custom_sections: BTreeMap<String, Vec<Vec<u8>>>,
    /// Whether debug information was to be generated.
    pub generate_debug_info: bool,
}

impl ModuleInfo {
    /// Reads a `ModuleInfo` from its borsh form, and leaves `b` behind it.
    pub fn read(b: &mut Bytes<'_>) -> Result<ModuleInfo, Malformed> {
        let memories = list(b, 7, memory)?;
        let globals = list(b, 7, |b| {
            let desc = global(b)?;
            initializer(b)?;
            Ok(desc)
        })?;
        let tables = list(b, 6, table)?;
        let functions = list(b, 8, import_name)?;
        let imported_memories = list(b, 15, |b| Ok((import_name(b)?, memory(b)?)))?;
        let imported_tables = list(b, 14, |b| Ok((import_name(b)?, table(b)?)))?;
        let imported_globals = list(b, 10, |b| Ok((import_name(b)?, global(b)?)))?;
        let exports = list(b, 9, |b| Ok((text(b)?, export(b)?)))?;
        let data = list(b, 13, |b| {
            b.skip(4)?;
            initializer(b)?;
            Ok(blob(b)?.len() as u64)
        })?;
        let elements = list(b, 13, |b| {
            b.skip(4)?;
            initializer(b)?;
            let n = count(b, 4)?;
            Ok(b.skip(u64::from(n) * 4)?)
        })?;
        let elements = elements.len() as u64;
        let start = option(b, "start function's presence", |b| Ok(b.u32()?))?;
        let function_types = list(b, 4, |b| Ok(b.u32()?))?;
        let signatures =
            list(b, 8, |b| Ok(Signature { params: list(b, 1, value_type)?, results: list(b, 1, value_type)? }))?;
        let backend = text(b)?;
        let modules = StringTable::read(b)?;
        let names = StringTable::read(b)?;
        let symbol_map = option(b, "symbol map's presence", |b| {
            Ok(list(b, 8, |b| Ok((b.u32()?, text(b)?)))?.into_iter().collect())
        })?;
        let custom_sections =
            list(b, 8, |b| Ok((text(b)?, list(b, 4, |b| Ok(blob(b)?.to_vec()))?)))?.into_iter().collect();
        let generate_debug_info = flag(b, "debug flag")?;
        if let Some(&ty) = function_types.iter().find(|&&ty| ty as usize >= signatures.len()) {
            return Err(Malformed::Contradiction(format!("signature {ty} of {} is used", signatures.len())));
        }
        if functions.len() > function_types.len() {
            return Err(Malformed::Contradiction(format!(
                "{} functions are imported, but there are {} functions",
                functions.len(),
                function_types.len()
            )));
        }
        let named = Names { modules, names };
        Ok(ModuleInfo {
            memories,
            globals,
            tables,
            imported_functions: named.resolve(functions.into_iter().map(|name| (name, ())).collect())?,
            imported_memories: named.resolve(imported_memories)?,
            imported_tables: named.resolve(imported_tables)?,
            imported_globals: named.resolve(imported_globals)?,
            exports,
            data,
            elements,
            start,
            function_types,
            signatures,
            backend,
            symbol_map,
            custom_sections,
            generate_debug_info,
        })
    }

    /// Signature of the function with this index, where imports come first.
    pub fn signature(&self, func_index: u32) -> Option<&Signature> {
        self.signatures.get(*self.function_types.get(func_index as usize)? as usize)
    }

    /// Name that the module gives itself in its name section, if the runtime kept that section.
    pub fn module_name(&self) -> Option<String> {
        let section = self.custom_sections.get("name")?.first()?;
        let mut found = None;
        names::read(section, &mut |naming| {
            if let Naming::Module(name) = naming {
                found.get_or_insert_with(|| name.into_owned());
            }
        });
        found.filter(|name| !name.is_empty())
    }

    /// Names of functions by index, and where each name is from. The sources are name section, export, import (as
    /// `module.name`) and symbol map; the first that has a name for a function counts.
    pub fn function_names(&self) -> HashMap<u32, (String, NameSource)> {
        let mut out = HashMap::new();
        let mut add = |index: u32, name: &str, source| {
            if !name.is_empty() && (index as usize) < self.function_types.len() {
                out.entry(index).or_insert_with(|| (name.to_string(), source));
            }
        };
        for section in self.custom_sections.get("name").into_iter().flatten() {
            names::read(section, &mut |naming| {
                if let Naming::Function(index, name) = naming {
                    add(index, &name, NameSource::NameSection);
                }
            });
        }
        for (name, export) in &self.exports {
            if let Export::Function(index) = *export {
                add(index, name, NameSource::Export);
            }
        }
        for (index, import) in (0u32..).zip(&self.imported_functions) {
            add(index, &format!("{}.{}", import.module, import.name), NameSource::Import);
        }
        for (&index, name) in self.symbol_map.iter().flatten() {
            add(index, name, NameSource::SymbolMap);
        }
        out
    }
}

fn memory(b: &mut Bytes<'_>) -> Read<MemoryInfo> {
    Ok(MemoryInfo {
        minimum: b.u32()?,
        maximum: option(b, "memory maximum's presence", |b| Ok(b.u32()?))?,
        shared: flag(b, "shared flag")?,
        kind: match b.u8()? {
            0 => MemoryKind::Dynamic,
            1 => MemoryKind::Static,
            2 => MemoryKind::SharedStatic,
            other => return wrong("memory kind", other.into(), b),
        },
    })
}

fn table(b: &mut Bytes<'_>) -> Read<TableInfo> {
    match b.u8()? {
        0 => {}
        other => return wrong("table element type", other.into(), b),
    }
    Ok(TableInfo { minimum: b.u32()?, maximum: option(b, "table maximum's presence", |b| Ok(b.u32()?))? })
}

fn global(b: &mut Bytes<'_>) -> Read<GlobalInfo> {
    let mutable = flag(b, "mutable flag")?;
    Ok(GlobalInfo { mutable, ty: value_type(b)? })
}

fn initializer(b: &mut Bytes<'_>) -> Read<()> {
    let size = match b.u8()? {
        0 => match value_type(b)? {
            ValType::I32 | ValType::F32 => 4,
            ValType::I64 | ValType::F64 => 8,
            ValType::V128 => 16,
            // `value_type` never returns these: the runtime has no such types.
            ValType::FuncRef | ValType::ExternRef | ValType::Ref | ValType::NotKnown => {
                return wrong("initializer's type", 0, b);
            }
        },
        1 => 4,
        other => return wrong("initializer", other.into(), b),
    };
    Ok(b.skip(size)?)
}

fn export(b: &mut Bytes<'_>) -> Read<Export> {
    let variant = b.u8()?;
    let index = b.u32()?;
    Ok(match variant {
        0 => Export::Function(index),
        1 => Export::Memory(index),
        2 => Export::Global(index),
        3 => Export::Table(index),
        other => return wrong("export kind", other.into(), b),
    })
}

type NamePair = (u32, u32);

fn import_name(b: &mut Bytes<'_>) -> Read<NamePair> {
    Ok((b.u32()?, b.u32()?))
}

struct StringTable {
    entries: Vec<(u32, u32)>,
    buffer: Vec<u8>,
}

impl StringTable {
    fn read(b: &mut Bytes<'_>) -> Read<StringTable> {
        Ok(StringTable { entries: list(b, 8, |b| Ok((b.u32()?, b.u32()?)))?, buffer: blob(b)?.to_vec() })
    }

    fn get(&self, index: u32) -> Option<Cow<'_, str>> {
        let &(start, len) = self.entries.get(index as usize)?;
        let start = start as usize;
        Some(String::from_utf8_lossy(self.buffer.get(start..start.checked_add(len as usize)?)?))
    }
}

struct Names {
    modules: StringTable,
    names: StringTable,
}

impl Names {
    /// Looks up the names of all `items`. Entries of the tables may share text, so the names together can be far
    /// larger than the input. Their length is capped at more than any real module's names need.
    fn resolve<T>(&self, items: Vec<(NamePair, T)>) -> Read<Vec<Import<T>>> {
        let mut left = MAX_IMPORT_NAME_BYTES;
        let mut out = Vec::with_capacity(items.len());
        for ((module, name), item) in items {
            let (Some(module), Some(name)) = (self.modules.get(module), self.names.get(name)) else {
                return Err(Malformed::Contradiction(format!("import {module}.{name} is not in the string tables")));
            };
            left = left.checked_sub(module.len() + name.len()).ok_or_else(|| {
                Malformed::Contradiction(format!("names of imports have more than {MAX_IMPORT_NAME_BYTES} bytes"))
            })?;
            out.push(Import { module: module.into_owned(), name: name.into_owned(), item });
        }
        Ok(out)
    }
}

/// An artifact file: what `Artifact::serialize` of the runtime writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Description of the module.
    pub info: ModuleInfo,
    /// Range of the file that has the backend's metadata. It is empty with singlepass.
    pub metadata: Range<usize>,
    /// Range of the file that has the cache image, with the padding behind it (see `cache_image::CacheImage`).
    pub image: Range<usize>,
}

impl Artifact {
    /// Reads the bytes of an artifact file.
    pub fn parse(file: &[u8]) -> Result<Artifact, String> {
        if file.len() as u64 > MAX_IMAGE_BYTES {
            return Err(format!("it has {} bytes, more than the {MAX_IMAGE_BYTES} that are read", file.len()));
        }
        let mut b = Bytes::new(file);
        match b.take(8) {
            Ok(magic) if magic == MAGIC => {}
            _ => return Err("it does not begin with \"WASMER\\0\\0\"".to_string()),
        }
        let header = |e: Short| format!("its header is cut off: {e}");
        let version = b.u64().map_err(header)?;
        if version != VERSION {
            return Err(format!("it is of version {version}, only version {VERSION} is known"));
        }
        let data_len = b.u64().map_err(header)?;
        if data_len > b.remaining() as u64 {
            return Err(format!("it is cut off: the header announces {data_len} bytes, {} are there", b.remaining()));
        }
        let info = ModuleInfo::read(&mut b).map_err(|e| format!("its module description is broken: {e}"))?;
        let broken = |e: Malformed| format!("its code part is broken: {e}");
        let metadata = blob_range(&mut b).map_err(broken)?;
        // A memory is written as its protection, then its contents (`sys/mod.rs`).
        match b.u8() {
            Ok(0..=4) => {}
            Ok(other) => return Err(format!("its code part is broken: memory protection is {other}")),
            Err(e) => return Err(broken(e.into())),
        }
        let image = blob_range(&mut b).map_err(broken)?;
        Ok(Artifact { info, metadata, image })
    }
}

fn blob_range(b: &mut Bytes<'_>) -> Read<Range<usize>> {
    let n = b.u32()?;
    let start = b.offset();
    b.skip(n.into())?;
    Ok(start..b.offset())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_utf8_costs_itself() {
        let table = |bytes: &[u8]| StringTable { entries: vec![(0, 2), (2, 3)], buffer: bytes.to_vec() };
        let names = Names { modules: table(b"\xff\xfeenv"), names: table(b"ab\xc3\x28c") };
        let resolved = names.resolve(vec![((0, 0), ()), ((1, 0), ()), ((1, 1), ())]).unwrap();
        let all: Vec<_> = resolved.iter().map(|i| (i.module.as_str(), i.name.as_str())).collect();
        assert_eq!(all, [("\u{fffd}\u{fffd}", "ab"), ("env", "ab"), ("env", "\u{fffd}(c")]);
    }

    #[test]
    fn names_of_imports_have_an_end() {
        let table = |len: usize| StringTable { entries: vec![(0, len as u32)], buffer: vec![b'x'; len] };
        let names = Names { modules: table(0), names: table(1024) };
        let resolve = |count| names.resolve(vec![((0, 0), ()); count]).map(|imports| imports.len());
        let most = MAX_IMPORT_NAME_BYTES / 1024;
        assert!(matches!(resolve(most), Ok(count) if count == most));
        assert!(resolve(most + 1).is_err());
    }
}
