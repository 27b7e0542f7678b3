//! Finds the instance that called out to the host, from what is left of it in registers, on the stack and in the
//! store.

use super::frame::KEPT;
use crate::arch::x64;
use crate::limits::MAX_EXIT_BYTES;
use crate::process::Memory;
use crate::runtime::wasmtime::instance::offsets::{StoreLayout, VMCONTEXT_MAGIC, VMCONTEXT_STORE};
use crate::runtime::wasmtime::tables::code::Code;
use crate::unwind::Cursor;

/// Whether a `VMContext` of a core module is at `address`.
pub fn is_vmctx(address: u64, memory: &dyn Memory) -> bool {
    let mut magic = [0; 4];
    address != 0 && address.is_multiple_of(16) && memory.read(address, &mut magic).is_ok() && magic == VMCONTEXT_MAGIC
}

/// Whether the call from `caller` to the exit trampoline `at` is the last exit from Wasm in the records of the store
/// to which the instance at `vmctx` belongs. `None` if it is not known.
fn is_last_exit(vmctx: u64, code: &Code, at: &Cursor, caller: &Cursor, memory: &dyn Memory) -> Option<bool> {
    let layout = StoreLayout::new(code.version?)?;
    let store = memory.read_u64(vmctx.checked_add(VMCONTEXT_STORE)?).ok()?;
    let word = |offset| memory.read_u64(store.checked_add(offset)?).ok();
    let frame = if layout.exit_fp_is_trampolines { at } else { caller }.registers.get(x64::RBP);
    // A recursive function can exit again from the same place. Then only the frame pointer is another one.
    let same_frame = frame.is_none_or(|frame| word(layout.last_exit_fp) == Some(frame));
    Some(word(layout.last_exit_pc)? == caller.address.raw() && same_frame)
}

/// The instances that may have called out through the exit trampoline `at`. The trampoline keeps its caller's
/// instance in a register of its own choice, and other registers may hold the store's own instance or further
/// instances of the store. If a store says that this call was its last exit, only instances of such a store are
/// returned.
pub fn instances(code: &Code, at: &Cursor, caller: &Cursor, memory: &dyn Memory) -> Vec<u64> {
    let mut found = Vec::new();
    for vmctx in KEPT.iter().filter_map(|r| at.registers.get(*r)).filter(|v| is_vmctx(*v, memory)) {
        if !found.contains(&vmctx) {
            found.push(vmctx);
        }
    }
    // A store remembers only its last exit. It knows nothing any more about an outer activation, for which all
    // candidates stay.
    let last_exit = |v: &u64| is_last_exit(*v, code, at, caller, memory) == Some(true);
    if found.iter().any(last_exit) {
        found.retain(last_exit);
    }
    found
}

/// An instance of the store that the call from `caller` left through the exit trampoline `at`: any instance that the
/// trampoline, or native code below it, still has on the stack. It is taken if its own store names this call as the
/// last exit. The caller may have run in another instance of the store.
pub fn store_member(code: &Code, at: &Cursor, caller: &Cursor, memory: &dyn Memory) -> Option<u64> {
    let (frame, sp) = (at.registers.get(x64::RBP)?, at.registers.sp()?);
    // Both frame pointers must be known, so that the frame can be compared as well as the return address. One of the
    // two alone is not proof enough, since old words lie about on a stack.
    caller.registers.get(x64::RBP)?;
    let begin = sp.checked_sub(MAX_EXIT_BYTES as u64)?.checked_next_multiple_of(8)?;
    let len = usize::try_from(frame.checked_sub(begin)?).ok().filter(|len| *len <= 2 * MAX_EXIT_BYTES)?;
    let mut bytes = vec![0; len & !7];
    // The words nearest to the trampoline's frame are the likeliest, so they are tried first. In a core the memory
    // below the end of the stack cannot be read, and counts as zeros.
    let words = |bytes: &[u8]| bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect::<Vec<_>>();
    for (i, piece) in bytes.chunks_mut(512).enumerate() {
        if memory.read(begin.checked_add(i as u64 * 512)?, piece).is_err() {
            piece.fill(0);
        }
    }
    words(&bytes)
        .into_iter()
        .rev()
        .filter(|v| *v > 0x1000 && is_vmctx(*v, memory))
        .find(|v| is_last_exit(*v, code, at, caller, memory) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wasmtime::image::Image;
    use crate::runtime::wasmtime::image::version::Version;
    use crate::runtime::wasmtime::testing::fixture;
    use crate::unwind::testing::{Pieces, cursor};

    #[test]
    fn so_much_of_the_stack_below_an_exit_is_searched() {
        let (base, pc) = (0x7f00_0000_0000, 0x7f00_0000_1234);
        let (vmctx, store, sp) = (0x5000_0010, 0x5100_0000, 0x7ffd_0010_0000);
        let memory = Pieces::default().bytes(base, &fixture("48-default"));
        let code = Code::load(Image::read(&memory, base).unwrap(), None, &memory);
        let layout = StoreLayout::new(Version(48)).unwrap();
        let most = MAX_EXIT_BYTES as u64;
        // Each case says how far below the stack pointer an instance stands, how far above it the frame is, and
        // whether the instance is found.
        for (below, above, found) in
            [(8, most, true), (most, 0x100, true), (most + 8, 0x100, false), (8, most + 8, false)]
        {
            let frame = sp + above;
            let mut stack = vec![0; 4 * most as usize / 8];
            stack[((2 * most - below) / 8) as usize] = vmctx;
            let memory = Pieces(memory.0.clone())
                .words(vmctx, &[u32::from_le_bytes(VMCONTEXT_MAGIC).into(), store])
                .word(store + layout.last_exit_fp, frame)
                .word(store + layout.last_exit_pc, pc)
                .words(sp - 2 * most, &stack);
            let at = cursor(base, &[(x64::RSP, sp), (x64::RBP, frame)]);
            let caller = cursor(pc, &[(x64::RBP, frame)]);
            assert_eq!(store_member(&code, &at, &caller, &memory), found.then_some(vmctx), "{below:#x} {above:#x}");
        }
    }
}
