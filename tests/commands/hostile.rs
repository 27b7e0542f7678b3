//! Broken, cut, lying and foreign cores: whatever they hold, there is an answer or a refusal, in time, within bounds and
//! without a panic; and what can be shown is shown.
//!
//! The cores are real ones (the kernel's, of a host whose guest is in a trap). Most cases run in this process on a core
//! of the few pages that an analysis reads, and so thousands of them fit into seconds; some go through the binary.

use crate::support;
use crate::support::missing::missing;
use crate::support::small_core::{PAGE, SmallCore, Work, counted, question, wasm_frames};
use crate::support::{PATIENCE, Profile, host_singlepass};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use wstate::arch::{Machine, Registers, x64};
use wstate::process::core::CoreTarget;
use wstate::process::objects::SearchPaths;
use wstate::process::testing::CoreBuilder;
use wstate::process::{Memory, Target};
use wstate::report::{Report, escape, text};
use wstate::session::{Route, Session};

/// Most that one case may read: what finds nothing searches for it on all routes, and a header that lies of executable memory
/// has the beginning of each of so many pages looked at.
const MOST: Work = Work { reads: wstate::limits::MAX_CODE_PAGES as usize + 100_000, bytes: 1 << 30 };
/// `leaf`, `fact(0)` to `fact(5)`, `run`.
const WASM_FRAMES: usize = 8;

/// A core that the kernel wrote of `trap-div`, and a copy of the host that nothing else uses.
struct Real {
    core: PathBuf,
    bytes: Vec<u8>,
    exe: PathBuf,
    directory: tempfile::TempDir,
}

/// `None` where the kernel does not write cores next to the process, and that is allowed.
fn real() -> Option<Real> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let exe = directory.path().join("host-copy");
    support::copy_program(&host_singlepass(Profile::Debug), &exe);
    let status = Command::new(&exe)
        .args(["--thread", "--core", "--cwd"])
        .arg(directory.path())
        .arg("trap-div")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let found = std::fs::read_dir(directory.path()).unwrap().flatten().map(|e| e.path());
    let core = found.into_iter().find(|p| p.file_name().unwrap().to_string_lossy().starts_with("core"));
    let Some(core) = core else {
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
        missing(format!("no core after {status}, core_pattern is {:?}", pattern.trim_end()));
        return None;
    };
    Some(Real { bytes: std::fs::read(&core).unwrap(), core, exe, directory })
}

fn open(bytes: Vec<u8>) -> Result<CoreTarget, wstate::error::Error> {
    CoreTarget::from_bytes(Path::new("core.test"), Arc::new(bytes), &SearchPaths::default())
}

/// Asks for everything and looks at the answer. `None`: refused.
fn survive(what: &str, bytes: Vec<u8>) -> Option<Report> {
    let size = bytes.len();
    let core = open(bytes).ok()?;
    let mut options = question();
    options.limit = Some(300);
    let (report, work) = counted(&core, &options);
    assert!(work.reads < MOST.reads && work.bytes < MOST.bytes, "{what}: {work:?}");
    let text = report.to_text(text::TextOptions { verbose: true, ..Default::default() });
    assert!(!text.chars().any(|c| c != '\n' && escape::is_unprintable(c)), "{what}: {text:?}");
    let json = report.to_json(false);
    support::schema::check("report", &serde_json::from_str(&json).unwrap());
    let bound = (64 << 10) + 64 * size + 20_000 * report.threads.iter().map(|t| t.frames.len()).sum::<usize>();
    assert!(text.len() + json.len() < bound, "{what}: {} + {} bytes from {size}", text.len(), json.len());
    assert!(report.threads.iter().all(|t| t.frames.len() <= 300), "{what}");
    if size.is_multiple_of(4) {
        options.image = true;
        let _ = Session::on(&core, &options).stacks();
    }
    Some(report)
}

/// Made once for all tests of this process.
fn cut() -> Option<&'static SmallCore> {
    static CUT: OnceLock<Option<SmallCore>> = OnceLock::new();
    CUT.get_or_init(|| {
        let real = real()?;
        let core = CoreTarget::open(&real.core, &SearchPaths::default()).unwrap();
        Some(SmallCore::of(&core, &[Route::Vmctx], &|_| "/srv/host".to_string()))
    })
    .as_ref()
}

