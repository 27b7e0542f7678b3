//! The JSON form of a report, and its schema.

use super::Report;
use serde::Serialize;

impl Report {
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
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
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
    if !json.contains(super::text::is_unprintable) {
        return json.to_string();
    }
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && super::text::is_unprintable(c) {
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
