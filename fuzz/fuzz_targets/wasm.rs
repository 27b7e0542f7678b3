//! A `.wasm` file that a user gives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wstate::state::PointKind;
use wstate::wasm::{FunctionFacts, ModuleFacts, WasmModule};

fuzz_target!(|data: &[u8]| {
    let Ok(module) = WasmModule::parse("fuzz.wasm".into(), data.to_vec()) else { return };
    let _ = (module.name(), module.invalid());
    let imports = module.imported_functions();
    let mut facts = ModuleFacts { imported_functions: Some(imports), functions: Vec::new(), ..ModuleFacts::default() };
    for f in (0..imports.saturating_add(module.defined_functions()).saturating_add(1)).take(64) {
        let _ = (module.function_name(f), module.signature(f), module.local_name(f, 0), module.local_name(f, 7));
    }
    for f in (0..module.defined_functions()).take(64) {
        let mut points = vec![(u64::MAX, PointKind::Loop)];
        for op in 0..128 {
            let Some(operator) = module.operator(f, op) else { break };
            assert!((operator.offset as usize) < data.len());
            let _ = module.source(operator.offset);
            for kind in [PointKind::Loop, PointKind::Call, PointKind::Trappable] {
                if module.stack_types_at(f, op, kind).is_some() {
                    points.push((op, kind));
                }
            }
        }
        let params = imports.checked_add(f).and_then(|i| module.signature(i)).map(|(params, _)| params.to_vec());
        facts.functions.push(FunctionFacts { locals: module.local_types(f).map(<[_]>::len), points, params, ..FunctionFacts::default() });
    }
    let _ = module.fits(&facts);
    facts.functions.truncate(1);
    let _ = module.fits(&facts);
    let _ = module.fits(&ModuleFacts::default());
    let _ = module.stack_types_at(u32::MAX, u64::MAX, PointKind::Call);
});
