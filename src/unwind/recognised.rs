//! Unwinds native code that has no call frame information and is recognised by its bytes around the pc.
//!
//! Runtimes hand over what they know of their own native code ([`Routines`]). What is known here belongs to the C
//! libraries:
//!
//! - Behind the system call in glibc's `clone3` and `clone` the table ends on purpose, since parent and child go on
//!   there with different stacks. A thread that was created but has not run yet stands there: seen in 1 of 4 cores of
//!   a process that aborted right after it had started a thread.
//!
//! - The beginning of a thread in musl, which has no tables at all.

use super::frame_pointer::is_behind_call;
use super::{Cursor, FrameChange, Next, Trust, UnwindError, Unwinder};
use crate::arch::{CodeAddress, Machine, Reg, Registers, x64};
use crate::process::Memory;

/// Where the fixed part of a frame is.
#[derive(Clone, Copy, Debug)]
pub enum Base {
    /// The address of the fixed part is in this register.
    In(Reg),
    /// The address of the fixed part is in the word that this register points to.
    At(Reg),
}

/// What is on the stack before an instruction is executed.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    /// A frame. From `base` upwards follow `skip` bytes, the saved registers and the return address.
    Frame {
        /// Where the frame begins.
        base: Base,
        /// Number of bytes before the saved registers.
        skip: u64,
        /// The registers that are saved there, lowest address first.
        saved: &'static [Reg],
    },
    /// The image of a stack that is being entered. rsp points to the values of these registers in the image, lowest
    /// address first. The address to go on at is above them.
    Image(&'static [Reg]),
}

impl Layout {
    /// A frame of which rsp points to the saved registers.
    pub const fn saved(saved: &'static [Reg]) -> Layout {
        Layout::Frame { base: Base::In(x64::RSP), skip: 0, saved }
    }

    /// A frame that saves no registers which its caller needs. The return address is this many bytes above rsp.
    pub const fn skip(bytes: u64) -> Layout {
        Layout::Frame { base: Base::In(x64::RSP), skip: bytes, saved: &[] }
    }
}

/// A stretch of code that is compared byte by byte, except for the target of a call.
///
/// A routine into which a call returns is cut in two there, so that a changed first part does not hide the second
/// part, in which frames are nearly always found.
pub struct Routine {
    /// Name of the routine in reports.
    pub name: &'static str,
    /// Its machine code, at most 256 bytes.
    pub code: &'static [u8],
    /// Bytes of `code` that the linker fills in: `(offset, length)`. The first four bytes are not among them, since
    /// the routine is searched for by these.
    pub hole: (usize, usize),
    /// Pairs of an offset in `code` and the layout that holds from there on, in ascending order.
    pub layouts: &'static [(usize, Layout)],
    /// The offset to which a callee returns, if the routine is entered by such a return.
    pub returns_to: Option<usize>,
    /// Whether the routine may go on at code that has not run yet. No call stands before the address of such code.
    pub enters_new_code: bool,
}

/// Steps from a frame, if the code there is recognised.
pub type Step = fn(at: &Cursor, memory: &dyn Memory) -> Option<Next>;

/// What a runtime knows of its own native code.
#[derive(Clone, Copy)]
pub struct Routines {
    /// Routines that are known byte by byte.
    pub list: &'static [Routine],
    /// Steps from the place where a stack begins that the runtime made, if the frame is at such a place.
    pub beginning: Option<Step>,
}

/// How many bytes before the pc and from it on are looked at. The longest routine fits.
const WINDOW: usize = 0x100;

impl Routine {
    /// Whether the routine begins at `start` in `window`.
    fn is_at(&self, window: &[u8], start: usize) -> bool {
        let Some(bytes) = window.get(start..start.saturating_add(self.code.len())) else { return false };
        let (hole, len) = self.hole;
        bytes.iter().zip(self.code).enumerate().all(|(i, (a, b))| a == b || (hole..hole + len).contains(&i))
    }

    fn layout(&self, offset: usize) -> Option<Layout> {
        let i = self.layouts.partition_point(|(from, _)| *from <= offset);
        Some(self.layouts.get(i.checked_sub(1)?)?.1)
    }
}

/// A stretch of native code that is one of the known routines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Name of the routine that the stretch is a part of.
    pub name: &'static str,
    /// Address of the first byte of the stretch, in the target.
    pub start: u64,
    /// Length of the stretch in bytes.
    pub len: u32,
    /// How callers are found: pairs of a byte offset from `start` and the change that holds from there on.
    pub frame: Vec<(u32, FrameChange)>,
}

