//! Caps of `src/limits.rs` are reached: what is beyond them is left out, and the answer says so or is the same.

use crate::support::rust_files;
use crate::support::small_core::{counted, question};
use std::path::{Path, PathBuf};
use wstate::arch::{Machine, Registers, x64};
use wstate::limits;
use wstate::process::core::CoreTarget;
use wstate::process::elf::Headers;
use wstate::process::objects::{Objects, SearchPaths};
use wstate::process::testing::CoreBuilder;
use wstate::process::{Memory, Target};
use wstate::report::EndKind;
use wstate::report::text::{clean, clean_message};
use wstate::runtime::all::FindOptions;

/// The report, if it takes no more readings of memory than `most`. No clock decides: a case that does more than it should
/// reads more.
fn analyse(core: &CoreTarget, values: bool, most: usize) -> wstate::report::Report {
    let mut options = question();
    options.values = values;
    let (report, work) = counted(core, &options);
    assert!(work.reads <= most, "{work:?}, of at most {most}");
    report
}

fn at(pc: u64, sp: u64, rbp: u64) -> Registers {
    let mut registers = Registers::unknown(Machine::X64);
    for (reg, value) in [(x64::RIP, pc), (x64::RSP, sp), (x64::RBP, rbp)] {
        registers.set(reg, value);
    }
    registers
}

