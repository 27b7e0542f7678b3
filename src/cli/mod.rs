//! Everything that only a command line needs. The commands and their options are defined here;
//! `crate::program` runs the commands.

pub mod advice;
pub mod doctor;
pub mod image_text;
mod images;
pub mod messages;
mod numbers;
pub mod output;
pub mod packaging;
pub mod plugin;
pub mod progress;
mod refusal;
pub mod sandbox;
mod target;

pub use images::{Image, Restore, Snapshot};
pub use messages::Color;
pub use target::{Confinement, Expected, Target};

use crate::process::files;
use crate::session::{self, Source};
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};
use images::{IMAGE_EXAMPLES, IMAGE_HELP, RESTORE_EXAMPLES, RESTORE_HELP, SNAPSHOT_EXAMPLES, SNAPSHOT_HELP};
use numbers::{instance, number, quoted, small, tid};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

const TOP_TEMPLATE: &str = "\
{about}

{usage-heading} {usage}

Commands:
{subcommands}{after-help}";

const EXAMPLES: &str = "\
Examples:
  wstate 4711                         all threads of a process, the same as wstate attach 4711
  wstate core.4711 ./near-host        all threads of a core, the same as wstate core core.4711
  wstate 4711 --wasm app.wasm         with the names and types of app.wasm
  wstate modules 4711                 what is loaded
  wstate doctor 4711                  what would stop an attach, and what to do about it

A word of digits is a process, any other word is the path of a core. `wstate help COMMAND` prints the options of a \
command. Without a command, the options are those of attach and core. All commands know --color auto|always|never, -h \
and --help, and `wstate -V` prints the version.

Exit codes: 0 every thread is complete, 1 some thread is incomplete, 2 nothing was found or an error, 64 wrong \
usage.";

const ATTACH_HELP: &str = "\
Prints the native and Wasm frames of every thread of a process, with Wasm locals and operand stacks.

The process is stopped only while its registers and stacks are copied. wstate writes nothing to its memory and makes \
it run no code. The exception is --settle, which lets one thread execute a few of its own instructions.

With --nonblocking the process is not stopped at all. For a thread that sleeps in a system call, the kernel tells \
where it is and where its stack is. For a thread that runs, the kernel tells nothing: the thread is listed with this \
reason and without frames.

Exit codes: 0 every thread is complete, 1 some thread is incomplete, 2 no thread has a frame or an error, 64 wrong \
usage.";

const ATTACH_EXAMPLES: &str = "\
Examples:
  wstate attach 4711
  wstate attach 4711 --brief --wasm-only
  wstate attach 4711 --fold                   deep recursion in a few lines
  wstate attach 4711 -t 4713 --settle
  wstate attach 4711 --nonblocking
  wstate attach 4711 --json-output report.json   text here, and the same stop as JSON
  wstate attach 4711 -t 4711 --format image -o state.bin";

const CORE_HELP: &str = "\
Prints the native and Wasm frames of every thread of a core, with Wasm locals and operand stacks.

If EXE is not given, the executable is looked for under the name that the core gives. If it is missing or of another \
build, native names and perhaps native frames are missing; Wasm frames need only the core.

A core may come from a stranger. Therefore it is analysed in a sandbox: a child process that can read files and \
write its output, but cannot use the network, start programs, touch other processes or change other files. \
--no-sandbox analyses the core without this protection.

Exit codes: 0 every thread is complete, 1 some thread is incomplete, 2 no thread has a frame or an error, 64 wrong \
usage.";

const CORE_EXAMPLES: &str = "\
Examples:
  wstate core core.4711
  wstate core core.4711 ./near-host --wasm app.wasm
  wstate core core.4711 --fold                deep recursion in a few lines
  wstate core core.4711 --sysroot /srv/container-root --json -o report.json
  wstate core core.4711 --json-output report.json -o report.txt
  wstate core core.4711 --no-sandbox";

const DOCTOR_HELP: &str = "\
Checks one by one what an attach or a core needs, and names the next step for each check that fails. Without a \
process and a core, only what holds for every process is checked.

A core is analysed in a sandbox, as `wstate core` does it.

Exit codes: 0 nothing is in the way, 1 there are warnings, 2 an attach will fail, 64 wrong usage.";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  wstate doctor 4711
  wstate doctor core.4711 ./near-host
  wstate doctor core.4711 --wasm app.wasm --debug-dir /srv/debug
  wstate doctor                        what holds for every process here";

const SCHEMA_HELP: &str = "\
Prints the JSON schema of a document that wstate prints or writes.

Exit codes: 0 printed, 2 an error, 64 wrong usage.";

const SCHEMA_EXAMPLES: &str = "\
Examples:
  wstate schema
  wstate schema modules -o modules.schema.json";

const SERVE_HELP: &str = "\
Answers questions about processes and cores that a debugger's plugin asks, one JSON object in each line. The plugins \
start it themselves.

