//! Reads Rust values (`Vec`, slices) out of a target's memory. Every length is checked before it is believed, and all
//! reads together have a budget.

use crate::process::{Memory, MemoryError};
use std::cell::Cell;

/// Why a Rust structure could not be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StructureError {
    /// The structure's memory cannot be read.
    #[error("{what}: {source}")]
    Memory {
        /// What was being read.
        what: &'static str,
        /// Why the memory cannot be read.
        source: MemoryError,
    },
    /// The bytes are there, but no such structure can hold this value.
    #[error("{what} at {address:#x} is not one: {field} is {value:#x}")]
    Implausible {
        /// What was being read.
        what: &'static str,
        /// Address of the structure.
        address: u64,
        /// Name of the field that holds the value.
        field: &'static str,
        /// The value that cannot be right.
        value: u64,
    },
    /// The structure is larger than what is allowed to be read.
    #[error("{what} at {address:#x} is too large: {bytes} bytes wanted, {left} left of the limit")]
    TooLarge {
        /// What was being read.
        what: &'static str,
        /// Address of the structure.
        address: u64,
        /// Number of bytes that were to be read.
        bytes: u64,
        /// Number of bytes that the limit still allowed.
        left: u64,
    },
}

/// A target's memory, of which only a limited number of bytes may be read.
pub(crate) struct Budgeted<'a> {
    memory: &'a dyn Memory,
    left: Cell<u64>,
}

/// The bytes of one structure, and the address where they were.
#[derive(Clone, Copy)]
pub(crate) struct View<'b> {
    pub what: &'static str,
    pub address: u64,
    pub bytes: &'b [u8],
}

/// Offsets of a `Vec`'s fields in bytes.
#[derive(Clone, Copy)]
pub(crate) struct VecLayout {
    pub cap: u64,
    pub ptr: u64,
    pub len: u64,
}

/// The elements of a `Vec`, each of `size` bytes.
pub(crate) struct Elements {
    pub what: &'static str,
    pub address: u64,
    pub size: usize,
    pub bytes: Vec<u8>,
}

impl Elements {
    pub fn iter(&self) -> impl Iterator<Item = View<'_>> {
        let (what, address, size) = (self.what, self.address, self.size.max(1));
        self.bytes.chunks_exact(size).enumerate().map(move |(i, bytes)| View {
            what,
            address: address.wrapping_add((i * size) as u64),
            bytes,
        })
    }
}

/// Reads the pointer and the length, in elements, of the `Vec` whose header is at offset `at` of `view`.
pub(crate) fn vec_header(
    what: &'static str,
    view: View<'_>,
    at: u64,
    layout: VecLayout,
) -> Result<(u64, u64), StructureError> {
    let (cap, ptr, len) = (view.u64(at + layout.cap)?, view.u64(at + layout.ptr)?, view.u64(at + layout.len)?);
    if len > cap || cap > i64::MAX as u64 {
        let address = view.address.wrapping_add(at);
        return Err(StructureError::Implausible { what, address, field: "capacity", value: cap });
    }
    Ok((ptr, len))
}

