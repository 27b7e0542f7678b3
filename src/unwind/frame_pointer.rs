//! Frame pointer chains, the last resort.
