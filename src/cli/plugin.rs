//! Installs the plugins for debuggers. They come with this program and are written where the debuggers find them.

use crate::cli::PluginAction;
use crate::cli::advice::this_program;
use crate::cli::output::Output;
use crate::error::Error;
use crate::limits;
use crate::phrases::shell_word;
use crate::process::files;
use clap::ValueEnum;
use memchr::memmem;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A debugger that has a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Debugger {
    /// gdb
    Gdb,
    /// lldb
    Lldb,
}

/// A file that is written: its name and its text.
type File = (&'static str, &'static str);

/// The name of the file, beside those of the plugins, that holds the path of the program which has installed them. That
/// is the one that they start, wherever it is.
const PROGRAM: &str = "wstate_program.txt";

/// The part that the plugins share. Each of them looks for it in its own directory.
const CLIENT: File = ("wstate_client.py", include_str!("../../gdb-plugin/wstate_client.py"));

impl Debugger {
    /// Every debugger that has a plugin.
    pub const ALL: [Debugger; 2] = [Debugger::Gdb, Debugger::Lldb];

    /// The file of the plugin that the debugger loads.
    fn plugin(self) -> File {
        match self {
            Debugger::Gdb => ("wstate_gdb.py", include_str!("../../gdb-plugin/wstate_gdb.py")),
            Debugger::Lldb => ("wstate_lldb.py", include_str!("../../lldb-plugin/wstate_lldb.py")),
        }
    }

    /// Name and text of the file that the init file loads, if that is not the plugin itself. A gdb without Python
    /// answers a Python file with an error that does not say what to do instead, and reads nothing behind it.
    fn loader(self, plugin: &Path) -> Option<(&'static str, String)> {
        // Convenience functions such as $_strlen are written in Python, so without Python they are void.
        let text = format!(
            "# Written by wstate plugin install.\n\
             if $_isvoid($_strlen)\n  \
             echo wstate: this gdb has no Python, so there is no wasm-bt; \\\n\
             write symbols with wstate symbols -p PID -o FILE and load them with add-symbol-file FILE\\n\n\
             else\n  source {}\nend\n",
            plugin.display()
        );
        (self == Debugger::Gdb).then_some(("wstate.gdb", text))
    }

    /// The debugger's name.
    pub fn name(self) -> &'static str {
        match self {
            Debugger::Gdb => "gdb",
            Debugger::Lldb => "lldb",
        }
    }

    fn init_file(self, home: &Path) -> PathBuf {
        home.join(match self {
            Debugger::Gdb => ".gdbinit",
            Debugger::Lldb => ".lldbinit",
        })
    }

    /// The line of the init file that loads the file at `loaded`. It is found again by the end of that path, see
    /// `is_ours`.
    fn line(self, loaded: &Path) -> String {
        let path = loaded.display();
        match self {
            // gdb takes the rest of the line for the name of the file, so a comment behind the name would become a
            // part of it.
            Debugger::Gdb => format!("source {path}"),
            Debugger::Lldb => format!("command script import \"{path}\""),
        }
    }

    /// Whether a line of an init file is one that wstate wrote. It may be from another version, and name another
    /// place.
    fn is_ours(self, line: &str) -> bool {
        let line = line.trim();
        let command = match self {
            Debugger::Gdb => line.strip_prefix("source "),
            Debugger::Lldb => line.strip_prefix("command script import "),
        };
        let files = [Some(self.plugin().0), self.loader(Path::new("")).map(|(name, _)| name)];
        let is = |path: &str| files.iter().flatten().any(|file| path.ends_with(&format!("/wstate/{file}")));
        command.is_some_and(|path| is(path.trim().trim_matches('"')))
    }
}

/// The directories of this user that matter here, the home directory and that for wstate's own files, and this program.
struct Places {
    home: PathBuf,
    data: PathBuf,
    /// The path of this program, if it is still there.
    program: Option<PathBuf>,
}

