//! Restores an image: a process with the same module goes on where another process was.
//!
//! ```text
//! stack    a new mapping, on which the image's frames return to where the oldest Wasm frame of the thread would have
//! memory   grown by the runtime's own function, then moved aside for a new mapping with the image's bytes
//! globals  written
//! thread   registers of the youngest frame
//! ```
//! Each step has a way back, and if a later step fails, these are taken in reverse order. The changes are there for
//! good when the thread has its new registers.

mod alone;
mod plan;
mod work;

use self::plan::plan;
use self::work::{Failed, Work};
use super::look::Look;
use super::snapshot::look_around;
use super::{Options, Session, image_file};
use crate::error::Error;
use crate::process::live::held::Held;
use crate::process::live::{CaptureOptions, LiveTarget};
use crate::process::objects::Objects;
use crate::report::counted;
use crate::runtime::all::Runtimes;
use crate::state::AnyImage;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// What is to be restored, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreOptions {
    /// Path of the file with the image.
    pub image: PathBuf,
    /// Whether to do it. Otherwise it is only said whether it can be done.
    pub really: bool,
    /// The result of the call that the youngest frame is behind, as raw bits.
    pub result: Option<u64>,
    /// The restore fails before this step, counted from 0. This is for tests of the way back.
    #[doc(hidden)]
    pub fail_at: Option<usize>,
    /// The number of times that a way back fails. This is for tests of what is done then.
    #[doc(hidden)]
    pub fail_back: usize,
}

impl RestoreOptions {
    /// Asks whether a process could go on from the image in the file at `image`. Nothing is changed, unless
    /// [`RestoreOptions::really`] is set.
    pub fn new(image: impl Into<PathBuf>) -> RestoreOptions {
        RestoreOptions { image: image.into(), really: false, result: None, fail_at: None, fail_back: 0 }
    }
}

/// What a restore has done, or would do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Restored {
    /// Kernel id of the thread that goes on.
    pub thread: u32,
    /// Number of frames that the thread has from the image.
    pub frames: usize,
    /// Size of the memory in bytes.
    pub memory: u64,
    /// Number of Wasm pages by which the memory was grown.
    pub grown: u64,
    /// The number of steps that were taken; zero if nothing was to be changed.
    pub steps: usize,
    /// How long the process was stopped.
    pub pause: Duration,
    /// Notes that the reader should know.
    pub notes: Vec<String>,
}

/// Keeps back the signals that end or stop this program: if it ended in the middle of a change, the process would be
/// left with registers that are not its own. Signals that have come meanwhile are delivered when this is dropped.
#[derive(Debug, Default)]
pub struct SignalsLater {
    before: OnceCell<SigSet>,
}

impl SignalsLater {
    /// Keeps signals back from now on, on this thread and on those that it starts.
    fn begin(&self) {
        if let Ok(before) = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK) {
            // If this is called a second time, the mask from before the first time stays.
            let _ = self.before.set(before);
        }
    }
}

impl Drop for SignalsLater {
    fn drop(&mut self) {
        let _ = self.before.get().map(SigSet::thread_set_mask);
    }
}

/// A linear memory in a file.
struct Linear {
    file: File,
    start: u64,
    len: u64,
}

impl Linear {
    /// Calls `put` with the offset and the bytes of each page that is not zero.
    fn pages(&self, mut put: impl FnMut(u64, &[u8]) -> Result<(), String>) -> Result<(), String> {
        let mut chunk = vec![0; self.len.min(CHUNK) as usize];
        let mut at = 0;
        while at < self.len {
            let part = &mut chunk[..(self.len - at).min(CHUNK) as usize];
            let read = self.file.read_exact_at(part, self.start + at);
            read.map_err(|e| format!("the image cannot be read any more: {e}"))?;
            for (n, page) in part.chunks(PAGE as usize).enumerate() {
                if page.iter().any(|&b| b != 0) {
                    put(at + n as u64 * PAGE, page)?;
                }
            }
            at += part.len() as u64;
        }
        Ok(())
    }
}

const PAGE: u64 = 0x1000;
/// Number of bytes of the image's memory that are in wstate's own memory at once.
const CHUNK: u64 = 1 << 20;
/// Size of a Wasm page in bytes.
const WASM_PAGE: u64 = 0x1_0000;

