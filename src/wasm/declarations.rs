//! What a module declares: imports, exports, memories, tables, globals and segments.

use std::collections::BTreeMap;
use std::fmt;

use wasmparser::{ExternalKind, TypeRef};

use super::types::{ExternKind, ValType, any_type};

/// Binary logarithm of the size of a Wasm page, unless a memory declares another page size.
const WASM_PAGE_LOG2: u32 = 16;

/// What a module declares, as its `.wasm` file or a runtime tells it. A field that is `None` is not known and not
/// compared; a file knows all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    /// Kinds of imports, each with the module and field names of its imports in the order of indices. A kind that is
    /// missing has no imports in a file, and is not known from a runtime.
    pub imports: Vec<(ExternKind, Vec<(String, String)>)>,
    /// Parameters and results of functions, by function index, as far as a runtime tells them. A file tells them with
    /// `WasmModule::signature`.
    pub signatures: BTreeMap<u32, (Vec<ValType>, Vec<ValType>)>,
    /// The exports, in any order.
    pub exports: Option<Vec<GuestExport>>,
    /// The memories, imported ones first.
    pub memories: Option<Vec<MemoryDecl>>,
    /// The tables, imported ones first.
    pub tables: Option<Vec<TableDecl>>,
    /// The globals, imported ones first.
    pub globals: Option<Vec<GlobalDecl>>,
    /// Function index of the start function. `Some(None)`: the module has none.
    pub start: Option<Option<u32>>,
    /// Size of each data segment in bytes.
    pub data: Option<Vec<u64>>,
    /// Number of the element segments.
    pub elements: Option<u64>,
}

/// A linear memory as the module declares it. Sizes are in pages of this memory's page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryDecl {
    /// Minimum size in pages.
    pub minimum: u64,
    /// Maximum size in pages, if one is declared.
    pub maximum: Option<u64>,
    /// Whether addresses in the memory have 64 bits.
    pub memory64: bool,
    /// Whether threads share the memory.
    pub shared: bool,
    /// Binary logarithm of the page size in bytes.
    pub page_size_log2: u32,
}

impl Default for MemoryDecl {
    /// A memory of which nothing is known.
    fn default() -> Self {
        MemoryDecl { minimum: 0, maximum: None, memory64: false, shared: false, page_size_log2: WASM_PAGE_LOG2 }
    }
}

impl MemoryDecl {
    /// The maximum size in pages of 64 KiB, whatever the memory's own pages are. `None` if there is none, if no page has the
    /// size that is declared, or if the number does not fit.
    pub fn maximum_in_wasm_pages(&self) -> Option<u64> {
        let max = self.maximum?;
        if self.page_size_log2 == WASM_PAGE_LOG2 {
            return Some(max);
        }
        let bytes = u128::from(max).checked_shl(self.page_size_log2).filter(|_| self.page_size_log2 < 64);
        u64::try_from(bytes?.div_ceil(1 << WASM_PAGE_LOG2)).ok()
    }
}

impl From<&wasmparser::MemoryType> for MemoryDecl {
    fn from(ty: &wasmparser::MemoryType) -> Self {
        MemoryDecl {
            minimum: ty.initial,
            maximum: ty.maximum,
            memory64: ty.memory64,
            shared: ty.shared,
            page_size_log2: ty.page_size_log2.unwrap_or(WASM_PAGE_LOG2),
        }
    }
}

impl fmt::Display for MemoryDecl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} pages", if self.memory64 { "i64 " } else { "" }, range(self.minimum, self.maximum))?;
        if self.page_size_log2 != WASM_PAGE_LOG2 {
            write!(f, " of 2^{} bytes", self.page_size_log2)?;
        }
        f.write_str(if self.shared { ", shared" } else { "" })
    }
}

/// A table as the module declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableDecl {
    /// Minimum number of elements.
    pub minimum: u64,
    /// Maximum number of elements, if one is declared.
    pub maximum: Option<u64>,
    /// Whether indices of the table have 64 bits.
    pub table64: bool,
    /// Type of the table's elements.
    pub element: ValType,
}

impl From<&wasmparser::TableType> for TableDecl {
    fn from(ty: &wasmparser::TableType) -> Self {
        TableDecl {
            minimum: ty.initial,
            maximum: ty.maximum,
            table64: ty.table64,
            element: any_type(wasmparser::ValType::Ref(ty.element_type)),
        }
    }
}

