//! Files that a target has or names and that harm who reads them: bombs, bottomless ones, ones that change, ones that do not
//! answer, ones that are not what ran. Each costs itself; the rest of the report is there.
#![allow(unsafe_code)] // wait4, for the memory that a report took.

use crate::support::missing::missing;
use crate::support::rust_files;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use wstate::arch::{Machine, Registers, x64};
use wstate::process::file_kind::{Door, refusal};
use wstate::process::testing::CoreBuilder;

/// A process that is looked at: it says "ready" and then does what it does until it is killed.
struct Peer(Child);

impl Peer {
    fn start(command: &mut Command) -> Peer {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("it has an output");
        BufReader::new(out).read_line(&mut line).expect("it says a line");
        assert_eq!(line, "ready\n");
        Peer(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `wstate` said.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
    /// Peak of its memory, in bytes.
    memory: u64,
}

fn wstate(args: &[&str]) -> Ran {
    run(Command::new(env!("CARGO_BIN_EXE_wstate")).args(args))
}

fn run(command: &mut Command) -> Ran {
    #[expect(clippy::zombie_processes, reason = "wait4 waits for it, and tells its memory too")]
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let (mut status, mut usage) = (0, unsafe { std::mem::zeroed::<libc::rusage>() });
    // SAFETY: both are ours, and nobody else waits for the child.
    let pid = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage) };
    assert_eq!(pid, child.id() as i32);
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    Ran { code, out, err, memory: usage.ru_maxrss as u64 * 1024 }
}

fn attach(peer: &Peer) -> (Ran, Value) {
    let ran = wstate(&["attach", &peer.pid(), "--json"]);
    let report = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {:?} {}", ran.code, ran.err));
    (ran, report)
}

fn names(report: &Value) -> Vec<String> {
    let threads = report["threads"].as_array().into_iter().flatten();
    let frames = threads.flat_map(|t| t["frames"].as_array()).flatten();
    frames.filter_map(|f| Some(f["function"]["name"].as_str()?.to_string())).collect()
}

fn told(report: &Value, what: &str) -> usize {
    let all = ["notes", "objects_problems"].into_iter().flat_map(|key| report[key].as_array()).flatten();
    all.filter(|note| note.as_str().is_some_and(|note| note.contains(what))).count()
}

/// Compiles C or assembler.
fn cc(directory: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let ending = if source.starts_with(".text") { "s" } else { "c" };
    let (from, to) = (directory.join(format!("{name}.{ending}")), directory.join(name));
    std::fs::write(&from, source).unwrap();
    let mut command = Command::new("cc");
    command.args(["-o".as_ref(), to.as_os_str(), from.as_os_str()]).args(flags);
    assert!(command.status().expect("cc is there").success(), "{name}");
    to
}

const WAITS: &str = "#include <unistd.h>\n#include <stdio.h>\n\
    int main(void) { puts(\"ready\"); fflush(stdout); for (;;) pause(); }\n";

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn a_debug_section_that_nests_without_an_end_costs_its_unit() {
    const DEPTH: usize = 50_000;
    let mut text = String::from(
        ".text\n.globl main\n.type main,@function\nmain: push %rbp\nmov %rsp,%rbp\nlea .Lready(%rip),%rdi\ncall puts\n\
         mov stdout(%rip),%rdi\ncall fflush\n1: call pause\njmp 1b\n.Lend:\n.size main,.-main\n\
         .section .rodata\n.Lready: .asciz \"ready\"\n.section .debug_abbrev,\"\",@progbits\n",
    );
    for abbreviation in
        ["1,0x11,1,0x11,1,0x12,7", "2,0x2e,1,3,8,0x11,1,0x12,7", "3,0x1d,1,0x31,0x13,0x11,1,0x12,7", "5,0x2e,0,3,8"]
    {
        writeln!(text, ".byte {abbreviation},0,0").unwrap();
    }
    text.push_str(".byte 0\n.section .debug_info,\"\",@progbits\n.Lcu: .long .Lcuend-.Lcu0\n.Lcu0: .short 4\n");
    text.push_str(
        ".long .debug_abbrev\n.byte 8,1\n.quad main,.Lend-main\n.byte 2\n.asciz \"main\"\n.quad main,.Lend-main\n",
    );
    writeln!(text, ".rept {DEPTH}\n.byte 3\n.long .Lname-.Lcu\n.quad main,.Lend-main\n.endr\n.fill {DEPTH}+1").unwrap();
    text.push_str(".Lname: .byte 5\n.asciz \"inlined\"\n.byte 0\n.Lcuend:\n.section .note.GNU-stack,\"\",@progbits\n");
    let directory = directory();
    let peer = Peer::start(&mut Command::new(cc(directory.path(), "deep", &text, &["-no-pie"])));
    let (ran, report) = attach(&peer);
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""), "{report}");
    let names = names(&report);
    assert!(names.iter().any(|n| n == "main") && !names.iter().any(|n| n == "inlined"), "{names:?}");
    assert_eq!(told(&report, "inlined functions are left out"), 1, "{report}");
}

