//! What the documents tell people to type, and the numbers they name, are what the program has.

use clap::{CommandFactory, Parser};
use std::fs;
use std::path::Path;
use wstate::cli::{Cli, Command};
use wstate::limits;
use wstate::session::Source;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The arguments of a command line in a document: without prompt, comment and what is behind a pipe.
fn words(line: &str) -> Option<Vec<String>> {
    let line = line.trim();
    let line = line.strip_prefix("$ ").unwrap_or(line);
    let line = line.split(" #").next()?.split(" |").next()?;
    // [EXE] may be left out, and may be there.
    let words = line.split_whitespace().map(|word| word.trim_matches(['[', ']']).replace("PID", "4711"));
    let words: Vec<String> = words.collect();
    (words.first()? == "wstate" && words.len() > 1).then_some(words)
}

/// Lines of indented blocks and single code spans.
fn commands(document: &str) -> Vec<Vec<String>> {
    let blocks = document.lines().filter(|l| l.starts_with("    "));
    let prose: String = document.lines().filter(|l| !l.starts_with("    ")).flat_map(|l| [l, "\n"]).collect();
    let spans = prose.split('`').skip(1).step_by(2);
    blocks.chain(spans).filter_map(words).collect()
}

fn accepted(words: &[String]) -> Result<(), String> {
    // A dependency in a `Cargo.toml`.
    if words.get(1).is_some_and(|word| word == "=") {
        return Ok(());
    }
    // A command that is only named.
    if let [_, name] = words
        && Cli::command().find_subcommand(name).is_some()
    {
        return Ok(());
    }
    let cli = Cli::try_parse_from(words).map_err(|e| e.to_string())?;
    let stacks = match &cli.command {
        Some(Command::Attach(stacks) | Command::Core(stacks)) => stacks,
        Some(_) => return Ok(()),
        None => &cli.stacks,
    };
    stacks.show.format().map_err(|e| e.to_string())?;
    stacks.show.options(Source::Pid(4711), stacks.live()).map(|_| ()).map_err(|e| e.to_string())
}

#[test]
fn every_command_in_the_documents_is_accepted() {
    let mut checked = 0;
    for path in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "gdb-plugin/README.md", "lldb-plugin/README.md"] {
        for words in commands(&read(path)) {
            accepted(&words).unwrap_or_else(|why| panic!("{path}: {}: {why}", words.join(" ")));
            checked += 1;
        }
    }
    assert!(checked >= 15, "only {checked} commands found in the documents");
}

#[test]
fn every_command_in_the_help_is_accepted() {
    let mut checked = 0;
    let mut top = Cli::command();
    let mut helps = vec![top.render_long_help().to_string()];
    helps.extend(top.get_subcommands_mut().map(|c| c.render_long_help().to_string()));
    for help in helps {
        let examples = help.lines().skip_while(|l| *l != "Examples:").take_while(|l| !l.is_empty());
        for line in examples.skip(1) {
            // Two spaces part a command from what it does.
            let line = line.trim().split("  ").next().unwrap_or_default();
            // What to do next, in a debugger.
            if line.starts_with("gdb ") || line.starts_with("lldb ") {
                continue;
            }
            let words = words(line).unwrap_or_else(|| panic!("no command: {line}"));
            accepted(&words).unwrap_or_else(|why| panic!("{line}: {why}"));
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} examples found in the help");
}

#[test]
fn flags_in_the_readme_exist() {
    let mut known = Vec::new();
    let mut top = Cli::command();
    top.build();
    let commands: Vec<_> = top.get_subcommands().chain([&top]).collect();
    for arg in commands.iter().flat_map(|c| c.get_arguments()) {
        known.extend(arg.get_long().map(|l| format!("--{l}")));
    }
    // Of other programs.
    let of_others = ["--path", "--profile", "--target", "--cap-add", "--example", "--file", "--release", "--slide"];
    let of_cargo_doc = ["--no-deps", "--no-default-features", "--open"];
    known.extend(of_others.into_iter().chain(of_cargo_doc).map(String::from));
    let readme = read("README.md");
    for word in readme.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
        let flag = word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
        assert!(!flag || known.iter().any(|k| k == word), "{word} is no flag");
    }
}

#[test]
fn numbers_in_the_readme_are_those_of_the_code() {
    let readme = read("README.md");
    let says = |text: String| assert!(readme.contains(&text), "the README does not say: {text}");
    says(format!("up to {} instructions", limits::MAX_SETTLE_STEPS));
    says(format!("{},{:03} frames per thread", limits::MAX_FRAMES / 1000, limits::MAX_FRAMES % 1000));
    says(format!("{} MiB per stack", limits::MAX_STACK_CAPTURE >> 20));
    says(format!("{} seconds for the heap search", limits::MAX_HEAP_SEARCH_SECONDS));
    says(format!("Rust {} or newer", env!("CARGO_PKG_RUST_VERSION")));
}

#[test]
fn files_that_the_documents_name_are_there() {
    let mut checked = 0;
    for path in ["README.md", "CONTRIBUTING.md"] {
        let document = read(path);
        let links = document.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let scripts = document.lines().filter_map(|l| l.trim().strip_prefix("sh ")?.split_whitespace().next());
        for name in links.chain(scripts).filter(|l| !l.starts_with("http")) {
            if let Some(anchor) = name.strip_prefix('#') {
                let headings = document.lines().filter(|l| l.starts_with('#'));
                let mut anchors = headings.map(|h| h.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"));
                assert!(anchors.any(|a| a == anchor), "{path} has no heading {name}");
                continue;
            }
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(name).exists(), "{path} names {name}");
            checked += 1;
        }
    }
    assert!(checked >= 6, "only {checked} files found in the documents");
}
