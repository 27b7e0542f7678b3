//! Finds modules by the routes in order, most direct first. Each route is asked only for what the routes before it
//! left unexplained.

pub mod anchor;
pub mod route_artifact;
pub mod route_descriptor;
pub mod route_heap;
pub mod route_tls;
pub mod route_vmctx;

use self::anchor::{Anchor, Route};
use super::Singlepass;
use super::module::cache_image::{MapSource, PAGE};
use super::module::info::{Artifact, Export, Import, MemoryInfo, ModuleInfo, Signature, TableInfo};
use super::module::info_in_memory::{MemoryModuleInfo, read_module_info};
use super::module::layouts::Layouts;
use super::module::map_in_memory;
use super::module::maps::Maps;
use super::module::{Module, Names};
use crate::arch::x64;
use crate::limits::{MAX_COMPARED_CODE, MAX_COMPARED_DATA, MAX_COMPARED_OPERANDS};
use crate::process::Memory;
use crate::process::objects::Objects;
use crate::runtime::immediates::Immediates;
use crate::runtime::{Compared, Files, Fit, GuestModule, Key, Provider, Runtime, RuntimeName, Scene, UNTRACKED};
use crate::state::model::{FunctionStateMap, WasmAbstractValue};
use crate::state::{PointKind, SuspendOffset};
use crate::unwind::Cursor;
use crate::wasm::file::CoreModule;
use crate::wasm::{Declarations, FunctionFacts, ModuleFacts, WasmModule};
use crate::wasm::{ExternKind, GlobalDecl, GuestExport, MemoryDecl, NameSource, TableDecl, ValType};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// What a search uses: what the user provides, and what earlier searches have learnt.
#[derive(Clone, Default)]
pub struct Search {
    /// The routes that are used. An empty list stands for all routes.
    pub routes: Vec<Route>,
    /// Artifact files: the path and the contents of each.
    pub artifacts: Vec<(PathBuf, Rc<[u8]>)>,
    /// Layouts of the host's own structures. They are kept from one search to the next.
    pub layouts: HostLayouts,
}

/// The provider that finds the modules of this runtime.
pub struct SinglepassProvider {
    options: Search,
    runtime: Singlepass,
    anchors: Vec<Anchor>,
    refused: BTreeSet<u64>,
    /// Routes that were already asked: those that look at the whole target are asked only once.
    asked: BTreeSet<Route>,
    /// What is known of the module that was last compared with a file, and the module's number.
    facts: Option<(usize, KnownFacts)>,
}

/// What is known of a module, or why nothing is known.
type KnownFacts = Rc<Result<ModuleFacts, String>>;

impl SinglepassProvider {
    /// A provider that has not searched yet.
    pub fn new(options: Search) -> SinglepassProvider {
        SinglepassProvider {
            options,
            runtime: Singlepass::default(),
            anchors: Vec::new(),
            refused: BTreeSet::new(),
            asked: BTreeSet::new(),
            facts: None,
        }
    }

    fn may(&self, route: Route) -> bool {
        self.options.routes.is_empty() || self.options.routes.contains(&route)
    }

    fn once(&mut self, route: Route) -> bool {
        self.may(route) && self.asked.insert(route)
    }

    fn is_known(&self, address: u64) -> bool {
        self.runtime.module_at(address).is_some()
    }

    /// Makes a module from an anchor, or adds the anchor to the module that it belongs to. Returns whether there is a
    /// new module.
    fn take(&mut self, scene: &Scene<'_>, anchor: Anchor) -> bool {
        if let Some(i) = self.anchors.iter().position(|a| a.code_base == anchor.code_base) {
            let both = anchor::merge(vec![self.anchors[i].clone(), anchor]);
            if let Some(both) = both.into_iter().next() {
                self.anchors[i] = both;
                self.name(scene, i);
                self.list(i);
            }
            return false;
        }
        if self.refused.contains(&anchor.code_base) {
            return false;
        }
        match load(scene, &self.options.layouts, &anchor) {
            Ok(module) => {
                self.runtime.modules.push(module);
                self.anchors.push(anchor);
                self.name(scene, self.anchors.len() - 1);
                self.list(self.anchors.len() - 1);
                true
            }
            Err(why) => {
                let route = anchor.routes.first().map_or("", |r| r.name());
                self.runtime
                    .notes
                    .push(format!("the module at {:#x} (found by {route}) cannot be used: {why}", anchor.code_base));
                // Another route may lead to a whole map of the same code, so code is refused for good only if the
                // heap route led to it.
                if anchor.routes.contains(&Route::Heap) {
                    self.refused.insert(anchor.code_base);
                }
                false
            }
        }
    }

