//! Files that are not where the process says, and processes in namespaces of their own.

use super::*;

/// A copy of the host in a directory of its own.
fn copied_host() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let copy = directory.path().join("host-copy");
    support::copy_program(&host_singlepass(Profile::Debug), &copy);
    (directory, copy)
}

#[test]
fn a_deleted_executable_still_gives_names() {
    let (_directory, exe) = copied_host();
    let host = Host::start_exe(exe.clone(), "sleep", &[]);
    std::fs::remove_file(exe).expect("it is there");
    assert_sleep_host(&attach(host.pid() as u32));
    let text = doctor(host.pid() as u32);
    assert!(text.contains("replaced or deleted"), "{text}");
}

#[test]
fn a_replaced_executable_still_gives_names() {
    let (directory, exe) = copied_host();
    let host = Host::start_exe(exe.clone(), "sleep", &[]);
    // As a package manager does it: another file gets the name.
    let other = directory.path().join("other");
    std::fs::copy(env!("CARGO_BIN_EXE_wstate"), &other).expect("a copy");
    std::fs::rename(other, exe).expect("it is replaced");
    assert_sleep_host(&attach(host.pid() as u32));
    let text = doctor(host.pid() as u32);
    assert!(text.contains("replaced or deleted"), "{text}");
}

/// Whether `unshare` with these flags works here.
fn can_unshare(flags: &str) -> bool {
    let output = Command::new("unshare").args([flags, "true"]).output();
    match output {
        Ok(o) if o.status.success() => true,
        Ok(o) => {
            not_tested(&format!("unshare {flags}: {}", String::from_utf8_lossy(&o.stderr).trim()));
            false
        }
        Err(e) => {
            missing(format!("unshare does not start: {e}"));
            false
        }
    }
}

fn script(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("start");
    std::fs::write(&path, text).expect("the script is written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

/// The process that runs this very file, as seen from here.
fn process_of(exe: &Path) -> u32 {
    let file = exe.metadata().expect("the copy is there");
    let is_it = |pid: u32| {
        let running = std::fs::metadata(format!("/proc/{pid}/exe"));
        running.is_ok_and(|r| (r.dev(), r.ino()) == (file.dev(), file.ino()))
    };
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let mut pids = processes.filter_map(|p| p.file_name().to_str()?.parse().ok());
    pids.find(|&pid| is_it(pid)).expect("the host runs")
}

#[test]
fn libraries_of_another_mount_namespace_are_found_through_its_root() {
    if !can_unshare("-m") {
        return;
    }
    let (directory, exe) = copied_host();
    let mount = directory.path().join("mount");
    let files = directory.path().join("files");
    std::fs::create_dir(&mount).and_then(|()| std::fs::create_dir(&files)).expect("directories");
    std::fs::rename(&exe, files.join("host")).expect("it is moved");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("our maps");
    let libc = maps.lines().find_map(|l| Some(&l[l.find('/')?..]).filter(|p| p.contains("/libc.so"))).expect("libc");
    std::fs::copy(libc, files.join("libc.so.6")).expect("a copy");
    let (mount, files) = (mount.display(), files.display());
    let start = script(
        directory.path(),
        &format!(
            "#!/bin/sh\nexec unshare -m /bin/sh -c 'mount --bind \"{files}\" \"{mount}\" && \
             LD_LIBRARY_PATH=\"{mount}\" exec \"{mount}/host\" \"$@\"' sh \"$@\"\n"
        ),
    );
    let host = Host::start_exe(start, "sleep", &[]);
    let mount = directory.path().join("mount");
    assert!(!mount.join("libc.so.6").exists(), "the mount is seen here too: nothing is tested");
    let pid = host.pid() as u32;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    assert!(maps.contains(mount.join("libc.so.6").to_str().expect("a path of ours")), "{maps}");
    let report = attach(pid);
    assert_sleep_host(&report);
    assert_eq!(report["objects_problems"], Value::Array(vec![]));
    let text = doctor(pid);
    assert!(text.contains(&format!("its files are read through /proc/{pid}/root")), "{text}");
}

#[test]
fn a_process_in_a_pid_namespace_is_attached_to_by_its_id_here() {
    if !can_unshare("-pf") {
        return;
    }
    let (directory, exe) = copied_host();
    let start = format!("#!/bin/sh\nexec unshare -pf --kill-child \"{}\" \"$@\"\n", exe.display());
    let host = Host::start_exe(script(directory.path(), &start), "sleep", &[]);
    assert!(host.pid() < 10, "the host's own id is that of its namespace: {}", host.pid());
    let pid = process_of(&exe);
    assert_ne!(pid, host.pid() as u32);
    let report = attach(pid);
    assert_sleep_host(&report);
    assert_eq!(report["target"]["pid"], pid);
    let text = doctor(pid);
    assert!(text.contains("other pid namespace, as pid 1 inside"), "{text}");
}
