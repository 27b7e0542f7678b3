//! A helper process that opens files, so that a mount which does not answer hangs the helper and not us.
//!
//! A thread that waits for a file system in the kernel cannot always be ended, and a process does not end before all
//! of its threads do. Therefore the helper is another process. If it does not answer in time it is left behind
//! (killed, for when the kernel lets it end), the file counts as one that cannot be opened, and a new helper is asked
//! for the next file. The helper holds nothing that was open in this process, so that nobody waits for the end of our
//! output because of it.
//!
//! Files on disks and in memory are handed over open. Of file systems that another program or machine serves, the
//! helper hands over a copy in memory, because every page of a mapped file there could be waited for.
#![allow(unsafe_code)] // For fork, and for passing open files.

use super::{By, FileLocation, Identity, OWN, Opened, REFUSALS, file_system, open_here};
use crate::bytes::{Bytes, Short};
use crate::limits;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a file that are copied at once.
const CHUNK: usize = 1 << 20;
/// How long this process waits for an answer without sleeping.
const AWAKE: Duration = Duration::from_micros(100);
/// How often the helper says that it is still copying.
const SIGN_OF_LIFE: Duration = Duration::from_millis(200);

#[derive(Default)]
struct State {
    enabled: bool,
    /// Our end of the channel to the helper, once there is one.
    channel: Option<OwnedFd>,
    helper: Helper,
    request: u32,
    /// How long this process has waited in vain so far, for all files together.
    waited: Duration,
    silent: Vec<PathBuf>,
}

/// Who runs the helper, and therefore starts another one in place of one that hangs.
#[derive(Default)]
enum Helper {
    #[default]
    None,
    /// The helper is a child of this process.
    Own(Pid),
    /// The parent process runs it, because this process may start none. A byte that is written to this file tells the
    /// parent that the helper hangs.
    OfParent(OwnedFd),
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

fn state() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the helper process open files from now on. Without this call, as in a library, files are opened in this
/// process, which then waits for a mount that does not answer.
pub fn enable() {
    let mut state = state();
    state.get_or_insert_default().enabled = true;
}

/// Starts the helper before it is needed, while this process is small and has only one thread. It is ready then when
/// the first file is asked for.
pub fn begin() {
    if let Some(state) = state().as_mut().filter(|state| state.enabled && state.channel.is_none()) {
        state.start();
    }
}

/// Lines that tell the reader of a report which files did not answer.
pub fn notes() -> Vec<String> {
    state().as_ref().map_or_else(Vec::new, State::notes)
}

/// Lets the helper end while this process goes on, because its end takes as much time as opening some files. Another
/// helper is started if a file is asked for after all.
pub fn rest() {
    if let Some(state) = state().as_mut()
        && matches!(state.helper, Helper::Own(_))
    {
        state.channel = None;
    }
}

/// Ends the helper. Waits for its end, but not for a helper that hangs.
pub fn end() {
    if let Some(State { channel, helper, .. }) = state().take() {
        drop(channel);
        if let Helper::Own(pid) = helper {
            reap(pid);
        }
    }
}

/// Waits for a helper that has nothing more to do, but not for one that hangs.
fn reap(pid: Pid) {
    for _ in 0..200 {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_micros(100)),
            _ => return,
        }
    }
    let _ = kill(pid, Signal::SIGKILL);
}

/// Lets the helper open the first of these locations at which a file can be opened, and returns its index. All
/// locations are asked for at once, because one question costs some hundredths of a millisecond and most locations
/// where a debug file may be have none. `None` means that there is no helper. An error is that of the last location.
pub(super) fn open(locations: &[FileLocation]) -> Option<io::Result<(usize, Opened)>> {
    let mut state = state();
    let state = state.as_mut().filter(|state| state.enabled)?;
    // A helper that has ended is replaced once.
    for _ in 0..2 {
        if state.channel.is_none() && !state.start() {
            return None;
        }
        match state.ask(locations) {
            Ok(answer) => return Some(answer),
            Err(Gone::Ended) => state.forget(),
            Err(Gone::Silent) => {
                state.replace();
                let [location] = locations else { return one_by_one(state, locations) };
                state.tell(location);
                return Some(Err(silence()));
            }
        }
    }
    None
}

