//! `.wasmtime.addrmap`: the position in the Wasm file that each piece of code was made from.
//!
//! Entries are sorted by code offset, and each holds up to the next one. A position is an offset in the file that was
//! compiled: for a component it counts from the start of the component, not of the module in it. Code without a
//! position (prologues, trampolines) has entries too.
//!
//! | versions | form |
//! |---|---|
//! | to 46 | `u32 n`, `u32 offset[n]`, `u32 position[n]`; a missing position is `u32::MAX` |
//! | from 47 | `u32 entries`, `u32 blocks`, `{u32 first_offset, u32 body}[blocks]`, bodies of 128 entries in LEB128 |
//!
//! The structure of a section tells which form it has: the first form fills the section exactly. The version decides
//! only if both forms fit.

use crate::bytes::Bytes;
use crate::runtime::wasmtime::image::leb;
use crate::runtime::wasmtime::image::version::Version;

/// Number of entries in a block of the second form. Only the last block can have fewer.
const BLOCK: usize = 128;

/// The last version with the first form.
const LAST_FLAT: Version = Version(46);

/// An offset in the Wasm file that was compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePos(pub u32);

/// The error for a section that has neither of the two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(".wasmtime.addrmap ({bytes} bytes) has no known form")]
pub struct UnknownForm {
    /// Length of the section in bytes.
    pub bytes: usize,
}

/// The address map of a code image. It borrows the section and decodes only what a lookup needs.
#[derive(Clone, Copy, Debug)]
pub struct AddressMap<'a> {
    form: Form<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Form<'a> {
    Flat { offsets: &'a [[u8; 4]], places: &'a [[u8; 4]] },
    Blocks { entries: usize, index: &'a [[u8; 8]], bodies: &'a [u8] },
}

impl<'a> AddressMap<'a> {
    /// Decides which form the section has.
    ///
    /// # Errors
    /// If the section has neither form.
    pub fn parse(section: &'a [u8], version: Option<Version>) -> Result<AddressMap<'a>, UnknownForm> {
        let form = match (flat(section), blocks(section)) {
            (Some(flat), Some(_)) if version.is_some_and(|v| v <= LAST_FLAT) => flat,
            (_, Some(blocks)) => blocks,
            (Some(flat), None) => flat,
            (None, None) => return Err(UnknownForm { bytes: section.len() }),
        };
        Ok(AddressMap { form })
    }

    /// Number of entries in the map.
    pub fn len(&self) -> usize {
        match self.form {
            Form::Flat { offsets, .. } => offsets.len(),
            Form::Blocks { entries, .. } => entries,
        }
    }

    /// Whether the map has no entries.
    #[cfg(any(test, feature = "internals"))]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The position that the code at `text_offset` (bytes from the start of the code) was made from. `None` if it has
    /// no position. For a return address ask one byte before it, because an entry that begins at the return address
    /// belongs to the code after the call.
    pub fn lookup(&self, text_offset: u32) -> Option<FilePos> {
        match self.form {
            Form::Flat { offsets, places } => {
                let behind = offsets.partition_point(|o| u32::from_le_bytes(*o) <= text_offset);
                place(u32::from_le_bytes(*places.get(behind.checked_sub(1)?)?))
            }
            Form::Blocks { index, .. } => {
                let block = index.partition_point(|entry| first_offset(entry) <= text_offset).checked_sub(1)?;
                self.block(block).take_while(|(offset, _)| *offset <= text_offset).last()?.1
            }
        }
    }

    /// All entries in order: code offset and position. If a block is broken, only its entries before the damage are
    /// given.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Option<FilePos>)> + use<'a> {
        let this = *self;
        let units = match this.form {
            Form::Flat { offsets, .. } => offsets.len(),
            Form::Blocks { index, .. } => index.len(),
        };
        (0..units).flat_map(move |unit| {
            let (one, block) = match this.form {
                Form::Flat { offsets, places } => {
                    let at = |column: &[[u8; 4]]| column.get(unit).map(|b| u32::from_le_bytes(*b));
                    (at(offsets).zip(at(places)).map(|(offset, p)| (offset, place(p))), None)
                }
                Form::Blocks { .. } => (None, Some(this.block(unit))),
            };
            one.into_iter().chain(block.into_iter().flatten())
        })
    }

    fn block(&self, block: usize) -> BlockEntries<'a> {
        let none = BlockEntries { body: Bytes::new(&[]), offset: 0, place: None, left: 0 };
        let Form::Blocks { entries, index, bodies } = self.form else { return none };
        let Some(entry) = index.get(block) else { return none };
        let body = bodies.get(body_at(entry) as usize..).unwrap_or_default();
        let left = entries.saturating_sub(block.saturating_mul(BLOCK)).min(BLOCK);
        BlockEntries { body: Bytes::new(body), offset: first_offset(entry), place: None, left }
    }
}

