//! Where a module's code and maps are in a target, and what confirms that they are there.
//!
//! Every route ends here. It brings the bytes of a `CacheImage` (`codegen_x64.rs: CacheImage`) and perhaps the
//! address of the code that they describe; `CacheImage::parse` and `confirm` decide whether it is a module.

use super::{route_artifact, route_heap, route_vmctx};
use crate::limits;
use crate::process::{Memory, Target};
use crate::runtime::FoundBy;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Page size of the targets; `loader.rs: CodeMemory::new` rounds to the same constant.
pub const PAGE: u64 = 4096;
/// Number of bytes that `patch_local_function` overwrites at the start of a function: `movabs rax, target; movabs r11,
/// trampoline; jmp r11`.
pub const PATCH_SIZE: u64 = 23;
/// Number of bytes of code that are compared at a time.
const BLOCK: usize = 256 << 10;
/// Number of functions whose first bytes are looked at to check the function table.
const SAMPLED_FUNCTIONS: usize = 64;

/// A way to find a module and its maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// From a `vmctx` in a register or on a stack to the `ModuleInner`, and from there to the `SinglepassCache`.
    Vmctx,
    /// A search of writable memory for the cached image.
    Heap,
    /// The runtime's thread-local list of code versions.
    Tls,
    /// A descriptor that the host publishes.
    Descriptor,
    /// A cached artifact file that the user named.
    Artifact,
}

impl Route {
    /// The word for this route in reports.
    pub fn found_by(self) -> FoundBy {
        match self {
            Route::Vmctx => FoundBy::Vmctx,
            Route::Heap => FoundBy::Heap,
            Route::Tls => FoundBy::Tls,
            Route::Descriptor => FoundBy::Descriptor,
            Route::Artifact => FoundBy::Artifact,
        }
    }

    /// The name that `--route` takes and reports print.
    pub fn name(self) -> &'static str {
        self.found_by().as_str()
    }
}

/// Where the module's state map can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapSource {
    /// Borsh bytes of a `CacheImage` in the target.
    CacheImage {
        /// Address of the first byte of the image, which is where the length of the code stands.
        address: u64,
        /// Number of bytes that may belong to the image: exact if `exact` is set, else all up to the end of the
        /// readable range.
        len: u64,
        /// Whether `len` was read from the owner of the bytes. Even then zeros may follow the image: a module that
        /// was loaded from a cache keeps whole pages (`codegen_x64.rs: from_cache`).
        exact: bool,
        /// Offset of the borsh `ModuleStateMap` from `address`.
        msm_offset: u64,
    },
    /// Borsh bytes of a `CacheImage` from a file. Zeros may follow the image.
    Bytes {
        /// The bytes of the image.
        image: Arc<[u8]>,
        /// Offset of the borsh `ModuleStateMap` from the start of the image.
        msm_offset: u64,
    },
    /// The borsh `ModuleStateMap` alone, in the target.
    StateMap {
        /// Address of the first byte of the map.
        address: u64,
        /// Length of the map in bytes.
        len: u64,
    },
    /// The `ModuleStateMap` as an object of the runtime in the target's memory.
    RustObjects {
        /// Address of the `ModuleStateMap`.
        msm_address: u64,
    },
}

impl MapSource {
    /// Address and length of the borsh bytes of the state map, if they are in the target.
    fn in_target(&self) -> Option<(u64, u64)> {
        match self {
            MapSource::CacheImage { address, len, msm_offset, .. } => {
                Some((address.checked_add(*msm_offset)?, len.saturating_sub(*msm_offset)))
            }
            MapSource::StateMap { address, len } => Some((*address, *len)),
            _ => None,
        }
    }

    /// Number of bytes that may belong to the borsh state map. `None` if the map is not borsh.
    pub fn encoded_len(&self) -> Option<u64> {
        match self {
            MapSource::Bytes { image, msm_offset } => Some((image.len() as u64).saturating_sub(*msm_offset)),
            _ => self.in_target().map(|(_, len)| len),
        }
    }

    /// Reads borsh bytes of the state map from `offset` on into `buf`; returns how many bytes were read.
    pub fn read_some(&self, memory: &dyn Memory, offset: u64, buf: &mut [u8]) -> usize {
        let mut read = || match self {
            MapSource::Bytes { image, msm_offset } => {
                let from = usize::try_from(msm_offset.checked_add(offset)?).ok()?;
                let rest = image.get(from..)?;
                let len = rest.len().min(buf.len());
                buf[..len].copy_from_slice(&rest[..len]);
                Some(len)
            }
            _ => {
                let (at, len) = self.in_target()?;
                let len = usize::try_from(len.checked_sub(offset)?).ok()?.min(buf.len());
                let (at, buf) = (at.checked_add(offset)?, &mut buf[..len]);
                Some(match memory.read(at, buf) {
                    Ok(()) => len,
                    Err(_) => memory.read_some(at, buf),
                })
            }
        };
        read().unwrap_or(0)
    }

