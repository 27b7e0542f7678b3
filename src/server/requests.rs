//! Answers the requests to the server from one target, which is kept until it runs.

use super::PROTOCOL;
use super::error::Failure;
use super::expression::{self, Expression};
use super::wire::{Message, Wire, hex, number};
use crate::cli::output::Output;
use crate::limits;
use crate::process::callback::CallbackTarget;
use crate::process::objects::Objects;
use crate::process::{Memory, Target};
use crate::progress::Progress;
use crate::report::hexdump;
use crate::report::symbol_file::{SymbolFile, TextNames};
use crate::report::text::{self, TextOptions};
use crate::report::{Frame, FrameKind, OpPosition, Report, Thread, ValType, WasmPosition};
use crate::runtime::all::{FindOptions, Runtimes};
use crate::runtime::code_map::Seen;
use crate::runtime::{Provider, Why};
use crate::session::{Look, Options, Source};
use serde_json::Value;
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

type Answer = Result<Message, Failure>;

/// The names of all requests that a server can be asked for.
const OPS: [&str; 13] = [
    "hello",
    "configure",
    "resumed",
    "changed",
    "walk",
    "report",
    "frame",
    "step",
    "modules",
    "memory",
    "print",
    "list",
    "symbols",
];

/// Answers the requests of one debugger.
pub struct Requests {
    wire: Rc<Wire>,
    settings: Settings,
    stopped: Option<Stopped>,
    symbols: Option<Written>,
    /// Number of symbol files that were written. It is part of their names, so that no name is used twice.
    written: u32,
    /// The compiled code that was there at earlier stops.
    seen: Seen,
}

/// The symbol file that was written last. It outlives the stop: the debugger has it loaded.
struct Written {
    path: PathBuf,
    content: u64,
    answer: Message,
}

/// What the user told the debugger about files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Settings {
    wasm: Vec<PathBuf>,
    artifacts: Vec<PathBuf>,
    debug_dirs: Vec<PathBuf>,
    sysroot: Option<PathBuf>,
    executable: Option<PathBuf>,
}

/// The target while it stands.
struct Stopped {
    target: CallbackTarget,
    objects: Objects,
    provider: Runtimes,
    options: Options,
    reports: HashMap<Asked, Rc<Report>>,
    /// Whether memory or registers may be others than those that were lent.
    stale: bool,
}

/// What makes one report differ from another of the same stop. A report is kept for each.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Asked {
    threads: Vec<u32>,
    limit: Option<usize>,
    verbose: bool,
}

/// The frame that a request is about.
struct ChosenFrame {
    tid: u32,
    report: Rc<Report>,
    /// Position of the frame among the thread's frames.
    at: usize,
}

impl ChosenFrame {
    fn thread(&self) -> Option<&Thread> {
        self.report.threads.first()
    }

    fn frame(&self) -> Result<&Frame, Failure> {
        self.thread()
            .and_then(|t| t.frames.get(self.at))
            .ok_or_else(|| Failure::not_found(format!("thread {} has no such frame", self.tid)))
    }

    /// The frame if it is that of a Wasm function, or else an error.
    fn wasm(&self) -> Result<&Frame, Failure> {
        let frame = self.frame()?;
        match frame.kind {
            FrameKind::Wasm => Ok(frame),
            _ => {
                let n = frame.index.unwrap_or_default();
                Err(Failure::not_found(format!("frame #{n} is not a Wasm frame"))
                    .hint("wasm-up and wasm-down go to the next one"))
            }
        }
    }
}

struct Told<'a> {
    wire: &'a Wire,
    last: Cell<Instant>,
}

impl Progress for Told<'_> {
    fn tick(&self, what: &str, done: u64, total: u64) {
        let now = Instant::now();
        if now.saturating_duration_since(self.last.get()) < Duration::from_millis(500) {
            return;
        }
        self.last.set(now);
        self.wire.progress(&match total {
            0 => format!("{what}: {} MiB", done >> 20),
            _ => format!("{what}: {} of {} MiB", done >> 20, total >> 20),
        });
    }

    fn finish(&self) {}
}

fn flag(m: &Message, key: &str) -> bool {
    m.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn wanted_number(m: &Message, key: &str) -> Result<Option<u64>, Failure> {
    match m.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => number(v).map(Some).ok_or_else(|| Failure::malformed(format!("{key} is not a number"))),
    }
}

