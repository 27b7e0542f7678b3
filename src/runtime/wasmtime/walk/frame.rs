//! Frames of Wasmtime's code: who called them, and which functions and values they have.
//!
//! What the code did before the frame's address tells the caller at every instruction ([`super::flow`]). The tables
//! (`.eh_frame`) are asked as well: they say nothing about the ends of functions, and count wrongly where a prologue
//! makes room for the arguments of a tail call. Every function and trampoline keeps a frame pointer (the compiler
//! forces it), which is the third way. Where the code cannot be followed and the other two differ, the frame pointer
//! is taken and the frame is marked.

use super::exit::is_vmctx;
use super::flow::{Facts, Held, WINCH};
use crate::arch::{CodeAddress, Machine, Reg, Registers, x64};
use crate::limits::MAX_NAMED_OWNERS;
use crate::process::{Memory, MemoryError};
use crate::runtime::wasmtime::Wasmtime;
use crate::runtime::wasmtime::image::info::FuncKind;
use crate::runtime::wasmtime::image::{Function, FunctionKind};
use crate::runtime::wasmtime::tables::code::Code;
use crate::runtime::wasmtime::tables::frame_table::{FrameDescriptor, FrameValType, SlotValue};
use crate::runtime::wasmtime::tables::points::{FrameAt, Points, Recorded, Unrecorded};
use crate::runtime::{
    GuestFrame, GuestKind, NO_POSITIONS, OperatorPlace, Place, Position, RuntimeName, Slot, Value, Why,
};
use crate::unwind::{Cursor, Next, Trust, UnwindError, Unwinder};
use crate::wasm::WasmModule;
use crate::wasm::{NameSource, ValType};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic, OpKind, Register};
use std::borrow::Cow;

/// The runtime's name in reports.
pub const RUNTIME: &str = RuntimeName::Wasmtime.as_str();

/// `mov rsp, rbp; pop rbp`: the end of a frame in every epilogue.
pub const EPILOGUE: [u8; 4] = [0x48, 0x89, 0xec, 0x5d];
/// `push rbp; mov rbp, rsp`: the start of every function and trampoline.
pub const PROLOGUE: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];

/// The note on frames for which the image does not tell which functions were inlined.
const MAY_MISS_INLINED: &str =
    "inlined frames may be missing here: the code image does not say which operators this code belongs to";

/// Registers that a callee keeps, and that may hold an instance in a caller.
pub const KEPT: [Reg; 5] = [x64::RBX, x64::R12, x64::R13, x64::R14, x64::R15];

/// Finds the caller of a frame in `code`.
pub fn step(runtime: &Wasmtime, code: &Code, at: &Cursor, memory: &dyn Memory) -> Next {
    let memory = &code.memory(memory);
    if let Some(why) = is_another_file(runtime, code, at, memory) {
        return Next::Lost(UnwindError::BadFrame { address: at.address.raw(), runtime: RUNTIME, why });
    }
    let tabled = || {
        let next = code.cfi.as_ref()?.step(at, memory)?;
        Some(if is_winch(runtime, code, at, memory) { without_kept(next) } else { next })
    };
    let next = match by_code(runtime, code, at, memory) {
        Some(caller) if may_have_called(runtime, &caller, memory) => {
            agreed(with_own_sp(runtime, caller, memory), tabled())
        }
        found => {
            frame_edge(code, at, memory).unwrap_or_else(|| undecided(runtime, at, found.is_some(), tabled(), memory))
        }
    };
    let caller = match &next {
        Next::Caller(caller, _) => Some(caller),
        _ => None,
    };
    runtime.remember(code, at, caller, memory);
    next
}

/// Why the frame cannot be a frame of the code that was read from a file. Nothing but the file's name says that it is
/// the right file.
fn is_another_file(runtime: &Wasmtime, code: &Code, at: &Cursor, memory: &dyn Memory) -> Option<String> {
    let file = code.file.as_ref().filter(|_| code.is_unproven() && at.address.is_return())?;
    let path = file.path.display();
    (!runtime.follows_call(code, at.address, memory))
        .then(|| format!("{path} is not the file that was mapped: it has no call before this address"))
}

