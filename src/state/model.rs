//! The types of `state.rs`, field by field. bincode and borsh follow the order of declaration, so this order must not
//! change.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Value of `wasm_inst_offset` for a state in the function header, which is before the first operator.
pub const FUNCTION_HEADER: usize = usize::MAX;

/// Number of a register: 0-15 are the general purpose registers in hardware order, 16-31 the low halves of XMM0-15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegisterIndex(pub usize);

/// What the compiler knew about a Wasm value when it compiled the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WasmAbstractValue {
    /// The value is known only when the code runs.
    Runtime,
    /// The value is this constant (raw bits).
    Const(u64),
}

/// What a register or a word of the stack holds.
///
/// `Deserialize` is written by hand (`codec.rs`), because the derived one would recurse as deep as the input says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum MachineValue {
    /// The register or word holds nothing of interest.
    Undefined,
    /// The register or word holds the instance's `vmctx` pointer.
    Vmctx,
    /// The register or word holds a value that is reached from `vmctx` by these byte offsets.
    VmctxDeref(Vec<usize>),
    /// It holds the value that this register has in the caller.
    PreserveRegister(RegisterIndex),
    /// It holds a copy of the stack word at this byte offset from the frame pointer.
    CopyStackBPRelative(i32),
    /// This entry stands not for one word but for the `shadow_size` bytes below the frame.
    ExplicitShadow,
    /// It holds the operand with this number. Operands are counted from the bottom of the operand stack.
    WasmStack(usize),
    /// It holds the local with this number.
    WasmLocal(usize),
    /// It holds two 32-bit values in one word: first the low half, then the high half.
    TwoHalves(Box<(MachineValue, MachineValue)>),
}

/// Where all locals, operands and saved registers are at one point of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// What each word of the native stack holds, from the frame pointer downwards.
    pub stack_values: Vec<MachineValue>,
    /// What each register holds, by [`RegisterIndex`]. The runtime writes 24 or 32 entries.
    pub register_values: Vec<MachineValue>,
    /// Values that are in the caller's frame. The key counts words above the return address.
    pub prev_frame: BTreeMap<usize, MachineValue>,
    /// What is known of each operand, from the bottom of the operand stack.
    pub wasm_stack: Vec<WasmAbstractValue>,
    /// How many of the topmost operands belong to the compiler, not to the Wasm program.
    pub wasm_stack_private_depth: usize,
    /// Index of the operator in the function, or `usize::MAX` in the header of the function.
    pub wasm_inst_offset: usize,
}

/// What changed between two [`MachineState`]s.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStateDiff {
    /// Number of the diff that this one builds on. `None` means that it builds on the function's initial state.
    pub last: Option<usize>,
    /// Words that are pushed onto the native stack after the pops.
    pub stack_push: Vec<MachineValue>,
    /// Number of words that are popped off the native stack.
    pub stack_pop: usize,
    /// Registers that changed, and what they hold now.
    pub reg_diff: Vec<(RegisterIndex, MachineValue)>,
    /// Values in the caller's frame that changed. `None` means that the value was removed.
    pub prev_frame_diff: BTreeMap<usize, Option<MachineValue>>,
    /// Operands that are pushed after the pops.
    pub wasm_stack_push: Vec<WasmAbstractValue>,
    /// Number of operands that are popped.
    pub wasm_stack_pop: usize,
    /// The new value of this number itself, not a difference.
    pub wasm_stack_private_depth: usize,
    /// The new value of this number itself, not a difference.
    pub wasm_inst_offset: usize,
}

/// The states of one function. All offsets are byte offsets in the module's code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionStateMap {
    /// The state from which all chains of diffs start.
    pub initial: MachineState,
    /// Index of the function among those that the module defines.
    pub local_function_id: usize,
    /// What is known of each local. Parameters are included.
    pub locals: Vec<WasmAbstractValue>,
    /// Number of bytes below the frame that belong to it.
    pub shadow_size: usize,
    /// All diffs. [`OffsetInfo::diff_id`] and [`MachineStateDiff::last`] are indices into this list.
    pub diffs: Vec<MachineStateDiff>,
    /// The point of the function header, if it has one.
    pub wasm_function_header_target_offset: Option<SuspendOffset>,
    /// The point of an operator, by the operator's index.
    pub wasm_offset_to_target_offset: BTreeMap<usize, SuspendOffset>,
    /// The loop points by code offset.
    pub loop_offsets: BTreeMap<usize, OffsetInfo>,
    /// The call points by code offset. The offset is that of the return address.
    pub call_offsets: BTreeMap<usize, OffsetInfo>,
    /// The points where an instruction may trap, by code offset.
    pub trappable_offsets: BTreeMap<usize, OffsetInfo>,
}

/// A reference to a point: the table that lists it, and its offset in that table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SuspendOffset {
    /// The point is in `loop_offsets`.
    Loop(usize),
    /// The point is in `call_offsets`.
    Call(usize),
    /// The point is in `trappable_offsets`.
    Trappable(usize),
}

/// One entry of an offset table. Its key in the table is the first code offset that it is valid for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetInfo {
    /// First code offset that the entry is no longer valid for.
    pub end_offset: usize,
    /// Number of the diff that describes the state, or `usize::MAX` where the compiler did not track state.
    pub diff_id: usize,
    /// Code offset at which execution resumes.
    pub activate_offset: usize,
}

/// The states of all code of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleStateMap {
    /// Functions by the code offset of their first byte.
    pub local_functions: BTreeMap<usize, FunctionStateMap>,
    /// Number of bytes of code, import trampolines included.
    pub total_size: usize,
}

/// One Wasm frame as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasmFunctionStateDump {
    /// Index of the function among those that the module defines.
    pub local_function_id: usize,
    /// Index of the operator in the function, or `usize::MAX` in the header of the function.
    pub wasm_inst_offset: usize,
    /// Raw bits of the operands, from the bottom of the operand stack. `None` means that the value is not known.
    pub stack: Vec<Option<u64>>,
    /// Raw bits of the locals. `None` means that the value is not known.
    pub locals: Vec<Option<u64>>,
}

/// The Wasm frames of a thread as the runtime reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionStateImage {
    /// The frames, youngest first.
    pub frames: Vec<WasmFunctionStateDump>,
}

/// A whole instance: its memory, its globals and its frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceImage {
    /// Bytes of the linear memory, if the instance has one.
    pub memory: Option<Vec<u8>>,
    /// Raw values of the globals. 32- and 64-bit integers are sign-extended.
    pub globals: Vec<u128>,
    /// The frames of the instance.
    pub execution_state: ExecutionStateImage,
}

/// One compiled version of a module. This is `state.rs: CodeVersion` without the pointer to its executable code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeVersion {
    /// Whether the baseline tier compiled this version.
    pub baseline: bool,
    /// The state map of this version. It is shared, because several instances and threads run one module.
    pub msm: Arc<ModuleStateMap>,
    /// Address of the first byte of this version's code.
    pub base: usize,
    /// Name of the compiler ("singlepass", "llvm", or an id given by the host).
    pub backend: String,
}

impl FunctionStateMap {
    /// Creates the map of a function without any point (`state.rs: FunctionStateMap::new`).
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

    /// The text that the runtime prints to standard error after a trap when the environment variable
    /// `WASMER_BACKTRACE` has the value `env_value` (`state.rs: print_backtrace_if_needed`). The end of the line is
    /// included. Only the value `1` asks for the backtrace.
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
