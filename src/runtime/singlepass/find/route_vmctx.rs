//! The vmctx route: compiled code keeps the address of its instance's `vm::Ctx` in r15 (`machine.rs: get_vmctx_reg`)
//! and hands it to every callee in rdi, so registers and stacks of threads that run or call Wasm hold it. From there
//! the way goes on: `Ctx.module` -> `ModuleInner.cache_gen` -> `SinglepassCache.buffer`.
//!
//! `vm::Ctx` is `repr(C)`, but the Rust objects behind it are not. Their fields are found by what they must hold,
//! wherever the compiler put them.

use super::anchor::{Anchor, AnchorError, Route, believe, code_starts, confirm, merge};
use super::route_heap::deadline;
use crate::arch::{Reg, x64};
use crate::limits;
use crate::process::{Mapping, Target};
use crate::runtime::rust::arc;
use crate::runtime::singlepass::module::cache_image::{CacheImage, ImageBytes, PAGE};
use crate::runtime::singlepass::module::ctx::Ctx;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Offset at which rustc 1.95 puts `ModuleInner.runnable_module`. It is tried first.
const RUNNABLE_MODULE: u64 = 0x238;
/// Offset at which rustc 1.95 puts `ModuleInner.cache_gen`. It is tried first.
const CACHE_GEN: u64 = 0x240;
/// Bytes of a `ModuleInner` that are searched for its fields (its size is 0x250 with rustc 1.95).
const MODULE_INNER_SEARCHED: usize = 0x400;
/// The local backing, the import backing and `internals` are less than so many bytes apart: `LocalBacking` holds the
/// 2 KiB of `internals` itself and is boxed together with `ImportBacking` (`instance.rs: InstanceInner`).
const BACKING_SPAN: u64 = 0x2000;

/// Registers that may hold a vmctx, the likeliest first.
const REGISTERS: [Reg; 8] = [x64::R15, x64::RDI, x64::RBX, x64::R12, x64::R13, x64::R14, x64::RBP, x64::RSI];

/// Finds every module that has an instance in a register or near the top of a stack. The second result says what was
/// tried and why it failed.
pub fn find_vmctx(target: &dyn Target, progress: &dyn Fn(&str, u64, u64)) -> (Vec<Anchor>, Vec<String>) {
    let mut notes = Vec::new();
    let instances = instances(target, progress, &mut notes);
    (modules(target, &instances, progress, &mut notes), notes)
}

/// The module of the instance at `vmctx`, for example r15 of an unwound frame.
pub fn from_vmctx(target: &dyn Target, vmctx: u64) -> Result<Anchor, AnchorError> {
    let ctx = check_ctx(target, vmctx)?;
    let mut anchor = module(target, &ctx)?;
    anchor.vmctx.push(vmctx);
    Ok(anchor)
}

/// An instance that passed every check of its `vm::Ctx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instance {
    /// Address of the instance's `vm::Ctx`.
    vmctx: u64,
    /// Contents of that `vm::Ctx`.
    ctx: Ctx,
}

/// Finds every instance in the registers and near the top of the stack of any thread. What was left out is added to
/// `notes`.
fn instances(target: &dyn Target, progress: &dyn Fn(&str, u64, u64), notes: &mut Vec<String>) -> Vec<Instance> {
    let mut found: Vec<Instance> = Vec::new();
    let mut seen = BTreeSet::new();
    let until = deadline();
    let mut capped = None;
    let mut examine = |value: u64| {
        // A vmctx is a `Box`, so most words are ruled out here without a read. The others are often repeated on a
        // stack.
        if !is_object(target, value) || !seen.insert(value) {
            return;
        }
        if found.len() >= limits::MAX_INSTANCES {
            capped = Some("their number");
        } else if Instant::now() >= until {
            capped = Some("time");
        } else if let Ok(ctx) = check_ctx(target, value) {
            found.push(Instance { vmctx: value, ctx });
        }
    };
    let threads = target.threads();
    let taken = threads.len().min(limits::MAX_THREADS);
    let mut stack_bytes = 0;
    for (i, thread) in threads.iter().take(taken).enumerate() {
        progress("looking for instances in threads", i as u64, taken as u64);
        REGISTERS.iter().filter_map(|&r| thread.registers.get(r)).for_each(&mut examine);
        if let Some(sp) = thread.registers.sp()
            && stack_bytes < limits::MAX_STACK_SCAN_TOTAL
        {
            stack_bytes += stack_words(target, sp, &mut examine);
        }
    }
    if stack_bytes >= limits::MAX_STACK_SCAN_TOTAL {
        capped = Some("bytes of stack");
    }
    if let Some(what) = capped {
        notes.push(format!("vmctx: not all instances were looked for: limit of {what}"));
    }
    if found.is_empty() {
        notes.push(format!("vmctx: no instance in the registers or on the stacks of {taken} thread(s)"));
    }
    found
}

