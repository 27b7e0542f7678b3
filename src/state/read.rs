//! Reads the values of frames from a stack by means of machine states, as `state.rs: x64::read_stack` does, but from
//! outside of the process.
//!
//! ```text
//!   caller's frame ...
//!   [return address]      <- caller_sp; the next frame's read begins here
//!   [saved rbp]           <- saved_rbp_at
//!   [stack_values[0]]
//!   [stack_values[1]]
//!   ...                      (a word each; ExplicitShadow is shadow_size bytes)
//!   [stack_values[n-1]]   <- sp of this frame, behind the return address of its callee
//! ```
//!
//! Every answer equals the runtime's. Where the runtime panics or reads beyond its tables, the value is missing here
//! and [`FrameRead::problems`] tells why. The frame and its caller are still read.

use super::diff::{Budget, BuiltStates, StateError};
use super::map::Point;
use super::model::{
    CodeVersion, ExecutionStateImage, FunctionStateMap, MachineState, MachineValue, RegisterIndex, WasmAbstractValue,
    WasmFunctionStateDump,
};
use super::x64::{KnownRegisters, from_index};
use crate::arch::x64;
use crate::limits::{MAX_IMAGE_FRAMES, MAX_IMAGE_VALUES, MAX_IMAGE_WORK, MAX_SLOTS};

/// A reader of words of the stack. Every closure `FnMut(u64) -> Option<u64>` is one.
pub trait ReadWord {
    /// Reads the little-endian 64-bit word at `address`. Returns `None` if it cannot be read.
    fn word(&mut self, address: u64) -> Option<u64>;
}

impl<F: FnMut(u64) -> Option<u64>> ReadWord for F {
    fn word(&mut self, address: u64) -> Option<u64> {
        self(address)
    }
}

/// Where a value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValuePlace {
    /// The value was in the register with this state-map number.
    Register(usize),
    /// The value was in the stack word at `address`.
    Stack {
        /// Address of the stack word.
        address: u64,
    },
    /// The value was in one half of the stack word at `address`.
    HalfStack {
        /// Address of the word.
        address: u64,
        /// Whether it was the half with the upper 32 bits.
        high: bool,
    },
    /// The value was in a word of the caller's frame.
    PrevFrame {
        /// Address of the word in the caller's frame.
        address: u64,
    },
    /// The value is a constant that the compiler knew.
    Constant,
    /// The value was not found.
    Missing(MissingReason),
}

/// Why a value is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingReason {
    /// The state names no place for the value.
    #[error("the state map does not say where the value is")]
    NoPlace,
    /// The value is in the register with this state-map number, and what this register holds is not known.
    #[error("register {} is not known in this frame", register_name(*.0))]
    UnknownRegister(usize),
    /// The value is in a stack word that cannot be read.
    #[error("the word at {address:#x} cannot be read")]
    Unreadable {
        /// Address of the word that cannot be read.
        address: u64,
    },
}

fn register_name(index: usize) -> String {
    from_index(RegisterIndex(index)).map_or_else(|| format!("number {index}"), |reg| reg.name().to_owned())
}

/// Something in a machine state that has no meaning and was ignored. The runtime panics at each of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameProblem {
    /// The state has a place for an operand that the operand stack does not have. Real maps have this at a call whose
    /// arguments were spilled (7-argument import with 3 live operands). The runtime indexes out of bounds there
    /// (`state.rs:1369`).
    #[error("there is a place for operand {index}, but there are only {count}, numbered from 0")]
    NoSuchOperand {
        /// Number of the operand, from the bottom of the operand stack.
        index: usize,
        /// Number of operands on the operand stack.
        count: usize,
    },
    /// The state has a place for a local that the function does not have.
    #[error("there is a place for local {index}, but the function has only {count}, numbered from 0")]
    NoSuchLocal {
        /// Number of the local.
        index: usize,
        /// Number of locals of the function.
        count: usize,
    },
    /// The state has a save slot for a register that does not exist.
    #[error("there is a save slot of register {index}, but there are 32 registers")]
    NoSuchRegister {
        /// State-map number of the register.
        index: usize,
    },
    /// The state has a kind of value in a register that cannot be in a register.
    #[error("register {register} holds a kind of value that cannot be in a register")]
    NotInRegister {
        /// State-map number of the register.
        register: usize,
    },
    /// The state has a kind of value in half a word that cannot be there.
    #[error("half of the word at {address:#x} holds a kind of value that cannot be half a word")]
    NotInHalf {
        /// Address of the word.
        address: u64,
    },
    /// The state has a kind of value in the caller's frame that cannot be there.
    #[error("word {word} of the caller's frame holds a kind of value that cannot be there")]
    NotInPrevFrame {
        /// Number of the word, which is its key in `prev_frame`.
        word: usize,
    },
    /// The state says that more operands are private than there are operands.
    #[error("{depth} operands are private, but the operand stack has {count}")]
    PrivateDepth {
        /// Number of private operands (`wasm_stack_private_depth`).
        depth: usize,
        /// Number of operands on the operand stack.
        count: usize,
    },
}

