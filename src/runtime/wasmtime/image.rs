//! The code image: an ELF64 relocatable file with OSABI 200, mapped as it is on disk.
//!
//! The header comes first, the section table last, so a mapping that is cut off (a core that holds only the first page of
//! a mapped `.cwasm`) has the one without the other: [`Header::read`] works there, [`Image::read`] needs the rest.
//!
//! All functions take a [`Memory`] and the image's address in it. For a file, [`SliceMemory`] is a memory that holds
//! nothing but the file.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use super::postcard::Reader;
use super::tunables::Inlining;
use super::version::Version;
use crate::bytes::{Bytes, Short};
use crate::limits::{
    MAX_IMAGE_BYTES, MAX_IMAGE_MODULES, MAX_IMAGE_SECTIONS, MAX_IMAGE_SYMBOL_BYTES, MAX_NAME_BYTES, MAX_SECTION_NAMES,
    MAX_SYMBOLS,
};
use crate::process::{Memory, MemoryError};

/// `EI_OSABI` of an image (`obj.rs: ELFOSABI_WASMTIME`).
pub const ELFOSABI_WASMTIME: u8 = 200;
/// Bytes of the ELF header.
pub const HEADER_BYTES: usize = 64;

/// Section of offsets in the Wasm file by code offset.
pub const ADDRMAP: &str = ".wasmtime.addrmap";
/// Section of where exceptions go on.
pub const EXCEPTIONS: &str = ".wasmtime.exceptions";
/// Section of locals and operand stacks by code offset.
pub const FRAMES: &str = ".wasmtime.frames";
/// Section with the modules, their types and functions.
pub const INFO: &str = ".wasmtime.info";
/// Section with the names of functions, into which [`INFO`] points.
pub const NAMES: &str = ".name.wasm";
/// Section with the data of all modules.
pub const DATA: &str = ".rodata.wasm";
/// Section with the version and the configuration.
pub const ENGINE: &str = ".wasmtime.engine";
/// Section with the original Wasm modules, one behind the other (`guest_debug`).
pub const BYTECODE: &str = ".wasmtime.wasm_bytecode";
/// Section with the end of each module in [`BYTECODE`], 32 bits each.
pub const BYTECODE_ENDS: &str = ".wasmtime.wasm_bytecode_ends";

/// Why there is no image, or a part of it cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Memory that cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Something else than an image lies there.
    #[error("no code image at {address:#x}: {what}")]
    NotAnImage {
        /// Where it was looked for.
        address: u64,
        /// What is different.
        what: &'static str,
    },
    /// It begins like an image, but its tables contradict each other.
    #[error("code image at {address:#x} is broken: {what}")]
    Broken {
        /// The image.
        address: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A section that the image does not have.
    #[error("code image at {address:#x} has no section {name}")]
    NoSection {
        /// The image.
        address: u64,
        /// The section.
        name: &'static str,
    },
}

/// A file's bytes as the memory from address 0 on, or from where the file is mapped.
#[derive(Clone, Copy, Debug)]
pub struct SliceMemory<'a> {
    base: u64,
    bytes: &'a [u8],
}

impl<'a> SliceMemory<'a> {
    /// `bytes` from address `base` on.
    pub fn new(base: u64, bytes: &'a [u8]) -> SliceMemory<'a> {
        SliceMemory { base, bytes }
    }
}

impl Memory for SliceMemory<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let from = address.checked_sub(self.base).and_then(|o| usize::try_from(o).ok());
        let range = from.and_then(|from| Some(from..from.checked_add(buf.len())?));
        match range.and_then(|range| self.bytes.get(range)) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(MemoryError::Unmapped { address, len: buf.len() }),
        }
    }
}

/// What was compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One core module.
    Module,
    /// A component, with any number of core modules in it.
    Component,
}

/// The ELF header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Module or component.
    pub kind: Kind,
    /// Bytecode of the Pulley interpreter (32 or 64 bits), not machine code.
    pub pulley: Option<u8>,
    /// `e_machine`: 62 is x86-64. Pulley has 0.
    pub machine: u16,
    /// Offset of the section table.
    pub sections_offset: u64,
    /// Sections in it.
    pub sections: u16,
    /// The section that holds the section's names.
    pub names: u16,
}

