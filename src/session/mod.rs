//! Answers one question: it takes a target and makes a [`Report`] of it.

mod contents;
mod image_file;
mod own_names;
mod proof;
mod restore;
mod settle;
mod snapshot;
mod view;
mod waiting;

pub use contents::{InstanceChoice, MemoryRange, Sink, contents, contents_of, export_coredump, linear_memory};
pub use image_file::parse as parse_image;
pub use restore::{RestoreOptions, Restored, SignalsLater, restore};
pub use snapshot::{ImportedGlobal, Resumable, Returned, Snapshot, SnapshotOptions, SparseWrite, snapshot};

use self::settle::{Stepping, settle};
use self::view::View;
use crate::arch::CodeAddress;
use crate::arch::x64;
use crate::error::Error;
use crate::limits;
use crate::process::core::CoreTarget;
use crate::process::files::{self, FileLocation, Steady};
use crate::process::live::{CaptureOptions, LiveTarget};
use crate::process::objects::{Objects, SearchPaths};
use crate::process::{Mapping, Memory, Target, Thread, ThreadId, unpack};
use crate::progress::{self, Progress};
use crate::report::timing::{Timing, milliseconds};
use crate::report::{self, Frame, FrameKind, Function, Hex, OpPosition, Report, WasmPlace};
use crate::runtime::all::{self, FindOptions, Runtimes};
use crate::runtime::code_map::{CodeMap, CompiledFunction, CompiledModule, Detail, Seen};
pub use crate::runtime::singlepass::find::anchor::Route;
use crate::runtime::{GuestFrame, GuestKind, Position, Provider, Reach, Runtime, Scene, Why};
use crate::state::ExecutionStateImage;
use crate::symbolize::native::NativeSymbolizer;
use crate::unwind::by_code::{CodeUnwinder, Known};
use crate::unwind::cfi::CfiUnwinder;
use crate::unwind::frame_pointer::FramePointerUnwinder;
use crate::unwind::recognised::{RecognisedUnwinder, Stretch};
use crate::unwind::{Cursor, End, Stack, Trust, Unwinder, walk};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A process, by id.
    Pid(u32),
    /// A core file.
    Core {
        /// Path of the core.
        core: PathBuf,
        /// The executable that wrote it, if the user names it.
        executable: Option<PathBuf>,
    },
}

/// A question: which target to look at, and what the answer is to contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What to look at: a process or a core.
    pub source: Source,
    /// Kernel ids of the threads to look at; if there are none, all threads are looked at.
    pub threads: Vec<u32>,
    /// Whether to look only at the first of these threads.
    pub first_thread_only: bool,
    /// The most frames to show of each thread; `None` for as many as there are, up to [`crate::limits::MAX_FRAMES`].
    pub limit: Option<usize>,
    /// Paths of `.wasm` files that the modules may come from.
    pub wasm: Vec<PathBuf>,
    /// Paths of cached artifact files of modules in the target.
    pub artifacts: Vec<PathBuf>,
    /// The routes on which to search for modules; if there are none, all routes are used.
    pub routes: Vec<Route>,
    /// Whether not to stop a live process. Then only threads that sleep have frames (see [`LiveTarget::observe`]),
    /// and nothing is settled.
    pub nonblocking: bool,
    /// Whether to step the selected thread of a live process to the next point at which the operand stack is known.
    pub settle: bool,
    /// Directory under which the target's files are looked for first.
    pub sysroot: Option<PathBuf>,
    /// Directories of separate debug files.
    pub debug_dirs: Vec<PathBuf>,
    /// Whether locals and operand stacks are wanted at all.
    pub values: bool,
    /// Whether [`Outcome::classic`] and [`Outcome::image`] are wanted.
    pub image: bool,
    /// Whether native frames get names, files and lines. Reading debug information takes most of the time of a
    /// report.
    pub names: bool,
    /// Whether native frames get files, lines and inlined functions, where they get names.
    pub lines: bool,
    /// Whether to report registers too, and to tell what is being done.
    pub verbose: bool,
    /// Whether to report how long the answer took.
    pub timing: bool,
}

impl Options {
    /// A question about `source` in which all other options have their usual values.
    pub fn new(source: Source) -> Options {
        Options {
            source,
            threads: Vec::new(),
            first_thread_only: false,
            limit: None,
            wasm: Vec::new(),
            artifacts: Vec::new(),
            routes: Vec::new(),
            nonblocking: false,
            settle: false,
            sysroot: None,
            debug_dirs: Vec::new(),
            values: true,
            image: false,
            names: true,
            lines: true,
            verbose: false,
            timing: false,
        }
    }
}

