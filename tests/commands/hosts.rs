//! The hosts themselves: every stop is reached, and the runtime's answer is what the host's README says.

use crate::support::missing::missing;
use crate::support::{Host, Profile, fixture, gcore, kernel_core};

/// Stop, flags, and how many frames the runtime itself finds; `None` where it has no answer.
const STOPS: [(&str, &[&str], Option<u64>); 36] = [
    ("sleep", &[], Some(8)),
    ("sleep", &["--thread"], Some(8)),
    ("sleep", &["--func"], Some(8)),
    ("sleep", &["--compile-with"], Some(8)),
    ("sleep", &["--full-preemption"], Some(8)),
    ("sleep", &["--stack-checks"], Some(8)),
    // The runtime finds nothing without state tracking.
    ("sleep", &["--track-state", "off"], Some(0)),
    ("call-indirect", &[], Some(9)),
    ("args7", &[], Some(8)),
    ("args7-spilled", &[], None),
    ("args-float", &[], Some(8)),
    ("floats", &[], Some(2)),
    ("globals", &[], Some(1)),
    ("deep", &["--depth", "1000"], Some(1002)),
    ("nested", &[], Some(8)),
    ("modules", &[], Some(3)),
    ("moved", &[], Some(8)),
    ("cache-loaded", &[], Some(8)),
    ("tiering", &[], Some(8)),
    ("tiering-boundary", &[], Some(8)),
    ("tiering-alternating", &[], Some(8)),
    ("tiering-alternating-boundary", &[], Some(8)),
    ("trap-unreachable", &[], Some(8)),
    ("trap-div", &[], Some(8)),
    // No state is recorded where these trap.
    ("trap-memory", &[], Some(0)),
    ("trap-memory", &["--bounds-checks", "on"], Some(0)),
    ("trap-memory-checked", &[], Some(0)),
    ("trap-table", &[], Some(0)),
    ("trap-table-null", &[], Some(0)),
    ("trap-table-signature", &[], Some(0)),
    ("stack-overflow", &[], Some(0)),
    ("stack-overflow", &["--stack-checks"], Some(0)),
    ("interrupt", &[], Some(2)),
    ("spin", &[], None),
    ("spin-deep", &[], None),
    ("grow", &[], None),
];

/// The length of the vector of frames at the start of a bincode image.
fn frames(image: &[u8]) -> u64 {
    u64::from_le_bytes(image[..8].try_into().expect("eight bytes"))
}

fn reaches_every_stop(profile: Profile) {
    for (stop, flags, expected) in STOPS {
        let mut host = Host::start(stop, flags, profile);
        assert_eq!(host.ready.stop, stop, "{stop} {flags:?} {profile}");
        assert_eq!(host.truth().map(|t| frames(&t.image)), expected, "{stop} {flags:?} {profile}");
        assert!(host.is_alive(), "{stop} {flags:?} {profile}");
    }
}

#[test]
fn debug_hosts_reach_every_stop() {
    reaches_every_stop(Profile::Debug);
}

#[test]
fn stripped_hosts_reach_every_stop() {
    reaches_every_stop(Profile::Stripped);
}

#[test]
fn truth_is_the_same_in_every_profile() {
    for stop in ["sleep", "trap-div", "tiering-boundary", "floats", "globals", "nested"] {
        let debug = Host::start(stop, &[], Profile::Debug).truth().expect("the runtime has an answer");
        assert!(debug.instance.is_some());
        for profile in [Profile::Release, Profile::ReleaseDebug, Profile::Stripped] {
            assert_eq!(Host::start(stop, &[], profile).truth().as_ref(), Some(&debug), "{stop} {profile}");
        }
    }
}

#[test]
fn truth_has_the_values_of_the_guest() {
    let text = Host::start("sleep", &[], Profile::Debug).truth().expect("the runtime has an answer").text;
    let leaf = "  Locals: [0] = 9, [1] = 1229782938247303441, [2] = 4614500768194494464, [3] = 333, [4] = 444\n  \
                Stack: [0] = 340, [1] = 4616471093031469056, [2] = 99\n";
    assert!(text.contains(leaf), "{text}");
}

#[test]
fn threads_stop_with_a_truth_each() {
    let host = Host::start("threads", &[], Profile::Debug);
    let mut stops: Vec<_> = host.stopped.iter().map(|s| s.stop.as_str()).collect();
    stops.sort_unstable();
    assert_eq!(stops, ["call-indirect", "deep", "sleep", "spin", "trap-div"]);
    for (stop, expected) in [("call-indirect", 9), ("deep", 102), ("sleep", 8), ("trap-div", 8)] {
        assert_eq!(host.truth_of(stop).map(|t| frames(&t.image)), Some(expected), "{stop}");
        assert_ne!(host.tid_at(stop), Some(host.pid()), "{stop}");
    }
}

#[test]
fn nested_has_the_outer_frames_too() {
    let host = Host::start("nested", &[], Profile::Debug);
    assert_eq!(host.truth_of("outer").map(|t| frames(&t.image)), Some(1));
}

#[test]
fn sqlite_stops_deep_inside_of_a_query() {
    let wasm = fixture("sqljs/sql-wasm-debug.wasm");
    let wasm = wasm.to_str().expect("a path of ours");
    let host = Host::start("sqlite", &["--wasm", wasm], Profile::Debug);
    assert_eq!(host.truth().map(|t| frames(&t.image)), Some(12));
    assert_eq!(Host::start("sqlite-busy", &["--wasm", wasm], Profile::Debug).ready.stop, "sqlite-busy");
}

#[test]
fn cores_are_written() {
    for (stop, flags) in
        [("sleep", [].as_slice()), ("abort", &[]), ("trap-div", &[]), ("trap-div", &["--core-in-handler"])]
    {
        match kernel_core(stop, flags, Profile::Debug) {
            Ok(core) => {
                assert!(core.path.metadata().expect("the core is there").len() > 1 << 16, "{stop} {flags:?}");
                assert!(core.truth().is_some(), "{stop} {flags:?}");
            }
            Err(reason) => missing(&reason.0),
        }
    }
    let host = Host::start("sleep", &[], Profile::Debug);
    match gcore(&host) {
        Ok(path) => assert!(path.metadata().expect("the core is there").len() > 1 << 16),
        Err(reason) => missing(&reason.0),
    }
}
