//! From an image to a stack on which its frames go on (`state.rs: x64::invoke_call_return_on_stack`), as a function of
//! addresses: nothing is written anywhere and nothing is run.
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
//! The words equal the runtime's, with these exceptions, each of which is an error here or is done right:
//! - values in the caller's frame (`prev_frame`) are written there; the runtime forgets them;
//! - arguments that were spilled for a call that is over get zero; the runtime panics;
//! - what the runtime does with a broken map or image (panics, copies of words that are not written yet) is an error;
//! - the stack has no fixed size (8 MiB there), only a limit on what is believed ([`MAX_RESUME_BYTES`]).

use std::collections::HashMap;
use std::rc::Rc;

use super::diff::{Budget, BuiltStates, StateError};
use super::map::PointKind;
use super::model::{
    ExecutionStateImage, FUNCTION_HEADER, FunctionStateMap, MachineState, MachineValue, ModuleStateMap, SuspendOffset,
    WasmAbstractValue, WasmFunctionStateDump,
};
use super::read::{KnownRegisters, ReadError, ReadWord, read_frame};
use crate::arch::Reg;
use crate::arch::x64::SWITCH_BLOCK;
use crate::limits::{MAX_IMAGE_FRAMES, MAX_IMAGE_WORK, MAX_RESUME_BYTES, MAX_SLOTS};

/// Where the stack will be, and what the code there needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// One past the highest byte; a multiple of 8.
    pub top: u64,
    /// The three words below [`Place::top`], lowest first: the address the oldest frame returns to, and what that code
    /// finds above its stack pointer. The runtime puts `run_on_alternative_stack.returning`, its own stack pointer and
    /// an unused word there.
    pub outer: [u64; 3],
    /// Saved frame pointer of the oldest frame. The runtime puts its stack's lowest address there.
    pub outer_rbp: u64,
    /// Address of the module's first byte of code.
    pub code_base: u64,
    /// Address of the instance's context.
    pub vmctx: u64,
    /// Registers of the code that the oldest frame returns to, as it expects to find them again. The runtime knows none.
    pub registers: KnownRegisters,
}

/// A stack to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeStack {
    /// Address of `words[0]`, which holds the address to go on at.
    pub start: u64,
    /// The words up to [`Place::top`].
    pub words: Vec<u64>,
    /// Registers at that address; what nothing is known about is `None` (the runtime loads zero). The stack pointer is
    /// the address of the second word, the frame pointer that of the youngest frame's saved one.
    pub registers: KnownRegisters,
    /// What kind of point the youngest frame goes on at.
    pub kind: PointKind,
}

impl ResumeStack {
    /// The address to go on at.
    pub fn pc(&self) -> u64 {
        self.words.first().copied().unwrap_or_default()
    }

    /// The stack pointer there.
    pub fn sp(&self) -> u64 {
        self.start.wrapping_add(8)
    }

    /// The registers in the order in which the runtime's own switch loads them from below [`ResumeStack::start`], lowest
    /// address first: XMM0-15, rbp, rax, rbx, rcx, rdx, rdi, rsi, r8-r15.
    pub fn register_block(&self) -> [u64; 31] {
        SWITCH_BLOCK.map(|reg| self.registers.get(reg.index()).unwrap_or(0))
    }
}

/// A value of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// A local.
    Local(usize),
    /// An operand.
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