fn paths(m: &Message, key: &str) -> Result<Vec<PathBuf>, Failure> {
    match m.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list
            .iter()
            .map(|p| p.as_str().map(PathBuf::from))
            .collect::<Option<_>>()
            .ok_or_else(|| Failure::malformed(format!("{key} is a list of paths"))),
        Some(_) => Err(Failure::malformed(format!("{key} is a list of paths"))),
    }
}

fn ranges(m: &Message, key: &str) -> Result<Vec<Range<u64>>, Failure> {
    let range = |v: &Value| match v.as_array()?.as_slice() {
        [start, end] => Some(number(start)?..number(end)?),
        _ => None,
    };
    let list = match m.get(key) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(list) => list.as_array().and_then(|list| list.iter().map(range).collect()),
    };
    list.ok_or_else(|| Failure::malformed(format!("{key} is a list of [start, end]")))
}

fn path(m: &Message, key: &str) -> Option<PathBuf> {
    m.get(key).and_then(Value::as_str).filter(|s| !s.is_empty()).map(PathBuf::from)
}

fn text_options(m: &Message) -> TextOptions {
    TextOptions {
        brief: flag(m, "brief"),
        wasm_only: flag(m, "wasm_only"),
        color: flag(m, "color"),
        verbose: flag(m, "verbose"),
        fold: flag(m, "fold"),
        all: flag(m, "whole"),
        full_paths: flag(m, "whole"),
        full_names: flag(m, "whole"),
        how_to_see_all: Some("wasm-bt whole"),
    }
}

fn message<const N: usize>(pairs: [(&str, Value); N]) -> Message {
    pairs.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
}

fn to_json(value: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|e| Failure::failed(e.to_string()))
}

impl Requests {
    pub fn new(wire: Rc<Wire>) -> Requests {
        Requests {
            wire,
            settings: Settings::default(),
            stopped: None,
            symbols: None,
            written: 0,
            seen: Seen::default(),
        }
    }

    /// Forgets the target.
    pub fn forget(&mut self) {
        self.stopped = None;
    }

    pub fn answer(&mut self, m: &Message) -> Answer {
        match m.get("op").and_then(Value::as_str).unwrap_or_default() {
            "hello" => self.hello(m),
            "configure" => self.configure(m),
            "resumed" => {
                self.forget();
                Ok(Message::new())
            }
            "changed" => {
                if let Some(s) = &mut self.stopped {
                    s.stale = true;
                }
                Ok(Message::new())
            }
            "walk" => self.walk(m),
            "report" => {
                let mut m = m.clone();
                m.remove("threads");
                m.insert("head".into(), true.into());
                self.walk(&m)
            }
            "frame" => {
                let place = self.place(m)?;
                frame_answer(&place, m)
            }
            "step" => self.step(m),
            "modules" => self.modules(m),
            "memory" => self.memory(m),
            "print" => self.print(m),
            "list" => self.list(m),
            "symbols" => self.symbols(m),
            other => Err(Failure::new("unsupported", format!("there is no request {other:?}"))),
        }
    }

    fn hello(&mut self, m: &Message) -> Answer {
        let theirs = wanted_number(m, "protocol")?;
        if theirs != Some(PROTOCOL.into()) {
            let theirs = theirs.map_or("none".to_string(), |n| n.to_string());
            let what =
                format!("the plugin speaks protocol {theirs}, wstate {} speaks {PROTOCOL}", env!("CARGO_PKG_VERSION"));
            return Err(Failure::new("version", what).hint("run: wstate plugin install"));
        }
        Ok(message([
            ("protocol", PROTOCOL.into()),
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("ops", OPS.as_slice().into()),
        ]))
    }

    fn configure(&mut self, m: &Message) -> Answer {
        let settings = Settings {
            wasm: paths(m, "wasm")?,
            artifacts: paths(m, "artifacts")?,
            debug_dirs: paths(m, "debug_dirs")?,
            sysroot: path(m, "sysroot"),
            executable: path(m, "executable"),
        };
        if settings != self.settings {
            self.settings = settings;
            self.forget();
        }
        Ok(Message::new())
    }

