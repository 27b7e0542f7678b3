//! The thread-local route: `CURRENT_CODE_VERSIONS` of `fault.rs`, the list that the runtime's own `read_stack` uses.
//!
//! A thread's list holds the code versions of the instances that were *made* on that thread. Instances move between
//! threads, so the lists of all threads together are what may run on any thread. The variable is found by its symbol.
//! In a stripped executable each word of the thread-local block, which is small, is tried, and only what passes every
//! check is believed.

use crate::limits;
use crate::process::objects::{LoadedObject, Objects};
use crate::process::{Memory, Target, Thread, ThreadId};
use crate::runtime::rust::layouts::LayoutError;
use crate::runtime::rust::memory::{Budgeted, StructureError, VecLayout, View};
use crate::runtime::rust::tls::{self, Segment, Variable};
use crate::runtime::singlepass::module::info_in_memory::context_of_runnable;
use crate::runtime::singlepass::module::layouts::Layouts;
use crate::runtime::singlepass::module::map_in_memory;
use crate::state::BoundaryRegisters;

/// One `CodeVersion` in a thread's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsVersion {
    /// The thread whose list has this version.
    pub thread: ThreadId,
    /// Address of the first byte of code.
    pub base: u64,
    /// Whether this is the baseline tier. `Instance::new` says so of every version, with or without tiering.
    pub baseline: bool,
    /// Name of the compiler or tier ("singlepass"), if it can be read.
    pub backend: Option<String>,
    /// Address of the version's `ModuleStateMap`.
    pub msm_address: u64,
    /// Size of the code in bytes.
    pub total_size: u64,
    /// The backend's table of functions, if the backend's context names this code and the table agrees with the state
    /// map.
    pub table: Option<FunctionTable>,
    /// What was confirmed, in words; two facts at least.
    pub checks: Vec<String>,
}

/// Offsets of a module's functions in its code, the import trampolines first (`X64ExecutionContext`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionTable {
    /// Code offsets of all functions, strictly ascending.
    pub function_offsets: Vec<u64>,
    /// How many of the functions are import trampolines.
    pub import_count: u64,
}

/// What the route found.
#[derive(Clone, Debug, Default)]
pub struct TlsFindings {
    /// Code versions of all threads. Those of one thread are in the order of its list (the last is the newest).
    pub versions: Vec<TlsVersion>,
    /// Boundary registers of the threads that have saved any.
    pub boundary: Vec<(ThreadId, BoundaryRegisters)>,
    /// What was looked at but could not be used, one line each.
    pub notes: Vec<String>,
}

impl TlsFindings {
    /// Adds a note. The number of notes is limited, since a hostile list could have a reason for each of its entries.
    fn note(&mut self, text: String) {
        if self.notes.len() < limits::MAX_ROUTE_NOTES && !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }
}

const VERSIONS: &str = "CURRENT_CODE_VERSIONS";
const BOUNDARY: &str = "BOUNDARY_REGISTER_PRESERVATION";

/// Reads the lists of all threads. `layouts` are those of the host, if the caller has them. Otherwise they are looked
/// up, but only after a variable to read was found.
pub fn find(target: &dyn Target, objects: &Objects, layouts: Option<&Layouts>) -> TlsFindings {
    let mut out = TlsFindings::default();
    let mut with_variables = Vec::new();
    let executable = objects.executable();
    for object in objects.iter() {
        let main = executable.is_some_and(|e| std::ptr::eq(e, object));
        if let Some(found) = TlsObject::of(object, main) {
            with_variables.push(found);
        }
    }
    if with_variables.is_empty() {
        out.note("no thread-local variables in the executable and none of the runtime's in a library".to_owned());
        return out;
    }
    for found in &with_variables {
        let own;
        let layouts = match layouts {
            Some(given) => given,
            None => match layouts_for(found.object, objects) {
                Ok(found) => {
                    own = found;
                    &own
                }
                Err(why) => {
                    out.note(format!("thread-local lists of {} not read: {why}", found.object.name()));
                    continue;
                }
            },
        };
        found.read(target, layouts, &mut out);
    }
    out
}