/// The modules of `instances`. Which instances lead nowhere, and why, is added to `notes`.
fn modules(
    target: &dyn Target,
    instances: &[Instance],
    progress: &dyn Fn(&str, u64, u64),
    notes: &mut Vec<String>,
) -> Vec<Anchor> {
    // Several instances can share a module.
    let mut modules: BTreeMap<u64, Result<Anchor, AnchorError>> = BTreeMap::new();
    let until = deadline();
    for (i, Instance { vmctx, ctx }) in instances.iter().enumerate() {
        progress("following instances to their modules", i as u64, instances.len() as u64);
        if Instant::now() >= until {
            notes.push(format!("vmctx: only {i} of {} instances were followed: limit of time", instances.len()));
            break;
        }
        let found = modules.entry(ctx.module).or_insert_with(|| module(target, ctx));
        if let Ok(anchor) = found {
            match is_of(target, ctx, anchor) {
                Some(false) => notes.push(format!(
                    "vmctx: the instance at {vmctx:#x} names the module at {:#x}, but its functions are elsewhere",
                    ctx.module
                )),
                Some(true) | None => add_instance(anchor, *vmctx),
            }
        }
    }
    notes.extend(modules.values().filter_map(|m| m.as_ref().err()).map(|e| format!("vmctx: {e}")));
    merge(modules.into_values().flatten().collect())
}

fn add_instance(anchor: &mut Anchor, vmctx: u64) {
    if let Err(at) = anchor.vmctx.binary_search(&vmctx) {
        anchor.vmctx.insert(at, vmctx);
    }
}

/// Calls `f` with the words of the stack from `sp` upwards, and returns how many bytes were read.
fn stack_words(target: &dyn Target, sp: u64, mut f: impl FnMut(u64)) -> u64 {
    let Some(at) = sp.checked_next_multiple_of(8) else { return 0 };
    let Some(m) = target.mapping_at(at) else { return 0 };
    let len = (m.end - at).min(limits::MAX_STACK_SCAN);
    let mut buf = vec![0; len as usize];
    let got = match target.read(at, &mut buf) {
        Ok(()) => buf.len(),
        Err(_) => target.read_some(at, &mut buf),
    };
    for w in buf[..got].as_chunks::<8>().0 {
        f(u64::from_le_bytes(*w));
    }
    got as u64
}

/// Whether `address` can be the address of a boxed object.
fn is_object(target: &dyn Target, address: u64) -> bool {
    address != 0
        && address.is_multiple_of(8)
        && target.mapping_at(address).is_some_and(|m| m.read && m.write && m.is_anonymous())
}

