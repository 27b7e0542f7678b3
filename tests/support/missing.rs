//! What a machine lacks.

/// A tool or a setting of the machine is missing: a failure, unless `WSTATE_ALLOW_MISSING` is set; then it is said aloud.
pub fn missing(reason: impl std::fmt::Display) {
    let allowed = std::env::var_os("WSTATE_ALLOW_MISSING").is_some_and(|v| !v.is_empty());
    assert!(allowed, "{reason} (WSTATE_ALLOW_MISSING=1 leaves out what cannot be tested here)");
    println!("not tested: {reason}");
}
