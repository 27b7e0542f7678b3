//! The ELF files that are loaded in a target. They tell which file covers an address, and what unwind tables,
//! symbols, separate debug file and thread-local block that file has.

mod debuglink;

use super::elf::{self, HEADER_SIZE, Headers, pf, pt};
use super::files::{self, Mapped, Place, map_place};
use super::same_file::{self, Evidence};
use super::{Mapping, Target, unpack};
use crate::limits;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where to look for files, in addition to the places that the target names.
#[derive(Clone, Debug, Default)]
pub struct SearchPaths {
    /// The main executable, if the user named one (`-e`).
    pub executable: Option<PathBuf>,
    /// Prefix for every path that the target names (`--sysroot`).
    pub sysroot: Option<PathBuf>,
    /// Directories with separate debug files; `/usr/lib/debug` is always among them.
    pub debug_dirs: Vec<PathBuf>,
}

/// The bytes of an ELF file.
pub enum ObjectData {
    /// The file on disk, mapped into this process.
    File(Mapped),
    /// A copy that was read from the target's memory: the vdso, or a file that is gone while its segments are still
    /// in memory.
    Memory(Vec<u8>),
}

impl std::ops::Deref for ObjectData {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            ObjectData::File(m) => m,
            ObjectData::Memory(v) => v,
        }
    }
}

/// The thread-local block of a file, as its PT_TLS describes it. The value of an `STT_TLS` symbol is an offset in
/// this block.
///
/// The main executable's block ends at the thread pointer (x86-64, TLS variant II): the variable is at
/// `fs_base - round_up(memsz, align) + symbol value` when `svma` is a multiple of `align`, which linkers see to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Size of the block in memory, in bytes.
    pub memsz: u64,
    /// Number of bytes at the start of the block that are initialised from the file.
    pub filesz: u64,
    /// Alignment of the block in bytes, at least 1.
    pub align: u64,
    /// Address of the initial contents, as the file states it.
    pub svma: u64,
}

/// One loaded ELF file.
pub struct LoadedObject {
    /// Path of the file as the target names it (`[vdso]` for the vdso).
    pub path: PathBuf,
    /// Path at which the file was opened. `None` if the bytes are from memory or missing.
    pub opened: Option<PathBuf>,
    /// Address in memory minus the address that the file states (svma).
    pub bias: u64,
    /// Lowest address and one past the highest address of the file's mappings.
    pub range: (u64, u64),
    /// Build id of the file, from the target's memory (or core) if it is there, else from the file on disk.
    pub build_id: Option<Vec<u8>>,
    /// The file's bytes; `None` when it is missing or is not the file that the target runs (see `problem`).
    pub data: Option<ObjectData>,
    /// Path and bytes of the separate debug file. It was found by build id or debuglink, and checked.
    pub debug: Option<(PathBuf, ObjectData)>,
    /// What is missing or wrong about the file, as one line that also says what to try.
    pub problem: Option<String>,
    /// Decompressed copies of debug sections that are compressed in the file. They are made when they are first asked
    /// for.
    pub unpacked: Unpacked,
    /// Excerpts of the file's debug information that were put together.
    pub excerpts: Excerpts,
}

