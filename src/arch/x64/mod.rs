//! x86-64.

mod registers;

pub use registers::*;