impl Stretch {
    /// Debuggers look a caller up one byte before the address that the call returns to. So if a routine begins at
    /// such an address, the byte before it is made a part of the stretch. In `run_on_alternative_stack` that byte is
    /// the `ret` that enters the image, and a thread stopped at exactly this instruction is described wrongly: the
    /// price for right descriptions of all stacks that go through the routine.
    fn new(routine: &Routine, start: u64) -> Stretch {
        let lead = u32::from(routine.returns_to == Some(0));
        let moved = |(offset, change): (u32, FrameChange)| (if offset == 0 { 0 } else { offset + lead }, change);
        Stretch {
            name: routine.name,
            start: start.wrapping_sub(u64::from(lead)),
            len: routine.code.len() as u32 + lead,
            frame: routine.changes().into_iter().map(moved).collect(),
        }
    }
}

impl Routine {
    /// The layouts of the routine as changes. The changes at each offset describe the whole frame, so that routines
    /// that follow each other can be joined.
    fn changes(&self) -> Vec<(u32, FrameChange)> {
        const CALLEE_SAVED: [Reg; 6] = [x64::RBX, x64::RBP, x64::R12, x64::R13, x64::R14, x64::R15];
        let mut out = Vec::new();
        for &(offset, layout) in self.layouts {
            let mut change = |c| out.push((offset as u32, c));
            let Layout::Frame { base, skip, saved } = layout else {
                // The next frame is not a caller, because another routine's registers are being loaded.
                change(FrameChange::Undefined(x64::RIP));
                continue;
            };
            let above = skip as i32 + 8 * (saved.len() as i32 + 1);
            change(match base {
                Base::In(reg) => FrameChange::Cfa(reg, above),
                Base::At(reg) => FrameChange::CfaDeref(reg, above as u32),
            });
            change(FrameChange::Saved(x64::RIP, -8));
            for reg in CALLEE_SAVED.iter().filter(|r| !saved.contains(r)) {
                change(FrameChange::Same(*reg));
            }
            for (i, &reg) in saved.iter().enumerate() {
                change(FrameChange::Saved(reg, 8 * i as i32 - 8 * (saved.len() as i32 + 1)));
            }
        }
        out
    }
}

/// Unwinds native code that has no call frame information, by its bytes.
pub struct RecognisedUnwinder {
    /// Each routine, and where its instructions begin.
    routines: Vec<(&'static Routine, Vec<usize>)>,
    beginnings: Vec<Step>,
}

impl RecognisedUnwinder {
    /// An unwinder that knows these routines besides those of the C libraries.
    pub fn new(known: &[Routines]) -> RecognisedUnwinder {
        let starts = |routine: &Routine| -> Vec<usize> {
            let decoder = iced_x86::Decoder::new(64, routine.code, iced_x86::DecoderOptions::NONE);
            decoder.into_iter().map(|i| i.ip() as usize).collect()
        };
        let routines: Vec<_> = known.iter().flat_map(|of| of.list).map(|routine| (routine, starts(routine))).collect();
        debug_assert!(routines.iter().all(|(r, _)| r.code.len() <= WINDOW && (r.hole.1 == 0 || r.hole.0 >= 4)));
        RecognisedUnwinder { routines, beginnings: known.iter().filter_map(|of| of.beginning).collect() }
    }

    /// The routine that `at` is in, the layout there, and the offset of `at` in the routine.
    fn recognise(&self, at: CodeAddress, memory: &dyn Memory) -> Option<(&'static Routine, Layout, usize)> {
        let pc = at.raw();
        let mut window = vec![0; 2 * WINDOW];
        let there = memory.read_around(pc, WINDOW, &mut window);
        let (window, before) = (window.get(there.clone())?, WINDOW.checked_sub(there.start)?);
        for (routine, starts) in &self.routines {
            for &offset in starts {
                if at.is_return() && routine.returns_to != Some(offset) {
                    continue;
                }
                if before.checked_sub(offset).is_some_and(|start| routine.is_at(window, start)) {
                    return Some((routine, routine.layout(offset)?, offset));
                }
            }
        }
        None
    }

