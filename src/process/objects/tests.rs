//! Tests of [`Objects`]: which files are found, and what is taken from memory.

use super::*;
use crate::arch::Registers;
use crate::process::debuginfod::Wanted;
use crate::process::elf::pt;
use crate::process::testing::{CoreBuilder, shared_object};

/// Name and contents of a section.
type Section<'a> = (&'a str, Vec<u8>);

/// A shared object with one page of headers and one page of code, with a build id and sections.
fn library(id: Option<u8>, code: u8, sections: &[Section<'_>]) -> Vec<u8> {
    let mut out = shared_object(
        &[
            (pt::LOAD, 4, 0, 0, 0x1000, 0x1000, 0x1000),
            (pt::LOAD, 5, 0x1000, 0x3000, 0x1000, 0x1000, 0x1000),
            (pt::NOTE, 4, 0x400, 0x400, if id.is_some() { 20 } else { 0 }, 20, 4),
            (7, 4, 0x800, 0x800, 8, 24, 16),
        ],
        id.unwrap_or(0),
    );
    out.resize(0x2000, code);

    let mut names = vec![0];
    let mut table = vec![0; 64];
    let mut section = |out: &mut Vec<u8>, name: &str, kind: u32, bytes: &[u8]| {
        let at = names.len() as u32;
        names.extend(name.bytes().chain([0]));
        let bytes = if kind == 3 { names.clone() } else { bytes.to_vec() };
        table.extend([at, kind].into_iter().flat_map(u32::to_le_bytes));
        table.extend([0, 0, out.len() as u64, bytes.len() as u64, 0, 1, 0].into_iter().flat_map(u64::to_le_bytes));
        table.resize(table.len().next_multiple_of(64), 0);
        out.extend(bytes);
    };
    for (name, bytes) in sections {
        section(&mut out, name, 1, bytes);
    }
    section(&mut out, ".shstrtab", 3, &[]);
    let shoff = out.len() as u64;
    out[40..48].copy_from_slice(&shoff.to_le_bytes());
    let count = sections.len() as u16 + 2;
    out[60..62].copy_from_slice(&count.to_le_bytes());
    out[62..64].copy_from_slice(&(count - 1).to_le_bytes());
    out.extend(table);
    out
}

fn loaded_at(base: u64, name: &str, image: &[u8]) -> CoreBuilder {
    CoreBuilder::new()
        .thread(1, 0, &Registers::unknown(crate::arch::Machine::X64), 0)
        .memory(base, 4, &image[..0x1000])
        .memory(base + 0x3000, 5, &image[0x1000..0x2000])
        .file(base, base + 0x1000, 0, name)
        .file(base + 0x3000, base + 0x4000, 0x1000, name)
}

fn load(core: &CoreBuilder, search: &SearchPaths) -> Objects {
    Objects::load(&core.open_with(search).unwrap(), search)
}

fn debuglink(name: &str, crc: u32) -> Vec<u8> {
    let mut link: Vec<u8> = name.bytes().chain([0]).collect();
    link.resize(link.len().next_multiple_of(4), 0);
    link.extend(crc.to_le_bytes());
    link
}

#[test]
fn a_missing_file_is_put_together_from_memory() {
    let image = library(Some(7), 0xc3, &[]);
    let core = loaded_at(0x10_0000, "/nowhere/libx.so", &image);
    let objects = load(&core, &SearchPaths::default());
    let lib = objects.find(0x10_3010).unwrap();
    assert_eq!((lib.name().as_str(), lib.bias, lib.svma(0x10_3010)), ("libx.so", 0x10_0000, 0x3010));
    assert_eq!(lib.build_id.as_deref(), Some(&[7; 4][..]));
    let Some(ObjectData::Memory(data)) = &lib.data else { panic!("no image") };
    assert_eq!(data[0x1000..], image[0x1000..0x2000]);
    assert!(object::File::parse(&data[..]).is_ok(), "its section headers are gone, and not asked for");
    assert!(lib.problem.as_ref().unwrap().what.contains("--sysroot"));
    assert!(objects.executable().is_none());
    // An address between the two mappings would be the library's, because it is in its range. This one lies
    // behind both.
    assert_eq!(objects.find(0x10_4000).map(|o| o.name()), None);
}

#[test]
fn the_executable_is_first_and_a_wrong_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (dir.path().join("right"), dir.path().join("wrong"));
    let image = library(Some(1), 0xc3, &[]);
    std::fs::write(&right, &image).unwrap();
    std::fs::write(&wrong, library(Some(2), 0xcc, &[])).unwrap();
    let lib = library(Some(9), 0x90, &[]);
    let core = loaded_at(0x10_0000, "/nowhere/lib.so", &lib);
    let core = core
        .auxv(libc::AT_PHDR, 0x20_0040)
        .memory(0x20_0000, 4, &image[..0x1000])
        .segment(0x20_3000, 0x1000, 5, &[])
        .file(0x20_0000, 0x20_1000, 0, "/nowhere/app")
        .file(0x20_3000, 0x20_4000, 0x1000, "/nowhere/app");

    let search = SearchPaths { executable: Some(right.clone()), ..SearchPaths::default() };
    let objects = load(&core, &search);
    let app = objects.executable().unwrap();
    assert_eq!((app.name().as_str(), app.opened.as_ref(), app.problem.as_ref()), ("app", Some(&right), None));
    assert_eq!(objects.iter().count(), 2);

    let search = SearchPaths { executable: Some(wrong), ..SearchPaths::default() };
    let objects = load(&core, &search);
    let app = objects.executable().unwrap();
    assert!(app.data.is_none());
    let problem = &app.problem.as_ref().unwrap().what;
    assert!(
        problem.contains("its build id is 02020202, the loaded file's is 01010101") && problem.contains("-e"),
        "{problem}"
    );
}