fn place(raw: u32) -> Option<FilePos> {
    (raw != u32::MAX).then_some(FilePos(raw))
}

fn word(bytes: &[u8; 8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn first_offset(entry: &[u8; 8]) -> u32 {
    word(entry, 0)
}

fn body_at(entry: &[u8; 8]) -> u32 {
    word(entry, 4)
}

fn flat(section: &[u8]) -> Option<Form<'_>> {
    let mut b = Bytes::new(section);
    let n = u64::from(b.u32().ok()?);
    let (offsets, rest) = b.take(n * 4).ok()?.as_chunks();
    let (places, more) = b.take(n * 4).ok()?.as_chunks();
    (b.remaining() == 0 && rest.is_empty() && more.is_empty()).then_some(Form::Flat { offsets, places })
}

fn blocks(section: &[u8]) -> Option<Form<'_>> {
    let mut b = Bytes::new(section);
    let entries = b.u32().ok()? as usize;
    let count = b.u32().ok()? as usize;
    if count != entries.div_ceil(BLOCK) {
        return None;
    }
    let (index, _) = b.take(count as u64 * 8).ok()?.as_chunks();
    let bodies = b.take(b.remaining() as u64).ok()?;
    // Each entry has at least one byte, so the body of the next block begins at least 128 bytes later.
    let mut last: Option<&[u8; 8]> = None;
    for entry in index {
        let follows = match last {
            None => body_at(entry) == 0,
            Some(last) => {
                first_offset(last) <= first_offset(entry)
                    && u64::from(body_at(last)) + BLOCK as u64 <= u64::from(body_at(entry))
            }
        };
        if !follows || body_at(entry) as usize > bodies.len() {
            return None;
        }
        last = Some(entry);
    }
    (entries <= bodies.len() && (entries > 0 || bodies.is_empty())).then_some(Form::Blocks { entries, index, bodies })
}

/// Decodes the entries of one block. An entry begins with twice the distance to the previous code offset, plus one if
/// the entry has no position. Then follows the position: the first one of the block as it is, each later one as its
/// signed distance from the last.
struct BlockEntries<'a> {
    body: Bytes<'a>,
    offset: u32,
    place: Option<u32>,
    left: usize,
}

