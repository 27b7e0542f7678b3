//! The question what the threads of a target do.

use super::outcome::Outcome;
use super::{Answer, Session, Source, no_changes, proof};
use crate::error::Error;
use crate::process::files::{self, Steady};
use crate::process::live::LiveTarget;
use crate::process::objects::Objects;
use crate::report::timing::milliseconds;
use crate::runtime::all::Runtimes;
use std::time::Instant;

impl Session<'_> {
    /// Reports the stack of each thread, and the modules that were found.
    ///
    /// # Errors
    /// The target cannot be looked at, has no such thread, or has no image where one is wanted.
    pub fn stacks(&self) -> Result<Outcome, Error> {
        if self.given.is_some() {
            return self.stacks_once();
        }
        let steady = Steady::begin();
        let mut outcome = loop {
            let outcome = self.stacks_once();
            if self.options.settle && self.process().is_some() {
                // The question is not asked again: a thread that was stepped is somewhere else now.
                no_changes(&steady)?;
                break outcome?;
            }
            if !steady.again() {
                break outcome?;
            }
            if let Source::Core { core, .. } = &self.options.source
                && steady.is_changed(core)
            {
                let why = "it was changed while it was read: try again when it is written, or with a copy";
                return Err(Error::Core { path: core.clone(), why: why.to_string() });
            }
        };
        self.progress.finish();
        if steady.is_given_up() {
            let what =
                "the target's files are changed faster than they can be read; try again when they are left alone";
            return Err(Error::Changed { what: what.to_string() });
        }
        // From here on no file is asked for.
        files::helper::rest();
        let notes = steady.notes();
        outcome.refused |= !notes.is_empty();
        outcome.report.notes.extend(notes);
        Ok(outcome)
    }

    fn stacks_once(&self) -> Result<Outcome, Error> {
        match self.process() {
            Some(pid) if self.options.nonblocking => self.stacks_unstopped(pid),
            Some(pid) if self.options.settle => self.stacks_settled(pid),
            _ => self.stacks_of_one_instant(),
        }
    }

    fn stacks_of_one_instant(&self) -> Result<Outcome, Error> {
        let began = Instant::now();
        let found = self.found.for_a_question();
        let answer = self.ask(|look| {
            let opened = began.elapsed();
            let outcome = look.outcome_of_one_instant(&mut Runtimes::new(&found))?;
            Ok(outcome.map(|outcome| outcome.read_within(opened)))
        })?;
        Ok(self.proven(answer))
    }

    /// Steps one thread of a process, and then reports its stacks.
    fn stacks_settled(&self, pid: u32) -> Result<Outcome, Error> {
        let began = Instant::now();
        let (search, found) = (self.search_paths()?, self.found.for_a_question());
        let mut files = proof::Files::default();
        let proven = proof::prove(pid, |target, set| {
            let objects = files.of(&target, &search);
            let opened = began.elapsed();
            let (outcome, target) = self.settle(target, objects, &found, set)?;
            Ok((outcome.map(|outcome| outcome.map(|outcome| outcome.read_within(opened))), target))
        })?;
        Ok(self.proven(Answer::of_process(proven)))
    }

    /// Adds to a report how it was obtained.
    fn proven(&self, answer: Answer<'_, Outcome>) -> Outcome {
        let verbose = self.options.verbose;
        let (whole, stood, notes) = (answer.from.is_whole(), answer.from.stood(), answer.from.notes(verbose));
        let mut outcome = Outcome { gone: !whole, ..answer.value };
        outcome.report.notes.extend(notes);
        let Some(stood) = stood.map(milliseconds) else { return outcome };
        if let Some(timing) = &mut outcome.report.timing {
            timing.stopped_ms = Some(stood);
        }
        if verbose {
            outcome.report.notes.push(format!("the threads stood for {stood:.3} ms"));
        }
        outcome
    }

    /// Reports the stacks of a process that is not stopped for it.
    fn stacks_unstopped(&self, pid: u32) -> Result<Outcome, Error> {
        let began = Instant::now();
        let (search, found) = (self.search_paths()?, self.found.for_a_question());
        let mut outcome = proof::unstopped(pid, |target: &LiveTarget| {
            let objects = Objects::load(target, &search);
            let opened = began.elapsed();
            let outcome = self.look(target, &objects).outcome(&mut Runtimes::new(&found))?;
            Ok(outcome.read_within(opened))
        })?;
        let report = &mut outcome.report;
        if report.runtimes.is_empty() && report.threads.iter().all(|t| t.frames.is_empty()) {
            let note = "modules are looked for where stacks lead to code that nothing explains: of threads that run there \
                        is no stack (without --nonblocking there is), so there may be some that were not found";
            report.notes.push(note.to_string());
        }
        Ok(outcome)
    }
}
