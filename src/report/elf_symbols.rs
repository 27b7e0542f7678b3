//! Writes a symbol file for compiled code that no file of the target describes: it turns a [`CodeMap`] into the bytes
//! of an ELF file.
//!
//! gdb and lldb load this file beside the target's own files, and then print the frames of the compiled code, and the
//! native frames above it, as if a compiler had described the code:
//!
//! - The file is `ET_DYN` with absolute addresses, so that gdb needs no address and lldb only `--slide 0`. lldb would
//!   take an `ET_EXEC` for the program itself, and gdb loses the DWARF of an `ET_REL`.
//! - `.text` holds the machine code, because a core may lack it.
//! - `.eh_frame` has the rule `undefined` for each register of the caller that is not known. Without a rule, gdb
//!   takes the register for unchanged and shows wrong locals, in native frames too.
//! - The frame base is `DW_OP_call_frame_cfa`. If the frame base is a register, lldb 14 to 19 lose the locals behind
//!   a `leave` instruction.
//! - Each inlined function is described once, without code. Each place where it is inlined refers to that
//!   description, and also says from where it is called, if that is known. A row with line 0 ends the lines before
//!   it.
//! - A vector is described as an integer of 16 bytes, because it has no lanes until somebody chooses how to look at
//!   it.
//! - Wasm functions are marked `DW_CC_nocall`, so that no debugger calls one (`print fib(10)`).
//! - The operand stack is a variable named `wasm_stack`, in a lexical block of its own for each point. At other
//!   addresses there is therefore no such variable, instead of a variable without a value, and each variable has the
//!   depth and the types of its point.

use super::escape::escaped;
use crate::arch::{Reg, x64};
use crate::limits::MAX_NAME_BYTES;
use crate::runtime::code_map::{
    CodeMap, CompiledFunction, CompiledModule, FrameChange, Inlined, Location, Operands, SourceFile, SourceLine,
    Variable,
};
use crate::wasm::ValType;
use gimli::write::{
    Address, AttributeValue, CallFrameInstruction, CommonInformationEntry, DebuggingInformationEntry, EhFrame,
    EndianVec, Expression, FileId, FrameDescriptionEntry, FrameTable, LineProgram, LineString, LineStringTable,
    LocationList, Range, RangeList, Sections, StringTable, Unit, UnitEntryId, UnitTable, Writer as _,
};
use gimli::{Encoding, Format, LineEncoding, LittleEndian, Register, SectionId, constants as dw};
use object::elf;
use object::write::elf::{FileHeader, ProgramHeader, SectionHeader, Sym, Writer};
use std::borrow::Cow;
use std::collections::HashMap;

/// Number of functions per compilation unit. A debugger reads a whole unit when it meets one of the unit's addresses,
/// and what is built in memory of a unit before it is written should fit into the processor's cache.
const UNIT_FUNCTIONS: usize = 64;

/// If there are at least this many units, two threads write half of them each.
const WORTH_TWO_PARTS: usize = 16;

/// Why no symbol file could be made. None of these errors is expected: the description is too large for the format,
/// or contradicts itself.
#[derive(Debug, thiserror::Error)]
pub enum SymbolFileError {
    /// Debug information cannot be encoded.
    #[error("debug information: {0}")]
    Dwarf(#[from] gimli::write::Error),
    /// The file cannot be laid out.
    #[error("ELF: {0}")]
    Elf(#[from] object::write::Error),
}

/// Makes the bytes of the symbol file. `directory` is where the file will be; `text_names` has, for each module, the
/// name of the file in that directory with the module's text form, if there is one.
pub fn write(map: &CodeMap, directory: &str, text_names: &[Option<String>]) -> Result<Vec<u8>, SymbolFileError> {
    let modules = disjoint(map);
    let units = units(&modules, text_names);
    let (first, second) = units.split_at(if units.len() < WORTH_TWO_PARTS { units.len() } else { units.len() / 2 });
    let (frames, second, first) = std::thread::scope(|scope| {
        let frames = scope.spawn(|| frame_table(&modules));
        let second = scope.spawn(|| debug_sections(second, directory));
        let first = debug_sections(first, directory);
        (frames.join(), second.join(), first)
    });
    let mut frames = frames.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let second = second.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    // An entry with a length of zero ends the section. gimli's writer leaves it to a linker to add that entry.
    frames.extend_from_slice(&[0; 4]);
    let mut named: Vec<(&'static str, Vec<u8>)> = vec![(".eh_frame", frames)];
    named.extend(joined(first?, second)?);
    elf_file(&modules, &named)
}

/// The functions that become one compilation unit, and their module.
struct UnitPlan<'a> {
    module: &'a CompiledModule,
    functions: Vec<&'a CompiledFunction>,
    text_name: Option<&'a str>,
}

fn units<'a>(modules: &[(usize, &'a CompiledModule)], text_names: &'a [Option<String>]) -> Vec<UnitPlan<'a>> {
    let mut out = Vec::new();
    for (index, module) in modules {
        let text_name = text_names.get(*index).and_then(Option::as_deref);
        let described: Vec<&CompiledFunction> = module.functions.iter().filter(|f| f.described && f.len > 0).collect();
        out.extend(described.chunks(UNIT_FUNCTIONS).map(|f| UnitPlan { module, functions: f.to_vec(), text_name }));
    }
    out
}

