//! wstate: mixed backtraces of processes and cores that run WebAssembly, taken from outside.
//!
//! Give a pid or a core; get every thread's native and Wasm frames in one list, with Wasm locals and operand stacks, each
//! value with where it was found or why it is missing.
//!
//! ```no_run
//! use wstate::report::text::{self, TextOptions};
//! use wstate::session::{self, Options, Source};
//!
//! fn print(pid: u32) -> Result<(), wstate::error::Error> {
//!     let outcome = session::run(&Options::new(Source::Pid(pid)))?;
//!     print!("{}", text::render(&outcome.report, TextOptions::default()));
//!     Ok(())
//! }
//! ```
//!
//! It is no debugger: it sets no breakpoints, changes no values and evaluates nothing. x86-64 Linux; which runtimes are
//! known is in the README.
//!
//! # The straight line
//! ```text
//! pid | core -> Target -> Provider -> [runtime, cfi, recognised, frame pointer]
//!    -> walk (registers of a thread) -> frames and an end -> symbolize -> Report -> text | json
//! ```
//! One loop walks ([`mod@unwind::walk`]). Native tables, frame pointers and every Wasm runtime answer the same question
//! ([`unwind::Unwinder::step`]: who called this?), so a mixed stack is a stack like any other. Only code that nobody
//! explains makes a [`runtime::Provider`] look for modules.
//!
//! Read in this order: [`arch`] (addresses and registers), [`process`] (what can be read), [`unwind`], [`runtime`],
//! [`session`]. [`state`] stands alone: the runtime's maps from machine state to Wasm state.
//!
//! # What always holds
//! - Dependencies go one way: main -> session -> report, symbolize -> runtime -> state, unwind -> process -> arch ->
//!   bytes. `state` knows no process and no file; `unwind` knows no Wasm; `report` reads no target.
//! - A runtime sees a target only as [`process::Target`]; whether that is a process or a core is not its business.
//! - A wrong value is worse than none. Unknown registers are unknown, not zero, and a value that cannot be had carries
//!   the reason.
//! - All that is read from a target or a file is hostile: each count, depth and size has a cap in [`limits`], nothing
//!   panics, and what is broken costs the frame or function it belongs to, not the rest.
//! - Nothing is written to a target but by [`session::restore`], which exists for that. Its threads stand only while
//!   registers and stacks are copied (for an image, the memory too), and if wstate dies meanwhile the kernel lets them go
//!   ([`process::live`] has the details, and the exceptions).
//!
//! How to add a runtime or an architecture is in `CONTRIBUTING.md`.

#[macro_use]
mod words;

pub mod arch;
pub mod bytes;
pub mod cli;
#[cfg(feature = "descriptor")]
pub mod descriptor;
pub mod doctor;
pub mod error;
pub mod images;
pub mod limits;
pub mod output;
pub mod plugin;
pub mod process;
pub mod progress;
pub mod report;
pub mod runtime;
pub mod sandbox;
pub mod server;
pub mod session;
pub mod state;
pub mod symbolize;
pub mod unwind;
pub mod wasm;
