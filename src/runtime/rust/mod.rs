//! Reads structures of Rust programs in the memory of a target.

pub mod memory;