/// A section that is being written, and the positions of all offsets into sections that it holds. When the sections
/// of two parts are joined, these offsets have to be adjusted.
#[derive(Clone)]
struct Part {
    data: EndianVec<LittleEndian>,
    offsets: Vec<(usize, SectionId)>,
}

/// Size in bytes of an offset into a section in 32-bit DWARF.
const OFFSET_BYTES: u8 = 4;

impl gimli::write::Writer for Part {
    type Endian = LittleEndian;

    fn endian(&self) -> LittleEndian {
        LittleEndian
    }

    fn len(&self) -> usize {
        self.data.len()
    }

    fn write(&mut self, bytes: &[u8]) -> gimli::write::Result<()> {
        self.data.write(bytes)
    }

    fn write_at(&mut self, offset: usize, bytes: &[u8]) -> gimli::write::Result<()> {
        self.data.write_at(offset, bytes)
    }

    fn write_offset(&mut self, value: usize, section: SectionId, size: u8) -> gimli::write::Result<()> {
        debug_assert_eq!(size, OFFSET_BYTES, "the units are of 32-bit DWARF");
        self.offsets.push((self.data.len(), section));
        self.data.write_udata(value as u64, size)
    }

    fn write_offset_at(
        &mut self,
        offset: usize,
        value: usize,
        section: SectionId,
        size: u8,
    ) -> gimli::write::Result<()> {
        debug_assert_eq!(size, OFFSET_BYTES, "the units are of 32-bit DWARF");
        self.offsets.push((offset, section));
        self.data.write_udata_at(offset, value as u64, size)
    }
}

/// The sections of the first part, each followed by the same section of the second part, as a linker would put them
/// together. Offsets in the second part are adjusted.
fn joined(mut first: Sections<Part>, mut second: Sections<Part>) -> gimli::write::Result<Vec<(&'static str, Vec<u8>)>> {
    let mut out: Vec<(SectionId, Vec<u8>)> = Vec::new();
    first.for_each_mut(|id, part| {
        out.push((id, part.data.take()));
        Ok::<_, gimli::write::Error>(())
    })?;
    let lengths: HashMap<SectionId, usize> = out.iter().map(|(id, data)| (*id, data.len())).collect();
    second.for_each_mut(|id, part| {
        for (at, target) in part.offsets.drain(..) {
            let moved_by = lengths.get(&target).copied().unwrap_or(0);
            let field = part.data.slice().get(at..).and_then(|rest| rest.first_chunk()).copied();
            let offset = u64::from(u32::from_le_bytes(field.ok_or(gimli::write::Error::OffsetOutOfBounds)?));
            part.data.write_udata_at(at, offset + moved_by as u64, OFFSET_BYTES)?;
        }
        if let Some((_, data)) = out.iter_mut().find(|(other, _)| *other == id) {
            data.extend_from_slice(part.data.slice());
        }
        Ok::<_, gimli::write::Error>(())
    })?;
    Ok(out.into_iter().filter(|(_, data)| !data.is_empty()).map(|(id, data)| (id.name(), data)).collect())
}

