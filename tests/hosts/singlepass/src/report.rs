//! What the host says on stdout, and how it ends.

use std::{
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
};

/// How many threads have to reach their stop before READY is said.
pub static EXPECTED: AtomicUsize = AtomicUsize::new(1);
static REACHED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// What this thread's stop is called where there are several.
    pub static LABEL: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

/// The name of this thread's stop, and what is appended to the path of its truth.
pub fn label(stop: &str) -> (String, String) {
    LABEL.with_borrow(|label| match label {
        Some(label) => (label.clone(), format!(".{label}")),
        None => (stop.into(), String::new()),
    })
}

/// This thread's kernel id.
pub fn tid() -> i32 {
    unsafe { libc::gettid() }
}

/// One line for a person who reads along.
pub fn note(text: &str) {
    eprintln!("host: {text}");
}

/// Says that this thread reached its stop; the last expected thread says READY.
pub fn reached(stop: &str) {
    let (pid, tid) = (std::process::id(), tid());
    let mut out = std::io::stdout().lock();
    // Counted under the lock: READY comes after every STOPPED.
    let reached = REACHED.fetch_add(1, Ordering::SeqCst) + 1;
    let expected = EXPECTED.load(Ordering::SeqCst);
    if expected > 1 {
        let _ = writeln!(out, "STOPPED pid={pid} tid={tid} stop={stop}");
    }
    if reached == expected {
        let _ = writeln!(out, "READY pid={pid} tid={tid} stop={stop}");
    }
    let _ = out.flush();
}

/// Sleeps until someone ends the process.
pub fn sleep_forever() -> ! {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
}

/// Ends the process with its parent and, where stdin is a pipe, when that pipe is closed: a test never leaks hosts.
pub fn end_with_parent() {
    unsafe {
        let parent = libc::getppid();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != parent {
            libc::_exit(1);
        }
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(0, &mut stat) != 0 || stat.st_mode & libc::S_IFMT != libc::S_IFIFO {
            return;
        }
    }
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(|| {
            let mut byte = [0u8; 64];
            loop {
                let n = unsafe { libc::read(0, byte.as_mut_ptr().cast(), byte.len()) };
                if n == 0 || n < 0 && std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                    unsafe { libc::_exit(0) };
                }
            }
        })
        .expect("a thread");
}
