//! Wasm runtimes. Finding them in a target ([`Provider`]) and reading its frames ([`Runtime`]) are separate jobs.

pub mod all;
pub mod code_map;
pub mod engines;
mod immediates;
mod match_files;
pub mod singlepass;
pub mod wasmtime;

use self::engines::Sighting;
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
}

/// Where a value was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a register of this frame; if a callee spilled it, `saved_at` is the stack slot it was read from.
    Register {
        /// Register.
        reg: crate::arch::Reg,
        /// Address of the callee's save slot.
        saved_at: Option<u64>,
    },
    /// In memory, named relative to a register of this frame.
    Memory {
        /// Base register.
        base: crate::arch::Reg,
        /// Byte offset from it.
        offset: i64,
        /// The address.
        address: u64,
    },
    /// In memory that no register of this frame leads to.
    Address(u64),
    /// The compiler knew it.
    Constant,
}

/// Why a value is not shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why(pub String);

/// One local or operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its type, if known.
    pub ty: Option<ValType>,
    /// Raw bits and where they were found, or why not.
    pub slot: Slot,
}

/// A value or the reason for its absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Found. `bits` are raw: an i32 may carry junk in its upper half, which display truncates by type.
    Known {
        /// Raw bits: 64, of a vector 128.
        bits: u128,
        /// Where.
        place: Place,
    },
    /// Not found.
    Unknown(Why),
}

/// Where in a function a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Position {
    /// In the function header, before the first operator.
    Header,
    /// At this operator: zero-based index within the body, local declarations not counted (`wasm_inst_offset`).
    Operator(u64),
    /// After the point of this operator and before the next known point.
    After(u64),
    /// At the operator at this byte offset in the `.wasm` file: of runtimes that keep offsets and no operator numbers.
    Offset(u64),
    /// Not known.
    Unknown,
}

/// A variable of the source language, from debug information in a code image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceVariable {
    /// Name.
    pub name: String,
    /// Name of its type.
    pub ty: Option<String>,
    /// The value as its type prints it, or why it is not shown.
    pub value: Result<String, Why>,
    /// Where it was found: `[fp-0x10]`.
    pub place: Option<String>,
}

/// An operator of a `.wasm` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorPlace {
    /// Byte offset in the file.
    pub offset: u64,
    /// Text form, if the `.wasm` is known.
    pub text: Option<String>,
    /// Source file, from DWARF in the `.wasm`.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
}

/// What kind of runtime code a guest frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestKind {
    /// Compiled Wasm function.
    Wasm,
    /// Glue between host and Wasm.
    Trampoline,
    /// One of these: what would tell cannot be read.
    Unknown,
}

/// A frame of a runtime's code. One pc is several of them where functions were inlined.
#[derive(Clone, Debug)]
pub struct GuestFrame {
    /// Kind.
    pub kind: GuestKind,
    /// Index into [`Runtime::modules`].
    pub module: usize,
    /// Function index in the module's index space (imports first), if known.
    pub function: Option<u32>,
    /// Index among the functions the module defines.
    pub local_function: Option<u32>,
    /// Name and where it came from.
    pub name: Option<(String, NameSource)>,
    /// Byte offset of the pc in the module's code.
    pub code_offset: u64,
    /// Byte offset of the pc in the function's code.
    pub function_offset: Option<u64>,
    /// Where in the function.
    pub position: Position,
    /// The operator there, if the module's `.wasm` is known.
    pub operator: Option<OperatorPlace>,
    /// Locals, or why there are none.
    pub locals: Result<Vec<Value>, Why>,
    /// Operand stack, bottom first, or why it is not known here.
    pub stack: Result<Vec<Value>, Why>,
    /// Variables of the source language, if the code image describes them.
    pub variables: Vec<SourceVariable>,
    /// Whether the function was inlined into the next frame's.
    pub inlined: bool,
    /// Whether frames of functions that were inlined here may be missing before this one.
    pub may_miss_inlined: bool,
    /// Instance (its `vmctx` address), if known.
    pub instance: Option<u64>,
    /// Things to tell about this frame.
    pub notes: Vec<String>,
}

