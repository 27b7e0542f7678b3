//! The tables of a code image, and what they say together about its code.

pub mod addrmap;
pub(super) mod code;
pub mod dwarf;
pub(super) mod exceptions;
pub mod frame_table;
pub(super) mod points;
