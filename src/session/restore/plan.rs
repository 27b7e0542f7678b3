//! What is known about a process before it is changed, and whether it can go on from an image.

use super::alone::Own;
use super::{PAGE, WASM_PAGE};
use crate::arch::x64;
use crate::error::Error;
use crate::process::live::held::Held;
use crate::process::{Mapping, Memory, MemoryError, Thread, ThreadId};
use crate::report::counted;
use crate::runtime::all::Runtimes;
use crate::runtime::singlepass::module::ctx;
use crate::runtime::{GuestInstance, InstanceParts, Provider};
use crate::session::image::wasm_thread;
use crate::session::look::Look;
use crate::session::snapshot::wasm_run;
use crate::session::walking::Native;
use crate::state::resume::StackSpec;
use crate::state::{ImageView, KnownRegisters, PointKind, ResumeStack, resume_stack};
use crate::unwind::{Cursor, Stack};

/// If there are more bytes of stack above a limit than this, it is as if there were no limit.
const MAX_ROOM: u64 = 1 << 30;
/// Number of Wasm pages that can be addressed with 32 bits.
const MAX_WASM_PAGES: u64 = 0x1_0000;

/// What is known about the thread and its instance before anything is changed.
pub(super) struct Plan {
    pub thread: ThreadId,
    pub parts: InstanceParts,
    pub place: StackSpec,
    pub limit: Option<StackLimit>,
    /// The most Wasm pages that the memory may have, if a maximum is known.
    pub maximum: Option<u64>,
    pub notes: Vec<String>,
}

/// The lowest address at which a function of a module with stack checks may begin
/// (`vm.rs: InternalCtx::stack_lower_bound`), if the host has set it: the runtime itself never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StackLimit {
    /// The address itself. It is from the host, or from an earlier restore.
    pub address: u64,
    /// Number of bytes from the limit up to where the oldest Wasm frame was called. `None` if there are so many that
    /// the limit is no limit.
    pub room: Option<u64>,
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

/// Finds out who goes on, and what would be replaced. The process is refused if somebody else may be in the instance,
/// or if something is not known that is needed.
pub(super) fn plan(held: &Held, look: &Look<'_>, provider: &mut Runtimes) -> Result<Plan, Error> {
    let target = look.target;
    let native = Native::new(target, look.objects);
    let chosen = look.threads()?;
    // All threads are walked, whichever is meant: it must be known who else is in its instance.
    let all: Vec<&Thread> = target.threads().iter().collect();
    let stacks = look.walk(&all, &native, provider);
    // What the user's `.wasm` files declare is needed below.
    if !look.options.wasm.is_empty() {
        provider.match_files(target);
    }
    let runtime = provider.runtime();
    let of_chosen: Vec<Option<Stack>> =
        all.iter().zip(&stacks).filter(|(t, _)| chosen.iter().any(|c| c.id == t.id)).map(|(_, s)| s.clone()).collect();
    let thread = wasm_thread(runtime, target, &chosen, &of_chosen)?;
    let tid = thread.tid;
    if !thread.on_top {
        let what = format!(
            "thread {} is in native code that Wasm has called; it must be in Wasm code itself, since nobody can take back \
             what native code is in the middle of; if it does not stay there, try again",
            tid.0
        );
        return Err(Error::NotInWasm { tid: tid.0, what });
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
    let (place, sp) = place_of(caller, target, &parts)?;
    let lower_bound = word(target, parts.vmctx.wrapping_add(ctx::STACK_LOWER_BOUND))?;
    let limit = StackLimit::of(lower_bound, sp).map_err(refused)?;
    let notes = notes_on(&parts, limit, target.mappings(), place.outer_rbp);
    // The maximum is known for the first memory that the module defines. For an imported memory, the exporter
    // decides.
    let declared = parts.memory_at.and_then(|_| runtime.declared(thread.youngest.module, target).memories.ok());
    let maximum = declared.and_then(|memories| memories.first()?.maximum_in_wasm_pages());
    Ok(Plan { thread: tid, parts, place, limit, maximum, notes })
}

fn word(memory: &dyn Memory, address: u64) -> Result<u64, Error> {
    memory.read_u64(address).map_err(|e| refused(e.to_string()))
}

fn refused(what: String) -> Error {
    Error::Refused { what }
}

/// Where the frames of an image return to, and the stack pointer there: `caller` called the thread's oldest Wasm frame.
fn place_of(caller: &Cursor, memory: &dyn Memory, parts: &InstanceParts) -> Result<(StackSpec, u64), Error> {
    let (Some(sp), Some(rbp)) = (caller.registers.sp(), caller.registers.get(x64::RBP)) else {
        return Err(refused("the registers of the oldest Wasm frame's caller are not known".to_string()));
    };
    let mut registers = KnownRegisters::UNKNOWN;
    for reg in [x64::RBX, x64::R12, x64::R13, x64::R14, x64::R15] {
        let value = caller.registers.get(reg);
        let value = value.ok_or_else(|| refused(format!("{reg} of the oldest Wasm frame's caller is not known")))?;
        registers.set(reg, Some(value));
    }
    let place = StackSpec {
        top: 0,
        outer: [caller.address.raw(), word(memory, sp)?, word(memory, sp.wrapping_add(8))?],
        outer_rbp: rbp,
        code_base: parts.code_base,
        vmctx: parts.vmctx,
        registers,
    };
    Ok((place, sp))
}

/// What a reader should know before the process is changed. `in_stack` is an address in the thread's stack.
fn notes_on(parts: &InstanceParts, limit: Option<StackLimit>, mappings: &[Mapping], in_stack: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(limit) = limit {
        let own = match limit.is_own(mappings, in_stack) {
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
    notes
}

impl Plan {
    /// Puts the image's frames on a stack that ends at `top`.
    pub fn stack(&self, image: &ImageView, top: u64, memory: &dyn Memory) -> Result<ResumeStack, String> {
        let place = StackSpec { top, ..self.place };
        resume_stack(&self.parts.map, &image.execution_state, &place, &mut |at| memory.read_u64(at).ok())
            .map_err(|e| format!("the image does not fit the module: {e}"))
    }

    pub fn grow_by(&self, memory: u64) -> u64 {
        memory.saturating_sub(self.parts.memory.map_or(0, |(_, size)| size))
    }

    /// Checks everything that can be known before the process is changed.
    pub fn check(&self, image: &ImageView, memory: u64, result: Option<u64>) -> Result<(), String> {
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
    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
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
}
