//! The printed schemas list every word that is written: each variant of each closed set in the sources, and no more.

use crate::support::rust_files;
use crate::support::schema;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const DOCUMENTS: [&str; 6] = ["report", "modules", "doctor", "image", "difference", "imports"];

/// Keys whose text is free: names and paths of the target, sentences for people, numbers written as text.
const FREE: [&str; 39] = [
    "backend",
    "bits",
    "build_id",
    "checks",
    // The path of the core that a doctor examined.
    "core",
    "debug_file",
    "command_line",
    "description",
    "evidence",
    "executable",
    "file",
    "index",
    "locals_why",
    "meaning",
    "memories_why",
    "exports_why",
    "functions_why",
    "globals_why",
    "instances_why",
    "module",
    "name",
    "next",
    "notes",
    "objects_problems",
    "op",
    "path",
    "place",
    "problem",
    "registers",
    "stack_why",
    "system_call",
    "tables_why",
    "value",
    "wasm_file",
    "what",
    "why",
    "written",
    "wstate_version",
    // Of a variable of the source language; a Wasm type is a word.
    "type",
];

/// The closed sets in the sources: what is between `words! {` and its end.
fn words_of_the_sources() -> BTreeMap<String, BTreeSet<String>> {
    let mut out = BTreeMap::new();
    for file in rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for block in text.split("\nwords! {\n").skip(1) {
            let block = block.split("\n}\n").next().unwrap();
            let mut name = String::new();
            for line in block.lines().map(str::trim).filter(|l| !l.starts_with("///") && !l.is_empty()) {
                if let Some(set) = line.strip_suffix(" {") {
                    name = set.to_string();
                } else if let Some((_, word)) = line.split_once(" = ") {
                    let word = word.trim_matches(['"', ',']).to_string();
                    assert!(out.entry(name.clone()).or_insert_with(BTreeSet::new).insert(word), "{name}: {line}");
                } else {
                    assert_eq!(line, "}", "{}: {line}", file.display());
                }
            }
        }
    }
    out
}

fn listed(definition: &Value) -> Option<BTreeSet<String>> {
    let words = definition["enum"].as_array()?;
    Some(words.iter().map(|w| w.as_str().unwrap().to_string()).collect())
}

#[test]
fn the_schemas_list_every_word_and_no_more() {
    let sources = words_of_the_sources();
    assert!(sources.len() >= 12 && sources["FoundBy"].contains("image"), "{sources:?}");
    let mut seen = BTreeSet::new();
    for document in DOCUMENTS {
        let printed = schema::printed(document);
        for (name, definition) in printed["$defs"].as_object().into_iter().flatten() {
            let Some(words) = listed(definition) else { continue };
            assert_eq!(Some(&words), sources.get(name), "{document}: {name}");
            seen.insert(name.clone());
        }
    }
    let missing: Vec<&String> = sources.keys().filter(|name| !seen.contains(*name)).collect();
    assert!(missing.is_empty(), "in no schema: {missing:?}");
}

/// A key with text that is neither a word nor known to be free is one of which somebody forgot to say what it can be.
#[test]
fn every_other_text_is_free() {
    fn texts(key: &str, schema: &Value, found: &mut BTreeSet<String>) {
        let is_text = match &schema["type"] {
            Value::String(ty) => ty == "string",
            Value::Array(types) => types.iter().any(|t| t == "string"),
            _ => false,
        };
        if is_text && schema.get("enum").is_none() && schema.get("pattern").is_none() {
            found.insert(key.to_string());
        }
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            texts(key, property, found);
        }
        for part in ["items", "additionalProperties"] {
            schema.get(part).into_iter().for_each(|s| texts(key, s, found));
        }
        for part in ["anyOf", "oneOf", "prefixItems"].iter().filter_map(|p| schema.get(p)?.as_array()).flatten() {
            if part.get("const").is_none() {
                texts(key, part, found);
            }
        }
        for (name, definition) in schema["$defs"].as_object().into_iter().flatten() {
            texts(name, definition, found);
        }
    }
    for document in DOCUMENTS {
        let mut found = BTreeSet::new();
        texts(document, &schema::printed(document), &mut found);
        found.retain(|key| !FREE.contains(&key.as_str()));
        assert!(found.is_empty(), "{document}: {found:?}");
    }
}

#[test]
fn what_is_not_in_the_schema_is_refused() {
    let report = |route: &str, kind: &str| {
        let keys = ["index", "name", "code_start", "code_end", "functions", "tracked", "backend"];
        let more = ["wasm_file", "wasm_compared", "problem"];
        let mut module: Value = keys.iter().chain(&more).map(|key| (key.to_string(), Value::Null)).collect();
        (module["routes"], module["checks"]) = (vec![route].into(), Vec::<Value>::new().into());
        let none = serde_json::json!([]);
        serde_json::json!({
            "schema_version": 1, "wstate_version": "0",
            "target": {
                "kind": kind, "pid": null, "executable": null, "description": null, "path": null, "signal": null,
            },
            "runtimes": [{"name": "wasmtime", "modules": [module]}],
            "engines": none, "objects_problems": none, "notes": none, "threads": none,
        })
    };
    let fits = |value: Value| std::panic::catch_unwind(|| schema::check("report", &value)).is_ok();
    assert!(fits(report("image", "core")));
    assert!(!fits(report("telepathy", "core")) && !fits(report("image", "dream")));
}
