//! A state map, then the words of a stack: everything that is done with a map once it is decoded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use wstate::state::codec::decode_borsh_prefix;
use wstate::state::map::PointKind;
use wstate::state::KnownRegisters;
use wstate::state::read::{ValuePlace, read_frame, read_stack};
use wstate::state::validate::Validation;
use wstate::state::{CodeVersion, ModuleStateMap, validate};

const CODE: usize = 0x10_0000;
const STACK: u64 = 0x7ff0_0000;

fn look(map: &ModuleStateMap, validation: &Validation, offset: usize) {
    for point in [map.lookup(offset), map.point_before(offset), map.point_after(offset)].into_iter().flatten() {
        assert!(point.function_start <= point.offset || validation.is_bad(point.function_start));
        let _ = point.wasm_inst_offset();
        let _ = point.function.operator_of(point.kind, point.offset);
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok((map, used)) = decode_borsh_prefix(data) else { return };
    let (words, rest) = data[used..].as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|w| u64::from_le_bytes(*w)).collect();
    let validation = validate(&map, Some(map.total_size));
    let _ = validate(&map, None);
    assert!(validation.functions <= map.local_functions.len());

    let mut registers = [None; 32];
    for (i, r) in registers.iter_mut().enumerate() {
        let known = rest.first().is_none_or(|b| b >> (i % 8) & 1 == 1);
        *r = words.get(i).copied().filter(|_| known);
    }
    let mut reads = 0u64;
    let mut word = |address: u64| {
        reads += 1;
        let index = address.checked_sub(STACK)?;
        words.get(usize::try_from(index / 8).ok()?).copied().filter(|_| index % 8 == 0)
    };

    for offset in [0, 1, map.total_size.wrapping_sub(1), map.total_size, usize::MAX] {
        look(&map, &validation, offset);
    }
    let mut points = Vec::new();
    for (&start, function) in map.local_functions.iter().take(64) {
        look(&map, &validation, start);
        let bad = validation.is_bad(start);
        for kind in PointKind::ORDER {
            for (&offset, info) in function.table(kind).iter().take(64) {
                look(&map, &validation, offset);
                look(&map, &validation, offset.wrapping_add(1));
                let Some(diff) = function.diffs.get(info.diff_id) else { continue };
                let state = diff.build_state(function);
                // A long chain costs more than the budget without being wrong.
                assert!(bad || state.is_ok() || function.diffs.len() > 1000, "{start} {offset} {state:?}");
                let Ok(state) = state else { continue };
                points.push(offset);
                if let Ok(frame) = read_frame(function, &state, STACK, KnownRegisters(registers), &mut word) {
                    assert_eq!(frame.dump.locals.len(), frame.locals.len());
                    assert_eq!(frame.dump.locals.len(), function.locals.len());
                    assert_eq!(frame.dump.stack.len(), frame.stack.len());
                    let pairs =
                        frame.dump.locals.iter().zip(&frame.locals).chain(frame.dump.stack.iter().zip(&frame.stack));
                    for (value, place) in pairs {
                        assert_eq!(value.is_none(), matches!(place, ValuePlace::Missing(_)), "{place:?}");
                    }
                }
            }
        }
    }
    let version =
        CodeVersion { baseline: words.len() % 2 == 0, msm: Arc::new(map), base: CODE, backend: "singlepass".into() };
    for initial in points.iter().take(8).map(|p| Some(CODE.wrapping_add(*p) as u64)).chain([None]) {
        let (image, _) = read_stack(std::slice::from_ref(&version), STACK, registers, initial, None, None, &mut word);
        // Each frame is a return address at least.
        assert!(image.frames.len() <= words.len() + 1);
        let _ = image.output();
    }
});
