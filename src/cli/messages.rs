//! What wstate itself says beside its results: errors, warnings, notes and hints on standard error, in the colours in
//! which the parser of the command line prints its errors.

use crate::report::text::clean_message;
use clap::builder::styling::{Style, Styles};
use clap::{Command, ValueEnum};
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

/// When there is colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR or CLICOLOR=0 is set; CLICOLOR_FORCE sets it everywhere
    #[default]
    Auto,
    /// Also in files and pipes
    Always,
    /// Never
    Never,
}

/// The colours of all output of this run. It is decided once, before the command line is parsed.
static COLOR: OnceLock<Color> = OnceLock::new();

/// Decides about colour. `args` are the arguments as they came: what the parser says about wrong ones has to obey, too.
pub fn begin(args: &[OsString]) {
    let _ = COLOR.set(of_arguments(args).filter(|c| *c != Color::Auto).unwrap_or_else(|| {
        let set = |name: &str| std::env::var_os(name).and_then(|v| v.into_string().ok());
        of_environment(set)
    }));
}

/// What the arguments say. The last one counts.
fn of_arguments(args: &[OsString]) -> Option<Color> {
    let mut args = args.iter().map(|a| a.to_str().unwrap_or_default()).take_while(|a| *a != "--");
    let mut color = None;
    while let Some(arg) = args.next() {
        let value = match arg {
            "--no-color" => Some("never"),
            "--color" => args.next(),
            _ => arg.strip_prefix("--color="),
        };
        color = value.and_then(|v| Color::from_str(v, false).ok()).or(color);
    }
    color
}

/// What the environment says: no-color.org and bixense.com/clicolors.
fn of_environment(set: impl Fn(&str) -> Option<String>) -> Color {
    let set = |name: &str| set(name).filter(|v| !v.is_empty());
    let is = |name: &str, value: &str| set(name).is_some_and(|v| v == value);
    if set("NO_COLOR").is_some() {
        Color::Never
    } else if set("CLICOLOR_FORCE").is_some_and(|v| v != "0") {
        Color::Always
    } else if is("CLICOLOR", "0") || is("TERM", "dumb") {
        Color::Never
    } else {
        Color::Auto
    }
}

/// Whether what goes to standard output, or with `elsewhere` to a file, has colour.
pub fn is_colored(elsewhere: bool) -> bool {
    match COLOR.get() {
        Some(Color::Always) => true,
        Some(Color::Auto) => !elsewhere && io::stdout().is_terminal(),
        Some(Color::Never) | None => false,
    }
}

/// Whether what goes to standard error has colour.
pub fn is_error_colored() -> bool {
    match COLOR.get() {
        Some(Color::Always) => true,
        Some(Color::Auto) => io::stderr().is_terminal(),
        Some(Color::Never) | None => false,
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no result.
    Error,
    /// The result is worse than it looks.
    Warning,
    /// Something is missing in the result, or worth knowing about it.
    Note,
    /// What to try next.
    Hint,
    /// How long it took.
    Timing,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Error, Kind::Warning, Kind::Note, Kind::Hint, Kind::Timing];

    /// The word before the message.
    const fn word(self) -> &'static str {
        match self {
            Kind::Error => "error:",
            Kind::Warning => "warning:",
            Kind::Note => "note:",
            Kind::Hint => "hint:",
            Kind::Timing => "timing:",
        }
    }

    /// What stands before the word. A hint belongs to the message above it.
    const fn program(self) -> &'static str {
        match self {
            Kind::Hint => "",
            _ => "wstate: ",
        }
    }

    fn style(self) -> Style {
        let styles = Styles::styled();
        match self {
            Kind::Error => *styles.get_error(),
            Kind::Warning | Kind::Note => *styles.get_invalid(),
            Kind::Hint => *styles.get_valid(),
            Kind::Timing => *styles.get_literal(),
        }
    }

    /// All that stands before the message.
    fn prefix(self, color: bool) -> String {
        let style = if color { self.style() } else { Style::new() };
        format!("{}{style}{}{style:#} ", self.program(), self.word())
    }
}