/// Why an image cannot be resumed with these maps. `frame` counts from the youngest, as in the image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// Nothing to go on with.
    #[error("the image has no frames")]
    Empty,
    /// More frames than any image has.
    #[error("the image has {frames} frames, more than {MAX_IMAGE_FRAMES}")]
    TooMany {
        /// How many.
        frames: usize,
    },
    /// The stack top is no multiple of 8, or zero.
    #[error("{top:#x} cannot be the top of a stack")]
    Top {
        /// What was given.
        top: u64,
    },
    /// The module has no such function.
    #[error("frame {frame}: the module has no local function {function}")]
    NoSuchFunction {
        /// Frame.
        frame: usize,
        /// Index among the functions the module defines.
        function: usize,
    },
    /// The operator is no loop, call or trap point, so nothing tells where its values are kept.
    #[error("frame {frame}: {} of local function {function} is no loop, call or trap point", operator_name(*.operator))]
    NoPoint {
        /// Frame.
        frame: usize,
        /// Index among the functions the module defines.
        function: usize,
        /// `wasm_inst_offset`.
        operator: usize,
    },
    /// A frame that has called another one must be at a call.
    #[error("frame {frame} has called the frame above it, but it is at a {} point", .kind.name())]
    NoCall {
        /// Frame.
        frame: usize,
        /// What kind of point it is at.
        kind: PointKind,
    },
    /// The map names a point that is in none of its tables.
    #[error("frame {frame}: its point at code offset {offset:#x} is in no table")]
    NotInTable {
        /// Frame.
        frame: usize,
        /// Code offset.
        offset: usize,
    },
    /// The compiler did not track state.
    #[error("frame {frame}: the module was compiled without track_state")]
    Untracked {
        /// Frame.
        frame: usize,
    },
    /// The state cannot be built.
    #[error("frame {frame}: {error}")]
    State {
        /// Frame.
        frame: usize,
        /// Why.
        error: StateError,
    },
    /// The shape of the image's frame is not that of the map.
    #[error("frame {frame} has {found} {what}, the map says {wanted}")]
    Shape {
        /// Frame.
        frame: usize,
        /// "locals" or "operands".
        what: &'static str,
        /// In the image.
        found: usize,
        /// In the map.
        wanted: usize,
    },
    /// A value that is needed is not in the image.
    #[error("frame {frame}: {which} is not known")]
    Unknown {
        /// Frame.
        frame: usize,
        /// Which.
        which: Which,
    },
    /// The map has a place for a value that the frame does not have.
    #[error("frame {frame}: the map has a place for {which}, which the frame does not have")]
    NoSuchValue {
        /// Frame.
        frame: usize,
        /// Which.
        which: Which,
    },
    /// Half a word cannot hold the value.
    #[error("frame {frame}: {value:#x} of {which} does not fit into half a word")]
    Half {
        /// Frame.
        frame: usize,
        /// Which.
        which: Which,
        /// Its value.
        value: u64,
    },
    /// A kind of value that cannot be there.
    #[error("frame {frame}: the map has a kind of value {where_} that cannot be there")]
    Kind {
        /// Frame.
        frame: usize,
        /// Where.
        where_: &'static str,
    },
    /// A register that does not exist.
    #[error("frame {frame}: the map names register {register}, there are 32")]
    NoSuchRegister {
        /// Frame.
        frame: usize,
        /// Its number.
        register: usize,
    },
    /// A copy of a word that is not part of the stack built so far.
    #[error("frame {frame}: the map copies the word at rbp{offset:+}, which holds nothing")]
    Copy {
        /// Frame.
        frame: usize,
        /// Byte offset from the frame pointer.
        offset: i32,
    },
    /// A value in the caller's frame, and there is no such word.
    #[error("frame {frame}: word {word} of its caller's frame does not exist")]
    NoCaller {
        /// Frame.
        frame: usize,
        /// Key in `prev_frame`.
        word: usize,
    },
    /// A word behind the instance's context cannot be read.
    #[error("frame {frame}: a value behind the instance's context cannot be read")]
    Vmctx {
        /// Frame.
        frame: usize,
    },
    /// A shadow that is no whole number of words.
    #[error("frame {frame}: a shadow of {bytes} bytes is no whole number of words")]
    Shadow {
        /// Frame.
        frame: usize,
        /// `shadow_size`.
        bytes: usize,
    },
    /// A frame larger than any that is believed.
    #[error("frame {frame} has {slots} slots, more than {MAX_SLOTS}")]
    TooLarge {
        /// Frame.
        frame: usize,
        /// Slots.
        slots: usize,
    },
    /// The stack would be larger than what is believed, or than what is below its top.
    #[error("frame {frame}: the stack would need more than {limit:#x} bytes")]
    Full {
        /// Frame.
        frame: usize,
        /// The limit.
        limit: u64,
    },
    /// The stack that was built does not say what the image says: the map has two values in one place, or no place.
    #[error("frame {frame}: {which} would be {}, not {wanted:#x}", found.map_or("lost".to_string(), |v| format!("{v:#x}")))]
    Changed {
        /// Frame.
        frame: usize,
        /// Which.
        which: Which,
        /// In the image.
        wanted: u64,
        /// On the stack.
        found: Option<u64>,
    },
    /// The stack that was built cannot be read back.
    #[error("frame {frame}: {error}")]
    Read {
        /// Frame.
        frame: usize,
        /// Why.
        error: ReadError,
    },
}

fn operator_name(number: usize) -> String {
    match number {
        FUNCTION_HEADER => "the header".to_string(),
        n => format!("operator {n}"),
    }
}

/// The kind of the point at code offset `offset`, if a frame of an image that was taken there goes on there. An image names
/// an operator, and a map has one point to go on at for each: an operator that may trap and calls has two places where
/// it can stop, of which one is lost. So is a division that may trap: what it divides is in registers that no state names,
/// and the place that its result has already is an operand of the compiler's own, which no image has
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