fn debug_sections(units: &[UnitPlan], directory: &str) -> gimli::write::Result<Sections<Part>> {
    let mut sections = Sections::new(Part { data: EndianVec::new(LittleEndian), offsets: Vec::new() });
    let mut strings = Strings::default();
    for plan in units {
        let Some(unit) = unit(&mut strings, plan.module, &plan.functions, directory, plan.text_name) else { continue };
        // Each unit is written before the next is built: the entries of all units would need many times the memory of
        // the bytes that are written.
        let mut units = UnitTable::default();
        units.add(unit);
        units.write(&mut sections, &mut strings.lines, &mut strings.table)?;
    }
    strings.lines.write(&mut sections.debug_line_str)?;
    strings.table.write(&mut sections.debug_str)?;
    Ok(sections)
}

/// The modules in the order of their addresses. A module that overlaps one before it is left out, because a debugger
/// would choose between the two as it likes.
fn disjoint(map: &CodeMap) -> Vec<(usize, &CompiledModule)> {
    let end = |m: &CompiledModule| {
        let last = m.functions.iter().map(|f| f.start.saturating_add(u64::from(f.len))).max().unwrap_or(m.base);
        last.max(m.base.saturating_add(m.code.len() as u64))
    };
    let mut modules: Vec<(usize, &CompiledModule)> = map.modules.iter().enumerate().collect();
    modules.sort_by_key(|(_, m)| m.base);
    let mut reached = 0;
    modules.retain(|(_, m)| {
        let free = m.base >= reached;
        if free {
            reached = end(m);
        }
        free
    });
    modules
}

fn number(reg: Reg) -> Register {
    Register(reg.info().dwarf)
}

fn instruction(change: FrameChange) -> CallFrameInstruction {
    match change {
        FrameChange::Cfa(reg, offset) => CallFrameInstruction::Cfa(number(reg), offset),
        FrameChange::CfaDeref(reg, offset) => {
            let mut e = Expression::new();
            e.op_breg(number(reg), 0);
            e.op_deref();
            e.op_plus_uconst(u64::from(offset));
            CallFrameInstruction::CfaExpression(e)
        }
        FrameChange::Saved(reg, offset) => CallFrameInstruction::Offset(number(reg), offset),
        FrameChange::Same(reg) => CallFrameInstruction::SameValue(number(reg)),
        FrameChange::Undefined(reg) => CallFrameInstruction::Undefined(number(reg)),
    }
}

fn frame_table(modules: &[(usize, &CompiledModule)]) -> Result<Vec<u8>, gimli::write::Error> {
    let encoding = Encoding { format: Format::Dwarf32, version: 1, address_size: 8 };
    let mut entry = CommonInformationEntry::new(encoding, 1, -8, number(x64::RIP));
    entry.add_instruction(CallFrameInstruction::Cfa(number(x64::RSP), 8));
    entry.add_instruction(CallFrameInstruction::Offset(number(x64::RIP), -8));
    for row in x64::TABLE.iter().filter(|row| ![x64::RSP, x64::RIP].contains(&row.reg)) {
        entry.add_instruction(match row.callee_saved {
            true => CallFrameInstruction::SameValue(Register(row.dwarf)),
            false => CallFrameInstruction::Undefined(Register(row.dwarf)),
        });
    }
    let mut table = FrameTable::default();
    let cie = table.add_cie(entry);
    for function in modules.iter().flat_map(|(_, m)| &m.functions).filter(|f| f.len > 0) {
        let mut fde = FrameDescriptionEntry::new(Address::Constant(function.start), function.len);
        let mut at = 0;
        for &(offset, change) in &function.frame {
            // No debugger asks about addresses behind the function's end, and a change with a smaller offset than the
            // one before it would take effect at the wrong place.
            if offset >= function.len || offset < at {
                continue;
            }
            at = offset;
            fde.add_instruction(offset, instruction(change));
        }
        table.add_fde(cie, fde);
    }
    let mut out = EhFrame::from(EndianVec::new(LittleEndian));
    table.write_eh_frame(&mut out)?;
    Ok(out.0.into_vec())
}

/// A name that is safe for a debugger to show: characters that a terminal might obey are escaped as in the text
/// report, because nothing escapes them later. The name is cut off after `MAX_NAME_BYTES` bytes.
fn clean(name: &str) -> Cow<'_, str> {
    let mut out = escaped(name);
    if out.len() > MAX_NAME_BYTES {
        let end = (0..=MAX_NAME_BYTES).rev().find(|i| out.is_char_boundary(*i)).unwrap_or(0);
        out.to_mut().truncate(end);
    }
    match out.is_empty() {
        true => Cow::Borrowed("?"),
        false => out,
    }
}

