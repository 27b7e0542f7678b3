//! Native routines of the runtime that have no call frame information.
//!
//! - `CONSTRUCT_STACK_AND_CALL_WASM` (codegen_x64.rs) is assembled at run time into an anonymous mapping.
//! - `run_on_alternative_stack` and `register_preservation_trampoline` (image-loading-linux-x86-64.s) are assembled
//!   without CFI into the executable, whose symbols may be stripped.

use crate::arch::{Reg, x64};
use crate::state::x64::SWITCH_BLOCK;
use crate::unwind::recognised::{Base, Layout, Routine, Routines};

/// What this runtime knows of its native code.
pub const ROUTINES: Routines = Routines { list: LIST, beginning: None };

const CALL_WASM: &str = "call_wasm trampoline (wasmer singlepass)";
const ALTERNATIVE_STACK: &str = "run_on_alternative_stack";
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

const RBP_R11_R15: &[Reg] = &[x64::RBP, x64::R11, x64::R12, x64::R13, x64::R14, x64::R15];
const RBP_RBX_R15: &[Reg] = &[x64::RBP, x64::RBX, x64::R12, x64::R13, x64::R14, x64::R15];
const R11_R15: &[Reg] = &[x64::R11, x64::R12, x64::R13, x64::R14, x64::R15];
const RBX_R15: &[Reg] = &[x64::RBX, x64::R12, x64::R13, x64::R14, x64::R15];
const R12_R15: &[Reg] = &[x64::R12, x64::R13, x64::R14, x64::R15];
const R13_R15: &[Reg] = &[x64::R13, x64::R14, x64::R15];
const R14_R15: &[Reg] = &[x64::R14, x64::R15];
const R15: &[Reg] = &[x64::R15];

/// The image of a stack from which the first `loaded` registers are loaded already.
const fn image(loaded: usize) -> Layout {
    Layout::Image(SWITCH_BLOCK.split_at(loaded).1)
}

