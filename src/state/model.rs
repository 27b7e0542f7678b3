//! The types of `state.rs`, field by field: bincode and borsh follow the declaration order, so it must not change.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// `wasm_inst_offset` of a state in the function header, before the first operator.
pub const FUNCTION_HEADER: usize = usize::MAX;

/// Number of a register: 0-15 general purpose in hardware order, 16-31 the low halves of XMM0-15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegisterIndex(pub usize);

/// What the compiler knew about a Wasm value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WasmAbstractValue {
    /// Only known when running.
    Runtime,
    /// This constant (raw bits).
    Const(u64),
}

/// What a machine location holds.
///
/// `Deserialize` is written by hand (`codec.rs`): the derived one would recurse as deep as the input says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum MachineValue {
    /// Nothing of interest.
    Undefined,
    /// The instance's `vmctx` pointer.
    Vmctx,
    /// A value reached from `vmctx` by these byte offsets.
    VmctxDeref(Vec<usize>),
    /// The caller's value of a register.
    PreserveRegister(RegisterIndex),
    /// A copy of the stack word at this byte offset from the frame pointer.
    CopyStackBPRelative(i32),
    /// Not one word but the `shadow_size` bytes below the frame.
    ExplicitShadow,
    /// Operand number n, bottom first.
    WasmStack(usize),
    /// Local number n.
    WasmLocal(usize),
    /// Two 32-bit values in one word: low half, high half.
    TwoHalves(Box<(MachineValue, MachineValue)>),
}

/// Where everything is at one point of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// Words of the native stack, from the frame pointer downwards.
    pub stack_values: Vec<MachineValue>,
    /// Registers by [`RegisterIndex`]; the runtime writes 24 or 32 of them.
    pub register_values: Vec<MachineValue>,
    /// Values in the caller's frame; the key counts words above the return address.
    pub prev_frame: BTreeMap<usize, MachineValue>,
    /// The operand stack, bottom first.
    pub wasm_stack: Vec<WasmAbstractValue>,
    /// How many of the topmost operands belong to the compiler, not to the Wasm program.
    pub wasm_stack_private_depth: usize,
    /// Operator index in the function, or [`FUNCTION_HEADER`].
    pub wasm_inst_offset: usize,
}

/// What changed between two [`MachineState`]s.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStateDiff {
    /// The diff this one builds on; `None`: the function's initial state.
    pub last: Option<usize>,
    /// Pushed after the pops.
    pub stack_push: Vec<MachineValue>,
    /// Number of words popped.
    pub stack_pop: usize,
    /// Registers that changed.
    pub reg_diff: Vec<(RegisterIndex, MachineValue)>,
    /// Values in the caller's frame that changed; `None`: removed.
    pub prev_frame_diff: BTreeMap<usize, Option<MachineValue>>,
    /// Operands pushed after the pops.
    pub wasm_stack_push: Vec<WasmAbstractValue>,
    /// Number of operands popped.
    pub wasm_stack_pop: usize,
    /// Absolute, not a difference.
    pub wasm_stack_private_depth: usize,
    /// Absolute, not a difference.
    pub wasm_inst_offset: usize,
}

/// The states of one function. All offsets are byte offsets in the module's code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionStateMap {
    /// What the diff chains start from.
    pub initial: MachineState,
    /// Index among the functions the module defines.
    pub local_function_id: usize,
    /// Locals, parameters included.
    pub locals: Vec<WasmAbstractValue>,
    /// Bytes below the frame that belong to it.
    pub shadow_size: usize,
    /// Diffs; [`OffsetInfo::diff_id`] and [`MachineStateDiff::last`] index them.
    pub diffs: Vec<MachineStateDiff>,
    /// Point of the function header.
    pub wasm_function_header_target_offset: Option<SuspendOffset>,
    /// Operator index to its point.
    pub wasm_offset_to_target_offset: BTreeMap<usize, SuspendOffset>,
    /// Loop points.
    pub loop_offsets: BTreeMap<usize, OffsetInfo>,
    /// Call points: the return addresses.
    pub call_offsets: BTreeMap<usize, OffsetInfo>,
    /// Points where an instruction may trap.
    pub trappable_offsets: BTreeMap<usize, OffsetInfo>,
}

/// A point, by the table that lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SuspendOffset {
    /// In `loop_offsets`.
    Loop(usize),
    /// In `call_offsets`.
    Call(usize),
    /// In `trappable_offsets`.
    Trappable(usize),
}

/// One entry of an offset table; its key is the first offset it is valid for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetInfo {
    /// First offset it is no longer valid for.
    pub end_offset: usize,
    /// Which diff; `usize::MAX` where the compiler did not track state.
    pub diff_id: usize,
    /// Where execution resumes.
    pub activate_offset: usize,
}

