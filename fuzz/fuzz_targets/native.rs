//! Debug information of an ELF file: names, lines and inlined functions of addresses, one by one and together.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wstate::arch::CodeAddress;
use wstate::limits;
use wstate::symbolize::native::NativeSymbolizer;
use wstate::process::objects::{LoadedObject, ObjectData, Objects};

const BIAS: u64 = 0x5000_0000;

fuzz_target!(|data: &[u8]| {
    let object = LoadedObject {
        fits: None,
        path: "/fuzz/file".into(),
        opened: None,
        bias: BIAS,
        range: (BIAS, BIAS + 0x10000),
        build_id: None,
        data: Some(ObjectData::Memory(data.to_vec())),
        debug: None,
        unpacked: Default::default(),
        excerpts: Default::default(),
        problem: None,
    };
    let objects = Objects::from_parts(vec![object]);
    // Where linkers put code, and the start of a file.
    let starts = [BIAS, BIAS + 0x1000, BIAS + 0x1040];
    let addresses: Vec<_> = starts.iter().flat_map(|s| (0..24).map(move |i| CodeAddress::Exact(s + 3 * i))).collect();
    let (alone, together) = (NativeSymbolizer::new(&objects), NativeSymbolizer::new(&objects));
    together.prepare(&addresses);
    for &address in &addresses {
        for frames in [alone.symbolize(address), together.symbolize(address)] {
            assert!(frames.len() <= limits::MAX_INLINE_DEPTH + 1);
            assert!(frames.last().is_none_or(|outermost| !outermost.inlined));
        }
    }
});
