//! `wstate doctor`: what would stop an attach or makes a core useless, one check a line, each with the next step.

use crate::cli::advice::Sudo;
use crate::cli::plugin::{self, Debugger, Problem};
use crate::cli::sandbox::{self, Protection};
use crate::limits;
use crate::process::core::CoreTarget;
use crate::process::files::{self, FileLocation};
use crate::process::memory::CUT_OFF;
use crate::process::objects::{Objects, SearchPaths};
use crate::process::{Mapping, Memory, Target};
use crate::report::text::{clean_message, list_of};
use crate::report::{EndKind, Engine, Report, RuntimeName, Thread, counted, known_runtimes};
use anstyle::{AnsiColor, Style};
use object::read::elf::{ElfFile64, FileHeader};
use object::{Object, ObjectSection, ReadCache, ReadRef};
use procfs::process::{LimitValue, MMPermissions, MMapPath, Process};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bit of `CAP_SYS_PTRACE` in the capability sets of `/proc/PID/status` (capability.h).
const CAP_SYS_PTRACE: u64 = 1 << 19;
/// `PF_KTHREAD` of `flags` in `/proc/PID/stat` (sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The check found nothing that is in the way.
    Ok,
    /// Something will be missing.
    Warn,
    /// An attach will not work, or the core is of no use.
    Fail,
}

/// A check of what an attach or a core needs, and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Check {
    /// How it went.
    pub status: Status,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub next: Option<String>,
}

/// All checks of one run, in the order in which an attach or an analysis would meet them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Doctor {
    /// The process, if one was given.
    pub pid: Option<u32>,
    /// The core, if one was given.
    pub core: Option<String>,
    /// The checks in the order in which they were made.
    pub checks: Vec<Check>,
    /// What is told only if an attach shows that it matters.
    #[serde(skip)]
    later: Later,
    /// How the advice names this program behind sudo.
    #[serde(skip)]
    sudo: Sudo,
}

/// Facts that matter for some runtimes only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Later {
    /// Whether there is executable memory outside of files; `None` if that is not known.
    compiled: Option<bool>,
    /// Whether the executable says what compiled it.
    compiler_known: bool,
}

/// What the permission checks need to know about this process.
#[derive(Clone, Copy, Debug)]
struct Me {
    euid: u32,
    ptrace: bool,
}

/// What the permission checks need to know about the process that is looked at.
#[derive(Clone, Copy, Debug)]
struct Owner {
    pid: u32,
    /// Real, effective and saved user ids.
    uids: [u32; 3],
}

impl Doctor {
    /// Runs every check that applies. Reads only; nothing is stopped or changed.
    pub fn examine(pid: Option<u32>) -> Doctor {
        let mut d = Doctor { pid, sudo: Sudo::for_this_program(), ..Doctor::default() };
        let me = Process::myself().and_then(|p| p.status());
        let me = Me {
            euid: me.as_ref().map_or(u32::MAX, |s| s.euid),
            ptrace: me.as_ref().is_ok_and(|s| s.capeff & CAP_SYS_PTRACE != 0),
        };
        d.host();
        match pid {
            Some(pid) => d.process(pid, me),
            None => {
                d.ok(if me.ptrace {
                    "this user may look at any process (CAP_SYS_PTRACE)".to_string()
                } else {
                    format!("this user (uid {}) may look at its own processes", me.euid)
                });
                d.yama(yama_scope(), me, None);
                d.core_settings(Process::myself().ok().as_ref(), None);
            }
        }
        d
    }

    /// Runs every check that applies to a core, but does not analyse it. `search` says where its files are looked for. The
    /// core may come from a stranger, so this belongs into the sandbox.
    pub fn examine_core(core: &Path, search: &SearchPaths) -> Doctor {
        let mut d = Doctor { core: Some(core.display().to_string()), ..Doctor::default() };
        match CoreTarget::open(core, search) {
            Ok(target) => d.core(&target, search, sandbox::protection()),
            Err(e) => {
                let next = e.hint().unwrap_or_else(|| "a core of a running process: gcore PID".to_string());
                d.fail(e.to_string(), next);
            }
        }
        d
    }

    /// A check without a problem.
    pub fn ok(&mut self, what: impl Into<String>) {
        self.checks.push(Check { status: Status::Ok, what: what.into(), next: None });
    }

    /// A check after which something will be missing.
    pub fn warn(&mut self, what: impl Into<String>, next: impl Into<String>) {
        let next = self.sudo.put_into(&next.into());
        self.checks.push(Check { status: Status::Warn, what: what.into(), next: Some(next) });
    }

    /// The same as `warn`, where nothing can be done about it.
    pub fn note(&mut self, what: impl Into<String>) {
        self.checks.push(Check { status: Status::Warn, what: what.into(), next: None });
    }

    /// A check after which an attach or an analysis will not work.
    pub fn fail(&mut self, what: impl Into<String>, next: impl Into<String>) {
        let next = self.sudo.put_into(&next.into());
        self.checks.push(Check { status: Status::Fail, what: what.into(), next: Some(next) });
    }

