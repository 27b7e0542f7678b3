//! One code image of a target: what its sections say, read once.

use super::addrmap::{AddressMap, FilePos};
use super::dwarf::ImageDwarf;
use super::exceptions;
use super::frame_table::FrameTable;
use crate::process::Memory;
use crate::process::mapped_file::{MappedFile, WithFile};
use crate::runtime::immediates::Immediates;
use crate::runtime::wasmtime::image::engine::Inlining;
use crate::runtime::wasmtime::image::info::{Entity, FuncKind, ImageInfo, ModuleInfo};
use crate::runtime::wasmtime::image::version::Version;
use crate::runtime::wasmtime::image::{
    ADDRMAP, BYTECODE, BYTECODE_ENDS, Contents, ENGINE, EXCEPTIONS, FRAMES, Function, FunctionKind, FunctionTable, INFO,
};
use crate::runtime::wasmtime::image::{Image, Kind, NAMES};
use crate::runtime::{Compared, Key, Why};
use crate::unwind::cfi::CfiUnwinder;
use crate::wasm::NameSource;
use crate::wasm::WasmModule;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

/// A code image and what is known of it.
pub struct Code {
    pub image: Image,
    /// The version of Wasmtime as the image writes it, if it can be read.
    pub version_text: Option<String>,
    /// The version whose layouts are used: the written one, or one that fits if the image hides it.
    pub version: Option<Version>,
    /// The pieces of code in the image: functions and trampolines.
    pub functions: FunctionTable,
    /// For each module, how many functions it defines. If the image has no description, these are the pieces of code
    /// that are named as functions of the module.
    pub defined: Vec<usize>,
    /// Where the names of the pieces of code come from.
    pub name_source: NameSource,
    /// What `.wasmtime.info` says, or why that is not known.
    pub info: Result<ImageInfo, Why>,
    /// Number of core modules in the image, at least one.
    pub modules: usize,
    /// Number of the image's first module, as the runtime counts modules.
    pub first: usize,
    /// The `.wasm` file of each module, from the image or from the user.
    pub wasm: Vec<Option<Rc<WasmModule>>>,
    /// For each module, what was compared of the user's file and agrees with the image.
    pub wasm_compared: Vec<Option<Compared>>,
    /// For each module, the path of the user's file.
    pub wasm_path: Vec<Option<PathBuf>>,
    /// For each module, what else the comparison with the user's file showed.
    pub wasm_checks: Vec<Vec<String>>,
    /// For each module, its byte offset in the user's file, if that file is a component.
    pub wasm_base: Vec<Option<u64>>,
    /// For each module, the number that is added to positions in its `.wasm` to get those of the image, if it is
    /// known.
    pub wasm_shift: Vec<Option<u64>>,
    /// Whether the image carries the Wasm that it was made from.
    pub carries_wasm: bool,
    pub file: Option<MappedFile>,
    pub cfi: Option<CfiUnwinder<'static>>,
    /// Debug information of the source language (`debug_info`).
    pub dwarf: Option<ImageDwarf>,
    /// What is missing or wrong in the image.
    pub problems: Vec<String>,
    /// For each module, the positions of its function bodies, each with the index of the function.
    body_places: OnceCell<HashMap<u32, Vec<(u32, u32)>>>,
    /// The number of the piece of code that is a Wasm function, by module and function.
    pieces: OnceCell<HashMap<(u32, u32), usize>>,
    /// The first name under which a function is exported, by module and function.
    exported: OnceCell<HashMap<(usize, u32), Arc<str>>>,
    /// What the compiler could inline. `None` if it is not known.
    inlining: Option<Inlining>,
    names: Option<Contents>,
    addrmap: Option<Contents>,
    frames: Option<Contents>,
    /// Return addresses of calls, each with a place where execution goes on when an exception ends the call. Both are
    /// offsets in the code.
    handlers: Vec<(u32, u32)>,
    /// The positions of function bodies: first those in the file that was compiled, then those in each module that
    /// the runtime made itself.
    pub bodies: Vec<Bodies>,
}

