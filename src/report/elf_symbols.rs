//! A symbol file for compiled code that no file of the target describes: a [`CodeMap`] in, the bytes of an ELF file out.
//!
//! gdb and lldb load it beside the target's own files, and then print the frames of this code, and the native frames above
//! it, as if a compiler had described it:
//!
//! - It is `ET_DYN` with absolute addresses: no address has to be given in gdb, `--slide 0` in lldb. lldb takes an
//!   `ET_EXEC` for the program itself, gdb loses the DWARF of an `ET_REL`.
//! - `.text` holds the code, since a core may lack it.
//! - `.eh_frame` says `undefined` where a caller's register is not known. Without a rule gdb takes the register for
//!   unchanged and shows wrong locals, in native frames too.
//! - The frame base is `DW_OP_call_frame_cfa`: through a register, lldb 14 to 19 lose the locals behind `leave`.
//! - Operand stacks are variables named `wasm_stack` in a lexical block of their own for each point, so that elsewhere
//!   there is no such variable instead of one without a value, and each has the depth and the types of its point.

use crate::arch::{Reg, x64};
use crate::limits::MAX_NAME_BYTES;
use crate::runtime::ValType;
use crate::runtime::code_map::{
    CodeMap, CompiledFunction, CompiledModule, FrameChange, Location, Operands, SourceFile, Variable,
};
use gimli::write::{
    Address, AttributeValue, CallFrameInstruction, CommonInformationEntry, EhFrame, EndianVec, Expression, FileId,
    FrameDescriptionEntry, FrameTable, LineProgram, LineString, LineStringTable, LocationList, Sections, StringTable,
    Unit, UnitEntryId, UnitTable, Writer as _,
};
use gimli::{Encoding, Format, LineEncoding, LittleEndian, Register, SectionId, constants as dw};
use object::elf;
use object::write::elf::{FileHeader, ProgramHeader, SectionHeader, Sym, Writer};
use std::borrow::Cow;
use std::collections::HashMap;

/// Functions per compilation unit. A debugger reads a unit whole when it meets one of its addresses, and what is built
/// of a unit before it is written should fit into the processor's cache.
const UNIT_FUNCTIONS: usize = 64;

/// From this many units on two threads write half of them each.
const WORTH_TWO_PARTS: usize = 16;

/// Why there is no file. None of these is expected: the description is too large for the format, or contradicts itself.
#[derive(Debug, thiserror::Error)]
pub enum SymbolFileError {
    /// Debug information cannot be encoded.
    #[error("debug information: {0}")]
    Dwarf(#[from] gimli::write::Error),
    /// The file cannot be laid out.
    #[error("ELF: {0}")]
    Elf(#[from] object::write::Error),
}

/// Writes the file. `directory` is where it will be; `text_names` has the file name of each module's text form there, as
/// far as the module has one.
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
    // A length of zero ends the section; the writer leaves that to a linker.
    frames.extend_from_slice(&[0; 4]);
    let mut named: Vec<(&'static str, Vec<u8>)> = vec![(".eh_frame", frames)];
    named.extend(joined(first?, second)?);
    elf_file(&modules, &named)
}

/// What becomes a compilation unit.
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

/// A section in the making, with the places in it that hold an offset into a section: they move with it.
#[derive(Clone)]
struct Part {
    data: EndianVec<LittleEndian>,
    offsets: Vec<(usize, SectionId)>,
}

/// Bytes of an offset in 32-bit DWARF.
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

/// The sections of the first part with those of the second behind them, as a linker would put them together.
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
        // Unit by unit: the entries of all of them would need many times the memory of what is written.
        let mut units = UnitTable::default();
        units.add(unit);
        units.write(&mut sections, &mut strings.lines, &mut strings.table)?;
    }
    strings.lines.write(&mut sections.debug_line_str)?;
    strings.table.write(&mut sections.debug_str)?;
    Ok(sections)
}