impl Header {
    /// Reads the header at `address`.
    ///
    /// # Errors
    /// If memory cannot be read or is no image's header.
    pub fn read(memory: &dyn Memory, address: u64) -> Result<Header, ImageError> {
        let mut bytes = [0; HEADER_BYTES];
        memory.read(address, &mut bytes)?;
        Header::parse(&bytes).map_err(|what| ImageError::NotAnImage { address, what })
    }

    /// Whether the first 16 bytes of something are an image's: cheap enough for every page of a process.
    pub fn probe(ident: &[u8; 16]) -> bool {
        ident[..7] == *b"\x7fELF\x02\x01\x01" && ident[7] == ELFOSABI_WASMTIME
    }

    /// From its bytes.
    ///
    /// # Errors
    /// What is different from an image's.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, &'static str> {
        Header::parse_inner(bytes).map_err(|e| e.unwrap_or("the header is cut off"))
    }

    fn parse_inner(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Option<&'static str>> {
        let mut b = Bytes::new(bytes);
        let none = |_: Short| None;
        let mut ident = [0; 16];
        ident.copy_from_slice(b.take(16).map_err(none)?);
        if ident[..7] != *b"\x7fELF\x02\x01\x01" {
            return Err(Some("no ELF64 header"));
        }
        if ident[7] != ELFOSABI_WASMTIME {
            return Err(Some("the OSABI is another"));
        }
        // ET_REL
        if b.u16().map_err(none)? != 1 {
            return Err(Some("no relocatable file"));
        }
        let machine = b.u16().map_err(none)?;
        // e_version, e_entry, e_phoff
        b.skip(4 + 8 + 8).map_err(none)?;
        let sections_offset = b.u64().map_err(none)?;
        let flags = b.u32().map_err(none)?;
        // e_ehsize, e_phentsize, e_phnum
        b.skip(6).map_err(none)?;
        let entry = b.u16().map_err(none)?;
        let sections = b.u16().map_err(none)?;
        let names = b.u16().map_err(none)?;
        let kind = match flags & 3 {
            1 => Kind::Module,
            2 => Kind::Component,
            _ => return Err(Some("the flags name neither a module nor a component")),
        };
        let pulley = match flags >> 2 {
            0 => None,
            1 => Some(32),
            2 => Some(64),
            _ => return Err(Some("unknown flags")),
        };
        if entry != 64 || sections == 0 || sections > MAX_IMAGE_SECTIONS || names >= sections {
            return Err(Some("no plausible section table"));
        }
        Ok(Header { kind, pulley, machine, sections_offset, sections, names })
    }
}

/// One section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name.
    pub name: String,
    /// `sh_type`: 2 is a symbol table, 3 strings, 4 relocations with addends.
    pub kind: u32,
    /// `sh_flags`: 2 allocated, 4 executable.
    pub flags: u64,
    /// Offset in the image.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// `sh_link`.
    pub link: u32,
    /// `sh_info`: of relocations, the section that they apply to.
    pub info: u32,
}

/// Bytes of one section. They are megabytes, and not copied from where they were read to.
pub type Contents = Arc<Vec<u8>>;

/// An image: header and section table. Contents are read when they are asked for, and kept.
#[derive(Debug)]
pub struct Image {
    base: u64,
    header: Header,
    sections: Vec<Section>,
    text: usize,
    // Index of the section.
    cache: Mutex<BTreeMap<usize, Contents>>,
}

