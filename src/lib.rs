//! wstate: mixed backtraces of processes and cores that run WebAssembly.

pub mod arch;
pub mod bytes;
pub mod cli;
#[cfg(feature = "descriptor")]
pub mod descriptor;
pub mod doctor;
pub mod error;
pub mod limits;
pub mod output;
pub mod plugin;
pub mod progress;
pub mod report;
pub mod runtime;
pub mod server;
pub mod session;
pub mod state;
pub mod symbolize;
pub mod target;
pub mod unwind;
