//! Everything that only a command line needs. The commands and their options are defined here;
//! `crate::program` runs the commands.

pub mod doctor;
pub mod image_text;
mod images;
pub mod output;
pub mod plugin;
pub mod progress;
pub mod sandbox;

pub use images::{Image, Restore, Snapshot};

use crate::session::{self, InstanceChoice};
use clap::{Args, Parser, Subcommand, ValueEnum};
use images::{IMAGE_EXAMPLES, IMAGE_HELP, RESTORE_EXAMPLES, RESTORE_HELP, SNAPSHOT_EXAMPLES, SNAPSHOT_HELP};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  wstate attach 4711                         all threads of a process
  wstate attach 4711 --wasm app.wasm         with the names and types of app.wasm
  wstate attach 4711 -t 4713 --settle        one thread, run on to where its operand stack is known
  wstate core core.4711 ./near-host --json   a core, as JSON for a program
  wstate doctor 4711                         what would stop an attach, and what to do about it

Exit codes: 0 every thread is complete, 1 some thread is incomplete, 2 nothing was found or an error,
64 wrong usage.";

const ATTACH_HELP: &str = "\
Prints the native and Wasm frames of every thread of a process, with Wasm locals and operand stacks.

The process is stopped only while its registers and stacks are copied. wstate writes nothing to its memory and makes \
it run no code. The exception is --settle, which lets one thread execute a few of its own instructions.

With --nonblocking the process is not stopped at all. For a thread that sleeps in a system call, the kernel tells \
where it is and where its stack is. For a thread that runs, the kernel tells nothing: the thread is listed with this \
reason and without frames.";

const ATTACH_EXAMPLES: &str = "\
Examples:
  wstate attach 4711
  wstate attach 4711 --brief --wasm-only
  wstate attach 4711 --fold                   deep recursion in a few lines
  wstate attach 4711 -t 4713 --settle
  wstate attach 4711 --nonblocking
  wstate attach 4711 -t 4711 --format image --output state.bin";

const CORE_HELP: &str = "\
Prints the native and Wasm frames of every thread of a core, with Wasm locals and operand stacks.

If EXE is not given, the executable is looked for under the name that the core gives. If it is missing or of another \
build, native names and perhaps native frames are missing; Wasm frames need only the core.

A core may come from a stranger. Therefore it is analysed in a sandbox: a child process that can read files and \
write its output, but cannot use the network, start programs, touch other processes or change other files. \
--no-sandbox analyses the core without this protection.";

const CORE_EXAMPLES: &str = "\
Examples:
  wstate core core.4711
  wstate core core.4711 ./near-host --wasm app.wasm
  wstate core core.4711 --fold                deep recursion in a few lines
  wstate core core.4711 --sysroot /srv/container-root --json --output report.json
  wstate core core.4711 --no-sandbox";

const DOCTOR_HELP: &str = "\
Checks one by one what an attach or a core needs, and names the next step for each check that fails.

Exit codes: 0 nothing is in the way, 1 there are warnings, 2 an attach will fail, 64 wrong usage.";

const PLUGIN_HELP: &str = "\
Installs, removes or locates the plugins that add wasm-bt and related commands to gdb (13 or newer, with Python) and \
lldb (16 or newer).

Installing twice changes nothing. If neither gdb nor lldb is named, the command does it for both.";

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
  wstate symbols -p 4711 -o wasm.sym
  wstate symbols -c core.4711 -e ./near-host --wasm app.wasm -o wasm.sym
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
  wstate modules -p 4711
  wstate modules -c core.4711 -e ./near-host --exports
  wstate modules -c core.4711 --wasm app.wasm --functions --json";

const MEMORY_HELP: &str = "\
Prints bytes of a linear memory, sixteen in a line, or with --raw as they are. ADDR is an address in the linear \
memory. ADDR and LEN are decimal, or hexadecimal with 0x.

Without --instance there must be only one instance that has the memory; `wstate modules` lists the instances. The \
memory of a process is copied while the process runs.

Exit codes: 0 printed, 2 the bytes are not inside the memory or cannot be read, or an error, 64 wrong usage.";

