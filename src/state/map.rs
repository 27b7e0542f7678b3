//! Finds the function and the point at a code offset (`state.rs: ModuleStateMap::lookup_ip`).

use std::collections::BTreeMap;
use std::ops::Bound;

use super::diff::StateError;
use super::model::{FunctionStateMap, MachineState, MachineStateDiff, ModuleStateMap, OffsetInfo, SuspendOffset};

/// The kind of a point, which is also the table that lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PointKind {
    /// The point is the return address of a call.
    Call,
    /// The point is an instruction that may trap.
    Trappable,
    /// The point is the head of a loop.
    Loop,
}

impl PointKind {
    /// All kinds, in the order in which `read_stack` asks the tables. One address can be in several tables: the
    /// return address of a call is often also the start of an instruction that may trap.
    pub const ORDER: [PointKind; 3] = [PointKind::Call, PointKind::Trappable, PointKind::Loop];

    /// Lower-case name of the kind.
    pub fn name(self) -> &'static str {
        match self {
            PointKind::Call => "call",
            PointKind::Trappable => "trappable",
            PointKind::Loop => "loop",
        }
    }
}

/// A point: an entry of an offset table, with the function that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point<'a> {
    /// Kind of the point, which tells the table that the entry is in.
    pub kind: PointKind,
    /// First code offset that the entry is valid for.
    pub offset: usize,
    /// The entry of the table.
    pub info: &'a OffsetInfo,
    /// Code offset of the function's first byte.
    pub function_start: usize,
    /// The map of the function.
    pub function: &'a FunctionStateMap,
}

impl<'a> Point<'a> {
    /// The diff that leads to the state at this point, or `None` where the compiler did not track state.
    pub fn diff(&self) -> Option<&'a MachineStateDiff> {
        self.function.diffs.get(self.info.diff_id)
    }

    /// Builds the state at this point. Returns `None` where the compiler did not track state.
    pub fn state(&self) -> Option<Result<MachineState, StateError>> {
        self.diff().map(|diff| diff.build_state(self.function))
    }

    /// Operator index of this point (`usize::MAX` in the function header), as far as the map tells. The
    /// diff has it; without tracked state it comes from the table of operators, which keeps one point for each
    /// operator.
    pub fn wasm_inst_offset(&self) -> Option<usize> {
        self.diff().map(|diff| diff.wasm_inst_offset).or_else(|| self.function.operator_of(self.kind, self.offset))
    }
}

impl FunctionStateMap {
    /// The table that lists the points of `kind`.
    pub fn table(&self, kind: PointKind) -> &BTreeMap<usize, OffsetInfo> {
        match kind {
            PointKind::Call => &self.call_offsets,
            PointKind::Trappable => &self.trappable_offsets,
            PointKind::Loop => &self.loop_offsets,
        }
    }

    /// Operator index (`usize::MAX` for the header) that the map assigns to the point of `kind` at
    /// `offset`.
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
    /// The function whose code `code_offset` is in, with the code offset of its first byte: of all functions that
    /// begin at or before `code_offset`, the one that begins last. The last function reaches to the end of the code.
    /// Returns `None` outside of the code, and in the import trampolines before the first function, where the
    /// runtime's own lookup fails (`state.rs:309`, `unwrap` of `None`).
    pub fn function_at(&self, code_offset: usize) -> Option<(&usize, &FunctionStateMap)> {
        if code_offset >= self.total_size {
            return None;
        }
        self.local_functions.range(..=code_offset).next_back()
    }

    /// Code offset of the byte after the function that starts at `start`. This is the next function's first byte, or
    /// the end of the code. Import trampolines that lie between two functions count as part of the first one.
    pub fn function_end(&self, start: usize) -> usize {
        let next = self.local_functions.range((Bound::Excluded(start), Bound::Unbounded)).next();
        next.map_or(self.total_size, |(&next, _)| next.min(self.total_size))
    }

    /// The point that `read_stack` uses at `code_offset`. Of the call, trappable and loop points that cover the
    /// offset, this is the first one that has a state. If none of them has a state, the first one is returned, and
    /// its [`Point::diff`] is `None`.
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

    /// The nearest point of the same function that is strictly before `code_offset`.
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

    /// The nearest point of the same function that is strictly after `code_offset`.
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

    /// Looks up the state at `ip` in the table of `kind`, as `state.rs: lookup_ip` does. Returns `None` where the
    /// table has no state. `ip` and `base` (the start of the code) are addresses, not offsets.
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

    /// Does what [`ModuleStateMap::lookup_ip`] does, in the table of calls.
    pub fn lookup_call_ip(
        &self,
        ip: usize,
        base: usize,
    ) -> Option<Result<(&FunctionStateMap, MachineState), StateError>> {
        self.lookup_ip(ip, base, PointKind::Call)
    }

