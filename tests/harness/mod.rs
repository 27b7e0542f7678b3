//! Real hosts for the tests: built once, started at a known stop, ended with the test.
#![allow(dead_code)] // Every test crate uses a part of this.

#[path = "../support/schema.rs"]
pub mod schema;

use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use wstate::arch::{Machine, Registers, x64};
use wstate::report::Report;
use wstate::session::{self, Options, Outcome, Source};
use wstate::state::ExecutionStateImage;

/// How the host was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// The dev profile.
    Debug,
    /// The release profile without debug information: the symbol table is there.
    Release,
    /// The release profile with debug information.
    ReleaseDebuginfo,
    /// The release profile without symbols.
    Stripped,
}

impl Variant {
    pub const ALL: [Variant; 4] = [Variant::Debug, Variant::Release, Variant::ReleaseDebuginfo, Variant::Stripped];

    pub fn name(self) -> &'static str {
        match self {
            Variant::Debug => "debug",
            Variant::Release => "release",
            Variant::ReleaseDebuginfo => "release-debuginfo",
            Variant::Stripped => "stripped",
        }
    }

    /// The executable, built when it is first asked for.
    pub fn executable(self) -> &'static Path {
        static HOSTS: OnceLock<BTreeMap<Variant, PathBuf>> = OnceLock::new();
        &HOSTS.get_or_init(build)[&self]
    }
}

/// The directory of this build: `target/debug` and `target/release` are in it.
fn target_dir() -> &'static Path {
    // Cargo's own directory for tests is `target/tmp`.
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp is in target")
}

fn command_succeeds(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

fn build() -> BTreeMap<Variant, PathBuf> {
    // The packages that tests/support names, so that neither builds the runtime again after the other.
    for profile in [&[][..], &["--release", "-p", "wstate", "--bins"]] {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "-q", "-p", "host-singlepass", "--target-dir"]);
        command_succeeds(cargo.arg(target_dir()).args(profile));
    }
    let release = target_dir().join("release/host-singlepass");
    let derive = |variant: Variant, flag: &str| {
        let dir = target_dir().join("tmp/hosts").join(variant.name());
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("host-singlepass");
        // Another program of tests that finds the old one makes it anew as well, and takes it away from our hosts.
        let lock = fs::File::create(dir.join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let built = |p: &Path| p.metadata().and_then(|m| m.modified()).ok();
        if built(&path).is_none() || built(&path) < built(&release) {
            // Another test process may be running the old one.
            let new = dir.join(format!("new.{}", std::process::id()));
            command_succeeds(Command::new("objcopy").arg(flag).arg(&release).arg(&new));
            fs::rename(&new, &path).unwrap();
        }
        (variant, path)
    };
    BTreeMap::from([
        (Variant::Debug, target_dir().join("debug/host-singlepass")),
        derive(Variant::Release, "--strip-debug"),
        (Variant::ReleaseDebuginfo, release.clone()),
        derive(Variant::Stripped, "--strip-all"),
    ])
}

/// The debug host with the feature `publish`, in a target directory of its own: see `tests/support`.
fn publishing() -> &'static Path {
    static PUBLISHING: OnceLock<PathBuf> = OnceLock::new();
    PUBLISHING.get_or_init(|| {
        let dir = target_dir().join("publish");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "-q", "-p", "host-singlepass", "--bins"]);
        cargo.args(["--features", "host-singlepass/publish", "--target-dir"]).arg(&dir);
        command_succeeds(&mut cargo);
        dir.join("debug/host-singlepass")
    })
}