/// Reads the words at `address` and checks everything that must hold in a `vm::Ctx` (`vm.rs: Ctx::new`).
fn check_ctx(target: &dyn Target, address: u64) -> Result<Ctx, AnchorError> {
    let no = |why| Err(AnchorError::NotCtx { address, why });
    if !is_object(target, address) {
        return no("it is not the address of an object");
    }
    let Ok(ctx) = Ctx::read(target, address) else { return no("it cannot be read") };
    let mapped = |a: u64| target.mapping_at(a).is_some();
    let pointer_like = |a: u64| a.is_multiple_of(8) && a != 0;
    if !is_object(target, ctx.local_backing) || !is_object(target, ctx.import_backing) {
        return no("a backing is not the address of an object");
    }
    if ctx.internals.wrapping_sub(ctx.local_backing) >= BACKING_SPAN {
        return no("internals lie outside the local backing");
    }
    if ctx.local_backing.abs_diff(ctx.import_backing) >= BACKING_SPAN {
        return no("the backings are not in one box");
    }
    if !is_object(target, ctx.module) {
        return no("module is not the address of an object");
    }
    // The page need not be readable: an interrupt takes the permissions away.
    if ctx.interrupt_signal_mem == 0
        || !ctx.interrupt_signal_mem.is_multiple_of(PAGE)
        || !mapped(ctx.interrupt_signal_mem)
    {
        return no("interrupt_signal_mem is not a page");
    }
    // The pointers of empty arrays are dangling, but they are aligned and never null.
    let arrays = [
        ctx.memories,
        ctx.tables,
        ctx.globals,
        ctx.imported_memories,
        ctx.imported_tables,
        ctx.imported_globals,
        ctx.imported_funcs,
        ctx.local_functions,
    ];
    if !arrays.into_iter().all(pointer_like) || ctx.dynamic_sigindices == 0 || !ctx.dynamic_sigindices.is_multiple_of(4)
    {
        return no("an array is null or misaligned");
    }
    if ctx.memory_bound > limits::MAX_LINEAR_MEMORY || (ctx.memory_base == 0 && ctx.memory_bound != 0) {
        return no("no linear memory is like this");
    }
    if ctx.memory_bound != 0
        && !(mapped(ctx.memory_base) && mapped(ctx.memory_base.saturating_add(ctx.memory_bound - 1)))
    {
        return no("the linear memory is not mapped");
    }
    if ctx.intrinsics != 0 && !mapped(ctx.intrinsics) {
        return no("intrinsics are not mapped");
    }
    let executable = |a: u64| target.mapping_at(a).is_some_and(|m| m.execute);
    if ctx.data_finalizer != 0 && !executable(ctx.data_finalizer) {
        return no("data_finalizer is not code");
    }
    Ok(ctx)
}

/// The first entry of `Ctx.local_functions`, if it is the address of code.
fn first_function(target: &dyn Target, ctx: &Ctx) -> Option<u64> {
    let f = target.read_u64(ctx.local_functions).ok()?;
    target.mapping_at(f).filter(|m| m.execute && m.is_anonymous()).map(|_| f)
}

/// Whether the instance's function table leads to the code of `anchor`; `None` if the module defines no functions.
fn is_of(target: &dyn Target, ctx: &Ctx, anchor: &Anchor) -> Option<bool> {
    let offset = anchor.function_offsets.get(anchor.import_count as usize)?;
    Some(first_function(target, ctx) == Some(anchor.code_base + offset))
}

/// Finds the image and the code of a checked instance's module.
fn module(target: &dyn Target, ctx: &Ctx) -> Result<Anchor, AnchorError> {
    let mut words = vec![0; MODULE_INNER_SEARCHED];
    let got = target.read_some(ctx.module, &mut words);
    let words: Vec<u64> = words[..got].as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();

    let mut best = AnchorError::NoImage { module: ctx.module };
    for (offset, pair) in pairs(&words, CACHE_GEN) {
        let Some(image) = cached_image(target, pair) else { continue };
        match image_code(target, ctx, &image) {
            Ok(mut anchor) => {
                anchor.module_inner = Some(ctx.module);
                anchor.checks.push(format!(
                    "the module at {:#x} owns the cached image (Box<dyn CacheGen> at +{offset:#x}, then Arc<[u8]>)",
                    ctx.module
                ));
                if anchor.function_offsets.len() as u64 > anchor.import_count {
                    anchor.checks.push("the instance's first local function is where the image puts it".to_string());
                }
                anchor.checks.extend(execution_context(target, &words, &anchor));
                return believe(anchor);
            }
            Err(e) => best = e,
        }
    }
    Err(best)
}

/// All pairs of neighbouring words with their offset in bytes. The pair at offset `first` (bytes) comes before all
/// others.
fn pairs(words: &[u64], first: u64) -> impl Iterator<Item = (u64, [u64; 2])> {
    let at = move |i: usize| Some((i as u64 * 8, [*words.get(i)?, *words.get(i + 1)?]));
    let first = (first / 8) as usize;
    std::iter::once(first).chain((0..words.len()).filter(move |&i| i != first)).filter_map(at)
}

