//! `wstate::state` against the runtime's own `state.rs`, in process, and with hostile input.
//!
//! Every random map is built twice, once of each crate's types, field by field.

use std::collections::BTreeMap;
use std::sync::Arc;

use borsh09::{BorshDeserialize as _, BorshSerialize as _};
use proptest::prelude::*;
use wasmer_runtime_core_near as rt;
use wasmer_runtime_core_near::state as theirs;
use wstate::state as ours;
use wstate::state::codec;

mod resume;

// ---- ours -> theirs, field by field ----

trait Original {
    type Type;
    fn original(&self) -> Self::Type;
}

macro_rules! same {
    ($($ty:ty),*) => {$(impl Original for $ty {
        type Type = $ty;
        fn original(&self) -> $ty { *self }
    })*};
}
same!(usize, u64);

impl<T: Original> Original for Vec<T> {
    type Type = Vec<T::Type>;
    fn original(&self) -> Self::Type {
        self.iter().map(T::original).collect()
    }
}
impl<T: Original> Original for Option<T> {
    type Type = Option<T::Type>;
    fn original(&self) -> Self::Type {
        self.as_ref().map(T::original)
    }
}
impl<A: Original, B: Original> Original for (A, B) {
    type Type = (A::Type, B::Type);
    fn original(&self) -> Self::Type {
        (self.0.original(), self.1.original())
    }
}
impl<V: Original> Original for BTreeMap<usize, V> {
    type Type = BTreeMap<usize, V::Type>;
    fn original(&self) -> Self::Type {
        self.iter().map(|(&k, v)| (k, v.original())).collect()
    }
}
impl Original for ours::RegisterIndex {
    type Type = theirs::RegisterIndex;
    fn original(&self) -> Self::Type {
        theirs::RegisterIndex(self.0)
    }
}
impl Original for ours::WasmAbstractValue {
    type Type = theirs::WasmAbstractValue;
    fn original(&self) -> Self::Type {
        match *self {
            ours::WasmAbstractValue::Runtime => theirs::WasmAbstractValue::Runtime,
            ours::WasmAbstractValue::Const(c) => theirs::WasmAbstractValue::Const(c),
        }
    }
}
impl Original for ours::MachineValue {
    type Type = theirs::MachineValue;
    fn original(&self) -> Self::Type {
        use ours::MachineValue as O;
        use theirs::MachineValue as T;
        match self {
            O::Undefined => T::Undefined,
            O::Vmctx => T::Vmctx,
            O::VmctxDeref(v) => T::VmctxDeref(v.clone()),
            O::PreserveRegister(r) => T::PreserveRegister(r.original()),
            O::CopyStackBPRelative(i) => T::CopyStackBPRelative(*i),
            O::ExplicitShadow => T::ExplicitShadow,
            O::WasmStack(i) => T::WasmStack(*i),
            O::WasmLocal(i) => T::WasmLocal(*i),
            O::TwoHalves(h) => T::TwoHalves(Box::new((h.0.original(), h.1.original()))),
        }
    }
}
impl Original for ours::SuspendOffset {
    type Type = theirs::SuspendOffset;
    fn original(&self) -> Self::Type {
        match *self {
            ours::SuspendOffset::Loop(o) => theirs::SuspendOffset::Loop(o),
            ours::SuspendOffset::Call(o) => theirs::SuspendOffset::Call(o),
            ours::SuspendOffset::Trappable(o) => theirs::SuspendOffset::Trappable(o),
        }
    }
}

/// Both directions for a struct whose fields have the same names.
macro_rules! structs {
    ($($name:ident { $($field:ident),* })*) => {$(
        impl Original for ours::$name {
            type Type = theirs::$name;
            fn original(&self) -> Self::Type {
                theirs::$name { $($field: self.$field.original()),* }
            }
        }
    )*};
}
structs! {
    MachineState { stack_values, register_values, prev_frame, wasm_stack, wasm_stack_private_depth, wasm_inst_offset }
    MachineStateDiff {
        last, stack_push, stack_pop, reg_diff, prev_frame_diff, wasm_stack_push, wasm_stack_pop,
        wasm_stack_private_depth, wasm_inst_offset
    }
    FunctionStateMap {
        initial, local_function_id, locals, shadow_size, diffs, wasm_function_header_target_offset,
        wasm_offset_to_target_offset, loop_offsets, call_offsets, trappable_offsets
    }
    OffsetInfo { end_offset, diff_id, activate_offset }
    ModuleStateMap { local_functions, total_size }
    WasmFunctionStateDump { local_function_id, wasm_inst_offset, stack, locals }
    ExecutionStateImage { frames }
}

/// The runtime's types have no `PartialEq`; their `Debug` prints every field, in order, as ours does.
fn assert_same(ours: &impl std::fmt::Debug, theirs: &impl std::fmt::Debug) {
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
}

// ---- the same types with borsh 1.x ----

mod borsh1 {
    //! The types once more, with borsh 1.x derives; the derive would find borsh 0.9 by itself.
    use std::collections::BTreeMap;