/// Opens a file as `open` does when one of several locations does not answer: asks for one location after the other,
/// so that the silent one is known and the others are still opened.
fn one_by_one(state: &mut State, locations: &[FileLocation]) -> Option<io::Result<(usize, Opened)>> {
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for (index, location) in locations.iter().enumerate() {
        if state.channel.is_none() && !state.start() {
            break;
        }
        match state.ask(std::slice::from_ref(location)) {
            Ok(Ok((_, opened))) => return Some(Ok((index, opened))),
            Ok(Err(e)) => last = e,
            Err(Gone::Ended) => state.forget(),
            Err(Gone::Silent) => {
                state.replace();
                state.tell(location);
                last = silence();
            }
        }
    }
    Some(Err(last))
}

fn silence() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "its file system does not answer; look at the mount, then try again")
}

enum Gone {
    Ended,
    Silent,
}

impl State {
    fn start(&mut self) -> bool {
        if matches!(self.helper, Helper::OfParent(_)) {
            return false;
        }
        // A helper that `rest` has let end is waited for first.
        self.forget();
        let Ok((ours, theirs)) = channel() else { return false };
        let Some(pid) = start(&theirs) else { return false };
        (self.channel, self.helper) = (Some(ours), Helper::Own(pid));
        true
    }

    fn forget(&mut self) {
        self.channel = None;
        if let Helper::Own(pid) = std::mem::take(&mut self.helper) {
            reap(pid);
        }
    }

    /// Leaves a helper behind that hangs.
    fn replace(&mut self) {
        match &self.helper {
            Helper::OfParent(control) => {
                // SAFETY: the call reads one byte of a constant.
                let _ = unsafe { libc::write(control.as_raw_fd(), [0u8].as_ptr().cast(), 1) };
            }
            Helper::Own(pid) => {
                let _ = kill(*pid, Signal::SIGKILL);
                let _ = waitpid(*pid, Some(WaitPidFlag::WNOHANG));
                (self.channel, self.helper) = (None, Helper::None);
            }
            Helper::None => {}
        }
    }

    fn notes(&self) -> Vec<String> {
        let note = |path: &PathBuf| {
            format!("{} is not used: its file system did not answer; look at the mount, then try again", path.display())
        };
        self.silent.iter().map(note).collect()
    }

    /// Remembers a file that did not answer, for the notes.
    fn tell(&mut self, location: &FileLocation) {
        let told = self.silent.iter().any(|path| path == location.path());
        if !told && self.silent.len() < limits::MAX_SILENT_FILES {
            self.silent.push(location.path().to_path_buf());
        }
    }

    fn ask(&mut self, locations: &[FileLocation]) -> Result<io::Result<(usize, Opened)>, Gone> {
        let Some(channel) = &self.channel else { return Err(Gone::Ended) };
        self.request = self.request.wrapping_add(1);
        let Some(message) = request(self.request, locations) else {
            return Ok(Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG)));
        };
        send(channel, &message, None).map_err(|_| Gone::Ended)?;
        let most = Duration::from_millis(limits::MAX_SILENCE_MS);
        let left = Duration::from_millis(limits::MAX_SILENCE_TOTAL_MS).saturating_sub(self.waited);
        // Even where much time was waited in vain, each further file still gets a minimum.
        let patience = most.min(left).max(Duration::from_millis(limits::MIN_SILENCE_MS));
        let mut began = Instant::now();
        loop {
            let rest = patience.saturating_sub(began.elapsed());
            // Most answers come sooner than this thread could fall asleep and be woken up.
            while began.elapsed() < AWAKE && !readable(channel, Duration::ZERO) {
                std::hint::spin_loop();
            }
            if !readable(channel, rest) {
                if began.elapsed() < patience {
                    continue;
                }
                self.waited += began.elapsed();
                return Err(Gone::Silent);
            }
            let mut buffer = [0; Answer::BYTES];
            let (bytes, file) = receive(channel, &mut buffer).map_err(|_| Gone::Ended)?;
            let Ok(answer) = Answer::parse(bytes) else { return Err(Gone::Ended) };
            // The answer to an earlier request, which was given up, may still come.
            if answer.request != self.request {
                continue;
            }
            return Ok(match (answer.code, file) {
                (Answer::WORKING, _) => {
                    began = Instant::now();
                    continue;
                }
                (Answer::HERE, Some(file)) => {
                    let opened = Opened { file, identity: answer.identity, is_copy: answer.identity_is_of_another };
                    Ok((usize::from(answer.index), opened))
                }
                (code, _) if code <= Answer::REFUSED => Err(super::refused(Answer::REFUSED.abs_diff(code) as usize)),
                (Answer::TOO_LARGE, _) => Err(io::Error::new(
                    ErrorKind::FileTooLarge,
                    "it is on a remote mount and too large to be copied; copy it to a local disk and name the copy",
                )),
                (Answer::CHANGED, _) => {
                    Err(io::Error::other("it changed while it was read; try again when nothing writes to it"))
                }
                (code, _) => Err(io::Error::from_raw_os_error(code)),
            });
        }
    }
}

