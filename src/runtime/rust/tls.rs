//! Thread-local variables of Rust programs: where they are in each thread.

use crate::limits;
use crate::process::Memory;
use object::{Object, ObjectSymbol, SymbolKind};

/// A thread-local variable of an object: its offset in the object's thread-local block, and its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Offset in the block.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

/// The `PT_TLS` segment of an object: its svma, its size in memory in bytes, and its alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address in the file (svma).
    pub address: u64,
    /// Size in memory in bytes.
    pub size: u64,
    /// Alignment in bytes, a power of two.
    pub align: u64,
}

impl Segment {
    /// Address of the executable's thread-local block. In variant II of the System V ABI this block ends at the thread
    /// pointer, shifted down so that an address in it is congruent to the address in the file modulo the alignment.
    pub fn block_of_executable(self, fs_base: u64) -> u64 {
        let Segment { address, size, align } = self;
        let padding = address.wrapping_add(size).wrapping_neg() & (align - 1);
        fs_base.wrapping_sub(size).wrapping_sub(padding)
    }

    /// The segment of an ELF file, if it has one.
    pub fn of(elf: &[u8]) -> Option<Segment> {
        use object::read::elf::{ElfFile64, ProgramHeader};
        let file = ElfFile64::<object::Endianness>::parse(elf).ok()?;
        let endian = file.endian();
        let header = file.elf_program_headers().iter().find(|h| h.p_type(endian) == object::elf::PT_TLS)?;
        let align = header.p_align(endian).max(1);
        (align.is_power_of_two() && align <= 1 << 20).then(|| Segment {
            address: header.p_vaddr(endian),
            size: header.p_memsz(endian),
            align,
        })
    }
}

/// The thread-local blocks of a thread, in one of which the variables of a library are.
pub fn blocks(memory: &dyn Memory, fs_base: u64) -> Vec<u64> {
    // The thread's DTV (its vector of thread-local blocks) has an entry for the library's block. Only the dynamic
    // loader knows the number of that entry, so all blocks are candidates: what is read there is checked in full.
    let mut blocks = Vec::new();
    let Ok(dtv) = memory.read_u64(fs_base.wrapping_add(8)) else { return blocks };
    let Ok(slots) = memory.read_u64(dtv.wrapping_sub(16)) else { return blocks };
    for module in 1..=slots.min(limits::MAX_TLS_MODULES) {
        match memory.read_u64(dtv.wrapping_add(16 * module)) {
            // `TLS_DTV_UNALLOCATED` is -1: this thread never touched the variable.
            Ok(0 | u64::MAX) => {}
            Ok(block) => blocks.push(block),
            Err(_) => break,
        }
    }
    blocks
}

/// Thread-local symbols whose mangled name contains `name`. Legacy and v0 mangling both keep identifiers as they are.
/// Each closure of the `thread_local!` has a symbol with that name too, but only the variable is of kind TLS.
pub fn variables(file: &object::File<'_>, name: &str) -> Vec<Variable> {
    let mut found: Vec<Variable> = Vec::new();
    for symbol in file.symbols().chain(file.dynamic_symbols()).take(limits::MAX_SYMBOLS) {
        if symbol.kind() != SymbolKind::Tls || symbol.is_undefined() {
            continue;
        }
        let Ok(bytes) = symbol.name_bytes() else { continue };
        let variable = Variable { offset: symbol.address(), size: symbol.size() };
        if memmem(bytes, name.as_bytes()) && !found.contains(&variable) && found.len() < limits::MAX_TLS_VARIABLES {
            found.push(variable);
        }
    }
    found
}

fn memmem(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::{Section, elf};

    #[test]
    fn blocks_end_at_the_thread_pointer_and_keep_their_alignment() {
        let block = |address, size, align| Segment { address, size, align }.block_of_executable(0x10000);
        assert_eq!(block(0x1000, 0x350, 8), 0x10000 - 0x350);
        assert_eq!(block(0x1000, 0x24, 0x20), 0x10000 - 0x40);
        // Where the segment is not aligned in the file, this is the rule of lld and ld, which glibc and musl follow.
        assert_eq!(block(0x1010, 0x24, 0x20), 0x10000 - 0x30);
        assert_eq!(block(0x1010, 0x10, 0x20), 0x10000 - 0x10);
    }

    #[test]
    fn so_many_variables_of_one_name_are_taken() {
        const NAME: &str = "SOME_VARIABLE";
        let (mut table, mut names) = (vec![0u8; 24], vec![0u8]);
        names.extend(NAME.bytes().chain([0]));
        for value in 0..=limits::MAX_TLS_VARIABLES as u64 {
            // A symbol of a thread-local object in section 1.
            table.extend([1, 0, 0, 0, 6, 0, 1, 0]);
            table.extend([value * 8, 8].map(u64::to_le_bytes).concat());
        }
        let section = |name, bytes| Section { name, flags: 0, address: 0, bytes };
        let file = elf(&[section(".tdata", &[0; 8]), section(".symtab", &table), section(".strtab", &names)]);
        let file = object::File::parse(&*file).unwrap();
        assert_eq!(variables(&file, NAME).len(), limits::MAX_TLS_VARIABLES);
    }
}
