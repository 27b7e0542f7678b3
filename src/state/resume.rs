//! Builds the stack on which the frames of an image go on (`state.rs: x64::invoke_call_return_on_stack`). The stack
//! is computed for given addresses: nothing is written to a target and nothing is run.
//!
//! ```text
//!   top ->  [place.outer]             the oldest frame returns to the first of these words
//!           [place.outer_rbp]         saved rbp of the oldest frame
//!           [stack_values...]
//!           [return address]          of the next younger frame's call
//!           ...
//!    sp ->  [stack_values[n-1]]       of the youngest frame
//!  start -> [address to go on at]     what the switch pops last
//! ```
//!
//! The words equal those that the runtime writes, with the following exceptions. Each of them is an error here or is
//! done right:
//! - Values in the caller's frame (`prev_frame`) are written there. The runtime forgets them.
//! - Arguments that were spilled for a call that is over get zero. The runtime panics.
//! - A broken map or image is an error. The runtime panics, or copies words that are not written yet.
//! - The stack has no fixed size (the runtime's has 8 MiB), only a limit on what is believed ([`MAX_RESUME_BYTES`]).

use std::collections::HashMap;
use std::rc::Rc;

use super::diff::{Budget, BuiltStates, StateError};
use super::map::PointKind;
use super::model::{
    ExecutionStateImage, FUNCTION_HEADER, FunctionStateMap, MachineState, MachineValue, ModuleStateMap, SuspendOffset,
    WasmAbstractValue, WasmFunctionStateDump,
};
use super::read::{ReadError, ReadWord, read_frame};
use super::x64::KnownRegisters;
use crate::arch::x64;
use crate::limits::{MAX_IMAGE_FRAMES, MAX_IMAGE_WORK, MAX_RESUME_BYTES, MAX_SLOTS};

/// Where the stack will be, and the addresses that the code on it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackSpec {
    /// Address one past the highest byte of the stack. It is a multiple of 8.
    pub top: u64,
    /// The three words below [`StackSpec::top`], lowest first. The first is the address that the oldest frame returns to;
    /// the code at this address finds the other two above its stack pointer. The runtime puts
    /// `run_on_alternative_stack.returning`, its own stack pointer and an unused word there.
    pub outer: [u64; 3],
    /// Saved frame pointer of the oldest frame. The runtime puts the lowest address of its stack there.
    pub outer_rbp: u64,
    /// Address of the module's first byte of code.
    pub code_base: u64,
    /// Address of the instance's context.
    pub vmctx: u64,
    /// Registers as the code that the oldest frame returns to expects to find them again. The runtime knows none of
    /// them.
    pub registers: KnownRegisters,
}

/// A stack on which the frames of an image go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeStack {
    /// Address of `words[0]`, which holds the address to go on at.
    pub start: u64,
    /// The words of the stack from `start` up to [`StackSpec::top`].
    pub words: Vec<u64>,
    /// Registers with which the code goes on. A register of which nothing is known is `None` (the runtime loads
    /// zero). The stack pointer is the address of the second word. The frame pointer is the address of the youngest
    /// frame's saved frame pointer.
    pub registers: KnownRegisters,
    /// The kind of point at which the youngest frame goes on.
    pub kind: PointKind,
}

impl ResumeStack {
    /// The address at which the code goes on.
    pub fn pc(&self) -> u64 {
        self.words.first().copied().unwrap_or_default()
    }

    /// The stack pointer with which the code goes on.
    #[cfg(any(test, feature = "internals"))]
    pub fn sp(&self) -> u64 {
        self.start.wrapping_add(8)
    }

    /// The registers in the order in which the runtime's own switch to another stack loads them from below
    /// [`ResumeStack::start`], lowest address first: XMM0-15, rbp, rax, rbx, rcx, rdx, rdi, rsi, r8-r15. Unknown
    /// registers are zero.
    #[cfg(any(test, feature = "internals"))]
    pub fn register_block(&self) -> [u64; 31] {
        super::x64::SWITCH_BLOCK.map(|reg| self.registers.of(reg).unwrap_or(0))
    }
}

