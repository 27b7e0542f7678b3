//! All runtimes of a target as one, so that whoever asks about a frame need not know which runtime it belongs to.
//!
//! Modules are numbered across all runtimes in the order in which they are found, and keep their numbers.

use super::code_map::{CodeMap, Detail};
use super::engines::{self, Engine, Sighting};
use super::match_files::{ByCode, Candidate, Verdict, decide};
use super::singlepass;
use super::singlepass::find::anchor::Route;
use super::singlepass::find::{HostLayouts, Search, SinglepassProvider};
use super::wasmtime::{self, find::WasmtimeProvider};
use super::{
    Declared, Fit, GuestFrame, GuestInstance, GuestModule, Images, InstanceParts, Provider, Reach, Reaches, Runtime,
    Scene, Settling, Tables, Value, Why,
};
use crate::error::Error;
use crate::limits::{MAX_IMAGE_BYTES, MAX_SHOWN_REASONS};
use crate::phrases::joined;
use crate::process::file_kind::{self, Door};
use crate::process::memory::read_file;
use crate::process::{Memory, ThreadId};
use crate::state::{ExecutionStateImage, PointKind};
use crate::unwind::recognised::{RecognisedUnwinder, Routines};
use crate::unwind::{Cursor, Next, Unwinder};
use crate::wasm::WasmModule;
use crate::wasm::file::{CoreModule, WasmFile};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What the user provides for the search, and what earlier searches have learnt.
#[derive(Clone, Default)]
pub struct FindOptions {
    /// What the search for singlepass modules uses.
    pub singlepass: Search,
    /// `.wasm` files that the user named.
    pub wasm: Vec<Rc<WasmFile>>,
    /// Files that cannot be used, whatever the target contains, and why.
    pub unusable: Vec<(PathBuf, String)>,
}

impl FindOptions {
    /// Reads the files that the user named. Files that cannot be read or are not Wasm become
    /// [`FindOptions::unusable`].
    pub fn read(routes: Vec<Route>, artifacts: &[PathBuf], wasm: &[PathBuf]) -> FindOptions {
        let mut found = FindOptions::default();
        found.singlepass.routes = routes;
        for path in artifacts {
            // A file that is something else may be too large to be read as a whole.
            let read = file_kind::refusal_of_file(path, Door::Artifact).and_then(|refused| match refused {
                Some(why) => Ok(Err(why)),
                None => read_file(path, MAX_IMAGE_BYTES).map(Ok),
            });
            match read {
                Ok(Ok(bytes)) => found.singlepass.artifacts.push((path.clone(), bytes.into())),
                Ok(Err(why)) => found.unusable.push((path.clone(), why)),
                Err(source) => found.unusable.push((path.clone(), unreadable(path, source))),
            }
        }
        for path in wasm {
            match WasmFile::open(path) {
                // The second of two equal files would fit the same modules as the first.
                Ok(file) if found.wasm.iter().any(|known| known.is_same(&file)) => {}
                Ok(file) => found.wasm.push(Rc::new(file)),
                Err(Error::File { source, .. }) => {
                    found.unusable.push((path.clone(), unreadable(path, source)));
                }
                Err(Error::Wasm { why, .. }) => found.unusable.push((path.clone(), why)),
                Err(other) => found.unusable.push((path.clone(), other.to_string())),
            }
        }
        found
    }

    /// The same files and routes for another question. What was learnt for the one before is not taken along: by now the
    /// target may be another program.
    pub fn for_a_question(&self) -> FindOptions {
        let mut other = self.clone();
        other.singlepass.layouts = HostLayouts::default();
        other
    }

    /// These options if every file can be used, for callers that must not go on without one of the files.
    ///
    /// # Errors
    /// Names the first file that cannot be used.
    pub fn all(self) -> Result<FindOptions, Error> {
        match self.unusable.first() {
            Some((path, why)) => Err(Error::Unusable { path: path.clone(), why: why.clone() }),
            None => Ok(self),
        }
    }
}

/// A runtime that is known here.
struct Known {
    provider: fn(&FindOptions) -> Box<dyn Provider>,
    routines: Routines,
}

/// Each runtime is one line here. Those whose search reads less come first.
const KNOWN: [Known; 2] = [
    Known { provider: |_| Box::new(WasmtimeProvider::new()), routines: wasmtime::stubs::ROUTINES },
    Known {
        provider: |o| Box::new(SinglepassProvider::new(o.singlepass.clone())),
        routines: singlepass::stubs::ROUTINES,
    },
];

/// An unwinder that recognises native code of all known runtimes by its bytes.
pub fn recognised() -> RecognisedUnwinder {
    RecognisedUnwinder::new(&KNOWN.map(|runtime| runtime.routines))
}

