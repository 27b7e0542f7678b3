//! Text from a target that is safe on a terminal. Names in a process or a core may have been made to deceive who reads them.

use crate::limits;
use std::borrow::Cow;

/// Whether a terminal might obey `c` instead of showing it: controls, and marks that reorder or hide text.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A name from the target that is safe on a terminal: unprintable characters are written as `\u{..}`, and the name is
/// cut off after `limits::MAX_TEXT_NAME` characters.
pub fn clean(text: &str) -> String {
    clean_within(text, limits::MAX_TEXT_NAME)
}

/// The same as `clean` for sentences, which may be longer: they are cut off after `limits::MAX_TEXT_MESSAGE`
/// characters.
pub fn clean_message(text: &str) -> String {
    clean_within(text, limits::MAX_TEXT_MESSAGE)
}

/// A text from the target in full length, with unprintable characters written as `\u{..}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_unprintable(c) {
            true => out.extend(c.escape_unicode()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn clean_within(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => escaped(&text[..end]).into_owned() + "…",
        None => escaped(text).into_owned(),
    }
}
