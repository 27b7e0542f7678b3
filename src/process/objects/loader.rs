//! Finds the file on disk that was loaded at some mappings, or puts it together from memory.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::{Doubt, Excerpts, Fits, LoadedObject, ObjectData, Problem, SearchPaths, Unpacked};
use crate::limits;
use crate::process::debuginfod::Wanted;
use crate::process::elf::{self, HEADER_SIZE, Headers, LoadedHeaders, pf, pt};
use crate::process::file_kind::{self, Door};
use crate::process::files::{FileLocation, Mapped, map_location};
use crate::process::same_file::{self, Evidence};
use crate::process::{Mapping, Target};

pub(super) struct Loader<'a> {
    pub(super) target: &'a dyn Target,
    pub(super) search: &'a SearchPaths,
    image_budget: Cell<u64>,
    pub(super) doubts: RefCell<Vec<Doubt>>,
    pub(super) notes: RefCell<Vec<String>>,
}

/// A file on disk that may be the one that was loaded.
struct Candidate {
    place: FileLocation,
    file: Mapped,
    headers: Headers,
    /// What tells that it is the one that was loaded.
    fits: Fits,
}

/// A loaded file with the ranges of its mappings.
pub(super) type MappedObject = (LoadedObject, Vec<(u64, u64)>);

