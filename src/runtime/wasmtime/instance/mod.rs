//! An instance: its memories, globals, tables and imports, read from its `VMContext`; and what its module declares.
//!
//! Many things in a process look like a `VMContext`. Every store makes an instance for itself, and every memory or
//! table that the host makes comes with one. These have the same magic, and behind their few bytes lies memory of
//! something else. So [`Described::validate`] compares all that the module declares with what is there. One fact that
//! contradicts is enough to reject a candidate. The facts that speak for it are reported, so that a reader sees how
//! much to believe.

pub mod offsets;
pub(super) mod store;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use self::offsets::{Array, FunctionImport, StoreLayout, VmCounts, VmLayout};
use super::image::FunctionTable;
use super::image::info::{Entity, FuncKey, FuncKind, ImageInfo, ModuleInfo, RefTo, TableType, WasmType};
use super::image::version::Version;
use crate::limits::{MAX_INSTANCE_ITEMS, MAX_NAME_SECTION_BYTES, MAX_SIGNATURE_TYPES};
use crate::process::{Mapping, Memory, MemoryError, mapping_at};
use crate::runtime::{Declared, GuestFunction, Place, Slot, Value, Why};
use crate::wasm::{GuestExport, NameSource, ValType};

/// Nothing is mapped below this address. Dangling pointers to nothing (4, 8) lie there.
const LOWEST: u64 = 0x1000;

impl From<WasmType> for ValType {
    fn from(ty: WasmType) -> ValType {
        match ty {
            WasmType::I32 => ValType::I32,
            WasmType::I64 => ValType::I64,
            WasmType::F32 => ValType::F32,
            WasmType::F64 => ValType::F64,
            WasmType::V128 => ValType::V128,
            WasmType::Ref { to: RefTo::Func, .. } => ValType::FuncRef,
            WasmType::Ref { to: RefTo::Extern, .. } => ValType::ExternRef,
            WasmType::Ref { .. } => ValType::Ref,
        }
    }
}

/// What a context pointer leads to, by its first four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Context {
    /// An instance (`VMContext`), perhaps one that the host made for a memory, table or tag.
    Instance,
    /// A host function (`VMArrayCallHostFuncContext`).
    HostFunction,
    /// A component (`VMComponentContext`).
    Component,
}

impl Context {
    /// What kind of context is at `address`. `None` if it is none of these.
    ///
    /// # Errors
    /// If the memory cannot be read.
    pub fn read(address: u64, memory: &dyn Memory) -> Result<Option<Context>, MemoryError> {
        let mut magic = [0; 4];
        memory.read(address, &mut magic)?;
        Ok(match magic {
            offsets::VMCONTEXT_MAGIC => Some(Context::Instance),
            offsets::HOST_FUNCTION_MAGIC => Some(Context::HostFunction),
            offsets::COMPONENT_MAGIC => Some(Context::Component),
            _ => None,
        })
    }
}

/// A context that provides an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// The item that is imported.
    pub import: Entity,
    /// What kind of context provides it.
    pub context: Context,
    /// Address of that context.
    pub address: u64,
}

/// What spoke for an instance when it was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Independent facts, at least two.
    pub facts: Vec<String>,
    /// Whether one of the facts ties the instance to this module. If not, it is an instance of some module that
    /// declares the same things as far as they can be seen, and if it is tied to another module, that one is right.
    /// If a frame led to the instance, the frame's code tells the module just as well.
    pub tied: bool,
}

/// What a store keeps for the code that runs in it (`VMStoreContext`). See [`StoreLayout`] for when it is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreContext {
    /// Address of the context. It is the same for all instances of a store.
    pub address: u64,
    /// Return address into Wasm of the last exit.
    pub last_exit_pc: u64,
    /// Frame pointer at the last exit.
    pub last_exit_fp: u64,
    /// Whether that frame pointer is the exit trampoline's. If not, it is that of the Wasm function that called the
    /// trampoline.
    pub exit_fp_is_trampolines: bool,
    /// Frame pointer of the last entry trampoline.
    pub last_entry_fp: u64,
    /// Stack pointer at the last entry.
    pub last_entry_sp: Option<u64>,
    /// Address in that entry trampoline at which a trap resumes.
    pub last_entry_trap_handler: Option<u64>,
}