Exit codes: 0 the plugin went away, 64 wrong usage.";

const SERVE_EXAMPLES: &str = "\
Examples:
  wstate serve --stdio";

const COMPLETIONS_HELP: &str = "\
Prints a script that makes a shell complete the commands and options of wstate.

Exit codes: 0 printed, 2 an error, 64 wrong usage.";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  wstate completions bash -o ~/.local/share/bash-completion/completions/wstate
  wstate completions zsh -o ~/.zfunc/_wstate
  wstate completions fish -o ~/.config/fish/completions/wstate.fish

In zsh, ~/.zfunc has to be in fpath before compinit runs: fpath+=~/.zfunc; autoload -Uz compinit; compinit";

const MAN_HELP: &str = "\
Writes man pages into a directory, which is made if it is not there: wstate.1, and one page for each command. Either \
all pages are written or none.

Exit codes: 0 written, 2 an error, 64 wrong usage.";

const MAN_EXAMPLES: &str = "\
Examples:
  wstate man ~/.local/share/man/man1
  wstate man man1";

const PLUGIN_HELP: &str = "\
Installs, removes or locates the plugins that add wasm-bt and related commands to gdb (13 or newer, with Python) and \
lldb (16 or newer).

Installing twice changes nothing. If neither gdb nor lldb is named, the command does it for both.

Exit codes: 0 done, 2 an error, 64 wrong usage.";

const PLUGIN_EXAMPLES: &str = "\
Examples:
  wstate plugin install
  wstate plugin uninstall lldb
  gdb -x \"$(wstate plugin path gdb)\" -p 4711         without the line in ~/.gdbinit";

const SYMBOLS_HELP: &str = "\
Writes an ELF file with symbols, unwind rules and debug information for the Wasm code of a process or core. When gdb \
or lldb has loaded the file, the debugger's own commands know that code: `bt`, `up`, `info locals`, `frame variable` \
and breakpoints. The commands that load the file are printed.

The file has names and unwind rules of all Wasm code. It describes locals and operand stacks of all functions of \
modules with up to 20,000 functions. Of larger modules it describes only the functions on the stacks, because the \
debugger has to read every description; --all describes all of them.

With --wasm the file also has names of locals, types and lines. The lines are those of the original source if the \
.wasm has debug information. Otherwise they are those of the module's text form, which is written to FILE.N.wat.

The file is right for as long as the code stays where it is. Make a new one when modules were loaded since.

Exit codes: 0 written, 1 written but something is missing, 2 no Wasm code found or an error, 64 wrong usage.";

const SYMBOLS_EXAMPLES: &str = "\
Examples:
  wstate symbols 4711 -o wasm.sym
  wstate symbols core.4711 ./near-host --wasm app.wasm -o wasm.sym
  gdb ./near-host core.4711 -ex 'add-symbol-file wasm.sym' -ex bt";

const MODULES_HELP: &str = "\
Lists the Wasm modules of a process or core with their instances, linear memories, globals and tables. --functions \
and --exports list these too. Where something is not known, the reason is printed.

Instances are found along the stacks and through the runtime's own structures, so an instance that no thread runs in \
may be missing. Each instance has a number, which `wstate memory --instance` takes. For a core the numbers are the \
same each time. For a process they hold only for the moment, while the addresses stay.

Exit codes: 0 everything that was asked for is there, 1 something is not known, 2 no Wasm module found or an error, \
64 wrong usage.";

const MODULES_EXAMPLES: &str = "\
Examples:
  wstate modules 4711
  wstate modules core.4711 ./near-host --exports
  wstate modules core.4711 --wasm app.wasm --functions --json
  wstate modules 4711 --json-output modules.json   text here, and the same as JSON in a file";

const MEMORY_HELP: &str = "\
Prints bytes of a linear memory, sixteen in a line, or with --raw as they are. ADDR is an address in the linear \
memory. ADDR and LEN are decimal, or hexadecimal with 0x.

Without --instance there must be only one instance that has the memory; `wstate modules` lists the instances. The \
memory of a process is copied while the process runs.

Exit codes: 0 printed, 2 the bytes are not inside the memory or cannot be read, or an error, 64 wrong usage.";

const MEMORY_EXAMPLES: &str = "\
Examples:
  wstate memory 4711 0x400 64
  wstate memory core.4711 ./near-host 0x400 64
  wstate memory core.4711 1024 256 --instance 1 --memory 0
  wstate memory core.4711 0 0x10000 --instance 0x558d2b001000 --raw -o page.bin";

const EXPORT_HELP: &str = "\
Writes the Wasm state of a process or core in another program's format.

-o FILE, or --wasm-coredump FILE, writes the coredump format of the WebAssembly tool conventions: modules, \
instances, memories, globals, and one stack for each thread that has Wasm frames. Locals, operands and code offsets need the module's \
types (--wasm FILE). Values that are not known, vectors and references are written as missing. Notes say what else \
is missing. The memory of a process is copied while the process runs.