const MEMORY_EXAMPLES: &str = "\
Examples:
  wstate memory -p 4711 0x400 64
  wstate memory -c core.4711 --instance 1 --memory 0 1024 256
  wstate memory -c core.4711 --instance 0x558d2b001000 0 0x10000 --raw --output page.bin";

const EXPORT_HELP: &str = "\
Writes the Wasm state of a process or core in another program's format.

--wasm-coredump writes the coredump format of the WebAssembly tool conventions: modules, instances, memories, \
globals, and one stack for each thread that has Wasm frames. Locals, operands and code offsets need the module's \
types (--wasm FILE). Values that are not known, vectors and references are written as missing. Notes say what else \
is missing. The memory of a process is copied while the process runs.

--compat wasmgdb writes what wasmgdb 0.2.2 reads, which is not what the conventions say: it has no operand stacks, \
one memory in one segment, and no globals.

Exit codes: 0 written, 1 written but something is missing, 2 no Wasm module found or an error, 64 wrong usage.";

const EXPORT_EXAMPLES: &str = "\
Examples:
  wstate export -p 4711 --wasm-coredump app.coredump
  wstate export -c core.4711 -e ./near-host --wasm app.wasm --wasm-coredump app.coredump
  wstate export -c core.4711 --wasm app.wasm --compat wasmgdb --wasm-coredump app.coredump";

/// Mixed native and Wasm backtraces of live processes and cores.
#[derive(Debug, Parser)]
#[command(
    name = "wstate",
    version,
    about = "Mixed native and Wasm backtraces of live processes and cores, with Wasm locals and operand stacks",
    after_help = EXAMPLES,
    override_usage = "wstate attach [OPTIONS] <PID>\n       wstate core [OPTIONS] <CORE> [EXE]\n       \
        wstate [OPTIONS] --pid <PID>\n       wstate [OPTIONS] --core <CORE> [--executable <EXE>]\n       \
        wstate symbols [OPTIONS] --pid <PID> -o <FILE>\n       \
        wstate modules [OPTIONS] --pid <PID>\n       wstate memory [OPTIONS] --pid <PID> <ADDR> <LEN>\n       \
        wstate export [OPTIONS] --pid <PID> --wasm-coredump <FILE>\n       \
        wstate snapshot [OPTIONS] --pid <PID> -o <FILE>\n       wstate image [OPTIONS] <FILE>\n       wstate restore [OPTIONS] <PID> <IMAGE>\n       wstate doctor [PID]\n       wstate plugin <install|uninstall|path> [gdb|lldb]\n       wstate schema",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do; without one, `--pid` or `--core` says it.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Same as `attach PID`
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..),
        required_unless_present = "core", conflicts_with_all = ["core", "executable"])]
    pub pid: Option<u32>,
    /// Same as `core CORE`
    #[arg(short, long, value_name = "CORE")]
    pub core: Option<PathBuf>,
    /// The executable that wrote the core
    #[arg(short, long, value_name = "EXE", requires = "core")]
    pub executable: Option<PathBuf>,
    /// With --pid: let one thread run on to the next point where its operand stack is known, by at most 64 instructions
    #[arg(long, requires = "pid", conflicts_with = "core")]
    pub settle: bool,
    /// With --pid: do not stop the process; only threads that sleep have frames
    #[arg(long, requires = "pid", conflicts_with_all = ["core", "settle"])]
    pub nonblocking: bool,
    /// With --core: analyse it without a sandbox, with all rights of this user
    #[arg(long, requires = "core", conflicts_with = "pid")]
    pub no_sandbox: bool,
    /// What to show and how.
    #[command(flatten)]
    pub show: Show,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the stacks of a process
    #[command(override_usage = "wstate attach [OPTIONS] <PID>", long_about = ATTACH_HELP, after_help = ATTACH_EXAMPLES)]
    Attach(Attach),
    /// Print the stacks of a core
    #[command(override_usage = "wstate core [OPTIONS] <CORE> [EXE]", long_about = CORE_HELP, after_help = CORE_EXAMPLES)]
    Core(Core),
    /// Write a symbol file of the Wasm code for gdb and lldb
    #[command(
        override_usage = "wstate symbols [OPTIONS] --pid <PID> -o <FILE>\n       \
            wstate symbols [OPTIONS] --core <CORE> [--executable <EXE>] -o <FILE>",
        long_about = SYMBOLS_HELP,
        after_help = SYMBOLS_EXAMPLES
    )]
    Symbols(Symbols),
    /// List modules, instances, memories, globals and tables
    #[command(
        override_usage = "wstate modules [OPTIONS] --pid <PID>\n       \
            wstate modules [OPTIONS] --core <CORE> [--executable <EXE>]",
        long_about = MODULES_HELP,
        after_help = MODULES_EXAMPLES
    )]
    Modules(Modules),
    /// Print bytes of a linear memory
    #[command(
        override_usage = "wstate memory [OPTIONS] --pid <PID> <ADDR> <LEN>\n       \
            wstate memory [OPTIONS] --core <CORE> [--executable <EXE>] <ADDR> <LEN>",
        long_about = MEMORY_HELP,
        after_help = MEMORY_EXAMPLES
    )]
    Memory(Memory),
    /// Write a Wasm coredump
    #[command(
        override_usage = "wstate export [OPTIONS] --pid <PID> --wasm-coredump <FILE>\n       \
            wstate export [OPTIONS] --core <CORE> [--executable <EXE>] --wasm-coredump <FILE>",
        long_about = EXPORT_HELP,
        after_help = EXPORT_EXAMPLES
    )]
    Export(Export),
    /// Write an InstanceImage of the wasmer 0.x runtime
    #[command(
        override_usage = "wstate snapshot [OPTIONS] --pid <PID> -o <FILE>\n       \
            wstate snapshot [OPTIONS] --core <CORE> [--executable <EXE>] -o <FILE>",
        long_about = SNAPSHOT_HELP,
        after_help = SNAPSHOT_EXAMPLES
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
        after_help = RESTORE_EXAMPLES
    )]
    Restore(Restore),
    /// Say what would stop an attach, and the next step
    #[command(long_about = DOCTOR_HELP)]
    Doctor(Doctor),
    /// Print the JSON schema of reports
    Schema(Schema),
    /// Answer a debugger's plugin (see `wstate plugin`)
    Serve(Serve),
    /// Install, remove or locate the plugins for gdb and lldb
    #[command(long_about = PLUGIN_HELP, after_help = PLUGIN_EXAMPLES)]
    Plugin(Plugin),
}

