//! What a machine lacks.

/// Fails because a tool is missing, or a setting or a right of this machine. With `WSTATE_ALLOW_MISSING` set it only prints
/// that this was not tested.
pub fn missing(reason: impl std::fmt::Display) {
    let allowed = std::env::var_os("WSTATE_ALLOW_MISSING").is_some_and(|v| !v.is_empty());
    assert!(
        allowed,
        "{reason}\n`sh tests/run.sh` installs the tools that are missing on Debian and Ubuntu, and tests/need.sh names their \
         packages. WSTATE_ALLOW_MISSING=1 leaves out what cannot be tested here."
    );
    println!("not tested: {reason}");
}
