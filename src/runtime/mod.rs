//! Wasm runtimes. Finding them in a target ([`Provider`]) and reading its frames ([`Runtime`]) are separate jobs.

pub mod code_map;
pub mod singlepass;
pub mod wasmtime;

use crate::progress::Progress;
use crate::state::ExecutionStateImage;
use crate::target::objects::Objects;
use crate::target::{Memory, Target, ThreadId};
use crate::unwind::{Cursor, Next, Unwinder};

/// A Wasm value type, as far as these runtimes have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValType {
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// 128-bit vector.
    V128,
}

impl ValType {
    /// The text format's name.
    pub fn name(self) -> &'static str {
        match self {
            ValType::I32 => "i32",
            ValType::I64 => "i64",
            ValType::F32 => "f32",
            ValType::F64 => "f64",
            ValType::V128 => "v128",
        }
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
    /// Raw 64 bits and where they were found, or why not.
    pub slot: Slot,
}

/// A value or the reason for its absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Found. `bits` are raw: an i32 may carry junk in its upper half, which display truncates by type.
    Known {
        /// Raw bits.
        bits: u64,
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
    /// Not known.
    Unknown,
}

/// An operator of a `.wasm` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorPlace {
    /// Byte offset in the file.
    pub offset: u64,
    /// Text form.
    pub text: String,
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
}

/// A frame of a runtime's code.
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
    /// Name and where it came from ("export", "name section", "import").
    pub name: Option<(String, &'static str)>,
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
    /// Instance (its `vmctx` address), if known.
    pub instance: Option<u64>,
    /// Things to tell about this frame.
    pub notes: Vec<String>,
}

/// A compiled module found in the target.
#[derive(Clone, Debug)]
pub struct GuestModule {
    /// Display name ("app.wasm" from `--wasm`, the name section, or "module0").
    pub name: String,
    /// Address range of its code.
    pub code: (u64, u64),
    /// How it was found: every route that leads to it.
    pub routes: Vec<&'static str>,
    /// What confirmed it; at least two independent facts.
    pub checks: Vec<String>,
    /// Number of defined functions.
    pub functions: usize,
    /// Whether operand stacks were tracked by the compiler.
    pub tracked: bool,
    /// Compiler or tier ("singlepass").
    pub backend: String,
    /// The user's `.wasm` that was matched to it.
    pub wasm_file: Option<String>,
    /// What is wrong with it or missing.
    pub problem: Option<String>,
}

/// What stepping to a pc reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A point: the operand stack is known here.
    Point,
    /// The runtime's code between points.
    Inside,
    /// Other code.
    Outside,
}

/// A runtime found in a target.
pub trait Runtime: Unwinder {
    /// Runtime name.
    fn name(&self) -> &'static str;
    /// Its modules.
    fn modules(&self) -> &[GuestModule];
    /// What is here: independent of whether the caller can be found.
    fn describe(&self, at: &Cursor, memory: &dyn Memory) -> Option<GuestFrame>;
    /// Things the reader should know (routes that failed, caps reached).
    fn notes(&self) -> &[String];
    /// What the runtime itself would report for the frames from `at` on (`state.rs: read_stack`), if it has such a thing.
    fn image(&self, thread: ThreadId, at: &Cursor, memory: &dyn Memory) -> Option<ExecutionStateImage>;
    /// The runtime's frame below a native frame that nothing can unwind, if the runtime's own tables lead to it.
    fn recover(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        let _ = (at, memory);
        None
    }
    /// The module whose code covers `address`.
    fn module_of(&self, address: u64) -> Option<usize>;
    /// Where linear memory `index` of an instance (see [`GuestFrame::instance`]) of module `module` is, and its size in bytes.
    fn linear_memory(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<(u64, u64), Why>;
    /// Global `index` of an instance, imported ones first.
    fn global(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<Value, Why>;
    /// A function that says of a pc whether the operand stack is known there. It owns what it needs, since a target is
    /// stepped on a thread of its own.
    fn reach(&self) -> Box<dyn Fn(u64) -> Reach + Send>;
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

/// Finds a runtime's modules in a target. Called again with the frames that nobody could explain, since a stack leads to
/// its modules: behind one module's frames lies the next host frame, and perhaps the next module.
pub trait Provider {
    /// Looks for modules, in particular for the ones that explain `unknown`: frames in executable memory of no file.
    /// `lost`: some stack could not be walked to its end, so there may be more of them.
    /// Returns how many were found that were not known before.
    fn discover(&mut self, scene: &Scene<'_>, unknown: &[Cursor], lost: bool) -> usize;
    /// What has been found so far.
    fn runtime(&self) -> &dyn Runtime;
}
