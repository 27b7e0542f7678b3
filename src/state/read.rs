//! From a machine state and a stack to values (`state.rs: x64::read_stack`), out of process.
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
//! Every answer equals the runtime's. Where the runtime panics or reads beyond its tables, the value is missing here and
//! [`FrameRead::problems`] tells why; the frame and its caller stay.

use super::diff::{Budget, BuiltStates, StateError};
use super::map::Point;
use super::model::{
    CodeVersion, ExecutionStateImage, FunctionStateMap, MachineState, MachineValue, WasmAbstractValue,
    WasmFunctionStateDump,
};
use super::x64;
use crate::arch::Reg;
use crate::limits::{MAX_IMAGE_FRAMES, MAX_IMAGE_VALUES, MAX_IMAGE_WORK, MAX_SLOTS};

/// Reads words of the stack. Implemented by every closure `FnMut(u64) -> Option<u64>`.
pub trait ReadWord {
    /// The little-endian 64-bit word at `address`, if it can be read.
    fn word(&mut self, address: u64) -> Option<u64>;
}

impl<F: FnMut(u64) -> Option<u64>> ReadWord for F {
    fn word(&mut self, address: u64) -> Option<u64> {
        self(address)
    }
}

/// Registers by state-map number; `None` is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownRegisters(pub [Option<u64>; 32]);

impl KnownRegisters {
    /// Nothing is known.
    pub const UNKNOWN: KnownRegisters = KnownRegisters([None; 32]);

    /// The register with this number; `None` also where there is no such register.
    pub fn get(&self, index: usize) -> Option<u64> {
        self.0.get(index).copied().flatten()
    }

    /// The value of a register; `None` also where a state map has no number for it.
    pub fn of(&self, reg: Reg) -> Option<u64> {
        self.get(x64::to_index(reg)?.0)
    }
}

/// Where a value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValuePlace {
    /// In the register with this state-map number.
    Register(usize),
    /// The stack word at `address`.
    Stack {
        /// Address.
        address: u64,
    },
    /// Half of the stack word at `address`.
    HalfStack {
        /// Address of the word.
        address: u64,
        /// Upper 32 bits.
        high: bool,
    },
    /// A word of the caller's frame.
    PrevFrame {
        /// Address.
        address: u64,
    },
    /// The compiler knew it.
    Constant,
    /// Not found.
    Missing(MissingReason),
}

/// Why a value is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingReason {
    /// The state names no place for it.
    #[error("the state map names no place for it")]
    NoPlace,
    /// It is in a register whose value is not known.
    #[error("register {} is not known in this frame", register_name(*.0))]
    UnknownRegister(usize),
    /// It is in a word that cannot be read.
    #[error("the word at {address:#x} cannot be read")]
    Unreadable {
        /// Address.
        address: u64,
    },
}

fn register_name(index: usize) -> String {
    Reg::from_index(index).map_or_else(|| format!("number {index}"), |reg| reg.name().to_owned())
}

/// Something in a state that has no meaning and was ignored. The runtime panics at each of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameProblem {
    /// A place for an operand that the operand stack does not have. Real maps have this: a call whose arguments were
    /// spilled (7-argument import with 3 live operands); the runtime indexes out of bounds (`state.rs:1369`).
    #[error("a place for operand {index}, the operand stack has {count}")]
    NoSuchOperand {
        /// Operand number.
        index: usize,
        /// Depth of the operand stack.
        count: usize,
    },
    /// A place for a local that the function does not have.
    #[error("a place for local {index}, the function has {count}")]
    NoSuchLocal {
        /// Local number.
        index: usize,
        /// Number of locals.
        count: usize,
    },
    /// A saved register whose number does not exist.
    #[error("a save slot of register {index}, there are 32")]
    NoSuchRegister {
        /// Register number.
        index: usize,
    },
    /// A value kind that cannot be in a register.
    #[error("register {register} holds a kind of value that cannot be in a register")]
    NotInRegister {
        /// Register number.
        register: usize,
    },
    /// A value kind that cannot be half a word.
    #[error("half of the word at {address:#x} holds a kind of value that cannot be half a word")]
    NotInHalf {
        /// Address of the word.
        address: u64,
    },
    /// A value kind that cannot be in the caller's frame.
    #[error("word {word} of the caller's frame holds a kind of value that cannot be there")]
    NotInPrevFrame {
        /// Key in `prev_frame`.
        word: usize,
    },
    /// More operands are private than there are.
    #[error("{depth} operands are private, the operand stack has {count}")]
    PrivateDepth {
        /// `wasm_stack_private_depth`.
        depth: usize,
        /// Depth of the operand stack.
        count: usize,
    },
}

