//! What a package has beside the program: completions for shells, and man pages. Both are made of the one definition of
//! the command line.

use crate::cli::output::Output;
use crate::cli::{Cli, Shell};
use crate::error::Error;
use clap::{Arg, Command, CommandFactory};
use clap_complete::generate;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use std::io;
use std::path::{Path, PathBuf};

/// The text that makes a shell complete wstate's command line.
pub fn completions(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut text = Vec::new();
    generate(shell, &mut completed(&Cli::command()), "wstate", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The command line without the words that may stand in a command's place: zsh would wait for them before it completes
/// a command.
fn completed(root: &Command) -> Command {
    let options = shown(root).filter(|a| !a.is_positional());
    let commands = root.get_subcommands().map(without_hidden);
    Command::new("wstate").version(env!("CARGO_PKG_VERSION")).args(options).subcommands(commands)
}

/// The arguments of a command that its help shows. A shell would offer the others too.
fn shown(command: &Command) -> impl Iterator<Item = Arg> {
    command.get_arguments().filter(|a| !a.is_hide_set()).cloned()
}

/// A command as shells complete it: with its name, what it does, and the arguments that its help shows.
fn without_hidden(command: &Command) -> Command {
    let about = command.get_about().cloned().unwrap_or_default();
    Command::new(command.get_name().to_string()).about(about).hide(command.is_hide_set()).args(shown(command))
}

/// Writes a man page for wstate and for each of its commands into a directory, which is made if it is not there.
/// Either all pages are written or none. Returns what to tell the user.
///
/// # Errors
/// The directory cannot be made, or a page cannot be written.
pub fn write_pages(directory: &Path) -> Result<String, Error> {
    let failed = |source| Error::Output { to: directory.display().to_string(), source };
    std::fs::create_dir_all(directory).map_err(|e| {
        failed(match e.kind() {
            io::ErrorKind::AlreadyExists => io::Error::new(e.kind(), "it is a file; name a directory"),
            _ => e,
        })
    })?;
    let pages = pages().map_err(failed)?;
    let files: Vec<(PathBuf, Vec<u8>)> = pages.into_iter().map(|(name, page)| (directory.join(name), page)).collect();
    Output::write_files(files.iter().map(|(path, page)| (path.as_path(), page.as_slice())))?;
    let shown = directory.display();
    let names: Vec<_> = files.iter().filter_map(|(path, _)| path.file_name()?.to_str()).collect();
    Ok(format!("{shown}: {}\nread one with: man -l {shown}/wstate.1\n", names.join(", ")))
}

/// The name and the text of each page.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    // `wstate help` needs no page: it prints the others.
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let commands = std::iter::once(&root).chain(root.get_subcommands().filter(|c| !c.is_hide_set()));
    commands.map(page).collect()
}

fn page(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let man = Man::new(command.clone());
    let mut text = Vec::new();
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(help) = command.get_after_help() {
        after(&help.to_string()).to_writer(&mut text)?;
    }
    see_also(command).to_writer(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    // Each section begins with the definition of an apostrophe, which the page needs once. The title is not clap_mangen's,
    // which leaves an empty date out, so that the program's name becomes the date.
    let text = format!(
        "{APOSTROPHE}.TH {} 1 \"\" \"wstate {}\" \"wstate manual\"\n{}",
        name.to_uppercase(),
        env!("CARGO_PKG_VERSION"),
        text.replace(APOSTROPHE, "")
    );
    Ok((format!("{name}.1"), text.into_bytes()))
}

/// What `roff` writes before each piece of text.
const APOSTROPHE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

/// What stands at the end of a help. Examples keep their lines, which a page would otherwise fill up.
fn after(help: &str) -> Roff {
    let mut roff = Roff::default();
    for paragraph in help.split("\n\n") {
        match paragraph.strip_prefix("Examples:\n") {
            Some(examples) => {
                roff.control("SH", ["EXAMPLES"]).control("nf", []);
                for line in examples.lines() {
                    roff.text([roman(line.trim_start_matches("  "))]);
                }
                roff.control("fi", []);
            }
            None => {
                let heading = if paragraph.starts_with("Exit codes:") { "EXIT STATUS" } else { "NOTES" };
                roff.control("SH", [heading]).text([roman(paragraph.replace('\n', " "))]);
            }
        }
    }
    roff
}

fn see_also(command: &Command) -> Roff {
    let mut roff = Roff::default();
    let others = match command.has_subcommands() {
        true => "gdb(1), lldb(1), core(5), ptrace(2)",
        false => "wstate(1)",
    };
    roff.control("SH", ["SEE ALSO"]).text([roman(others)]);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands that users see, with the names of their long options.
    fn commands() -> Vec<(String, Vec<String>)> {
        let mut root = Cli::command();
        root.build();
        let of = |c: &Command| {
            let longs = c.get_arguments().filter(|a| !a.is_hide_set()).filter_map(|a| a.get_long());
            (c.get_name().to_string(), longs.map(str::to_string).collect())
        };
        root.get_subcommands().filter(|c| c.get_name() != "help").chain([&root]).map(of).collect()
    }

    /// The names of the long options of a command that its help does not show.
    fn hidden(command: &str) -> Vec<String> {
        let mut root = Cli::command();
        root.build();
        let of = if command == "wstate" { &root } else { root.find_subcommand(command).expect("it has this name") };
        let hidden = of.get_arguments().filter(|a| a.is_hide_set());
        let longs: Vec<String> = hidden.filter_map(|a| a.get_long()).map(str::to_string).collect();
        assert!(longs.iter().any(|long| long == "no-color"), "{command}: {longs:?}");
        longs
    }

    #[test]
    fn every_command_and_every_long_option_is_completed_in_every_shell() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = completions(shell);
            // In zsh the command is the first word that is no option.
            assert_eq!(text.contains("case $line[1] in"), shell == Shell::Zsh);
            for (command, longs) in commands() {
                // The part of the text that is about this command.
                let part = |begin: &str, end: &str| {
                    let (_, rest) = text.split_once(begin).unwrap_or_else(|| panic!("{shell:?} knows no {command}"));
                    rest.split(end).next().unwrap_or_default().to_string()
                };
                let is_root = command == "wstate";
                let part = match shell {
                    Shell::Bash if is_root => part("\n        wstate)\n", ";;\n"),
                    Shell::Bash => part(&format!("\n        wstate__subcmd__{command})\n"), "return 0"),
                    Shell::Zsh if is_root => part("_wstate() {", "_wstate_commands"),
                    Shell::Zsh => part(&format!("({command})\n_arguments"), "\n;;\n"),
                    Shell::Fish if is_root => text.clone(),
                    Shell::Fish => text
                        .lines()
                        .filter(|l| l.contains(&format!("__fish_wstate_using_subcommand {command}\"")))
                        .map(|l| format!("{l}\n"))
                        .collect(),
                };
                for long in longs {
                    let has = match shell {
                        Shell::Fish => {
                            part.contains(&format!(" -l {long} ")) || part.contains(&format!(" -l {long}\n"))
                        }
                        Shell::Bash | Shell::Zsh => part.contains(&format!("--{long}")),
                    };
                    assert!(has, "{shell:?}: wstate {command} --{long} is missing in {part}");
                }
                // What no help shows is offered nowhere.
                for hidden in hidden(&command) {
                    let long = format!("--{hidden}");
                    let is_offered = match shell {
                        Shell::Fish => part.contains(&format!(" -l {hidden} ")),
                        Shell::Bash => part.split(|c: char| c.is_whitespace() || c == '"').any(|word| word == long),
                        Shell::Zsh => part.contains(&format!("{long}[")) || part.contains(&format!("{long}=[")),
                    };
                    assert!(!is_offered, "{shell:?}: wstate {command} offers {long}: {part}");
                }
            }
        }
    }

    #[test]
    fn every_command_has_a_page_with_its_options() {
        let pages = pages().unwrap();
        let commands = commands();
        assert_eq!(pages.len(), commands.len());
        for (command, longs) in commands {
            let name = if command == "wstate" { "wstate.1".to_string() } else { format!("wstate-{command}.1") };
            let (_, page) = pages.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("there is no {name}"));
            let page = String::from_utf8(page.clone()).unwrap();
            assert_eq!((page.matches(APOSTROPHE).count(), page.matches("ds Aq").count()), (1, 2), "{name}");
            for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "SEE ALSO"] {
                let heading = page.lines().any(|l| l.starts_with(".SH") && l.contains(section));
                assert!(heading, "{name} has no {section}: {page}");
            }
            for long in longs {
                let escaped = format!("\\-\\-{}", long.replace('-', "\\-"));
                assert!(page.contains(&escaped), "{name} has no --{long}");
            }
        }
    }

    #[test]
    fn pages_are_written_all_or_none() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("share/man/man1");
        let told = write_pages(&directory).unwrap();
        let mut there: Vec<_> =
            std::fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        there.sort();
        assert_eq!(there.len(), pages().unwrap().len());
        assert!(there.iter().all(|name| name.ends_with(".1") && told.contains(name)), "{there:?} {told}");
        // A page cannot be written where there is a directory, and no other page is written then.
        let other = home.path().join("other");
        std::fs::create_dir_all(other.join("wstate-memory.1")).unwrap();
        assert!(write_pages(&other).is_err());
        assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        let why = write_pages(&file).unwrap_err().to_string();
        assert!(why.ends_with("it is a file; name a directory"), "{why}");
    }
}
