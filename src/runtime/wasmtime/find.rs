//! Finds code images. For each mapping with code that belongs to no loaded file, the header of an image is looked for
//! before it.

use super::Wasmtime;
use super::image::info::{ImageInfo, ModuleInfo, WasmType};
use super::image::{DATA, HEADER_BYTES, Header, Image, Kind};
use super::tables::addrmap::FilePos;
use super::tables::code::Code;
use super::walk::frame::operator_index;
use crate::limits::{MAX_COMPARED_DATA, MAX_COMPARED_PLACES, MAX_HEADER_PAGES, MAX_IMAGES};
use crate::process::mapped_file::{MappedFile, WithFile};
use crate::process::{Mapping, Memory};
use crate::runtime::{
    Compared, Files, Fit, FoundBy, GuestModule, Key, Provider, Runtime, RuntimeName, Scene, UNRECORDED,
};
use crate::unwind::Cursor;
use crate::wasm::file::CoreModule;
use crate::wasm::{Declarations, ExternKind, ValType, WasmModule};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

const PAGE: u64 = 0x1000;

/// Finds the code images of this runtime.
#[derive(Default)]
pub struct WasmtimeProvider {
    runtime: Wasmtime,
    /// Whether the mappings were looked through. They do not change while a target is looked at.
    looked: bool,
}

impl WasmtimeProvider {
    /// A provider that has not looked for images yet.
    pub fn new() -> WasmtimeProvider {
        WasmtimeProvider::default()
    }

    fn take(&mut self, scene: &Scene<'_>, address: u64, file: Option<MappedFile>) {
        let with_file = WithFile { memory: scene.target, file: file.as_ref() };
        let image = match Image::read(&with_file, address) {
            Ok(image) => image,
            Err(e) => {
                let from_file = scene.target.mapping_at(address).is_some_and(|m| !m.is_anonymous());
                self.runtime.notes.push(match file {
                    Some(file) if file.compared == 0 => {
                        format!("wasmtime: {} is not the file that was mapped at {address:#x}: {e}", file.path.display())
                    }
                    None if from_file => format!(
                        "wasmtime: the code image at {address:#x} cannot be read: {e}; it was mapped from a file that is not \
                         here (--sysroot DIR)"
                    ),
                    _ => format!("wasmtime: the code image at {address:#x} cannot be read: {e}"),
                });
                return;
            }
        };
        if image.header().pulley.is_some() {
            self.runtime.notes.push(format!(
                "wasmtime: the code at {address:#x} is Pulley bytecode, which runs in an interpreter: its frames are not shown"
            ));
            return;
        }
        self.runtime.add(Code::load(image, file, scene.target));
    }
}

/// The address of the image whose code is in `mapping`, and the file that it was mapped from.
fn image_of(scene: &Scene<'_>, mapping: &Mapping) -> Option<(u64, Option<MappedFile>)> {
    if let Some(address) = header_before(scene, mapping) {
        return Some((address, file_of(scene, address)));
    }
    // A core may hold nothing of a mapped file. Then only the file's name leads to the image.
    let is_image = |file: &MappedFile| {
        let header = file.bytes.first_chunk::<HEADER_BYTES>();
        header.is_some_and(|header| Header::parse(header).is_ok())
    };
    let file = MappedFile::unproven(scene.target, mapping, is_image)?;
    Some((file.base, Some(file)))
}

/// The file that the image at `address` was mapped from, if it is here and begins as the image does.
fn file_of(scene: &Scene<'_>, address: u64) -> Option<MappedFile> {
    MappedFile::find(scene.target, scene.target.mapping_at(address)?, HEADER_BYTES)
}

/// What to say of executable memory that may have been a code image, if nothing of the image is in the target and its
/// file is not here.
fn absent(scene: &Scene<'_>, mapping: &Mapping) -> Option<String> {
    let path = mapping.path.as_ref().filter(|_| !mapping.is_anonymous())?;
    let base = mapping.start.checked_sub(mapping.offset)?;
    let none_is_there = |address| scene.target.read(address, &mut [0; HEADER_BYTES]).is_err();
    let is_cwasm = path.extension().is_some_and(|e| e == "cwasm");
    (is_cwasm && none_is_there(base)).then(|| {
        format!(
            "wasmtime: code at {:#x} was mapped from {}, which is neither in the core nor here: put the file of that very \
             run beside the core or under --sysroot DIR",
            mapping.start,
            path.display()
        )
    })
}

