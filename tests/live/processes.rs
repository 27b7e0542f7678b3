//! Processes in every state: a right result, or one line that says why there is none.

use super::role::Role;
use super::*;

#[test]
fn a_stopped_process_is_shown_and_stays_stopped() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let pid = host.pid() as u32;
    assert_eq!(unsafe { libc::kill(host.pid(), libc::SIGSTOP) }, 0);
    until("the process stops", || states(pid).iter().all(|&s| s == 'T'));
    for _ in 0..3 {
        assert_sleep_host(&attach(pid));
        assert!(states(pid).iter().all(|&s| s == 'T'), "{:?}", states(pid));
    }
    assert_eq!(unsafe { libc::kill(host.pid(), libc::SIGCONT) }, 0);
    until("the process goes on", || states(pid).iter().all(|&s| s != 'T'));
}

#[test]
fn a_process_under_gdb_is_refused_with_the_tracer() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-iex", "set debuginfod enabled off", "-iex", "set pagination off", "-p"]);
    gdb.arg(host.pid().to_string()).args(["-ex", r"echo \nATTACHED\n"]);
    let gdb = gdb.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut gdb) = gdb else { return missing("gdb is not installed") };
    let lines = BufReader::new(gdb.stdout.take().expect("a pipe")).lines();
    assert!(lines.map_while(Result::ok).any(|l| l == "ATTACHED"), "gdb did not attach");
    refused(host.pid() as u32, "(gdb) traces it already");
    let text = doctor(host.pid() as u32);
    assert!(text.contains(&format!("process {} (gdb) already traces it", gdb.id())), "{text}");
    // Nothing traces twice without a stop.
    let output = wstate(&["attach", &host.pid().to_string(), "--json", "--nonblocking"]);
    assert!(names(&report(&output)).len() > 1, "{}", String::from_utf8_lossy(&output.stderr));
    // Closing gdb's input makes it detach and end.
    drop(gdb.stdin.take());
    gdb.wait().expect("gdb ends");
    assert_sleep_host(&attach(host.pid() as u32));
}

#[test]
fn what_cannot_be_attached_to_is_said() {
    // One more than the largest process id of 64-bit Linux.
    refused(4_194_305, "there is no such process");
    assert!(doctor(4_194_305).contains("there is no process 4194305"));

    let mut ended = Command::new("true").spawn().expect("true starts");
    until("the child ends", || states(ended.id()) == ['Z']);
    refused(ended.id(), "zombie");
    assert!(doctor(ended.id()).contains("has ended"));
    ended.wait().expect("it is a child");

    match std::fs::read_to_string("/proc/2/comm") {
        Ok(name) if name.trim() == "kthreadd" => {
            refused(2, "kernel thread");
            assert!(doctor(2).contains("kernel thread"));
        }
        // A pid namespace of its own has none.
        _ => not_tested("there is no kernel thread to see"),
    }
}

#[test]
fn a_process_whose_main_thread_has_ended_is_shown_by_its_others() {
    let role = Role::start("leaderless");
    until("the main thread ends", || states(role.pid()).contains(&'Z'));
    let report = attach(role.pid());
    assert!(names(&report).iter().any(|n| n.ends_with("native_inner")), "{:?}", names(&report));
    let threads = report["threads"].as_array().expect("threads");
    assert!(threads.iter().all(|t| t["tid"] != role.pid()), "{report}");
    // It has ended long before the stop, and what the process is can still be told.
    let notes = report["notes"].to_string();
    assert!(notes.contains("the main thread has ended, and the other threads go on"), "{notes}");
    assert!(!notes.contains("ended while the process was being stopped"), "{notes}");
    let target = &report["target"];
    assert!(target["command_line"].as_str().is_some_and(|line| !line.is_empty()), "{target}");
    assert_eq!(
        (&target["uid"], &target["gid"]),
        (&unsafe { libc::getuid() }.into(), &unsafe { libc::getgid() }.into())
    );
}

#[test]
fn a_thread_that_waits_for_its_vfork_child_is_told_and_goes_on() {
    let mut role = Role::start("vfork");
    let pid = role.pid();
    let parent = || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there").flatten();
        let is_it =
            |t: &std::fs::DirEntry| std::fs::read_to_string(t.path().join("comm")).is_ok_and(|n| n.trim() == "parent");
        tasks.filter(is_it).find_map(|t| t.file_name().to_str()?.parse::<u32>().ok())
    };
    until("there is no parent", || parent().is_some());
    let parent = parent().expect("it is there");
    let children = format!("/proc/{pid}/task/{parent}/children");
    let child = || std::fs::read_to_string(&children).ok()?.trim().parse::<u32>().ok();
    until("there is no child", || child().is_some_and(|c| states(c) == ['S']));
    let child = child().expect("it is there");

    let of_parent = |arguments: &[&str]| {
        let report = report(&wstate(arguments));
        let thread = report["threads"].as_array().expect("threads").iter().find(|t| t["tid"] == parent).cloned();
        thread.unwrap_or_else(|| panic!("{report}"))
    };
    let thread = of_parent(&["attach", &pid.to_string(), "--json"]);
    assert!(thread["end"]["why"].as_str().is_some_and(|w| w.contains("(vfork)")), "{thread}");
    // It sleeps: its frames can be had without a stop.
    let thread = of_parent(&["attach", &pid.to_string(), "--json", "--nonblocking"]);
    assert!(!thread["frames"].as_array().expect("frames").is_empty(), "{thread}");
    // The child is a process of its own, in the parent's memory.
    let output = wstate(&["attach", &child.to_string(), "--json"]);
    assert!(!names(&report(&output)).is_empty(), "{}", String::from_utf8_lossy(&output.stderr));

    assert_eq!(unsafe { libc::kill(child as i32, libc::SIGKILL) }, 0);
    until("the parent does not go on", || role.ask("counters").made == 1);
}

