//! Shows a user how far work is that may take longer than one waits without a word.

use crate::progress::Progress;
use std::cell::{Cell, RefCell};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Time from the start of the work in which nothing is reported: short work ends without a report.
const QUIET: Duration = Duration::from_secs(1);
/// Time between two reports.
const INTERVAL: Duration = Duration::from_millis(200);
/// Time between two reports that go to a file, where they do not overwrite each other.
const INTERVAL_IN_FILE: Duration = Duration::from_secs(5);

/// A receiver that writes to a terminal (one line that is overwritten) or to a file (one line per report).
pub struct Reporter<W> {
    out: RefCell<W>,
    terminal: bool,
    enabled: bool,
    start: Instant,
    last: Cell<Option<Instant>>,
}

/// Creates a reporter that writes to standard error, if standard error is a terminal or the user asked for it
/// (`verbose`). It writes nothing in the first second.
pub fn stderr(verbose: bool) -> Reporter<std::io::Stderr> {
    let err = std::io::stderr();
    let terminal = err.is_terminal();
    Reporter::new(err, terminal, terminal || verbose, Instant::now())
}

impl<W: Write> Reporter<W> {
    /// Creates a reporter for work that began at `start`. `terminal` says whether `out` is a terminal; without
    /// `enabled` nothing is written.
    pub fn new(out: W, terminal: bool, enabled: bool, start: Instant) -> Reporter<W> {
        Reporter { out: out.into(), terminal, enabled, start, last: Cell::new(None) }
    }

    fn tick_at(&self, now: Instant, what: &str, done: u64, total: u64) {
        let amount = || {
            if total == 0 {
                return format!("{} MiB", done >> 20);
            }
            // `done * 100` may not fit into a u64.
            let percent = (u128::from(done) * 100 / u128::from(total)).min(100);
            format!("{percent}% of {} MiB", total.div_ceil(1 << 20))
        };
        self.line_at(now, || format!("{what}: {}", amount()));
    }

    fn line_at(&self, now: Instant, text: impl FnOnce() -> String) {
        if !self.enabled || now.saturating_duration_since(self.start) < QUIET {
            return;
        }
        let interval = if self.terminal { INTERVAL } else { INTERVAL_IN_FILE };
        if self.last.get().is_some_and(|l| now.saturating_duration_since(l) < interval) {
            return;
        }
        self.last.set(Some(now));
        let line = format!("wstate: {}", text());
        // Progress that cannot be written is no reason to stop the work.
        let mut out = self.out.borrow_mut();
        let _ = if self.terminal { write!(out, "\r{line}\x1b[K") } else { writeln!(out, "{line}") };
        let _ = out.flush();
    }
}

impl<W: Write> Progress for Reporter<W> {
    fn tick(&self, what: &str, done: u64, total: u64) {
        self.tick_at(Instant::now(), what, done, total);
    }

    fn doing(&self, what: &str) {
        self.line_at(Instant::now(), || what.to_string());
    }

    fn finish(&self) {
        if self.terminal && self.last.take().is_some() {
            let mut out = self.out.borrow_mut();
            let _ = write!(out, "\r\x1b[K");
            let _ = out.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(terminal: bool, enabled: bool, ticks: &[(u64, u64, u64)]) -> String {
        let start = Instant::now();
        let r = Reporter::new(Vec::new(), terminal, enabled, start);
        for &(ms, done, total) in ticks {
            r.tick_at(start + Duration::from_millis(ms), "searching the heap", done, total);
        }
        r.finish();
        String::from_utf8(r.out.borrow().clone()).unwrap()
    }

    #[test]
    fn nothing_in_the_first_second_and_nothing_without_a_reader() {
        assert_eq!(lines(true, true, &[(0, 0, 9 << 20), (999, 8 << 20, 9 << 20)]), "");
        assert_eq!(lines(false, false, &[(5000, 1, 2)]), "");
    }

    #[test]
    fn a_terminal_line_is_overwritten_and_removed() {
        let out = lines(true, true, &[(1000, 1 << 20, 4 << 20), (1001, 2 << 20, 4 << 20), (1200, 3 << 20, 4 << 20)]);
        assert_eq!(
            out,
            "\rwstate: searching the heap: 25% of 4 MiB\x1b[K\rwstate: searching the heap: 75% of 4 MiB\x1b[K\r\x1b[K"
        );
    }

    #[test]
    fn a_file_gets_few_lines_and_an_unknown_total_no_percentage() {
        let out = lines(false, true, &[(1000, 1 << 20, 0), (5999, 2 << 20, 0), (6000, u64::MAX, u64::MAX)]);
        assert_eq!(out, "wstate: searching the heap: 1 MiB\nwstate: searching the heap: 100% of 17592186044416 MiB\n");
    }
}
