//! What the modules and instances of a target hold.

use super::outcome::Outcome;
use super::{Answer, Origin, Session, no_changes};
use crate::error::Error;
use crate::limits;
use crate::process::files::Steady;
use crate::process::objects::Objects;
use crate::process::{Memory, Target};
use crate::report::contents::{
    Contents, ExportRow, FunctionRow, GlobalRow, Instance, Lists, MemoryRow, ModuleContents, TableRow,
};
use crate::report::facts::NativeObject;
use crate::report::{self, Frame, Hex, Report};
use crate::runtime::all::Runtimes;
use crate::runtime::{self, Declared, GuestFunction, GuestInstance, Provider, Runtime, Slot};
use crate::wasm::{GuestExport, MemoryDecl};
use std::collections::{BTreeMap, BTreeSet};

/// Up to this number of bytes of linear memories are copied at the instant of the stacks. If there are more, they are
/// read while the process runs on.
pub(super) const COPIED_MEMORY: u64 = 4 << 20;

impl<'t> Session<'t> {
    /// Lists what the modules and instances of the target hold. [`Options::threads`](super::Options::threads) and similar
    /// options count as they do for [`Session::stacks`], because instances are found along stacks.
    ///
    /// # Errors
    /// The target cannot be looked at, or has no such thread.
    pub fn modules(&self, lists: Lists) -> Result<Contents, Error> {
        let looked = self.look_through(|seen| Ok(seen.contents(lists)))?;
        let (whole, notes) = (looked.from.is_whole(), looked.from.notes(self.options.verbose));
        let mut contents = Contents { refused: looked.answer.refused || !whole, ..looked.answer };
        contents.notes.extend(notes);
        Ok(contents)
    }

    /// Looks through the target and calls `work` with what was found. With a process, this is repeated as often as it
    /// takes until the answer is proven.
    pub(super) fn look_through<T>(
        &self,
        mut work: impl FnMut(&Seen<'_>) -> Result<T, Error>,
    ) -> Result<Looked<'t, T>, Error> {
        let steady = Steady::begin();
        let found = self.found.for_a_question();
        let answer = self.ask(|look| {
            let mut provider = Runtimes::new(&found);
            let Some(outcome) = look.outcome_of_one_instant(&mut provider)? else { return Ok(None) };
            let (target, objects) = (look.target, look.objects);
            let answer = work(&Seen { target, objects, outcome: &outcome, runtime: provider.runtime() })?;
            Ok(Some((answer, outcome, provider)))
        });
        no_changes(&steady)?;
        let Answer { value: (answer, outcome, provider), from } = answer?;
        Ok(Looked { answer, outcome, provider, from })
    }
}

/// A target while it is looked at, and what was found in it.
pub(super) struct Seen<'a> {
    pub target: &'a dyn Target,
    pub objects: &'a Objects,
    pub outcome: &'a Outcome,
    pub runtime: &'a dyn Runtime,
}

impl Seen<'_> {
    pub fn contents(&self, lists: Lists) -> Contents {
        let contents = contents_of(&self.outcome.report, self.runtime, self.target, lists);
        let objects = lists.native.then(|| self.objects.iter().map(NativeObject::new).collect());
        Contents { objects, refused: self.outcome.refused, ..contents }
    }
}

/// What was found in a target, the answer that was made of it, and the target as it is now.
pub(super) struct Looked<'t, T> {
    pub answer: T,
    pub outcome: Outcome,
    pub provider: Runtimes,
    pub from: Origin<'t>,
}

impl<T> Looked<'_, T> {
    /// Fills `buf` with what is at `address` now; of a process this may be more than can be copied while it stands.
    /// [`Looked::is_there`], to be asked at the end, tells whether the memory was still the same one. Returns whether
    /// all of it could be read.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> bool {
        match &self.from {
            Origin::Caller(target) => target.read(address, buf).is_ok(),
            Origin::Core(core) => core.read(address, buf).is_ok(),
            Origin::Process(proven) => proven.target.scan(address, buf) == buf.len(),
        }
    }

    /// Whether this memory of an instance is still where it was.
    pub fn is_there(&self, instance: GuestInstance, index: u32, base: u64) -> bool {
        let Origin::Process(proven) = &self.from else { return true };
        let runtime = self.provider.runtime();
        let now = proven.target.running();
        proven.target.is_proven()
            || (runtime.check_instance(instance, now).is_ok()
                && runtime.linear_memory(instance.module, instance.address, index, now).is_ok_and(|m| m.0 == base))
    }
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
            let export = |e: &GuestExport| ExportRow { name: e.name.clone(), kind: e.kind, index: e.index };
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

fn function(index: u32, f: &GuestFunction) -> FunctionRow {
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
    declared: &Declared,
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
    let memory_row = |index: u32, decl: MemoryDecl| {
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
            let first = memory_row(0, MemoryDecl::default());
            row.memories.extend(Some(first).filter(|m| m.why.is_none()));
            row.memories_why = Some(why.clone());
        }
    }
    match &declared.globals {
        Ok(all) => {
            for (i, decl) in all.iter().enumerate() {
                let value = runtime.global(module, address, i as u32, memory);
                let value = value.unwrap_or_else(|why| runtime::Value { ty: decl.ty, slot: Slot::Unknown(why) });
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