impl Options {
    /// Where this question looks for files.
    pub fn search_paths(&self) -> SearchPaths {
        SearchPaths {
            executable: match &self.source {
                Source::Core { executable, .. } => executable.clone(),
                Source::Pid(_) => None,
            },
            sysroot: self.sysroot.clone(),
            debug_dirs: self.debug_dirs.clone(),
        }
    }
}

/// The answer to a question.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The report on what was found.
    pub report: Report,
    /// The selected thread's Wasm frames as the runtime itself prints them, if asked for and there are any.
    pub classic: Option<String>,
    /// The selected thread's `ExecutionStateImage` in bincode, if asked for and there is one.
    pub image: Option<Vec<u8>>,
    /// Whether a file was not used or may not be the right one, so that the answer is not whole; the report's notes
    /// have the reason.
    pub refused: bool,
    /// Whether something is missing because the process went on before it was read; `report.notes` says so.
    pub gone: bool,
    /// What the user can do to learn more. It is not part of the report, which is the same for a process and its
    /// core.
    pub hint: Option<&'static str>,
}

impl Outcome {
    /// Adds `time`, which was spent before, to the time for reading.
    fn read_within(mut self, time: Duration) -> Outcome {
        if let Some(timing) = &mut self.report.timing {
            timing.reading_ms += milliseconds(time);
        }
        self
    }
}

/// Answers a question.
pub fn run(options: &Options) -> Result<Outcome, Error> {
    let progress = progress::stderr(options.verbose);
    let found = FindOptions::read(options.routes.clone(), &options.artifacts, &options.wasm);
    let steady = Steady::begin();
    let mut outcome = loop {
        let outcome = match &options.source {
            Source::Pid(pid) if options.nonblocking => run_unstopped(*pid, options, &found, &progress),
            Source::Pid(pid) => run_stopped(*pid, options, &found, &progress),
            Source::Core { core, .. } => run_core(core, options, &found, &progress),
        };
        if options.settle && matches!(options.source, Source::Pid(_)) {
            // The question is not asked again: a thread that was stepped is somewhere else now.
            no_changes(&steady)?;
            break outcome?;
        }
        if !steady.again() {
            break outcome?;
        }
        if let Source::Core { core, .. } = &options.source
            && steady.is_changed(core)
        {
            let why = "it was changed while it was read: try again when it is written, or with a copy";
            return Err(Error::Core { path: core.clone(), why: why.to_string() });
        }
    };
    progress.finish();
    if steady.is_given_up() {
        let what = "the target's files are changed faster than they can be read; try again when they are left alone";
        return Err(Error::NotFound { what: what.to_string() });
    }
    // From here on no file is asked for.
    files::helper::rest();
    let notes = steady.notes();
    outcome.refused |= !notes.is_empty();
    outcome.report.notes.extend(notes);
    Ok(outcome)
}

/// Answers a question about a process that is not stopped for it.
fn run_unstopped(pid: u32, options: &Options, found: &FindOptions, progress: &dyn Progress) -> Result<Outcome, Error> {
    let began = Instant::now();
    let search = options.search_paths();
    let look = |target: &LiveTarget| {
        let opened = began.elapsed();
        let outcome = analyse(target, options, &search, &mut Runtimes::new(found), progress);
        outcome.map(|outcome| outcome.read_within(opened))
    };
    let mut outcome = proof::unstopped(pid, look)?;
    let report = &mut outcome.report;
    if report.runtimes.is_empty() && report.threads.iter().all(|t| t.frames.is_empty()) {
        let note = "modules are looked for where stacks lead to code that nothing explains: of threads that run there \
                    is no stack (without --nonblocking there is), so there may be some that were not found";
        report.notes.push(note.to_string());
    }
    Ok(outcome)
}

/// Answers a question about a process that is stopped for it, as often as it takes until the answer is of one
/// instant.
fn run_stopped(pid: u32, options: &Options, found: &FindOptions, progress: &dyn Progress) -> Result<Outcome, Error> {
    let began = Instant::now();
    let search = options.search_paths();
    let mut files = proof::Files::default();
    let proven = proof::prove(pid, |target, set| {
        let objects = files.of(&target, &search);
        let opened = began.elapsed();
        let (outcome, target) = match options.settle {
            true => settle(target, objects, options, found, progress, set)?,
            false => {
                let provider = &mut Runtimes::new(found);
                (analyse_once(&target, objects, options, provider, progress).transpose(), target)
            }
        };
        Ok((outcome.map(|outcome| outcome.map(|outcome| outcome.read_within(opened))), target))
    })?;
    let notes = proven.notes(options.verbose);
    let mut outcome = Outcome { gone: !proven.whole, ..proven.answer };
    if let Some(timing) = &mut outcome.report.timing {
        timing.stopped_ms = Some(milliseconds(proven.stood));
    }
    outcome.report.notes.extend(notes);
    if options.verbose {
        let note = format!("the threads stood for {:.3} ms", milliseconds(proven.stood));
        outcome.report.notes.push(note);
    }
    Ok(outcome)
}