/// A frame that cannot be read at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The frame would reach beyond the end of the address space.
    #[error("a frame at {sp:#x} of {bytes} bytes does not fit into the address space")]
    AddressSpace {
        /// Stack pointer.
        sp: u64,
        /// Bytes needed.
        bytes: u128,
    },
    /// A frame with more slots than any that is believed.
    #[error("the frame has {slots} slots, more than {MAX_SLOTS}")]
    TooLarge {
        /// Slots.
        slots: usize,
    },
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameRead {
    /// As the runtime reports it.
    pub dump: WasmFunctionStateDump,
    /// Where each local of `dump` is.
    pub locals: Vec<ValuePlace>,
    /// Where each operand of `dump` is.
    pub stack: Vec<ValuePlace>,
    /// Address of the return-address word.
    pub caller_sp: u64,
    /// Address of the saved frame pointer; `read_stack` does not read it.
    pub saved_rbp_at: u64,
    /// The places that hold the instance's `vmctx`, registers first.
    pub vmctx_at: Vec<ValuePlace>,
    /// `vmctx`, if one of these places could be read.
    pub vmctx: Option<u64>,
    /// The caller's registers as the runtime computes them: the given ones, overwritten by the save slots. Caller-saved
    /// registers keep the values of younger frames; no state at a call names them.
    pub registers: KnownRegisters,
    /// Save slots: register number and address of the word that holds the caller's value.
    pub preserved: Vec<(usize, u64)>,
    /// What was ignored.
    pub problems: Vec<FrameProblem>,
}

/// The five registers that the runtime saves where optimized code enters baseline code
/// (`fault.rs: BoundaryRegisterPreservation`, thread-local).
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
    /// In memory order of the thread-local: r15, r14, r13, r12, rbx.
    pub fn from_words(words: [u64; 5]) -> BoundaryRegisters {
        let [r15, r14, r13, r12, rbx] = words;
        BoundaryRegisters { r15, r14, r13, r12, rbx }
    }
}

/// Applies the switch from optimized code to its baseline caller: the optimized tier has no map of its save slots, so
/// the five registers come from `boundary`, or are unknown without it.
pub fn cross_tier_boundary(registers: &mut KnownRegisters, boundary: Option<BoundaryRegisters>) {
    let b = boundary;
    for (reg, value) in [
        (Reg::R15, b.map(|b| b.r15)),
        (Reg::R14, b.map(|b| b.r14)),
        (Reg::R13, b.map(|b| b.r13)),
        (Reg::R12, b.map(|b| b.r12)),
        (Reg::RBX, b.map(|b| b.rbx)),
    ] {
        registers.0[reg.index()] = value;
    }
}

/// A value and its place, while places are still being overwritten.
#[derive(Clone, Copy)]
struct Found {
    value: Option<u64>,
    place: ValuePlace,
}

impl Found {
    fn start(value: &WasmAbstractValue) -> Found {
        match *value {
            WasmAbstractValue::Const(c) => Found { value: Some(c), place: ValuePlace::Constant },
            WasmAbstractValue::Runtime => Found { value: None, place: ValuePlace::Missing(MissingReason::NoPlace) },
        }
    }
}

/// The values of a frame by number.
struct Values {
    stack: Vec<Found>,
    locals: Vec<Found>,
    problems: Vec<FrameProblem>,
}

impl Values {
    fn stack(&mut self, index: usize, found: Found) {
        let count = self.stack.len();
        match self.stack.get_mut(index) {
            Some(slot) => *slot = found,
            None => self.problems.push(FrameProblem::NoSuchOperand { index, count }),
        }
    }

    fn local(&mut self, index: usize, found: Found) {
        let count = self.locals.len();
        match self.locals.get_mut(index) {
            Some(slot) => *slot = found,
            None => self.problems.push(FrameProblem::NoSuchLocal { index, count }),
        }
    }
}

fn read_word(reader: &mut dyn ReadWord, address: u64, place: ValuePlace) -> Found {
    match reader.word(address) {
        Some(value) => Found { value: Some(value), place },
        None => Found { value: None, place: ValuePlace::Missing(MissingReason::Unreadable { address }) },
    }
}