/// Size and alignment that a trait object's vtable at `address` claims, if there is a vtable: it must not be in
/// anonymous memory that the program can write, and its drop function must be code.
fn vtable(target: &dyn Target, address: u64) -> Option<(u64, u64)> {
    let constant = |m: &Mapping| m.read && (!m.write || !m.is_anonymous());
    if !address.is_multiple_of(8) || address == 0 || !target.mapping_at(address).is_some_and(constant) {
        return None;
    }
    let (drop, size, align) = (
        target.read_u64(address).ok()?,
        target.read_u64(address.checked_add(8)?).ok()?,
        target.read_u64(address.checked_add(16)?).ok()?,
    );
    // Both types that are looked for own something, so there is a drop function. It need not be in a file, since a
    // core need not name its files.
    target.mapping_at(drop).filter(|m| m.execute)?;
    (align.is_power_of_two() && align <= PAGE && size.is_multiple_of(align)).then_some((size, align))
}

/// The image behind a `Box<dyn CacheGen>`. The box holds a `SinglepassCache { buffer: Arc<[u8]> }`, which is two
/// words: the address of the `Arc`'s header, before the payload, and the payload's length.
fn cached_image<'a>(target: &'a dyn Target, [data, table]: [u64; 2]) -> Option<ImageBytes<'a>> {
    if !is_object(target, data) || vtable(target, table)? != (16, 8) {
        return None;
    }
    let (arc, len) = (target.read_u64(data).ok()?, target.read_u64(data.checked_add(8)?).ok()?);
    if !is_object(target, arc) || len > limits::MAX_IMAGE_BYTES || !has_counts(target, arc) {
        return None;
    }
    let address = arc.checked_add(arc::COUNTS)?;
    // Nothing is allocated for a length that leaves mapped memory.
    target.mapping_at(address.checked_add(len.checked_sub(1)?)?)?;
    Some(ImageBytes::Target { memory: target, address, len, exact: true })
}

/// Whether `arc` can be the address of an `Arc`'s reference counts, as it is in the runtime's own structures.
fn has_counts(target: &dyn Target, arc: u64) -> bool {
    arc::counts(target, arc, limits::MAX_REFERENCES).is_some()
}

/// Finds the code of an image. The instance's function table says where that is. A module that defines no functions
/// has no such table, so all executable memory is compared.
fn image_code(target: &dyn Target, ctx: &Ctx, image: &ImageBytes<'_>) -> Result<Anchor, AnchorError> {
    let header = CacheImage::parse(image)?;
    let at = |base, limit| confirm(target, Route::Vmctx, image, &header, base, limit);
    let lost = AnchorError::NoCode { code_size: header.code_size };
    match header.first_local() {
        Some(offset) => {
            let function = first_function(target, ctx).ok_or(lost.clone())?;
            let base = function.checked_sub(offset).ok_or(lost.clone())?;
            let limit = executable_end(target, base).ok_or(lost)?;
            at(base, limit)
        }
        None => code_starts(target, &mut Vec::new()).into_iter().find_map(|s| at(s.address, s.limit).ok()).ok_or(lost),
    }
}

/// End of the anonymous executable range that covers `address`.
fn executable_end(target: &dyn Target, address: u64) -> Option<u64> {
    let is_code = |m: &&Mapping| m.execute && m.is_anonymous();
    let mut end = target.mapping_at(address).filter(is_code)?.end;
    while let Some(next) = target.mapping_at(end).filter(is_code).filter(|m| m.end > end) {
        end = next.end;
    }
    Some(end)
}

