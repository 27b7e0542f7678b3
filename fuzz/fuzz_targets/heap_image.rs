//! A host's heap in which cached images are looked for, next to code in executable memory; the same bytes as an artifact.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wstate::arch::{CodeAddress, Machine, Registers, x64};
use wstate::process::objects::Objects;
use wstate::process::testing::CoreBuilder;
use wstate::progress::Silent;
use wstate::runtime::singlepass::find::{Search, SinglepassProvider, route_artifact, route_heap};
use wstate::runtime::{Provider, Scene};
use wstate::unwind::Cursor;

const CODE: u64 = 0x7f00_0000_0000;
const HEAP: u64 = 0x5500_0000_0000;
const STACK: u64 = 0x7ffc_0000_0000;

fuzz_target!(|data: &[u8]| {
    // The code as an image would have it, so that code and image can be found to belong together.
    let code = data.get(20..).unwrap_or_default();
    let mut page = code.get(..4096.min(code.len())).unwrap_or_default().to_vec();
    page.resize(4096, 0);
    let mut heap = data.to_vec();
    heap.resize(data.len().next_multiple_of(4096).max(4096), 0);
    let mut registers = Registers::unknown(Machine::X64);
    registers.set(x64::RIP, CODE + 16);
    registers.set(x64::RSP, STACK);
    registers.set(x64::R15, HEAP + 64);
    let stack: Vec<u8> = [CODE + 32, HEAP + 16, HEAP + 64, STACK + 64].iter().flat_map(|w| w.to_le_bytes()).collect();
    let core = CoreBuilder::new()
        .thread(1, 0, &registers, 0)
        .memory(HEAP, 6, &heap)
        .memory(CODE, 5, &page)
        .memory(STACK, 6, &stack);
    let Ok(core) = core.open() else { return };
    let quiet = |_: &str, _: u64, _: u64| {};
    let (anchors, _) = route_heap::find_heap(&core, &[], &quiet);
    for a in &anchors {
        assert!(a.code_size % 4096 == 0);
        assert!(a.function_offsets.iter().all(|&o| o < a.code_size));
    }
    let _ = route_artifact::from_artifact(&core, data, &quiet);
    let options = Search { artifacts: vec![("fuzzed".into(), data.into())], ..Search::default() };
    let objects = Objects::from_parts(Vec::new());
    let scene = Scene { target: &core, objects: &objects, progress: &Silent };
    let unknown = Cursor { address: CodeAddress::Exact(CODE + 16), registers };
    SinglepassProvider::new(options).discover(&scene, &[unknown], true);
});
