//! Turns mangled symbol names into the names that the source has.

use std::fmt::{self, Write};

use crate::limits;

/// The name in the source for a symbol: Rust names (both manglings, without the hash) and C++ names are demangled,
/// any other symbol keeps its name.
pub fn demangle(name: &str) -> String {
    demangle_if_mangled(name).unwrap_or_else(|| name.to_string())
}

/// The demangled name, if `name` is mangled.
pub(super) fn demangle_if_mangled(name: &str) -> Option<String> {
    if name.len() > limits::MAX_NAME_BYTES {
        return None;
    }
    let mut out = Bounded(String::new());
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        write!(out, "{rust:#}").ok()?;
    } else {
        // The crate also demangles types: it would turn `f`, a C function, into `float`.
        let is_symbol = ["_Z", "__Z", "_GLOBAL_"].iter().any(|start| name.starts_with(start));
        let cpp = cpp_demangle::Symbol::new(name).ok().filter(|_| is_symbol)?;
        cpp.structured_demangle(&mut out, &cpp_demangle::DemangleOptions::new()).ok()?;
    }
    Some(out.0)
}

/// A text of bounded length: a few substitutions in a mangled name can stand for gigabytes of text.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if self.0.len() + s.len() > limits::MAX_NAME_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(s);
        Ok(())
    }
}

/// Whether the path `demangled` ends with `name`, a name that DWARF without linkage names has: `do_call<F, R>` and
/// `std::panicking::catch_unwind::do_call`, `{closure#0}<()>` and `std::rt::lang_start::{{closure}}`.
pub(super) fn is_last_part(name: &str, demangled: &str) -> bool {
    let plain = name.split_once('<').map_or(name, |(plain, _)| plain);
    if plain.is_empty() {
        return false;
    }
    // Names in the v0 mangling may end with generic arguments, too: `do_call::<F, R>`.
    let mut end = demangled.len();
    let mut depth = 0usize;
    if demangled.ends_with('>') {
        for (i, c) in demangled.char_indices().rev() {
            match c {
                // The arrow of `fn() -> T` does not count.
                '>' if !demangled[..i].ends_with('-') => depth += 1,
                '<' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                end = i;
                break;
            }
        }
    }
    let path = demangled[..end].trim_end_matches("::");
    demangled.ends_with(name) || path.ends_with(plain) || plain.starts_with("{closure") && path.ends_with("{{closure}}")
}
