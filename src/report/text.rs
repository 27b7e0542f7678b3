//! The text form of a report: a head, then every thread with its youngest frame first.

use super::escape::escaped;
pub use super::escape::{clean, clean_message};
use super::reasons::{OfModule, Reasons};
use super::{
    EndKind, Frame, FrameKind, Function, Module, OpPosition, Place, Report, Runtime, Thread, Trust, Value, Variable,
    WasmPosition, fold, header, machinery, names, paths,
};
use crate::arch::Machine;
use crate::runtime::{UNRECORDED, UNTRACKED, Why};
use anstyle::{AnsiColor, Style};
use std::fmt;
use std::io::{self, Write};
use std::ops::Range;

/// Width in columns at which lists of values are wrapped. Lines of frames are never wrapped, because people search
/// them with grep.
const WIDTH: usize = 120;

/// Width in columns beyond which generic parameters in the name of a function are cut.
const NAME_WIDTH: usize = 100;

/// How a report is printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextOptions {
    /// Leaves out locals, operand stacks and registers.
    pub brief: bool,
    /// Prints only Wasm frames, with the numbers that they have among all frames.
    pub wasm_only: bool,
    /// Prints with ANSI colours.
    pub color: bool,
    /// Also prints how each frame was found, its instance, and the checks of modules.
    pub verbose: bool,
    /// Prints frames that come again and again only once, and says how often they come.
    pub fold: bool,
    /// Prints every native frame. Without it, frames of Rust's runtime, of executors and of the C library's start that
    /// stand in a row have one line; `verbose` prints them too.
    pub all: bool,
    /// Prints paths of source files in full, also those of packages and of Rust's library.
    pub full_paths: bool,
    /// Prints names of functions with all their generic parameters, however long they are.
    pub full_names: bool,
    /// What a reader types to see the frames that have one line together. That line says it.
    pub how_to_see_all: Option<&'static str>,
}

const HEADER: Style = Style::new().bold();
const WASM: Style = AnsiColor::Cyan.on_default().bold();
const NATIVE: Style = AnsiColor::Green.on_default();
const DIM: Style = Style::new().dimmed();
const BAD: Style = AnsiColor::Red.on_default();

/// Writes `report` to `out`.
pub fn write(report: &Report, options: TextOptions, out: &mut dyn Write) -> io::Result<()> {
    Text::new(report, options, out).report()
}

