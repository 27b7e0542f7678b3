//! The program `wstate`: parses the arguments, runs the command, writes the output and returns the exit code.

use crate::cli::advice::Sudo;
use crate::cli::doctor::{self, Doctor};
use crate::cli::messages::{self, Kind};
use crate::cli::output::Output;
use crate::cli::{
    self, Cli, Command, Expected, Form, Format, Refused, Show, Stacks, Symbols, Usage, image_text, packaging, plugin,
    progress, sandbox,
};
use crate::error::Error;
use crate::process::files::{self, helper};
use crate::report::contents::{self, Lists};
use crate::report::symbol_file::{SymbolFile, TextNames};
use crate::report::timing::{Timing, milliseconds};
use crate::report::wasm_coredump::Compat;
use crate::report::{Completeness, hexdump, json, text};
use crate::server;
use crate::session::{ImportedGlobal, Options, Resumable, Session, SignalsLater, Source};
use nix::sys::signal::{SigSet, Signal};
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

pub use crate::cli::sandbox::Allocator;

const PARTIAL: u8 = 1;
const FATAL: u8 = 2;
const USAGE: u8 = 64;

/// Why there is no result.
enum Failure {
    /// The command line asks for something that makes no sense.
    Usage(String),
    /// Any other error.
    Error(Error),
}

impl From<Usage> for Failure {
    fn from(Usage(why): Usage) -> Failure {
        Failure::Usage(why)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Error(e)
    }
}

/// Runs the program with the arguments of this process. The exit codes are documented in the README
/// and in `docs/reading-a-report.md`.
pub fn main() -> ExitCode {
    // With this signal blocked, a limit of file sizes (`ulimit -f`) makes a write fail, instead of ending the program
    // in the middle of it.
    let mut file_size = SigSet::empty();
    file_size.add(Signal::SIGXFSZ);
    let _ = file_size.thread_block();
    let args: Vec<OsString> = std::env::args_os().collect();
    messages::begin(&args);
    let usage = |why: &str| {
        messages::usage(&mut Cli::concerned(&args), why);
        USAGE
    };
    let cli = match Cli::read(&args) {
        Ok(cli) => cli,
        Err(Refused::Help(help)) => {
            messages::print_help(&help);
            return ExitCode::from(if help.use_stderr() { USAGE } else { 0 });
        }
        Err(Refused::Usage(Usage(why))) => return ExitCode::from(usage(&why)),
    };
    // The command without a name prints stacks too.
    if matches!(cli.command, None | Some(Command::Attach(_) | Command::Core(_))) {
        sandbox::stacks_are_asked_for();
    }
    sandbox::tell_of_abort();
    // This is done while nothing else runs yet, so that the helper has little to copy.
    helper::enable();
    let code = run(cli).unwrap_or_else(|failure| match failure {
        Failure::Usage(why) => usage(&why),
        Failure::Error(e) => tell(&e),
    });
    helper::end();
    ExitCode::from(code)
}

/// Prints why there is no result and returns the exit code.
fn tell(e: &Error) -> u8 {
    messages::print(Kind::Error, e);
    if let Some(hint) = Sudo::for_this_program().hint(e) {
        messages::print(Kind::Hint, hint);
    }
    FATAL
}

fn run(cli: Cli) -> Result<u8, Failure> {
    // Texts and files of the plugins need little; all else looks at a target.
    if !matches!(cli.command, Some(Command::Schema(_) | Command::Plugin(_) | Command::Completions(_) | Command::Man(_)))
    {
        sandbox::need_room();
    }
    match cli.command {
        Some(Command::Attach(stacks)) => show(&stacks, Expected::Either),
        Some(Command::Core(stacks)) => show(&stacks, Expected::Core),
        Some(Command::Symbols(s)) => symbols(&s),
        Some(Command::Modules(m)) => modules(&m),
        Some(Command::Memory(m)) => memory(&m),
        Some(Command::Export(e)) => export(&e),
        Some(Command::Snapshot(s)) => snapshot(&s),
        Some(Command::Image(i)) => image(&i),
        Some(Command::Restore(r)) => restore(&r),
        Some(Command::Doctor(d)) => examine(&d),
        Some(Command::Serve(_)) => {
            server::serve(Box::new(io::stdin().lock()), Box::new(io::stdout().lock()));
            Ok(0)
        }
        Some(Command::Plugin(p)) => {
            let lines = plugin::run(p.action, p.debugger, p.init_file()?)?;
            Output::stdout().write(lines.as_bytes())?;
            Ok(0)
        }
        Some(Command::Schema(s)) => {
            Output::file_or_stdout(s.to.output.as_deref())?.write(schema(s.document).as_bytes())?;
            Ok(0)
        }
        Some(Command::Completions(c)) => {
            let text = packaging::completions(c.shell);
            Output::file_or_stdout(c.to.output.as_deref())?.write(text.as_bytes())?;
            Ok(0)
        }
        Some(Command::Man(m)) => {
            let told = packaging::write_pages(&m.directory)?;
            Output::stdout().write(told.as_bytes())?;
            Ok(0)
        }
        None => {
            cli.check_word()?;
            show(&cli.stacks, Expected::Either)
        }
    }
}