impl Code {
    /// Reads what is needed of an image. If a section is missing, only what it would tell is missing.
    pub fn load(image: Image, file: Option<MappedFile>, memory: &dyn Memory) -> Code {
        let memory = &WithFile { memory, file: file.as_ref() };
        let mut problems = Vec::new();
        if let Some(file) = file.as_ref().filter(|f| f.compared == 0) {
            problems.push(format!(
                "nothing of its code is in the core: {} is taken as it is here now, make sure that it is the file of that run",
                file.path.display()
            ));
        }
        let section = |name: &'static str, problems: &mut Vec<String>| {
            image.has(name).then(|| match image.contents(name, memory) {
                Ok(bytes) => Some(bytes),
                Err(e) => {
                    problems.push(format!("section {name}: {e}"));
                    None
                }
            })?
        };
        let (version_text, inlining) = match image.engine(memory) {
            Ok(engine) => (engine.version, engine.inlining),
            Err(e) => {
                problems.push(e.to_string());
                (None, None)
            }
        };
        let written = version_text.as_deref().and_then(Version::parse);
        let kind = image.header().kind;
        let info = match section(INFO, &mut problems) {
            None => Err(Why::other("the section .wasmtime.info is not there")),
            Some(bytes) => decode(&bytes, kind, written, version_text.as_deref()),
        };
        if let Err(why) = &info {
            problems.push(why.to_string());
        }
        let names = section(NAMES, &mut problems);
        let symbols = image.symbols(memory).unwrap_or_else(|e| {
            problems.push(e.to_string());
            FunctionTable::default()
        });
        let (functions, name_source) = match &info {
            Ok(info) if symbols.is_empty() => {
                (info.function_table(names.as_deref().map_or(&[], Vec::as_slice)), NameSource::NameSection)
            }
            _ => (symbols, NameSource::Symbol),
        };
        let version = written.or(info.as_ref().ok().map(|i| i.version));
        let (functions, defined) = match &info {
            Ok(info) => {
                let defined = info.modules.iter().map(|m| m.defined().functions as usize).collect();
                (functions.of_modules(info.modules.len()), defined)
            }
            Err(_) => {
                let defined = counted(&functions);
                (functions, defined)
            }
        };
        let modules = defined.len().max(1);
        let text = image.text();
        let cfi = section(".eh_frame", &mut problems).and_then(|bytes| {
            let address = image.base().wrapping_add(image.section(".eh_frame")?.offset);
            let name = format!("the code image at {:#x}", image.base());
            Some(CfiUnwinder::of_eh_frame(name, (text.start, text.end), bytes, address))
        });
        let wasm = bytecode(&image, memory, modules, &mut problems);
        let bodies = info.as_ref().map(|info| bodies(info, kind)).unwrap_or_default();
        let addrmap = section(ADDRMAP, &mut problems);
        let frames = section(FRAMES, &mut problems);
        let handlers = section(EXCEPTIONS, &mut problems).map_or_else(Vec::new, |bytes| exceptions::handlers(&bytes));
        let dwarf = ImageDwarf::load(&image, memory).unwrap_or_else(|why| {
            problems.push(format!("its debug information cannot be used: {why}"));
            None
        });
        let mut code = Code {
            version_text,
            version,
            functions,
            defined,
            name_source,
            info,
            modules,
            first: 0,
            wasm,
            wasm_path: vec![None; modules],
            wasm_compared: vec![None; modules],
            wasm_checks: vec![Vec::new(); modules],
            wasm_base: vec![None; modules],
            wasm_shift: vec![None; modules],
            carries_wasm: false,
            cfi,
            dwarf,
            problems,
            body_places: OnceCell::new(),
            pieces: OnceCell::new(),
            exported: OnceCell::new(),
            inlining,
            names,
            addrmap,
            frames,
            handlers,
            bodies,
            image,
            file,
        };
        code.carries_wasm = code.wasm.iter().any(Option::is_some);
        for module in 0..code.modules {
            let own = code.wasm[module].clone();
            code.wasm_shift[module] = own.and_then(|own| code.shift_of(module, &own).ok().flatten());
        }
        code
    }

    /// The number that is added to positions in `wasm` to get those of the image: the offset at which the module lies
    /// in its component. `None` if the image does not say where its modules lie. It fails if the function bodies show
    /// that `module` was not made from `wasm`.
    pub fn shift_of(&self, module: usize, wasm: &WasmModule) -> Result<Option<u64>, String> {
        if self.image.header().kind == Kind::Module {
            return Ok(Some(0));
        }
        let mut found = None;
        let all = self.body_places.get_or_init(|| {
            let mut all: HashMap<u32, Vec<(u32, u32)>> = HashMap::new();
            for &(position, module, function) in self.bodies.iter().flat_map(|bodies| &bodies.0) {
                all.entry(module).or_default().push((position, function));
            }
            all
        });
        let own = u32::try_from(module).ok().and_then(|module| all.get(&module));
        for &(position, function) in own.into_iter().flatten() {
            let local = function.checked_sub(wasm.imported_functions());
            let Some(body) = local.and_then(|local| wasm.body_offset(local)) else { continue };
            let shift = u64::from(position).checked_sub(body);
            if shift.is_none() || found.is_some_and(|found| Some(found) != shift) {
                return Err(format!("the body of function {function} of all is not where the module was made from"));
            }
            found = shift;
        }
        Ok(found)
    }

    /// The machine code of a function that a module defines. `local` counts only these functions.
    pub fn code_of(&self, module: usize, local: u32, memory: &dyn Memory) -> Option<Vec<u8>> {
        let function = self.imports(module)?.checked_add(local)?;
        let pieces = self.pieces.get_or_init(|| {
            let mut pieces = HashMap::new();
            for piece in self.functions.wasm() {
                pieces.entry((piece.module, piece.function)).or_insert(piece.number);
            }
            pieces
        });
        let number = *pieces.get(&(u32::try_from(module).ok()?, function))?;
        let (start, len) = self.functions.piece(number)?;
        let start = self.image.text().start + u64::from(start);
        self.memory(memory).read_vec(start, len as usize).ok()
    }

    /// The name of a function in the name section that the module was compiled with.
    pub fn own_name(&self, module: usize, function: u32) -> Option<String> {
        if let Some(own) = self.wasm.get(module).and_then(Option::as_ref).filter(|_| self.carries_wasm) {
            return own.own_name(function).map(str::to_string);
        }
        self.recorded_name(module, function)
            .map(str::to_string)
            .or_else(|| self.functions.name_of(u32::try_from(module).ok()?, function))
    }

    fn recorded_name(&self, module: usize, function: u32) -> Option<&str> {
        let info = self.module(module)?;
        info.function_name(function, self.names.as_deref()?).filter(|name| !name.is_empty())
    }

    /// What tells this module from others: how its image was compiled, and what its code does. `None` if something
    /// cannot be read, or the code has more than `left` bytes.
    pub fn key(&self, module: usize, left: &mut u64, memory: &dyn Memory) -> Option<Key> {
        let mut build = DefaultHasher::new();
        let engine = self.image.contents(ENGINE, &self.memory(memory)).ok()?;
        (&*engine, self.image.header().kind == Kind::Component).hash(&mut build);
        let mut content = DefaultHasher::new();
        match self.wasm.get(module).and_then(Option::as_ref).filter(|_| self.carries_wasm) {
            Some(own) => own.bytes().hash(&mut content),
            None => {
                for local in 0..*self.defined.get(module)? {
                    let code = self.code_of(module, u32::try_from(local).ok()?, memory)?;
                    *left = left.checked_sub(code.len() as u64)?;
                    Immediates::of(&code).fingerprint.hash(&mut content);
                }
            }
        }
        Some(Key { build: build.finish(), content: content.finish() })
    }

    /// Takes the image's code as that of no module. `why` is the reason that users see.
    pub fn leave_out_modules(&mut self, why: Why) {
        self.problems.push(why.to_string());
        self.functions = std::mem::take(&mut self.functions).of_modules(0);
        self.info = Err(why);
        self.modules = 1;
        self.defined.clear();
        self.bodies.clear();
        (self.wasm, self.wasm_path, self.wasm_compared) = (vec![None], vec![None], vec![None]);
        (self.wasm_checks, self.wasm_base, self.wasm_shift) = (vec![Vec::new()], vec![None], vec![None]);
        self.carries_wasm = false;
    }

    /// Whether nothing but the file's name says that it is the file that was mapped.
    pub fn is_unproven(&self) -> bool {
        self.file.as_ref().is_some_and(|f| f.compared == 0)
    }

    /// The target's memory. What the target leaves out is taken from this image's file.
    pub fn memory<'a>(&'a self, memory: &'a dyn Memory) -> WithFile<'a> {
        WithFile { memory, file: self.file.as_ref() }
    }

    /// Whether code of this image is at `address`.
    pub fn contains(&self, address: u64) -> bool {
        self.image.text().contains(&address)
    }

    /// The piece of code at `address`.
    pub fn function(&self, address: u64) -> Option<Function> {
        self.functions.at(self.image.text_offset(address)?)
    }

    /// The return addresses of a function's calls, each with a place where execution goes on when an exception ends
    /// the call. Both are offsets from the function's start.
    pub fn handlers(&self, function: &Function) -> Vec<(u32, u32)> {
        let from = self.handlers.partition_point(|(call, _)| *call <= function.start);
        let own = self.handlers.get(from..).unwrap_or_default().iter().take_while(|(call, _)| *call <= function.end());
        own.filter_map(|(call, at)| Some((call.checked_sub(function.start)?, at.checked_sub(function.start)?)))
            .collect()
    }

    /// Index of the core module that the code at `address` belongs to. Glue code of no module counts as that of the
    /// first.
    pub fn module_at(&self, address: u64) -> usize {
        match self.function(address).map(|f| f.kind) {
            Some(
                FunctionKind::Wasm { module, .. }
                | FunctionKind::ArrayToWasm { module, .. }
                | FunctionKind::ModuleStart { module },
            ) => (module as usize).min(self.modules - 1),
            _ => 0,
        }
    }

    /// What the image's description says of the module with index `module`.
    pub fn module(&self, module: usize) -> Option<&ModuleInfo> {
        self.info.as_ref().ok()?.modules.get(module)
    }

    /// Number of functions that the module with index `module` imports.
    pub fn imports(&self, module: usize) -> Option<u32> {
        let of_wasm = || self.wasm.get(module)?.as_ref().map(|w| w.imported_functions());
        self.module(module).map(|m| m.imported.functions).or_else(of_wasm)
    }

    /// The best name of a Wasm function, and where the name is from.
    pub fn function_name(&self, module: usize, function: u32, symbol: Option<&str>) -> Option<(String, NameSource)> {
        // The names that the module was compiled with win over those in the user's file, which nothing proves.
        if let Some(name) = self.recorded_name(module, function) {
            return Some((name.to_string(), NameSource::NameSection));
        }
        if let Some(Some(wasm)) = self.wasm.get(module)
            && let Some(name) = wasm.function_name(function)
        {
            return Some(name);
        }
        if let Some(name) = symbol.filter(|n| !n.is_empty()) {
            return Some((name.to_string(), self.name_source));
        }
        let exported = self.exported.get_or_init(|| {
            let modules = self.info.iter().flat_map(|info| &info.modules).enumerate();
            let mut exported = HashMap::new();
            for (module, export) in modules.flat_map(|(i, module)| module.exports.iter().map(move |e| (i, e))) {
                if let Entity::Function(function) = export.entity {
                    exported.entry((module, function)).or_insert_with(|| Arc::clone(&export.name));
                }
            }
            exported
        });
        exported.get(&(module, function)).map(|name| (name.to_string(), NameSource::Export))
    }

    /// The contents of `.name.wasm`.
    pub fn names(&self) -> Option<&[u8]> {
        self.names.as_deref().map(Vec::as_slice)
    }

    /// Whether the compiler kept the positions of operators.
    pub fn has_places(&self) -> bool {
        self.addrmap.is_some()
    }

    /// The address map, if the image has one of a known form.
    pub fn address_map(&self) -> Option<AddressMap<'_>> {
        AddressMap::parse(self.addrmap.as_deref()?, self.version).ok()
    }

    /// Position in the compiled file of the operator that the code at `text_offset` was made from. For a caller ask
    /// one byte before the return address.
    pub fn place(&self, text_offset: u32) -> Option<FilePos> {
        self.address_map()?.lookup(text_offset)
    }

    /// Whether locals and operand stacks are recorded (`guest_debug`); `None` if their table cannot be read.
    pub fn has_frames(&self) -> Option<bool> {
        match self.frames {
            Some(_) => Some(true),
            None if self.image.has(FRAMES) => None,
            None => Some(false),
        }
    }

    /// Number of a function's parameters, from the image's description or the `.wasm`.
    pub fn params(&self, module: usize, function: u32) -> Option<usize> {
        let described = || {
            let signature = self.info.as_ref().ok()?.signature(u32::try_from(module).ok()?, function)?;
            Some(signature.params.len())
        };
        let in_wasm = || Some(self.wasm.get(module)?.as_ref()?.signature(function)?.0.len());
        described().or_else(in_wasm)
    }

    /// The bytes of the table of locals and operand stacks.
    pub fn frames(&self) -> Option<&[u8]> {
        self.frames.as_deref().map(Vec::as_slice)
    }

    /// Locals and operand stacks, or why they are not known.
    pub fn frame_table(&self) -> Result<FrameTable<'_>, Why> {
        match self.frames.as_deref() {
            Some(bytes) => FrameTable::parse(bytes, self.version).map_err(|e| Why::FrameTable(e.to_string())),
            None if self.has_frames().is_none() => {
                Err(Why::FrameTable("the table of frames cannot be read".to_string()))
            }
            None if self.version.is_some_and(|version| version < Version::GUEST_DEBUG) => Err(Why::BeforeGuestDebug),
            None => Err(Why::NoGuestDebug),
        }
    }

    /// The function whose operator was compiled to the code at `text_offset`, as module and function index: the
    /// function that the code is of, or one that was inlined there. There are several if it cannot be told which of
    /// them it is, and none if nothing is known. For a caller ask one byte before the return address.
    pub fn owners(&self, text_offset: u32) -> Vec<(u32, u32)> {
        let Some(place) = self.place(text_offset) else { return Vec::new() };
        let own = self.functions.at(text_offset).and_then(|f| match f.kind {
            FunctionKind::Wasm { module, function, .. } => Some((module, function)),
            _ => None,
        });
        self.owners_of(place, own)
    }

    /// The same as `owners` for a position that is known already, in the code of the function `own`.
    pub fn owners_of(&self, FilePos(place): FilePos, own: Option<(u32, u32)>) -> Vec<(u32, u32)> {
        let found: Vec<(u32, u32)> = self.bodies.iter().filter_map(|bodies| bodies.at(place)).collect();
        match own.filter(|own| found.contains(own)) {
            Some(own) => vec![own],
            None => found,
        }
    }

    /// The number of starts from which positions are counted: that of the compiled file, and that of each module that
    /// the runtime made.
    pub fn files(&self) -> usize {
        self.bodies.len()
    }

    /// Where a module begins in the file that was compiled, if that is known. In a component it is not at the start.
    pub fn module_start(&self, module: u32) -> Option<u32> {
        match self.image.header().kind {
            Kind::Module => Some(0),
            _ => u32::try_from(self.wasm_shift.get(module as usize).copied().flatten()?).ok(),
        }
    }

    /// Whether functions that a module's code calls may have been inlined in place of the calls.
    pub fn may_inline(&self, module: usize) -> bool {
        let several = self.modules > 1 || self.info.is_err();
        match self.inlining {
            None | Some(Inlining::Everything) => true,
            Some(Inlining::Nothing) => false,
            Some(Inlining::BetweenModules) => several,
            Some(Inlining::BetweenModulesAndGc) => several || self.module(module).is_none_or(|m| m.needs_gc_heap),
        }
    }

    /// Where the body of a function begins in the compiled file.
    pub fn body_offset(&self, module: u32, function: u32) -> Option<u32> {
        let mut all = self.bodies.iter().flat_map(|bodies| &bodies.0);
        all.find(|b| (b.1, b.2) == (module, function)).map(|b| b.0)
    }
}

