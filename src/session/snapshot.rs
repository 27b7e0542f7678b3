//! Makes images of instances from outside, as `state.rs: build_instance_image` makes them in the process.

use super::image::{INTERRUPTED, WasmThread, wasm_thread};
use super::look::Look;
use super::memory::InstanceChoice;
use super::settle::{settles, snapshot_note};
use super::stepping::Stepping;
use super::walking::Native;
use super::{Session, no_changes};
use crate::arch::x64;
use crate::error::Error;
use crate::process::files::Steady;
use crate::process::live::held::{Held, Steps};
use crate::process::live::{CaptureOptions, LiveTarget, Verdict};
use crate::process::objects::Objects;
use crate::process::{Memory, Target};
use crate::runtime::all::{FindOptions, Runtimes};
use crate::runtime::{
    GlobalCell, GuestFrame, GuestInstance, GuestKind, InstanceParts, Provider, Reach, Runtime, Slot, Value,
};
use crate::state::resume::StackSpec;
use crate::state::{ExecutionStateImage, KnownRegisters, PointKind, image, resume_stack};
use crate::unwind::{Frame, Stack};
use crate::wasm::ValType;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

/// A destination in which long runs of zeros need not be written.
pub trait SparseWrite: Write {
    /// Writes `count` zeros, or leaves a hole for them.
    ///
    /// # Errors
    /// Fails as [`Write::write_all`] does.
    fn zeros(&mut self, count: u64) -> io::Result<()>;
}

/// What a snapshot is to contain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotOptions {
    /// The instance whose memory and globals are taken.
    pub instance: InstanceChoice,
    /// Whether only frames are taken, without memory and globals.
    pub execution_state: bool,
}

/// What was written as a snapshot, and what can be done with it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Snapshot {
    /// Kernel id of the thread whose frames were taken.
    pub thread: u32,
    /// Number of frames.
    pub frames: usize,
    /// Size of the linear memory in bytes, if there is one.
    pub memory: Option<u64>,
    /// Number of globals.
    pub globals: usize,
    /// Whether memory and globals were left out.
    pub frames_only: bool,
    /// The imported globals, which an image does not have.
    pub imported_globals: Vec<ImportedGlobal>,
    /// Whether the frames can go on from the image, or why not.
    pub resumable: Option<Resumable>,
    /// Notes that the reader should know.
    pub notes: Vec<String>,
    /// How long the process was stopped, if the target is one.
    pub pause: Option<Duration>,
}

/// Whether frames can go on from an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resumable {
    /// They go on at the operator of the youngest frame's point, which is of this kind.
    Yes(PointKind),
    /// They go on behind a call, whose result must be given. If the call has returned already, its result is here.
    AfterCall(Option<Returned>),
    /// They cannot go on from it.
    No {
        /// Why they cannot.
        why: String,
        /// What the user can do to get an image from which they can go on.
        next: &'static str,
    },
}

/// What a call has returned, if it returns anything. Which of the two values it is depends on the type of the result,
/// which is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// The result if it is an integer.
    pub integer: u64,
    /// The result if it is a float, as raw bits; `None` if it is not known.
    pub float: Option<u64>,
}

/// A global that an instance imports, as the file beside an image has it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct ImportedGlobal {
    /// Index of the global in the module's index space.
    pub index: usize,
    /// Type of the global.
    #[serde(rename = "type")]
    pub ty: ValType,
    /// Its value as an image has it, hexadecimal: integers sign-extended to 128 bits, floats as their bits.
    pub bits: String,
}

/// Number of bytes of linear memory that are in wstate's own memory at once.
const CHUNK: usize = 1 << 20;

