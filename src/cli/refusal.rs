//! What is wrong with a command line, and what to type instead, in one line.

use crate::cli::numbers::{is_digits, quoted};
use crate::phrases::joined;
use crate::report::text::clean;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};
use std::error::Error as _;
use std::ffi::{OsStr, OsString};

/// The command of `root` that the arguments are for, or `root` itself. It is the first word that is a command's name,
/// which is all that can be said of arguments that cannot be parsed.
pub fn concerned<'a>(root: &'a mut Command, args: &[OsString]) -> &'a mut Command {
    root.build();
    let names: Vec<String> = root.get_subcommands().map(|c| c.get_name().to_string()).collect();
    let found = args.iter().filter_map(|a| names.iter().find(|name| a == name.as_str())).find(|name| *name != "help");
    match found {
        Some(name) => root.find_subcommand_mut(name).expect("it has this name"),
        None => root,
    }
}

/// What the parser found to be wrong.
pub fn sentence(root: &Command, command: &Command, error: &clap::Error, args: &[OsString]) -> String {
    if let Some(why) = one_dash(command, args) {
        return why;
    }
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(joined(&texts.iter().map(|t| option(t)).collect::<Vec<_>>(), "and")),
        _ => None,
    };
    let number = |kind| match error.get(kind) {
        Some(ContextValue::Number(n)) => *n,
        _ => 0,
    };
    let arg = text(ContextKind::InvalidArg).unwrap_or_default();
    let name = option(&arg);
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    let valid = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => Some(joined(values, "or")),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidValue if value.is_empty() => match valid {
            Some(valid) => format!("{name} needs a value: {valid}"),
            None => format!("{name} needs a value: {}", plain(&arg)),
        },
        ErrorKind::InvalidValue => {
            let takes = valid.map_or(String::new(), |valid| format!("; it takes {valid}"));
            let similar = text(ContextKind::SuggestedValue).map_or(String::new(), |s| format!("; did you mean {s}?"));
            format!("{} is no value of {name}{takes}{similar}", quoted(&value))
        }
        ErrorKind::ValueValidation => match error.source() {
            Some(source) => format!("{name}: {source}"),
            None => format!("{} is no value of {name}", quoted(&value)),
        },
        ErrorKind::UnknownArgument => unknown_argument(root, command, error, &arg, args),
        // Only `wstate help` takes nothing but the name of a command.
        ErrorKind::InvalidSubcommand => {
            let word = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            match similar(root, OsStr::new(&word)) {
                Some(similar) => format!("there is no command {}; did you mean: wstate help {similar}", quoted(&word)),
                None => format!("there is no command {}: wstate help lists them all", quoted(&word)),
            }
        }
        ErrorKind::ArgumentConflict => match text(ContextKind::PriorArg) {
            Some(prior) if option(&prior) == name => format!("{name} is given twice: give it once"),
            Some(prior) => format!("{name} and {} exclude each other: leave one out", option(&prior)),
            None => format!("{name} is given together with something that excludes it: leave one out"),
        },
        ErrorKind::MissingRequiredArgument => {
            let (missing, are) = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(missing)) => (
                    joined(&missing.iter().map(|m| plain(m)).collect::<Vec<_>>(), "and"),
                    if missing.len() > 1 { "are" } else { "is" },
                ),
                _ => (plain(&arg), "is"),
            };
            format!("{missing} {are} missing{}", as_in(command))
        }
        ErrorKind::TooManyValues => format!("{name} takes no value: leave out {}", quoted(format!("={value}"))),
        ErrorKind::TooFewValues => {
            let (wanted, given) = (number(ContextKind::MinValues), number(ContextKind::ActualNumValues));
            format!("{name} takes {wanted} values and got {given}: {}", plain(&arg))
        }
        ErrorKind::WrongNumberOfValues => {
            let (wanted, given) = (number(ContextKind::ExpectedNumValues), number(ContextKind::ActualNumValues));
            format!("{name} takes {wanted} values and got {given}: {}", plain(&arg))
        }
        ErrorKind::InvalidUtf8 => match args.iter().find(|a| a.to_str().is_none()) {
            Some(arg) => format!("{} is not UTF-8, and only a path may be so", quoted(arg)),
            None => "an argument is not UTF-8, and only a path may be so".to_string(),
        },
        _ => clean(error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ")),
    }
}

