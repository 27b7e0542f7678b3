//! Names and source positions.

pub mod native;
pub mod wasm;