impl GuestFrame {
    /// A frame in code of `module`, of which nothing else is known.
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
    /// Its runtime.
    pub runtime: RuntimeName,
    /// Display name ("app.wasm" from `--wasm`, the name section, or "module0").
    pub name: String,
    /// Address range of its code.
    pub code: (u64, u64),
    /// How it was found: every route that leads to it.
    pub routes: Vec<FoundBy>,
    /// What confirmed it; at least two independent facts.
    pub checks: Vec<String>,
    /// Number of defined functions, if it is known.
    pub functions: Option<usize>,
    /// Whether operand stacks were tracked by the compiler, if that is known.
    pub tracked: Option<bool>,
    /// Compiler or tier ("singlepass").
    pub backend: String,
    /// The user's `.wasm` that was matched to it.
    pub wasm_file: Option<String>,
    /// In what that file was compared with the process, in a word.
    pub wasm_compared: Option<String>,
    /// What is wrong with it or missing.
    pub problem: Option<String>,
}

/// An instance of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestInstance {
    /// Index into [`Runtime::modules`].
    pub module: usize,
    /// Its address (see [`GuestFrame::instance`]).
    pub address: u64,
}

/// What a module declares, imported things first; each list by itself, or why it is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Linear memories.
    pub memories: Result<Vec<MemoryDecl>, Why>,
    /// Globals.
    pub globals: Result<Vec<GlobalDecl>, Why>,
    /// Number of tables.
    pub tables: Result<u32, Why>,
    /// Functions.
    pub functions: Result<Vec<GuestFunction>, Why>,
    /// Exports, in the module's order.
    pub exports: Result<Vec<GuestExport>, Why>,
}

impl Declared {
    /// Nothing is known, for one reason.
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

/// A function of a module, in the order of indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFunction {
    /// Name and where it comes from.
    pub name: Option<(String, NameSource)>,
    /// Types of parameters and results, if known.
    pub signature: Option<(Vec<ValType>, Vec<ValType>)>,
    /// Whether it is imported.
    pub imported: bool,
    /// Its machine code: first address, one past the last.
    pub code: Option<(u64, u64)>,
}

/// Why an operand stack is not known that would be some instructions further on.
pub const BETWEEN_POINTS: &str = "no state is recorded at this instruction";

/// What stepping to a pc reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A point: the operand stack is known here, and an image that is taken here can be gone on from.
    Point,
    /// A point behind a call that has just returned, and its result is in no place that an image keeps.
    Returned {
        /// Whether this is what the module has: it has no points in its loops and functions' headers.
        only: bool,
    },
    /// A point whose operator goes on somewhere else.
    Shown,
    /// The runtime's code between points.
    Inside,
    /// Other code.
    Outside,
}

/// What an `InstanceImage` needs of an instance, and what going on from one needs.
#[derive(Clone, Debug)]
pub struct InstanceParts {
    /// The module's state map.
    pub map: Arc<ModuleStateMap>,
    /// Address of its first byte of code.
    pub code_base: u64,
    /// The instance's context.
    pub vmctx: u64,
    /// Linear memory 0: first address, bytes.
    pub memory: Option<(u64, u64)>,
    /// Where memory 0 is described (`vm.rs: LocalMemory`), if it is the instance's own.
    pub memory_at: Option<u64>,
    /// The runtime's function that grows it.
    pub grow: Option<u64>,
    /// Globals that the module defines.
    pub globals: Vec<GlobalCell>,
    /// Globals that it imports.
    pub imported_globals: Vec<GlobalCell>,
}

/// A global as an image keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalCell {
    /// Type.
    pub ty: ValType,
    /// Where its 16 bytes are.
    pub address: u64,
    /// The value: integers sign-extended, floats as their bits.
    pub bits: u128,
}

