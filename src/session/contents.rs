//! Modules, instances and linear memories of a target.

use super::proof::Proven;
use super::*;
use crate::report::contents::{
    Contents, ExportRow, FunctionRow, GlobalRow, Instance, Lists, MemoryRow, ModuleContents, TableRow,
};
use crate::report::wasm_coredump::{self, Compat};
use crate::runtime::{GuestInstance, Slot};
use std::io::{self, Write};

/// What the modules and instances of a target hold. `options.threads` and similar options count as they do for a
/// report, because instances are found along stacks.
pub fn contents(options: &Options, lists: Lists) -> Result<Contents, Error> {
    let looked = with_target(options, |seen| Ok(seen.contents(lists)))?;
    let (whole, notes) = (looked.whole(), looked.notes(options));
    let mut contents = Contents { refused: looked.answer.refused || !whole, ..looked.answer };
    contents.notes.extend(notes);
    Ok(contents)
}

/// A target, and what was found in it.
struct Seen<'a> {
    target: &'a dyn Target,
    outcome: &'a Outcome,
    runtime: &'a dyn Runtime,
}

impl Seen<'_> {
    fn contents(&self, lists: Lists) -> Contents {
        let contents = contents_of(&self.outcome.report, self.runtime, self.target, lists);
        Contents { refused: self.outcome.refused, ..contents }
    }
}

/// What was found in a target, and the answer that was made of it.
struct Looked<T> {
    answer: T,
    outcome: Outcome,
    provider: Runtimes,
    target: From,
}

enum From {
    Core(Box<CoreTarget>),
    Process(Box<Proven<()>>),
}

impl<T> Looked<T> {
    fn whole(&self) -> bool {
        matches!(&self.target, From::Core(_)) || matches!(&self.target, From::Process(p) if p.whole)
    }

    fn notes(&self, options: &Options) -> Vec<String> {
        match &self.target {
            From::Core(_) => Vec::new(),
            From::Process(proven) => proven.notes(options.verbose),
        }
    }

    /// Fills `buf` with what is at `address` now; of a process this may be more than can be copied while it stands.
    /// [`Looked::is_there`], to be asked at the end, tells whether the memory was still the same one. Returns whether
    /// all of it could be read.
    fn read(&self, address: u64, buf: &mut [u8]) -> bool {
        match &self.target {
            From::Core(core) => core.read(address, buf).is_ok(),
            From::Process(proven) => proven.target.scan(address, buf) == buf.len(),
        }
    }

    /// Whether this memory of an instance is still where it was.
    fn is_there(&self, instance: GuestInstance, index: u32, base: u64) -> bool {
        let From::Process(proven) = &self.target else { return true };
        let runtime = self.provider.runtime();
        let now = proven.target.running();
        proven.target.is_proven()
            || (runtime.check_instance(instance, now).is_ok()
                && runtime.linear_memory(instance.module, instance.address, index, now).is_ok_and(|m| m.0 == base))
    }
}

