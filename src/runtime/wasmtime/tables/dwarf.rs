//! The debug information of the source language that an image carries (`debug_info(true)`).
//!
//! Wasmtime translates the DWARF of the Wasm file, so that it describes the machine code. For functions without DWARF
//! it writes its own: their parameters and locals are `var0`, `var1` or what the name section says, and their lines
//! are offsets in the Wasm file ([`SourceFrame::generated`]).
//!
//! The sections in the image are those of a relocatable file: their addresses are relocations that nobody applied.
//! They are applied here to a copy, so that one [`ImageDwarf`] serves wherever the same image is mapped. All
//! functions take offsets from the start of the code. For a return address ask one byte before it.
//!
//! A value is what the image says, and the image says what the guest's compiler said: clang 14 with `-O1` describes a
//! parameter as being in its Wasm local for the whole function, even after the point where that local is used for
//! something else.
//!
//! Addresses within the guest are 32-bit offsets in its linear memory. Values in linear memory are described through
//! the `vmctx` (`expression.rs: append_memory_deref`), so nothing else has to be known of the instance. Static
//! variables are not described at all: they have fixed guest addresses, which Wasmtime does not translate.

mod layout;
mod location;
mod sections;
#[cfg(test)]
mod tests;
mod types;
mod units;

use std::fmt;

use gimli::UnitOffset;

use super::dwarf::location::{Frame, Located};
use super::dwarf::sections::BIAS;
use super::dwarf::units::{Attribute, Entry, FileLine, Units, Visit};
use crate::arch::Registers;
use crate::limits::{MAX_INLINE_DEPTH, MAX_SCOPE_WORK, MAX_SOURCE_VALUE_BYTES, MAX_SOURCE_VARIABLES};
use crate::process::Memory;
use crate::runtime::wasmtime::image::Image;
use crate::runtime::{SourceValue, SourceVariable, Why};
use crate::symbolize::native::demangle;

/// Name of the variable by which Wasmtime describes where the instance is.
const VMCTX: &str = "__vmctx";

/// One source-level function at an offset in the code. Where the guest's compiler inlined functions, there are
/// several, innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFrame {
    /// Demangled function name.
    pub function: Option<String>,
    /// Source file, or the Wasm file if `generated`.
    pub file: Option<String>,
    /// Line, 1-based. If `generated`, the byte offset in the Wasm file.
    pub line: Option<u32>,
    /// Column, 1-based.
    pub column: Option<u32>,
    /// Whether the function was inlined into the next one of the list.
    pub inlined: bool,
    /// Whether Wasmtime wrote the description of a function that the Wasm file does not describe.
    pub generated: bool,
}

/// Debug information of one image.
pub struct ImageDwarf {
    units: Units,
}

impl fmt::Debug for ImageDwarf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageDwarf").field("units", &self.units.count()).finish_non_exhaustive()
    }
}

/// A function, or a function that is inlined into it.
struct Scope {
    /// The function's entry: a subprogram or an inlined subroutine.
    entry: Entry,
    /// Index of the scope around this one. For the function itself it is its own index.
    parent: usize,
    /// Where the function was called, if it is inlined.
    call: FileLine,
    /// Offsets of the entries of its parameters and variables, in the order of the source.
    variables: Vec<UnitOffset>,
}

impl ImageDwarf {
    /// Copies and relocates the debug sections. `None` if the image has none.
    ///
    /// # Errors
    /// If the sections are broken or cannot be read. The text says what is wrong.
    pub fn load(image: &Image, memory: &dyn Memory) -> Result<Option<ImageDwarf>, String> {
        let sections = sections::read(image, memory)?;
        Ok(sections.map(|sections| ImageDwarf { units: Units::new(sections::dwarf(sections)) }))
    }

    /// The source-level functions at an offset in the code, innermost first. The list is empty if none is described.
    pub fn frames(&self, text_offset: u32) -> Vec<SourceFrame> {
        let address = BIAS + u64::from(text_offset);
        self.source_frames(&self.scopes(address).iter().collect::<Vec<_>>(), address)
    }