#[test]
fn a_file_loaded_twice_and_a_file_that_is_only_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lib.so");
    let image = library(Some(1), 0xc3, &[]);
    std::fs::write(&path, &image).unwrap();
    let name = path.to_str().unwrap();
    let core = loaded_at(0x10_0000, name, &image)
        .memory(0x50_0000, 4, &image[..0x1000])
        .memory(0x50_3000, 5, &image[0x1000..0x2000])
        .file(0x50_0000, 0x50_1000, 0, name)
        .file(0x50_3000, 0x50_4000, 0x1000, name)
        // A mapping of the whole file, as a backtracer makes it to read the file.
        .memory(0x90_0000, 4, &image[..0x2000])
        .file(0x90_0000, 0x90_2000, 0, name);
    let objects = load(&core, &SearchPaths::default());
    let mut biases: Vec<u64> = objects.iter().map(|o| o.bias).collect();
    biases.sort();
    assert_eq!(biases, [0x10_0000, 0x50_0000]);
    assert!(objects.iter().all(|o| matches!(o.data, Some(ObjectData::File(_)))));
    assert_eq!(objects.find(0x50_3000).map(|o| o.bias), Some(0x50_0000));
}

#[test]
fn debug_files_by_build_id_and_by_checked_link() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let debug = library(None, 0, &[(".debug_info", vec![1, 2, 3])]);
    let crc = crc32fast::hash(&debug);
    std::fs::create_dir_all(at(".debug")).unwrap();
    let search = SearchPaths { debug_dirs: vec![at("dbg")], ..SearchPaths::default() };
    let found = |id: Option<u8>, crc: u32| {
        let image = library(id, 0xc3, &[(".gnu_debuglink", debuglink("x.debug", crc))]);
        std::fs::write(at("lib.so"), &image).unwrap();
        let objects = load(&loaded_at(0x10_0000, at("lib.so").to_str().unwrap(), &image), &search);
        objects.find(0x10_3000).unwrap().debug.as_ref().map(|d| d.0.clone())
    };
    std::fs::write(at(".debug/x.debug"), &debug).unwrap();
    assert_eq!(found(None, crc), Some(at(".debug/x.debug")));
    assert_eq!(found(None, crc ^ 1), None, "another file of that name");

    std::fs::create_dir_all(at("dbg/.build-id/05")).unwrap();
    let by_id = at("dbg/.build-id/05/050505.debug");
    std::fs::write(&by_id, library(Some(6), 0, &[])).unwrap();
    assert_eq!(found(Some(5), crc ^ 1), None, "it has another id than its name says");
    std::fs::write(&by_id, library(Some(5), 0, &[])).unwrap();
    assert_eq!(found(Some(5), crc), Some(by_id));
}

