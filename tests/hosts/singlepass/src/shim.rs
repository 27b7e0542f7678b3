//! The import that is the stop: it saves the registers of its Wasm caller before any Rust code runs.

use std::arch::global_asm;
use wasmer_runtime_core::vm;

/// What the caller's registers were at the first instruction of the import.
#[repr(C)]
pub struct Entry {
    pub args: [u64; 6],
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbx: u64,
    pub rbp: u64,
    /// The return address into the Wasm caller; its own address is the stack pointer at entry.
    pub return_address: u64,
}

// `rdi` is the vmctx, `rax` the result. The frame has CFI so that native unwinders walk through it.
macro_rules! shim {
    ($name:literal, $target:literal) => {
        global_asm!(
            concat!(".globl ", $name),
            concat!(".type ", $name, ", @function"),
            concat!($name, ":"),
            ".cfi_startproc",
            "push rbp",
            ".cfi_adjust_cfa_offset 8",
            ".cfi_rel_offset rbp, 0",
            "push rbx",
            ".cfi_adjust_cfa_offset 8",
            ".cfi_rel_offset rbx, 0",
            "push r12",
            ".cfi_adjust_cfa_offset 8",
            ".cfi_rel_offset r12, 0",
            "push r13",
            ".cfi_adjust_cfa_offset 8",
            ".cfi_rel_offset r13, 0",
            "push r14",
            ".cfi_adjust_cfa_offset 8",
            ".cfi_rel_offset r14, 0",
            "push r15",
            ".cfi_adjust_cfa_offset 8",
            ".cfi_rel_offset r15, 0",
            "push r9",
            "push r8",
            "push rcx",
            "push rdx",
            "push rsi",
            "push rdi",
            ".cfi_adjust_cfa_offset 48",
            "mov rsi, rsp",
            "mov rbp, rsp",
            ".cfi_def_cfa_register rbp",
            "and rsp, -16",
            concat!("call ", $target),
            // A float is returned in XMM0.
            "xorps xmm0, xmm0",
            "mov rsp, rbp",
            ".cfi_def_cfa_register rsp",
            "add rsp, 48",
            ".cfi_adjust_cfa_offset -48",
            "pop r15",
            ".cfi_adjust_cfa_offset -8",
            "pop r14",
            ".cfi_adjust_cfa_offset -8",
            "pop r13",
            ".cfi_adjust_cfa_offset -8",
            "pop r12",
            ".cfi_adjust_cfa_offset -8",
            "pop rbx",
            ".cfi_adjust_cfa_offset -8",
            "pop rbp",
            ".cfi_adjust_cfa_offset -8",
            "ret",
            ".cfi_endproc",
            concat!(".size ", $name, ", . - ", $name),
        );
    };
}

shim!("host_stop_import", "host_stop");
shim!("host_nested_import", "host_nested");

unsafe extern "C" {
    /// Import with any parameters and any result (0): runs `host_stop(vmctx, entry)`.
    pub fn host_stop_import();
    /// The same for `host_nested(vmctx, entry)`.
    pub fn host_nested_import();
}

/// Import with any parameters and any result: returns 0 at once.
pub extern "C" fn nothing(_vmctx: *mut vm::Ctx) -> u64 {
    0
}

/// The same for imports that return a float, which is expected in XMM0.
pub extern "C" fn nothing_float(_vmctx: *mut vm::Ctx) -> f64 {
    0.0
}