#[test]
fn seventy_thousand_segments() {
    const COUNT: u64 = 70_000;
    let mut builder = CoreBuilder::new().thread(7, 11, &at(0x10_0000, 0x10_0000, 0), 0);
    for i in 0..COUNT {
        builder = builder.memory(0x10_0000 + i * 0x2000, 6, &i.to_le_bytes());
    }
    let bytes = builder.build();
    let open = |bytes: &[u8]| {
        CoreTarget::from_bytes(Path::new("core.test"), std::sync::Arc::new(bytes.to_vec()), &SearchPaths::default())
    };
    let core = open(&bytes).unwrap();
    assert!(core.notes().is_empty(), "{:?}", core.notes());
    assert_eq!(core.mappings().len() as u64, COUNT);
    for i in [0, COUNT / 2, COUNT - 1] {
        assert_eq!(core.read_u64(0x10_0000 + i * 0x2000), Ok(i));
    }
    assert_eq!(analyse(&core, true, 1000).threads[0].frames.len(), 1);
    // Without the end the number is lost; the segments are not.
    let cut = open(&bytes[..bytes.len() - 64]).unwrap();
    assert!(cut.notes()[0].contains("number of segments"), "{:?}", cut.notes());
    assert_eq!(cut.read_u64(0x10_0000 + (COUNT - 1) * 0x2000), Ok(COUNT - 1));
    // A number that lies is no reason to look for more than there are.
    let mut lying = bytes.clone();
    let info = bytes.len() - 64 + 44;
    lying[info..info + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(open(&lying).unwrap().notes()[0].contains("cut off"));
}

#[test]
fn threads() {
    let mut status = vec![0; 336];
    let mut builder = CoreBuilder::new().memory(0x1000, 6, &[0; 16]);
    for tid in 1..=limits::MAX_THREADS as u32 + 2 {
        status[32..36].copy_from_slice(&tid.to_le_bytes());
        builder = builder.note(b"CORE", 1, &status);
    }
    let core = builder.open().unwrap();
    assert_eq!(core.threads().len(), limits::MAX_THREADS);
    assert_eq!(core.notes(), ["the core lists more threads than wstate looks at: the others are left out"]);
    assert_eq!(analyse(&core, false, 10 * limits::MAX_THREADS).threads.len(), limits::MAX_THREADS);
}

#[test]
fn mapped_files() {
    let long = format!("/{}", "x".repeat(limits::MAX_PATH));
    let mut builder = CoreBuilder::new().memory(0x1000, 6, &[0; 16]).file(0x2000, 0x3000, 0, &long);
    for i in 0..=limits::MAX_OBJECTS as u64 {
        let start = 0x10_0000 + i * 0x1000;
        builder = builder.segment(start, 0x1000, 5, &[]).file(start, start + 0x1000, 0, &format!("/nowhere/{i}.so"));
    }
    let core = builder.open().unwrap();
    assert!(core.mapping_at(0x2000).is_none(), "a path that no file has");
    assert_eq!(core.mappings().len(), limits::MAX_OBJECTS + 2);
    let objects = Objects::load(&core, &SearchPaths::default());
    assert_eq!(objects.iter().count(), limits::MAX_OBJECTS);
}

#[test]
fn mappings_of_one_file() {
    let mut builder = CoreBuilder::new().memory(0x1000, 6, &[0; 16]);
    for i in 0..=limits::MAX_MAPPINGS as u64 {
        builder = builder.file(0x10_0000 + i * 0x1000, 0x10_1000 + i * 0x1000, 0, "/x");
    }
    let core = builder.open().unwrap();
    assert_eq!(core.notes()[0], "the core lists more mapped files than wstate looks at: the others are left out");
    assert!(core.mappings().len() <= limits::MAX_MAPPINGS + 1, "{}", core.mappings().len());
}

#[test]
fn frames_of_one_thread_and_of_all() {
    // Frame records that lead to each other, in code that nobody knows and that consists of calls of two bytes. The fourth thread takes what the others leave.
    const CODE: u64 = 0x10_0000;
    const STACK: u64 = 0x2000_0000;
    let count = limits::MAX_FRAMES as u64 + 10;
    let records = (0..count).flat_map(|i| [STACK + (i + 1) * 16, CODE + 0x10 + 2 * (i % 0x80)]);
    let stack: Vec<u8> = records.flat_map(u64::to_le_bytes).collect();
    let mut builder = CoreBuilder::new().memory(CODE, 5, &[0xff, 0xd0].repeat(0x800)).memory(STACK, 6, &stack);
    for tid in 1..=5 {
        builder = builder.thread(tid, 0, &at(CODE, STACK, STACK), 0);
    }
    let report = analyse(&builder.open().unwrap(), false, 10 * limits::MAX_FRAMES_TOTAL);
    let frames: Vec<usize> = report.threads.iter().map(|t| t.frames.len()).collect();
    let last = limits::MAX_FRAMES_TOTAL - 3 * limits::MAX_FRAMES;
    assert_eq!(frames, [limits::MAX_FRAMES, limits::MAX_FRAMES, limits::MAX_FRAMES, last, limits::MIN_FRAMES]);
    for thread in &report.threads {
        let end = thread.end.as_ref().unwrap();
        let why = end.why.as_deref().unwrap_or_default();
        assert!(end.kind == EndKind::Lost && why.starts_with("wstate stops after"), "{why}");
    }
}

#[test]
fn files_that_the_user_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large");
    let read = |artifacts: &[PathBuf], wasm: &[PathBuf]| {
        let found = FindOptions::read(Vec::new(), artifacts, wasm);
        assert!(found.singlepass.artifacts.is_empty() && found.wasm.is_empty(), "read");
        found.unusable[0].1.clone()
    };
    for (is_wasm, most) in [(false, limits::MAX_IMAGE_BYTES), (true, limits::MAX_WASM_BYTES)] {
        let ask = |path: &Path| match is_wasm {
            true => read(&[], &[path.into()]),
            false => read(&[path.into()], &[]),
        };
        // Sparse: neither written nor read.
        std::fs::File::create(&path).unwrap().set_len(most + 1).unwrap();
        assert!(ask(&path).ends_with(&format!("it has {} bytes, and wstate reads at most {most}", most + 1)));
        for (endless, what) in [("/dev/zero", "device"), ("/", "directory")] {
            let why = ask(Path::new(endless));
            assert!(why.contains(&format!("it is a {what}, not a regular file")), "{why}");
        }
    }
}

#[test]
fn names_and_messages() {
    for (clean, most) in
        [(clean as fn(&str) -> String, limits::MAX_TEXT_NAME), (clean_message, limits::MAX_TEXT_MESSAGE)]
    {
        assert_eq!(clean(&"ä".repeat(most)), "ä".repeat(most));
        assert_eq!(clean(&"ä".repeat(most + 1)), format!("{}…", "ä".repeat(most)));
    }
}

