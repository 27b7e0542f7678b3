//! Unwinds with call frame information: `.eh_frame` (searched through `.eh_frame_hdr` where that is usable) and
//! `.debug_frame`.
//!
//! The register rules of a table are applied to every register of the machine, because whatever called the native code
//! may keep its values in any callee-saved register (facts: locals 0-3 of a singlepass function).

use super::frame_pointer::from_code;
use super::{Cursor, FrameChange, Next, Trust, UnwindError, Unwinder};
use crate::arch::{CodeAddress, Machine, Reg, Registers, Slot};
use crate::limits;
use crate::process::objects::{LoadedObject, Objects};
use crate::process::unpack::section_bytes;
use crate::process::{Memory, MemoryError};
use gimli::{
    BaseAddresses, CfaRule, DebugFrame, EhFrame, Encoding, EndianSlice, Evaluation, EvaluationResult, LittleEndian,
    Location, RegisterRule, UnwindContext, UnwindExpression, UnwindSection, Value,
};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSection};
use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Unwinds code that has call frame information.
pub struct CfiUnwinder<'a> {
    objects: Vec<FileTables<'a>>,
    plans: RefCell<HashMap<CodeAddress, Plan>>,
    context: RefCell<UnwindContext<usize>>,
    prologues: bool,
}

struct FileTables<'a> {
    range: (u64, u64),
    bias: u64,
    /// The file, whose tables are parsed when they are first asked for. `None`: `tables` is filled from the start.
    object: Option<&'a LoadedObject>,
    name: String,
    tables: OnceCell<Vec<Table<'a>>>,
}

/// What to do at an address. Plans are kept per address, so that deep recursion parses nothing twice.
#[derive(Clone)]
enum Plan {
    Row(Rc<Row>),
    /// The address is in the code of `__restore_rt`, and no CFI marks the code as a signal frame.
    SignalReturn,
    Broken(String),
    None,
}

/// One row of an unwind table.
struct Row {
    source: usize,
    table: usize,
    /// The svma at which the function begins.
    start: u64,
    cfa: CfaRule<usize>,
    rules: Vec<(Reg, RegisterRule<usize>)>,
    return_address: Reg,
    encoding: Encoding,
    signal: bool,
    /// Whether the code is the one that the kernel's signal frame returns to, so that the frame's layout is known.
    sigreturn: bool,
}

impl<'a> CfiUnwinder<'a> {
    /// An unwinder over `objects`. A table is parsed only when it is first asked for.
    pub fn new(objects: &'a Objects) -> CfiUnwinder<'a> {
        let source = |object: &'a LoadedObject| FileTables {
            range: object.range,
            bias: object.bias,
            object: Some(object),
            name: object.name(),
            tables: OnceCell::new(),
        };
        CfiUnwinder::of(objects.iter().map(source).collect())
    }

