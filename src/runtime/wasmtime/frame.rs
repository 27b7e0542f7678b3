//! Frames of Wasmtime's code: who called, and what is there.
//!
//! Every function and trampoline keeps a frame pointer (the compiler forces it), so the chain is known with `.eh_frame` or
//! without. The tables say where callee-saved registers are, but nothing about epilogues, which are recognised.

use super::Wasmtime;
use super::code::Code;
use super::exit::is_vmctx;
use super::flow::Held;
use super::frame_table::{FrameDescriptor, FrameValType, SlotValue};
use super::image::{Function, FunctionKind, Kind};
use super::info::FuncKind;
use super::points::{FrameAt, Points, Recorded, Unrecorded};
use crate::arch::{CodeAddress, Reg, Registers};
use crate::limits::MAX_NAMED_OWNERS;
use crate::runtime::{GuestFrame, GuestKind, OperatorPlace, Place, Position, Slot, ValType, Value, Why};
use crate::symbolize::wasm::WasmModule;
use crate::target::{Memory, MemoryError};
use crate::unwind::{Cursor, Next, Trust, UnwindError, Unwinder};
use std::borrow::Cow;

/// The runtime's name in reports.
pub const RUNTIME: &str = "wasmtime";

/// `mov rsp, rbp; pop rbp`: the end of a frame in every epilogue.
pub(super) const EPILOGUE: [u8; 4] = [0x48, 0x89, 0xec, 0x5d];
/// `push rbp; mov rbp, rsp`: the start of every function and trampoline.
pub(super) const PROLOGUE: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];

/// What is said where the image does not tell which functions were inlined.
const MAY_MISS_INLINED: &str = "inlined frames may be missing here: the image keeps no place of this code";

/// Registers that a callee keeps, and that may hold an instance in a caller.
pub(super) const KEPT: [Reg; 5] = [Reg::RBX, Reg::R12, Reg::R13, Reg::R14, Reg::R15];

/// The caller of a frame in `code`.
pub(super) fn step(runtime: &Wasmtime, code: &Code, at: &Cursor, memory: &dyn Memory) -> Next {
    let memory = &code.memory(memory);
    if let Some(why) = is_another_file(runtime, code, at, memory) {
        return Next::Lost(UnwindError::BadFrame { address: at.address.raw(), runtime: RUNTIME, why });
    }
    let next = frame_edge(code, at, memory)
        .or_else(|| code.cfi.as_ref()?.step(at, memory))
        .or_else(|| by_code(runtime, code, at, memory))
        .unwrap_or_else(|| by_frame_pointer(at, memory));
    let caller = match &next {
        Next::Caller(caller, _) => Some(caller),
        _ => None,
    };
    runtime.remember(code, at, caller, memory);
    next
}

/// Why the frame cannot be of the code that was read from a file, which nothing but its name says is the right one.
fn is_another_file(runtime: &Wasmtime, code: &Code, at: &Cursor, memory: &dyn Memory) -> Option<String> {
    let file = code.file.as_ref().filter(|_| code.is_unproven() && at.address.is_return())?;
    let path = file.path.display();
    (!runtime.follows_call(code, at.address, memory))
        .then(|| format!("{path} is not the file that was mapped: it has no call before this address"))
}

/// Whether the frame is on its way: the distance of the return address from rsp before rbp is set up and after it was
/// given back. `None`: rbp is this frame's.
fn edge(code: &Code, at: &Cursor, memory: &dyn Memory) -> Option<u64> {
    let CodeAddress::Exact(pc) = at.address else { return None };
    let is = |address: Option<u64>, bytes: [u8; 4]| {
        let mut there = [0; 4];
        address.is_some_and(|a| code.contains(a) && memory.read(a, &mut there).is_ok() && there == bytes)
    };
    if is(pc.checked_sub(EPILOGUE.len() as u64), EPILOGUE) {
        return Some(0);
    }
    let start = code.image.text().start + u64::from(code.function(pc)?.start);
    let depth = match pc - start {
        0 => 0,
        1 => 8,
        _ => return None,
    };
    is(Some(start), PROLOGUE).then_some(depth)
}

/// What the tables do not say, or say wrongly.
fn frame_edge(code: &Code, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
    let depth = edge(code, at, memory)?;
    let found = || -> Result<Next, UnwindError> {
        let sp = at.registers.sp().ok_or(UnwindError::UnknownRegister { register: "rsp" })?;
        let slot = sp.wrapping_add(depth);
        let mut caller = at.registers.clone();
        caller.forget_caller_saved();
        if depth == 8 {
            caller.restore(Reg::RBP, memory.read_u64(sp)?, sp);
        }
        let pc = memory.read_u64(slot)?;
        caller.restore(Reg::RIP, pc, slot);
        caller.set(Reg::RSP, slot.wrapping_add(8));
        Ok(Next::Caller(Cursor { address: CodeAddress::Return(pc), registers: caller }, Trust::Runtime))
    };
    Some(found().unwrap_or_else(Next::Lost))
}

