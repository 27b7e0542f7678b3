//! What a host knows of a module, read out of its memory: the `ModuleInner` of `module.rs` and the `ModuleInfo` in
//! it.
//!
//! Each field is read by itself: a field that cannot be read says why and costs no other. Indices into another field
//! are checked against that field, because that is where a layout that does not fit shows up (the runtime's feature
//! `generate-debug-information` adds a field, for example).

use super::info::Export;
use super::layouts::{Layouts, ModuleLayout};
use crate::limits;
use crate::process::{Memory, Target};
use crate::runtime::rust::hash_map::{self, TableLayout};
use crate::runtime::rust::memory::{Budgeted, Elements, StructureError, VecLayout, View, vec_header};
use crate::runtime::rust::{arc, string};
use crate::wasm::{Declarations, ExternKind, MemoryDecl, TableDecl, ValType};

/// The value of a field, or why it could not be read.
pub type Field<T> = Result<T, StructureError>;

/// Parameter and result types of a function.
pub type Signature = (Vec<ValType>, Vec<ValType>);

/// A `ModuleInfo` that was read from memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryModuleInfo {
    /// Namespace and name of each imported function, in index order.
    pub imported_functions: Field<Vec<(String, String)>>,
    /// Names and items of the exports, in the module's order.
    pub exports: Field<Vec<(String, Export)>>,
    /// Signatures that `func_assoc` refers to.
    pub signatures: Field<Vec<Signature>>,
    /// For each function, imports first, the index of its signature in `signatures`.
    pub func_assoc: Field<Vec<u32>>,
    /// Type and mutability of each imported global.
    pub imported_globals: Field<Vec<(ValType, bool)>>,
    /// Type and mutability of each global that the module defines.
    pub globals: Field<Vec<(ValType, bool)>>,
    /// Number of imported memories, and of memories that the module defines.
    pub memories: Field<(u64, u64)>,
    /// Number of imported tables, and of tables that the module defines.
    pub tables: Field<(u64, u64)>,
    /// What else the module declares, as far as it could be read.
    pub description: Declarations,
    /// Address in the target and length in bytes of each data segment's contents.
    pub data: Option<Vec<(u64, u64)>>,
    /// Content of the custom section "name"; `None` where the host kept none (`compile_with_config` keeps none).
    pub name_section: Field<Option<Vec<u8>>>,
    /// Function indices and the names that the host gave these functions (`CompilerConfig::symbol_map`), in the order
    /// of the indices.
    pub em_symbol_map: Field<Vec<(u32, String)>>,
    /// Name of the compiler ("singlepass").
    pub backend: Field<String>,
}

impl MemoryModuleInfo {
    /// Signature of the function with this index (imports first), if the fields that tell it were read.
    #[cfg(any(test, feature = "internals"))]
    pub fn signature(&self, function: u32) -> Option<&Signature> {
        let index = *self.func_assoc.as_ref().ok()?.get(function as usize)?;
        self.signatures.as_ref().ok()?.get(index as usize)
    }

    /// Fields that could not be read, as "field: reason".
    pub fn problems(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut push = |name: &str, why: Option<&StructureError>| out.extend(why.map(|w| format!("{name}: {w}")));
        push("imported functions", self.imported_functions.as_ref().err());
        push("exports", self.exports.as_ref().err());
        push("signatures", self.signatures.as_ref().err());
        push("function types", self.func_assoc.as_ref().err());
        push("imported globals", self.imported_globals.as_ref().err());
        push("globals", self.globals.as_ref().err());
        push("memories", self.memories.as_ref().err());
        push("tables", self.tables.as_ref().err());
        push("name section", self.name_section.as_ref().err());
        push("symbol map", self.em_symbol_map.as_ref().err());
        push("backend", self.backend.as_ref().err());
        out
    }
}