--compat wasmgdb writes what wasmgdb 0.2.2 reads, which is not what the conventions say: it has no operand stacks, \
one memory in one segment, and no globals.

Exit codes: 0 written, 1 written but something is missing, 2 no Wasm module found or an error, 64 wrong usage.";

const EXPORT_EXAMPLES: &str = "\
Examples:
  wstate export 4711 -o app.coredump
  wstate export core.4711 ./near-host --wasm app.wasm -o app.coredump
  wstate export core.4711 --wasm-coredump app.coredump
  wstate export core.4711 --wasm app.wasm --compat wasmgdb -o app.coredump";

/// Mixed native and Wasm backtraces of live processes and cores.
#[derive(Debug, Parser)]
#[command(
    name = "wstate",
    version,
    about = "Mixed native and Wasm backtraces of live processes and cores, with Wasm locals and operand stacks",
    after_help = EXAMPLES,
    help_template = TOP_TEMPLATE,
    override_usage = "wstate [OPTIONS] <PID|CORE> [EXE]\n       wstate <COMMAND> [OPTIONS] ...",
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do; without one, the stacks of the target are printed.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// When to use colour: auto (on a terminal, unless NO_COLOR or CLICOLOR=0 is set; with CLICOLOR_FORCE everywhere),
    /// always or never
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = Color::Auto, overrides_with = "color",
        hide_possible_values = true, hide_default_value = true)]
    pub color: Color,
    /// Never use colour: the same as --color never.
    #[arg(long, global = true, hide = true, overrides_with = "no_color")]
    pub no_color: bool,
    /// Whose stacks, and how they are printed.
    #[command(flatten)]
    pub stacks: Stacks,
}

/// A command line that is no question: what is wrong with it.
#[derive(Debug)]
pub enum Refused {
    /// The user asks for help or for the version, or gives nothing at all.
    Help(clap::Error),
    /// In one line what is wrong, and what to type.
    Usage(Usage),
}

impl Cli {
    /// Reads a command line, with the program's name as its first word.
    ///
    /// # Errors
    /// The user asks for help, or the command line is wrong.
    pub fn read(args: &[OsString]) -> Result<Cli, Refused> {
        let matches = Cli::command().try_get_matches_from(args);
        let read = matches.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
        let rest = args.get(1..).unwrap_or_default();
        let (cli, matches) = read.map_err(|e| {
            use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
            match e.kind() {
                DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion => Refused::Help(e),
                _ => {
                    let (mut root, all) = (Cli::command(), Cli::command());
                    let why = refusal::sentence(&all, refusal::concerned(&mut root, rest), &e, rest);
                    Refused::Usage(Usage(why))
                }
            }
        })?;
        match matches.subcommand_name().filter(|_| has_own(&matches)) {
            Some(command) => Err(Refused::Usage(Usage(command_behind(command, rest)))),
            None => Ok(cli),
        }
    }

    /// The command whose usage is shown to a user whose arguments are wrong.
    pub fn concerned(args: &[OsString]) -> clap::Command {
        refusal::concerned(&mut Cli::command(), args.get(1..).unwrap_or_default()).clone()
    }

    /// What is said of the first word where it is neither a command nor a target.
    ///
    /// # Errors
    /// It is neither.
    pub fn check_word(&self) -> Result<(), Usage> {
        let target = &self.stacks.target;
        match target.unknown() {
            Some(word) => Err(Usage(refusal::no_command(&Cli::command(), word, target.of.as_deref()))),
            None => Ok(()),
        }
    }
}

/// Whether there are arguments before the command, which would belong to no command.
fn has_own(matches: &ArgMatches) -> bool {
    let is_own = |id: &str| !["color", "no_color"].contains(&id);
    let is_given = |id: &str| matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine);
    matches.ids().any(|id| is_own(id.as_str()) && is_given(id.as_str()))
}