    /// An unwinder over the code at `code` (first address, one past the last) with the `.eh_frame` section `bytes`
    /// that is loaded at `address`. It serves a code image that no loader knows.
    pub fn of_eh_frame(name: String, code: (u64, u64), bytes: Arc<Vec<u8>>, address: u64) -> CfiUnwinder<'static> {
        let table = Table {
            bytes: TableBytes::Shared(bytes),
            kind: Kind::EhFrame,
            bases: BaseAddresses::default().set_eh_frame(address),
            search: None,
            index: OnceCell::new(),
        };
        let tables = OnceCell::from(vec![table]);
        CfiUnwinder::of(vec![FileTables { range: code, bias: 0, object: None, name, tables }])
    }

    fn of(objects: Vec<FileTables<'a>>) -> CfiUnwinder<'a> {
        CfiUnwinder {
            objects,
            plans: RefCell::default(),
            context: RefCell::new(UnwindContext::new()),
            prologues: false,
        }
    }

    /// With `yes`, a frame pointer that a table needs but that is not known is computed from the function's own code.
    /// Frames found with such a frame pointer count as found by frame pointer.
    pub fn reading_prologues(self, yes: bool) -> CfiUnwinder<'a> {
        CfiUnwinder { prologues: yes, ..self }
    }

    /// Does the same as [`CfiUnwinder::apply`], with a frame pointer that is computed from the function's code.
    fn apply_with_prologue(&self, row: &Row, at: &Cursor, memory: &dyn Memory) -> Option<Result<Next, Failure>> {
        let start = row.start.wrapping_add(self.objects.get(row.source)?.bias);
        let pointer = from_code(start, at.address.raw(), &at.registers, memory)?;
        let mut at = at.clone();
        at.registers.set(at.registers.machine().description().fp, pointer);
        Some(self.apply(row, &at, memory).map(|next| match next {
            Next::Caller(caller, Trust::Cfi) => Next::Caller(caller, Trust::FramePointer),
            other => other,
        }))
    }

    /// How callers are found from each place of the function at `start`, as the table of [`CfiUnwinder::of_eh_frame`]
    /// says it: pairs of a byte offset from `start` and a change, in ascending order. `None`: the table has no entry
    /// for this function, or uses rules that cannot be expressed as changes.
    pub fn changes(&self, machine: Machine, start: u64) -> Option<Vec<(u32, FrameChange)>> {
        let source = self.objects.first()?;
        source.tables.get()?.first()?.changes(machine, start, &mut self.context.borrow_mut())
    }

    /// Whether the frame at `at` is the kernel's signal frame, which a signal handler returns to and whose caller was
    /// interrupted. That a table marks code as a signal frame is no sign of a signal: corosensei marks the place
    /// where a coroutine begins, so that the caller is looked up at exactly its address, although no signal was
    /// there.
    pub fn is_signal_frame(&self, at: &Cursor, memory: &dyn Memory) -> bool {
        is_sigreturn(at.registers.machine(), at.address.raw(), memory)
    }

    /// Start and end of the last function in the tables that begins at or before `address`. The end may be before
    /// `address`.
    pub fn function_before(&self, address: u64) -> Option<(u64, u64)> {
        let source = self.objects.iter().find(|s| s.range.0 <= address && address < s.range.1)?;
        let svma = address.wrapping_sub(source.bias);
        let tables = source.tables.get_or_init(|| source.object.map(tables).unwrap_or_default());
        let (start, end) = tables.iter().filter_map(|t| t.function_before(svma)).max()?;
        Some((start.wrapping_add(source.bias), end.wrapping_add(source.bias)))
    }

    fn plan(&self, machine: Machine, at: CodeAddress, memory: &dyn Memory) -> Plan {
        if let Some(plan) = self.plans.borrow().get(&at) {
            return plan.clone();
        }
        let plan = self.make_plan(machine, at, memory);
        let mut plans = self.plans.borrow_mut();
        if plans.len() >= limits::MAX_CACHED_ROWS {
            plans.clear();
        }
        plans.insert(at, plan.clone());
        plan
    }

    fn make_plan(&self, machine: Machine, at: CodeAddress, memory: &dyn Memory) -> Plan {
        let sigreturn = is_sigreturn(machine, at.raw(), memory);
        let covering = |s: &FileTables<'a>| s.range.0 <= at.lookup() && at.lookup() < s.range.1;
        let found = match self.objects.iter().position(covering) {
            Some(source) => self.row(machine, source, at.lookup(), sigreturn),
            None => Ok(None),
        };
        match found {
            // A handler returns to the first byte of this code, so the lookup address is the byte before it. glibc's
            // table begins at that byte; with other libraries the lookup finds the function before, whose row has no
            // signal mark.
            Ok(Some(row)) if sigreturn && !row.signal => Plan::SignalReturn,
            Ok(Some(row)) => Plan::Row(Rc::new(row)),
            _ if sigreturn => Plan::SignalReturn,
            Ok(None) => Plan::None,
            Err(why) => Plan::Broken(why),
        }
    }

    fn row(&self, machine: Machine, source: usize, pc: u64, sigreturn: bool) -> Result<Option<Row>, String> {
        let Some(s) = self.objects.get(source) else { return Ok(None) };
        let svma = pc.wrapping_sub(s.bias);
        let mut problem = None;
        let all = s.tables.get_or_init(|| s.object.map(tables).unwrap_or_default());
        for (index, table) in all.iter().enumerate() {
            match table.row(machine, svma, &mut self.context.borrow_mut()) {
                Ok(Some(mut row)) => {
                    (row.source, row.table, row.sigreturn) = (source, index, sigreturn);
                    return Ok(Some(row));
                }
                Ok(None) => {}
                Err(why) => problem = problem.or(Some(why)),
            }
        }
        problem.map_or(Ok(None), Err)
    }

    fn apply(&self, row: &Row, at: &Cursor, memory: &dyn Memory) -> Result<Next, Failure> {
        let source = self.objects.get(row.source);
        let frame = FrameContext {
            at,
            memory,
            bytes: source.and_then(|s| s.tables.get()?.get(row.table)).map_or(&[], |t| &t.bytes),
            encoding: row.encoding,
            bias: source.map_or(0, |s| s.bias),
        };
        let cfa = match &row.cfa {
            CfaRule::RegisterAndOffset { register, offset } => {
                frame.register(frame.dwarf(*register)?)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(e) => frame.evaluate(e, None)?,
        };
        let mut caller = at.registers.clone();
        if row.signal {
            caller = Registers::unknown(caller.machine());
        } else {
            caller.forget_caller_saved();
        }
        let machine = caller.machine().description();
        caller.set(machine.sp, cfa);
        caller.forget(machine.pc);
        for (reg, rule) in &row.rules {
            if *reg == row.return_address {
                continue;
            }
            match frame.apply(rule, *reg, cfa, &mut caller) {
                Ok(()) => {}
                // The caller's frame is worth showing without this register.
                Err(_) if *reg != machine.sp => caller.forget(*reg),
                Err(e) => return Err(e),
            }
        }
        let rule = row.rules.iter().find(|(reg, _)| *reg == row.return_address).map(|(_, rule)| rule);
        match rule {
            Some(RegisterRule::Undefined) => return Ok(Next::Bottom),
            Some(rule) => {
                let mut found = Registers::unknown(caller.machine());
                frame.apply(rule, row.return_address, cfa, &mut found)?;
                match (found.get(row.return_address), found.saved_at(row.return_address)) {
                    (Some(pc), Some(slot)) => caller.restore(machine.pc, pc, slot),
                    (Some(pc), None) => caller.set(machine.pc, pc),
                    (None, _) => return Err(Failure::Unknown(row.return_address)),
                }
            }
            None => return Err(Failure::Broken("no rule for the return address".into())),
        }
        let Some(pc) = caller.pc() else { return Err(Failure::Unknown(machine.pc)) };
        if pc == 0 {
            return Ok(Next::Bottom);
        }
        if !row.signal {
            return Ok(Next::Caller(Cursor { address: CodeAddress::Return(pc), registers: caller }, Trust::Cfi));
        }
        if row.sigreturn
            && let Ok(context) = frame.register(machine.sp)
        {
            restore_vectors(context, memory, &mut caller);
        }
        Ok(Next::Caller(Cursor { address: CodeAddress::Exact(pc), registers: caller }, Trust::Cfi))
    }
}

impl Unwinder for CfiUnwinder<'_> {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        let machine = at.registers.machine();
        let fp = machine.description().fp;
        let result = match self.plan(machine, at.address, memory) {
            Plan::Row(row) => match self.apply(&row, at, memory) {
                Err(Failure::Unknown(reg)) if reg == fp && self.prologues => {
                    self.apply_with_prologue(&row, at, memory).unwrap_or(Err(Failure::Unknown(fp)))
                }
                result => result,
            },
            Plan::SignalReturn => return_from_signal(at, memory),
            Plan::Broken(why) => Err(Failure::Broken(why)),
            Plan::None => return None,
        };
        Some(result.unwrap_or_else(|failure| {
            Next::Lost(match failure {
                Failure::Unknown(register) => UnwindError::UnknownRegister { register: register.name() },
                Failure::Memory(e) => UnwindError::Memory(e),
                Failure::Broken(why) => {
                    let address = at.address.raw();
                    let covers =
                        |s: &&FileTables<'_>| s.range.0 <= at.address.lookup() && at.address.lookup() < s.range.1;
                    let object = self.objects.iter().find(covers).map(|s| s.name.clone()).unwrap_or_default();
                    UnwindError::BadCfi { address, object, why }
                }
            })
        }))
    }
}

/// Why a row could not be applied.
enum Failure {
    Unknown(Reg),
    Memory(MemoryError),
    Broken(String),
}

impl From<gimli::Error> for Failure {
    fn from(e: gimli::Error) -> Failure {
        Failure::Broken(e.to_string())
    }
}

impl From<MemoryError> for Failure {
    fn from(e: MemoryError) -> Failure {
        Failure::Memory(e)
    }
}

/// The state that the rules and expressions of one frame are evaluated against.
struct FrameContext<'f> {
    at: &'f Cursor,
    memory: &'f dyn Memory,
    bytes: &'f [u8],
    encoding: Encoding,
    bias: u64,
}