/// The modules in the order of their addresses. One that lies over another is left out: a debugger would choose between
/// them as it likes.
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
    let mut entry = CommonInformationEntry::new(encoding, 1, -8, number(Reg::RIP));
    entry.add_instruction(CallFrameInstruction::Cfa(number(Reg::RSP), 8));
    entry.add_instruction(CallFrameInstruction::Offset(number(Reg::RIP), -8));
    for row in x64::TABLE.iter().filter(|row| ![Reg::RSP, Reg::RIP].contains(&row.reg)) {
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
            // Behind the end nothing is asked; a change that goes back would hold at the wrong place.
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

/// A name that a debugger can show: no control characters, which would end a string or a line.
fn clean(name: &str) -> Cow<'_, str> {
    if !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.chars().any(char::is_control) {
        return Cow::Borrowed(name);
    }
    let mut out: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if out.len() > MAX_NAME_BYTES {
        let mut end = MAX_NAME_BYTES;
        while !out.is_char_boundary(end) {
            end -= 1;
        }
        out.truncate(end);
    }
    if out.is_empty() {
        out.push('?');
    }
    Cow::Owned(out)
}

/// Operations that say where a value is.
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

/// Types of one unit, made when they are first needed.
#[derive(Default)]
struct Types {
    values: HashMap<Option<ValType>, UnitEntryId>,
    stacks: HashMap<Vec<Option<ValType>>, UnitEntryId>,
}

