//! A compiled module found in a target: its code, its state map and what is known about its functions.

pub mod cache_image;
pub mod code;
pub mod ctx;
pub mod info;
pub mod info_in_memory;
pub mod instance;
pub mod layouts;
pub mod map_in_memory;
pub mod maps;
pub(super) mod places;

use self::code::Shape;
use self::maps::Maps;
use self::places::Places;
use crate::process::Memory;
use crate::runtime::immediates::Immediates;
use crate::runtime::{Compared, Declared, GuestFunction, Key, Why};
use crate::state::map::{Point, PointKind};
use crate::state::model::{FunctionStateMap, MachineState, MachineValue, ModuleStateMap};
use crate::wasm::{Declarations, ExternKind, GlobalDecl, GuestExport, MemoryDecl, NameSource, ValType, WasmModule};
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::rc::Rc;

/// What is known about a module without the user's `.wasm`: from `ModuleInfo` in memory or in an artifact.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    /// Names by function index, each with where it comes from.
    pub functions: BTreeMap<u32, (String, NameSource)>,
    /// Signatures by function index: the types of the parameters and of the results.
    pub signatures: BTreeMap<u32, (Vec<ValType>, Vec<ValType>)>,
    /// Name of the module.
    pub module: Option<String>,
    /// Globals, imported ones first, and how many are imported.
    pub globals: Option<(Vec<GlobalDecl>, u64)>,
    /// Number of imported memories, and of memories that the module defines.
    pub memories: Option<(u64, u64)>,
    /// Number of imported tables, and of tables that the module defines.
    pub tables: Option<(u64, u64)>,
    /// Exports of the module.
    pub exports: Option<Vec<GuestExport>>,
    /// Further declarations, with which a `.wasm` file is compared.
    pub description: Declarations,
    /// Address in the target and length in bytes of each data segment's contents.
    pub data: Option<Vec<(u64, u64)>>,
}

/// A compiled module of the target.
pub struct Module {
    /// Address of the first byte of its code, and one past the last.
    pub code: (u64, u64),
    /// Its state map.
    pub map: Maps,
    /// Code offsets of all functions, the trampolines of the imports first.
    pub function_offsets: Vec<u64>,
    /// Number of imported functions.
    pub import_count: u32,
    /// Whether the compiler recorded operand stacks.
    pub tracked: bool,
    /// Whether the code is of a baseline tier; `None` if nothing says so.
    pub baseline: Option<bool>,
    /// Name of the compiler or tier, as the runtime calls it.
    pub backend: String,
    /// Address of its `ModuleInner`, if known.
    pub inner: Option<u64>,
    /// Addresses of the `vm::Ctx` of its instances, as far as they were found.
    pub instances: Vec<u64>,
    /// Names and signatures found in the target.
    pub names: Names,
    /// Each thing in which the user's `.wasm` was compared with the process and agrees.
    pub wasm_checks: Vec<String>,
    /// What was compared of the user's `.wasm` and agrees, in a word.
    pub wasm_compared: Option<Compared>,
    /// The user's `.wasm`, checked against the map.
    pub wasm: Option<Rc<WasmModule>>,
    /// Path of that `.wasm`.
    pub wasm_path: Option<PathBuf>,
    /// The code as the cached image has it, for cores that lack the code's mapping.
    pub image_code: Option<Rc<[u8]>>,
    shapes: RefCell<HashMap<u64, Rc<Result<Shape, String>>>>,
    states: RefCell<HashMap<usize, Rc<Result<MachineState, String>>>>,
    places: RefCell<HashMap<u64, Rc<Places>>>,
}

/// Where in a module's code an address is.
pub enum Location<'m> {
    /// The address is in the trampoline of the imported function with this index.
    Import(u32),
    /// The address is in a compiled function.
    Function {
        /// Byte offset of the function's start in the module's code.
        start: u64,
        /// Byte offset of the address from that start.
        offset: u64,
        /// A state map that contains the function.
        maps: &'m ModuleStateMap,
        /// The state map of the function itself.
        map: &'m FunctionStateMap,
    },
    /// The address is in a function whose state map cannot be read, for the given reason.
    Unreadable(String),
}

/// How many functions are asked whether the compiler recorded states. One is not enough: some functions have no
/// points at all.
const ASKED_FOR_POINTS: usize = 64;