    /// Reads names and signatures of module `i` from the runtime's `ModuleInfo`, if the address of its `ModuleInner`
    /// is known.
    fn name(&mut self, scene: &Scene<'_>, i: usize) {
        let (Some(module), Some(anchor)) = (self.runtime.modules.get_mut(i), self.anchors.get(i)) else { return };
        let Some(inner) = anchor.module_inner.filter(|_| module.names == Names::default()) else { return };
        let read = self
            .options
            .layouts
            .get(scene.objects)
            .and_then(|layouts| read_module_info(scene.target, &layouts, inner).map_err(|e| e.to_string()));
        match read {
            Ok(info) => {
                // The import count of the maps is checked. A description that disagrees with it belongs to something
                // else.
                let imports = info.imported_functions.as_ref().map(Vec::len);
                let functions = info.func_assoc.as_ref().map(Vec::len);
                let wanted = (module.import_count as usize, module.map.starts().len());
                if imports.is_ok_and(|n| n != wanted.0) || functions.is_ok_and(|n| n != wanted.0 + wanted.1) {
                    let note = format!("the description of the module at {:#x} is of another module", module.code.0);
                    self.runtime.notes.push(format!("{note}: names and types are not shown"));
                    return;
                }
                module.names = names(&described(&info));
                module.names.globals = match (&info.imported_globals, &info.globals) {
                    (Ok(imported), Ok(own)) => {
                        Some((imported.iter().chain(own).map(global).collect(), imported.len() as u64))
                    }
                    _ => None,
                };
                module.names.description = info.description.clone();
                module.names.data = info.data.clone();
                if let Ok(imports) = &info.imported_functions {
                    module.names.description.imports.push((ExternKind::Function, imports.clone()));
                }
                module.names.memories = info.memories.as_ref().ok().copied();
                module.names.tables = info.tables.as_ref().ok().copied();
                module.names.exports = info.exports.as_ref().ok().map(|all| all.iter().map(exported).collect());
                if let Ok(backend) = &info.backend {
                    module.backend = backend.clone();
                }
                let problems = info.problems();
                if let Some(first) = problems.first() {
                    self.runtime.notes.push(format!("the module at {:#x}: {first}", module.code.0));
                }
            }
            Err(why) => {
                let note = format!("names and types of the module at {:#x} are not known: {why}", module.code.0);
                if !self.runtime.notes.contains(&note) {
                    self.runtime.notes.push(note);
                }
            }
        }
    }

    /// Writes what reports show about module `i`.
    fn list(&mut self, i: usize) {
        let (Some(module), Some(anchor)) = (self.runtime.modules.get_mut(i), self.anchors.get(i)) else { return };
        module.inner = anchor.module_inner;
        module.instances.clone_from(&anchor.vmctx);
        // The name of the file that the user gave is the name that the user knows.
        let file = module.wasm_path.as_ref().and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
        let own = file.or_else(|| module.names.module.clone());
        let mut problem = Vec::new();
        if !module.tracked {
            problem.push(UNTRACKED.to_string());
        }
        if let Some(problems) = module.map.problems().filter(|problems| !problems.is_empty()) {
            let mut first = problems.iter().take(3).map(|(at, why)| format!("+{at:#x}: {why}"));
            let first: Vec<String> = first.by_ref().collect();
            problem.push(format!("{} functions have broken state maps ({})", problems.len(), first.join("; ")));
        }
        if !anchor.patched.is_empty() {
            problem.push(format!("{} functions are redirected to another tier", anchor.patched.len()));
        }
        let mut checks = anchor.checks.clone();
        if let Some(path) = &module.wasm_path {
            let compared = module.wasm_checks.join(", ");
            checks.push(format!(
                "{} agrees with the process in {compared}; types of declared locals are taken from it unchecked",
                path.display()
            ));
        }
        let guest = GuestModule {
            runtime: RuntimeName::Singlepass,
            name: own.unwrap_or_else(|| format!("module{i}")),
            code: module.code,
            routes: anchor.routes.iter().map(|r| r.found_by()).collect(),
            checks,
            functions: Some(module.map.starts().len()),
            tracked: Some(module.tracked),
            backend: module.backend.clone(),
            wasm_file: module.wasm_path.as_ref().map(|p| p.display().to_string()),
            wasm_compared: module.wasm_compared,
            problem: (!problem.is_empty()).then(|| problem.join("; ")),
        };
        match self.runtime.listed.get_mut(i) {
            Some(slot) => *slot = guest,
            None => self.runtime.listed.push(guest),
        }
    }

    /// Keeps the notes of a route about what it tried, if code is still unexplained after it.
    fn note_if(&mut self, unexplained: bool, notes: Vec<String>, route: &str) {
        if unexplained {
            let prefix = format!("{route}: ");
            self.runtime.tried.extend(notes.into_iter().map(|n| match n.starts_with(&prefix) {
                true => n,
                false => format!("{prefix}{n}"),
            }));
        }
    }

