//! `.wasmtime.engine`: the version, the target and, from the configuration, what the compiler was allowed to inline.
//!
//! Behind the version and the target (`engine/serialization.rs: Metadata`) come the compiler's flags, the *tunables*
//! and the Wasm features, in postcard. Nearly every major version added some tunables (`tunables.rs`), so a layout is
//! believed only if it uses up the section.
//!
//! | version | change |
//! |---|---|
//! | 39 | `debug_guest` |
//! | 42 | `concurrency_support` |
//! | 43 | `operator_cost`, `recording` |
//! | 45 | one kind of inlining replaces a truth value and a rule for calls within a module; tunables of the GC heap |
//! | 46 | three more truth values at the end |
//! | 47 | `debug_symbols`, `gc_heap_initial_size` |
//! | 50 | `asan_stack_switching` |

use super::postcard::{Malformed, Reader};
use super::version::Version;
use crate::bytes::Bytes;

/// What `.wasmtime.engine` tells about the compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// The version as it was written ("48", "36.0.20", or what the embedder chose). `None` if the version is hidden
    /// (`ModuleVersionStrategy::None`).
    pub version: Option<String>,
    /// The target triple ("x86_64-unknown-linux-gnu").
    pub target: Option<String>,
    /// What the compiler could inline. `None` if it is not known.
    pub inlining: Option<Inlining>,
}

impl Engine {
    /// Parses the section: a zero, the version behind one byte with its length, then the configuration in postcard,
    /// which begins with the target (`engine/serialization.rs`). `None` if the section has another form.
    pub fn parse(section: &[u8]) -> Option<Engine> {
        let mut b = Bytes::new(section);
        if b.u8().ok()? != 0 {
            return None;
        }
        let len = b.u8().ok()?;
        let version = String::from_utf8_lossy(b.take(u64::from(len)).ok()?);
        let metadata = &section[b.offset()..];
        let target = Reader::new(metadata).str().ok();
        let triple = |t: &&str| t.contains('-') && t.bytes().all(|c| c.is_ascii_graphic());
        let inlining = Inlining::parse(metadata, Version::parse(&version));
        Some(Engine {
            inlining,
            version: Some(version.into_owned()).filter(|v| !v.is_empty()),
            target: target.filter(triple).map(str::to_string),
        })
    }

    /// The major version, if the text begins with a number.
    #[cfg(any(test, feature = "internals"))]
    pub fn version(&self) -> Option<Version> {
        self.version.as_deref().and_then(Version::parse)
    }
}

/// Which calls the compiler could replace by the code of the function that is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inlining {
    /// The compiler could replace no calls that would show in a stack.
    Nothing,
    /// The compiler could replace calls between the modules of a component.
    BetweenModules,
    /// Calls between the modules of a component, and calls within a module that uses the GC heap.
    BetweenModulesAndGc,
    /// The compiler could replace any call.
    Everything,
}

impl Inlining {
    /// Parses what stands in `.wasmtime.engine` behind the version. `None` if no known layout uses up all of it, or
    /// if several do and say different things.
    pub fn parse(metadata: &[u8], version: Option<Version>) -> Option<Inlining> {
        if let Some(version) = version.filter(|v| v.known()) {
            return read(metadata, version).ok();
        }
        let mut found = Version::all().filter_map(|version| read(metadata, version).ok());
        let first = found.next()?;
        found.all(|other| other == first).then_some(first)
    }
}

type Result<T> = std::result::Result<T, Malformed>;

fn read(metadata: &[u8], version: Version) -> Result<Inlining> {
    let mut r = Reader::new(metadata);
    r.str()?;
    flags(&mut r)?;
    flags(&mut r)?;
    let found = tunables(&mut r, version.0)?;
    // The Wasm features.
    r.skip_number()?;
    if r.remaining() > 0 {
        return Err(r.wrong("bytes behind the end"));
    }
    Ok(found)
}

/// Skips flags: names and values (`FlagValue`).
fn flags(r: &mut Reader<'_>) -> Result<()> {
    for _ in 0..r.count()? {
        r.str()?;
        let wrong = r.wrong("no value of a flag");
        match r.byte()? {
            0 => _ = r.str()?,
            1 => _ = r.byte()?,
            2 => _ = r.bool()?,
            _ => return Err(wrong),
        }
    }
    Ok(())
}

