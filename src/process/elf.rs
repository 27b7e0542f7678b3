//! Reads the ELF header and the program headers of a file or of a loaded image, by offset and from any source. Only
//! what is needed for the identity and the placement of a file is read; sections are read by the `object` crate where
//! they are needed.

use super::{Mapping, Memory, notes};
use crate::arch::Machine;
use crate::bytes::{Bytes, Short};
use crate::limits;

/// Values of `p_type`, the type of a segment.
#[allow(missing_docs)]
pub mod pt {
    pub const LOAD: u32 = 1;
    pub const DYNAMIC: u32 = 2;
    pub const NOTE: u32 = 4;
    pub const PHDR: u32 = 6;
}

/// Bits of `p_flags`, the rights of a segment.
#[allow(missing_docs)]
pub mod pf {
    pub const X: u32 = 1;
    pub const W: u32 = 2;
    pub const R: u32 = 4;
}

/// Size of an ELF64 header in bytes.
pub const HEADER_SIZE: u64 = 64;
/// Size of an ELF64 program header in bytes.
pub const PHDR_SIZE: u64 = 56;

/// The fields of an ELF header that are needed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Field `e_type`: kind of the file, such as executable or core.
    pub kind: u16,
    /// Field `e_machine`: the processor architecture.
    pub machine: u16,
    /// Field `e_entry`: address of the entry point, as the file states it.
    pub entry: u64,
    /// Field `e_phoff`: offset of the program headers in the file, in bytes.
    pub phoff: u64,
    /// Field `e_shoff`: offset of the section headers in the file, in bytes.
    pub shoff: u64,
    /// Field `e_phentsize`: size of one program header in bytes.
    pub phentsize: u16,
    /// Field `e_phnum`: number of program headers.
    pub phnum: u16,
}

/// Why bytes are not an ELF64 little-endian header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotElf {
    /// The bytes do not begin with the magic number of ELF.
    #[error("it is not an ELF file")]
    Magic,
    /// The file is a 32-bit file.
    #[error("it is a 32-bit ELF file; wstate reads x86-64 only")]
    Class,
    /// The file is big-endian.
    #[error("it is a big-endian ELF file; wstate reads x86-64 only")]
    ByteOrder,
    /// The header is cut off.
    #[error("it is cut off inside its ELF header")]
    Short,
}

impl From<Short> for NotElf {
    fn from(_: Short) -> NotElf {
        NotElf::Short
    }
}

impl Header {
    /// Reads an ELF header from the first [`HEADER_SIZE`] bytes of a file.
    pub fn parse(data: &[u8]) -> Result<Header, NotElf> {
        let mut b = Bytes::new(data);
        if data.len() < 4 || b.take(4)? != b"\x7fELF" {
            return Err(NotElf::Magic);
        }
        if b.u8()? != 2 {
            return Err(NotElf::Class);
        }
        if b.u8()? != 1 {
            return Err(NotElf::ByteOrder);
        }
        b.skip(10)?;
        let (kind, machine) = (b.u16()?, b.u16()?);
        b.skip(4)?;
        let (entry, phoff, shoff) = (b.u64()?, b.u64()?, b.u64()?);
        b.skip(6)?;
        let (phentsize, phnum) = (b.u16()?, b.u16()?);
        b.skip(6)?;
        Ok(Header { kind, machine, entry, phoff, shoff, phentsize, phnum })
    }
}

/// A program header, which describes one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phdr {
    /// Field `p_type`: type of the segment (see `pt`).
    pub kind: u32,
    /// Field `p_flags`: access rights of the segment (see `pf`).
    pub flags: u32,
    /// Field `p_offset`: offset of the segment in the file, in bytes.
    pub offset: u64,
    /// Field `p_vaddr`: address of the segment, as the file states it.
    pub vaddr: u64,
    /// Field `p_filesz`: size of the segment in the file, in bytes.
    pub filesz: u64,
    /// Field `p_memsz`: size of the segment in memory, in bytes.
    pub memsz: u64,
    /// Field `p_align`: alignment of the segment, in bytes.
    pub align: u64,
}

impl Phdr {
    /// Reads one program header.
    pub fn parse(b: &mut Bytes<'_>) -> Result<Phdr, Short> {
        let (kind, flags) = (b.u32()?, b.u32()?);
        let (offset, vaddr, _paddr) = (b.u64()?, b.u64()?, b.u64()?);
        let (filesz, memsz, align) = (b.u64()?, b.u64()?, b.u64()?);
        Ok(Phdr { kind, flags, offset, vaddr, filesz, memsz, align })
    }
}

/// ELF header and program headers of an executable or library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The ELF header.
    pub header: Header,
    /// All program headers.
    pub phdrs: Vec<Phdr>,
}