/// The JSON schema of a document.
fn schema(document: cli::Document) -> String {
    match document {
        cli::Document::Report => json::schema(),
        cli::Document::Modules => json::schema_of::<contents::Contents>(),
        cli::Document::Doctor => json::schema_of::<Doctor>(),
        cli::Document::Image => json::schema_of::<image_text::Document>(),
        cli::Document::Difference => json::schema_of::<image_text::Difference>(),
        cli::Document::Imports => json::schema_of::<Vec<ImportedGlobal>>(),
    }
}

/// Begins a session that tells the user on standard error how far it is.
fn open(options: &Options) -> Result<Session<'static>, Error> {
    Ok(Session::open(options)?.with_progress(progress::stderr(options.verbose)))
}

/// What stops an attach or makes a core useless.
fn examine(command: &cli::Doctor) -> Result<u8, Failure> {
    let options = command.options()?;
    let (source, inputs) = match &options {
        Some(options) => (Some(&options.source), options.named_files().collect()),
        None => (None, Vec::new()),
    };
    let form = &command.form;
    let confine = source.is_some_and(|s| matches!(s, Source::Core { .. })) && !command.confinement.no_sandbox;
    if let Some(options) = &options {
        no_servers_in_sandbox(options, confine)?;
    }
    let work = |output: &mut Output, json_output: Option<&mut Output>| {
        let mut doctor = match options.as_ref().map(|options| (&options.source, options)) {
            None => Doctor::examine(None),
            Some((Source::Pid(pid), _)) => Doctor::examine(Some(*pid)),
            Some((Source::Core { core, .. }, options)) => Doctor::examine_core(core, &options.search_paths()),
        };
        if let Some(options) = &options
            && doctor.worst() != doctor::Status::Fail
        {
            // The only way to know what an attach finds is to do it.
            let options = Options { limit: Some(200), ..options.clone() };
            match open(&options).and_then(|session| session.stacks()) {
                Ok(outcome) => doctor.findings(&outcome.report),
                Err(e) => doctor.fail(
                    e.to_string(),
                    e.hint().unwrap_or_else(|| "look at the checks above, then try again".to_string()),
                ),
            }
        }
        doctor.plugins();
        let json = || json::document(&doctor, true);
        let text = if form.json { json() } else { doctor.text(is_colored(form)) };
        output.put(text.as_bytes())?;
        if let Some(json_output) = json_output {
            json_output.put(json().as_bytes())?;
        }
        Ok(match doctor.worst() {
            doctor::Status::Ok => 0,
            doctor::Status::Warn => PARTIAL,
            doctor::Status::Fail => FATAL,
        })
    };
    answer_in(form, &inputs, confine, command.verbose, work)
}

fn symbols(command: &Symbols) -> Result<u8, Failure> {
    let options = command.options()?;
    let output = command.output()?;
    keep_inputs(&options, Some(output))?;
    // If the output cannot be written, the user is told before a process is stopped for nothing.
    if !Output::file(output)?.is_file() {
        let why =
            "debuggers read the symbols from a file, and look for sources beside it: name a regular file with --output";
        return Err(Failure::Usage(why.to_string()));
    }
    let map = open(&options)?.code_map(command.all)?;
    let file = SymbolFile::of(&map, output, TextNames::Numbered)?;
    Output::write_files(file.files())?;
    map.notes.iter().for_each(|note| messages::print(Kind::Note, note));
    Output::stdout().write(file.commands().as_bytes())?;
    Ok(if map.notes.is_empty() { 0 } else { PARTIAL })
}

