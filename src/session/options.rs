//! What is asked: which target, what to look for in it, and what the answer is to contain.

#[cfg(doc)]
use super::Outcome;
use super::Route;
use crate::error::Error;
use crate::process::files;
use crate::process::objects::SearchPaths;
use std::path::{Path, PathBuf};

/// The target of a session: a process or a core file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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

/// What a session looks at, where it looks for files, and what its answers are to contain.
///
/// [`Options::new`] has the usual value of each option; a caller changes those that it wants otherwise:
///
/// ```
/// use wstate::{Options, Source};
///
/// let mut options = Options::new(Source::Pid(4711));
/// options.limit = Some(100);
/// options.wasm = vec!["app.wasm".into()];
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// What to look at: a process or a core.
    pub source: Source,
    /// Kernel ids of the threads to look at; if there are none, all threads are looked at.
    pub threads: Vec<u32>,
    /// Whether to look only at the first of these threads.
    pub first_thread_only: bool,
    /// The most frames to show of each thread; `None` for as many as there are, up to 300,000.
    pub limit: Option<usize>,
    /// Paths of `.wasm` files that the modules may come from.
    pub wasm: Vec<PathBuf>,
    /// Paths of cached artifact files of modules in the target.
    pub artifacts: Vec<PathBuf>,
    /// The routes on which to search for modules; if there are none, all routes are used.
    pub routes: Vec<Route>,
    /// Whether not to stop a live process. Then only threads that sleep have frames, and nothing is settled.
    pub nonblocking: bool,
    /// Whether to step the selected thread of a live process to the next point at which the operand stack is known.
    pub settle: bool,
    /// Directory under which the target's files are looked for first.
    pub sysroot: Option<PathBuf>,
    /// Directories of separate debug files.
    pub debug_dirs: Vec<PathBuf>,
    /// Whether debuginfod servers are asked for debug files and executables that are missing here. This runs the program
    /// `debuginfod-find`, which asks the servers in the environment variable `DEBUGINFOD_URLS`.
    pub debuginfod: bool,
    /// Whether locals and operand stacks are wanted at all.
    pub values: bool,
    /// Whether [`Outcome::classic`] and [`Outcome::image`] are wanted.
    pub image: bool,
    /// Whether native frames get names, files and lines. Reading debug information takes most of the time of a
    /// report.
    pub names: bool,
    /// Whether native frames get files, lines and inlined functions, where they get names.
    pub lines: bool,
    /// Whether the answer also has registers, and notes about how it was obtained.
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
            debuginfod: false,
            values: true,
            image: false,
            names: true,
            lines: true,
            verbose: false,
            timing: false,
        }
    }

    /// Fails if a directory in which files are to be looked for is not there: whoever names one relies on it.
    pub(crate) fn check_directories(&self) -> Result<(), Error> {
        let sysroot = self.sysroot.iter().map(|path| (path, "the root of the target's files (sysroot)"));
        let debug = self.debug_dirs.iter().map(|path| (path, "separate debug files (debug directory)"));
        for (path, what) in sysroot.chain(debug) {
            if let Some(why) = files::no_directory(path) {
                let why = format!("{why}; name the directory that holds {what}, or none");
                return Err(Error::Unusable { path: path.clone(), why });
            }
        }
        Ok(())
    }

    /// Where this question looks for files.
    pub(crate) fn search_paths(&self) -> SearchPaths {
        SearchPaths {
            executable: self.executable().map(Path::to_path_buf),
            sysroot: self.sysroot.clone(),
            debug_dirs: self.debug_dirs.clone(),
            ..SearchPaths::default()
        }
    }

    /// The executable that the user says has written the core.
    pub(super) fn executable(&self) -> Option<&Path> {
        match &self.source {
            Source::Core { executable, .. } => executable.as_deref(),
            Source::Pid(_) => None,
        }
    }

    /// All files that the user names: they are read, and should not be written to.
    #[cfg(feature = "cli")]
    pub(crate) fn named_files(&self) -> impl Iterator<Item = &Path> {
        let core = match &self.source {
            Source::Core { core, .. } => Some(core.as_path()),
            Source::Pid(_) => None,
        };
        let files = self.wasm.iter().chain(&self.artifacts).map(PathBuf::as_path);
        core.into_iter().chain(self.executable()).chain(files)
    }
}
