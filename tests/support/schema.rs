//! Whether JSON is what `wstate schema` prints of it. Every helper that runs wstate asks here.

use serde_json::Value;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// The document that these arguments make wstate print, if it is JSON.
fn document(args: &[&OsStr]) -> Option<&'static str> {
    let words: Vec<&str> = args.iter().filter_map(|a| a.to_str()).collect();
    let json = ["-j", "--json", "--pretty", "--format=json"];
    let asked = words.iter().any(|w| json.contains(w)) || words.windows(2).any(|w| w == ["--format", "json"]);
    let has = |word| words.contains(&word);
    // Written elsewhere.
    if !asked || has("--output") || has("-o") {
        return None;
    }
    Some(match words.iter().find(|w| !w.starts_with('-')).copied() {
        Some("modules") => "modules",
        Some("doctor") => "doctor",
        Some("image") if has("--hexdump") => return None,
        Some("image") if has("--diff") => "difference",
        Some("image") => "image",
        _ => "report",
    })
}

/// The printed schema of a document.
pub fn printed(document: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wstate"));
    let output = command.args(["schema", document]).stdin(Stdio::null()).output().expect("wstate starts");
    assert!(output.status.success(), "there is a schema of {document}");
    serde_json::from_slice(&output.stdout).expect("a schema is JSON")
}

/// Panics where `value` is not what the printed schema says of the document, or of its part `part` (`Frame`).
pub fn check_part(document: &'static str, part: Option<&'static str>, value: &Value) {
    type Schemas = Mutex<HashMap<(&'static str, Option<&'static str>), &'static jsonschema::Validator>>;
    static SCHEMAS: OnceLock<Schemas> = OnceLock::new();
    let schema = *SCHEMAS.get_or_init(Schemas::default).lock().unwrap().entry((document, part)).or_insert_with(|| {
        let mut schema = printed(document);
        if let Some(part) = part {
            schema = serde_json::json!({
                "$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": format!("#/$defs/{part}")
            });
        }
        Box::leak(Box::new(jsonschema::validator_for(&schema).expect("a schema")))
    });
    let wrong: Vec<String> =
        schema.iter_errors(value).take(5).map(|e| format!("{} at {}", e, e.instance_path())).collect();
    assert!(wrong.is_empty(), "{document} {part:?} is not what `wstate schema` says: {wrong:#?}");
}

/// Panics where `value` is not what the printed schema says of the document.
pub fn check(document: &'static str, value: &Value) {
    check_part(document, None, value);
}

/// Panics where `stdout`, which wstate printed with these arguments, is JSON and not what the printed schema says.
pub fn check_output(args: &[&OsStr], stdout: &[u8]) {
    let Some(document) = document(args).filter(|_| !stdout.is_empty()) else { return };
    let value = serde_json::from_slice(stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"));
    check(document, &value);
    // Users of the library read the same document again, and miss nothing of it.
    let text = std::str::from_utf8(stdout).expect("JSON is text");
    let again = match document {
        "report" => wstate::model::Report::from_json(text).map(|report| serde_json::to_value(report).unwrap()),
        "modules" => wstate::model::Contents::from_json(text).map(|contents| serde_json::to_value(contents).unwrap()),
        _ => return,
    };
    assert_eq!(again.unwrap_or_else(|e| panic!("{args:?}: {e}")), value, "{args:?}");
}