/// Compresses the debug sections of an ELF file, with so many zeros behind what they hold.
fn pack(file: &Path, size: u64) {
    let mut bytes = std::fs::read(file).unwrap();
    let word = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
    let half = |b: &[u8], at: usize| u16::from_le_bytes(b[at..at + 2].try_into().unwrap()) as usize;
    let (table, count, names) = (word(&bytes, 40) as usize, half(&bytes, 60), half(&bytes, 62));
    let names = word(&bytes, table + 64 * names + 24) as usize;
    for section in (0..count).map(|i| table + 64 * i) {
        let name = names + u32::from_le_bytes(bytes[section..section + 4].try_into().unwrap()) as usize;
        if !bytes[name..].starts_with(b".debug_") {
            continue;
        }
        let (from, len) = (word(&bytes, section + 24) as usize, word(&bytes, section + 32) as usize);
        let mut packed = Vec::new();
        packed.extend(1u64.to_le_bytes());
        packed.extend([size, 1].into_iter().flat_map(u64::to_le_bytes));
        let mut encoder = ZlibEncoder::new(packed, Compression::fast());
        encoder.write_all(&bytes[from..from + len]).unwrap();
        std::io::copy(&mut std::io::repeat(0).take(size - len as u64), &mut encoder).unwrap();
        let packed = encoder.finish().unwrap();
        let end = bytes.len().next_multiple_of(8);
        bytes.resize(end, 0);
        bytes[section + 9] |= 8;
        bytes[section + 24..section + 40].copy_from_slice(
            &[end as u64, packed.len() as u64].into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>(),
        );
        bytes.extend(packed);
    }
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn sections_that_unpack_to_gigabytes_are_left_out_and_names_are_there() {
    let directory = directory();
    let file = cc(directory.path(), "bomb", WAITS, &["-g"]);
    let honest = directory.path().join("honest");
    std::fs::copy(&file, &honest).unwrap();
    // What is left out is what lies: packed as tools pack it, all is there.
    pack(&honest, 64 << 10);
    pack(&file, 40 << 20);
    let (ran, report) = attach(&Peer::start(&mut Command::new(&honest)));
    assert_eq!((ran.code, told(&report, "debug information")), (Some(0), 0), "{report}");
    assert!(ran.out.contains("honest.c") || ran.out.contains("bomb.c"), "{}", ran.out);

    let (ran, report) = attach(&Peer::start(&mut Command::new(&file)));
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""), "{report}");
    assert!(names(&report).iter().any(|n| n == "main"), "{report}");
    assert_eq!(told(&report, "its debug information claims to be larger"), 1, "{report}");
    assert!(ran.memory < 150 << 20, "{} bytes", ran.memory);
}

