//! From a code offset to the function and the point there (`state.rs: ModuleStateMap::lookup_ip`).

use std::collections::BTreeMap;
use std::ops::Bound;

use super::diff::StateError;
use super::model::{FunctionStateMap, MachineState, MachineStateDiff, ModuleStateMap, OffsetInfo, SuspendOffset};

/// Which table lists a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PointKind {
    /// The return address of a call.
    Call,
    /// An instruction that may trap.
    Trappable,
    /// A loop head.
    Loop,
}

impl PointKind {
    /// In the order in which `read_stack` asks the tables. One address can be in several of them: the return address of
    /// a call is often also the start of an instruction that may trap.
    pub const ORDER: [PointKind; 3] = [PointKind::Call, PointKind::Trappable, PointKind::Loop];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            PointKind::Call => "call",
            PointKind::Trappable => "trappable",
            PointKind::Loop => "loop",
        }
    }
}

/// An entry of an offset table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point<'a> {
    /// Table.
    pub kind: PointKind,
    /// First code offset the entry is valid for.
    pub offset: usize,
    /// The entry.
    pub info: &'a OffsetInfo,
    /// Code offset of the function's first byte.
    pub function_start: usize,
    /// The function.
    pub function: &'a FunctionStateMap,
}

impl<'a> Point<'a> {
    /// The diff that leads to the state here; `None` where the compiler did not track state.
    pub fn diff(&self) -> Option<&'a MachineStateDiff> {
        self.function.diffs.get(self.info.diff_id)
    }

    /// The state here. `None` where the compiler did not track state.
    pub fn state(&self) -> Option<Result<MachineState, StateError>> {
        self.diff().map(|diff| diff.build_state(self.function))
    }

    /// Operator index of this point ([`super::FUNCTION_HEADER`] in the function header), as far as the map tells: from
    /// the diff, or without tracked state from the table of operators, which keeps one point for each operator.
    pub fn wasm_inst_offset(&self) -> Option<usize> {
        self.diff().map(|diff| diff.wasm_inst_offset).or_else(|| self.function.operator_of(self.kind, self.offset))
    }
}

impl FunctionStateMap {
    /// The table of one kind of points.
    pub fn table(&self, kind: PointKind) -> &BTreeMap<usize, OffsetInfo> {
        match kind {
            PointKind::Call => &self.call_offsets,
            PointKind::Trappable => &self.trappable_offsets,
            PointKind::Loop => &self.loop_offsets,
        }
    }

    /// Operator index ([`super::FUNCTION_HEADER`] for the header) that the map assigns to the point at `offset`.
    pub fn operator_of(&self, kind: PointKind, offset: usize) -> Option<usize> {
        let wanted = |suspend: &SuspendOffset| match *suspend {
            SuspendOffset::Call(o) => kind == PointKind::Call && o == offset,
            SuspendOffset::Trappable(o) => kind == PointKind::Trappable && o == offset,
            SuspendOffset::Loop(o) => kind == PointKind::Loop && o == offset,
        };
        if self.wasm_function_header_target_offset.as_ref().is_some_and(wanted) {
            return Some(super::FUNCTION_HEADER);
        }
        self.wasm_offset_to_target_offset.iter().find(|(_, suspend)| wanted(suspend)).map(|(&operator, _)| operator)
    }

    /// The last entry of `kind` that starts at or before `offset`, if it is still valid there.
    fn covering(&self, kind: PointKind, offset: usize) -> Option<(usize, &OffsetInfo)> {
        let (&start, info) = self.table(kind).range(..=offset).next_back()?;
        (offset < info.end_offset).then_some((start, info))
    }
}

impl ModuleStateMap {
    /// The function whose first byte is the last one at or before `code_offset`, with that first byte's offset. `None`
    /// outside the code and in the import trampolines before the first function, where the runtime's own lookup fails
    /// (`state.rs:309`, `unwrap` of `None`). The last function reaches to the end of the code.
    pub fn function_at(&self, code_offset: usize) -> Option<(&usize, &FunctionStateMap)> {
        if code_offset >= self.total_size {
            return None;
        }
        self.local_functions.range(..=code_offset).next_back()
    }

