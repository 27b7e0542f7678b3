//! `wstate::state::resume` against the runtime's own `invoke_call_return_on_stack`, which is really run: the address that
//! its youngest frame goes on at is a routine here, which copies registers and stack and goes back to the runtime's caller
//! the way a finished guest does.
#![allow(unsafe_code)] // The runtime switches stacks.

use super::*;
use ours::resume::{ResumeError, StackSpec, resume_stack, resume_stack_unverified};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use wstate::arch::x64;

// ---- the runtime's words ----

/// Registers by state-map number, as the routine found them.
#[unsafe(no_mangle)]
static mut RESUME_REGISTERS: [u64; 32] = [0; 32];
/// How many frames the stack has, and what was found on it: address of the first word, words.
static mut RESUME_FRAMES: usize = 0;
static RESUME_STACK: Mutex<(u64, Vec<u64>)> = Mutex::new((0, Vec::new()));
/// One at a time.
static RESUME: Mutex<()> = Mutex::new(());

/// Words of the runtime's stack.
const STACK_WORDS: usize = 1048576;

std::arch::global_asm!(
    ".globl resume_capture",
    "resume_capture:",
    "mov [rip + RESUME_REGISTERS + 0], rax",
    "mov [rip + RESUME_REGISTERS + 8], rcx",
    "mov [rip + RESUME_REGISTERS + 16], rdx",
    "mov [rip + RESUME_REGISTERS + 24], rbx",
    "mov [rip + RESUME_REGISTERS + 32], rsp",
    "mov [rip + RESUME_REGISTERS + 40], rbp",
    "mov [rip + RESUME_REGISTERS + 48], rsi",
    "mov [rip + RESUME_REGISTERS + 56], rdi",
    "mov [rip + RESUME_REGISTERS + 64], r8",
    "mov [rip + RESUME_REGISTERS + 72], r9",
    "mov [rip + RESUME_REGISTERS + 80], r10",
    "mov [rip + RESUME_REGISTERS + 88], r11",
    "mov [rip + RESUME_REGISTERS + 96], r12",
    "mov [rip + RESUME_REGISTERS + 104], r13",
    "mov [rip + RESUME_REGISTERS + 112], r14",
    "mov [rip + RESUME_REGISTERS + 120], r15",
    "movq [rip + RESUME_REGISTERS + 128], xmm0",
    "movq [rip + RESUME_REGISTERS + 136], xmm1",
    "movq [rip + RESUME_REGISTERS + 144], xmm2",
    "movq [rip + RESUME_REGISTERS + 152], xmm3",
    "movq [rip + RESUME_REGISTERS + 160], xmm4",
    "movq [rip + RESUME_REGISTERS + 168], xmm5",
    "movq [rip + RESUME_REGISTERS + 176], xmm6",
    "movq [rip + RESUME_REGISTERS + 184], xmm7",
    "movq [rip + RESUME_REGISTERS + 192], xmm8",
    "movq [rip + RESUME_REGISTERS + 200], xmm9",
    "movq [rip + RESUME_REGISTERS + 208], xmm10",
    "movq [rip + RESUME_REGISTERS + 216], xmm11",
    "movq [rip + RESUME_REGISTERS + 224], xmm12",
    "movq [rip + RESUME_REGISTERS + 232], xmm13",
    "movq [rip + RESUME_REGISTERS + 240], xmm14",
    "movq [rip + RESUME_REGISTERS + 248], xmm15",
    "mov rdi, rsp",
    "mov rsi, rbp",
    // The word below rsp is part of what is compared.
    "sub rsp, 256",
    "and rsp, -16",
    "call {words}",
    "mov rsp, rax",
    "ret",
    words = sym resume_words,
);

unsafe extern "C" {
    fn resume_capture();
}

/// Copies the stack from the word below `sp` on; returns where the address lies that a finished guest returns to.
extern "C" fn resume_words(sp: *const u64, rbp: *const u64) -> *const u64 {
    // SAFETY: RESUME is held; the chain of saved frame pointers has as many links as there are frames, and the last is
    // the lowest address of the runtime's stack.
    unsafe {
        let mut base = rbp;
        for _ in 0..RESUME_FRAMES {
            base = *base as *const u64;
        }
        let (start, end) = (sp.sub(1), base.add(STACK_WORDS));
        let words = std::slice::from_raw_parts(start, end.offset_from(start) as usize);
        *RESUME_STACK.lock().unwrap() = (start as u64, words.to_vec());
        end.sub(3)
    }
}