#[test]
fn too_little_memory_is_an_error_that_says_so() {
    let directory = directory();
    let peer = Peer::start(&mut Command::new(cc(directory.path(), "small", WAITS, &["-g"])));
    let mut fatal = 0;
    for megabytes in [8, 12, 16, 20, 24, 30, 40, 50, 60, 80, 120] {
        let command = format!("ulimit -v {}; exec \"$0\" attach {}", megabytes << 10, peer.pid());
        let ran =
            run(Command::new("sh").args(["-c", &command, env!("CARGO_BIN_EXE_wstate")]).env("RUST_BACKTRACE", "1"));
        // Below some limit the program cannot even be loaded.
        let version = format!("ulimit -v {}; exec \"$0\" --version", megabytes << 10);
        if run(Command::new("sh").args(["-c", &version, env!("CARGO_BIN_EXE_wstate")])).code != Some(0) {
            continue;
        }
        assert!(!ran.err.contains("panicked") && !ran.err.contains("stack backtrace"), "{megabytes}: {}", ran.err);
        match ran.code {
            Some(2) => {
                fatal += 1;
                assert!(ran.err.contains("wstate: error: ") && ran.err.contains("hint: "), "{megabytes}: {}", ran.err);
            }
            Some(0 | 1) => assert!(ran.out.contains("Thread "), "{megabytes}: {}", ran.out),
            code => panic!("{megabytes}: {code:?} {}", ran.err),
        }
    }
    println!("{fatal} limits were too small");
}

#[test]
fn a_debug_link_to_a_bottomless_file_is_not_followed_to_its_end() {
    let directory = directory();
    let file = cc(directory.path(), "linked", WAITS, &["-g"]);
    let debug = directory.path().join("linked.debug");
    let objcopy = |args: &[&std::ffi::OsStr]| assert!(Command::new("objcopy").args(args).status().unwrap().success());
    objcopy(&["--only-keep-debug".as_ref(), file.as_ref(), debug.as_ref()]);
    objcopy(&["--strip-debug".as_ref(), "--remove-section=.note.gnu.build-id".as_ref(), file.as_ref()]);
    let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
    link.push(&debug);
    objcopy(&[&link, file.as_ref()]);
    let peer = Peer::start(&mut Command::new(&file));
    let has_line = |report: &Value| report.to_string().contains("linked.c");
    let (_, report) = attach(&peer);
    assert!(has_line(&report), "the debug file is used: {report}");
    // With its headers, and without any: nothing of it is read but what is there.
    for begin in [std::fs::read(&debug).unwrap(), Vec::new()] {
        std::fs::write(&debug, begin).unwrap();
        std::fs::File::options().write(true).open(&debug).unwrap().set_len(8 << 40).unwrap();
        let (ran, report) = attach(&peer);
        assert!(!has_line(&report) && names(&report).iter().any(|n| n == "main"), "{report}");
        assert!(ran.memory < 150 << 20, "{} bytes", ran.memory);
    }
}

/// A core of one thread, as a file.
fn some_core(at: &Path) {
    let mut registers = Registers::unknown(Machine::X64);
    registers.set(x64::RIP, 0x10_0000);
    let core = CoreBuilder::new().thread(7, 0, &registers, 0).memory(0x10_0000, 5, &[0x90; 0x1000]);
    std::fs::write(at, core.build()).unwrap();
}