    macro_rules! mirror {
        ($($name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {$(
            #[derive(Clone, Debug, borsh::BorshSerialize, borsh::BorshDeserialize)]
    #[borsh(crate = "borsh")]
            pub struct $name { $(pub $field: $ty),* }
        )*};
    }

    #[derive(Clone, Debug, borsh::BorshSerialize, borsh::BorshDeserialize)]
    #[borsh(crate = "borsh")]
    pub struct RegisterIndex(pub usize);
    #[derive(Clone, Debug, borsh::BorshSerialize, borsh::BorshDeserialize)]
    #[borsh(crate = "borsh")]
    pub enum WasmAbstractValue {
        Runtime,
        Const(u64),
    }
    #[derive(Clone, Debug, borsh::BorshSerialize, borsh::BorshDeserialize)]
    #[borsh(crate = "borsh")]
    pub enum MachineValue {
        Undefined,
        Vmctx,
        VmctxDeref(Vec<usize>),
        PreserveRegister(RegisterIndex),
        CopyStackBPRelative(i32),
        ExplicitShadow,
        WasmStack(usize),
        WasmLocal(usize),
        TwoHalves(Box<(MachineValue, MachineValue)>),
    }
    #[derive(Clone, Debug, borsh::BorshSerialize, borsh::BorshDeserialize)]
    #[borsh(crate = "borsh")]
    pub enum SuspendOffset {
        Loop(usize),
        Call(usize),
        Trappable(usize),
    }
    mirror! {
        MachineState {
            stack_values: Vec<MachineValue>,
            register_values: Vec<MachineValue>,
            prev_frame: BTreeMap<usize, MachineValue>,
            wasm_stack: Vec<WasmAbstractValue>,
            wasm_stack_private_depth: usize,
            wasm_inst_offset: usize,
        }
        MachineStateDiff {
            last: Option<usize>,
            stack_push: Vec<MachineValue>,
            stack_pop: usize,
            reg_diff: Vec<(RegisterIndex, MachineValue)>,
            prev_frame_diff: BTreeMap<usize, Option<MachineValue>>,
            wasm_stack_push: Vec<WasmAbstractValue>,
            wasm_stack_pop: usize,
            wasm_stack_private_depth: usize,
            wasm_inst_offset: usize,
        }
        FunctionStateMap {
            initial: MachineState,
            local_function_id: usize,
            locals: Vec<WasmAbstractValue>,
            shadow_size: usize,
            diffs: Vec<MachineStateDiff>,
            wasm_function_header_target_offset: Option<SuspendOffset>,
            wasm_offset_to_target_offset: BTreeMap<usize, SuspendOffset>,
            loop_offsets: BTreeMap<usize, OffsetInfo>,
            call_offsets: BTreeMap<usize, OffsetInfo>,
            trappable_offsets: BTreeMap<usize, OffsetInfo>,
        }
        OffsetInfo { end_offset: usize, diff_id: usize, activate_offset: usize }
        ModuleStateMap { local_functions: BTreeMap<usize, FunctionStateMap>, total_size: usize }
    }
}

// ---- random maps ----

const LOCALS: usize = 4;

fn two_halves(half: impl Strategy<Value = ours::MachineValue> + Clone) -> impl Strategy<Value = ours::MachineValue> {
    (half.clone(), half).prop_map(|halves| ours::MachineValue::TwoHalves(Box::new(halves)))
}

fn place_of_value(operands: usize) -> BoxedStrategy<ours::MachineValue> {
    let local = (0..LOCALS).prop_map(ours::MachineValue::WasmLocal);
    if operands == 0 {
        return local.boxed();
    }
    prop_oneof![local, (0..operands).prop_map(ours::MachineValue::WasmStack)].boxed()
}

/// A value that `read_stack` of the runtime accepts in a stack word.
fn word(operands: usize) -> BoxedStrategy<ours::MachineValue> {
    let deref = prop::collection::vec(0usize..512, 0..3).prop_map(ours::MachineValue::VmctxDeref);
    let half = prop_oneof![3 => place_of_value(operands), 1 => Just(ours::MachineValue::Undefined), 1 => deref.clone()]
        .boxed();
    prop_oneof![
        1 => Just(ours::MachineValue::Undefined),
        1 => Just(ours::MachineValue::Vmctx),
        1 => deref,
        3 => (0usize..32).prop_map(|r| ours::MachineValue::PreserveRegister(ours::RegisterIndex(r))),
        1 => any::<i32>().prop_map(ours::MachineValue::CopyStackBPRelative),
        1 => Just(ours::MachineValue::ExplicitShadow),
        4 => place_of_value(operands),
        1 => two_halves(half),
    ]
    .boxed()
}

fn register(operands: usize) -> BoxedStrategy<ours::MachineValue> {
    prop_oneof![
        4 => Just(ours::MachineValue::Undefined),
        1 => Just(ours::MachineValue::Vmctx),
        1 => Just(ours::MachineValue::VmctxDeref(vec![8, 16])),
        3 => place_of_value(operands),
    ]
    .boxed()
}

fn abstract_value() -> impl Strategy<Value = ours::WasmAbstractValue> + Clone {
    prop_oneof![
        2 => Just(ours::WasmAbstractValue::Runtime),
        1 => any::<u64>().prop_map(ours::WasmAbstractValue::Const),
    ]
}

fn state(registers: usize) -> impl Strategy<Value = ours::MachineState> {
    prop::collection::vec(abstract_value(), 0..6).prop_flat_map(move |wasm_stack| {
        let operands = wasm_stack.len();
        (
            prop::collection::vec(word(operands), 0..8),
            prop::collection::vec(register(operands), registers),
            prop::collection::btree_map(0usize..6, place_of_value(operands), 0..3),
            Just(wasm_stack),
            0..=operands,
            prop_oneof![4 => 0usize..1000, 1 => Just(usize::MAX)],
        )
            .prop_map(
                |(
                    stack_values,
                    register_values,
                    prev_frame,
                    wasm_stack,
                    wasm_stack_private_depth,
                    wasm_inst_offset,
                )| {
                    ours::MachineState {
                        stack_values,
                        register_values,
                        prev_frame,
                        wasm_stack,
                        wasm_stack_private_depth,
                        wasm_inst_offset,
                    }
                },
            )
    })
}

/// Bytes of code per function.
const FUNCTION_SIZE: usize = 64;

type Tables = [BTreeMap<usize, ours::OffsetInfo>; 3];

fn tables(diffs: usize) -> impl Strategy<Value = Tables> {
    let info = (1usize..4, prop_oneof![8 => 0..diffs, 1 => Just(usize::MAX)], 0..FUNCTION_SIZE).prop_map(
        |(length, diff_id, activate_offset)| ours::OffsetInfo { end_offset: length, diff_id, activate_offset },
    );
    let table = prop::collection::btree_map(0..FUNCTION_SIZE - 4, info, 0..5);
    prop::array::uniform3(table)
}

/// A function of which every diff was made by `diff`, its offsets counted from 0.
fn function() -> impl Strategy<Value = ours::FunctionStateMap> {
    prop_oneof![Just(24usize), Just(32)]
        .prop_flat_map(|registers| {
            (
                state(registers),
                prop::collection::vec((state(registers), any::<prop::sample::Index>(), any::<bool>()), 1..6),
                prop::collection::vec(abstract_value(), LOCALS),
                prop_oneof![Just(32usize), Just(0), Just(16), Just(20)],
            )
        })
        .prop_flat_map(|(initial, states, locals, shadow_size)| {
            let mut function = ours::FunctionStateMap::new(initial, 0, shadow_size, locals);
            for (i, (state, base, from_initial)) in states.iter().enumerate() {
                let last = (i > 0 && !from_initial).then(|| base.index(i));
                let old = last.map_or(&function.initial, |last| &states[last].0);
                let mut diff = state.diff(old).unwrap();
                diff.last = last;
                function.diffs.push(diff);
            }
            let diffs = function.diffs.len();
            (Just(function), tables(diffs))
        })
        .prop_map(|(mut function, [calls, traps, loops])| {
            for (key, operator) in calls.keys().zip(0..) {
                function.wasm_offset_to_target_offset.insert(operator, ours::SuspendOffset::Call(*key));
            }
            for (key, operator) in traps.keys().zip(100..) {
                function.wasm_offset_to_target_offset.insert(operator, ours::SuspendOffset::Trappable(*key));
            }
            function.wasm_function_header_target_offset =
                loops.keys().next().map(|&key| ours::SuspendOffset::Loop(key));
            function.call_offsets = calls;
            function.trappable_offsets = traps;
            function.loop_offsets = loops;
            function
        })
}

fn shift(function: &mut ours::FunctionStateMap, by: usize) {
    let table = |table: &mut BTreeMap<usize, ours::OffsetInfo>| {
        *table = std::mem::take(table)
            .into_iter()
            .map(|(key, mut info)| {
                info.end_offset += key + by;
                info.activate_offset += by;
                (key + by, info)
            })
            .collect();
    };
    table(&mut function.call_offsets);
    table(&mut function.trappable_offsets);
    table(&mut function.loop_offsets);
    for point in
        function.wasm_offset_to_target_offset.values_mut().chain(&mut function.wasm_function_header_target_offset)
    {
        match point {
            ours::SuspendOffset::Loop(o) | ours::SuspendOffset::Call(o) | ours::SuspendOffset::Trappable(o) => *o += by,
        }
    }
}

/// A module whose first function begins behind 16 bytes of "import trampoline".
const TRAMPOLINES: usize = 16;

fn module() -> impl Strategy<Value = ours::ModuleStateMap> {
    prop::collection::vec(function(), 1..4).prop_map(|functions| {
        let total_size = TRAMPOLINES + functions.len() * FUNCTION_SIZE;
        let local_functions = functions
            .into_iter()
            .enumerate()
            .map(|(i, mut function)| {
                let start = TRAMPOLINES + i * FUNCTION_SIZE;
                shift(&mut function, start);
                function.local_function_id = i;
                (start, function)
            })
            .collect();
        ours::ModuleStateMap { local_functions, total_size }
    })
}

/// `PROPTEST_CASES` (256 by default), or a quarter of it where a case is much work.
fn config(much_work: bool) -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if much_work { default.cases.div_ceil(4) } else { default.cases };
    ProptestConfig { failure_persistence: None, cases, ..default }
}

// ---- codec ----

proptest! {
    #![proptest_config(config(false))]

    #[test]
    fn both_encodings_equal_the_runtimes_in_both_directions(map in module()) {
        let original = map.original();
        assert_same(&map, &original);

        let borsh = codec::encode_borsh(&map).unwrap();
        prop_assert_eq!(&borsh, &original.try_to_vec().unwrap());
        assert_same(&map, &theirs::ModuleStateMap::try_from_slice(&borsh).unwrap());
        prop_assert_eq!(&map, &codec::decode_borsh(&borsh).unwrap());

        // borsh 1.x: reads the same values from these bytes and writes the same bytes for them.
        let newer: borsh1::ModuleStateMap = borsh::from_slice(&borsh).unwrap();
        assert_same(&map, &newer);
        prop_assert_eq!(&borsh, &borsh::to_vec(&newer).unwrap());

        let bincode = codec::encode_bincode(&map).unwrap();
        prop_assert_eq!(&bincode, &bincode::serialize(&original).unwrap());
        assert_same(&map, &bincode::deserialize::<theirs::ModuleStateMap>(&bincode).unwrap());
        prop_assert_eq!(&map, &codec::decode_bincode(&bincode).unwrap());

        // Between other things, as in a cache image.
        let mut between = borsh.clone();
        between.extend_from_slice(b"exception table");
        let (decoded, used) = codec::decode_borsh_prefix(&between).unwrap();
        prop_assert_eq!((&decoded, used), (&map, borsh.len()));
        let trailing = codec::decode_borsh::<ours::ModuleStateMap>(&between).unwrap_err();
        prop_assert!(matches!(trailing, ours::CodecError::Trailing { left: 15, .. }), "{}", trailing);
    }

    #[test]
    fn parts_have_the_same_encodings(function in function()) {
        prop_assert_eq!(codec::encode_borsh(&function).unwrap(), function.original().try_to_vec().unwrap());
        for diff in &function.diffs {
            prop_assert_eq!(codec::encode_borsh(diff).unwrap(), diff.original().try_to_vec().unwrap());
        }
        let initial = &function.initial;
        prop_assert_eq!(codec::encode_borsh(initial).unwrap(), initial.original().try_to_vec().unwrap());
        for value in &initial.stack_values {
            let bytes = codec::encode_borsh(value).unwrap();
            prop_assert_eq!(&bytes, &value.original().try_to_vec().unwrap());
            prop_assert_eq!(value, &codec::decode_borsh(&bytes).unwrap());
            let bytes = codec::encode_bincode(value).unwrap();
            prop_assert_eq!(&bytes, &bincode::serialize(&value.original()).unwrap());
            prop_assert_eq!(value, &codec::decode_bincode(&bytes).unwrap());
            // A format that names things, through the same hand-written decoder.
            let json = serde_json::to_string(value).unwrap();
            prop_assert_eq!(&json, &serde_json::to_string(&value.original()).unwrap());
            prop_assert_eq!(value, &serde_json::from_str(&json).unwrap());
        }
    }

    #[test]
    fn images_have_the_same_bytes_and_text(
        frames in prop::collection::vec(
            (0usize..9, prop_oneof![Just(usize::MAX), 0usize..99], any::<Vec<Option<u64>>>(), any::<Vec<Option<u64>>>()),
            0..4,
        ),
        memory in any::<Option<Vec<u8>>>(),
        globals in any::<Vec<u128>>(),
    ) {
        let image = ours::ExecutionStateImage {
            frames: frames
                .into_iter()
                .map(|(local_function_id, wasm_inst_offset, stack, locals)| ours::WasmFunctionStateDump {
                    local_function_id, wasm_inst_offset, stack, locals,
                })
                .collect(),
        };
        let original = image.original();
        prop_assert_eq!(image.output(), original.output());
        let bytes = image.to_bytes().unwrap();
        prop_assert_eq!(&bytes, &bincode::serialize(&original).unwrap());
        prop_assert_eq!(&ours::ExecutionStateImage::from_bytes(&bytes).unwrap(), &image);
        prop_assert_eq!(ours::AnyImage::parse(&bytes).unwrap(), ours::AnyImage::ExecutionState(image.clone()));

        let original = theirs::InstanceImage {
            memory: memory.clone(), globals: globals.clone(), execution_state: original,
        };
        let image = ours::InstanceImage { memory, globals, execution_state: image };
        let mut bytes = image.to_bytes().unwrap();
        prop_assert_eq!(&bytes, &original.to_bytes());
        assert_same(&image, &theirs::InstanceImage::from_bytes(&bytes).unwrap());
        // As snapshots are written and read: by their parts.
        let head = ours::image::head(image.memory.as_ref().map(|m| m.len() as u64));
        let tail = ours::image::tail(&image.globals, &image.execution_state).unwrap();
        prop_assert_eq!(&[&head[..], image.memory.as_deref().unwrap_or_default(), &tail].concat(), &bytes);
        match ours::AnyImage::parse(&bytes).unwrap() {
            ours::AnyImage::Instance(view) => prop_assert_eq!(&view.to_image(&bytes), &image),
            other => prop_assert!(false, "{other:?}"),
        }
        bytes.push(7); // accepted by the runtime too
        prop_assert!(ours::AnyImage::parse(&bytes).is_err());
        prop_assert!(theirs::InstanceImage::from_bytes(&bytes).is_some());
        prop_assert_eq!(ours::InstanceImage::from_bytes(&bytes).unwrap(), image);
    }
}

/// borsh 0.9 (and 1.x unless asked) takes the last of equal keys and any order.
#[test]
fn repeated_and_unsorted_keys_are_read_as_borsh_reads_them() {
    let info = |end: u64| [end, 0, end].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let mut bytes = 3u32.to_le_bytes().to_vec();
    for (key, end) in [(9u64, 10), (4, 5), (9, 12)] {
        bytes.extend(key.to_le_bytes());
        bytes.extend(info(end));
    }
    let mine: BTreeMap<usize, ours::OffsetInfo> = codec::decode_borsh(&bytes).unwrap();
    let older: BTreeMap<usize, theirs::OffsetInfo> = BTreeMap::try_from_slice(&bytes).unwrap();
    let newer: BTreeMap<usize, borsh1::OffsetInfo> = borsh::from_slice(&bytes).unwrap();
    assert_same(&mine, &older);
    assert_same(&mine, &newer);
    assert_eq!(mine[&9].end_offset, 12);
}

// ---- diffs and lookup ----

proptest! {
    #![proptest_config(config(true))]

    #[test]
    fn diffs_are_the_runtimes_and_lead_back(a in state(24), b in state(24)) {
        let diff = b.diff(&a).unwrap();
        assert_same(&diff, &b.original().diff(&a.original()));
        let function = ours::FunctionStateMap::new(a, 0, 32, vec![]);
        prop_assert_eq!(diff.build_state(&function).unwrap(), b);
    }

    #[test]
    fn every_lookup_has_the_runtimes_answer(map in module(), base in 0usize..1 << 40) {
        let original = map.original();
        for offset in 0..map.total_size + 3 {
            let ip = base + offset;
            if (offset < TRAMPOLINES) && offset < map.total_size {
                // state.rs:309: the runtime's lookup_ip panics in an import trampoline (`unwrap` on `None`).
                prop_assert!(map.lookup_call_ip(ip, base).is_none());
                prop_assert!(map.lookup(offset).is_none());
                continue;
            }
            let mine = [map.lookup_call_ip(ip, base), map.lookup_trappable_ip(ip, base), map.lookup_loop_ip(ip, base)];
            let theirs = [
                original.lookup_call_ip(ip, base),
                original.lookup_trappable_ip(ip, base),
                original.lookup_loop_ip(ip, base),
            ];
            let point = map.lookup(offset);
            match theirs.iter().position(|found| found.is_some()) {
                Some(first) => {
                    let point = point.unwrap();
                    prop_assert_eq!(point.kind, ours::PointKind::ORDER[first]);
                    let (function, state) = theirs[first].as_ref().unwrap();
                    assert_same(point.function, function);
                    assert_same(&point.state().unwrap().unwrap(), state);
                }
                None => prop_assert!(point.is_none_or(|p| p.diff().is_none())),
            }
            for (mine, theirs) in mine.into_iter().zip(&theirs) {
                match (mine, theirs) {
                    (None, None) => {}
                    (Some(Ok((function, state))), Some((their_function, their_state))) => {
                        assert_same(function, their_function);
                        assert_same(&state, their_state);
                    }
                    (mine, theirs) => prop_assert!(false, "{mine:?} {theirs:?}"),
                }
            }
        }
        if base > 0 {
            prop_assert!(map.lookup_call_ip(base - 1, base).is_none());
        }
    }

    #[test]
    fn what_the_compiler_writes_is_clean(map in module()) {
        let validation = ours::validate(&map, Some(map.total_size));
        let shadow = map.local_functions.values().any(|f| f.shadow_size % 8 != 0);
        prop_assert_eq!(validation.is_clean(), !shadow, "{:?}", validation);
        prop_assert_eq!(validation.functions, map.local_functions.len());
    }
}

// ---- maps that the compiler wrote ----

/// Keeps the map of what it compiles.
struct Tap(std::cell::RefCell<Option<theirs::ModuleStateMap>>);

impl rt::backend::Compiler for Tap {
    fn compile(
        &self,
        wasm: &[u8],
        config: rt::backend::CompilerConfig,
        token: rt::backend::Token,
    ) -> rt::error::CompileResult<rt::module::ModuleInner> {
        let compiler = wasmer_singlepass_backend_near::SinglePassCompiler::new();
        let inner = compiler.compile(wasm, config, token)?;
        *self.0.borrow_mut() = inner.runnable_module.get_module_state_map();
        Ok(inner)
    }
    #[allow(unsafe_code)]
    unsafe fn from_cache(
        &self,
        _: rt::cache::Artifact,
        _: rt::backend::Token,
    ) -> Result<rt::module::ModuleInner, rt::cache::Error> {
        unreachable!("nothing is cached")
    }
}

const PROGRAM: &str = r#"(module
    (import "env" "seven" (func $seven (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "floats" (func $floats (param f32 f64 i32) (result f64)))
    (memory 1)
    (table 2 funcref)
    (elem (i32.const 0) $many $loops)
    (type $one (func (param i32) (result i32)))
    ;; 3 live operands under 7 arguments, more than there are registers
    (func $many (param i32) (result i32)
        (i32.clz (local.get 0)) (i32.ctz (local.get 0)) (i32.popcnt (local.get 0))
        (call $seven (i32.clz (local.get 0)) (i32.clz (local.get 0)) (i32.clz (local.get 0)) (i32.clz (local.get 0))
            (i32.clz (local.get 0)) (i32.clz (local.get 0)) (i32.clz (local.get 0)))
        (i32.add) (i32.add) (i32.add))
    (func $loops (param i32) (result i32) (local i64 f64 f32 i32 i32 i32)
        (loop $again
            (local.set 4 (i32.add (local.get 4) (call $many (local.get 0))))
            (local.set 2 (call $floats (local.get 3) (f64.const 2.5) (local.get 4)))
            (br_if $again (i32.lt_u (local.get 4) (local.get 0))))
        (block (block (block (br_table 0 1 2 (local.get 0)))
            (drop (i32.load (local.get 4))))
            (i64.store offset=8 (local.get 0) (local.get 1)))
        (if (result i32) (local.get 5)
            (then (call_indirect (type $one) (local.get 4) (local.get 5)))
            (else (i32.div_s (local.get 4) (local.get 0)))))
    (func (param i32) (result i32)
        (if (i32.eqz (local.get 0)) (then unreachable (drop (i32.const 4))))
        (drop (memory.grow (i32.const 1)))
        (drop (i32.trunc_f64_s (f64.const 1)))
        (return (call 4 (i32.sub (local.get 0) (i32.const 1)))) (drop))
    (func))"#;

#[test]
fn maps_of_compiled_code_are_clean_and_read_as_the_runtime_reads_them() {
    let wasm = wat::parse_str(PROGRAM).unwrap();
    for (track_state, full_preemption, enforce_stack_check) in
        [(true, true, true), (true, false, false), (false, false, false), (false, true, false)]
    {
        let config =
            rt::backend::CompilerConfig { track_state, full_preemption, enforce_stack_check, ..Default::default() };
        let tap = Tap(None.into());
        rt::compile_with_config(&wasm, &tap, config).unwrap();
        let original = tap.0.into_inner().unwrap();
        let bytes = original.try_to_vec().unwrap();
        let map: ours::ModuleStateMap = codec::decode_borsh(&bytes).unwrap();
        assert_same(&map, &original);
        assert_eq!(codec::encode_borsh(&map).unwrap(), bytes);

        let validation = ours::validate(&map, Some(map.total_size));
        assert!(validation.is_clean(), "{:?}", validation.problems);
        assert_eq!(validation.functions, 4);
        let (mut points, mut beyond) = (0, 0);
        let start = *map.local_functions.keys().next().unwrap();
        for offset in start..map.total_size {
            let theirs = original
                .lookup_call_ip(offset, 0)
                .or_else(|| original.lookup_trappable_ip(offset, 0))
                .or_else(|| original.lookup_loop_ip(offset, 0));
            match (map.lookup(offset), theirs) {
                (Some(point), Some((function, state))) => {
                    let mine = point.state().unwrap().unwrap();
                    assert_same(&mine, &state);
                    let depth = mine.wasm_stack.len();
                    let operand =
                        |v: &&ours::MachineValue| matches!(v, ours::MachineValue::WasmStack(i) if *i >= depth);
                    beyond += mine.stack_values.iter().filter(operand).count();
                    assert_eq!(point.function.local_function_id, function.local_function_id);
                    assert_eq!(point.wasm_inst_offset(), Some(state.wasm_inst_offset));
                }
                (None, None) => continue,
                (Some(point), None) => assert!(!track_state && point.diff().is_none()),
                (None, Some(_)) => panic!("no point at {offset:#x}"),
            }
            points += 1;
        }
        assert!(points > 5, "{points} points");
        // state.rs:1369: the runtime's read_stack indexes out of bounds at such a point.
        assert_eq!(beyond > 0, track_state, "{beyond} places of spilled arguments");
    }
}

// ---- read_stack ----

struct NoCode;

impl rt::backend::RunnableModule for NoCode {
    fn get_func(
        &self,
        _: &rt::module::ModuleInfo,
        _: rt::types::LocalFuncIndex,
    ) -> Option<std::ptr::NonNull<rt::vm::Func>> {
        None
    }
    fn get_trampoline(&self, _: &rt::module::ModuleInfo, _: rt::types::SigIndex) -> Option<rt::typed_func::Wasm> {
        None
    }
    #[allow(unsafe_code)]
    unsafe fn do_early_trap(&self, _: rt::error::RuntimeError) -> ! {
        unreachable!("nothing runs")
    }
}

const BASES: [usize; 2] = [0x10_0000, 0x20_0000];

#[derive(Debug, Clone)]
struct Scene {
    maps: Vec<(ours::ModuleStateMap, bool)>,
    registers: [Option<u64>; 32],
    boundary: [u64; 5],
    with_address: bool,
    max_depth: Option<usize>,
    calls: Vec<(prop::sample::Index, prop::sample::Index)>,
    seed: u64,
}

fn scene() -> impl Strategy<Value = Scene> {
    (
        prop::collection::vec((module(), any::<bool>()), 1..=2),
        prop::array::uniform32(any::<Option<u64>>()),
        prop::array::uniform5(any::<u64>()),
        any::<bool>(),
        prop_oneof![3 => Just(None), 1 => (0usize..4).prop_map(Some)],
        prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..8),
        any::<u64>(),
    )
        .prop_map(|(maps, registers, boundary, with_address, max_depth, calls, seed)| Scene {
            maps,
            registers,
            boundary,
            with_address,
            max_depth,
            calls,
            seed,
        })
}

impl Scene {
    /// Addresses with a state, with the words of the frame there.
    fn places(&self) -> Vec<Vec<(u64, usize)>> {
        let words = |point: ours::Point<'_>| {
            let state = point.state().unwrap().unwrap();
            let shadows = state.stack_values.iter().filter(|v| **v == ours::MachineValue::ExplicitShadow).count();
            state.stack_values.len() - shadows + shadows.max(1) * (point.function.shadow_size / 8)
        };
        self.maps
            .iter()
            .zip(BASES)
            .map(|((map, _), base)| {
                (0..map.total_size)
                    .filter_map(|offset| map.lookup(offset).filter(|p| p.diff().is_some()).map(|p| (offset, p)))
                    .map(|(offset, point)| ((base + offset) as u64, words(point)))
                    .collect()
            })
            .collect()
    }

