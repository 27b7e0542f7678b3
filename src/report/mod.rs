//! The view model: everything that is printed is put into these types first. Nothing here reads a target.
//!
//! The doc comments of these types are also the text of the JSON schema (`wstate schema`).

pub mod contents;
#[cfg(feature = "cli")]
pub mod elf_symbols;
pub mod escape;
pub mod facts;
pub mod fold;
mod header;
#[cfg(feature = "cli")]
pub mod hexdump;
pub mod json;
pub mod machinery;
pub mod names;
pub mod paths;
pub mod reasons;
#[cfg(feature = "cli")]
pub mod symbol_file;
pub mod text;
pub mod timing;
pub mod values;
pub mod wasm_coredump;

#[cfg(test)]
mod tests;

use self::facts::{TargetFacts, ThreadState};
pub use crate::runtime::engines::Engine;
use crate::runtime::engines::Sighting;
pub use crate::runtime::{Compared, FoundBy, Place, RuntimeName, Why};
pub use crate::wasm::{ExternKind, NameSource, ValType};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
pub use timing::Timing;

/// The text for a number of things, with the noun `what` in singular or plural: `1 frame`, `2 frames`.
pub fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A sentence that names the runtimes whose modules are read, for a reader who sees none. It comes from the list of
/// engines that are known.
pub fn known_runtimes() -> String {
    Engine::known()
}

/// Version of the JSON document. It grows when a key changes its meaning or goes away, not when a key is added.
pub const SCHEMA_VERSION: u32 = 1;

/// An address, an offset or raw bits. In JSON it is a lower-case hexadecimal string with `0x` and without leading
/// zeros, because JSON numbers lose bits beyond 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl From<u64> for Hex {
    fn from(v: u64) -> Hex {
        Hex(v)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Hex, D::Error> {
        json::hexadecimal(d, 16).map(|bits| Hex(bits as u64))
    }
}

#[cfg(feature = "cli")]
impl schemars::JsonSchema for Hex {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Hex".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "An address, an offset or raw bits: lower-case hexadecimal with 0x and without leading zeros.",
            "type": "string",
            "pattern": "^0x[0-9a-f]{1,16}$",
        })
    }
}

/// Raw bits of a value, written as [`Hex`] is, but with up to 128 bits, which a vector has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bits(pub u128);

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Bits {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Bits, D::Error> {
        json::hexadecimal(d, 32).map(Bits)
    }
}

#[cfg(feature = "cli")]
impl schemars::JsonSchema for Bits {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bits".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Raw bits of a value: lower-case hexadecimal with 0x and without leading zeros.",
            "type": "string",
            "pattern": "^0x[0-9a-f]{1,32}$",
        })
    }
}

words! {
    /// What a target is.
    TargetKind {
        /// A process that was captured for a moment and runs on.
        Process = "process",
        /// A core file.
        Core = "core",
    }
}

words! {
    /// What a frame's code is.
    FrameKind {
        /// Code of the executable or of a shared library.
        Native = "native",
        /// A compiled Wasm function.
        Wasm = "wasm",
        /// A runtime's glue between host and Wasm.
        Trampoline = "trampoline",
        /// Code that belongs to nothing known.
        Unknown = "unknown",
    }
}

words! {
    /// How a frame's registers were found, which says how much it can be believed.
    Trust {
        /// The thread's own registers.
        Context = "context",
        /// Call frame information of the callee.
        Cfi = "cfi",
        /// The callee's runtime knows its frame layout.
        Runtime = "runtime",
        /// Code without call frame information that was recognised by its bytes.
        Recognised = "recognised",
        /// The callee's own code, followed from its start: it has no call frame information.
        Code = "code",
        /// The callee's frame pointer; no table says that it has one.
        FramePointer = "frame_pointer",
        /// A search of the stack, confirmed by the runtime's tables; native frames before it may be missing.
        Scan = "scan",
    }
}

words! {
    /// Why a thread has no more frames.
    EndKind {
        /// The bottom of the stack was reached: the list is complete.
        Bottom = "bottom",
        /// There may be more frames, but they could not be found.
        Lost = "lost",
        /// As many frames as were asked for.
        Limit = "limit",
        /// The same frame came twice: the stack is damaged.
        Cycle = "cycle",
        /// The thread's registers could not be read, so there is nothing to start from.
        NoRegisters = "no_registers",
    }
}