/// Reads one frame: `sp` is its stack pointer, behind the callee's return address; `registers` are this frame's.
///
/// # Errors
/// Only where the frame cannot exist. A word that cannot be read makes its value missing.
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
        stack: state.wasm_stack.iter().map(Found::start).collect(),
        locals: function.locals.iter().map(Found::start).collect(),
        problems: Vec::new(),
    };
    let mut vmctx: Option<u64> = None;
    let mut vmctx_at = Vec::new();

    // Before the stack words, which overwrite registers with the caller's values.
    for (register, value) in state.register_values.iter().enumerate() {
        let known = registers.get(register);
        let found = match known {
            Some(v) => Found { value: Some(v), place: ValuePlace::Register(register) },
            None => Found { value: None, place: ValuePlace::Missing(MissingReason::UnknownRegister(register)) },
        };
        match *value {
            MachineValue::Undefined | MachineValue::VmctxDeref(_) => {}
            MachineValue::Vmctx => {
                vmctx = vmctx.or(known);
                vmctx_at.push(found.place);
            }
            // An unknown register leaves a constant as it is, as in the runtime; it prints "BUG: Register {} for
            // WebAssembly stack slot {} has unknown value." at ordinary call points.
            MachineValue::WasmStack(index) => match (known, values.stack.get(index)) {
                (None, Some(Found { value: Some(_), .. })) => {}
                _ => values.stack(index, found),
            },
            MachineValue::WasmLocal(index) => match (known, values.locals.get(index)) {
                (None, Some(Found { value: Some(_), .. })) => {}
                _ => values.local(index, found),
            },
            MachineValue::PreserveRegister(_)
            | MachineValue::CopyStackBPRelative(_)
            | MachineValue::ExplicitShadow
            | MachineValue::TwoHalves(_) => values.problems.push(FrameProblem::NotInRegister { register }),
        }
    }

    // Checked once: afterwards no address of the frame wraps. `shadow_size / 8` words as in the runtime, which drops a
    // remainder.
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
                        Some(v) => Found {
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
        // Two more words: saved rbp and return address.
        let found =
            match (word as u64).checked_add(2).and_then(|w| w.checked_mul(8)).and_then(|b| address.checked_add(b)) {
                Some(address) => read_word(reader, address, ValuePlace::PrevFrame { address }),
                None => {
                    Found { value: None, place: ValuePlace::Missing(MissingReason::Unreadable { address: u64::MAX }) }
                }
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

/// Why [`read_stack`] stopped. The runtime does not tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadEnd {
    /// No version has a state at this address: native code, an import trampoline, or a place between points.
    #[error("no state map has a state at {address:#x}")]
    NoState {
        /// The address in code.
        address: u64,
    },
    /// As many frames as were asked for.
    #[error("as many frames as were asked for")]
    MaxDepth,
    /// The return address cannot be read.
    #[error("the return address at {address:#x} cannot be read")]
    Unreadable {
        /// Address of the word.
        address: u64,
    },
    /// The map's state for this address is broken.
    #[error("the state at {address:#x} is broken: {error}")]
    BadState {
        /// The address in code.
        address: u64,
        /// What is wrong.
        error: StateError,
    },
    /// The frame cannot be as the map says.
    #[error("the frame of {address:#x} cannot be read: {error}")]
    BadFrame {
        /// The address in code.
        address: u64,
        /// What is wrong.
        error: ReadError,
    },
    /// More frames or values than an image may have.
    #[error("the image is cut at {frames} frames")]
    Limit {
        /// Frames read.
        frames: usize,
    },
}

/// The first version that has a state at `address`, and the point that `read_stack` takes there: for each version in
/// turn call, trappable, loop. With the version's number in `versions`.
pub fn find_point<'a>(versions: &'a [CodeVersion], address: u64) -> Option<(usize, &'a CodeVersion, Point<'a>)> {
    let address = usize::try_from(address).ok()?;
    versions.iter().enumerate().find_map(|(number, version)| {
        let point = version.msm.lookup(address.checked_sub(version.base)?)?;
        point.diff().is_some().then_some((number, version, point))
    })
}

