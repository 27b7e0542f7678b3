//! Reads the DWARF inside a `.wasm` file.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use gimli::{EndianArcSlice, LittleEndian};

use crate::limits::MAX_INLINE_DEPTH;
use crate::symbolize::native::demangle;
use crate::symbolize::nesting::is_too_deep;

/// One source-level frame at an operator. One operator has several where functions were inlined, innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFrame {
    /// Demangled name of the function.
    pub function: Option<String>,
    /// Path of the source file, as the debug information has it.
    pub file: Option<String>,
    /// Line in the source file, counted from 1.
    pub line: Option<u32>,
    /// Whether the function was inlined into the function of the next frame.
    pub inlined: bool,
}

type Reader = EndianArcSlice<LittleEndian>;

pub(super) struct Dwarf {
    dwarf: Arc<gimli::Dwarf<Reader>>,
    context: addr2line::Context<Reader>,
    /// Whether a unit has more levels of inlined functions than are read.
    too_deep: OnceLock<bool>,
}

impl Dwarf {
    /// Loads the DWARF in the custom sections. `None` if there is none that can be used.
    pub(super) fn load(bytes: &[u8], sections: &HashMap<String, Range<usize>>) -> Option<Dwarf> {
        if !sections.contains_key(".debug_info") {
            return None;
        }
        let mut dwarf = gimli::Dwarf::load(|id| {
            let data = sections.get(id.name()).and_then(|range| bytes.get(range.clone())).unwrap_or(&[]);
            Ok::<_, gimli::Error>(Reader::new(Arc::from(data), LittleEndian))
        })
        .ok()?;
        dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::Duplicates);
        let dwarf = Arc::new(dwarf);
        let context = addr2line::Context::from_arc_dwarf(dwarf.clone()).ok()?;
        Some(Dwarf { dwarf, context, too_deep: OnceLock::new() })
    }

    /// The source-level frames at `address`, which is a byte offset from the start of the code section's contents.
    pub(super) fn frames(&self, address: u64) -> Vec<SourceFrame> {
        if self.is_too_deep() {
            let Ok(Some(found)) = self.context.find_location(address) else { return Vec::new() };
            let file = found.file.map(str::to_string);
            return vec![SourceFrame { file, line: found.line, ..SourceFrame::default() }];
        }
        let mut out: Vec<SourceFrame> = Vec::new();
        let Ok(mut frames) = self.context.find_frames(address).skip_all_loads() else { return out };
        while let Ok(Some(frame)) = frames.next() {
            // There are at most as many frames as may be inlined, and the function around them.
            if out.len() > MAX_INLINE_DEPTH {
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

    fn is_too_deep(&self) -> bool {
        *self.too_deep.get_or_init(|| {
            let mut units = self.dwarf.units();
            std::iter::from_fn(|| units.next().ok().flatten()).any(|header| is_too_deep(&self.dwarf, &header))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::inlined;

    #[test]
    fn so_many_inlined_functions_are_shown() {
        let (mut bytes, mut sections) = (Vec::new(), HashMap::new());
        for (name, contents) in inlined(0x1000, MAX_INLINE_DEPTH) {
            sections.insert(name.to_string(), bytes.len()..bytes.len() + contents.len());
            bytes.extend(contents);
        }
        let frames = Dwarf::load(&bytes, &sections).unwrap().frames(0x1000);
        assert_eq!(frames.len(), MAX_INLINE_DEPTH + 1);
        assert!(frames.iter().all(|f| f.function.as_deref() == Some("f")));
    }
}
