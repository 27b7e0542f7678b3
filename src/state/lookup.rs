//! Finds single functions in an encoded `ModuleStateMap` (borsh), without decoding what is before them.
//!
//! The encoding is a sequence of records of unequal length. Each record is a key (the code offset of the function's
//! first byte) and the function's map. Nothing tells where the records are, but their keys are known, since the
//! cached image has the offsets of all functions. So a record is looked for at the offset at which it should be by
//! its number. It is recognised by its content and its neighbour: the key, a map that decodes to its end, the
//! function's number in this map, and the next function's key behind it.

use super::codec::decode_borsh_prefix_of;
use super::model::{FunctionStateMap, ModuleStateMap};
use crate::limits;
use std::collections::BTreeMap;
use std::ops::Range;

/// A function that reads up to `buf.len()` bytes of the encoding from an offset on, and returns how many it read.
pub type ReadEncoded<'a> = dyn Fn(u64, &mut [u8]) -> usize + 'a;

/// Bytes that the number of functions takes at the start of the encoding (`COUNT`), and bytes that a key takes, or
/// the code size behind all functions (`KEY`).
const COUNT: u64 = 4;
const KEY: u64 = 8;
/// Bytes of the first window in which a record is looked for.
const WINDOW: u64 = 16 << 10;
/// Bytes that are read at first to decode a record. Most records have fewer.
const RECORD: u64 = 8 << 10;
/// Distance, in records, up to which records are decoded one after the other instead of being looked for.
const NEAR: usize = 4;
/// Places on each side of the wanted record that are tried in a window. There can be many, because numbers of
/// operators look like the keys of a module's first functions.
const TRIED: usize = 4096;
/// Bytes that trying a place in vain costs at least.
const TRY: usize = 64;

/// An encoded state map of which it is known where in the code its functions begin.
pub struct EncodedMap {
    /// Code offsets of the functions' first bytes, in increasing order.
    starts: Vec<usize>,
    /// Number of bytes of code. The encoding has this number as a word behind the last function.
    total_size: usize,
    /// Offset in the encoding at or behind which no record begins.
    end: u64,
}

/// Offsets in the encoding at which records begin, as far as they are known, by the function's number.
pub type Known = BTreeMap<usize, u64>;

impl EncodedMap {
    /// Describes the encoded map of the functions that begin at `starts`, in code of `total_size` bytes. The encoding
    /// has at most `len` bytes. Returns `None` if `starts` and `total_size` contradict each other.
    pub fn new(starts: Vec<usize>, total_size: usize, len: u64) -> Option<EncodedMap> {
        let increase = starts.is_sorted_by(|a, b| a < b) && starts.last().is_some_and(|&last| last < total_size);
        increase.then_some(EncodedMap { starts, total_size, end: len })
    }

    /// Code offsets of the functions' first bytes.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Number of bytes of code.
    pub fn total_size(&self) -> usize {
        self.total_size
    }

    /// Looks up the function with this number. Returns a map of this function only, whose code ends at the first byte
    /// of the next function. Offsets of records that were seen on the way are added to `known`. `left` is the number
    /// of bytes that may be looked through; the bytes that were read or decoded in vain are taken off it. Records
    /// that lie side by side are decoded one after the other, however many there are.
    ///
    /// # Errors
    /// Fails if the function's record was not found. The text tells why.
    pub fn function(
        &self,
        number: usize,
        known: &mut Known,
        left: &mut u64,
        read: &ReadEncoded<'_>,
    ) -> Result<ModuleStateMap, String> {
        let &start = self.starts.get(number).ok_or("there is no such function")?;
        let end = self.starts.get(number + 1).copied().unwrap_or(self.total_size);
        let function = self.find(number, known, left, read)?;
        Ok(ModuleStateMap { local_functions: BTreeMap::from([(start, function)]), total_size: end })
    }