    /// The youngest frame's address, if it is given apart, and the stack.
    fn stack(&self) -> (Option<u64>, Vec<u64>) {
        let places = self.places();
        let mut random = self.seed | 1;
        let mut junk = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random | 1 << 63 // in no map
        };
        let mut stack = Vec::new();
        for (map, place) in &self.calls {
            let places = &places[map.index(places.len())];
            if places.is_empty() {
                continue;
            }
            let (address, words) = places[place.index(places.len())];
            stack.push(address);
            stack.extend((0..words + 1).map(|_| junk()));
        }
        stack.extend((0..64).map(|_| junk()));
        match self.with_address {
            true => (Some(stack.remove(0)), stack),
            false => (None, stack),
        }
    }
}

proptest! {
    #![proptest_config(config(false))]

    #[test]
    fn read_stack_has_the_runtimes_answer(scene in scene()) {
        let (address, stack) = scene.stack();
        let originals: Vec<theirs::CodeVersion> = scene.maps.iter().zip(BASES).map(|((map, baseline), base)| {
            theirs::CodeVersion {
                baseline: *baseline,
                msm: map.original(),
                base,
                backend: "singlepass",
                runnable_module: Arc::new(Box::new(NoCode)),
            }
        }).collect();
        #[allow(unsafe_code)]
        // SAFETY: the stack is longer than the frames its return addresses lead through, and ends in addresses that are
        // in no map; the boundary registers are this thread's.
        let expected = unsafe {
            let boundary = rt::fault::get_boundary_register_preservation();
            let [r15, r14, r13, r12, rbx] = scene.boundary;
            *boundary = rt::fault::BoundaryRegisterPreservation { r15, r14, r13, r12, rbx };
            theirs::x64::read_stack(
                || originals.iter(),
                stack.as_ptr(),
                scene.registers,
                address,
                scene.max_depth,
            )
        };

        let versions: Vec<ours::CodeVersion> = scene.maps.iter().zip(BASES).map(|((map, baseline), base)| {
            ours::CodeVersion { baseline: *baseline, msm: Arc::new(map.clone()), base, backend: "singlepass".into() }
        }).collect();
        // Another address than in process: images hold none.
        let sp = 0x7fff_0000_0000u64;
        let mut word = |address: u64| stack.get(((address - sp) / 8) as usize).copied();
        let boundary = Some(ours::read::BoundaryRegisters::from_words(scene.boundary));
        let (image, end) =
            ours::read_stack(&versions, sp, scene.registers, address, scene.max_depth, boundary, &mut word);
        prop_assert_eq!(
            image.to_bytes().unwrap(), bincode::serialize(&expected).unwrap(), "{:?}\n{:?}\n{:?}", image, expected, end
        );
        match end {
            ours::ReadEnd::NoState { .. } => {}
            ours::ReadEnd::MaxDepth => prop_assert_eq!(Some(image.frames.len()), scene.max_depth),
            other => prop_assert!(false, "{other:?}"),
        }

        // The same stack cut anywhere: nothing panics, and frames above the cut are the same.
        for cut in 0..stack.len() {
            let mut word = |address: u64| stack[..cut].get(((address - sp) / 8) as usize).copied();
            let (cut_image, _) =
                ours::read_stack(&versions, sp, scene.registers, address, scene.max_depth, boundary, &mut word);
            prop_assert!(cut_image.frames.len() <= image.frames.len());
            for (cut_frame, frame) in cut_image.frames.iter().zip(&image.frames) {
                for (a, b) in cut_frame.locals.iter().zip(&frame.locals).chain(cut_frame.stack.iter().zip(&frame.stack)) {
                    prop_assert!(a.is_none() || a == b);
                }
            }
        }
    }
}