/// Without tables: the code itself says where it saved its caller's registers.
fn by_code(runtime: &Wasmtime, code: &Code, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
    let facts = runtime.facts(code, at.address, memory)?;
    let sp = facts.state.entry_sp(&at.registers).filter(|sp| sp.is_multiple_of(8))?;
    let pc = memory.read_u64(sp).ok()?;
    let mut caller = Registers::unknown();
    for reg in KEPT.into_iter().chain([Reg::RBP]) {
        match facts.state.places(Held::Entry(reg), &at.registers, memory) {
            Some((value, Some(slot))) => caller.restore(reg, value, slot),
            Some((value, None)) => caller.set(reg, value),
            None => {}
        }
    }
    // Every frame keeps its caller's; without it this is another stack than the code made.
    caller.get(Reg::RBP)?;
    caller.restore(Reg::RIP, pc, sp);
    caller.set(Reg::RSP, sp.checked_add(8)?);
    Some(Next::Caller(Cursor { address: CodeAddress::Return(pc), registers: caller }, Trust::Runtime))
}

/// By the frame pointer that the compiler forces. What the function did with the other registers is not known.
fn by_frame_pointer(at: &Cursor, memory: &dyn Memory) -> Next {
    let found = || -> Result<Next, UnwindError> {
        let frame = at.registers.get(Reg::RBP).ok_or(UnwindError::UnknownRegister { register: "rbp" })?;
        let broken = |why: &str| UnwindError::BadFrame {
            address: at.address.raw(),
            runtime: RUNTIME,
            why: format!("{why} ({frame:#x})"),
        };
        if !frame.is_multiple_of(8) || at.registers.sp().is_some_and(|sp| frame < sp) {
            return Err(broken("rbp is no frame pointer here"));
        }
        let above = frame.checked_add(8).ok_or_else(|| broken("rbp is no frame pointer here"))?;
        let mut caller = Registers::unknown();
        caller.restore(Reg::RBP, memory.read_u64(frame)?, frame);
        let pc = memory.read_u64(above)?;
        caller.restore(Reg::RIP, pc, above);
        caller.set(Reg::RSP, above.wrapping_add(8));
        Ok(Next::Caller(Cursor { address: CodeAddress::Return(pc), registers: caller }, Trust::Runtime))
    };
    found().unwrap_or_else(Next::Lost)
}