    /// Searches the thread-local lists of code versions.
    fn tls(&mut self, scene: &Scene<'_>) {
        let layouts = self.options.layouts.get(scene.objects).ok();
        let found = route_tls::find(scene.target, scene.objects, layouts.as_deref());
        for version in &found.versions {
            let table = version.table.clone().unwrap_or_default();
            let anchor = Anchor {
                routes: vec![Route::Tls],
                code_base: version.base,
                code_size: version.total_size.next_multiple_of(PAGE),
                map: MapSource::RustObjects { msm_address: version.msm_address },
                function_offsets: table.function_offsets,
                import_count: table.import_count,
                module_inner: None,
                vmctx: Vec::new(),
                patched: Vec::new(),
                checks: version.checks.clone(),
            };
            self.take(scene, anchor);
        }
        self.note_if(found.versions.is_empty(), found.notes, "tls");
        self.runtime.boundary = found.boundary;
        self.tiers(&found.versions);
    }

    /// Decides which modules are optimized tiers. The runtime decides by the first version in its list, and so does
    /// this function. `Instance::new` calls every version baseline, so a tier whose own instance is in the list is
    /// taken for baseline.
    fn tiers(&mut self, versions: &[route_tls::TlsVersion]) {
        for module in &mut self.runtime.modules {
            let first = versions.iter().find(|v| v.base == module.code.0);
            module.baseline = first.map(|v| v.baseline).or(module.baseline);
        }
    }
}

impl Provider for SinglepassProvider {
    fn discover(&mut self, scene: &Scene<'_>, unknown: &[Cursor], lost: bool) -> usize {
        // This runtime's code is in anonymous memory, so without executable anonymous memory there is nothing to
        // find.
        if unknown.is_empty() && !scene.target.mappings().iter().any(|m| m.execute && m.is_anonymous()) {
            return 0;
        }
        let before = self.runtime.modules.len();
        let target = scene.target;
        let progress = |what: &str, done: u64, total: u64| scene.progress.tick(what, done, total);
        let left = |me: &SinglepassProvider| {
            unknown.iter().any(|c| !me.is_known(c.address.lookup())) || (lost && me.runtime.modules.is_empty())
        };

        if self.may(Route::Vmctx) {
            let mut failures = BTreeMap::new();
            for cursor in unknown {
                if self.is_known(cursor.address.lookup()) {
                    continue;
                }
                // The vmctx is in r15 in the bodies of functions, and in rdi in prologues and import trampolines.
                for reg in [x64::R15, x64::RDI] {
                    let Some(vmctx) = cursor.registers.get(reg) else { continue };
                    match route_vmctx::from_vmctx(target, vmctx) {
                        Ok(anchor) => {
                            self.take(scene, anchor);
                        }
                        Err(e) => {
                            failures.insert(vmctx, e.to_string());
                        }
                    }
                }
            }
            if left(self) && self.asked.insert(Route::Vmctx) {
                let (anchors, notes) = route_vmctx::find_vmctx(target, &progress);
                for anchor in anchors {
                    self.take(scene, anchor);
                }
                if left(self) {
                    self.runtime.tried.extend(notes);
                }
            }
        }
        if left(self) && self.once(Route::Heap) {
            let (anchors, notes) = route_heap::find_heap(target, &self.anchors, &progress);
            for anchor in anchors {
                self.take(scene, anchor);
            }
            self.runtime.tried.extend(notes);
        }
        // An idle process has modules too, so the routes that need no frame are also asked if no module was found.
        let look_further = |me: &SinglepassProvider| left(me) || me.runtime.modules.is_empty();
        // Where functions are redirected to another tier, only the thread-local lists tell which module is which
        // tier.
        let tiered = self.anchors.iter().any(|a| !a.patched.is_empty());
        if (look_further(self) || tiered) && self.once(Route::Tls) {
            self.tls(scene);
        }
        if look_further(self) && self.once(Route::Descriptor) {
            let found = route_descriptor::find(target, scene.objects);
            for published in found.modules {
                let map = MapSource::StateMap { address: published.map_bytes_address, len: published.map_len };
                let anchor = Anchor {
                    routes: vec![Route::Descriptor],
                    code_base: published.code_base,
                    code_size: published.code_len,
                    map,
                    function_offsets: Vec::new(),
                    import_count: 0,
                    module_inner: None,
                    vmctx: Vec::new(),
                    patched: Vec::new(),
                    checks: published.checks,
                };
                let base = anchor.code_base;
                self.take(scene, anchor);
                if let Some(i) = self.anchors.iter().position(|a| a.code_base == base)
                    && let Some(module) = self.runtime.modules.get_mut(i)
                {
                    module.names.module = module.names.module.take().or(published.name);
                    self.list(i);
                }
            }
            self.note_if(left(self), found.notes, "descriptor");
        }
        if look_further(self) && self.once(Route::Artifact) {
            for (path, bytes) in std::mem::take(&mut self.options.artifacts) {
                let (anchors, notes) = route_artifact::from_artifact(target, &bytes, &progress);
                for anchor in anchors {
                    let base = anchor.code_base;
                    self.take(scene, anchor);
                    let Some(i) = self.anchors.iter().position(|a| a.code_base == base) else { continue };
                    if let Some(module) = self.runtime.modules.get_mut(i)
                        && module.names == Names::default()
                        && let Ok(artifact) = Artifact::parse(&bytes)
                        && artifact.info.imported_functions.len() == module.import_count as usize
                    {
                        module.names = names(&artifact.info);
                        self.list(i);
                    }
                }
                self.note_if(left(self), notes, &path.display().to_string());
            }
        }
        self.runtime.modules.len() - before
    }

