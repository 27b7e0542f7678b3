//! Tests with a process that loads something else at the same addresses, between the stop and the reading.

use super::super::proc::thread_of;
use super::*;
use crate::arch::Registers;
use crate::process::memory::{Content, PAGE};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

/// Address of the target's module. Its first page can be executed, the others can be written.
const CODE: usize = 0x5ead_0000_0000;
/// Size of the module in bytes. If all of it is read at once, it is more than a second stop copies.
const SIZE: usize = 2 * limits::MAX_REREAD_BYTES as usize;

/// Runs in the target when it is asked to `load N`. Unmaps what it has loaded, maps as much memory at the same place,
/// and fills it with words that are made of N and of their place. The first time it also starts a thread that has a
/// word on its stack which points into that memory.
pub(super) fn load(line: &str) {
    let number: u64 = line.trim_start_matches("load ").parse().unwrap();
    static LOADED: AtomicU64 = AtomicU64::new(0);
    // SAFETY: nothing else is mapped there, and the test process has no other thread that reads there.
    unsafe {
        if LOADED.load(Ordering::SeqCst) != 0 {
            assert_eq!(libc::munmap(CODE as *mut _, SIZE), 0);
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let at = libc::mmap(CODE as *mut _, SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_eq!(at as usize, CODE);
        for (i, word) in std::slice::from_raw_parts_mut(CODE as *mut u64, SIZE / 8).iter_mut().enumerate() {
            *word = word_of(number, i * 8);
        }
        assert_eq!(libc::mprotect(CODE as *mut _, PAGE as usize, libc::PROT_READ | libc::PROT_EXEC), 0);
    }
    if LOADED.swap(number, Ordering::SeqCst) == 0 {
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let words = [CODE + 0x105; 4];
            std::hint::black_box(&words);
            ready.send(()).unwrap();
            loop {
                std::thread::park();
                std::hint::black_box(&words);
            }
        });
        is_ready.recv().unwrap();
    }
    println!("\nloaded {number}");
}

fn word_of(number: u64, at: usize) -> u64 {
    number << 32 | at as u64
}

impl Peer {
    fn load(&mut self, number: u64) {
        assert_eq!(self.ask(&format!("load {number}"), "loaded "), number.to_string());
    }

    fn again(&self, set: &ReadSet) -> LiveTarget {
        LiveTarget::capture_again(self.pid(), &CaptureOptions::default(), set).unwrap()
    }
}

fn read(live: &LiveTarget, at: usize) -> Result<u64, MemoryError> {
    live.read_u64((CODE + at) as u64)
}

/// A capture after which nothing happens any more, because the threads of the target have come to the place where
/// they wait.
fn quiet(peer: &Peer) -> LiveTarget {
    loop {
        let live = peer.capture();
        if read(&live, 0).is_ok() && live.is_proven() {
            return live;
        }
    }
}

#[test]
fn what_is_read_later_is_proven_while_nothing_is_loaded() {
    let mut peer = Peer::target();
    peer.load(1);
    let live = quiet(&peer);
    assert_eq!(read(&live, 0x100), Ok(word_of(1, 0x100)));
    assert!(live.is_proven());
    // The same bytes are loaded at the same place again. Their contents do not tell that they are not those of the
    // stop.
    peer.load(1);
    assert!(!live.is_proven());
    assert!(!live.is_same_code(&peer.capture()));
}

#[test]
fn code_that_changes_without_a_fault_is_seen() {
    let mut peer = Peer::target();
    peer.load(1);
    let mut live = quiet(&peer);
    let at = live
        .evidence
        .code
        .iter()
        .position(|(at, _)| *at == CODE as u64 + 0x100)
        .expect("the thread's word points there");
    assert_eq!(live.evidence.code[at].1[..8], word_of(1, 0x100).to_le_bytes());
    live.evidence.code[at].1[0] ^= 1;
    assert!(!live.is_proven());
    live.evidence.code[at].1[0] ^= 1;
    assert!(live.is_proven());
    // This mapping stands for code that was unloaded.
    let mut gone = live.mappings.iter().find(|m| m.start == CODE as u64).unwrap().clone();
    (gone.start, gone.end) = (gone.start - PAGE, gone.start);
    live.mappings.push(gone);
    assert!(!live.is_proven());
    live.mappings.pop();
    // If the kernel counts no faults, nothing is proven.
    live.evidence.faults = None;
    assert!(!live.is_proven());
}

