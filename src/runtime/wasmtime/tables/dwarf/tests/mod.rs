//! Tests of the readers of DWARF, and what they share: memory and registers of a stopped process, and debug information
//! that a test writes.

mod bounds;
mod images;
mod values;

use std::collections::BTreeMap;

use gimli::write::{Address, AttributeValue as Write, DwarfUnit, EndianVec, Expression, Sections, UnitEntryId};
use gimli::{DwAte, DwTag, LittleEndian};

use super::*;
use crate::arch::{Machine, Reg, x64};
use crate::limits;
use crate::process::memory::{Content, Piece, Splice};
use crate::process::{Memory, MemoryError};
use crate::runtime::wasmtime::image::SliceMemory;

/// Memory with some bytes at some addresses.
struct Bytes(Splice);

impl Bytes {
    fn new(regions: &[(u64, &[u8])]) -> Bytes {
        let mut splice = Splice::new();
        for (start, bytes) in regions {
            let holder = std::sync::Arc::new(bytes.to_vec());
            splice.add(*start, start + bytes.len() as u64, Content::Bytes { holder, offset: 0 });
        }
        Bytes(splice)
    }
}

impl Memory for Bytes {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        match self.0.piece(address) {
            Piece::Bytes(bytes) if bytes.len() >= buf.len() => buf.copy_from_slice(&bytes[..buf.len()]),
            _ => return Err(MemoryError::Unmapped { address, len: buf.len() }),
        }
        Ok(())
    }
}

fn registers(values: &[(Reg, u64)]) -> Registers {
    let mut registers = Registers::unknown(Machine::X64);
    values.iter().for_each(|(reg, value)| registers.set(*reg, *value));
    registers
}

/// One line for each variable: "int x = 3 @ rax" or "int x: why".
fn lines(variables: &[SourceVariable]) -> Vec<String> {
    let line = |v: &SourceVariable| {
        let ty = v.ty.as_deref().unwrap_or("-");
        match &v.value {
            Ok(value) => format!("{ty} {} = {} @ {}", v.name, value.text, value.place),
            Err(why) => format!("{ty} {}: {why}", v.name),
        }
    };
    variables.iter().map(line).collect()
}

// Debug information that a test writes, with one function at 0x100..0x200.
struct Synthetic {
    dwarf: DwarfUnit,
    function: UnitEntryId,
    int: UnitEntryId,
}

impl Synthetic {
    fn new(producer: &str, frame_base: Option<Expression>) -> Synthetic {
        let encoding = gimli::Encoding { format: gimli::Format::Dwarf32, version: 4, address_size: 8 };
        let mut dwarf = DwarfUnit::new(encoding);
        let root = dwarf.unit.root();
        dwarf.unit.get_mut(root).set(gimli::DW_AT_producer, Write::String(producer.into()));
        let function = dwarf.unit.add(root, gimli::DW_TAG_subprogram);
        let entry = dwarf.unit.get_mut(function);
        entry.set(gimli::DW_AT_low_pc, Write::Address(Address::Constant(BIAS + 0x100)));
        entry.set(gimli::DW_AT_high_pc, Write::Udata(0x100));
        entry.set(gimli::DW_AT_linkage_name, Write::String("_ZN3foo3barEv".into()));
        if let Some(base) = frame_base {
            entry.set(gimli::DW_AT_frame_base, Write::Exprloc(base));
        }
        let mut it = Synthetic { dwarf, function, int: function };
        it.int = it.base("int", 4, gimli::DW_ATE_signed);
        it
    }

    fn entry(&mut self, parent: UnitEntryId, tag: DwTag, attributes: Vec<(gimli::DwAt, Write)>) -> UnitEntryId {
        let id = self.dwarf.unit.add(parent, tag);
        attributes.into_iter().for_each(|(name, value)| self.dwarf.unit.get_mut(id).set(name, value));
        id
    }

