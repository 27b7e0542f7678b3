//! A runtime's compiled code described for a debugger. The description depends neither on the runtime nor on the file
//! format that is written from it. Offsets are bytes from the start of the function, unless said otherwise.
//!
//! Every statement here holds at *every* pc of its range, since a debugger asks about places that no walk has
//! reached. What is not known has no entry.

pub mod sources;

use crate::arch::Reg;
use crate::limits::MAX_DESCRIBED_FUNCTIONS;
pub use crate::unwind::FrameChange;
use crate::wasm::ValType;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a value is while the code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// The value is in this register.
    Register(Reg),
    /// The value is in the word at this byte offset from the CFA.
    Frame(i64),
    /// The value is known: these are its raw bits.
    Constant(u64),
}

/// A parameter or local of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Name of the parameter or local.
    pub name: String,
    /// Type of the parameter or local, if known.
    pub ty: Option<ValType>,
    /// Whether it is a parameter.
    pub parameter: bool,
    /// Where the value is: for each range (first offset, one past the last) a location. The ranges are ascending and
    /// disjoint.
    pub places: Vec<(u32, u32, Location)>,
}

/// One operand: its type and its place, as far as they are known.
pub type Operand = (Option<ValType>, Option<Location>);

/// The operand stack over a range of offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operands {
    /// First offset and one past the last. For a call the range begins one byte before the return address, since
    /// debuggers look a caller up there.
    pub range: (u32, u32),
    /// The operands, bottom first; never empty.
    pub operands: Vec<Operand>,
}

/// A line of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLine {
    /// Index into [`CompiledModule::files`].
    pub file: u32,
    /// Line number, counted from 1.
    pub line: u32,
}

/// A row of the line table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Offset from which on the row holds. It is always the start of an instruction, since a debugger puts
    /// breakpoints here.
    pub offset: u32,
    /// File and line of the code from here on. Line 0 says that no line is known from here on.
    pub at: SourceLine,
    /// Whether the prologue ends here: every local is now in the place that it has in the body.
    pub prologue_end: bool,
    /// Whether a breakpoint on the line may be set here. It may not where code that does nothing (`block`, `loop`)
    /// comes first and the line goes on behind it. Of several rows a debugger takes the first, which for the line of
    /// a loop would be before the loop.
    pub statement: bool,
}

/// A function that was inlined into another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inlined {
    /// Name of the inlined function.
    pub name: String,
    /// Ranges of offsets of its code (first, one past the last), ascending and disjoint, within those of the function
    /// around it.
    pub ranges: Vec<(u32, u32)>,
    /// The line from which the function around it calls it, if known.
    pub call: Option<SourceLine>,
    /// Functions that were inlined into this one.
    pub inner: Vec<Inlined>,
}

/// A file that line numbers refer to.
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
    /// Name of the function; `None` keeps it out of the symbol table, for code inside a file that has a symbol table
    /// of its own.
    pub name: Option<String>,
    /// Address of the first byte of its code.
    pub start: u64,
    /// Size of its code in bytes.
    pub len: u32,
    /// How the caller is found: each change holds from its offset on. Ascending by offset.
    pub frame: Vec<(u32, FrameChange)>,
    /// Whether it is a Wasm function and not glue.
    pub wasm: bool,
    /// Whether it gets a description of its own, with locals. Wasm functions do, unless there are too many.
    pub described: bool,
    /// Parameters and locals.
    pub variables: Vec<Variable>,
    /// Operand stacks by ranges of offsets, ascending and disjoint.
    pub operands: Vec<Operands>,
    /// Rows of the line table, ascending by offset.
    pub lines: Vec<Line>,
    /// Functions that were inlined into it.
    pub inlined: Vec<Inlined>,
}

/// A stretch of memory that contains compiled code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompiledModule {
    /// Display name of the module.
    pub name: String,
    /// Address of the first byte of the stretch.
    pub base: u64,
    /// The code, as far as it can be read; empty for code that a file of the target contains.
    pub code: Vec<u8>,
    /// Functions in the stretch, ascending and disjoint.
    pub functions: Vec<CompiledFunction>,
    /// Files that line numbers refer to.
    pub files: Vec<SourceFile>,
    /// The module as text, if line numbers refer to it.
    pub text: Option<Arc<str>>,
    /// Set if each store of the runtime runs a copy of its own of this code; this is the original or one of the
    /// copies.
    pub copied: Option<Copied>,
}

