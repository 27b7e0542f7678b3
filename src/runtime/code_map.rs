//! A runtime's compiled code described for a debugger: neutral of the runtime and of the file format that is written
//! from it. Offsets are bytes from the start of the function, unless said otherwise.
//!
//! Everything here is a promise that holds at *every* pc of its range: a debugger asks about places that nobody walked.
//! What is not known has no entry.

pub mod sources;

use crate::arch::Reg;
use crate::limits::MAX_DESCRIBED_FUNCTIONS;
pub use crate::unwind::FrameChange;
use crate::wasm::ValType;
use std::collections::BTreeMap;
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
    /// Whether a breakpoint on the line may be here: not before code that does nothing (`block`, `loop`), behind which the
    /// line goes on. Of several rows a debugger takes the first, which of a loop's line would be before the loop.
    pub statement: bool,
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
    /// Whether it is a Wasm function, and no glue.
    pub wasm: bool,
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
    /// Whether each store of the runtime runs a copy of this code, of which this is one or the original.
    pub copied: Option<Copied>,
}

/// Code of which each store has a copy of its own. The original runs no Wasm function, and looks like each copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The same for all copies and the original.
    pub content: u64,
    /// Whether something shows that this very code runs, which the original never does.
    pub runs: bool,
}

/// All compiled code of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeMap {
    /// The modules.
    pub modules: Vec<CompiledModule>,
    /// What is missing and why.
    pub notes: Vec<String>,
}

impl CompiledModule {
    /// Takes names, lines and variables from its Wasm functions. How callers are found stays.
    pub fn undescribe(&mut self) {
        for function in self.functions.iter_mut().filter(|f| f.wasm) {
            *function = CompiledFunction {
                start: function.start,
                len: function.len,
                frame: std::mem::take(&mut function.frame),
                wasm: true,
                ..CompiledFunction::default()
            };
        }
        self.text = None;
    }
}

/// The code with copies that was there at earlier looks at the same process, by address and content: whether it is a copy.
#[derive(Clone, Debug, Default)]
pub struct Seen(BTreeMap<(u64, u64), bool>);

impl CodeMap {
    /// Takes names, lines and variables of Wasm functions from what is not known to be a store's copy. A breakpoint in the
    /// original is copied with it, into a place where the debugger knows of none: the process would die of it. How
    /// callers are found stays, as trampolines run in the original. Whether a later look may know more of the same code.
    pub fn withhold_originals(&mut self, seen: &mut Seen) -> bool {
        let key = |m: &CompiledModule| m.copied.map(|c| ((m.base, c.content), c.runs));
        let now: BTreeMap<(u64, u64), bool> = self.modules.iter().filter_map(key).collect();
        seen.0.retain(|known, _| now.contains_key(known));
        let older = seen.0.clone();
        let same = |all: &BTreeMap<(u64, u64), bool>, content: u64| all.keys().filter(|k| k.1 == content).count();
        let mut unknown: BTreeMap<u64, usize> = BTreeMap::new();
        for (&(base, content), &runs) in &now {
            let at = (base, content);
            // What came while the same was there already was copied from it.
            let came = !older.contains_key(&at) && same(&older, content) > 0;
            let is_copy = runs || (same(&now, content) > 1 && (came || older.get(&at) == Some(&true)));
            seen.0.insert(at, is_copy);
            if !is_copy {
                *unknown.entry(content).or_default() += 1;
            }
        }
        for module in &mut self.modules {
            let withheld = key(module).is_some_and(|(at, _)| seen.0.get(&at) == Some(&false));
            if !withheld {
                continue;
            }
            module.undescribe();
            self.notes.push(format!(
                "the code of {} at {:#x} has no names and lines: each store runs a copy (guest_debug), and this is the original                  or a copy that nothing shows to run; stop again while it runs",
                module.name, module.base
            ));
        }
        // One of each kind is the original.
        unknown.values().any(|count| *count > 1)
    }
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

    /// What has names after each of these looks, of code at these places that runs or not; and whether more may be known
    /// later.
    #[test]
    fn the_original_of_copies_has_no_names() {
        let look = |seen: &mut Seen, code: &[(u64, u64, bool)]| {
            let function = |name: &str, start, wasm| CompiledFunction {
                name: Some(name.into()),
                start,
                len: 8,
                frame: vec![(0, FrameChange::Undefined(Reg::RIP))],
                wasm,
                described: wasm,
                ..CompiledFunction::default()
            };
            let module = |&(base, content, runs): &(u64, u64, bool)| CompiledModule {
                base,
                functions: vec![function("f", base, true), function("exit", base + 8, false)],
                text: Some("(module)".into()),
                copied: Some(Copied { content, runs }),
                ..CompiledModule::default()
            };
            let mut map = CodeMap { modules: code.iter().map(module).collect(), notes: Vec::new() };
            let unsure = map.withhold_originals(seen);
            assert!(map.modules.iter().all(|m| m.functions[1].name.is_some() && !m.functions[0].frame.is_empty()));
            let named = map.modules.iter().filter(|m| m.functions[0].name.is_some());
            let named: Vec<u64> = named.inspect(|m| assert!(m.text.is_some())).map(|m| m.base).collect();
            assert_eq!(map.notes.len(), code.len() - named.len());
            (named, unsure)
        };
        let mut seen = Seen::default();
        // The original alone, then a copy that came later, which runs, is gone, and another one at its place.
        assert_eq!(look(&mut seen, &[(0x1000, 7, false)]), (vec![], false));
        assert_eq!(look(&mut seen, &[(0x1000, 7, false), (0x2000, 7, false)]), (vec![0x2000], false));
        assert_eq!(look(&mut seen, &[(0x1000, 7, false), (0x2000, 7, true)]), (vec![0x2000], false));
        assert_eq!(look(&mut seen, &[(0x1000, 7, false), (0x2000, 7, false)]), (vec![0x2000], false));
        assert_eq!(look(&mut seen, &[(0x1000, 7, false)]), (vec![], false));
        // Another module is no copy, and what is left alone is an original.
        assert_eq!(look(&mut seen, &[(0x1000, 7, false), (0x2000, 8, false)]), (vec![], false));
        assert_eq!(look(&mut seen, &[(0x1000, 8, false), (0x2000, 8, false)]), (vec![0x1000], false));
        assert_eq!(look(&mut seen, &[(0x1000, 8, false)]), (vec![], false));
        // Of two that are there at the first look nobody knows which is which, until one runs.
        let mut seen = Seen::default();
        assert_eq!(look(&mut seen, &[(0x1000, 7, false), (0x2000, 7, false)]), (vec![], true));
        assert_eq!(look(&mut seen, &[(0x1000, 7, true), (0x2000, 7, false)]), (vec![0x1000], false));
    }

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
