//! A file given by the user: a module, or a component with the core modules in it.

use super::module::WasmModule;
use crate::error::Error;
use crate::limits::{MAX_COMPONENT_MODULES, MAX_WASM_BYTES};
use crate::process::file_kind::{self, Door};
use crate::process::memory::read_file;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use wasmparser::{Encoding, Parser, Payload};

/// A `.wasm` file.
pub struct WasmFile {
    /// Path of the file.
    pub path: PathBuf,
    /// The core modules in the file: the file itself, or those of a component at any depth, in the order of the file.
    pub modules: Vec<CoreModule>,
    bytes: Rc<[u8]>,
}

/// A core module in a file.
#[derive(Clone)]
pub struct CoreModule {
    /// The module. Its positions count from the start of the module, not of the file.
    pub wasm: Rc<WasmModule>,
    /// For a module in a component: the byte offset in the file at which the module begins.
    pub base: Option<u64>,
}

impl WasmFile {
    /// Reads a regular file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Wasm`] if it is neither a module nor a component.
    pub fn open(path: &Path) -> Result<WasmFile, Error> {
        let failed = |source| Error::File { path: path.to_path_buf(), source };
        let wrong = |why| Error::Wasm { path: path.to_path_buf(), why };
        // A file that is something else may be too large to be read as a whole.
        if let Some(why) = file_kind::refusal_of_file(path, Door::Wasm).map_err(failed)? {
            return Err(wrong(why));
        }
        let bytes = read_file(path, MAX_WASM_BYTES).map_err(failed)?;
        WasmFile::parse(path, bytes).map_err(wrong)
    }

    /// Parses `bytes`, the contents of the file at `path`.
    ///
    /// # Errors
    /// The text says what is wrong with the bytes.
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<WasmFile, String> {
        if let Some(why) = file_kind::refusal(&bytes, Door::Wasm) {
            return Err(why);
        }
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let file = |modules, bytes: &[u8]| WasmFile { path: path.to_path_buf(), modules, bytes: bytes.into() };
        if !is_component(&bytes) {
            let wasm = WasmModule::build(name, bytes)?;
            let kept = wasm.bytes().to_vec();
            return Ok(file(vec![CoreModule { wasm: Rc::new(wasm), base: None }], &kept));
        }
        let mut modules = Vec::new();
        for payload in Parser::new(0).parse_all(&bytes) {
            let payload = payload.map_err(|e| format!("it is a component, and {e}"))?;
            let Payload::ModuleSection { unchecked_range, .. } = payload else { continue };
            if modules.len() >= MAX_COMPONENT_MODULES {
                return Err(format!("it is a component of more than {MAX_COMPONENT_MODULES} core modules"));
            }
            let start = unchecked_range.start;
            let module = usize::try_from(start).ok().zip(usize::try_from(unchecked_range.end).ok());
            let module = module.and_then(|(start, end)| bytes.get(start..end));
            let module = module.ok_or_else(|| format!("the core module at {start:#x} of it is cut off"))?;
            let wasm = WasmModule::build(name.clone(), module.to_vec())
                .map_err(|why| format!("the core module at {start:#x} of it cannot be used: {why}"))?;
            modules.push(CoreModule { wasm: Rc::new(wasm), base: Some(start) });
        }
        match modules.is_empty() {
            true => Err("it is a component without core modules".to_string()),
            false => Ok(file(modules, &bytes)),
        }
    }

    /// Whether both have the same bytes.
    pub fn is_same(&self, other: &WasmFile) -> bool {
        self.bytes == other.bytes
    }
}

/// Whether the version in the header (8 bytes: magic, version, layer) is the one of a component.
fn is_component(bytes: &[u8]) -> bool {
    let first = Parser::new(0).parse_all(bytes).next();
    matches!(first, Some(Ok(Payload::Version { encoding: Encoding::Component, .. })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<WasmFile, String> {
        WasmFile::parse(Path::new("dir/c.wasm"), wat::parse_str(text).unwrap())
    }

    /// The bytes of each module are those of the file from the module's base on.
    #[test]
    fn core_modules_are_cut_out_of_a_component() {
        let text = r#"(component
            (core module (func (export "a")))
            (component (core module $inner (func (export "b") (result i32) i32.const 7)) (component (core module)))
            (core module (memory 1)))"#;
        let bytes = wat::parse_str(text).unwrap();
        let file = parse(text).unwrap();
        let counts: Vec<_> = file.modules.iter().map(|m| m.wasm.defined_functions()).collect();
        assert_eq!(counts, [1, 1, 0, 0]);
        for module in &file.modules {
            let base = module.base.unwrap() as usize;
            assert_eq!(&bytes[base..base + module.wasm.bytes().len()], module.wasm.bytes());
            assert!(base > 8);
        }
        assert!(file.is_same(&parse(text).unwrap()) && !file.is_same(&parse("(module)").unwrap()));
        let one = parse("(module (func))").unwrap();
        assert_eq!((one.modules.len(), one.modules[0].base), (1, None));
    }

    #[test]
    fn what_is_no_component_is_told() {
        let why = |bytes: Vec<u8>| WasmFile::parse(Path::new("c.wasm"), bytes).err().unwrap();
        assert_eq!(why(wat::parse_str("(component)").unwrap()), "it is a component without core modules");
        let whole = wat::parse_str("(component (core module (func)))").unwrap();
        for cut in 0..whole.len() {
            let why = why(whole[..cut].to_vec());
            assert!(!why.is_empty() && !why.contains('\n'), "{cut}: {why}");
        }
        let many = |n: usize| format!("(component {})", "(core module)".repeat(n));
        assert_eq!(parse(&many(MAX_COMPONENT_MODULES)).unwrap().modules.len(), MAX_COMPONENT_MODULES);
        assert!(parse(&many(MAX_COMPONENT_MODULES + 1)).err().unwrap().contains("of more than"));
    }
}
