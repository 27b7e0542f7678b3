//! Answers about a running process that are proven to belong to one instant.

use super::outcome::Outcome;
use crate::error::Error;
use crate::limits;
use crate::process::files;
use crate::process::live::{CaptureOptions, LiveTarget, ReadSet};
use crate::process::objects::{Objects, SearchPaths};
use crate::process::{Mapping, Target, ThreadId};
use crate::report::{self, FrameKind};
use std::time::Duration;

/// The message for what is missing because a module was unloaded before it was read.
pub(super) const GONE: &str =
    "the module was gone before it could be read: try again, or take a core (gcore PID) and use wstate core";

/// The error for an answer of which something is missing because a module was unloaded before it was read.
pub(super) fn gone() -> Error {
    Error::Changed { what: GONE.to_string() }
}

/// An answer, and how it was obtained.
pub(super) struct Proven<T> {
    pub answer: T,
    /// The capture of the process from which the answer was made.
    pub target: LiveTarget,
    /// How often the process was stopped; `stood` is for how long in all.
    pub stops: usize,
    pub stood: Duration,
    /// Whether nothing was left out of the answer because it could not be proven.
    pub whole: bool,
}

impl<T> Proven<T> {
    /// The notes about the proof that belong into a report.
    pub fn notes(&self, verbose: bool) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.whole {
            notes.push(format!(
                "the process loaded or unloaded code again and again, or ended; of what is missing here {GONE}"
            ));
        }
        if verbose && self.stops > 1 {
            notes.push(format!(
                "the process was stopped {} times: it may have loaded code while it was looked at",
                self.stops
            ));
        }
        notes
    }
}

/// Looks at a process until the answer is proven. What `attempt` reads at one stop is copied at the next. If the
/// answer is not proven after `limits::MAX_REREADS` attempts, or there is too much to be copied, the last attempt can
/// read what was copied and nothing else. `attempt` returns `None` if it saw before its end that what it read is not
/// proven.
pub(super) fn prove<T>(
    pid: u32,
    mut attempt: impl FnMut(LiveTarget, &mut ReadSet) -> Result<(Option<Result<T, Error>>, LiveTarget), Error>,
) -> Result<Proven<T>, Error> {
    files::helper::begin();
    let mut set = ReadSet::default();
    let mut stood = Duration::ZERO;
    let (mut stops, mut left) = (0, limits::MAX_REREADS);
    let mut last: Option<LiveTarget> = None;
    loop {
        if left == 0 {
            set.seal();
        }
        let target = match (LiveTarget::capture_again(pid, &CaptureOptions::default(), &set), last.take()) {
            (Ok(target), _) => {
                stops += 1;
                target
            }
            // The process has ended meanwhile. What was copied of its stacks is still there, and so are the files
            // that describe them.
            (Err(_), Some(last)) => {
                left = 0;
                last.sealed()
            }
            (Err(e), None) => return Err(e),
        };
        let (answer, target) = attempt(target, &mut set)?;
        stood += target.pause();
        let whole = target.is_proven();
        match answer {
            Some(answer) if whole || left == 0 => {
                let answer = answer.map_err(|e| if whole { e } else { e.with_note(GONE) })?;
                return Ok(Proven { answer, target, stops, stood, whole });
            }
            None if left == 0 => return Err(gone()),
            _ => {}
        }
        set.add_reads_of(&target);
        left = if target.is_too_much() { 0 } else { left - 1 };
        last = Some(target);
    }
}

/// The loaded files of a process. They are kept because they are mostly the same at the next stop.
#[derive(Default)]
pub(super) struct Files(Option<(Vec<Mapping>, Objects)>);

impl Files {
    /// The loaded files of `target`. They are loaded again only if other files are mapped than before, or one had a
    /// problem.
    pub fn of(&mut self, target: &dyn Target, search: &SearchPaths) -> &Objects {
        let mapped: Vec<Mapping> = target.mappings().iter().filter(|m| !m.is_anonymous()).cloned().collect();
        // A file that did not fit may have been compared with something else that was loaded in its place at that
        // moment.
        let kept = self.0.take().filter(|(of, objects)| *of == mapped && objects.iter().all(|o| o.problem.is_none()));
        &self.0.insert(kept.unwrap_or_else(|| (mapped, Objects::load(target, search)))).1
    }
}

/// Why the frames of a thread are not shown if the thread was not stopped and runs in modules that come and go.
const RAN_ON: &str = "it ran while its modules were read, and the process loads and unloads code: try again, or without \
                      --nonblocking";

