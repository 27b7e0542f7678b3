//! Answers from the program `wstate`, which this module starts as a process of its own.
//!
//! A core may come from a stranger, and so may every file that it names. Whoever reads them with a
//! [`Session`] reads them in its own process: a bug in a parser is then a bug in that process. The program
//! reads a core in a sandbox instead: in a child process that can read files and write its answer, but cannot use the
//! network, start programs, touch other processes, or write or remove files. A [`Program`] starts it and reads the answer,
//! within limits of time and size. The caller's process forks nothing but that program, so it may have any number of
//! threads.
//!
//! ```no_run
//! use std::time::Duration;
//! use wstate::confined::Program;
//! use wstate::model::TextOptions;
//! use wstate::{Error, Options, Source};
//!
//! fn print(core: &str) -> Result<(), Error> {
//!     let program = Program::new("/usr/bin/wstate").within(Duration::from_secs(60));
//!     let options = Options::new(Source::Core { core: core.into(), executable: None });
//!     print!("{}", program.stacks(&options)?.to_text(TextOptions::default()));
//!     Ok(())
//! }
//! ```
//!
//! Where the system has no seccomp, there is no sandbox. The answer is an error then, as long as
//! [`Program::or_without_sandbox`] does not allow to go on.
//!
//! A process ([`Source::Pid`]) can be asked about in the same way. Looking at a process needs the right to trace it, so
//! there is no sandbox around that; what the program's process of its own saves the caller from is a crash, a search that
//! takes too long, and too much memory.

use crate::error::Error;
use crate::report::Report;
use crate::report::contents::{Contents, Lists};
#[cfg(doc)]
use crate::session::Session;
use crate::session::{Options, Source};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of an answer that are read if the caller says nothing else. An answer takes a kilobyte for each frame.
const USUAL_SIZE: u64 = 256 << 20;
/// The time that an answer may take if the caller says nothing else.
const USUAL_TIME: Duration = Duration::from_secs(300);
/// Bytes that are kept of what the program says on standard error.
const MOST_ERROR_TEXT: u64 = 64 << 10;
/// How often it is looked whether the program has ended, once it has closed its output.
const PAUSE: Duration = Duration::from_millis(2);

/// The program `wstate`, as it is started for each question.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    time: Duration,
    size: u64,
    is_sandbox_required: bool,
}

impl Program {
    /// The program at this path; a name without a slash is looked for on `PATH`. An answer may take five minutes and have
    /// 256 MiB.
    pub fn new(path: impl Into<PathBuf>) -> Program {
        Program { path: path.into(), time: USUAL_TIME, size: USUAL_SIZE, is_sandbox_required: true }
    }

    /// Lets each answer take so much time. After that the program is ended, and the answer is an error.
    #[must_use]
    pub fn within(self, time: Duration) -> Program {
        Program { time, ..self }
    }

    /// Lets each answer have so many bytes of JSON. If there are more, the program is ended, and the answer is an error.
    /// Reading the answer takes up to some twenty times as much memory, whatever it says.
    #[must_use]
    pub fn at_most(self, bytes: u64) -> Program {
        Program { size: bytes, ..self }
    }

    /// Lets the program read a core without a sandbox where the system has none. Otherwise the answer is an error there.
    #[must_use]
    pub fn or_without_sandbox(self) -> Program {
        Program { is_sandbox_required: false, ..self }
    }

