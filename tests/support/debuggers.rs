//! gdb and lldb without a user: commands in, what they print out.

use super::{Host, NoCore, PATIENCE, repository};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A debugger with the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debugger {
    /// gdb
    Gdb,
    /// lldb
    Lldb,
}

/// Runs each command and writes what it prints to a file of its own. A failure is a text `error: ...` there.
const GDB: &str = "
import os
def out(n, command):
    try:
        text = gdb.execute(command, to_string=True) or ''
    except gdb.error as e:
        text = 'error: ' + str(e) + '\\n'
    open(os.path.join(DIRECTORY, str(n)), 'w').write(text)
";
/// Each command is one of lldb's own command line, as a user's are: commands that a script runs in turn share the state
/// that the process had when the script began, and then lldb may lend a process that it has just stopped no registers.
/// A command `python ...` is as in gdb: its names are the plugin's, and its text is what it prints.
const LLDB: &str = "
import contextlib, io, lldb, os, sys
names = {}
def out(debugger, n, command):
    if command.startswith('python '):
        names.update(vars(sys.modules.get('wstate_lldb', lldb)))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(command[len('python '):], names)
        text = printed.getvalue()
    else:
        result = lldb.SBCommandReturnObject()
        debugger.GetCommandInterpreter().HandleCommand(command, result)
        text = (result.GetOutput() or '') if result.Succeeded() else (result.GetError() or '')
    open(os.path.join(DIRECTORY, str(n)), 'w').write(text)
";

/// What a copy of the plugin has beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Not the file that the plugins share.
    Alone,
    /// That file of another version.
    Mixed,
    /// Not the file that the plugins share, and functions of the plugin that take other arguments than those of this
    /// version.
    Different,
    /// That file, and both are of another version.
    OtherVersion,
    /// That file of this version, which is no Python.
    Broken,
}

impl Debugger {
    /// The program, or why it cannot be used.
    pub fn program(self) -> Result<PathBuf, NoCore> {
        let names: &[&str] = match self {
            Debugger::Gdb => &["gdb"],
            Debugger::Lldb => &["lldb-22", "lldb-21", "lldb-20", "lldb-19", "lldb-18", "lldb-17", "lldb-16", "lldb"],
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found =
            names.iter().find_map(|name| std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.exists()));
        found.ok_or_else(|| NoCore(format!("{} is not installed", names.join(" or "))))
    }

    /// The program, of which no test does without.
    fn demanded(self) -> PathBuf {
        self.program().unwrap_or_else(|why| {
            panic!("{}; `sh tests/run.sh` installs it, and WSTATE_ALLOW_MISSING does not leave out debuggers", why.0)
        })
    }

    /// The plugin in the repository.
    pub fn plugin(self) -> PathBuf {
        repository().join(match self {
            Debugger::Gdb => "gdb-plugin/wstate_gdb.py",
            Debugger::Lldb => "lldb-plugin/wstate_lldb.py",
        })
    }