words! {
    /// How the position in a Wasm function relates to `op_index`.
    OpPosition {
        /// At this operator; without `op_index`: at the one at `offset`.
        At = "at",
        /// Behind this operator and before the next one that is known.
        After = "after",
        /// In the function's header, before its first operator.
        Header = "header",
        /// Not known.
        Unknown = "unknown",
    }
}

/// Mixed native and Wasm stacks of all threads of a process or core. Readers must accept null for every field and keys
/// they do not know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Report {
    /// Version of this document's form. Grows when a key changes its meaning or goes away, not when one is added.
    pub schema_version: u32,
    /// Version of the program that wrote this.
    #[serde(default, deserialize_with = "json::or_default")]
    pub wstate_version: String,
    /// What was looked at.
    #[serde(default, deserialize_with = "json::or_default")]
    pub target: Target,
    /// Wasm runtimes that were found.
    #[serde(default, deserialize_with = "json::list")]
    pub runtimes: Vec<Runtime>,
    /// Engines for WebAssembly that are in the process and of which no module was found, or whose frames cannot be shown;
    /// looked for only where no module is known or a stack has code that nothing explains.
    #[serde(default, deserialize_with = "json::list")]
    pub engines: Vec<EngineSeen>,
    /// Executables and libraries that are missing, stripped or not the ones that the target runs.
    #[serde(default, deserialize_with = "json::list")]
    pub objects_problems: Vec<String>,
    /// What a reader should know about the whole (truncated core, routes that failed, caps that were reached).
    #[serde(default, deserialize_with = "json::list")]
    pub notes: Vec<String>,
    /// How long this took; only with `--timing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
    /// Threads, the main one or the one that crashed first.
    #[serde(default, deserialize_with = "json::list")]
    pub threads: Vec<Thread>,
}

/// The process or core.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Target {
    /// Process or core.
    pub kind: TargetKind,
    /// Process id.
    pub pid: Option<u32>,
    /// Main executable as the target names it.
    pub executable: Option<String>,
    /// One line for people.
    pub description: Option<String>,
    /// Path of the core file.
    pub path: Option<String>,
    /// Number of the signal at which the core was written (cores). It ended the process, unless a debugger had stopped the
    /// process at it and wrote the core.
    pub signal: Option<i32>,
    /// What else is known of it.
    #[serde(flatten)]
    pub facts: TargetFacts,
}

/// An engine for WebAssembly of which nothing else is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct EngineSeen {
    /// Name of the engine.
    pub name: Engine,
    /// Whether its modules are known to wstate, and none was found.
    pub supported: bool,
    /// Whether what was seen is proof.
    pub sure: bool,
    /// What was seen.
    pub evidence: String,
}

impl EngineSeen {
    /// The report's form of an engine that was seen.
    pub fn new(seen: &Sighting) -> EngineSeen {
        let (name, evidence) = (seen.engine, seen.evidence.clone());
        EngineSeen { name, supported: name.is_supported(), sure: seen.sure, evidence }
    }

    /// A sentence for people that says what was seen and what it means.
    pub fn sentence(&self) -> String {
        Sighting { engine: self.name, evidence: self.evidence.clone(), sure: self.sure }.sentence()
    }
}

/// A Wasm runtime in the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Runtime {
    /// Name of the runtime.
    pub name: RuntimeName,
    /// Its compiled modules.
    #[serde(default, deserialize_with = "json::list")]
    pub modules: Vec<Module>,
}

/// A compiled Wasm module in the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Module {
    /// Number of the module in this document, over all runtimes.
    pub index: Option<u32>,
    /// File name of its `.wasm`, the name it gives itself, or `module0`.
    pub name: Option<String>,
    /// First address of its machine code.
    pub code_start: Option<Hex>,
    /// Address one past its machine code.
    pub code_end: Option<Hex>,
    /// Number of functions it defines.
    pub functions: Option<u64>,
    /// Whether its compiler kept maps of the operand stack.
    pub tracked: Option<bool>,
    /// Compiler or tier.
    pub backend: Option<String>,
    /// Every route by which it was found.
    #[serde(default, deserialize_with = "json::list")]
    pub routes: Vec<FoundBy>,
    /// Independent facts that confirm that it is what it seems.
    #[serde(default, deserialize_with = "json::list")]
    pub checks: Vec<String>,
    /// The `.wasm` file that was matched to it.
    pub wasm_file: Option<String>,
    /// In what that file was compared with the process, in a word; `checks` has each thing.
    pub wasm_compared: Option<Compared>,
    /// What is wrong with it or missing.
    pub problem: Option<String>,
}