const LIST: &[Routine] = &[
    Routine {
        name: CALL_WASM,
        code: CALL_WASM_ENTER,
        hole: (0, 0),
        layouts: &[
            (0x00, Layout::saved(&[])),
            (0x02, Layout::saved(R15)),
            (0x04, Layout::saved(R14_R15)),
            (0x06, Layout::saved(R13_R15)),
            (0x08, Layout::saved(R12_R15)),
            (0x0a, Layout::saved(R11_R15)),
            (0x0b, Layout::saved(RBP_R11_R15)),
            (0x0e, Layout::Frame { base: Base::In(x64::RBP), skip: 0, saved: RBP_R11_R15 }),
        ],
        returns_to: None,
        enters_new_code: false,
    },
    Routine {
        name: CALL_WASM,
        code: CALL_WASM_LEAVE,
        hole: (0, 0),
        layouts: &[
            (0x00, Layout::Frame { base: Base::In(x64::RBP), skip: 0, saved: RBP_R11_R15 }),
            (0x03, Layout::saved(RBP_R11_R15)),
            (0x04, Layout::saved(R11_R15)),
            (0x06, Layout::saved(R12_R15)),
            (0x08, Layout::saved(R13_R15)),
            (0x0a, Layout::saved(R14_R15)),
            (0x0c, Layout::saved(R15)),
            (0x0e, Layout::saved(&[])),
        ],
        returns_to: Some(0),
        enters_new_code: false,
    },
    Routine {
        name: ALTERNATIVE_STACK,
        code: ALTERNATIVE_STACK_ENTER,
        hole: (0, 0),
        layouts: &[
            (0x00, Layout::saved(&[])),
            (0x02, Layout::saved(R15)),
            (0x04, Layout::saved(R14_R15)),
            (0x06, Layout::saved(R13_R15)),
            (0x08, Layout::saved(R12_R15)),
            (0x09, Layout::saved(RBX_R15)),
            (0x0a, Layout::saved(RBP_RBX_R15)),
            (0x1c, image(0)),
            (0x25, image(1)),
            (0x2e, image(2)),
            (0x37, image(3)),
            (0x40, image(4)),
            (0x49, image(5)),
            (0x52, image(6)),
            (0x5b, image(7)),
            (0x64, image(8)),
            (0x6e, image(9)),
            (0x78, image(10)),
            (0x82, image(11)),
            (0x8c, image(12)),
            (0x96, image(13)),
            (0xa0, image(14)),
            (0xaa, image(15)),
            (0xb4, image(16)),
            (0xb5, image(17)),
            (0xb6, image(18)),
            (0xb7, image(19)),
            (0xb8, image(20)),
            (0xb9, image(21)),
            (0xba, image(22)),
            (0xbb, image(23)),
            (0xbd, image(24)),
            (0xbf, image(25)),
            (0xc1, image(26)),
            (0xc3, image(27)),
            (0xc5, image(28)),
            (0xc7, image(29)),
            (0xc9, image(30)),
            (0xcb, image(31)),
        ],
        returns_to: None,
        enters_new_code: false,
    },
    Routine {
        name: ALTERNATIVE_STACK,
        code: ALTERNATIVE_STACK_LEAVE,
        hole: (0, 0),
        layouts: &[
            (0x00, Layout::Frame { base: Base::At(x64::RSP), skip: 0, saved: RBP_RBX_R15 }),
            (0x04, Layout::saved(RBP_RBX_R15)),
            (0x05, Layout::saved(RBX_R15)),
            (0x06, Layout::saved(R12_R15)),
            (0x08, Layout::saved(R13_R15)),
            (0x0a, Layout::saved(R14_R15)),
            (0x0c, Layout::saved(R15)),
            (0x0e, Layout::saved(&[])),
        ],
        returns_to: Some(0),
        enters_new_code: false,
    },
    // This routine saves argument registers only, which no caller needs back. It leaves callee-saved registers as
    // they are.
    Routine {
        name: PRESERVATION,
        code: PRESERVATION_CODE,
        hole: (0x10, 4),
        layouts: &[
            (0x00, Layout::skip(0)),
            (0x04, Layout::skip(8)),
            (0x05, Layout::skip(16)),
            (0x06, Layout::skip(24)),
            (0x07, Layout::skip(32)),
            (0x08, Layout::skip(40)),
            (0x09, Layout::skip(48)),
            (0x0b, Layout::skip(56)),
            (0x0d, Layout::skip(64)),
            (0x0f, Layout::skip(72)),
            (0x29, Layout::skip(64)),
            (0x2b, Layout::skip(56)),
            (0x2d, Layout::skip(48)),
            (0x2e, Layout::skip(40)),
            (0x2f, Layout::skip(32)),
            (0x30, Layout::skip(24)),
            (0x31, Layout::skip(16)),
            (0x32, Layout::skip(8)),
            (0x36, Layout::skip(0)),
        ],
        returns_to: Some(0x14),
        enters_new_code: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::CodeAddress;
    use crate::unwind::recognised::RecognisedUnwinder;
    use crate::unwind::recognised::emulator::{
        CALLER, CODE, ENTRY_SP, IMAGE_END, IMAGE_START, at_each_instruction, code_memory, entered, is_native_caller,
        page,
    };
    use crate::unwind::testing::cursor;
    use crate::unwind::{Next, UnwindError, Unwinder};

    fn unwinder() -> RecognisedUnwinder {
        crate::runtime::all::recognised()
    }

    #[test]
    fn call_wasm_is_right_at_every_instruction() {
        let code = [CALL_WASM_ENTER, CALL_WASM_LEAVE].concat();
        at_each_instruction(&unwinder(), &code, &mut entered(), is_native_caller);
    }

    #[test]
    fn register_preservation_is_right_at_every_instruction() {
        at_each_instruction(&unwinder(), PRESERVATION_CODE, &mut entered(), is_native_caller);
        // The linker fills in the target of the call.
        let mut linked = PRESERVATION_CODE.to_vec();
        linked[0x10..0x14].copy_from_slice(&[0x68, 0x9e, 0xfd, 0xff]);
        at_each_instruction(&unwinder(), &linked, &mut entered(), is_native_caller);
    }

    #[test]
    fn the_alternative_stack_is_right_at_every_instruction() {
        let mut machine = entered();
        for (i, r) in (0..).zip(SWITCH_BLOCK) {
            machine.stack.insert(IMAGE_START + 8 * i, 0x2000 + r.index() as u64);
        }
        const GUEST: u64 = 0x50_0000;
        machine.stack.insert(IMAGE_START + 8 * 31, GUEST);
        at_each_instruction(&unwinder(), ALTERNATIVE_STACK_ENTER, &mut machine, |offset, caller| {
            if offset < 0x1c {
                return is_native_caller(offset, caller);
            }
            assert_eq!(caller.address, CodeAddress::Exact(GUEST), "{offset:#x}");
            assert_eq!(caller.registers.sp(), Some(IMAGE_START + 8 * 32), "{offset:#x}");
            for r in SWITCH_BLOCK {
                assert_eq!(caller.registers.get(r), Some(0x2000 + r.index() as u64), "{offset:#x} {r}");
            }
        });
        // The guest returns through the word at -24 to `returning`, with rsp at the word behind that one.
        assert_eq!(machine.pc, GUEST);
        let returning = CODE + ALTERNATIVE_STACK_ENTER.len() as u64;
        assert_eq!(machine.stack[&(IMAGE_END - 24)], returning);
        machine.registers.insert(x64::RSP, IMAGE_END - 16);
        machine.pc = returning;
        at_each_instruction(&unwinder(), ALTERNATIVE_STACK_LEAVE, &mut machine, is_native_caller);
        assert_eq!(machine.pc, CALLER);
    }

    #[test]
    fn return_addresses_are_taken_only_behind_a_call() {
        let code = [CALL_WASM_ENTER, CALL_WASM_LEAVE].concat();
        let memory = code_memory(&code);
        let name = |at| unwinder().stub_name(at, &memory);
        let behind = CODE + CALL_WASM_ENTER.len() as u64;
        assert_eq!(name(CodeAddress::Return(behind)), Some("call_wasm trampoline (wasmer singlepass)"));
        assert_eq!(name(CodeAddress::Exact(behind)), Some("call_wasm trampoline (wasmer singlepass)"));
        assert_eq!(name(CodeAddress::Return(behind + 3)), None);
        assert_eq!(name(CodeAddress::Exact(behind + 1)), None);
        let alternative = code_memory(ALTERNATIVE_STACK_LEAVE);
        let at = CodeAddress::Return(CODE);
        assert_eq!(unwinder().stub_name(at, &alternative), Some("run_on_alternative_stack"));
    }

    #[test]
    fn all_routines_are_found_and_begin_where_their_callers_are_looked_up() {
        let mut code = vec![0xcc; 5];
        code.extend([CALL_WASM_ENTER, CALL_WASM_LEAVE].concat());
        code.extend([0xcc; 3]);
        let found: Vec<(u64, u64)> = unwinder()
            .stretches(&code, CODE)
            .into_iter()
            .map(|s| (s.start - CODE, s.start + u64::from(s.len) - CODE))
            .collect();
        let behind = 5 + CALL_WASM_ENTER.len() as u64;
        // The second stretch begins in the last byte of the call.
        assert_eq!(found, [(5, behind), (behind - 1, code.len() as u64 - 3)]);
        assert!(unwinder().stretches(&[], 0).is_empty());
    }

    #[test]
    fn code_at_the_edges_of_a_mapping_is_recognised() {
        // Nothing is readable before and after the page.
        let base = CODE & !0xfff;
        let memory = page(0, CALL_WASM_LEAVE);
        assert!(unwinder().stub_name(CodeAddress::Return(base), &memory).is_some());
        assert!(unwinder().stub_name(CodeAddress::Exact(base + 14), &memory).is_some());
        let at_end = 0x1000 - CALL_WASM_LEAVE.len() as u64;
        let memory = page(at_end, CALL_WASM_LEAVE);
        assert!(unwinder().stub_name(CodeAddress::Return(base + at_end), &memory).is_some());
        assert!(unwinder().stub_name(CodeAddress::Exact(3), &memory).is_none());
    }

    #[test]
    fn an_unknown_frame_register_is_named() {
        let memory = code_memory(CALL_WASM_LEAVE);
        let mut at = cursor(CODE, &[(x64::RSP, ENTRY_SP)]);
        at.address = CodeAddress::Return(CODE);
        let next = unwinder().step(&at, &memory);
        let Some(Next::Lost(e)) = next else { panic!("{next:?}") };
        assert_eq!(e, UnwindError::UnknownRegister { register: "rbp" });
    }
}
