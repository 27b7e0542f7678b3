//! What the documents tell people to type, and the numbers they name, are what the program has.

use clap::{CommandFactory, Parser};
use std::fs;
use std::path::Path;
use wstate::cli::{Cli, Command};
use wstate::limits;
use wstate::session::Source;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The pages in `docs`, as `docs/attach.md`.
fn pages() -> Vec<String> {
    let names = fs::read_dir(root().join("docs")).expect("there are docs").map(|entry| entry.unwrap().file_name());
    let mut pages: Vec<String> = names.map(|name| format!("docs/{}", name.to_str().expect("a name of ours"))).collect();
    pages.sort();
    pages
}

/// What users read: the README and all pages.
fn manual() -> Vec<String> {
    [vec!["README.md".to_string()], pages()].concat()
}

/// Whether a command line is one of a program that starts another one, whose command line follows.
fn starts_another(words: &[String]) -> bool {
    let words: Vec<&str> = words.iter().take(2).map(String::as_str).collect();
    matches!(words[..], ["sudo" | "kubectl", ..] | ["docker" | "podman", "run" | "exec"])
}

/// The arguments of a command line in a document: without prompt, comment and what is behind a pipe or a redirection.
fn words(line: &str) -> Option<Vec<String>> {
    let line = line.trim();
    let line = line.strip_prefix("$ ").unwrap_or(line);
    let line = line.split(" #").next()?.split(" |").next()?.split(" > ").next()?;
    let line = line.replace("$(which wstate)", "wstate");
    // What another command prints is a pid: $(docker inspect ..).
    let line = match line.split_once("$(") {
        Some((before, rest)) => format!("{before}4711{}", rest.split_once(')')?.1),
        None => line,
    };
    // [EXE] may be left out, and may be there.
    let words = line.split_whitespace().map(|word| word.trim_matches(['[', ']']).replace("PID", "4711"));
    let mut words: Vec<String> = words.collect();
    if starts_another(&words) {
        let own = words.iter().position(|word| word == "--").unwrap_or(0);
        // An image whose program is wstate, or the program itself.
        let at = own + words[own..].iter().position(|word| word == "wstate" || word.starts_with("wstate:"))?;
        words.drain(..at);
        words[0] = "wstate".to_string();
    }
    (words.first()? == "wstate" && words.len() > 1).then_some(words)
}

/// A document as lines of code (indented, or between fences) and as prose.
fn code_and_prose(document: &str) -> (Vec<&str>, String) {
    let (mut code, mut prose, mut fenced) = (Vec::new(), String::new(), false);
    for line in document.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            code.push(line);
        } else {
            prose += line;
            prose.push('\n');
        }
    }
    (code, prose)
}

/// Lines of code and single code spans.
fn commands(document: &str) -> Vec<Vec<String>> {
    let (code, prose) = code_and_prose(document);
    let spans = prose.split('`').skip(1).step_by(2);
    code.into_iter().chain(spans).filter_map(words).collect()
}

