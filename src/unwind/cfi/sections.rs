//! Finds the unwind tables of a file: `.eh_frame` and its header, by section or by segment, and `.debug_frame`.

use super::table::{Kind, SearchTable, Table, TableBytes};
use crate::process::objects::LoadedObject;
use crate::process::unpack::section_bytes;
use gimli::BaseAddresses;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSection};
use std::borrow::Cow;
use std::cell::OnceCell;

pub(super) fn tables(object: &LoadedObject) -> Vec<Table<'_>> {
    let mut tables = Vec::new();
    if let Some(data) = &object.data
        && let Some(file) = parse_x64(data)
    {
        let mut bases = BaseAddresses::default();
        let section = |name| file.section_by_name(name);
        if let Some(text) = section(".text") {
            bases = bases.set_text(text.address());
        }
        if let Some(got) = section(".got") {
            bases = bases.set_got(got.address());
        }
        let header = section(".eh_frame_hdr").and_then(|s| Some((s.address(), s.data().ok()?)));
        let header = header.filter(|(_, bytes)| !bytes.is_empty()).or_else(|| header_segment(&file));
        let frames = section(".eh_frame").and_then(|s| Some((s.address(), s.data().ok()?)));
        let frames = frames.filter(|(_, bytes)| !bytes.is_empty());
        let search = header.and_then(|(svma, bytes)| SearchTable::parse(bytes, svma, frames.map(|f| f.0)));
        // In a file without section headers the search table still tells where the entries begin.
        let frames =
            frames.or_else(|| search.as_ref().and_then(|s| Some((s.eh_frame, segment_tail(&file, s.eh_frame)?))));
        if let Some((svma, bytes)) = frames {
            if let Some((header, _)) = header {
                bases = bases.set_eh_frame_hdr(header);
            }
            let bases = bases.clone().set_eh_frame(svma);
            let kind = Kind::EhFrame;
            tables.push(Table {
                bytes: TableBytes::OfFile(Cow::Borrowed(bytes)),
                kind,
                bases,
                search,
                index: OnceCell::new(),
            });
        }
        tables.extend(debug_frame(&file, &bases));
    }
    if let Some((_, data)) = &object.debug
        && let Some(file) = parse_x64(data)
    {
        tables.extend(debug_frame(&file, &BaseAddresses::default()));
    }
    tables
}

type Elf<'a> = ElfFile64<'a, Endianness>;

fn parse_x64(data: &[u8]) -> Option<Elf<'_>> {
    let file = Elf::parse(data).ok()?;
    (file.architecture() == object::Architecture::X86_64 && file.is_little_endian()).then_some(file)
}

fn debug_frame<'a>(file: &Elf<'a>, bases: &BaseAddresses) -> Option<Table<'a>> {
    let bytes = section_bytes(&file.section_by_name(".debug_frame")?)?;
    (!bytes.is_empty()).then(|| Table {
        bytes: TableBytes::OfFile(bytes),
        kind: Kind::DebugFrame,
        bases: bases.clone(),
        search: None,
        index: OnceCell::new(),
    })
}

fn header_segment<'a>(file: &Elf<'a>) -> Option<(u64, &'a [u8])> {
    let endian = file.endian();
    let segment = file.elf_program_headers().iter().find(|p| p.p_type(endian) == object::elf::PT_GNU_EH_FRAME)?;
    Some((segment.p_vaddr(endian), segment.data(endian, file.data()).ok()?))
}

/// The bytes of the file that are loaded from `svma` to the end of its segment.
fn segment_tail<'a>(file: &Elf<'a>, svma: u64) -> Option<&'a [u8]> {
    let endian = file.endian();
    file.elf_program_headers().iter().filter(|p| p.p_type(endian) == object::elf::PT_LOAD).find_map(|p| {
        let skip = usize::try_from(svma.checked_sub(p.p_vaddr(endian))?).ok()?;
        p.data(endian, file.data()).ok()?.get(skip..).filter(|tail| !tail.is_empty())
    })
}
