//! The JSON form of a report, and its schema; and how documents are read again.

use super::{Report, SCHEMA_VERSION};
use crate::error::Error;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::cell::Cell;
use std::marker::PhantomData;

impl Report {
    /// Reads a report that wstate has printed as JSON, this version or another one.
    ///
    /// A document of an older or a newer version may lack keys, have null for any key, and have keys and words that this
    /// version does not know. It is read all the same: what is not there is `None` or empty, a word that is not known is
    /// the variant `NotKnown` of its type, and keys that are not known are passed over. A reason is the [`Why`](super::Why)
    /// that it was if its text tells that, and `Why::Other` with the same text if not. What is not in the JSON form, such
    /// as the bytes of a source variable, is missing.
    ///
    /// The text may be hostile. Time and memory grow with its length and with nothing else, so whoever limits the length
    /// limits all, as [`confined`](crate::confined) does.
    ///
    /// ```
    /// let text = r#"{"schema_version": 1, "threads": [{"tid": 4711, "frames": []}], "tomorrow": true}"#;
    /// let report = wstate::model::Report::from_json(text)?;
    /// assert_eq!(report.threads[0].tid, Some(4711));
    /// # Ok::<(), wstate::Error>(())
    /// ```
    ///
    /// # Errors
    /// The text is no report: it is not JSON, `schema_version` is missing, or a key has a value of another type. Or it
    /// has a form that this version does not know: the keys mean something else there.
    pub fn from_json(text: &str) -> Result<Report, Error> {
        read(text)
    }

    /// The report as one JSON document with a newline at its end. `pretty` says whether it is indented.
    pub fn to_json(&self, pretty: bool) -> String {
        document(self, pretty)
    }
}

/// The JSON schema of a report.
#[cfg(feature = "cli")]
pub fn schema() -> String {
    schema_of::<Report>()
}

/// The JSON schema of documents of type `T`.
#[cfg(feature = "cli")]
pub fn schema_of<T: schemars::JsonSchema>() -> String {
    // The schema says what is written, and not what a reader takes for a key that is missing.
    let no_default = |schema: &mut schemars::Schema| drop(schema.remove("default"));
    let settings = schemars::generate::SchemaSettings::draft2020_12()
        .for_serialize()
        .with_transform(schemars::transform::RecursiveTransform(no_default));
    document(&settings.into_generator().into_root_schema_for::<T>(), true)
}

/// Any of this crate's documents as JSON text with a newline at its end.
pub fn document(value: &impl Serialize, pretty: bool) -> String {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    // Writing these types to memory cannot fail: no map has keys other than strings.
    let text = text.unwrap_or_else(|e| format!("{{\"error\": \"{}\"}}", e.to_string().replace(['"', '\\'], "'")));
    escape_controls(&text) + "\n"
}

/// Escapes characters that JSON leaves as they are although a terminal may obey them: DEL, the C1 controls and the
/// bidirectional overrides. They can only be inside of strings, where an escape means the same.
fn escape_controls(json: &str) -> String {
    if !json.contains(super::escape::is_unprintable) {
        return json.to_string();
    }
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && super::escape::is_unprintable(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// The key that says which form a document has.
#[derive(Deserialize)]
struct Form {
    schema_version: Option<u64>,
}

/// Reads one of this crate's documents.
pub(super) fn read<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    let no_document = |why: String| Error::Document { why };
    let form: Form = serde_json::from_str(text).map_err(|e| no_document(format!("as JSON it is broken: {e}")))?;
    match form.schema_version {
        Some(version) if version == u64::from(SCHEMA_VERSION) => {}
        Some(version) => {
            return Err(no_document(format!(
                "its form is number {version}, and this version of wstate reads number {SCHEMA_VERSION}"
            )));
        }
        None => return Err(no_document("it does not say its form (the key schema_version)".to_string())),
    }
    let _budget = Budget::of(text.len());
    serde_json::from_str(text).map_err(|e| no_document(e.to_string()))
}

/// Rows that are written as `{}` take hundreds of times as much memory as their text. Those that wstate writes have all
/// their keys and take about as much as their text.
const BYTES_FOR_A_BYTE: usize = 8;
/// Bytes that rows may take in any document.
const BYTES_IN_ANY_CASE: usize = 1 << 20;

thread_local! {
    /// Bytes that the rows of the document that is being read may still take; `None` where nothing is limited.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Limits the memory of rows for as long as it lives. `Deserialize` leads through derived code, to which nothing can be
/// handed over.
struct Budget;

impl Budget {
    fn of(text: usize) -> Budget {
        LEFT.set(Some(text.saturating_mul(BYTES_FOR_A_BYTE).saturating_add(BYTES_IN_ANY_CASE)));
        Budget
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        LEFT.set(None);
    }
}

/// A list that is read within the budget.
struct Rows<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Rows<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Rows<T>, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Rows<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Rows<T>, A::Error> {
                let mut out = Vec::new();
                while let Some(row) = rows.next_element()? {
                    if let Some(left) = LEFT.get() {
                        let left = left.checked_sub(size_of::<T>());
                        LEFT.set(Some(
                            left.ok_or_else(|| A::Error::custom("it has more rows than a text of its length has"))?,
                        ));
                    }
                    out.push(row);
                }
                Ok(Rows(out))
            }
        }
        d.deserialize_seq(Reader(PhantomData))
    }
}

/// Reads a list that may be null.
pub(super) fn optional_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<Vec<T>>, D::Error> {
    Ok(Option::<Rows<T>>::deserialize(d)?.map(|rows| rows.0))
}

/// Reads a list; null is an empty one.
pub(super) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    Ok(optional_list(d)?.unwrap_or_default())
}

/// Reads null as the default.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// Reads null as a number that is none: zero would be a wrong value.
pub(super) fn or_nan<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or(f64::NAN))
}

/// The number of a key that is missing.
pub(super) fn not_a_number() -> f64 {
    f64::NAN
}

/// Reads a hexadecimal text with `0x` and at most so many digits.
pub(super) fn hexadecimal<'de, D: Deserializer<'de>>(d: D, most: usize) -> Result<u128, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(d)?;
    let digits = text.strip_prefix("0x").unwrap_or_default();
    // `from_str_radix` would take a sign.
    let is_number = (1..=most).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let number = u128::from_str_radix(digits, 16).ok().filter(|_| is_number);
    number.ok_or_else(|| {
        let start: String = text.chars().take(40).collect();
        D::Error::custom(format!("{start:?} is no hexadecimal number of at most {most} digits with 0x"))
    })
}

#[cfg(all(test, feature = "cli"))]
mod tests;
