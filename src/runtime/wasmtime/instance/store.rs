//! The instances of a store, whether a frame runs in them or not.
//!
//! A store keeps its instances in a vector (`store.rs: StoreOpaque::instances`) beside the context that compiled code
//! reads, and nothing says where: neither layout is promised (`repr(Rust)`). But it is known what the vector must
//! hold: words that lead to instances, all at the same distance before their `VMContext`s, all of this store, and one
//! of them known already. A vector of which every element is like that is the list. Of several such vectors the one
//! that holds the instances of the others is the list. If two each hold what the other does not, neither is.

use super::offsets::{VMCONTEXT_MAGIC, VMCONTEXT_STORE};
use crate::limits::MAX_STORE_INSTANCES;
use crate::process::Memory;

/// How many bytes the vector may be away from the store's context. The whole of `StoreOpaque` has some 2 KiB.
const REACH: u64 = 4096;
/// Possible sizes of an element in bytes: a pointer, and what kind of instance it is.
const STRIDES: [usize; 4] = [16, 24, 32, 40];
/// How many bytes of an `Instance` may lie before its `VMContext`.
const HEAD: std::ops::Range<u64> = 16..1024;

/// The addresses of all instances of the store whose context is at `store`, including those that the runtime and the
/// host made for themselves. `known` is the address of one of them.
pub fn instances(store: u64, known: u64, memory: &dyn Memory) -> Option<Vec<u64>> {
    let begin = store.checked_sub(REACH)? & !7;
    let mut bytes = vec![0; 2 * REACH as usize];
    // What is not mapped stays zero, and zeros are no vector.
    for (i, page) in bytes.chunks_mut(512).enumerate() {
        let address = begin.checked_add(i as u64 * 512);
        if address.is_none_or(|a| a.checked_add(512).is_none() || memory.read(a, page).is_err()) {
            page.fill(0);
        }
    }
    let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
    let mut found: Option<Vec<u64>> = None;
    for three in words.windows(3) {
        for at in 0..3 {
            let (pointer, one, two) = (three[at], three[(at + 1) % 3], three[(at + 2) % 3]);
            let (len, capacity) = (one.min(two), one.max(two));
            let plausible = pointer.is_multiple_of(8) && pointer > 0x1000 && len > 0;
            if !plausible || capacity > MAX_STORE_INSTANCES as u64 {
                continue;
            }
            let Some(list) = list(pointer, len as usize, store, known, memory) else { continue };
            // A vector that counts only some of the instances (old words on a stack do) does not contradict the
            // longer list.
            found = match found {
                Some(other) if is_part(&list, &other) => Some(other),
                Some(other) if !is_part(&other, &list) => return None,
                _ => Some(list),
            };
        }
    }
    found
}

/// Whether every element of `part` is one of `whole`, which is sorted.
fn is_part(part: &[u64], whole: &[u64]) -> bool {
    part.iter().all(|v| whole.binary_search(v).is_ok())
}

/// The instances in the vector of `len` elements at `pointer`. `None` if it is no vector of instances of this store.
fn list(pointer: u64, len: usize, store: u64, known: u64, memory: &dyn Memory) -> Option<Vec<u64>> {
    // This tells most words that lead to no vector from those that do: so many bytes must be there, and not all zero.
    let most = memory.read_vec(pointer, len.checked_mul(STRIDES[0])?).ok()?;
    if most.iter().all(|b| *b == 0) {
        return None;
    }
    for stride in STRIDES {
        let Ok(bytes) = memory.read_vec(pointer, len.checked_mul(stride)?) else { break };
        for field in (0..stride).step_by(8) {
            let column: Vec<u64> = bytes
                .chunks_exact(stride)
                .filter_map(|e| e.get(field..field + 8)?.try_into().ok().map(u64::from_le_bytes))
                .collect();
            let distances = column.iter().filter_map(|w| known.checked_sub(*w)).filter(|d| HEAD.contains(d));
            for distance in distances.filter(|d| d.is_multiple_of(16)) {
                let contexts: Option<Vec<u64>> =
                    column.iter().map(|w| w.checked_add(distance).filter(|v| is_of(*v, store, memory))).collect();
                if let Some(mut contexts) = contexts {
                    contexts.sort_unstable();
                    contexts.dedup();
                    if contexts.len() == len {
                        return Some(contexts);
                    }
                }
            }
        }
    }
    None
}