/// Finds the `X64ExecutionContext` behind `ModuleInner.runnable_module`, an `Arc<Box<dyn RunnableModule>>`. Its
/// `CodeMemory` is the code's address and size, in either order.
fn execution_context(target: &dyn Target, words: &[u64], anchor: &Anchor) -> Option<String> {
    pairs(words, RUNNABLE_MODULE).find_map(|(offset, [arc, _])| {
        if !is_object(target, arc) || !has_counts(target, arc) {
            return None;
        }
        let data = target.read_u64(arc.checked_add(16)?).ok()?;
        let (size, _) = vtable(target, target.read_u64(arc.checked_add(24)?).ok()?)?;
        if !is_object(target, data) {
            return None;
        }
        let mut bytes = vec![0; size.min(limits::MAX_CONTEXT_BYTES) as usize];
        target.read(data, &mut bytes).ok()?;
        let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
        let (base, size) = (anchor.code_base, anchor.code_size);
        let code = words.windows(2).position(|w| *w == [base, size] || *w == [size, base])?;
        Some(format!(
            "the module's RunnableModule at {data:#x} (Arc at +{offset:#x}) holds the code's address and size (+{:#x})",
            code * 8
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::singlepass::fake::{Built, CODE, Fake, HEAP, RODATA, STACK, TEXT, make, patch, quiet};

    #[test]
    fn an_instance_is_found_in_registers_and_on_stacks() {
        let m = make(1, 3, 1);
        for shift in [0, 0x18, -0x200, 0x100] {
            let mut f = Fake::new();
            f.code(CODE, &m.code);
            // In other layouts of `ModuleInner` the fields are found by what they hold.
            let b = f.module(&m, CODE, shift);
            let one = f.instance(&m, CODE, b).vmctx;
            let two = f.instance(&m, CODE, b).vmctx;
            f.thread(&[(x64::RSP, STACK + 1), (x64::R12, one + 8)]);
            f.thread(&[(x64::R15, one)]);
            f.words(STACK + 0x80, &[two]);
            let (anchors, notes) = find_vmctx(&f, &quiet);
            assert_eq!((anchors.len(), notes.len()), (1, 0), "{shift}: {notes:?}");
            let a = &anchors[0];
            assert_eq!((a.code_base, a.module_inner, &a.vmctx[..]), (CODE, Some(b.module), &[one, two][..]));
            assert_eq!(a.checks.iter().filter(|c| c.contains("RunnableModule")).count(), 1, "{:?}", a.checks);
        }
    }

    #[test]
    fn every_field_that_cannot_be_right_is_refused() {
        let m = make(0, 2, 1);
        let bad: [(u64, u64); 13] = [
            (0x00, 0),
            (0x38, 2),
            (0x40, 0x1234_0000_0000),
            (0x50, 0),
            (0x50, 0x1234_0000_0000),
            (0x58, limits::MAX_LINEAR_MEMORY + 1),
            (0x60, HEAP),
            (0x68, HEAP + 8),
            (0x68, 0x1234_0000_0000),
            (0x78, RODATA),
            (0x80, HEAP + 0xf_0000),
            (0x88, TEXT),
            (0x98, HEAP),
        ];
        for (at, value) in bad {
            let mut f = Fake::new();
            let b = f.load(&m, CODE);
            assert!(from_vmctx(&f, b.vmctx).is_ok());
            f.words(b.vmctx + at, &[value]);
            assert!(matches!(from_vmctx(&f, b.vmctx), Err(AnchorError::NotCtx { .. })), "{at:#x} {value:#x}");
        }
        let mut f = Fake::new();
        let b = f.load(&m, CODE);
        for wrong in [0, 1, b.vmctx + 4, b.vmctx + 8, CODE, u64::MAX, u64::MAX - 7] {
            assert!(matches!(from_vmctx(&f, wrong), Err(AnchorError::NotCtx { .. })), "{wrong:#x}");
        }
        // The permissions of the interrupt page come and go.
        f.words(b.vmctx + 0x68, &[0x7b00_0000]);
        f.map(0x7b00_0000, 0x1000, "---", None);
        assert!(from_vmctx(&f, b.vmctx).is_ok());
    }

    #[test]
    fn a_module_without_a_believable_image_is_refused() {
        let m = make(0, 2, 1);
        let broken = |edit: &dyn Fn(&mut Fake, Built)| {
            let mut f = Fake::new();
            let b = f.load(&m, CODE);
            edit(&mut f, b);
            from_vmctx(&f, b.vmctx).unwrap_err()
        };
        type E = AnchorError;
        // Pointers go in circles.
        assert!(matches!(broken(&|f, b| f.words(b.module + 0x240, &[b.module])), E::NoImage { .. }));
        assert!(matches!(broken(&|f, b| f.words(b.cache, &[b.cache])), E::NoImage { .. }));
        // The reference counts cannot be right, the length is beyond everything, or the length cuts the image off.
        assert!(matches!(broken(&|f, b| f.words(b.arc, &[0])), E::NoImage { .. }));
        assert!(matches!(broken(&|f, b| f.words(b.arc, &[1 << 40])), E::NoImage { .. }));
        assert!(matches!(broken(&|f, b| f.words(b.cache + 8, &[u64::MAX])), E::NoImage { .. }));
        assert!(matches!(broken(&|f, b| f.words(b.cache + 8, &[1 << 30])), E::NoImage { .. }));
        assert!(matches!(broken(&|f, b| f.words(b.cache + 8, &[4100])), E::NotImage(_)));
        // The vtable's drop function is data, or the vtable is of another type.
        assert!(matches!(broken(&|f, _| f.words(RODATA, &[HEAP])), E::NoImage { .. }));
        assert!(matches!(broken(&|f, _| f.words(RODATA + 8, &[24])), E::NoImage { .. }));
        // The code is not the image's.
        assert_eq!(broken(&|f, _| f.write(CODE + 45, &[2])), E::Different { base: CODE, offset: 45 });
    }

    #[test]
    fn a_missing_execution_context_only_costs_a_check() {
        let m = make(0, 2, 1);
        let mut f = Fake::new();
        let b = f.load(&m, CODE);
        f.write(CODE, &patch(0x99));
        f.words(b.context + 0x70, &[0, 0]);
        let a = from_vmctx(&f, b.vmctx).unwrap();
        assert!(!a.checks.iter().any(|c| c.contains("RunnableModule")));
        assert_eq!(a.patched, [(0, 0x99)]);
    }

    #[test]
    fn an_instance_whose_functions_are_elsewhere_is_not_listed() {
        let m = make(0, 2, 1);
        let mut f = Fake::new();
        let b = f.load(&m, CODE);
        let stray = f.instance(&m, CODE + 0x10, b).vmctx;
        f.thread(&[(x64::R15, b.vmctx), (x64::RDI, stray)]);
        let (anchors, notes) = find_vmctx(&f, &quiet);
        assert_eq!(anchors[0].vmctx, [b.vmctx]);
        assert!(notes[0].contains("its functions are elsewhere"), "{notes:?}");
        let (none, notes) = find_vmctx(&Fake::new(), &quiet);
        assert!(none.is_empty() && notes[0].contains("no instance in the registers"), "{notes:?}");
    }

    #[test]
    fn instances_are_looked_for_within_limits() {
        let m = make(0, 1, 1);
        let mut f = Fake::new();
        f.code(CODE, &m.code);
        let b = f.module(&m, CODE, 0);
        let all: Vec<u64> = (0..=limits::MAX_INSTANCES).map(|_| f.instance(&m, CODE, b).vmctx).collect();
        f.words(STACK, &all);
        f.thread(&[(x64::RSP, STACK)]);
        let mut notes = Vec::new();
        assert_eq!(instances(&f, &quiet, &mut notes).len(), limits::MAX_INSTANCES);
        assert!(notes[0].contains("limit of their number"), "{notes:?}");

        // A part of each stack is searched, and only so many bytes of all stacks together.
        let most = limits::MAX_STACK_SCAN_TOTAL / limits::MAX_STACK_SCAN;
        for (threads, capped) in [(most - 1, false), (most, true), (most + 1, true)] {
            let mut f = Fake::new();
            f.map(CODE, limits::MAX_STACK_SCAN + 0x1000, "rw-", None);
            assert_eq!(stack_words(&f, CODE, |_| ()), limits::MAX_STACK_SCAN);
            (0..threads).for_each(|_| f.thread(&[(x64::RSP, CODE)]));
            let mut notes = Vec::new();
            instances(&f, &quiet, &mut notes);
            assert_eq!(notes.iter().any(|n| n.contains("limit of bytes of stack")), capped);
        }
    }

    #[test]
    fn so_much_of_a_context_is_searched() {
        let m = make(0, 1, 1);
        for (at, found) in [(limits::MAX_CONTEXT_BYTES - 16, true), (limits::MAX_CONTEXT_BYTES - 8, false)] {
            let mut f = Fake::new();
            let b = f.load(&m, CODE);
            f.words(RODATA + 0x40, &[TEXT + 0x20, 2 * limits::MAX_CONTEXT_BYTES, 8]);
            f.words(b.context + 0x70, &[0, 0]);
            f.words(b.context + at, &[CODE, m.code.len() as u64]);
            let checks = from_vmctx(&f, b.vmctx).unwrap().checks;
            assert_eq!(checks.iter().any(|c| c.contains("RunnableModule")), found, "{checks:?}");
        }
    }
}