fn layouts_for(object: &LoadedObject, objects: &Objects) -> Result<Layouts, LayoutError> {
    Layouts::of_object(object).or_else(|why| Layouts::of_target(objects).map_err(|_| why))
}

/// An object that has thread-local variables to read.
struct TlsObject<'a> {
    object: &'a LoadedObject,
    segment: Segment,
    main: bool,
    versions: Vec<Variable>,
    boundary: Vec<Variable>,
}

impl<'a> TlsObject<'a> {
    fn of(object: &'a LoadedObject, main: bool) -> Option<TlsObject<'a>> {
        let data = object.data.as_deref()?;
        let file = object::File::parse(data).ok()?;
        let segment = Segment::of(data)?;
        let mut versions = tls::variables(&file, VERSIONS);
        let mut boundary = tls::variables(&file, BOUNDARY);
        if versions.is_empty()
            && let Some((_, debug)) = &object.debug
            && let Ok(debug) = object::File::parse(&debug[..])
        {
            versions = tls::variables(&debug, VERSIONS);
            boundary = tls::variables(&debug, BOUNDARY);
        }
        // A library without symbols would have to be tried in every block of every thread, which is not worth it.
        (main || !versions.is_empty()).then_some(TlsObject { object, segment, main, versions, boundary })
    }

    fn read(&self, target: &dyn Target, layouts: &Layouts, out: &mut TlsFindings) {
        let by_symbol = !self.versions.is_empty();
        if !by_symbol {
            out.note(format!(
                "{} has no symbol of the runtime's thread-local list: every word of its thread-local block was tried",
                self.object.name()
            ));
        }
        for thread in target.threads().iter().take(limits::MAX_THREADS) {
            let Some(fs_base) = thread.fs_base else {
                out.note(format!("thread {}: its thread pointer is not known", thread.id.0));
                continue;
            };
            for block in self.blocks(target, fs_base) {
                if by_symbol {
                    for variable in &self.versions {
                        let at = block.wrapping_add(variable.offset);
                        read_list(target, layouts, thread, at, variable.size, true, out);
                    }
                    for variable in &self.boundary {
                        let at = block.wrapping_add(variable.offset);
                        out.boundary.extend(read_boundary(target, thread.id, at, variable.size));
                    }
                } else {
                    self.try_every_word(target, layouts, thread, block, out);
                }
            }
        }
    }

    /// Addresses at which this object's thread-local block can be in a thread.
    fn blocks(&self, target: &dyn Target, fs_base: u64) -> Vec<u64> {
        if self.main {
            return vec![self.segment.block_of_executable(fs_base)];
        }
        tls::blocks(target, fs_base)
    }

    /// Number of bytes of a block that are tried.
    fn tried(&self) -> u64 {
        self.segment.size.min(limits::MAX_TLS_BLOCK_TRIED)
    }

    fn try_every_word(
        &self,
        target: &dyn Target,
        layouts: &Layouts,
        thread: &Thread,
        block: u64,
        out: &mut TlsFindings,
    ) {
        let mut bytes = vec![0; self.tried() as usize];
        let got = target.read_some(block, &mut bytes);
        let bytes = bytes.get(..got).unwrap_or(&[]);
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|w| w.try_into().map(u64::from_le_bytes).unwrap_or_default()).collect();
        // Most words are ruled out without another read: the list must be alive and not empty.
        for (i, storage) in words.windows(5).enumerate() {
            let &[_, a, b, c, state] = storage else { continue };
            let filled = |v: u64| (1..=limits::MAX_CODE_VERSIONS).contains(&v);
            if state & 0xff == 1
                && [a, b, c].iter().filter(|v| filled(**v)).count() == 2
                && read_list(target, layouts, thread, block.wrapping_add(8 * i as u64), 40, false, out)
            {
                return;
            }
        }
    }
}

