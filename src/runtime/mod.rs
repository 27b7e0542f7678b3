//! Wasm runtimes. Finding the modules of a runtime in a target ([`Provider`]) and reading its frames ([`Runtime`])
//! are separate jobs.

pub mod all;
pub mod code_map;
pub mod engines;
mod immediates;
mod match_files;
pub mod singlepass;
pub mod wasmtime;
mod why;

use self::engines::Sighting;
pub use self::why::Why;
use crate::process::objects::Objects;
use crate::process::{Memory, Target, ThreadId};
use crate::progress::Progress;
use crate::state::{ExecutionStateImage, ModuleStateMap, PointKind};
use crate::unwind::{Cursor, Next, Unwinder};
use crate::wasm::file::CoreModule;
use crate::wasm::{GlobalDecl, GuestExport, MemoryDecl, NameSource, ValType, WasmModule};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// Where a value was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The value is in a register of this frame. If a callee saved that register, `saved_at` is the address of the
    /// stack slot from which it was read.
    Register {
        /// The register that holds the value in this frame.
        reg: crate::arch::Reg,
        /// Address of the stack slot in which a callee saved the register; `None` if no callee saved it.
        saved_at: Option<u64>,
    },
    /// The value is in memory, at an offset from a register of this frame.
    Memory {
        /// The register that `offset` is counted from.
        base: crate::arch::Reg,
        /// Byte offset of the value from the base register.
        offset: i64,
        /// Address of the value in the target.
        address: u64,
    },
    /// The value is at this address in memory, and no register of this frame leads there.
    Address(u64),
    /// The value is a constant that the compiler knew.
    Constant,
}

/// `r12`, `r12, saved at 0x7ffd0010`, `[rbp-0x28]`, `[0x7f0010]` or `constant`.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Register { reg, saved_at: None } => write!(f, "{reg}"),
            Place::Register { reg, saved_at: Some(address) } => write!(f, "{reg}, saved at {address:#x}"),
            Place::Memory { base, offset, .. } => {
                let sign = if *offset < 0 { '-' } else { '+' };
                write!(f, "[{base}{sign}{:#x}]", offset.unsigned_abs())
            }
            Place::Address(address) => write!(f, "[{address:#x}]"),
            Place::Constant => f.write_str("constant"),
        }
    }
}

text_in_json!(Place);

/// One local or operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Type of the value, if known.
    pub ty: Option<ValType>,
    /// Raw bits and where they were found, or why the value is missing.
    pub slot: Slot,
}

/// A value or the reason for its absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The value was found. `bits` are raw: an i32 may carry junk in its upper half, which the display cuts off
    /// according to the type.
    Known {
        /// Raw bits of the value: 128 for a vector, 64 for any other type.
        bits: u128,
        /// Where the value was found.
        place: Place,
    },
    /// The value is missing, for this reason.
    Unknown(Why),
}

/// Where in a function a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Position {
    /// In the function header, before the first operator.
    Header,
    /// At the operator with this number: zero-based within the body, local declarations not counted
    /// (`wasm_inst_offset`).
    Operator(u64),
    /// Behind the point of the operator with this number and before the next known point.
    After(u64),
    /// At the operator at this byte offset in the `.wasm` file. Only runtimes that keep offsets and no operator
    /// numbers use this.
    Offset(u64),
    /// The position is not known.
    Unknown,
}

/// A variable of the source language, from debug information in a code image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceVariable {
    /// Name of the variable.
    pub name: String,
    /// Name of its type.
    pub ty: Option<String>,
    /// The value, or why it is not shown.
    pub value: Result<SourceValue, Why>,
}

/// The value of a variable of the source language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceValue {
    /// The value as the variable's type prints it.
    pub text: String,
    /// The bytes that the text was made from, at most [`crate::limits::MAX_SOURCE_VALUE_BYTES`] of them.
    pub bytes: Vec<u8>,
    /// Where the value was found, such as `[fp-0x10]`. A value in several pieces has several places.
    pub place: String,
}

/// An operator of a `.wasm` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorPlace {
    /// Byte offset of the operator in the file.
    pub offset: u64,
    /// The operator as text, if the `.wasm` is known.
    pub text: Option<String>,
    /// Source file that the operator was compiled from, according to DWARF in the `.wasm`.
    pub file: Option<String>,
    /// Line in that source file.
    pub line: Option<u32>,
}