    /// The names of the scopes at an address, and where they are in the source. `scopes` has the outermost first, the
    /// result the innermost.
    fn source_frames(&self, scopes: &[&Scope], address: u64) -> Vec<SourceFrame> {
        let Some(innermost) = scopes.last() else { return Vec::new() };
        let mut at = self.units.line_at(&innermost.entry.unit, address);
        let mut out = Vec::new();
        for (depth, scope) in scopes.iter().enumerate().rev() {
            let linkage = self.units.linkage_name(&scope.entry).map(|name| demangle(&name));
            out.push(SourceFrame {
                function: linkage.or_else(|| self.units.name(&scope.entry)),
                file: at.file,
                line: at.line,
                column: at.column,
                inlined: depth > 0,
                generated: scope.entry.unit.generated,
            });
            at = scope.call.clone();
        }
        out
    }

    /// The parameters and variables of the function at an offset in the code, with their values there: those of the
    /// innermost inlined function first, as [`ImageDwarf::frames`] has them.
    ///
    /// `cfa` is the canonical frame address: the caller's stack pointer after the call returns.
    #[cfg(any(test, feature = "internals"))]
    pub fn variables(
        &self,
        text_offset: u32,
        registers: &Registers,
        cfa: Option<u64>,
        memory: &dyn Memory,
    ) -> Vec<SourceVariable> {
        self.scoped_variables(text_offset, registers, cfa, memory).into_iter().flatten().collect()
    }

    /// Returns these variables in one list for each of [`ImageDwarf::frames`].
    pub fn scoped_variables(
        &self,
        text_offset: u32,
        registers: &Registers,
        cfa: Option<u64>,
        memory: &dyn Memory,
    ) -> Vec<Vec<SourceVariable>> {
        let address = BIAS + u64::from(text_offset);
        let scopes = self.scopes(address);
        let Some(frame_base) = scopes.first().map(frame_base) else { return Vec::new() };
        let frame = Frame { address, registers, cfa, memory, frame_base };
        let of_scope = |scope: &Scope| {
            let entries = scope.variables.iter().filter_map(|&offset| self.entry(scope, offset));
            entries.filter_map(|entry| self.variable(&entry, &frame)).collect()
        };
        scopes.iter().rev().map(of_scope).collect()
    }

    /// The instance (`vmctx`) that the function at an offset in the code runs in, if its place is described. It is
    /// what the image says and nothing more: the caller has to check that there is an instance.
    pub fn vmctx(&self, text_offset: u32, registers: &Registers, cfa: Option<u64>, memory: &dyn Memory) -> Option<u64> {
        let address = BIAS + u64::from(text_offset);
        let scopes = self.scopes(address);
        let frame = Frame { address, registers, cfa, memory, frame_base: frame_base(scopes.first()?) };
        // All of the scopes run in the same instance.
        scopes.iter().find_map(|scope| {
            let entries = scope.variables.iter().filter_map(|&offset| self.entry(scope, offset));
            let mut named = entries.filter(|entry| self.units.name(entry).as_deref() == Some(VMCTX));
            named.find_map(|entry| {
                let Ok(Located::Pieces(pieces)) = location::locate(&self.units, &entry, &frame) else { return None };
                let (bytes, _) = location::bytes_of(&pieces, 8, &frame).ok()?;
                Some(u64::from_le_bytes(bytes.try_into().ok()?))
            })
        })
    }

    fn entry(&self, scope: &Scope, offset: UnitOffset) -> Option<Entry> {
        let unit = scope.entry.unit.clone();
        let die = unit.unit.entry(offset).ok()?;
        Some(Entry { unit, die })
    }

    /// The function at an address and the functions that are inlined there, outermost first.
    fn scopes(&self, address: u64) -> Vec<Scope> {
        let Some(function) = self.units.function_at(address) else { return Vec::new() };
        let unit = function.unit.clone();
        let mut found = 1;
        self.scopes_of(function, &mut |die, depth, work| {
            let inlined = die.tag() == gimli::DW_TAG_inlined_subroutine;
            let is_next = !inlined || (depth == found && found < MAX_INLINE_DEPTH);
            let covers = is_next && self.units.covers(&unit.unit, die, address, work);
            found += usize::from(covers && inlined);
            covers
        })
    }

