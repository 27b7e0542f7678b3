//! SQLite, compiled to WebAssembly by sql.js, runs a query inside of a real wasmer host; wstate attaches from outside.
//!
//!     cargo demo
//!
//! Builds the host and wstate, starts the host, waits until it is inside of the query, prints what `wstate attach`
//! shows, and ends the host.

use std::{
    error::Error,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
};

/// The host ends with this value, whatever happens to the demo.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> ExitCode {
    match demo() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<ExitCode, Box<dyn Error>> {
    // <repository>/examples/demo
    let repository =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).ok_or("the demo is not in its repository")?;
    let built = build(repository)?;
    let wasm = repository.join("tests/fixtures/sqljs/sql-wasm-debug.wasm");

    let mut host = Host(
        Command::new(built.join("host-singlepass"))
            .args(["--compile-with", "--wasm"])
            .arg(&wasm)
            .arg("sqlite")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("cannot start the host: {e}"))?,
    );
    let pid = ready(&mut host)?;

    eprintln!("\nSQLite is in the middle of a query in process {pid}. From outside:\n");
    eprintln!("  $ wstate attach {pid} --wasm {}\n", wasm.strip_prefix(repository).unwrap_or(&wasm).display());
    let status = Command::new(built.join("wstate"))
        .args(["attach", &pid, "--wasm"])
        .arg(&wasm)
        .status()
        .map_err(|e| format!("cannot start wstate: {e}"))?;
    match status.code() {
        Some(0) => Ok(ExitCode::SUCCESS),
        Some(code) => Err(format!("wstate ended with exit code {code}; `wstate doctor` may say why").into()),
        None => Err(format!("wstate was killed: {status}").into()),
    }
}

/// Builds both programs where this one was built, and returns that directory.
fn build(repository: &Path) -> Result<PathBuf, Box<dyn Error>> {
    // <target>/<profile>/demo
    let demo = std::env::current_exe()?;
    let profile_dir = demo.parent().ok_or("the demo is not in a target directory")?;
    let target = profile_dir.parent().ok_or("the demo is not in a target directory")?;
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    eprintln!("Building the host and wstate; the first time this takes a minute or two.");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(repository)
        .args([
            "build",
            "--quiet",
            "--profile",
            profile,
            "--package",
            "wstate",
            "--package",
            "host-singlepass",
            "--bins",
        ])
        .arg("--target-dir")
        .arg(target)
        .stderr(Stdio::inherit())
        .status()
        .map_err(|e| format!("cannot start cargo: {e}"))?;
    if !status.success() {
        return Err("the build failed; its messages are above".into());
    }
    Ok(profile_dir.to_path_buf())
}

/// Waits for `READY pid=...` and returns the pid.
fn ready(host: &mut Host) -> Result<String, Box<dyn Error>> {
    let stdout = host.0.stdout.take().ok_or("the host has no stdout")?;
    let line = BufReader::new(stdout)
        .lines()
        .find_map(|line| line.ok().filter(|l| l.starts_with("READY ")))
        .ok_or("the host ended before it reached its stop")?;
    let pid = line.split(' ').find_map(|word| word.strip_prefix("pid=")).ok_or("the host said no pid")?;
    Ok(pid.to_owned())
}