impl Places {
    fn of_user() -> Result<Places, Error> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = set("HOME").filter(|p| p.is_absolute()).ok_or_else(|| Error::Plugin {
            why: "HOME is not set, so there is no init file to write; set HOME or load the plugin by hand".into(),
        })?;
        // XDG Base Directory Specification: a relative path is to be ignored.
        let data = set("XDG_DATA_HOME").filter(|p| p.is_absolute()).unwrap_or_else(|| home.join(".local/share"));
        Ok(Places { data: data.join("wstate"), home, program: this_program() })
    }

    /// The file with the path of the program that the plugins start.
    fn record(&self) -> PathBuf {
        self.data.join(PROGRAM)
    }

    /// The path of the program that the plugins start.
    fn recorded(&self) -> Option<PathBuf> {
        let bytes = read_bytes(&self.record()).unwrap_or_default();
        let path = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        (!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(path)))
    }

    /// What is wrong with the program that a plugin starts.
    fn problem_of_program(&self, name: &str) -> Option<String> {
        let Some(path) = self.recorded() else {
            return Some(format!(
                "the {name} plugin does not know which wstate to start ({} has no path)",
                self.record().display()
            ));
        };
        let starts = format!("the {name} plugin starts {}", path.display());
        let Some(recorded) = files::same_file(&path) else {
            return Some(format!("{starts}, which is not there any more"));
        };
        let own = env!("CARGO_PKG_VERSION");
        let is_own = |own: &PathBuf| files::same_file(own) == Some(recorded);
        if self.program.as_ref().is_some_and(is_own) {
            return None;
        }
        match version_of(&path) {
            Some(version) if version == own => None,
            Some(version) => Some(format!("{starts}, which is wstate {version}; this is {own}")),
            None => Some(format!("{starts}, which is no wstate")),
        }
    }

    fn plugin(&self, debugger: Debugger) -> PathBuf {
        self.data.join(debugger.plugin().0)
    }

    /// The path and text of each file that belongs to the plugin. The order is that of writing: a file comes after
    /// those that it needs.
    fn files(&self, debugger: Debugger) -> Vec<(PathBuf, String)> {
        let mut files: Vec<_> =
            [CLIENT, debugger.plugin()].map(|(name, text)| (self.data.join(name), text.to_string())).into();
        if let (loaded, Some(text)) = self.loaded(debugger) {
            files.push((loaded, text));
        }
        files
    }

    /// The plugins of the other debuggers that are installed.
    fn others(&self, debugger: Debugger) -> impl Iterator<Item = Debugger> {
        Debugger::ALL.into_iter().filter(move |&other| other != debugger && self.plugin(other).exists())
    }

    /// The path of the file that the init file loads, and the text of that file if it is not the plugin.
    fn loaded(&self, debugger: Debugger) -> (PathBuf, Option<String>) {
        let plugin = self.plugin(debugger);
        match debugger.loader(&plugin) {
            Some((name, text)) => (self.data.join(name), Some(text)),
            None => (plugin, None),
        }
    }
}

/// Stands in every executable of wstate. Its version is read from there and no program is started for that: with sudo, the
/// files of a plugin may be those of somebody else.
#[used]
static STAMP: &str = concat!("wstate-version:", env!("CARGO_PKG_VERSION"), ";");

/// The version of the wstate in the executable at `program`, if there is one.
fn version_of(program: &Path) -> Option<String> {
    let begin = STAMP.split_inclusive(':').next()?;
    let file = files::map_file(program).ok().filter(|file| file.len() as u64 <= limits::MAX_EXECUTABLE_BYTES)?;
    memmem::find_iter(&file, begin).find_map(|at| {
        let behind = file.get(at + begin.len()..)?;
        let version = behind.get(..behind.iter().take(64).position(|b| *b == b';')?)?;
        let is_version = |b: &u8| b.is_ascii_alphanumeric() || b".-+".contains(b);
        let text = version.iter().all(is_version).then(|| std::str::from_utf8(version).ok()).flatten();
        text.filter(|text| !text.is_empty()).map(str::to_string)
    })
}

/// Does `action` for one debugger or for both, and returns what to tell the user. With `init_file`, an install also lets
/// the debugger's init file load the plugin.
pub fn run(action: PluginAction, only: Option<Debugger>, init_file: bool) -> Result<String, Error> {
    let places = Places::of_user()?;
    let mut out = String::new();
    for debugger in Debugger::ALL.into_iter().filter(|d| only.is_none_or(|o| o == *d)) {
        out += &match action {
            PluginAction::Install if init_file => install(&places, debugger)?,
            PluginAction::Install => install_files(&places, debugger)?,
            PluginAction::Uninstall => uninstall(&places, debugger)?,
            PluginAction::Path => format!("{}\n", places.plugin(debugger).display()),
        };
    }
    Ok(out)
}

