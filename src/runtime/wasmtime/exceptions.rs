//! `.wasmtime.exceptions`: where an exception goes on that ends a call.
//!
//! u32s: how many calls and how many handlers, then arrays. Of each call: its return address, from some version on where its
//! frame is, and where its handlers end; of each handler: tag, context, and where it is (`wasmtime-internal-unwinder`:
//! `exception_table.rs`).

/// Return addresses and the handlers of each, as offsets in the text, ascending. Empty where the section is not as it is
/// known.
pub(super) fn handlers(section: &[u8]) -> Vec<(u32, u32)> {
    read(section).unwrap_or_default()
}

fn read(section: &[u8]) -> Option<Vec<(u32, u32)>> {
    let (words, []) = section.as_chunks::<4>() else { return None };
    let (counts, words) = words.split_at_checked(2)?;
    let count = |i: usize| Some(u32::from_le_bytes(*counts.get(i)?) as usize);
    let (calls, handlers) = (count(0)?, count(1)?);
    let of_calls = words.len().checked_sub(handlers.checked_mul(3)?)?;
    // Without the frame's place (36), and with it.
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
        // The example of the runtime's sources: calls, frames, ends; tags, contexts, handlers.
        let none = u32::MAX;
        let calls = [0x10, 0x50, 0xf0];
        let of_handlers = [1, 5, 1, none, none, none, none, 0x10, 0x20, 0x30, 0x40, 0x42, 0x6f, 0x71, 0xf5];
        let expected = [(0x10, 0x40), (0x10, 0x42), (0x50, 0x6f), (0x50, 0x71), (0xf0, 0xf5)];
        let with = [&[3, 5][..], &calls, &[0, 0x10, 0], &[2, 4, 5], &of_handlers].concat();
        let without = [&[3, 5][..], &calls, &[2, 4, 5], &of_handlers].concat();
        assert_eq!(handlers(&section(&with)), expected);
        assert_eq!(handlers(&section(&without)), expected);
        assert_eq!(handlers(&section(&[0, 0])), []);
        // Cut, too long, not ascending, ends that go back or out.
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
