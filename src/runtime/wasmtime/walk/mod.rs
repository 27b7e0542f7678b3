//! Walks through compiled code: which frames are at an address, who called them, and which instance they run in.

pub(super) mod anchor;
pub(super) mod chain;
pub(super) mod exit;
pub(super) mod flow;
pub(super) mod frame;
pub(super) mod recover;
pub(super) mod waiting;