    fn files(&mut self) -> Option<&mut dyn Files> {
        Some(self)
    }

    fn code(&self, module: usize, local_function: u32, memory: &dyn Memory) -> Option<Vec<u8>> {
        self.runtime.modules.get(module)?.code_of(local_function, memory)
    }

    fn own_name(&self, module: usize, function: u32) -> Option<String> {
        let names = &self.runtime.modules.get(module)?.names.functions;
        names.get(&function).filter(|(_, source)| *source == NameSource::NameSection).map(|(name, _)| name.clone())
    }

    fn key(&self, module: usize, left: &mut u64, memory: &dyn Memory) -> Option<Key> {
        self.runtime.modules.get(module)?.key(left, memory)
    }

    fn unused_artifacts(&mut self) -> Vec<(PathBuf, String)> {
        let why = "there is no compiled code in the target that it could belong to";
        std::mem::take(&mut self.options.artifacts).into_iter().map(|(path, _)| (path, why.to_string())).collect()
    }

    fn runtime(&self) -> &dyn Runtime {
        &self.runtime
    }
}

impl Files for SinglepassProvider {
    fn compare(&mut self, module: usize, file: &CoreModule, memory: &dyn Memory) -> Result<Fit, String> {
        let known = self.runtime.modules.get(module).ok_or("there is no such module")?;
        let facts = match &self.facts {
            Some((of, facts)) if *of == module => Rc::clone(facts),
            _ => {
                let facts = Rc::new(facts(known, memory));
                self.facts = Some((module, Rc::clone(&facts)));
                facts
            }
        };
        let mut checks = file.wasm.fits(facts.as_ref().as_ref().map_err(String::clone)?)?;
        checks.extend(compare_data(known, &file.wasm, memory)?);
        checks.extend(compare_code(known, &file.wasm, memory)?);
        let described = known.names.exports.is_some();
        let summary = if described { Compared::PositionsDescription } else { Compared::Positions };
        Ok(Fit { exact: 0, summary, checks, shift: 0 })
    }

    fn take_file(&mut self, module: usize, path: &Path, file: &CoreModule, fit: Fit) {
        self.facts = None;
        let Some(known) = self.runtime.modules.get_mut(module) else { return };
        known.wasm_checks = fit.checks;
        known.wasm_compared = Some(fit.summary);
        known.wasm = Some(Rc::clone(&file.wasm));
        known.wasm_path = Some(path.to_path_buf());
        self.list(module);
    }
}

/// Reads the state map of an anchor and makes the module.
fn load(scene: &Scene<'_>, layouts: &HostLayouts, anchor: &Anchor) -> Result<Module, String> {
    let code_size = anchor.code_size;
    let own = usize::try_from(anchor.import_count).ok().and_then(|n| anchor.function_offsets.get(n..));
    let map = match &anchor.map {
        MapSource::RustObjects { msm_address } => {
            let layouts = layouts.get(scene.objects)?;
            let map = map_in_memory::read_module_state_map(scene.target, &layouts.state, *msm_address);
            Maps::whole(Arc::new(map.map_err(|e| e.to_string())?))
        }
        borsh => Maps::read(borsh, own.unwrap_or(&[]), code_size, scene.target)?,
    };
    if map.total_size() as u64 > code_size {
        return Err(format!("its state map is for {} bytes of code, there are {code_size}", map.total_size()));
    }
    let imports = u32::try_from(anchor.import_count).map_err(|_| "it would have more imports than any module can")?;
    let mut module = Module::new(
        (anchor.code_base, anchor.code_base.saturating_add(code_size)),
        map,
        anchor.function_offsets.clone(),
        imports,
        scene.target,
    );
    if let MapSource::Bytes { image, .. } = &anchor.map {
        module.image_code = usize::try_from(code_size).ok().and_then(|n| image.get(4..4 + n)).map(Rc::from);
    }
    Ok(module)
}

/// The layouts of the host's Rust structures, which are read when they are first needed. Clones share them.
#[derive(Clone, Default)]
pub struct HostLayouts(Rc<OnceCell<Result<Rc<Layouts>, String>>>);

