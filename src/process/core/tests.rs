//! Tests of [`CoreTarget`], with cores that are built here.

use super::*;
use crate::arch::{Machine, Registers, x64};
use crate::process::notes::kind;
use crate::process::testing::{CoreBuilder, shared_object};

fn registers(pc: u64) -> Registers {
    let mut r = Registers::unknown(Machine::X64);
    r.set(x64::RIP, pc);
    r.set(x64::RSP, 0x7000);
    r.set(x64::R15, 15);
    r.set(x64::XMM15, 0x4037_0000_0000_0000);
    r
}

fn two_threads() -> CoreBuilder {
    CoreBuilder::new()
        .thread(12, 11, &registers(0x1234), 0xf5)
        .process(11, "app", "app --flag ")
        .thread(11, 11, &registers(0x5678), 0xf6)
        .auxv(libc::AT_PHDR, 0x40_0040)
        .memory(0x40_0000, 5, &[1; 0x1000])
        .segment(0x40_1000, 0x2000, 6, &[2; 0x800])
        .memory(0x7000, 6, &[3; 64])
        .file(0x40_0000, 0x40_1000, 0, "/bin/app")
        .file(0x40_1000, 0x40_2000, 0x3000, "/bin/app")
}

fn open(bytes: Vec<u8>) -> Result<CoreTarget, Error> {
    CoreTarget::from_bytes(Path::new("core.test"), Arc::new(bytes), &SearchPaths::default())
}

#[test]
fn threads_registers_and_names() {
    let core = two_threads().open().unwrap();
    let [first, second] = core.threads() else { panic!("{:?}", core.threads()) };
    assert_eq!((first.id.0, first.signal, first.name.as_deref(), first.fs_base), (12, Some(11), None, Some(0xf5)));
    // The kernel gives every thread the fatal signal, but only the first thread keeps it here.
    assert_eq!((second.id.0, second.signal, second.name.as_deref()), (11, None, Some("app")));
    assert_eq!(first.registers.pc(), Some(0x1234));
    assert_eq!(first.registers.get(x64::R15), Some(15));
    assert_eq!(first.registers.get(x64::XMM15), Some(0x4037_0000_0000_0000));
    assert_eq!((core.pid(), core.facts().command_line.unwrap().text()), (Some(11), "app --flag".to_string()));
    assert_eq!(core.executable(), Some(Path::new("/bin/app")));
    assert_eq!(core.description(), "core core.test of app");
    assert!(core.notes().is_empty(), "{:?}", core.notes());
}

/// A record of a signal, as long as `len`.
fn siginfo(signal: i32, code: i32, address: u64, len: usize) -> Vec<u8> {
    let mut info: Vec<u8> = [signal, 0, code, 0].into_iter().flat_map(i32::to_le_bytes).collect();
    info.extend(address.to_le_bytes());
    info.resize(128, 0);
    info.truncate(len);
    info
}

#[test]
fn the_signal_is_that_of_the_first_thread_and_of_its_first_record() {
    let thread = |core: CoreBuilder, id: u32| core.thread(id, 11, &registers(0x1234), 0);
    let record =
        |core: CoreBuilder, signal, address, len| core.note(b"CORE", kind::SIGINFO, &siginfo(signal, 1, address, len));
    let told = |core: CoreBuilder| core.open().unwrap().facts().signal.map(|s| (s.number, s.code, s.address));
    let first = || thread(CoreBuilder::new(), 1);
    assert_eq!(told(record(first(), 11, 0x10, 128)), Some((11, 1, Some(0x10))));
    assert_eq!(told(first()), None);
    // A second record, one of another thread, one of another signal, and one before any thread.
    assert_eq!(told(record(record(first(), 11, 0x10, 128), 11, 0x20, 128)), Some((11, 1, Some(0x10))));
    assert_eq!(told(record(thread(first(), 2), 11, 0x20, 128)), None);
    assert_eq!(told(record(first(), 7, 0x10, 128)), None);
    assert_eq!(told(thread(record(CoreBuilder::new(), 11, 0x10, 128), 1)), None);
    for len in 0..128 {
        let expected = match len {
            0..12 => None,
            12..24 => Some((11, 1, None)),
            _ => Some((11, 1, Some(0x10))),
        };
        assert_eq!(told(record(first(), 11, 0x10, len)), expected, "{len}");
    }
}

