//! The heap route: the cached image is somewhere in writable memory for the module's whole life
//! (`codegen_x64.rs: SinglepassCache`), and it begins with the length and the bytes of code that is mapped executable.
//!
//! The image is the payload of an `Arc<[u8]>`. Its header is two words and `Arc` aligns it to eight bytes on every layout,
//! so image starts are multiples of eight, and the first eight bytes of an image are `[u32 size][first 4 bytes of code]`
//! with a size of whole pages. One pass over aligned words therefore finds the images of any number of modules at once.

use super::anchor::{
    Anchor, AnchorError, CacheImage, CodeStart, ImageBytes, PAGE, Route, believe, code_starts, confirm, is_special,
};
use crate::limits;
use crate::target::{Mapping, Target};
use std::time::{Duration, Instant};

/// Bytes read at a time: large enough that the cost of a read call vanishes, small enough to stay in a core's cache.
const CHUNK: usize = 1 << 20;
/// Failed candidates that are explained one by one.
const MAX_EXPLAINED: usize = 8;

/// Searches writable memory for the cached images of all code that `known` does not explain. The second result says what
/// was searched and why it was not enough.
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
    let mut search = Search {
        target,
        starts,
        anchors: Vec::new(),
        failures: Vec::new(),
        failed: 0,
        copies: 0,
        until: Instant::now() + Duration::from_secs(limits::MAX_HEAP_SEARCH_SECONDS),
    };
    let mappings = likely_first(target);
    let total: u64 = mappings.iter().map(|m| m.size()).fold(0, u64::saturating_add);
    let mut done = 0;
    let mut stopped = None;
    for m in mappings {
        if let Some(why) = search.mapping(m, &mut done, total, progress) {
            stopped = Some(why);
            break;
        }
    }
    if let Some(why) = stopped.filter(|_| !search.starts.is_empty()) {
        notes.push(format!("heap: {why} after {done:#x} of {total:#x} bytes"));
    }
    if !search.starts.is_empty() {
        notes.push(format!(
            "heap: no cached image for {} page(s) of code, the first at {:#x}",
            search.starts.len(),
            search.starts[0].address
        ));
    }
    notes.extend(search.failures.iter().map(|e| format!("heap: {e}")));
    if search.failed > search.failures.len() {
        notes.push(format!("heap: {} more places looked like an image", search.failed - search.failures.len()));
    }
    if search.copies > 0 {
        notes.push(format!("heap: {} further copies of images were seen; the first of each is used", search.copies));
    }
    (search.anchors, notes)
}

/// Removes starts that lie in the code of `anchor`: it has explained them.
fn explained(starts: &mut Vec<CodeStart>, anchor: &Anchor) {
    starts.retain(|s| s.address < anchor.code_base || s.address - anchor.code_base >= anchor.code_size);
}

/// Writable anonymous memory, the heap first, then small mappings before large ones: linear memories and caches are large,
/// and an image that is larger than them is worth the wait.
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

struct Search<'a> {
    target: &'a dyn Target,
    /// Not yet explained.
    starts: Vec<CodeStart>,
    anchors: Vec<Anchor>,
    failures: Vec<AnchorError>,
    failed: usize,
    copies: usize,
    until: Instant,
}

impl Search<'_> {
    /// Searches one mapping. A result means that the whole search is over.
    fn mapping(
        &mut self,
        m: &Mapping,
        done: &mut u64,
        total: u64,
        progress: &dyn Fn(&str, u64, u64),
    ) -> Option<&'static str> {
        let mut buf = vec![0; CHUNK.min(usize::try_from(m.size()).unwrap_or(CHUNK))];
        let mut hits = Vec::new();
        // Mappings are page-aligned; a source that says otherwise must not shift the words.
        let mut at = m.start.checked_next_multiple_of(8)?;
        while at < m.end {
            if self.starts.is_empty() {
                return Some("everything was found");
            }
            if *done >= limits::MAX_HEAP_SEARCH_BYTES {
                return Some("stopped at the limit of bytes");
            }
            if Instant::now() >= self.until {
                return Some("stopped at the limit of time");
            }
            progress("searching memory for cached images", *done, total);
            let want = buf.len().min((m.end - at) as usize);
            let got = match self.target.read(at, &mut buf[..want]) {
                Ok(()) => want,
                // Absent pages in the middle: take what is before them.
                Err(_) => self.target.read_some(at, &mut buf[..want]),
            };
            hits.clear();
            scan(&buf[..got], &self.firsts(), &mut hits);
            for &hit in &hits {
                if Instant::now() >= self.until {
                    return Some("stopped at the limit of time");
                }
                self.candidate(at + hit as u64, m.end);
            }
            // What stopped a short read is one page; the next may be there again.
            let next = match got < want {
                true => ((at + got as u64) | (PAGE - 1)).checked_add(1)?,
                false => at + got as u64,
            };
            *done = done.saturating_add(next - at);
            at = next;
        }
        None
    }

    fn firsts(&self) -> Vec<u32> {
        let mut f: Vec<u32> = self.starts.iter().map(|s| s.first).collect();
        // A copy of an image that is already used is worth a note, so what it began with stays in the search.
        f.sort_unstable();
        f.dedup();
        f
    }

    /// The words at `address` look like the start of an image.
    fn candidate(&mut self, address: u64, end: u64) {
        let len = (end - address).min(limits::MAX_IMAGE_BYTES);
        let image = ImageBytes::Target { memory: self.target, address, len, exact: false };
        let header = match CacheImage::parse(&image) {
            Ok(h) => h,
            Err(e) => return self.fail(e),
        };
        let mut first_error = None;
        let mut matching = Vec::new();
        // The same module compiled twice gives equal code twice: one image then serves both.
        for start in &self.starts {
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
        if self.failures.len() < MAX_EXPLAINED {
            self.failures.push(e);
        }
    }
}

/// The reference counts before an `Arc`'s payload. Their absence proves nothing: the bytes may be a copy.
fn arc_counts(target: &dyn Target, payload: u64) -> Option<String> {
    let at = payload.checked_sub(16)?;
    let (strong, weak) = (target.read_u64(at).ok()?, target.read_u64(at + 8).ok()?);
    let small = 1..=limits::MAX_REFERENCES;
    (small.contains(&strong) && small.contains(&weak))
        .then(|| format!("the image is the payload of a live Arc at {at:#x} ({strong} strong, {weak} weak)"))
}

/// Offsets of aligned words whose low half is a size in whole pages and whose high half is one of `firsts` (sorted).
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
