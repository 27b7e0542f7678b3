//! What a process that analyses a stranger's core can still do: nothing but that.
#![allow(unsafe_code)] // The system calls that must fail.

use crate::support;
use crate::support::{Host, Profile, wstate};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use wstate::cli::sandbox::{self, Ended};

const ROLE: &str = "WSTATE_SANDBOX_ROLE";

/// Not a test: what is done inside. The harness runs it on the only thread of a process of its own.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let directory = std::env::current_dir().expect("a directory");
    let open = std::fs::File::create("open").expect("a file");
    if role == "not possible" {
        without_seccomp();
    }
    let ended = sandbox::run(|unconfined| {
        if let Some(why) = unconfined {
            println!("\nUNCONFINED {why}");
            return Ended { code: 0, whole: true };
        }
        match role.as_str() {
            "allowed" => allowed(&directory, &open),
            "refused" => refused(),
            "abort" => std::process::abort(),
            "fault" => unsafe { std::hint::black_box(std::ptr::null_mut::<u8>()).write_volatile(1) },
            "panic" => panic!("as told"),
            "not possible" => println!("\nDONE"),
            "partial" => return Ended { code: 1, whole: false },
            other => panic!("no role {other}"),
        }
        Ended { code: 1, whole: true }
    });
    println!("\nENDED {ended:?}");
}

/// What an analysis needs.
fn allowed(directory: &Path, mut open: &std::fs::File) {
    let exe = std::fs::read("/proc/self/exe").expect("files are read");
    assert!(std::fs::read_dir(directory).expect("directories are read").count() > 0);
    assert!(std::fs::canonicalize("open").expect("links are followed").exists());
    let sum = std::thread::scope(|scope| {
        let half = scope.spawn(|| exe.iter().map(|&b| u64::from(b)).sum::<u64>());
        half.join().expect("threads run")
    });
    assert!(sum > 0);
    open.write_all(b"result").expect("what is open is written");
}

fn refused() {
    let path = c"file";
    let mut byte = 0_u8;
    let piece = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let none = std::ptr::null::<libc::c_char>();
    let calls: [(&str, &dyn Fn() -> i64); 25] = unsafe {
        [
            ("socket", &|| libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0).into()),
            ("socketpair", &|| libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, [0; 2].as_mut_ptr()).into()),
            ("execve", &|| libc::execve(c"/bin/true".as_ptr(), &none, &none).into()),
            ("execveat", &|| libc::syscall(libc::SYS_execveat, -1, c"/bin/true".as_ptr(), &none, &none, 0)),
            ("fork", &|| libc::fork().into()),
            ("clone3", &|| libc::syscall(libc::SYS_clone3, 0, 0)),
            ("ptrace", &|| libc::ptrace(libc::PTRACE_SEIZE, libc::getppid(), 0, 0)),
            ("process_vm_readv", &|| libc::process_vm_readv(libc::getpid(), &piece, 1, &piece, 1, 0) as i64),
            ("process_vm_writev", &|| libc::process_vm_writev(libc::getpid(), &piece, 1, &piece, 1, 0) as i64),
            ("pidfd_open", &|| libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0)),
            ("kill", &|| libc::kill(libc::getpid(), 0).into()),
            ("tgkill another", &|| libc::syscall(libc::SYS_tgkill, 1, 1, 0)),
            ("open to write", &|| libc::open(path.as_ptr(), libc::O_WRONLY).into()),
            ("open to read and write", &|| libc::open(path.as_ptr(), libc::O_RDWR).into()),
            ("open to truncate", &|| libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_TRUNC).into()),
            ("create", &|| libc::open(c"new".as_ptr(), libc::O_RDONLY | libc::O_CREAT, 0o600).into()),
            ("truncate", &|| libc::truncate(path.as_ptr(), 0).into()),
            ("unlink", &|| libc::unlink(path.as_ptr()).into()),
            ("rename", &|| libc::rename(path.as_ptr(), c"new".as_ptr()).into()),
            ("mkdir", &|| libc::mkdir(c"new".as_ptr(), 0o700).into()),
            ("chmod", &|| libc::chmod(path.as_ptr(), 0o777).into()),
            ("executable memory", &|| {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_EXEC, flags, -1, 0) as i64
            }),
            ("mprotect", &|| {
                let page = (&raw const byte as usize & !4095) as *mut libc::c_void;
                libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC).into()
            }),
            ("input for the terminal", &|| libc::ioctl(0, libc::TIOCSTI, &byte).into()),
            ("io_uring", &|| libc::syscall(libc::SYS_io_uring_setup, 1, 0)),
        ]
    };
    for (name, call) in calls {
        let result = call();
        let errno = std::io::Error::last_os_error().raw_os_error();
        println!("\nTRIED {name}: {}", result == -1 && errno == Some(libc::ENOSYS));
    }
}