    /// The scopes of a function and of the functions inlined into it, each before those inside it. `enter` gets each
    /// block and each inlined function with the number of functions around it, and says whether the walk goes into
    /// it.
    fn scopes_of(&self, function: Entry, enter: &mut dyn FnMut(&units::Die, usize, &mut u64) -> bool) -> Vec<Scope> {
        let (unit, root) = (function.unit.clone(), function.die.offset());
        let mut scopes = vec![Scope { entry: function, parent: 0, call: FileLine::default(), variables: Vec::new() }];
        // The inlined functions that the walk is inside of: the depth of each and the index of its scope.
        let mut inside: Vec<(isize, usize)> = Vec::new();
        let mut variables = 0;
        let mut work = MAX_SCOPE_WORK;
        let mut visit = |die: units::Die, depth: isize, work: &mut u64| {
            while inside.last().is_some_and(|&(above, _)| depth <= above) {
                inside.pop();
            }
            // What stands behind an inlined function belongs to the function around it.
            let parent = inside.last().map_or(0, |&(_, scope)| scope);
            match die.tag() {
                gimli::DW_TAG_formal_parameter | gimli::DW_TAG_variable => {
                    let scope = scopes.get_mut(parent);
                    if let Some(scope) = scope.filter(|_| variables < MAX_SOURCE_VARIABLES) {
                        scope.variables.push(die.offset());
                        variables += 1;
                    }
                    Visit::Skip
                }
                gimli::DW_TAG_lexical_block | gimli::DW_TAG_try_block | gimli::DW_TAG_catch_block => {
                    if enter(&die, inside.len() + 1, work) { Visit::Enter } else { Visit::Skip }
                }
                gimli::DW_TAG_inlined_subroutine => {
                    if !enter(&die, inside.len() + 1, work) {
                        return Visit::Skip;
                    }
                    let number = |name| die.attr_value(name).and_then(|v| v.udata_value()).filter(|&n| n != 0);
                    let line = number(gimli::DW_AT_call_line).map(|n| n as u32);
                    let column = number(gimli::DW_AT_call_column).map(|n| n as u32);
                    let file = match die.attr_value(gimli::DW_AT_call_file) {
                        Some(gimli::AttributeValue::FileIndex(index)) => self.units.file(&unit, index),
                        _ => None,
                    };
                    let entry = Entry { unit: unit.clone(), die };
                    inside.push((depth, scopes.len()));
                    scopes.push(Scope { entry, parent, call: FileLine { file, line, column }, variables: Vec::new() });
                    Visit::Enter
                }
                _ => Visit::Skip,
            }
        };
        // If an entry cannot be read, what was found before it stays.
        let _ = self.units.walk(&unit, root, &mut work, &mut visit);
        scopes
    }

    /// The variable that an entry describes. `None` if it is no variable of the source.
    fn variable(&self, entry: &Entry, frame: &Frame<'_>) -> Option<SourceVariable> {
        let units = &self.units;
        let name = units.name(entry).filter(|name| name != VMCTX)?;
        if entry.die.has_attr(gimli::DW_AT_declaration) {
            return None;
        }
        let ty = units.type_of(entry);
        let shown = |ty: &Entry| -> Result<SourceValue, Why> {
            let found = location::locate(units, entry, frame)?;
            let size = types::size(units, ty).ok_or_else(|| Why::other("its type has no size"))?;
            let len = size.min(MAX_SOURCE_VALUE_BYTES) as usize;
            let (bytes, place) = match found {
                Located::Pieces(pieces) => location::bytes_of(&pieces, len, frame)?,
                Located::Constant(value) => {
                    (location::constant_bytes(units, &entry.unit, &value, len)?, "constant".to_string())
                }
            };
            let text = types::print(units, ty, &bytes);
            let text = text.ok_or_else(|| Why::other("values of its type are not shown"))?;
            Ok(SourceValue { text, bytes, place })
        };
        let value = match &ty {
            Some(ty) => shown(ty),
            None => Err(Why::other("its type is not described")),
        };
        Some(SourceVariable { name, ty: ty.as_ref().map(|ty| types::name(units, Some(ty))), value })
    }
}

fn frame_base(outermost: &Scope) -> Option<Attribute> {
    outermost.entry.die.attr_value(gimli::DW_AT_frame_base)
}
