//! The wasmer 0.x runtime with its singlepass backend.

pub mod layouts;
pub mod module_memory;
pub mod route_descriptor;
pub mod route_tls;
mod rust_memory;
pub mod rust_msm;

pub use rust_memory::StructureError;
