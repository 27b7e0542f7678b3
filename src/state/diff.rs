//! Builds the state that a diff describes, and makes diffs of states (`state.rs: MachineState::diff`,
//! `MachineStateDiff::build_state`).

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::rc::Rc;

use super::model::{FunctionStateMap, MachineState, MachineStateDiff, MachineValue, RegisterIndex};
use crate::limits::{MAX_CACHED_SLOTS, MAX_DIFF_CHAIN, MAX_KEPT_STATES, MAX_SLOTS, MAX_STATE_WORK};

/// Why a state cannot be built. `diff` is the number of a diff in the function's `diffs`, or `None` for a diff that
/// is not in this list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A chain of diffs comes back to itself. The runtime's `build_state` never ends here.
    #[error("the diff chain that begins at {} never ends", number(.diff))]
    Cycle {
        /// Number of the diff at which the chain was entered.
        diff: Option<usize>,
    },
    /// A diff builds on a diff that does not exist.
    #[error("{} builds on diff {last}, the function has {count}", number(.diff))]
    NoSuchDiff {
        /// Number of the diff that builds on it.
        diff: Option<usize>,
        /// Number of the diff that does not exist.
        last: usize,
        /// Number of diffs that the function has.
        count: usize,
    },
    /// A diff pops more than there is.
    #[error("{} pops {pops} of {depth} {what}", number(.diff))]
    PopBeyond {
        /// Number of the diff that pops.
        diff: Option<usize>,
        /// What is popped: "stack words" or "operands".
        what: &'static str,
        /// Number of pops.
        pops: usize,
        /// Number of entries before the pops.
        depth: usize,
    },
    /// A diff sets a register that the state does not have.
    #[error("{} sets register {register}, the state has {count}", number(.diff))]
    NoSuchRegister {
        /// Number of the diff that sets it.
        diff: Option<usize>,
        /// State-map number of the register.
        register: usize,
        /// Number of registers of the state.
        count: usize,
    },
    /// A diff removes a value of the caller's frame that is not there.
    #[error("{} removes word {word} of the caller's frame, which holds nothing", number(.diff))]
    NothingToRemove {
        /// Number of the diff that removes it.
        diff: Option<usize>,
        /// Number of the word, which is its key in `prev_frame`.
        word: usize,
    },
    /// A diff makes a state that is too large to be believed.
    #[error("{} makes a state of {count} {what}, more than {MAX_SLOTS}", number(.diff))]
    TooLarge {
        /// Number of the diff that makes it.
        diff: Option<usize>,
        /// What the state has too many of.
        what: &'static str,
        /// How many of these the state has.
        count: usize,
    },
    /// The chain of diffs is too long to be believed.
    #[error("the diff chain is longer than {MAX_DIFF_CHAIN}")]
    ChainTooLong,
    /// States with different numbers of registers cannot be compared.
    #[error("states of {new} and {old} registers have no difference")]
    RegisterCounts {
        /// Number of registers of the new state.
        new: usize,
        /// Number of registers of the old state.
        old: usize,
    },
    /// The work allowed for building states is used up.
    #[error("the diff chains are too long to follow for every frame")]
    WorkLimit,
}

fn number(diff: &Option<usize>) -> String {
    diff.map_or_else(|| "a diff".to_owned(), |number| format!("diff {number}"))
}

