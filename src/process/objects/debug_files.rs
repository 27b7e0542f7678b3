//! Finds the separate debug file of a loaded file: by build id, or by the name in `.gnu_debuglink`.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{ObjectData, debuglink};
use crate::process::Mapping;
use crate::process::debuginfod::Wanted;
use crate::process::elf::{self, Headers};
use crate::process::files::{self, FileLocation, Mapped};

use super::loader::Loader;

impl Loader<'_> {
    fn debug_dirs(&self) -> Vec<PathBuf> {
        let mut dirs = self.search.debug_dirs.clone();
        if let Some(root) = &self.search.sysroot {
            dirs.push(root.join("usr/lib/debug"));
        }
        dirs.push(PathBuf::from("/usr/lib/debug"));
        dirs
    }

    pub(super) fn debug_by_build_id(&self, id: &[u8]) -> Option<(PathBuf, ObjectData)> {
        let (first, rest) = id.split_first()?;
        let name = format!(".build-id/{first:02x}/{}.debug", elf::hex(rest));
        let mut places: Vec<FileLocation> =
            self.debug_dirs().into_iter().map(|d| FileLocation::named(d.join(&name))).collect();
        places.extend(self.search.fetched.get(Wanted::Debug, id).map(FileLocation::user));
        let mut left = places.as_slice();
        while let Ok((at, opened)) = files::open_first(left) {
            let (place, rest) = left.get(at..)?.split_first()?;
            let file = files::map(opened, place.path());
            let is_it =
                |file: &Mapped| Headers::of_file(file).is_some_and(|h| h.build_id_of_file(file).as_deref() == Some(id));
            if let Ok(file) = file.map_err(drop).and_then(|file| if is_it(&file) { Ok(file) } else { Err(()) }) {
                return Some((place.path().to_path_buf(), ObjectData::File(file)));
            }
            left = rest;
        }
        None
    }

    /// Places of the file that was opened as `opened`, whose neighbours may be its debug file. A link of the kernel
    /// does not tell the directory of a file, so the other candidates and `path` are places too.
    pub(super) fn near(&self, path: &Path, mapping: &Mapping, opened: &FileLocation) -> Vec<FileLocation> {
        let mut near = vec![opened.clone()];
        near.extend(self.target.file_candidates(mapping));
        near.push(FileLocation::named(path));
        near
    }

    pub(super) fn debug_file(
        &self,
        near: &[FileLocation],
        path: &Path,
        data: &[u8],
        id: Option<&[u8]>,
    ) -> Option<(PathBuf, ObjectData)> {
        if let Some(found) = id.and_then(|id| self.debug_by_build_id(id)) {
            return Some(found);
        }
        use object::Object;
        let file = object::File::parse(data).ok()?;
        let (name, crc) = file.gnu_debuglink().ok()??;
        let name = Path::new(OsStr::from_bytes(name)).file_name()?;
        let mut places = Vec::new();
        for near in near {
            places.extend(near.beside(Path::new(name)));
            places.extend(near.beside(&Path::new(".debug").join(name)));
        }
        if let Some(inside) = path.parent().and_then(|p| p.strip_prefix("/").ok()) {
            places.extend(self.debug_dirs().into_iter().map(|d| FileLocation::named(d.join(inside).join(name))));
        }
        places.extend(self.search.debug_dirs.iter().map(|d| FileLocation::named(d.join(name))));
        let headers = Headers::of_file(data)?;
        let mut seen = HashSet::new();
        places.retain(|place| seen.insert(place.clone()));
        let mut left = places.as_slice();
        while let Ok((at, opened)) = files::open_first(left) {
            let (place, rest) = left.get(at..)?.split_first()?;
            match debuglink::check(&opened, &headers, crc) {
                Ok(true) => {
                    let file = files::map(opened, place.path()).ok()?;
                    return Some((place.path().to_path_buf(), ObjectData::File(file)));
                }
                // The debuglink may name the stripped file itself (same name, same directory).
                Ok(false) => {}
                Err(why) => {
                    self.notes
                        .borrow_mut()
                        .push(format!("the debug file {} is not used: {why}", place.path().display()));
                }
            }
            left = rest;
        }
        None
    }
}
