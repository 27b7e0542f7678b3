//! Describes Wasmtime's code for a debugger.

mod instructions;
mod lines;

use self::instructions::Instructions;
use self::lines::Origins;
use super::image::{Function, FunctionKind};
use super::tables::code::Code;
use super::tables::frame_table::{FrameTable, InstPos, ProgramFrame, ProgramPoint};
use super::tables::points::{FrameAt, Points};
use super::walk::flow::{Flow, WINCH, beginning};
use super::walk::frame::{EPILOGUE, PROLOGUE, leaves, val_type};
use super::{Wasmtime, hints};
use crate::arch::{Machine, x64};
use crate::limits::{MAX_FRAME_CHANGES, MAX_IMAGE_BYTES, MAX_SYMBOL_PLACES};
use crate::process::Memory;
use crate::process::mapped_file::WithFile;
use crate::runtime::Runtime;
use crate::runtime::code_map::sources::{begin_behind_idle, end_prologue, lay_out};
use crate::runtime::code_map::{
    CodeMap, CompiledFunction, CompiledModule, Copied, Detail, FrameChange, Location, Operands, Variable,
};
use crate::wasm::ValType;
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Describes the code of all images.
pub(crate) fn code_map(runtime: &Wasmtime, detail: &Detail, memory: &dyn Memory) -> CodeMap {
    let mut map = CodeMap::default();
    let mut places_left = MAX_SYMBOL_PLACES;
    let running = running(runtime, memory);
    for (index, code) in runtime.codes.iter().enumerate() {
        let name = runtime.listed.get(code.first).map_or_else(|| "wasm".to_string(), |m| m.name.clone());
        match describe(code, &name, detail, &mut places_left, memory) {
            Ok(mut module) => {
                module.copied = content(code).map(|content| Copied { content, runs: running.contains(&index) });
                map.modules.push(module);
            }
            Err(why) => map.notes.push(format!("the code of {name} cannot be described: {why}")),
        }
    }
    map
}

/// A hash of what all copies of an image have in common. With `guest_debug` each store has its own copy (`code.rs:
/// StoreCode::new`). `None` if the image has no table of frames.
fn content(code: &Code) -> Option<u64> {
    let frames = code.frames()?;
    let text = code.image.text();
    let mut hasher = DefaultHasher::new();
    (frames, text.end - text.start).hash(&mut hasher);
    Some(hasher.finish())
}

/// Indexes of the images in which Wasm functions run: those with a frame on a stack, and those that an instance's own
/// pointers lead into.
fn running(runtime: &Wasmtime, memory: &dyn Memory) -> BTreeSet<usize> {
    if runtime.codes.iter().all(|code| code.frames().is_none()) {
        return BTreeSet::new();
    }
    let mut out = runtime.ran.borrow().clone();
    for instance in runtime.instances(memory) {
        let checked =
            runtime.described(instance.module).and_then(|d| d.validate(instance.address, &runtime.mappings, memory));
        if checked.is_ok_and(|checked| checked.tied) {
            out.extend(runtime.owner.get(instance.module));
        }
    }
    out
}