impl Module {
    /// A module with this code and state map, both of the target whose memory is `memory`.
    pub fn new(
        code: (u64, u64),
        map: Maps,
        function_offsets: Vec<u64>,
        import_count: u32,
        memory: &dyn Memory,
    ) -> Module {
        // `begin_body` records diff 0 even without `track_state`, and with full preemption it makes a point that has
        // diff 0. But without `track_state` all other points name no diff (`get_state_diff`), so the first of those
        // tells.
        let first_point = |f: &FunctionStateMap| {
            let ids = |kind| f.table(kind).values().map(|info| info.diff_id);
            PointKind::ORDER.iter().find_map(|&kind| ids(kind).find(|&id| id != 0))
        };
        let some = map.starts().iter().take(ASKED_FOR_POINTS);
        let mut points = some.filter_map(|&start| {
            let map = map.around(start, memory).ok().flatten()?;
            first_point(map.local_functions.get(&start)?)
        });
        let tracked = points.next() != Some(usize::MAX);
        Module {
            code,
            map,
            function_offsets,
            import_count,
            tracked,
            baseline: None,
            backend: "singlepass".into(),
            inner: None,
            instances: Vec::new(),
            names: Names::default(),
            wasm_checks: Vec::new(),
            wasm_compared: None,
            wasm: None,
            wasm_path: None,
            image_code: None,
            shapes: RefCell::default(),
            states: RefCell::default(),
            places: RefCell::default(),
        }
    }

    /// Whether `address` is in the module's code.
    pub fn contains(&self, address: u64) -> bool {
        self.code.0 <= address && address < self.code.1
    }

    /// Whether the module's functions save the registers that they use. Singlepass's functions do. Those of an
    /// optimizing backend may not, and their callers then keep the registers at the boundary.
    pub fn saves_registers(map: &ModuleStateMap) -> bool {
        let saves = |f: &FunctionStateMap| {
            let pushed = f.diffs.first().map_or(&[][..], |d| &d.stack_push);
            pushed.iter().any(|v| matches!(v, MachineValue::PreserveRegister(_)))
        };
        map.local_functions.values().all(saves)
    }