/// What is said of arguments before a command.
fn command_behind(command: &str, args: &[OsString]) -> String {
    let mut words: Vec<String> = args.iter().map(|a| crate::report::text::clean(&a.to_string_lossy())).collect();
    if let Some(at) = words.iter().position(|word| word == command) {
        words.remove(at);
    }
    format!("the command comes first; type: wstate {command} {}", words.join(" "))
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the stacks of a process
    #[command(
        override_usage = "wstate attach [OPTIONS] <PID>",
        long_about = ATTACH_HELP,
        after_help = ATTACH_EXAMPLES,
        mut_arg("target", |a| a.value_name("PID").help("The process")),
        mut_arg("of", |a| a.hide(true)),
        mut_arg("core", |a| a.hide(true)),
        mut_arg("executable", |a| a.hide(true)),
        mut_arg("no_sandbox", |a| a.hide(true))
    )]
    Attach(Stacks),
    /// Print the stacks of a core
    #[command(
        override_usage = "wstate core [OPTIONS] <CORE> [EXE]",
        long_about = CORE_HELP,
        after_help = CORE_EXAMPLES,
        mut_arg("target", |a| a.value_name("CORE").help("The core file")),
        mut_arg("of", |a| a),
        mut_arg("pid", |a| a.hide(true)),
        mut_arg("settle", |a| a.hide(true)),
        mut_arg("nonblocking", |a| a.hide(true))
    )]
    Core(Stacks),
    /// Say what would stop an attach, and the next step
    #[command(
        override_usage = "wstate doctor [OPTIONS] [PID|CORE] [EXE]",
        long_about = DOCTOR_HELP,
        after_help = DOCTOR_EXAMPLES
    )]
    Doctor(Doctor),
    /// List modules, instances, memories, globals and tables
    #[command(
        override_usage = "wstate modules [OPTIONS] <PID|CORE> [EXE]",
        long_about = MODULES_HELP,
        after_help = MODULES_EXAMPLES
    )]
    Modules(Modules),
    /// Print bytes of a linear memory
    #[command(
        override_usage = "wstate memory [OPTIONS] <PID|CORE> [EXE] <ADDR> <LEN>",
        long_about = MEMORY_HELP,
        after_help = MEMORY_EXAMPLES
    )]
    Memory(Memory),
    /// Write a symbol file of the Wasm code for gdb and lldb
    #[command(
        override_usage = "wstate symbols [OPTIONS] <PID|CORE> [EXE] -o <FILE>",
        long_about = SYMBOLS_HELP,
        after_help = SYMBOLS_EXAMPLES,
        mut_arg("output", |a| a.required(true))
    )]
    Symbols(Symbols),
    /// Write a Wasm coredump
    #[command(
        override_usage = "wstate export [OPTIONS] <PID|CORE> [EXE] -o <FILE>",
        long_about = EXPORT_HELP,
        after_help = EXPORT_EXAMPLES,
        mut_arg("output", |a| a.conflicts_with("wasm_coredump"))
    )]
    Export(Export),
    /// Write an InstanceImage of the wasmer 0.x runtime
    #[command(
        override_usage = "wstate snapshot [OPTIONS] <PID|CORE> [EXE] -o <FILE>",
        long_about = SNAPSHOT_HELP,
        after_help = SNAPSHOT_EXAMPLES,
        mut_arg("output", |a| a.required(true))
    )]
    Snapshot(Snapshot),
    /// Print or compare images
    #[command(
        override_usage = "wstate image [OPTIONS] <FILE>",
        long_about = IMAGE_HELP,
        after_help = IMAGE_EXAMPLES
    )]
    Image(Image),
    /// Let a process go on from an image
    #[command(
        override_usage = "wstate restore [OPTIONS] <PID> <IMAGE>",
        long_about = RESTORE_HELP,
        after_help = RESTORE_EXAMPLES,
        mut_arg("core", |a| a.hide(true)),
        mut_arg("executable", |a| a.hide(true))
    )]
    Restore(Restore),
    /// Install, remove or locate the plugins for gdb and lldb
    #[command(long_about = PLUGIN_HELP, after_help = PLUGIN_EXAMPLES)]
    Plugin(Plugin),
    /// Answer a debugger's plugin (see `wstate plugin`)
    #[command(long_about = SERVE_HELP, after_help = SERVE_EXAMPLES)]
    Serve(Serve),
    /// Print the JSON schema of reports
    #[command(long_about = SCHEMA_HELP, after_help = SCHEMA_EXAMPLES)]
    Schema(Schema),
    /// Print completions for a shell
    #[command(long_about = COMPLETIONS_HELP, after_help = COMPLETIONS_EXAMPLES)]
    Completions(Completions),
    /// Write man pages
    #[command(long_about = MAN_HELP, after_help = MAN_EXAMPLES)]
    Man(Man),
}

/// `wstate completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
    /// Where to write.
    #[command(flatten)]
    pub to: To,
}

/// A shell that completes command lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// `wstate man`.
#[derive(Debug, Args)]
pub struct Man {
    /// The directory for the pages, such as one of `manpath` with /man1 behind it
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
}

/// `wstate schema`.
#[derive(Debug, Args)]
pub struct Schema {
    /// The document whose schema is printed
    #[arg(value_enum, default_value_t = Document::Report)]
    pub document: Document,
    /// Where to write.
    #[command(flatten)]
    pub to: To,
}

/// A JSON document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Document {
    /// What attach and core print
    Report,
    /// What modules prints
    Modules,
    /// What doctor prints
    Doctor,
    /// What image prints
    Image,
    /// What image --diff prints
    Difference,
    /// What snapshot --with-imports writes beside the image
    Imports,
}

/// `wstate serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Speak on standard input and output, one JSON object in each line
    #[arg(long, required = true)]
    pub stdio: bool,
}

