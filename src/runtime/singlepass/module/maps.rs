//! A module's state map: a small one is read as a whole, of a large one only the functions that are asked for.

use super::cache_image::{ImageBytes, MapSource, total_size};
use crate::limits;
use crate::process::Memory;
use crate::state::lookup::{EncodedMap, Known};
use crate::state::{self, ModuleStateMap};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The state maps of a module's functions.
pub struct Maps {
    /// Code offsets of the functions' first bytes, increasing.
    starts: Vec<usize>,
    /// Size of the code in bytes, import trampolines included.
    total_size: usize,
    whole: OnceCell<Result<Whole, String>>,
    parts: Option<Parts>,
}

struct Whole {
    map: Arc<ModuleStateMap>,
    /// The first error in the map of each function that has errors, by the function's code offset.
    problems: BTreeMap<usize, String>,
}

/// A large state map that stays encoded, and the functions that were looked up in it.
struct Parts {
    encoded: EncodedMap,
    source: MapSource,
    known: RefCell<Known>,
    /// The maps that were looked up, by the function's number; `None` where the lookup failed.
    functions: Vec<OnceCell<Option<Box<Part>>>>,
    /// Bytes that were looked through in lookups that failed or took far too much.
    in_vain: Cell<u64>,
}

/// The map of one function, and the first error in it.
struct Part {
    map: ModuleStateMap,
    problem: Option<String>,
}

impl Maps {
    /// Takes a map that was read already.
    pub fn whole(map: Arc<ModuleStateMap>) -> Maps {
        let starts = map.local_functions.keys().copied().collect();
        let total_size = map.total_size;
        Maps { starts, total_size, whole: OnceCell::from(Ok(Whole::new(map))), parts: None }
    }

    /// Reads the map at `source`. `starts` are the code offsets of its functions, as the image that holds the map has
    /// them. Without any `starts` the map is read as a whole, and so is a small map.
    ///
    /// # Errors
    /// Why the map cannot be read.
    pub fn read(source: &MapSource, starts: &[u64], code_size: u64, memory: &dyn Memory) -> Result<Maps, String> {
        let encoded = encoded(source, starts, code_size, memory);
        let Some(encoded) = encoded else {
            return Ok(Maps::whole(Arc::new(read_borsh(memory, source, code_size)?)));
        };
        let functions = (0..encoded.starts().len()).map(|_| OnceCell::new()).collect();
        let (starts, total_size) = (encoded.starts().to_vec(), encoded.total_size());
        let parts =
            Parts { encoded, source: source.clone(), known: RefCell::default(), functions, in_vain: Cell::new(0) };
        let maps = Maps { starts, total_size, whole: OnceCell::new(), parts: Some(parts) };
        // Every lookup also rests on the records at the beginning. If the first one is not found, the map is read as
        // a whole.
        if maps.part(0, memory).is_none() {
            maps.all(memory)?;
        }
        Ok(maps)
    }

    /// Code offsets of the functions' first bytes, increasing.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Size of the code in bytes, import trampolines included.
    pub fn total_size(&self) -> usize {
        self.total_size
    }

    /// Where the function that begins at `start` ends: at the start of the next function or at the end of the code.
    pub fn function_end(&self, start: usize) -> usize {
        let next = self.starts.get(self.starts.partition_point(|&s| s <= start));
        next.map_or(self.total_size, |&next| next.min(self.total_size))
    }

    /// A map that has the function around `code_offset`, and perhaps other functions. `None` where there is no
    /// function.
    ///
    /// # Errors
    /// Why the function's map cannot be read.
    pub fn around(&self, code_offset: usize, memory: &dyn Memory) -> Result<Option<&ModuleStateMap>, String> {
        let before = self.starts.partition_point(|&s| s <= code_offset);
        if code_offset >= self.total_size || before == 0 {
            return Ok(None);
        }
        if let Some(Ok(whole)) = self.whole.get() {
            return Ok(Some(&whole.map));
        }
        match self.part(before - 1, memory) {
            Some(part) => Ok(Some(&part.map)),
            None => Ok(Some(&self.whole_of(memory)?.map)),
        }
    }

    /// The map of all functions.
    ///
    /// # Errors
    /// Why the map cannot be read.
    pub fn all(&self, memory: &dyn Memory) -> Result<&Arc<ModuleStateMap>, String> {
        Ok(&self.whole_of(memory)?.map)
    }

    /// The first error in the map of the function that begins at `start`, if that map was looked at and has one.
    pub fn problem(&self, start: usize) -> Option<&str> {
        if let Some(Ok(whole)) = self.whole.get() {
            return whole.problems.get(&start).map(String::as_str);
        }
        let number = self.starts.binary_search(&start).ok()?;
        self.parts.as_ref()?.functions.get(number)?.get()?.as_ref()?.problem.as_deref()
    }

    /// The first error in the map of each function that has errors, by code offset. `None` unless the whole map was
    /// read.
    pub fn problems(&self) -> Option<&BTreeMap<usize, String>> {
        self.whole.get()?.as_ref().ok().map(|whole| &whole.problems)
    }

    fn whole_of(&self, memory: &dyn Memory) -> Result<&Whole, String> {
        let read = || {
            let parts = self.parts.as_ref().ok_or("there is no map")?;
            let map = read_borsh(memory, &parts.source, self.total_size as u64)?;
            Ok(Whole::new(Arc::new(map)))
        };
        self.whole.get_or_init(read).as_ref().map_err(Clone::clone)
    }