impl<'a> Budgeted<'a> {
    pub fn new(memory: &'a dyn Memory, bytes: u64) -> Budgeted<'a> {
        Budgeted { memory, left: Cell::new(bytes) }
    }

    /// Reads `len` bytes at `address`. They are allocated only after the budget allows them.
    pub fn read(&self, what: &'static str, address: u64, len: u64) -> Result<Vec<u8>, StructureError> {
        let left = self.left.get();
        let size = usize::try_from(len).ok().filter(|_| len <= left);
        let Some(size) = size else { return Err(StructureError::TooLarge { what, address, bytes: len, left }) };
        if address.checked_add(len).is_none() {
            return Err(StructureError::Implausible { what, address, field: "size", value: len });
        }
        // A false length must not cost an allocation, so large reads first check that the last byte exists.
        if size > 1 << 20 {
            let mut last = [0; 1];
            self.memory.read(address + len - 1, &mut last).map_err(|source| StructureError::Memory { what, source })?;
        }
        self.left.set(left - len);
        self.memory.read_vec(address, size).map_err(|source| StructureError::Memory { what, source })
    }

    /// Reads the elements of the `Vec` whose header is at offset `at` of `view`. More than `max` elements are an
    /// error.
    pub fn vec(
        &self,
        what: &'static str,
        view: View<'_>,
        at: u64,
        layout: VecLayout,
        element_size: u64,
        max: usize,
    ) -> Result<Elements, StructureError> {
        let (ptr, len) = vec_header(what, view, at, layout)?;
        self.slice(what, view.address.wrapping_add(at), ptr, len, element_size, max)
    }

    /// Reads `len` elements at `ptr`. `owner` is the address where the pointer and the length were found.
    pub fn slice(
        &self,
        what: &'static str,
        owner: u64,
        ptr: u64,
        len: u64,
        element_size: u64,
        max: usize,
    ) -> Result<Elements, StructureError> {
        let bad = |field, value| StructureError::Implausible { what, address: owner, field, value };
        if len > max as u64 {
            return Err(bad("length", len));
        }
        let size = usize::try_from(element_size).map_err(|_| bad("element size", element_size))?;
        let align = if element_size == 0 { 1 } else { 1 << element_size.trailing_zeros().min(3) };
        // The size of an element only bounds its alignment. The pointer of an empty `Vec` is the alignment itself.
        if ptr == 0 || (len > 0 && !ptr.is_multiple_of(align)) {
            return Err(bad("pointer", ptr));
        }
        let bytes = match len.checked_mul(element_size) {
            Some(0) => Vec::new(),
            Some(total) => self.read(what, ptr, total)?,
            None => return Err(bad("length", len)),
        };
        Ok(Elements { what, address: ptr, size, bytes })
    }
}

impl<'b> View<'b> {
    /// A view of a whole structure that was read from `address`.
    pub fn new(what: &'static str, address: u64, bytes: &'b [u8]) -> View<'b> {
        View { what, address, bytes }
    }

    fn array<const N: usize>(&self, at: u64) -> Result<[u8; N], StructureError> {
        let start = usize::try_from(at).ok();
        let bytes = start.and_then(|s| self.bytes.get(s..s.checked_add(N)?));
        match bytes.and_then(|b| b.try_into().ok()) {
            Some(array) => Ok(array),
            // Only a layout whose offsets lie outside of its own size leads here.
            None => {
                Err(StructureError::Implausible { what: self.what, address: self.address, field: "layout", value: at })
            }
        }
    }

    pub fn u8(&self, at: u64) -> Result<u8, StructureError> {
        self.array::<1>(at).map(|[b]| b)
    }

    pub fn u16(&self, at: u64) -> Result<u16, StructureError> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub fn u32(&self, at: u64) -> Result<u32, StructureError> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub fn u64(&self, at: u64) -> Result<u64, StructureError> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// Reads a `usize` of the target.
    pub fn usize(&self, at: u64) -> Result<usize, StructureError> {
        self.u64(at).map(|v| v as usize)
    }

    /// A view of a structure of `size` bytes at offset `at` inside this one.
    pub fn inner(&self, what: &'static str, at: u64, size: u64) -> Result<View<'b>, StructureError> {
        let range = usize::try_from(at).ok().and_then(|s| Some(s..s.checked_add(usize::try_from(size).ok()?)?));
        match range.and_then(|r| self.bytes.get(r)) {
            Some(bytes) => Ok(View { what, address: self.address.wrapping_add(at), bytes }),
            None => Err(StructureError::Implausible { what, address: self.address, field: "layout", value: at }),
        }
    }

    pub fn bad(&self, field: &'static str, value: u64) -> StructureError {
        StructureError::Implausible { what: self.what, address: self.address, field, value }
    }
}