/// The name of a value of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The local with this number.
    Local(usize),
    /// The operand with this number.
    Operand(usize),
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Which::Local(n) => write!(f, "local {n}"),
            Which::Operand(n) => write!(f, "operand {n}"),
        }
    }
}

/// Why an image cannot be resumed with a map. `frame` is the number of a frame, counted from the youngest as in the
/// image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// The image has no frames, so there is nothing to go on with.
    #[error("the image has no frames")]
    Empty,
    /// The image has more frames than are believed.
    #[error("the image has {frames} frames, more than {MAX_IMAGE_FRAMES}")]
    TooMany {
        /// Number of frames of the image.
        frames: usize,
    },
    /// The stack top is no multiple of 8, or zero.
    #[error("{top:#x} cannot be the top of a stack")]
    Top {
        /// The address that was given as the top.
        top: u64,
    },
    /// The module has no such function.
    #[error("frame {frame}: the module has no local function {function}")]
    NoSuchFunction {
        /// Number of the frame.
        frame: usize,
        /// Index of the function among those that the module defines.
        function: usize,
    },
    /// The operator is no loop, call or trap point, so nothing tells where its values are kept.
    #[error("frame {frame}: {} of local function {function} is no loop, call or trap point", operator_name(*.operator))]
    NoPoint {
        /// Number of the frame.
        frame: usize,
        /// Index of the function among those that the module defines.
        function: usize,
        /// Index of the operator (`wasm_inst_offset`).
        operator: usize,
    },
    /// A frame that has called another one is not at a call.
    #[error("frame {frame} has called the frame above it, but it is at a {} point", .kind.name())]
    NoCall {
        /// Number of the frame.
        frame: usize,
        /// The kind of point that the frame is at.
        kind: PointKind,
    },
    /// The map names a point that is in none of its tables.
    #[error("frame {frame}: its point at code offset {offset:#x} is in no table")]
    NotInTable {
        /// Number of the frame.
        frame: usize,
        /// Code offset of the point.
        offset: usize,
    },
    /// The compiler did not track state at the point of the frame.
    #[error("frame {frame}: the module was compiled without track_state")]
    Untracked {
        /// Number of the frame.
        frame: usize,
    },
    /// The state of the frame cannot be built.
    #[error("frame {frame}: {error}")]
    State {
        /// Number of the frame.
        frame: usize,
        /// Why it cannot be built.
        error: StateError,
    },
    /// The frame has another number of locals or operands in the image than in the map.
    #[error("frame {frame} has {found} {what}, the map says {wanted}")]
    Shape {
        /// Number of the frame.
        frame: usize,
        /// What differs: "locals" or "operands".
        what: &'static str,
        /// Their number in the image.
        found: usize,
        /// Their number in the map.
        wanted: usize,
    },
    /// A value that is needed is not in the image.
    #[error("frame {frame}: {which} is not known")]
    Unknown {
        /// Number of the frame.
        frame: usize,
        /// The value that is not known.
        which: Which,
    },
    /// The map has a place for a value that the frame does not have.
    #[error("frame {frame}: the map has a place for {which}, which the frame does not have")]
    NoSuchValue {
        /// Number of the frame.
        frame: usize,
        /// The value that the frame does not have.
        which: Which,
    },
    /// Half a word cannot hold the value.
    #[error("frame {frame}: {value:#x} of {which} does not fit into half a word")]
    Half {
        /// Number of the frame.
        frame: usize,
        /// The value that does not fit.
        which: Which,
        /// The value that does not fit.
        value: u64,
    },
    /// The map has a kind of value in a place that cannot hold it.
    #[error("frame {frame}: the map has a kind of value {where_} that cannot be there")]
    Kind {
        /// Number of the frame.
        frame: usize,
        /// The place, in words for the user.
        where_: &'static str,
    },
    /// The map names a register that does not exist.
    #[error("frame {frame}: the map names register {register}, there are 32")]
    NoSuchRegister {
        /// Number of the frame.
        frame: usize,
        /// State-map number of the register.
        register: usize,
    },
    /// The map copies a word that is not part of the stack built so far.
    #[error("frame {frame}: the map copies the word at rbp{offset:+}, which holds nothing")]
    Copy {
        /// Number of the frame.
        frame: usize,
        /// Offset of the word from the frame pointer, in bytes.
        offset: i32,
    },
    /// The map has a value in a word of the caller's frame that does not exist.
    #[error("frame {frame}: word {word} of its caller's frame does not exist")]
    NoCaller {
        /// Number of the frame.
        frame: usize,
        /// Number of the word, which is its key in `prev_frame`.
        word: usize,
    },
    /// A word that is reached through the instance's context cannot be read.
    #[error("frame {frame}: a value behind the instance's context cannot be read")]
    Vmctx {
        /// Number of the frame.
        frame: usize,
    },
    /// The shadow of the frame's function is no whole number of words.
    #[error("frame {frame}: a shadow of {bytes} bytes is no whole number of words")]
    Shadow {
        /// Number of the frame.
        frame: usize,
        /// Number of bytes of the shadow (`shadow_size`).
        bytes: usize,
    },
    /// The frame has more slots of one kind than are believed.
    #[error("frame {frame} has {slots} slots, more than {MAX_SLOTS}")]
    TooLarge {
        /// Number of the frame.
        frame: usize,
        /// Number of slots.
        slots: usize,
    },
    /// The stack would be larger than is believed, or larger than the address space below its top.
    #[error("frame {frame}: the stack would need more than {limit:#x} bytes")]
    Full {
        /// Number of the frame.
        frame: usize,
        /// The largest number of bytes that the stack may have.
        limit: u64,
    },
    /// The stack that was built does not hold the values of the image. The map has two values in one place, or no
    /// place for a value.
    #[error("frame {frame}: {which} would be {}, not {wanted:#x}", found.map_or("lost".to_string(), |v| format!("{v:#x}")))]
    Changed {
        /// Number of the frame.
        frame: usize,
        /// The value that would be another one.
        which: Which,
        /// The value in the image.
        wanted: u64,
        /// The value that was read back from the stack, if there is one.
        found: Option<u64>,
    },
    /// The stack that was built cannot be read back.
    #[error("frame {frame}: {error}")]
    Read {
        /// Number of the frame.
        frame: usize,
        /// Why it cannot be read back.
        error: ReadError,
    },
}