/// Distance of the return address from rsp in bytes, where rbp is the caller's: before the function has set up its
/// frame, and after it gave the frame back. `None` if rbp is this frame's.
fn edge(code: &Code, at: &Cursor, memory: &dyn Memory) -> Option<u64> {
    let CodeAddress::Exact(pc) = at.address else { return None };
    let leaving = || {
        let mut around = [0; EPILOGUE.len() + 2 * LEAVING_BYTES];
        let from = pc.checked_sub((EPILOGUE.len() + LEAVING_BYTES) as u64)?;
        let len = memory.read_some(from, &mut around);
        let (before, after) = around.get(..len)?.split_at_checked(EPILOGUE.len() + LEAVING_BYTES)?;
        let ended =
            (EPILOGUE.len()..=before.len()).find(|end| before.get(end - EPILOGUE.len()..*end) == Some(&EPILOGUE));
        let behind = ended.and_then(|end| Some((before.len() - end, leaves(around.get(end..len)?)?)));
        // At a `ret` the return address is at rsp, whatever instructions come before it.
        Some(matches!(after.first(), Some(0xc3 | 0xc2)) || behind.is_some_and(|(at, length)| at < length as usize))
    };
    if leaving() == Some(true) {
        return Some(0);
    }
    let is = |address: Option<u64>, bytes: [u8; 4]| {
        let mut there = [0; 4];
        address.is_some_and(|a| code.contains(a) && memory.read(a, &mut there).is_ok() && there == bytes)
    };
    let start = code.image.text().start + u64::from(code.function(pc)?.start);
    let depth = match pc - start {
        0 => 0,
        1 => 8,
        _ => return None,
    };
    is(Some(start), PROLOGUE).then_some(depth)
}

/// The largest number of bytes of the instructions that leave a function.
const LEAVING_BYTES: usize = 32;

/// Length in bytes of the instructions at the start of `code` that leave a function: `ret`, `ret n` or the jump of a
/// tail call. In front of the jump the return address may be moved over arguments that the callee does not have.
/// Before each of these instructions the word at rsp is the return address.
pub fn leaves(code: &[u8]) -> Option<u32> {
    /// `mov tmp, [rsp]; mov [rsp + n], tmp; add rsp, n; jmp`
    const LONGEST: usize = 4;
    let mut length = 0;
    for i in Decoder::with_ip(64, code, 0, DecoderOptions::NONE).into_iter().take(LONGEST) {
        length += u32::try_from(i.len()).ok()?;
        let on_the_stack = |n: u32| i.op_kind(n) == OpKind::Memory && i.memory_base() == Register::RSP;
        match (i.flow_control(), i.mnemonic()) {
            (FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch, _) => {
                return Some(length);
            }
            (FlowControl::Next, Mnemonic::Mov) if on_the_stack(0) || on_the_stack(1) => {}
            (FlowControl::Next, Mnemonic::Add) if i.op0_register() == Register::RSP => {}
            _ => return None,
        }
    }
    None
}

/// The caller at the edges of a function, of which the tables say nothing or something wrong. `None` inside of the
/// frame.
fn frame_edge(code: &Code, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
    let depth = edge(code, at, memory)?;
    let found = || -> Result<Next, UnwindError> {
        let sp = at.registers.sp().ok_or(UnwindError::UnknownRegister { register: "rsp" })?;
        let slot = sp.wrapping_add(depth);
        let mut caller = at.registers.clone();
        caller.forget_caller_saved();
        if depth == 8 {
            caller.restore(x64::RBP, memory.read_u64(sp)?, sp);
        }
        let pc = memory.read_u64(slot)?;
        caller.restore(x64::RIP, pc, slot);
        caller.set(x64::RSP, slot.wrapping_add(8));
        Ok(Next::Caller(Cursor { address: CodeAddress::Return(pc), registers: caller }, Trust::Runtime))
    };
    Some(found().unwrap_or_else(Next::Lost))
}

