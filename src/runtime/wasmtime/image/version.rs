//! Which release of the runtime compiled an image.

/// A major version of the runtime. Layouts have changed between majors only, as far as the sources of the newest
/// patch of each major from 36 to 50 tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32);

impl Version {
    /// The oldest version whose layouts are known.
    pub const OLDEST: Version = Version(36);
    /// The first version that can record locals and operand stacks (`Config::guest_debug`).
    pub const GUEST_DEBUG: Version = Version(39);
    /// The newest version whose layouts are known.
    pub const NEWEST: Version = Version(50);

    /// Parses the text in an image: "48", or "36.0.20" as older releases wrote it. An embedder can put anything there
    /// (`ModuleVersionStrategy::Custom`), so this is a hint that the structures themselves must confirm.
    pub fn parse(text: &str) -> Option<Version> {
        let major = text.split('.').next()?;
        let digits = !major.is_empty() && major.len() <= 4 && major.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| major.parse().ok().map(Version)).flatten()
    }

    /// Whether the layouts of this version are known.
    pub fn known(self) -> bool {
        (Version::OLDEST..=Version::NEWEST).contains(&self)
    }

    /// All versions whose layouts are known, newest first.
    pub fn all() -> impl Iterator<Item = Version> {
        (Version::OLDEST.0..=Version::NEWEST.0).rev().map(Version)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_text() {
        assert_eq!(Version::parse("48"), Some(Version(48)));
        assert_eq!(Version::parse("36.0.20"), Some(Version(36)));
        for text in ["", "x", "48x", ".48", "-1", "+48", "99999999999"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
        assert!(!Version(35).known() && Version(36).known() && Version(50).known() && !Version(51).known());
        assert_eq!(Version::all().next(), Some(Version::NEWEST));
    }
}