/// `wstate plugin`.
#[derive(Debug, Args)]
pub struct Plugin {
    /// What to do
    #[arg(value_enum)]
    pub action: PluginAction,
    /// Only this debugger
    #[arg(value_enum)]
    pub debugger: Option<crate::cli::plugin::Debugger>,
    /// With install: write the files only, and print the lines that load them
    #[arg(long)]
    pub no_init_file: bool,
}

impl Plugin {
    /// Whether the debugger's init file is changed, or a usage error.
    pub fn init_file(&self) -> Result<bool, Usage> {
        match (self.no_init_file, self.action) {
            (true, PluginAction::Uninstall | PluginAction::Path) => {
                Err(Usage("--no-init-file is for install: wstate plugin install --no-init-file".to_string()))
            }
            (no_init_file, _) => Ok(!no_init_file),
        }
    }
}

/// What `wstate plugin` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PluginAction {
    /// Write the plugin and one line in ~/.gdbinit or ~/.lldbinit that loads it
    Install,
    /// Remove the plugin and the line
    Uninstall,
    /// Print where the plugin is, or would be, for loading it by hand
    Path,
}

/// Whose stacks are printed, and how: `wstate attach`, `wstate core`, and `wstate` without a command.
#[derive(Debug, Args)]
pub struct Stacks {
    /// The process or core.
    #[command(flatten)]
    pub target: Target,
    /// Let one thread of a process run on to the next point where its operand stack is known, by at most 64 instructions;
    /// the process goes on from there
    #[arg(long)]
    pub settle: bool,
    /// Do not stop the process; only threads that sleep have frames
    #[arg(long, conflicts_with = "settle")]
    pub nonblocking: bool,
    /// How a core is analysed.
    #[command(flatten)]
    pub confinement: Confinement,
    /// What to show and how.
    #[command(flatten)]
    pub show: Show,
}

impl Stacks {
    /// The question to ask, and whether it is answered in a sandbox, or a usage error.
    pub fn options(&self, expected: Expected) -> Result<(session::Options, bool), Usage> {
        let missing = match expected {
            Expected::Either => "give a process id or the path of a core, as in: wstate 4711",
            // This is what the kernel calls a core if nobody says otherwise.
            Expected::Core if files::same_file(Path::new("core")).is_some() => {
                "for the file with this name, type: wstate core core"
            }
            Expected::Core => "give the path of a core, as in: wstate core core.4711",
        };
        let source = self.target.source(expected)?.ok_or_else(|| no_target(missing))?;
        if let Source::Core { .. } = source {
            let live = [(self.settle, "--settle lets"), (self.nonblocking, "--nonblocking lets")];
            if let Some((_, what)) = live.iter().find(|(is_given, _)| *is_given) {
                return Err(Usage(format!("{what} a process run, and a core does not run: leave it out")));
            }
        }
        let confine = self.confinement.confine(&source)?;
        Ok((self.show.options(source, self.live())?, confine))
    }

    /// How the target is looked at if it is a process.
    pub fn live(&self) -> Live {
        Live { settle: self.settle, nonblocking: self.nonblocking }
    }
}

fn no_target(what: &str) -> Usage {
    Usage(format!("the target is missing: {what}"))
}

/// `wstate doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The process or core, if there is one.
    #[command(flatten)]
    pub target: Target,
    /// How a core is analysed.
    #[command(flatten)]
    pub confinement: Confinement,
    /// The form of the output.
    #[command(flatten)]
    pub form: Form,
    /// Tell on standard error what is being done
    #[arg(short, long)]
    pub verbose: bool,
    /// Where to look for things.
    #[command(flatten)]
    pub finding: Finding,
}

impl Doctor {
    /// What is looked at and with which files, or `None` if that is no process and no core, or a usage error.
    pub fn options(&self) -> Result<Option<session::Options>, Usage> {
        let Some(source) = self.target.source(Expected::Either)? else {
            let Finding { wasm, artifact, route, sysroot, debug_dir, debuginfod } = &self.finding;
            let needs = [
                (!wasm.is_empty(), "--wasm"),
                (!artifact.is_empty(), "--artifact"),
                (!route.is_empty(), "--route"),
                (sysroot.is_some(), "--sysroot"),
                (!debug_dir.is_empty(), "--debug-dir"),
                (*debuginfod, "--debuginfod"),
                (self.confinement.no_sandbox, "--no-sandbox"),
            ];
            return match needs.iter().find(|(is_given, _)| *is_given) {
                Some((_, flag)) => Err(Usage(format!(
                    "{flag} is about a target, and none is given: add a process id or a core, as in: wstate doctor 4711"
                ))),
                None => Ok(None),
            };
        };
        self.confinement.confine(&source)?;
        Ok(Some(session::Options { values: false, verbose: self.verbose, ..self.finding.options(source)? }))
    }
}

/// Where a result is written.
#[derive(Clone, Debug, Args)]
pub struct To {
    /// Write to FILE; an old FILE is replaced only when everything is written
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub output: Option<PathBuf>,
}