#[test]
fn who_the_process_was_is_in_its_note_as_far_as_that_goes() {
    let mut info = vec![b'x'; 136];
    info[16..24].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0]);
    for len in 0..info.len() + 8 {
        info.resize(len.max(136), b'y');
        let facts = CoreBuilder::new().note(b"CORE", kind::PRPSINFO, &info[..len]).open().unwrap().facts();
        match len {
            // Nothing of a record that is cut off is believed.
            0..136 => assert_eq!((facts.uid, facts.command_line), (None, None), "{len}"),
            _ => {
                let line = facts.command_line.unwrap();
                assert_eq!(
                    (facts.uid, facts.gid, line.text(), line.is_cut()),
                    (Some(1), Some(2), "x".repeat(80), true)
                );
            }
        }
    }
}

#[test]
fn what_a_thread_did_is_told_where_its_registers_tell_it() {
    use crate::process::ThreadId;
    use crate::process::facts::Activity;
    let machine = Machine::X64.description();
    let record = |id: u32, call: i64, result: i64, len: usize| {
        let mut status = vec![0; machine.kernel.prstatus_size];
        status[32..36].copy_from_slice(&id.to_le_bytes());
        let words = [(machine.kernel.system_call, call), (machine.kernel.result, result)];
        for (word, value) in words {
            let at = machine.kernel.prstatus_registers + word * 8;
            status[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        status.truncate(len);
        status
    };
    let whole = machine.kernel.prstatus_size;
    let core = [(1, -1, 0, whole), (2, 202, -512, whole), (3, 1, 17, whole), (4, 202, -512, 144), (5, -1, 0, whole)]
        .into_iter()
        .chain([(5, 202, -512, whole)])
        .fold(CoreBuilder::new(), |core, (id, call, result, len)| {
            core.note(b"CORE", kind::PRSTATUS, &record(id, call, result, len))
        });
    let core = core.open().unwrap();
    let told = [1, 2, 3, 4, 5, 6].map(|id| core.activity(ThreadId(id)));
    // Two records claim to be of thread 5, and none is of thread 6.
    let waiting = Some(Activity::Waiting { system_call: Some(202) });
    assert_eq!(told, [Some(Activity::Running), waiting, None, None, None, None]);
}

#[test]
fn memory_that_was_not_dumped_is_absent_not_zero() {
    let core = two_threads().open().unwrap();
    assert_eq!(core.read_u32(0x40_17fc), Ok(0x0202_0202));
    assert!(matches!(core.read_u32(0x40_17fe), Err(MemoryError::Absent { why: NOT_DUMPED, .. })));
    assert!(matches!(core.read_u32(0x40_3000), Err(MemoryError::Unmapped { .. })));
    let mut buf = [0; 0x1000];
    assert_eq!(core.read_some(0x40_1700, &mut buf), 0x100);
}

#[test]
fn mappings_are_cut_and_named() {
    let core = two_threads().open().unwrap();
    let show: Vec<String> = core
        .mappings()
        .iter()
        .map(|m| format!("{:x}-{:x} {} {} {:x} {:?}", m.start, m.end, m.write, m.execute, m.offset, m.path))
        .collect();
    assert_eq!(
        show,
        [
            "7000-7040 true false 0 None",
            "400000-401000 false true 0 Some(\"/bin/app\")",
            "401000-402000 true false 3000 Some(\"/bin/app\")",
            "402000-403000 true false 0 None",
        ]
    );
}

#[test]
fn cut_at_every_byte_keeps_what_is_there() {
    let whole = two_threads().build();
    let mut seen_threads = 0;
    for len in 0..whole.len() {
        let Ok(core) = open(whole[..len].to_vec()) else {
            assert!(len < 64 + 56, "refused at {len}");
            continue;
        };
        assert!(core.notes().iter().any(|n| n.contains("cut off")), "{len}: {:?}", core.notes());
        assert!(core.threads().len() >= seen_threads);
        seen_threads = core.threads().len();
        let mut b = [0; 16];
        for at in [0x7000u64, 0x7030, 0x40_0000, 0x40_1000, 0x40_17f0] {
            match core.read(at, &mut b) {
                Ok(()) => assert!(b.iter().all(|&c| (1..4).contains(&c)), "{len} {at:#x}"),
                Err(MemoryError::Absent { why, .. }) => assert_eq!(why, CUT_OFF),
                Err(MemoryError::Unmapped { .. }) => assert!(len < 64 + 56 * 4),
                Err(e) => panic!("{e}"),
            }
        }
    }
    assert_eq!(seen_threads, 2);
}

#[test]
fn any_flipped_header_byte_is_survived() {
    let whole = two_threads().build();
    let end = 64 + 56 * 4 + 600;
    for at in 0..end {
        for value in [0x00, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(core) = open(bytes) {
                let mut b = [0; 64];
                for m in core.mappings() {
                    let _ = core.read(m.start, &mut b);
                    let _ = core.read_some(m.end.wrapping_sub(32), &mut b);
                }
                let sorted = core.mappings().windows(2).all(|w| w[0].end <= w[1].start);
                assert!(sorted, "byte {at} = {value:#x}");
            }
        }
    }
}

#[test]
fn what_is_no_core_is_refused_with_the_reason() {
    let core = two_threads().build();
    let with = |at: usize, bytes: &[u8]| {
        let mut c = core.clone();
        c[at..at + bytes.len()].copy_from_slice(bytes);
        c
    };
    for (bytes, expected) in [
        (vec![], "empty"),
        (b"hello, world".to_vec(), "it is text, not a core; "),
        (vec![0xff; 64], "not an ELF file; name the core file first"),
        (b"\x1f\x8b\x08".to_vec(), "gzip"),
        (b"\x28\xb5\x2f\xfd\x00".to_vec(), "zstd -d"),
        (b"\x04\x22\x4d\x18\x00".to_vec(), "lz4"),
        (core[..40].to_vec(), "cut off inside its ELF header"),
        (core[..100].to_vec(), "cut off before its first program header"),
        (with(4, &[1]), "32-bit"),
        (with(5, &[2]), "big-endian"),
        (with(18, &[183, 0]), "another machine (ELF machine 183)"),
        (with(16, &[3, 0]), "an executable or a library"),
        (with(54, &[32, 0]), "32 bytes each"),
        (with(56, &[0, 0]), "no program headers"),
        (with(32, &[8, 0]), "inside the ELF header"),
    ] {
        match open(bytes) {
            Err(e) => assert!(e.to_string().contains(expected), "{e} / {expected}"),
            Ok(_) => panic!("{expected}"),
        }
    }
}

#[test]
fn more_segments_than_fit_the_header() {
    // With PN_XNUM the number is in the first section header, or lost with the core's end.
    let mut bytes = two_threads().build();
    let shoff = bytes.len() as u64;
    bytes[56..58].copy_from_slice(&[0xff, 0xff]);
    bytes[40..48].copy_from_slice(&shoff.to_le_bytes());
    let cut = open(bytes.clone()).unwrap();
    assert_eq!((cut.mappings().len(), cut.threads().len()), (4, 2));
    assert!(cut.notes()[0].contains("number of segments"));
    let mut section = [0; 64];
    section[44] = 3;
    bytes.extend(section);
    let core = open(bytes).unwrap();
    assert_eq!(core.notes().len(), 0);
    assert!(matches!(core.read_u32(0x7000), Err(MemoryError::Unmapped { .. })), "the fourth is not counted");
}

#[test]
fn a_huge_hollow_segment_costs_nothing() {
    let core = CoreBuilder::new().segment(0x1000, 1 << 46, 6, &[7]).thread(1, 0, &registers(1), 0).open().unwrap();
    assert_eq!(core.mappings()[0].size(), 1 << 46);
    assert!(matches!(core.read_u64(0x1000_0000), Err(MemoryError::Absent { .. })));
}

/// A little shared object: a header page, a code page, and a page of relocated constants.
fn library(id: u8, code: u8) -> Vec<u8> {
    let mut out = shared_object(
        &[
            (pt::LOAD, 4, 0, 0, 0x1000, 0x1000, 0x1000),
            (pt::LOAD, 5, 0x1000, 0x1000, 0x900, 0x900, 0x1000),
            (pt::LOAD, 6, 0x2000, 0x2000, 0x1000, 0x1000, 0x1000),
            (pt::NOTE, 4, 0x400, 0x400, 20, 20, 0x1000),
            (pt::DYNAMIC, 6, 0x2800, 0x2800, 64, 64, 0x1000),
        ],
        id,
    );
    out.resize(0x2800, code);
    out.extend([12, 0x1000, 21, 0, 7, 0x400 + u64::from(id), 0, 0].into_iter().flat_map(u64::to_le_bytes));
    out.resize(0x3000, code);
    out
}

#[test]
fn without_a_header_in_the_core_the_dynamic_section_decides() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lib.so");
    std::fs::write(&file, library(1, 0xc3)).unwrap();
    let name = file.to_str().unwrap();
    for id in [1, 2] {
        let mut data = library(id, 0xc3)[0x2000..].to_vec();
        // The dynamic linker has changed the section: one address is relocated, and DT_DEBUG is filled in.
        data[0x808..0x810].copy_from_slice(&0x10_1000u64.to_le_bytes());
        data[0x818] = 0x77;
        let core = CoreBuilder::new()
            .file(0x10_0000, 0x10_1000, 0, name)
            .file(0x10_1000, 0x10_2000, 0x1000, name)
            .file(0x10_2000, 0x10_3000, 0x2000, name)
            .memory(0x10_2000, 6, &data)
            .open()
            .unwrap();
        let objects = crate::process::objects::Objects::load(&core, &SearchPaths::default());
        let lib = objects.find(0x10_1004).unwrap();
        if id == 1 {
            assert_eq!(core.read_u32(0x10_1004), Ok(0xc3c3_c3c3));
            assert!(lib.data.is_some() && lib.bias == 0x10_0000);
        } else {
            assert!(matches!(core.read_u32(0x10_1004), Err(MemoryError::Absent { why: OTHER_FILE, .. })));
            assert!(lib.data.is_none() && lib.problem.as_ref().unwrap().what.contains("is not the file"));
        }
    }
}

#[test]
fn ranges_that_only_the_file_list_names_are_mapped_and_absent() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lib.so");
    std::fs::write(&file, library(1, 0xc3)).unwrap();
    for (name, execute) in [(file.to_str().unwrap(), true), ("/nowhere/lib.so", false)] {
        let core = CoreBuilder::new().file(0x10_1000, 0x10_2000, 0x1000, name).memory(0, 4, &[1]).open().unwrap();
        let m = core.mapping_at(0x10_1000).unwrap();
        assert_eq!((m.execute, m.offset, m.size()), (execute, 0x1000, 0x1000));
        match core.read_u32(0x10_1000) {
            Ok(word) => assert!(execute && word == 0xc3c3_c3c3),
            Err(e) => assert!(!execute && matches!(e, MemoryError::Absent { why: NOT_DUMPED, .. })),
        }
    }
}

