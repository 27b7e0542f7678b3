//! For hosts: they publish compiled modules, so that a debugger finds the modules without knowing anything
//! about the host's compiler.
//!
//! This is the idea of GDB's JIT interface, made for Wasm runtimes: one static with a known name and known first
//! bytes leads to a list of modules. Each entry says where the code of a module is and where its state map lies.
//! wstate reads the list from outside, in a live process as in a core, with or without symbols. Publishing a module
//! costs one copy of its encoded map. Running code costs nothing.
//!
//! With wasmer 0.18 and its singlepass backend, a host does this after it has compiled a module:
//!
//! ```
//! # struct Map; impl Map { fn try_to_vec(&self) -> std::io::Result<Vec<u8>> { Ok(vec![0; 12]) } }
//! # struct Runnable; impl Runnable {
//! #     fn get_module_state_map(&self) -> Option<Map> { Some(Map) }
//! #     fn get_code(&self) -> Option<&[u8]> { Some(&[0xc3]) }
//! # }
//! # fn publish(runnable: &Runnable) -> std::io::Result<Option<wstate_descriptor::Registration>> {
//! // let runnable = &instance.module.runnable_module;
//! let (Some(map), Some(code)) = (runnable.get_module_state_map(), runnable.get_code()) else { return Ok(None) };
//! // `borsh` in the version that the runtime uses has `try_to_vec`.
//! let registration = wstate_descriptor::publish(code.as_ptr(), code.len(), map.try_to_vec()?, "app.wasm");
//! // Keep it exactly as long as the module: dropping it takes the module off the list.
//! # Ok(Some(registration))
//! # }
//! # assert!(publish(&Runnable).unwrap().is_some());
//! ```
//!
//! Compile with `track_state = true` (`CompilerConfig`). Otherwise the map says nothing about operand stacks.
//!
//! # Layout
//! All fields are little-endian 64-bit words of a 64-bit process unless said otherwise.
//!
//! | the static [`SYMBOL`] | | entry | |
//! |---|---|---|---|
//! | 0 | 16 bytes [`MAGIC`] | 0 | next entry, 0 ends the list |
//! | 16 | u32 [`VERSION`] | 8 | format of the map: 0 unused entry, 1 `ModuleStateMap` in borsh |
//! | 20 | u32 bytes of an entry, [`ENTRY_BYTES`] or more | 16, 24 | code: address, bytes |
//! | 24 | first entry | 32, 40 | map: address, bytes |
//! | | | 48, 56 | name in UTF-8: address, bytes |
//!
//! An entry is never freed: a debugger may stop the host at any instruction, also in the middle of a change. The format
//! word is written last when an entry is filled and first when it is emptied.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// First bytes of the descriptor: text, and bytes that no text has.
pub const MAGIC: [u8; 16] = *b"wstate\xf0\x9f\xaa\xb2jit\x01\x0d\x0a";
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Size of an entry in this version, in bytes.
pub const ENTRY_BYTES: u32 = 64;
/// The format of an entry whose map is a `ModuleStateMap` in borsh.
pub const FORMAT_STATE_MAP: u64 = 1;
/// Name of the static.
pub const SYMBOL: &str = "__wstate_descriptor";

/// The static that debuggers look for. It is aligned so that its magic never crosses a page.
#[repr(C, align(16))]
struct Descriptor {
    magic: [u8; 16],
    version: u32,
    entry_bytes: u32,
    first: AtomicPtr<Entry>,
}

#[repr(C)]
#[derive(Default)]
struct Entry {
    next: AtomicPtr<Entry>,
    format: AtomicUsize,
    code: AtomicUsize,
    code_len: AtomicUsize,
    map: AtomicUsize,
    map_len: AtomicUsize,
    name: AtomicUsize,
    name_len: AtomicUsize,
}

const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES as usize);

// Exporting a name is unsafe because another symbol of the same name could have another type. This name belongs to
// wstate.
#[allow(unsafe_code)]
#[unsafe(export_name = "__wstate_descriptor")]
#[used]
static DESCRIPTOR: Descriptor =
    Descriptor { magic: MAGIC, version: VERSION, entry_bytes: ENTRY_BYTES, first: AtomicPtr::new(ptr::null_mut()) };