    fn stopped(&mut self) -> Result<&mut Stopped, Failure> {
        if self.stopped.as_ref().is_some_and(|s| s.stale) {
            self.borrow_again()?;
        }
        if self.stopped.is_none() {
            let find = FindOptions::read(Vec::new(), &self.settings.artifacts, &self.settings.wasm);
            let what = self.wire.describe()?;
            let source = match &what.core {
                Some(core) => Source::Core { core: core.clone(), executable: self.settings.executable.clone() },
                None => Source::Pid(what.pid.unwrap_or_default()),
            };
            let options = Options {
                sysroot: self.settings.sysroot.clone(),
                debug_dirs: self.settings.debug_dirs.clone(),
                ..Options::new(source)
            };
            options.check_directories()?;
            let search = options.search_paths();
            let lender: Rc<dyn crate::process::callback::Lender> = Rc::<Wire>::clone(&self.wire);
            let target = CallbackTarget::new(lender, what, &search);
            if target.threads().is_empty() {
                return Err(Failure::not_found("the debugger's target has no thread: is it running, or has it ended?"));
            }
            let objects = Objects::load(&target, &search);
            let provider = Runtimes::new(&find);
            self.stopped = Some(Stopped { target, objects, provider, options, reports: HashMap::new(), stale: false });
        }
        self.stopped.as_mut().ok_or_else(|| Failure::failed("the target is not known"))
    }

    /// Has memory and registers lent anew, because the user can have written to them at a stop. The loaded files and
    /// the modules stay if the mappings are the same.
    fn borrow_again(&mut self) -> Result<(), Failure> {
        let what = self.wire.describe()?;
        let Some(s) = &mut self.stopped else { return Ok(()) };
        let lender: Rc<dyn crate::process::callback::Lender> = Rc::<Wire>::clone(&self.wire);
        let target = CallbackTarget::new(lender, what, &s.options.search_paths());
        let same = target.mappings() == s.target.mappings() && !target.threads().is_empty();
        if same {
            s.target = target;
            s.reports.clear();
            s.stale = false;
        } else {
            self.forget();
        }
        Ok(())
    }

    fn report(&mut self, asked: Asked) -> Result<Rc<Report>, Failure> {
        let wire = Rc::clone(&self.wire);
        let s = self.stopped()?;
        if let Some(report) = s.reports.get(&asked) {
            return Ok(Rc::clone(report));
        }
        let options =
            Options { threads: asked.threads.clone(), limit: asked.limit, verbose: asked.verbose, ..s.options.clone() };
        let told = Told { wire: &wire, last: Cell::new(Instant::now()) };
        let look = Look { target: &s.target, objects: &s.objects, options: &options, progress: &told };
        let outcome = look.outcome(&mut s.provider)?;
        let report = Rc::new(outcome.report);
        if s.reports.len() >= limits::MAX_REPORTS {
            s.reports.clear();
        }
        s.reports.insert(asked, Rc::clone(&report));
        Ok(report)
    }

