//! Builds what the demo shows, and says how far it is.

use crate::Result;
use std::{
    env,
    io::{self, BufRead, BufReader, IsTerminal},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// As few of the workspace's features as each needs: cargo unites those of packages that are named together, and
/// `tests/support` builds the first two by the same names.
const BUILDS: [&[&str]; 2] = [&["wstate", "host-singlepass"], &["demo-shop"]];

/// Nobody waits longer than this without a word.
const SILENCE: Duration = Duration::from_secs(15);

/// Builds all programs where this one was built, and returns that directory.
pub fn build(repository: &Path) -> Result<PathBuf> {
    // <target>/<profile>/demo
    let demo = env::current_exe()?;
    let directory = demo.parent().ok_or("the demo is not in a target directory")?;
    let target = directory.parent().ok_or("the demo is not in a target directory")?;
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    eprintln!(
        "demo: builds wstate and two hosts, then attaches to each. The first build takes about 6 minutes on two processors \
         and 2 GB in {}; later ones take seconds.\ndemo: (`sh examples/demo-python.sh` builds no host.)",
        target.display()
    );
    let began = Instant::now();
    for packages in BUILDS {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(repository).args(["build", "--bins", "--profile", profile]);
        cargo.args(packages.iter().flat_map(|package| ["--package", package]));
        cargo.arg("--target-dir").arg(target);
        run(cargo, began)?;
    }
    Ok(directory.to_path_buf())
}

/// Runs cargo. A terminal shows its own progress bar. Elsewhere it prints a line for each crate that it begins, and some
/// crates take minutes on a busy machine.
fn run(mut cargo: Command, began: Instant) -> Result<()> {
    let piped = !io::stderr().is_terminal();
    if piped {
        cargo.stderr(Stdio::piped());
    }
    let mut child = cargo.spawn().map_err(|e| format!("cannot start cargo: {e}"))?;
    if let Some(stderr) = child.stderr.take() {
        let (lines, received) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(io::Result::ok) {
                let _ = lines.send(line);
            }
        });
        loop {
            match received.recv_timeout(SILENCE) {
                Ok(line) => eprintln!("{line}"),
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("demo: still building, for {} s so far", began.elapsed().as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        return Err("the build failed; its messages are above".into());
    }
    Ok(())
}