/// Entries that were emptied and can be filled again. The lock of this list also protects the growth of the list of
/// entries in `DESCRIPTOR`.
static UNUSED: Mutex<Vec<&'static Entry>> = Mutex::new(Vec::new());

/// A published module. Dropping it takes the module off the list. It must be dropped before the module's code is
/// unmapped.
#[derive(Debug)]
#[must_use = "the module is off the list as soon as this is dropped"]
pub struct Registration {
    entry: &'static Entry,
    // The entry points to these two. They are freed after the entry is emptied, because `Drop` runs before fields are
    // dropped.
    _map: Box<[u8]>,
    _name: Box<str>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}+{:#x}", self.code.load(Ordering::Relaxed), self.code_len.load(Ordering::Relaxed))
    }
}

/// Publishes a module that has `code_len` bytes of code at `code_base`. `state_map_borsh` is its state map in the
/// runtime's own borsh encoding, and `name` is shown to users. Nothing is read through `code_base`.
pub fn publish(code_base: *const u8, code_len: usize, state_map_borsh: Vec<u8>, name: &str) -> Registration {
    let map = state_map_borsh.into_boxed_slice();
    let name: Box<str> = name.into();
    let mut unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner);
    let reused = unused.pop();
    let entry = match reused {
        Some(entry) => entry,
        None => Box::leak(Box::<Entry>::default()),
    };
    entry.code.store(code_base.addr(), Ordering::Relaxed);
    entry.code_len.store(code_len, Ordering::Relaxed);
    entry.map.store(map.as_ptr().addr(), Ordering::Relaxed);
    entry.map_len.store(map.len(), Ordering::Relaxed);
    entry.name.store(name.as_ptr().addr(), Ordering::Relaxed);
    entry.name_len.store(name.len(), Ordering::Relaxed);
    entry.format.store(FORMAT_STATE_MAP as usize, Ordering::Release);
    if reused.is_none() {
        entry.next.store(DESCRIPTOR.first.load(Ordering::Relaxed), Ordering::Relaxed);
        DESCRIPTOR.first.store(ptr::from_ref(entry).cast_mut(), Ordering::Release);
    }
    drop(unused);
    Registration { entry, _map: map, _name: name }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // `SeqCst` keeps the frees that follow from being moved before this store.
        self.entry.format.store(0, Ordering::SeqCst);
        UNUSED.lock().unwrap_or_else(PoisonError::into_inner).push(self.entry);
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emptied_entries_are_used_again() {
        let code = [0u8; 4];
        let first = publish(code.as_ptr(), 4, vec![1, 2, 3], "first");
        let entry: *const Entry = first.entry;
        assert_eq!(first.entry.format.load(Ordering::Relaxed), 1);
        assert_eq!(first.entry.map_len.load(Ordering::Relaxed), 3);
        drop(first);
        let second = publish(code.as_ptr(), 4, vec![], "second");
        assert_eq!(ptr::from_ref(second.entry), entry);
        assert_eq!(second.entry.name_len.load(Ordering::Relaxed), 6);
    }

    /// What the documentation says of the layout is how the compiler has laid it out.
    #[test]
    fn the_layout_is_the_one_that_is_described() {
        use std::mem::offset_of;
        let of_static =
            [offset_of!(Descriptor, version), offset_of!(Descriptor, entry_bytes), offset_of!(Descriptor, first)];
        assert_eq!((offset_of!(Descriptor, magic), of_static), (0, [16, 20, 24]));
        let of_entry = [
            offset_of!(Entry, next),
            offset_of!(Entry, format),
            offset_of!(Entry, code),
            offset_of!(Entry, code_len),
            offset_of!(Entry, map),
            offset_of!(Entry, map_len),
            offset_of!(Entry, name),
            offset_of!(Entry, name_len),
        ];
        assert_eq!(of_entry, [0, 8, 16, 24, 32, 40, 48, 56]);
        assert_eq!(DESCRIPTOR.magic, MAGIC);
        assert_eq!(size_of::<Entry>(), ENTRY_BYTES as usize);
    }
}