    /// What the code at `address` belongs to: a function or an import trampoline.
    pub fn locate(&self, address: u64, memory: &dyn Memory) -> Option<Location<'_>> {
        let offset = address.checked_sub(self.code.0)?;
        if offset >= self.map.total_size() as u64 {
            return None;
        }
        match self.map.around(offset as usize, memory) {
            Ok(Some(maps)) => {
                let (start, map) = maps.function_at(offset as usize)?;
                let start = *start as u64;
                Some(Location::Function { start, offset: offset - start, maps, map })
            }
            Ok(None) => {
                let imports = self.function_offsets.get(..self.import_count as usize)?;
                let index = imports.iter().rposition(|&o| o <= offset)?;
                Some(Location::Import(index as u32))
            }
            Err(why) => Some(Location::Unreadable(why)),
        }
    }

    fn code_bytes(&self, start: u64, end: u64, memory: &dyn Memory) -> Result<Vec<u8>, String> {
        let len = end.saturating_sub(start).min(crate::limits::MAX_IMAGE_BYTES) as usize;
        memory.read_vec(self.code.0.wrapping_add(start), len).or_else(|e| {
            let copy = self.image_code.as_ref().and_then(|c| c.get(start as usize..)?.get(..len));
            copy.map(<[u8]>::to_vec).ok_or_else(|| e.to_string())
        })
    }

    /// The machine code of a function that the module defines.
    pub fn code_of(&self, local_function: u32, memory: &dyn Memory) -> Option<Vec<u8>> {
        // `finalize` numbers all functions in the order of their code.
        let start = *self.map.starts().get(local_function as usize)?;
        self.code_bytes(start as u64, self.map.function_end(start) as u64, memory).ok()
    }

    /// A key that tells this module from others of the same size. The sizes of its functions stand for the backend's
    /// settings, since these change the size of the code. `None` if the code cannot be read or has more than `left`
    /// bytes, which is what may still be read.
    pub fn key(&self, left: &mut u64, memory: &dyn Memory) -> Option<Key> {
        let (mut build, mut content) = (DefaultHasher::new(), DefaultHasher::new());
        (&self.backend, self.tracked, self.map.starts(), self.map.total_size()).hash(&mut build);
        for local in 0..u32::try_from(self.map.starts().len()).ok()? {
            let code = self.code_of(local, memory)?;
            *left = left.checked_sub(code.len() as u64)?;
            Immediates::of(&code).fingerprint.hash(&mut content);
        }
        Some(Key { build: build.finish(), content: content.finish() })
    }

    /// The shape of the function that starts at code offset `start`.
    pub fn shape(&self, start: u64, locals: usize, memory: &dyn Memory) -> Rc<Result<Shape, String>> {
        if let Some(shape) = self.shapes.borrow().get(&start) {
            return shape.clone();
        }
        let end = self.map.function_end(start as usize) as u64;
        let code = self.code_bytes(start, end, memory);
        let shape = Rc::new(code.and_then(|code| Shape::decode(&code, locals)));
        self.shapes.borrow_mut().insert(start, shape.clone());
        shape
    }

    /// Which operators the code of the function at code offset `start` was made from. Empty without a `.wasm`.
    pub fn places(&self, start: u64, map: &FunctionStateMap, memory: &dyn Memory) -> Rc<Places> {
        if let Some(places) = self.places.borrow().get(&start) {
            return places.clone();
        }
        let made = || {
            let wasm = self.wasm.as_deref()?;
            let shape = self.shape(start, map.locals.len(), memory);
            let shape = shape.as_ref().as_ref().ok()?;
            let end = self.map.function_end(start as usize) as u64;
            let code = self.code_bytes(start, end, memory).ok()?;
            Some(Places::of(wasm, map, map.local_function_id as u32, start as usize, &code, shape))
        };
        let places = Rc::new(made().unwrap_or_default());
        self.places.borrow_mut().insert(start, places.clone());
        places
    }

    /// The number of bytes that the trampoline of import `index` has taken off `rsp` when the pc is at `address`.
    pub fn import_stack_depth(&self, index: u32, address: u64, memory: &dyn Memory) -> Result<u64, String> {
        let (start, end) = trampoline(&self.function_offsets, index)?;
        let code = self.code_bytes(start, end, memory)?;
        let at = address.wrapping_sub(self.code.0).wrapping_sub(start);
        let mut depth = 0i64;
        let mut decoder = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE);
        while decoder.can_decode() {
            let i = decoder.decode();
            if i.ip() >= at || i.is_invalid() {
                break;
            }
            if i.op0_kind() == OpKind::Register && i.op0_register() == Register::RSP {
                match (i.mnemonic(), i.try_immediate(1)) {
                    (Mnemonic::Sub, Ok(n)) => depth += n as i64,
                    (Mnemonic::Add, Ok(n)) => depth -= n as i64,
                    _ => return Err("the import trampoline is not as the backend lays it out".into()),
                }
            }
        }
        u64::try_from(depth).ok().filter(|d| *d <= 0x28).ok_or_else(|| "the import trampoline moves rsp up".into())
    }

    /// The state recorded at `point`, or why that state is unusable. `None` where the compiler did not track state.
    pub fn state(&self, point: &Point<'_>) -> Option<Rc<Result<MachineState, String>>> {
        // States are kept: deep recursion returns to the same few points, and each state is the replay of a chain of
        // diffs.
        let key = point.info as *const _ as usize;
        if let Some(state) = self.states.borrow().get(&key) {
            return Some(state.clone());
        }
        let state = Rc::new(point.state()?.map_err(|e| e.to_string()));
        self.states.borrow_mut().insert(key, state.clone());
        Some(state)
    }

    /// Best name of a function, and where the name comes from. A name section that the process itself has wins over
    /// that of the `.wasm`, since the two are not compared. The exports and imports of both are the same.
    pub fn function_name(&self, function: u32) -> Option<(String, NameSource)> {
        let own = self.names.functions.get(&function);
        if let Some(name) = own.filter(|(_, source)| *source == NameSource::NameSection) {
            return Some(name.clone());
        }
        let from_wasm = self.wasm.as_ref().and_then(|w| w.function_name(function));
        from_wasm.or_else(|| own.cloned())
    }

    /// Types of the locals as far as they are known: of all locals from the `.wasm`, else of the parameters from the
    /// signature.
    pub fn local_types(&self, function: Option<u32>, local_function: u32) -> Vec<ValType> {
        if let Some(types) = self.wasm.as_ref().and_then(|w| w.local_types(local_function)) {
            return types.to_vec();
        }
        function.and_then(|f| self.names.signatures.get(&f)).map(|(params, _)| params.clone()).unwrap_or_default()
    }

    /// Number of a function's parameters, from the `.wasm` or the signature.
    pub fn params(&self, function: u32) -> Option<usize> {
        let from_wasm = self.wasm.as_ref().and_then(|w| w.signature(function)).map(|(params, _)| params.len());
        from_wasm.or_else(|| self.names.signatures.get(&function).map(|(params, _)| params.len()))
    }

    /// Number of imported memories, and of memories that the module defines.
    pub fn memories(&self) -> Option<(u64, u64)> {
        let from_wasm = || {
            let declarations = self.wasm.as_ref()?.declarations();
            counts(declarations.imports_of(ExternKind::Memory).len(), declarations.memories.as_ref()?.len())
        };
        self.names.memories.or_else(from_wasm)
    }

    /// Number of imported tables, and of tables that the module defines.
    pub fn tables(&self) -> Option<(u64, u64)> {
        let from_wasm = || {
            let declarations = self.wasm.as_ref()?.declarations();
            counts(declarations.imports_of(ExternKind::Table).len(), declarations.tables.as_ref()?.len())
        };
        self.names.tables.or_else(from_wasm)
    }

    /// Globals, imported ones first, and how many are imported.
    pub fn globals(&self) -> Option<(&[GlobalDecl], u64)> {
        let known = self.names.globals.as_ref().map(|(all, imported)| (all.as_slice(), *imported));
        known.or_else(|| {
            let declarations = self.wasm.as_ref()?.declarations();
            let imported = declarations.imports_of(ExternKind::Global).len();
            Some((declarations.globals.as_deref()?, imported as u64))
        })
    }

    /// What the module declares. Each part that is not known says why.
    pub fn declared(&self) -> Declared {
        let unknown = |what: &'static str| Why::NoDescription { what };
        let from_wasm = self.wasm.as_ref().map(|w| w.declarations());
        let memories = self.memories().map(|(imported, own)| {
            let count = imported.saturating_add(own).min(crate::limits::MAX_SLOTS as u64) as usize;
            let known = from_wasm.and_then(|d| d.memories.clone()).filter(|m| m.len() == count);
            known.unwrap_or_else(|| vec![MemoryDecl::default(); count])
        });
        let tables = self.tables().map(|(imported, own)| u32::try_from(imported.saturating_add(own)));
        Declared {
            memories: memories.ok_or_else(|| unknown("memories")),
            globals: self.globals().map(|(all, _)| all.to_vec()).ok_or_else(|| unknown("globals")),
            tables: tables.and_then(Result::ok).ok_or_else(|| unknown("tables")),
            functions: Ok(self.functions()),
            exports: (self.names.exports.clone())
                .or_else(|| from_wasm.and_then(|d| d.exports.clone()))
                .ok_or_else(|| unknown("exports")),
        }
    }

    fn functions(&self) -> Vec<GuestFunction> {
        let at = |offset: u64| self.code.0.saturating_add(offset);
        let import_code = |i: u32| {
            let start = *self.function_offsets.get(i as usize)?;
            let end = *self.function_offsets.get(i as usize + 1)?;
            (start <= end).then(|| (at(start), at(end)))
        };
        let mut code: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for (number, &start) in self.map.starts().iter().enumerate() {
            code.insert(number, (at(start as u64), at(self.map.function_end(start) as u64)));
        }
        let imports = self.import_count.min(crate::limits::MAX_FUNCTIONS as u32);
        let imports = (0..imports).map(|i| (i, true, import_code(i)));
        // `finalize` numbers all functions in the order of their code.
        let own = code.into_iter().filter_map(|(local, range)| {
            let index = self.import_count.checked_add(u32::try_from(local).ok()?)?;
            Some((index, false, Some(range)))
        });
        let function = |(index, imported, code)| GuestFunction {
            name: self.function_name(index),
            signature: self.signature(index),
            imported,
            code,
        };
        imports.chain(own).map(function).collect()
    }

    fn signature(&self, function: u32) -> Option<(Vec<ValType>, Vec<ValType>)> {
        let from_wasm = || {
            let (params, results) = self.wasm.as_ref()?.signature(function)?;
            Some((params.to_vec(), results.to_vec()))
        };
        self.names.signatures.get(&function).cloned().or_else(from_wasm)
    }

    /// What is wrong with the state map of the function at code offset `start`, as far as that map was looked at.
    pub fn problem(&self, start: u64) -> Option<&str> {
        self.map.problem(start as usize)
    }
}