/// A path that the user gave, at which the debugger is to find a file. It stays as it is, except for NUL characters,
/// which would end the string.
fn path_text(path: &str) -> String {
    path.replace('\0', "?")
}

/// The DWARF operations that say where a value is.
fn operations(place: Location) -> Vec<u8> {
    let mut out = EndianVec::new(LittleEndian);
    // Writing to a vector cannot fail.
    let _ = match place {
        Location::Register(reg) => match number(reg).0 {
            n @ 0..32 => out.write_u8(dw::DW_OP_reg0.0 + n as u8),
            n => out.write_u8(dw::DW_OP_regx.0).and_then(|()| out.write_uleb128(u64::from(n))),
        },
        Location::Frame(offset) => out.write_u8(dw::DW_OP_fbreg.0).and_then(|()| out.write_sleb128(offset)),
        Location::Constant(bits) => out
            .write_u8(dw::DW_OP_constu.0)
            .and_then(|()| out.write_uleb128(bits))
            .and_then(|()| out.write_u8(dw::DW_OP_stack_value.0)),
    };
    out.into_vec()
}

/// The entries of one unit for types and for functions that are inlined in it. Each entry is made when it is first
/// needed.
#[derive(Default)]
struct Types {
    inlined: HashMap<String, UnitEntryId>,
    values: HashMap<Option<ValType>, UnitEntryId>,
    stacks: HashMap<Vec<Option<ValType>>, UnitEntryId>,
}

impl Types {
    /// The entry for the type of a value. A value whose type is not known is described as its 64 raw bits.
    fn value(&mut self, strings: &mut Strings, unit: &mut Unit, ty: Option<ValType>) -> UnitEntryId {
        if let Some(id) = self.values.get(&ty) {
            return *id;
        }
        let (base, encoding, size) = match ty {
            Some(ValType::I32) => ("int", dw::DW_ATE_signed, 4),
            Some(ValType::I64) => ("long", dw::DW_ATE_signed, 8),
            Some(ValType::F32) => ("float", dw::DW_ATE_float, 4),
            Some(ValType::F64) => ("double", dw::DW_ATE_float, 8),
            Some(ValType::V128) => ("unsigned __int128", dw::DW_ATE_unsigned, 16),
            Some(ValType::ExternRef) => ("unsigned int", dw::DW_ATE_unsigned, 4),
            Some(ValType::FuncRef | ValType::Ref | ValType::NotKnown) | None => {
                ("unsigned long", dw::DW_ATE_unsigned, 8)
            }
        };
        let root = unit.root();
        let id = unit.add(root, dw::DW_TAG_base_type);
        let entry = unit.get_mut(id);
        entry.set(dw::DW_AT_name, strings.string(base));
        entry.set(dw::DW_AT_encoding, AttributeValue::Encoding(encoding));
        entry.set(dw::DW_AT_byte_size, AttributeValue::Data1(size));
        let named = unit.add(root, dw::DW_TAG_typedef);
        let entry = unit.get_mut(named);
        entry.set(dw::DW_AT_name, strings.string(ty.map_or("raw", ValType::name)));
        entry.set(dw::DW_AT_type, AttributeValue::UnitRef(id));
        self.values.insert(ty, named);
        named
    }

    /// The entry for the type of an operand stack: a structure with one or two words for each operand, from `s0` at
    /// the bottom on.
    fn stack(&mut self, strings: &mut Strings, unit: &mut Unit, operands: &Operands) -> UnitEntryId {
        let types: Vec<Option<ValType>> = operands.operands.iter().map(|(ty, _)| *ty).collect();
        if let Some(id) = self.stacks.get(&types) {
            return *id;
        }
        let members: Vec<UnitEntryId> = types.iter().map(|ty| self.value(strings, unit, *ty)).collect();
        let root = unit.root();
        let id = unit.add(root, dw::DW_TAG_structure_type);
        let mut size = 0;
        for (i, (member_type, ty)) in members.into_iter().zip(&types).enumerate() {
            let member = unit.add(id, dw::DW_TAG_member);
            let entry = unit.get_mut(member);
            entry.set(dw::DW_AT_name, strings.string(&format!("s{i}")));
            entry.set(dw::DW_AT_type, AttributeValue::UnitRef(member_type));
            entry.set(dw::DW_AT_data_member_location, AttributeValue::Udata(size));
            size += u64::from(operand_bytes(*ty));
        }
        unit.get_mut(id).set(dw::DW_AT_byte_size, AttributeValue::Udata(size));
        self.stacks.insert(types, id);
        id
    }