    fn base(&mut self, name: &str, size: u64, encoding: DwAte) -> UnitEntryId {
        let size = (gimli::DW_AT_byte_size, Write::Udata(size));
        let encoding = (gimli::DW_AT_encoding, Write::Encoding(encoding));
        let root = self.dwarf.unit.root();
        self.entry(root, gimli::DW_TAG_base_type, vec![named(name), size, encoding])
    }

    fn ty(&mut self, tag: DwTag, mut attributes: Vec<(gimli::DwAt, Write)>, of: Option<UnitEntryId>) -> UnitEntryId {
        attributes.extend(of.map(of_type));
        let root = self.dwarf.unit.root();
        self.entry(root, tag, attributes)
    }

    fn variable(&mut self, name: &str, ty: UnitEntryId, place: Write) {
        let attributes = vec![named(name), of_type(ty), (gimli::DW_AT_location, place)];
        self.entry(self.function, gimli::DW_TAG_variable, attributes);
    }

    fn at(&mut self, name: &str, build: impl FnOnce(&mut Expression)) {
        let mut expression = Expression::new();
        build(&mut expression);
        self.variable(name, self.int, Write::Exprloc(expression));
    }

    /// Adds a variable that is a constant with these bytes.
    fn constant(&mut self, name: &str, ty: UnitEntryId, bytes: &[u8]) {
        let mut expression = Expression::new();
        expression.op_implicit_value(bytes.into());
        self.variable(name, ty, Write::Exprloc(expression));
    }

    fn sections(mut self) -> BTreeMap<String, Vec<u8>> {
        let mut sections = Sections::new(EndianVec::new(LittleEndian));
        self.dwarf.write(&mut sections).unwrap();
        let mut bytes = BTreeMap::new();
        let copied = sections.for_each(|id, data| {
            bytes.insert(id.name().to_string(), data.slice().to_vec());
            Ok::<_, gimli::write::Error>(())
        });
        copied.unwrap();
        bytes
    }

    fn finish(self) -> ImageDwarf {
        of_sections(self.sections())
    }
}

fn of_sections(sections: BTreeMap<String, Vec<u8>>) -> ImageDwarf {
    ImageDwarf { units: Units::new(sections::dwarf(sections)) }
}

fn named(name: &str) -> (gimli::DwAt, Write) {
    (gimli::DW_AT_name, Write::String(name.into()))
}

fn of_type(id: UnitEntryId) -> (gimli::DwAt, Write) {
    (gimli::DW_AT_type, Write::UnitRef(id))
}

fn sized(size: u64) -> (gimli::DwAt, Write) {
    (gimli::DW_AT_byte_size, Write::Udata(size))
}

const RAX: gimli::Register = gimli::Register(0);
const RBX: gimli::Register = gimli::Register(3);
const R9: gimli::Register = gimli::Register(9);
const XMM1: gimli::Register = gimli::Register(18);

/// The variables at an offset in the code, in a frame with the CFA 0x8000 and the frame pointer 0x7ff0.
fn stopped(dwarf: &ImageDwarf, at: u32) -> Vec<String> {
    let stack: Vec<u8> = (0..0x40u8).flat_map(|i| u32::from(i).to_le_bytes()).collect();
    let memory = Bytes::new(&[(0x7f80, &stack), (0x1000, &[0xfe, 0xff, 0xff, 0xff, 1, 2, 3, 4])]);
    let known = [(x64::RAX, 0x1000), (x64::RBX, 0xffff_ffff_ffff_fff9), (x64::RBP, 0x7ff0), (x64::RSP, 0x7f80)];
    let known = registers(&[known.as_slice(), &[(x64::XMM1, 2.5f64.to_bits())]].concat());
    lines(&dwarf.variables(at, &known, Some(0x8000), &memory))
}

fn covers(from: u64, len: u64) -> Vec<(gimli::DwAt, Write)> {
    let low = (gimli::DW_AT_low_pc, Write::Address(Address::Constant(BIAS + from)));
    vec![low, (gimli::DW_AT_high_pc, Write::Udata(len))]
}
