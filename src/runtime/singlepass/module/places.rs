//! Tells for every instruction of a singlepass function which operator it was made from.
//!
//! The state map has the operators of calls, divisions, loops and `unreachable` only. Loads, stores and conversions
//! trap without a point, so the code between two points is read itself: each access of the linear memory begins with
//! a load of the memory's base from the context (`codegen_x64.rs: emit_memory_op`), and each check ends in a `ud2` of
//! its own (`emit_conditional_trap`). Where these instructions follow each other as the operators in the `.wasm` do,
//! each is taken to be of the operator in its position. Where they do not, nothing is concluded from them.
//!
//! The lines that a debugger gets and what a report says of a frame both come from here.

use super::code::Shape;
use super::ctx;
use crate::state::map::PointKind;
use crate::state::model::FunctionStateMap;
use crate::state::{FUNCTION_HEADER, SuspendOffset};
use crate::wasm::{Site, WasmModule};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use std::collections::{BTreeMap, HashMap};

/// Which operator a piece of code was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Number of the operator in its function.
    pub operator: u64,
    /// Whether the code is this very operator's. If not, it may also be a later operator's, up to the one of the next
    /// mark.
    pub exact: bool,
}

/// The marks of one function, each with the offset from which it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    marks: Vec<(u32, Mark)>,
}

impl Places {
    /// The marks of the local function `local`, whose machine code is `code` and begins at code offset `start`.
    pub fn of(
        wasm: &WasmModule,
        map: &FunctionStateMap,
        local: u32,
        start: usize,
        code: &[u8],
        shape: &Shape,
    ) -> Places {
        let Some(operators) = wasm.operators(local) else { return Places::default() };
        let instructions = instructions(code, shape.body());
        let by_point = operators_of_points(map);
        let index = |offset: u32| instructions.binary_search_by_key(&offset, |i| i.ip() as u32).ok();
        let at = |i: usize| instructions.get(i).map(|i: &Instruction| i.ip() as u32);
        let mut marks: BTreeMap<u32, Mark> = BTreeMap::new();
        let body = shape.body() as u32;
        marks.insert(body, Mark { operator: 0, exact: false });
        // Each stretch is the code behind a point: where it begins, and the first operator that it can be of. It ends
        // where the next stretch begins, so it includes the code of the next point's own operator.
        let mut stretches: Vec<(u32, u64)> = vec![(body, 0)];
        for kind in PointKind::ORDER {
            for &place in map.table(kind).keys() {
                let Some(offset) = place.checked_sub(start).and_then(|o| u32::try_from(o).ok()) else { continue };
                let Some(&operator) = by_point.get(&(kind, place)) else { continue };
                let operator = operator as u64;
                let Some(i) = index(offset) else { continue };
                let own = if kind == PointKind::Call { i.checked_sub(1) } else { Some(i) };
                if let Some(own) = own.and_then(at) {
                    marks.insert(own, Mark { operator, exact: true });
                }
                let behind = if kind == PointKind::Call { Some(offset) } else { at(i + 1) };
                if let Some(behind) = behind {
                    marks.entry(behind).or_insert(Mark { operator: operator.saturating_add(1), exact: false });
                    stretches.push((behind, operator.saturating_add(1)));
                }
            }
        }
        // The epilogue is the code of the final `end`.
        let last = operators.len().saturating_sub(1) as u64;
        let reset = shape.epilogue().and_then(|(reset, ..)| index(reset as u32)).and_then(|i| at(i.checked_sub(1)?));
        if let Some(lea) = reset {
            marks.insert(lea, Mark { operator: last, exact: true });
        }
        let end = reset.unwrap_or(code.len() as u32);
        stretches.sort_unstable();
        stretches.dedup_by_key(|s| s.0);
        let sites = wasm.sites(local);
        for (n, &(from, first)) in stretches.iter().enumerate() {
            let (to, next) = stretches.get(n + 1).copied().unwrap_or((end, last + 1));
            // The code lies in the order of its operators.
            let of_stretch = |operator: u64| first <= operator && operator < next;
            let low = sites.partition_point(|(operator, _)| *operator < first);
            let sites = sites[low..].iter().copied().take_while(|(operator, _)| of_stretch(*operator));
            let begin = instructions.partition_point(|i| (i.ip() as u32) < from);
            let code = instructions.get(begin..).unwrap_or_default();
            let code = &code[..code.partition_point(|i| (i.ip() as u32) < to)];
            for (offset, mark) in between(code, sites).unwrap_or_default() {
                let known = marks.entry(offset).or_insert(mark);
                if !known.exact {
                    *known = mark;
                }
            }
        }
        Places { marks: marks.into_iter().collect() }
    }