/// Address of the image whose code is in `mapping`: the nearest header before it.
fn header_before(scene: &Scene<'_>, mapping: &Mapping) -> Option<u64> {
    let mut ident = [0; 16];
    let mut at = mapping.start;
    let mut inside = mapping;
    for _ in 0..MAX_HEADER_PAGES {
        at = at.checked_sub(PAGE)?;
        if !inside.contains(at) {
            // An image has no holes, so the search ends where nothing is mapped.
            inside = scene.target.mapping_at(at)?;
        }
        if scene.target.read(at, &mut ident).is_ok() && Header::probe(&ident) && Header::read(scene.target, at).is_ok()
        {
            return Some(at);
        }
    }
    None
}

impl Provider for WasmtimeProvider {
    fn discover(&mut self, scene: &Scene<'_>, _: &[Cursor], _: bool) -> usize {
        if std::mem::replace(&mut self.looked, true) {
            return 0;
        }
        self.runtime.mappings = scene.target.mappings().to_vec();
        let before = self.runtime.listed.len();
        let mut images = BTreeSet::new();
        for mapping in scene.target.mappings().iter().filter(|m| m.may_execute()) {
            let known = self.runtime.code_at(mapping.start).is_some();
            if known || scene.objects.find(mapping.start).is_some() {
                continue;
            }
            let Some((address, file)) = image_of(scene, mapping) else {
                self.runtime.notes.extend(absent(scene, mapping));
                continue;
            };
            if images.len() == MAX_IMAGES {
                self.runtime.notes.push(format!("wasmtime: only the first {MAX_IMAGES} code images are looked at"));
                break;
            }
            if images.insert(address) {
                self.take(scene, address, file);
            }
        }
        self.runtime.listed.len() - before
    }

    fn files(&mut self) -> Option<&mut dyn Files> {
        Some(self)
    }

    fn code(&self, module: usize, local_function: u32, memory: &dyn Memory) -> Option<Vec<u8>> {
        let (code, number) = self.runtime.place(module).ok()?;
        code.code_of(number, local_function, memory)
    }

    fn own_name(&self, module: usize, function: u32) -> Option<String> {
        let (code, number) = self.runtime.place(module).ok()?;
        code.own_name(number, function)
    }

    fn key(&self, module: usize, left: &mut u64, memory: &dyn Memory) -> Option<Key> {
        let (code, number) = self.runtime.place(module).ok()?;
        code.key(number, left, memory)
    }

    fn runtime(&self) -> &dyn Runtime {
        &self.runtime
    }
}

impl Files for WasmtimeProvider {
    fn compare(&mut self, module: usize, file: &CoreModule, memory: &dyn Memory) -> Result<Fit, String> {
        let (code, number) = self.runtime.place(module).map_err(|why| why.to_string())?;
        fits(code, number, file, memory)
    }

    fn take_file(&mut self, module: usize, path: &Path, file: &CoreModule, fit: Fit) {
        let Some(code) = self.runtime.owner.get(module).and_then(|&i| self.runtime.codes.get_mut(i)) else { return };
        let Some(number) = module.checked_sub(code.first).filter(|number| *number < code.modules) else { return };
        let wasm = &file.wasm;
        // The Wasm that the image carries wins, unless the user's file adds names or lines to it.
        let adds = |own: &WasmModule| {
            wasm.body_offset(0) == own.body_offset(0)
                && ((wasm.has_sources() && !own.has_sources()) || (wasm.has_names() && !own.has_names()))
        };
        if code.wasm[number].as_deref().is_none_or(adds) {
            code.wasm[number] = Some(Rc::clone(wasm));
            code.wasm_shift[number] = Some(fit.shift);
        }
        code.wasm_compared[number] = Some(fit.summary);
        code.wasm_checks[number] = fit.checks;
        code.wasm_path[number] = Some(path.to_path_buf());
        code.wasm_base[number] = file.base;
        if let Some(listed) = self.runtime.listed.get_mut(module) {
            *listed = guest_module(code, number);
        }
    }
}

/// The distance between positions that are compared, in entries of the address map: 1 if all of them are.
fn step(places: usize) -> usize {
    places.div_ceil(MAX_COMPARED_PLACES).max(1)
}

