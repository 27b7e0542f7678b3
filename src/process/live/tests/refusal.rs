//! Tests of the reasons that are given if a process cannot be captured.

use super::*;

fn refused(pid: u32) -> String {
    match LiveTarget::capture(pid, &CaptureOptions::default()) {
        Ok(_) => panic!("captured"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn what_cannot_be_captured_is_explained() {
    assert!(refused(0).contains("no such process id"));
    assert!(refused(std::process::id()).contains("itself"));
    let mut peer = Peer::target();
    let thread = LiveTarget::capture(peer.spinner, &CaptureOptions::default()).unwrap();
    assert_eq!(thread.pid(), Some(peer.pid()), "a thread id means its process");

    peer.signal(libc::SIGKILL);
    while thread_state(peer.pid(), peer.pid() as libc::pid_t) != Some(b'Z') || list_threads(peer.pid()).len() > 1 {
        std::thread::yield_now();
    }
    assert!(refused(peer.pid()).contains("zombie"));
    peer.child.wait().unwrap();
    assert!(refused(peer.pid()).contains("no such process"));
}

#[test]
fn another_tracer_is_named() {
    let peer = Peer::target();
    let stopped = Stopped::all(peer.pid(), &CaptureOptions::default()).unwrap();
    let message = refused(peer.pid());
    assert!(message.contains(&format!("process {} (", std::process::id())), "{message}");
    drop(stopped);
    peer.capture();
}
