//! Dependencies go one way: each room of `src` uses rooms below it, as the table in `src/lib.rs` has them, and the parts of
//! a room use each other in no circle.

use crate::support::rust_files;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, Meta, UseTree};

/// What the product's code uses, and where: a room of other rooms (`process`, `arch`), and a part of a room of other parts
/// (`process::live`, `process::elf`).
type Arrows = BTreeMap<(String, String), String>;

/// Rooms by their height, as the table says: those of one line are equally high.
fn table(lib: &str) -> BTreeMap<String, usize> {
    let block =
        lib.split("//! # Layers").nth(1).and_then(|rest| rest.split("```").nth(1)).expect("src/lib.rs has a table");
    let lines = block.lines().filter_map(|line| line.strip_prefix("//! ")).map(|line| {
        let rooms = line.split("  ").next().unwrap_or_default();
        rooms.split(", ").map(str::to_string).collect::<Vec<_>>()
    });
    let lines: Vec<Vec<String>> = lines.filter(|rooms| rooms.iter().any(|room| !room.is_empty())).collect();
    lines
        .into_iter()
        .rev()
        .enumerate()
        .flat_map(|(height, rooms)| rooms.into_iter().map(move |r| (r, height)))
        .collect()
}

/// Parts of rooms that use each other in a circle on purpose. `Machine` is the list of machines, and what a machine's
/// folder says of registers has the type that names them.
const IN_CIRCLES: &[&str] = &["arch::machine"];

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let text = list.tokens.to_string();
            text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "test") && !text.contains("not")
        }
        _ => false,
    })
}

/// Collects the paths of one file.
struct Paths<'a> {
    /// The module that is read, from the crate's root.
    module: Vec<String>,
    file: &'a Path,
    arrows: &'a mut Arrows,
    /// Files that only tests have.
    test_files: &'a mut BTreeSet<PathBuf>,
    /// Whether there is a `use super::*`.
    takes_all: bool,
}

impl Paths<'_> {
    /// Notes the room that a path leads to, or the part of this room, if it leads out of the module's own.
    fn note(&mut self, path: &[String]) {
        let mut at = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("super" | "self") => self.module.clone(),
            _ => return,
        };
        for part in path {
            match part.as_str() {
                "crate" | "self" => {}
                "super" => _ = at.pop(),
                name => at.push(name.to_string()),
            }
        }
        let (Some(mut from), Some(mut to)) = (self.module.first().cloned(), at.first().cloned()) else { return };
        if from == to {
            let (Some(part), Some(other)) = (self.module.get(1), at.get(1)) else { return };
            (from, to) = (format!("{from}::{part}"), format!("{to}::{other}"));
        }
        // The crate's own items: macros.
        if from != to && to != "*" {
            self.arrows.entry((from, to)).or_insert_with(|| format!("{}: {}", self.file.display(), path.join("::")));
        }
    }

    fn tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |name: String| [before, &[name]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&with(path.ident.to_string()), &path.tree),
            UseTree::Name(name) => self.note(&with(name.ident.to_string())),
            UseTree::Rename(name) => self.note(&with(name.ident.to_string())),
            UseTree::Glob(_) => {
                self.takes_all |= !before.is_empty() && before.iter().all(|part| part == "super");
                self.note(&with("*".to_string()));
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(before, item)),
        }
    }

    /// Paths in the arguments of a macro, as far as tokens tell: names behind `crate`, `super` or `self`, with `::` in
    /// between. `before` is what stands before a group.
    fn tokens(&mut self, tokens: TokenStream, before: &[String]) {
        let mut path: Vec<String> = before.to_vec();
        let mut is_joined = !before.is_empty();
        for token in tokens {
            match token {
                // `crate::{a, b}`
                TokenTree::Group(group) if is_joined && group.delimiter() == Delimiter::Brace => {
                    self.tokens(group.stream(), &std::mem::take(&mut path));
                }
                TokenTree::Group(group) => {
                    self.note(&std::mem::take(&mut path));
                    self.tokens(group.stream(), &[]);
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    is_joined = true;
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ',' && !before.is_empty() => {
                    self.note(&std::mem::replace(&mut path, before.to_vec()));
                    is_joined = true;
                    continue;
                }
                TokenTree::Ident(ident) if is_joined && !path.is_empty() => path.push(ident.to_string()),
                TokenTree::Ident(ident) => {
                    self.note(&std::mem::take(&mut path));
                    let name = ident.to_string();
                    path.extend(["crate", "super", "self"].contains(&name.as_str()).then_some(name));
                }
                _ => self.note(&std::mem::take(&mut path)),
            }
            is_joined = false;
        }
        self.note(&path);
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Mod(module) => return self.visit_item_mod(module),
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if is_test(&module.attrs) {
            if module.content.is_none() {
                let directory = match self.file.file_name().is_some_and(|name| name == "mod.rs" || name == "lib.rs") {
                    true => self.file.parent().expect("a file of src").to_path_buf(),
                    false => self.file.with_extension(""),
                };
                self.test_files.insert(directory.join(format!("{}.rs", module.ident)));
            }
            return;
        }
        self.module.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note(&names);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.tokens(item.tokens.clone(), &[]);
        visit::visit_macro(self, item);
    }
}

