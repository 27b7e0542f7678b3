//! Reasons for missing values that hold for a whole module, so that text says them once instead of at each frame.

use super::{Frame, FrameKind, Report, Why};
use std::collections::BTreeMap;

/// The reason why no frame of a module has its locals, or its operand stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shared<'a> {
    /// No frame has such a reason.
    #[default]
    None,
    /// Every frame has the values, or this reason, or one that is its own.
    One(&'a Why),
    /// The frames differ: some have the values, or there are several reasons. Each has to speak for itself.
    Different,
}

impl<'a> Shared<'a> {
    /// Takes in what one more frame has.
    fn add(&mut self, is_known: bool, why: Option<&'a Why>) {
        let module = why.filter(|why| !is_known && why.is_of_module());
        *self = match (*self, module) {
            (Shared::Different, _) => Shared::Different,
            (_, None) if is_known => Shared::Different,
            (same, None) => same,
            (Shared::None, Some(why)) => Shared::One(why),
            (Shared::One(before), Some(why)) if before == why => Shared::One(before),
            (Shared::One(_), Some(_)) => Shared::Different,
        };
    }

    fn why(self) -> Option<&'a Why> {
        match self {
            Shared::One(why) => Some(why),
            _ => None,
        }
    }
}

/// The reasons of one module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfModule<'a> {
    locals: Shared<'a>,
    stack: Shared<'a>,
}

impl<'a> OfModule<'a> {
    /// Why no frame of the module has locals.
    pub fn locals(self) -> Option<&'a Why> {
        self.locals.why()
    }

    /// Why no frame of the module has an operand stack.
    pub fn stack(self) -> Option<&'a Why> {
        self.stack.why()
    }

    /// What is not known in frames of the module, and why. The same reason is there once.
    pub fn sentences(self) -> impl Iterator<Item = (&'static str, &'a Why)> {
        let (locals, stack) = (self.locals(), self.stack());
        let both = locals.filter(|why| Some(*why) == stack);
        let one = |what, why: Option<&'a Why>| why.filter(|_| both.is_none()).map(|why| (what, why));
        let both = both.map(|why| ("locals and operand stacks are", why));
        [both, one("locals are", locals), one("operand stacks are", stack)].into_iter().flatten()
    }
}

/// The reasons of all modules that have any.
#[derive(Clone, Debug, Default)]
pub struct Reasons<'a>(BTreeMap<u32, OfModule<'a>>);

impl<'a> Reasons<'a> {
    /// Those that the frames of a report share.
    pub fn of(report: &'a Report) -> Reasons<'a> {
        let mut modules: BTreeMap<u32, OfModule<'a>> = BTreeMap::new();
        for frame in report.threads.iter().flat_map(|thread| &thread.frames) {
            let Some(module) = module(frame) else { continue };
            let of = modules.entry(module).or_default();
            of.locals.add(frame.locals.is_some(), frame.locals_why.as_ref());
            of.stack.add(frame.stack.is_some(), frame.stack_why.as_ref());
        }
        modules.retain(|_, of| of.locals().is_some() || of.stack().is_some());
        Reasons(modules)
    }

    /// Those of the module with this number.
    pub fn module(&self, index: u32) -> OfModule<'a> {
        self.0.get(&index).copied().unwrap_or_default()
    }

    /// Those of the module that a frame is of.
    pub fn frame(&self, frame: &Frame) -> OfModule<'a> {
        module(frame).map(|index| self.module(index)).unwrap_or_default()
    }

    /// The modules that have reasons, by number.
    #[cfg(feature = "cli")]
    pub fn modules(&self) -> impl Iterator<Item = (u32, OfModule<'a>)> {
        self.0.iter().map(|(index, of)| (*index, *of))
    }
}

fn module(frame: &Frame) -> Option<u32> {
    frame.wasm.as_ref().filter(|_| frame.kind == FrameKind::Wasm)?.module_index
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::facts::TargetFacts;
    use crate::report::{OpPosition, Target, TargetKind, Thread, WasmPosition};

    fn frame(module: u32, locals: Result<(), Why>, stack: Result<(), Why>) -> Frame {
        let mut frame = Frame::new(0, 0x1000, FrameKind::Wasm);
        frame.wasm = Some(WasmPosition {
            module_index: Some(module),
            op_index: None,
            op_position: OpPosition::Unknown,
            offset: None,
            op: None,
            file: None,
            line: None,
        });
        (frame.locals, frame.locals_why) = (locals.clone().ok().map(|()| Vec::new()), locals.err());
        (frame.stack, frame.stack_why) = (stack.clone().ok().map(|()| Vec::new()), stack.err());
        frame
    }

    fn said(frames: Vec<Frame>) -> Vec<(u32, String)> {
        let (kind, none) = (TargetKind::Process, None);
        let facts = TargetFacts::default();
        let target =
            Target { kind, pid: None, executable: none.clone(), description: none, path: None, signal: None, facts };
        let mut report = Report::new(target);
        // The frames of a module may be on several threads.
        for frame in frames {
            report.threads.push(Thread {
                tid: None,
                name: None,
                frames: vec![frame],
                end: None,
                signal: None,
                state: None,
                notes: Vec::new(),
            });
        }
        let reasons = Reasons::of(&report);
        let modules = reasons.0.iter().map(|(index, of)| (*index, *of));
        modules.flat_map(|(m, of)| of.sentences().map(move |(what, why)| (m, format!("{what}: {why:?}")))).collect()
    }

    #[test]
    fn a_reason_is_said_of_a_module_only_if_it_holds_for_all_of_its_frames() {
        let (debug, untracked) = (Err(Why::NoGuestDebug), Err(Why::NotTracked));
        let both = frame(0, debug.clone(), debug.clone());
        assert_eq!(said(vec![both.clone(), both.clone()]), [(0, "locals and operand stacks are: NoGuestDebug".into())]);
        let stack = frame(1, Ok(()), untracked.clone());
        assert_eq!(
            said(vec![stack.clone(), both.clone()]),
            [
                (0, "locals and operand stacks are: NoGuestDebug".to_string()),
                (1, "operand stacks are: NotTracked".to_string())
            ]
        );
        // A frame with a reason of its own speaks for itself, and takes nothing from the others.
        let own = frame(1, Ok(()), Err(Why::BetweenPoints));
        assert_eq!(said(vec![own.clone()]), []);
        assert_eq!(said(vec![own, stack.clone()]), [(1, "operand stacks are: NotTracked".to_string())]);
        // One frame knows what the others do not.
        assert_eq!(said(vec![stack.clone(), frame(1, Ok(()), Ok(())), stack]), []);
        let mixed = frame(0, Ok(()), debug.clone());
        assert_eq!(said(vec![both.clone(), mixed]), [(0, "operand stacks are: NoGuestDebug".to_string())]);
        // Two reasons of a module contradict each other.
        assert_eq!(said(vec![both.clone(), frame(0, untracked.clone(), untracked)]), []);
        let mut native = both;
        native.kind = FrameKind::Native;
        assert_eq!(said(vec![native]), []);
    }
}
