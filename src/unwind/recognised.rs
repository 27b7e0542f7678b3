//! Unwinds native code of runtimes that has no call frame information and is recognised by its bytes around the pc.
//! This file knows byte sequences and stack layouts of native routines; it knows no Wasm.
//!
//! - `CONSTRUCT_STACK_AND_CALL_WASM` (codegen_x64.rs) is assembled at run time into an anonymous mapping.
//! - `run_on_alternative_stack` and `register_preservation_trampoline` (image-loading-linux-x86-64.s) are assembled
//!   without CFI into the executable, whose symbols may be stripped.
//!
//! - `wasmtime_fiber_switch` (wasmtime-internal-fiber: stackswitch/x86_64.rs) has the same bytes in all versions from
//!   36 to 50 and no CFI. The registers that it saves on one stack are not the ones that it restores: those come from
//!   the other stack.
//!
//! - Behind the system call in glibc's `clone3` and `clone` the table ends on purpose, since parent and child go on
//!   there with different stacks. A thread that was created but has not run yet stands there: seen in 1 of 4 cores of
//!   a process that aborted right after it had started a thread.
//!
//! - The beginning of a thread in musl, which has no tables at all, and the beginning of one of Wasmtime's fibers in
//!   a host that was built without tables.
//!
//! A routine is cut in two where a call returns into it, so that a changed first part does not hide the second part,
//! in which frames are nearly always found.

use super::frame_pointer::is_behind_call;
use super::{Cursor, FrameChange, Next, Trust, UnwindError, Unwinder};
use crate::arch::x64::SWITCH_BLOCK;
use crate::arch::{CodeAddress, Machine, Reg, Registers, x64};
use crate::process::Memory;
use std::sync::LazyLock;

/// Where the fixed part of a frame is.
#[derive(Clone, Copy, Debug)]
enum Base {
    /// Its address is in this register.
    In(Reg),
    /// Its address is in the word that this register points to.
    At(Reg),
}

/// What is on the stack before an instruction is executed.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// A frame. From `base` upwards follow `skip` bytes, the saved registers and the return address.
    Frame { base: Base, skip: u64, saved: &'static [Reg] },
    /// The image of a stack that is being entered. rsp is this many words after the image's start. The image holds
    /// registers in the order of `SWITCH_BLOCK`, then the address to go on at.
    Image(usize),
}

/// A stretch of code that is compared byte by byte, except for the target of a call.
struct Routine {
    name: &'static str,
    code: &'static [u8],
    /// Bytes of `code` that the linker fills in: `(offset, length)`.
    hole: (usize, usize),
    /// Pairs of an offset in `code` and the layout that holds from there on, in ascending order.
    layouts: &'static [(usize, Layout)],
    /// The offset to which a callee returns, if the routine is entered by such a return.
    returns_to: Option<usize>,
}

const CALL_WASM: &str = "call_wasm trampoline (wasmer singlepass)";
const ALTERNATIVE_STACK: &str = "run_on_alternative_stack";
const FIBER_SWITCH: &str = "wasmtime_fiber_switch";
const PRESERVATION: &str = "register_preservation_trampoline";

/// `CONSTRUCT_STACK_AND_CALL_WASM` up to its `call r12`.
const CALL_WASM_ENTER: &[u8] = &[
    0x41, 0x57, 0x41, 0x56, 0x41, 0x55, 0x41, 0x54, 0x41, 0x53, 0x55, // push r15, r14, r13, r12, r11, rbp
    0x48, 0x89, 0xe5, // mov rbp, rsp
    0x49, 0x89, 0xff, 0x49, 0x89, 0xf6, 0x49, 0x89, 0xd5, 0x49, 0x89, 0xcc, // mov r15, rdi ... r12, rcx
    0x4c, 0x89, 0xef, // mov rdi, r13
    0x49, 0x83, 0xee, 0x08, 0x4d, 0x3b, 0xf7, 0x0f, 0x82, 0x89, 0, 0, 0, // sub r14, 8; cmp r14, r15; jb
    0x49, 0x8b, 0x36, // mov rsi, [r14]
    0x49, 0x83, 0xee, 0x08, 0x4d, 0x3b, 0xf7, 0x0f, 0x82, 0x79, 0, 0, 0, //
    0x49, 0x8b, 0x16, // mov rdx, [r14]
    0x49, 0x83, 0xee, 0x08, 0x4d, 0x3b, 0xf7, 0x0f, 0x82, 0x69, 0, 0, 0, //
    0x49, 0x8b, 0x0e, // mov rcx, [r14]
    0x49, 0x83, 0xee, 0x08, 0x4d, 0x3b, 0xf7, 0x0f, 0x82, 0x59, 0, 0, 0, //
    0x4d, 0x8b, 0x06, // mov r8, [r14]
    0x49, 0x83, 0xee, 0x08, 0x4d, 0x3b, 0xf7, 0x0f, 0x82, 0x49, 0, 0, 0, //
    0x4d, 0x8b, 0x0e, // mov r9, [r14]
    0x49, 0x83, 0xee, 0x08, 0x4d, 0x3b, 0xf7, 0x0f, 0x82, 0x39, 0, 0, 0, //
    0x4c, 0x89, 0xf0, 0x4c, 0x29, 0xf8, 0x48, 0x29, 0xc4, // rsp -= r14 - r15
    0x48, 0x83, 0xec, 0x08, // sub rsp, 8
    0x48, 0xb8, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x48, 0x21, 0xc4, // and rsp, -16
    0x48, 0x89, 0xe0, // mov rax, rsp
    0x4d, 0x8b, 0x1e, 0x4c, 0x89, 0x18, // mov r11, [r14]; mov [rax], r11
    0x49, 0x83, 0xee, 0x08, 0x48, 0x83, 0xc0, 0x08, // sub r14, 8; add rax, 8
    0x4d, 0x3b, 0xf7, 0x0f, 0x82, 0x05, 0, 0, 0, 0xe9, 0xe4, 0xff, 0xff, 0xff, // cmp r14, r15; jb; jmp
    0x48, 0xb8, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x48, 0x21, 0xc4, // and rsp, -16
    0x41, 0xff, 0xd4, // call r12
];