/// A module, and all that is needed to read its instances.
#[derive(Clone, Debug)]
pub struct Described<'a> {
    info: &'a ImageInfo,
    module: &'a ModuleInfo,
    number: u32,
    #[cfg_attr(not(any(test, feature = "internals")), expect(dead_code, reason = "tests ask for it"))]
    version: Version,
    layout: VmLayout,
    store: StoreLayout,
    function_import: FunctionImport,
    text: Range<u64>,
}

impl<'a> Described<'a> {
    /// Module `number` of an image whose code is at `text`. If the image hides its version, [`ImageInfo::version`] is
    /// a guess, and the right version is the one whose layout [`Described::validate`]s.
    ///
    /// # Errors
    /// If there is no such module, or the version's layouts are not known.
    pub fn new(info: &'a ImageInfo, number: u32, version: Version, text: Range<u64>) -> Result<Described<'a>, Why> {
        let module = info.modules.get(number as usize);
        let module = module.ok_or(Why::NoSuchModule)?;
        let layouts = || {
            let layout = VmLayout::new(version, &VmCounts::from(module))?;
            Some((layout, StoreLayout::new(version)?, FunctionImport::new(version)?))
        };
        let (layout, store, function_import) = layouts().ok_or_else(|| unknown_version(version))?;
        Ok(Described { info, module, number, version, layout, store, function_import, text })
    }

    /// The module's description.
    #[cfg(any(test, feature = "internals"))]
    pub fn module(&self) -> &'a ModuleInfo {
        self.module
    }

    /// Where an instance keeps its items.
    #[cfg(any(test, feature = "internals"))]
    pub fn layout(&self) -> &VmLayout {
        &self.layout
    }

    /// The version whose layouts are used.
    #[cfg(any(test, feature = "internals"))]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Checks whether there is an instance of this module at `vmctx`.
    ///
    /// # Errors
    /// Says what contradicts it, or why it cannot be told.
    pub fn validate(&self, vmctx: u64, mappings: &[Mapping], memory: &dyn Memory) -> Result<Checked, Why> {
        self.begin(vmctx, memory)?;
        if !mapped(mappings, vmctx, self.layout.size) {
            return Err(Why::Other(format!(
                "an instance of this module has {} bytes, but fewer are mapped at {vmctx:#x}",
                self.layout.size
            )));
        }
        let at = Candidate { of: self, vmctx, mappings, memory };
        let store = at.store()?;
        let types = at.types()?;
        let declared = [
            types.as_ref().map(|t| format!("numbers of the module's {} types", t.len())),
            at.functions(store)?,
            at.memories(store)?,
            at.tables(store)?,
            at.globals(store)?,
            at.tags(store)?,
        ];
        let ties = [at.func_refs(types.as_deref())?, at.data()?];
        let tied = ties.iter().any(Option::is_some);
        let declared: Vec<_> = declared.into_iter().chain(ties).flatten().collect();
        if declared.is_empty() {
            return Err(Why::other("the module declares nothing by which an instance of it could be told from others"));
        }
        if types.is_none() && !tied {
            return Err(Why::other(
                "the module has no functions, so an instance of it cannot be told from what the host makes \
                            for its own memories and tables",
            ));
        }
        let mut facts = vec![format!("context of a store at {store:#x}")];
        facts.extend(declared);
        Ok(Checked { facts, tied })
    }

    /// Reads the context of the instance's store.
    ///
    /// # Errors
    /// If there is no instance at `vmctx`, it belongs to no store, or memory cannot be read.
    pub fn store(&self, vmctx: u64, memory: &dyn Memory) -> Result<StoreContext, Why> {
        self.begin(vmctx, memory)?;
        let address = memory.read_u64(vmctx + offsets::VMCONTEXT_STORE).map_err(Why::Memory)?;
        if address < LOWEST || !address.is_multiple_of(8) {
            return Err(Why::Other(format!("{vmctx:#x} belongs to no store")));
        }
        let word = |offset: u64| memory.read_u64(address.saturating_add(offset)).map_err(Why::Memory);
        Ok(StoreContext {
            address,
            last_exit_pc: word(self.store.last_exit_pc)?,
            last_exit_fp: word(self.store.last_exit_fp)?,
            exit_fp_is_trampolines: self.store.exit_fp_is_trampolines,
            last_entry_fp: word(self.store.last_entry_fp)?,
            last_entry_sp: self.store.last_entry_sp.map(word).transpose()?,
            last_entry_trap_handler: self.store.last_entry_trap_handler.map(word).transpose()?,
        })
    }