/// All known runtimes together: finds the modules of all of them and reads all their frames.
pub struct Runtimes {
    providers: Vec<Box<dyn Provider>>,
    /// For each module: the index of its provider, and the module's number within that provider.
    places: Vec<(usize, usize)>,
    /// For each provider: the overall numbers of its modules, by their number within the provider.
    numbers: Vec<Vec<usize>>,
    modules: Vec<GuestModule>,
    notes: Vec<String>,
    /// Whether some stack has frames that no runtime explains, or could not be walked to its end.
    unexplained: bool,
    /// Whether some stack has a frame in code that is in no file and of no runtime.
    unknown: bool,
    /// Engines that are in the target; `None` as long as nobody has looked for them.
    engines: Option<Vec<Sighting>>,
    /// The engines among `engines` that are worth a line in the report.
    told: Vec<Sighting>,
    /// Whether the user asked for certain routes or named artifact files.
    asked: bool,
    /// The messages about the user's files that were produced so far.
    refusals: Vec<String>,
    files: Vec<Rc<WasmFile>>,
    unusable: Vec<(PathBuf, String)>,
    /// For each module: the number of the candidate (a core module of a file) that it was given.
    matched: Vec<Option<usize>>,
    /// Whether files were compared with modules at least once.
    compared: bool,
}

impl Runtimes {
    /// All known runtimes; none of them has searched yet.
    pub fn new(options: &FindOptions) -> Runtimes {
        Runtimes::of(KNOWN.iter().map(|runtime| (runtime.provider)(options)).collect(), options)
    }

    /// These runtimes. Those whose search reads less come first: what they explain is not searched for by the others.
    pub fn of(providers: Vec<Box<dyn Provider>>, options: &FindOptions) -> Runtimes {
        Runtimes {
            numbers: vec![Vec::new(); providers.len()],
            providers,
            places: Vec::new(),
            modules: Vec::new(),
            notes: Vec::new(),
            unexplained: false,
            unknown: false,
            engines: None,
            told: Vec::new(),
            asked: !options.singlepass.routes.is_empty() || !options.singlepass.artifacts.is_empty(),
            refusals: Vec::new(),
            files: options.wasm.clone(),
            unusable: options.unusable.clone(),
            matched: Vec::new(),
            compared: false,
        }
    }

    fn runtimes(&self) -> impl Iterator<Item = &dyn Runtime> {
        self.providers.iter().map(|p| p.runtime())
    }

    /// The runtime of a module, and the number of the module within that runtime.
    fn place(&self, module: usize) -> Result<(&dyn Runtime, usize), Why> {
        let place = self.places.get(module).and_then(|&(p, local)| Some((self.providers.get(p)?.runtime(), local)));
        place.ok_or(Why::NoSuchModule)
    }

    /// The overall number of module `local` of provider `p`.
    fn number(&self, p: usize, local: usize) -> Option<usize> {
        self.numbers.get(p)?.get(local).copied()
    }

    /// Takes over the modules and notes of the providers as they are now.
    fn list(&mut self) {
        for (p, (provider, numbers)) in self.providers.iter().zip(&mut self.numbers).enumerate() {
            for local in numbers.len()..provider.runtime().modules().len() {
                numbers.push(self.places.len());
                self.places.push((p, local));
            }
        }
        let find = |&(p, local): &(usize, usize)| self.providers.get(p)?.runtime().modules().get(local).cloned();
        self.modules = self.places.iter().filter_map(find).collect();
        // Why nothing of a runtime was found is of no use where another runtime was found and explains every stack.
        let told = |r: &dyn Runtime| self.unexplained || self.modules.is_empty() || !r.modules().is_empty();
        let mut notes = Vec::new();
        for runtime in self.runtimes() {
            notes.extend(runtime.notes().iter().filter(|_| told(runtime)).cloned());
            notes.extend(runtime.tried().iter().filter(|_| self.asked || self.may_be(runtime)).cloned());
        }
        notes.extend(self.refusals.iter().cloned());
        self.notes = notes;
        // An engine that wstate supports is not worth a line once some module was found.
        let told = |s: &&Sighting| self.modules.is_empty() || (self.unknown && !s.engine.is_supported());
        self.told = self.engines.iter().flatten().filter(told).cloned().collect();
    }

    /// Whether there may be modules of `runtime` that were not found; if so, the report tells what was tried to find
    /// them.
    fn may_be(&self, runtime: &dyn Runtime) -> bool {
        if !runtime.modules().is_empty() {
            return true;
        }
        let engines = self.engines.as_deref().unwrap_or_default();
        // Only the search for singlepass can miss modules: images of Wasmtime are there or they are not.
        let is_there = engines.iter().any(|s| s.engine == Engine::Singlepass);
        match self.modules.is_empty() {
            // An executable may be built so that it has no trace of singlepass's sources.
            true => is_there || engines.is_empty(),
            false => is_there && self.unexplained,
        }
    }