/// A runtime found in a target.
pub trait Runtime: Unwinder {
    /// Runtime name.
    fn name(&self) -> &'static str;
    /// Its modules.
    fn modules(&self) -> &[GuestModule];
    /// What is here: independent of whether the caller can be found. Youngest first: what was inlined comes before what it
    /// was inlined into. Empty: not this runtime's code.
    fn describe(&self, at: &Cursor, memory: &dyn Memory) -> Vec<GuestFrame>;
    /// Things the reader should know (modules that cannot be read, caps reached).
    fn notes(&self) -> &[String];
    /// What was looked for in vain, and how: of use where there may be such a runtime.
    fn tried(&self) -> &[String] {
        &[]
    }
    /// Engines that are in the target, as far as they were looked for: where frames or modules are missing.
    fn engines(&self) -> &[Sighting] {
        &[]
    }
    /// Whether guests of the module can wait on stacks that no thread is on.
    fn may_wait(&self, module: usize) -> bool {
        let _ = module;
        false
    }
    /// Where such guests go on: registers of those stacks, as far as they are found.
    fn waiting(&self, memory: &dyn Memory) -> Vec<Cursor> {
        let _ = memory;
        Vec::new()
    }
    /// What the runtime itself would report for the frames from `at` on (`state.rs: read_stack`), of runtimes that have such
    /// images; without frames where it has no state.
    fn image(&self, thread: ThreadId, at: &Cursor, memory: &dyn Memory) -> Result<ExecutionStateImage, Why> {
        let _ = (thread, at, memory);
        Err(Why(format!("{} has no images of frames", self.name())))
    }
    /// The runtime's frame below a native frame that nothing can unwind, if the runtime's own tables lead to it.
    fn recover(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        let _ = (at, memory);
        None
    }
    /// The module whose code covers `address`.
    fn module_of(&self, address: u64) -> Option<usize>;
    /// The user's `.wasm` file of a module, if one was matched to it.
    fn wasm_file(&self, module: usize) -> Option<&WasmModule> {
        let _ = module;
        None
    }
    /// Where linear memory `index` of an instance (see [`GuestFrame::instance`]) of module `module` is, and its size in bytes.
    fn linear_memory(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<(u64, u64), Why>;
    /// Global `index` of an instance, imported ones first.
    fn global(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<Value, Why>;
    /// What an image of an instance is made from, of runtimes that have such images.
    fn instance_parts(&self, module: usize, instance: u64, memory: &dyn Memory) -> Result<InstanceParts, Why> {
        let _ = (module, instance, memory);
        Err(Why(format!("{} has no images of instances", self.name())))
    }
    /// The kind of point at `address`, if an image of a frame there goes on there (see [`crate::state::goes_on_at`]).
    fn goes_on_at(&self, address: u64, memory: &dyn Memory) -> Option<PointKind> {
        let _ = (address, memory);
        None
    }
    /// Number of elements of table `index` of an instance, imported ones first.
    fn table(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        let _ = (module, instance, index, memory);
        Err(Why(format!("how {} keeps tables is not known", self.name())))
    }
    /// The instances that were met on the way to the modules: those that code runs in are in the frames, whether they are
    /// here or not.
    fn instances(&self, memory: &dyn Memory) -> Vec<GuestInstance> {
        let _ = memory;
        Vec::new()
    }
    /// Whether there is such an instance: a damaged frame may name any address.
    fn check_instance(&self, instance: GuestInstance, memory: &dyn Memory) -> Result<(), Why> {
        let _ = (instance, memory);
        Ok(())
    }
    /// What a module declares.
    fn declared(&self, module: usize, memory: &dyn Memory) -> Declared {
        let _ = (module, memory);
        Declared::unknown(Why(format!("what {} knows of its modules is not read", self.name())))
    }
    /// Byte offset in the `.wasm` file at which the body of a function begins, local declarations included: what
    /// [`OperatorPlace::offset`] is counted from where an offset in the function is wanted.
    fn body_offset(&self, module: usize, local_function: u32) -> Option<u64> {
        self.wasm_file(module)?.body_offset(local_function)
    }
    /// Whether stepping can bring a frame of the module to a point at which more is known of it, or why it cannot.
    fn settles(&self, module: usize) -> Result<(), Why> {
        let _ = module;
        Err(Why(format!("{} has no points to which a thread could be stepped", self.name())))
    }
    /// A function that says of a pc whether the operand stack is known there. It owns what it needs, since a target is
    /// stepped on a thread of its own.
    fn reach(&self, memory: &dyn Memory) -> Box<dyn Fn(u64) -> Reach + Send>;
    /// All compiled code, described for a debugger.
    fn code_map(&self, detail: &code_map::Detail, memory: &dyn Memory) -> code_map::CodeMap;
}

/// What a provider may look at.
pub struct Scene<'a> {
    /// The process or core.
    pub target: &'a dyn Target,
    /// Its loaded files.
    pub objects: &'a Objects,
    /// Told about work that may take long.
    pub progress: &'a dyn Progress,
}

/// How a file fits a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// How much proves that it is the very file: 0 unless the target has the whole of it.
    pub exact: u8,
    /// In what they agree, in a word.
    pub summary: &'static str,
    /// Each thing in which they agree.
    pub checks: Vec<String>,
    /// What is added to a position in the core module to get one that the runtime knows.
    pub shift: u64,
}