/// Why a frame cannot be read at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The frame would reach beyond the end of the address space.
    #[error("a frame at {sp:#x} of {bytes} bytes does not fit into the address space")]
    AddressSpace {
        /// Stack pointer of the frame.
        sp: u64,
        /// Number of bytes that the frame would need.
        bytes: u128,
    },
    /// The frame has more slots of one kind than are believed.
    #[error("the frame has {slots} slots, more than {MAX_SLOTS}")]
    TooLarge {
        /// Number of slots.
        slots: usize,
    },
}

/// One frame that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameRead {
    /// The frame as the runtime reports it.
    pub dump: WasmFunctionStateDump,
    /// Where each local of `dump` was found.
    pub locals: Vec<ValuePlace>,
    /// Where each operand of `dump` was found.
    pub stack: Vec<ValuePlace>,
    /// Address of the stack word that holds the return address. The read of the caller's frame begins there.
    pub caller_sp: u64,
    /// Address of the saved frame pointer. The runtime's `read_stack` does not read this word.
    pub saved_rbp_at: u64,
    /// The places that hold the instance's `vmctx`. Registers come first.
    pub vmctx_at: Vec<ValuePlace>,
    /// The instance's `vmctx`, if at least one of these places could be read.
    pub vmctx: Option<u64>,
    /// The caller's registers as the runtime computes them. They are the registers of this frame, overwritten from
    /// the save slots. Caller-saved registers keep the values of younger frames, but no state at a call names them.
    pub registers: KnownRegisters,
    /// The save slots: the number of each register, and the address of the word that holds the caller's value.
    pub preserved: Vec<(usize, u64)>,
    /// What was ignored because it has no meaning.
    pub problems: Vec<FrameProblem>,
}

/// The five registers that the runtime saves where optimized code enters baseline code. It keeps them in a
/// thread-local (`fault.rs: BoundaryRegisterPreservation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BoundaryRegisters {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbx: u64,
}

impl BoundaryRegisters {
    /// Takes the words in the order in which the thread-local has them in memory: r15, r14, r13, r12, rbx.
    pub fn from_words(words: [u64; 5]) -> BoundaryRegisters {
        let [r15, r14, r13, r12, rbx] = words;
        BoundaryRegisters { r15, r14, r13, r12, rbx }
    }
}

/// Changes `registers` as the step from optimized code to its baseline caller does. The optimized tier has no map of
/// its save slots, so the five registers come from `boundary`. Without it they are unknown.
pub fn cross_tier_boundary(registers: &mut KnownRegisters, boundary: Option<BoundaryRegisters>) {
    let b = boundary;
    for (reg, value) in [
        (x64::R15, b.map(|b| b.r15)),
        (x64::R14, b.map(|b| b.r14)),
        (x64::R13, b.map(|b| b.r13)),
        (x64::R12, b.map(|b| b.r12)),
        (x64::RBX, b.map(|b| b.rbx)),
    ] {
        registers.set(reg, value);
    }
}

/// A value and its place, as long as a later place may still overwrite them.
#[derive(Clone, Copy)]
struct ReadValue {
    value: Option<u64>,
    place: ValuePlace,
}

impl ReadValue {
    fn start(value: &WasmAbstractValue) -> ReadValue {
        match *value {
            WasmAbstractValue::Const(c) => ReadValue { value: Some(c), place: ValuePlace::Constant },
            WasmAbstractValue::Runtime => ReadValue { value: None, place: ValuePlace::Missing(MissingReason::NoPlace) },
        }
    }
}

/// The operands and locals of a frame by number.
struct Values {
    stack: Vec<ReadValue>,
    locals: Vec<ReadValue>,
    problems: Vec<FrameProblem>,
}

impl Values {
    fn stack(&mut self, index: usize, found: ReadValue) {
        let count = self.stack.len();
        match self.stack.get_mut(index) {
            Some(slot) => *slot = found,
            None => self.problems.push(FrameProblem::NoSuchOperand { index, count }),
        }
    }

    fn local(&mut self, index: usize, found: ReadValue) {
        let count = self.locals.len();
        match self.locals.get_mut(index) {
            Some(slot) => *slot = found,
            None => self.problems.push(FrameProblem::NoSuchLocal { index, count }),
        }
    }
}

