//! A little-endian cursor over hostile bytes. No method can panic, and every length is checked before it is believed.

/// The input ended, or a length in it is larger than what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("input ends at offset {offset}, {wanted} more bytes wanted")]
pub struct Short {
    /// Offset at which the read began.
    pub offset: usize,
    /// Number of bytes that were wanted at this offset.
    pub wanted: u64,
}

/// A reading position in a slice.
#[derive(Clone, Debug)]
pub struct Bytes<'a> {
    data: &'a [u8],
    offset: usize,
    elements: usize,
}

impl<'a> Bytes<'a> {
    /// Creates a cursor at the start of `data`.
    pub fn new(data: &'a [u8]) -> Bytes<'a> {
        Bytes { data, offset: 0, elements: usize::MAX }
    }

    /// Creates a cursor at the start of `data`. At most `elements` elements of lists and maps may be made of what is
    /// read; `charge` counts them.
    pub fn with_elements(data: &'a [u8], elements: usize) -> Bytes<'a> {
        Bytes { elements, ..Bytes::new(data) }
    }

    /// Takes `elements` off the number of elements that may still be made. Returns `false`, and takes nothing off, if
    /// fewer are left.
    pub fn charge(&mut self, elements: usize) -> bool {
        let left = self.elements.checked_sub(elements);
        self.elements = left.unwrap_or(self.elements);
        left.is_some()
    }

    /// Offset of the cursor from the start of the data, in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Number of bytes between the cursor and the end of the data.
    pub fn remaining(&self) -> usize {
        self.data.len() - self.offset
    }

    /// Reads the next `len` bytes.
    pub fn take(&mut self, len: u64) -> Result<&'a [u8], Short> {
        let end = usize::try_from(len).ok().and_then(|l| self.offset.checked_add(l)).filter(|&e| e <= self.data.len());
        match end {
            Some(end) => {
                let out = &self.data[self.offset..end];
                self.offset = end;
                Ok(out)
            }
            None => Err(Short { offset: self.offset, wanted: len }),
        }
    }

    /// Skips `len` bytes.
    pub fn skip(&mut self, len: u64) -> Result<(), Short> {
        self.take(len).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let s = self.take(N as u64)?;
        let mut a = [0; N];
        a.copy_from_slice(s);
        Ok(a)
    }

    /// Reads one byte.
    pub fn u8(&mut self) -> Result<u8, Short> {
        Ok(self.array::<1>()?[0])
    }

    /// Reads two bytes as a little-endian number.
    pub fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_le_bytes)
    }

    /// Reads four bytes as a little-endian number.
    pub fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    /// Reads eight bytes as a little-endian number.
    pub fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_input_and_lying_lengths_are_errors() {
        let mut b = Bytes::new(&[1, 2, 3]);
        assert_eq!(b.u16(), Ok(0x0201));
        assert_eq!(b.u32(), Err(Short { offset: 2, wanted: 4 }));
        assert_eq!(b.take(u64::MAX), Err(Short { offset: 2, wanted: u64::MAX }));
        assert_eq!((b.u8(), b.remaining()), (Ok(3), 0));
    }
}
