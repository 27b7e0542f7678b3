//! Images as text and JSON: what `wstate snapshot` and `wstate image` print.

use crate::cli::Image;
use crate::error::Error;
use crate::limits::MAX_LISTED_RANGES;
use crate::process::files::{Mapped, map_file};
use crate::report::{Bits, counted, hexdump, json};
use crate::session::{Restored, Resumable, Returned, Snapshot, parse_image};
use crate::state::{AnyImage, WasmFunctionStateDump};
use schemars::JsonSchema;
use serde::Serialize;
use std::fmt::Write;
use std::io::ErrorKind;
use std::path::Path;

/// What `wstate snapshot` says about the snapshot that it has taken.
pub fn snapshot_text(done: &Snapshot) -> String {
    let mut out = format!("thread {}: {}", done.thread, counted(done.frames as u64, "frame"));
    // Writing to a String cannot fail.
    if let Some(memory) = done.memory {
        let _ = write!(out, ", {memory} bytes of memory");
    }
    let _ = match done.frames_only {
        true => write!(out, ", nothing else"),
        false => write!(out, ", {}", counted(done.globals as u64, "global")),
    };
    if let Some(pause) = done.pause {
        let _ = write!(out, "; the process was stopped for {:.3} ms", pause.as_secs_f64() * 1e3);
    }
    out.push('\n');
    for note in &done.notes {
        let _ = writeln!(out, "note: {note}");
    }
    match &done.resumable {
        Some(Resumable::Yes(kind)) => {
            let _ = writeln!(out, "resumable: yes, at a {} point", kind.name());
        }
        Some(Resumable::AfterCall(Some(result))) => {
            let Returned { integer, float } = result;
            let float = float.map_or(String::new(), |bits| format!(", {bits:#x} if it is a float"));
            let _ = writeln!(
                out,
                "resumable: behind a call that has returned {integer:#x} if its result is an integer{float}\n\
                 hint: the image does not hold the result, so give it as raw bits: wstate restore PID IMAGE --return \
                 {integer:#x} (0 if the call returns nothing)"
            );
        }
        Some(Resumable::AfterCall(None)) => {
            out += "resumable: behind a call whose result the image does not have\n\
                    hint: wstate restore PID IMAGE --return VALUE, with the result as raw bits (0 if the call returns \
                    nothing)\n";
        }
        Some(Resumable::No { why, next }) => {
            let _ = writeln!(out, "resumable: no: {why}\nhint: {next}");
        }
        None => {}
    }
    if done.frames_only {
        let _ = writeln!(out, "hint: {FRAMES_ONLY}");
    }
    out
}

/// Says what an image of frames alone, without memory and globals, can be used for.
const FRAMES_ONLY: &str = "the runtime itself takes frames alone; wstate restore needs an image with memory and globals: take one \
                           without --execution-state";

/// What `wstate restore` says about what it has done.
pub fn restored_text(pid: u32, done: &Restored) -> String {
    let Restored { thread, memory, .. } = done;
    let (frames, grown) = (counted(done.frames as u64, "frame"), counted(done.grown, "page"));
    let what = format!("{frames}, {memory} bytes of memory (grown by {grown})");
    let mut out = match done.steps {
        0 => format!(
            "process {pid} could go on in thread {thread} with {what}; nothing was changed: add --yes to do it\n"
        ),
        _ => format!(
            "process {pid} goes on in thread {thread} with {what}; it was stopped for {:.3} ms\n",
            done.pause.as_secs_f64() * 1e3
        ),
    };
    for note in &done.notes {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "note: {note}");
    }
    out
}

/// An image. Its bytes stay in a file on disk, which is mapped, or were given.
pub struct ImageFile {
    bytes: Holder,
    /// The parts of the image.
    pub image: AnyImage,
}

enum Holder {
    Mapped(Mapped),
    #[cfg(any(test, feature = "internals"))]
    Given(Vec<u8>),
}

impl Holder {
    fn bytes(&self) -> &[u8] {
        match self {
            Holder::Mapped(map) => map,
            #[cfg(any(test, feature = "internals"))]
            Holder::Given(bytes) => bytes,
        }
    }
}

