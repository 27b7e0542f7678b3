//! A runtime's compiled code described for a debugger: neutral of the runtime and of the file format that is written
//! from it. Offsets are bytes from the start of the function, unless said otherwise.
//!
//! Everything here is a promise that holds at *every* pc of its range: a debugger asks about places that nobody walked.
//! What is not known has no entry.

pub mod sources;

use super::ValType;
use crate::arch::Reg;
use crate::limits::MAX_DESCRIBED_FUNCTIONS;
pub use crate::unwind::FrameChange;
use std::sync::Arc;

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// In a register.
    Register(Reg),
    /// In the word at this byte offset from the CFA.
    Frame(i64),
    /// It is known (raw bits).
    Constant(u64),
}

/// A parameter or local.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Name.
    pub name: String,
    /// Type, if known.
    pub ty: Option<ValType>,
    /// Whether it is a parameter.
    pub parameter: bool,
    /// Where it is, by ranges of offsets, ascending and disjoint.
    pub places: Vec<(u32, u32, Location)>,
}

/// One operand: its type and its place, as far as they are known.
pub type Operand = (Option<ValType>, Option<Location>);

/// The operand stack over a range of offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operands {
    /// First offset and one past the last. For a call it begins one byte before the return address, since debuggers look
    /// a caller up there.
    pub range: (u32, u32),
    /// Bottom first; not empty.
    pub operands: Vec<Operand>,
}

/// A line of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLine {
    /// Index into [`CompiledModule::files`].
    pub file: u32,
    /// Line, 1-based.
    pub line: u32,
}

/// A row of the line table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The row holds from here on. Always the start of an instruction: a debugger puts breakpoints here.
    pub offset: u32,
    /// What is there. Line 0: from here on no line is known.
    pub at: SourceLine,
    /// Whether every local is in the place that it has in the body.
    pub prologue_end: bool,
}

/// A function that was inlined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inlined {
    /// Name.
    pub name: String,
    /// Offsets of its code, ascending and disjoint, within those of the function around it.
    pub ranges: Vec<(u32, u32)>,
    /// Where the function around it calls it, if known.
    pub call: Option<SourceLine>,
    /// What was inlined into it.
    pub inner: Vec<Inlined>,
}

/// A file that lines are in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceFile {
    /// The module's own text, [`CompiledModule::text`].
    Text,
    /// A source file, as the module's debug information names it.
    Path(String),
}

/// A stretch of code with one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompiledFunction {
    /// Name; `None` keeps it out of the symbol table (code inside a file that has its own).
    pub name: Option<String>,
    /// Address of the first byte.
    pub start: u64,
    /// Bytes of code.
    pub len: u32,
    /// How callers are found, ascending.
    pub frame: Vec<(u32, FrameChange)>,
    /// Whether it gets a description of its own, with locals: Wasm functions do unless they are too many.
    pub described: bool,
    /// Parameters and locals.
    pub variables: Vec<Variable>,
    /// Operand stacks, ascending and disjoint.
    pub operands: Vec<Operands>,
    /// Lines, ascending.
    pub lines: Vec<Line>,
    /// Functions that were inlined into it.
    pub inlined: Vec<Inlined>,
}

/// A stretch of memory with code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompiledModule {
    /// Display name.
    pub name: String,
    /// Address of the first byte.
    pub base: u64,
    /// The code, as far as it can be read; empty for code that a file of the target has.
    pub code: Vec<u8>,
    /// Functions, ascending and disjoint.
    pub functions: Vec<CompiledFunction>,
    /// Files that lines are in.
    pub files: Vec<SourceFile>,
    /// Text form, if lines are in it.
    pub text: Option<Arc<str>>,
}

/// All compiled code of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeMap {
    /// The modules.
    pub modules: Vec<CompiledModule>,
    /// What is missing and why.
    pub notes: Vec<String>,
}

/// Which functions get locals, operand stacks and lines. Names and frames are described for all functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// All.
    All,
    /// Those of modules with at most this many functions, and everywhere those that cover one of these addresses.
    Some {
        /// Functions of a module.
        up_to: usize,
        /// Addresses.
        addresses: Vec<u64>,
    },
}

impl Detail {
    /// What a symbol file describes without being asked for more.
    pub fn usual(addresses: Vec<u64>) -> Detail {
        Detail::Some { up_to: MAX_DESCRIBED_FUNCTIONS, addresses }
    }

    /// Whether the function at `range`, one of `count`, is to be described.
    pub fn covers(&self, range: (u64, u64), count: usize) -> bool {
        match self {
            Detail::All => true,
            Detail::Some { up_to, addresses } => {
                count <= *up_to || addresses.iter().any(|a| range.0 <= *a && *a < range.1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_large_modules_only_what_is_asked_for_is_described() {
        let detail = Detail::usual(vec![0x10]);
        for (range, count, covered) in [
            ((0x20, 0x30), MAX_DESCRIBED_FUNCTIONS, true),
            ((0x20, 0x30), MAX_DESCRIBED_FUNCTIONS + 1, false),
            ((0x10, 0x20), MAX_DESCRIBED_FUNCTIONS + 1, true),
            ((0, 0x10), MAX_DESCRIBED_FUNCTIONS + 1, false),
        ] {
            assert_eq!(detail.covers(range, count), covered);
        }
    }
}