/// All Wasm frames from `sp` on, as the runtime's `read_stack` reports them, and why there are no more.
///
/// - `sp`: at a return address, or with `initial_address` (the pc of the youngest frame) the youngest frame's own.
/// - `registers`: the youngest frame's.
/// - `max_depth`: at most so many frames.
/// - `boundary`: what the thread's `BOUNDARY_REGISTER_PRESERVATION` holds; without it these registers are unknown below
///   an optimized frame.
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

    // The runtime: `wasm_stack[idx] = Some(*stack)` is out of bounds (state.rs:1369, panic inside its trap handler) at a
    // call whose arguments were spilled: an import of 7 arguments called with 3 operands below them.
    #[test]
    fn an_operand_beyond_the_stack_is_ignored() {
        let spilled = (3..8).rev().map(MachineValue::WasmStack);
        let state = state(3, spilled.chain([MachineValue::WasmStack(1)]).collect());
        let read = frame(&Module::new(0), &state, NONE, &[11, 3, 4, 5, 6, 7, 0xb9, 0]);
        assert_eq!(read.dump.stack, [None, Some(11), None]);
        assert_eq!(read.caller_sp, SP + 7 * 8);
        assert_eq!(read.problems.len(), 5);
        assert_eq!(read.problems[0], FrameProblem::NoSuchOperand { index: 3, count: 3 });
        assert_eq!(read.problems[0].to_string(), "a place for operand 3, the operand stack has 3");
    }

    // The runtime: `unreachable!`, `unimplemented!` and indexes out of bounds (panics).
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
        // More registers in the map than exist: the runtime indexes its 32 known ones out of bounds.
        assert_eq!(read.dump.locals, [None]);
        assert_eq!(read.locals, [ValuePlace::Missing(MissingReason::UnknownRegister(35))]);
        assert_eq!((read.dump.stack, read.registers.0), (vec![], [Some(9); 32]));
    }

    // The runtime: `lookup_ip` panics (state.rs:309) when a return address is in an import trampoline.
    #[test]
    fn a_return_address_in_an_import_trampoline_ends_the_stack() {
        let map = Module::new(0).point(PointKind::Call, 0x20, &state(0, vec![])).build();
        let stack = [BASE as u64 + 0x20, 0xb9, BASE as u64 + 8];
        let (image, end) = read_stack(&[version(map)], SP, NONE, None, None, None, &mut words(&stack));
        assert_eq!((image.frames.len(), end), (1, ReadEnd::NoState { address: BASE as u64 + 8 }));
    }

    // The runtime: `stack_offset -= 1` underflows at 200,000 frames in a stack of fixed size (state.rs:895).
    #[test]
    fn two_hundred_thousand_frames_are_read() {
        let map = Module::new(0).point(PointKind::Call, 0x20, &state(0, vec![])).build();
        let stack: Vec<u64> = (0..400_000).map(|i| if i % 2 == 0 { BASE as u64 + 0x20 } else { 0xb9 }).collect();
        let (image, end) = read_stack(&[version(map)], SP, NONE, None, None, None, &mut words(&stack));
        assert_eq!(image.frames.len(), 200_000);
        assert_eq!(end, ReadEnd::Unreadable { address: SP + 400_000 * 8 });
    }

    // The runtime: never ends, and takes memory until there is none.
    #[test]
    fn a_cyclic_chain_ends_the_stack_and_keeps_the_frames_above() {
        let mut module = Module::new(0).point(PointKind::Call, 0x20, &state(0, vec![])).entry(PointKind::Call, 0x30, 1);
        module.function.diffs.push(MachineStateDiff { last: Some(1), ..MachineStateDiff::default() });
        let stack = [BASE as u64 + 0x20, 0xb9, BASE as u64 + 0x30, 0xb9];
        let (image, end) = read_stack(&[version(module.build())], SP, NONE, None, None, None, &mut words(&stack));
        let error = StateError::Cycle { diff: Some(1) };
        assert_eq!((image.frames.len(), end), (1, ReadEnd::BadState { address: BASE as u64 + 0x30, error }));
    }

    // The runtime: prints "BUG: Register 6 for WebAssembly stack slot 0 has unknown value." at every call point whose
    // caller-saved operands were not given, although nothing is wrong; locals in unknown registers are silent.
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

    // States have 24 registers (`new_machine_state`), faults give 32.
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

    // Singlepass emits neither kind of value; they are for the optimized tier.
    #[test]
    fn halves_and_the_callers_frame() {
        let halves = MachineValue::TwoHalves(Box::new((MachineValue::WasmLocal(0), MachineValue::WasmStack(1))));
        let mut state = state(2, vec![MachineValue::Vmctx, halves]);
        state.prev_frame = [(0, MachineValue::WasmStack(0)), (2, MachineValue::WasmLocal(1))].into();
        // halves, vmctx, rbp, return address, caller's words 0-2
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
        // Not the callee's value: the slot would have held another one.
        assert_eq!(read.registers.get(3), None);
        assert_eq!(read.caller_sp, SP + 32);
    }

    // The thread-local of `fault.rs: get_boundary_register_preservation` is used once: where a baseline frame is below
    // an optimized one.
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
        // Locals and stack words of each frame; 24 registers are among the places of each.
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