    /// Address of linear memory `index`, imported ones first, and its size in bytes.
    ///
    /// # Errors
    /// If there is no such memory, it cannot be read, or what is there contradicts the declaration.
    pub fn linear_memory(&self, vmctx: u64, index: u32, memory: &dyn Memory) -> Result<(u64, u64), Why> {
        self.begin(vmctx, memory)?;
        let all = &self.module.memories;
        let ty = all.get(index as usize).ok_or_else(|| none("memory", "memories", all.len()))?;
        let damaged = |what: &str| Why::Other(format!("memory {index} of {vmctx:#x} is damaged: {what}"));
        let definition = match index.checked_sub(self.module.imported.memories) {
            None => self.word(vmctx, self.layout.imported_memories, index, offsets::MEMORY_IMPORT_FROM, memory)?,
            Some(own) => {
                let pointer = self.word(vmctx, self.layout.memories, own, 0, memory)?;
                // A shared memory is kept elsewhere, and all instances that have it point there.
                if !ty.shared {
                    let before = all.iter().take(index as usize).skip(self.module.imported.memories as usize);
                    let place = self.layout.owned_memories.at(before.filter(|m| !m.shared).count() as u32);
                    if place.map(|offset| vmctx + offset) != Some(pointer) {
                        return Err(damaged("its pointer does not lead into the instance"));
                    }
                }
                pointer
            }
        };
        if definition < LOWEST {
            return Err(damaged("its pointer is null"));
        }
        let word = |offset: u64| memory.read_u64(definition.saturating_add(offset)).map_err(Why::Memory);
        let (base, bytes) = (word(offsets::MEMORY_BASE)?, word(offsets::MEMORY_LENGTH)?);
        if base == 0 || base.checked_add(bytes).is_none() {
            return Err(damaged("no memory has such an address"));
        }
        let pages = |n: u64| u128::from(n).checked_shl(ty.page_size_log2.into()).filter(|_| ty.page_size_log2 < 64);
        let page = pages(1).ok_or_else(|| damaged("no page has such a size"))?;
        if !u128::from(bytes).is_multiple_of(page) {
            return Err(damaged("its size is not a whole number of pages"));
        }
        let too_small = pages(ty.limits.min).is_none_or(|min| u128::from(bytes) < min);
        if too_small || ty.limits.max.and_then(pages).is_some_and(|max| u128::from(bytes) > max) {
            return Err(damaged("its size is not within the declared limits"));
        }
        Ok((base, bytes))
    }

    /// The value of global `index`, imported ones first.
    ///
    /// # Errors
    /// If there is no such global, or it cannot be read.
    pub fn global(&self, vmctx: u64, index: u32, memory: &dyn Memory) -> Result<Value, Why> {
        self.begin(vmctx, memory)?;
        let all = &self.module.globals;
        let global = all.get(index as usize).ok_or_else(|| none("global", "globals", all.len()))?;
        let address = self.global_address(vmctx, index, memory)?;
        let mut bytes = [0; 16];
        memory.read(address, &mut bytes[..global.ty.bytes()]).map_err(Why::Memory)?;
        let bits = u128::from_le_bytes(bytes);
        let slot = match global.ty {
            // All globals are zero before their initializers run.
            WasmType::Ref { nullable: false, .. } if bits == 0 => {
                Slot::Unknown(Why::other("it is not initialized yet: it is null, which its type forbids"))
            }
            _ => Slot::Known { bits, place: Place::Address(address) },
        };
        Ok(Value { ty: Some(global.ty.into()), slot })
    }

    /// Number of elements of table `index`, imported ones first.
    ///
    /// # Errors
    /// If there is no such table, it cannot be read, or what is there contradicts the declaration.
    pub fn table(&self, vmctx: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        self.table_elements(vmctx, index, memory).map(|(_, _, elements)| elements)
    }