// ---- tiers ----

/// A module of one function with one call, at which its frame is `state`.
fn hand_made(state: &ours::MachineState, locals: usize, shadow: usize) -> ours::ModuleStateMap {
    let locals = vec![ours::WasmAbstractValue::Runtime; locals];
    let mut function = ours::FunctionStateMap::new(ours::MachineState::new(), 0, shadow, locals);
    function.diffs.push(state.diff(&function.initial).unwrap());
    let offset = TRAMPOLINES + 0x20;
    let info = ours::OffsetInfo { end_offset: offset + 1, diff_id: 0, activate_offset: offset };
    function.call_offsets.insert(offset, info);
    function.wasm_offset_to_target_offset.insert(7, ours::SuspendOffset::Call(offset));
    let local_functions = [(TRAMPOLINES, function)].into();
    ours::ModuleStateMap { local_functions, total_size: TRAMPOLINES + FUNCTION_SIZE }
}

/// A baseline frame: what it uses it saves. An optimized one: nothing is saved, values are in halves of words, in registers
/// and in its caller's frame, which no tier that can be had emits.
fn tiers() -> [ours::ModuleStateMap; 2] {
    use ours::MachineValue::*;
    let saved = [12, 13, 14, 3, 15].map(|r| PreserveRegister(ours::RegisterIndex(r)));
    let mut baseline = ours::MachineState::new();
    for (local, register) in [12, 13, 14, 3].into_iter().enumerate() {
        baseline.register_values[register] = WasmLocal(local);
    }
    baseline.register_values[15] = Vmctx;
    baseline.stack_values = [&[WasmLocal(4)], &saved[..], &[ExplicitShadow, WasmStack(0)]].concat();
    baseline.wasm_stack = vec![ours::WasmAbstractValue::Runtime];
    baseline.wasm_inst_offset = 7;
    let mut optimized = ours::MachineState::new();
    optimized.register_values[12] = WasmLocal(0);
    optimized.register_values[14] = WasmStack(2);
    optimized.stack_values = vec![Vmctx, TwoHalves(Box::new((WasmLocal(1), WasmStack(0)))), VmctxDeref(vec![8])];
    optimized.prev_frame = [(0, WasmStack(1)), (3, WasmLocal(2))].into();
    optimized.wasm_stack = vec![ours::WasmAbstractValue::Runtime; 3];
    optimized.wasm_inst_offset = 7;
    [hand_made(&baseline, 5, 16), hand_made(&optimized, 3, 0)]
}

