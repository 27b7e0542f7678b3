//! singlepass code described for a debugger: the facts that [`super::frame`] uses at one pc, for all pcs.
//!
//! - The caller follows from the [`Shape`] at every pc.
//! - Locals are in their fixed homes from the end of the prologue to the epilogue, and in the prologue where they
//!   come from.
//! - Operands are known at the points of the state map and nowhere else.
//!
//! A function that is not laid out by this backend is described at its points only. Elsewhere it is stated that its
//! caller is not known, since a debugger without any statement would guess.

use super::Singlepass;
use super::module::Module;
use super::module::code;
use super::module::code::{Home, InitialPlace, Shape};
use super::module::places::Places;
use crate::arch::x64;
use crate::limits::{MAX_IMAGE_BYTES, MAX_SLOTS, MAX_SYMBOL_PLACES, MAX_TRAMPOLINE_BYTES};
use crate::process::Memory;
use crate::runtime::code_map::sources::{Scope, Sources, end_prologue, lay_out};
use crate::runtime::code_map::{
    CodeMap, CompiledFunction, CompiledModule, Detail, FrameChange, Line, Location, Operand, Operands, Variable,
};
use crate::state::diff::{Budget, StateCursor, StateError};
use crate::state::x64::from_index;
use crate::state::{
    FUNCTION_HEADER, FunctionStateMap, MachineState, MachineValue, PointKind, RegisterIndex, WasmAbstractValue,
};
use crate::wasm::ValType;
use crate::wasm::WasmModule;
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
use std::collections::{BTreeMap, HashMap};

/// Describes the code of all modules.
pub fn code_map(runtime: &Singlepass, detail: &Detail, memory: &dyn Memory) -> CodeMap {
    let mut map = CodeMap::default();
    let mut places_left = MAX_SYMBOL_PLACES;
    for (index, module) in runtime.code_modules().iter().enumerate() {
        let name = runtime.listed.get(index).map_or_else(|| format!("module{index}"), |m| m.name.clone());
        match describe(module, name.clone(), detail, &mut places_left, memory) {
            Ok(compiled) => map.modules.push(compiled),
            Err(why) => map.notes.push(format!("the code of {name} cannot be described: {why}")),
        }
    }
    if places_left == 0 {
        map.notes.push("the operand stacks are too many to describe: those of the last functions are left out".into());
    }
    map
}

fn describe(
    module: &Module,
    name: String,
    detail: &Detail,
    places_left: &mut usize,
    memory: &dyn Memory,
) -> Result<CompiledModule, String> {
    let base = module.code.0;
    let size = (module.map.total_size() as u64).min(module.code.1.saturating_sub(base)).min(MAX_IMAGE_BYTES);
    // Where memory cannot be read, the cached image has what the runtime wrote there; a debugger's breakpoints are
    // not in it.
    let code = match memory.read_vec(base, size as usize) {
        Ok(code) => code,
        Err(e) => match module.image_code.as_ref().and_then(|c| c.get(..size as usize)) {
            Some(code) => code.to_vec(),
            None => return Err(e.to_string()),
        },
    };
    let mut out = CompiledModule { name, base, code: Vec::new(), ..CompiledModule::default() };
    trampolines(module, &code, &mut out);
    let maps = module.map.all(memory)?;
    let count = maps.local_functions.len();
    let wasm = module.wasm.as_deref();
    let mut sources = Sources::new(wasm);
    let mut budget = Budget::default();
    for (&start, map) in &maps.local_functions {
        let end = module.map.function_end(start).min(code.len());
        let Some(bytes) = code.get(start..end).filter(|b| !b.is_empty()) else { continue };
        let Ok(len) = u32::try_from(bytes.len()) else { continue };
        let local = map.local_function_id as u32;
        let function = module.import_count.checked_add(local);
        let address = base.wrapping_add(start as u64);
        let named = function.and_then(|f| module.function_name(f)).map(|(name, _)| name);
        let mut one = CompiledFunction {
            name: Some(named.unwrap_or_else(|| match function {
                Some(f) => format!("wasm_function_{f}"),
                None => format!("wasm_local_function_{local}"),
            })),
            start: address,
            len,
            wasm: true,
            described: detail.covers((address, address.saturating_add(u64::from(len))), count),
            ..CompiledFunction::default()
        };
        let shape = Shape::decode(bytes, map.locals.len());
        match &shape {
            Ok(shape) => one.frame = frame_of(shape, bytes),
            Err(_) => one.frame.push((0, FrameChange::Undefined(x64::RIP))),
        }
        if one.described && module.problem(start as u64).is_none() {
            let types = module.local_types(function, local);
            let params = function.and_then(|f| module.params(f));
            if let Ok(shape) = &shape {
                one.variables = variables(module, shape, function, map, &types, params);
            }
            let here = Here { module, map, start, len, local };
            let states = points(&here, places_left, &mut budget);
            if shape.is_err() {
                frame_at_points(&here, &states, &mut one.frame);
            }
            one.operands = operands(&here, &states);
            if let (Some(wasm), Ok(shape)) = (wasm, &shape) {
                let places = Places::of(wasm, map, local, start, bytes, shape);
                one.lines = lines(wasm, &mut sources, &here, &places, shape);
            }
        }
        out.functions.push(one);
    }
    sources.finish(&mut out);
    out.code = code;
    Ok(out)
}

