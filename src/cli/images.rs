//! Commands that make, show and use images of instances.

use crate::cli::numbers::{bits, instance, number, tid};
use crate::cli::target::{Expected, Named};
use crate::cli::{To, Usage, Where};
use crate::session::{InstanceChoice, Options, RestoreOptions, SnapshotOptions, Source};
use clap::{Args, ValueHint};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

pub(super) const SNAPSHOT_HELP: &str = "\
Writes an InstanceImage of the wasmer 0.x runtime: linear memory, globals and frames of an instance, in the \
runtime's own encoding. The process need not cooperate. It is stopped while it is copied.

A process can go on from an image only if the image's youngest frame is at a certain place: at a loop or a \
function's start (only modules compiled with full preemption have points there), at `unreachable`, or behind a call \
whose result is known. --settle first steps the thread to such a place; in modules without full preemption that is \
behind its next call. The command says whether the image is resumable, or why not and what to try. Modules that were \
compiled without track_state have no images.

Pages that are zero become holes in FILE. If FILE is a pipe, the process is stopped only until an unnamed file in \
$TMPDIR has everything. If FILE is /dev/stdout, what the command says goes to standard error.

--with-imports writes the imported globals, which an image does not have, to FILE.imports.json: a list of {index, \
type, bits}.

Exit codes: 0 written and resumable, 1 written but not resumable, 2 no image or an error, 64 wrong usage.";

pub(super) const SNAPSHOT_EXAMPLES: &str = "\
Examples:
  wstate snapshot 4711 --settle -o app.image
  wstate snapshot 4711 --thread 4713 --instance 1 -o app.image
  wstate snapshot core.4711 ./near-host -o app.image --with-imports
  wstate snapshot core.4711 --execution-state -o frames.image
  wstate snapshot 4711 -o /dev/stdout | zstd > app.image.zst";

/// `wstate snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    /// Where to write.
    #[command(flatten)]
    pub to: To,
    /// Take the frames of this thread, by its kernel thread id; without it, of the only thread that runs Wasm
    #[arg(short, long, value_name = "TID", value_parser = tid, allow_negative_numbers = true)]
    pub thread: Option<u32>,
    /// Take memory and globals of this instance: its number in `wstate modules`, or its address (0x...); without it, of
    /// the instance that the thread runs in
    #[arg(long, value_name = "N", value_parser = instance, allow_negative_numbers = true)]
    pub instance: Option<InstanceChoice>,
    /// Let the thread of a process run on to a place from which an image is resumable, by at most 100,000 instructions
    #[arg(long)]
    pub settle: bool,
    /// Write the frames only (an ExecutionStateImage)
    #[arg(long, conflicts_with = "with_imports")]
    pub execution_state: bool,
    /// Write imported globals to FILE.imports.json
    #[arg(long)]
    pub with_imports: bool,
    /// The target.
    #[command(flatten)]
    pub place: Where,
}

impl Snapshot {
    /// The question to ask, and whether it is answered in a sandbox, or a usage error.
    pub fn options(&self) -> Result<(Options, SnapshotOptions, bool), Usage> {
        let (options, confine) = self.place.options(true, "wstate snapshot 4711 -o app.image")?;
        if self.settle && matches!(options.source, Source::Core { .. }) {
            return Err(Usage("--settle lets a process run, and a core does not run: leave it out".to_string()));
        }
        let options = Options { threads: self.thread.into_iter().collect(), settle: self.settle, ..options };
        let instance = self.instance.unwrap_or(InstanceChoice::Only);
        Ok((options, SnapshotOptions { instance, execution_state: self.execution_state }, confine))
    }

    /// The file that is written, or a usage error.
    pub fn output(&self) -> Result<&PathBuf, Usage> {
        self.to.file()
    }

    /// The path of the file for imported globals, if they are to be written beside `output`.
    pub fn imports_path(&self, output: &Path) -> Option<PathBuf> {
        let mut name = output.as_os_str().to_owned();
        name.push(".imports.json");
        self.with_imports.then(|| name.into())
    }
}

pub(super) const IMAGE_HELP: &str = "\
Prints an image: its frames as the runtime itself prints them, its globals and the size of its memory. --hexdump \
prints bytes of the memory instead, and --diff prints what is different in another image.

An image may come from a stranger. Therefore it is read in a sandbox: a child process that can do nothing else. \
--no-sandbox reads it without this protection.

Exit codes: 0 printed and, with --diff, equal; 1 different; 2 no image or an error; 64 wrong usage.";

pub(super) const IMAGE_EXAMPLES: &str = "\
Examples:
  wstate image app.image
  wstate image app.image --hexdump 0x400 64
  wstate image before.image --diff after.image
  wstate image app.image --json";

