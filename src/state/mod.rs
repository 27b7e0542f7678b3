//! The machine-state model of the runtime (`state.rs`), pure: no process, no file, no runtime.
