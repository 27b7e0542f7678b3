//! Unwind tables of an ELF file, and a stack: the first bytes say how long the file is, the rest is the stack.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wstate::arch::{CodeAddress, Machine, Registers, x64};
use wstate::symbolize::native::NativeSymbolizer;
use wstate::process::objects::{LoadedObject, ObjectData, Objects};
use wstate::process::{Mapping, Memory, MemoryError};
use wstate::unwind::cfi::CfiUnwinder;
use wstate::unwind::frame_pointer::FramePointerUnwinder;
use wstate::unwind::{Cursor, Unwinder, walk};

const BIAS: u64 = 0x5000_0000;
const STACK: u64 = 0x7ff0_0000;

struct Flat(Vec<(u64, Vec<u8>)>);

impl Memory for Flat {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        for (start, bytes) in &self.0 {
            let part = address.checked_sub(*start).and_then(|at| bytes.get(at as usize..)?.get(..buf.len()));
            if let Some(part) = part {
                buf.copy_from_slice(part);
                return Ok(());
            }
        }
        Err(MemoryError::Unmapped { address, len: buf.len() })
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((len, data)) = data.split_at_checked(2) else { return };
    let len = usize::from(u16::from_le_bytes([len[0], len[1]])).min(data.len());
    let (file, stack) = data.split_at(len);
    let word = |i: usize| stack.as_chunks::<8>().0.get(i).map(|w| u64::from_le_bytes(*w));
    let size = (file.len() as u64).next_multiple_of(0x1000).max(0x4000);
    let object = LoadedObject {
        fits: None,
        path: "/fuzz/file".into(),
        opened: None,
        bias: BIAS,
        range: (BIAS, BIAS + size),
        build_id: None,
        data: Some(ObjectData::Memory(file.to_vec())),
        debug: None,
        unpacked: Default::default(),
        excerpts: Default::default(),
        problem: None,
    };
    let memory = Flat(vec![(STACK, stack.to_vec()), (BIAS, file.to_vec())]);
    let mapping = |start: u64, size: u64, execute: bool| Mapping {
        start,
        end: start + size,
        read: true,
        write: !execute,
        execute,
        offset: 0,
        path: None,
    };
    let mappings = [mapping(BIAS, size, true), mapping(STACK, stack.len() as u64 + 1, false)];
    let objects = Objects::from_parts(vec![object]);
    let cfi = CfiUnwinder::new(&objects);
    let frame_pointer = FramePointerUnwinder::new(&mappings);
    let unwinders: [&dyn Unwinder; 3] = [&cfi, &wstate::runtime::all::recognised(), &frame_pointer];
    let symbolizer = NativeSymbolizer::new(&objects);
    for i in 0..8u64 {
        let mut registers = Registers::unknown(Machine::X64);
        for r in 0..16 {
            if let (Some(reg), Some(value)) = (Machine::X64.registers().nth(r), word(r)) {
                registers.set(reg, value);
            }
        }
        let pc = BIAS + word(i as usize).unwrap_or(i) % size;
        registers.set(x64::RIP, pc);
        registers.set(x64::RSP, STACK + 8 * i);
        let start = Cursor { address: CodeAddress::Exact(pc), registers };
        let found = walk(start, &unwinders, &memory, 500);
        assert!(found.frames.len() <= 501);
        for frame in found.frames.iter().take(20) {
            let _ = symbolizer.symbolize(frame.cursor.address);
        }
    }
});