    /// Code offset of the byte after the function that starts at `start`: the next function's first byte or the end of
    /// the code. Import trampolines between them count as part of the function.
    pub fn function_end(&self, start: usize) -> usize {
        let next = self.local_functions.range((Bound::Excluded(start), Bound::Unbounded)).next();
        next.map_or(self.total_size, |(&next, _)| next.min(self.total_size))
    }

    /// The point that `read_stack` uses at `code_offset`: the first of call, trappable and loop that has a state. If
    /// none has one, the first that covers the offset, whose [`Point::diff`] is then `None`.
    pub fn lookup(&self, code_offset: usize) -> Option<Point<'_>> {
        let (&function_start, function) = self.function_at(code_offset)?;
        let mut points = PointKind::ORDER.into_iter().filter_map(|kind| {
            let (offset, info) = function.covering(kind, code_offset)?;
            Some(Point { kind, offset, info, function_start, function })
        });
        let first = points.next()?;
        if first.diff().is_some() {
            return Some(first);
        }
        Some(points.find(|point| point.diff().is_some()).unwrap_or(first))
    }

    /// The nearest point of the same function before `code_offset` (strictly).
    pub fn point_before(&self, code_offset: usize) -> Option<Point<'_>> {
        let (&function_start, function) = self.function_at(code_offset)?;
        let mut best: Option<Point<'_>> = None;
        for kind in PointKind::ORDER {
            if let Some((&offset, info)) = function.table(kind).range(function_start..code_offset).next_back()
                && best.is_none_or(|b| offset > b.offset)
            {
                best = Some(Point { kind, offset, info, function_start, function });
            }
        }
        best
    }

    /// The nearest point of the same function after `code_offset` (strictly).
    pub fn point_after(&self, code_offset: usize) -> Option<Point<'_>> {
        let (&function_start, function) = self.function_at(code_offset)?;
        let end = self.function_end(function_start);
        let mut best: Option<Point<'_>> = None;
        for kind in PointKind::ORDER {
            let mut after = function.table(kind).range((Bound::Excluded(code_offset), Bound::Unbounded));
            if let Some((&offset, info)) = after.next()
                && offset < end
                && best.is_none_or(|b| offset < b.offset)
            {
                best = Some(Point { kind, offset, info, function_start, function });
            }
        }
        best
    }

    /// As `state.rs: lookup_ip` for one table: `None` where it has no state. Addresses, not offsets.
    pub fn lookup_ip(
        &self,
        ip: usize,
        base: usize,
        kind: PointKind,
    ) -> Option<Result<(&FunctionStateMap, MachineState), StateError>> {
        let code_offset = ip.checked_sub(base)?;
        let (_, function) = self.function_at(code_offset)?;
        let (_, info) = function.covering(kind, code_offset)?;
        let diff = function.diffs.get(info.diff_id)?;
        Some(diff.build_state(function).map(|state| (function, state)))
    }

    /// [`ModuleStateMap::lookup_ip`] among the calls.
    pub fn lookup_call_ip(
        &self,
        ip: usize,
        base: usize,
    ) -> Option<Result<(&FunctionStateMap, MachineState), StateError>> {
        self.lookup_ip(ip, base, PointKind::Call)
    }

    /// [`ModuleStateMap::lookup_ip`] among the trappable instructions.
    pub fn lookup_trappable_ip(
        &self,
        ip: usize,
        base: usize,
    ) -> Option<Result<(&FunctionStateMap, MachineState), StateError>> {
        self.lookup_ip(ip, base, PointKind::Trappable)
    }

    /// [`ModuleStateMap::lookup_ip`] among the loops.
    pub fn lookup_loop_ip(
        &self,
        ip: usize,
        base: usize,
    ) -> Option<Result<(&FunctionStateMap, MachineState), StateError>> {
        self.lookup_ip(ip, base, PointKind::Loop)
    }
}
