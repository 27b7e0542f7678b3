//! Follows paths that a target names, without leaving a root directory.
#![allow(unsafe_code)] // For system calls that the standard library does not have.

use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// Number of symbolic links that are followed on one path. The kernel has the same limit.
const MAX_LINKS: usize = 40;
const PROC: i64 = 0x9fa0;

/// Returns the kind of the file system that an open file is on (`f_type` of `statfs`).
pub(super) fn file_system(fd: BorrowedFd<'_>) -> io::Result<i64> {
    // SAFETY: the buffer is as large as the kernel writes.
    let (result, found) = unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        (libc::fstatfs(fd.as_raw_fd(), &raw mut found), found)
    };
    // The kind is a number of 32 bits; C libraries declare it with more of them, with a sign or without.
    if result == 0 { Ok(i64::from(found.f_type as u32)) } else { Err(io::Error::last_os_error()) }
}

/// Calls `lseek` with `what`, which may be a value that the standard library does not have.
pub(super) fn seek(fd: BorrowedFd<'_>, from: u64, what: i32) -> io::Result<u64> {
    let from = libc::off_t::try_from(from).map_err(|_| io::Error::from_raw_os_error(libc::ENXIO))?;
    // SAFETY: the call only moves a file position that nobody else uses.
    let found = unsafe { libc::lseek(fd.as_raw_fd(), from, what) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// Finds the file that `path` leads to, without opening it for reading. With a `root`, the path begins there, and no
/// link or `..` leads out of it.
pub(super) fn find(root: Option<&Path>, path: &Path) -> io::Result<OwnedFd> {
    let root = root.map(|root| open_at(None, root, libc::O_DIRECTORY)).transpose()?;
    match by_kernel(root.as_ref(), path) {
        // Kernels before 5.6 do not have `openat2`, and seccomp filters may not know it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => by_steps(root, path),
        found => found,
    }
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(fd) {
        // SAFETY: the kernel has just made this file descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open_at(directory: Option<&OwnedFd>, path: &Path, flags: libc::c_int) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    let directory = directory.map_or(libc::AT_FDCWD, AsRawFd::as_raw_fd);
    // SAFETY: the path is a C string.
    owned(unsafe { libc::openat(directory, path.as_ptr(), flags | libc::O_PATH | libc::O_CLOEXEC) }.into())
}

fn by_kernel(root: Option<&OwnedFd>, path: &Path) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    // SAFETY: the structure consists of plain numbers, and its other fields should be zero.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_NO_MAGICLINKS | if root.is_some() { libc::RESOLVE_IN_ROOT } else { 0 };
    let directory = root.map_or(libc::AT_FDCWD, AsRawFd::as_raw_fd);
    let mut tries = 0;
    loop {
        // SAFETY: path and structure are valid, and the size is that of the structure.
        let fd = unsafe {
            libc::syscall(libc::SYS_openat2, directory, path.as_ptr(), &raw const how, size_of::<libc::open_how>())
        };
        tries += 1;
        match owned(fd) {
            // The kernel says this while somebody renames directories of the path.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && tries < 8 => {}
            found => return found,
        }
    }
}

/// One component of a path.
enum Part {
    Root,
    Parent,
    Name(OsString),
}

fn parts(path: &Path) -> Vec<Part> {
    let part = |component: Component<'_>| match component {
        Component::RootDir => Some(Part::Root),
        Component::ParentDir => Some(Part::Parent),
        Component::Normal(name) => Some(Part::Name(name.to_os_string())),
        Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}

fn by_steps(root: Option<OwnedFd>, path: &Path) -> io::Result<OwnedFd> {
    let failed = |code| Err(io::Error::from_raw_os_error(code));
    let confined = root.is_some();
    let base = match root {
        Some(root) => root,
        None => open_at(None, Path::new("."), libc::O_DIRECTORY)?,
    };
    let mut passed = vec![base];
    let mut left = VecDeque::from(parts(path));
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        let Some(here) = passed.last() else { return failed(libc::ENOENT) };
        match part {
            Part::Root if confined => passed.truncate(1),
            Part::Root => passed = vec![open_at(None, Path::new("/"), libc::O_DIRECTORY)?],
            Part::Parent if confined => passed.truncate(passed.len().saturating_sub(1).max(1)),
            Part::Parent => passed.push(open_at(Some(here), Path::new(".."), libc::O_DIRECTORY)?),
            Part::Name(name) => {
                let found = open_at(Some(here), Path::new(&name), libc::O_NOFOLLOW)?;
                if !std::fs::File::from(found.try_clone()?).metadata()?.is_symlink() {
                    passed.push(found);
                    continue;
                }
                links += 1;
                if links > MAX_LINKS || file_system(found.as_fd())? == PROC {
                    return failed(libc::ELOOP);
                }
                for part in parts(&link_of(&found)?).into_iter().rev() {
                    left.push_front(part);
                }
            }
        }
    }
    passed.pop().map_or_else(|| failed(libc::ENOENT), Ok)
}

fn link_of(link: &OwnedFd) -> io::Result<PathBuf> {
    let mut bytes = vec![0; libc::PATH_MAX as usize];
    // SAFETY: the buffer is as long as the call says. The path is an empty C string, which means the open link
    // itself.
    let len = unsafe { libc::readlinkat(link.as_raw_fd(), c"".as_ptr(), bytes.as_mut_ptr().cast(), bytes.len()) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    bytes.truncate(len);
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// What `by_steps` and `by_kernel` find, which must be the same: the contents of the file, or an error number.
    fn both(root: Option<&Path>, path: &str) -> Result<String, i32> {
        let read = |found: io::Result<OwnedFd>| {
            let found = found.map_err(|e| e.raw_os_error().unwrap_or(0))?;
            let own = format!("/proc/self/fd/{}", found.as_raw_fd());
            std::fs::read_to_string(own).map_err(|e| e.raw_os_error().unwrap_or(0))
        };
        let open = || root.map(|root| open_at(None, root, libc::O_DIRECTORY).unwrap());
        let path = Path::new(path);
        let steps = read(by_steps(open(), path));
        // Compared only where the kernel has `openat2`.
        match by_kernel(open().as_ref(), path) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {}
            found => assert_eq!(read(found), steps, "{}", path.display()),
        }
        steps
    }

    #[test]
    fn no_link_and_no_dots_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, text) in [("secret", "outside"), ("root/lib/real", "inside"), ("root/secret", "also inside")] {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), text).unwrap();
        }
        for (link, to) in [
            ("root/up", "../secret"),
            ("root/lib/up", "../../../secret"),
            ("root/absolute", at("secret").to_str().unwrap()),
            ("root/inner", "/lib/real"),
            ("root/lib/relative", "real"),
            ("root/directory", "/lib"),
            ("root/loop", "loop"),
            ("root/proc", "/proc/self/root"),
        ] {
            symlink(to, at(link)).unwrap();
        }
        let root = at("root");
        for (path, expected) in [
            ("lib/real", Ok("inside")),
            ("/lib/real", Ok("inside")),
            ("lib/../lib/./real", Ok("inside")),
            ("../secret", Ok("also inside")),
            ("lib/../../../secret", Ok("also inside")),
            ("up", Ok("also inside")),
            ("lib/up", Ok("also inside")),
            ("inner", Ok("inside")),
            ("lib/relative", Ok("inside")),
            ("directory/real", Ok("inside")),
            ("absolute", Err(libc::ENOENT)),
            // In this root /proc is nothing but this link itself, so following it never ends.
            ("proc/etc/passwd", Err(libc::ELOOP)),
            ("loop", Err(libc::ELOOP)),
            ("lib/real/further", Err(libc::ENOTDIR)),
            ("nowhere", Err(libc::ENOENT)),
            ("lib", Err(libc::EISDIR)),
        ] {
            assert_eq!(both(Some(&root), path), expected.map(str::to_string), "{path}");
        }
    }

    #[test]
    fn links_of_proc_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "text").unwrap();
        let open = std::fs::File::open(&file).unwrap();
        let link = dir.path().join("link");
        symlink(format!("/proc/self/fd/{}", open.as_raw_fd()), &link).unwrap();
        let ways = [
            format!("/proc/self/fd/{}", open.as_raw_fd()),
            format!("/proc/self/root{}", file.display()),
            link.display().to_string(),
        ];
        for path in ways {
            assert_eq!(both(None, &path), Err(libc::ELOOP), "{path}");
        }
        assert_eq!(both(None, file.to_str().unwrap()), Ok("text".to_string()));
    }
}
