//! Reads the program headers of a core, as far as they are there.

use crate::arch::Machine;
use crate::bytes::Bytes;
use crate::process::elf::{self, HEADER_SIZE, Header, NotElf, PHDR_SIZE, Phdr};
use crate::process::file_kind::{self, Door, ET_CORE};

/// Value of `e_phnum` in a file with more program headers than the field can hold. The number is then in `sh_info` of
/// the first section header.
pub(in crate::process) const PN_XNUM: u16 = 0xffff;

/// Offset of `sh_info` in a section header, in bytes.
pub(in crate::process) const SH_INFO: usize = 44;

/// Reads the machine and the program headers that are there. The error says why this is no core that can be read.
pub(super) fn program_headers(data: &[u8], lines: &mut Vec<String>) -> Result<(Machine, Vec<Phdr>), String> {
    if let Some(why) = file_kind::refusal(data, Door::Core) {
        return Err(why);
    }
    let header = Header::parse(data).map_err(|e| match e {
        NotElf::Short => format!("{e}; copy it again, or write it again with more space"),
        _ => format!("{e}; name the core file first: wstate core CORE [EXE]"),
    })?;
    let (Some(machine), ET_CORE) = (Machine::from_elf(header.machine), header.kind) else {
        return Err(format!(
            "it is an ELF file of type {}, not a core (type {ET_CORE}); name the core file first",
            header.kind
        ));
    };
    if u64::from(header.phentsize) != PHDR_SIZE {
        return Err(format!(
            "its program headers have {} bytes each instead of {PHDR_SIZE}, so the file is damaged; write the core again",
            header.phentsize
        ));
    }
    if header.phoff < HEADER_SIZE {
        return Err(format!(
            "its program headers lie at offset {}, inside the ELF header, so the file is damaged; write the core again",
            header.phoff
        ));
    }
    let there = (data.len() as u64).saturating_sub(header.phoff) / PHDR_SIZE;
    if there == 0 {
        return Err(
            "it is cut off before its first program header; copy it again, or write it again with more space".into()
        );
    }
    let parse = |count: u64| -> Vec<Phdr> {
        let table = elf::slice(data, header.phoff, count.min(there) * PHDR_SIZE).unwrap_or_default();
        let mut b = Bytes::new(table);
        std::iter::from_fn(|| Phdr::parse(&mut b).ok()).collect()
    };
    let count = if header.phnum != PN_XNUM {
        u64::from(header.phnum)
    } else {
        // There are more than 65534 program headers. Their number is in the first section header, which the kernel
        // writes at the very end of the core, so a core that is cut off has lost it. Then the table is taken to end
        // where the contents of the first segment begin.
        match header.shoff.checked_add(SH_INFO as u64).and_then(|at| elf::slice(data, at, 4)) {
            Some(b) => b.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)),
            None => {
                lines.push(
                    "the number of segments is cut off; it was computed from where the first segment begins".into(),
                );
                parse(1).first().map_or(0, |first| first.offset.saturating_sub(header.phoff) / PHDR_SIZE)
            }
        }
    };
    if count == 0 {
        return Err("it has no program headers, so nothing is in it; write the core again".into());
    }
    if count > there {
        lines.push(format!("the core is cut off: {there} of {count} program headers are there"));
    }
    Ok((machine, parse(count)))
}

/// The part of a segment's contents that is in the file.
pub(super) fn present<'a>(data: &'a [u8], p: &Phdr) -> &'a [u8] {
    let len = (data.len() as u64).saturating_sub(p.offset).min(p.filesz);
    elf::slice(data, p.offset, len).unwrap_or_default()
}

/// Returns the segment with its sizes reduced so that its sums do not overflow and its file part is not larger than
/// its memory. Returns `None` if it has no memory.
pub(super) fn sane(p: &Phdr, lines: &mut Vec<String>) -> Option<Phdr> {
    let mut p = *p;
    if p.memsz == 0 {
        return None;
    }
    let odd = p.vaddr.checked_add(p.memsz).is_none() || p.filesz > p.memsz;
    if odd && lines.len() < 64 {
        lines.push(format!(
            "the segment at {:#x} has impossible sizes ({:#x} in memory, {:#x} in the file) and was cut to what is possible",
            p.vaddr, p.memsz, p.filesz
        ));
    }
    p.memsz = p.memsz.min(u64::MAX - p.vaddr);
    p.filesz = p.filesz.min(p.memsz);
    (p.memsz > 0).then_some(p)
}
