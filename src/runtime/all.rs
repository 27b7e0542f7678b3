//! All runtimes of a target as one: whoever asks about a frame need not know whose it is.
//!
//! Modules are numbered over all runtimes in the order in which they are found, and keep their numbers.

use super::code_map::{CodeMap, Detail};
use super::engines::{self, Engine, Sighting};
use super::singlepass::anchor::Route;
use super::singlepass::find::{HostLayouts, SinglepassProvider};
use super::wasmtime::find::WasmtimeProvider;
use super::{
    Declared, GuestFrame, GuestInstance, GuestModule, InstanceParts, Provider, Reach, Runtime, Scene, Value, Why,
};
use crate::error::Error;
use crate::limits::MAX_IMAGE_BYTES;
use crate::state::{ExecutionStateImage, PointKind};
use crate::symbolize::wasm::WasmModule;
use crate::target::memory::read_file;
use crate::target::{Memory, ThreadId};
use crate::unwind::{Cursor, Next, Unwinder};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What the user lends to the search.
#[derive(Clone, Default)]
pub struct FindOptions {
    /// Only these routes; empty: all.
    pub routes: Vec<Route>,
    /// Artifact files: path and bytes.
    pub artifacts: Vec<(PathBuf, Rc<[u8]>)>,
    /// `.wasm` files.
    pub wasm: Vec<(PathBuf, Rc<WasmModule>)>,
    /// What was learnt of the host's own structures: it outlives the search.
    pub layouts: HostLayouts,
}

impl FindOptions {
    /// Reads the files that the user named.
    ///
    /// # Errors
    /// A file that cannot be read, or is no `.wasm`.
    pub fn read(routes: Vec<Route>, artifacts: &[PathBuf], wasm: &[PathBuf]) -> Result<FindOptions, Error> {
        let artifacts = artifacts.iter().map(|path| match read_file(path, MAX_IMAGE_BYTES) {
            Ok(bytes) => Ok((path.clone(), bytes.into())),
            Err(source) => Err(Error::File { path: path.clone(), source }),
        });
        let mut files: Vec<(PathBuf, Rc<WasmModule>)> = Vec::new();
        for path in wasm {
            let module = WasmModule::open(path)?;
            // The second of two equal files would find every module taken.
            if files.iter().all(|(_, known)| known.bytes() != module.bytes()) {
                files.push((path.clone(), Rc::new(module)));
            }
        }
        let artifacts = artifacts.collect::<Result<_, _>>()?;
        Ok(FindOptions { routes, artifacts, wasm: files, layouts: HostLayouts::default() })
    }
}

/// Every runtime that is known: finds all modules, reads all frames.
pub struct Runtimes {
    providers: Vec<Box<dyn Provider>>,
    /// Of each module its provider and its number there.
    places: Vec<(usize, usize)>,
    /// Of each provider its modules' numbers.
    numbers: Vec<Vec<usize>>,
    modules: Vec<GuestModule>,
    notes: Vec<String>,
    /// Whether a stack holds what no runtime explains.
    unexplained: bool,
    /// Whether a stack holds code that is in no file and of no runtime.
    unknown: bool,
    /// Engines that are in the target, once that was asked.
    engines: Option<Vec<Sighting>>,
    /// Those that are worth a line.
    told: Vec<Sighting>,
    /// Whether the user asked for certain ways of finding modules.
    asked: bool,
    /// What was told about the user's files.
    refusals: Vec<String>,
    files: Vec<(PathBuf, Rc<WasmModule>)>,
}

impl Runtimes {
    /// All known runtimes, none of which has looked yet. One line for each.
    pub fn new(options: &FindOptions) -> Runtimes {
        let providers: Vec<Box<dyn Provider>> =
            vec![Box::new(WasmtimeProvider::new()), Box::new(SinglepassProvider::new(options.clone()))];
        Runtimes::of(providers, options)
    }

