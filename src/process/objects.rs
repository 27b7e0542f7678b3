//! The ELF files that are loaded in a target. They tell which file covers an address, and what unwind tables, symbols and
//! separate debug file that file has.

mod debug_files;
mod debuglink;
mod loader;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::debuginfod::Fetched;
use super::files::Mapped;
use super::{Mapping, Target, unpack};
use crate::limits;
use loader::Loader;

/// Where to look for files, in addition to the places that the target names.
#[derive(Clone, Debug, Default)]
pub struct SearchPaths {
    /// The main executable, if the user named one (`-e`).
    pub executable: Option<PathBuf>,
    /// Prefix for every path that the target names (`--sysroot`).
    pub sysroot: Option<PathBuf>,
    /// Directories with separate debug files; `/usr/lib/debug` is always among them.
    pub debug_dirs: Vec<PathBuf>,
    /// Files that debuginfod servers had.
    pub fetched: Fetched,
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

words! {
    /// What tells that a file on disk is the one that the target has loaded.
    Fits {
        /// Both have the same build id.
        BuildId = "build_id",
        /// Its headers, its dynamic section or its code were compared.
        Code = "code",
        /// The kernel itself led to the file that is mapped.
        Kernel = "kernel",
        /// Nothing could be compared; the file has the right name.
        NotCompared = "not_compared",
    }
}

/// What is missing or wrong about a file of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the file that cannot be used: as the target names it, or where it was looked for.
    pub file: PathBuf,
    /// The problem as one line that also says what to try.
    pub what: String,
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
    /// What tells that the file on disk is the one that was loaded. `None` if `data` is not from a file on disk.
    pub fits: Option<Fits>,
    /// Path and bytes of the separate debug file. It was found by build id or debuglink, and checked.
    pub debug: Option<(PathBuf, ObjectData)>,
    /// What is missing or wrong about the file.
    pub problem: Option<Problem>,
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

/// What a file tells about names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Whether there is a symbol table (`.symtab`), besides the symbols that the dynamic linker needs.
    pub symbols: bool,
    /// Whether there is debug information.
    pub debug_info: bool,
}

impl LoadedObject {
    /// What the file and its separate debug file tell about names. `None` if there is neither.
    pub fn names(&self) -> Option<Names> {
        let files = self.data.iter().chain(self.debug.iter().map(|(_, data)| data));
        files
            .map(|data| names_of(data))
            .reduce(|a, b| Names { symbols: a.symbols || b.symbols, debug_info: a.debug_info || b.debug_info })
    }

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
}

/// All loaded ELF files of a target.
pub struct Objects {
    objects: Vec<LoadedObject>,
    // Start, end and index into `objects` of every mapping, in ascending order.
    index: Vec<(u64, u64, usize)>,
    has_executable: bool,
    doubts: Vec<Doubt>,
    notes: Vec<String>,
    // Whether servers could not be asked for files.
    unasked: bool,
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
        unpack::begin();
        let main = main_path(target);
        let loader = Loader::new(target, search);
        let mut found: Vec<(LoadedObject, Vec<(u64, u64)>)> = Vec::new();
        for (path, mappings) in &mappings_by_file(target.mappings()) {
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
        let (doubts, mut notes) = (loader.doubts.into_inner(), loader.notes.into_inner());
        notes.extend(search.fetched.notes.iter().cloned());
        let (objects, unasked) = (found.into_iter().map(|(o, _)| o).collect(), search.fetched.failed);
        Objects { objects, index, has_executable, doubts, notes, unasked }
    }

    /// Makes the list from files that were found in another way. The main executable comes first.
    #[cfg(any(test, feature = "internals"))]
    #[doc(hidden)]
    pub fn from_parts(objects: Vec<LoadedObject>) -> Objects {
        let mut index: Vec<_> = objects.iter().enumerate().map(|(i, o)| (o.range.0, o.range.1, i)).collect();
        index.sort_unstable();
        let (doubts, notes) = (Vec::new(), Vec::new());
        Objects { has_executable: !objects.is_empty(), objects, index, doubts, notes, unasked: false }
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

    /// Whether servers could not be asked for files that are missing.
    pub fn is_unasked(&self) -> bool {
        self.unasked
    }

    /// The main executable, if it was found.
    pub fn executable(&self) -> Option<&LoadedObject> {
        self.objects.first().filter(|_| self.has_executable)
    }
}

fn names_of(data: &[u8]) -> Names {
    use object::{Object, ObjectSection};
    let Ok(file) = object::File::parse(data) else { return Names::default() };
    // Stripped files and their debug files keep the headers of sections whose contents they do not have.
    let has = |name: &str| file.section_by_name(name).is_some_and(|s| s.file_range().is_some_and(|(_, len)| len > 0));
    Names { symbols: has(".symtab"), debug_info: has(".debug_info") || has(".zdebug_info") }
}

fn entry(target: &dyn Target) -> Option<u64> {
    target.auxv(libc::AT_PHDR).or_else(|| target.auxv(libc::AT_ENTRY))
}

/// The path that the mappings of the main executable have.
fn main_path(target: &dyn Target) -> Option<PathBuf> {
    executable_by_address(target).or_else(|| target.executable().map(Path::to_path_buf))
}

/// The path of the file that the main executable's own headers are mapped from.
pub(super) fn executable_by_address(target: &dyn Target) -> Option<PathBuf> {
    [libc::AT_PHDR, libc::AT_ENTRY].iter().find_map(|&key| {
        let mapping = target.mapping_at(target.auxv(key)?)?;
        if mapping.is_anonymous() { None } else { mapping.path.clone() }
    })
}

/// The mappings of each mapped file, for as many files as are looked at.
pub(super) fn mappings_by_file(mappings: &[Mapping]) -> BTreeMap<&Path, Vec<&Mapping>> {
    let mut by_path: BTreeMap<&Path, Vec<&Mapping>> = BTreeMap::new();
    for mapping in mappings.iter().filter(|m| !m.is_anonymous()) {
        if let Some(path) = &mapping.path
            && (by_path.len() < limits::MAX_OBJECTS || by_path.contains_key(path.as_path()))
        {
            by_path.entry(path).or_default().push(mapping);
        }
    }
    by_path
}