impl Session<'_> {
    /// Puts an image into the process, or says why not; the process is then as it was, unless the error is
    /// [`Error::TargetBroken`]. Signals are kept back while the process is changed, and until the caller, who then knows
    /// what was done, drops `signals` on this thread.
    ///
    /// # Errors
    /// [`Error::NotInWasm`] if the thread is in native code, which may be otherwise at the next attempt;
    /// [`Error::TargetBroken`] if the process must be ended. All other errors leave the process as it was, too.
    pub fn restore(&self, wanted: &RestoreOptions, signals: &SignalsLater) -> Result<Restored, Error> {
        let unsupported = |what: &str| Error::Unsupported { what: what.to_string() };
        let pid = self.process().ok_or_else(|| unsupported("only a process can go on from an image"))?;
        let (image, file) = image_file::open(&wanted.image)?;
        let AnyImage::Instance(image) = &image else {
            return Err(unsupported("the image has frames only; an InstanceImage is needed"));
        };
        // What is written into a process is decided with all files that the user names, or not at all.
        let found = self.found.for_a_question().all()?;
        let mut provider = Runtimes::new(&found);
        let search = self.options.search_paths();
        let first = LiveTarget::capture(pid, &CaptureOptions::default())?;
        let mut objects = Objects::load(&first, &search);
        let look = self.look(&first, &objects);
        look.threads()?;
        let everyone = Options { threads: Vec::new(), ..self.options.clone() };
        look_around(&Look { options: &everyone, ..look }, &mut provider)?;
        if wanted.really {
            signals.begin();
        }
        let held = Held::hold(pid, &CaptureOptions::default(), None)?;
        if !first.is_same_code(held.target()) {
            objects = Objects::load(held.target(), &search);
            provider = Runtimes::new(&found.for_a_question());
        }
        let refused = |why: String| Error::Refused { what: format!("process {pid} is as it was: {why}") };
        let plan = plan(&held, &self.look(held.target(), &objects), &mut provider)?;
        let range = image.memory.clone().unwrap_or_default();
        let memory = Linear { file, start: range.start as u64, len: range.len() as u64 };
        plan.check(image, memory.len, wanted.result).map_err(refused)?;
        let mut done = Restored {
            thread: plan.thread.0,
            frames: image.execution_state.frames.len(),
            memory: memory.len,
            grown: plan.grow_by(memory.len) / WASM_PAGE,
            steps: 0,
            pause: Duration::ZERO,
            notes: plan.notes.clone(),
        };
        if done.grown > 0 && !wanted.really && plan.maximum.is_none() {
            done.notes.push(format!(
                "the runtime decides whether the memory grows by {}: what its maximum is, if it has one, is not known before",
                counted(done.grown, "page")
            ));
        }
        let of_thread = |e: String| refused(format!("thread {}: {e}", plan.thread.0));
        if !wanted.really {
            held.can_be_borrowed(plan.thread).map_err(of_thread)?;
        } else {
            let thread = held.borrow(plan.thread).map_err(of_thread)?;
            let work = Work::new(&plan, thread, image, &memory, wanted);
            let (steps, notes) = work.run().map_err(|e| match e {
                Failed::AsItWas(why) => refused(why),
                Failed::Broken(why) => Error::TargetBroken { pid, why },
            })?;
            done.steps = steps;
            done.notes.extend(notes);
        }
        done.pause = held.release();
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_becomes_shorter_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let (start, len) = (9, CHUNK + 2 * PAGE);
        file.set_len(start + len).unwrap();
        file.write_all_at(&[7], start + CHUNK + PAGE).unwrap();
        let memory = Linear { file, start, len };
        let mut pages = Vec::new();
        let mut copy = || {
            memory.pages(|at, page| {
                pages.push((at, page[0], page.len()));
                Ok(())
            })
        };
        copy().unwrap();
        memory.file.set_len(start + CHUNK).unwrap();
        assert!(copy().unwrap_err().starts_with("the image cannot be read any more"));
        assert_eq!(pages, [(CHUNK + PAGE, 7, PAGE as usize)]);
    }
}