/// Looks through a target and calls `work` with what was found. With a process, this is repeated as often as it takes
/// until the answer is proven.
fn with_target<T>(options: &Options, mut work: impl FnMut(&Seen<'_>) -> Result<T, Error>) -> Result<Looked<T>, Error> {
    let search = options.search_paths();
    let progress = progress::stderr(options.verbose);
    let found = FindOptions::read(options.routes.clone(), &options.artifacts, &options.wasm);
    let mut run = |target: &dyn Target, objects: &Objects| {
        let mut provider = Runtimes::new(&found);
        let Some(outcome) = analyse_once(target, objects, options, &mut provider, &progress)? else { return Ok(None) };
        let answer = work(&Seen { target, outcome: &outcome, runtime: provider.runtime() })?;
        Ok(Some((answer, outcome, provider)))
    };
    let steady = Steady::begin();
    let looked = match &options.source {
        Source::Pid(pid) => proof::of_process(*pid, &search, |target, objects| run(target, objects)).map(|proven| {
            let Proven { answer, target, stops, stood, whole } = proven;
            (answer, From::Process(Box::new(Proven { answer: (), target, stops, stood, whole })))
        }),
        Source::Core { core, .. } => CoreTarget::open(core, &search).and_then(|core| {
            let seen = run(&core, &Objects::load(&core, &search))?;
            let seen = seen.ok_or_else(|| Error::NotFound { what: "a core does not change".to_string() })?;
            Ok((seen, From::Core(Box::new(core))))
        }),
    };
    no_changes(&steady)?;
    let ((answer, outcome, provider), target) = looked?;
    Ok(Looked { answer, outcome, provider, target })
}

/// What the modules and instances hold that `report` found.
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
                Err(why) => row.functions_why = Some(why.clone()),
            }
        }
        if lists.exports {
            let export =
                |e: &crate::wasm::GuestExport| ExportRow { name: e.name.clone(), kind: e.kind, index: e.index };
            match &declared.exports {
                Ok(all) => row.exports = Some(all.iter().map(export).collect()),
                Err(why) => row.exports_why = Some(why.clone()),
            }
        }
        for (number, (instance, threads)) in threads.iter().enumerate().filter(|(_, (i, _))| i.module == module) {
            let mut one = instance_row(number as u32, *instance, &declared, runtime, memory);
            one.threads = threads.iter().copied().collect();
            row.instances.push(one);
        }
        if row.instances.is_empty() {
            row.instances_why = declared.memories.as_ref().err().cloned();
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
    FunctionRow {
        index,
        name: f.name.as_ref().map(|(name, _)| name.clone()),
        name_source: f.name.as_ref().map(|(_, source)| *source),
        params: f.signature.as_ref().map(|(params, _)| params.clone()),
        results: f.signature.as_ref().map(|(_, results)| results.clone()),
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
    let memory_row = |index: u32, decl: crate::wasm::MemoryDecl| {
        let found = runtime.linear_memory(module, address, index, memory);
        MemoryRow {
            index,
            base: found.as_ref().ok().map(|m| Hex(m.0)),
            size: found.as_ref().ok().map(|m| m.1),
            memory64: decl.memory64,
            shared: decl.shared,
            maximum: decl.maximum_in_wasm_pages(),
            why: found.err(),
        }
    };
    match &declared.memories {
        Ok(all) => row.memories = all.iter().enumerate().map(|(i, decl)| memory_row(i as u32, *decl)).collect(),
        Err(why) => {
            // The first memory may be known all the same.
            let first = memory_row(0, crate::wasm::MemoryDecl::default());
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
        Err(why) => row.globals_why = Some(why.clone()),
    }
    match &declared.tables {
        Ok(count) => {
            for index in 0..(*count).min(limits::MAX_SLOTS as u32) {
                let found = runtime.table(module, address, index, memory);
                let elements = found.as_ref().ok().copied();
                row.tables.push(TableRow { index, elements, why: found.err() });
            }
        }
        Err(why) => row.tables_why = Some(why.clone()),
    }
    row
}

/// Which instance the user means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceChoice {
    /// The only instance that has the memory. For a snapshot: the instance that the thread runs in.
    Only,
    /// The instance with this number in [`Contents`].
    Number(u32),
    /// The instance at this address.
    Address(u64),
}

/// A stretch of a linear memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// The instance whose memory is meant.
    pub instance: InstanceChoice,
    /// Index of the memory in the instance.
    pub memory: u32,
    /// First address of the stretch, in the linear memory.
    pub address: u64,
    /// Number of bytes.
    pub len: u64,
}

/// Called with bytes of a linear memory and the address of the first byte in that memory.
pub type Sink<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Error> + 'a;

/// Number of bytes of a linear memory that are in wstate's own memory at once.
const CHUNK: u64 = 256 << 10;

/// Up to this number of bytes of linear memories are copied at the instant of the stacks for `memory` and `export`.
/// If there are more, they are read while the process runs on.
const COPIED_MEMORY: u64 = 4 << 20;