impl Image {
    /// Reads header, section table and section names of the image at `address`.
    ///
    /// # Errors
    /// If there is none, or it is broken or not all there.
    pub fn read(memory: &dyn Memory, address: u64) -> Result<Image, ImageError> {
        let header = Header::read(memory, address)?;
        let broken = |what| ImageError::Broken { address, what };
        let table_bytes = u64::from(header.sections) * 64;
        if header.sections_offset < HEADER_BYTES as u64
            || header.sections_offset.checked_add(table_bytes).is_none_or(|end| end > MAX_IMAGE_BYTES)
        {
            return Err(broken("the section table lies outside"));
        }
        let at = address.checked_add(header.sections_offset).ok_or(broken("the section table lies outside"))?;
        let table = memory.read_vec(at, table_bytes as usize)?;
        let short = |_: Short| broken("the section table is cut off");
        let mut b = Bytes::new(&table);
        let mut raw = Vec::new();
        for _ in 0..header.sections {
            let name = b.u32().map_err(short)?;
            let kind = b.u32().map_err(short)?;
            let flags = b.u64().map_err(short)?;
            b.skip(8).map_err(short)?;
            let offset = b.u64().map_err(short)?;
            let size = b.u64().map_err(short)?;
            let link = b.u32().map_err(short)?;
            let info = b.u32().map_err(short)?;
            b.skip(16).map_err(short)?;
            // SHT_NULL and SHT_NOBITS have no bytes, whatever they say.
            let size = if kind == 0 || kind == 8 { 0 } else { size };
            let inside = offset.checked_add(size).is_some_and(|end| end <= MAX_IMAGE_BYTES);
            if !inside || offset.checked_add(size).and_then(|end| address.checked_add(end)).is_none() {
                return Err(broken("a section lies outside"));
            }
            raw.push((name, Section { name: String::new(), kind, flags, offset, size, link, info }));
        }
        // They do not overlap: what is kept of them is no more than the image.
        if raw.iter().fold(0u64, |sum, (_, section)| sum.saturating_add(section.size)) > MAX_IMAGE_BYTES {
            return Err(broken("the sections overlap"));
        }
        let names = raw.get(usize::from(header.names)).ok_or(broken("no section of names"))?;
        if names.1.size > MAX_SECTION_NAMES {
            return Err(broken("the section names are too long"));
        }
        let strings = memory.read_vec(address + names.1.offset, names.1.size as usize)?;
        let mut sections = Vec::new();
        for (name, section) in raw {
            let name = string_at(&strings, name).ok_or(broken("a section's name lies outside"))?;
            sections.push(Section { name: String::from_utf8_lossy(name).into_owned(), ..section });
        }
        let text = sections.iter().position(|s| s.name == ".text").ok_or(broken("no section .text"))?;
        Ok(Image { base: address, header, sections, text, cache: Mutex::new(BTreeMap::new()) })
    }