/// `wstate schema`.
#[derive(Debug, Args)]
pub struct Schema {
    /// The document whose schema is printed
    #[arg(value_enum, default_value_t = Document::Report)]
    pub document: Document,
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

/// `wstate attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// The process
    #[arg(value_name = "PID", value_parser = clap::value_parser!(u32).range(1..), required_unless_present = "pid_flag")]
    pub pid: Option<u32>,
    /// The same as the positional argument.
    #[arg(short = 'p', long = "pid", hide = true, value_name = "PID", conflicts_with = "pid",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub pid_flag: Option<u32>,
    /// Let one thread run on to the next point where its operand stack is known, by at most 64 instructions; the process
    /// goes on from there
    #[arg(long)]
    pub settle: bool,
    /// Do not stop the process; only threads that sleep have frames
    #[arg(long, conflicts_with = "settle")]
    pub nonblocking: bool,
    /// What to show and how.
    #[command(flatten)]
    pub show: Show,
}

/// `wstate core`.
#[derive(Debug, Args)]
pub struct Core {
    /// The core file
    #[arg(value_name = "CORE", required_unless_present = "core_flag")]
    pub core: Option<PathBuf>,
    /// The executable that wrote the core
    #[arg(value_name = "EXE")]
    pub executable: Option<PathBuf>,
    /// The same as the positional argument.
    #[arg(short = 'c', long = "core", hide = true, value_name = "CORE")]
    pub core_flag: Option<PathBuf>,
    /// The same as the positional argument.
    #[arg(short = 'e', long = "executable", hide = true, value_name = "EXE", conflicts_with = "executable")]
    pub executable_flag: Option<PathBuf>,
    /// Analyse the core without a sandbox, with all rights of this user
    #[arg(long)]
    pub no_sandbox: bool,
    /// What to show and how.
    #[command(flatten)]
    pub show: Show,
}

