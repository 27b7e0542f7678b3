//! The answer to the question what the threads of a target do.

use crate::report::Report;
use crate::report::timing::milliseconds;
use std::time::Duration;

/// The answer to a question.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The report on what was found.
    pub report: Report,
    /// The selected thread's Wasm frames as the runtime itself prints them, if asked for and there are any.
    pub classic: Option<String>,
    /// The selected thread's `ExecutionStateImage` in bincode, if asked for and there is one.
    pub image: Option<Vec<u8>>,
    /// Whether a file was not used or may not be the right one, so that the answer is not whole; the report's notes
    /// have the reason.
    pub refused: bool,
    /// Whether something is missing because the process went on before it was read; `report.notes` says so.
    pub gone: bool,
    /// What the user can do to learn more. It is not part of the report, which is the same for a process and its
    /// core.
    pub hint: Option<&'static str>,
}

impl Outcome {
    /// Adds `time`, which was spent before, to the time for reading.
    pub(super) fn read_within(mut self, time: Duration) -> Outcome {
        if let Some(timing) = &mut self.report.timing {
            timing.reading_ms += milliseconds(time);
        }
        self
    }
}
