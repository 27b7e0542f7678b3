//! The wasmer 0.x runtime with its singlepass backend.

pub mod layouts;
