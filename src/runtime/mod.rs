//! Wasm runtimes. Finding the modules of a runtime in a target ([`Provider`]) and reading its frames ([`Runtime`])
//! are separate jobs.

pub mod all;
mod capabilities;
pub mod code_map;
pub mod engines;
mod frame;
mod immediates;
mod match_files;
mod module;
pub mod rust;
pub mod singlepass;
pub mod wasmtime;
mod why;

pub use self::capabilities::{Files, Fit, GlobalCell, Images, InstanceParts, Reach, Reaches, Settling, Tables};
pub use self::frame::{
    GuestFrame, GuestKind, OperatorPlace, Place, Position, Slot, SourceValue, SourceVariable, Value,
};
pub use self::module::{
    Compared, Declared, FoundBy, GuestFunction, GuestInstance, GuestModule, Key, NO_POSITIONS, RuntimeName, UNRECORDED,
    UNTRACKED,
};
pub use self::why::Why;

use self::engines::Sighting;
use crate::process::objects::Objects;
use crate::process::{Memory, Target};
use crate::progress::Progress;
use crate::unwind::{Cursor, Next, Unwinder};
use crate::wasm::WasmModule;
use std::path::PathBuf;

/// A runtime found in a target.
pub trait Runtime: Unwinder {
    /// Name of the runtime.
    fn name(&self) -> &'static str;
    /// The modules of this runtime that were found.
    fn modules(&self) -> &[GuestModule];
    /// The frames at `at`, whether or not the caller can be found. Youngest first: an inlined function comes before
    /// the function that it was inlined into. Empty if this is no code of this runtime.
    fn describe(&self, at: &Cursor, memory: &dyn Memory) -> Vec<GuestFrame>;
    /// Remarks for the reader, such as modules that cannot be read and caps that were reached.
    fn notes(&self) -> &[String];
    /// What the search for modules tried in vain, and how. Useful to the reader where there may be modules of this
    /// runtime.
    fn tried(&self) -> &[String] {
        &[]
    }
    /// Engines that are in the target. They are looked for only where frames or modules are missing.
    fn engines(&self) -> &[Sighting] {
        &[]
    }
    /// Whether guests of the module can wait on stacks that no thread runs on.
    fn may_wait(&self, module: usize) -> bool {
        let _ = module;
        false
    }
    /// Where guests that wait on such stacks will go on: the registers of those stacks, as far as they are found.
    fn waiting(&self, memory: &dyn Memory) -> Vec<Cursor> {
        let _ = memory;
        Vec::new()
    }
    /// The youngest frame of this runtime's code below a native frame that nothing can unwind, if the runtime's own
    /// tables lead to it.
    fn recover(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        let _ = (at, memory);
        None
    }
    /// Index of the module whose code covers `address`.
    fn module_of(&self, address: u64) -> Option<usize>;
    /// The user's `.wasm` file of a module, if one was matched to it.
    fn wasm_file(&self, module: usize) -> Option<&WasmModule> {
        let _ = module;
        None
    }
    /// Address and size in bytes of linear memory `index` of an instance (see [`GuestFrame::instance`]) of module
    /// `module`.
    fn linear_memory(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<(u64, u64), Why>;
    /// Value of global `index` of an instance; imported globals are counted first.
    fn global(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<Value, Why>;
    /// The instances that were met on the way to the modules. An instance whose code a thread runs is also named in
    /// its frames, whether it is listed here or not.
    fn instances(&self, memory: &dyn Memory) -> Vec<GuestInstance> {
        let _ = memory;
        Vec::new()
    }
    /// Checks that there is such an instance, since a damaged frame may name any address. The error says why not.
    fn check_instance(&self, instance: GuestInstance, memory: &dyn Memory) -> Result<(), Why> {
        let _ = (instance, memory);
        Ok(())
    }
    /// What a module declares.
    fn declared(&self, module: usize, memory: &dyn Memory) -> Declared {
        let _ = (module, memory);
        Declared::unknown(Why::Other(format!("wstate does not read what {} knows of its modules", self.name())))
    }
    /// Byte offset in the `.wasm` file at which the body of a function begins, local declarations included.
    /// Subtracted from [`OperatorPlace::offset`], it gives an offset within the function.
    fn body_offset(&self, module: usize, local_function: u32) -> Option<u64> {
        self.wasm_file(module)?.body_offset(local_function)
    }
    /// Images of frames and of instances, if the runtime has them.
    fn images(&self) -> Option<&dyn Images> {
        None
    }
    /// Points to which a thread can be stepped, if the compiled code has such points.
    fn settling(&self) -> Option<&dyn Settling> {
        None
    }
    /// The tables of instances, if it is known how the runtime keeps them.
    fn tables(&self) -> Option<&dyn Tables> {
        None
    }
    /// All compiled code, described for a debugger.
    fn code_map(&self, detail: &code_map::Detail, memory: &dyn Memory) -> code_map::CodeMap;
}

/// What a provider may look at.
pub struct Scene<'a> {
    /// The process or core.
    pub target: &'a dyn Target,
    /// The loaded files of the target.
    pub objects: &'a Objects,
    /// Receives the progress of work that may take long.
    pub progress: &'a dyn Progress,
}

/// Finds a runtime's modules in a target. It is called again with the frames that nobody could explain, since modules
/// are found step by step: behind the frames of one module lies the next host frame, and perhaps the next module.
pub trait Provider {
    /// Looks for modules, in particular for those that explain `unknown`: frames in executable memory that belongs to
    /// no file. `lost` says that some stack could not be walked to its end, so there may be more such frames.
    /// Returns how many modules were found that were not known before.
    /// The first call may come without unknown frames: the modules of an idle process are worth a line too.
    fn discover(&mut self, scene: &Scene<'_>, unknown: &[Cursor], lost: bool) -> usize;
    /// Takes the user's files for modules, if modules of this runtime can be told apart by them.
    fn files(&mut self) -> Option<&mut dyn Files> {
        None
    }
    /// The machine code of a function that the module defines, by its index among these; `None` if it cannot be read.
    fn code(&self, module: usize, local_function: u32, memory: &dyn Memory) -> Option<Vec<u8>> {
        let _ = (module, local_function, memory);
        None
    }
    /// A function's name from the name section that the module was compiled with, if the target has that section.
    fn own_name(&self, module: usize, function: u32) -> Option<String> {
        let _ = (module, function);
        None
    }
    /// Computes what tells modules apart. Reads at most `left` bytes of code and subtracts them from `left`; `None`
    /// if the key is not known.
    fn key(&self, module: usize, left: &mut u64, memory: &dyn Memory) -> Option<Key> {
        let _ = (module, left, memory);
        None
    }
    /// The user's artifact files that were not looked at, and why. Asked only if no runtime has found a module.
    fn unused_artifacts(&mut self) -> Vec<(PathBuf, String)> {
        Vec::new()
    }
    /// The runtime with the modules that were found so far.
    fn runtime(&self) -> &dyn Runtime;
}
