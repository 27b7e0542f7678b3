//! Finding modules: the routes in order, most direct first, each asked only for what the ones before it left unexplained.

use super::anchor::{self, Anchor, MapSource, Route};
use super::module::{Module, Names};
use super::{Singlepass, route_artifact, route_heap, route_vmctx};
use crate::arch::Reg;
use crate::error::Error;
use crate::limits;
use crate::runtime::{GuestModule, Provider, Runtime, Scene};
use crate::state::{self, ModuleStateMap, SuspendOffset};
use crate::symbolize::wasm::{FunctionFacts, ModuleFacts, PointKind, WasmModule};
use crate::target::Memory;
use crate::unwind::Cursor;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

/// What the user lends to the search.
#[derive(Default)]
pub struct FindOptions {
    /// Only these routes; empty: all.
    pub routes: Vec<Route>,
    /// Artifact files: path and bytes.
    pub artifacts: Vec<(PathBuf, Vec<u8>)>,
    /// `.wasm` files.
    pub wasm: Vec<(PathBuf, Rc<WasmModule>)>,
}

impl FindOptions {
    /// Reads the files that the user named.
    ///
    /// # Errors
    /// A file that cannot be read, or is no `.wasm`.
    pub fn read(routes: Vec<Route>, artifacts: &[PathBuf], wasm: &[PathBuf]) -> Result<FindOptions, Error> {
        let artifacts = artifacts.iter().map(|path| match std::fs::read(path) {
            Ok(bytes) => Ok((path.clone(), bytes)),
            Err(source) => Err(Error::File { path: path.clone(), source }),
        });
        let wasm = wasm.iter().map(|path| Ok((path.clone(), Rc::new(WasmModule::open(path)?))));
        Ok(FindOptions {
            routes,
            artifacts: artifacts.collect::<Result<_, _>>()?,
            wasm: wasm.collect::<Result<_, Error>>()?,
        })
    }
}

/// Finds this runtime's modules.
pub struct SinglepassProvider {
    options: FindOptions,
    runtime: Singlepass,
    anchors: Vec<Anchor>,
    refused: BTreeSet<u64>,
    /// Routes that look at the whole target are asked once.
    asked: BTreeSet<Route>,
}