impl HostLayouts {
    fn get(&self, objects: &Objects) -> Result<Rc<Layouts>, String> {
        self.0.get_or_init(|| Layouts::of_target(objects).map(Rc::new).map_err(|e| e.to_string())).clone()
    }
}

fn global(&(ty, mutable): &(ValType, bool)) -> GlobalDecl {
    GlobalDecl { ty: Some(ty), mutable: Some(mutable) }
}

fn exported((name, export): &(String, Export)) -> GuestExport {
    let (kind, index) = match *export {
        Export::Function(index) => (ExternKind::Function, index),
        Export::Memory(index) => (ExternKind::Memory, index),
        Export::Global(index) => (ExternKind::Global, index),
        Export::Table(index) => (ExternKind::Table, index),
    };
    GuestExport { name: name.clone(), kind, index }
}

/// Names, signatures and declarations from the runtime's description of the module.
fn names(info: &ModuleInfo) -> Names {
    let functions = 0..info.function_types.len() as u32;
    let globals = info.imported_globals.iter().map(|g| g.item).chain(info.globals.iter().copied());
    let count = |imported: usize, own: usize| Some((imported as u64, own as u64));
    Names {
        globals: Some((globals.map(|g| global(&(g.ty, g.mutable))).collect(), info.imported_globals.len() as u64)),
        memories: count(info.imported_memories.len(), info.memories.len()),
        tables: count(info.imported_tables.len(), info.tables.len()),
        exports: Some(info.exports.iter().map(exported).collect()),
        functions: info.function_names().into_iter().collect(),
        signatures: functions
            .filter_map(|f| info.signature(f).map(|s| (f, (s.params.clone(), s.results.clone()))))
            .collect(),
        module: info.module_name(),
        description: description(info),
        data: None,
    }
}

/// The parts of a runtime's description that are only compared with a file.
fn description(info: &ModuleInfo) -> Declarations {
    fn names<T>(imports: &[Import<T>]) -> Vec<(String, String)> {
        imports.iter().map(|i| (i.module.clone(), i.name.clone())).collect()
    }
    let memory = |m: &MemoryInfo| MemoryDecl {
        minimum: m.minimum.into(),
        maximum: m.maximum.map(u64::from),
        memory64: false,
        shared: m.shared,
        page_size_log2: 16,
    };
    let table = |t: &TableInfo| TableDecl {
        minimum: t.minimum.into(),
        maximum: t.maximum.map(u64::from),
        table64: false,
        element: ValType::FuncRef,
    };
    Declarations {
        imports: vec![
            (ExternKind::Memory, names(&info.imported_memories)),
            (ExternKind::Table, names(&info.imported_tables)),
            (ExternKind::Global, names(&info.imported_globals)),
            (ExternKind::Function, names(&info.imported_functions)),
        ],
        memories: Some(info.imported_memories.iter().map(|m| &m.item).chain(&info.memories).map(memory).collect()),
        tables: Some(info.imported_tables.iter().map(|t| &t.item).chain(&info.tables).map(table).collect()),
        start: Some(info.start),
        data: Some(info.data.clone()),
        elements: Some(info.elements),
        ..Declarations::default()
    }
}

/// Converts a description that was read field by field from the host's memory. A field that could not be read is
/// empty here.
fn described(info: &MemoryModuleInfo) -> ModuleInfo {
    let imports = info.imported_functions.iter().flatten();
    let exports = info.exports.iter().flatten();
    let section = info.name_section.as_ref().ok().cloned().flatten();
    ModuleInfo {
        imported_functions: imports
            .map(|(module, name)| Import { module: module.clone(), name: name.clone(), item: () })
            .collect(),
        exports: exports.cloned().collect(),
        function_types: info.func_assoc.clone().unwrap_or_default(),
        signatures: info
            .signatures
            .iter()
            .flatten()
            .map(|(params, results)| Signature { params: params.clone(), results: results.clone() })
            .collect(),
        symbol_map: info.em_symbol_map.as_ref().ok().map(|m| m.iter().cloned().collect()),
        custom_sections: section.map(|s| ("name".to_string(), vec![s])).into_iter().collect(),
        ..ModuleInfo::default()
    }
}

