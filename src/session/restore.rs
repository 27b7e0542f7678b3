//! Life from an image: a process of the same module goes on where another one was.
//!
//! ```text
//! stack    a new mapping, on which the image's frames return to where the oldest Wasm frame of the thread would have
//! memory   grown by the runtime's own function, then moved aside for a new mapping with the image's bytes
//! globals  written
//! thread   registers of the youngest frame
//! ```
//! Each step has its way back, and they are taken in reverse order if a later step fails. What is there for good begins
//! when the thread has its registers.

use super::snapshot::{look_around, wasm_run};
use super::*;
use crate::arch::Reg;
use crate::images::{ImageFile, counted};
use crate::runtime::singlepass::ctx;
use crate::runtime::{GuestInstance, InstanceParts, Why};
use crate::state::resume::Place;
use crate::state::{AnyImage, ImageView, KnownRegisters, PointKind, ResumeStack, resume_stack};
use crate::target::live::held::Held;
use crate::target::live::inject::Borrowed;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What is to be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreOptions {
    /// The image.
    pub image: PathBuf,
    /// Do it; else only say whether it can be done.
    pub really: bool,
    /// Result of the call that the youngest frame is behind.
    pub result: Option<u64>,
    /// Fails before this step, counted from 0: for tests of the way back.
    #[doc(hidden)]
    pub fail_at: Option<usize>,
    /// So often a way back fails: for tests of what is done then.
    #[doc(hidden)]
    pub fail_back: usize,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The thread that goes on.
    pub thread: u32,
    /// Frames that it has now.
    pub frames: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Pages by which the memory was grown.
    pub grown: u64,
    /// How many steps it took; zero if nothing was to be done.
    pub steps: usize,
    /// How long the process stood.
    pub pause: std::time::Duration,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Signals that end or stop this program, kept back: its end in the middle of a change would leave the process with registers
/// that are not its own. Those that have come are delivered when this is dropped.
#[derive(Debug, Default)]
pub struct SignalsLater {
    before: OnceCell<SigSet>,
}

impl SignalsLater {
    /// From now on, on this thread and on those that it starts.
    fn begin(&self) {
        if let Ok(before) = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK) {
            // Not the mask that is there the second time.
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

/// Bytes of stack below the image's frames: as much as the runtime's own has.
const STACK: u64 = 8 << 20;
const PAGE: u64 = 0x1000;
/// Bytes of the image's memory that are in ours at once.
const CHUNK: u64 = 1 << 20;
/// More stack than this below a limit is as if there were no limit.
const MAX_ROOM: u64 = 1 << 30;
/// Bytes below the words that the oldest frame returns to, of which it takes the first.
const OUTER: u64 = 16;
/// Nothing is mapped below: `vm.mmap_min_addr`.
const LOWEST: u64 = 0x1_0000;
/// How often a step back is tried.
const UNDO_ATTEMPTS: usize = 3;
/// A page of Wasm.
const WASM_PAGE: u64 = 0x1_0000;
/// As many as 32 bits address.
const MAX_WASM_PAGES: u64 = 0x1_0000;
/// Bytes of a `LocalMemory`: base, bound, and where the object is that keeps the memory.
const DESCRIPTION: usize = 24;
/// Bytes of the object that keeps a memory (`memory/static_.rs`, `memory/dynamic.rs`: 48).
const MEMORY_OBJECT: usize = 48;

/// Puts the image into the process, or says why not; the process is as it was then. Signals are kept back while it is changed,
/// and until the caller, who knows then what was done, drops `signals` on this thread.
pub fn restore(options: &Options, wanted: &RestoreOptions, signals: &SignalsLater) -> Result<Restored, Error> {
    let refused = |what: String| Error::NotFound { what };
    let Source::Pid(pid) = options.source else {
        return Err(refused("only a process can go on from an image".to_string()));
    };
    let (image, file) = ImageFile::open_unmapped(&wanted.image)?;
    let AnyImage::Instance(image) = &image else {
        return Err(refused("the image has frames only; an InstanceImage is needed".to_string()));
    };
    let everyone = Options { threads: Vec::new(), ..options.clone() };
    let search = options.search_paths();
    let progress = progress::stderr(options.verbose);
    let mut provider = Runtimes::new(&FindOptions::read(options.routes.clone(), &options.artifacts, &options.wasm)?);
    let first = LiveTarget::capture(pid, &CaptureOptions::default())?;
    let objects = Objects::load(&first, &search);
    choose(&first, options)?;
    look_around(&first, &objects, &everyone, &mut provider, &progress)?;
    if wanted.really {
        signals.begin();
    }
    let held = Held::hold(pid, &CaptureOptions::default(), None)?;
    let why = |why: String| refused(format!("process {pid} is as it was: {why}"));
    let plan = plan(&held, &objects, options, &mut provider, &progress)?;
    let range = image.memory.clone().unwrap_or_default();
    let memory = Linear { file, start: range.start as u64, len: range.len() as u64 };
    plan.check(image, memory.len, wanted.result).map_err(why)?;
    let mut done = Restored {
        thread: plan.thread.0,
        frames: image.execution_state.frames.len(),
        memory: memory.len,
        grown: plan.grow_by(memory.len) / WASM_PAGE,
        steps: 0,
        pause: std::time::Duration::ZERO,
        notes: plan.notes.clone(),
    };
    if done.grown > 0 && !wanted.really && plan.maximum.is_none() {
        done.notes.push(format!(
            "the runtime decides whether the memory grows by {}: what its maximum is, if it has one, is not known before",
            counted(done.grown as usize, "page")
        ));
    }
    let of_thread = |e: String| why(format!("thread {}: {e}", plan.thread.0));
    if !wanted.really {
        held.can_be_borrowed(plan.thread).map_err(of_thread)?;
    } else {
        let thread = held.borrow(plan.thread).map_err(of_thread)?;
        let work = Work {
            plan: &plan,
            thread,
            image,
            memory: &memory,
            result: wanted.result,
            count: Cell::new(0),
            fail_at: wanted.fail_at,
            fail_back: Cell::new(wanted.fail_back),
        };
        let (steps, notes) = work.run().map_err(|e| match e {
            Failed::AsItWas(e) => why(e),
            Failed::Broken(e) => refused(format!("process {pid} is broken and should be ended: {e}")),
        })?;
        done.steps = steps;
        done.notes.extend(notes);
    }
    done.pause = held.release();
    Ok(done)
}

/// What is known of the thread before anything is changed.
struct Plan {
    thread: ThreadId,
    parts: InstanceParts,
    place: Place,
    limit: Option<StackLimit>,
    /// Pages that the memory may have, if it is known that there is such a limit.
    maximum: Option<u64>,
    notes: Vec<String>,
}

/// The lowest address at which a function of a module with stack checks may begin (`vm.rs: InternalCtx::stack_lower_bound`),
/// if the host has set it: the runtime itself never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StackLimit {
    /// The host's own, or that of an earlier restore.
    address: u64,
    /// Bytes above it, up to where the oldest Wasm frame was called; if there are so many that they are no limit, `None`.
    room: Option<u64>,
}

impl StackLimit {
    fn of(address: u64, called_at: u64) -> Result<Option<StackLimit>, String> {
        match called_at.checked_sub(address) {
            _ if address == 0 => Ok(None),
            Some(room) => Ok(Some(StackLimit { address, room: Some(room).filter(|&r| r <= MAX_ROOM) })),
            None => Err(format!("the instance's stack limit, {address:#x}, is not below the thread's stack")),
        }
    }

    /// Whether the host has set it, whose stack `in_stack` is in: that of an earlier restore, which stays when its frames are
    /// gone, is in the mapping that was made then. A host may also set one that is nowhere, as below a stack that grows.
    fn is_own(&self, mappings: &[Mapping], in_stack: u64) -> bool {
        mappings.iter().find(|m| m.contains(self.address)).is_none_or(|m| m.contains(in_stack))
    }
}

fn plan(
    held: &Held,
    objects: &Objects,
    options: &Options,
    provider: &mut Runtimes,
    progress: &dyn Progress,
) -> Result<Plan, Error> {
    let target = held.target();
    let refused = |what: String| Error::NotFound { what };
    let native = Native::new(target, objects);
    let scene = Scene { target, objects, progress };
    let chosen = choose(target, options)?;
    // Whichever thread is meant: who else is in its instance must be known.
    let all: Vec<&Thread> = target.threads().iter().collect();
    let stacks = walk_all(target, &all, &native, &scene, provider, limits::MAX_FRAMES);
    // What they declare is wanted below.
    if !options.wasm.is_empty() {
        provider.match_files(target);
    }
    let runtime = provider.runtime();
    let of_chosen: Vec<Option<Stack>> =
        all.iter().zip(&stacks).filter(|(t, _)| chosen.iter().any(|c| c.id == t.id)).map(|(_, s)| s.clone()).collect();
    let thread = wasm_thread(runtime, target, &chosen, &of_chosen)?;
    let tid = thread.tid;
    if !thread.on_top {
        return Err(refused(format!(
            "thread {} is in native code that Wasm has called; it must be in Wasm code itself, since nobody can take back \
             what native code is in the middle of; if it does not stay there, try again",
            tid.0
        )));
    }
    let run = wasm_run(runtime, target, thread.frames);
    // A function that returns has lost its own already. None of these frames stays, and the oldest has the one that was
    // called into.
    let instance = run.iter().rev().find_map(|f| f.instance);
    let instance = instance.ok_or_else(|| refused("the thread's instance is not known; try again".to_string()))?;
    if run.iter().filter_map(|f| f.instance).any(|other| other != instance) {
        return Err(refused("the thread's Wasm frames belong to several instances".to_string()));
    }
    let parts = runtime.instance_parts(thread.youngest.module, instance, target);
    let parts = parts.map_err(|Why(why)| refused(why))?;
    let own = Own {
        thread: tid,
        run: run.len(),
        instance: GuestInstance { module: thread.youngest.module, address: instance },
    };
    if let Some(tid) = held.unknown_threads().first() {
        return Err(refused(format!("thread {tid} is not stopped, and may be in the same instance; try again")));
    }
    own.alone(&all, &stacks, &|at| runtime.describe(at, target)).map_err(refused)?;
    own.memory_alone(runtime, target, &stacks, &parts).map_err(refused)?;
    let caller = thread.frames.get(run.len()).map(|f| &f.cursor);
    let caller = caller.filter(|c| native.recognised.stub_name(c.address, target).is_some()).ok_or_else(|| {
        refused("the oldest Wasm frame was not called through one of the runtime's entries".to_string())
    })?;
    let (Some(sp), Some(rbp)) = (caller.registers.sp(), caller.registers.get(Reg::RBP)) else {
        return Err(refused("the registers of the oldest Wasm frame's caller are not known".to_string()));
    };
    let word = |at: u64| target.read_u64(at).map_err(|e| refused(e.to_string()));
    let mut registers = KnownRegisters::UNKNOWN;
    for reg in [Reg::RBX, Reg::R12, Reg::R13, Reg::R14, Reg::R15] {
        let value = caller.registers.get(reg);
        registers.0[reg.index()] =
            Some(value.ok_or_else(|| refused(format!("{reg} of the oldest Wasm frame's caller is not known")))?);
    }
    let place = Place {
        top: 0,
        outer: [caller.address.raw(), word(sp)?, word(sp.wrapping_add(8))?],
        outer_rbp: rbp,
        code_base: parts.code_base,
        vmctx: parts.vmctx,
        registers,
    };
    let limit = StackLimit::of(word(parts.vmctx.wrapping_add(ctx::STACK_LOWER_BOUND))?, sp).map_err(refused)?;
    let mut notes = Vec::new();
    if let Some(limit) = limit {
        let own = match limit.is_own(target.mappings(), rbp) {
            true => format!("{:#x}", limit.address),
            false => "which is not known any more: an earlier restore has replaced it".to_string(),
        };
        notes.push(format!(
            "the instance's stack limit becomes that of the new stack, and stays so when the frames are gone: a host that does \
             not set it before each call has to set its own again, {own}"
        ));
    }
    if parts.memory.is_some() && parts.memory_at.is_none() {
        notes.push(
            "the memory is imported: the host, and whoever else has it, finds the image's bytes there".to_string(),
        );
    }
    if !parts.imported_globals.is_empty() {
        let count = parts.imported_globals.len();
        notes.push(format!("imported globals ({count}) are not in an image: they keep their values"));
    }
    // Of the first of those that the module defines; of an imported one the exporter decides.
    let declared = parts.memory_at.and_then(|_| runtime.declared(thread.youngest.module, target).memories.ok());
    let maximum = declared.and_then(|memories| memories.first()?.maximum);
    Ok(Plan { thread: tid, parts, place, limit, maximum, notes })
}

/// What is replaced: the youngest `run` frames of a thread, and an instance.
struct Own {
    thread: ThreadId,
    run: usize,
    instance: GuestInstance,
}

impl Own {
    /// Whether nobody else is in the middle of something in the instance. Who cannot be looked at may be.
    fn alone(
        &self,
        threads: &[&Thread],
        stacks: &[Option<Stack>],
        describe: &dyn Fn(&Cursor) -> Vec<GuestFrame>,
    ) -> Result<(), String> {
        for (thread, stack) in threads.iter().zip(stacks) {
            let tid = thread.id.0;
            let may_be = |why: &str| format!("{why}, so thread {tid} may be in the same instance");
            if let Some(why) = &thread.problem {
                return Err(may_be(why));
            }
            let Some(stack) = stack else { return Err(may_be("its registers are not known")) };
            let replaced = if thread.id == self.thread { self.run } else { 0 };
            for frame in stack.frames.iter().skip(replaced) {
                let guests = describe(&frame.cursor);
                if guests.iter().filter(|g| g.kind == GuestKind::Wasm).any(|g| self.is_in(g)) {
                    return Err(match thread.id == self.thread {
                        true => "an older Wasm frame of the thread, whose call into the host has called back, is in the same \
                                 instance; it would go on with what the image's frames have made of it"
                            .to_string(),
                        false => format!(
                            "thread {tid} is in the same instance; it would go on with a memory and globals that are not its own"
                        ),
                    });
                }
                if matches!(frame.trust, Trust::FramePointer | Trust::Scan) {
                    return Err(may_be("frames before native code without unwind information may be missing"));
                }
            }
            match &stack.end {
                End::Bottom => {}
                End::Lost(why) => return Err(may_be(&format!("its stack cannot be followed to its end ({why})"))),
                End::Cycle | End::Limit(_) => return Err(may_be("its stack has no end that can be found")),
            }
        }
        Ok(())
    }

    fn is_in(&self, frame: &GuestFrame) -> bool {
        match frame.instance {
            Some(address) => address == self.instance.address,
            None => frame.module == self.instance.module,
        }
    }

    /// Whether no other instance that is known has the same memory, which one of the two imports then.
    fn memory_alone(
        &self,
        runtime: &dyn Runtime,
        memory: &dyn Memory,
        stacks: &[Option<Stack>],
        parts: &InstanceParts,
    ) -> Result<(), String> {
        let Some((base, _)) = parts.memory else { return Ok(()) };
        let frames = stacks.iter().flatten().flat_map(|s| &s.frames).flat_map(|f| runtime.describe(&f.cursor, memory));
        let of_frames = frames.filter_map(|f| Some(GuestInstance { module: f.module, address: f.instance? }));
        let mut others: BTreeSet<GuestInstance> = of_frames.chain(runtime.instances(memory)).collect();
        others.retain(|i| i.address != self.instance.address && runtime.check_instance(*i, memory).is_ok());
        let has_it = |other: &&GuestInstance| {
            runtime.linear_memory(other.module, other.address, 0, memory).is_ok_and(|(theirs, _)| theirs == base)
        };
        match others.iter().find(has_it) {
            Some(other) => Err(format!("the instance at {:#x} has the same memory", other.address)),
            None => Ok(()),
        }
    }
}

impl Plan {
    /// The image's frames on a stack that ends at `top`.
    fn stack(&self, image: &ImageView, top: u64, memory: &dyn Memory) -> Result<ResumeStack, String> {
        let place = Place { top, ..self.place };
        resume_stack(&self.parts.map, &image.execution_state, &place, &mut |at| memory.read_u64(at).ok())
            .map_err(|e| format!("the image does not fit the module: {e}"))
    }

    fn grow_by(&self, memory: u64) -> u64 {
        memory.saturating_sub(self.parts.memory.map_or(0, |(_, size)| size))
    }

    /// Everything that can be known before.
    fn check(&self, image: &ImageView, memory: u64, result: Option<u64>) -> Result<(), String> {
        // Where the stack will be makes no difference to whether there can be one, and values behind the context are the
        // target's own.
        let stack = self.stack(image, 1 << 46, &Nothing)?;
        if stack.kind == PointKind::Call && result.is_none() {
            return Err(
                "the youngest frame is behind a call, whose result the image does not have: give it with --return \
                        VALUE (0 if there is none)"
                    .to_string(),
            );
        }
        let needed = stack.words.len() as u64 * 8;
        if let Some(room) = self.limit.and_then(|limit| limit.room).filter(|&room| room < needed) {
            return Err(format!("the image's frames need {needed} bytes of stack, the instance's limit leaves {room}"));
        }
        let (has, wants) = (self.parts.globals.len(), image.globals.len());
        if has != wants {
            return Err(format!("the module has {has} globals, the image {wants}"));
        }
        match (self.parts.memory, &image.memory) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err("the image has a memory, the module none".to_string()),
            (Some(_), None) => Err("the module has a memory, the image none".to_string()),
            (Some((_, size)), Some(_)) if memory < size => {
                Err(format!("the memory has {size} bytes, more than the image's {memory}; a memory cannot shrink",))
            }
            (Some((base, size)), Some(_)) => {
                if !memory.is_multiple_of(WASM_PAGE) || !size.is_multiple_of(WASM_PAGE) || base % PAGE != 0 {
                    return Err("the memory is no whole number of pages".to_string());
                }
                let most = self.maximum.unwrap_or(MAX_WASM_PAGES).min(MAX_WASM_PAGES);
                if self.grow_by(memory) > 0 && memory / WASM_PAGE > most {
                    let (wants, most) =
                        (counted((memory / WASM_PAGE) as usize, "page"), counted(most as usize, "page"));
                    return Err(format!("the image's memory has {wants}, the module's at most {most}"));
                }
                let can_grow = self.parts.memory_at.is_some() && self.parts.grow.is_some();
                if self.grow_by(memory) > 0 && !can_grow {
                    return Err(
                        "the memory must grow, but it is imported or the runtime's function is not known".to_string()
                    );
                }
                Ok(())
            }
        }
    }
}

/// Reads nothing.
struct Nothing;

impl Memory for Nothing {
    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), crate::target::MemoryError> {
        buf.fill(0);
        Ok(())
    }
}

