//! Opens files that a target or a user names, in the one way that cannot be used against us. No other place in the
//! code opens a file that somebody else names.
//!
//! - Only regular files are opened. A device or a FIFO is looked at first, without opening it, because opening has
//!   effects or waits.
//! - A path that a target names stays in the target's root: no link leads out of it, and none of the links of `/proc`
//!   is followed. Files of the kernel, such as `/proc/kmsg`, are not read.
//! - A mount may not answer. The file is opened by another process ([`helper`]), which can be left alone. If a file
//!   is on a file system that others serve (network, FUSE), that process copies it, so that none of its pages is
//!   waited for later.
//! - A mapped file may be shortened. Its missing pages then read as zeros (`guard`), and the file counts as changed.
//!   It also counts as changed if its size or time differ at the end. What was read of a changed file is not used
//!   ([`Steady`]).

pub(crate) mod guard;
// Only the program runs one, see `helper::enable`.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub mod helper;
mod resolve;

use crate::limits;
use std::cell::RefCell;
use std::fs::{File, FileType};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Who says where a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum By {
    /// The user, who may use any link.
    User,
    /// The kernel: the path is a link in `/proc/PID`, which leads to the very file.
    Kernel,
    /// A target, or a file that the target names.
    Target,
}

/// A path at which a file may be, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileLocation {
    path: PathBuf,
    /// The directory that nothing may lead out of, if there is one. `path` begins with it.
    root: Option<PathBuf>,
    by: By,
}

impl FileLocation {
    /// A path that the user gave.
    pub fn user(path: impl Into<PathBuf>) -> FileLocation {
        FileLocation { path: path.into(), root: None, by: By::User }
    }

    /// A link of the kernel to an open or mapped file: `/proc/PID/exe`, `/proc/PID/map_files/...`.
    pub fn kernel(path: impl Into<PathBuf>) -> FileLocation {
        FileLocation { path: path.into(), root: None, by: By::Kernel }
    }

    /// A path that a target names, if the target's files are this system's own.
    pub fn named(path: impl Into<PathBuf>) -> FileLocation {
        FileLocation { path: path.into(), root: None, by: By::Target }
    }

    /// A path that a target names whose files are below `root`. Links are followed as if `root` were the root
    /// directory.
    pub fn within(root: &Path, path: &Path) -> FileLocation {
        let inside = path.strip_prefix("/").unwrap_or(path);
        FileLocation { path: root.join(inside), root: Some(root.to_path_buf()), by: By::Target }
    }

    /// Path of the location, for messages and to tell locations apart.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the location is a link of the kernel. Such a link leads for certain to the file that is open or
    /// mapped.
    pub fn is_kernel(&self) -> bool {
        self.by == By::Kernel
    }

    /// The location of a file that this one names and that lies in the same directory. `None` for a link of the
    /// kernel, which is in no directory of files.
    pub fn beside(&self, name: &Path) -> Option<FileLocation> {
        let path = self.path.parent()?.join(name);
        match self.by {
            By::Kernel => None,
            // The user trusts the file's directory, not what the file says.
            By::User | By::Target => Some(FileLocation { path, root: self.root.clone(), by: By::Target }),
        }
    }
}

/// Tells one state of a file from another: which file it is, its size, and when it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Device number of the file system.
    pub device: u64,
    /// Inode number of the file in that file system.
    pub inode: u64,
    /// Size of the file in bytes.
    pub size: u64,
    /// Time of the last change of the contents, in seconds and nanoseconds.
    pub modified: (i64, i64),
}

impl Identity {
    fn of(file: &File) -> io::Result<Identity> {
        let m = file.metadata()?;
        Ok(Identity { device: m.dev(), inode: m.ino(), size: m.len(), modified: (m.mtime(), m.mtime_nsec()) })
    }
}