    fn walk(&mut self, m: &Message) -> Answer {
        let threads = match m.get("threads") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => {
                let ids = list.iter().map(|v| number(v).and_then(|n| u32::try_from(n).ok()));
                let ids = ids.collect::<Option<Vec<u32>>>();
                ids.filter(|ids| !ids.is_empty()).ok_or_else(|| Failure::malformed("threads is a list of ids"))?
            }
            Some(_) => return Err(Failure::malformed("threads is a list of ids")),
        };
        let limit = wanted_number(m, "limit")?.filter(|n| *n != 0).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let options = text_options(m);
        let report = self.report(Asked { threads, limit, verbose: options.verbose })?;
        let text = match flag(m, "head") {
            true => report.to_text(options),
            false => {
                let mut text = String::new();
                if report.runtimes.iter().all(|r| r.modules.is_empty()) {
                    text += &text::render_head(&report, options);
                } else {
                    // The user set these files and waits for what they give, so it is told if one cannot be used.
                    let refusals = self.stopped()?.provider.refusals();
                    text.extend(refusals.iter().map(|why| format!("note: {}\n", text::clean_message(why))));
                }
                text + &text::render_threads(&report, options)
            }
        };
        let mut shown = (*report).clone();
        shown.select(options.wasm_only, options.brief);
        Ok(message([("report", to_json(&shown)?), ("text", text.into())]))
    }

    /// The frame that a request names.
    fn place(&mut self, m: &Message) -> Result<ChosenFrame, Failure> {
        let tid = wanted_number(m, "thread")?.and_then(|n| u32::try_from(n).ok());
        let tid = tid.ok_or_else(|| Failure::malformed("a request about a frame needs a \"thread\""))?;
        let (index, pc) = (wanted_number(m, "frame")?, wanted_number(m, "pc")?);
        let report = self.report(Asked { threads: vec![tid], limit: None, verbose: flag(m, "verbose") })?;
        let frames = report.threads.first().map(|t| t.frames.as_slice()).unwrap_or_default();
        let has_pc = |f: &Frame| pc.is_none() || f.pc.is_some_and(|at| Some(at.0) == pc);
        let numbered = index.and_then(|n| frames.iter().position(|f| f.index.map(u64::from) == Some(n)));
        let at = match (index, pc) {
            (None, None) => frames.iter().position(|f| f.kind == FrameKind::Wasm),
            (_, None) => numbered,
            (_, Some(_)) => numbered.filter(|i| has_pc(&frames[*i])).or_else(|| frames.iter().position(has_pc)),
        };
        match at {
            Some(at) => Ok(ChosenFrame { tid, report, at }),
            None if index.is_none() && pc.is_none() => {
                Err(Failure::not_found(format!("thread {tid} has no Wasm frame")))
            }
            None => {
                let n = index.map_or("that frame".to_string(), |n| format!("frame #{n}"));
                let at = pc.map_or(String::new(), |pc| format!(" at {pc:#x}"));
                let what = format!("{n}{at} is not among the {} frames of thread {tid}", frames.len());
                Err(Failure::not_found(what).hint("the numbers are those of wasm-bt, where plain bt loses its way"))
            }
        }
    }

    fn step(&mut self, m: &Message) -> Answer {
        let by = m.get("by").and_then(Value::as_i64).unwrap_or(1);
        let from = wanted_number(m, "from")?.unwrap_or(0);
        let mut place = self.place(&message([("thread", m.get("thread").cloned().unwrap_or_default())]))?;
        let frames = place.thread().map(|t| t.frames.as_slice()).unwrap_or_default();
        let number = |i: usize| u64::from(frames.get(i).and_then(|f| f.index).unwrap_or_default());
        let wasm: Vec<usize> = (0..frames.len()).filter(|i| frames[*i].kind == FrameKind::Wasm).collect();
        let (older, edge) = (by > 0, if by > 0 { "oldest" } else { "youngest" });
        let count = usize::try_from(by.unsigned_abs()).unwrap_or(usize::MAX);
        let reached = match by {
            0 => None,
            _ if older => wasm.iter().filter(|i| number(**i) > from).take(count).last(),
            _ => wasm.iter().rev().filter(|i| number(**i) < from).take(count).last(),
        };
        match reached {
            Some(at) => place.at = *at,
            None => return Err(Failure::not_found(format!("this is the {edge} Wasm frame"))),
        }
        frame_answer(&place, m)
    }

    fn modules(&mut self, m: &Message) -> Answer {
        let options = text_options(m);
        // Modules are found on the way through the stacks of all threads.
        let report = self.report(Asked { threads: Vec::new(), limit: None, verbose: false })?;
        let modules: Vec<_> = report.runtimes.iter().flat_map(|r| &r.modules).collect();
        let text = text::render_head(&report, options);
        Ok(message([("modules", to_json(&modules)?), ("text", text.into())]))
    }

    /// Address of memory `index` of the frame's instance in the target, and its size in bytes.
    fn linear_memory(&mut self, place: &ChosenFrame, index: u32) -> Result<(u64, u64), Failure> {
        let (module, instance) = instance(place)?;
        let s = self.stopped()?;
        s.provider
            .runtime()
            .linear_memory(module, instance, index, &s.target)
            .map_err(|why| Failure::not_found(format!("memory {index} is not known: {why}")))
    }

    /// Whether addresses of memory `index` of the frame's module have 64 bits.
    fn is_memory64(&mut self, place: &ChosenFrame, index: u32) -> Result<bool, Failure> {
        let (module, _) = instance(place)?;
        let s = self.stopped()?;
        let declared = s.provider.runtime().declared(module, &s.target).memories;
        Ok(declared.is_ok_and(|m| m.get(index as usize).is_some_and(|m| m.memory64)))
    }

    fn linear_bytes(&mut self, place: &ChosenFrame, index: u32, address: u64, len: u64) -> Result<Linear, Failure> {
        let (base, size) = self.linear_memory(place, index)?;
        let end = address.checked_add(len).filter(|end| *end <= size);
        if end.is_none() {
            return Err(Failure::not_found(format!(
                "memory {index} has {size:#x} bytes; {len} bytes at {address:#x} are not inside"
            )));
        }
        let at = base.wrapping_add(address);
        let bytes = usize::try_from(len).ok().and_then(|len| self.stopped().ok()?.target.read_vec(at, len).ok());
        let unreadable =
            || Failure::failed(format!("memory at {at:#x} ({address:#x} of memory {index}) cannot be read"));
        Ok(Linear { bytes: bytes.ok_or_else(unreadable)?, base, size })
    }

    fn memory(&mut self, m: &Message) -> Answer {
        let needed = |key: &str| wanted_number(m, key)?.ok_or_else(|| Failure::malformed(format!("{key} is missing")));
        let (address, length) = (needed("address")?, needed("length")?);
        let index = wanted_number(m, "memory")?.unwrap_or(0);
        let index = u32::try_from(index).map_err(|_| Failure::malformed("memory is an index"))?;
        if length > limits::MAX_SHOWN_MEMORY {
            let most = limits::MAX_SHOWN_MEMORY;
            return Err(Failure::malformed(format!("{length} bytes are too many, at most {most} at once")));
        }
        let place = self.place(m)?;
        let linear = self.linear_bytes(&place, index, address, length)?;
        Ok(message([
            ("data", hex(&linear.bytes).into()),
            ("text", hexdump::lines(address, &linear.bytes).into()),
            ("size", format!("{:#x}", linear.size).into()),
            ("base", format!("{:#x}", linear.base).into()),
        ]))
    }

    fn print(&mut self, m: &Message) -> Answer {
        let given = m.get("expression").and_then(Value::as_str).unwrap_or_default();
        let wanted = expression::parse(given).map_err(Failure::malformed)?;
        let place = self.place(m)?;
        let frame = place.wasm()?;
        let value = match wanted {
            Expression::Local(n) => slot(&frame.locals, &frame.locals_why, n, "local")?,
            Expression::Stack(n) => slot(&frame.stack, &frame.stack_why, n, "operand")?,
            Expression::Global(n) => {
                let (module, instance) = instance(&place)?;
                let s = self.stopped()?;
                let value = s.provider.runtime().global(module, instance, n, &s.target);
                let value = value.map_err(|why| Failure::not_found(format!("global {n} is not known: {why}")))?;
                crate::report::Value::new(n, &value)
            }
            Expression::Load { memory, address, ty } => {
                let held = match address {
                    expression::Address::Number(n) => Err(n),
                    expression::Address::Local(n) => Ok(slot(&frame.locals, &frame.locals_why, n, "local")?),
                    expression::Address::Stack(n) => Ok(slot(&frame.stack, &frame.stack_why, n, "operand")?),
                };
                let address = match held {
                    Err(given) => given,
                    Ok(value) => {
                        let wide = value.ty.is_none() && self.is_memory64(&place, memory)?;
                        address_in(&value, wide)?
                    }
                };
                let bytes = self.linear_bytes(&place, memory, address, ty.size())?.bytes;
                let text = ty.print(&bytes);
                return Ok(message([("text", text.as_str().into()), ("value", text.as_str().into())]));
            }
        };
        let Some(text) = &value.value else {
            let why = value.why.as_ref().map_or("its place is not known".to_string(), ToString::to_string);
            return Err(Failure::not_found(format!("{given} is not known here: {why}")));
        };
        let ty = value.ty.map(|ty| format!("({ty}) ")).unwrap_or_default();
        let place = value.place.as_ref().map(|p| format!("   {p}")).unwrap_or_default();
        Ok(message([("text", format!("{ty}{text}{place}").into()), ("value", to_json(&value)?)]))
    }

    /// Writes a symbol file. If its contents differ from those of the last one it gets a new name, because gdb does
    /// not read a file again that it has loaded.
    fn symbols(&mut self, m: &Message) -> Answer {
        let directory = path(m, "directory").filter(|d| d.is_absolute());
        let directory = directory.ok_or_else(|| Failure::malformed("directory is an absolute path"))?;
        let (known, described) = (ranges(m, "known")?, ranges(m, "described")?);
        let wire = Rc::clone(&self.wire);
        let s = self.stopped()?;
        let told = Told { wire: &wire, last: Cell::new(Instant::now()) };
        let look = Look { target: &s.target, objects: &s.objects, options: &s.options, progress: &told };
        let mut map = look.code_map(&mut s.provider, flag(m, "all"));
        let per_store = map.modules.iter().any(|m| m.copied.is_some());
        let unsure = map.withhold_originals(&mut self.seen);
        map.modules.retain(|m| !known.iter().any(|range| range.contains(&m.base)));
        for module in map.modules.iter_mut().filter(|m| described.iter().any(|range| range.contains(&m.base))) {
            module.undescribe();
        }
        if map.modules.iter().all(|m| m.code.is_empty()) {
            self.symbols = None;
            let files = Value::Array(Vec::new());
            let told = [("unsure", unsure.into()), ("per_store", per_store.into()), ("notes", map.notes.into())];
            return Ok([("files", files)].into_iter().chain(told).map(|(k, v)| (k.to_string(), v)).collect());
        }
        if let Some(before) = &self.symbols {
            let same = content(&SymbolFile::of(&map, &before.path, TextNames::ByContent)?) == before.content;
            if same && before.path.parent() == Some(&directory) && before.path.exists() {
                let mut answer = before.answer.clone();
                answer.extend([("unsure".to_string(), unsure.into()), ("notes".to_string(), map.notes.into())]);
                return Ok(answer);
            }
        }
        self.written += 1;
        let count = self.written;
        let path = directory.join(format!("wasm-{}-{count}.sym", std::process::id()));
        let file = SymbolFile::of(&map, &path, TextNames::ByContent)?;
        Output::write_files(file.files())?;
        // gdb finds the file again by an address inside it.
        let inside = map.modules.iter().find(|m| !m.code.is_empty()).map(|m| format!("{:#x}", m.base));
        let modules: Vec<String> = map.modules.iter().map(|m| format!("{:#x}", m.base)).collect();
        let written = message([
            ("path", file.path.to_string_lossy().into()),
            ("address", inside.into()),
            ("modules", modules.into()),
        ]);
        let answer = message([
            ("files", vec![Value::Object(written)].into()),
            ("unsure", unsure.into()),
            ("per_store", per_store.into()),
            ("notes", map.notes.clone().into()),
        ]);
        let content = content(&file);
        self.symbols = Some(Written { path: file.path, content, answer: answer.clone() });
        Ok(answer)
    }

    fn list(&mut self, m: &Message) -> Answer {
        let count = wanted_number(m, "count")?.unwrap_or(10).clamp(1, 1000);
        let place = self.place(m)?;
        let frame = place.wasm()?.clone();
        let module = frame.wasm.as_ref().and_then(|w| w.module_index).and_then(|i| usize::try_from(i).ok());
        let function = frame.function.as_ref().and_then(|f| f.local_index);
        let (Some(module), Some(function)) = (module, function) else {
            return Err(Failure::not_found("the place in the Wasm function is not known"));
        };
        let s = self.stopped()?;
        let Some(wasm) = s.provider.runtime().wasm_file(module) else {
            let name = frame.module.as_deref().unwrap_or("the module").to_string();
            return Err(Failure::not_found(format!("the .wasm file of {name} is not known"))
                .hint("name it with wasm files: set wasm files FILE.wasm in gdb, wasm set files FILE.wasm in lldb"));
        };
        // Some runtimes keep the offsets of operators and not their numbers. In a component, the offsets count from
        // the component's start.
        let of_offset = || {
            let at = frame.wasm.as_ref().filter(|w| w.op.is_some())?.offset?;
            let body = s.provider.runtime().body_offset(module, function)?;
            let at = wasm.body_offset(function)?.checked_add(at.0.checked_sub(body)?)?;
            Some(wasm.operators(function)?.binary_search(&at).ok()? as u64)
        };
        // A frame that is behind an operator goes on at the next one.
        let behind = |w: &WasmPosition| w.op_position == OpPosition::After;
        let numbered = || frame.wasm.as_ref().and_then(|w| Some(w.op_index?.saturating_add(behind(w).into())));
        let Some(op) = numbered().or_else(of_offset) else {
            return Err(Failure::not_found("the place in the Wasm function is not known"));
        };
        let first = op.saturating_sub(count / 2);
        let mut text = String::new();
        if let Some(f) = frame.wasm.as_ref().filter(|w| w.file.is_some()) {
            let line = f.line.map(|n| format!(":{n}")).unwrap_or_default();
            text += &format!("{}{line}\n", text::clean(f.file.as_deref().unwrap_or_default()));
        }
        for n in first..first.saturating_add(count) {
            let Some(operator) = wasm.operator(function, n) else { break };
            let mark = if n == op { "=>" } else { "  " };
            text += &format!("{mark} {n:>6}  +{:#x}  {}\n", operator.offset, text::clean(&operator.text));
        }
        Ok(message([("text", text.into())]))
    }
}