/// `wstate doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The process; without one, only what holds for every process is checked
    #[arg(value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,
    /// Print JSON instead of text
    #[arg(short, long)]
    pub json: bool,
    /// Never use colour
    #[arg(long)]
    pub no_color: bool,
}

/// A process or a core.
#[derive(Clone, Debug, Args)]
pub struct ProcessOrCore {
    /// The process
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..),
        required_unless_present = "core", conflicts_with_all = ["core", "executable"])]
    pub pid: Option<u32>,
    /// The core file
    #[arg(short, long, value_name = "CORE")]
    pub core: Option<PathBuf>,
    /// The executable that wrote the core
    #[arg(short, long, value_name = "EXE", requires = "core")]
    pub executable: Option<PathBuf>,
}

impl ProcessOrCore {
    fn source(&self) -> Result<session::Source, Usage> {
        match (self.pid, &self.core) {
            (Some(pid), _) => Ok(session::Source::Pid(pid)),
            (None, Some(core)) => Ok(session::Source::Core { core: core.clone(), executable: self.executable.clone() }),
            (None, None) => Err(Usage("a process or a core is needed: --pid PID or --core CORE".to_string())),
        }
    }
}

/// Files that the user gives, and where to look for others.
#[derive(Clone, Debug, Args)]
pub struct Finding {
    /// A .wasm file that runs in the target, for names, types, byte offsets and lines (repeatable)
    #[arg(long, value_name = "FILE", help_heading = "Finding things")]
    pub wasm: Vec<PathBuf>,
    /// A cached artifact file of a module in the target (repeatable)
    #[arg(long, value_name = "FILE", help_heading = "Finding things")]
    pub artifact: Vec<PathBuf>,
    /// Search for modules only on this route (repeatable)
    #[arg(long, value_enum, value_name = "ROUTE", help_heading = "Finding things")]
    pub route: Vec<Route>,
    /// Look for the target's files under DIR first
    #[arg(long, value_name = "DIR", help_heading = "Finding things")]
    pub sysroot: Option<PathBuf>,
    /// Look for separate debug files in DIR (repeatable)
    #[arg(long, value_name = "DIR", help_heading = "Finding things")]
    pub debug_dir: Vec<PathBuf>,
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
            ..session::Options::new(source)
        })
    }
}

/// The options of `wstate symbols`.
#[derive(Debug, Args)]
pub struct Symbols {
    /// The process or core that the user names.
    #[command(flatten)]
    pub target: ProcessOrCore,
    /// Write to FILE; an old FILE is replaced only when everything is written
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
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
        Ok(session::Options { verbose: self.verbose, ..self.finding.options(self.target.source()?)? })
    }
}

/// The target and where to look for things, for commands that print no stacks.
#[derive(Clone, Debug, Args)]
pub struct Where {
    /// The process or core that the user names.
    #[command(flatten)]
    pub target: ProcessOrCore,
    /// Analyse the core without a sandbox, with all rights of this user
    #[arg(long, requires = "core", conflicts_with = "pid")]
    pub no_sandbox: bool,
    /// Tell on standard error what is being done
    #[arg(short, long)]
    pub verbose: bool,
    /// Where to look for things.
    #[command(flatten)]
    pub finding: Finding,
}

impl Where {
    /// Whether the analysis is done in a process that has given up its rights.
    pub fn confine(&self) -> bool {
        self.target.core.is_some() && !self.no_sandbox
    }