/// Function bodies in ascending order of position: position, module, function.
#[derive(Default)]
pub struct Bodies(Vec<(u32, u32, u32)>);

impl Bodies {
    fn at(&self, place: u32) -> Option<(u32, u32)> {
        let i = self.0.partition_point(|b| b.0 <= place);
        self.0.get(i.checked_sub(1)?).map(|&(_, module, function)| (module, function))
    }
}

/// The function bodies of the file that was compiled, and those of each module that the runtime made. Positions in
/// such a module count from its own start.
fn bodies(info: &ImageInfo, kind: Kind) -> Vec<Bodies> {
    let mut made = info.modules.iter().rev().take_while(|m| kind == Kind::Component && is_adapter(m)).count();
    // A component is around the modules that the runtime made, so at least one other module is there.
    made = made.min(info.modules.len().saturating_sub(1));
    let first_made = info.modules.len() - made;
    let mut out: Vec<Bodies> = (0..=made).map(|_| Bodies(Vec::new())).collect();
    for f in info.functions.iter().filter(|f| f.key.kind == FuncKind::Wasm) {
        let module = f.key.namespace as usize;
        let function = info.modules.get(module).and_then(|m| m.imported.functions.checked_add(f.key.index));
        let (Some(position), Some(function)) = (f.body, function) else { continue };
        let file = (module + 1).saturating_sub(first_made);
        if let Some(bodies) = out.get_mut(file) {
            bodies.0.push((position, module as u32, function));
        }
    }
    out.iter_mut().for_each(|bodies| bodies.0.sort_unstable());
    out
}

