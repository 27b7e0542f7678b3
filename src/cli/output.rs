//! Where results go: standard output, or a file that is never seen half written.
//!
//! Where the file system can make files without a name (`O_TMPFILE`), a file has no name until it is whole, so that
//! nothing is left behind whatever ends wstate before that. If the file takes the place of another one, it has a
//! temporary name between two calls at the very end, since no call replaces a file by one without a name. On other
//! file systems it has a temporary name from the start, and the signals with which people and programs end a process
//! remove the file.

use crate::error::Error;
use crate::session::SparseWrite;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use tempfile::NamedTempFile;

/// An opened destination. It is opened before the work begins, so that a place that cannot be written is known before
/// a process is stopped for nothing.
#[derive(Debug)]
pub struct Output {
    name: String,
    to: To,
    spool: Option<File>,
}

#[derive(Debug)]
enum To {
    Stdout,
    /// A device or a pipe. It is written directly, because renaming a file over it would replace it.
    Special(File),
    Beside(Beside),
}

/// A temporary file in the directory of `path`, with the mode of the file it will replace.
#[derive(Debug)]
struct Beside {
    temporary: Temporary,
    path: PathBuf,
    mode: Option<Permissions>,
}

#[derive(Debug)]
enum Temporary {
    /// A file that is in no directory yet.
    Unnamed(File),
    /// A file with a temporary name, for file systems that have no files without one.
    Named(NamedTempFile, Removed),
}

/// How the names of temporary files begin.
const PREFIX: &str = ".wstate-";

impl Temporary {
    fn create_in(dir: &Path) -> io::Result<Temporary> {
        // The umask takes bits off this mode, as for any new file.
        let mode = 0o666;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(dir, flags, Mode::from_raw_mode(mode)).map(File::from) {
            Ok(file) if Path::new(&in_proc(&file)).exists() => return Ok(Temporary::Unnamed(file)),
            // Without /proc the file could never get a name.
            Ok(_) => {}
            Err(Errno::NOENT) if !dir.exists() => return Err(Errno::NOENT.into()),
            // With these errors, a file with a temporary name is made instead. An old kernel takes the call for one
            // that opens the directory itself (open(2)).
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {}
            Err(e) => return Err(e.into()),
        }
        let removed = Removed::begin();
        let named =
            tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(mode)).make_in(dir, |path| {
                removed.add(path);
                File::options().read(true).write(true).create_new(true).mode(mode).open(path)
            });
        let named = named.map_err(without_temporary_path)?;
        Ok(Temporary::Named(named, removed))
    }

    fn file(&mut self) -> &mut File {
        match self {
            Temporary::Unnamed(file) => file,
            Temporary::Named(named, _) => named.as_file_mut(),
        }
    }
}

