//! A module as it is parsed: its functions, names and data.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use wasmparser::{
    BinaryReader, ExternalKind, FunctionBody, Parser, Payload, TypeRef, ValidPayload, Validator, ValidatorResources,
    WasmFeatures,
};

use super::declarations::Declarations;
use super::dwarf::{self, SourceFrame};
use super::names::{self, Naming};
use super::printed::Printed;
use super::types::{ExternKind, NameSource, ValType, value_type};
use crate::error::Error;
use crate::limits::{MAX_FUNCTIONS, MAX_SLOTS};
use crate::state::PointKind;

/// Types of the operands at points that were asked for, by function, operator and kind of point. `None` if there is no
/// such point.
type KnownStacks = HashMap<(u32, u64, PointKind), Option<Vec<ValType>>>;

pub(super) struct Signature {
    pub(super) params: Vec<ValType>,
    pub(super) results: Vec<ValType>,
}

/// A data segment of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSegment<'a> {
    /// Contents of the segment.
    pub bytes: &'a [u8],
    /// The place where the segment is put when the module starts, if it is known without running the module: index of
    /// the memory, address in it, and length in bytes.
    pub place: Option<(u32, u64, u64)>,
}

/// A parsed core module. Function bodies are decoded when they are asked for.
pub struct WasmModule {
    pub(super) file: String,
    pub(super) bytes: Vec<u8>,
    module_name: Option<String>,
    /// The function types by index. `None` stands for a type of another kind, or for one with types that no supported
    /// runtime has.
    pub(super) types: Vec<Option<Signature>>,
    /// Type index of each function, imports first.
    pub(super) functions: Vec<u32>,
    exports: HashMap<u32, String>,
    names: HashMap<u32, String>,
    name_section: Option<Range<usize>>,
    local_names: OnceCell<HashMap<(u32, u32), String>>,
    pub(super) declarations: Declarations,
    pub(super) bodies: Vec<Range<usize>>,
    code_start: u64,
    debug_sections: HashMap<String, Range<usize>>,
    dwarf: OnceCell<Option<dwarf::Dwarf>>,
    printed: OnceCell<Option<Printed>>,
    /// The validator's data about types, or the reason why the module does not validate.
    pub(super) resources: Result<ValidatorResources, String>,
    /// File offsets of the operators of the bodies that were read.
    pub(super) operators: RefCell<HashMap<u32, Option<Arc<[u64]>>>>,
    locals: Vec<OnceCell<Option<Vec<ValType>>>>,
    pub(super) stack_types: RefCell<KnownStacks>,
}

impl WasmModule {
    /// Parses `bytes`; `name` stands for the file in messages. Fails with [`Error::Wasm`] if they are no usable
    /// module.
    pub fn parse(name: String, bytes: Vec<u8>) -> Result<WasmModule, Error> {
        let path = PathBuf::from(&name);
        Self::build(name, bytes).map_err(|why| Error::Wasm { path, why })
    }

