//! Describes the source of a whole function at once.

use super::sections::BIAS;
use super::{ImageDwarf, Scope, SourceFrame};
use crate::limits::MAX_LAYOUT_WORK;
use std::ops::Range;

impl ImageDwarf {
    /// The source-level functions of all code of the function at the offsets `code`. Each list has the innermost
    /// first and holds from its offset to the next. It is empty where nothing is described. `None` if the source of
    /// this function is not described.
    pub fn layout(&self, code: Range<u32>) -> Option<Vec<(u32, Vec<SourceFrame>)>> {
        let range = BIAS + u64::from(code.start)..BIAS + u64::from(code.end);
        let function = self.units.function_at(range.start).filter(|f| !f.unit.generated)?;
        let unit = function.unit.clone();
        let scopes = self.scopes_of(function, &mut |_, _, _| true);
        let mut work = MAX_LAYOUT_WORK;
        let ranges: Vec<Vec<(u64, u64)>> =
            scopes.iter().map(|s| self.units.ranges(&unit.unit, &s.entry.die, &mut work)).collect();
        let mut places = self.units.row_addresses(&unit, &range);
        places.push(range.start);
        places.extend(ranges.iter().flatten().flat_map(|&(begin, end)| [begin, end]).filter(|a| range.contains(a)));
        places.sort_unstable();
        places.dedup();
        let mut chain = |address: u64| {
            let mut chain: Vec<&Scope> = Vec::new();
            let mut innermost = 0;
            for (i, (scope, ranges)) in scopes.iter().zip(&ranges).enumerate() {
                work = work.saturating_sub(1 + ranges.len() as u64);
                let next = if chain.is_empty() { i == 0 } else { scope.parent == innermost };
                if next && ranges.iter().any(|&(begin, end)| begin <= address && address < end) {
                    innermost = i;
                    chain.push(scope);
                }
            }
            // If only a part of the chain was found, it would name the wrong function.
            if work == 0 { Vec::new() } else { chain }
        };
        let frames = |address| ((address - BIAS) as u32, self.source_frames(&chain(address), address));
        Some(places.into_iter().map(frames).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wasmtime::image::{Image, SliceMemory};
    use crate::runtime::wasmtime::testing::fixture;

    /// The layout says of each byte of the code what is said when only this byte is asked for.
    #[test]
    fn the_whole_is_the_sum_of_its_parts() {
        for (name, most) in [("c/48", 1), ("c/48-optimized", 2), ("c/36", 1)] {
            let bytes = fixture(name);
            let (image, memory) = (Image::from_bytes(&bytes).unwrap(), SliceMemory::new(0, &bytes));
            let dwarf = ImageDwarf::load(&image, &memory).unwrap().unwrap();
            let symbols = image.symbols(&memory).unwrap();
            let (mut functions, mut deepest) = (0, 0);
            for function in symbols.iter().filter(|f| f.kind.is_wasm()) {
                let Some(layout) = dwarf.layout(function.start..function.end()) else { continue };
                functions += 1;
                for at in function.start..function.end() {
                    let piece = layout.partition_point(|(from, _)| *from <= at).checked_sub(1).unwrap();
                    let expected = dwarf.frames(at);
                    assert_eq!(layout[piece].1, expected, "{name}: {at:#x}");
                    deepest = deepest.max(expected.len());
                }
            }
            assert!(functions > 2 && deepest == most, "{name}: {functions} functions, {deepest} deep");
        }
    }

    #[test]
    fn what_the_compiler_described_by_itself_is_no_source() {
        let bytes = fixture("48-debug-info");
        let (image, memory) = (Image::from_bytes(&bytes).unwrap(), SliceMemory::new(0, &bytes));
        let dwarf = ImageDwarf::load(&image, &memory).unwrap().unwrap();
        let symbols = image.symbols(&memory).unwrap();
        let mut wasm = symbols.iter().filter(|f| f.kind.is_wasm());
        assert!(wasm.all(|f| dwarf.layout(f.start..f.end()).is_none()));
    }
}
