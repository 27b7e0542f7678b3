//! One question answered: a target in, a [`Report`] out.

use crate::error::Error;
use crate::report::Report;
use std::path::PathBuf;

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A process, by id.
    Pid(u32),
    /// A core file.
    Core {
        /// The core.
        core: PathBuf,
        /// The executable that wrote it, if the user names it.
        executable: Option<PathBuf>,
    },
}

/// A way to find a runtime's modules in a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// From the context register of a running Wasm function.
    Vmctx,
    /// A search of the heap for the module's cache image.
    Heap,
    /// The runtime's thread-local variables.
    Tls,
    /// What the host published.
    Descriptor,
    /// A cached artifact file.
    Artifact,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The target.
    pub source: Source,
    /// Only these threads (kernel thread ids); empty: all.
    pub threads: Vec<u32>,
    /// Only the first of the threads that are left.
    pub first_thread_only: bool,
    /// Frames per thread; `None`: as many as there are, up to [`crate::limits::MAX_FRAMES`].
    pub limit: Option<usize>,
    /// `.wasm` files the modules may come from.
    pub wasm: Vec<PathBuf>,
    /// Cached artifact files.
    pub artifacts: Vec<PathBuf>,
    /// Only these routes; empty: all.
    pub routes: Vec<Route>,
    /// Step the selected thread of a live process to the next point at which the operand stack is known.
    pub settle: bool,
    /// Directory under which the target's files are looked for first.
    pub sysroot: Option<PathBuf>,
    /// Directories of separate debug files.
    pub debug_dirs: Vec<PathBuf>,
    /// Whether locals and operand stacks are wanted at all.
    pub values: bool,
    /// Whether [`Outcome::classic`] and [`Outcome::image`] are wanted.
    pub image: bool,
    /// Report registers too, and tell what is being done.
    pub verbose: bool,
}

impl Options {
    /// The plain question about `source`.
    pub fn new(source: Source) -> Options {
        Options {
            source,
            threads: Vec::new(),
            first_thread_only: false,
            limit: None,
            wasm: Vec::new(),
            artifacts: Vec::new(),
            routes: Vec::new(),
            settle: false,
            sysroot: None,
            debug_dirs: Vec::new(),
            values: true,
            image: false,
            verbose: false,
        }
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was found.
    pub report: Report,
    /// The selected thread's Wasm frames as the runtime itself prints them, if asked for and there are any.
    pub classic: Option<String>,
    /// The selected thread's `ExecutionStateImage` in bincode, if asked for and there is one.
    pub image: Option<Vec<u8>>,
}

/// Answers a question.
pub fn run(options: &Options) -> Result<Outcome, Error> {
    let _ = options;
    Err(Error::NotFound { what: "no engine is built in yet".to_string() })
}
