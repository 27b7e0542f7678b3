//! Errors shown to a user: what was done, to what, and what to try next.

use std::io::ErrorKind;
use std::path::PathBuf;

/// A fatal error of a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened or read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A core file is not one that can be analysed.
    #[error("{path} is not a core that wstate can read: {why}")]
    Core {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A process could not be captured.
    #[error("cannot attach to process {pid}: {why}")]
    Attach {
        /// The process.
        pid: u32,
        /// What the kernel said and what to try.
        why: String,
    },
    /// A `.wasm` file does not belong to the target, or is no module.
    #[error("{path} does not fit: {why}")]
    Wasm {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// An artifact file is broken or does not belong to the target.
    #[error("artifact {path} cannot be used: {why}")]
    Artifact {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A symbol file could not be made.
    #[error("symbols for {path} cannot be written down: {why}")]
    Symbols {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The process that analyses ([`crate::sandbox`]) died.
    #[error("the analysis broke off: {why}; this is a bug, and what was printed is not whole")]
    Analysis {
        /// How it died.
        why: String,
    },
    /// What was asked for is not there.
    #[error("{what}")]
    NotFound {
        /// What, and what to try.
        what: String,
    },
    /// Output could not be written.
    #[error("cannot write {to}: {source}")]
    Output {
        /// Where to.
        to: String,
        /// Why.
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