    /// The entry that describes a function that is inlined somewhere.
    fn inlined(&mut self, strings: &mut Strings, unit: &mut Unit, name: &str) -> UnitEntryId {
        let name = clean(name);
        if let Some(id) = self.inlined.get(&*name) {
            return *id;
        }
        let root = unit.root();
        let id = unit.add(root, dw::DW_TAG_subprogram);
        let entry = unit.get_mut(id);
        entry.set(dw::DW_AT_name, strings.string(&name));
        entry.set(dw::DW_AT_prototyped, AttributeValue::FlagPresent);
        entry.set(dw::DW_AT_inline, AttributeValue::Inline(dw::DW_INL_inlined));
        entry.set(dw::DW_AT_calling_convention, AttributeValue::CallingConvention(dw::DW_CC_nocall));
        self.inlined.insert(name.into_owned(), id);
        id
    }
}

/// Size in bytes of an operand in the description of an operand stack.
fn operand_bytes(ty: Option<ValType>) -> u8 {
    if ty == Some(ValType::V128) { 16 } else { 8 }
}

/// The strings of all units.
#[derive(Default)]
struct Strings {
    table: StringTable,
    lines: LineStringTable,
}

impl Strings {
    fn string(&mut self, text: &str) -> AttributeValue {
        AttributeValue::StringRef(self.table.add(text))
    }
}

fn unit(
    strings: &mut Strings,
    module: &CompiledModule,
    functions: &[&CompiledFunction],
    directory: &str,
    text_name: Option<&str>,
) -> Option<Unit> {
    let (first, last) = (functions.first()?, functions.last()?);
    let base = first.start;
    let end = last.start.saturating_add(u64::from(last.len));
    let encoding = Encoding { format: Format::Dwarf32, version: 5, address_size: 8 };
    let (program, files) = lines(encoding, module, functions, directory, text_name);
    let has_lines = !program.is_none();
    let mut unit = Unit::new(encoding, program);
    let root = unit.root();
    let entry = unit.get_mut(root);
    entry.set(dw::DW_AT_producer, strings.string(concat!("wstate ", env!("CARGO_PKG_VERSION"))));
    // The language is C, because C has no names that are made up of other names, and no runtime of its own.
    entry.set(dw::DW_AT_language, AttributeValue::Language(dw::DW_LANG_C11));
    let primary = text_name.map_or_else(|| clean(&module.name), |name| path_text(name).into());
    entry.set(dw::DW_AT_name, strings.string(&primary));
    entry.set(dw::DW_AT_comp_dir, strings.string(&path_text(directory)));
    entry.set(dw::DW_AT_low_pc, AttributeValue::Address(Address::Constant(base)));
    entry.set(dw::DW_AT_high_pc, AttributeValue::Udata(end.saturating_sub(base)));
    if has_lines {
        entry.set(dw::DW_AT_stmt_list, AttributeValue::LineProgramRef);
    }
    let mut types = Types::default();
    for function in functions {
        add_function(&mut unit, strings, &mut types, function, base, &files);
    }
    Some(unit)
}

