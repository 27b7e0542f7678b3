//! The wasmer 0.x runtime with its singlepass backend.
//!
//! Finding modules ([`find`]: five routes, see [`find::anchor`]) and reading frames ([`frame`], [`module::code`]) are
//! separate: a frame is read the same way however its module was found.

pub mod code_map;
pub mod find;
pub mod frame;
pub mod module;
mod resume;
pub mod stubs;

#[cfg(test)]
pub(crate) mod fake;

use super::code_map::{CodeMap, Detail};
use super::{Declared, GuestFrame, GuestInstance, GuestModule, Images, Runtime, Settling, Tables, Value, Why};
use crate::process::{Memory, ThreadId};
use crate::state::BoundaryRegisters;
use crate::unwind::{Cursor, Next, Unwinder};
use crate::wasm::WasmModule;
use module::{Module, instance};

/// This runtime in one target: its modules and what is known about the search for them.
#[derive(Default)]
pub struct Singlepass {
    modules: Vec<Module>,
    listed: Vec<GuestModule>,
    notes: Vec<String>,
    tried: Vec<String>,
    /// The registers that threads saved where optimized code entered baseline code.
    boundary: Vec<(ThreadId, BoundaryRegisters)>,
}

impl Singlepass {
    /// The module whose code covers `address`, with its index.
    pub fn module_at(&self, address: u64) -> Option<(usize, &Module)> {
        self.modules.iter().enumerate().find(|(_, m)| m.contains(address))
    }

    /// All modules of this runtime that were found.
    pub fn code_modules(&self) -> &[Module] {
        &self.modules
    }
}

impl Unwinder for Singlepass {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        let (_, module) = self.module_at(at.address.lookup())?;
        Some(frame::step(module, at, memory))
    }
}

impl Runtime for Singlepass {
    fn name(&self) -> &'static str {
        frame::RUNTIME
    }

    fn modules(&self) -> &[GuestModule] {
        &self.listed
    }

    fn describe(&self, at: &Cursor, memory: &dyn Memory) -> Vec<GuestFrame> {
        let found = self.module_at(at.address.lookup());
        found.map(|(index, module)| frame::describe(module, index, at, memory)).into_iter().collect()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn tried(&self) -> &[String] {
        &self.tried
    }

    fn recover(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        frame::recover::recover(self, at, memory)
    }

    fn module_of(&self, address: u64) -> Option<usize> {
        self.module_at(address).map(|(index, _)| index)
    }

    fn wasm_file(&self, module: usize) -> Option<&WasmModule> {
        self.modules.get(module)?.wasm.as_deref()
    }

    fn linear_memory(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<(u64, u64), Why> {
        let module = self.modules.get(module).ok_or(Why::NoSuchModule)?;
        instance::linear_memory(module, instance, index, memory)
    }

    fn global(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<Value, Why> {
        let module = self.modules.get(module).ok_or(Why::NoSuchModule)?;
        instance::global(module, instance, index, memory)
    }

    fn instances(&self, _: &dyn Memory) -> Vec<GuestInstance> {
        let all = self.modules.iter().enumerate();
        all.flat_map(|(module, m)| m.instances.iter().map(move |&address| GuestInstance { module, address })).collect()
    }

    fn check_instance(&self, instance: GuestInstance, memory: &dyn Memory) -> Result<(), Why> {
        let module = self.modules.get(instance.module).ok_or(Why::NoSuchModule)?;
        instance::check(module, instance.address, memory)
    }

    fn declared(&self, module: usize, _: &dyn Memory) -> Declared {
        match self.modules.get(module) {
            Some(module) => module.declared(),
            None => Declared::unknown(Why::NoSuchModule),
        }
    }

    fn images(&self) -> Option<&dyn Images> {
        Some(self)
    }

    fn settling(&self) -> Option<&dyn Settling> {
        Some(self)
    }

    fn tables(&self) -> Option<&dyn Tables> {
        Some(self)
    }

    fn code_map(&self, detail: &Detail, memory: &dyn Memory) -> CodeMap {
        code_map::code_map(self, detail, memory)
    }
}

impl Tables for Singlepass {
    fn table(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        let module = self.modules.get(module).ok_or(Why::NoSuchModule)?;
        instance::table(module, instance, index, memory)
    }
}