fn content(file: &SymbolFile) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&file.bytes, &file.texts).hash(&mut hasher);
    hasher.finish()
}

struct Linear {
    bytes: Vec<u8>,
    base: u64,
    size: u64,
}

fn instance(place: &ChosenFrame) -> Result<(usize, u64), Failure> {
    let frame = place.wasm()?;
    let module = frame.wasm.as_ref().and_then(|w| w.module_index).and_then(|i| usize::try_from(i).ok());
    match (module, frame.instance) {
        (Some(module), Some(instance)) => Ok((module, instance.0)),
        _ => Err(Failure::not_found("the instance of this frame is not known")),
    }
}

fn slot(
    values: &Option<Vec<crate::report::Value>>,
    why: &Option<Why>,
    n: u32,
    what: &str,
) -> Result<crate::report::Value, Failure> {
    let Some(values) = values else {
        let why = why.as_ref().map_or("not known".to_string(), ToString::to_string);
        return Err(Failure::not_found(format!("the {what}s are not known here: {why}")));
    };
    let missing = || Failure::not_found(format!("there is no {what} {n}: this frame has {}", values.len()));
    values.get(n as usize).cloned().ok_or_else(missing)
}

/// The address in a linear memory that a local or operand holds. If the type of the value is not known, `wide` says
/// whether the address has 64 bits.
fn address_in(value: &crate::report::Value, wide: bool) -> Result<u64, Failure> {
    let wide = match value.ty {
        Some(ValType::I64) => true,
        Some(ValType::I32) => false,
        None => wide,
        Some(other) => return Err(Failure::not_found(format!("the address is no integer, it is of type {other}"))),
    };
    let bits = value.bits.ok_or_else(|| {
        let why = value.why.as_ref().map_or("no value".to_string(), ToString::to_string);
        Failure::not_found(format!("the address is not known: {why}"))
    })?;
    // The upper half of an i32 is junk.
    Ok(if wide { bits.0 as u64 } else { u64::from(bits.0 as u32) })
}