/// Every order of up to seven frames of two tiers, the boundary's registers known and not.
#[test]
fn tiers_in_any_order_are_read_as_the_runtime_reads_them() {
    let maps = tiers();
    let originals: Vec<theirs::CodeVersion> = (maps.iter().zip(BASES).zip([true, false]))
        .map(|((map, base), baseline)| theirs::CodeVersion {
            baseline,
            msm: map.original(),
            base,
            backend: if baseline { "singlepass" } else { "llvm" },
            runnable_module: Arc::new(Box::new(NoCode)),
        })
        .collect();
    let versions: Vec<ours::CodeVersion> = (maps.iter().zip(BASES).zip([true, false]))
        .map(|((map, base), baseline)| ours::CodeVersion {
            baseline,
            msm: Arc::new(map.clone()),
            base,
            backend: if baseline { "singlepass" } else { "llvm" }.into(),
        })
        .collect();
    // r15, r14, r13, r12, rbx
    let boundary = [0xb15, 0xb14, 0xb13, 0xb12, 0xb3];
    // Words of a frame without its saved rbp and return address.
    const WORDS: [u64; 2] = [5 + 1 + 2 + 1, 3];
    let (mut orders, mut crossings, mut most) = (0, 0, 0);
    for length in 1..=7_usize {
        for order in 0..1_usize << length {
            let tiers: Vec<usize> = (0..length).map(|i| order >> i & 1).collect();
            // A word is its own number, so that it can be told where a value came from.
            let mut stack = Vec::new();
            for &tier in &tiers {
                stack.push((BASES[tier] + TRAMPOLINES + 0x20) as u64);
                let next = stack.len() as u64;
                stack.extend((next..=next + WORDS[tier]).map(|number| 1 << 40 | number << 4 | 7));
            }
            stack.extend([1 << 63; 16]);
            let registers: [Option<u64>; 32] = std::array::from_fn(|i| Some(0xa00 + i as u64));
            #[allow(unsafe_code)]
            // SAFETY: as in `read_stack_has_the_runtimes_answer`.
            let expected = unsafe {
                let kept = rt::fault::get_boundary_register_preservation();
                let [r15, r14, r13, r12, rbx] = boundary;
                *kept = rt::fault::BoundaryRegisterPreservation { r15, r14, r13, r12, rbx };
                theirs::x64::read_stack(|| originals.iter(), stack.as_ptr(), registers, None, None)
            };
            let sp = 0x7fff_0000_0000u64;
            let read = |boundary| {
                let mut word = |address: u64| stack.get(((address - sp) / 8) as usize).copied();
                let (image, end) = ours::read_stack(&versions, sp, registers, None, None, boundary, &mut word);
                assert!(matches!(end, ours::ReadEnd::NoState { .. }), "{end:?}");
                image
            };
            let known = read(Some(ours::read::BoundaryRegisters::from_words(boundary)));
            assert_same(&known, &expected);
            assert_eq!(known.frames.len(), length);
            let unknown = read(None);
            let mut here = 0;
            for (i, &tier) in tiers.iter().enumerate() {
                let crossed = tier == 0 && i > 0 && tiers[i - 1] == 1;
                let (known, unknown) = (&known.frames[i], &unknown.frames[i]);
                if crossed {
                    here += 1;
                    assert_eq!(known.locals[..4], [Some(0xb12), Some(0xb13), Some(0xb14), Some(0xb3)]);
                    assert_eq!(unknown.locals[..4], [None; 4]);
                    assert_eq!((known.locals[4], &known.stack), (unknown.locals[4], &unknown.stack));
                } else {
                    assert_eq!(known, unknown, "{tiers:?}, frame {i}");
                }
            }
            (orders, crossings, most) = (orders + 1, crossings + here, most.max(here));
        }
    }
    println!("{orders} orders of frames with {crossings} boundaries, at most {most} on a stack: all as the runtime's");
    assert_eq!((orders, most), (254, 3));
}