/// The parts of `from .. from + len`, which must be mapped, as the mappings divide it: first address, bytes.
fn pieces(mappings: &[Mapping], from: u64, len: u64) -> Result<Vec<(u64, u64)>, String> {
    let (mut at, end) = (from, from.saturating_add(len));
    let mut out = Vec::new();
    for mapping in mappings.iter().skip_while(|m| m.end <= from) {
        if at < end && mapping.contains(at) {
            let piece = mapping.end.min(end) - at;
            out.push((at, piece));
            at += piece;
        }
    }
    if at == end { Ok(out) } else { Err(format!("nothing is mapped at {at:#x}")) }
}

/// The highest place for `len` bytes below `limit` that is right below a mapping, but not below a stack that grows.
fn gap_below(mappings: &[Mapping], limit: u64, len: u64) -> Option<u64> {
    let before = std::iter::once(0).chain(mappings.iter().map(|m| m.end));
    let grows = |m: &Mapping| m.path.as_deref() == Some(Path::new("[stack]"));
    let gaps = before.zip(mappings).filter(|(_, m)| m.start <= limit && !grows(m));
    let fits = |(end, m): (u64, &Mapping)| m.start.checked_sub(len).filter(|&start| start >= end.max(LOWEST));
    gaps.filter_map(fits).last()
}

