//! The heap route: the cached image is somewhere in writable memory for the module's whole life
//! (`codegen_x64.rs: SinglepassCache`). It begins with the length and the bytes of code that is also mapped
//! executable.
//!
//! The image is the payload of an `Arc<[u8]>`. An `Arc` has a header of two words and is aligned to eight bytes on
//! every layout, so image starts are multiples of eight. The first eight bytes of an image are
//! `[u32 size][first 4 bytes of code]` with a size of whole pages. One pass over aligned words therefore finds the
//! images of any number of modules at once.

use super::anchor::{Anchor, AnchorError, CodeStart, Route, believe, code_starts, confirm, is_special};
use crate::limits;
use crate::process::{Mapping, Target};
use crate::runtime::rust::arc;
use crate::runtime::singlepass::module::cache_image::{CacheImage, ImageBytes, MapSource, PAGE, total_size};
use std::time::{Duration, Instant};

/// Bytes read at a time: large enough that the cost of a read call vanishes, small enough to stay in a core's cache.
const CHUNK: usize = 256 << 10;

/// Searches writable memory for the cached images of all code that `known` does not explain, then for the pointers
/// that own these images and know their length. The second result says what was searched and why that was not enough.
pub fn find_heap(
    target: &dyn Target,
    known: &[Anchor],
    progress: &dyn Fn(&str, u64, u64),
) -> (Vec<Anchor>, Vec<String>) {
    let mut notes = Vec::new();
    let mut starts = code_starts(target, &mut notes);
    for a in known {
        explained(&mut starts, a);
    }
    if starts.is_empty() {
        if known.is_empty() {
            notes.push("heap: no anonymous executable memory begins like singlepass code".to_string());
        }
        return (Vec::new(), notes);
    }
    let until = deadline();
    let mut walk = Walk { target, mappings: likely_first(target), done: 0, until, progress };
    let mut search = Search { target, starts, anchors: Vec::new(), failures: Vec::new(), failed: 0, copies: 0, until };
    let mut hits = Vec::new();
    let stopped = walk.run("searching memory for cached images", &mut |at, end, bytes| {
        hits.clear();
        scan(bytes, &search.firsts(), &mut hits);
        hits.iter().for_each(|&hit| search.candidate(at + hit as u64, end));
        !search.starts.is_empty()
    });
    let Search { starts, mut anchors, failures, failed, copies, .. } = search;
    if let Some(first) = starts.first() {
        if let Some(why) = stopped {
            notes.push(format!("heap: {why} after {:#x} of {:#x} bytes", walk.done, walk.total()));
        }
        notes.push(format!(
            "heap: no cached image for {} page(s) of code, the first at {:#x}",
            starts.len(),
            first.address
        ));
        notes.extend(failures.iter().map(|e| format!("heap: {e}")));
        if failed > failures.len() {
            notes.push(format!("heap: {} more places looked like an image", failed - failures.len()));
        }
    }
    if copies > 0 {
        notes.push(format!("heap: {copies} further copies of images were seen; the first of each is used"));
    }
    find_owners(&mut walk, &mut anchors);
    (anchors, notes)
}

/// The time at which a search that begins now has to end.
pub(crate) fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(limits::MAX_HEAP_SEARCH_SECONDS)
}

/// Finds the `Arc<[u8]>` that owns each image: the address of the image's reference counts, followed by its length
/// (`codegen_x64.rs: SinglepassCache`). Without the owner all that is known is that the image ends before its mapping
/// does.
fn find_owners(walk: &mut Walk<'_>, anchors: &mut [Anchor]) {
    let address = |a: &Anchor| match a.map {
        MapSource::CacheImage { address, exact: false, .. } => address.checked_sub(16),
        _ => None,
    };
    let mut wanted: Vec<u64> = anchors.iter().filter_map(address).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let target = walk.target;
    let mut hits = Vec::new();
    walk.run("searching memory for the owners of images", &mut |at, _, bytes| {
        hits.clear();
        scan_for(bytes, &wanted, &mut hits);
        for &offset in &hits {
            let owner = at + offset as u64;
            let Some(Ok(claimed)) = owner.checked_add(8).map(|a| target.read_u64(a)) else { continue };
            let Some(arc) = bytes.get(offset..).and_then(|b| Some(u64::from_le_bytes(*b.first_chunk()?))) else {
                continue;
            };
            for anchor in anchors.iter_mut().filter(|a| address(a) == Some(arc)) {
                if own(target, anchor, claimed, owner) {
                    wanted.retain(|&w| w != arc);
                }
            }
        }
        !wanted.is_empty()
    });
}