/// Whether Winch compiled the function.
fn is_winch(runtime: &Wasmtime, code: &Code, at: &Cursor, memory: &dyn Memory) -> bool {
    if let Some(facts) = runtime.facts(code, at.address, memory) {
        return facts.winch;
    }
    let mut begin = [0; WINCH.len()];
    let start = code.function(at.address.lookup()).map(|f| code.image.text().start + u64::from(f.start));
    start.is_some_and(|start| memory.read(start, &mut begin).is_ok()) && begin == WINCH
}

/// Forgets the kept registers of a caller that the table told. The table takes registers that it does not mention for
/// kept, but functions that Winch compiled keep none.
fn without_kept(mut next: Next) -> Next {
    if let Next::Caller(caller, _) = &mut next {
        KEPT.iter().for_each(|reg| caller.registers.forget(*reg));
    }
    next
}

/// A tail call may leave fewer than this many bytes of arguments more or less on the stack than the call did: the
/// operand of `ret` has 16 bits.
const TAIL_ARGUMENTS: u64 = 1 << 16;

/// Whether `caller` can be right: if it is in the runtime's code, that code has a call there, with a frame of this
/// size. Nothing speaks against other code, or against a function that cannot be followed.
fn may_have_called(runtime: &Wasmtime, caller: &Cursor, memory: &dyn Memory) -> bool {
    let Some(code) = runtime.code_at(caller.address.lookup()) else { return true };
    let Some(facts) = runtime.facts(code, caller.address, &code.memory(memory)) else { return true };
    let near = || own_sp(&facts, caller).zip(caller.registers.sp()).is_none_or(|(a, b)| a.abs_diff(b) < TAIL_ARGUMENTS);
    facts.is_call() && near()
}

/// The stack pointer at the call that `caller` made, as the caller's own code says.
fn own_sp(facts: &Facts, caller: &Cursor) -> Option<u64> {
    caller.registers.get(x64::RBP)?.checked_add_signed(facts.sp_at_call()?)
}

/// `caller` with the stack pointer that it had at its call, as its own code says. A function that was reached through
/// tail calls has other arguments on the stack than the function that was called first.
fn with_own_sp(runtime: &Wasmtime, mut caller: Cursor, memory: &dyn Memory) -> Cursor {
    let own = || {
        let code = runtime.code_at(caller.address.lookup())?;
        let facts = runtime.facts(code, caller.address, &code.memory(memory))?;
        own_sp(&facts, &caller)
    };
    if let Some(sp) = own() {
        caller.registers.set(x64::RSP, sp);
    }
    caller
}

/// The caller that the code tells. If the tables mean the same caller, the registers that they know are added, and
/// those on which both differ are forgotten.
fn agreed(caller: Cursor, tabled: Option<Next>) -> Next {
    let Some(Next::Caller(mut other, trust)) = tabled else { return Next::Caller(caller, Trust::Runtime) };
    let same = |reg| caller.registers.get(reg) == other.registers.get(reg);
    if !(same(x64::RIP) && same(x64::RSP) && same(x64::RBP)) {
        return Next::Caller(caller, Trust::Runtime);
    }
    for reg in KEPT {
        match (caller.registers.get(reg), other.registers.get(reg)) {
            (Some(a), Some(b)) if a != b => other.registers.forget(reg),
            (Some(value), None) => match caller.registers.saved_at(reg) {
                Some(slot) => other.registers.restore(reg, value, slot),
                None => other.registers.set(reg, value),
            },
            _ => {}
        }
    }
    Next::Caller(other, trust)
}