    /// Does what [`ModuleStateMap::lookup_ip`] does, in the table of instructions that may trap.
    pub fn lookup_trappable_ip(
        &self,
        ip: usize,
        base: usize,
    ) -> Option<Result<(&FunctionStateMap, MachineState), StateError>> {
        self.lookup_ip(ip, base, PointKind::Trappable)
    }

    /// Does what [`ModuleStateMap::lookup_ip`] does, in the table of loops.
    pub fn lookup_loop_ip(
        &self,
        ip: usize,
        base: usize,
    ) -> Option<Result<(&FunctionStateMap, MachineState), StateError>> {
        self.lookup_ip(ip, base, PointKind::Loop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{END, Module, START, state};
    use super::*;

    // The runtime panics here: `lookup_ip` does `unwrap` of `None` (state.rs:309) when an address is in the module's
    // code before its first function, where the import trampolines are.
    #[test]
    fn import_trampolines_and_an_empty_map_hold_no_function() {
        let map = Module::new(0).point(PointKind::Call, 0x20, &state(0, vec![])).build();
        for offset in 0..START {
            assert_eq!((map.function_at(offset), map.lookup(offset)), (None, None));
            assert_eq!(map.lookup_call_ip(0x1000 + offset, 0x1000), None);
        }
        assert_eq!(map.function_at(START).map(|(start, _)| *start), Some(START));
        assert_eq!(map.function_at(END), None);
        let empty = ModuleStateMap { local_functions: BTreeMap::new(), total_size: 100 };
        assert_eq!((empty.function_at(50), empty.lookup(50), empty.point_after(50)), (None, None, None));
    }

    #[test]
    fn call_comes_before_trappable_and_loop_and_points_end() {
        let named = |operator| {
            let mut state = state(0, vec![]);
            state.wasm_inst_offset = operator;
            state
        };
        let map = Module::new(0)
            .point(PointKind::Loop, 0x20, &named(1))
            .point(PointKind::Trappable, 0x20, &named(2))
            .point(PointKind::Call, 0x20, &named(3))
            .point(PointKind::Trappable, 0x30, &named(4))
            .build();
        let at = |offset| map.lookup(offset).map(|p| (p.kind, p.wasm_inst_offset().unwrap()));
        assert_eq!(at(0x20), Some((PointKind::Call, 3)));
        assert_eq!(at(0x21), None);
        assert_eq!(at(0x30), Some((PointKind::Trappable, 4)));
    }

    #[test]
    fn an_untracked_point_is_found_but_has_no_state_and_a_tracked_one_wins() {
        let mut module = Module::new(0)
            .entry(PointKind::Call, 0x20, usize::MAX)
            .entry(PointKind::Call, 0x30, usize::MAX)
            .point(PointKind::Loop, 0x30, &state(0, vec![]));
        module.function.wasm_offset_to_target_offset.insert(12, SuspendOffset::Call(0x20));
        module.function.wasm_function_header_target_offset = Some(SuspendOffset::Loop(0x28));
        let map = module.build();
        let point = map.lookup(0x20).unwrap();
        assert_eq!((point.kind, point.state()), (PointKind::Call, None));
        assert_eq!(point.wasm_inst_offset(), Some(12));
        assert_eq!(map.lookup(0x30).unwrap().kind, PointKind::Loop);
        // The runtime panics for an offset that is in no table: `expect("instruction is not a critical point")`.
        assert_eq!(point.function.operator_of(PointKind::Call, 0x30), None);
        assert_eq!(point.function.operator_of(PointKind::Loop, 0x28), Some(super::super::FUNCTION_HEADER));
    }

    #[test]
    fn nearest_points_stay_in_their_function() {
        let mut map = Module::new(0)
            .point(PointKind::Call, 0x40, &state(0, vec![]))
            .point(PointKind::Trappable, 0x60, &state(0, vec![]))
            .point(PointKind::Loop, 0x90, &state(0, vec![]))
            .build();
        let second = Module::new(0).point(PointKind::Call, 0xa8, &state(0, vec![])).function;
        map.local_functions.insert(0xa0, second);
        let before = |offset| map.point_before(offset).map(|p| p.offset);
        let after = |offset| map.point_after(offset).map(|p| p.offset);
        assert_eq!((before(0x40), after(0x40)), (None, Some(0x60)));
        assert_eq!((before(0x5f), after(0x5f)), (Some(0x40), Some(0x60)));
        assert_eq!((before(0x9f), after(0x9f)), (Some(0x90), None));
        assert_eq!((before(0xa4), after(0xa4)), (None, Some(0xa8)));
        assert_eq!((map.function_end(START), map.function_end(0xa0)), (0xa0, END));
    }
}