    fn find(
        &self,
        number: usize,
        known: &mut Known,
        left: &mut u64,
        read: &ReadEncoded<'_>,
    ) -> Result<FunctionStateMap, String> {
        known.insert(0, COUNT);
        let (mut window, mut successes) = (WINDOW, 0);
        for _ in 0..limits::MAX_RECORD_WINDOWS {
            let Some((&below, &from)) = known.range(..=number).next_back() else { break };
            if number - below <= NEAR || window > limits::MAX_RECORD_BYTES {
                return self.forward(below, from, number, known, left, read);
            }
            let above = known.range(number + 1..).next();
            let (above, to) = above.map_or((self.starts.len(), self.end), |(&n, &at)| (n, at));
            let bytes = to.saturating_sub(from);
            let share = match successes % 2 {
                // The record is here if all records are equally long.
                0 => ((number - below) as u128 * u128::from(bytes) / (above - below).max(1) as u128) as u64,
                // They are not equally long: more guesses like the first would come only a little closer each time.
                // So this one takes the middle.
                _ => bytes / 2,
            };
            let guess = from + share;
            // The window begins a little before the guess, so that it holds the start of at least one record.
            let at = guess.saturating_sub(window / 2).max(from + 1);
            let mut bytes = vec![0; window.min(to.saturating_sub(at)) as usize];
            let Some(rest) = left.checked_sub(bytes.len() as u64) else { break };
            *left = rest;
            let got = read(at, &mut bytes);
            let bytes = &bytes[..got];
            let found = self.neighbours(number, below..above, bytes, left);
            if *left == 0 {
                break;
            }
            (window, successes) = if found.is_empty() { (window * 4, successes) } else { (WINDOW, successes + 1) };
            known.extend(found.into_iter().map(|(candidate, offset)| (candidate, at + offset as u64)));
        }
        Err("its record was not found in the encoded state map".into())
    }

    /// Finds the records in `bytes` that are nearest to that of `number`: at most one on each side, or the record
    /// itself. Only functions strictly between the two of `between` are considered. Each result is a function's
    /// number and the offset in `bytes` at which its record begins.
    fn neighbours(&self, number: usize, between: Range<usize>, bytes: &[u8], left: &mut u64) -> Vec<(usize, usize)> {
        let (mut before, mut after) = (Nearest::default(), Nearest::default());
        for (candidate, offset) in self.records(between, bytes) {
            match number.checked_sub(candidate) {
                Some(distance) => before.add(distance, candidate, offset),
                None => after.add(candidate - number, candidate, offset),
            }
        }
        // Nothing more is read for a record that is not whole in the window, because it may be none.
        let mut whole = |&(candidate, offset): &(usize, usize)| {
            if *left == 0 {
                return false;
            }
            let decoded = self.decode(candidate, &bytes[offset..]);
            *left = left.saturating_sub(decoded.as_ref().map_or_else(|unfit| unfit.decoded.max(TRY) as u64, |_| 0));
            decoded.is_ok()
        };
        let mut found: Vec<_> = before.all().find(&mut whole).into_iter().collect();
        // If a record on the one side is near enough, the other side is of no use.
        if found.first().is_none_or(|&(candidate, _)| number - candidate > NEAR) {
            found.extend(after.all().find(&mut whole));
        }
        // Records are in the order of their functions, so two in another order are none.
        if let [(_, first), (_, second)] = found[..]
            && first >= second
        {
            found.clear();
        }
        found
    }

    /// Finds the functions strictly between the two of `between` whose records may begin in `bytes`. Each result is a
    /// function's number and the offset of its key.
    fn records<'b>(&'b self, between: Range<usize>, bytes: &'b [u8]) -> impl Iterator<Item = (usize, usize)> + 'b {
        let first = (between.start + 1).min(between.end);
        let starts = &self.starts[first..between.end];
        // A map is full of small numbers. Most of them are outside of this range, so they need not be looked up.
        let range = starts.first().map(|&first| first as u64..=starts[starts.len() - 1] as u64);
        let keys = bytes.windows(KEY as usize).enumerate().filter_map(move |(offset, key)| {
            let key = u64::from_le_bytes(key.try_into().ok()?);
            range.as_ref()?.contains(&key).then_some((key, offset))
        });
        keys.filter_map(move |(key, offset)| {
            let place = starts.binary_search(&usize::try_from(key).ok()?).ok()?;
            Some((first + place, offset))
        })
    }

