//! Wasm modules given by the user: their names, types and operator positions.
//!
//! Positions are those of the singlepass backend (`codegen_x64.rs: feed_event`): the operators of each function body
//! are numbered from zero. Operators in unreachable code and the final `end` are counted, local declarations are not.
//! A middleware of the host that injects operators shifts the numbers; [`WasmModule::fits`] then refuses the file.

pub mod constants;
mod dwarf;
pub mod file;
pub mod names;
mod printed;
mod text;
pub mod types;

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use wasmparser::{
    BinaryReader, ExternalKind, FuncToValidate, FuncValidatorAllocations, FunctionBody, Parser, Payload, TypeRef,
    ValidPayload, Validator, ValidatorResources, WasmFeatures,
};

use crate::error::Error;
use crate::limits::{MAX_FUNCTIONS, MAX_SLOTS};
use crate::state::PointKind;

use constants::{Constant, Use};
pub use dwarf::SourceFrame;
use names::Naming;
pub use printed::Printed;
pub use types::{ExternKind, GlobalDecl, GuestExport, MemoryDecl, NameSource, ValType};

/// How messages name a point of this kind.
fn noun(kind: PointKind) -> &'static str {
    match kind {
        PointKind::Call => "a call",
        PointKind::Trappable => "a trap",
        PointKind::Loop => "a loop",
    }
}

/// What an operator does, as far as a backtrace needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperatorKind {
    /// `call`.
    Call,
    /// `call_indirect`.
    CallIndirect,
    /// `loop`.
    Loop,
    /// An operator that may trap, except for calls.
    Trap,
    /// `end`.
    End,
    /// Any other operator.
    Other,
}

/// A kind of place at which compiled code traps on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// An access to a linear memory. Atomic accesses of more than a byte must be aligned.
    Memory {
        /// Whether the alignment is checked.
        aligned: bool,
    },
    /// A conversion of a float to an integer, whose range the float may exceed.
    Conversion,
    /// `call_indirect`.
    IndirectCall,
    /// `unreachable`.
    Unreachable,
}

/// An operator of a function body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Byte offset of the operator in the `.wasm` file.
    pub offset: u64,
    /// The operator in the spelling of the text format ("call 3").
    pub text: String,
    /// What the operator does.
    pub kind: OperatorKind,
}

/// What is known of a compiled module from the process that runs it. [`WasmModule::fits`] compares a file with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleFacts {
    /// Number of imported functions, if known.
    pub imported_functions: Option<u32>,
    /// The functions that the module defines, in order.
    pub functions: Vec<FunctionFacts>,
    /// What the module declares.
    pub description: Description,
}

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

/// What is known of one function from the process that runs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionFacts {
    /// Number of parameters and declared locals together, if known.
    pub locals: Option<usize>,
    /// All points of the function's state map: operator index (`u64::MAX` is the function header) and kind, in any
    /// order.
    pub points: Vec<(u64, PointKind)>,
    /// Types of the function's parameters, if known.
    pub params: Option<Vec<ValType>>,
    /// For some points, the operands that the compiler recorded, bottom first. An operand has its bits if the
    /// compiler knew it to be constant, and is `None` otherwise.
    pub operands: HashMap<(u64, PointKind), Vec<Option<u64>>>,
}