/// Whether an instance of the store is at `vmctx`.
fn is_of(vmctx: u64, store: u64, memory: &dyn Memory) -> bool {
    let mut head = [0; 16];
    vmctx.is_multiple_of(16)
        && memory.read(vmctx, &mut head).is_ok()
        && head[..4] == VMCONTEXT_MAGIC
        && head[VMCONTEXT_STORE as usize..] == store.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::Pieces;

    const STORE: u64 = 0x5000_0000;
    const VECTOR: u64 = 0x6000_0000;
    const FIRST: u64 = 0x6100_0000;
    const SIZE: u64 = 0x400;
    const DISTANCE: u64 = 0xa0;

    /// A store of `count` instances with these vectors beside its context. Each vector has its offset from the
    /// context, the address of its elements, and the numbers of the instances in it. Elements have three words.
    fn store_of(count: u64, vectors: &[(i64, u64, &[u64])]) -> Pieces {
        let mut region = vec![0; 2 * REACH as usize / 8];
        let mut memory = Pieces::default();
        for (offset, address, elements) in vectors {
            let at = ((REACH as i64 + offset) / 8) as usize;
            region[at..at + 3].copy_from_slice(&[elements.len() as u64 + 1, *address, elements.len() as u64]);
            let words: Vec<u64> = elements.iter().flat_map(|i| [1, FIRST + i * SIZE, 0]).collect();
            memory = memory.words(*address, &words);
        }
        for i in 0..count {
            let head = [u64::from(u32::from_le_bytes(VMCONTEXT_MAGIC)), STORE];
            memory = memory.words(FIRST + i * SIZE + DISTANCE, &head);
        }
        memory.words(STORE - REACH, &region)
    }

    /// A store with one vector that holds all of its instances.
    fn store(count: u64) -> Pieces {
        store_of(count, &[(-0x80, VECTOR, &(0..count).collect::<Vec<_>>())])
    }

    fn known(i: u64) -> u64 {
        FIRST + i * SIZE + DISTANCE
    }

    #[test]
    fn a_vector_that_holds_nothing_but_instances_of_the_store_is_the_list() {
        for count in [1, 2, 7, 100] {
            let expected: Vec<u64> = (0..count).map(known).collect();
            for i in [0, count - 1] {
                assert_eq!(instances(STORE, known(i), &store(count)), Some(expected.clone()), "{count}");
            }
        }
    }

    #[test]
    fn another_store_a_damaged_element_or_a_lying_length_is_none() {
        let whole = || store(5);
        assert!(instances(STORE, known(2), &whole()).is_some());
        // One instance says that it is of another store.
        assert_eq!(instances(STORE, known(2), &whole().word(known(3) + 8, STORE + 8)), None);
        // The known instance is not in the vector.
        assert_eq!(instances(STORE, known(2) + 16, &whole()), None);
        // An element of the vector leads nowhere.
        let elements: Vec<u64> = (0..5).flat_map(|i| [1, if i == 4 { 0x10 } else { FIRST + i * SIZE }, 0]).collect();
        assert_eq!(instances(STORE, known(2), &whole().words(VECTOR, &elements)), None);
        for (len, capacity) in [(6, 6), (u64::MAX, u64::MAX), (1 << 40, 1 << 41), (0, 5)] {
            let mut memory = whole();
            let region = memory.0.get_mut(&(STORE - REACH)).unwrap();
            for (i, word) in [capacity, VECTOR, len].into_iter().enumerate() {
                region[REACH as usize - 0x80 + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
            }
            assert_eq!(instances(STORE, known(2), &memory), None, "{len}");
        }
        // An instance that is in the vector twice is not two instances.
        let twice: Vec<u64> = (0..5).flat_map(|i| [1, FIRST + i / 2 * SIZE, 0]).collect();
        assert_eq!(instances(STORE, known(1), &whole().words(VECTOR, &twice)), None);
        for store in [0, 8, u64::MAX] {
            assert_eq!(instances(store, known(2), &whole()), None);
        }
    }

    #[test]
    fn a_list_has_an_end() {
        // The capacity is one more than the length.
        let most = MAX_STORE_INSTANCES as u64 - 1;
        assert_eq!(instances(STORE, known(0), &store(most)).map(|l| l.len() as u64), Some(most));
        assert_eq!(instances(STORE, known(0), &store(most + 1)), None);
    }

    #[test]
    fn of_two_lists_one_has_to_hold_the_other() {
        let list = |some: &[u64]| {
            let five: &[u64] = &[0, 1, 2, 3, 4];
            let memory = store_of(6, &[(-0x80, VECTOR, five), (0x300, VECTOR + 0x1000, some)]);
            let before = store_of(6, &[(-0x400, VECTOR + 0x1000, some), (-0x80, VECTOR, five)]);
            let found = instances(STORE, known(1), &memory);
            assert_eq!(instances(STORE, known(1), &before), found);
            found
        };
        assert_eq!(list(&[0, 1, 2]), Some((0..5).map(known).collect()));
        assert_eq!(list(&[0, 1, 2, 3, 4, 5]), Some((0..6).map(known).collect()));
        assert_eq!(list(&[1, 2, 5]), None);
    }
}