fn inside(role: &str) -> (tempfile::TempDir, Vec<String>) {
    let (directory, output) = started(role, None);
    let lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_string).collect();
    // The build machines' kernels have seccomp: without it nothing here would be tested.
    assert!(!lines.iter().any(|l| l.starts_with("UNCONFINED")), "{lines:?}");
    assert!(lines.iter().any(|l| l.starts_with("ENDED")), "{}", String::from_utf8_lossy(&output.stderr));
    (directory, lines)
}

/// From here on the system has no seccomp.
fn without_seccomp() {
    use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};
    let is_seccomp = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::PR_SET_SECCOMP as u64)
        .expect("a rule");
    let calls =
        [(libc::SYS_seccomp, vec![]), (libc::SYS_prctl, vec![SeccompRule::new(vec![is_seccomp]).expect("a rule")])];
    let refuse = SeccompAction::Errno(libc::EINVAL as u32);
    let arch = std::env::consts::ARCH.try_into().expect("a machine");
    let filter = SeccompFilter::new(calls.into(), SeccompAction::Allow, refuse, arch).expect("a filter");
    let filter: seccompiler::BpfProgram = filter.try_into().expect("a filter");
    seccompiler::apply_filter(&filter).expect("a filter");
}

fn started(role: &str, variable: Option<&str>) -> (tempfile::TempDir, Output) {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("file"), "kept").expect("a file");
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["sandbox::role", "--exact", "--nocapture", "--test-threads", "1"]).env(ROLE, role);
    variable.map(|value| command.env("WSTATE_SANDBOX", value));
    let output = command.current_dir(directory.path()).stdin(Stdio::null()).output().expect("this test starts again");
    (directory, output)
}