    fn part(&self, number: usize, memory: &dyn Memory) -> Option<&Part> {
        let parts = self.parts.as_ref()?;
        let look_up = || {
            let read = |at: u64, buf: &mut [u8]| parts.source.read_some(memory, at, buf);
            if parts.in_vain.get() >= limits::MAX_FAILED_LOOKUP_BYTES {
                return None;
            }
            let mut left = limits::MAX_RECORD_LOOKUP_BYTES;
            let found = parts.encoded.function(number, &mut parts.known.borrow_mut(), &mut left, &read);
            let used = limits::MAX_RECORD_LOOKUP_BYTES - left;
            // A sound map does not take so many bytes, so they count as looked through in vain even if the function
            // was found in the end.
            if found.is_err() || used > limits::MAX_RECORD_LOOKUP_BYTES / 2 {
                parts.in_vain.set(parts.in_vain.get() + used);
            }
            let map = found.ok()?;
            let problem = state::validate(&map, None).problems.into_iter().next();
            Some(Box::new(Part { map, problem: problem.map(|p| format!("{}: {}", p.place, p.fault)) }))
        };
        parts.functions.get(number)?.get_or_init(look_up).as_deref()
    }
}

impl Whole {
    fn new(map: Arc<ModuleStateMap>) -> Whole {
        let mut problems = BTreeMap::new();
        for problem in state::validate(&map, Some(map.total_size)).problems {
            problems.entry(problem.function).or_insert_with(|| format!("{}: {}", problem.place, problem.fault));
        }
        Whole { map, problems }
    }
}

/// The encoded map at `source`, if it is large and its functions can be looked up one by one.
fn encoded(source: &MapSource, starts: &[u64], code_size: u64, memory: &dyn Memory) -> Option<EncodedMap> {
    let image = match source {
        MapSource::CacheImage { address, len, exact: true, .. } => {
            ImageBytes::Target { memory, address: *address, len: *len, exact: true }
        }
        MapSource::Bytes { image, .. } => ImageBytes::Owned(image.clone()),
        _ => return None,
    };
    let len = source.encoded_len().filter(|&len| len > limits::MAX_WHOLE_MAP_BYTES)?;
    let total = usize::try_from(total_size(&image, code_size)?).ok()?;
    let starts = starts.iter().map(|&s| usize::try_from(s)).collect::<Result<_, _>>().ok()?;
    EncodedMap::new(starts, total, len)
}

/// Decodes a borsh state map. Its length is not written anywhere, so where the image's end is not known, more and
/// more bytes are read until the map decodes.
fn read_borsh(memory: &dyn Memory, source: &MapSource, code_size: u64) -> Result<ModuleStateMap, String> {
    let mut max = match source {
        MapSource::CacheImage { exact: false, .. } => (4 << 20).max(code_size.saturating_mul(8)),
        _ => limits::MAX_IMAGE_BYTES,
    };
    loop {
        let bytes = source.msm_bytes(memory, max).ok_or("its state map cannot be reached")?;
        match state::codec::decode_borsh_prefix(&bytes) {
            Ok((map, _)) => return Ok(map),
            Err(_) if bytes.len() as u64 == max && max < limits::MAX_IMAGE_BYTES => max = max.saturating_mul(4),
            Err(e) => return Err(format!("{e} ({} bytes of it can be read)", bytes.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::Pieces;

    #[test]
    fn a_small_map_is_read_as_a_whole() {
        for (len, in_parts) in [(limits::MAX_WHOLE_MAP_BYTES, false), (limits::MAX_WHOLE_MAP_BYTES + 8, true)] {
            // An image ends with the size of the code.
            let mut image = vec![0; len as usize];
            image[len as usize - 8..].copy_from_slice(&0x800u64.to_le_bytes());
            let source = MapSource::Bytes { image: image.into(), msm_offset: 0 };
            assert_eq!(encoded(&source, &[0x10, 0x20], 0x1000, &Pieces::default()).is_some(), in_parts);
        }
    }

    #[test]
    fn lookups_in_vain_have_an_end() {
        let mut image = vec![0; 2 * limits::MAX_RECORD_BYTES as usize];
        let len = image.len();
        image[len - 8..].copy_from_slice(&0x80_0000u64.to_le_bytes());
        let source = MapSource::Bytes { image: image.into(), msm_offset: 0 };
        let starts: Vec<u64> = (1..=1000).map(|i| i * 0x100).collect();
        let maps = Maps::read(&source, &starts, 0x80_0000, &Pieces::default()).unwrap();
        let parts = maps.parts.as_ref().unwrap();
        // `Maps::read` has looked up a function already.
        let mut before = parts.in_vain.get();
        for number in 100..1000 {
            assert!(maps.part(number, &Pieces::default()).is_none());
            let in_vain = parts.in_vain.get();
            assert!(in_vain - before <= limits::MAX_RECORD_LOOKUP_BYTES, "{number}: {before} {in_vain}");
            assert_eq!(in_vain > before, before < limits::MAX_FAILED_LOOKUP_BYTES, "{number}");
            before = in_vain;
        }
        assert!(before >= limits::MAX_FAILED_LOOKUP_BYTES);
    }
}