/// The path that leads to an open file.
fn in_proc(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

impl Beside {
    fn persist(mut self) -> io::Result<()> {
        if let Some(mode) = self.mode {
            self.temporary.file().set_permissions(mode)?;
        }
        let file = match self.temporary {
            Temporary::Named(named, _removed) => return named.persist(self.path).map(drop).map_err(|e| e.error),
            Temporary::Unnamed(file) => file,
        };
        let link = |path: &Path| -> io::Result<()> {
            Ok(rustix::fs::linkat(CWD, in_proc(&file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
        };
        match link(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other,
        }
        // Signals are kept back between the two calls.
        let kept = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let linked = tempfile::Builder::new().prefix(PREFIX).make_in(directory_of(&self.path), link);
        let done = linked.and_then(|named| named.persist(&self.path).map(drop).map_err(|e| e.error));
        if let Ok(before) = kept {
            let _ = before.thread_set_mask();
        }
        done.map_err(without_temporary_path)
    }
}

/// Stands for a named temporary file. The signals that end a program remove the file.
#[derive(Debug)]
struct Removed;

/// Paths of the files that are removed when such a signal comes.
static TO_REMOVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Is set when a thread waits for signals.
static WAITS: OnceLock<()> = OnceLock::new();

impl Removed {
    /// Starts a thread that waits for signals, if there is none yet.
    fn begin() -> Removed {
        WAITS.get_or_init(|| {
            let signals: SigSet =
                [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect();
            // The signals are blocked on this thread and on those that it starts.
            if signals.thread_block().is_err() {
                return;
            }
            let (ready, is_ready) = std::sync::mpsc::sync_channel(0);
            let wait = move || {
                // Until a signal comes this thread only waits and holds no lock, so a child may be forked
                // ([`crate::cli::sandbox`]).
                let _ = ready.send(());
                drop(ready);
                let Ok(signal) = signals.wait() else { return };
                for path in TO_REMOVE.lock().unwrap_or_else(|e| e.into_inner()).iter() {
                    let _ = std::fs::remove_file(path);
                }
                // Raised again, the signal ends the process as it would have without this thread.
                let _ = signals.thread_unblock();
                let _ = nix::sys::signal::raise(signal);
            };
            match std::thread::Builder::new().name("signals".into()).spawn(wait) {
                Ok(_) => _ = is_ready.recv(),
                Err(_) => _ = signals.thread_unblock(),
            }
        });
        Removed
    }

    fn add(&self, path: &Path) {
        TO_REMOVE.lock().unwrap_or_else(|e| e.into_inner()).push(path.to_path_buf());
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        // The file has been renamed or removed, so its path goes. Names are not used twice, so a path that still
        // exists belongs to another file and may stay in the list.
        TO_REMOVE.lock().unwrap_or_else(|e| e.into_inner()).retain(|path| path.exists());
    }
}

impl Output {
    /// An output that is standard output.
    pub fn stdout() -> Output {
        Output { name: "standard output".to_string(), to: To::Stdout, spool: None }
    }

    /// An output that is a file. What the file holds now stays until [`Output::write`] has succeeded.
    pub fn file(path: &Path) -> Result<Output, Error> {
        let name = path.display().to_string();
        let to = open(path).map_err(|source| Error::Output { to: name.clone(), source })?;
        Ok(Output { name, to, spool: None })
    }

    /// An output that is a file if there is a path, and else standard output.
    pub fn file_or_stdout(path: Option<&Path>) -> Result<Output, Error> {
        path.map_or(Ok(Output::stdout()), Output::file)
    }

    /// Whether this is a file that gets its name in [`Output::commit`].
    pub fn is_file(&self) -> bool {
        matches!(self.to, To::Beside(_))
    }

    /// Whether this is a terminal, which binary data would confuse.
    pub fn is_terminal(&self) -> bool {
        match &self.to {
            To::Stdout => io::stdout().is_terminal(),
            To::Special(file) => file.is_terminal(),
            To::Beside(_) => false,
        }
    }

    /// Whether what is printed on standard output would get into this output: it is `/dev/stdout`, or the file to
    /// which a shell redirected standard output.
    pub fn is_standard_output(&self) -> bool {
        let ours = match &self.to {
            To::Stdout => return true,
            To::Special(file) => file.metadata().ok(),
            To::Beside(beside) => beside.path.metadata().ok(),
        };
        let stdout = io::stdout().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
        let same = ours.zip(stdout.ok()).filter(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()));
        // A character device such as /dev/null does not count, because nothing gets into it.
        same.is_some_and(|(file, _)| !file.file_type().is_char_device())
    }

    /// Makes [`Output::put_sparse_with`] write to a temporary file first, unless the output is a file. The reader of
    /// a pipe may be slow, and work that must not wait for it is then over before anything is written to the reader.
    ///
    /// # Errors
    /// No temporary file can be made.
    pub fn spool(&mut self) -> Result<(), Error> {
        if !self.is_file() {
            let opened = tempfile::tempfile().map_err(without_temporary_path);
            self.spool = Some(opened.map_err(|source| Error::Output { to: spool_name(), source })?);
        }
        Ok(())
    }

    /// Writes all bytes, and gives the file its name.
    pub fn write(mut self, bytes: &[u8]) -> Result<(), Error> {
        self.put(bytes)?;
        self.commit()
    }

    /// Writes all bytes; a file still holds what it held before. It is no error if the reader of a pipe has closed
    /// its end: it has seen enough.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let result = match &mut self.to {
            To::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            To::Special(file) => file.write_all(bytes),
            To::Beside(beside) => beside.temporary.file().write_all(bytes),
        };
        match result {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|source| Error::Output { to: self.name.clone(), source }),
        }
    }

    /// Does the same as [`Output::put_with`], but leaves holes for zeros where there is a file. What is written is of no use in
    /// part, so it is an error if a reader goes away before the end.
    pub fn put_sparse_with<T>(
        &mut self,
        work: impl FnOnce(&mut dyn SparseWrite) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let output = |source| Error::Output { to: String::new(), source };
        let mut stdout;
        let to: &mut dyn Write = match &mut self.to {
            To::Beside(beside) => {
                return sparse(beside.temporary.file(), work).map_err(|e| named(e, &self.name));
            }
            To::Stdout => {
                stdout = io::stdout().lock();
                &mut stdout
            }
            To::Special(file) => file,
        };
        if let Some(mut file) = self.spool.take() {
            let done = sparse(&mut file, work).map_err(|e| named(e, &spool_name()))?;
            let mut out = BufWriter::with_capacity(1 << 20, to);
            let copied = file.rewind().and_then(|()| io::copy(&mut file, &mut out)).and_then(|_| out.flush());
            return copied.map(|()| done).map_err(|source| Error::Output { to: self.name.clone(), source });
        }
        let mut out = BufWriter::new(to);
        let result = work(&mut Dense(&mut out)).and_then(|done| out.flush().map(|()| done).map_err(output));
        result.map_err(|e| named(e, &self.name))
    }

    /// Gives the file what [`Output::put`] has written, in this process or in a child of it.
    pub fn commit(self) -> Result<(), Error> {
        match self.to {
            To::Beside(beside) => beside.persist().map_err(|source| Error::Output { to: self.name, source }),
            To::Stdout | To::Special(_) => Ok(()),
        }
    }

    /// Writes several files in this order, or none of them if there is no room for all.
    pub fn write_files<'a>(files: impl IntoIterator<Item = (&'a Path, &'a [u8])>) -> Result<(), Error> {
        let put = files.into_iter().map(|(path, bytes)| {
            let mut output = Output::file(path)?;
            output.put(bytes)?;
            Ok(output)
        });
        put.collect::<Result<Vec<Output>, Error>>()?.into_iter().try_for_each(Output::commit)
    }

    /// Lets `work` write piece by piece, as [`Output::put`] does. If it fails, there is nothing to
    /// [`Output::commit`].
    pub fn put_with<T: Default>(&mut self, work: impl FnOnce(&mut dyn Write) -> Result<T, Error>) -> Result<T, Error> {
        let mut stdout;
        let to: &mut dyn Write = match &mut self.to {
            To::Stdout => {
                stdout = io::stdout().lock();
                &mut stdout
            }
            To::Special(file) => file,
            To::Beside(beside) => beside.temporary.file(),
        };
        let mut out = BufWriter::new(to);
        let flush = |mut out: BufWriter<_>| out.flush().map_err(|source| Error::Output { to: String::new(), source });
        let result = work(&mut out).and_then(|done| flush(out).map(|()| done));
        match result {
            Err(Error::Output { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(T::default()),
            other => other.map_err(|e| named(e, &self.name)),
        }
    }
}

/// Lets `work` write a file with holes.
fn sparse<T>(file: &mut File, work: impl FnOnce(&mut dyn SparseWrite) -> Result<T, Error>) -> Result<T, Error> {
    let mut out = Holes { file, at: 0, end: 0 };
    let done = work(&mut out)?;
    out.finish().map(|()| done).map_err(|source| Error::Output { to: String::new(), source })
}

fn spool_name() -> String {
    format!("a temporary file in {} (TMPDIR names another place)", std::env::temp_dir().display())
}

/// The error `error` with the name of what could not be written, if it is an error of writing.
fn named(error: Error, to: &str) -> Error {
    match error {
        Error::Output { source, .. } => Error::Output { to: to.to_string(), source },
        other => other,
    }
}

/// A destination in which zeros are written like all other bytes.
struct Dense<'a>(&'a mut dyn Write);

impl Write for Dense<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl SparseWrite for Dense<'_> {
    fn zeros(&mut self, count: u64) -> io::Result<()> {
        io::copy(&mut io::repeat(0).take(count), self).map(|_| ())
    }
}