/// The linear memory that was chosen.
struct ChosenMemory {
    instance: GuestInstance,
    base: u64,
    size: u64,
}

/// Gives `sink` the bytes of a linear memory piece by piece, with the address in the linear memory. All pieces but
/// the last are multiples of 16 bytes long. If a file that the user named was not used, the report's notes are
/// returned, which say so.
pub fn linear_memory(options: &Options, wanted: MemoryRange, sink: &mut Sink<'_>) -> Result<Vec<String>, Error> {
    let (address, len) = (wanted.address, wanted.len);
    let looked = with_target(options, |seen| {
        let chosen = choose_memory(&seen.contents(Lists::default()), wanted)?;
        if address.checked_add(len).is_none_or(|end| end > chosen.size) {
            return Err(Error::NotFound {
                what: format!(
                    "memory {} has {:#x} bytes; {len:#x} bytes at {address:#x} are not inside",
                    wanted.memory, chosen.size
                ),
            });
        }
        // Up to this size, the bytes belong to the instant of the stacks.
        let few = len <= COPIED_MEMORY;
        let bytes = few.then(|| seen.target.read_vec(chosen.base.wrapping_add(address), len as usize)).transpose();
        let bytes = bytes.map_err(|e| Error::NotFound {
            what: format!("bytes from {address:#x} of memory {} cannot be read: {e}", wanted.memory),
        })?;
        Ok((chosen, bytes))
    })?;
    let gone = || Error::NotFound { what: format!("memory {} is not known: {}", wanted.memory, proof::GONE) };
    if !looked.whole() {
        return Err(gone());
    }
    let (chosen, bytes) = &looked.answer;
    let mut done = 0;
    while done < len {
        let part = CHUNK.min(len - done);
        let piece = match bytes {
            Some(bytes) => bytes[done as usize..][..part as usize].to_vec(),
            None => {
                let mut piece = vec![0; part as usize];
                if !looked.read(chosen.base.wrapping_add(address).wrapping_add(done), &mut piece) {
                    let what = format!("bytes from {:#x} of memory {} cannot be read", address + done, wanted.memory);
                    return Err(Error::NotFound { what });
                }
                piece
            }
        };
        sink(address + done, &piece)?;
        done += part;
    }
    match bytes.is_some() || looked.is_there(chosen.instance, wanted.memory, chosen.base) {
        true if looked.outcome.refused => Ok(looked.outcome.report.notes.clone()),
        true => Ok(Vec::new()),
        false => Err(gone()),
    }
}

