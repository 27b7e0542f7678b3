//! The wire format `postcard`, as far as it is used here: numbers are LEB128, and signed ones zigzag as well. A byte
//! or a bool is one byte, strings and sequences have their length in front, an option begins with one byte, and an
//! enum with the number of its variant.
//!
//! The format does not describe itself: a reader must know the types. `.wasmtime.info` and the configuration behind
//! the version in `.wasmtime.engine` are written in it.

use super::leb;
use crate::bytes::Bytes;
use crate::limits::MAX_NAME_BYTES;

/// Why bytes do not have the expected shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset}: {what}")]
pub struct Malformed {
    /// Offset of the bytes that are wrong, from the start of the data.
    pub offset: usize,
    /// What is wrong with them.
    pub what: &'static str,
}

/// Reads data from front to back.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: Bytes<'a>,
}

type Result<T> = std::result::Result<T, Malformed>;

impl<'a> Reader<'a> {
    /// A reader at the start of `data`.
    pub fn new(data: &'a [u8]) -> Reader<'a> {
        Reader { bytes: Bytes::new(data) }
    }

    /// Offset of the next byte from the start of the data.
    pub fn offset(&self) -> usize {
        self.bytes.offset()
    }

    /// Number of bytes that are left.
    pub fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    /// The error that something is wrong with what was just read, or with what is read next.
    pub fn wrong(&self, what: &'static str) -> Malformed {
        Malformed { offset: self.offset(), what }
    }

    /// Reads an unsigned number of up to 64 bits.
    pub fn u64(&mut self) -> Result<u64> {
        let at = self.wrong("no number");
        leb::unsigned(&mut self.bytes).ok_or(at)
    }

    /// Reads an unsigned number of up to 32 bits.
    pub fn u32(&mut self) -> Result<u32> {
        let at = self.wrong("the number does not fit into 32 bits");
        self.u64()?.try_into().map_err(|_| at)
    }

    /// Skips a number of up to 128 bits.
    pub fn skip_number(&mut self) -> Result<()> {
        let at = self.wrong("no number");
        for _ in 0..19 {
            if self.byte()? & 0x80 == 0 {
                return Ok(());
            }
        }
        Err(at)
    }

    /// Reads one byte.
    pub fn byte(&mut self) -> Result<u8> {
        let at = self.wrong("the input ends");
        self.bytes.u8().map_err(|_| at)
    }

    /// Reads a truth value.
    pub fn bool(&mut self) -> Result<bool> {
        let at = self.wrong("no truth value");
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(at),
        }
    }

    /// Reads `len` bytes, in front of which no length is written.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8]> {
        let at = self.wrong("the input ends");
        self.bytes.take(len as u64).map_err(|_| at)
    }

    /// Reads a string.
    pub fn str(&mut self) -> Result<&'a str> {
        let at = self.wrong("no string");
        let len = self.u64()?;
        if len > MAX_NAME_BYTES as u64 {
            return Err(at);
        }
        let bytes = self.bytes.take(len).map_err(|_| at)?;
        std::str::from_utf8(bytes).map_err(|_| at)
    }

    /// Reads the number of elements that follow. Each takes at least one byte, so a number larger than that of the
    /// bytes left is a lie.
    pub fn count(&mut self) -> Result<usize> {
        let at = self.wrong("more elements than bytes");
        let n = self.u64()?;
        if n > self.remaining() as u64 { Err(at) } else { Ok(n as usize) }
    }

    /// Reads a sequence, each element with `element`.
    #[cfg(any(test, feature = "internals"))]
    pub fn seq<T>(&mut self, mut element: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let n = self.count()?;
        // `with_capacity(n)` is not used, because a large element type would turn one byte of input into many bytes
        // of memory.
        let mut out = Vec::new();
        for _ in 0..n {
            out.push(element(self)?);
        }
        Ok(out)
    }

    /// Reads a value that may be missing.
    pub fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.bool()? { value(self).map(Some) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_not_believed() {
        let mut r = Reader::new(&[0xff, 0xff, 0xff, 0x7f, 1, 2]);
        assert_eq!(r.count(), Err(Malformed { offset: 0, what: "more elements than bytes" }));
        let mut r = Reader::new(&[3, b'a', b'b']);
        assert_eq!(r.str().map_err(|e| e.offset), Err(0));
        let mut r = Reader::new(&[2, 0xc3, 0x28]);
        assert_eq!(r.str().map_err(|e| e.what), Err("no string"), "not UTF-8");
        let mut r = Reader::new(&[2, 1, 7, 0]);
        assert_eq!(r.seq(|r| r.option(|r| r.byte())), Ok(vec![Some(7), None]));
        assert_eq!((r.remaining(), r.byte().is_err()), (0, true));
    }

    #[test]
    fn a_large_number_is_skipped_whole() {
        let mut bytes = [0xff; 20];
        bytes[18] = 3;
        let mut r = Reader::new(&bytes);
        assert_eq!((r.skip_number(), r.offset()), (Ok(()), 19));
        assert!(Reader::new(&[0xff; 19]).skip_number().is_err());
    }

    #[test]
    fn a_string_has_an_end() {
        for (len, found) in [(MAX_NAME_BYTES, true), (MAX_NAME_BYTES + 1, false)] {
            let number = [len as u8 & 0x7f | 0x80, (len >> 7) as u8 & 0x7f | 0x80, (len >> 14) as u8];
            let bytes = [&number[..], &vec![b'x'; len]].concat();
            assert_eq!(Reader::new(&bytes).str().is_ok(), found);
        }
    }
}
