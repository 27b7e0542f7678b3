//! What modules and instances hold: the view model of `wstate modules`, and its text.

use super::facts::NativeObject;
use super::header;
use super::json;
use super::text::{self, TextOptions, clean, clean_message};
use super::{EngineSeen, ExternKind, Hex, NameSource, Report, Runtime, SCHEMA_VERSION, Target, ValType, Value, Why};
use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Modules of a process or core with their instances, memories, globals and tables. Readers must accept null for every
/// field and keys they do not know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Contents {
    /// Version of this document's form. Grows when a key changes its meaning or goes away, not when one is added.
    pub schema_version: u32,
    /// Version of the program that wrote this.
    #[serde(default, deserialize_with = "json::or_default")]
    pub wstate_version: String,
    /// What was looked at.
    #[serde(default, deserialize_with = "json::or_default")]
    pub target: Target,
    /// Wasm runtimes that were found, and their modules.
    #[serde(default, deserialize_with = "json::list")]
    pub runtimes: Vec<Runtime>,
    /// Engines for WebAssembly that are in the process and of which no module was found.
    #[serde(default, deserialize_with = "json::list")]
    pub engines: Vec<EngineSeen>,
    /// Executables and libraries that are missing, stripped or not the ones that the target runs.
    #[serde(default, deserialize_with = "json::list")]
    pub objects_problems: Vec<String>,
    /// What a reader should know about the whole.
    #[serde(default, deserialize_with = "json::list")]
    pub notes: Vec<String>,
    /// What the modules hold, in the order of their numbers.
    #[serde(default, deserialize_with = "json::list")]
    pub contents: Vec<ModuleContents>,
    /// Executables and libraries, the main executable first; missing if not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<Vec<NativeObject>>,
    /// Whether a file that the user named was not used because it does not fit; `notes` has the reason.
    #[serde(skip)]
    pub refused: bool,
}

/// What one module declares, and its instances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ModuleContents {
    /// `index` of the module in `runtimes[].modules[]`.
    pub module_index: u32,
    /// Its functions, imported ones first; null if not known or not asked for.
    #[serde(default, deserialize_with = "json::optional_list")]
    pub functions: Option<Vec<FunctionRow>>,
    /// Why `functions` is null.
    pub functions_why: Option<Why>,
    /// Its exports, in its order; null if not known or not asked for.
    #[serde(default, deserialize_with = "json::optional_list")]
    pub exports: Option<Vec<ExportRow>>,
    /// Why `exports` is null.
    pub exports_why: Option<Why>,
    /// Its instances, as far as frames or the runtime's structures led to them.
    #[serde(default, deserialize_with = "json::list")]
    pub instances: Vec<Instance>,
    /// Why instances could not be told, if they could not be; that none was found is no reason.
    pub instances_why: Option<Why>,
}

/// A function of a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct FunctionRow {
    /// Index in the module's function space.
    pub index: u32,
    /// Name of the function.
    pub name: Option<String>,
    /// Where the name comes from.
    pub name_source: Option<NameSource>,
    /// Types of its parameters.
    #[serde(default, deserialize_with = "json::optional_list")]
    pub params: Option<Vec<ValType>>,
    /// Types of its results.
    #[serde(default, deserialize_with = "json::optional_list")]
    pub results: Option<Vec<ValType>>,
    /// Whether it is imported.
    pub imported: bool,
    /// First address of its machine code.
    pub code_start: Option<Hex>,
    /// Address one past its machine code.
    pub code_end: Option<Hex>,
}

/// An export of a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ExportRow {
    /// Name of the export.
    pub name: String,
    /// What it is.
    pub kind: ExternKind,
    /// Index in that index space.
    pub index: u32,
}

/// An instance of a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Instance {
    /// Its number over all modules: what `--instance` takes.
    pub number: u32,
    /// Its address (its `vmctx`).
    pub address: Hex,
    /// Threads with frames of this instance, by kernel thread id.
    #[serde(default, deserialize_with = "json::list")]
    pub threads: Vec<u32>,
    /// Its memories, imported ones first.
    #[serde(default, deserialize_with = "json::list")]
    pub memories: Vec<MemoryRow>,
    /// Why there may be more memories than are listed.
    pub memories_why: Option<Why>,
    /// Its globals, imported ones first.
    #[serde(default, deserialize_with = "json::list")]
    pub globals: Vec<GlobalRow>,
    /// Why globals are missing.
    pub globals_why: Option<Why>,
    /// Its tables, imported ones first.
    #[serde(default, deserialize_with = "json::list")]
    pub tables: Vec<TableRow>,
    /// Why tables are missing.
    pub tables_why: Option<Why>,
}

