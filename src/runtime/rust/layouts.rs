//! Layouts of Rust structures in a host.
//!
//! `repr(Rust)` promises nothing, so an offset is only known for one compiler. There are two sources of offsets,
//! which are asked in this order:
//!
//! 1. The host's DWARF, where it was built with `debug = 2` (`debug = 1` and line tables have no types).
//! 2. A table keyed by the compiler version that the linker left in `.comment`, a section that `strip` keeps.
//!
//! `offsets!` holds both in one row per offset: the measured number and the path through the types that leads to it.
//! So the table can be checked against any host that has DWARF, and a new compiler needs one column of numbers.
//!
//! Neither source is trusted further than to say where to look. The readers check pointers, lengths, tags and orders
//! themselves, and an address that does not read like the structure is an error, not a value.

use crate::limits;
use crate::process::unpack::section_bytes;
use gimli::{EndianSlice, LittleEndian, UnitOffset};
use object::{Object, ObjectSection};
use std::borrow::Cow;
use std::collections::HashMap;

/// Stands in a layout for the discriminant of a variant that has none of its own. In such an enum (niche encoding)
/// every value that is not another variant's discriminant belongs to this variant.
pub const DATAFUL: u64 = u64::MAX;

/// Where the layouts of a host came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutOrigin {
    /// The host's debug info.
    Dwarf,
    /// The built-in table of this compiler version.
    Table(&'static str),
}

/// Why the layouts of a host are not known.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Neither `.comment` nor type information says what compiled the host.
    #[error("no compiler named in .comment and no type information in the host")]
    NoCompiler,
    /// The table has no column for the host's compiler.
    #[error("unknown compiler: rustc {found}; layouts known for: {known}")]
    UnknownCompiler {
        /// Versions that the host names, separated by commas.
        found: String,
        /// Versions that the table has, separated by commas.
        known: String,
    },
    /// There is no file of the host to look at. The string names the file.
    #[error("{0} cannot be read, so neither its debug info nor its compiler is known")]
    NoFile(String),
}

// The language of the paths: a path begins at a root type, and `Root.member.member` is the offset of that member in
// bytes. A step may also be `*` (follow the pointer; offsets restart), `<T>` (go to the type argument T; offsets
// restart), `!` (offsets restart here) or `:Variant` (go into that variant). The last step may be `#` (size of the
// type in bytes), `^` (offset of the discriminant), `^#` (size of the discriminant), `@Variant` (the discriminant's
// value for that variant) or `@?Variant` (the same, and `DATAFUL` if the variant has none). `|` separates
// alternatives, for fields of std whose names changed.
macro_rules! offsets {
    ($(#[$doc:meta])* $name:ident { $($field:ident $value:literal $path:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // Each field's path says what it is.
        pub struct $name { $(pub $field: u64,)* }

        impl $name {
            /// The numbers for rustc 1.95.0.
            pub const RUSTC_1_95_0: $name = $name { $($field: $value,)* };

            /// Computes every field by following its path. The error names the first path that leads nowhere.
            fn from_types(types: &$crate::runtime::rust::layouts::Types<'_>) -> Result<$name, String> {
                Ok($name { $($field: types.eval($path).ok_or_else(|| format!("no {} in the debug info", $path))?,)* })
            }

            /// All fields as (name, value), for comparing layouts and for `--verbose`.
            #[allow(dead_code)] // For some structures, only tests ask.
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field),)*]
            }
        }
    };
}
pub(crate) use offsets;

