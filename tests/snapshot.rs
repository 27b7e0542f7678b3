//! `wstate snapshot` and `wstate image`: images from outside are those that the runtime makes in process, byte for byte.

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use support::{Host, Profile, wstate};
use tempfile::TempDir;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Takes an image and returns where it is, and what was said.
fn snapshot(directory: &TempDir, target: &[&str], code: i32) -> (PathBuf, String) {
    let path = directory.path().join("image");
    let Output { status, stdout, stderr } =
        wstate(&[&["snapshot", "-o", path.to_str().expect("text")], target].concat());
    assert_eq!(status.code(), Some(code), "{target:?}: {}{}", text(&stdout), text(&stderr));
    (path, text(&stdout))
}

/// Compares without a copy of either.
fn same(ours: &Path, theirs: &Path) -> bool {
    // SAFETY: nothing else has these files open for writing.
    #[allow(unsafe_code)]
    let map = |path: &Path| unsafe { memmap2::Mmap::map(&std::fs::File::open(path).expect("a file")) }.expect("a map");
    map(ours)[..] == map(theirs)[..]
}

fn wasm(directory: &TempDir, text: &str) -> String {
    let path = directory.path().join("guest.wasm");
    std::fs::write(&path, wat::parse_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))).expect("a file");
    path.to_str().expect("text").to_string()
}

#[test]
fn images_of_every_stop_are_the_runtimes_own() {
    let stops = [
        "sleep",
        "globals",
        "deep",
        "floats",
        "call-indirect",
        "args7",
        "args-float",
        "trap-unreachable",
        "trap-div",
        "nested",
        "tiering",
    ];
    for stop in stops {
        let host = Host::start(stop, &["--depth", "50"], Profile::Debug);
        let truth = host.truth().and_then(|t| t.instance).unwrap_or_else(|| panic!("{stop} has a truth"));
        let directory = tempfile::tempdir().expect("a directory");
        let pid = host.pid().to_string();
        // What can be gone on from is another question.
        let path = directory.path().join("image");
        let done = wstate(&["snapshot", "-p", &pid, "-o", path.to_str().expect("text")]);
        assert!(matches!(done.status.code(), Some(0 | 1)), "{stop}: {}", text(&done.stderr));
        assert!(std::fs::read(&path).expect("an image") == truth, "{stop}: {}", text(&done.stdout));
    }
}

#[test]
fn frames_alone_are_the_runtimes_own() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let directory = tempfile::tempdir().expect("a directory");
    let (path, _) = snapshot(&directory, &["-p", &host.pid().to_string(), "--execution-state"], 0);
    assert!(std::fs::read(&path).expect("an image") == host.truth().expect("a truth").image);
}

/// Globals whose raw bits are easily lost, two of them imported, and a memory with something at both ends.
fn guest(pages: u32) -> String {
    let end = u64::from(pages) * 65536 - 4;
    format!(
        r#"(module
  (import "env" "stop" (func $stop (param i32)))
  (import "env" "answer" (global $answer i32))
  (import "env" "ratio" (global $ratio (mut f64)))
  (global $a (mut i32) (i32.const 1))
  (global $b (mut i64) (i64.const -2))
  (global $c (mut f32) (f32.const 3))
  (global $d (mut f64) (f64.const 4))
  (global $e i32 (i32.const -5))
  (global $f i64 (i64.const 0x7fffffffffffffff))
  (global $g f32 (f32.const nan:0x2abcde))
  (global $h f64 (f64.const -nan:0x7123456789abc))
  (global $i f32 (f32.const -0))
  (global $j (mut i32) (global.get $answer))
  (memory (export "memory") {pages} {pages})
  (data (i32.const 16) "recognise me")
  (func (export "run") (local $x i32)
    (i32.store (i32.const {end}) (i32.const 0x5eed5eed))
    (i32.store (i32.const {middle}) (i32.const 0x5eed))
    (drop (i32.load (i32.const {read})))
    (global.set $a (i32.const -100))
    (global.set $b (i64.const 0x8000000000000001))
    (global.set $c (f32.const -nan:0x1))
    (global.set $d (f64.const nan:0x8000000000001))
    (local.set $x (global.get $answer))
    (call $stop (i32.const 45))))"#,
        middle = end / 2,
        read = (end / 4) & !3,
    )
}

