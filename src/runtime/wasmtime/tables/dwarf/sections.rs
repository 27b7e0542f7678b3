//! The debug sections of an image, with their relocations applied to a copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use gimli::{EndianArcSlice, LittleEndian};

use crate::bytes::Bytes;
use crate::limits::MAX_IMAGE_DEBUG_BYTES;
use crate::process::Memory;
use crate::runtime::wasmtime::image::{Image, Section};

/// The bytes of a section.
pub(super) type Slice = EndianArcSlice<LittleEndian>;

/// The address that relocation gives to the first byte of the code. It is not zero, since code that the linker
/// dropped has the address 0 without a relocation, which must not be taken for that of the first function, and since
/// a location list ends with two zeros.
pub(super) const BIAS: u64 = 1 << 40;

const SHT_RELA: u32 = 4;
const SHF_COMPRESSED: u64 = 0x800;
const EM_X86_64: u16 = 62;
const R_X86_64_NONE: u32 = 0;
const R_X86_64_64: u32 = 1;
const R_X86_64_32: u32 = 10;

/// Reads the debug sections and applies their relocations. The result has their bytes by name. `None` if the image has
/// no debug information.
pub(super) fn read(image: &Image, memory: &dyn Memory) -> Result<Option<BTreeMap<String, Vec<u8>>>, String> {
    if !image.has(".debug_info") {
        return Ok(None);
    }
    if image.header().machine != EM_X86_64 {
        return Err("the image's debug information is about a machine other than x86-64".into());
    }
    let sections = image.sections();
    let is_debug = |s: &Section| s.name.starts_with(".debug_");
    let applies_to = |s: &Section| sections.get(s.info as usize).filter(|t| s.kind == SHT_RELA && is_debug(t));
    let wanted = sections.iter().filter(|s| is_debug(s) || applies_to(s).is_some());
    if wanted.map(|s| s.size).fold(0, u64::saturating_add) > MAX_IMAGE_DEBUG_BYTES {
        return Err(format!("the image's debug information has more than {MAX_IMAGE_DEBUG_BYTES} bytes"));
    }
    let mut read = BTreeMap::new();
    for section in sections.iter().filter(|s| is_debug(s)) {
        if section.flags & SHF_COMPRESSED != 0 {
            return Err(format!("{} is compressed", section.name));
        }
        if !read.contains_key(&section.name) {
            read.insert(section.name.clone(), contents(image, section, memory)?);
        }
    }
    let mut symbols: Option<(u32, Symbols<'_>)> = None;
    for section in sections {
        let Some(target) = applies_to(section) else { continue };
        let table = match symbols.take() {
            Some((link, table)) if link == section.link => table,
            _ => Symbols::read(image, section.link, memory)?,
        };
        let entries = contents(image, section, memory)?;
        if let Some(bytes) = read.get_mut(&target.name) {
            relocate(bytes, &entries, &table).map_err(|what| format!("{}: {what}", section.name))?;
        }
        symbols = Some((section.link, table));
    }
    Ok(Some(read))
}

fn contents(image: &Image, section: &Section, memory: &dyn Memory) -> Result<Vec<u8>, String> {
    let failed = |e| format!("{}: {e}", section.name);
    let from = image.base().wrapping_add(section.offset);
    if let Some(last) = section.size.checked_sub(1) {
        // Before so much memory is allocated, the last byte must be readable.
        memory.read(from.wrapping_add(last), &mut [0]).map_err(failed)?;
    }
    memory.read_vec(from, section.size as usize).map_err(failed)
}

struct Symbols<'a> {
    table: Vec<u8>,
    sections: &'a [Section],
}

impl<'a> Symbols<'a> {
    fn read(image: &'a Image, index: u32, memory: &dyn Memory) -> Result<Symbols<'a>, String> {
        let section = image.sections().get(index as usize).ok_or("relocations without a symbol table")?;
        if section.size > MAX_IMAGE_DEBUG_BYTES {
            return Err("the symbol table is too large".into());
        }
        Ok(Symbols { table: contents(image, section, memory)?, sections: image.sections() })
    }

    /// The value of a symbol. Functions count from [`BIAS`], debug sections from 0, as the references between them
    /// do.
    fn value(&self, index: u32) -> Result<u64, String> {
        let at = (index as usize).checked_mul(24).and_then(|from| self.table.get(from..)?.get(..24));
        let mut b = Bytes::new(at.ok_or_else(|| format!("there is no symbol {index}"))?);
        let short = |e: crate::bytes::Short| e.to_string();
        b.skip(6).map_err(short)?;
        let section = b.u16().map_err(short)?;
        let value = b.u64().map_err(short)?;
        match self.sections.get(usize::from(section)) {
            Some(s) if s.name == ".text" && value <= s.size => Ok(BIAS + value),
            Some(s) if s.name.starts_with(".debug_") => Ok(value),
            _ => Err(format!("symbol {index} is neither code nor debug information")),
        }
    }
}

fn relocate(bytes: &mut [u8], entries: &[u8], symbols: &Symbols<'_>) -> Result<(), String> {
    for entry in entries.chunks_exact(24) {
        let mut b = Bytes::new(entry);
        let short = |e: crate::bytes::Short| e.to_string();
        let offset = b.u64().map_err(short)?;
        let info = b.u64().map_err(short)?;
        let addend = b.u64().map_err(short)? as i64;
        let width = match info as u32 {
            R_X86_64_NONE => continue,
            R_X86_64_64 => 8,
            R_X86_64_32 => 4,
            other => return Err(format!("relocation of the unknown type {other}")),
        };
        let value = symbols.value((info >> 32) as u32)?.wrapping_add_signed(addend);
        if width == 4 && value > u64::from(u32::MAX) {
            return Err(format!("relocation at {offset:#x} does not fit"));
        }
        let slot = usize::try_from(offset).ok().and_then(|from| bytes.get_mut(from..)?.get_mut(..width));
        let slot = slot.ok_or_else(|| format!("relocation at {offset:#x} lies outside"))?;
        slot.copy_from_slice(&value.to_le_bytes()[..width]);
    }
    Ok(())
}

/// Makes a reader of DWARF from the sections.
pub(super) fn dwarf(mut sections: BTreeMap<String, Vec<u8>>) -> gimli::Dwarf<Slice> {
    let load = |id: gimli::SectionId| {
        let bytes = sections.remove(id.name()).unwrap_or_default();
        Ok::<_, std::convert::Infallible>(Slice::new(Arc::from(bytes), LittleEndian))
    };
    let Ok(mut dwarf) = gimli::Dwarf::load(load);
    dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::Duplicates);
    dwarf
}