fn operator_name(number: usize) -> String {
    match number {
        FUNCTION_HEADER => "the header".to_string(),
        n => format!("operator {n}"),
    }
}

/// The kind of the point at code offset `offset`, if an image that is taken with a frame at this point goes on at the
/// same point. `None` if it does not. An image names only an operator, and a map has one point for each operator at
/// which execution goes on. An operator that may trap and also calls can stop at two points, of which one is lost. A
/// division that may trap is lost too: its arguments are in registers that no state names, and the place that is
/// already reserved for its result is an operand of the compiler's own, which no image has
/// (`codegen_x64.rs: emit_relaxed_xdiv`).
pub fn goes_on_at(map: &ModuleStateMap, offset: usize) -> Option<PointKind> {
    let point = map.lookup(offset)?;
    let diff = point.diff()?;
    if point.kind == PointKind::Trappable && diff.wasm_stack_private_depth > 0 {
        return None;
    }
    let suspend = suspend_of(point.function, diff.wasm_inst_offset)?;
    (place_of(suspend) == (point.kind, point.offset)).then_some(point.kind)
}

/// The point at which execution of the operator goes on, as the map has it.
fn suspend_of(function: &FunctionStateMap, operator: usize) -> Option<SuspendOffset> {
    match operator {
        FUNCTION_HEADER => function.wasm_function_header_target_offset,
        n => function.wasm_offset_to_target_offset.get(&n).copied(),
    }
}

