//! DWARF inside a `.wasm` file.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use gimli::{EndianArcSlice, LittleEndian};

use crate::limits::MAX_INLINE_DEPTH;
use crate::symbolize::native::demangle;

/// One source-level frame at an operator. Several where functions were inlined, innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFrame {
    /// Demangled function name.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line, 1-based.
    pub line: Option<u32>,
    /// Whether the function was inlined into the next.
    pub inlined: bool,
}

type Reader = EndianArcSlice<LittleEndian>;

pub(super) struct Dwarf {
    context: addr2line::Context<Reader>,
}

impl Dwarf {
    /// `None` if there is no usable DWARF in the custom sections.
    pub(super) fn load(bytes: &[u8], sections: &HashMap<String, Range<usize>>) -> Option<Dwarf> {
        if !sections.contains_key(".debug_info") {
            return None;
        }
        let dwarf = gimli::Dwarf::load(|id| {
            let data = sections.get(id.name()).and_then(|range| bytes.get(range.clone())).unwrap_or(&[]);
            Ok::<_, gimli::Error>(Reader::new(Arc::from(data), LittleEndian))
        })
        .ok()?;
        Some(Dwarf { context: addr2line::Context::from_dwarf(dwarf).ok()? })
    }

    /// Frames at `address`, an offset from the first byte of the code section's contents.
    pub(super) fn frames(&self, address: u64) -> Vec<SourceFrame> {
        let mut out: Vec<SourceFrame> = Vec::new();
        let Ok(mut frames) = self.context.find_frames(address).skip_all_loads() else { return out };
        while let Ok(Some(frame)) = frames.next() {
            if out.len() >= MAX_INLINE_DEPTH {
                break;
            }
            let function = frame.function.as_ref().and_then(|f| Some(demangle(&f.raw_name().ok()?)));
            let file = frame.location.as_ref().and_then(|l| l.file).map(str::to_string);
            let line = frame.location.as_ref().and_then(|l| l.line);
            if let Some(previous) = out.last_mut() {
                previous.inlined = true;
            }
            out.push(SourceFrame { function, file, line, inlined: false });
        }
        out.retain(|f| f.function.is_some() || f.file.is_some());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::inlined;

    #[test]
    fn so_many_inlined_functions_are_shown() {
        let (mut bytes, mut sections) = (Vec::new(), HashMap::new());
        for (name, contents) in inlined(0x1000, MAX_INLINE_DEPTH + 1) {
            sections.insert(name.to_string(), bytes.len()..bytes.len() + contents.len());
            bytes.extend(contents);
        }
        let frames = Dwarf::load(&bytes, &sections).unwrap().frames(0x1000);
        assert_eq!(frames.len(), MAX_INLINE_DEPTH);
        assert!(frames.iter().all(|f| f.function.as_deref() == Some("f")));
    }
}