    /// From a file's bytes. Give [`SliceMemory::new`]`(0, bytes)` to the functions that read sections.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Image, ImageError> {
        Image::read(&SliceMemory::new(0, bytes), 0)
    }

    /// Address of the header.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// All sections.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// A section by name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    /// Addresses of the code.
    pub fn text(&self) -> Range<u64> {
        let s = &self.sections[self.text];
        self.base + s.offset..self.base + s.offset + s.size
    }

    /// An address as offset from the start of the code. `None`: not in the code.
    pub fn text_offset(&self, address: u64) -> Option<u32> {
        let text = self.text();
        if text.contains(&address) { (address - text.start).try_into().ok() } else { None }
    }

    /// Bytes from the header to the end of the last section or of the section table.
    pub fn size(&self) -> u64 {
        let table = self.header.sections_offset + u64::from(self.header.sections) * 64;
        self.sections.iter().map(|s| s.offset + s.size).fold(table, u64::max)
    }

    /// Whether a section has bytes. `.wasmtime.frames` is not there without `guest_debug`, `.wasmtime.addrmap` not with
    /// `generate_address_map(false)`, `.eh_frame` not with `native_unwind_info(false)`.
    pub fn has(&self, name: &str) -> bool {
        self.section(name).is_some_and(|s| s.size > 0)
    }

    /// A section's bytes.
    ///
    /// # Errors
    /// If there is no such section, or its memory cannot be read.
    pub fn contents(&self, name: &'static str, memory: &dyn Memory) -> Result<Contents, ImageError> {
        let index = self.sections.iter().position(|s| s.name == name);
        self.contents_at(index.ok_or(ImageError::NoSection { address: self.base, name })?, memory)
    }

    /// Bytes of the section with index `index` in [`Image::sections`].
    ///
    /// # Errors
    /// If there is no such section, or its memory cannot be read.
    pub fn contents_at(&self, index: usize, memory: &dyn Memory) -> Result<Contents, ImageError> {
        // A poisoned lock only means that a reader panicked between whole insertions.
        let mut cache = self.cache.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(kept) = cache.get(&index) {
            return Ok(kept.clone());
        }
        let bytes: Contents = self.read_section(index, memory)?.into();
        cache.insert(index, bytes.clone());
        Ok(bytes)
    }

    // The same, for who needs the bytes once.
    fn read_section(&self, index: usize, memory: &dyn Memory) -> Result<Vec<u8>, ImageError> {
        let section =
            self.sections.get(index).ok_or(ImageError::Broken { address: self.base, what: "no such section" })?;
        let from = self.base + section.offset;
        if let Some(last) = section.size.checked_sub(1) {
            // Before so much is allocated: the end must be there.
            memory.read(from + last, &mut [0])?;
        }
        Ok(memory.read_vec(from, section.size as usize)?)
    }

    /// What `.wasmtime.engine` tells.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn engine(&self, memory: &dyn Memory) -> Result<Engine, ImageError> {
        let bytes = self.contents(ENGINE, memory)?;
        Engine::parse(&bytes)
            .ok_or(ImageError::Broken { address: self.base, what: "the section .wasmtime.engine has another form" })
    }

    /// The functions that `.symtab` names, sorted by place. Empty with `debug_symbols(false)` (from version 47 on); then
    /// the functions in [`super::info`] say the same, but for the names of the runtime's routines.
    ///
    /// # Errors
    /// If the symbols cannot be read.
    pub fn symbols(&self, memory: &dyn Memory) -> Result<FunctionTable, ImageError> {
        let broken = |what| ImageError::Broken { address: self.base, what };
        // SHT_SYMTAB
        let Some(index) = self.sections.iter().position(|s| s.kind == 2) else {
            return Ok(FunctionTable::default());
        };
        let table = self.read_section(index, memory)?;
        let strings = self.read_section(self.sections[index].link as usize, memory)?;
        let text_size = self.sections[self.text].size;
        let mut places = Vec::with_capacity((table.len() / 24).min(MAX_SYMBOLS));
        // Names that share bytes are an exception.
        let mut name_bytes = strings.len().saturating_mul(2);
        let mut b = Bytes::new(&table);
        let short = |_: Short| broken("the symbol table is cut off");
        while b.remaining() >= 24 && places.len() < MAX_SYMBOLS {
            let name = b.u32().map_err(short)?;
            let info = b.u8().map_err(short)?;
            b.skip(1).map_err(short)?;
            let section = b.u16().map_err(short)?;
            let value = b.u64().map_err(short)?;
            let size = b.u64().map_err(short)?;
            // STT_FUNC in .text; a relocatable file's values are offsets in the section.
            if info & 15 != 2 || usize::from(section) != self.text {
                continue;
            }
            if value.checked_add(size).is_none_or(|end| end > text_size) {
                continue;
            }
            let (Ok(start), Ok(len)) = (u32::try_from(value), u32::try_from(size)) else { continue };
            let Some(text) = symbol_at(&strings, name) else { continue };
            let Some(left) = name_bytes.checked_sub(text.len()) else {
                return Err(broken("the symbols' names overlap"));
            };
            name_bytes = left;
            places.push(Place { start, len, kind: name });
        }
        Ok(FunctionTable::sorted(places, Kinds::Symbols(strings)))
    }
}

// A name in a string table, without its final zero.
fn string_at(strings: &[u8], at: u32) -> Option<&[u8]> {
    let rest = strings.get(at as usize..)?;
    let rest = &rest[..rest.len().min(MAX_NAME_BYTES)];
    Some(&rest[..memchr::memchr(0, rest).unwrap_or(rest.len())])
}

// The same of a symbol.
fn symbol_at(strings: &[u8], at: u32) -> Option<&[u8]> {
    string_at(strings, at).map(|name| &name[..name.len().min(MAX_IMAGE_SYMBOL_BYTES)])
}

/// What `.wasmtime.engine` tells about the compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// The version as it was written ("48", "36.0.20", or what the embedder chose). `None`: hidden
    /// (`ModuleVersionStrategy::None`).
    pub version: Option<String>,
    /// Target triple ("x86_64-unknown-linux-gnu").
    pub target: Option<String>,
    /// What the compiler could inline. `None`: not known.
    pub inlining: Option<Inlining>,
}