impl FrameContext<'_> {
    fn dwarf(&self, register: gimli::Register) -> Result<Reg, Failure> {
        let reg = self.at.registers.machine().from_dwarf(register.0);
        reg.ok_or_else(|| Failure::Broken(format!("register {} is not known", register.0)))
    }

    fn register(&self, reg: Reg) -> Result<u64, Failure> {
        if reg == self.at.registers.machine().description().pc {
            return Ok(self.at.address.raw());
        }
        self.at.registers.get(reg).ok_or(Failure::Unknown(reg))
    }

    fn apply(&self, rule: &RegisterRule<usize>, reg: Reg, cfa: u64, caller: &mut Registers) -> Result<(), Failure> {
        let load = |caller: &mut Registers, address: u64| -> Result<(), Failure> {
            caller.restore(reg, self.memory.read_u64(address)?, address);
            Ok(())
        };
        match rule {
            RegisterRule::Undefined | RegisterRule::Architectural => caller.forget(reg),
            RegisterRule::SameValue => self.copy(reg, reg, caller)?,
            RegisterRule::Register(other) => self.copy(self.dwarf(*other)?, reg, caller)?,
            RegisterRule::Offset(offset) => load(caller, cfa.wrapping_add_signed(*offset))?,
            RegisterRule::ValOffset(offset) => caller.set(reg, cfa.wrapping_add_signed(*offset)),
            RegisterRule::Expression(e) => load(caller, self.evaluate(e, Some(cfa))?)?,
            RegisterRule::ValExpression(e) => caller.set(reg, self.evaluate(e, Some(cfa))?),
            RegisterRule::Constant(value) => caller.set(reg, *value),
        }
        Ok(())
    }

    /// Gives the register `to` of the caller the value of `from` in this frame, together with the place that the
    /// value was read from.
    fn copy(&self, from: Reg, to: Reg, caller: &mut Registers) -> Result<(), Failure> {
        let value = self.register(from)?;
        match self.at.registers.saved_at(from) {
            Some(slot) => caller.restore(to, value, slot),
            None => caller.set(to, value),
        }
        Ok(())
    }

    fn evaluate(&self, expression: &UnwindExpression<usize>, cfa: Option<u64>) -> Result<u64, Failure> {
        let end = expression.offset.saturating_add(expression.length);
        let bytes = self.bytes.get(expression.offset..end).unwrap_or(&[]);
        let readable = register_as_value(bytes);
        let mut evaluation = Evaluation::new(EndianSlice::new(&readable, LittleEndian), self.encoding);
        evaluation.set_max_iterations(limits::MAX_EXPRESSION_STEPS);
        if let Some(cfa) = cfa {
            evaluation.set_initial_value(cfa);
        }
        let mut state = evaluation.evaluate()?;
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, size, space: None, base_type }
                    if base_type.0 == 0 && (1..=8).contains(&size) =>
                {
                    let mut word = [0; 8];
                    if let Some(buf) = word.get_mut(..usize::from(size)) {
                        self.memory.read(address, buf)?;
                    }
                    evaluation.resume_with_memory(Value::Generic(u64::from_le_bytes(word)))?
                }
                EvaluationResult::RequiresRegister { register, base_type } if base_type.0 == 0 => {
                    evaluation.resume_with_register(Value::Generic(self.register(self.dwarf(register)?)?))?
                }
                EvaluationResult::RequiresRelocatedAddress(svma) => {
                    evaluation.resume_with_relocated_address(svma.wrapping_add(self.bias))?
                }
                EvaluationResult::RequiresCallFrameCfa if cfa.is_some() => {
                    evaluation.resume_with_call_frame_cfa(cfa.unwrap_or_default())?
                }
                other => return Err(Failure::Broken(format!("an expression asks for {other:?}"))),
            };
        }
        match evaluation.as_result() {
            [piece] if piece.size_in_bits.is_none() => match piece.location {
                Location::Address { address } => Ok(address),
                Location::Value { value } => Ok(value.to_u64(u64::MAX)?),
                ref other => Err(Failure::Broken(format!("an expression gives {other:?}"))),
            },
            other => Err(Failure::Broken(format!("an expression gives {} pieces", other.len()))),
        }
    }
}

/// Turns a leading `DW_OP_regN` into `DW_OP_bregN 0`. `DW_OP_regN` names a location, which has no meaning at the
/// start of a frame expression. gdb and libgcc take it as the register's value, and wasmtime's fibers rely on that
/// (`DW_OP_reg7; DW_OP_deref; DW_OP_plus_uconst 16`).
fn register_as_value(expression: &[u8]) -> Cow<'_, [u8]> {
    const REG0: u8 = gimli::constants::DW_OP_reg0.0;
    const REG31: u8 = gimli::constants::DW_OP_reg31.0;
    const BREG0: u8 = gimli::constants::DW_OP_breg0.0;
    match expression {
        [first @ REG0..=REG31, rest @ ..] => {
            let mut with_offset = vec![first - REG0 + BREG0, 0];
            with_offset.extend_from_slice(rest);
            Cow::Owned(with_offset)
        }
        _ => Cow::Borrowed(expression),
    }
}

/// Whether the code at `pc` returns from a signal handler. `pc` is the first instruction of such code, or the system call
/// in it.
pub fn is_sigreturn(machine: Machine, pc: u64, memory: &dyn Memory) -> bool {
    let signal = &machine.description().kernel.signal;
    let longest = signal.longest_return();
    let before = longest - signal.system_call.len();
    let mut around = vec![0; before + longest];
    let there = memory.read_around(pc, before, &mut around);
    signal.returns.iter().any(|code| {
        let call = before - (code.len() - signal.system_call.len());
        [before, call]
            .iter()
            .any(|&at| at >= there.start && around.get(at..there.end.min(at + code.len())) == Some(code))
    })
}

/// The address at which the code that a signal interrupted goes on, and its stack pointer. `None` if `context` is not
/// the `struct ucontext` that the kernel leaves for a handler.
pub fn signal_context(machine: Machine, context: u64, memory: &dyn Memory) -> Option<(u64, u64)> {
    let machine = machine.description();
    let signal = &machine.kernel.signal;
    let word = |offset: u64| memory.read_u64(context.checked_add(offset)?).ok();
    let register = |reg| signal.registers.iter().find(|(r, _)| *r == reg).and_then(|(_, offset)| word(*offset));
    let (mark, is_marked) = signal.mark;
    is_marked(word(mark)?).then_some((register(machine.pc)?, register(machine.sp)?))
}

/// Steps from the kernel's signal frame to the interrupted code, without a table.
fn return_from_signal(at: &Cursor, memory: &dyn Memory) -> Result<Next, Failure> {
    let machine = at.registers.machine().description();
    let context = at.registers.sp().ok_or(Failure::Unknown(machine.sp))?;
    let mut caller = Registers::unknown(at.registers.machine());
    for &(reg, offset) in machine.kernel.signal.registers {
        let slot = context.wrapping_add(offset);
        caller.restore(reg, memory.read_u64(slot)?, slot);
    }
    restore_vectors(context, memory, &mut caller);
    let pc = caller.pc().ok_or(Failure::Unknown(machine.pc))?;
    Ok(Next::Caller(Cursor { address: CodeAddress::Exact(pc), registers: caller }, Trust::Recognised))
}

/// Restores the low halves of the vector registers as they were at the signal. The runtime's `fault.rs` hands them to
/// `read_stack` too.
fn restore_vectors(context: u64, memory: &dyn Memory, caller: &mut Registers) {
    let machine = caller.machine().description();
    let Ok(state) = memory.read_u64(context.wrapping_add(machine.kernel.signal.vectors)) else { return };
    if state == 0 {
        return;
    }
    for row in machine.registers {
        let Slot::Vector(offset) = row.slot else { continue };
        let slot = state.wrapping_add(offset as u64);
        if let Ok(value) = memory.read_u64(slot) {
            caller.restore(row.reg, value, slot);
        }
    }
}