impl SinglepassProvider {
    /// A provider that has not looked yet.
    pub fn new(options: FindOptions) -> SinglepassProvider {
        SinglepassProvider {
            options,
            runtime: Singlepass::default(),
            anchors: Vec::new(),
            refused: BTreeSet::new(),
            asked: BTreeSet::new(),
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

    /// Turns an anchor into a module; returns whether it is a new one.
    fn take(&mut self, scene: &Scene<'_>, anchor: Anchor) -> bool {
        if let Some(i) = self.anchors.iter().position(|a| a.code_base == anchor.code_base) {
            let both = anchor::merge(vec![self.anchors[i].clone(), anchor]);
            if let Some(both) = both.into_iter().next() {
                self.anchors[i] = both;
                self.list(i);
            }
            return false;
        }
        if self.refused.contains(&anchor.code_base) {
            return false;
        }
        match load(scene, &anchor) {
            Ok(module) => {
                self.runtime.modules.push(module);
                self.anchors.push(anchor);
                self.list(self.anchors.len() - 1);
                true
            }
            Err(why) => {
                let route = anchor.routes.first().map_or("", |r| r.name());
                self.runtime
                    .notes
                    .push(format!("the module at {:#x} (found by {route}) cannot be used: {why}", anchor.code_base));
                // Another route may lead to a whole map of the same code.
                if anchor.routes.contains(&Route::Heap) {
                    self.refused.insert(anchor.code_base);
                }
                false
            }
        }
    }

    /// Writes what readers see of module `i`.
    fn list(&mut self, i: usize) {
        let (Some(module), Some(anchor)) = (self.runtime.modules.get(i), self.anchors.get(i)) else { return };
        let own = module.wasm.as_ref().map(|w| w.name().to_string()).or_else(|| module.names.module.clone());
        let mut problem = Vec::new();
        if !module.tracked {
            problem.push("compiled without track_state: locals are known, operand stacks are not".to_string());
        }
        if !module.problems.is_empty() {
            let mut first = module.problems.iter().take(3).map(|(at, why)| format!("+{at:#x}: {why}"));
            let first: Vec<String> = first.by_ref().collect();
            problem.push(format!("{} functions have broken maps ({})", module.problems.len(), first.join("; ")));
        }
        if !anchor.patched.is_empty() {
            problem.push(format!("{} functions are redirected to another tier", anchor.patched.len()));
        }
        let guest = GuestModule {
            name: own.unwrap_or_else(|| format!("module{i}")),
            code: module.code,
            routes: anchor.routes.iter().map(|r| r.name()).collect(),
            checks: anchor.checks.clone(),
            functions: module.map.local_functions.len(),
            tracked: module.tracked,
            backend: module.backend.clone(),
            wasm_file: module.wasm.as_ref().map(|w| w.name().to_string()),
            problem: (!problem.is_empty()).then(|| problem.join("; ")),
        };
        match self.runtime.listed.get_mut(i) {
            Some(slot) => *slot = guest,
            None => self.runtime.listed.push(guest),
        }
    }

    /// Matches the user's `.wasm` files to the modules that were found. Each module takes the first file that fits; a
    /// file that fits none is refused with the reason.
    pub fn match_files(&mut self) {
        for (path, wasm) in std::mem::take(&mut self.options.wasm) {
            let mut reasons = Vec::new();
            let mut used = false;
            for i in 0..self.runtime.modules.len() {
                let module = &mut self.runtime.modules[i];
                if module.wasm.is_some() {
                    continue;
                }
                match wasm.fits(&facts(module)) {
                    Ok(_) => {
                        module.wasm = Some(wasm.clone());
                        used = true;
                        self.list(i);
                    }
                    Err(why) => reasons.push((self.runtime.listed.get(i).map(|m| m.name.clone()), why)),
                }
            }
            if !used {
                let why = match reasons.as_slice() {
                    [] => "no module was found in the target that it could belong to".to_string(),
                    [(_, one)] => one.clone(),
                    more => more
                        .iter()
                        .map(|(name, why)| format!("{}: {why}", name.as_deref().unwrap_or("?")))
                        .collect::<Vec<_>>()
                        .join("; "),
                };
                self.runtime.notes.push(format!("{} does not fit and is not used: {why}", path.display()));
            }
        }
    }
}

impl Provider for SinglepassProvider {
    fn discover(&mut self, scene: &Scene<'_>, unknown: &[Cursor]) -> usize {
        let before = self.runtime.modules.len();
        let target = scene.target;
        let progress = |what: &str, done: u64, total: u64| scene.progress.tick(what, done, total);
        let left = |me: &SinglepassProvider| unknown.iter().any(|c| !me.is_known(c.address.lookup()));

        if self.may(Route::Vmctx) {
            let mut failures = BTreeMap::new();
            for cursor in unknown {
                if self.is_known(cursor.address.lookup()) {
                    continue;
                }
                // r15 in bodies, rdi in prologues and import trampolines.
                for reg in [Reg::R15, Reg::RDI] {
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
                    self.runtime.notes.extend(notes);
                }
            }
        }
        if left(self) && self.once(Route::Heap) {
            let (anchors, notes) = route_heap::find_heap(target, &self.anchors, &progress);
            for anchor in anchors {
                self.take(scene, anchor);
            }
            self.runtime.notes.extend(notes);
        }
        let look_further = left(self) || self.runtime.modules.is_empty();
        if look_further && self.once(Route::Artifact) {
            for (path, bytes) in std::mem::take(&mut self.options.artifacts) {
                let (anchors, notes) = route_artifact::from_artifact(target, &bytes, &progress);
                for anchor in anchors {
                    self.take(scene, anchor);
                }
                self.runtime.notes.extend(notes.into_iter().map(|n| format!("{}: {n}", path.display())));
            }
        }
        self.runtime.modules.len() - before
    }

    fn runtime(&self) -> &dyn Runtime {
        &self.runtime
    }
}

/// Reads a module's maps.
fn load(scene: &Scene<'_>, anchor: &Anchor) -> Result<Module, String> {
    let (map, code) = match &anchor.map {
        MapSource::CacheImage { address, len, exact, msm_offset } => {
            read_image(scene.target, *address, *len, *exact, *msm_offset, anchor.code_size)?
        }
        MapSource::Bytes { image, msm_offset } => {
            let at = usize::try_from(*msm_offset).map_err(|_| "its length is absurd")?;
            let bytes = image.get(at..).ok_or("it is cut off before the state map")?;
            let (map, _) = state::codec::decode_borsh_prefix(bytes).map_err(|e| e.to_string())?;
            (map, image.get(4..4 + anchor.code_size as usize).map(Rc::from))
        }
        MapSource::RustObjects { .. } => return Err("not read yet".into()),
    };
    let code_size = anchor.code_size;
    if map.total_size as u64 > code_size {
        return Err(format!("its state map is for {} bytes of code, there are {code_size}", map.total_size));
    }
    let mut problems: BTreeMap<usize, String> = BTreeMap::new();
    for problem in state::validate(&map, Some(map.total_size)).problems {
        let why = format!("{}: {}", problem.place, problem.fault);
        problems.entry(problem.function).or_insert(why);
    }
    let imports = u32::try_from(anchor.import_count).map_err(|_| "its number of imports is absurd")?;
    let mut module = Module::new(
        (anchor.code_base, anchor.code_base.saturating_add(code_size)),
        Arc::new(map),
        problems,
        anchor.function_offsets.clone(),
        imports,
    );
    module.image_code = code;
    module.names = Names::default();
    Ok(module)
}

/// A state map, and the code if it was read along.
type Loaded = (ModuleStateMap, Option<Rc<[u8]>>);

/// Reads the borsh state map that lies `msm_offset` behind `address`. Its length is not written anywhere: if the owner's
/// length is not known, more and more is read until it decodes.
fn read_image(
    memory: &dyn Memory,
    address: u64,
    len: u64,
    exact: bool,
    msm_offset: u64,
    code_size: u64,
) -> Result<Loaded, String> {
    let len = len.saturating_sub(msm_offset).min(limits::MAX_IMAGE_BYTES);
    let mut wanted = if exact { len } else { len.min((4 << 20).max(code_size.saturating_mul(8))) };
    loop {
        let mut bytes = vec![0; usize::try_from(wanted).map_err(|_| "it is too large")?];
        let got = memory.read_some(address.wrapping_add(msm_offset), &mut bytes);
        bytes.truncate(got);
        match state::codec::decode_borsh_prefix(&bytes) {
            Ok((map, _)) => return Ok((map, None)),
            Err(_) if got as u64 == wanted && wanted < len => wanted = wanted.saturating_mul(4).min(len),
            Err(e) if (got as u64) < wanted => {
                return Err(format!("{e}; only {got} bytes of the image can be read at {address:#x}"));
            }
            Err(e) => return Err(e.to_string()),
        }
    }
}

/// What the target knows about a module, for the comparison with a `.wasm`.
fn facts(module: &Module) -> ModuleFacts {
    let mut by_index: BTreeMap<usize, FunctionFacts> = BTreeMap::new();
    for map in module.map.local_functions.values() {
        let header = map.wasm_function_header_target_offset.iter().map(|o| (u64::MAX, o));
        let operators = map.wasm_offset_to_target_offset.iter().map(|(index, o)| (*index as u64, o));
        let points = header.chain(operators).map(|(index, suspend)| match suspend {
            SuspendOffset::Loop(_) => (index, PointKind::Loop),
            SuspendOffset::Call(_) => (index, PointKind::Call),
            SuspendOffset::Trappable(_) => (index, PointKind::Trappable),
        });
        let function = module.import_count.checked_add(map.local_function_id as u32);
        let params = function.and_then(|f| module.names.signatures.get(&f)).map(|(params, _)| params.clone());
        let facts = FunctionFacts { locals: Some(map.locals.len()), points: points.collect(), params };
        by_index.insert(map.local_function_id, facts);
    }
    // Indices are dense (`finalize` numbers every function); a map with holes belongs to no file.
    ModuleFacts { imported_functions: Some(module.import_count), functions: by_index.into_values().collect() }
}

/// Instances of a module seen so far.
pub fn instances(provider: &SinglepassProvider, module: usize) -> &[u64] {
    provider.anchors.get(module).map_or(&[], |a| &a.vmctx)
}
