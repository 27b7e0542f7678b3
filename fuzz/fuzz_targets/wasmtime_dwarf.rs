//! The debug information of a Wasmtime image (`debug_info`): functions, lines, variables and where they are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wstate::arch::{Machine, Registers, x64};
use wstate::runtime::wasmtime::tables::dwarf::ImageDwarf;
use wstate::runtime::wasmtime::image::{Image, SliceMemory};

fuzz_target!(|data: &[u8]| {
    let memory = SliceMemory::new(0x1000, data);
    let Ok(image) = Image::read(&memory, 0x1000) else { return };
    let Ok(Some(dwarf)) = ImageDwarf::load(&image, &memory) else { return };
    // The image's own bytes stand for the stack, so that what a place leads to is hostile too.
    let mut registers = Registers::unknown(Machine::X64);
    for (n, reg) in [x64::RAX, x64::RBP, x64::RSP, x64::RDI, x64::R12, x64::RBX].into_iter().enumerate() {
        registers.set(reg, 0x1000 + 0x400 * n as u64);
    }
    let starts: Vec<u32> = match image.symbols(&memory) {
        Ok(symbols) => symbols.iter().take(8).flat_map(|f| [f.start, f.start + f.len / 2]).collect(),
        Err(_) => vec![0, 0x40, 0x100],
    };
    for at in starts.into_iter().chain([u32::MAX]) {
        let frames = dwarf.frames(at);
        let scopes = dwarf.scoped_variables(at, &registers, Some(0x1800), &memory);
        assert!(scopes.len() == frames.len() || scopes.is_empty());
        for variable in scopes.iter().flatten() {
            assert!(variable.value.as_ref().map_or(true, |value| !value.place.is_empty()));
        }
        let _ = dwarf.vmctx(at, &registers, None, &memory);
    }
});