/// Reads the list whose storage is at `address`, and returns whether versions were found there. If `known` is set, a
/// symbol says that a list is there, so what does not fit is worth a note.
fn read_list(
    target: &dyn Target,
    layouts: &Layouts,
    thread: &Thread,
    address: u64,
    size: u64,
    known: bool,
    out: &mut TlsFindings,
) -> bool {
    let mut raw = [0; 56];
    let take = size.clamp(40, 56) as usize;
    let Some(raw) = raw.get_mut(..take) else { return false };
    if let Err(why) = target.read(address, raw) {
        if known {
            out.note(format!("thread {}: its list of code versions: {why}", thread.id.0));
        }
        return false;
    }
    let view = View::new("thread-local list of code versions", address, raw);
    let vec = |at: u64| -> Option<(u64, u64, u64, u64)> {
        let l = &layouts.state;
        let (cap, ptr, len) = (
            view.u64(at + 8 + l.vec_cap).ok()?,
            view.u64(at + 8 + l.vec_ptr).ok()?,
            view.u64(at + 8 + l.vec_len).ok()?,
        );
        let borrow = view.u64(at).ok()?;
        let plausible = len <= cap
            && cap <= limits::MAX_CODE_VERSIONS
            && (borrow as i64).unsigned_abs() < 1 << 20
            && (len == 0 || (ptr.is_multiple_of(8) && target.mapping_at(ptr).is_some_and(|m| m.read && m.write)));
        plausible.then_some((borrow, ptr, len, cap))
    };
    // With rustc 1.95 the value comes first, then the state word (1 means alive). Before lazy storage had its state
    // last, a tag came first.
    let candidates = [(0, 32), (8, 0)];
    let alive = candidates.iter().find_map(|&(value, state)| {
        (view.u64(state).ok()? & 0xff == 1).then_some(())?;
        vec(value)
    });
    let Some((borrow, ptr, len, _)) = alive else {
        // The list is not initialized on this thread (or was destroyed): no instance was made there.
        return false;
    };
    if len == 0 {
        return false;
    }
    if known && borrow as i64 != 0 {
        out.note(format!("thread {}: its list of code versions was in use when it stopped", thread.id.0));
    }
    let heap = Budgeted::new(target, limits::MAX_FUNCTION_MAP_BYTES);
    let version_size = layouts.state.version_size;
    let list = heap.slice("CodeVersion", address, ptr, len, version_size, limits::MAX_CODE_VERSIONS as usize);
    let list = match list {
        Ok(list) => list,
        Err(why) => {
            if known {
                out.note(format!("thread {}: {why}", thread.id.0));
            }
            return false;
        }
    };
    let mut found = false;
    for version in list.iter() {
        match read_version(target, layouts, thread.id, version) {
            Ok(version) => {
                found = true;
                if out.versions.len() >= limits::MAX_CODE_VERSIONS as usize {
                    out.note("too many code versions: the rest was not read".to_owned());
                    return found;
                }
                out.versions.push(version);
            }
            Err(why) if known => out.note(format!("thread {}: a code version is not usable: {why}", thread.id.0)),
            Err(_) => return found,
        }
    }
    found
}