impl To {
    /// The file, for a command that needs one.
    fn file(&self) -> Result<&PathBuf, Usage> {
        self.output.as_ref().ok_or_else(|| Usage("--output FILE is missing".to_string()))
    }
}

/// In which form a result is written, and where.
#[derive(Clone, Debug, Args)]
pub struct Form {
    /// Print JSON instead of text; `wstate schema` describes it
    #[arg(short, long, help_heading = "Output")]
    pub json: bool,
    /// Write JSON to FILE as well, and print text: both say the same
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Output", conflicts_with = "json")]
    pub json_output: Option<PathBuf>,
    /// Where to write.
    #[command(flatten)]
    pub to: To,
}

/// Files that the user gives, and where to look for others.
#[derive(Clone, Debug, Args)]
pub struct Finding {
    /// A .wasm file that runs in the target, for names, types, byte offsets and lines (repeatable)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Finding things")]
    pub wasm: Vec<PathBuf>,
    /// A cached artifact file of a module in the target (repeatable)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Finding things")]
    pub artifact: Vec<PathBuf>,
    /// Search for modules only on this route (repeatable)
    #[arg(long, value_enum, value_name = "ROUTE", help_heading = "Finding things")]
    pub route: Vec<Route>,
    /// Look for the target's files under DIR first
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Finding things")]
    pub sysroot: Option<PathBuf>,
    /// Look for separate debug files in DIR (repeatable)
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Finding things")]
    pub debug_dir: Vec<PathBuf>,
    /// Ask the servers of DEBUGINFOD_URLS for debug files and executables that are missing (needs debuginfod-find; of a
    /// core also --no-sandbox)
    #[arg(long, help_heading = "Finding things")]
    pub debuginfod: bool,
}

/// A command line that asks for something that makes no sense. The text says to the user what it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

impl Finding {
    /// The question about `source` with these files and places, or a usage error.
    fn options(&self, source: session::Source) -> Result<session::Options, Usage> {
        if self.route.contains(&Route::Artifact) && self.artifact.is_empty() {
            return Err(Usage("--route artifact needs --artifact FILE".to_string()));
        }
        Ok(session::Options {
            wasm: self.wasm.clone(),
            artifacts: self.artifact.clone(),
            routes: self.route.iter().map(|&r| r.into()).collect(),
            sysroot: self.sysroot.clone(),
            debug_dirs: self.debug_dir.clone(),
            debuginfod: self.debuginfod,
            ..session::Options::new(source)
        })
    }
}

/// The options of `wstate symbols`.
#[derive(Debug, Args)]
pub struct Symbols {
    /// The process or core that the user names.
    #[command(flatten)]
    pub target: Target,
    /// Where to write.
    #[command(flatten)]
    pub to: To,
    /// Describe locals and operand stacks of all functions, however many there are
    #[arg(long)]
    pub all: bool,
    /// Tell on standard error what is being done
    #[arg(short, long)]
    pub verbose: bool,
    /// The files and places in which the user wants things looked for.
    #[command(flatten)]
    pub finding: Finding,
}

impl Symbols {
    /// The question to ask, or a usage error.
    pub fn options(&self) -> Result<session::Options, Usage> {
        let source = self.target.source(Expected::Either)?.ok_or_else(|| no_target(TARGET_OF_SYMBOLS))?;
        Ok(session::Options { verbose: self.verbose, ..self.finding.options(source)? })
    }

    /// The file that is written, or a usage error.
    pub fn output(&self) -> Result<&PathBuf, Usage> {
        self.to.file()
    }
}

const TARGET_OF_SYMBOLS: &str = "give a process id or the path of a core, as in: wstate symbols 4711 -o wasm.sym";

/// The target and where to look for things, for commands that print no stacks.
#[derive(Clone, Debug, Args)]
pub struct Where {
    /// The process or core that the user names.
    #[command(flatten)]
    pub target: Target,
    /// How a core is analysed.
    #[command(flatten)]
    pub confinement: Confinement,
    /// Tell on standard error what is being done
    #[arg(short, long)]
    pub verbose: bool,
    /// Where to look for things.
    #[command(flatten)]
    pub finding: Finding,
}

impl Where {
    /// The question to ask, and whether it is answered in a sandbox, or a usage error. `values` says whether locals and
    /// operand stacks are wanted, and `example` is what to type where there is no target.
    pub fn options(&self, values: bool, example: &str) -> Result<(session::Options, bool), Usage> {
        self.options_of(self.target.source(Expected::Either)?, values, example)
    }

    /// The same about a target that is known already.
    fn options_of(
        &self,
        source: Option<Source>,
        values: bool,
        example: &str,
    ) -> Result<(session::Options, bool), Usage> {
        let missing = || no_target(&format!("give a process id or the path of a core, as in: {example}"));
        let source = source.ok_or_else(missing)?;
        let confine = self.confinement.confine(&source)?;
        let options = self.finding.options(source)?;
        Ok((session::Options { values, names: false, verbose: self.verbose, ..options }, confine))
    }
}