    /// Adds what an attach or an analysis found: modules by route, engines that are not known, what was looked for and
    /// not found, files that are missing, and frames that are not sure. The advice is for the runtimes that are there.
    pub fn findings(&mut self, report: &Report) {
        let mut modules = 0;
        for (runtime, module) in report.runtimes.iter().flat_map(|r| r.modules.iter().map(move |m| (r, m))) {
            modules += 1;
            let name = module.name.as_deref().unwrap_or("a module");
            let what = format!("{}: {name}, found by {}", runtime.name, list_of(&module.routes));
            match &module.problem {
                Some(problem) => self.note(format!("{what}; {problem}")),
                None => self.ok(what),
            }
        }
        let seen = |engine| report.engines.iter().any(|e| e.name == engine);
        let singlepass = seen(Engine::Singlepass)
            || report.runtimes.iter().any(|r| r.name == RuntimeName::Singlepass && !r.modules.is_empty());
        if modules == 0 {
            self.nothing_found(report, singlepass);
        } else {
            for engine in &report.engines {
                self.note(engine.sentence());
            }
        }
        if singlepass && !self.later.compiler_known {
            self.note(
                "the executable does not say what compiled it (.comment is missing): layouts of the runtime's structures \
                 come from debug info or are recognised",
            );
        }
        for problem in &report.objects_problems {
            self.note_once(problem, "");
        }
        for note in &report.notes {
            self.note_once(note, "the search says: ");
        }
        let lost = report
            .threads
            .iter()
            .filter(|t| !matches!(&t.end, Some(e) if matches!(e.kind, EndKind::Bottom | EndKind::Limit)));
        for thread in lost {
            let why = thread.end.as_ref().and_then(|e| e.why.clone()).unwrap_or_default();
            let tid = thread.tid.unwrap_or_default();
            self.note(format!("the stack of thread {tid} cannot be walked to its bottom: {why}"));
        }
        let unsure = |t: &&Thread| t.frames.iter().any(|frame| !frame.is_sure());
        let threads: Vec<String> =
            report.threads.iter().filter(unsure).filter_map(|t| t.tid).map(|t| t.to_string()).collect();
        if let [first, rest @ ..] = threads.as_slice() {
            let more =
                if rest.is_empty() { String::new() } else { format!(" and {}", counted(rest.len() as u64, "other")) };
            self.note(format!(
                "frames of thread {first}{more} are unsure, because their code is not known or has no unwind \
                 information: others may be missing before them"
            ));
        }
    }

    /// Adds a note of a report, unless an earlier check says the same.
    fn note_once(&mut self, note: &str, before: &str) {
        if !self.checks.iter().any(|check| check.what == note) {
            self.note(format!("{before}{note}"));
        }
    }

    /// Adds why there may be no module, and what can help then.
    fn nothing_found(&mut self, report: &Report, singlepass: bool) {
        let when = match self.core {
            Some(_) => "look at a core that was written when the host had loaded a module",
            None => "attach when the host has loaded a module",
        };
        for engine in report.engines.iter().filter(|e| !e.supported) {
            self.note(engine.sentence());
        }
        let supported = report.engines.iter().filter(|e| e.supported);
        for engine in supported {
            let next = match engine.name.versions() {
                Some(versions) => format!("{when}; {} {versions} are known", engine.name),
                None => when.to_string(),
            };
            self.warn(engine.sentence(), next);
        }
        let mut nothing = "no Wasm module of a runtime that wstate knows was found".to_string();
        if self.later.compiled == Some(false) {
            nothing += ", and there is no executable memory outside of files: no code was compiled at run time, or an \
                        interpreter runs, which has no machine code to look at";
        }
        let is_told = report.engines.iter().any(|engine| engine.supported);
        if !is_told {
            nothing = format!("{nothing}; {}", known_runtimes());
        }
        match self.later.compiled {
            // The line of the engine says what to do.
            Some(false) if is_told => self.note(nothing),
            Some(false) => self.warn(nothing, when),
            // Only the runtime singlepass has other ways to find modules, and it leaves no trace in an executable
            // that was built for that.
            _ if singlepass || report.engines.is_empty() => {
                self.warn(
                    nothing,
                    "if the host is one of wasmer 0.x with singlepass: --artifact FILE with its cached artifact, or \
                     publish the module from the host (crate `wstate-descriptor`)",
                );
            }
            _ if is_told => self.note(nothing),
            _ => self.warn(nothing, format!("if the host also runs a runtime whose modules wstate can read, {when}")),
        }
    }

    /// Adds whether the plugins that this user has installed are those of this version.
    pub fn plugins(&mut self) {
        for debugger in Debugger::ALL {
            self.plugin(debugger.name(), plugin::problems(debugger));
        }
    }

    fn plugin(&mut self, debugger: &str, problems: Option<Vec<Problem>>) {
        match problems {
            None => {}
            Some(none) if none.is_empty() => {
                self.ok(format!("the {debugger} plugin that is installed belongs to this version"));
            }
            Some(problems) => problems.into_iter().for_each(|p| self.warn(p.what, p.next)),
        }
    }

    /// The worst status of all checks.
    pub fn worst(&self) -> Status {
        self.checks.iter().map(|c| c.status).max().unwrap_or(Status::Ok)
    }

    /// The checks as text.
    pub fn text(&self, color: bool) -> String {
        let mut out = String::new();
        for check in &self.checks {
            let (style, word) = match check.status {
                Status::Ok => (AnsiColor::Green.on_default(), "ok  "),
                Status::Warn => (AnsiColor::Yellow.on_default(), "warn"),
                Status::Fail => (AnsiColor::Red.on_default(), "FAIL"),
            };
            let style: Style = if color { style } else { Style::new() };
            out += &format!("{style}{word}{style:#}  {}\n", clean_message(&check.what));
            if let Some(next) = &check.next {
                out += &format!("      next: {}\n", clean_message(next));
            }
        }
        let count = |status| self.checks.iter().filter(|c| c.status == status).count();
        out += &match (count(Status::Fail), count(Status::Warn)) {
            (0, 0) => "nothing is in the way\n".to_string(),
            (f, w) => format!("failed: {f}, warnings: {w}\n"),
        };
        out
    }

