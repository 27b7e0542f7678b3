//! Writes what is in a target as a Wasm coredump.

use super::Session;
use super::contents::COPIED_MEMORY;
use super::proof::GONE;
use crate::error::Error;
use crate::report::Report;
use crate::report::contents::{Contents, Instance, Lists};
use crate::report::wasm_coredump::{self, Compat};
use crate::runtime::{GuestInstance, Provider, Runtime};
use std::io::{self, Write};

impl Session<'_> {
    /// Writes a Wasm coredump to `out`. Returns notes, also about what could not be written into it.
    ///
    /// # Errors
    /// The target cannot be looked at, runs no Wasm, or the coredump cannot be written.
    pub fn export_coredump(&self, compat: Option<Compat>, out: &mut dyn Write) -> Result<Vec<String>, Error> {
        let looked = self.look_through(|seen| {
            let mut contents = seen.contents(Lists::default());
            if contents.contents.is_empty() {
                return Err(Error::NoWasm { what: "no Wasm module was found in the target".to_string() });
            }
            let notes = std::mem::take(&mut contents.notes);
            let memories = contents.instances().flat_map(|(_, i)| &i.memories).filter_map(|m| m.size);
            // Up to this size, the memories belong to the instant of the stacks.
            let few = memories.fold(0, u64::saturating_add) <= COPIED_MEMORY;
            let whole = few.then(|| {
                let mut bytes = Vec::new();
                let mut read = |address: u64, buf: &mut [u8]| seen.target.read(address, buf).is_ok();
                let report = &seen.outcome.report;
                let missing = write(seen.runtime, report, &contents, &mut read, compat, &mut bytes)?;
                Ok::<_, Error>((bytes, missing))
            });
            Ok((contents, notes, whole.transpose()?))
        })?;
        let told = looked.from.notes(self.options.verbose);
        let (contents, notes, whole) = &looked.answer;
        let missing = match whole {
            Some((bytes, missing)) => {
                out.write_all(bytes).map_err(failed)?;
                missing.clone()
            }
            None => {
                let mut read = |address: u64, buf: &mut [u8]| looked.read(address, buf);
                let (runtime, report) = (looked.provider.runtime(), &looked.outcome.report);
                write(runtime, report, contents, &mut read, compat, out)?
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
                notes.push(format!("the memories of the instance at {address} may be of another one: {GONE}"));
            }
        }
        Ok(notes)
    }
}

fn failed(source: io::Error) -> Error {
    Error::Output { to: "the coredump".to_string(), source }
}

/// Writes the coredump itself. Returns notes about what could not be written into it.
fn write(
    runtime: &dyn Runtime,
    report: &Report,
    contents: &Contents,
    read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
    compat: Option<Compat>,
    out: &mut dyn Write,
) -> Result<Vec<String>, Error> {
    let mut body_offset = |module: u32, function: u32| runtime.body_offset(module as usize, function);
    let mut source = wasm_coredump::CoredumpInput { report, contents, read, body_offset: &mut body_offset };
    wasm_coredump::write(&mut source, compat, out).map_err(failed)
}
