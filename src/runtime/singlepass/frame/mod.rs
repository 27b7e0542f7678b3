//! One frame of singlepass code: who called it, and what its locals and operands are.
//!
//! The two questions are answered separately. The caller follows from the function's shape ([`Shape`]) at *every* pc;
//! the operand stack is known only at the points of the state map.

pub(super) mod recover;

use super::Singlepass;
use super::module::code;
use super::module::code::{Cfa, Here, Home, InitialPlace, Shape, Stretch};
use super::module::{Location, Module};
use crate::arch::{CodeAddress, Reg, Registers, x64};
use crate::process::Memory;
use crate::runtime::{GuestFrame, GuestKind, OperatorPlace, Place, Position, RuntimeName, Slot, Value, Why};
use crate::state::read::BoundaryRegisters;
use crate::state::x64::{from_index, known_registers};
use crate::state::{
    CodeVersion, ExecutionStateImage, FUNCTION_HEADER, FunctionStateMap, MachineState, MachineValue, ModuleStateMap,
    Point, PointKind, RegisterIndex, ValuePlace, WasmAbstractValue, read_frame, read_stack,
};
use crate::unwind::{Cursor, Next, Trust, UnwindError};
use crate::wasm::ValType;
use std::rc::Rc;
use std::sync::Arc;

/// Name of the runtime in errors and reports.
pub const RUNTIME: &str = RuntimeName::Singlepass.as_str();

/// The remark about the operands of a frame that is at the instruction behind a call.
const RETURNED: &str = "the call before this instruction has returned, and its result is not among the operands yet";

fn bad_frame(at: &Cursor, why: impl Into<String>) -> Next {
    Next::Lost(UnwindError::BadFrame { address: at.address.raw(), runtime: RUNTIME, why: why.into() })
}

fn register(registers: &Registers, reg: Reg) -> Result<u64, UnwindError> {
    registers.get(reg).ok_or(UnwindError::UnknownRegister { register: reg.name() })
}

/// The value of the frame address, or which register is missing for it.
fn frame_address(registers: &Registers, cfa: Cfa) -> Result<u64, UnwindError> {
    Ok(match cfa {
        Cfa::Rsp(n) => register(registers, x64::RSP)?.wrapping_add(n as u64),
        Cfa::Rbp => register(registers, x64::RBP)?.wrapping_add(16),
    })
}

/// Finds the caller of a frame in `module`.
pub fn step(module: &Module, at: &Cursor, memory: &dyn Memory) -> Next {
    let result = match module.locate(at.address.raw(), memory) {
        None => {
            return bad_frame(at, "the address is in the module's code, but in no function of its state map");
        }
        Some(Location::Import(index)) => step_import(module, index, at, memory),
        Some(Location::Unreadable(why)) => return bad_frame(at, why),
        Some(Location::Function { start, offset, maps, map }) => {
            step_function(module, (maps, map), start, offset, at, memory)
        }
    };
    match result {
        Ok(next) => next,
        Err(e) => Next::Lost(e),
    }
}

/// Steps out of an import trampoline, which loads the target and jumps. Trampolines with float arguments make room on
/// the stack meanwhile (`codegen_x64.rs: feed_import_function`).
fn step_import(module: &Module, index: u32, at: &Cursor, memory: &dyn Memory) -> Result<Next, UnwindError> {
    let sp = register(&at.registers, x64::RSP)?;
    let depth = match module.import_stack_depth(index, at.address.raw(), memory) {
        Ok(depth) => depth,
        Err(why) => return Ok(bad_frame(at, why)),
    };
    caller(at, memory, sp.wrapping_add(8 + depth), at.registers.clone())
}

/// The caller's cursor. Its return address is in the word below `cfa`.
fn caller(at: &Cursor, memory: &dyn Memory, cfa: u64, mut registers: Registers) -> Result<Next, UnwindError> {
    let return_address = memory.read_u64(cfa.wrapping_sub(8))?;
    if return_address == 0 {
        return Ok(bad_frame(at, format!("the return address at {:#x} is zero", cfa.wrapping_sub(8))));
    }
    registers.forget_caller_saved();
    registers.restore(x64::RIP, return_address, cfa.wrapping_sub(8));
    registers.set(x64::RSP, cfa);
    Ok(Next::Caller(Cursor { address: CodeAddress::Return(return_address), registers }, Trust::Runtime))
}