/// Describes the trampolines of the imports. They load the target and jump; some make room on the stack meanwhile.
fn trampolines(module: &Module, code: &[u8], out: &mut CompiledModule) {
    let first = module.map.starts().first().copied().unwrap_or(code.len());
    let imports = module.function_offsets.get(..module.import_count as usize).unwrap_or(&[]);
    for (i, &start) in imports.iter().enumerate() {
        let next = imports.get(i + 1).copied().unwrap_or(first as u64).min(first as u64);
        let Some(bytes) = usize::try_from(start).ok().and_then(|s| code.get(s..usize::try_from(next).ok()?)) else {
            continue;
        };
        if bytes.is_empty() || bytes.len() as u64 > MAX_TRAMPOLINE_BYTES {
            continue;
        }
        let mut frame = Vec::new();
        let mut depth = 0i32;
        let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
        while decoder.can_decode() {
            let i = decoder.decode();
            let by = match (i.mnemonic(), i.op0_kind() == OpKind::Register && i.op0_register() == Register::RSP) {
                (Mnemonic::Sub, true) => i.try_immediate(1).ok().and_then(|n| i32::try_from(n).ok()),
                (Mnemonic::Add, true) => i.try_immediate(1).ok().and_then(|n| i32::try_from(n).ok()).map(|n| -n),
                (Mnemonic::Push | Mnemonic::Pop | Mnemonic::Call, _) | (_, true) => None,
                _ => Some(0),
            };
            // This backend moves rsp no further than this, and in no other way.
            let moved = by.and_then(|by| depth.checked_add(by)).filter(|d| (0..=0x28).contains(d));
            match moved {
                Some(d) if d == depth => {}
                Some(d) => {
                    depth = d;
                    frame.push((i.next_ip() as u32, FrameChange::Cfa(x64::RSP, 8 + d)));
                }
                None => {
                    frame.push((i.ip() as u32, FrameChange::Undefined(x64::RIP)));
                    break;
                }
            }
        }
        let name = module.function_name(i as u32).map_or_else(|| format!("import_{i}"), |(name, _)| name);
        out.functions.push(CompiledFunction {
            name: Some(format!("{name}.trampoline")),
            start: out.base.wrapping_add(start),
            len: bytes.len() as u32,
            frame,
            ..CompiledFunction::default()
        });
    }
}

/// How callers are found in a function of this shape, for each offset from which something changes.
fn frame_of(shape: &Shape, code: &[u8]) -> Vec<(u32, FrameChange)> {
    let (pushed, framed) = shape.entry();
    let mut out = vec![
        (pushed as u32, FrameChange::Cfa(x64::RSP, 16)),
        (pushed as u32, FrameChange::Saved(x64::RBP, -16)),
        (framed as u32, FrameChange::Cfa(x64::RBP, 16)),
    ];
    for (&(reg, offset), &end) in shape.preserved().iter().zip(shape.pushes()) {
        out.push((end as u32, FrameChange::Saved(reg, (offset - 16) as i32)));
    }
    if let Some((reset, popped, end)) = shape.epilogue() {
        // A popped word is below rsp, where the next signal may overwrite it. The register itself has the caller's
        // value again.
        let mut decoder = Decoder::with_ip(64, code.get(reset as usize..).unwrap_or(&[]), reset, DecoderOptions::NONE);
        for &(reg, _) in shape.preserved().iter().rev() {
            let pop = decoder.decode();
            out.push((pop.next_ip() as u32, FrameChange::Same(reg)));
        }
        out.push((popped as u32, FrameChange::Cfa(x64::RSP, 8)));
        out.push((popped as u32, FrameChange::Same(x64::RBP)));
        // Code behind the return belongs to no function that is known.
        if (end as usize) < code.len() {
            out.push((end as u32, FrameChange::Undefined(x64::RIP)));
        }
    }
    out
}

