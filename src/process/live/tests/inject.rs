//! Tests of system calls and function calls that a borrowed thread makes.

use super::*;

#[test]
fn signals_that_come_while_a_thread_is_borrowed_are_not_lost_and_disturb_nothing() {
    let send = |pid: u32, tid: u32, signal: libc::c_int| {
        // SAFETY: tgkill touches no memory.
        assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }, 0);
    };
    for keep in [false, true] {
        let mut peer = Peer::target();
        let (pid, tid) = (peer.pid(), peer.spinner);
        let double = u64::from_str_radix(&peer.ask("double", "double "), 16).unwrap();
        let held = Held::hold(pid, &CaptureOptions::default(), None).unwrap();
        let thread = held.borrow(ThreadId(tid)).unwrap();
        let sp = held.target().threads().iter().find(|t| t.id.0 == tid).unwrap().registers.sp().unwrap();
        let who = || thread.system_call(libc::SYS_getpid, [0; 6]);
        let call = || thread.call(double, [21, 0, 0], (sp - 4096) & !15);
        // SIGSEGV and SIGTRAP are the signals that report the end of a call and of a step.
        for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGTRAP, libc::SIGSTOP] {
            send(pid, tid, signal);
            assert_eq!(who(), Ok(u64::from(pid)), "signal {signal}");
            send(pid, tid, signal);
            assert_eq!(call(), Ok(42), "signal {signal}");
        }
        // SIGCONT takes back only a stop that the kernel knows of.
        assert!(thread.others.borrow().iter().all(|info| info.signal() != libc::SIGSTOP));
        send(pid, tid, libc::SIGCONT);
        assert_eq!((who(), call()), (Ok(u64::from(pid)), Ok(42)));
        send(pid, tid, libc::SIGSTOP);
        assert_eq!((who(), call()), (Ok(u64::from(pid)), Ok(42)));
        if keep {
            let now = held.target().threads().iter().find(|t| t.id.0 == tid).unwrap().registers.clone();
            thread.set_registers(now.pc().unwrap(), |reg| now.get(reg)).unwrap();
            thread.keep().unwrap();
        } else {
            thread.give_back().unwrap();
        }
        held.release();
        // The last SIGSTOP was not taken back.
        while peer.states().iter().any(|&s| s != b'T') {
            std::thread::yield_now();
        }
        peer.signal(libc::SIGCONT);
        assert_eq!(peer.counted(3), 3);
        let before: u64 = peer.ask("spun", "spun ").parse().unwrap();
        while peer.ask("spun", "spun ").parse::<u64>().unwrap() == before {}
    }
}

#[test]
fn an_injected_system_call_that_is_interrupted_leaves_no_signal_behind() {
    let mut peer = Peer::target();
    let (pid, tid) = (peer.pid(), peer.spinner);
    let held = Held::hold(pid, &CaptureOptions::default(), None).unwrap();
    let thread = held.borrow(ThreadId(tid)).unwrap();
    let waker = wake_up_asleep(pid, tid);
    assert!(thread.system_call(libc::SYS_pause, [0; 6]).is_err());
    waker.join().unwrap();
    assert_eq!(thread.system_call(libc::SYS_getpid, [0; 6]), Ok(u64::from(pid)));
    thread.give_back().unwrap();
    held.release();
    is_unharmed(&mut peer);
}

#[test]
fn a_thread_with_seccomp_is_not_borrowed() {
    for (mode, what) in [("filter", "a seccomp filter decides"), ("strict", "it is in seccomp's strict mode")] {
        let peer = Peer::target_of(Peer::command().env("WSTATE_TEST_SECCOMP", mode));
        let held = Held::hold(peer.pid(), &CaptureOptions::default(), None).unwrap();
        let why = held.borrow(ThreadId(peer.spinner)).err().unwrap();
        assert!(why.starts_with(what), "{why}");
    }
}