impl ImageFile {
    /// Opens the image in the file at `path`.
    ///
    /// # Errors
    /// There is no such file, or no image in it.
    pub fn open(path: &Path) -> Result<ImageFile, Error> {
        let bytes = map_file(path).map_err(|source| {
            // There is nothing to map in an empty file, which is no image.
            let empty = (source.kind() == ErrorKind::UnexpectedEof).then(|| parse_image(path, &[]).err()).flatten();
            empty.unwrap_or_else(|| Error::File { path: path.to_path_buf(), source })
        })?;
        let image = parse_image(path, &bytes)?;
        Ok(ImageFile { bytes: Holder::Mapped(bytes), image })
    }

    /// Parses the contents of a file with an image.
    ///
    /// # Errors
    /// The bytes are no image.
    #[cfg(any(test, feature = "internals"))]
    pub fn from_bytes(bytes: Vec<u8>) -> Result<ImageFile, crate::state::ImageError> {
        let image = AnyImage::parse(&bytes)?;
        Ok(ImageFile { bytes: Holder::Given(bytes), image })
    }

    /// The linear memory of the image, if it has one.
    pub fn memory(&self) -> Option<&[u8]> {
        match &self.image {
            AnyImage::Instance(view) => view.memory(self.bytes.bytes()),
            AnyImage::ExecutionState(_) => None,
        }
    }

    /// The globals of the image.
    pub fn globals(&self) -> &[u128] {
        match &self.image {
            AnyImage::Instance(view) => &view.globals,
            AnyImage::ExecutionState(_) => &[],
        }
    }

    fn kind(&self) -> ImageKind {
        match self.image {
            AnyImage::Instance(_) => ImageKind::Instance,
            AnyImage::ExecutionState(_) => ImageKind::ExecutionState,
        }
    }

    /// The image as text.
    pub fn text(&self) -> String {
        text_of(self)
    }

    /// The image as JSON.
    pub fn json(&self) -> String {
        json::document(&Document::of(self), false)
    }

    /// The differences between this image and another one.
    pub fn difference(&self, other: &ImageFile) -> Difference {
        Difference::of(self, other)
    }
}

/// What `wstate image` prints.
pub struct Shown {
    /// The image, its memory or the differences, as text or JSON.
    pub text: String,
    /// Whether two images that were compared are equal; true if none were compared.
    pub same: bool,
    /// Why nothing can go on from the image, as far as the image itself tells, and what to do.
    pub hint: Option<String>,
}

/// Does what `wstate image` is asked for.
///
/// # Errors
/// A file is no image, or the bytes to show are not in its memory.
pub fn show(command: &Image) -> Result<Shown, Error> {
    let file = ImageFile::open(&command.file)?;
    if let Some(other) = &command.diff {
        let difference = file.difference(&ImageFile::open(other)?);
        let text = if command.json { difference.json() } else { difference.text() };
        return Ok(Shown { text, same: difference.is_empty(), hint: None });
    }
    let text = match command.hexdump.as_slice() {
        [address, len] => hexdump_of(&file, *address, *len)?,
        _ if command.json => file.json(),
        _ => file.text(),
    };
    let whole = command.hexdump.is_empty() && !command.json;
    Ok(Shown { text, same: true, hint: whole.then(|| no_way_on(&file)).flatten() })
}

/// Why nothing can go on from an image, as far as the image itself tells. The module's state map may say more:
/// `wstate restore` asks it.
fn no_way_on(file: &ImageFile) -> Option<String> {
    let frames = &file.image.execution_state().frames;
    if frames.is_empty() {
        return Some(
            "nothing can go on from an image without frames; take one while a thread runs Wasm code".to_string(),
        );
    }
    let lost = |f: &WasmFunctionStateDump| f.locals.iter().chain(&f.stack).any(|v| v.is_none());
    if let Some(number) = frames.iter().position(lost) {
        return Some(format!(
            "frame {number} has values that were not known (?). A process can go on from this image only if the module does \
             not need them: wstate restore PID IMAGE says so. wstate snapshot --settle takes an image where more is known"
        ));
    }
    matches!(file.image, AnyImage::ExecutionState(_)).then(|| FRAMES_ONLY.to_string())
}

