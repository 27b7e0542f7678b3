//! An attach beside eu-stack, which is the fastest peer that prints the same, and gdb: on a native process, and on one
//! that runs a Wasm module of other people of more than a megabyte.

use crate::measure::{bar, table};
use crate::support::{Host, Profile, Version, host_wasmtime, third_party_module};
use crate::target::Target;

const WSTATE: &str = env!("CARGO_BIN_EXE_wstate");

fn commands(pid: &str) -> Vec<(&'static str, Vec<&str>)> {
    vec![
        ("wstate attach", vec![WSTATE, "attach", pid]),
        ("eu-stack -s -i -p", vec!["eu-stack", "-s", "-i", "-p", pid]),
        ("wstate attach --no-lines", vec![WSTATE, "attach", "--no-lines", pid]),
        ("eu-stack -p", vec!["eu-stack", "-p", pid]),
        ("gdb -p, thread apply all bt", vec!["gdb", "-nx", "-batch", "-p", pid, "-ex", "thread apply all bt"]),
    ]
}

fn compare(title: &str, pid: &str) {
    let all = table(title, &commands(pid), 21);
    let of = |i: usize| all.get(i).copied().flatten();
    for (what, ours, peer) in [("lines and inlines", 0, 1), ("names", 2, 3)] {
        bar(&format!("time, {what}"), of(ours).map(|m| m.total), of(peer).map(|m| m.total), 1.0);
        bar(&format!("memory, {what}"), of(ours).map(|m| m.peak), of(peer).map(|m| m.peak), 1.5);
    }
    println!();
}

pub fn native() {
    let target = Target::start();
    compare("a native process of 4 threads x 30 frames", &target.pid());
}

pub fn third_party() {
    let module = match third_party_module() {
        Ok(module) => module,
        Err(why) => return println!("the third-party module is not here: {why}\n"),
    };
    let module = module.to_str().expect("a path of ours");
    let host = Host::start_exe(
        host_wasmtime(Version::V48, Profile::Release),
        "wasm",
        &["--wasm", module, "--stop-at", "fd_read"],
    );
    compare("Boolector as WebAssembly on Wasmtime 48, default configuration", &host.pid().to_string());
}