    /// The native and Wasm frames of all threads of a target, as [`Session::stacks`] has them.
    ///
    /// The report is what the program's JSON says ([`Report::from_json`]): bytes of source variables are not in it.
    ///
    /// # Errors
    /// The program cannot be started, takes too long or answers too much, cannot look at the target, or breaks off. The
    /// error has what the program said. It is also an error to ask for an image ([`Options::image`]), or for a report without
    /// names.
    pub fn stacks(&self, options: &Options) -> Result<Report, Error> {
        // Every option is named here, so that a new one is not forgotten. Those that the end of the list has are for all
        // commands.
        let Options {
            source,
            threads,
            first_thread_only,
            limit,
            nonblocking,
            settle,
            values,
            image,
            names,
            lines,
            timing,
            verbose: _,
            wasm: _,
            artifacts: _,
            routes: _,
            sysroot: _,
            debug_dirs: _,
            debuginfod: _,
        } = options;
        let command = match source {
            Source::Pid(_) => "attach",
            Source::Core { .. } => "core",
        };
        if *image || !names {
            let what = if *image { "an image beside the report (Options::image)" } else { "no names (Options::names)" };
            return Err(not_possible(&format!("give {what}")));
        }
        if *limit == Some(0) {
            // 0 stands for all frames on the command line.
            return Err(not_possible("give no frames (Options::limit)"));
        }
        let mut arguments: Vec<OsString> = vec![command.into(), "--json".into()];
        arguments.extend(threads.iter().map(|tid| format!("--thread={tid}").into()));
        arguments.extend(limit.map(|limit| format!("-n{limit}").into()));
        let flags = [
            (*first_thread_only, "-1"),
            (!values, "--brief"),
            (!lines, "--no-lines"),
            (*timing, "--timing"),
            (*settle, "--settle"),
            (*nonblocking, "--nonblocking"),
        ];
        arguments.extend(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| OsString::from(flag)));
        Report::from_json(&self.answer(arguments, options)?)
    }

    /// The contents of the modules of a target, as [`Session::modules`] has them.
    ///
    /// # Errors
    /// As for [`Program::stacks`].
    pub fn modules(&self, options: &Options, lists: Lists) -> Result<Contents, Error> {
        let passed_on = Options {
            wasm: options.wasm.clone(),
            artifacts: options.artifacts.clone(),
            routes: options.routes.clone(),
            sysroot: options.sysroot.clone(),
            debug_dirs: options.debug_dirs.clone(),
            debuginfod: options.debuginfod,
            verbose: options.verbose,
            // These change nothing of what modules hold.
            values: options.values,
            names: options.names,
            lines: options.lines,
            ..Options::new(options.source.clone())
        };
        if *options != passed_on {
            return Err(not_possible(
                "list modules with options that select threads, frames or a way to look at a process",
            ));
        }
        let mut arguments: Vec<OsString> = vec!["modules".into(), "--json".into()];
        arguments.extend(lists.functions.then(|| "--functions".into()));
        arguments.extend(lists.exports.then(|| "--exports".into()));
        arguments.extend(lists.native.then(|| "--native".into()));
        Contents::from_json(&self.answer(arguments, options)?)
    }

    /// Adds what all commands have to the arguments, and runs the program.
    fn answer(&self, mut arguments: Vec<OsString>, options: &Options) -> Result<String, Error> {
        arguments.extend(common(options));
        let mut command = Command::new(&self.path);
        command.args(arguments).stdin(Stdio::null());
        match self.is_sandbox_required {
            true => command.env("WSTATE_SANDBOX", "required"),
            false => command.env_remove("WSTATE_SANDBOX"),
        };
        let Ended { status, output, said } = self.run(command)?;
        // With code 2 an answer may have been written all the same, which says that nothing was found.
        if matches!(status.code(), Some(0..=2)) && !output.is_empty() {
            return String::from_utf8(output).map_err(|_| self.error("its answer is no text".to_string(), None));
        }
        let (why, hint) = message(&said);
        if let Some(signal) = status.signal() {
            return Err(self.error(format!("it was ended by signal {signal}"), why.or(hint)));
        }
        Err(self.error(why.unwrap_or_else(|| format!("it says nothing, and has ended with {status}")), hint))
    }

    fn error(&self, why: String, hint: Option<String>) -> Error {
        Error::Program { program: self.path.clone(), why, hint }
    }

    /// Runs the program to its end, within the limits.
    fn run(&self, mut command: Command) -> Result<Ended, Error> {
        let deadline = Instant::now().checked_add(self.time);
        let started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map(Running);
        let mut running = started.map_err(|e| {
            self.error(format!("it cannot be started: {e}"), Some("give the path of the program wstate".to_string()))
        })?;
        let child = &mut running.0;
        let too_late = || {
            let hint = "allow more time, or ask for less: a limit of frames, no lines, no values";
            self.error(format!("it was ended after {:?}", self.time), Some(hint.to_string()))
        };
        let said = child.stderr.take().map(|pipe| in_background(pipe, MOST_ERROR_TEXT, Rest::IsPassedOver));
        let output = child.stdout.take().map(|pipe| in_background(pipe, self.size, Rest::Ends));
        let Some((said, output)) = said.zip(output) else {
            return Err(self.error("its output cannot be read".to_string(), None));
        };
        let output = until(deadline, &output).ok_or_else(too_late)?;
        let output = output.map_err(|e| self.error(format!("its output cannot be read: {e}"), None))?;
        if output.len() as u64 > self.size {
            let hint = "allow more bytes, or ask for less: a limit of frames, no values";
            return Err(self.error(format!("its answer has more than {} bytes", self.size), Some(hint.to_string())));
        }
        let said = until(deadline, &said).ok_or_else(too_late)?.unwrap_or_default();
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(Ended { status, output, said: String::from_utf8_lossy(&said).into() }),
                Ok(None) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Err(too_late()),
                Ok(None) => thread::sleep(PAUSE),
                Err(e) => return Err(self.error(format!("its end cannot be waited for: {e}"), None)),
            }
        }
    }
}