/// Where an operator goes on.
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

/// A frame's function and state.
struct Planned<'a> {
    function: &'a FunctionStateMap,
    state: Rc<MachineState>,
    kind: PointKind,
    activate: usize,
}

/// Finds the state of each frame, oldest last, as in the image.
fn plan<'a>(map: &'a ModuleStateMap, image: &ExecutionStateImage) -> Result<Vec<Planned<'a>>, ResumeError> {
    let frames = image.frames.len();
    if frames == 0 {
        return Err(ResumeError::Empty);
    }
    if frames > MAX_IMAGE_FRAMES {
        return Err(ResumeError::TooMany { frames });
    }
    // The runtime takes the n-th function of the map for local function n, which is the same in every map it writes.
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

    /// Words of zero.
    fn skip(&mut self, frame: usize, count: usize) -> Result<(), ResumeError> {
        let wanted = self.words.len() as u64 + count as u64;
        if wanted > self.limit / 8 {
            return Err(ResumeError::Full { frame, limit: self.limit });
        }
        self.words.resize(wanted as usize, 0);
        Ok(())
    }

    /// Address of the word pushed last.
    fn address(&self) -> u64 {
        self.top - self.words.len() as u64 * 8
    }
}

/// The values of one frame.
struct Values<'a> {
    frame: usize,
    planned: &'a Planned<'a>,
    dump: &'a WasmFunctionStateDump,
    place: &'a Place,
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

    /// The runtime's `compute_vmctx_deref`: from a pointer to the context, follow and add.
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

/// Builds the stack on which the frames of `image` go on, and reads it back: what is returned says what the image says.
///
/// `reader` reads words of the target, for values that are kept behind the context.
///
/// # Errors
/// Whatever does not fit between image and map, with the frame; see [`ResumeError`].
pub fn resume_stack(
    map: &ModuleStateMap,
    image: &ExecutionStateImage,
    place: &Place,
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

/// [`resume_stack`] without reading back: what the runtime builds, though values may get lost on the way.
#[doc(hidden)]
pub fn resume_stack_unverified(
    map: &ModuleStateMap,
    image: &ExecutionStateImage,
    place: &Place,
    reader: &mut dyn ReadWord,
) -> Result<ResumeStack, ResumeError> {
    build(&plan(map, image)?, image, place, reader)
}

fn build(
    planned: &[Planned<'_>],
    image: &ExecutionStateImage,
    place: &Place,
    reader: &mut dyn ReadWord,
) -> Result<ResumeStack, ResumeError> {
    if !place.top.is_multiple_of(8) || place.top == 0 {
        return Err(ResumeError::Top { top: place.top });
    }
    // One word stays free below, so that no address wraps.
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
            // The word above the return address, which is the one above the saved frame pointer, is number 0. The words
            // of `place.outer` are not the oldest frame's caller.
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
                    // Downwards is a higher index. The words of `place.outer` are not there yet when the runtime copies.
                    let index = rbp_index as i64 - i64::from(offset / 8);
                    let index = usize::try_from(index).ok().filter(|&i| i >= place.outer.len() && offset % 8 == 0);
                    let word = index.and_then(|i| stack.words.get(i));
                    *word.ok_or(ResumeError::Copy { frame, offset: *offset })?
                }
                // Arguments of a call that is over. The runtime indexes out of bounds.
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
    registers.0[Reg::RBP.index()] = Some(rbp);
    registers.0[Reg::RSP.index()] = Some(start + 8);
    let mut words = stack.words;
    words.reverse();
    let kind = planned.first().map_or(PointKind::Call, |youngest| youngest.kind);
    Ok(ResumeStack { start, words, registers, kind })
}

/// Reads the frames back and compares.
fn verify(
    planned: &[Planned<'_>],
    image: &ExecutionStateImage,
    place: &Place,
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

    // What images can be resumed is in tests/state_differential.rs.
    #[test]
    fn images_and_stacks_have_an_end() {
        let frame = WasmFunctionStateDump { local_function_id: 7, wasm_inst_offset: 5, stack: vec![], locals: vec![] };
        let place = Place {
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
        // Besides the shadow there are three words of the caller, the frame pointer and the address to go on at.
        let most = MAX_RESUME_BYTES as usize - 5 * 8;
        let error = Err(ResumeError::Full { frame: 0, limit: MAX_RESUME_BYTES });
        assert_eq!((resume(1, 0, most), resume(1, 0, most + 8)), (Ok(()), error));
    }
}