/// Decompressed sections of one file, by name. They live as long as the file, so that readers can borrow from them as
/// they borrow from the file.
#[derive(Default)]
pub struct Unpacked(OnceLock<Vec<(&'static str, Vec<u8>)>>);

impl Unpacked {
    /// Returns the decompressed section called `name`. The first call runs its `unpack` to make all sections; later
    /// calls use what the first one made.
    pub fn get(&self, name: &str, unpack: impl FnOnce() -> Vec<(&'static str, Vec<u8>)>) -> Option<&[u8]> {
        self.0.get_or_init(unpack).iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes.as_slice())
    }
}

/// Pieces of memory that live as long as the file, so that readers can borrow from them as they borrow from the file.
#[derive(Default)]
pub struct Excerpts(OnceLock<Box<(memmap2::Mmap, Excerpts)>>);

impl Drop for Excerpts {
    /// Each piece holds the next one. They are freed in a loop, because nested drops would use up the stack.
    fn drop(&mut self) {
        let mut next = self.0.take();
        while let Some(mut kept) = next {
            next = kept.1.0.take();
        }
    }
}

impl Excerpts {
    /// Keeps `bytes` for as long as the file is there, and lends them.
    pub fn keep(&self, bytes: memmap2::Mmap) -> Option<&[u8]> {
        let (mut last, mut kept) = (self, Box::new((bytes, Excerpts::default())));
        while let Err(back) = last.0.set(kept) {
            (last, kept) = (&last.0.get()?.1, back);
        }
        last.0.get().map(|kept| &*kept.0)
    }
}

impl LoadedObject {
    /// File name without its directories.
    pub fn name(&self) -> String {
        self.path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_else(|| self.path.display().to_string())
    }

    /// Converts an address in memory to the address that the file states (svma).
    pub fn svma(&self, address: u64) -> u64 {
        address.wrapping_sub(self.bias)
    }

    /// The thread-local block of the file, if it has one.
    pub fn tls_block(&self) -> Option<Tls> {
        let headers = Headers::of_file(self.data.as_deref()?)?;
        let p = headers.find(pt::TLS)?;
        Some(Tls { memsz: p.memsz, filesz: p.filesz, align: p.align.max(1), svma: p.vaddr })
    }
}

/// All loaded ELF files of a target.
pub struct Objects {
    objects: Vec<LoadedObject>,
    // Start, end and index into `objects` of every mapping, in ascending order.
    index: Vec<(u64, u64, usize)>,
    has_executable: bool,
    doubts: Vec<Doubt>,
    notes: Vec<String>,
}

/// Why names and other facts that a file tells about some code may be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// First address and one past the last address of the code.
    pub range: (u64, u64),
    /// A line for the reader of the report. `None` means that the file's `problem` says it already.
    pub note: Option<String>,
}

impl Objects {
    /// Finds every loaded file. Never fails as a whole: a file that cannot be opened is listed with its problem.
    pub fn load(target: &dyn Target, search: &SearchPaths) -> Objects {
        let mut by_path: BTreeMap<&Path, Vec<&Mapping>> = BTreeMap::new();
        for m in target.mappings().iter().filter(|m| !m.is_anonymous()) {
            if let Some(path) = &m.path
                && (by_path.len() < limits::MAX_OBJECTS || by_path.contains_key(path.as_path()))
            {
                by_path.entry(path).or_default().push(m);
            }
        }
        unpack::begin();
        let main = main_path(target);
        let loader = Loader {
            target,
            search,
            image_budget: Cell::new(limits::MAX_OBJECT_IMAGES),
            doubts: RefCell::default(),
            notes: RefCell::default(),
        };
        let mut found: Vec<(LoadedObject, Vec<(u64, u64)>)> = Vec::new();
        for (path, mappings) in &by_path {
            found.extend(loader.file(path, mappings, main.as_deref() == Some(*path)));
        }
        found.extend(loader.vdso());
        let has_main =
            |found: &[(LoadedObject, _)]| main.as_ref().is_some_and(|p| found.iter().any(|(o, _)| o.path == *p));
        if !has_main(&found) {
            found.extend(loader.unnamed_executable());
        }
        let is_main = |o: &LoadedObject| match &main {
            Some(path) => o.path == *path,
            None => o.range.0 <= entry(target).unwrap_or(0) && entry(target).unwrap_or(0) < o.range.1,
        };
        found.sort_by_key(|(o, _)| (!is_main(o), o.range.0));
        let has_executable = found.first().is_some_and(|(o, _)| is_main(o));
        let mut index: Vec<(u64, u64, usize)> =
            found.iter().enumerate().flat_map(|(i, (_, ranges))| ranges.iter().map(move |r| (r.0, r.1, i))).collect();
        index.sort_unstable();
        let (doubts, notes) = (loader.doubts.into_inner(), loader.notes.into_inner());
        Objects { objects: found.into_iter().map(|(o, _)| o).collect(), index, has_executable, doubts, notes }
    }

    /// Makes the list from files that were found in another way. The main executable comes first.
    #[doc(hidden)]
    pub fn from_parts(objects: Vec<LoadedObject>) -> Objects {
        let mut index: Vec<_> = objects.iter().enumerate().map(|(i, o)| (o.range.0, o.range.1, i)).collect();
        index.sort_unstable();
        let (doubts, notes) = (Vec::new(), Vec::new());
        Objects { has_executable: !objects.is_empty(), objects, index, doubts, notes }
    }

    /// Returns the file that covers `address`.
    pub fn find(&self, address: u64) -> Option<&LoadedObject> {
        let i = self.index.partition_point(|r| r.0 <= address);
        let exact = i.checked_sub(1).and_then(|i| self.index.get(i)).filter(|r| address < r.1);
        match exact {
            Some(&(_, _, object)) => self.objects.get(object),
            None => self.objects.iter().find(|o| o.range.0 <= address && address < o.range.1),
        }
    }

    /// All loaded files. The main executable, if it was found, comes first.
    pub fn iter(&self) -> impl Iterator<Item = &LoadedObject> {
        self.objects.iter()
    }

    /// Returns why the facts from the file that covers `address` may be wrong, if there is such a doubt.
    pub fn doubt(&self, address: u64) -> Option<&Doubt> {
        self.doubts.iter().find(|d| d.range.0 <= address && address < d.range.1)
    }

    /// Lines that tell the reader of a report which files were not read, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The main executable, if it was found.
    pub fn executable(&self) -> Option<&LoadedObject> {
        self.objects.first().filter(|_| self.has_executable)
    }
}

fn entry(target: &dyn Target) -> Option<u64> {
    target.auxv(libc::AT_PHDR).or_else(|| target.auxv(libc::AT_ENTRY))
}

/// The path that the mappings of the main executable have.
fn main_path(target: &dyn Target) -> Option<PathBuf> {
    let by_address = [libc::AT_PHDR, libc::AT_ENTRY].iter().find_map(|&key| {
        let m = target.mapping_at(target.auxv(key)?)?;
        if m.is_anonymous() { None } else { m.path.clone() }
    });
    by_address.or_else(|| target.executable().map(Path::to_path_buf))
}

struct Loader<'a> {
    target: &'a dyn Target,
    search: &'a SearchPaths,
    image_budget: Cell<u64>,
    doubts: RefCell<Vec<Doubt>>,
    notes: RefCell<Vec<String>>,
}