#[test]
fn where_there_is_no_sandbox_nothing_is_analysed_if_one_is_required() {
    let said = |variable: Option<&str>| {
        let output = started("not possible", variable).1;
        (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for variable in [None, Some(""), Some("wanted")] {
        let (output, errors) = said(variable);
        assert!(output.contains("UNCONFINED the seccomp filter cannot be set"), "{output}");
        assert!(output.contains("ENDED Ok(Ended { code: 0, whole: true })"), "{output}");
        assert!(!errors.contains("required"), "{errors}");
    }
    let (output, errors) = said(Some("required"));
    assert!(!output.contains("UNCONFINED") && !output.contains("DONE"), "{output}");
    assert!(output.contains("ENDED Ok(Ended { code: 2, whole: false })"), "{output}");
    assert!(errors.contains("wstate: error: nothing is analysed, because WSTATE_SANDBOX says"), "{errors}");
    // Where there is one, it changes nothing.
    let output = started("allowed", Some("required")).1;
    assert!(String::from_utf8_lossy(&output.stdout).contains("ENDED Ok(Ended { code: 1, whole: true })"), "{output:?}");
}

fn ended(lines: &[String]) -> &str {
    lines.iter().find_map(|l| l.strip_prefix("ENDED ")).expect("it ended")
}

#[test]
fn files_are_read_threads_run_and_what_is_open_is_written() {
    let (directory, lines) = inside("allowed");
    assert_eq!(ended(&lines), "Ok(Ended { code: 1, whole: true })");
    assert_eq!(std::fs::read(directory.path().join("open")).expect("it is there"), b"result");
}

#[test]
fn network_programs_processes_and_changes_of_files_are_refused() {
    let (directory, lines) = inside("refused");
    assert_eq!(ended(&lines), "Ok(Ended { code: 1, whole: true })");
    let tried: Vec<&str> = lines.iter().filter_map(|l| l.strip_prefix("TRIED ")).collect();
    assert_eq!(tried.len(), 25, "{tried:?}");
    let done: Vec<&&str> = tried.iter().filter(|t| !t.ends_with(": true")).collect();
    assert!(done.is_empty(), "{done:?}");
    assert_eq!(std::fs::read(directory.path().join("file")).expect("it is there"), b"kept");
    assert!(!directory.path().join("new").exists());
}

#[test]
fn a_death_inside_is_told_and_nothing_incomplete_counts_as_whole() {
    let died = |role: &str, signal: &str| {
        let (_directory, lines) = inside(role);
        let why = format!("Err(Analysis {{ why: \"the child process was ended by {signal}\" }})");
        assert_eq!(ended(&lines), why);
    };
    died("abort", "SIGABRT");
    died("fault", "SIGSEGV");
    assert_eq!(ended(&inside("panic").1), "Ok(Ended { code: 101, whole: false })");
    assert_eq!(ended(&inside("partial").1), "Ok(Ended { code: 1, whole: false })");
}

fn core_of_host() -> (Host, std::path::PathBuf) {
    let host = Host::start("sleep", &[], Profile::Debug);
    let core = support::gcore(&host).expect("gcore writes a core");
    (host, core)
}

#[test]
fn a_core_is_analysed_inside_and_the_same_is_found() {
    let (host, core) = core_of_host();
    let core = core.to_str().expect("a path of ours");
    let directory = host.directory.path();
    let same = |arguments: &[&str]| {
        let run = |more: &[&str]| -> Output { wstate(&[arguments, more].concat()) };
        let (inside, outside) = (run(&[]), run(&["--no-sandbox"]));
        assert_eq!(inside.status, outside.status);
        assert_eq!(String::from_utf8_lossy(&inside.stderr), String::from_utf8_lossy(&outside.stderr));
        assert_eq!(String::from_utf8_lossy(&inside.stdout), String::from_utf8_lossy(&outside.stdout));
        inside
    };
    let text = same(&["core", core]);
    assert!(String::from_utf8_lossy(&text.stdout).contains(" * fact "), "{text:?}");
    same(&["core", core, "--json", "--verbose"]);
    same(&["core", core, "--debug-dir", "/usr/lib/debug", "--sysroot", directory.to_str().expect("a path of ours")]);
    assert_eq!(same(&["core", core, "/dev/null"]).status.code(), wstate(&["core", core, "/dev/null"]).status.code());
    same(&["core", core, "--wasm", "/there/is/none"]);
    same(&["modules", "-c", core, "--functions", "--exports"]);
    same(&["memory", "-c", core, "0", "64"]);
    same(&["export", "-c", core, "--wasm-coredump", "/dev/null"]);

    let file = directory.join("report");
    std::fs::write(&file, "old").expect("a file");
    let name = file.to_str().expect("a path of ours");
    let output = wstate(&["core", core, "--output", name]);
    assert_eq!(output.status, text.status);
    assert_eq!(std::fs::read(&file).expect("it is there"), text.stdout);
    // Without a result the file keeps what it holds, and nothing else is left behind.
    let files = || std::fs::read_dir(directory).expect("it is there").count();
    let before = files();
    let failed = wstate(&["core", "/dev/null", "--output", name]);
    assert_eq!(failed.status.code(), Some(2));
    assert_eq!((std::fs::read(&file).expect("it is there"), files()), (text.stdout, before));
}

#[test]
fn images_are_made_and_read_inside_and_are_the_same() {
    let host = Host::start("globals", &[], Profile::Debug);
    let core = support::gcore(&host).expect("gcore writes a core");
    let core = core.to_str().expect("a path of ours");
    let make = |name: &str, more: &[&str]| {
        let image = host.directory.path().join(name);
        let path = image.to_str().expect("a path of ours").to_string();
        let output = wstate(&[&["snapshot", "-c", core, "--with-imports", "-o", &path], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let files = [image.clone(), image.with_extension("imports.json")];
        let files = files.map(|f| (std::fs::read(&f).expect("a file"), f.metadata().expect("a file").permissions()));
        (path, output.stdout, files)
    };
    let (image, said, files) = make("inside", &[]);
    let (other, said_outside, files_outside) = make("outside", &["--no-sandbox"]);
    assert_eq!((said, &files), (said_outside, &files_outside));
    assert!(files[0].0 == host.truth().expect("a truth").instance.expect("an image"));
    assert!(String::from_utf8_lossy(&files[1].0).contains("\"i32\""), "{files:?}");

    let mut changed = files[0].0.clone();
    changed[9 + 18] ^= 1;
    std::fs::write(&other, changed).expect("a file");
    for (arguments, code) in [
        (&[&image[..]][..], 0),
        (&[&image, "--json"], 0),
        (&[&image, "--hexdump", "0", "16"], 0),
        (&[&image, "--hexdump", "65536", "16"], 2),
        (&[&image, "--diff", &image], 0),
        (&[&image, "--diff", &other], 1),
        (&[&image, "--diff", "/dev/null"], 2),
        (&["/bin/true"], 2),
    ] {
        let run = |more: &[&str]| wstate(&[&["image"], arguments, more].concat());
        let (inside, outside) = (run(&[]), run(&["--no-sandbox"]));
        assert_eq!(inside, outside);
        assert_eq!(inside.status.code(), Some(code), "{arguments:?}: {inside:?}");
    }
}

#[test]
fn a_core_is_analysed_behind_a_filter_unless_told_otherwise() {
    let (host, core) = core_of_host();
    let log = host.directory.path().join("strace");
    let filters = |arguments: &[&str]| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", "trace=seccomp,prctl,execve,socket,connect", "-o"]).arg(&log);
        strace.arg(env!("CARGO_BIN_EXE_wstate")).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        strace.stderr(Stdio::null()).status().expect("this test needs strace");
        let mut text = String::new();
        std::fs::File::open(&log).expect("strace writes its log").read_to_string(&mut text).expect("text");
        text.lines().filter(|l| l.contains("SECCOMP_SET_MODE_FILTER") || l.contains("PR_SET_SECCOMP")).count()
    };
    let core = core.to_str().expect("a path of ours");
    assert_eq!(filters(&["core", core]), 1);
    assert_eq!(filters(&["--core", core]), 1);
    assert_eq!(filters(&["core", core, "--no-sandbox"]), 0);
    assert_eq!(filters(&["--core", core, "--no-sandbox"]), 0);
    assert_eq!(filters(&["modules", "-c", core]), 1);
    assert_eq!(filters(&["memory", "-c", core, "0", "64"]), 1);
    assert_eq!(filters(&["export", "-c", core, "--wasm-coredump", "/dev/null"]), 1);
    let image = host.directory.path().join("image");
    let image = image.to_str().expect("a path of ours");
    assert_eq!(filters(&["snapshot", "-c", core, "--with-imports", "-o", image]), 1);
    assert_eq!(filters(&["snapshot", "-c", core, "--with-imports", "-o", image, "--no-sandbox"]), 0);
    assert_eq!(filters(&["image", image]), 1);
    assert_eq!(filters(&["image", image, "--diff", image]), 1);
    assert_eq!(filters(&["image", image, "--no-sandbox"]), 0);
    assert_eq!(filters(&["snapshot", "-p", &host.pid().to_string(), "-o", image]), 0);
    assert_eq!(filters(&["attach", &host.pid().to_string()]), 0);
}