fn place_of(suspend: SuspendOffset) -> (PointKind, usize) {
    match suspend {
        SuspendOffset::Loop(offset) => (PointKind::Loop, offset),
        SuspendOffset::Call(offset) => (PointKind::Call, offset),
        SuspendOffset::Trappable(offset) => (PointKind::Trappable, offset),
    }
}

/// The function and state of a frame, and the point at which it goes on.
struct Planned<'a> {
    function: &'a FunctionStateMap,
    state: Rc<MachineState>,
    kind: PointKind,
    activate: usize,
}

/// Finds the function and state of each frame. They are in the order of the image, with the oldest frame last.
fn plan<'a>(map: &'a ModuleStateMap, image: &ExecutionStateImage) -> Result<Vec<Planned<'a>>, ResumeError> {
    let frames = image.frames.len();
    if frames == 0 {
        return Err(ResumeError::Empty);
    }
    if frames > MAX_IMAGE_FRAMES {
        return Err(ResumeError::TooMany { frames });
    }
    // The runtime takes the n-th function of the map for local function n. In every map that it writes, this is the
    // same function.
    let mut functions: HashMap<usize, &FunctionStateMap> = HashMap::new();
    for function in map.local_functions.values() {
        functions.entry(function.local_function_id).or_insert(function);
    }
    let mut states = BuiltStates::default();
    let mut work = 0usize;
    let mut budget = Budget::default();
    let mut out = Vec::new();
    for (frame, dump) in image.frames.iter().enumerate() {
        let (id, operator) = (dump.local_function_id, dump.wasm_inst_offset);
        let function = *functions.get(&id).ok_or(ResumeError::NoSuchFunction { frame, function: id })?;
        let suspend = suspend_of(function, operator).ok_or(ResumeError::NoPoint { frame, function: id, operator })?;
        let (kind, offset) = place_of(suspend);
        let info = function.table(kind).get(&offset).ok_or(ResumeError::NotInTable { frame, offset })?;
        if info.diff_id >= function.diffs.len() {
            return Err(ResumeError::Untracked { frame });
        }
        let state = states
            .get((id, info.diff_id), || function.state(info.diff_id, &mut budget))
            .map_err(|error| ResumeError::State { frame, error })?;
        for slots in [
            state.stack_values.len(),
            state.register_values.len(),
            state.wasm_stack.len(),
            state.prev_frame.len(),
            function.locals.len(),
        ] {
            if slots > MAX_SLOTS {
                return Err(ResumeError::TooLarge { frame, slots });
            }
        }
        work = work.saturating_add(state.slots()).saturating_add(function.locals.len());
        if work > MAX_IMAGE_WORK {
            return Err(ResumeError::State { frame, error: StateError::WorkLimit });
        }
        let operands = state.wasm_stack.len().saturating_sub(state.wasm_stack_private_depth);
        for (what, found, wanted) in
            [("locals", dump.locals.len(), function.locals.len()), ("operands", dump.stack.len(), operands)]
        {
            if found != wanted {
                return Err(ResumeError::Shape { frame, what, found, wanted });
            }
        }
        out.push(Planned { function, state, kind, activate: info.activate_offset });
    }
    Ok(out)
}
/// The stack while it grows downwards: `words[0]` is the highest word.
struct Growing {
    top: u64,
    words: Vec<u64>,
    limit: u64,
}

impl Growing {
    fn push(&mut self, frame: usize, word: u64) -> Result<(), ResumeError> {
        self.skip(frame, 1)?;
        if let Some(last) = self.words.last_mut() {
            *last = word;
        }
        Ok(())
    }

    /// Pushes `count` words of zero.
    fn skip(&mut self, frame: usize, count: usize) -> Result<(), ResumeError> {
        let wanted = self.words.len() as u64 + count as u64;
        if wanted > self.limit / 8 {
            return Err(ResumeError::Full { frame, limit: self.limit });
        }
        self.words.resize(wanted as usize, 0);
        Ok(())
    }

    /// Address of the word that was pushed last.
    fn address(&self) -> u64 {
        self.top - self.words.len() as u64 * 8
    }
}

