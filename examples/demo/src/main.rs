//! Two real hosts stop in the middle of their work, and wstate looks at them from outside.
//!
//!     cargo demo
//!
//! Builds wstate and both hosts, starts one after the other, prints what `wstate attach` shows, and ends them.

mod build;

use std::{
    env,
    error::Error,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One screen of the demo.
struct Screen {
    /// What the reader sees and what to look for in it.
    title: &'static str,
    host: &'static str,
    /// What the host is given, with paths from the repository's root.
    host_arguments: &'static [&'static str],
    /// What `wstate attach PID` is given besides.
    arguments: &'static [&'static str],
    /// Whether only the thread that said READY is shown.
    one_thread: bool,
}

const SCREENS: [Screen; 2] = [
    Screen {
        title: "1. A Wasmtime host hangs. Its plugin, written in Rust, prices an order: in which line does it wait, and with \
                which values?\n   The plugin's frames are those with a `*`, between those of the host. (Without --no-lines the \
                host's have source lines, too.)",
        host: "demo-shop",
        host_arguments: &["examples/demo/plugin/orders.wasm"],
        arguments: &["--no-lines"],
        one_thread: false,
    },
    Screen {
        title: "2. SQLite as WebAssembly is in the middle of a query, in a host of wasmer 0.x with singlepass. It has no debug \
                information,\n   and yet every frame has its locals and its operand stack, and tells where each value is. \
                (Without --wasm-only the\n   frames of the host are there, too.)",
        host: "host-singlepass",
        host_arguments: &["--compile-with", "--wasm", SQLITE, "sqlite"],
        arguments: &["--wasm", SQLITE, "--wasm-only"],
        one_thread: true,
    },
];

const SQLITE: &str = "tests/fixtures/sqljs/sql-wasm-debug.wasm";

/// A host. It ends with this value, whatever happens to the demo: its standard input is closed then, too.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    // <repository>/examples/demo
    let repository =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).ok_or("the demo is not in its repository")?;
    let built = build::build(repository)?;
    for screen in SCREENS {
        show(&screen, repository, &built)?;
    }
    println!(
        "\nThat was wstate, on processes that did nothing to help. Your own process: {} attach PID",
        wstate(&built)
    );
    Ok(())
}

/// The program as one types it.
fn wstate(built: &Path) -> String {
    let program = built.join("wstate");
    let here = env::current_dir().unwrap_or_default();
    program.strip_prefix(here).unwrap_or(&program).display().to_string()
}

fn show(screen: &Screen, repository: &Path, built: &Path) -> Result<()> {
    let mut host = Host(
        Command::new(built.join(screen.host))
            .current_dir(repository)
            .args(screen.host_arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The runtime of wasmer 0.x complains of frames that it does not know.
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", screen.host))?,
    );
    let (pid, tid) = ready(&mut host).map_err(|e| {
        let by_hand = format!("{} {}", built.join(screen.host).display(), screen.host_arguments.join(" "));
        format!("{}: {e}; to see why, start it by hand: {by_hand}", screen.host)
    })?;
    let mut arguments = vec!["attach", &pid];
    if screen.one_thread {
        arguments.extend(["--thread", &tid]);
    }
    arguments.extend(screen.arguments);

    println!("\n{}\n", screen.title);
    println!("  $ wstate {}\n", arguments.join(" "));
    let status = Command::new(built.join("wstate"))
        .current_dir(repository)
        .args(&arguments)
        .status()
        .map_err(|e| format!("cannot start wstate: {e}"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(format!("wstate ended with exit code {code}; `wstate doctor {pid}` may say why").into()),
        None => Err(format!("wstate was killed: {status}").into()),
    }
}

/// Waits for `READY pid=.. tid=..` and returns both.
fn ready(host: &mut Host) -> Result<(String, String)> {
    let stdout = host.0.stdout.take().ok_or("there is no stdout")?;
    let line = BufReader::new(stdout)
        .lines()
        .find_map(|line| line.ok().filter(|l| l.starts_with("READY ")))
        .ok_or("it ended before it reached its stop")?;
    let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)).map(str::to_owned);
    Ok((field("pid=").ok_or("it said no pid")?, field("tid=").ok_or("it said no tid")?))
}