/// What the runtime built: lowest address, words, registers.
struct Built {
    start: u64,
    words: Vec<u64>,
    registers: [u64; 32],
    code_base: usize,
    vmctx: u64,
    /// Keeps the context.
    _instance: rt::Instance,
}

/// Lets the runtime resume `image`; `None` where it panics. `activate`: of the youngest frame.
fn original(map: &ours::ModuleStateMap, image: &ours::ExecutionStateImage, activate: usize) -> Option<Built> {
    let _one = RESUME.lock().unwrap_or_else(|e| e.into_inner());
    let compiler = wasmer_singlepass_backend_near::SinglePassCompiler::new();
    let module = rt::compile_with(&wat::parse_str("(module (func))").unwrap(), &compiler).unwrap();
    let mut instance = module.instantiate(&rt::import::ImportObject::new()).unwrap();
    let vmctx = instance.context_mut();
    let address = vmctx as *mut rt::vm::Ctx as u64;
    let code_base = resume_capture as *const () as usize - activate;
    let image = theirs::InstanceImage { memory: None, globals: Vec::new(), execution_state: image.original() };
    let map = map.original();
    // SAFETY: RESUME is held. The youngest frame goes on at `resume_capture`, which returns as a guest does, so nothing
    // of the frames is run.
    unsafe {
        RESUME_FRAMES = image.execution_state.frames.len();
        let run = || theirs::x64::invoke_call_return_on_stack(&map, code_base, image, vmctx, None);
        catch_unwind(AssertUnwindSafe(run)).ok()?.expect("no trap");
        let (start, words) = std::mem::take(&mut *RESUME_STACK.lock().unwrap());
        let registers = RESUME_REGISTERS;
        Some(Built { start, words, registers, code_base, vmctx: address, _instance: instance })
    }
}

/// The same stack from our function, with the words that only the runtime's switch knows.
fn ours_like(
    map: &ours::ModuleStateMap,
    image: &ours::ExecutionStateImage,
    built: &Built,
) -> Result<ours::ResumeStack, ResumeError> {
    let top = built.start + built.words.len() as u64 * 8;
    let place = StackSpec {
        top,
        outer: built.words[built.words.len() - 3..].try_into().unwrap(),
        outer_rbp: top - STACK_WORDS as u64 * 8,
        code_base: built.code_base as u64,
        vmctx: built.vmctx,
        registers: ours::KnownRegisters::UNKNOWN,
    };
    resume_stack_unverified(map, image, &place, &mut |address| built.memory(address))
}

impl Built {
    /// Words of the instance's context and of the module it points to.
    fn memory(&self, address: u64) -> Option<u64> {
        const MODULE: u64 = 0x88;
        let read = |address: u64| unsafe { *(address as *const u64) };
        // SAFETY: the instance lives as long as `self`, and both structures are longer.
        let module = read(self.vmctx + MODULE);
        let inside = |start: u64, len: u64| (start..start + len).contains(&address) && address.is_multiple_of(8);
        (inside(self.vmctx, 160) || inside(module, 64)).then(|| read(address))
    }
}

fn compare(built: &Built, mine: &ours::ResumeStack) {
    assert_eq!(mine.start, built.start);
    assert_eq!(mine.words, built.words);
    for (index, value) in built.registers.iter().enumerate() {
        assert_eq!(mine.registers.get(index).unwrap_or(0), *value, "register {index}");
    }
    let rsp = x64::RSP.index();
    let block: BTreeSet<u64> = mine.register_block().into_iter().collect();
    let all = built.registers.iter().enumerate().filter(|(i, _)| *i != rsp).map(|(_, v)| *v);
    assert_eq!(block, all.collect());
}

