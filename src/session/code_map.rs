//! The compiled code of a target, described for a debugger.

use super::look::Look;
use super::walking::Native;
use super::{Session, no_changes, own_names};
use crate::arch::CodeAddress;
use crate::error::Error;
use crate::limits;
use crate::process::files::Steady;
use crate::process::objects::Objects;
use crate::process::{Target, Thread};
use crate::runtime::all::{self, Runtimes};
use crate::runtime::code_map::{CodeMap, CompiledFunction, CompiledModule, Detail, Seen};
use crate::runtime::{Provider, Runtime};
use crate::unwind::recognised::Stretch;
use std::collections::{BTreeMap, BTreeSet};

impl Session<'_> {
    /// Describes the compiled code of the target for a debugger. `all` asks for locals and operands of every function,
    /// however many there are.
    ///
    /// # Errors
    /// The target cannot be read, or its files were changed meanwhile.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "symbol files are made by the program"))]
    pub(crate) fn code_map(&self, all: bool) -> Result<CodeMap, Error> {
        let steady = Steady::begin();
        let found = self.found.for_a_question();
        let map = self.ask(|look| {
            let map = look.code_map(&mut Runtimes::new(&found), all);
            Ok(look.target.prove().then_some(map))
        });
        let map = map.map(|answer| {
            let notes = answer.from.notes(self.options.verbose);
            let mut map = answer.value;
            map.withhold_originals(&mut Seen::default());
            map.notes.extend(notes);
            map
        });
        no_changes(&steady)?;
        map
    }
}

impl Look<'_> {
    /// Describes the compiled code of the target, as `Session::code_map` does. What `provider` found before is not
    /// looked for again.
    pub fn code_map(&self, provider: &mut Runtimes, all: bool) -> CodeMap {
        let (target, objects) = (self.target, self.objects);
        let native = Native::new(target, objects);
        let threads: Vec<&Thread> = target.threads().iter().take(limits::MAX_THREADS).collect();
        let stacks = self.walk(&threads, &native, provider);
        provider.match_files(target);
        self.progress.finish();
        let runtime = provider.runtime();
        let places: BTreeSet<CodeAddress> =
            stacks.iter().flatten().flat_map(|s| &s.frames).map(|f| f.cursor.address).collect();
        let detail = if all {
            Detail::All
        } else {
            let addresses: BTreeSet<u64> =
                places.iter().map(|a| a.lookup()).filter(|a| runtime.module_of(*a).is_some()).collect();
            Detail::usual(addresses.into_iter().collect())
        };
        let mut map = runtime.code_map(&detail, target);
        map.notes.extend(runtime.notes().iter().cloned());
        own_names::distinguish(&mut map, objects);
        if !map.modules.is_empty() {
            map.modules.extend(routines(target, objects, runtime, &places));
        }
        map
    }
}

/// The native routines without call frame information: those on the stacks, and those in anonymous memory, because
/// every call into Wasm goes through one of them.
fn routines(
    target: &dyn Target,
    objects: &Objects,
    runtime: &dyn Runtime,
    places: &BTreeSet<CodeAddress>,
) -> Vec<CompiledModule> {
    let recognised = all::recognised();
    let mut found: BTreeMap<u64, Stretch> = BTreeMap::new();
    let mut left = limits::MAX_ROUTINE_SEARCH;
    for mapping in target.mappings().iter().filter(|m| m.execute && m.is_anonymous()) {
        if runtime.module_of(mapping.start).is_some() || objects.find(mapping.start).is_some() || left == 0 {
            continue;
        }
        let mut code = vec![0; mapping.size().min(left) as usize];
        left -= code.len() as u64;
        let read = target.read_some(mapping.start, &mut code);
        code.truncate(read);
        found.extend(recognised.stretches(&code, mapping.start).into_iter().map(|s| (s.start, s)));
    }
    for place in places.iter().filter(|p| runtime.module_of(p.lookup()).is_none()) {
        if let Some(stretch) = recognised.stretch_at(*place, target) {
            found.insert(stretch.start, stretch);
        }
    }
    let mut out: Vec<CompiledModule> = Vec::new();
    for stretch in found.into_values() {
        // A routine that is in a file gets no name here: the file has names for its own code, and the routine may be
        // called something else there.
        let in_file = objects.find(stretch.start).is_some();
        let code = if in_file { Ok(Vec::new()) } else { target.read_vec(stretch.start, stretch.len as usize) };
        let Ok(code) = code else { continue };
        if let Some(before) = out.last_mut()
            && before.code.is_empty() == code.is_empty()
            && append(before, &stretch, &code)
        {
            continue;
        }
        let function = CompiledFunction {
            name: (!in_file).then(|| stretch.name.split(" (").next().unwrap_or(stretch.name).replace(' ', "_")),
            start: stretch.start,
            len: stretch.len,
            frame: stretch.frame,
            ..CompiledFunction::default()
        };
        out.push(CompiledModule {
            name: stretch.name.to_string(),
            base: stretch.start,
            code,
            functions: vec![function],
            ..CompiledModule::default()
        });
    }
    out
}

/// Makes `stretch` a part of the routine in `before` if it begins in the last byte of that routine or right behind
/// it.
fn append(before: &mut CompiledModule, stretch: &Stretch, code: &[u8]) -> bool {
    let Some(function) = before.functions.last_mut() else { return false };
    let Some(at) = stretch.start.checked_sub(function.start).and_then(|at| u32::try_from(at).ok()) else {
        return false;
    };
    if at == 0 || at > function.len || function.len - at > 1 {
        return false;
    }
    function.frame.retain(|(offset, _)| *offset < at);
    function.frame.extend(stretch.frame.iter().map(|&(offset, change)| (at + offset, change)));
    function.len = at + stretch.len;
    if !code.is_empty() {
        before.code.truncate(at as usize);
        before.code.extend(code);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::objects::SearchPaths;
    use crate::process::testing::CoreBuilder;
    use crate::runtime::all::FindOptions;
    use crate::runtime::singlepass::stubs::CALL_WASM_LEAVE;

    #[test]
    fn routines_are_looked_for_in_so_much_code() {
        let most = limits::MAX_ROUTINE_SEARCH as usize;
        let len = CALL_WASM_LEAVE.len();
        let mut code = vec![0xcc; most + 2 * len];
        for at in [most - len, most] {
            code[at..at + len].copy_from_slice(CALL_WASM_LEAVE);
        }
        let core = CoreBuilder::new().memory(0x10_0000, 5, &code).open().unwrap();
        let objects = Objects::load(&core, &SearchPaths::default());
        let none = Runtimes::new(&FindOptions::default());
        let found = routines(&core, &objects, none.runtime(), &BTreeSet::new());
        // Only one routine is found: the other is behind the end of what is searched.
        assert_eq!(found.len(), 1);
    }
}