/// What is at `at`, the innermost function first.
pub(super) fn describe(runtime: &Wasmtime, code: &Code, at: &Cursor, memory: &dyn Memory) -> Vec<GuestFrame> {
    let memory = &code.memory(memory);
    let address = at.address.lookup();
    let (Some(offset), Some(raw)) =
        (code.image.text_offset(address), at.address.raw().checked_sub(code.image.text().start))
    else {
        return Vec::new();
    };
    let function = code.functions.at(offset);
    let mut base = GuestFrame {
        code_offset: raw,
        function_offset: function.as_ref().map(|f| raw.saturating_sub(u64::from(f.start))),
        ..GuestFrame::unknown(GuestKind::Trampoline, code.first + code.module_at(address))
    };
    if let Some(why) = is_another_file(runtime, code, at, memory) {
        base.name = Some(("code that is not here (wasmtime)".into(), "code image"));
        base.notes.push(why);
        return vec![base];
    }
    let Some(function) = function else {
        let what = match code.functions.is_empty() {
            true => {
                base.kind = GuestKind::Unknown;
                "code of an image whose tables cannot be read (wasmtime)"
            }
            false => "code that the image does not name (wasmtime)",
        };
        base.name = Some((what.into(), "code image"));
        return vec![base];
    };
    let FunctionKind::Wasm { module, function: index, .. } = &function.kind else {
        base.name = Some((trampoline_name(code, &function), "symbol"));
        return vec![base];
    };
    base.kind = GuestKind::Wasm;
    let solved = runtime.solved(memory);
    let key = super::key(at);
    base.instance = key.and_then(|key| solved.instance(key));
    let here = Here { code, at, memory, offset };
    let why = match here.recorded(&function) {
        Ok(recorded) => {
            let mut frames = here.frames_of(&base, &function, &recorded);
            here.sources(&mut frames);
            return frames;
        }
        Err(why) => why,
    };
    let Unrecorded { why, inlined } = why;
    base.locals = Err(why.clone());
    base.stack = Err(why);
    here.name(&mut base, *module, *index, &function);
    let place = code.place(offset).map(|p| p.0);
    if let Some(place) = place {
        let owners = code.owners(offset);
        if !owners.is_empty() && owners != [(*module, *index)] {
            // The operator belongs to another function: it was inlined here.
            let mut inner = base.clone();
            inner.inlined = true;
            if let [(other_module, other)] = owners[..] {
                if other_module != *module {
                    let number = code.first + other_module as usize;
                    inner.instance = key.and_then(|key| solved.only(key, number));
                }
                here.name(&mut inner, other_module, other, &function);
                here.position(&mut inner, other_module, u64::from(place));
            } else {
                let name = |(m, f): &(u32, u32)| {
                    let name = code.function_name(*m as usize, *f, None);
                    name.map_or_else(|| format!("func {f}"), |(name, _)| name)
                };
                inner.instance = None;
                let names = alternatives(&owners, name);
                inner.notes.push(format!("a function that was inlined: {names}, it cannot be told which"));
            }
            inner.notes.push("inlined: functions between this one and the next may be missing".into());
            base.may_miss_inlined = true;
            let mut frames = vec![inner, base];
            here.sources(&mut frames);
            return frames;
        }
        here.position(&mut base, *module, u64::from(place));
    } else if !code.has_places() {
        base.notes.push("places in the Wasm code are not recorded by this build (generate_address_map is off)".into());
    }
    // Inlined code has no place. Neither has other code that the compiler made or moved, but for calls.
    if inlined || (place.is_none() && here.may_be_inlined(*module)) {
        base.may_miss_inlined = true;
        base.notes.push(MAY_MISS_INLINED.into());
    }
    let mut frames = vec![base];
    here.sources(&mut frames);
    frames
}

fn trampoline_name(code: &Code, function: &Function) -> String {
    let wasm = |module: u32, f: u32| {
        code.function_name(module as usize, f, None).map_or_else(|| format!("func {f}"), |(name, _)| name)
    };
    match &function.kind {
        FunctionKind::ArrayToWasm { module, function } => {
            format!("entry trampoline of {} (wasmtime)", wasm(*module, *function))
        }
        FunctionKind::WasmToArray { signature } => format!("exit trampoline of signature {signature} (wasmtime)"),
        FunctionKind::Builtin(name) => format!("call of the runtime's {name} (wasmtime)"),
        FunctionKind::ModuleStart { module } => format!("start of module {module} (wasmtime)"),
        FunctionKind::Component(name) => format!("{name} (wasmtime)"),
        FunctionKind::Wasm { .. } => "wasm (wasmtime)".to_string(),
        FunctionKind::Other(name) => name.clone(),
    }
}

struct Here<'a> {
    code: &'a Code,
    at: &'a Cursor,
    memory: &'a dyn Memory,
    offset: u32,
}

