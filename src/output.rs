//! Where results go: standard output, or a file that is never seen half written.

use crate::error::Error;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// An opened destination. Opened before the work begins, so that a place that cannot be written is known before a
/// process is stopped for nothing.
#[derive(Debug)]
pub struct Output {
    name: String,
    to: To,
}

#[derive(Debug)]
enum To {
    Stdout,
    /// A device or a pipe: written as it is, renaming over it would replace it.
    Special(File),
    Beside(Beside),
}

/// A temporary file beside `path`, with the mode of the file it will replace.
#[derive(Debug)]
struct Beside {
    temporary: NamedTempFile,
    path: PathBuf,
    mode: Option<Permissions>,
}

impl Beside {
    fn persist(self) -> io::Result<()> {
        if let Some(mode) = self.mode {
            self.temporary.as_file().set_permissions(mode)?;
        }
        self.temporary.persist(self.path).map_err(|e| e.error)?;
        Ok(())
    }
}

impl Output {
    /// Standard output.
    pub fn stdout() -> Output {
        Output { name: "standard output".to_string(), to: To::Stdout }
    }

    /// A file. What it holds now stays until [`Output::write`] has succeeded.
    pub fn file(path: &Path) -> Result<Output, Error> {
        let name = path.display().to_string();
        let to = open(path).map_err(|source| Error::Output { to: name.clone(), source })?;
        Ok(Output { name, to })
    }

    /// A file if there is a name, else standard output.
    pub fn file_or_stdout(path: Option<&Path>) -> Result<Output, Error> {
        path.map_or(Ok(Output::stdout()), Output::file)
    }

    /// Writes everything, to where it belongs.
    pub fn write(mut self, bytes: &[u8]) -> Result<(), Error> {
        self.put(bytes)?;
        self.commit()
    }

    /// Writes everything; a file still holds what it held. A reader that has closed its end of a pipe has seen enough: that
    /// is no error.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let result = match &mut self.to {
            To::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            To::Special(file) => file.write_all(bytes),
            To::Beside(beside) => beside.temporary.as_file_mut().write_all(bytes),
        };
        match result {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|source| Error::Output { to: self.name.clone(), source }),
        }
    }

    /// Lets `work` write piece by piece with holes for zeros, where there is a file. If it fails, a file keeps what it
    /// holds.
    pub fn write_sparse_with<T: Default>(
        self,
        work: impl FnOnce(&mut dyn SparseWrite) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match self.to {
            To::Beside(mut beside) => {
                let failed = |source| Error::Output { to: self.name.clone(), source };
                let mut out = Holes { file: beside.temporary.as_file_mut(), end: 0 };
                let done = match work(&mut out) {
                    Err(Error::Output { source, .. }) => Err(failed(source)),
                    other => other,
                }?;
                out.finish().map_err(failed)?;
                beside.persist().map(|()| done).map_err(failed)
            }
            to => Output { name: self.name, to }.put_with(|out| work(&mut Dense(out))),
        }
    }

    /// Gives the file what [`Output::put`] has written, in this process or in a child of it.
    pub fn commit(self) -> Result<(), Error> {
        match self.to {
            To::Beside(beside) => beside.persist().map_err(|source| Error::Output { to: self.name, source }),
            To::Stdout | To::Special(_) => Ok(()),
        }
    }

    /// Writes several files, in this order: none of them if there is no room for all.
    pub fn write_files<'a>(files: impl IntoIterator<Item = (&'a Path, &'a [u8])>) -> Result<(), Error> {
        let put = files.into_iter().map(|(path, bytes)| {
            let mut output = Output::file(path)?;
            output.put(bytes)?;
            Ok(output)
        });
        put.collect::<Result<Vec<Output>, Error>>()?.into_iter().try_for_each(Output::commit)
    }

    /// Lets `work` write piece by piece, as [`Output::put`] does. If it fails, there is nothing to [`Output::commit`].
    pub fn put_with<T: Default>(&mut self, work: impl FnOnce(&mut dyn Write) -> Result<T, Error>) -> Result<T, Error> {
        let mut stdout;
        let to: &mut dyn Write = match &mut self.to {
            To::Stdout => {
                stdout = io::stdout().lock();
                &mut stdout
            }
            To::Special(file) => file,
            To::Beside(beside) => beside.temporary.as_file_mut(),
        };
        let mut out = BufWriter::new(to);
        let flush = |mut out: BufWriter<_>| out.flush().map_err(|source| Error::Output { to: String::new(), source });
        let result = work(&mut out).and_then(|done| flush(out).map(|()| done));
        match result {
            Err(Error::Output { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(T::default()),
            Err(Error::Output { source, .. }) => Err(Error::Output { to: self.name.clone(), source }),
            other => other,
        }
    }
}

/// Where long runs of zeros need not be written.
pub trait SparseWrite: Write {
    /// `count` zeros.
    ///
    /// # Errors
    /// As [`Write::write_all`].
    fn zeros(&mut self, count: u64) -> io::Result<()>;
}

/// Zeros are written.
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
    /// Bytes so far, with the zeros at the end that are not there yet.
    end: u64,
}

/// Bytes that are worth a hole.
const HOLE: usize = 4096;

impl Holes<'_> {
    fn finish(self) -> io::Result<()> {
        self.file.set_len(self.end)
    }
}

impl Write for Holes<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let blocks: Vec<&[u8]> = bytes.chunks(HOLE).collect();
        let mut at = 0;
        for run in blocks.chunk_by(|a, b| is_hole(a) == is_hole(b)) {
            let len: usize = run.iter().map(|block| block.len()).sum();
            if run.iter().any(|block| !is_hole(block)) {
                self.file.write_all_at(&bytes[at..at + len], self.end + at as u64)?;
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
    // A link stays a link: the file that it names is replaced.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let old = std::fs::metadata(&path).ok();
    match &old {
        Some(m) if m.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Some(m) if !m.is_file() => return Ok(To::Special(File::options().write(true).open(&path)?)),
        // A file that may not be written must not be replaced because its directory may.
        Some(_) => drop(File::options().append(true).open(&path)?),
        None => {}
    }
    let dir = match path.parent() {
        Some(d) if !d.as_os_str().is_empty() => d,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".wstate-")
        // What the umask leaves of it, as for any new file.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .map_err(without_temporary_path)?;
    Ok(To::Beside(Beside { temporary, path, mode: old.map(|m| m.permissions()) }))
}

/// tempfile appends the temporary path, which the user did not choose.
fn without_temporary_path(e: io::Error) -> io::Error {
    let text = e.to_string();
    io::Error::new(e.kind(), text.split(" at path ").next().unwrap_or(&text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            Err(Error::NotFound { what: "the rest".to_string() })
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
    fn a_full_device_is_told_and_stays_a_device() {
        let full = Path::new("/dev/full");
        let e = Output::file(full).unwrap().write(b"x").unwrap_err();
        assert!(e.to_string().starts_with("cannot write /dev/full: No space left on device"), "{e}");
        assert!(!full.metadata().unwrap().is_file());
    }

    #[test]
    fn a_directory_or_a_missing_one_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Output::file(dir.path()).unwrap_err().to_string().contains("directory"));
        let e = Output::file(&dir.path().join("no/report")).unwrap_err().to_string();
        assert!(e.contains("No such file or directory") && !e.contains(".wstate-"), "{e}");
    }
}
