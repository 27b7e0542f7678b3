//! The code image: an ELF64 relocatable file with OSABI 200, mapped as it is on disk.
//!
//! The header comes first and the section table last. So a mapping that is cut off (a core that holds only the first
//! page of a mapped `.cwasm`) has the header without the table: [`Header::read`] works there, [`Image::read`] needs
//! the rest.
//!
//! All functions take a [`Memory`] and the image's address in it. For a file, [`SliceMemory`] is a memory that holds
//! nothing but the file.

pub mod engine;
mod functions;
pub mod info;
pub(super) mod leb;
pub mod postcard;
mod shape;
pub mod version;

pub use self::engine::Engine;
pub use self::functions::{Function, FunctionKind, FunctionTable};

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use self::functions::{CodePiece, Kinds, symbol_at};
use crate::bytes::{Bytes, Short};
use crate::limits::{MAX_IMAGE_BYTES, MAX_IMAGE_SECTIONS, MAX_NAME_BYTES, MAX_SECTION_NAMES, MAX_SYMBOLS};
use crate::process::{Memory, MemoryError};

pub use crate::process::file_kind::ELFOSABI_WASMTIME;
/// Size of the ELF header in bytes.
pub const HEADER_BYTES: usize = 64;

/// Section that maps code offsets to offsets in the Wasm file.
pub const ADDRMAP: &str = ".wasmtime.addrmap";
/// Section that tells where exceptions go on.
pub const EXCEPTIONS: &str = ".wasmtime.exceptions";
/// Section that tells the locals and operand stacks at code offsets.
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
/// Section with the end offset of each module in [`BYTECODE`], 32 bits each.
pub const BYTECODE_ENDS: &str = ".wasmtime.wasm_bytecode_ends";

/// Why there is no image, or why a part of it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The memory cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Something other than an image is at the address.
    #[error("no code image at {address:#x}: {what}")]
    NotAnImage {
        /// Address at which an image was expected.
        address: u64,
        /// The first thing in which it differs from an image.
        what: &'static str,
    },
    /// The memory begins like an image, but the tables contradict each other.
    #[error("code image at {address:#x} is broken: {what}")]
    Broken {
        /// Address of the image.
        address: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The image does not have the section.
    #[error("code image at {address:#x} has no section {name}")]
    NoSection {
        /// Address of the image.
        address: u64,
        /// Name of the section.
        name: &'static str,
    },
}

/// The bytes of a file as a memory, from address 0 on or from the address where the file is mapped.
#[cfg(any(test, feature = "internals"))]
#[derive(Clone, Copy, Debug)]
pub struct SliceMemory<'a> {
    base: u64,
    bytes: &'a [u8],
}

#[cfg(any(test, feature = "internals"))]
impl<'a> SliceMemory<'a> {
    /// The memory that holds `bytes` from address `base` on.
    pub fn new(base: u64, bytes: &'a [u8]) -> SliceMemory<'a> {
        SliceMemory { base, bytes }
    }
}

#[cfg(any(test, feature = "internals"))]
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

/// The parts of the ELF header that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether a module or a component was compiled.
    pub kind: Kind,
    /// For code that is bytecode of the Pulley interpreter and not machine code: the interpreter's word size in bits
    /// (32 or 64).
    pub pulley: Option<u8>,
    /// `e_machine`: 62 is x86-64. An image for Pulley has 0.
    pub machine: u16,
    /// Offset of the section table in the image, in bytes.
    pub sections_offset: u64,
    /// Number of sections in the section table.
    pub sections: u16,
    /// Index of the section that holds the names of the sections.
    pub names: u16,
}

impl Header {
    /// Reads the header at `address`.
    ///
    /// # Errors
    /// If the memory cannot be read, or does not hold an image's header.
    pub fn read(memory: &dyn Memory, address: u64) -> Result<Header, ImageError> {
        let mut bytes = [0; HEADER_BYTES];
        memory.read(address, &mut bytes)?;
        Header::parse(&bytes).map_err(|what| ImageError::NotAnImage { address, what })
    }

    /// Whether these 16 bytes begin an image. This is cheap enough for every page of a process.
    pub fn probe(ident: &[u8; 16]) -> bool {
        ident[..7] == *b"\x7fELF\x02\x01\x01" && ident[7] == ELFOSABI_WASMTIME
    }

    /// Parses the bytes of the header.
    ///
    /// # Errors
    /// Says in what the bytes differ from an image's header.
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

/// A section of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name of the section.
    pub name: String,
    /// `sh_type`: 2 is a symbol table, 3 strings, 4 relocations with addends.
    pub kind: u32,
    /// `sh_flags`: 2 allocated, 4 executable.
    pub flags: u64,
    /// Offset of the section in the image, in bytes.
    pub offset: u64,
    /// Size of the section in bytes.
    pub size: u64,
    /// `sh_link`: of a symbol table, the index of the section with its strings.
    pub link: u32,
    /// `sh_info`: of relocations, the index of the section that they apply to.
    pub info: u32,
}

/// The bytes of one section. They can be megabytes, so readers share them and do not copy them.
pub type Contents = Arc<Vec<u8>>;

/// An image: its header and section table. The contents of a section are read when they are asked for, and kept.
#[derive(Debug)]
pub struct Image {
    base: u64,
    header: Header,
    sections: Vec<Section>,
    text: usize,
    // Contents that were read, by the index of the section.
    cache: Mutex<BTreeMap<usize, Contents>>,
}