fn common_prefix<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl MachineState {
    /// Creates the state that `state.rs: x64::new_machine_state` creates. It has 16 general purpose and 8 XMM
    /// registers, and nothing is known of what they hold.
    pub fn new() -> MachineState {
        MachineState {
            stack_values: Vec::new(),
            register_values: vec![MachineValue::Undefined; 24],
            prev_frame: BTreeMap::new(),
            wasm_stack: Vec::new(),
            wasm_stack_private_depth: 0,
            wasm_inst_offset: super::FUNCTION_HEADER,
        }
    }

    /// Makes the diff that leads from `old` to `self`. Its `last` is `None`.
    ///
    /// # Errors
    /// Fails with [`StateError::RegisterCounts`] where the runtime asserts that both states have as many registers.
    pub fn diff(&self, old: &MachineState) -> Result<MachineStateDiff, StateError> {
        if self.register_values.len() != old.register_values.len() {
            return Err(StateError::RegisterCounts { new: self.register_values.len(), old: old.register_values.len() });
        }
        let words = common_prefix(&self.stack_values, &old.stack_values);
        let operands = common_prefix(&self.wasm_stack, &old.wasm_stack);
        let registers = self.register_values.iter().zip(&old.register_values).enumerate();
        let changed = self.prev_frame.iter().filter(|(word, value)| old.prev_frame.get(word) != Some(value));
        let removed = old.prev_frame.keys().filter(|word| !self.prev_frame.contains_key(word));
        Ok(MachineStateDiff {
            last: None,
            stack_push: self.stack_values[words..].to_vec(),
            stack_pop: old.stack_values.len() - words,
            reg_diff: registers
                .filter(|(_, (new, old))| new != old)
                .map(|(i, (new, _))| (RegisterIndex(i), new.clone()))
                .collect(),
            prev_frame_diff: changed
                .map(|(&word, value)| (word, Some(value.clone())))
                .chain(removed.map(|&word| (word, None)))
                .collect(),
            wasm_stack_push: self.wasm_stack[operands..].to_vec(),
            wasm_stack_pop: old.wasm_stack.len() - operands,
            wasm_stack_private_depth: self.wasm_stack_private_depth,
            wasm_inst_offset: self.wasm_inst_offset,
        })
    }

    /// Number of slots, which are all words, registers and operands that the state has an entry for.
    pub(super) fn slots(&self) -> usize {
        self.stack_values.len() + self.register_values.len() + self.prev_frame.len() + self.wasm_stack.len()
    }

    fn check_size(&self, diff: Option<usize>) -> Result<(), StateError> {
        let parts = [
            ("stack words", self.stack_values.len()),
            ("operands", self.wasm_stack.len()),
            ("registers", self.register_values.len()),
            ("words of the caller's frame", self.prev_frame.len()),
        ];
        match parts.into_iter().find(|&(_, count)| count > MAX_SLOTS) {
            Some((what, count)) => Err(StateError::TooLarge { diff, what, count }),
            None => Ok(()),
        }
    }

    fn apply(&mut self, diff: &MachineStateDiff, number: Option<usize>) -> Result<(), StateError> {
        pop(&mut self.stack_values, diff.stack_pop, number, "stack words")?;
        self.stack_values.extend_from_slice(&diff.stack_push);
        let count = self.register_values.len();
        for (index, value) in &diff.reg_diff {
            match self.register_values.get_mut(index.0) {
                Some(place) => place.clone_from(value),
                None => return Err(StateError::NoSuchRegister { diff: number, register: index.0, count }),
            }
        }
        for (&word, change) in &diff.prev_frame_diff {
            match change {
                Some(value) => drop(self.prev_frame.insert(word, value.clone())),
                None if self.prev_frame.remove(&word).is_some() => {}
                None => return Err(StateError::NothingToRemove { diff: number, word }),
            }
        }
        pop(&mut self.wasm_stack, diff.wasm_stack_pop, number, "operands")?;
        self.wasm_stack.extend_from_slice(&diff.wasm_stack_push);
        self.check_size(number)
    }
}

impl Default for MachineState {
    fn default() -> MachineState {
        MachineState::new()
    }
}

fn pop<T>(stack: &mut Vec<T>, pops: usize, diff: Option<usize>, what: &'static str) -> Result<(), StateError> {
    let depth = stack.len();
    let left = depth.checked_sub(pops).ok_or(StateError::PopBeyond { diff, what, pops, depth })?;
    stack.truncate(left);
    Ok(())
}

/// The work that building states may still cost before it is given up. Its unit is a copied value. There is such a
/// limit because a hostile map can make every frame follow a chain as long as the map.
#[derive(Clone, Copy, Debug)]
pub struct Budget(pub u64);

impl Default for Budget {
    fn default() -> Budget {
        Budget(MAX_STATE_WORK)
    }
}

impl Budget {
    fn spend(&mut self, cost: usize) -> Result<(), StateError> {
        self.0 = self.0.checked_sub(cost as u64).ok_or(StateError::WorkLimit)?;
        Ok(())
    }
}

impl MachineStateDiff {
    /// Builds the state that this diff of `function` describes.
    ///
    /// # Errors
    /// Fails where the runtime panics (an index out of range, a pop from an empty stack) or never ends (a cyclic
    /// chain).
    pub fn build_state(&self, function: &FunctionStateMap) -> Result<MachineState, StateError> {
        build(function, self, None, &mut Budget::default())
    }
}

impl FunctionStateMap {
    /// Builds the state that diff number `diff` describes. The work is taken off `budget`.
    ///
    /// # Errors
    /// Fails where [`MachineStateDiff::build_state`] fails, with the numbers of the diffs. Fails with
    /// [`StateError::WorkLimit`] if `budget` does not suffice.
    pub fn state(&self, diff: usize, budget: &mut Budget) -> Result<MachineState, StateError> {
        match self.diffs.get(diff) {
            Some(own) => build(self, own, Some(diff), budget),
            None => Err(StateError::NoSuchDiff { diff: None, last: diff, count: self.diffs.len() }),
        }
    }
}