/// A new file, in which blocks of zeros are left out.
struct Holes<'a> {
    file: &'a mut File,
    /// Number of bytes up to the end of what was written, which is the position in the file.
    at: u64,
    /// Number of bytes so far, with the zeros at the end that are not written yet.
    end: u64,
}

/// Size in bytes of a block of zeros that becomes a hole.
const HOLE: usize = 4096;

// Only plain writes and seeks are used, because the sandbox lets nothing else through.
impl Holes<'_> {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        if at != self.at {
            self.file.seek(SeekFrom::Start(at))?;
        }
        self.file.write_all(bytes)?;
        self.at = at + bytes.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        match self.end.checked_sub(1) {
            Some(last) if self.at <= last => self.write_at(&[0], last),
            _ => Ok(()),
        }
    }
}

impl Write for Holes<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let blocks: Vec<&[u8]> = bytes.chunks(HOLE).collect();
        let mut at = 0;
        for run in blocks.chunk_by(|a, b| is_hole(a) == is_hole(b)) {
            let len: usize = run.iter().map(|block| block.len()).sum();
            if run.iter().any(|block| !is_hole(block)) {
                self.write_at(&bytes[at..at + len], self.end + at as u64)?;
            }
            at += len;
        }
        self.end += at as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SparseWrite for Holes<'_> {
    fn zeros(&mut self, count: u64) -> io::Result<()> {
        self.end += count;
        Ok(())
    }
}

