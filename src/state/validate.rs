//! Finds what is wrong with a map, function by function.
//!
//! Lookup and reading are total even without this. But [`validate`] tells beforehand that something is wrong, and
//! where. A function with problems does not affect the others, and [`Validation::is_bad`] tells which functions not
//! to believe. Bad functions stay in the map, because without them their code would seem to belong to the function
//! before.

use std::collections::{BTreeMap, BTreeSet};

use super::diff::StateError;
use super::map::PointKind;
use super::model::{
    FunctionStateMap, MachineState, MachineStateDiff, MachineValue, ModuleStateMap, OffsetInfo, SuspendOffset,
};
use crate::limits::{MAX_FUNCTIONS, MAX_SHADOW_BYTES, MAX_SLOTS, MAX_VALIDATION_PROBLEMS};

/// The part of a function's state map in which a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Where {
    /// The problem is in the function itself.
    #[error("function")]
    Function,
    /// The problem is in the initial state of the function.
    #[error("initial state")]
    Initial,
    /// The problem is in the diff with this number.
    #[error("diff {0}")]
    Diff(usize),
    /// The problem is in an entry of a table of points.
    #[error("{} point {offset:#x}", .kind.name())]
    Point {
        /// Kind of the point, which tells the table.
        kind: PointKind,
        /// Code offset of the point, which is the key of the entry.
        offset: usize,
    },
    /// The problem is in the table of operators, at the operator with this index.
    #[error("operator {0}")]
    Operator(usize),
}

/// What is wrong with a part of a function's state map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The state that a diff describes cannot be built.
    #[error(transparent)]
    State(#[from] StateError),
    /// A diff builds on itself or on a diff with a higher number. The runtime only writes diffs that build on lower
    /// ones.
    #[error("it builds on the later diff {last}")]
    Forward {
        /// Number of the diff that it builds on.
        last: usize,
    },
    /// The map names a register that does not exist.
    #[error("register {0} does not exist")]
    Register(usize),
    /// The map names a local that does not exist.
    #[error("local {index} does not exist: the function has only {count}, numbered from 0")]
    Local {
        /// Number of the local.
        index: usize,
        /// Number of locals of the function.
        count: usize,
    },
    /// A place holds a kind of value that it cannot hold, or one half of a word holds nested values.
    #[error("it has a kind of value that cannot be {0}")]
    Kind(&'static str),
    /// The map says that more operands are private than there are operands.
    #[error("{depth} operands are private, but the operand stack has {count}")]
    PrivateDepth {
        /// Number of private operands.
        depth: usize,
        /// Number of all operands.
        count: usize,
    },
    /// A state has another number of registers than the 24 or 32 that the runtime writes.
    #[error("the state has {0} registers, not 24 or 32")]
    RegisterCount(usize),
    /// The shadow of a function is no whole number of words, or is too large.
    #[error("its shadow of {0} bytes is too large or no whole number of words")]
    Shadow(usize),
    /// A code offset is outside of the function or of the code.
    #[error("offset {offset:#x} is outside of {start:#x}..{end:#x}")]
    Outside {
        /// The code offset.
        offset: usize,
        /// First code offset of the function or of the code.
        start: usize,
        /// Code offset behind the function or the code.
        end: usize,
    },
    /// An entry of a table is valid at no code offset.
    #[error("it ends at {end:#x}, which is not behind its beginning")]
    Empty {
        /// First code offset that the entry is no longer valid for.
        end: usize,
    },
    /// An entry of a table names a diff that does not exist. (`usize::MAX` stands for an untracked state and is no
    /// error.)
    #[error("diff {diff} does not exist: the function has only {count}, numbered from 0")]
    Diff {
        /// Number of the diff.
        diff: usize,
        /// Number of diffs of the function.
        count: usize,
    },
    /// The map assigns an operator a point that is in no table.
    #[error("its {} point {offset:#x} is in no table", .kind.name())]
    NoPoint {
        /// Kind of the point.
        kind: PointKind,
        /// Code offset of the point.
        offset: usize,
    },
    /// Two functions have the same number.
    #[error("local function {id} is also the one at {other:#x}")]
    SameFunction {
        /// The number of both functions.
        id: usize,
        /// Code offset of the other function's first byte.
        other: usize,
    },
    /// A function has more of something than is believed.
    #[error("it has {count} {what}, which is too many")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many of these there are.
        count: usize,
    },
}