/// Something that is wrong with an installed plugin, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub next: String,
}

/// What is wrong with the plugin for `debugger` that this user has. It is `None` if the plugin is not installed.
pub fn problems(debugger: Debugger) -> Option<Vec<Problem>> {
    Places::of_user().ok().and_then(|places| problems_in(&places, debugger))
}

fn problems_in(places: &Places, debugger: Debugger) -> Option<Vec<Problem>> {
    let (name, init) = (debugger.name(), debugger.init_file(&places.home));
    let install = format!("wstate plugin install {name}");
    let mut found = Vec::new();
    let text = read_bytes(&init).unwrap_or_else(|e| {
        let what = format!("{} cannot be read, so it is not known which {name} plugin it loads: {e}", init.display());
        let most = limits::MAX_INIT_BYTES >> 20;
        let next = format!("make it a regular file of at most {most} MiB that this user can read");
        found.push(Problem { what, next });
        Vec::new()
    });
    let text = String::from_utf8_lossy(&text);
    let line = debugger.line(&places.loaded(debugger).0);
    let (right, others): (Vec<&str>, Vec<&str>) =
        text.lines().map(str::trim).filter(|l| debugger.is_ours(l)).partition(|l| in_full(l, &places.home) == line);
    let is_here = !right.is_empty() || places.plugin(debugger).exists();
    for other in others {
        let (shown, data) = (init.display(), places.data.display().to_string());
        let what = format!("{shown} has another line for the {name} plugin than this version writes: {other}");
        // Another directory follows from an XDG_DATA_HOME that was another one at the install.
        let elsewhere = match other.contains(&data) {
            true => "",
            false => ", or set XDG_DATA_HOME as it was at the last install",
        };
        let next = format!("{install}, which replaces that line{elsewhere}");
        found.push(Problem { what, next });
    }
    if right.len() > 1 {
        let what = format!("{} loads the {name} plugin {} times", init.display(), right.len());
        found.push(Problem { what, next: install.clone() });
    }
    let is_wrong = |(path, text): &(PathBuf, String)| !read_bytes(path).is_ok_and(|bytes| bytes == text.as_bytes());
    let wrong: Vec<_> =
        places.files(debugger).into_iter().filter(is_wrong).map(|f| f.0.display().to_string()).collect();
    if is_here && !wrong.is_empty() {
        let what = format!("the {name} plugin is not that of this version: {}", wrong.join(", "));
        found.push(Problem { what, next: install.clone() });
    }
    // Without the files of this version, what an install has to do is said already.
    if is_here
        && wrong.is_empty()
        && let Some(what) = places.problem_of_program(name)
    {
        found.push(Problem { what, next: format!("{install}, with the wstate that it is to start") });
    }
    (is_here || !found.is_empty()).then_some(found)
}

/// A line of an init file with the home directory in place of `~`, as both debuggers read it.
fn in_full(line: &str, home: &Path) -> String {
    [" ", "\""].iter().fold(line.to_string(), |line, before| {
        line.replace(&format!("{before}~/"), &format!("{before}{}/", home.display()))
    })
}

/// The bytes of an init file or of a plugin's file. A file that is not there has none.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    match files::read_file(path, limits::MAX_INIT_BYTES) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        other => other,
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::File { path: path.into(), source };
    String::from_utf8(read_bytes(path).map_err(failed)?).map_err(|_| {
        failed(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not UTF-8, so it was not changed; add the line of `wstate plugin path` by hand",
        ))
    })
}