    /// Decodes one record after the other, from the known one of function `from` to that of function `number`.
    fn forward(
        &self,
        from: usize,
        mut at: u64,
        number: usize,
        known: &mut Known,
        left: &mut u64,
        read: &ReadEncoded<'_>,
    ) -> Result<FunctionStateMap, String> {
        for current in from.. {
            let (function, next) = self.record(current, at, left, read)?;
            if current + 1 < self.starts.len() {
                known.insert(current + 1, next);
            }
            if current == number {
                return Ok(function);
            }
            at = next;
        }
        Err("there is no such function".into())
    }

    /// Decodes the record of function `number` that begins at `at`. Returns the function and the offset at which the
    /// next record begins. Everything that ties a record to its neighbours is checked.
    fn record(
        &self,
        number: usize,
        at: u64,
        left: &mut u64,
        read: &ReadEncoded<'_>,
    ) -> Result<(FunctionStateMap, u64), String> {
        let mut len = RECORD;
        loop {
            let mut bytes = vec![0; len.min(self.end.saturating_sub(at)) as usize];
            *left = left.saturating_sub(bytes.len() as u64);
            let got = read(at, &mut bytes);
            bytes.truncate(got);
            let all = got < len as usize || len >= limits::MAX_RECORD_BYTES;
            match self.decode(number, &bytes) {
                Ok((function, used)) => return Ok((function, at + used)),
                Err(unfit) if all => {
                    return Err(format!("function {number} at offset {at:#x} of the state map: {}", unfit.why));
                }
                Err(_) => len = (len * 4).min(limits::MAX_RECORD_BYTES),
            }
        }
    }

    fn decode(&self, number: usize, bytes: &[u8]) -> Result<(FunctionStateMap, u64), Unfit> {
        let unfit = |why: &str, decoded| Unfit { why: why.into(), decoded };
        let word = |at: usize| {
            let bytes = at.checked_add(KEY as usize).and_then(|end| bytes.get(at..end));
            bytes.and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).ok_or_else(|| unfit("it is cut short", at))
        };
        if Some(word(0)?) != self.starts.get(number).map(|&s| s as u64) {
            return Err(unfit("it is of another function", 0));
        }
        let (function, used) = decode_borsh_prefix_of::<FunctionStateMap>(bytes.get(KEY as usize..).unwrap_or(&[]))
            .map_err(|e| unfit(&e.to_string(), e.offset()))?;
        // `codegen_x64.rs` numbers functions in the order of their code.
        if function.local_function_id != number {
            return Err(unfit("it has another number", used));
        }
        let next = KEY as usize + used;
        if word(next)? != self.starts.get(number + 1).copied().unwrap_or(self.total_size) as u64 {
            return Err(unfit("what follows is not the next function", used));
        }
        Ok((function, next as u64))
    }
}

/// The reason why bytes are not a function's record.
#[derive(Debug)]
struct Unfit {
    why: String,
    /// Number of bytes that were decoded until this was known.
    decoded: usize,
}

/// The few places that are nearest to the wanted record. Each is a distance in functions, the number of a function,
/// and the offset of its key.
#[derive(Default)]
struct Nearest {
    found: Vec<(usize, usize, usize)>,
}

impl Nearest {
    fn add(&mut self, distance: usize, candidate: usize, offset: usize) {
        self.found.push((distance, candidate, offset));
        if self.found.len() > 2 * TRIED {
            self.found.sort_unstable();
            self.found.truncate(TRIED);
        }
    }

