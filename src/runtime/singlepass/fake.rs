//! A made-up target for the tests of the routes. It has read-only data with vtables, code of the host, a heap,
//! stacks, and modules as the runtime lays them out.

use super::module::cache_image::PAGE;
use crate::arch::{Machine, Reg, Registers};
use crate::process::{Mapping, Memory, MemoryError, Target, Thread, ThreadId};
use crate::state::codec::encode_borsh;
use crate::state::{FunctionStateMap, MachineState, ModuleStateMap};
use std::path::{Path, PathBuf};

/// Address of the read-only data of the executable.
pub const RODATA: u64 = 0x40_0000;
/// Address of the code of the executable.
pub const TEXT: u64 = 0x50_0000;
/// Address of `[heap]`.
pub const HEAP: u64 = 0x100_0000;
/// Size of `[heap]` in bytes.
pub const HEAP_SIZE: u64 = 0x10_0000;
/// Address at which the code of modules is mapped.
pub const CODE: u64 = 0x7000_0000;
/// Address of the page that `interrupt_signal_mem` points to.
pub const SIGNAL: u64 = 0x7800_0000;
/// Address of a linear memory of one Wasm page.
pub const LINEAR: u64 = 0x7900_0000;
/// Address of a thread's stack of one page.
pub const STACK: u64 = 0x7a00_0000;

/// The made-up target.
pub struct Fake {
    regions: Vec<(Mapping, Vec<u8>)>,
    mappings: Vec<Mapping>,
    threads: Vec<Thread>,
    next: u64,
}

/// The code and the cached image of a module, as `make` builds them.
pub struct Made {
    pub code: Vec<u8>,
    pub offsets: Vec<u64>,
    pub imports: u64,
    pub image: Vec<u8>,
}

/// Addresses of what `Fake::module` and `Fake::instance` built.
#[derive(Clone, Copy, Default)]
pub struct Built {
    pub vmctx: u64,
    pub module: u64,
    pub cache: u64,
    pub arc: u64,
    pub context: u64,
}

fn import(salt: u8) -> Vec<u8> {
    vec![0x48, 0x8b, 0x84, 0x27, 0x30, 0, 0, 0, 0x48, 0x8b, 0xbc, 0x20, salt, 0, 0, 0, 0xff, 0xe0]
}

fn function(salt: u8) -> Vec<u8> {
    let mut f = vec![0xe9, 0x20, 0, 0, 0];
    f.extend([0x90; 32]);
    f.extend([0x40, 0x55, 0x48, 0x89, 0xe5, 0x41, 0x54, 0xb8, salt, 0, 0, 0, 0x5d, 0xc3]);
    f
}

/// Builds code and image of a module with these numbers of functions. Modules with different `salt` have different
/// code.
pub fn make(imports: u64, locals: u64, salt: u8) -> Made {
    let (mut code, mut offsets) = (Vec::new(), Vec::new());
    for i in 0..imports + locals {
        offsets.push(code.len() as u64);
        code.extend(if i < imports { import(salt) } else { function(salt) });
    }
    let total = code.len() as u64;
    code.resize(code.len().next_multiple_of(PAGE as usize), 0);
    let image = image(&code, &offsets, imports, total);
    Made { code, offsets, imports, image }
}

/// Builds a borsh `CacheImage` with state maps that have no points.
pub fn image(code: &[u8], offsets: &[u64], imports: u64, total: u64) -> Vec<u8> {
    let mut b = (code.len() as u32).to_le_bytes().to_vec();
    b.extend(code);
    for _ in 0..2 {
        b.extend((offsets.len() as u32).to_le_bytes());
        b.extend(offsets.iter().flat_map(|o| o.to_le_bytes()));
    }
    b.extend(imports.to_le_bytes());
    let locals = &offsets[(imports as usize).min(offsets.len())..];
    let function = |id| FunctionStateMap::new(MachineState::new(), id, 0, Vec::new());
    let local_functions = locals.iter().enumerate().map(|(id, o)| (*o as usize, function(id))).collect();
    b.extend(encode_borsh(&ModuleStateMap { local_functions, total_size: total as usize }).unwrap());
    b
}

