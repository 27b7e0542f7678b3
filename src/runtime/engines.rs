//! Which engines for WebAssembly are in a target. Engines whose frames cannot be shown are at least named, and advice
//! about an engine is given only for processes that contain it.
//!
//! The evidence is in the loaded files, stripped or not: symbols that an engine exports, strings that only its own
//! sources contain (paths of its crates in panic messages, names of its routines), and the name of a file that cannot
//! be read here. Two engines can share symbols: Bun exports V8's C++ interface and has JavaScriptCore inside. So only
//! symbols count that an engine needs for itself.

use super::wasmtime::image::version::Version;
use crate::limits::{MAX_ENGINE_FILES, MAX_ENGINE_SEARCH};
use crate::process::Target;
use crate::process::objects::{LoadedObject, Objects};
use memchr::memmem;
use object::read::elf::{ElfFile64, FileHeader, Sym};
use object::{Object, ObjectSection};
use std::collections::BTreeSet;

words! {
    /// An engine for WebAssembly.
    Engine {
        /// V8: Node.js, Deno, Electron, Chromium.
        V8 = "V8",
        /// JavaScriptCore: Bun, WebKit.
        JavaScriptCore = "JavaScriptCore",
        /// SpiderMonkey: Firefox, GJS.
        SpiderMonkey = "SpiderMonkey",
        /// Wasmer 2 and newer.
        Wasmer = "Wasmer",
        /// WebAssembly Micro Runtime.
        Wamr = "WAMR",
        /// WasmEdge.
        WasmEdge = "WasmEdge",
        /// wasmi.
        Wasmi = "wasmi",
        /// wasm3.
        Wasm3 = "wasm3",
        /// The interpreter of the WebAssembly Binary Toolkit.
        Wabt = "WABT",
        /// wazero.
        Wazero = "wazero",
        /// Wasmtime.
        Wasmtime = "Wasmtime",
        /// wasmer 0.x, which has the singlepass compiler that is known here.
        Singlepass = "wasmer 0.x",
    }
}

impl Engine {
    /// Whether wstate can show the engine's modules and frames.
    pub fn is_supported(self) -> bool {
        matches!(self, Engine::Wasmtime | Engine::Singlepass)
    }

    /// The versions whose modules can be read, where that depends on the version.
    pub fn versions(self) -> Option<String> {
        (self == Engine::Wasmtime).then(|| format!("{} to {}", Version::OLDEST, Version::NEWEST))
    }

    /// A sentence for people that names the engines whose modules and frames are shown, and those that are only
    /// recognised.
    pub fn known() -> String {
        let named = |supported: bool| {
            let engines = MARKS.iter().map(|marks| marks.engine).filter(|engine| engine.is_supported() == supported);
            let names = engines.map(|engine| match engine.versions() {
                Some(versions) => format!("{engine} {versions}"),
                None => engine.to_string(),
            });
            names.collect::<Vec<_>>()
        };
        let (read, named) = (named(true), named(false));
        format!("wstate reads modules of {}; it only recognises {}", read.join(" and "), named.join(", "))
    }
}

/// An engine that is in a target, and the evidence for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Name of the engine.
    pub engine: Engine,
    /// What was seen, as half a sentence about the file: `node exports v8dbg_SmiTag`.
    pub evidence: String,
    /// Whether the evidence is proof: strings and names of files may be there without the engine.
    pub sure: bool,
}

impl Sighting {
    /// A sentence for people that says what was seen, and why no frames of the engine are shown.
    pub fn sentence(&self) -> String {
        let contains = if self.sure { "contains" } else { "seems to contain" };
        let why = match self.engine.is_supported() {
            true => "no module of it was found",
            false => "its Wasm frames are not supported yet",
        };
        format!("the process {contains} {} ({}): {why}", self.engine, self.evidence)
    }
}

