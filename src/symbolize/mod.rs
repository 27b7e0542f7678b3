//! Names and source positions.

mod entries;
pub mod native;
mod nesting;
pub mod wasm;
