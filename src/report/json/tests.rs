//! Documents of other versions, and hostile ones. What a document may have is taken from its schema, so that a new key is
//! tested as soon as it is there.

use super::super::contents::Contents;
use super::super::escape::is_unprintable;
use super::super::text::TextOptions;
use super::super::{FoundBy, FrameKind, Place, Report, ValType, Value as ReportValue};
use super::*;
use crate::arch::x64;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// A document of this crate, by its schema.
struct Kind {
    schema: Value,
    /// What is written when the document has been read.
    again: fn(&Value) -> Result<Value, Error>,
    text: fn(&Value) -> Result<String, Error>,
    /// Keys without which the document says nothing, or nothing of one of its rows.
    needed: &'static [&'static str],
}

/// Everything that a report can print.
fn plain() -> TextOptions {
    TextOptions { verbose: true, ..TextOptions::default() }
}

fn kinds() -> &'static [Kind; 2] {
    static KINDS: LazyLock<[Kind; 2]> = LazyLock::new(make_kinds);
    &KINDS
}

fn make_kinds() -> [Kind; 2] {
    let parsed = |schema: String| serde_json::from_str(&schema).unwrap();
    [
        Kind {
            schema: parsed(schema()),
            again: |json| Ok(serde_json::to_value(Report::from_json(&json.to_string())?).unwrap()),
            text: |json| Ok(Report::from_json(&json.to_string())?.to_text(plain())),
            needed: &["schema_version"],
        },
        Kind {
            schema: parsed(schema_of::<Contents>()),
            again: |json| Ok(serde_json::to_value(Contents::from_json(&json.to_string())?).unwrap()),
            text: |json| Ok(Contents::from_json(&json.to_string())?.to_text(plain())),
            needed: &[
                "schema_version",
                "module_index",
                "number",
                "index",
                "address",
                "imported",
                "memory64",
                "shared",
                "name",
            ],
        },
    ]
}

impl Kind {
    /// A document that has each key of the schema, and one row in each list.
    fn full(&self) -> Value {
        let mut full = self.sample(&self.schema);
        full["schema_version"] = SCHEMA_VERSION.into();
        full
    }

    fn sample(&self, schema: &Value) -> Value {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.rsplit('/').next().unwrap();
            let mut all = self.sample(&self.schema["$defs"][name]);
            // Keys beside a reference: a row that is flattened into another one.
            if let (Some(all), Some(more)) = (all.as_object_mut(), schema["properties"].as_object()) {
                all.extend(more.iter().map(|(key, property)| (key.clone(), self.sample(property))));
            }
            return all;
        }
        if let Some(words) = schema["enum"].as_array() {
            return words[0].clone();
        }
        if let Some(any) = schema["anyOf"].as_array() {
            return self.sample(any.iter().find(|one| one["type"] != "null").unwrap());
        }
        let ty = match &schema["type"] {
            Value::Array(types) => types.iter().find(|ty| *ty != "null").unwrap(),
            ty => ty,
        };
        match ty.as_str().unwrap_or_else(|| panic!("{schema}")) {
            "object" => {
                let properties = schema["properties"].as_object().into_iter().flatten();
                let mut all: Map<String, Value> = properties.map(|(key, of)| (key.clone(), self.sample(of))).collect();
                if schema["additionalProperties"].is_object() {
                    all.insert("rsp".to_string(), self.sample(&schema["additionalProperties"]));
                }
                Value::Object(all)
            }
            "array" => json!([self.sample(&schema["items"])]),
            "string" if schema["pattern"].is_string() => "0x1f".into(),
            "string" => "some text".into(),
            "integer" => 7.into(),
            "number" => 1.5.into(),
            "boolean" => true.into(),
            other => panic!("{other}"),
        }
    }
}

/// The pointers of all keys of a document. Registers are no keys: their names are what the document tells.
fn keys(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(all) => {
            for (key, value) in all.iter().filter(|_| !at.ends_with("/registers")) {
                let at = format!("{at}/{key}");
                keys(value, &at, found);
                found.push(at);
            }
        }
        Value::Array(all) => all.iter().enumerate().for_each(|(i, value)| keys(value, &format!("{at}/{i}"), found)),
        _ => {}
    }
}

fn keys_of(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    keys(value, "", &mut found);
    found
}

fn with(value: &Value, at: &str, put: Value) -> Value {
    let mut value = value.clone();
    *value.pointer_mut(at).unwrap() = put;
    value
}

fn without(value: &Value, at: &str) -> Value {
    let mut value = value.clone();
    let (object, key) = at.rsplit_once('/').unwrap();
    value.pointer_mut(object).unwrap().as_object_mut().unwrap().remove(key);
    value
}

/// Whether a value says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is) => !is,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.values().all(is_empty),
        Value::Number(_) => false,
    }
}

#[test]
fn every_key_is_read_and_written_again() {
    for kind in kinds() {
        let full = kind.full();
        assert!(keys_of(&full).len() > 60);
        assert_eq!((kind.again)(&full).unwrap(), full);
    }
}