fn modules(command: &cli::Modules) -> Result<u8, Failure> {
    let (options, confine) = command.place.options(false, "wstate modules 4711")?;
    no_servers_in_sandbox(&options, confine)?;
    let lists = Lists { functions: command.functions, exports: command.exports, native: command.native };
    let form = &command.form;
    let inputs: Vec<&Path> = options.named_files().collect();
    answer_in(form, &inputs, confine, options.verbose, |output, json_output| {
        let contents = open(&options)?.modules(lists)?;
        let json = || json::document(&contents, false);
        let text = if form.json {
            json()
        } else {
            let verbose = command.place.verbose;
            let options = text::TextOptions { color: is_colored(form), verbose, ..text::TextOptions::default() };
            contents.to_text(options)
        };
        output.put(text.as_bytes())?;
        if let Some(json_output) = json_output {
            json_output.put(json().as_bytes())?;
        }
        // The list of native objects is an answer too, of a target without modules.
        let nothing = contents.contents.is_empty() && contents.objects.as_ref().is_none_or(|list| list.is_empty());
        Ok(match nothing {
            true => FATAL,
            false if contents.refused || !contents.is_complete() => PARTIAL,
            false => 0,
        })
    })
}

fn memory(command: &cli::Memory) -> Result<u8, Failure> {
    let (options, confine, range) = command.options()?;
    no_servers_in_sandbox(&options, confine)?;
    let to = command.to.output.as_deref();
    if command.raw && to.is_none() && io::stdout().is_terminal() {
        return Err(Failure::Usage("--raw writes binary data: use --output FILE or a pipe".to_string()));
    }
    keep_inputs(&options, to)?;
    let output = Output::file_or_stdout(to)?;
    answer([output], confine, options.verbose, |[output]| {
        let notes = output.put_with(|out| {
            open(&options)?.linear_memory(range, |address, bytes| {
                let written = match command.raw {
                    true => out.write_all(bytes),
                    false => out.write_all(hexdump::lines(address, bytes).as_bytes()),
                };
                written.map_err(|source| Error::Output { to: String::new(), source })
            })
        })?;
        notes.iter().for_each(|note| messages::print(Kind::Note, note));
        Ok(if notes.is_empty() { 0 } else { PARTIAL })
    })
}

fn export(command: &cli::Export) -> Result<u8, Failure> {
    let (options, confine) = command.place.options(true, "wstate export 4711 -o app.coredump")?;
    no_servers_in_sandbox(&options, confine)?;
    let cli::ExportFormat::WasmCoredump = command.format;
    let compat = command.compat.map(|cli::Compat::Wasmgdb| Compat::Wasmgdb);
    let output = command.output()?;
    keep_inputs(&options, Some(output))?;
    let output = Output::file(output)?;
    answer([output], confine, options.verbose, |[output]| {
        let notes = output.put_with(|out| open(&options)?.export_coredump(compat, out))?;
        notes.iter().for_each(|note| messages::print(Kind::Note, note));
        Ok(if notes.is_empty() { 0 } else { PARTIAL })
    })
}

/// Lets `work` fill the outputs, which get their names only if `work` has succeeded. With `confine`, this is done in
/// a process that has given up its rights.
fn answer<const N: usize>(
    mut outputs: [Output; N],
    confine: bool,
    verbose: bool,
    work: impl FnOnce(&mut [Output; N]) -> Result<u8, Error>,
) -> Result<u8, Failure> {
    let ended = if confine {
        sandbox::run(|unconfined| {
            if let Some(why) = unconfined.filter(|_| verbose) {
                messages::print(Kind::Note, format!("the file is analysed without a sandbox: {why}"));
            }
            match work(&mut outputs) {
                Ok(code) => sandbox::Ended { code, whole: true },
                Err(e) => sandbox::Ended { code: tell(&e), whole: false },
            }
        })?
    } else {
        sandbox::Ended { code: work(&mut outputs)?, whole: true }
    };
    if ended.whole {
        outputs.into_iter().try_for_each(Output::commit)?;
    }
    Ok(ended.code)
}

/// Lets `work` fill an output, and another one with JSON of the same answer, as `form` says.
fn answer_in(
    form: &Form,
    inputs: &[&Path],
    confine: bool,
    verbose: bool,
    work: impl FnOnce(&mut Output, Option<&mut Output>) -> Result<u8, Error>,
) -> Result<u8, Failure> {
    let (to, json_to) = (form.to.output.as_deref(), form.json_output.as_deref());
    keep(inputs, to)?;
    keep(inputs, json_to)?;
    if json_to.is_some() && json_to.map(place_of) == to.map(place_of) {
        return Err(same_place());
    }
    let output = Output::file_or_stdout(to)?;
    let Some(json_to) = json_to else { return answer([output], confine, verbose, |[output]| work(output, None)) };
    let json_output = Output::file(json_to)?;
    if output.is_standard_output() && json_output.is_standard_output() {
        return Err(same_place());
    }
    answer([output, json_output], confine, verbose, |[output, json_output]| work(output, Some(json_output)))
}