    /// The mark that holds at this offset from the start of the function.
    pub fn at(&self, offset: u64) -> Option<Mark> {
        let behind = self.marks.partition_point(|(from, _)| u64::from(*from) <= offset);
        self.marks.get(behind.checked_sub(1)?).map(|(_, mark)| *mark)
    }

    /// All marks, in ascending order of their offsets.
    pub fn marks(&self) -> &[(u32, Mark)] {
        &self.marks
    }
}

/// The marks of `sites` in a stretch of code between two points. `None` if the code lacks the instructions that these
/// operators would have, or has more of them.
fn between(code: &[Instruction], sites: impl Iterator<Item = (u64, Site)>) -> Option<Vec<(u32, Mark)>> {
    let mut out = Vec::new();
    let mut tokens = code.iter().enumerate().filter(|(_, i)| is_base_load(i) || i.code() == Code::Ud2);
    for (operator, site) in sites {
        let own = Mark { operator, exact: true };
        match site {
            Site::Memory { aligned } => {
                let (at, load) = tokens.next().filter(|(_, i)| is_base_load(i))?;
                let checked = code.get(at + 1).is_some_and(|i| is_context_load(i, ctx::MEMORY_BASE + 8));
                let mut last = at;
                for _ in 0..usize::from(checked) + usize::from(aligned) {
                    last = trap(tokens.next())?.0;
                }
                out.push((load.ip() as u32, own));
                if let Some(i) = access(code.get(last + 1..)?, load.op0_register()) {
                    out.push((i.next_ip() as u32, Mark { operator: operator + 1, exact: false }));
                }
            }
            Site::Unreachable => out.push((trap(tokens.next())?.1.ip() as u32, own)),
            Site::Conversion => {
                let (_, i) = trap(tokens.next())?;
                out.push((i.ip() as u32, own));
                out.push((i.next_ip() as u32, Mark { operator, exact: false }));
            }
            // The first check is for the table's bounds, the second for the signature.
            Site::IndirectCall => {
                let (_, i) = trap(tokens.next())?;
                trap(tokens.next())?;
                out.push((i.ip() as u32, own));
            }
        }
    }
    tokens.next().is_none().then_some(out)
}

/// Passes on `next`, the next trap or base load of a stretch, if it is a trap.
fn trap(next: Option<(usize, &Instruction)>) -> Option<(usize, &Instruction)> {
    next.filter(|(_, i)| i.code() == Code::Ud2)
}

/// The instruction that accesses the memory at an address to which `base` was added.
fn access(code: &[Instruction], base: Register) -> Option<&Instruction> {
    let mut address = None;
    for i in code {
        if i.code() == Code::Ud2 || is_base_load(i) {
            return None;
        }
        if address.is_some() && Some(i.memory_base()) == address && i.memory_index() == Register::None {
            return Some(i);
        }
        let adds = i.mnemonic() == Mnemonic::Add && i.op1_kind() == OpKind::Register && i.op1_register() == base;
        if adds && i.op0_kind() == OpKind::Register {
            address = Some(i.op0_register());
        }
    }
    None
}

/// Whether `i` loads the word at `offset` of the context, which is in r15.
fn is_context_load(i: &Instruction, offset: u64) -> bool {
    i.code() == Code::Mov_r64_rm64
        && i.memory_base() == Register::R15
        && i.memory_index() == Register::None
        && i.memory_displacement64() == offset
}

fn is_base_load(i: &Instruction) -> bool {
    is_context_load(i, ctx::MEMORY_BASE)
}

/// The operator of each point, by the point's kind and code offset. The point of the function header is left out.
fn operators_of_points(map: &FunctionStateMap) -> HashMap<(PointKind, usize), usize> {
    let mut out = HashMap::new();
    for (&operator, suspend) in &map.wasm_offset_to_target_offset {
        let key = match *suspend {
            SuspendOffset::Call(at) => (PointKind::Call, at),
            SuspendOffset::Trappable(at) => (PointKind::Trappable, at),
            SuspendOffset::Loop(at) => (PointKind::Loop, at),
        };
        out.insert(key, operator);
    }
    for kind in PointKind::ORDER {
        for (&at, info) in map.table(kind) {
            if let Some(diff) = map.diffs.get(info.diff_id).filter(|d| d.wasm_inst_offset != FUNCTION_HEADER) {
                out.insert((kind, at), diff.wasm_inst_offset);
            }
        }
    }
    out
}

/// The instructions of the body, up to the first that does not decode.
fn instructions(code: &[u8], body: u64) -> Vec<Instruction> {
    let mut out = Vec::new();
    let Some(bytes) = usize::try_from(body).ok().and_then(|body| code.get(body..)) else { return out };
    let mut decoder = Decoder::with_ip(64, bytes, body, DecoderOptions::NONE);
    while decoder.can_decode() {
        let i = decoder.decode();
        if i.is_invalid() {
            break;
        }
        out.push(i);
    }
    out
}
