//! Tests of single steps: where they end, and that they leave no signal behind.

use super::super::general::GeneralRegisters;
use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;

#[test]
fn stepping_ends_at_the_point_and_the_thread_goes_on() {
    let mut peer = Peer::target();
    let tid = ThreadId(peer.spinner);
    let options = CaptureOptions::default();
    let mut seen = Vec::new();
    let mut verdict = |pc, memory: &dyn Memory| {
        assert!(memory.read_u32(pc).is_ok());
        seen.push(pc);
        if seen.len() == 6 { Verdict::Point } else { Verdict::Step }
    };
    let (live, report) = LiveTarget::settle(peer.pid(), tid, 64, &options, &mut verdict).unwrap();
    assert_eq!(report, SettleReport { steps: 5, outcome: Settled::Point });
    let spinner = live.threads().iter().find(|t| t.id == tid).unwrap();
    assert_eq!(spinner.registers.pc(), seen.last().copied());
    assert!(seen.windows(2).any(|w| w[0] != w[1]), "{seen:x?}");

    let mut never = |_: u64, _: &dyn Memory| Verdict::Step;
    let (_, report) = LiveTarget::settle(peer.pid(), tid, 10, &options, &mut never).unwrap();
    assert_eq!(report, SettleReport { steps: 10, outcome: Settled::Limit });
    let (_, report) = LiveTarget::settle(peer.pid(), tid, usize::MAX, &options, &mut never).unwrap();
    assert_eq!(report, SettleReport { steps: limits::MAX_SETTLE_STEPS, outcome: Settled::Limit });
    let steps = Steps { thread: tid, verdict: Box::new(|_, _| Verdict::Step) };
    let held = Held::hold(peer.pid(), &options, Some(steps)).unwrap();
    let report = SettleReport { steps: limits::MAX_SNAPSHOT_STEPS, outcome: Settled::Limit };
    assert_eq!(held.settled(), Some(report));
    drop(held);
    let mut outside = |_: u64, _: &dyn Memory| Verdict::Outside;
    let (_, report) = LiveTarget::settle(peer.pid(), tid, 10, &options, &mut outside).unwrap();
    assert_eq!(report, SettleReport { steps: 0, outcome: Settled::Left });
    // The main thread waits in read(2).
    let (_, report) = LiveTarget::settle(peer.pid(), ThreadId(peer.pid()), 10, &options, &mut never).unwrap();
    assert!(matches!((report.steps, report.outcome), (0, Settled::Refused(_))), "{report:?}");

    let before: u64 = peer.ask("spun", "spun ").parse().unwrap();
    while peer.ask("spun", "spun ").parse::<u64>().unwrap() == before {}
}

#[test]
fn a_stepper_that_is_killed_while_it_holds_leaves_the_process_and_its_signals_alone() {
    for (signal_at, borrow) in [(0, false), (4, false), (0, true)] {
        let mut peer = Peer::target();
        let mut command = Peer::command();
        command.env("WSTATE_TEST_PID", peer.pid().to_string()).env("WSTATE_TEST_TID", peer.spinner.to_string());
        command.env("WSTATE_TEST_SIGNAL_AT", signal_at.to_string());
        command.envs(borrow.then_some(("WSTATE_TEST_BORROW", "1")));
        let mut stepper = Peer::spawn(&mut command, "stepper");
        let outcome = stepper.line("held ");
        let (wanted, signals) = match signal_at {
            0 => ("Point".to_string(), 0),
            _ => (format!("Signal({})", libc::SIGRTMIN() + 1), 1),
        };
        assert_eq!(outcome, wanted);
        drop(stepper);
        let before: u64 = peer.ask("spun", "spun ").parse().unwrap();
        while peer.ask("spun", "spun ").parse::<u64>().unwrap() == before {}
        assert_eq!(peer.counted(signals), signals);
    }
}