/// A text whose bytes are stored inverted, so that wstate's own executable does not contain it: in a process that
/// runs wstate it would be evidence of engines that are not there.
struct Hidden(&'static [u8]);

impl Hidden {
    const fn of<const N: usize>(mut text: [u8; N]) -> [u8; N] {
        let mut i = 0;
        while i < N {
            text[i] = !text[i];
            i += 1;
        }
        text
    }

    fn text(&self) -> String {
        self.0.iter().map(|b| char::from(!*b)).collect()
    }
}

/// A string that occurs only in an engine's own sources.
enum Clue {
    /// Exactly this text.
    Text(Hidden),
    /// A path in this crate as registries unpack it: `wasmi-1.1.0/src/`.
    Crate(&'static str),
    /// A path in a git checkout that cargo made: `wasmer-3a90f166c3ea3f2f/`.
    Checkout(&'static str),
}

macro_rules! text {
    ($text:literal) => {
        Clue::Text(Hidden(&const { Hidden::of(*$text) }))
    };
}

impl Clue {
    /// The text with which the string begins.
    fn text(&self) -> String {
        match self {
            Clue::Text(text) => text.text(),
            Clue::Crate(name) | Clue::Checkout(name) => (*name).to_string(),
        }
    }

    /// The string at the start of `bytes` if it is this clue, else `None`. `text` is the text with which the clue
    /// begins.
    fn at(&self, text: &str, bytes: &[u8]) -> Option<String> {
        let rest = bytes.strip_prefix(text.as_bytes())?;
        if let Clue::Text(_) = self {
            return Some(text.to_string());
        }
        let rest = rest.strip_prefix(b"-")?;
        let end = rest.iter().take(48).position(|b| *b == b'/')?;
        let (version, behind) = rest.split_at(end);
        let fits = match self {
            Clue::Checkout(_) => version.len() == 16 && version.iter().all(u8::is_ascii_hexdigit),
            _ => {
                let is_version = |b: &u8| b.is_ascii_alphanumeric() || b".-+".contains(b);
                behind.starts_with(b"/src/")
                    && version.first().is_some_and(u8::is_ascii_digit)
                    && version.iter().all(is_version)
            }
        };
        fits.then(|| format!("{text}-{}", String::from_utf8_lossy(version)))
    }
}

/// How one engine is recognised.
struct Marks {
    engine: Engine,
    /// Symbols that the engine's library exports, or an executable that contains the engine.
    symbols: &'static [&'static str],
    clues: &'static [Clue],
    /// Beginnings of the names of the engine's libraries.
    files: &'static [&'static str],
}

use Clue::{Checkout, Crate};

/// The marks of all engines; comments say where in the engine's sources each mark is from.
const MARKS: &[Marks] = &[
    Marks {
        engine: Engine::V8,
        // Symbols for debuggers of Node.js (`gen-postmortem-metadata.py`).
        symbols: &["v8dbg_SmiTag"],
        // Names of trace categories (`wasm-engine.cc`, `turbofan` and others).
        clues: &[text!(b"disabled-by-default-v8.wasm.")],
        files: &["libnode.so", "libv8.so"],
    },
    Marks {
        engine: Engine::JavaScriptCore,
        // The symbol is declared in `JSContextRef.h`; the string is the name of an option (`OptionsList.h`).
        symbols: &["JSGlobalContextCreate"],
        clues: &[text!(b"JSC_useWasm")],
        files: &["libjavascriptcoregtk-"],
    },
    Marks {
        engine: Engine::SpiderMonkey,
        // The symbol is `jsapi.h: JS_GetImplementationVersion`; the string is in `Initialization.cpp`.
        symbols: &["_Z27JS_GetImplementationVersionv"],
        clues: &[text!(b"js::wasm::Init() failed")],
        files: &["libmozjs-"],
    },
    Marks {
        engine: Engine::Wasmer,
        // The functions of `lib/vm/src/libcalls.rs`: compiled code calls them by name. Wasmer 0.x has none of them.
        symbols: &["wasmer_vm_f32_ceil", "wasmer_vm_raise_trap", "wasmer_version"],
        clues: &[
            text!(b"wasmer_vm_memory32_grow"),
            text!(b"wasmer_vm_memory32_size"),
            Crate("wasmer-vm"),
            Crate("wasmer-compiler"),
            Checkout("wasmer"),
        ],
        files: &["libwasmer.so"],
    },
    Marks {
        engine: Engine::Wamr,
        // The symbol is declared in `wasm_export.h`; the string is in `wasm_memory.c`.
        symbols: &["wasm_runtime_full_init"],
        clues: &[text!(b"wasm_runtime_malloc with size zero")],
        files: &["libiwasm.so", "libvmlib.so"],
    },
    Marks {
        engine: Engine::WasmEdge,
        // Declared in `wasmedge.h`.
        symbols: &["WasmEdge_VersionGet"],
        clues: &[],
        files: &["libwasmedge.so", "libwasmedge_c.so"],
    },
    Marks {
        engine: Engine::Wasmi,
        symbols: &[],
        clues: &[Crate("wasmi"), Crate("wasmi_core"), Checkout("wasmi"), text!(b"crates/wasmi/src/")],
        files: &[],
    },
    Marks {
        engine: Engine::Wasm3,
        // The symbol is declared in `wasm3.h`.
        symbols: &["m3_NewRuntime"],
        clues: &[text!(b"missing init_expr in Wasm binary"), text!(b"underrun while parsing Wasm binary")],
        files: &["libwasm3.so"],
    },
    Marks {
        engine: Engine::Wabt,
        symbols: &[],
        // The string occurs in assertions of `interp-inl.h`.
        clues: &[text!(b"wabt::interp::")],
        files: &[],
    },
    Marks {
        engine: Engine::Wazero,
        symbols: &[],
        // The string is part of names of functions, which every Go executable keeps.
        clues: &[text!(b"github.com/tetratelabs/wazero/internal/")],
        files: &[],
    },
    Marks {
        engine: Engine::Wasmtime,
        // The symbol is declared in `wasmtime/store.h`.
        symbols: &["wasmtime_store_new"],
        clues: &[Crate("wasmtime"), Checkout("wasmtime"), text!(b"crates/wasmtime/src/runtime/")],
        files: &["libwasmtime.so", "_libwasmtime.so"],
    },
    Marks {
        engine: Engine::Singlepass,
        symbols: &[],
        clues: &[
            Crate("wasmer-runtime-core"),
            Crate("wasmer-runtime-core-near"),
            Crate("wasmer-singlepass-backend"),
            Crate("wasmer-singlepass-backend-near"),
        ],
        files: &[],
    },
];

/// A part that most clues have in common, so that one pass over a file looks for all of these.
const COMMON: &str = "asm";

/// The engines that are in a target. Each engine is named once, with the best evidence.
pub fn look(target: &dyn Target, objects: &Objects) -> Vec<Sighting> {
    let mut found = Sightings::default();
    let files: Vec<&LoadedObject> = objects.iter().take(MAX_ENGINE_FILES).collect();
    // A file that exports an engine is not searched for strings too.
    let explained: Vec<bool> = files.iter().map(|object| found.exports(object)).collect();
    let mut left = MAX_ENGINE_SEARCH;
    for (object, _) in files.iter().zip(&explained).filter(|(_, explained)| !**explained) {
        found.strings(object, &mut left);
    }
    let mut names = BTreeSet::new();
    for path in target.mappings().iter().filter_map(|m| m.path.as_ref()) {
        if names.len() < MAX_ENGINE_FILES && names.insert(path) {
            found.name(&path.file_name().unwrap_or_default().to_string_lossy());
        }
    }
    found.0
}

#[derive(Default)]
struct Sightings(Vec<Sighting>);

impl Sightings {
    fn add(&mut self, engine: Engine, sure: bool, evidence: String) {
        if !self.has(engine) {
            self.0.push(Sighting { engine, evidence, sure });
        }
    }

    fn has(&self, engine: Engine) -> bool {
        self.0.iter().any(|s| s.engine == engine)
    }

    /// Looks at the exported symbols of a file. Returns whether it exports an engine.
    fn exports(&mut self, object: &LoadedObject) -> bool {
        let mut exports = false;
        if let Some(symbols) = object.data.as_deref().and_then(Exported::of) {
            for marks in MARKS {
                if let Some(symbol) = marks.symbols.iter().find(|name| symbols.defines(name)) {
                    self.add(marks.engine, true, format!("{} exports {symbol}", object.name()));
                    exports = true;
                }
            }
        }
        exports
    }

    /// Looks for clues in the constants of a file. `left` is the number of bytes that may still be searched.
    fn strings(&mut self, object: &LoadedObject, left: &mut u64) {
        let Some(data) = object.data.as_deref() else { return };
        let Ok(file) = ElfFile64::<object::Endianness>::parse(data) else { return };
        for section in file.sections() {
            let name = section.name_bytes().unwrap_or_default();
            let is_constant = [&b".rodata"[..], b".gopclntab", b".data.rel.ro.gopclntab"].contains(&name);
            let Some(bytes) = is_constant.then(|| section.data().ok()).flatten() else { continue };
            let bytes = bytes.get(..usize::try_from(*left).unwrap_or(usize::MAX)).unwrap_or(bytes);
            *left -= bytes.len() as u64;
            self.clues(bytes, &object.name());
        }
    }

    fn clues(&mut self, bytes: &[u8], file: &str) {
        let all: Vec<_> =
            MARKS.iter().flat_map(|marks| marks.clues.iter().map(|clue| (marks.engine, clue, clue.text()))).collect();
        let common: Vec<_> = all.iter().filter_map(|(e, c, text)| Some((*e, *c, text, text.find(COMMON)?))).collect();
        for hit in memmem::find_iter(bytes, COMMON) {
            for (engine, clue, text, within) in &common {
                let here = hit.checked_sub(*within).and_then(|at| bytes.get(at..));
                if let Some(text) = here.and_then(|bytes| clue.at(text, bytes)) {
                    self.add(*engine, false, format!("{file} has the string {text:?}"));
                }
            }
        }
        for (engine, _, text) in all.iter().filter(|(.., text)| !text.contains(COMMON)) {
            if memmem::find(bytes, text.as_bytes()).is_some() {
                self.add(*engine, false, format!("{file} has the string {text:?}"));
            }
        }
    }

    /// Looks at the name of a mapped file, without its directory.
    fn name(&mut self, file: &str) {
        for marks in MARKS {
            if marks.files.iter().any(|prefix| file.starts_with(prefix)) {
                self.add(marks.engine, false, format!("a file called {file} is mapped"));
            }
        }
    }
}

/// The hash table of a file's dynamic symbols. It takes one lookup for each name, however many symbols there are.
struct Exported<'a> {
    endian: object::Endianness,
    table: object::read::elf::GnuHashTable<'a, object::elf::FileHeader64<object::Endianness>>,
    symbols: object::read::elf::SymbolTable<'a, object::elf::FileHeader64<object::Endianness>>,
}