    /// The borsh bytes of the state map, at most `max` of them. Where the end of the image is not known, they go on
    /// behind the map. Where a byte cannot be read, they end early. `None` if the map is not borsh.
    pub fn msm_bytes<'a>(&'a self, memory: &dyn Memory, max: u64) -> Option<Cow<'a, [u8]>> {
        if let Some((at, len)) = self.in_target() {
            let max = max.min(limits::MAX_IMAGE_BYTES).min(len);
            let mut bytes = vec![0; usize::try_from(max).ok()?];
            if memory.read(at, &mut bytes).is_err() {
                let got = memory.read_some(at, &mut bytes);
                bytes.truncate(got);
            }
            return Some(Cow::Owned(bytes));
        }
        match self {
            MapSource::Bytes { image, msm_offset } => {
                let rest = image.get(usize::try_from(*msm_offset).ok()?..)?;
                Some(Cow::Borrowed(&rest[..rest.len().min(usize::try_from(max).unwrap_or(usize::MAX))]))
            }
            _ => None,
        }
    }
}

/// A module found in a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Routes that led to the module, the first one first.
    pub routes: Vec<Route>,
    /// Address of the first byte of the module's code.
    pub code_base: u64,
    /// Size of the code in bytes, rounded up to whole pages as the runtime does.
    pub code_size: u64,
    /// Where the module's state map is.
    pub map: MapSource,
    /// Offsets of all functions from `code_base`, import trampolines first. They strictly increase.
    pub function_offsets: Vec<u64>,
    /// How many of `function_offsets` are import trampolines.
    pub import_count: u64,
    /// Address of the module's `ModuleInner`, if a route came across it.
    pub module_inner: Option<u64>,
    /// Addresses of the `vm::Ctx` of each instance that was seen, ascending.
    pub vmctx: Vec<u64>,
    /// Functions whose start was patched so that they continue in another tier: index in the function space (imports
    /// first), and the address that the patch leads to.
    pub patched: Vec<(u64, u64)>,
    /// The facts that confirm the module, as text: at least two independent ones.
    pub checks: Vec<String>,
}

/// Why something that looked like a module is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// The address does not hold a `vm::Ctx`.
    #[error("no vmctx at {address:#x}: {why}")]
    NotCtx {
        /// The address that was looked at.
        address: u64,
        /// The first field that does not fit a `vm::Ctx`.
        why: &'static str,
    },
    /// No cached image can be reached from a `ModuleInner`.
    #[error("the module at {module:#x} leads to no cached image")]
    NoImage {
        /// Address of the `ModuleInner`.
        module: u64,
    },
    /// The bytes are no `CacheImage`.
    #[error("no cached image at {address:#x}: {why} (offset {offset:#x})")]
    NotImage {
        /// Address of the bytes; 0 for bytes from a file.
        address: u64,
        /// Offset in the image of what does not fit.
        offset: u64,
        /// What does not fit, as text.
        why: &'static str,
    },
    /// The file is no artifact that holds a `CacheImage`.
    #[error("not an artifact of this runtime: {why}")]
    NotArtifact {
        /// What does not fit, as text.
        why: &'static str,
    },
    /// The code in the target is not the image's code.
    #[error("code at {base:#x} differs from its image at offset {offset:#x}")]
    Different {
        /// Address at which the code was looked for.
        base: u64,
        /// First offset in the code that differs and is not part of a patch.
        offset: u64,
    },
    /// No executable mapping holds the image's code.
    #[error("no executable mapping holds the code of the image ({code_size:#x} bytes)")]
    NoCode {
        /// Size of the image's code in bytes.
        code_size: u64,
    },
    /// Fewer than two independent facts speak for it.
    #[error("code at {base:#x} is confirmed by {count} fact(s) only")]
    Unconfirmed {
        /// Address of the code.
        base: u64,
        /// Number of facts found.
        count: usize,
    },
}

/// The bytes of an image, in the target or in a buffer.
#[derive(Clone)]
pub(crate) enum ImageBytes<'a> {
    Target { memory: &'a dyn Memory, address: u64, len: u64, exact: bool },
    Owned(Arc<[u8]>),
}

