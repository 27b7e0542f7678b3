//! A module's size does not count, only what is in the frames: generated modules of more and more functions, and two of
//! other people.

use crate::measure::{bar, table};
use crate::support::{Host, Profile, Version, host_wasmtime, large_module, repository};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const WSTATE: &str = env!("CARGO_BIN_EXE_wstate");
const FUNCTIONS: [u32; 3] = [100, 10_000, 100_000];
const ROUNDS: usize = 11;

fn compare(title: &str, hosts: &[(String, Host)], most: f64) {
    let pids: Vec<(String, String)> = hosts.iter().map(|(n, host)| (n.clone(), host.pid().to_string())).collect();
    let names = |suffix: &str| pids.iter().map(|(name, _)| format!("{name}{suffix}")).collect::<Vec<_>>();
    let (with_lines, without) = (names(""), names(", --no-lines"));
    let mut commands: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, (_, pid)) in with_lines.iter().zip(&pids) {
        commands.push((name, vec![WSTATE, "attach", pid]));
    }
    for (name, (_, pid)) in without.iter().zip(&pids) {
        commands.push((name, vec![WSTATE, "attach", "--no-lines", pid]));
    }
    let all = table(title, &commands, ROUNDS);
    let of = |i: usize| all.get(i).copied().flatten();
    if let Some(last) = hosts.len().checked_sub(1).filter(|&last| last > 0) {
        bar("time, largest against smallest", of(last).map(|m| m.total), of(0).map(|m| m.total), most);
        bar("memory, largest against smallest", of(last).map(|m| m.peak), of(0).map(|m| m.peak), most);
    }
    println!();
}

pub fn run() {
    let directory = tempfile::tempdir().expect("a directory");
    let files: Vec<(u32, PathBuf)> = FUNCTIONS
        .iter()
        .map(|&functions| {
            let path = directory.path().join(format!("{functions}.wasm"));
            std::fs::write(&path, large_module::module(functions)).expect("a module");
            (functions, path)
        })
        .collect();
    let hosts = |start: &dyn Fn(&str) -> Host| {
        let named = |(functions, path): &(u32, PathBuf)| {
            (format!("{functions} functions"), start(path.to_str().expect("text")))
        };
        files.iter().map(named).collect::<Vec<_>>()
    };
    let singlepass = |wasm: &str| {
        Host::start("wasm", &["--wasm", wasm, "--call", "run", "--stop-at", "env.stop"], Profile::ReleaseDebug)
    };
    let on_singlepass = hosts(&singlepass);
    compare("wstate attach, singlepass, generated modules with a tracked state", &on_singlepass, 2.0);
    search(&on_singlepass[FUNCTIONS.len() - 1].1);
    drop(on_singlepass);
    let wasmtime = host_wasmtime(Version::V48, Profile::Release);
    let on_wasmtime = |wasm: &str| {
        let flags = ["--wasm", wasm, "--call", "run", "--stop-at", "env.stop"];
        // The hosts' compiler is not optimized.
        Host::start_within(Duration::from_secs(900), wasmtime.clone(), "wasm", &flags)
    };
    compare("wstate attach, Wasmtime 48, the same modules", &hosts(&on_wasmtime), 2.0);
    third_party();
}

/// sql.js in the middle of a query and esbuild while it starts: 0.6 and 9 MB of WebAssembly.
fn third_party() {
    let sqljs = repository().join("tests/fixtures/sqljs/sql-wasm-debug.wasm");
    let sqljs = sqljs.to_str().expect("text");
    let mut hosts =
        vec![("sql.js 1.8.0".to_string(), Host::start("sqlite", &["--wasm", sqljs], Profile::ReleaseDebug))];
    match esbuild() {
        Ok(wasm) => {
            let call = ["--wasm", wasm.to_str().expect("text"), "--call", "run", "0", "0"];
            let flags = [&call[..], &["--stop-at", "go.runtime.nanotime1"]].concat();
            hosts.push(("esbuild-wasm 0.14.0".to_string(), Host::start("wasm", &flags, Profile::ReleaseDebug)));
        }
        Err(why) => println!("esbuild-wasm is not here: {why}"),
    }
    compare("wstate attach, singlepass, modules of other people", &hosts, 2.0);
}

/// The package of the npm registry, once for each target directory.
fn esbuild() -> Result<PathBuf, String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("esbuild-wasm-0.14.0");
    let wasm = directory.join("package/esbuild.wasm");
    if !wasm.exists() {
        std::fs::create_dir_all(&directory).map_err(|e| e.to_string())?;
        let script = "npm pack --silent esbuild-wasm@0.14.0 && tar -xzf esbuild-wasm-0.14.0.tgz package/esbuild.wasm";
        let output = Command::new("sh").args(["-c", script]).current_dir(&directory).stdin(Stdio::null()).output();
        let output = output.map_err(|e| format!("sh does not start: {e}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    Ok(wasm)
}

/// How fast the search for modules goes through memory, where nothing else is asked.
fn search(host: &Host) {
    let pid = host.pid().to_string();
    let writable = procfs::process::Process::new(host.pid()).and_then(|p| p.smaps()).expect("smaps");
    let resident: u64 = writable
        .iter()
        .filter(|map| map.perms.contains(procfs::process::MMPermissions::WRITE))
        .filter_map(|map| map.extension.map.get("Rss"))
        .sum();
    let mut best = f64::MAX;
    for _ in 0..5 {
        let begin = Instant::now();
        let done = Command::new(WSTATE).args(["attach", "--no-lines", "--route", "heap", &pid]).output();
        assert!(done.expect("wstate starts").status.success());
        best = best.min(begin.elapsed().as_secs_f64());
    }
    println!(
        "search of {:.0} MiB of resident writable memory, with the rest of the attach: {:.3} s, {:.2} GB/s\n",
        resident as f64 / f64::from(1 << 20),
        best,
        resident as f64 / 1e9 / best
    );
}