/// What is known of code of which each store has a copy of its own. The original runs no Wasm function, and looks
/// like each copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// A number that is the same for the original and all its copies.
    pub content: u64,
    /// Whether something shows that exactly this code runs, which the original never does.
    pub runs: bool,
}

/// All compiled code of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeMap {
    /// The modules with their code.
    pub modules: Vec<CompiledModule>,
    /// Remarks for the reader: what is missing, and why.
    pub notes: Vec<String>,
}

impl CompiledModule {
    /// Removes names, lines and variables from the Wasm functions. The rules that find callers stay.
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

/// The code with copies that earlier looks at the same process have seen: address and content of each, and whether it
/// is known to be a copy.
#[derive(Clone, Debug, Default)]
pub struct Seen(BTreeMap<(u64, u64), bool>);

impl CodeMap {
    /// Removes names, lines and variables of Wasm functions from all code that is not known to be a store's copy. A
    /// breakpoint in the original would be copied with it into a place where the debugger knows of no breakpoint, and
    /// the process would die of it. The rules that find callers stay, as trampolines run in the original. Returns
    /// whether a later look may know more about the same code.
    pub fn withhold_originals(&mut self, seen: &mut Seen) -> bool {
        let key = |m: &CompiledModule| m.copied.map(|c| ((m.base, c.content), c.runs));
        let now: BTreeMap<(u64, u64), bool> = self.modules.iter().filter_map(key).collect();
        seen.0.retain(|known, _| now.contains_key(known));
        let older = seen.0.clone();
        let same = |all: &BTreeMap<(u64, u64), bool>, content: u64| all.keys().filter(|k| k.1 == content).count();
        let mut unknown: BTreeMap<u64, usize> = BTreeMap::new();
        for (&(base, content), &runs) in &now {
            let at = (base, content);
            // Code that came while the same content was there already was copied from it.
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
                "the code of {} at {:#x} has no names and lines: with guest_debug each store runs a copy of its own, and \
                 nothing shows that this one runs; stop again while it runs",
                module.name, module.base
            ));
        }
        // One of the pieces with the same content is the original. So a later look can know more only where several
        // are unknown.
        unknown.values().any(|count| *count > 1)
    }
}

/// Which functions get locals, operand stacks and lines. Names and frames are described for all functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Every function gets them.
    All,
    /// The functions of modules that have at most `up_to` functions, and in other modules those that cover one of
    /// `addresses`.
    Some {
        /// Number of functions of a module up to which all of them are described.
        up_to: usize,
        /// Addresses in the target whose functions are described in any module.
        addresses: Vec<u64>,
    },
}

impl Detail {
    /// The detail of a symbol file when the user asks for no more.
    pub fn usual(addresses: Vec<u64>) -> Detail {
        Detail::Some { up_to: MAX_DESCRIBED_FUNCTIONS, addresses }
    }

    /// Whether a function is to be described whose code is at `range` (first address, one past the last), in a module
    /// that has `count` functions.
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
    use crate::arch::x64;

    /// `look` takes the code that one look finds: address, content, and whether it runs. It returns the addresses of
    /// the code that keeps its names, and whether a later look may know more.
    #[test]
    fn the_original_of_copies_has_no_names() {
        let look = |seen: &mut Seen, code: &[(u64, u64, bool)]| {
            let function = |name: &str, start, wasm| CompiledFunction {
                name: Some(name.into()),
                start,
                len: 8,
                frame: vec![(0, FrameChange::Undefined(x64::RIP))],
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
        // First the original alone; then a copy comes later, runs, and is gone; another copy came at its place.
        assert_eq!(look(&mut seen, &[(0x1000, 7, false)]), (vec![], false));
        assert_eq!(look(&mut seen, &[(0x1000, 7, false), (0x2000, 7, false)]), (vec![0x2000], false));
        assert_eq!(look(&mut seen, &[(0x1000, 7, false), (0x2000, 7, true)]), (vec![0x2000], false));
        assert_eq!(look(&mut seen, &[(0x1000, 7, false), (0x2000, 7, false)]), (vec![0x2000], false));
        assert_eq!(look(&mut seen, &[(0x1000, 7, false)]), (vec![], false));
        // Code with other content is no copy, and code that is left alone is an original.
        assert_eq!(look(&mut seen, &[(0x1000, 7, false), (0x2000, 8, false)]), (vec![], false));
        assert_eq!(look(&mut seen, &[(0x1000, 8, false), (0x2000, 8, false)]), (vec![0x1000], false));
        assert_eq!(look(&mut seen, &[(0x1000, 8, false)]), (vec![], false));
        // If two are there at the first look, nobody knows which is the copy until one of them runs.
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