    fn host(&mut self) {
        if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            self.ok("this is x86-64 Linux");
        } else {
            self.fail(
                format!("this is {} {}", std::env::consts::ARCH, std::env::consts::OS),
                "only x86-64 Linux is supported",
            );
        }
    }

    /// Checks what is in a core, and what is here of the files that were mapped.
    fn core(&mut self, core: &CoreTarget, search: &SearchPaths, protection: Protection) {
        let pid = core.pid().map_or(String::new(), |pid| format!(", which was process {pid}"));
        self.ok(format!(
            "{}{pid}, of a machine that wstate knows ({})",
            core.description(),
            core.machine().description().name
        ));
        if !core.notes().iter().any(|note| note.starts_with(CUT_OFF)) {
            self.ok("the core is complete: everything that its headers name is in it");
        }
        for note in core.notes() {
            self.note(note.clone());
        }
        let (all, known) =
            (core.threads().len() as u64, core.threads().iter().filter(|t| t.registers.pc().is_some()).count() as u64);
        match (all, all - known) {
            (0, _) => self.fail("the core lists no thread, so there are no stacks", "write the core again: gcore PID"),
            (_, 0) => self.ok(format!("it has the registers of {}", counted(all, "thread"))),
            (_, missing) if known == 0 => {
                self.fail(
                    format!("it has no registers of {}", counted(missing, "thread")),
                    "write the core again: gcore PID",
                );
            }
            (_, missing) => self.note(format!(
                "it has the registers of {}; {} without registers have no stacks",
                counted(known, "thread"),
                counted(missing, "thread")
            )),
        }
        self.code_in_core(core);
        self.files_of_core(&Objects::load(core, search), core);
        match protection {
            Protection::Sandbox => self.ok("the core is read in a sandbox"),
            Protection::Refused => self.note(
                "the core is read without a sandbox, because the system does not let a process give up its rights (seccomp)",
            ),
            Protection::None => self.ok("the core is read without a sandbox, with all rights of this user"),
        }
    }

    /// Checks whether a core has the code that was compiled at run time, which no file has.
    fn code_in_core(&mut self, core: &CoreTarget) {
        let is_code = |m: &&Mapping| m.execute && m.read;
        let (mut bytes, mut held) = (0u64, 0u64);
        for mapping in core.mappings().iter().filter(is_code).filter(|m| is_jit(m)) {
            bytes = bytes.saturating_add(mapping.size());
            held = held.saturating_add(held_of(core, mapping));
        }
        self.later.compiled = Some(bytes > 0);
        let kib = |bytes: u64| bytes.div_ceil(1024);
        if bytes > 0 && held == bytes {
            self.ok(format!("it has the code that was compiled at run time: {} KiB", kib(bytes)));
        } else if bytes > 0 {
            self.warn(
                format!("of {} KiB of code that was compiled at run time it has {} KiB", kib(bytes), kib(held)),
                "before the next core: echo 0x33 > /proc/PID/coredump_filter (bit 0 is anonymous memory), ulimit -c unlimited",
            );
        }
        let missing = |m: &&Mapping| core.read(m.start, &mut [0]).is_err();
        let files: BTreeSet<&Path> = core
            .mappings()
            .iter()
            .filter(is_code)
            .filter(|m| !is_jit(m))
            .filter(missing)
            .filter_map(|m| m.path.as_deref())
            .filter(|path| path.is_absolute())
            .collect();
        if !files.is_empty() {
            self.warn(
                format!(
                    "code of {} is neither in the core nor on this machine: {}",
                    counted(files.len() as u64, "file"),
                    some_of(&files)
                ),
                "--sysroot DIR with a copy of the files; bit 2 of coredump_filter puts mapped files into the next core",
            );
        }
    }

    /// Checks which of the files that a core names are here, and whether they are those that were loaded.
    fn files_of_core(&mut self, objects: &Objects, core: &CoreTarget) {
        match objects.executable() {
            None => {
                let name = core.executable().map_or(String::new(), |path| format!(" ({})", path.display()));
                self.warn(
                    format!("the executable{name} is not known to be here: its frames have no names"),
                    "name it behind the core: wstate doctor CORE EXE",
                );
            }
            Some(executable) => match (&executable.problem, &executable.data, &executable.opened) {
                (None, Some(data), Some(opened)) => {
                    self.ok(format!("{} is the executable that wrote it", opened.display()));
                    match ExecutableFacts::read(&**data) {
                        Ok(facts) => self.names_of_executable(&opened.display().to_string(), facts),
                        Err(why) => self.note(format!("{}: {why}", opened.display())),
                    }
                }
                (Some(problem), ..) => self.note(problem.what.clone()),
                (None, ..) => self.note("the executable is not here; what the core holds of it is used"),
            },
        }
        let main = objects.executable().map(|o| o.path.as_path());
        let libraries = objects.iter().filter(|o| o.path.is_absolute() && Some(o.path.as_path()) != main);
        let (here, gone): (Vec<_>, Vec<_>) = libraries.partition(|o| o.opened.is_some());
        match gone.is_empty() {
            true if here.is_empty() => {}
            true => self.ok(format!("libraries: all {} are here, as they were loaded", here.len())),
            false => {
                let missing: BTreeSet<&Path> = gone.iter().map(|o| o.path.as_path()).collect();
                self.warn(
                    format!(
                        "{} of {} libraries are here; missing or of another build: {}",
                        here.len(),
                        here.len() + gone.len(),
                        some_of(&missing)
                    ),
                    "--sysroot DIR with a copy of the files of the machine that wrote the core",
                );
            }
        }
    }

    fn process(&mut self, pid: u32, me: Me) {
        let process = i32::try_from(pid).ok().and_then(|p| Process::new(p).ok());
        let Some((process, status)) = process.and_then(|p| p.status().ok().map(|s| (p, s))) else {
            let what = format!("there is no process {pid}");
            let next = "look it up with pgrep -a NAME; in a container a process has another id than outside";
            return self.fail(what, next);
        };
        if process.stat().is_ok_and(|s| s.flags & PF_KTHREAD != 0) {
            return self.fail(
                format!("{pid} ({}) is a kernel thread, which has no stacks that wstate can read", status.name),
                "choose a user process",
            );
        }
        match status.state.chars().next() {
            Some('Z' | 'X') => {
                let what = format!(
                    "process {pid} ({}) has ended, and its parent {} has not waited for it",
                    status.name, status.ppid
                );
                return self.fail(what, "its memory is gone; look at a core of it: wstate core CORE");
            }
            Some('D') => self.warn(
                format!("process {pid} ({}) is in an uninterruptible wait", status.name),
                "an attach may have to wait until the kernel is done; /proc/PID/wchan says what it waits for",
            ),
            _ => self.ok(format!("process {pid} ({}) is there, threads: {}", status.name, status.threads)),
        }
        if u32::try_from(status.tgid).is_ok_and(|tgid| tgid != pid) {
            self.warn(
                format!("{pid} is a thread of process {}", status.tgid),
                format!("attach to the process: wstate attach {} -t {pid}", status.tgid),
            );
        }
        let mine = self.owner(Owner { pid, uids: [status.ruid, status.euid, status.suid] }, me);
        // A user who may not look at the process at all is not helped by another setting of Yama.
        let scope = yama_scope();
        if mine || scope > Some(2) {
            self.yama(scope, me, Some(pid));
        }
        match status.tracerpid {
            0 => self.ok("no debugger is attached to it"),
            t => self.fail(
                format!("process {t}{} already traces it", comm(t)),
                format!("end that debugger or make it detach (ps -p {t} -f)"),
            ),
        }
        self.dumpable(pid, status.euid, me);
        self.namespaces(pid, me, &status.nspid.unwrap_or_default());
        self.executable(pid);
        self.code(&process);
        self.core_settings(Some(&process), Some(pid));
    }

    /// Whether this user may look at the process.
    fn owner(&mut self, owner: Owner, me: Me) -> bool {
        let Owner { pid, uids } = owner;
        if me.ptrace {
            self.ok("this user may look at any process (CAP_SYS_PTRACE)");
        } else if uids.iter().all(|&u| u == me.euid) {
            self.ok(format!("the process belongs to this user (uid {})", me.euid));
        } else {
            let other = uids.iter().find(|&&u| u != me.euid).copied().unwrap_or_default();
            self.fail(
                format!("the process belongs to uid {other}, this is uid {} without CAP_SYS_PTRACE", me.euid),
                format!("sudo wstate attach {pid}; in a container also: --cap-add=SYS_PTRACE"),
            );
            return false;
        }
        true
    }

    /// Checks what Yama allows. `scope` is Yama's `ptrace_scope`, or `None` without Yama
    /// (Documentation/admin-guide/LSM/Yama.rst).
    fn yama(&mut self, scope: Option<u32>, me: Me, pid: Option<u32>) {
        let command = pid.map_or("sudo wstate attach PID".to_string(), |p| format!("sudo wstate attach {p}"));
        match scope {
            None => self.ok("Yama does not restrict ptrace (not in this kernel)"),
            Some(0) => self.ok("Yama does not restrict ptrace (ptrace_scope 0)"),
            Some(s @ (1 | 2)) if me.ptrace => self.ok(format!("Yama's ptrace_scope {s} does not bind CAP_SYS_PTRACE")),
            Some(1) => self.fail(
                "Yama lets a process be traced by its ancestors only (ptrace_scope 1)",
                format!("{command}, or: sudo sysctl kernel.yama.ptrace_scope=0"),
            ),
            Some(2) => self.fail("Yama lets only administrators trace (ptrace_scope 2)", command),
            Some(s) => self.fail(
                format!("Yama forbids all tracing (ptrace_scope {s}) until the next boot"),
                "set kernel.yama.ptrace_scope to 0 or 1 in /etc/sysctl.d and reboot, or work with a core",
            ),
        }
    }

    /// Checks whether the process is dumpable. If it is not, its /proc files belong to root, whoever its user is
    /// (proc(5)).
    fn dumpable(&mut self, pid: u32, euid: u32, me: Me) {
        match fs::metadata(format!("/proc/{pid}")) {
            Ok(m) if m.uid() == euid => self.ok("the process lets itself be dumped"),
            Ok(_) if me.ptrace => self.warn(
                "the process made itself undumpable (set-user-id, unreadable executable or PR_SET_DUMPABLE)",
                "an attach works with CAP_SYS_PTRACE; a crash will not write a core (fs.suid_dumpable)",
            ),
            Ok(_) => self.fail(
                "the process made itself undumpable (set-user-id, unreadable executable or PR_SET_DUMPABLE)",
                format!("sudo wstate attach {pid}"),
            ),
            Err(e) => self.warn(format!("/proc/{pid} cannot be examined: {e}"), "look whether the process still runs"),
        }
    }

    fn namespaces(&mut self, pid: u32, me: Me, nspid: &[i32]) {
        let link = |who: &str, kind: &str| fs::read_link(format!("/proc/{who}/ns/{kind}"));
        let who = pid.to_string();
        let mut differ = Vec::new();
        for kind in ["pid", "mnt", "user"] {
            match (link("self", kind), link(&who, kind)) {
                (Ok(a), Ok(b)) if a != b => differ.push(kind),
                (Ok(_), Ok(_)) => {}
                (_, Err(e)) | (Err(e), _) => {
                    return self.warn(
                        format!("its namespaces cannot be read: {e}"),
                        format!("sudo wstate doctor {pid}: without the right to read them an attach fails too"),
                    );
                }
            }
        }
        if differ.is_empty() {
            return self.ok("it is in the same pid, mount and user namespaces");
        }
        let inside = match nspid.last() {
            Some(&inner) if differ.contains(&"pid") => format!(", as pid {inner} inside"),
            _ => String::new(),
        };
        let what = format!("it is in a container (other {} namespace{inside})", differ.join(", "));
        if differ.contains(&"user") && me.euid != 0 {
            return self.warn(what, format!("its user namespace must grant the tracing: sudo wstate attach {pid}"));
        }
        if differ.contains(&"mnt") {
            let root = format!("/proc/{pid}/root");
            match fs::read_dir(&root) {
                Ok(_) => self.ok(format!("{what}; its files are read through {root}")),
                Err(e) => self.warn(
                    format!("{what}, and {root} cannot be read: {e}"),
                    format!("sudo wstate attach {pid}, or --sysroot DIR with a copy of its files"),
                ),
            }
        } else {
            self.ok(what);
        }
    }

    fn executable(&mut self, pid: u32) {
        let link = format!("/proc/{pid}/exe");
        let name = fs::read_link(&link).map(|p| p.display().to_string());
        let file = match files::open(&FileLocation::kernel(&link)) {
            Ok(opened) => opened.file,
            Err(e) => {
                return self.warn(
                    format!("its executable{} cannot be read: {e}", name.map(|n| format!(" {n}")).unwrap_or_default()),
                    format!("sudo wstate attach {pid}; Wasm frames need no executable, native names do"),
                );
            }
        };
        let name = name.unwrap_or(link);
        if name.ends_with(" (deleted)") {
            self.warn(
                format!("its executable was replaced or deleted: {name}"),
                "the running file is still read through /proc; keep a copy before the process ends if you need a core",
            );
        }
        let facts = match ExecutableFacts::read(&ReadCache::new(file)) {
            Ok(f) => f,
            Err(why) => return self.fail(format!("{name}: {why}"), "only x86-64 processes are supported"),
        };
        self.names_of_executable(&name, facts);
    }

    /// Adds which names the executable has, and what compiled it.
    fn names_of_executable(&mut self, name: &str, facts: ExecutableFacts) {
        match (facts.debug_info, facts.symbols) {
            (true, _) => self.ok(format!("{name} has debug info")),
            (false, true) => self.warn(
                format!("{name} has symbols but no debug info: no lines and no inlined frames"),
                "build with debug = \"line-tables-only\", or install its debug package",
            ),
            (false, false) => self.warn(
                format!(
                    "{name} is stripped{}",
                    facts.build_id.map(|id| format!(", build id {id}")).unwrap_or_default()
                ),
                "native frames have no names without a separate debug file (--debug-dir DIR); Wasm frames do not need it",
            ),
        }
        match facts.compilers.as_slice() {
            [] => {}
            c => {
                self.later.compiler_known = true;
                self.ok(format!("compiled by {}", c.join("; ")));
            }
        }
    }

    fn code(&mut self, process: &Process) {
        let maps = match process.maps() {
            Ok(m) => m,
            Err(e) => {
                return self.fail(
                    format!("its mappings cannot be read: {e}"),
                    format!("sudo wstate doctor {}", process.pid()),
                );
            }
        };
        let (mut count, mut bytes) = (0u64, 0u64);
        for map in maps.iter() {
            let jit = match &map.pathname {
                MMapPath::Anonymous | MMapPath::Other(_) => true,
                MMapPath::Path(p) => p.starts_with("/memfd:"),
                _ => false,
            };
            if jit && map.perms.contains(MMPermissions::EXECUTE) {
                count += 1;
                bytes = bytes.saturating_add(map.address.1.saturating_sub(map.address.0));
            }
        }
        self.later.compiled = Some(count > 0);
        if count > 0 {
            self.ok(format!("code compiled at run time: {count} mappings, {} KiB", bytes.div_ceil(1024)));
        }
    }

    fn core_settings(&mut self, process: Option<&Process>, pid: Option<u32>) {
        let whose = pid.map_or("this shell".to_string(), |p| format!("process {p}"));
        let path = format!("/proc/{}/coredump_filter", pid.map_or("self".to_string(), |p| p.to_string()));
        let filter = fs::read_to_string(&path).ok().and_then(|t| u64::from_str_radix(t.trim(), 16).ok());
        match filter {
            None => self.warn(format!("{path} cannot be read"), "a core may lack the compiled code; try with sudo"),
            Some(f) if f & 1 != 0 => {
                self.ok(format!("a core of {whose} would hold its compiled code (coredump_filter {f:#x})"));
            }
            Some(f) => self.warn(
                format!("a core of {whose} would not hold its compiled code (coredump_filter {f:#x}, bit 0 is off)"),
                format!("echo {:#x} > {path}", f | 0x11),
            ),
        }
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
        let pattern = pattern.trim();
        if let Some(handler) = pattern.strip_prefix('|') {
            let handler = handler.split_whitespace().next().unwrap_or_default();
            let next = if handler.contains("systemd-coredump") {
                "find cores with: coredumpctl list; get one with: coredumpctl dump PID -o core"
            } else if handler.contains("apport") {
                "find cores in /var/lib/apport/coredump, or in /var/crash (apport-unpack)"
            } else {
                "the manual of that program says where it keeps cores"
            };
            return self.warn(format!("cores go to a program: {handler}"), next);
        }
        let limit = process.and_then(|p| p.limits().ok()).map(|l| l.max_core_file_size.soft_limit);
        match limit {
            Some(LimitValue::Value(0)) => self.warn(
                format!("a crash of {whose} would write no core (limit 0)"),
                match pid {
                    Some(p) => format!("prlimit --core=unlimited --pid {p}, or take one now: gcore {p}"),
                    None => "ulimit -c unlimited, before the host is started".to_string(),
                },
            ),
            Some(LimitValue::Value(n)) => self.warn(
                format!("a core of {whose} would be cut off at {n} bytes"),
                "ulimit -c unlimited; a cut core still gives the frames whose memory is in it",
            ),
            Some(LimitValue::Unlimited) => self.ok(format!("a crash of {whose} writes a core as {pattern:?}")),
            None => self.warn(
                format!("the core size limit of {whose} cannot be read"),
                "`ulimit -c` shows the limit of this shell",
            ),
        }
    }
}