impl<'a> Loader<'a> {
    pub(super) fn new(target: &'a dyn Target, search: &'a SearchPaths) -> Loader<'a> {
        let image_budget = Cell::new(limits::MAX_OBJECT_IMAGES);
        Loader { target, search, image_budget, doubts: RefCell::default(), notes: RefCell::default() }
    }

    fn read(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        self.target.read_vec(address, len).ok()
    }

    /// All places at which one file is loaded.
    pub(super) fn file(&self, path: &Path, mappings: &[&Mapping], is_main: bool) -> Vec<MappedObject> {
        // A file that is mapped only to be read (a locale archive, or the executable of a backtracer that maps
        // itself) has no code mapped.
        if !is_main && !mappings.iter().any(|m| m.may_execute()) {
            return Vec::new();
        }
        let Some(&lowest) = mappings.first() else { return Vec::new() };
        let memory =
            mappings.iter().filter(|m| m.offset == 0 && m.read).find_map(|m| LoadedHeaders::read(self.target, m.start));
        let (file, mut problem) = self.open(lowest, mappings, memory.as_ref(), is_main);
        let headers = memory.as_ref().map(|m| m.headers.clone()).or_else(|| file.as_ref().map(|f| f.headers.clone()));
        let Some(headers) = headers else {
            // JIT dumps, devices and similar files can be mapped executable although they are no ELF files.
            let is_elf_name = is_main || path.to_string_lossy().contains(".so") || problem.is_some();
            let special = path.starts_with("/dev") || path.starts_with("/memfd:") || path.starts_with("/SYSV");
            if !is_elf_name || special || file.is_some() {
                return Vec::new();
            }
            let problem = problem.or_else(|| Some(self.missing(path)));
            let bias = lowest.start.wrapping_sub(lowest.offset);
            let ranges = mappings.iter().map(|m| (m.start, m.end)).collect();
            return vec![object(path, bias, ranges, None, None, None, problem)];
        };
        let mut instances = instances(&headers, mappings);
        if instances.is_empty()
            && let Some(bias) = memory.as_ref().and_then(|m| m.bias)
        {
            instances.push((bias, mappings.iter().map(|m| (m.start, m.end)).collect()));
        }
        let doubt = match &file {
            Some(file) if file.fits != Fits::NotCompared => None,
            Some(file) => {
                let what =
                    "its names may be those of another build: it has no build id, and its code could not be compared";
                Some(Some(format!("{}: {what} with the code that ran", file.place.path().display())))
            }
            // The file that is at the path now is another one.
            None => problem.is_some().then_some(None),
        };
        let fits = file.as_ref().map(|f| f.fits);
        let mut file = file.map(|f| (f.place, f.file));
        let mut out = Vec::new();
        let mut left = instances.len();
        for (bias, ranges) in instances {
            left -= 1;
            let mut build_id = memory.as_ref().and_then(|m| m.build_id.clone());
            // A second instance of the file needs its own mapping of it.
            let again = file
                .as_ref()
                .filter(|_| left > 0)
                .and_then(|(place, _)| Some((place.clone(), map_location(place).ok()?)));
            if let Some(note) = &doubt {
                let doubts = ranges.iter().map(|&range| Doubt { range, note: note.clone() });
                self.doubts.borrow_mut().extend(doubts);
            }
            let (opened, data) = match std::mem::replace(&mut file, again) {
                Some((place, map)) => (Some(place), Some(ObjectData::File(map))),
                None => (None, self.image(&headers, bias).map(ObjectData::Memory)),
            };
            if opened.is_none() && problem.is_none() {
                problem = Some(self.missing(path));
            }
            let debug = match (&opened, &data) {
                (Some(opened), Some(data)) => {
                    build_id = build_id.or_else(|| headers.build_id_of_file(data));
                    self.debug_file(&self.near(path, lowest, opened), path, data, build_id.as_deref())
                }
                _ => build_id.as_deref().and_then(|id| self.debug_by_build_id(id)),
            };
            let opened = opened.map(|place| place.path().to_path_buf());
            let mut found = object(path, bias, ranges, opened, build_id, data, problem.clone());
            found.0.debug = debug;
            found.0.fits = fits.filter(|_| found.0.opened.is_some());
            out.push(found);
        }
        out
    }

    /// The first candidate that is the same file as the one in memory, as far as that can be told. Otherwise the
    /// reason why there is none. The second part can also be a remark about a wrong file although a right one was
    /// found.
    fn open(
        &self,
        mapping: &Mapping,
        mappings: &[&Mapping],
        memory: Option<&LoadedHeaders>,
        is_main: bool,
    ) -> (Option<Candidate>, Option<Problem>) {
        let given = self.search.executable.clone().filter(|_| is_main).map(FileLocation::user);
        let mut candidates = Vec::from_iter(given.clone());
        candidates.extend(self.target.file_candidates(mapping));
        let fetched = memory.and_then(|m| self.search.fetched.get(Wanted::Executable, m.build_id.as_ref()?));
        candidates.extend(fetched.map(FileLocation::user));
        let mut seen = HashSet::new();
        // What is wrong with the first file that is another one, and the option that names the right one.
        let mut wrong: Option<(Problem, &str)> = None;
        let mut refused = None;
        for candidate in candidates.into_iter().filter(|c| seen.insert(c.clone())) {
            let problem = |what: String| Problem { file: candidate.path().to_path_buf(), what };
            let file = match map_location(&candidate) {
                Ok(file) => file,
                Err(e) => {
                    use std::io::ErrorKind;
                    let what = || format!("{}: {e}", candidate.path().display());
                    match e.kind() {
                        ErrorKind::PermissionDenied => {
                            refused = refused.or_else(|| {
                                Some(problem(format!("{}; run wstate as the owner of the file or with sudo", what())))
                            });
                        }
                        ErrorKind::TimedOut | ErrorKind::FileTooLarge | ErrorKind::OutOfMemory | ErrorKind::Other => {
                            refused = refused.or_else(|| Some(problem(what())));
                            // The other candidates lead to the same file, which would not answer either.
                            if self.target.is_live() && e.kind() == ErrorKind::TimedOut {
                                break;
                            }
                        }
                        _ => {}
                    }
                    continue;
                }
            };
            let another_kind =
                given.as_ref().filter(|g| **g == candidate).and_then(|_| file_kind::refusal(&file, Door::Executable));
            if let Some(why) = another_kind {
                wrong = wrong.or(Some((problem(format!("{} is not used: {why}", candidate.path().display())), "")));
                continue;
            }
            let Some(headers) = Headers::of_file(&file) else {
                if memory.is_some() {
                    let what = format!("{} is not an x86-64 ELF file", candidate.path().display());
                    wrong = wrong.or(Some((problem(what), "")));
                }
                continue;
            };
            let id = headers.build_id_of_file(&file);
            let another = self.target.maps_another(mapping, &file.identity());
            let (why, by_id) = match memory {
                _ if another => (Some("another file is mapped".to_string()), false),
                Some(m) => (differs(m, &headers, id.as_deref()), m.build_id.is_some()),
                None => {
                    let agrees = headers.dynamic_agrees(&file, mappings, self.target);
                    let why = (agrees == Some(false)).then(|| "its dynamic section differs".to_string());
                    (why, agrees == Some(true) && id.is_some())
                }
            };
            let evidence = match &why {
                None if by_id || candidate.is_kernel() => Evidence::Same,
                None => {
                    let read = |address, buffer: &mut [u8]| self.target.read_own(address, buffer);
                    same_file::compare(&file, &headers, mappings, read)
                }
                Some(_) => Evidence::Other,
            };
            let why = why.or_else(|| {
                (evidence == Evidence::Other)
                    .then(|| "its code differs, perhaps because it was built again since".to_string())
            });
            match why {
                None => {
                    let by_build_id = memory.is_some_and(|m| m.build_id.is_some());
                    let fits = match evidence {
                        Evidence::Same if by_build_id => Fits::BuildId,
                        Evidence::Same if candidate.is_kernel() => Fits::Kernel,
                        Evidence::Same => Fits::Code,
                        _ => Fits::NotCompared,
                    };
                    let remark = wrong.filter(|_| is_main && self.search.executable.is_some());
                    let remark = remark.map(|(wrong, _)| Problem {
                        what: format!("{}; {} is used instead", wrong.what, candidate.path().display()),
                        ..wrong
                    });
                    return (Some(Candidate { place: candidate, file, headers, fits }), remark);
                }
                Some(why) => {
                    let what = format!("{} is not the file that was loaded: {why}", candidate.path().display());
                    wrong = wrong.or(Some((problem(what), self.option_for(is_main))));
                }
            }
        }
        // Where no file is the right one, the reader has to name it.
        let wrong = wrong.map(|(wrong, option)| match option {
            "" => wrong,
            option => Problem { what: format!("{}; give the right one with {option}", wrong.what), ..wrong },
        });
        (None, wrong.or(refused))
    }

    /// Puts a file together from its segments in memory. The symbols that the dynamic linker needs and the unwind
    /// tables are in them; section headers and debug information are not.
    fn image(&self, headers: &Headers, bias: u64) -> Option<Vec<u8>> {
        let size = headers.loads().map(|p| p.offset.saturating_add(p.filesz)).max()?;
        if size < HEADER_SIZE {
            return None;
        }
        let left = self.image_budget.get().checked_sub(size)?;
        // Only the first and last byte of each part are read at first, so that sizes in a hostile header cost
        // nothing.
        let constant = |p: &&elf::Phdr| p.flags & pf::W == 0 && p.filesz > 0;
        for p in headers.loads().filter(constant) {
            self.read(bias.wrapping_add(p.vaddr), 1)?;
            self.read(bias.wrapping_add(p.vaddr).wrapping_add(p.filesz - 1), 1)?;
        }
        self.image_budget.set(left);
        let mut image = vec![0; usize::try_from(size).ok()?];
        for p in headers.loads() {
            let from = usize::try_from(p.offset).ok()?;
            let part = image.get_mut(from..from.checked_add(usize::try_from(p.filesz).ok()?)?)?;
            let address = bias.wrapping_add(p.vaddr);
            let whole = self.target.read(address, part).is_ok();
            if !whole && p.flags & pf::W == 0 {
                return None;
            }
        }
        without_sections(&mut image);
        Some(image)
    }

    pub(super) fn vdso(&self) -> Option<MappedObject> {
        let by_name = || self.target.mappings().iter().find(|m| m.path.as_deref() == Some(Path::new("[vdso]")));
        let start = self.target.auxv(libc::AT_SYSINFO_EHDR).or_else(|| by_name().map(|m| m.start))?;
        let m = self.target.mapping_at(start)?;
        let memory = LoadedHeaders::read(self.target, start)?;
        let data = self.read(start, m.end.saturating_sub(start).min(limits::MAX_VDSO) as usize);
        let path = Path::new("[vdso]");
        let what = "the vdso is not in the core: kernel calls have no names and may be walked by frame pointer";
        let problem = data.is_none().then(|| Problem { file: path.to_path_buf(), what: what.to_string() });
        let data = data.map(ObjectData::Memory);
        Some(object(path, memory.bias?, vec![(start, m.end)], None, memory.build_id, data, problem))
    }

    /// The option by which a user names another file. The executable of a process is known, so only that of a core can be
    /// named.
    fn option_for(&self, is_main: bool) -> &'static str {
        if is_main && !self.target.is_live() { "-e FILE" } else { "--sysroot DIR" }
    }

    fn missing(&self, path: &Path) -> Problem {
        let executable = if self.target.is_live() { "" } else { ", or the executable with -e FILE" };
        let what = format!(
            "{} cannot be opened; name a directory tree that holds it with --sysroot DIR{executable}",
            path.display()
        );
        Problem { file: path.to_path_buf(), what }
    }

    /// The executable of a core that lists no mapped files. Its place is found from AT_PHDR.
    pub(super) fn unnamed_executable(&self) -> Option<MappedObject> {
        let place = match &self.search.executable {
            Some(path) => FileLocation::user(path),
            None => FileLocation::named(self.target.executable()?),
        };
        let path = place.path();
        let file = map_location(&place).ok()?;
        let headers = Headers::of_file(&file)?;
        let phdr = self.target.auxv(libc::AT_PHDR)?;
        let vaddr = headers.find(pt::PHDR).map(|p| p.vaddr).or_else(|| {
            let p = headers.loads().find(|p| p.offset == 0)?;
            p.vaddr.checked_add(headers.header.phoff)
        })?;
        let bias = phdr.wrapping_sub(vaddr);
        // The file is accepted only if its entry point is that of the process. Without a build id in memory there is
        // no better test.
        let entry = self.target.auxv(libc::AT_ENTRY)?;
        if bias.wrapping_add(headers.header.entry) != entry {
            return None;
        }
        let ranges = headers.loads().map(|p| {
            let start = bias.wrapping_add(p.vaddr & !0xfff);
            (start, start.saturating_add(p.memsz.saturating_add(p.vaddr & 0xfff)))
        });
        let ranges = ranges.filter(|r| r.0 < r.1).collect();
        let id = headers.build_id_of_file(&file);
        let data = ObjectData::File(file);
        let debug = self.debug_file(std::slice::from_ref(&place), path, &data, id.as_deref());
        let note = format!(
            "{}: its names may be those of another build: the core does not say which file ran, and only the place of its \
             headers fits",
            path.display()
        );
        self.doubts.borrow_mut().push(Doubt { range: (0, u64::MAX), note: Some(note) });
        let mut found = object(path, bias, ranges, Some(path.to_path_buf()), id, Some(data), None);
        found.0.debug = debug;
        found.0.fits = Some(Fits::NotCompared);
        Some(found)
    }
}

