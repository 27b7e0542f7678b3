//! Errors that are shown to a user. They tell what was done, to what, and what to try next.

use std::io::ErrorKind;
use std::path::PathBuf;

/// What to do about a bug: where it is told of, and what helps to find it. The place is the repository that the package
/// names; a build of a package that names none can only be reported to whoever handed it on.
pub const REPORT_IT: &str = match env!("CARGO_PKG_REPOSITORY").is_empty() {
    false => concat!(
        "please report it at ",
        env!("CARGO_PKG_REPOSITORY"),
        ", with this message and what `wstate --version` prints"
    ),
    true => "please report it to those who gave you wstate, with this message and what `wstate --version` prints",
};

/// What to do where there is not enough memory or address space for what is asked for.
pub const MORE_MEMORY: &str = "raise the limit (ulimit -v, or the container's)";

/// Why there is no answer. The variants are for callers that decide what to do; the text is for the user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// A file that the user named is not used, and the work cannot be done without it.
    #[error("{path} is not used: {why}")]
    Unusable {
        /// Path of the file.
        path: PathBuf,
        /// Why the file is not used.
        why: String,
    },
    /// A file has no image in it.
    #[error("{path} is no image: {why}")]
    NotAnImage {
        /// Path of the file.
        path: PathBuf,
        /// Why the file is no image, and what else it may be.
        why: String,
    },
    /// A text is no document of wstate, or one that this version cannot read.
    #[error("this is no document that wstate can read: {why}")]
    Document {
        /// What is wrong with the text.
        why: String,
    },
    /// The program `wstate`, which was started for an answer, has given none.
    #[error("{program} gives no answer: {why}")]
    Program {
        /// Path of the program.
        program: PathBuf,
        /// What the program said, or what became of it.
        why: String,
        /// What can be tried next, if something is known.
        hint: Option<String>,
    },
    /// The target has no thread with this number.
    #[error("{what}")]
    NoSuchThread {
        /// Kernel id of the thread that was asked for.
        tid: u32,
        /// A sentence for the user.
        what: String,
    },
    /// The target has no such instance, or none at all.
    #[error("{what}")]
    NoSuchInstance {
        /// A sentence for the user: which instances there are.
        what: String,
    },
    /// The instance or the image has no such memory, or it is not known where the memory is.
    #[error("{what}")]
    NoSuchMemory {
        /// A sentence for the user.
        what: String,
    },
    /// Nothing that was looked at has to do with Wasm: there is no module, or no thread with a Wasm frame.
    #[error("{what}")]
    NoWasm {
        /// A sentence for the user.
        what: String,
    },
    /// The thread is in Wasm code, but there is no image of it at this moment, or never.
    #[error("{what}")]
    NoImage {
        /// A sentence for the user: why there is none, and what to try.
        what: String,
    },
    /// Several threads or instances may be meant.
    #[error("{what}")]
    Ambiguous {
        /// A sentence for the user: which ones there are.
        what: String,
    },
    /// A range of addresses is not inside the memory.
    #[error("{what}")]
    OutOfBounds {
        /// A sentence for the user.
        what: String,
    },
    /// Memory of the target cannot be read.
    #[error("{what}")]
    Unreadable {
        /// A sentence for the user.
        what: String,
    },
    /// The target or its files were changed while they were read. The next attempt may succeed.
    #[error("{what}")]
    Changed {
        /// A sentence for the user.
        what: String,
    },
    /// The work cannot be done with a target or a file of this kind.
    #[error("{what}")]
    Unsupported {
        /// A sentence for the user.
        what: String,
    },
    /// A thread must be in Wasm code, and is in native code that Wasm has called. The next attempt may find it
    /// elsewhere.
    #[error("{what}")]
    NotInWasm {
        /// Kernel id of the thread.
        tid: u32,
        /// A sentence for the user.
        what: String,
    },
    /// A process does not go on from an image. It is as it was.
    #[error("{what}")]
    Refused {
        /// A sentence for the user.
        what: String,
    },
    /// A process was changed in part, and the changes could not be taken back.
    #[error("process {pid} is broken and should be ended: {why}")]
    TargetBroken {
        /// Number of the process (pid).
        pid: u32,
        /// What failed, and which change is left.
        why: String,
    },
    /// A debugger's plugin cannot be installed for this user.
    #[error("{why}")]
    Plugin {
        /// A sentence for the user.
        why: String,
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
            // Files are mapped, and a limit of the address space leaves no room for a large one.
            Error::File { source, .. } | Error::Output { source, .. } if source.kind() == ErrorKind::OutOfMemory => {
                Some(MORE_MEMORY.to_string())
            }
            Error::Attach { pid, .. } => Some(format!("try: wstate doctor {pid}")),
            Error::Analysis { .. } => Some(format!("{REPORT_IT}, and if you may with the core and its executable")),
            // Whatever it is, it holds no bytes that could be read a second time.
            Error::File { source, .. } if source.kind() == ErrorKind::InvalidInput => {
                Some("name a file; what comes from a pipe is first written to one: COMMAND > FILE".to_string())
            }
            Error::File { source, .. } if source.kind() == ErrorKind::NotFound => {
                Some("look at the path; a relative one begins in the directory in which wstate is started".to_string())
            }
            Error::Output { source, .. } => match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                    Some("make room, or name a place that has some; no file was replaced by half of one".to_string())
                }
                _ => None,
            },
            Error::Document { .. } => Some(
                "give the JSON that wstate attach, core or modules prints with --json; a newer wstate reads newer forms"
                    .to_string(),
            ),
            Error::Program { hint, .. } => hint.clone(),
            _ => None,
        }
    }

    /// This error, with `note` added to the sentence that says what was not found, such as how it came that it was not
    /// found. An error that says nothing of the kind stays as it is.
    pub(crate) fn with_note(mut self, note: &str) -> Error {
        match &mut self {
            Error::NoSuchThread { what, .. }
            | Error::NoSuchInstance { what }
            | Error::NoSuchMemory { what }
            | Error::NoWasm { what }
            | Error::NoImage { what }
            | Error::Ambiguous { what }
            | Error::OutOfBounds { what }
            | Error::Unreadable { what }
            | Error::Changed { what }
            | Error::Unsupported { what }
            | Error::NotInWasm { what, .. }
            | Error::Refused { what } => *what = format!("{what}; {note}"),
            Error::File { .. }
            | Error::Core { .. }
            | Error::Attach { .. }
            | Error::Wasm { .. }
            | Error::Artifact { .. }
            | Error::Symbols { .. }
            | Error::Analysis { .. }
            | Error::Unusable { .. }
            | Error::NotAnImage { .. }
            | Error::Document { .. }
            | Error::Program { .. }
            | Error::TargetBroken { .. }
            | Error::Plugin { .. }
            | Error::Output { .. } => {}
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a repository and without one, the user is told where to go and what to bring.
    #[test]
    fn a_bug_can_be_reported_somewhere() {
        let place = match env!("CARGO_PKG_REPOSITORY") {
            "" => "to those who gave you wstate",
            url => url,
        };
        let hint = Error::Analysis { why: "it died".to_string() }.hint().expect("a hint");
        for part in [place, "`wstate --version`", "this message", "the core and its executable"] {
            assert!(hint.contains(part), "{part}: {hint}");
        }
    }

    #[test]
    fn what_is_no_file_or_not_there_has_a_next_step() {
        let hint = |kind: ErrorKind| Error::File { path: "x".into(), source: kind.into() }.hint();
        assert!(hint(ErrorKind::InvalidInput).is_some_and(|hint| hint.starts_with("name a file; ")));
        assert!(hint(ErrorKind::NotFound).is_some_and(|hint| hint.starts_with("look at the path; ")));
    }

    #[test]
    fn a_file_without_room_in_the_address_space_has_a_next_step() {
        let no_room = || std::io::Error::from_raw_os_error(12);
        for error in [
            Error::File { path: "x".into(), source: no_room() },
            Error::Output { to: "x".to_string(), source: no_room() },
        ] {
            assert_eq!(error.hint().as_deref(), Some(MORE_MEMORY), "{error}");
        }
    }

    #[test]
    fn a_note_is_added_to_what_was_not_found_and_to_nothing_else() {
        let missing = Error::NoWasm { what: "no module".to_string() };
        assert_eq!(missing.with_note("it was gone").to_string(), "no module; it was gone");
        let thread = Error::NoSuchThread { tid: 7, what: "no thread 7".to_string() };
        assert_eq!(thread.with_note("try 8").to_string(), "no thread 7; try 8");
        let attach = Error::Attach { pid: 1, why: "not allowed".to_string() };
        assert_eq!(attach.with_note("it was gone").to_string(), "cannot attach to process 1: not allowed");
    }
}