impl Engine {
    /// From the section: a zero, the version with one byte of length, the configuration in postcard, which begins with the
    /// target (`engine/serialization.rs`).
    pub fn parse(section: &[u8]) -> Option<Engine> {
        let mut b = Bytes::new(section);
        if b.u8().ok()? != 0 {
            return None;
        }
        let len = b.u8().ok()?;
        let version = String::from_utf8_lossy(b.take(u64::from(len)).ok()?);
        let metadata = &section[b.offset()..];
        let target = Reader::new(metadata).str().ok();
        let triple = |t: &&str| t.contains('-') && t.bytes().all(|c| c.is_ascii_graphic());
        let inlining = Inlining::parse(metadata, Version::parse(&version));
        Some(Engine {
            inlining,
            version: Some(version.into_owned()).filter(|v| !v.is_empty()),
            target: target.filter(triple).map(str::to_string),
        })
    }

    /// The major version, if the text is a number.
    pub fn version(&self) -> Option<Version> {
        self.version.as_deref().and_then(Version::parse)
    }
}

/// What a piece of code is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FunctionKind {
    /// A function of a Wasm module.
    Wasm {
        /// The module's index in the image; 0 except in components.
        module: u32,
        /// Function index, imports first.
        function: u32,
        /// Name, if the module has a name section. Runs of what is no graphic ASCII are one "?", and it is cut at 96
        /// characters.
        name: Option<String>,
    },
    /// From the host to a Wasm function: the entry trampoline.
    ArrayToWasm {
        /// The module's index.
        module: u32,
        /// The function that it calls, imports first.
        function: u32,
    },
    /// From Wasm to a host function: the exit trampoline.
    WasmToArray {
        /// Index of the signature among the image's types.
        signature: u32,
    },
    /// From Wasm into the runtime ("memory_grow").
    Builtin(String),
    /// Runs a module's initializers (from version 46 on).
    ModuleStart {
        /// The module's index.
        module: u32,
    },
    /// Glue of the component model.
    Component(String),
    /// A name of another form.
    Other(String),
}

impl FunctionKind {
    /// From a symbol's name (`compile.rs`).
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
        // "wasmtime_patchable_builtin_" (from 41 on) is called at breakpoints and saves all registers.
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

    /// The module that it is of.
    fn module(&self) -> Option<u32> {
        match *self {
            FunctionKind::Wasm { module, .. }
            | FunctionKind::ArrayToWasm { module, .. }
            | FunctionKind::ModuleStart { module } => Some(module),
            _ => None,
        }
    }

    /// The same code, as what it is said to be of a module that is not believed.
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

    /// Whether a frame of it is a frame of the guest.
    pub fn is_wasm(&self) -> bool {
        matches!(self, FunctionKind::Wasm { .. })
    }
}

/// A piece of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Offset from the start of the code.
    pub start: u32,
    /// Bytes.
    pub len: u32,
    /// What it is.
    pub kind: FunctionKind,
}

impl Function {
    /// Offset of the first byte behind it.
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

/// `wasm[MODULE]::function[FUNCTION]`, with or without `::NAME`.
fn wasm_symbol(symbol: &str) -> Option<WasmSymbol<'_>> {
    let rest = symbol.strip_prefix("wasm[")?;
    let (module, used) = number(rest)?;
    let rest = rest.get(used..)?.strip_prefix("::function[")?;
    let (function, used) = number(rest)?;
    let rest = rest.get(used..)?;
    let name = if rest.is_empty() { None } else { Some(rest.strip_prefix("::")?) };
    Some(WasmSymbol { module, function, name })
}

/// "NUMBER]REST": the number, and how long it is with the bracket.
fn number(s: &str) -> Option<(u32, usize)> {
    let digits = s.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = s.split_at(digits);
    Some((number.parse().ok().filter(|_| rest.starts_with(']'))?, digits + 1))
}

/// Pieces of code, sorted by place. A large module has many of them and few are asked for: symbols' names are parsed then.
#[derive(Clone, Debug)]
pub struct FunctionTable {
    places: Vec<Place>,
    kinds: Kinds,
    /// Modules with this number or a higher one are not believed.
    modules: u32,
    /// Numbers in the table of the Wasm functions that have a name there, by module and function. Of several the first.
    named: OnceLock<HashMap<(u32, u32), usize>>,
}