fn describe(
    code: &Code,
    name: &str,
    detail: &Detail,
    places_left: &mut usize,
    memory: &dyn Memory,
) -> Result<CompiledModule, String> {
    let text = code.image.text();
    let size = (text.end - text.start).min(MAX_IMAGE_BYTES);
    let with_file = WithFile { memory, file: code.file.as_ref() };
    let bytes = with_file.read_vec(text.start, size as usize).map_err(|e| e.to_string())?;
    let mut out = CompiledModule { name: name.to_string(), base: text.start, code: bytes, ..CompiledModule::default() };
    let mut origins = Origins::of(code);
    let count = code.functions.len();
    let mut end = 0;
    for function in code.functions.iter() {
        let function = &function;
        // The compiler writes no pieces that overlap. A piece that overlaps the one before it is not believed.
        if function.len == 0 || function.start < end {
            continue;
        }
        end = function.end();
        let start = text.start + u64::from(function.start);
        let range = (start, start + u64::from(function.len));
        let mut one = CompiledFunction {
            name: Some(function_name(code, function)),
            start,
            len: function.len,
            frame: frame_of(code, function, start, &out.code),
            wasm: function.kind.is_wasm(),
            described: function.kind.is_wasm() && detail.covers(range, count),
            ..CompiledFunction::default()
        };
        if one.described {
            let body = out.code.get(function.start as usize..function.end() as usize).unwrap_or_default();
            let table = code.frame_table().ok();
            let points = table.as_ref().map(|t| points(t, function, places_left)).unwrap_or_default();
            let settled = settled(code, function, &points, &out.code, places_left);
            if let Some(table) = &table {
                values(code, table, &points, &settled, function, body, &mut one);
            }
            if let FunctionKind::Wasm { module, function: index, .. } = &function.kind {
                let instructions = Instructions::of(body, &origins.known_starts(function));
                let pieces = origins.pieces(function, (*module, *index), table.as_ref(), &settled, &instructions);
                (one.lines, one.inlined) = lay_out(&pieces, one.len);
                // Lines inside an instruction are dropped, whatever a table says: a breakpoint there would make
                // another instruction of it.
                one.lines.retain(|line| line.offset == 0 || instructions.beginning_at(line.offset).is_some());
                begin_behind_idle(&mut one.lines, &origins.idle(function), one.len);
                let filled = one.variables.iter().find_map(|v| v.places.first()).map(|place| place.0);
                let filled = filled.or_else(|| one.lines.get(1).map(|line| line.offset));
                if let Some(body) = filled.and_then(|offset| instructions.from(offset)) {
                    end_prologue(&mut one.lines, body);
                }
            }
        }
        out.functions.push(one);
    }
    origins.finish(&mut out);
    Ok(out)
}

/// The name of a Wasm function, or one made from its index.
pub(crate) fn wasm_name(code: &Code, module: u32, index: u32, symbol: Option<&str>) -> String {
    let name = code.function_name(module as usize, index, symbol).map(|(name, _)| name);
    name.unwrap_or_else(|| format!("wasm_function_{index}"))
}

fn function_name(code: &Code, function: &Function) -> String {
    match &function.kind {
        FunctionKind::Wasm { module, function, name } => wasm_name(code, *module, *function, name.as_deref()),
        FunctionKind::ArrayToWasm { module, function } => {
            format!("entry_trampoline_of_{}", wasm_name(code, *module, *function, None))
        }
        FunctionKind::WasmToArray { signature } => format!("exit_trampoline_of_signature_{signature}"),
        FunctionKind::Builtin(name) => format!("wasmtime_builtin_{name}"),
        FunctionKind::ModuleStart { module } => format!("start_of_module_{module}"),
        FunctionKind::Component(name) | FunctionKind::Other(name) => name.clone(),
    }
}

/// How callers are found from each instruction of a function. Winch's code is followed at every instruction, since
/// its end cannot be told from other code by bytes. Of other code the beginning is followed, and what comes behind
/// each `mov rsp, rbp; pop rbp`. Where the code cannot be followed, the table decides. Without a table the frame
/// pointer is used, from where it is set up.
fn frame_of(code: &Code, function: &Function, start: u64, bytes: &[u8]) -> Vec<(u32, FrameChange)> {
    let len = function.len;
    let body = bytes.get(function.start as usize..function.end() as usize).unwrap_or_default();
    if body.starts_with(&WINCH)
        && let Some(flow) = Flow::new(start, body.to_vec(), hints(code, function))
    {
        let mut changes = flow.changes(MAX_FRAME_CHANGES);
        if changes.len() > MAX_FRAME_CHANGES {
            cut(&mut changes);
        }
        return changes;
    }
    let tabled = code.cfi.as_ref().and_then(|cfi| cfi.changes(Machine::X64, start));
    let followed = tabled.as_ref().and_then(|changes| beginning(start, body, changes.last()?.0));
    let mut changes = match followed.or(tabled) {
        Some(changes) => changes,
        None if body.starts_with(&PROLOGUE) => {
            let mut changes = vec![
                (0, FrameChange::Cfa(x64::RSP, 8)),
                (1, FrameChange::Cfa(x64::RSP, 16)),
                (1, FrameChange::Saved(x64::RBP, -16)),
                (4, FrameChange::Cfa(x64::RBP, 16)),
            ];
            let kept = [x64::RBX, x64::R12, x64::R13, x64::R14, x64::R15];
            changes.extend(kept.map(|reg| (4, FrameChange::Undefined(reg))));
            changes
        }
        None => return vec![(0, FrameChange::Undefined(x64::RIP))],
    };
    let epilogues = body.windows(EPILOGUE.len()).enumerate().filter(|(_, w)| *w == EPILOGUE);
    for (at, _) in epilogues {
        if changes.len() > MAX_FRAME_CHANGES {
            // There are too many changes: from here on nothing is said, since it might be wrong.
            changes.retain(|(o, _)| *o <= at as u32);
            changes.push((at as u32, FrameChange::Undefined(x64::RIP)));
            break;
        }
        let after = at as u32 + 4;
        let Some(length) = leaves(body.get(after as usize..).unwrap_or_default()) else { continue };
        let in_force = |register: bool| {
            changes.iter().rev().filter(|(o, _)| *o <= after).map(|(_, c)| *c).find(|c| match c {
                FrameChange::Cfa(..) | FrameChange::CfaDeref(..) => !register,
                FrameChange::Saved(reg, _) | FrameChange::Same(reg) | FrameChange::Undefined(reg) => {
                    register && *reg == x64::RBP
                }
            })
        };
        let (cfa, rbp) = (in_force(false), in_force(true));
        let position = changes.partition_point(|(o, _)| *o <= after);
        changes.insert(position, (after, FrameChange::Same(x64::RBP)));
        changes.insert(position, (after, FrameChange::Cfa(x64::RSP, 8)));
        let back = after + length;
        if back < len {
            let position = changes.partition_point(|(o, _)| *o <= back);
            for change in [rbp, cfa].into_iter().flatten() {
                changes.insert(position, (back, change));
            }
        }
    }
    changes
}