/// Takes the length that the pointer at `owner` claims for the image of `anchor`, if the image ends there as images
/// do. Returns whether it does.
fn own(target: &dyn Target, anchor: &mut Anchor, claimed: u64, owner: u64) -> bool {
    let MapSource::CacheImage { address, len, exact, msm_offset } = &mut anchor.map else { return false };
    if claimed > *len || claimed < *msm_offset {
        return false;
    }
    let image = ImageBytes::Target { memory: target, address: *address, len: claimed, exact: true };
    let Some(total) = total_size(&image, anchor.code_size) else { return false };
    (*len, *exact) = (claimed, true);
    anchor.checks.push(format!(
        "the Arc<[u8]> at {owner:#x} owns the image, which ends with the size of the unrounded code, {total:#x}"
    ));
    true
}

/// Removes the starts that lie in the code of `anchor`, since `anchor` explains them.
fn explained(starts: &mut Vec<CodeStart>, anchor: &Anchor) {
    starts.retain(|s| s.address < anchor.code_base || s.address - anchor.code_base >= anchor.code_size);
}

/// Writable anonymous memory: the heap first, then small mappings before large ones. Linear memories and caches are
/// large, and an image that is larger than them is worth the wait.
fn likely_first(target: &dyn Target) -> Vec<&Mapping> {
    let is = |m: &Mapping, name: &str| m.path.as_ref().is_some_and(|p| p.as_os_str() == name);
    let mut maps: Vec<&Mapping> = target
        .mappings()
        .iter()
        .filter(|m| m.read && m.write && m.is_anonymous() && !is_special(m) && !is(m, "[stack]"))
        .collect();
    maps.sort_by_key(|m| (!is(m, "[heap]"), m.size()));
    maps
}

/// Reads all bytes of some mappings, within the limits of the search.
struct Walk<'a> {
    target: &'a dyn Target,
    mappings: Vec<&'a Mapping>,
    /// Bytes that were passed so far, in all runs.
    done: u64,
    until: Instant,
    progress: &'a dyn Fn(&str, u64, u64),
}

impl Walk<'_> {
    fn total(&self) -> u64 {
        self.mappings.iter().map(|m| m.size()).fold(0, u64::saturating_add)
    }

    /// Calls `visit` with the address, the end of the mapping and the bytes of each part that can be read, until it
    /// returns false. If a limit ended the run early, returns which limit.
    fn run(&mut self, what: &str, visit: &mut dyn FnMut(u64, u64, &[u8]) -> bool) -> Option<&'static str> {
        let total = self.total();
        let begin = self.done;
        let mut buf = vec![0; CHUNK];
        for m in &self.mappings {
            // Mappings are page-aligned. If a target says otherwise, that must not shift the words.
            let Some(mut at) = m.start.checked_next_multiple_of(8) else { continue };
            let mut missing = 0u32;
            while at < m.end {
                if self.done >= limits::MAX_HEAP_SEARCH_BYTES {
                    return Some("stopped at the limit of bytes");
                }
                if Instant::now() >= self.until {
                    return Some("stopped at the limit of time");
                }
                (self.progress)(what, self.done - begin, total);
                let want = usize::try_from(m.end - at).unwrap_or(CHUNK).min(CHUNK);
                // Where pages in the middle are absent, this reads what is before them.
                let got = self.target.scan(at, &mut buf[..want]);
                if !visit(at, m.end, &buf[..got]) {
                    return None;
                }
                // A short read was stopped by one absent page, and the page behind it may be there. Where a MiB in a
                // row is missing (the undumped tail of a mapping in a core may be tens of GiB) the strides double.
                missing = if got == 0 { missing + 1 } else { 0 };
                let stride = 1u64 << missing.saturating_sub(256).min(18);
                let next = match got < want {
                    true => ((at + got as u64) | (PAGE - 1)).checked_add(1 + (stride - 1) * PAGE),
                    false => at.checked_add(got as u64),
                };
                let Some(next) = next else { break };
                self.done = self.done.saturating_add(next - at);
                at = next;
            }
        }
        None
    }
}

struct Search<'a> {
    target: &'a dyn Target,
    /// Places where code may begin that no image explains yet.
    starts: Vec<CodeStart>,
    anchors: Vec<Anchor>,
    failures: Vec<AnchorError>,
    failed: usize,
    copies: usize,
    until: Instant,
}