/// What the sources below `src` say, without tests.
#[derive(Default)]
struct Sources {
    arrows: Arrows,
    /// Files with a `use super::*`.
    take_all: Vec<String>,
    /// The parts of rooms that are modules: `process::live`.
    parts: BTreeSet<String>,
}

fn sources() -> &'static Sources {
    static SOURCES: LazyLock<Sources> =
        LazyLock::new(|| read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")));
    &SOURCES
}

fn read_sources(src: &Path) -> Sources {
    let mut found: Vec<(PathBuf, Vec<String>, Arrows, bool)> = Vec::new();
    let mut test_files = BTreeSet::new();
    for file in rust_files(src) {
        let inside = file.strip_prefix(src).unwrap().with_extension("");
        let mut module: Vec<String> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if ["mod", "lib", "main"].contains(&module.last().unwrap().as_str()) {
            module.pop();
        }
        // What the command line's `main` and the crate's root name is no dependency of a room.
        if module.is_empty() {
            continue;
        }
        let mut arrows = Arrows::new();
        let text = std::fs::read_to_string(&file).unwrap();
        let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let of = module.clone();
        let (arrows_of_file, test_files) = (&mut arrows, &mut test_files);
        let mut paths = Paths { module, file: &file, arrows: arrows_of_file, test_files, takes_all: false };
        paths.visit_file(&parsed);
        let takes_all = paths.takes_all;
        found.push((file, of, arrows, takes_all));
    }
    found.retain(|(file, ..)| !test_files.iter().any(|t| file == t || file.starts_with(t.with_extension(""))));
    let mut sources = Sources::default();
    for (file, module, arrows, takes_all) in found {
        sources.arrows.extend(arrows);
        sources.parts.extend(module.get(1).map(|part| format!("{}::{part}", module[0])));
        if takes_all {
            sources.take_all.push(file.strip_prefix(src).unwrap().display().to_string());
        }
    }
    sources
}

/// The arrows that are part of a circle: from where they lead there is a way back.
fn in_circles<'a>(arrows: &BTreeSet<(&'a str, &'a str)>) -> Vec<(&'a str, &'a str)> {
    let leads = |from: &'a str, to: &'a str| {
        let (mut seen, mut next) = (BTreeSet::from([from]), vec![from]);
        while let Some(at) = next.pop() {
            let behind = arrows.iter().filter(|(from, _)| *from == at).map(|(_, to)| *to);
            next.extend(behind.filter(|part| seen.insert(part)));
        }
        seen.contains(to)
    };
    arrows.iter().copied().filter(|(from, to)| leads(to, from)).collect()
}

