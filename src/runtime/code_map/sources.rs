//! Where compiled code comes from: files and lines of its `.wasm`, and the functions that were inlined into it.

use super::{CompiledModule, Inlined, Line, SourceFile, SourceLine};
use crate::limits::MAX_INLINE_DEPTH;
use crate::wasm::WasmModule;
use std::collections::HashMap;

/// How many of the last inlined functions at one level are looked through for the one that the next piece of code
/// belongs to. Pieces of the same inlined function are near each other in the code.
const NEAR: usize = 64;

/// A function that a piece of code belongs to: the function that was compiled, or one that was inlined there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Name of the function. The name of the outermost function is the code's own and is not used.
    pub name: String,
    /// The line in this function that the piece comes from. If another function is inlined there, it is the line that
    /// calls that one.
    pub line: Option<SourceLine>,
}

/// The files and lines of one module, numbered for a debugger.
pub struct Sources<'w> {
    wasm: Option<&'w WasmModule>,
    files: Vec<SourceFile>,
    numbers: HashMap<SourceFile, u32>,
}

impl<'w> Sources<'w> {
    /// The files and lines of a `.wasm` file, from its DWARF if it has any, else from its text. Without a file no
    /// line is known.
    pub fn new(wasm: Option<&'w WasmModule>) -> Sources<'w> {
        Sources { wasm, files: Vec::new(), numbers: HashMap::new() }
    }

    /// The number of a file; a file that is new gets the next number.
    pub fn file(&mut self, file: SourceFile) -> u32 {
        let next = self.files.len() as u32;
        *self.numbers.entry(file).or_insert_with_key(|file| {
            self.files.push(file.clone());
            next
        })
    }

    /// The functions at an offset in the `.wasm` file, outermost first. Empty if no line is known there.
    pub fn scopes(&mut self, offset: u64) -> Vec<Scope> {
        let Some(wasm) = self.wasm else { return Vec::new() };
        if !wasm.has_sources() {
            let line = wasm.printed().and_then(|printed| printed.line(offset));
            let scope = |line| {
                let line = SourceLine { file: self.file(SourceFile::Text), line };
                Scope { name: String::new(), line: Some(line) }
            };
            return line.map(scope).into_iter().collect();
        }
        let frames = wasm.source(offset).into_iter().rev();
        frames
            .map(|frame| Scope {
                name: frame.function.unwrap_or_default(),
                line: frame.file.zip(frame.line).and_then(|(path, line)| self.line(path, line)),
            })
            .collect()
    }

    /// File and line of the innermost function at an offset in the `.wasm` file.
    pub fn line_at(&mut self, offset: u64) -> Option<SourceLine> {
        self.scopes(offset).pop()?.line
    }

    /// A line of a source file. `None` for line 0, which stands for a line that is not known.
    pub fn line(&mut self, path: String, line: u32) -> Option<SourceLine> {
        (line != 0).then(|| SourceLine { file: self.file(SourceFile::Path(path)), line })
    }

    /// Gives the files, and the text if a line refers to it, to the module.
    pub fn finish(self, out: &mut CompiledModule) {
        let printed = self.wasm.filter(|_| self.files.contains(&SourceFile::Text)).and_then(WasmModule::printed);
        out.text = printed.map(|printed| printed.text.clone());
        out.files = self.files;
    }
}

/// Lines and inlined functions of code that is made of `pieces`. Each piece has the offset where it begins and the
/// functions that it belongs to, outermost first; the functions are empty if nothing is known. Offsets are ascending,
/// and a piece ends where the next one begins or at `len`.
pub fn lay_out(pieces: &[(u32, Vec<Scope>)], len: u32) -> (Vec<Line>, Vec<Inlined>) {
    let (mut lines, mut inlined) = (Vec::<Line>::new(), Vec::new());
    for (i, (from, scopes)) in pieces.iter().enumerate() {
        let to = pieces.get(i + 1).map_or(len, |p| p.0).min(len);
        if *from >= to {
            continue;
        }
        let known = scopes.last().and_then(|s| s.line);
        // A piece without a line ends the line of the piece before.
        let line = known.or_else(|| lines.last().map(|l| SourceLine { file: l.at.file, line: 0 }));
        if let Some(at) = line.filter(|at| lines.last().is_none_or(|l| l.at != *at)) {
            lines.push(Line { offset: *from, at, prologue_end: false, statement: true });
        }
        if let Some((own, rest)) = scopes.split_first() {
            insert(&mut inlined, own.line, rest, (*from, to), MAX_INLINE_DEPTH);
        }
    }
    (lines, inlined)
}

/// Moves the beginning of lines behind code that does nothing, where the line goes on behind that code. `idle` are
/// the ranges of offsets of such code, ascending and disjoint; `len` is the size of the whole code in bytes.
pub fn begin_behind_idle(lines: &mut Vec<Line>, idle: &[(u32, u32)], len: u32) {
    let mut out = Vec::with_capacity(lines.len());
    for (i, line) in lines.iter().enumerate() {
        let next = lines.get(i + 1).map_or(len, |l| l.offset);
        let first = idle.partition_point(|piece| piece.0 < line.offset);
        let mut end = line.offset;
        for &(from, to) in idle.get(first..).unwrap_or_default() {
            if from != end {
                break;
            }
            end = to;
        }
        let goes_on = line.offset < end && end < next && line.at.line != 0;
        out.push(Line { statement: line.statement && !goes_on, ..*line });
        if goes_on {
            out.push(Line { offset: end, ..*line });
        }
    }
    *lines = out;
}

/// Marks the offset from which on every local is in the place that it has in the body.
pub fn end_prologue(lines: &mut Vec<Line>, offset: u32) {
    let Some(before) = lines.partition_point(|l| l.offset <= offset).checked_sub(1) else { return };
    match lines.get_mut(before) {
        Some(line) if line.offset == offset => line.prologue_end = true,
        Some(line) => {
            let row = Line { offset, prologue_end: true, statement: true, ..*line };
            lines.insert(before + 1, row);
        }
        None => {}
    }
}

fn insert(level: &mut Vec<Inlined>, call: Option<SourceLine>, scopes: &[Scope], range: (u32, u32), left: usize) {
    let (Some((scope, rest)), Some(left)) = (scopes.split_first(), left.checked_sub(1)) else { return };
    let near = level.len().saturating_sub(NEAR);
    let known = level[near..].iter().position(|i| i.name == scope.name && i.call == call);
    let at = known.map_or(level.len(), |i| near + i);
    if known.is_none() {
        level.push(Inlined { name: scope.name.clone(), call, ..Inlined::default() });
    }
    let Some(one) = level.get_mut(at) else { return };
    match one.ranges.last_mut() {
        Some(last) if last.1 == range.0 => last.1 = range.1,
        _ => one.ranges.push(range),
    }
    insert(&mut one.inner, scope.line, rest, range, left);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(name: &str, line: u32) -> Scope {
        Scope { name: name.into(), line: (line != 0).then_some(SourceLine { file: 0, line }) }
    }

    #[test]
    fn pieces_become_lines_and_a_tree() {
        let run = |line| scope("run", line);
        let pieces = [
            (0, Vec::new()),
            (2, vec![run(1)]),
            (4, vec![run(2), scope("mid", 10)]),
            (6, vec![run(2), scope("mid", 11), scope("leaf", 20)]),
            // This is one more instruction of the same call of the same function.
            (8, vec![run(2), scope("mid", 11), scope("leaf", 20)]),
            (9, Vec::new()),
            (10, vec![run(2), scope("mid", 10)]),
            // This is another call.
            (12, vec![run(3), scope("mid", 0)]),
            (14, vec![run(4)]),
        ];
        let (lines, inlined) = lay_out(&pieces, 20);
        let lines: Vec<(u32, u32)> = lines.iter().map(|l| (l.offset, l.at.line)).collect();
        assert_eq!(lines, [(2, 1), (4, 10), (6, 20), (9, 0), (10, 10), (12, 0), (14, 4)]);
        let call = |line| Some(SourceLine { file: 0, line });
        let leaf = Inlined { name: "leaf".into(), ranges: vec![(6, 9)], call: call(11), inner: Vec::new() };
        let first = Inlined { name: "mid".into(), ranges: vec![(4, 9), (10, 12)], call: call(2), inner: vec![leaf] };
        let second = Inlined { name: "mid".into(), ranges: vec![(12, 14)], call: call(3), inner: Vec::new() };
        assert_eq!(inlined, [first, second]);
    }

    #[test]
    fn the_end_of_the_prologue_is_a_row() {
        let at = SourceLine { file: 0, line: 7 };
        let row = |offset, prologue_end| Line { offset, at, prologue_end, statement: true };
        for (offset, expected) in [
            (1, vec![row(2, false), row(9, false)]),
            (2, vec![row(2, true), row(9, false)]),
            (5, vec![row(2, false), row(5, true), row(9, false)]),
        ] {
            let mut lines = vec![row(2, false), row(9, false)];
            end_prologue(&mut lines, offset);
            assert_eq!(lines, expected);
        }
    }

    #[test]
    fn a_line_begins_behind_what_does_nothing() {
        let row =
            |offset, line, statement| Line { offset, at: SourceLine { file: 0, line }, prologue_end: false, statement };
        let lines = [row(0, 5, true), row(10, 6, true), row(20, 7, true), row(30, 8, true), row(40, 0, true)];
        // The cases: two pieces side by side, one in the middle of a line, a line that has no other code (alone and
        // with a second piece behind it), code of no line, and a piece that is exactly one line.
        for (idle, expected) in [
            (vec![(10, 12), (12, 14)], vec![(10, 6, false), (14, 6, true)]),
            (vec![(12, 14)], vec![(10, 6, true)]),
            (vec![(10, 20)], vec![(10, 6, true)]),
            (vec![(10, 20), (20, 22)], vec![(10, 6, true), (20, 7, false), (22, 7, true)]),
            (vec![(40, 45)], vec![(40, 0, true)]),
            (vec![(30, 40)], vec![(30, 8, true)]),
        ] {
            let mut all = lines.to_vec();
            begin_behind_idle(&mut all, &idle, 50);
            for (offset, line, statement) in expected {
                assert!(all.contains(&row(offset, line, statement)), "{idle:?}: {offset} in {all:?}");
            }
            assert!(all.is_sorted_by_key(|l| l.offset));
        }
    }

    #[test]
    fn nothing_is_laid_out_behind_the_end_or_without_a_line() {
        assert_eq!(lay_out(&[(0, Vec::new()), (3, vec![scope("run", 0)])], 9), (Vec::new(), Vec::new()));
        let (lines, inlined) = lay_out(&[(9, vec![scope("run", 1), scope("f", 2)])], 9);
        assert!(lines.is_empty() && inlined.is_empty());
        let deep = vec![scope("f", 1); 100_000];
        assert_eq!(lay_out(&[(0, deep)], 1).1.len(), 1);
    }
}
