//! Modules, instances and linear memories of a target.

use super::*;
use crate::report::contents::{
    Contents, ExportRow, FunctionRow, GlobalRow, Instance, Lists, MemoryRow, ModuleContents, TableRow,
};
use crate::report::wasm_coredump::{self, Compat};
use crate::runtime::{GuestInstance, Slot, ValType, Why};
use std::io::{self, Write};

/// What modules and instances hold. `options.threads` and the like count as for a report: instances are found along stacks.
pub fn contents(options: &Options, lists: Lists) -> Result<Contents, Error> {
    with_target(options, |target, _, outcome, runtime| {
        let contents = contents_of(&outcome.report, runtime, target, lists);
        Ok(Contents { refused: outcome.refused, ..contents })
    })
}

/// Does something with a target that was looked through.
fn with_target<T>(
    options: &Options,
    work: impl FnOnce(&dyn Target, &Objects, &Outcome, &dyn Runtime) -> Result<T, Error>,
) -> Result<T, Error> {
    let search = options.search_paths();
    let progress = progress::stderr(options.verbose);
    let mut provider = Runtimes::new(&FindOptions::read(options.routes.clone(), &options.artifacts, &options.wasm));
    let run = |target: &dyn Target| {
        let objects = Objects::load(target, &search);
        let outcome = analyse_target(target, &objects, options, &mut provider, &progress)?;
        work(target, &objects, &outcome, provider.runtime())
    };
    match &options.source {
        Source::Pid(pid) => run(&LiveTarget::capture(*pid, &CaptureOptions::default())?),
        Source::Core { core, .. } => run(&CoreTarget::open(core, &search)?),
    }
}

/// The contents of what `report` found.
pub fn contents_of(report: &Report, runtime: &dyn Runtime, memory: &dyn Memory, lists: Lists) -> Contents {
    let mut out = Contents::of(report);
    let mut threads: BTreeMap<GuestInstance, BTreeSet<u32>> = BTreeMap::new();
    for instance in runtime.instances(memory) {
        threads.entry(instance).or_default();
    }
    for thread in &report.threads {
        for instance in thread.frames.iter().filter_map(instance_of) {
            threads.entry(instance).or_default().extend(thread.tid);
        }
    }
    threads.retain(|instance, _| runtime.check_instance(*instance, memory).is_ok());
    if threads.len() > limits::MAX_INSTANCES {
        out.notes.push(format!("only {} of {} instances are shown", limits::MAX_INSTANCES, threads.len()));
    }
    let threads: Vec<(GuestInstance, BTreeSet<u32>)> = threads.into_iter().take(limits::MAX_INSTANCES).collect();
    for module in 0..runtime.modules().len() {
        let declared = runtime.declared(module, memory);
        let mut row = ModuleContents {
            module_index: module as u32,
            functions: None,
            functions_why: None,
            exports: None,
            exports_why: None,
            instances: Vec::new(),
            instances_why: None,
        };
        if lists.functions {
            match &declared.functions {
                Ok(all) => row.functions = Some(all.iter().enumerate().map(|(i, f)| function(i as u32, f)).collect()),
                Err(Why(why)) => row.functions_why = Some(why.clone()),
            }
        }
        if lists.exports {
            let export = |e: &crate::runtime::GuestExport| ExportRow {
                name: e.name.clone(),
                kind: e.kind.name().to_string(),
                index: e.index,
            };
            match &declared.exports {
                Ok(all) => row.exports = Some(all.iter().map(export).collect()),
                Err(Why(why)) => row.exports_why = Some(why.clone()),
            }
        }
        for (number, (instance, threads)) in threads.iter().enumerate().filter(|(_, (i, _))| i.module == module) {
            let mut one = instance_row(number as u32, *instance, &declared, runtime, memory);
            one.threads = threads.iter().copied().collect();
            row.instances.push(one);
        }
        if row.instances.is_empty() {
            row.instances_why = declared.memories.as_ref().err().map(|Why(why)| why.clone());
        }
        out.contents.push(row);
    }
    out
}

/// The instance that a frame runs in, if it is known.
fn instance_of(frame: &Frame) -> Option<GuestInstance> {
    let module = frame.wasm.as_ref()?.module_index?;
    Some(GuestInstance { module: usize::try_from(module).ok()?, address: frame.instance?.0 })
}