    /// The question to ask, or a usage error. `values` says whether locals and operand stacks are wanted.
    pub fn options(&self, values: bool) -> Result<session::Options, Usage> {
        let options = self.finding.options(self.target.source()?)?;
        Ok(session::Options { values, names: false, verbose: self.verbose, ..options })
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
    /// Print JSON instead of text; `wstate schema modules` describes it
    #[arg(short, long)]
    pub json: bool,
    /// Never use colour
    #[arg(long)]
    pub no_color: bool,
    /// The target.
    #[command(flatten)]
    pub place: Where,
}

/// `wstate memory`.
#[derive(Debug, Args)]
pub struct Memory {
    /// First address in the linear memory
    #[arg(value_name = "ADDR", value_parser = number)]
    pub address: u64,
    /// Number of bytes
    #[arg(value_name = "LEN", value_parser = number)]
    pub len: u64,
    /// The instance: its number in `wstate modules`, or its address (0x...)
    #[arg(long, value_name = "N", value_parser = instance)]
    pub instance: Option<session::InstanceChoice>,
    /// The index of the memory in the instance
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub memory: u32,
    /// Write the bytes as they are
    #[arg(long)]
    pub raw: bool,
    /// Write to FILE; an old FILE is replaced only when everything is written
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The target.
    #[command(flatten)]
    pub place: Where,
}

impl Memory {
    /// The stretch of a linear memory that is asked for.
    pub fn range(&self) -> session::MemoryRange {
        session::MemoryRange {
            instance: self.instance.unwrap_or(session::InstanceChoice::Only),
            memory: self.memory,
            address: self.address,
            len: self.len,
        }
    }
}

/// `wstate export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Write a Wasm coredump to FILE, which is replaced only when everything is written
    #[arg(long, value_name = "FILE", required = true)]
    pub wasm_coredump: PathBuf,
    /// Write the format that this reader understands
    #[arg(long, value_enum, value_name = "READER")]
    pub compat: Option<Compat>,
    /// The target.
    #[command(flatten)]
    pub place: Where,
}

/// A reader of coredumps that understands another format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// wasmgdb 0.2.2
    Wasmgdb,
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|e| e.to_string())
}

fn instance(text: &str) -> Result<session::InstanceChoice, String> {
    let n =
        number(text).map_err(|e| format!("{e}; give a number that `wstate modules` shows, or an address (0x...)"))?;
    if text.starts_with("0x") {
        return Ok(session::InstanceChoice::Address(n));
    }
    u32::try_from(n).map(session::InstanceChoice::Number).map_err(|e| e.to_string())
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
    #[arg(long, value_enum, value_name = "FORM", help_heading = "Output")]
    pub format: Option<Format>,
    /// The same as --format json
    #[arg(short, long, conflicts_with = "format", help_heading = "Output")]
    pub json: bool,
    /// Indent the JSON
    #[arg(long, help_heading = "Output")]
    pub pretty: bool,
    /// Write to FILE; an old FILE is replaced only when everything is written
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Never use colour; NO_COLOR and CLICOLOR=0 do the same, and only a terminal gets colour
    #[arg(long, help_heading = "Output")]
    pub no_color: bool,
    /// Show registers and how each frame was found, and tell on standard error what is being done
    #[arg(short, long, help_heading = "Output")]
    pub verbose: bool,
    /// Tell on standard error how long the target was stopped and what took how long; JSON has it too
    #[arg(long, help_heading = "Output")]
    pub timing: bool,

    /// Show only this thread, by its kernel thread id (repeatable)
    #[arg(short, long = "thread", value_name = "TID", help_heading = "Selection",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub thread: Vec<u32>,
    /// Show only the first thread
    #[arg(short = '1', help_heading = "Selection")]
    pub first: bool,
    /// Show at most N frames of each thread, or all with 0
    #[arg(short = 'n', value_name = "N", default_value_t = 0, help_heading = "Selection")]
    pub frames: usize,
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
        match (self.format, self.json || self.pretty) {
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
            limit: (self.frames != 0).then_some(self.frames),
            settle: live.settle,
            nonblocking: live.nonblocking,
            values: !self.brief,
            image: matches!(format, Format::Classic | Format::Image),
            // These forms show no native frame.
            names: !matches!(format, Format::Classic | Format::Image),
            lines: !self.no_lines,
            verbose: self.verbose,
            timing: self.timing,
            ..self.finding.options(source)?
        })
    }
}
