//! The command line.

use std::path::PathBuf;
use wasmer_runtime_core::backend::{CompilerConfig, MemoryBoundCheckMode};

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

/// What a second thread, which makes the same call, runs in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Also {
    /// The same instance.
    Same,
    /// An instance of its own.
    Other,
    /// An instance of its own with the same imported memory.
    Memory,
}

pub struct Options {
    pub stop: String,
    pub track_state: bool,
    pub full_preemption: bool,
    pub stack_checks: bool,
    pub bounds_checks: Option<bool>,
    pub compile_with: bool,
    pub thread: bool,
    pub func: bool,
    pub runtime_handler: bool,
    pub end: End,
    pub depth: Option<u32>,
    pub wasm: Option<PathBuf>,
    pub more: Vec<PathBuf>,
    pub call: Option<String>,
    pub args: Vec<String>,
    pub stop_at: Option<String>,
    pub truth: Option<PathBuf>,
    pub truth_memory: bool,
    pub resume: Option<PathBuf>,
    pub artifact: Option<PathBuf>,
    pub dump_wasm: Option<PathBuf>,
    pub cwd: Option<PathBuf>,
    pub ballast: usize,
    pub publish: bool,
    pub stay: bool,
    pub spin: bool,
    pub also: Option<Also>,
}

fn usage(problem: &str) -> ! {
    eprintln!("host-singlepass: {problem}; see host-singlepass --help");
    std::process::exit(64)
}

impl Options {
    pub fn parse() -> Options {
        let mut options = Options {
            stop: String::new(),
            track_state: true,
            full_preemption: false,
            stack_checks: false,
            bounds_checks: None,
            compile_with: false,
            thread: false,
            func: false,
            runtime_handler: false,
            end: End::Sleep,
            depth: None,
            wasm: None,
            more: Vec::new(),
            call: None,
            args: Vec::new(),
            stop_at: None,
            truth: None,
            truth_memory: false,
            resume: None,
            artifact: None,
            dump_wasm: None,
            cwd: None,
            ballast: 0,
            publish: false,
            stay: false,
            spin: false,
            also: None,
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
        while let Some(word) = words.next() {
            match word.as_str() {
                "-h" | "--help" => {
                    print!("{HELP}");
                    std::process::exit(0)
                }
                "--track-state" => options.track_state = switch(&mut words, &word),
                "--full-preemption" => options.full_preemption = true,
                "--stack-checks" => options.stack_checks = true,
                "--bounds-checks" => options.bounds_checks = Some(switch(&mut words, &word)),
                "--compile-with" => options.compile_with = true,
                "--thread" => options.thread = true,
                "--func" => options.func = true,
                "--runtime-handler" => options.runtime_handler = true,
                "--core" => options.end = End::Core,
                "--core-in-handler" => options.end = End::CoreInHandler,
                "--depth" => {
                    let depth = value(&mut words, &word);
                    options.depth = Some(depth.parse().unwrap_or_else(|_| usage("--depth needs a number")));
                }
                "--wasm" => options.wasm = Some(value(&mut words, &word).into()),
                "--more" => options.more.push(value(&mut words, &word).into()),
                "--call" => {
                    options.call = Some(value(&mut words, &word));
                    while let Some(arg) = words.next_if(|w| !w.starts_with("--")) {
                        options.args.push(arg);
                    }
                }
                "--stop-at" => options.stop_at = Some(value(&mut words, &word)),
                "--truth" => options.truth = Some(value(&mut words, &word).into()),
                "--truth-memory" => options.truth_memory = true,
                "--resume" => options.resume = Some(value(&mut words, &word).into()),
                "--artifact" => options.artifact = Some(value(&mut words, &word).into()),
                "--dump-wasm" => options.dump_wasm = Some(value(&mut words, &word).into()),
                "--cwd" => options.cwd = Some(value(&mut words, &word).into()),
                "--ballast" => {
                    let bytes = value(&mut words, &word);
                    options.ballast = bytes.parse().unwrap_or_else(|_| usage("--ballast needs a number"));
                }
                "--publish" => options.publish = true,
                "--stay" => options.stay = true,
                "--spin" => options.spin = true,
                "--also" => {
                    options.also = Some(match value(&mut words, &word).as_str() {
                        "same" => Also::Same,
                        "other" => Also::Other,
                        "memory" => Also::Memory,
                        other => usage(&format!("--also is same, other or memory, not {other}")),
                    });
                }
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

    /// The compiler settings these options ask for.
    pub fn compiler_config(&self) -> CompilerConfig {
        CompilerConfig {
            track_state: self.track_state,
            // Without the checkpoints there is nothing to interrupt.
            full_preemption: self.full_preemption || self.stop == "interrupt",
            enforce_stack_check: self.stack_checks,
            memory_bound_check_mode: match self.bounds_checks {
                None => MemoryBoundCheckMode::Default,
                Some(true) => MemoryBoundCheckMode::Enable,
                Some(false) => MemoryBoundCheckMode::Disable,
            },
            ..Default::default()
        }
    }
}
