//! What is known of a compiled module and of its instances.

use super::Why;
use crate::wasm::{GlobalDecl, GuestExport, MemoryDecl, NameSource, ValType};

words! {
    /// A runtime whose modules are found.
    RuntimeName {
        /// wasmer 0.x with the singlepass compiler.
        Singlepass = "wasmer-singlepass",
        /// Wasmtime.
        Wasmtime = "wasmtime",
    }

    /// A way on which a module was found.
    FoundBy {
        /// The context of an instance, in a register or on a stack (singlepass).
        Vmctx = "vmctx",
        /// A search of writable memory for the cached image (singlepass).
        Heap = "heap",
        /// The runtime's thread-local list of code versions (singlepass).
        Tls = "tls",
        /// A descriptor that the host publishes (singlepass).
        Descriptor = "descriptor",
        /// A cached artifact file that the user named (singlepass).
        Artifact = "artifact",
        /// The header of a code image before executable memory (Wasmtime).
        Image = "image",
    }

    /// In what a `.wasm` file of the user was compared with a module of the target, and agrees.
    Compared {
        /// Every byte of the Wasm that the target keeps.
        EveryByte = "every byte",
        /// Every byte of the Wasm that the target keeps, apart from custom sections.
        AllButCustomSections = "all but custom sections",
        /// The positions that the compiler recorded.
        Positions = "positions",
        /// The positions that the compiler recorded, and the data segments.
        PositionsData = "positions, data",
        /// The positions that the compiler recorded, and the runtime's description of the module.
        PositionsDescription = "positions, description",
        /// The positions that the compiler recorded, the runtime's description of the module, and the data segments.
        PositionsDescriptionData = "positions, description, data",
        /// The runtime's description of the module.
        Description = "description",
        /// The runtime's description of the module, and the data segments.
        DescriptionData = "description, data",
    }
}

/// What [`GuestModule::problem`] says, perhaps among other things, of a module of Wasmtime whose compiler recorded no values.
/// Its second half is the text of [`Why::NoGuestDebug`](super::Why::NoGuestDebug).
pub const UNRECORDED: &str = "locals and operand stacks are not recorded: the module was compiled without guest_debug \
                              (enable it in the host's Config)";

/// The same of a module of singlepass.
pub const UNTRACKED: &str = "compiled without track_state: locals are known, operand stacks are not";

/// The note on frames of a module for which no positions were recorded.
pub const NO_POSITIONS: &str = "the position is not known: the module was compiled without generate_address_map";

/// A compiled module found in the target.
#[derive(Clone, Debug)]
pub struct GuestModule {
    /// The runtime that compiled the module.
    pub runtime: RuntimeName,
    /// Display name: the name of the file given with `--wasm` ("app.wasm"), the one in the name section, or
    /// "module0".
    pub name: String,
    /// Address range of the module's code: first address, one past the last.
    pub code: (u64, u64),
    /// Every route that leads to the module.
    pub routes: Vec<FoundBy>,
    /// The facts that confirm the module: at least two independent ones.
    pub checks: Vec<String>,
    /// Number of functions that the module defines, if known.
    pub functions: Option<usize>,
    /// Whether the compiler recorded operand stacks, if known.
    pub tracked: Option<bool>,
    /// Compiler or tier that made the code ("singlepass").
    pub backend: String,
    /// Path of the user's `.wasm` file that was matched to the module.
    pub wasm_file: Option<String>,
    /// What was compared of that file and agrees with the target.
    pub wasm_compared: Option<Compared>,
    /// What is wrong with the module or missing from it.
    pub problem: Option<String>,
}

/// An instance of a module, by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestInstance {
    /// Index into `Runtime::modules`.
    pub module: usize,
    /// Address of the instance (see `GuestFrame::instance`).
    pub address: u64,
}

/// What a module declares, imported items before its own. Each list is known by itself or carries the reason why it
/// is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Linear memories, imported ones first.
    pub memories: Result<Vec<MemoryDecl>, Why>,
    /// Globals, imported ones first.
    pub globals: Result<Vec<GlobalDecl>, Why>,
    /// Number of tables, imported ones included.
    pub tables: Result<u32, Why>,
    /// Functions, imported ones first.
    pub functions: Result<Vec<GuestFunction>, Why>,
    /// Exports, in the module's order.
    pub exports: Result<Vec<GuestExport>, Why>,
}

impl Declared {
    /// A value for modules of which nothing is known, with the same reason for all lists.
    pub fn unknown(why: Why) -> Declared {
        Declared {
            memories: Err(why.clone()),
            globals: Err(why.clone()),
            tables: Err(why.clone()),
            functions: Err(why.clone()),
            exports: Err(why),
        }
    }
}

/// A function of a module; `Declared::functions` lists them in the order of their indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFunction {
    /// Name of the function and where the name comes from, if known.
    pub name: Option<(String, NameSource)>,
    /// Types of parameters and of results, if known.
    pub signature: Option<(Vec<ValType>, Vec<ValType>)>,
    /// Whether the function is imported.
    pub imported: bool,
    /// Range of the function's machine code in the target: first address, one past the last. `None` if not known.
    pub code: Option<(u64, u64)>,
}

/// Tells the modules of a provider apart. Two modules with equal `build` and different `content` were made from
/// different files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Hash of how the module was compiled.
    pub build: u64,
    /// Hash of what the module's code does.
    pub content: u64,
}
