//! Advice with commands that work as they stand. The library cannot know by which path this program is found; here
//! that is known.
//!
//! `sudo` looks for programs in directories of its own (`secure_path` of sudoers), and `cargo install` puts them
//! elsewhere. So where sudo would not find this program, its whole path is put into the command.

use crate::error::Error;
use crate::phrases::shell_word;
use crate::process::files::same_file;
use std::path::{Path, PathBuf};

/// The directories in which sudo looks for programs, as sudoers of the distributions have them.
const SECURE_PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// The command as texts have it that do not know this program's path.
const PLAIN: &str = "sudo wstate";

/// The command with which sudo starts a program of wstate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sudo(String);

impl Default for Sudo {
    /// The command for a program that sudo finds by its name.
    fn default() -> Sudo {
        Sudo(PLAIN.to_string())
    }
}

impl Sudo {
    /// The command for this program.
    pub fn for_this_program() -> Sudo {
        this_program().map_or_else(Sudo::default, |path| Sudo::of(&path))
    }

    fn of(program: &Path) -> Sudo {
        let found = SECURE_PATH.iter().map(|directory| Path::new(directory).join("wstate"));
        match found.filter_map(|path| same_file(&path)).next() {
            Some(first) if same_file(program) == Some(first) => Sudo::default(),
            _ => Sudo(format!("sudo {}", shell_word(&program.to_string_lossy()))),
        }
    }

    /// The text `advice` with this command wherever it says `sudo wstate`.
    pub fn put_into(&self, advice: &str) -> String {
        advice.replace(PLAIN, &self.0)
    }

    /// What the user can try after `error`.
    pub fn hint(&self, error: &Error) -> Option<String> {
        let hint = error.hint().map(|hint| self.put_into(&hint));
        match error {
            Error::Attach { why, .. } if why.contains("sudo") => {
                Some(format!("{}; with sudo, begin the command with: {}", hint.unwrap_or_default(), self.0))
            }
            _ => hint,
        }
    }
}

/// The path of this program. A program that was replaced or removed while it runs is at no path.
pub fn this_program() -> Option<PathBuf> {
    std::env::current_exe().ok().filter(|path| same_file(path).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_is_told_the_whole_path_of_a_program_that_it_does_not_find() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("wstate");
        std::fs::write(&program, "").unwrap();
        let sudo = Sudo::of(&program);
        let command = format!("sudo {}", program.display());
        assert_eq!(
            sudo.put_into("sudo wstate attach 7; again: sudo wstate doctor 7"),
            format!("{command} attach 7; again: {command} doctor 7")
        );
        assert_eq!(sudo.put_into("use sudo"), "use sudo");
        let attach = |why: &str| sudo.hint(&Error::Attach { pid: 7, why: why.to_string() });
        let told = format!("try: wstate doctor 7; with sudo, begin the command with: {command}");
        assert_eq!(attach("it belongs to user id 1; run wstate with sudo"), Some(told));
        assert_eq!(attach("it has just ended").as_deref(), Some("try: wstate doctor 7"));
        assert_eq!(Sudo::default().put_into("sudo wstate attach 7"), "sudo wstate attach 7");
    }
}