fn hexdump_of(file: &ImageFile, address: u64, len: u64) -> Result<String, Error> {
    let memory = file.memory().ok_or_else(|| Error::NoSuchMemory {
        what: "the image has no memory; take one without --execution-state".to_string(),
    })?;
    let range = usize::try_from(address).ok().zip(usize::try_from(address.saturating_add(len)).ok());
    let bytes = range.and_then(|(from, to)| memory.get(from..to)).ok_or_else(|| Error::OutOfBounds {
        what: format!("the memory has {:#x} bytes; {len:#x} bytes at {address:#x} are not inside", memory.len()),
    })?;
    Ok(hexdump::lines(address, bytes))
}

fn text_of(file: &ImageFile) -> String {
    let mut out = file.image.execution_state().output();
    if let AnyImage::ExecutionState(_) = file.image {
        return out;
    }
    // Writing to a String cannot fail.
    let _ = match file.memory() {
        Some(memory) => writeln!(out, "Memory: {} bytes ({} pages)", memory.len(), memory.len() / 65536),
        None => writeln!(out, "Memory: (none)"),
    };
    if file.globals().is_empty() {
        out += "Globals: (none)\n";
    } else {
        out += "Globals:\n";
        for (index, bits) in file.globals().iter().enumerate() {
            let _ = writeln!(out, "  [{index}] = {bits:#x} ({})", *bits as i128);
        }
    }
    out
}

words! {
    /// What an image holds.
    ImageKind {
        /// Frames, linear memory and globals of an instance.
        Instance = "instance",
        /// Frames alone.
        ExecutionState = "execution state",
    }
}

/// An image, as `wstate image --json` prints it. Raw bits are hexadecimal strings, since JSON's numbers end at 2^53.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Image")]
pub struct Document {
    /// What it holds.
    kind: ImageKind,
    /// Size of its memory; missing where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    /// Its globals; missing where it cannot have any.
    #[serde(skip_serializing_if = "Option::is_none")]
    globals: Option<Vec<Bits>>,
    /// Its frames, youngest first.
    frames: Vec<FrameRow>,
}

/// A frame of an image.
#[derive(PartialEq, Eq, Serialize, JsonSchema)]
pub struct FrameRow {
    /// Index among the functions that the module defines.
    local_function: u64,
    /// Number of the operator in the function's body; missing in the function's header.
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<u64>,
    /// Locals; null where one was not known.
    locals: Vec<Option<Bits>>,
    /// Operand stack, bottom first; null where one was not known.
    stack: Vec<Option<Bits>>,
}

impl FrameRow {
    fn of(frame: &WasmFunctionStateDump) -> FrameRow {
        let bits = |values: &[Option<u64>]| values.iter().map(|v| v.map(|v| Bits(v.into()))).collect();
        FrameRow {
            local_function: frame.local_function_id as u64,
            operator: (frame.wasm_inst_offset != crate::state::FUNCTION_HEADER)
                .then_some(frame.wasm_inst_offset as u64),
            locals: bits(&frame.locals),
            stack: bits(&frame.stack),
        }
    }
}

impl Document {
    fn of(file: &ImageFile) -> Document {
        let instance = matches!(file.image, AnyImage::Instance(_));
        Document {
            kind: file.kind(),
            memory_bytes: file.memory().map(|m| m.len() as u64),
            globals: instance.then(|| file.globals().iter().copied().map(Bits).collect()),
            frames: file.image.execution_state().frames.iter().map(FrameRow::of).collect(),
        }
    }
}