/// Not even waited for: a FIFO that nobody writes to would hang whoever opens it.
#[test]
fn what_is_no_regular_file_is_not_opened() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let core = at("core");
    some_core(Path::new(&core));
    std::os::unix::fs::symlink(at("fifo"), at("link")).unwrap();
    let (odd_files, peer) = (directory.path().join("odd"), std::process::id().to_string());
    std::fs::create_dir(&odd_files).unwrap();
    let kinds = [
        (at("fifo"), "it is a FIFO, not a regular file"),
        (at("link"), "it is a FIFO, not a regular file"),
        (at("socket"), "it is a socket, not a regular file"),
        (odd_files.to_str().unwrap().to_string(), "it is a directory, not a regular file"),
        ("/dev/zero".into(), "it is a device, not a regular file"),
        ("/dev/tty".into(), "it is a device, not a regular file"),
    ];
    for (odd, why) in kinds {
        for args in [
            &["core", &odd][..],
            &["core", &core, &odd],
            &["core", &core, "--no-sandbox", "-e", &odd],
            &["core", &odd, &odd],
            &["modules", "-c", &odd],
            &["image", &odd],
            &["restore", &peer, &odd],
            &["core", &core, "--wasm", &odd],
            &["core", &core, "--artifact", &odd],
            &["memory", "-c", &odd, "0", "1"],
            &["attach", "1", "--wasm", &odd],
        ] {
            let ran = wstate(args);
            assert!(ran.code.is_some_and(|code| code != 0), "{args:?}: {:?} {}", ran.code, ran.err);
            assert!(
                args[1] == "1" || ran.out.contains(why) || ran.err.contains(why),
                "{args:?}: {}{}",
                ran.out,
                ran.err
            );
        }
    }
    // What is no directory is not searched, and the user who has mistyped it is told.
    for (odd, why) in [
        (at("fifo"), "it is no directory"),
        (at("socket"), "it is no directory"),
        (core.clone(), "it is no directory"),
        (at("gone"), "there is no such directory"),
    ] {
        for option in ["--sysroot", "--debug-dir"] {
            let ran = wstate(&["core", &core, option, &odd]);
            let told = format!("wstate: error: {odd} is not used: {why}; name the directory that holds ");
            assert!(ran.code == Some(2) && ran.err.starts_with(&told) && ran.out.is_empty(), "{odd}: {}", ran.err);
        }
    }
    let found = wstate(&["core", &core, "--sysroot", odd_files.to_str().unwrap(), "--debug-dir", "/"]);
    assert!(found.err.is_empty() && found.out.contains("Thread 7"), "{}", found.err);
}

/// At each place of the command line: what a file of the wrong kind is, and what to do, in one line.
#[test]
fn files_that_are_something_else_are_called_by_their_names() {
    let directory = directory();
    let core = directory.path().join("core");
    some_core(&core);
    let core_bytes = std::fs::read(&core).unwrap();
    let mut cwasm = core_bytes[..64].to_vec();
    (cwasm[7], cwasm[16]) = (200, 1);
    let mut foreign = core_bytes.clone();
    foreign[18] = 183;
    let coredump = b"\0asm\x01\0\0\0\x00\x08\x04core\x00\x01x".to_vec();
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("core", core_bytes),
        ("executable", std::fs::read("/bin/true").unwrap()),
        ("app.cwasm", cwasm),
        ("app.wat", b"(module)".to_vec()),
        ("app.wasm", b"\0asm\x01\0\0\0".to_vec()),
        ("app.coredump", coredump),
        ("crash.dmp", b"MDMP\x93\xa7\0\0".to_vec()),
        ("core.zst", b"\x28\xb5\x2f\xfd\0\0".to_vec()),
        ("script", b"#!/bin/sh\n".to_vec()),
        ("empty", Vec::new()),
        ("core.aarch64", foreign),
        ("gdb.txt", b"(gdb) info checkpoints\n* 0 process 4711\n".to_vec()),
        ("report.json", b"{\"schema_version\":1,\"wstate_version\":\"0.1.0\"}".to_vec()),
    ];
    let core = core.to_str().unwrap();
    for (name, bytes) in files {
        let path = directory.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let file = path.to_str().unwrap();
        for (door, args) in [
            (Door::Core, &["core", file][..]),
            (Door::Executable, &["core", core, file]),
            (Door::Wasm, &["core", core, "--wasm", file]),
            (Door::Artifact, &["core", core, "--artifact", file]),
            (Door::Image, &["image", file]),
        ] {
            let Some(why) = refusal(&bytes, door) else { continue };
            let ran = wstate(args);
            let told = format!("{}{}", ran.out, ran.err);
            let lines: Vec<&str> = told.lines().filter(|line| line.contains(&why)).collect();
            assert!(lines.len() == 1 && lines[0].contains(name), "{args:?}: {why}\n{told}");
            assert!(matches!(ran.code, Some(1 | 2)) && !told.contains("panicked"), "{args:?}: {:?} {told}", ran.code);
            assert_eq!(ran.out.is_empty(), matches!(door, Door::Core | Door::Image), "{args:?}: {told}");
        }
    }
}