fn variables(
    module: &Module,
    shape: &Shape,
    function: Option<u32>,
    map: &FunctionStateMap,
    types: &[ValType],
    params: Option<usize>,
) -> Vec<Variable> {
    // In the epilogue the homes are given up one by one, so locals are described up to its first pop.
    let end = shape.epilogue().map_or(u32::MAX, |(reset, ..)| reset as u32);
    shape
        .moves()
        .iter()
        .enumerate()
        .take(MAX_SLOTS)
        .map(|(index, &(moved, source))| {
            let home = match code::home(index) {
                Home::Register(reg) => Location::Register(reg),
                // [rbp + d] is [CFA - 16 + d].
                Home::Frame(d) => Location::Frame(d - 16),
            };
            let before = match source {
                InitialPlace::Register(reg) => Location::Register(reg),
                InitialPlace::Argument(d) => Location::Frame(d),
                InitialPlace::Zero => Location::Constant(0),
            };
            let places = match map.locals.get(index) {
                Some(WasmAbstractValue::Const(bits)) => vec![(0, end, Location::Constant(*bits))],
                _ => vec![(0, moved as u32, before), (moved as u32, end, home)],
            };
            let named = function.and_then(|f| module.wasm.as_ref()?.local_name(f, index as u32));
            Variable {
                name: named.filter(|n| !n.is_empty()).map_or_else(|| format!("local{index}"), str::to_string),
                ty: types.get(index).copied(),
                parameter: match params {
                    Some(count) => index < count,
                    None => !matches!(source, InitialPlace::Zero),
                },
                places: places.into_iter().filter(|(from, to, _)| from < to).collect(),
            }
        })
        .collect()
}

/// A function that is being described.
struct Here<'m> {
    module: &'m Module,
    map: &'m FunctionStateMap,
    /// Offset of the function's start in the module's code.
    start: usize,
    len: u32,
    local: u32,
}

/// A point with the state that is recorded for it. `offset` is that of its address from the start of the function.
struct State {
    offset: u32,
    kind: PointKind,
    operator: usize,
    state: MachineState,
}

/// The points of a function that have a state, ascending. Where several are at one place, the one is taken that
/// [`crate::state::ModuleStateMap::lookup`] takes.
fn points(here: &Here<'_>, left: &mut usize, budget: &mut Budget) -> Vec<State> {
    let mut chosen: BTreeMap<u32, (PointKind, usize)> = BTreeMap::new();
    for kind in PointKind::ORDER {
        for (&at, info) in here.map.table(kind) {
            let offset = at.checked_sub(here.start).and_then(|o| u32::try_from(o).ok()).filter(|o| *o < here.len);
            // Points are return addresses of calls and starts of instructions. An entry that covers more bytes is not
            // of this backend.
            let (Some(offset), true) = (offset, info.end_offset == at.saturating_add(1)) else { continue };
            if info.diff_id != usize::MAX {
                chosen.entry(offset).or_insert((kind, info.diff_id));
            }
        }
    }
    let mut wanted: Vec<(usize, u32, PointKind)> = chosen.iter().map(|(&o, &(k, diff))| (diff, o, k)).collect();
    wanted.sort_unstable_by_key(|(diff, offset, _)| (*diff, *offset));
    let mut cursor = StateCursor::new(here.map);
    let mut out = Vec::new();
    for (diff, offset, kind) in wanted {
        if *left == 0 {
            break;
        }
        match cursor.state(diff, budget) {
            Ok(state) => {
                // Many points may share one large state, so each of them counts with its size.
                *left = left.saturating_sub(1 + state.stack_values.len() + state.wasm_stack.len());
                out.push(State { offset, kind, operator: state.wasm_inst_offset, state: state.clone() });
            }
            Err(StateError::WorkLimit) => {
                *left = 0;
                break;
            }
            // The state is broken, so nothing is known at this point.
            Err(_) => {}
        }
    }
    out.sort_unstable_by_key(|s| s.offset);
    out
}