fn function(index: u32, f: &crate::runtime::GuestFunction) -> FunctionRow {
    let names = |types: &[ValType]| types.iter().map(|t| t.name().to_string()).collect();
    FunctionRow {
        index,
        name: f.name.as_ref().map(|(name, _)| name.clone()),
        name_source: f.name.as_ref().map(|(_, source)| source.to_string()),
        params: f.signature.as_ref().map(|(params, _)| names(params)),
        results: f.signature.as_ref().map(|(_, results)| names(results)),
        imported: f.imported,
        code_start: f.code.map(|c| Hex(c.0)),
        code_end: f.code.map(|c| Hex(c.1)),
    }
}

fn instance_row(
    number: u32,
    instance: GuestInstance,
    declared: &crate::runtime::Declared,
    runtime: &dyn Runtime,
    memory: &dyn Memory,
) -> Instance {
    let (module, address) = (instance.module, instance.address);
    let mut row = Instance {
        number,
        address: Hex(address),
        threads: Vec::new(),
        memories: Vec::new(),
        memories_why: None,
        globals: Vec::new(),
        globals_why: None,
        tables: Vec::new(),
        tables_why: None,
    };
    let memory_row = |index: u32, decl: crate::runtime::MemoryDecl| {
        let found = runtime.linear_memory(module, address, index, memory);
        MemoryRow {
            index,
            base: found.as_ref().ok().map(|m| Hex(m.0)),
            size: found.as_ref().ok().map(|m| m.1),
            memory64: decl.memory64,
            shared: decl.shared,
            maximum: decl.maximum,
            why: found.err().map(|why| why.0),
        }
    };
    match &declared.memories {
        Ok(all) => row.memories = all.iter().enumerate().map(|(i, decl)| memory_row(i as u32, *decl)).collect(),
        Err(Why(why)) => {
            // The first may be known all the same.
            let first = memory_row(0, crate::runtime::MemoryDecl::default());
            row.memories.extend(Some(first).filter(|m| m.why.is_none()));
            row.memories_why = Some(why.clone());
        }
    }
    match &declared.globals {
        Ok(all) => {
            for (i, decl) in all.iter().enumerate() {
                let value = runtime.global(module, address, i as u32, memory);
                let value = value.unwrap_or_else(|why| crate::runtime::Value { ty: decl.ty, slot: Slot::Unknown(why) });
                let value = report::Value::new(i as u32, &value);
                row.globals.push(GlobalRow { value, mutable: decl.mutable });
            }
        }
        Err(Why(why)) => row.globals_why = Some(why.clone()),
    }
    match declared.tables {
        Ok(count) => {
            for index in 0..count.min(limits::MAX_SLOTS as u32) {
                let found = runtime.table(module, address, index, memory);
                let elements = found.as_ref().ok().copied();
                row.tables.push(TableRow { index, elements, why: found.err().map(|why| why.0) });
            }
        }
        Err(Why(ref why)) => row.tables_why = Some(why.clone()),
    }
    row
}

/// Which instance is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceChoice {
    /// The only one that has the memory.
    Only,
    /// The one with this number in [`Contents`].
    Number(u32),
    /// The one at this address.
    Address(u64),
}

/// A stretch of a linear memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Instance.
    pub instance: InstanceChoice,
    /// Index of the memory.
    pub memory: u32,
    /// First address in it.
    pub address: u64,
    /// Bytes.
    pub len: u64,
}

/// Is given bytes of a linear memory and their address there.
pub type Sink<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Error> + 'a;

/// Bytes of a linear memory that are in our own memory at once.
const CHUNK: u64 = 256 << 10;

/// Gives `sink` the bytes of a linear memory piece by piece, with the address in the linear memory. Pieces are multiples of
/// 16 bytes but for the last. Returns what is to be told if a file that the user named was not used.
pub fn linear_memory(options: &Options, wanted: MemoryRange, sink: &mut Sink<'_>) -> Result<Vec<String>, Error> {
    with_target(options, |target, _, outcome, runtime| {
        let contents = contents_of(&outcome.report, runtime, target, Lists::default());
        let (base, size) = choose_memory(&contents, wanted)?;
        let (address, len) = (wanted.address, wanted.len);
        if address.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::NotFound {
                what: format!(
                    "memory {} has {size:#x} bytes; {len:#x} bytes at {address:#x} are not inside",
                    wanted.memory
                ),
            });
        }
        let mut done = 0;
        while done < len {
            let part = CHUNK.min(len - done);
            let at = base.wrapping_add(address).wrapping_add(done);
            let bytes = target.read_vec(at, part as usize).map_err(|e| Error::NotFound {
                what: format!("bytes from {:#x} of memory {} cannot be read: {e}", address + done, wanted.memory),
            })?;
            sink(address + done, &bytes)?;
            done += part;
        }
        Ok(if outcome.refused { outcome.report.notes.clone() } else { Vec::new() })
    })
}