/// A thread and its stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Thread {
    /// Kernel thread id.
    pub tid: Option<u32>,
    /// Name of the thread.
    pub name: Option<String>,
    /// Frames, youngest first. Inlined functions are frames of their own.
    #[serde(default, deserialize_with = "json::list")]
    pub frames: Vec<Frame>,
    /// Why there are no more frames.
    pub end: Option<End>,
    /// Number of the signal that it had when the core was written (cores).
    pub signal: Option<i32>,
    /// What it did at the instant of its registers. Missing where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<ThreadState>,
    /// What a reader should know about this thread.
    #[serde(default, deserialize_with = "json::list")]
    pub notes: Vec<String>,
}

/// How a walk over a stack ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct End {
    /// How the walk ended.
    pub kind: EndKind,
    /// Why, for people.
    pub why: Option<String>,
}

/// A frame of a thread's stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Frame {
    /// Number of the frame in its thread, counted from the youngest, the same in every form of output.
    pub index: Option<u32>,
    /// Program counter: the address at which this frame continues.
    pub pc: Option<Hex>,
    /// What code it is in.
    pub kind: FrameKind,
    /// How it was found.
    pub trust: Option<Trust>,
    /// Whether it was read without stopping the thread (`--nonblocking`), which slept meanwhile; missing where it was
    /// stopped, and in cores.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[serde(default, deserialize_with = "json::or_default")]
    pub unstopped: bool,
    /// Whether frames of functions that the compiler inlined here may be missing before this one: the process holds nothing
    /// that tells. Missing where it is not so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[serde(default, deserialize_with = "json::or_default")]
    pub may_miss_inlined: bool,
    /// Executable, library or Wasm module.
    pub module: Option<String>,
    /// Byte offset of `pc` in the module: from the load address of a native module, from the start of the machine code
    /// of a Wasm module.
    pub module_offset: Option<Hex>,
    /// The function that the frame runs.
    pub function: Option<Function>,
    /// Position in the Wasm code; null in other frames.
    pub wasm: Option<WasmPosition>,
    /// Address of the instance (its `vmctx`).
    pub instance: Option<Hex>,
    /// Known registers of this frame by name; only with `--verbose`.
    pub registers: Option<BTreeMap<String, Hex>>,
    /// Locals, parameters first; null if not known.
    #[serde(default, deserialize_with = "json::optional_list")]
    pub locals: Option<Vec<Value>>,
    /// Why `locals` is null.
    pub locals_why: Option<Why>,
    /// Operand stack, bottom first; null if not known.
    #[serde(default, deserialize_with = "json::optional_list")]
    pub stack: Option<Vec<Value>>,
    /// Why `stack` is null.
    pub stack_why: Option<Why>,
    /// Variables of the source language; missing where the code image describes none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[serde(default, deserialize_with = "json::list")]
    pub variables: Vec<Variable>,
    /// What a reader should know about this frame.
    #[serde(default, deserialize_with = "json::list")]
    pub notes: Vec<String>,
}

impl Frame {
    /// Whether no frame can be missing before this one. Frames may have been left out where the code belongs to
    /// nothing known, where the walk had no unwind information, or where it is not recorded which functions were
    /// inlined.
    pub fn is_sure(&self) -> bool {
        self.kind != FrameKind::Unknown
            && !self.may_miss_inlined
            && !matches!(self.trust, Some(Trust::FramePointer | Trust::Scan))
    }

