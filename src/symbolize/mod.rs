//! Names and source positions.

pub mod native;
mod nesting;
pub mod wasm;