/// Prints a message in one line on standard error. It is no failure if nobody can read it.
pub fn print(kind: Kind, text: impl Display) {
    let line = format!("{}{}\n", kind.prefix(is_error_colored()), clean_message(&text.to_string()));
    // In one call, and not by eprintln, which panics if standard error is closed.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// Colours the words `note:` and `hint:` at the beginnings of the lines of a text for people.
pub fn paint(text: &str, color: bool) -> String {
    if !color {
        return text.to_string();
    }
    let line = |line: &str| {
        let rest = |kind: &Kind| line.strip_prefix(kind.word()).map(|rest| (*kind, rest));
        match Kind::ALL.iter().find_map(rest) {
            Some((kind, rest)) => format!("{}{}{:#}{rest}", kind.style(), kind.word(), kind.style()),
            None => line.to_string(),
        }
    };
    text.split_inclusive('\n').map(line).collect()
}

/// An error and a hint, written where nothing can be allocated any more: in a signal handler, or without memory.
pub fn write_bare(error: &[u8], hint: &[u8]) {
    let [before_error, before_hint]: [&[u8]; 2] = match is_error_colored() {
        true => [BARE_ERROR_COLORED.as_bytes(), BARE_HINT_COLORED.as_bytes()],
        false => [b"wstate: error: ", b"hint: "],
    };
    let parts = [before_error, error, b"\n", before_hint, hint, b"\n"];
    let _ = rustix::io::writev(io::stderr(), &parts.map(io::IoSlice::new));
}

const BARE_ERROR_COLORED: &str = "wstate: \x1b[1m\x1b[31merror:\x1b[0m ";
const BARE_HINT_COLORED: &str = "\x1b[32mhint:\x1b[0m ";

/// Says that a command line is wrong: in one line what is wrong and what to type, then how `command` is used.
pub fn usage(command: &mut Command, why: &str) {
    let color = is_error_colored();
    let usage = command.render_usage();
    let usage = if color { usage.ansi().to_string() } else { usage.to_string() };
    let name = command.get_bin_name().unwrap_or("wstate");
    let styles = if color { Styles::styled() } else { Styles::plain() };
    let literal = styles.get_literal();
    let text = format!(
        "{}{}\n\n{}\n\nFor more information, try '{literal}{name} --help{literal:#}'.\n",
        Kind::Error.prefix(color),
        clean_message(why),
        usage.trim_end()
    );
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Prints a help or a version, which go to standard output, or to standard error if they were not asked for.
pub fn print_help(help: &clap::Error) {
    let rendered = help.render();
    let text = |color| if color { rendered.ansi().to_string() } else { rendered.to_string() };
    // It is no failure if the reader of the text went away.
    let _ = match help.use_stderr() {
        true => io::stderr().lock().write_all(text(is_error_colored()).as_bytes()),
        false => io::stdout().lock().write_all(text(is_colored(false)).as_bytes()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_decide_about_colour_before_they_are_parsed() {
        let of = |args: &[&str]| of_arguments(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of(&["attach", "1"]), None);
        assert_eq!(of(&["--color", "never", "attach"]), Some(Color::Never));
        assert_eq!(of(&["attach", "--color=always"]), Some(Color::Always));
        assert_eq!(of(&["--color=always", "--no-color"]), Some(Color::Never));
        assert_eq!(of(&["--no-color", "--color", "auto"]), Some(Color::Auto));
        assert_eq!(of(&["--color", "blue"]), None);
        assert_eq!(of(&["--color"]), None);
        assert_eq!(of(&["--", "--no-color"]), None);
    }

    #[test]
    fn the_environment_decides_next() {
        let of = |set: &[(&str, &str)]| {
            of_environment(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
        };
        assert_eq!(of(&[]), Color::Auto);
        assert_eq!(of(&[("NO_COLOR", "")]), Color::Auto);
        assert_eq!(of(&[("NO_COLOR", "0")]), Color::Never);
        assert_eq!(of(&[("CLICOLOR", "0")]), Color::Never);
        assert_eq!(of(&[("CLICOLOR", "1")]), Color::Auto);
        assert_eq!(of(&[("CLICOLOR_FORCE", "1")]), Color::Always);
        assert_eq!(of(&[("CLICOLOR_FORCE", "0")]), Color::Auto);
        assert_eq!(of(&[("CLICOLOR_FORCE", "")]), Color::Auto);
        assert_eq!(of(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]), Color::Never);
        assert_eq!(of(&[("CLICOLOR_FORCE", "1"), ("CLICOLOR", "0")]), Color::Always);
        assert_eq!(of(&[("TERM", "dumb")]), Color::Never);
    }

    #[test]
    fn what_is_written_without_memory_looks_the_same() {
        assert_eq!(Kind::Error.prefix(true), BARE_ERROR_COLORED);
        assert_eq!(Kind::Hint.prefix(true), BARE_HINT_COLORED);
        assert_eq!(
            (Kind::Error.prefix(false).as_str(), Kind::Hint.prefix(false).as_str()),
            ("wstate: error: ", "hint: ")
        );
    }

    #[test]
    fn words_of_a_text_are_coloured_and_nothing_else() {
        let text = "thread 1: 2 frames\nnote: x\nhint: note: y\n";
        assert_eq!(paint(text, false), text);
        let (note, hint) = (Kind::Note.style(), Kind::Hint.style());
        let colored = format!("thread 1: 2 frames\n{note}note:{note:#} x\n{hint}hint:{hint:#} note: y\n");
        assert_eq!(paint(text, true), colored);
    }
}
