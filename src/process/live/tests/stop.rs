//! Tests of stopping a process and letting it go: nothing happens to it, and no signal is lost.

use super::super::system::ptrace;
use super::*;

#[test]
fn a_stopped_process_stays_stopped() {
    let mut peer = Peer::target();
    peer.stop();
    let live = peer.capture();
    assert!(live.threads().len() >= 4 && live.threads().iter().all(|t| t.registers.pc().is_some()));
    while peer.states().iter().any(|&s| s != b'T') {
        std::thread::yield_now();
    }
    peer.signal(libc::SIGCONT);
    assert_eq!(peer.ask("ping 2", "ping"), " 2");
}

#[test]
fn signals_that_arrive_during_captures_are_not_lost() {
    let mut peer = Peer::target();
    let real_time = libc::SIGRTMIN() + 1;
    let (pid, n) = (peer.pid(), 3000u64);
    let sender = std::thread::spawn(move || {
        for _ in 0..n {
            // SAFETY: kill touches no memory.
            unsafe { libc::kill(pid as libc::pid_t, real_time) };
            std::thread::yield_now();
        }
    });
    let mut held = 0;
    while !sender.is_finished() {
        held += peer.capture().threads().iter().filter(|t| t.signal == Some(real_time)).count();
    }
    sender.join().unwrap();
    assert_eq!(peer.counted(n), n, "{held} captures met a signal");
}

#[test]
fn a_signal_that_arrives_before_the_interrupt_is_delivered_in_any_case() {
    // Between seize and interrupt the thread can stop for a signal. It must get that signal when it is let go, and
    // also when the tracer ends without letting it go.
    for let_go in [true, false] {
        let mut peer = Peer::target();
        let (pid, tid, signal) = (peer.pid(), peer.pid() as libc::pid_t, libc::SIGRTMIN() + 1);
        let tracer = std::thread::spawn(move || {
            let mut stopped = Stopped::none(pid);
            ptrace(libc::PTRACE_SEIZE, tid, 0, 0).unwrap();
            // SAFETY: tgkill touches no memory.
            assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, tid, tid, signal) }, 0);
            while thread_state(pid, tid) != Some(b't') {
                std::thread::yield_now();
            }
            ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0).unwrap();
            assert_eq!(stopped.wait_for(vec![tid], Duration::from_secs(10)), 0);
            assert_eq!(stopped.threads[0].held, signal);
            assert_eq!(stopped.threads[0].registers(None).0.signal, Some(signal));
            if let_go {
                stopped.release();
            }
            std::mem::forget(stopped);
        });
        tracer.join().unwrap();
        assert_eq!(peer.counted(1), 1, "let go: {let_go}");
    }
}

#[test]
fn threads_that_run_are_stopped_before_those_that_sleep() {
    let peer = Peer::target();
    let pid = peer.pid();
    // While the spinner runs, each thread that has to wake up in order to stop may have to wait for it.
    let spinner = peer.spinner as libc::pid_t;
    while list_threads(pid).iter().any(|&tid| tid != spinner && thread_state(pid, tid) != Some(b'S')) {
        std::thread::yield_now();
    }
    let order = on_own_thread(pid, || {
        let stopped = Stopped::all(pid, &CaptureOptions::default())?;
        Ok(stopped.threads.iter().map(|t| t.tid).collect::<Vec<_>>())
    });
    let order = order.unwrap();
    assert_eq!(order.len(), 5);
    assert_eq!(order.iter().position(|&tid| tid == spinner), Some(0), "{spinner} in {order:?}");
}

#[test]
fn a_tracer_that_is_killed_leaves_the_process_and_its_signals_alone() {
    let mut peer = Peer::target();
    let mut sent = 0;
    for round in 0..8 {
        let mut tracer = Peer::spawn(Peer::command().env("WSTATE_TEST_PID", peer.pid().to_string()), "tracer");
        for _ in 0..=round {
            tracer.line("captured");
            for _ in 0..20 {
                peer.signal(libc::SIGRTMIN() + 1);
                sent += 1;
            }
        }
        drop(tracer);
        assert_eq!(peer.counted(sent), sent);
    }
    assert!(!peer.states().contains(&b't'));
}