/// Encodes a request: its number, and for each location who names it and where it is. Returns `None` if it is too
/// long.
fn request(number: u32, locations: &[FileLocation]) -> Option<Vec<u8>> {
    let mut out = number.to_le_bytes().to_vec();
    for location in locations {
        let by = match location.by {
            By::User => 0,
            By::Kernel => 1,
            By::Target => 2,
        };
        let root = location.root.as_ref().map_or(&[][..], |root| root.as_os_str().as_bytes());
        let path = location.path.as_os_str().as_bytes();
        out.extend([by, u8::from(location.root.is_some())]);
        for part in [root, path] {
            out.extend(u16::try_from(part.len()).ok()?.to_le_bytes());
            out.extend(part);
        }
    }
    (out.len() <= limits::MAX_PLACE_BYTES).then_some(out)
}

fn locations_of(message: &[u8]) -> Result<(u32, Vec<FileLocation>), Short> {
    let mut b = Bytes::new(message);
    let number = b.u32()?;
    let mut locations = Vec::new();
    while b.remaining() > 0 {
        let by = match b.u8()? {
            0 => By::User,
            1 => By::Kernel,
            _ => By::Target,
        };
        let has_root = b.u8()? != 0;
        let mut part = || {
            let len = b.u16()?;
            Ok(PathBuf::from(OsStr::from_bytes(b.take(u64::from(len))?)))
        };
        let (root, path) = (part()?, part()?);
        locations.push(FileLocation { path, root: has_root.then_some(root), by });
    }
    Ok((number, locations))
}

/// An answer of the helper.
struct Answer {
    request: u32,
    /// An error number, or one of the constants below.
    code: i32,
    /// Index of the location that the answer is about.
    index: u8,
    identity: Identity,
    identity_is_of_another: bool,
}

impl Answer {
    const BYTES: usize = 50;
    const HERE: i32 = 0;
    const WORKING: i32 = -1;
    const TOO_LARGE: i32 = -3;
    const CHANGED: i32 = -4;
    /// This code and the smaller ones stand for the texts of [`REFUSALS`], in their order.
    const REFUSED: i32 = -100;

    fn bare(request: u32, code: i32) -> Answer {
        let identity = Identity { device: 0, inode: 0, size: 0, modified: (0, 0) };
        Answer { request, code, index: 0, identity, identity_is_of_another: false }
    }

    fn bytes(&self) -> Vec<u8> {
        let id = &self.identity;
        let mut out = self.request.to_le_bytes().to_vec();
        out.extend(self.code.to_le_bytes());
        out.extend([id.device, id.inode, id.size].into_iter().flat_map(u64::to_le_bytes));
        out.extend([id.modified.0, id.modified.1].into_iter().flat_map(i64::to_le_bytes));
        out.extend([u8::from(self.identity_is_of_another), self.index]);
        out
    }

    fn parse(bytes: &[u8]) -> Result<Answer, Short> {
        let mut b = Bytes::new(bytes);
        let (request, code) = (b.u32()?, b.u32()? as i32);
        let (device, inode, size) = (b.u64()?, b.u64()?, b.u64()?);
        let modified = (b.u64()? as i64, b.u64()? as i64);
        let identity = Identity { device, inode, size, modified };
        Ok(Answer { request, code, identity, identity_is_of_another: b.u8()? != 0, index: b.u8()? })
    }
}

/// Makes a channel that keeps messages apart and can pass open files, and returns both ends.
fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for both file descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made these file descriptors for us.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

