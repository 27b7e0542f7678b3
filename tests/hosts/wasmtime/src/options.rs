//! The command line.

use std::path::PathBuf;
use wasmtime::{Config, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, WasmBacktraceDetails};

pub const HELP: &str = include_str!("../README.md");

/// What to do when the stop is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Say READY and sleep.
    Sleep,
    /// Say READY, then let the kernel write a core of exactly this stop.
    Core,
    /// Like `Core`, but a trap aborts inside of the trap handler, on its alternate stack.
    CoreInHandler,
}

/// How a module's code gets into the process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Load {
    New,
    Deserialize,
    DeserializeFile,
    /// The file of an earlier run.
    Existing,
}

pub struct Options {
    pub stop: String,
    pub unwind_info: Option<bool>,
    pub address_map: Option<bool>,
    pub symbols: Option<bool>,
    pub debug_info: bool,
    pub guest_debug: bool,
    pub pooling: bool,
    pub inlining: bool,
    pub backtrace_details: bool,
    pub opt: Option<OptLevel>,
    pub load: Load,
    pub cwasm: Option<PathBuf>,
    pub stores: u32,
    pub engines: u32,
    pub thread: bool,
    pub asynchronous: bool,
    pub end: End,
    pub depth: Option<u32>,
    pub wasm: Option<PathBuf>,
    pub more: Vec<PathBuf>,
    pub call: Option<String>,
    pub args: Vec<String>,
    pub stop_at: Option<String>,
    pub stop_after: Option<u64>,
    pub truth: Option<PathBuf>,
    pub dump_wasm: Option<PathBuf>,
    pub cwd: Option<PathBuf>,
    pub stay: bool,
}

fn usage(problem: &str) -> ! {
    eprintln!("host-wasmtime: {problem}; see host-wasmtime --help");
    std::process::exit(64)
}

impl Options {
    pub fn parse() -> Options {
        let mut options = Options {
            stop: String::new(),
            unwind_info: None,
            address_map: None,
            symbols: None,
            debug_info: false,
            guest_debug: false,
            pooling: false,
            inlining: false,
            backtrace_details: false,
            opt: None,
            load: Load::New,
            cwasm: None,
            stores: 1,
            engines: 1,
            thread: false,
            asynchronous: false,
            end: End::Sleep,
            depth: None,
            wasm: None,
            more: Vec::new(),
            call: None,
            args: Vec::new(),
            stop_at: None,
            stop_after: None,
            truth: None,
            dump_wasm: None,
            cwd: None,
            stay: false,
        };
        let mut words = std::env::args().skip(1).peekable();
        fn value(words: &mut impl Iterator<Item = String>, flag: &str) -> String {
            words.next().unwrap_or_else(|| usage(&format!("{flag} needs a value")))
        }
        fn switch(words: &mut impl Iterator<Item = String>, flag: &str) -> bool {
            match value(words, flag).as_str() {
                "on" => true,
                "off" => false,
                other => usage(&format!("{flag} is on or off, not {other}")),
            }
        }
        fn number<T: std::str::FromStr>(words: &mut impl Iterator<Item = String>, flag: &str) -> T {
            value(words, flag).parse().unwrap_or_else(|_| usage(&format!("{flag} needs a number")))
        }
        while let Some(word) = words.next() {
            match word.as_str() {
                "-h" | "--help" => {
                    print!("{HELP}");
                    std::process::exit(0)
                }
                "--unwind-info" => options.unwind_info = Some(switch(&mut words, &word)),
                "--address-map" => options.address_map = Some(switch(&mut words, &word)),
                "--symbols" if cfg!(feature = "v48") => options.symbols = Some(switch(&mut words, &word)),
                "--debug-info" => options.debug_info = true,
                "--guest-debug" if cfg!(feature = "v48") => options.guest_debug = true,
                "--symbols" | "--guest-debug" => usage(&format!("Wasmtime 36 has no {word}")),
                "--pooling" => options.pooling = true,
                "--inlining" => options.inlining = true,
                "--backtrace-details" => options.backtrace_details = true,
                "--opt" => {
                    options.opt = Some(match value(&mut words, &word).as_str() {
                        "none" => OptLevel::None,
                        "speed" => OptLevel::Speed,
                        other => usage(&format!("--opt is none or speed, not {other}")),
                    })
                }
                "--load" => {
                    options.load = match value(&mut words, &word).as_str() {
                        "new" => Load::New,
                        "deserialize" => Load::Deserialize,
                        "deserialize-file" => Load::DeserializeFile,
                        "existing" => Load::Existing,
                        other => {
                            usage(&format!("--load is new, deserialize, deserialize-file or existing, not {other}"))
                        }
                    }
                }
                "--cwasm" => options.cwasm = Some(value(&mut words, &word).into()),
                "--stores" => options.stores = number(&mut words, &word),
                "--engines" => options.engines = number(&mut words, &word),
                "--thread" => options.thread = true,
                "--async" => options.asynchronous = true,
                "--core" => options.end = End::Core,
                "--core-in-handler" => options.end = End::CoreInHandler,
                "--depth" => options.depth = Some(number(&mut words, &word)),
                "--wasm" => options.wasm = Some(value(&mut words, &word).into()),
                "--more" => options.more.push(value(&mut words, &word).into()),
                "--call" => {
                    options.call = Some(value(&mut words, &word));
                    while let Some(arg) = words.next_if(|w| w.parse::<f64>().is_ok()) {
                        options.args.push(arg);
                    }
                }
                "--stop-at" => options.stop_at = Some(value(&mut words, &word)),
                "--stop-after" => options.stop_after = Some(number(&mut words, &word)),
                "--truth" => options.truth = Some(value(&mut words, &word).into()),
                "--dump-wasm" => options.dump_wasm = Some(value(&mut words, &word).into()),
                "--cwd" => options.cwd = Some(value(&mut words, &word).into()),
                "--stay" => options.stay = true,
                flag if flag.starts_with('-') => usage(&format!("unknown flag {flag}")),
                stop if options.stop.is_empty() => options.stop = stop.into(),
                extra => usage(&format!("more than one stop: {extra}")),
            }
        }
        if options.stop.is_empty() {
            options.stop = if options.wasm.is_some() { "wasm".into() } else { usage("no stop given") };
        }
        options
    }

