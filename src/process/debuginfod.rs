//! Asks debuginfod servers for the files that are missing, by their build ids. The program `debuginfod-find` of elfutils
//! does it: it knows the servers (`DEBUGINFOD_URLS`), speaks with them, and keeps what it got in a cache.
//!
//! No file that it names is believed: whoever uses one compares its build id with that of the target's.

use crate::limits;
use crate::process::elf;
use crate::progress::Progress;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a server is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// The executable or library itself.
    Executable,
    /// Its separate debug file.
    Debug,
}

impl Wanted {
    /// The word for it on the command line of `debuginfod-find`.
    fn word(self) -> &'static str {
        match self {
            Wanted::Executable => "executable",
            Wanted::Debug => "debuginfo",
        }
    }
}

/// The files that were fetched, by what they are and their build ids.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    files: BTreeMap<(Wanted, Vec<u8>), PathBuf>,
    /// Lines that tell the reader of a report what could not be fetched.
    pub notes: Vec<String>,
    /// Whether servers could not be asked.
    pub failed: bool,
}

impl Fetched {
    /// Says that a file was fetched.
    pub(super) fn add(&mut self, wanted: Wanted, id: &[u8], path: PathBuf) {
        self.files.insert((wanted, id.to_vec()), path);
    }

    /// Where the file with this build id is, if it was fetched.
    pub fn get(&self, wanted: Wanted, id: &[u8]) -> Option<&Path> {
        self.files.get(&(wanted, id.to_vec())).map(PathBuf::as_path)
    }
}

/// A file that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What it is.
    pub wanted: Wanted,
    /// Build id of the executable or library.
    pub id: Vec<u8>,
    /// Name of the executable or library, for messages.
    pub name: String,
}

/// Asks the servers of `DEBUGINFOD_URLS`, each file once.
pub struct Debuginfod {
    program: PathBuf,
    /// `DEBUGINFOD_URLS`, for messages.
    servers: String,
    asked: BTreeSet<(Wanted, Vec<u8>)>,
    fetched: Fetched,
    unknown: BTreeSet<String>,
    runs: usize,
    failures: usize,
    waited: Duration,
}

/// How a program ended.
enum Ended {
    /// It succeeded and printed this.
    Well(Vec<u8>),
    /// It failed and said this.
    Badly(String),
    /// It did not end in time.
    Late,
}

impl Debuginfod {
    /// Asks the servers that the environment names.
    pub fn of_this_environment() -> Debuginfod {
        let servers = std::env::var_os("DEBUGINFOD_URLS").unwrap_or_default();
        Debuginfod::new(Path::new("debuginfod-find"), &servers.to_string_lossy())
    }

    /// Asks `servers` through `program`, which takes its servers from the environment.
    pub fn new(program: &Path, servers: &str) -> Debuginfod {
        let mut fetched = Fetched::default();
        let servers = servers.trim().to_string();
        if servers.is_empty() {
            fetched.failed = true;
            fetched.notes.push(
                "debuginfod: no server was asked, because DEBUGINFOD_URLS is not set; set it to a server of your \
                 distribution, such as https://debuginfod.debian.net or https://debuginfod.elfutils.org"
                    .to_string(),
            );
        }
        Debuginfod {
            program: program.to_path_buf(),
            servers,
            asked: BTreeSet::new(),
            fetched,
            unknown: BTreeSet::new(),
            runs: 0,
            failures: 0,
            waited: Duration::ZERO,
        }
    }

    /// Asks for the files that `missing` names, as often as it names others because of those that were fetched.
    pub fn fetch_all<E>(
        &mut self,
        progress: &dyn Progress,
        mut missing: impl FnMut(Fetched) -> Result<Vec<Missing>, E>,
    ) -> Result<(), E> {
        for _ in 0..limits::MAX_FETCH_ROUNDS {
            if self.fetched.failed || !self.fetch(&missing(self.fetched.clone())?, progress) {
                break;
            }
        }
        Ok(())
    }

    /// Asks for those of the files that were not asked for before. Returns whether one of them was fetched.
    fn fetch(&mut self, missing: &[Missing], progress: &dyn Progress) -> bool {
        let new: Vec<&Missing> = missing.iter().filter(|m| self.asked.insert((m.wanted, m.id.clone()))).collect();
        let mut some = false;
        for (i, file) in new.iter().enumerate() {
            // Shorter ones are no build ids that a server knows.
            if !(limits::MIN_FETCHED_BUILD_ID..=limits::MAX_BUILD_ID_BYTES).contains(&file.id.len()) {
                continue;
            }
            if self.fetched.failed {
                break;
            }
            self.runs += 1;
            if self.runs > limits::MAX_FETCHED_FILES {
                self.fail("more files are missing than are asked for; the others were left out".to_string());
                break;
            }
            let what = format!("asking debuginfod for {} ({} of {})", file.name, i + 1, new.len());
            if let Some(path) = self.ask(file, &mut || progress.doing(&what)) {
                self.fetched.add(file.wanted, &file.id, path);
                some = true;
            }
        }
        some
    }

