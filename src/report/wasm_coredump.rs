//! Writes a Wasm coredump as the tool conventions describe it (`Coredump.md`): a Wasm module without code, with the
//! memories as memory and data sections, the globals as constants, and custom sections for modules, instances and one
//! stack per thread.
//!
//! What the format cannot hold is left out, and the writer tells what that was. A local or operand that is a vector,
//! a reference or a value without a type is written as missing. A global that is not known is written as a null
//! `externref`, so that the indices of the other globals are right.
//!
//! Memories are read twice, a piece at a time: once to find where bytes are not zero, once to write them. The memory
//! of a process that runs on may change in between; then the later bytes are written.

use super::contents::{Contents, Instance, MemoryRow};
use super::{FrameKind, OpPosition, Report, ValType as Ty, Value};
use crate::limits;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use wasm_encoder::{
    ConstExpr, CoreDumpInstancesSection, CoreDumpModulesSection, CoreDumpSection, CoreDumpStackSection, CoreDumpValue,
    CustomSection, Encode, GlobalSection, GlobalType, HeapType, Ieee32, Ieee64, MemorySection, MemoryType, Module,
    RefType, ValType,
};

/// A reader of coredumps that needs another form than that of the conventions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compat {
    /// wasmgdb 0.2.2. It expects both counts of a frame before the locals and reads no operands; it reads numbers as
    /// little-endian words of full length, reads only the first data segment, and knows no types but the four number
    /// types. Therefore a coredump for it has no operands, one memory (that of the first Wasm frame's instance) as
    /// one segment from its first byte on, and no globals.
    Wasmgdb,
}

/// What a coredump is made from.
pub struct CoredumpInput<'a> {
    /// The stacks, with values.
    pub report: &'a Report,
    /// The modules and their instances.
    pub contents: &'a Contents,
    /// Fills a buffer with the target's bytes at an address, and returns whether it could.
    pub read: &'a mut dyn FnMut(u64, &mut [u8]) -> bool,
    /// Returns the offset in a module's `.wasm` file at which the body of a function begins, if it is known. Its
    /// arguments are the number of the module and the index of the function among those that the module defines.
    pub body_offset: &'a mut dyn FnMut(u32, u32) -> Option<u64>,
}

/// Size of a Wasm page in bytes.
const WASM_PAGE: u64 = 64 << 10;
/// Size in bytes of the units in which zero bytes are looked for.
const UNIT: u64 = 4096;
/// Number of bytes that are read at once.
const PIECE: u64 = 256 << 10;

/// A stretch of a memory whose bytes are not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    /// Index of the memory in the file.
    memory: u32,
    /// First address of the stretch in that memory.
    start: u64,
    /// Number of bytes in the stretch.
    len: u64,
}

struct Memory {
    base: u64,
    size: u64,
    memory64: bool,
    row: MemoryRow,
}