/// Cuts a list that is too long. From its last change on nothing is said, since it might be wrong.
fn cut(changes: &mut Vec<(u32, FrameChange)>) {
    let last = changes.last().map_or(0, |(at, _)| *at);
    changes.retain(|(at, _)| *at < last);
    changes.push((last, FrameChange::Undefined(x64::RIP)));
}

/// The points of a function in the frame table, at most `places_left`, from which they are subtracted.
fn points(table: &FrameTable<'_>, function: &Function, places_left: &mut usize) -> Vec<ProgramPoint> {
    let mut points = Vec::new();
    for at in table.first_at(function.start).. {
        let Ok(Some(point)) = table.point(at) else { break };
        if point.text_offset > function.end() || points.len() >= *places_left {
            break;
        }
        points.push(point);
    }
    *places_left -= points.len();
    points
}

/// The given points of a function, but the position of each frame is that of the operator that it is at (`u32::MAX`:
/// not known), and there is a point behind each call whose own point lies elsewhere.
fn settled(
    code: &Code,
    function: &Function,
    points: &[ProgramPoint],
    text: &[u8],
    places_left: &mut usize,
) -> Vec<ProgramPoint> {
    let read = |from: u32, to: u32| text.get(from as usize..to as usize).map(<[u8]>::to_vec);
    let (Ok(own), Ok(table)) = (Points::of(code, function, &read), code.frame_table()) else { return Vec::new() };
    let at_operators = |frames: &[FrameAt]| -> Vec<ProgramFrame> {
        frames.iter().map(|at| ProgramFrame { wasm_pc: at.place.unwrap_or(u32::MAX), ..at.program }).collect()
    };
    let first = table.first_at(function.start);
    let mut out = Vec::with_capacity(points.len());
    for (i, point) in points.iter().enumerate() {
        let frames = at_operators(&own.settle(first + i, point));
        out.push(ProgramPoint { frames, ..*point });
        let next = points.get(i + 1).map_or(function.end(), |next| next.text_offset);
        for end in calls(text, point.text_offset, next) {
            let has_own = end == next && points.get(i + 1).is_some_and(|next| next.position == InstPos::Post);
            if has_own || *places_left == 0 {
                continue;
            }
            if let Ok(recorded) = own.behind_call(end) {
                let frames = at_operators(&recorded.frames);
                out.push(ProgramPoint { text_offset: end, position: InstPos::Post, frames });
                *places_left -= 1;
            }
        }
    }
    out
}

/// Offsets of the ends of the calls that the code between two offsets comes to if it takes no jump.
fn calls(text: &[u8], from: u32, to: u32) -> Vec<u32> {
    let code = text.get(from as usize..to as usize).unwrap_or_default();
    let mut decoder = Decoder::with_ip(64, code, u64::from(from), DecoderOptions::NONE);
    let mut ends = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        match instruction.flow_control() {
            _ if instruction.is_invalid() => break,
            FlowControl::Next | FlowControl::ConditionalBranch => {}
            FlowControl::Call | FlowControl::IndirectCall => ends.extend(u32::try_from(instruction.next_ip()).ok()),
            _ => break,
        }
    }
    ends
}