// ---- register tables ----

#[test]
fn register_tables_equal_the_runtimes() {
    use ours::x64::*;
    use theirs::x64_decl as original;
    use wstate::arch::{Machine, Registers, x64};
    for number in 0..=u16::MAX {
        let theirs = original::X64Register::from_dwarf_regnum(number);
        let mine = from_dwarf_regnum(number);
        // The product's way from the registers of an unwinder to a state map.
        if let (Some(reg), Some(index)) = (Machine::X64.from_dwarf(number), mine) {
            let mut registers = Registers::unknown(Machine::X64);
            registers.set(reg, 7);
            let mut expected = ours::KnownRegisters::UNKNOWN;
            expected.0[index.0] = Some(7);
            assert_eq!(known_registers(&registers), expected);
        }
        match number {
            // XMM8-15: the runtime's table ends at 24.
            25..=32 => assert_eq!((theirs, mine), (None, Some(ours::RegisterIndex(number as usize - 1)))),
            _ => assert_eq!(mine.map(|i| i.0), theirs.map(|r| r.to_index().0), "DWARF register {number}"),
        }
        if let (Some(mine), Some(theirs)) = (mine.and_then(from_index), theirs) {
            assert_eq!(to_index(mine).map(|i| i.0), Some(theirs.to_index().0));
            assert_eq!(prefix_mov_to_stack(mine), theirs.prefix_mov_to_stack());
        }
    }
    for index in 24..32 {
        assert_eq!(prefix_mov_to_stack(from_index(ours::RegisterIndex(index)).unwrap()), None);
    }
    assert_eq!(to_index(x64::RIP), None);
    assert_eq!(ours::MachineState::new().register_values.len(), theirs::x64::new_machine_state().register_values.len());
    assert_same(&ours::MachineState::new(), &theirs::x64::new_machine_state());
}