fn readable(channel: &OwnedFd, within: Duration) -> bool {
    let mut poll = libc::pollfd { fd: channel.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let milliseconds = match within.is_zero() {
        true => 0,
        false => i32::try_from(within.as_millis()).unwrap_or(i32::MAX).saturating_add(1),
    };
    // SAFETY: the pointer is to one valid element.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) > 0 }
}

/// Room for a control message that passes one open file.
#[repr(C, align(8))]
struct Control([u8; 32]);

fn send(channel: &OwnedFd, bytes: &[u8], file: Option<&File>) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 32]);
    // SAFETY: all pointers are to locals that outlive the call, and the control message fits: CMSG_SPACE of an int is
    // 24.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if let Some(file) = file {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(file.as_raw_fd());
        }
        libc::sendmsg(channel.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives a message, as far as it fits into the buffer, and the file that came with it. It is an error if the other
/// end is closed.
fn receive<'b>(channel: &OwnedFd, buffer: &'b mut [u8]) -> io::Result<(&'b [u8], Option<File>)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; 32]);
    loop {
        // SAFETY: as in `send`. A file descriptor that is received belongs to us.
        let (got, file) = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = size_of::<Control>() as _;
            let got = libc::recvmsg(channel.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
            let header = if got > 0 { libc::CMSG_FIRSTHDR(&raw const message) } else { std::ptr::null_mut() };
            let is_file = !header.is_null()
                && (*header).cmsg_level == libc::SOL_SOCKET
                && (*header).cmsg_type == libc::SCM_RIGHTS;
            let file = is_file.then(|| File::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()));
            (got, file)
        };
        match usize::try_from(got) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => return Ok((buffer.get(..len).unwrap_or_default(), file)),
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
}

/// Starts a helper process that serves the other end of the channel.
fn start(theirs: &OwnedFd) -> Option<Pid> {
    // SAFETY: the child makes only system calls and small allocations, which the C library keeps possible.
    match unsafe { fork() } {
        Err(_) => None,
        Ok(ForkResult::Parent { child }) => Some(child),
        Ok(ForkResult::Child) => {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| serve(theirs.as_raw_fd())));
            // SAFETY: the call ends the process at once.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Runs in the helper: answers requests until nobody is left who could ask.
fn serve(theirs: RawFd) {
    // SAFETY: this process has one thread, and nothing else in it uses the file descriptors that are closed.
    let channel = unsafe {
        if libc::dup2(theirs, 0) != 0 {
            return;
        }
        // Closes all other files: nobody should wait for the end of our output because this process hangs.
        if libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) != 0 {
            (1..4096).for_each(|fd| _ = libc::close(fd));
        }
        // Ctrl-C and the like are meant for the process that asks. When that one ends, this process ends as well.
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTSTP] {
            libc::signal(signal, libc::SIG_IGN);
        }
        OwnedFd::from_raw_fd(0)
    };
    let mut copied = 0;
    let mut buffer = vec![0; limits::MAX_PLACE_BYTES];
    while let Ok((message, _)) = receive(&channel, &mut buffer) {
        let Ok((number, locations)) = locations_of(message) else { return };
        let mut answers = (0..=u8::MAX).zip(&locations).map(|(index, location)| {
            let (answer, file) = answer(&channel, number, location, &mut copied);
            (Answer { index, ..answer }, file)
        });
        let (mut answer, mut file) = (Answer::bare(number, libc::ENOENT), None);
        while file.is_none() {
            let Some(next) = answers.next() else { break };
            (answer, file) = next;
        }
        if send(&channel, &answer.bytes(), file.as_ref()).is_err() {
            return;
        }
    }
}

fn answer(channel: &OwnedFd, number: u32, location: &FileLocation, copied: &mut u64) -> (Answer, Option<File>) {
    let failed = |e: io::Error| {
        let text = || e.to_string();
        let refusal = || REFUSALS.iter().position(|why| *why == text()).unwrap_or(4);
        let code = e.raw_os_error().unwrap_or_else(|| Answer::REFUSED - refusal() as i32);
        (Answer::bare(number, code), None)
    };
    let opened = open_here(location).and_then(|file| Ok((Identity::of(&file)?, file)));
    let (identity, file) = match opened {
        Ok(opened) => opened,
        Err(e) => return failed(e),
    };
    let here = Answer { identity, ..Answer::bare(number, Answer::HERE) };
    if file_system(&file).is_ok_and(|kind| OWN.contains(&kind)) {
        return (here, Some(file));
    }
    match Way::of(location.by, identity.size, copied) {
        Way::Copy => {}
        Way::Refuse => return (Answer::bare(number, Answer::TOO_LARGE), None),
        // The last byte is read, because nothing more can be checked than that the file system answers at all.
        Way::AsIs => {
            return match file.read_at(&mut [0], identity.size.saturating_sub(1)) {
                Ok(_) => (here, Some(file)),
                Err(e) => failed(e),
            };
        }
    }
    let copy = copy(&file, identity.size, || {
        let _ = send(channel, &Answer::bare(number, Answer::WORKING).bytes(), None);
    });
    match (copy, Identity::of(&file)) {
        (Ok(copy), Ok(after)) if after == identity => (Answer { identity_is_of_another: true, ..here }, Some(copy)),
        (Ok(_), Ok(_)) => (Answer::bare(number, Answer::CHANGED), None),
        (Err(e), _) | (_, Err(e)) => failed(e),
    }
}