/// Answers a question about a core.
fn run_core(core: &Path, options: &Options, found: &FindOptions, progress: &dyn Progress) -> Result<Outcome, Error> {
    let began = Instant::now();
    let search = options.search_paths();
    let target = CoreTarget::open(core, &search)?;
    let opened = began.elapsed();
    let outcome = analyse(&target, options, &search, &mut Runtimes::new(found), progress)?;
    Ok(outcome.read_within(opened))
}

/// Fails if a file was changed while it was read. This is for work that is not repeated in that case.
fn no_changes(steady: &Steady) -> Result<(), Error> {
    match steady.again() {
        true => Err(Error::NotFound { what: format!("the answer may be wrong: {}", steady.notes().join("; ")) }),
        false => Ok(()),
    }
}

/// Answers a question about a target that is there already: a core in memory, or one that was cut and spliced by a
/// test. `options.source` is only named in the report, not opened, and nothing is settled.
pub fn run_on(target: &dyn Target, options: &Options) -> Result<Outcome, Error> {
    let search = options.search_paths();
    let found = FindOptions::read(options.routes.clone(), &options.artifacts, &options.wasm);
    analyse(target, options, &search, &mut Runtimes::new(&found), &progress::Silent)
}

/// The compiled code of a target, described for a debugger. `all` asks for locals and operands of every function,
/// however many there are. Of `options`, only those count that say where to look.
pub fn code_map(options: &Options, all: bool) -> Result<CodeMap, Error> {
    let search = options.search_paths();
    let steady = Steady::begin();
    let map = match &options.source {
        Source::Pid(pid) => {
            let found = FindOptions::read(options.routes.clone(), &options.artifacts, &options.wasm);
            let progress = progress::stderr(options.verbose);
            let proven = proof::of_process(*pid, &search, |target, objects| {
                let map = code_map_with(target, objects, &mut Runtimes::new(&found), &progress, all);
                Ok(target.prove().then_some(map))
            });
            proven.map(|proven| {
                let notes = proven.notes(options.verbose);
                let mut map = proven.answer;
                map.withhold_originals(&mut Seen::default());
                map.notes.extend(notes);
                map
            })
        }
        Source::Core { core, .. } => {
            CoreTarget::open(core, &search).and_then(|target| code_map_of(&target, options, all))
        }
    };
    no_changes(&steady)?;
    map
}

/// The same as `code_map`, of a target that is there already.
pub fn code_map_of(target: &dyn Target, options: &Options, all: bool) -> Result<CodeMap, Error> {
    let search = options.search_paths();
    let progress = progress::stderr(options.verbose);
    let mut provider = Runtimes::new(&FindOptions::read(options.routes.clone(), &options.artifacts, &options.wasm));
    let objects = Objects::load(target, &search);
    let mut map = code_map_with(target, &objects, &mut provider, &progress, all);
    map.withhold_originals(&mut Seen::default());
    Ok(map)
}

/// The same as `code_map_of`, of a target whose files are loaded. What `provider` found before is not looked for
/// again.
pub fn code_map_with(
    target: &dyn Target,
    objects: &Objects,
    provider: &mut Runtimes,
    progress: &dyn Progress,
    all: bool,
) -> CodeMap {
    let native = Native::new(target, objects);
    let scene = Scene { target, objects, progress };
    let threads: Vec<&Thread> = target.threads().iter().take(limits::MAX_THREADS).collect();
    let stacks = walk_all(target, &threads, &native, &scene, provider, limits::MAX_FRAMES);
    provider.match_files(target);
    progress.finish();
    let runtime = provider.runtime();
    let places: BTreeSet<CodeAddress> =
        stacks.iter().flatten().flat_map(|s| &s.frames).map(|f| f.cursor.address).collect();
    let detail = if all {
        Detail::All
    } else {
        let addresses: BTreeSet<u64> =
            places.iter().map(|a| a.lookup()).filter(|a| runtime.module_of(*a).is_some()).collect();
        Detail::usual(addresses.into_iter().collect())
    };
    let mut map = runtime.code_map(&detail, target);
    map.notes.extend(runtime.notes().iter().cloned());
    own_names::distinguish(&mut map, objects);
    if !map.modules.is_empty() {
        map.modules.extend(routines(target, objects, runtime, &places));
    }
    map
}

