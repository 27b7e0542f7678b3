//! What a module declares: imports, exports, memories, tables, globals and segments.

use std::collections::BTreeMap;
use std::fmt;

use wasmparser::{ExternalKind, TypeRef};

use super::module::WasmModule;
use super::types::{ExternKind, GlobalDecl, GuestExport, MemoryDecl, ValType, any_type};

/// What a module declares, as far as its runtime keeps it. A field that is `None` is not known and not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Kinds of imports, each with the module and field names of its imports in the order of indices. A kind that is
    /// missing is not known.
    pub imports: Vec<(ExternKind, Vec<(String, String)>)>,
    /// Parameters and results of functions, by function index.
    pub signatures: BTreeMap<u32, (Vec<ValType>, Vec<ValType>)>,
    /// The exports, in any order.
    pub exports: Option<Vec<GuestExport>>,
    /// The memories, imported ones first.
    pub memories: Option<Vec<MemoryLimits>>,
    /// The tables, imported ones first.
    pub tables: Option<Vec<TableLimits>>,
    /// The globals, imported ones first.
    pub globals: Option<Vec<GlobalDecl>>,
    /// Function index of the start function. `Some(None)`: the module has none.
    pub start: Option<Option<u32>>,
    /// Size of each data segment in bytes.
    pub data: Option<Vec<u64>>,
    /// Number of the element segments.
    pub elements: Option<u64>,
}

/// The limits of a memory as they are declared, in pages of this memory's page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
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

impl fmt::Display for MemoryLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} pages", if self.memory64 { "i64 " } else { "" }, limits(self.minimum, self.maximum))?;
        if self.page_size_log2 != 16 {
            write!(f, " of 2^{} bytes", self.page_size_log2)?;
        }
        f.write_str(if self.shared { ", shared" } else { "" })
    }
}

/// The limits of a table as they are declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLimits {
    /// Minimum number of elements.
    pub minimum: u64,
    /// Maximum number of elements, if one is declared.
    pub maximum: Option<u64>,
    /// Whether indices of the table have 64 bits.
    pub table64: bool,
    /// Type of the table's elements.
    pub element: ValType,
}

impl fmt::Display for TableLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.table64 { "i64 " } else { "" };
        write!(f, "{width}{} elements of {}", limits(self.minimum, self.maximum), self.element.name())
    }
}

fn limits(minimum: u64, maximum: Option<u64>) -> String {
    maximum.map_or(format!("{minimum}.."), |max| format!("{minimum}..{max}"))
}

/// What a file declares besides functions. Imported memories and globals come before the defined ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    /// Number of imported memories.
    pub imported_memories: usize,
    /// All linear memories.
    pub memories: Vec<MemoryDecl>,
    /// Number of imported globals.
    pub imported_globals: usize,
    /// All globals.
    pub globals: Vec<GlobalDecl>,
    /// Number of imported tables.
    pub imported_tables: usize,
    /// Number of tables, imported ones included.
    pub tables: usize,
    /// The exports, in the order of the file.
    pub exports: Vec<GuestExport>,
}

impl Declarations {
    pub(super) fn import(&mut self, ty: &TypeRef) {
        match ty {
            TypeRef::Memory(ty) => {
                self.imported_memories += 1;
                self.memory(ty);
            }
            TypeRef::Global(ty) => {
                self.imported_globals += 1;
                self.global(ty);
            }
            TypeRef::Table(_) => {
                self.imported_tables += 1;
                self.tables += 1;
            }
            _ => {}
        }
    }

    pub(super) fn memory(&mut self, ty: &wasmparser::MemoryType) {
        self.memories.push(MemoryDecl { memory64: ty.memory64, shared: ty.shared, maximum: ty.maximum });
    }

    pub(super) fn global(&mut self, ty: &wasmparser::GlobalType) {
        self.globals.push(GlobalDecl { ty: Some(any_type(ty.content_type)), mutable: Some(ty.mutable) });
    }

    pub(super) fn export(&mut self, export: &wasmparser::Export<'_>) {
        let kind = match export.kind {
            ExternalKind::Func | ExternalKind::FuncExact => ExternKind::Function,
            ExternalKind::Memory => ExternKind::Memory,
            ExternalKind::Global => ExternKind::Global,
            ExternalKind::Table => ExternKind::Table,
            ExternalKind::Tag => ExternKind::Tag,
        };
        self.exports.push(GuestExport { name: export.name.to_string(), kind, index: export.index });
    }
}