/// The code that follows the `call r12` of `CONSTRUCT_STACK_AND_CALL_WASM`.
pub(crate) const CALL_WASM_LEAVE: &[u8] =
    &[0x48, 0x89, 0xec, 0x5d, 0x41, 0x5b, 0x41, 0x5c, 0x41, 0x5d, 0x41, 0x5e, 0x41, 0x5f, 0xc3];

/// `run_on_alternative_stack` up to the `ret` that goes on at the address in the image.
const ALTERNATIVE_STACK_ENTER: &[u8] = &[
    0x41, 0x57, 0x41, 0x56, 0x41, 0x55, 0x41, 0x54, 0x53, 0x55, // push r15, r14, r13, r12, rbx, rbp
    0x48, 0x89, 0x67, 0xf0, // mov [rdi - 16], rsp
    0x48, 0x8d, 0x05, 0xb7, 0, 0, 0, 0x48, 0x89, 0x47, 0xe8, // lea rax, returning; mov [rdi - 24], rax
    0x48, 0x89, 0xf4, // mov rsp, rsi
    0xf3, 0x0f, 0x7e, 0x04, 0x24, 0x48, 0x83, 0xc4, 0x08, // movq xmm0, [rsp]; add rsp, 8
    0xf3, 0x0f, 0x7e, 0x0c, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x0f, 0x7e, 0x14, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x0f, 0x7e, 0x1c, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x0f, 0x7e, 0x24, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x0f, 0x7e, 0x2c, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x0f, 0x7e, 0x34, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x0f, 0x7e, 0x3c, 0x24, 0x48, 0x83, 0xc4, 0x08, // xmm7
    0xf3, 0x44, 0x0f, 0x7e, 0x04, 0x24, 0x48, 0x83, 0xc4, 0x08, // xmm8
    0xf3, 0x44, 0x0f, 0x7e, 0x0c, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x44, 0x0f, 0x7e, 0x14, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x44, 0x0f, 0x7e, 0x1c, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x44, 0x0f, 0x7e, 0x24, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x44, 0x0f, 0x7e, 0x2c, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x44, 0x0f, 0x7e, 0x34, 0x24, 0x48, 0x83, 0xc4, 0x08, //
    0xf3, 0x44, 0x0f, 0x7e, 0x3c, 0x24, 0x48, 0x83, 0xc4, 0x08, // xmm15
    0x5d, 0x58, 0x5b, 0x59, 0x5a, 0x5f, 0x5e, // pop rbp, rax, rbx, rcx, rdx, rdi, rsi
    0x41, 0x58, 0x41, 0x59, 0x41, 0x5a, 0x41, 0x5b, 0x41, 0x5c, 0x41, 0x5d, 0x41, 0x5e, 0x41,
    0x5f, // pop r8 ... r15
    0xc3,
];

/// `run_on_alternative_stack.returning`, the part to which the code on the other stack returns.
const ALTERNATIVE_STACK_LEAVE: &[u8] =
    &[0x48, 0x8b, 0x24, 0x24, 0x5d, 0x5b, 0x41, 0x5c, 0x41, 0x5d, 0x41, 0x5e, 0x41, 0x5f, 0xc3];