impl Search<'_> {
    fn firsts(&self) -> Vec<u32> {
        let mut f: Vec<u32> = self.starts.iter().map(|s| s.first).collect();
        f.sort_unstable();
        f.dedup();
        f
    }

    /// Examines the words at `address`, which look like the start of an image. Their mapping ends at `end`.
    fn candidate(&mut self, address: u64, end: u64) {
        // Machine code is full of words that pass as a page-aligned size, but most of these sizes would not fit where
        // the code is.
        let first = self.target.read_u64(address).unwrap_or_default();
        let fits = |s: &CodeStart| s.first == (first >> 32) as u32 && s.limit - s.address >= first & 0xffff_ffff;
        if Instant::now() >= self.until || !self.starts.iter().any(fits) {
            return;
        }
        let len = (end - address).min(limits::MAX_IMAGE_BYTES);
        let image = ImageBytes::Target { memory: self.target, address, len, exact: false };
        let header = match CacheImage::parse(&image) {
            Ok(h) => h,
            Err(e) => return self.fail(e.into()),
        };
        let mut first_error = None;
        let mut matching = Vec::new();
        // The same module compiled twice gives equal code twice: one image then serves both.
        for start in self.starts.iter().filter(|s| fits(s)) {
            if Instant::now() >= self.until {
                break;
            }
            let confirmed = confirm(self.target, Route::Heap, &image, &header, start.address, start.limit);
            let counted = confirmed.map(|mut a| {
                a.checks.extend(arc_counts(self.target, address));
                a
            });
            match counted.and_then(believe) {
                Ok(a) => matching.push(a),
                Err(e) => first_error = first_error.or(Some(e)),
            }
        }
        if matching.is_empty() {
            let copy = self.anchors.iter().any(|a| {
                confirm(self.target, Route::Heap, &image, &header, a.code_base, a.code_base + a.code_size).is_ok()
            });
            match (copy, first_error) {
                (true, _) => self.copies += 1,
                (false, Some(e)) => self.fail(e),
                (false, None) => {}
            }
        }
        for a in matching {
            explained(&mut self.starts, &a);
            self.anchors.push(a);
        }
    }

    fn fail(&mut self, e: AnchorError) {
        self.failed += 1;
        if self.failures.len() < limits::MAX_EXPLAINED_FAILURES {
            self.failures.push(e);
        }
    }
}

/// Describes the reference counts before the payload of an `Arc`. Their absence proves nothing: the bytes may be a
/// copy.
fn arc_counts(target: &dyn Target, payload: u64) -> Option<String> {
    let at = payload.checked_sub(arc::COUNTS)?;
    let (strong, weak) = arc::counts(target, at, limits::MAX_REFERENCES)?;
    Some(format!("the image is the payload of a live Arc at {at:#x} ({strong} strong, {weak} weak)"))
}

/// Collects offsets of aligned words whose low half is a size in whole pages and whose high half is one of `firsts`
/// (sorted).
fn scan(bytes: &[u8], firsts: &[u32], hits: &mut Vec<usize>) {
    const BLOCK: usize = 512;
    let is_size = |w: u64| (w & (PAGE - 1) == 0) & (w as u32 != 0);
    for (i, block) in bytes.chunks(BLOCK).enumerate() {
        let words = block.as_chunks::<8>().0;
        // No branch inside, so that the compiler can use vectors; nearly every block ends here.
        let any = words.iter().fold(false, |any, w| any | is_size(u64::from_le_bytes(*w)));
        if !any {
            continue;
        }
        for (j, w) in words.iter().enumerate() {
            let w = u64::from_le_bytes(*w);
            if is_size(w) && firsts.binary_search(&((w >> 32) as u32)).is_ok() {
                hits.push(i * BLOCK + j * 8);
            }
        }
    }
}

