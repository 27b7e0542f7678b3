//! The targets of tests of unwinding and symbolization: memory made of words, ELF files made of sections, and the
//! test's own process.

use crate::arch::{CodeAddress, Machine, Reg, Registers, x64};
use crate::process::objects::{LoadedObject, ObjectData, Objects};
use crate::process::{Mapping, Memory, MemoryError};
use crate::unwind::Cursor;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Memory that consists only of the bytes that were put into it.
#[derive(Default)]
pub struct Pieces(pub BTreeMap<u64, Vec<u8>>);

impl Pieces {
    pub fn word(mut self, address: u64, value: u64) -> Pieces {
        self.0.insert(address, value.to_le_bytes().to_vec());
        self
    }

    pub fn words(mut self, address: u64, values: &[u64]) -> Pieces {
        self.0.insert(address, values.iter().flat_map(|v| v.to_le_bytes()).collect());
        self
    }

    pub fn bytes(mut self, address: u64, bytes: &[u8]) -> Pieces {
        self.0.insert(address, bytes.to_vec());
        self
    }
}

impl Memory for Pieces {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        for (i, b) in buf.iter_mut().enumerate() {
            let at = address + i as u64;
            let piece = self.0.range(..=at).next_back();
            *b = *piece
                .and_then(|(start, bytes)| bytes.get((at - start) as usize))
                .ok_or(MemoryError::Unmapped { address, len: 1 })?;
        }
        Ok(())
    }
}

/// A section of an ELF file.
pub struct Section<'s> {
    pub name: &'s str,
    pub flags: u64,
    pub address: u64,
    pub bytes: &'s [u8],
}

/// An x86-64 ELF file with these sections. `.symtab` gets its section type, and the section after it serves as its
/// names.
pub fn elf(sections: &[Section]) -> Vec<u8> {
    let mut names = vec![0u8];
    let mut body = Vec::new();
    let mut headers = vec![0u8; 64];
    let mut header = |name: u32, kind: u32, flags: u64, address: u64, bytes: &[u8], link: u32, body: &mut Vec<u8>| {
        body.resize(body.len().next_multiple_of(8), 0);
        let offset = 64 + body.len() as u64;
        body.extend_from_slice(bytes);
        headers.extend(name.to_le_bytes().into_iter().chain(kind.to_le_bytes()));
        for word in [flags, address, offset, bytes.len() as u64] {
            headers.extend(word.to_le_bytes());
        }
        headers.extend(link.to_le_bytes().into_iter().chain([0; 4]));
        for word in [8u64, if kind == 2 { 24 } else { 0 }] {
            headers.extend(word.to_le_bytes());
        }
    };
    for (i, s) in sections.iter().enumerate() {
        let name = names.len() as u32;
        names.extend(s.name.bytes().chain([0]));
        let kind = match s.name {
            ".symtab" => 2,
            ".strtab" => 3,
            _ => 1,
        };
        header(name, kind, s.flags, s.address, s.bytes, i as u32 + 2, &mut body);
    }
    let name = names.len() as u32;
    names.extend(b".shstrtab\0");
    header(name, 3, 0, 0, &names.clone(), 0, &mut body);
    body.resize(body.len().next_multiple_of(8), 0);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0".to_vec();
    for word in [0u64, 0, 64 + body.len() as u64] {
        file.extend(word.to_le_bytes());
    }
    for half in [0u16, 0, 64, 56, 0, 64, sections.len() as u16 + 2, sections.len() as u16 + 1] {
        file.extend(half.to_le_bytes());
    }
    file.extend(body);
    file.extend(headers);
    file
}