impl Image {
    /// Reads header, section table and section names of the image at `address`.
    ///
    /// # Errors
    /// If there is no image, or it is broken or not all there.
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
            // SHT_NULL and SHT_NOBITS sections have no bytes, whatever their size says.
            let size = if kind == 0 || kind == 8 { 0 } else { size };
            let inside = offset.checked_add(size).is_some_and(|end| end <= MAX_IMAGE_BYTES);
            if !inside || offset.checked_add(size).and_then(|end| address.checked_add(end)).is_none() {
                return Err(broken("a section lies outside"));
            }
            raw.push((name, Section { name: String::new(), kind, flags, offset, size, link, info }));
        }
        // Sections do not overlap, so what is kept of them has no more bytes than the image.
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

    /// Reads the image in the bytes of a file. Give [`SliceMemory::new`]`(0, bytes)` to the functions that read
    /// sections.
    ///
    /// # Errors
    /// This fails where [`Image::read`] fails.
    #[cfg(any(test, feature = "internals"))]
    pub fn from_bytes(bytes: &[u8]) -> Result<Image, ImageError> {
        Image::read(&SliceMemory::new(0, bytes), 0)
    }

    /// Address of the image's header.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The ELF header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// All sections, in the order of the section table.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The section with this name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    /// Range of addresses of the code.
    pub fn text(&self) -> Range<u64> {
        let s = &self.sections[self.text];
        self.base + s.offset..self.base + s.offset + s.size
    }

    /// Converts an address into an offset from the start of the code. `None` if the address is not in the code.
    pub fn text_offset(&self, address: u64) -> Option<u32> {
        let text = self.text();
        if text.contains(&address) { (address - text.start).try_into().ok() } else { None }
    }

    /// Number of bytes from the header to the end of the last section or of the section table, whichever ends later.
    #[cfg(any(test, feature = "internals"))]
    pub fn size(&self) -> u64 {
        let table = self.header.sections_offset + u64::from(self.header.sections) * 64;
        self.sections.iter().map(|s| s.offset + s.size).fold(table, u64::max)
    }

    /// Whether a section is there and has bytes. `.wasmtime.frames` is missing without `guest_debug`,
    /// `.wasmtime.addrmap` is missing with `generate_address_map(false)`, and `.eh_frame` is missing with
    /// `native_unwind_info(false)`.
    pub fn has(&self, name: &str) -> bool {
        self.section(name).is_some_and(|s| s.size > 0)
    }

    /// The bytes of the section with this name.
    ///
    /// # Errors
    /// If there is no such section, or its memory cannot be read.
    pub fn contents(&self, name: &'static str, memory: &dyn Memory) -> Result<Contents, ImageError> {
        let index = self.sections.iter().position(|s| s.name == name);
        self.contents_at(index.ok_or(ImageError::NoSection { address: self.base, name })?, memory)
    }

    /// The bytes of the section with index `index` in [`Image::sections`].
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

    // Reads the bytes of a section without keeping them, for callers that need them once.
    fn read_section(&self, index: usize, memory: &dyn Memory) -> Result<Vec<u8>, ImageError> {
        let section =
            self.sections.get(index).ok_or(ImageError::Broken { address: self.base, what: "no such section" })?;
        let from = self.base + section.offset;
        if let Some(last) = section.size.checked_sub(1) {
            // The end of the section must be there before so much memory is allocated.
            memory.read(from + last, &mut [0])?;
        }
        Ok(memory.read_vec(from, section.size as usize)?)
    }

    /// Reads what `.wasmtime.engine` tells about the compiler.
    ///
    /// # Errors
    /// If the section cannot be read.
    pub fn engine(&self, memory: &dyn Memory) -> Result<Engine, ImageError> {
        let bytes = self.contents(ENGINE, memory)?;
        Engine::parse(&bytes)
            .ok_or(ImageError::Broken { address: self.base, what: "the section .wasmtime.engine has another form" })
    }

    /// The functions that `.symtab` names, sorted by offset. The table is empty for images that were made with
    /// `debug_symbols(false)` (from version 47 on). The functions in [`info`] are then the same, except the
    /// names of the runtime's routines.
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
        let mut pieces = Vec::with_capacity((table.len() / 24).min(MAX_SYMBOLS));
        // Names that share bytes are an exception.
        let mut name_bytes = strings.len().saturating_mul(2);
        let mut b = Bytes::new(&table);
        let short = |_: Short| broken("the symbol table is cut off");
        while b.remaining() >= 24 && pieces.len() < MAX_SYMBOLS {
            let name = b.u32().map_err(short)?;
            let info = b.u8().map_err(short)?;
            b.skip(1).map_err(short)?;
            let section = b.u16().map_err(short)?;
            let value = b.u64().map_err(short)?;
            let size = b.u64().map_err(short)?;
            // Only STT_FUNC symbols in .text count. In a relocatable file their values are offsets in the section.
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
            pieces.push(CodePiece { start, len, kind: name });
        }
        Ok(FunctionTable::sorted(pieces, Kinds::Symbols(strings)))
    }
}

// The name at an offset of a string table, without its final zero and cut at `MAX_NAME_BYTES`.
fn string_at(strings: &[u8], at: u32) -> Option<&[u8]> {
    let rest = strings.get(at as usize..)?;
    let rest = &rest[..rest.len().min(MAX_NAME_BYTES)];
    Some(&rest[..memchr::memchr(0, rest).unwrap_or(rest.len())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_IMAGE_DEBUG_BYTES;
    use crate::runtime::wasmtime::tables::dwarf::ImageDwarf;

    fn fixture(name: &str) -> Vec<u8> {
        super::super::testing::fixture(name)
    }

    #[test]
    fn sections_are_no_more_than_the_image() {
        let mut bytes = fixture("48-default");
        let table = Image::from_bytes(&bytes).unwrap().header().sections_offset as usize;
        // Each of two sections has half of the bytes that an image may have, and the other sections have some more.
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
            // The image has so many bytes behind the names.
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