    /// Whether all executable memory that belongs to no loaded file belongs to modules.
    fn explains_all(&self, scene: &Scene<'_>) -> bool {
        // An executable mapping that cannot be read is the kernel's `[vsyscall]`.
        let code = scene.target.mappings().iter().filter(|m| m.execute && m.read);
        let mut left = code.filter(|m| scene.objects.find(m.start).is_none());
        left.all(|m| self.runtimes().any(|r| r.module_of(m.start).is_some()))
    }

    /// The messages about the user's own files: files that are not used, and modules that more than one file fits.
    #[cfg(feature = "cli")]
    pub fn refusals(&self) -> &[String] {
        &self.refusals
    }

    /// Matches the user's `.wasm` files to the modules that were found: each module gets the file that it was made
    /// from, if that can be decided. For a file that cannot be used, or a choice that cannot be decided, there is a
    /// message with the reason. Returns true if there is no such message, or if there is nothing new to match since
    /// the last call.
    pub fn match_files(&mut self, memory: &dyn Memory) -> bool {
        let is_new = self.matched.len() < self.places.len() && !self.files.is_empty();
        if std::mem::replace(&mut self.compared, true) && !is_new {
            return true;
        }
        self.refusals =
            self.unusable.iter().map(|(path, why)| format!("{} is not used: {why}", path.display())).collect();
        self.match_wasm(memory);
        if self.modules.is_empty() {
            let mut told: Vec<PathBuf> = Vec::new();
            for provider in &mut self.providers {
                for (path, why) in provider.unused_artifacts() {
                    if !told.contains(&path) {
                        self.refusals.push(format!("{} is not used: {why}", path.display()));
                        told.push(path);
                    }
                }
            }
        }
        self.list();
        self.refusals.is_empty()
    }

    fn match_wasm(&mut self, memory: &dyn Memory) {
        let cores =
            self.files.iter().enumerate().flat_map(|(file, wasm)| wasm.modules.iter().map(move |core| (file, core)));
        // Modules of a component that define no functions have nothing to show, and nothing tells them apart.
        let has_use = |core: &CoreModule| core.base.is_none() || core.wasm.defined_functions() > 0;
        let candidates: Vec<Candidate> = cores
            .filter(|(_, core)| has_use(core))
            .map(|(file, core)| Candidate { file, core: core.clone() })
            .collect();
        let mut fits: HashMap<(usize, usize), Fit> = HashMap::new();
        let mut reasons: HashMap<usize, Vec<(usize, String)>> = HashMap::new();
        for (module, &(provider, local)) in self.places.iter().enumerate() {
            let Some(provider) = self.providers.get_mut(provider) else { continue };
            for (number, candidate) in candidates.iter().enumerate() {
                if self.matched.get(module).copied().flatten().is_some() {
                    continue;
                }
                let compared = match provider.files() {
                    Some(files) => files.compare(local, &candidate.core, memory),
                    None => Err(format!("{} takes no files", provider.runtime().name())),
                };
                match compared {
                    Ok(fit) => _ = fits.insert((module, number), fit),
                    Err(why) => reasons.entry(number).or_default().push((module, why)),
                }
            }
        }
        let mut open: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.places.len()];
        for &(module, candidate) in fits.keys() {
            open[module].insert(candidate);
        }
        let mut evidence = ByCode::new(&self.providers, &self.places, &candidates, &fits, memory);
        let verdicts = decide(&open, &self.matched, &mut evidence);
        self.matched.resize(self.places.len(), None);
        let mut used: BTreeSet<usize> = BTreeSet::new();
        let mut told: BTreeSet<usize> = BTreeSet::new();
        for (module, verdict) in verdicts.iter().enumerate() {
            match verdict {
                Verdict::File(number) => {
                    used.extend(candidates.get(*number).map(|c| c.file));
                    let Some((candidate, fit)) = candidates.get(*number).zip(fits.get(&(module, *number))) else {
                        continue;
                    };
                    let Some((provider, &(_, local))) =
                        self.places.get(module).and_then(|place| Some((self.providers.get_mut(place.0)?, place)))
                    else {
                        continue;
                    };
                    let Some(file) = self.files.get(candidate.file) else { continue };
                    let Some(files) = provider.files() else { continue };
                    files.take_file(local, &file.path, &candidate.core, fit.clone());
                    self.matched[module] = Some(*number);
                }
                Verdict::Either(either) => {
                    let name = self.module_name(module);
                    let files: Vec<String> = either.iter().map(|c| self.file_name(&candidates, *c)).collect();
                    told.extend(either);
                    self.refusals.push(format!(
                        "ambiguous: {} fit {name} equally well, so none of them is used for it: name only the one that it was \
                         made from",
                        joined(&files, "and")
                    ));
                }
                Verdict::Torn(number, others) => {
                    if told.insert(*number) || others.iter().all(|other| *other > module) {
                        let mut modules = vec![self.module_name(module)];
                        modules.extend(others.iter().map(|other| self.module_name(*other)));
                        self.refusals.push(format!(
                            "ambiguous: {} fits {} equally well, which were not made from one file, so it is used for none of \
                             them: name the files of the others too",
                            self.file_name(&candidates, *number),
                            joined(&modules, "and")
                        ));
                    }
                }
                Verdict::Elsewhere(number, better) => {
                    let why = format!("the code has less of its constants than {} has", self.module_name(*better));
                    reasons.entry(*number).or_default().push((module, why));
                }
                Verdict::Nothing => {}
            }
        }
        for (number, candidate) in candidates.iter().enumerate() {
            if told.contains(&number) {
                used.insert(candidate.file);
            }
        }
        for (file, wasm) in self.files.iter().enumerate().filter(|(file, _)| !used.contains(file)) {
            let own = candidates.iter().enumerate().filter(|(_, c)| c.file == file).map(|(number, _)| number);
            let mut why = Vec::new();
            for number in own {
                let better = verdicts.iter().enumerate().filter_map(|(module, verdict)| match verdict {
                    Verdict::File(other) if *other != number && fits.contains_key(&(module, number)) => {
                        Some((module, format!("{} fits better", self.file_name(&candidates, *other))))
                    }
                    _ => None,
                });
                for (module, reason) in reasons.get(&number).into_iter().flatten().cloned().chain(better) {
                    why.push((self.module_name(module), reason));
                }
            }
            let why = reasons_text(&why);
            self.refusals.push(format!("{} does not fit and is not used: {why}", wasm.path.display()));
        }
    }

    /// Returns the name that messages give a module.
    fn module_name(&self, module: usize) -> String {
        let find = || {
            let &(provider, local) = self.places.get(module)?;
            Some(self.providers.get(provider)?.runtime().modules().get(local)?.name.clone())
        };
        match find() {
            Some(name) if name == format!("module{module}") => name,
            Some(name) => format!("module {module} ({name})"),
            None => format!("module {module}"),
        }
    }

    /// Returns the name that messages give a file, or one core module of it.
    fn file_name(&self, candidates: &[Candidate], number: usize) -> String {
        let Some(candidate) = candidates.get(number) else { return String::new() };
        let path = self.files.get(candidate.file).map(|f| f.path.display().to_string()).unwrap_or_default();
        match candidate.core.base {
            Some(base) => format!("the core module at {base:#x} of {path}"),
            None => path,
        }
    }
}