fn read_version(
    target: &dyn Target,
    layouts: &Layouts,
    thread: ThreadId,
    version: View<'_>,
) -> Result<TlsVersion, StructureError> {
    let l = &layouts.state;
    let base = version.u64(l.version_base)?;
    let baseline = match version.u8(l.version_baseline)? {
        0 => false,
        1 => true,
        other => return Err(version.bad("baseline", other.into())),
    };
    let msm_address = version.address.wrapping_add(l.version_msm);
    let map = map_in_memory::summary(target, l, msm_address)?;
    let mut checks = Vec::new();

    let end = base.checked_add(map.total_size).ok_or_else(|| version.bad("base", base))?;
    match target.mapping_at(base) {
        Some(m) if m.execute && m.is_anonymous() && end <= m.end => {
            let start = if m.start == base { "is the start of" } else { "lies in" };
            checks.push(format!("base {start} an executable anonymous mapping that holds all of the code"));
        }
        _ => return Err(version.bad("base", base)),
    }
    if let Some((first, _)) = map.keys {
        checks.push(format!("keys of {} functions ascend and lie in the code", map.functions));
        if has_prologue(target, base.wrapping_add(first)) {
            checks.push("the first function has the singlepass prologue".to_owned());
        }
    }
    let runnable = version.u64(l.version_runnable)?;
    let mut table = None;
    if let Some(context) = context_of_runnable(target, layouts, runnable)
        && context.code_base == base
        && context.code_size >= map.total_size
    {
        checks.push("its RunnableModule names the same code".to_owned());
        let context = context.msm_address.wrapping_sub(layouts.context.context_msm);
        table = function_table(target, layouts, context, &map);
    }
    let backend = read_str(target, version.u64(l.version_backend)?, version.u64(l.version_backend_len)?);
    if let Some(backend) = &backend {
        checks.push(format!("backend reads \"{backend}\""));
    }
    // The mapping alone is only one fact, and a map without functions proves nothing by itself.
    if checks.len() < 2 {
        return Err(version.bad("checks passed", checks.len() as u64));
    }
    Ok(TlsVersion { thread, base, baseline, backend, msm_address, total_size: map.total_size, table, checks })
}

/// Reads the function table of the context at `context`. `None` unless the table agrees with the state map: the
/// functions behind the imports must be those of the map.
fn function_table(
    target: &dyn Target,
    layouts: &Layouts,
    context: u64,
    map: &map_in_memory::MapSummary,
) -> Option<FunctionTable> {
    let l = &layouts.context;
    let import_count = target.read_u64(context.checked_add(l.context_import_count)?).ok()?;
    let heap = Budgeted::new(target, limits::MAX_MODULE_INFO_BYTES);
    let raw = heap.read("X64ExecutionContext", context, l.context_size).ok()?;
    let view = View::new("X64ExecutionContext", context, &raw);
    let offsets = heap.vec(
        "function_offsets",
        view,
        l.context_offsets,
        VecLayout::from(&layouts.module),
        8,
        limits::MAX_FUNCTIONS,
    );
    let function_offsets: Vec<u64> = offsets.ok()?.iter().map(|v| v.u64(0)).collect::<Result<_, _>>().ok()?;
    let locals = function_offsets.get(usize::try_from(import_count).ok()?..)?;
    let agrees = locals.len() as u64 == map.functions
        && locals.first().copied() == map.keys.map(|k| k.0)
        && locals.last().copied() == map.keys.map(|k| k.1)
        && function_offsets.is_sorted_by(|a, b| a < b);
    agrees.then_some(FunctionTable { function_offsets, import_count })
}

/// Whether `function` begins as singlepass functions do: `codegen_x64.rs` leaves room for a patch and then sets up
/// rbp. The first 23 bytes change when a tier patches the function, the rest stays.
pub(crate) fn has_prologue(memory: &dyn Memory, function: u64) -> bool {
    let mut bytes = [0; 48];
    if memory.read(function, &mut bytes).is_err() {
        return false;
    }
    let (room, body) = bytes.split_at(37);
    room[24..].iter().all(|&b| b == 0x90) && frame_setup(body)
}

fn frame_setup(body: &[u8]) -> bool {
    // dynasm encodes `push rbp` with a REX prefix.
    let after_push = match body {
        [0x40, 0x55, rest @ ..] | [0x55, rest @ ..] => rest,
        _ => return false,
    };
    after_push.starts_with(&[0x48, 0x89, 0xe5]) || after_push.starts_with(&[0x48, 0x8b, 0xec])
}

fn read_str(memory: &dyn Memory, address: u64, len: u64) -> Option<String> {
    let len = usize::try_from(len).ok().filter(|l| (1..=64).contains(l))?;
    let text = String::from_utf8(memory.read_vec(address, len).ok()?).ok()?;
    text.chars().all(|c| c.is_ascii_graphic() || c == ' ').then_some(text)
}

