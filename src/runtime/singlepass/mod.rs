//! The wasmer 0.x runtime with its singlepass backend.
//!
//! Finding modules ([`find`]: five routes, see [`find::anchor`]) and reading frames ([`frame`], [`module::code`]) are separate: a
//! frame is read the same way however its module was found.

pub mod code_map;
pub mod find;
pub mod frame;
pub mod module;

#[cfg(test)]
pub(crate) mod fake;

pub use crate::runtime::rust::memory::StructureError;

use super::code_map::{CodeMap, Detail};
use super::{Declared, GuestFrame, GuestInstance, GuestModule, InstanceParts, Reach, Runtime, Value, Why};
use crate::process::{Memory, ThreadId};
use crate::state::read::BoundaryRegisters;
use crate::state::{ExecutionStateImage, ModuleStateMap, PointKind, goes_on_at};
use crate::unwind::{Cursor, Next, Unwinder};
use crate::wasm::WasmModule;
use module::{Module, ctx, instance};

/// This runtime in one target: its modules and what is known about the search for them.
#[derive(Default)]
pub struct Singlepass {
    modules: Vec<Module>,
    listed: Vec<GuestModule>,
    notes: Vec<String>,
    tried: Vec<String>,
    boundary: Vec<find::route_tls::BoundaryRegisters>,
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

    fn image(&self, thread: ThreadId, at: &Cursor, memory: &dyn Memory) -> Result<ExecutionStateImage, Why> {
        let boundary = self.boundary.iter().find(|b| b.thread == thread);
        let boundary =
            boundary.map(|b| BoundaryRegisters { r15: b.r15, r14: b.r14, r13: b.r13, r12: b.r12, rbx: b.rbx });
        Ok(frame::image(self, boundary, at, memory).unwrap_or_default())
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

    fn instance_parts(&self, module: usize, instance: u64, memory: &dyn Memory) -> Result<InstanceParts, Why> {
        let module = self.modules.get(module).ok_or(Why::NoSuchModule)?;
        // The frame may run code of another tier. The instance belongs to the module that was instantiated.
        let own = memory.read_u64(instance.wrapping_add(ctx::MODULE)).ok();
        let instantiated = self.modules.iter().find(|m| m.inner.is_some() && m.inner == own);
        instance::parts(instantiated.unwrap_or(module), instance, memory)
    }

    fn goes_on_at(&self, address: u64, memory: &dyn Memory) -> Option<PointKind> {
        let (_, module) = self.module_at(address)?;
        let offset = usize::try_from(address.checked_sub(module.code.0)?).ok()?;
        goes_on_at(module.map.around(offset, memory).ok()??, offset)
    }

    fn table(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        let module = self.modules.get(module).ok_or(Why::NoSuchModule)?;
        instance::table(module, instance, index, memory)
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

    fn settles(&self, module: usize) -> Result<(), Why> {
        match self.modules.get(module) {
            None => Err(Why::NoSuchModule),
            // With full preemption the headers of functions have states even without track_state. But these tell
            // nothing new: the locals have fixed places, and the operand stack is empty there.
            Some(module) if !module.tracked => {
                let why = "the module was compiled without track_state: its operand stacks are recorded nowhere, and its \
                           locals are known without a step";
                Err(Why::other(why))
            }
            Some(_) => Ok(()),
        }
    }

    fn reach(&self, memory: &dyn Memory) -> Box<dyn Fn(u64) -> Reach + Send> {
        // With full preemption each function has at least one loop point, the one in its header.
        let preempted = |map: &ModuleStateMap| map.local_functions.values().any(|f| !f.loop_offsets.is_empty());
        let of = |module: &Module| {
            let map = module.map.all(memory).ok().cloned();
            let only = !map.as_deref().is_some_and(preempted);
            (module.code, map, only)
        };
        let modules: Vec<_> = self.modules.iter().map(of).collect();
        Box::new(move |pc| {
            let Some((code, map, only)) = modules.iter().find(|(code, ..)| code.0 <= pc && pc < code.1) else {
                return Reach::Outside;
            };
            let (Ok(offset), Some(map)) = (usize::try_from(pc - code.0), map) else { return Reach::Inside };
            match (map.lookup(offset).and_then(|p| p.diff()), goes_on_at(map, offset)) {
                (None, _) => Reach::Inside,
                (Some(_), Some(PointKind::Loop | PointKind::Trappable)) => Reach::Point,
                (Some(_), Some(PointKind::Call)) => Reach::Returned { only: *only },
                (Some(_), None) => Reach::Shown,
            }
        })
    }

    fn code_map(&self, detail: &Detail, memory: &dyn Memory) -> CodeMap {
        code_map::code_map(self, detail, memory)
    }
}
