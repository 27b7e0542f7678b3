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
mod work;

use self::alone::Own;
use self::work::{Failed, Work};
use super::snapshot::{look_around, wasm_run};
use super::*;
use crate::arch::x64;
use crate::process::live::held::Held;
use crate::report::counted;
use crate::runtime::singlepass::module::ctx;
use crate::runtime::{GuestInstance, InstanceParts};
use crate::state::resume::StackSpec;
use crate::state::{AnyImage, ImageView, KnownRegisters, PointKind, ResumeStack, resume_stack};
use nix::sys::signal::{SigSet, SigmaskHow};
use std::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What is to be restored, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// What a restore has done, or would do.
#[derive(Clone, Debug)]
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
    /// For how long the process stood.
    pub pause: std::time::Duration,
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
/// If there are more bytes of stack above a limit than this, it is as if there were no limit.
const MAX_ROOM: u64 = 1 << 30;
/// Size of a Wasm page in bytes.
const WASM_PAGE: u64 = 0x1_0000;
/// Number of Wasm pages that can be addressed with 32 bits.
const MAX_WASM_PAGES: u64 = 0x1_0000;

/// Puts the image into the process, or says why not; the process is then as it was, unless the error says that it is
/// broken. Signals are kept back while the process is changed, and until the caller, who then knows what was done,
/// drops `signals` on this thread.
pub fn restore(options: &Options, wanted: &RestoreOptions, signals: &SignalsLater) -> Result<Restored, Error> {
    let refused = |what: String| Error::NotFound { what };
    let Source::Pid(pid) = options.source else {
        return Err(refused("only a process can go on from an image".to_string()));
    };
    let (image, file) = image_file::open(&wanted.image)?;
    let AnyImage::Instance(image) = &image else {
        return Err(refused("the image has frames only; an InstanceImage is needed".to_string()));
    };
    let everyone = Options { threads: Vec::new(), ..options.clone() };
    let search = options.search_paths();
    let progress = progress::stderr(options.verbose);
    // What is written into a process is decided with all files that the user names, or not at all.
    let found = FindOptions::read(options.routes.clone(), &options.artifacts, &options.wasm).all()?;
    let mut provider = Runtimes::new(&found);
    let first = LiveTarget::capture(pid, &CaptureOptions::default())?;
    let mut objects = Objects::load(&first, &search);
    choose(&first, options)?;
    look_around(&first, &objects, &everyone, &mut provider, &progress)?;
    if wanted.really {
        signals.begin();
    }
    let held = Held::hold(pid, &CaptureOptions::default(), None)?;
    if !first.is_same_code(held.target()) {
        objects = Objects::load(held.target(), &search);
        provider = Runtimes::new(&found);
    }
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
            counted(done.grown, "page")
        ));
    }
    let of_thread = |e: String| why(format!("thread {}: {e}", plan.thread.0));
    if !wanted.really {
        held.can_be_borrowed(plan.thread).map_err(of_thread)?;
    } else {
        let thread = held.borrow(plan.thread).map_err(of_thread)?;
        let work = Work::new(&plan, thread, image, &memory, wanted);
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

/// What is known about the thread and its instance before anything is changed.
struct Plan {
    thread: ThreadId,
    parts: InstanceParts,
    place: StackSpec,
    limit: Option<StackLimit>,
    /// The most Wasm pages that the memory may have, if a maximum is known.
    maximum: Option<u64>,
    notes: Vec<String>,
}

/// The lowest address at which a function of a module with stack checks may begin
/// (`vm.rs: InternalCtx::stack_lower_bound`), if the host has set it: the runtime itself never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StackLimit {
    /// The address itself. It is from the host, or from an earlier restore.
    address: u64,
    /// Number of bytes from the limit up to where the oldest Wasm frame was called. `None` if there are so many that
    /// the limit is no limit.
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

    /// Whether the host has set the limit. `in_stack` is an address in the host's stack. The limit of an earlier
    /// restore, which stays when that restore's frames are gone, is in the mapping that was made for these frames. A
    /// host may also set a limit at which nothing is mapped, as below a stack that grows.
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
    // All threads are walked, whichever is meant: it must be known who else is in its instance.
    let all: Vec<&Thread> = target.threads().iter().collect();
    let stacks = walk_all(target, &all, &native, &scene, provider, limits::MAX_FRAMES);
    // What the user's `.wasm` files declare is needed below.
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
    // The instance is taken from the oldest frame that has one: a function that is about to return has lost its
    // instance already. None of these frames stays, and the oldest frame has the instance that the host called into.
    let instance = run.iter().rev().find_map(|f| f.instance);
    let instance = instance.ok_or_else(|| refused("the thread's instance is not known; try again".to_string()))?;
    if run.iter().filter_map(|f| f.instance).any(|other| other != instance) {
        return Err(refused("the thread's Wasm frames belong to several instances".to_string()));
    }
    let parts = runtime.instance_parts(thread.youngest.module, instance, target);
    let parts = parts.map_err(|why| refused(why.to_string()))?;
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
    let (Some(sp), Some(rbp)) = (caller.registers.sp(), caller.registers.get(x64::RBP)) else {
        return Err(refused("the registers of the oldest Wasm frame's caller are not known".to_string()));
    };
    let word = |at: u64| target.read_u64(at).map_err(|e| refused(e.to_string()));
    let mut registers = KnownRegisters::UNKNOWN;
    for reg in [x64::RBX, x64::R12, x64::R13, x64::R14, x64::R15] {
        let value = caller.registers.get(reg);
        let value = value.ok_or_else(|| refused(format!("{reg} of the oldest Wasm frame's caller is not known")))?;
        registers.set(reg, Some(value));
    }
    let place = StackSpec {
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
    // The maximum is known for the first memory that the module defines. For an imported memory, the exporter
    // decides.
    let declared = parts.memory_at.and_then(|_| runtime.declared(thread.youngest.module, target).memories.ok());
    let maximum = declared.and_then(|memories| memories.first()?.maximum_in_wasm_pages());
    Ok(Plan { thread: tid, parts, place, limit, maximum, notes })
}

impl Plan {
    /// Puts the image's frames on a stack that ends at `top`.
    fn stack(&self, image: &ImageView, top: u64, memory: &dyn Memory) -> Result<ResumeStack, String> {
        let place = StackSpec { top, ..self.place };
        resume_stack(&self.parts.map, &image.execution_state, &place, &mut |at| memory.read_u64(at).ok())
            .map_err(|e| format!("the image does not fit the module: {e}"))
    }

    fn grow_by(&self, memory: u64) -> u64 {
        memory.saturating_sub(self.parts.memory.map_or(0, |(_, size)| size))
    }

    /// Checks everything that can be known before the process is changed.
    fn check(&self, image: &ImageView, memory: u64, result: Option<u64>) -> Result<(), String> {
        // The place of the stack makes no difference to whether there can be one, and values behind the context are
        // the target's own.
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
                    let (wants, most) = (counted(memory / WASM_PAGE, "page"), counted(most, "page"));
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

/// A memory that reads as zeros everywhere, for checks that read nothing of the target.
struct Nothing;

impl Memory for Nothing {
    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), crate::process::MemoryError> {
        buf.fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let maps = crate::process::live::parse_maps(text);
        let own = |address, in_stack| StackLimit { address, room: None }.is_own(&maps, in_stack);
        // These limits are in the host's stack, or in the gap into which the main thread's stack may grow.
        assert!(own(0xf0000, 0xff000) && own(0xe0000, 0xff000) && own(0x90000, 0x9ff00) && own(1, 0x9ff00));
        // These limits are in the stack of an earlier restore, or in another mapping.
        assert!(!own(0x48000, 0xff000) && !own(0x9ffff, 0xff000) && !own(0x48000, 0x9ff00));
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