/// A path in the form in which two paths of one file are the same, whether there is such a file or not.
fn place_of(path: &Path) -> PathBuf {
    let beside = |parent: &Path| {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        Some(parent.canonicalize().ok()?.join(path.file_name()?))
    };
    path.canonicalize().ok().or_else(|| path.parent().and_then(beside)).unwrap_or_else(|| path.to_path_buf())
}

fn same_place() -> Failure {
    Failure::Usage("text and JSON would go to the same place: give --json-output a file of its own".to_string())
}

/// Whether the text that `form` asks for has colour.
fn is_colored(form: &Form) -> bool {
    messages::is_colored(form.to.output.is_some())
}

fn snapshot(command: &cli::Snapshot) -> Result<u8, Failure> {
    let (options, wanted, confine) = command.options()?;
    no_servers_in_sandbox(&options, confine)?;
    let path = command.output()?;
    keep_inputs(&options, Some(path))?;
    // This is checked before the output is opened, because opening a pipe with a name waits for its reader.
    if command.with_imports && path.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return Err(beside_nothing());
    }
    let mut image = Output::file(path)?;
    if image.is_terminal() {
        return Err(Failure::Usage(
            "an image is binary data: give --output a file or a pipe, not a terminal".to_string(),
        ));
    }
    if command.with_imports && image.is_standard_output() {
        return Err(beside_nothing());
    }
    if let Source::Pid(_) = options.source {
        // The process is stopped until all is copied, and must not wait for somebody who reads the copy slowly.
        image.spool()?;
    }
    let imports = command.imports_path(path).map(|path| Output::file(&path)).transpose()?;
    let beside_image = !image.is_standard_output();
    let work = |image: &mut Output, imports: Option<&mut Output>| {
        let done = image.put_sparse_with(|out| open(&options)?.snapshot(wanted, out))?;
        if let Some(imports) = imports {
            imports.put(json::document(&done.imported_globals, true).as_bytes())?;
        }
        let text = image_text::snapshot_text(&done);
        match beside_image {
            true => Output::stdout().put(messages::paint(&text, messages::is_colored(false)).as_bytes())?,
            false => {
                let text = messages::paint(&text, messages::is_error_colored());
                drop(io::stderr().lock().write_all(text.as_bytes()));
            }
        }
        Ok(if matches!(done.resumable, Some(Resumable::No { .. }) | None) { PARTIAL } else { 0 })
    };
    let verbose = options.verbose;
    match imports {
        Some(imports) => answer([imports, image], confine, verbose, |[imports, image]| work(image, Some(imports))),
        None => answer([image], confine, verbose, |[image]| work(image, None)),
    }
}

fn beside_nothing() -> Failure {
    Failure::Usage(
        "--with-imports writes a second file beside --output, so --output must be a regular file: name one".to_string(),
    )
}

/// Refuses to ask servers from the sandbox, which has no network.
fn no_servers_in_sandbox(options: &Options, confine: bool) -> Result<(), Failure> {
    match options.debuginfod && confine {
        true => Err(Failure::Usage(
            "--debuginfod asks servers, and the sandbox in which cores are analysed has no network: add --no-sandbox if you \
             trust the core, or fetch the files before (debuginfod-find) and name their directory with --debug-dir"
                .to_string(),
        )),
        false => Ok(()),
    }
}

/// Refuses an output that would take the place of a file that is read: a customer's core may be the only one.
fn keep_inputs(options: &Options, output: Option<&Path>) -> Result<(), Failure> {
    keep(&options.named_files().collect::<Vec<_>>(), output)
}

/// The same for files that are read, by their paths.
fn keep(inputs: &[&Path], output: Option<&Path>) -> Result<(), Failure> {
    let of = |path: &Path| path.metadata().ok().filter(|m| m.is_file()).map(|m| (m.dev(), m.ino()));
    let Some(place) = output.and_then(of) else { return Ok(()) };
    match inputs.iter().find(|input| files::same_file(input) == Some(place)) {
        Some(input) => Err(Failure::Usage(format!(
            "the output would replace {}, which is read; name another file",
            input.display()
        ))),
        None => Ok(()),
    }
}