#[test]
fn every_room_uses_only_rooms_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let heights = table(&std::fs::read_to_string(src.join("lib.rs")).unwrap());
    let mut arrows = sources().arrows.clone();
    arrows.retain(|(from, _), _| !from.contains("::"));
    let mut wrong = Vec::new();
    for ((from, to), place) in &arrows {
        let (Some(high), Some(low)) = (heights.get(from), heights.get(to)) else {
            wrong.push(format!("{from} -> {to}: the table has no such room ({place})"));
            continue;
        };
        if low >= high {
            wrong.push(format!("{from} -> {to} ({place})"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let used: BTreeSet<&String> = arrows.keys().flat_map(|(from, to)| [from, to]).collect();
    let idle: Vec<_> = heights.keys().filter(|room| !used.contains(room)).collect();
    assert!(idle.is_empty(), "the table has rooms that are not there: {idle:?}");
    assert!(arrows.len() > 40, "{} arrows", arrows.len());
    println!("{} arrows between {} rooms", arrows.len(), heights.len());
}

#[test]
fn the_parts_of_a_room_use_each_other_in_no_circle() {
    let Sources { arrows, parts, .. } = sources();
    let is_part = |name: &String| parts.contains(name) && !IN_CIRCLES.contains(&name.as_str());
    let between = arrows.keys().filter(|(from, to)| is_part(from) && is_part(to));
    let between: BTreeSet<(&str, &str)> = between.map(|(from, to)| (from.as_str(), to.as_str())).collect();
    assert!(between.len() > 40, "{} arrows", between.len());
    let place = |(from, to): (&str, &str)| format!("{from} -> {to} ({})", arrows[&(from.into(), to.into())]);
    let circles: Vec<String> = in_circles(&between).into_iter().map(place).collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn circles_are_seen() {
    let arrows = BTreeSet::from([("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("d", "e")]);
    assert!(in_circles(&arrows).is_empty());
    let circle = BTreeSet::from([("d", "b")]);
    assert_eq!(in_circles(&(&arrows | &circle)), [("b", "c"), ("c", "d"), ("d", "b")]);
}

/// A file says what it uses. Only tests take all that stands around them.
#[test]
fn no_file_takes_all_of_the_module_above_it() {
    let found = &sources().take_all;
    assert!(found.is_empty(), "`use super::*` in {found:#?}");
}

/// What is found in code, whatever way it is written.
#[test]
fn arrows_are_seen_however_they_are_written() {
    let seen = |text: &str| {
        let (mut arrows, mut test_files) = (Arrows::new(), BTreeSet::new());
        let file = Path::new("src/a/b.rs");
        let module = vec!["a".to_string(), "b".to_string()];
        let mut paths = Paths { module, file, arrows: &mut arrows, test_files: &mut test_files, takes_all: false };
        paths.visit_file(&syn::parse_file(text).unwrap());
        let takes_all = paths.takes_all;
        (arrows.into_keys().map(|(_, to)| to).collect::<Vec<_>>(), takes_all)
    };
    for text in [
        "use crate::c::D;",
        "use crate::{a::E, c::{D, self}};",
        "pub use crate::c as x;",
        "use super::super::c::D;",
        "fn f() { crate::c::g(1) }",
        "fn f(x: &dyn crate::c::T) {}",
        "fn f() { println!(\"{}\", crate::c::g()); }",
        "m! { use crate::{a::x, c::{D, E}}; }",
        "m! { super::super::c::g(self.x, a::b) }",
        "mod inner { use super::super::super::c; }",
        "#[cfg(not(test))] use crate::c;",
        "impl crate::c::T for X {}",
    ] {
        let rooms: Vec<String> = seen(text).0.into_iter().filter(|to| !to.contains("::")).collect();
        assert_eq!(rooms, ["c"], "{text}");
    }
    for text in [
        "use std::c;",
        "use super::b::D;",
        "m! { self.c, super::b, a::c }",
        "/// [`crate::c`]\nfn f() {}",
        "#[cfg(test)] mod tests { use crate::c; }",
        "#[cfg(any(test, feature = \"testing\"))] use crate::c;",
        "#[cfg(test)] fn f() { crate::c::g() }",
        "use crate::a::b::c;",
    ] {
        assert!(seen(text).0.is_empty(), "{text}");
    }
    for text in ["use super::c::D;", "use crate::a::c;", "fn f() { crate::a::c::g() }"] {
        assert_eq!(seen(text).0, ["a::c"], "{text}");
    }
    assert!(seen("use super::*;").1 && seen("mod inner { use super::super::*; }").1);
    assert!(!seen("use super::c::*; #[cfg(test)] mod tests { use super::*; }").1);
}

/// Collects the strings of a file that have two spaces or more within a sentence.
#[derive(Default)]
struct Holes(Vec<String>);

impl Holes {
    fn look(&mut self, text: &str) {
        let words: Vec<&str> = text.split(' ').collect();
        // Tables have columns and several lines; a sentence has neither.
        let is_hole = |w: &[&str]| w[0].chars().count() > 1 && w[1].is_empty() && w[2].is_empty();
        if !text.contains('\n') && words.len() > 12 && words.windows(3).any(is_hole) {
            self.0.push(text.to_string());
        }
    }

    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Literal(literal) => {
                    if let syn::Lit::Str(text) = syn::Lit::new(literal) {
                        self.look(&text.value());
                    }
                }
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Holes {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_lit_str(&mut self, text: &'ast syn::LitStr) {
        self.look(&text.value());
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.tokens(item.tokens.clone());
    }
}

/// A string that was broken over two lines and put together again keeps the spaces before its second line.
#[test]
fn no_sentence_has_a_hole() {
    let holes = |text: &str| {
        let mut holes = Holes::default();
        holes.visit_file(&syn::parse_file(text).unwrap());
        holes.0
    };
    let long = "this sentence has quite a few words, and then a line was broken here";
    assert!(holes(&format!("const A: &str = \"{long} and went on\";")).is_empty());
    for code in ["const A: &str = \"{}     and went on\";", "fn f() {{ format!(\"{}     and went on\", 1); }}"] {
        assert_eq!(holes(&code.replace("{}", long).replace("{{", "{").replace("}}", "}")).len(), 1, "{code}");
    }
    let files = rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    for file in files.iter().filter(|file| !file.ends_with("tests.rs") && !file.ends_with("testing.rs")) {
        let found = holes(&std::fs::read_to_string(file).unwrap());
        assert!(found.is_empty(), "{}: {found:#?}", file.display());
    }
}