impl Iterator for BlockEntries<'_> {
    type Item = (u32, Option<FilePos>);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let token = leb::unsigned(&mut self.body)?;
        self.offset = self.offset.checked_add(u32::try_from(token >> 1).ok()?)?;
        if token & 1 == 1 {
            return Some((self.offset, None));
        }
        let place = match self.place {
            None => u32::try_from(leb::unsigned(&mut self.body)?).ok()?,
            Some(last) => last.checked_add_signed(i32::try_from(leb::signed(&mut self.body)?).ok()?)?,
        };
        self.place = Some(place);
        Some((self.offset, Some(FilePos(place))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wasmtime::image::{ADDRMAP, Image, SliceMemory};
    use crate::runtime::wasmtime::testing;
    use proptest::prelude::*;

    type Entries = Vec<(u32, Option<FilePos>)>;

    fn encode_flat(entries: &Entries) -> Vec<u8> {
        let mut out = (entries.len() as u32).to_le_bytes().to_vec();
        out.extend(entries.iter().flat_map(|e| e.0.to_le_bytes()));
        out.extend(entries.iter().flat_map(|e| e.1.map_or(u32::MAX, |p| p.0).to_le_bytes()));
        out
    }

    fn put(mut value: u64, out: &mut Vec<u8>) {
        while value > 0x7f {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    fn put_signed(mut value: i64, out: &mut Vec<u8>) {
        while !(-64..64).contains(&value) {
            out.push(value as u8 & 0x7f | 0x80);
            value >>= 7;
        }
        out.push(value as u8 & 0x7f);
    }

    fn encode_blocks(entries: &Entries) -> Vec<u8> {
        let (mut index, mut bodies) = (Vec::new(), Vec::new());
        for block in entries.chunks(BLOCK) {
            index.extend(block[0].0.to_le_bytes());
            index.extend((bodies.len() as u32).to_le_bytes());
            let (mut last, mut place) = (block[0].0, None);
            for &(offset, p) in block {
                put(u64::from(offset - last) << 1 | u64::from(p.is_none()), &mut bodies);
                last = offset;
                let Some(FilePos(p)) = p else { continue };
                match place {
                    None => put(u64::from(p), &mut bodies),
                    Some(q) => put_signed(i64::from(p) - i64::from(q), &mut bodies),
                }
                place = Some(p);
            }
        }
        let mut out = (entries.len() as u32).to_le_bytes().to_vec();
        out.extend((index.len() as u32 / 8).to_le_bytes());
        out.extend(index);
        out.extend(bodies);
        out
    }

    fn entries() -> impl Strategy<Value = Entries> {
        let step = (0u32..0x1000, proptest::option::of(0u32..0x7fff_ffff));
        (0u32..0x100, proptest::collection::vec(step, 0..600)).prop_map(|(mut at, steps)| {
            let mut out = Vec::new();
            for (step, place) in steps {
                out.push((at, place.map(FilePos)));
                at += step + 1;
            }
            out
        })
    }

    proptest! {
        #[test]
        fn both_forms_round_trip(entries in entries(), probes in proptest::collection::vec(any::<u32>(), 8)) {
            for (bytes, version) in [(encode_flat(&entries), 46), (encode_blocks(&entries), 47)] {
                let map = AddressMap::parse(&bytes, Some(Version(version))).unwrap();
                prop_assert_eq!(map.iter().collect::<Entries>(), entries.clone());
                prop_assert_eq!((map.len(), map.is_empty()), (entries.len(), entries.is_empty()));
                let near = entries.iter().flat_map(|e| [e.0.wrapping_sub(1), e.0, e.0 + 1]);
                for at in near.chain(probes.iter().copied()) {
                    let expected = entries.iter().rev().find(|e| e.0 <= at).and_then(|e| e.1);
                    prop_assert_eq!(map.lookup(at), expected, "at {}", at);
                }
            }
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), at: u32) {
            for version in [None, Some(Version(40)), Some(Version(48))] {
                if let Ok(map) = AddressMap::parse(&bytes, version) {
                    let _ = map.lookup(at);
                    prop_assert!(map.iter().count() <= map.len());
                }
            }
        }

        #[test]
        fn broken_blocks(entries in entries(), at: prop::sample::Index, byte: u8, probe: u32) {
            let mut bytes = encode_blocks(&entries);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(map) = AddressMap::parse(&bytes, None) {
                let _ = map.lookup(probe);
                prop_assert!(map.iter().count() <= map.len());
            }
        }
    }

    #[test]
    fn the_structure_tells_the_form_and_the_version_helps_where_both_fit() {
        // Three entries whose offsets are 1, 0x1000 and 0 (a broken list) look like one block too.
        let both: Vec<u8> = [3, 1, 0x1000, 0, 7, 8, 9].iter().flat_map(|w: &u32| w.to_le_bytes()).collect();
        assert!(super::flat(&both).is_some() && super::blocks(&both).is_some());
        let as_version = |v| AddressMap::parse(&both, Some(Version(v))).unwrap().lookup(1);
        assert_eq!((as_version(46), as_version(47)), (Some(FilePos(7)), None));
        let flat = encode_flat(&vec![(7, Some(FilePos(9)))]);
        let one = AddressMap::parse(&flat, None).unwrap();
        assert_eq!((one.lookup(7), one.lookup(6)), (Some(FilePos(9)), None));
        let wrong_version = AddressMap::parse(&flat, Some(Version(48)));
        assert_eq!(wrong_version.unwrap().lookup(8), Some(FilePos(9)));
        assert_eq!(AddressMap::parse(&[1, 2, 3], None).unwrap_err(), UnknownForm { bytes: 3 });
        assert!(AddressMap::parse(&[0; 8], Some(Version(48))).unwrap().is_empty());
        assert!(AddressMap::parse(&[0; 4], Some(Version(36))).unwrap().is_empty());
    }

    /// Compares the map with the runtime's own answer for the same image (`Module::address_map`), which was written
    /// down when the fixture was made.
    #[test]
    fn equal_to_the_runtime() {
        for name in testing::fixtures() {
            let Some(known) = testing::facts(&name) else { continue };
            let bytes = testing::fixture(&name);
            let memory = SliceMemory::new(0, &bytes);
            let image = Image::from_bytes(&bytes).unwrap();
            let expected: Entries = known
                .lines()
                .filter_map(|l| l.strip_prefix("map "))
                .map(|l| {
                    let (offset, place) = l.split_once(' ').unwrap();
                    let hex = |s: &str| u32::from_str_radix(s.trim_start_matches("0x"), 16).ok();
                    (hex(offset).unwrap(), hex(place).map(FilePos))
                })
                .collect();
            if expected.is_empty() {
                assert!(!image.has(ADDRMAP), "{name}");
                continue;
            }
            let section = image.contents(ADDRMAP, &memory).unwrap();
            for version in [image.engine(&memory).unwrap().version(), None] {
                let map = AddressMap::parse(&section, version).unwrap();
                assert_eq!(map.iter().collect::<Entries>(), expected, "{name}");
            }
        }
    }
}
