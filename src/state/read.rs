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

use std::collections::HashMap;
use std::rc::Rc;

use super::diff::{Budget, StateError};
use super::map::Point;
use super::model::{
    CodeVersion, ExecutionStateImage, FunctionStateMap, MachineState, MachineValue, WasmAbstractValue,
    WasmFunctionStateDump,
};
use crate::arch::Reg;
use crate::limits::{MAX_CACHED_SLOTS, MAX_IMAGE_FRAMES, MAX_IMAGE_VALUES, MAX_IMAGE_WORK, MAX_SLOTS, MAX_STATE_WORK};

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
    /// The register with this number; `None` also where there is no such register.
    pub fn get(&self, index: usize) -> Option<u64> {
        self.0.get(index).copied().flatten()
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
/// turn call, trappable, loop.
fn find<'a>(versions: &'a [CodeVersion], address: u64) -> Option<(usize, &'a CodeVersion, Point<'a>)> {
    let address = usize::try_from(address).ok()?;
    versions.iter().enumerate().find_map(|(number, version)| {
        let point = version.msm.lookup(address.checked_sub(version.base)?)?;
        point.diff().is_some().then_some((number, version, point))
    })
}

fn slots(state: &MachineState) -> usize {
    state.stack_values.len() + state.register_values.len() + state.prev_frame.len() + state.wasm_stack.len()
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
    let mut budget = Budget(MAX_STATE_WORK);
    let (mut values, mut work) = (0usize, 0usize);
    // Deep recursion returns to the same few places.
    let mut states: HashMap<(usize, usize, usize), Rc<MachineState>> = HashMap::new();
    let mut cached = 0usize;

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
        let Some((number, version, point)) = find(versions, address) else { break ReadEnd::NoState { address } };

        let key = (number, point.function_start, point.info.diff_id);
        let state = match states.get(&key) {
            Some(state) => Rc::clone(state),
            None => match point.function.state(point.info.diff_id, &mut budget) {
                Ok(state) => {
                    let state = Rc::new(state);
                    cached += slots(&state);
                    if cached > MAX_CACHED_SLOTS {
                        states.clear();
                        cached = slots(&state);
                    }
                    states.insert(key, Rc::clone(&state));
                    state
                }
                Err(error) => break ReadEnd::BadState { address, error },
            },
        };
        if version.baseline && !was_baseline {
            cross_tier_boundary(&mut registers, boundary);
        }
        was_baseline = version.baseline;
        work = work.saturating_add(slots(&state));

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