const PRESERVATION_CODE: &[u8] = &[
    0x48, 0x83, 0xec, 0x08, // sub rsp, 8
    0x50, 0x51, 0x52, 0x57, 0x56, 0x41, 0x50, 0x41, 0x51, 0x41, 0x52, // push rax, rcx, rdx, rdi, rsi, r8, r9, r10
    0xe8, 0, 0, 0, 0, // call get_boundary_register_preservation
    0x4c, 0x89, 0x38, 0x4c, 0x89, 0x70, 0x08, 0x4c, 0x89, 0x68, 0x10, // mov [rax], r15 ...
    0x4c, 0x89, 0x60, 0x18, 0x48, 0x89, 0x58, 0x20, // mov [rax + 24], r12; mov [rax + 32], rbx
    0x41, 0x5a, 0x41, 0x59, 0x41, 0x58, 0x5e, 0x5f, 0x5a, 0x59, 0x58, // pop them
    0x48, 0x83, 0xc4, 0x08, // add rsp, 8
    0xff, 0xe0, // jmp rax
];

/// `wasmtime_fiber_switch`. Up to `mov rsp, rax` it runs on the stack that is left, then on the one that is entered.
const FIBER_SWITCH_CODE: &[u8] = &[
    0x55, 0x53, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, // push rbp, rbx, r12, r13, r14, r15
    0x48, 0x8b, 0x47, 0xf0, 0x48, 0x89, 0x67, 0xf0, // mov rax, [rdi - 16]; mov [rdi - 16], rsp
    0x48, 0x89, 0xc4, // mov rsp, rax
    0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5b, 0x5d, 0xc3, // pop them; ret
];

const fn rsp(saved: &'static [Reg]) -> Layout {
    Layout::Frame { base: Base::In(x64::RSP), skip: 0, saved }
}

const fn skip(bytes: u64) -> Layout {
    Layout::Frame { base: Base::In(x64::RSP), skip: bytes, saved: &[] }
}

const RBP_R11_R15: &[Reg] = &[x64::RBP, x64::R11, x64::R12, x64::R13, x64::R14, x64::R15];
const RBP_RBX_R15: &[Reg] = &[x64::RBP, x64::RBX, x64::R12, x64::R13, x64::R14, x64::R15];
const R11_R15: &[Reg] = &[x64::R11, x64::R12, x64::R13, x64::R14, x64::R15];
const RBX_R15: &[Reg] = &[x64::RBX, x64::R12, x64::R13, x64::R14, x64::R15];
const R12_R15: &[Reg] = &[x64::R12, x64::R13, x64::R14, x64::R15];
const R13_R15: &[Reg] = &[x64::R13, x64::R14, x64::R15];
const R14_R15: &[Reg] = &[x64::R14, x64::R15];
const R15: &[Reg] = &[x64::R15];
const RBP: &[Reg] = &[x64::RBP];
const RBX_RBP: &[Reg] = &[x64::RBX, x64::RBP];
const R12_RBP: &[Reg] = &[x64::R12, x64::RBX, x64::RBP];
const R13_RBP: &[Reg] = &[x64::R13, x64::R12, x64::RBX, x64::RBP];
const R14_RBP: &[Reg] = &[x64::R14, x64::R13, x64::R12, x64::RBX, x64::RBP];
const R15_RBP: &[Reg] = &[x64::R15, x64::R14, x64::R13, x64::R12, x64::RBX, x64::RBP];

