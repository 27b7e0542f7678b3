//! Whether a thread can be stepped to a place where more is known of it.

use super::Options;
use crate::process::Target;

/// What could be done about a thread that is between two points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stepping {
    /// Nothing can be done: the thread is in a core, or was not stopped.
    Impossible,
    /// The thread can be stepped, but nobody asked for that.
    Possible,
    /// The thread can be stepped, and the user asked for that.
    Asked,
}

impl Stepping {
    pub(super) fn of(target: &dyn Target, options: &Options) -> Stepping {
        match options.settle {
            _ if !target.is_live() || options.nonblocking => Stepping::Impossible,
            true => Stepping::Asked,
            false => Stepping::Possible,
        }
    }
}
