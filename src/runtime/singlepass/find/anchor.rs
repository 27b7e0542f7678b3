//! Where a module's code and maps are in a target, and what confirms that they are there.
//!
//! Every route ends here. It brings the bytes of a `CacheImage` (`codegen_x64.rs: CacheImage`) and perhaps the
//! address of the code that they describe; `CacheImage::parse` and `confirm` decide whether it is a module.

use crate::limits;
use crate::process::Target;
use crate::runtime::FoundBy;
use crate::runtime::singlepass::module::cache_image::{CacheImage, ImageBytes, MapSource, NotImage, PAGE};
use std::collections::BTreeMap;

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
    #[error(transparent)]
    NotImage(#[from] NotImage),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::singlepass::fake::{CODE, Fake, make, patch};
    use std::sync::Arc;

    fn owned(bytes: &[u8]) -> ImageBytes<'static> {
        ImageBytes::Owned(Arc::from(bytes))
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