proptest! {
    #![proptest_config(config(false))]

    #[test]
    fn argument_registers_equal_the_runtimes(kinds in prop::collection::vec(0usize..4, 0..30)) {
        let mut mine = ours::x64::ArgumentRegisterAllocator::default();
        let mut theirs = theirs::x64_decl::ArgumentRegisterAllocator::default();
        for kind in kinds {
            use rt::types::Type::{F32, F64, I32, I64};
            let ty = [I32, I64, F32, F64][kind];
            let ours = if kind < 2 { mine.next_integer() } else { mine.next_float() };
            prop_assert_eq!(
                ours.and_then(ours::x64::to_index).map(|i| i.0),
                theirs.next(ty).map(|r| r.to_index().0)
            );
        }
    }
}

// ---- hostile maps ----

/// Any values anywhere.
fn hostile_value() -> impl Strategy<Value = ours::MachineValue> {
    let number = prop_oneof![0usize..40, Just(usize::MAX), Just(1 << 40)];
    let leaf = prop_oneof![
        Just(ours::MachineValue::Undefined),
        Just(ours::MachineValue::Vmctx),
        Just(ours::MachineValue::VmctxDeref(vec![usize::MAX])),
        number.clone().prop_map(|n| ours::MachineValue::PreserveRegister(ours::RegisterIndex(n))),
        Just(ours::MachineValue::CopyStackBPRelative(i32::MIN)),
        Just(ours::MachineValue::ExplicitShadow),
        number.clone().prop_map(ours::MachineValue::WasmStack),
        number.prop_map(ours::MachineValue::WasmLocal),
    ];
    leaf.prop_recursive(3, 8, 2, |inner| {
        (inner.clone(), inner).prop_map(|halves| ours::MachineValue::TwoHalves(Box::new(halves)))
    })
}