impl Session<'_> {
    /// Writes an image to `out`. A live process stands while it is copied; its modules are looked for before that.
    ///
    /// # Errors
    /// The target cannot be looked at, there is no image, or it is not clear of which thread or instance, or the image
    /// cannot be written.
    pub fn snapshot(&self, wanted: SnapshotOptions, out: &mut dyn SparseWrite) -> Result<Snapshot, Error> {
        let found = self.found.for_a_question().all()?;
        if let Some(pid) = self.process() {
            return self.snapshot_of_process(pid, wanted, &found, out);
        }
        let mut provider = Runtimes::new(&found);
        let steady = Steady::begin();
        let done = self.ask(|look| take(look, wanted, &mut provider, out).map(Some)).map(|answer| answer.value);
        no_changes(&steady)?;
        done
    }

    fn snapshot_of_process(
        &self,
        pid: u32,
        wanted: SnapshotOptions,
        found: &FindOptions,
        out: &mut dyn SparseWrite,
    ) -> Result<Snapshot, Error> {
        let search = self.search_paths()?;
        let first = LiveTarget::capture(pid, &CaptureOptions::default())?;
        let mut objects = Objects::load(&first, &search);
        let mut provider = Runtimes::new(found);
        let steps = look_around(&self.look(&first, &objects), &mut provider)?;
        let tid = steps.as_ref().map(|s| s.thread);
        let held = Held::hold(pid, &CaptureOptions::default(), steps)?;
        if !first.is_same_code(held.target()) {
            // The process has loaded or unloaded modules. Those that it has now are looked for while it stands.
            objects = Objects::load(held.target(), &search);
            provider = Runtimes::new(&found.for_a_question());
        }
        let done = take(&self.look(held.target(), &objects), wanted, &mut provider, out);
        let settled = tid.zip(held.settled());
        let mut done = done.map_err(|e| match settled {
            Some((tid, settled)) if !settled.reached() => e.with_note(&snapshot_note(tid, settled, false)),
            _ => e,
        })?;
        if let Some((tid, settled)) = settled {
            let behind_call = matches!(done.resumable, Some(Resumable::AfterCall(_)));
            done.notes.push(snapshot_note(tid, settled, behind_call));
        }
        done.notes.extend(held.target().notes().iter().cloned());
        for thread in held.target().threads().iter().filter(|t| t.problem.is_some()) {
            let why = thread.problem.as_deref().unwrap_or_default();
            done.notes.push(format!("thread {}: {why}; what it wrote meanwhile may be there in part", thread.id.0));
        }
        done.pause = Some(held.release());
        Ok(done)
    }
}

/// Finds the modules of a process that is about to be held, and with `--settle` the thread to step.
pub(super) fn look_around(look: &Look<'_>, provider: &mut Runtimes) -> Result<Option<Steps>, Error> {
    let target = look.target;
    let native = Native::new(target, look.objects);
    let threads = look.threads()?;
    let stacks = look.walk(&threads, &native, provider);
    // This reads whole state maps, so that it need not be done while the process stands.
    let reach = provider.runtime().reach(target);
    if !look.options.settle {
        return Ok(None);
    }
    let thread = wasm_thread(provider.runtime(), target, &threads, &stacks)?;
    if settles(provider.runtime(), thread.frames).is_err() {
        // If there is no image here, there is none further on. The error says why.
        thread.image(provider.runtime(), target, Stepping::Asked)?;
        return Ok(None);
    }
    let verdict = move |pc: u64, _: &dyn Memory| match reach(pc) {
        // Behind a call the user must give the call's result, but there may be no better place.
        Reach::Point | Reach::Returned { only: true } => Verdict::Point,
        // The thread is stepped through short native functions too, such as memory.size, because there is no state
        // for the calls of these.
        Reach::Inside | Reach::Returned { only: false } | Reach::Shown | Reach::Outside => Verdict::Step,
    };
    Ok(Some(Steps { thread: thread.tid, verdict: Box::new(verdict) }))
}

/// Writes an image of the target as it is.
fn take(
    look: &Look<'_>,
    wanted: SnapshotOptions,
    provider: &mut Runtimes,
    out: &mut dyn SparseWrite,
) -> Result<Snapshot, Error> {
    let target = look.target;
    let native = Native::new(target, look.objects);
    let threads = look.threads()?;
    let stacks = look.walk(&threads, &native, provider);
    let runtime = provider.runtime();
    let thread = wasm_thread(runtime, target, &threads, &stacks)?;
    let stepping = Stepping::of(target, look.options);
    let state = thread.image(runtime, target, stepping)?;
    let no_image = |what: String| Error::NoImage { what };
    let own = instance_of(&thread.youngest);
    let instance = choose_instance(runtime, target, &stacks, own, wanted.instance)?;
    let parts = runtime.instance_parts(instance.module, instance.address, target);
    let mut done = Snapshot {
        thread: thread.tid.0,
        frames: state.frames.len(),
        frames_only: wanted.execution_state,
        ..Snapshot::default()
    };
    let failed = |source: io::Error| Error::Output { to: "the image".to_string(), source };
    if wanted.execution_state {
        let bytes = state.to_bytes().map_err(|e| no_image(e.to_string()))?;
        out.write_all(&bytes).map_err(failed)?;
    } else {
        let parts = parts.as_ref().map_err(|why| {
            no_image(format!("no image of the instance: {why}; --execution-state writes the frames alone"))
        })?;
        done.memory = parts.memory.map(|(_, size)| size);
        done.globals = parts.globals.len();
        write(target, parts, &state, out)?;
        done.imported_globals = parts.imported_globals.iter().enumerate().map(imported).collect();
    }
    done.resumable = Some(match &parts {
        Ok(parts) => resumable(runtime, target, &thread, instance, parts, &state, stepping),
        Err(why) => Resumable::No {
            why: why.to_string(),
            next: "it takes memory and globals, too; wstate modules shows what is known of them",
        },
    });
    Ok(done)
}