/// What is said of a word that is no command, and has `next` behind it. The parser finds one that looks like it.
pub fn no_command(root: &Command, word: &OsStr, next: Option<&OsStr>) -> String {
    let next = next.map_or(String::new(), |next| format!(" {}", clean(&next.to_string_lossy())));
    match similar(root, word) {
        Some(similar) => format!("there is no command {}; did you mean: wstate {similar}{next}", quoted(word)),
        None => format!("{} is neither a command, nor a process id, nor a file", quoted(word)),
    }
}

/// The command whose name looks like `word`.
fn similar(root: &Command, word: &OsStr) -> Option<String> {
    // A command without arguments of its own takes any word for the name of a command.
    let names = Command::new("wstate").subcommands(root.get_subcommands().cloned());
    let error = names.disable_help_subcommand(true).try_get_matches_from([OsStr::new("wstate"), word]).err()?;
    match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(names)) => names.first().cloned(),
        Some(ContextValue::String(name)) => Some(name.clone()),
        _ => None,
    }
}

/// The first example of a command's help, as the end of a sentence.
pub fn as_in(command: &Command) -> String {
    match first_example(command) {
        Some(example) => format!(", as in: {example}"),
        None => String::new(),
    }
}

fn first_example(command: &Command) -> Option<String> {
    let help = command.get_after_help()?.to_string();
    let line = help.lines().skip_while(|line| *line != "Examples:").nth(1)?;
    // Two spaces part a command from what it does.
    line.trim().split("  ").next().map(str::to_string)
}

fn unknown_argument(root: &Command, command: &Command, error: &clap::Error, arg: &str, args: &[OsString]) -> String {
    let digits = arg.strip_prefix('-').filter(|rest| is_digits(rest));
    if digits.is_some() {
        let negative = args.iter().filter_map(|a| a.to_str()).find(|a| a.strip_prefix('-').is_some_and(is_digits));
        let what = if command.get_name() == "memory" { "PID, ADDR and LEN never are" } else { "a process id never is" };
        return format!(
            "{} is negative, and {what}: leave out the minus{}",
            quoted(negative.unwrap_or(arg)),
            as_in(command)
        );
    }
    if !arg.starts_with('-') {
        return format!("{} is one word too many{}", quoted(arg), as_in(command));
    }
    if let Some(ContextValue::String(similar)) = error.get(ContextKind::SuggestedArg) {
        return format!("there is no option {}; did you mean {}?", clean(arg), option(similar));
    }
    let has = |c: &&Command| arg.strip_prefix("--").is_some_and(|long| long_of(c, long).is_some());
    let others: Vec<String> = root.get_subcommands().filter(has).map(|c| format!("wstate {}", c.get_name())).collect();
    match others.is_empty() {
        true => format!("there is no option {}", clean(arg)),
        false => format!(
            "{} has no option {}, which belongs to {}",
            command.get_bin_name().unwrap_or("wstate"),
            clean(arg),
            joined(&others, "and")
        ),
    }
}

fn long_of<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|a| a.get_long() == Some(long) && !a.is_hide_set())
}

/// A long option that was written with one dash: the parser takes it for several short ones.
fn one_dash(command: &Command, args: &[OsString]) -> Option<String> {
    args.iter().filter_map(|a| a.to_str()).take_while(|a| *a != "--").find_map(|arg| {
        let name = arg.strip_prefix('-').filter(|name| name.len() > 2 && !name.starts_with('-'))?;
        let name = name.split('=').next().unwrap_or_default();
        long_of(command, name).map(|_| format!("{} is written with two dashes: --{name}", clean(arg)))
    })
}

/// The name of an argument as the parser shows it: `--wasm <FILE>` is `--wasm`, and `<ADDR>` is `ADDR`.
fn option(shown: &str) -> String {
    plain(shown).split([' ', '=']).next().unwrap_or_default().to_string()
}

/// An argument without the signs that a usage has: `--wasm <FILE>` is `--wasm FILE`.
fn plain(shown: &str) -> String {
    clean(&shown.replace(['<', '>', '[', ']'], "").replace("...", ""))
}
