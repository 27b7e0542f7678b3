//! Stacks of 10,000 Wasm frames.

use crate::measure::table;
use crate::support::{Host, Profile, Version, host_wasmtime};

const WSTATE: &str = env!("CARGO_BIN_EXE_wstate");

fn compare(title: &str, host: &Host) {
    let pid = host.pid().to_string();
    let commands = [
        ("wstate attach", vec![WSTATE, "attach", &pid]),
        ("wstate attach --fold", vec![WSTATE, "attach", "--fold", &pid]),
        ("wstate attach --no-lines", vec![WSTATE, "attach", "--no-lines", &pid]),
        ("eu-stack -n 0 -s -i -p", vec!["eu-stack", "-n", "0", "-s", "-i", "-p", &pid]),
        ("eu-stack -n 0 -p", vec!["eu-stack", "-n", "0", "-p", &pid]),
        ("gdb -p, thread apply all bt", vec!["gdb", "-nx", "-batch", "-p", &pid, "-ex", "thread apply all bt"]),
    ];
    let all = table(title, &commands, 11);
    let met = all.first().copied().flatten().is_some_and(|m| m.total < 1000.0);
    println!("bar: all 10,000 with names within a second: {}\n", if met { "met" } else { "MISSED" });
}

pub fn run() {
    println!("the peers end at the first Wasm frames, or print what is on the stack by chance");
    let flags = ["--depth", "10000"];
    compare("10,000 frames on singlepass", &Host::start("deep", &flags, Profile::ReleaseDebug));
    let wasmtime = host_wasmtime(Version::V48, Profile::Release);
    compare("10,000 frames on Wasmtime 48", &Host::start_exe(wasmtime, "deep", &flags));
}