fn is_hole(block: &[u8]) -> bool {
    block.len() == HOLE && block.iter().all(|&b| b == 0)
}

fn open(path: &Path) -> io::Result<To> {
    // What is open already is written where it is. If it were replaced, a file that a shell appends to would lose
    // what it has.
    let stream = if path == Path::new("-") { Some(1) } else { descriptor(path) };
    match stream {
        Some(1) => return Ok(To::Special(io::stdout().as_fd().try_clone_to_owned()?.into())),
        Some(2) => return Ok(To::Special(io::stderr().as_fd().try_clone_to_owned()?.into())),
        _ => {}
    }
    let old = std::fs::metadata(path).ok();
    match &old {
        Some(m) if m.is_dir() => {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory; name a file in it"));
        }
        Some(m) if !m.is_file() => return Ok(To::Special(File::options().write(true).open(path)?)),
        Some(_) if stream.is_some() => {
            let why = "wstate writes to no file that is already open but standard output and standard error; name the file itself";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        // A file that may not be written must not be replaced only because its directory may be written.
        Some(_) => drop(File::options().append(true).open(path)?),
        None if path.is_symlink() => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "it is a link to a file that does not exist; remove the link or name another file",
            ));
        }
        None => {}
    }
    // A link stays a link: the file that it names is replaced.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let directory = directory_of(&path);
    let temporary = Temporary::create_in(directory).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            let why = format!("the directory {} does not exist; make it first", directory.display());
            io::Error::new(io::ErrorKind::NotFound, why)
        }
        io::ErrorKind::NotADirectory => {
            let why = format!("{} is no directory; name a file in a directory", directory.display());
            io::Error::new(io::ErrorKind::NotADirectory, why)
        }
        _ => e,
    })?;
    Ok(To::Beside(Beside { temporary, path, mode: old.map(|m| m.permissions()) }))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(d) if !d.as_os_str().is_empty() => d,
        _ => Path::new("."),
    }
}

/// The descriptor of this process that a path leads to: `/dev/stdout`, `/dev/fd/1`, `/proc/self/fd/1`.
fn descriptor(path: &Path) -> Option<u32> {
    let own = Path::new("/proc/self/fd").canonicalize().ok()?;
    let mut path = path.to_path_buf();
    // The kernel follows no more links than this number.
    for _ in 0..40 {
        let directory = match path.parent()? {
            here if here.as_os_str().is_empty() => Path::new(".").canonicalize().ok()?,
            directory => directory.canonicalize().ok()?,
        };
        if directory == own {
            return path.file_name()?.to_str()?.parse().ok();
        }
        path = directory.join(path.read_link().ok()?);
    }
    None
}

