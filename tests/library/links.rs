//! What the documents and the files of a forge lead to is there: links, headings, files and scripts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of this repository with one of these ends, except for what was built.
fn files_ending_in(ends: &[&str]) -> Vec<PathBuf> {
    fn collect(directory: &Path, ends: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().expect("a name of ours");
            let is_built = ["target", ".git", "corpus", "artifacts"].contains(&name);
            if path.is_dir() && !path.is_symlink() && !is_built {
                collect(&path, ends, found);
            } else if path.is_file() && ends.iter().any(|end| name.ends_with(end)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(root(), ends, &mut found);
    found.sort();
    found
}

fn name_of(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Lines of a document that are no code.
fn prose(document: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in document.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced && !line.starts_with("    ") {
            prose += line;
            prose.push('\n');
        }
    }
    prose
}

/// The names that forges give to the headings of a document: small letters, no signs, hyphens for spaces, and a number
/// where a name comes again.
fn anchors(document: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for heading in prose(document).lines().filter(|line| line.starts_with('#')) {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let name: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let names = (0..).map(|n| if n == 0 { name.clone() } else { format!("{name}-{n}") });
        let free = names.into_iter().find(|name| !found.contains(name)).expect("there is always another number");
        found.insert(free);
    }
    found
}

/// Where the links of a document lead, other servers left out. What stands in a code span is no link.
fn links(document: &str) -> Vec<String> {
    let prose = prose(document);
    let plain: String = prose.split('`').enumerate().map(|(i, part)| if i % 2 == 0 { part } else { "code" }).collect();
    let targets = plain.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(str::to_string).collect()
}

#[test]
fn headings_have_the_names_that_forges_give_them() {
    let found = anchors("# A `--flag`, and (more)\n\n    # no heading\n\n## Two\n```\n# none\n```\n## Two\n");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a---flag-and-more", "two", "two-1"]);
    assert_eq!(links("[a](b.md#c) `[d](e)` [f](https://g)\n    [h](i)\n"), ["b.md#c"]);
}

#[test]
fn every_link_leads_somewhere() {
    let (mut checked, mut broken) = (0, Vec::new());
    for file in files_ending_in(&[".md"]) {
        let document = read(&file);
        for link in links(&document) {
            let (path, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(path, anchor)| (path, Some(anchor)));
            let target = match path {
                "" => file.clone(),
                path => file.parent().unwrap().join(path),
            };
            let is_there = match anchor {
                _ if !target.exists() => false,
                Some(anchor) => anchors(&read(&target)).contains(anchor),
                None => true,
            };
            checked += 1;
            if !is_there {
                broken.push(format!("{}: {link}", name_of(&file)));
            }
        }
    }
    assert!(broken.is_empty(), "these links lead nowhere:\n{}", broken.join("\n"));
    assert!(checked >= 50, "only {checked} links found");
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn alternatives(path: &str) -> Vec<String> {
    match path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
        Some((before, (words, after))) => words.split(',').map(|word| format!("{before}{word}{after}")).collect(),
        None => vec![path.to_string()],
    }
}

/// Paths in a text that begin in one of our directories, and end in the name of a file or a directory.
fn paths_in(text: &str) -> Vec<String> {
    let rooms = [
        "src/",
        "tests/",
        "docs/",
        "examples/",
        "fuzz/",
        "benches/",
        "descriptor/",
        "gdb-plugin/",
        "lldb-plugin/",
        ".github/",
    ];
    let ends_word = |c: char| c.is_whitespace() || "`'\"()[]<>:;".contains(c);
    let words = text.split(ends_word).filter_map(|word| word.split('#').next());
    let words = words.map(|word| word.trim_end_matches(['.', ',', '/']));
    let ours = words.filter(|word| rooms.iter().any(|room| word.starts_with(room) && word.len() > room.len()));
    // NAME is for the reader to fill in; what is built or made comes later.
    let is_real = |word: &&str| {
        let is_open = word.contains("NAME") || word.contains('*') || word.contains("FILE");
        let is_made = ["fuzz/target", "fuzz/corpus", "fuzz/artifacts"].iter().any(|made| word.starts_with(made));
        !is_open && !is_made
    };
    ours.filter(is_real).flat_map(alternatives).collect()
}

#[test]
fn files_that_the_documents_name_are_there() {
    assert_eq!(
        paths_in("`src/a/{b,c}.rs`, (tests/d.sh#e). src/NAME /usr/src/x"),
        ["src/a/b.rs", "src/a/c.rs", "tests/d.sh"]
    );
    let (mut checked, mut missing) = (0, Vec::new());
    for file in files_ending_in(&[".md"]) {
        for path in paths_in(&read(&file)) {
            checked += 1;
            if !root().join(&path).exists() {
                missing.push(format!("{}: {path}", name_of(&file)));
            }
        }
    }
    assert!(missing.is_empty(), "these files are named, and are not there:\n{}", missing.join("\n"));
    assert!(checked >= 40, "only {checked} files found in the documents");
}

/// Workflows and forms are read by a forge, and nobody here sees what it makes of them.
#[test]
fn files_that_workflows_and_forms_name_are_there() {
    let files: Vec<PathBuf> =
        files_ending_in(&[".yml"]).into_iter().filter(|file| name_of(file).starts_with(".github/")).collect();
    let mut checked = 0;
    for file in &files {
        let text = read(file);
        assert!(!text.contains('\t'), "{}: YAML has no tabs", name_of(file));
        for path in paths_in(&text) {
            assert!(root().join(&path).exists(), "{}: {path}", name_of(file));
            checked += 1;
        }
    }
    let workflow = read(&root().join(".github/workflows/ci.yml"));
    for script in ["sh tests/run.sh", "sh tests/msrv.sh"] {
        assert!(workflow.contains(script), "CI does not run: {script}");
    }
    assert!(checked >= 2 && files.len() >= 5, "{checked} files named in {} files", files.len());
    let forms = files.iter().filter(|file| name_of(file).starts_with(".github/ISSUE_TEMPLATE/"));
    for form in forms.filter(|file| !file.ends_with("config.yml")) {
        let text = read(form);
        for key in ["name: ", "description: ", "body:"] {
            assert!(text.lines().any(|line| line.starts_with(key)), "{} has no {key}", name_of(form));
        }
    }
}
