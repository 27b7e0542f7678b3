//! The image of a thread that runs Wasm, as the runtime itself would report it.

use super::stepping::Stepping;
use super::view::View;
use crate::error::Error;
use crate::process::{Memory, Target, Thread, ThreadId};
use crate::runtime::{GuestFrame, GuestKind, Runtime, Why};
use crate::state::ExecutionStateImage;
use crate::unwind::{Frame, Stack, Trust};

/// The image of the chosen thread, or of the only thread that runs Wasm.
pub(super) fn image_of(
    view: &View<'_, '_>,
    threads: &[&Thread],
    stacks: &[Option<Stack>],
) -> Result<(Option<String>, Option<Vec<u8>>), Error> {
    let chosen = wasm_thread(view.runtime, view.target, threads, stacks)?;
    let image = chosen.image(view.runtime, view.target, Stepping::of(view.target, view.options))?;
    let bytes = image
        .to_bytes()
        .map_err(|e| Error::NoImage { what: format!("the image of thread {} cannot be encoded: {e}", chosen.tid.0) })?;
    Ok((Some(image.output()), Some(bytes)))
}

/// A thread that runs Wasm.
pub(super) struct WasmThread<'a> {
    pub tid: ThreadId,
    /// Its frames from the youngest Wasm frame on.
    pub frames: &'a [Frame],
    /// The youngest Wasm frame.
    pub youngest: GuestFrame,
    /// Whether that frame is the youngest of all frames of the thread.
    pub on_top: bool,
    /// Whether younger Wasm frames may be missing, because a frame up to this one was found by frame pointer.
    pub guessed: bool,
}

/// Returns the only one of these threads that has Wasm frames.
pub(super) fn wasm_thread<'a>(
    runtime: &dyn Runtime,
    target: &dyn Target,
    threads: &[&Thread],
    stacks: &'a [Option<Stack>],
) -> Result<WasmThread<'a>, Error> {
    let mut found = Vec::new();
    for (thread, stack) in threads.iter().zip(stacks) {
        let all = stack.as_ref().map_or(&[][..], |s| &s.frames);
        let is_wasm = |f: &Frame| runtime.describe(&f.cursor, target).into_iter().find(|f| f.kind == GuestKind::Wasm);
        if let Some((at, youngest)) = all.iter().enumerate().find_map(|(i, f)| Some((i, is_wasm(f)?))) {
            let guessed = all.iter().take(at + 1).any(|f| f.trust == Trust::FramePointer);
            found.push(WasmThread { tid: thread.id, frames: &all[at..], youngest, on_top: at == 0, guessed });
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => {
            let next = match target.pid().filter(|_| target.is_live()) {
                Some(pid) => format!("; try again when one runs Wasm code, or: wstate doctor {pid}"),
                None => "; wstate core shows what its threads do".to_string(),
            };
            let what = format!("no thread that was looked at has a Wasm frame, so there is no image{next}");
            Err(Error::NoWasm { what })
        }
        _ => {
            let ids: Vec<String> = found.iter().take(20).map(|t| t.tid.0.to_string()).collect();
            Err(Error::Ambiguous {
                what: format!("several threads run Wasm ({}); choose one with --thread TID", ids.join(", ")),
            })
        }
    }
}

/// What to do about a Wasm frame that is followed by native code although it has not made a call.
pub(super) const INTERRUPTED: &str = "it was interrupted there: by a trap, behind which nothing goes on, or by a signal; then try again when \
                           its handler has returned";

/// What users of runtimes without images can do instead.
const EXPORT: &str = "wstate export --wasm-coredump FILE writes memories, globals and stacks";

impl WasmThread<'_> {
    /// The image that the runtime itself would report. The error says why it is not known and what to do.
    pub fn image(
        &self,
        runtime: &dyn Runtime,
        memory: &dyn Memory,
        stepping: Stepping,
    ) -> Result<ExecutionStateImage, Error> {
        let tid = self.tid.0;
        if self.guessed {
            let next = match stepping {
                Stepping::Impossible => "give the executable (core CORE EXE) or --sysroot",
                Stepping::Possible | Stepping::Asked => "try again when it is in Wasm code, or in other native code",
            };
            return Err(Error::NoImage {
                what: format!(
                    "thread {tid}: the native frames above its Wasm frames have no unwind information, so younger Wasm \
                     frames may be missing and an image might lie; {next}"
                ),
            });
        }
        let image = self.frames.first().map(|f| runtime.image(self.tid, &f.cursor, memory)).transpose();
        let image =
            image.map_err(|why| Error::NoImage { what: format!("thread {tid}: {why}; {EXPORT}") })?.unwrap_or_default();
        if image.frames.is_empty() {
            let unknown = self.youngest.stack.as_ref().err();
            let why =
                unknown.map_or("the runtime records no state at this instruction".to_string(), ToString::to_string);
            let pc = self.frames.first().map_or(0, |f| f.cursor.address.raw());
            let next = self.next_step(runtime, unknown, stepping).map_or(String::new(), |next| format!("; {next}"));
            return Err(Error::NoImage { what: format!("thread {tid} has no image at {pc:#x}: {why}{next}") });
        }
        Ok(image)
    }

    /// What the user can do to get an image where there is none. `None` if the thread was to be stepped, because the
    /// note about the steps says it.
    fn next_step(&self, runtime: &dyn Runtime, why: Option<&Why>, stepping: Stepping) -> Option<&'static str> {
        let between = why == Some(&Why::BetweenPoints);
        Some(match stepping {
            _ if runtime.settles(self.youngest.module).is_err() => "have the host compile it with track_state",
            _ if between && !self.on_top => INTERRUPTED,
            Stepping::Possible if between => "--settle steps it to where there is one",
            Stepping::Asked => return None,
            Stepping::Possible => "try again, or --settle",
            Stepping::Impossible => {
                "take the image at another moment, such as while the thread is in an import, or of the live process with \
                 --settle"
            }
        })
    }
}