/// Versions of rustc named in `.comment` ("rustc version 1.95.0 (59807616e 2026-04-14)"), in file order, each once.
pub fn compilers(elf: &[u8]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let Ok(file) = object::File::parse(elf) else { return out };
    let Some(section) = file.section_by_name(".comment") else { return out };
    let Some(data) = section_bytes(&section) else { return out };
    for line in data.split(|&b| b == 0).take(limits::MAX_COMMENT_LINES) {
        let Some(rest) = line.strip_prefix(b"rustc version ") else { continue };
        let version = rest.split(|&b| b == b' ').next().unwrap_or(rest);
        let version = String::from_utf8_lossy(version).into_owned();
        if version.len() <= 64 && !out.contains(&version) {
            out.push(version);
        }
    }
    out
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Unit<'a> = gimli::Unit<Slice<'a>>;

/// Finds the types with these names in the debug info of an ELF file, and reads layouts from them. They are looked for
/// first in the units whose name contains `likely`. `Ok(None)` means that the file has no debug info, or that one of the
/// types is not in it.
pub fn with_types<T>(
    elf: &[u8],
    wanted: &'static [&'static str],
    likely: &str,
    read: impl FnOnce(&Types<'_>) -> Result<T, String>,
) -> Result<Option<T>, String> {
    let file = object::File::parse(elf).map_err(|e| e.to_string())?;
    if file.section_by_name(".debug_info").is_none() {
        return Ok(None);
    }
    let mut total = 0u64;
    let sections = gimli::DwarfSections::load(|id| -> Result<Cow<'_, [u8]>, String> {
        let Some(section) = file.section_by_name(id.name()) else { return Ok(Cow::Borrowed(&[][..])) };
        let size = section.compressed_file_range().map_or(u64::MAX, |range| range.uncompressed_size);
        total = total.saturating_add(size);
        if total > limits::MAX_DEBUG_INFO_BYTES {
            return Err(format!("{} is too large", id.name()));
        }
        section_bytes(&section).ok_or_else(|| format!("{} cannot be read", id.name()))
    })?;
    let dwarf = sections.borrow(|s| EndianSlice::new(s, LittleEndian));
    let Some(types) = Types::find(&dwarf, wanted, likely).map_err(|e| e.to_string())? else { return Ok(None) };
    read(&types).map(Some)
}

/// A type in the debug info: the index of its unit in `Types::units`, and its entry in that unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TypeRef {
    unit: usize,
    entry: UnitOffset,
}

struct Member {
    name: String,
    offset: u64,
    ty: Option<TypeRef>,
}

#[derive(Default)]
struct VariantPart {
    tag_offset: u64,
    tag_ty: Option<TypeRef>,
    variants: Vec<(Option<u64>, Member)>,
}

#[derive(Default)]
struct TypeEntry {
    size: Option<u64>,
    /// The type that a pointer, array or typedef leads to.
    target: Option<TypeRef>,
    members: Vec<Member>,
    arguments: Vec<(String, TypeRef)>,
    variants: Option<VariantPart>,
}

/// The part of the debug info that paths are evaluated in: the root types and the units that hold them.
pub struct Types<'a> {
    dwarf: &'a gimli::Dwarf<Slice<'a>>,
    units: Vec<Unit<'a>>,
    roots: HashMap<&'static str, TypeRef>,
    /// Names of the root types.
    wanted: &'static [&'static str],
}

