//! `wstate modules --native`, and `--debuginfod`: files of a process or core, found, missing and fetched.

use crate::support::{schema, wstate};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A program of this system that was copied to `app`, and that runs from there.
struct App {
    directory: tempfile::TempDir,
    child: Child,
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl App {
    fn start() -> App {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app");
        std::fs::copy("/bin/sleep", &path).unwrap();
        let child = Command::new(&path).args(["1000"]).stdin(Stdio::null()).spawn().unwrap();
        let app = App { directory, child };
        // The child is a copy of this process until it executes the program.
        while std::fs::read_link(format!("/proc/{}/exe", app.child.id())).is_ok_and(|exe| exe != app.path("app")) {
            std::thread::yield_now();
        }
        // And it is loading libraries until it sleeps.
        let syscall = format!("/proc/{}/syscall", app.child.id());
        while !std::fs::read_to_string(&syscall).is_ok_and(|line| line.starts_with("230 ") || line.starts_with("35 ")) {
            std::thread::yield_now();
        }
        app
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// A core of the process, which goes on.
    fn core(&self) -> PathBuf {
        let prefix = self.path("core");
        let mut gcore = Command::new("gcore");
        let ended = gcore.arg("-o").arg(&prefix).arg(self.pid()).stdin(Stdio::null()).output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        PathBuf::from(format!("{}.{}", prefix.display(), self.pid()))
    }
}

fn objects(args: &[&str]) -> (Option<i32>, Vec<Value>) {
    let args = [&["modules", "--native", "--json"], args].concat();
    let out = wstate(&args);
    schema::check_output(&args.iter().map(|a| a.as_ref()).collect::<Vec<_>>(), &out.stdout);
    let document: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    (out.status.code(), document["objects"].as_array().unwrap().clone())
}

#[test]
fn native_objects_are_listed_with_what_was_found_of_them() {
    let app = App::start();
    let (code, found) = objects(&["-p", &app.pid()]);
    assert_eq!(code, Some(0), "{found:?}");
    let main = &found[0];
    assert_eq!(main["path"], app.path("app").to_str().unwrap());
    assert!(main["build_id"].as_str().unwrap().len() >= 16 && main["fits"] == "build_id", "{main}");
    assert!(main["deleted"].is_null() && main["problem"].is_null() && !main["file"].is_null(), "{main}");
    let named = |name: &str| found.iter().any(|o| o["path"].as_str().unwrap().contains(name));
    assert!(named("libc.so") && named("[vdso]"), "{found:?}");
    let text = wstate(&["modules", "--native", "-p", &app.pid()]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(main["build_id"].as_str().unwrap()) && text.contains("(same build id)"), "{text}");

    let core = app.core();
    let (code, in_core) = objects(&["-c", core.to_str().unwrap()]);
    assert_eq!((code, &in_core[0]["build_id"]), (Some(0), &main["build_id"]));
    assert_eq!(in_core[0]["file"], main["path"]);

    // Of a process the very file is there still. Of a core it is missing.
    std::fs::remove_file(app.path("app")).unwrap();
    let (_, gone) = objects(&["-p", &app.pid()]);
    assert_eq!((&gone[0]["deleted"], &gone[0]["path"]), (&true.into(), &main["path"]));
    let (code, gone) = objects(&["-c", core.to_str().unwrap()]);
    assert!(code == Some(1) && gone[0]["file"].is_null(), "{gone:?}");
    assert!(gone[0]["problem"].as_str().unwrap().contains("--sysroot"), "{gone:?}");
    // Another file of that name is not taken for it.
    std::fs::copy("/bin/cat", app.path("app")).unwrap();
    let (code, other) = objects(&["-c", core.to_str().unwrap()]);
    assert!(code == Some(1) && other[0]["file"].is_null(), "{other:?}");
    assert!(other[0]["problem"].as_str().unwrap().contains("is not the file that was loaded"), "{other:?}");
}

#[test]
fn a_process_and_its_core_say_the_same_about_who_it_is() {
    let app = App::start();
    let core = app.core();
    let core = core.to_str().unwrap();
    let target = |args: &[&str]| json(&wstate(args))["target"].clone();
    let (of_process, of_core) = (target(&["attach", &app.pid(), "--json"]), target(&["core", core, "--json"]));
    for key in ["pid", "command_line", "uid", "gid", "executable"] {
        assert!(!of_process[key].is_null(), "{key}: {of_process}");
        assert_eq!(of_process[key], of_core[key], "{key}");
    }
    assert_eq!(of_core["command_line"], format!("{} 1000", app.path("app").display()));
    assert_eq!(of_core["executable"], app.path("app").to_str().unwrap());

    // A wrong executable does not hide the right one, and the note says which is in use.
    let out = wstate(&["core", core, "/bin/cat"]);
    let text = String::from_utf8_lossy(&out.stdout);
    let used = format!("; {} is used instead", app.path("app").display());
    assert!(text.contains("/bin/cat is not the file that was loaded: ") && text.contains(&used), "{text}");
    assert!(!text.contains("give the right one"), "{text}");
    // Where there is no right one, the reader has to give it.
    std::fs::remove_file(app.path("app")).unwrap();
    let out = wstate(&["core", core, "/bin/cat"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("; give the right one with -e FILE") && !text.contains("is used instead"), "{text}");
}

/// A program in place of `debuginfod-find` that has the file `served`, which may be missing.
fn fake_server(directory: &Path, served: &Path) -> PathBuf {
    let bin = directory.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\necho \"$*\" >> {log}\nif [ \"$1\" = executable ]; then echo {served}; else\n\
         echo 'Server query failed: No such file or directory' >&2; exit 1; fi\n",
        log = directory.join("log").display(),
        served = served.display()
    );
    let program = bin.join("debuginfod-find");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

fn with_servers(args: &[&str], bin: &Path, urls: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wstate"));
    command.args(args).stdin(Stdio::null()).env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    match urls {
        Some(urls) => command.env("DEBUGINFOD_URLS", urls),
        None => command.env_remove("DEBUGINFOD_URLS"),
    };
    command.output().unwrap()
}

fn json(out: &Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
}

fn notes(report: &Value) -> String {
    report["notes"].as_array().unwrap().iter().map(|n| format!("{}\n", n.as_str().unwrap())).collect()
}

#[test]
fn what_is_missing_of_a_core_is_fetched_and_checked() {
    let app = App::start();
    let core = app.core();
    let core = core.to_str().unwrap();
    let id = objects(&["-c", core]).1[0]["build_id"].as_str().unwrap().to_string();
    std::fs::rename(app.path("app"), app.path("served")).unwrap();
    let bin = fake_server(app.directory.path(), &app.path("served"));
    let args = ["core", core, "--no-sandbox", "--debuginfod", "--json"];
    let log = || std::fs::read_to_string(app.path("log")).unwrap_or_default();

    let report = json(&with_servers(&args, &bin, Some("http://127.0.0.1:1")));
    let file = &report["target"]["executable_file"];
    assert_eq!((&file["file"], &file["fits"]), (&app.path("served").to_str().unwrap().into(), &"build_id".into()));
    assert!(log().contains(&format!("executable {id}\n")) && log().contains(&format!("debuginfo {id}\n")), "{}", log());
    let asked = log().lines().count();
    assert_eq!(log().lines().collect::<std::collections::BTreeSet<_>>().len(), asked, "asked twice: {}", log());
    assert!(notes(&report).contains("no server has debug information of app"), "{}", notes(&report));

    // Another file than the one that was asked for is not used.
    std::fs::remove_file(app.path("served")).unwrap();
    std::fs::copy("/bin/cat", app.path("served")).unwrap();
    let report = json(&with_servers(&args, &bin, Some("http://127.0.0.1:1")));
    assert!(report["target"]["executable_file"]["file"].is_null(), "{}", report["target"]);

    // Without the option, nobody is asked; without servers or the program, one line says what to do.
    std::fs::remove_file(app.path("log")).unwrap();
    with_servers(&["core", core, "--json"], &bin, Some("http://127.0.0.1:1"));
    let unset = with_servers(&args, &bin, None);
    assert_eq!(log(), "");
    assert!(notes(&json(&unset)).contains("DEBUGINFOD_URLS is not set; set it to"), "{}", notes(&json(&unset)));
    assert_ne!(unset.status.code(), Some(0));

    // The sandbox has no network.
    for verb in [&["core"][..], &["modules", "-c"], &["memory", "0", "1", "-c"]] {
        let refused = with_servers(&[verb, &[core, "--debuginfod"]].concat(), &bin, Some("http://127.0.0.1:1"));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(64) && said.contains("--no-sandbox"), "{said}");
    }
    assert_eq!(log(), "");
}

#[test]
fn of_a_process_only_what_is_not_here_is_asked_for() {
    let app = App::start();
    let bin = fake_server(app.directory.path(), &app.path("app"));
    let out = with_servers(&["attach", &app.pid(), "--debuginfod", "--json"], &bin, Some("http://127.0.0.1:1"));
    let log = std::fs::read_to_string(app.path("log")).unwrap_or_default();
    assert!(!log.contains("executable") && log.contains("debuginfo"), "{log}");
    assert_eq!(json(&out)["target"]["executable_file"]["fits"], "build_id");
}