/// The bytes of a table: a section of a file (unpacked if it was compressed), or bytes that are shared with other
/// users.
enum TableBytes<'a> {
    OfFile(Cow<'a, [u8]>),
    Shared(Arc<Vec<u8>>),
}

impl Deref for TableBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            TableBytes::OfFile(bytes) => bytes,
            TableBytes::Shared(bytes) => bytes,
        }
    }
}

/// One section of unwind tables. All addresses in this struct are svmas.
struct Table<'a> {
    bytes: TableBytes<'a>,
    kind: Kind,
    bases: BaseAddresses,
    search: Option<SearchTable<'a>>,
    index: OnceCell<Vec<Entry>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    EhFrame,
    DebugFrame,
}

/// The first address of a function, the address one past its last, and the offset of its entry in the section.
#[derive(Clone, Copy)]
struct Entry {
    start: u64,
    end: u64,
    offset: usize,
}

impl Table<'_> {
    fn row(&self, machine: Machine, svma: u64, context: &mut UnwindContext<usize>) -> Result<Option<Row>, String> {
        match self.kind {
            Kind::EhFrame => self.row_in(machine, &EhFrame::new(&self.bytes, LittleEndian), svma, context),
            Kind::DebugFrame => {
                let mut section = DebugFrame::new(&self.bytes, LittleEndian);
                section.set_address_size(8);
                self.row_in(machine, &section, svma, context)
            }
        }
    }

    fn row_in<'s, S>(
        &self,
        machine: Machine,
        section: &S,
        svma: u64,
        context: &mut UnwindContext<usize>,
    ) -> Result<Option<Row>, String>
    where
        S: UnwindSection<Slice<'s>>,
        S::Offset: gimli::UnwindOffset<usize>,
    {
        let searched = match &self.search {
            Some(table) => match table.find(svma) {
                Some((start, offset)) => section
                    .fde_from_offset(&self.bases, S::Offset::from(offset), S::cie_from_offset)
                    .ok()
                    .filter(|fde| fde.initial_address() == start),
                None => return Ok(None),
            },
            None => None,
        };
        let fde = match searched {
            Some(fde) if fde.contains(svma) => fde,
            // The address is between two functions: it is assembly without CFI.
            Some(_) => return Ok(None),
            // There is no search table, or it names a wrong entry: the section itself is the truth.
            None => {
                let index = self.index.get_or_init(|| self.build_index(section));
                let i = index.partition_point(|e| e.start <= svma);
                let Some(entry) = i.checked_sub(1).and_then(|i| index.get(i)).filter(|e| svma < e.end) else {
                    return Ok(None);
                };
                section
                    .fde_from_offset(&self.bases, S::Offset::from(entry.offset), S::cie_from_offset)
                    .map_err(|e| e.to_string())?
            }
        };
        let row = match fde.unwind_info_for_address(section, &self.bases, context, svma) {
            Ok(row) => row,
            Err(gimli::Error::NoUnwindInfoForAddress) => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        let rules = row.registers().filter_map(|(n, rule)| Some((machine.from_dwarf(n.0)?, rule.clone()))).collect();
        let return_address = fde.cie().return_address_register();
        Ok(Some(Row {
            source: 0,
            table: 0,
            start: fde.initial_address(),
            cfa: row.cfa().clone(),
            rules,
            return_address: machine
                .from_dwarf(return_address.0)
                .ok_or_else(|| format!("the return address is in register {}", return_address.0))?,
            encoding: fde.cie().encoding(),
            signal: fde.is_signal_trampoline(),
            sigreturn: false,
        }))
    }

    /// See [`CfiUnwinder::function_before`].
    fn function_before(&self, svma: u64) -> Option<(u64, u64)> {
        match self.kind {
            Kind::EhFrame => self.function_in(&EhFrame::new(&self.bytes, LittleEndian), svma),
            Kind::DebugFrame => {
                let mut section = DebugFrame::new(&self.bytes, LittleEndian);
                section.set_address_size(8);
                self.function_in(&section, svma)
            }
        }
    }

    fn function_in<'s, S>(&self, section: &S, svma: u64) -> Option<(u64, u64)>
    where
        S: UnwindSection<Slice<'s>>,
        S::Offset: gimli::UnwindOffset<usize>,
    {
        if let Some((start, offset)) = self.search.as_ref().and_then(|table| table.find(svma)) {
            let fde = section.fde_from_offset(&self.bases, S::Offset::from(offset), S::cie_from_offset).ok();
            if let Some(fde) = fde.filter(|fde| fde.initial_address() == start) {
                return Some((start, fde.end_address()));
            }
        }
        let index = self.index.get_or_init(|| self.build_index(section));
        let i = index.partition_point(|e| e.start <= svma).checked_sub(1)?;
        index.get(i).map(|e| (e.start, e.end))
    }

    /// See [`CfiUnwinder::changes`].
    fn changes(
        &self,
        machine: Machine,
        start: u64,
        context: &mut UnwindContext<usize>,
    ) -> Option<Vec<(u32, FrameChange)>> {
        let pc = machine.description().pc;
        let section = EhFrame::new(&self.bytes, LittleEndian);
        let index = self.index.get_or_init(|| self.build_index(&section));
        let at = index.binary_search_by_key(&start, |e| e.start).ok()?;
        let fde = section.fde_from_offset(&self.bases, index.get(at)?.offset.into(), EhFrame::cie_from_offset).ok()?;
        let mut rows = fde.rows(&section, &self.bases, context).ok()?;
        let mut out = Vec::new();
        let mut before: (Option<FrameChange>, Vec<FrameChange>) = (None, Vec::new());
        while let Some(row) = rows.next_row().ok()? {
            let offset = u32::try_from(row.start_address().checked_sub(start)?).ok()?;
            let cfa = match *row.cfa() {
                CfaRule::RegisterAndOffset { register, offset } => {
                    FrameChange::Cfa(machine.from_dwarf(register.0)?, i32::try_from(offset).ok()?)
                }
                CfaRule::Expression(_) => return None,
            };
            let mut saved = Vec::new();
            for (register, rule) in row.registers() {
                let reg = machine.from_dwarf(register.0)?;
                match *rule {
                    // The usual place of the return address, of which no change has to tell.
                    RegisterRule::Offset(-8) if reg == pc => {}
                    RegisterRule::Offset(offset) => saved.push(FrameChange::Saved(reg, i32::try_from(offset).ok()?)),
                    RegisterRule::SameValue => saved.push(FrameChange::Same(reg)),
                    _ => saved.push(FrameChange::Undefined(reg)),
                }
            }
            let register = |change: &FrameChange| match *change {
                FrameChange::Saved(reg, _) | FrameChange::Same(reg) | FrameChange::Undefined(reg) => Some(reg),
                FrameChange::Cfa(..) | FrameChange::CfaDeref(..) => None,
            };
            out.extend((before.0 != Some(cfa)).then_some((offset, cfa)));
            out.extend(saved.iter().filter(|c| !before.1.contains(c)).map(|c| (offset, *c)));
            // Where a rule has ended, the register is as at the function's entry again.
            let gone = before.1.iter().filter_map(register).filter(|r| !saved.iter().any(|c| register(c) == Some(*r)));
            let at_entry = |reg| if reg == pc { FrameChange::Saved(reg, -8) } else { FrameChange::Same(reg) };
            out.extend(gone.map(|reg| (offset, at_entry(reg))));
            before = (Some(cfa), saved);
            if out.len() > limits::MAX_FRAME_CHANGES {
                return None;
            }
        }
        Some(out)
    }

    fn build_index<'s, S>(&self, section: &S) -> Vec<Entry>
    where
        S: UnwindSection<Slice<'s>>,
        S::Offset: gimli::UnwindOffset<usize>,
    {
        let mut index = Vec::new();
        let mut cies = HashMap::new();
        let mut entries = section.entries(&self.bases);
        // The position of whatever follows an unreadable entry is not known, so the loop ends there.
        while let Ok(Some(entry)) = entries.next() {
            let gimli::CieOrFde::Fde(partial) = entry else { continue };
            let parsed = partial.parse(|section, bases, offset| {
                let key: usize = gimli::UnwindOffset::into(offset);
                let cie = cies.entry(key).or_insert_with(|| section.cie_from_offset(bases, offset));
                cie.clone()
            });
            let Ok(fde) = parsed else { continue };
            // Linkers leave 0 as the start address in the entries of functions that they dropped.
            if fde.initial_address() != 0 && fde.initial_address() < fde.end_address() {
                index.push(Entry { start: fde.initial_address(), end: fde.end_address(), offset: fde.offset() });
            }
            if index.len() >= limits::MAX_UNWIND_ENTRIES {
                break;
            }
        }
        index.sort_by_key(|e| e.start);
        index
    }
}