#[test]
fn commands_are_found_however_they_are_started() {
    let found = commands(
        "text `wstate modules 4711` text\n\n    $ wstate attach PID --json | jq .   # all\n    wstate: note: no command\n\n\
         ```sh\nsudo $(which wstate) doctor $(pidof host)\n```\n\n    kubectl exec app -c wstate -- wstate attach 7\n    \
         docker run --rm wstate:latest attach 1\n    kubectl exec app -c wstate -- pgrep -a host\n    \
         wstate completions zsh > ~/.zfunc/_wstate\n    cargo uninstall wstate\n    docker build -t wstate .\n",
    );
    let found: Vec<String> = found.iter().map(|words| words.join(" ")).collect();
    let expected = [
        "wstate attach 4711 --json",
        "wstate doctor 4711",
        "wstate attach 7",
        "wstate attach 1",
        "wstate completions zsh",
        "wstate modules 4711",
    ];
    assert_eq!(found, expected);
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
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        // What prints a help or the version is no mistake.
        Err(e) if !e.use_stderr() => return Ok(()),
        Err(e) => return Err(e.to_string()),
    };
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
    let (mut checked, mut refused) = (0, Vec::new());
    let others = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "RELEASING.md"];
    let others = others.into_iter().chain(["gdb-plugin/README.md", "lldb-plugin/README.md"]).map(str::to_string);
    for path in manual().into_iter().chain(others) {
        for words in commands(&read(&path)) {
            match accepted(&words) {
                Ok(()) => checked += 1,
                // The lines behind the first are the usage.
                Err(why) => {
                    refused.push(format!("{path}: {}: {}", words.join(" "), why.lines().next().unwrap_or_default()))
                }
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(checked >= 100, "only {checked} commands found in the documents");
}

/// A page that shows no command leaves its reader alone. If there is ever one that needs none, it stands here with the reason.
const PAGES_WITHOUT_COMMANDS: &[(&str, &str)] = &[];

#[test]
fn every_page_shows_commands_and_the_readme_leads_to_it() {
    let readme = read("README.md");
    for page in pages() {
        let document = read(&page);
        assert!(page.ends_with(".md") && document.starts_with("# "), "{page} is a page with a title");
        assert!(readme.contains(&format!("]({page})")), "the README does not lead to {page}");
        let is_bare = PAGES_WITHOUT_COMMANDS.iter().any(|(name, _)| *name == page);
        // More than a name that is mentioned: a command with its arguments.
        let shown = commands(&document).iter().filter(|words| words.len() > 2).count();
        assert!(is_bare == (shown == 0), "{page} shows {shown} commands");
    }
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 200, "the README has {lines} lines; a page in docs/ is the place for what is not for everybody");
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
fn flags_in_the_manual_exist() {
    let mut known = Vec::new();
    let mut top = Cli::command();
    top.build();
    let commands: Vec<_> = top.get_subcommands().chain([&top]).collect();
    for arg in commands.iter().flat_map(|c| c.get_arguments()) {
        known.extend(arg.get_long().map(|l| format!("--{l}")));
    }
    // Of other programs.
    let of_cargo = ["--path", "--profile", "--target", "--example", "--release"];
    let of_cargo_doc = ["--no-deps", "--no-default-features", "--open"];
    let of_debuggers = ["--file", "--slide"];
    let of_containers = ["--cap-add", "--rm", "--pid", "--format", "--image", "--custom", "--from"];
    // In command lines of processes that a report shows.
    let of_hosts = ["--compile-with", "--cwd"];
    let of_others = [&of_cargo[..], &of_cargo_doc, &of_debuggers, &of_containers, &of_hosts].concat();
    known.extend(of_others.into_iter().map(String::from));
    let mut unknown = Vec::new();
    for path in manual() {
        for word in read(&path).split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
            let flag = word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
            if flag && !known.iter().any(|k| k == word) {
                unknown.push(format!("{path}: {word}"));
            }
        }
    }
    assert!(unknown.is_empty(), "these are no flags:\n{}", unknown.join("\n"));
}

#[test]
fn numbers_in_the_manual_are_those_of_the_code() {
    let manual: String =
        manual().iter().map(|path| read(path).split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let says = |text: String| assert!(manual.contains(&text), "the manual does not say: {text}");
    says(format!("up to {} instructions", limits::MAX_SETTLE_STEPS));
    says(format!("{},{:03} frames per thread", limits::MAX_FRAMES / 1000, limits::MAX_FRAMES % 1000));
    says(format!("{} MiB per stack", limits::MAX_STACK_CAPTURE >> 20));
    says(format!("{} seconds for the heap search", limits::MAX_HEAP_SEARCH_SECONDS));
    says(format!("Rust {} or newer", env!("CARGO_PKG_RUST_VERSION")));
}