impl fmt::Display for TableDecl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.table64 { "i64 " } else { "" };
        write!(f, "{width}{} elements of {}", range(self.minimum, self.maximum), self.element.name())
    }
}

fn range(minimum: u64, maximum: Option<u64>) -> String {
    maximum.map_or(format!("{minimum}.."), |max| format!("{minimum}..{max}"))
}

/// A global as the module declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalDecl {
    /// Type of the global's value, if known.
    pub ty: Option<ValType>,
    /// Whether code may write the global, if known.
    pub mutable: Option<bool>,
}

impl From<&wasmparser::GlobalType> for GlobalDecl {
    fn from(ty: &wasmparser::GlobalType) -> Self {
        GlobalDecl { ty: Some(any_type(ty.content_type)), mutable: Some(ty.mutable) }
    }
}

impl fmt::Display for GlobalDecl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ty = self.ty.map_or("of an unknown type", ValType::name);
        write!(f, "{}{ty}", if self.mutable == Some(true) { "mut " } else { "" })
    }
}

/// An export of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestExport {
    /// Name of the export.
    pub name: String,
    /// Kind of the exported thing.
    pub kind: ExternKind,
    /// Index of the exported thing in the index space of its kind.
    pub index: u32,
}

impl From<&wasmparser::Export<'_>> for GuestExport {
    fn from(export: &wasmparser::Export<'_>) -> Self {
        let kind = match export.kind {
            ExternalKind::Func | ExternalKind::FuncExact => ExternKind::Function,
            ExternalKind::Memory => ExternKind::Memory,
            ExternalKind::Global => ExternKind::Global,
            ExternalKind::Table => ExternKind::Table,
            ExternalKind::Tag => ExternKind::Tag,
        };
        GuestExport { name: export.name.to_string(), kind, index: export.index }
    }
}

impl fmt::Display for GuestExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} as {:?}", self.kind.name(), self.index, self.name)
    }
}

impl Declarations {
    /// What a file without sections declares. The sections are then added to it.
    pub(super) fn of_empty_file() -> Declarations {
        Declarations {
            imports: Vec::new(),
            signatures: BTreeMap::new(),
            exports: Some(Vec::new()),
            memories: Some(Vec::new()),
            tables: Some(Vec::new()),
            globals: Some(Vec::new()),
            start: Some(None),
            data: Some(Vec::new()),
            elements: Some(0),
        }
    }

    /// The module and field names of the imports of a kind. The list is empty if they are not known.
    pub fn imports_of(&self, kind: ExternKind) -> &[(String, String)] {
        self.imports.iter().find(|(of, _)| *of == kind).map_or(&[], |(_, names)| names.as_slice())
    }

    /// Adds the names of an import to those of its kind.
    pub fn add_import(&mut self, kind: ExternKind, module: &str, name: &str) {
        let names = (module.to_string(), name.to_string());
        match self.imports.iter_mut().find(|(of, _)| *of == kind) {
            Some((_, list)) => list.push(names),
            None => self.imports.push((kind, vec![names])),
        }
    }

    /// Adds an import of a file.
    pub(super) fn import(&mut self, import: &wasmparser::Import<'_>) {
        let kind = match &import.ty {
            TypeRef::Func(_) | TypeRef::FuncExact(_) => ExternKind::Function,
            TypeRef::Memory(ty) => {
                self.memories.get_or_insert_default().push(ty.into());
                ExternKind::Memory
            }
            TypeRef::Table(ty) => {
                self.tables.get_or_insert_default().push(ty.into());
                ExternKind::Table
            }
            TypeRef::Global(ty) => {
                self.globals.get_or_insert_default().push(ty.into());
                ExternKind::Global
            }
            TypeRef::Tag(_) => ExternKind::Tag,
        };
        self.add_import(kind, import.module, import.name);
    }