/// Writes the coredump to `out`. Returns notes about what is missing in it.
pub fn write(input: &mut CoredumpInput<'_>, compat: Option<Compat>, out: &mut dyn Write) -> io::Result<Vec<String>> {
    let mut notes = Notes::default();
    let preferred = compat.and_then(|_| first_instance(input));
    let (memories, memory_maps) = memories(input.contents, preferred, compat, &mut notes);
    let segments = match compat {
        None => segments(input.read, &memories, &mut notes),
        Some(Compat::Wasmgdb) => one_segment(input.read, &memories, &mut notes),
    };
    let (globals, global_maps) = match compat {
        None => globals(input.contents, &mut notes),
        Some(Compat::Wasmgdb) => (GlobalSection::new(), HashMap::new()),
    };

    let mut head = Module::new();
    let name = input.report.target.executable.as_deref().unwrap_or_default();
    head.section(&CoreDumpSection::new(name));
    if !memories.is_empty() {
        head.section(&memory_section(&memories));
    }
    if !globals.is_empty() {
        head.section(&globals);
    }
    out.write_all(head.as_slice())?;
    if !segments.is_empty() {
        data_section(input.read, &memories, &segments, out, &mut notes)?;
    }

    let (modules, module_map) = modules(input.contents);
    let mut tail = Vec::new();
    append(&modules, &mut tail);
    let mut instances = CoreDumpInstancesSection::new();
    let mut instance_map: HashMap<(u32, u64), u32> = HashMap::new();
    for (module, instance) in input.contents.instances() {
        instance_map.insert((module, instance.address.0), instances.len());
        let list = |map: &HashMap<u32, Vec<u32>>| map.get(&instance.number).cloned().unwrap_or_default();
        let module = module_map.get(&module).copied().unwrap_or_default();
        instances.instance(module, list(&memory_maps), list(&global_maps));
    }
    let mut stacks = Vec::new();
    let mut unknown: BTreeMap<u32, u32> = BTreeMap::new();
    for thread in 0..input.report.threads.len() {
        // A module may have instances that are not listed, so even an instance that is the only one listed need not
        // be the frame's.
        let mut index_of = |module: u32, address: Option<u64>| {
            let known = address.and_then(|a| instance_map.get(&(module, a)));
            known.copied().unwrap_or_else(|| {
                *unknown.entry(module).or_insert_with(|| {
                    let index = instances.len();
                    instances.instance(module_map.get(&module).copied().unwrap_or_default(), [], []);
                    index
                })
            })
        };
        stacks.extend(stack(input.report, thread, compat, &mut index_of, input.body_offset, &mut notes));
    }
    for module in unknown.keys() {
        notes.add(format!(
            "the instance of some frames of {} is not known: they stand in one without memories and globals",
            input.contents.module_name(*module)
        ));
    }
    append(&instances, &mut tail);
    tail.extend(stacks);
    out.write_all(&tail)?;
    Ok(notes.finish())
}

/// Notes about frames whose values are not known, behind how many there are.
const NO_LOCALS: &str = "frames have no locals: they are not known";
const NO_OPERANDS: &str = "frames have no operand stack: it is not known";

/// Notes about what is missing. What is only counted gives one note for each kind, with the count.
#[derive(Default)]
struct Notes {
    texts: Vec<String>,
    counts: BTreeMap<&'static str, usize>,
}