/// The native routines without call frame information: those on the stacks, and those in anonymous memory, because
/// every call into Wasm goes through one of them.
fn routines(
    target: &dyn Target,
    objects: &Objects,
    runtime: &dyn Runtime,
    places: &BTreeSet<CodeAddress>,
) -> Vec<CompiledModule> {
    let recognised = all::recognised();
    let mut found: BTreeMap<u64, Stretch> = BTreeMap::new();
    let mut left = limits::MAX_ROUTINE_SEARCH;
    for mapping in target.mappings().iter().filter(|m| m.execute && m.is_anonymous()) {
        if runtime.module_of(mapping.start).is_some() || objects.find(mapping.start).is_some() || left == 0 {
            continue;
        }
        let mut code = vec![0; mapping.size().min(left) as usize];
        left -= code.len() as u64;
        let read = target.read_some(mapping.start, &mut code);
        code.truncate(read);
        found.extend(recognised.stretches(&code, mapping.start).into_iter().map(|s| (s.start, s)));
    }
    for place in places.iter().filter(|p| runtime.module_of(p.lookup()).is_none()) {
        if let Some(stretch) = recognised.stretch_at(*place, target) {
            found.insert(stretch.start, stretch);
        }
    }
    let mut out: Vec<CompiledModule> = Vec::new();
    for stretch in found.into_values() {
        // A routine that is in a file gets no name here: the file has names for its own code, and the routine may be
        // called something else there.
        let in_file = objects.find(stretch.start).is_some();
        let code = if in_file { Ok(Vec::new()) } else { target.read_vec(stretch.start, stretch.len as usize) };
        let Ok(code) = code else { continue };
        if let Some(before) = out.last_mut()
            && before.code.is_empty() == code.is_empty()
            && append(before, &stretch, &code)
        {
            continue;
        }
        let function = CompiledFunction {
            name: (!in_file).then(|| stretch.name.split(" (").next().unwrap_or(stretch.name).replace(' ', "_")),
            start: stretch.start,
            len: stretch.len,
            frame: stretch.frame,
            ..CompiledFunction::default()
        };
        out.push(CompiledModule {
            name: stretch.name.to_string(),
            base: stretch.start,
            code,
            functions: vec![function],
            ..CompiledModule::default()
        });
    }
    out
}

/// Makes `stretch` a part of the routine in `before` if it begins in the last byte of that routine or right behind
/// it.
fn append(before: &mut CompiledModule, stretch: &Stretch, code: &[u8]) -> bool {
    let Some(function) = before.functions.last_mut() else { return false };
    let Some(at) = stretch.start.checked_sub(function.start).and_then(|at| u32::try_from(at).ok()) else {
        return false;
    };
    if at == 0 || at > function.len || function.len - at > 1 {
        return false;
    }
    function.frame.retain(|(offset, _)| *offset < at);
    function.frame.extend(stretch.frame.iter().map(|&(offset, change)| (at + offset, change)));
    function.len = at + stretch.len;
    if !code.is_empty() {
        before.code.truncate(at as usize);
        before.code.extend(code);
    }
    true
}

/// Everything that unwinds native code.
struct Native<'a> {
    objects: &'a Objects,
    cfi: CfiUnwinder<'a>,
    recognised: RecognisedUnwinder,
    code: CodeUnwinder<'a>,
    frame_pointer: FramePointerUnwinder<'a>,
    symbols: Rc<NativeSymbolizer<'a>>,
}

impl<'a> Native<'a> {
    fn new(target: &'a dyn Target, objects: &'a Objects) -> Native<'a> {
        Native::naming(target, objects, false)
    }

    /// The same as `new`, with symbols that give native code also lines if `lines` is set.
    fn naming(target: &'a dyn Target, objects: &'a Objects, lines: bool) -> Native<'a> {
        let no_frame_pointer = |t: &Thread| t.registers.sp().is_some() && t.registers.get(x64::RBP).is_none();
        let symbols = Rc::new(NativeSymbolizer::new(objects).with_lines(lines));
        let named = Rc::clone(&symbols);
        let function = move |at| {
            let function = named.function(at)?;
            Some(Known { start: function.start, end: function.end, is_entry: function.is_entry })
        };
        Native {
            objects,
            cfi: CfiUnwinder::new(objects).reading_prologues(target.threads().iter().any(no_frame_pointer)),
            recognised: all::recognised(),
            code: CodeUnwinder::new(objects, target.mappings(), target.auxv(libc::AT_ENTRY), Box::new(function)),
            frame_pointer: FramePointerUnwinder::new(target.mappings()),
            symbols,
        }
    }
}

