//! What is published is whole: every file that the sources take in is in the package. That it compiles is a step of `run.sh`,
//! and so is that the library compiles without the command line.

use crate::support::rust_files;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What cargo prints when it is run with these arguments.
pub fn cargo(arguments: &[&str]) -> String {
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
    let rooms = ["src", "docs", "gdb-plugin", "lldb-plugin"];
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

/// What `Cargo.toml` says under `[package.metadata]`, and the version of Rust that it asks for.
fn metadata() -> (serde_json::Value, String) {
    let all: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).expect("cargo prints JSON");
    let package = all["packages"].as_array().unwrap().iter().find(|p| p["name"] == "wstate").expect("our package");
    (package["metadata"].clone(), package["rust_version"].as_str().unwrap().to_string())
}

fn text_of(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The crate for hosts must not bring anything along, and stands by itself: what is published of either crate names no
/// version of the other.
#[test]
fn the_crate_for_hosts_has_no_dependencies() {
    let tree = cargo(&["tree", "--package", "wstate-descriptor", "--edges", "all", "--prefix", "none"]);
    assert_eq!(tree.lines().count(), 1, "{tree}");
    assert!(tree.starts_with("wstate-descriptor v"), "{tree}");
    assert!(!dependencies(&[]).contains(&"wstate-descriptor".to_string()));
    let listed = cargo(&["package", "--package", "wstate-descriptor", "--list", "--allow-dirty", "--quiet"]);
    for name in ["README.md", "LICENSE-APACHE", "LICENSE-MIT", "src/lib.rs"] {
        assert!(listed.lines().any(|file| file == name), "{name} is published: {listed}");
    }
}

/// The Debian package has what Cargo.toml names: files of the repository, and files that `tests/package.sh` makes before.
#[test]
fn the_debian_package_is_made_of_what_is_there() {
    let (metadata, _) = metadata();
    let script = text_of("tests/package.sh");
    let mut into = Vec::new();
    for asset in metadata["deb"]["assets"].as_array().expect("assets") {
        let [from, to, mode] = [0, 1, 2].map(|i| asset[i].as_str().expect("a text"));
        let is_there = match from.strip_prefix("target/packages/files/") {
            Some(made) => script.contains(&format!("$files/{}", made.trim_end_matches("/*.1"))),
            None if from == "target/release/wstate" => true,
            None => {
                let (directory, pattern) = from.rsplit_once('/').unwrap_or(("", from));
                let (start, end) = pattern.split_once('*').unwrap_or((pattern, ""));
                let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory));
                let mut names = files.into_iter().flatten().map(|file| file.unwrap().file_name());
                names.any(|name| name.to_string_lossy().starts_with(start) && name.to_string_lossy().ends_with(end))
            }
        };
        assert!(is_there, "{from} is not there, and tests/package.sh does not make it");
        assert_eq!(mode, if to == "usr/bin/" { "755" } else { "644" }, "{from}");
        into.push(to.to_string());
    }
    for room in ["usr/bin/", "man1/", "bash-completion/", "zsh/", "fish/", "usr/share/wstate/", "usr/share/doc/wstate/"]
    {
        assert!(into.iter().any(|to| to.contains(room)), "nothing goes to {room}: {into:?}");
    }
}

/// `cargo binstall` fills in these words and no others.
#[test]
fn the_archives_have_the_names_that_binstall_makes() {
    let (metadata, _) = metadata();
    let binstall = &metadata["binstall"];
    assert_eq!(binstall["pkg-fmt"], "tgz");
    for (key, wanted) in [
        ("pkg-url", "REPO/releases/download/v1.2.3/wstate-1.2.3-TARGET.tar.gz"),
        ("bin-dir", "wstate-1.2.3-TARGET/wstate"),
    ] {
        let mut text = binstall[key].as_str().expect("a text").to_string();
        let words = [
            ("repo", "REPO"),
            ("version", "1.2.3"),
            ("name", "wstate"),
            ("target", "TARGET"),
            ("bin", "wstate"),
            ("binary-ext", ""),
        ];
        for (word, value) in words {
            text = text.replace(&format!("{{ {word} }}"), value);
        }
        assert_eq!(text, wanted);
    }
}

/// Nobody builds the image here, so what its definition names is compared with what is there.
#[test]
fn the_dockerfile_names_what_is_there() {
    let (_, rust_version) = metadata();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dockerfile = text_of("Dockerfile");
    let of = |instruction: &'static str| dockerfile.lines().filter_map(move |line| line.strip_prefix(instruction));
    let base = of("FROM ").next().unwrap();
    assert!(base.starts_with(&format!("rust:{rust_version}-")), "{base}: Cargo.toml asks for {rust_version}");
    let build: Vec<&str> = of("RUN cargo ").flat_map(str::split_whitespace).collect();
    let after = |word: &str| build[build.iter().position(|w| *w == word).unwrap_or_else(|| panic!("{word}")) + 1];
    let (profile, target) = (after("--profile"), after("--target"));
    assert!(text_of("Cargo.toml").contains(&format!("[profile.{profile}]")));
    assert!(of("RUN ").any(|line| line == format!("rustup target add {target}")));
    assert!(build.contains(&"--locked"));
    let mut copied = 0;
    for line in of("COPY ") {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (sources, _) = words.split_at(words.len() - 1);
        match sources.split_first() {
            Some((&"--from=build", [made])) if made.ends_with("/wstate") => {
                assert_eq!(*made, format!("/src/target/{target}/{profile}/wstate"));
            }
            Some((&"--from=build", [made])) => {
                let path = made.trim_end_matches('/');
                assert!(of("RUN mkdir ").any(|line| line.contains(path)), "{made} is made by no step");
            }
            _ => {
                for source in sources {
                    assert!(root.join(source).exists(), "COPY {source}: it is not there");
                    copied += 1;
                }
            }
        }
    }
    assert!(copied >= 3, "{copied}");
    // What cargo reads must not be kept from it: the members of the workspace, and what they name.
    let ignored = text_of(".dockerignore");
    for path in ignored.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        assert!(["/.git", "/fuzz", "/target"].contains(&path), "{path}: may the build do without it?");
    }
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
                let room = format!("{room}{}::", module.ident);
                match &module.content {
                    Some((_, items)) => public_paths(items, &room, found),
                    None => {
                        let file = text_of(&format!("src/{}.rs", module.ident));
                        public_paths(&syn::parse_file(&file).unwrap().items, &room, found);
                    }
                }
            }
            syn::Item::Struct(item) if matches!(item.vis, syn::Visibility::Public(_)) => {
                found.insert(format!("{room}{}", item.ident));
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
    files.extend(["src/lib.rs", "src/confined.rs", "examples/backtrace.rs", "README.md"].map(|file| root.join(file)));
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