fn frame_answer(place: &ChosenFrame, m: &Message) -> Answer {
    let mut frame = place.frame()?.clone();
    let (locals, stack) = (flag(m, "locals"), flag(m, "stack"));
    if !locals {
        (frame.locals, frame.locals_why) = (None, None);
    }
    if !stack {
        (frame.stack, frame.stack_why) = (None, None);
    }
    if (locals || stack) && frame.kind != FrameKind::Wasm {
        place.wasm()?;
    }
    let options = TextOptions { brief: !(locals || stack), ..text_options(m) };
    let text = text::render_frame(&place.report, &frame, options);
    Ok(message([
        ("index", frame.index.into()),
        ("pc", to_json(&frame.pc)?),
        ("frame", to_json(&frame)?),
        ("text", text.into()),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reports_and_memory_have_an_end() {
        let lent = [
            json!({"reply": 1, "maps": "10000-11000 r--p 0 0 0\n", "threads": [{"tid": 7}]}),
            json!({"reply": 2, "registers": [{"rip": 16, "rsp": 16}]}),
        ];
        let input = lent.map(|reply| reply.to_string() + "\n").concat();
        let wire = Wire::new(Box::new(std::io::Cursor::new(input)), Box::new(std::io::sink()));
        let mut requests = Requests::new(Rc::new(wire));
        for limit in 0..=limits::MAX_REPORTS {
            let asked = Asked { threads: Vec::new(), limit: Some(limit), verbose: false };
            assert_eq!(requests.report(asked).unwrap().threads.len(), 1);
            assert!(requests.stopped().unwrap().reports.len() <= limits::MAX_REPORTS);
        }
        for (length, too_many) in [(limits::MAX_SHOWN_MEMORY, false), (limits::MAX_SHOWN_MEMORY + 1, true)] {
            let asked = message([("op", "memory".into()), ("address", 0.into()), ("length", length.into())]);
            let why = requests.answer(&asked).unwrap_err().json()["message"].to_string();
            assert_eq!(why.contains("are too many"), too_many, "{why}");
        }
    }
}
