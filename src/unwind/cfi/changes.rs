//! How callers are found from each place of a function, as a list of changes: the form that debuggers are given.

use super::table::Table;
use crate::arch::Machine;
use crate::limits;
use crate::unwind::FrameChange;
use gimli::{CfaRule, EhFrame, LittleEndian, RegisterRule, UnwindContext, UnwindSection};

impl Table<'_> {
    /// Does the work of [`CfiUnwinder::changes`].
    pub(super) fn changes(
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
}
