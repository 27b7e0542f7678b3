//! Hosts of Wasmtime, and hosts that others built.

mod anchors;
mod component_wasm;
mod engines;
mod foreign;
mod points;
mod same_shape;
#[path = "../support/mod.rs"]
mod support;
mod waiting;
mod wasmtime;
mod wasmtime_hosts;
mod wasmtime_plugins;