/// A Wasm function of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WasmPiece {
    /// Its number in the table.
    pub number: usize,
    /// The module's index in the image.
    pub module: u32,
    /// Function index, imports first.
    pub function: u32,
    /// Whether it has a name.
    pub named: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    start: u32,
    len: u32,
    /// Where the symbol's name begins, or the number of the kind.
    kind: u32,
}

/// What the pieces are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kinds {
    /// The names of symbols.
    Symbols(Vec<u8>),
    Known(Vec<FunctionKind>),
}

impl Default for FunctionTable {
    fn default() -> FunctionTable {
        FunctionTable::new(Vec::new())
    }
}

impl FunctionTable {
    /// Sorts them.
    pub fn new(functions: Vec<Function>) -> FunctionTable {
        let place = |(f, kind): (&Function, u32)| Place { start: f.start, len: f.len, kind };
        let places = functions.iter().zip(0..).map(place).collect();
        FunctionTable::sorted(places, Kinds::Known(functions.into_iter().map(|f| f.kind).collect()))
    }

    fn sorted(mut places: Vec<Place>, kinds: Kinds) -> FunctionTable {
        places.sort_by_key(|p| (p.start, p.len));
        FunctionTable { places, kinds, modules: MAX_IMAGE_MODULES, named: OnceLock::new() }
    }

    /// Believes that there are so many modules: what is said to be of another is a name of another form.
    pub fn of_modules(mut self, modules: usize) -> FunctionTable {
        self.modules = u32::try_from(modules).unwrap_or(u32::MAX).min(MAX_IMAGE_MODULES);
        self.named = OnceLock::new();
        self
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Where the piece with this number is: offset of its start, and its bytes.
    pub fn place(&self, number: usize) -> Option<(u32, u32)> {
        self.places.get(number).map(|place| (place.start, place.len))
    }

    /// All of them, each parsed when it comes.
    pub fn iter(&self) -> impl Iterator<Item = Function> + '_ {
        self.places.iter().map(|place| self.function(place))
    }