fn start(thread: &Thread) -> Option<Cursor> {
    let pc = thread.registers.pc()?;
    thread.registers.sp()?;
    Some(Cursor { address: CodeAddress::Exact(pc), registers: thread.registers.clone() })
}

/// Whether nobody can say what the code at `at` is: it is executable, and it is in no loaded file, in no known
/// module, and not recognised.
fn is_unknown(at: &Cursor, target: &dyn Target, native: &Native<'_>, runtime: &dyn Runtime) -> bool {
    // A mapped file that is no loaded file of the target may be compiled code that a runtime keeps on disk.
    target.mapping_at(at.address.lookup()).is_some_and(Mapping::may_execute)
        && native.objects.find(at.address.lookup()).is_none()
        && runtime.module_of(at.address.lookup()).is_none()
        && native.recognised.stub_name(at.address, target).is_none()
}

/// Walks the chosen threads until no unknown code is left or nothing more is found.
fn walk_all(
    target: &dyn Target,
    threads: &[&Thread],
    native: &Native<'_>,
    scene: &Scene<'_>,
    provider: &mut dyn Provider,
    limit: usize,
) -> Vec<Option<Stack>> {
    let mut stacks: Vec<Option<Stack>> = vec![None; threads.len()];
    let mut again: Vec<usize> = (0..threads.len()).collect();
    let mut walked = 0;
    for round in 0..limits::MAX_WALK_ROUNDS {
        let runtime = provider.runtime();
        let mut unknown: Vec<Cursor> = Vec::new();
        let mut incomplete = Vec::new();
        // A stack that is lost in native code may have led to Wasm, so modules are looked for all the same.
        let mut lost = false;
        for &i in &again {
            let Some(start) = start(threads[i]) else { continue };
            // Every thread keeps its youngest frames, even if other threads have used up the total number of frames.
            walked -= stacks[i].as_ref().map_or(0, |before| before.frames.len());
            let limit = limit.min(limits::MAX_FRAMES_TOTAL.saturating_sub(walked).max(limits::MIN_FRAMES));
            let unwinders: [&dyn Unwinder; 6] = [
                &AsUnwinder(runtime),
                &native.cfi,
                &native.recognised,
                &native.code,
                &Recovery(runtime),
                &native.frame_pointer,
            ];
            let stack = walk(start, &unwinders, target, limit);
            let before = unknown.len();
            let candidates = stack.frames.iter().map(|f| &f.cursor);
            unknown.extend(
                candidates.filter(|c| is_unknown(c, target, native, runtime)).take(limits::MAX_WALK_ROUNDS).cloned(),
            );
            let cut_short = matches!(stack.end, End::Lost(_));
            lost |= cut_short;
            if unknown.len() > before || cut_short {
                incomplete.push(i);
            }
            walked += stack.frames.len();
            stacks[i] = Some(stack);
        }
        // The first round looks for modules even if no frame needs them: the modules of an idle process are worth a
        // line in the report.
        if unknown.is_empty() && round > 0 && !lost {
            break;
        }
        if provider.discover(scene, &unknown, lost) == 0 {
            break;
        }
        again = incomplete;
        if again.is_empty() {
            break;
        }
    }
    stacks
}

/// A runtime as an unwinder (upcasting a trait object reference).
struct AsUnwinder<'a>(&'a dyn Runtime);

impl Unwinder for AsUnwinder<'_> {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<crate::unwind::Next> {
        self.0.step(at, memory)
    }
}

/// A runtime's own tables as an unwinder: its last means to find a caller before the frame pointer is used.
struct Recovery<'a>(&'a dyn Runtime);

impl Unwinder for Recovery<'_> {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<crate::unwind::Next> {
        self.0.recover(at, memory)
    }
}

fn choose<'t>(target: &'t dyn Target, options: &Options) -> Result<Vec<&'t Thread>, Error> {
    let wanted = |t: &&Thread| options.threads.is_empty() || options.threads.contains(&t.id.0);
    let mut threads: Vec<&Thread> = target.threads().iter().filter(wanted).take(limits::MAX_THREADS).collect();
    if let Some(missing) = options.threads.iter().find(|id| !threads.iter().any(|t| t.id.0 == **id)) {
        let ids: Vec<String> = target.threads().iter().take(20).map(|t| t.id.0.to_string()).collect();
        return Err(Error::NotFound {
            what: format!("{} has no thread {missing}; its threads: {}", target.description(), ids.join(", ")),
        });
    }
    if options.first_thread_only {
        threads.truncate(1);
    }
    Ok(threads)
}