/// An ordinary user, as which wstate and what it looks at run.
const NOBODY: u32 = 65534;

/// `sleep` as an ordinary user from a file of root's with this mode, and wstate where that user can run it.
struct OrdinaryUser {
    directory: tempfile::TempDir,
    sleep: std::process::Child,
}

impl OrdinaryUser {
    fn start(mode: u32) -> Option<OrdinaryUser> {
        if unsafe { libc::geteuid() } != 0 {
            not_tested("only root can start processes of other users");
            return None;
        }
        // Others may have no way to the directory of this checkout.
        let directory = tempfile::tempdir_in("/tmp").expect("a directory");
        let install = |from: &Path, name: &str, mode: u32| {
            let to = directory.path().join(name);
            support::copy_program(from, &to);
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode)).expect("it is ours");
            to
        };
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), everybody).expect("it is ours");
        install(Path::new(env!("CARGO_BIN_EXE_wstate")), "wstate", 0o755);
        let sleep = install(&std::fs::canonicalize("/bin/sleep").expect("sleep"), "sleep", mode);
        let sleep = Command::new(sleep).arg("1000").uid(NOBODY).gid(NOBODY).spawn().expect("sleep starts");
        Some(OrdinaryUser { directory, sleep })
    }

    fn assert_refused(&self, pid: u32, why: &str) {
        for options in [&[][..], &["--nonblocking"]] {
            let mut wstate = Command::new(self.directory.path().join("wstate"));
            wstate.arg("attach").arg(pid.to_string()).args(options).uid(NOBODY).gid(NOBODY);
            assert_refusal(&wstate.output().expect("wstate starts"), why);
        }
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        let _ = self.sleep.kill();
        let _ = self.sleep.wait();
    }
}

#[test]
fn processes_with_other_rights_are_refused_with_the_reason() {
    let Some(user) = OrdinaryUser::start(0o4755) else { return };
    let status = std::fs::read_to_string(format!("/proc/{}/status", user.sleep.id())).expect("it runs");
    if status.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}\t")) {
        return not_tested("set-user-id has no effect here (nosuid or no_new_privs)");
    }
    user.assert_refused(user.sleep.id(), "set-user-id program, which runs with the rights of user id 0");
    user.assert_refused(std::process::id(), "it belongs to user id 0 and wstate runs as 65534");
    // Root may.
    assert_eq!(wstate(&["attach", &user.sleep.id().to_string()]).status.code(), Some(0));

    let Some(user) = OrdinaryUser::start(0o711) else { return };
    user.assert_refused(user.sleep.id(), "it does not let itself be traced");
}

/// What each thread says of itself is what the kernel said of it before.
#[test]
fn threads_say_what_they_do() {
    let role = Role::start("states");
    let pid = role.pid();
    let of = |report: &Value| -> BTreeSet<String> {
        let threads = report["threads"].as_array().expect("threads").iter();
        threads
            .filter_map(|t| {
                let name = t["name"].as_str().filter(|name| name.starts_with("in "))?;
                let state = &t["state"];
                let call = state["system_call"].as_str().map(|call| format!(" {call}")).unwrap_or_default();
                Some(format!("{name}: {}{call}", state["kind"].as_str().unwrap_or("not known")))
            })
            .collect()
    };
    let expected = |sleep: &str| -> BTreeSet<String> {
        let all = ["in epoll: idle epoll_wait", "in futex: idle futex", "in read: idle read", "in user: running"];
        all.map(String::from).into_iter().chain([format!("in sleep: idle {sleep}")]).collect()
    };
    let letters = || states(pid).into_iter().filter(|&s| s == 'R').count();
    until("only one thread runs", || letters() == 1);
    // The very first stop finds the sleep itself. It goes on as another system call.
    assert_eq!(of(&attach(pid)), expected("clock_nanosleep"));
    until("only one thread runs", || letters() == 1);
    let nonblocking = report(&wstate(&["attach", &pid.to_string(), "--json", "--nonblocking"]));
    assert_eq!(of(&nonblocking), expected("restart_syscall"));
    assert_eq!(of(&attach(pid)), expected("restart_syscall"));

    assert_eq!(unsafe { libc::kill(pid as i32, libc::SIGSTOP) }, 0);
    until("the process stops", || states(pid).iter().all(|&s| s == 'T'));
    for more in [&[][..], &["--nonblocking"]] {
        let report = report(&wstate(&[&["attach", &pid.to_string(), "--json"], more].concat()));
        assert!(of(&report).iter().all(|state| state.ends_with(": stopped")), "{:?}", of(&report));
    }
    assert_eq!(unsafe { libc::kill(pid as i32, libc::SIGCONT) }, 0);
}

#[test]
fn a_process_says_who_it_is() {
    let mut command = Command::new("sleep");
    let mut child = command.arg("1000").arg0("some name").spawn().expect("sleep starts");
    until("it sleeps", || {
        let is_it = std::fs::read_to_string(format!("/proc/{}/cmdline", child.id())).unwrap_or_default();
        is_it == "some name\u{0}1000\u{0}" && states(child.id()) == ['S']
    });
    let target = attach(child.id())["target"].clone();
    assert_eq!(target["command_line"], "'some name' 1000");
    assert_eq!(
        (&target["uid"], &target["gid"]),
        (&unsafe { libc::getuid() }.into(), &unsafe { libc::getgid() }.into())
    );
    assert!(target["command_line_cut"].is_null() && target["signal_details"].is_null(), "{target}");
    child.kill().expect("it runs");
    child.wait().expect("it is a child");
}
