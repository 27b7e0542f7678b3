//! Who hears of the progress of work that may take long. The library itself writes nothing to anybody: a caller who
//! wants to show progress gives a receiver of its own.

/// A receiver of reports on how far some work is.
pub trait Progress {
    /// Tells that `done` of `total` are done. Both count bytes, or whatever `what` counts; a `total` of 0 means that
    /// the total is not known. A call is cheap enough for an inner loop that works on pages.
    fn tick(&self, what: &str, done: u64, total: u64);
    /// Tells what is being waited for, such as an answer of a server, which has no size. It is called again and again.
    fn doing(&self, what: &str) {
        let _ = what;
    }
    /// Tells that the work is over. What was printed about it goes away.
    fn finish(&self);
}

/// A receiver that reports nothing to anybody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn tick(&self, _: &str, _: u64, _: u64) {}
    fn finish(&self) {}
}