/// Whether a module was compiled from this core module. Its functions, their types and its data are compared, and the
/// positions that the compiler kept must be operators of those very functions. If the image carries its Wasm, the
/// file must be the same up to custom sections. `Ok` says what was compared.
fn fits(code: &Code, module: usize, file: &CoreModule, memory: &dyn Memory) -> Result<Fit, String> {
    let wasm = &*file.wasm;
    let own = code.wasm.get(module).and_then(Option::as_deref).filter(|_| code.carries_wasm);
    let exact = match own {
        None => 0,
        Some(own) if own.bytes() == wasm.bytes() => 2,
        Some(own) => wasm.same_but_custom_sections(own).map(|()| 1)?,
    };
    if let Some(info) = code.module(module) {
        let counts = (info.imported.functions, info.defined().functions);
        let theirs = (wasm.imported_functions(), wasm.defined_functions());
        if counts != theirs {
            return Err(format!(
                "it has {} imported and {} own functions, the module has {} and {}",
                theirs.0, theirs.1, counts.0, counts.1
            ));
        }
    }
    let shift = code.shift_of(module, wasm)?;
    let mut checks = Vec::new();
    // A core module that was compiled alone knows nothing of the component that it may be from.
    let base = file.base.filter(|_| code.image.header().kind == Kind::Component);
    match (base, shift) {
        // Without a description nothing says where in its component the module is.
        (Some(base), None) => checks.push(format!("it lies at {base:#x} of the component")),
        (Some(base), Some(shift)) if base != shift => {
            return Err(format!(
                "it lies at {base:#x} of the component, and the module was made from what lies at {shift:#x}"
            ));
        }
        (None, Some(shift)) if shift != 0 => checks.push(format!(
            "the module lies at {shift:#x} of its component, from whose start its positions are counted"
        )),
        _ => {}
    }
    let shift = shift.or(base).unwrap_or(0);
    if exact > 0 {
        let summary = if exact == 2 { Compared::EveryByte } else { Compared::AllButCustomSections };
        return Ok(Fit { exact, summary, checks, shift });
    }
    if let (Ok(image), Some(info)) = (&code.info, code.module(module)) {
        wasm.declares(&declarations(image, info))?;
    }
    let has_data = compare_data(code, wasm, memory)?;
    let text = code.image.text().start;
    let mut compared = 0;
    if let Some(map) = code.address_map() {
        let places = map.iter().step_by(step(map.len())).filter_map(|(offset, place)| Some((offset, place?)));
        for (offset, place) in places {
            let [(owner, function)] = code.owners(offset)[..] else { continue };
            let FilePos(place) = place;
            if owner as usize != module {
                continue;
            }
            let local = function.checked_sub(wasm.imported_functions());
            let inner = u64::from(place).checked_sub(shift);
            let is_operator = inner.is_some_and(|inner| operator_index(wasm, local, inner).is_some());
            // Code that belongs to no operator has a position, too. A function's own code (stack checks) has that of
            // the function's body, and the code that sets locals to zero has those of their declarations.
            let is_before_operators = || {
                let (body, first) = (wasm.body_offset(local?)?, *wasm.operators(local?)?.first()?);
                Some((body..first).contains(&inner?))
            };
            if !is_operator && is_before_operators() != Some(true) {
                return Err(format!(
                    "the code at {:#x} was made from offset {place:#x}, where it has no operator",
                    text + u64::from(offset)
                ));
            }
            compared += 1;
        }
    }
    if compared == 0 && code.info.is_err() {
        return Err("the image keeps neither positions nor a description that the file could be compared with".into());
    }
    let summary = match (compared > 0, code.info.is_ok(), has_data) {
        (true, true, true) => Compared::PositionsDescriptionData,
        (true, true, false) => Compared::PositionsDescription,
        (true, false, true) => Compared::PositionsData,
        (true, false, false) => Compared::Positions,
        (false, _, true) => Compared::DescriptionData,
        (false, _, false) => Compared::Description,
    };
    Ok(Fit { exact, summary, checks, shift })
}