/// Whether the runtime made this module itself, to call from one component of a file into another (`fact.rs`).
fn is_adapter(module: &ModuleInfo) -> bool {
    module.name.is_none()
        && module.imports.iter().any(|i| &*i.module == "callee")
        && !module.exports.is_empty()
        && module.exports.iter().all(|e| e.name.starts_with("adapter"))
}

fn decode(bytes: &[u8], kind: Kind, written: Option<Version>, text: Option<&str>) -> Result<ImageInfo, Why> {
    let result = match (written, text) {
        (Some(version), _) => ImageInfo::decode(bytes, kind, version),
        // The version is hidden, or is a name of the embedder's own. Whatever version fits in every byte is believed.
        (None, _) => ImageInfo::guess(bytes, kind),
    };
    result.map_err(|e| {
        let which = text.map_or("of an unknown version".to_string(), |v| format!("{v:?}"));
        Why::Other(format!(
            "what Wasmtime {which} knows of its modules cannot be read ({e}): names, frames and offsets are shown, \
             instances, memories and globals are not"
        ))
    })
}

/// For each module, how many functions the symbols name.
fn counted(functions: &FunctionTable) -> Vec<usize> {
    let mut out = Vec::new();
    for piece in functions.wasm() {
        let module = piece.module as usize;
        out.resize(out.len().max(module + 1), 0);
        out[module] += 1;
    }
    out
}

