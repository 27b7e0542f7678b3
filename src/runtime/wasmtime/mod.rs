//! Wasmtime: what its compiled code says about itself.
//!
//! Compiled code lies in one contiguous *image*, an ELF file that is mapped as it is (a `.cwasm` file is the same bytes).
//! [`find`] finds images in a target, `code` puts together what one says, `frame` reads frames. The other modules read
//! one section each: they touch nothing but the bytes they are given, from a file or through
//! [`Memory`].
//!
//! | module | reads | layout depends on the version |
//! |---|---|---|
//! | [`image`] | ELF header, sections, version, symbols | no |
//! | [`addrmap`] | `.wasmtime.addrmap`: code offset -> offset in the Wasm file | two formats, told apart by structure |
//! | [`frame_table`] | `.wasmtime.frames`: code offset -> locals and operand stack (`guest_debug`) | two formats, told apart by structure |
//! | [`dwarf`] | `.debug_*`: code offset -> source functions, lines, variables (`debug_info`) | no |
//! | [`info`] | `.wasmtime.info`: modules, types, functions, names | with nearly every major |
//! | [`offsets`] | where an instance (`VMContext`) and a store keep what | at 37, 38, 39, 43, 45, 46, 47, 48 |
//! | [`instance`] | an instance's memories, globals, tables, imports; what a module declares | through [`info`] and [`offsets`] |
//!
//! What does not depend on the version works for any; the rest is for the versions of [`version`], and an unknown one is
//! an error that says so.

pub mod addrmap;
mod code;
pub mod code_map;
pub mod dwarf;
pub mod find;
mod frame;
pub mod frame_table;
pub mod image;
pub mod info;
pub mod instance;
mod leb;
pub mod offsets;
pub mod postcard;
mod shape;
#[cfg(test)]
mod testing;
pub mod version;

pub use version::Version;

use super::code_map::{CodeMap, Detail};
use super::{Declared, GuestFrame, GuestInstance, GuestModule, Reach, Runtime, Value, Why};
use crate::limits::MAX_KNOWN_INSTANCES;
use crate::state::ExecutionStateImage;
use crate::symbolize::wasm::WasmModule;
use crate::target::{Mapping, Memory, ThreadId};
use crate::unwind::{Cursor, Next, Unwinder};
use code::Code;
use image::FunctionKind;
use instance::{Context, Described};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

/// The code images of this runtime in one target.
#[derive(Default)]
pub struct Wasmtime {
    codes: Vec<Code>,
    listed: Vec<GuestModule>,
    /// Of each module its image.
    owner: Vec<usize>,
    notes: Vec<String>,
    mappings: Vec<Mapping>,
    /// Instances by the place of the frame that runs in them: pc and stack pointer. Only callees know them.
    known: RefCell<HashMap<(u64, u64), u64>>,
}

impl Wasmtime {
    fn add(&mut self, mut code: Code) {
        code.first = self.listed.len();
        for module in 0..code.modules {
            self.listed.push(find::guest_module(&code, module));
            self.owner.push(self.codes.len());
        }
        self.codes.push(code);
    }

    fn code_at(&self, address: u64) -> Option<&Code> {
        self.codes.iter().find(|c| c.contains(address))
    }

    /// The image of a module, and the module's number in it.
    fn place(&self, module: usize) -> Result<(&Code, usize), Why> {
        let code = self.owner.get(module).and_then(|&i| self.codes.get(i));
        let code = code.ok_or_else(|| Why("there is no such module".into()))?;
        Ok((code, module - code.first))
    }

    fn described(&self, module: usize) -> Result<Described<'_>, Why> {
        let (code, module) = self.place(module)?;
        let info = code.info.as_ref().map_err(Why::clone)?;
        Described::new(info, module as u32, code.version.unwrap_or(info.version), code.image.text())
    }

    /// Whether an instance of `module` is at `vmctx`.
    fn is_instance(&self, module: usize, vmctx: u64, memory: &dyn Memory) -> bool {
        self.described(module).is_ok_and(|d| d.validate(vmctx, &self.mappings, memory).is_ok())
    }

    fn known_instance(&self, at: &Cursor) -> Option<u64> {
        let sp = at.registers.sp()?;
        self.known.borrow().get(&(at.address.raw(), sp)).copied()
    }

    /// Keeps what `at` tells of its caller's instance: an exit trampoline has it, and a function that is called directly
    /// runs in its caller's.
    fn remember(&self, code: &Code, at: &Cursor, caller: &Cursor, memory: &dyn Memory) {
        let Some(sp) = caller.registers.sp() else { return };
        let Some(function) = code.function(at.address.lookup()) else { return };
        let called_by = |c: &Code| c.function(caller.address.lookup()).map(|f| f.kind.clone());
        let Some(calling) = self.code_at(caller.address.lookup()) else { return };
        let Some(FunctionKind::Wasm { module: caller_module, .. }) = called_by(calling) else { return };
        let instance = match &function.kind {
            FunctionKind::Wasm { module, .. } => {
                let direct = frame::called(code, caller.address.raw(), memory) == Some(function.start);
                let same = std::ptr::eq(code, calling) && *module == caller_module;
                self.instance_of(code, at, memory).filter(|_| direct && same)
            }
            _ => {
                let number = calling.first + caller_module as usize;
                let mut found = frame::exit_instances(calling, at, caller, memory);
                // Where the layout is not known nothing can be compared.
                if calling.info.is_ok() {
                    found.retain(|v| self.is_instance(number, *v, memory));
                }
                // Two that fit are none.
                found.pop().filter(|_| found.is_empty())
            }
        };
        let mut known = self.known.borrow_mut();
        if let Some(instance) = instance
            && known.len() < MAX_KNOWN_INSTANCES
        {
            known.insert((caller.address.raw(), sp), instance);
        }
    }

    /// The instance of a frame: what its callee said, or what the frame itself records.
    fn instance_of(&self, code: &Code, at: &Cursor, memory: &dyn Memory) -> Option<u64> {
        self.known_instance(at).or_else(|| frame::describe(self, code, at, memory).pop()?.instance)
    }
}