#[test]
fn the_next_capture_has_what_the_last_one_read() {
    let mut peer = Peer::target();
    peer.load(1);
    let first = peer.capture();
    // Reads a page that is there, and one that is not.
    let hole = (CODE - PAGE as usize) as u64;
    assert_eq!(read(&first, 0x200), Ok(word_of(1, 0x200)));
    assert!(first.read_u64(hole).is_err());
    let mut set = ReadSet::default();
    set.add_reads_of(&first);
    peer.load(2);
    let second = peer.again(&set);
    peer.load(3);
    // The bytes that were copied are those of the second load. The hole was not there at the capture, so it is not
    // read now.
    assert_eq!(read(&second, 0x208), Ok(word_of(2, 0x208)));
    assert_eq!(second.read_u64(hole), Err(MemoryError::Unmapped { address: hole, len: 8 }));
    assert!(second.is_proven());
    // This page is farther away than the pages that are copied beside a wanted one.
    let far = 100 * PAGE as usize;
    assert_eq!(read(&second, far), Ok(word_of(3, far)));
    assert!(!second.is_proven());
    set.add_reads_of(&second);
    let third = peer.again(&set);
    peer.load(4);
    assert_eq!((read(&third, 0x200), read(&third, far)), (Ok(word_of(3, 0x200)), Ok(word_of(3, far))));
    assert!(third.is_proven());
    // A search finds what was copied. For the rest it finds hints in the running process, which do not count as
    // reads.
    let mut bytes = vec![0; 201 * PAGE as usize];
    assert_eq!(third.scan(CODE as u64, &mut bytes), bytes.len());
    assert_eq!(bytes[far..far + 8], word_of(3, far).to_le_bytes());
    let searched = 200 * PAGE as usize;
    assert_eq!(bytes[searched..searched + 8], word_of(4, searched).to_le_bytes());
    assert!(third.is_proven());
}

#[test]
fn in_the_end_what_was_not_copied_cannot_be_read() {
    let mut peer = Peer::target();
    peer.load(1);
    let first = peer.capture();
    assert_eq!(read(&first, 0), Ok(word_of(1, 0)));
    let mut set = ReadSet::default();
    set.add_reads_of(&first);
    set.seal();
    let sealed = peer.again(&set);
    peer.load(2);
    assert_eq!(read(&sealed, 8), Ok(word_of(1, 8)));
    assert!(sealed.is_proven() && !sealed.is_gone());
    // At this address nothing was mapped, for certain.
    assert!(matches!(sealed.read_u64(CODE as u64 - PAGE), Err(MemoryError::Unmapped { .. })));
    assert!(sealed.is_proven());
    let far = (CODE + 100 * PAGE as usize) as u64;
    assert_eq!(sealed.scan(far, &mut [0; 64]), 0);
    assert_eq!(sealed.read_u64(far), Err(MemoryError::Gone { address: far, len: 8 }));
    assert!(!sealed.is_proven() && sealed.is_gone());
}

#[test]
fn of_what_is_too_large_to_be_copied_samples_are() {
    let mut peer = Peer::target();
    peer.load(1);
    let mut whole = vec![0; SIZE];
    let first = peer.capture();
    first.read(CODE as u64, &mut whole).unwrap();
    let mut set = ReadSet::default();
    set.add_reads_of(&first);
    let second = peer.again(&set);
    assert!(second.copied.samples.len() as u64 <= limits::MAX_REREAD_SAMPLES && !second.copied.samples.is_empty());
    second.read(CODE as u64, &mut whole).unwrap();
    assert!(second.is_proven() && !second.is_too_much());
    // The same module is loaded once more, then another one.
    peer.load(1);
    second.read(CODE as u64, &mut whole).unwrap();
    assert!(second.is_proven());
    peer.load(2);
    assert!(!second.is_proven());
    peer.load(1);
    assert!(second.is_proven());
    peer.load(2);
    second.read(CODE as u64, &mut whole).unwrap();
    // The first module is back now, but that proves nothing: it was not there when the memory was read.
    peer.load(1);
    assert!(!second.is_proven());
}