    /// Installs the plugin as a user with this home directory does, and returns where it is.
    pub fn install(self, home: &Path) -> PathBuf {
        let plugin = |action: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_wstate"));
            let name = if self == Debugger::Gdb { "gdb" } else { "lldb" };
            command.args(["plugin", action, name]).env("HOME", home).env_remove("XDG_DATA_HOME");
            let out = command.output().expect("wstate starts");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).expect("text")
        };
        plugin("install");
        PathBuf::from(plugin("path").trim())
    }

    /// A copy of the plugin in a directory of its own.
    pub fn copy_plugin(self, place: &Path, directory: &str, layout: Layout) -> PathBuf {
        let directory = place.join(directory);
        std::fs::create_dir(&directory).expect("a directory");
        let (plugin, client) = (self.plugin(), repository().join("gdb-plugin/wstate_client.py"));
        let copy = |from: &Path, other_version: bool| {
            let mut text = std::fs::read_to_string(from).expect("a file of the plugin");
            if other_version {
                text = text.replace(concat!("VERSION = \"", env!("CARGO_PKG_VERSION")), "VERSION = \"0.0.1");
                text = text.replace("Print the native and Wasm frames", "THE OTHER prints native and Wasm frames");
            }
            std::fs::write(directory.join(from.file_name().expect("a name")), text).expect("a copy");
        };
        copy(&plugin, layout == Layout::OtherVersion);
        if matches!(layout, Layout::Mixed | Layout::OtherVersion) {
            copy(&client, true);
        }
        if layout == Layout::Broken {
            let version = format!("VERSION = \"{}\"\n<<<<<<< HEAD\n", env!("CARGO_PKG_VERSION"));
            std::fs::write(directory.join(client.file_name().expect("a name")), version).expect("a file");
        }
        let plugin = directory.join(plugin.file_name().expect("a name"));
        if layout == Layout::Different {
            let text = std::fs::read_to_string(&plugin).expect("a copy");
            let functions = ["target_of(", "look_for_code(", "registers_of(", "core_path(", "current_thread("];
            let change = |text: String, f: &&str| text.replace(&format!("def {f}"), &format!("def {f}more, "));
            std::fs::write(&plugin, functions.iter().fold(text, change)).expect("a copy");
        }
        plugin
    }

    /// The command that loads a script, such as the plugin.
    pub fn load_script(self, path: &Path) -> String {
        match self {
            Debugger::Gdb => format!("source {}", path.display()),
            Debugger::Lldb => format!("command script import {}", path.display()),
        }
    }

    /// One of the plugin's commands.
    pub fn wasm(self, command: &str) -> String {
        match self {
            Debugger::Gdb => format!("wasm-{command}"),
            Debugger::Lldb => format!("wasm {command}"),
        }
    }

    /// The command that gives a setting of the plugin a value.
    pub fn set(self, setting: &str) -> String {
        match self {
            Debugger::Gdb => format!("set wasm {setting}"),
            Debugger::Lldb => format!("wasm set {setting}"),
        }
    }

    /// The command by which the plugin uses this build's engine.
    pub fn set_server(self) -> String {
        self.set(&format!("server {}", env!("CARGO_BIN_EXE_wstate")))
    }

    /// The commands that load the plugin with this build's engine.
    pub fn load(self) -> Vec<String> {
        vec![self.load_script(&self.plugin()), self.set_server()]
    }

    /// The arguments that open a core.
    pub fn on_core<'a>(self, exe: &'a Path, core: &'a Path) -> Vec<&'a str> {
        match self {
            Debugger::Gdb => vec![arg(exe), arg(core)],
            Debugger::Lldb => vec![arg(exe), "-c", arg(core)],
        }
    }

    /// The commands that run a host of singlepass up to this stop, with the guest's frames on the stack.
    pub fn run_to(self, stop: &str) -> [String; 2] {
        match self {
            Debugger::Gdb => ["break host_stop".into(), format!("run {stop} < /dev/null > /dev/null 2>&1")],
            Debugger::Lldb => [
                "breakpoint set -n host_stop".into(),
                format!("process launch -i /dev/null -o /dev/null -e /dev/null -- {stop}"),
            ],
        }
    }

    /// The command that executes one instruction.
    pub fn step(self) -> &'static str {
        match self {
            Debugger::Gdb => "stepi",
            Debugger::Lldb => "thread step-inst",
        }
    }

    /// The command that lists the loaded files, see [`symbol_files`].
    pub fn list_files(self) -> &'static str {
        match self {
            Debugger::Gdb => "python print(*[o.filename for o in gdb.objfiles()], sep='\\n')",
            Debugger::Lldb => "image list",
        }
    }

    /// The command that ends the process.
    pub fn kill(self) -> &'static str {
        match self {
            Debugger::Gdb => "kill",
            Debugger::Lldb => "process kill",
        }
    }

    /// The command that runs a line of Python.
    pub fn python(self) -> &'static str {
        match self {
            Debugger::Gdb => "python",
            Debugger::Lldb => "script",
        }
    }

    /// The debugger with these commands of its own, to be started.
    pub fn command(self, arguments: &[&str], commands: &[String]) -> Command {
        let mut run = Command::new(self.demanded());
        let (quiet, each): (&[&str], &str) = match self {
            Debugger::Gdb => (&["-nx", "-batch", "-ex", "set debuginfod enabled off"], "-ex"),
            Debugger::Lldb => (&["-x", "-b"], "-o"),
        };
        run.args(quiet).args(arguments).env_remove("DEBUGINFOD_URLS").env("PYTHONDONTWRITEBYTECODE", "1");
        run.args(commands.iter().flat_map(|command| [each, command]));
        run
    }

    /// Runs `commands` with the plugin loaded and returns what each printed, and the debugger's whole output.
    pub fn run(self, arguments: &[&str], commands: &[&str]) -> Session {
        let mut all = self.load();
        let plugin = all.len();
        all.extend(commands.iter().map(|c| c.to_string()));
        let mut session = self.run_plain(arguments, &all.iter().map(String::as_str).collect::<Vec<_>>());
        session.texts.drain(..plugin);
        session
    }

    /// The same without the plugin.
    pub fn run_plain(self, arguments: &[&str], commands: &[&str]) -> Session {
        let directory = super::work_directory();
        let script = directory.path().join("script.py");
        let quoted = |text: &str| serde_json::to_string(text).expect("a string");
        let here = quoted(directory.path().to_str().expect("a path of ours"));
        let mut run = Command::new(self.demanded());
        match self {
            Debugger::Gdb => {
                let mut text = format!("DIRECTORY = {here}\n{GDB}");
                for (n, command) in commands.iter().enumerate() {
                    text += &format!("out({n}, {})\n", quoted(command));
                }
                std::fs::write(&script, text).expect("a script");
                run.args(["-nx", "-batch", "-ex", "set width 0", "-ex", "set debuginfod enabled off"]);
                run.args(arguments).arg("-x").arg(&script);
            }
            Debugger::Lldb => {
                std::fs::write(&script, format!("DIRECTORY = {here}\n{LLDB}")).expect("a script");
                run.args(["-x", "-b"]).args(arguments);
                run.arg("-o").arg(format!("command script import {}", script.display()));
                for (n, command) in commands.iter().enumerate() {
                    run.arg("-o").arg(format!("script script.out(lldb.debugger, {n}, {})", quoted(command)));
                }
            }
        }
        let (log, temporary) = (directory.path().join("log"), directory.path().join("tmp"));
        let file = std::fs::File::create(&log).expect("a log");
        std::fs::create_dir(&temporary).expect("a directory");
        let child = run
            .env_remove("DEBUGINFOD_URLS")
            .env("HOME", directory.path())
            .env("TMPDIR", &temporary)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log"))
            .stderr(file)
            .spawn()
            .expect("the debugger starts");
        let ended = end(child);
        let log = String::from_utf8_lossy(&std::fs::read(&log).expect("a log")).into_owned();
        assert!(ended, "the debugger does not end: {log}");
        assert_emptied(&temporary);
        let text = |n: usize| {
            let file = directory.path().join(n.to_string());
            std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}\n{log}", commands[n]))
        };
        Session { texts: (0..commands.len()).map(text).collect(), log, directory }
    }
}

