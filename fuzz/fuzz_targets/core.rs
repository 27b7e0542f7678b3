//! A core file: headers, notes, mappings, memory, loaded files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::Arc;
use wstate::process::core::CoreTarget;
use wstate::process::objects::{Objects, SearchPaths};
use wstate::process::{Memory, Target};

fuzz_target!(|data: &[u8]| {
    let search = SearchPaths::default();
    let Ok(core) = CoreTarget::from_bytes(Path::new("core.fuzz"), Arc::new(data.to_vec()), &search) else { return };
    let _ = (core.description(), core.executable(), core.pid(), core.facts());
    for thread in core.threads() {
        let _ = core.activity(thread.id);
    }
    assert!(core.mappings().windows(2).all(|m| m[0].end <= m[1].start), "mappings overlap");
    assert!(core.mappings().iter().all(|m| m.start < m.end), "an empty mapping");
    let mut buf = [0; 300];
    for m in core.mappings().iter().take(200) {
        for at in [m.start.wrapping_sub(8), m.start, m.end.wrapping_sub(300), m.end.wrapping_sub(4), m.end] {
            let some = core.read_some(at, &mut buf);
            assert_eq!(core.read(at, &mut buf).is_ok(), some == buf.len(), "{at:#x}");
            let _ = core.read_u64(at);
        }
        assert!(core.mapping_at(m.start).is_some_and(|found| found == m));
        let _ = core.file_candidates(m);
    }
    for t in core.threads() {
        if let Some(sp) = t.registers.sp() {
            let _ = core.read_u64(sp);
        }
    }
    for key in [libc_at::PHDR, libc_at::ENTRY, libc_at::SYSINFO_EHDR] {
        let _ = core.auxv(key);
    }
    let objects = Objects::load(&core, &search);
    for o in objects.iter() {
        let _ = o.name();
        let _ = objects.find(o.range.0);
    }
});

/// Keys of the auxiliary vector (`elf.h`).
mod libc_at {
    pub const PHDR: u64 = 3;
    pub const ENTRY: u64 = 9;
    pub const SYSINFO_EHDR: u64 = 33;
}