/// Whether a mapping is of memory in which code is compiled at run time, and not of a file.
fn is_jit(mapping: &Mapping) -> bool {
    let name = |path: &Path| path.to_string_lossy().into_owned();
    match mapping.path.as_deref().map(name) {
        None => true,
        Some(name) => name.starts_with("[anon") || name.starts_with("/memfd:"),
    }
}

/// How many bytes of a mapping a core itself holds.
fn held_of(core: &CoreTarget, mapping: &Mapping) -> u64 {
    let mut piece = vec![0; 64 << 10];
    let (mut at, mut held) = (mapping.start, 0);
    for _ in 0..limits::MAX_EXECUTABLE_BYTES / piece.len() as u64 {
        let left = usize::try_from(mapping.end.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
        let Some(buffer) = piece.get_mut(..left).filter(|buffer| !buffer.is_empty()) else { break };
        match core.read_own(at, buffer) as u64 {
            0 => break,
            n => (at, held) = (at + n, held + n),
        }
    }
    held
}

/// The first few of these paths, and how many more there are.
fn some_of(paths: &BTreeSet<&Path>) -> String {
    const SHOWN: usize = 4;
    let mut shown: Vec<String> = paths.iter().take(SHOWN).map(|path| path.display().to_string()).collect();
    if let Some(more) = paths.len().checked_sub(SHOWN + 1) {
        shown.push(format!("{} more", more + 1));
    }
    shown.join(", ")
}

/// What an executable file says about itself.
#[derive(Debug, PartialEq, Eq)]
struct ExecutableFacts {
    symbols: bool,
    debug_info: bool,
    build_id: Option<String>,
    compilers: Vec<String>,
}

impl ExecutableFacts {
    fn read<'a>(bytes: impl ReadRef<'a>) -> Result<ExecutableFacts, String> {
        if bytes.len().is_ok_and(|len| len > limits::MAX_EXECUTABLE_BYTES) {
            return Err("it is too large for an executable".to_string());
        }
        let file = ElfFile64::<object::Endianness, _>::parse(bytes)
            .map_err(|e| format!("it is not a 64-bit ELF file: {e}"))?;
        let machine = file.elf_header().e_machine(file.endian());
        if machine != object::elf::EM_X86_64 {
            return Err(format!("it is made for another machine (ELF machine {machine:?})"));
        }
        let comment = file
            .section_by_name_bytes(b".comment")
            .filter(|s| s.size() <= 1 << 16)
            .and_then(|s| s.data().ok())
            .unwrap_or_default();
        let compilers = comment
            .split(|&b| b == 0)
            .filter(|s| !s.is_empty())
            .take(8)
            .map(|s| String::from_utf8_lossy(s).into_owned())
            .collect();
        let build_id = file.build_id().ok().flatten();
        Ok(ExecutableFacts {
            symbols: file.section_by_name(".symtab").is_some(),
            debug_info: [".debug_info", ".zdebug_info"].iter().any(|n| file.section_by_name(n).is_some()),
            build_id: build_id.map(|id| id.iter().take(32).map(|b| format!("{b:02x}")).collect()),
            compilers,
        })
    }
}