/// A problem, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("function at {function:#x}, {place}: {fault}")]
pub struct Problem {
    /// Code offset of the function's first byte.
    pub function: usize,
    /// Where in the function's state map the problem is.
    pub place: Where,
    /// What the problem is.
    pub fault: Fault,
}

/// A problem of the whole map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapProblem {
    /// The map is for other code.
    #[error("the map is for {map} bytes of code, there are {code}")]
    CodeLength {
        /// The map's `total_size`.
        map: usize,
        /// Number of bytes of code that there are.
        code: usize,
    },
    /// The map has more functions than any module has.
    #[error("{0} functions, more than {MAX_FUNCTIONS}")]
    TooManyFunctions(usize),
}

/// What [`validate`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validation {
    /// Problems of the map itself.
    pub map: Vec<MapProblem>,
    /// Problems of functions, in code order; at most `MAX_VALIDATION_PROBLEMS` are kept.
    pub problems: Vec<Problem>,
    /// Number of problems that were found and not kept.
    pub dropped: usize,
    /// Code offsets of the first bytes of the functions that have problems.
    pub bad: BTreeSet<usize>,
    /// Number of functions that were checked.
    pub functions: usize,
    /// Number of functions in which every point has a diff.
    pub tracked: usize,
}

impl Validation {
    /// Whether nothing is wrong.
    #[cfg(any(test, feature = "internals"))]
    pub fn is_clean(&self) -> bool {
        self.map.is_empty() && self.bad.is_empty()
    }

    /// Whether the function whose first byte is at code offset `start` has problems.
    #[cfg(any(test, feature = "internals"))]
    pub fn is_bad(&self, start: usize) -> bool {
        self.bad.contains(&start)
    }

    fn push(&mut self, function: usize, place: Where, fault: Fault) {
        self.bad.insert(function);
        if self.problems.len() < MAX_VALIDATION_PROBLEMS {
            self.problems.push(Problem { function, place, fault });
        } else {
            self.dropped += 1;
        }
    }
}

/// Checks `map`. `code_len` is the number of bytes of code, if it is known. The time that this takes is linear in the
/// size of the map.
pub fn validate(map: &ModuleStateMap, code_len: Option<usize>) -> Validation {
    let mut validation = Validation::default();
    if let Some(code) = code_len
        && code != map.total_size
    {
        validation.map.push(MapProblem::CodeLength { map: map.total_size, code });
    }
    if map.local_functions.len() > MAX_FUNCTIONS {
        validation.map.push(MapProblem::TooManyFunctions(map.local_functions.len()));
        return validation;
    }
    let mut ids: BTreeMap<usize, usize> = BTreeMap::new();
    for (&start, function) in &map.local_functions {
        if start >= map.total_size {
            let fault = Fault::Outside { offset: start, start: 0, end: map.total_size };
            validation.push(start, Where::Function, fault);
        }
        if let Some(&other) = ids.get(&function.local_function_id) {
            let fault = Fault::SameFunction { id: function.local_function_id, other };
            validation.push(start, Where::Function, fault);
        } else {
            ids.insert(function.local_function_id, start);
        }
        validation.functions += 1;
        Checker { start, end: map.function_end(start), function, out: &mut validation }.run();
    }
    validation
}

/// Depths of the native stack and of the operand stack after a diff.
#[derive(Clone, Copy)]
struct Depths {
    words: usize,
    operands: usize,
}

/// What is known of a diff while chains of diffs are followed.
#[derive(Clone, Copy)]
enum Chain {
    Unseen,
    /// The diff is on the chain that is being followed. If it is met again, the chain is a cycle.
    Open,
    Good(Depths),
    Bad,
}