/// A regular file, open for reading.
#[derive(Debug)]
pub struct Opened {
    /// The file, or a copy of it that nobody changes.
    pub file: File,
    /// State of the file that was named, when it was opened.
    pub identity: Identity,
    is_copy: bool,
}

/// Why a file is not opened, where the system has no error number for it.
const REFUSALS: [&str; 6] = [
    "it is a directory, not a regular file",
    "it is a FIFO, not a regular file",
    "it is a socket, not a regular file",
    "it is a device, not a regular file",
    "it is not a regular file",
    "it is not a file on a disk",
];

/// The error of kind `InvalidInput` with one of the [`REFUSALS`].
fn refused(number: usize) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, REFUSALS.get(number).copied().unwrap_or(REFUSALS[4]))
}

fn not_regular(kind: FileType) -> io::Error {
    let is = [kind.is_dir(), kind.is_fifo(), kind.is_socket(), kind.is_char_device() || kind.is_block_device()];
    refused(is.iter().position(|is| *is).unwrap_or(4))
}

/// File systems whose contents are made up by the kernel, and where reading may have effects.
const MADE_UP: [i64; 13] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x4249_4e4d, // binfmt_misc
    0xf97c_ff8c, // selinuxfs
];

/// File systems whose pages this kernel has in memory or reads from a disk. With any other file system, waiting for a
/// page may never end.
const OWN: [i64; 24] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x9584_58f6, // hugetlbfs
    0x794c_7630, // overlayfs
    0x7371_7368, // squashfs
    0xe0f5_e1e2, // erofs
    0x28cd_3d45, // cramfs
    0x9660,      // iso9660
    0x1501_3346, // udf
    0xf2f5_2010, // f2fs
    0x2fc1_2fc1, // zfs
    0xca45_1a4e, // bcachefs
    0x4d44,      // vfat
    0x2011_bab0, // exfat
    0x7366_746e, // ntfs3
    0x5265_4973, // reiserfs
    0x3153_464a, // jfs
    0x3434,      // nilfs2
    0x2405_1905, // ubifs
    0x72b6,      // jffs2
    0x5346_544e, // ntfs
];

/// Returns the kind of the file system that a file is on (`f_type` of `statfs`).
fn file_system(file: &impl AsFd) -> io::Result<i64> {
    resolve::file_system(file.as_fd())
}

/// Opens a file in this process, which waits for as long as the file system does not answer.
fn open_here(location: &FileLocation) -> io::Result<File> {
    let found = match location.by {
        By::User | By::Kernel => File::options().read(true).custom_flags(libc::O_PATH).open(&location.path)?,
        By::Target => {
            let inside = location.root.as_ref().and_then(|root| location.path.strip_prefix(root).ok());
            File::from(resolve::find(location.root.as_deref(), inside.unwrap_or(&location.path))?)
        }
    };
    let kind = found.metadata()?.file_type();
    if !kind.is_file() {
        return Err(not_regular(kind));
    }
    // Some file systems do not tell their kind.
    if location.by == By::Target && file_system(&found).is_ok_and(|kind| MADE_UP.contains(&kind)) {
        return Err(refused(5));
    }
    // Opens the very file that was looked at, whatever is at its path by now.
    let own = format!("/proc/self/fd/{}", found.as_raw_fd());
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(own)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(not_regular(kind)) }
}

/// In a root without `/proc`, every file seems to be missing, because that is how [`open_here`] opens it. The error says so
/// instead.
fn or_no_proc(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::NotFound && !Path::new("/proc/self/fd").exists() {
        return io::Error::other(
            "files are opened through /proc, which is not here; mount it first: mount -t proc proc /proc",
        );
    }
    error
}

/// Opens a regular file for reading.
///
/// # Errors
/// The file is not there, may not be read, is no regular file, is not in the target's root, or did not answer. It is
/// also an error if the file has already changed once while it was read.
pub fn open(location: &FileLocation) -> io::Result<Opened> {
    open_first(std::slice::from_ref(location)).map(|(_, opened)| opened)
}