/// How a file is handed over that is on a file system which another program or machine serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Copy,
    /// Handed over open, without a copy: the user wants this file to be read, and it is too large to be copied, such
    /// as a core of gigabytes.
    AsIs,
    Refuse,
}

impl Way {
    fn of(by: By, size: u64, copied: &mut u64) -> Way {
        if by == By::User && size > limits::MAX_COPIED_FILE {
            return Way::AsIs;
        }
        match copied.saturating_add(size) {
            all if all > limits::MAX_COPIED_BYTES => Way::Refuse,
            all => {
                *copied = all;
                Way::Copy
            }
        }
    }
}

/// Copies the first `size` bytes of a file into memory, and calls `sign_of_life` now and then.
fn copy(file: &File, size: u64, sign_of_life: impl Fn()) -> io::Result<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"wstate".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this file descriptor for us.
    let mut copy = unsafe { File::from_raw_fd(fd) };
    let mut chunk = vec![0; CHUNK];
    let mut from = file.take(size);
    let mut said = Instant::now();
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(copy),
            Ok(n) => copy.write_all(chunk.get(..n).unwrap_or_default())?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if said.elapsed() > SIGN_OF_LIFE {
            sign_of_life();
            said = Instant::now();
        }
    }
}

/// Runs a helper for a child process that may start none itself.
pub struct Keeper {
    helper: Option<Pid>,
    theirs: OwnedFd,
    /// The child process writes a byte to it when the helper hangs. When the child ends, reading from it gives the
    /// end of file.
    control: File,
}

/// What the child process needs in order to use the helper.
pub struct Kept {
    channel: OwnedFd,
    control: OwnedFd,
}

/// Starts a helper for a child process that is still to be started. Returns `None` if [`enable`] was not called, or
/// if no helper can be started.
pub fn keep() -> Option<(Keeper, Kept)> {
    if !state().as_ref().is_some_and(|state| state.enabled) {
        return None;
    }
    let (channel, theirs) = self::channel().ok()?;
    let (hears, control) = self::channel().ok()?;
    let helper = start(&theirs)?;
    let keeper = Keeper { helper: Some(helper), theirs, control: File::from(hears) };
    Some((keeper, Kept { channel, control }))
}

impl Kept {
    /// Lets this helper open the files of the child process, which must be the caller.
    pub fn take(self) {
        let mut state = state();
        let state = state.get_or_insert_default();
        (state.channel, state.helper) = (Some(self.channel), Helper::OfParent(self.control));
    }
}

