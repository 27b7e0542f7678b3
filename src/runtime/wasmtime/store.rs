//! The instances of a store, whether a frame runs in them or not.
//!
//! A store keeps its instances in a vector (`store.rs: StoreOpaque::instances`) beside the context that compiled code
//! reads, and nothing says where: neither layout is promised (`repr(Rust)`). But what it must hold is known: words that
//! lead to instances, all at one distance before their `VMContext`s, all of this store, one of them known already. A vector
//! of which every element is so is the list. Two that differ are none.

use super::offsets::{VMCONTEXT_MAGIC, VMCONTEXT_STORE};
use crate::limits::MAX_STORE_INSTANCES;
use crate::target::Memory;

/// How far from the store's context the vector may be. The whole of `StoreOpaque` has some 2 KiB.
const REACH: u64 = 4096;
/// Bytes of an element: a pointer, and what kind of instance it is.
const STRIDES: [usize; 4] = [16, 24, 32, 40];
/// Bytes of an `Instance` before its `VMContext`.
const HEAD: std::ops::Range<u64> = 16..1024;

/// The addresses of all instances of the store whose context is at `store`, those that the runtime and the host made for
/// themselves included. `known`: one of them.
pub(super) fn instances(store: u64, known: u64, memory: &dyn Memory) -> Option<Vec<u64>> {
    let begin = store.checked_sub(REACH)? & !7;
    let mut bytes = vec![0; 2 * REACH as usize];
    // What is not mapped stays zero, which is no vector.
    for (i, page) in bytes.chunks_mut(512).enumerate() {
        if memory.read(begin + i as u64 * 512, page).is_err() {
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
            match &found {
                Some(other) if *other != list => return None,
                _ => found = Some(list),
            }
        }
    }
    found
}

/// The instances in a vector, if it is one of them.
fn list(pointer: u64, len: usize, store: u64, known: u64, memory: &dyn Memory) -> Option<Vec<u64>> {
    // One element tells most vectors that are none from the one that is.
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
