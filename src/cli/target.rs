//! What a command looks at, as the user names it: by words in their order, or by flags.

use crate::cli::Usage;
use crate::cli::numbers::{is_digits, pgrep, pid, quoted};
use crate::session::Source;
use clap::{Args, ValueHint};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The flags that name a target.
#[derive(Clone, Debug, Default, Args)]
pub struct Named {
    /// The process, the same as PID as the first word
    #[arg(short, long, value_name = "PID", value_parser = pid, allow_negative_numbers = true)]
    pub pid: Option<u32>,
    /// The core file, the same as CORE as the first word
    #[arg(short, long, value_name = "CORE", value_hint = ValueHint::FilePath)]
    pub core: Option<PathBuf>,
    /// The executable that wrote the core, the same as EXE behind it
    #[arg(short, long, value_name = "EXE", value_hint = ValueHint::FilePath)]
    pub executable: Option<PathBuf>,
}

/// The target: words in their order, or flags.
#[derive(Clone, Debug, Default, Args)]
pub struct Target {
    /// The process, if this has digits only, or the path of a core (write ./4711 for a core of that name)
    #[arg(index = 1, value_name = "PID|CORE", value_hint = ValueHint::FilePath)]
    pub target: Option<OsString>,
    /// The executable that wrote the core
    #[arg(index = 2, value_name = "EXE", value_hint = ValueHint::FilePath)]
    pub of: Option<OsString>,
    /// The flags.
    #[command(flatten)]
    pub named: Named,
}

/// How a core is analysed.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Confinement {
    /// Analyse the core without a sandbox, with all rights of this user
    #[arg(long)]
    pub no_sandbox: bool,
}

impl Confinement {
    /// Whether `source` is analysed in a process that has given up its rights.
    ///
    /// # Errors
    /// The user forbids a sandbox where there is none.
    pub fn confine(self, source: &Source) -> Result<bool, Usage> {
        match source {
            Source::Core { .. } => Ok(!self.no_sandbox),
            Source::Pid(_) if self.no_sandbox => Err(Usage(
                "--no-sandbox is for cores, and a process is looked at without a sandbox: leave it out".into(),
            )),
            Source::Pid(_) => Ok(false),
        }
    }
}

/// What the first word of a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Digits are a process, anything else is a core.
    Either,
    /// It is a core, since the command says so.
    Core,
}

impl Target {
    /// The words in their order.
    pub fn words(&self) -> impl Iterator<Item = &OsStr> {
        self.target.iter().chain(&self.of).map(OsString::as_os_str)
    }

    /// What the user names, or `None` if nothing is named.
    ///
    /// # Errors
    /// More than one target is named, or what is named can be none.
    pub fn source(&self, expected: Expected) -> Result<Option<Source>, Usage> {
        self.named.source(&self.words().collect::<Vec<_>>(), expected)
    }

    /// The first word, if nothing else names a target and it is neither a process id nor a file.
    pub fn unknown(&self) -> Option<&OsStr> {
        let word = self.target.as_deref()?;
        let is_alone = self.named.pid.is_none() && self.named.core.is_none();
        (is_alone && is_unknown(word)).then_some(word)
    }
}

/// Whether a word can be neither process ids nor the path of a file. A word with a slash is a path, whether there is
/// such a file or not.
fn is_unknown(word: &OsStr) -> bool {
    let text = word.to_string_lossy();
    let is_ids = text.split_whitespace().all(is_digits);
    !is_ids && !text.contains('/') && Path::new(word).symlink_metadata().is_err()
}

impl Named {
    /// Whether a flag names the target.
    pub fn is_target(&self) -> bool {
        self.pid.is_some() || self.core.is_some()
    }

    /// What these flags and `words` name together, or `None` if nothing is named.
    ///
    /// # Errors
    /// More than one target is named, or what is named can be none.
    pub fn source(&self, words: &[&OsStr], expected: Expected) -> Result<Option<Source>, Usage> {
        let usage = |why: String| Err(Usage(why));
        let core = |core: &Path, executable: Option<&Path>| {
            Ok(Some(Source::Core { core: core.into(), executable: executable.map(Path::to_path_buf) }))
        };
        let own = self.executable.as_deref();
        match (self.pid, self.core.as_deref(), words) {
            (Some(pid), Some(core), _) => {
                usage(format!("a process and a core are given, {pid} and {}: name one", quoted(core)))
            }
            (Some(pid), None, [word, ..]) => {
                usage(format!("two targets are given, process {pid} and {}: name one", quoted(word)))
            }
            (Some(pid), None, []) => self.process(pid),
            (None, Some(file), []) => core(file, own),
            (None, Some(file), [exe]) if own.is_none() => core(file, Some(Path::new(exe))),
            (None, Some(_), [exe]) => usage(two_executables(own, exe)),
            (None, Some(file), [word, ..]) => {
                usage(format!("two cores are given, {} and {}: name one", quoted(file), quoted(word)))
            }
            (None, None, []) => match own {
                None => Ok(None),
                Some(exe) => usage(format!(
                    "--executable names what wrote a core, and no core is given: type CORE {}, or add --core CORE",
                    clean_path(exe)
                )),
            },
            (None, None, [word, rest @ ..]) => {
                if let Some(pid) = process_id(word, expected)? {
                    return match rest {
                        [] => self.process(pid),
                        [more, ..] if is_digits(&more.to_string_lossy()) => {
                            usage(format!("two processes are given, {pid} and {}: name one", clean_path(more)))
                        }
                        [more, ..] => usage(format!(
                            "{} is one word too many: only a core has an executable beside it, and {pid} is a process",
                            quoted(more)
                        )),
                    };
                }
                match rest {
                    [] => core(Path::new(word), own),
                    [exe] if own.is_none() => core(Path::new(word), Some(Path::new(exe))),
                    [exe, ..] if own.is_some() => usage(two_executables(own, exe)),
                    [_, more, ..] | [more] => usage(format!("{} is one word too many", quoted(more))),
                }
            }
        }
    }