/// The error without the temporary path that tempfile appends, which the user did not choose.
fn without_temporary_path(e: io::Error) -> io::Error {
    let text = e.to_string();
    io::Error::new(e.kind(), text.split(" at path ").next().unwrap_or(&text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_old_content_stays_until_all_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let out = Output::file(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(out);
        assert_eq!(entries(dir.path()), ["report.json"]);
        Output::file(&path).unwrap().write(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(entries(dir.path()), ["report.json"]);
    }

    #[test]
    fn a_failure_half_way_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dump");
        std::fs::write(&path, "old").unwrap();
        let mut output = Output::file(&path).unwrap();
        let failed = output.put_with(|out| -> Result<(), Error> {
            out.write_all(b"half").unwrap();
            Err(Error::NoWasm { what: "the rest".to_string() })
        });
        assert_eq!(failed.unwrap_err().to_string(), "the rest");
        drop(output);
        assert_eq!((std::fs::read(&path).unwrap(), entries(dir.path())), (b"old".to_vec(), vec!["dump".to_string()]));
        let write =
            |out: &mut dyn Write| out.write_all(b"new").map_err(|source| Error::Output { to: "?".into(), source });
        let mut output = Output::file(&path).unwrap();
        output.put_with(write).unwrap();
        output.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let e = Output::file(Path::new("/dev/full")).unwrap().put_with(write).unwrap_err();
        assert!(e.to_string().starts_with("cannot write /dev/full: No space left"), "{e}");
    }

    #[test]
    fn zeros_become_holes_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let block = |byte: u8| vec![byte; HOLE];
        // There are zeros at the start, in between and at the end, and blocks that do not become holes because
        // something is in them.
        let mut odd = block(0);
        odd[HOLE - 1] = 1;
        let parts = [block(0), block(7), block(0), odd, block(3), vec![1, 2], block(0), block(0), vec![0; 3]];
        for last in 0..=parts.len() {
            let mut output = Output::file(&path).unwrap();
            let wrote = output.put_sparse_with(|out| {
                let failed = |source| Error::Output { to: String::new(), source };
                out.zeros(5 * HOLE as u64).map_err(failed)?;
                parts[..last].iter().try_for_each(|part| out.write_all(part).map_err(failed))?;
                out.zeros(1 << 30).map_err(failed)?;
                Ok(last)
            });
            assert_eq!(wrote.unwrap(), last);
            output.commit().unwrap();
            let wanted = [vec![0; 5 * HOLE], parts[..last].concat()].concat();
            let mut found = vec![1; wanted.len()];
            File::open(&path).unwrap().read_exact(&mut found).unwrap();
            assert_eq!(found, wanted);
            let metadata = path.metadata().unwrap();
            assert_eq!(metadata.len(), wanted.len() as u64 + (1 << 30));
            assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        }
    }

    #[test]
    fn half_of_what_is_of_use_as_a_whole_is_an_error() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut output =
            Output { name: "a pipe".to_string(), to: To::Special(File::from(OwnedFd::from(writer))), spool: None };
        let wrote = output
            .put_sparse_with(|out| out.zeros(1 << 20).map_err(|source| Error::Output { to: String::new(), source }));
        assert!(wrote.unwrap_err().to_string().starts_with("cannot write a pipe: Broken pipe"));
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        Output::file(&link).unwrap().write(b"new").unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_link_to_nothing_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("gone"), &link).unwrap();
        assert!(
            Output::file(&link)
                .unwrap_err()
                .to_string()
                .ends_with("it is a link to a file that does not exist; remove the link or name another file")
        );
        assert!(link.is_symlink());
    }

    #[test]
    fn what_is_open_already_is_told_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/stderr", &link).unwrap();
        let of = |path: &str| descriptor(Path::new(path));
        assert_eq!((of("/dev/stdout"), of("/dev/fd/2"), of("/proc/self/fd/7")), (Some(1), Some(2), Some(7)));
        assert_eq!(
            (of(link.to_str().unwrap()), of("/dev/null"), of("stdout"), of("/dev/fd")),
            (Some(2), None, None, None)
        );
        // A file may be open several times in one process, at different positions.
        let file = File::create(dir.path().join("file")).unwrap();
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let said = Output::file(Path::new(&path)).unwrap_err().to_string();
        assert!(said.contains("no file that is already open but standard output and standard error"), "{said}");
        let (_reader, writer) = std::io::pipe().unwrap();
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        assert!(!Output::file(Path::new(&path)).unwrap().is_file());
    }

    #[test]
    fn a_full_device_is_told_and_stays_a_device() {
        let full = Path::new("/dev/full");
        let e = Output::file(full).unwrap().write(b"x").unwrap_err();
        assert!(e.to_string().starts_with("cannot write /dev/full: No space left on device"), "{e}");
        assert!(!full.metadata().unwrap().is_file());
    }

    #[test]
    fn a_directory_or_a_missing_one_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &Path| Output::file(path).unwrap_err().to_string();
        assert!(said(dir.path()).ends_with(": it is a directory; name a file in it"));
        let missing = dir.path().join("no");
        let e = said(&missing.join("report"));
        let why = format!(": the directory {} does not exist; make it first", missing.display());
        assert!(e.ends_with(&why) && !e.contains(".wstate-"), "{e}");
        std::fs::write(&missing, "").unwrap();
        let e = said(&missing.join("report"));
        assert!(e.ends_with(" is no directory; name a file in a directory"), "{e}");
    }
}