/// The values of one frame, and what is needed to compute them.
struct Values<'a> {
    frame: usize,
    planned: &'a Planned<'a>,
    dump: &'a WasmFunctionStateDump,
    place: &'a StackSpec,
}

impl Values<'_> {
    fn value(&self, which: Which) -> Result<u64, ResumeError> {
        let (declared, given) = match which {
            Which::Local(n) => (self.planned.function.locals.get(n), self.dump.locals.get(n)),
            Which::Operand(n) => (self.planned.state.wasm_stack.get(n), self.dump.stack.get(n)),
        };
        let frame = self.frame;
        match declared {
            None => Err(ResumeError::NoSuchValue { frame, which }),
            Some(WasmAbstractValue::Const(value)) => Ok(*value),
            Some(WasmAbstractValue::Runtime) => given.copied().flatten().ok_or(ResumeError::Unknown { frame, which }),
        }
    }

    /// Computes what the runtime's `compute_vmctx_deref` computes: it adds the first offset to the address of the
    /// context. Then, for each further offset, it reads the word at the address reached so far and adds the offset to
    /// this word.
    fn behind_vmctx(&self, offsets: &[usize], reader: &mut dyn ReadWord) -> Result<u64, ResumeError> {
        let frame = self.frame;
        let [first, rest @ ..] = offsets else { return Err(ResumeError::Vmctx { frame }) };
        let mut address = self.place.vmctx.wrapping_add(*first as u64);
        for offset in rest {
            let word = reader.word(address).ok_or(ResumeError::Vmctx { frame })?;
            address = word.wrapping_add(*offset as u64);
        }
        Ok(address)
    }

    fn half(&self, value: &MachineValue, reader: &mut dyn ReadWord) -> Result<u64, ResumeError> {
        let frame = self.frame;
        let which = match *value {
            MachineValue::WasmStack(n) => Which::Operand(n),
            MachineValue::WasmLocal(n) => Which::Local(n),
            MachineValue::VmctxDeref(ref offsets) => return Ok(self.behind_vmctx(offsets, reader)? & 0xffff_ffff),
            MachineValue::Undefined => return Ok(0),
            _ => return Err(ResumeError::Kind { frame, where_: "in half a word" }),
        };
        let value = self.value(which)?;
        if value > u32::MAX.into() { Err(ResumeError::Half { frame, which, value }) } else { Ok(value) }
    }
}

/// Builds the stack on which the frames of `image` go on, and reads it back. So the stack that is returned holds the
/// values of the image.
///
/// `reader` reads words of the target, for values that are reached through the instance's context.
///
/// # Errors
/// Fails if image and map do not fit together. The error tells the frame; see [`ResumeError`].
pub fn resume_stack(
    map: &ModuleStateMap,
    image: &ExecutionStateImage,
    place: &StackSpec,
    reader: &mut dyn ReadWord,
) -> Result<ResumeStack, ResumeError> {
    let planned = plan(map, image)?;
    if let Some((frame, older)) = planned.iter().enumerate().skip(1).find(|(_, p)| p.kind != PointKind::Call) {
        return Err(ResumeError::NoCall { frame, kind: older.kind });
    }
    let built = build(&planned, image, place, reader)?;
    verify(&planned, image, place, &built)?;
    Ok(built)
}

/// Does what [`resume_stack`] does, but does not read the stack back. So it builds what the runtime builds, even if
/// values get lost in it.
#[cfg(any(test, feature = "internals"))]
#[doc(hidden)]
pub fn resume_stack_unverified(
    map: &ModuleStateMap,
    image: &ExecutionStateImage,
    place: &StackSpec,
    reader: &mut dyn ReadWord,
) -> Result<ResumeStack, ResumeError> {
    build(&plan(map, image)?, image, place, reader)
}