/// What the target knows about a module, for the comparison with a `.wasm`.
fn facts(module: &Module, memory: &dyn Memory) -> Result<ModuleFacts, String> {
    let mut by_index: BTreeMap<usize, FunctionFacts> = BTreeMap::new();
    let mut budget = MAX_COMPARED_OPERANDS;
    let maps = module.map.all(memory)?;
    // Which operands are constants is known for singlepass only; another backend may record others as constants.
    let exact = module.backend == "singlepass" && Module::saves_registers(maps);
    for map in maps.local_functions.values() {
        let header = map.wasm_function_header_target_offset.iter().map(|o| (u64::MAX, o));
        let operators = map.wasm_offset_to_target_offset.iter().map(|(index, o)| (*index as u64, o));
        let points = header.chain(operators).map(|(index, suspend)| match suspend {
            SuspendOffset::Loop(_) => (index, PointKind::Loop),
            SuspendOffset::Call(_) => (index, PointKind::Call),
            SuspendOffset::Trappable(_) => (index, PointKind::Trappable),
        });
        let function = module.import_count.checked_add(map.local_function_id as u32);
        let params = function.and_then(|f| module.names.signatures.get(&f)).map(|(params, _)| params.clone());
        let operands = if exact { operands(map, &mut budget) } else { HashMap::new() };
        let facts = FunctionFacts { locals: Some(map.locals.len()), points: points.collect(), params, operands };
        by_index.insert(map.local_function_id, facts);
    }
    // Indices are dense (`finalize` numbers every function); a map with holes belongs to no file.
    let declarations = Declarations {
        signatures: module.names.signatures.clone(),
        exports: module.names.exports.clone(),
        globals: module.names.globals.as_ref().map(|(all, _)| all.clone()),
        ..module.names.description.clone()
    };
    let functions = by_index.into_values().collect();
    Ok(ModuleFacts { imported_functions: Some(module.import_count), functions, declarations })
}

/// Checks that the constants that the compiler wrote into the code of each function are there. `Ok` says what was
/// compared.
fn compare_code(module: &Module, wasm: &WasmModule, memory: &dyn Memory) -> Result<Option<String>, String> {
    // Another backend may write other constants than singlepass.
    if module.backend != "singlepass" || !Module::saves_registers(module.map.all(memory)?) {
        return Ok(None);
    }
    let (mut left, mut compared) = (MAX_COMPARED_CODE, 0);
    for local in 0..wasm.defined_functions() {
        let uses = wasm.used_constants(local);
        if uses.is_empty() {
            continue;
        }
        let Some(code) = module.code_of(local, memory) else { continue };
        let Some(still) = left.checked_sub(code.len() as u64) else { break };
        left = still;
        if let Some(missing) = Immediates::of(&code).lacks(&uses) {
            let bits = missing.bits;
            let shown = if missing.wide { bits.cast_signed() } else { i64::from(bits as i32) };
            return Err(format!(
                "function {local} has the constant {shown} ({bits:#x}) at operator {}, which its code in the process does not \
                 have there",
                missing.operator
            ));
        }
        compared += uses.iter().map(|one| one.constants.len()).sum::<usize>();
    }
    Ok((compared > 0).then(|| format!("{compared} constants of its code")))
}

/// Checks that the data segments in the target are those of the file, if the runtime keeps them. `Ok` says what was
/// compared.
fn compare_data(module: &Module, wasm: &WasmModule, memory: &dyn Memory) -> Result<Option<String>, String> {
    let Some(places) = &module.names.data else { return Ok(None) };
    let mut left = MAX_COMPARED_DATA;
    let mut compared = 0;
    for (number, (&(address, len), segment)) in places.iter().zip(wasm.data_segments()).enumerate() {
        let Some(still) = left.checked_sub(len).filter(|_| len == segment.bytes.len() as u64) else { break };
        left = still;
        let mut theirs = vec![0; segment.bytes.len()];
        if memory.read(address, &mut theirs).is_err() {
            continue;
        }
        if theirs != segment.bytes {
            return Err(format!("data segment {number} is another one in the process"));
        }
        compared += 1;
    }
    Ok((compared > 0).then(|| format!("contents of {compared} data segments")))
}

