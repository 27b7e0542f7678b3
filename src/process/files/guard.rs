//! Protects mapped files against being shortened by others.
//!
//! A page behind the new end of a mapped file is gone, and reading it raises SIGBUS. The signal handler puts zero
//! pages in place of the rest of the mapping and remembers that it did so; then the read goes on. Reading files into
//! memory of our own instead would cost as much memory as the files have: gigabytes for cores, of which an analysis
//! looks at some pages.
#![allow(unsafe_code)] // For mapping files, and for a signal handler.

use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// A mapping that the signal handler knows. It is never freed, since the handler may be looking at it, but used again
/// for another mapping.
struct Range {
    /// [`FREE`], [`TAKEN`], or the first address of the mapping.
    start: AtomicUsize,
    end: AtomicUsize,
    shortened: AtomicBool,
    next: AtomicPtr<Range>,
}

const FREE: usize = 0;
const TAKEN: usize = 1;

static FIRST: AtomicPtr<Range> = AtomicPtr::new(std::ptr::null_mut());

fn ranges() -> impl Iterator<Item = &'static Range> {
    // SAFETY: elements of the list are never freed.
    let first = unsafe { FIRST.load(Ordering::Acquire).as_ref() };
    std::iter::successors(first, |range| unsafe { range.next.load(Ordering::Acquire).as_ref() })
}

impl Range {
    fn add(start: usize, end: usize) -> &'static Range {
        let take = |r: &&Range| r.start.compare_exchange(FREE, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let range = ranges().find(take).unwrap_or_else(|| {
            let range: &'static mut Range = Box::leak(Box::new(Range {
                start: AtomicUsize::new(TAKEN),
                end: AtomicUsize::new(0),
                shortened: AtomicBool::new(false),
                next: AtomicPtr::new(std::ptr::null_mut()),
            }));
            let range: *mut Range = range;
            let mut first = FIRST.load(Ordering::Acquire);
            loop {
                // SAFETY: the element was leaked just now, so it is valid for ever.
                unsafe { (*range).next.store(first, Ordering::Release) };
                match FIRST.compare_exchange(first, range, Ordering::AcqRel, Ordering::Acquire) {
                    // SAFETY: the reason is the same as above.
                    Ok(_) => break unsafe { &*range },
                    Err(other) => first = other,
                }
            }
        });
        range.shortened.store(false, Ordering::Release);
        range.end.store(end, Ordering::Release);
        range.start.store(start, Ordering::Release);
        range
    }
}

/// The action for SIGBUS that was in place before ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

fn install() {
    BEFORE.get_or_init(|| {
        // SAFETY: the arguments of sigaction are valid, and the handler does only what a signal handler may do.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
            before
        }
    });
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const PAGE: usize = 0x1000;
    // SAFETY: the kernel gives a valid siginfo to a handler that was installed with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let inside = |r: &&Range| {
        let (start, end) = (r.start.load(Ordering::Acquire), r.end.load(Ordering::Acquire));
        start > TAKEN && start <= address && address < end
    };
    if let Some(range) = ranges().find(inside) {
        let page = address & !(PAGE - 1);
        let rest = range.end.load(Ordering::Acquire) - page;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the range is a part of a mapping of ours that is only read. mmap is a bare system call.
        let put = unsafe { libc::mmap(page as *mut libc::c_void, rest, libc::PROT_READ, flags, -1, 0) };
        if put != libc::MAP_FAILED {
            range.shortened.store(true, Ordering::Release);
            return;
        }
    }
    // SAFETY: the action was valid when it was in place. If there was none, the default is put back, and the read,
    // which is repeated, ends the process.
    unsafe {
        match BEFORE.get() {
            Some(before) if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN => {
                if before.sa_flags & libc::SA_SIGINFO != 0 {
                    let next: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(before.sa_sigaction);
                    next(signal, info, context);
                } else {
                    let next: extern "C" fn(libc::c_int) = std::mem::transmute(before.sa_sigaction);
                    next(signal);
                }
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// A file that is mapped for reading and that others may shorten.
pub(super) struct Guarded {
    map: Mmap,
    range: &'static Range,
}

impl Guarded {
    /// Maps the whole file, which must not be empty.
    pub fn map(file: &File) -> io::Result<Guarded> {
        install();
        // SAFETY: the mapping is private and read-only, and the handler replaces pages that others take away. Bytes
        // may still change under us while others write them: they are parsed as hostile, and a file that was changed
        // is not used.
        let map = unsafe { Mmap::map(file)? };
        let start = map.as_ptr() as usize;
        let range = Range::add(start, start + map.len().next_multiple_of(0x1000));
        Ok(Guarded { map, range })
    }

    /// Whether some bytes of the file were gone when they were read.
    pub fn was_shortened(&self) -> bool {
        self.range.shortened.load(Ordering::Acquire)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.range.start.store(FREE, Ordering::Release);
    }
}

impl std::ops::Deref for Guarded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_cut_off_reads_as_zeros_and_is_remembered() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 0x5000]).unwrap();
        let (cut, whole) = (Guarded::map(&file).unwrap(), Guarded::map(&file).unwrap());
        assert_eq!((cut[0], cut[0x4fff], cut.was_shortened()), (7, 7, false));
        file.set_len(0x1800).unwrap();
        assert_eq!(cut[0x3000], 0);
        assert!(cut.was_shortened() && !whole.was_shortened(), "nobody has read of the other");
        // The bytes before the cut are still there. Those behind it stay zero, even if the file grows again.
        file.set_len(0x5000).unwrap();
        assert_eq!((cut[0x17ff], cut[0x1800], cut[0x4fff]), (7, 0, 0));
        let start = cut.range.start.load(Ordering::Relaxed);
        drop(cut);
        assert!(ranges().all(|r| r.start.load(Ordering::Relaxed) != start) || whole[0] == 7);
        // Another mapping of the file has its bytes and does not count as shortened.
        let again = Guarded::map(&file).unwrap();
        assert!(!again.was_shortened() && again[0] == 7);
    }

    #[test]
    fn many_threads_map_and_cut() {
        std::thread::scope(|scope| {
            for n in 0..8u8 {
                scope.spawn(move || {
                    for _ in 0..200 {
                        let mut file = tempfile::tempfile().unwrap();
                        file.write_all(&[n + 1; 0x3000]).unwrap();
                        let map = Guarded::map(&file).unwrap();
                        assert_eq!(map[0x2fff], n + 1);
                        file.set_len(0x1000).unwrap();
                        assert_eq!((map[0x2000], map[0x1000], map.was_shortened()), (0, 0, true));
                    }
                });
            }
        });
    }
}