fn read_word(reader: &mut dyn ReadWord, address: u64, place: ValuePlace) -> ReadValue {
    match reader.word(address) {
        Some(value) => ReadValue { value: Some(value), place },
        None => ReadValue { value: None, place: ValuePlace::Missing(MissingReason::Unreadable { address }) },
    }
}

/// Reads one frame. `sp` is its stack pointer, which is the address behind the callee's return address. `registers`
/// are the registers of this frame.
///
/// # Errors
/// Fails only where such a frame cannot exist. If a word cannot be read, only the value in it is missing.
pub fn read_frame(
    function: &FunctionStateMap,
    state: &MachineState,
    sp: u64,
    registers: KnownRegisters,
    reader: &mut dyn ReadWord,
) -> Result<FrameRead, ReadError> {
    for slots in [
        state.stack_values.len(),
        state.wasm_stack.len(),
        state.register_values.len(),
        state.prev_frame.len(),
        function.locals.len(),
    ] {
        if slots > MAX_SLOTS {
            return Err(ReadError::TooLarge { slots });
        }
    }
    let mut values = Values {
        stack: state.wasm_stack.iter().map(ReadValue::start).collect(),
        locals: function.locals.iter().map(ReadValue::start).collect(),
        problems: Vec::new(),
    };
    let mut vmctx: Option<u64> = None;
    let mut vmctx_at = Vec::new();

    // Registers are read before the stack words, because the stack words overwrite registers with the caller's
    // values.
    for (register, value) in state.register_values.iter().enumerate() {
        let known = registers.get(register);
        let found = match known {
            Some(v) => ReadValue { value: Some(v), place: ValuePlace::Register(register) },
            None => ReadValue { value: None, place: ValuePlace::Missing(MissingReason::UnknownRegister(register)) },
        };
        match *value {
            MachineValue::Undefined | MachineValue::VmctxDeref(_) => {}
            MachineValue::Vmctx => {
                vmctx = vmctx.or(known);
                vmctx_at.push(found.place);
            }
            // An unknown register leaves a constant as it is. The runtime does the same, but it prints "BUG: Register
            // {} for WebAssembly stack slot {} has unknown value." at ordinary call points.
            MachineValue::WasmStack(index) => match (known, values.stack.get(index)) {
                (None, Some(ReadValue { value: Some(_), .. })) => {}
                _ => values.stack(index, found),
            },
            MachineValue::WasmLocal(index) => match (known, values.locals.get(index)) {
                (None, Some(ReadValue { value: Some(_), .. })) => {}
                _ => values.local(index, found),
            },
            MachineValue::PreserveRegister(_)
            | MachineValue::CopyStackBPRelative(_)
            | MachineValue::ExplicitShadow
            | MachineValue::TwoHalves(_) => values.problems.push(FrameProblem::NotInRegister { register }),
        }
    }

    // This is checked once; afterwards no address of the frame wraps. The shadow has `shadow_size / 8` words. Like
    // the runtime, this drops the remainder.
    let shadow = (function.shadow_size / 8) as u128 * 8;
    let shadows = state.stack_values.iter().filter(|v| **v == MachineValue::ExplicitShadow).count();
    let frame_bytes = (state.stack_values.len() - shadows) as u128 * 8 + shadow * shadows.max(1) as u128;
    // The saved frame pointer and the return address must fit too.
    if sp as u128 + frame_bytes + 16 > 1 << 64 {
        return Err(ReadError::AddressSpace { sp, bytes: frame_bytes + 16 });
    }
    let shadow = shadow as u64;

    let mut registers = registers;
    let mut preserved = Vec::new();
    let mut address = sp;
    if shadows == 0 {
        address += shadow;
    }
    for value in state.stack_values.iter().rev() {
        if *value == MachineValue::ExplicitShadow {
            address += shadow;
            continue;
        }
        let place = ValuePlace::Stack { address };
        match value {
            MachineValue::ExplicitShadow
            | MachineValue::Undefined
            | MachineValue::VmctxDeref(_)
            | MachineValue::CopyStackBPRelative(_) => {}
            MachineValue::Vmctx => {
                let found = read_word(reader, address, place);
                vmctx = vmctx.or(found.value);
                vmctx_at.push(found.place);
            }
            MachineValue::PreserveRegister(index) => match registers.0.get_mut(index.0) {
                Some(register) => {
                    *register = reader.word(address);
                    preserved.push((index.0, address));
                }
                None => values.problems.push(FrameProblem::NoSuchRegister { index: index.0 }),
            },
            MachineValue::WasmStack(index) => values.stack(*index, read_word(reader, address, place)),
            MachineValue::WasmLocal(index) => values.local(*index, read_word(reader, address, place)),
            MachineValue::TwoHalves(halves) => {
                let word = read_word(reader, address, place);
                for (half, high) in [(&halves.0, false), (&halves.1, true)] {
                    let found = match word.value {
                        Some(v) => ReadValue {
                            value: Some(if high { v >> 32 } else { v & 0xffff_ffff }),
                            place: ValuePlace::HalfStack { address, high },
                        },
                        None => word,
                    };
                    match *half {
                        MachineValue::WasmStack(index) => values.stack(index, found),
                        MachineValue::WasmLocal(index) => values.local(index, found),
                        MachineValue::VmctxDeref(_) | MachineValue::Undefined => {}
                        _ => values.problems.push(FrameProblem::NotInHalf { address }),
                    }
                }
            }
        }
        address += 8;
    }

    let saved_rbp_at = address;
    for (&word, value) in &state.prev_frame {
        // Two more words lie in between: the saved rbp and the return address.
        let found =
            match (word as u64).checked_add(2).and_then(|w| w.checked_mul(8)).and_then(|b| address.checked_add(b)) {
                Some(address) => read_word(reader, address, ValuePlace::PrevFrame { address }),
                None => ReadValue {
                    value: None,
                    place: ValuePlace::Missing(MissingReason::Unreadable { address: u64::MAX }),
                },
            };
        match *value {
            MachineValue::WasmStack(index) => values.stack(index, found),
            MachineValue::WasmLocal(index) => values.local(index, found),
            _ => values.problems.push(FrameProblem::NotInPrevFrame { word }),
        }
    }

    let count = values.stack.len();
    let depth = state.wasm_stack_private_depth;
    if depth > count {
        values.problems.push(FrameProblem::PrivateDepth { depth, count });
    }
    values.stack.truncate(count.saturating_sub(depth));

    Ok(FrameRead {
        dump: WasmFunctionStateDump {
            local_function_id: function.local_function_id,
            wasm_inst_offset: state.wasm_inst_offset,
            stack: values.stack.iter().map(|f| f.value).collect(),
            locals: values.locals.iter().map(|f| f.value).collect(),
        },
        locals: values.locals.into_iter().map(|f| f.place).collect(),
        stack: values.stack.into_iter().map(|f| f.place).collect(),
        caller_sp: saved_rbp_at + 8,
        saved_rbp_at,
        vmctx_at,
        vmctx,
        registers,
        preserved,
        problems: values.problems,
    })
}