fn imported((index, cell): (usize, &GlobalCell)) -> ImportedGlobal {
    ImportedGlobal { index, ty: cell.ty, bits: format!("{:#034x}", cell.bits) }
}

fn write(
    target: &dyn Target,
    parts: &InstanceParts,
    state: &ExecutionStateImage,
    out: &mut dyn SparseWrite,
) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Output { to: "the image".to_string(), source };
    out.write_all(&image::head(parts.memory.map(|(_, size)| size))).map_err(failed)?;
    if let Some((base, size)) = parts.memory {
        let mut chunk = vec![0; CHUNK];
        let (mut at, end) = (base, base.saturating_add(size));
        for (from, to) in target.touched(base, end) {
            out.zeros(from - at).map_err(failed)?;
            at = from;
            while at < to {
                let part = &mut chunk[..(to - at).min(CHUNK as u64) as usize];
                target.read(at, part).map_err(|e| Error::Unreadable {
                    what: format!("the linear memory cannot be read from {:#x} on: {e}", at - base),
                })?;
                out.write_all(part).map_err(failed)?;
                at += part.len() as u64;
            }
        }
        out.zeros(end - at).map_err(failed)?;
    }
    let globals: Vec<u128> = parts.globals.iter().map(|g| g.bits).collect();
    let tail = image::tail(&globals, state).map_err(|e| Error::NoImage { what: e.to_string() })?;
    out.write_all(&tail).map_err(failed)
}

/// The instance that a frame runs in.
fn instance_of(frame: &GuestFrame) -> Option<GuestInstance> {
    Some(GuestInstance { module: frame.module, address: frame.instance? })
}

/// The instance that is meant. The numbers of instances are those of `wstate modules`.
fn choose_instance(
    runtime: &dyn Runtime,
    memory: &dyn Memory,
    stacks: &[Option<Stack>],
    own: Option<GuestInstance>,
    choice: InstanceChoice,
) -> Result<GuestInstance, Error> {
    let frames = stacks.iter().flatten().flat_map(|s| &s.frames);
    let mut all: BTreeSet<GuestInstance> =
        frames.flat_map(|f| runtime.describe(&f.cursor, memory)).filter_map(|f| instance_of(&f)).collect();
    all.extend(runtime.instances(memory));
    all.retain(|instance| runtime.check_instance(*instance, memory).is_ok());
    let found = match choice {
        InstanceChoice::Only => own,
        InstanceChoice::Number(n) => all.iter().nth(n as usize).copied(),
        InstanceChoice::Address(a) => all.iter().find(|i| i.address == a).copied(),
    };
    found.ok_or_else(|| {
        if all.is_empty() {
            let what = "no instance was found; --verbose says what was looked for".to_string();
            return Error::NoSuchInstance { what };
        }
        let list: Vec<String> =
            all.iter().take(20).enumerate().map(|(n, i)| format!("{n} at {:#x}", i.address)).collect();
        let what = match choice {
            InstanceChoice::Only => "the instance that the thread runs in is not known; choose one with --instance",
            _ => "there is no such instance",
        };
        Error::NoSuchInstance { what: format!("{what}; there are: {}", list.join("; ")) }
    })
}

/// Whether the thread's frames can go on from an image.
fn resumable(
    runtime: &dyn Runtime,
    target: &dyn Target,
    thread: &WasmThread<'_>,
    instance: GuestInstance,
    parts: &InstanceParts,
    state: &ExecutionStateImage,
    stepping: Stepping,
) -> Resumable {
    match frames_go_on(runtime, target, thread, instance, parts, state, stepping) {
        Err(Stuck { why, next }) => Resumable::No { why, next },
        Ok(PointKind::Call) if thread.on_top => {
            let register = |reg| thread.frames.first().and_then(|f| f.cursor.registers.get(reg));
            // codegen_x64.rs, behind emit_call: the code takes a float from XMM0 and all else from RAX.
            let returned = register(x64::RAX).map(|integer| Returned { integer, float: register(x64::XMM0) });
            Resumable::AfterCall(returned)
        }
        Ok(PointKind::Call) => Resumable::AfterCall(None),
        Ok(kind) => Resumable::Yes(kind),
    }
}