/// The error for a question that the program's command line cannot ask.
fn not_possible(what: &str) -> Error {
    Error::Unsupported {
        what: format!("the program cannot be told to {what}; leave that as Options::new has it, or ask a Session"),
    }
}

/// How the program ended, and what it has written.
struct Ended {
    status: ExitStatus,
    output: Vec<u8>,
    said: String,
}

/// A program that is ended, if it has not ended by itself, when nobody waits for it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Neither can fail for a child that nobody else waits for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What becomes of the bytes that are too many.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// They are read, so that the program goes on, and are not kept.
    IsPassedOver,
    /// Reading ends after one of them.
    Ends,
}

/// Reads a pipe to its end in a thread, because the program may write to its two pipes in any order.
fn in_background(pipe: impl Read + Send + 'static, most: u64, rest: Rest) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        let mut pipe = pipe;
        let mut bytes = Vec::new();
        let first = pipe.by_ref().take(most.saturating_add(u64::from(rest == Rest::Ends))).read_to_end(&mut bytes);
        let result = match rest {
            Rest::IsPassedOver => first.and_then(|_| io::copy(&mut pipe, &mut io::sink())),
            Rest::Ends => first.map(|_| 0),
        };
        // Whoever waited may have given up.
        let _ = sender.send(result.map(|_| bytes));
    };
    // Without a thread the sender is gone, which counts as an output that cannot be read.
    let _ = thread::Builder::new().name("wstate-output".to_string()).spawn(read);
    receiver
}

/// What a thread has read, or `None` if it takes too long.
fn until(deadline: Option<Instant>, read: &Receiver<io::Result<Vec<u8>>>) -> Option<io::Result<Vec<u8>>> {
    let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
    match read.recv_timeout(left) {
        Ok(result) => Some(result),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(Err(io::Error::other("no thread can be started for that"))),
    }
}

/// The arguments that say which target is meant and where things are looked for. A value stands in one argument with its
/// flag, so that no path is taken for a flag.
fn common(options: &Options) -> Vec<OsString> {
    let with = |flag: &str, value: &OsStr| {
        let mut argument = OsString::from(flag);
        argument.push(value);
        argument
    };
    let mut arguments = match &options.source {
        Source::Pid(pid) => vec![format!("--pid={pid}").into()],
        Source::Core { core, executable } => {
            let executable = executable.iter().map(|path| with("--executable=", path.as_os_str()));
            [with("--core=", core.as_os_str())].into_iter().chain(executable).collect()
        }
    };
    arguments.extend(options.wasm.iter().map(|path| with("--wasm=", path.as_os_str())));
    arguments.extend(options.artifacts.iter().map(|path| with("--artifact=", path.as_os_str())));
    arguments.extend(options.sysroot.iter().map(|path| with("--sysroot=", path.as_os_str())));
    arguments.extend(options.debug_dirs.iter().map(|path| with("--debug-dir=", path.as_os_str())));
    arguments.extend(options.routes.iter().map(|route| with("--route=", OsStr::new(route.name()))));
    arguments.extend(options.debuginfod.then(|| "--debuginfod".into()));
    arguments.extend(options.verbose.then(|| "--verbose".into()));
    // What it says is read, whatever the environment says about colour.
    arguments.push("--color=never".into());
    arguments
}

/// The error and the hint in what the program says on standard error.
fn message(said: &str) -> (Option<String>, Option<String>) {
    let after = |start: &str| said.lines().find_map(|line| line.strip_prefix(start)).map(str::to_string);
    let last = || said.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_string);
    (after("wstate: error: ").or_else(|| after("error: ")).or_else(last), after("hint: "))
}