impl Unwinder for Wasmtime {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        let code = self.code_at(at.address.lookup())?;
        Some(frame::step(self, code, at, memory))
    }
}

impl Runtime for Wasmtime {
    fn name(&self) -> &'static str {
        frame::RUNTIME
    }

    fn modules(&self) -> &[GuestModule] {
        &self.listed
    }

    fn describe(&self, at: &Cursor, memory: &dyn Memory) -> Vec<GuestFrame> {
        match self.code_at(at.address.lookup()) {
            Some(code) => frame::describe(self, code, at, memory),
            None => Vec::new(),
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn image(&self, _: ThreadId, _: &Cursor, _: &dyn Memory) -> Option<ExecutionStateImage> {
        None
    }

    fn module_of(&self, address: u64) -> Option<usize> {
        let code = self.code_at(address)?;
        Some(code.first + code.module_at(address))
    }

    fn wasm_file(&self, module: usize) -> Option<&WasmModule> {
        let (code, module) = self.place(module).ok()?;
        code.wasm.get(module)?.as_deref()
    }

    fn linear_memory(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<(u64, u64), Why> {
        self.described(module)?.linear_memory(instance, index, memory)
    }

    fn global(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<Value, Why> {
        self.described(module)?.global(instance, index, memory)
    }

    fn table(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        self.described(module)?.table(instance, index, memory)
    }

    fn instances(&self, memory: &dyn Memory) -> Vec<GuestInstance> {
        // From the ones that frames run in to those that they import from.
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        let mut open: Vec<u64> = self.known.borrow().values().copied().collect();
        let mut out = BTreeSet::new();
        while let Some(vmctx) = open.pop() {
            if seen.len() >= MAX_KNOWN_INSTANCES || !seen.insert(vmctx) {
                continue;
            }
            // A module that the instance's own pointers name wins over one that it merely does not contradict.
            let mut best: Option<(bool, usize)> = None;
            for module in 0..self.listed.len() {
                let checked = self.described(module).and_then(|d| d.validate(vmctx, &self.mappings, memory));
                if let Ok(checked) = checked
                    && best.is_none_or(|(tied, _)| checked.tied && !tied)
                {
                    best = Some((checked.tied, module));
                }
            }
            let Some((_, module)) = best else { continue };
            out.insert(GuestInstance { module, address: vmctx });
            let imports = self.described(module).and_then(|d| d.imports_of(vmctx, memory)).unwrap_or_default();
            open.extend(imports.iter().filter(|n| n.context == Context::Instance).map(|n| n.address));
        }
        out.into_iter().collect()
    }

    fn check_instance(&self, instance: GuestInstance, memory: &dyn Memory) -> Result<(), Why> {
        self.described(instance.module)?.validate(instance.address, &self.mappings, memory).map(|_| ())
    }

    fn declared(&self, module: usize, _: &dyn Memory) -> Declared {
        let declared = || -> Result<Declared, Why> {
            let (code, number) = self.place(module)?;
            let info = code.info.as_ref().map_err(Why::clone)?;
            let names = code.names().unwrap_or_default();
            Ok(instance::declared(info, number as u32, code.image.text(), &code.functions, names))
        };
        declared().unwrap_or_else(Declared::unknown)
    }

    fn body_offset(&self, module: usize, local_function: u32) -> Option<u64> {
        let (code, number) = self.place(module).ok()?;
        let function = code.imports(number)?.checked_add(local_function)?;
        let known = code.body_offset(number as u32, function).map(u64::from);
        known.or_else(|| code.wasm.get(number)?.as_ref()?.body_offset(local_function))
    }

    fn reach(&self) -> Box<dyn Fn(u64) -> Reach + Send> {
        let texts: Vec<_> = self.codes.iter().map(|c| c.image.text()).collect();
        Box::new(move |pc| if texts.iter().any(|t| t.contains(&pc)) { Reach::Inside } else { Reach::Outside })
    }

    fn code_map(&self, detail: &Detail, memory: &dyn Memory) -> CodeMap {
        code_map::code_map(self, detail, memory)
    }
}
