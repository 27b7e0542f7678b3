//! Reads structures of Rust programs in the memory of a target.

pub mod arc;
pub mod btree;
pub mod hash_map;
pub mod layouts;
pub mod memory;
pub mod string;
pub mod tls;
