//! A whole module in the text format.

use std::sync::Arc;

/// The text, and where in it everything is.
pub struct Printed {
    /// The text.
    pub text: Arc<str>,
    /// File offsets of functions, declarations and operators with their lines, 1-based, ascending.
    lines: Vec<(u64, u32)>,
}

impl Printed {
    /// `None` if the bytes are no module that can be printed.
    pub(super) fn of(bytes: &[u8]) -> Option<Printed> {
        let mut text = String::new();
        let mut lines = Vec::new();
        let mut number = 0u32;
        for (offset, line) in wasmprinter::Config::new().offsets_and_lines(bytes, &mut text).ok()? {
            // The printer's lines may hold line ends themselves (data, comments).
            number = number.saturating_add(1);
            if let Some(offset) = offset {
                lines.push((offset, number));
            }
            number = number.saturating_add(line.trim_end_matches('\n').matches('\n').count() as u32);
        }
        lines.sort_by_key(|(offset, _)| *offset);
        Some(Printed { text: text.into(), lines })
    }

    /// The line of what is at a file offset.
    pub fn line(&self, offset: u64) -> Option<u32> {
        let i = self.lines.binary_search_by_key(&offset, |(o, _)| *o).ok()?;
        Some(self.lines.get(i)?.1)
    }
}
