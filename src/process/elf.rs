//! ELF headers and program headers of a file or of a loaded image, read by offset from anything. Only what identity and
//! placement of a file need; sections are read by the `object` crate where they are wanted.

use super::{Mapping, Memory, notes};
use crate::bytes::{Bytes, Short};
use crate::limits;

/// `p_type` values.
#[allow(missing_docs)]
pub mod pt {
    pub const LOAD: u32 = 1;
    pub const DYNAMIC: u32 = 2;
    pub const NOTE: u32 = 4;
    pub const PHDR: u32 = 6;
    pub const TLS: u32 = 7;
    pub const GNU_EH_FRAME: u32 = 0x6474_e550;
}

/// `p_flags` bits.
#[allow(missing_docs)]
pub mod pf {
    pub const X: u32 = 1;
    pub const W: u32 = 2;
    pub const R: u32 = 4;
}

/// Bytes of an ELF64 header.
pub const HEADER_SIZE: u64 = 64;
/// Bytes of an ELF64 program header.
pub const PHDR_SIZE: u64 = 56;

/// The ELF header's fields that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `e_type`.
    pub kind: u16,
    /// `e_machine`.
    pub machine: u16,
    /// `e_entry`.
    pub entry: u64,
    /// `e_phoff`.
    pub phoff: u64,
    /// `e_shoff`.
    pub shoff: u64,
    /// `e_phentsize`.
    pub phentsize: u16,
    /// `e_phnum`.
    pub phnum: u16,
}

/// Why bytes are not an ELF64 little-endian header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotElf {
    /// No magic number.
    #[error("it is not an ELF file")]
    Magic,
    /// 32-bit.
    #[error("it is a 32-bit ELF file; only x86-64 is supported")]
    Class,
    /// Big-endian.
    #[error("it is a big-endian ELF file; only x86-64 is supported")]
    ByteOrder,
    /// Cut off.
    #[error("it ends inside its ELF header")]
    Short,
}

impl From<Short> for NotElf {
    fn from(_: Short) -> NotElf {
        NotElf::Short
    }
}

impl Header {
    /// Reads the first [`HEADER_SIZE`] bytes of a file.
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

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phdr {
    /// `p_type`.
    pub kind: u32,
    /// `p_flags`.
    pub flags: u32,
    /// `p_offset`.
    pub offset: u64,
    /// `p_vaddr`.
    pub vaddr: u64,
    /// `p_filesz`.
    pub filesz: u64,
    /// `p_memsz`.
    pub memsz: u64,
    /// `p_align`.
    pub align: u64,
}

impl Phdr {
    /// Reads one.
    pub fn parse(b: &mut Bytes<'_>) -> Result<Phdr, Short> {
        let (kind, flags) = (b.u32()?, b.u32()?);
        let (offset, vaddr, _paddr) = (b.u64()?, b.u64()?, b.u64()?);
        let (filesz, memsz, align) = (b.u64()?, b.u64()?, b.u64()?);
        Ok(Phdr { kind, flags, offset, vaddr, filesz, memsz, align })
    }
}

/// Header and program headers of an executable or library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The header.
    pub header: Header,
    /// All program headers.
    pub phdrs: Vec<Phdr>,
}

impl Headers {
    /// Reads headers with `read(offset, len)`, which gives bytes by file offset or `None`.
    pub fn read(read: impl Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Headers> {
        let header = Header::parse(&read(0, HEADER_SIZE as usize)?).ok()?;
        let plausible = header.machine == 62
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

    /// Headers of a file's bytes.
    pub fn of_file(data: &[u8]) -> Option<Headers> {
        Headers::read(|offset, len| slice(data, offset, len as u64).map(<[u8]>::to_vec))
    }

    /// The loadable segments.
    pub fn loads(&self) -> impl Iterator<Item = &Phdr> {
        self.phdrs.iter().filter(|p| p.kind == pt::LOAD)
    }

    /// The first program header of this type.
    pub fn find(&self, kind: u32) -> Option<&Phdr> {
        self.phdrs.iter().find(|p| p.kind == kind)
    }

    /// The build id in a file's bytes.
    pub fn build_id_of_file(&self, data: &[u8]) -> Option<Vec<u8>> {
        self.build_id(|p| slice(data, p.offset, p.filesz.min(limits::MAX_NOTE_BYTES)).map(<[u8]>::to_vec))
    }

    /// The build id; `contents` gives the bytes of a note segment.
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

    /// Whether the dynamic section in memory is this file's: for cores of gdb, which hold no ELF header but all pages
    /// that were written to. Sizes and addresses in it differ between any two builds of substance. `None`: it cannot be
    /// told.
    pub fn dynamic_agrees(&self, file: &[u8], mappings: &[&Mapping], memory: &dyn Memory) -> Option<bool> {
        // Filled in by the dynamic linker.
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

    /// Lowest virtual address, rounded down to a page.
    pub fn lowest(&self) -> Option<u64> {
        self.loads().map(|p| p.vaddr & !0xfff).min()
    }
}

/// `data[offset..offset + len]`, if it is there.
pub fn slice(data: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let from = usize::try_from(offset).ok()?;
    let to = from.checked_add(usize::try_from(len).ok()?)?;
    data.get(from..to)
}

/// Hexadecimal text of a build id.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
