//! What we build on may be passed on under the licenses that `deny.toml` allows, and comes from crates.io.
//!
//! cargo-deny checks this and more, where it is there. It reads the same file and the same expressions.

use crate::package::cargo;
use serde_json::Value;
use spdx::expression::ExpressionReq;
use spdx::{Expression, ParseMode};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// `deny.toml`, as far as it concerns licenses.
struct Allowed {
    everywhere: Vec<String>,
    /// Of one package each.
    exceptions: BTreeMap<String, Vec<String>>,
    registries: Vec<String>,
}

fn strings(value: &toml::Value) -> Vec<String> {
    let list = value.as_array().expect("a list");
    list.iter().map(|item| item.as_str().expect("a string").to_string()).collect()
}

fn allowed() -> Allowed {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    let text = std::fs::read_to_string(path).expect("there is a deny.toml");
    let deny: toml::Table = toml::from_str(&text).expect("it is TOML");
    let exceptions = deny["licenses"]["exceptions"].as_array().expect("a list").iter();
    Allowed {
        everywhere: strings(&deny["licenses"]["allow"]),
        exceptions: exceptions
            .map(|entry| (entry["crate"].as_str().expect("a name").to_string(), strings(&entry["allow"])))
            .collect(),
        registries: strings(&deny["sources"]["allow-registry"]),
    }
}

/// What a package needs to be passed on: the licenses of which these are enough, or what is wrong.
fn used(expression: &str, allowed: &[String]) -> Result<BTreeSet<String>, String> {
    let expression = Expression::parse_mode(expression, ParseMode::LAX)
        .map_err(|e| format!("{expression:?} is no expression: {e}"))?;
    let name = |req: &ExpressionReq| req.req.to_string();
    let taken: BTreeSet<String> = expression.requirements().map(name).filter(|name| allowed.contains(name)).collect();
    match expression.evaluate(|req| allowed.contains(&req.to_string())) {
        true => Ok(taken),
        false => Err(format!("{expression} is not allowed")),
    }
}

#[test]
fn expressions_mean_what_they_say() {
    let allowed = ["MIT".to_string(), "Zlib".to_string(), "Apache-2.0 WITH LLVM-exception".to_string()];
    for fine in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR (MIT AND Zlib)", "Apache-2.0 WITH LLVM-exception"] {
        assert!(used(fine, &allowed).is_ok(), "{fine}");
    }
    for wrong in ["Apache-2.0", "MIT AND GPL-3.0-only", "GPL-3.0-only WITH LLVM-exception", "no license at all", ""] {
        assert!(used(wrong, &allowed).is_err(), "{wrong}");
    }
}

#[test]
fn every_dependency_may_be_passed_on() {
    let metadata = cargo(&["metadata", "--format-version", "1", "--locked", "--all-features"]);
    let metadata: Value = serde_json::from_str(&metadata).expect("cargo prints JSON");
    let allowed = allowed();
    let (mut wrong, mut taken, mut excepted) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let packages = metadata["packages"].as_array().expect("packages");
    for package in packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let name = text("name");
        let exceptions = allowed.exceptions.get(name).cloned().unwrap_or_default();
        match used(text("license"), &[allowed.everywhere.clone(), exceptions.clone()].concat()) {
            Ok(licenses) => {
                if used(text("license"), &allowed.everywhere).is_err() {
                    excepted.insert(name.to_string());
                }
                taken.extend(licenses);
            }
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
        // Packages of this repository come from no registry.
        let source = text("source");
        let is_known = allowed.registries.iter().any(|registry| source == format!("registry+{registry}"));
        if !is_known && !package["source"].is_null() {
            wrong.push(format!("{name}: comes from {source}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(packages.len() >= 100, "only {} packages", packages.len());
    let unused: Vec<_> = allowed.everywhere.iter().filter(|license| !taken.contains(*license)).collect();
    assert!(unused.is_empty(), "deny.toml allows what nothing has: {unused:?}");
    let needless: Vec<_> = allowed.exceptions.keys().filter(|name| !excepted.contains(*name)).collect();
    assert!(needless.is_empty(), "deny.toml makes exceptions for what needs none: {needless:?}");
}

/// An exception is for what tests use. What is in the program or the library may have none.
#[test]
fn what_users_get_needs_no_exception() {
    let excepted = allowed().exceptions;
    let tree = cargo(&["tree", "--package", "wstate", "--edges", "normal,build", "--all-features", "--prefix", "none"]);
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.len() >= 30, "only {} packages", names.len());
    let found: Vec<_> = excepted.keys().filter(|name| names.contains(name.as_str())).collect();
    assert!(found.is_empty(), "these are passed on, and have exceptions: {found:?}");
}
