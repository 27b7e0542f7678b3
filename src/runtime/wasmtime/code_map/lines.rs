//! Source lines of Wasmtime's code, and the functions that were inlined into it.

use super::instructions::Instructions;
use super::wasm_name;
use crate::limits::MAX_PLACED_FILES;
use crate::runtime::code_map::CompiledModule;
use crate::runtime::code_map::sources::{Scope, Sources};
use crate::runtime::wasmtime::image::info::FuncKind;
use crate::runtime::wasmtime::image::{Function, Kind};
use crate::runtime::wasmtime::tables::addrmap::FilePos;
use crate::runtime::wasmtime::tables::code::Code;
use crate::runtime::wasmtime::tables::dwarf::SourceFrame;
use crate::runtime::wasmtime::tables::frame_table::{FrameTable, InstPos, ProgramPoint};
use crate::wasm::WasmModule;
use std::collections::BTreeMap;

/// Where the pieces of one image's code come from.
pub struct Origins<'c> {
    code: &'c Code,
    /// The `.wasm` file that positions count in. In a component they count from the component's start, and the component
    /// is not at hand: then this is `None`.
    wasm: Option<&'c WasmModule>,
    sources: Sources<'c>,
    /// The address map: code offsets, and positions in the Wasm file.
    places: Vec<(u32, Option<FilePos>)>,
}