fn step_function(
    module: &Module,
    (maps, map): (&ModuleStateMap, &FunctionStateMap),
    start: u64,
    offset: u64,
    at: &Cursor,
    memory: &dyn Memory,
) -> Result<Next, UnwindError> {
    let shape = module.shape(start, map.locals.len(), memory);
    let (here, preserved) = match &*shape {
        Ok(shape) => (shape.at(offset), shape.preserved().to_vec()),
        // The function is not laid out by this backend (another tier, another version). At a point the state map
        // itself says where the preserved registers are; elsewhere nothing is known.
        Err(why) => match Recorded::at(module, maps, start.wrapping_add(offset)).state() {
            Some(state) => {
                let here = Here { cfa: Cfa::Rbp, rbp_saved: true, stretch: Stretch::Body };
                (here, preserved_by(state, map))
            }
            None => return Ok(bad_frame(at, format!("{why}, and no state is recorded here"))),
        },
    };
    let cfa = frame_address(&at.registers, here.cfa)?;
    let mut registers = at.registers.clone();
    if shape.is_err() {
        // Another backend may use registers without saving them. Only code of singlepass is known to save what it
        // uses.
        for reg in code::REGISTER_HOMES.into_iter().chain([x64::R15]) {
            registers.forget(reg);
        }
    }
    if here.cfa == Cfa::Rbp {
        let rbp = cfa.wrapping_sub(16);
        let sp = register(&at.registers, x64::RSP)?;
        if sp > rbp {
            return Ok(bad_frame(at, format!("rsp {sp:#x} is above rbp {rbp:#x}")));
        }
        for (reg, displacement) in preserved {
            let slot = rbp.wrapping_add(displacement as u64);
            // Below rsp the slot is not pushed yet, or already popped; the register itself holds the caller's value.
            if slot >= sp {
                match memory.read_u64(slot) {
                    Ok(value) => registers.restore(reg, value, slot),
                    Err(_) => registers.forget(reg),
                }
            }
        }
    }
    if here.rbp_saved {
        let slot = cfa.wrapping_sub(16);
        match memory.read_u64(slot) {
            Ok(value) => registers.restore(x64::RBP, value, slot),
            Err(_) => registers.forget(x64::RBP),
        }
    }
    caller(at, memory, cfa, registers)
}

/// The registers that a state has in `PreserveRegister` slots, each with the byte offset of its slot from rbp.
fn preserved_by(state: &MachineState, map: &FunctionStateMap) -> Vec<(Reg, i64)> {
    let mut offset = 0i64;
    let mut out = Vec::new();
    for value in &state.stack_values {
        match value {
            MachineValue::ExplicitShadow => offset -= map.shadow_size as i64,
            _ => offset -= 8,
        }
        if let MachineValue::PreserveRegister(index) = value
            && let Some(reg) = from_index(*index)
        {
            out.push((reg, offset));
        }
    }
    out
}