/// What kind of runtime code a guest frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestKind {
    /// Compiled Wasm function.
    Wasm,
    /// Glue between host and Wasm.
    Trampoline,
    /// Wasm function or glue: the data that would tell which cannot be read.
    Unknown,
}

/// A frame of a runtime's code. Where functions were inlined, one pc stands for several such frames.
#[derive(Clone, Debug)]
pub struct GuestFrame {
    /// What kind of code the frame runs.
    pub kind: GuestKind,
    /// Index into [`Runtime::modules`].
    pub module: usize,
    /// Function index in the module's index space (imports first), if known.
    pub function: Option<u32>,
    /// Index among the functions that the module defines (imports not counted), if known.
    pub local_function: Option<u32>,
    /// Name of the function and where the name came from, if known.
    pub name: Option<(String, NameSource)>,
    /// Byte offset of the pc from the start of the module's code.
    pub code_offset: u64,
    /// Byte offset of the pc from the start of the function's code, if known.
    pub function_offset: Option<u64>,
    /// Where in its Wasm function the frame is.
    pub position: Position,
    /// The operator at that position, if the module's `.wasm` is known.
    pub operator: Option<OperatorPlace>,
    /// Locals, or why there are none.
    pub locals: Result<Vec<Value>, Why>,
    /// Operand stack, bottom first, or why it is not known here.
    pub stack: Result<Vec<Value>, Why>,
    /// Variables of the source language, if the code image describes them.
    pub variables: Vec<SourceVariable>,
    /// Whether the function was inlined into the function of the next frame.
    pub inlined: bool,
    /// Whether frames may be missing from the list before this one, of functions that may have been inlined here.
    pub may_miss_inlined: bool,
    /// Address of the frame's instance (its `vmctx`), if known.
    pub instance: Option<u64>,
    /// Remarks for the reader about this frame.
    pub notes: Vec<String>,
}

impl GuestFrame {
    /// A frame in code of `module` about which nothing else is known.
    pub fn unknown(kind: GuestKind, module: usize) -> GuestFrame {
        GuestFrame {
            kind,
            module,
            function: None,
            local_function: None,
            name: None,
            code_offset: 0,
            function_offset: None,
            position: Position::Unknown,
            operator: None,
            locals: Ok(Vec::new()),
            stack: Ok(Vec::new()),
            variables: Vec::new(),
            inlined: false,
            may_miss_inlined: false,
            instance: None,
            notes: Vec::new(),
        }
    }
}

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
    /// In what that file agrees with the target.
    pub wasm_compared: Option<Compared>,
    /// What is wrong with the module or missing from it.
    pub problem: Option<String>,
}

/// An instance of a module, by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestInstance {
    /// Index into [`Runtime::modules`].
    pub module: usize,
    /// Address of the instance (see [`GuestFrame::instance`]).
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

/// What kind of place a thread that is stepped has reached, by its pc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A point at which the operand stack is known, and from which an image that is taken here can be resumed.
    Point,
    /// A point behind a call that has just returned. The result of the call is in no place that an image keeps.
    Returned {
        /// Whether the module has only points like this: none in its loops and in the headers of its functions.
        only: bool,
    },
    /// A point at which the operand stack is known, but an image that is taken here would be resumed at another
    /// place.
    Shown,
    /// Code of the runtime's modules between two points.
    Inside,
    /// Code that is not of the runtime's modules.
    Outside,
}

/// What is read from an instance to make an `InstanceImage`, and to restore one.
#[derive(Clone, Debug)]
pub struct InstanceParts {
    /// The module's state map.
    pub map: Arc<ModuleStateMap>,
    /// Address of the first byte of the module's code.
    pub code_base: u64,
    /// Address of the instance's context (`vm::Ctx`).
    pub vmctx: u64,
    /// Linear memory 0: address of its first byte, and its size in bytes. `None` if there is none.
    pub memory: Option<(u64, u64)>,
    /// Address of the description of memory 0 (`vm.rs: LocalMemory`), if the memory is the instance's own and not
    /// imported.
    pub memory_at: Option<u64>,
    /// Address of the runtime's function that grows memory 0, if known.
    pub grow: Option<u64>,
    /// Globals that the module defines, in the order of their indices.
    pub globals: Vec<GlobalCell>,
    /// Globals that the module imports, in the order of their indices.
    pub imported_globals: Vec<GlobalCell>,
}