/// Opens a file at the first of these locations at which one can be opened, and returns the index of that location.
///
/// # Errors
/// None of the locations has a file that can be opened. The error is that of the last location.
pub fn open_first(locations: &[FileLocation]) -> io::Result<(usize, Opened)> {
    let here = || {
        let mut last = io::Error::from(ErrorKind::NotFound);
        for (index, location) in locations.iter().enumerate() {
            match open_here(location)
                .and_then(|file| Ok(Opened { identity: Identity::of(&file)?, file, is_copy: false }))
            {
                Ok(opened) => return Ok((index, opened)),
                Err(e) => last = e,
            }
        }
        Err(last)
    };
    let (index, opened) = helper::open(locations).unwrap_or_else(here).map_err(or_no_proc)?;
    let id = (opened.identity.device, opened.identity.inode);
    if CHANGES.with_borrow(|changes| changes.refused.iter().any(|r| r.0 == id)) {
        return Err(io::Error::other("it changed while it was read; try again when nothing writes to it"));
    }
    Ok((index, opened))
}

/// Finds where the next data or the next hole of a file is, from the offset `from` on. `what` is `SEEK_DATA` or
/// `SEEK_HOLE`.
///
/// # Errors
/// There is no more data or hole (`ENXIO`), or the file system does not tell.
pub(crate) fn seek(file: &File, from: u64, what: i32) -> io::Result<u64> {
    resolve::seek(file.as_fd(), from, what)
}

/// Device and inode number of the file that a user names, if it is a regular file that can be opened.
#[cfg(feature = "cli")]
pub fn same_file(path: &Path) -> Option<(u64, u64)> {
    let opened = open(&FileLocation::user(path)).ok()?;
    Some((opened.identity.device, opened.identity.inode))
}

/// Opens a regular file that the user names. Returns the file and its size in bytes.
///
/// # Errors
/// The errors are those of [`open`].
#[cfg(any(test, feature = "internals"))]
pub fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let opened = open(&FileLocation::user(path))?;
    Ok((opened.file, opened.identity.size))
}

/// Why there is no directory at `path`, which the user names, or `None` if there is one. This is asked in the way in
/// which files are opened, so that a mount which does not answer is not waited for.
pub(crate) fn no_directory(path: &Path) -> Option<String> {
    // Of all that cannot be opened, only a directory can be followed by a dot.
    match open(&FileLocation::user(path.join("."))) {
        Err(e) if e.kind() == ErrorKind::InvalidInput => None,
        Err(e) if e.kind() == ErrorKind::NotFound => Some("there is no such directory".to_string()),
        Err(e) if e.kind() == ErrorKind::NotADirectory => Some("it is no directory".to_string()),
        Err(e) => Some(format!("it cannot be looked into: {e}")),
        Ok(_) => Some("it is no directory".to_string()),
    }
}

/// Reads a regular file of at most `most` bytes that the user names.
///
/// # Errors
/// The errors are those of [`open`], and that the file is larger than `most`.
pub fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_location(&FileLocation::user(path), most)
}