impl Headers {
    /// Reads the headers with `read(offset, len)`, which returns `len` bytes from the given file offset on, or
    /// `None`. Returns `None` if they are not those of an executable or library of a machine that is known, or cannot be read.
    pub fn read(read: impl Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Headers> {
        let header = Header::parse(&read(0, HEADER_SIZE as usize)?).ok()?;
        let plausible = Machine::from_elf(header.machine).is_some()
            && (header.kind == 2 || header.kind == 3)
            && u64::from(header.phentsize) == PHDR_SIZE
            && header.phnum <= limits::MAX_PROGRAM_HEADERS;
        if !plausible {
            return None;
        }
        let table = read(header.phoff, header.phnum as usize * PHDR_SIZE as usize)?;
        let mut b = Bytes::new(&table);
        let phdrs = (0..header.phnum).map(|_| Phdr::parse(&mut b)).collect::<Result<Vec<_>, _>>().ok()?;
        Some(Headers { header, phdrs })
    }

    /// Reads the headers from the bytes of a file.
    pub fn of_file(data: &[u8]) -> Option<Headers> {
        Headers::read(|offset, len| slice(data, offset, len as u64).map(<[u8]>::to_vec))
    }

    /// The loadable segments.
    pub fn loads(&self) -> impl Iterator<Item = &Phdr> {
        self.phdrs.iter().filter(|p| p.kind == pt::LOAD)
    }

    /// The first program header of type `kind`.
    pub fn find(&self, kind: u32) -> Option<&Phdr> {
        self.phdrs.iter().find(|p| p.kind == kind)
    }

    /// Finds the build id in the bytes of a file.
    pub fn build_id_of_file(&self, data: &[u8]) -> Option<Vec<u8>> {
        self.build_id(|p| slice(data, p.offset, p.filesz.min(limits::MAX_NOTE_BYTES)).map(<[u8]>::to_vec))
    }

    /// Finds the build id. `contents` returns the bytes of a note segment.
    pub fn build_id(&self, contents: impl Fn(&Phdr) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        const NT_GNU_BUILD_ID: u32 = 3;
        for p in self.phdrs.iter().filter(|p| p.kind == pt::NOTE && p.filesz <= limits::MAX_NOTE_BYTES) {
            let Some(data) = contents(p) else { continue };
            let mut b = Bytes::new(&data);
            while let Some(Ok(note)) = notes::next_note(&mut b) {
                if note.owner == b"GNU"
                    && note.kind == NT_GNU_BUILD_ID
                    && !note.data.is_empty()
                    && note.data.len() <= limits::MAX_BUILD_ID_BYTES
                {
                    return Some(note.data.to_vec());
                }
            }
        }
        None
    }

    /// Whether the dynamic section in memory is the one of this file. This is for cores of gdb, which hold no ELF
    /// header but all pages that were written to. Sizes and addresses in the dynamic section differ between any two
    /// builds of substance. `None` means that it cannot be told.
    pub fn dynamic_agrees(&self, file: &[u8], mappings: &[&Mapping], memory: &dyn Memory) -> Option<bool> {
        // The dynamic linker fills in the value of this tag.
        const DT_DEBUG: u64 = 21;
        let p = self.find(pt::DYNAMIC).filter(|p| p.filesz <= limits::MAX_DYNAMIC_BYTES && p.filesz >= 64)?;
        let theirs = slice(file, p.offset, p.filesz)?;
        let mut result = None;
        for m in mappings {
            let Some(into) = p.offset.checked_sub(m.offset).filter(|&i| i < m.size()) else { continue };
            let address = m.start.wrapping_add(into);
            let Ok(ours) = memory.read_vec(address, theirs.len()) else { continue };
            let bias = address.wrapping_sub(p.vaddr);
            let (mut a, mut b) = (Bytes::new(&ours), Bytes::new(theirs));
            let mut same = true;
            while let (Ok(tag), Ok(value), Ok(file_tag), Ok(file_value)) = (a.u64(), a.u64(), b.u64(), b.u64()) {
                // Some linkers relocate the addresses in place.
                let value_fits = value == file_value || value == file_value.wrapping_add(bias) || tag == DT_DEBUG;
                same &= tag == file_tag && value_fits;
            }
            if same {
                return Some(true);
            }
            result = Some(false);
        }
        result
    }
}

/// The headers of a loaded file, as they are in the memory of a target.
pub(super) struct LoadedHeaders {
    pub headers: Headers,
    /// `None` if no segment has the headers in it: then somebody mapped the file only to read it.
    pub bias: Option<u64>,
    pub build_id: Option<Vec<u8>>,
}

impl LoadedHeaders {
    /// Reads the headers of the file that is loaded from `start` on. Returns `None` if there are none.
    pub fn read(memory: &dyn Memory, start: u64) -> Option<LoadedHeaders> {
        // Four bytes are enough to see that this is no ELF file; nothing more is read then.
        if memory.read_vec(start, 4).ok()? != b"\x7fELF" {
            return None;
        }
        let headers = Headers::read(|offset, len| memory.read_vec(start.checked_add(offset)?, len).ok())?;
        let first = headers.loads().find(|p| p.offset & !0xfff == 0);
        let bias = first.map(|p| start.wrapping_sub(p.vaddr & !0xfff));
        let build_id = bias
            .and_then(|bias| headers.build_id(|p| memory.read_vec(bias.wrapping_add(p.vaddr), p.filesz as usize).ok()));
        Some(LoadedHeaders { headers, bias, build_id })
    }
}

/// Returns `data[offset..offset + len]`, if all of it is there.
pub fn slice(data: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let from = usize::try_from(offset).ok()?;
    let to = from.checked_add(usize::try_from(len).ok()?)?;
    data.get(from..to)
}

/// Returns bytes, such as a build id, as hexadecimal text.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