    /// What was fetched so far.
    pub fn fetched(&self) -> Fetched {
        let mut fetched = self.fetched.clone();
        if !self.unknown.is_empty() {
            const SHOWN: usize = 8;
            let mut names: Vec<String> = self.unknown.iter().take(SHOWN).cloned().collect();
            if self.unknown.len() > SHOWN {
                names.push(format!("and {} more", self.unknown.len() - SHOWN));
            }
            fetched.notes.push(format!("debuginfod: no server has {} ({})", names.join(", "), self.servers));
        }
        fetched
    }

    /// No further file is asked for.
    fn fail(&mut self, why: String) {
        self.fetched.failed = true;
        self.fetched.notes.push(format!("debuginfod: {why}"));
    }

    fn ask(&mut self, file: &Missing, waiting: &mut dyn FnMut()) -> Option<PathBuf> {
        let left = Duration::from_millis(limits::MAX_FETCHING_MS).saturating_sub(self.waited);
        let patience = left.min(Duration::from_millis(limits::MAX_FETCH_MS));
        let began = Instant::now();
        let mut command = Command::new(&self.program);
        command.arg(file.wanted.word()).arg(elf::hex(&file.id));
        let ended = run(command, patience, waiting);
        self.waited += began.elapsed();
        let program = self.program.display();
        let why = match ended {
            Ok(Ended::Well(said)) => {
                let path = said.trim_ascii_end();
                if path.starts_with(b"/") && path.len() <= limits::MAX_PATH {
                    return Some(PathBuf::from(OsStr::from_bytes(path)));
                }
                format!("{program} printed no path")
            }
            // What curl and the file system say when a server has no such file.
            Ok(Ended::Badly(said)) if said.contains("No such file or directory") => {
                let what = match file.wanted {
                    Wanted::Executable => "the file",
                    Wanted::Debug => "debug information",
                };
                self.unknown.insert(format!("{what} of {}", file.name));
                return None;
            }
            Ok(Ended::Badly(said)) => said,
            Ok(Ended::Late) => format!("no answer within {} s", patience.as_millis().div_ceil(1000)),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.fail(format!(
                    "no server was asked, because the program {program} is not installed; it is in the package debuginfod \
                     (Debian, Ubuntu) or elfutils-debuginfod-client (Fedora)"
                ));
                return None;
            }
            Err(e) => format!("{program} cannot be run: {e}"),
        };
        self.failures += 1;
        let note = format!("debuginfod: {why} ({}); look at the server, or at DEBUGINFOD_URLS", self.servers);
        if !self.fetched.notes.contains(&note) {
            self.fetched.notes.push(note);
        }
        // A server that does not answer is not waited for again and again.
        self.fetched.failed |= self.failures >= limits::MAX_FETCH_FAILURES || self.waited >= patience.max(left);
        None
    }
}

/// Runs a program for at most `patience`. `waiting` is called again and again meanwhile.
fn run(mut command: Command, patience: Duration, waiting: &mut dyn FnMut()) -> std::io::Result<Ended> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            let said = said_by(&mut child);
            return Ok(match status.success() {
                true => Ended::Well(said.0),
                false => Ended::Badly(first_line(&said.1).unwrap_or_else(|| format!("it ended with {status}"))),
            });
        }
        if began.elapsed() >= patience {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(Ended::Late);
        }
        waiting();
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What an ended program has written to its outputs, as far as the pipes hold it.
fn said_by(child: &mut Child) -> (Vec<u8>, Vec<u8>) {
    // The size of a pipe. One read does not wait for others that may have the other end open still.
    fn once(from: Option<impl Read>) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 16];
        let read = from.and_then(|mut from| from.read(&mut buffer).ok()).unwrap_or(0);
        buffer.truncate(read);
        buffer
    }
    (once(child.stdout.take()), once(child.stderr.take()))
}

