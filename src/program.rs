//! The program `wstate`: parses the arguments, runs the command, writes the output and returns the exit code.

use crate::cli::doctor::{self, Doctor};
use crate::cli::output::Output;
use crate::cli::{self, Cli, Command, Format, Live, Show, Symbols, Usage, image_text, plugin, progress, sandbox};
use crate::error::Error;
use crate::process::files::{self, helper};
use crate::report::contents::{self, Lists};
use crate::report::symbol_file::{SymbolFile, TextNames};
use crate::report::timing::{Timing, milliseconds};
use crate::report::wasm_coredump::Compat;
use crate::report::{Completeness, hexdump, json, text};
use crate::server;
use crate::session::{ImportedGlobal, Options, Resumable, Session, SignalsLater, Source};
use clap::{CommandFactory, Parser};
use nix::sys::signal::{SigSet, Signal};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
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

/// Runs the program with the arguments of this process. The exit codes are documented in the README.
pub fn main() -> ExitCode {
    // With this signal blocked, a limit of file sizes (`ulimit -f`) makes a write fail, instead of ending the program
    // in the middle of it.
    let mut file_size = SigSet::empty();
    file_size.add(Signal::SIGXFSZ);
    let _ = file_size.thread_block();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // --help and --version come here too. It is no failure if the reader of the text went away.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { USAGE } else { 0 });
        }
    };
    sandbox::tell_of_abort();
    // This is done while nothing else runs yet, so that the helper has little to copy.
    helper::enable();
    let code = run(cli).unwrap_or_else(tell);
    helper::end();
    ExitCode::from(code)
}

/// Prints why there is no result and returns the exit code.
fn tell(failure: Failure) -> u8 {
    match failure {
        Failure::Usage(why) => {
            let _ = Cli::command().error(clap::error::ErrorKind::ArgumentConflict, why).print();
            USAGE
        }
        Failure::Error(e) => {
            // Not eprintln: it panics if standard error is closed.
            let mut err = io::stderr().lock();
            let _ = writeln!(err, "wstate: error: {}", text::clean_message(&e.to_string()));
            if let Some(hint) = e.hint() {
                let _ = writeln!(err, "hint: {}", text::clean_message(&hint));
            }
            FATAL
        }
    }
}