/// `wstate image`.
#[derive(Debug, Args)]
pub struct Image {
    /// The image: an InstanceImage, or an ExecutionStateImage
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Print LEN bytes of its memory from ADDR on, sixteen in a line
    #[arg(long, num_args = 2, value_names = ["ADDR", "LEN"], value_parser = number, allow_negative_numbers = true,
        conflicts_with = "diff")]
    pub hexdump: Vec<u64>,
    /// Print what is different in the image B
    #[arg(long, value_name = "B", value_hint = ValueHint::FilePath)]
    pub diff: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(short, long, conflicts_with = "hexdump", help_heading = "Output")]
    pub json: bool,
    /// Where to write.
    #[command(flatten)]
    pub to: To,
    /// Read the files without a sandbox, with all rights of this user
    #[arg(long)]
    pub no_sandbox: bool,
    /// Tell on standard error what is being done
    #[arg(short, long)]
    pub verbose: bool,
}

pub(super) const RESTORE_HELP: &str = "\
Makes a process go on from an image. The memory and the globals of an instance and the Wasm frames of one thread are \
replaced by those of the image. What the oldest frame of the image returns goes to the host's code that called into \
Wasm in that thread.

The process must have the same module, and a thread that is in the module's code, called from the host. What the \
host itself keeps about the instance stays as it is. Nobody else may be in the instance: neither another thread, nor \
an older frame of the same thread. wstate cannot see a parked fiber or coroutine, or another process that shares the \
memory, so make sure that there is none.

Without --yes nothing is changed, and the command only says whether the process could go on. If a step fails, the \
process is put back as it was. The frames are on a stack of their own, which stays mapped when they have returned (8 \
MiB, of which memory is used only as far as it is needed).

Checked are functions, points, locals and operands of all frames, the number of globals, and the memory's size. A \
module that differs in nothing of this cannot be told from the right one.

Signals that would end or stop wstate wait until the process is whole and the result is printed. kill -9 cannot \
wait: the process then goes on with only a part of the changes, and you must end it.

Exit codes: 0 restored, 1 it could be restored (without --yes), 2 refused or failed, 64 wrong usage.";

pub(super) const RESTORE_EXAMPLES: &str = "\
Examples:
  wstate restore 4711 app.image
  wstate restore 4711 app.image --yes
  wstate restore 4711 app.image --yes --return 0";

/// `wstate restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The process
    #[arg(value_name = "PID")]
    pub process: Option<OsString>,
    /// The image
    #[arg(value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub image: Option<OsString>,
    /// The flags that name the process.
    #[command(flatten)]
    pub named: Named,
    /// Change the process; without this, only say whether it could be done
    #[arg(long)]
    pub yes: bool,
    /// The result of the call that the image's youngest frame has just made, as raw bits: decimal (also negative), or
    /// hexadecimal with 0x
    #[arg(long = "return", value_name = "VALUE", value_parser = bits, allow_hyphen_values = true)]
    pub result: Option<u64>,
    /// Replace the frames of this thread, by its kernel thread id; without it, of the only thread that runs Wasm
    #[arg(short, long, value_name = "TID", value_parser = tid, allow_negative_numbers = true)]
    pub thread: Option<u32>,
    /// Tell on standard error what is being done
    #[arg(short, long)]
    pub verbose: bool,
}

impl Restore {
    /// The process and the question to ask, or a usage error.
    pub fn options(&self) -> Result<(u32, Options, RestoreOptions), Usage> {
        const EXAMPLE: &str = "wstate restore 4711 app.image";
        // The parser fills words in from the left, and it is the last one that is IMAGE.
        let words: Vec<&OsStr> = self.process.iter().chain(&self.image).map(OsString::as_os_str).collect();
        let missing = |what: &str| Err(Usage(format!("{what} missing, as in: {EXAMPLE}")));
        let (target, image) = match words[..] {
            [] if self.named.is_target() => return missing("IMAGE is"),
            [] => return missing("PID and IMAGE are"),
            [_] if !self.named.is_target() => return missing("PID or IMAGE is"),
            [ref target @ .., image] => (target, image),
        };
        let pid = match self.named.source(target, Expected::Either)? {
            Some(Source::Pid(pid)) => pid,
            Some(Source::Core { .. }) => {
                return Err(Usage(format!("a core cannot go on, only a process can: give its id, as in: {EXAMPLE}")));
            }
            None => return missing("PID is"),
        };
        let options = Options {
            threads: self.thread.into_iter().collect(),
            values: false,
            names: false,
            verbose: self.verbose,
            ..Options::new(Source::Pid(pid))
        };
        let wanted = RestoreOptions { really: self.yes, result: self.result, ..RestoreOptions::new(image) };
        Ok((pid, options, wanted))
    }
}