impl Types {
    /// The type of a value; of one whose type is not known, its 64 raw bits.
    fn value(&mut self, strings: &mut Strings, unit: &mut Unit, ty: Option<ValType>) -> UnitEntryId {
        if let Some(id) = self.values.get(&ty) {
            return *id;
        }
        let (base, encoding, size) = match ty {
            Some(ValType::I32) => ("int", dw::DW_ATE_signed, 4),
            Some(ValType::I64) => ("long", dw::DW_ATE_signed, 8),
            Some(ValType::F32) => ("float", dw::DW_ATE_float, 4),
            Some(ValType::F64) => ("double", dw::DW_ATE_float, 8),
            // No place of a whole vector is known: its low half.
            Some(ValType::V128 | ValType::FuncRef | ValType::ExternRef | ValType::Ref) | None => {
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

    /// The type of an operand stack: a word for each operand, `s0` at the bottom.
    fn stack(&mut self, strings: &mut Strings, unit: &mut Unit, operands: &Operands) -> UnitEntryId {
        let types: Vec<Option<ValType>> = operands.operands.iter().map(|(ty, _)| *ty).collect();
        if let Some(id) = self.stacks.get(&types) {
            return *id;
        }
        let members: Vec<UnitEntryId> = types.iter().map(|ty| self.value(strings, unit, *ty)).collect();
        let root = unit.root();
        let id = unit.add(root, dw::DW_TAG_structure_type);
        unit.get_mut(id).set(dw::DW_AT_byte_size, AttributeValue::Udata(8 * members.len() as u64));
        for (i, ty) in members.into_iter().enumerate() {
            let member = unit.add(id, dw::DW_TAG_member);
            let entry = unit.get_mut(member);
            entry.set(dw::DW_AT_name, strings.string(&format!("s{i}")));
            entry.set(dw::DW_AT_type, AttributeValue::UnitRef(ty));
            entry.set(dw::DW_AT_data_member_location, AttributeValue::Udata(8 * i as u64));
        }
        self.stacks.insert(types, id);
        id
    }
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
    // C has no names that are made up of other names, and no runtime of its own.
    entry.set(dw::DW_AT_language, AttributeValue::Language(dw::DW_LANG_C11));
    entry.set(dw::DW_AT_name, strings.string(&clean(text_name.unwrap_or(&module.name))));
    entry.set(dw::DW_AT_comp_dir, strings.string(&clean(directory)));
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
    entry.set(dw::DW_AT_low_pc, AttributeValue::Address(Address::Constant(function.start)));
    entry.set(dw::DW_AT_high_pc, AttributeValue::Udata(u64::from(function.len)));
    entry.set(dw::DW_AT_frame_base, AttributeValue::Exprloc(frame_base));
    if let Some(line) = function.lines.first()
        && let Some(file @ Some(_)) = files.get(line.file as usize).copied()
    {
        entry.set(dw::DW_AT_decl_file, AttributeValue::FileIndex(file));
        entry.set(dw::DW_AT_decl_line, AttributeValue::Udata(u64::from(line.line)));
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
}

/// The places of a variable, relative to the unit's base.
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

/// A structure put together from the operands' places; a piece without a place has no value.
fn pieces(operands: &Operands) -> Expression {
    let mut out = Vec::new();
    for (_, place) in &operands.operands {
        out.extend(place.map(operations).unwrap_or_default());
        out.extend([dw::DW_OP_piece.0, 8]);
    }
    Expression::raw(out)
}

/// The line table of some functions, and the numbers of the module's files in it.
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
    let string = |text: &str| LineString::String(clean(text).into_owned().into_bytes());
    let primary = text_name.unwrap_or(&module.name);
    let mut program = LineProgram::new(
        encoding,
        LineEncoding { line_base: -5, line_range: 14, ..LineEncoding::default() },
        string(directory),
        None,
        string(primary),
        None,
    );
    let place = program.default_directory();
    let mut used = vec![false; module.files.len()];
    for line in functions.iter().flat_map(|f| &f.lines) {
        if let Some(slot) = used.get_mut(line.file as usize) {
            *slot = true;
        }
    }
    let files: Vec<Option<FileId>> = module
        .files
        .iter()
        .zip(used)
        .map(|(file, used)| match file {
            _ if !used => None,
            SourceFile::Text => Some(program.add_file(string(text_name?), place, None)),
            SourceFile::Path(path) => Some(program.add_file(string(path), place, None)),
        })
        .collect();
    for function in functions.iter().filter(|f| !f.lines.is_empty()) {
        program.begin_sequence(Some(Address::Constant(function.start)));
        let mut at = 0;
        for line in &function.lines {
            let Some(Some(file)) = files.get(line.file as usize).copied() else { continue };
            if line.offset < at || line.offset >= function.len {
                continue;
            }
            at = line.offset;
            let row = program.row();
            row.address_offset = u64::from(line.offset);
            row.file = file;
            row.line = u64::from(line.line);
            row.prologue_end = line.prologue_end;
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
mod tests {
    use super::*;
    use crate::runtime::code_map::{Line, Operand};
    use gimli::read::{AttributeValue as Read, EhFrame as ReadEhFrame, UnwindSection};
    use gimli::{BaseAddresses, CfaRule, EndianSlice, RegisterRule, UnwindContext};
    use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol};

    const BASE: u64 = 0x7f12_3456_7000;

    fn function(name: &str, at: u64) -> CompiledFunction {
        let operand = |ty, place| -> Operand { (ty, place) };
        CompiledFunction {
            name: Some(name.to_string()),
            start: BASE + at,
            len: 0x100,
            frame: vec![
                (38, FrameChange::Cfa(Reg::RSP, 16)),
                (38, FrameChange::Saved(Reg::RBP, -16)),
                (41, FrameChange::Cfa(Reg::RBP, 16)),
                (43, FrameChange::Saved(Reg::R12, -24)),
                (0xf0, FrameChange::Undefined(Reg::RBX)),
                // Behind the end, and back.
                (0x100, FrameChange::Same(Reg::RBX)),
                (5, FrameChange::Undefined(Reg::RIP)),
            ],
            described: true,
            variables: vec![
                Variable {
                    name: "n".to_string(),
                    ty: Some(ValType::I32),
                    parameter: true,
                    places: vec![(0, 50, Location::Register(Reg::RSI)), (50, u32::MAX, Location::Register(Reg::R12))],
                },
                Variable { name: "lost\0\n".to_string(), ty: None, parameter: false, places: Vec::new() },
            ],
            operands: vec![
                Operands {
                    range: (0x80, 0x82),
                    operands: vec![
                        operand(Some(ValType::F64), Some(Location::Constant(7))),
                        operand(None, None),
                        operand(None, Some(Location::Frame(-40))),
                    ],
                },
                // Within the one before: left out.
                Operands { range: (0x81, 0x82), operands: vec![operand(None, None)] },
            ],
            lines: vec![
                Line { offset: 0, file: 0, line: 10, prologue_end: false },
                Line { offset: 0x60, file: 0, line: 12, prologue_end: true },
            ],
        }
    }

    fn map() -> CodeMap {
        let routine = CompiledFunction {
            name: None,
            start: 0x1000,
            len: 16,
            frame: vec![(0, FrameChange::CfaDeref(Reg::RSP, 56)), (0, FrameChange::Saved(Reg::RBP, -56))],
            ..CompiledFunction::default()
        };
        CodeMap {
            modules: vec![
                CompiledModule {
                    name: "app".to_string(),
                    base: BASE,
                    code: vec![0x90; 0x200],
                    functions: vec![function("first", 0), function("second", 0x100)],
                    files: vec![SourceFile::Text],
                    text: Some("(module)".to_string()),
                },
                CompiledModule { base: 0x1000, functions: vec![routine], ..CompiledModule::default() },
                // Over the first.
                CompiledModule { base: BASE + 0x10, code: vec![0; 16], ..CompiledModule::default() },
            ],
            notes: Vec::new(),
        }
    }

    fn written() -> Vec<u8> {
        write(&map(), "/src", &[Some("app.wat".to_string()), None, None]).unwrap()
    }

    #[test]
    fn the_file_has_absolute_addresses_and_the_code() {
        let bytes = written();
        let file = object::File::parse(&*bytes).unwrap();
        assert_eq!(file.kind(), object::ObjectKind::Dynamic);
        let segments: Vec<_> = file.segments().map(|s| (s.address(), s.size())).collect();
        assert_eq!(segments, [(BASE, 0x200)]);
        let text = file.section_by_name(".text").unwrap();
        assert_eq!((text.address(), text.data().unwrap()), (BASE, &[0x90; 0x200][..]));
        let symbols: Vec<_> = file.symbols().map(|s| (s.name().unwrap(), s.address(), s.size())).collect();
        assert_eq!(symbols, [("first", BASE, 0x100), ("second", BASE + 0x100, 0x100)]);
        let frames = file.section_by_name(".eh_frame").unwrap();
        assert!(frames.data().unwrap().ends_with(&[0; 4]));
    }

    #[test]
    fn frames_are_found_at_every_place() {
        let bytes = written();
        let file = object::File::parse(&*bytes).unwrap();
        let data = file.section_by_name(".eh_frame").unwrap().data().unwrap();
        let frames = ReadEhFrame::new(data, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame(0);
        let row = |address: u64| {
            let mut context = UnwindContext::new();
            let row = frames
                .unwind_info_for_address(&bases, &mut context, address, ReadEhFrame::cie_from_offset)
                .unwrap()
                .clone();
            let rule = |reg: Reg| row.register(number(reg)).unwrap_or(RegisterRule::Architectural);
            (row.cfa().clone(), rule(Reg::RBP), rule(Reg::R12), rule(Reg::RBX), rule(Reg::RIP), rule(Reg::RSI))
        };
        let cfa = |reg: Reg, offset| CfaRule::RegisterAndOffset { register: number(reg), offset };
        use RegisterRule::{Offset, SameValue, Undefined};
        for base in [BASE, BASE + 0x100] {
            let entry = (cfa(Reg::RSP, 8), SameValue, SameValue, SameValue, Offset(-8), Undefined);
            assert_eq!(row(base), entry);
            assert_eq!(row(base + 37), entry);
            assert_eq!(row(base + 38).0, cfa(Reg::RSP, 16));
            let body = (cfa(Reg::RBP, 16), Offset(-16), Offset(-24), SameValue, Offset(-8), Undefined);
            assert_eq!(row(base + 43), body);
            assert_eq!(row(base + 0xef), body);
            assert_eq!(row(base + 0xff).3, Undefined);
        }
        let routine = row(0x1008);
        assert!(matches!(routine.0, CfaRule::Expression(_)), "{routine:?}");
        assert_eq!(routine.1, Offset(-56));
    }

    fn sections(bytes: &[u8]) -> gimli::Dwarf<EndianSlice<'_, LittleEndian>> {
        let file = object::File::parse(bytes).unwrap();
        gimli::Dwarf::load(|id| {
            let data = file.section_by_name(id.name()).and_then(|s| s.data().ok()).unwrap_or(&[]);
            Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
        })
        .unwrap()
    }

    /// A file that two threads have written says of every function what one of a single function says: the name, the
    /// place of its parameter and its line, all of which lie behind offsets that had to be moved.
    #[test]
    fn both_parts_of_a_large_file_are_right() {
        let count = 2 * (WORTH_TWO_PARTS * UNIT_FUNCTIONS) as u64 + 1;
        let functions = (0..count).map(|i| {
            let mut f = function(&format!("f{i}"), i * 0x100);
            f.variables[0].name = format!("v{i}");
            f.variables[0].places = vec![(0, 0x90, Location::Frame(-(i as i64) * 8))];
            f.lines[0].line = i as u32 + 1;
            f
        });
        let module = CompiledModule {
            name: "large".to_string(),
            base: BASE,
            functions: functions.collect(),
            files: vec![SourceFile::Text],
            ..CompiledModule::default()
        };
        let map = CodeMap { modules: vec![module], notes: Vec::new() };
        let bytes = write(&map, "/src", &[Some("large.wat".to_string())]).unwrap();
        let dwarf = sections(&bytes);
        let mut seen = 0;
        let mut headers = dwarf.units();
        while let Some(header) = headers.next().unwrap() {
            let unit = dwarf.unit(header).unwrap();
            let rows: Vec<(u64, u64)> = {
                let mut rows = unit.line_program.clone().unwrap().rows();
                std::iter::from_fn(|| rows.next_row().unwrap().map(|(_, r)| *r))
                    .filter(|r| !r.end_sequence())
                    .map(|r| (r.address(), r.line().unwrap().get()))
                    .collect()
            };
            let mut entries = unit.entries();
            while let Some(entry) = entries.next_dfs().unwrap() {
                let text = |at| {
                    let value = entry.attr_value(at).unwrap();
                    dwarf.attr_string(&unit, value).unwrap().to_string().unwrap().to_string()
                };
                if entry.tag() == dw::DW_TAG_subprogram {
                    assert_eq!(text(dw::DW_AT_name), format!("f{seen}"));
                    assert!(rows.contains(&(BASE + seen * 0x100, seen + 1)));
                    seen += 1;
                } else if entry.tag() == dw::DW_TAG_formal_parameter {
                    assert_eq!(text(dw::DW_AT_name), format!("v{}", seen - 1));
                    let at = entry.attr_value(dw::DW_AT_location).unwrap();
                    let mut list = dwarf.attr_locations(&unit, at).unwrap().unwrap();
                    let place = list.next().unwrap().unwrap();
                    assert_eq!(place.range.begin, BASE + (seen - 1) * 0x100);
                    let expected = operations(Location::Frame(-(seen as i64 - 1) * 8));
                    assert_eq!(place.data.0.slice(), expected);
                }
            }
        }
        assert_eq!(seen, count);
    }

    #[test]
    fn functions_variables_and_operands_can_be_read_back() {
        let bytes = written();
        let dwarf = sections(&bytes);
        let header = dwarf.units().next().unwrap().unwrap();
        let unit = dwarf.unit(header).unwrap();
        assert_eq!(unit.low_pc, BASE);
        let name = |entry: &gimli::read::DebuggingInformationEntry<EndianSlice<'_, LittleEndian>>| {
            let value = entry.attr_value(dw::DW_AT_name)?;
            Some(dwarf.attr_string(&unit, value).unwrap().to_string_lossy().into_owned())
        };
        let mut entries = unit.entries();
        let (mut functions, mut parameters, mut locals, mut blocks) = (Vec::new(), 0, Vec::new(), Vec::new());
        while let Some(entry) = entries.next_dfs().unwrap() {
            match entry.tag() {
                dw::DW_TAG_subprogram => {
                    let Some(Read::Exprloc(base)) = entry.attr_value(dw::DW_AT_frame_base) else { panic!() };
                    assert_eq!(base.0.slice(), [dw::DW_OP_call_frame_cfa.0]);
                    functions.push(name(entry).unwrap());
                }
                dw::DW_TAG_formal_parameter => {
                    parameters += 1;
                    let value = entry.attr_value(dw::DW_AT_location).unwrap();
                    let mut list = dwarf.attr_locations(&unit, value).unwrap().unwrap();
                    let mut found = Vec::new();
                    while let Some(one) = list.next().unwrap() {
                        found.push((one.range.begin, one.range.end, one.data.0.slice().to_vec()));
                    }
                    let base = BASE + if functions.len() == 1 { 0 } else { 0x100 };
                    // rsi is 4 and r12 is 12.
                    assert_eq!(found, [(base, base + 50, vec![0x54]), (base + 50, base + 0x100, vec![0x5c])]);
                }
                dw::DW_TAG_variable => locals.push((name(entry).unwrap(), entry.attr_value(dw::DW_AT_location))),
                dw::DW_TAG_lexical_block => {
                    let Some(Read::Addr(low)) = entry.attr_value(dw::DW_AT_low_pc) else { panic!() };
                    blocks.push((low, entry.attr_value(dw::DW_AT_high_pc).unwrap().udata_value().unwrap()));
                }
                _ => {}
            }
        }
        assert_eq!((functions.as_slice(), parameters), (&["first".to_string(), "second".to_string()][..], 2));
        assert_eq!(blocks, [(BASE + 0x80, 2), (BASE + 0x180, 2)]);
        let names: Vec<&str> = locals.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["lost??", "wasm_stack", "lost??", "wasm_stack"]);
        assert_eq!(locals[0].1, None);
        let Some(Read::Exprloc(stack)) = &locals[1].1 else { panic!() };
        let (constant, piece) = (dw::DW_OP_constu.0, dw::DW_OP_piece.0);
        let expected = [constant, 7, dw::DW_OP_stack_value.0, piece, 8, piece, 8, dw::DW_OP_fbreg.0, 0x58, piece, 8];
        assert_eq!(stack.0.slice(), expected);
    }

    #[test]
    fn lines_can_be_read_back() {
        let bytes = written();
        let context = addr2line::Context::from_dwarf(sections(&bytes)).unwrap();
        let at =
            |address| context.find_location(address).unwrap().map(|l| (l.file.unwrap().to_string(), l.line.unwrap()));
        assert_eq!(at(BASE), Some(("/src/app.wat".to_string(), 10)));
        assert_eq!(at(BASE + 0x15f), Some(("/src/app.wat".to_string(), 10)));
        assert_eq!(at(BASE + 0x160), Some(("/src/app.wat".to_string(), 12)));
        assert_eq!(at(BASE + 0x200), None);
    }

    #[test]
    fn odd_descriptions_make_a_file_too() {
        assert!(object::File::parse(&*write(&CodeMap::default(), "", &[]).unwrap()).is_ok());
        let mut map = map();
        for module in &mut map.modules {
            module.name = String::new();
            module.files.clear();
            for function in &mut module.functions {
                function.name = Some("\0".repeat(3));
                function.start = u64::MAX - 3;
                function.len = u32::MAX;
                for variable in &mut function.variables {
                    variable.places =
                        vec![(u32::MAX, 0, Location::Constant(u64::MAX)), (5, 5, Location::Frame(i64::MIN))];
                }
            }
        }
        let _ = write(&map, "\0", &[]);
    }
}
