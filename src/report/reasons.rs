//! Reasons for missing values that hold for a whole module, so that text says them once instead of at each frame.

use super::{Frame, FrameKind, Report, Why};
use crate::runtime::NO_POSITIONS;
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
    /// Number of its frames, and of those whose positions were not recorded.
    frames: (usize, usize),
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

    /// Whether no frame of the module has a position, because none was recorded.
    pub fn has_no_positions(self) -> bool {
        self.frames.0 == self.frames.1 && self.frames.0 != 0
    }

    /// Whether the module says this note for its frames.
    pub fn says(self, note: &str) -> bool {
        note == NO_POSITIONS && self.has_no_positions()
    }

    /// Sentences about what is not known in `place`, which names the frames of the module, and why. The same reason is
    /// there once.
    pub fn sentences(self, place: &str) -> impl Iterator<Item = String> {
        let (locals, stack) = (self.locals(), self.stack());
        let both = locals.filter(|why| Some(*why) == stack);
        let one = |what, why: Option<&'a Why>| why.filter(|_| both.is_none()).map(|why| (what, why));
        let both = both.map(|why| ("locals and operand stacks are", why));
        let values = [both, one("locals are", locals), one("operand stacks are", stack)].into_iter().flatten();
        let values = values.map(move |(what, why)| format!("{what} not known in {place}: {why}"));
        let positions = NO_POSITIONS.split_once(": ").filter(|_| self.has_no_positions());
        values.chain(positions.map(move |(_, why)| format!("positions are not known in {place}: {why}")))
    }
}

/// The reasons of all modules that have any.
#[derive(Clone, Debug, Default)]
pub struct Reasons<'a>(BTreeMap<u32, OfModule<'a>>);

impl<'a> Reasons<'a> {
    /// Those that the frames of a report share. `values` says whether values are shown: without them there is nothing to
    /// give reasons for.
    pub fn of(report: &'a Report, values: bool) -> Reasons<'a> {
        let mut modules: BTreeMap<u32, OfModule<'a>> = BTreeMap::new();
        for frame in report.threads.iter().flat_map(|thread| &thread.frames) {
            let Some(module) = module(frame) else { continue };
            let of = modules.entry(module).or_default();
            let has_no_position = frame.notes.iter().any(|note| note == NO_POSITIONS);
            of.frames = (of.frames.0 + 1, of.frames.1 + usize::from(has_no_position));
            if values {
                of.locals.add(frame.locals.is_some(), frame.locals_why.as_ref());
                of.stack.add(frame.stack.is_some(), frame.stack_why.as_ref());
            }
        }
        // A module that is not in the report says nothing, so its frames have to.
        modules.retain(|index, of| {
            let has_any = of.locals().is_some() || of.stack().is_some() || of.has_no_positions();
            has_any && report.module(*index).is_some()
        });
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
    use crate::report::{Module, OpPosition, Runtime, RuntimeName, Target, TargetKind, Thread, WasmPosition};

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

    /// The numbers of the modules that are in the report.
    const MODULES: [u32; 2] = [0, 1];

    fn module_of(index: u32) -> Module {
        Module {
            index: Some(index),
            name: None,
            code_start: None,
            code_end: None,
            functions: None,
            tracked: None,
            backend: None,
            routes: Vec::new(),
            checks: Vec::new(),
            wasm_file: None,
            wasm_compared: None,
            problem: None,
        }
    }

    #[test]
    fn frames_of_a_module_that_is_not_in_the_report_speak_for_themselves() {
        let of = |module| {
            let mut frame = frame(module, Err(Why::NoGuestDebug), Err(Why::NoGuestDebug));
            frame.notes = vec![NO_POSITIONS.into()];
            said(vec![frame]).len()
        };
        assert_eq!((of(MODULES[0]), of(7)), (2, 0));
    }

    fn said(frames: Vec<Frame>) -> Vec<(u32, String)> {
        said_with(frames, true)
    }

    fn said_with(frames: Vec<Frame>, values: bool) -> Vec<(u32, String)> {
        let (kind, none) = (TargetKind::Process, None);
        let facts = Default::default();
        let target =
            Target { kind, pid: None, executable: none.clone(), description: none, path: None, signal: None, facts };
        let mut report = Report::new(target);
        let modules = MODULES.map(module_of).to_vec();
        report.runtimes.push(Runtime { name: RuntimeName::Wasmtime, modules });
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
        let reasons = Reasons::of(&report, values);
        let modules = reasons.0.iter().map(|(index, of)| (*index, *of));
        modules.flat_map(|(m, of)| of.sentences("x").map(move |said| (m, said)).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn positions_that_were_not_recorded_are_said_once_if_no_frame_has_one() {
        let mut frame = frame(0, Ok(()), Ok(()));
        assert_eq!(said(vec![frame.clone()]), []);
        let known = frame.clone();
        frame.notes = vec!["another note".into(), NO_POSITIONS.into()];
        let sentence = "positions are not known in x: the module was compiled without generate_address_map";
        for values in [true, false] {
            assert_eq!(said_with(vec![frame.clone(), frame.clone()], values), [(0, sentence.to_string())]);
            assert_eq!(said_with(vec![frame.clone(), known.clone()], values), []);
        }
    }

    #[test]
    fn a_reason_is_said_of_a_module_only_if_it_holds_for_all_of_its_frames() {
        let (debug, untracked) = (Err(Why::NoGuestDebug), Err(Why::NotTracked));
        let both = frame(0, debug.clone(), debug.clone());
        assert_eq!(
            said(vec![both.clone(), both.clone()]),
            [(0, format!("locals and operand stacks are not known in x: {}", Why::NoGuestDebug))]
        );
        let stack = frame(1, Ok(()), untracked.clone());
        assert_eq!(
            said(vec![stack.clone(), both.clone()]),
            [
                (0, format!("locals and operand stacks are not known in x: {}", Why::NoGuestDebug)),
                (1, format!("operand stacks are not known in x: {}", Why::NotTracked))
            ]
        );
        // A frame with a reason of its own speaks for itself, and takes nothing from the others.
        let own = frame(1, Ok(()), Err(Why::BetweenPoints));
        assert_eq!(said(vec![own.clone()]), []);
        assert_eq!(
            said(vec![own, stack.clone()]),
            [(1, format!("operand stacks are not known in x: {}", Why::NotTracked))]
        );
        // One frame knows what the others do not.
        assert_eq!(said(vec![stack.clone(), frame(1, Ok(()), Ok(())), stack]), []);
        let mixed = frame(0, Ok(()), debug.clone());
        assert_eq!(
            said(vec![both.clone(), mixed]),
            [(0, format!("operand stacks are not known in x: {}", Why::NoGuestDebug))]
        );
        // Two reasons of a module contradict each other.
        assert_eq!(said(vec![both.clone(), frame(0, untracked.clone(), untracked)]), []);
        let mut native = both;
        native.kind = FrameKind::Native;
        assert_eq!(said(vec![native]), []);
    }
}