/// The binary search table of `.eh_frame_hdr`, in the only form that linkers write: pairs of 32-bit offsets from the
/// address of the header itself.
struct SearchTable<'a> {
    pairs: &'a [[u8; 8]],
    header: u64,
    eh_frame: u64,
}

impl<'a> SearchTable<'a> {
    /// Reads version 1 with `pcrel|sdata4` pointer, `udata4` count and `datarel|sdata4` table. In any other form
    /// there is no table.
    fn parse(header: &'a [u8], svma: u64, eh_frame: Option<u64>) -> Option<SearchTable<'a>> {
        let (&[1, 0x1b, 0x03, 0x3b], rest) = header.split_first_chunk()? else { return None };
        let (pointer, rest) = rest.split_first_chunk::<4>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let pointed = svma.wrapping_add(4).wrapping_add_signed(i32::from_le_bytes(*pointer).into());
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let pairs = rest.as_chunks::<8>().0.get(..count)?;
        // If a file was edited after it was linked, its table may be older than its sections and point elsewhere.
        (eh_frame.is_none_or(|known| known == pointed) && !pairs.is_empty()).then_some(SearchTable {
            pairs,
            header: svma,
            eh_frame: pointed,
        })
    }

    fn pair(&self, pair: &[u8; 8]) -> (u64, u64) {
        let [a, b, c, d, e, f, g, h] = *pair;
        let at = |word: [u8; 4]| self.header.wrapping_add_signed(i32::from_le_bytes(word).into());
        (at([a, b, c, d]), at([e, f, g, h]))
    }

    /// The last function that begins at or before `svma`: its start as an svma, and the offset of its entry in
    /// `.eh_frame`.
    fn find(&self, svma: u64) -> Option<(u64, usize)> {
        let i = self.pairs.partition_point(|p| self.pair(p).0 <= svma);
        let (start, entry) = self.pair(self.pairs.get(i.checked_sub(1)?)?);
        // A pointer to before the section becomes an offset far behind the section's end.
        Some((start, usize::try_from(entry.wrapping_sub(self.eh_frame)).ok()?))
    }
}

fn tables(object: &LoadedObject) -> Vec<Table<'_>> {
    let mut tables = Vec::new();
    if let Some(data) = &object.data
        && let Some(file) = parse_x64(data)
    {
        let mut bases = BaseAddresses::default();
        let section = |name| file.section_by_name(name);
        if let Some(text) = section(".text") {
            bases = bases.set_text(text.address());
        }
        if let Some(got) = section(".got") {
            bases = bases.set_got(got.address());
        }
        let header = section(".eh_frame_hdr").and_then(|s| Some((s.address(), s.data().ok()?)));
        let header = header.filter(|(_, bytes)| !bytes.is_empty()).or_else(|| header_segment(&file));
        let frames = section(".eh_frame").and_then(|s| Some((s.address(), s.data().ok()?)));
        let frames = frames.filter(|(_, bytes)| !bytes.is_empty());
        let search = header.and_then(|(svma, bytes)| SearchTable::parse(bytes, svma, frames.map(|f| f.0)));
        // In a file without section headers the search table still tells where the entries begin.
        let frames =
            frames.or_else(|| search.as_ref().and_then(|s| Some((s.eh_frame, segment_tail(&file, s.eh_frame)?))));
        if let Some((svma, bytes)) = frames {
            if let Some((header, _)) = header {
                bases = bases.set_eh_frame_hdr(header);
            }
            let bases = bases.clone().set_eh_frame(svma);
            let kind = Kind::EhFrame;
            tables.push(Table {
                bytes: TableBytes::OfFile(Cow::Borrowed(bytes)),
                kind,
                bases,
                search,
                index: OnceCell::new(),
            });
        }
        tables.extend(debug_frame(&file, &bases));
    }
    if let Some((_, data)) = &object.debug
        && let Some(file) = parse_x64(data)
    {
        tables.extend(debug_frame(&file, &BaseAddresses::default()));
    }
    tables
}

type Elf<'a> = ElfFile64<'a, Endianness>;

fn parse_x64(data: &[u8]) -> Option<Elf<'_>> {
    let file = Elf::parse(data).ok()?;
    (file.architecture() == object::Architecture::X86_64 && file.is_little_endian()).then_some(file)
}

fn debug_frame<'a>(file: &Elf<'a>, bases: &BaseAddresses) -> Option<Table<'a>> {
    let bytes = section_bytes(&file.section_by_name(".debug_frame")?)?;
    (!bytes.is_empty()).then(|| Table {
        bytes: TableBytes::OfFile(bytes),
        kind: Kind::DebugFrame,
        bases: bases.clone(),
        search: None,
        index: OnceCell::new(),
    })
}