#[test]
fn each_key_may_be_null_or_missing_and_is_empty_then() {
    for kind in kinds() {
        let full = kind.full();
        for at in keys_of(&full) {
            let key = at.rsplit('/').next().unwrap();
            let (null, missing) = ((kind.again)(&with(&full, &at, Value::Null)), (kind.again)(&without(&full, &at)));
            match null {
                Ok(null) => {
                    assert_eq!(null, missing.unwrap_or_else(|e| panic!("{at}: {e}")), "{at}");
                    assert!(is_empty(null.pointer(&at).unwrap_or(&Value::Null)), "{at}: {null}");
                    let rest = if null.pointer(&at).is_some() { without(&null, &at) } else { null };
                    assert_eq!(rest, without(&full, &at), "{at}");
                    assert!(key != "schema_version");
                }
                Err(e) => {
                    assert!(kind.needed.contains(&key), "{at}: {e}");
                    assert!(missing.unwrap_err().to_string().contains(key), "{at}");
                }
            }
        }
    }
}

#[test]
fn keys_that_are_not_known_are_passed_over() {
    for kind in kinds() {
        let full = kind.full();
        let objects = keys_of(&full).into_iter().map(|at| at.rsplit_once('/').unwrap().0.to_string());
        for at in objects.collect::<std::collections::BTreeSet<_>>() {
            let mut more = full.clone();
            let object = more.pointer_mut(&at).unwrap().as_object_mut().unwrap();
            object.insert("tomorrow".to_string(), json!({"a": [1, {"b": null}]}));
            assert_eq!((kind.again)(&more).unwrap(), full, "{at}");
        }
    }
}

#[test]
fn a_word_that_is_not_known_is_no_error_and_is_not_known() {
    let mut words = 0;
    for kind in kinds() {
        let full = kind.full();
        for at in keys_of(&full).into_iter().chain(["/runtimes/0/modules/0/routes/0".to_string()]) {
            if !full.pointer(&at).unwrap().is_string() {
                continue;
            }
            match (kind.again)(&with(&full, &at, "word of tomorrow".into())) {
                Ok(again) if again.pointer(&at).unwrap().is_null() => {
                    words += 1;
                    // `supported` follows the name of the engine.
                    assert_eq!(without_supported(&again), without_supported(&with(&full, &at, Value::Null)), "{at}");
                    let text = (kind.text)(&with(&full, &at, "word of tomorrow".into())).unwrap();
                    assert!(!text.contains("word of tomorrow"));
                }
                Ok(again) => assert_eq!(again.pointer(&at).unwrap(), "word of tomorrow", "{at}"),
                Err(e) => assert!(e.to_string().contains("no hexadecimal number"), "{at}: {e}"),
            }
        }
    }
    assert!(words >= 20, "{words}");
    for word in FrameKind::ALL {
        assert_eq!(serde_json::from_value::<FrameKind>(word.as_str().into()).unwrap(), *word);
    }
    let routes: Vec<FoundBy> = serde_json::from_value(json!(["heap", "telepathy", null])).unwrap();
    assert_eq!(routes, [FoundBy::Heap, FoundBy::NotKnown, FoundBy::NotKnown]);
    assert_eq!(serde_json::to_value(ValType::NotKnown).unwrap(), Value::Null);
}

fn without_supported(value: &Value) -> Value {
    with(value, "/engines/0/supported", false.into())
}

#[test]
fn places_are_read_as_they_were_if_their_text_tells() {
    let read = |place: &str, address: Option<&str>| {
        let value: ReportValue = serde_json::from_value(json!({"place": place, "address": address})).unwrap();
        assert_eq!(serde_json::to_value(&value).unwrap()["place"], place);
        value.place.unwrap()
    };
    let reg = x64::RBX;
    for (place, address) in [
        (Place::Register { reg, saved_at: None }, None),
        (Place::Register { reg: x64::XMM15, saved_at: Some(u64::MAX) }, None),
        (Place::Memory { base: reg, offset: -0x28, address: 0x7000 }, Some("0x7000")),
        (Place::Memory { base: reg, offset: i64::MIN, address: 0 }, Some("0x0")),
        (Place::Memory { base: reg, offset: i64::MAX, address: 1 }, Some("0x1")),
        (Place::Address(0x7000), Some("0x7000")),
        (Place::Address(0), None),
        (Place::Constant, None),
    ] {
        assert_eq!(read(&place.to_string(), address), place);
    }
    // Without its address, a place in memory is no more than its text.
    assert_eq!(read("[rbx-0x28]", None), Place::Other("[rbx-0x28]".to_string()));
    for other in [
        "",
        "x19",
        "[x29+0x10]",
        "[rbx-0x]",
        "[rbx-0xffffffffffffffff]",
        "[0x]",
        "[0x+1]",
        "[]",
        "[",
        "rbx, saved at",
        "rbx, saved at 1",
        "RBX",
        "[rbx+0x028]",
        "[é-0x1]",
        "\u{1b}[2J",
    ] {
        assert_eq!(read(other, Some("0x1")), Place::Other(other.to_string()));
    }
}

