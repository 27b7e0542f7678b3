//! Every cap on work or memory that input could drive up, in one place.

/// Frames walked per thread unless the user asks for another number.
pub const MAX_FRAMES: usize = 100_000;
/// Threads analysed.
pub const MAX_THREADS: usize = 65_536;
/// Bytes of one thread's stack that a live capture copies.
pub const MAX_STACK_CAPTURE: u64 = 64 << 20;
/// Bytes of all stacks that a live capture copies.
pub const MAX_CAPTURE_TOTAL: u64 = 1 << 30;
/// Nesting of `MachineValue::TwoHalves` in an encoded state map. The runtime never nests.
pub const MAX_VALUE_DEPTH: usize = 16;
/// Bytes of an encoded state map or cache image (esbuild's is 61 MiB).
pub const MAX_IMAGE_BYTES: u64 = 2 << 30;
/// Functions in a state map.
pub const MAX_FUNCTIONS: usize = 1_000_000;
/// Length of a diff chain.
pub const MAX_DIFF_CHAIN: usize = 1_000_000;
/// Locals, stack slots, operands of one state.
pub const MAX_SLOTS: usize = 100_000;
/// Bytes the heap search reads.
pub const MAX_HEAP_SEARCH_BYTES: u64 = 64 << 30;
/// Seconds the heap search may take.
pub const MAX_HEAP_SEARCH_SECONDS: u64 = 30;
/// Single steps of `--settle`.
pub const MAX_SETTLE_STEPS: usize = 64;
/// Characters of a name of the target in text output; JSON has it whole.
pub const MAX_TEXT_NAME: usize = 300;
/// Characters of a note, an error or a reason in text output, which may quote names of the target.
pub const MAX_TEXT_MESSAGE: usize = 2000;