/// Reads a file as `read_file` does, at any location.
///
/// # Errors
/// The errors are those of [`read_file`].
pub fn read_location(location: &FileLocation, most: u64) -> io::Result<Vec<u8>> {
    let opened = open(location)?;
    let size = opened.identity.size;
    let mut bytes = Vec::new();
    // One byte more is asked for, because the file may have grown since its size was read.
    if size > most || opened.file.take(most + 1).read_to_end(&mut bytes)? as u64 > most {
        let why = format!("it has {size} bytes, and wstate reads at most {most}");
        return Err(io::Error::new(ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// Maps a file that the user names for reading. An empty file cannot be mapped: that is an error of kind
/// `UnexpectedEof`.
///
/// # Errors
/// The errors are those of [`open`], and that there is no address space for the file.
pub fn map_file(path: &Path) -> io::Result<Mapped> {
    map_location(&FileLocation::user(path))
}

/// Maps a file as `map_file` does, at any location.
///
/// # Errors
/// The errors are those of [`map_file`].
pub fn map_location(location: &FileLocation) -> io::Result<Mapped> {
    map(open(location)?, location.path())
}

/// Maps a file as [`map_file`] does, if the file is open already. `path` is only used to name the file in notes.
///
/// # Errors
/// The errors are those of [`map_file`].
pub fn map(opened: Opened, path: &Path) -> io::Result<Mapped> {
    let Opened { file, identity, is_copy } = opened;
    if file.metadata()?.len() == 0 {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file is empty"));
    }
    let bytes = guard::Guarded::map(&file)?;
    // A file that is not kept open is only checked by the guard, which sees whether it was shortened. The limit of
    // open files is no reason to look at fewer files.
    let kept = CHANGES.with_borrow_mut(|changes| {
        let room = !is_copy && changes.kept_open < limits::MAX_FILES_KEPT_OPEN;
        changes.kept_open += usize::from(room);
        room
    });
    Ok(Mapped { bytes, identity, path: path.to_path_buf(), file: kept.then_some(file) })
}

/// A file that is mapped for reading. If somebody shortens it, that does no harm: see [`Steady`].
pub struct Mapped {
    bytes: guard::Guarded,
    identity: Identity,
    path: PathBuf,
    file: Option<File>,
}

impl Mapped {
    /// State of the file when it was opened.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether the file has changed since it was opened.
    pub fn has_changed(&self) -> bool {
        let other = |file: &File| Identity::of(file).is_ok_and(|now| now != self.identity);
        self.bytes.was_shortened() || self.file.as_ref().is_some_and(other)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let changed = self.has_changed();
        // A thread that is ending has lost its list, and nobody is left who would ask for it.
        let _ = CHANGES.try_with(|changes| {
            let mut changes = changes.borrow_mut();
            changes.kept_open -= usize::from(self.file.is_some()).min(changes.kept_open);
            let id = (self.identity.device, self.identity.inode);
            if changed && changes.seen.len() < limits::MAX_CHANGED_FILES && !changes.seen.iter().any(|s| s.0 == id) {
                changes.seen.push((id, self.path.clone()));
            }
        });
    }
}

impl std::ops::Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

type Changed = ((u64, u64), PathBuf);

#[derive(Default)]
struct Changes {
    /// Files that had changed when this thread dropped their mappings.
    seen: Vec<Changed>,
    /// Files that have changed and are not opened any more.
    refused: Vec<Changed>,
    kept_open: usize,
}

thread_local! {
    static CHANGES: RefCell<Changes> = RefCell::default();
}

/// Repeats work that reads files, without the files that were changed while they were read.
///
/// A file counts as changed if its size or the time of its last change differ when its mapping is dropped, or if a
/// page of it was gone. Results from such a file may be wrong, so all of the work is done again. A file that has
/// changed once is not opened again.
pub struct Steady(());

impl Steady {
    /// Begins such work, with no file known to have changed.
    pub fn begin() -> Steady {
        CHANGES.with_borrow_mut(|changes| {
            changes.seen.clear();
            changes.refused.clear();
        });
        Steady(())
    }

    /// Whether the work must be done once more, because files that it has read and dropped have changed.
    pub fn again(&self) -> bool {
        CHANGES.with_borrow_mut(|changes| {
            let seen = std::mem::take(&mut changes.seen);
            let more = !seen.is_empty() && changes.refused.len() < limits::MAX_CHANGED_FILES;
            changes.refused.extend(seen);
            more
        })
    }

    /// Whether so many files have changed that the last round of the work still used some of them.
    pub fn is_given_up(&self) -> bool {
        CHANGES.with_borrow(|changes| changes.refused.len() > limits::MAX_CHANGED_FILES)
    }

    /// Whether the file with this path has changed.
    pub fn is_changed(&self, path: &Path) -> bool {
        CHANGES.with_borrow(|changes| changes.refused.iter().any(|(_, p)| p == path))
    }

    /// Lines that tell the reader of a report which files have changed.
    pub fn notes(&self) -> Vec<String> {
        CHANGES.with_borrow(|changes| {
            let note = |(_, path): &Changed| {
                format!(
                    "{} changed while it was read and is not used; try again when nothing writes to it",
                    path.display()
                )
            };
            changes.refused.iter().map(note).collect()
        })
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        CHANGES.with_borrow_mut(|changes| {
            changes.seen.clear();
            changes.refused.clear();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let odd = [
            (fifo.as_path(), "FIFO"),
            (&link, "FIFO"),
            (dir.path(), "directory"),
            (&dir.path().join("socket"), "socket"),
            (Path::new("/dev/null"), "device"),
        ];
        for (path, what) in odd {
            for location in [FileLocation::user(path), FileLocation::kernel(path), FileLocation::named(path)] {
                let Err(e) = map_location(&location) else { panic!("{location:?}") };
                assert_eq!(e.kind(), ErrorKind::InvalidInput, "{location:?}");
                assert_eq!(e.to_string(), format!("it is a {what}, not a regular file"), "{location:?}");
            }
        }
        // A user may have some of the kernel's files read, a target none.
        assert!(open(&FileLocation::user("/proc/self/maps")).is_ok());
        assert!(
            open(&FileLocation::named("/proc/1/maps")).is_err()
                && open(&FileLocation::named("/sys/kernel/notes")).is_err()
        );
    }

    #[test]
    fn work_on_files_that_change_is_done_without_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: usize| dir.path().join(n.to_string());
        for n in 0..4 {
            std::fs::write(path(n), [1; 0x3000]).unwrap();
        }
        let grow = |n: usize| std::fs::write(path(n), [2; 0x4000]).unwrap();
        let steady = Steady::begin();
        let mut rounds = Vec::new();
        loop {
            let files: Vec<_> = (0..4).map(|n| map_file(&path(n))).collect();
            rounds.push(files.iter().filter(|file| file.is_ok()).count());
            match rounds.len() {
                1 => [0, 2].into_iter().for_each(grow),
                2 => grow(1),
                _ => {}
            }
            drop(files);
            if !steady.again() {
                break;
            }
        }
        assert_eq!(rounds, [4, 2, 1]);
        let changed: Vec<bool> = (0..4).map(|n| steady.is_changed(&path(n))).collect();
        assert_eq!((changed, steady.notes().len()), (vec![true, true, true, false], 3));
        drop(steady);
        assert!(map_file(&path(0)).is_ok(), "other work begins anew");
    }

    #[test]
    fn so_many_files_are_kept_open_and_so_many_may_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: usize| dir.path().join(n.to_string());
        let count = limits::MAX_FILES_KEPT_OPEN + 3;
        (0..count).for_each(|n| std::fs::write(path(n), [1; 0x3000]).unwrap());
        let steady = Steady::begin();
        let mut files: Vec<_> = (0..count).map(|n| map_file(&path(n)).unwrap()).collect();
        assert_eq!(files.iter().filter(|file| file.file.is_some()).count(), limits::MAX_FILES_KEPT_OPEN);
        files.truncate(1);
        files.push(map_file(&path(1)).unwrap());
        assert!(files[1].file.is_some(), "there is room again");
        drop(files);
        for round in 0..2 {
            let files: Vec<_> = (0..count).filter_map(|n| map_file(&path(n)).ok()).collect();
            (0..count).for_each(|n| std::fs::write(path(n), vec![1; 0x4000 + round]).unwrap());
            drop(files);
            assert_eq!((steady.again(), steady.is_given_up()), (round == 0, round > 0));
            assert!(steady.notes().len() <= 2 * limits::MAX_CHANGED_FILES);
        }
    }
}