/// Whether the file's data is that of the image (`.rodata.wasm`). The image keeps the data of all its modules one
/// after the other, or laid out as it will be in memory. `Ok` says whether there was something to compare.
fn compare_data(code: &Code, wasm: &WasmModule, memory: &dyn Memory) -> Result<bool, String> {
    let segments = wasm.data_segments();
    let size = code.image.section(DATA).map_or(0, |s| s.size);
    if segments.is_empty() || size == 0 || size > MAX_COMPARED_DATA {
        return Ok(false);
    }
    // A segment that is overwritten by another one may be missing in the image.
    let mut placed: Vec<_> = segments.iter().filter_map(|s| s.place).collect();
    placed.sort_unstable();
    let overlap = |pair: &[(u32, u64, u64)]| pair[0].0 == pair[1].0 && pair[0].1.saturating_add(pair[0].2) > pair[1].1;
    if placed.windows(2).any(overlap) {
        return Ok(false);
    }
    let Ok(kept) = code.image.contents(DATA, &code.memory(memory)) else { return Ok(false) };
    match missing_data(&kept, segments.iter().map(|s| s.bytes)) {
        (Some(number), _) => Err(format!("data segment {number} of it is not among the data that the image keeps")),
        (None, compared) => Ok(compared),
    }
}

/// The number of the first of these segments that is not in `kept`, and whether one was found there.
fn missing_data<'a>(kept: &[u8], segments: impl Iterator<Item = &'a [u8]>) -> (Option<usize>, bool) {
    let mut left = MAX_COMPARED_DATA;
    let mut compared = false;
    for (number, bytes) in segments.enumerate() {
        // Zeros at the ends of a segment may have been left out.
        let is_zero = |byte: &&u8| **byte == 0;
        let front = bytes.iter().take_while(is_zero).count();
        let rest = bytes.get(front..).unwrap_or_default();
        let rest = rest.get(..rest.len() - rest.iter().rev().take_while(is_zero).count()).unwrap_or_default();
        if rest.is_empty() {
            continue;
        }
        let Some(still) = left.checked_sub(kept.len() as u64) else { break };
        left = still;
        if memchr::memmem::find(kept, rest).is_none() {
            return (Some(number), compared);
        }
        compared = true;
    }
    (None, compared)
}

/// What the image keeps of a module's declarations.
fn declarations(image: &ImageInfo, info: &ModuleInfo) -> Declarations {
    let kinds = [ExternKind::Function, ExternKind::Table, ExternKind::Memory, ExternKind::Global, ExternKind::Tag];
    let mut out = Declarations { imports: kinds.map(|kind| (kind, Vec::new())).into(), ..Declarations::default() };
    for import in &info.imports {
        out.add_import(import.entity.kind_and_index().0, &import.module, &import.field);
    }
    let plain = |types: &[WasmType]| -> Option<Vec<ValType>> {
        let numeric = |ty: &WasmType| (!matches!(ty, WasmType::Ref { .. })).then(|| ValType::from(*ty));
        types.iter().map(numeric).collect()
    };
    for (index, function) in (0..).zip(&info.functions) {
        let signature = || {
            let ty = image.types.get(function.signature? as usize)?.as_ref()?;
            Some((plain(&ty.params)?, plain(&ty.results)?))
        };
        out.signatures.extend(signature().map(|signature| (index, signature)));
    }
    out.exports = Some(info.exports.iter().map(Into::into).collect());
    out.memories = Some(info.memories.iter().map(Into::into).collect());
    out.tables = Some(info.tables.iter().map(Into::into).collect());
    out.globals = Some(info.globals.iter().map(Into::into).collect());
    // From version 46 on the compiled initializer calls the start function, and the image does not record it.
    out.start = (image.version.0 < 46).then_some(info.start);
    out
}

