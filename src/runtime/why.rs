//! The reasons for which values, lists of values and images are missing.

use crate::arch::Reg;
use crate::process::MemoryError;
use crate::state::MissingReason;
use crate::unwind::UnwindError;

/// Why something is not shown. Its text (`Display`) is for people; code compares the variants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// The frame is between two points. A few instructions further on, its operand stack would be known.
    #[error("no state is recorded at this instruction")]
    BetweenPoints,
    /// The runtime recorded nothing for the call that the frame waits for.
    #[error("no state is recorded for this call")]
    NoStateAtCall,
    /// The compiler was not told to record operand stacks.
    #[error("the module was compiled without track_state")]
    NotTracked,
    /// The compiler was told to record neither locals nor operand stacks.
    #[error("the module was compiled without guest_debug (enable it in the host's Config)")]
    NoGuestDebug,
    /// This version of Wasmtime cannot record locals and operand stacks: it has no `guest_debug`.
    #[error("Wasmtime records locals and operand stacks from version 39 on, with guest_debug")]
    BeforeGuestDebug,
    /// The module's table of locals and operand stacks cannot be read.
    #[error("{0}")]
    FrameTable(String),
    /// The frame table has entries for this instruction, but none is of the frame's function.
    #[error("no state of this function is recorded at this instruction")]
    NotRecordedHere,
    /// The frame is between two operators, and operand stacks are recorded only at operators.
    #[error("the frame is between two operators, and operand stacks are recorded only at operators")]
    BetweenOperators,
    /// The frame is between two operators of code that was inlined, where the locals are not known either.
    #[error("the frame is between two operators of inlined code, where neither locals nor operands are recorded")]
    BetweenInlinedOperators,
    /// The frame is in front of the first entry that the frame table has for its function.
    #[error("the frame is before the first instruction of its function at which its state is recorded")]
    BeforeFirstRecord,
    /// The function has just begun, and its frame is not filled yet.
    #[error("the function has just begun and has not stored its values yet")]
    NotStoredYet,
    /// The function is entering or leaving its frame, so that the frame pointer is that of another frame.
    #[error("the function is entering or leaving its frame, so rbp does not lead to its values")]
    BetweenFrames,
    /// The function is returning, and the place that held the value may hold something else already.
    #[error("the function is returning, and its frame no longer holds the value")]
    Returning,
    /// The frame is of glue code, which has neither locals nor operands.
    #[error("the frame runs glue code of the runtime, not a Wasm function")]
    NotWasm,
    /// The state map of the function is not readable.
    #[error("the function's state map cannot be read")]
    StateMapUnreadable,
    /// The machine code of the function is not as the known compiler writes it.
    #[error("the function's machine code is not as the known compiler writes it ({0})")]
    UnknownLayout(String),
    /// The recorded state contradicts itself.
    #[error("the recorded state is broken: {0}")]
    BrokenState(String),
    /// The recorded state and the registers disagree about where the frame is.
    #[error("the recorded state says that rbp is {end:#x}, but it is {rbp:#x}")]
    StateOfAnotherFrame {
        /// Address to which rbp must point if the recorded state is that of the frame.
        end: u64,
        /// Value of rbp in the frame.
        rbp: u64,
    },
    /// The state map has a place for the value, but it leads nowhere.
    #[error(transparent)]
    Missing(MissingReason),
    /// The frame's address is not known.
    #[error(transparent)]
    Frame(UnwindError),
    /// A function that this frame called has overwritten the register, or may have, and is not known to have saved it.
    #[error("register {0} is lost: no function that this frame called is known to have saved it")]
    RegisterLost(Reg),
    /// The value of the register in this frame is not known.
    #[error("register {0} is not known in this frame")]
    RegisterUnknown(Reg),
    /// Memory of the target cannot be read.
    #[error(transparent)]
    Memory(MemoryError),
    /// Nothing is mapped at the address of the value.
    #[error("no memory is mapped at {address:#x}")]
    Unmapped {
        /// Address of the value.
        address: u64,
    },
    /// The bytes of a source variable cannot be read.
    #[error("memory at {address:#x} is not readable")]
    Unreadable {
        /// Address of the bytes.
        address: u64,
    },
    /// The compiler of the source language kept no value of the variable at this address of the code.
    #[error("optimized out here")]
    OptimizedOut,
    /// There is no module with the number that was given.
    #[error("there is no such module")]
    NoSuchModule,
    /// The runtime's description of the module was not found.
    #[error("the module's description was not found in the target, so its {what} are not known (--wasm FILE)")]
    NoDescription {
        /// What the description would tell: `tables`, `globals`.
        what: &'static str,
    },
    /// What stands at the address of an item contradicts what the item is.
    #[error("its description at {address:#x} is damaged")]
    Damaged {
        /// Address of the item's description.
        address: u64,
    },
    /// A reason that is too rare to have a variant of its own.
    #[error("{0}")]
    Other(String),
}

text_in_json!(Why);

impl Why {
    /// Whether the reason is how the module was compiled, so that it holds for every frame of the module that has it.
    pub fn is_of_module(&self) -> bool {
        matches!(self, Why::NotTracked | Why::NoGuestDebug | Why::BeforeGuestDebug | Why::FrameTable(_))
    }

    /// A rare reason, as text.
    pub fn other(text: impl Into<String>) -> Why {
        Why::Other(text.into())
    }
}