/// What tells the modules of a provider apart. Of modules that were compiled in the same way those with other contents were
/// made from other files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// How it was compiled.
    pub build: u64,
    /// What its code does.
    pub content: u64,
}

/// Finds a runtime's modules in a target. Called again with the frames that nobody could explain, since a stack leads to
/// its modules: behind one module's frames lies the next host frame, and perhaps the next module.
pub trait Provider {
    /// Looks for modules, in particular for the ones that explain `unknown`: frames in executable memory of no file.
    /// `lost`: some stack could not be walked to its end, so there may be more of them.
    /// Returns how many were found that were not known before.
    /// The first call may come without unknown frames: modules of an idle process are worth a line too.
    fn discover(&mut self, scene: &Scene<'_>, unknown: &[Cursor], lost: bool) -> usize;
    /// Compares module `module` of this provider with a core module of a file of the user's. `Ok`: in what it agrees; `Err`: why
    /// the module was made from another one.
    fn compare(&mut self, module: usize, file: &CoreModule, memory: &dyn Memory) -> Result<Fit, String> {
        let _ = (module, file, memory);
        Err(format!("{} takes no files", self.runtime().name()))
    }
    /// Gives a module the file that it was made from.
    fn take_file(&mut self, module: usize, path: &Path, file: &CoreModule, fit: Fit) {
        let _ = (module, path, file, fit);
    }
    /// The machine code of a function that a module defines.
    fn code(&self, module: usize, local_function: u32, memory: &dyn Memory) -> Option<Vec<u8>> {
        let _ = (module, local_function, memory);
        None
    }
    /// A function's name in the name section that a module was compiled with, where the target has that.
    fn own_name(&self, module: usize, function: u32) -> Option<String> {
        let _ = (module, function);
        None
    }
    /// What tells modules apart, read from no more than `left` bytes of code. `None`: it is not known.
    fn key(&self, module: usize, left: &mut u64, memory: &dyn Memory) -> Option<Key> {
        let _ = (module, left, memory);
        None
    }
    /// Artifacts of the user's that were not looked at, and why. Asked only if no runtime has found a module.
    fn unused_artifacts(&mut self) -> Vec<(PathBuf, String)> {
        Vec::new()
    }
    /// What has been found so far.
    fn runtime(&self) -> &dyn Runtime;
}