/// Builds an artifact file around an image: a stand-in for `ModuleInfo`, empty metadata, and the image filled up to
/// whole pages.
pub fn artifact(image: &[u8]) -> Vec<u8> {
    let mut memory = image.to_vec();
    memory.resize(memory.len().next_multiple_of(PAGE as usize), 0);
    let mut body = vec![9; 777];
    body.extend([0, 0, 0, 0, 2]);
    body.extend((memory.len() as u32).to_le_bytes());
    body.extend(memory);
    let mut b = b"WASMER\0\0".to_vec();
    b.extend(0u64.to_le_bytes());
    b.extend((body.len() as u64).to_le_bytes());
    b.extend(body);
    b
}

impl Fake {
    /// A target without modules. The vtable of `SinglepassCache` is at RODATA, that of `X64ExecutionContext` at
    /// RODATA + 0x40.
    pub fn new() -> Fake {
        let mut f = Fake { regions: Vec::new(), mappings: Vec::new(), threads: Vec::new(), next: HEAP + 0x40 };
        f.map(RODATA, 0x1000, "r--", Some("/bin/host"));
        f.map(TEXT, 0x1000, "r-x", Some("/bin/host"));
        f.map(HEAP, HEAP_SIZE, "rw-", Some("[heap]"));
        f.map(SIGNAL, 0x1000, "rw-", None);
        f.map(LINEAR, 0x10000, "rw-", None);
        f.map(STACK, 0x1000, "rw-", None);
        f.words(RODATA, &[TEXT + 0x10, 16, 8]);
        f.words(RODATA + 0x40, &[TEXT + 0x20, 0xf0, 8]);
        f
    }

    /// Adds a mapping of zeroed memory; `permissions` are written like "r-x".
    pub fn map(&mut self, start: u64, size: u64, permissions: &str, path: Option<&str>) {
        let m = Mapping {
            start,
            end: start + size,
            read: permissions.contains('r'),
            write: permissions.contains('w'),
            execute: permissions.contains('x'),
            offset: 0,
            path: path.map(PathBuf::from),
        };
        self.regions.push((m.clone(), vec![0; size as usize]));
        self.mappings.push(m);
        self.mappings.sort_by_key(|m| m.start);
    }

    /// Maps executable memory that holds `code`.
    pub fn code(&mut self, address: u64, code: &[u8]) {
        self.map(address, code.len() as u64, "r-x", None);
        self.write(address, code);
    }

    /// Overwrites the bytes at `address`.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let (m, data) = self.regions.iter_mut().find(|(m, _)| m.contains(address)).unwrap();
        let at = (address - m.start) as usize;
        data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Overwrites the 64-bit words at `address`.
    pub fn words(&mut self, address: u64, words: &[u64]) {
        for (i, w) in words.iter().enumerate() {
            self.write(address + 8 * i as u64, &w.to_le_bytes());
        }
    }

    /// Takes memory from the heap, aligned to 16 bytes, with a gap behind it.
    pub fn alloc(&mut self, size: u64) -> u64 {
        let at = self.next;
        self.next = (at + size + 0x1f) & !0xf;
        assert!(self.next < HEAP + HEAP_SIZE);
        at
    }

    /// Adds an `Arc<[u8]>`; returns the address of its counts.
    pub fn arc(&mut self, bytes: &[u8]) -> u64 {
        let at = self.alloc(16 + bytes.len() as u64);
        self.words(at, &[1, 1]);
        self.write(at + 16, bytes);
        at
    }

    /// Adds a `ModuleInner` for code that is at `base`. The two fields that lead to code and image are `shift` bytes
    /// behind where rustc 1.95 puts them.
    pub fn module(&mut self, made: &Made, base: u64, shift: i64) -> Built {
        let arc = self.arc(&made.image);
        let cache = self.alloc(16);
        self.words(cache, &[arc, made.image.len() as u64]);
        let context = self.alloc(0xf0);
        self.words(context + 0x70, &[base, made.code.len() as u64]);
        let runnable = self.alloc(32);
        self.words(runnable, &[1, 1, context, RODATA + 0x40]);
        let module = self.alloc(0x400);
        let field = (module as i64 + 0x238 + shift) as u64;
        self.words(field, &[runnable, cache, RODATA]);
        Built { vmctx: 0, module, cache, arc, context }
    }

