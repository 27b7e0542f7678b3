//! That an attach leaves the process as it was, whatever becomes of wstate meanwhile.

use super::role::Role;
use super::*;

#[test]
fn fifty_attaches_lose_no_signal_and_stop_nothing() {
    let mut busy = Role::start("busy");
    let before = busy.ask("counters");
    for _ in 0..50 {
        let output = wstate(&["attach", &busy.pid().to_string(), "--json"]);
        let report = report(&output);
        // 8 that work, 6 that check, the sender, the role itself and the harness' own.
        assert!(report["threads"].as_array().expect("threads").len() >= 16, "{report}");
        assert!(names(&report).iter().any(|n| n.contains("live::role")), "{:?}", names(&report));
    }
    busy.assert_runs("after 50 attaches");
    let last = busy.assert_unharmed();
    println!(
        "50 attaches: {} queued signals sent and handled, {} alarms, {} rounds of work",
        last.handled[0] - before.handled[0],
        last.alarms - before.alarms,
        last.work.iter().sum::<u64>() - before.work.iter().sum::<u64>()
    );
    assert!(last.sent > before.sent);
}

/// The thread that traces a process' main thread; 0: none.
fn tracer(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    status.lines().find_map(|l| l.strip_prefix("TracerPid:")?.trim().parse().ok()).expect("every status has it")
}

#[test]
fn killing_wstate_at_any_instant_leaves_the_process_and_its_signals_alone() {
    const KILLS: usize = 360;
    let mut busy = Role::start("busy");
    let pid = busy.pid();
    let (mut random, mut ended, mut traced, mut stops) = (0x2545_f491_4f6c_dd1d_u64, 0, 0, 0);
    // xorshift: the same instants in every run, as far as the machine allows.
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        Duration::from_nanos(random % (limit * 1000))
    };
    for round in 0..KILLS {
        let signal = [libc::SIGKILL, libc::SIGINT, libc::SIGSEGV][round % 3];
        // In some rounds the process is stopped, as by Ctrl-Z: before the attach, or while it goes on.
        let stop = [None, None, None, Some(Duration::ZERO), Some(below(3_000))][round % 5];
        if stop == Some(Duration::ZERO) {
            job_control(pid, libc::SIGSTOP);
        }
        let mut wstate = Command::new(env!("CARGO_BIN_EXE_wstate"));
        wstate.args(["attach", &pid.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        unsafe {
            wstate.pre_exec(move || {
                libc::setrlimit(libc::RLIMIT_CORE, &no_core);
                Ok(())
            })
        };
        let mut wstate = wstate.spawn().expect("wstate starts");
        let begin = Instant::now();
        let spin_until = |end: Duration| while begin.elapsed() < end {};
        if round % 2 == 0 {
            // Into the moment in which it holds the process.
            while tracer(pid) == 0 && matches!(wstate.try_wait(), Ok(None)) {}
            spin_until(begin.elapsed() + below(400));
        }
        match stop {
            Some(after) if after > Duration::ZERO => {
                spin_until(begin.elapsed() + after);
                unsafe { libc::kill(pid as i32, libc::SIGSTOP) };
            }
            _ if round % 2 == 1 => spin_until(below(30_000)),
            _ => {}
        }
        traced += usize::from(tracer(pid) != 0);
        ended += usize::from(matches!(wstate.try_wait(), Ok(Some(_))));
        // The first SIGSEGV of a Rust program only gives the next one its default meaning.
        while matches!(wstate.try_wait(), Ok(None)) {
            unsafe { libc::kill(wstate.id() as i32, signal) };
            std::thread::yield_now();
        }
        if stop.is_some() {
            stops += 1;
            until("the stop is lost", || states(pid).iter().all(|&s| s == 'T'));
            job_control(pid, libc::SIGCONT);
        }
        busy.assert_runs(&format!("round {round}, signal {signal}, stop {stop:?}"));
    }
    let last = busy.assert_unharmed();
    println!(
        "{KILLS} kills, {traced} while it held the process, {ended} after its end, {stops} with a job control stop; \
         {} queued signals sent and handled, {} alarms, {} waits for events with EINTR, {} short writes",
        last.handled[0], last.alarms, last.interrupted, last.short
    );
    assert!(traced >= KILLS / 8, "{traced} kills are at the instants that matter");
}

/// Stops or continues a process and waits until it is so.
fn job_control(pid: u32, signal: i32) {
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    until("the signal stops or continues it", || states(pid).iter().all(|&s| (s == 'T') == (signal == libc::SIGSTOP)));
}

#[test]
fn threads_that_come_and_go_never_make_an_attach_fail() {
    let mut churn = Role::start("churn");
    let before = churn.ask("counters").made;
    let mut partial = 0;
    let mut why = BTreeSet::new();
    for _ in 0..30 {
        let output = wstate(&["attach", &churn.pid().to_string(), "--json"]);
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 1)), "{code:?} {}", String::from_utf8_lossy(&output.stderr));
        // A thread that is just being made or is ending has no whole stack.
        partial += usize::from(code == Some(1));
        let report = report(&output);
        assert!(names(&report).iter().any(|n| n.contains("live::role")));
        for thread in report["threads"].as_array().expect("threads").iter().filter(|t| t["end"]["kind"] != "bottom") {
            let youngest = &thread["frames"][0]["function"]["name"];
            why.insert(format!("{} at {}", thread["end"]["kind"], youngest));
        }
    }
    let made = churn.ask("counters").made - before;
    println!("30 attaches during {made} new threads, {partial} with a stack that was not whole: {why:?}");
    until("no new threads", || churn.ask("counters").made > before + made);
}

