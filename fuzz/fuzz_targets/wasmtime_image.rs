//! A Wasmtime code image, as it lies in a process or in a `.cwasm` file: header, sections, symbols, and the sections that
//! say what the code is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wstate::runtime::wasmtime::tables::addrmap::AddressMap;
use wstate::runtime::wasmtime::tables::frame_table::{FrameTable, InstPos};
use wstate::runtime::wasmtime::image::{ADDRMAP, FRAMES, INFO, Image, Kind, NAMES, SliceMemory};
use wstate::runtime::wasmtime::image::info::ImageInfo;
use wstate::runtime::wasmtime::instance::offsets::{VmCounts, VmLayout};
use wstate::runtime::wasmtime::image::version::Version;

fn addrmap(section: &[u8], version: Option<Version>) {
    let Ok(map) = AddressMap::parse(section, version) else { return };
    assert!(map.iter().count() <= map.len());
    for at in [0, 1, 100, 4096, u32::MAX] {
        let _ = map.lookup(at);
    }
}

fn frames(section: &[u8], version: Option<Version>) {
    let Ok(table) = FrameTable::parse(section, version) else { return };
    for index in 0..table.points().min(1000) {
        let Ok(Some(point)) = table.point(index) else { continue };
        assert!(!point.frames.is_empty());
        for frame in &point.frames {
            let Ok(descriptor) = table.descriptor(frame.descriptor) else { continue };
            if let Some(stack) = descriptor.stack(frame.shape) {
                assert!(stack.len() <= descriptor.shapes());
            }
        }
    }
    for at in [0, 1, 100, u32::MAX] {
        for position in [InstPos::Post, InstPos::Pre] {
            let _ = table.index_before(at, position).map(|index| table.point(index));
        }
    }
}

fn info(section: &[u8], kind: Kind, version: Option<Version>, names: &[u8]) {
    let info = match version {
        Some(version) => ImageInfo::decode(section, kind, version),
        None => ImageInfo::guess(section, kind),
    };
    let Ok(info) = info else { return };
    let table = info.function_table(names);
    assert!(table.iter().is_sorted_by_key(|f| f.start));
    for module in &info.modules {
        let layout = VmLayout::new(info.version, &VmCounts::from(module)).expect("a version that was decoded is known");
        assert!(layout.size >= layout.func_refs.begin && layout.globals.begin % 16 == 0);
        for function in 0..module.functions.len().min(100) as u32 {
            let _ = info.signature(module.index, function);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    // A section alone is reached sooner than inside of a whole image.
    if let [selector, rest @ ..] = data {
        let version = Some(Version(34 + u32::from(selector >> 2) % 18)).filter(|v| v.0 > 34);
        match selector & 3 {
            0 => addrmap(rest, version),
            1 => frames(rest, version),
            2 => info(rest, Kind::Module, version, b"names"),
            _ => info(rest, Kind::Component, version, b"names"),
        }
    }
    let memory = SliceMemory::new(0x1000, data);
    let Ok(image) = Image::read(&memory, 0x1000) else { return };
    let version = image.engine(&memory).ok().and_then(|e| e.version());
    if let Ok(symbols) = image.symbols(&memory) {
        for f in symbols.iter().take(1000) {
            assert!(u64::from(f.end()) <= image.text().end - image.text().start);
            let _ = symbols.at(f.start);
        }
    }
    let section = |name| image.contents(name, &memory).unwrap_or_else(|_| Vec::new().into());
    addrmap(&section(ADDRMAP), version);
    frames(&section(FRAMES), version);
    info(&section(INFO), image.header().kind, version, &section(NAMES));
});