/// A linear memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct MemoryRow {
    /// Index in the instance's memory space.
    pub index: u32,
    /// Address of its first byte in the target.
    pub base: Option<Hex>,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Whether its addresses have 64 bits.
    pub memory64: bool,
    /// Whether threads share it.
    pub shared: bool,
    /// The most pages of 64 KiB that it may have, whatever its own pages are; null if it declares no maximum, or if that is
    /// not known.
    pub maximum: Option<u64>,
    /// Why base and size are not known.
    pub why: Option<Why>,
}

/// A global of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct GlobalRow {
    /// Its index, type and value.
    #[serde(flatten)]
    pub value: Value,
    /// Whether code may write it.
    pub mutable: Option<bool>,
}

/// A table of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct TableRow {
    /// Index in the instance's table space.
    pub index: u32,
    /// Number of its elements.
    pub elements: Option<u64>,
    /// Why that is not known.
    pub why: Option<Why>,
}

/// What to list besides instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Whether to list the functions of each module.
    pub functions: bool,
    /// Whether to list the exports of each module.
    pub exports: bool,
    /// Whether to list executables and libraries.
    pub native: bool,
}

impl Contents {
    /// Reads what `wstate modules --json` prints, as [`Report::from_json`] reads a report. Rows are told apart by their
    /// numbers, so a row without its number is an error.
    ///
    /// # Errors
    /// The text is not such a document, or is one of another form.
    pub fn from_json(text: &str) -> Result<Contents, Error> {
        json::read(text)
    }

    /// A document about the target of `report` that has no contents yet.
    pub fn of(report: &Report) -> Contents {
        Contents {
            schema_version: SCHEMA_VERSION,
            wstate_version: report.wstate_version.clone(),
            target: report.target.clone(),
            runtimes: report.runtimes.clone(),
            engines: report.engines.clone(),
            objects_problems: report.objects_problems.clone(),
            notes: report.notes.clone(),
            contents: Vec::new(),
            objects: None,
            refused: false,
        }
    }

    /// All instances, each with the number of its module.
    pub fn instances(&self) -> impl Iterator<Item = (u32, &Instance)> {
        self.contents.iter().flat_map(|m| m.instances.iter().map(|i| (m.module_index, i)))
    }

    /// The name of the module with this number, or `?` if there is none.
    pub fn module_name(&self, index: u32) -> &str {
        let mut modules = self.runtimes.iter().flat_map(|r| &r.modules);
        modules.find(|m| m.index == Some(index)).and_then(|m| m.name.as_deref()).unwrap_or("?")
    }

    /// Whether everything that was asked for is here.
    pub fn is_complete(&self) -> bool {
        let known = |i: &Instance| {
            let lists = i.memories_why.is_none() && i.globals_why.is_none() && i.tables_why.is_none();
            let rows = i.memories.iter().all(|m| m.why.is_none()) && i.tables.iter().all(|t| t.why.is_none());
            lists && rows && i.globals.iter().all(|g| g.value.why.is_none())
        };
        let found = |object: &NativeObject| object.problem.is_none();
        self.instances().all(|(_, i)| known(i))
            && self.objects.iter().flatten().all(found)
            && self
                .contents
                .iter()
                .all(|m| [&m.functions_why, &m.exports_why, &m.instances_why].iter().all(|w| w.is_none()))
    }

    /// The contents as text for people.
    pub fn to_text(&self, options: TextOptions) -> String {
        let report = Report {
            schema_version: self.schema_version,
            wstate_version: self.wstate_version.clone(),
            target: self.target.clone(),
            runtimes: self.runtimes.clone(),
            engines: self.engines.clone(),
            objects_problems: self.objects_problems.clone(),
            notes: self.notes.clone(),
            timing: None,
            threads: Vec::new(),
        };
        let mut out = text::render_head(&report, options);
        // Writing to a string cannot fail.
        for module in &self.contents {
            let _ = module_text(self, module, &mut out);
        }
        if let Some(objects) = &self.objects {
            out.push('\n');
            for line in header::objects_lines(objects, self.target.kind) {
                let _ = writeln!(out, "{}", clean_message(&line));
            }
        }
        out
    }
}