/// Describes the frame at `at`: function, position, locals and operands.
pub fn describe(module: &Module, module_index: usize, at: &Cursor, memory: &dyn Memory) -> GuestFrame {
    let code_offset = at.address.raw().wrapping_sub(module.code.0);
    let mut frame = GuestFrame {
        kind: GuestKind::Wasm,
        module: module_index,
        function: None,
        local_function: None,
        name: None,
        code_offset,
        function_offset: None,
        position: Position::Unknown,
        operator: None,
        params: None,
        locals: Err(Why::NotWasm),
        stack: Err(Why::NotWasm),
        variables: Vec::new(),
        inlined: false,
        may_miss_inlined: false,
        instance: None,
        notes: Vec::new(),
    };
    match module.locate(at.address.raw(), memory) {
        None => {
            frame.kind = GuestKind::Trampoline;
            frame.notes.push("the address is in the module's code, but in no function of its state map".into());
        }
        Some(Location::Unreadable(why)) => {
            frame.notes.push(format!("the state map of this function cannot be read: {why}"));
            let why = Why::StateMapUnreadable;
            frame.locals = Err(why.clone());
            frame.stack = Err(why);
        }
        Some(Location::Import(index)) => {
            frame.kind = GuestKind::Trampoline;
            frame.function = Some(index);
            frame.name = module.function_name(index);
            frame.instance = at.registers.get(x64::R15);
        }
        Some(Location::Function { start, offset, maps, map }) => {
            let local = map.local_function_id as u32;
            let function = module.import_count.checked_add(local);
            frame.local_function = Some(local);
            frame.function = function;
            frame.name = function.and_then(|f| module.function_name(f));
            frame.params = function.and_then(|f| module.params(f)).and_then(|n| u32::try_from(n).ok());
            let shape = module.shape(start, map.locals.len(), memory);
            let recorded = Recorded::at(module, maps, code_offset);
            frame.function_offset = Some(offset);
            let returned = recorded.has_returned(at.address);
            frame.position = recorded.position(maps, code_offset, returned);
            // The address of a caller is behind its call, but the position is that of the call itself.
            let place = module.places(start, map, memory).at(offset.saturating_sub(u64::from(at.address.is_return())));
            if let (Some(mark), true) = (place, frame.position != Position::Header) {
                frame.position = match (mark.exact, mark.operator.checked_sub(1)) {
                    (true, _) => Position::Operator(mark.operator),
                    (false, Some(before)) => Position::After(before),
                    (false, None) => Position::Unknown,
                };
            }
            let in_prologue = (*shape).as_ref().is_ok_and(|s| s.at(offset).stretch == Stretch::Prologue);
            frame.operator = operator_place(module, local, frame.position, in_prologue);
            if returned && recorded.state().is_some() {
                frame.notes.push(RETURNED.into());
            }
            let types = module.local_types(function, local);
            frame.locals = match &*shape {
                Ok(shape) => Ok(locals(shape, offset, map, at, memory, &types)),
                Err(why) => match recorded.state() {
                    Some(state) => Ok(point_values(state, map, at, memory, &types, &[]).0),
                    None => Err(Why::UnknownLayout(why.clone())),
                },
            };
            let stack_types = recorded.stack_types(module, local);
            frame.stack = operands(module, map, &recorded, at, memory, &stack_types);
            let vmctx = shape.as_ref().as_ref().map_or(x64::R15, |s| s.vmctx(offset));
            let returning = shape.as_ref().as_ref().is_ok_and(|s| s.at(offset).stretch == Stretch::Epilogue);
            frame.instance = at.registers.get(vmctx).filter(|_| !returning);
            if let Some(problem) = module.problem(start) {
                frame.notes.push(format!("the state map of this function has an error: {problem}"));
            }
        }
    }
    frame
}

/// What the state map records for an address.
struct Recorded<'m> {
    point: Option<Point<'m>>,
    state: Option<Rc<Result<MachineState, String>>>,
}

