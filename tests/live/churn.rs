//! Hosts that load and unload modules all the time: what is loaded now is never shown for what ran at the stop.

use super::*;
use std::process::{Child, ChildStdout};
use support::{Version, host_wasmtime};

/// A host of `tests/hosts/churn`, killed when this value goes, and what has to stay as long as it runs: the pipe from it and
/// the directory for its temporary files.
struct Churn(Child, #[allow(dead_code)] (BufReader<ChildStdout>, tempfile::TempDir));

impl Drop for Churn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Churn {
    fn start(host: &Path, words: &[&str]) -> Churn {
        let directory = support::work_directory();
        let mut child = Command::new(host)
            .args(words)
            .env("TMPDIR", directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the host starts");
        let mut from = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        from.read_line(&mut line).expect("the host says READY");
        assert!(line.starts_with("READY"), "{line}");
        Churn(child, (from, directory))
    }
}

fn churn_singlepass() -> PathBuf {
    host_singlepass(Profile::ReleaseDebug).with_file_name("churn-singlepass")
}

/// Frames of a report whose names and values are those of the module that the thread's name tells. What is wrong ends the test.
fn right(report: &Value, how: &str) -> usize {
    let mut right = 0;
    for thread in report["threads"].as_array().expect("threads") {
        let Some(letter) = thread["name"].as_str().and_then(|n| n.strip_prefix("m_")).filter(|n| *n != "-") else {
            continue;
        };
        let module = 10 + u64::from(letter.as_bytes()[0] - b'a');
        let mut youngest = true;
        for frame in thread["frames"].as_array().expect("frames").iter().filter(|f| f["kind"] == "wasm") {
            let Some(name) = frame["function"]["name"].as_str() else { continue };
            let own = name.strip_prefix(&format!("f{letter}_")).map(|k| k.parse().expect("a number"));
            let k: u64 = if name == "run" { 255 } else { own.unwrap_or_else(|| panic!("{how}: {name} in {thread}")) };
            right += 1;
            let number = |slot: &Value| {
                let bits = slot["bits"].as_str()?.trim_start_matches("0x");
                Some(u64::from_str_radix(bits, 16).expect("a number") & 0xffff_ffff)
            };
            let local = frame["locals"].as_array().and_then(|l| number(l.get(2)?)).filter(|v| *v != 0);
            // Behind the operand that is kept there may be the arguments of the call, and in the youngest frame others.
            let kept = frame["stack"].as_array().filter(|_| !youngest).and_then(|stack| number(stack.first()?));
            youngest = false;
            for value in local.into_iter().chain(kept) {
                assert!(
                    [module << 16 | k, module << 16 | 256 | k].contains(&value),
                    "{how}: {value:#x} in {name}: {thread}"
                );
                right += 1;
            }
        }
    }
    right
}

fn assert_never_wrong(host: &Path, words: &[&str], arguments: &[&str]) {
    let churn = Churn::start(host, words);
    let pid = churn.0.id().to_string();
    let how = format!("{} {words:?} {arguments:?}", host.display());
    let mut found = 0;
    for _ in 0..6 {
        let output = wstate(&[&["attach", &pid, "--json", "--wasm-only"], arguments].concat());
        let report = report(&output);
        found += right(&report, &how);
        let gone = "the module was gone before it could be read";
        let told = String::from_utf8_lossy(&output.stdout).contains(gone);
        assert!(output.status.code() != Some(0) || !told, "{how}: what is missing is told by the exit code: {report}");
    }
    assert!(found > 0, "{how}: nothing was found in any attach");
}

#[test]
fn frames_of_singlepass_are_those_of_the_module_that_ran_at_the_stop() {
    let host = churn_singlepass();
    for kind in ["exports", "globals", "different"] {
        assert_never_wrong(&host, &[kind, "1000000", "cached"], &[]);
    }
    // Names that come from a file of one of the three.
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path().to_str().expect("a path of text");
    let printed = Command::new(&host).args(["print", directory, "different"]).status().expect("the host starts");
    assert!(printed.success());
    assert_never_wrong(&host, &["different", "1000000"], &["--wasm", &format!("{directory}/different-a.wasm")]);
}

#[test]
fn frames_of_wasmtime_are_those_of_the_module_that_ran_at_the_stop() {
    let host = host_wasmtime(Version::V48, Profile::ReleaseDebug).with_file_name("churn-wasmtime");
    for (kind, how) in
        [("different", None), ("different", Some("guest-debug")), ("names", None), ("names", Some("file"))]
    {
        let words: Vec<&str> = [kind, "1000000"].into_iter().chain(how).collect();
        assert_never_wrong(&host, &words, &[]);
    }
}