    /// Numbers of functions and offsets of their keys, the nearest first.
    fn all(mut self) -> impl Iterator<Item = (usize, usize)> {
        self.found.sort_unstable();
        self.found.truncate(TRIED);
        self.found.into_iter().map(|(_, candidate, offset)| (candidate, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::encode_borsh;
    use super::super::synthetic::{self, state};
    use super::*;
    use crate::state::PointKind;
    use std::cell::RefCell;

    const LEFT: u64 = limits::MAX_RECORD_LOOKUP_BYTES;

    /// Creates a map of `count` functions whose records differ much in length, and its encoding.
    fn module(count: usize) -> (ModuleStateMap, Vec<u8>) {
        module_of(count, |id| (id * id * 31) % 400)
    }

    fn module_of(count: usize, points: impl Fn(usize) -> usize) -> (ModuleStateMap, Vec<u8>) {
        let mut local_functions = BTreeMap::new();
        let mut start = 0x40;
        for id in 0..count {
            let mut function =
                synthetic::Module::new(id % 7).point(PointKind::Call, start + 9, &state(0, vec![])).function;
            for n in 0..points(id) {
                function.wasm_offset_to_target_offset.insert(n, crate::state::SuspendOffset::Call(start + n % 0x30));
            }
            function.local_function_id = id;
            local_functions.insert(start, function);
            start += 0x30 + id % 5;
        }
        let map = ModuleStateMap { local_functions, total_size: start };
        let bytes = encode_borsh(&map).unwrap();
        (map, bytes)
    }

    fn reader(bytes: &[u8]) -> impl Fn(u64, &mut [u8]) -> usize {
        |at, buf| {
            let rest = bytes.get(at as usize..).unwrap_or(&[]);
            let len = rest.len().min(buf.len());
            buf[..len].copy_from_slice(&rest[..len]);
            len
        }
    }

    fn encoded(map: &ModuleStateMap, len: usize) -> EncodedMap {
        EncodedMap::new(map.local_functions.keys().copied().collect(), map.total_size, len as u64).unwrap()
    }

    #[test]
    fn every_function_is_what_the_whole_map_has() {
        for count in [1, 2, 5, 3000] {
            let (map, mut bytes) = module(count);
            // These bytes stand for what follows an image in memory.
            bytes.extend([0; 4096]);
            let all = encoded(&map, bytes.len());
            let step = (count / 300).max(1);
            for number in (0..count).step_by(step).chain([count - 1]) {
                let one = all.function(number, &mut Known::new(), &mut LEFT.clone(), &reader(&bytes)).unwrap();
                let (start, function) = one.local_functions.first_key_value().unwrap();
                assert_eq!(map.local_functions.get(start), Some(function), "{number} of {count}");
                assert_eq!(one.total_size, map.function_end(*start));
            }
            assert!(all.function(count, &mut Known::new(), &mut LEFT.clone(), &reader(&bytes)).is_err());
        }
    }

    #[test]
    fn a_few_windows_are_read_and_not_the_whole() {
        let (map, bytes) = module(20_000);
        let all = encoded(&map, bytes.len());
        let total = RefCell::new(0);
        let read = |at, buf: &mut [u8]| {
            let got = reader(&bytes)(at, buf);
            *total.borrow_mut() += got;
            got
        };
        let mut known = Known::new();
        for number in [19_999, 3, 12_345, 12_346, 777] {
            all.function(number, &mut known, &mut LEFT.clone(), &read).unwrap();
        }
        assert!(bytes.len() > 10 << 20 && *total.borrow() < 1 << 20, "{} of {}", total.borrow(), bytes.len());
    }

    #[test]
    fn records_of_very_unequal_lengths_take_few_windows_too() {
        // All long records are at one end of the map.
        for long in [0..60_usize, 5940..6000] {
            let (map, bytes) = module_of(6000, |id| if long.contains(&id) { 4000 } else { 0 });
            let all = encoded(&map, bytes.len());
            for number in (0..6000).step_by(161) {
                let windows = std::cell::Cell::new(0);
                let read = |at, buf: &mut [u8]| {
                    windows.set(windows.get() + 1);
                    reader(&bytes)(at, buf)
                };
                all.function(number, &mut Known::new(), &mut LEFT.clone(), &read).unwrap();
                assert!(windows.get() <= 24, "{number}, long {long:?}: {} windows", windows.get());
            }
        }
    }

    #[test]
    fn a_record_that_does_not_fit_its_neighbours_is_not_taken() {
        let (map, bytes) = module(3000);
        let all = encoded(&map, bytes.len());
        let mut known = Known::new();
        all.function(1500, &mut known, &mut LEFT.clone(), &reader(&bytes)).unwrap();
        let at = known[&1500] as usize;
        // The function's number is behind the initial state, which is behind the key.
        let initial = encode_borsh(&map.local_functions.values().nth(1500).unwrap().initial).unwrap().len();
        for (offset, what) in [(0, "key"), (8 + initial, "number")] {
            let mut broken = bytes.clone();
            broken[at + offset] ^= 1;
            let found = all.function(1500, &mut Known::new(), &mut LEFT.clone(), &reader(&broken));
            assert!(found.is_err(), "{what}: {found:?}");
            // The other functions are still found.
            all.function(1400, &mut Known::new(), &mut LEFT.clone(), &reader(&broken)).unwrap();
            all.function(2900, &mut Known::new(), &mut LEFT.clone(), &reader(&broken)).unwrap();
        }
        for cut in [0, 3, 4, 100, bytes.len() / 2, bytes.len() - 1] {
            let _ = all.function(1500, &mut Known::new(), &mut LEFT.clone(), &reader(&bytes[..cut]));
            assert!(all.function(2999, &mut Known::new(), &mut LEFT.clone(), &reader(&bytes[..cut])).is_err());
        }
        let zeros = vec![0; 1 << 20];
        assert!(all.function(1500, &mut Known::new(), &mut LEFT.clone(), &reader(&zeros)).is_err());
        assert!(EncodedMap::new(vec![4, 4], 10, 100).is_none() && EncodedMap::new(vec![4, 12], 10, 100).is_none());
    }

    #[test]
    fn a_record_is_looked_for_in_so_many_places_and_in_so_many_bytes() {
        let (map, bytes) = module(1000);
        // This memory shows the next function wherever it is read, and it is so small that each step is a byte.
        let all = encoded(&map, 32 << 10);
        let mut offsets = vec![COUNT as usize];
        for number in 0..=limits::MAX_RECORD_WINDOWS {
            let (_, used) = all.decode(number, &bytes[offsets[number]..]).unwrap();
            offsets.push(offsets[number] + used as usize);
        }
        let asked = std::cell::Cell::new(0);
        let read = |_, buf: &mut [u8]| {
            asked.set(asked.get() + 1);
            // The bytes reach to the end of the next record's key.
            let record = offsets[asked.get()]..offsets[asked.get() + 1] + KEY as usize;
            buf[..record.len()].copy_from_slice(&bytes[record.clone()]);
            record.len()
        };
        assert!(all.function(500, &mut Known::new(), &mut LEFT.clone(), &read).unwrap_err().contains("was not found"));
        assert_eq!(asked.get(), limits::MAX_RECORD_WINDOWS);

        let largest = std::cell::Cell::new(0);
        let endless = |_, buf: &mut [u8]| {
            largest.set(buf.len().max(largest.get()));
            buf.len()
        };
        assert!(encoded(&map, 1 << 40).function(500, &mut Known::new(), &mut LEFT.clone(), &endless).is_err());
        assert_eq!(largest.get() as u64, limits::MAX_RECORD_BYTES);
    }

    #[test]
    fn bytes_that_look_like_records_everywhere_are_given_up_soon() {
        // These keys are at half of all offsets, each before a list that is about as long as the rest of the bytes.
        let starts: Vec<usize> = [1, 0x100, 0x101, 0x1_0000, 0x1_0100, 0x100_0000, 0x101_0000].to_vec();
        let all = EncodedMap::new(starts, 1 << 30, 1 << 40).unwrap();
        let read_bytes = std::cell::Cell::new(0);
        let read = |_, buf: &mut [u8]| {
            read_bytes.set(read_bytes.get() + buf.len() as u64);
            for (i, byte) in buf.iter_mut().enumerate() {
                *byte = [1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0][i % 12];
            }
            buf.len()
        };
        let mut left = LEFT;
        assert!(all.function(6, &mut Known::new(), &mut left, &read).is_err());
        // Bytes that were decoded in vain count too, not only those that were read.
        assert!(LEFT - left > read_bytes.get(), "{left} left, {} read", read_bytes.get());
        assert!(read_bytes.get() <= limits::MAX_RECORD_LOOKUP_BYTES + 2 * limits::MAX_RECORD_BYTES);
    }
}