/// The memory that is meant. The error says which instances or memories there are.
fn choose_memory(contents: &Contents, wanted: MemoryRange) -> Result<ChosenMemory, Error> {
    let not_found = |what: String| Err(Error::NotFound { what });
    let all: Vec<(u32, &Instance)> = contents.instances().collect();
    let list = || {
        let one = |(module, i): &(u32, &Instance)| {
            format!("{} at {} of {}", i.number, i.address, contents.module_name(*module))
        };
        let shown: Vec<String> = all.iter().take(20).map(one).collect();
        format!("{}{}", shown.join("; "), if all.len() > shown.len() { "; …" } else { "" })
    };
    let chosen: Vec<(u32, &Instance)> = match wanted.instance {
        InstanceChoice::Number(n) => all.iter().copied().filter(|(_, i)| i.number == n).collect(),
        InstanceChoice::Address(a) => all.iter().copied().filter(|(_, i)| i.address.0 == a).collect(),
        InstanceChoice::Only => {
            let has = |i: &Instance| i.memories.iter().any(|m| m.index == wanted.memory && m.size.is_some());
            let with: Vec<(u32, &Instance)> = all.iter().copied().filter(|(_, i)| has(i)).collect();
            if with.is_empty() { all.clone() } else { with }
        }
    };
    match (chosen.as_slice(), wanted.instance) {
        ([], _) if all.is_empty() => {
            let why = contents.contents.iter().find_map(|m| m.instances_why.as_ref());
            let why = why.map_or("try: wstate modules".to_string(), ToString::to_string);
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
    let row = |i: &Instance| i.memories.iter().find(|m| m.index == index).cloned();
    match chosen.first().and_then(|(module, i)| Some((*module, i.address.0, row(i)?))) {
        Some((module, address, MemoryRow { base: Some(base), size: Some(size), .. })) => {
            Ok(ChosenMemory { instance: GuestInstance { module: module as usize, address }, base: base.0, size })
        }
        Some((_, _, row)) => not_found(format!(
            "memory {index} is not known: {}",
            row.why.map(|why| why.to_string()).unwrap_or_default()
        )),
        None => {
            let why = chosen.first().and_then(|(_, i)| i.memories_why.clone()).map(|w| format!(" ({w})"));
            let count = chosen.first().map_or(0, |(_, i)| i.memories.len());
            not_found(format!(
                "there is no memory {index}: the instance has {count} that are known{}",
                why.unwrap_or_default()
            ))
        }
    }
}

/// Writes a Wasm coredump to `out`. Returns notes, also about what could not be written into it.
pub fn export_coredump(options: &Options, compat: Option<Compat>, out: &mut dyn Write) -> Result<Vec<String>, Error> {
    let written = |runtime: &dyn Runtime,
                   report: &Report,
                   contents: &Contents,
                   read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
                   out: &mut dyn Write| {
        let mut body = |module: u32, function: u32| runtime.body_offset(module as usize, function);
        let mut source = wasm_coredump::Source { report, contents, read, body_offset: &mut body };
        let written = wasm_coredump::write(&mut source, compat, out);
        written.map_err(|source: io::Error| Error::Output { to: "the coredump".to_string(), source })
    };
    let looked = with_target(options, |seen| {
        let mut contents = seen.contents(Lists::default());
        if contents.contents.is_empty() {
            return Err(Error::NotFound { what: "no Wasm module was found in the target".to_string() });
        }
        let notes = std::mem::take(&mut contents.notes);
        let memories = contents.instances().flat_map(|(_, i)| &i.memories).filter_map(|m| m.size);
        // Up to this size, the memories belong to the instant of the stacks.
        let few = memories.fold(0, u64::saturating_add) <= COPIED_MEMORY;
        let whole = few.then(|| {
            let mut bytes = Vec::new();
            let mut read = |address: u64, buf: &mut [u8]| seen.target.read(address, buf).is_ok();
            let missing = written(seen.runtime, &seen.outcome.report, &contents, &mut read, &mut bytes)?;
            Ok::<_, Error>((bytes, missing))
        });
        Ok((contents, notes, whole.transpose()?))
    })?;
    let told = looked.notes(options);
    let (contents, notes, whole) = &looked.answer;
    let missing = match whole {
        Some((bytes, missing)) => {
            let failed = |source: io::Error| Error::Output { to: "the coredump".to_string(), source };
            out.write_all(bytes).map_err(failed)?;
            missing.clone()
        }
        None => {
            let mut read = |address: u64, buf: &mut [u8]| looked.read(address, buf);
            written(looked.provider.runtime(), &looked.outcome.report, contents, &mut read, out)?
        }
    };
    let mut notes: Vec<String> = notes.iter().cloned().chain(told).chain(missing).collect();
    if whole.is_none() {
        let is_gone = |(module, instance): (u32, &Instance)| {
            let of = GuestInstance { module: module as usize, address: instance.address.0 };
            let known = instance.memories.iter().filter_map(|m| Some((m.index, m.base?.0)));
            known.into_iter().any(|(index, base)| !looked.is_there(of, index, base)).then_some(instance.address)
        };
        for address in contents.instances().filter_map(is_gone) {
            notes.push(format!("the memories of the instance at {address} may be of another one: {}", proof::GONE));
        }
    }
    Ok(notes)
}
