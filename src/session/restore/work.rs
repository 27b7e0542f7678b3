//! The changes to the process, each with its way back.

use super::plan::Plan;
use super::{Linear, PAGE, RestoreOptions, WASM_PAGE};
use crate::arch::x64;
use crate::process::live::inject::Borrowed;
use crate::process::{Mapping, Memory};
use crate::report::counted;
use crate::runtime::singlepass::module::ctx;
use crate::state::{ImageView, KnownRegisters, PointKind};
use std::cell::Cell;
use std::path::Path;

/// Size in bytes of the stack below the image's frames. It is as large as the runtime's own stack.
const STACK: u64 = 8 << 20;
/// Number of bytes of `StackSpec::outer` that are left on the stack when the oldest frame has returned: the frame takes
/// the first of these words.
const OUTER: u64 = 16;
/// The lowest address at which anything is mapped (`vm.mmap_min_addr`).
const LOWEST: u64 = 0x1_0000;
/// How many times a step back is tried.
const UNDO_ATTEMPTS: usize = 3;
/// Size in bytes of a `LocalMemory`: base, bound, and the address of the object that keeps the memory.
const DESCRIPTION: usize = 24;
/// Size in bytes of the object that keeps a memory (`memory/static_.rs`, `memory/dynamic.rs`: 48).
const MEMORY_OBJECT: usize = 48;

/// The parts into which the mappings divide `from .. from + len`: the first address and the number of bytes of each.
/// Returns an error unless all of it is mapped.
fn pieces(mappings: &[Mapping], from: u64, len: u64) -> Result<Vec<(u64, u64)>, String> {
    let (mut at, end) = (from, from.saturating_add(len));
    let mut out = Vec::new();
    for mapping in mappings.iter().skip_while(|m| m.end <= from) {
        if at < end && mapping.contains(at) {
            let piece = mapping.end.min(end) - at;
            out.push((at, piece));
            at += piece;
        }
    }
    if at == end { Ok(out) } else { Err(format!("nothing is mapped at {at:#x}")) }
}

/// The highest place for `len` bytes below `limit` that is right below a mapping, but not below a stack that grows.
fn gap_below(mappings: &[Mapping], limit: u64, len: u64) -> Option<u64> {
    let before = std::iter::once(0).chain(mappings.iter().map(|m| m.end));
    let grows = |m: &Mapping| m.path.as_deref() == Some(Path::new("[stack]"));
    let gaps = before.zip(mappings).filter(|(_, m)| m.start <= limit && !grows(m));
    let fits = |(end, m): (u64, &Mapping)| m.start.checked_sub(len).filter(|&start| start >= end.max(LOWEST));
    gaps.filter_map(fits).last()
}

/// What is left of the changes after a failure.
pub(super) enum Failed {
    /// Nothing is left: the process is as it was. The text says why it failed.
    AsItWas(String),
    /// A change is left that could not be taken back. The text says which, and why.
    Broken(String),
}

/// The restore of one image, while it changes the process.
pub(super) struct Work<'a> {
    plan: &'a Plan,
    thread: Borrowed<'a>,
    image: &'a ImageView,
    memory: &'a Linear,
    result: Option<u64>,
    count: Cell<usize>,
    fail_at: Option<usize>,
    fail_back: Cell<usize>,
}

/// How one step is undone.
enum Undo {
    Unmap {
        address: u64,
        len: u64,
    },
    Move {
        from: u64,
        to: u64,
        len: u64,
    },
    Write {
        address: u64,
        bytes: Vec<u8>,
    },
    /// A memory that was grown: where it was and how large, and the words that said so.
    Shrink {
        base: u64,
        size: u64,
        words: Vec<(u64, Vec<u8>)>,
    },
}

/// What the thread goes on with when all steps are done.
struct Ready {
    pc: u64,
    registers: KnownRegisters,
    /// Address and size in bytes of the old memory, which was moved aside.
    aside: Option<(u64, u64)>,
}

const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const PRIVATE: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
const NO_FILE: u64 = u64::MAX;