fn add_function(
    unit: &mut Unit,
    strings: &mut Strings,
    types: &mut Types,
    function: &CompiledFunction,
    base: u64,
    files: &[Option<FileId>],
) {
    let root = unit.root();
    let id = unit.add(root, dw::DW_TAG_subprogram);
    let name = clean(function.name.as_deref().unwrap_or("?"));
    let mut frame_base = Expression::new();
    frame_base.op(dw::DW_OP_call_frame_cfa);
    let entry = unit.get_mut(id);
    entry.set(dw::DW_AT_name, strings.string(&name));
    entry.set(dw::DW_AT_external, AttributeValue::FlagPresent);
    entry.set(dw::DW_AT_prototyped, AttributeValue::FlagPresent);
    // If a debugger called Wasm code with the C calling convention, the code would take whatever is in a register for
    // its instance, and the process would die.
    entry.set(dw::DW_AT_calling_convention, AttributeValue::CallingConvention(dw::DW_CC_nocall));
    entry.set(dw::DW_AT_low_pc, AttributeValue::Address(Address::Constant(function.start)));
    entry.set(dw::DW_AT_high_pc, AttributeValue::Udata(u64::from(function.len)));
    entry.set(dw::DW_AT_frame_base, AttributeValue::Exprloc(frame_base));
    if let Some(line) = function.lines.first() {
        set_line(entry, (dw::DW_AT_decl_file, dw::DW_AT_decl_line), line.at, files);
    }
    let start = function.start.saturating_sub(base);
    for variable in &function.variables {
        let ty = types.value(strings, unit, variable.ty);
        let places = place_list(variable, function.len, start);
        let list = (!places.0.is_empty()).then(|| unit.locations.add(places));
        let tag = if variable.parameter { dw::DW_TAG_formal_parameter } else { dw::DW_TAG_variable };
        let child = unit.add(id, tag);
        let entry = unit.get_mut(child);
        entry.set(dw::DW_AT_name, strings.string(&clean(&variable.name)));
        entry.set(dw::DW_AT_type, AttributeValue::UnitRef(ty));
        if let Some(list) = list {
            entry.set(dw::DW_AT_location, AttributeValue::LocationListRef(list));
        }
    }
    let mut free_from = 0;
    for operands in &function.operands {
        let (from, to) = (operands.range.0.max(free_from), operands.range.1.min(function.len));
        if from >= to {
            continue;
        }
        free_from = to;
        let ty = types.stack(strings, unit, operands);
        let block = unit.add(id, dw::DW_TAG_lexical_block);
        let entry = unit.get_mut(block);
        let low = function.start.saturating_add(u64::from(from));
        entry.set(dw::DW_AT_low_pc, AttributeValue::Address(Address::Constant(low)));
        entry.set(dw::DW_AT_high_pc, AttributeValue::Udata(u64::from(to - from)));
        let child = unit.add(block, dw::DW_TAG_variable);
        let entry = unit.get_mut(child);
        entry.set(dw::DW_AT_name, strings.string("wasm_stack"));
        entry.set(dw::DW_AT_type, AttributeValue::UnitRef(ty));
        entry.set(dw::DW_AT_location, AttributeValue::Exprloc(pieces(operands)));
    }
    add_inlined(unit, strings, types, function, base, files, (id, &function.inlined));
}

/// Sets the attributes `names` of an entry to a file and a line, if these are known.
fn set_line(
    entry: &mut DebuggingInformationEntry,
    names: (dw::DwAt, dw::DwAt),
    at: SourceLine,
    files: &[Option<FileId>],
) {
    let Some(file @ Some(_)) = files.get(at.file as usize).copied().filter(|_| at.line != 0) else { return };
    entry.set(names.0, AttributeValue::FileIndex(file));
    entry.set(names.1, AttributeValue::Udata(u64::from(at.line)));
}

/// Adds an entry for each function that is inlined into the entry `around`, and for those inlined into it in turn.
fn add_inlined(
    unit: &mut Unit,
    strings: &mut Strings,
    types: &mut Types,
    function: &CompiledFunction,
    base: u64,
    files: &[Option<FileId>],
    around: (UnitEntryId, &[Inlined]),
) {
    for inlined in around.1 {
        let ranges = inlined.ranges.iter().map(|&(from, to)| (u64::from(from), u64::from(to.min(function.len))));
        let ranges: Vec<(u64, u64)> = ranges.filter(|(from, to)| from < to).collect();
        let Some(&(from, to)) = ranges.first() else { continue };
        let origin = types.inlined(strings, unit, &inlined.name);
        let id = unit.add(around.0, dw::DW_TAG_inlined_subroutine);
        let start = function.start.saturating_sub(base);
        let list = (ranges.len() > 1).then(|| {
            let pair = |&(from, to): &(u64, u64)| Range::OffsetPair { begin: start + from, end: start + to };
            unit.ranges.add(RangeList(ranges.iter().map(pair).collect()))
        });
        let entry = unit.get_mut(id);
        entry.set(dw::DW_AT_abstract_origin, AttributeValue::UnitRef(origin));
        match list {
            Some(list) => entry.set(dw::DW_AT_ranges, AttributeValue::RangeListRef(list)),
            None => {
                let low = function.start.saturating_add(from);
                entry.set(dw::DW_AT_low_pc, AttributeValue::Address(Address::Constant(low)));
                entry.set(dw::DW_AT_high_pc, AttributeValue::Udata(to - from));
            }
        }
        if let Some(call) = inlined.call {
            set_line(entry, (dw::DW_AT_call_file, dw::DW_AT_call_line), call, files);
        }
        add_inlined(unit, strings, types, function, base, files, (id, &inlined.inner));
    }
}