    /// Name of the routine that `at` is in, if it is a known one.
    pub fn stub_name(&self, at: CodeAddress, memory: &dyn Memory) -> Option<&'static str> {
        self.recognise(at, memory).map(|(routine, ..)| routine.name)
    }

    /// The stretch of the routine that `at` is in, if it is a known one.
    pub fn stretch_at(&self, at: CodeAddress, memory: &dyn Memory) -> Option<Stretch> {
        let (routine, _, offset) = self.recognise(at, memory)?;
        Some(Stretch::new(routine, at.raw().wrapping_sub(offset as u64)))
    }

    /// The stretches of all known routines in `code`, which is loaded at `base`, in ascending order.
    pub fn stretches(&self, code: &[u8], base: u64) -> Vec<Stretch> {
        let mut found = Vec::new();
        for (start, window) in code.windows(4).enumerate() {
            for (routine, _) in &self.routines {
                // No routine has its hole in the first four bytes.
                if routine.code.starts_with(window) && routine.is_at(code, start) {
                    found.push(Stretch::new(routine, base.wrapping_add(start as u64)));
                }
            }
        }
        found
    }
}

impl Unwinder for RecognisedUnwinder {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        // All of these routines are code of x86-64.
        if at.registers.machine() != Machine::X64 {
            return None;
        }
        let Some((routine, layout, _)) = self.recognise(at.address, memory) else {
            let of_libc = clone(at, memory).or_else(|| musl_clone(at, memory));
            return of_libc.or_else(|| self.beginnings.iter().find_map(|step| step(at, memory)));
        };
        let next = match layout {
            Layout::Frame { base, skip, saved } => frame(at, base, skip, saved, memory),
            Layout::Image(loaded) => image(at, loaded, memory),
        };
        let mut next = next.unwrap_or_else(Next::Lost);
        if let Next::Caller(caller, _) = &mut next
            && routine.enters_new_code
            && memory.read_u64(caller.address.lookup() & !7).is_ok()
            && !is_behind_call(at.registers.machine(), caller.address.raw(), memory)
        {
            caller.address = CodeAddress::Exact(caller.address.raw());
        }
        Some(next)
    }
}

/// The code from the `syscall` in `clone3` and `clone` on (clone3.S, clone.S), which tells where parent and child
/// are.
const CLONE: &[u8] = &[
    0x0f, 0x05, // syscall
    0x48, 0x85, 0xc0, 0x7c, 0, // test rax, rax; jl error (this byte differs)
    0x74, 0x01, 0xc3, // je child; ret
    0x31, 0xed, // child: xor ebp, ebp
];
const CLONE_HOLE: usize = 6;

/// Steps from a parent or a child that is in `clone3` or `clone`.
fn clone(at: &Cursor, memory: &dyn Memory) -> Option<Next> {
    let CodeAddress::Exact(pc) = at.address else { return None };
    let mut code = [0; CLONE.len()];
    for offset in [2u64, 5, 7, 9, 10, 12] {
        let is_here = pc.checked_sub(offset).is_some_and(|start| memory.read(start, &mut code).is_ok())
            && code.iter().zip(CLONE).enumerate().all(|(i, (a, b))| a == b || i == CLONE_HOLE);
        if !is_here {
            continue;
        }
        // The call returns zero only in the child. A parent that is still in the call has an error number in rax.
        let child = match offset {
            0..9 => known(&at.registers, x64::RAX).map(|rax| rax == 0),
            9 => Ok(false),
            _ => Ok(true),
        };
        return Some(match child {
            Ok(true) => Next::Bottom,
            Ok(false) => frame(at, Base::In(x64::RSP), 0, &[], memory).unwrap_or_else(Next::Lost),
            Err(e) => Next::Lost(e),
        });
    }
    None
}

/// The child in musl's `clone` (clone.s): `xor ebp, ebp; pop rdi; call r9`. `MUSL_EXIT` follows it: the system call
/// that ends the thread.
const MUSL_CHILD: &[u8] = &[0x31, 0xed, 0x5f, 0x41, 0xff, 0xd1];
const MUSL_EXIT: &[u8] = &[0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05];

/// Recognises the place where a thread of musl begins. It has no caller, and musl has no tables that could say so.
fn musl_clone(at: &Cursor, memory: &dyn Memory) -> Option<Next> {
    let CodeAddress::Return(pc) = at.address else { return None };
    let mut code = [0; MUSL_CHILD.len() + MUSL_EXIT.len()];
    memory.read(pc.checked_sub(MUSL_CHILD.len() as u64)?, &mut code).ok()?;
    (code.starts_with(MUSL_CHILD) && code.ends_with(MUSL_EXIT)).then_some(Next::Bottom)
}