    /// The contexts that provide the imports, as far as they are readable and known. They lead from one instance to
    /// the others of its store.
    ///
    /// # Errors
    /// If there is no instance at `vmctx`.
    pub fn imports_of(&self, vmctx: u64, memory: &dyn Memory) -> Result<Vec<Neighbour>, Why> {
        self.begin(vmctx, memory)?;
        let l = &self.layout;
        let kinds = [
            (l.imported_functions, self.function_import.vmctx, Entity::Function as fn(u32) -> Entity),
            (l.imported_memories, offsets::MEMORY_IMPORT_VMCTX, Entity::Memory),
            (l.imported_tables, offsets::TABLE_IMPORT_VMCTX, Entity::Table),
            (l.imported_globals, offsets::GLOBAL_IMPORT_VMCTX, Entity::Global),
            (l.imported_tags, offsets::TAG_IMPORT_VMCTX, Entity::Tag),
        ];
        let mut out = Vec::new();
        for (array, field, entity) in kinds {
            for index in items(array) {
                let Ok(address) = self.word(vmctx, array, index, field, memory) else { break };
                if let Ok(Some(context)) = Context::read(address, memory) {
                    out.push(Neighbour { import: entity(index), context, address });
                }
            }
        }
        Ok(out)
    }

    /// What the module declares.
    #[cfg(any(test, feature = "internals"))]
    pub fn declared(&self, symbols: &FunctionTable, names: &[u8]) -> Declared {
        declared(self.info, self.number, self.text.clone(), symbols, names)
    }

    fn begin(&self, vmctx: u64, memory: &dyn Memory) -> Result<(), Why> {
        // This makes sure that every offset in the layout can be added to the address.
        if !vmctx.is_multiple_of(16) || vmctx < LOWEST || vmctx.checked_add(self.layout.size).is_none() {
            return Err(Why::Other(format!("no instance can be at {vmctx:#x}")));
        }
        match Context::read(vmctx, memory).map_err(Why::Memory)? {
            Some(Context::Instance) => Ok(()),
            _ => Err(Why::Other(format!("there is no instance at {vmctx:#x}"))),
        }
    }

    // Reads a word of an item. The caller has asked `begin` before.
    fn word(&self, vmctx: u64, array: Array, index: u32, field: u64, memory: &dyn Memory) -> Result<u64, Why> {
        let offset =
            array.at(index).ok_or_else(|| Why::Other(format!("the module's parts do not fit together ({index})")))?;
        memory.read_u64(vmctx + offset + field).map_err(Why::Memory)
    }

    fn global_address(&self, vmctx: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        let address = match index.checked_sub(self.module.imported.globals) {
            None => self.word(vmctx, self.layout.imported_globals, index, offsets::GLOBAL_IMPORT_FROM, memory)?,
            Some(own) => {
                let offset = self.layout.globals.at(own);
                vmctx + offset.ok_or_else(|| none("global", "globals", self.module.globals.len()))?
            }
        };
        if address < LOWEST || !address.is_multiple_of(16) {
            return Err(Why::Other(format!(
                "global {index} of {vmctx:#x} is damaged: no global can be at {address:#x}"
            )));
        }
        Ok(address)
    }

    // The type of a table, the address of its elements, and their number.
    fn table_elements(&self, vmctx: u64, index: u32, memory: &dyn Memory) -> Result<(TableType, u64, u64), Why> {
        self.begin(vmctx, memory)?;
        let all = &self.module.tables;
        let ty = *all.get(index as usize).ok_or_else(|| none("table", "tables", all.len()))?;
        let damaged = |what: &str| Why::Other(format!("table {index} of {vmctx:#x} is damaged: {what}"));
        let definition = match index.checked_sub(self.module.imported.tables) {
            None => self.word(vmctx, self.layout.imported_tables, index, offsets::TABLE_IMPORT_FROM, memory)?,
            Some(own) => vmctx + self.layout.tables.at(own).ok_or_else(|| none("table", "tables", all.len()))?,
        };
        if definition < LOWEST {
            return Err(damaged("its pointer is null"));
        }
        let word = |offset: u64| memory.read_u64(definition.saturating_add(offset)).map_err(Why::Memory);
        let (base, elements) = (word(offsets::TABLE_BASE)?, word(offsets::TABLE_ELEMENTS)?);
        if base == 0 {
            return Err(damaged("its address is null"));
        }
        if elements < ty.limits.min || ty.limits.max.is_some_and(|max| elements > max) {
            return Err(damaged("its size is not within the declared limits"));
        }
        Ok((ty, base, elements))
    }