impl<'a> Exported<'a> {
    fn of(data: &'a [u8]) -> Option<Exported<'a>> {
        let header = object::elf::FileHeader64::<object::Endianness>::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, data).ok()?;
        // The reader shifts by this number from the file, so it must be smaller than the width.
        sections.gnu_hash_header(endian, data).ok()?.filter(|h| h.bloom_shift.get(endian) < u32::BITS)?;
        let (table, index) = sections.gnu_hash(endian, data).ok()??;
        let symbols = sections.symbol_table_by_index(endian, data, index).ok()?;
        Some(Exported { endian, table, symbols })
    }

    fn defines(&self, name: &str) -> bool {
        let hash = object::elf::gnu_hash(name.as_bytes());
        let versions = object::read::elf::VersionTable::default();
        let found = self.table.find(self.endian, name.as_bytes(), hash, None, &self.symbols, &versions);
        found.is_some_and(|(_, symbol)| symbol.st_shndx(self.endian) != object::elf::SHN_UNDEF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use crate::process::testing::CoreBuilder;
    use crate::unwind::testing::{object, own_objects};
    use proptest::prelude::*;
    use std::sync::OnceLock;

    /// An ELF file whose `.rodata` section has these bytes.
    fn elf(constants: &[u8]) -> Vec<u8> {
        use object::write::Object;
        let mut out = Object::new(object::BinaryFormat::Elf, object::Architecture::X86_64, object::Endianness::Little);
        let section = out.add_section(Vec::new(), b".rodata".to_vec(), object::SectionKind::ReadOnlyData);
        out.append_section_data(section, constants, 1);
        out.write().unwrap()
    }

    fn look_at(files: Vec<Vec<u8>>) -> Vec<Sighting> {
        let file = |(i, bytes)| object(&format!("/srv/lib{i}.so"), 0, (0, 0), bytes);
        let objects = Objects::from_parts((0..).zip(files).map(file).collect());
        look(&CoreBuilder::new().memory(0x1000, 6, &[0]).open().unwrap(), &objects)
    }

    #[test]
    fn an_engine_is_named_once_and_by_its_version() {
        let constants = b"\0/x/wasmi-0.31.2/src/a.rs\0/y/wasmi_core-0.13.0/src/b.rs\0wabt::interp::\0";
        let found = look_at(vec![elf(constants), elf(constants)]);
        let told: Vec<_> = found.iter().map(|s| (s.engine, s.evidence.as_str(), s.sure)).collect();
        assert_eq!(
            told,
            [
                (Engine::Wasmi, "lib0.so has the string \"wasmi-0.31.2\"", false),
                (Engine::Wabt, "lib0.so has the string \"wabt::interp::\"", false),
            ]
        );
    }

    #[test]
    fn a_mark_is_found_wherever_it_stands() {
        for marks in MARKS {
            for clue in marks.clues {
                let text = match clue {
                    Clue::Text(text) => text.text(),
                    Clue::Crate(name) => format!("{name}-1.0.0-rc.1/src/lib.rs"),
                    Clue::Checkout(name) => format!("{name}-0123456789abcdef/abc/lib.rs"),
                };
                for constants in [text.clone(), format!("asm{text}asm"), format!("{}\0{text}", "wasm".repeat(9))] {
                    let found = look_at(vec![elf(constants.as_bytes())]);
                    assert_eq!(found.iter().map(|s| s.engine).collect::<Vec<_>>(), [marks.engine], "{constants}");
                }
                // Half of a mark is not found.
                assert!(look_at(vec![elf(&text.as_bytes()[..text.len() / 2])]).is_empty(), "{text}");
            }
        }
    }

    #[test]
    fn files_and_bytes_have_an_end() {
        let mark = b"wabt::interp::";
        let far = |before: u64| [vec![0; before as usize], mark.to_vec()].concat();
        let most = limits::MAX_ENGINE_SEARCH - mark.len() as u64;
        assert_eq!(look_at(vec![elf(&far(most))]).len(), 1);
        assert!(look_at(vec![elf(&far(most + 1))]).is_empty());
        assert!(look_at(vec![elf(&vec![0; most as usize + 1]), elf(mark)]).is_empty(), "of all files together");
        for (before, found) in [(limits::MAX_ENGINE_FILES - 1, 1), (limits::MAX_ENGINE_FILES, 0)] {
            let mut files = vec![elf(b""); before];
            files.push(elf(mark));
            assert_eq!(look_at(files).len(), found, "{before}");
        }
    }

    /// A small file with a hash table of symbols that every process has.
    fn vdso() -> Vec<u8> {
        static VDSO: OnceLock<Vec<u8>> = OnceLock::new();
        let read = || {
            let objects = own_objects();
            let vdso = objects.iter().find(|o| o.name() == "[vdso]").and_then(|o| o.data.as_deref());
            vdso.expect("every process has one").to_vec()
        };
        VDSO.get_or_init(read).clone()
    }

    #[test]
    fn exported_symbols_are_found_by_their_hash() {
        let file = vdso();
        let symbols = Exported::of(&file).expect("a hash table");
        assert!(symbols.defines("__vdso_clock_gettime") && !symbols.defines("__vdso_clock_gettim"));
    }

    proptest! {
        #[test]
        fn damaged_files_are_survived(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..60),
            cut in any::<prop::sample::Index>(),
            constants in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            for mut file in [vdso(), elf(&[b"wasmi-1.0/src/".to_vec(), constants.clone()].concat())] {
                for (index, value) in &changes {
                    let at = index.index(file.len());
                    file[at] = *value;
                }
                if let Some(symbols) = Exported::of(&file) {
                    symbols.defines("__vdso_clock_gettime");
                }
                file.truncate(cut.index(file.len()));
                look_at(vec![file]);
            }
        }
    }
}