/// Writes the files of the plugin. The text for the user says where they are and what they start.
fn write_files(places: &Places, debugger: Debugger) -> Result<String, Error> {
    let plugin = places.plugin(debugger);
    if plugin.to_string_lossy().contains(['\n', '"']) {
        let why = format!(
            "{} cannot be written into an init file; set XDG_DATA_HOME to a directory without quotes and line ends in its path",
            plugin.display()
        );
        return Err(Error::Plugin { why });
    }
    std::fs::create_dir_all(&places.data)
        .map_err(|source| Error::Output { to: places.data.display().to_string(), source })?;
    // The plugins share a file, which is of this version from now on. So those of the other debuggers have to be, too.
    for (path, text) in std::iter::once(debugger).chain(places.others(debugger)).flat_map(|d| places.files(d)) {
        Output::file(&path)?.write(text.as_bytes())?;
    }
    let starts = match &places.program {
        Some(program) => {
            Output::file(&places.record())?.write(&[program.as_os_str().as_bytes(), b"\n"].concat())?;
            format!("starts {}", program.display())
        }
        None => "starts the wstate in PATH, because this program was replaced since it was started".to_string(),
    };
    Ok(format!("{}: {}, {starts}", debugger.name(), plugin.display()))
}

/// Writes the files of the plugin alone, and says how they are loaded.
fn install_files(places: &Places, debugger: Debugger) -> Result<String, Error> {
    let written = write_files(places, debugger)?;
    let loaded = places.loaded(debugger).0;
    let (init, line) = (debugger.init_file(Path::new("~")), debugger.line(&loaded));
    let once = match debugger {
        Debugger::Gdb => format!("gdb -x {}", shell_word(&loaded.to_string_lossy())),
        Debugger::Lldb => format!("lldb -O {}", shell_word(&line)),
    };
    Ok(format!("{written}\n  to load it always, add to {}:  {line}\n  to load it once:  {once}\n", init.display()))
}

fn install(places: &Places, debugger: Debugger) -> Result<String, Error> {
    let init = debugger.init_file(&places.home);
    let before = read(&init)?;
    let line = debugger.line(&places.loaded(debugger).0);
    let written = write_files(places, debugger)?;
    // Of our lines, the first that is right stays where it is.
    let mut is_loaded = false;
    let stays = |l: &&str| !debugger.is_ours(l) || (l.trim() == line && !std::mem::replace(&mut is_loaded, true));
    let mut after: String = before.split_inclusive('\n').filter(stays).collect();
    if !is_loaded {
        if !after.is_empty() && !after.ends_with('\n') {
            after.push('\n');
        }
        after += &format!("{line}\n");
    }
    if after == before {
        return Ok(format!("{written}, loaded by {} (as before)\n", init.display()));
    }
    Output::file(&init)?.write(after.as_bytes())?;
    Ok(format!("{written}, loaded by {}\n", init.display()))
}