/// A directory that is removed with the test.
pub fn scratch() -> tempfile::TempDir {
    tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// How long a host may take to its stop; a debug host compiles in well under a second on an idle machine.
const READY_TIMEOUT: Duration = Duration::from_secs(600);

/// A running host.
pub struct Host {
    pub variant: Variant,
    pub pid: u32,
    /// The thread that said READY.
    pub tid: u32,
    /// Threads that stopped, by the name of their stop; one only, unless the stop is `threads`.
    pub threads: Vec<(String, u32)>,
    /// Where truth files and cores are.
    pub dir: tempfile::TempDir,
    child: Child,
}

impl Host {
    /// Starts a host and waits until it says READY.
    ///
    /// The kernel ends it with the *thread* that calls this (`PR_SET_PDEATHSIG`).
    pub fn start(variant: Variant, stop: &str, args: &[&str]) -> Host {
        let executable = if args.contains(&"--publish") { publishing() } else { variant.executable() };
        let dir = scratch();
        let mut command = Command::new(executable);
        command.arg(stop).args(args).arg("--truth").arg(dir.path().join("truth")).arg("--cwd").arg(dir.path());
        // The runtime prints "BUG: Register ..." for every register that it does not know.
        let log = fs::File::create(dir.path().join("stderr")).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let stdout = child.stdout.take().unwrap();
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut host = Host { variant, pid: child.id(), tid: 0, threads: Vec::new(), dir, child };
        let begin = Instant::now();
        loop {
            let left = READY_TIMEOUT.saturating_sub(begin.elapsed());
            let line = lines.recv_timeout(left).unwrap_or_else(|e| {
                let log = fs::read_to_string(host.dir.path().join("stderr")).unwrap_or_default();
                panic!(
                    "{} host, {stop} {args:?}: no READY line ({e}), {:?}\n{log}",
                    variant.name(),
                    host.child.try_wait()
                )
            });
            let word = |key: &str| line.split(' ').find_map(|w| w.strip_prefix(key)).map(str::to_string);
            let (Some(tid), Some(name)) = (word("tid=").and_then(|t| t.parse().ok()), word("stop=")) else { continue };
            if line.starts_with("STOPPED") {
                host.threads.push((name, tid));
            } else if line.starts_with("READY") {
                host.tid = tid;
                if host.threads.is_empty() {
                    host.threads.push((name, tid));
                }
                return host;
            }
        }
    }

    /// The file that the runtime's answer is in; it need not exist.
    pub fn truth_path(&self, suffix: &str) -> PathBuf {
        self.dir.path().join(format!("truth{suffix}"))
    }

    /// The runtime's own answers: one, or one per thread where there are several.
    pub fn truths(&self) -> Vec<Truth> {
        let several = self.threads.len() > 1;
        let of = |(name, tid): &(String, u32)| {
            let suffix = if several { format!(".{name}") } else { String::new() };
            let image = fs::read(self.truth_path(&suffix)).ok()?;
            let text = fs::read_to_string(self.truth_path(&format!("{suffix}.txt"))).unwrap();
            Some(Truth { tid: *tid, stop: name.clone(), image, text })
        };
        self.threads.iter().filter_map(of).collect()
    }

    /// What the kernel says of every thread: (tid, State, TracerPid).
    pub fn thread_states(&self) -> Vec<(u32, String, u32)> {
        let mut out = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten() {
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let field = |key: &str| {
                let line = status.lines().find_map(|l| l.strip_prefix(key));
                line.and_then(|l| l.split_whitespace().next()).unwrap_or("").to_string()
            };
            let tid = entry.file_name().to_string_lossy().parse().unwrap();
            out.push((tid, field("State:"), field("TracerPid:").parse().unwrap_or(u32::MAX)));
        }
        out
    }

    /// That looking at the process left nothing behind: no thread stands or is traced.
    pub fn assert_unharmed(&self) {
        let states = self.thread_states();
        assert!(!states.is_empty(), "process {} is gone", self.pid);
        for (tid, state, tracer) in states {
            assert!(matches!(state.as_str(), "R" | "S" | "D"), "thread {tid} is in state {state}");
            assert_eq!(tracer, 0, "thread {tid} is traced");
        }
    }

    /// Asks the host to end itself, which it does only if it still runs, and returns whether it did so in good order.
    pub fn finish(mut self) -> bool {
        drop(self.child.stdin.take());
        self.wait().is_some_and(|status| status.success())
    }

    fn wait(&mut self) -> Option<std::process::ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < READY_TIMEOUT {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Ok(Some(status)) => return Some(status),
                Err(_) => return None,
            }
        }
        None
    }

    /// The core that the kernel writes of a host that was started with `--core` or `--core-in-handler`.
    pub fn kernel_core(&mut self) -> PathBuf {
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
        assert!(
            pattern.trim() == "core",
            "kernel.core_pattern is {:?}: the kernel's cores go elsewhere. Set it with: sysctl -w kernel.core_pattern=core",
            pattern.trim()
        );
        let status = self.wait().expect("the host ends with a core");
        use std::os::unix::process::ExitStatusExt;
        assert!(status.core_dumped(), "{status} without a core: is `ulimit -H -c` 0?");
        let cores = fs::read_dir(self.dir.path()).unwrap().flatten().map(|e| e.path());
        let is_core = |p: &PathBuf| {
            let name = p.file_name().and_then(OsStr::to_str).unwrap_or("");
            name == "core" || name == format!("core.{}", self.pid)
        };
        cores.into_iter().find(is_core).expect("a core in the host's directory")
    }

    /// A core that gdb writes of the running host.
    pub fn gcore(&self) -> PathBuf {
        let path = self.dir.path().join("gcore");
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch", "-iex", "set auto-load no", "-iex", "set debuginfod enabled off"]);
        gdb.arg("-p").arg(self.pid.to_string()).arg("-ex").arg(format!("generate-core-file {}", path.display()));
        let output = gdb.output().unwrap_or_else(|e| panic!("gdb: {e}; install it with: apt-get install gdb"));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("Saved corefile"),
            "gdb wrote no core: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        path
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The runtime's own answer for one thread.
#[derive(Clone)]
pub struct Truth {
    pub tid: u32,
    pub stop: String,
    /// bincode.
    pub image: Vec<u8>,
    /// `ExecutionStateImage::output`.
    pub text: String,
}

impl Truth {
    pub fn decoded(&self) -> ExecutionStateImage {
        wstate::state::codec::decode_bincode(&self.image).expect("the runtime's own image decodes")
    }
}

/// The binary itself.
pub fn wstate(args: &[&dyn AsRef<OsStr>]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wstate"));
    command.args(args).stdin(Stdio::null()).env_remove("NO_COLOR").env_remove("CLICOLOR");
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    schema::check_output(&args.iter().map(|a| a.as_ref()).collect::<Vec<_>>(), &output.stdout);
    output
}

/// [`wstate`] for words: exit code, standard output, standard error.
pub fn wstate_text(args: &[&str]) -> (i32, String, String) {
    let words: Vec<&dyn AsRef<OsStr>> = args.iter().map(|a| a as &dyn AsRef<OsStr>).collect();
    let output = wstate(&words);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal ended it"), text(output.stdout), text(output.stderr))
}

/// [`wstate`] with `--json`: exit code and document.
pub fn wstate_json(args: &[&str]) -> (i32, Value) {
    let (code, out, err) = wstate_text(&[args, &["--json"]].concat());
    let value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: exit {code}, {e}\n{out}\n{err}"));
    (code, value)
}

/// A question about a process without the names of native functions, which take most of the time.
pub fn question(source: Source) -> Options {
    Options { names: false, ..Options::new(source) }
}

/// Answers a question in this process.
pub fn ask(options: &Options) -> Outcome {
    session::run(options).unwrap_or_else(|e| panic!("{options:?}: {e}"))
}

/// The report's thread.
pub fn thread(report: &Report, tid: u32) -> &wstate::report::Thread {
    report.threads.iter().find(|t| t.tid == Some(tid)).unwrap_or_else(|| panic!("no thread {tid} in the report"))
}

/// General registers of a thread that this thread traces.
pub fn registers_of(tid: u32) -> Registers {
    let r = nix::sys::ptrace::getregs(nix::unistd::Pid::from_raw(tid as i32)).expect("a traced thread's registers");
    let mut out = Registers::unknown(Machine::X64);
    for (reg, value) in [
        (x64::RAX, r.rax),
        (x64::RCX, r.rcx),
        (x64::RDX, r.rdx),
        (x64::RBX, r.rbx),
        (x64::RSP, r.rsp),
        (x64::RBP, r.rbp),
        (x64::RSI, r.rsi),
        (x64::RDI, r.rdi),
        (x64::R8, r.r8),
        (x64::R9, r.r9),
        (x64::R10, r.r10),
        (x64::R11, r.r11),
        (x64::R12, r.r12),
        (x64::R13, r.r13),
        (x64::R14, r.r14),
        (x64::R15, r.r15),
        (x64::RIP, r.rip),
    ] {
        out.set(reg, value);
    }
    out
}

/// A stopped thread of a process that this thread traces: what a debugger sees. `LiveTarget` cannot be used there, since
/// a thread has one tracer.
pub struct Traced {
    pid: u32,
    memory: fs::File,
    mappings: Vec<wstate::process::Mapping>,
    executable: PathBuf,
    threads: Vec<wstate::process::Thread>,
}

impl Traced {
    /// Stops thread `tid` of process `pid`.
    pub fn seize(pid: u32, tid: u32) -> Traced {
        use nix::sys::ptrace;
        let id = nix::unistd::Pid::from_raw(tid as i32);
        ptrace::seize(id, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(id).unwrap();
        wait_for_stop(id);
        let maps = procfs::process::Process::new(pid as i32).and_then(|p| p.maps()).unwrap();
        use procfs::process::{MMPermissions, MMapPath};
        let mappings = maps.into_iter().map(|m| wstate::process::Mapping {
            start: m.address.0,
            end: m.address.1,
            read: m.perms.contains(MMPermissions::READ),
            write: m.perms.contains(MMPermissions::WRITE),
            execute: m.perms.contains(MMPermissions::EXECUTE),
            offset: m.offset,
            path: match m.pathname {
                MMapPath::Path(p) => Some(p),
                MMapPath::Anonymous => None,
                MMapPath::Stack => Some("[stack]".into()),
                MMapPath::Vdso => Some("[vdso]".into()),
                _ => Some("[heap]".into()),
            },
        });
        let thread = wstate::process::Thread {
            id: wstate::process::ThreadId(tid),
            name: None,
            registers: registers_of(tid),
            fs_base: None,
            signal: None,
            problem: None,
        };
        Traced {
            pid,
            memory: fs::File::open(format!("/proc/{pid}/mem")).unwrap(),
            mappings: mappings.collect(),
            executable: fs::read_link(format!("/proc/{pid}/exe")).unwrap(),
            threads: vec![thread],
        }
    }

    fn id(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.threads[0].id.0 as i32)
    }

    /// Executes one instruction.
    pub fn step(&self) {
        nix::sys::ptrace::step(self.id(), None).unwrap();
        wait_for_stop(self.id());
    }

    /// The registers as they are now.
    pub fn registers(&self) -> Registers {
        registers_of(self.threads[0].id.0)
    }
}

/// Lets the thread go. Without that the process could not end: its tracer has to wait for the thread.
impl Drop for Traced {
    fn drop(&mut self) {
        let _ = nix::sys::ptrace::detach(self.id(), None);
    }
}

fn wait_for_stop(id: nix::unistd::Pid) {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    match waitpid(id, Some(WaitPidFlag::__WALL)).unwrap() {
        WaitStatus::Stopped(_, nix::sys::signal::SIGTRAP) | WaitStatus::PtraceEvent(..) => {}
        other => panic!("thread {id} does not stand: {other:?}"),
    }
}

impl wstate::process::Memory for Traced {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), wstate::process::MemoryError> {
        use std::os::unix::fs::FileExt;
        let unmapped = wstate::process::MemoryError::Unmapped { address, len: buf.len() };
        if address > i64::MAX as u64 {
            return Err(unmapped);
        }
        self.memory.read_exact_at(buf, address).map_err(|_| unmapped)
    }
}

impl wstate::process::Target for Traced {
    fn machine(&self) -> Machine {
        Machine::X64
    }
    fn description(&self) -> String {
        format!("stepped process {}", self.pid)
    }
    fn threads(&self) -> &[wstate::process::Thread] {
        &self.threads
    }
    fn mappings(&self) -> &[wstate::process::Mapping] {
        &self.mappings
    }
    fn executable(&self) -> Option<&Path> {
        Some(&self.executable)
    }
    fn pid(&self) -> Option<u32> {
        Some(self.pid)
    }
    fn auxv(&self, _: u64) -> Option<u64> {
        None
    }
    fn file_candidates(&self, mapping: &wstate::process::Mapping) -> Vec<wstate::process::files::Place> {
        mapping.path.iter().filter(|_| !mapping.is_anonymous()).map(wstate::process::files::Place::user).collect()
    }
    fn notes(&self) -> &[String] {
        &[]
    }
    fn is_live(&self) -> bool {
        true
    }
}
