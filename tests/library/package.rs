//! What is published is whole: every file that the sources take in is in the package. That it compiles is a step of `run.sh`,
//! and so is that the library compiles without the command line.

use crate::support::rust_files;
use std::collections::BTreeSet;
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
    assert_eq!(taken(&[]), of_command_line);
}

/// Paths that users of the library can name, from `wstate::` on. What is there with a feature is among them, except for
/// `internals`.
fn public_paths(items: &[syn::Item], room: &str, found: &mut BTreeSet<String>) {
    fn leaves(tree: &syn::UseTree, room: &str, found: &mut BTreeSet<String>) {
        match tree {
            syn::UseTree::Path(path) => leaves(&path.tree, room, found),
            syn::UseTree::Name(name) => _ = found.insert(format!("{room}{}", name.ident)),
            syn::UseTree::Rename(name) => _ = found.insert(format!("{room}{}", name.rename)),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| leaves(item, room, found)),
            syn::UseTree::Glob(_) => panic!("{room}: what users have is named one by one"),
        }
    }
    let is_internal = |attributes: &[syn::Attribute]| {
        attributes
            .iter()
            .any(|a| matches!(&a.meta, syn::Meta::List(list) if list.tokens.to_string().contains("internals")))
    };
    for item in items {
        match item {
            syn::Item::Use(item) if matches!(item.vis, syn::Visibility::Public(_)) => leaves(&item.tree, room, found),
            syn::Item::Mod(module)
                if matches!(module.vis, syn::Visibility::Public(_)) && !is_internal(&module.attrs) =>
            {
                found.insert(format!("{room}{}", module.ident));
                if let Some((_, items)) = &module.content {
                    public_paths(items, &format!("{room}{}::", module.ident), found);
                }
            }
            _ => {}
        }
    }
}

/// Paths in `use wstate::..;` of a text, from `wstate::` on.
fn used_paths(text: &str) -> Vec<String> {
    fn leaves(tree: &syn::UseTree, before: &str, found: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => leaves(&path.tree, &format!("{before}{}::", path.ident), found),
            syn::UseTree::Name(name) if name.ident == "self" => found.push(before.trim_end_matches(':').to_string()),
            syn::UseTree::Name(name) => found.push(format!("{before}{}", name.ident)),
            syn::UseTree::Rename(name) => found.push(format!("{before}{}", name.ident)),
            syn::UseTree::Glob(_) => found.push(format!("{before}*")),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| leaves(item, before, found)),
        }
    }
    let mut found = Vec::new();
    for (at, _) in text.match_indices("use wstate::") {
        let statement: String = text[at..].chars().take_while(|c| *c != ';').collect();
        let statement = statement.replace("\n///", "\n").replace("\n//!", "\n");
        let parsed: syn::ItemUse =
            syn::parse_str(&format!("{statement};")).unwrap_or_else(|e| panic!("{statement}: {e}"));
        let syn::UseTree::Path(path) = &parsed.tree else { panic!("{statement}") };
        leaves(&path.tree, "", &mut found);
    }
    found
}

/// Examples are built with all that is public for tests, so the compiler does not see whether users can build them.
#[test]
fn examples_name_only_what_users_have() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut public = BTreeSet::new();
    public_paths(&syn::parse_file(&read(&root.join("src/lib.rs"))).unwrap().items, "", &mut public);
    assert!(public.contains("Session") && public.contains("model::clean") && !public.contains("runtime"));
    let mut files = rust_files(&root.join("src/session"));
    files.extend(["src/lib.rs", "src/descriptor.rs", "examples/backtrace.rs", "README.md"].map(|file| root.join(file)));
    let mut checked = 0;
    for file in files {
        for path in used_paths(&read(&file)) {
            assert!(public.contains(&path), "{}: users have no wstate::{path}", file.display());
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} paths");
    assert_eq!(used_paths("/// use wstate::{a::{self, b}, C};\n"), ["a", "a::b", "C"]);
}
