//! x86-64: its registers, what Linux writes about its threads, and what its code means.

pub mod body;
pub mod code;
mod kernel;
pub mod prologue;
mod registers;
mod system_calls;

pub use kernel::{KERNEL, SYSCALL};
pub use registers::*;

use super::machine::Description;

/// What is known of x86-64.
pub static DESCRIPTION: Description = Description {
    name: "x86-64",
    elf: 62,
    registers: &TABLE,
    pc: RIP,
    sp: RSP,
    fp: RBP,
    // psABI
    red_zone: 128,
    kernel: &KERNEL,
};