/// An ELF file of these program headers (kind, offset, size), and `size` bytes behind them.
fn elf(phdrs: &[(u32, u64, u64)], size: usize) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend([3u16, 62].into_iter().flat_map(u16::to_le_bytes));
    out.extend(1u32.to_le_bytes());
    out.extend([0u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    out.extend(0u32.to_le_bytes());
    out.extend([64, 56, phdrs.len() as u16, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    for (kind, offset, len) in phdrs {
        out.extend([*kind, 4].into_iter().flat_map(u32::to_le_bytes));
        out.extend([*offset, *offset, *offset, *len, *len, 4].into_iter().flat_map(u64::to_le_bytes));
    }
    out.resize(out.len() + size, 0);
    out
}

#[test]
fn program_headers_and_notes_of_a_file() {
    let most = usize::from(limits::MAX_PROGRAM_HEADERS);
    assert!(Headers::of_file(&elf(&vec![(1, 0, 0); most], 0)).is_some());
    assert!(Headers::of_file(&elf(&vec![(1, 0, 0); most + 1], 0)).is_none());
    // A build id of a usual size is looked for in notes of a usual size.
    let first = 64 + 56;
    for (len, id, found) in [
        (limits::MAX_NOTE_BYTES, 4, true),
        (limits::MAX_NOTE_BYTES + 1, 4, false),
        (limits::MAX_NOTE_BYTES, limits::MAX_BUILD_ID_BYTES, true),
        (limits::MAX_NOTE_BYTES, limits::MAX_BUILD_ID_BYTES + 1, false),
    ] {
        let mut file = elf(&[(4, first, len)], len as usize);
        let sizes = [4, id as u32, 3].map(u32::to_le_bytes).concat();
        let note = [&sizes[..], b"GNU\0", &vec![7; id]].concat();
        file[first as usize..first as usize + note.len()].copy_from_slice(&note);
        let headers = Headers::of_file(&file).unwrap();
        assert_eq!(headers.build_id_of_file(&file).is_some(), found, "{len} {id}");
    }
    // And so is a dynamic section that tells whether the file is the one in memory.
    for (len, expected) in [(limits::MAX_DYNAMIC_BYTES, Some(true)), (limits::MAX_DYNAMIC_BYTES + 16, None)] {
        let file = elf(&[(2, first, len)], len as usize);
        let core = CoreBuilder::new().memory(0x10_0000, 6, &file).file(0x10_0000, 0x20_0000, 0, "/x").open().unwrap();
        let mapping = core.mapping_at(0x10_0000).unwrap();
        let headers = Headers::of_file(&file).unwrap();
        assert_eq!(headers.dynamic_agrees(&file, &[mapping], &core), expected);
    }
}

#[test]
fn auxiliary_vectors() {
    let most = limits::MAX_AUXV as u64;
    let builder = (1..=most + 1).fold(CoreBuilder::new(), |core, key| core.auxv(key, key));
    let core = builder.open().unwrap();
    assert_eq!((core.auxv(most), core.auxv(most + 1)), (Some(most), None));
}

/// A cap that no test names is one that nobody has seen work.
#[test]
fn every_cap_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (own, tests) = (rust_files(&root.join("src")), rust_files(&root.join("tests")));
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut named = std::collections::HashSet::new();
    for path in own.iter().chain(&tests) {
        let text = std::fs::read_to_string(path).unwrap();
        // In src/ what stands behind the head of the tests, or a file of tests.
        let is_test = tests.contains(path) || path.ends_with("tests.rs") || path.iter().any(|part| part == "tests");
        let text = if is_test { &text } else { text.split_once("mod tests {\n").map_or("", |t| t.1) };
        named.extend(text.split(|c| !is_word(c)).filter(|w| w.starts_with("M")).map(String::from));
    }
    let constants = std::fs::read_to_string(root.join("src/limits.rs")).unwrap();
    let names = constants.lines().filter_map(|l| l.strip_prefix("pub const ")?.split(':').next());
    let without: Vec<&str> = names.filter(|n| !named.contains(*n)).collect();
    assert!(without.is_empty(), "caps that no test names: {without:?}");
}