/// Random numbers of a seed, so that a failure can be repeated (xorshift64*).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }

    fn byte(&mut self) -> u8 {
        match self.roll(4) {
            0 => 0,
            1 => 0xff,
            _ => self.roll(256) as u8,
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

#[test]
fn the_pages_that_an_analysis_reads_are_enough_for_it() {
    let Some(cut) = cut() else { return };
    let bytes = cut.builder().build();
    assert!(bytes.len() < 512 << 10, "{} bytes", bytes.len());
    let report = survive("whole", bytes).unwrap();
    assert_eq!(wasm_frames(&report), WASM_FRAMES, "{report:?}");
}

#[test]
fn cut_off_anywhere() {
    let Some(cut) = cut() else { return };
    let whole = cut.builder().build();
    let headers = 64 + 56 * (cut.segments.len() + 1) + 1600;
    let mut dice = Dice::new(1);
    let mut sizes: Vec<usize> = (0..headers.min(whole.len())).step_by(11).collect();
    sizes.extend((0..100).map(|_| dice.roll(whole.len())));
    sizes.extend([whole.len() - 1, whole.len()]);
    sizes.sort_unstable();
    let mut complete = false;
    for size in sizes {
        let report = survive(&format!("cut at {size}"), whole[..size].to_vec());
        assert_eq!(report.is_none(), size < 64 + 56, "{size}");
        // More of a core never shows less of its Wasm: what is missing is at the end.
        let all = report.is_some_and(|r| wasm_frames(&r) == WASM_FRAMES);
        assert!(all || !complete, "{size}: shown with less of the core");
        complete = all;
    }
    assert!(complete);
}

#[test]
fn headers_and_notes_that_lie() {
    let Some(cut) = cut() else { return };
    let whole = cut.builder().build();
    let headers = 64 + 56 * (cut.segments.len() + 1) + 1600;
    let mut dice = Dice::new(2);
    // All of the file's header and of the first two program headers, then one of eight.
    let end = headers.min(whole.len());
    for at in (0..176).chain((176..end).filter(|_| dice.roll(8) == 0).collect::<Vec<_>>()) {
        let mut bytes = whole.clone();
        bytes[at] = match dice.roll(3) {
            0 => 0xff,
            1 => bytes[at] ^ (1 << dice.roll(8)),
            _ => bytes[at].wrapping_add(1),
        };
        survive(&format!("byte {at} is {:#x}", bytes[at]), bytes);
    }
}

#[test]
fn a_cached_image_with_broken_bytes() {
    let Some(cut) = cut() else { return };
    let whole = cut.builder().build();
    // The image begins with the length of its code (one page) and the code, which is also mapped executable.
    let codes = cut.segments.iter().filter(|s| s.1 & 1 == 1).filter_map(|s| s.2.as_ref().ok());
    let image = codes
        .filter_map(|code| find(&whole, &[&(PAGE as u32).to_le_bytes()[..], code.get(..32)?].concat()))
        .next()
        .expect("the image is among the pages that were read");
    let tables = image + 4 + PAGE as usize;
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let mut bytes = whole.clone();
        // All over it, or in the tables and maps behind the code.
        let (from, len) = if seed % 3 == 0 { (image, 12 << 10) } else { (tables, 3 << 10) };
        for _ in 0..1 + dice.roll(8) {
            let at = from + dice.roll(len.min(whole.len() - from));
            bytes[at] = dice.byte();
        }
        let report = survive(&format!("image, seed {seed}"), bytes).unwrap();
        assert!(wasm_frames(&report) <= WASM_FRAMES, "seed {seed}: frames that are not there");
    }
}

#[test]
fn a_stack_with_broken_words_and_pages() {
    let Some(cut) = cut() else { return };
    let stack = cut.stack();
    for seed in 0..120 {
        let mut dice = Dice::new(seed);
        let mut cut = cut.clone();
        let start = cut.segments[stack].0;
        let sp = cut.threads[0].registers.sp().unwrap();
        let Ok(bytes) = &mut cut.segments[stack].2 else { unreachable!() };
        let top = (sp - start) as usize;
        if seed % 4 == 0 {
            let page = dice.roll(bytes.len() / PAGE as usize) * PAGE as usize;
            bytes[page..page + PAGE as usize].iter_mut().for_each(|b| *b = !*b);
        } else {
            for _ in 0..1 + dice.roll(12) {
                let at = top + dice.roll((bytes.len() - top).min(1500));
                bytes[at] = dice.byte();
            }
        }
        let report = survive(&format!("stack, seed {seed}"), cut.builder().build()).unwrap();
        assert!(wasm_frames(&report) >= 1, "seed {seed}: the frame in the trap needs registers and code only");
    }
}

#[test]
fn every_page_of_it_filled_with_something_else() {
    let Some(cut) = cut() else { return };
    for (i, (address, ..)) in cut.segments.iter().enumerate() {
        for fill in [0, 0xff, 0x41] {
            let mut cut = cut.clone();
            let Ok(bytes) = &mut cut.segments[i].2 else { continue };
            bytes.fill(fill);
            survive(&format!("segment at {address:#x} filled with {fill:#x}"), cut.builder().build()).unwrap();
        }
        let mut without = cut.clone();
        let _ = without.segments.remove(i);
        survive(&format!("without the segment at {address:#x}"), without.builder().build()).unwrap();
    }
}

/// A word as damaged stacks and registers have them: near something that exists, or anything.
fn word(cut: &'static SmallCore) -> impl Strategy<Value = u64> {
    let starts: Vec<(u64, u64)> = cut
        .segments
        .iter()
        .map(|(start, _, content)| (*start, content.as_ref().map_or_else(|size| *size, |b| b.len() as u64)))
        .collect();
    let near = proptest::sample::select(starts)
        .prop_flat_map(|(start, size)| (0..size.clamp(1, 1 << 20)).prop_map(move |o| start + o));
    prop_oneof![4 => near.clone(), 2 => near.prop_map(|a| a & !7), 1 => any::<u64>(), 1 => 0..0x1000u64, 1 => Just(u64::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// The whole line over real code and maps, but any registers and any stack.
    #[test]
    fn any_registers_and_any_stack(
        seed in any::<u64>(),
        registers in cut().map_or_else(|| Just(Vec::new()).boxed(), |c| proptest::collection::vec(word(c), 17).boxed()),
        words in cut().map_or_else(|| Just(Vec::new()).boxed(), |c| proptest::collection::vec(word(c), 0..200).boxed()),
        in_code in any::<bool>(),
        on_stack in any::<bool>(),
    ) {
        let Some(cut) = cut() else { return Ok(()) };
        let mut cut = cut.clone();
        let stack = cut.stack();
        let (sp, pc) = (cut.threads[0].registers.sp().unwrap(), cut.threads[0].registers.pc().unwrap());
        let mut all = Registers::unknown(Machine::X64);
        for (i, value) in registers.iter().enumerate() {
            if let Some(reg) = wstate::state::x64::from_index(wstate::state::RegisterIndex(i)) {
                all.set(reg, *value);
            }
        }
        if in_code {
            all.set(x64::RIP, (pc & !0xfff) + seed % 0x300);
        } else {
            all.set(x64::RIP, registers[16]);
        }
        if on_stack {
            all.set(x64::RSP, sp - 64 + seed % 128);
        }
        cut.threads[0].registers = all;
        let start = cut.segments[stack].0;
        let Ok(bytes) = &mut cut.segments[stack].2 else { unreachable!() };
        let top = (sp - start) as usize;
        for (i, value) in words.iter().enumerate() {
            if let Some(slot) = bytes.get_mut(top + 8 * i..top + 8 * i + 8) {
                slot.copy_from_slice(&value.to_le_bytes());
            }
        }
        let report = survive("random", cut.builder().build());
        prop_assert!(report.is_some());
    }
}

/// How the binary ended, and what it wrote.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

/// The binary with 4 GiB of address space and [`PATIENCE`].
fn wstate(what: &str, args: &[&std::ffi::OsStr]) -> Ran {
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 4194304; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_wstate")])
        .args(args)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let reader = |mut pipe: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = reader(Box::new(child.stdout.take().unwrap()));
    let err = reader(Box::new(child.stderr.take().unwrap()));
    let (done, wait) = std::sync::mpsc::channel();
    let pid = child.id();
    let watch = std::thread::spawn(move || {
        if wait.recv_timeout(PATIENCE).is_err() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            return true;
        }
        false
    });
    let status = child.wait().unwrap();
    let _ = done.send(());
    let ran = Ran { code: status.code(), out: out.join().unwrap(), err: err.join().unwrap() };
    assert!(!watch.join().unwrap(), "{what}: no answer within {PATIENCE:?}");
    assert!(matches!(ran.code, Some(0..=2)), "{what}: {status}\n{}", ran.err);
    assert!(!ran.err.contains("panicked") && !ran.out.contains("panicked"), "{what}: {}", ran.err);
    if ran.code == Some(2) && ran.out.is_empty() {
        assert!(ran.err.starts_with("wstate: error: "), "{what}: {}", ran.err);
    }
    ran
}

fn ask(what: &str, core: &Path) -> Ran {
    wstate(what, &["core".as_ref(), core.as_os_str()])
}

fn shown(ran: &Ran) -> usize {
    ran.out.lines().filter(|l| l.starts_with(" #") || l.starts_with('#')).filter(|l| l.contains(" * ")).count()
}

#[test]
fn a_real_core_without_its_executable_with_another_one_and_cut_off() {
    let Some(real) = real() else { return };
    let core = real.core.as_os_str();
    let whole = ask("whole", &real.core);
    assert_eq!(shown(&whole), WASM_FRAMES, "{}", whole.out);

    let nowhere = wstate("-e nowhere", &["core".as_ref(), core, "-e".as_ref(), "/nonexistent/host".as_ref()]);
    assert_eq!(shown(&nowhere), WASM_FRAMES, "{}{}", nowhere.out, nowhere.err);
    let other = wstate("-e other", &["core".as_ref(), core, "-e".as_ref(), env!("CARGO_BIN_EXE_wstate").as_ref()]);
    assert_eq!(shown(&other), WASM_FRAMES, "{}{}", other.out, other.err);
    let directory = wstate("-e /", &["core".as_ref(), core, "-e".as_ref(), "/".as_ref()]);
    assert!(
        directory
            .out
            .contains("the executable / is not used, because it cannot be read: it is a directory, not a regular file"),
        "{}",
        directory.out
    );
    let text = wstate("-e text", &["core".as_ref(), core, "-e".as_ref(), "/proc/self/maps".as_ref()]);
    assert!(text.out.contains("/proc/self/maps"), "{}", text.out);
    assert_eq!(whole.code, Some(0), "{}", whole.out);
    for refused in [&nowhere, &other, &directory, &text] {
        assert_eq!(refused.code, Some(1), "{}", refused.out);
    }

    let moved = real.directory.path().join("moved");
    std::fs::rename(&real.exe, &moved).unwrap();
    let without = ask("moved", &real.core);
    assert_eq!(shown(&without), WASM_FRAMES, "{}", without.out);
    assert!(without.out.contains("host-copy"), "the missing file is named: {}", without.out);
    let named = wstate("-e moved", &["core".as_ref(), core, "-e".as_ref(), moved.as_os_str()]);
    assert_eq!((named.code, shown(&named)), (Some(0), WASM_FRAMES), "{}", named.out);
    assert!(named.out.contains("host_singlepass::"), "native frames come from the file named with -e: {}", named.out);

    // Another build where the executable was.
    std::fs::copy(env!("CARGO_BIN_EXE_wstate"), &real.exe).unwrap();
    let replaced = ask("replaced", &real.core);
    assert_eq!(shown(&replaced), WASM_FRAMES, "{}", replaced.out);
    assert!(!replaced.out.contains("wstate::"), "symbols of a file that is not the one: {}", replaced.out);
    std::fs::remove_file(&real.exe).unwrap();

    // At each segment's start and end, and anywhere. Without the executable there is nothing else in which frames could
    // be found.
    let headers = |at: usize| u64::from_le_bytes(real.bytes[at..at + 8].try_into().unwrap());
    let count = usize::from(u16::from_le_bytes([real.bytes[56], real.bytes[57]]));
    let mut sizes = BTreeSet::from([real.bytes.len() - 1]);
    for i in 0..count {
        let (offset, filesz) = (headers(64 + 56 * i + 8), headers(64 + 56 * i + 32));
        for at in [offset, offset + filesz] {
            sizes.extend((at.saturating_sub(1)..=at + 1).map(|s| (s as usize).min(real.bytes.len())));
        }
    }
    let mut dice = Dice::new(3);
    sizes.extend((0..60).map(|_| dice.roll(real.bytes.len())));
    // Each costs a look at a whole core: by default one of so many that a dozen is left.
    let every = if std::env::var_os("WSTATE_HOSTILE_ALL").is_some() { 1 } else { sizes.len().div_ceil(12) };
    let skip = dice.roll(every);
    let last = sizes.last().copied();
    let sizes: BTreeSet<usize> = sizes.into_iter().skip(skip).step_by(every).chain(last).collect();
    let mut complete = false;
    for (i, &size) in sizes.iter().enumerate() {
        let what = format!("{size} of {} bytes", real.bytes.len());
        let report = survive(&what, real.bytes[..size].to_vec());
        let frames = report.as_ref().map_or(0, wasm_frames);
        assert!(frames == WASM_FRAMES || !complete, "{what}: {frames} frames, and all of them with less of the core");
        complete = frames == WASM_FRAMES;
        // Now and then through the binary.
        if i.is_multiple_of(4) {
            let path = real.directory.path().join("cut");
            std::fs::write(&path, &real.bytes[..size]).unwrap();
            let ran = ask(&what, &path);
            assert_eq!(shown(&ran), frames, "{what}: {}{}", ran.out, ran.err);
            if report.is_some() {
                assert!(format!("{}{}", ran.out, ran.err).contains("cut off"), "{what}: {}", ran.out);
            }
        }
    }
    assert!(complete);
}

#[test]
fn what_is_no_core_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let small =
        CoreBuilder::new().thread(1, 0, &Registers::unknown(Machine::X64), 0).memory(0x1000, 6, &[1; 64]).build();
    let with = |at: usize, bytes: &[u8]| {
        let mut c = small.clone();
        c[at..at + bytes.len()].copy_from_slice(bytes);
        c
    };
    let exe = std::fs::read("/proc/self/exe").unwrap();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "empty"),
        ("text", b"Segmentation fault (core dumped)\n".to_vec(), "it is text, not a core; name the core file first"),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), "gzip"),
        ("zstd", b"\x28\xb5\x2f\xfd\0\0\0\0".to_vec(), "zstd"),
        ("lz4", b"\x04\x22\x4d\x18\0\0\0\0".to_vec(), "lz4"),
        ("32-bit", with(4, &[1]), "32-bit"),
        ("big-endian", with(5, &[2]), "big-endian"),
        ("aarch64", with(18, &[183, 0]), "another machine"),
        ("executable", exe, "executable"),
        ("no segments", with(56, &[0, 0]), "no program headers"),
        ("header only", small[..64].to_vec(), "cut off"),
    ];
    for (name, bytes, expected) in cases {
        std::fs::write(path(name), bytes).unwrap();
        let ran = ask(name, &path(name));
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{name}: {}", ran.err);
        assert!(ran.err.contains(expected), "{name}: {}", ran.err);
    }
    let fifo = path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for file in [directory.path(), Path::new("/dev/null"), Path::new("/dev/zero"), &fifo, &path("missing")] {
        let ran = ask(&file.display().to_string(), file);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{}: {}", file.display(), ran.err);
    }
    // 65535 segments or more: the count is in a section header, which is not there.
    let mut many = with(56, &[0xff, 0xff]);
    many[40..48].copy_from_slice(&(small.len() as u64).to_le_bytes());
    std::fs::write(path("xnum"), many).unwrap();
    let ran = ask("xnum", &path("xnum"));
    assert!(ran.out.contains("number of segments"), "{}{}", ran.out, ran.err);
    // No notes: no thread is known, and that is said.
    let mut silent = small.clone();
    silent[64..68].copy_from_slice(&0u32.to_le_bytes());
    std::fs::write(path("silent"), silent).unwrap();
    let ran = ask("silent", &path("silent"));
    assert_eq!(ran.code, Some(2), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("the core lists no thread") && ran.out.contains("no threads"), "{}", ran.out);
    // A file beside the core that is none is told with the same next step as a core that is none.
    for option in ["--wasm", "--artifact"] {
        let silent = path("silent");
        let ran = wstate(option, &["core".as_ref(), silent.as_ref(), option.as_ref(), fifo.as_ref()]);
        let why = "it is a FIFO, not a regular file; name a file; what comes from a pipe is first written to one";
        assert!(format!("{}{}", ran.out, ran.err).contains(why), "{option}: {}{}", ran.out, ran.err);
    }
    // Segments over each other: the later one is what the process had last, as for every reader of cores.
    let overlapping = CoreBuilder::new()
        .thread(1, 0, &Registers::unknown(Machine::X64), 0)
        .memory(0x1000, 6, &[1; 0x3000])
        .memory(0x2000, 5, &[2; 0x1000]);
    let core = open(overlapping.build()).unwrap();
    let bytes: Vec<u8> = [0x1fff, 0x2000, 0x2fff, 0x3000].map(|at| core.read_vec(at, 1).unwrap()[0]).to_vec();
    assert_eq!((bytes.as_slice(), core.mappings().len()), (&[1, 2, 2, 1][..], 3));
    std::fs::write(path("overlapping"), overlapping.build()).unwrap();
    ask("overlapping", &path("overlapping"));
    // Segments of the whole address space cost nothing.
    let huge = CoreBuilder::new()
        .thread(1, 0, &Registers::unknown(Machine::X64), 0)
        .segment(0, u64::MAX, 7, &[1])
        .segment(0x1000, 1 << 46, 7, &[2; 32]);
    std::fs::write(path("huge"), huge.build()).unwrap();
    ask("huge", &path("huge"));
}