static ROUTINES: &[Routine] = &[
    Routine {
        name: CALL_WASM,
        code: CALL_WASM_ENTER,
        hole: (0, 0),
        layouts: &[
            (0x00, rsp(&[])),
            (0x02, rsp(R15)),
            (0x04, rsp(R14_R15)),
            (0x06, rsp(R13_R15)),
            (0x08, rsp(R12_R15)),
            (0x0a, rsp(R11_R15)),
            (0x0b, rsp(RBP_R11_R15)),
            (0x0e, Layout::Frame { base: Base::In(x64::RBP), skip: 0, saved: RBP_R11_R15 }),
        ],
        returns_to: None,
    },
    Routine {
        name: CALL_WASM,
        code: CALL_WASM_LEAVE,
        hole: (0, 0),
        layouts: &[
            (0x00, Layout::Frame { base: Base::In(x64::RBP), skip: 0, saved: RBP_R11_R15 }),
            (0x03, rsp(RBP_R11_R15)),
            (0x04, rsp(R11_R15)),
            (0x06, rsp(R12_R15)),
            (0x08, rsp(R13_R15)),
            (0x0a, rsp(R14_R15)),
            (0x0c, rsp(R15)),
            (0x0e, rsp(&[])),
        ],
        returns_to: Some(0),
    },
    Routine {
        name: ALTERNATIVE_STACK,
        code: ALTERNATIVE_STACK_ENTER,
        hole: (0, 0),
        layouts: &[
            (0x00, rsp(&[])),
            (0x02, rsp(R15)),
            (0x04, rsp(R14_R15)),
            (0x06, rsp(R13_R15)),
            (0x08, rsp(R12_R15)),
            (0x09, rsp(RBX_R15)),
            (0x0a, rsp(RBP_RBX_R15)),
            (0x1c, Layout::Image(0)),
            (0x25, Layout::Image(1)),
            (0x2e, Layout::Image(2)),
            (0x37, Layout::Image(3)),
            (0x40, Layout::Image(4)),
            (0x49, Layout::Image(5)),
            (0x52, Layout::Image(6)),
            (0x5b, Layout::Image(7)),
            (0x64, Layout::Image(8)),
            (0x6e, Layout::Image(9)),
            (0x78, Layout::Image(10)),
            (0x82, Layout::Image(11)),
            (0x8c, Layout::Image(12)),
            (0x96, Layout::Image(13)),
            (0xa0, Layout::Image(14)),
            (0xaa, Layout::Image(15)),
            (0xb4, Layout::Image(16)),
            (0xb5, Layout::Image(17)),
            (0xb6, Layout::Image(18)),
            (0xb7, Layout::Image(19)),
            (0xb8, Layout::Image(20)),
            (0xb9, Layout::Image(21)),
            (0xba, Layout::Image(22)),
            (0xbb, Layout::Image(23)),
            (0xbd, Layout::Image(24)),
            (0xbf, Layout::Image(25)),
            (0xc1, Layout::Image(26)),
            (0xc3, Layout::Image(27)),
            (0xc5, Layout::Image(28)),
            (0xc7, Layout::Image(29)),
            (0xc9, Layout::Image(30)),
            (0xcb, Layout::Image(31)),
        ],
        returns_to: None,
    },
    Routine {
        name: ALTERNATIVE_STACK,
        code: ALTERNATIVE_STACK_LEAVE,
        hole: (0, 0),
        layouts: &[
            (0x00, Layout::Frame { base: Base::At(x64::RSP), skip: 0, saved: RBP_RBX_R15 }),
            (0x04, rsp(RBP_RBX_R15)),
            (0x05, rsp(RBX_R15)),
            (0x06, rsp(R12_R15)),
            (0x08, rsp(R13_R15)),
            (0x0a, rsp(R14_R15)),
            (0x0c, rsp(R15)),
            (0x0e, rsp(&[])),
        ],
        returns_to: Some(0),
    },
    // This routine saves argument registers only, which no caller needs back. It leaves callee-saved registers as
    // they are.
    Routine {
        name: PRESERVATION,
        code: PRESERVATION_CODE,
        hole: (0x10, 4),
        layouts: &[
            (0x00, skip(0)),
            (0x04, skip(8)),
            (0x05, skip(16)),
            (0x06, skip(24)),
            (0x07, skip(32)),
            (0x08, skip(40)),
            (0x09, skip(48)),
            (0x0b, skip(56)),
            (0x0d, skip(64)),
            (0x0f, skip(72)),
            (0x29, skip(64)),
            (0x2b, skip(56)),
            (0x2d, skip(48)),
            (0x2e, skip(40)),
            (0x2f, skip(32)),
            (0x30, skip(24)),
            (0x31, skip(16)),
            (0x32, skip(8)),
            (0x36, skip(0)),
        ],
        returns_to: Some(0x14),
    },
    Routine {
        name: FIBER_SWITCH,
        code: FIBER_SWITCH_CODE,
        hole: (0, 0),
        layouts: &[
            (0x00, rsp(&[])),
            (0x01, rsp(RBP)),
            (0x02, rsp(RBX_RBP)),
            (0x04, rsp(R12_RBP)),
            (0x06, rsp(R13_RBP)),
            (0x08, rsp(R14_RBP)),
            (0x0a, rsp(R15_RBP)),
            (0x17, rsp(R14_RBP)),
            (0x19, rsp(R13_RBP)),
            (0x1b, rsp(R12_RBP)),
            (0x1d, rsp(RBX_RBP)),
            (0x1e, rsp(RBP)),
            (0x1f, rsp(&[])),
        ],
        returns_to: None,
    },
];

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

/// Where the instructions of each routine begin.
static BOUNDARIES: LazyLock<Vec<Vec<usize>>> = LazyLock::new(|| {
    let starts = |routine: &Routine| -> Vec<usize> {
        let decoder = iced_x86::Decoder::new(64, routine.code, iced_x86::DecoderOptions::NONE);
        decoder.into_iter().map(|i| i.ip() as usize).collect()
    };
    ROUTINES.iter().map(starts).collect()
});

