//! Names and source positions.

mod entries;
pub mod native;
pub(crate) mod nesting;