impl Notes {
    fn add(&mut self, text: String) {
        if self.texts.len() < limits::MAX_ROUTE_NOTES && !self.texts.contains(&text) {
            self.texts.push(text);
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn finish(mut self) -> Vec<String> {
        // Mostly these are the same frames, which one line tells.
        if let Some(count) = self.counts.get(NO_LOCALS).copied()
            && self.counts.get(NO_OPERANDS) == Some(&count)
        {
            self.counts.remove(NO_LOCALS);
            self.counts.remove(NO_OPERANDS);
            self.counts.insert("frames have no locals and no operand stack: they are not known", count);
        }
        self.texts.extend(self.counts.into_iter().map(|(what, n)| format!("{n} {what}")));
        self.texts
    }
}

fn append(section: &impl wasm_encoder::Section, out: &mut Vec<u8>) {
    section.append_to(out);
}

/// The number of the first instance that a Wasm frame is known to run in.
fn first_instance(input: &CoredumpInput<'_>) -> Option<u32> {
    let frames = input.report.threads.iter().flat_map(|t| &t.frames);
    let address = frames.filter(|f| f.kind == FrameKind::Wasm).find_map(|f| f.instance)?;
    input.contents.instances().find(|(_, i)| i.address == address).map(|(_, i)| i.number)
}

/// All memories, and for each instance, by its number, the indices of its memories. A memory that several instances
/// share is there once.
fn memories(
    contents: &Contents,
    preferred: Option<u32>,
    compat: Option<Compat>,
    notes: &mut Notes,
) -> (Vec<Memory>, HashMap<u32, Vec<u32>>) {
    let mut out: Vec<Memory> = Vec::new();
    let mut by_base: HashMap<u64, u32> = HashMap::new();
    let mut maps: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut instances: Vec<&Instance> = contents.instances().map(|(_, i)| i).collect();
    if compat.is_some() {
        let one = preferred.or_else(|| instances.first().map(|i| i.number));
        instances.retain(|i| Some(i.number) == one);
    }
    for instance in instances {
        if let Some(why) = &instance.memories_why {
            notes.add(format!("instance {} may have more memories: {why}", instance.number));
        }
        let rows = instance.memories.iter().take(if compat.is_some() { 1 } else { usize::MAX });
        for row in rows {
            let most = if row.memory64 { limits::MAX_EXPORTED_MEMORY } else { 1 << 32 };
            let known = row.base.zip(row.size).filter(|(_, size)| *size <= most);
            if known.is_none() {
                let why =
                    row.why.as_ref().map_or("its size is larger than wstate exports".to_string(), ToString::to_string);
                notes.add(format!(
                    "memory {} of instance {} is not known and stands as an empty one: {why}",
                    row.index, instance.number
                ));
            }
            let (base, size) = known.map_or((0, 0), |(base, size)| (base.0, size));
            let next = out.len() as u32;
            let index = if known.is_some() { *by_base.entry(base).or_insert(next) } else { next };
            if index == next {
                out.push(Memory { base, size, memory64: row.memory64, row: row.clone() });
            }
            maps.entry(instance.number).or_default().push(index);
        }
    }
    (out, maps)
}

fn memory_section(memories: &[Memory]) -> MemorySection {
    let mut section = MemorySection::new();
    for m in memories {
        // If the target says that the memory is larger than its type allows, the largest possible size is written.
        let minimum = m.size.div_ceil(WASM_PAGE).min(if m.memory64 { 1 << 48 } else { 1 << 16 });
        let maximum = m.row.maximum.filter(|max| *max >= minimum && (m.memory64 || *max <= 1 << 16));
        let shared = m.row.shared && maximum.is_some();
        section.memory(MemoryType { minimum, maximum, memory64: m.memory64, shared, page_size_log2: None });
    }
    section
}

/// The stretches of all memories that are not zero. They are joined until there are few enough for readers.
fn segments(read: &mut dyn FnMut(u64, &mut [u8]) -> bool, memories: &[Memory], notes: &mut Notes) -> Vec<Segment> {
    let mut out: Vec<Segment> = Vec::new();
    let mut total = 0;
    for (index, m) in memories.iter().enumerate() {
        let memory = index as u32;
        let mut unreadable = 0;
        let mut left_out = false;
        units(read, m, &mut |start, bytes| {
            let len = match bytes {
                Ok(bytes) if bytes.iter().all(|b| *b == 0) => return,
                Ok(bytes) => bytes.len() as u64,
                Err(len) => {
                    unreadable += len;
                    return;
                }
            };
            if total + len > limits::MAX_DATA_BYTES {
                left_out = true;
                return;
            }
            total += len;
            match out.last_mut() {
                Some(last) if last.memory == memory && last.start + last.len == start => last.len += len,
                _ => out.push(Segment { memory, start, len }),
            }
        });
        if unreadable > 0 {
            notes.add(format!("{unreadable:#x} bytes of the memory at {:#x} cannot be read and are left out", m.base));
        }
        if left_out {
            notes.add(format!("parts of the memory at {:#x} are left out: a data section ends at 4 GiB", m.base));
        }
    }
    thin(&mut out, limits::MAX_DATA_SEGMENTS);
    out
}

/// Joins segments across gaps of zeros, first small and then larger gaps, until there are at most `most` segments.
fn thin(segments: &mut Vec<Segment>, most: usize) {
    let mut gap = UNIT;
    while segments.len() > most && gap < 1 << 40 {
        let mut out: Vec<Segment> = Vec::new();
        for s in segments.drain(..) {
            match out.last_mut() {
                Some(last) if last.memory == s.memory && s.start - (last.start + last.len) <= gap => {
                    last.len = s.start + s.len - last.start;
                }
                _ => out.push(s),
            }
        }
        *segments = out;
        gap *= 2;
    }
}

/// Called with a unit of a memory: its address in that memory, and its bytes or, if they cannot be read, their
/// number.
type Visit<'a> = dyn FnMut(u64, Result<&[u8], u64>) + 'a;

/// Calls `visit` with each unit of a memory.
fn units(read: &mut dyn FnMut(u64, &mut [u8]) -> bool, m: &Memory, visit: &mut Visit<'_>) {
    let mut piece = vec![0; PIECE.min(m.size) as usize];
    let mut at = 0;
    while at < m.size {
        let len = PIECE.min(m.size - at) as usize;
        let whole = read(m.base.wrapping_add(at), &mut piece[..len]);
        for start in (0..len).step_by(UNIT as usize) {
            let end = len.min(start + UNIT as usize);
            let unit = &mut piece[start..end];
            let address = at + start as u64;
            if whole || read(m.base.wrapping_add(address), unit) {
                visit(address, Ok(unit));
            } else {
                visit(address, Err(unit.len() as u64));
            }
        }
        at += len as u64;
    }
}

/// The first memory as one segment, from its first byte to the last byte that is not zero.
fn one_segment(read: &mut dyn FnMut(u64, &mut [u8]) -> bool, memories: &[Memory], notes: &mut Notes) -> Vec<Segment> {
    let Some(m) = memories.first().filter(|m| m.size > 0) else { return Vec::new() };
    let (mut end, mut unreadable) = (1, 0);
    units(read, m, &mut |start, bytes| match bytes {
        Ok(bytes) => {
            if let Some(last) = bytes.iter().rposition(|b| *b != 0) {
                end = start + last as u64 + 1;
            }
        }
        Err(len) => unreadable += len,
    });
    if unreadable > 0 {
        notes.add(format!("{unreadable:#x} bytes of the memory at {:#x} cannot be read and stand as zeros", m.base));
    }
    if end > limits::MAX_DATA_BYTES {
        notes.add(format!("parts of the memory at {:#x} are left out: a data section ends at 4 GiB", m.base));
    }
    vec![Segment { memory: 0, start: 0, len: end.min(limits::MAX_DATA_BYTES) }]
}

/// The encoded fields that stand before a segment's bytes in the data section.
fn segment_head(s: &Segment, memories: &[Memory]) -> Vec<u8> {
    let mut head = Vec::new();
    if s.memory == 0 {
        head.push(0);
    } else {
        head.push(2);
        s.memory.encode(&mut head);
    }
    let memory64 = memories.get(s.memory as usize).is_some_and(|m| m.memory64);
    let offset =
        if memory64 { ConstExpr::i64_const(s.start as i64) } else { ConstExpr::i32_const(s.start as u32 as i32) };
    offset.encode(&mut head);
    // The length is at most `limits::MAX_DATA_BYTES`, so it fits into 32 bits.
    (s.len as u32).encode(&mut head);
    head
}

fn data_section(
    read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
    memories: &[Memory],
    segments: &[Segment],
    out: &mut dyn Write,
    notes: &mut Notes,
) -> io::Result<()> {
    let mut count = Vec::new();
    (segments.len() as u32).encode(&mut count);
    let mut size = count.len() as u64;
    for s in segments {
        size += segment_head(s, memories).len() as u64 + s.len;
    }
    let size = u32::try_from(size).map_err(|_| io::Error::other("the data section would be larger than 4 GiB"))?;
    let mut head = vec![11];
    size.encode(&mut head);
    out.write_all(&head)?;
    out.write_all(&count)?;
    let mut buf = vec![0; PIECE as usize];
    let mut lost = 0;
    for s in segments {
        out.write_all(&segment_head(s, memories))?;
        let base = memories.get(s.memory as usize).map_or(0, |m| m.base);
        let mut done = 0;
        while done < s.len {
            // If the whole piece cannot be read, its units are read one by one, so that a hole costs only its unit.
            let at = s.start + done;
            let len = PIECE.min(s.len - done) as usize;
            if !read(base.wrapping_add(at), &mut buf[..len]) {
                for start in (0..len).step_by(UNIT as usize) {
                    let end = len.min(start + UNIT as usize);
                    let unit = &mut buf[start..end];
                    if !read(base.wrapping_add(at + start as u64), unit) {
                        unit.fill(0);
                        lost += unit.len();
                    }
                }
            }
            out.write_all(&buf[..len])?;
            done += len as u64;
        }
    }
    if lost > 0 {
        notes.add(format!("{lost:#x} bytes inside of data segments could not be read and stand as zeros"));
    }
    Ok(())
}

/// All globals, and for each instance, by its number, the indices of its globals. A global that several instances
/// share is there once.
fn globals(contents: &Contents, notes: &mut Notes) -> (GlobalSection, HashMap<u32, Vec<u32>>) {
    let mut section = GlobalSection::new();
    let mut by_address: HashMap<u64, u32> = HashMap::new();
    let mut maps: HashMap<u32, Vec<u32>> = HashMap::new();
    for (_, instance) in contents.instances() {
        if let Some(why) = &instance.globals_why {
            notes.add(format!("globals of instance {} are left out: {why}", instance.number));
        }
        for global in &instance.globals {
            let address = global.value.address.map(|a| a.0);
            let next = section.len();
            let index = address.map_or(next, |a| *by_address.entry(a).or_insert(next));
            if index == next {
                let (val_type, init) = constant(&global.value, notes);
                section.global(GlobalType { val_type, mutable: false, shared: false }, &init);
            }
            maps.entry(instance.number).or_default().push(index);
        }
    }
    (section, maps)
}

fn constant(value: &Value, notes: &mut Notes) -> (ValType, ConstExpr) {
    let bits = value.bits.map(|b| b.0);
    match (value.ty, bits) {
        (Some(Ty::I32), Some(bits)) => (ValType::I32, ConstExpr::i32_const(bits as u32 as i32)),
        (Some(Ty::I64), Some(bits)) => (ValType::I64, ConstExpr::i64_const(bits as u64 as i64)),
        (Some(Ty::F32), Some(bits)) => (ValType::F32, ConstExpr::f32_const(Ieee32::new(bits as u32))),
        (Some(Ty::F64), Some(bits)) => (ValType::F64, ConstExpr::f64_const(Ieee64::new(bits as u64))),
        (Some(Ty::V128), Some(bits)) => (ValType::V128, ConstExpr::v128_const(bits as i128)),
        (Some(Ty::FuncRef), Some(0)) => (ValType::FUNCREF, ConstExpr::ref_null(HeapType::FUNC)),
        (Some(Ty::ExternRef), Some(0)) => (ValType::EXTERNREF, ConstExpr::ref_null(HeapType::EXTERN)),
        _ => {
            notes.count("globals are references or not known: each stands as a null externref");
            (ValType::Ref(RefType::EXTERNREF), ConstExpr::ref_null(HeapType::EXTERN))
        }
    }
}

fn modules(contents: &Contents) -> (CoreDumpModulesSection, HashMap<u32, u32>) {
    let mut section = CoreDumpModulesSection::new();
    let mut map = HashMap::new();
    for module in &contents.contents {
        map.insert(module.module_index, section.len());
        section.module(contents.module_name(module.module_index));
    }
    (section, map)
}

/// The encoded stack section of one thread; empty if the thread has no Wasm frames.
fn stack(
    report: &Report,
    thread: usize,
    compat: Option<Compat>,
    index_of: &mut dyn FnMut(u32, Option<u64>) -> u32,
    body_offset: &mut dyn FnMut(u32, u32) -> Option<u64>,
    notes: &mut Notes,
) -> Vec<u8> {
    let Some(thread) = report.threads.get(thread) else { return Vec::new() };
    let id = thread.tid.map_or("thread".to_string(), |tid| tid.to_string());
    let name = match &thread.name {
        Some(name) => format!("{name} ({id})"),
        None => id,
    };
    let mut conventional = CoreDumpStackSection::new(name.as_str());
    let (mut count, mut frames) = (0u32, Vec::new());
    for frame in thread.frames.iter().filter(|f| f.kind == FrameKind::Wasm) {
        let module = frame.wasm.as_ref().and_then(|w| w.module_index);
        let function = frame.function.as_ref();
        let (Some(module), Some(index)) = (module, function.and_then(|f| f.index)) else {
            notes.count("frames are left out: their function is not known");
            continue;
        };
        let instance = index_of(module, frame.instance.map(|i| i.0));
        // The code offset of a frame is that of its operator, counted from the start of the function's body with its
        // local declarations. Zero is written where it is not known.
        let operator = frame.wasm.as_ref().filter(|w| w.op_position == OpPosition::At).and_then(|w| w.offset);
        let start = function.and_then(|f| f.local_index).and_then(|local| body_offset(module, local));
        let offset = operator.zip(start).and_then(|(operator, start)| operator.0.checked_sub(start));
        let offset = offset.and_then(|o| u32::try_from(o).ok());
        if offset.is_none() {
            notes.count("frames have no code offset (0 stands for it): name the .wasm with --wasm");
        }
        let (locals, stack) = (values(&frame.locals, "locals", notes), values(&frame.stack, "operands", notes));
        match compat {
            None => {
                conventional.frame(instance, index, offset.unwrap_or(0), locals, stack);
            }
            Some(Compat::Wasmgdb) => {
                count += 1;
                frames.push(0);
                for n in [instance, index, offset.unwrap_or(0), locals.len() as u32, 0] {
                    n.encode(&mut frames);
                }
                locals.iter().for_each(|v| full_length(v, &mut frames));
            }
        }
        count += u32::from(compat.is_none());
    }
    let mut out = Vec::new();
    if count == 0 {
        return out;
    }
    match compat {
        None => append(&conventional, &mut out),
        Some(Compat::Wasmgdb) => {
            let mut data = vec![0];
            name.as_str().encode(&mut data);
            count.encode(&mut data);
            data.extend(frames);
            append(&CustomSection { name: "corestack".into(), data: data.into() }, &mut out);
        }
    }
    out
}

fn values(values: &Option<Vec<Value>>, what: &'static str, notes: &mut Notes) -> Vec<CoreDumpValue> {
    let Some(values) = values else {
        notes.count(match what {
            "locals" => NO_LOCALS,
            _ => NO_OPERANDS,
        });
        return Vec::new();
    };
    let value = |v: &Value| {
        let bits = v.bits.map(|b| b.0);
        match (v.ty, bits) {
            (Some(Ty::I32), Some(bits)) => CoreDumpValue::I32(bits as u32 as i32),
            (Some(Ty::I64), Some(bits)) => CoreDumpValue::I64(bits as u64 as i64),
            (Some(Ty::F32), Some(bits)) => CoreDumpValue::F32(Ieee32::new(bits as u32)),
            (Some(Ty::F64), Some(bits)) => CoreDumpValue::F64(Ieee64::new(bits as u64)),
            _ => CoreDumpValue::Missing,
        }
    };
    let out: Vec<CoreDumpValue> = values.iter().map(value).collect();
    for _ in out.iter().filter(|v| matches!(v, CoreDumpValue::Missing)) {
        notes.count("values are missing: not known, without a type, or of one that the format does not have");
    }
    out
}

/// Writes a value as wasmgdb reads it: integers with all their bytes, in little-endian order.
fn full_length(value: &CoreDumpValue, out: &mut Vec<u8>) {
    match value {
        CoreDumpValue::I32(n) => {
            out.push(0x7f);
            out.extend(n.to_le_bytes());
        }
        CoreDumpValue::I64(n) => {
            out.push(0x7e);
            out.extend(n.to_le_bytes());
        }
        other => other.encode(out),
    }
}

#[cfg(test)]
mod tests;
