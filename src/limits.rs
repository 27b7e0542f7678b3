//! Every cap on work or memory that input could drive up, in one place. `tests/library/limits.rs` sees to it that each has a
//! test.
//!
//! Unless a comment says otherwise, it names what is counted and in which unit, and the constant is the largest
//! number of it.

/// Returns the cap `real`. Where reaching it would take too much, the unit tests of this crate get the smaller
/// `in_unit_tests` in its place.
const fn cap<T: Copy>(real: T, in_unit_tests: T) -> T {
    if cfg!(test) { in_unit_tests } else { real }
}

/// Frames that are walked per thread. A frame costs about a kilobyte until it is printed. The runtime itself
/// overflows its stack reader at 200,000 frames (`state.rs:895`).
pub const MAX_FRAMES: usize = 300_000;
/// Frames that are walked per thread even where fewer are shown.
pub const MIN_WALK: usize = 2_000;
/// Frames that are walked of each thread even where other threads have used up `MAX_FRAMES_TOTAL`.
pub const MIN_FRAMES: usize = 64;
/// Rounds of "walk, look for modules that explain unknown frames, walk again", and unknown frames of one stack that
/// are looked at in one round. A stack on which host and Wasm frames take turns needs a round per module, and modules
/// are few.
pub const MAX_WALK_ROUNDS: usize = 64;
/// Frames that are walked in all threads together.
pub const MAX_FRAMES_TOTAL: usize = 1_000_000;
/// Rounds in which new threads are looked for while a process is being stopped. A process that needs more is a fork
/// bomb.
pub const MAX_STOP_ROUNDS: usize = 1000;
/// Threads that are analysed.
pub const MAX_THREADS: usize = 65_536;
/// Files that are kept open during a stop to read the threads' names from them, one file per thread. The file of any
/// further thread is opened only when its name is read. The usual limit of open files is 1,024.
pub const MAX_OPEN_NAMES: usize = cap(512, 2);
/// Bytes of one thread's stack that a live capture copies.
pub const MAX_STACK_CAPTURE: u64 = 64 << 20;
/// Bytes of all stacks together that a live capture copies.
pub const MAX_CAPTURE_TOTAL: u64 = 1 << 30;
/// Blocks of module code that a live capture copies. Addresses on stacks and in registers point into these blocks.
pub const MAX_CODE_BLOCKS: usize = 256;
/// Bytes of stacks that are searched for addresses of module code while the process is stopped. This takes some 20
/// microseconds.
pub const MAX_CODE_SCAN: usize = 256 << 10;
/// Pages that were read of a running process and are remembered. Just as many larger ranges are remembered too.
pub const MAX_READ_PAGES: usize = cap(1 << 16, 1 << 10);
/// Bytes beside the stacks that are copied while a process is stopped, if it may load code while it is looked at. 16 MiB
/// take some 5 ms, modules of usual size a tenth of that.
pub const MAX_REREAD_BYTES: u64 = cap(16 << 20, 1 << 20);
/// Bytes of the pages around the wanted ones that are copied with them, as a part of `MAX_REREAD_BYTES`.
pub const MAX_REREAD_BESIDE: u64 = cap(2 << 20, 256 << 10);
/// Samples that are copied of the ranges for which `MAX_REREAD_BYTES` is too small.
pub const MAX_REREAD_SAMPLES: u64 = cap(1 << 10, 64);
/// Times that a process is looked at again because it may have loaded code while it was looked at.
pub const MAX_REREADS: usize = 8;
/// Levels of nesting of `MachineValue::TwoHalves` in an encoded state map. The runtime never nests these values.
pub const MAX_VALUE_DEPTH: usize = 16;
/// Bytes of an encoded state map or cache image (esbuild's is 61 MiB).
pub const MAX_IMAGE_BYTES: u64 = 2 << 30;
/// Bytes of a function's prologue. They are enough for `MAX_SLOTS` locals.
pub const MAX_PROLOGUE_BYTES: usize = 64 + 16 * MAX_SLOTS;
/// Functions in a state map.
pub const MAX_FUNCTIONS: usize = cap(1_000_000, 50_000);
/// Diffs in one chain, in which each diff builds on the one before it.
pub const MAX_DIFF_CHAIN: usize = cap(1_000_000, 10_000);
/// Locals of a function; also stack words, operands, registers and words of the caller's frame in one state. Each
/// kind is counted by itself.
pub const MAX_SLOTS: usize = 100_000;
/// Operands at points that are compared with a `.wasm` file, in all functions of a module together.
pub const MAX_COMPARED_OPERANDS: usize = cap(4_000_000, 10_000);
/// Bytes that the heap search reads.
pub const MAX_HEAP_SEARCH_BYTES: u64 = 64 << 30;
/// Seconds the heap search may take.
pub const MAX_HEAP_SEARCH_SECONDS: u64 = 30;
/// Bytes above rsp that are searched for the Wasm frame from which native code without unwind information was called.
pub const MAX_RECOVERY_BYTES: usize = 1 << 20;
/// Bytes of the native stack below an exit from Wasm that are searched for an instance, which leads to the store.
pub const MAX_EXIT_BYTES: usize = 16 << 10;
/// Words of a stack and of registers that are checked for being the address of an instance.
pub const MAX_ANCHOR_PROBES: usize = 65_536;
/// Frames of one chain that the search for a Wasm frame follows, and rival chains that it compares with the first
/// one.
pub const MAX_RECOVERY_CHAIN: usize = 4096;
/// Mappings at whose end a waiting fiber is looked for. Each of them costs a system call.
pub const MAX_WAITING_STACKS: usize = cap(4096, 8);
/// Waiting fibers that are walked to tell which modules they belong to.
pub const MAX_WAITING: usize = cap(64, 4);
/// Files that are searched for signs of engines whose frames cannot be shown.
pub const MAX_ENGINE_FILES: usize = cap(1024, 8);
/// Bytes of constants in all files together that are searched for strings of engines.
pub const MAX_ENGINE_SEARCH: u64 = cap(64 << 20, 64 << 10);
/// Bytes of the entry trampoline's own frame, which holds the arguments that are passed on the stack.
pub const MAX_ENTRY_FRAME: u64 = 64 << 10;
/// Single steps that `--settle` takes.
pub const MAX_SETTLE_STEPS: usize = 64;
/// Single steps that a thread takes to a place where an image can be taken from which the instance can go on. All of
/// them take about a second.
pub const MAX_SNAPSHOT_STEPS: usize = cap(100_000, 1000);
/// Lines of the section `.comment` that are searched for compiler versions.
pub const MAX_COMMENT_LINES: usize = 4096;
/// Bytes of debug sections that are opened to find struct layouts.
pub const MAX_DEBUG_INFO_BYTES: u64 = cap(8 << 30, 64 << 10);
/// Entries of debug information that are visited in search of the runtime's types. The end of a list of children counts
/// as an entry.
pub const MAX_DEBUG_ENTRIES: u64 = cap(200_000_000, 50_000);
/// Members or variants of one type in debug info.
pub const MAX_MEMBERS: usize = 4096;
/// Bytes that are read for a whole state map that lies in a host's memory as Rust structures.
pub const MAX_STATE_MAP_BYTES: u64 = 1 << 30;
/// Bytes that are read for one function of a state map that lies in a host's memory as Rust structures.
pub const MAX_FUNCTION_MAP_BYTES: u64 = 256 << 20;
/// Values that are copied while the states of one thread's frames are built from diffs (real chains of 10,000 diffs
/// at 5,000 different places: some seconds).
pub const MAX_STATE_WORK: u64 = cap(50_000_000, 5_000_000);
/// Frames of one `ExecutionStateImage` unless the caller asks for another number. A frame has at least two words, so
/// this is every frame that fits into [`MAX_STACK_CAPTURE`].
pub const MAX_IMAGE_FRAMES: usize = cap((MAX_STACK_CAPTURE / 16) as usize, 250_000);
/// Locals and operands of one `ExecutionStateImage` together.
pub const MAX_IMAGE_VALUES: usize = cap(16 << 20, 1 << 20);
/// Bytes of a stack that is built from an image. The runtime's own stack for this has 8 MiB.
pub const MAX_RESUME_BYTES: u64 = cap(1 << 30, 128 << 20);
/// Slots (places of a machine state) that are read for one `ExecutionStateImage`.
pub const MAX_IMAGE_WORK: usize = cap(1 << 30, 8 << 20);
/// Slots (places of a machine state) of all the built states that are kept while one stack is read.
pub const MAX_CACHED_SLOTS: usize = 1 << 20;
/// States of one function that are kept so that the next state can be built from one of them. Blocks nest: behind an
/// inner block the outer one goes on from the state that it had before.
pub const MAX_KEPT_STATES: usize = 64;
/// Bytes of the shadow space in a frame. The singlepass compiler writes 32 for some calling conventions and 0 for the
/// one used here.
pub const MAX_SHADOW_BYTES: usize = 1 << 20;
/// Pages of executable memory (4 GiB) that are searched for the start of a module's code.
pub const MAX_CODE_PAGES: u64 = cap(1 << 20, 1000);
/// Places that looked like a cached image but were none, and for which the reason is given one by one.
pub const MAX_EXPLAINED_FAILURES: usize = 8;
/// Bytes of a 32-bit linear memory.
pub const MAX_LINEAR_MEMORY: u64 = 1 << 32;
/// Bytes of an `X64ExecutionContext` that are searched.
pub const MAX_CONTEXT_BYTES: u64 = 0x400;
/// Value of a reference count. A larger number is taken for something else.
pub const MAX_REFERENCES: u64 = 1 << 20;
/// Bytes of one thread's stack, from the stack pointer up, that are searched for instances.
pub const MAX_STACK_SCAN: u64 = 64 << 10;
/// Bytes of all stacks together that are searched for instances.
pub const MAX_STACK_SCAN_TOTAL: u64 = cap(256 << 20, 4 << 20);
/// Instances, and modules, that one search for them examines.
pub const MAX_INSTANCES: usize = cap(65_536, 100);
/// Modules for which the reason is given why a file does not fit them.
pub const MAX_SHOWN_REASONS: usize = 20;
/// Subsections of a name section that state a wrong length, and whose end is therefore found by reading their
/// entries.
pub const MAX_NAME_RESYNCS: usize = 16;
/// Core modules of a component that are looked at.
pub const MAX_COMPONENT_MODULES: usize = 1000;
/// Bytes of data that are compared with the data of a `.wasm` file, and bytes that are searched for that data.
pub const MAX_COMPARED_DATA: u64 = cap(256 << 20, 1 << 20);
/// Bytes of machine code of one module whose constants are compared with those of `.wasm` files.
pub const MAX_COMPARED_CODE: u64 = cap(64 << 20, 64 << 10);
/// Bytes of a `.wasm` file.
pub const MAX_WASM_BYTES: u64 = 1 << 30;
/// Rows of unwind tables that are kept for addresses that were seen.
pub const MAX_CACHED_ROWS: usize = 65_536;
/// Functions that are indexed from one section of unwind tables that has no search table.
pub const MAX_UNWIND_ENTRIES: usize = cap(4_000_000, 10_000);
/// Operations that are evaluated of one expression in unwind tables or debug information.
pub const MAX_EXPRESSION_STEPS: u32 = 1_000;
/// Bytes of a function's code that are followed to find its frame pointer.
pub const MAX_FRAME_POINTER_CODE: u64 = 64 << 10;
/// Bytes of a native function without unwind tables whose code is followed.
pub const MAX_BODY_BYTES: u64 = 256 << 10;
/// Instructions that are followed in one native function without unwind tables.
pub const MAX_BODY_STEPS: usize = 200_000;
/// Instructions that are followed in all native functions without unwind tables together.
pub const MAX_BODIES_STEPS: usize = 2_000_000;
/// Native functions without unwind tables that are kept after they were followed.
pub const MAX_BODIES: usize = 10_000;
/// Functions that are tried as the one into which another function jumps at its end.
pub const MAX_BODY_LEAVES: usize = 64;
/// Bytes of the frame of a native function whose start is known only from the call in its caller.
pub const MAX_BODY_FRAME: u64 = 64 << 10;
/// Bytes of one decompressed debug section.
pub const MAX_DEBUG_SECTION_BYTES: u64 = 4 << 30;
/// Output bytes per input byte that a compressed section may claim (deflate's own bound is 1032; zstd's is higher, but
/// debug sections stay far below).
pub const MAX_COMPRESSION_RATIO: u64 = 4096;
/// Bytes of a decompressed section up to which `MAX_COMPRESSION_RATIO` is believed.
pub const MAX_SMALL_SECTION_BYTES: u64 = 16 << 20;
/// Output bytes per input byte that a larger section may claim. Debug information has 2 to 20.
pub const MAX_LARGE_COMPRESSION_RATIO: u64 = 100;
/// Divisor of the free memory: one part in so many may be taken by all decompressed sections of a report together.
pub const MAX_UNPACKED_SHARE: u64 = 4;
/// Bytes of all decompressed sections of a report together, however much memory is free.
pub const MAX_UNPACKED_BYTES: u64 = 16 << 30;
/// Files for which a note says that their debug information is left out.
pub const MAX_UNPACKED_NOTES: usize = 20;
/// Bytes of a state map that is decoded as a whole. In a larger one, single functions are looked up.
pub const MAX_WHOLE_MAP_BYTES: u64 = 1 << 20;
/// Places in an encoded state map that are searched for one function's record. Every second place in which a record
/// is found halves what is left to search, or does better.
pub const MAX_RECORD_WINDOWS: usize = 64;
/// Bytes of one function's record in an encoded state map.
pub const MAX_RECORD_BYTES: u64 = cap(64 << 20, 4 << 20);
/// Bytes that are looked through for one function's record.
pub const MAX_RECORD_LOOKUP_BYTES: u64 = 4 * MAX_RECORD_BYTES;
/// Bytes of one encoded state map that are looked through in vain. After that, functions that were not found yet are
/// no longer looked for.
pub const MAX_FAILED_LOOKUP_BYTES: u64 = 8 * MAX_RECORD_LOOKUP_BYTES;
/// Elements of all lists and maps of one encoded state map together. In memory they are larger than in their
/// encoding.
pub const MAX_MAP_ELEMENTS: usize = cap(128 << 20, 1 << 20);
/// Problems of one state map that are kept.
pub const MAX_VALIDATION_PROBLEMS: usize = 1000;
/// Symbols of one file and its debug file that are looked at.
pub const MAX_SYMBOLS: usize = cap(8_000_000, 500_000);
/// Core modules of one code image, by the numbers in its symbols or by its description.
pub const MAX_IMAGE_MODULES: u32 = cap(1 << 14, 1000);
/// Core modules of all code images together. Beyond this, the modules of an image that has several are left out.
pub const MAX_IMAGES_MODULES: usize = cap(1 << 15, 1200);
/// Bytes of a symbol's name in a code image. The compiler cuts names at 96 characters.
pub const MAX_IMAGE_SYMBOL_BYTES: usize = 1 << 10;
/// Functions that a note names where a place may belong to any of several.
pub const MAX_NAMED_OWNERS: usize = 8;
/// Bytes of a trampoline's code.
pub const MAX_TRAMPOLINE_BYTES: u64 = 0x10000;
/// Symbol starts before an address that are checked for a symbol that covers the address, and names of one start that
/// are compared.
pub const MAX_NESTED_SYMBOLS: usize = 64;
/// Milliseconds that a file system may take to answer.
pub const MAX_SILENCE_MS: u64 = cap(3_000, 40);
/// Milliseconds that all files together are waited for in vain. After that, each file gets [`MIN_SILENCE_MS`].
pub const MAX_SILENCE_TOTAL_MS: u64 = cap(10_000, 100);
/// Milliseconds that each file has to answer, even where much time was spent waiting for others in vain.
pub const MIN_SILENCE_MS: u64 = cap(100, 2);
/// Files that are reported because they did not answer.
pub const MAX_SILENT_FILES: usize = 20;
/// Bytes of a request to open one of several files. It holds their paths (each of PATH_MAX bytes at most) and who
/// names them.
pub const MAX_PLACE_BYTES: usize = 16 * 4096;
/// Bytes of a file that the user names and that lies on a file system of others. Up to this size it is copied before
/// it is read.
pub const MAX_COPIED_FILE: u64 = 64 << 20;
/// Bytes of all files together that lie on file systems of others and are copied before they are read.
pub const MAX_COPIED_BYTES: u64 = 2 << 30;
/// Mapped files that are kept open to see whether they change.
pub const MAX_FILES_KEPT_OPEN: usize = cap(400, 20);
/// Files that may change while they are read. If more do, there is no answer.
pub const MAX_CHANGED_FILES: usize = cap(100, 5);
/// Bytes of a separate debug file that are read to compare its checksum.
pub const MAX_CHECKSUM_BYTES: u64 = cap(8 << 30, 4 << 20);
/// Bytes of a file without a build id that are compared with the target's memory.
pub const MAX_COMPARED_BYTES: u64 = cap(64 << 20, 1 << 20);
/// Functions inlined into each other at one address.
pub const MAX_INLINE_DEPTH: usize = 256;
/// Bytes of a symbol's name, mangled or not.
pub const MAX_NAME_BYTES: usize = 64 << 10;
/// Characters of a name or message of the target in text output. JSON has the whole text.
pub const MAX_TEXT_NAME: usize = 300;
/// Frames of a cycle of repeated frames that is folded.
pub const MAX_FOLD_CYCLE: usize = 16;
/// Slots of a thread's DTV (its vector of thread-local blocks) that are looked at.
pub const MAX_TLS_MODULES: u64 = 1024;
/// Bytes of an executable's thread-local block that are tried word by word where no symbol names the variable.
pub const MAX_TLS_BLOCK_TRIED: u64 = 64 << 10;
/// Thread-local variables of one name in one file.
pub const MAX_TLS_VARIABLES: usize = 16;
/// Code versions in one thread's list.
pub const MAX_CODE_VERSIONS: u64 = 1 << 16;
/// Bytes that are read for one module's names, types and sections.
pub const MAX_MODULE_INFO_BYTES: u64 = 512 << 20;
/// Bytes of one string in a runtime's memory. A host may keep all names of one kind as one string.
pub const MAX_STRING_BYTES: usize = 64 << 20;
/// Bytes of a name section.
pub const MAX_NAME_SECTION_BYTES: usize = 256 << 20;
/// Bytes of the names of all imports of an artifact together. The names may share text.
pub const MAX_IMPORT_NAME_BYTES: usize = cap(64 << 20, 64 << 10);
/// Memories or globals of one kind of an instance. An instance with more is a broken description.
pub const MAX_INSTANCE_ARRAY: u64 = 1 << 20;
/// Levels of a B-tree in a host's memory. Every node but the root has at least 5 keys, so 6^16 keys fit below this.
pub const MAX_TREE_HEIGHT: u64 = 16;
/// Buckets of a hash table in a host's memory.
pub const MAX_HASH_BUCKETS: u64 = 1 << 24;
/// Bytes of writable file data that are searched for a descriptor in a host without symbols.
pub const MAX_DESCRIPTOR_SCAN_BYTES: u64 = 256 << 20;
/// Descriptors that are taken from the memory of a host without symbols.
pub const MAX_DESCRIPTORS: usize = 16;
/// Entries of a descriptor's list.
pub const MAX_PUBLISHED_MODULES: usize = cap(1 << 16, 1000);
/// Characters of a note, an error or a reason in text output. These texts may quote names of the target.
pub const MAX_TEXT_MESSAGE: usize = 2000;
/// Notes of one route.
pub const MAX_ROUTE_NOTES: usize = 100;
/// Loaded files that are looked at. A list of mappings that names more is broken.
pub const MAX_OBJECTS: usize = 20_000;
/// Times that one file can be loaded (dlmopen).
pub const MAX_OBJECT_INSTANCES: usize = 16;
/// Bytes of all file images together that are rebuilt from memory because the file is missing.
pub const MAX_OBJECT_IMAGES: u64 = 1 << 30;
/// Bytes of a vdso (two pages of code and a few of data are usual).
pub const MAX_VDSO: u64 = 1 << 20;
/// Program headers of an executable or library. Those of a core are limited by its size.
pub const MAX_PROGRAM_HEADERS: u16 = 1024;
/// Bytes of one note segment of an executable or library that are searched for a build id.
pub const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Bytes of a build id (20 are usual).
pub const MAX_BUILD_ID_BYTES: usize = 64;
/// Entries of an auxiliary vector (some twenty are usual).
pub const MAX_AUXV: usize = 256;
/// Bytes of the shortest build id for which servers are asked.
pub const MIN_FETCHED_BUILD_ID: usize = 8;
/// Files that servers are asked for.
pub const MAX_FETCHED_FILES: usize = cap(1000, 20);
/// Milliseconds that one file is waited for when servers are asked.
pub const MAX_FETCH_MS: u64 = cap(300_000, 1_000);
/// Milliseconds that all files together are waited for when servers are asked.
pub const MAX_FETCHING_MS: u64 = cap(1_200_000, 2_000);
/// Failures after which servers are not asked any more. That a server does not have a file is none.
pub const MAX_FETCH_FAILURES: usize = 3;
/// Rounds of "look which files are missing, ask servers for them".
pub const MAX_FETCH_ROUNDS: usize = 4;
/// Bytes of a command line that are shown.
pub const MAX_COMMAND_LINE_BYTES: usize = 64 << 10;
/// Words of a stack in which the addresses of arguments and variables are looked for.
pub const MAX_ARGUMENT_WORDS: usize = cap(128 << 10, 1 << 10);
/// Bytes of a dynamic section that are compared.
pub const MAX_DYNAMIC_BYTES: u64 = 64 << 10;
/// Bytes of a path that a core names (PATH_MAX, and the kernel's " (deleted)").
pub const MAX_PATH: usize = 4096 + 16;
/// Mappings that a core's list of files names, and pieces into which that list cuts the core's segments. A process
/// has at most 65530 mappings by default (vm.max_map_count).
pub const MAX_MAPPINGS: usize = 1_000_000;
/// Memory ranges, or threads, that a debugger is asked for at once.
#[cfg(feature = "cli")]
pub const MAX_LENT_READS: usize = 256;
/// Bytes of memory that a debugger is asked for at once.
#[cfg(feature = "cli")]
pub const MAX_LENT_BYTES: usize = 4 << 20;
/// Pages of a running process that are kept while its stacks are read.
pub const MAX_CACHED_PAGES: usize = 4096;
/// Pages of memory lent by a debugger that are kept (256 MiB).
#[cfg(feature = "cli")]
pub const MAX_LENT_PAGES: usize = cap(64 << 10, 1024);
/// Bytes of one message of the protocol between debugger and server. The long ones are memory (twice
/// [`MAX_LENT_BYTES`], since it is in hexadecimal), a list of mappings, or a report.
#[cfg(feature = "cli")]
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Registers of a thread that a debugger lends.
#[cfg(feature = "cli")]
pub const MAX_LENT_REGISTERS: usize = 100;
/// Reports that a server keeps of one stop.
#[cfg(feature = "cli")]
pub const MAX_REPORTS: usize = 64;
/// Bytes of linear memory that one request shows.
#[cfg(feature = "cli")]
pub const MAX_SHOWN_MEMORY: u64 = 1 << 20;
/// Places of all states that are described in one symbol file. esbuild's half a million points have some ten places
/// each.
pub const MAX_SYMBOL_PLACES: usize = cap(50_000_000, 500);
/// Functions of a module. Up to this number, a symbol file describes the locals of all of them without being asked:
/// writing 20,000 functions takes 0.4 s, and gdb 13 loads them in 0.2 s.
pub const MAX_DESCRIBED_FUNCTIONS: usize = 20_000;
/// Bytes of anonymous executable memory that are searched for native routines.
pub const MAX_ROUTINE_SEARCH: u64 = cap(64 << 20, 1 << 20);
/// Bytes of a linear memory that is written into a coredump. Only a memory with 64-bit addresses can have more than 4
/// GiB.
pub const MAX_EXPORTED_MEMORY: u64 = 64 << 30;
/// Sections of a Wasmtime code image (some twenty are usual, forty with debug information).
pub const MAX_IMAGE_SECTIONS: u16 = 256;
/// Bytes of all section names of a Wasmtime code image.
pub const MAX_SECTION_NAMES: u64 = 64 << 10;
/// Modules that the runtime made for a component. With more, a symbol file has no lines for it, since each place may
/// be in any of the modules.
pub const MAX_PLACED_FILES: usize = 256;
/// Changes of the way to find the caller within one function of a Wasmtime code image. There may be several at one
/// instruction.
pub const MAX_FRAME_CHANGES: usize = 10_000;
/// Pages before an executable mapping that are searched for the header of a Wasmtime code image. Between the header
/// and the code are the name of the version and the configuration, less than a page in every version that was seen.
pub const MAX_HEADER_PAGES: u64 = 16;
/// Code images of one target. With `guest_debug`, each store has its own.
pub const MAX_IMAGES: usize = cap(10_000, 20);
/// Callers whose instance is remembered during a walk.
pub const MAX_KNOWN_INSTANCES: usize = 100_000;
/// Bytes of one compiled function whose registers are followed. SQLite's largest function has 100 KiB.
pub const MAX_FLOW_BYTES: usize = cap(1 << 20, 64 << 10);
/// Instructions of one function that are followed. An instruction counts each time that a way leads to it.
pub const MAX_FLOW_STEPS: usize = cap(2_000_000, 100_000);
/// Functions whose registers are followed. Each takes some milliseconds at most.
pub const MAX_FLOW_FUNCTIONS: usize = 4_096;
/// Instances of one store that are looked at.
pub const MAX_STORE_INSTANCES: usize = cap(10_000, 200);
/// Comparisons of frames with the instances of their store, and of instances with the modules of all images.
pub const MAX_INSTANCE_CHECKS: usize = cap(10_000_000, 10_000);
/// Rounds in which an instance is decided for frames that can run in only one instance of their store.
pub const MAX_ELIMINATION_ROUNDS: usize = 64;
/// Places of an address map that are compared with a `.wasm` file of the user.
pub const MAX_COMPARED_PLACES: usize = 20_000;
/// Items of one kind (imports, function references, types) of a Wasmtime instance that are looked at.
pub const MAX_INSTANCE_ITEMS: u32 = 1 << 16;
/// Value types that are listed in all signatures of one module together.
pub const MAX_SIGNATURE_TYPES: usize = 16 << 20;
/// Bytes of the debug sections of a Wasmtime code image, together with their relocations.
pub const MAX_IMAGE_DEBUG_BYTES: u64 = 1 << 30;
/// Units of debug information in a code image.
pub const MAX_UNITS: usize = cap(1_000_000, 1_000);
/// Units of a code image's debug information that are kept after they were parsed.
pub const MAX_CACHED_UNITS: usize = 256;
/// Entries and attributes of a code image's debug information that are visited in search of functions.
pub const MAX_DEBUG_INDEX_WORK: u64 = cap(500_000_000, 100_000);
/// Seconds that the search for functions in a code image's debug information may take.
pub const MAX_DEBUG_INDEX_SECONDS: u64 = 30;
/// Rows of one unit's line table.
pub const MAX_LINE_ROWS: usize = cap(16_000_000, 10_000);
/// Address ranges of one function or block.
pub const MAX_SCOPE_RANGES: usize = 4096;
/// Entries and attributes of debug information that are looked at for the variables of one function, or for the
/// members of one type.
pub const MAX_SCOPE_WORK: u64 = cap(1_000_000, 20_000);
/// Comparisons of scopes with places of one function when the source of that whole function is laid out.
pub const MAX_LAYOUT_WORK: u64 = cap(50_000_000, 100_000);
/// Variables of one function, together with those of the functions inlined into it at one address.
pub const MAX_SOURCE_VARIABLES: usize = 1000;
/// Entries of one location list.
pub const MAX_LOCATIONS: usize = cap(100_000, 2_000);
/// References that are followed from one entry of debug information, and levels of types within types.
pub const MAX_REFERENCE_DEPTH: usize = 16;
/// Bytes that are read of one source variable.
pub const MAX_SOURCE_VALUE_BYTES: u64 = 4096;
/// Members or elements shown of one source variable.
pub const MAX_SHOWN_MEMBERS: usize = 16;
/// Characters shown of a string in one source variable.
pub const MAX_SHOWN_CHARS: usize = 200;
/// Targets of a `br_table` that are spelled out.
pub const MAX_SHOWN_TARGETS: usize = 8;
/// Stretches of memory that are listed as different when two images are compared.
#[cfg(feature = "cli")]
pub const MAX_LISTED_RANGES: usize = 10_000;
/// Bytes of an executable that `doctor` looks at.
#[cfg(feature = "cli")]
pub const MAX_EXECUTABLE_BYTES: u64 = 4 << 30;
/// Bytes of a debugger's init file, and of each file of an installed plugin, that are read.
#[cfg(feature = "cli")]
pub const MAX_INIT_BYTES: u64 = 16 << 20;
/// Data segments of a coredump. wasmparser reads up to 100,000 (MAX_WASM_DATA_SEGMENTS).
pub const MAX_DATA_SEGMENTS: usize = cap(90_000, 1_000);
/// Bytes of all data segments of a coredump together. The length of their section is a u32.
pub const MAX_DATA_BYTES: u64 = cap(u32::MAX as u64 - (8 << 20), 16 << 20);
