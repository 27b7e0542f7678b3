//! The wasmer 0.x runtime with its singlepass backend.

pub mod anchor;
pub mod ctx;
pub mod route_artifact;
pub mod route_heap;
pub mod route_vmctx;

#[cfg(test)]
pub(crate) mod fake;