/// The location list of a variable, relative to the unit's base address.
fn place_list(variable: &Variable, len: u32, start: u64) -> LocationList {
    let ranges = variable.places.iter().map(|&(from, to, place)| (from, to.min(len), place));
    LocationList(
        ranges
            .filter(|(from, to, _)| from < to)
            .map(|(from, to, place)| gimli::write::Location::OffsetPair {
                begin: start + u64::from(from),
                end: start + u64::from(to),
                data: Expression::raw(operations(place)),
            })
            .collect(),
    )
}

/// The expression that puts a structure together from the places of the operands. A piece without a place has no
/// value.
fn pieces(operands: &Operands) -> Expression {
    let mut out = Vec::new();
    for (ty, place) in &operands.operands {
        out.extend(place.map(operations).unwrap_or_default());
        out.extend([dw::DW_OP_piece.0, operand_bytes(*ty)]);
    }
    Expression::raw(out)
}

/// The line table of `functions`, and the number that each of the module's files has in that table, if it is used
/// there.
fn lines(
    encoding: Encoding,
    module: &CompiledModule,
    functions: &[&CompiledFunction],
    directory: &str,
    text_name: Option<&str>,
) -> (LineProgram, Vec<Option<FileId>>) {
    if functions.iter().all(|f| f.lines.is_empty()) {
        return (LineProgram::none(), Vec::new());
    }
    let string = |text: String| LineString::String(if text.is_empty() { "?".to_string() } else { text }.into_bytes());
    let primary = text_name.map_or_else(|| clean(&module.name).into_owned(), path_text);
    let mut program = LineProgram::new(
        encoding,
        LineEncoding { line_base: -5, line_range: 14, ..LineEncoding::default() },
        string(path_text(directory)),
        None,
        string(primary),
        None,
    );
    let place = program.default_directory();
    let mut used = vec![false; module.files.len()];
    let calls = functions.iter().flat_map(|f| &f.inlined);
    let mut open: Vec<&Inlined> = calls.collect();
    while let Some(inlined) = open.pop() {
        open.extend(&inlined.inner);
        if let Some(slot) = inlined.call.and_then(|call| used.get_mut(call.file as usize)) {
            *slot = true;
        }
    }
    for line in functions.iter().flat_map(|f| &f.lines) {
        if let Some(slot) = used.get_mut(line.at.file as usize) {
            *slot = true;
        }
    }
    let files: Vec<Option<FileId>> = module
        .files
        .iter()
        .zip(used)
        .map(|(file, used)| match file {
            _ if !used => None,
            SourceFile::Text => Some(program.add_file(string(path_text(text_name?)), place, None)),
            SourceFile::Path(path) => Some(program.add_file(string(clean(path).into_owned()), place, None)),
        })
        .collect();
    for function in functions.iter().filter(|f| !f.lines.is_empty()) {
        program.begin_sequence(Some(Address::Constant(function.start)));
        let mut at = 0;
        for line in &function.lines {
            let Some(Some(file)) = files.get(line.at.file as usize).copied() else { continue };
            if line.offset < at || line.offset >= function.len {
                continue;
            }
            at = line.offset;
            let row = program.row();
            row.address_offset = u64::from(line.offset);
            row.file = file;
            row.line = u64::from(line.at.line);
            row.prologue_end = line.prologue_end;
            row.is_statement = line.statement;
            program.generate_row();
        }
        program.end_sequence(u64::from(function.len));
    }
    (program, files)
}