/// The routine that `at` is in, the layout there, and the offset of `at` in the routine.
fn recognise(at: CodeAddress, memory: &dyn Memory) -> Option<(&'static Routine, Layout, usize)> {
    let pc = at.raw();
    let mut window = vec![0; 2 * WINDOW];
    let there = memory.read_around(pc, WINDOW, &mut window);
    let (window, before) = (window.get(there.clone())?, WINDOW.checked_sub(there.start)?);
    for (routine, starts) in ROUTINES.iter().zip(BOUNDARIES.iter()) {
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

/// A stretch of native code that is one of the routines known here.
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

    /// The stretch of the routine that `at` is in, if it is one of those known here.
    pub fn at(at: CodeAddress, memory: &dyn Memory) -> Option<Stretch> {
        let (routine, _, offset) = recognise(at, memory)?;
        Some(Stretch::new(routine, at.raw().wrapping_sub(offset as u64)))
    }

    /// The stretches of all known routines in `code`, which is loaded at `base`, in ascending order.
    pub fn all(code: &[u8], base: u64) -> Vec<Stretch> {
        let mut found = Vec::new();
        for (start, window) in code.windows(4).enumerate() {
            for routine in ROUTINES {
                // No routine has its hole in the first four bytes.
                if routine.code.starts_with(window) && routine.is_at(code, start) {
                    found.push(Stretch::new(routine, base.wrapping_add(start as u64)));
                }
            }
        }
        found
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

/// Unwinds native code of runtimes that has no call frame information, by its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognisedUnwinder;

impl RecognisedUnwinder {
    /// Name of the routine that `at` is in, if it is one of those known here.
    pub fn stub_name(&self, at: CodeAddress, memory: &dyn Memory) -> Option<&'static str> {
        recognise(at, memory).map(|(routine, ..)| routine.name)
    }
}

impl Unwinder for RecognisedUnwinder {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        // All of these routines are code of x86-64.
        if at.registers.machine() != Machine::X64 {
            return None;
        }
        let Some((routine, layout, _)) = recognise(at.address, memory) else {
            return clone(at, memory).or_else(|| musl_clone(at, memory)).or_else(|| fiber_start(at, memory));
        };
        let next = match layout {
            Layout::Frame { base, skip, saved } => frame(at, base, skip, saved, memory),
            Layout::Image(words) => image(at, words, memory),
        };
        let mut next = next.unwrap_or_else(Next::Lost);
        // A fiber that has not run yet goes on at the beginning of its code, and no call stands before that address.
        if let Next::Caller(caller, _) = &mut next
            && routine.name == FIBER_SWITCH
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

/// `mov rdi, r12; mov rsi, rbp; call rbx`, the code with which a fiber of Wasmtime begins (`stackswitch/x86_64.rs`)
/// in all versions.
const FIBER_START: [u8; 8] = [0x4c, 0x89, 0xe7, 0x48, 0x89, 0xee, 0xff, 0xd3];

/// Whether `pc` is the address to which a fiber's function returns.
pub fn is_fiber_start(pc: u64, memory: &dyn Memory) -> bool {
    let mut code = [0; FIBER_START.len()];
    let start = pc.checked_sub(FIBER_START.len() as u64);
    start.is_some_and(|start| memory.read(start, &mut code).is_ok()) && code == FIBER_START
}

/// Steps to the frame that resumed a fiber. The stack pointer of that frame is in the word at which the fiber's stack
/// begins, and points to the registers that the switch saved.
fn fiber_start(at: &Cursor, memory: &dyn Memory) -> Option<Next> {
    const SAVED: &[Reg] = &[x64::R15, x64::R14, x64::R13, x64::R12, x64::RBX, x64::RBP];
    if !at.address.is_return() || !is_fiber_start(at.address.raw(), memory) {
        return None;
    }
    Some(frame(at, Base::At(x64::RSP), 0, SAVED, memory).unwrap_or_else(Next::Lost))
}

fn known(registers: &Registers, reg: Reg) -> Result<u64, UnwindError> {
    registers.get(reg).ok_or(UnwindError::UnknownRegister { register: reg.name() })
}

fn frame(at: &Cursor, base: Base, skip: u64, saved: &[Reg], memory: &dyn Memory) -> Result<Next, UnwindError> {
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
fn image(at: &Cursor, words: usize, memory: &dyn Memory) -> Result<Next, UnwindError> {
    let mut slot = known(&at.registers, x64::RSP)?;
    let mut caller = at.registers.clone();
    for &reg in SWITCH_BLOCK.get(words..).unwrap_or(&[]) {
        caller.restore(reg, memory.read_u64(slot)?, slot);
        slot = slot.wrapping_add(8);
    }
    let pc = memory.read_u64(slot)?;
    caller.restore(x64::RIP, pc, slot);
    caller.set(x64::RSP, slot.wrapping_add(8));
    Ok(Next::Caller(Cursor { address: CodeAddress::Exact(pc), registers: caller }, Trust::Recognised))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::{Pieces, cursor};
    use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};
    use std::collections::HashMap;

    const CODE: u64 = 0x10_0040;
    const CALLER: u64 = 0x40_0000;
    const ENTRY_SP: u64 = 0x8_0800;
    const IMAGE_START: u64 = 0x9_0100;
    const IMAGE_END: u64 = 0x9_0800;

    /// Executes the instructions that the routines consist of. Only their effect on the stack matters, so arithmetic
    /// that decides nothing is left out. `registers` holds values by state-map number.
    struct Processor {
        registers: HashMap<Reg, u64>,
        stack: HashMap<u64, u64>,
        pc: u64,
    }

    fn reg(r: Register) -> Reg {
        x64::TABLE[if r.is_xmm() { 16 } else { 0 } + r.number()].reg
    }

    impl Processor {
        fn sp(&self) -> u64 {
            self.registers[&x64::RSP]
        }

        fn push(&mut self, value: u64) {
            let sp = self.sp() - 8;
            self.registers.insert(x64::RSP, sp);
            self.stack.insert(sp, value);
        }

        fn pop(&mut self) -> u64 {
            let sp = self.sp();
            self.registers.insert(x64::RSP, sp + 8);
            self.stack[&sp]
        }

        fn address(&self, i: &Instruction) -> u64 {
            let base = if i.is_ip_rel_memory_operand() { 0 } else { self.registers[&reg(i.memory_base())] };
            base.wrapping_add(i.memory_displacement64())
        }

        /// Executes one instruction. A call returns at once, with its callee-saved registers intact.
        fn run(&mut self, i: &Instruction) {
            self.pc = i.next_ip();
            match i.code() {
                Code::Push_r64 => self.push(self.registers[&reg(i.op0_register())]),
                Code::Pop_r64 => {
                    let value = self.pop();
                    self.registers.insert(reg(i.op0_register()), value);
                }
                Code::Mov_rm64_r64 if i.op0_register() != Register::None => {
                    self.registers.insert(reg(i.op0_register()), self.registers[&reg(i.op1_register())]);
                }
                Code::Mov_rm64_r64 => {
                    self.stack.insert(self.address(i), self.registers[&reg(i.op1_register())]);
                }
                Code::Mov_r64_rm64 | Code::Movq_xmm_xmmm64 => {
                    let value = self.stack.get(&self.address(i)).copied().unwrap_or(0);
                    self.registers.insert(reg(i.op0_register()), value);
                }
                Code::Lea_r64_m => {
                    self.registers.insert(reg(i.op0_register()), self.address(i));
                }
                Code::Add_rm64_imm8 | Code::Sub_rm64_imm8 => {
                    let by =
                        if i.code() == Code::Add_rm64_imm8 { i.immediate(1) } else { i.immediate(1).wrapping_neg() };
                    let r = reg(i.op0_register());
                    self.registers.insert(r, self.registers[&r].wrapping_add(by));
                }
                // rsp &= -16
                Code::And_rm64_r64 => {
                    self.registers.insert(x64::RSP, self.sp() & !15);
                }
                Code::Retnq => self.pc = self.pop(),
                Code::Jmp_rm64 => self.pc = self.registers[&x64::RAX],
                // Calls return at once. Branches are not taken, so that every instruction is executed.
                _ => {}
            }
        }
    }

    const CALLEE_SAVED: [Reg; 6] = [x64::RBX, x64::RBP, x64::R12, x64::R13, x64::R14, x64::R15];

    /// A page of code with `code` at [`CODE`].
    fn code_memory(code: &[u8]) -> Pieces {
        page(CODE & 0xfff, code)
    }

    fn page(offset: u64, code: &[u8]) -> Pieces {
        let mut bytes = vec![0xcc; 0x1000];
        bytes[offset as usize..offset as usize + code.len()].copy_from_slice(code);
        Pieces::default().bytes(CODE & !0xfff, &bytes)
    }

    /// Runs `code` from its first instruction and unwinds before each instruction. `check` gets the instruction's
    /// offset and the caller that was found.
    fn at_each_instruction(code: &[u8], machine: &mut Processor, check: impl Fn(u64, &Cursor)) {
        let mut asked = 0;
        for i in Decoder::with_ip(64, code, CODE, DecoderOptions::NONE) {
            let mut memory = code_memory(code);
            for (&address, &word) in &machine.stack {
                memory = memory.word(address, word);
            }
            let at = cursor(i.ip(), &machine.registers.iter().map(|(&r, &v)| (r, v)).collect::<Vec<_>>());
            let next = RecognisedUnwinder.step(&at, &memory);
            let Some(Next::Caller(caller, Trust::Recognised)) = next else { panic!("{:#x}: {next:?}", i.ip() - CODE) };
            check(i.ip() - CODE, &caller);
            described(&at, &memory, &caller);
            asked += 1;
            machine.run(&i);
        }
        assert!(asked >= 8);
    }

    /// Finds the caller as a debugger would, from the description of a stretch, and compares it with the caller that
    /// the layouts give.
    fn described(at: &Cursor, memory: &Pieces, caller: &Cursor) {
        let stretch = Stretch::at(at.address, memory).unwrap();
        let offset = (at.address.raw() - stretch.start) as u32;
        assert!(offset < stretch.len);
        let (mut cfa, mut rules) = (FrameChange::Cfa(x64::RSP, 8), HashMap::new());
        for &(_, change) in stretch.frame.iter().filter(|(from, _)| *from <= offset) {
            match change {
                FrameChange::Cfa(..) | FrameChange::CfaDeref(..) => cfa = change,
                FrameChange::Saved(reg, _) | FrameChange::Same(reg) | FrameChange::Undefined(reg) => {
                    rules.insert(reg, change);
                }
            }
        }
        if rules.get(&x64::RIP) == Some(&FrameChange::Undefined(x64::RIP)) {
            assert!(!caller.address.is_return());
            return;
        }
        let word = |address: u64| memory.read_u64(address).unwrap();
        let cfa = match cfa {
            FrameChange::Cfa(reg, n) => at.registers.get(reg).unwrap().wrapping_add_signed(i64::from(n)),
            FrameChange::CfaDeref(reg, n) => word(at.registers.get(reg).unwrap()) + u64::from(n),
            other => panic!("{other:?}"),
        };
        assert_eq!(caller.registers.sp(), Some(cfa), "+{offset:#x}");
        assert_eq!(word(cfa - 8), caller.address.raw(), "+{offset:#x}");
        for reg in CALLEE_SAVED {
            let value = match rules.get(&reg) {
                Some(FrameChange::Saved(_, n)) => word(cfa.wrapping_add_signed(i64::from(*n))),
                None | Some(FrameChange::Same(_)) => at.registers.get(reg).unwrap(),
                other => panic!("{other:?}"),
            };
            assert_eq!(Some(value), caller.registers.get(reg), "+{offset:#x} {reg}");
        }
    }

    fn entered() -> Processor {
        let mut registers: HashMap<Reg, u64> =
            x64::TABLE[..32].iter().map(|row| (row.reg, 0x1000 + number(row.reg))).collect();
        registers.insert(x64::RSP, ENTRY_SP);
        // The routines follow these pointers.
        for r in [x64::RAX, x64::RDI] {
            registers.insert(r, IMAGE_END);
        }
        registers.insert(x64::RSI, IMAGE_START);
        let stack = HashMap::from([(ENTRY_SP, CALLER)]);
        Processor { registers, stack, pc: CODE }
    }

    fn number(reg: Reg) -> u64 {
        reg.index() as u64
    }

    fn is_native_caller(offset: u64, caller: &Cursor) {
        assert_eq!(caller.address, CodeAddress::Return(CALLER), "{offset:#x}");
        assert_eq!(caller.registers.sp(), Some(ENTRY_SP + 8), "{offset:#x}");
        for r in CALLEE_SAVED {
            assert_eq!(caller.registers.get(r), Some(0x1000 + number(r)), "{offset:#x} {r}");
        }
        assert_eq!(caller.registers.get(x64::RDI), None);
    }

    #[test]
    fn call_wasm_is_right_at_every_instruction() {
        let code = [CALL_WASM_ENTER, CALL_WASM_LEAVE].concat();
        at_each_instruction(&code, &mut entered(), is_native_caller);
    }

    #[test]
    fn register_preservation_is_right_at_every_instruction() {
        at_each_instruction(PRESERVATION_CODE, &mut entered(), is_native_caller);
        // The linker fills in the target of the call.
        let mut linked = PRESERVATION_CODE.to_vec();
        linked[0x10..0x14].copy_from_slice(&[0x68, 0x9e, 0xfd, 0xff]);
        at_each_instruction(&linked, &mut entered(), is_native_caller);
    }

    #[test]
    fn the_alternative_stack_is_right_at_every_instruction() {
        let mut machine = entered();
        for (i, r) in (0..).zip(SWITCH_BLOCK) {
            machine.stack.insert(IMAGE_START + 8 * i, 0x2000 + number(r));
        }
        const GUEST: u64 = 0x50_0000;
        machine.stack.insert(IMAGE_START + 8 * 31, GUEST);
        at_each_instruction(ALTERNATIVE_STACK_ENTER, &mut machine, |offset, caller| {
            if offset < 0x1c {
                return is_native_caller(offset, caller);
            }
            assert_eq!(caller.address, CodeAddress::Exact(GUEST), "{offset:#x}");
            assert_eq!(caller.registers.sp(), Some(IMAGE_START + 8 * 32), "{offset:#x}");
            for r in SWITCH_BLOCK {
                assert_eq!(caller.registers.get(r), Some(0x2000 + number(r)), "{offset:#x} {r}");
            }
        });
        // The guest returns through the word at -24 to `returning`, with rsp at the word behind that one.
        assert_eq!(machine.pc, GUEST);
        let returning = CODE + ALTERNATIVE_STACK_ENTER.len() as u64;
        assert_eq!(machine.stack[&(IMAGE_END - 24)], returning);
        machine.registers.insert(x64::RSP, IMAGE_END - 16);
        machine.pc = returning;
        at_each_instruction(ALTERNATIVE_STACK_LEAVE, &mut machine, is_native_caller);
        assert_eq!(machine.pc, CALLER);
    }

    #[test]
    fn the_fiber_switch_is_right_at_every_instruction() {
        let mut machine = entered();
        // The stack that is entered holds the registers that were saved there, from r15 to rbp, and the address to go
        // on at.
        const OTHER: u64 = 0x9_0100;
        const BEHIND: u64 = 0x50_0000;
        machine.stack.insert(IMAGE_END - 16, OTHER);
        for (i, r) in (0..).zip(R15_RBP) {
            machine.stack.insert(OTHER + 8 * i, 0x2000 + number(*r));
        }
        machine.stack.insert(OTHER + 48, BEHIND);
        at_each_instruction(FIBER_SWITCH_CODE, &mut machine, |offset, caller| {
            if offset <= 0x12 {
                return is_native_caller(offset, caller);
            }
            assert_eq!(caller.address, CodeAddress::Return(BEHIND), "{offset:#x}");
            assert_eq!(caller.registers.sp(), Some(OTHER + 56), "{offset:#x}");
            for r in R15_RBP {
                assert_eq!(caller.registers.get(*r), Some(0x2000 + number(*r)), "{offset:#x} {r}");
            }
        });
        assert_eq!(machine.pc, BEHIND);
        assert_eq!(machine.stack[&(IMAGE_END - 16)], ENTRY_SP - 48);
    }

    #[test]
    fn return_addresses_are_taken_only_behind_a_call() {
        let code = [CALL_WASM_ENTER, CALL_WASM_LEAVE].concat();
        let memory = code_memory(&code);
        let name = |at| RecognisedUnwinder.stub_name(at, &memory);
        let behind = CODE + CALL_WASM_ENTER.len() as u64;
        assert_eq!(name(CodeAddress::Return(behind)), Some("call_wasm trampoline (wasmer singlepass)"));
        assert_eq!(name(CodeAddress::Exact(behind)), Some("call_wasm trampoline (wasmer singlepass)"));
        assert_eq!(name(CodeAddress::Return(behind + 3)), None);
        assert_eq!(name(CodeAddress::Exact(behind + 1)), None);
        let alternative = code_memory(ALTERNATIVE_STACK_LEAVE);
        let at = CodeAddress::Return(CODE);
        assert_eq!(RecognisedUnwinder.stub_name(at, &alternative), Some("run_on_alternative_stack"));
    }

    #[test]
    fn all_routines_are_found_and_begin_where_their_callers_are_looked_up() {
        let mut code = vec![0xcc; 5];
        code.extend([CALL_WASM_ENTER, CALL_WASM_LEAVE].concat());
        code.extend([0xcc; 3]);
        let found: Vec<(u64, u64)> = Stretch::all(&code, CODE)
            .into_iter()
            .map(|s| (s.start - CODE, s.start + u64::from(s.len) - CODE))
            .collect();
        let behind = 5 + CALL_WASM_ENTER.len() as u64;
        // The second stretch begins in the last byte of the call.
        assert_eq!(found, [(5, behind), (behind - 1, code.len() as u64 - 3)]);
        assert!(Stretch::all(&[], 0).is_empty());
    }

    #[test]
    fn code_at_the_edges_of_a_mapping_is_recognised() {
        // Nothing is readable before and after the page.
        let base = CODE & !0xfff;
        let memory = page(0, CALL_WASM_LEAVE);
        assert!(RecognisedUnwinder.stub_name(CodeAddress::Return(base), &memory).is_some());
        assert!(RecognisedUnwinder.stub_name(CodeAddress::Exact(base + 14), &memory).is_some());
        let at_end = 0x1000 - CALL_WASM_LEAVE.len() as u64;
        let memory = page(at_end, CALL_WASM_LEAVE);
        assert!(RecognisedUnwinder.stub_name(CodeAddress::Return(base + at_end), &memory).is_some());
        assert!(RecognisedUnwinder.stub_name(CodeAddress::Exact(3), &memory).is_none());
    }

    #[test]
    fn a_newborn_thread_is_at_its_bottom_and_its_parent_is_not() {
        let mut code = CLONE.to_vec();
        code[CLONE_HOLE] = 0x18;
        let memory = code_memory(&code).word(ENTRY_SP, CALLER);
        let at = |offset: u64, rax: u64| {
            RecognisedUnwinder.step(&cursor(CODE + offset, &[(x64::RSP, ENTRY_SP), (x64::RAX, rax)]), &memory)
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
        assert_eq!(RecognisedUnwinder.stub_name(CodeAddress::Exact(CODE + 2), &memory), None);
        code[3] ^= 1;
        let other = code_memory(&code).word(ENTRY_SP, CALLER);
        let at = cursor(CODE + 2, &[(x64::RSP, ENTRY_SP), (x64::RAX, 0)]);
        assert!(RecognisedUnwinder.step(&at, &other).is_none());
    }

    #[test]
    fn an_unknown_frame_register_is_named() {
        let memory = code_memory(CALL_WASM_LEAVE);
        let mut at = cursor(CODE, &[(x64::RSP, ENTRY_SP)]);
        at.address = CodeAddress::Return(CODE);
        let next = RecognisedUnwinder.step(&at, &memory);
        let Some(Next::Lost(e)) = next else { panic!("{next:?}") };
        assert_eq!(e, UnwindError::UnknownRegister { register: "rbp" });
    }
}