impl<'a> Work<'a> {
    pub fn new(
        plan: &'a Plan,
        thread: Borrowed<'a>,
        image: &'a ImageView,
        memory: &'a Linear,
        wanted: &RestoreOptions,
    ) -> Work<'a> {
        let (count, fail_back) = (Cell::new(0), Cell::new(wanted.fail_back));
        Work { plan, thread, image, memory, result: wanted.result, count, fail_at: wanted.fail_at, fail_back }
    }

    pub fn run(self) -> Result<(usize, Vec<String>), Failed> {
        let mut undo = Vec::new();
        let ready = match self.steps(&mut undo) {
            Ok(ready) => ready,
            Err(why) => {
                // All that can be put back is put back, even where something else cannot be.
                let mut errors: Vec<String> =
                    undo.iter().rev().filter_map(|step| self.undo_surely(step).err()).collect();
                errors.extend(self.thread.give_back().err());
                return Err(match errors.is_empty() {
                    true => Failed::AsItWas(why),
                    false => Failed::Broken(format!("{why}; on the way back: {}", errors.join("; "))),
                });
            }
        };
        let mut notes = Vec::new();
        if let Some((address, len)) = ready.aside
            && let Err(e) = self.unmap(address, len)
        {
            notes.push(format!("the old memory is still mapped at {address:#x}: {e}"));
        }
        // The system call that unmapped the old memory has used the thread's registers, so they are set again.
        self.thread.set_registers(ready.pc, |reg| ready.registers.of(reg)).map_err(Failed::Broken)?;
        let count = self.count.get();
        self.thread.keep().map_err(Failed::Broken)?;
        Ok((count, notes))
    }

    /// Makes every change that has a way back.
    fn steps(&self, undo: &mut Vec<Undo>) -> Result<Ready, String> {
        let parts = &self.plan.parts;
        let needed = self.plan.stack(self.image, 1 << 46, &self.thread)?.words.len() as u64 * 8;
        let room = self.plan.limit.and_then(|limit| limit.room);
        let size = (needed.max(room.unwrap_or(0)) + STACK).next_multiple_of(PAGE);
        let stack = match self.plan.limit {
            None => self.map(size, READ_WRITE, undo)?,
            // The new stack is mapped below the old limit: later calls on the thread's own stack must not be below
            // the limit of the new stack.
            Some(limit) => self.map_below(limit.address, size, undo)?,
        };
        self.step()?;
        self.thread.system_call(libc::SYS_mprotect, [stack, PAGE, 0, 0, 0, 0])?;
        let top = stack + size - 64;

        let aside = match parts.memory {
            Some(memory) => self.replace_memory(memory, top, undo)?,
            None => None,
        };
        for (cell, bits) in parts.globals.iter().zip(&self.image.globals) {
            self.write(cell.address, &bits.to_le_bytes(), undo)?;
        }
        if self.plan.limit.is_some() {
            // The new limit allows the same depth of calls as on the thread's own stack.
            let lowest = room.map_or(stack + WASM_PAGE, |room| top - OUTER - room);
            self.write(parts.vmctx + ctx::STACK_LOWER_BOUND, &lowest.to_le_bytes(), undo)?;
        }
        let built = self.plan.stack(self.image, top, &self.thread)?;
        let words: Vec<u8> = built.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.step()?;
        self.thread.write(built.start, &words)?;

        let mut registers = built.registers;
        if built.kind == PointKind::Call {
            for reg in [x64::RAX, x64::XMM0] {
                registers.set(reg, self.result);
            }
        }
        self.step()?;
        self.thread.set_registers(built.pc(), |reg| registers.of(reg))?;
        self.step()?;
        Ok(Ready { pc: built.pc(), registers, aside })
    }

    /// Grows the memory to the image's size and puts the image's bytes there; returns where the old ones are.
    fn replace_memory(
        &self,
        (base, size): (u64, u64),
        stack_top: u64,
        undo: &mut Vec<Undo>,
    ) -> Result<Option<(u64, u64)>, String> {
        let parts = &self.plan.parts;
        let wanted = self.memory.len;
        let mut base = base;
        if let (true, Some(grow), Some(description)) = (wanted > size, parts.grow, parts.memory_at) {
            let object = self.word(description + 16)?;
            let context = (parts.vmctx + ctx::MEMORY_BASE, 16);
            let mut words = Vec::new();
            for (address, len) in [(object, MEMORY_OBJECT), (description, DESCRIPTION), context] {
                words.push((address, self.thread.read_vec(address, len).map_err(|e| e.to_string())?));
            }
            self.step()?;
            undo.push(Undo::Shrink { base, size, words });
            let pages = (wanted - size) / WASM_PAGE;
            let old = self.thread.call(grow, [parts.vmctx, 0, pages], stack_top & !15)?;
            if old as i32 == -1 {
                let pages = counted(pages, "page");
                return Err(format!("the runtime does not grow the memory by {pages}"));
            }
            base = self.word(context.0)?;
            let now = self.word(context.0 + 8)?;
            if now != wanted {
                return Err(format!("the memory has {now} bytes after it was grown, not {wanted}"));
            }
            self.step()?;
        }
        if wanted == 0 {
            return Ok(None);
        }
        let fresh = self.map(wanted, READ_WRITE, undo)?;
        self.step()?;
        self.memory.pages(|at, page| self.thread.write(fresh + at, page))?;
        // This is only a range of addresses, without memory.
        let aside = self.map(wanted, 0, undo)?;
        self.relocate(base, aside, wanted, undo)?;
        self.relocate(fresh, base, wanted, undo)?;
        self.step()?;
        Ok(Some((aside, wanted)))
    }

    fn step(&self) -> Result<(), String> {
        let count = self.count.replace(self.count.get() + 1);
        if self.fail_at == Some(count) { Err(format!("step {count} was made to fail")) } else { Ok(()) }
    }

    fn word(&self, address: u64) -> Result<u64, String> {
        self.thread.read_u64(address).map_err(|e| e.to_string())
    }

    fn map(&self, len: u64, access: u64, undo: &mut Vec<Undo>) -> Result<u64, String> {
        self.step()?;
        let flags = if access == 0 { PRIVATE | libc::MAP_NORESERVE as u64 } else { PRIVATE };
        let address = self.thread.system_call(libc::SYS_mmap, [0, len, access, flags, NO_FILE, 0]);
        let address = address.map_err(|e| format!("{len} bytes cannot be mapped: {e}"))?;
        undo.push(Undo::Unmap { address, len });
        Ok(address)
    }

    /// Maps memory as [`Work::map`] does, at addresses below `limit`.
    fn map_below(&self, limit: u64, len: u64, undo: &mut Vec<Undo>) -> Result<u64, String> {
        let mappings = self.thread.mappings().map_err(|e| format!("its mappings cannot be read: {e}"))?;
        let wanted = gap_below(&mappings, limit, len);
        let wanted = wanted.ok_or_else(|| format!("there is no place for {len} bytes of stack below {limit:#x}"))?;
        self.step()?;
        let flags = PRIVATE | libc::MAP_FIXED_NOREPLACE as u64;
        let address = self.thread.system_call(libc::SYS_mmap, [wanted, len, READ_WRITE, flags, NO_FILE, 0]);
        let address = address.map_err(|e| format!("{len} bytes cannot be mapped at {wanted:#x}: {e}"))?;
        undo.push(Undo::Unmap { address, len });
        // Before Linux 4.17 the kernel takes the address as a wish only.
        if address == wanted { Ok(address) } else { Err(format!("{len} bytes cannot be mapped at {wanted:#x}")) }
    }

    fn unmap(&self, address: u64, len: u64) -> Result<(), String> {
        self.thread.system_call(libc::SYS_munmap, [address, len, 0, 0, 0, 0]).map(|_| ())
    }

    /// Moves pages to another place, where other pages may be, and adds the way back.
    fn relocate(&self, from: u64, to: u64, len: u64, undo: &mut Vec<Undo>) -> Result<(), String> {
        for (piece, len) in self.pieces(from, len)? {
            let there = to.wrapping_add(piece.wrapping_sub(from));
            self.step()?;
            self.remap(piece, there, len)?;
            undo.push(Undo::Move { from: there, to: piece, len });
        }
        Ok(())
    }

    /// The parts of what is mapped from `from` on, one for each mapping: before Linux 6.17 no call moves more than
    /// one mapping.
    fn pieces(&self, from: u64, len: u64) -> Result<Vec<(u64, u64)>, String> {
        pieces(&self.thread.mappings().map_err(|e| format!("its mappings cannot be read: {e}"))?, from, len)
    }

    fn remap(&self, from: u64, to: u64, len: u64) -> Result<(), String> {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let moved = self.thread.system_call(libc::SYS_mremap, [from, len, len, flags, to, 0]);
        moved.map(|_| ()).map_err(|e| format!("{len} bytes at {from:#x} cannot be moved to {to:#x}: {e}"))
    }

    /// Takes the content of pages away, and the access to them.
    fn reserve(&self, address: u64, len: u64) -> Result<(), String> {
        let flags = PRIVATE | libc::MAP_FIXED as u64;
        self.thread.system_call(libc::SYS_mmap, [address, len, 0, flags, NO_FILE, 0]).map(|_| ())
    }

    fn write(&self, address: u64, bytes: &[u8], undo: &mut Vec<Undo>) -> Result<(), String> {
        let old = self.thread.read_vec(address, bytes.len()).map_err(|e| e.to_string())?;
        self.step()?;
        undo.push(Undo::Write { address, bytes: old });
        self.thread.write(address, bytes)
    }

    /// Takes one step back. This is tried more than once, because for an instant there may be no memory for it.
    fn undo_surely(&self, step: &Undo) -> Result<(), String> {
        (1..UNDO_ATTEMPTS).find_map(|_| self.undo(step).ok()).map_or_else(|| self.undo(step), Ok)
    }

    fn undo(&self, step: &Undo) -> Result<(), String> {
        if let Some(left) = self.fail_back.get().checked_sub(1) {
            self.fail_back.set(left);
            return Err("a way back was made to fail".to_string());
        }
        match *step {
            Undo::Unmap { address, len } => self.unmap(address, len),
            Undo::Move { from, to, len } => self.remap(from, to, len),
            Undo::Write { address, ref bytes } => self.thread.write(address, bytes),
            Undo::Shrink { base, size, ref words } => {
                let context = self.plan.parts.vmctx + ctx::MEMORY_BASE;
                let (now, bound) = (self.word(context)?, self.word(context + 8)?);
                if now != base {
                    // This is a dynamic memory: the old mapping, with its guard page, was given up for a larger one.
                    for (piece, len) in self.pieces(now, size + PAGE)? {
                        self.remap(piece, base.wrapping_add(piece - now), len)?;
                    }
                    self.reserve(base + size, PAGE)?;
                    self.unmap(now + size + PAGE, bound - size)?;
                } else if bound > size {
                    self.reserve(base + size, bound - size)?;
                }
                words.iter().try_for_each(|(address, bytes)| self.thread.write(*address, bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_goes_below_a_limit_and_not_below_a_stack_that_grows() {
        let text = b"40000-50000 rw-p 0 0:0 0\n90000-a0000 rw-p 0 0:0 0\nc0000-d0000 rw-p 0 0:0 0\n\
            f0000-100000 rw-p 0 0:0 0 [stack]\n";
        let maps = crate::process::live::parse_maps(text);
        assert_eq!(gap_below(&maps, 0xf8000, 0x10000), Some(0xb0000));
        assert_eq!(gap_below(&maps, 0xbffff, 0x10000), Some(0x80000));
        assert_eq!(gap_below(&maps, 0xf8000, 0x30000), Some(0x60000));
        assert_eq!(gap_below(&maps, 0x45000, 0x30000), Some(0x10000));
        assert_eq!((gap_below(&maps, 0xf8000, 0x50000), gap_below(&maps, 0x100, 0x1000)), (None, None));
    }

    #[test]
    fn each_mapping_is_a_piece() {
        let text = b"1000-3000 rw-p 0 0:0 0\n3000-4000 rw-p 0 0:0 0\n4000-9000 ---p 0 0:0 0\na000-b000 rw-p 0 0:0 0\n";
        let maps = crate::process::live::parse_maps(text);
        assert_eq!(maps.len(), 4);
        assert_eq!(pieces(&maps, 0x2000, 0x4000).unwrap(), [(0x2000, 0x1000), (0x3000, 0x1000), (0x4000, 0x2000)]);
        assert_eq!(pieces(&maps, 0x3000, 0x1000).unwrap(), [(0x3000, 0x1000)]);
        assert!(pieces(&maps, 0x8000, 0x3000).unwrap_err().ends_with("at 0x9000"));
        assert!(pieces(&maps, 0, 0x2000).is_err() && pieces(&maps, 0xa000, 0x2000).is_err());
    }
}