/// Adds the locals and operand stacks to `one`, where the compiler recorded them. The CFA is the frame pointer plus
/// 16.
fn values(
    code: &Code,
    table: &FrameTable<'_>,
    points: &[ProgramPoint],
    settled: &[ProgramPoint],
    function: &Function,
    body: &[u8],
    one: &mut CompiledFunction,
) {
    let FunctionKind::Wasm { module, function: index, .. } = &function.kind else { return };
    let own = |key: &super::image::info::FuncKey| {
        key.namespace == *module
            && code.imports(*module as usize).is_some_and(|n| n.saturating_add(key.index) == *index)
    };
    let Some(outer) = points.last().and_then(|last| last.frames.last()) else { return };
    let Ok(descriptor) = table.descriptor(outer.descriptor) else { return };
    if !own(&descriptor.function) {
        return;
    }
    let place = |offset: u32| i64::from(offset) - i64::from(descriptor.slot_to_fp_offset) - 16;
    let params = code.params(*module as usize, *index).unwrap_or(0);
    let filled = filled(table, function, body, points);
    let wasm = code.wasm.get(*module as usize).and_then(Option::as_ref);
    for (i, local) in descriptor.locals.iter().enumerate() {
        let named = wasm.and_then(|w| w.local_name(*index, i as u32)).map(str::to_string);
        let ty = plain(val_type(local.ty));
        let places = match ty {
            Some(_) => filled.iter().map(|&(from, to)| (from, to, Location::Frame(place(local.offset)))).collect(),
            None => Vec::new(),
        };
        one.variables.push(Variable {
            name: named.unwrap_or_else(|| format!("local{i}")),
            ty,
            parameter: i < params,
            places,
        });
    }
    let mut last = 0;
    for point in settled {
        let Some(frame) = point.frames.last().filter(|_| point.position == InstPos::Post && point.frames.len() == 1)
        else {
            continue;
        };
        let Some(stack) =
            descriptor.stack(frame.shape).filter(|s| !s.is_empty() && frame.descriptor == outer.descriptor)
        else {
            continue;
        };
        let at = point.text_offset - function.start;
        let range = (at.saturating_sub(1), at + 1);
        if range.0 < last {
            continue;
        }
        last = range.1;
        let operands = stack.iter().map(|slot| {
            let ty = plain(val_type(slot.ty));
            (ty, ty.map(|_| Location::Frame(place(slot.offset))))
        });
        one.operands.push(Operands { range, operands: operands.collect() });
    }
}

/// Ranges of offsets in the function at which the frame's slot holds the locals. A range goes from each point to the
/// next, but stops at the end of the frame. What lies behind that end is code that was moved out of the way. There a
/// range begins with the call before its first point.
fn filled(table: &FrameTable<'_>, function: &Function, body: &[u8], points: &[ProgramPoint]) -> Vec<(u32, u32)> {
    let mut out: Vec<(u32, u32)> = Vec::new();
    for (i, point) in points.iter().enumerate() {
        let from = point.text_offset - function.start;
        let next = points.get(i + 1).map_or(function.len, |p| p.text_offset - function.start);
        if !table.is_filled(function.start, point) || next <= from {
            continue;
        }
        let rest = body.get(from as usize..next as usize).unwrap_or_default();
        let end = rest.windows(EPILOGUE.len()).position(|w| w == EPILOGUE).map(|at| from + at as u32);
        let emptied = points.get(i + 1).is_some_and(|p| !table.is_filled(function.start, p));
        let to = end.unwrap_or(if emptied { from + 1 } else { next });
        match out.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            last => {
                let after = last.map_or(0, |l| l.1);
                let call = if point.position == InstPos::Post { from.saturating_sub(1) } else { from };
                out.push((call.max(after), to));
            }
        }
    }
    out.retain(|(from, to)| from < to);
    out
}

/// The type, if a symbol file has it. References of other types are left out, since they have more than one size.
fn plain(ty: ValType) -> Option<ValType> {
    (ty != ValType::Ref).then_some(ty)
}
