//! Questions about a target, and their answers.
//!
//! A [`Session`] is asked: each of its methods opens the core or stops the process, reads what it needs, and lets the
//! process go on before it returns.

mod code_map;
mod contents;
mod debuginfod;
mod export;
mod image;
mod image_file;
mod look;
mod memory;
mod options;
mod outcome;
mod own_names;
mod proof;
mod restore;
mod settle;
mod snapshot;
mod stacks;
mod stepping;
mod view;
mod waiting;
mod walking;

#[cfg(feature = "cli")]
pub use self::image_file::parse as parse_image;
pub use self::look::Look;
pub use self::memory::{InstanceChoice, MemoryRange};
pub use self::options::{Options, Source};
pub use self::outcome::Outcome;
pub use self::restore::{RestoreOptions, Restored, SignalsLater};
pub use self::snapshot::{ImportedGlobal, Resumable, Returned, Snapshot, SnapshotOptions, SparseWrite};
pub use crate::runtime::singlepass::find::anchor::Route;

use self::proof::{Files, Proven};
use crate::error::Error;
use crate::process::Target;
use crate::process::core::CoreTarget;
use crate::process::debuginfod::Fetched;
use crate::process::files::Steady;
use crate::process::live::attachable;
use crate::process::objects::Objects;
use crate::progress::{Progress, Silent};
use crate::runtime::all::FindOptions;
use std::cell::RefCell;
use std::time::Duration;

/// Answers questions about one target.
///
/// Between two questions a process runs on, so that two answers may be of different moments. What one answer says is
/// of one moment.
///
/// ```no_run
/// use wstate::{Error, Options, Session, Source};
///
/// fn print_depths(pid: u32) -> Result<(), Error> {
///     let session = Session::open(&Options::new(Source::Pid(pid)))?;
///     let outcome = session.stacks()?;
///     for thread in &outcome.report.threads {
///         println!("thread {:?} has {} frames", thread.tid, thread.frames.len());
///     }
///     Ok(())
/// }
/// ```
pub struct Session<'t> {
    options: Options,
    found: FindOptions,
    /// The target, if the caller has brought one.
    given: Option<&'t dyn Target>,
    progress: Box<dyn Progress + 't>,
    /// What was fetched from servers, if they were asked.
    fetched: RefCell<Option<Fetched>>,
}

impl<'t> Session<'t> {
    /// Begins a session with the target that `options` names, and reads the files that the user names. A process is not
    /// stopped yet, and a core is not read yet: each question does that.
    ///
    /// # Errors
    /// [`Error::Attach`] if there is no such process, or if it is one that nobody can look at. [`Error::Unusable`] if a
    /// directory that `options` names is not there.
    pub fn open(options: &Options) -> Result<Session<'t>, Error> {
        if let Source::Pid(pid) = options.source {
            attachable(pid)?;
        }
        options.check_directories()?;
        Ok(Session::new(options, None))
    }

    /// Begins a session with a target that the caller has brought. Of `options.source` only the executable is opened, if
    /// one is named; the rest is only named in answers. Nothing is settled.
    pub fn on(target: &'t dyn Target, options: &Options) -> Session<'t> {
        Session::new(options, Some(target))
    }

    fn new(options: &Options, given: Option<&'t dyn Target>) -> Session<'t> {
        let found = FindOptions::read(options.routes.clone(), &options.artifacts, &options.wasm);
        Session { options: options.clone(), found, given, progress: Box::new(Silent), fetched: RefCell::default() }
    }

    /// Has the progress of work that may take long told to `progress`. Without this, nobody hears of it.
    pub fn with_progress(self, progress: impl Progress + 't) -> Session<'t> {
        Session { progress: Box::new(progress), ..self }
    }

    /// The process that is stopped for each question. There is none if the target is a core, or was brought.
    fn process(&self) -> Option<u32> {
        match self.options.source {
            Source::Pid(pid) if self.given.is_none() => Some(pid),
            _ => None,
        }
    }

    fn look<'a>(&'a self, target: &'a dyn Target, objects: &'a Objects) -> Look<'a> {
        Look { target, objects, options: &self.options, progress: &*self.progress }
    }

    /// Opens or stops the target and asks `question`, of a process as often as it takes until the answer is of one
    /// instant. `question` returns `None` if it saw before its end that what it read is not.
    fn ask<T>(&self, mut question: impl FnMut(&Look<'_>) -> Result<Option<T>, Error>) -> Result<Answer<'t, T>, Error> {
        let search = self.search_paths()?;
        let mut once = |target: &dyn Target| {
            let objects = Objects::load(target, &search);
            question(&self.look(target, &objects))?.ok_or_else(proof::gone)
        };
        match (self.given, &self.options.source) {
            (Some(target), _) => Ok(Answer { value: once(target)?, from: Origin::Caller(target) }),
            (None, Source::Core { core, .. }) => {
                let core = CoreTarget::open(core, &search)?;
                Ok(Answer { value: once(&core)?, from: Origin::Core(Box::new(core)) })
            }
            (None, Source::Pid(pid)) => {
                let mut files = Files::default();
                let proven = proof::prove(*pid, |target, _| {
                    let answer = question(&self.look(&target, files.of(&target, &search)));
                    Ok((answer.transpose(), target))
                });
                proven.map(Answer::of_process)
            }
        }
    }
}

/// An answer, and the target that it is about.
struct Answer<'t, T> {
    value: T,
    from: Origin<'t>,
}

/// What a target was made from.
enum Origin<'t> {
    Caller(&'t dyn Target),
    Core(Box<CoreTarget>),
    /// A process, as it was when it was stopped for the answer.
    Process(Box<Proven<()>>),
}

impl<'t, T> Answer<'t, T> {
    fn of_process(proven: Proven<T>) -> Answer<'t, T> {
        let Proven { answer, target, stops, stood, whole } = proven;
        let process = Proven { answer: (), target, stops, stood, whole };
        Answer { value: answer, from: Origin::Process(Box::new(process)) }
    }
}

impl Origin<'_> {
    /// The process that was stopped for the answer.
    fn process(&self) -> Option<&Proven<()>> {
        match self {
            Origin::Process(proven) => Some(proven),
            Origin::Caller(_) | Origin::Core(_) => None,
        }
    }

    /// Whether nothing was left out because it could not be proven to be of the instant of the answer.
    fn is_whole(&self) -> bool {
        self.process().is_none_or(|process| process.whole)
    }

    /// How long the process was stopped, if the target is one.
    fn stood(&self) -> Option<Duration> {
        self.process().map(|process| process.stood)
    }

    /// Notes about how the answer was obtained.
    fn notes(&self, verbose: bool) -> Vec<String> {
        self.process().map_or(Vec::new(), |process| process.notes(verbose))
    }
}

/// Fails if a file was changed while it was read. This is for work that is not repeated in that case.
fn no_changes(steady: &Steady) -> Result<(), Error> {
    match steady.again() {
        true => Err(Error::Changed { what: format!("the answer may be wrong: {}", steady.notes().join("; ")) }),
        false => Ok(()),
    }
}