/// `wstate modules`.
#[derive(Debug, Args)]
pub struct Modules {
    /// List the functions of each module
    #[arg(long)]
    pub functions: bool,
    /// List the exports of each module
    #[arg(long)]
    pub exports: bool,
    /// List executables and libraries with their build ids, and which of their files were found
    #[arg(long)]
    pub native: bool,
    /// The form of the output.
    #[command(flatten)]
    pub form: Form,
    /// The target.
    #[command(flatten)]
    pub place: Where,
}

/// `wstate memory`.
#[derive(Debug, Args)]
pub struct Memory {
    /// The target. Its words come first.
    #[command(flatten)]
    pub place: Where,
    /// First address in the linear memory
    #[arg(index = 3, value_name = "ADDR")]
    pub address: Option<OsString>,
    /// Number of bytes
    #[arg(index = 4, value_name = "LEN")]
    pub len: Option<OsString>,
    /// The instance: its number in `wstate modules`, or its address (0x...)
    #[arg(long, value_name = "N", value_parser = instance, allow_negative_numbers = true)]
    pub instance: Option<session::InstanceChoice>,
    /// The index of the memory in the instance
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = small, allow_negative_numbers = true)]
    pub memory: u32,
    /// Write the bytes as they are
    #[arg(long)]
    pub raw: bool,
    /// Where to write.
    #[command(flatten)]
    pub to: To,
}

impl Memory {
    const EXAMPLE: &str = "wstate memory 4711 0x400 64";

    /// The question to ask, whether it is answered in a sandbox, and the stretch of a linear memory that is asked for, or
    /// a usage error.
    pub fn options(&self) -> Result<(session::Options, bool, session::MemoryRange), Usage> {
        // The parser fills words in from the left, and it is the last two that are ADDR and LEN.
        let own = self.address.iter().chain(&self.len).map(OsString::as_os_str);
        let words: Vec<&OsStr> = self.place.target.words().chain(own).collect();
        let named = &self.place.target.named;
        let missing = |what: &str| Err(Usage(format!("{what} missing, as in: {}", Memory::EXAMPLE)));
        let (target, address, len) = match words[..] {
            [] if !named.is_target() => return missing("the target, ADDR and LEN are"),
            [] => return missing("ADDR and LEN are"),
            [_] if named.is_target() => return missing("LEN is"),
            [_] => return missing("ADDR and LEN are"),
            [_, _] if !named.is_target() => return missing("one of the target, ADDR and LEN is"),
            [ref target @ .., address, len] => (target, address, len),
        };
        let source = named.source(target, Expected::Either)?;
        let value = |name: &str, word: &OsStr| match word.to_str() {
            Some(text) => number(text).map_err(|why| Usage(format!("{name}: {why}"))),
            None => Err(Usage(format!("{name}: {} is not a number", quoted(word)))),
        };
        let range = session::MemoryRange {
            instance: self.instance.unwrap_or(session::InstanceChoice::Only),
            memory: self.memory,
            address: value("ADDR", address)?,
            len: value("LEN", len)?,
        };
        let (options, confine) = self.place.options_of(source, false, Memory::EXAMPLE)?;
        Ok((options, confine, range))
    }
}

/// `wstate export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Write a Wasm coredump to FILE, which is replaced only when everything is written
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub wasm_coredump: Option<PathBuf>,
    /// The format that is written to --output
    #[arg(long, value_enum, value_name = "FORM", help_heading = "Output", default_value_t = ExportFormat::WasmCoredump)]
    pub format: ExportFormat,
    /// Where to write.
    #[command(flatten)]
    pub to: To,
    /// Write the format that this reader understands
    #[arg(long, value_enum, value_name = "READER")]
    pub compat: Option<Compat>,
    /// The target.
    #[command(flatten)]
    pub place: Where,
}

impl Export {
    /// The file that is written, or a usage error.
    pub fn output(&self) -> Result<&PathBuf, Usage> {
        let missing = || {
            let why = "--output FILE is missing, as in: wstate export 4711 -o app.coredump";
            Usage(why.to_string())
        };
        self.wasm_coredump.as_ref().or(self.to.output.as_ref()).ok_or_else(missing)
    }
}

/// A format that `wstate export` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// The coredump format of the WebAssembly tool conventions
    WasmCoredump,
}

/// A reader of coredumps that understands another format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// wasmgdb 0.2.2
    Wasmgdb,
}

/// How a live process is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Live {
    /// Whether to step one thread.
    pub settle: bool,
    /// Whether not to stop the process.
    pub nonblocking: bool,
}