impl Description {
    /// The module and field names of the imports of a kind, if they are known.
    fn imports_of(&self, kind: ExternKind) -> Option<&[(String, String)]> {
        self.imports.iter().find(|(of, _)| *of == kind).map(|(_, names)| names.as_slice())
    }

    /// Adds the names of an import to those of its kind.
    pub fn add_import(&mut self, kind: ExternKind, module: &str, name: &str) {
        let names = (module.to_string(), name.to_string());
        match self.imports.iter_mut().find(|(of, _)| *of == kind) {
            Some((_, list)) => list.push(names),
            None => self.imports.push((kind, vec![names])),
        }
    }

    pub(super) fn import(&mut self, import: &wasmparser::Import<'_>) {
        let kind = match &import.ty {
            TypeRef::Func(_) | TypeRef::FuncExact(_) => ExternKind::Function,
            TypeRef::Memory(ty) => {
                self.memory(ty);
                ExternKind::Memory
            }
            TypeRef::Table(ty) => {
                self.table(ty);
                ExternKind::Table
            }
            TypeRef::Global(_) => ExternKind::Global,
            TypeRef::Tag(_) => ExternKind::Tag,
        };
        self.add_import(kind, import.module, import.name);
    }

    pub(super) fn memory(&mut self, ty: &wasmparser::MemoryType) {
        self.memories.get_or_insert_default().push(MemoryLimits {
            minimum: ty.initial,
            maximum: ty.maximum,
            memory64: ty.memory64,
            shared: ty.shared,
            page_size_log2: ty.page_size_log2.unwrap_or(16),
        });
    }

    pub(super) fn table(&mut self, ty: &wasmparser::TableType) {
        self.tables.get_or_insert_default().push(TableLimits {
            minimum: ty.initial,
            maximum: ty.maximum,
            table64: ty.table64,
            element: any_type(wasmparser::ValType::Ref(ty.element_type)),
        });
    }

    /// Compares `self`, the description of a file, with `theirs` in all that both know. `Ok` lists what was compared.
    fn compare(&self, theirs: &Description, file: &str) -> Result<Vec<String>, String> {
        let mut checked = Vec::new();
        let mut imports = 0;
        for (kind, theirs) in &theirs.imports {
            let own = self.imports_of(*kind).unwrap_or_default();
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
            let show = |e: &GuestExport| format!("{} {} as {:?}", e.kind.name(), e.index, e.name);
            if let Some(more) = theirs.iter().find(|e| !own.contains(e)) {
                return Err(format!("the module in the process exports {}, {file} does not", show(more)));
            }
            if let Some(more) = own.iter().find(|e| !theirs.contains(e)) {
                return Err(format!("{file} exports {}, the module in the process does not", show(more)));
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
            let same = |a: &TableLimits, b: &TableLimits| {
                TableLimits { element: b.element, ..*a } == *b && same_type(a.element, b.element)
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
            let show = |g: &GlobalDecl| {
                let ty = g.ty.map_or("of an unknown type", ValType::name);
                if g.mutable == Some(true) { format!("mut {ty}") } else { ty.to_string() }
            };
            lists("global", theirs, own, file, same, show)?;
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

impl WasmModule {
    /// Compares what the file declares with what a runtime keeps of the declarations. `Ok` lists what was compared.
    /// `Err` says what is different.
    pub fn describes(&self, theirs: &Description) -> Result<Vec<String>, String> {
        let mut compared = 0;
        for (&function, (params, results)) in &theirs.signatures {
            let Some((own_params, own_results)) = self.signature(function) else { continue };
            if (params.as_slice(), results.as_slice()) != (own_params, own_results) {
                let show = |params: &[ValType], results: &[ValType]| {
                    format!("{} -> {}", type_list(params), type_list(results))
                };
                return Err(format!(
                    "function {function} of all is {} in the process, {} in {}",
                    show(params, results),
                    show(own_params, own_results),
                    self.file
                ));
            }
            compared += 1;
        }
        let mut checked = self.description.compare(theirs, &self.file)?;
        if compared > 0 {
            checked.push(format!("types of {compared} functions"));
        }
        Ok(checked)
    }
}

pub(super) fn type_list(types: &[ValType]) -> String {
    let names: Vec<_> = types.iter().map(|t| t.name()).collect();
    format!("({})", names.join(" "))
}
