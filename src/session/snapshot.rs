//! Images of instances: what `state.rs: build_instance_image` makes in process, from outside.

use super::*;
use crate::output::SparseWrite;
use crate::runtime::{GuestInstance, InstanceParts, Slot, Value, Why};
use crate::state::resume::Place;
use crate::state::{KnownRegisters, PointKind, image, resume_stack};
use crate::target::live::held::{Held, Steps};
use std::io;
use std::time::Duration;

/// What a snapshot is to be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Whose memory and globals.
    pub instance: InstanceChoice,
    /// Frames only, without memory and globals.
    pub execution_state: bool,
}

/// A snapshot that was written.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Whose frames.
    pub thread: u32,
    /// How many.
    pub frames: usize,
    /// Bytes of linear memory, if there is one.
    pub memory: Option<u64>,
    /// Number of globals.
    pub globals: usize,
    /// The imported globals, which an image does not have.
    pub imported_globals: Vec<ImportedGlobal>,
    /// Whether the frames can go on from it, or why not.
    pub resumable: Option<Resumable>,
    /// What the reader should know.
    pub notes: Vec<String>,
    /// How long a live process stood.
    pub pause: Option<Duration>,
}

/// Whether frames can go on from an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resumable {
    /// They go on at the operator.
    Yes(PointKind),
    /// They go on behind a call, whose result must be given; it is this, if the call has returned.
    AfterCall(Option<u64>),
    /// They cannot: the reason.
    No(String),
}

/// A global that an instance imports, as the file beside an image has it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ImportedGlobal {
    /// Its index.
    pub index: usize,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its value as an image has it, hexadecimal: integers sign-extended to 128 bits, floats as their bits.
    pub bits: String,
}

/// Bytes of linear memory that are in our own memory at once.
const CHUNK: usize = 1 << 20;

/// Writes an image to `out`. A live process stands while it is copied; its modules are looked for before.
pub fn snapshot(options: &Options, wanted: SnapshotOptions, out: &mut dyn SparseWrite) -> Result<Snapshot, Error> {
    let search = options.search_paths();
    let progress = progress::stderr(options.verbose);
    let mut provider = Runtimes::new(&FindOptions::read(options.routes.clone(), &options.artifacts, &options.wasm)?);
    match &options.source {
        Source::Core { core, .. } => {
            let target = CoreTarget::open(core, &search)?;
            let objects = Objects::load(&target, &search);
            take(&target, &objects, options, wanted, &mut provider, &progress, out)
        }
        Source::Pid(pid) => {
            let first = LiveTarget::capture(*pid, &CaptureOptions::default())?;
            let objects = Objects::load(&first, &search);
            let steps = look_around(&first, &objects, options, &mut provider, &progress)?;
            let tid = steps.as_ref().map(|s| s.thread);
            let held = Held::hold(*pid, &CaptureOptions::default(), steps)?;
            let mut done = take(held.target(), &objects, options, wanted, &mut provider, &progress, out)?;
            if let (Some(tid), Some(settled)) = (tid, held.settled()) {
                done.notes.push(settled_note(tid, settled, "a point from which it can go on"));
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
}

/// Finds the modules of a process that is about to be held, and with `--settle` the thread to step.
pub(super) fn look_around(
    target: &LiveTarget,
    objects: &Objects,
    options: &Options,
    provider: &mut Runtimes,
    progress: &dyn Progress,
) -> Result<Option<Steps>, Error> {
    let native = Native::new(target, objects);
    let scene = Scene { target, objects, progress };
    let threads = choose(target, options)?;
    let stacks = walk_all(target, &threads, &native, &scene, provider, limits::MAX_FRAMES);
    // Reads whole state maps, so that this is not left for the time in which the process stands.
    let reach = provider.runtime().reach(target);
    if !options.settle {
        return Ok(None);
    }
    let thread = wasm_thread(provider.runtime(), target, &threads, &stacks)?.tid;
    let verdict = move |pc: u64, _: &dyn Memory| match reach(pc) {
        Reach::Point => Verdict::Point,
        // Through short native functions too, such as memory.size, for whose calls there is no state.
        Reach::Inside | Reach::Returned | Reach::Outside => Verdict::Step,
    };
    Ok(Some(Steps { thread, verdict: Box::new(verdict) }))
}

fn take(
    target: &dyn Target,
    objects: &Objects,
    options: &Options,
    wanted: SnapshotOptions,
    provider: &mut Runtimes,
    progress: &dyn Progress,
    out: &mut dyn SparseWrite,
) -> Result<Snapshot, Error> {
    let native = Native::new(target, objects);
    let scene = Scene { target, objects, progress };
    let threads = choose(target, options)?;
    let stacks = walk_all(target, &threads, &native, &scene, provider, limits::MAX_FRAMES);
    let runtime = provider.runtime();
    let thread = wasm_thread(runtime, target, &threads, &stacks)?;
    let state = thread.image(runtime, target)?;
    let not_found = |what: String| Error::NotFound { what };
    let own = instance_of(&thread.youngest);
    let instance = choose_instance(runtime, target, &stacks, own, wanted.instance)?;
    let parts = runtime.instance_parts(instance.module, instance.address, target);
    let mut done = Snapshot { thread: thread.tid.0, frames: state.frames.len(), ..Snapshot::default() };
    let failed = |source: io::Error| Error::Output { to: "the image".to_string(), source };
    if wanted.execution_state {
        let bytes = state.to_bytes().map_err(|e| not_found(e.to_string()))?;
        out.write_all(&bytes).map_err(failed)?;
    } else {
        let parts = parts.as_ref().map_err(|Why(why)| not_found(format!("no image of the instance: {why}")))?;
        done.memory = parts.memory.map(|(_, size)| size);
        done.globals = parts.globals.len();
        write(target, parts, &state, out)?;
        done.imported_globals = parts.imported_globals.iter().enumerate().map(imported).collect();
    }
    done.resumable = Some(match &parts {
        Ok(parts) => resumable(runtime, target, &thread, instance, parts, &state),
        Err(Why(why)) => Resumable::No(why.clone()),
    });
    Ok(done)
}

fn imported((index, cell): (usize, &crate::runtime::GlobalCell)) -> ImportedGlobal {
    ImportedGlobal { index, ty: cell.ty.name().to_string(), bits: format!("{:#034x}", cell.bits) }
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
                target.read(at, part).map_err(|e| Error::NotFound {
                    what: format!("the linear memory cannot be read from {:#x} on: {e}", at - base),
                })?;
                out.write_all(part).map_err(failed)?;
                at += part.len() as u64;
            }
        }
        out.zeros(end - at).map_err(failed)?;
    }
    let globals: Vec<u128> = parts.globals.iter().map(|g| g.bits).collect();
    let tail = image::tail(&globals, state).map_err(|e| Error::NotFound { what: e.to_string() })?;
    out.write_all(&tail).map_err(failed)
}

