//! Wasm modules given by the user: names, types, operator positions.