fn uninstall(places: &Places, debugger: Debugger) -> Result<String, Error> {
    let init = debugger.init_file(&places.home);
    let before = read(&init)?;
    let after: String = before.split_inclusive('\n').filter(|l| !debugger.is_ours(l)).collect();
    let mut done = Vec::new();
    if after != before {
        match after.is_empty() {
            true => std::fs::remove_file(&init)
                .map_err(|source| Error::Output { to: init.display().to_string(), source })?,
            false => Output::file(&init)?.write(after.as_bytes())?,
        }
        done.push(format!("line removed from {}", init.display()));
    }
    let shared = [places.data.join(CLIENT.0), places.record()];
    let still_needed = places.others(debugger).next().is_some();
    let own = places.files(debugger).into_iter().map(|(file, _)| file).chain([places.record()]);
    for file in own.filter(|file| !still_needed || !shared.contains(file)) {
        match std::fs::remove_file(&file) {
            Ok(()) => done.push(format!("{} removed", file.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Output { to: file.display().to_string(), source }),
        }
    }
    remove_compiled(places, debugger);
    // This removes the directory only if it is empty.
    let _ = std::fs::remove_dir(&places.data);
    let done = if done.is_empty() { "nothing to remove".to_string() } else { done.join(", ") };
    Ok(format!("{}: {done}\n", debugger.name()))
}

/// Removes what Python compiled the plugin to, as lldb lets it do. These files are of no use alone, and it does not
/// matter if one stays.
fn remove_compiled(places: &Places, debugger: Debugger) {
    let cache = places.data.join("__pycache__");
    let module = debugger.plugin().0.trim_end_matches("py");
    for entry in std::fs::read_dir(&cache).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(module) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let _ = std::fs::remove_dir(&cache);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(dir: &Path) -> Places {
        Places { home: dir.into(), data: dir.join("data/wstate"), program: Some(std::env::current_exe().unwrap()) }
    }

    #[test]
    fn installing_twice_is_installing_once_and_uninstalling_leaves_nothing() {
        for debugger in [Debugger::Gdb, Debugger::Lldb] {
            let dir = tempfile::tempdir().unwrap();
            let places = places(dir.path());
            let init = debugger.init_file(dir.path());
            install(&places, debugger).unwrap();
            let once = std::fs::read_to_string(&init).unwrap();
            assert_eq!(once.lines().count(), 1);
            assert_eq!(std::fs::read_to_string(places.plugin(debugger)).unwrap(), debugger.plugin().1);
            assert!(install(&places, debugger).unwrap().contains("as before"));
            assert_eq!(std::fs::read_to_string(&init).unwrap(), once);
            uninstall(&places, debugger).unwrap();
            assert!(!init.exists() && !places.data.exists());
            assert!(uninstall(&places, debugger).unwrap().contains("nothing to remove"));
        }
    }

    #[test]
    fn every_file_is_of_this_version() {
        let version = format!("\nVERSION = \"{}\"\n", env!("CARGO_PKG_VERSION"));
        for (name, text) in [CLIENT, Debugger::Gdb.plugin(), Debugger::Lldb.plugin()] {
            assert_eq!(text.matches(&version).count(), 1, "{name}");
        }
    }

    #[test]
    fn the_plugins_have_the_same_loader_and_no_other_code_twice() {
        let [gdb, lldb] = Debugger::ALL.map(|d| {
            let (name, text) = d.plugin();
            let (_, rest) = text.split_once("\ndef load_client() -> Any:\n").expect("it is there");
            let (loader, _) = rest.split_once("\n\n\n").expect("something follows");
            (loader.replace(name, "PLUGIN"), text.replace(loader, ""))
        });
        assert_eq!(gdb.0, lldb.0);
        assert!(gdb.0.len() > 500);
        // Longer than imports and what any two functions begin and end with.
        let lines = |text: &str| text.lines().filter(|l| l.trim().len() > 30).map(str::to_string).collect::<Vec<_>>();
        let (gdb, lldb) = (lines(&gdb.1), lines(&lldb.1));
        let run = 4;
        let twice: Vec<_> = gdb.windows(run).filter(|w| lldb.windows(run).any(|l| l == *w)).collect();
        assert!(twice.is_empty(), "{twice:#?}");
    }

    #[test]
    fn the_shared_file_is_there_as_long_as_a_plugin_is() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let client = places.data.join(CLIENT.0);
        install(&places, Debugger::Gdb).unwrap();
        install(&places, Debugger::Lldb).unwrap();
        uninstall(&places, Debugger::Gdb).unwrap();
        assert_eq!(std::fs::read_to_string(&client).unwrap(), CLIENT.1);
        uninstall(&places, Debugger::Gdb).unwrap();
        assert!(client.exists());
        // lldb lets Python keep the compiled plugin.
        let cache = places.data.join("__pycache__");
        std::fs::create_dir(&cache).unwrap();
        std::fs::write(cache.join("wstate_lldb.cpython-311.pyc"), b"").unwrap();
        uninstall(&places, Debugger::Lldb).unwrap();
        assert!(!places.data.exists());
    }

    #[test]
    fn files_of_another_version_are_found_and_replaced_for_both() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let [gdb, lldb] = Debugger::ALL.map(|d| places.plugin(d));
        // The files that are not those of this version.
        let wrong = || {
            Debugger::ALL.map(|d| {
                let problems = problems_in(&places, d)?;
                let files = |p: &Problem| p.what.split_once(" is not that of this version: ").map(|w| w.1.to_string());
                assert!(problems.iter().all(|p| p.next == format!("wstate plugin install {}", d.name())));
                let files: Vec<_> = problems.iter().map(|p| files(p).expect("no other problem")).collect();
                Some(files.iter().flat_map(|f| f.split(", ")).map(PathBuf::from).collect::<Vec<_>>())
            })
        };
        assert_eq!(wrong(), [None, None]);
        // A version whose plugins were one file each.
        std::fs::create_dir_all(&places.data).unwrap();
        std::fs::write(&gdb, "old").unwrap();
        std::fs::write(&lldb, "old").unwrap();
        let client = places.data.join(CLIENT.0);
        let loader = places.loaded(Debugger::Gdb).0;
        assert_eq!(wrong(), [Some(vec![client.clone(), gdb, loader]), Some(vec![client.clone(), lldb.clone()])]);
        install(&places, Debugger::Gdb).unwrap();
        assert_eq!(wrong(), [Some(vec![]), Some(vec![])]);
        assert_eq!(std::fs::read_to_string(&lldb).unwrap(), Debugger::Lldb.plugin().1);
        // Its init file is not touched for that.
        assert!(!dir.path().join(".lldbinit").exists());
        // A line of an init file that loads what is not there.
        install(&places, Debugger::Lldb).unwrap();
        std::fs::remove_file(&lldb).unwrap();
        assert_eq!(wrong(), [Some(vec![]), Some(vec![lldb])]);
    }

    #[test]
    fn the_files_alone_are_written_and_the_user_is_told_how_to_load_them() {
        for debugger in Debugger::ALL {
            let dir = tempfile::tempdir().unwrap();
            let places = places(dir.path());
            let init = debugger.init_file(dir.path());
            std::fs::write(&init, "# mine\n").unwrap();
            let told = install_files(&places, debugger).unwrap();
            assert_eq!(std::fs::read_to_string(&init).unwrap(), "# mine\n");
            assert_eq!(problems_in(&places, debugger), Some(vec![]));
            let line = debugger.line(&places.loaded(debugger).0);
            assert!(told.contains(&format!("init:  {line}\n")), "{told}");
            assert!(told.contains(&format!("to load it once:  {} -", debugger.name())), "{told}");
            // An install with the line finds the files as they are.
            install(&places, debugger).unwrap();
            assert_eq!(std::fs::read_to_string(&init).unwrap(), format!("# mine\n{line}\n"));
            uninstall(&places, debugger).unwrap();
            assert!(!places.data.exists());
        }
    }

    /// What the plugins start is this program. It may be gone later, or be of another version, or be something else.
    #[test]
    fn the_program_that_the_plugins_start_is_recorded_and_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let program = dir.path().join("a wstate");
        let other = Places { program: Some(program.clone()), ..self::places(dir.path()) };
        // Only one stamp is in this program, so those of other versions are made here.
        let (stamp, own) = (STAMP, env!("CARGO_PKG_VERSION"));
        let write = |text: &str| std::fs::write(&program, format!("\x7fELF {text} and more")).unwrap();
        write(&stamp.replace(own, "0.0.1"));
        let told = install(&other, Debugger::Gdb).unwrap();
        assert!(told.contains(&format!(", starts {}, loaded by ", program.display())), "{told}");
        assert_eq!(std::fs::read_to_string(places.record()).unwrap(), format!("{}\n", program.display()));
        let problem = |places: &Places| {
            let all = problems_in(places, Debugger::Gdb).unwrap();
            assert!(
                all.len() < 2 && all.iter().all(|p| p.next.starts_with("wstate plugin install gdb, with ")),
                "{all:?}"
            );
            all.into_iter().map(|p| p.what).next()
        };
        let starts = format!("the gdb plugin starts {}, which ", program.display());
        assert_eq!(problem(&other), None, "it is the same file");
        assert_eq!(problem(&places), Some(format!("{starts}is wstate 0.0.1; this is {own}")));
        write(stamp);
        assert_eq!(problem(&places), None);
        assert_eq!(version_of(&std::env::current_exe().unwrap()).as_deref(), Some(own));
        write(stamp.trim_end_matches(';'));
        assert_eq!(problem(&places), Some(format!("{starts}is no wstate")));
        std::fs::remove_file(&program).unwrap();
        assert_eq!(problem(&places), Some(format!("{starts}is not there any more")));
        std::fs::remove_file(places.record()).unwrap();
        assert!(problem(&places).unwrap().contains("does not know which wstate to start"));
        install(&places, Debugger::Gdb).unwrap();
        assert_eq!(problem(&places), None);
    }

    #[test]
    fn a_gdb_without_python_is_told_and_reads_on() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        install(&places, Debugger::Gdb).unwrap();
        let (loaded, text) = places.loaded(Debugger::Gdb);
        let line = std::fs::read_to_string(dir.path().join(".gdbinit")).unwrap();
        assert_eq!(line, format!("source {}\n", loaded.display()));
        let text = text.unwrap();
        assert_eq!(std::fs::read_to_string(&loaded).unwrap(), text);
        let (without, with) = text.split_once("else\n").unwrap();
        assert!(without.contains("if $_isvoid($_strlen)\n  echo wstate: this gdb has no Python"), "{text}");
        assert!(with.contains(&format!("source {}\n", places.plugin(Debugger::Gdb).display())), "{text}");
    }

    #[test]
    fn the_rest_of_the_init_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let init = Debugger::Gdb.init_file(dir.path());
        let own = "set print pretty on\nsource /other/wstate_gdb.py";
        std::fs::write(&init, format!("source /old/place/wstate/wstate_gdb.py\n{own}")).unwrap();
        install(&places, Debugger::Gdb).unwrap();
        let line = Debugger::Gdb.line(&places.loaded(Debugger::Gdb).0);
        assert_eq!(std::fs::read_to_string(&init).unwrap(), format!("{own}\n{line}\n"));
        uninstall(&places, Debugger::Gdb).unwrap();
        assert_eq!(std::fs::read_to_string(&init).unwrap(), format!("{own}\n"));
    }

    #[test]
    fn lines_that_lead_elsewhere_and_lines_that_are_there_twice_are_told_and_replaced() {
        for debugger in Debugger::ALL {
            let dir = tempfile::tempdir().unwrap();
            let places = places(dir.path());
            let init = debugger.init_file(dir.path());
            let told = || problems_in(&places, debugger).map(|all| all.into_iter().map(|p| p.what).collect::<Vec<_>>());
            // It was installed with another XDG_DATA_HOME.
            let other = Places { data: dir.path().join("other/wstate"), ..self::places(dir.path()) };
            install(&other, debugger).unwrap();
            let line = std::fs::read_to_string(&init).unwrap();
            let elsewhere = format!(
                "{} has another line for the {} plugin than this version writes: {}",
                init.display(),
                debugger.name(),
                line.trim()
            );
            assert_eq!(problems_in(&other, debugger), Some(vec![]));
            assert_eq!(told(), Some(vec![elsewhere.clone()]));
            assert!(problems_in(&places, debugger).unwrap()[0].next.contains("set XDG_DATA_HOME"));
            // That line does not count as right because the files are here, too.
            install(&places, debugger).unwrap();
            let own = std::fs::read_to_string(&init).unwrap();
            assert_eq!((told(), own.lines().count()), (Some(vec![]), 1));
            std::fs::write(&init, &line).unwrap();
            assert_eq!(told(), Some(vec![elsewhere.clone()]));
            std::fs::write(&init, format!("{own}{line}{own}# mine\n")).unwrap();
            let twice = format!("{} loads the {} plugin 2 times", init.display(), debugger.name());
            assert_eq!(told(), Some(vec![elsewhere, twice]));
            install(&places, debugger).unwrap();
            assert_eq!(told(), Some(vec![]));
            assert_eq!(std::fs::read_to_string(&init).unwrap(), format!("{own}# mine\n"));
            // The same line, as a user may have written it.
            std::fs::write(&init, own.replace(&format!("{}/", dir.path().display()), "~/")).unwrap();
            assert_eq!(told(), Some(vec![]));
            // A line that leads to the right directory in another way.
            let other = debugger.line(&places.data.join("../wstate").join(debugger.plugin().0));
            std::fs::write(&init, &other).unwrap();
            let problems = problems_in(&places, debugger).unwrap();
            assert!(problems[0].what.ends_with(&other) && !problems[0].next.contains("XDG"), "{problems:?}");
        }
    }

    #[test]
    fn an_init_file_that_is_not_text_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let init = Debugger::Lldb.init_file(dir.path());
        std::fs::write(&init, b"\xff").unwrap();
        assert!(install(&places(dir.path()), Debugger::Lldb).is_err());
        assert_eq!(std::fs::read(&init).unwrap(), b"\xff");
    }
}