/// Why frames cannot go on from an image, and what the user can do to get an image from which they can.
struct Stuck {
    why: String,
    next: &'static str,
}

/// What to do where the frames will change sooner or later.
const LATER: &str = "try again later, when other frames are on the stack";

fn frames_go_on(
    runtime: &dyn Runtime,
    target: &dyn Target,
    thread: &WasmThread<'_>,
    instance: GuestInstance,
    parts: &InstanceParts,
    state: &ExecutionStateImage,
    stepping: Stepping,
) -> Result<PointKind, Stuck> {
    let stuck = |why: String, next| Err(Stuck { why, next });
    let run = wasm_run(runtime, target, thread.frames);
    for (number, frame) in run.iter().enumerate() {
        if frame.instance != Some(instance.address) {
            let next = "take it when frames of one instance alone are on the stack; where that instance is not the youngest \
                        frame's, --instance names it";
            return stuck(format!("frame {number} runs in another instance, whose memory is not in the image"), next);
        }
        let pc = thread.frames.get(number).map_or(0, |f| f.cursor.address.raw());
        if runtime.goes_on_at(pc, target).is_none() {
            let next = match stepping {
                _ if number > 0 => LATER,
                _ if !thread.on_top => INTERRUPTED,
                Stepping::Possible => "--settle steps the thread on to such a point",
                Stepping::Asked => "try again",
                Stepping::Impossible => "take one of the live process with --settle",
            };
            return stuck(format!("frame {number} is at {pc:#x}, which is no point to go on from"), next);
        }
    }
    let older = thread.frames.iter().skip(run.len()).flat_map(|f| runtime.describe(&f.cursor, target));
    if older.into_iter().any(|f| f.kind == GuestKind::Wasm) {
        let next = "take it when the host has not been called, or has returned";
        return stuck(
            "the host called back into Wasm: native frames between Wasm frames cannot go on".to_string(),
            next,
        );
    }
    if run.len() != state.frames.len() {
        return stuck(format!("the thread has {} Wasm frames, the image {}", run.len(), state.frames.len()), LATER);
    }
    for (number, (frame, dump)) in run.iter().zip(&state.frames).enumerate() {
        for (what, found, said) in [("local", &frame.locals, &dump.locals), ("operand", &frame.stack, &dump.stack)] {
            let found = found.as_deref().unwrap_or_default();
            if let Some((index, found, said)) = other_value(found, said) {
                let why = format!(
                    "{what} {index} of frame {number} is {found:#x}, but {said:#x} in the image, as in the runtime's own: \
                     of several switches between tiers it keeps the registers of the last"
                );
                return stuck(why, "take it when frames of one tier alone are on the stack");
            }
        }
    }
    // The place of the stack makes no difference here.
    let place = StackSpec {
        top: 1 << 46,
        outer: [0; 3],
        outer_rbp: 0,
        code_base: parts.code_base,
        vmctx: parts.vmctx,
        registers: KnownRegisters::UNKNOWN,
    };
    let stack = resume_stack(&parts.map, state, &place, &mut |at| target.read_u64(at).ok());
    stack.map(|s| s.kind).map_err(|e| Stuck { why: e.to_string(), next: LATER })
}

/// The first value about which a frame's fixed homes (`found`) and the runtime's walk (`said`) do not agree: its
/// index, and both values.
fn other_value(found: &[Value], said: &[Option<u64>]) -> Option<(usize, u128, u64)> {
    let known = |value: &Value| match value.slot {
        Slot::Known { bits, .. } => Some(bits),
        Slot::Unknown(_) => None,
    };
    let both = found.iter().zip(said).enumerate().filter_map(|(i, (f, s))| Some((i, known(f)?, (*s)?)));
    both.into_iter().find(|(_, found, said)| *found != u128::from(*said))
}

/// The Wasm frames at the start of `frames`, up to the first that is not Wasm.
pub(super) fn wasm_run(runtime: &dyn Runtime, memory: &dyn Memory, frames: &[Frame]) -> Vec<GuestFrame> {
    let wasm = |f: &Frame| runtime.describe(&f.cursor, memory).into_iter().find(|f| f.kind == GuestKind::Wasm);
    frames.iter().map_while(wasm).collect()
}