    /// Compares `self`, the description of a file, with `theirs` in all that both know. `Ok` lists what was compared.
    pub(super) fn compare(&self, theirs: &Declarations, file: &str) -> Result<Vec<String>, String> {
        let mut checked = Vec::new();
        let mut imports = 0;
        for (kind, theirs) in &theirs.imports {
            let own = self.imports_of(*kind);
            let show = |(module, name): &(String, String)| format!("{module}.{name}");
            lists(&format!("imported {}", kind.name()), theirs, own, file, PartialEq::eq, show)?;
            imports += own.len();
        }
        if !theirs.imports.is_empty() {
            checked.push(format!("names of {imports} imports"));
        }
        if let Some(theirs) = &theirs.exports {
            let sorted = |list: &[GuestExport]| {
                let mut list = list.to_vec();
                list.sort_by(|a, b| a.name.cmp(&b.name));
                list
            };
            let (theirs, own) = (sorted(theirs), sorted(self.exports.as_deref().unwrap_or_default()));
            if let Some(more) = theirs.iter().find(|e| !own.contains(e)) {
                return Err(format!("the module in the process exports {}, {file} does not", more));
            }
            if let Some(more) = own.iter().find(|e| !theirs.contains(e)) {
                return Err(format!("{file} exports {}, the module in the process does not", more));
            }
            checked.push(format!("{} exports", own.len()));
        }
        if let Some(theirs) = &theirs.memories {
            let own = self.memories.as_deref().unwrap_or_default();
            lists("memory", theirs, own, file, PartialEq::eq, ToString::to_string)?;
            checked.push(format!("limits of {} memories", own.len()));
        }
        if let Some(theirs) = &theirs.tables {
            let own = self.tables.as_deref().unwrap_or_default();
            let same = |a: &TableDecl, b: &TableDecl| {
                TableDecl { element: b.element, ..*a } == *b && same_type(a.element, b.element)
            };
            lists("table", theirs, own, file, same, ToString::to_string)?;
            checked.push(format!("limits of {} tables", own.len()));
        }
        if let Some(theirs) = &theirs.globals {
            let own = self.globals.as_deref().unwrap_or_default();
            let same = |a: &GlobalDecl, b: &GlobalDecl| {
                a.ty.zip(b.ty).is_none_or(|(a, b)| same_type(a, b))
                    && a.mutable.zip(b.mutable).is_none_or(|(a, b)| a == b)
            };
            lists("global", theirs, own, file, same, ToString::to_string)?;
            checked.push(format!("types of {} globals", own.len()));
        }
        if let Some(theirs) = theirs.start {
            let own = self.start.flatten();
            if theirs != own {
                let show = |start: Option<u32>| start.map_or("none".to_string(), |f| format!("function {f}"));
                return Err(format!("the start function in the process is {}, in {file} {}", show(theirs), show(own)));
            }
            checked.push("the start function".to_string());
        }
        if let Some(theirs) = &theirs.data {
            let own = self.data.as_deref().unwrap_or_default();
            lists("data segment", theirs, own, file, PartialEq::eq, |n| format!("{n} bytes"))?;
            checked.push(format!("sizes of {} data segments", own.len()));
        }
        if let Some(theirs) = theirs.elements {
            let own = self.elements.unwrap_or_default();
            if theirs != own {
                return Err(format!("the module in the process has {theirs} element segments, {file} has {own}"));
            }
            checked.push(format!("{own} element segments"));
        }
        Ok(checked)
    }
}

/// Whether two types can be the same. Not every runtime keeps the kind of thing that a reference refers to.
fn same_type(a: ValType, b: ValType) -> bool {
    use ValType::{ExternRef, FuncRef, Ref};
    match (a, b) {
        (Ref, FuncRef | ExternRef) | (FuncRef | ExternRef, Ref) => true,
        _ => a == b,
    }
}

fn lists<T>(
    what: &str,
    theirs: &[T],
    own: &[T],
    file: &str,
    same: impl Fn(&T, &T) -> bool,
    show: impl Fn(&T) -> String,
) -> Result<(), String> {
    let longest = theirs.len().max(own.len());
    let Some(i) = (0..longest).find(|&i| !theirs.get(i).zip(own.get(i)).is_some_and(|(a, b)| same(a, b))) else {
        return Ok(());
    };
    let shown = |list: &[T]| list.get(i).map_or("not there".to_string(), &show);
    Err(format!("{what} {i} is {} in the process, {} in {file}", shown(theirs), shown(own)))
}

pub(super) fn type_list(types: &[ValType]) -> String {
    let names: Vec<_> = types.iter().map(|t| t.name()).collect();
    format!("({})", names.join(" "))
}