impl ImageBytes<'_> {
    fn len(&self) -> u64 {
        match self {
            ImageBytes::Target { len, .. } => *len,
            ImageBytes::Owned(b) => b.len() as u64,
        }
    }

    fn address(&self) -> u64 {
        match self {
            ImageBytes::Target { address, .. } => *address,
            ImageBytes::Owned(_) => 0,
        }
    }

    fn wrong(&self, offset: u64, why: &'static str) -> AnchorError {
        AnchorError::NotImage { address: self.address(), offset, why }
    }

    /// Fills `buf` with the bytes from `offset` on.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), AnchorError> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(self.wrong(offset, "it ends here"));
        }
        let done = match self {
            ImageBytes::Target { memory, address, .. } => {
                address.checked_add(offset).is_some_and(|a| memory.read(a, buf).is_ok())
            }
            ImageBytes::Owned(bytes) => match bytes.get(offset as usize..offset as usize + buf.len()) {
                Some(b) => {
                    buf.copy_from_slice(b);
                    true
                }
                None => false,
            },
        };
        if done { Ok(()) } else { Err(self.wrong(offset, "it cannot be read")) }
    }

    fn u32(&self, offset: u64) -> Result<u32, AnchorError> {
        let mut b = [0; 4];
        self.read(offset, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    fn u64(&self, offset: u64) -> Result<u64, AnchorError> {
        let mut b = [0; 8];
        self.read(offset, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    fn u64s(&self, offset: u64, count: u32) -> Result<Vec<u64>, AnchorError> {
        if count as usize > limits::MAX_FUNCTIONS {
            return Err(self.wrong(offset, "too many functions"));
        }
        // This is checked before the allocation, so that a wrong count costs nothing.
        let size = u64::from(count) * 8;
        if offset.checked_add(size).is_none_or(|end| end > self.len()) {
            return Err(self.wrong(offset, "a function table is longer than the image"));
        }
        let mut buf = vec![0; size as usize];
        self.read(offset, &mut buf)?;
        Ok(buf.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect())
    }
}

/// The part of a borsh `CacheImage` that stands before the state map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheImage {
    /// Size of the code in bytes. The code itself begins at offset 4.
    pub code_size: u64,
    /// Offsets of all functions in the code, import trampolines first.
    pub function_offsets: Vec<u64>,
    /// Number of import trampolines among them.
    pub import_count: u64,
    /// Offset of the borsh state map in the image.
    pub msm_offset: u64,
    /// `ModuleStateMap.total_size`: size of the code in bytes before it was rounded up to pages. Known only where the
    /// end of the image is known.
    pub total_size: Option<u64>,
}

impl CacheImage {
    /// Parses the image at the start of `bytes`.
    pub fn of_bytes(bytes: &[u8]) -> Result<CacheImage, AnchorError> {
        CacheImage::parse(&ImageBytes::Owned(Arc::from(bytes)))
    }

    /// Goes through the image up to the state map and checks what it passes. It reads none of the code.
    pub(crate) fn parse(image: &ImageBytes<'_>) -> Result<CacheImage, AnchorError> {
        let code_size = u64::from(image.u32(0)?);
        if code_size == 0 || !code_size.is_multiple_of(PAGE) || code_size > limits::MAX_IMAGE_BYTES {
            return Err(image.wrong(0, "the code is no whole number of pages"));
        }
        let mut at = 4 + code_size;
        let pointer_count = image.u32(at)?;
        let pointers = image.u64s(at + 4, pointer_count)?;
        at += 4 + 8 * u64::from(pointer_count);
        let count = image.u32(at)?;
        if count != pointer_count {
            return Err(image.wrong(at, "its two function tables differ in length"));
        }
        let function_offsets = image.u64s(at + 4, count)?;
        if function_offsets != pointers {
            return Err(image.wrong(at, "its two function tables differ"));
        }
        if !function_offsets.is_sorted_by(|a, b| a < b) {
            return Err(image.wrong(at, "function offsets do not increase"));
        }
        if function_offsets.last().is_some_and(|&o| o >= code_size) {
            return Err(image.wrong(at, "a function lies beyond the code"));
        }
        at += 4 + 8 * u64::from(count);
        let import_count = image.u64(at)?;
        if import_count > u64::from(count) {
            return Err(image.wrong(at, "more imports than functions"));
        }
        let msm_offset = at + 8;
        let states = image.u32(msm_offset)?;
        if u64::from(states) != u64::from(count) - import_count {
            return Err(image.wrong(msm_offset, "the state map has another number of functions"));
        }
        if let Some(&first) = function_offsets.get(import_count as usize)
            && image.u64(msm_offset + 4)? != first
        {
            return Err(image.wrong(msm_offset + 4, "the state map begins with another function"));
        }
        let total_size = total_size(image, code_size);
        Ok(CacheImage { code_size, function_offsets, import_count, msm_offset, total_size })
    }

    /// Code offset of the first function that is not an import trampoline.
    pub fn first_local(&self) -> Option<u64> {
        self.function_offsets.get(usize::try_from(self.import_count).ok()?).copied()
    }
}

/// Reads the last word of an image whose end is known: the size of the code before it was rounded up to pages. An
/// image that was loaded from a cache is followed by zeros up to the end of a page. The zeros of the word itself
/// cannot be told from those, so each possible end is tried there.
pub(crate) fn total_size(image: &ImageBytes<'_>, code_size: u64) -> Option<u64> {
    if let ImageBytes::Target { exact: false, .. } = image {
        return None;
    }
    let tail_len = image.len().min(2 * PAGE);
    let mut tail = vec![0; tail_len as usize];
    image.read(image.len() - tail_len, &mut tail).ok()?;
    let last = tail.iter().rposition(|&b| b != 0)? + 1;
    // An image that is not a whole number of pages has nothing behind it, so only its very end is tried. Heaps are
    // full of small words and zeros, so a word that is not the last one must not be believed.
    let ends = match image.len().is_multiple_of(PAGE) {
        true => last.max(8)..=(last + 7).min(tail.len()),
        false => tail.len().max(8)..=tail.len(),
    };
    ends.into_iter().find_map(|end| {
        let word = tail.get(end - 8..end)?.try_into().map(u64::from_le_bytes).ok()?;
        (word <= code_size && code_size - word < PAGE).then_some(word)
    })
}

/// A page at which the code of a module may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeStart {
    pub address: u64,
    /// End of the executable range; code that begins here reaches no further.
    pub limit: u64,
    /// The first four bytes as the image of the code has them, which is without a patch.
    pub first: u32,
}

/// Finds every page in anonymous executable memory that begins as singlepass code begins: with an import trampoline
/// if the module imports functions, else with its first function. The starts of mappings are not enough, since
/// neighbouring modules share a mapping (the kernel merges them).
pub(crate) fn code_starts(target: &dyn Target, notes: &mut Vec<String>) -> Vec<CodeStart> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for m in target.mappings().iter().filter(|m| m.execute && m.is_anonymous() && !is_special(m)) {
        match ranges.last_mut() {
            Some(last) if last.1 == m.start => last.1 = m.end,
            _ => ranges.push((m.start, m.end)),
        }
    }
    let mut starts = Vec::new();
    let mut pages = 0;
    for (start, end) in ranges {
        let mut at = start;
        while at < end {
            pages += 1;
            if pages > limits::MAX_CODE_PAGES {
                notes.push(format!(
                    "executable memory from {at:#x} on was not looked at: more than {} pages",
                    pages - 1
                ));
                return starts;
            }
            let mut head = [0; 48];
            if target.read(at, &mut head).is_ok()
                && let Some(first) = begins_like_code(&head)
            {
                starts.push(CodeStart { address: at, limit: end, first });
            }
            at = match at.checked_add(PAGE) {
                Some(next) => next,
                None => break,
            };
        }
    }
    starts
}

