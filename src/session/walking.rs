//! Walks the stacks of threads, and has modules looked for where a stack leads to code that nobody knows.

use crate::arch::CodeAddress;
use crate::limits;
use crate::process::objects::Objects;
use crate::process::{Mapping, Memory, Target, Thread};
use crate::runtime::all;
use crate::runtime::{Provider, Runtime, Scene};
use crate::symbolize::native::NativeSymbolizer;
use crate::unwind::by_code::{CodeUnwinder, Known};
use crate::unwind::cfi::CfiUnwinder;
use crate::unwind::frame_pointer::FramePointerUnwinder;
use crate::unwind::recognised::RecognisedUnwinder;
use crate::unwind::{Cursor, End, Next, Stack, Unwinder, walk};
use std::rc::Rc;

/// Everything that unwinds native code.
pub(super) struct Native<'a> {
    pub objects: &'a Objects,
    pub cfi: CfiUnwinder<'a>,
    pub recognised: RecognisedUnwinder,
    pub code: CodeUnwinder<'a>,
    pub frame_pointer: FramePointerUnwinder<'a>,
    pub symbols: Rc<NativeSymbolizer<'a>>,
}

impl<'a> Native<'a> {
    pub fn new(target: &'a dyn Target, objects: &'a Objects) -> Native<'a> {
        Native::naming(target, objects, false)
    }

    /// Does what `new` does, with symbols that also give native code lines if `lines` is set.
    pub fn naming(target: &'a dyn Target, objects: &'a Objects, lines: bool) -> Native<'a> {
        let no_frame_pointer = |t: &Thread| t.registers.sp().is_some() && t.registers.fp().is_none();
        let symbols = Rc::new(NativeSymbolizer::new(objects).with_lines(lines));
        let named = Rc::clone(&symbols);
        let function = move |at| {
            let function = named.function(at)?;
            Some(Known { start: function.start, end: function.end, is_entry: function.is_entry })
        };
        Native {
            objects,
            cfi: CfiUnwinder::new(objects).reading_prologues(target.threads().iter().any(no_frame_pointer)),
            recognised: all::recognised(),
            code: CodeUnwinder::new(objects, target.mappings(), target.auxv(libc::AT_ENTRY), Box::new(function)),
            frame_pointer: FramePointerUnwinder::new(target.mappings()),
            symbols,
        }
    }
}

fn start(thread: &Thread) -> Option<Cursor> {
    let pc = thread.registers.pc()?;
    thread.registers.sp()?;
    Some(Cursor { address: CodeAddress::Exact(pc), registers: thread.registers.clone() })
}

/// Whether nobody can say what the code at `at` is: it is executable, and it is in no loaded file, in no known
/// module, and not recognised.
fn is_unknown(at: &Cursor, target: &dyn Target, native: &Native<'_>, runtime: &dyn Runtime) -> bool {
    // A mapped file that is no loaded file of the target may be compiled code that a runtime keeps on disk.
    target.mapping_at(at.address.lookup()).is_some_and(Mapping::may_execute)
        && native.objects.find(at.address.lookup()).is_none()
        && runtime.module_of(at.address.lookup()).is_none()
        && native.recognised.stub_name(at.address, target).is_none()
}