/// Why [`read_stack`] stopped. The runtime's own `read_stack` does not tell this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadEnd {
    /// No version of a module has a state at this address. It is in native code, in an import trampoline, or between
    /// points.
    #[error("no state map has a state at {address:#x}")]
    NoState {
        /// The address in code at which the frame is.
        address: u64,
    },
    /// As many frames were read as were asked for.
    #[error("as many frames as were asked for")]
    MaxDepth,
    /// The return address cannot be read.
    #[error("the return address at {address:#x} cannot be read")]
    Unreadable {
        /// Address of the word that should hold the return address.
        address: u64,
    },
    /// The state that the map has for this address is broken.
    #[error("the state at {address:#x} is broken: {error}")]
    BadState {
        /// The address in code at which the frame is.
        address: u64,
        /// What is wrong with the state.
        error: StateError,
    },
    /// The frame cannot be as the map describes it.
    #[error("the frame of {address:#x} cannot be read: {error}")]
    BadFrame {
        /// The address in code at which the frame is.
        address: u64,
        /// What is wrong with the frame.
        error: ReadError,
    },
    /// There are more frames or values than an image may have.
    #[error("the image is cut at {frames} frames")]
    Limit {
        /// Number of frames that were read.
        frames: usize,
    },
}

/// Finds the first version that has a state at `address`, and the point that `read_stack` uses there. Each version in
/// turn is asked for a call, then a trappable, then a loop point. The first part of the result is the version's
/// number in `versions`.
pub fn find_point<'a>(versions: &'a [CodeVersion], address: u64) -> Option<(usize, &'a CodeVersion, Point<'a>)> {
    let address = usize::try_from(address).ok()?;
    versions.iter().enumerate().find_map(|(number, version)| {
        let point = version.msm.lookup(address.checked_sub(version.base)?)?;
        point.diff().is_some().then_some((number, version, point))
    })
}