fn run(cli: Cli) -> Result<u8, Failure> {
    match cli.command {
        Some(Command::Attach(a)) => {
            let pid =
                a.pid.or(a.pid_flag).ok_or_else(|| Failure::Usage("a process is needed: give its PID".to_string()))?;
            show(&a.show, Source::Pid(pid), Live { settle: a.settle, nonblocking: a.nonblocking }, false)
        }
        Some(Command::Core(c)) => {
            // In `core -c FILE EXE` the parser takes EXE for the first positional argument, which is CORE.
            let (core, executable) = match (c.core_flag, c.executable_flag) {
                (Some(_), _) if c.executable.is_some() => {
                    return Err(Failure::Usage(
                        "two cores are given: name one, either with --core or as CORE".to_string(),
                    ));
                }
                (Some(_), Some(_)) if c.core.is_some() => {
                    return Err(Failure::Usage(
                        "two executables are given: name one, either with --executable or as EXE".to_string(),
                    ));
                }
                (Some(core), flag) => (Some(core), flag.or(c.core)),
                (None, flag) => (c.core, flag.or(c.executable)),
            };
            let core = core.ok_or_else(|| Failure::Usage("a core is needed: give its path as CORE".to_string()))?;
            show(&c.show, Source::Core { core, executable }, Live::default(), !c.no_sandbox)
        }
        Some(Command::Symbols(s)) => symbols(&s),
        Some(Command::Modules(m)) => modules(&m),
        Some(Command::Memory(m)) => memory(&m),
        Some(Command::Export(e)) => export(&e),
        Some(Command::Snapshot(s)) => snapshot(&s),
        Some(Command::Image(i)) => image(&i),
        Some(Command::Restore(r)) => restore(&r),
        Some(Command::Doctor(d)) => {
            let mut doctor = Doctor::examine(d.pid);
            if let Some(pid) = d.pid
                && doctor.worst() != doctor::Status::Fail
            {
                // The only way to know what an attach finds is to do it.
                let mut options = Options::new(Source::Pid(pid));
                (options.values, options.limit) = (false, Some(200));
                match open(&options).and_then(|session| session.stacks()) {
                    Ok(outcome) => doctor.findings(&outcome.report),
                    Err(e) => doctor.fail(
                        e.to_string(),
                        e.hint().unwrap_or_else(|| "look at the checks above, then try again".to_string()),
                    ),
                }
            }
            doctor.plugins();
            let text = if d.json { json::document(&doctor, true) } else { doctor.text(color(d.no_color)) };
            Output::stdout().write(text.as_bytes())?;
            Ok(match doctor.worst() {
                doctor::Status::Ok => 0,
                doctor::Status::Warn => PARTIAL,
                doctor::Status::Fail => FATAL,
            })
        }
        Some(Command::Serve(_)) => {
            server::serve(Box::new(io::stdin().lock()), Box::new(io::stdout().lock()));
            Ok(0)
        }
        Some(Command::Plugin(p)) => {
            let lines = plugin::run(p.action, p.debugger)?;
            Output::stdout().write(lines.as_bytes())?;
            Ok(0)
        }
        Some(Command::Schema(s)) => {
            Output::stdout().write(schema(s.document).as_bytes())?;
            Ok(0)
        }
        None => match (cli.pid, cli.core) {
            (Some(pid), _) => {
                show(&cli.show, Source::Pid(pid), Live { settle: cli.settle, nonblocking: cli.nonblocking }, false)
            }
            (None, Some(core)) => {
                let source = Source::Core { core, executable: cli.executable };
                show(&cli.show, source, Live::default(), !cli.no_sandbox)
            }
            (None, None) => Err(Failure::Usage("a process or a core is needed: --pid PID or --core CORE".to_string())),
        },
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

fn symbols(command: &Symbols) -> Result<u8, Failure> {
    let options = command.options()?;
    keep_inputs(&options, Some(&command.output))?;
    // If the output cannot be written, the user is told before a process is stopped for nothing.
    if !Output::file(&command.output)?.is_file() {
        let why =
            "debuggers read the symbols from a file, and look for sources beside it: name a regular file with --output";
        return Err(Failure::Usage(why.to_string()));
    }
    let map = open(&options)?.code_map(command.all)?;
    let file = SymbolFile::of(&map, &command.output, TextNames::Numbered)?;
    Output::write_files(file.files())?;
    for note in &map.notes {
        let _ = writeln!(io::stderr().lock(), "wstate: note: {}", text::clean_message(note));
    }
    Output::stdout().write(file.commands().as_bytes())?;
    Ok(if map.notes.is_empty() { 0 } else { PARTIAL })
}

fn modules(command: &cli::Modules) -> Result<u8, Failure> {
    let options = command.place.options(false)?;
    let lists = Lists { functions: command.functions, exports: command.exports };
    answer([Output::stdout()], command.place.confine(), options.verbose, |[output]| {
        let contents = open(&options)?.modules(lists)?;
        let text = if command.json {
            json::document(&contents, false)
        } else {
            let verbose = command.place.verbose;
            let options = text::TextOptions { color: color(command.no_color), verbose, ..text::TextOptions::default() };
            contents.to_text(options)
        };
        output.put(text.as_bytes())?;
        Ok(match contents.contents.is_empty() {
            true => FATAL,
            false if contents.refused || !contents.is_complete() => PARTIAL,
            false => 0,
        })
    })
}

fn memory(command: &cli::Memory) -> Result<u8, Failure> {
    let options = command.place.options(false)?;
    if command.raw && command.output.is_none() && io::stdout().is_terminal() {
        return Err(Failure::Usage("--raw writes binary data: use --output FILE or a pipe".to_string()));
    }
    keep_inputs(&options, command.output.as_deref())?;
    let output = Output::file_or_stdout(command.output.as_deref())?;
    answer([output], command.place.confine(), options.verbose, |[output]| {
        let notes = output.put_with(|out| {
            open(&options)?.linear_memory(command.range(), |address, bytes| {
                let written = match command.raw {
                    true => out.write_all(bytes),
                    false => out.write_all(hexdump::lines(address, bytes).as_bytes()),
                };
                written.map_err(|source| Error::Output { to: String::new(), source })
            })
        })?;
        for note in &notes {
            let _ = writeln!(io::stderr().lock(), "wstate: note: {}", text::clean_message(note));
        }
        Ok(if notes.is_empty() { 0 } else { PARTIAL })
    })
}

fn export(command: &cli::Export) -> Result<u8, Failure> {
    let options = command.place.options(true)?;
    let compat = command.compat.map(|cli::Compat::Wasmgdb| Compat::Wasmgdb);
    keep_inputs(&options, Some(&command.wasm_coredump))?;
    let output = Output::file(&command.wasm_coredump)?;
    answer([output], command.place.confine(), options.verbose, |[output]| {
        let notes = output.put_with(|out| open(&options)?.export_coredump(compat, out))?;
        for note in &notes {
            let _ = writeln!(io::stderr().lock(), "wstate: note: {}", text::clean_message(note));
        }
        Ok(if notes.is_empty() { 0 } else { PARTIAL })
    })
}

/// Lets `work` fill the outputs, which get their names only if `work` has succeeded. With `confine`, this is done in
/// a process that has given up its rights.
fn answer<const N: usize>(
    mut outputs: [Output; N],
    confine: bool,
    verbose: bool,
    work: impl FnOnce(&mut [Output; N]) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let ended = if confine {
        sandbox::run(|unconfined| {
            if let Some(why) = unconfined.filter(|_| verbose) {
                let _ = writeln!(io::stderr().lock(), "wstate: note: the file is analysed without a sandbox: {why}");
            }
            match work(&mut outputs) {
                Ok(code) => sandbox::Ended { code, whole: true },
                Err(failure) => sandbox::Ended { code: tell(failure), whole: false },
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

fn snapshot(command: &cli::Snapshot) -> Result<u8, Failure> {
    let (options, wanted) = command.options()?;
    keep_inputs(&options, Some(&command.output))?;
    // This is checked before the output is opened, because opening a pipe with a name waits for its reader.
    if command.with_imports && command.output.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return Err(beside_nothing());
    }
    let mut image = Output::file(&command.output)?;
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
    let imports = command.imports_path().map(|path| Output::file(&path)).transpose()?;
    let beside_image = !image.is_standard_output();
    let work = |image: &mut Output, imports: Option<&mut Output>| {
        let done = image.put_sparse_with(|out| open(&options)?.snapshot(wanted, out))?;
        if let Some(imports) = imports {
            imports.put(json::document(&done.imported_globals, true).as_bytes())?;
        }
        let text = image_text::snapshot_text(&done);
        match beside_image {
            true => Output::stdout().put(text.as_bytes())?,
            false => drop(io::stderr().lock().write_all(text.as_bytes())),
        }
        Ok(if matches!(done.resumable, Some(Resumable::No { .. }) | None) { PARTIAL } else { 0 })
    };
    let (confine, verbose) = (command.place.confine(), options.verbose);
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

/// Refuses an output that would take the place of a file that is read: a customer's core may be the only one.
fn keep_inputs(options: &Options, output: Option<&Path>) -> Result<(), Failure> {
    let of = |path: &Path| path.metadata().ok().filter(|m| m.is_file()).map(|m| (m.dev(), m.ino()));
    let Some(place) = output.and_then(of) else { return Ok(()) };
    match options.named_files().find(|input| files::same_file(input) == Some(place)) {
        Some(input) => Err(Failure::Usage(format!(
            "the output would replace {}, which is read; name another file",
            input.display()
        ))),
        None => Ok(()),
    }
}

fn restore(command: &cli::Restore) -> Result<u8, Failure> {
    let (options, wanted) = command.options();
    let signals = SignalsLater::default();
    let told = match open(&options).and_then(|session| session.restore(&wanted, &signals)) {
        Ok(done) => {
            let text = image_text::restored_text(command.pid, &done);
            // The process goes on from the image, whether this can be told or not.
            if let Err(e) = Output::stdout().write(text.as_bytes()) {
                let _ = write!(io::stderr().lock(), "wstate: error: {e}\n{text}");
            }
            if done.steps > 0 { 0 } else { PARTIAL }
        }
        Err(e) => tell(Failure::Error(e)),
    };
    // A signal that has come meanwhile ends wstate here, when everything is said.
    drop(signals);
    Ok(told)
}

fn image(command: &cli::Image) -> Result<u8, Failure> {
    answer([Output::stdout()], !command.no_sandbox, command.verbose, |[output]| {
        let shown = image_text::show(command)?;
        output.put(shown.text.as_bytes())?;
        if let Some(hint) = shown.hint {
            let _ = writeln!(io::stderr().lock(), "hint: {hint}");
        }
        Ok(if shown.same { 0 } else { PARTIAL })
    })
}

/// Prints the stacks of `source`. With `confine`, this is done in a process that has given up its rights.
fn show(show: &Show, source: Source, live: Live, confine: bool) -> Result<u8, Failure> {
    let options = show.options(source, live)?;
    let format = show.format()?;
    if format == Format::Image && show.output.is_none() && io::stdout().is_terminal() {
        return Err(Failure::Usage("--format image writes binary data: use --output FILE or a pipe".to_string()));
    }
    keep_inputs(&options, show.output.as_deref())?;
    let output = Output::file_or_stdout(show.output.as_deref())?;
    answer([output], confine, show.verbose, |[output]| print(show, &options, format, output))
}

fn print(show: &Show, options: &Options, format: Format, output: &mut Output) -> Result<u8, Failure> {
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
                color: show.output.is_none() && color(show.no_color),
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
    if let Some(hint) = outcome.hint {
        let _ = writeln!(io::stderr().lock(), "hint: {hint}");
    }
    if let Some(timing) = timing {
        let timing = Timing { printing_ms: Some(milliseconds(found.elapsed())), ..timing };
        let _ = writeln!(io::stderr().lock(), "wstate: timing: {timing}");
    }
    Ok(match completeness {
        // The answer is not whole if a file that the user named could not be used, or if something was gone.
        Completeness::All if refused => PARTIAL,
        Completeness::All => 0,
        Completeness::Partial => PARTIAL,
        Completeness::Nothing => FATAL,
    })
}

/// Whether standard output gets colour. NO_COLOR counts if it is not empty (no-color.org).
fn color(no_color: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    !no_color
        && set("NO_COLOR").is_none()
        && set("CLICOLOR").is_none_or(|v| v != "0")
        && set("TERM").is_none_or(|v| v != "dumb")
        && io::stdout().is_terminal()
}