    // The code offsets at which the functions in `functions` (defined functions in ascending order), their entry
    // trampolines and the initializer begin.
    fn compiled(&self, functions: &[u32]) -> HashMap<FuncKey, u64> {
        let mut out = HashMap::new();
        for f in &self.info.functions {
            let key = f.key;
            let wanted = match key.kind {
                FuncKind::Wasm | FuncKind::ArrayToWasm => functions.binary_search(&key.index).is_ok(),
                kind => kind == FuncKind::ModuleStartup,
            };
            if wanted && key.namespace == self.number {
                out.insert(key, u64::from(f.start));
            }
        }
        out
    }
}

/// Why nothing of an instance is shown, and what is shown all the same.
fn unknown_version(version: Version) -> Why {
    Why::Other(format!(
        "how version {version} lays out instances is not known (known are {} to {}); frames, names and positions do not \
         depend on it and are shown",
        Version::OLDEST,
        Version::NEWEST
    ))
}

fn none(one: &str, many: &str, there_are: usize) -> Why {
    Why::Other(match there_are {
        0 => format!("the module has no {one}"),
        1 => format!("the module has one {one}"),
        n => format!("the module has {n} {many}"),
    })
}

fn items(array: Array) -> Range<u32> {
    0..array.count.min(MAX_INSTANCE_ITEMS)
}

// Whether there is no hole in the `bytes` bytes from `address` on. A memory can be several mappings: data segments
// are mapped from a file, and the part by which it has grown is anonymous.
fn mapped(mappings: &[Mapping], address: u64, bytes: u64) -> bool {
    let Some(end) = address.checked_add(bytes) else { return false };
    let first = mappings.partition_point(|m| m.end <= address);
    let mut at = address;
    for m in mappings.get(first..).unwrap_or_default() {
        if at >= end || !m.contains(at) {
            break;
        }
        at = m.end;
    }
    at >= end
}

// An address at which an instance may be. `begin` has been asked. Each method returns `Ok(None)` if there is nothing
// to look at, the fact if all of it is right, and otherwise what is wrong.
struct Candidate<'a> {
    of: &'a Described<'a>,
    vmctx: u64,
    mappings: &'a [Mapping],
    memory: &'a dyn Memory,
}

type Fact = Result<Option<String>, Why>;