fn analyse(
    target: &dyn Target,
    options: &Options,
    search: &SearchPaths,
    provider: &mut Runtimes,
    progress: &dyn Progress,
) -> Result<Outcome, Error> {
    let began = Instant::now();
    let objects = Objects::load(target, search);
    let loaded = began.elapsed();
    let mut outcome = analyse_target(target, &objects, options, provider, progress)?;
    if let Some(timing) = &mut outcome.report.timing {
        timing.reading_ms += milliseconds(loaded);
    }
    Ok(outcome)
}

/// `Some` if the executable that the user named is not used. The note inside says why; it is `None` if a problem in
/// `objects` says so already.
fn executable_refused(path: &Path, objects: &Objects) -> Option<Option<String>> {
    if objects.iter().any(|o| o.opened.as_deref() == Some(path)) {
        return None;
    }
    let what = format!("the executable {}", path.display());
    Some(match files::open(&FileLocation::user(path)) {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => Some(format!("{what} is no file and is not used")),
        Err(e) => Some(format!("{what} cannot be opened ({e}) and is not used")),
        Ok(_) => {
            let name = path.display().to_string();
            let told = objects.iter().filter_map(|o| o.problem.as_ref()).any(|p| p.starts_with(&name));
            (!told).then(|| format!("{what} does not fit and is not used: it is not the file that was loaded"))
        }
    })
}

/// How many frames of one thread are shown, and how many are walked. Modules are found along stacks, so a short list
/// still takes a long walk.
fn frames_of(limit: Option<usize>) -> (usize, usize) {
    let shown = limit.unwrap_or(limits::MAX_FRAMES).min(limits::MAX_FRAMES);
    (shown, shown.max(limits::MIN_WALK))
}

/// Answers a question about a target whose files are loaded. `options.source` only says what the report calls the
/// target. What `provider` found before is not looked for again.
pub fn analyse_target(
    target: &dyn Target,
    objects: &Objects,
    options: &Options,
    provider: &mut Runtimes,
    progress: &dyn Progress,
) -> Result<Outcome, Error> {
    let outcome = analyse_once(target, objects, options, provider, progress)?;
    outcome.ok_or_else(|| Error::NotFound { what: proof::GONE.to_string() })
}

/// The same as `analyse_target`, but returns `None` if what was read of the target is not of one instant and the
/// target can be looked at again.
fn analyse_once(
    target: &dyn Target,
    objects: &Objects,
    options: &Options,
    provider: &mut Runtimes,
    progress: &dyn Progress,
) -> Result<Option<Outcome>, Error> {
    let began = Instant::now();
    let native = Native::naming(target, objects, options.lines);
    let scene = Scene { target, objects, progress };
    let threads = choose(target, options)?;
    let (limit, walked) = frames_of(options.limit);
    let stacks = walk_all(target, &threads, &native, &scene, provider, walked);
    let mut refused = !provider.match_files(target);
    progress.finish();
    let walked = began.elapsed();

    let runtime = provider.runtime();
    let symbolizer = &*native.symbols;
    let view = View { target, objects, native: &native, runtime, symbolizer, options, limit };
    // What the report needs of the target is read before the proof. The names of native frames take longer, and come
    // from files.
    let guests: Vec<_> = stacks.iter().map(|stack| view.guests(stack.as_ref())).collect();
    if !target.prove() {
        return Ok(None);
    }
    let mut report = view.head();
    for ((thread, stack), guests) in threads.iter().zip(&stacks).zip(&guests) {
        report.threads.push(view.thread(thread, stack.as_ref(), guests));
    }
    report.notes.extend(waiting::notes(target, &native, runtime, &threads, &stacks));
    let (classic, image) = if options.image { image_of(&view, &threads, &stacks)? } else { (None, None) };
    if let Source::Core { executable: Some(path), .. } = &options.source
        && let Some(note) = executable_refused(path, objects)
    {
        refused = true;
        report.notes.extend(note);
    }
    let mut left_out = symbolizer.notes();
    left_out.extend(unpack::notes());
    refused |= !left_out.is_empty();
    report.notes.extend(left_out);
    report.notes.extend(objects.notes().iter().cloned());
    let silent = files::helper::notes();
    refused |= !silent.is_empty();
    report.notes.extend(silent);
    let addresses = stacks.iter().flatten().flat_map(|s| &s.frames).map(|f| f.cursor.address.lookup());
    let doubts: BTreeSet<_> = addresses.filter_map(|a| objects.doubt(a)).map(|doubt| &doubt.note).collect();
    refused |= !doubts.is_empty();
    report.notes.extend(doubts.into_iter().flatten().cloned());
    report.timing = options.timing.then(|| Timing {
        walking_ms: milliseconds(walked),
        symbolizing_ms: milliseconds(began.elapsed() - walked),
        ..Timing::default()
    });
    // Stepping helps where the youngest frame of a thread is between two points, not where an older frame is.
    let youngest = report.threads.iter().filter_map(|t| t.frames.first());
    let between = youngest.filter_map(|f| f.stack_why.as_ref()).any(|why| *why == Why::BetweenPoints);
    let hint = (between && Stepping::of(target, options) == Stepping::Possible)
        .then_some("--settle steps a thread on to where its operand stack is known");
    Ok(Some(Outcome { report, classic, image, refused, gone: false, hint }))
}

