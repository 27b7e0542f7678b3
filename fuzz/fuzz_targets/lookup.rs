//! Single functions of an encoded state map that is not decoded as a whole: where its functions begin is known, and where
//! their records are is not. The search ends within what it was given, and what it finds is of the function.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::Cell;
use wstate::state::codec::decode_borsh_prefix;
use wstate::state::lookup::{EncodedMap, Known};

/// Bytes that may be looked through for one function. A window is counted before it is read.
const LEFT: u64 = 1 << 20;

fn look(starts: &[usize], total_size: usize, bytes: &[u8]) {
    let Some(encoded) = EncodedMap::new(starts.to_vec(), total_size, bytes.len() as u64) else { return };
    let reads = Cell::new(0u64);
    let read = |at: u64, buf: &mut [u8]| {
        reads.set(reads.get() + 1);
        let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        len
    };
    let mut known = Known::new();
    let step = (starts.len() / 16).max(1);
    for number in (0..starts.len()).rev().step_by(step).chain([0, starts.len()]) {
        let mut left = LEFT;
        reads.set(0);
        match encoded.function(number, &mut known, &mut left, &read) {
            Ok(found) => {
                let (start, function) = found.local_functions.first_key_value().expect("one function");
                assert_eq!(
                    (found.local_functions.len(), start, function.local_function_id),
                    (1, &starts[number], number)
                );
            }
            Err(why) => assert!(!why.is_empty()),
        }
        assert!(left <= LEFT);
        // Windows, and a walk along records that lie side by side.
        assert!(reads.get() <= 100 + 8 * starts.len() as u64, "{} reads", reads.get());
    }
    for (number, at) in known {
        // The first record begins behind the count, whatever is there.
        assert!(number < starts.len().max(1) && at <= bytes.len().max(4) as u64);
    }
}

fuzz_target!(|data: &[u8]| {
    // The functions that the map itself has.
    if let Ok((map, used)) = decode_borsh_prefix(data) {
        let starts: Vec<usize> = map.local_functions.keys().copied().collect();
        look(&starts, map.total_size, data);
        look(&starts, map.total_size, &data[..used]);
    }
    // Others: how many, and the words that they begin at.
    let Some((&count, data)) = data.split_first() else { return };
    let (words, bytes) = data.split_at((usize::from(count) * 2).min(data.len()));
    let mut starts: Vec<usize> = words.as_chunks::<2>().0.iter().map(|w| u16::from_le_bytes(*w).into()).collect();
    starts.sort_unstable();
    starts.dedup();
    let total_size = starts.last().map_or(0, |last| last + 0x100);
    look(&starts, total_size, bytes);
});