/// What is different between two images, as `wstate image --diff --json` prints it. Of each pair the first is the one that was
/// named first.
#[derive(Serialize, JsonSchema)]
pub struct Difference {
    /// What the files hold, if that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<(ImageKind, ImageKind)>,
    /// Sizes of the memories, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<(Option<u64>, Option<u64>)>,
    /// First address and number of bytes of each stretch that differs; what only one memory has is not compared.
    memory: Vec<(u64, u64)>,
    /// Whether there are more stretches than are listed.
    memory_more: bool,
    /// Globals that differ.
    globals: Vec<GlobalDifference>,
    /// Frames that differ.
    frames: Vec<FrameDifference>,
}

/// A global that differs.
#[derive(Serialize, JsonSchema)]
pub struct GlobalDifference {
    /// Index of the global in the image.
    index: usize,
    /// Its value in the first image; null where that has no such global.
    from: Option<Bits>,
    /// Its value in the second image.
    to: Option<Bits>,
}

/// A frame that differs. Frames are counted from the oldest here: the youngest come and go.
#[derive(Serialize, JsonSchema)]
pub struct FrameDifference {
    /// Its number, counted from the oldest, from 0.
    from_oldest: usize,
    /// The frame in the first image; null where that has no such frame.
    from: Option<FrameRow>,
    /// The frame in the second image.
    to: Option<FrameRow>,
}

/// Stretches with fewer equal bytes than this between them are told as one.
const GAP: usize = 16;

impl Difference {
    fn of(a: &ImageFile, b: &ImageFile) -> Difference {
        let (left, right) = (a.memory().unwrap_or_default(), b.memory().unwrap_or_default());
        let sizes = (a.memory().map(|m| m.len() as u64), b.memory().map(|m| m.len() as u64));
        let (memory, memory_more) = changed(left, right);
        Difference {
            kind: (a.kind() != b.kind()).then(|| (a.kind(), b.kind())),
            memory_bytes: (sizes.0 != sizes.1).then_some(sizes),
            memory,
            memory_more,
            globals: pairs(a.globals(), b.globals())
                .map(|(index, from, to)| {
                    let bits = |v: Option<&u128>| v.copied().map(Bits);
                    GlobalDifference { index, from: bits(from), to: bits(to) }
                })
                .collect(),
            frames: {
                let oldest_first = |file: &ImageFile| -> Vec<WasmFunctionStateDump> {
                    file.image.execution_state().frames.iter().rev().cloned().collect()
                };
                pairs(&oldest_first(a), &oldest_first(b))
                    .map(|(from_oldest, from, to)| FrameDifference {
                        from_oldest,
                        from: from.map(FrameRow::of),
                        to: to.map(FrameRow::of),
                    })
                    .collect()
            },
        }
    }

    /// Whether the images are equal.
    pub fn is_empty(&self) -> bool {
        let Difference { kind, memory_bytes, memory, memory_more: _, globals, frames } = self;
        kind.is_none() && memory_bytes.is_none() && memory.is_empty() && globals.is_empty() && frames.is_empty()
    }

    /// The differences as JSON.
    pub fn json(&self) -> String {
        json::document(self, false)
    }

    /// The differences as text.
    pub fn text(&self) -> String {
        if self.is_empty() {
            return "no difference\n".to_string();
        }
        let mut out = String::new();
        // Writing to a String cannot fail.
        if let Some((from, to)) = self.kind {
            let _ = writeln!(out, "kind: {from} -> {to}");
        }
        if let Some((from, to)) = self.memory_bytes {
            let size = |s: Option<u64>| s.map_or("none".to_string(), |s| format!("{s} bytes"));
            let _ = writeln!(out, "memory: {} -> {}", size(from), size(to));
        }
        for (address, len) in &self.memory {
            let _ = writeln!(out, "memory {address:#010x}: {len} bytes");
        }
        if self.memory_more {
            out += "memory: more differences are not listed\n";
        }
        let bits = |v: Option<Bits>| v.map_or_else(|| "none".to_string(), |v| v.to_string());
        for g in &self.globals {
            let (from, to) = (bits(g.from), bits(g.to));
            let _ = writeln!(out, "global {}: {from} -> {to}", g.index);
        }
        for f in &self.frames {
            let _ = writeln!(out, "frame {} from the oldest: {} -> {}", f.from_oldest, row(&f.from), row(&f.to));
        }
        out
    }
}