    /// These runtimes. Those that look at less come first: what they explain is not looked for by the others.
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
            asked: !options.routes.is_empty() || !options.artifacts.is_empty(),
            refusals: Vec::new(),
            files: options.wasm.clone(),
        }
    }

    fn runtimes(&self) -> impl Iterator<Item = &dyn Runtime> {
        self.providers.iter().map(|p| p.runtime())
    }

    /// The runtime of a module, and the module's number there.
    fn place(&self, module: usize) -> Result<(&dyn Runtime, usize), Why> {
        let place = self.places.get(module).and_then(|&(p, local)| Some((self.providers.get(p)?.runtime(), local)));
        place.ok_or_else(|| Why("there is no such module".into()))
    }

    /// The number of module `local` of provider `p`.
    fn number(&self, p: usize, local: usize) -> Option<usize> {
        self.numbers.get(p)?.get(local).copied()
    }

    /// Takes over what the providers have found by now.
    fn list(&mut self) {
        for (p, (provider, numbers)) in self.providers.iter().zip(&mut self.numbers).enumerate() {
            for local in numbers.len()..provider.runtime().modules().len() {
                numbers.push(self.places.len());
                self.places.push((p, local));
            }
        }
        let find = |&(p, local): &(usize, usize)| self.providers.get(p)?.runtime().modules().get(local).cloned();
        self.modules = self.places.iter().filter_map(find).collect();
        // Why nothing was found of a runtime is of no use where another one was found and explains every stack.
        let told = |r: &dyn Runtime| self.unexplained || self.modules.is_empty() || !r.modules().is_empty();
        let mut notes = Vec::new();
        for runtime in self.runtimes() {
            notes.extend(runtime.notes().iter().filter(|_| told(runtime)).cloned());
            notes.extend(runtime.tried().iter().filter(|_| self.asked || self.may_be(runtime)).cloned());
        }
        notes.extend(self.refusals.iter().cloned());
        self.notes = notes;
        // A runtime that is known has nothing to be told of where some of its modules were found.
        let told = |s: &&Sighting| self.modules.is_empty() || (self.unknown && !s.engine.is_supported());
        self.told = self.engines.iter().flatten().filter(told).cloned().collect();
    }

    /// Whether there may be modules of `runtime` that were not found: what was tried for them is told then.
    fn may_be(&self, runtime: &dyn Runtime) -> bool {
        if !runtime.modules().is_empty() {
            return true;
        }
        let engines = self.engines.as_deref().unwrap_or_default();
        // Only singlepass is searched for in vain: images of Wasmtime are there or not.
        let is_there = engines.iter().any(|s| s.engine == Engine::Singlepass);
        match self.modules.is_empty() {
            // Its sources leave no trace in an executable that was built for that.
            true => is_there || engines.is_empty(),
            false => is_there && self.unexplained,
        }
    }

    /// Whether every piece of executable memory that belongs to no loaded file is a module's.
    fn explains_all(&self, scene: &Scene<'_>) -> bool {
        // What cannot be read is the kernel's `[vsyscall]`.
        let code = scene.target.mappings().iter().filter(|m| m.execute && m.read);
        let mut left = code.filter(|m| scene.objects.find(m.start).is_none());
        left.all(|m| self.runtimes().any(|r| r.module_of(m.start).is_some()))
    }

    /// Matches the user's `.wasm` files to the modules that were found. Each module takes the first file that fits; a
    /// file that fits none is refused with the reason. Returns whether every file was used.
    pub fn match_files(&mut self, memory: &dyn Memory) -> bool {
        let mut all = true;
        for (path, wasm) in std::mem::take(&mut self.files) {
            let mut reasons = Vec::new();
            let mut used = false;
            for provider in &mut self.providers {
                match provider.match_file(&path, &wasm, memory) {
                    Ok(()) => used = true,
                    Err(more) => reasons.extend(more),
                }
            }
            all &= used;
            if !used {
                let why = match reasons.as_slice() {
                    [] => "no module was found in the target that it could belong to".to_string(),
                    [(_, one)] => one.clone(),
                    more => more.iter().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; "),
                };
                self.refusals.push(format!("{} does not fit and is not used: {why}", path.display()));
            }
        }
        if self.modules.is_empty() {
            let mut told: Vec<PathBuf> = Vec::new();
            for provider in &mut self.providers {
                for (path, why) in provider.unused_artifacts() {
                    all = false;
                    if !told.contains(&path) {
                        self.refusals.push(format!("{} is not used: {why}", path.display()));
                        told.push(path);
                    }
                }
            }
        }
        self.list();
        all
    }
}