/// Walks the chosen threads until no unknown code is left or nothing more is found. There is no stack of a thread whose
/// registers are not known.
pub(super) fn walk_all(
    scene: &Scene<'_>,
    threads: &[&Thread],
    native: &Native<'_>,
    provider: &mut dyn Provider,
    limit: usize,
) -> Vec<Option<Stack>> {
    let target = scene.target;
    let mut stacks: Vec<Option<Stack>> = vec![None; threads.len()];
    let mut again: Vec<usize> = (0..threads.len()).collect();
    let mut walked = 0;
    for round in 0..limits::MAX_WALK_ROUNDS {
        let runtime = provider.runtime();
        let mut unknown: Vec<Cursor> = Vec::new();
        let mut incomplete = Vec::new();
        // A stack that is lost in native code may have led to Wasm, so modules are looked for all the same.
        let mut lost = false;
        for &i in &again {
            let Some(start) = start(threads[i]) else { continue };
            // Every thread keeps its youngest frames, even if other threads have used up the total number of frames.
            walked -= stacks[i].as_ref().map_or(0, |before| before.frames.len());
            let limit = limit.min(limits::MAX_FRAMES_TOTAL.saturating_sub(walked).max(limits::MIN_FRAMES));
            let unwinders: [&dyn Unwinder; 6] = [
                &AsUnwinder(runtime),
                &native.cfi,
                &native.recognised,
                &native.code,
                &Recovery(runtime),
                &native.frame_pointer,
            ];
            let stack = walk(start, &unwinders, target, limit);
            let before = unknown.len();
            let candidates = stack.frames.iter().map(|f| &f.cursor);
            unknown.extend(
                candidates.filter(|c| is_unknown(c, target, native, runtime)).take(limits::MAX_WALK_ROUNDS).cloned(),
            );
            let cut_short = matches!(stack.end, End::Lost(_));
            lost |= cut_short;
            if unknown.len() > before || cut_short {
                incomplete.push(i);
            }
            walked += stack.frames.len();
            stacks[i] = Some(stack);
        }
        // The first round looks for modules even if no frame needs them: the modules of an idle process are worth a
        // line in the report.
        if unknown.is_empty() && round > 0 && !lost {
            break;
        }
        if provider.discover(scene, &unknown, lost) == 0 {
            break;
        }
        again = incomplete;
        if again.is_empty() {
            break;
        }
    }
    stacks
}

/// A runtime as an unwinder (upcasting a trait object reference).
pub(super) struct AsUnwinder<'a>(pub &'a dyn Runtime);

impl Unwinder for AsUnwinder<'_> {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        self.0.step(at, memory)
    }
}

/// A runtime's own tables as an unwinder: its last means to find a caller before the frame pointer is used.
struct Recovery<'a>(&'a dyn Runtime);

impl Unwinder for Recovery<'_> {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        self.0.recover(at, memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Machine, Registers, x64};
    use crate::process::objects::SearchPaths;
    use crate::process::testing::CoreBuilder;
    use crate::progress::Silent;
    use crate::runtime::all::{FindOptions, Runtimes};
    use crate::session::look::frames_of;

    /// A provider that finds something each time and explains nothing.
    struct Endless {
        none: Runtimes,
        rounds: Vec<usize>,
    }

    impl Provider for Endless {
        fn discover(&mut self, _: &Scene<'_>, unknown: &[Cursor], _: bool) -> usize {
            self.rounds.push(unknown.len());
            1
        }

        fn runtime(&self) -> &dyn Runtime {
            self.none.runtime()
        }
    }

    #[test]
    fn a_walk_has_an_end() {
        assert_eq!(frames_of(None), (limits::MAX_FRAMES, limits::MAX_FRAMES));
        assert_eq!(frames_of(Some(usize::MAX)), (limits::MAX_FRAMES, limits::MAX_FRAMES));
        assert_eq!(frames_of(Some(1)), (1, limits::MIN_WALK));

        // The stack has frame records that lead to each other, in code that nobody knows, behind a call.
        let (code, stack) = (0x10_0000, 0x2000_0000);
        let records = (0..200u64).flat_map(|i| [stack + (i + 1) * 16, code + 0x10]);
        let bytes: Vec<u8> = records.flat_map(u64::to_le_bytes).collect();
        let mut registers = Registers::unknown(Machine::X64);
        for (reg, value) in [(x64::RIP, code), (x64::RSP, stack), (x64::RBP, stack)] {
            registers.set(reg, value);
        }
        let mut text = [0x90; 0x1000];
        text[0x0b..0x10].copy_from_slice(&[0xe8, 0, 1, 0, 0]);
        let core = CoreBuilder::new().memory(code, 5, &text).memory(stack, 6, &bytes);
        let core = core.thread(1, 0, &registers, 0).open().unwrap();
        let objects = Objects::load(&core, &SearchPaths::default());
        let native = Native::new(&core, &objects);
        let scene = Scene { target: &core, objects: &objects, progress: &Silent };
        let mut endless = Endless { none: Runtimes::new(&FindOptions::default()), rounds: Vec::new() };
        let threads: Vec<&Thread> = core.threads().iter().collect();
        let stacks = walk_all(&scene, &threads, &native, &mut endless, 150);
        assert_eq!(stacks[0].as_ref().map(|s| s.frames.len()), Some(150));
        assert_eq!(endless.rounds, [limits::MAX_WALK_ROUNDS; limits::MAX_WALK_ROUNDS]);
    }
}