fn read_boundary(
    memory: &dyn Memory,
    thread: ThreadId,
    address: u64,
    size: u64,
) -> Option<(ThreadId, BoundaryRegisters)> {
    let take = usize::try_from(size.clamp(41, 48)).ok()?;
    let raw = memory.read_vec(address, take).ok()?;
    let view = View::new("boundary registers", address, &raw);
    // The structure is packed. The state of the thread-local follows it as one byte, or as a word where the storage
    // is aligned.
    if view.u8(40).ok()? != 1 {
        return None;
    }
    let word = |i: u64| view.u64(8 * i).ok();
    Some((thread, BoundaryRegisters::from_words([word(0)?, word(1)?, word(2)?, word(3)?, word(4)?])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::singlepass::fake::{Fake, HEAP};
    use crate::unwind::testing::object;

    #[test]
    fn prologues_are_known_by_the_bytes_that_patching_leaves() {
        struct At(Vec<u8>);
        impl Memory for At {
            fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), crate::process::MemoryError> {
                let len = buf.len();
                let bytes = self.0.get(address as usize..address as usize + len);
                bytes.map(|b| buf.copy_from_slice(b)).ok_or(crate::process::MemoryError::Unmapped { address, len })
            }
        }
        let mut code = vec![0xeb, 0x20];
        code.resize(37, 0x90);
        code.extend([0x40, 0x55, 0x48, 0x89, 0xe5]);
        code.resize(64, 0xcc);
        assert!(has_prologue(&At(code.clone()), 0));
        // A tier wrote a jump over the first 23 bytes.
        code[..23].fill(0xff);
        assert!(has_prologue(&At(code.clone()), 0));
        code[38] = 0;
        assert!(!has_prologue(&At(code.clone()), 0));
        assert!(!has_prologue(&At(vec![0x90; 20]), 0));
    }

    #[test]
    fn blocks_and_lists_have_an_end() {
        let object = object("/lib/x", 0, (0, 0), Vec::new());
        let found = |size| TlsObject {
            object: &object,
            segment: Segment { address: 0, size, align: 8 },
            main: false,
            versions: Vec::new(),
            boundary: Vec::new(),
        };
        let mut f = Fake::new();
        // The thread's vector of blocks claims one block more than are looked at.
        f.words(HEAP + 8, &[HEAP + 0x1000]);
        f.words(HEAP + 0x1000 - 16, &[limits::MAX_TLS_MODULES + 1]);
        f.words(HEAP + 0x1000, &vec![HEAP; 2 * (limits::MAX_TLS_MODULES as usize + 2)]);
        assert_eq!(found(8).blocks(&f, HEAP).len() as u64, limits::MAX_TLS_MODULES);
        let sizes = [limits::MAX_TLS_BLOCK_TRIED, limits::MAX_TLS_BLOCK_TRIED + 8];
        assert_eq!(sizes.map(|size| found(size).tried()), [limits::MAX_TLS_BLOCK_TRIED; 2]);

        // A list above the limit is refused without a note. A list of as many versions as allowed is read, and the
        // note says that not all of it is there.
        let layouts = Layouts::for_compiler("1.95.0").unwrap();
        let l = &layouts.state;
        f.thread(&[]);
        for (len, looked_at) in [(limits::MAX_CODE_VERSIONS, 1), (limits::MAX_CODE_VERSIONS + 1, 0)] {
            f.words(HEAP, &[0; 7]);
            for (at, word) in [(8 + l.vec_cap, len), (8 + l.vec_ptr, HEAP), (8 + l.vec_len, len), (32, 1)] {
                f.words(HEAP + at, &[word]);
            }
            let mut out = TlsFindings::default();
            assert!(!read_list(&f, &layouts, &f.threads()[0], HEAP, 40, true, &mut out));
            assert_eq!(out.notes.len(), looked_at, "{:?}", out.notes);
        }
    }
}
