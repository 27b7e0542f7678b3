//! Finds frames that come again and again, as recursion leaves them on a stack.

use super::{Frame, Hex};
use crate::limits;

/// A stretch of frames that consists of the same `cycle` frames, `times` times in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Position of the stretch's first frame in the list that was given.
    pub at: usize,
    /// Number of frames in one cycle.
    pub cycle: usize,
    /// How often the cycle is there in all: 3 times or more.
    pub times: usize,
}

impl Run {
    /// The position behind the last frame of the stretch.
    pub fn end(&self) -> usize {
        self.at + self.cycle * self.times
    }
}

/// The stretches of `frames` that are worth folding, youngest first. If several cycles begin at the same frame, the
/// cycle that covers the most frames counts, and of several such cycles the shortest. Each frame is compared with at
/// most two times [`limits::MAX_FOLD_CYCLE`] others.
pub fn runs(frames: &[&Frame]) -> Vec<Run> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < frames.len() {
        let rest = &frames[at..];
        let of = |cycle: usize| {
            let again = rest.iter().zip(rest.iter().skip(cycle)).take_while(|(a, b)| is_same(a, b)).count();
            Run { at, cycle, times: 1 + again / cycle }
        };
        let cycles = (1..=limits::MAX_FOLD_CYCLE).map(of).filter(|run| run.times >= 3);
        match cycles.max_by_key(|run| (run.cycle * run.times, std::cmp::Reverse(run.cycle))) {
            Some(run) => {
                at = run.end();
                found.push(run);
            }
            None => at += 1,
        }
    }
    found
}

/// Whether two frames are of the same function, and everything that a report says about one frame it also says about
/// the other, apart from addresses and values.
fn is_same(a: &Frame, b: &Frame) -> bool {
    let about = |f: &Frame| (f.kind, f.trust, f.instance, f.unstopped, f.may_miss_inlined);
    about(a) == about(b) && function(a) == function(b) && a.module == b.module && a.notes == b.notes
}

/// What tells a function from other functions: its name or index, and whether it is inlined. If neither name nor
/// index is known, the frame's program counter takes their place.
fn function(frame: &Frame) -> (Option<&str>, Option<u32>, Option<bool>, Option<Hex>) {
    match &frame.function {
        Some(f) if f.name.is_some() || f.index.or(f.local_index).is_some() => {
            (f.name.as_deref(), f.index.or(f.local_index), f.inlined, None)
        }
        _ => (None, None, None, frame.pc),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FrameKind, Function};

    /// One frame for each letter. The letter is the name of the frame's function.
    fn frames(letters: &str) -> Vec<Frame> {
        let frame = |(i, c): (usize, char)| {
            let mut frame = Frame::new(i as u32, 0x1000 + i as u64, FrameKind::Wasm);
            frame.function = Some(Function { name: Some(c.to_string()), ..Function::default() });
            frame
        };
        letters.chars().enumerate().map(frame).collect()
    }

    fn found(letters: &str) -> Vec<(usize, usize, usize)> {
        let frames = frames(letters);
        runs(&frames.iter().collect::<Vec<_>>()).iter().map(|r| (r.at, r.cycle, r.times)).collect()
    }

    #[test]
    fn cycles_are_found_and_what_is_no_cycle_is_none() {
        assert_eq!(found(""), []);
        assert_eq!(found("abcdef"), []);
        assert_eq!(found("abbc"), [], "two are not worth a line");
        assert_eq!(found("abbbc"), [(1, 1, 3)]);
        assert_eq!(found("aaaaaa"), [(0, 1, 6)], "the shortest cycle");
        assert_eq!(found("xababababy"), [(1, 2, 4)]);
        assert_eq!(found("xabababay"), [(1, 2, 3)], "the half cycle at the end stays");
        assert_eq!(found("aaabaaabaaab"), [(0, 4, 3)], "the cycle that covers most");
        assert_eq!(found("aaaabcbcbcd"), [(0, 1, 4), (4, 2, 3)]);
    }

    #[test]
    fn cycles_have_a_longest_length() {
        let letters: String = ('a'..).take(limits::MAX_FOLD_CYCLE + 1).collect();
        assert_eq!(found(&letters.repeat(5)), []);
        assert_eq!(found(&letters[1..].repeat(5)), [(0, limits::MAX_FOLD_CYCLE, 5)]);
    }

    #[test]
    fn frames_that_differ_in_more_than_values_stay() {
        let mut all = frames("aaaaaaa");
        all[3].notes.push("a signal handler was called here".into());
        let found = runs(&all.iter().collect::<Vec<_>>());
        assert_eq!(found, [Run { at: 0, cycle: 1, times: 3 }, Run { at: 4, cycle: 1, times: 3 }]);
        let mut all = frames("aaaaaaa");
        all[3].may_miss_inlined = true;
        assert_eq!(runs(&all.iter().collect::<Vec<_>>()).len(), 2);
        // If functions have no names, the program counters tell them apart.
        let mut all = frames("aaaa");
        all.iter_mut().for_each(|f| f.function = None);
        assert_eq!(runs(&all.iter().collect::<Vec<_>>()), []);
        all.iter_mut().for_each(|f| f.pc = Some(Hex(1)));
        assert_eq!(runs(&all.iter().collect::<Vec<_>>()).len(), 1);
    }
}