#[test]
fn a_library_that_is_cut_while_it_is_read_is_left_out() {
    let directory = directory();
    let library = cc(
        directory.path(),
        "libcut.so",
        "int f(void) { return 1; }\nchar pad[1 << 20] = {1};\n",
        &["-shared", "-fPIC"],
    );
    let source = format!(
        "#include <unistd.h>\n#include <stdio.h>\n#include <dlfcn.h>\n#include <sys/stat.h>\n\
         int main(void) {{ const char *path = \"{}\"; struct stat s; dlopen(path, 2); stat(path, &s);\n\
         puts(\"ready\"); fflush(stdout); for (;;) {{ truncate(path, 4096); truncate(path, s.st_size); }} }}\n",
        library.display()
    );
    let peer = Peer::start(&mut Command::new(cc(directory.path(), "cutter", &source, &["-ldl", "-w"])));
    for _ in 0..5 {
        let (ran, report) = attach(&peer);
        assert!(matches!(ran.code, Some(0 | 1)) && ran.err.is_empty(), "{:?} {}", ran.code, ran.err);
        assert!(names(&report).iter().any(|n| n == "main"), "{report}");
        let changed = told(&report, "changed while it was read");
        assert!(changed == 0 || ran.code == Some(1), "{report}");
    }
}

/// Two functions in this order; the other one gives a file of the same size, with the same headers.
fn twins(first: &str, second: &str) -> String {
    let function = |name: &str| {
        format!(
            "__attribute__((noinline)) int {name}(int n) {{ puts(\"ready\"); fflush(stdout); pause(); return n + 1; }}\n"
        )
    };
    format!(
        "#include <unistd.h>\n#include <stdio.h>\n{}{}int main(void) {{ return alpha(1) + 1; }}\n",
        function(first),
        function(second)
    )
}

#[test]
fn an_executable_that_was_built_again_gives_no_names() {
    let directory = directory();
    let flags = ["-Wl,--build-id=none", "-g", "-O1", "-fno-omit-frame-pointer", "-no-pie"];
    let file = cc(directory.path(), "app", &twins("alpha", "omega"), &flags);
    let keep = directory.path().join("keep");
    std::fs::copy(&file, &keep).unwrap();
    let peer = Peer::start(&mut Command::new(&file));
    let prefix = directory.path().join("all");
    let gcore = |all: bool| {
        let filter = format!("/proc/{}/coredump_filter", peer.pid());
        std::fs::write(filter, if all { "0x7f" } else { "0x33" }).unwrap();
        let mut command = Command::new("gcore");
        command.arg("-o").arg(&prefix).arg(peer.pid()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().expect("gcore is there").success());
        let to = directory.path().join(if all { "with-code" } else { "without-code" });
        std::fs::rename(format!("{}.{}", prefix.display(), peer.pid()), &to).unwrap();
        to.to_str().unwrap().to_string()
    };
    let (with_code, without_code) = (gcore(true), gcore(false));
    let ask = |args: &[&str]| {
        let ran = wstate(&[args, &["--json"]].concat());
        let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}", ran.err));
        (ran.code, names(&report), report)
    };
    // As it is: the core has the code and proves it, or says nothing of it, which is told once.
    let (code, found, report) = ask(&["core", &with_code]);
    assert!(code == Some(0) && found.iter().any(|n| n == "alpha"), "{report}");
    let (code, found, report) = ask(&["core", &without_code]);
    assert!(code == Some(1) && found.iter().any(|n| n == "alpha"), "{report}");
    assert_eq!(told(&report, "could not be compared"), 1, "{report}");

    // Built again, by the usual way of tools: a new file in its place. The process still has the old one.
    std::fs::remove_file(&file).unwrap();
    assert_eq!(cc(directory.path(), "app", &twins("omega", "alpha"), &flags), file);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), std::fs::metadata(&keep).unwrap().len());
    let (code, found, report) = ask(&["attach", &peer.pid()]);
    assert!(code == Some(0) && found.iter().any(|n| n == "alpha"), "{report}");
    let path = file.to_str().unwrap();
    for args in [&["core", &with_code][..], &["core", &with_code, path]] {
        let (code, found, report) = ask(args);
        assert!(!found.iter().any(|n| n == "alpha" || n == "omega"), "{args:?} {report}");
        assert!(code == Some(1) && told(&report, "its code differs") > 0, "{args:?} {report}");
    }
    // The right one, given by its user.
    let (code, found, report) = ask(&["core", &with_code, keep.to_str().unwrap()]);
    assert!(found.iter().any(|n| n == "alpha"), "{code:?} {report}");
    // Nothing tells them apart but the word.
    let (code, _, report) = ask(&["core", &without_code]);
    assert!(
        code == Some(1) && told(&report, "could not be compared") + told(&report, "is not the file") > 0,
        "{report}"
    );
}

