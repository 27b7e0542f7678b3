//! Memory that is put together from regions, of which later ones win. A region is bytes, zeros, or bytes that are
//! known to be missing.

pub use super::files::read_file;
use super::{Memory, MemoryError};
use crate::limits;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Something that holds bytes: a copied stack, a mapped core, a mapped executable.
pub type Holder = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// What a region of the address space holds.
#[derive(Clone)]
pub enum Content {
    /// The bytes `holder[offset..]`. If the region is longer than the holder, the rest is absent ("cut off").
    Bytes {
        /// What holds the bytes.
        holder: Holder,
        /// Offset of the region's first byte in `holder`.
        offset: usize,
    },
    /// Bytes that are zero for certain.
    Zero,
    /// The target had bytes here, but they cannot be had, for the given reason. They are never read as zero.
    Absent(&'static str),
}

#[derive(Clone)]
struct Region {
    end: u64,
    content: Content,
}

/// What [`Splice::piece`] finds at an address.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The bytes from the address to the end of its region, or to the end of the bytes that are there. Never empty.
    Bytes(&'a [u8]),
    /// The given number of zero bytes.
    Zero(u64),
    /// The given number of bytes are known to be missing, for the given reason.
    Absent(u64, &'static str),
    /// No region covers the given number of bytes from the address on.
    Gap(u64),
}

/// Regions that do not overlap: adding one cuts away what was there before.
#[derive(Clone, Default)]
pub struct Splice {
    // The regions by their first addresses.
    regions: BTreeMap<u64, Region>,
}

impl Splice {
    /// A splice without regions.
    pub fn new() -> Splice {
        Splice::default()
    }

    /// Puts `content` at `start..end` and replaces everything that is there.
    pub fn add(&mut self, start: u64, end: u64, content: Content) {
        if start >= end {
            return;
        }
        if let Some((&before, region)) = self.regions.range_mut(..start).next_back()
            && region.end > start
        {
            let tail_end = region.end;
            let tail = region.content.advanced(start - before);
            region.end = start;
            self.regions.insert(start, Region { end: tail_end, content: tail });
        }
        while let Some((&at, region)) = self.regions.range(start..end).next() {
            let region = region.clone();
            self.regions.remove(&at);
            if region.end > end {
                self.regions.insert(end, Region { end: region.end, content: region.content.advanced(end - at) });
            }
        }
        self.regions.insert(start, Region { end, content });
    }

    /// Puts `content` only at those parts of `start..end` that are absent now. Parts that no region covers stay so.
    pub fn fill_absent(&mut self, start: u64, end: u64, content: &Content) {
        let mut holes = Vec::new();
        let mut at = start;
        while at < end {
            let len = match self.piece(at) {
                Piece::Bytes(b) => b.len() as u64,
                Piece::Zero(n) | Piece::Gap(n) => n,
                Piece::Absent(n, _) => {
                    holes.push((at, at.saturating_add(n).min(end)));
                    n
                }
            };
            at = at.saturating_add(len.max(1));
        }
        for (from, to) in holes {
            self.add(from, to, content.advanced(from - start));
        }
    }

    /// Returns what is at `address`, up to the end of its region.
    pub fn piece(&self, address: u64) -> Piece<'_> {
        if let Some((&start, region)) = self.regions.range(..=address).next_back()
            && address < region.end
        {
            let left = region.end - address;
            return match &region.content {
                Content::Zero => Piece::Zero(left),
                Content::Absent(why) => Piece::Absent(left, why),
                Content::Bytes { holder, offset } => {
                    let bytes: &[u8] = (**holder).as_ref();
                    let from = usize::try_from(address - start).ok().and_then(|skip| offset.checked_add(skip));
                    match from.and_then(|f| bytes.get(f..)).filter(|rest| !rest.is_empty()) {
                        Some(rest) => {
                            Piece::Bytes(&rest[..rest.len().min(usize::try_from(left).unwrap_or(usize::MAX))])
                        }
                        None => Piece::Absent(left, CUT_OFF),
                    }
                }
            };
        }
        let next = self.regions.range(address..).next().map_or(u64::MAX, |(&start, _)| start);
        Piece::Gap((next - address).max(1))
    }

    /// Fills `buf` from `address` on. The error says why the first missing byte is missing.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let unmapped = MemoryError::Unmapped { address, len };
        let mut done = 0;
        while done < len {
            let at = address.checked_add(done as u64).ok_or_else(|| unmapped.clone())?;
            let rest = &mut buf[done..];
            done += match self.piece(at) {
                Piece::Bytes(bytes) => {
                    let n = bytes.len().min(rest.len());
                    rest[..n].copy_from_slice(&bytes[..n]);
                    n
                }
                Piece::Zero(left) => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    rest[..n].fill(0);
                    n
                }
                Piece::Absent(_, why) => return Err(MemoryError::Absent { address, len, why }),
                Piece::Gap(_) => return Err(unmapped),
            };
        }
        Ok(())
    }

    /// Number of bytes that can be read from `address` on without a gap, at most `want`.
    pub fn available(&self, address: u64, want: usize) -> usize {
        let mut done = 0;
        while done < want {
            let Some(at) = address.checked_add(done as u64) else { break };
            done += match self.piece(at) {
                Piece::Bytes(bytes) => bytes.len(),
                Piece::Zero(n) => usize::try_from(n).unwrap_or(usize::MAX),
                Piece::Absent(..) | Piece::Gap(_) => break,
            }
            .min(want - done);
        }
        done
    }
}