/// Looks at a process without stopping it. Only threads that sleep in its modules keep them loaded. Where code was
/// loaded or unloaded meanwhile, a thread with Wasm frames is therefore shown only if it slept until the end.
pub(super) fn unstopped(
    pid: u32,
    mut look: impl FnMut(&LiveTarget) -> Result<Outcome, Error>,
) -> Result<Outcome, Error> {
    const ATTEMPTS: usize = 4;
    for left in (0..ATTEMPTS).rev() {
        let target = LiveTarget::observe(pid, &CaptureOptions::default())?;
        let mut outcome = look(&target)?;
        if target.is_proven() {
            return Ok(outcome);
        }
        let ran = target.ran_since();
        let may_be_wrong = |t: &&mut report::Thread| {
            let ran = t.tid.is_some_and(|tid| ran.contains(&ThreadId(tid)));
            ran && t.frames.iter().any(|f| f.kind != FrameKind::Native)
        };
        let wrong: Vec<&mut report::Thread> = outcome.report.threads.iter_mut().filter(may_be_wrong).collect();
        if left > 0 && !wrong.is_empty() {
            continue;
        }
        outcome.gone = !wrong.is_empty();
        for thread in wrong {
            thread.frames.clear();
            thread.end = Some(report::End::no_registers(Some(RAN_ON)));
        }
        if outcome.gone {
            (outcome.classic, outcome.image) = (None, None);
        }
        return Ok(outcome);
    }
    Err(Error::Attach { pid, why: RAN_ON.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Memory;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    /// A process that faults pages in all the time.
    struct Restless(Child);

    impl Drop for Restless {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Restless {
        fn new() -> Restless {
            let mut command = Command::new("sh");
            command.args(["-c", "echo ready; while :; do (:); done"]).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            Restless(child)
        }

        fn pid(&self) -> u32 {
            self.0.id()
        }
    }

    /// Does what `prove` does, for an attempt that needs one capture and nothing else.
    fn once_per_stop<T>(
        pid: u32,
        mut work: impl FnMut(&LiveTarget) -> Result<Option<T>, Error>,
    ) -> Result<Proven<T>, Error> {
        prove(pid, |target, _| Ok((work(&target).transpose(), target)))
    }

    /// Addresses in pages of the process that can be read.
    fn pages(target: &LiveTarget) -> Vec<u64> {
        let all = target.mappings().iter().filter(|m| m.read && m.write && !m.is_anonymous());
        all.chain(target.mappings().iter().filter(|m| m.read && !m.write))
            .flat_map(|m| (m.start..m.end).step_by(0x1000))
            .collect()
    }

    #[test]
    fn what_was_read_is_copied_at_the_next_stop() {
        let process = Restless::new();
        let mut seen = Vec::new();
        let proven = once_per_stop(process.pid(), |target| {
            let all = pages(target);
            let values: Vec<u64> = all.iter().step_by(50).take(3).filter_map(|at| target.read_u64(*at).ok()).collect();
            target.wait_for_a_fault();
            seen.push(values.len());
            Ok(target.prove().then_some(values))
        });
        let proven = proven.unwrap();
        assert!(proven.whole && proven.stops == 2 && seen == [3, 3], "{} {seen:?}", proven.stops);
        assert_eq!(proven.notes(false), Vec::<String>::new());
    }

    #[test]
    fn of_a_process_that_has_ended_the_stacks_are_there() {
        let process = std::cell::RefCell::new(Restless::new());
        let pid = process.borrow().pid();
        let mut looked = 0;
        let proven = once_per_stop(pid, |target| {
            looked += 1;
            let mut process = process.borrow_mut();
            process.0.kill().unwrap();
            process.0.wait().unwrap();
            let sp = target.threads()[0].registers.sp().unwrap();
            Ok(target.prove().then(|| (target.read_u64(sp).is_ok(), target.read_u64(pages(target)[0]).is_ok())))
        });
        let proven = proven.unwrap();
        assert_eq!((proven.answer, proven.stops, looked, proven.whole), ((true, false), 1, 2, false));
    }

    #[test]
    fn there_is_an_end_to_it() {
        let process = Restless::new();
        let mut round = 0;
        let proven = once_per_stop(process.pid(), |target| {
            // Each attempt reads other pages.
            let all = pages(target);
            let these = all.iter().skip(round).step_by(limits::MAX_REREADS + 2);
            let errors: Vec<_> = these.filter_map(|at| target.read_u64(*at).err()).collect();
            round += 1;
            target.wait_for_a_fault();
            Ok(target.prove().then_some(errors))
        });
        let proven = proven.unwrap();
        // It ends sooner if there is too much to be copied.
        assert!(proven.stops == round && (2..=limits::MAX_REREADS + 1).contains(&round) && !proven.whole, "{round}");
        assert!(proven.answer.iter().any(|e| matches!(e, crate::process::MemoryError::Gone { .. })));
        assert!(proven.notes(false)[0].contains("the module was gone before it could be read"));
    }
}