    fn process(&self, pid: u32) -> Result<Option<Source>, Usage> {
        match &self.executable {
            None => Ok(Some(Source::Pid(pid))),
            Some(_) => Err(Usage(format!("--executable is for cores, and {pid} is a process: leave it out"))),
        }
    }
}

fn two_executables(flag: Option<&Path>, word: &OsStr) -> String {
    let flag = flag.map(quoted).unwrap_or_default();
    format!("two executables are given, {flag} and {}: name one", quoted(word))
}

fn clean_path(path: impl AsRef<OsStr>) -> String {
    crate::report::text::clean(&path.as_ref().to_string_lossy())
}

/// The process that a word names, or `None` if it names a core.
fn process_id(word: &OsStr, expected: Expected) -> Result<Option<u32>, Usage> {
    let text = word.to_string_lossy();
    let usage = |why: String| Err(Usage(why));
    let parts: Vec<&str> = text.split_whitespace().collect();
    if parts.is_empty() {
        return usage("the target is empty: give a process id (pgrep -a NAME finds it) or the path of a core".into());
    }
    let is_there = || Path::new(word).symlink_metadata().is_ok();
    match expected {
        Expected::Core if is_digits(&text) && !is_there() => {
            usage(format!("there is no file {}: for the process of this id, type: wstate attach {text}", quoted(word)))
        }
        Expected::Core => Ok(None),
        // `pgrep` and `pidof` print the ids of several processes, and a shell may hand them on as one word.
        Expected::Either if parts.iter().all(|part| is_digits(part)) => match parts[..] {
            [one] => pid(one).map(Some).map_err(Usage),
            _ => usage(format!("{} has several process ids: give one of them", quoted(word))),
        },
        Expected::Either if is_unknown(word) => usage(format!(
            "{} is neither a process id nor a file: find the id with {}, or give the path of a core",
            quoted(word),
            pgrep(&text)
        )),
        Expected::Either => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(pid: Option<u32>, core: Option<&str>, exe: Option<&str>) -> Named {
        Named { pid, core: core.map(Into::into), executable: exe.map(Into::into) }
    }

    fn core(core: &str, exe: Option<&str>) -> Option<Source> {
        Some(Source::Core { core: core.into(), executable: exe.map(Into::into) })
    }

    #[test]
    fn every_way_to_name_a_target() {
        let none = named(None, None, None);
        let cases = [
            (none.clone(), &["4711"][..], Some(Source::Pid(4711))),
            (none.clone(), &[], None),
            (none.clone(), &["./4711"], core("./4711", None)),
            (none.clone(), &["/c"], core("/c", None)),
            (none.clone(), &["/c", "e"], core("/c", Some("e"))),
            (named(None, None, Some("e")), &["/c"], core("/c", Some("e"))),
            (named(None, Some("c"), None), &[], core("c", None)),
            (named(None, Some("c"), None), &["e"], core("c", Some("e"))),
            (named(None, Some("c"), Some("e")), &[], core("c", Some("e"))),
            (named(Some(1), None, None), &[], Some(Source::Pid(1))),
        ];
        for (named, words, expected) in cases {
            let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
            let found = named.source(&words, Expected::Either).unwrap();
            assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{named:?} {words:?}");
        }
    }

    #[test]
    fn what_is_named_twice_or_belongs_to_the_other_kind_is_refused() {
        let none = named(None, None, None);
        let cases = [
            (none.clone(), &["1", "2"][..]),
            (none.clone(), &["1", "/e"]),
            (none.clone(), &["/c", "/e", "/x"]),
            (none.clone(), &[""]),
            (none.clone(), &["1 2"]),
            (none.clone(), &["1\n2\n"]),
            (none.clone(), &["0"]),
            (none.clone(), &["no-such-file-here"]),
            (named(None, None, Some("e")), &[]),
            (named(None, None, Some("e")), &["1"]),
            (named(None, None, Some("e")), &["/c", "/x"]),
            (named(Some(1), None, None), &["2"]),
            (named(Some(1), None, Some("e")), &[]),
            (named(Some(1), Some("c"), None), &[]),
            (named(None, Some("c"), Some("e")), &["x"]),
            (named(None, Some("c"), None), &["e", "x"]),
        ];
        for (named, words) in cases {
            let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
            let Usage(why) = named.source(&words, Expected::Either).unwrap_err();
            assert!(!why.contains('\n') && why.len() > 15, "{named:?} {words:?}: {why}");
        }
        let words = [OsStr::new("4711")];
        let Usage(why) = none.source(&words, Expected::Core).unwrap_err();
        assert!(why.ends_with("wstate attach 4711"), "{why}");
    }
}