fn module_text(contents: &Contents, module: &ModuleContents, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\nmodule {} {}", module.module_index, clean(contents.module_name(module.module_index)))?;
    match &module.instances_why {
        Some(why) => writeln!(out, "  instances not known: {}", clean_message(&why.to_string()))?,
        None if module.instances.is_empty() => writeln!(out, "  no instance was found: no frame leads to one")?,
        None => {}
    }
    for instance in &module.instances {
        instance_text(instance, out)?;
    }
    let reason = |what: &str, why: &Option<Why>, out: &mut String| match why {
        Some(why) => writeln!(out, "  {what} not known: {}", clean_message(&why.to_string())),
        None => Ok(()),
    };
    if let Some(exports) = &module.exports {
        writeln!(out, "  exports{}", none_if(exports.is_empty()))?;
        for e in exports {
            writeln!(out, "    {} {} \"{}\"", e.kind, e.index, clean(&e.name))?;
        }
    }
    reason("exports", &module.exports_why, out)?;
    if let Some(functions) = &module.functions {
        writeln!(out, "  functions{}", none_if(functions.is_empty()))?;
        for f in functions {
            let mut line = format!("    {} {}", f.index, clean(f.name.as_deref().unwrap_or("without a name")));
            if let (Some(params), Some(results)) = (&f.params, &f.results) {
                line += &format!(" ({}) -> ({})", types(params), types(results));
            }
            if let (Some(start), Some(end)) = (f.code_start, f.code_end) {
                line += &format!(" at {start}-{end}");
            }
            writeln!(out, "{line}{}", if f.imported { ", imported" } else { "" })?;
        }
    }
    reason("functions", &module.functions_why, out)
}

fn types(types: &[ValType]) -> String {
    types.iter().map(|t| t.name()).collect::<Vec<_>>().join(" ")
}

fn none_if(empty: bool) -> &'static str {
    if empty { ": none" } else { "" }
}

fn instance_text(instance: &Instance, out: &mut String) -> std::fmt::Result {
    write!(out, "  instance {} at {}", instance.number, instance.address)?;
    if !instance.threads.is_empty() {
        let ids: Vec<String> = instance.threads.iter().take(20).map(u32::to_string).collect();
        let more = if instance.threads.len() > ids.len() { ", …" } else { "" };
        write!(out, ", on thread {}{more}", ids.join(", "))?;
    }
    writeln!(out)?;
    let reason =
        |why: &Option<Why>| why.as_ref().map(|w| format!(" ({})", clean_message(&w.to_string()))).unwrap_or_default();
    for m in &instance.memories {
        let mut line = format!("    memory {}", m.index);
        match (m.base, m.size) {
            (Some(base), Some(size)) => line += &format!(" at {base}, {size:#x} bytes"),
            _ => line += " ?",
        }
        if let Some(maximum) = m.maximum {
            line += &format!(", at most {maximum} pages");
        }
        line += if m.memory64 { ", 64-bit addresses" } else { "" };
        line += if m.shared { ", shared" } else { "" };
        writeln!(out, "{line}{}", reason(&m.why))?;
    }
    for g in &instance.globals {
        let mutable = match g.mutable {
            Some(true) => " mut",
            _ => "",
        };
        let v = &g.value;
        let mut line = format!("    global {}{mutable}", v.index.unwrap_or_default());
        if let Some(ty) = v.ty {
            line += &format!(" {ty}");
        }
        line += &format!(" {}", v.value.as_deref().map_or("?".to_string(), clean));
        if let Some(address) = v.address {
            line += &format!(" [{address}]");
        }
        writeln!(out, "{line}{}", reason(&v.why))?;
    }
    for t in &instance.tables {
        let elements = t.elements.map_or("?".to_string(), |n| format!("{n} elements"));
        writeln!(out, "    table {} {elements}{}", t.index, reason(&t.why))?;
    }
    for (what, why) in
        [("memories", &instance.memories_why), ("globals", &instance.globals_why), ("tables", &instance.tables_why)]
    {
        if let Some(why) = why {
            writeln!(out, "    {what} not known: {}", clean_message(&why.to_string()))?;
        }
    }
    Ok(())
}
