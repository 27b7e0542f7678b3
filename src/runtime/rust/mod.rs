//! Reads structures of Rust programs in the memory of a target.

pub mod btree;
pub mod layouts;
pub mod memory;
pub mod tls;