impl Memory for Splice {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        Splice::read(self, address, buf)
    }
}

/// The reason given for bytes behind the end of their holder.
pub const CUT_OFF: &str = "the core is cut off";

impl Content {
    fn advanced(&self, by: u64) -> Content {
        match self {
            Content::Bytes { holder, offset } => match usize::try_from(by).ok().and_then(|by| offset.checked_add(by)) {
                Some(offset) => Content::Bytes { holder: holder.clone(), offset },
                None => Content::Absent(CUT_OFF),
            },
            other => other.clone(),
        }
    }
}

/// Size of a page of the target, in bytes.
pub const PAGE: u64 = 0x1000;

/// A cache for pages of a running process. Reading a frame asks for the same few pages word by word. With the cache
/// one system call per page is enough, and all words of one page belong to one moment.
#[derive(Default)]
pub struct PageCache {
    pages: HashMap<u64, Box<[u8]>>,
}

impl PageCache {
    /// Fills `buf` from the cached pages. `fetch` reads a whole page that is not in the cache yet.
    pub fn read(
        &mut self,
        address: u64,
        buf: &mut [u8],
        mut fetch: impl FnMut(u64, &mut [u8]) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let len = buf.len();
        let mut done = 0;
        while done < len {
            let at = address.checked_add(done as u64).ok_or(MemoryError::Unmapped { address, len })?;
            let (page, skip) = (at & !(PAGE - 1), (at & (PAGE - 1)) as usize);
            let n = (PAGE as usize - skip).min(len - done);
            if !self.pages.contains_key(&page) {
                let mut bytes = vec![0; PAGE as usize].into_boxed_slice();
                fetch(page, &mut bytes)?;
                if self.pages.len() >= limits::MAX_CACHED_PAGES {
                    self.pages.clear();
                }
                self.pages.insert(page, bytes);
            }
            match self.pages.get(&page).and_then(|p| p.get(skip..skip + n)) {
                Some(bytes) => buf[done..done + n].copy_from_slice(bytes),
                None => return Err(MemoryError::Unmapped { address, len }),
            }
            done += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(fill: u8, len: usize) -> Content {
        Content::Bytes { holder: Arc::new(vec![fill; len]), offset: 0 }
    }

    fn show(splice: &Splice, start: u64, end: u64) -> String {
        (start..end)
            .map(|a| {
                let mut b = [0];
                match splice.read(a, &mut b) {
                    Ok(()) if b[0] == 0 => '0',
                    Ok(()) => b[0] as char,
                    Err(MemoryError::Absent { .. }) => '?',
                    Err(_) => '.',
                }
            })
            .collect()
    }

    #[test]
    fn later_regions_win() {
        // Start and end of the later region, and what 8..24 looks like then. The earlier region is 12..20.
        for (start, end, expected) in [
            (8, 10, "bb..aaaaaaaa...."),  // before, with a gap
            (8, 12, "bbbbaaaaaaaa...."),  // touches the start
            (8, 14, "bbbbbbaaaaaa...."),  // over the start
            (12, 14, "....bbaaaaaa...."), // at the start, shorter
            (14, 16, "....aabbaaaa...."), // inside
            (18, 20, "....aaaaaabb...."), // at the end, shorter
            (18, 22, "....aaaaaabbbb.."), // over the end
            (20, 22, "....aaaaaaaabb.."), // touches the end
            (22, 24, "....aaaaaaaa..bb"), // behind, with a gap
            (12, 20, "....bbbbbbbb...."), // equal
            (8, 24, "bbbbbbbbbbbbbbbb"),  // around
            (14, 14, "....aaaaaaaa...."), // empty
            (12, 22, "....bbbbbbbbbb.."), // same start, longer
            (10, 20, "..bbbbbbbbbb...."), // same end, longer
        ] {
            let mut s = Splice::new();
            s.add(12, 20, bytes(b'a', 8));
            s.add(start, end, bytes(b'b', 16));
            assert_eq!(show(&s, 8, 24), expected, "{start}..{end}");
        }
    }

    #[test]
    fn the_rest_of_a_cut_region_keeps_its_offsets() {
        let mut s = Splice::new();
        let holder: Holder = Arc::new(b"abcdefgh".to_vec());
        s.add(0, 8, Content::Bytes { holder, offset: 0 });
        s.add(2, 4, Content::Zero);
        assert_eq!(show(&s, 0, 9), "ab00efgh.");
        s.add(3, 6, Content::Absent("not dumped"));
        assert_eq!(show(&s, 0, 9), "ab0???gh.");
        let mut buf = [9; 4];
        assert_eq!(s.read(0, &mut buf), Err(MemoryError::Absent { address: 0, len: 4, why: "not dumped" }));
        assert_eq!((s.available(0, 8), s.available(6, 8)), (3, 2));
    }

    #[test]
    fn a_short_holder_is_absent_not_zero() {
        let mut s = Splice::new();
        s.add(0x10, 0x20, bytes(b'a', 4));
        assert_eq!(show(&s, 0x0e, 0x22), "..aaaa????????????..");
        s.fill_absent(0x0e, 0x18, &bytes(b'f', 64));
        assert_eq!(show(&s, 0x0e, 0x22), "..aaaaffff????????..");
    }

    #[test]
    fn the_end_of_the_address_space_is_no_wrap() {
        let mut s = Splice::new();
        s.add(u64::MAX - 3, u64::MAX, Content::Zero);
        let mut b = [1; 8];
        assert!(matches!(s.read(u64::MAX - 3, &mut b), Err(MemoryError::Unmapped { .. })));
        assert_eq!(s.piece(u64::MAX), Piece::Gap(1));
    }

    #[test]
    fn one_fetch_per_page() {
        let mut cache = PageCache::default();
        let mut fetched = Vec::new();
        for at in [0xff8u64, 0x1000, 0x1008, 0xffc] {
            let mut b = [0; 8];
            cache
                .read(at, &mut b, |page, into| {
                    fetched.push(page);
                    into.fill((page >> 12) as u8 + 1);
                    Ok(())
                })
                .unwrap();
            let split = [1, 1, 1, 1, 2, 2, 2, 2];
            assert_eq!(b, if at == 0xffc { split } else { [(at >> 12) as u8 + 1; 8] });
        }
        assert_eq!(fetched, [0, 0x1000]);
    }

    #[test]
    fn so_many_pages_are_kept() {
        let mut cache = PageCache::default();
        for page in 0..=limits::MAX_CACHED_PAGES as u64 {
            cache.read(page * PAGE, &mut [0; 8], |_, _| Ok(())).unwrap();
            assert!(cache.pages.len() <= limits::MAX_CACHED_PAGES);
        }
    }
}