/// From outside, live and from a core, against the runtime's own image.
fn memory_of(pages: u32, with_core: bool) {
    let directory = tempfile::tempdir().expect("a directory");
    let wasm = wasm(&directory, &guest(pages));
    let flags = ["--wasm", &wasm, "--call", "run", "--truth-memory"];
    let host = Host::start("wasm", &flags, Profile::Release);
    let truth = host.directory.path().join("truth.instance");
    let pid = host.pid().to_string();
    let (image, said) = snapshot(&directory, &["-p", &pid, "--with-imports"], 0);
    assert!(same(&image, &truth), "{pages} pages: {said}");
    assert!(said.contains("resumable: behind a call"), "{said}");
    let imports = std::fs::read_to_string(image.with_extension("imports.json")).expect("the imports");
    let imports: serde_json::Value = serde_json::from_str(&imports).expect("JSON");
    assert_eq!(
        imports,
        serde_json::json!([
            {"index": 0, "type": "i32", "bits": format!("{:#034x}", 4242)},
            {"index": 1, "type": "f64", "bits": format!("{:#034x}", 4242f64.to_bits())},
        ])
    );
    let size = image.metadata().expect("a file");
    assert!(size.len() > u64::from(pages) * 65536);
    assert!(size.blocks() * 512 < 128 << 10, "{} bytes on disk", size.blocks() * 512);
    if with_core {
        let prefix = directory.path().join("core");
        let made = std::process::Command::new("gcore").arg("-o").arg(&prefix).arg(&pid).output().expect("gcore");
        let core = directory.path().join(format!("core.{pid}"));
        assert!(core.exists(), "{}", text(&made.stderr));
        std::fs::remove_file(&image).expect("the image");
        let (image, said) = snapshot(&directory, &["-c", core.to_str().expect("text")], 0);
        assert!(same(&image, &truth), "{pages} pages, core: {said}");
        assert!(image.metadata().expect("a file").blocks() * 512 < 128 << 10);
    }
}

#[test]
fn a_memory_of_one_page() {
    memory_of(1, true);
}

#[test]
fn a_memory_of_a_mebibyte() {
    memory_of(16, true);
}

#[test]
fn a_memory_of_a_gibibyte() {
    memory_of(16384, false);
}

#[test]
fn a_file_that_is_there_stays_where_there_is_no_image() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    std::fs::write(&path, "old").expect("a file");
    let host = Host::start("grow", &["--track-state", "off"], Profile::Debug);
    let (_, _) = snapshot(&directory, &["-p", &host.pid().to_string()], 2);
    assert_eq!(std::fs::read(&path).expect("the file"), b"old");
    assert_eq!(std::fs::read_dir(directory.path()).expect("the directory").count(), 1);
}

/// Output and exit code of `wstate image`.
fn image(arguments: &[&str]) -> (String, Option<i32>) {
    let done = wstate(&[&["image"], arguments].concat());
    (text(&done.stdout) + &text(&done.stderr), done.status.code())
}

#[test]
fn images_are_printed_and_compared() {
    let host = Host::start("globals", &[], Profile::Debug);
    let directory = tempfile::tempdir().expect("a directory");
    let (path, _) = snapshot(&directory, &["-p", &host.pid().to_string()], 0);
    let file = path.to_str().expect("text");

    let (all, code) = image(&[file]);
    assert_eq!(code, Some(0), "{all}");
    assert!(all.starts_with(&host.truth().expect("a truth").text), "{all}");
    assert!(all.contains("\nMemory: 65536 bytes (1 pages)\nGlobals:\n"), "{all}");
    assert!(all.contains("  [0] = 0xffffffffffffffffffffffffffffff9c (-100)\n"), "{all}");
    let (bytes, code) = image(&[file, "--hexdump", "16", "12"]);
    assert_eq!(code, Some(0), "{bytes}");
    assert!(bytes.starts_with("0x00000010  72 65 63 6f") && bytes.contains("recognise me"), "{bytes}");
    let (beyond, code) = image(&[file, "--hexdump", "65530", "12"]);
    assert_eq!((code, beyond.contains("are not inside")), (Some(2), true), "{beyond}");
    let json: serde_json::Value = serde_json::from_str(&image(&[file, "--json"]).0).expect("JSON");
    assert_eq!((&json["kind"], &json["memory_bytes"]), (&"instance".into(), &65536.into()));
    assert_eq!(json["globals"][2], "0x42060000");

    assert_eq!(image(&[file, "--diff", file]), ("no difference\n".to_string(), Some(0)));
    let mut other = std::fs::read(&path).expect("the image");
    other[9 + 18] ^= 1;
    other[9 + 65536 + 8] ^= 1;
    let changed = directory.path().join("changed");
    std::fs::write(&changed, other).expect("a file");
    let (difference, code) = image(&[file, "--diff", changed.to_str().expect("text")]);
    assert_eq!(code, Some(1));
    let global = "global 0: 0xffffffffffffffffffffffffffffff9c -> 0xffffffffffffffffffffffffffffff9d";
    assert_eq!(difference, format!("memory 0x00000012: 1 bytes\n{global}\n"));
    let (error, code) = image(&["/bin/true"]);
    assert_eq!((code, error.contains("is no image")), (Some(2), true), "{error}");
}
