//! wstate: mixed backtraces of processes and cores that run WebAssembly, taken from outside.
//!
//! Give a pid or a core; get every thread's native and Wasm frames in one list, with Wasm locals and operand stacks, each
//! value with where it was found or why it is missing.
//!
//! ```no_run
//! use wstate::model::TextOptions;
//! use wstate::{Error, Options, Session, Source};
//!
//! fn print(pid: u32) -> Result<(), Error> {
//!     let outcome = Session::open(&Options::new(Source::Pid(pid)))?.stacks()?;
//!     print!("{}", outcome.report.to_text(TextOptions::default()));
//!     Ok(())
//! }
//! ```
//!
//! A [`Session`] answers questions about a [`Source`] with the types of [`model`]. Whoever has the memory and registers of a
//! target already implements the traits of [`target`]. [`machine_state`] has the maps and images of the wasmer 0.x runtime.
//! `examples/backtrace.rs` is a whole program.
//!
//! A core, and every file that it names, may have been made by a stranger to exploit a bug in whoever reads it. A [`Session`]
//! reads them in the process of its caller, with all rights of that process. [`confined`] lets the program `wstate` do it in
//! a sandbox, and reads what it answers: use that for cores that are not your own. [`Report::from_json`](model::Report::from_json)
//! reads reports that were written earlier.
//!
//! The feature `cli`, which is on by default, is what the program `wstate` is made of, and no library needs it. `internals`
//! makes every module public, for the tests of this crate; it promises nothing. A host publishes its modules for debuggers
//! with the crate `wstate-descriptor`, which has no dependencies.
//!
//! It is no debugger: it sets no breakpoints, changes no values and evaluates nothing. x86-64 Linux; which runtimes are
//! known is in the README, and `docs/library.md` is about this library.
//!
//! # The straight line
//! ```text
//! pid | core -> Target -> Provider -> [runtime, cfi, recognised, frame pointer]
//!    -> walk (registers of a thread) -> frames and an end -> symbolize -> Report -> text | json
//! ```
//! One loop walks (`unwind::walk`). Native tables, frame pointers and every Wasm runtime answer the same question
//! (`unwind::Unwinder::step`: who called this?), so a mixed stack is a stack like any other. Only code that nobody
//! explains makes a `runtime::Provider` look for modules.
//!
//! Read in this order: `arch` (addresses and registers), `process` (what can be read), `unwind`, `runtime`,
//! `session`. `state` stands alone: the runtime's maps from machine state to Wasm state.
//!
//! # What always holds
//! - Dependencies go one way, as the table of layers has them. `state` knows no process and no file; `unwind` knows no Wasm;
//!   `report` reads no target.
//! - A runtime sees a target only as `process::Target`; whether that is a process or a core is not its business.
//! - A wrong value is worse than none. Unknown registers are unknown, not zero, and a value that cannot be had carries
//!   the reason.
//! - All that is read from a target or a file is hostile: each count, depth and size has a cap in `limits`, nothing
//!   panics, and what is broken costs the frame or function it belongs to, not the rest.
//! - Nothing is written to a target but by `session::Session::restore`, which exists for that. Its threads stand only while
//!   registers and stacks are copied (for an image, the memory too), and if wstate dies meanwhile the kernel lets them go
//!   (`process::live` has the details, and the exceptions).
//!
//! # Glossary
//! Comments use these words, and each for one thing:
//!
//! | word | what it means here |
//! |---|---|
//! | target | The process or core that is looked at. |
//! | stop | The moment at which registers and stacks are copied. What is shown belongs to it. |
//! | frame | A call that has not returned yet. A *native* frame runs code of an executable or library, a *Wasm* frame runs code that a runtime compiled from a module, and several inlined functions can share one machine frame. |
//! | cursor | The registers of one frame while a stack is walked. |
//! | unwinder | Computes the caller's registers from those of a frame. |
//! | trust | How the walk found a frame: from registers, unwind tables, a runtime, recognised code, code that was followed, a frame pointer or a search. |
//! | end | Why a walk stopped: at the bottom of the stack, at a limit, in a cycle, or lost. |
//! | loaded file | An executable or library of the target. An *svma* is an address as that file states it, and the *bias* is what loading added to it. |
//! | runtime | The engine that compiled and runs the modules, such as Wasmtime. A *provider* searches a target for the modules of one runtime. |
//! | module, instance | A compiled `.wasm` file, and one set of memories, globals and tables that its code runs with. |
//! | code image | The ELF file in memory that Wasmtime compiles a module into, with its code and tables. |
//! | route | A way to search for modules. |
//! | anchor | An address in the target that leads to a module, with the checks that it passed. |
//! | state map | The singlepass compiler's record of where each local and operand is, for each point. |
//! | point | An instruction for which a runtime recorded the Wasm state: a call, a trap, a loop. |
//! | position | Where a frame is in its Wasm function: an offset in the file, or the number of an operator. |
//! | slot | A local, or an entry of the operand stack: a value, or the reason why it is missing. |
//! | place | Where a value was found: a register, an address on the stack, a constant. |
//! | instance image | The state of an instance and its frames, in the form that the runtime can resume from. |
//! | settle | To let one thread run on to the next point, by a few instructions of its own. |
//! | symbol file | An ELF file made by wstate that tells a debugger the names, lines and variables of compiled code. |
//!
//! # Layers
//! Each module uses modules that stand below it and none beside it; `tests/library/layers.rs` reads this table and the code.
//!
//! ```text
//! program                                   the program `wstate`: from arguments to an exit code
//! server                                    the engine as the plugins of debuggers use it
//! cli                                       what a command line needs, and the files that results are written to
//! confined                                  the program, started for its answer to a question
//! session                                   a question about a target, and its answer
//! report                                    the view model, as text, JSON, symbol files and core dumps
//! runtime                                   Wasm runtimes: their modules, frames and values
//! wasm                                      what a module says of itself
//! symbolize                                 names, files and lines of native code
//! unwind                                    the walking loop, and who called native code
//! process, state                            processes, cores and their files; the runtime's maps from machine state to Wasm state
//! arch                                      addresses and registers
//! bytes, error, limits, phrases, progress   what all others use
//! ```
//!
//! How to add a runtime or an architecture is in `CONTRIBUTING.md`.