impl Candidate<'_> {
    fn wrong(&self, what: String) -> Why {
        Why::Other(format!("{:#x} is no instance of this module: {what}", self.vmctx))
    }

    fn read(&self, array: Array, index: u32, field: u64) -> Result<u64, Why> {
        self.of.word(self.vmctx, array, index, field, self.memory)
    }

    fn is_code(&self, address: u64) -> bool {
        self.of.text.contains(&address) || mapping_at(self.mappings, address).is_some_and(|m| m.execute)
    }

    // The address of the store's context.
    fn store(&self) -> Result<u64, Why> {
        let store = self.of.store(self.vmctx, self.memory)?.address;
        if !mapping_at(self.mappings, store).is_some_and(|m| m.write) {
            return Err(self.wrong(format!("the store's context at {store:#x} is not in writable memory")));
        }
        let word = |address: u64| self.memory.read_u64(address).ok();
        // The table of routines lies in the host's executable, which a core need not have.
        let routine = word(self.vmctx + offsets::VMCONTEXT_BUILTINS).and_then(word);
        match routine {
            Some(routine) if !self.is_code(routine) => {
                Err(self.wrong(format!("the runtime's first routine, {routine:#x}, is not code")))
            }
            _ => Ok(store),
        }
    }

    // The numbers that the engine has given to the image's types.
    fn types(&self) -> Result<Option<Vec<u32>>, Why> {
        let count = self.of.info.types.len().min(MAX_INSTANCE_ITEMS as usize);
        if count == 0 {
            return Ok(None);
        }
        let array = self.memory.read_u64(self.vmctx + offsets::VMCONTEXT_TYPE_IDS).map_err(Why::Memory)?;
        if array < LOWEST || !array.is_multiple_of(4) {
            return Err(self.wrong("it has no types, like the instance that each store makes for itself".into()));
        }
        let bytes = self.memory.read_vec(array, count * 4).map_err(Why::Memory)?;
        let number = |b: &[u8]| b.try_into().map_or(u32::MAX, u32::from_le_bytes);
        let numbers: Vec<_> = bytes.chunks_exact(4).map(number).collect();
        if numbers.contains(&u32::MAX) {
            return Err(self.wrong(format!("the words at {array:#x} are not the numbers of its types")));
        }
        Ok(Some(numbers))
    }

    // What kind of context provides an import. It has to be of the same store, as far as that can be seen.
    fn context(&self, address: u64, store: u64, what: &str) -> Result<Context, Why> {
        let context = Context::read(address, self.memory).map_err(Why::Memory)?;
        let wrong = |why: &str| self.wrong(format!("{what} comes from {address:#x}, {why}"));
        let context = context.ok_or_else(|| wrong("where there is no context"))?;
        if context == Context::Instance {
            let its = self.memory.read_u64(address.saturating_add(offsets::VMCONTEXT_STORE)).map_err(Why::Memory)?;
            if its != store {
                return Err(wrong("which is of another store"));
            }
        }
        Ok(context)
    }

    fn instance(&self, address: u64, store: u64, what: &str) -> Result<(), Why> {
        match self.context(address, store, what)? {
            Context::Instance => Ok(()),
            _ => Err(self.wrong(format!("{what} comes from {address:#x}, where there is no instance"))),
        }
    }

    fn functions(&self, store: u64) -> Fact {
        let array = self.of.layout.imported_functions;
        let fields = self.of.function_import;
        for index in items(array) {
            let what = format!("imported function {index}");
            let array_call = self.read(array, index, fields.array_call)?;
            for code in [array_call, self.read(array, index, fields.wasm_call)?] {
                if !self.is_code(code) {
                    return Err(self.wrong(format!("{what} has no code at {code:#x}")));
                }
            }
            let vmctx = self.read(array, index, fields.vmctx)?;
            if self.context(vmctx, store, &what)? == Context::HostFunction {
                // The function's own `VMFuncRef` follows the magic, and leads back to it.
                let word = |field: u64| self.memory.read_u64(vmctx.saturating_add(8 + field)).map_err(Why::Memory);
                if (word(offsets::FUNC_REF_VMCTX)?, word(offsets::FUNC_REF_ARRAY_CALL)?) != (vmctx, array_call) {
                    return Err(
                        self.wrong(format!("{what} is a host function at {vmctx:#x} that leads to another one"))
                    );
                }
            }
        }
        Ok(fact(array.count, "imported function", "with code and context"))
    }

    fn memories(&self, store: u64) -> Fact {
        let of = self.of;
        let count = of.module.memories.len() as u32;
        for index in 0..count.min(MAX_INSTANCE_ITEMS) {
            let (base, bytes) = of.linear_memory(self.vmctx, index, self.memory)?;
            // An empty memory can be anywhere.
            if bytes > 0 && !mapped(self.mappings, base, bytes) {
                return Err(self.wrong(format!("memory {index} of {bytes} bytes at {base:#x} is not mapped")));
            }
            if index < of.layout.imported_memories.count {
                let from = self.read(of.layout.imported_memories, index, offsets::MEMORY_IMPORT_VMCTX)?;
                self.instance(from, store, &format!("imported memory {index}"))?;
            }
        }
        Ok(several(count, "memory", "memories", "in mapped memory, sizes within limits"))
    }

    fn tables(&self, store: u64) -> Fact {
        let of = self.of;
        let count = of.module.tables.len() as u32;
        for index in 0..count.min(MAX_INSTANCE_ITEMS) {
            let (ty, base, elements) = of.table_elements(self.vmctx, index, self.memory)?;
            let bytes = elements.checked_mul(ty.element.bytes() as u64);
            if !bytes.is_some_and(|bytes| bytes == 0 || mapped(self.mappings, base, bytes)) {
                return Err(self.wrong(format!("table {index} of {elements} elements at {base:#x} is not mapped")));
            }
            if index < of.layout.imported_tables.count {
                let from = self.read(of.layout.imported_tables, index, offsets::TABLE_IMPORT_VMCTX)?;
                self.instance(from, store, &format!("imported table {index}"))?;
            }
        }
        Ok(fact(count, "table", "in mapped memory, sizes within limits"))
    }

    fn globals(&self, store: u64) -> Fact {
        let array = self.of.layout.imported_globals;
        for index in items(array) {
            let address = self.of.global_address(self.vmctx, index, self.memory)?;
            self.memory.read(address, &mut [0; offsets::GLOBAL_SIZE as usize]).map_err(Why::Memory)?;
            // A null pointer means that the global is the host's own.
            let from = self.read(array, index, offsets::GLOBAL_IMPORT_VMCTX)?;
            if from != 0 {
                self.context(from, store, &format!("imported global {index}"))?;
            }
        }
        Ok(fact(array.count, "imported global", "readable"))
    }

    fn tags(&self, store: u64) -> Fact {
        let array = self.of.layout.imported_tags;
        for index in items(array) {
            let from = self.read(array, index, offsets::TAG_IMPORT_VMCTX)?;
            self.instance(from, store, &format!("imported tag {index}"))?;
        }
        Ok(fact(array.count, "imported tag", "with instance"))
    }

    // A `VMFuncRef` for a function that was not referred to yet is memory as malloc gave it, perhaps with what a
    // freed instance left there. So one that names another function says nothing by itself. But if all that look used
    // name other functions, this is an instance of another module.
    fn func_refs(&self, types: Option<&[u32]>) -> Fact {
        let of = self.of;
        if of.layout.func_refs.count == 0 && of.layout.startup_func_ref.count == 0 {
            return Ok(None);
        }
        let defined = of.module.functions.iter().skip(of.module.imported.functions as usize);
        let referred = (0u32..).zip(defined).filter_map(|(own, f)| Some((own, f.signature, f.func_ref?)));
        let referred: Vec<_> = referred.take(MAX_INSTANCE_ITEMS as usize).collect();
        let compiled = of.compiled(&referred.iter().map(|(own, ..)| *own).collect::<Vec<_>>());
        let key = |kind, index| FuncKey { kind, namespace: of.number, index };
        let start = |kind, index| compiled.get(&key(kind, index)).map(|offset| of.text.start.saturating_add(*offset));
        let (mut right, mut wrong) = (0u32, 0u32);
        let mut count = |array: Array, index: u32, wasm: Option<u64>, array_call: Option<u64>, ty: Option<u32>| {
            if self.read(array, index, offsets::FUNC_REF_VMCTX)? != self.vmctx {
                return Ok(());
            }
            let number = self.read(array, index, offsets::FUNC_REF_TYPE)? as u32;
            // The entry trampoline is in the table of functions whenever there is one.
            let good = wasm == Some(self.read(array, index, offsets::FUNC_REF_WASM_CALL)?)
                && array_call == Some(self.read(array, index, offsets::FUNC_REF_ARRAY_CALL)?)
                && ty.is_none_or(|ty| ty == number);
            *(if good { &mut right } else { &mut wrong }) += 1;
            Ok(())
        };
        for (own, signature, func_ref) in referred {
            let ty = signature.and_then(|s| types?.get(s as usize).copied());
            let calls = (start(FuncKind::Wasm, own), start(FuncKind::ArrayToWasm, own));
            count(of.layout.func_refs, func_ref, calls.0, calls.1, ty)?;
        }
        if of.layout.startup_func_ref.count > 0 {
            // The index of the initializer's code is its calling convention.
            let calls = (start(FuncKind::ModuleStartup, 0), start(FuncKind::ModuleStartup, 1));
            count(of.layout.startup_func_ref, 0, calls.0, calls.1, None)?;
        }
        if right == 0 && wrong > 0 {
            return Err(self.wrong("its references to functions lead to other code".into()));
        }
        Ok(fact(right, "reference to a function", "with the module's own code and type"))
    }

    fn data(&self) -> Fact {
        let layout = &self.of.layout;
        // The address at which `.rodata.wasm` would begin, by the segments so far.
        let mut section = None;
        let mut live = 0;
        for (index, (begin, end)) in (0..MAX_INSTANCE_ITEMS).zip(&self.of.module.runtime_data) {
            let (Some(base), Some(length)) = (layout.data_bases.at(index), layout.data_lengths.at(index)) else {
                break;
            };
            let length = self.memory.read_u32(self.vmctx + length).map_err(Why::Memory)?;
            // The segment was dropped, or is already in a memory.
            if length == 0 {
                continue;
            }
            let base = self.memory.read_u64(self.vmctx + base).map_err(Why::Memory)?;
            let begins = base.checked_sub(u64::from(*begin));
            if length != end - begin || begins.is_none() || section.is_some_and(|s| Some(s) != begins) {
                return Err(self.wrong(format!("its data segment {index} is that of another module")));
            }
            section = begins;
            live += 1;
        }
        Ok(fact(live, "data segment", "of the module's lengths"))
    }
}

