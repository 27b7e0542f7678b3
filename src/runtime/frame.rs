//! What is known of a frame of compiled Wasm code, and of the values in it.

use super::Why;
use crate::wasm::{NameSource, ValType};

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
    /// The frame is in the function header, before the first operator.
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
    /// The frame runs a compiled Wasm function.
    Wasm,
    /// The frame runs glue code between host and Wasm.
    Trampoline,
    /// The data that tells Wasm functions from glue code cannot be read.
    Unknown,
}

/// A frame of a runtime's code. Where functions were inlined, one pc stands for several such frames.
#[derive(Clone, Debug)]
pub struct GuestFrame {
    /// What kind of code the frame runs.
    pub kind: GuestKind,
    /// Index into `Runtime::modules`.
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
    /// Number of the function's parameters, which are the first of its locals, if known.
    pub params: Option<u32>,
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
            params: None,
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
