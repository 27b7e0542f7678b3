//! Names and source positions.

mod excerpt;
pub mod native;
pub mod wasm;