    /// Adds a `vm::Ctx` of the module that was built.
    pub fn instance(&mut self, made: &Made, base: u64, built: Built) -> Built {
        let functions = self.alloc(8 * made.offsets.len() as u64 + 8);
        let locals: Vec<u64> = made.offsets[made.imports as usize..].iter().map(|o| base + o).collect();
        self.words(functions, &locals);
        let backing = self.alloc(0x1000);
        let vmctx = self.alloc(160);
        let ctx = [
            backing,
            8,
            8,
            8,
            8,
            8,
            functions,
            4,
            RODATA + 0x100,
            0,
            LINEAR,
            0x10000,
            backing + 0x90,
            SIGNAL,
            functions,
            backing,
            backing + 0x890,
            built.module,
            0,
            0,
        ];
        self.words(vmctx, &ctx);
        Built { vmctx, ..built }
    }

    /// Maps the code of `made` at `base` and adds its module and one instance.
    pub fn load(&mut self, made: &Made, base: u64) -> Built {
        self.code(base, &made.code);
        let built = self.module(made, base, 0);
        self.instance(made, base, built)
    }

    /// Adds a thread with these registers.
    pub fn thread(&mut self, registers: &[(Reg, u64)]) {
        let mut r = Registers::unknown(Machine::X64);
        registers.iter().for_each(|&(reg, v)| r.set(reg, v));
        let id = ThreadId(self.threads.len() as u32 + 1);
        self.threads.push(Thread { id, name: None, registers: r, fs_base: None, signal: None, problem: None });
    }

    /// Joins adjacent mappings of equal kind, as the kernel does.
    pub fn merge_mappings(&mut self) {
        let mut merged: Vec<Mapping> = Vec::new();
        for m in self.mappings.drain(..) {
            match merged.last_mut() {
                Some(l) if l.end == m.start && l.execute == m.execute && l.path == m.path => l.end = m.end,
                _ => merged.push(m),
            }
        }
        self.mappings = merged;
    }
}

impl Memory for Fake {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let unmapped = MemoryError::Unmapped { address, len: buf.len() };
        let mut at = address;
        let mut done = 0;
        while done < buf.len() {
            let found = self.regions.iter().find(|(m, _)| m.contains(at) && m.read);
            let (m, data) = found.ok_or(unmapped.clone())?;
            let from = (at - m.start) as usize;
            let n = (buf.len() - done).min(data.len() - from);
            buf[done..done + n].copy_from_slice(&data[from..from + n]);
            done += n;
            at += n as u64;
        }
        Ok(())
    }
}

impl Target for Fake {
    fn machine(&self) -> crate::arch::Machine {
        crate::arch::Machine::X64
    }
    fn description(&self) -> String {
        "made up".into()
    }
    fn threads(&self) -> &[Thread] {
        &self.threads
    }
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }
    fn executable(&self) -> Option<&Path> {
        None
    }
    fn pid(&self) -> Option<u32> {
        None
    }
    fn auxv(&self, _: u64) -> Option<u64> {
        None
    }
    fn file_candidates(&self, _: &Mapping) -> Vec<crate::process::files::FileLocation> {
        Vec::new()
    }
    fn notes(&self) -> &[String] {
        &[]
    }
    fn is_live(&self) -> bool {
        false
    }
}

/// The bytes of a patch that leads to `to`, as `patch_local_function` writes it.
pub fn patch(to: u64) -> Vec<u8> {
    let mut p = vec![0x48, 0xb8];
    p.extend(to.to_le_bytes());
    p.extend([0x49, 0xbb]);
    p.extend((TEXT + 0x30).to_le_bytes());
    p.extend([0x41, 0xff, 0xe3]);
    p
}

/// A progress callback that does nothing.
pub fn quiet(_: &str, _: u64, _: u64) {}