    /// A frame of which only the number, the program counter and the kind are known.
    pub fn new(index: u32, pc: u64, kind: FrameKind) -> Frame {
        Frame {
            index: Some(index),
            pc: Some(Hex(pc)),
            kind,
            trust: None,
            unstopped: false,
            may_miss_inlined: false,
            module: None,
            module_offset: None,
            function: None,
            wasm: None,
            instance: None,
            registers: None,
            locals: None,
            locals_why: None,
            stack: None,
            stack_why: None,
            variables: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// A function, native or Wasm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Function {
    /// Demangled name.
    pub name: Option<String>,
    /// Where the name comes from.
    pub name_source: Option<NameSource>,
    /// Index in the Wasm module's function space, imports first.
    pub index: Option<u32>,
    /// Index among the functions that the Wasm module defines.
    pub local_index: Option<u32>,
    /// Number of its parameters, which are the first of the frame's `locals`. Missing where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<u32>,
    /// Byte offset of `pc` from the function's machine code.
    pub offset: Option<Hex>,
    /// Path of the source file.
    pub file: Option<String>,
    /// Line in it, from 1.
    pub line: Option<u32>,
    /// Whether it was inlined into the next frame's function.
    pub inlined: Option<bool>,
}

/// A position in Wasm code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct WasmPosition {
    /// `index` of the module in `runtimes[].modules[]`.
    pub module_index: Option<u32>,
    /// Number of the operator in the function's body, from 0, local declarations not counted.
    pub op_index: Option<u64>,
    /// How the position relates to `op_index`.
    pub op_position: OpPosition,
    /// Byte offset of the operator in the `.wasm` file.
    pub offset: Option<Hex>,
    /// The operator in the text format.
    pub op: Option<String>,
    /// Source file, from debug information of the `.wasm`.
    pub file: Option<String>,
    /// Line in it, from 1.
    pub line: Option<u32>,
}

/// A local or an operand.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Value {
    /// Number of the local, or of the operand counted from the bottom.
    pub index: Option<u32>,
    /// Wasm type.
    #[serde(rename = "type")]
    pub ty: Option<ValType>,
    /// Raw bits as found: 64, of a v128 128. The upper half of an i32 or f32 is junk.
    pub bits: Option<Bits>,
    /// The value as its type prints it, raw hexadecimal if the type is not known.
    pub value: Option<String>,
    /// Where it was found: `r12`, `r12, saved at 0x7ffd...`, `[rbp-0x28]`, `[0x7f...]`, `constant`.
    pub place: Option<Place>,
    /// Address it was read from, if it was read from memory.
    pub address: Option<Hex>,
    /// Why there is no value.
    pub why: Option<Why>,
}

/// A variable of the source language.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Variable {
    /// Name of the variable.
    pub name: Option<String>,
    /// Name of its type.
    #[serde(rename = "type")]
    pub ty: Option<String>,
    /// The value as its type prints it.
    pub value: Option<String>,
    /// The bytes that `value` was made from, at most 4,096 of them; not in JSON.
    #[serde(skip)]
    pub bytes: Option<Vec<u8>>,
    /// Where it was found: `[fp-0x10]`.
    pub place: Option<String>,
    /// Why there is no value.
    pub why: Option<Why>,
}

/// How much of what was asked for is in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// Every thread has all its frames, or as many as were asked for.
    All,
    /// At least one thread's walk was lost, or went through code that nothing explains.
    Partial,
    /// There is no frame at all.
    Nothing,
}

impl Report {
    /// A report of `target` that is still empty, with the versions of this program and of the document's form.
    pub fn new(target: Target) -> Report {
        Report {
            schema_version: SCHEMA_VERSION,
            wstate_version: env!("CARGO_PKG_VERSION").to_string(),
            target,
            runtimes: Vec::new(),
            engines: Vec::new(),
            objects_problems: Vec::new(),
            notes: Vec::new(),
            timing: None,
            threads: Vec::new(),
        }
    }

    /// How much of what was asked for is in this report. A thread without a known end counts as lost.
    pub fn completeness(&self) -> Completeness {
        if self.threads.iter().all(|t| t.frames.is_empty()) {
            return Completeness::Nothing;
        }
        let whole = |t: &Thread| {
            let ended = matches!(&t.end, Some(End { kind: EndKind::Bottom | EndKind::Limit, .. }));
            ended && t.frames.iter().all(Frame::is_sure)
        };
        if self.threads.iter().all(whole) { Completeness::All } else { Completeness::Partial }
    }

    /// Drops what was not asked for: frames that are not Wasm frames (`wasm_only`) and values (`brief`). The frames
    /// keep their numbers.
    pub fn select(&mut self, wasm_only: bool, brief: bool) {
        for thread in &mut self.threads {
            if wasm_only {
                thread.frames.retain(|f| f.kind == FrameKind::Wasm);
            }
            if brief {
                for frame in &mut thread.frames {
                    (frame.locals, frame.locals_why, frame.stack, frame.stack_why) = (None, None, None, None);
                    frame.variables.clear();
                }
            }
        }
    }

    /// The module with this number, and its runtime.
    pub fn module(&self, index: u32) -> Option<(&Runtime, &Module)> {
        self.runtimes.iter().find_map(|r| Some((r, r.modules.iter().find(|m| m.index == Some(index))?)))
    }
}