/// Reads the `ModuleInfo` of the `ModuleInner` at the address `module` (`vm::Ctx` has this address at +0x88).
///
/// # Errors
/// Fails only if the address is misaligned or the structure itself cannot be read. Everything else is an error of one
/// field.
pub fn read_module_info(
    memory: &dyn Memory,
    layouts: &Layouts,
    module: u64,
) -> Result<MemoryModuleInfo, StructureError> {
    let l = &layouts.module;
    let heap = Budgeted::new(memory, limits::MAX_MODULE_INFO_BYTES);
    let address = module.wrapping_add(l.inner_info);
    if !module.is_multiple_of(8) {
        return Err(StructureError::Implausible {
            what: "ModuleInner",
            address: module,
            field: "address",
            value: module,
        });
    }
    let raw = heap.read("ModuleInfo", address, l.info_size)?;
    let reader = Reader { heap, l, vec: VecLayout::from(l), info: View::new("ModuleInfo", address, &raw) };
    let signatures = reader.signatures();
    let func_assoc = reader.func_assoc().and_then(|assoc| match (&signatures, assoc.iter().max()) {
        (Ok(known), Some(&max)) if max as usize >= known.len() => Err(reader.info.bad("signature index", max.into())),
        _ => Ok(assoc),
    });
    let exports = reader.exports().and_then(|exports| {
        let functions = func_assoc.as_ref().map_or(usize::MAX, Vec::len);
        let wrong = exports.iter().find_map(|(_, export)| match *export {
            Export::Function(index) if index as usize >= functions => Some(index),
            _ => None,
        });
        match wrong {
            Some(index) => Err(reader.info.bad("exported function", index.into())),
            None => Ok(exports),
        }
    });
    let imported_functions = reader.imported_functions().and_then(|imports| match &func_assoc {
        Ok(functions) if imports.len() > functions.len() => {
            Err(reader.info.bad("number of imported functions", imports.len() as u64))
        }
        _ => Ok(imports),
    });
    Ok(MemoryModuleInfo {
        imported_functions,
        exports,
        signatures,
        func_assoc,
        imported_globals: reader.globals(
            "imported globals",
            l.info_imported_globals,
            (l.imported_global_size, l.imported_global_type, l.imported_global_mutable),
        ),
        globals: reader.globals("globals", l.info_globals, (l.global_size, l.global_type, l.global_mutable)),
        memories: reader.counts("memories", l.info_imported_memories, l.info_memories),
        tables: reader.counts("tables", l.info_imported_tables, l.info_tables),
        description: reader.description(),
        data: reader.data(),
        name_section: reader.name_section(),
        em_symbol_map: reader.em_symbol_map(),
        backend: string::exact(&reader.heap, "backend", reader.info, l.info_backend, reader.vec),
    })
}

/// Where a module's code and state map are, as the module's singlepass `RunnableModule` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleCode {
    /// Address of the first byte of code.
    pub code_base: u64,
    /// Bytes that are mapped for the code.
    pub code_size: u64,
    /// Address of the `ModuleStateMap` (see `map_in_memory`).
    pub msm_address: u64,
}

/// Follows an `Arc<Box<dyn RunnableModule>>` to its context, if that looks like singlepass's: it needs reference
/// counts, a vtable that is data, and code that is executable anonymous memory.
pub fn context_of_runnable(target: &dyn Target, layouts: &Layouts, runnable: u64) -> Option<ModuleCode> {
    let word = |address: u64| target.read_u64(address).ok();
    if runnable == 0 || !runnable.is_multiple_of(8) {
        return None;
    }
    arc::counts(target, runnable, 1 << 32)?;
    let fat = runnable.checked_add(layouts.module.arc_data)?;
    let (data, vtable) = (word(fat)?, word(fat.checked_add(8)?)?);
    // The vtable need not lie in a file: a core that does not name its files has anonymous mappings only.
    target.mapping_at(vtable).filter(|m| !m.execute)?;
    let code_base = word(data.checked_add(layouts.context.context_code_ptr)?)?;
    let code_size = word(data.checked_add(layouts.context.context_code_size)?)?;
    let end = code_base.checked_add(code_size).filter(|_| code_size > 0)?;
    target.mapping_at(code_base).filter(|m| m.execute && m.is_anonymous() && end <= m.end)?;
    Some(ModuleCode { code_base, code_size, msm_address: data.checked_add(layouts.context.context_msm)? })
}

struct Reader<'a> {
    heap: Budgeted<'a>,
    l: &'a ModuleLayout,
    vec: VecLayout,
    info: View<'a>,
}