/// An `.eh_frame` section for functions. For each function: its start, its size, and the distance of its CFA at the
/// first byte, at the second byte and so on.
pub fn eh_frame(functions: &[(u64, u32, Vec<i32>)]) -> Vec<u8> {
    use gimli::write::{Address, CallFrameInstruction as Cfi, CommonInformationEntry, FrameTable};
    use gimli::{Encoding, Format, LittleEndian, X86_64};
    let encoding = Encoding { format: Format::Dwarf32, version: 1, address_size: 8 };
    let mut cie = CommonInformationEntry::new(encoding, 1, -8, X86_64::RA);
    cie.add_instruction(Cfi::Cfa(X86_64::RSP, 8));
    cie.add_instruction(Cfi::Offset(X86_64::RA, -8));
    let mut table = FrameTable::default();
    let cie = table.add_cie(cie);
    for (start, len, depths) in functions {
        let mut fde = gimli::write::FrameDescriptionEntry::new(Address::Constant(*start), *len);
        for (at, depth) in depths.iter().enumerate() {
            fde.add_instruction(at as u32, Cfi::CfaOffset(*depth));
        }
        table.add_fde(cie, fde);
    }
    let mut eh = gimli::write::EhFrame::from(gimli::write::EndianVec::new(LittleEndian));
    table.write_eh_frame(&mut eh).unwrap();
    eh.0.into_vec()
}

/// Sections with debug information of a function at `start` into which `count` functions are inlined, each into the
/// one before.
pub fn inlined(start: u64, count: usize) -> Vec<(&'static str, Vec<u8>)> {
    use gimli::write::{Address, AttributeValue, DwarfUnit, EndianVec, Sections};
    let encoding = gimli::Encoding { format: gimli::Format::Dwarf32, version: 4, address_size: 8 };
    let mut dwarf = DwarfUnit::new(encoding);
    let mut parent = dwarf.unit.root();
    let covers = |id, dwarf: &mut DwarfUnit| {
        let entry = dwarf.unit.get_mut(id);
        entry.set(gimli::DW_AT_name, AttributeValue::String(b"f".to_vec()));
        entry.set(gimli::DW_AT_low_pc, AttributeValue::Address(Address::Constant(start)));
        entry.set(gimli::DW_AT_high_pc, AttributeValue::Udata(0x100));
    };
    covers(parent, &mut dwarf);
    for n in 0..=count {
        let tag = if n == 0 { gimli::DW_TAG_subprogram } else { gimli::DW_TAG_inlined_subroutine };
        parent = dwarf.unit.add(parent, tag);
        covers(parent, &mut dwarf);
    }
    let mut sections = Sections::new(EndianVec::new(gimli::LittleEndian));
    dwarf.write(&mut sections).expect("it can be written");
    let mut out = Vec::new();
    let copied = sections.for_each(|id, data| {
        out.push((id.name(), data.slice().to_vec()));
        Ok::<_, gimli::write::Error>(())
    });
    copied.expect("nothing fails");
    out
}

/// A loaded file with the contents `bytes`, loaded at `bias` and covering `range`.
pub fn object(name: &str, bias: u64, range: (u64, u64), bytes: Vec<u8>) -> LoadedObject {
    LoadedObject {
        path: PathBuf::from(name),
        opened: None,
        bias,
        range,
        build_id: None,
        data: Some(ObjectData::Memory(bytes)),
        fits: None,
        debug: None,
        unpacked: Default::default(),
        excerpts: Default::default(),
        problem: None,
    }
}

/// A cursor of a frame that stopped at `pc` with these registers.
pub fn cursor(pc: u64, registers: &[(Reg, u64)]) -> Cursor {
    let mut all = Registers::unknown(Machine::X64);
    all.set(x64::RIP, pc);
    for &(reg, value) in registers {
        all.set(reg, value);
    }
    Cursor { address: CodeAddress::Exact(pc), registers: all }
}

/// The test's own memory, read in the same way as the memory of another process.
pub struct Own;

