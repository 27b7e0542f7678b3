//! Errors that are shown to a user. They tell what was done, to what, and what to try next.

use std::io::ErrorKind;
use std::path::PathBuf;

/// A fatal error of a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened or read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Path of the file that could not be read.
        path: PathBuf,
        /// What the system said when the file was opened or read.
        source: std::io::Error,
    },
    /// A core file is not one that can be analysed.
    #[error("{path} is not a core that wstate can read: {why}")]
    Core {
        /// Path of the file that was opened as a core.
        path: PathBuf,
        /// What is wrong with the file.
        why: String,
    },
    /// A process could not be captured.
    #[error("cannot attach to process {pid}: {why}")]
    Attach {
        /// Number of the process (pid).
        pid: u32,
        /// What the kernel said, and what the user can try.
        why: String,
    },
    /// A `.wasm` file does not belong to the target, or is no module.
    #[error("{path} does not fit: {why}")]
    Wasm {
        /// Path of the `.wasm` file.
        path: PathBuf,
        /// Why the file does not belong to the target, or is no module.
        why: String,
    },
    /// An artifact file is broken or does not belong to the target.
    #[error("artifact {path} cannot be used: {why}")]
    Artifact {
        /// Path of the artifact file.
        path: PathBuf,
        /// Why the artifact cannot be used.
        why: String,
    },
    /// A symbol file could not be made.
    #[error("symbols for {path} cannot be written down: {why}")]
    Symbols {
        /// Path of the symbol file.
        path: PathBuf,
        /// Why the symbol file could not be made.
        why: String,
    },
    /// The process that does the analysis (the sandbox of the command line) died.
    #[error("the analysis broke off: {why}; this is a bug, and what was printed is not whole")]
    Analysis {
        /// How the process died.
        why: String,
    },
    /// What the user asked for does not exist.
    #[error("{what}")]
    NotFound {
        /// What does not exist, and what the user can try.
        what: String,
    },
    /// Output could not be written.
    #[error("cannot write {to}: {source}")]
    Output {
        /// Where the output should go, in words for the user.
        to: String,
        /// What the system said when the output was written.
        source: std::io::Error,
    },
}

impl Error {
    /// What the user can try next, if there is something better than reading the message again.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Attach { pid, .. } => Some(format!("try: wstate doctor {pid}")),
            Error::Analysis { .. } => Some("please report it, if you may with the core and its executable".to_string()),
            Error::Output { source, .. } => match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                    Some("make room, or name a place that has some; no file was replaced by half of one".to_string())
                }
                _ => None,
            },
            _ => None,
        }
    }
}
