//! The machine code of a function whose prologue is read: the first byte is the number of locals.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wstate::runtime::singlepass::module::code::Shape;

fuzz_target!(|data: &[u8]| {
    let Some((&locals, code)) = data.split_first() else { return };
    let locals = if locals == 255 { 100_000 } else { usize::from(locals) };
    let Ok(shape) = Shape::decode(code, locals) else { return };
    assert!(shape.body() <= code.len() as u64);
    for offset in (0..=code.len() as u64 + 1).chain([u64::MAX]) {
        let _ = (shape.at(offset), shape.vmctx(offset));
        for index in (0..locals.min(16)).chain([locals, usize::MAX]) {
            let _ = shape.pending(index, offset);
        }
    }
    let _ = shape.preserved();
});