impl Provider for Runtimes {
    fn discover(&mut self, scene: &Scene<'_>, unknown: &[Cursor], lost: bool) -> usize {
        let mut left = unknown.to_vec();
        let mut found = 0;
        for i in 0..self.providers.len() {
            // Where one runtime explains all compiled code, the others have nothing to look for, and nothing to tell.
            if i > 0 && left.is_empty() && (found > 0 || !lost) && self.explains_all(scene) {
                break;
            }
            let Some(provider) = self.providers.get_mut(i) else { break };
            // What was found so far may be what the walk was lost for: it is walked again before others search for it.
            found += provider.discover(scene, &left, lost && found == 0);
            let runtime = provider.runtime();
            left.retain(|c| runtime.module_of(c.address.lookup()).is_none());
        }
        self.unknown = !left.is_empty();
        self.unexplained = self.unknown || (lost && found == 0);
        // The files are searched only where something is missing.
        let none_found = self.runtimes().all(|r| r.modules().is_empty());
        if self.engines.is_none() && (self.unknown || none_found) {
            self.engines = Some(engines::look(scene.target, scene.objects));
        }
        self.list();
        found
    }

    fn match_file(
        &mut self,
        path: &Path,
        wasm: &Rc<WasmModule>,
        memory: &dyn Memory,
    ) -> Result<(), Vec<(String, String)>> {
        let results: Vec<_> = self.providers.iter_mut().map(|p| p.match_file(path, wasm, memory)).collect();
        self.list();
        match results.iter().any(Result::is_ok) {
            true => Ok(()),
            false => Err(results.into_iter().filter_map(Result::err).flatten().collect()),
        }
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

    fn image(&self, thread: ThreadId, at: &Cursor, memory: &dyn Memory) -> Result<ExecutionStateImage, Why> {
        let owner = self.runtimes().find(|r| r.module_of(at.address.lookup()).is_some());
        owner.map_or_else(|| Ok(ExecutionStateImage::default()), |r| r.image(thread, at, memory))
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

    fn instance_parts(&self, module: usize, instance: u64, memory: &dyn Memory) -> Result<InstanceParts, Why> {
        let (runtime, module) = self.place(module)?;
        runtime.instance_parts(module, instance, memory)
    }

    fn goes_on_at(&self, address: u64, memory: &dyn Memory) -> Option<PointKind> {
        self.runtimes().find_map(|r| r.goes_on_at(address, memory))
    }

    fn table(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        let (runtime, module) = self.place(module)?;
        runtime.table(module, instance, index, memory)
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

    fn settles(&self, module: usize) -> Result<(), Why> {
        let (runtime, module) = self.place(module)?;
        runtime.settles(module)
    }

    fn reach(&self, memory: &dyn Memory) -> Box<dyn Fn(u64) -> Reach + Send> {
        let all: Vec<_> = self.runtimes().map(|r| r.reach(memory)).collect();
        Box::new(move |pc| all.iter().map(|reach| reach(pc)).find(|r| *r != Reach::Outside).unwrap_or(Reach::Outside))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Reg;
    use crate::progress::Silent;
    use crate::runtime::{GuestKind, RuntimeName};
    use crate::target::objects::Objects;
    use crate::target::testing::CoreBuilder;
    use crate::unwind::testing::cursor;

    const ONE: RuntimeName = RuntimeName::Wasmtime;
    const TWO: RuntimeName = RuntimeName::Singlepass;

    /// A runtime whose modules are pages; module `i` is found in round `i`, if a frame there is unknown.
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
            Err(Why(self.name.to_string()))
        }
        fn instances(&self, _: &dyn Memory) -> Vec<GuestInstance> {
            (0..self.found.len()).map(|module| GuestInstance { module, address: self.base }).collect()
        }
        fn reach(&self, _: &dyn Memory) -> Box<dyn Fn(u64) -> Reach + Send> {
            let base = self.base;
            Box::new(move |pc| if pc >> 12 == base >> 12 { Reach::Point } else { Reach::Outside })
        }
        fn code_map(&self, _: &Detail, _: &dyn Memory) -> CodeMap {
            CodeMap { notes: vec![self.name.to_string()], ..CodeMap::default() }
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
        fn match_file(&mut self, _: &Path, _: &Rc<WasmModule>, _: &dyn Memory) -> Result<(), Vec<(String, String)>> {
            Err(self.found.iter().map(|m| (format!("{} {}", self.name, m.name), "no".to_string())).collect())
        }
        fn runtime(&self) -> &dyn Runtime {
            self
        }
    }

    fn frame(pc: u64) -> Cursor {
        cursor(pc, &[(Reg::RSP, 0x100)])
    }

    #[test]
    fn modules_of_several_runtimes_have_one_numbering_that_stays() {
        let wasm = Rc::new(WasmModule::parse("x.wasm".into(), b"\0asm\x01\0\0\0".to_vec()).unwrap());
        let options = FindOptions { wasm: vec![("x.wasm".into(), wasm)], ..FindOptions::default() };
        let both: Vec<Box<dyn Provider>> = vec![Box::new(Pages::at(ONE, 0x1_0000)), Box::new(Pages::at(TWO, 0x2_0000))];
        let mut all = Runtimes::of(both, &options);
        let target = CoreBuilder::new().memory(0x1000, 5, &[0; 16]).open().unwrap();
        let objects = Objects::from_parts(Vec::new());
        let scene = Scene { target: &target, objects: &objects, progress: &Silent };
        assert_eq!(all.discover(&scene, &[frame(0x2_0010)], true), 1);
        assert_eq!(all.discover(&scene, &[frame(0x1_0010), frame(0x2_1010)], true), 2);
        let names: Vec<_> = all.modules().iter().map(|m| (m.runtime, m.name.as_str())).collect();
        assert_eq!(names, [(TWO, "module0"), (ONE, "module0"), (TWO, "module1")]);
        // The second is asked for what the first has not explained, and not told of a stack that is walked again.
        assert_eq!(
            all.notes(),
            ["wasmtime was asked [(1, true), (2, true)]", "wasmer-singlepass was asked [(1, true), (1, false)]"]
        );

        let frames = all.describe(&frame(0x2_1020), &target);
        assert_eq!(frames.iter().map(|f| (f.module, f.inlined)).collect::<Vec<_>>(), [(2, true), (2, false)]);
        assert!(all.describe(&frame(0x3_0000), &target).is_empty());
        assert_eq!(all.module_of(0x1_0010), Some(1));
        assert_eq!(all.linear_memory(2, 0, 0, &target), Ok((0x2_0000, 1)));
        assert_eq!(all.global(1, 0, 0, &target), Err(Why("wasmtime".into())));
        assert_eq!(all.global(3, 0, 0, &target), Err(Why("there is no such module".into())));
        assert_eq!(all.instances(&target).iter().map(|i| i.module).collect::<Vec<_>>(), [1, 0, 2]);
        let reach = all.reach(&target);
        assert_eq!([reach(0x1_0000), reach(0x2_0fff), reach(0)], [Reach::Point, Reach::Point, Reach::Outside]);
        assert_eq!(all.code_map(&Detail::All, &target).notes, ["wasmtime", "wasmer-singlepass"]);

        assert!(!all.match_files(&target));
        let refused = "x.wasm does not fit and is not used: wasmtime module0: no; wasmer-singlepass module0: no; \
                       wasmer-singlepass module1: no";
        assert_eq!(all.notes().last().map(String::as_str), Some(refused));
        assert!(all.match_files(&target), "a file is refused once");
    }

    /// What was tried in vain for one runtime is told where that one may be: not in a process of another.
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
        // Nothing was found.
        assert_eq!(told(&[], &[], false, false), (true, 0));
        assert_eq!(told(&[Engine::Singlepass], &[], false, false), (true, 1));
        assert_eq!(told(&[Engine::V8], &[], true, false), (false, 1));
        assert_eq!(told(&[Engine::Wasmtime], &[], true, false), (false, 1));
        assert_eq!(told(&[Engine::V8], &[], true, true), (true, 1));
        // One of its modules was found, or one of the other runtime's.
        assert_eq!(told(&[], &[own], false, false), (true, 0));
        for lost in [false, true] {
            assert_eq!(told(&[], &[other], lost, false), (false, 0));
            assert_eq!(told(&[Engine::V8, Engine::Wasmtime], &[other], lost, false), (false, 0));
        }
        assert_eq!(told(&[Engine::Singlepass], &[other], true, false), (true, 0));
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
        let found = FindOptions::read(Vec::new(), &[], &[a.clone(), a.clone(), b, c.clone()]).unwrap();
        assert_eq!(found.wasm.iter().map(|(path, _)| path).collect::<Vec<_>>(), [&a, &c]);
    }

    #[test]
    fn a_runtime_that_is_not_there_has_nothing_to_tell_where_all_is_explained() {
        let both: Vec<Box<dyn Provider>> = vec![Box::new(Pages::at(ONE, 0x1_0000)), Box::new(Pages::at(TWO, 0x2_0000))];
        let mut all = Runtimes::of(both, &FindOptions::default());
        // Code that is in no module, on no stack.
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
