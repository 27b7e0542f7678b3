//! How long an answer took (`--timing`).

use super::json;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long the parts of an answer took, in milliseconds by the clock, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Timing {
    /// How long the process was stopped, in all where it was stopped more than once, a part of `reading_ms`; of threads that never stopped, and in a core, null.
    pub stopped_ms: Option<f64>,
    /// Capturing the process, or opening the core, and opening the files that it runs. With `--settle` also the search
    /// for the place to step to, and where the process may have loaded code meanwhile, all that was read before the last stop.
    #[serde(default = "json::not_a_number", deserialize_with = "json::or_nan")]
    pub reading_ms: f64,
    /// Walking the stacks, and finding the modules on them.
    #[serde(default = "json::not_a_number", deserialize_with = "json::or_nan")]
    pub walking_ms: f64,
    /// Names, lines, locals and operands.
    #[serde(default = "json::not_a_number", deserialize_with = "json::or_nan")]
    pub symbolizing_ms: f64,
    /// Making the output and writing it. Null in JSON, which is made before it is over.
    pub printing_ms: Option<f64>,
}

/// Prints the times as one line for people.
impl std::fmt::Display for Timing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(stopped) = self.stopped_ms {
            write!(f, "stopped {stopped:.3} ms, ")?;
        }
        write!(f, "reading {:.3} ms, walking {:.3} ms", self.reading_ms, self.walking_ms)?;
        write!(f, ", symbolizing {:.3} ms", self.symbolizing_ms)?;
        match self.printing_ms {
            Some(printing) => write!(f, ", printing {printing:.3} ms"),
            None => Ok(()),
        }
    }
}

/// A duration in milliseconds, as [`Timing`] has it.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