fn header_segment<'a>(file: &Elf<'a>) -> Option<(u64, &'a [u8])> {
    let endian = file.endian();
    let segment = file.elf_program_headers().iter().find(|p| p.p_type(endian) == object::elf::PT_GNU_EH_FRAME)?;
    Some((segment.p_vaddr(endian), segment.data(endian, file.data()).ok()?))
}

/// The bytes of the file that are loaded from `svma` to the end of its segment.
fn segment_tail<'a>(file: &Elf<'a>, svma: u64) -> Option<&'a [u8]> {
    let endian = file.endian();
    file.elf_program_headers().iter().filter(|p| p.p_type(endian) == object::elf::PT_LOAD).find_map(|p| {
        let skip = usize::try_from(svma.checked_sub(p.p_vaddr(endian))?).ok()?;
        p.data(endian, file.data()).ok()?.get(skip..).filter(|tail| !tail.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x64;
    use crate::unwind::testing::{Pieces, Section, cursor, eh_frame, elf, object};
    use gimli::write::{Address, CallFrameInstruction as Cfi, CommonInformationEntry, Expression, FrameTable};
    use gimli::{Format, X86_64};

    const BIAS: u64 = 0x7000_0000_0000;
    const FUNCTION: u64 = 0x1000;
    const PC: u64 = BIAS + FUNCTION + 4;
    const SP: u64 = 0x7fff_0000;
    const CFA: u64 = SP + 16;

    /// `.eh_frame` and `.debug_frame` of one function at [`FUNCTION`], with the usual CIE and these instructions.
    fn tables(signal: bool, instructions: Vec<Cfi>) -> (Vec<u8>, Vec<u8>) {
        let encoding = Encoding { format: Format::Dwarf32, version: 1, address_size: 8 };
        let mut cie = CommonInformationEntry::new(encoding, 1, -8, X86_64::RA);
        cie.signal_trampoline = signal;
        cie.add_instruction(Cfi::Cfa(X86_64::RSP, 8));
        cie.add_instruction(Cfi::Offset(X86_64::RA, -8));
        let mut table = FrameTable::default();
        let cie = table.add_cie(cie);
        let mut fde = gimli::write::FrameDescriptionEntry::new(Address::Constant(FUNCTION), 0x100);
        fde.add_instruction(0, Cfi::CfaOffset(16));
        for instruction in instructions {
            fde.add_instruction(0, instruction);
        }
        table.add_fde(cie, fde);
        let mut eh = gimli::write::EhFrame::from(gimli::write::EndianVec::new(LittleEndian));
        table.write_eh_frame(&mut eh).unwrap();
        let mut debug = gimli::write::DebugFrame::from(gimli::write::EndianVec::new(LittleEndian));
        table.write_debug_frame(&mut debug).unwrap();
        (eh.0.into_vec(), debug.0.into_vec())
    }

    fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
        elf(&[Section { name, flags: 2, address: 0x3000, bytes }])
    }

    fn objects(file: Vec<u8>) -> Objects {
        Objects::from_parts(vec![object("/lib/made.so", BIAS, (BIAS, BIAS + 0x10_0000), file)])
    }

    fn step(instructions: Vec<Cfi>, at: &Cursor, memory: &Pieces) -> Option<Next> {
        let objects = objects(file(".eh_frame", &tables(false, instructions).0));
        CfiUnwinder::new(&objects).step(at, memory)
    }

    fn caller(next: Option<Next>) -> Cursor {
        match next {
            Some(Next::Caller(cursor, Trust::Cfi)) => cursor,
            other => panic!("{other:?}"),
        }
    }

    fn at() -> Cursor {
        use x64 as r;
        cursor(PC, &[(r::RSP, SP), (r::RBX, 3), (r::RBP, 6), (r::R12, 12), (r::RAX, 100), (r::XMM6, 206)])
    }

    fn expression(f: impl FnOnce(&mut Expression)) -> Expression {
        let mut e = Expression::new();
        f(&mut e);
        e
    }

    #[test]
    fn every_rule_gives_value_and_provenance() {
        let memory = Pieces::default().words(SP, &[0x11, 0x2222, 0x33, 0x44, 0x55]).word(0x5000, 0x66);
        let mut at = at();
        at.registers.restore(x64::R12, 12, 0x9000);
        let deref = expression(|e| {
            e.op_breg(X86_64::RSP, 32);
        });
        let value = expression(|e| {
            e.op_breg(X86_64::RBX, 0);
            e.op_plus_uconst(7);
        });
        let next = step(
            vec![
                Cfi::Offset(X86_64::RBX, -16),
                Cfi::ValOffset(X86_64::R13, 24),
                Cfi::Register(X86_64::R14, X86_64::RAX),
                Cfi::Expression(X86_64::R15, deref),
                Cfi::ValExpression(X86_64::RDI, value),
                Cfi::SameValue(X86_64::RAX),
                Cfi::Undefined(X86_64::RBP),
                Cfi::Offset(X86_64::XMM6, 0),
            ],
            &at,
            &memory,
        );
        let caller = caller(next);
        assert_eq!(caller.address, CodeAddress::Return(0x2222));
        let r = &caller.registers;
        let all = |reg| (r.get(reg), r.saved_at(reg));
        assert_eq!(all(x64::RBX), (Some(0x11), Some(SP)));
        assert_eq!(all(x64::R13), (Some(CFA + 24), None));
        assert_eq!(all(x64::R14), (Some(100), None));
        assert_eq!(all(x64::R15), (Some(0x55), Some(SP + 32)));
        assert_eq!(all(x64::RDI), (Some(10), None));
        assert_eq!(all(x64::RAX), (Some(100), None));
        assert_eq!(all(x64::RBP), (None, None));
        assert_eq!(all(x64::XMM6), (Some(0x33), Some(CFA)));
        // Registers without a rule: callee-saved ones keep value and provenance, others are lost.
        assert_eq!(all(x64::R12), (Some(12), Some(0x9000)));
        assert_eq!(all(x64::RCX), (None, None));
        assert_eq!(all(x64::RSP), (Some(CFA), None));
        assert_eq!(all(x64::RIP), (Some(0x2222), Some(SP + 8)));
    }

    #[test]
    fn cfa_expressions_may_begin_with_a_register_location() {
        // This is the expression of wasmtime's fibers: DW_OP_reg7; DW_OP_deref; DW_OP_plus_uconst 16.
        let fiber = Expression::raw(vec![0x57, 0x06, 0x23, 0x10]);
        let memory = Pieces::default().word(SP, 0x8000).word(0x8008, 0x2222);
        let caller = caller(step(vec![Cfi::CfaExpression(fiber)], &at(), &memory));
        assert_eq!((caller.registers.sp(), caller.registers.pc()), (Some(0x8010), Some(0x2222)));
    }

    #[test]
    fn debug_frame_is_read_from_the_file_and_from_its_debug_file() {
        let memory = Pieces::default().words(SP, &[0x11, 0x2222]);
        let debug_frame = file(".debug_frame", &tables(false, vec![Cfi::Offset(X86_64::RBX, -16)]).1);
        let of_file = objects(debug_frame.clone());
        let next = CfiUnwinder::new(&of_file).step(&at(), &memory);
        assert_eq!(caller(next).registers.get(x64::RBX), Some(0x11));
        let mut stripped = object("/lib/made.so", BIAS, (BIAS, BIAS + 0x10_0000), file(".text", &[0x90]));
        stripped.debug = Some(("/debug/made".into(), crate::process::objects::ObjectData::Memory(debug_frame)));
        let of_debug_file = Objects::from_parts(vec![stripped]);
        let next = CfiUnwinder::new(&of_debug_file).step(&at(), &memory);
        assert_eq!(caller(next).registers.get(x64::RBX), Some(0x11));
    }

    #[test]
    fn a_lying_search_table_is_not_believed() {
        let eh_frame = tables(false, vec![Cfi::Offset(X86_64::RBX, -16)]).0;
        let memory = Pieces::default().words(SP, &[0x11, 0x2222]);
        // The true entry stands behind the CIE. The other offsets point nowhere.
        let fde = 4 + u32::from_le_bytes(eh_frame[..4].try_into().unwrap());
        for offset in [0x1000 + fde, 0x1000 + fde + 1, 0x1000, 0, u32::MAX] {
            let mut header = vec![1, 0x1b, 0x03, 0x3b];
            for word in [0x1000u32 - 4, 1, (FUNCTION as u32).wrapping_sub(0x2000), offset] {
                header.extend(word.to_le_bytes());
            }
            let file = elf(&[
                Section { name: ".eh_frame_hdr", flags: 2, address: 0x2000, bytes: &header },
                Section { name: ".eh_frame", flags: 2, address: 0x3000, bytes: &eh_frame },
            ]);
            let objects = objects(file);
            let next = CfiUnwinder::new(&objects).step(&at(), &memory);
            assert_eq!(caller(next).registers.get(x64::RBX), Some(0x11), "{offset:#x}");
        }
    }

    #[test]
    fn bottom_is_an_undefined_or_zero_return_address() {
        let memory = Pieces::default().words(SP, &[0x11, 0]);
        assert!(matches!(step(vec![], &at(), &memory), Some(Next::Bottom)));
        let undefined = vec![Cfi::Undefined(X86_64::RA)];
        assert!(matches!(step(undefined, &at(), &Pieces::default()), Some(Next::Bottom)));
    }

    #[test]
    fn failures_are_told_apart() {
        let memory = Pieces::default().words(SP + 8, &[0x2222]);
        // The return address cannot be read.
        let lost = step(vec![], &at(), &Pieces::default());
        let Some(Next::Lost(UnwindError::Memory(e))) = lost else { panic!("{lost:?}") };
        assert_eq!(e, MemoryError::Unmapped { address: SP + 8, len: 1 });
        // One save slot cannot be read: that register is lost, the frame is not.
        let caller = caller(step(vec![Cfi::Offset(X86_64::RBX, -16)], &at(), &memory));
        assert_eq!((caller.registers.get(x64::RBX), caller.registers.get(x64::R12)), (None, Some(12)));
        // The CFA needs a register that is not known.
        let lost = step(vec![Cfi::Cfa(X86_64::R11, 8)], &at(), &memory);
        let Some(Next::Lost(e)) = lost else { panic!("{lost:?}") };
        assert_eq!(e, UnwindError::UnknownRegister { register: "r11" });
        // The expression never ends: DW_OP_skip -3.
        let endless = Expression::raw(vec![0x2f, 0xfd, 0xff]);
        let lost = step(vec![Cfi::CfaExpression(endless)], &at(), &memory);
        let Some(Next::Lost(UnwindError::BadCfi { address, object, .. })) = lost else { panic!("{lost:?}") };
        assert_eq!((address, object.as_str()), (PC, "made.so"));
        // The address is in no function.
        let outside = cursor(BIAS + 0x9000, &[(x64::RSP, SP)]);
        assert!(step(vec![], &outside, &memory).is_none());
    }

    #[test]
    fn a_signal_frame_without_a_table_is_known_by_its_code() {
        let objects = Objects::from_parts(Vec::new());
        let unwinder = CfiUnwinder::new(&objects);
        let mut context: Vec<u64> = (0..40).map(|i| 0x100 + i).collect();
        context[28] = 0xa000;
        // The restorers of glibc and musl, and what an optimizing assembler makes of them.
        for code in x64::KERNEL.signal.returns {
            let memory = Pieces::default()
                .bytes(PC, code)
                .words(SP, &context)
                .words(0xa000 + 160, &(0..32).map(|i| 0x900 + i).collect::<Vec<u64>>());
            let syscall = PC + (code.len() - x64::SYSCALL.len()) as u64;
            for stop in [CodeAddress::Return(PC), CodeAddress::Exact(PC), CodeAddress::Exact(syscall)] {
                let mut at = cursor(stop.raw(), &[(x64::RSP, SP), (x64::RBX, 3)]);
                at.address = stop;
                let next = unwinder.step(&at, &memory);
                let Some(Next::Caller(caller, Trust::Recognised)) = next else { panic!("{stop:?} {next:?}") };
                assert!(unwinder.is_signal_frame(&at, &memory));
                assert!(!unwinder.is_signal_frame(&caller, &memory));
                assert_eq!(caller.address, CodeAddress::Exact(0x100 + 168 / 8));
                assert_eq!(caller.registers.get(x64::RAX), Some(0x100 + 144 / 8));
                assert_eq!(caller.registers.saved_at(x64::RAX), Some(SP + 144));
                assert_eq!(caller.registers.get(x64::XMM15), Some(0x900 + 30));
            }
        }
        // The first code makes system call 14, the second uses another instruction (int 0x80).
        for code in [&[0xb8, 0x0e, 0, 0, 0, 0x0f, 0x05][..], &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0xcd, 0x80]] {
            assert!(!is_sigreturn(Machine::X64, PC, &Pieces::default().bytes(PC, code)));
        }
        assert!(
            !is_sigreturn(Machine::X64, 0, &Pieces::default())
                && !is_sigreturn(Machine::X64, u64::MAX, &Pieces::default())
        );
    }

    #[test]
    fn entries_without_a_search_table_are_found_by_scanning() {
        // The functions are not in order, as after `ld -r`. The function at 0 was dropped by a linker.
        let functions = [(0x3000u64, 32), (0, 64), (FUNCTION, 16), (0x2000, 24)];
        let objects =
            objects(file(".eh_frame", &eh_frame(&functions.map(|(start, depth)| (start, 0x800, vec![depth])))));
        let unwinder = CfiUnwinder::new(&objects);
        let memory = Pieces::default().words(SP, &[1, 2, 3, 4]);
        let depth = |svma| match unwinder.step(&cursor(BIAS + svma, &[(x64::RSP, SP)]), &memory) {
            Some(Next::Caller(caller, _)) => caller.registers.sp().map(|sp| sp - SP),
            _ => None,
        };
        assert_eq!([0x1000, 0x17ff, 0x2000, 0x3001].map(depth), [Some(16), Some(16), Some(24), Some(32)]);
        assert_eq!([0x10, 0xfff, 0x1800, 0x3800].map(depth), [None; 4]);
    }

    #[test]
    fn a_return_address_is_looked_up_before_it() {
        // The last instruction of the function is a call that does not return.
        let memory = Pieces::default().words(SP, &[0x11, 0x2222]);
        let objects = objects(file(".eh_frame", &tables(false, vec![]).0));
        let mut at = at();
        at.address = CodeAddress::Return(BIAS + FUNCTION + 0x100);
        at.registers.set(x64::RIP, at.address.raw());
        let unwinder = CfiUnwinder::new(&objects);
        assert_eq!(caller(unwinder.step(&at, &memory)).registers.pc(), Some(0x2222));
        at.address = CodeAddress::Exact(BIAS + FUNCTION + 0x100);
        assert!(unwinder.step(&at, &memory).is_none());
    }

    #[test]
    fn a_table_that_marks_a_signal_frame_tells_where_its_caller_is_looked_up_and_no_more() {
        let objects = objects(file(".eh_frame", &tables(true, vec![]).0));
        let memory = Pieces::default().words(SP, &[0x11, 0x2222]);
        let unwinder = CfiUnwinder::new(&objects);
        let caller = caller(unwinder.step(&at(), &memory));
        assert_eq!(caller.address, CodeAddress::Exact(0x2222));
        // No kernel made that frame. corosensei marks the start of its coroutines in this way.
        assert!(!unwinder.is_signal_frame(&at(), &memory));
        assert!(unwinder.is_signal_frame(&at(), &Pieces::default().bytes(PC, x64::KERNEL.signal.returns[0])));
        // In a frame with such a mark no calling convention preserves registers: what the table does not name is not
        // known.
        assert_eq!((caller.registers.get(x64::RBX), caller.registers.sp()), (None, Some(CFA)));
    }

    #[test]
    fn deep_recursion_parses_its_row_once() {
        let objects = objects(file(".eh_frame", &tables(false, vec![]).0));
        let depth = 20_000u64;
        let mut words: Vec<u64> = (0..2 * depth).map(|i| if i % 2 == 0 { i } else { PC }).collect();
        words.push(0);
        words.push(0);
        let memory = Pieces::default().words(SP, &words);
        let unwinder = CfiUnwinder::new(&objects);
        let stack = crate::unwind::walk(cursor(PC, &[(x64::RSP, SP)]), &[&unwinder], &memory, 100_000);
        assert_eq!((stack.frames.len() as u64, stack.end), (depth + 1, crate::unwind::End::Bottom));
        // There is one plan for the stop and one for the return address.
        assert_eq!(unwinder.plans.borrow().len(), 2);
    }

    #[test]
    fn tables_expressions_and_what_is_kept_of_them_have_an_end() {
        let count = limits::MAX_UNWIND_ENTRIES as u64;
        let functions: Vec<_> = (1..=count + 1).map(|i| (i * 0x10, 0x10, vec![16])).collect();
        let objects = Objects::from_parts(vec![object(
            "/lib/x",
            BIAS,
            (BIAS, BIAS << 1),
            file(".eh_frame", &eh_frame(&functions)),
        )]);
        let unwinder = CfiUnwinder::new(&objects);
        let memory = Pieces::default().words(SP, &[0, 0x2222]);
        let step = |svma| unwinder.step(&cursor(BIAS + svma, &[(x64::RSP, SP)]), &memory).is_some();
        assert!(step(count * 0x10) && !step((count + 1) * 0x10));
        for i in 0..=limits::MAX_CACHED_ROWS as u64 {
            step(count * 0x20 + i);
            assert!(unwinder.plans.borrow().len() <= limits::MAX_CACHED_ROWS);
        }

        for (count, whole) in [(limits::MAX_FRAME_CHANGES, true), (limits::MAX_FRAME_CHANGES + 1, false)] {
            let depths = (0..count as i32).map(|i| 16 + i * 8).collect();
            let bytes = eh_frame(&[(FUNCTION, 0x10_0000, depths)]);
            let unwinder = CfiUnwinder::of_eh_frame("x".into(), (0, u64::MAX), bytes.into(), 0x3000);
            let changes = unwinder.changes(Machine::X64, FUNCTION);
            assert_eq!(changes.map(|c| c.len()), whole.then_some(count));
        }

        for (operations, found) in [(limits::MAX_EXPRESSION_STEPS, true), (limits::MAX_EXPRESSION_STEPS + 1, false)] {
            // The expression is a row of DW_OP_nop with DW_OP_breg7 16 at the end.
            let mut bytes = vec![0x96; operations as usize - 1];
            bytes.extend([0x77, 16]);
            let next = self::step(vec![Cfi::CfaExpression(Expression::raw(bytes))], &at(), &memory);
            assert_eq!(matches!(next, Some(Next::Caller(..))), found, "{operations}: {next:?}");
        }
    }

    proptest::proptest! {
        /// Whatever a file says, the answer is one of the possible answers and nothing panics.
        #[test]
        fn broken_tables_do_not_panic(
            flips in proptest::collection::vec((0usize..4096, 0u8..=255), 1..8),
            debug in proptest::bool::ANY,
            offset in 0u64..0x200,
        ) {
            let deref = expression(|e| {
                e.op_breg(X86_64::RSP, 32);
                e.op_deref();
            });
            let all = vec![
                Cfi::RememberState,
                Cfi::Offset(X86_64::RBX, -16),
                Cfi::CfaExpression(deref.clone()),
                Cfi::ValExpression(X86_64::RDI, deref),
                Cfi::RestoreState,
            ];
            let (eh_frame, debug_frame) = tables(false, all);
            let mut header = vec![1, 0x1b, 0x03, 0x3b];
            for word in [0x1000u32 - 4, 1, 0xffff_f000, 0x1018] {
                header.extend(word.to_le_bytes());
            }
            let table = if debug { (".debug_frame", debug_frame) } else { (".eh_frame", eh_frame) };
            let mut bytes = elf(&[
                Section { name: ".eh_frame_hdr", flags: 2, address: 0x2000, bytes: &header },
                Section { name: table.0, flags: 2, address: 0x3000, bytes: &table.1 },
            ]);
            let len = bytes.len();
            for (at, value) in flips {
                bytes[at % len] = value;
            }
            let objects = objects(bytes);
            let memory = Pieces::default().words(SP, &[0x11, 0x2222, 0x33, 0x44, SP]);
            let mut at = at();
            at.address = CodeAddress::Exact(BIAS + FUNCTION + offset);
            let _ = CfiUnwinder::new(&objects).step(&at, &memory);
            let _ = crate::symbolize::native::NativeSymbolizer::new(&objects).symbolize(at.address);
        }
    }
}
