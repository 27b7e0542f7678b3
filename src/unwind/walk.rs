//! The walking loop. Policy is in the unwinders; this only asks them in order and knows when to stop.

use super::{Cursor, Next, Trust, UnwindError, Unwinder};
use crate::target::Memory;
use std::collections::HashSet;

/// One physical frame (inlined functions are found later, by symbolization).
#[derive(Clone, Debug)]
pub struct Frame {
    /// Address and registers.
    pub cursor: Cursor,
    /// How they were found.
    pub trust: Trust,
}

/// Why a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The bottom was reached.
    Bottom,
    /// The walk was lost.
    Lost(UnwindError),
    /// The same (pc, sp) came twice; stacks switch, so a sinking sp is normal, but this is a cycle.
    Cycle,
    /// As many frames as were asked for.
    Limit(usize),
}

/// A walked stack, youngest frame first.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The frames.
    pub frames: Vec<Frame>,
    /// Why there are no more.
    pub end: End,
}

/// Walks from `start` to the bottom, asking `unwinders` in order at each frame, for at most `limit` frames.
pub fn walk(start: Cursor, unwinders: &[&dyn Unwinder], memory: &dyn Memory, limit: usize) -> Stack {
    let mut frames: Vec<Frame> = Vec::new();
    let mut seen = HashSet::new();
    let mut current = Frame { cursor: start, trust: Trust::Context };
    loop {
        let at = current.cursor.clone();
        frames.push(current);
        if !seen.insert((at.address.raw(), at.registers.sp())) {
            frames.pop();
            return Stack { frames, end: End::Cycle };
        }
        let next = unwinders.iter().find_map(|u| u.step(&at, memory));
        let (caller, trust) = match next {
            Some(Next::Caller(c, t)) => (c, t),
            Some(Next::Bottom) => return Stack { frames, end: End::Bottom },
            Some(Next::Lost(e)) => return Stack { frames, end: End::Lost(e) },
            None => {
                let e = UnwindError::NoCode { address: at.address.raw() };
                return Stack { frames, end: End::Lost(e) };
            }
        };
        if frames.len() >= limit {
            return Stack { frames, end: End::Limit(limit) };
        }
        current = Frame { cursor: caller, trust };
    }
}