impl Here<'_> {
    /// The frames that the compiler recorded here.
    fn recorded(&self, function: &Function) -> Result<Recorded, Unrecorded> {
        let read = |from: u32, to: u32| {
            let start = self.code.image.text().start.checked_add(u64::from(from))?;
            self.memory.read_vec(start, to.checked_sub(from)? as usize).ok()
        };
        let nothing = |why| Unrecorded { why, inlined: false };
        let points = Points::of(self.code, function, &read).map_err(nothing)?;
        let raw = self.offset + u32::from(self.at.address.is_return());
        let recorded = points.at(self.at.address, raw)?;
        // Since the last point the code may have entered or left the frame.
        if !recorded.exact && (self.frame_pointer().is_none() || self.in_epilogue()) {
            return Err(nothing(Why("between the frames: rbp is the caller's or about to be".into())));
        }
        Ok(recorded)
    }

    /// Whether what is here may be of functions that were inlined, where neither the frame table nor the address map say.
    fn may_be_inlined(&self, module: u32) -> bool {
        self.code.has_frames() != Some(true) && self.code.may_inline(module as usize) && self.settled()
    }

    /// Whether the frame is set up and not being taken down.
    fn settled(&self) -> bool {
        edge(self.code, self.at, self.memory).is_none() && !self.in_epilogue()
    }

    fn frames_of(&self, base: &GuestFrame, function: &Function, recorded: &Recorded) -> Vec<GuestFrame> {
        let mut out = Vec::new();
        let outermost = recorded.frames.len().saturating_sub(1);
        for (depth, at) in recorded.frames.iter().enumerate() {
            let mut frame = base.clone();
            frame.inlined = depth < outermost;
            let table = self.code.frame_table();
            let descriptor = table.and_then(|t| t.descriptor(at.program.descriptor).map_err(|e| Why(e.to_string())));
            match descriptor {
                Ok(d) if d.function.kind == FuncKind::Wasm => {
                    let module = d.function.namespace;
                    let index = self.code.imports(module as usize).map(|n| n.saturating_add(d.function.index));
                    if let Some(index) = index {
                        frame.module = self.code.first + (module as usize).min(self.code.modules - 1);
                        self.name(&mut frame, module, index, function);
                        if let Some(place) = at.place {
                            self.position(&mut frame, module, u64::from(place));
                        }
                    }
                    self.values(&mut frame, &d, at, recorded.exact);
                }
                Ok(_) => frame.locals = Err(Why("the descriptor here is of no Wasm function".into())),
                Err(why) => (frame.locals, frame.stack) = (Err(why.clone()), Err(why)),
            }
            out.push(frame);
        }
        out
    }

    fn values(&self, frame: &mut GuestFrame, d: &FrameDescriptor, at: &FrameAt, exact: bool) {
        if !at.filled {
            let why = Why("the function had not stored them yet".into());
            (frame.locals, frame.stack) = (Err(why.clone()), Err(why));
            return;
        }
        let Some(fp) = self.frame_pointer() else {
            let why = Why("register rbp is not known in this frame".into());
            (frame.locals, frame.stack) = (Err(why.clone()), Err(why));
            return;
        };
        frame.instance = match d.vmctx(fp, self.memory) {
            Ok(vmctx) if is_vmctx(vmctx, self.memory) => Some(vmctx),
            // Without its instance the frame's slot is not what it is taken for.
            _ => {
                let why = Why("the frame's slot does not begin with an instance".into());
                (frame.locals, frame.stack) = (Err(why.clone()), Err(why));
                return;
            }
        };
        let value = |slot: &SlotValue| self.value(d, slot, fp);
        frame.locals = Ok(d.locals.iter().map(value).collect());
        frame.stack = match (exact, d.stack(at.program.shape)) {
            (true, Some(slots)) => Ok(slots.iter().map(value).collect()),
            (true, None) => Err(Why("the operand stack that is recorded here is broken".into())),
            (false, _) => Err(Why("not recorded between two operators".into())),
        };
        if !exact {
            frame.notes.push("between two operators: locals are those of the last recorded place".into());
        }
    }

    fn value(&self, d: &FrameDescriptor, slot: &SlotValue, fp: u64) -> Value {
        let address = slot.address(d, fp);
        let ty = Some(val_type(slot.ty));
        let slot = match slot.read(d, fp, self.memory) {
            Ok(bits) => {
                let offset = address.wrapping_sub(fp).cast_signed();
                Slot::Known { bits, place: Place::Memory { base: Reg::RBP, offset, address } }
            }
            Err(MemoryError::Unmapped { .. }) => Slot::Unknown(Why(format!("no memory at {address:#x}"))),
            Err(e) => Slot::Unknown(Why(e.to_string())),
        };
        Value { ty, slot }
    }

    /// Whether the frame is being taken down: what lies in it may be overwritten any moment.
    fn in_epilogue(&self) -> bool {
        let CodeAddress::Exact(pc) = self.at.address else { return false };
        let mut around = [0; 2 * EPILOGUE.len() - 1];
        let before = pc.wrapping_sub(EPILOGUE.len() as u64 - 1);
        self.memory.read(before, &mut around).is_ok() && around.windows(EPILOGUE.len()).any(|w| w == EPILOGUE)
    }

    /// rbp of this frame, where it is one.
    fn frame_pointer(&self) -> Option<u64> {
        if edge(self.code, self.at, self.memory).is_some() {
            return None;
        }
        let fp = self.at.registers.get(Reg::RBP)?;
        let below = self.at.registers.sp().is_none_or(|sp| sp <= fp);
        (fp.is_multiple_of(8) && below).then_some(fp)
    }

    /// Source lines, variables and functions that the source's compiler inlined, where the image has debug information. A
    /// Wasm function that is several frames already keeps them: which of the source's belong to which is not known.
    fn sources(&self, frames: &mut Vec<GuestFrame>) {
        let Some(dwarf) = &self.code.dwarf else { return };
        let [frame] = frames.as_mut_slice() else { return };
        let cfa = self.frame_pointer().and_then(|fp| fp.checked_add(16));
        // Descriptions hold inside of the frame; at its edges registers are no longer, or not yet, what they say.
        let unsettled = cfa.is_none() || self.in_epilogue();
        let nothing = Registers::unknown();
        let registers = if unsettled { &nothing } else { &self.at.registers };
        if frame.instance.is_none() {
            let found = dwarf.vmctx(self.offset, registers, cfa, self.memory);
            frame.instance = found.filter(|v| is_vmctx(*v, self.memory));
        }
        let found = dwarf.frames(self.offset);
        // Of functions without sources of their own the runtime writes a description, whose variables are Wasm's locals.
        if found.is_empty() || found.iter().any(|f| f.generated) {
            return;
        }
        let mut scopes = dwarf.scoped_variables(self.offset, registers, cfa, self.memory).into_iter();
        let outer = frame.clone();
        let last = found.len() - 1;
        let mut out = Vec::new();
        for (i, source) in found.into_iter().enumerate() {
            let mut one = outer.clone();
            one.inlined = i < last;
            if one.inlined {
                one.name = source.function.map(|name| (name, "dwarf"));
                (one.function, one.local_function) = (None, None);
                one.locals = Ok(Vec::new());
                one.stack = Ok(Vec::new());
            }
            one.variables = scopes.next().unwrap_or_default();
            if let Some(operator) = &mut one.operator {
                if i > 0 {
                    operator.text = None;
                }
                (operator.file, operator.line) = (source.file, source.line);
            }
            out.push(one);
        }
        *frames = out;
    }

    /// Names `frame`, which is of `function` and in code of `piece`. A function has one piece of code: if that is its own
    /// and has no name, no other one is asked.
    fn name(&self, frame: &mut GuestFrame, module: u32, function: u32, piece: &Function) {
        frame.function = Some(function);
        frame.local_function = self.code.imports(module as usize).and_then(|n| function.checked_sub(n));
        let symbol = match &piece.kind {
            FunctionKind::Wasm { module: m, function: f, name } if (*m, *f) == (module, function) => {
                name.as_deref().map(Cow::from)
            }
            _ => self.code.functions.name_of(module, function).map(Cow::from),
        };
        frame.name = self.code.function_name(module as usize, function, symbol.as_deref());
        frame.module = self.code.first + (module as usize).min(self.code.modules - 1);
    }

    fn position(&self, frame: &mut GuestFrame, module: u32, place: u64) {
        frame.position = Position::Offset(place);
        let mut operator = OperatorPlace { offset: place, text: None, file: None, line: None };
        // In a component the place counts from the component's start, which is not at hand.
        if self.code.image.header().kind == Kind::Module
            && let Some(Some(wasm)) = self.code.wasm.get(module as usize)
            && let Some(index) = operator_index(wasm, frame.local_function, place)
            && let Some(found) = frame.local_function.and_then(|f| wasm.operator(f, index))
        {
            operator.text = Some(found.text);
            if let Some(source) = wasm.source(place).into_iter().next() {
                (operator.file, operator.line) = (source.file, source.line);
            }
        }
        frame.operator = Some(operator);
    }
}