/// Reads all Wasm frames from `sp` on, as the runtime's `read_stack` reports them. The second part of the result
/// tells why there are no more.
///
/// - `sp`: address of a word that holds a return address. With `initial_address`, which is the pc of the youngest
///   frame, it is the stack pointer of the youngest frame.
/// - `registers`: registers of the youngest frame.
/// - `max_depth`: the number of frames that are read at most.
/// - `boundary`: what the thread's `BOUNDARY_REGISTER_PRESERVATION` holds. Without it, these registers are unknown
///   below an optimized frame.
pub fn read_stack(
    versions: &[CodeVersion],
    sp: u64,
    registers: [Option<u64>; 32],
    mut initial_address: Option<u64>,
    max_depth: Option<usize>,
    boundary: Option<BoundaryRegisters>,
    reader: &mut dyn ReadWord,
) -> (ExecutionStateImage, ReadEnd) {
    let mut image = ExecutionStateImage::default();
    let mut registers = KnownRegisters(registers);
    let mut sp = sp;
    let mut was_baseline = true;
    let mut budget = Budget::default();
    let (mut values, mut work) = (0usize, 0usize);
    let mut states = BuiltStates::default();

    let end = loop {
        let frames = image.frames.len();
        if max_depth.is_some_and(|max| frames >= max) {
            break ReadEnd::MaxDepth;
        }
        if (max_depth.is_none() && frames >= MAX_IMAGE_FRAMES) || values > MAX_IMAGE_VALUES || work > MAX_IMAGE_WORK {
            break ReadEnd::Limit { frames };
        }
        let address = match initial_address.take() {
            Some(address) => address,
            None => {
                let Some(word) = reader.word(sp) else { break ReadEnd::Unreadable { address: sp } };
                let Some(next) = sp.checked_add(8) else { break ReadEnd::Unreadable { address: sp } };
                sp = next;
                word
            }
        };
        let Some((number, version, point)) = find_point(versions, address) else { break ReadEnd::NoState { address } };

        let key = (number, point.function_start, point.info.diff_id);
        let state = match states.get(key, || point.function.state(point.info.diff_id, &mut budget)) {
            Ok(state) => state,
            Err(error) => break ReadEnd::BadState { address, error },
        };
        if version.baseline && !was_baseline {
            cross_tier_boundary(&mut registers, boundary);
        }
        was_baseline = version.baseline;
        work = work.saturating_add(state.slots());

        match read_frame(point.function, &state, sp, registers, reader) {
            Ok(frame) => {
                sp = frame.caller_sp;
                registers = frame.registers;
                values = values.saturating_add(frame.dump.stack.len()).saturating_add(frame.dump.locals.len());
                image.frames.push(frame.dump);
            }
            Err(error) => break ReadEnd::BadFrame { address, error },
        }
    };
    (image, end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::map::PointKind;
    use super::super::model::{MachineStateDiff, ModuleStateMap, RegisterIndex};
    use super::super::synthetic::{Module, state};
    use super::*;

    const BASE: usize = 0x40_0000;
    const SP: u64 = 0x7fff_0000;

    fn version(map: ModuleStateMap) -> CodeVersion {
        CodeVersion { baseline: true, msm: Arc::new(map), base: BASE, backend: "singlepass".into() }
    }

    fn words(stack: &[u64]) -> impl FnMut(u64) -> Option<u64> {
        move |address| stack.get(usize::try_from(address.checked_sub(SP)? / 8).ok()?).copied()
    }

    fn frame(module: &Module, state: &MachineState, regs: [Option<u64>; 32], stack: &[u64]) -> FrameRead {
        read_frame(&module.function, state, SP, KnownRegisters(regs), &mut words(stack)).unwrap()
    }

    fn at(word: u64) -> ValuePlace {
        ValuePlace::Stack { address: SP + word * 8 }
    }

    const NONE: [Option<u64>; 32] = [None; 32];

    // The runtime panics inside its trap handler here: `wasm_stack[idx] = Some(*stack)` (state.rs:1369) is out of
    // bounds at a call whose arguments were spilled. In this case an import of 7 arguments is called with 3 operands
    // below them.
    #[test]
    fn an_operand_beyond_the_stack_is_ignored() {
        let spilled = (3..8).rev().map(MachineValue::WasmStack);
        let state = state(3, spilled.chain([MachineValue::WasmStack(1)]).collect());
        let read = frame(&Module::new(0), &state, NONE, &[11, 3, 4, 5, 6, 7, 0xb9, 0]);
        assert_eq!(read.dump.stack, [None, Some(11), None]);
        assert_eq!(read.caller_sp, SP + 7 * 8);
        assert_eq!(read.problems.len(), 5);
        assert_eq!(read.problems[0], FrameProblem::NoSuchOperand { index: 3, count: 3 });
        assert_eq!(
            read.problems[0].to_string(),
            "there is a place for operand 3, but there are only 3, numbered from 0"
        );
    }

    // The runtime panics at each of these: `unreachable!`, `unimplemented!` and indexes out of bounds.
    #[test]
    fn values_without_meaning_are_ignored_and_told() {
        let mut state = state(
            1,
            vec![
                MachineValue::WasmLocal(4),
                MachineValue::PreserveRegister(RegisterIndex(32)),
                MachineValue::TwoHalves(Box::new((MachineValue::Vmctx, MachineValue::WasmStack(0)))),
            ],
        );
        state.register_values = vec![MachineValue::Undefined; 40];
        state.register_values[2] = MachineValue::ExplicitShadow;
        state.register_values[35] = MachineValue::WasmLocal(0);
        state.prev_frame.insert(0, MachineValue::Vmctx);
        state.wasm_stack_private_depth = 2;
        let read = frame(&Module::new(1), &state, [Some(9); 32], &[0x5_0000_0006; 8]);
        assert_eq!(
            read.problems,
            [
                FrameProblem::NotInRegister { register: 2 },
                FrameProblem::NotInHalf { address: SP },
                FrameProblem::NoSuchRegister { index: 32 },
                FrameProblem::NoSuchLocal { index: 4, count: 1 },
                FrameProblem::NotInPrevFrame { word: 0 },
                FrameProblem::PrivateDepth { depth: 2, count: 1 },
            ]
        );
        // The map has more registers than exist. The runtime indexes its 32 known ones out of bounds.
        assert_eq!(read.dump.locals, [None]);
        assert_eq!(read.locals, [ValuePlace::Missing(MissingReason::UnknownRegister(35))]);
        assert_eq!((read.dump.stack, read.registers.0), (vec![], [Some(9); 32]));
    }

    // In the runtime, `lookup_ip` panics (state.rs:309) when a return address is in an import trampoline.
    #[test]
    fn a_return_address_in_an_import_trampoline_ends_the_stack() {
        let map = Module::new(0).point(PointKind::Call, 0x20, &state(0, vec![])).build();
        let stack = [BASE as u64 + 0x20, 0xb9, BASE as u64 + 8];
        let (image, end) = read_stack(&[version(map)], SP, NONE, None, None, None, &mut words(&stack));
        assert_eq!((image.frames.len(), end), (1, ReadEnd::NoState { address: BASE as u64 + 8 }));
    }

    // In the runtime, `stack_offset -= 1` underflows at 200,000 frames in a stack of fixed size (state.rs:895).
    #[test]
    fn two_hundred_thousand_frames_are_read() {
        let map = Module::new(0).point(PointKind::Call, 0x20, &state(0, vec![])).build();
        let stack: Vec<u64> = (0..400_000).map(|i| if i % 2 == 0 { BASE as u64 + 0x20 } else { 0xb9 }).collect();
        let (image, end) = read_stack(&[version(map)], SP, NONE, None, None, None, &mut words(&stack));
        assert_eq!(image.frames.len(), 200_000);
        assert_eq!(end, ReadEnd::Unreadable { address: SP + 400_000 * 8 });
    }

    // The runtime never ends here, and takes memory until none is left.
    #[test]
    fn a_cyclic_chain_ends_the_stack_and_keeps_the_frames_above() {
        let mut module = Module::new(0).point(PointKind::Call, 0x20, &state(0, vec![])).entry(PointKind::Call, 0x30, 1);
        module.function.diffs.push(MachineStateDiff { last: Some(1), ..MachineStateDiff::default() });
        let stack = [BASE as u64 + 0x20, 0xb9, BASE as u64 + 0x30, 0xb9];
        let (image, end) = read_stack(&[version(module.build())], SP, NONE, None, None, None, &mut words(&stack));
        let error = StateError::Cycle { diff: Some(1) };
        assert_eq!((image.frames.len(), end), (1, ReadEnd::BadState { address: BASE as u64 + 0x30, error }));
    }

    // The runtime prints "BUG: Register 6 for WebAssembly stack slot 0 has unknown value." at every call point whose
    // caller-saved operands were not given, although nothing is wrong. It prints nothing for locals in unknown
    // registers.
    #[test]
    fn an_unknown_register_is_a_reason_not_a_message() {
        let mut state = state(2, vec![]);
        state.register_values[6] = MachineValue::WasmStack(0);
        state.register_values[12] = MachineValue::WasmLocal(0);
        state.register_values[7] = MachineValue::WasmStack(1);
        state.wasm_stack[1] = WasmAbstractValue::Const(42);
        let read = frame(&Module::new(1), &state, NONE, &[0xb9, 0]);
        assert_eq!(read.stack, [ValuePlace::Missing(MissingReason::UnknownRegister(6)), ValuePlace::Constant]);
        assert_eq!((read.dump.stack, read.dump.locals), (vec![None, Some(42)], vec![None]));
        assert_eq!(MissingReason::UnknownRegister(6).to_string(), "register rsi is not known in this frame");
    }

    // States have 24 registers (`new_machine_state`), but faults give 32.
    #[test]
    fn states_of_24_and_of_32_registers_are_read() {
        for count in [24, 32] {
            let mut state = state(1, vec![]);
            state.register_values.resize(count, MachineValue::Undefined);
            state.register_values[count - 1] = MachineValue::WasmStack(0);
            let mut registers = NONE;
            registers[count - 1] = Some(77);
            let read = frame(&Module::new(0), &state, registers, &[0xb9, 0]);
            assert_eq!((read.dump.stack, read.stack), (vec![Some(77)], vec![ValuePlace::Register(count - 1)]));
        }
    }

    // Singlepass emits neither of these kinds of values. They are for the optimized tier.
    #[test]
    fn halves_and_the_callers_frame() {
        let halves = MachineValue::TwoHalves(Box::new((MachineValue::WasmLocal(0), MachineValue::WasmStack(1))));
        let mut state = state(2, vec![MachineValue::Vmctx, halves]);
        state.prev_frame = [(0, MachineValue::WasmStack(0)), (2, MachineValue::WasmLocal(1))].into();
        // The words are: the halves, vmctx, rbp, the return address, and words 0-2 of the caller.
        let stack = [0x0000_0005_8000_0006, 0xc0, 0xb9, 0xad, 100, 101, 102];
        let read = frame(&Module::new(2), &state, NONE, &stack);
        assert_eq!(read.dump.locals, [Some(0x8000_0006), Some(102)]);
        assert_eq!(read.dump.stack, [Some(100), Some(5)]);
        assert_eq!(
            read.locals,
            [ValuePlace::HalfStack { address: SP, high: false }, ValuePlace::PrevFrame { address: SP + 48 },]
        );
        assert_eq!(
            read.stack,
            [ValuePlace::PrevFrame { address: SP + 32 }, ValuePlace::HalfStack { address: SP, high: true },]
        );
        assert_eq!((read.saved_rbp_at, read.caller_sp), (SP + 16, SP + 24));
        assert_eq!((read.vmctx, read.vmctx_at), (Some(0xc0), vec![at(1)]));
    }

    #[test]
    fn save_slots_give_the_callers_registers_not_this_frames() {
        let mut state = state(
            0,
            vec![
                MachineValue::PreserveRegister(RegisterIndex(12)),
                MachineValue::ExplicitShadow,
                MachineValue::WasmLocal(1),
            ],
        );
        state.register_values[12] = MachineValue::WasmLocal(0);
        state.register_values[15] = MachineValue::Vmctx;
        let mut module = Module::new(2);
        module.function.shadow_size = 16;
        let mut registers = NONE;
        registers[12] = Some(1);
        registers[15] = Some(0xc0);
        let read = frame(&module, &state, registers, &[222, 0, 0, 1212, 0xb9]);
        assert_eq!(read.dump.locals, [Some(1), Some(222)]);
        assert_eq!(read.locals, [ValuePlace::Register(12), at(0)]);
        assert_eq!((read.registers.get(12), read.registers.get(15)), (Some(1212), Some(0xc0)));
        assert_eq!(read.preserved, [(12, SP + 24)]);
        assert_eq!((read.vmctx, read.vmctx_at), (Some(0xc0), vec![ValuePlace::Register(15)]));
    }

    #[test]
    fn a_word_that_cannot_be_read_is_missing_and_the_frame_stays() {
        let words = vec![
            MachineValue::WasmLocal(0),
            MachineValue::PreserveRegister(RegisterIndex(3)),
            MachineValue::WasmLocal(1),
        ];
        let stack = [10, 11, 12, 0xb9, 0xad];
        let mut reader = |address| if address == SP { Some(stack[0]) } else { None };
        let mut registers = NONE;
        registers[3] = Some(33);
        let function = Module::new(2).function;
        let read = read_frame(&function, &state(0, words), SP, KnownRegisters(registers), &mut reader).unwrap();
        assert_eq!(read.dump.locals, [None, Some(10)]);
        assert_eq!(read.locals, [ValuePlace::Missing(MissingReason::Unreadable { address: SP + 16 }), at(0)]);
        // The register is unknown. It must not keep the callee's value, since the slot would have held another one.
        assert_eq!(read.registers.get(3), None);
        assert_eq!(read.caller_sp, SP + 32);
    }

    // The thread-local of `fault.rs: get_boundary_register_preservation` is used once, where a baseline frame is
    // below an optimized one.
    #[test]
    fn registers_of_a_baseline_frame_below_an_optimized_one_come_from_the_boundary() {
        let mut with_locals = state(0, vec![]);
        for (local, register) in [15, 14, 13, 12, 3].into_iter().enumerate() {
            with_locals.register_values[register] = MachineValue::WasmLocal(local);
        }
        let baseline = version(Module::new(5).point(PointKind::Call, 0x20, &with_locals).build());
        let mut optimized = version(Module::new(0).point(PointKind::Call, 0x30, &state(0, vec![])).build());
        optimized.base = BASE + 0x1000;
        optimized.baseline = false;
        optimized.backend = "llvm".into();
        let versions = [baseline, optimized];
        let (base, top) = (BASE as u64 + 0x20, BASE as u64 + 0x1030);
        let stack = [base, 0xb9, top, 0xb9, top, 0xb9, base, 0xb9, 0];
        let registers = [Some(1); 32];
        let boundary = Some(BoundaryRegisters::from_words([15, 14, 13, 12, 3]));
        let (image, _) = read_stack(&versions, SP, registers, None, None, boundary, &mut words(&stack));
        let locals: Vec<_> = image.frames.iter().map(|f| f.locals.clone()).collect();
        assert_eq!(locals, [vec![Some(1); 5], vec![], vec![], vec![Some(15), Some(14), Some(13), Some(12), Some(3)],]);
        let (image, _) = read_stack(&versions, SP, registers, None, None, None, &mut words(&stack));
        assert_eq!(image.frames[3].locals, [None; 5]);
    }

    #[test]
    fn a_frame_beyond_the_address_space_is_an_error() {
        let mut function = Module::new(0).function;
        function.shadow_size = usize::MAX;
        let mut none = |_| None;
        let error = read_frame(&function, &state(0, vec![]), SP, KnownRegisters(NONE), &mut none).unwrap_err();
        assert!(matches!(error, ReadError::AddressSpace { sp: SP, .. }));
        function.shadow_size = 0;
        let read = read_frame(&function, &state(0, vec![]), u64::MAX - 15, KnownRegisters(NONE), &mut none);
        assert_eq!(read.unwrap().caller_sp, u64::MAX - 7);
        assert!(read_frame(&function, &state(0, vec![]), u64::MAX - 14, KnownRegisters(NONE), &mut none).is_err());
    }

    #[test]
    fn max_depth_and_an_initial_address() {
        let map = Module::new(0)
            .point(PointKind::Trappable, 0x28, &state(0, vec![MachineValue::Undefined]))
            .point(PointKind::Call, 0x20, &state(0, vec![]))
            .build();
        let versions = [version(map)];
        let stack = [0, 0xb9, BASE as u64 + 0x20, 0xb9, BASE as u64 + 0x20, 0xb9, 0];
        let pc = Some(BASE as u64 + 0x28);
        for (max, frames) in [(Some(0), 0), (Some(2), 2), (None, 3)] {
            let (image, end) = read_stack(&versions, SP, NONE, pc, max, None, &mut words(&stack));
            assert_eq!(image.frames.len(), frames);
            assert_eq!(end == ReadEnd::MaxDepth, max.is_some());
        }
    }

    #[test]
    fn an_image_has_an_end() {
        let module = |locals, words| {
            Module::new(locals).point(PointKind::Call, 0x20, &state(0, vec![MachineValue::Undefined; words])).build()
        };
        // Each case gives the locals and stack words of a frame and the expected number of frames. Besides its stack
        // words, each frame has 24 registers as places.
        for (locals, words, frames) in [
            (0, 0, MAX_IMAGE_FRAMES),
            (1024, 0, MAX_IMAGE_VALUES / 1024 + 1),
            (0, 8192 - 24, MAX_IMAGE_WORK / 8192 + 1),
        ] {
            let mut endless = |address: u64| {
                let at_return = (address - SP).is_multiple_of(8 * (words as u64 + 2));
                Some(if at_return { BASE as u64 + 0x20 } else { 0xb9 })
            };
            let versions = [version(module(locals, words))];
            let (image, end) = read_stack(&versions, SP, NONE, None, None, None, &mut endless);
            assert_eq!((image.frames.len(), end), (frames, ReadEnd::Limit { frames }));
            let few = Some(3);
            let (image, end) = read_stack(&versions, SP, NONE, None, few, None, &mut endless);
            assert_eq!((image.frames.len(), end), (3, ReadEnd::MaxDepth));
        }
    }
}