/// The image of the chosen thread, or of the only thread that runs Wasm.
fn image_of(
    view: &View<'_, '_>,
    threads: &[&Thread],
    stacks: &[Option<Stack>],
) -> Result<(Option<String>, Option<Vec<u8>>), Error> {
    let chosen = wasm_thread(view.runtime, view.target, threads, stacks)?;
    let image = chosen.image(view.runtime, view.target, Stepping::of(view.target, view.options))?;
    let bytes = image.to_bytes().map_err(|e| Error::NotFound {
        what: format!("the image of thread {} cannot be encoded: {e}", chosen.tid.0),
    })?;
    Ok((Some(image.output()), Some(bytes)))
}

/// A thread that runs Wasm.
struct WasmThread<'a> {
    tid: ThreadId,
    /// Its frames from the youngest Wasm frame on.
    frames: &'a [crate::unwind::Frame],
    /// The youngest Wasm frame.
    youngest: GuestFrame,
    /// Whether that frame is the youngest of all frames of the thread.
    on_top: bool,
    /// Whether younger Wasm frames may be missing, because a frame up to this one was found by frame pointer.
    guessed: bool,
}

/// The only one of these threads that has Wasm frames.
fn wasm_thread<'a>(
    runtime: &dyn Runtime,
    target: &dyn Target,
    threads: &[&Thread],
    stacks: &'a [Option<Stack>],
) -> Result<WasmThread<'a>, Error> {
    let mut found = Vec::new();
    for (thread, stack) in threads.iter().zip(stacks) {
        let all = stack.as_ref().map_or(&[][..], |s| &s.frames);
        let is_wasm = |f: &crate::unwind::Frame| {
            runtime.describe(&f.cursor, target).into_iter().find(|f| f.kind == GuestKind::Wasm)
        };
        if let Some((at, youngest)) = all.iter().enumerate().find_map(|(i, f)| Some((i, is_wasm(f)?))) {
            let guessed = all.iter().take(at + 1).any(|f| f.trust == Trust::FramePointer);
            found.push(WasmThread { tid: thread.id, frames: &all[at..], youngest, on_top: at == 0, guessed });
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => {
            let next = match target.pid().filter(|_| target.is_live()) {
                Some(pid) => format!("; try again when one runs Wasm code, or: wstate doctor {pid}"),
                None => "; wstate core shows what its threads do".to_string(),
            };
            let what = format!("no thread that was looked at has a Wasm frame, so there is no image{next}");
            Err(Error::NotFound { what })
        }
        _ => {
            let ids: Vec<String> = found.iter().take(20).map(|t| t.tid.0.to_string()).collect();
            Err(Error::NotFound {
                what: format!("several threads run Wasm ({}); choose one with --thread TID", ids.join(", ")),
            })
        }
    }
}

/// What to do about a Wasm frame that is followed by native code although it has not made a call.
const INTERRUPTED: &str = "it was interrupted there: by a trap, behind which nothing goes on, or by a signal; then try again when \
                           its handler has returned";

/// What users of runtimes without images can do instead.
const EXPORT: &str = "wstate export --wasm-coredump FILE writes memories, globals and stacks";