/// Serves one file, named `f`, below a mount point until it gets SIGUSR1; then it answers nothing any more.
const FILE_SYSTEM: &str = r#"
import os, struct, sys, ctypes, signal, stat, subprocess
mount, source, program = sys.argv[1:4]
data = open(source, 'rb').read()
hung = False
def silence(*_):
    global hung
    hung = True
signal.signal(signal.SIGUSR1, silence)
signal.siginterrupt(signal.SIGUSR1, True)
try:
    fd = os.open('/dev/fuse', os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x20000) or libc.mount(b'none', b'/', None, 0x44000, None):
        raise OSError(ctypes.get_errno(), 'unshare')
    options = f'fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other'.encode()
    if libc.mount(b'x', mount.encode(), b'fuse', 0, options):
        raise OSError(ctypes.get_errno(), 'mount')
except OSError as e:
    print('cannot', e, flush=True)
    sys.exit()
def attributes(inode):
    mode, size = (stat.S_IFDIR | 0o755, 0) if inode == 1 else (stat.S_IFREG | 0o755, len(data))
    return struct.pack('<QQQQQQIIIIIIIIII', inode, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
def reply(unique, body=b'', error=0):
    os.write(fd, struct.pack('<IiQ', 16 + len(body), error, unique) + body)
if os.fork() == 0:
    os.close(fd)
    # In this mount namespace, and beside the server.
    os.execv(program, [program, mount])
while True:
    try:
        request = os.read(fd, 1 << 18)
    except InterruptedError:
        continue
    except OSError:
        break
    if hung:
        continue
    length, kind, unique, node = struct.unpack_from('<IIQQ', request)
    body = request[40:]
    if kind == 26:
        reply(unique, struct.pack('<IIIIHHIIHHI', 7, 31, 131072, 0, 12, 10, 131072, 1, 0, 0, 0) + b'\0' * 24)
    elif kind == 1 and body[:-1] == b'f':
        reply(unique, struct.pack('<QQQQII', 2, 0, 0, 0, 0, 0) + attributes(2))
    elif kind == 1:
        reply(unique, error=-2)
    elif kind == 3:
        reply(unique, struct.pack('<QII', 0, 0, 0) + attributes(node))
    elif kind in (14, 27):
        reply(unique, struct.pack('<QII', 1, 0, 0))
    elif kind == 15:
        handle, offset, size = struct.unpack_from('<QQI', body)
        reply(unique, data[offset:offset + size])
    elif kind in (18, 29, 25):
        reply(unique)
    elif kind not in (2, 42):
        reply(unique, error=-38)
"#;

#[test]
fn a_mount_that_does_not_answer_costs_its_file() {
    let directory = directory();
    let mount = directory.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let file = cc(directory.path(), "served", WAITS, &["-g"]);
    // Starts the served program, then asks `wstate` in the same mount namespace, before and after the silence.
    let script = directory.path().join("ask");
    let text = format!(
        "#!/bin/sh\n\"$1/f\" > {out} & peer=$!\nuntil grep -q ready {out}; do :; done\n\
         {wstate} attach $peer --json > {before}; echo $? > {before}.code\n\
         kill -USR1 $PPID\n\
         {wstate} attach $peer --json > {after}; echo $? > {after}.code\n\
         {wstate} core \"$1/f\" 2> {named}; echo $? > {named}.code\n\
         kill -9 $peer; kill -9 $PPID\n",
        out = directory.path().join("out").display(),
        before = directory.path().join("before").display(),
        after = directory.path().join("after").display(),
        named = directory.path().join("named").display(),
        wstate = env!("CARGO_BIN_EXE_wstate"),
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c".as_ref(), FILE_SYSTEM.as_ref(), mount.as_os_str(), file.as_os_str(), script.as_os_str()]);
    command.process_group(0).stdin(Stdio::null());
    let said = String::from_utf8(command.output().expect("python3 is there").stdout).unwrap();
    if said.contains("cannot") {
        return missing(said);
    }
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let report = |name: &str| serde_json::from_str::<Value>(&read(name)).unwrap();
    let before = report("before");
    assert!(names(&before).iter().any(|n| n == "main") && read("before").contains("served.c"), "{before}");
    assert_eq!((read("before.code").as_str(), told(&before, "did not answer")), ("0\n", 0), "{before}");
    let after = report("after");
    assert_eq!((read("after.code").as_str(), told(&after, "did not answer")), ("1\n", 1), "{after}");
    // The stack is there, and the names of what answers.
    let frames = |report: &Value| report["threads"][0]["frames"].as_array().unwrap().len();
    assert!(frames(&after) >= 3 && frames(&after) <= frames(&before), "{after}");
    assert!(names(&after).iter().any(|n| n.contains("pause")), "{after}");
    assert_eq!(read("named.code"), "2\n");
    assert!(read("named").contains("does not answer"), "{}", read("named"));
}

/// Files that others name are opened in one place. What is read elsewhere is the kernel's own, or this program's.
#[test]
fn foreign_files_are_opened_in_one_place() {
    // File, and why it may open what it opens.
    const OWN: &[(&str, &str)] = &[
        ("src/process/files", "the place"),
        ("src/process/live", "/proc/PID of the process"),
        ("src/process/callback.rs", "/proc/PID of the process"),
        ("src/process/unpack.rs", "how much memory is free"),
        ("src/cli/doctor.rs", "/proc and /sys"),
        ("src/cli/output.rs", "the output"),
        ("src/cli/plugin.rs", "whether plugins are installed, and what Python compiled them to"),
        ("src/server/requests.rs", "symbol files of its own"),
        ("src/program.rs", "whether the output is a file"),
    ];
    const WAYS: &[&str] = &[
        "File::open",
        "File::options",
        "OpenOptions",
        "fs::read",
        "fs::metadata",
        "fs::copy",
        "fs::canonicalize",
        ".canonicalize()",
        ".exists()",
        ".is_file()",
        ".is_dir()",
        "path.metadata()",
        ".read_link()",
        "Mmap::map",
        "MmapOptions::new().map(",
        "libc::open",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for path in rust_files(&root.join("src")) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        let is_test = name.ends_with("tests.rs") || name.ends_with("testing.rs") || name.ends_with("own_process.rs");
        if is_test || OWN.iter().any(|(own, _)| name.starts_with(own)) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            // `MappedFile::opened` is another.
            let is_whole = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric());
            if WAYS.iter().any(|way| line.match_indices(way).any(|(at, _)| way.starts_with('.') || is_whole(at))) {
                found.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "use `process::files`:\n{}", found.join("\n"));
}