/// Seeds of the fuzz targets: `sh fuzz/seed.sh`.
#[test]
#[ignore = "writes into the directory named by WSTATE_FUZZ_SEEDS"]
fn write_fuzz_seeds() {
    let into = PathBuf::from(std::env::var_os("WSTATE_FUZZ_SEEDS").expect("WSTATE_FUZZ_SEEDS"));
    let cut = cut().expect("a core");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(into.join(target)).unwrap();
        std::fs::write(into.join(target).join(name), bytes).unwrap();
    };
    let real = cut.builder().build();
    put("engine", "trap-div", &real);
    put("core", "trap-div", &real[..real.len().min(24 << 10)]);
    let small = CoreBuilder::new()
        .thread(12, 11, &cut.threads[0].registers, 0x7000)
        .process(11, "app", "app --flag ")
        .auxv(3, 0x40_0040)
        .memory(0x40_0000, 5, &[0x90; 64])
        .segment(0x40_1000, 0x2000, 6, &[2; 128])
        .file(0x40_0000, 0x40_1000, 0, "/nowhere/app");
    put("core", "small", &small.build());
    put("engine", "small", &small.build());
    seeds::write(&put);
}

/// Seeds that need the runtime but no core.
mod seeds {
    use wasmer_runtime_core_near::{compile_with, module::Module};
    use wasmer_singlepass_backend_near::SinglePassCompiler;
    use wstate::runtime::singlepass::module::cache_image::CacheImage;
    use wstate::runtime::singlepass::module::info::Artifact;
    use wstate::state::codec::{decode_borsh_prefix, encode_bincode, encode_borsh};
    use wstate::state::{ExecutionStateImage, InstanceImage, WasmFunctionStateDump};