#[macro_use]
mod words;

pub mod confined;

/// The examples of the page about the library are compiled with those of this crate.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct LibraryPage;

#[doc(hidden)]
#[cfg(feature = "cli")]
pub mod program;

pub use error::Error;
pub use progress::Progress;
pub use session::{
    ImportedGlobal, InstanceChoice, MemoryRange, Options, Outcome, RestoreOptions, Restored, Resumable, Returned,
    Route, Session, SignalsLater, Snapshot, SnapshotOptions, Source, SparseWrite,
};

/// What an answer says: the report with its threads, frames and values, and the contents of modules. It can be rendered
/// as text and as JSON.
pub mod model {
    pub use crate::report::contents::{
        Contents, ExportRow, FunctionRow, GlobalRow, Instance, Lists, MemoryRow, ModuleContents, TableRow,
    };
    pub use crate::report::facts::{Fits, NativeObject, SignalDetails, TargetFacts, ThreadState, ThreadStateKind};
    pub use crate::report::text::{TextOptions, clean};
    pub use crate::report::wasm_coredump::Compat;
    pub use crate::report::{
        Bits, Compared, Completeness, End, EndKind, Engine, EngineSeen, ExternKind, FoundBy, Frame, FrameKind,
        Function, Hex, Module, NameSource, OpPosition, Place, Report, Runtime, RuntimeName, Target, TargetKind, Thread,
        Timing, Trust, ValType, Value, Variable, WasmPosition, Why,
    };
}

/// What is needed to look at a target that the caller has opened: its memory, its threads and their registers.
/// [`Machine::from_name`](target::Machine::from_name) names a register.
pub mod target {
    pub use crate::arch::{CodeAddress, Machine, Reg, Registers};
    pub use crate::process::facts::{Activity, CommandLine, Facts, SignalDetails};
    pub use crate::process::files::FileLocation;
    pub use crate::process::{Mapping, Memory, MemoryError, Target, Thread, ThreadId};
}

/// The maps and images of the wasmer 0.x runtime: from the registers and the stack of a thread to the locals and operands
/// of its Wasm frames.
pub mod machine_state {
    pub use crate::state::x64::from_dwarf_regnum;
    pub use crate::state::{
        AnyImage, BoundaryRegisters, CodeVersion, CodecError, ExecutionStateImage, FrameProblem, FrameRead,
        FunctionStateMap, ImageError, ImageView, InstanceImage, KnownRegisters, MachineState, MachineStateDiff,
        MachineValue, MissingReason, ModuleStateMap, OffsetInfo, Point, PointKind, ReadEnd, ReadError, RegisterIndex,
        StateError, SuspendOffset, ValuePlace, WasmAbstractValue, WasmFunctionStateDump, read_frame, read_stack,
    };
}

// Users have what is above. Everything is public only for the tests, fuzz targets and benches of this crate.
#[cfg(feature = "internals")]
pub mod arch;
#[cfg(feature = "internals")]
pub mod bytes;
#[cfg(all(feature = "cli", feature = "internals"))]
pub mod cli;
#[cfg(feature = "internals")]
pub mod error;
#[cfg(feature = "internals")]
pub mod limits;
#[cfg(feature = "internals")]
pub mod phrases;
#[cfg(feature = "internals")]
pub mod process;
#[cfg(feature = "internals")]
pub mod progress;
#[cfg(feature = "internals")]
pub mod report;
#[cfg(feature = "internals")]
pub mod runtime;
#[cfg(all(feature = "cli", feature = "internals"))]
pub mod server;
#[cfg(feature = "internals")]
pub mod session;
#[cfg(feature = "internals")]
pub mod state;
#[cfg(feature = "internals")]
pub mod symbolize;
#[cfg(feature = "internals")]
pub mod unwind;
#[cfg(feature = "internals")]
pub mod wasm;

#[cfg(not(feature = "internals"))]
mod arch;
#[cfg(not(feature = "internals"))]
mod bytes;
#[cfg(all(feature = "cli", not(feature = "internals")))]
mod cli;
#[cfg(not(feature = "internals"))]
mod error;
#[cfg(not(feature = "internals"))]
mod limits;
#[cfg(not(feature = "internals"))]
mod phrases;
#[cfg(not(feature = "internals"))]
mod process;
#[cfg(not(feature = "internals"))]
mod progress;
#[cfg(not(feature = "internals"))]
mod report;
#[cfg(not(feature = "internals"))]
mod runtime;
#[cfg(all(feature = "cli", not(feature = "internals")))]
mod server;
#[cfg(not(feature = "internals"))]
mod session;
#[cfg(not(feature = "internals"))]
mod state;
#[cfg(not(feature = "internals"))]
mod symbolize;
#[cfg(not(feature = "internals"))]
mod unwind;
#[cfg(not(feature = "internals"))]
mod wasm;