fn yama_scope() -> Option<u32> {
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?.trim().parse().ok()
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map(|c| format!(" ({})", c.trim())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Me = Me { euid: 1000, ptrace: false };
    const ROOT: Me = Me { euid: 0, ptrace: true };

    fn some_module(tracked: bool, problem: Option<&str>) -> crate::report::Module {
        crate::report::Module {
            index: Some(0),
            name: Some("app".into()),
            code_start: None,
            code_end: None,
            functions: None,
            tracked: Some(tracked),
            backend: None,
            routes: Vec::new(),
            checks: Vec::new(),
            wasm_file: None,
            wasm_compared: None,
            problem: problem.map(String::from),
        }
    }

    fn one(f: impl FnOnce(&mut Doctor)) -> Check {
        let mut d = Doctor::default();
        f(&mut d);
        assert_eq!(d.checks.len(), 1);
        d.checks.remove(0)
    }

    #[test]
    fn yama_binds_those_without_the_capability() {
        let status = |scope, me| one(|d| d.yama(scope, me, Some(7))).status;
        assert_eq!((status(None, USER), status(Some(0), USER)), (Status::Ok, Status::Ok));
        assert_eq!((status(Some(1), USER), status(Some(2), USER)), (Status::Fail, Status::Fail));
        assert_eq!((status(Some(1), ROOT), status(Some(2), ROOT)), (Status::Ok, Status::Ok));
        assert_eq!(status(Some(3), ROOT), Status::Fail);
        assert!(one(|d| d.yama(Some(1), USER, Some(7))).next.unwrap().contains("sudo wstate attach 7"));
    }

    /// The advice is for what is there. This is checked for each kind of process, and for each piece of advice that
    /// is only for some of them.
    #[test]
    fn advice_is_for_the_runtime_that_is_there() {
        use crate::report::{EngineSeen, Module, Runtime, Target, TargetKind};
        const ONLY_SOME: [&str; 6] = ["--artifact", "descriptor", "singlepass", "track_state", "--settle", "are known"];
        let module = some_module;
        let examine = |runtime: Option<(RuntimeName, Module)>, engines: &[Engine], compiled: bool| {
            let target = Target {
                kind: TargetKind::Process,
                pid: Some(1),
                executable: None,
                description: None,
                path: None,
                signal: None,
                facts: Default::default(),
            };
            let mut report = Report::new(target);
            report.runtimes.extend(runtime.map(|(name, module)| Runtime { name, modules: vec![module] }));
            report.engines.extend(engines.iter().map(|&name| EngineSeen {
                name,
                supported: name.is_supported(),
                sure: true,
                evidence: "x exports y".into(),
            }));
            let mut d =
                Doctor { later: Later { compiled: Some(compiled), compiler_known: false }, ..Doctor::default() };
            d.findings(&report);
            // Of a core the same is said, but that nobody attaches to it.
            let mut of_core = Doctor { core: Some("core".into()), later: d.later, ..Doctor::default() };
            of_core.findings(&report);
            assert_eq!(of_core.checks.len(), d.checks.len());
            assert!(!of_core.text(false).contains("attach"), "{}", of_core.text(false));
            if report.runtimes.is_empty() {
                // One line says that nothing was found, and some line says what to do.
                let says_it = |c: &&Check| c.what.contains("no Wasm module") || c.what.contains(&known_runtimes());
                let nothing = d.checks.iter().filter(says_it);
                assert_eq!(nothing.count(), 1, "{}", d.text(false));
                for d in [&d, &of_core] {
                    assert!(d.checks.iter().any(|c| c.next.is_some()), "{}", d.text(false));
                }
            }
            // Who sees no module is told which ones there could be.
            let is_listed = d.text(false).contains(&known_runtimes());
            let is_known = engines.iter().any(|engine| engine.is_supported());
            assert_eq!(is_listed, report.runtimes.is_empty() && !is_known, "{}", d.text(false));
            d
        };
        let (singlepass, wasmtime) = (RuntimeName::Singlepass, RuntimeName::Wasmtime);
        let untracked = crate::runtime::UNRECORDED;
        let artifact = &["--artifact", "descriptor", "singlepass"][..];
        let mut table = vec![
            ("singlepass", examine(Some((singlepass, module(true, None))), &[], true), &["singlepass"][..]),
            ("Wasmtime", examine(Some((wasmtime, module(true, None))), &[], true), &[]),
            ("Wasmtime from a file", examine(Some((wasmtime, module(true, None))), &[], false), &[]),
            ("Wasmtime without guest_debug", examine(Some((wasmtime, module(false, Some(untracked)))), &[], true), &[]),
            ("Wasmtime beside V8", examine(Some((wasmtime, module(true, None))), &[Engine::V8], true), &[]),
            ("singlepass, not found", examine(None, &[Engine::Singlepass], true), artifact),
            ("singlepass, not compiled yet", examine(None, &[Engine::Singlepass], false), &[]),
            ("Wasmtime, not found", examine(None, &[Engine::Wasmtime], false), &["are known"]),
            ("unknown code", examine(None, &[], true), artifact),
            ("no code", examine(None, &[], false), &[]),
        ];
        for &engine in Engine::ALL.iter().filter(|e| !e.is_supported()) {
            table.push((engine.as_str(), examine(None, &[engine], true), &[]));
            table.push((engine.as_str(), examine(None, &[engine], false), &[]));
            let told = |d: &Doctor| d.text(false).contains(&format!("contains {engine} (x exports y)"));
            assert!(table.iter().rev().take(2).all(|(_, d, _)| told(d)), "{engine}");
        }
        for (what, doctor, expected) in table {
            let text = doctor.text(false);
            for advice in ONLY_SOME {
                assert_eq!(text.contains(advice), expected.contains(&advice), "{what}: {advice}: {text}");
            }
        }
    }

    /// Each hint is about an attach, unless it names another program.
    #[test]
    fn hints_name_commands_and_options_that_there_are() {
        use clap::CommandFactory;
        const OTHER_PROGRAMS: [&str; 6] = [
            "pgrep -a NAME",
            "ps -p {t} -f",
            "--cap-add=SYS_PTRACE",
            "prlimit --core=unlimited --pid {p}",
            "coredumpctl dump PID -o core",
            "ulimit -c",
        ];
        let (source, _) = include_str!("doctor.rs").split_once("mod tests {").unwrap();
        let mut code: String = source.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        for other in OTHER_PROGRAMS {
            assert!(code.contains(other), "{other}");
            code = code.replace(other, "");
        }
        let command = crate::cli::Cli::command();
        let attach = command.find_subcommand("attach").unwrap();
        let mut seen = Vec::new();
        // The texts are every second part.
        for text in code.split('"').skip(1).step_by(2) {
            let words: Vec<_> = text.split(|c: char| c.is_whitespace() || ";:,()`".contains(c)).collect();
            for pair in words.windows(2).filter(|pair| pair[0] == "wstate" && !["knows", "can"].contains(&pair[1])) {
                assert!(command.find_subcommand(pair[1]).is_some(), "{text}");
                seen.push(pair[1]);
            }
            for word in words.iter().filter(|w| w.starts_with('-') && w.len() > 1) {
                let is_known = attach.get_arguments().any(|a| match word.strip_prefix("--") {
                    Some(long) => a.get_long() == Some(long),
                    None => a.get_short().is_some_and(|short| **word == format!("-{short}")),
                });
                assert!(is_known, "wstate attach has no {word}: {text}");
                seen.push(word);
            }
        }
        for expected in ["attach", "core", "doctor", "-t", "--artifact", "--sysroot", "--debug-dir"] {
            assert!(seen.contains(&expected), "{expected}: {seen:?}");
        }
    }

    #[test]
    fn every_user_id_of_the_process_counts() {
        let status = |uids, me| one(|d| _ = d.owner(Owner { pid: 7, uids }, me)).status;
        assert_eq!(status([1000; 3], USER), Status::Ok);
        assert_eq!(status([1000, 0, 0], USER), Status::Fail);
        assert_eq!(status([0; 3], ROOT), Status::Ok);
    }

    #[test]
    fn this_process_is_found_and_a_missing_one_ends_the_list() {
        let d = Doctor::examine(Some(std::process::id()));
        assert!(d.checks.iter().any(|c| c.what.contains(&format!("process {} (", std::process::id()))), "{d:?}");
        assert!(d.checks.iter().any(|c| c.what.contains("compiled by")), "{d:?}");
        let d = Doctor::examine(Some(u32::MAX));
        assert_eq!((d.worst(), d.checks.len()), (Status::Fail, 2));
    }

    /// What a report notes is told whether a module was found or not, once, and with no loose end.
    #[test]
    fn notes_of_the_search_are_told_with_a_module_and_without() {
        use crate::arch::{Machine, Registers, x64};
        use crate::process::testing::CoreBuilder;
        use crate::session::{Options, Session, Source};
        let mut registers = Registers::unknown(Machine::X64);
        registers.set(x64::RIP, 0x10_0000);
        let core = CoreBuilder::new().thread(7, 0, &registers, 0).thread(8, 0, &registers, 0);
        let core = core.memory(0x10_0000, 5, &[0x90; 0x1000]).open().unwrap();
        let options = Options::new(Source::Core { core: "core".into(), executable: None });
        let mut report = Session::on(&core, &options).stacks().unwrap().report;
        report.notes.push("heap: nothing".into());
        report.objects_problems.push("/lib/x.so is missing; name it".into());
        let text = |report: &Report| {
            let mut d = Doctor::default();
            d.note("heap: nothing");
            d.findings(report);
            d.text(false)
        };
        for with_module in [false, true] {
            let text = text(&report);
            for told in
                ["heap: nothing\n", "/lib/x.so is missing; name it\n", "frames of thread 7 and 1 other are unsure, "]
            {
                assert_eq!(text.matches(told).count(), 1, "{with_module}: {told}{text}");
            }
            assert!(!text.contains("until then"), "{text}");
            let module = some_module(true, None);
            report.runtimes = vec![crate::report::Runtime { name: RuntimeName::Wasmtime, modules: vec![module] }];
        }
    }

    #[test]
    fn a_core_is_examined_for_what_an_analysis_needs() {
        use crate::arch::{Machine, Registers, x64};
        use crate::process::testing::CoreBuilder;
        let directory = tempfile::tempdir().unwrap();
        let mut registers = Registers::unknown(Machine::X64);
        registers.set(x64::RIP, 0x10_0000);
        let builder = || CoreBuilder::new().thread(7, 0, &registers, 0).thread(8, 0, &registers, 0);
        let code = |held: usize| builder().segment(0x10_0000, 0x4000, 5, &vec![0x90; held]);
        let whole = code(0x4000).build();
        let (ok, warn, fail) = (Status::Ok, Status::Warn, Status::Fail);
        type Expected<'a> = &'a [(Status, &'a str)];
        let cases: [(&str, Vec<u8>, Expected<'_>); 8] = [
            (
                "whole",
                whole.clone(),
                &[
                    (ok, "of a machine that wstate knows (x86-64)"),
                    (ok, "the core is complete"),
                    (ok, "it has the registers of 2 threads"),
                    (ok, "it has the code that was compiled at run time: 16 KiB"),
                    (warn, "the executable is not known to be here"),
                    (ok, "the core is read without a sandbox"),
                ],
            ),
            ("no code", code(0).build(), &[(warn, "of 16 KiB of code that was compiled at run time it has 0 KiB")]),
            (
                "half of the code",
                code(0x2000).build(),
                &[(warn, "of 16 KiB of code that was compiled at run time it has 8 KiB")],
            ),
            (
                "cut off",
                whole[..whole.len() - 0x1000].to_vec(),
                &[(warn, "the core is cut off: "), (warn, "it has 12 KiB")],
            ),
            (
                "no threads",
                CoreBuilder::new().memory(0x1000, 6, &[1; 64]).build(),
                &[(fail, "the core lists no thread")],
            ),
            ("text", b"(gdb) bt\n".to_vec(), &[(fail, "it is text, not a core")]),
            ("packed", b"\x28\xb5\x2f\xfd\0".to_vec(), &[(fail, "unpack it first: zstd -d")]),
            ("empty", Vec::new(), &[(fail, "it is an empty file")]),
        ];
        for (name, bytes, expected) in cases {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let d = Doctor::examine_core(&path, &SearchPaths::default());
            assert_eq!(d.core.as_deref(), path.to_str());
            let text = d.text(false);
            for (status, what) in expected {
                assert!(
                    d.checks.iter().any(|c| c.status == *status && c.what.contains(what)),
                    "{name}: {what}\n{text}"
                );
            }
            assert_eq!(
                text.contains("the core is complete"),
                !["cut off", "text", "packed", "empty"].contains(&name),
                "{text}"
            );
            assert!(!text.contains("attach"), "{text}");
        }
        let gone = Doctor::examine_core(&directory.path().join("gone"), &SearchPaths::default());
        assert_eq!((gone.worst(), gone.checks.len()), (Status::Fail, 1));
    }

    /// What is advised about files that are elsewhere helps: the warning is gone when it is followed.
    #[test]
    fn files_in_the_named_places_are_found() {
        use crate::arch::{Machine, Registers, x64};
        use crate::process::testing::CoreBuilder;
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("srv/app")).unwrap();
        std::fs::copy("/proc/self/exe", root.join("srv/app/host")).unwrap();
        let core = directory.path().join("core");
        let mut registers = Registers::unknown(Machine::X64);
        registers.set(x64::RIP, 0x10_0000);
        let built = CoreBuilder::new().thread(7, 0, &registers, 0).segment(0x10_0000, 0x1000, 5, &[]);
        std::fs::write(&core, built.file(0x10_0000, 0x10_1000, 0, "/srv/app/host").build()).unwrap();
        let warned = |search: &SearchPaths| {
            let d = Doctor::examine_core(&core, search);
            let is_about_code = |c: &&Check| c.what.contains("is neither in the core nor on this machine");
            d.checks.iter().find(is_about_code).and_then(|check| check.next.clone())
        };
        let advice = warned(&SearchPaths::default()).unwrap();
        assert!(advice.starts_with("--sysroot DIR "), "{advice}");
        assert_eq!(warned(&SearchPaths { sysroot: Some(root), ..SearchPaths::default() }), None);
    }

    #[test]
    fn a_plugin_of_another_version_is_told() {
        let mut d = Doctor::default();
        d.plugin("gdb", None);
        assert_eq!(d.checks, []);
        d.plugin("gdb", Some(vec![]));
        let problem = |what: &str| Problem { what: what.into(), next: "wstate plugin install lldb".into() };
        let problems = ["the lldb plugin is not that of this version: /a, /b", "another one"];
        d.plugin("lldb", Some(problems.map(problem).into()));
        assert_eq!((d.worst(), d.checks[0].status), (Status::Warn, Status::Ok));
        assert_eq!(d.checks[1].what, "the lldb plugin is not that of this version: /a, /b");
        assert_eq!(d.checks[1].next.as_deref(), Some("wstate plugin install lldb"));
        assert_eq!((d.checks[2].what.as_str(), d.checks.len()), ("another one", 3));
    }

    #[test]
    fn broken_and_foreign_executables_are_refused() {
        assert!(ExecutableFacts::read(&b""[..]).is_err());
        let exe = fs::read("/proc/self/exe").unwrap();
        let facts = ExecutableFacts::read(&exe[..]).unwrap();
        assert!(facts.symbols && facts.compilers.iter().any(|c| c.contains("rustc")), "{facts:?}");
        let mut foreign = exe[..].to_vec();
        foreign[18] = 183; // e_machine: AArch64
        assert!(ExecutableFacts::read(&foreign[..]).unwrap_err().contains("another machine"));
        for cut in [1, 16, 63, 64, 100, 4096] {
            let _ = ExecutableFacts::read(&exe[..cut]);
        }
    }

    #[test]
    fn text_shows_the_next_step_and_hides_escapes() {
        let mut d = Doctor::default();
        d.ok("process 1 (\u{1b}[2Jx) is there");
        d.fail("no", "do this");
        assert_eq!(
            d.text(false),
            "ok    process 1 (\\u{1b}[2Jx) is there\nFAIL  no\n      next: do this\nfailed: 1, warnings: 0\n"
        );
        assert!(d.text(true).contains("\u{1b}[31mFAIL\u{1b}[0m"));
    }

    #[test]
    fn a_huge_file_is_no_executable() {
        #[derive(Clone, Copy)]
        struct Zeros(u64);
        impl ReadRef<'static> for Zeros {
            fn len(self) -> Result<u64, ()> {
                Ok(self.0)
            }
            fn read_bytes_at(self, _: u64, size: u64) -> Result<&'static [u8], ()> {
                [0; 64].get(..size as usize).map(|b| &*Box::leak(b.to_vec().into_boxed_slice())).ok_or(())
            }
            fn read_bytes_at_until(self, _: std::ops::Range<u64>, _: u8) -> Result<&'static [u8], ()> {
                Err(())
            }
        }
        let why = |len| ExecutableFacts::read(Zeros(len)).unwrap_err();
        assert!(why(limits::MAX_EXECUTABLE_BYTES).starts_with("it is not a 64-bit ELF file"));
        assert_eq!(why(limits::MAX_EXECUTABLE_BYTES + 1), "it is too large for an executable");
    }
}