fn hostile_state() -> impl Strategy<Value = ours::MachineState> {
    let number = prop_oneof![0usize..8, Just(usize::MAX), Just(usize::MAX / 8)];
    (
        prop::collection::vec(hostile_value(), 0..6),
        prop::collection::vec(hostile_value(), 0..40),
        prop::collection::btree_map(number.clone(), hostile_value(), 0..3),
        prop::collection::vec(abstract_value(), 0..4),
        number.clone(),
        number,
    )
        .prop_map(
            |(stack_values, register_values, prev_frame, wasm_stack, wasm_stack_private_depth, wasm_inst_offset)| {
                ours::MachineState {
                    stack_values,
                    register_values,
                    prev_frame,
                    wasm_stack,
                    wasm_stack_private_depth,
                    wasm_inst_offset,
                }
            },
        )
}

fn hostile_module() -> impl Strategy<Value = ours::ModuleStateMap> {
    let number = || prop_oneof![0usize..24, Just(usize::MAX), Just(usize::MAX - 7)];
    let diff = (prop::option::of(number()), hostile_state(), number(), number()).prop_map(
        |(last, pushes, stack_pop, wasm_stack_pop)| ours::MachineStateDiff {
            last,
            stack_push: pushes.stack_values,
            stack_pop: stack_pop % 5,
            reg_diff: pushes
                .register_values
                .into_iter()
                .enumerate()
                .map(|(i, v)| (ours::RegisterIndex(i), v))
                .collect(),
            prev_frame_diff: pushes.prev_frame.into_iter().map(|(k, v)| (k, (k % 2 == 0).then_some(v))).collect(),
            wasm_stack_push: pushes.wasm_stack,
            wasm_stack_pop: wasm_stack_pop % 5,
            wasm_stack_private_depth: pushes.wasm_stack_private_depth,
            wasm_inst_offset: pushes.wasm_inst_offset,
        },
    );
    let info = (number(), 0usize..6, number()).prop_map(|(end_offset, diff_id, activate_offset)| ours::OffsetInfo {
        end_offset,
        diff_id,
        activate_offset,
    });
    let table = || prop::collection::btree_map(number(), info.clone(), 0..4);
    let function = (hostile_state(), number(), number(), prop::collection::vec(diff, 0..6), table(), table(), table())
        .prop_map(|(initial, id, shadow, diffs, calls, traps, loops)| {
            let mut function =
                ours::FunctionStateMap::new(initial, id, shadow, vec![ours::WasmAbstractValue::Runtime; 3]);
            function.diffs = diffs;
            function.call_offsets = calls;
            function.trappable_offsets = traps;
            function.loop_offsets = loops;
            function
        });
    (prop::collection::btree_map(number(), function, 0..4), number())
        .prop_map(|(local_functions, total_size)| ours::ModuleStateMap { local_functions, total_size })
}

/// Everything that can be done with a map, with a stack on which every word can be read.
fn use_map(map: ours::ModuleStateMap) {
    let _ = ours::validate(&map, None);
    let offsets: Vec<usize> = (0..200).chain([usize::MAX, usize::MAX - 1, usize::MAX - 7]).collect();
    for &offset in &offsets {
        let _ = map.function_at(offset);
        let _ = (map.point_before(offset), map.point_after(offset));
        if let Some(point) = map.lookup(offset) {
            let _ = (point.state(), point.wasm_inst_offset());
        }
    }
    let msm = Arc::new(map);
    for base in [0x1000, usize::MAX - 8] {
        let version = ours::CodeVersion { baseline: true, msm: Arc::clone(&msm), base, backend: "singlepass".into() };
        for sp in [0u64, u64::MAX - 64] {
            for &offset in offsets.iter().step_by(7) {
                let mut words = 0u32;
                let mut word = |_: u64| {
                    words += 1;
                    (words < 100).then_some((base as u64).wrapping_add(words as u64 % 30))
                };
                let address = Some((base as u64).wrapping_add(offset as u64));
                let versions = std::slice::from_ref(&version);
                let _ = ours::read_stack(versions, sp, [Some(1); 32], address, None, None, &mut word);
            }
        }
    }
}

proptest! {
    #![proptest_config(config(true))]

    #[test]
    fn hostile_maps_never_panic_and_end(map in hostile_module()) {
        let bytes = codec::encode_borsh(&map).unwrap();
        prop_assert_eq!(&codec::decode_borsh::<ours::ModuleStateMap>(&bytes).unwrap(), &map);
        let validation = ours::validate(&map, None);
        for (start, function) in &map.local_functions {
            // What validation finds nothing wrong with can be built; what else `prev_frame` removes, building tells.
            for diff in 0..function.diffs.len() {
                match function.state(diff, &mut ours::diff::Budget::default()) {
                    Ok(_) | Err(ours::StateError::NothingToRemove { .. }) => {}
                    Err(error) => prop_assert!(validation.is_bad(*start), "{error}"),
                }
            }
        }
        use_map(map);
    }

    #[test]
    fn mutated_encodings_never_panic_and_end(
        map in module(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        for (encoding, borsh) in [(codec::encode_borsh(&map).unwrap(), true), (codec::encode_bincode(&map).unwrap(), false)] {
            let decode = |bytes: &[u8]| match borsh {
                true => codec::decode_borsh_prefix(bytes).map(|(map, _)| map),
                false => codec::decode_bincode(bytes),
            };
            prop_assert!(decode(&encoding[..cut.index(encoding.len())]).is_err());
            let mut bytes = encoding.clone();
            for (at, to) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *to;
            }
            if let Ok(map) = decode(&bytes) {
                use_map(map);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>()) {
        let _ = codec::decode_borsh_prefix(&bytes);
        let _ = codec::decode_bincode::<ours::ModuleStateMap>(&bytes);
        let _ = ours::InstanceImage::from_bytes(&bytes);
    }
}