fn build(
    planned: &[Planned<'_>],
    image: &ExecutionStateImage,
    place: &StackSpec,
    reader: &mut dyn ReadWord,
) -> Result<ResumeStack, ResumeError> {
    if !place.top.is_multiple_of(8) || place.top == 0 {
        return Err(ResumeError::Top { top: place.top });
    }
    // One word below the stack stays free, so that no address wraps.
    let limit = MAX_RESUME_BYTES.min(place.top - 8);
    let mut stack = Growing { top: place.top, words: Vec::new(), limit };
    let mut registers = place.registers;
    let mut rbp = place.outer_rbp;
    for word in place.outer.iter().rev() {
        stack.push(image.frames.len() - 1, *word)?;
    }
    for (frame, (planned, dump)) in planned.iter().zip(&image.frames).enumerate().rev() {
        let (function, state) = (planned.function, &planned.state);
        let values = Values { frame, planned, dump, place };
        if !function.shadow_size.is_multiple_of(8) {
            return Err(ResumeError::Shadow { frame, bytes: function.shadow_size });
        }
        let shadow = function.shadow_size / 8;

        stack.push(frame, rbp)?;
        rbp = stack.address();
        let rbp_index = stack.words.len() - 1;
        for (&word, value) in &state.prev_frame {
            // Word number 0 is the word above the return address, and the return address is the word above the saved
            // frame pointer. The words of `place.outer` are no frame of a caller of the oldest frame.
            let index = word.checked_add(2).and_then(|up| rbp_index.checked_sub(up));
            let index = index.filter(|&i| i >= place.outer.len()).ok_or(ResumeError::NoCaller { frame, word })?;
            let value = match *value {
                MachineValue::WasmStack(n) => values.value(Which::Operand(n))?,
                MachineValue::WasmLocal(n) => values.value(Which::Local(n))?,
                _ => return Err(ResumeError::Kind { frame, where_: "in its caller's frame" }),
            };
            stack.words[index] = value;
        }
        let mut shadowed = false;
        for value in &state.stack_values {
            let word = match value {
                MachineValue::ExplicitShadow => {
                    stack.skip(frame, shadow)?;
                    shadowed = true;
                    continue;
                }
                MachineValue::Undefined => 0,
                MachineValue::Vmctx => place.vmctx,
                MachineValue::VmctxDeref(offsets) => values.behind_vmctx(offsets, reader)?,
                MachineValue::PreserveRegister(register) => match registers.0.get(register.0) {
                    Some(value) => value.unwrap_or(0),
                    None => return Err(ResumeError::NoSuchRegister { frame, register: register.0 }),
                },
                MachineValue::CopyStackBPRelative(offset) => {
                    // Words further down have a higher index. The words of `place.outer` are not written yet when the
                    // runtime copies a word.
                    let index = rbp_index as i64 - i64::from(offset / 8);
                    let index = usize::try_from(index).ok().filter(|&i| i >= place.outer.len() && offset % 8 == 0);
                    let word = index.and_then(|i| stack.words.get(i));
                    *word.ok_or(ResumeError::Copy { frame, offset: *offset })?
                }
                // These are arguments of a call that is over. The runtime indexes out of bounds here.
                MachineValue::WasmStack(n) if planned.kind == PointKind::Call && *n >= state.wasm_stack.len() => 0,
                MachineValue::WasmStack(n) => values.value(Which::Operand(*n))?,
                MachineValue::WasmLocal(n) => values.value(Which::Local(*n))?,
                MachineValue::TwoHalves(halves) => {
                    values.half(&halves.0, reader)? | values.half(&halves.1, reader)? << 32
                }
            };
            stack.push(frame, word)?;
        }
        if !shadowed {
            stack.skip(frame, shadow)?;
        }
        for (register, value) in state.register_values.iter().enumerate() {
            let value = match value {
                MachineValue::Undefined => continue,
                MachineValue::Vmctx => place.vmctx,
                MachineValue::VmctxDeref(offsets) => values.behind_vmctx(offsets, reader)?,
                MachineValue::WasmStack(n) => values.value(Which::Operand(*n))?,
                MachineValue::WasmLocal(n) => values.value(Which::Local(*n))?,
                _ => return Err(ResumeError::Kind { frame, where_: "in a register" }),
            };
            match registers.0.get_mut(register) {
                Some(known) => *known = Some(value),
                None => return Err(ResumeError::NoSuchRegister { frame, register }),
            }
        }
        stack.push(frame, place.code_base.wrapping_add(planned.activate as u64))?;
    }
    let start = stack.address();
    registers.set(x64::RBP, Some(rbp));
    registers.set(x64::RSP, Some(start + 8));
    let mut words = stack.words;
    words.reverse();
    let kind = planned.first().map_or(PointKind::Call, |youngest| youngest.kind);
    Ok(ResumeStack { start, words, registers, kind })
}

/// Reads the frames back from the stack that was built, and compares their values with those of the image.
fn verify(
    planned: &[Planned<'_>],
    image: &ExecutionStateImage,
    place: &StackSpec,
    built: &ResumeStack,
) -> Result<(), ResumeError> {
    let mut word = |address: u64| -> Option<u64> {
        let index = address.checked_sub(built.start)? / 8;
        built.words.get(usize::try_from(index).ok()?).copied()
    };
    let mut registers = built.registers;
    let mut sp = built.start;
    for (frame, (planned, dump)) in planned.iter().zip(&image.frames).enumerate() {
        debug_assert_eq!(word(sp), Some(place.code_base.wrapping_add(planned.activate as u64)));
        let read = read_frame(planned.function, &planned.state, sp + 8, registers, &mut word)
            .map_err(|error| ResumeError::Read { frame, error })?;
        let locals = dump.locals.iter().zip(&read.dump.locals).enumerate();
        let operands = dump.stack.iter().zip(&read.dump.stack).enumerate();
        let all = locals.map(|(n, v)| (Which::Local(n), v)).chain(operands.map(|(n, v)| (Which::Operand(n), v)));
        for (which, (wanted, found)) in all {
            if let Some(wanted) = *wanted
                && *found != Some(wanted)
            {
                return Err(ResumeError::Changed { frame, which, wanted, found: *found });
            }
        }
        registers = read.registers;
        sp = read.caller_sp;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{Module, state};
    use super::*;

    // Which images can be resumed is tested in tests/library/state_differential.rs.
    #[test]
    fn images_and_stacks_have_an_end() {
        let frame = WasmFunctionStateDump { local_function_id: 7, wasm_inst_offset: 5, stack: vec![], locals: vec![] };
        let place = StackSpec {
            top: 0x7fff_0000_0000,
            outer: [0; 3],
            outer_rbp: 0,
            code_base: 0,
            vmctx: 0,
            registers: KnownRegisters::UNKNOWN,
        };
        let resume = |frames: usize, words: usize, shadow_size: usize| {
            let mut module =
                Module::new(0).point(PointKind::Call, 0x20, &state(0, vec![MachineValue::Undefined; words]));
            module.function.wasm_offset_to_target_offset.insert(5, SuspendOffset::Call(0x20));
            module.function.shadow_size = shadow_size;
            let image = ExecutionStateImage { frames: vec![frame.clone(); frames] };
            resume_stack(&module.build(), &image, &place, &mut |_| None).map(|_| ())
        };
        assert_eq!(resume(MAX_IMAGE_FRAMES, 0, 0), Ok(()));
        assert_eq!(resume(MAX_IMAGE_FRAMES + 1, 0, 0), Err(ResumeError::TooMany { frames: MAX_IMAGE_FRAMES + 1 }));
        // Each frame has 24 registers besides its words.
        let frames = MAX_IMAGE_WORK / 8192;
        let error = Err(ResumeError::State { frame: frames, error: StateError::WorkLimit });
        assert_eq!((resume(frames, 8192 - 24, 0), resume(frames + 1, 8192 - 24, 0)), (Ok(()), error));
        // Besides the shadow, the stack holds three words of the caller, the frame pointer and the address to go on
        // at.
        let most = MAX_RESUME_BYTES as usize - 5 * 8;
        let error = Err(ResumeError::Full { frame: 0, limit: MAX_RESUME_BYTES });
        assert_eq!((resume(1, 0, most), resume(1, 0, most + 8)), (Ok(()), error));
    }
}