/// The states of a module's code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleStateMap {
    /// Functions by the offset of their first byte.
    pub local_functions: BTreeMap<usize, FunctionStateMap>,
    /// Bytes of code, import trampolines included.
    pub total_size: usize,
}

/// One Wasm frame, as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasmFunctionStateDump {
    /// Index among the functions the module defines.
    pub local_function_id: usize,
    /// Operator index, or [`FUNCTION_HEADER`].
    pub wasm_inst_offset: usize,
    /// Operands, bottom first, raw bits.
    pub stack: Vec<Option<u64>>,
    /// Locals, raw bits.
    pub locals: Vec<Option<u64>>,
}

/// The Wasm frames of a thread, youngest first, as the runtime reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionStateImage {
    /// Frames, youngest first.
    pub frames: Vec<WasmFunctionStateDump>,
}

/// A whole instance: memory, globals and frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceImage {
    /// Linear memory, if there is one.
    pub memory: Option<Vec<u8>>,
    /// Globals; 32- and 64-bit integers are sign-extended.
    pub globals: Vec<u128>,
    /// Frames.
    pub execution_state: ExecutionStateImage,
}

/// One compiled version of a module: `state.rs: CodeVersion` without the pointer to its executable code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeVersion {
    /// Whether this is the baseline tier.
    pub baseline: bool,
    /// Its map. Shared: several instances and threads run one module.
    pub msm: Arc<ModuleStateMap>,
    /// Address of its first byte of code.
    pub base: usize,
    /// Compiler ("singlepass", "llvm", or an id given by the host).
    pub backend: String,
}

impl FunctionStateMap {
    /// A function without any point (`state.rs: FunctionStateMap::new`).
    pub fn new(
        initial: MachineState,
        local_function_id: usize,
        shadow_size: usize,
        locals: Vec<WasmAbstractValue>,
    ) -> FunctionStateMap {
        FunctionStateMap {
            initial,
            local_function_id,
            locals,
            shadow_size,
            diffs: Vec::new(),
            wasm_function_header_target_offset: None,
            wasm_offset_to_target_offset: BTreeMap::new(),
            loop_offsets: BTreeMap::new(),
            call_offsets: BTreeMap::new(),
            trappable_offsets: BTreeMap::new(),
        }
    }
}

impl ExecutionStateImage {
    /// The runtime's own text of a backtrace (`state.rs: ExecutionStateImage::output`), byte for byte.
    pub fn output(&self) -> String {
        if self.frames.is_empty() {
            return "Unknown fault address, cannot read stack.\n".to_owned();
        }
        let mut out = String::from("Backtrace:\n");
        for (number, frame) in self.frames.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(
                out,
                "* Frame {number} @ Local function {}\n  Offset: {}\n  Locals: {}\n  Stack: {}\n\n",
                frame.local_function_id,
                frame.wasm_inst_offset,
                Sequence(&frame.locals),
                Sequence(&frame.stack)
            );
        }
        out
    }

    /// What the runtime prints to standard error after a trap when the environment variable `WASMER_BACKTRACE` has this
    /// value (`state.rs: print_backtrace_if_needed`), line end included. Only the value `1` asks for the backtrace.
    pub fn backtrace_text(&self, env_value: Option<&str>) -> String {
        match env_value {
            Some("1") => self.output() + "\n",
            _ => "Run with `WASMER_BACKTRACE=1` environment variable to display a backtrace.\n".to_owned(),
        }
    }
}

struct Sequence<'a>(&'a [Option<u64>]);

impl std::fmt::Display for Sequence<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("(empty)");
        }
        for (i, value) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            match value {
                Some(v) => write!(f, "{separator}[{i}] = {v}")?,
                None => write!(f, "{separator}[{i}] = ?")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_text() {
        let mut image = ExecutionStateImage::default();
        assert_eq!(image.output(), "Unknown fault address, cannot read stack.\n");
        image.frames.push(WasmFunctionStateDump {
            local_function_id: 2,
            wasm_inst_offset: FUNCTION_HEADER,
            stack: vec![],
            locals: vec![Some(1), None],
        });
        let text = "Backtrace:\n* Frame 0 @ Local function 2\n  Offset: 18446744073709551615\n  Locals: [0] = 1, [1] = ?\n  Stack: (empty)\n\n";
        assert_eq!(image.output(), text);
        assert_eq!(image.backtrace_text(Some("1")), format!("{text}\n"));
        for other in [None, Some(""), Some("0"), Some("full")] {
            assert!(image.backtrace_text(other).starts_with("Run with `WASMER_BACKTRACE=1`"));
        }
    }
}