/// The caller, where the code cannot be followed to this address or, with `contradicted`, where the caller that the
/// code tells cannot be right. The tables and the frame pointer decide.
fn undecided(runtime: &Wasmtime, at: &Cursor, contradicted: bool, tabled: Option<Next>, memory: &dyn Memory) -> Next {
    let chained = by_frame_pointer(at, memory);
    match (tabled, chained) {
        (Some(Next::Caller(a, trust)), Next::Caller(b, _)) => {
            let same = |reg| a.registers.get(reg) == b.registers.get(reg);
            if !contradicted && same(x64::RIP) && same(x64::RSP) && same(x64::RBP) {
                return Next::Caller(a, trust);
            }
            let (chained, tabled) = (may_have_called(runtime, &b, memory), may_have_called(runtime, &a, memory));
            Next::Caller(if tabled && !chained { a } else { b }, Trust::FramePointer)
        }
        (None, Next::Caller(caller, trust)) => {
            Next::Caller(caller, if contradicted { Trust::FramePointer } else { trust })
        }
        (_, Next::Caller(caller, _)) => Next::Caller(caller, Trust::FramePointer),
        // Without rbp there is nothing to compare.
        (Some(Next::Caller(caller, trust)), _) => {
            Next::Caller(caller, if contradicted { Trust::FramePointer } else { trust })
        }
        (Some(next), Next::Lost(_)) => next,
        (_, next) => next,
    }
}

/// The caller as the code itself tells it: where the return address is, and where the code saved its caller's
/// registers.
fn by_code(runtime: &Wasmtime, code: &Code, at: &Cursor, memory: &dyn Memory) -> Option<Cursor> {
    let facts = runtime.facts(code, at.address, memory)?;
    let sp = facts.state.entry_sp(&at.registers).filter(|sp| sp.is_multiple_of(8))?;
    let (pc, slot) = facts.state.places(Held::Return, &at.registers, memory)?;
    let mut caller = Registers::unknown(Machine::X64);
    for reg in KEPT.into_iter().chain([x64::RBP]) {
        match facts.state.places(Held::Entry(reg), &at.registers, memory) {
            Some((value, Some(slot))) => caller.restore(reg, value, slot),
            Some((value, None)) => caller.set(reg, value),
            None => {}
        }
    }
    // Every frame of compiled code keeps its caller's rbp. If it is not there, this is another stack than the one
    // that the code made.
    caller.get(x64::RBP)?;
    match slot {
        Some(slot) => caller.restore(x64::RIP, pc, slot),
        None => caller.set(x64::RIP, pc),
    }
    caller.set(x64::RSP, sp.checked_add(8)?);
    Some(Cursor { address: CodeAddress::Return(pc), registers: caller })
}

/// The caller by the frame pointer, which the compiler forces every function to keep. What the function did with the
/// other registers is not known.
fn by_frame_pointer(at: &Cursor, memory: &dyn Memory) -> Next {
    let found = || -> Result<Next, UnwindError> {
        let frame = at.registers.get(x64::RBP).ok_or(UnwindError::UnknownRegister { register: "rbp" })?;
        let broken = |why: &str| UnwindError::BadFrame {
            address: at.address.raw(),
            runtime: RUNTIME,
            why: format!("{why} ({frame:#x})"),
        };
        if !frame.is_multiple_of(8) || at.registers.sp().is_some_and(|sp| frame < sp) {
            return Err(broken("rbp is no frame pointer here"));
        }
        let above = frame.checked_add(8).ok_or_else(|| broken("rbp is no frame pointer here"))?;
        let mut caller = Registers::unknown(Machine::X64);
        caller.restore(x64::RBP, memory.read_u64(frame)?, frame);
        let pc = memory.read_u64(above)?;
        caller.restore(x64::RIP, pc, above);
        caller.set(x64::RSP, above.wrapping_add(8));
        Ok(Next::Caller(Cursor { address: CodeAddress::Return(pc), registers: caller }, Trust::Runtime))
    };
    found().unwrap_or_else(Next::Lost)
}