impl Report {
    /// The report as text for people.
    pub fn to_text(&self, options: TextOptions) -> String {
        let mut out = Vec::new();
        // Writing to memory cannot fail.
        let _ = write(self, options, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// The text above the threads: target, modules and notes.
pub fn render_head(report: &Report, options: TextOptions) -> String {
    in_memory(report, options, |text| text.head())
}

/// The text of the threads of `report`, as it stands in the text of the whole report. What that says under a module,
/// notes say here.
#[cfg(feature = "cli")]
pub fn render_threads(report: &Report, options: TextOptions) -> String {
    in_memory(report, options, |text| {
        text.reasons_as_notes()?;
        text.threads(false)
    })
}

/// The text of one frame of `report`, which says everything itself: also that a list of values is empty, and reasons that
/// other frames share.
#[cfg(feature = "cli")]
pub fn render_frame(report: &Report, frame: &Frame, options: TextOptions) -> String {
    let digits = frame.index.unwrap_or(0).to_string().len();
    in_memory(report, options, |text| {
        text.alone = true;
        text.frame(frame, (digits + 1).max(3))
    })
}

fn in_memory(report: &Report, options: TextOptions, write: impl FnOnce(&mut Text<'_>) -> io::Result<()>) -> String {
    let mut out = Vec::new();
    // Writing to memory cannot fail.
    let _ = write(&mut Text::new(report, options, &mut out));
    String::from_utf8_lossy(&out).into_owned()
}

struct Text<'a> {
    report: &'a Report,
    options: TextOptions,
    /// What is said once under a module instead of at each of its frames.
    reasons: Reasons<'a>,
    /// Whether one frame is all that is printed.
    alone: bool,
    out: &'a mut dyn Write,
}

impl<'a> Text<'a> {
    fn new(report: &'a Report, options: TextOptions, out: &'a mut dyn Write) -> Text<'a> {
        Text { report, options, reasons: Reasons::of(report, !options.brief), alone: false, out }
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.options.color { format!("{style}{text}{style:#}") } else { text.to_string() }
    }

    fn report(&mut self) -> io::Result<()> {
        self.head()?;
        self.threads(true)?;
        if self.report.threads.is_empty() {
            writeln!(self.out, "\n{}", self.paint(BAD, "no threads"))?;
        }
        Ok(())
    }

    /// Writes the threads with empty lines between them, and before the first one if there is something above it. Threads
    /// that take one line each stand together.
    fn threads(&mut self, below_something: bool) -> io::Result<()> {
        let report = self.report;
        let mut last_is_short = None;
        for thread in &report.threads {
            let is_short = self.is_short(thread);
            if last_is_short.map_or(below_something, |last| !(last && is_short)) {
                writeln!(self.out)?;
            }
            self.thread(thread)?;
            last_is_short = Some(is_short);
        }
        Ok(())
    }

    /// Writes what would stand under the modules.
    #[cfg(feature = "cli")]
    fn reasons_as_notes(&mut self) -> io::Result<()> {
        let modules: Vec<_> = self.reasons.modules().collect();
        for (index, of) in modules {
            let name = self.report.module(index).and_then(|(_, module)| module.name.as_deref());
            let name = clean(name.unwrap_or("a module without a name"));
            for sentence in of.sentences(&format!("frames of {name}")) {
                writeln!(self.out, "note: {}", clean_message(&sentence))?;
            }
        }
        Ok(())
    }

    fn head(&mut self) -> io::Result<()> {
        let target = &self.report.target;
        let mut line = match (&target.description, target.pid, &target.path) {
            (Some(d), _, _) => clean(d),
            (None, _, Some(p)) => format!("{} {}", target.kind.as_str(), clean(p)),
            (None, Some(pid), None) => format!("{} {pid}", target.kind.as_str()),
            (None, None, None) => target.kind.as_str().to_string(),
        };
        if let Some(e) = &target.executable {
            line += &format!(", executable {}", clean(e));
        }
        if let Some(signal) = header::signal_of(target) {
            line += &format!(", {}", clean(&signal));
        }
        writeln!(self.out, "{}", self.paint(HEADER, &line))?;
        for line in header::lines(target, self.options.verbose) {
            writeln!(self.out, "  {}", clean_message(&line))?;
        }
        if self.report.runtimes.iter().all(|r| r.modules.is_empty()) {
            writeln!(self.out, "no Wasm module found")?;
            writeln!(self.out, "note: {}", super::known_runtimes())?;
        }
        for runtime in &self.report.runtimes {
            for module in &runtime.modules {
                self.module(runtime, module)?;
            }
        }
        for engine in &self.report.engines {
            writeln!(self.out, "note: {}", clean_message(&engine.sentence()))?;
        }
        for note in &self.report.objects_problems {
            writeln!(self.out, "note: {}", clean_message(note))?;
        }
        for note in &self.report.notes {
            writeln!(self.out, "note: {}", clean_message(note))?;
        }
        Ok(())
    }

    fn module(&mut self, runtime: &Runtime, module: &Module) -> io::Result<()> {
        let mut line = runtime.name.to_string();
        if let Some(backend) = module.backend.as_deref().filter(|b| !runtime.name.as_str().contains(b)) {
            // If the name of the backend begins with that of the runtime, as one with the runtime's version does, it
            // stands for both.
            match backend.starts_with(runtime.name.as_str()) {
                true => line = clean(backend),
                false => line += &format!(" {}", clean(backend)),
            }
        }
        line += &format!(" module {}", self.paint(WASM, &clean(module.name.as_deref().unwrap_or("without a name"))));
        if let (Some(start), Some(end)) = (module.code_start, module.code_end) {
            line += &format!(" at {start}-{end}");
        }
        if let Some(n) = module.functions {
            line += &format!(", {}", super::counted(n, "function"));
        }
        let reasons = module.index.map(|index| self.reasons.module(index)).unwrap_or_default();
        let problems = || module.problem.iter().flat_map(|problem| problem.split("; "));
        // One of these lines is enough.
        let is_of_values = |problem: &str| problem == UNRECORDED || problem == UNTRACKED;
        let is_told = reasons.stack().is_some() || problems().any(is_of_values);
        if module.tracked == Some(false) && !is_told {
            line += ", operand stacks not tracked";
        }
        if !module.routes.is_empty() {
            line += &format!(", found by {}", list_of(&module.routes));
        }
        if let Some(file) = &module.wasm_file {
            line += &format!(", fits {}", clean(file));
            if let Some(compared) = &module.wasm_compared {
                line += &format!(" ({compared})");
            }
        }
        writeln!(self.out, "{line}")?;
        if self.options.verbose {
            for check in &module.checks {
                writeln!(self.out, "  confirmed: {}", clean_message(check))?;
            }
        }
        for sentence in reasons.sentences("its frames") {
            writeln!(self.out, "  {}", clean_message(&sentence))?;
        }
        let is_new = |problem: &&str| !is_of_values(problem) || reasons.stack().is_none();
        let problem = problems().filter(is_new).collect::<Vec<_>>().join("; ");
        if !problem.is_empty() {
            writeln!(self.out, "  {}", self.paint(BAD, &clean_message(&problem)))?;
        }
        Ok(())
    }

    fn is_shown(&self, frame: &Frame) -> bool {
        !self.options.wasm_only || frame.kind == FrameKind::Wasm
    }

    /// Whether a thread takes one line: only Wasm frames are wanted, and it has none.
    fn is_short(&self, thread: &Thread) -> bool {
        self.options.wasm_only && !thread.frames.iter().any(|frame| self.is_shown(frame))
    }

    fn thread(&mut self, thread: &Thread) -> io::Result<()> {
        let mut line = match thread.tid {
            Some(tid) => format!("Thread {tid}"),
            None => "Thread ?".to_string(),
        };
        if let Some(name) = &thread.name {
            line += &format!(" \"{}\"", clean(name));
        }
        if let Some(s) = thread.signal {
            line += &format!(", {}", header::signal_name(s));
        }
        if let Some(state) = header::state_of(thread) {
            line += &format!(", {}", clean(&state));
        }
        let line = self.paint(HEADER, &line);
        if self.is_short(thread) {
            let rest = self.instead_of_frames(thread);
            return writeln!(self.out, "{line}  {rest}");
        }
        writeln!(self.out, "{line}")?;
        for note in &thread.notes {
            writeln!(self.out, "  note: {}", clean_message(note))?;
        }
        let digits = thread.frames.iter().filter_map(|f| f.index).max().unwrap_or(0).to_string().len();
        let number_width = (digits + 1).max(3);
        let shown: Vec<&Frame> = thread.frames.iter().filter(|frame| self.is_shown(frame)).collect();
        let folds = !(self.options.all || self.options.verbose || self.options.wasm_only);
        let machinery = if folds { machinery::runs(&shown) } else { Vec::new() };
        let mut at = 0;
        for run in if self.options.fold { fold::runs(&shown) } else { Vec::new() } {
            let folded = run.at + run.cycle;
            self.frames(&shown, at..folded, &machinery, number_width)?;
            self.folded(&run, &shown[folded..run.end()], number_width)?;
            at = run.end();
        }
        self.frames(&shown, at..shown.len(), &machinery, number_width)?;
        let (style, text) = ended(thread);
        let hidden = self.hidden(thread, " not shown").map(|hidden| format!("; {hidden}")).unwrap_or_default();
        let indent = number_width + 2;
        writeln!(self.out, "{:indent$}-- {}", "", self.paint(style, &(text + &hidden)))
    }

    /// Writes some of the frames that are shown. Those that are machinery and stand in a row have one line.
    fn frames(
        &mut self,
        shown: &[&Frame],
        range: Range<usize>,
        machinery: &[machinery::Run],
        number_width: usize,
    ) -> io::Result<()> {
        let mut at = range.start;
        let from = machinery.partition_point(|run| run.frames.end <= range.start);
        for run in machinery[from..].iter().take_while(|run| run.frames.start < range.end) {
            // A row may reach into frames that stand for repeated ones.
            let part = run.frames.start.max(range.start)..run.frames.end.min(range.end);
            if part.len() < 2 {
                continue;
            }
            for frame in &shown[at..part.start] {
                self.frame(frame, number_width)?;
            }
            let numbers = format!("{}-{}", number(shown[part.start]), number(shown[part.end - 1]));
            let count = super::counted(part.len() as u64, "frame");
            let how = self.options.how_to_see_all.map(|how| format!(" ({how} shows them)")).unwrap_or_default();
            let text = format!("... {count} of {}{how}", run.owners(part.clone()));
            // The first number stands under those of frames.
            let shift = number_width.saturating_sub(number(shown[part.start]).len());
            let unstopped = if run.unstopped { UNSTOPPED } else { "" };
            writeln!(self.out, "{:shift$}{numbers}  {}{unstopped}", "", self.paint(DIM, &text))?;
            at = part.end;
        }
        for frame in &shown[at..range.end] {
            self.frame(frame, number_width)?;
        }
        Ok(())
    }

    /// What is said of frames that are not shown: how many they are, and that others may be missing. `suffix` stands behind
    /// the number.
    fn hidden(&self, thread: &Thread, suffix: &str) -> Option<String> {
        let hidden = thread.frames.iter().filter(|frame| !self.is_shown(frame));
        let (count, unsure) = hidden.fold((0, 0), |(n, unsure), f| (n + 1, unsure + u64::from(!f.is_sure())));
        let unsure = match unsure {
            0 => String::new(),
            n => format!(", {n} of them found without unwind information: others may be missing"),
        };
        (count != 0).then(|| super::counted(count, "other frame") + suffix + &unsure)
    }

    /// What stands behind the name of a thread that has no Wasm frames where only those are wanted.
    fn instead_of_frames(&self, thread: &Thread) -> String {
        let (style, end) = ended(thread);
        let end = (end != BOTTOM).then(|| self.paint(style, &end));
        let notes = thread.notes.iter().map(|note| clean_message(note));
        let reasons: Vec<String> = self.hidden(thread, "").into_iter().chain(end).chain(notes).collect();
        match reasons.is_empty() {
            true => "no Wasm frames".to_string(),
            false => format!("no Wasm frames ({})", reasons.join("; ")),
        }
    }

    /// Writes one line that stands for `frames`, which repeat the cycle that was just printed.
    fn folded(&mut self, run: &fold::Run, frames: &[&Frame], number_width: usize) -> io::Result<()> {
        let of = |frame: Option<&&Frame>| frame.map_or("#?".to_string(), |frame| number(frame));
        let (first, last) = (of(frames.first()), of(frames.last()));
        let above = match run.cycle {
            1 => "the frame above".to_string(),
            n => format!("the {n} frames above"),
        };
        let text = format!("to {last}: {above} {} times more", run.times - 1);
        writeln!(self.out, "{first:>number_width$}  {}", self.paint(DIM, &text))
    }

    fn frame(&mut self, frame: &Frame, number_width: usize) -> io::Result<()> {
        let number = number(frame);
        let pc = frame.pc.map_or("??????????????????".to_string(), |pc| format!("{:#018x}", pc.0));
        let mut line = format!("{number:>number_width$}  {}", self.paint(DIM, &pc));
        match frame.kind {
            FrameKind::Wasm => line += &self.wasm_frame(frame),
            _ => line += &self.native_frame(frame),
        }
        if self.options.verbose {
            if let Some(trust) = frame.trust {
                line += &format!("  ({})", trust.as_str());
            }
        } else if frame.trust == Some(Trust::FramePointer) {
            line += "  (found by frame pointer)";
        } else if frame.trust == Some(Trust::Scan) {
            line += "  (found by search)";
        }
        if frame.unstopped {
            line += UNSTOPPED;
        }
        writeln!(self.out, "{line}")?;
        let indent = number_width + 4;
        let reasons = if self.alone { OfModule::default() } else { self.reasons.frame(frame) };
        for note in frame.notes.iter().filter(|note| !reasons.says(note)) {
            writeln!(self.out, "{:indent$}note: {}", "", clean_message(note))?;
        }
        if self.options.brief {
            return Ok(());
        }
        if self.options.verbose {
            if let Some(i) = frame.instance {
                writeln!(self.out, "{:indent$}instance {i}", "")?;
            }
            if let Some(registers) = &frame.registers {
                let mut items: Vec<String> = Vec::new();
                let known = || Machine::ALL.iter().flat_map(|machine| machine.registers());
                for name in known().map(|reg| reg.name()) {
                    if let Some(v) = registers.get(name) {
                        items.push(format!("{name} {v}"));
                    }
                }
                for (name, v) in registers.iter().filter(|(n, _)| known().all(|reg| reg.name() != *n)) {
                    items.push(format!("{} {v}", clean(name)));
                }
                self.list(indent, "regs", &items)?;
            }
        }
        self.locals(indent, frame, reasons.locals())?;
        if !frame.variables.is_empty() {
            let items: Vec<String> = frame.variables.iter().map(variable_text).collect();
            self.list(indent, "vars", &items)?;
        }
        match &frame.stack {
            Some(values) => self.values(indent, "stack", values),
            None => self.missing(indent, "stack", frame.stack_why.as_ref(), reasons.stack()),
        }
    }

    /// Writes parameters and other locals apart, if it is known where the others begin.
    fn locals(&mut self, indent: usize, frame: &Frame, of_module: Option<&Why>) -> io::Result<()> {
        let Some(values) = &frame.locals else {
            return self.missing(indent, "locals", frame.locals_why.as_ref(), of_module);
        };
        let params = frame.function.as_ref().and_then(|f| f.params).and_then(|n| usize::try_from(n).ok());
        match params.and_then(|n| values.split_at_checked(n)) {
            Some((params, locals)) if !params.is_empty() => {
                self.values(indent, "params", params)?;
                if locals.is_empty() { Ok(()) } else { self.values(indent, "locals", locals) }
            }
            _ => self.values(indent, "locals", values),
        }
    }

    fn wasm_frame(&self, frame: &Frame) -> String {
        let function = frame.function.as_ref();
        let name = match function {
            Some(Function { name: Some(n), .. }) => self.name(n),
            Some(Function { index: Some(i), .. }) => format!("wasm-function[{i}]"),
            _ => "a Wasm function".to_string(),
        };
        let mut line = format!(" {} {}", self.paint(WASM, "*"), self.paint(WASM, &name));
        if function.is_some_and(|f| f.inlined == Some(true)) {
            line += " (inlined)";
        }
        let (file, line_number) = match (&frame.wasm, function) {
            (Some(WasmPosition { file: Some(f), line, .. }), _) => (Some(f), *line),
            (_, Some(Function { file: Some(f), line, .. })) => (Some(f), *line),
            _ => (None, None),
        };
        if let Some(file) = file {
            line += &format!(" at {}", self.path(file));
            if let Some(n) = line_number {
                line += &format!(":{n}");
            }
        }
        let mut position = vec![match (function.and_then(|f| f.index), function.and_then(|f| f.local_index)) {
            (Some(i), _) => format!("{} func {i}", clean(frame.module.as_deref().unwrap_or("?"))),
            (None, Some(i)) => format!("{} defined func {i}", clean(frame.module.as_deref().unwrap_or("?"))),
            (None, None) => clean(frame.module.as_deref().unwrap_or("module not known")),
        }];
        let mut backend = None;
        let mut bare_offset = String::new();
        if let Some(wasm) = &frame.wasm {
            match (wasm.op_position, wasm.op_index) {
                (OpPosition::At, Some(n)) => {
                    let op = wasm.op.as_ref().map(|op| format!(" {}", clean(op))).unwrap_or_default();
                    position.push(format!("op {n}{op}"));
                }
                (OpPosition::At, None) => position.extend(wasm.op.as_deref().map(clean)),
                (OpPosition::After, Some(n)) => position.push(format!("after op {n}")),
                (OpPosition::Header, _) => position.push("header".to_string()),
                _ => position.push("op not known".to_string()),
            }
            match wasm.offset {
                Some(offset) if position.len() == 1 => bare_offset = format!(" +{offset}"),
                Some(offset) => position.push(format!("+{offset}")),
                None => {}
            }
            let module = wasm.module_index.and_then(|i| self.report.module(i));
            backend = module.and_then(|(_, m)| m.backend.as_deref());
        }
        line += &format!("  [{}{bare_offset}]", position.join(", "));
        if let Some(backend) = backend {
            line += &format!("  {}", self.paint(DIM, &clean(backend)));
        }
        line
    }

    fn native_frame(&self, frame: &Frame) -> String {
        let function = frame.function.as_ref();
        let mut line = String::from(" ");
        let name = function.and_then(|f| f.name.as_deref());
        line += &match (name, frame.kind) {
            (Some(n), _) => self.paint(NATIVE, &self.name(n)),
            (None, FrameKind::Trampoline) => "trampoline".to_string(),
            (None, _) => "??".to_string(),
        };
        if let Some(f) = function {
            let inlined = f.inlined == Some(true);
            if inlined {
                line += " (inlined)";
            }
            if let Some(file) = &f.file {
                line += &format!(" at {}", self.path(file));
                if let Some(n) = f.line {
                    line += &format!(":{n}");
                }
                return line;
            }
            if let Some(offset) = f.offset.filter(|_| name.is_some() && !inlined) {
                line += &format!("+{offset}");
            }
        }
        match (&frame.module, frame.module_offset) {
            (Some(m), Some(o)) if name.is_none() => line += &format!(" in {}+{o}", clean(m)),
            (Some(m), _) => line += &format!(" in {}", clean(m)),
            (None, _) if name.is_none() && frame.kind != FrameKind::Trampoline => line += " in no known module",
            (None, _) => {}
        }
        line
    }

    /// The name of a function, short enough to be read.
    fn name(&self, name: &str) -> String {
        match self.options.full_names {
            true => escaped(name).into_owned(),
            false => clean(&names::short(name, NAME_WIDTH)),
        }
    }

    /// The path of a source file, without what only says where a machine keeps the sources of others.
    fn path(&self, path: &str) -> String {
        match self.options.full_paths {
            true => escaped(path).into_owned(),
            false => clean(paths::short(path)),
        }
    }

    /// Writes a list of values. One that is empty takes no line among other frames.
    fn values(&mut self, indent: usize, label: &str, values: &[Value]) -> io::Result<()> {
        if values.is_empty() {
            return if self.alone { self.list(indent, label, &["none".to_string()]) } else { Ok(()) };
        }
        let items: Vec<String> = values.iter().map(value_text).collect();
        self.list(indent, label, &items)
    }

    /// Writes why there is no list of values, unless that stands under the module already.
    fn missing(&mut self, indent: usize, label: &str, why: Option<&Why>, of_module: Option<&Why>) -> io::Result<()> {
        match why {
            Some(why) if of_module != Some(why) => {
                self.list(indent, label, &[format!("not known: {}", clean(&why.to_string()))])
            }
            _ => Ok(()),
        }
    }

    /// Writes items behind a label, three spaces apart, and continues them under the first item. An item is broken
    /// only if it alone is longer than a line.
    fn list(&mut self, indent: usize, label: &str, items: &[String]) -> io::Result<()> {
        let start = indent + 8;
        let room = WIDTH - start;
        let mut lines: Vec<String> = vec![String::new()];
        let mut used = 0;
        for item in items {
            let len = item.chars().count();
            if used != 0 && used + 3 + len > room {
                lines.push(String::new());
                used = 0;
            }
            if used != 0 {
                used += 3;
                if let Some(line) = lines.last_mut() {
                    line.push_str("   ");
                }
            }
            if len <= room {
                if let Some(line) = lines.last_mut() {
                    line.push_str(item);
                }
                used += len;
                continue;
            }
            for word in item.split(' ') {
                let len = word.chars().count();
                if used != 0 && used + 1 + len > room {
                    lines.push("  ".to_string());
                    used = 2;
                } else if used != 0 {
                    used += 1;
                    if let Some(line) = lines.last_mut() {
                        line.push(' ');
                    }
                }
                if let Some(line) = lines.last_mut() {
                    line.push_str(word);
                }
                used += len;
            }
        }
        let label = self.paint(DIM, &format!("{label:<8}"));
        for (i, line) in lines.iter().enumerate() {
            if i == 0 {
                writeln!(self.out, "{:indent$}{label}{line}", "")?;
            } else {
                writeln!(self.out, "{:start$}{line}", "")?;
            }
        }
        Ok(())
    }
}

/// The number of a frame.
fn number(frame: &Frame) -> String {
    frame.index.map_or("#?".to_string(), |i| format!("#{i}"))
}

/// What stands behind a frame that was read without stopping its thread.
const UNSTOPPED: &str = "  (not stopped)";

const BOTTOM: &str = "bottom of the stack";

/// How a thread ended, and the style of that.
fn ended(thread: &Thread) -> (Style, String) {
    let why = thread.end.as_ref().and_then(|e| e.why.as_deref()).map(clean_message);
    let with_why = |text: &str| match &why {
        Some(w) => format!("{text}: {w}"),
        None => text.to_string(),
    };
    match thread.end.as_ref().map(|e| e.kind) {
        Some(EndKind::Bottom) => (DIM, BOTTOM.to_string()),
        Some(EndKind::Limit) => (DIM, format!("more frames not asked for ({})", why.as_deref().unwrap_or("limit"))),
        Some(EndKind::Lost) => (BAD, with_why("lost")),
        Some(EndKind::Cycle) => (BAD, with_why("damaged stack")),
        Some(EndKind::NoRegisters) => (BAD, with_why("no registers")),
        Some(EndKind::NotKnown) => (BAD, with_why("not known")),
        None => (BAD, "end of the stack not known".to_string()),
    }
}

/// Joins words with commas.
pub fn list_of(words: &[impl fmt::Display]) -> String {
    words.iter().map(|w| w.to_string()).collect::<Vec<_>>().join(", ")
}

fn value_text(v: &Value) -> String {
    let mut text = v.index.map_or("?".to_string(), |i| i.to_string());
    if let Some(ty) = v.ty {
        text += &format!(" {ty}");
    }
    match (&v.value, v.bits) {
        (Some(value), _) => text += &format!(" {}", clean(value)),
        (None, Some(bits)) => text += &format!(" {bits}"),
        (None, None) => text += " ?",
    }
    if let Some(place) = &v.place {
        // Where a register was saved is only in JSON.
        text += &match place {
            Place::Register { reg, .. } => format!(" ({reg})"),
            Place::Memory { .. } | Place::Address(_) => format!(" {place}"),
            Place::Constant | Place::Other(_) => format!(" ({})", clean(&place.to_string())),
        };
    }
    if let Some(why) = &v.why {
        text += &format!(" ({})", clean(&why.to_string()));
    }
    text
}

fn variable_text(v: &Variable) -> String {
    let mut text = clean(v.name.as_deref().unwrap_or("?"));
    if let Some(ty) = &v.ty {
        text += &format!(" {}", clean(ty));
    }
    text += &format!(" {}", v.value.as_deref().map_or("?".to_string(), clean));
    if let Some(place) = &v.place {
        text += &if place.starts_with('[') { format!(" {}", clean(place)) } else { format!(" ({})", clean(place)) };
    }
    if let Some(why) = &v.why {
        text += &format!(" ({})", clean(&why.to_string()));
    }
    text
}