/// Base and size of the memory that is meant, or which ones there are.
fn choose_memory(contents: &Contents, wanted: MemoryRange) -> Result<(u64, u64), Error> {
    let not_found = |what: String| Err(Error::NotFound { what });
    let all: Vec<(u32, &Instance)> = contents.instances().collect();
    let list = || {
        let one = |(module, i): &(u32, &Instance)| {
            format!("{} at {} of {}", i.number, i.address, contents.module_name(*module))
        };
        let shown: Vec<String> = all.iter().take(20).map(one).collect();
        format!("{}{}", shown.join("; "), if all.len() > shown.len() { "; …" } else { "" })
    };
    let chosen: Vec<&Instance> = match wanted.instance {
        InstanceChoice::Number(n) => all.iter().map(|(_, i)| *i).filter(|i| i.number == n).collect(),
        InstanceChoice::Address(a) => all.iter().map(|(_, i)| *i).filter(|i| i.address.0 == a).collect(),
        InstanceChoice::Only => {
            let has = |i: &&Instance| i.memories.iter().any(|m| m.index == wanted.memory && m.size.is_some());
            let with: Vec<&Instance> = all.iter().map(|(_, i)| *i).filter(has).collect();
            if with.is_empty() { all.iter().map(|(_, i)| *i).collect() } else { with }
        }
    };
    match (chosen.as_slice(), wanted.instance) {
        ([], _) if all.is_empty() => {
            let why = contents.contents.iter().find_map(|m| m.instances_why.as_ref());
            let why = why.map_or("try: wstate modules".to_string(), |why| why.clone());
            return not_found(format!("no instance was found in the target; {why}"));
        }
        ([], _) => return not_found(format!("there is no such instance; there are: {}", list())),
        ([_], _) => {}
        (_, InstanceChoice::Only) => {
            return not_found(format!("several instances; choose one with --instance: {}", list()));
        }
        _ => {}
    }
    let index = wanted.memory;
    let rows = |i: &Instance| i.memories.iter().find(|m| m.index == index).cloned();
    match chosen.first().and_then(|i| rows(i)) {
        Some(MemoryRow { base: Some(base), size: Some(size), .. }) => Ok((base.0, size)),
        Some(row) => not_found(format!("memory {index} is not known: {}", row.why.unwrap_or_default())),
        None => {
            let why = chosen.first().and_then(|i| i.memories_why.clone()).map(|w| format!(" ({w})"));
            let count = chosen.first().map_or(0, |i| i.memories.len());
            not_found(format!(
                "there is no memory {index}: the instance has {count} that are known{}",
                why.unwrap_or_default()
            ))
        }
    }
}

/// Writes a Wasm coredump to `out`. Returns what could not be written into it.
pub fn export_coredump(options: &Options, compat: Option<Compat>, out: &mut dyn Write) -> Result<Vec<String>, Error> {
    with_target(options, |target, _, outcome, runtime| {
        let mut contents = contents_of(&outcome.report, runtime, target, Lists::default());
        if contents.contents.is_empty() {
            return Err(Error::NotFound { what: "no Wasm module was found in the target".to_string() });
        }
        let notes = std::mem::take(&mut contents.notes);
        let mut read = |address: u64, buf: &mut [u8]| target.read(address, buf).is_ok();
        let mut body = |module: u32, function: u32| runtime.body_offset(module as usize, function);
        let mut source = wasm_coredump::Source {
            report: &outcome.report,
            contents: &contents,
            read: &mut read,
            body_offset: &mut body,
        };
        let written = wasm_coredump::write(&mut source, compat, out);
        let missing = written.map_err(|source: io::Error| Error::Output { to: "the coredump".to_string(), source })?;
        Ok(notes.into_iter().chain(missing).collect())
    })
}