impl<'c> Origins<'c> {
    pub fn of(code: &'c Code) -> Origins<'c> {
        let wasm = code.wasm.first().and_then(Option::as_deref).filter(|_| code.image.header().kind == Kind::Module);
        let map = code.address_map().filter(|_| code.files() <= MAX_PLACED_FILES);
        let places = map.map(|map| map.iter().collect()).unwrap_or_default();
        Origins { code, wasm, sources: Sources::new(wasm), places }
    }

    /// The pieces of Wasm function `key` (module, function), for [`crate::runtime::code_map::sources::lay_out`].
    /// `points` is what the frame table says of the function, settled.
    pub fn pieces(
        &mut self,
        function: &Function,
        key: (u32, u32),
        table: Option<&FrameTable<'_>>,
        points: &[ProgramPoint],
        instructions: &Instructions,
    ) -> Vec<(u32, Vec<Scope>)> {
        if let Some(layout) = self.code.dwarf.as_ref().and_then(|d| d.layout(function.start..function.end())) {
            let from = |offset: u32| offset.saturating_sub(function.start);
            return layout.into_iter().map(|(offset, frames)| (from(offset), self.described(frames))).collect();
        }
        let mut pieces = BTreeMap::new();
        let first = self.places.partition_point(|p| p.0 <= function.start).saturating_sub(1);
        let behind = self.places.partition_point(|p| p.0 < function.end());
        for i in first..behind {
            let Some(&(offset, place)) = self.places.get(i) else { break };
            pieces.insert(offset.saturating_sub(function.start), self.at(key, place));
        }
        // The code that sets up the frame is the function's own.
        let own = || self.wasm?.body_offset(key.1.checked_sub(self.wasm?.imported_functions())?);
        if let Some(body) = own()
            && pieces.get(&0).is_none_or(Vec::is_empty)
        {
            pieces.insert(0, self.at(key, u32::try_from(body).ok().map(FilePos)));
        }
        // Where the compiler recorded what was inlined, all of it is known.
        for point in points.iter().filter(|p| p.frames.len() > 1) {
            let at = point.text_offset.saturating_sub(function.start);
            // The piece is the whole instruction, because a debugger looks a caller up one byte before its return
            // address, and puts breakpoints where a line begins.
            let whole = match point.position {
                InstPos::Post => instructions.ending_at(at).map(|from| (from, at)),
                InstPos::Pre => instructions.beginning_at(at).map(|to| (at, to)),
            };
            let Some((from, to)) = whole else { continue };
            let scopes = table.and_then(|table| self.recorded(key, table, point));
            let Some(scopes) = scopes else { continue };
            if !pieces.contains_key(&to) {
                let in_force = pieces.range(..=to).next_back().map(|(_, scopes)| scopes.clone());
                pieces.insert(to, in_force.unwrap_or_default());
            }
            pieces.insert(from, scopes);
        }
        pieces.into_iter().collect()
    }

    /// Offsets in a function at which instructions begin for certain: each place of the address map.
    pub fn known_starts(&self, function: &Function) -> Vec<u32> {
        let first = self.places.partition_point(|p| p.0 < function.start);
        let behind = self.places.partition_point(|p| p.0 < function.end());
        let places = self.places.get(first..behind).unwrap_or_default();
        places.iter().map(|p| p.0 - function.start).collect()
    }

    /// The code of operators that do nothing themselves (`nop`, `block`, `loop`, `else`, `end`), as begin and end
    /// offsets in the function.
    pub fn idle(&self, function: &Function) -> Vec<(u32, u32)> {
        let Some(wasm) = self.wasm else { return Vec::new() };
        let first = self.places.partition_point(|p| p.0 < function.start);
        let behind = self.places.partition_point(|p| p.0 < function.end());
        let places = self.places.get(first..behind).unwrap_or_default();
        let is_idle = |place: &Option<FilePos>| {
            let byte = place.and_then(|p| wasm.bytes().get(usize::try_from(p.0).ok()?));
            matches!(byte, Some(0x01 | 0x02 | 0x03 | 0x05 | 0x0b))
        };
        let next = |i: usize| places.get(i + 1).map_or(function.len, |p| p.0 - function.start);
        let idle = places.iter().enumerate().filter(|(_, (_, place))| is_idle(place));
        idle.map(|(i, (offset, _))| (offset - function.start, next(i))).collect()
    }

    /// Hands files and text over to the module.
    pub fn finish(self, out: &mut CompiledModule) {
        self.sources.finish(out);
    }

    fn described(&mut self, frames: Vec<SourceFrame>) -> Vec<Scope> {
        let scope = |frame: SourceFrame| Scope {
            name: frame.function.unwrap_or_default(),
            line: frame.file.zip(frame.line).and_then(|(path, line)| self.sources.line(path, line)),
        };
        frames.into_iter().rev().map(scope).collect()
    }

    /// The functions at a place in the file, as far as they can be told from it. If the place is in another
    /// function's body, that function was inlined, and the functions between the two are not known.
    fn at(&mut self, key: (u32, u32), place: Option<FilePos>) -> Vec<Scope> {
        let Some(place) = place else { return Vec::new() };
        let mut scopes = self.sources.scopes(u64::from(place.0));
        let owners = self.code.owners_of(place, Some(key));
        if !owners.is_empty() && owners != [key] {
            if scopes.is_empty() {
                scopes.push(Scope::default());
            }
            if let Some(outermost) = scopes.first_mut() {
                let names = owners.iter().map(|(module, function)| wasm_name(self.code, *module, *function, None));
                outermost.name = names.collect::<Vec<_>>().join(" or ");
            }
            scopes.insert(0, Scope::default());
        }
        scopes
    }

    /// The functions at a point of the frame table, outermost first. `None` if the point is not of the function
    /// `own`.
    fn recorded(&mut self, own: (u32, u32), table: &FrameTable<'_>, point: &ProgramPoint) -> Option<Vec<Scope>> {
        let mut out = Vec::new();
        let mut outermost = None;
        for frame in &point.frames {
            let key = table.descriptor(frame.descriptor).ok()?.function;
            if key.kind != FuncKind::Wasm {
                return None;
            }
            let function = self.code.imports(key.namespace as usize)?.checked_add(key.index)?;
            outermost = Some((key.namespace, function));
            out.push(Scope {
                name: wasm_name(self.code, key.namespace, function, None),
                line: self.sources.line_at(u64::from(frame.wasm_pc)),
            });
        }
        out.reverse();
        Some(out).filter(|_| outermost == Some(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_SYMBOL_PLACES;
    use crate::runtime::Runtime;
    use crate::runtime::code_map::{CompiledFunction, Detail, Inlined, SourceFile};
    use crate::runtime::wasmtime::Wasmtime;
    use crate::runtime::wasmtime::image::{FunctionKind, Image, SliceMemory};
    use crate::runtime::wasmtime::testing::fixture;
    use std::rc::Rc;

    fn load(name: &str) -> (Code, Vec<u8>) {
        let bytes = fixture(name);
        let code = Code::load(Image::from_bytes(&bytes).unwrap(), None, &SliceMemory::new(0, &bytes));
        (code, bytes)
    }

    fn described(code: Code, bytes: &[u8]) -> CompiledModule {
        let mut runtime = Wasmtime::default();
        runtime.add(code);
        runtime.code_map(&Detail::All, &SliceMemory::new(0, bytes)).modules.remove(0)
    }

    /// The number of the line in force at an offset of the function, 0 if there is none.
    fn line_at(function: &CompiledFunction, offset: u32) -> u32 {
        let row = function.lines.partition_point(|l| l.offset <= offset).checked_sub(1);
        row.and_then(|row| function.lines.get(row)).map_or(0, |l| l.at.line)
    }

    /// In the text each operator of the address map is on the line that its code has, and code of no operator has no
    /// line.
    #[test]
    fn lines_of_the_text_are_those_of_the_operators() {
        for name in ["48-default", "48-guest-debug", "36-default"] {
            let wasm = load("48-guest-debug").0.wasm[0].clone().unwrap();
            let (mut code, bytes) = load(name);
            code.wasm[0] = Some(Rc::clone(&wasm));
            let places: Vec<_> = code.address_map().unwrap().iter().collect();
            let functions: Vec<_> = code.functions.iter().collect();
            let module = described(code, &bytes);
            assert_eq!(module.files, [SourceFile::Text]);
            let text: Vec<&str> = module.text.as_deref().unwrap().lines().collect();
            let (mut compared, mut without) = (0, 0);
            for (offset, place) in places {
                let Some(owner) = functions.iter().find(|f| f.start <= offset && offset < f.end()) else { continue };
                let FunctionKind::Wasm { function, .. } = owner.kind else { continue };
                let compiled =
                    module.functions.iter().find(|f| f.start == module.base + u64::from(owner.start)).unwrap();
                let line = line_at(compiled, offset - owner.start);
                let local = function - wasm.imported_functions();
                let operator = place.and_then(|p| {
                    let index = wasm.operators(local)?.binary_search(&u64::from(p.0)).ok()?;
                    wasm.operator(local, index as u64)
                });
                let Some(operator) = operator else {
                    without += 1;
                    // The code that sets up the frame is on the function's line, and the code that sets up the locals
                    // on theirs.
                    let shown = line.checked_sub(1).map_or("", |line| text[line as usize].trim_start());
                    let own = shown.starts_with("(func ") || shown.starts_with("(local ");
                    assert!(line == 0 || own, "{name} {offset:#x}: {shown}");
                    continue;
                };
                let shown = text[line as usize - 1].trim_start();
                let word = operator.text.split(' ').next().unwrap();
                // The last `end` is the bracket that closes the function.
                let same = shown.starts_with(word) || (word == "end" && shown.starts_with(')'));
                assert!(same, "{name} {offset:#x}: {word}, but {shown}");
                compared += 1;
            }
            assert!(compared > 20 && without > 5, "{name}: {compared}, {without}");
            let ends = module.functions.iter().filter(|f| f.lines.iter().any(|l| l.prologue_end)).count();
            assert_eq!(ends, wasm.defined_functions() as usize, "{name}");
        }
    }

    /// A debugger puts breakpoints where lines begin. A breakpoint inside of an instruction makes another instruction
    /// of it.
    #[test]
    fn lines_begin_with_instructions() {
        let wasm = load("48-guest-debug").0.wasm[0].clone().unwrap();
        let of_c = ["c/36", "c/48", "c/48-optimized"].map(str::to_string);
        let (mut rows, mut ends, mut with_lines) = (0, 0, 0);
        for name in crate::runtime::wasmtime::testing::fixtures().into_iter().chain(of_c) {
            let (mut code, bytes) = load(&name);
            if code.image.header().kind == Kind::Module && !name.starts_with("c/") && code.wasm[0].is_none() {
                code.wasm[0] = Some(Rc::clone(&wasm));
            }
            let module = described(code, &bytes);
            for function in &module.functions {
                let from = (function.start - module.base) as usize;
                let body = &module.code[from..from + function.len as usize];
                let mut starts = std::collections::BTreeSet::new();
                let mut decoder = iced_x86::Decoder::new(64, body, iced_x86::DecoderOptions::NONE);
                while decoder.can_decode() {
                    starts.insert(decoder.position() as u32);
                    let _ = decoder.decode();
                }
                for line in &function.lines {
                    assert!(starts.contains(&line.offset), "{name} {:?} {line:?}", function.name);
                    assert!(!line.prologue_end || line.statement, "{name} {:?} {line:?}", function.name);
                    rows += 1;
                    ends += usize::from(line.prologue_end);
                }
                with_lines += usize::from(!function.lines.is_empty());
            }
        }
        assert!(rows > 350 && ends > 35 && with_lines > 40, "{rows} rows, {ends} ends of {with_lines} functions");
    }

    fn chain_at(functions: &[Inlined], offset: u32) -> Vec<&Inlined> {
        let covers = |i: &&Inlined| i.ranges.iter().any(|(from, to)| (*from..*to).contains(&offset));
        let Some(one) = functions.iter().find(covers) else { return Vec::new() };
        let mut chain = vec![one];
        chain.extend(chain_at(&one.inner, offset));
        chain
    }

    #[test]
    fn inlined_functions_are_those_that_the_compiler_recorded() {
        let (code, bytes) = load("48-inline");
        let section = code.frame_table().unwrap();
        let points: Vec<ProgramPoint> = (0..section.points()).map(|i| section.point(i).unwrap().unwrap()).collect();
        let functions: Vec<_> = code.functions.iter().collect();
        let module = described(code, &bytes);
        let text: Vec<&str> = module.text.as_deref().unwrap().lines().collect();
        let mut seen = Vec::new();
        for point in points.iter().filter(|p| p.position == InstPos::Post) {
            let at = point.text_offset - 1;
            let owner = functions.iter().find(|f| f.start <= at && at < f.end()).unwrap();
            let compiled = module.functions.iter().find(|f| f.start == module.base + u64::from(owner.start)).unwrap();
            let chain = chain_at(&compiled.inlined, at - owner.start);
            assert_eq!(chain.len() + 1, point.frames.len(), "{at:#x}");
            for inlined in &chain {
                let call = text[inlined.call.unwrap().line as usize - 1].trim();
                assert_eq!(call, format!("call ${}", inlined.name), "{at:#x}");
            }
            let names = chain.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(" ");
            if !seen.contains(&names) {
                seen.push(names);
            }
        }
        assert!(seen.iter().any(|s| s == "middle leaf") && seen.iter().any(String::is_empty), "{seen:?}");
    }

    #[test]
    fn source_lines_come_from_the_image() {
        let (code, bytes) = load("c/48-optimized");
        let dwarf =
            crate::runtime::wasmtime::tables::dwarf::ImageDwarf::load(&code.image, &SliceMemory::new(0, &bytes))
                .unwrap()
                .unwrap();
        let functions: Vec<_> = code.functions.iter().collect();
        let module = described(code, &bytes);
        assert!(matches!(module.files.as_slice(), [SourceFile::Path(path)] if path.ends_with("c-guest.c")));
        let mut inlined = 0;
        for owner in functions.iter().filter(|f| f.kind.is_wasm()) {
            let compiled = module.functions.iter().find(|f| f.start == module.base + u64::from(owner.start)).unwrap();
            for at in owner.start..owner.end() {
                let frames = dwarf.frames(at);
                assert_eq!(line_at(compiled, at - owner.start), frames[0].line.unwrap_or(0), "{at:#x}");
                let chain = chain_at(&compiled.inlined, at - owner.start);
                let ours: Vec<_> = chain.iter().rev().map(|i| (Some(i.name.clone()), i.call.map(|c| c.line))).collect();
                let calls = frames.iter().zip(frames.iter().skip(1));
                let theirs: Vec<_> = calls.map(|(inner, outer)| (inner.function.clone(), outer.line)).collect();
                assert_eq!(ours, theirs, "{at:#x}");
                inlined += ours.len();
            }
        }
        assert!(inlined > 10, "{inlined}");
    }

    #[test]
    fn places_of_many_files_or_of_much_code_are_left_out() {
        let (mut code, _) = load("48-default");
        for (files, placed) in [(MAX_PLACED_FILES, true), (MAX_PLACED_FILES + 1, false)] {
            code.bodies.resize_with(files, Default::default);
            assert_eq!(!Origins::of(&code).places.is_empty(), placed);
        }
        let (code, bytes) = load("48-guest-debug");
        let often = MAX_SYMBOL_PLACES / code.frame_table().unwrap().points();
        assert!(often > 1);
        let mut runtime = Wasmtime::default();
        (0..often + 2).for_each(|_| runtime.add(load("48-guest-debug").0));
        let map = runtime.code_map(&Detail::All, &SliceMemory::new(0, &bytes));
        let has_places =
            |m: &CompiledModule| m.functions.iter().flat_map(|f| &f.variables).any(|v| !v.places.is_empty());
        let with: Vec<bool> = map.modules.iter().map(has_places).collect();
        assert!(with[..often].iter().all(|w| *w) && !with[often + 1], "{with:?}");
    }
}
