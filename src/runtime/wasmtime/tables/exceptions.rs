//! `.wasmtime.exceptions`: where execution goes on when an exception ends a call.
//!
//! The section consists of u32s: the number of calls, the number of handlers, and then one array for each field. The
//! fields of a call are its return address, where its frame is (only from some version on), and where its handlers
//! end. The fields of a handler are its tag, its context, and where it is (`wasmtime-internal-unwinder`:
//! `exception_table.rs`).

/// Pairs of a call's return address and one of its handlers, as offsets in the text, ascending by return address. The
/// list is empty if the section does not have a known form.
pub fn handlers(section: &[u8]) -> Vec<(u32, u32)> {
    read(section).unwrap_or_default()
}

fn read(section: &[u8]) -> Option<Vec<(u32, u32)>> {
    let (words, []) = section.as_chunks::<4>() else { return None };
    let (counts, words) = words.split_at_checked(2)?;
    let count = |i: usize| Some(u32::from_le_bytes(*counts.get(i)?) as usize);
    let (calls, handlers) = (count(0)?, count(1)?);
    let of_calls = words.len().checked_sub(handlers.checked_mul(3)?)?;
    // A call has two arrays if the place of its frame is not recorded (version 36), else three.
    let arrays = [2, 3].into_iter().find(|n| calls.checked_mul(*n) == Some(of_calls))?;
    let word = |i: usize| words.get(i).map(|w| u32::from_le_bytes(*w));
    let first = of_calls.checked_add(handlers.checked_mul(2)?)?;
    let mut out = Vec::new();
    let mut from = 0;
    for call in 0..calls {
        let end = word((arrays - 1) * calls + call)? as usize;
        if end < from || end > handlers {
            return None;
        }
        for handler in from..end {
            out.push((word(call)?, word(first + handler)?));
        }
        from = end;
    }
    out.is_sorted_by_key(|(call, _)| *call).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn both_forms_are_read() {
        // This is the example in the runtime's sources. Its arrays are calls, frames and ends, then tags, contexts
        // and handlers.
        let none = u32::MAX;
        let calls = [0x10, 0x50, 0xf0];
        let of_handlers = [1, 5, 1, none, none, none, none, 0x10, 0x20, 0x30, 0x40, 0x42, 0x6f, 0x71, 0xf5];
        let expected = [(0x10, 0x40), (0x10, 0x42), (0x50, 0x6f), (0x50, 0x71), (0xf0, 0xf5)];
        let with = [&[3, 5][..], &calls, &[0, 0x10, 0], &[2, 4, 5], &of_handlers].concat();
        let without = [&[3, 5][..], &calls, &[2, 4, 5], &of_handlers].concat();
        assert_eq!(handlers(&section(&with)), expected);
        assert_eq!(handlers(&section(&without)), expected);
        assert_eq!(handlers(&section(&[0, 0])), []);
        // Nothing is read if the section is cut, too long or not ascending, or if ends of handlers go back or beyond
        // the last one.
        assert_eq!(handlers(&section(&with[..with.len() - 1])), []);
        assert_eq!(handlers(&section(&[&with[..], &[0]].concat())), []);
        let mut turned = with.clone();
        turned.swap(2, 3);
        assert_eq!(handlers(&section(&turned)), []);
        for (at, end) in [(8, 5), (10, 6)] {
            let mut broken = with.clone();
            broken[at] = end;
            assert_eq!(handlers(&section(&broken)), []);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = handlers(&bytes);
        }
    }
}
