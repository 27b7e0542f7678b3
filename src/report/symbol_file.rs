//! `wstate symbols`: makes a symbol file, the texts that its lines refer to, and the commands that load it.

use super::{elf_symbols, text};
use crate::error::Error;
use crate::runtime::code_map::{CodeMap, CompiledModule};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the file with the text form of a module is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextNames {
    /// After the symbol file, with the module's position in the code map.
    Numbered,
    /// After the contents of the text. A debugger that loads one symbol file after the other keeps its breakpoints by
    /// line only if the name of a text stays the same, whatever else is loaded meanwhile.
    ByContent,
}

/// The files that are written for one target.
#[derive(Clone, Debug)]
pub struct SymbolFile {
    /// Absolute path of the symbol file.
    pub path: PathBuf,
    /// Contents of the symbol file, which is an ELF file.
    pub bytes: Vec<u8>,
    /// The text forms of modules, each with the path of its file.
    pub texts: Vec<(PathBuf, Arc<str>)>,
}

/// Whether a character of a module's text is escaped in the file with that text.
fn needs_escape(c: char) -> bool {
    c != '\n' && super::escape::is_unprintable(c)
}

fn content(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

impl SymbolFile {
    /// Makes the files for `map`. The symbol file will be at `path`.
    ///
    /// # Errors
    /// [`Error::NoWasm`] if there is no code to describe, [`Error::Symbols`] if no symbol file can be made of it.
    pub fn of(map: &CodeMap, path: &Path, text_names: TextNames) -> Result<SymbolFile, Error> {
        if map.modules.is_empty() {
            let why = map.notes.first().map(|n| format!(" ({n})")).unwrap_or_default();
            return Err(Error::NoWasm { what: format!("no Wasm code was found, so there is nothing to write{why}") });
        }
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let directory = path.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        let file_name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut texts: Vec<(PathBuf, Arc<str>)> = Vec::new();
        let mut names: Vec<Option<String>> = Vec::new();
        for (i, module) in map.modules.iter().enumerate() {
            // Modules with the same text share one file.
            let same = |before: &CompiledModule| before.text == module.text;
            let name = module.text.as_ref().map(|text| {
                let known = map.modules.iter().zip(&names).find(|(before, _)| same(before));
                known.and_then(|(_, name)| name.clone()).unwrap_or_else(|| {
                    // Ends of lines are not escaped, so that each line keeps its number.
                    let shown: Arc<str> = match text.contains(needs_escape) {
                        true => text.split('\n').map(text::escaped).collect::<Vec<_>>().join("\n").into(),
                        false => Arc::clone(text),
                    };
                    let name = match text_names {
                        TextNames::Numbered => format!("{file_name}.{i}.wat"),
                        TextNames::ByContent => format!("wasm-{:016x}.wat", content(&shown)),
                    };
                    texts.push((path.with_file_name(&name), shown));
                    name
                })
            });
            names.push(name);
        }
        let bytes = elf_symbols::write(map, &directory, &names)
            .map_err(|e| Error::Symbols { path: path.clone(), why: e.to_string() })?;
        Ok(SymbolFile { path, bytes, texts })
    }

    /// Paths and contents of the files to write. The symbol file is the last, so that its texts are there whenever it
    /// is.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        let texts = self.texts.iter().map(|(path, text)| (path.as_path(), text.as_bytes()));
        texts.chain([(self.path.as_path(), self.bytes.as_slice())])
    }

    /// The commands with which gdb and lldb load the symbol file.
    pub fn commands(&self) -> String {
        // Both debuggers split words as a shell does, so the path is quoted.
        let path = format!("\"{}\"", self.path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""));
        format!(
            "gdb:   add-symbol-file {path}\nlldb:  target modules add {path}\n       \
             target modules load --file {path} --slide 0\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::code_map::SourceFile;

    fn module(base: u64, text: &str) -> CompiledModule {
        let files = vec![SourceFile::Text];
        CompiledModule { base, code: vec![0x90; 16], text: Some(text.into()), files, ..CompiledModule::default() }
    }

    fn texts(modules: &[CompiledModule], text_names: TextNames) -> Vec<(String, Arc<str>)> {
        let map = CodeMap { modules: modules.to_vec(), notes: Vec::new() };
        let file = SymbolFile::of(&map, Path::new("/tmp/wasm.sym"), text_names).unwrap();
        file.texts.iter().map(|(p, t)| (p.file_name().unwrap().to_string_lossy().into_owned(), t.clone())).collect()
    }

    /// A breakpoint by line refers to the name of a file, so that name must not depend on what else is loaded.
    #[test]
    fn a_texts_name_is_its_modules_and_not_its_places() {
        let (a, b, again) =
            (module(0x1000, "(module $a)"), module(0x2000, "(module $b)"), module(0x3000, "(module $a)"));
        let alone = texts(std::slice::from_ref(&b), TextNames::ByContent);
        let both = texts(&[a.clone(), b.clone(), again], TextNames::ByContent);
        assert_eq!((both.len(), &both[1]), (2, &alone[0]));
        assert_ne!(both[0].0, both[1].0);
        let numbered = texts(&[a, b], TextNames::Numbered);
        assert_eq!([numbered[0].0.as_str(), &numbered[1].0], ["wasm.sym.0.wat", "wasm.sym.1.wat"]);
    }

    #[test]
    fn a_text_has_nothing_that_a_terminal_obeys_and_the_same_lines() {
        let said = texts(&[module(0x1000, "(module\n  $a\u{202e}b\u{200b}\u{1b}[2J\n)")], TextNames::ByContent);
        assert_eq!(&*said[0].1, "(module\n  $a\\u{202e}b\\u{200b}\\u{1b}[2J\n)");
    }
}