    /// The Wasm functions among them. No name of theirs is copied.
    pub fn wasm(&self) -> impl Iterator<Item = WasmPiece> + '_ {
        self.places.iter().enumerate().filter_map(|(number, place)| {
            let (module, function, named) = match &self.kinds {
                Kinds::Symbols(strings) => {
                    let symbol = String::from_utf8_lossy(symbol_at(strings, place.kind)?);
                    wasm_symbol(&symbol).map(|s| (s.module, s.function, s.name.is_some()))?
                }
                Kinds::Known(kinds) => match kinds.get(place.kind as usize)? {
                    FunctionKind::Wasm { module, function, name } => (*module, *function, name.is_some()),
                    _ => return None,
                },
            };
            (module < self.modules).then_some(WasmPiece { number, module, function, named })
        })
    }

    /// What a Wasm function is called here.
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

    // The name of a Wasm function with this number in the table.
    fn wasm_name(&self, number: usize) -> Option<String> {
        match self.function(self.places.get(number)?).kind {
            FunctionKind::Wasm { name, .. } => name,
            _ => None,
        }
    }

    /// The piece that covers an offset. For a return address ask one byte before it.
    pub fn at(&self, text_offset: u32) -> Option<Function> {
        let behind = self.places.partition_point(|p| p.start <= text_offset);
        let place = self.places[..behind].last().filter(|p| text_offset - p.start < p.len)?;
        Some(self.function(place))
    }

    fn function(&self, place: &Place) -> Function {
        let kind = match &self.kinds {
            Kinds::Symbols(strings) => {
                let name = String::from_utf8_lossy(symbol_at(strings, place.kind).unwrap_or_default());
                let kind = FunctionKind::of_symbol(&name);
                match kind.module().is_some_and(|module| module >= self.modules) {
                    true => FunctionKind::Other(name.into_owned()),
                    false => kind,
                }
            }
            // Places are made with the kinds.
            Kinds::Known(kinds) => {
                kinds.get(place.kind as usize).cloned().unwrap_or(FunctionKind::Other(String::new()))
            }
        };
        let kind = match kind.module() {
            Some(module) if module >= self.modules => kind.of_no_module(),
            _ => kind,
        };
        Function { start: place.start, len: place.len, kind }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dwarf::ImageDwarf;
    use super::*;
    use crate::limits::MAX_IMAGE_DEBUG_BYTES;

    fn fixture(name: &str) -> Vec<u8> {
        super::super::testing::fixture(name)
    }

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
            // As it lies in a process: at some address.
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
            // What is of a module that there is not is of none.
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

    #[test]
    fn sections_are_no_more_than_the_image() {
        let mut bytes = fixture("48-default");
        let table = Image::from_bytes(&bytes).unwrap().header().sections_offset as usize;
        // Two of them have half of what an image may have, and some.
        for index in [1, 2] {
            bytes[table + index * 64 + 32..][..8].copy_from_slice(&(MAX_IMAGE_BYTES / 2).to_le_bytes());
        }
        let refused = Image::from_bytes(&bytes).unwrap_err().to_string();
        assert!(refused.contains("overlap"), "{refused}");
        let size = MAX_IMAGE_BYTES / 4;
        for index in [1, 2] {
            bytes[table + index * 64 + 32..][..8].copy_from_slice(&size.to_le_bytes());
        }
        assert!(Image::from_bytes(&bytes).is_ok());
    }

    #[test]
    fn only_the_first_page_is_there() {
        let bytes = fixture("48-default");
        let page = &bytes[..0x1000];
        let memory = SliceMemory::new(0, page);
        assert_eq!(Header::read(&memory, 0).map(|h| h.kind), Ok(Kind::Module));
        assert!(matches!(Image::read(&memory, 0), Err(ImageError::Memory(_))));
    }

    #[test]
    fn other_files_are_none() {
        let mut bytes = fixture("48-default");
        bytes[7] = 0;
        assert!(matches!(Image::from_bytes(&bytes), Err(ImageError::NotAnImage { .. })));
        bytes[7] = ELFOSABI_WASMTIME;
        bytes[16] = 2;
        assert!(matches!(Image::from_bytes(&bytes), Err(ImageError::NotAnImage { .. })));
        assert!(!Header::probe(b"\x7fELF\x02\x01\x01\x03\0\0\0\0\0\0\0\0"));
        assert!(Header::probe(b"\x7fELF\x02\x01\x01\xc8\0\0\0\0\0\0\0\0"));
    }

    #[test]
    fn a_hidden_version() {
        assert_eq!(Engine::parse(&[0, 0]), Some(Engine { version: None, target: None, inlining: None }));
        assert_eq!(Engine::parse(&[1, 0]), None);
        assert_eq!(Engine::parse(&[0, 9, b'4']), None);
        assert_eq!(Engine::parse(b"\x00\x02me\x03a-b").unwrap().version(), None);
    }

    #[test]
    fn sections_and_their_names_have_an_end() {
        let bytes = fixture("48-debug-info");
        let patched = |at: usize, with: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            bytes
        };
        let why = |bytes: &[u8]| Image::from_bytes(bytes).unwrap_err().to_string();
        for (sections, plausible) in [(MAX_IMAGE_SECTIONS, true), (MAX_IMAGE_SECTIONS + 1, false)] {
            let why = why(&patched(60, &sections.to_le_bytes()));
            assert_eq!(!why.contains("no plausible section table"), plausible, "{why}");
        }
        let header = Image::from_bytes(&bytes).unwrap().header();
        let entry = |section: usize| header.sections_offset as usize + 64 * section;
        for (size, plausible) in [(MAX_SECTION_NAMES, true), (MAX_SECTION_NAMES + 1, false)] {
            // In an image that has so many bytes behind them.
            let mut bytes = patched(entry(header.names.into()) + 32, &size.to_le_bytes());
            bytes.resize(bytes.len() + MAX_SECTION_NAMES as usize + 1, 0);
            assert_eq!(Image::from_bytes(&bytes).is_ok(), plausible);
        }
        let debug = Image::from_bytes(&bytes).unwrap().sections().iter().position(|s| s.name == ".debug_info").unwrap();
        let bytes = patched(entry(debug) + 32, &MAX_IMAGE_DEBUG_BYTES.to_le_bytes());
        let (image, memory) = (Image::from_bytes(&bytes).unwrap(), SliceMemory::new(0, &bytes));
        let why = ImageDwarf::load(&image, &memory).err().unwrap().to_string();
        assert!(why.contains("has more than"), "{why}");
    }
}