fn restore(command: &cli::Restore) -> Result<u8, Failure> {
    let (pid, options, wanted) = command.options()?;
    let signals = SignalsLater::default();
    let told = match open(&options).and_then(|session| session.restore(&wanted, &signals)) {
        Ok(done) => {
            let text = image_text::restored_text(pid, &done);
            // The process goes on from the image, whether this can be told or not.
            let painted = messages::paint(&text, messages::is_colored(false));
            if let Err(e) = Output::stdout().write(painted.as_bytes()) {
                messages::print(Kind::Error, e);
                let text = messages::paint(&text, messages::is_error_colored());
                let _ = io::stderr().lock().write_all(text.as_bytes());
            }
            if done.steps > 0 { 0 } else { PARTIAL }
        }
        Err(e) => tell(&e),
    };
    // A signal that has come meanwhile ends wstate here, when everything is said.
    drop(signals);
    Ok(told)
}

fn image(command: &cli::Image) -> Result<u8, Failure> {
    let inputs: Vec<&Path> = std::iter::once(&command.file).chain(&command.diff).map(PathBuf::as_path).collect();
    let to = command.to.output.as_deref();
    keep(&inputs, to)?;
    answer([Output::file_or_stdout(to)?], !command.no_sandbox, command.verbose, |[output]| {
        let shown = image_text::show(command)?;
        output.put(shown.text.as_bytes())?;
        if let Some(hint) = shown.hint {
            messages::print(Kind::Hint, hint);
        }
        Ok(if shown.same { 0 } else { PARTIAL })
    })
}

/// Prints the stacks of a process or core.
fn show(stacks: &Stacks, expected: Expected) -> Result<u8, Failure> {
    let (options, confine) = stacks.options(expected)?;
    no_servers_in_sandbox(&options, confine)?;
    let show = &stacks.show;
    let format = show.format()?;
    if format == Format::Image && show.form.to.output.is_none() && io::stdout().is_terminal() {
        return Err(Failure::Usage("--format image writes binary data: use --output FILE or a pipe".to_string()));
    }
    let inputs: Vec<&Path> = options.named_files().collect();
    answer_in(&show.form, &inputs, confine, show.verbose, |output, json_output| {
        print(show, &options, format, output, json_output)
    })
}

fn print(
    show: &Show,
    options: &Options,
    format: Format,
    output: &mut Output,
    json_output: Option<&mut Output>,
) -> Result<u8, Error> {
    let mut outcome = open(options)?.stacks()?;
    let found = Instant::now();
    let timing = outcome.report.timing;
    // The completeness is that of what was found, not of what is shown.
    let completeness = outcome.report.completeness();
    let refused = outcome.refused || outcome.gone;
    let missing = |what: &str| Error::NoWasm { what: format!("{what}: no Wasm frame of the thread is known") };
    let bytes = match format {
        Format::Text => {
            let options = text::TextOptions {
                brief: show.brief,
                wasm_only: show.wasm_only,
                color: is_colored(&show.form),
                verbose: show.verbose,
                fold: show.fold,
                all: show.all,
                full_paths: show.full_paths,
                full_names: show.full_names,
                how_to_see_all: Some("--all"),
            };
            outcome.report.to_text(options).into_bytes()
        }
        Format::Json => {
            outcome.report.select(show.wasm_only, show.brief);
            outcome.report.to_json(show.pretty).into_bytes()
        }
        Format::Classic => outcome.classic.ok_or_else(|| missing("no classic text"))?.into_bytes(),
        Format::Image => outcome.image.ok_or_else(|| missing("no image"))?,
    };
    output.put(&bytes)?;
    if let Some(json_output) = json_output {
        outcome.report.select(show.wasm_only, show.brief);
        json_output.put(outcome.report.to_json(show.pretty).as_bytes())?;
    }
    if let Some(hint) = outcome.hint {
        messages::print(Kind::Hint, hint);
    }
    if let Some(timing) = timing {
        let timing = Timing { printing_ms: Some(milliseconds(found.elapsed())), ..timing };
        messages::print(Kind::Timing, timing);
    }
    Ok(match completeness {
        // The answer is not whole if a file that the user named could not be used, or if something was gone.
        Completeness::All if refused => PARTIAL,
        Completeness::All => 0,
        Completeness::Partial => PARTIAL,
        Completeness::Nothing => FATAL,
    })
}