/// The range of offsets of a point: the first byte of an instruction, and for a call also the byte before, where
/// debuggers look a caller up.
fn range(offset: u32, kind: PointKind) -> (u32, u32) {
    (if kind == PointKind::Call { offset.saturating_sub(1) } else { offset }, offset.saturating_add(1))
}

/// Adds to `out` what the states of a function that is not laid out as expected say about its caller, at its points
/// only.
fn frame_at_points(here: &Here<'_>, states: &[State], out: &mut Vec<(u32, FrameChange)>) {
    let mut done = 0;
    for State { offset, kind, state, .. } in states {
        let (from, to) = range(*offset, *kind);
        let from = from.max(done);
        done = to;
        out.push((from, FrameChange::Cfa(x64::RBP, 16)));
        out.push((from, FrameChange::Saved(x64::RIP, -8)));
        out.push((from, FrameChange::Saved(x64::RBP, -16)));
        // Another backend may use registers without saving them, as `frame.rs` assumes too.
        let homes = code::REGISTER_HOMES.into_iter().chain([x64::R15]);
        out.extend(homes.map(|reg| (from, FrameChange::Undefined(reg))));
        let mut saved = Vec::new();
        for_each_word(here.map, state, |value, offset| {
            if let (MachineValue::PreserveRegister(index), Ok(offset)) = (value, i32::try_from(offset))
                && let Some(reg) = from_index(*index).filter(|reg| reg.word().is_some())
            {
                saved.push((reg, offset));
            }
        });
        for &(reg, offset) in saved.iter().filter(|(_, offset)| offset % 8 == 0) {
            out.push((from, FrameChange::Saved(reg, offset)));
        }
        // None of this holds one byte further on.
        out.push((to, FrameChange::Undefined(x64::RIP)));
        for (reg, _) in saved {
            out.push((to, FrameChange::Undefined(reg)));
        }
    }
    out.sort_by_key(|(offset, _)| *offset);
}

/// Calls `visit` for each word of a frame with its byte offset from the CFA, innermost first, as the runtime reads
/// them.
fn for_each_word(map: &FunctionStateMap, state: &MachineState, mut visit: impl FnMut(&MachineValue, i64)) {
    let shadow = (map.shadow_size / 8).min(MAX_SLOTS) as i64 * 8;
    let mut offset = -16i64;
    let mut words = Vec::with_capacity(state.stack_values.len());
    for value in &state.stack_values {
        offset -= if *value == MachineValue::ExplicitShadow { shadow } else { 8 };
        words.push((value, offset));
    }
    for (value, offset) in words.into_iter().rev() {
        visit(value, offset);
    }
}

fn operands(here: &Here<'_>, states: &[State]) -> Vec<Operands> {
    let mut types: HashMap<(usize, PointKind), Vec<ValType>> = HashMap::new();
    if let Some(wasm) = &here.module.wasm {
        let mut wanted: Vec<(u64, PointKind)> = states
            .iter()
            .filter(|s| s.operator != FUNCTION_HEADER && !s.state.wasm_stack.is_empty())
            .map(|s| (s.operator as u64, s.kind))
            .collect();
        wanted.sort_unstable();
        if let Some(&(last, _)) = wanted.last() {
            wasm.each_stack_types(here.local, |index, kind, compute| {
                if wanted.binary_search(&(index, kind)).is_ok()
                    && let Some(found) = compute()
                {
                    types.insert((index as usize, kind), found);
                }
                index < last
            });
        }
    }
    let mut out: Vec<Operands> = Vec::new();
    for State { offset, kind, operator, state } in states {
        let places = places(here.map, state, *kind);
        let types = types.get(&(*operator, *kind)).filter(|t| t.len() == places.len());
        if places.is_empty() {
            continue;
        }
        let (from, to) = range(*offset, *kind);
        let from = out.last().map_or(from, |o| from.max(o.range.1));
        let operands: Vec<Operand> =
            places.into_iter().enumerate().map(|(i, p)| (types.and_then(|t| t.get(i).copied()), p)).collect();
        if from < to {
            out.push(Operands { range: (from, to), operands });
        }
    }
    out
}

