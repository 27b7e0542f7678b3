//! The bytes of a linear memory.

use super::Session;
use super::contents::COPIED_MEMORY;
use super::proof::GONE;
use crate::error::Error;
use crate::report::contents::{Contents, Instance, Lists, MemoryRow};
use crate::runtime::GuestInstance;

/// Which instance the user means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InstanceChoice {
    /// The only instance that has the memory. For a snapshot: the instance that the thread runs in.
    #[default]
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

/// Number of bytes of a linear memory that are in wstate's own memory at once.
const CHUNK: u64 = 256 << 10;

/// The linear memory that was chosen.
struct ChosenMemory {
    instance: GuestInstance,
    base: u64,
    size: u64,
}

impl Session<'_> {
    /// Gives `sink` the bytes of a linear memory piece by piece, with the address in the linear memory. All pieces but
    /// the last are multiples of 16 bytes long. If a file that the user named was not used, the report's notes are
    /// returned, which say so.
    ///
    /// # Errors
    /// There is no such memory, it is not clear which one is meant, the range is not inside it, or it cannot be read.
    pub fn linear_memory(
        &self,
        wanted: MemoryRange,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), Error>,
    ) -> Result<Vec<String>, Error> {
        let (address, len) = (wanted.address, wanted.len);
        let looked = self.look_through(|seen| {
            let chosen = choose_memory(&seen.contents(Lists::default()), wanted)?;
            if address.checked_add(len).is_none_or(|end| end > chosen.size) {
                return Err(Error::OutOfBounds {
                    what: format!(
                        "memory {} has {:#x} bytes; {len:#x} bytes at {address:#x} are not inside",
                        wanted.memory, chosen.size
                    ),
                });
            }
            // Up to this size, the bytes belong to the instant of the stacks.
            let few = len <= COPIED_MEMORY;
            let bytes = few.then(|| seen.target.read_vec(chosen.base.wrapping_add(address), len as usize)).transpose();
            let bytes = bytes.map_err(|e| Error::Unreadable {
                what: format!("bytes from {address:#x} of memory {} cannot be read: {e}", wanted.memory),
            })?;
            Ok((chosen, bytes))
        })?;
        let gone = || Error::Changed { what: format!("memory {} is not known: {GONE}", wanted.memory) };
        if !looked.from.is_whole() {
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
                        let what =
                            format!("bytes from {:#x} of memory {} cannot be read", address + done, wanted.memory);
                        return Err(Error::Unreadable { what });
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
}

/// The memory that is meant. The error says which instances or memories there are.
fn choose_memory(contents: &Contents, wanted: MemoryRange) -> Result<ChosenMemory, Error> {
    let no_instance = |what: String| Err(Error::NoSuchInstance { what });
    let no_memory = |what: String| Err(Error::NoSuchMemory { what });
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
            return no_instance(format!("no instance was found in the target; {why}"));
        }
        ([], _) => return no_instance(format!("there is no such instance; there are: {}", list())),
        ([_], _) => {}
        (_, InstanceChoice::Only) => {
            let what = format!("several instances; choose one with --instance: {}", list());
            return Err(Error::Ambiguous { what });
        }
        _ => {}
    }
    let index = wanted.memory;
    let row = |i: &Instance| i.memories.iter().find(|m| m.index == index).cloned();
    match chosen.first().and_then(|(module, i)| Some((*module, i.address.0, row(i)?))) {
        Some((module, address, MemoryRow { base: Some(base), size: Some(size), .. })) => {
            Ok(ChosenMemory { instance: GuestInstance { module: module as usize, address }, base: base.0, size })
        }
        Some((_, _, row)) => no_memory(format!(
            "memory {index} is not known: {}",
            row.why.map(|why| why.to_string()).unwrap_or_default()
        )),
        None => {
            let why = chosen.first().and_then(|(_, i)| i.memories_why.clone()).map(|w| format!(" ({w})"));
            let count = chosen.first().map_or(0, |(_, i)| i.memories.len());
            no_memory(format!(
                "there is no memory {index}: the instance has {count} that are known{}",
                why.unwrap_or_default()
            ))
        }
    }
}