/// Whether the mapping is one of the kernel's (`[vdso]`, `[vsyscall]`, `[vvar]`), which not every kind of target can
/// read.
pub(crate) fn is_special(m: &crate::process::Mapping) -> bool {
    m.path.as_ref().is_some_and(|p| p.to_string_lossy().starts_with("[v"))
}

/// Number of bytes at the start of a function that are the same in every function: `jmp +32`, 32 nops, `push rbp`
/// (`codegen_x64.rs: begin_body`). dynasm writes the push with an empty REX prefix.
const FUNCTION_HEAD: usize = 39;

fn is_function_head(head: &[u8]) -> bool {
    head.get(..5) == Some(&[0xe9, 0x20, 0, 0, 0]) && nops_and_push(head, 5)
}

fn nops_and_push(head: &[u8], from: usize) -> bool {
    head.get(from..37).is_some_and(|n| n.iter().all(|&b| b == 0x90))
        && head.get(37..FUNCTION_HEAD) == Some(&[0x40, 0x55])
}

/// The address that the patched head of a function leads to (`codegen_x64.rs: patch_local_function`). The patch
/// leaves the nops behind it and the `push rbp` as they are. `None` if the head is not patched.
fn patch_target(head: &[u8]) -> Option<u64> {
    let target = head.get(2..10)?.try_into().map(u64::from_le_bytes).ok()?;
    (head.get(..2)? == [0x48, 0xb8] && head.get(10..12)? == [0x49, 0xbb] && head.get(20..23)? == [0x41, 0xff, 0xe3])
        .then_some(target)
}

