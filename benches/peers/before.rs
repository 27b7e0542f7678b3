//! This wstate beside another build of it, most often that of the commit before, on the hosts of the repository:
//!
//!     WSTATE_BEFORE=FILE cargo bench --bench peers -- before

use crate::measure::{bar, table};
use crate::support::{Host, Profile, Version, host_singlepass, host_wasmtime};
use std::process::Command;

const WSTATE: &str = env!("CARGO_BIN_EXE_wstate");
const ROUNDS: usize = 51;
/// How much of the time before this one may take.
const MOST: f64 = 1.05;

pub fn run() {
    let Some(before) = std::env::var_os("WSTATE_BEFORE") else {
        return println!("WSTATE_BEFORE names no other build of wstate: none is compared with this one\n");
    };
    let before = before.to_str().expect("a path in UTF-8");
    for exe in [
        host_wasmtime(Version::V48, Profile::Release),
        host_wasmtime(Version::V36, Profile::Release),
        host_singlepass(Profile::Release),
    ] {
        let name = exe.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let host = Host::start_exe(exe, "sleep", &[]);
        compare(&name, before, &host.pid().to_string());
    }
}

fn compare(host: &str, before: &str, pid: &str) {
    let ways: [&[&str]; 3] = [&[], &["--json"], &["--no-lines"]];
    for way in ways {
        let name = |which: &str| format!("{which}: attach {}", way.join(" "));
        let (old, new) = (name("before"), name("now"));
        let command = |exe| [&[exe, "attach", pid], way].concat();
        let all = table(&format!("{host} in sleep"), &[(&old, command(before)), (&new, command(WSTATE))], ROUNDS);
        let of = |i: usize| all.get(i).copied().flatten();
        bar("time", of(1).map(|m| m.total), of(0).map(|m| m.total), MOST);
    }
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        old.extend(stopped(before, pid));
        new.extend(stopped(WSTATE, pid));
    }
    let [old, new] = [old, new].map(|mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    });
    let text = |ms: Option<f64>| ms.map_or("unknown".to_string(), |ms| format!("{ms:.3} ms"));
    println!("{host} stood, as wstate says: {} before, {} now\n", text(old), text(new));
}

/// Milliseconds for which a build of wstate says that it stopped the process.
fn stopped(exe: &str, pid: &str) -> Option<f64> {
    let output = Command::new(exe).args(["attach", "--json", "--timing", pid]).output().ok()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    report["timing"]["stopped_ms"].as_f64()
}
