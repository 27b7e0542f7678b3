//! Numbers and ids as a user types them, and what is said of those that are none.

use crate::report::text::clean;
use crate::session::InstanceChoice;
use std::ffi::OsStr;

/// The largest id that Linux gives to a process or thread on 64 bits (`PID_MAX_LIMIT`).
const LARGEST_ID: u32 = 1 << 22;

/// A word of the user in quotes, safe on a terminal.
pub fn quoted(word: impl AsRef<OsStr>) -> String {
    format!("\"{}\"", clean(&word.as_ref().to_string_lossy()))
}

/// Whether a word has digits and nothing else.
pub fn is_digits(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit())
}

/// A number: decimal, or hexadecimal after `0x`.
///
/// # Errors
/// The text is no number, or larger than 64 bits.
pub fn number(text: &str) -> Result<u64, String> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` takes a sign.
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        let why = "is not a number: give decimal digits, or hexadecimal ones after 0x";
        return Err(format!("{} {why}", quoted(text)));
    }
    u64::from_str_radix(digits, radix).map_err(|_| format!("{} is too large: the most is {}", quoted(text), u64::MAX))
}

/// A number of up to 32 bits, in decimal digits.
///
/// # Errors
/// The text is no such number.
pub fn small(text: &str) -> Result<u32, String> {
    if !is_digits(text) {
        return Err(format!("{} is not a number: give decimal digits, such as 0 or 10", quoted(text)));
    }
    text.parse().map_err(|_| format!("{} is too large: the most is {}", quoted(text), u32::MAX))
}

/// The id of a process or of a thread; `what` says which.
fn id(text: &str, what: &str, find: &str) -> Result<u32, String> {
    if !is_digits(text) {
        return Err(format!("{} is not {what}: give decimal digits ({find})", quoted(text)));
    }
    match text.parse::<i32>() {
        Ok(0) => Err(format!("{} is not {what}: ids begin with 1 ({find})", quoted(text))),
        Ok(id) => Ok(id.unsigned_abs()),
        Err(_) => Err(format!("{} is too large for {what}: the largest is {LARGEST_ID} ({find})", quoted(text))),
    }
}

/// The command that finds the ids of processes with the name `word`.
pub fn pgrep(word: &str) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let is_named = word.len() <= 64 && word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.chars().all(is_name);
    format!("pgrep -a {}", if is_named { word } else { "NAME" })
}

/// The id of a process.
///
/// # Errors
/// The text is no id.
pub fn pid(text: &str) -> Result<u32, String> {
    id(text, "a process id", &format!("find it with {}", pgrep(text)))
}

/// The id of a thread.
///
/// # Errors
/// The text is no id.
pub fn tid(text: &str) -> Result<u32, String> {
    id(text, "a thread id", "find it with ps -L -p PID, or in a report")
}

/// An instance: its number, or its address after `0x`.
///
/// # Errors
/// The text is neither.
pub fn instance(text: &str) -> Result<InstanceChoice, String> {
    let why = "give a number that `wstate modules` shows, or an address (0x...)";
    let n = number(text).map_err(|_| format!("{} is not an instance: {why}", quoted(text)))?;
    if text.starts_with("0x") || text.starts_with("0X") {
        return Ok(InstanceChoice::Address(n));
    }
    u32::try_from(n)
        .map(InstanceChoice::Number)
        .map_err(|_| format!("{} is too large for the number of an instance: {why}", quoted(text)))
}

/// Raw bits: decimal, also negative, or hexadecimal after `0x`.
///
/// # Errors
/// The text is no number, or does not fit into 64 bits.
pub fn bits(text: &str) -> Result<u64, String> {
    match text.strip_prefix('-') {
        Some(digits) if is_digits(digits) => match text.parse::<i64>() {
            Ok(n) => Ok(n.cast_unsigned()),
            Err(_) => Err(format!("{} is too small: the least is {}", quoted(text), i64::MIN)),
        },
        _ => number(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_people_type() {
        assert_eq!(number("0"), Ok(0));
        assert_eq!((number("0x400"), number("0X400"), number("1024")), (Ok(1024), Ok(1024), Ok(1024)));
        assert_eq!(number("18446744073709551615"), Ok(u64::MAX));
        for wrong in ["", "0x", "x", "0xzz", "+5", "0x+5", "-1", " 1", "1 ", "4_000", "18446744073709551616", "٣"] {
            let why = number(wrong).unwrap_err();
            assert!(why.contains(wrong) && !why.contains("digit found"), "{why}");
        }
        assert_eq!((bits("-1"), bits("7"), bits("0x7")), (Ok(u64::MAX), Ok(7), Ok(7)));
        assert_eq!(bits("-9223372036854775808"), Ok(1 << 63));
        assert!(bits("-9223372036854775809").is_err() && bits("--1").is_err() && bits("-").is_err());
        assert_eq!((small("0"), small("4294967295")), (Ok(0), Ok(u32::MAX)));
        assert!(small("4294967296").is_err() && small("0x1").is_err());
    }

    #[test]
    fn ids_are_positive_and_fit() {
        assert_eq!((pid("1"), pid("0004711"), tid("2147483647")), (Ok(1), Ok(4711), Ok(i32::MAX as u32)));
        for wrong in ["", "0", "00", "-1", "+1", "2147483648", "99999999999999999999", "0x10", "four", "1\n2"] {
            for why in [pid(wrong).unwrap_err(), tid(wrong).unwrap_err()] {
                assert!(!why.contains('\n') && !why.contains("digit found"), "{why}");
            }
        }
        assert_eq!(pgrep("near-host"), "pgrep -a near-host");
        assert_eq!([pgrep("a b"), pgrep("-x"), pgrep("$(x)"), pgrep("")], ["pgrep -a NAME"; 4].map(String::from));
    }

    #[test]
    fn instances_are_numbers_or_addresses() {
        assert_eq!(instance("1"), Ok(InstanceChoice::Number(1)));
        assert_eq!(instance("0x1"), Ok(InstanceChoice::Address(1)));
        assert!(instance("4294967296").unwrap_err().contains("wstate modules"));
        assert!(instance("x").unwrap_err().contains("wstate modules"));
    }
}