fn first_line(said: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(said);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::os::unix::fs::PermissionsExt;

    /// A program in place of `debuginfod-find`. Its runs leave lines in a file.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(script: &str) -> Fake {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("find");
            let log = directory.path().join("log");
            std::fs::write(&path, format!("#!/bin/sh\necho \"$@\" >> {}\n{script}\n", log.display())).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            Fake(directory)
        }

        fn server(&self) -> Debuginfod {
            Debuginfod::new(&self.0.path().join("find"), "http://127.0.0.1:1")
        }

        fn runs(&self) -> Vec<String> {
            let log = std::fs::read_to_string(self.0.path().join("log")).unwrap_or_default();
            log.lines().map(str::to_string).collect()
        }
    }

    fn missing(ids: impl IntoIterator<Item = Vec<u8>>) -> Vec<Missing> {
        let one = |id: Vec<u8>| Missing { wanted: Wanted::Debug, name: format!("lib{}.so", id.len()), id };
        ids.into_iter().map(one).collect()
    }

    #[test]
    fn each_file_is_asked_for_once() {
        let fake = Fake::new("echo /cache/$2/$1");
        let mut server = fake.server();
        let files = missing([vec![0xab; 20], vec![0xcd; 8], vec![0xab; 20]]);
        assert!(server.fetch(&files, &Silent));
        assert!(!server.fetch(&files, &Silent));
        let (long, short) = ("ab".repeat(20), "cd".repeat(8));
        assert_eq!(fake.runs(), [format!("debuginfo {long}"), format!("debuginfo {short}")]);
        let fetched = server.fetched();
        let path = PathBuf::from(format!("/cache/{long}/debuginfo"));
        assert_eq!(fetched.get(Wanted::Debug, &[0xab; 20]), Some(path.as_path()));
        assert_eq!(fetched.get(Wanted::Executable, &[0xab; 20]), None);
        assert!(fetched.notes.is_empty() && !fetched.failed);
    }

    #[test]
    fn files_that_show_others_have_an_end() {
        let fake = Fake::new("echo /cache/$2/$1");
        let mut server = fake.server();
        let mut rounds = 0;
        let more = |fetched: Fetched| -> Result<Vec<Missing>, ()> {
            assert_eq!(fetched.files.len(), rounds);
            rounds += 1;
            Ok(missing((0..rounds).map(|i| vec![i as u8; 20])))
        };
        assert_eq!(server.fetch_all(&Silent, more), Ok(()));
        assert_eq!(fake.runs().len(), limits::MAX_FETCH_ROUNDS);
    }

    #[test]
    fn what_is_no_build_id_is_not_asked_for() {
        let fake = Fake::new("echo /cache/x");
        let sizes = [0, 1, limits::MIN_FETCHED_BUILD_ID - 1, limits::MAX_BUILD_ID_BYTES + 1];
        assert!(!fake.server().fetch(&missing(sizes.map(|len| vec![1; len])), &Silent));
        assert_eq!(fake.runs(), Vec::<String>::new());
    }

    #[test]
    fn a_file_that_no_server_has_is_named_and_is_no_failure() {
        let fake = Fake::new("echo 'Server query failed: No such file or directory' >&2; exit 1");
        let mut server = fake.server();
        assert!(!server.fetch(&missing((8..20).map(|len| vec![1; len])), &Silent));
        let fetched = server.fetched();
        assert!(!fetched.failed && fake.runs().len() == 12);
        assert_eq!(fetched.notes.len(), 1);
        assert!(fetched.notes[0].starts_with("debuginfod: no server has debug information of lib10.so, "));
        assert!(fetched.notes[0].ends_with("and 4 more (http://127.0.0.1:1)"), "{:?}", fetched.notes);
    }

    #[test]
    fn a_server_that_fails_is_told_once_and_not_asked_for_ever() {
        for (script, expected) in [
            ("echo 'Server query failed: Connection refused' >&2; exit 1", "Server query failed: Connection refused"),
            ("exit 3", "it ended with exit status: 3"),
            ("kill -9 $$", "it ended with signal: 9"),
            ("exec cat /dev/zero >&2", "no answer within 1 s"),
            ("echo relative", "printed no path"),
            ("exit 0", "printed no path"),
        ] {
            let fake = Fake::new(script);
            let mut server = fake.server();
            assert!(!server.fetch(&missing((8..20).map(|len| vec![1; len])), &Silent));
            let fetched = server.fetched();
            assert!(fetched.failed && fake.runs().len() <= limits::MAX_FETCH_FAILURES, "{script}: {:?}", fake.runs());
            assert!(fetched.notes.len() == 1 && fetched.notes[0].contains(expected), "{script}: {:?}", fetched.notes);
        }
    }

    #[test]
    fn files_and_time_have_an_end() {
        let fake = Fake::new("echo 'No such file or directory' >&2; exit 1");
        let mut server = fake.server();
        let files = (0..limits::MAX_FETCHED_FILES as u64 + 2).map(|i| i.to_le_bytes().to_vec());
        server.fetch(&missing(files), &Silent);
        assert_eq!(fake.runs().len(), limits::MAX_FETCHED_FILES);
        assert!(server.fetched().notes[0].contains("the others were left out"));

        let fake = Fake::new("exec sleep 60");
        let began = Instant::now();
        let mut server = fake.server();
        server.fetch(&missing((8..20).map(|len| vec![1; len])), &Silent);
        let most = limits::MAX_FETCHING_MS + 2 * limits::MAX_FETCH_MS;
        assert!(server.fetched().failed && began.elapsed() < Duration::from_millis(most + 5000));
    }

    #[test]
    fn without_servers_or_the_program_one_line_says_what_to_do() {
        let fake = Fake::new("echo /cache/x");
        let mut server = Debuginfod::new(&fake.0.path().join("find"), " ");
        assert!(!server.fetch(&missing([vec![1; 20]]), &Silent));
        assert!(fake.runs().is_empty() && server.fetched().failed);
        assert!(server.fetched().notes[0].contains("DEBUGINFOD_URLS is not set"));

        let mut server = Debuginfod::new(&fake.0.path().join("none"), "http://127.0.0.1:1");
        assert!(!server.fetch(&missing([vec![1; 20], vec![2; 20]]), &Silent));
        let notes = server.fetched().notes;
        assert!(notes.len() == 1 && notes[0].contains("is not installed"), "{notes:?}");
    }
}
