//! What an attach says of itself, and what another tool says of the same process.

use super::role::Role;
use super::{report, states, until};
use crate::support::missing::missing;
use crate::support::{Host, Profile, wstate};
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

/// The line of `--timing`, by part: milliseconds.
fn timing_line(output: &Output) -> Vec<(String, f64)> {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|l| l.strip_prefix("wstate: timing: ")).unwrap_or_else(|| panic!("{text}"));
    let part = |p: &str| {
        let (name, time) = p.strip_suffix(" ms").expect("a time").rsplit_once(' ').expect("a name");
        (name.to_string(), time.parse().expect("a number"))
    };
    line.split(", ").map(part).collect()
}

#[test]
fn timing_tells_how_long_the_target_was_stopped_and_what_took_how_long() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let pid = host.pid().to_string();
    let began = Instant::now();
    let output = wstate(&["attach", &pid, "--json", "--timing"]);
    let wall = began.elapsed().as_secs_f64() * 1e3;
    let line = timing_line(&output);
    let names: Vec<&str> = line.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["stopped", "reading", "walking", "symbolizing", "printing"]);
    assert!(line.iter().all(|(_, time)| *time > 0.0), "{line:?}");
    assert!(
        line[0].1 < line[1].1 && line[1..].iter().map(|(_, t)| t).sum::<f64>() < wall,
        "{line:?}, {wall} ms in all"
    );
    let timing = report(&output)["timing"].clone();
    for (name, time) in &line[..4] {
        let same = timing[format!("{name}_ms")].as_f64().expect("a number");
        assert!((same - time).abs() < 0.001, "{name}: {same} in JSON, {time} in the line");
    }
    assert_eq!(timing["printing_ms"], Value::Null);
    assert!(report(&wstate(&["attach", &pid, "--json"])).get("timing").is_none());

    let core = crate::support::gcore(&host).expect("gcore writes a core");
    let output = wstate(&["core", core.to_str().expect("a path of ours"), "--timing"]);
    let names: Vec<String> = timing_line(&output).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["reading", "walking", "symbolizing", "printing"], "a core is not stopped");
}

/// A second opinion on a process without Wasm.
#[test]
fn eu_stack_sees_the_same_functions() {
    let role = Role::start("threads");
    let asleep = || states(role.pid()).iter().filter(|&&s| s == 'S').count();
    until("the threads sleep", || asleep() >= 5 && states(role.pid()).len() == asleep());
    let output = Command::new("eu-stack").args(["-p", &role.pid().to_string()]).stdin(Stdio::null()).output();
    let Ok(output) = output else { return missing("eu-stack (elfutils) is not installed") };
    let report = report(&wstate(&["attach", &role.pid().to_string(), "--json"]));
    let text = String::from_utf8_lossy(&output.stdout);
    let (mut tid, mut compared, mut named, mut sleepers) = (String::new(), 0, 0, 0);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("TID ") {
            tid = rest.trim_end_matches(':').to_string();
            continue;
        }
        // `#1  0x00007f... name` or `#1  0x00007f... - 1 name`.
        let mut words = line.split_whitespace();
        let (Some(number), Some(pc)) = (words.next(), words.next()) else { continue };
        let Some(index) = number.strip_prefix('#').and_then(|n| n.parse::<usize>().ok()) else { continue };
        let name = words.find(|w| !matches!(*w, "-" | "1")).map(|w| w.trim_end_matches(':'));
        let thread =
            report["threads"].as_array().expect("threads").iter().find(|t| t["tid"].as_u64() == tid.parse().ok());
        let thread = thread.unwrap_or_else(|| panic!("wstate has no thread {tid}"));
        // Physical frames: eu-stack shows no inlined ones.
        let frames = thread["frames"].as_array().expect("frames").iter();
        let frame = frames.filter(|f| f["function"]["inlined"] != true).nth(index);
        let frame = frame.unwrap_or_else(|| panic!("wstate has no frame {index} in {tid}: {text}"));
        let parse = |s: &str| u64::from_str_radix(s.trim_start_matches("0x"), 16).expect("an address");
        assert_eq!(parse(frame["pc"].as_str().expect("a pc")), parse(pc), "{line}: {frame}");
        let ours = frame["function"]["name"].as_str();
        // Closures are half demangled: `_$u7b$$u7b$closure$u7d$$u7d$`.
        if let (Some(name), Some(ours)) = (name.filter(|n| !n.contains('$')), ours) {
            let demangled = format!("{:#}", rustc_demangle::demangle(name));
            // It demangles some, and leaves the hash.
            let hash = |h: &str| h.len() == 17 && h.starts_with('h') && h[1..].bytes().all(|b| b.is_ascii_hexdigit());
            let demangled = demangled.rsplit_once("::").filter(|(_, h)| hash(h)).map_or(&*demangled, |(n, _)| n);
            let last = |n: &str| n.rsplit("::").next().unwrap_or_default().trim_matches('_').to_string();
            assert!(same_symbol(&last(demangled), &last(ours)), "{line}: {ours}");
            named += 1;
            sleepers += usize::from(demangled.ends_with("native_inner"));
        }
        compared += 1;
    }
    println!("eu-stack: {compared} frames equal, {named} of them by name too");
    assert_eq!(sleepers, 4, "{text}");
}

/// The C library has several names for one function (`__GI_`, `__libc_`, version suffixes).
fn same_symbol(a: &str, b: &str) -> bool {
    let plain = |n: &str| {
        let n = n.split('@').next().unwrap_or_default();
        let n = n.trim_start_matches("GI_").trim_matches('_').trim_start_matches("libc_").to_string();
        n.split('<').next().unwrap_or_default().to_string()
    };
    let (a, b) = (plain(a), plain(b));
    a == b || a.contains(&b) || b.contains(&a)
}
