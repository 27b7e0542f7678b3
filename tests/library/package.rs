//! What is published is whole: every file that the sources take in is in the package. That it compiles is a step of `run.sh`.

use crate::support::rust_files;
use std::path::{Path, PathBuf};

#[test]
fn every_file_that_is_taken_in_is_in_the_package() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut list = std::process::Command::new(cargo);
    list.current_dir(root).args(["package", "--package", "wstate", "--list", "--allow-dirty", "--quiet"]);
    let output = list.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed: Vec<PathBuf> = String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect();
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
