//! Wasmtime: what its compiled code says about itself.
//!
//! Compiled code lies in one contiguous *image*, an ELF file that is mapped as it is (a `.cwasm` file is the same bytes).
//! These modules read it. They touch nothing but the bytes they are given, from a file or through
//! [`Memory`](crate::target::Memory).
//!
//! | module | reads | layout depends on the version |
//! |---|---|---|
//! | [`image`] | ELF header, sections, version, symbols | no |
//! | [`addrmap`] | `.wasmtime.addrmap`: code offset -> offset in the Wasm file | two formats, told apart by structure |
//! | [`frame_table`] | `.wasmtime.frames`: code offset -> locals and operand stack (`guest_debug`) | two formats, told apart by structure |
//! | [`dwarf`] | `.debug_*`: code offset -> source functions, lines, variables (`debug_info`) | no |
//! | [`info`] | `.wasmtime.info`: modules, types, functions, names | with nearly every major |
//! | [`offsets`] | where an instance (`VMContext`) and a store keep what | at 37, 38, 39, 43, 45, 46, 47, 48 |
//!
//! What does not depend on the version works for any; the rest is for the versions of [`version`], and an unknown one is
//! an error that says so.

pub mod addrmap;
pub mod dwarf;
pub mod frame_table;
pub mod image;
pub mod info;
mod leb;
pub mod offsets;
pub mod postcard;
mod shape;
#[cfg(test)]
mod testing;
pub mod version;

pub use version::Version;