/// What is shown of a module.
pub(super) fn guest_module(code: &Code, module: usize) -> GuestModule {
    let text = code.image.text();
    let file = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let info = code.module(module);
    let user = code.wasm_path.get(module).and_then(Option::as_ref);
    let own = info.and_then(|i| i.name.as_deref()).filter(|n| !n.is_empty()).map(str::to_string);
    let cwasm = code.file.as_ref().and_then(|f| file(&f.path)).filter(|_| code.modules == 1);
    // A component has several modules, which are told apart by names of their own.
    let in_component = code.wasm_base.get(module).copied().flatten();
    let name = match in_component {
        Some(base) => own.or(user.and_then(file).map(|file| format!("{file} at {base:#x}"))),
        None => user.and_then(file).or(own),
    };
    let name = name.or(cwasm);
    let mut checks = vec!["an ELF header of Wasmtime's own kind (OSABI 200) before executable memory".to_string()];
    // If an image seems to have no functions, its tables cannot be read.
    let functions = (!code.functions.is_empty()).then(|| code.defined.get(module).copied().unwrap_or(0));
    if functions.is_some() {
        checks.push(format!("{} pieces of code that its tables name", code.functions.len()));
    }
    if let Ok(info) = &code.info {
        let decoded = format!("its description fits the layout of Wasmtime {} to the last byte", info.version.0);
        checks.push(decoded);
    }
    match &code.file {
        Some(file) if code.is_unproven() => checks.push(format!(
            "{} is named there and long enough; no return address into it is followed that is behind no call of it",
            file.path.display()
        )),
        Some(file) => checks.push(format!("{} begins with the same page", file.path.display())),
        None => {}
    }
    let compared = user.and_then(|_| code.wasm_compared.get(module).copied().flatten());
    if let (Some(path), Some(compared)) = (user, compared) {
        checks.push(format!("{} agrees with the image in {compared}", path.display()));
        checks.extend(code.wasm_checks.get(module).into_iter().flatten().cloned());
    }
    let version = code.version_text.as_deref().unwrap_or("of an unknown version");
    let mut problems = code.problems.clone();
    if code.has_frames() == Some(false) {
        problems.push(UNRECORDED.into());
    }
    GuestModule {
        runtime: RuntimeName::Wasmtime,
        name: name.unwrap_or_else(|| format!("module{}", code.first + module)),
        code: (text.start, text.end),
        routes: vec![FoundBy::Image],
        checks,
        functions,
        tracked: code.has_frames(),
        // The image does not say in so many words which of Wasmtime's compilers made it.
        backend: format!("wasmtime {version}"),
        wasm_file: user.map(|p| p.display().to_string()),
        wasm_compared: compared,
        problem: (!problems.is_empty()).then(|| problems.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::SliceMemory;
    use super::super::testing::{fixture, fixtures, sections};
    use super::*;
    use crate::process::Target;
    use crate::process::objects::Objects;
    use crate::process::testing::CoreBuilder;
    use crate::progress::Silent;

    /// Discovers images whose headers are these numbers of pages before their code. Returns how many headers are
    /// found, and the notes.
    fn discover(distances: &[u64]) -> (usize, Vec<String>) {
        let header = &fixture("48-default")[..PAGE as usize];
        let core = (1..).zip(distances).fold(CoreBuilder::new(), |core, (i, pages)| {
            let code = 0x10_0000 * i;
            core.memory(code - pages * PAGE, 4, header)
                .segment(code - (pages - 1) * PAGE, (pages - 1) * PAGE, 4, &[])
                .memory(code, 5, &[0x90; 16])
        });
        let core = core.open().unwrap();
        let objects = Objects::from_parts(Vec::new());
        let scene = Scene { target: &core, objects: &objects, progress: &Silent };
        let found = core.mappings().iter().filter(|m| m.execute && header_before(&scene, m).is_some()).count();
        let mut provider = WasmtimeProvider::default();
        provider.discover(&scene, &[], false);
        (found, provider.runtime.notes.clone())
    }

    #[test]
    fn headers_are_looked_for_in_so_many_pages_and_so_many_images_are_looked_at() {
        assert_eq!(discover(&[1, 2, MAX_HEADER_PAGES, MAX_HEADER_PAGES + 1]).0, 3);
        let is_cut = |count| discover(&vec![1; count]).1.iter().any(|n| n.contains("only the first"));
        assert!(!is_cut(MAX_IMAGES) && is_cut(MAX_IMAGES + 1));
    }

    fn edited(from: &str, to: &str) -> WasmModule {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/wasmtime/make/values.wat");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(from.is_empty() || text.contains(from), "{from}");
        WasmModule::parse("values.wasm".into(), wat::parse_str(text.replacen(from, to, 1)).unwrap()).unwrap()
    }

    /// Compares the descriptions of every version that is known.
    #[test]
    fn descriptions_are_compared() {
        let edits = [
            ("\"stop\"", "\"stopp\"", "imported func 0 is env.stop in the process, env.stopp in values.wasm"),
            ("\"env\" \"base\"", "\"enw\" \"base\"", "imported global 0 is env.base in the process, enw.base"),
            ("(global $base i32)", "(global $base f32)", "global 0 is i32 in the process, f32 in values.wasm"),
            ("1 3)", "9 50)", "memory 0 is 1..3 pages in the process, 9..50 pages in values.wasm"),
            ("2 4 funcref", "400 funcref", "table 0 is 2..4 elements of funcref in the process, 400.. elements"),
            ("2 4 funcref", "2 4 externref", "table 0 is 2..4 elements of funcref"),
            (
                "\"middle\"",
                "\"muddle\"",
                "the module in the process exports func 2 as \"middle\", values.wasm does not",
            ),
            ("(export \"leaf\")", "", "exports func 1 as \"leaf\", values.wasm does not"),
            (
                "(func (export \"run\")",
                "(func (export \"ran\") (export \"run\")",
                "values.wasm exports func 3 as \"ran\"",
            ),
            ("(global $vec (mut v128) (v128.const i64x2 1 2))", "", "global 3 is mut v128 in the process, not there"),
            ("(func $indirect (param i32)", "(func $indirect (param i32 i32)", "function 4 of all is (i32) -> (i32)"),
        ];
        let wanted = |name: &String| name.ends_with("-default");
        let names: Vec<_> = fixtures().into_iter().chain(sections()).filter(wanted).collect();
        assert!(names.len() >= 15, "{names:?}");
        for name in names {
            let info = super::super::testing::info(&name);
            let theirs = declarations(&info, &info.modules[0]);
            let checked = edited("", "").declares(&theirs).unwrap();
            assert!(checked.len() >= 6, "{name}: {checked:?}");
            for (from, to, reason) in edits {
                let why = edited(from, to).declares(&theirs).unwrap_err();
                assert!(why.contains(reason), "{name}: {why}");
            }
        }
    }

    #[test]
    fn the_wasm_that_an_image_carries_is_compared_byte_for_byte() {
        let bytes = fixture("48-guest-debug");
        let code = Code::load(Image::from_bytes(&bytes).unwrap(), None, &SliceMemory::new(0, &bytes));
        let own = code.wasm[0].as_ref().unwrap().bytes().to_vec();
        let fits = |bytes: Vec<u8>| {
            let wasm = Rc::new(WasmModule::parse("x.wasm".into(), bytes).unwrap());
            let memory = SliceMemory::new(0, &[]);
            fits(&code, 0, &CoreModule { wasm, base: None }, &memory).map(|fit| (fit.summary, fit.exact))
        };
        assert_eq!(fits(own.clone()), Ok((Compared::EveryByte, 2)));
        // One custom section is added, or all of them are left out.
        let more = [&own[..8], &[0, 2, 1, b'x'], &own[8..]].concat();
        assert_eq!(fits(more), Ok((Compared::AllButCustomSections, 1)));
        let mut bare = own[..8].to_vec();
        for payload in wasmparser::Parser::new(0).parse_all(&own).map(Result::unwrap) {
            if let Some((id, range)) = payload.as_section().filter(|(id, _)| *id != 0) {
                let data = &own[range.start as usize..range.end as usize];
                bare.push(id);
                bare.extend([data.len() as u8 & 0x7f | 0x80, (data.len() >> 7) as u8]);
                bare.extend(data);
            }
        }
        assert_eq!(fits(bare), Ok((Compared::AllButCustomSections, 1)));
        // Only a constant differs.
        let at = own.windows(8).position(|w| w == 2.5f64.to_le_bytes()).unwrap();
        let mut other = own.clone();
        other[at + 6] ^= 1;
        let why = fits(other).unwrap_err();
        assert!(why.ends_with(&format!("x.wasm differs first at offset {:#x}", at + 6)), "{why}");
    }

    #[test]
    fn data_is_looked_for_in_so_much() {
        let kept = |len: u64| [b"data".to_vec(), vec![1; len as usize - 4]].concat();
        let segments = || [&b"\0\0data\0"[..], b"\0", b"other"].into_iter();
        assert_eq!(missing_data(&kept(MAX_COMPARED_DATA / 2), segments()), (Some(2), true));
        assert_eq!(missing_data(&kept(MAX_COMPARED_DATA / 2 + 1), segments()), (None, true), "not looked for");
        assert_eq!(missing_data(&kept(8), [&b"\0"[..]].into_iter()), (None, false));
    }

    #[test]
    fn so_many_places_are_compared() {
        for len in [0, 1, MAX_COMPARED_PLACES, MAX_COMPARED_PLACES + 1, 10 * MAX_COMPARED_PLACES + 7] {
            let compared = (0..len).step_by(step(len)).count();
            assert!(compared <= MAX_COMPARED_PLACES && compared >= len.min(MAX_COMPARED_PLACES / 2), "{compared}");
        }
    }
}