/// Makes the values of a random map such that the runtime does not read memory that is not its own.
fn tame(map: &mut ours::ModuleStateMap) {
    fn limit(value: &mut ours::MachineValue) {
        match value {
            ours::MachineValue::VmctxDeref(offsets) => offsets.truncate(1),
            ours::MachineValue::TwoHalves(halves) => {
                limit(&mut halves.0);
                limit(&mut halves.1);
            }
            ours::MachineValue::CopyStackBPRelative(offset) if *offset & 0x80 != 0 => *offset = (*offset % 8) * 8,
            _ => {}
        }
        if *value == ours::MachineValue::VmctxDeref(Vec::new()) {
            *value = ours::MachineValue::Undefined;
        }
    }
    for function in map.local_functions.values_mut() {
        let states = std::iter::once((&mut function.initial.stack_values, &mut function.initial.register_values));
        for (words, registers) in states {
            words.iter_mut().chain(registers).for_each(limit);
        }
        function.initial.prev_frame.clear();
        for diff in &mut function.diffs {
            diff.stack_push.iter_mut().for_each(limit);
            diff.reg_diff.iter_mut().for_each(|(_, v)| limit(v));
            diff.prev_frame_diff.clear();
        }
    }
}

/// A frame of `function` at `operator`, with values from `random`.
fn frame(
    function: &ours::FunctionStateMap,
    state: &ours::MachineState,
    operator: usize,
    random: &mut impl FnMut() -> u64,
) -> ours::WasmFunctionStateDump {
    let mut some = || match random() % 300 {
        0 => None,
        1..200 => Some(random() & 0xffff_ffff),
        _ => Some(random()),
    };
    let depth = state.wasm_stack.len().saturating_sub(state.wasm_stack_private_depth);
    ours::WasmFunctionStateDump {
        local_function_id: function.local_function_id,
        wasm_inst_offset: operator,
        stack: (0..depth).map(|_| some()).collect(),
        locals: function.locals.iter().map(|_| some()).collect(),
    }
}

