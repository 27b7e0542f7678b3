//! Wasm modules given by the user: their names, types and operator positions.
//!
//! Positions are those of the singlepass backend (`codegen_x64.rs: feed_event`): the operators of each function body
//! are numbered from zero. Operators in unreachable code and the final `end` are counted, local declarations are not.
//! A middleware of the host that injects operators shifts the numbers; [`WasmModule::fits`] then refuses the file.

pub mod constants;
mod declarations;
mod dwarf;
pub mod file;
mod fits;
mod module;
pub mod names;
mod operators;
mod printed;
mod stack;
mod text;
pub mod types;

pub use declarations::{Declarations, GlobalDecl, GuestExport, MemoryDecl, TableDecl};
pub use fits::{FunctionFacts, ModuleFacts};
pub use module::WasmModule;
pub use operators::{OperatorKind, Site};
pub use types::{ExternKind, NameSource, ValType};
