//! What only some runtimes can do. A [`Runtime`] says which of these it has, and whoever asks for one that is missing
//! gets the reason that users read.

use super::{Compared, Runtime, Why};
use crate::process::{Memory, ThreadId};
use crate::state::{ExecutionStateImage, ModuleStateMap, PointKind};
use crate::unwind::Cursor;
use crate::wasm::ValType;
use crate::wasm::file::CoreModule;
use std::path::Path;
use std::sync::Arc;

/// What is read from an instance to make an `InstanceImage`, and to restore one.
#[derive(Clone, Debug)]
pub struct InstanceParts {
    /// The module's state map.
    pub map: Arc<ModuleStateMap>,
    /// Address of the first byte of the module's code.
    pub code_base: u64,
    /// Address of the instance's context (`vm::Ctx`).
    pub vmctx: u64,
    /// Linear memory 0: address of its first byte, and its size in bytes. `None` if there is none.
    pub memory: Option<(u64, u64)>,
    /// Address of the description of memory 0 (`vm.rs: LocalMemory`), if the memory is the instance's own and not
    /// imported.
    pub memory_at: Option<u64>,
    /// Address of the runtime's function that grows memory 0, if known.
    pub grow: Option<u64>,
    /// Globals that the module defines, in the order of their indices.
    pub globals: Vec<GlobalCell>,
    /// Globals that the module imports, in the order of their indices.
    pub imported_globals: Vec<GlobalCell>,
}

/// A global of an instance, as an instance image keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalCell {
    /// Type of the global.
    pub ty: ValType,
    /// Address of the 16 bytes that hold the global.
    pub address: u64,
    /// The value: integers are sign-extended, floats are kept as their bits.
    pub bits: u128,
}

/// What a thread that is stepped has reached, as its pc says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A point at which the operand stack is known, and from which an image that is taken here can be resumed.
    Point,
    /// A point behind a call that has just returned. The result of the call is in no place that an image keeps.
    Returned {
        /// Whether the module has only points like this: none in its loops and in the headers of its functions.
        only: bool,
    },
    /// A point at which the operand stack is known, but an image that is taken here would be resumed at another
    /// place.
    Shown,
    /// The pc is in code of the runtime's modules, between two points.
    Inside,
    /// The pc is in code that is not of the runtime's modules.
    Outside,
}

/// A function that tells what a pc reaches.
pub type Reaches = Box<dyn Fn(u64) -> Reach + Send>;

/// How well a core module from a file of the user fits a module of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// How strongly the target proves that this is the very file; 0 if the target does not keep the module's Wasm. Of
    /// two fits the higher number wins.
    pub exact: u8,
    /// What was compared and agrees.
    pub summary: Compared,
    /// What agrees, one entry for each comparison.
    pub checks: Vec<String>,
    /// Number that is added to a byte offset in the core module to get the offset that the runtime uses.
    pub shift: u64,
}

/// Images of frames and instances, from which a computation can go on elsewhere.
pub trait Images {
    /// What the runtime itself would report for the frames from `at` on (`state.rs: read_stack`). The image has
    /// no frames where the runtime has no state for them.
    fn image(&self, thread: ThreadId, at: &Cursor, memory: &dyn Memory) -> Result<ExecutionStateImage, Why>;
    /// Returns what an image of an instance is made from.
    fn instance_parts(&self, module: usize, instance: u64, memory: &dyn Memory) -> Result<InstanceParts, Why>;
    /// The kind of the point at `address`, if a frame whose image is taken there is resumed at that same place (see
    /// [`crate::state::goes_on_at`]).
    fn goes_on_at(&self, address: u64, memory: &dyn Memory) -> Option<PointKind>;
}

/// Tells, instruction by instruction, whether a thread that is stepped has come to a point, where its operand stack is
/// known.
pub trait Settling {
    /// Whether stepping can bring a frame of the module to a point at which more is known about it. The error says
    /// why it cannot.
    fn settles(&self, module: usize) -> Result<(), Why>;
    /// A function that tells what a pc reaches, above all whether the operand stack is known there. It owns what it
    /// needs, since a target is stepped on a thread of its own.
    fn reach(&self, memory: &dyn Memory) -> Reaches;
}

/// Reads the tables of instances.
pub trait Tables {
    /// Number of elements of table `index` of an instance; imported tables are counted first.
    fn table(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why>;
}

/// Compares modules with the files that the user named.
pub trait Files {
    /// Compares module `module` of this provider with a core module from a file of the user. `Ok` says what agrees,
    /// `Err` why the module was made from another core module.
    fn compare(&mut self, module: usize, file: &CoreModule, memory: &dyn Memory) -> Result<Fit, String>;
    /// Gives a module the file that it was made from, and the result of the comparison.
    fn take_file(&mut self, module: usize, path: &Path, file: &CoreModule, fit: Fit);
}

impl dyn Runtime + '_ {
    /// Asks [`Images::image`]. A runtime without images gives an error that says so.
    pub fn image(&self, thread: ThreadId, at: &Cursor, memory: &dyn Memory) -> Result<ExecutionStateImage, Why> {
        let images = self.images().ok_or_else(|| Why::Other(format!("{} has no images of frames", self.name())))?;
        images.image(thread, at, memory)
    }

    /// Asks [`Images::instance_parts`]. A runtime without images gives an error that says so.
    pub fn instance_parts(&self, module: usize, instance: u64, memory: &dyn Memory) -> Result<InstanceParts, Why> {
        let images = self.images().ok_or_else(|| Why::Other(format!("{} has no images of instances", self.name())))?;
        images.instance_parts(module, instance, memory)
    }

    /// Asks [`Images::goes_on_at`]. With a runtime without images, no frame can go on anywhere.
    pub fn goes_on_at(&self, address: u64, memory: &dyn Memory) -> Option<PointKind> {
        self.images()?.goes_on_at(address, memory)
    }

    /// Asks [`Settling::settles`]. A runtime without points gives an error that says so.
    pub fn settles(&self, module: usize) -> Result<(), Why> {
        let none = || Why::Other(format!("{} has no points to which a thread could be stepped", self.name()));
        self.settling().ok_or_else(none)?.settles(module)
    }

    /// The same as [`Settling::reach`]. Where the code has no points, it is only known whether an address lies in it.
    pub fn reach(&self, memory: &dyn Memory) -> Reaches {
        if let Some(settling) = self.settling() {
            return settling.reach(memory);
        }
        let mut codes: Vec<_> = self.modules().iter().map(|m| m.code).collect();
        // The modules of one code image have the same range.
        codes.dedup();
        let is_inside = move |pc| codes.iter().any(|&(start, end)| (start..end).contains(&pc));
        Box::new(move |pc| if is_inside(pc) { Reach::Inside } else { Reach::Outside })
    }

    /// Asks [`Tables::table`]. A runtime whose tables are not read gives an error that says so.
    pub fn table(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        let tables =
            self.tables().ok_or_else(|| Why::Other(format!("how {} keeps tables is not known", self.name())))?;
        tables.table(module, instance, index, memory)
    }
}