/// What a server had is used where nothing is here, and only if its build id is the right one.
#[test]
fn files_that_were_fetched_are_checked_too() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let image = library(Some(5), 0xc3, &[]);
    let mut search = SearchPaths::default();
    search.fetched.add(Wanted::Executable, &[5; 4], at("executable"));
    search.fetched.add(Wanted::Debug, &[5; 4], at("debuginfo"));
    for (id, fits) in [(5, true), (6, false)] {
        std::fs::write(at("executable"), library(Some(id), 0xc3, &[])).unwrap();
        std::fs::write(at("debuginfo"), library(Some(id), 0, &[(".debug_info", vec![1, 2, 3])])).unwrap();
        let objects = load(&loaded_at(0x10_0000, "/nowhere/lib.so", &image), &search);
        let object = objects.find(0x10_3000).unwrap();
        assert_eq!(object.opened.is_some(), fits);
        assert_eq!(object.fits, fits.then_some(Fits::BuildId));
        assert_eq!(object.debug.as_ref().map(|(path, _)| path.clone()), fits.then(|| at("debuginfo")));
        assert_eq!(object.names().is_some_and(|names| names.debug_info), fits);
    }
}

#[test]
fn excerpts_are_let_go_one_after_the_other() {
    let excerpts = Excerpts::default();
    for _ in 0..5_000 {
        let bytes = memmap2::MmapOptions::new().len(1).map_anon().and_then(|m| m.make_read_only()).unwrap();
        assert_eq!(excerpts.keep(bytes), Some(&[0][..]));
    }
    let thread = std::thread::Builder::new().stack_size(64 << 10);
    thread.spawn(move || drop(excerpts)).unwrap().join().unwrap();
}

#[test]
fn lying_headers_cost_nothing() {
    let image = library(Some(1), 0xc3, &[]);
    for at in (0..64 + 56 * 4).filter(|at| !(16..20).contains(at)) {
        for value in [0, 0x7f, 0xff] {
            let mut image = image.clone();
            image[at] = value;
            let objects = load(&loaded_at(0x10_0000, "/nowhere/lib.so", &image), &SearchPaths::default());
            for o in objects.iter() {
                let _ = o.svma(0x10_3000);
            }
        }
    }
}

#[test]
fn a_file_is_loaded_so_often() {
    let image = library(Some(1), 0xc3, &[]);
    let often = 0..=limits::MAX_OBJECT_INSTANCES as u64;
    let core = often.fold(CoreBuilder::new(), |core, i| {
        let base = 0x10_0000 * (i + 1);
        core.memory(base, 4, &image[..0x1000])
            .memory(base + 0x3000, 5, &image[0x1000..0x2000])
            .file(base, base + 0x1000, 0, "/nowhere/lib.so")
            .file(base + 0x3000, base + 0x4000, 0x1000, "/nowhere/lib.so")
    });
    assert_eq!(load(&core, &SearchPaths::default()).iter().count(), limits::MAX_OBJECT_INSTANCES);
}

#[test]
fn images_are_put_together_up_to_a_size() {
    // The code of this file is at so large an offset that its image takes half of the bytes that all images may
    // take.
    let offset = limits::MAX_OBJECT_IMAGES / 2 - 0x1000;
    let mut image = library(Some(1), 0xc3, &[]);
    image[64 + 56 + 8..][..8].copy_from_slice(&offset.to_le_bytes());
    let core = (1..=3).fold(CoreBuilder::new(), |core, i| {
        let (base, name) = (0x10_0000 * i, format!("/nowhere/lib{i}.so"));
        core.memory(base, 4, &image[..0x1000])
            .memory(base + 0x3000, 5, &image[0x1000..0x2000])
            .file(base, base + 0x1000, 0, &name)
            .file(base + 0x3000, base + 0x4000, offset, &name)
    });
    let objects = load(&core, &SearchPaths::default());
    let has_data: Vec<bool> = objects.iter().map(|o| o.data.is_some()).collect();
    assert_eq!(has_data, [true, true, false]);
}

#[test]
fn so_much_of_a_vdso_is_read() {
    let mut image = library(Some(1), 0xc3, &[]);
    image.resize(limits::MAX_VDSO as usize + 0x1000, 0);
    let core = CoreBuilder::new().memory(0x10_0000, 5, &image).auxv(libc::AT_SYSINFO_EHDR, 0x10_0000);
    let objects = load(&core, &SearchPaths::default());
    let data = objects.find(0x10_0000).and_then(|o| o.data.as_deref()).unwrap();
    assert_eq!(data.len() as u64, limits::MAX_VDSO);
}
