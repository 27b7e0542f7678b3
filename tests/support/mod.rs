//! Real hosts for integration tests: built once, started at a stop, ended when the test lets go of them.
//!
//! See `tests/hosts/singlepass/README.md` and `tests/hosts/wasmtime/README.md` for the stops and flags.

// Each test binary uses its own part of this module.
#![allow(dead_code)]

pub mod debuggers;
pub mod large_module;
pub mod missing;
pub mod schema;
pub mod shapes;
pub mod small_core;
pub mod this_process;
pub mod traced;

use serde_json::Value;
use std::{
    fmt,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};
use tempfile::TempDir;

/// How long anything that is waited for may take. No test is decided by it: it bounds one that hangs.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How the host was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    /// `cargo build`: no optimization, full debug info.
    Debug,
    /// What `cargo build --release` gives a user: symbols without debug info.
    Release,
    /// Optimized, with `debug = 2`.
    ReleaseDebug,
    /// `strip --strip-all`: no symbol table.
    Stripped,
}

impl Profile {
    /// Every profile of the matrix.
    pub const ALL: [Profile; 4] = [Profile::Debug, Profile::Release, Profile::ReleaseDebug, Profile::Stripped];
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Debug => "debug",
            Profile::Release => "release",
            Profile::ReleaseDebug => "release-debug",
            Profile::Stripped => "stripped",
        })
    }
}

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file below `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    repository().join("tests/fixtures").join(path)
}

/// The Rust files below a directory, in order.
pub fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory of sources");
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    let mut found = Vec::new();
    for path in entries {
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// `<target>` of this build; `CARGO_TARGET_TMPDIR` is `<target>/tmp`.
fn target_dir() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the tmp directory is inside of the target directory")
}

/// The singlepass host of this profile. Builds it on first use; the optimized variants share one build.
pub fn host_singlepass(profile: Profile) -> PathBuf {
    static DEBUG: OnceLock<PathBuf> = OnceLock::new();
    static RELEASE: OnceLock<PathBuf> = OnceLock::new();
    static NO_DEBUG_INFO: OnceLock<PathBuf> = OnceLock::new();
    static STRIPPED: OnceLock<PathBuf> = OnceLock::new();
    // Cargo unites the features of the packages that are named: other names, and the runtime is compiled once more. The
    // release build names what the demo does. The debug build leaves wstate out: it is the very file that tests run.
    let debug = || build("dev", "debug", &["host-singlepass"], &[], target_dir()).join("host-singlepass");
    let optimized =
        || build("release", "release", &["wstate", "host-singlepass"], &[], target_dir()).join("host-singlepass");
    let release = || RELEASE.get_or_init(optimized);
    match profile {
        Profile::Debug => DEBUG.get_or_init(debug),
        Profile::ReleaseDebug => release(),
        Profile::Release => NO_DEBUG_INFO.get_or_init(|| derive(release(), "release", "--strip-debug")),
        Profile::Stripped => STRIPPED.get_or_init(|| derive(release(), "stripped", "--strip-all")),
    }
    .clone()
}

/// Which Wasmtime a host is built on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 36.0.20, the older line with long support.
    V36,
    /// 48.0.8.
    V48,
}

impl Version {
    /// Both hosts.
    pub const ALL: [Version; 2] = [Version::V36, Version::V48];

    /// The executable's name.
    pub fn binary(self) -> &'static str {
        match self {
            Version::V36 => "host-wasmtime-36",
            Version::V48 => "host-wasmtime",
        }
    }
}

/// The Wasmtime host of this version and profile. Both versions are built on first use, in one build.
///
/// Optimized only: Cranelift without optimization needs seconds for what takes milliseconds.
pub fn host_wasmtime(version: Version, profile: Profile) -> PathBuf {
    static RELEASE: OnceLock<PathBuf> = OnceLock::new();
    static DERIVED: [OnceLock<PathBuf>; 4] = [const { OnceLock::new() }; 4];
    let packages = Version::ALL.map(Version::binary);
    let release = RELEASE.get_or_init(|| build("release", "release", &packages, &[], target_dir()));
    let release = release.join(version.binary());
    let (at, name, flag) = match profile {
        Profile::Debug => panic!("there is no debug build of the Wasmtime hosts"),
        Profile::ReleaseDebug => return release,
        Profile::Release => (0, "release", "--strip-debug"),
        Profile::Stripped => (1, "stripped", "--strip-all"),
    };
    DERIVED[at * 2 + version as usize].get_or_init(|| derive(&release, name, flag)).clone()
}

/// A module of other people of more than a megabyte, or why it could not be fetched.
pub fn third_party_module() -> Result<PathBuf, String> {
    static MODULE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let fetch = || {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boolector.wasm");
        let script = repository().join("tests/hosts/wasmtime/fetch.sh");
        let output = Command::new("sh").arg(script).arg(&path).stdin(Stdio::null()).output();
        let output = output.map_err(|e| format!("sh does not start: {e}"))?;
        match output.status.success() {
            true => Ok(path),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    MODULE.get_or_init(fetch).clone()
}

/// The debug host with the feature `publish`, for `--publish`.
///
/// In a target directory of its own: the same file under two sets of features would be replaced while tests run it.
pub fn host_singlepass_publishing() -> PathBuf {
    static PUBLISHING: OnceLock<PathBuf> = OnceLock::new();
    let features = ["--features", "host-singlepass/publish"];
    let publishing = || build("dev", "debug", &["host-singlepass"], &features, &target_dir().join("publish"));
    PUBLISHING.get_or_init(|| publishing().join("host-singlepass")).clone()
}

/// Builds the binaries of these packages; where they are then.
fn build(profile: &str, directory: &str, packages: &[&str], features: &[&str], target_dir: &Path) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(repository())
        .args(["build", "--quiet", "--bins", "--profile", profile])
        .args(packages.iter().flat_map(|package| ["--package", package]))
        .args(features)
        .arg("--target-dir")
        .arg(target_dir)
        .status()
        .expect("cargo starts");
    assert!(status.success(), "the {profile} build of {packages:?} failed: {status}");
    target_dir.join(directory)
}

/// A copy of `binary` through `objcopy`, kept for as long as `binary` is the same.
///
/// Test binaries may run side by side, so a copy that is there is never replaced: a process that runs it would
/// lose its executable.
fn derive(binary: &Path, name: &str, flag: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let built = binary.metadata().and_then(|m| m.modified()).expect("the host was just built");
    let built = built.duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970").as_nanos();
    // Not `-`: the name of one host begins with the name of another.
    let binary_name = binary.file_name().expect("a file").to_string_lossy();
    let prefix = format!("{binary_name}.{name}-");
    let copy = directory.join(format!("{prefix}{built}"));
    if copy.exists() {
        return copy;
    }
    for old in std::fs::read_dir(directory).expect("the tmp directory is readable").flatten() {
        // Another program of tests may have made the copy since.
        if old.path() != copy && old.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = std::fs::remove_file(old.path());
        }
    }
    let fresh = tempfile::NamedTempFile::new_in(directory).expect("a file for the copy").into_temp_path();
    let status = Command::new("objcopy").arg(flag).arg(binary).arg(&fresh).status();
    let status = status.expect("objcopy starts; it is part of binutils");
    assert!(status.success(), "objcopy {flag}: {status}");
    match std::fs::hard_link(&fresh, &copy) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => panic!("{}: {error}", copy.display()),
        _ => copy,
    }
}

/// The runtime's own answer for a stop, where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    /// bincode of the `ExecutionStateImage`.
    pub image: Vec<u8>,
    /// `InstanceImage::to_bytes`; absent for memories over 4 MiB.
    pub instance: Option<Vec<u8>>,
    /// `ExecutionStateImage::output`.
    pub text: String,
}

impl Truth {
    /// The answer in files of this directory whose names have this suffix.
    pub fn read(directory: &Path, suffix: &str) -> Option<Truth> {
        let path = |extension: &str| directory.join(format!("truth{suffix}{extension}"));
        Some(Truth {
            image: std::fs::read(path("")).ok()?,
            instance: std::fs::read(path(".instance")).ok(),
            text: std::fs::read_to_string(path(".txt")).expect("the host writes the text with the image"),
        })
    }
}

/// A thread that reached its stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Process id.
    pub pid: i32,
    /// Thread id.
    pub tid: i32,
    /// The stop's name, or `returned`.
    pub stop: String,
}

impl Stopped {
    /// Parses `READY pid=1 tid=2 stop=name` or `STOPPED ...`.
    fn parse(line: &str, word: &str) -> Option<Stopped> {
        let fields = line.strip_prefix(word)?.strip_prefix(' ')?;
        let field = |name: &str| fields.split(' ').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
        Some(Stopped {
            pid: field("pid")?.parse().ok()?,
            tid: field("tid")?.parse().ok()?,
            stop: field("stop")?.into(),
        })
    }
}

/// A host at its stop. Dropping it ends the process and removes its files.
pub struct Host {
    child: Child,
    /// The executable.
    pub exe: PathBuf,
    /// The thread that said READY.
    pub ready: Stopped,
    /// All threads that reached a stop: of `threads` several, else the one that said READY.
    pub stopped: Vec<Stopped>,
    /// Where the truth is, and where cores of this host may go.
    pub directory: TempDir,
}

/// Copies a program that is going to be run. `cp` does it, not this process: while a descriptor is open for writing here,
/// a child that another test starts at that moment inherits it, and running the copy fails with "text file busy".
pub fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().expect("cp runs");
    assert!(status.success(), "{} is copied", from.display());
}

impl Host {
    /// Starts the host and waits until it is at `stop`. Panics where it does not get there.
    ///
    /// The kernel ends the host together with the thread that calls this (`PR_SET_PDEATHSIG`).
    pub fn start(stop: &str, flags: &[&str], profile: Profile) -> Host {
        Host::start_exe(host_singlepass(profile), stop, flags)
    }

    /// The same for an executable that the caller chose or made.
    pub fn start_exe(exe: PathBuf, stop: &str, flags: &[&str]) -> Host {
        Host::start_within(PATIENCE, exe, stop, flags)
    }

    /// The same for a host that takes long to its stop.
    pub fn start_within(patience: Duration, exe: PathBuf, stop: &str, flags: &[&str]) -> Host {
        let directory = work_directory();
        let mut child = command(&exe, &directory, stop, flags).spawn().expect("the host starts");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let mut stderr = child.stderr.take().expect("stderr is a pipe");
        // The host must not block on a full pipe: its runtime complains of every frame of some stacks.
        let said = thread::spawn(move || {
            let mut said = String::new();
            let _ = stderr.by_ref().take(0x1_0000).read_to_string(&mut said);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            said
        });
        let (ready, stopped) = match wait_ready(stdout, patience) {
            Ok(lines) => lines,
            Err(problem) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = said.join().unwrap_or_default();
                panic!("{} {stop} {flags:?}: {problem}\n{said}", exe.display());
            }
        };
        let host = Host { child, exe, ready, stopped, directory };
        if stop.starts_with("spin") { host.spinning() } else { host }
    }

    /// Waits until the guest runs by itself. READY is said within an import, and on a loaded machine the thread may be
    /// on its way out of there for long: on the processor it is out after a few microseconds.
    pub fn spinning(self) -> Host {
        let path = format!("/proc/{}/task/{}/stat", self.pid(), self.tid());
        // In ticks of 10 ms; behind the name of the program, in which there may be spaces.
        let ran = || -> u64 {
            let stat = std::fs::read_to_string(&path).expect("the thread is there");
            stat.rsplit(')').next().and_then(|s| s.split(' ').nth(12)?.parse().ok()).expect("the time it ran")
        };
        let (before, deadline) = (ran(), Instant::now() + PATIENCE);
        while ran() < before + 3 {
            assert!(Instant::now() < deadline, "the guest does not run");
            thread::sleep(Duration::from_millis(5));
        }
        self
    }

    /// A host that dies of SIGABRT, held by SIGSTOP at the moment at which the signal would have been delivered: the stop
    /// of a debugger under which it runs, for several visitors in turn.
    pub fn start_aborting(profile: Profile) -> Host {
        use nix::sys::ptrace;
        use nix::sys::signal::Signal;
        use nix::sys::wait::{WaitStatus, waitpid};
        use std::io::Write;
        let (exe, directory) = (host_singlepass(profile), work_directory());
        // It waits until it is traced. `exec` keeps the pid. The pipe stays open: the host ends with its input.
        let own = command(&exe, &directory, "abort", &[]);
        let mut held = Command::new("sh");
        held.args(["-c", "read _; exec \"$0\" \"$@\""]).arg(&exe).args(own.get_args()).env_remove("RUST_BACKTRACE");
        held.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = held.spawn().expect("sh starts");
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        ptrace::seize(pid, ptrace::Options::empty()).expect("a child may be traced");
        child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("sh reads");
        loop {
            match waitpid(pid, None).expect("a child") {
                WaitStatus::Stopped(_, Signal::SIGABRT) => {
                    break ptrace::detach(pid, Signal::SIGSTOP).expect("it stands");
                }
                WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal).expect("it stands"),
                WaitStatus::PtraceEvent(..) => ptrace::cont(pid, None).expect("it stands"),
                other => panic!("the host ended before its abort: {other:?}"),
            }
        }
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let (ready, stopped) = wait_ready(stdout, PATIENCE).expect("it said READY before");
        Host { child, exe, ready, stopped, directory }
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.ready.pid
    }

    /// The thread that is at the stop.
    pub fn tid(&self) -> i32 {
        self.ready.tid
    }

    /// The thread at the stop of this name.
    pub fn tid_at(&self, stop: &str) -> Option<i32> {
        self.stopped.iter().find(|s| s.stop == stop).map(|s| s.tid)
    }

    /// The runtime's own answer; `None` where it has none.
    pub fn truth(&self) -> Option<Truth> {
        Truth::read(self.directory.path(), "")
    }

    /// The answer with a name of its own: `outer` of `nested`, the threads' stops of `threads`.
    pub fn truth_of(&self, name: &str) -> Option<Truth> {
        Truth::read(self.directory.path(), &format!(".{name}"))
    }

    /// The answer of a Wasmtime host.
    pub fn truth_json(&self) -> Value {
        read_json(&self.directory, "")
    }

    /// The same of one of `threads`.
    pub fn truth_json_of(&self, name: &str) -> Value {
        read_json(&self.directory, &format!(".{name}"))
    }

    /// Whether the process is still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Panics where a look at the process has left something behind: a thread that stands or is traced.
    pub fn assert_unharmed(&self) {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the process is there");
        let tasks: Vec<PathBuf> = tasks.map(|task| task.expect("a thread").path()).collect();
        assert!(!tasks.is_empty(), "process {} has no threads", self.pid());
        for task in tasks {
            let status = std::fs::read_to_string(task.join("status")).expect("the thread is there");
            let field = |key: &str| {
                let line = status.lines().find_map(|l| l.strip_prefix(key));
                line.and_then(|l| l.split_whitespace().next()).unwrap_or_default()
            };
            assert!(matches!(field("State:"), "R" | "S" | "D"), "{}: {status}", task.display());
            assert_eq!(field("TracerPid:"), "0", "{}: {status}", task.display());
        }
    }

    /// Asks the host to end itself, which it does only if it still runs, and returns whether it did so in good order.
    pub fn finish(mut self) -> bool {
        drop(self.child.stdin.take());
        wait(&mut self.child).is_some_and(|status| status.success())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_json(directory: &TempDir, suffix: &str) -> Value {
    let path = directory.path().join(format!("truth{suffix}"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A directory that is removed with this value.
pub fn work_directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory for a test's files")
}

fn command(exe: &Path, directory: &TempDir, stop: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(exe);
    command
        .arg("--truth")
        .arg(directory.path().join("truth"))
        .arg("--cwd")
        .arg(directory.path())
        .args(flags)
        .arg(stop)
        .env_remove("RUST_BACKTRACE")
        // A host is killed, and removes nothing.
        .env("TMPDIR", directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Reads lines until READY, for so long.
fn wait_ready(stdout: impl Read + Send + 'static, patience: Duration) -> Result<(Stopped, Vec<Stopped>), String> {
    let (lines, received) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + patience;
    let mut stopped = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = received.recv_timeout(left).map_err(|e| format!("no READY line: {e}"))?;
        stopped.extend(Stopped::parse(&line, "STOPPED"));
        if let Some(ready) = Stopped::parse(&line, "READY") {
            if stopped.is_empty() {
                stopped.push(ready.clone());
            }
            return Ok((ready, stopped));
        }
    }
}

/// A core file of a host at a stop.
pub struct Core {
    /// The core.
    pub path: PathBuf,
    /// The executable.
    pub exe: PathBuf,
    /// The thread that said READY.
    pub ready: Stopped,
    /// All threads that reached a stop.
    pub stopped: Vec<Stopped>,
    /// Where the core and the truth are; removed with this value.
    pub directory: TempDir,
}

impl Core {
    /// The runtime's own answer; `None` where it has none.
    pub fn truth(&self) -> Option<Truth> {
        Truth::read(self.directory.path(), "")
    }

    /// The answer with a name of its own.
    pub fn truth_of(&self, name: &str) -> Option<Truth> {
        Truth::read(self.directory.path(), &format!(".{name}"))
    }

    /// The answer of a Wasmtime host.
    pub fn truth_json(&self) -> Value {
        read_json(&self.directory, "")
    }
}

/// Why there is no core: a failure of the test, see [`missing`].
#[derive(Debug)]
pub struct NoCore(pub String);

/// A core that the kernel writes of a host at `stop` (`--core`); `flags` may say `--core-in-handler` instead.
pub fn kernel_core(stop: &str, flags: &[&str], profile: Profile) -> Result<Core, NoCore> {
    kernel_core_exe(host_singlepass(profile), stop, flags)
}

/// The same for an executable that the caller chose or made.
pub fn kernel_core_exe(exe: PathBuf, stop: &str, flags: &[&str]) -> Result<Core, NoCore> {
    let directory = work_directory();
    let name = exe.file_name().expect("a file").to_string_lossy().into_owned();
    let mut flags = flags.to_vec();
    if !flags.contains(&"--core-in-handler") {
        flags.push("--core");
    }
    let mut child = command(&exe, &directory, stop, &flags).stderr(Stdio::null()).spawn().expect("the host starts");
    let lines = wait_ready(child.stdout.take().expect("stdout is a pipe"), PATIENCE);
    let status = wait(&mut child);
    let (ready, stopped) = lines.unwrap_or_else(|problem| panic!("{name} {stop} {flags:?}: {problem}"));
    let status = status.unwrap_or_else(|| panic!("{name} {stop} {flags:?} is still running after READY"));
    // core_pattern and core_uses_pid decide about the name.
    let found = std::fs::read_dir(directory.path())
        .expect("the directory is readable")
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("core")));
    match found {
        Some(path) => Ok(Core { path, exe, ready, stopped, directory }),
        None => {
            let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
            Err(NoCore(format!(
                "the host ended with {status} and left no core: kernel.core_pattern is {:?} (sysctl -w \
                 kernel.core_pattern=core makes the kernel write cores here), and `ulimit -H -c` must not be 0",
                pattern.trim_end()
            )))
        }
    }
}

/// A core that gdb's `gcore` writes of a running host; the host goes on.
pub fn gcore(host: &Host) -> Result<PathBuf, NoCore> {
    let prefix = host.directory.path().join("gcore");
    let mut child = Command::new("gcore")
        .arg("-o")
        .arg(&prefix)
        .arg(host.pid().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| NoCore(format!("gcore (part of gdb) does not start: {e}")))?;
    let status = wait(&mut child);
    let path = PathBuf::from(format!("{}.{}", prefix.display(), host.pid()));
    match status {
        Some(status) if status.success() && path.exists() => Ok(path),
        _ => Err(NoCore(format!("gcore wrote no whole core: {status:?}"))),
    }
}

/// Waits for a process; ends it and returns `None` where it takes too long.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// The `wstate` of this build, to be started.
pub fn wstate_command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wstate"));
    command.args(args).stdin(Stdio::null()).env_remove("NO_COLOR").env_remove("CLICOLOR");
    command
}

/// Runs the `wstate` of this build. What it prints as JSON is what its schema says.
pub fn wstate(args: &[&str]) -> Output {
    let output = wstate_command(args).output().expect("wstate starts");
    schema::check_output(&args.iter().map(|a| a.as_ref()).collect::<Vec<_>>(), &output.stdout);
    output
}

/// Runs the `wstate` of this build: exit code, standard output, standard error.
pub fn wstate_text(args: &[&str]) -> (i32, String, String) {
    let output = wstate(args);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal ended it"), text(output.stdout), text(output.stderr))
}

/// Runs the `wstate` of this build: exit code and JSON.
pub fn wstate_json(args: &[&str]) -> (i32, Value) {
    let (code, out, err) = wstate_text(&[args, &["--json"]].concat());
    let value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: exit {code}, {e}\n{out}\n{err}"));
    (code, value)
}