fn row(frame: &Option<FrameRow>) -> String {
    let Some(frame) = frame else { return "none".to_string() };
    let value = |v: &Option<Bits>| v.map_or_else(|| "?".to_string(), |v| v.to_string());
    let values = |values: &[Option<Bits>]| values.iter().map(value).collect::<Vec<_>>().join(" ");
    let operator = frame.operator.map_or("header".to_string(), |n| n.to_string());
    let (locals, stack) = (values(&frame.locals), values(&frame.stack));
    format!("function {} at {operator}, locals [{locals}], stack [{stack}]", frame.local_function)
}

/// The elements that are not the same in both lists, with their index. An element that a list does not have is
/// `None`.
fn pairs<'a, T: PartialEq>(a: &'a [T], b: &'a [T]) -> impl Iterator<Item = (usize, Option<&'a T>, Option<&'a T>)> {
    (0..a.len().max(b.len())).map(|i| (i, a.get(i), b.get(i))).filter(|(_, a, b)| a != b)
}

/// The stretches in which two memories differ, up to the end of the shorter one, and whether there are more of them
/// than are listed.
fn changed(a: &[u8], b: &[u8]) -> (Vec<(u64, u64)>, bool) {
    const BLOCK: usize = 4096;
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (block, (a, b)) in a.chunks(BLOCK).zip(b.chunks(BLOCK)).enumerate() {
        let len = a.len().min(b.len());
        if a[..len] == b[..len] {
            continue;
        }
        for i in (0..len).filter(|&i| a[i] != b[i]) {
            let at = (block * BLOCK + i) as u64;
            let full = out.len() == MAX_LISTED_RANGES;
            match out.last_mut() {
                Some((start, len)) if at - (*start + *len) < GAP as u64 => *len = at + 1 - *start,
                _ if full => return (out, true),
                _ => out.push((at, 1)),
            }
        }
    }
    (out, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{ExecutionStateImage, InstanceImage};

    #[test]
    fn images_of_two_kinds_are_not_equal() {
        let execution_state = ExecutionStateImage::default();
        let frames = ImageFile::from_bytes(execution_state.to_bytes().unwrap()).unwrap();
        let instance = InstanceImage { memory: None, globals: vec![], execution_state };
        let instance = ImageFile::from_bytes(instance.to_bytes().unwrap()).unwrap();
        assert!(frames.difference(&frames).is_empty() && instance.difference(&instance).is_empty());
        let difference = frames.difference(&instance);
        assert!(!difference.is_empty());
        assert_eq!(difference.text(), "kind: execution state -> instance\n");
    }

    #[test]
    fn one_frame_and_one_page_are_no_more() {
        let text = |frames, grown| {
            let pause = std::time::Duration::ZERO;
            let done = Restored { thread: 7, frames, memory: 65536, grown, steps: 0, pause, notes: Vec::new() };
            restored_text(5, &done)
        };
        assert!(text(1, 1).contains(" with 1 frame, 65536 bytes of memory (grown by 1 page);"), "{}", text(1, 1));
        assert!(text(2, 0).contains(" with 2 frames, 65536 bytes of memory (grown by 0 pages);"), "{}", text(2, 0));
    }

    #[test]
    fn stretches_that_differ() {
        let a = vec![0; 10_000];
        let mut b = a.clone();
        for i in [0, 5, 4095, 4096, 9_000] {
            b[i] = 1;
        }
        assert_eq!(changed(&a, &b), (vec![(0, 6), (4095, 2), (9_000, 1)], false));
        assert_eq!(changed(&a, &b[..4096]), (vec![(0, 6), (4095, 1)], false));
        assert_eq!(changed(&a, &a), (vec![], false));
        let apart: Vec<u8> = (0..MAX_LISTED_RANGES * 64 + 1).map(|i| u8::from(i % 64 == 0)).collect();
        let (ranges, more) = changed(&vec![0; apart.len()], &apart);
        assert_eq!((ranges.len(), more), (MAX_LISTED_RANGES, true));
    }
}
