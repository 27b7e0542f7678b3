//! Unwinds with call frame information: `.eh_frame` (searched through `.eh_frame_hdr` where that is usable) and
//! `.debug_frame`.
//!
//! The register rules of a table are applied to every register of the machine, because whatever called the native code
//! may keep its values in any callee-saved register (facts: locals 0-3 of a singlepass function).

mod changes;
mod row;
mod sections;
mod signal;
mod table;
#[cfg(test)]
mod tests;

use self::row::{Failure, Row};
use self::sections::tables;
use self::signal::return_from_signal;
pub use self::signal::{is_sigreturn, signal_context};
use self::table::{Kind, Table, TableBytes};
use super::{Cursor, FrameChange, Next, UnwindError, Unwinder};
use crate::arch::{CodeAddress, Machine};
use crate::limits;
use crate::process::Memory;
use crate::process::objects::{LoadedObject, Objects};
use gimli::{BaseAddresses, UnwindContext};
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

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
    /// The file, whose tables are parsed when they are first asked for. `None` if `tables` is filled from the start.
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

    /// How callers are found from each place of the function at `start`, as the table of [`CfiUnwinder::of_eh_frame`]
    /// says it: pairs of a byte offset from `start` and a change, in ascending order. `None` if the table has no entry
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