#[test]
fn code_that_was_not_dumped_comes_from_the_same_file_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lib.so");
    std::fs::write(&file, library(1, 0xc3)).unwrap();
    let name = file.to_str().unwrap();
    let core = |id: u8| {
        CoreBuilder::new()
            .segment(0x10_0000, 0x1000, 4, &library(id, 0)[..0x1000])
            .segment(0x10_1000, 0x1000, 5, &[])
            .segment(0x10_2000, 0x1000, 4, &[])
            .file(0x10_0000, 0x10_1000, 0, name)
            .file(0x10_1000, 0x10_2000, 0x1000, name)
            .file(0x10_2000, 0x10_3000, 0x2000, name)
    };
    let same = core(1).open().unwrap();
    assert_eq!(same.read_u32(0x10_1004), Ok(0xc3c3_c3c3));
    // Relocated constants are read-only now, but were not when they were written, so the file does not have them.
    assert!(matches!(same.read_u32(0x10_2004), Err(MemoryError::Absent { why: NOT_DUMPED, .. })));
    let other = core(2).open().unwrap();
    assert!(matches!(other.read_u32(0x10_1004), Err(MemoryError::Absent { why: OTHER_FILE, .. })));

    use crate::process::objects::{ObjectData, Objects};
    let objects = Objects::load(&same, &SearchPaths::default());
    let lib = objects.find(0x10_1004).unwrap();
    assert_eq!((lib.bias, lib.range, lib.problem.as_ref()), (0x10_0000, (0x10_0000, 0x10_3000), None));
    assert_eq!(lib.build_id.as_deref(), Some(&[1; 4][..]));
    assert!(matches!(lib.data, Some(ObjectData::File(_))));
    let objects = Objects::load(&other, &SearchPaths::default());
    let lib = objects.find(0x10_1004).unwrap();
    assert!(lib.data.is_none() && lib.bias == 0x10_0000);
    assert!(
        lib.problem.as_ref().unwrap().what.contains("build id is 01010101, the loaded file's is 02020202"),
        "{:?}",
        lib.problem
    );
}

/// The headers of a file that was mapped to be read, and that no segment has in it, tell another build all the same.
#[test]
fn headers_outside_of_all_segments_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("app");
    let with_code = |len: u64| {
        let mut out = shared_object(&[(pt::LOAD, 5, 0x1000, 0x1000, len, len, 0x1000)], 1);
        out.resize(0x2000, 0xc3);
        out
    };
    let name = file.to_str().unwrap();
    for (on_disk, is_same) in [(0x1000, true), (0x900, false)] {
        std::fs::write(&file, with_code(on_disk)).unwrap();
        let core = CoreBuilder::new()
            .segment(0x10_1000, 0x1000, 5, &[])
            .segment(0x20_0000, 0x1000, 4, &with_code(0x1000)[..0x1000])
            .file(0x10_1000, 0x10_2000, 0x1000, name)
            .file(0x20_0000, 0x20_1000, 0, name)
            .open()
            .unwrap();
        match core.read_u32(0x10_1004) {
            Ok(word) => assert!(is_same && word == 0xc3c3_c3c3),
            Err(e) => assert!(!is_same && matches!(e, MemoryError::Absent { why: OTHER_FILE, .. }), "{e}"),
        }
    }
}