/// The first four bytes as the image has them, if `head` is how singlepass code begins; a patch in `head` is undone.
fn begins_like_code(head: &[u8; 48]) -> Option<u32> {
    let unpatched = 0x0000_20e9;
    if is_function_head(head) {
        return Some(unpatched);
    }
    if patch_target(head).is_some() && nops_and_push(head, PATCH_SIZE as usize) {
        return Some(unpatched);
    }
    let import = match head {
        // This is mov rax, [rdi + imported_funcs] as dynasm encodes it: with an index-less SIB byte and a long
        // displacement.
        [0x48, 0x8b, 0x84, 0x27, 0x30, 0, 0, 0, ..] => true,
        // A trampoline that moves float arguments makes room for them first: sub rsp, 8 * min(arguments, 5).
        [0x48, 0x81, 0xec, n, 0, 0, 0, ..] => *n != 0 && *n <= 40 && n.is_multiple_of(8),
        _ => false,
    };
    import.then_some(u32::from_le_bytes([head[0], head[1], head[2], head[3]]))
}

/// Compares all of the code at `base` with the image's. Only the patchable start of a function may differ, and only
/// if it is a patch. Returns the patched functions and where their patches lead.
fn compare_code(
    target: &dyn Target,
    base: u64,
    image: &ImageBytes<'_>,
    header: &CacheImage,
) -> Result<Vec<(u64, u64)>, AnchorError> {
    let mut patched: BTreeMap<u64, u64> = BTreeMap::new();
    // Most wrong candidates differ on the first page, so the first comparison is of one page only.
    let mut ours = vec![0; PAGE as usize];
    let mut theirs = ours.clone();
    let mut at = 0;
    while at < header.code_size {
        if at == PAGE {
            ours.resize(BLOCK, 0);
            theirs.resize(BLOCK, 0);
        }
        let n = ours.len().min((header.code_size - at) as usize);
        let (ours, theirs) = (&mut ours[..n], &mut theirs[..n]);
        image.read(4 + at, ours)?;
        let address = base.checked_add(at).ok_or(AnchorError::Different { base, offset: at })?;
        target.read(address, theirs).map_err(|_| AnchorError::Different { base, offset: at })?;
        let mut i = 0;
        while let Some(step) = first_difference(&ours[i..], &theirs[i..]) {
            let offset = at + (i + step) as u64;
            let different = AnchorError::Different { base, offset };
            let f = header.function_offsets.partition_point(|&o| o <= offset).checked_sub(1);
            let Some((f, &start)) = f.and_then(|f| Some((f as u64, header.function_offsets.get(f)?))) else {
                return Err(different);
            };
            if f < header.import_count || offset - start >= PATCH_SIZE {
                return Err(different);
            }
            let mut head = [0; PATCH_SIZE as usize];
            target.read(base + start, &mut head).map_err(|_| different.clone())?;
            let to = patch_target(&head).ok_or(different)?;
            patched.insert(f, to);
            i = ((start + PATCH_SIZE - at) as usize).min(n);
        }
        at += n as u64;
    }
    Ok(patched.into_iter().collect())
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    // Comparing slices is as fast as reading memory; only a block that differs is looked at byte by byte.
    if a == b { None } else { a.iter().zip(b).position(|(x, y)| x != y) }
}