#[test]
fn an_attach_changes_nothing_in_the_process() {
    let host = Host::start("threads", &[], Profile::Debug);
    let Some((output, requests)) = ptrace_requests(&host, &[]) else { return };
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    println!("ptrace requests: {requests:?}");
    let allowed = ["PTRACE_SEIZE", "PTRACE_INTERRUPT", "PTRACE_GETREGSET", "PTRACE_GETSIGINFO", "PTRACE_DETACH"];
    let others: Vec<&String> = requests.iter().filter(|r| !allowed.contains(&r.as_str())).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(requests.contains("PTRACE_SEIZE") && requests.contains("PTRACE_GETREGSET"), "{requests:?}");
}

/// What an attach with these options writes, and the ptrace requests that it makes as strace sees them; that it only reads
/// the process' files and sends no signal. `None` if strace cannot be used here.
pub fn ptrace_requests(host: &Host, options: &[&str]) -> Option<(Output, BTreeSet<String>)> {
    let log = host.directory.path().join("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "trace=ptrace,process_vm_writev,pwrite64,pwritev,openat,kill,tgkill", "-o"]);
    strace.arg(&log).arg(env!("CARGO_BIN_EXE_wstate")).args(["attach", &host.pid().to_string()]).args(options);
    let Ok(output) = strace.stdin(Stdio::null()).output() else {
        missing("strace is not installed");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("PTRACE_TRACEME") || text.contains("ptrace(") {
        not_tested(&format!("strace: {}", text.trim()));
        return None;
    }
    let log = std::fs::read_to_string(log).expect("strace writes its log");
    let mut requests = BTreeSet::new();
    for line in log.lines() {
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        if let Some(arguments) = call.strip_prefix("ptrace(") {
            requests.insert(arguments.split([',', ')']).next().unwrap_or_default().to_string());
        } else if let Some(arguments) = call.strip_prefix("openat(") {
            // Of the process' files, all are only read.
            let theirs = arguments.contains(&format!("/proc/{}", host.pid()));
            assert!(!theirs || arguments.contains("O_RDONLY"), "{line}");
        } else {
            assert!(call.starts_with("<...") || call.starts_with("+++") || call.starts_with("---"), "{line}");
        }
    }
    Some((output, requests))
}