/// Where each operand is. Places are read in the order of `state.rs: read_stack`, in which later ones win.
fn places(map: &FunctionStateMap, state: &MachineState, kind: PointKind) -> Vec<Option<Location>> {
    let mut out: Vec<Option<Location>> = state
        .wasm_stack
        .iter()
        .map(|v| match v {
            WasmAbstractValue::Const(bits) => Some(Location::Constant(*bits)),
            WasmAbstractValue::Runtime => None,
        })
        .collect();
    for (i, value) in state.register_values.iter().enumerate() {
        let MachineValue::WasmStack(index) = value else { continue };
        let Some(reg) = from_index(RegisterIndex(i)) else { continue };
        // A callee does not preserve this register. A value that survives the call is written to the stack too.
        if kind == PointKind::Call && !reg.info().callee_saved {
            continue;
        }
        if let Some(place) = out.get_mut(*index) {
            *place = Some(Location::Register(reg));
        }
    }
    for_each_word(map, state, |value, offset| match value {
        MachineValue::WasmStack(index) => {
            if let Some(place) = out.get_mut(*index) {
                *place = Some(Location::Frame(offset));
            }
        }
        // Half a word is not a place that can be described here; this backend never writes one.
        MachineValue::TwoHalves(halves) => {
            for half in [&halves.0, &halves.1] {
                if let MachineValue::WasmStack(index) = half
                    && let Some(place) = out.get_mut(*index)
                {
                    *place = None;
                }
            }
        }
        _ => {}
    });
    for (&word, value) in &state.prev_frame {
        if let MachineValue::WasmStack(index) = value
            && let Some(place) = out.get_mut(*index)
        {
            *place = i64::try_from(word).ok().and_then(|w| w.checked_mul(8)).map(Location::Frame);
        }
    }
    out.truncate(out.len().saturating_sub(state.wasm_stack_private_depth));
    out
}