fn tunables(r: &mut Reader<'_>, version: u32) -> Result<Inlining> {
    let numbers = |r: &mut Reader<'_>, n: usize| (0..n).try_for_each(|_| r.skip_number());
    let truths = |r: &mut Reader<'_>, n: usize| (0..n).try_for_each(|_| r.bool().map(|_| ()));
    // collector
    if r.bool()? {
        r.byte()?;
    }
    // memory_reservation, memory_guard_size, memory_reservation_for_growth
    numbers(r, 3)?;
    // debug_native, debug_guest, debug_symbols, parse_wasm_debuginfo, consume_fuel
    truths(r, 3 + usize::from(version >= 39) + usize::from(version >= 47))?;
    if version >= 43 {
        // operator_cost: a table of one byte per operator, where the number of operators is not known, or the usual
        // costs.
        let wrong = r.wrong("costs of operators of the embedder's own");
        if r.byte()? != 1 {
            return Err(wrong);
        }
    }
    // epoch_interruption, memory_may_move, guard_before_linear_memory, table_lazy_init, generate_address_map,
    // debug_adapter_modules, relaxed_simd_deterministic
    truths(r, 7)?;
    let winch = r.bool()?;
    // signals_based_traps, memory_init_cow
    truths(r, 2)?;
    let wrong = r.wrong("no kind of inlining");
    let found = if version >= 45 {
        match r.byte()? {
            0 => Inlining::Everything,
            1 => Inlining::BetweenModulesAndGc,
            2 => Inlining::BetweenModules,
            3 | 4 => Inlining::Nothing,
            _ => return Err(wrong),
        }
    } else {
        match (r.bool()?, r.byte()?) {
            (_, 3..) => return Err(wrong),
            (false, _) => Inlining::Nothing,
            (true, 0) => Inlining::Everything,
            (true, 1) => Inlining::BetweenModules,
            (true, _) => Inlining::BetweenModulesAndGc,
        }
    };
    // inlining_small_callee_size, inlining_sum_size_threshold
    numbers(r, 2)?;
    // concurrency_support, recording, asan_stack_switching
    truths(r, usize::from(version >= 42) + usize::from(version >= 43) + usize::from(version >= 50))?;
    if version >= 45 {
        // gc_zeal_alloc_counter
        if r.bool()? {
            r.skip_number()?;
        }
        // gc_heap_reservation, gc_heap_guard_size, gc_heap_reservation_for_growth, gc_heap_initial_size
        numbers(r, 3 + usize::from(version >= 47))?;
        // gc_heap_may_move, metadata_for_internal_asserts, metadata_for_gc_heap_corruption, branch_hinting
        truths(r, if version >= 46 { 4 } else { 1 })?;
    }
    // Winch inlines nothing, whatever the tunable says.
    Ok(if winch { Inlining::Nothing } else { found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wasmtime::testing::{engine, engines};

    fn expected(name: &str) -> Inlining {
        let (major, mode) = name.split_once('-').unwrap();
        match mode {
            "inline" if major.parse::<u32>().unwrap() >= 45 => Inlining::Everything,
            "inline" | "gc" => Inlining::BetweenModulesAndGc,
            "default" | "intrinsics" | "winch" => Inlining::Nothing,
            _ => panic!("{name}"),
        }
    }

    /// The configuration, which stands behind the version.
    fn metadata(section: &[u8]) -> &[u8] {
        &section[2 + usize::from(section[1])..]
    }

    #[test]
    fn every_version_tells_what_it_inlines() {
        let mut majors = std::collections::BTreeSet::new();
        for name in engines() {
            let section = engine(&name);
            let read = Engine::parse(&section).unwrap();
            assert_eq!(read.inlining, Some(expected(&name)), "{name}");
            majors.insert(read.version().unwrap());
            // Where the version is hidden, the layouts that fit agree, or nothing is said.
            let guessed = Inlining::parse(metadata(&section), None);
            assert!(guessed.is_none_or(|guessed| guessed == expected(&name)), "{name}: {guessed:?}");
        }
        assert!(Version::all().all(|version| majors.contains(&version)), "{majors:?}");
    }

    #[test]
    fn another_layout_says_nothing() {
        let section = engine("48-inline");
        let metadata = metadata(&section);
        assert_eq!(Inlining::parse(metadata, Some(Version(48))), Some(Inlining::Everything));
        assert_eq!(Inlining::parse(metadata, Some(Version(44))), None);
        assert_eq!(Inlining::parse(&metadata[..metadata.len() - 1], Some(Version(48))), None);
        assert_eq!(Inlining::parse(&[metadata, &[0]].concat(), Some(Version(48))), None);
    }

    #[test]
    fn a_hidden_version() {
        assert_eq!(Engine::parse(&[0, 0]), Some(Engine { version: None, target: None, inlining: None }));
        assert_eq!(Engine::parse(&[1, 0]), None);
        assert_eq!(Engine::parse(&[0, 9, b'4']), None);
        assert_eq!(Engine::parse(b"\x00\x02me\x03a-b").unwrap().version(), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), version in 30u32..60) {
            let _ = Inlining::parse(&bytes, Some(Version(version)));
            let _ = Inlining::parse(&bytes, None);
        }

        #[test]
        fn broken_sections(at: proptest::sample::Index, byte: u8) {
            let mut section = engine("50-default");
            let at = at.index(section.len());
            section[at] = byte;
            let _ = Engine::parse(&section);
        }
    }
}