/// The instance that a frame runs in.
fn instance_of(frame: &GuestFrame) -> Option<GuestInstance> {
    Some(GuestInstance { module: frame.module, address: frame.instance? })
}

/// The instance that is meant. Numbers are those of `wstate modules`.
pub(super) fn choose_instance(
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
        let list: Vec<String> =
            all.iter().take(20).enumerate().map(|(n, i)| format!("{n} at {:#x}", i.address)).collect();
        let what = match choice {
            InstanceChoice::Only => "the instance that the thread runs in is not known; choose one with --instance",
            _ => "there is no such instance",
        };
        Error::NotFound { what: format!("{what}; there are: {}", list.join("; ")) }
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
) -> Resumable {
    match frames_go_on(runtime, target, thread, instance, parts, state) {
        Err(why) => Resumable::No(why),
        Ok(PointKind::Call) if thread.on_top => {
            let returned = thread.frames.first().and_then(|f| f.cursor.registers.get(crate::arch::Reg::RAX));
            Resumable::AfterCall(returned)
        }
        Ok(PointKind::Call) => Resumable::AfterCall(None),
        Ok(kind) => Resumable::Yes(kind),
    }
}

fn frames_go_on(
    runtime: &dyn Runtime,
    target: &dyn Target,
    thread: &WasmThread<'_>,
    instance: GuestInstance,
    parts: &InstanceParts,
    state: &ExecutionStateImage,
) -> Result<PointKind, String> {
    let run = wasm_run(runtime, target, thread.frames);
    for (number, frame) in run.iter().enumerate() {
        if frame.instance != Some(instance.address) {
            return Err(format!("frame {number} runs in another instance, whose memory is not in the image"));
        }
        let pc = thread.frames.get(number).map_or(0, |f| f.cursor.address.raw());
        let no_point = || format!("frame {number} is at {pc:#x}, which is no point to go on from");
        runtime.goes_on_at(pc, target).ok_or_else(no_point)?;
    }
    let older = thread.frames.iter().skip(run.len()).flat_map(|f| runtime.describe(&f.cursor, target));
    if older.into_iter().any(|f| f.kind == GuestKind::Wasm) {
        return Err("the host called back into Wasm: native frames between Wasm frames cannot go on".to_string());
    }
    if run.len() != state.frames.len() {
        return Err(format!("the thread has {} Wasm frames, the image {}", run.len(), state.frames.len()));
    }
    for (number, (frame, dump)) in run.iter().zip(&state.frames).enumerate() {
        for (what, found, said) in [("local", &frame.locals, &dump.locals), ("operand", &frame.stack, &dump.stack)] {
            let found = found.as_deref().unwrap_or_default();
            if let Some((index, found, said)) = other_value(found, said) {
                return Err(format!(
                    "{what} {index} of frame {number} is {found:#x}, but {said:#x} in the image, as in the runtime's own: \
                     of several switches between tiers it keeps the registers of the last"
                ));
            }
        }
    }
    // Where the stack will be makes no difference here.
    let place = Place {
        top: 1 << 46,
        outer: [0; 3],
        outer_rbp: 0,
        code_base: parts.code_base,
        vmctx: parts.vmctx,
        registers: KnownRegisters::UNKNOWN,
    };
    let stack = resume_stack(&parts.map, state, &place, &mut |at| target.read_u64(at).ok());
    stack.map(|s| s.kind).map_err(|e| e.to_string())
}

/// The first value that a frame's fixed homes and the runtime's walk do not agree about.
fn other_value(found: &[Value], said: &[Option<u64>]) -> Option<(usize, u128, u64)> {
    let known = |value: &Value| match value.slot {
        Slot::Known { bits, .. } => Some(bits),
        Slot::Unknown(_) => None,
    };
    let both = found.iter().zip(said).enumerate().filter_map(|(i, (f, s))| Some((i, known(f)?, (*s)?)));
    both.into_iter().find(|(_, found, said)| *found != u128::from(*said))
}

/// The Wasm frames at the start of `frames`, up to the first that is not Wasm.
pub(super) fn wasm_run(runtime: &dyn Runtime, memory: &dyn Memory, frames: &[crate::unwind::Frame]) -> Vec<GuestFrame> {
    let wasm =
        |f: &crate::unwind::Frame| runtime.describe(&f.cursor, memory).into_iter().find(|f| f.kind == GuestKind::Wasm);
    frames.iter().map_while(wasm).collect()
}