/// The Wasm frames at `at`, the innermost function first.
pub fn describe(runtime: &Wasmtime, code: &Code, at: &Cursor, memory: &dyn Memory) -> Vec<GuestFrame> {
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
        base.name = Some(("code that is not here (wasmtime)".into(), NameSource::CodeImage));
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
        base.name = Some((what.into(), NameSource::CodeImage));
        return vec![base];
    };
    let FunctionKind::Wasm { module, function: index, .. } = &function.kind else {
        base.name = Some((trampoline_name(code, &function), NameSource::Symbol));
        return vec![base];
    };
    base.kind = GuestKind::Wasm;
    let solved = runtime.solved(memory);
    let key = crate::runtime::wasmtime::key(at);
    base.instance = key.and_then(|key| solved.instance(key));
    let here = Here { runtime, code, at, memory, offset };
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
                inner.notes.push(format!("a function that was inlined, {names}: it cannot be told which"));
            }
            inner
                .notes
                .push("frames may be missing between this inlined function and the frame below, its caller".into());
            base.may_miss_inlined = true;
            let mut frames = vec![inner, base];
            here.sources(&mut frames);
            return frames;
        }
        here.position(&mut base, *module, u64::from(place));
    } else if !code.has_places() {
        base.notes.push(NO_POSITIONS.into());
    }
    // Inlined code has no position in the address map. Neither has other code that the compiler made or moved, except
    // calls.
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
    runtime: &'a Wasmtime,
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
            return Err(nothing(Why::BetweenFrames));
        }
        Ok(recorded)
    }

    /// Whether the code here may belong to functions that were inlined, where neither the frame table nor the address
    /// map says so.
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
            let descriptor =
                table.and_then(|t| t.descriptor(at.program.descriptor).map_err(|e| Why::Other(e.to_string())));
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
                Ok(_) => {
                    frame.locals =
                        Err(Why::other("what the frame table records for this instruction belongs to no Wasm function"))
                }
                Err(why) => (frame.locals, frame.stack) = (Err(why.clone()), Err(why)),
            }
            out.push(frame);
        }
        out
    }

    fn values(&self, frame: &mut GuestFrame, d: &FrameDescriptor, at: &FrameAt, exact: bool) {
        if !at.filled {
            let why = Why::NotStoredYet;
            (frame.locals, frame.stack) = (Err(why.clone()), Err(why));
            return;
        }
        let Some(fp) = self.frame_pointer() else {
            let why = Why::RegisterUnknown(x64::RBP);
            (frame.locals, frame.stack) = (Err(why.clone()), Err(why));
            return;
        };
        frame.instance = match d.vmctx(fp, self.memory) {
            Ok(vmctx) if is_vmctx(vmctx, self.memory) => Some(vmctx),
            // A slot that does not begin with an instance is not what it is taken for.
            _ => {
                let why = Why::other("the frame does not hold an instance where the compiler stores it");
                (frame.locals, frame.stack) = (Err(why.clone()), Err(why));
                return;
            }
        };
        let value = |slot: &SlotValue| self.value(d, slot, fp);
        frame.locals = Ok(d.locals.iter().map(value).collect());
        frame.stack = match (exact, d.stack(at.program.shape)) {
            (true, Some(slots)) => Ok(slots.iter().map(value).collect()),
            (true, None) => Err(Why::other("the operand stack that is recorded here is broken")),
            (false, _) => Err(Why::BetweenOperators),
        };
        if !exact {
            frame.notes.push(
                "the frame is between two operators: its locals are as they were recorded before this instruction"
                    .into(),
            );
        }
    }

    fn value(&self, d: &FrameDescriptor, slot: &SlotValue, fp: u64) -> Value {
        let address = slot.address(d, fp);
        let ty = Some(val_type(slot.ty));
        let slot = match slot.read(d, fp, self.memory) {
            Ok(bits) => {
                let offset = address.wrapping_sub(fp).cast_signed();
                Slot::Known { bits, place: Place::Memory { base: x64::RBP, offset, address } }
            }
            Err(MemoryError::Unmapped { .. }) => Slot::Unknown(Why::Unmapped { address }),
            Err(e) => Slot::Unknown(Why::Memory(e)),
        };
        Value { ty, slot }
    }

    /// Whether the frame is being taken down, so that what lies in it may be overwritten at any moment.
    fn in_epilogue(&self) -> bool {
        let CodeAddress::Exact(pc) = self.at.address else { return false };
        let mut around = [0; 2 * EPILOGUE.len() - 1];
        let before = pc.wrapping_sub(EPILOGUE.len() as u64 - 1);
        self.memory.read(before, &mut around).is_ok() && around.windows(EPILOGUE.len()).any(|w| w == EPILOGUE)
    }

    /// rbp, where it is the frame pointer of this frame.
    fn frame_pointer(&self) -> Option<u64> {
        match self.runtime.facts(self.code, self.at.address, self.memory) {
            Some(facts) if !facts.state.has_frame() => return None,
            None if edge(self.code, self.at, self.memory).is_some() => return None,
            _ => {}
        }
        let fp = self.at.registers.get(x64::RBP)?;
        let below = self.at.registers.sp().is_none_or(|sp| sp <= fp);
        (fp.is_multiple_of(8) && below).then_some(fp)
    }

    /// Adds source lines, variables and functions that the source's compiler inlined, where the image has debug
    /// information. A Wasm function that is several frames already keeps those frames: it is not known which of the
    /// source's functions belong to which frame.
    fn sources(&self, frames: &mut Vec<GuestFrame>) {
        let Some(dwarf) = &self.code.dwarf else { return };
        let [frame] = frames.as_mut_slice() else { return };
        let cfa = self.frame_pointer().and_then(|fp| fp.checked_add(16));
        // Descriptions of variables hold inside of the frame. At its edges the registers do not have the described
        // values any more, or not yet.
        let unsettled = cfa.is_none() || self.in_epilogue();
        let nothing = Registers::unknown(Machine::X64);
        let registers = if unsettled { &nothing } else { &self.at.registers };
        if frame.instance.is_none() {
            let found = dwarf.vmctx(self.offset, registers, cfa, self.memory);
            frame.instance = found.filter(|v| is_vmctx(*v, self.memory));
        }
        let found = dwarf.frames(self.offset);
        // For functions without sources of their own the runtime writes a description, whose variables are the Wasm
        // locals.
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
                one.name = source.function.map(|name| (name, NameSource::Dwarf));
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

    /// Sets function, module and name of `frame`, which runs `function` inside of the piece of code `piece`. A
    /// function has only one piece of code: if `piece` is that one and has no name, no other piece is asked.
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
        frame.params = self.code.params(module as usize, function).and_then(|n| u32::try_from(n).ok());
        frame.module = self.code.first + (module as usize).min(self.code.modules - 1);
    }

    fn position(&self, frame: &mut GuestFrame, module: u32, place: u64) {
        frame.position = Position::Offset(place);
        let mut operator = OperatorPlace { offset: place, text: None, file: None, line: None };
        // In a component the position counts from the component's start.
        if let Some(Some(wasm)) = self.code.wasm.get(module as usize)
            && let Some(Some(shift)) = self.code.wasm_shift.get(module as usize)
            && let Some(inner) = place.checked_sub(*shift)
            && let Some(index) = operator_index(wasm, frame.local_function, inner)
            && let Some(found) = frame.local_function.and_then(|f| wasm.operator(f, index))
        {
            operator.text = Some(found.text);
            if let Some(source) = wasm.source(inner).into_iter().next() {
                (operator.file, operator.line) = (source.file, source.line);
            }
        }
        frame.operator = Some(operator);
    }
}