struct Checker<'a> {
    start: usize,
    end: usize,
    function: &'a FunctionStateMap,
    out: &'a mut Validation,
}

impl Checker<'_> {
    fn push(&mut self, place: Where, fault: impl Into<Fault>) {
        self.out.push(self.start, place, fault.into());
    }

    fn run(mut self) {
        let function = self.function;
        if !function.shadow_size.is_multiple_of(8) || function.shadow_size > MAX_SHADOW_BYTES {
            self.push(Where::Function, Fault::Shadow(function.shadow_size));
        }
        if function.locals.len() > MAX_SLOTS {
            self.push(Where::Function, Fault::TooMany { what: "locals", count: function.locals.len() });
        }
        self.initial(&function.initial);
        self.diffs();
        for kind in PointKind::ORDER {
            for (&offset, info) in function.table(kind) {
                self.point(kind, offset, info);
            }
        }
        let mut infos = PointKind::ORDER.into_iter().flat_map(|kind| function.table(kind).values());
        if infos.all(|info| info.diff_id < function.diffs.len()) {
            self.out.tracked += 1;
        }
        if let Some(point) = function.wasm_function_header_target_offset {
            self.operator(usize::MAX, point);
        }
        for (&operator, &point) in &function.wasm_offset_to_target_offset {
            self.operator(operator, point);
        }
    }

    fn initial(&mut self, state: &MachineState) {
        let registers = state.register_values.len();
        if registers != 24 && registers != 32 {
            self.push(Where::Initial, Fault::RegisterCount(registers));
        }
        for (what, count) in [
            ("stack words", state.stack_values.len()),
            ("operands", state.wasm_stack.len()),
            ("words of the caller's frame", state.prev_frame.len()),
        ] {
            if count > MAX_SLOTS {
                self.push(Where::Initial, Fault::TooMany { what, count });
            }
        }
        let count = state.wasm_stack.len();
        if state.wasm_stack_private_depth > count {
            self.push(Where::Initial, Fault::PrivateDepth { depth: state.wasm_stack_private_depth, count });
        }
        for value in &state.stack_values {
            self.word(Where::Initial, value);
        }
        for value in &state.register_values {
            self.register(Where::Initial, value);
        }
        for value in state.prev_frame.values() {
            self.prev_frame(Where::Initial, value);
        }
    }

    fn diffs(&mut self) {
        let diffs = &self.function.diffs;
        let start = Depths {
            words: self.function.initial.stack_values.len(),
            operands: self.function.initial.wasm_stack.len(),
        };
        let mut known = vec![Chain::Unseen; diffs.len()];
        let mut chain = Vec::new();
        for number in 0..diffs.len() {
            // The chain is followed down to a diff that is known, or to the initial state.
            let mut current = Some(number);
            let mut depths = loop {
                let Some(diff) = current else { break Some(start) };
                match known.get(diff).copied() {
                    None => {
                        let from = chain.last().copied();
                        let error = StateError::NoSuchDiff { diff: from, last: diff, count: diffs.len() };
                        self.push(Where::Diff(from.unwrap_or(number)), error);
                        break None;
                    }
                    Some(Chain::Open) => {
                        self.push(Where::Diff(number), StateError::Cycle { diff: Some(diff) });
                        break None;
                    }
                    Some(Chain::Good(depths)) => break Some(depths),
                    Some(Chain::Bad) => break None,
                    Some(Chain::Unseen) => {
                        known[diff] = Chain::Open;
                        chain.push(diff);
                        current = diffs[diff].last;
                        // The reader accepts this as long as it is no cycle, but the runtime never writes it.
                        if let Some(last) = current.filter(|&last| last >= diff && last < diffs.len()) {
                            self.push(Where::Diff(diff), Fault::Forward { last });
                        }
                    }
                }
            };
            while let Some(diff) = chain.pop() {
                depths = depths.and_then(|before| self.diff(diff, &diffs[diff], before));
                known[diff] = depths.map_or(Chain::Bad, Chain::Good);
            }
        }
    }

    fn diff(&mut self, number: usize, diff: &MachineStateDiff, before: Depths) -> Option<Depths> {
        let place = Where::Diff(number);
        let mut depth = |what, pops: usize, pushes: usize, depth: usize| match depth.checked_sub(pops) {
            None => {
                self.push(place, StateError::PopBeyond { diff: Some(number), what, pops, depth });
                None
            }
            Some(left) if left + pushes > MAX_SLOTS => {
                self.push(place, StateError::TooLarge { diff: Some(number), what, count: left + pushes });
                None
            }
            Some(left) => Some(left + pushes),
        };
        let words = depth("stack words", diff.stack_pop, diff.stack_push.len(), before.words);
        let operands = depth("operands", diff.wasm_stack_pop, diff.wasm_stack_push.len(), before.operands);
        let after = Depths { words: words?, operands: operands? };

        let count = self.function.initial.register_values.len();
        for (index, value) in &diff.reg_diff {
            if index.0 >= count {
                self.push(place, StateError::NoSuchRegister { diff: Some(number), register: index.0, count });
            }
            self.register(place, value);
        }
        for value in &diff.stack_push {
            self.word(place, value);
        }
        for value in diff.prev_frame_diff.values().flatten() {
            self.prev_frame(place, value);
        }
        let depth = diff.wasm_stack_private_depth;
        if depth > after.operands {
            self.push(place, Fault::PrivateDepth { depth, count: after.operands });
        }
        Some(after)
    }

    /// Checks the number of a local. Operands and locals may be in any place. Operands beyond the operand stack are
    /// no problem: real maps have them at calls whose arguments were spilled (7-argument import with 3 live
    /// operands), and reading ignores them.
    fn index(&mut self, place: Where, value: &MachineValue) {
        let count = self.function.locals.len();
        match *value {
            MachineValue::WasmLocal(index) if index >= count => self.push(place, Fault::Local { index, count }),
            _ => {}
        }
    }

    fn word(&mut self, place: Where, value: &MachineValue) {
        match value {
            MachineValue::PreserveRegister(index) if index.0 >= 32 => self.push(place, Fault::Register(index.0)),
            MachineValue::TwoHalves(halves) => {
                for half in [&halves.0, &halves.1] {
                    match half {
                        MachineValue::WasmStack(_) | MachineValue::WasmLocal(_) => self.index(place, half),
                        MachineValue::VmctxDeref(_) | MachineValue::Undefined => {}
                        _ => self.push(place, Fault::Kind("half a word")),
                    }
                }
            }
            _ => self.index(place, value),
        }
    }

    fn register(&mut self, place: Where, value: &MachineValue) {
        match value {
            MachineValue::PreserveRegister(_)
            | MachineValue::CopyStackBPRelative(_)
            | MachineValue::ExplicitShadow
            | MachineValue::TwoHalves(_) => self.push(place, Fault::Kind("in a register")),
            _ => self.index(place, value),
        }
    }

    fn prev_frame(&mut self, place: Where, value: &MachineValue) {
        match value {
            MachineValue::WasmStack(_) | MachineValue::WasmLocal(_) => self.index(place, value),
            _ => self.push(place, Fault::Kind("in the caller's frame")),
        }
    }

    fn point(&mut self, kind: PointKind, offset: usize, info: &OffsetInfo) {
        let place = Where::Point { kind, offset };
        let (start, end) = (self.start, self.end);
        // The return address of a call that never returns can be the byte after the function.
        for offset in [offset, info.activate_offset] {
            if offset < start || offset > end {
                self.push(place, Fault::Outside { offset, start, end });
            }
        }
        if info.end_offset <= offset {
            self.push(place, Fault::Empty { end: info.end_offset });
        } else if info.end_offset > end.saturating_add(1) {
            self.push(place, Fault::Outside { offset: info.end_offset, start, end });
        }
        let count = self.function.diffs.len();
        if info.diff_id >= count && info.diff_id != usize::MAX {
            self.push(place, Fault::Diff { diff: info.diff_id, count });
        }
    }

    fn operator(&mut self, operator: usize, point: SuspendOffset) {
        let (kind, offset) = match point {
            SuspendOffset::Call(offset) => (PointKind::Call, offset),
            SuspendOffset::Trappable(offset) => (PointKind::Trappable, offset),
            SuspendOffset::Loop(offset) => (PointKind::Loop, offset),
        };
        if !self.function.table(kind).contains_key(&offset) {
            self.push(Where::Operator(operator), Fault::NoPoint { kind, offset });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{RegisterIndex, WasmAbstractValue};
    use super::super::synthetic::{END, Module, START, state};
    use super::*;

    fn problems(module: Module) -> Vec<(Where, Fault)> {
        let validation = validate(&module.build(), Some(END));
        assert_eq!(validation.is_bad(START), !validation.is_clean());
        validation.problems.into_iter().map(|p| (p.place, p.fault)).collect()
    }

    fn with_diffs(diffs: Vec<MachineStateDiff>) -> Module {
        let mut module = Module::new(1);
        module.function.diffs = diffs;
        module
    }

    fn on(last: usize) -> MachineStateDiff {
        MachineStateDiff { last: Some(last), ..MachineStateDiff::default() }
    }

    #[test]
    fn chains() {
        assert_eq!(problems(with_diffs(vec![MachineStateDiff::default(), on(0), on(1)])), []);
        let found = problems(with_diffs(vec![on(1), on(0), on(0)]));
        assert_eq!(
            found,
            [
                (Where::Diff(0), Fault::Forward { last: 1 }),
                (Where::Diff(0), Fault::State(StateError::Cycle { diff: Some(0) })),
            ]
        );
        let missing = StateError::NoSuchDiff { diff: Some(0), last: 9, count: 1 };
        assert_eq!(problems(with_diffs(vec![on(9)])), [(Where::Diff(0), Fault::State(missing))]);
        // A long chain is followed in one pass, not in one walk for each diff.
        let long = (0..300_000).map(|i: usize| MachineStateDiff { last: i.checked_sub(1), ..Default::default() });
        assert_eq!(problems(with_diffs(long.collect())), []);
    }

    #[test]
    fn pops_registers_and_locals() {
        let found = problems(with_diffs(vec![
            MachineStateDiff { stack_push: vec![MachineValue::WasmLocal(1)], ..Default::default() },
            MachineStateDiff { last: Some(0), stack_pop: 2, ..Default::default() },
            MachineStateDiff {
                reg_diff: vec![(RegisterIndex(24), MachineValue::ExplicitShadow)],
                stack_push: vec![MachineValue::PreserveRegister(RegisterIndex(32))],
                wasm_stack_private_depth: 1,
                ..Default::default()
            },
        ]));
        let pop = StateError::PopBeyond { diff: Some(1), what: "stack words", pops: 2, depth: 1 };
        let register = StateError::NoSuchRegister { diff: Some(2), register: 24, count: 24 };
        assert_eq!(
            found,
            [
                (Where::Diff(0), Fault::Local { index: 1, count: 1 }),
                (Where::Diff(1), Fault::State(pop)),
                (Where::Diff(2), Fault::State(register)),
                (Where::Diff(2), Fault::Kind("in a register")),
                (Where::Diff(2), Fault::Register(32)),
                (Where::Diff(2), Fault::PrivateDepth { depth: 1, count: 0 }),
            ]
        );
    }

    // At a call whose arguments were spilled, the state names places for operands that are already popped. Real maps
    // have this. It is why the runtime indexes out of bounds (state.rs:1369).
    #[test]
    fn operands_beyond_the_stack_are_no_problem() {
        let module = Module::new(0).point(PointKind::Call, 0x20, &state(3, vec![MachineValue::WasmStack(5)]));
        let validation = validate(&module.build(), Some(END));
        assert!(validation.is_clean());
        assert_eq!(validation.tracked, 1);
    }

    #[test]
    fn offsets_and_tables() {
        let mut module = Module::new(0).entry(PointKind::Call, 0x8, usize::MAX).entry(PointKind::Loop, 0x20, 3);
        module.function.loop_offsets.get_mut(&0x20).unwrap().end_offset = 0x20;
        module.function.wasm_offset_to_target_offset.insert(4, SuspendOffset::Trappable(0x20));
        let call = Where::Point { kind: PointKind::Call, offset: 0x8 };
        let head = Where::Point { kind: PointKind::Loop, offset: 0x20 };
        let outside = Fault::Outside { offset: 0x8, start: START, end: END };
        assert_eq!(
            problems(module),
            [
                (call, outside.clone()),
                (call, outside),
                (head, Fault::Empty { end: 0x20 }),
                (head, Fault::Diff { diff: 3, count: 0 }),
                (Where::Operator(4), Fault::NoPoint { kind: PointKind::Trappable, offset: 0x20 }),
            ]
        );
    }

    #[test]
    fn shapes() {
        let mut module = Module::new(0);
        module.function.shadow_size = 12;
        module.function.initial.register_values.pop();
        assert_eq!(
            problems(module),
            [(Where::Function, Fault::Shadow(12)), (Where::Initial, Fault::RegisterCount(23))]
        );
        let mut module = Module::new(0);
        module.function.initial.register_values.resize(32, MachineValue::Undefined);
        module.function.shadow_size = MAX_SHADOW_BYTES;
        assert_eq!(problems(module), []);
        let mut module = Module::new(0);
        module.function.shadow_size = MAX_SHADOW_BYTES + 8;
        assert_eq!(problems(module), [(Where::Function, Fault::Shadow(MAX_SHADOW_BYTES + 8))]);
        let map = Module::new(0).build();
        assert_eq!(validate(&map, Some(END + 1)).map, [MapProblem::CodeLength { map: END, code: END + 1 }]);
        assert!(validate(&map, None).is_clean());
    }

    #[test]
    fn one_bad_function_leaves_the_others() {
        let mut map = Module::new(1).point(PointKind::Call, 0x20, &state(0, vec![])).build();
        let mut bad = Module::new(1).function;
        bad.local_function_id = 8;
        bad.diffs = vec![on(0)];
        bad.locals = vec![WasmAbstractValue::Runtime];
        map.local_functions.insert(0x80, bad);
        let validation = validate(&map, None);
        assert_eq!(validation.bad, [0x80].into());
        assert_eq!(
            validation.problems.last().unwrap().to_string(),
            "function at 0x80, diff 0: the diff chain that begins at diff 0 never ends"
        );
        // A bad function stays in the map, because without it its code would seem to belong to the function before.
        assert!(!validation.is_bad(map.lookup(0x20).unwrap().function_start));
        assert!(validation.is_bad(*map.function_at(0x90).unwrap().0));
    }

    #[test]
    fn problems_are_counted_beyond_the_cap() {
        let diffs = (0..2000).map(|_| on(usize::MAX)).collect();
        let validation = validate(&with_diffs(diffs).build(), None);
        assert_eq!((validation.problems.len(), validation.dropped), (MAX_VALIDATION_PROBLEMS, 1000));
    }

    #[test]
    fn a_map_of_too_many_functions_is_not_looked_at() {
        let function = FunctionStateMap::new(MachineState::new(), 0, 0, vec![]);
        let mut map = ModuleStateMap { local_functions: BTreeMap::new(), total_size: usize::MAX };
        map.local_functions.extend((0..=MAX_FUNCTIONS).map(|start| (start, function.clone())));
        let validation = validate(&map, None);
        assert_eq!(validation.map, [MapProblem::TooManyFunctions(MAX_FUNCTIONS + 1)]);
        assert_eq!(validation.functions, 0);
        map.local_functions.pop_last();
        assert_eq!(validate(&map, None).functions, MAX_FUNCTIONS);
    }
}