/// Joins the reasons why a file fits none of the modules; `why` has the name of each module and the reason.
fn reasons_text(why: &[(String, String)]) -> String {
    let shown = why.get(..MAX_SHOWN_REASONS).unwrap_or(why);
    let mut text = match shown {
        [] => "no module was found in the target that it could belong to".to_string(),
        [(_, one)] => one.clone(),
        several => several.iter().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; "),
    };
    if why.len() > shown.len() {
        text.push_str(&format!("; and {} more", why.len() - shown.len()));
    }
    text
}

/// Why a file that the user named cannot be read, and what helps, if that is known: the same as where no answer is
/// possible without the file.
fn unreadable(path: &Path, source: std::io::Error) -> String {
    let why = format!("it cannot be read: {source}");
    match (Error::File { path: path.to_path_buf(), source }).hint() {
        Some(hint) => format!("{why}; {hint}"),
        None => why,
    }
}

impl Provider for Runtimes {
    fn discover(&mut self, scene: &Scene<'_>, unknown: &[Cursor], lost: bool) -> usize {
        let mut left = unknown.to_vec();
        let mut found = 0;
        for i in 0..self.providers.len() {
            // Where one runtime explains all compiled code, the others have nothing to look for and nothing to tell.
            if i > 0 && left.is_empty() && (found > 0 || !lost) && self.explains_all(scene) {
                break;
            }
            let Some(provider) = self.providers.get_mut(i) else { break };
            // A walk may have been lost in code of the modules that were just found. So the stacks are walked again
            // before the other runtimes search the whole target for that reason.
            found += provider.discover(scene, &left, lost && found == 0);
            let runtime = provider.runtime();
            left.retain(|c| runtime.module_of(c.address.lookup()).is_none());
        }
        self.unknown = !left.is_empty();
        self.unexplained = self.unknown || (lost && found == 0);
        // The files are searched for engines only where something is missing.
        let none_found = self.runtimes().all(|r| r.modules().is_empty());
        if self.engines.is_none() && (self.unknown || none_found) {
            self.engines = Some(engines::look(scene.target, scene.objects));
        }
        self.list();
        found
    }

