//! What the library says when it is asked in this process, and what holds for its sources. No process is started and no core
//! is read.

mod artifact;
mod layers;
mod licenses;
mod limits;
mod links;
mod package;
mod readme;
mod recursion;
mod rust_layouts;
mod schema;
mod state_differential;
#[path = "../support/mod.rs"]
mod support;
mod wasm_points;