struct Signature {
    params: Vec<ValType>,
    results: Vec<ValType>,
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
    fn import(&mut self, ty: &TypeRef) {
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

    fn memory(&mut self, ty: &wasmparser::MemoryType) {
        self.memories.push(MemoryDecl { memory64: ty.memory64, shared: ty.shared, maximum: ty.maximum });
    }

    fn global(&mut self, ty: &wasmparser::GlobalType) {
        self.globals.push(GlobalDecl { ty: Some(any_type(ty.content_type)), mutable: Some(ty.mutable) });
    }

    fn export(&mut self, export: &wasmparser::Export<'_>) {
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

    fn import(&mut self, import: &wasmparser::Import<'_>) {
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

    fn memory(&mut self, ty: &wasmparser::MemoryType) {
        self.memories.get_or_insert_default().push(MemoryLimits {
            minimum: ty.initial,
            maximum: ty.maximum,
            memory64: ty.memory64,
            shared: ty.shared,
            page_size_log2: ty.page_size_log2.unwrap_or(16),
        });
    }

    fn table(&mut self, ty: &wasmparser::TableType) {
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
    file: String,
    bytes: Vec<u8>,
    module_name: Option<String>,
    /// The function types by index. `None`: not a function type, or one with types that no supported runtime has.
    types: Vec<Option<Signature>>,
    /// Type index of each function, imports first.
    functions: Vec<u32>,
    imports: Vec<(String, String)>,
    exports: HashMap<u32, String>,
    names: HashMap<u32, String>,
    name_section: Option<Range<usize>>,
    local_names: OnceCell<HashMap<(u32, u32), String>>,
    declarations: Declarations,
    description: Description,
    bodies: Vec<Range<usize>>,
    code_start: u64,
    debug_sections: HashMap<String, Range<usize>>,
    dwarf: OnceCell<Option<dwarf::Dwarf>>,
    printed: OnceCell<Option<Printed>>,
    /// The validator's data about types, or the reason why the module does not validate.
    resources: Result<ValidatorResources, String>,
    /// File offsets of the operators of the bodies that were read.
    operators: RefCell<HashMap<u32, Option<std::sync::Arc<[u64]>>>>,
    locals: Vec<OnceCell<Option<Vec<ValType>>>>,
    stack_types: RefCell<HashMap<(u32, u64, PointKind), Option<StackTypes>>>,
}

/// The types of the operands at one point.
type StackTypes = Vec<ValType>;
/// The operands at one point: the bits of each constant, and `None` for any other operand.
type StackConstants = Vec<Option<u64>>;

/// Called for each operator that has a point: with the operator's number, the kind of point, a function that computes
/// the types of the operands, and a function that tells which of them are constants. Returns whether to go on.
type Visit<'v> =
    dyn FnMut(u64, PointKind, &dyn Fn() -> Option<StackTypes>, &dyn Fn() -> Option<StackConstants>) -> bool + 'v;

fn value_type(ty: wasmparser::ValType) -> Option<ValType> {
    Some(match ty {
        wasmparser::ValType::I32 => ValType::I32,
        wasmparser::ValType::I64 => ValType::I64,
        wasmparser::ValType::F32 => ValType::F32,
        wasmparser::ValType::F64 => ValType::F64,
        wasmparser::ValType::V128 => ValType::V128,
        wasmparser::ValType::Ref(_) => return None,
    })
}

/// The value type of any type, references included. Nothing is computed for references.
fn any_type(ty: wasmparser::ValType) -> ValType {
    value_type(ty).unwrap_or(match ty {
        wasmparser::ValType::Ref(r) if r.is_func_ref() => ValType::FuncRef,
        wasmparser::ValType::Ref(r) if r.is_extern_ref() => ValType::ExternRef,
        _ => ValType::Ref,
    })
}

/// The kind of point that an operator has in singlepass state maps: `codegen_x64.rs` calls `mark_trappable` for
/// integer division and remainder (`emit_relaxed_xdiv`) and for `unreachable`. It passes a state context to
/// `emit_call_sysv` for `call` and `call_indirect` only (not for `memory.size` and `memory.grow`), and polls the
/// interrupt flag at `loop`, with full preemption. Loads, stores and float-to-integer conversions trap without a
/// point.
fn point_of(op: &wasmparser::Operator<'_>) -> Option<PointKind> {
    use wasmparser::Operator as O;
    match op {
        O::Call { .. } | O::CallIndirect { .. } => Some(PointKind::Call),
        O::Loop { .. } => Some(PointKind::Loop),
        O::Unreachable => Some(PointKind::Trappable),
        _ if is_division(op) => Some(PointKind::Trappable),
        _ => None,
    }
}

fn is_division(op: &wasmparser::Operator<'_>) -> bool {
    use wasmparser::Operator as O;
    matches!(op, O::I32DivS | O::I32DivU | O::I32RemS | O::I32RemU | O::I64DivS | O::I64DivU | O::I64RemS | O::I64RemU)
}

fn is_conversion(op: &wasmparser::Operator<'_>) -> bool {
    use wasmparser::Operator as O;
    matches!(
        op,
        O::I32TruncF32S
            | O::I32TruncF32U
            | O::I32TruncF64S
            | O::I32TruncF64U
            | O::I64TruncF32S
            | O::I64TruncF32U
            | O::I64TruncF64S
            | O::I64TruncF64U
    )
}

/// The alignment (log2) of an access of a linear memory, and whether it is atomic.
macro_rules! define_access {
    ($(@$proposal:ident $op:ident $({ $($arg:ident: $argty:ty),* })? => $visit:ident ($($ann:tt)*))*) => {
        fn access_of(op: &wasmparser::Operator<'_>) -> Option<(u8, bool)> {
            match op {
                $(wasmparser::Operator::$op { .. } => define_access!(@one op $op $($($arg)*)?),)*
                _ => None,
            }
        }
    };
    (@one $value:ident $op:ident memarg $($rest:ident)*) => {
        match $value {
            wasmparser::Operator::$op { memarg, .. } => Some((memarg.align, stringify!($op).contains("Atomic"))),
            _ => None,
        }
    };
    (@one $value:ident $op:ident $($rest:ident)*) => { None };
}
wasmparser::for_each_operator!(define_access);

fn site_of(op: &wasmparser::Operator<'_>) -> Option<Site> {
    use wasmparser::Operator as O;
    match op {
        O::CallIndirect { .. } => Some(Site::IndirectCall),
        O::Unreachable => Some(Site::Unreachable),
        _ if is_conversion(op) => Some(Site::Conversion),
        _ => access_of(op).map(|(align, atomic)| Site::Memory { aligned: atomic && align > 0 }),
    }
}

fn kind_of(op: &wasmparser::Operator<'_>, text: &str) -> OperatorKind {
    use wasmparser::Operator as O;
    match op {
        O::Call { .. } => OperatorKind::Call,
        O::CallIndirect { .. } => OperatorKind::CallIndirect,
        O::Loop { .. } => OperatorKind::Loop,
        O::End => OperatorKind::End,
        O::Unreachable => OperatorKind::Trap,
        _ if is_conversion(op) => OperatorKind::Trap,
        _ if is_division(op) || [".load", ".store", ".atomic."].iter().any(|part| text.contains(part)) => {
            OperatorKind::Trap
        }
        _ => OperatorKind::Other,
    }
}

/// Tracks dead code as the backend sees it (`codegen_x64.rs: unreachable_depth`): from an unconditional branch to the
/// `else` or `end` of its block, operators count but leave no points.
#[derive(Default)]
struct Reach {
    dead: u64,
}

impl Reach {
    /// Goes over `op`, the next operator. Returns whether code is generated for it.
    fn step(&mut self, op: &wasmparser::Operator<'_>) -> bool {
        use wasmparser::Operator as O;
        if self.dead == 0 {
            if matches!(op, O::Unreachable | O::Return | O::Br { .. } | O::BrTable { .. }) {
                self.dead = 1;
            }
            return true;
        }
        match op {
            O::Block { .. } | O::Loop { .. } | O::If { .. } => self.dead = self.dead.saturating_add(1),
            O::End => self.dead -= 1,
            O::Else if self.dead == 1 => self.dead = 0,
            _ => {}
        }
        self.dead == 0
    }
}

/// The operand stack as singlepass records it: a constant for what a `const` operator pushed, `None` for all else. A
/// copy that `local.get` makes and the results of a block are no constants for singlepass.
#[derive(Default)]
struct Constants {
    stack: Vec<Option<Constant>>,
    /// Whether the stack is no longer known: the number of operands that some operator pops is unknown, or there are
    /// too many operands.
    lost: bool,
}

impl Constants {
    /// The operands below the topmost `popped` ones: the bits of each constant, `None` for any other operand.
    fn below(&self, popped: usize) -> Option<Vec<Option<u64>>> {
        let below = self.stack.get(..self.stack.len().checked_sub(popped)?).filter(|_| !self.lost)?;
        Some(below.iter().map(|operand| operand.map(|c| c.bits)).collect())
    }

    /// Goes over the operator `op`, which has this number. After it the stack has `height` operands.
    fn step(&mut self, number: u64, op: &wasmparser::Operator<'_>, arity: Option<(u32, u32)>, height: usize) {
        use wasmparser::Operator as O;
        self.lost |= height > MAX_SLOTS || arity.is_none();
        let (false, Some((_, pushed))) = (self.lost, arity) else { return };
        if !matches!(op, O::LocalTee { .. } if self.stack.len() == height) {
            self.stack.truncate(height.saturating_sub(pushed as usize));
        }
        self.stack.resize(height, None);
        let Some((bits, wide)) = constants::pushed(op) else { return };
        if let Some(top) = self.stack.last_mut() {
            *top = Some(Constant { operator: number, bits, wide });
        }
    }
}

impl WasmModule {
    /// Parses `bytes`; `name` stands for the file in messages. Fails with [`Error::Wasm`] if they are no usable
    /// module.
    pub fn parse(name: String, bytes: Vec<u8>) -> Result<WasmModule, Error> {
        let path = PathBuf::from(&name);
        Self::build(name, bytes).map_err(|why| Error::Wasm { path, why })
    }

    fn build(file: String, bytes: Vec<u8>) -> Result<WasmModule, String> {
        let mut module = WasmModule {
            file,
            bytes: Vec::new(),
            module_name: None,
            types: Vec::new(),
            functions: Vec::new(),
            imports: Vec::new(),
            exports: HashMap::new(),
            names: HashMap::new(),
            name_section: None,
            local_names: OnceCell::new(),
            declarations: Declarations::default(),
            description: Description::default(),
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
        let defined = module.functions.len() - module.imports.len();
        if defined != module.bodies.len() {
            return Err(format!("it declares {defined} functions and has {} bodies", module.bodies.len()));
        }
        module.locals.resize_with(module.bodies.len(), OnceCell::new);
        module.bytes = bytes;
        module.description.exports = Some(module.declarations.exports.clone());
        module.description.globals = Some(module.declarations.globals.clone());
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
                        self.declarations.import(&import.ty);
                        self.description.import(&import);
                        if let TypeRef::Func(ty) | TypeRef::FuncExact(ty) = import.ty {
                            self.add_function(ty)?;
                            self.imports.push((import.module.to_string(), import.name.to_string()));
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
                        let ty = ty?;
                        self.declarations.memory(&ty);
                        self.description.memory(&ty);
                    }
                }
                Payload::GlobalSection(reader) => {
                    for global in reader {
                        self.declarations.global(&global?.ty);
                    }
                }
                Payload::TableSection(reader) => {
                    for table in reader {
                        self.description.table(&table?.ty);
                        self.declarations.tables += 1;
                    }
                }
                Payload::ExportSection(reader) => {
                    for export in reader {
                        let export = export?;
                        self.declarations.export(&export);
                        if matches!(export.kind, ExternalKind::Func | ExternalKind::FuncExact) {
                            self.exports.entry(export.index).or_insert_with(|| export.name.to_string());
                        }
                    }
                }
                Payload::StartSection { func, .. } => self.description.start = Some(Some(func)),
                Payload::ElementSection(reader) => self.description.elements = Some(reader.count().into()),
                Payload::DataSection(reader) => {
                    let lengths = reader.into_iter().map(|data| Ok(data?.data.len() as u64));
                    self.description.data = Some(lengths.collect::<Result<_, Unusable>>()?);
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
    pub fn name(&self) -> &str {
        self.module_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(&self.file)
    }

    /// What the file declares besides functions.
    pub fn declarations(&self) -> &Declarations {
        &self.declarations
    }

    /// Number of imported functions. The first defined function has this number as its function index.
    pub fn imported_functions(&self) -> u32 {
        self.imports.len() as u32
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
        let (module, name) = self.imports.get(func_index as usize)?;
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

    fn body(&self, local_func: u32) -> Option<FunctionBody<'_>> {
        let range = self.bodies.get(local_func as usize)?.clone();
        let start = range.start as u64;
        Some(FunctionBody::new(BinaryReader::new(self.bytes.get(range)?, start)))
    }

    fn operator_offsets(&self, local_func: u32) -> Option<std::sync::Arc<[u64]>> {
        if let Some(known) = self.operators.borrow().get(&local_func) {
            return known.clone();
        }
        let read = || -> Option<std::sync::Arc<[u64]>> {
            let mut reader = self.body(local_func)?.get_operators_reader().ok()?;
            let mut offsets = Vec::new();
            while !reader.eof() {
                offsets.push(reader.original_position());
                // The operators that were read before a defect are still right.
                if reader.read().is_err() {
                    offsets.pop();
                    break;
                }
            }
            Some(offsets.into())
        };
        let offsets = read();
        self.operators.borrow_mut().insert(local_func, offsets.clone());
        offsets
    }

    /// File offsets of the operators of a defined function's body, in order.
    pub fn operators(&self, local_func: u32) -> Option<std::sync::Arc<[u64]>> {
        self.operator_offsets(local_func)
    }

    /// The operators of a defined function whose code may trap in one of the ways of `Site`, as pairs of the
    /// operator's number and the way, in order. Operators in dead code, for which no code is generated, are left out.
    pub fn sites(&self, local_func: u32) -> Vec<(u64, Site)> {
        let mut out = Vec::new();
        let Some(mut reader) = self.body(local_func).and_then(|body| body.get_operators_reader().ok()) else {
            return out;
        };
        let mut reach = Reach::default();
        for index in 0.. {
            let Ok(op) = reader.read() else { break };
            let alive = reach.step(&op);
            out.extend(site_of(&op).filter(|_| alive).map(|site| (index, site)));
            if reader.eof() {
                break;
            }
        }
        out
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

    /// Checks that `theirs`, the module that runs, differs from this file in custom sections only.
    ///
    /// # Errors
    /// The text tells the first difference, by its offset in this file.
    pub fn same_but_custom_sections(&self, theirs: &WasmModule) -> Result<(), String> {
        let sections = |bytes: &[u8]| {
            let payloads = Parser::new(0).parse_all(bytes).map_while(Result::ok);
            let sections = payloads.filter_map(|payload| payload.as_section().filter(|(id, _)| *id != 0));
            sections.collect::<Vec<_>>()
        };
        let (own, other) = (sections(&self.bytes), sections(&theirs.bytes));
        let part = |bytes: &'_ [u8], range: &Range<u64>| -> Option<Vec<u8>> {
            Some(bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)?.to_vec())
        };
        let different = |offset: u64| {
            Err(format!(
                "the Wasm that the module was made from is another one: {} differs first at offset {offset:#x}",
                self.file
            ))
        };
        for (i, (id, range)) in own.iter().enumerate() {
            let Some((other_id, other_range)) = other.get(i) else { return different(range.start) };
            if id != other_id {
                return different(range.start);
            }
            let (Some(a), Some(b)) = (part(&self.bytes, range), part(&theirs.bytes, other_range)) else {
                return different(range.start);
            };
            if a != b {
                let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
                return different(range.start + same as u64);
            }
        }
        if other.len() > own.len() {
            return different(self.bytes.len() as u64);
        }
        Ok(())
    }

    /// Whether the file has debug information of a source language.
    pub fn has_sources(&self) -> bool {
        self.debug_sections.contains_key(".debug_line") && self.debug_sections.contains_key(".debug_info")
    }

    /// File offset at which the body of a defined function begins.
    pub fn body_offset(&self, local_func: u32) -> Option<u64> {
        self.bodies.get(local_func as usize).map(|range| range.start as u64)
    }

    /// The operator with this number in the body of a defined function.
    pub fn operator(&self, local_func: u32, op_index: u64) -> Option<Operator> {
        let offsets = self.operator_offsets(local_func)?;
        let offset = *offsets.get(usize::try_from(op_index).ok()?)?;
        let end = self.bodies.get(local_func as usize)?.end;
        let data = self.bytes.get(usize::try_from(offset).ok()?..end)?;
        // The reader refuses an `else` that has no `if` before it.
        let op = match data.first() {
            Some(0x05) => wasmparser::Operator::Else,
            _ => wasmparser::OperatorsReader::new(BinaryReader::new(data, offset)).read().ok()?,
        };
        let text = text::operator(&op);
        let kind = kind_of(&op, &text);
        Some(Operator { offset, text, kind })
    }

    /// Types of the operands that a state map holds at a point, bottom first. `None` if the operator has no such
    /// point or is in dead code, or if the module does not validate.
    ///
    /// The operands in the map are those below the operator's own operands: the arguments of a call (and the table
    /// index of `call_indirect`) and both operands of a division are popped before the point is recorded. At a
    /// division the map also holds the slot of the result. It is private (`wasm_stack_private_depth` = 1) and not
    /// among these types.
    pub fn stack_types_at(&self, local_func: u32, op_index: u64, point: PointKind) -> Option<Vec<ValType>> {
        let key = (local_func, op_index, point);
        if let Some(known) = self.stack_types.borrow().get(&key) {
            return known.clone();
        }
        let types = self.compute_stack_types(local_func, op_index, point);
        self.stack_types.borrow_mut().insert(key, types.clone());
        types
    }

    fn compute_stack_types(&self, local_func: u32, op_index: u64, point: PointKind) -> Option<Vec<ValType>> {
        let mut found = None;
        self.each_stack_types(local_func, |index, kind, types| {
            if index != op_index {
                return index < op_index;
            }
            found = types().filter(|_| kind == point);
            false
        });
        found
    }

    /// Calls `visit` for every operator of a body that has a point, in order, until `visit` returns false. `visit`
    /// also gets a function that computes what [`WasmModule::stack_types_at`] says of that point. This takes one pass
    /// over the body.
    pub fn each_stack_types(
        &self,
        local_func: u32,
        mut visit: impl FnMut(u64, PointKind, &dyn Fn() -> Option<Vec<ValType>>) -> bool,
    ) {
        let _ = self.visit_stack(local_func, None, &mut |index, kind, types, _| visit(index, kind, types));
    }

    /// Calls `visit` in the same way, with the operands instead of their types: the bits of each constant, `None` for
    /// any other operand.
    fn each_operands(&self, local_func: u32, mut visit: impl FnMut(u64, PointKind, Option<&[Option<u64>]>) -> bool) {
        let _ = self
            .visit_stack(local_func, None, &mut |index, kind, _, constants| visit(index, kind, constants().as_deref()));
    }

    /// Goes over a body and calls `visit` for each operator that has a point. `uses` gets the constants that
    /// singlepass writes into the machine code, up to the operator at which `visit` ends the walk.
    fn visit_stack(&self, local_func: u32, mut uses: Option<&mut Vec<Use>>, visit: &mut Visit<'_>) -> Option<()> {
        let resources = self.resources.as_ref().ok()?.clone();
        let index = self.imported_functions().checked_add(local_func)?;
        let ty = *self.functions.get(index as usize)?;
        let body = self.body(local_func)?;
        let mut validator = FuncToValidate { resources, index, ty, features: WasmFeatures::all() }
            .into_validator(FuncValidatorAllocations::default());
        let mut reader = body.get_binary_reader();
        validator.read_locals(&mut reader).ok()?;
        let mut reader = wasmparser::OperatorsReader::new(reader);
        let mut reach = Reach::default();
        let mut next = 0;
        let mut constants = Constants::default();
        while !reader.eof() {
            let offset = reader.original_position();
            let op = reader.read().ok()?;
            let alive = reach.step(&op);
            if let Some(kind) = point_of(&op).filter(|_| alive) {
                let popped = match op {
                    wasmparser::Operator::Call { function_index } => {
                        self.signature(function_index).map(|(params, _)| params.len())
                    }
                    wasmparser::Operator::CallIndirect { type_index, .. } => {
                        self.types.get(type_index as usize).and_then(|t| Some(t.as_ref()?.params.len() + 1))
                    }
                    _ if is_division(&op) => Some(2),
                    _ => Some(0),
                };
                let types = || -> Option<Vec<ValType>> {
                    let popped = popped?;
                    let height = validator.operand_stack_height() as usize;
                    if height.checked_sub(popped)? > MAX_SLOTS {
                        return None;
                    }
                    // Depth 0 is the top of the operand stack.
                    (popped..height).rev().map(|depth| value_type(validator.get_operand_type(depth)??)).collect()
                };
                let below = || constants.below(popped?);
                if !visit(next, kind, &types, &below) {
                    return None;
                }
            }
            let arity = op.operator_arity(&validator);
            if let (Some(uses), true, false, Some((popped, _))) = (&mut uses, alive, constants.lost, arity) {
                uses.extend(constants.written(&op, popped as usize));
            }
            validator.op(offset, &op).ok()?;
            constants.step(next, &op, arity, validator.operand_stack_height() as usize);
            next += 1;
        }
        None
    }

    /// Compares the module with what is known of it from a process. `Ok` lists what was compared. `Err` says why it
    /// is another module.
    ///
    /// Points are compared both ways: each point must be on an operator that has such a point, and each operator in
    /// reachable code that has a point must be among the points. Loops have points only with full preemption, so
    /// either all loops or none must have them. The comparison takes time linear in the size of the code.
    pub fn fits(&self, facts: &ModuleFacts) -> Result<Vec<String>, String> {
        let mut checked = Vec::new();
        let file = &self.file;
        if let Some(imports) = facts.imported_functions {
            if imports != self.imported_functions() {
                return Err(format!(
                    "the module in the process imports {imports} functions, {file} imports {}",
                    self.imported_functions()
                ));
            }
            checked.push(format!("{imports} imported functions"));
        }
        let described = self.describes(&facts.description)?;
        if facts.functions.len() != self.bodies.len() {
            return Err(format!(
                "the module in the process defines {} functions, {file} defines {}",
                facts.functions.len(),
                self.bodies.len()
            ));
        }
        checked.push(format!("{} defined functions", self.bodies.len()));

        let (mut with_params, mut with_locals, mut skipped) = (0usize, 0usize, Vec::new());
        let mut tally = Tally::default();
        for (local, function) in (0u32..).zip(&facts.functions) {
            if let (Some(params), Some((own, _))) =
                (&function.params, self.signature(self.imported_functions().saturating_add(local)))
            {
                if params != own {
                    return Err(format!(
                        "function {local} takes {} in the process, {} in {file}",
                        type_list(params),
                        type_list(own)
                    ));
                }
                with_params += 1;
            }
            if let (Some(locals), Some(own)) = (function.locals, self.local_types(local)) {
                if locals != own.len() {
                    return Err(format!(
                        "function {local} has {locals} locals in the process, {} in {file}",
                        own.len()
                    ));
                }
                with_locals += 1;
            }
            self.compare_operands(local, function, &mut tally)?;
            if let Err(reason) = self.compare_points(local, &function.points, &mut tally)? {
                skipped.push(format!("points of function {local} not compared: {reason}"));
            }
        }
        if let (Some(with), Some(without)) = (&tally.loop_with_point, &tally.loop_without_point) {
            return Err(format!("the process has {with}, but none at {without}"));
        }
        if with_params > 0 {
            checked.push(format!("parameter types of {with_params} functions"));
        }
        if with_locals > 0 {
            checked.push(format!("locals of {with_locals} functions"));
        }
        checked.push(format!("{} call, {} trap and {} loop points", tally.calls, tally.traps, tally.loops));
        if tally.operands > 0 {
            checked.push(format!("constants and numbers of operands at {} points", tally.operands));
        }
        checked.extend(described);
        checked.extend(skipped);
        Ok(checked)
    }

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

    /// Compares the operands that a state map has at the points of a function with those that the file has there: how
    /// many there are, and which of them are constants with which bits.
    fn compare_operands(&self, local: u32, facts: &FunctionFacts, tally: &mut Tally) -> Result<(), String> {
        if facts.operands.is_empty() {
            return Ok(());
        }
        let mut different = None;
        self.each_operands(local, |index, kind, own| {
            let (Some(theirs), Some(own)) = (facts.operands.get(&(index, kind)), own) else { return true };
            let at = format!("at operator {index} of function {local}");
            let show = |v: &Option<u64>| v.map_or("no constant".to_string(), |bits| format!("the constant {bits:#x}"));
            if theirs.len() != own.len() {
                let (theirs, own) = (theirs.len(), own.len());
                different = Some(format!("{at} the process has {theirs} operands, {} has {own}", self.file));
            } else if let Some((i, (theirs, own))) = theirs.iter().zip(own).enumerate().find(|(_, (a, b))| a != b) {
                let (theirs, own) = (show(theirs), show(own));
                different = Some(format!("{at} operand {i} is {theirs} in the process, {own} in {}", self.file));
            }
            tally.operands += 1;
            different.is_none()
        });
        different.map_or(Ok(()), Err)
    }

    /// Compares the points of one function. The inner `Err` says why this function could not be compared, the outer
    /// `Err` why the module does not fit.
    fn compare_points(
        &self,
        local: u32,
        points: &[(u64, PointKind)],
        tally: &mut Tally,
    ) -> Result<Result<(), String>, String> {
        let file = &self.file;
        // The function header polls the interrupt flag too (`begin_body`). Its point has the index before the first
        // operator.
        let mut points: Vec<_> = points.iter().copied().filter(|&p| p != (u64::MAX, PointKind::Loop)).collect();
        points.sort_unstable_by_key(|&(index, _)| index);
        let Some(body) = self.body(local) else { return Ok(Err("it has no body".to_string())) };
        let mut reader = match body.get_operators_reader() {
            Ok(reader) => reader,
            Err(e) => return Ok(Err(e.to_string())),
        };
        let mut points = points.into_iter().peekable();
        let mut reach = Reach::default();
        let mut index = 0u64;
        while !reader.eof() {
            let op = match reader.read() {
                Ok(op) => op,
                Err(e) => return Ok(Err(e.to_string())),
            };
            let expected = if reach.step(&op) { point_of(&op) } else { None };
            let mut found = false;
            while let Some((_, kind)) = points.next_if(|&(at, _)| at == index) {
                if expected != Some(kind) {
                    return Err(format!(
                        "operator {index} of function {local} is `{}` in {file}, the process has {} there",
                        text::operator(&op),
                        noun(kind)
                    ));
                }
                found = true;
            }
            match expected {
                Some(PointKind::Loop) if found => {
                    tally.loops += 1;
                    tally.loop_with_point.get_or_insert_with(|| loop_at(index, local));
                }
                Some(PointKind::Loop) => {
                    tally.loop_without_point.get_or_insert_with(|| loop_at(index, local));
                }
                Some(kind) if !found => {
                    return Err(format!(
                        "operator {index} of function {local} is `{}` in {file}, the process does not have {} there",
                        text::operator(&op),
                        noun(kind)
                    ));
                }
                Some(PointKind::Call) => tally.calls += 1,
                Some(PointKind::Trappable) => tally.traps += 1,
                None => {}
            }
            index += 1;
        }
        match points.next() {
            Some((at, kind)) => Err(format!(
                "function {local} has {index} operators in {file}, the process has {} at operator {at}",
                noun(kind)
            )),
            None => Ok(Ok(())),
        }
    }

    /// Source positions of the operator at `offset` (its [`Operator::offset`]) from the file's DWARF, innermost
    /// inlined function first. The list is empty if there is none.
    pub fn source(&self, offset: u64) -> Vec<SourceFrame> {
        // Addresses in the DWARF of a Wasm file count from the contents of the code section.
        let Some(address) = offset.checked_sub(self.code_start) else { return Vec::new() };
        let dwarf = self.dwarf.get_or_init(|| dwarf::Dwarf::load(&self.bytes, &self.debug_sections));
        dwarf.as_ref().map(|d| d.frames(address)).unwrap_or_default()
    }

    /// The reason why there are no operand types, if the module does not validate.
    pub fn invalid(&self) -> Option<&str> {
        self.resources.as_ref().err().map(String::as_str)
    }
}

#[derive(Default)]
struct Tally {
    calls: usize,
    traps: usize,
    loops: usize,
    operands: usize,
    loop_with_point: Option<String>,
    loop_without_point: Option<String>,
}

fn loop_at(index: u64, local: u32) -> String {
    format!("a loop at operator {index} of function {local}")
}

fn type_list(types: &[ValType]) -> String {
    let names: Vec<_> = types.iter().map(|t| t.name()).collect();
    format!("({})", names.join(" "))
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