    fn runtime(&self) -> &dyn Runtime {
        self
    }
}

impl Unwinder for Runtimes {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        self.runtimes().find_map(|r| r.step(at, memory))
    }
}

impl Runtime for Runtimes {
    fn name(&self) -> &'static str {
        "all"
    }

    fn modules(&self) -> &[GuestModule] {
        &self.modules
    }

    fn describe(&self, at: &Cursor, memory: &dyn Memory) -> Vec<GuestFrame> {
        for (p, runtime) in self.runtimes().enumerate() {
            let mut frames = runtime.describe(at, memory);
            frames.retain_mut(|frame| {
                let number = self.number(p, frame.module);
                frame.module = number.unwrap_or(frame.module);
                number.is_some()
            });
            if !frames.is_empty() {
                return frames;
            }
        }
        Vec::new()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn engines(&self) -> &[Sighting] {
        &self.told
    }

    fn may_wait(&self, module: usize) -> bool {
        self.place(module).is_ok_and(|(runtime, module)| runtime.may_wait(module))
    }

    fn waiting(&self, memory: &dyn Memory) -> Vec<Cursor> {
        self.runtimes().flat_map(|r| r.waiting(memory)).collect()
    }

    fn recover(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        self.runtimes().find_map(|r| r.recover(at, memory))
    }

    fn module_of(&self, address: u64) -> Option<usize> {
        self.runtimes().enumerate().find_map(|(p, r)| self.number(p, r.module_of(address)?))
    }

    fn wasm_file(&self, module: usize) -> Option<&WasmModule> {
        let (runtime, module) = self.place(module).ok()?;
        runtime.wasm_file(module)
    }

    fn linear_memory(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<(u64, u64), Why> {
        let (runtime, module) = self.place(module)?;
        runtime.linear_memory(module, instance, index, memory)
    }

    fn global(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<Value, Why> {
        let (runtime, module) = self.place(module)?;
        runtime.global(module, instance, index, memory)
    }

    fn instances(&self, memory: &dyn Memory) -> Vec<GuestInstance> {
        let mut out = Vec::new();
        for (p, runtime) in self.runtimes().enumerate() {
            let known = runtime.instances(memory).into_iter();
            out.extend(known.filter_map(|i| Some(GuestInstance { module: self.number(p, i.module)?, ..i })));
        }
        out
    }

    fn check_instance(&self, instance: GuestInstance, memory: &dyn Memory) -> Result<(), Why> {
        let (runtime, module) = self.place(instance.module)?;
        runtime.check_instance(GuestInstance { module, ..instance }, memory)
    }

    fn declared(&self, module: usize, memory: &dyn Memory) -> Declared {
        match self.place(module) {
            Ok((runtime, module)) => runtime.declared(module, memory),
            Err(why) => Declared::unknown(why),
        }
    }

    fn body_offset(&self, module: usize, local_function: u32) -> Option<u64> {
        let (runtime, module) = self.place(module).ok()?;
        runtime.body_offset(module, local_function)
    }

    fn images(&self) -> Option<&dyn Images> {
        Some(self)
    }

    fn settling(&self) -> Option<&dyn Settling> {
        Some(self)
    }

    fn tables(&self) -> Option<&dyn Tables> {
        Some(self)
    }

    fn code_map(&self, detail: &Detail, memory: &dyn Memory) -> CodeMap {
        let mut out = CodeMap::default();
        for map in self.runtimes().map(|r| r.code_map(detail, memory)) {
            out.modules.extend(map.modules);
            out.notes.extend(map.notes);
        }
        out
    }
}

impl Images for Runtimes {
    fn image(&self, thread: ThreadId, at: &Cursor, memory: &dyn Memory) -> Result<ExecutionStateImage, Why> {
        let owner = self.runtimes().find(|r| r.module_of(at.address.lookup()).is_some());
        owner.map_or_else(|| Ok(ExecutionStateImage::default()), |r| r.image(thread, at, memory))
    }

    fn instance_parts(&self, module: usize, instance: u64, memory: &dyn Memory) -> Result<InstanceParts, Why> {
        let (runtime, module) = self.place(module)?;
        runtime.instance_parts(module, instance, memory)
    }

    fn goes_on_at(&self, address: u64, memory: &dyn Memory) -> Option<PointKind> {
        self.runtimes().find_map(|r| r.goes_on_at(address, memory))
    }
}

impl Settling for Runtimes {
    fn settles(&self, module: usize) -> Result<(), Why> {
        let (runtime, module) = self.place(module)?;
        runtime.settles(module)
    }

    fn reach(&self, memory: &dyn Memory) -> Reaches {
        let all: Vec<_> = self.runtimes().map(|r| r.reach(memory)).collect();
        Box::new(move |pc| all.iter().map(|reach| reach(pc)).find(|r| *r != Reach::Outside).unwrap_or(Reach::Outside))
    }
}

impl Tables for Runtimes {
    fn table(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        let (runtime, module) = self.place(module)?;
        runtime.table(module, instance, index, memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x64;
    use crate::limits::MAX_COMPARED_CODE;
    use crate::process::objects::Objects;
    use crate::process::testing::CoreBuilder;
    use crate::progress::Silent;
    use crate::runtime::{Files, GuestKind, RuntimeName};
    use crate::unwind::testing::cursor;
    use std::path::Path;

    const ONE: RuntimeName = RuntimeName::Wasmtime;
    const TWO: RuntimeName = RuntimeName::Singlepass;

    /// A runtime whose modules are pages of memory. It finds a module where an unknown frame lies in its address
    /// range.
    struct Pages {
        name: RuntimeName,
        base: u64,
        found: Vec<GuestModule>,
        asked: Vec<(usize, bool)>,
        notes: Vec<String>,
        tried: Vec<String>,
    }

    impl Pages {
        fn at(name: RuntimeName, base: u64) -> Pages {
            Pages { name, base, found: Vec::new(), asked: Vec::new(), notes: Vec::new(), tried: Vec::new() }
        }

        fn covers(&self, address: u64) -> Option<usize> {
            self.found.iter().position(|m| m.code.0 <= address && address < m.code.1)
        }
    }

    impl Unwinder for Pages {
        fn step(&self, at: &Cursor, _: &dyn Memory) -> Option<Next> {
            self.covers(at.address.lookup()).map(|_| Next::Bottom)
        }
    }

    impl Runtime for Pages {
        fn name(&self) -> &'static str {
            self.name.as_str()
        }
        fn modules(&self) -> &[GuestModule] {
            &self.found
        }
        fn describe(&self, at: &Cursor, _: &dyn Memory) -> Vec<GuestFrame> {
            let Some(module) = self.covers(at.address.lookup()) else { return Vec::new() };
            let frame = GuestFrame::unknown(GuestKind::Wasm, module);
            vec![GuestFrame { inlined: true, ..frame.clone() }, frame]
        }
        fn notes(&self) -> &[String] {
            &self.notes
        }
        fn tried(&self) -> &[String] {
            &self.tried
        }
        fn module_of(&self, address: u64) -> Option<usize> {
            self.covers(address)
        }
        fn linear_memory(&self, module: usize, _: u64, _: u32, _: &dyn Memory) -> Result<(u64, u64), Why> {
            Ok((self.base, module as u64))
        }
        fn global(&self, _: usize, _: u64, _: u32, _: &dyn Memory) -> Result<Value, Why> {
            Err(Why::Other(self.name.to_string()))
        }
        fn instances(&self, _: &dyn Memory) -> Vec<GuestInstance> {
            (0..self.found.len()).map(|module| GuestInstance { module, address: self.base }).collect()
        }
        fn settling(&self) -> Option<&dyn Settling> {
            (self.name == ONE).then_some(self)
        }
        fn code_map(&self, _: &Detail, _: &dyn Memory) -> CodeMap {
            CodeMap { notes: vec![self.name.to_string()], ..CodeMap::default() }
        }
    }

    impl Settling for Pages {
        fn settles(&self, _: usize) -> Result<(), Why> {
            Ok(())
        }
        fn reach(&self, _: &dyn Memory) -> Reaches {
            let base = self.base;
            Box::new(move |pc| if pc >> 12 == base >> 12 { Reach::Point } else { Reach::Outside })
        }
    }

    impl Provider for Pages {
        fn discover(&mut self, _: &Scene<'_>, unknown: &[Cursor], lost: bool) -> usize {
            self.asked.push((unknown.len(), lost));
            self.notes = vec![format!("{} was asked {:?}", self.name, self.asked)];
            let before = self.found.len();
            for at in unknown.iter().map(|c| c.address.lookup()).filter(|a| (*a ^ self.base) >> 16 == 0) {
                if self.covers(at).is_none() {
                    let start = at & !0xfff;
                    self.found.push(GuestModule {
                        runtime: self.name,
                        name: format!("module{}", self.found.len()),
                        code: (start, start + 0x1000),
                        routes: Vec::new(),
                        checks: Vec::new(),
                        functions: None,
                        tracked: None,
                        backend: String::new(),
                        wasm_file: None,
                        wasm_compared: None,
                        problem: None,
                    });
                }
            }
            self.found.len() - before
        }
        fn files(&mut self) -> Option<&mut dyn Files> {
            Some(self)
        }
        fn code(&self, _: usize, function: u32, _: &dyn Memory) -> Option<Vec<u8>> {
            Some(vec![0x90; MAX_COMPARED_CODE as usize + function as usize])
        }
        fn runtime(&self) -> &dyn Runtime {
            self
        }
    }

    impl Files for Pages {
        fn compare(&mut self, module: usize, _: &CoreModule, _: &dyn Memory) -> Result<Fit, String> {
            Err(format!("no, says {} of {module}", self.name))
        }
        fn take_file(&mut self, _: usize, _: &Path, _: &CoreModule, _: Fit) {}
    }

    fn frame(pc: u64) -> Cursor {
        cursor(pc, &[(x64::RSP, 0x100)])
    }

    #[test]
    fn modules_of_several_runtimes_have_one_numbering_that_stays() {
        let wasm = Rc::new(WasmFile::parse("x.wasm".as_ref(), b"\0asm\x01\0\0\0".to_vec()).unwrap());
        let options = FindOptions { wasm: vec![wasm], ..FindOptions::default() };
        let both: Vec<Box<dyn Provider>> = vec![Box::new(Pages::at(ONE, 0x1_0000)), Box::new(Pages::at(TWO, 0x2_0000))];
        let mut all = Runtimes::of(both, &options);
        let target = CoreBuilder::new().memory(0x1000, 5, &[0; 16]).open().unwrap();
        let objects = Objects::from_parts(Vec::new());
        let scene = Scene { target: &target, objects: &objects, progress: &Silent };
        assert_eq!(all.discover(&scene, &[frame(0x2_0010)], true), 1);
        assert_eq!(all.discover(&scene, &[frame(0x1_0010), frame(0x2_1010)], true), 2);
        let names: Vec<_> = all.modules().iter().map(|m| (m.runtime, m.name.as_str())).collect();
        assert_eq!(names, [(TWO, "module0"), (ONE, "module0"), (TWO, "module1")]);
        // The second runtime is asked only about frames that the first has not explained, and is not told that a
        // stack was lost, since that stack is walked again.
        assert_eq!(
            all.notes(),
            ["wasmtime was asked [(1, true), (2, true)]", "wasmer-singlepass was asked [(1, true), (1, false)]"]
        );

        let frames = all.describe(&frame(0x2_1020), &target);
        assert_eq!(frames.iter().map(|f| (f.module, f.inlined)).collect::<Vec<_>>(), [(2, true), (2, false)]);
        assert!(all.describe(&frame(0x3_0000), &target).is_empty());
        assert_eq!(all.module_of(0x1_0010), Some(1));
        assert_eq!(all.linear_memory(2, 0, 0, &target), Ok((0x2_0000, 1)));
        assert_eq!(all.global(1, 0, 0, &target), Err(Why::other("wasmtime")));
        assert_eq!(all.global(3, 0, 0, &target), Err(Why::NoSuchModule));
        assert_eq!(all.instances(&target).iter().map(|i| i.module).collect::<Vec<_>>(), [1, 0, 2]);
        let reach = all.reach(&target);
        // The second runtime has no points, so only the ranges of its modules are known.
        let reached = [0x1_0000, 0x2_0fff, 0x2_1000, 0x2_2000, 0].map(reach);
        let inside = Reach::Inside;
        assert_eq!(reached, [Reach::Point, inside, inside, Reach::Outside, Reach::Outside]);
        assert_eq!((all.settles(1), all.settles(3)), (Ok(()), Err(Why::NoSuchModule)));
        let lacks = |what: &str| Why::Other(format!("wasmer-singlepass has no {what}"));
        assert_eq!(all.settles(0), Err(lacks("points to which a thread could be stepped")));
        let image = all.image(ThreadId(1), &frame(0x2_0010), &target);
        assert_eq!(image, Err(lacks("images of frames")));
        assert_eq!(all.image(ThreadId(1), &frame(0x9_0010), &target), Ok(ExecutionStateImage::default()));
        assert_eq!(all.instance_parts(0, 0, &target).map(|_| ()), Err(lacks("images of instances")));
        assert_eq!(all.goes_on_at(0x2_0010, &target), None);
        assert_eq!(all.table(0, 0, 0, &target), Err(Why::other("how wasmer-singlepass keeps tables is not known")));
        assert_eq!(all.code_map(&Detail::All, &target).notes, ["wasmtime", "wasmer-singlepass"]);

        assert!(!all.match_files(&target));
        let refused = "x.wasm does not fit and is not used: module0: no, says wasmer-singlepass of 0; module 1 (module0): no, says wasmtime of 0; \
                       module 2 (module1): no, says wasmer-singlepass of 1";
        assert_eq!(all.notes().last().map(String::as_str), Some(refused));
        assert!(all.match_files(&target), "a file is refused once");
    }

    /// What was tried in vain for one runtime is told only where there may be modules of that runtime, and not in a
    /// process of another runtime.
    #[test]
    fn what_was_tried_is_told_where_it_may_matter() {
        let seen = |engine| Sighting { engine, evidence: String::new(), sure: true };
        let target = CoreBuilder::new().memory(0x1000, 5, &[0; 16]).open().unwrap();
        let objects = Objects::from_parts(Vec::new());
        let scene = Scene { target: &target, objects: &objects, progress: &Silent };
        let told = |engines: &[Engine], frames: &[u64], lost: bool, asked: bool| {
            let mut two = Pages::at(TWO, 0x2_0000);
            two.tried = vec!["tried".to_string()];
            let both: Vec<Box<dyn Provider>> = vec![Box::new(Pages::at(ONE, 0x1_0000)), Box::new(two)];
            let mut all = Runtimes::of(both, &FindOptions::default());
            all.asked = asked;
            all.engines = Some(engines.iter().copied().map(seen).collect());
            let frames: Vec<Cursor> = frames.iter().map(|pc| frame(*pc)).collect();
            all.discover(&scene, &frames, lost);
            all.discover(&scene, &[], lost);
            (all.notes().iter().any(|n| n == "tried"), all.engines().len())
        };
        let (own, other) = (0x2_0010, 0x1_0010);
        // No module was found.
        assert_eq!(told(&[], &[], false, false), (true, 0));
        assert_eq!(told(&[Engine::Singlepass], &[], false, false), (true, 1));
        assert_eq!(told(&[Engine::V8], &[], true, false), (false, 1));
        assert_eq!(told(&[Engine::Wasmtime], &[], true, false), (false, 1));
        assert_eq!(told(&[Engine::V8], &[], true, true), (true, 1));
        // A module of this runtime was found, or one of the other runtime.
        assert_eq!(told(&[], &[own], false, false), (true, 0));
        for lost in [false, true] {
            assert_eq!(told(&[], &[other], lost, false), (false, 0));
            assert_eq!(told(&[Engine::V8, Engine::Wasmtime], &[other], lost, false), (false, 0));
        }
        assert_eq!(told(&[Engine::Singlepass], &[other], true, false), (true, 0));
    }

    #[test]
    fn so_many_reasons_are_told_and_so_much_code_is_compared() {
        let why = |count: usize| reasons_text(&vec![("m".to_string(), "no".to_string()); count]);
        assert_eq!((why(1).as_str(), why(2).as_str()), ("no", "m: no; m: no"));
        assert_eq!(why(MAX_SHOWN_REASONS).matches("m: no").count(), MAX_SHOWN_REASONS);
        assert_eq!(why(MAX_SHOWN_REASONS + 3), why(MAX_SHOWN_REASONS) + "; and 3 more");

        let providers: Vec<Box<dyn Provider>> = vec![Box::new(Pages::at(ONE, 0x1_0000))];
        let target = CoreBuilder::new().memory(0x1000, 5, &[0; 16]).open().unwrap();
        let fits = HashMap::new();
        let read = |function: u32| ByCode::new(&providers, &[(0, 0)], &[], &fits, &target).code(0, function).is_some();
        assert!(read(0) && !read(1), "one byte more");
    }

    #[test]
    fn the_same_file_twice_is_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let empty = b"\0asm\x01\0\0\0";
        let (a, b, c) = (file("a", empty), file("b", empty), file("c", &[&empty[..], &[0, 2, 1, b'x']].concat()));
        let found = FindOptions::read(Vec::new(), &[], &[a.clone(), a.clone(), b, c.clone()]);
        assert_eq!(found.wasm.iter().map(|file| &file.path).collect::<Vec<_>>(), [&a, &c]);
    }

    #[test]
    fn a_runtime_that_is_not_there_has_nothing_to_tell_where_all_is_explained() {
        let both: Vec<Box<dyn Provider>> = vec![Box::new(Pages::at(ONE, 0x1_0000)), Box::new(Pages::at(TWO, 0x2_0000))];
        let mut all = Runtimes::of(both, &FindOptions::default());
        // The code is in no module and on no stack.
        let target = CoreBuilder::new().memory(0x1000, 5, &[0; 16]).open().unwrap();
        let objects = Objects::from_parts(Vec::new());
        let scene = Scene { target: &target, objects: &objects, progress: &Silent };
        all.discover(&scene, &[], false);
        assert_eq!(all.notes().len(), 2, "nothing was found: both say why");
        all.discover(&scene, &[frame(0x1_0010)], true);
        assert_eq!(all.notes(), ["wasmtime was asked [(0, false), (1, true)]"]);
        all.discover(&scene, &[frame(0x9_0000)], false);
        assert_eq!(all.notes().len(), 2, "a frame is left");
        all.discover(&scene, &[], true);
        assert_eq!(all.notes().len(), 2, "a stack is not whole");
    }
}