/// "a or b".
fn alternatives<T>(of: &[T], name: impl Fn(&T) -> String) -> String {
    let mut names: Vec<String> = of.iter().take(MAX_NAMED_OWNERS).map(name).collect();
    if of.len() > MAX_NAMED_OWNERS {
        names.push(format!("one of {} others", of.len() - MAX_NAMED_OWNERS));
    }
    names.join(" or ")
}

/// Number of the operator at a place in the file.
pub(super) fn operator_index(wasm: &WasmModule, local: Option<u32>, place: u64) -> Option<u64> {
    wasm.operators(local?)?.binary_search(&place).ok().map(|i| i as u64)
}

/// The report's type of a recorded value.
pub(super) fn val_type(ty: FrameValType) -> ValType {
    match ty {
        FrameValType::I32 => ValType::I32,
        FrameValType::I64 => ValType::I64,
        FrameValType::F32 => ValType::F32,
        FrameValType::F64 => ValType::F64,
        FrameValType::V128 => ValType::V128,
        FrameValType::FuncRef => ValType::FuncRef,
        FrameValType::ExternRef => ValType::ExternRef,
        _ => ValType::Ref,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_alternatives_are_named() {
        let said = |count: usize| alternatives(&vec![(); count], |()| "f".into());
        assert_eq!(said(2), "f or f");
        assert_eq!(said(MAX_NAMED_OWNERS).matches('f').count(), MAX_NAMED_OWNERS);
        assert_eq!(said(MAX_NAMED_OWNERS + 3), said(MAX_NAMED_OWNERS) + " or one of 3 others");
    }
}