fn fact(count: u32, one: &str, how: &str) -> Option<String> {
    several(count, one, &format!("{one}s"), how)
}

fn several(count: u32, one: &str, many: &str, how: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 {one} {how}")),
        n => Some(format!("{n} {many} {how}")),
    }
}

/// What module `number` of an image declares. The version is needed only as far as `info` could be decoded. `text` is
/// where the image's code is, `symbols` is [`super::image::Image::symbols`] (empty if there are none), and `names` is
/// the contents of `.name.wasm` (empty if there is none).
pub fn declared(info: &ImageInfo, number: u32, text: Range<u64>, symbols: &FunctionTable, names: &[u8]) -> Declared {
    let Some(module) = info.modules.get(number as usize) else {
        return Declared::unknown(Why::NoSuchModule);
    };
    Declared {
        memories: Ok(module.memories.iter().map(Into::into).collect()),
        globals: Ok(module.globals.iter().map(Into::into).collect()),
        tables: Ok(module.tables.len() as u32),
        functions: Ok(functions(info, module, number, text, symbols, names)),
        exports: exports(module),
    }
}

fn functions(
    info: &ImageInfo,
    module: &ModuleInfo,
    number: u32,
    text: Range<u64>,
    symbols: &FunctionTable,
    names: &[u8],
) -> Vec<GuestFunction> {
    let mut exported: HashMap<u32, &str> = HashMap::new();
    for e in &module.exports {
        if let Entity::Function(i) = e.entity {
            exported.entry(i).or_insert(&e.name);
        }
    }
    let mut imported: HashMap<u32, (&str, &str)> = HashMap::new();
    for i in &module.imports {
        if let Entity::Function(index) = i.entity {
            imported.insert(index, (&i.module, &i.field));
        }
    }
    let mut code: HashMap<u32, (u64, u64)> = HashMap::new();
    for f in info.functions.iter().filter(|f| f.key.kind == FuncKind::Wasm && f.key.namespace == number) {
        let begin = text.start.saturating_add(f.start.into());
        code.insert(f.key.index, (begin, begin.saturating_add(f.len.into())));
    }
    // A few bytes of a damaged section can name a long string or signature many times.
    let mut bytes_left = MAX_NAME_SECTION_BYTES;
    let mut types_left = MAX_SIGNATURE_TYPES;
    let function = |(index, f): (u32, &super::image::info::ModuleFunction)| {
        let own = index.checked_sub(module.imported.functions);
        let mut take = |len: usize| {
            bytes_left = bytes_left.checked_sub(len)?;
            Some(())
        };
        // Symbols have the same names, but cleaned and cut, so they are for an image that lost `.name.wasm`.
        let name = None
            .or_else(|| module.function_name(index, names).map(|n| (Cow::from(n), NameSource::NameSection)))
            .or_else(|| Some((symbols.name_of(number, index)?.into(), NameSource::Symbol)))
            .or_else(|| exported.get(&index).map(|n| (Cow::from(*n), NameSource::Export)))
            .and_then(|(n, from)| take(n.len()).map(|()| (n.into_owned(), from)));
        let name = name.or_else(|| {
            let (from, field) = imported.get(&index)?;
            take(from.len().saturating_add(field.len()))?;
            Some((format!("{from}.{field}"), NameSource::Import))
        });
        let ty = f.signature.and_then(|s| info.types.get(s as usize)?.as_ref());
        let signature = ty.and_then(|ty| {
            types_left = types_left.checked_sub(ty.params.len() + ty.results.len())?;
            let list = |types: &[WasmType]| types.iter().map(|t| ValType::from(*t)).collect();
            Some((list(&ty.params), list(&ty.results)))
        });
        GuestFunction { name, signature, imported: own.is_none(), code: own.and_then(|own| code.get(&own).copied()) }
    };
    (0u32..).zip(&module.functions).map(function).collect()
}

fn exports(module: &ModuleInfo) -> Result<Vec<GuestExport>, Why> {
    let bytes = module.exports.iter().fold(0usize, |sum, e| sum.saturating_add(e.name.len()));
    if bytes > MAX_NAME_SECTION_BYTES {
        return Err(Why::Other(format!(
            "the names of the exports have {bytes} bytes, more than {MAX_NAME_SECTION_BYTES}"
        )));
    }
    Ok(module.exports.iter().map(Into::into).collect())
}

#[cfg(test)]
mod tests;
