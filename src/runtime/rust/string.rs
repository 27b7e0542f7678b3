//! Reads `String`s, which are `Vec`s of bytes.

use super::memory::{Budgeted, StructureError, VecLayout, View};
use crate::limits::MAX_STRING_BYTES;

/// Reads the bytes of the string at offset `at` of `owner`.
pub(crate) fn bytes(
    heap: &Budgeted<'_>,
    what: &'static str,
    owner: View<'_>,
    at: u64,
    layout: VecLayout,
) -> Result<Vec<u8>, StructureError> {
    Ok(heap.vec(what, owner, at, layout, 1, MAX_STRING_BYTES)?.bytes)
}

/// Reads one of many names. A name that is not UTF-8 does not cost the others.
pub(crate) fn lossy(
    heap: &Budgeted<'_>,
    what: &'static str,
    owner: View<'_>,
    at: u64,
    layout: VecLayout,
) -> Result<String, StructureError> {
    Ok(String::from_utf8_lossy(&bytes(heap, what, owner, at, layout)?).into_owned())
}

/// Reads a string that is an error if it is not UTF-8.
pub(crate) fn exact(
    heap: &Budgeted<'_>,
    what: &'static str,
    owner: View<'_>,
    at: u64,
    layout: VecLayout,
) -> Result<String, StructureError> {
    String::from_utf8(bytes(heap, what, owner, at, layout)?).map_err(|e| StructureError::Implausible {
        what,
        address: owner.address.wrapping_add(at),
        field: "UTF-8 up to",
        value: e.utf8_error().valid_up_to() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_MODULE_INFO_BYTES;
    use crate::unwind::testing::Pieces;

    const TEXT: u64 = 0x1000;
    const LAYOUT: VecLayout = VecLayout { cap: 0, ptr: 8, len: 16 };

    /// What `lossy` and `exact` read where the memory has `text`, and the string claims this capacity and length.
    fn read(text: &[u8], cap: u64, len: u64) -> [Result<String, StructureError>; 2] {
        let memory = Pieces::default().bytes(TEXT, text);
        let header: Vec<u8> = [cap, TEXT, len].into_iter().flat_map(u64::to_le_bytes).collect();
        let owner = View::new("owner", 0x9000, &header);
        [lossy, exact].map(|read| read(&Budgeted::new(&memory, MAX_MODULE_INFO_BYTES), "name", owner, 0, LAYOUT))
    }

    #[test]
    fn text_is_read_and_what_is_not_utf_8_is_told() {
        assert_eq!(read(b"leaf", 8, 4), [Ok("leaf".to_string()), Ok("leaf".to_string())]);
        let [lossy, exact] = read(b"le\xfff", 4, 4);
        assert_eq!(lossy, Ok("le\u{fffd}f".to_string()));
        let told = StructureError::Implausible { what: "name", address: 0x9000, field: "UTF-8 up to", value: 2 };
        assert_eq!(exact, Err(told));
    }

    /// What is above a limit is refused before memory is read.
    #[test]
    fn lengths_that_lie_are_refused() {
        let implausible =
            |found: &Result<String, StructureError>| matches!(found, Err(StructureError::Implausible { .. }));
        let unreadable = |found: &Result<String, StructureError>| matches!(found, Err(StructureError::Memory { .. }));
        // More bytes than the string has room for, or than the memory has.
        assert!(read(b"leaf", 3, 4).iter().all(implausible));
        assert!(read(b"leaf", 5, 5).iter().all(unreadable));
        let most = MAX_STRING_BYTES as u64;
        assert!(read(b"leaf", most, most).iter().all(unreadable));
        assert!(read(b"leaf", most + 1, most + 1).iter().all(implausible));
        assert!(read(b"leaf", u64::MAX, u64::MAX).iter().all(implausible));
    }
}
