//! Tests of the copies of stacks, and of the limits of a capture.

use super::super::stacks::Plan;
use super::super::stop::until_quiet;
use super::*;

#[test]
fn rounds_and_copies_have_an_end() {
    let mut rounds = 0;
    let quiet = until_quiet(|| {
        rounds += 1;
        false
    });
    assert_eq!((quiet, rounds), (false, limits::MAX_STOP_ROUNDS));
    assert!(until_quiet(|| true));

    let CaptureOptions { max_stack, max_total, .. } = CaptureOptions::default();
    let (mut plan, mut budget) = (Plan::default(), max_total);
    let stacks = (limits::MAX_CAPTURE_TOTAL / limits::MAX_STACK_CAPTURE) as usize + 1;
    for _ in 0..stacks {
        assert!(plan.add(0x1000, u64::MAX, max_stack, &mut budget));
    }
    assert!(plan.ranges.iter().all(|r| r.1 as u64 <= limits::MAX_STACK_CAPTURE));
    assert_eq!(plan.ranges.iter().map(|r| r.1 as u64).sum::<u64>(), limits::MAX_CAPTURE_TOTAL);
}

#[test]
fn the_stack_behind_an_alternate_stack_is_copied() {
    let mut peer = Peer::target();
    let local = u64::from_str_radix(&peer.ask("alternate", "local "), 16).unwrap();
    peer.line("parked");
    // The used end of the stack is copied, however little of a stack may be copied.
    for max_stack in [CaptureOptions::default().max_stack, 0x8000] {
        let options = CaptureOptions { max_stack, ..CaptureOptions::default() };
        let live = LiveTarget::capture(peer.pid(), &options).unwrap();
        let mut words = [0; 32];
        live.captured.read(local, &mut words).unwrap();
        assert_eq!(words, [0xed, 0x5e].repeat(16)[..], "{max_stack:#x}");
    }
}