/// Collects offsets of aligned words that are in `wanted` (sorted).
fn scan_for(bytes: &[u8], wanted: &[u64], hits: &mut Vec<usize>) {
    const BLOCK: usize = 512;
    let (Some(&low), Some(&high)) = (wanted.first(), wanted.last()) else { return };
    for (i, block) in bytes.chunks(BLOCK).enumerate() {
        let words = block.as_chunks::<8>().0;
        let any = words.iter().fold(false, |any, w| any | (u64::from_le_bytes(*w).wrapping_sub(low) <= high - low));
        if !any {
            continue;
        }
        for (j, w) in words.iter().enumerate() {
            let w = u64::from_le_bytes(*w);
            if wanted.binary_search(&w).is_ok() {
                hits.push(i * BLOCK + j * 8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{MemoryError, Thread};
    use crate::runtime::singlepass::fake::{CODE, Fake, HEAP, LINEAR, STACK, make, patch, quiet};
    use std::cell::RefCell;

    fn bases(anchors: &[Anchor]) -> Vec<u64> {
        anchors.iter().map(|a| a.code_base).collect()
    }

    #[test]
    fn several_modules_in_one_merged_mapping_are_found_in_one_pass() {
        let made = [make(1, 2, 1), make(0, 200, 2), make(0, 1, 3), make(2, 0, 4)];
        let mut f = Fake::new();
        let mut at = CODE;
        let mut expected = Vec::new();
        for m in &made {
            f.code(at, &m.code);
            f.arc(&m.image);
            expected.push(at);
            at += m.code.len() as u64;
        }
        f.merge_mappings();
        let (anchors, notes) = find_heap(&f, &[], &quiet);
        let mut found = bases(&anchors);
        found.sort();
        assert_eq!(found, expected, "{notes:?}");
        assert_eq!(notes, Vec::<String>::new());
        for (m, a) in made.iter().zip(&anchors) {
            assert_eq!(a.function_offsets, m.offsets);
        }
    }

    #[test]
    fn stale_copies_are_passed_by() {
        let (m, other) = (make(0, 2, 1), make(0, 1, 9));
        let mut f = Fake::new();
        f.code(CODE, &m.code);
        f.code(CODE + 0x1000, &other.code);
        // Four images: one overwritten in the middle, one cut off by the end of its mapping, a good one, and its
        // twin.
        let mut stale = m.image.clone();
        stale[60] ^= 1;
        f.arc(&stale);
        f.write(LINEAR + 0x10000 - 16, &m.image[..16]);
        f.arc(&m.image);
        f.arc(&m.image);
        let (anchors, notes) = find_heap(&f, &[], &quiet);
        assert_eq!(bases(&anchors), [CODE]);
        let all = notes.join("\n");
        assert!(all.contains(&format!("no cached image for 1 page(s) of code, the first at {:#x}", CODE + 0x1000)));
        assert!(all.contains("1 further copies") && all.contains("differs from its image at offset 0x38"), "{all}");
        assert!(all.contains("it ends here"), "{all}");
    }

    #[test]
    fn one_image_serves_equal_code_at_two_places_even_patched() {
        let m = make(0, 2, 1);
        let mut f = Fake::new();
        f.code(CODE, &m.code);
        f.code(CODE + 0x4000, &m.code);
        f.write(CODE, &patch(0x77));
        f.arc(&m.image);
        let (anchors, notes) = find_heap(&f, &[], &quiet);
        assert_eq!(bases(&anchors), [CODE, CODE + 0x4000], "{notes:?}");
        assert_eq!((&anchors[0].patched[..], &anchors[1].patched[..]), (&[(0, 0x77)][..], &[][..]));
    }

    #[test]
    fn what_is_known_is_not_searched_for() {
        let m = make(0, 2, 1);
        let mut f = Fake::new();
        f.code(CODE, &m.code);
        f.arc(&m.image);
        let (known, _) = find_heap(&f, &[], &quiet);
        let asked = RefCell::new(0);
        let (more, notes) = find_heap(&f, &known, &|_, _, _| *asked.borrow_mut() += 1);
        assert!(more.is_empty() && notes.is_empty() && *asked.borrow() == 0);
        // A target that has nothing executable at all.
        let (none, notes) = find_heap(&Fake::new(), &[], &quiet);
        assert!(none.is_empty() && notes[0].contains("no anonymous executable memory"), "{notes:?}");
    }

    /// A target that lacks some pages, as cores do.
    struct Holes(Fake, Vec<u64>);

    impl crate::process::Memory for Holes {
        fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
            let hit = |p: &u64| address < p + PAGE && *p < address + buf.len() as u64;
            match self.1.iter().any(hit) {
                true => Err(MemoryError::Absent { address, len: buf.len(), why: "not dumped" }),
                false => self.0.read(address, buf),
            }
        }
    }

    impl Target for Holes {
        fn machine(&self) -> crate::arch::Machine {
            self.0.machine()
        }
        fn description(&self) -> String {
            self.0.description()
        }
        fn threads(&self) -> &[Thread] {
            self.0.threads()
        }
        fn mappings(&self) -> &[Mapping] {
            self.0.mappings()
        }
        fn executable(&self) -> Option<&std::path::Path> {
            None
        }
        fn pid(&self) -> Option<u32> {
            None
        }
        fn auxv(&self, _: u64) -> Option<u64> {
            None
        }
        fn file_candidates(&self, _: &Mapping) -> Vec<crate::process::files::FileLocation> {
            Vec::new()
        }
        fn notes(&self) -> &[String] {
            &[]
        }
        fn is_live(&self) -> bool {
            false
        }
    }

    #[test]
    fn absent_pages_do_not_hide_what_is_behind_them() {
        let m = make(0, 2, 1);
        let mut f = Fake::new();
        f.code(CODE, &m.code);
        f.alloc(0x5000);
        f.arc(&m.image);
        let (anchors, notes) = find_heap(&Holes(f, vec![HEAP, HEAP + 0x2000, STACK]), &[], &quiet);
        assert_eq!(bases(&anchors), [CODE], "{notes:?}");
        let MapSource::CacheImage { exact, .. } = anchors[0].map else { panic!() };
        assert!(!exact);
    }

    #[test]
    fn the_owner_of_an_image_knows_its_length() {
        let m = make(0, 2, 1);
        let len = m.image.len() as u64;
        let run = |owners: &[u64]| {
            let mut f = Fake::new();
            f.code(CODE, &m.code);
            let arc = f.arc(&m.image);
            for &len in owners {
                let at = f.alloc(16);
                f.words(at, &[arc, len]);
            }
            let (anchors, _) = find_heap(&f, &[], &quiet);
            match anchors[0].map {
                MapSource::CacheImage { len, exact, .. } => (len, exact, anchors[0].checks.len()),
                _ => panic!(),
            }
        };
        let (_, exact, checks) = run(&[]);
        assert!(!exact);
        // Other words may stand behind a copy of the pointer. Only the length at which an image ends is believed.
        let lies = [0, 1, len - 8, len + 8, u64::MAX, 0x1_0000];
        assert_eq!((run(&lies).1, run(&lies).2), (false, checks));
        assert_eq!(run(&[&lies[..], &[len]].concat()), (len, true, checks + 1));
    }

    #[test]
    fn scan_wants_a_size_in_pages_and_a_known_first_word() {
        let words: [u64; 6] =
            [0, 0x20e9_0000_1000, 0x20e9_0000_1008, 0x20e8_0000_1000, 0x20e9_0000_0000, 0x20e9_ffff_f000];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).chain([0xe9; 3]).collect();
        let mut hits = Vec::new();
        scan(&bytes, &[0x20e9], &mut hits);
        assert_eq!(hits, [8, 40]);
    }

    #[test]
    fn a_search_has_an_end() {
        let f = Fake::new();
        let mapping = |size| Mapping { start: 0x1000, end: 0x1000 + size, ..f.mappings()[0].clone() };
        let run = |mapping: &Mapping, until| {
            Walk { target: &f, mappings: vec![mapping], done: 0, until, progress: &quiet }.run("", &mut |_, _, _| true)
        };
        // None of this memory is there, so it is passed in strides.
        let far = Instant::now() + Duration::from_secs(1 << 20);
        let stopped = run(&mapping(limits::MAX_HEAP_SEARCH_BYTES + (1 << 40)), far);
        assert_eq!(stopped, Some("stopped at the limit of bytes"));
        assert_eq!(run(&mapping(limits::MAX_HEAP_SEARCH_BYTES - (4 << 30)), far), None);
        assert_eq!(run(&mapping(0x1000), Instant::now()), Some("stopped at the limit of time"));
        assert!(deadline() <= Instant::now() + Duration::from_secs(limits::MAX_HEAP_SEARCH_SECONDS));

        let (starts, anchors, failures) = (Vec::new(), Vec::new(), Vec::new());
        let mut search = Search { target: &f, starts, anchors, failures, failed: 0, copies: 0, until: far };
        let count = limits::MAX_EXPLAINED_FAILURES + 1;
        (0..count).for_each(|_| search.fail(AnchorError::NoCode { code_size: 0 }));
        assert_eq!((search.failures.len(), search.failed), (limits::MAX_EXPLAINED_FAILURES, count));
    }

    #[test]
    fn so_many_references_are_believed() {
        let mut f = Fake::new();
        for (counts, live) in [
            ([1, 1], true),
            ([limits::MAX_REFERENCES, limits::MAX_REFERENCES], true),
            ([limits::MAX_REFERENCES + 1, 1], false),
            ([1, limits::MAX_REFERENCES + 1], false),
            ([0, 1], false),
        ] {
            f.words(HEAP, &counts);
            assert_eq!(arc_counts(&f, HEAP + 16).is_some(), live, "{counts:?}");
        }
    }
}