/// The `.wasm` files that an image carries (`guest_debug`). They lie one after the other in one section, and another
/// says where each ends.
fn bytecode(
    image: &Image,
    memory: &dyn Memory,
    modules: usize,
    problems: &mut Vec<String>,
) -> Vec<Option<Rc<WasmModule>>> {
    let mut out = vec![None; modules];
    if !image.has(BYTECODE) {
        return out;
    }
    let (Ok(bytes), Ok(ends)) = (image.contents(BYTECODE, memory), image.contents(BYTECODE_ENDS, memory)) else {
        problems.push("the Wasm that the image carries cannot be read".into());
        return out;
    };
    let (mut start, mut broken, mut first) = (0, 0, None);
    for (slot, end) in out.iter_mut().zip(ends.as_chunks::<4>().0) {
        let end = u32::from_le_bytes(*end) as usize;
        let Some(one) = bytes.get(start..end) else { break };
        start = end;
        match WasmModule::parse(String::new(), one.to_vec()) {
            Ok(module) => *slot = Some(Rc::new(module)),
            Err(e) => {
                broken += 1;
                first.get_or_insert(e);
            }
        }
    }
    // Only the first error is told: the others are of no more use, and these problems are told with each module.
    match first {
        Some(e) if broken == 1 => problems.push(format!("the Wasm that the image carries: {e}")),
        Some(e) => problems.push(format!("the Wasm that the image carries, {broken} modules: {e}")),
        None => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{MAX_IMAGE_MODULES, MAX_IMAGES_MODULES};
    use crate::runtime::wasmtime::Wasmtime;
    use crate::runtime::wasmtime::image::SliceMemory;
    use crate::runtime::wasmtime::testing::fixture;

    fn load(bytes: &[u8]) -> Code {
        Code::load(Image::from_bytes(bytes).unwrap(), None, &SliceMemory::new(0, bytes))
    }

    /// Gives the first Wasm function's symbol another name of the same length.
    fn rename(bytes: &mut [u8], to: &dyn Fn(usize) -> String) {
        let at = memchr::memmem::find(bytes, b"wasm[0]::function[").unwrap();
        let len = bytes[at..].iter().position(|&b| b == 0).unwrap();
        let name = to(len);
        assert_eq!(name.len(), len);
        bytes[at..at + len].copy_from_slice(name.as_bytes());
    }

    #[test]
    fn functions_are_counted_with_and_without_the_description() {
        let mut bytes = fixture("48-default");
        let code = load(&bytes);
        assert_eq!((code.modules, code.defined.as_slice()), (1, &[4][..]));
        // This function has no name of its own, but is exported.
        assert_eq!(code.function_name(0, 3, None), Some(("run".into(), NameSource::Export)));
        let info = code.image.section(INFO).unwrap().offset as usize;
        bytes[info..info + 16].fill(0xff);
        let code = load(&bytes);
        assert!(code.info.is_err() && code.modules == 1 && code.defined == [4]);
        // If the image has a description, a module that is not in it is not believed.
        let mut whole = fixture("48-default");
        rename(&mut whole, &|len| format!("{:0<width$}]", "wasm[7]::function[0", width = len - 1));
        let code = load(&whole);
        assert_eq!((code.modules, code.functions.wasm().count()), (1, 3));
        // A module number in a name is not believed if it is too high, since each module costs memory.
        for (number, modules) in [(MAX_IMAGE_MODULES - 1, MAX_IMAGE_MODULES), (MAX_IMAGE_MODULES, 1), (999_999_999, 1)]
        {
            rename(&mut bytes, &|len| {
                let name = format!("wasm[{number}]::function[0");
                format!("{name:0<width$}]", width = len - 1)
            });
            let code = load(&bytes);
            assert_eq!((code.modules, code.defined.iter().sum()), (modules as usize, if modules == 1 { 3 } else { 4 }));
            bytes = fixture("48-default");
            bytes[info..info + 16].fill(0xff);
        }
    }

    #[test]
    fn modules_of_all_images_have_an_end() {
        // Each of these images has many modules.
        let mut bytes = fixture("48-default");
        let info = load(&bytes).image.section(INFO).unwrap().offset as usize;
        bytes[info..info + 16].fill(0xff);
        rename(&mut bytes, &|len| {
            let name = format!("wasm[{}]::function[0", MAX_IMAGE_MODULES - 1);
            format!("{name:0<width$}]", width = len - 1)
        });
        let mut runtime = Wasmtime::default();
        let many = MAX_IMAGE_MODULES as usize;
        let images = MAX_IMAGES_MODULES / many;
        for image in 1..=images + 1 {
            runtime.add(load(&bytes));
            let (modules, listed) = if image <= images { (many, image * many) } else { (1, images * many + 1) };
            assert_eq!((runtime.codes.last().unwrap().modules, runtime.listed.len()), (modules, listed));
        }
        let last = runtime.codes.last().unwrap();
        assert!(last.functions.wasm().next().is_none() && !last.functions.is_empty());
        let problem = runtime.listed.last().unwrap().problem.as_deref().unwrap_or_default();
        assert!(problem.contains("are left out"), "{problem}");
        // Images of one module each are listed nevertheless.
        runtime.add(load(&fixture("48-default")));
        assert_eq!(runtime.listed.last().unwrap().functions, Some(4));
    }
}