#[test]
fn numbers_are_read_whole_or_not_at_all() {
    let hex = |text: &str| serde_json::from_value::<super::super::Hex>(text.into()).ok().map(|hex| hex.0);
    assert_eq!((hex("0x0"), hex("0xffffffffffffffff"), hex("0xFF")), (Some(0), Some(u64::MAX), Some(255)));
    for wrong in ["", "0x", "1f", "0x+1", "0x-1", "0x1ffffffffffffffff", "0x00000000000000001", "0x1g", "0x1 ", "０x1"]
    {
        assert_eq!(hex(wrong), None, "{wrong}");
    }
    let bits = serde_json::from_value::<super::super::Bits>(format!("{:#x}", u128::MAX).into()).unwrap();
    assert_eq!(bits.0, u128::MAX);
    assert!(serde_json::from_value::<super::super::Bits>("0x1ffffffffffffffffffffffffffffffff".into()).is_err());
}

#[test]
fn another_form_is_refused_and_so_is_what_is_no_document() {
    let why = |text: &str| Report::from_json(text).unwrap_err().to_string();
    assert!(
        why(r#"{"schema_version": 2}"#).contains("its form is number 2, and this version of wstate reads number 1")
    );
    assert!(why("{}").contains("schema_version") && why(r#"{"schema_version": null}"#).contains("schema_version"));
    for broken in
        ["", "null", "[]", "1", "{", "\u{feff}{}", "\0", r#"{"schema_version": -1}"#, r#"{"schema_version": 1.5}"#]
    {
        assert!(Report::from_json(broken).is_err(), "{broken:?}");
    }
    assert!(why(r#"{"schema_version": 1, "threads": 7}"#).contains("a list at line 1 column"));
    assert!(Report::from_json("").unwrap_err().hint().unwrap().contains("--json"));
}

/// Empty rows take some hundred times as much memory as their text.
#[test]
fn rows_take_no_more_memory_than_their_text_can_mean() {
    for list in [
        r#""threads": [ROWS]"#,
        r#""threads": [{"frames": [ROWS]}]"#,
        r#""threads": [{"frames": [{"locals": [ROWS]}]}]"#,
    ] {
        let document = |rows: usize| {
            let rows = vec!["{}"; rows].join(",");
            format!(r#"{{"schema_version": 1, {}}}"#, list.replace("ROWS", &rows))
        };
        assert!(Report::from_json(&document(1000)).is_ok());
        assert!(Report::from_json(&document(200_000)).unwrap_err().to_string().contains("more rows"), "{list}");
    }
    let deep = format!(r#"{{"schema_version": 1, "tomorrow": {}}}"#, "[".repeat(1_000_000));
    assert!(Report::from_json(&deep).is_err());
    // The limit is that of one document.
    assert!(LEFT.get().is_none());
    // Rows as they are written stay far below it.
    let kind = &kinds()[0];
    let mut many = kind.full();
    many["threads"] = vec![many["threads"][0].clone(); 2_000].into();
    assert!((kind.again)(&many).is_ok());
}

#[test]
fn documents_that_are_cut_off_are_errors() {
    for kind in kinds() {
        let text = kind.full().to_string();
        for end in 0..text.len() {
            assert!(Report::from_json(&text[..end]).is_err() && Contents::from_json(&text[..end]).is_err());
        }
    }
}

#[test]
fn texts_of_a_document_do_nothing_to_the_terminal() {
    for kind in kinds() {
        let full = kind.full();
        for at in keys_of(&full).iter().filter(|at| full.pointer(at).unwrap() == "some text") {
            let text = (kind.text)(&with(&full, at, "\u{1b}]0;owned\u{7}\r\u{9b}2J\u{202e}".into())).unwrap();
            assert!(!text.chars().any(|c| c != '\n' && is_unprintable(c)), "{at}: {text:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_read_is_read_again_as_the_same(changes in proptest::collection::vec((any::<usize>(), 0..7_usize, ".{0,12}"), 0..30)) {
        for kind in kinds() {
            let mut value = kind.full();
            for (which, what, text) in &changes {
                // A number that is none is not equal to itself.
                let keys: Vec<String> = keys_of(&value).into_iter().filter(|at| !at.contains("timing")).collect();
                let at = &keys[which % keys.len()];
                value = match what {
                    0 => with(&value, at, Value::Null),
                    1 => without(&value, at),
                    2 => with(&value, at, json!([])),
                    3 => with(&value, at, text.clone().into()),
                    4 => with(&value, at, false.into()),
                    5 => match value.pointer(at).unwrap() {
                        Value::Array(rows) => with(&value, at, [rows.clone(), rows.clone()].concat().into()),
                        _ => with(&value, at, (*which as u64).into()),
                    },
                    _ => with(&value, at, format!("{which:#x}").into()),
                };
                if value.as_object().is_none_or(Map::is_empty) {
                    break;
                }
            }
            // Most changes make no document of it, and then nothing else happens.
            if let Ok(again) = (kind.again)(&value) {
                prop_assert_eq!((kind.again)(&again).unwrap(), again);
                (kind.text)(&value).unwrap();
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}") {
        let _ = Report::from_json(&text);
        let _ = Contents::from_json(&format!(r#"{{"schema_version": 1, {text}"#));
    }
}
