//! What is published is whole: every file that the sources take in is in the package. That it compiles is a step of `run.sh`,
//! and so is that the library compiles without the command line.

use crate::support::rust_files;
use std::path::{Path, PathBuf};

/// What cargo prints when it is run with these arguments.
fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints text")
}

fn published_files() -> Vec<PathBuf> {
    let list = cargo(&["package", "--package", "wstate", "--list", "--allow-dirty", "--quiet"]);
    list.lines().map(PathBuf::from).collect()
}

#[test]
fn every_file_that_is_taken_in_is_in_the_package() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = published_files();
    let mut taken = 0;
    for source in rust_files(&root.join("src")) {
        let text = std::fs::read_to_string(&source).unwrap();
        for macro_name in ["include_str!(\"", "include_bytes!(\"", "include!(\""] {
            for (at, _) in text.match_indices(macro_name) {
                // What only tests take in is not needed.
                if text[..at].contains("mod tests {\n") || source.ends_with("tests.rs") {
                    continue;
                }
                let name = text[at + macro_name.len()..].split('"').next().unwrap();
                let path = source.parent().unwrap().join(name).canonicalize().unwrap();
                let path = path.strip_prefix(root.canonicalize().unwrap()).unwrap();
                assert!(listed.iter().any(|l| l == path), "{} needs {}", source.display(), path.display());
                taken += 1;
            }
        }
    }
    assert!(taken >= 2, "the plugins are among them");
    // And what the README leads to.
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let links = readme.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    for link in links.filter(|l| !l.is_empty() && !l.contains("://")) {
        let inside = |l: &PathBuf| l.starts_with(link);
        assert!(listed.iter().any(inside), "README.md leads to {link}");
    }
}

/// What people expect in a package, and what only this repository needs.
#[test]
fn the_package_has_what_users_need_and_nothing_else() {
    let listed = published_files();
    for name in
        ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "src/lib.rs", "src/main.rs", "Cargo.lock"]
    {
        assert!(listed.iter().any(|l| l == Path::new(name)), "{name} is published");
    }
    let rooms = ["src", "gdb-plugin", "lldb-plugin"];
    for file in listed.iter().filter(|file| file.components().count() > 1) {
        let is_of_room = rooms.iter().any(|room| file.starts_with(room));
        assert!(is_of_room || file == Path::new("examples/backtrace.rs"), "{} is published", file.display());
    }
}

/// Names of the packages that a build with these features takes in.
fn dependencies(features: &[&str]) -> Vec<String> {
    let tree = ["tree", "--package", "wstate", "--edges", "normal", "--prefix", "none"];
    let tree = cargo(&[&tree[..], features].concat());
    tree.lines().filter_map(|line| Some(line.split(' ').next()?.to_string())).collect()
}

#[test]
fn the_library_does_without_what_only_a_command_line_needs() {
    let of_command_line = ["clap", "procfs", "schemars", "seccompiler", "tempfile"];
    let taken = |features: &[&str]| {
        let dependencies = dependencies(features);
        of_command_line.into_iter().filter(|name| dependencies.iter().any(|d| d == name)).collect::<Vec<_>>()
    };
    assert_eq!(taken(&["--no-default-features"]), [""; 0]);
    assert_eq!(taken(&["--no-default-features", "--features", "descriptor"]), [""; 0]);
    assert_eq!(taken(&[]), of_command_line);
}