    const GUESTS: [(&str, &str); 3] = [
        ("one", r#"(module $m (func $f (export "f") (param i32) (result i32) (call $f (local.get 0))))"#),
        (
            "values",
            r#"(module (import "env" "a" (func (param i32 f64))) (memory 1) (table 2 funcref) (elem (i32.const 0) $g)
              (type $t (func (param i32 i64) (result i64)))
              (func $g (type $t) (local i32 i32 i32 i32 i32 i64 f64)
                (local.set 3 (i32.const 7))
                (i64.const 5) (f64.const 1.5)
                (call 0 (local.get 3) (f64.const 2))
                (drop)
                (i64.div_s (local.get 1))
                (call_indirect (type $t) (local.get 0) (local.get 1) (i32.const 0))
                (i64.add)))"#,
        ),
        (
            "loops",
            r#"(module (func (export "run") (result i32) (local $i i32)
                (loop $l
                  (local.set $i (i32.add (local.get $i) (i32.const 1)))
                  (br_if $l (i32.lt_u (local.get $i) (i32.const 10))))
                (if (i32.eqz (local.get $i)) (then (unreachable)))
                (i32.rem_u (local.get $i) (i32.const 3))))"#,
        ),
    ];

    pub fn write(put: &dyn Fn(&str, &str, &[u8])) {
        let prefixed = |kind: u8, bytes: &[u8]| [&[kind][..], bytes].concat();
        for (name, text) in GUESTS {
            let wasm = wat::parse_str(text).unwrap();
            put("wasm", name, &wasm);
            let module: Module = compile_with(&wasm, &SinglePassCompiler::new()).unwrap();
            let file = module.cache().unwrap().serialize().unwrap();
            put("artifact", name, &file);
            let artifact = Artifact::parse(&file).unwrap();
            let image = &file[artifact.image.clone()];
            put("artifact", &format!("{name}-image"), image);
            let parts = CacheImage::of_bytes(image).unwrap();
            // In memory an image is the payload of an `Arc`: two counts before it.
            let counts = [1u64, 1].iter().flat_map(|c| c.to_le_bytes()).collect::<Vec<u8>>();
            put("heap_image", name, &[&counts[..], image].concat());
            let code = &image[4..4 + parts.code_size as usize];
            for (i, &start) in parts.function_offsets[parts.import_count as usize..].iter().enumerate() {
                for locals in [1u8, 2, 9] {
                    let body = &code[start as usize..(start as usize + 200).min(code.len())];
                    put("prologue", &format!("{name}-{i}-{locals}"), &prefixed(locals, body));
                }
            }
            let msm = parts.msm_offset as usize;
            let (map, used) = decode_borsh_prefix(&image[msm..]).unwrap();
            let borsh = &image[msm..msm + used];
            assert_eq!(encode_borsh(&map).unwrap(), borsh);
            put("codec", &format!("{name}-borsh"), &prefixed(0, borsh));
            put("codec", &format!("{name}-bincode"), &prefixed(1, &encode_bincode(&map).unwrap()));
            let point = map.local_functions.values().flat_map(|f| f.call_offsets.keys()).next().copied().unwrap_or(0);
            let words: Vec<u64> =
                (0..40).map(|i| if i % 7 == 3 { 0x10_0000 + point as u64 } else { i * 0x1111 }).collect();
            let stack: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            put("validate_read", name, &[borsh, &stack].concat());
            put("lookup", name, borsh);
        }
        let frame = WasmFunctionStateDump {
            local_function_id: 1,
            wasm_inst_offset: 9,
            stack: vec![None, Some(7)],
            locals: vec![Some(1), None],
        };
        let execution_state = ExecutionStateImage { frames: vec![frame.clone(), frame] };
        put("codec", "frames", &prefixed(2, &execution_state.to_bytes().unwrap()));
        let instance = InstanceImage { memory: Some(vec![1, 2, 3]), globals: vec![4, u128::MAX], execution_state };
        put("codec", "instance", &prefixed(3, &instance.to_bytes().unwrap()));
        let mut later = instance.clone();
        later.memory = Some(vec![1, 2, 4, 0]);
        later.globals[0] = 5;
        let frames = instance.execution_state.to_bytes().unwrap();
        let instance = instance.to_bytes().unwrap();
        let two = |a: &[u8], b: &[u8]| prefixed(4, &[&(a.len() as u16).to_le_bytes()[..], a, b].concat());
        put("codec", "files-changed", &two(&instance, &later.to_bytes().unwrap()));
        put("codec", "files-equal", &two(&instance, &instance));
        put("codec", "files-frames", &two(&frames, &instance));
        // Unwind tables as any compiler writes them: this very file's, cut to what the target's length field can name.
        put("cfi", "empty", &[0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
