//! Wasm frames without any table of native code: what the runtime's own words lead to is what the tables say.

use crate::support::{Host, Profile, Version, host_wasmtime};
use std::path::{Path, PathBuf};
use wstate::process::files::FileLocation;
use wstate::process::live::{CaptureOptions, LiveTarget};
use wstate::process::{Mapping, Memory, MemoryError, Target, Thread};
use wstate::report::{FrameKind, Report};
use wstate::session::{Options, Route, Session, Source};

/// A target of which no file is known, so that native code has neither tables nor symbols.
struct Blind<'a> {
    target: &'a dyn Target,
    mappings: Vec<Mapping>,
}

impl<'a> Blind<'a> {
    fn new(target: &'a dyn Target) -> Blind<'a> {
        let is_image = |path: &PathBuf| path.extension().is_some_and(|e| e == "cwasm");
        let unnamed = |m: &Mapping| Mapping { path: m.path.clone().filter(is_image), ..m.clone() };
        Blind { target, mappings: target.mappings().iter().map(unnamed).collect() }
    }
}

impl Memory for Blind<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.target.read(address, buf)
    }
}

impl Target for Blind<'_> {
    fn machine(&self) -> wstate::arch::Machine {
        self.target.machine()
    }
    fn description(&self) -> String {
        self.target.description()
    }
    fn threads(&self) -> &[Thread] {
        self.target.threads()
    }
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }
    fn executable(&self) -> Option<&Path> {
        None
    }
    fn pid(&self) -> Option<u32> {
        self.target.pid()
    }
    fn auxv(&self, _: u64) -> Option<u64> {
        None
    }
    fn file_candidates(&self, mapping: &Mapping) -> Vec<FileLocation> {
        if mapping.path.is_some() { self.target.file_candidates(mapping) } else { Vec::new() }
    }
    fn notes(&self) -> &[String] {
        &[]
    }
    fn is_live(&self) -> bool {
        self.target.is_live()
    }
}

/// The Wasm frames of a thread: pc and instance.
fn wasm(report: &Report, tid: u32) -> Vec<(u64, Option<u64>)> {
    let thread = report.threads.iter().find(|t| t.tid == Some(tid)).expect("the thread");
    let frames = thread
        .frames
        .iter()
        .filter(|f| f.kind == FrameKind::Wasm && f.function.as_ref().is_some_and(|f| f.inlined != Some(true)));
    frames.map(|f| (f.pc.map_or(0, |pc| pc.0), f.instance.map(|i| i.0))).collect()
}

/// Frames that both ways have; that only the tables have; that differ. Instances that both have; that differ.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    same: usize,
    missing: usize,
    wrong: usize,
    same_instance: usize,
    wrong_instance: usize,
}

impl Counts {
    fn add(&mut self, by_tables: &[(u64, Option<u64>)], by_words: &[(u64, Option<u64>)]) {
        let same = by_tables.iter().zip(by_words).take_while(|(a, b)| a.0 == b.0).count();
        self.same += same;
        self.wrong += by_words.len() - same;
        self.missing += by_tables.len() - same;
        for (a, b) in by_tables.iter().zip(by_words).take(same) {
            if let (Some(a), Some(b)) = (a.1, b.1) {
                if a == b { self.same_instance += 1 } else { self.wrong_instance += 1 }
            }
        }
    }
}

const STOPS: [(&str, &[&str]); 17] = [
    ("sleep", &[]),
    ("sleep", &["--thread"]),
    ("sleep", &["--stores", "2", "--engines", "2"]),
    ("sleep", &["--unwind-info", "off", "--address-map", "off"]),
    ("sleep", &["--debug-info", "--opt", "none"]),
    ("sleep", &["--pooling"]),
    ("sleep", &["--load", "deserialize-file"]),
    ("async", &[]),
    ("memories", &[]),
    ("nested", &[]),
    ("nested-stores", &[]),
    ("modules", &[]),
    ("component", &[]),
    ("deep", &["--depth", "3000"]),
    ("trap-unreachable", &[]),
    ("trap-memory", &[]),
    ("spin", &["--depth", "2"]),
];

/// Stops a process as a shell does. It ends with the test all the same.
fn stop_process(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).expect("a signal");
    let is_stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a state");
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    while !is_stopped() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn the_runtime_s_own_words_lead_where_tables_lead() {
    let mut total = Counts::default();
    for version in Version::ALL {
        for (stop, flags) in STOPS {
            let host = Host::start_exe(host_wasmtime(version, Profile::Release), stop, flags);
            // What is analysed twice must not run on between.
            stop_process(host.pid());
            let mut options = Options::new(Source::Pid(host.pid() as u32));
            (options.names, options.routes) = (false, vec![Route::Descriptor]);
            let target = LiveTarget::capture(host.pid() as u32, &CaptureOptions::default()).expect("it is stopped");
            let by_tables = Session::on(&target, &options).stacks().expect("a report").report;
            let by_words = Session::on(&Blind::new(&target), &options).stacks().expect("a report").report;
            let tid = host.tid() as u32;
            let mut counts = Counts::default();
            counts.add(&wasm(&by_tables, tid), &wasm(&by_words, tid));
            println!("{version:?} {stop} {flags:?}: {counts:?}");
            assert!(
                counts.same > 0 && counts.wrong + counts.missing + counts.wrong_instance == 0,
                "{version:?} {stop} {flags:?} {counts:?}"
            );
            // Other threads have no Wasm either way.
            for thread in target.threads().iter().filter(|t| t.id.0 != tid) {
                assert_eq!(
                    wasm(&by_words, thread.id.0).len(),
                    wasm(&by_tables, thread.id.0).len(),
                    "{version:?} {stop} {flags:?}"
                );
            }
            total.add(&wasm(&by_tables, tid), &wasm(&by_words, tid));
        }
    }
    println!("{total:?}");
}
