//! Prints a whole module in the text format.

use std::sync::Arc;

/// A module in the text format, with the line of each of its parts.
pub struct Printed {
    /// The module's text.
    pub text: Arc<str>,
    /// Pairs of a file offset (of a function, a declaration or an operator) and its line in the text, counted from 1,
    /// in ascending order.
    lines: Vec<(u64, u32)>,
}

impl Printed {
    /// Prints a module. `None` if the bytes are no module that can be printed.
    pub(super) fn of(bytes: &[u8]) -> Option<Printed> {
        let mut text = String::new();
        let mut lines = Vec::new();
        let mut number = 0u32;
        for (offset, line) in wasmprinter::Config::new().offsets_and_lines(bytes, &mut text).ok()? {
            // A line of the printer may itself hold line ends (in data and comments).
            number = number.saturating_add(1);
            if let Some(offset) = offset {
                lines.push((offset, number));
            }
            number = number.saturating_add(line.trim_end_matches('\n').matches('\n').count() as u32);
        }
        lines.sort_by_key(|(offset, _)| *offset);
        Some(Printed { text: text.into(), lines })
    }

    /// The line, counted from 1, of the part of the module that is at a file offset. `None` if nothing is printed for
    /// that offset.
    pub fn line(&self, offset: u64) -> Option<u32> {
        let i = self.lines.binary_search_by_key(&offset, |(o, _)| *o).ok()?;
        Some(self.lines.get(i)?.1)
    }
}
