//! `wstate symbols`: a symbol file, the texts that its lines are in, and the commands that load it.

use super::elf_symbols;
use crate::error::Error;
use crate::runtime::code_map::{CodeMap, CompiledModule};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is written for one target.
#[derive(Clone, Debug)]
pub struct SymbolFile {
    /// Absolute path of the file.
    pub path: PathBuf,
    /// The ELF file.
    pub bytes: Vec<u8>,
    /// Text forms of modules, with their paths.
    pub texts: Vec<(PathBuf, Arc<str>)>,
}

impl SymbolFile {
    /// The files for `map`, the symbol file at `path`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no code to describe, [`Error::Symbols`] if it cannot be written down.
    pub fn of(map: &CodeMap, path: &Path) -> Result<SymbolFile, Error> {
        if map.modules.is_empty() {
            let why = map.notes.first().map(|n| format!(" ({n})")).unwrap_or_default();
            return Err(Error::NotFound { what: format!("no Wasm code was found, so there is nothing to write{why}") });
        }
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let directory = path.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        let file_name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut texts: Vec<(PathBuf, Arc<str>)> = Vec::new();
        let mut names: Vec<Option<String>> = Vec::new();
        for (i, module) in map.modules.iter().enumerate() {
            // Code that is there more than once has one text.
            let same = |before: &CompiledModule| before.text == module.text;
            let name = module.text.as_ref().map(|text| {
                let known = map.modules.iter().zip(&names).find(|(before, _)| same(before));
                known.and_then(|(_, name)| name.clone()).unwrap_or_else(|| {
                    let name = format!("{file_name}.{i}.wat");
                    texts.push((path.with_file_name(&name), Arc::clone(text)));
                    name
                })
            });
            names.push(name);
        }
        let bytes = elf_symbols::write(map, &directory, &names)
            .map_err(|e| Error::Symbols { path: path.clone(), why: e.to_string() })?;
        Ok(SymbolFile { path, bytes, texts })
    }

    /// What to write where. The symbol file is last: one that is there has its texts.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        let texts = self.texts.iter().map(|(path, text)| (path.as_path(), text.as_bytes()));
        texts.chain([(self.path.as_path(), self.bytes.as_slice())])
    }

    /// What to type to load it.
    pub fn commands(&self) -> String {
        // Both debuggers split words as a shell does.
        let path = format!("\"{}\"", self.path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""));
        format!(
            "gdb:   add-symbol-file {path}\nlldb:  target modules add {path}\n       \
             target modules load --file {path} --slide 0\n"
        )
    }
}