/// Why the headers of a file are not the ones in memory. `None` means that they are the same.
fn differs(memory: &LoadedHeaders, file: &Headers, id: Option<&[u8]>) -> Option<String> {
    match (&memory.build_id, id) {
        (Some(loaded), Some(id)) if loaded == id => None,
        (Some(loaded), Some(id)) => {
            Some(format!("its build id is {}, the loaded file's is {}", elf::hex(id), elf::hex(loaded)))
        }
        (Some(loaded), None) => Some(format!("it has no build id, the loaded file's is {}", elf::hex(loaded))),
        // Without a build id in memory, entry point and segments are compared: strip(1) moves sections but not
        // segments.
        (None, _) => {
            let key =
                |h: &Headers| (h.header.entry, h.loads().map(|p| (p.vaddr, p.memsz, p.flags)).collect::<Vec<_>>());
            (key(&memory.headers) != key(file)).then(|| "its segments differ".to_string())
        }
    }
}

/// Finds where a file is loaded: each bias, with the mappings that agree on it. A page that two segments share is
/// mapped twice, and each of these mappings alone would fit two biases. The bias that most mappings agree on wins.
fn instances(headers: &Headers, mappings: &[&Mapping]) -> Vec<(u64, Vec<(u64, u64)>)> {
    let biases = |m: &Mapping| -> Vec<u64> {
        let fits = |p: &&elf::Phdr| {
            let end = p.offset.saturating_add(p.filesz).saturating_add(0xfff) & !0xfff;
            (p.offset & !0xfff) <= m.offset && m.offset < end && (!m.execute || p.flags & pf::X != 0)
        };
        let bias = |p: &elf::Phdr| {
            let into = m.offset.wrapping_sub(p.offset & !0xfff);
            m.start.wrapping_sub((p.vaddr & !0xfff).wrapping_add(into))
        };
        let mut out: Vec<u64> = headers.loads().filter(fits).map(bias).collect();
        const ET_EXEC: u16 = 2;
        out.retain(|&b| b & 0xfff == 0 && (headers.header.kind != ET_EXEC || b == 0));
        out.sort_unstable();
        out.dedup();
        out
    };
    let mut left: Vec<(&Mapping, Vec<u64>)> = mappings.iter().map(|&m| (m, biases(m))).collect();
    let mut out = Vec::new();
    while out.len() < limits::MAX_OBJECT_INSTANCES {
        let mut votes: HashMap<u64, (usize, u64)> = HashMap::new();
        for (m, biases) in &left {
            for &b in biases {
                let vote = votes.entry(b).or_insert((0, m.start));
                vote.0 += 1;
            }
        }
        let best = votes.into_iter().max_by_key(|&(b, (n, first))| (n, std::cmp::Reverse(first), b));
        let Some((bias, _)) = best else { break };
        let (mine, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|(_, b)| b.contains(&bias));
        left = rest;
        // An instance without code is only a copy that somebody mapped to read the file.
        if mine.iter().any(|(m, _)| m.may_execute()) {
            out.push((bias, mine.iter().map(|(m, _)| (m.start, m.end)).collect()));
        }
    }
    out
}

/// Clears the section header fields of an image that has no sections. Otherwise readers would trust them and look for
/// the sections.
fn without_sections(image: &mut [u8]) {
    const E_SHOFF: std::ops::Range<usize> = 40..48;
    const E_SHNUM_SHSTRNDX: std::ops::Range<usize> = 60..64;
    for range in [E_SHOFF, E_SHNUM_SHSTRNDX] {
        if let Some(field) = image.get_mut(range) {
            field.fill(0);
        }
    }
}

fn object(
    path: &Path,
    bias: u64,
    ranges: Vec<(u64, u64)>,
    opened: Option<PathBuf>,
    build_id: Option<Vec<u8>>,
    data: Option<ObjectData>,
    problem: Option<Problem>,
) -> MappedObject {
    let start = ranges.iter().map(|r| r.0).min().unwrap_or(0);
    let end = ranges.iter().map(|r| r.1).max().unwrap_or(0);
    let object = LoadedObject {
        path: path.to_path_buf(),
        opened,
        bias,
        range: (start, end),
        build_id,
        data,
        fits: None,
        debug: None,
        unpacked: Unpacked::default(),
        excerpts: Excerpts::default(),
        problem,
    };
    (object, ranges)
}