#[test]
fn a_step_whose_end_is_told_late_leaves_no_signal_behind() {
    // If the system call is interrupted, the step over it ends with a SIGTRAP that is queued behind the stop which
    // reports the interruption. pause would be made again, rt_sigtimedwait returns EINTR.
    let restarts = SettleReport { steps: 0, outcome: Settled::Refused(Refusal::NoEnd) };
    let returns = SettleReport { steps: 1, outcome: Settled::Point };
    for (number, wake_up, report) in [
        (libc::SYS_pause, true, restarts),
        (libc::SYS_rt_sigtimedwait, true, returns),
        (libc::SYS_rt_sigtimedwait, false, restarts),
    ] {
        let mut peer = Peer::target();
        let (pid, tid) = (peer.pid(), peer.spinner);
        let stepped = on_own_thread(pid, || {
            let mut stopped = Stopped::all(pid, &CaptureOptions::default())?;
            let maps = parse_maps(&std::fs::read(format!("/proc/{pid}/maps")).unwrap());
            let vdso = maps.iter().find(|m| m.path.as_deref() == Some(Path::new("[vdso]"))).unwrap().start;
            let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
            let mut code = [0; 0x1000];
            mem.read_exact_at(&mut code, vdso).unwrap();
            let call = vdso + code.windows(2).position(|w| w == [0x0f, 0x05]).unwrap() as u64;
            let id = tid as libc::pid_t;
            let saved = GeneralRegisters::read(id).unwrap().unwrap();
            let mut registers = saved.clone();
            // The call waits for an empty set of signals: these eight bytes of an ELF header are zero.
            assert_eq!(code[8..16], [0; 8]);
            for (reg, value) in [
                (x64::RIP, call),
                (x64::RAX, number as u64),
                (x64::RDI, vdso + 8),
                (x64::RSI, 0),
                (x64::RDX, 0),
                (x64::R10, 8),
            ] {
                registers.set(reg, value);
            }
            registers.write(id).unwrap();
            let waker = wake_up.then(|| wake_up_asleep(pid, tid));
            let mut verdict = |pc: u64, _: &dyn Memory| if pc == call { Verdict::Step } else { Verdict::Point };
            let report = stopped.step(ThreadId(tid), 10, &mut verdict);
            waker.into_iter().for_each(|w| w.join().unwrap());
            assert!(stopped.threads.iter().all(|t| t.held == 0));
            saved.write(id).unwrap();
            report
        });
        assert_eq!(stepped.unwrap(), report, "{number} {wake_up}");
        is_unharmed(&mut peer);
    }
}

#[test]
fn a_signal_ends_steps_if_the_process_handles_it() {
    for handles in [false, true] {
        let mut command = Peer::command();
        command.envs(handles.then_some(("WSTATE_TEST_HANDLES_CONT", "1")));
        let mut peer = Peer::target_of(&mut command);
        let (pid, tid, options) = (peer.pid(), ThreadId(peer.spinner), CaptureOptions::default());
        let mut seen = 0;
        let mut verdict = |_: u64, _: &dyn Memory| {
            seen += 1;
            if seen == 4 {
                peer.signal(libc::SIGCONT);
            }
            Verdict::Step
        };
        let (_, report) = LiveTarget::settle(pid, tid, 10, &options, &mut verdict).unwrap();
        let (steps, outcome) = if handles { (3, Settled::Signal(libc::SIGCONT)) } else { (10, Settled::Limit) };
        assert_eq!(report, SettleReport { steps, outcome });
        assert_eq!(peer.counted(u64::from(handles)), u64::from(handles));
    }
}

#[test]
fn a_flood_of_sigcont_neither_ends_steps_nor_makes_signals_of_them() {
    let mut peer = Peer::target();
    let (pid, tid, options) = (peer.pid(), ThreadId(peer.spinner), CaptureOptions::default());
    let double = u64::from_str_radix(&peer.ask("double", "double "), 16).unwrap();
    let (done, progress) = (std::sync::atomic::AtomicBool::new(false), AtomicU64::new(0));
    let go_on = || {
        // SAFETY: kill touches no memory.
        assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGCONT) }, 0);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // So many signals without a pause would never let the thread make a step.
            while !done.load(Ordering::Relaxed) {
                let before = progress.load(Ordering::Relaxed);
                (0..20).for_each(|_| go_on());
                while progress.load(Ordering::Relaxed) == before && !done.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
        });
        // However this test ends, the flood of signals ends with it.
        struct Done<'a>(&'a std::sync::atomic::AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _done = Done(&done);
        for _ in 0..100 {
            // At least one SIGCONT comes before every step.
            let mut verdict = |_: u64, _: &dyn Memory| {
                go_on();
                progress.fetch_add(1, Ordering::Relaxed);
                Verdict::Step
            };
            let (_, report) = LiveTarget::settle(pid, tid, 20, &options, &mut verdict).unwrap();
            assert_eq!(report, SettleReport { steps: 20, outcome: Settled::Limit });
        }
        for _ in 0..20 {
            let held = Held::hold(pid, &options, None).unwrap();
            let sp = held.target().threads().iter().find(|t| t.id == tid).unwrap().registers.sp().unwrap();
            let thread = held.borrow(tid).unwrap();
            for _ in 0..100 {
                progress.fetch_add(1, Ordering::Relaxed);
                assert_eq!(thread.system_call(libc::SYS_getpid, [0; 6]), Ok(u64::from(pid)));
                progress.fetch_add(1, Ordering::Relaxed);
                assert_eq!(thread.call(double, [21, 0, 0], (sp - 4096) & !15), Ok(42));
            }
            thread.give_back().unwrap();
        }
    });
    is_unharmed(&mut peer);
}