impl Reader<'_> {
    fn text(&self, what: &'static str, view: View<'_>, at: u64) -> Field<Vec<u8>> {
        string::bytes(&self.heap, what, view, at, self.vec)
    }

    fn name(&self, what: &'static str, view: View<'_>, at: u64) -> Field<String> {
        string::lossy(&self.heap, what, view, at, self.vec)
    }

    fn types(&self, view: View<'_>, at: u64) -> Field<Vec<ValType>> {
        let (l, what) = (self.l, "types of a signature");
        let cow = view.inner(what, at, self.l.vec_size)?;
        let elements = if cow.u64(l.cow_tag)? == l.cow_borrowed {
            let (ptr, len) = (cow.u64(l.cow_borrowed_ptr)?, cow.u64(l.cow_borrowed_len)?);
            self.heap.slice(what, cow.address, ptr, len, 1, limits::MAX_SLOTS)?
        } else {
            self.heap.vec(what, cow, l.cow_owned, self.vec, 1, limits::MAX_SLOTS)?
        };
        elements.iter().map(|t| val_type(t, 0)).collect()
    }

    fn signatures(&self) -> Field<Vec<Signature>> {
        let l = self.l;
        let list =
            self.heap.vec("signatures", self.info, l.info_signatures, self.vec, l.sig_size, limits::MAX_FUNCTIONS)?;
        list.iter().map(|s| Ok((self.types(s, l.sig_params)?, self.types(s, l.sig_returns)?))).collect()
    }

    fn func_assoc(&self) -> Field<Vec<u32>> {
        let list =
            self.heap.vec("function types", self.info, self.l.info_func_assoc, self.vec, 4, limits::MAX_FUNCTIONS)?;
        list.iter().map(|i| i.u32(0)).collect()
    }

    /// Reads the strings of a `StringTable`: `table` and `buffer` are the offsets of its entries and its text.
    fn string_table(&self, what: &'static str, table: u64, buffer: u64) -> Field<Vec<String>> {
        let l = self.l;
        let buffer = self.text(what, self.info, buffer)?;
        let entries = self.heap.vec(what, self.info, table, self.vec, l.string_entry_size, limits::MAX_FUNCTIONS)?;
        let mut copied = 0u64;
        let mut out = Vec::new();
        for entry in entries.iter() {
            let (offset, len) = (entry.u32(l.string_entry_offset)?, entry.u32(l.string_entry_len)?);
            // Entries may overlap, so together they can be longer than the buffer.
            copied = copied.saturating_add(len.into());
            let end = (offset as usize).checked_add(len as usize);
            let text = end.and_then(|end| buffer.get(offset as usize..end));
            match text {
                Some(text) if copied <= limits::MAX_MODULE_INFO_BYTES => {
                    out.push(String::from_utf8_lossy(text).into_owned());
                }
                _ => return Err(entry.bad("string", offset.into())),
            }
        }
        Ok(out)
    }

    fn imported_functions(&self) -> Field<Vec<(String, String)>> {
        let l = self.l;
        let what = "imported functions";
        let list = self.heap.vec(
            what,
            self.info,
            l.info_imported_functions,
            self.vec,
            l.import_name_size,
            limits::MAX_FUNCTIONS,
        )?;
        let namespaces = self.string_table("namespaces", l.info_namespace_table, l.info_namespace_buffer)?;
        let names = self.string_table("import names", l.info_name_table, l.info_name_buffer)?;
        let mut copied = 0;
        list.iter()
            .map(|import| {
                let (namespace, name) = (import.u32(l.import_name_namespace)?, import.u32(l.import_name_name)?);
                let pair = namespaces.get(namespace as usize).zip(names.get(name as usize));
                let (namespace, name) = pair.ok_or_else(|| import.bad("name index", name.into()))?;
                copied += (namespace.len() + name.len()) as u64;
                if copied > limits::MAX_MODULE_INFO_BYTES {
                    return Err(import.bad("length of all names", copied));
                }
                Ok((namespace.clone(), name.clone()))
            })
            .collect()
    }

    /// Reads the exports. Their kinds are numbered in the order of declaration (`module.rs: ExportIndex`), and each
    /// holds one index.
    fn exports(&self) -> Field<Vec<(String, Export)>> {
        let l = self.l;
        let list =
            self.heap.vec("exports", self.info, l.info_exports, self.vec, l.export_size, limits::MAX_FUNCTIONS)?;
        let mut out = Vec::new();
        for export in list.iter() {
            let tag = match l.export_tag_size {
                1 => export.u8(l.export_tag)?.into(),
                4 => export.u32(l.export_tag)?.into(),
                _ => export.u64(l.export_tag)?,
            };
            let index = export.u32(l.export_func_index)?;
            let kind = match tag.wrapping_sub(l.export_func) {
                0 => Export::Function(index),
                1 => Export::Memory(index),
                2 => Export::Global(index),
                3 if tag == l.export_table => Export::Table(index),
                _ => return Err(export.bad("kind", tag)),
            };
            out.push((self.name("export name", export, l.export_key)?, kind));
        }
        Ok(out)
    }

    fn globals(
        &self,
        what: &'static str,
        at: u64,
        (size, ty, mutable): (u64, u64, u64),
    ) -> Field<Vec<(ValType, bool)>> {
        let list = self.heap.vec(what, self.info, at, self.vec, size, limits::MAX_SLOTS)?;
        list.iter()
            .map(|g| match g.u8(mutable)? {
                flag @ 0..=1 => Ok((val_type(g, ty)?, flag == 1)),
                other => Err(g.bad("mutability", other.into())),
            })
            .collect()
    }

    fn counts(&self, what: &'static str, imported: u64, defined: u64) -> Field<(u64, u64)> {
        let count = |at| match vec_header(what, self.info, at, self.vec)? {
            (_, len) if len > limits::MAX_SLOTS as u64 => Err(self.info.bad(what, len)),
            (_, len) => Ok(len),
        };
        Ok((count(imported)?, count(defined)?))
    }

    /// Reads an `Option<u32>`: the word at `tag`, before the value, tells whether there is a value at `value`.
    fn option(&self, view: View<'_>, tag: u64, value: u64) -> Field<Option<u32>> {
        match view.u32(tag)? {
            0 => Ok(None),
            1 => Ok(Some(view.u32(value)?)),
            other => Err(view.bad("presence", other.into())),
        }
    }

    fn memory(&self, view: View<'_>) -> Field<MemoryDecl> {
        let l = self.l;
        Ok(MemoryDecl {
            minimum: view.u32(l.memory_minimum)?.into(),
            maximum: self.option(view, l.memory_has_maximum, l.memory_maximum)?.map(u64::from),
            memory64: false,
            shared: match view.u8(l.memory_shared)? {
                flag @ 0..=1 => flag == 1,
                other => return Err(view.bad("shared flag", other.into())),
            },
            page_size_log2: 16,
        })
    }

    fn table(&self, view: View<'_>) -> Field<TableDecl> {
        let l = self.l;
        Ok(TableDecl {
            minimum: view.u32(l.table_minimum)?.into(),
            maximum: self.option(view, l.table_has_maximum, l.table_maximum)?.map(u64::from),
            table64: false,
            // The runtime has no other elements (`types.rs: ElementType`).
            element: ValType::FuncRef,
        })
    }

    fn data(&self) -> Option<Vec<(u64, u64)>> {
        let l = self.l;
        let segments =
            self.heap.vec("data segments", self.info, l.info_data, self.vec, l.data_size, limits::MAX_SLOTS).ok()?;
        segments.iter().map(|d| vec_header("data", d, l.data_bytes, self.vec).ok()).collect()
    }

    /// Reads what is compared with a file and shown nowhere. A field that cannot be read is not compared.
    fn description(&self) -> Declarations {
        let l = self.l;
        let mut out = Declarations::default();
        let names = self
            .string_table("namespaces", l.info_namespace_table, l.info_namespace_buffer)
            .and_then(|modules| {
                Ok((modules, self.string_table("import names", l.info_name_table, l.info_name_buffer)?))
            })
            .ok();
        let each = |what, at, size| self.heap.vec(what, self.info, at, self.vec, size, limits::MAX_SLOTS);
        let memories = || -> Field<(Vec<MemoryDecl>, Elements)> {
            let imported = each("imported memories", l.info_imported_memories, l.imported_memory_size)?;
            let own = each("memories", l.info_memories, l.memory_size)?;
            let described = imported
                .iter()
                .map(|m| self.memory(m.inner("memory", l.imported_memory_desc, l.memory_size)?))
                .chain(own.iter().map(|m| self.memory(m)));
            Ok((described.collect::<Field<_>>()?, imported))
        };
        let tables = || -> Field<(Vec<TableDecl>, Elements)> {
            let imported = each("imported tables", l.info_imported_tables, l.imported_table_size)?;
            let own = each("tables", l.info_tables, l.table_size)?;
            let described = imported
                .iter()
                .map(|t| self.table(t.inner("table", l.imported_table_desc, l.table_size)?))
                .chain(own.iter().map(|t| self.table(t)));
            Ok((described.collect::<Field<_>>()?, imported))
        };
        let mut copied = 0;
        let mut import = |out: &mut Declarations, kind, imports: &Elements, at| {
            let Some((modules, fields)) = &names else { return };
            let name = |import: View<'_>| -> Option<(String, String)> {
                let module = modules.get(import.u32(at + l.import_name_namespace).ok()? as usize)?;
                let field = fields.get(import.u32(at + l.import_name_name).ok()? as usize)?;
                copied += (module.len() + field.len()) as u64;
                (copied <= limits::MAX_MODULE_INFO_BYTES).then(|| (module.clone(), field.clone()))
            };
            if let Some(list) = imports.iter().map(name).collect() {
                out.imports.push((kind, list));
            }
        };
        if let Ok((described, imported)) = memories() {
            out.memories = Some(described);
            import(&mut out, ExternKind::Memory, &imported, l.imported_memory_name);
        }
        if let Ok((described, imported)) = tables() {
            out.tables = Some(described);
            import(&mut out, ExternKind::Table, &imported, l.imported_table_name);
        }
        if let Ok(imported) = each("imported globals", l.info_imported_globals, l.imported_global_size) {
            import(&mut out, ExternKind::Global, &imported, l.imported_global_name);
        }
        out.start = self.option(self.info, l.info_has_start, l.info_start).ok();
        out.data = self.data().map(|data| data.iter().map(|(_, len)| *len).collect());
        out.elements = vec_header("element segments", self.info, l.info_elements, self.vec).map(|(_, len)| len).ok();
        out
    }

    /// Calls `visit` with each full bucket of the hash table at offset `at`, until it returns false. A bucket has
    /// `size` bytes.
    fn buckets(
        &self,
        what: &'static str,
        at: u64,
        size: u64,
        visit: &mut dyn FnMut(View<'_>) -> Field<bool>,
    ) -> Field<()> {
        hash_map::full_buckets(&self.heap, what, self.info, (at, TableLayout::from(self.l)), size, visit)
    }

    fn name_section(&self) -> Field<Option<Vec<u8>>> {
        let l = self.l;
        let mut found = None;
        self.buckets("custom sections", l.info_custom_sections, l.section_size, &mut |bucket| {
            if self.name("name of a custom section", bucket, l.section_name)? != "name" {
                return Ok(true);
            }
            // Several sections of one name are kept in file order. A valid module has one name section, so the first
            // is taken.
            let list =
                self.heap.vec("name section", bucket, l.section_list, self.vec, l.vec_size, limits::MAX_SLOTS)?;
            if let Some(section) = list.iter().next() {
                let bytes = self.heap.vec("name section", section, 0, self.vec, 1, limits::MAX_NAME_SECTION_BYTES)?;
                found = Some(bytes.bytes);
            }
            Ok(false)
        })?;
        Ok(found)
    }

    fn em_symbol_map(&self) -> Field<Vec<(u32, String)>> {
        let l = self.l;
        let mut out = Vec::new();
        // A null control pointer is `None`.
        if self.info.u64(l.info_em_symbols + l.table_ctrl)? != 0 {
            self.buckets("symbol map", l.info_em_symbols, l.em_symbol_size, &mut |bucket| {
                out.push((bucket.u32(l.em_symbol_index)?, self.name("symbol", bucket, l.em_symbol_name)?));
                Ok(true)
            })?;
        }
        out.sort();
        Ok(out)
    }
}

fn val_type(view: View<'_>, at: u64) -> Field<ValType> {
    match view.u8(at)? {
        0 => Ok(ValType::I32),
        1 => Ok(ValType::I64),
        2 => Ok(ValType::F32),
        3 => Ok(ValType::F64),
        4 => Ok(ValType::V128),
        other => Err(view.bad("type", other.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::Pieces;

    #[test]
    fn so_many_bytes_are_read_of_one_module() {
        let layouts = Layouts::for_compiler("1.95.0").unwrap();
        let none = Pieces::default();
        for (more, expected) in [(0, false), (1, true)] {
            let mut layouts = layouts.clone();
            (layouts.module.inner_info, layouts.module.info_size) = (0, limits::MAX_MODULE_INFO_BYTES + more);
            let found = read_module_info(&none, &layouts, 0x1000).err();
            assert_eq!(matches!(found, Some(StructureError::TooLarge { .. })), expected);
        }
    }
}
