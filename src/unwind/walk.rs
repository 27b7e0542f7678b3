//! The walking loop. All policy is in the unwinders; the loop only asks them in order and knows when to stop.

use super::{Cursor, Next, Trust, UnwindError, Unwinder};
use crate::process::Memory;
use std::collections::HashSet;

/// One physical frame (inlined functions are found later, by symbolization).
#[derive(Clone, Debug)]
pub struct Frame {
    /// Address and registers of the frame.
    pub cursor: Cursor,
    /// How the registers were found.
    pub trust: Trust,
}

/// Why a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The bottom of the stack was reached.
    Bottom,
    /// The caller of the last frame could not be found.
    Lost(UnwindError),
    /// The same pair of pc and sp came a second time, which is a cycle. A sinking sp alone is normal, because stacks
    /// are switched.
    Cycle,
    /// The walk has as many frames as were asked for; the number is that limit.
    Limit(usize),
}

/// A walked stack, youngest frame first.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The frames that were found.
    pub frames: Vec<Frame>,
    /// Why there are no more frames.
    pub end: End,
}

/// Walks from `start` to the bottom of the stack. At each frame `unwinders` are asked in order. At most `limit`
/// frames are found.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{CodeAddress, x64};
    use crate::unwind::testing::{Pieces, cursor};

    /// An unwinder whose answer is a function of the frame's pc and sp.
    struct Script(fn(u64, u64) -> Option<Next>);

    impl Unwinder for Script {
        fn step(&self, at: &Cursor, _: &dyn Memory) -> Option<Next> {
            (self.0)(at.address.raw(), at.registers.sp().unwrap_or(0))
        }
    }

    fn to(pc: u64, sp: u64) -> Option<Next> {
        let mut next = cursor(pc, &[(x64::RSP, sp)]);
        next.address = CodeAddress::Return(pc);
        Some(Next::Caller(next, Trust::Cfi))
    }

    fn run(unwinders: &[&dyn Unwinder], limit: usize) -> (Vec<u64>, End) {
        let stack = walk(cursor(1, &[(x64::RSP, 100)]), unwinders, &Pieces::default(), limit);
        (stack.frames.iter().map(|f| f.cursor.address.raw()).collect(), stack.end)
    }

    #[test]
    fn unwinders_are_asked_in_order_until_one_knows_the_code() {
        let first = Script(|pc, _| if pc == 2 { Some(Next::Bottom) } else { None });
        let second = Script(|pc, sp| to(pc + 1, sp + 8));
        assert_eq!(run(&[&first, &second], 10), (vec![1, 2], End::Bottom));
    }

    #[test]
    fn a_sinking_stack_pointer_is_no_cycle_but_the_same_place_is() {
        let switching = Script(|pc, sp| if pc < 4 { to(pc + 1, sp - 8) } else { to(2, 92) });
        assert_eq!(run(&[&switching], 10), (vec![1, 2, 3, 4], End::Cycle));
        let recursion = Script(|_, sp| if sp < 140 { to(1, sp + 8) } else { Some(Next::Bottom) });
        assert_eq!(run(&[&recursion], 10), (vec![1; 6], End::Bottom));
    }

    #[test]
    fn what_was_found_before_the_end_is_kept() {
        let endless = Script(|pc, sp| to(pc + 1, sp + 8));
        assert_eq!(run(&[&endless], 3), (vec![1, 2, 3], End::Limit(3)));
        let two = Script(|pc, sp| if pc == 1 { to(2, sp) } else { None });
        assert_eq!(run(&[&two], 3), (vec![1, 2], End::Lost(UnwindError::NoCode { address: 2 })));
        let error = UnwindError::UnknownRegister { register: "rbp" };
        let lost = Script(|_, _| Some(Next::Lost(UnwindError::UnknownRegister { register: "rbp" })));
        assert_eq!(run(&[&lost], 3), (vec![1], End::Lost(error)));
    }
}