impl<'m> Recorded<'m> {
    fn at(module: &Module, maps: &'m ModuleStateMap, code_offset: u64) -> Recorded<'m> {
        let point = usize::try_from(code_offset).ok().and_then(|o| maps.lookup(o));
        let state = point.as_ref().and_then(|p| module.state(p));
        Recorded { point, state }
    }

    fn state(&self) -> Option<&MachineState> {
        self.state.as_deref().and_then(|s| s.as_ref().ok())
    }

    /// Whether the point is that of a call and the thread itself is at it, so that the call is over.
    fn has_returned(&self, address: CodeAddress) -> bool {
        !address.is_return() && self.point.as_ref().is_some_and(|p| p.kind == PointKind::Call)
    }

    fn position(&self, maps: &ModuleStateMap, code_offset: u64, returned: bool) -> Position {
        if let Some(index) = self.point.as_ref().and_then(Point::wasm_inst_offset) {
            return match index {
                FUNCTION_HEADER => Position::Header,
                _ if returned => Position::After(index as u64),
                _ => Position::Operator(index as u64),
            };
        }
        // Code is in the order of the operators, so the last point before the address tells the operator.
        let before = usize::try_from(code_offset).ok().and_then(|o| maps.point_before(o));
        match before.as_ref().and_then(Point::wasm_inst_offset) {
            Some(index) if index != FUNCTION_HEADER => Position::After(index as u64),
            _ => Position::Unknown,
        }
    }

    fn stack_types(&self, module: &Module, local_function: u32) -> Vec<ValType> {
        let (Some(point), Some(wasm)) = (&self.point, &module.wasm) else { return Vec::new() };
        let Some(index) = point.wasm_inst_offset().filter(|i| *i != FUNCTION_HEADER) else { return Vec::new() };
        wasm.stack_types_at(local_function, index as u64, point.kind).unwrap_or_default()
    }
}

/// The operator that a position names, in the user's `.wasm`, and the source line there: the same line that a
/// debugger is given for this instruction ([`super::code_map`]). Behind an operator it is the line of the next one,
/// as this operator has already run.
fn operator_place(
    module: &Module,
    local_function: u32,
    position: Position,
    in_prologue: bool,
) -> Option<OperatorPlace> {
    let wasm = module.wasm.as_ref()?;
    let operators = wasm.operators(local_function)?;
    let operator = |index: u64| operators.get(usize::try_from(index).ok()?).copied();
    let sources = |offset: Option<u64>| offset.and_then(|offset| wasm.source(offset).into_iter().next());
    let (offset, text, source) = match position {
        Position::Operator(index) => {
            let found = wasm.operator(local_function, index)?;
            (found.offset, Some(found.text), sources(Some(found.offset)))
        }
        Position::After(index) => (operator(index)?, None, sources(operator(index.saturating_add(1)))),
        // In the prologue it is the line of the function itself. Where the function has none, and behind the
        // prologue, it is the line of the first operator.
        _ => {
            let body = wasm.body_offset(local_function).filter(|_| in_prologue);
            let source = sources(body).or_else(|| sources(operator(0)))?;
            (body.or_else(|| operator(0))?, None, Some(source))
        }
    };
    let (file, line) = source.map_or((None, None), |s| (s.file, s.line));
    Some(OperatorPlace { offset, text, file, line })
}

fn in_register(registers: &Registers, reg: Reg) -> Slot {
    match registers.get(reg) {
        Some(bits) => {
            Slot::Known { bits: bits.into(), place: Place::Register { reg, saved_at: registers.saved_at(reg) } }
        }
        None => Slot::Unknown(Why::RegisterLost(reg)),
    }
}

fn in_memory(memory: &dyn Memory, base: Reg, base_value: u64, offset: i64) -> Slot {
    let address = base_value.wrapping_add(offset as u64);
    match memory.read_u64(address) {
        Ok(bits) => Slot::Known { bits: bits.into(), place: Place::Memory { base, offset, address } },
        Err(e) => Slot::Unknown(Why::Memory(e)),
    }
}

/// The value of every local: from its fixed home, or from where it still is in the prologue.
fn locals(
    shape: &Shape,
    offset: u64,
    map: &FunctionStateMap,
    at: &Cursor,
    memory: &dyn Memory,
    types: &[ValType],
) -> Vec<Value> {
    let here = shape.at(offset);
    let registers = &at.registers;
    let cfa = frame_address(registers, here.cfa);
    let slot = |index: usize| -> Slot {
        if let Some(WasmAbstractValue::Const(bits)) = map.locals.get(index) {
            return Slot::Known { bits: (*bits).into(), place: Place::Constant };
        }
        let cfa = match &cfa {
            Ok(cfa) => *cfa,
            Err(e) => return Slot::Unknown(Why::Frame(e.clone())),
        };
        match shape.pending(index, offset) {
            Some(InitialPlace::Register(reg)) => return in_register(registers, reg),
            Some(InitialPlace::Argument(displacement)) => {
                return in_memory(memory, x64::RBP, cfa.wrapping_sub(16), displacement + 16);
            }
            Some(InitialPlace::Zero) => return Slot::Known { bits: 0, place: Place::Constant },
            None => {}
        }
        let rbp = cfa.wrapping_sub(16);
        if here.stretch == Stretch::Epilogue {
            let kept = match code::home(index) {
                Home::Register(reg) => shape.preserved().iter().find(|(r, _)| *r == reg).map(|&(_, d)| d),
                Home::Frame(d) => Some(d),
            };
            let held = match (here.cfa, kept, registers.sp()) {
                (Cfa::Rbp, Some(d), Some(sp)) => rbp.wrapping_add(d as u64) >= sp,
                _ => false,
            };
            if !held {
                return Slot::Unknown(Why::Returning);
            }
        }
        match code::home(index) {
            Home::Register(reg) => in_register(registers, reg),
            Home::Frame(d) => in_memory(memory, x64::RBP, rbp, d),
        }
    };
    (0..map.locals.len().min(crate::limits::MAX_SLOTS))
        .map(|i| Value { ty: types.get(i).copied(), slot: slot(i) })
        .collect()
}

/// The operand stack at a point, or why it is not known.
fn operands(
    module: &Module,
    map: &FunctionStateMap,
    recorded: &Recorded<'_>,
    at: &Cursor,
    memory: &dyn Memory,
    types: &[ValType],
) -> Result<Vec<Value>, Why> {
    match recorded.state.as_deref() {
        Some(Ok(state)) => {
            let (_, stack, bottom) = point_values(state, map, at, memory, &[], types);
            // The state says how deep the frame is, and so do the registers. If they differ, one of them does not
            // belong to this frame.
            match (at.registers.get(x64::RBP), bottom) {
                (_, Err(why)) => Err(why),
                (None, _) => Err(Why::RegisterUnknown(x64::RBP)),
                (Some(rbp), Ok(bottom)) if rbp == bottom => Ok(stack),
                (Some(rbp), Ok(end)) => Err(Why::StateOfAnotherFrame { end, rbp }),
            }
        }
        Some(Err(e)) => Err(Why::BrokenState(e.clone())),
        None if !module.tracked => Err(Why::NotTracked),
        None if at.address.is_return() => Err(Why::NoStateAtCall),
        None => Err(Why::BetweenPoints),
    }
}

/// Locals and operands as the state map alone tells them (`state.rs: read_stack`), and the address at which the
/// frame's saved rbp must be, or why the frame cannot be read.
fn point_values(
    state: &MachineState,
    map: &FunctionStateMap,
    at: &Cursor,
    memory: &dyn Memory,
    local_types: &[ValType],
    stack_types: &[ValType],
) -> (Vec<Value>, Vec<Value>, Result<u64, Why>) {
    let nothing = |why| (Vec::new(), Vec::new(), Err(why));
    let registers = &at.registers;
    let Some(sp) = registers.sp() else { return nothing(Why::RegisterUnknown(x64::RSP)) };
    let known = known_registers(registers);
    let mut word = |address: u64| memory.read_u64(address).ok();
    let read = match read_frame(map, state, sp, known, &mut word) {
        Ok(read) => read,
        Err(e) => return nothing(Why::BrokenState(e.to_string())),
    };
    let value = |bits: Option<u64>, place: &ValuePlace, ty: Option<ValType>| -> Value {
        let at_address =
            |address: u64| Place::Memory { base: x64::RSP, offset: address.wrapping_sub(sp) as i64, address };
        let place = match place {
            ValuePlace::Register(index) => match from_index(RegisterIndex(*index)) {
                Some(reg) => Ok(Place::Register { reg, saved_at: registers.saved_at(reg) }),
                None => Err(Why::other("the state map names a register that does not exist")),
            },
            ValuePlace::Stack { address }
            | ValuePlace::HalfStack { address, .. }
            | ValuePlace::PrevFrame { address } => Ok(at_address(*address)),
            ValuePlace::Constant => Ok(Place::Constant),
            ValuePlace::Missing(why) => Err(Why::Missing(*why)),
        };
        let slot = match (bits, place) {
            (Some(bits), Ok(place)) => Slot::Known { bits: bits.into(), place },
            (_, Err(why)) => Slot::Unknown(why),
            (None, Ok(_)) => Slot::Unknown(Why::other("the word that holds it cannot be read")),
        };
        Value { ty, slot }
    };
    let locals = read.dump.locals.iter().zip(&read.locals).enumerate();
    let stack = read.dump.stack.iter().zip(&read.stack).enumerate();
    (
        locals.map(|(i, (bits, place))| value(*bits, place, local_types.get(i).copied())).collect(),
        stack
            .map(|(i, (bits, place))| {
                let ty = (stack_types.len() == read.dump.stack.len()).then(|| stack_types[i]);
                value(*bits, place, ty)
            })
            .collect(),
        Ok(read.saved_rbp_at),
    )
}

/// The image that the runtime's own `read_stack` would make of the Wasm frames from `at` on.
///
/// The runtime looks at the code versions of one thread; here all modules are looked at. Where an optimized frame
/// calls baseline code, the runtime takes five registers from the thread's `BOUNDARY_REGISTER_PRESERVATION`, and so
/// does this function.
pub fn image(
    runtime: &Singlepass,
    boundary: Option<BoundaryRegisters>,
    at: &Cursor,
    memory: &dyn Memory,
) -> Option<ExecutionStateImage> {
    let sp = at.registers.sp()?;
    let version = |m: &Module| {
        let map = m.map.all(memory).ok()?;
        Some(CodeVersion {
            // Where the boundary's registers are not known (a stripped host), frames that save the registers they use
            // still give the same values.
            baseline: m.baseline.unwrap_or(true) || (boundary.is_none() && Module::saves_registers(map)),
            msm: Arc::clone(map),
            base: m.code.0 as usize,
            backend: m.backend.clone(),
        })
    };
    let versions: Vec<CodeVersion> = runtime.code_modules().iter().map(version).collect::<Option<_>>()?;
    let mut word = |address: u64| memory.read_u64(address).ok();
    let registers = known_registers(&at.registers).0;
    let (image, _) = read_stack(&versions, sp, registers, Some(at.address.raw()), None, boundary, &mut word);
    Some(image)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{CODE, Fake, STACK};
    use super::*;
    use crate::process::ThreadId;
    use crate::runtime::Runtime;
    use crate::runtime::singlepass::module::code::tests::nine_locals;
    use crate::runtime::singlepass::module::maps::Maps;
    use crate::state::synthetic::{self, START, state};
    use crate::unwind::Unwinder;

    /// Address of code of a tier that saves no registers.
    const OPTIMIZED: u64 = CODE + 0x1000;
    /// Registers in which this backend keeps locals.
    const HOMES: [Reg; 4] = [x64::R12, x64::R13, x64::R14, x64::RBX];

    fn module(memory: &Fake, code: u64, mut made: synthetic::Module, at: usize, state: &MachineState) -> Module {
        made = made.point(PointKind::Call, at, state);
        let map = ModuleStateMap { total_size: 0x100, ..made.build() };
        let map = Maps::whole(Arc::new(map));
        Module::new((code, code + 0x1000), map, vec![START as u64], 0, memory)
    }

    /// The call in the function of a tier: the address that it returns to, and how many words the function's frame
    /// has without the saved rbp.
    struct Tier {
        address: u64,
        words: u64,
    }

    /// Makes two tiers. One is like singlepass. The other is made by hand: it has no known prologue and saves no
    /// registers, and its values are in halves of words, in a register and in the caller's frame.
    fn two_tiers(memory: &mut Fake) -> (Singlepass, [Tier; 2]) {
        let (code, at) = nine_locals();
        memory.code(CODE, &[&[0xcc; START][..], &code, &[0xcc; 0x1000]].concat()[..0x1000]);
        memory.code(OPTIMIZED, &[0x90; 0x1000]);
        let call = START + at[22] as usize;

        let preserved = [12, 13, 14, 3, 15].map(|r| MachineValue::PreserveRegister(RegisterIndex(r)));
        let frame = (4..9).map(MachineValue::WasmLocal).chain(preserved).chain([MachineValue::ExplicitShadow]);
        let mut baseline = state(0, frame.collect());
        for (local, reg) in HOMES.into_iter().enumerate() {
            baseline.register_values[reg.index()] = MachineValue::WasmLocal(local);
        }
        let mut made = synthetic::Module::new(9);
        made.function.shadow_size = 32;
        let mut baseline = module(memory, CODE, made, call, &baseline);
        baseline.baseline = Some(true);

        let halves = MachineValue::TwoHalves(Box::new((MachineValue::WasmLocal(1), MachineValue::WasmStack(0))));
        let mut optimized = state(1, vec![MachineValue::Vmctx, halves, MachineValue::Undefined]);
        optimized.register_values[x64::R12.index()] = MachineValue::WasmLocal(0);
        optimized.prev_frame = [(1, MachineValue::WasmLocal(2))].into();
        let mut optimized = module(memory, OPTIMIZED, synthetic::Module::new(3), call, &optimized);
        optimized.baseline = Some(false);
        optimized.backend = "llvm".into();

        let tiers = [(CODE, 14), (OPTIMIZED, 3)].map(|(code, words)| Tier { address: code + call as u64, words });
        (Singlepass { modules: vec![baseline, optimized], ..Singlepass::default() }, tiers)
    }

    /// Writes a stack of frames. `order` has the tiers of the frames, the youngest first. The value of each word is
    /// its own address.
    fn stack(memory: &mut Fake, tiers: &[Tier; 2], order: &[usize]) -> Cursor {
        let mut at = STACK + 0x100;
        let word = |memory: &mut Fake, at: u64, value: u64| memory.words(at, &[value]);
        let mut registers = Registers::unknown(crate::arch::Machine::X64);
        registers.set(x64::RSP, at);
        registers.set(x64::RBP, at + 8 * tiers[order[0]].words);
        for (n, reg) in HOMES.into_iter().chain([x64::R15]).enumerate() {
            registers.set(reg, 0xa00 + n as u64);
        }
        for (i, &tier) in order.iter().enumerate() {
            for _ in 0..tiers[tier].words {
                word(memory, at, at);
                at += 8;
            }
            let caller = order.get(i + 1).map(|&tier| &tiers[tier]);
            word(memory, at, caller.map_or(0, |caller| at + 16 + 8 * caller.words));
            word(memory, at + 8, caller.map_or(0x10, |caller| caller.address));
            at += 16;
        }
        Cursor { address: CodeAddress::Return(tiers[order[0]].address), registers }
    }

    fn bits(values: &Result<Vec<Value>, Why>) -> Vec<Option<u64>> {
        let known = |v: &Value| match v.slot {
            Slot::Known { bits, .. } => u64::try_from(bits).ok(),
            Slot::Unknown(_) => None,
        };
        values.as_ref().unwrap_or_else(|why| panic!("{why}")).iter().map(known).collect()
    }

    /// Another backend may have used registers without saving them. So below its frames they are unknown, whatever
    /// the runtime has stored about its last boundary. An image contains what the runtime reports: the registers of
    /// that boundary.
    #[test]
    fn below_a_tier_that_saves_nothing_registers_are_unknown_and_an_image_has_the_boundarys() {
        let mut memory = Fake::new();
        let (mut runtime, tiers) = two_tiers(&mut memory);
        let order = [1, 0, 0, 1, 0];
        let mut at = stack(&mut memory, &tiers, &order);
        let start = at.clone();
        let mut shown = Vec::new();
        for &tier in &order {
            let frame = runtime.describe(&at, &memory).remove(0);
            assert_eq!((frame.module, frame.kind), (tier, GuestKind::Wasm));
            shown.push((bits(&frame.locals), frame.instance));
            let Some(Next::Caller(caller, Trust::Runtime)) = runtime.step(&at, &memory) else { panic!("no caller") };
            at = caller;
        }
        assert_eq!(at.address, CodeAddress::Return(0x10));
        let words = |locals: &[Option<u64>]| locals.iter().filter(|v| v.is_some()).count();
        // The youngest frame has its own registers. Its two halves are in one word, and its third local is in its
        // caller's frame.
        let (locals, _) = &shown[0];
        let own = STACK + 0x100;
        assert_eq!(*locals, [Some(0xa00), Some((own + 8) & 0xffff_ffff), Some(own + 8 * 6)]);
        // Its caller is baseline code: five of the locals are in the frame, four in registers that nobody has saved.
        let (locals, instance) = &shown[1];
        assert_eq!((&locals[..4], words(&locals[4..]), *instance), (&[None; 4][..], 5, None));
        // This frame's callee has saved the registers that this frame had, so all its locals are known.
        let (locals, instance) = &shown[2];
        assert!(words(locals) == 9 && instance.is_some(), "{locals:x?}");
        let (locals, _) = &shown[3];
        assert_eq!(words(locals), 3);
        let (locals, instance) = &shown[4];
        assert_eq!((&locals[..4], words(&locals[4..]), *instance), (&[None; 4][..], 5, None));

        let image = |runtime: &Singlepass| {
            let image =
                runtime.images().expect("singlepass has images").image(ThreadId(1), &start, &memory).expect("an image");
            assert_eq!(image.frames.len(), 5);
            image.frames.into_iter().map(|f| f.locals).collect::<Vec<_>>()
        };
        // Where the boundary's registers are not known, an image has the same values as the frames.
        let without = image(&runtime);
        for (frame, ((locals, _), locals_of_image)) in shown.iter().zip(&without).enumerate() {
            assert_eq!(locals, locals_of_image, "frame {frame}");
        }
        runtime.boundary = vec![(ThreadId(1), BoundaryRegisters::from_words([15, 14, 13, 12, 3]))];
        let with = image(&runtime);
        for frame in 0..5 {
            let crossed = frame == 1 || frame == 4;
            let first =
                if crossed { vec![Some(12), Some(13), Some(14), Some(3)] } else { without[frame][..3].to_vec() };
            assert_eq!(with[frame][..first.len()], first, "frame {frame}");
            assert_eq!(with[frame][first.len()..], without[frame][first.len()..], "frame {frame}");
        }
    }
}