    pub(super) fn build(file: String, bytes: Vec<u8>) -> Result<WasmModule, String> {
        let mut module = WasmModule {
            file,
            bytes: Vec::new(),
            module_name: None,
            types: Vec::new(),
            functions: Vec::new(),
            exports: HashMap::new(),
            names: HashMap::new(),
            name_section: None,
            local_names: OnceCell::new(),
            declarations: Declarations::of_empty_file(),
            bodies: Vec::new(),
            code_start: 0,
            debug_sections: HashMap::new(),
            dwarf: OnceCell::new(),
            printed: OnceCell::new(),
            resources: Err("it has no function bodies".to_string()),
            operators: RefCell::default(),
            locals: Vec::new(),
            stack_types: RefCell::default(),
        };
        module.read(&bytes).map_err(|e| e.to_string())?;
        let defined = module.functions.len() - module.imported_functions() as usize;
        if defined != module.bodies.len() {
            return Err(format!("it declares {defined} functions and has {} bodies", module.bodies.len()));
        }
        module.locals.resize_with(module.bodies.len(), OnceCell::new);
        module.bytes = bytes;
        Ok(module)
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), Unusable> {
        // For other bytes the parser's own message would print both arrays over a dozen lines.
        if !bytes.starts_with(b"\0asm") {
            return Err(Unusable("it is not a Wasm binary (.wat text must be compiled to .wasm first)".to_string()));
        }
        let mut validator = Some(Validator::new_with_features(WasmFeatures::all()));
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload?;
            if let Some(v) = &mut validator {
                match v.payload(&payload) {
                    Ok(ValidPayload::Func(function, _)) => {
                        if self.bodies.is_empty() {
                            self.resources = Ok(function.resources);
                        }
                    }
                    Ok(_) => {}
                    // Names, counts and operator positions are useful even if the module is not valid.
                    Err(e) => {
                        self.resources = Err(e.to_string());
                        validator = None;
                    }
                }
            }
            match payload {
                Payload::Version { encoding, .. } if encoding != wasmparser::Encoding::Module => {
                    return Err(Unusable("it is a component, not a module".to_string()));
                }
                Payload::TypeSection(reader) => {
                    for group in reader {
                        for ty in group?.types() {
                            self.types.push(match &ty.composite_type.inner {
                                wasmparser::CompositeInnerType::Func(f) => signature(f),
                                _ => None,
                            });
                        }
                    }
                }
                Payload::ImportSection(reader) => {
                    for import in reader.into_imports() {
                        let import = import?;
                        self.declarations.import(&import);
                        if let TypeRef::Func(ty) | TypeRef::FuncExact(ty) = import.ty {
                            self.add_function(ty)?;
                        }
                    }
                }
                Payload::FunctionSection(reader) => {
                    for ty in reader {
                        self.add_function(ty?)?;
                    }
                }
                Payload::MemorySection(reader) => {
                    for ty in reader {
                        self.declarations.memories.get_or_insert_default().push((&ty?).into());
                    }
                }
                Payload::GlobalSection(reader) => {
                    for global in reader {
                        self.declarations.globals.get_or_insert_default().push((&global?.ty).into());
                    }
                }
                Payload::TableSection(reader) => {
                    for table in reader {
                        self.declarations.tables.get_or_insert_default().push((&table?.ty).into());
                    }
                }
                Payload::ExportSection(reader) => {
                    for export in reader {
                        let export = export?;
                        self.declarations.exports.get_or_insert_default().push((&export).into());
                        if matches!(export.kind, ExternalKind::Func | ExternalKind::FuncExact) {
                            self.exports.entry(export.index).or_insert_with(|| export.name.to_string());
                        }
                    }
                }
                Payload::StartSection { func, .. } => self.declarations.start = Some(Some(func)),
                Payload::ElementSection(reader) => self.declarations.elements = Some(reader.count().into()),
                Payload::DataSection(reader) => {
                    let lengths = reader.into_iter().map(|data| Ok(data?.data.len() as u64));
                    self.declarations.data = Some(lengths.collect::<Result<_, Unusable>>()?);
                }
                Payload::CodeSectionStart { unchecked_range, .. } => self.code_start = unchecked_range.start,
                Payload::CodeSectionEntry(body) => {
                    if self.bodies.len() >= MAX_FUNCTIONS {
                        return Err(too_many_functions());
                    }
                    self.bodies.push(file_range(body.range())?);
                }
                Payload::CustomSection(section) => match section.name() {
                    "name" => {
                        let end = section.data_offset() + section.data().len() as u64;
                        self.name_section = Some(file_range(section.data_offset()..end)?);
                        self.read_names(section.data());
                    }
                    name if name.starts_with(".debug_") => {
                        let end = section.data_offset() + section.data().len() as u64;
                        let range = file_range(section.data_offset()..end)?;
                        self.debug_sections.entry(name.to_string()).or_insert(range);
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        Ok(())
    }

    fn add_function(&mut self, ty: u32) -> Result<(), Unusable> {
        if self.functions.len() >= MAX_FUNCTIONS {
            return Err(too_many_functions());
        }
        self.functions.push(ty);
        Ok(())
    }

    fn read_names(&mut self, section: &[u8]) {
        names::read(section, &mut |naming| match naming {
            Naming::Module(name) => _ = self.module_name.get_or_insert_with(|| name.into_owned()),
            Naming::Function(function, name) => _ = self.names.entry(function).or_insert_with(|| name.into_owned()),
            Naming::Local(..) => {}
        });
    }

    /// Name of the module from its name section, else the name of the file.
    #[cfg(any(test, feature = "internals"))]
    pub fn name(&self) -> &str {
        self.module_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(&self.file)
    }

    /// What the file declares.
    pub fn declarations(&self) -> &Declarations {
        &self.declarations
    }

    /// Number of imported functions. The first defined function has this number as its function index.
    pub fn imported_functions(&self) -> u32 {
        self.declarations.imports_of(ExternKind::Function).len() as u32
    }

    /// Number of functions with a body.
    pub fn defined_functions(&self) -> u32 {
        self.bodies.len() as u32
    }

    /// Name of a function and where the name comes from: name section, export or import (as `module.name`), best
    /// first.
    pub fn function_name(&self, func_index: u32) -> Option<(String, NameSource)> {
        if let Some(name) = self.names.get(&func_index).filter(|name| !name.is_empty()) {
            return Some((name.clone(), NameSource::NameSection));
        }
        if let Some(name) = self.exports.get(&func_index) {
            return Some((name.clone(), NameSource::Export));
        }
        let (module, name) = self.declarations.imports_of(ExternKind::Function).get(func_index as usize)?;
        Some((format!("{module}.{name}"), NameSource::Import))
    }

    /// Name of a function that the name section has; other sources are not used.
    pub fn own_name(&self, func_index: u32) -> Option<&str> {
        self.names.get(&func_index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The data segments of the module.
    pub fn data_segments(&self) -> Vec<DataSegment<'_>> {
        let mut out = Vec::new();
        let payloads = Parser::new(0).parse_all(&self.bytes).map_while(Result::ok);
        let sections = payloads.filter_map(|payload| match payload {
            Payload::DataSection(reader) => Some(reader),
            _ => None,
        });
        for data in sections.flatten().map_while(Result::ok) {
            let place = match data.kind {
                wasmparser::DataKind::Active { memory_index, offset_expr } => {
                    let offset = match offset_expr.get_operators_reader().read() {
                        Ok(wasmparser::Operator::I32Const { value }) => Some(u64::from(value as u32)),
                        Ok(wasmparser::Operator::I64Const { value }) => Some(value as u64),
                        _ => None,
                    };
                    offset.map(|offset| (memory_index, offset, data.data.len() as u64))
                }
                wasmparser::DataKind::Passive => None,
            };
            out.push(DataSegment { bytes: data.data, place });
        }
        out
    }

    /// Parameter and result types of a function. `None` if there is no such function or it uses reference types.
    pub fn signature(&self, func_index: u32) -> Option<(&[ValType], &[ValType])> {
        let ty = *self.functions.get(func_index as usize)?;
        let signature = self.types.get(ty as usize)?.as_ref()?;
        Some((&signature.params, &signature.results))
    }

    /// Types of the parameters and declared locals of a defined function. `None` if they are unknown or more than
    /// [`MAX_SLOTS`].
    pub fn local_types(&self, local_func: u32) -> Option<&[ValType]> {
        let cell = self.locals.get(local_func as usize)?;
        cell.get_or_init(|| self.read_locals(local_func)).as_deref()
    }

    fn read_locals(&self, local_func: u32) -> Option<Vec<ValType>> {
        let (params, _) = self.signature(self.imported_functions().checked_add(local_func)?)?;
        let mut out = params.to_vec();
        // Declarations are run-length encoded: a declaration of six bytes can stand for 2^32 locals.
        for declaration in self.body(local_func)?.get_locals_reader().ok()? {
            let (count, ty) = declaration.ok()?;
            let count = usize::try_from(count).ok()?;
            if out.len().checked_add(count)? > MAX_SLOTS {
                return None;
            }
            out.resize(out.len() + count, value_type(ty)?);
        }
        Some(out)
    }

    /// Name of a function's local, from the name section.
    pub fn local_name(&self, func_index: u32, local: u32) -> Option<&str> {
        let names = self.local_names.get_or_init(|| {
            let mut out = HashMap::new();
            let Some(range) = self.name_section.clone() else { return out };
            let Some(section) = self.bytes.get(range) else { return out };
            names::read(section, &mut |naming| {
                if let Naming::Local(function, local, name) = naming {
                    out.entry((function, local)).or_insert_with(|| name.into_owned());
                }
            });
            out
        });
        names.get(&(func_index, local)).map(String::as_str)
    }

    pub(super) fn body(&self, local_func: u32) -> Option<FunctionBody<'_>> {
        let range = self.bodies.get(local_func as usize)?.clone();
        let start = range.start as u64;
        Some(FunctionBody::new(BinaryReader::new(self.bytes.get(range)?, start)))
    }

    /// The bytes of the whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The module in the text format. `None` if it cannot be printed.
    pub fn printed(&self) -> Option<&Printed> {
        self.printed.get_or_init(|| Printed::of(&self.bytes)).as_ref()
    }

    /// Whether the file has a name section.
    pub fn has_names(&self) -> bool {
        self.name_section.is_some()
    }

    /// Whether the file has debug information of a source language.
    pub fn has_sources(&self) -> bool {
        self.debug_sections.contains_key(".debug_line") && self.debug_sections.contains_key(".debug_info")
    }

    /// File offset at which the body of a defined function begins.
    pub fn body_offset(&self, local_func: u32) -> Option<u64> {
        self.bodies.get(local_func as usize).map(|range| range.start as u64)
    }

    /// Source positions of the operator at `offset` (its `Operator::offset`) from the file's DWARF, innermost
    /// inlined function first. The list is empty if there is none.
    pub fn source(&self, offset: u64) -> Vec<SourceFrame> {
        // Addresses in the DWARF of a Wasm file count from the contents of the code section.
        let Some(address) = offset.checked_sub(self.code_start) else { return Vec::new() };
        let dwarf = self.dwarf.get_or_init(|| dwarf::Dwarf::load(&self.bytes, &self.debug_sections));
        dwarf.as_ref().map(|d| d.frames(address)).unwrap_or_default()
    }

    /// The reason why there are no operand types, if the module does not validate.
    #[cfg(any(test, feature = "internals"))]
    pub fn invalid(&self) -> Option<&str> {
        self.resources.as_ref().err().map(String::as_str)
    }
}

fn signature(f: &wasmparser::FuncType) -> Option<Signature> {
    let types = |list: &[wasmparser::ValType]| list.iter().map(|&t| value_type(t)).collect::<Option<Vec<_>>>();
    Some(Signature { params: types(f.params())?, results: types(f.results())? })
}

fn file_range(range: Range<u64>) -> Result<Range<usize>, Unusable> {
    match (usize::try_from(range.start), usize::try_from(range.end)) {
        (Ok(start), Ok(end)) => Ok(start..end),
        _ => Err(Unusable("it does not fit the address space".to_string())),
    }
}

fn too_many_functions() -> Unusable {
    Unusable(format!("it has more than {MAX_FUNCTIONS} functions"))
}

/// Why bytes are no usable module.
struct Unusable(String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<wasmparser::BinaryReaderError> for Unusable {
    fn from(e: wasmparser::BinaryReaderError) -> Self {
        Unusable(e.to_string())
    }
}