/// The operands at a function's points, as far as `budget` goes: for each operand its bits if it is a constant. The
/// stacks of all diffs form one tree, in which a pop is a step towards the root. So a chain of diffs is not replayed
/// for each of its points.
fn operands(map: &FunctionStateMap, budget: &mut usize) -> HashMap<(u64, PointKind), Vec<Option<u64>>> {
    let constant = |value: &WasmAbstractValue| match value {
        WasmAbstractValue::Const(bits) => Some(*bits),
        WasmAbstractValue::Runtime => None,
    };
    let mut out = HashMap::new();
    // Each node has the head of the stack below it, and its value. A head is one more than the index of a node; 0 is
    // the empty stack.
    let mut nodes: Vec<(usize, Option<u64>)> = Vec::new();
    let push = |nodes: &mut Vec<_>, mut head: usize, values: &[WasmAbstractValue]| {
        for value in values {
            nodes.push((head, constant(value)));
            head = nodes.len();
        }
        head
    };
    let initial = push(&mut nodes, 0, &map.initial.wasm_stack);
    let mut heads: Vec<usize> = Vec::with_capacity(map.diffs.len());
    for diff in &map.diffs {
        let Some(mut head) = diff.last.map_or(Some(initial), |last| heads.get(last).copied()) else { return out };
        for _ in 0..diff.wasm_stack_pop {
            let (Some(left), Some((below, _))) =
                (budget.checked_sub(1), head.checked_sub(1).and_then(|h| nodes.get(h)))
            else {
                return out;
            };
            (*budget, head) = (left, *below);
        }
        heads.push(push(&mut nodes, head, &diff.wasm_stack_push));
    }
    let infos = [
        (PointKind::Call, &map.call_offsets),
        (PointKind::Trappable, &map.trappable_offsets),
        (PointKind::Loop, &map.loop_offsets),
    ];
    for (kind, info) in infos.into_iter().flat_map(|(kind, infos)| infos.values().map(move |info| (kind, info))) {
        let Some((diff, &head)) = map.diffs.get(info.diff_id).zip(heads.get(info.diff_id)) else { continue };
        let (mut stack, mut head) = (Vec::new(), head);
        while let Some((below, value)) = head.checked_sub(1).and_then(|h| nodes.get(h)) {
            let Some(left) = budget.checked_sub(1) else { return out };
            (*budget, head) = (left, *below);
            stack.push(*value);
        }
        stack.reverse();
        let Some(shared) = stack.len().checked_sub(diff.wasm_stack_private_depth) else { continue };
        stack.truncate(shared);
        let Some(left) = budget.checked_sub(1) else { return out };
        *budget = left;
        out.insert((diff.wasm_inst_offset as u64, kind), stack);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use crate::runtime::singlepass::fake::{CODE, Fake, HEAP, HEAP_SIZE, STACK, TEXT, artifact, make};
    use crate::state::MachineState;
    use crate::state::synthetic::{Module as Synthetic, START, state};
    use crate::unwind::testing::cursor;

    /// The provider after it has looked for what explains `unknown`.
    fn discover(target: &Fake, options: Search, unknown: &[Cursor]) -> SinglepassProvider {
        let objects = Objects::from_parts(Vec::new());
        let mut provider = SinglepassProvider::new(options);
        provider.discover(&Scene { target, objects: &objects, progress: &Silent }, unknown, false);
        provider
    }

    /// Options with one artifact file, for a search by these routes.
    fn with_artifact(image: &[u8], routes: &[Route]) -> Search {
        let artifacts = vec![(PathBuf::from("x.artifact"), artifact(image).into())];
        Search { routes: routes.to_vec(), artifacts, ..Search::default() }
    }

    /// Between two questions the process may become another program, whose structures are laid out otherwise.
    #[test]
    fn layouts_are_kept_for_one_question() {
        let question = crate::runtime::all::FindOptions::default().for_a_question();
        assert!(question.singlepass.layouts.get(&Objects::from_parts(Vec::new())).is_err());
        assert!(question.clone().singlepass.layouts.0.get().is_some());
        assert!(question.for_a_question().singlepass.layouts.0.get().is_none());
    }

    #[test]
    fn all_routes_lead_to_one_anchor() {
        let (m, n) = (make(1, 2, 1), make(0, 2, 2));
        let mut f = Fake::new();
        let b = f.load(&m, CODE);
        // The second module is found only in the heap: no instance of it is seen anywhere.
        f.load(&n, CODE + 0x1000);
        f.merge_mappings();
        f.thread(&[(x64::R15, b.vmctx)]);
        let unknown = [cursor(CODE + 0x10, &[(x64::R15, b.vmctx)]), cursor(CODE + 0x1010, &[])];
        let mut found = discover(&f, with_artifact(&m.image, &[]), &unknown);
        assert_eq!(found.runtime.tried, Vec::<String>::new());
        assert_eq!(found.anchors.len(), 2);
        let msm = |a: &Anchor, max| a.map.msm_bytes(&f, max).unwrap().into_owned();
        // Where the map begins in an image is counted here as `fake.rs` writes it, not asked of the parser.
        let rest = &m.image[4 + m.code.len() + 2 * (4 + 8 * m.offsets.len()) + 8..];
        let anchors = &found.anchors;
        assert_eq!((msm(&anchors[0], u64::MAX), msm(&anchors[0], 7)), (rest.to_vec(), rest[..7].to_vec()));
        assert_eq!((anchors[0].code_base, &anchors[0].routes[..]), (CODE, &[Route::Vmctx][..]));
        assert_eq!((anchors[0].module_inner, &anchors[0].vmctx[..]), (Some(b.module), &[b.vmctx][..]));
        assert_eq!((anchors[1].code_base, &anchors[1].routes[..]), (CODE + 0x1000, &[Route::Heap][..]));
        // Each route is asked only for what is left, and nothing was left for the artifact.
        assert_eq!(found.unused_artifacts().len(), 1);

        // Without the heap the second module is not found, so the artifact is asked as well.
        let found = discover(&f, with_artifact(&m.image, &[Route::Vmctx, Route::Artifact]), &unknown);
        let [anchor] = &found.anchors[..] else { panic!("{:?}", found.anchors) };
        assert_eq!((anchor.code_base, &anchor.routes[..]), (CODE, &[Route::Vmctx, Route::Artifact][..]));
        assert_eq!((anchor.module_inner, &anchor.vmctx[..]), (Some(b.module), &[b.vmctx][..]));
        let found = discover(&f, with_artifact(&m.image, &[Route::Artifact]), &unknown);
        assert_eq!(msm(&found.anchors[0], rest.len() as u64), rest);
    }

    #[test]
    fn a_module_that_an_instance_does_not_lead_to_is_found_in_the_heap() {
        let m = make(1, 2, 1);
        let mut f = Fake::new();
        let b = f.load(&m, CODE);
        f.words(b.module + 0x240, &[0]);
        f.thread(&[(x64::RBX, b.vmctx)]);
        let found = discover(&f, Search::default(), &[cursor(CODE + 0x10, &[])]);
        let [anchor] = &found.anchors[..] else { panic!("{:?}", found.anchors) };
        assert_eq!((anchor.code_base, &anchor.routes[..]), (CODE, &[Route::Heap][..]));
        let tried = &found.runtime.tried;
        assert!(tried[0].contains("leads to no cached image"), "{tried:?}");
    }

    /// Whatever is in the target, the routes end and say something, and what they find is never wrong.
    #[test]
    fn corrupted_targets_neither_panic_nor_yield_wrong_modules() {
        let m = make(1, 3, 1);
        let mut random = 1u64;
        let mut next = move || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            random >> 20
        };
        let mut found = 0;
        for _ in 0..400 {
            let mut f = Fake::new();
            let b = f.load(&m, CODE);
            let registers = [(x64::R15, b.vmctx), (x64::RSP, STACK)];
            f.thread(&registers);
            let (from, to) = [(HEAP, HEAP + 0x6000), (CODE, CODE + 200), (b.vmctx, b.vmctx + 160), (TEXT, TEXT + 64)]
                [next() as usize % 4];
            for _ in 0..1 + next() % 8 {
                let at = from + next() % (to - from);
                let value = [0, 1, 8, u64::MAX, at, b.vmctx, b.module, HEAP + HEAP_SIZE - 8, CODE, next()];
                f.words(at & !7, &[value[next() as usize % value.len()]]);
            }
            let unknown = [cursor(CODE + 0x10, &registers)];
            for a in discover(&f, with_artifact(&m.image, &[]), &unknown).anchors {
                found += 1;
                assert_eq!((a.code_base, a.code_size, &a.function_offsets), (CODE, 4096, &m.offsets));
                assert!(a.checks.len() >= 2);
            }
        }
        assert!(found > 100, "{found}");
    }

    fn function(points: &[(usize, usize)]) -> FunctionStateMap {
        let mut module = Synthetic::new(0);
        for (i, (operator, operands)) in points.iter().enumerate() {
            let state = MachineState { wasm_inst_offset: *operator, ..state(*operands, Vec::new()) };
            module = module.point(PointKind::Call, 0x20 + 2 * i, &state);
        }
        module.build().local_functions.remove(&START).unwrap()
    }

    #[test]
    fn operands_are_those_of_the_replayed_states() {
        let mut map = function(&[(1, 2), (2, 0)]);
        map.initial.wasm_stack = vec![WasmAbstractValue::Const(1), WasmAbstractValue::Runtime];
        map.diffs[0].wasm_stack_pop = 1;
        map.diffs[0].wasm_stack_push = vec![WasmAbstractValue::Const(7), WasmAbstractValue::Runtime];
        map.diffs[0].wasm_stack_private_depth = 1;
        // The second diff builds on the first.
        map.diffs[1].last = Some(0);
        (map.diffs[1].wasm_stack_pop, map.diffs[1].wasm_stack_push) = (2, vec![WasmAbstractValue::Const(8)]);
        let found = operands(&map, &mut 100);
        assert_eq!(found[&(1, PointKind::Call)], [Some(1), Some(7)]);
        assert_eq!(found[&(2, PointKind::Call)], [Some(1), Some(8)]);
        let replayed = map.diffs[1].build_state(&map).unwrap().wasm_stack;
        assert_eq!(replayed, [WasmAbstractValue::Const(1), WasmAbstractValue::Const(8)]);
        // A diff that builds on itself, or that pops more than there is, is not replayed.
        map.diffs[0].last = Some(0);
        assert!(operands(&map, &mut 100).is_empty());
        (map.diffs[0].last, map.diffs[0].wasm_stack_pop) = (None, 3);
        assert!(operands(&map, &mut 100).is_empty());
    }

    #[test]
    fn operands_that_are_compared_have_an_end() {
        // The point itself costs one more.
        let most = MAX_COMPARED_OPERANDS - 1;
        for (count, points) in [(most, 1), (most + 1, 0)] {
            assert_eq!(operands(&function(&[(1, count)]), &mut { MAX_COMPARED_OPERANDS }).len(), points);
        }
    }
}