enum Failed {
    AsItWas(String),
    Broken(String),
}

/// The changes.
struct Work<'a> {
    plan: &'a Plan,
    thread: Borrowed<'a>,
    image: &'a ImageView,
    memory: &'a Linear,
    result: Option<u64>,
    count: Cell<usize>,
    fail_at: Option<usize>,
    fail_back: Cell<usize>,
}

/// The way back of one step.
enum Undo {
    Unmap {
        address: u64,
        len: u64,
    },
    Move {
        from: u64,
        to: u64,
        len: u64,
    },
    Write {
        address: u64,
        bytes: Vec<u8>,
    },
    /// A memory that was grown: where it was and how large, and the words that said so.
    Shrink {
        base: u64,
        size: u64,
        words: Vec<(u64, Vec<u8>)>,
    },
}

/// What the thread goes on with.
struct Ready {
    pc: u64,
    registers: KnownRegisters,
    /// The old memory.
    aside: Option<(u64, u64)>,
}

const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const PRIVATE: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
const NO_FILE: u64 = u64::MAX;

impl Work<'_> {
    fn run(self) -> Result<(usize, Vec<String>), Failed> {
        let mut undo = Vec::new();
        let ready = match self.steps(&mut undo) {
            Ok(ready) => ready,
            Err(why) => {
                // What can be put back is, whatever else cannot.
                let mut errors: Vec<String> =
                    undo.iter().rev().filter_map(|step| self.undo_surely(step).err()).collect();
                errors.extend(self.thread.give_back().err());
                return Err(match errors.is_empty() {
                    true => Failed::AsItWas(why),
                    false => Failed::Broken(format!("{why}; on the way back: {}", errors.join("; "))),
                });
            }
        };
        let mut notes = Vec::new();
        if let Some((address, len)) = ready.aside
            && let Err(e) = self.unmap(address, len)
        {
            notes.push(format!("the old memory is still mapped at {address:#x}: {e}"));
        }
        // The call that unmapped has used the thread's registers.
        self.thread.set_registers(ready.pc, &ready.registers).map_err(Failed::Broken)?;
        let count = self.count.get();
        self.thread.keep().map_err(Failed::Broken)?;
        Ok((count, notes))
    }

    /// Every change that has a way back.
    fn steps(&self, undo: &mut Vec<Undo>) -> Result<Ready, String> {
        let parts = &self.plan.parts;
        let needed = self.plan.stack(self.image, 1 << 46, &self.thread)?.words.len() as u64 * 8;
        let room = self.plan.limit.and_then(|limit| limit.room);
        let size = (needed.max(room.unwrap_or(0)) + STACK).next_multiple_of(PAGE);
        let stack = match self.plan.limit {
            None => self.map(size, READ_WRITE, undo)?,
            // Later calls on the thread's own stack must not be below the new one's limit.
            Some(limit) => self.map_below(limit.address, size, undo)?,
        };
        self.step()?;
        self.thread.system_call(libc::SYS_mprotect, [stack, PAGE, 0, 0, 0, 0])?;
        let top = stack + size - 64;

        let aside = match parts.memory {
            Some(memory) => self.replace_memory(memory, top, undo)?,
            None => None,
        };
        for (cell, bits) in parts.globals.iter().zip(&self.image.globals) {
            self.write(cell.address, &bits.to_le_bytes(), undo)?;
        }
        if self.plan.limit.is_some() {
            // The same depth of calls as on the thread's own stack.
            let lowest = room.map_or(stack + WASM_PAGE, |room| top - OUTER - room);
            self.write(parts.vmctx + ctx::STACK_LOWER_BOUND, &lowest.to_le_bytes(), undo)?;
        }
        let built = self.plan.stack(self.image, top, &self.thread)?;
        let words: Vec<u8> = built.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.step()?;
        self.thread.write(built.start, &words)?;

        let mut registers = built.registers;
        if built.kind == PointKind::Call {
            for reg in [Reg::RAX, Reg::XMM0] {
                registers.0[reg.index()] = self.result;
            }
        }
        self.step()?;
        self.thread.set_registers(built.pc(), &registers)?;
        self.step()?;
        Ok(Ready { pc: built.pc(), registers, aside })
    }

    /// Grows the memory to the image's size and puts the image's bytes there; returns where the old ones are.
    fn replace_memory(
        &self,
        (base, size): (u64, u64),
        stack_top: u64,
        undo: &mut Vec<Undo>,
    ) -> Result<Option<(u64, u64)>, String> {
        let parts = &self.plan.parts;
        let wanted = self.memory.len;
        let mut base = base;
        if let (true, Some(grow), Some(description)) = (wanted > size, parts.grow, parts.memory_at) {
            let object = self.word(description + 16)?;
            let context = (parts.vmctx + ctx::MEMORY_BASE, 16);
            let mut words = Vec::new();
            for (address, len) in [(object, MEMORY_OBJECT), (description, DESCRIPTION), context] {
                words.push((address, self.thread.read_vec(address, len).map_err(|e| e.to_string())?));
            }
            self.step()?;
            undo.push(Undo::Shrink { base, size, words });
            let pages = (wanted - size) / WASM_PAGE;
            let old = self.thread.call(grow, [parts.vmctx, 0, pages], stack_top & !15)?;
            if old as i32 == -1 {
                let pages = counted(pages as usize, "page");
                return Err(format!("the runtime does not grow the memory by {pages}"));
            }
            base = self.word(context.0)?;
            let now = self.word(context.0 + 8)?;
            if now != wanted {
                return Err(format!("the memory has {now} bytes after it was grown, not {wanted}"));
            }
            self.step()?;
        }
        if wanted == 0 {
            return Ok(None);
        }
        let fresh = self.map(wanted, READ_WRITE, undo)?;
        self.step()?;
        self.memory.pages(|at, page| self.thread.write(fresh + at, page))?;
        // A place and no memory.
        let aside = self.map(wanted, 0, undo)?;
        self.relocate(base, aside, wanted, undo)?;
        self.relocate(fresh, base, wanted, undo)?;
        self.step()?;
        Ok(Some((aside, wanted)))
    }

    fn step(&self) -> Result<(), String> {
        let count = self.count.replace(self.count.get() + 1);
        if self.fail_at == Some(count) { Err(format!("step {count} was made to fail")) } else { Ok(()) }
    }

    fn word(&self, address: u64) -> Result<u64, String> {
        self.thread.read_u64(address).map_err(|e| e.to_string())
    }

    fn map(&self, len: u64, access: u64, undo: &mut Vec<Undo>) -> Result<u64, String> {
        self.step()?;
        let flags = if access == 0 { PRIVATE | libc::MAP_NORESERVE as u64 } else { PRIVATE };
        let address = self.thread.system_call(libc::SYS_mmap, [0, len, access, flags, NO_FILE, 0]);
        let address = address.map_err(|e| format!("{len} bytes cannot be mapped: {e}"))?;
        undo.push(Undo::Unmap { address, len });
        Ok(address)
    }

    /// As [`Work::map`], at addresses below `limit`.
    fn map_below(&self, limit: u64, len: u64, undo: &mut Vec<Undo>) -> Result<u64, String> {
        let mappings = self.thread.mappings().map_err(|e| format!("its mappings cannot be read: {e}"))?;
        let wanted = gap_below(&mappings, limit, len);
        let wanted = wanted.ok_or_else(|| format!("there is no place for {len} bytes of stack below {limit:#x}"))?;
        self.step()?;
        let flags = PRIVATE | libc::MAP_FIXED_NOREPLACE as u64;
        let address = self.thread.system_call(libc::SYS_mmap, [wanted, len, READ_WRITE, flags, NO_FILE, 0]);
        let address = address.map_err(|e| format!("{len} bytes cannot be mapped at {wanted:#x}: {e}"))?;
        undo.push(Undo::Unmap { address, len });
        // Before Linux 4.17 it is a wish.
        if address == wanted { Ok(address) } else { Err(format!("{len} bytes cannot be mapped at {wanted:#x}")) }
    }

    fn unmap(&self, address: u64, len: u64) -> Result<(), String> {
        self.thread.system_call(libc::SYS_munmap, [address, len, 0, 0, 0, 0]).map(|_| ())
    }

    /// Moves pages to where others may be, with the way back.
    fn relocate(&self, from: u64, to: u64, len: u64, undo: &mut Vec<Undo>) -> Result<(), String> {
        for (piece, len) in self.pieces(from, len)? {
            let there = to.wrapping_add(piece.wrapping_sub(from));
            self.step()?;
            self.remap(piece, there, len)?;
            undo.push(Undo::Move { from: there, to: piece, len });
        }
        Ok(())
    }

    /// What is mapped from `from` on, each mapping by itself: before Linux 6.17 no call moves more than one.
    fn pieces(&self, from: u64, len: u64) -> Result<Vec<(u64, u64)>, String> {
        pieces(&self.thread.mappings().map_err(|e| format!("its mappings cannot be read: {e}"))?, from, len)
    }

    fn remap(&self, from: u64, to: u64, len: u64) -> Result<(), String> {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let moved = self.thread.system_call(libc::SYS_mremap, [from, len, len, flags, to, 0]);
        moved.map(|_| ()).map_err(|e| format!("{len} bytes at {from:#x} cannot be moved to {to:#x}: {e}"))
    }

    /// Takes access and content from pages.
    fn reserve(&self, address: u64, len: u64) -> Result<(), String> {
        let flags = PRIVATE | libc::MAP_FIXED as u64;
        self.thread.system_call(libc::SYS_mmap, [address, len, 0, flags, NO_FILE, 0]).map(|_| ())
    }

    fn write(&self, address: u64, bytes: &[u8], undo: &mut Vec<Undo>) -> Result<(), String> {
        let old = self.thread.read_vec(address, bytes.len()).map_err(|e| e.to_string())?;
        self.step()?;
        undo.push(Undo::Write { address, bytes: old });
        self.thread.write(address, bytes)
    }

    /// Tries more than once: for an instant there may be no memory for it.
    fn undo_surely(&self, step: &Undo) -> Result<(), String> {
        (1..UNDO_ATTEMPTS).find_map(|_| self.undo(step).ok()).map_or_else(|| self.undo(step), Ok)
    }

    fn undo(&self, step: &Undo) -> Result<(), String> {
        if let Some(left) = self.fail_back.get().checked_sub(1) {
            self.fail_back.set(left);
            return Err("a way back was made to fail".to_string());
        }
        match *step {
            Undo::Unmap { address, len } => self.unmap(address, len),
            Undo::Move { from, to, len } => self.remap(from, to, len),
            Undo::Write { address, ref bytes } => self.thread.write(address, bytes),
            Undo::Shrink { base, size, ref words } => {
                let context = self.plan.parts.vmctx + ctx::MEMORY_BASE;
                let (now, bound) = (self.word(context)?, self.word(context + 8)?);
                if now != base {
                    // A dynamic memory: the old mapping, with its guard page, was given up for a larger one.
                    for (piece, len) in self.pieces(now, size + PAGE)? {
                        self.remap(piece, base.wrapping_add(piece - now), len)?;
                    }
                    self.reserve(base + size, PAGE)?;
                    self.unmap(now + size + PAGE, bound - size)?;
                } else if bound > size {
                    self.reserve(base + size, bound - size)?;
                }
                words.iter().try_for_each(|(address, bytes)| self.thread.write(*address, bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_be_in_the_instance_is_a_reason_to_refuse() {
        use crate::unwind::Frame;
        // By address: native code, Wasm in the instance, in another one, in an unknown one of this module and of another.
        let describe = |at: &Cursor| {
            let (module, instance) = match at.address.raw() {
                1 => (7, Some(0x1000)),
                2 => (7, Some(0x2000)),
                3 => (7, None),
                4 => (8, None),
                _ => return Vec::new(),
            };
            vec![GuestFrame {
                kind: GuestKind::Wasm,
                module,
                function: None,
                local_function: None,
                name: None,
                code_offset: 0,
                function_offset: None,
                position: Position::Unknown,
                operator: None,
                locals: Ok(Vec::new()),
                stack: Ok(Vec::new()),
                variables: Vec::new(),
                inlined: false,
                instance,
                notes: Vec::new(),
            }]
        };
        let stack = |frames: &[(u64, Trust)], end: End| {
            let frame = |&(pc, trust): &(u64, Trust)| Frame { cursor: crate::unwind::testing::cursor(pc, &[]), trust };
            Some(Stack { frames: frames.iter().map(frame).collect(), end })
        };
        let thread = |id, problem: Option<&str>| Thread {
            id: ThreadId(id),
            name: None,
            registers: crate::arch::Registers::unknown(),
            fs_base: None,
            signal: None,
            problem: problem.map(str::to_string),
        };
        let own = Own { thread: ThreadId(5), run: 2, instance: GuestInstance { module: 7, address: 0x1000 } };
        let alone = |mine: &[u64], other: Option<Stack>, problem: Option<&str>| {
            let mine: Vec<_> = mine.iter().map(|&pc| (pc, Trust::Runtime)).collect();
            let (me, them) = (thread(5, None), thread(6, problem));
            own.alone(&[&me, &them], &[stack(&mine, End::Bottom), other], &describe)
        };
        use Trust::{Cfi, FramePointer, Scan};
        assert_eq!(alone(&[3, 1, 9, 2, 4], stack(&[(9, Cfi), (2, Cfi), (4, Cfi)], End::Bottom), None), Ok(()));
        for mine in [[1, 1, 9, 1], [1, 1, 9, 3]] {
            assert!(alone(&mine, stack(&[], End::Bottom), None).unwrap_err().starts_with("an older Wasm frame"));
        }
        let lost = || End::Lost(crate::unwind::UnwindError::NoCode { address: 9 });
        let rows = [
            (stack(&[(9, Cfi), (1, Cfi)], End::Bottom), None, "thread 6 is in the same instance"),
            (stack(&[(9, Cfi), (3, Cfi)], End::Bottom), None, "thread 6 is in the same instance"),
            (stack(&[], End::Bottom), Some("it sleeps"), "it sleeps, so thread 6 may be"),
            (None, None, "its registers are not known, so thread 6 may be"),
            (stack(&[(9, FramePointer)], End::Bottom), None, "frames before native code"),
            (stack(&[(9, Scan)], End::Bottom), None, "frames before native code"),
            (stack(&[(9, Cfi)], lost()), None, "its stack cannot be followed to its end (0x9 is in no code"),
            (stack(&[(9, Cfi)], End::Cycle), None, "its stack has no end"),
            (stack(&[(9, Cfi)], End::Limit(1)), None, "its stack has no end"),
        ];
        for (other, problem, why) in rows {
            let said = alone(&[1, 1], other, problem).unwrap_err();
            assert!(said.starts_with(why), "{said}");
        }
    }

    #[test]
    fn a_stack_limit_leaves_room() {
        let limit = |address, called_at| StackLimit::of(address, called_at);
        assert_eq!(limit(0, 0x5000).unwrap(), None);
        assert_eq!(limit(0x1000, 0x5000).unwrap(), Some(StackLimit { address: 0x1000, room: Some(0x4000) }));
        assert_eq!(limit(1, 0x7000_0000_0000).unwrap(), Some(StackLimit { address: 1, room: None }));
        assert!(limit(0x5001, 0x5000).unwrap_err().contains("0x5001"));
    }

    #[test]
    fn a_stack_limit_is_the_hosts_own_in_its_stack_or_nowhere() {
        let text = b"40000-50000 rw-p 0 0:0 0\n90000-a0000 rw-p 0 0:0 0\nf0000-100000 rw-p 0 0:0 0 [stack]\n";
        let maps = crate::target::live::parse_maps(text);
        let own = |address, in_stack| StackLimit { address, room: None }.is_own(&maps, in_stack);
        // In the stack, and in the gap into which the main thread's may grow.
        assert!(own(0xf0000, 0xff000) && own(0xe0000, 0xff000) && own(0x90000, 0x9ff00) && own(1, 0x9ff00));
        // In an earlier restore's, and in another one.
        assert!(!own(0x48000, 0xff000) && !own(0x9ffff, 0xff000) && !own(0x48000, 0x9ff00));
    }

    #[test]
    fn a_stack_goes_below_a_limit_and_not_below_a_stack_that_grows() {
        let text = b"40000-50000 rw-p 0 0:0 0\n90000-a0000 rw-p 0 0:0 0\nc0000-d0000 rw-p 0 0:0 0\n\
            f0000-100000 rw-p 0 0:0 0 [stack]\n";
        let maps = crate::target::live::parse_maps(text);
        assert_eq!(gap_below(&maps, 0xf8000, 0x10000), Some(0xb0000));
        assert_eq!(gap_below(&maps, 0xbffff, 0x10000), Some(0x80000));
        assert_eq!(gap_below(&maps, 0xf8000, 0x30000), Some(0x60000));
        assert_eq!(gap_below(&maps, 0x45000, 0x30000), Some(0x10000));
        assert_eq!((gap_below(&maps, 0xf8000, 0x50000), gap_below(&maps, 0x100, 0x1000)), (None, None));
    }

    #[test]
    fn each_mapping_is_a_piece() {
        let text = b"1000-3000 rw-p 0 0:0 0\n3000-4000 rw-p 0 0:0 0\n4000-9000 ---p 0 0:0 0\na000-b000 rw-p 0 0:0 0\n";
        let maps = crate::target::live::parse_maps(text);
        assert_eq!(maps.len(), 4);
        assert_eq!(pieces(&maps, 0x2000, 0x4000).unwrap(), [(0x2000, 0x1000), (0x3000, 0x1000), (0x4000, 0x2000)]);
        assert_eq!(pieces(&maps, 0x3000, 0x1000).unwrap(), [(0x3000, 0x1000)]);
        assert!(pieces(&maps, 0x8000, 0x3000).unwrap_err().ends_with("at 0x9000"));
        assert!(pieces(&maps, 0, 0x2000).is_err() && pieces(&maps, 0xa000, 0x2000).is_err());
    }

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