/// Builds states of one function, one after the other. The states of a function build on each other, so each is made
/// from the nearest state that is still kept, instead of from the beginning.
pub struct StateCursor<'f> {
    function: &'f FunctionStateMap,
    /// Numbers of diffs and the states that they describe. Each state but the first builds on the one before it.
    built: Vec<(usize, MachineState)>,
}

impl<'f> StateCursor<'f> {
    /// Creates a cursor that has built no state yet.
    pub fn new(function: &'f FunctionStateMap) -> StateCursor<'f> {
        StateCursor { function, built: Vec::new() }
    }

    /// Builds the state that diff number `diff` describes, or returns it if it is still kept. The work is taken off
    /// `budget`.
    ///
    /// # Errors
    /// Fails where [`FunctionStateMap::state`] fails.
    pub fn state(&mut self, diff: usize, budget: &mut Budget) -> Result<&MachineState, StateError> {
        let count = self.function.diffs.len();
        let mut chain = Vec::new();
        let mut next = Some(diff);
        let mut from = None;
        while let Some(number) = next {
            from = self.built.iter().rposition(|(n, _)| *n == number);
            if from.is_some() {
                break;
            }
            let before = chain.last().copied();
            let own =
                self.function.diffs.get(number).ok_or(StateError::NoSuchDiff { diff: before, last: number, count })?;
            if chain.len() > count {
                return Err(StateError::Cycle { diff: Some(diff) });
            }
            if chain.len() >= MAX_DIFF_CHAIN {
                return Err(StateError::ChainTooLong);
            }
            budget.spend(1)?;
            chain.push(number);
            next = own.last;
        }
        self.built.truncate(from.map_or(0, |i| i + 1));
        if !chain.is_empty() {
            let start = self.built.last().map_or(&self.function.initial, |(_, state)| state);
            start.check_size(None)?;
            budget.spend(start.slots())?;
            let mut state = start.clone();
            for &number in chain.iter().rev() {
                // The diff is in `diffs`, because the loop above has seen it.
                let Some(own) = self.function.diffs.get(number) else { continue };
                budget.spend(
                    own.stack_push.len() + own.reg_diff.len() + own.prev_frame_diff.len() + own.wasm_stack_push.len(),
                )?;
                state.apply(own, Some(number))?;
                state.wasm_stack_private_depth = own.wasm_stack_private_depth;
                state.wasm_inst_offset = own.wasm_inst_offset;
            }
            if self.built.len() >= MAX_KEPT_STATES {
                self.built.remove(0);
            }
            self.built.push((diff, state));
        }
        match self.built.last() {
            Some((_, state)) => Ok(state),
            None => Err(StateError::NoSuchDiff { diff: None, last: diff, count }),
        }
    }
}

/// States that were built while a stack is read. They are kept, because deep recursion returns to the same few
/// places.
pub(super) struct BuiltStates<K> {
    states: HashMap<K, Rc<MachineState>>,
    slots: usize,
}

impl<K> Default for BuiltStates<K> {
    fn default() -> BuiltStates<K> {
        BuiltStates { states: HashMap::new(), slots: 0 }
    }
}

impl<K: Eq + Hash> BuiltStates<K> {
    /// Returns the state of `key`. If it is not kept, `build` makes it.
    pub fn get(
        &mut self,
        key: K,
        build: impl FnOnce() -> Result<MachineState, StateError>,
    ) -> Result<Rc<MachineState>, StateError> {
        if let Some(state) = self.states.get(&key) {
            return Ok(Rc::clone(state));
        }
        let state = Rc::new(build()?);
        self.slots = self.slots.saturating_add(state.slots());
        if self.slots > MAX_CACHED_SLOTS {
            self.states.clear();
            self.slots = state.slots();
        }
        self.states.insert(key, Rc::clone(&state));
        Ok(state)
    }
}

fn build(
    function: &FunctionStateMap,
    own: &MachineStateDiff,
    number: Option<usize>,
    budget: &mut Budget,
) -> Result<MachineState, StateError> {
    let count = function.diffs.len();
    let mut chain = vec![(number, own)];
    let mut current = (number, own);
    while let (diff, MachineStateDiff { last: Some(last), .. }) = current {
        let next = function.diffs.get(*last).ok_or(StateError::NoSuchDiff { diff, last: *last, count })?;
        // The chain is longer than all diffs and this one together, so some diff was met twice.
        if chain.len() > count {
            return Err(StateError::Cycle { diff: number.or(own.last) });
        }
        if chain.len() >= MAX_DIFF_CHAIN {
            return Err(StateError::ChainTooLong);
        }
        budget.spend(1)?;
        current = (Some(*last), next);
        chain.push(current);
    }
    let initial = &function.initial;
    initial.check_size(None)?;
    budget.spend(initial.slots())?;
    let mut state = initial.clone();
    for (number, diff) in chain.into_iter().rev() {
        budget.spend(
            diff.stack_push.len() + diff.reg_diff.len() + diff.prev_frame_diff.len() + diff.wasm_stack_push.len(),
        )?;
        state.apply(diff, number)?;
    }
    state.wasm_stack_private_depth = own.wasm_stack_private_depth;
    state.wasm_inst_offset = own.wasm_inst_offset;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::super::model::WasmAbstractValue;
    use super::super::synthetic::{Module, state};
    use super::*;

    fn function(diffs: Vec<MachineStateDiff>) -> FunctionStateMap {
        let mut function = Module::new(0).function;
        function.diffs = diffs;
        function
    }

    fn on(last: usize) -> MachineStateDiff {
        MachineStateDiff { last: Some(last), ..MachineStateDiff::default() }
    }

    #[test]
    fn a_cursor_gives_the_same_states_in_any_order_and_the_same_errors() {
        let push = |last: Option<usize>, n: usize| MachineStateDiff {
            last,
            stack_push: vec![MachineValue::WasmStack(n)],
            wasm_stack_push: vec![WasmAbstractValue::Const(n as u64)],
            wasm_inst_offset: n,
            wasm_stack_private_depth: n % 2,
            ..MachineStateDiff::default()
        };
        // There are an outer block, an inner block and the outer block again, then a cycle, then a diff that builds
        // on one that does not exist.
        let mut diffs = vec![push(None, 0), push(Some(0), 1), push(Some(1), 2), push(Some(2), 3), push(Some(1), 4)];
        diffs.extend([push(Some(6), 5), push(Some(5), 6), push(Some(99), 7)]);
        diffs.extend((8..300).map(|n| push(Some(if n == 8 { 4 } else { n - 1 }), n)));
        let function = function(diffs);
        let mut cursor = StateCursor::new(&function);
        for diff in (0..300).chain([3, 1, 299, 0, 5, 2, 7, 4, 150, 1000]) {
            let one = cursor.state(diff, &mut Budget::default()).cloned();
            let whole = function.state(diff, &mut Budget::default());
            assert_eq!(one.as_ref().ok(), whole.as_ref().ok(), "{diff}");
        }
    }

    // In the runtime, `build_state` follows `last` for ever and takes memory until none is left.
    #[test]
    fn a_cyclic_chain_is_an_error() {
        for diffs in [vec![on(0)], vec![on(1), on(0)], vec![on(1), on(2), on(1)]] {
            let function = function(diffs);
            assert_eq!(
                function.diffs[0].build_state(&function),
                Err(StateError::Cycle { diff: Some(function.diffs[0].last.unwrap()) })
            );
            let error = function.state(0, &mut Budget(1000)).unwrap_err();
            assert_eq!(error, StateError::Cycle { diff: Some(0) });
        }
    }

    // The runtime indexes `diffs` out of bounds and panics.
    #[test]
    fn a_chain_to_no_diff_is_an_error() {
        let function = function(vec![on(1), on(9)]);
        let error = function.state(0, &mut Budget(1000)).unwrap_err();
        assert_eq!(error, StateError::NoSuchDiff { diff: Some(1), last: 9, count: 2 });
    }

    // The runtime does `unwrap` of `pop()` on an empty stack and panics.
    #[test]
    fn pops_beyond_the_stack_are_errors() {
        let words = MachineStateDiff { stack_pop: 1, ..MachineStateDiff::default() };
        let operands = MachineStateDiff { wasm_stack_pop: usize::MAX, ..MachineStateDiff::default() };
        let function = function(vec![words, operands]);
        for (diff, what, pops) in [(0, "stack words", 1), (1, "operands", usize::MAX)] {
            let error = function.state(diff, &mut Budget(1000)).unwrap_err();
            assert_eq!(error, StateError::PopBeyond { diff: Some(diff), what, pops, depth: 0 });
        }
    }

    // The runtime panics at each of these: it indexes `register_values` out of bounds, `unwrap`s the removal of
    // nothing, and asserts equal register counts.
    #[test]
    fn registers_and_removals_that_do_not_exist_are_errors() {
        let register = MachineStateDiff {
            reg_diff: vec![(RegisterIndex(24), MachineValue::Vmctx)],
            ..MachineStateDiff::default()
        };
        let removal = MachineStateDiff { prev_frame_diff: [(3, None)].into(), ..MachineStateDiff::default() };
        let mut function = function(vec![register, removal]);
        let error = function.state(0, &mut Budget(1000)).unwrap_err();
        assert_eq!(error, StateError::NoSuchRegister { diff: Some(0), register: 24, count: 24 });
        let error = function.state(1, &mut Budget(1000)).unwrap_err();
        assert_eq!(error, StateError::NothingToRemove { diff: Some(1), word: 3 });

        function.initial.register_values.resize(32, MachineValue::Undefined);
        assert_eq!(function.state(0, &mut Budget(1000)).unwrap().register_values[24], MachineValue::Vmctx);
        let error = function.initial.diff(&MachineState::new()).unwrap_err();
        assert_eq!(error, StateError::RegisterCounts { new: 32, old: 24 });
    }

    #[test]
    fn a_state_that_grows_without_end_and_too_much_work_are_errors() {
        let grow = |last| MachineStateDiff {
            last,
            wasm_stack_push: vec![WasmAbstractValue::Runtime; MAX_SLOTS],
            ..MachineStateDiff::default()
        };
        let function = function(vec![grow(None), grow(Some(0))]);
        assert_eq!(function.diffs[0].build_state(&function).unwrap().wasm_stack.len(), MAX_SLOTS);
        let error = function.state(1, &mut Budget(u64::MAX)).unwrap_err();
        assert_eq!(error, StateError::TooLarge { diff: Some(1), what: "operands", count: 2 * MAX_SLOTS });
        assert_eq!(function.state(0, &mut Budget(100)), Err(StateError::WorkLimit));
    }

    #[test]
    fn the_last_diff_decides_private_depth_and_operator() {
        let first = state(2, vec![MachineValue::Vmctx]);
        let mut second = state(1, vec![MachineValue::Vmctx, MachineValue::WasmStack(0)]);
        second.wasm_stack_private_depth = 1;
        second.wasm_inst_offset = 6;
        let mut function = Module::new(0).function;
        function.diffs = vec![first.diff(&function.initial).unwrap(), second.diff(&first).unwrap()];
        function.diffs[1].last = Some(0);
        assert_eq!(function.diffs[0].build_state(&function).unwrap(), first);
        assert_eq!(function.diffs[1].build_state(&function).unwrap(), second);
        assert_eq!((function.diffs[1].stack_pop, function.diffs[1].wasm_stack_pop), (0, 1));
    }

    #[test]
    fn chains_and_work_have_an_end() {
        let chain = |len: usize| {
            function((0..len).map(|i| MachineStateDiff { last: i.checked_sub(1), ..Default::default() }).collect())
        };
        for (len, expected) in [(MAX_DIFF_CHAIN, None), (MAX_DIFF_CHAIN + 1, Some(StateError::ChainTooLong))] {
            let function = chain(len);
            let mut cursor = StateCursor::new(&function);
            assert_eq!(function.state(len - 1, &mut Budget::default()).err(), expected);
            assert_eq!(cursor.state(len - 1, &mut Budget::default()).err(), expected);
            for diff in 0..2 * MAX_KEPT_STATES {
                cursor.state(diff, &mut Budget::default()).unwrap();
                assert!(cursor.built.len() <= MAX_KEPT_STATES);
            }
            assert_eq!(cursor.built.len(), MAX_KEPT_STATES);
        }
        // One budget is used for all frames of a thread.
        let function = function(vec![MachineStateDiff {
            wasm_stack_push: vec![WasmAbstractValue::Runtime; MAX_SLOTS],
            ..Default::default()
        }]);
        let mut budget = Budget::default();
        let built = (0..).take_while(|_| function.state(0, &mut budget).is_ok()).count() as u64;
        assert_eq!(built, MAX_STATE_WORK / (MAX_SLOTS as u64 + 24));
    }

    #[test]
    fn states_are_kept_as_far_as_they_fit() {
        let half = Rc::new(state(MAX_CACHED_SLOTS / 2 - 24, vec![]));
        let mut kept = BuiltStates::default();
        for (key, expected) in [(1, 1), (2, 2), (1, 2), (3, 1), (1, 2)] {
            kept.get(key, || Ok(MachineState::clone(&half))).unwrap();
            assert_eq!(kept.states.len(), expected, "{key}");
            assert_eq!(kept.slots, expected * MAX_CACHED_SLOTS / 2);
        }
        assert!(kept.get(4, || Err(StateError::WorkLimit)).is_err());
    }
}