fn known(registers: &Registers, reg: Reg) -> Result<u64, UnwindError> {
    registers.get(reg).ok_or(UnwindError::UnknownRegister { register: reg.name() })
}

/// Steps out of a frame whose layout is known (see [`Layout::Frame`]).
pub fn frame(at: &Cursor, base: Base, skip: u64, saved: &[Reg], memory: &dyn Memory) -> Result<Next, UnwindError> {
    let base = match base {
        Base::In(reg) => known(&at.registers, reg)?,
        Base::At(reg) => memory.read_u64(known(&at.registers, reg)?)?,
    };
    let mut caller = at.registers.clone();
    caller.forget_caller_saved();
    let mut slot = base.wrapping_add(skip);
    for &reg in saved {
        caller.restore(reg, memory.read_u64(slot)?, slot);
        slot = slot.wrapping_add(8);
    }
    let pc = memory.read_u64(slot)?;
    if pc == 0 {
        return Ok(Next::Bottom);
    }
    caller.restore(x64::RIP, pc, slot);
    caller.set(x64::RSP, slot.wrapping_add(8));
    Ok(Next::Caller(Cursor { address: CodeAddress::Return(pc), registers: caller }, Trust::Recognised))
}

/// Steps out of a routine that enters a stack image. rsp is in the image already, so the next frame is the code that
/// the `ret` goes to, with the registers that this code will find. The routine's native caller is reached later,
/// through the last return address in the image.
fn image(at: &Cursor, loaded: &[Reg], memory: &dyn Memory) -> Result<Next, UnwindError> {
    let mut slot = known(&at.registers, x64::RSP)?;
    let mut caller = at.registers.clone();
    for &reg in loaded {
        caller.restore(reg, memory.read_u64(slot)?, slot);
        slot = slot.wrapping_add(8);
    }
    let pc = memory.read_u64(slot)?;
    caller.restore(x64::RIP, pc, slot);
    caller.set(x64::RSP, slot.wrapping_add(8));
    Ok(Next::Caller(Cursor { address: CodeAddress::Exact(pc), registers: caller }, Trust::Recognised))
}

#[cfg(test)]
pub(crate) mod emulator;

#[cfg(test)]
mod tests {
    use super::emulator::{CALLER, CODE, ENTRY_SP, code_memory};
    use super::*;
    use crate::unwind::testing::cursor;

    #[test]
    fn a_newborn_thread_is_at_its_bottom_and_its_parent_is_not() {
        let mut code = CLONE.to_vec();
        code[CLONE_HOLE] = 0x18;
        let memory = code_memory(&code).word(ENTRY_SP, CALLER);
        let at = |offset: u64, rax: u64| {
            RecognisedUnwinder::new(&[]).step(&cursor(CODE + offset, &[(x64::RSP, ENTRY_SP), (x64::RAX, rax)]), &memory)
        };
        for offset in [2, 5, 7] {
            assert!(matches!(at(offset, 0), Some(Next::Bottom)), "{offset}");
            // rax is a thread id, or -ENOSYS while the call lasts.
            for rax in [4711, -38i64 as u64] {
                let Some(Next::Caller(caller, _)) = at(offset, rax) else { panic!("{offset}") };
                assert_eq!(caller.address, CodeAddress::Return(CALLER));
                assert_eq!(caller.registers.sp(), Some(ENTRY_SP + 8));
            }
        }
        assert!(matches!(at(9, 0), Some(Next::Caller(..))));
        assert!(matches!(at(12, 7), Some(Next::Bottom)));
        assert!(at(3, 0).is_none());
        // The function belongs to libc and has a name of its own.
        assert_eq!(RecognisedUnwinder::new(&[]).stub_name(CodeAddress::Exact(CODE + 2), &memory), None);
        code[3] ^= 1;
        let other = code_memory(&code).word(ENTRY_SP, CALLER);
        let at = cursor(CODE + 2, &[(x64::RSP, ENTRY_SP), (x64::RAX, 0)]);
        assert!(RecognisedUnwinder::new(&[]).step(&at, &other).is_none());
    }
}