#[test]
fn so_many_pages_are_copied_and_kept_in_mind() {
    let mut peer = Peer::target();
    peer.load(1);
    let first = peer.capture();
    for page in 0..SIZE / PAGE as usize {
        read(&first, page * PAGE as usize).unwrap();
    }
    let mut set = ReadSet::default();
    set.add_reads_of(&first);
    let second = peer.again(&set);
    assert!(second.is_too_much());
    let beside = {
        // One page is wanted: some pages around it are copied too, and no more.
        let one = peer.capture();
        read(&one, SIZE / 2).unwrap();
        let mut set = ReadSet::default();
        set.add_reads_of(&one);
        let again = peer.again(&set);
        (0..SIZE as u64 / PAGE).filter(|i| again.captured.available(CODE as u64 + i * PAGE, 1) == 1).count() as u64
    };
    assert!(beside > 16 && beside < limits::MAX_REREAD_BESIDE / PAGE + 4, "{beside}");
    let copied = (0..SIZE as u64 / PAGE).filter(|i| second.captured.available(CODE as u64 + i * PAGE, 1) == 1).count();
    assert!(copied as u64 <= limits::MAX_REREAD_BYTES / PAGE && copied > 0);

    let mut log = super::super::reread::Log::default();
    for page in 0..=limits::MAX_READ_PAGES as u64 {
        assert!(!log.is_beyond());
        log.add(page * PAGE, 1);
    }
    assert!(log.is_beyond());
    // The stacks are looked through up to a limit, and up to a limit of blocks is found.
    let mapping =
        Mapping { start: 0x10_0000, end: 0x100_0000, read: true, write: false, execute: true, offset: 0, path: None };
    let words: Vec<u8> =
        (0..4 * limits::MAX_CODE_BLOCKS as u64).flat_map(|i| (0x10_0000 + i * 64).to_le_bytes()).collect();
    let mut registers = Registers::unknown(Machine::HERE);
    registers.set(x64::RSP, 0x1000);
    let thread = Thread { registers, ..thread_of(1, 1) };
    let captured = |words: &[u8]| {
        let mut captured = Splice::new();
        let end = 0x1000 + words.len() as u64;
        captured.add(0x1000, end, Content::Bytes { holder: Arc::new(words.to_vec()), offset: 0 });
        captured
    };
    let of = |words: &[u8]| {
        super::super::evidence::blocks(
            std::slice::from_ref(&thread),
            std::slice::from_ref(&mapping),
            None,
            &captured(words),
        )
        .len()
    };
    assert_eq!(of(&words), limits::MAX_CODE_BLOCKS);
    let mut far = vec![0; limits::MAX_CODE_SCAN];
    far.extend(&words);
    assert_eq!((of(&far), of(&far[8..])), (0, 1));
}

#[test]
fn a_file_that_is_another_one_by_now_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, "one").unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    let file = crate::process::files::map_file(&path).unwrap().identity();
    let line = |device: u64, inode: u64| {
        let (major, minor) = (libc::major(device), libc::minor(device));
        format!("1000-2000 r-xp 00000000 {major:02x}:{minor:02x} {inode}        {}\n", path.display()).into_bytes()
    };
    let mapping = |text: &[u8]| parse_maps(text).remove(0);
    for (device, inode, another) in
        [(meta.dev(), meta.ino(), false), (meta.dev(), meta.ino() + 1, true), (meta.dev() + 1, meta.ino() + 1, false)]
    {
        let text = line(device, inode);
        let mapping = mapping(&text);
        assert_eq!(evidence::MappedFiles::new(text).is_another(&mapping, &file), another);
    }
    let text = b"1000-2000 r-xp 00000000 00:00 0\n";
    assert!(!evidence::MappedFiles::new(text.to_vec()).is_another(&mapping(text), &file));
}