/// A global of an instance, as an instance image keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalCell {
    /// Type of the global.
    pub ty: ValType,
    /// Address of the 16 bytes that hold the global.
    pub address: u64,
    /// The value: integers are sign-extended, floats are kept as their bits.
    pub bits: u128,
}

/// A runtime found in a target.
pub trait Runtime: Unwinder {
    /// Name of the runtime.
    fn name(&self) -> &'static str;
    /// The modules of this runtime that were found.
    fn modules(&self) -> &[GuestModule];
    /// The frames at `at`, whether or not the caller can be found. Youngest first: an inlined function comes before
    /// the function that it was inlined into. Empty if this is no code of this runtime.
    fn describe(&self, at: &Cursor, memory: &dyn Memory) -> Vec<GuestFrame>;
    /// Remarks for the reader, such as modules that cannot be read and caps that were reached.
    fn notes(&self) -> &[String];
    /// What the search for modules tried in vain, and how. Useful to the reader where there may be modules of this
    /// runtime.
    fn tried(&self) -> &[String] {
        &[]
    }
    /// Engines that are in the target. They are looked for only where frames or modules are missing.
    fn engines(&self) -> &[Sighting] {
        &[]
    }
    /// Whether guests of the module can wait on stacks that no thread runs on.
    fn may_wait(&self, module: usize) -> bool {
        let _ = module;
        false
    }
    /// Where guests that wait on such stacks will go on: the registers of those stacks, as far as they are found.
    fn waiting(&self, memory: &dyn Memory) -> Vec<Cursor> {
        let _ = memory;
        Vec::new()
    }
    /// What the runtime itself would report for the frames from `at` on (`state.rs: read_stack`), for runtimes that
    /// have images of frames. The image has no frames where the runtime has no state for them.
    fn image(&self, thread: ThreadId, at: &Cursor, memory: &dyn Memory) -> Result<ExecutionStateImage, Why> {
        let _ = (thread, at, memory);
        Err(Why::Other(format!("{} has no images of frames", self.name())))
    }
    /// The youngest frame of this runtime's code below a native frame that nothing can unwind, if the runtime's own
    /// tables lead to it.
    fn recover(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        let _ = (at, memory);
        None
    }
    /// Index of the module whose code covers `address`.
    fn module_of(&self, address: u64) -> Option<usize>;
    /// The user's `.wasm` file of a module, if one was matched to it.
    fn wasm_file(&self, module: usize) -> Option<&WasmModule> {
        let _ = module;
        None
    }
    /// Address and size in bytes of linear memory `index` of an instance (see [`GuestFrame::instance`]) of module
    /// `module`.
    fn linear_memory(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<(u64, u64), Why>;
    /// Value of global `index` of an instance; imported globals are counted first.
    fn global(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<Value, Why>;
    /// What an image of an instance is made from, for runtimes that have images of instances.
    fn instance_parts(&self, module: usize, instance: u64, memory: &dyn Memory) -> Result<InstanceParts, Why> {
        let _ = (module, instance, memory);
        Err(Why::Other(format!("{} has no images of instances", self.name())))
    }
    /// The kind of the point at `address`, if a frame whose image is taken there is resumed at that same place (see
    /// [`crate::state::goes_on_at`]).
    fn goes_on_at(&self, address: u64, memory: &dyn Memory) -> Option<PointKind> {
        let _ = (address, memory);
        None
    }
    /// Number of elements of table `index` of an instance; imported tables are counted first.
    fn table(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        let _ = (module, instance, index, memory);
        Err(Why::Other(format!("how {} keeps tables is not known", self.name())))
    }
    /// The instances that were met on the way to the modules. An instance whose code a thread runs is also named in
    /// its frames, whether it is listed here or not.
    fn instances(&self, memory: &dyn Memory) -> Vec<GuestInstance> {
        let _ = memory;
        Vec::new()
    }
    /// Checks that there is such an instance, since a damaged frame may name any address. The error says why not.
    fn check_instance(&self, instance: GuestInstance, memory: &dyn Memory) -> Result<(), Why> {
        let _ = (instance, memory);
        Ok(())
    }
    /// What a module declares.
    fn declared(&self, module: usize, memory: &dyn Memory) -> Declared {
        let _ = (module, memory);
        Declared::unknown(Why::Other(format!("what {} knows of its modules is not read", self.name())))
    }
    /// Byte offset in the `.wasm` file at which the body of a function begins, local declarations included.
    /// Subtracted from [`OperatorPlace::offset`], it gives an offset within the function.
    fn body_offset(&self, module: usize, local_function: u32) -> Option<u64> {
        self.wasm_file(module)?.body_offset(local_function)
    }
    /// Whether stepping can bring a frame of the module to a point at which more is known about it. The error says
    /// why it cannot.
    fn settles(&self, module: usize) -> Result<(), Why> {
        let _ = module;
        Err(Why::Other(format!("{} has no points to which a thread could be stepped", self.name())))
    }
    /// A function that tells what a pc reaches, above all whether the operand stack is known there. It owns what it
    /// needs, since a target is stepped on a thread of its own.
    fn reach(&self, memory: &dyn Memory) -> Box<dyn Fn(u64) -> Reach + Send>;
    /// All compiled code, described for a debugger.
    fn code_map(&self, detail: &code_map::Detail, memory: &dyn Memory) -> code_map::CodeMap;
}

/// What a provider may look at.
pub struct Scene<'a> {
    /// The process or core.
    pub target: &'a dyn Target,
    /// The loaded files of the target.
    pub objects: &'a Objects,
    /// Receives the progress of work that may take long.
    pub progress: &'a dyn Progress,
}

/// How well a core module from a file of the user fits a module of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// How strongly the target proves that this is the very file; 0 if the target does not keep the module's Wasm. Of
    /// two fits the higher number wins.
    pub exact: u8,
    /// What was compared and agrees.
    pub summary: Compared,
    /// What agrees, one entry for each comparison.
    pub checks: Vec<String>,
    /// Number that is added to a byte offset in the core module to get the offset that the runtime uses.
    pub shift: u64,
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

/// Finds a runtime's modules in a target. It is called again with the frames that nobody could explain, since modules
/// are found step by step: behind the frames of one module lies the next host frame, and perhaps the next module.
pub trait Provider {
    /// Looks for modules, in particular for those that explain `unknown`: frames in executable memory that belongs to
    /// no file. `lost` says that some stack could not be walked to its end, so there may be more such frames.
    /// Returns how many modules were found that were not known before.
    /// The first call may come without unknown frames: the modules of an idle process are worth a line too.
    fn discover(&mut self, scene: &Scene<'_>, unknown: &[Cursor], lost: bool) -> usize;
    /// Compares module `module` of this provider with a core module from a file of the user. `Ok` says what agrees,
    /// `Err` why the module was made from another core module.
    fn compare(&mut self, module: usize, file: &CoreModule, memory: &dyn Memory) -> Result<Fit, String> {
        let _ = (module, file, memory);
        Err(format!("{} takes no files", self.runtime().name()))
    }
    /// Gives a module the file that it was made from, and the result of the comparison.
    fn take_file(&mut self, module: usize, path: &Path, file: &CoreModule, fit: Fit) {
        let _ = (module, path, file, fit);
    }
    /// The machine code of a function that the module defines, by its index among these; `None` if it cannot be read.
    fn code(&self, module: usize, local_function: u32, memory: &dyn Memory) -> Option<Vec<u8>> {
        let _ = (module, local_function, memory);
        None
    }
    /// A function's name from the name section that the module was compiled with, if the target has that section.
    fn own_name(&self, module: usize, function: u32) -> Option<String> {
        let _ = (module, function);
        None
    }
    /// Computes what tells modules apart. Reads at most `left` bytes of code and subtracts them from `left`; `None`
    /// if the key is not known.
    fn key(&self, module: usize, left: &mut u64, memory: &dyn Memory) -> Option<Key> {
        let _ = (module, left, memory);
        None
    }
    /// The user's artifact files that were not looked at, and why. Asked only if no runtime has found a module.
    fn unused_artifacts(&mut self) -> Vec<(PathBuf, String)> {
        Vec::new()
    }
    /// The runtime with the modules that were found so far.
    fn runtime(&self) -> &dyn Runtime;
}