    /// Whether the stop is a trap.
    pub fn is_trap(&self) -> bool {
        self.stop.starts_with("trap-") || self.stop == "stack-overflow"
    }

    /// Whether guests are called through `call_async`, on a fiber. The debug API reports traps on fibers only.
    pub fn is_async(&self) -> bool {
        self.asynchronous
            || self.stop.starts_with("async")
            || self.guest_debug && (self.is_trap() || self.stop == "threads")
    }

    /// The engine's settings.
    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.wasm_multi_memory(true);
        config.wasm_memory64(true);
        if let Some(on) = self.unwind_info {
            config.native_unwind_info(on);
        }
        if let Some(on) = self.address_map {
            config.generate_address_map(on);
        }
        if self.debug_info {
            config.debug_info(true);
        }
        if self.backtrace_details {
            config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
        }
        if let Some(level) = self.opt {
            config.cranelift_opt_level(level);
        }
        if self.pooling {
            let mut pool = PoolingAllocationConfig::new();
            pool.total_core_instances(32)
                .total_component_instances(8)
                .total_memories(24)
                .total_tables(24)
                .total_stacks(16)
                .total_gc_heaps(8)
                .max_memories_per_module(8)
                .max_tables_per_module(8)
                .max_core_instance_size(1 << 20);
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        }
        if self.stop == "deep" {
            config.max_wasm_stack(6 << 20);
            config.async_stack_size(7 << 20);
        }
        self.version_specific(&mut config);
        config
    }

    #[cfg(feature = "v48")]
    fn version_specific(&self, config: &mut Config) {
        // `WasmBacktrace::force_capture` keeps to this limit, which is 20 by default.
        config.wasm_backtrace_max_frames(std::num::NonZeroUsize::new(1 << 24));
        if let Some(on) = self.symbols {
            config.debug_symbols(on);
        }
        if self.guest_debug {
            config.guest_debug(true);
        }
        if self.inlining {
            config.compiler_inlining(wasmtime::Inlining::Yes);
        }
    }

    #[cfg(not(feature = "v48"))]
    fn version_specific(&self, config: &mut Config) {
        config.async_support(self.is_async());
        if self.inlining {
            // Between modules only: `wasmtime_inlining_intra_module` sets a copy of the tunables that nobody asks.
            config.compiler_inlining(true);
        }
    }
}
