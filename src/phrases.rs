//! Pieces of text that several layers write in the same way: lists of words, and words for a shell.

/// Words as a list in a sentence, with `last` before the last one: `a, b and c`.
pub(crate) fn joined(words: &[impl AsRef<str>], last: &str) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match &words[..] {
        [] => String::new(),
        [one] => (*one).to_string(),
        [most @ .., end] => format!("{} {last} {end}", most.join(", ")),
    }
}

/// A text as a shell takes it for one word: in quotes, unless it means nothing else to a shell.
pub(crate) fn shell_word(text: &str) -> String {
    // A shell knows letters of every script as letters. A tilde at the start or behind a colon would be a home.
    let is_plain = |c: char| c.is_alphanumeric() || "_-+=./,:@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_string(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_its_word_before_the_last_one() {
        let none: [&str; 0] = [];
        assert_eq!(joined(&none, "and"), "");
        assert_eq!((joined(&["a"], "and"), joined(&["a", "b"], "or")), ("a".to_string(), "a or b".to_string()));
        assert_eq!(joined(&["a".to_string(), "b".to_string(), "c".to_string()], "and"), "a, b and c");
    }

    #[test]
    fn a_text_is_one_word_for_a_shell() {
        assert_eq!(shell_word("/home/me/.cargo/bin/wstate"), "/home/me/.cargo/bin/wstate");
        let odd =
            ["", "/my programs/wstate", "/it's/wstate", "/$HOME/`x`;y/wstate", "~", "a~b", "*", "\u{e9}t\u{e9}", "#"];
        for word in odd {
            let script = format!("printf %s {}", shell_word(word));
            let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word, "{script}");
        }
    }
}