fn elf_file(
    modules: &[(usize, &CompiledModule)],
    sections: &[(&'static str, Vec<u8>)],
) -> Result<Vec<u8>, SymbolFileError> {
    let texts: Vec<&CompiledModule> = modules.iter().map(|(_, m)| *m).filter(|m| !m.code.is_empty()).collect();
    let text_names: Vec<Vec<u8>> =
        (0..texts.len()).map(|i| if i == 0 { b".text".to_vec() } else { format!(".text.{i}").into_bytes() }).collect();
    let symbols: Vec<(Cow<'_, str>, usize, &CompiledFunction)> = texts
        .iter()
        .enumerate()
        .flat_map(|(i, m)| m.functions.iter().map(move |f| (i, f)))
        .filter_map(|(i, f)| Some((clean(f.name.as_deref()?), i, f)))
        .collect();

    let mut out = Vec::new();
    let mut w = Writer::new(object::Endianness::Little, true, &mut out);
    w.reserve_file_header();
    w.reserve_program_headers(texts.len() as u32);
    w.reserve_null_section_index();
    let mut text_sections = Vec::new();
    for (module, name) in texts.iter().zip(&text_names) {
        let name = w.add_section_name(name);
        let index = w.reserve_section_index();
        let offset = w.reserve(module.code.len() as u64, 16);
        text_sections.push((name, index, offset));
    }
    let mut data_sections = Vec::new();
    for (name, data) in sections {
        let name = w.add_section_name(name.as_bytes());
        w.reserve_section_index();
        let offset = w.reserve(data.len() as u64, 8);
        data_sections.push((name, offset));
    }
    w.reserve_null_symbol_index();
    let mut names = Vec::new();
    for (name, module, _) in &symbols {
        names.push(w.add_string(name.as_bytes()));
        w.reserve_symbol_index(text_sections.get(*module).map(|(_, index, _)| *index));
    }
    w.reserve_symtab_section_index();
    w.reserve_symtab();
    w.reserve_strtab_section_index();
    w.reserve_strtab()?;
    w.reserve_shstrtab_section_index();
    w.reserve_shstrtab()?;
    w.reserve_section_headers();

    w.write_file_header(&FileHeader {
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        e_type: elf::ET_DYN,
        e_machine: elf::EM_X86_64,
        e_entry: 0,
        ..FileHeader::default()
    })?;
    w.write_align_program_headers();
    for (module, (_, _, offset)) in texts.iter().zip(&text_sections) {
        let size = module.code.len() as u64;
        w.write_program_header(&ProgramHeader {
            p_type: elf::PT_LOAD,
            p_flags: elf::PF_R | elf::PF_X,
            p_offset: *offset,
            p_vaddr: module.base,
            p_paddr: module.base,
            p_filesz: size,
            p_memsz: size,
            p_align: 1,
        });
    }
    for (module, (_, _, offset)) in texts.iter().zip(&text_sections) {
        w.pad_until(*offset);
        w.write(&module.code);
    }
    for ((_, data), (_, offset)) in sections.iter().zip(&data_sections) {
        w.pad_until(*offset);
        w.write(data);
    }
    w.write_null_symbol();
    for ((_, module, function), name) in symbols.iter().zip(&names) {
        w.write_symbol(&Sym {
            st_name: w.string_offset(Some(*name)),
            section: text_sections.get(*module).map(|(_, index, _)| index.0),
            st_info: elf::SymbolInfo::new(elf::STB_GLOBAL, elf::STT_FUNC),
            st_other: Default::default(),
            st_shndx: Default::default(),
            st_value: function.start,
            st_size: u64::from(function.len),
        });
    }
    w.write_strtab();
    w.write_shstrtab();
    w.write_null_section_header();
    for (module, (name, _, offset)) in texts.iter().zip(&text_sections) {
        w.write_section_header(&SectionHeader {
            sh_name: w.section_name_offset(Some(*name)),
            sh_type: elf::SHT_PROGBITS,
            sh_flags: elf::SHF_ALLOC | elf::SHF_EXECINSTR,
            sh_addr: module.base,
            sh_offset: *offset,
            sh_size: module.code.len() as u64,
            sh_link: 0,
            sh_info: 0,
            sh_addralign: 1,
            sh_entsize: 0,
        });
    }
    for ((_, data), (name, offset)) in sections.iter().zip(&data_sections) {
        w.write_section_header(&SectionHeader {
            sh_name: w.section_name_offset(Some(*name)),
            sh_type: elf::SHT_PROGBITS,
            sh_flags: Default::default(),
            sh_addr: 0,
            sh_offset: *offset,
            sh_size: data.len() as u64,
            sh_link: 0,
            sh_info: 0,
            sh_addralign: 8,
            sh_entsize: 0,
        });
    }
    w.write_symtab_section_header(1);
    w.write_strtab_section_header();
    w.write_shstrtab_section_header();
    Ok(out)
}

#[cfg(test)]
mod tests;