/// The rows of a function's line table. Each begins where [`Places`] has the operator that it is for.
fn lines(wasm: &WasmModule, sources: &mut Sources<'_>, here: &Here<'_>, places: &Places, shape: &Shape) -> Vec<Line> {
    let Some(operators) = wasm.operators(here.local) else { return Vec::new() };
    let mut piece = |place: Option<u64>| -> Vec<Scope> {
        // Between points the operator is not exactly known, so inlined functions are not described.
        place.and_then(|offset| sources.scopes(offset).pop()).into_iter().collect()
    };
    let first = piece(wasm.body_offset(here.local));
    let first = if first.is_empty() { piece(operators.first().copied()) } else { first };
    let marks = places.marks().iter();
    let marks = marks.map(|(offset, mark)| (*offset, piece(operators.get(mark.operator as usize).copied())));
    let pieces: Vec<(u32, Vec<Scope>)> = std::iter::once((0, first)).chain(marks).collect();
    let (mut lines, _) = lay_out(&pieces, here.len);
    end_prologue(&mut lines, shape.body() as u32);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Reg;
    use crate::process::MemoryError;
    use crate::runtime::singlepass::module::code::tests::nine_locals;
    use crate::runtime::singlepass::module::code::{Cfa, Stretch};
    use crate::state::ModuleStateMap;
    use crate::state::synthetic::{self, END, START, state};
    use crate::state::x64::to_index;
    use std::rc::Rc;
    use std::sync::Arc;

    const BASE: u64 = 0x7000_0000;

    struct NoMemory;

    impl Memory for NoMemory {
        fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
            Err(MemoryError::Unmapped { address, len: buf.len() })
        }
    }

    /// Describes a module whose code is nops up to its only function, followed by the function's code.
    fn described(map: ModuleStateMap, code: &[u8], detail: &Detail) -> CompiledModule {
        let size = map.total_size as u64;
        let map = crate::runtime::singlepass::module::maps::Maps::whole(Arc::new(map));
        let mut module = Module::new((BASE, BASE + size), map, Vec::new(), 0, &NoMemory);
        let mut bytes = vec![0x90; START];
        bytes.extend(code);
        bytes.resize(size as usize, 0xcc);
        module.image_code = Some(Rc::from(bytes));
        describe(&module, "m".to_string(), detail, &mut 1000, &NoMemory).unwrap()
    }

    /// What the changes up to an offset amount to: the CFA and the rule of each register.
    fn row(function: &CompiledFunction, offset: u64) -> (FrameChange, HashMap<Reg, FrameChange>) {
        let (mut cfa, mut rules) = (FrameChange::Cfa(x64::RSP, 8), HashMap::new());
        for &(_, change) in function.frame.iter().filter(|(from, _)| u64::from(*from) <= offset) {
            match change {
                FrameChange::Cfa(..) | FrameChange::CfaDeref(..) => cfa = change,
                FrameChange::Saved(reg, _) | FrameChange::Same(reg) | FrameChange::Undefined(reg) => {
                    rules.insert(reg, change);
                }
            }
        }
        (cfa, rules)
    }

    fn nine() -> (ModuleStateMap, Vec<u8>, Vec<u64>) {
        let (code, at) = nine_locals();
        let mut map = synthetic::Module::new(9).build();
        map.total_size = START + code.len();
        (map, code, at)
    }

    #[test]
    fn frames_are_those_of_the_shape_at_every_instruction() {
        let (map, code, at) = nine();
        let module = described(map, &code, &Detail::All);
        let [function] = module.functions.as_slice() else { panic!("{module:?}") };
        assert_eq!((function.start, function.len as usize), (BASE + START as u64, code.len()));
        assert!(function.frame.is_sorted_by_key(|(offset, _)| *offset));
        let shape = Shape::decode(&code, 9).unwrap();
        let end = shape.epilogue().unwrap().2;
        for &offset in at.iter().filter(|o| **o < end) {
            let here = shape.at(offset);
            let (cfa, rules) = row(function, offset);
            let wanted = match here.cfa {
                Cfa::Rsp(n) => FrameChange::Cfa(x64::RSP, n as i32),
                Cfa::Rbp => FrameChange::Cfa(x64::RBP, 16),
            };
            assert_eq!(cfa, wanted, "+{offset:#x}");
            let saved = matches!(rules.get(&x64::RBP), Some(FrameChange::Saved(_, -16)));
            assert_eq!(saved, here.rbp_saved, "+{offset:#x}");
            assert_eq!(rules.get(&x64::RIP), None);
            if here.stretch == Stretch::Body || (here.stretch == Stretch::Prologue && offset >= at[8]) {
                for (reg, slot) in shape.preserved() {
                    assert_eq!(rules[reg], FrameChange::Saved(*reg, *slot as i32 - 16), "+{offset:#x}");
                }
            }
        }
        // At this offset the first push is done and the second is not; the next check is between the pops.
        assert!(matches!(row(function, at[4]).1.get(&x64::R12), Some(FrameChange::Saved(..))));
        assert_eq!(row(function, at[4]).1.get(&x64::R13), None);
        let pop_rbx = row(function, at[24]).1;
        assert_eq!(pop_rbx[&x64::R15], FrameChange::Same(x64::R15));
        assert!(matches!(pop_rbx[&x64::RBX], FrameChange::Saved(..)));
        assert_eq!(row(function, end).1[&x64::RIP], FrameChange::Undefined(x64::RIP));
    }

    #[test]
    fn locals_are_followed_from_their_source_to_their_home_and_no_further() {
        let (map, code, at) = nine();
        let module = described(map, &code, &Detail::All);
        let function = &module.functions[0];
        let place = |index: usize, offset: u64| {
            let places = &function.variables[index].places;
            places.iter().find(|(from, to, _)| (u64::from(*from)..u64::from(*to)).contains(&offset)).map(|p| p.2)
        };
        let lea = at[22];
        for (index, moved, source, home) in [
            (0, at[9], Location::Register(x64::RSI), Location::Register(x64::R12)),
            (4, at[13], Location::Register(x64::R9), Location::Frame(-24)),
            (5, at[15], Location::Frame(0), Location::Frame(-32)),
            (6, at[17], Location::Frame(8), Location::Frame(-40)),
            (7, at[19], Location::Constant(0), Location::Frame(-48)),
        ] {
            assert_eq!((place(index, 0), place(index, moved - 1)), (Some(source), Some(source)), "{index}");
            assert_eq!((place(index, moved), place(index, lea)), (Some(home), Some(home)), "{index}");
            assert_eq!(place(index, at[23]), None, "{index}");
        }
        let parameters: Vec<bool> = function.variables.iter().map(|v| v.parameter).collect();
        assert_eq!(parameters, [true, true, true, true, true, true, true, false, false]);
    }

    #[test]
    fn operands_are_where_the_states_say_and_nowhere_else() {
        let (mut map, code, at) = nine();
        let call = START + at[21] as usize;
        let mut at_call = state(3, vec![MachineValue::Undefined, MachineValue::WasmStack(1)]);
        at_call.wasm_stack[0] = WasmAbstractValue::Const(340);
        // These registers are lost in the callee.
        at_call.register_values[6] = MachineValue::WasmStack(2);
        at_call.register_values[7] = MachineValue::WasmStack(0);
        let mut at_trap = at_call.clone();
        at_trap.wasm_stack_private_depth = 1;
        let built = synthetic::Module::new(9)
            .point(PointKind::Call, call, &at_call)
            .point(PointKind::Trappable, call, &at_trap)
            .point(PointKind::Trappable, call + 8, &at_trap)
            .build();
        map.local_functions = built.local_functions;
        let module = described(map, &code, &Detail::All);
        let found: Vec<_> = module.functions[0].operands.iter().map(|o| (o.range, o.operands.clone())).collect();
        let offset = at[21] as u32;
        let slot = (None, Some(Location::Frame(-32)));
        let at_call = vec![(None, Some(Location::Constant(340))), slot, (None, None)];
        let at_trap = vec![(None, Some(Location::Register(x64::RDI))), slot];
        // Where a call and a trap are at one place, the call is taken. A caller is looked up one byte before.
        assert_eq!(found, [((offset - 1, offset + 1), at_call), ((offset + 8, offset + 9), at_trap)]);
    }

    #[test]
    fn other_code_is_described_at_its_points_only() {
        let point = 0x80;
        let words = vec![MachineValue::Undefined, MachineValue::PreserveRegister(to_index(x64::R12).unwrap())];
        let map = synthetic::Module::new(1).point(PointKind::Call, point, &state(1, words)).build();
        let module = described(map, &vec![0x90; END - START], &Detail::All);
        let function = &module.functions[0];
        assert_eq!(function.variables, []);
        let offset = (point - START) as u64;
        for away in [0, offset - 2, offset + 1, offset + 50] {
            assert_eq!(row(function, away).1[&x64::RIP], FrameChange::Undefined(x64::RIP), "{away:#x}");
        }
        for here in [offset - 1, offset] {
            let (cfa, rules) = row(function, here);
            assert_eq!(cfa, FrameChange::Cfa(x64::RBP, 16));
            assert_eq!(rules[&x64::RIP], FrameChange::Saved(x64::RIP, -8));
            assert_eq!(rules[&x64::RBP], FrameChange::Saved(x64::RBP, -16));
            assert_eq!(rules[&x64::R12], FrameChange::Saved(x64::R12, -32));
            // This register was saved by nobody, and perhaps used.
            assert_eq!(rules[&x64::RBX], FrameChange::Undefined(x64::RBX));
        }
    }

    #[test]
    fn many_points_of_one_large_state_are_not_all_described() {
        let (mut map, code, _) = nine();
        let large = state(100, vec![MachineValue::Undefined; 100]);
        let mut built = synthetic::Module::new(9).point(PointKind::Trappable, START + 100, &large);
        for at in 0..40 {
            built = built.entry(PointKind::Trappable, START + 101 + at, 0);
        }
        map.local_functions = built.build().local_functions;
        // The tests describe at most 1000 places.
        assert_eq!(described(map, &code, &Detail::All).functions[0].operands.len(), 5);
    }

    #[test]
    fn functions_that_are_too_many_keep_name_and_frame() {
        let (map, code, _) = nine();
        let detail = Detail::Some { up_to: 0, addresses: vec![1] };
        let module = described(map.clone(), &code, &detail);
        let function = &module.functions[0];
        assert!(!function.described && function.variables.is_empty());
        assert!(function.name.is_some() && !function.frame.is_empty());
        let detail = Detail::Some { up_to: 0, addresses: vec![BASE + START as u64] };
        assert!(described(map, &code, &detail).functions[0].described);
    }
}
