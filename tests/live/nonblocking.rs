//! `--nonblocking`.

use super::role::Role;
use super::unharmed::ptrace_requests;
use super::*;

fn frames_of(report: &Value) -> impl Iterator<Item = &Value> {
    report["threads"].as_array().into_iter().flatten().flat_map(|t| t["frames"].as_array()).flatten()
}

/// What a frame is, whichever way its thread was read.
fn frame_without_the_way(frame: &Value) -> Value {
    let mut frame = frame.clone();
    let keys = frame.as_object_mut().expect("a frame");
    // Values in registers that nothing saved are known only where the thread was stopped.
    for key in ["unstopped", "trust", "locals", "locals_why", "stack", "stack_why", "instance"] {
        keys.remove(key);
    }
    frame
}

#[test]
fn nonblocking_stops_nothing_and_shows_the_same_frames_of_what_sleeps() {
    let host = Host::start("sleep", &[], Profile::Debug);
    until("the host sleeps", || states(host.pid() as u32).iter().all(|&s| s == 'S'));
    let Some((output, requests)) = ptrace_requests(&host, &["--nonblocking", "--json", "--timing"]) else { return };
    assert!(requests.is_empty(), "{requests:?}");
    let unstopped = report(&output);
    assert_eq!(unstopped["timing"]["stopped_ms"], Value::Null);
    let stopped = attach(host.pid() as u32);
    let threads = |report: &Value| report["threads"].as_array().expect("threads").clone();
    assert_eq!(threads(&unstopped).len(), threads(&stopped).len());
    let mut whole = true;
    for (thread, same) in threads(&unstopped).iter().zip(threads(&stopped)) {
        let frames = |thread: &Value| thread["frames"].as_array().expect("frames").clone();
        let (ours, all) = (frames(thread), frames(&same));
        assert!(ours.len() > 1 && ours.iter().all(|f| f["unstopped"] == true), "{thread}");
        assert!(all.iter().all(|f| f.get("unstopped").is_none()), "{same}");
        let without_the_way = |frames: &[Value]| frames.iter().map(frame_without_the_way).collect::<Vec<_>>();
        // Never another frame, and a reason where one is missing.
        assert_eq!(without_the_way(&ours), without_the_way(&all[..ours.len()]));
        if ours.len() < all.len() {
            whole = false;
            let why = thread["end"]["why"].as_str().expect("a reason");
            assert!(why.starts_with("register ") && why.ends_with(" is not known in this frame"), "{why}");
        }
    }
    // The standard library counts from rbp, which nothing below it has saved: that is read off its code, and told.
    assert_sleep_host(&unstopped);
    let guessed = frames_of(&unstopped).any(|f| f["trust"] == "frame_pointer");
    assert_eq!(output.status.code(), Some(if whole && !guessed { 0 } else { 1 }), "{unstopped}");
    let text = wstate(&["attach", &host.pid().to_string(), "--nonblocking", "--brief"]).stdout;
    let text = String::from_utf8(text).expect("text");
    let lines: Vec<&str> = text.lines().filter(|l| l.trim_start().starts_with('#')).collect();
    assert!(!lines.is_empty() && lines.iter().all(|l| l.ends_with("  (not stopped)")), "{text}");
}

#[test]
fn nonblocking_says_which_threads_ran_while_they_were_read() {
    let naps = Role::start("naps");
    let mut why = BTreeSet::new();
    until("no thread is seen to wake up", || {
        let report = report(&wstate(&["attach", &naps.pid().to_string(), "--nonblocking", "--json"]));
        for thread in report["threads"].as_array().expect("threads") {
            let frames = thread["frames"].as_array().expect("frames");
            let reason = thread["end"]["why"].as_str().unwrap_or_default();
            // Nothing is shown of a stack that may have changed.
            assert!(frames.is_empty() || !reason.contains("it ran while"), "{thread}");
            why.insert(reason.split(',').next().unwrap_or_default().to_string());
        }
        why.contains("it ran while its stack was read")
    });
}

#[test]
fn nonblocking_lists_running_threads_without_frames() {
    let busy = Role::start("busy");
    // Eight work and one sends all the time, once all have begun; the kernel shows one that waits for a page as asleep.
    until("nine threads run", || {
        let output = wstate(&["attach", &busy.pid().to_string(), "--nonblocking", "--json"]);
        let report = report(&output);
        // The thread that waits for the others may have been on its way to sleep.
        let some = frames_of(&report).next().is_some();
        assert_eq!(output.status.code(), Some(if some { 1 } else { 2 }), "{}", String::from_utf8_lossy(&output.stderr));
        let threads = report["threads"].as_array().expect("threads").iter();
        let without = threads.filter(|t| t["frames"].as_array().expect("frames").is_empty());
        let why: Vec<&str> = without.map(|t| t["end"]["why"].as_str().expect("a reason")).collect();
        let allowed = ["it is running, and was not stopped", "it ran while its stack was read"];
        assert!(why.iter().all(|w| allowed.iter().any(|a| w.starts_with(a))), "{why:?}");
        why.iter().filter(|w| w.starts_with(allowed[0])).count() >= 9
    });
    refused_with(&["attach", "4194305", "--nonblocking"], "there is no such process");
}