/// How many symbol files of the plugin are among the loaded files.
pub fn symbol_files(list: &str) -> usize {
    list.lines().filter(|line| line.contains("/wasm-")).count()
}

/// What a debugger said.
pub struct Session {
    /// Of each command.
    pub texts: Vec<String>,
    /// All of it.
    pub log: String,
    /// Where it worked.
    pub directory: TempDir,
}

fn end(mut child: Child) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

/// Waits until a directory for temporary files is empty. What a debugger leaves goes a moment after it.
pub fn assert_emptied(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let entries = std::fs::read_dir(directory).expect("a directory");
        let left: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "the debugger left {left:?} in {}", directory.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// No core can be had here: see [`super::missing`].
pub fn missing(reason: &NoCore) {
    super::missing::missing(&reason.0);
}

/// A report without what differs between two looks at one stop: what the target is called, who it is and which file its
/// names come from (a debugger does not tell), the threads' names (a core has the process's only), their signals and what
/// they did.
pub fn normalized(report: &str) -> String {
    // What gdb itself thinks of a core.
    let mut lines = report.lines().filter(|line| !line.starts_with("warning: "));
    let head = lines.next().unwrap_or_default();
    // `process 1 (host), executable /x` or `core gcore.1 of host, executable /x`.
    let executable = head.split(", ").find(|part| part.starts_with("executable ")).unwrap_or(head);
    let mut out = vec![executable.to_string()];
    let of_target = |line: &&str| line.starts_with("  user ") || line.starts_with("  names from ");
    for line in lines.skip_while(of_target) {
        let thread = line.strip_prefix("Thread ").map(|rest| rest.split([' ', ',']).next().unwrap_or_default());
        out.push(thread.map_or(line.to_string(), |rest| format!("Thread {rest}")));
    }
    out.join("\n")
}

/// What `wstate` prints, as a command of the plugins prints it: each names its own way to see all frames.
pub fn in_a_debugger(printed_by_wstate: &str) -> String {
    printed_by_wstate.replace("(--all shows them)", "(wasm-bt whole shows them)")
}

/// Fails with the first lines in which what a command of the plugins printed differs from what `wstate` prints.
pub fn same(what: &str, in_debugger: &str, by_wstate: &str) {
    let (a, b) = (normalized(in_debugger), normalized(&in_a_debugger(by_wstate)));
    if a == b {
        return;
    }
    let differ = a.lines().zip(b.lines()).filter(|(a, b)| a != b).take(6).map(|(a, b)| format!("- {a}\n+ {b}\n"));
    let differ: String = differ.collect();
    panic!("{what}: {} and {} lines\n{differ}", a.lines().count(), b.lines().count());
}

/// The text of `wstate` with these arguments.
pub fn text(args: &[&str]) -> String {
    let out = super::wstate(args);
    assert!(out.status.code() != Some(2) || !out.stdout.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

/// Waits until every thread of a host waits in a system call. READY comes before the last steps to the stop, and two
/// looks at a stop see the same only if nothing moves.
pub fn at_rest(host: &Host) {
    let deadline = Instant::now() + PATIENCE;
    let waits = |task: std::fs::DirEntry| {
        // "running", or the number of the system call.
        std::fs::read_to_string(task.path().join("syscall")).is_ok_and(|s| s.starts_with(|c: char| c.is_ascii_digit()))
    };
    let rest = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid())).expect("the host is there");
        tasks.flatten().all(waits)
    };
    let mut seen = 0;
    // Twice: a system call on the way to the stop ends soon.
    while seen < 2 {
        seen = if rest() { seen + 1 } else { 0 };
        assert!(Instant::now() < deadline, "the host does not come to rest");
        std::thread::sleep(Duration::from_millis(5));
    }
}