/// Checks whether the image's code is at `base`, and collects what speaks for that. `limit` is the end of the
/// executable range.
pub(crate) fn confirm(
    target: &dyn Target,
    route: Route,
    image: &ImageBytes<'_>,
    header: &CacheImage,
    base: u64,
    limit: u64,
) -> Result<Anchor, AnchorError> {
    if !base.is_multiple_of(PAGE) || base.checked_add(header.code_size).is_none_or(|end| end > limit) {
        return Err(AnchorError::Different { base, offset: 0 });
    }
    let patched = compare_code(target, base, image, header)?;
    let mut checks = vec![match patched.len() {
        0 => format!("all {:#x} bytes of code equal the cached image", header.code_size),
        n => {
            format!("all {:#x} bytes of code equal the cached image, but for {n} patched function(s)", header.code_size)
        }
    }];

    let locals = header.function_offsets.get(header.import_count as usize..).unwrap_or_default();
    let step = locals.len().div_ceil(SAMPLED_FUNCTIONS).max(1);
    let mut sampled = 0;
    for &offset in locals.iter().step_by(step) {
        let mut head = [0; FUNCTION_HEAD];
        target.read(base + offset, &mut head).map_err(|_| AnchorError::Different { base, offset })?;
        if !is_function_head(&head) && patch_target(&head).is_none() {
            return Err(AnchorError::Different { base, offset });
        }
        sampled += 1;
    }
    if sampled > 0 {
        checks.push(format!(
            "{sampled} of {} functions looked at begin with the patchable head where the function table says",
            locals.len()
        ));
        checks.push("the state map lists as many functions as the code has, and begins with the same".to_string());
    }
    if let Some(total) = header.total_size {
        checks.push(format!("the image ends with the size of the unrounded code, {total:#x}"));
    }
    let map = match image {
        ImageBytes::Target { address, len, exact, .. } => {
            MapSource::CacheImage { address: *address, len: *len, exact: *exact, msm_offset: header.msm_offset }
        }
        ImageBytes::Owned(b) => MapSource::Bytes { image: b.clone(), msm_offset: header.msm_offset },
    };
    Ok(Anchor {
        routes: vec![route],
        code_base: base,
        code_size: header.code_size,
        map,
        function_offsets: header.function_offsets.clone(),
        import_count: header.import_count,
        module_inner: None,
        vmctx: Vec::new(),
        patched,
        checks,
    })
}

/// Lets an anchor pass only if at least two independent facts speak for it.
pub(crate) fn believe(anchor: Anchor) -> Result<Anchor, AnchorError> {
    match anchor.checks.len() {
        0 | 1 => Err(AnchorError::Unconfirmed { base: anchor.code_base, count: anchor.checks.len() }),
        _ => Ok(anchor),
    }
}

/// Merges anchors of the same code: routes, checks, instances and patches of all of them, and the map of the first.
pub fn merge(anchors: Vec<Anchor>) -> Vec<Anchor> {
    let mut merged: Vec<Anchor> = Vec::new();
    for a in anchors {
        let Some(m) = merged.iter_mut().find(|m| m.code_base == a.code_base) else {
            merged.push(a);
            continue;
        };
        unite(&mut m.routes, a.routes);
        unite(&mut m.checks, a.checks);
        unite(&mut m.vmctx, a.vmctx);
        unite(&mut m.patched, a.patched);
        m.vmctx.sort_unstable();
        m.patched.sort_unstable();
        m.module_inner = m.module_inner.or(a.module_inner);
    }
    merged.sort_by_key(|a| a.code_base);
    merged
}

fn unite<T: PartialEq>(into: &mut Vec<T>, from: Vec<T>) {
    for x in from {
        if !into.contains(&x) {
            into.push(x);
        }
    }
}