/// A file on disk that may be the one that was loaded.
struct Candidate {
    place: Place,
    file: Mapped,
    headers: Headers,
    /// Whether it is proven to be the one that was loaded.
    proven: bool,
}

/// The headers of a loaded file, as they are in the target's memory.
struct InMemory {
    headers: Headers,
    bias: u64,
    build_id: Option<Vec<u8>>,
}

type Found = (LoadedObject, Vec<(u64, u64)>);

impl Loader<'_> {
    fn read(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        self.target.read_vec(address, len).ok()
    }

    fn in_memory(&self, start: u64) -> Option<InMemory> {
        // Four bytes are enough to see that this is no ELF file; nothing more is read then.
        if self.read(start, 4)? != b"\x7fELF" {
            return None;
        }
        let headers = Headers::read(|offset, len| self.read(start.checked_add(offset)?, len))?;
        let first = headers.loads().find(|p| p.offset & !0xfff == 0)?;
        let bias = start.wrapping_sub(first.vaddr & !0xfff);
        let build_id = headers.build_id(|p| self.read(bias.wrapping_add(p.vaddr), p.filesz as usize));
        Some(InMemory { headers, bias, build_id })
    }

    /// All places at which one file is loaded.
    fn file(&self, path: &Path, mappings: &[&Mapping], is_main: bool) -> Vec<Found> {
        // A file that is mapped only to be read (a locale archive, or the executable of a backtracer that maps
        // itself) has no code mapped.
        if !is_main && !mappings.iter().any(|m| m.may_execute()) {
            return Vec::new();
        }
        let Some(&lowest) = mappings.first() else { return Vec::new() };
        let memory = mappings.iter().filter(|m| m.offset == 0 && m.read).find_map(|m| self.in_memory(m.start));
        let (file, mut problem) = self.open(lowest, mappings, memory.as_ref(), is_main);
        let headers = memory.as_ref().map(|m| m.headers.clone()).or_else(|| file.as_ref().map(|f| f.headers.clone()));
        let Some(headers) = headers else {
            // JIT dumps, devices and similar files can be mapped executable although they are no ELF files.
            let is_elf_name = is_main || path.to_string_lossy().contains(".so") || problem.is_some();
            let special = path.starts_with("/dev") || path.starts_with("/memfd:") || path.starts_with("/SYSV");
            if !is_elf_name || special || file.is_some() {
                return Vec::new();
            }
            let problem = problem.or_else(|| Some(missing(path)));
            let bias = lowest.start.wrapping_sub(lowest.offset);
            let ranges = mappings.iter().map(|m| (m.start, m.end)).collect();
            return vec![object(path, bias, ranges, None, None, None, problem)];
        };
        let mut instances = instances(&headers, mappings);
        if instances.is_empty()
            && let Some(m) = &memory
        {
            instances.push((m.bias, mappings.iter().map(|m| (m.start, m.end)).collect()));
        }
        let doubt = match &file {
            Some(file) if file.proven => None,
            Some(file) => {
                let what = "its names may be another build's: it has no build id, and its code could not be compared";
                Some(Some(format!("{}: {what} with the code that ran", file.place.path().display())))
            }
            // The file that is at the path now is another one.
            None => problem.is_some().then_some(None),
        };
        let mut file = file.map(|f| (f.place, f.file));
        let mut out = Vec::new();
        let mut left = instances.len();
        for (bias, ranges) in instances {
            left -= 1;
            let mut build_id = memory.as_ref().and_then(|m| m.build_id.clone());
            // A second instance of the file needs its own mapping of it.
            let again =
                file.as_ref().filter(|_| left > 0).and_then(|(place, _)| Some((place.clone(), map_place(place).ok()?)));
            if let Some(note) = &doubt {
                let doubts = ranges.iter().map(|&range| Doubt { range, note: note.clone() });
                self.doubts.borrow_mut().extend(doubts);
            }
            let (opened, data) = match std::mem::replace(&mut file, again) {
                Some((place, map)) => (Some(place), Some(ObjectData::File(map))),
                None => (None, self.image(&headers, bias).map(ObjectData::Memory)),
            };
            if opened.is_none() && problem.is_none() {
                problem = Some(missing(path));
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
        memory: Option<&InMemory>,
        is_main: bool,
    ) -> (Option<Candidate>, Option<String>) {
        let given = self.search.executable.clone().filter(|_| is_main);
        let mut candidates = Vec::from_iter(given.map(Place::user));
        candidates.extend(self.target.file_candidates(mapping));
        let mut seen = HashSet::new();
        let mut wrong = None;
        let mut refused = None;
        for candidate in candidates.into_iter().filter(|c| seen.insert(c.clone())) {
            let file = match map_place(&candidate) {
                Ok(file) => file,
                Err(e) => {
                    use std::io::ErrorKind;
                    let what = || format!("{}: {e}", candidate.path().display());
                    match e.kind() {
                        ErrorKind::PermissionDenied => {
                            refused = refused.or_else(|| Some(format!("{}; run as its owner or with sudo", what())));
                        }
                        ErrorKind::TimedOut | ErrorKind::FileTooLarge | ErrorKind::OutOfMemory | ErrorKind::Other => {
                            refused = refused.or_else(|| Some(what()));
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
            let Some(headers) = Headers::of_file(&file) else {
                if memory.is_some() {
                    wrong = wrong.or(Some(format!("{} is no x86-64 ELF file", candidate.path().display())));
                }
                continue;
            };
            let id = headers.build_id_of_file(&file);
            let another = self.target.maps_another(mapping, &file.identity());
            let (why, by_id) = match memory {
                _ if another => (Some("another file was mapped".to_string()), false),
                Some(m) => (differs(m, &headers, id.as_deref()), m.build_id.is_some()),
                None => {
                    let agrees = headers.dynamic_agrees(&file, mappings, self.target);
                    let why = (agrees == Some(false)).then(|| "its dynamic section is another".to_string());
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
                (evidence == Evidence::Other).then(|| "its code is another (it was built again since?)".to_string())
            });
            match why {
                None => {
                    let proven = evidence == Evidence::Same;
                    return (
                        Some(Candidate { place: candidate, file, headers, proven }),
                        wrong.filter(|_| is_main && self.search.executable.is_some()),
                    );
                }
                Some(why) => {
                    let what = format!("{} is not the file that was loaded: {why}", candidate.path().display());
                    wrong = wrong.or(Some(format!("{what}; give the right one with {}", option_for(is_main))));
                }
            }
        }
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

    fn vdso(&self) -> Option<Found> {
        let by_name = || self.target.mappings().iter().find(|m| m.path.as_deref() == Some(Path::new("[vdso]")));
        let start = self.target.auxv(libc::AT_SYSINFO_EHDR).or_else(|| by_name().map(|m| m.start))?;
        let m = self.target.mapping_at(start)?;
        let memory = self.in_memory(start)?;
        let data = self.read(start, m.end.saturating_sub(start).min(limits::MAX_VDSO) as usize);
        let problem = data.is_none().then(|| "the vdso is not in the core".to_string());
        let data = data.map(ObjectData::Memory);
        Some(object(Path::new("[vdso]"), memory.bias, vec![(start, m.end)], None, memory.build_id, data, problem))
    }

    /// The executable of a core that lists no mapped files. Its place is found from AT_PHDR.
    fn unnamed_executable(&self) -> Option<Found> {
        let place = match &self.search.executable {
            Some(path) => Place::user(path),
            None => Place::named(self.target.executable()?),
        };
        let path = place.path();
        let file = map_place(&place).ok()?;
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
            "{}: its names may be another build's: the core does not say which file ran, and only the place of its \
             headers fits",
            path.display()
        );
        self.doubts.borrow_mut().push(Doubt { range: (0, u64::MAX), note: Some(note) });
        let mut found = object(path, bias, ranges, Some(path.to_path_buf()), id, Some(data), None);
        found.0.debug = debug;
        Some(found)
    }

    fn debug_dirs(&self) -> Vec<PathBuf> {
        let mut dirs = self.search.debug_dirs.clone();
        if let Some(root) = &self.search.sysroot {
            dirs.push(root.join("usr/lib/debug"));
        }
        dirs.push(PathBuf::from("/usr/lib/debug"));
        dirs
    }

    fn debug_by_build_id(&self, id: &[u8]) -> Option<(PathBuf, ObjectData)> {
        let (first, rest) = id.split_first()?;
        let name = format!(".build-id/{first:02x}/{}.debug", elf::hex(rest));
        let places: Vec<Place> = self.debug_dirs().into_iter().map(|d| Place::named(d.join(&name))).collect();
        let mut left = places.as_slice();
        while let Ok((at, opened)) = files::open_first(left) {
            let (place, rest) = left.get(at..)?.split_first()?;
            let file = files::map(opened, place.path());
            let is_it =
                |file: &Mapped| Headers::of_file(file).is_some_and(|h| h.build_id_of_file(file).as_deref() == Some(id));
            if let Ok(file) = file.map_err(drop).and_then(|file| if is_it(&file) { Ok(file) } else { Err(()) }) {
                return Some((place.path().to_path_buf(), ObjectData::File(file)));
            }
            left = rest;
        }
        None
    }

    /// Places of the file that was opened as `opened`, whose neighbours may be its debug file. A link of the kernel
    /// does not tell the directory of a file, so the other candidates and `path` are places too.
    fn near(&self, path: &Path, mapping: &Mapping, opened: &Place) -> Vec<Place> {
        let mut near = vec![opened.clone()];
        near.extend(self.target.file_candidates(mapping));
        near.push(Place::named(path));
        near
    }

    fn debug_file(&self, near: &[Place], path: &Path, data: &[u8], id: Option<&[u8]>) -> Option<(PathBuf, ObjectData)> {
        if let Some(found) = id.and_then(|id| self.debug_by_build_id(id)) {
            return Some(found);
        }
        use object::Object;
        let file = object::File::parse(data).ok()?;
        let (name, crc) = file.gnu_debuglink().ok()??;
        let name = Path::new(OsStr::from_bytes(name)).file_name()?;
        let mut places = Vec::new();
        for near in near {
            places.extend(near.beside(Path::new(name)));
            places.extend(near.beside(&Path::new(".debug").join(name)));
        }
        if let Some(inside) = path.parent().and_then(|p| p.strip_prefix("/").ok()) {
            places.extend(self.debug_dirs().into_iter().map(|d| Place::named(d.join(inside).join(name))));
        }
        places.extend(self.search.debug_dirs.iter().map(|d| Place::named(d.join(name))));
        let headers = Headers::of_file(data)?;
        let mut seen = HashSet::new();
        places.retain(|place| seen.insert(place.clone()));
        let mut left = places.as_slice();
        while let Ok((at, opened)) = files::open_first(left) {
            let (place, rest) = left.get(at..)?.split_first()?;
            match debuglink::check(&opened, &headers, crc) {
                Ok(true) => {
                    let file = files::map(opened, place.path()).ok()?;
                    return Some((place.path().to_path_buf(), ObjectData::File(file)));
                }
                // The debuglink may name the stripped file itself (same name, same directory).
                Ok(false) => {}
                Err(why) => {
                    self.notes.borrow_mut().push(format!("{} is not used: {why}", place.path().display()));
                }
            }
            left = rest;
        }
        None
    }
}

fn option_for(is_main: bool) -> &'static str {
    if is_main { "-e FILE" } else { "--sysroot DIR" }
}

fn missing(path: &Path) -> String {
    format!(
        "{} cannot be opened; give a directory tree that holds it with --sysroot, or the executable with -e",
        path.display()
    )
}

/// Why the headers of a file are not the ones in memory. `None` means that they are the same.
fn differs(memory: &InMemory, file: &Headers, id: Option<&[u8]>) -> Option<String> {
    match (&memory.build_id, id) {
        (Some(loaded), Some(id)) if loaded == id => None,
        (Some(loaded), Some(id)) => Some(format!("its build id is {}, loaded is {}", elf::hex(id), elf::hex(loaded))),
        (Some(loaded), None) => Some(format!("it has no build id, loaded is {}", elf::hex(loaded))),
        // Without a build id in memory, entry point and segments are compared: strip(1) moves sections but not
        // segments.
        (None, _) => {
            let key =
                |h: &Headers| (h.header.entry, h.loads().map(|p| (p.vaddr, p.memsz, p.flags)).collect::<Vec<_>>());
            (key(&memory.headers) != key(file)).then(|| "its segments are others".to_string())
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
    problem: Option<String>,
) -> Found {
    let start = ranges.iter().map(|r| r.0).min().unwrap_or(0);
    let end = ranges.iter().map(|r| r.1).max().unwrap_or(0);
    let object = LoadedObject {
        path: path.to_path_buf(),
        opened,
        bias,
        range: (start, end),
        build_id,
        data,
        debug: None,
        unpacked: Unpacked::default(),
        excerpts: Excerpts::default(),
        problem,
    };
    (object, ranges)
}

#[cfg(test)]
mod tests {
    use super::super::testing::CoreBuilder;
    use super::*;
    use crate::arch::{Machine, Registers};

    /// Name and contents of a section.
    type Section<'a> = (&'a str, Vec<u8>);

    /// A shared object with one page of headers and one page of code, with a build id and sections.
    fn library(id: Option<u8>, code: u8, sections: &[Section<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        out.extend([3u16, 62].into_iter().flat_map(u16::to_le_bytes));
        out.extend(1u32.to_le_bytes());
        out.extend([0u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
        out.extend(0u32.to_le_bytes());
        out.extend([64u16, 56, 4, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
        for (kind, flags, offset, vaddr, filesz, memsz, align) in [
            (pt::LOAD, 4u32, 0u64, 0u64, 0x1000u64, 0x1000u64, 0x1000u64),
            (pt::LOAD, 5, 0x1000, 0x3000, 0x1000, 0x1000, 0x1000),
            (pt::NOTE, 4, 0x400, 0x400, if id.is_some() { 20 } else { 0 }, 20, 4),
            (pt::TLS, 4, 0x800, 0x800, 8, 24, 16),
        ] {
            out.extend([kind, flags].into_iter().flat_map(u32::to_le_bytes));
            out.extend([offset, vaddr, vaddr, filesz, memsz, align].into_iter().flat_map(u64::to_le_bytes));
        }
        out.resize(0x400, 0);
        out.extend([4u32, 4, 3].into_iter().flat_map(u32::to_le_bytes));
        out.extend(b"GNU\0");
        out.extend([id.unwrap_or(0); 4]);
        out.resize(0x1000, 0);
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
            .thread(1, 0, &Registers::unknown(Machine::X64), 0)
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
        assert!(lib.problem.as_deref().unwrap().contains("--sysroot"));
        assert_eq!(lib.tls_block(), Some(Tls { memsz: 24, filesz: 8, align: 16, svma: 0x800 }));
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
        let problem = app.problem.as_deref().unwrap();
        assert!(
            problem.contains("its build id is 02020202, loaded is 01010101") && problem.contains("-e"),
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
                    let _ = (o.tls_block(), o.svma(0x10_3000));
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
}