impl WasmThread<'_> {
    /// The image that the runtime itself would report. The error says why it is not known and what to do.
    fn image(
        &self,
        runtime: &dyn Runtime,
        memory: &dyn Memory,
        stepping: Stepping,
    ) -> Result<ExecutionStateImage, Error> {
        let tid = self.tid.0;
        if self.guessed {
            let next = match stepping {
                Stepping::Impossible => "give the executable (core CORE EXE) or --sysroot",
                Stepping::Possible | Stepping::Asked => "try again when it is in Wasm code, or in other native code",
            };
            return Err(Error::NotFound {
                what: format!(
                    "thread {tid}: the native frames above its Wasm frames have no unwind information, so younger Wasm \
                     frames may be missing and an image might lie; {next}"
                ),
            });
        }
        let image = self.frames.first().map(|f| runtime.image(self.tid, &f.cursor, memory)).transpose();
        let image = image
            .map_err(|why| Error::NotFound { what: format!("thread {tid}: {why}; {EXPORT}") })?
            .unwrap_or_default();
        if image.frames.is_empty() {
            let unknown = self.youngest.stack.as_ref().err();
            let why = unknown.map_or("the runtime has no state here".to_string(), ToString::to_string);
            let pc = self.frames.first().map_or(0, |f| f.cursor.address.raw());
            let next = self.next_step(runtime, unknown, stepping).map_or(String::new(), |next| format!("; {next}"));
            return Err(Error::NotFound { what: format!("thread {tid} has no image at {pc:#x}: {why}{next}") });
        }
        Ok(image)
    }

    /// What the user can do to get an image where there is none. `None` if the thread was to be stepped, because the
    /// note about the steps says it.
    fn next_step(&self, runtime: &dyn Runtime, why: Option<&Why>, stepping: Stepping) -> Option<&'static str> {
        let between = why == Some(&Why::BetweenPoints);
        Some(match stepping {
            _ if runtime.settles(self.youngest.module).is_err() => "have the host compile it with track_state",
            _ if between && !self.on_top => INTERRUPTED,
            Stepping::Possible if between => "--settle steps it to where there is one",
            Stepping::Asked => return None,
            Stepping::Possible => "try again, or --settle",
            Stepping::Impossible => {
                "take the image at another moment, such as while the thread is in an import, or of the live process with \
                 --settle"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::CoreBuilder;
    use crate::runtime::singlepass::stubs::CALL_WASM_LEAVE;

    /// A provider that finds something each time and explains nothing.
    struct Endless {
        none: Runtimes,
        rounds: Vec<usize>,
    }

    impl Provider for Endless {
        fn discover(&mut self, _: &Scene<'_>, unknown: &[Cursor], _: bool) -> usize {
            self.rounds.push(unknown.len());
            1
        }

        fn runtime(&self) -> &dyn Runtime {
            self.none.runtime()
        }
    }

    #[test]
    fn a_walk_has_an_end() {
        assert_eq!(frames_of(None), (limits::MAX_FRAMES, limits::MAX_FRAMES));
        assert_eq!(frames_of(Some(usize::MAX)), (limits::MAX_FRAMES, limits::MAX_FRAMES));
        assert_eq!(frames_of(Some(1)), (1, limits::MIN_WALK));

        // The stack has frame records that lead to each other, in code that nobody knows, behind a call.
        let (code, stack) = (0x10_0000, 0x2000_0000);
        let records = (0..200u64).flat_map(|i| [stack + (i + 1) * 16, code + 0x10]);
        let bytes: Vec<u8> = records.flat_map(u64::to_le_bytes).collect();
        let mut registers = crate::arch::Registers::unknown(crate::arch::Machine::X64);
        for (reg, value) in [(x64::RIP, code), (x64::RSP, stack), (x64::RBP, stack)] {
            registers.set(reg, value);
        }
        let mut text = [0x90; 0x1000];
        text[0x0b..0x10].copy_from_slice(&[0xe8, 0, 1, 0, 0]);
        let core = CoreBuilder::new().memory(code, 5, &text).memory(stack, 6, &bytes);
        let core = core.thread(1, 0, &registers, 0).open().unwrap();
        let objects = Objects::load(&core, &SearchPaths::default());
        let native = Native::new(&core, &objects);
        let progress = progress::stderr(false);
        let scene = Scene { target: &core, objects: &objects, progress: &progress };
        let mut endless = Endless { none: Runtimes::new(&FindOptions::default()), rounds: Vec::new() };
        let threads: Vec<&Thread> = core.threads().iter().collect();
        let stacks = walk_all(&core, &threads, &native, &scene, &mut endless, 150);
        assert_eq!(stacks[0].as_ref().map(|s| s.frames.len()), Some(150));
        assert_eq!(endless.rounds, [limits::MAX_WALK_ROUNDS; limits::MAX_WALK_ROUNDS]);
    }

    #[test]
    fn routines_are_looked_for_in_so_much_code() {
        let most = limits::MAX_ROUTINE_SEARCH as usize;
        let len = CALL_WASM_LEAVE.len();
        let mut code = vec![0xcc; most + 2 * len];
        for at in [most - len, most] {
            code[at..at + len].copy_from_slice(CALL_WASM_LEAVE);
        }
        let core = CoreBuilder::new().memory(0x10_0000, 5, &code).open().unwrap();
        let objects = Objects::load(&core, &SearchPaths::default());
        let none = Runtimes::new(&FindOptions::default());
        let found = routines(&core, &objects, none.runtime(), &BTreeSet::new());
        // Only one routine is found: the other is behind the end of what is searched.
        assert_eq!(found.len(), 1);
    }
}
