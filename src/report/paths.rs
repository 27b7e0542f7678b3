//! Paths of source files as text shows them: without what only says where a machine keeps the sources of others.

/// Whose source file it is, where the path says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Rust's own library.
    Library,
    /// A package from a registry.
    Package,
    /// A package from a git repository.
    Checkout,
}

/// What a path says of its home, and the part of the path that counts: `std/src/rt.rs` of a file of Rust's library,
/// `name-1.2.3/src/lib.rs` of a file of a package. `None` for all other paths, which are shown as they are.
pub fn home(path: &str) -> Option<(Home, &str)> {
    let of = |home: Home| move |rest: &'_ str| (home, rest.len());
    let found = library(path).map(of(Home::Library));
    let found = found.or_else(|| package(path).map(of(Home::Package)));
    let (home, len) = found.or_else(|| checkout(path).map(of(Home::Checkout)))?;
    Some((home, &path[path.len() - len..]))
}

/// The part of a path that counts, or the whole path.
pub fn short(path: &str) -> &str {
    home(path).map_or(path, |(_, rest)| rest)
}

/// The compiler writes `/rustc/HASH/library/std/src/rt.rs` for its own library. That of a distribution has the directory
/// where it was built, and one whose sources are installed has theirs.
fn library(path: &str) -> Option<&str> {
    let in_library =
        |rest: &'_ str| rest.split_once('/').and_then(|(_, rest)| rest.strip_prefix("library/")).map(str::len);
    let compiled = path.strip_prefix("/rustc/").and_then(in_library);
    let installed = || path.split_once("/rustlib/src/rust/library/").map(|(_, rest)| rest.len());
    let distributed = || path.split_once("/rustc-").and_then(|(_, rest)| in_library(rest));
    let len = compiled.or_else(installed).or_else(distributed)?;
    Some(&path[path.len() - len..]).filter(|rest| !rest.is_empty())
}

/// Cargo unpacks packages below `registry/src/INDEX-HASH/`. Those that Rust's own library uses are in `/rust/deps/`.
fn package(path: &str) -> Option<&str> {
    let unpacked = || {
        let (_, rest) = path.split_once("/registry/src/")?;
        let (index, rest) = rest.split_once('/')?;
        ends_with_hash(index).then_some(rest)
    };
    let rest = path.strip_prefix("/rust/deps/").or_else(unpacked)?;
    name_of_package(rest).map(|_| rest)
}

/// Cargo keeps checkouts in `git/checkouts/NAME-HASH/REVISION/`.
fn checkout(path: &str) -> Option<&str> {
    let (_, rest) = path.split_once("/git/checkouts/")?;
    let (repository, file) = rest.split_once('/')?;
    (ends_with_hash(repository) && file.contains('/')).then_some(rest)
}

fn ends_with_hash(directory: &str) -> bool {
    directory.rsplit_once('-').is_some_and(|(_, hash)| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The name of the package in `name-1.2.3/src/lib.rs`, and the path of the file in the package.
pub fn name_of_package(path: &str) -> Option<(&str, &str)> {
    let (directory, file) = path.split_once('/')?;
    let is_version = |rest: &str| {
        rest.split_once('.').is_some_and(|(major, _)| !major.is_empty() && major.bytes().all(|b| b.is_ascii_digit()))
    };
    let dashes = directory.match_indices('-').map(|(at, _)| at);
    let mut versions = dashes.filter(|at| is_version(&directory[at + 1..]));
    let at = versions.next().filter(|at| *at > 0 && !file.is_empty())?;
    Some((&directory[..at], file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "59807616e1fa2540724bfbac14d7976d7e4a3860";

    #[test]
    fn what_says_where_sources_of_others_are_kept_is_left_out() {
        let cargo = "/home/user/.cargo/registry/src/index-0123456789abcdef";
        let rows = [
            (format!("/rustc/{HASH}/library/std/src/rt.rs"), "std/src/rt.rs", Some(Home::Library)),
            ("/rustc/1.63.0/library/core/src/ops/function.rs".into(), "core/src/ops/function.rs", Some(Home::Library)),
            ("/usr/lib/rustlib/src/rust/library/alloc/src/boxed.rs".into(), "alloc/src/boxed.rs", Some(Home::Library)),
            ("/usr/src/rustc-1.63.0/library/std/src/rt.rs".into(), "std/src/rt.rs", Some(Home::Library)),
            (
                format!("{cargo}/wasmer-runtime-core-near-0.18.3/src/fault.rs"),
                "wasmer-runtime-core-near-0.18.3/src/fault.rs",
                Some(Home::Package),
            ),
            (
                "/usr/local/cargo/registry/src/registry.example-0123456789abcdef/a-1.0.0-rc.2/b.rs".into(),
                "a-1.0.0-rc.2/b.rs",
                Some(Home::Package),
            ),
            (
                "/rust/deps/hashbrown-0.15.2/src/raw/mod.rs".into(),
                "hashbrown-0.15.2/src/raw/mod.rs",
                Some(Home::Package),
            ),
            (
                "/home/user/.cargo/git/checkouts/wasmtime-41807828cb3a7a7e/1a2b3c4/crates/wasmtime/src/lib.rs".into(),
                "wasmtime-41807828cb3a7a7e/1a2b3c4/crates/wasmtime/src/lib.rs",
                Some(Home::Checkout),
            ),
        ];
        for (path, expected, of) in &rows {
            assert_eq!((short(path), home(path).map(|h| h.0)), (*expected, *of), "{path}");
        }
    }

    #[test]
    fn other_paths_stay() {
        let same = [
            "src/main.rs",
            "/home/user/host/src/main.rs",
            "./time/../sysdeps/unix/sysv/linux/clock_nanosleep.c",
            "/home/user/library/core/src/lib.rs",
            "library/std/src/rt.rs",
            "/home/user/registry/src/main/deep/file.rs",
            "/srv/registry/src/index-0123456789abcdef/file.rs",
            "/srv/git/checkouts/wasmtime/1a2b3c4/src/lib.rs",
            "/rustc/",
            "/rustc/x",
            "/rustc/x/library/",
            "/rustc/x/compiler/rustc_middle/src/lib.rs",
            "/rust/deps/",
            "/rust/deps/x/src/lib.rs",
            "",
            "/",
        ];
        for path in same {
            assert_eq!((short(path), home(path)), (path, None));
        }
    }

    #[test]
    fn packages_have_a_name_and_a_version() {
        assert_eq!(name_of_package("tokio-1.47.1/src/lib.rs"), Some(("tokio", "src/lib.rs")));
        assert_eq!(name_of_package("foo-2d-1.0.0-2/src/lib.rs"), Some(("foo-2d", "src/lib.rs")));
        for none in ["tokio/src/lib.rs", "-1.0.0/src/lib.rs", "tokio-1.47.1", "tokio-1.47.1/", "", "a-1/b"] {
            assert_eq!(name_of_package(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_is_the_end_of_the_path(
            path in "(/rustc/|/registry/src/|/git/checkouts/|/rust/deps/|library/|[a-zé]{0,3}|-[0-9a-f]{16}|-1\\.0|/){0,12}"
        ) {
            let rest = short(&path);
            prop_assert!(path.ends_with(rest) && (path.is_empty() || !rest.is_empty()), "{path}: {rest}");
        }
    }
}