/// Tries the vmctx route, then the artifact if the user gave one, then the heap for code that is still unexplained.
/// `progress` is told what is being done, how much of it is done and how much there is (bytes or threads). The second
/// result says what was tried and why it failed.
pub fn find_all(
    target: &dyn Target,
    artifact: Option<&[u8]>,
    progress: &dyn Fn(&str, u64, u64),
) -> (Vec<Anchor>, Vec<String>) {
    let mut notes = Vec::new();
    let instances = route_vmctx::instances(target, progress, &mut notes);
    let mut anchors = route_vmctx::modules(target, &instances, progress, &mut notes);
    if let Some(bytes) = artifact {
        let (more, why) = route_artifact::from_artifact(target, bytes, progress);
        anchors.extend(more);
        notes.extend(why);
    }
    let (more, why) = route_heap::find_heap(target, &anchors, progress);
    anchors.extend(more);
    notes.extend(why);
    let mut anchors = merge(anchors);
    route_vmctx::attach(target, &instances, &mut anchors);
    (anchors, notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Reg, x64};
    use crate::runtime::singlepass::fake::{
        CODE, Fake, HEAP, HEAP_SIZE, STACK, TEXT, artifact, image, make, patch, quiet,
    };

    fn owned(bytes: &[u8]) -> ImageBytes<'static> {
        ImageBytes::Owned(Arc::from(bytes))
    }

    fn why(bytes: &[u8]) -> &'static str {
        match CacheImage::parse(&owned(bytes)) {
            Err(AnchorError::NotImage { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_image_is_walked_to_its_state_map() {
        let m = make(2, 3, 1);
        let h = CacheImage::parse(&owned(&m.image)).unwrap();
        assert_eq!((h.code_size, h.import_count, &h.function_offsets), (4096, 2, &m.offsets));
        assert_eq!(h.first_local(), Some(m.offsets[2]));
        assert_eq!(m.image[h.msm_offset as usize..][..4], [3, 0, 0, 0]);
        let total = m.code.iter().rposition(|&b| b != 0).unwrap() as u64 + 1;
        assert_eq!(h.total_size, Some(total));
        // An image that was loaded from a cache has zeros up to the end of a page.
        let mut padded = m.image.clone();
        padded.resize(padded.len().next_multiple_of(4096), 0);
        assert_eq!(CacheImage::parse(&owned(&padded)).unwrap().total_size, Some(total));
    }

    #[test]
    fn truncated_images_and_lying_lengths_are_errors() {
        let m = make(1, 2, 1);
        let h = CacheImage::parse(&owned(&m.image)).unwrap();
        for end in (0..h.msm_offset as usize + 12).filter(|e| e % 7 == 0 || *e > 4096) {
            assert!(CacheImage::parse(&owned(&m.image[..end])).is_err(), "{end}");
        }
        let with = |at: usize, bytes: &[u8]| {
            let mut b = m.image.clone();
            b[at..at + bytes.len()].copy_from_slice(bytes);
            b
        };
        assert_eq!(why(&with(0, &[0xff; 4])), "the code is no whole number of pages");
        assert_eq!(why(&with(0, &[0, 0xf0, 0xff, 0xff])), "the code is no whole number of pages");
        assert_eq!(why(&with(0, &[0, 0, 0, 0x40])), "it ends here");
        let table = 4 + m.code.len();
        let most = limits::MAX_FUNCTIONS as u32;
        assert_eq!(why(&with(table, &(most + 1).to_le_bytes())), "too many functions");
        assert_eq!(why(&with(table, &most.to_le_bytes())), "a function table is longer than the image");
        assert_eq!(why(&with(table + 4, &[1])), "its two function tables differ");
        assert_eq!(why(&with(table + 28, &[4])), "its two function tables differ in length");
        let imports = table + 28 + 28;
        assert_eq!(why(&with(imports, &[4])), "more imports than functions");
        assert_eq!(why(&with(imports, &[0])), "the state map has another number of functions");
        assert_eq!(why(&with(imports + 12, &[5])), "the state map begins with another function");
        assert_eq!(why(&image(&m.code, &[0, 40, 40], 0, 99)), "function offsets do not increase");
        assert_eq!(why(&image(&m.code, &[0, 40, 4096], 0, 99)), "a function lies beyond the code");
    }

    #[test]
    fn only_the_patchable_head_of_a_function_may_differ() {
        let m = make(1, 3, 1);
        let (second, import) = (CODE + m.offsets[2], CODE + m.offsets[0]);
        let run = |at: u64, bytes: &[u8]| {
            let mut f = Fake::new();
            f.code(CODE, &m.code);
            f.write(at, bytes);
            let i = owned(&m.image);
            let h = CacheImage::parse(&i).unwrap();
            confirm(&f, Route::Heap, &i, &h, CODE, CODE + 4096)
        };
        assert_eq!(run(second, &patch(0x1234)).unwrap().patched, [(2, 0x1234)]);
        let offset = second - CODE;
        // The cases: half a patch, a patch that changes one byte more, a patch of an import trampoline.
        assert_eq!(run(second, &patch(1)[..22]), Err(AnchorError::Different { base: CODE, offset }));
        let long = [patch(1), vec![0xcc]].concat();
        assert_eq!(run(second, &long), Err(AnchorError::Different { base: CODE, offset: offset + 23 }));
        assert!(matches!(run(import, &patch(1)), Err(AnchorError::Different { .. })));
        // The last byte of the padding is compared too.
        assert_eq!(run(CODE + 4095, &[1]), Err(AnchorError::Different { base: CODE, offset: 4095 }));
    }

    #[test]
    fn code_that_crosses_compare_blocks_is_compared_to_its_end() {
        let m = make(0, 12_000, 1);
        assert!(m.code.len() > 2 * BLOCK);
        let mut f = Fake::new();
        f.code(CODE, &m.code);
        let i = owned(&m.image);
        let h = CacheImage::parse(&i).unwrap();
        let limit = CODE + h.code_size;
        // Patches that straddle the edge of two blocks. Edges are at 4 KiB and every 256 KiB from there; those count
        // that lie inside some function's head.
        let straddles = |edge: u64| {
            let f = m.offsets.partition_point(|&o| o <= edge) - 1;
            (m.offsets[f] < edge && edge < m.offsets[f] + PATCH_SIZE).then_some(f as u64)
        };
        let blocks = (0..10).map(|i| PAGE + i * BLOCK as u64);
        let cut: Vec<u64> = blocks.filter_map(straddles).collect();
        assert!(!cut.is_empty());
        for &n in &cut {
            f.write(CODE + m.offsets[n as usize], &patch(n));
        }
        let a = confirm(&f, Route::Heap, &i, &h, CODE, limit).unwrap();
        assert_eq!(a.patched, cut.iter().map(|&n| (n, n)).collect::<Vec<_>>());
        f.write(limit - 1, &[1]);
        assert_eq!(
            confirm(&f, Route::Heap, &i, &h, CODE, limit),
            Err(AnchorError::Different { base: CODE, offset: h.code_size - 1 })
        );
        assert!(confirm(&f, Route::Heap, &i, &h, CODE, limit - PAGE).is_err());
    }

    #[test]
    fn all_routes_lead_to_one_anchor() {
        let (m, n) = (make(1, 2, 1), make(0, 2, 2));
        let mut f = Fake::new();
        let b = f.load(&m, CODE);
        // The second module is found only in the heap: no instance of it is seen anywhere.
        f.load(&n, CODE + 0x1000);
        f.merge_mappings();
        f.thread(&[(x64::R15, b.vmctx)]);
        let (anchors, notes) = find_all(&f, Some(&artifact(&m.image)), &quiet);
        assert_eq!(notes, Vec::<String>::new());
        assert_eq!(anchors.len(), 2);
        let msm = |a: &Anchor, max| a.map.msm_bytes(&f, max).unwrap().into_owned();
        let rest = &m.image[m.image.len() - 4 - 2 * 58 - 8..];
        assert_eq!((msm(&anchors[0], u64::MAX), msm(&anchors[0], 7)), (rest.to_vec(), rest[..7].to_vec()));
        let (from_file, _) = route_artifact::from_artifact(&f, &artifact(&m.image), &quiet);
        assert_eq!(msm(&from_file[0], rest.len() as u64), rest);
        assert_eq!((anchors[0].code_base, &anchors[0].routes[..]), (CODE, &[Route::Vmctx, Route::Artifact][..]));
        assert_eq!((anchors[0].module_inner, &anchors[0].vmctx[..]), (Some(b.module), &[b.vmctx][..]));
        assert_eq!((anchors[1].code_base, &anchors[1].routes[..]), (CODE + 0x1000, &[Route::Heap][..]));
    }

    #[test]
    fn instances_are_listed_even_if_their_module_cannot_be_followed() {
        let m = make(1, 2, 1);
        let mut f = Fake::new();
        let b = f.load(&m, CODE);
        f.words(b.module + 0x240, &[0]);
        f.thread(&[(x64::RBX, b.vmctx)]);
        let (anchors, notes) = find_all(&f, None, &quiet);
        assert_eq!((anchors[0].routes[0], &anchors[0].vmctx[..]), (Route::Heap, &[b.vmctx][..]));
        assert!(notes[0].contains("leads to no cached image"), "{notes:?}");
    }

    /// Whatever is in the target, the routes end and say something, and what they find is never wrong.
    #[test]
    fn corrupted_targets_neither_panic_nor_yield_wrong_modules() {
        let m = make(1, 3, 1);
        let mut random = 1u64;
        let mut next = move || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            random >> 20
        };
        let mut found = 0;
        for _ in 0..400 {
            let mut f = Fake::new();
            let b = f.load(&m, CODE);
            f.thread(&[(x64::R15, b.vmctx), (x64::RSP, STACK)]);
            let (from, to) = [(HEAP, HEAP + 0x6000), (CODE, CODE + 200), (b.vmctx, b.vmctx + 160), (TEXT, TEXT + 64)]
                [next() as usize % 4];
            for _ in 0..1 + next() % 8 {
                let at = from + next() % (to - from);
                let value = [0, 1, 8, u64::MAX, at, b.vmctx, b.module, HEAP + HEAP_SIZE - 8, CODE, next()];
                f.words(at & !7, &[value[next() as usize % value.len()]]);
            }
            let (anchors, _) = find_all(&f, Some(&artifact(&m.image)), &quiet);
            for a in anchors {
                found += 1;
                assert_eq!((a.code_base, a.code_size, &a.function_offsets), (CODE, 4096, &m.offsets));
                assert!(a.checks.len() >= 2);
            }
        }
        assert!(found > 100, "{found}");
    }

    #[test]
    fn so_many_pages_of_code_are_looked_at() {
        for (pages, notes) in [(limits::MAX_CODE_PAGES, 0), (limits::MAX_CODE_PAGES + 1, 1)] {
            let mut f = Fake::new();
            f.map(CODE, pages * PAGE, "r-x", None);
            let mut found = Vec::new();
            code_starts(&f, &mut found);
            assert_eq!(found.len(), notes, "{found:?}");
        }
    }
}