/// Options that `attach` and `core` share.
#[derive(Clone, Debug, Args)]
pub struct Show {
    /// Form of the output
    #[arg(long, value_enum, value_name = "FORM", help_heading = "Output", conflicts_with = "json")]
    pub format: Option<Format>,
    /// JSON or text, and where they are written.
    #[command(flatten)]
    pub form: Form,
    /// Indent the JSON
    #[arg(long, help_heading = "Output")]
    pub pretty: bool,
    /// Show registers and how each frame was found, and tell on standard error what is being done
    #[arg(short, long, help_heading = "Output")]
    pub verbose: bool,
    /// Tell on standard error how long the target was stopped and what took how long; JSON has it too
    #[arg(long, help_heading = "Output")]
    pub timing: bool,

    /// Show only this thread, by its kernel thread id (repeatable)
    #[arg(short, long = "thread", value_name = "TID", help_heading = "Selection", value_parser = tid,
        allow_negative_numbers = true)]
    pub thread: Vec<u32>,
    /// Show only the first thread
    #[arg(short = '1', help_heading = "Selection")]
    pub first: bool,
    /// Show at most N frames of each thread, or all with 0
    #[arg(short = 'n', value_name = "N", default_value_t = 0, help_heading = "Selection", value_parser = small,
        allow_negative_numbers = true)]
    pub frames: u32,
    /// Show frames only, without locals and operand stacks
    #[arg(long, conflicts_with_all = ["locals", "stack"], help_heading = "Selection")]
    pub brief: bool,
    /// Show only Wasm frames; their numbers stay the same
    #[arg(long, help_heading = "Selection")]
    pub wasm_only: bool,
    /// In text, show frames that repeat once and say how often; frame numbers stay the same, and JSON has all frames
    #[arg(long, help_heading = "Selection")]
    pub fold: bool,
    /// In text, show every native frame; without this, frames of Rust's runtime, of executors and of the C library's start
    /// that stand in a row have one line. JSON has all frames
    #[arg(short, long, help_heading = "Selection")]
    pub all: bool,
    /// In text, show paths of source files in full, also those of packages and of Rust's library
    #[arg(long, help_heading = "Selection")]
    pub full_paths: bool,
    /// In text, show names of functions with all their generic parameters, however long they are
    #[arg(long, help_heading = "Selection")]
    pub full_names: bool,
    /// Show native frames by name alone, without files, lines and inlined functions (faster, needs less memory)
    #[arg(long, help_heading = "Selection")]
    pub no_lines: bool,
    /// Show locals (the default)
    #[arg(short, long, help_heading = "Selection")]
    pub locals: bool,
    /// Show operand stacks (the default)
    #[arg(long, help_heading = "Selection")]
    pub stack: bool,
    /// Where to look for things.
    #[command(flatten)]
    pub finding: Finding,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs; `wstate schema` describes it
    Json,
    /// The Wasm frames of one thread as the runtime itself prints them
    Classic,
    /// The ExecutionStateImage of one thread, in bincode
    Image,
}

/// A way to find modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Route {
    /// The context register of a running Wasm function
    Vmctx,
    /// A search of the heap
    Heap,
    /// The runtime's thread-local variables
    Tls,
    /// What the host published
    Descriptor,
    /// A cached artifact file (--artifact)
    Artifact,
}

impl From<Route> for session::Route {
    fn from(r: Route) -> session::Route {
        match r {
            Route::Vmctx => session::Route::Vmctx,
            Route::Heap => session::Route::Heap,
            Route::Tls => session::Route::Tls,
            Route::Descriptor => session::Route::Descriptor,
            Route::Artifact => session::Route::Artifact,
        }
    }
}

impl Show {
    /// The form of the output, or a usage error.
    pub fn format(&self) -> Result<Format, Usage> {
        // JSON in a second file leaves the first one text, and --pretty is about that JSON then.
        let beside = self.form.json_output.is_some();
        if beside && self.format == Some(Format::Json) {
            let why = "--json-output writes JSON beside another form: leave out --format json, or write it to --output";
            return Err(Usage(why.to_string()));
        }
        match (self.format, self.form.json || (self.pretty && !beside)) {
            (None, false) => Ok(Format::Text),
            (None | Some(Format::Json), _) => Ok(Format::Json),
            (Some(f), false) => Ok(f),
            (Some(_), true) => {
                Err(Usage("--pretty is for JSON only: leave out --format, or give --format json".to_string()))
            }
        }
    }

    /// The question to ask about `source`, or a usage error.
    pub fn options(&self, source: session::Source, live: Live) -> Result<session::Options, Usage> {
        let format = self.format()?;
        Ok(session::Options {
            threads: self.thread.clone(),
            first_thread_only: self.first,
            limit: (self.frames != 0).then_some(self.frames as usize),
            settle: live.settle,
            nonblocking: live.nonblocking,
            values: !self.brief,
            image: matches!(format, Format::Classic | Format::Image),
            // These forms show no native frame.
            names: !matches!(format, Format::Classic | Format::Image) || self.form.json_output.is_some(),
            lines: !self.no_lines,
            verbose: self.verbose,
            timing: self.timing,
            ..self.finding.options(source)?
        })
    }
}