impl Keeper {
    /// Starts another helper each time that a helper hangs. Returns when the child has ended.
    pub fn keep(mut self) {
        let mut byte = [0];
        loop {
            match self.control.read(&mut byte) {
                Ok(1) => {
                    if let Some(pid) = self.helper.take() {
                        let _ = kill(pid, Signal::SIGKILL);
                        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                    }
                    self.helper = start(&self.theirs);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        drop(self.theirs);
        if let Some(pid) = self.helper {
            reap(pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn state(channel: OwnedFd) -> State {
        State { channel: Some(channel), ..State::default() }
    }

    #[test]
    fn what_does_not_answer_is_waited_for_so_long_and_then_left() {
        let (ours, theirs) = channel().unwrap();
        let mut state = state(ours);
        let location = FileLocation::user("/file");
        // However much time was waited in vain, each file still gets its chance.
        for n in 0..2 * limits::MAX_SILENCE_TOTAL_MS / limits::MAX_SILENCE_MS {
            assert!(matches!(state.ask(std::slice::from_ref(&location)), Err(Gone::Silent)));
            let least = ((n + 1) * limits::MAX_SILENCE_MS).min(limits::MAX_SILENCE_TOTAL_MS);
            assert!(state.waited >= Duration::from_millis(least.max(limits::MIN_SILENCE_MS)), "{:?}", state.waited);
        }
        // The answers to the earlier requests come too late. The answer to the last request counts, however long it
        // takes with signs of life.
        let number = state.request + 1;
        let file = tempfile::tempfile().unwrap();
        for old in 1..number {
            send(&theirs, &Answer::bare(old, libc::ENOENT).bytes(), None).unwrap();
        }
        for _ in 0..3 {
            send(&theirs, &Answer::bare(number, Answer::WORKING).bytes(), None).unwrap();
        }
        let identity = Identity::of(&file).unwrap();
        let answer = Answer { identity, ..Answer::bare(number, Answer::HERE) };
        send(&theirs, &answer.bytes(), Some(&file)).unwrap();
        let (_, opened) = state.ask(std::slice::from_ref(&location)).ok().unwrap().unwrap();
        assert_eq!((opened.identity, Identity::of(&opened.file).unwrap()), (identity, identity));
        drop(theirs);
        assert!(matches!(state.ask(std::slice::from_ref(&location)), Err(Gone::Ended)));
    }

    #[test]
    fn so_many_silent_files_are_told_once_each() {
        let mut state = State::default();
        for n in (0..2 * limits::MAX_SILENT_FILES).flat_map(|n| [n, n]) {
            state.tell(&FileLocation::user(format!("/{n}")));
        }
        assert_eq!(state.notes().len(), limits::MAX_SILENT_FILES);
        assert!(state.notes()[1].starts_with("/1 is not used"), "{:?}", state.notes());
    }

    #[test]
    fn a_helper_opens_what_may_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink("/file", at("link")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
        let (ours, theirs) = channel().unwrap();
        let pid = start(&theirs).unwrap();
        drop(theirs);
        // On a busy machine the helper may seem to be silent, so the question is repeated.
        let mut state = state(ours);
        let mut ask = |location: &FileLocation| loop {
            match state.ask(std::slice::from_ref(location)) {
                Ok(answer) => break answer.map(|(_, opened)| opened),
                Err(Gone::Silent) => {}
                Err(Gone::Ended) => panic!("it has ended"),
            }
        };
        for location in [
            FileLocation::user(at("file")),
            FileLocation::named(at("file")),
            FileLocation::within(directory.path(), Path::new("/link")),
        ] {
            let mut text = String::new();
            ask(&location).unwrap().file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "text", "{location:?}");
        }
        for (location, kind) in [
            (FileLocation::user(at("fifo")), ErrorKind::InvalidInput),
            (FileLocation::user(directory.path()), ErrorKind::InvalidInput),
            (FileLocation::user(at("nothing")), ErrorKind::NotFound),
            (FileLocation::user(at("link")), ErrorKind::NotFound),
            (FileLocation::named("/proc/version"), ErrorKind::InvalidInput),
            (FileLocation::user("x".repeat(limits::MAX_PLACE_BYTES)), ErrorKind::InvalidFilename),
        ] {
            assert_eq!(ask(&location).unwrap_err().kind(), kind, "{location:?}");
        }
        // Of several locations, the first one with a file that can be opened is chosen.
        let several = ["nothing", "fifo", "file", "link"].map(|name| FileLocation::user(at(name)));
        let found = loop {
            match state.ask(&several) {
                Err(Gone::Silent) => {}
                found => break found.ok().unwrap().unwrap().0,
            }
        };
        assert_eq!(found, 2);
        drop(state);
        reap(pid);
    }

    #[test]
    fn files_of_others_are_copied_up_to_a_size() {
        let mut copied = 0;
        let (one, all) = (limits::MAX_COPIED_FILE, limits::MAX_COPIED_BYTES);
        assert_eq!(Way::of(By::User, one, &mut copied), Way::Copy);
        assert_eq!(Way::of(By::User, one + 1, &mut copied), Way::AsIs);
        assert_eq!(copied, one);
        assert_eq!(Way::of(By::Target, all - one, &mut copied), Way::Copy);
        assert_eq!(Way::of(By::Target, 1, &mut copied), Way::Refuse);
        assert_eq!(Way::of(By::User, u64::MAX, &mut copied), Way::AsIs);

        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 3 * CHUNK + 5]).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let copy = copy(&file, 2 * CHUNK as u64 + 1, || {}).unwrap();
        assert_eq!(copy.metadata().unwrap().len(), 2 * CHUNK as u64 + 1);
    }
}