/// Code offsets at which the trampoline of import `index` begins and ends.
fn trampoline(offsets: &[u64], index: u32) -> Result<(u64, u64), String> {
    let at = |index: usize| offsets.get(index).copied().ok_or_else(|| format!("import {index} has no trampoline"));
    let (start, end) = (at(index as usize)?, at((index as usize).saturating_add(1))?);
    if end.saturating_sub(start) > crate::limits::MAX_TRAMPOLINE_BYTES {
        return Err(format!("the trampoline of import {index} is too long for one"));
    }
    Ok((start, end))
}

/// How many items are imported, and how many of all items are not.
fn counts(imported: usize, all: usize) -> Option<(u64, u64)> {
    Some((imported as u64, all.checked_sub(imported)? as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_TRAMPOLINE_BYTES;

    #[test]
    fn a_trampoline_has_so_many_bytes() {
        let offsets = [0, 0x40, 0x40 + MAX_TRAMPOLINE_BYTES, 0x41 + 2 * MAX_TRAMPOLINE_BYTES];
        assert_eq!(trampoline(&offsets, 0), Ok((0, 0x40)));
        assert!(trampoline(&offsets, 1).is_ok());
        assert!(trampoline(&offsets, 2).unwrap_err().contains("too long"));
        assert!(trampoline(&offsets, 3).unwrap_err().contains("no trampoline"));
    }
}