impl<'a> Types<'a> {
    /// Looks for the root types: first in units whose name contains `likely`, then in all others (LTO names units as
    /// it likes). Stops when all are found.
    fn find(
        dwarf: &'a gimli::Dwarf<Slice<'a>>,
        wanted: &'static [&'static str],
        likely: &str,
    ) -> Result<Option<Types<'a>>, gimli::Error> {
        let mut types = Types { dwarf, units: Vec::new(), roots: HashMap::new(), wanted };
        let mut budget = limits::MAX_DEBUG_ENTRIES;
        for of_likely in [true, false] {
            let mut headers = dwarf.units();
            while let Some(header) = headers.next()? {
                if types.roots.len() == wanted.len() {
                    return Ok(Some(types));
                }
                let unit = dwarf.unit(header)?;
                let named = unit.name.is_some_and(|n| n.to_string_lossy().contains(likely));
                if named == of_likely {
                    types.search_unit(unit, &mut budget)?;
                }
                if budget == 0 {
                    break;
                }
            }
        }
        Ok((types.roots.len() == wanted.len()).then_some(types))
    }

    fn search_unit(&mut self, unit: Unit<'a>, budget: &mut u64) -> Result<(), gimli::Error> {
        let mut found = Vec::new();
        {
            let mut entries = unit.entries_raw(None)?;
            while !entries.is_empty() && *budget > 0 {
                *budget -= 1;
                let offset = entries.next_offset();
                // This entry ends a list of children.
                let Some(abbreviation) = entries.read_abbreviation()? else { continue };
                // Millions of entries are passed to find six, so other entries are skipped unread.
                if abbreviation.tag() != gimli::DW_TAG_structure_type {
                    entries.skip_attributes(abbreviation.attributes())?;
                    continue;
                }
                let (mut name, mut has_size) = (None, false);
                for &attribute in abbreviation.attributes() {
                    let attribute = entries.read_attribute(attribute)?;
                    match attribute.name() {
                        gimli::DW_AT_name => _ = name.get_or_insert(attribute.value()),
                        // A mere declaration of a type has no size.
                        gimli::DW_AT_byte_size => has_size = true,
                        _ => {}
                    }
                }
                let Some(name) = name.filter(|_| has_size) else { continue };
                let Ok(name) = self.dwarf.attr_string(&unit, name) else { continue };
                if let Some(root) = self.wanted.iter().find(|r| r.as_bytes() == name.slice())
                    && !self.roots.contains_key(root)
                {
                    found.push((*root, offset));
                }
            }
        }
        if !found.is_empty() {
            let index = self.units.len();
            self.units.push(unit);
            for (root, entry) in found {
                self.roots.entry(root).or_insert(TypeRef { unit: index, entry });
            }
        }
        Ok(())
    }

    fn reference(&self, unit: usize, entry: &gimli::DebuggingInformationEntry<Slice<'a>>) -> Option<TypeRef> {
        match entry.attr_value(gimli::DW_AT_type)? {
            gimli::AttributeValue::UnitRef(offset) => Some(TypeRef { unit, entry: offset }),
            gimli::AttributeValue::DebugInfoRef(offset) => self.units.iter().enumerate().find_map(|(unit, u)| {
                let entry = offset.to_unit_offset(&u.header)?;
                Some(TypeRef { unit, entry })
            }),
            _ => None,
        }
    }

    fn name(&self, unit: &Unit<'a>, entry: &gimli::DebuggingInformationEntry<Slice<'a>>) -> String {
        entry
            .attr_value(gimli::DW_AT_name)
            .and_then(|v| self.dwarf.attr_string(unit, v).ok())
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    fn member(
        &self,
        unit_index: usize,
        unit: &Unit<'a>,
        entry: &gimli::DebuggingInformationEntry<Slice<'a>>,
    ) -> Member {
        Member {
            name: self.name(unit, entry),
            offset: entry.attr_value(gimli::DW_AT_data_member_location).and_then(|v| v.udata_value()).unwrap_or(0),
            ty: self.reference(unit_index, entry),
        }
    }

    /// Reads one type with its members. `None` where the debug info is broken or the type has too many members.
    fn entry(&self, ty: TypeRef) -> Option<TypeEntry> {
        let unit = self.units.get(ty.unit)?;
        let mut tree = unit.entries_tree(Some(ty.entry)).ok()?;
        let root = tree.root().ok()?;
        let mut out = TypeEntry {
            size: root.entry().attr_value(gimli::DW_AT_byte_size).and_then(|v| v.udata_value()),
            target: self.reference(ty.unit, root.entry()),
            ..TypeEntry::default()
        };
        let mut children = root.children();
        let mut seen = 0;
        while let Ok(Some(child)) = children.next() {
            seen += 1;
            if seen > limits::MAX_MEMBERS {
                return None;
            }
            match child.entry().tag() {
                gimli::DW_TAG_member => out.members.push(self.member(ty.unit, unit, child.entry())),
                gimli::DW_TAG_template_type_parameter => {
                    if let Some(argument) = self.reference(ty.unit, child.entry()) {
                        out.arguments.push((self.name(unit, child.entry()), argument));
                    }
                }
                gimli::DW_TAG_variant_part => out.variants = Some(self.variant_part(ty.unit, unit, child)?),
                _ => {}
            }
        }
        Some(out)
    }

    fn variant_part(
        &self,
        unit_index: usize,
        unit: &Unit<'a>,
        node: gimli::EntriesTreeNode<'_, '_, Slice<'a>>,
    ) -> Option<VariantPart> {
        let mut part = VariantPart::default();
        let tag = match node.entry().attr_value(gimli::DW_AT_discr) {
            Some(gimli::AttributeValue::UnitRef(tag)) => Some(tag),
            _ => None,
        };
        let mut children = node.children();
        let mut seen = 0;
        while let Ok(Some(child)) = children.next() {
            seen += 1;
            if seen > limits::MAX_MEMBERS {
                return None;
            }
            match child.entry().tag() {
                gimli::DW_TAG_member if Some(child.entry().offset()) == tag => {
                    let member = self.member(unit_index, unit, child.entry());
                    (part.tag_offset, part.tag_ty) = (member.offset, member.ty);
                }
                gimli::DW_TAG_variant => {
                    let value = child
                        .entry()
                        .attr_value(gimli::DW_AT_discr_value)
                        .and_then(|v| v.udata_value().or_else(|| v.sdata_value().map(|s| s as u64)));
                    let mut inner = child.children();
                    while let Ok(Some(m)) = inner.next() {
                        if m.entry().tag() == gimli::DW_TAG_member {
                            part.variants.push((value, self.member(unit_index, unit, m.entry())));
                            break;
                        }
                    }
                }
                _ => {}
            }
        }
        Some(part)
    }

    /// Evaluates a path (see `offsets!`). Of several alternatives it takes the first that leads somewhere.
    pub fn eval(&self, paths: &str) -> Option<u64> {
        paths.split('|').find_map(|path| self.eval_one(path))
    }

    fn eval_one(&self, path: &str) -> Option<u64> {
        let mut steps = path.split('.');
        let mut ty = *self.roots.get(steps.next()?)?;
        let mut at = 0u64;
        for step in steps {
            let entry = self.entry(ty)?;
            let next = match step {
                "#" => return entry.size,
                "^" => return at.checked_add(entry.variants?.tag_offset),
                "^#" => return self.entry(entry.variants?.tag_ty?)?.size,
                "!" => {
                    at = 0;
                    continue;
                }
                "*" => {
                    at = 0;
                    entry.target?
                }
                _ if step.starts_with('@') => {
                    let variants = entry.variants?.variants;
                    let name = step.trim_start_matches(['@', '?']);
                    let (value, _) = variants.into_iter().find(|(_, m)| m.name == name)?;
                    return value.or_else(|| step.starts_with("@?").then_some(DATAFUL));
                }
                _ if step.starts_with('<') => {
                    at = 0;
                    let name = step.trim_matches(['<', '>']);
                    entry.arguments.into_iter().find(|(n, _)| n == name)?.1
                }
                _ => {
                    let member = match step.strip_prefix(':') {
                        Some(name) => entry.variants?.variants.into_iter().map(|(_, m)| m).find(|m| m.name == name)?,
                        None => entry.members.into_iter().find(|m| m.name == step)?,
                    };
                    at = at.checked_add(member.offset)?;
                    member.ty?
                }
            };
            ty = next;
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::{Section, elf};
    use gimli::write::{AttributeValue, DwarfUnit, EndianVec, Sections};

    #[test]
    fn comments_have_an_end() {
        let line = b"rustc version 1.95.0 (x)\0";
        for (lines, found) in [(limits::MAX_COMMENT_LINES - 1, 1), (limits::MAX_COMMENT_LINES, 0)] {
            let bytes = [&b"x\0".repeat(lines), &line[..]].concat();
            let file = elf(&[Section { name: ".comment", flags: 0, address: 0, bytes: &bytes }]);
            assert_eq!(compilers(&file).len(), found);
        }
    }

    #[test]
    fn entries_and_members_have_an_end() {
        for (labels, members) in [
            (limits::MAX_DEBUG_ENTRIES as usize - 100, 1),
            (limits::MAX_DEBUG_ENTRIES as usize, 1),
            (0, limits::MAX_MEMBERS),
            (0, limits::MAX_MEMBERS + 1),
        ] {
            let encoding = gimli::Encoding { format: gimli::Format::Dwarf32, version: 4, address_size: 8 };
            let mut unit = DwarfUnit::new(encoding);
            let top = unit.unit.root();
            for _ in 0..labels {
                unit.unit.add(top, gimli::DW_TAG_label);
            }
            for name in ["One", "Two"] {
                let id = unit.unit.add(top, gimli::DW_TAG_structure_type);
                let entry = unit.unit.get_mut(id);
                entry.set(gimli::DW_AT_name, AttributeValue::String(name.into()));
                entry.set(gimli::DW_AT_byte_size, AttributeValue::Udata(8));
                (0..members).for_each(|_| _ = unit.unit.add(id, gimli::DW_TAG_member));
            }
            let mut sections = Sections::new(EndianVec::new(LittleEndian));
            unit.write(&mut sections).unwrap();
            let load = |id| {
                let data = sections.get(id).map(|s| s.slice()).unwrap_or_default();
                Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
            };
            let dwarf = gimli::Dwarf::load(load).unwrap();
            let types = Types::find(&dwarf, &["One", "Two"], "runtime").unwrap();
            assert_eq!(types.is_some(), labels < limits::MAX_DEBUG_ENTRIES as usize);
            if let Some(types) = types {
                let found = types.roots.values().all(|root| types.entry(*root).is_some());
                assert_eq!(found, members <= limits::MAX_MEMBERS);
            }
        }
    }
}