impl Memory for Own {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        use nix::sys::uio::{RemoteIoVec, process_vm_readv};
        let len = buf.len();
        let remote = [RemoteIoVec { base: address as usize, len }];
        let read = process_vm_readv(nix::unistd::Pid::this(), &mut [std::io::IoSliceMut::new(buf)], &remote);
        match read {
            Ok(n) if n == len => Ok(()),
            _ => Err(MemoryError::Unmapped { address, len }),
        }
    }
}

/// The test's own mappings.
pub fn own_mappings() -> Vec<Mapping> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("own maps");
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let access = fields.next()?;
        let offset = fields.next()?;
        let path = fields.nth(2).map(PathBuf::from);
        let hex = |s| u64::from_str_radix(s, 16).ok();
        Some(Mapping {
            start: hex(start)?,
            end: hex(end)?,
            read: access.contains('r'),
            write: access.contains('w'),
            execute: access.contains('x'),
            offset: hex(offset)?,
            path,
        })
    };
    maps.lines().map(|line| parse(line).expect(line)).collect()
}

/// The files that are loaded in the test's own process, vdso included.
pub fn own_objects() -> Objects {
    use object::{Object, ObjectSegment};
    let mappings = own_mappings();
    let mut objects = Vec::new();
    for first in mappings.iter().filter(|m| m.offset == 0 && m.path.is_some()) {
        let path = first.path.clone().expect("filtered");
        let bytes = match path.to_str() {
            Some("[vdso]") => Own.read_vec(first.start, first.size() as usize).expect("vdso"),
            Some(file) if file.starts_with('/') => match std::fs::read(file) {
                Ok(bytes) => bytes,
                Err(_) => continue,
            },
            _ => continue,
        };
        let Ok(file) = object::File::parse(&*bytes) else { continue };
        let lowest = file.segments().map(|s| s.address()).min().unwrap_or(0);
        let highest = file.segments().map(|s| s.address() + s.size()).max().unwrap_or(0);
        let bias = first.start.wrapping_sub(lowest & !0xfff);
        let range = (first.start, bias.wrapping_add(highest));
        objects.push(object(path.to_str().expect("utf-8"), bias, range, bytes));
    }
    Objects::from_parts(objects)
}

/// Reports that a tool or a right is missing. This fails the test, unless `WSTATE_ALLOW_MISSING` is set: then it is
/// only printed.
pub fn missing(reason: &str) {
    let allowed = std::env::var_os("WSTATE_ALLOW_MISSING").is_some_and(|v| !v.is_empty());
    assert!(allowed, "{reason} (WSTATE_ALLOW_MISSING=1 leaves out what cannot be tested here)");
    println!("not tested: {reason}");
}

/// Whether a tool that a test needs is installed.
pub fn has_tool(name: &str) -> bool {
    let there = std::process::Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        missing(&format!("{name} is not installed"));
    }
    there
}

/// A cursor with the registers of the function that uses the macro, as they are at this very instruction. The
/// function must not return while the cursor is used.
macro_rules! here {
    () => {{
        let mut words = [0u64; 9];
        #[allow(unsafe_code)]
        // SAFETY: the assembly writes into `words` only; every register that it changes is declared.
        unsafe {
            std::arch::asm!(
                "mov [rax], rbx", "mov [rax + 8], rsp", "mov [rax + 16], rbp", "mov [rax + 24], r12",
                "mov [rax + 32], r13", "mov [rax + 40], r14", "mov [rax + 48], r15", "lea rcx, [rip]",
                "mov [rax + 56], rcx",
                in("rax") words.as_mut_ptr(), out("rcx") _,
            )
        };
        use $crate::arch::x64;
        let [rbx, rsp, rbp, r12, r13, r14, r15, rip, _] = words;
        let known = [
            (x64::RBX, rbx), (x64::RSP, rsp), (x64::RBP, rbp), (x64::R12, r12), (x64::R13, r13), (x64::R14, r14),
            (x64::R15, r15),
        ];
        $crate::unwind::testing::cursor(rip, &known)
    }};
}
pub(crate) use here;
