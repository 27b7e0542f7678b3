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
/// Loaded files looked at; more are a broken list of mappings.
pub const MAX_OBJECTS: usize = 20_000;
/// Times that one file can be loaded (dlmopen).
pub const MAX_OBJECT_INSTANCES: usize = 16;
/// Bytes of all file images that are put together from memory, where the file is missing.
pub const MAX_OBJECT_IMAGES: u64 = 1 << 30;
/// Bytes of a vdso (two pages of code and a few of data are usual).
pub const MAX_VDSO: u64 = 1 << 20;
/// Program headers of an executable or library. A core's are limited by its size.
pub const MAX_PROGRAM_HEADERS: u16 = 1024;
/// Bytes of one note segment of an executable or library that are searched for a build id.
pub const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Bytes of a dynamic section that are compared.
pub const MAX_DYNAMIC_BYTES: u64 = 64 << 10;
/// Bytes of a path that a core names (PATH_MAX, and the kernel's " (deleted)").
pub const MAX_PATH: usize = 4096 + 16;
/// Mappings that a core's list of files names, and pieces into which that list cuts its segments. A process has at most
/// 65530 by default (vm.max_map_count).
pub const MAX_MAPPINGS: usize = 1_000_000;