/// The names, joined by "or". At most `MAX_NAMED_OWNERS` are written out.
fn alternatives<T>(of: &[T], name: impl Fn(&T) -> String) -> String {
    let mut names: Vec<String> = of.iter().take(MAX_NAMED_OWNERS).map(name).collect();
    if of.len() > MAX_NAMED_OWNERS {
        names.push(format!("one of {} others", of.len() - MAX_NAMED_OWNERS));
    }
    names.join(" or ")
}

/// Number of the operator at an offset in the Wasm file, in the function `local` (imports not counted).
pub fn operator_index(wasm: &WasmModule, local: Option<u32>, place: u64) -> Option<u64> {
    wasm.operators(local?)?.binary_search(&place).ok().map(|i| i as u64)
}

/// The report's type of a recorded value.
pub fn val_type(ty: FrameValType) -> ValType {
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
    use crate::runtime::wasmtime::image::Image;
    use crate::runtime::wasmtime::testing::fixture;
    use crate::unwind::testing::{Pieces, cursor};

    /// Of a function that is too large to be followed the ends are recognised by their bytes, and only the beginning
    /// is followed.
    #[test]
    fn the_ends_of_a_function_that_cannot_be_followed_are_known_by_their_bytes() {
        const BASE: u64 = 0x7f00_0000_0000;
        let (native, sp) = (0x5555_0000_1000, 0x7ffd_0000_0100);
        for name in ["36-default", "48-default"] {
            let memory = Pieces::default().bytes(BASE, &fixture(name));
            let mut runtime = Wasmtime::default();
            runtime.add(Code::load(Image::read(&memory, BASE).unwrap(), None, &memory));
            let code = &runtime.codes[0];
            let text = code.image.text();
            let mut asked = 0;
            for function in code.functions.iter() {
                let start = text.start + u64::from(function.start);
                runtime.flows.borrow_mut().insert(start, None);
                let bytes = memory.read_vec(start, function.len as usize).unwrap();
                // At these addresses rbp is the caller's frame pointer. It points to words further up, where the
                // chain of frame pointers goes on.
                let words = [native, 0, sp + 0x40, 0, 0, 0, 0, 0, sp + 0x80, native + 0x100];
                let memory = Pieces(memory.0.clone()).words(sp, &words);
                let ended = bytes.windows(EPILOGUE.len()).enumerate().filter(|(_, w)| *w == EPILOGUE);
                for pc in ended.map(|(at, _)| start + at as u64 + 4).chain([start]) {
                    let at = cursor(pc, &[(x64::RSP, sp), (x64::RBP, sp + 0x40)]);
                    let Next::Caller(caller, _) = step(&runtime, code, &at, &memory) else { panic!("{name} {pc:#x}") };
                    assert_eq!(caller.address, CodeAddress::Return(native), "{name} {pc:#x}");
                    asked += 1;
                }
                // Inside of the function, the table and the frame pointer agree.
                let body = start + 4;
                let at = cursor(body, &[(x64::RSP, sp + 0x40), (x64::RBP, sp + 0x40)]);
                let Next::Caller(caller, trust) = step(&runtime, code, &at, &memory) else {
                    panic!("{name} {body:#x}")
                };
                assert_eq!((caller.address.raw(), trust == Trust::FramePointer), (native + 0x100, false), "{name}");
            }
            assert!(asked > 20, "{name}: {asked}");
        }
    }

    #[test]
    fn what_leaves_a_function_is_told_by_its_instructions() {
        // ret; ret 16; jmp; jmp rdx; mov rcx, [rsp]; mov [rsp + 0x20], rcx; add rsp, 0x20; jmp rdx
        assert_eq!(leaves(&[0xc3, 0x90]), Some(1));
        assert_eq!(leaves(&[0xc2, 0x10, 0]), Some(3));
        assert_eq!(leaves(&[0xe9, 0, 0, 0, 0]), Some(5));
        assert_eq!(leaves(&[0xff, 0xe2]), Some(2));
        let moved = [0x48, 0x8b, 0x0c, 0x24, 0x48, 0x89, 0x4c, 0x24, 0x20, 0x48, 0x83, 0xc4, 0x20, 0xff, 0xe2];
        assert_eq!(leaves(&moved), Some(15));
        assert_eq!(leaves(&moved[..13]), None);
        assert_eq!(leaves(&[0x90, 0xc3]), None);
    }

    #[test]
    fn so_many_alternatives_are_named() {
        let said = |count: usize| alternatives(&vec![(); count], |()| "f".into());
        assert_eq!(said(2), "f or f");
        assert_eq!(said(MAX_NAMED_OWNERS).matches('f').count(), MAX_NAMED_OWNERS);
        assert_eq!(said(MAX_NAMED_OWNERS + 3), said(MAX_NAMED_OWNERS) + " or one of 3 others");
    }
}