fn generator(seed: u64) -> impl FnMut() -> u64 {
    let mut random = seed | 1;
    move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn suspend(function: &ours::FunctionStateMap, operator: usize) -> Option<(ours::PointKind, usize, &ours::OffsetInfo)> {
    let suspend = match operator {
        usize::MAX => function.wasm_function_header_target_offset?,
        n => *function.wasm_offset_to_target_offset.get(&n)?,
    };
    let (kind, offset) = match suspend {
        ours::SuspendOffset::Call(offset) => (ours::PointKind::Call, offset),
        ours::SuspendOffset::Loop(offset) => (ours::PointKind::Loop, offset),
        ours::SuspendOffset::Trappable(offset) => (ours::PointKind::Trappable, offset),
    };
    Some((kind, offset, function.table(kind).get(&offset)?))
}

static COUNTS: Mutex<BTreeMap<&str, usize>> = Mutex::new(BTreeMap::new());

fn count(what: &'static str) -> usize {
    let mut counts = COUNTS.lock().unwrap();
    let n = counts.entry(what).or_default();
    *n += 1;
    *n
}

#[test]
fn random_images_have_the_runtimes_words() {
    let cases = config(false).cases;
    let mut runner = proptest::test_runner::TestRunner::new(config(false));
    runner
        .run(&(module(), 1usize..6, any::<u64>()), |(mut map, frames, seed)| {
            tame(&mut map);
            let mut random = generator(seed);
            let mut image = ours::ExecutionStateImage::default();
            let places: Vec<(&ours::FunctionStateMap, usize)> = map
                .local_functions
                .values()
                .flat_map(|f| f.wasm_offset_to_target_offset.keys().map(move |operator| (f, *operator)))
                .chain(map.local_functions.values().map(|f| (f, usize::MAX)))
                .collect();
            let mut activate = 0;
            for number in 0..frames {
                let (function, operator) = places[random() as usize % places.len()];
                let at = suspend(function, operator).filter(|(.., info)| info.diff_id < function.diffs.len());
                let state = match at {
                    Some((.., info)) => function.diffs[info.diff_id].build_state(function).unwrap(),
                    None => function.initial.clone(),
                };
                if number == 0 {
                    activate = at.map_or(0, |(.., info)| info.activate_offset);
                }
                image.frames.push(frame(function, &state, operator, &mut random));
            }
            match original(&map, &image, activate) {
                Some(built) => match ours_like(&map, &image, &built) {
                    Ok(mine) => {
                        compare(&built, &mine);
                        count("the same words and registers");
                    }
                    // Zeros of a stack that is not written yet, or not written by the runtime at all.
                    Err(ResumeError::Copy { .. }) => drop(count("the runtime copies a word that holds nothing")),
                    Err(e) => panic!("the runtime can, we cannot: {e}"),
                },
                None => {
                    let place = StackSpec {
                        top: 0x7fff_0000_0000,
                        outer: [1, 2, 3],
                        outer_rbp: 4,
                        code_base: 5,
                        vmctx: 6,
                        registers: ours::KnownRegisters::UNKNOWN,
                    };
                    match resume_stack_unverified(&map, &image, &place, &mut |_| None) {
                        Err(_) => drop(count("both refuse")),
                        Ok(_) => panic!("the runtime cannot, we can"),
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    let counts = COUNTS.lock().unwrap();
    println!("of {cases} images: {counts:?}");
    assert!(counts["the same words and registers"] * 40 > cases as usize, "{counts:?}");
    assert!(counts["both refuse"] > 0, "{counts:?}");
}

// ---- hand-made maps of which every value has a place ----

const BASE: usize = 0x40_0000;
const SHADOW: usize = 32;

/// Builds a function's states such that each value has one place, every register that a state names is saved by it, and
/// values in the caller's frame are where the caller's shadow is.
struct Maker<'a, R: FnMut() -> u64> {
    random: &'a mut R,
}

impl<R: FnMut() -> u64> Maker<'_, R> {
    fn below(&mut self, n: usize) -> usize {
        (self.random)() as usize % n
    }

    fn state(&mut self, locals: usize, operator: usize, prev_frame: bool, operands: usize) -> ours::MachineState {
        use ours::MachineValue as V;
        let mut state = ours::MachineState::new();
        state.register_values.resize(if self.below(2) == 0 { 24 } else { 32 }, V::Undefined);
        state.wasm_inst_offset = operator;
        let mut free: Vec<usize> = (0..state.register_values.len()).filter(|r| ![4, 5].contains(r)).collect();
        state.wasm_stack = (0..operands)
            .map(|_| match self.below(4) {
                0 => ours::WasmAbstractValue::Const((self.random)() >> (32 * self.below(8).min(1))),
                _ => ours::WasmAbstractValue::Runtime,
            })
            .collect();
        state.wasm_stack_private_depth = match state.wasm_stack.last() {
            Some(ours::WasmAbstractValue::Const(_)) => self.below(2),
            _ => 0,
        };
        let mut words = Vec::new();
        let mut halves = Vec::new();
        let all = (0..locals).map(V::WasmLocal).chain((0..operands).map(V::WasmStack));
        for value in all {
            match self.below(12) {
                // Nowhere: an image that was read has no value then.
                0 => {}
                1..4 => {
                    let register = free.swap_remove(self.below(free.len()));
                    state.register_values[register] = value;
                }
                4..6 => halves.push(value),
                6..8 if prev_frame => {
                    let word = (0..SHADOW / 8).find(|w| !state.prev_frame.contains_key(w));
                    match word {
                        Some(word) => drop(state.prev_frame.insert(word, value)),
                        None => words.push(value),
                    }
                }
                _ => words.push(value),
            }
        }
        if self.below(2) == 0 {
            let register = free.swap_remove(self.below(free.len()));
            state.register_values[register] = V::Vmctx;
        }
        if self.below(4) == 0 {
            let register = free.swap_remove(self.below(free.len()));
            state.register_values[register] = V::VmctxDeref(vec![16, 8]);
        }
        while let Some(low) = halves.pop() {
            let high = halves.pop().unwrap_or(if self.below(2) == 0 { V::Undefined } else { V::VmctxDeref(vec![24]) });
            words.push(V::TwoHalves(Box::new(if self.below(2) == 0 { (low, high) } else { (high, low) })));
        }
        for extra in [V::Undefined, V::Vmctx, V::VmctxDeref(vec![8]), V::VmctxDeref(vec![0x88, 0, 16])] {
            if self.below(3) == 0 {
                words.push(extra);
            }
        }
        // Saved first, as a prologue does.
        let named = state.register_values.iter().enumerate().filter(|(_, v)| **v != V::Undefined);
        let mut saves: Vec<V> = named.map(|(r, _)| V::PreserveRegister(ours::RegisterIndex(r))).collect();
        for i in (1..words.len()).rev() {
            words.swap(i, self.below(i + 1));
        }
        saves.append(&mut words);
        if !saves.is_empty() && self.below(3) == 0 {
            saves.push(V::CopyStackBPRelative(-8 * (1 + self.below(saves.len())) as i32));
        }
        if self.below(3) == 0 {
            // The shadow elsewhere; the words that a callee may use as its own are the lowest ones all the same.
            saves.push(V::ExplicitShadow);
            saves.extend((0..SHADOW / 8).map(|_| V::Undefined));
        }
        state.stack_values = saves;
        state
    }

    fn module(&mut self) -> ours::ModuleStateMap {
        let mut local_functions = BTreeMap::new();
        let functions = 1 + self.below(3);
        let mut start = TRAMPOLINES;
        for id in 0..functions {
            let locals: Vec<ours::WasmAbstractValue> = (0..self.below(7))
                .map(|_| match self.below(5) {
                    0 => ours::WasmAbstractValue::Const((self.random)() >> (32 * self.below(8).min(1))),
                    _ => ours::WasmAbstractValue::Runtime,
                })
                .collect();
            let count = locals.len();
            let mut registers = None;
            let mut function = None;
            let points = 3 + self.below(4);
            for point in 0..points {
                // The first call point has nothing in its caller's frame: the oldest frame is there.
                let operands = self.below(5);
                let mut state = self.state(count, point, point > 0, operands);
                let registers = *registers.get_or_insert(state.register_values.len());
                if state.register_values.len() > registers {
                    // States of one function have the same number of registers: those that do not fit go.
                    let gone: Vec<usize> = (registers..state.register_values.len()).collect();
                    state
                        .stack_values
                        .retain(|v| !matches!(v, ours::MachineValue::PreserveRegister(r) if gone.contains(&r.0)));
                    let copies = |v: &ours::MachineValue| matches!(v, ours::MachineValue::CopyStackBPRelative(_));
                    state.stack_values.retain(|v| !copies(v));
                }
                state.register_values.resize(registers, ours::MachineValue::Undefined);
                let function = function.get_or_insert_with(|| {
                    let mut initial = ours::MachineState::new();
                    initial.register_values.resize(registers, ours::MachineValue::Undefined);
                    ours::FunctionStateMap::new(initial, id, SHADOW, locals.clone())
                });
                let offset = start + 8 * (point + 1);
                let diff_id = function.diffs.len();
                function.diffs.push(state.diff(&function.initial).unwrap());
                let kind = match point {
                    p if p + 2 == points => ours::PointKind::Loop,
                    p if p + 1 == points => ours::PointKind::Trappable,
                    _ => ours::PointKind::Call,
                };
                // Only after a call execution goes on where it was suspended.
                let activate_offset = if kind == ours::PointKind::Call { offset } else { offset + 3 };
                let info = ours::OffsetInfo { end_offset: offset + 1, diff_id, activate_offset };
                let suspend = match kind {
                    ours::PointKind::Loop => {
                        function.loop_offsets.insert(offset, info);
                        ours::SuspendOffset::Loop(offset)
                    }
                    ours::PointKind::Trappable => {
                        function.trappable_offsets.insert(offset, info);
                        ours::SuspendOffset::Trappable(offset)
                    }
                    ours::PointKind::Call => {
                        function.call_offsets.insert(offset, info);
                        ours::SuspendOffset::Call(offset)
                    }
                };
                function.wasm_offset_to_target_offset.insert(point, suspend);
            }
            local_functions.insert(start, function.unwrap());
            start += 128;
        }
        ours::ModuleStateMap { local_functions, total_size: start }
    }
}

/// The places of values, and which of them hold 32 bits only.
fn placed(state: &ours::MachineState) -> (Vec<&ours::MachineValue>, Vec<&ours::MachineValue>) {
    let mut whole: Vec<&ours::MachineValue> = Vec::new();
    let mut half: Vec<&ours::MachineValue> = Vec::new();
    for value in state.stack_values.iter().chain(&state.register_values).chain(state.prev_frame.values()) {
        match value {
            ours::MachineValue::TwoHalves(halves) => half.extend([&halves.0, &halves.1]),
            value => whole.push(value),
        }
    }
    (whole, half)
}

#[test]
fn what_is_resumed_is_read_again() {
    let images = config(false).cases as usize * 8;
    let mut words = BTreeMap::<&str, usize>::new();
    let (mut frames_in_all, mut same_as_the_runtime) = (0, 0);
    for seed in 0..images as u64 {
        let mut random = generator(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let map = Maker { random: &mut random }.module();
        let functions: Vec<&ours::FunctionStateMap> = map.local_functions.values().collect();
        let depth = 1 + random() as usize % 6;
        let mut image = ours::ExecutionStateImage::default();
        let mut youngest = (0, 0);
        let mut no_prev_frame = true;
        for number in 0..depth {
            let function = functions[random() as usize % functions.len()];
            let calls = function.call_offsets.len();
            let operator = match number {
                // What a frame keeps in its caller's is not there for the oldest.
                n if n + 1 == depth => 0,
                0 => random() as usize % function.diffs.len(),
                _ => random() as usize % calls,
            };
            let (kind, offset, info) = suspend(function, operator).unwrap();
            if number == 0 {
                youngest = (offset, info.activate_offset);
            } else {
                assert_eq!(kind, ours::PointKind::Call);
            }
            let state = function.diffs[info.diff_id].build_state(function).unwrap();
            no_prev_frame &= state.prev_frame.is_empty();
            let (whole, half) = placed(&state);
            let mut value = |declared: &ours::WasmAbstractValue, as_value: ours::MachineValue| match *declared {
                ours::WasmAbstractValue::Const(c) => Some(c),
                _ if whole.contains(&&as_value) => Some(random()),
                _ if half.contains(&&as_value) => Some(random() & 0xffff_ffff),
                _ => None,
            };
            let depth = state.wasm_stack.len() - state.wasm_stack_private_depth;
            let operands = state.wasm_stack.iter().take(depth).enumerate();
            image.frames.push(ours::WasmFunctionStateDump {
                local_function_id: function.local_function_id,
                wasm_inst_offset: operator,
                stack: operands.map(|(n, v)| value(v, ours::MachineValue::WasmStack(n))).collect(),
                locals: function
                    .locals
                    .iter()
                    .enumerate()
                    .map(|(n, v)| value(v, ours::MachineValue::WasmLocal(n)))
                    .collect(),
            });
            for value in state.stack_values.iter().chain(&state.register_values) {
                let name = match value {
                    ours::MachineValue::Undefined => "Undefined",
                    ours::MachineValue::Vmctx => "Vmctx",
                    ours::MachineValue::VmctxDeref(_) => "VmctxDeref",
                    ours::MachineValue::PreserveRegister(_) => "PreserveRegister",
                    ours::MachineValue::CopyStackBPRelative(_) => "CopyStackBPRelative",
                    ours::MachineValue::ExplicitShadow => "ExplicitShadow",
                    ours::MachineValue::WasmStack(_) => "WasmStack",
                    ours::MachineValue::WasmLocal(_) => "WasmLocal",
                    ours::MachineValue::TwoHalves(_) => "TwoHalves",
                };
                *words.entry(name).or_default() += 1;
            }
            *words.entry("prev_frame").or_default() += state.prev_frame.len();
        }
        frames_in_all += image.frames.len();

        // Constants do not fit into half a word, mostly.
        let fits = |r: &Result<ours::ResumeStack, ResumeError>| !matches!(r, Err(ResumeError::Half { .. }));
        let top = 0x7fff_1234_0000u64;
        let outer = [0xdead_0000, 0xdead_0001, 0xdead_0002];
        let place = StackSpec {
            top,
            outer,
            outer_rbp: 0xb9,
            code_base: BASE as u64,
            vmctx: 0xc0_0000,
            registers: ours::KnownRegisters::UNKNOWN,
        };
        let resumed = resume_stack(&map, &image, &place, &mut |address| Some(address ^ 0x5555_0000));
        if !fits(&resumed) {
            *words.entry("a constant too large for half a word").or_default() += 1;
            continue;
        }
        let resumed = resumed.unwrap_or_else(|e| panic!("{e}\n{image:?}\n{map:#?}"));
        assert_eq!(resumed.pc(), (BASE + youngest.1) as u64);
        assert_eq!(resumed.start + resumed.words.len() as u64 * 8, top);
        let mut word =
            |address: u64| resumed.words.get(usize::try_from(address.checked_sub(resumed.start)? / 8).ok()?).copied();
        let version = ours::CodeVersion { baseline: true, msm: Arc::new(map.clone()), base: BASE, backend: "x".into() };
        let address = Some((BASE + youngest.0) as u64);
        let (read, end) =
            ours::read_stack(&[version], resumed.sp(), resumed.registers.0, address, None, None, &mut word);
        assert_eq!(read, image, "{map:#?}");
        assert_eq!(end, ours::ReadEnd::NoState { address: outer[0] });

        // The runtime knows nothing of values in a caller's frame.
        if no_prev_frame {
            let built = original(&map, &image, youngest.1).expect("the runtime can");
            compare(&built, &ours_like(&map, &image, &built).unwrap());
            same_as_the_runtime += 1;
        }
    }
    println!(
        "{images} images, {frames_in_all} frames: {words:?}; {same_as_the_runtime} also have the runtime's own words"
    );
    let kinds = [
        "Undefined",
        "Vmctx",
        "VmctxDeref",
        "PreserveRegister",
        "CopyStackBPRelative",
        "ExplicitShadow",
        "WasmStack",
        "WasmLocal",
        "TwoHalves",
        "prev_frame",
    ];
    for kind in kinds {
        assert!(words.get(kind).is_some_and(|n| *n > 10), "{kind}: {words:?}");
    }
    assert!(same_as_the_runtime > 0);
}

/// Maps of the compiler: every point of every function that has a state, with callers at every call.
#[test]
fn compiled_code_is_resumed_at_every_point() {
    let wasm = wat::parse_str(PROGRAM).unwrap();
    let config = rt::backend::CompilerConfig { track_state: true, full_preemption: true, ..Default::default() };
    let tap = Tap(None.into());
    rt::compile_with_config(&wasm, &tap, config).unwrap();
    let map: ours::ModuleStateMap = codec::decode_borsh(&tap.0.into_inner().unwrap().try_to_vec().unwrap()).unwrap();
    let version = ours::CodeVersion { baseline: true, msm: Arc::new(map.clone()), base: BASE, backend: "x".into() };
    let places: Vec<(&ours::FunctionStateMap, usize)> = map
        .local_functions
        .values()
        .flat_map(|f| f.wasm_offset_to_target_offset.keys().map(move |o| (f, *o)).chain([(f, usize::MAX)]))
        .filter(|(f, operator)| suspend(f, *operator).is_some())
        .collect();
    let mut random = generator(7);
    let (mut resumed_points, mut same, mut spilled, mut private) = (0, 0, 0, 0);
    for &(function, operator) in &places {
        let callers: Vec<_> =
            places.iter().filter(|(f, o)| suspend(f, *o).unwrap().0 == ours::PointKind::Call).collect();
        for caller in callers.iter().map(Some).chain([None]) {
            let mut image = ours::ExecutionStateImage::default();
            let mut spills = false;
            for (f, operator) in [Some(&&(function, operator)), caller].into_iter().flatten() {
                let (kind, _, info) = suspend(f, *operator).unwrap();
                let state = f.diffs[info.diff_id].build_state(f).unwrap();
                let depth = state.wasm_stack.len();
                let beyond = |v: &ours::MachineValue| matches!(v, ours::MachineValue::WasmStack(n) if *n >= depth);
                spills |= state.stack_values.iter().any(beyond);
                assert!(!spills || kind == ours::PointKind::Call);
                let (whole, _) = placed(&state);
                let mut value = |declared: &ours::WasmAbstractValue, value: ours::MachineValue| match *declared {
                    ours::WasmAbstractValue::Const(c) => Some(c),
                    _ if whole.contains(&&value) => Some(random()),
                    _ => None,
                };
                let depth = depth - state.wasm_stack_private_depth;
                let operands = state.wasm_stack.iter().take(depth).enumerate();
                image.frames.push(ours::WasmFunctionStateDump {
                    local_function_id: f.local_function_id,
                    wasm_inst_offset: *operator,
                    stack: operands.map(|(n, v)| value(v, ours::MachineValue::WasmStack(n))).collect(),
                    locals: (f.locals.iter().enumerate())
                        .map(|(n, v)| value(v, ours::MachineValue::WasmLocal(n)))
                        .collect(),
                });
            }
            let place = StackSpec {
                top: 0x7fff_0000,
                outer: [1, 2, 3],
                outer_rbp: 4,
                code_base: BASE as u64,
                vmctx: 0xc0_0000,
                registers: ours::KnownRegisters::UNKNOWN,
            };
            let (_, offset, info) = suspend(function, operator).unwrap();
            let resumed = match resume_stack(&map, &image, &place, &mut |_| None) {
                Ok(resumed) => resumed,
                // An operand of the compiler's own, which no image has: the place of a division's result.
                Err(ResumeError::Unknown { frame, which: ours::resume::Which::Operand(n) }) => {
                    assert!(n >= image.frames[frame].stack.len());
                    assert_eq!(ours::goes_on_at(&map, offset), None);
                    assert!(original(&map, &image, info.activate_offset).is_none());
                    private += 1;
                    continue;
                }
                Err(e) => panic!("{e}: {image:?}"),
            };
            let mut word = |address: u64| resumed.words.get(((address - resumed.start) / 8) as usize).copied();
            let address = Some((BASE + offset) as u64);
            let (read, _) = ours::read_stack(
                std::slice::from_ref(&version),
                resumed.sp(),
                resumed.registers.0,
                address,
                None,
                None,
                &mut word,
            );
            assert_eq!(read, image);
            assert_eq!(ours::goes_on_at(&map, offset), Some(resumed.kind));
            resumed_points += 1;
            match original(&map, &image, info.activate_offset) {
                Some(built) => {
                    compare(&built, &ours_like(&map, &image, &built).unwrap());
                    same += 1;
                }
                None => {
                    assert!(spills, "the runtime cannot resume {image:?}");
                    spilled += 1;
                }
            }
        }
    }
    println!(
        "{resumed_points} images of compiled code resumed, {same} with the runtime's words, {spilled} where it panics \
         (spilled arguments); {private} refused by both (an operand of the compiler's own)"
    );
    assert!(same > 20 && spilled > 0);
}

/// More than the runtime's 8 MiB, and what is refused.
#[test]
fn deep_stacks_are_built_and_broken_images_refused() {
    let mut random = generator(11);
    let mut maker = Maker { random: &mut random };
    let map = loop {
        let map = maker.module();
        let first = map.local_functions.values().next().unwrap();
        let state = first.diffs[0].build_state(first).unwrap();
        if placed(&state).1.is_empty() && state.stack_values.len() > 2 {
            break map;
        }
    };
    let function = map.local_functions.values().next().unwrap();
    let state = function.diffs[0].build_state(function).unwrap();
    let value = |v: &ours::WasmAbstractValue| match *v {
        ours::WasmAbstractValue::Const(c) => Some(c),
        ours::WasmAbstractValue::Runtime => Some(7),
    };
    let operands = state.wasm_stack.len() - state.wasm_stack_private_depth;
    let one = ours::WasmFunctionStateDump {
        local_function_id: 0,
        wasm_inst_offset: 0,
        stack: state.wasm_stack.iter().take(operands).map(value).collect(),
        locals: function.locals.iter().map(value).collect(),
    };
    let place = StackSpec {
        top: 0x7fff_0000_0000,
        outer: [1, 2, 3],
        outer_rbp: 4,
        code_base: BASE as u64,
        vmctx: 0xc0,
        registers: ours::KnownRegisters::UNKNOWN,
    };
    let build = |image: &ours::ExecutionStateImage, place: &StackSpec| {
        resume_stack_unverified(&map, image, place, &mut |address| Some(address))
    };
    let deep = ours::ExecutionStateImage { frames: vec![one.clone(); 300_000] };
    let resumed = build(&deep, &place).unwrap();
    println!("300,000 frames: {} bytes", resumed.words.len() * 8);
    assert!(resumed.words.len() * 8 > 8 << 20);
    // A stack with no room below its top.
    assert!(matches!(build(&deep, &StackSpec { top: 0x1_0000, ..place }), Err(ResumeError::Full { .. })));
    assert!(matches!(build(&deep, &StackSpec { top: 0x1_0001, ..place }), Err(ResumeError::Top { .. })));
    let with = |change: &dyn Fn(&mut ours::WasmFunctionStateDump)| {
        let mut frame = one.clone();
        change(&mut frame);
        build(&ours::ExecutionStateImage { frames: vec![frame] }, &place).unwrap_err().to_string()
    };
    assert_eq!(build(&ours::ExecutionStateImage::default(), &place), Err(ResumeError::Empty));
    assert_eq!(with(&|f| f.local_function_id = 99), "frame 0: the module has no local function 99");
    let text = "frame 0: operator 77 of local function 0 is no loop, call or trap point";
    assert_eq!(with(&|f| f.wasm_inst_offset = 77), text);
    assert!(with(&|f| f.locals.push(None)).contains("locals, the map says"));
    assert!(with(&|f| f.stack.push(Some(1))).contains("operands, the map says"));
}
