//! Names in symbol files that a debugger must not take for those of native functions.
//!
//! gdb and lldb look up some functions of the process by name alone, and a symbol file that was loaded later may win:
//! - For `call puts("x")` gdb calls `malloc` in the process. If a guest's `malloc` was loaded (every Emscripten
//!   module has one), gdb called that function, without an instance. This was seen to fault, and it could as well
//!   overwrite memory.
//! - gdb ends a backtrace at the function `main`, as long as the executable has no such symbol: seen with a stripped
//!   host and a guest's `main`, where the frames from there on were missing.
//! - gdb puts breakpoints of its own at each `longjmp`, and reads the address at which it will go on from native
//!   registers.
//!
//! Functions with such names get a suffix. So do functions with a name that the process has already, because
//! otherwise `print strlen(s)` would change its meaning.

use crate::limits::MAX_SYMBOLS;
use crate::process::objects::Objects;
use crate::runtime::code_map::CodeMap;
use crate::symbolize::native::symbol_names;
use std::collections::{HashMap, HashSet};

/// The suffix that such a name gets.
const SUFFIX: &str = ".wasm";

/// Names that gdb (`infcall.c`, `breakpoint.c`, `frame.c`, `linux-tdep.c`, `jit.c`, `linux-fork.c`) and lldb (the
/// memory of expressions, `dlopen`, the loader of JIT descriptions) look up by themselves. They are listed here
/// because a stripped file may have none of them.
const ASKED_BY_DEBUGGERS: &[&str] = &[
    "main",
    "_start",
    "malloc",
    "calloc",
    "free",
    "mmap",
    "mmap64",
    "munmap",
    "fork",
    "lseek",
    "lseek64",
    "open",
    "open64",
    "close",
    "dlopen",
    "dlsym",
    "dlclose",
    "dlerror",
    "longjmp",
    "_longjmp",
    "siglongjmp",
    "_siglongjmp",
    "_Unwind_DebugHook",
    "_ovly_debug_event",
    "__cxa_throw",
    "__cxa_rethrow",
    "__cxa_begin_catch",
    "__jit_debug_register_code",
    "__jit_debug_descriptor",
    "_dl_debug_state",
];

/// Appends the suffix to each name in `map` that debuggers look up or that a loaded file has, too.
pub(super) fn distinguish(map: &mut CodeMap, objects: &Objects) {
    let mut named: HashMap<String, Vec<(usize, usize)>> = HashMap::new();
    for (m, module) in map.modules.iter().enumerate() {
        for (f, function) in module.functions.iter().enumerate() {
            if let Some(name) = &function.name {
                named.entry(name.clone()).or_default().push((m, f));
            }
        }
    }
    if named.is_empty() {
        return;
    }
    let mut taken: HashSet<&str> = ASKED_BY_DEBUGGERS.iter().copied().filter(|n| named.contains_key(*n)).collect();
    for object in objects.iter() {
        let mut left = MAX_SYMBOLS;
        symbol_names(object, |name| {
            if let Some((name, _)) = named.get_key_value(name) {
                taken.insert(name);
            }
            left = left.saturating_sub(1);
            left > 0
        });
    }
    for place in taken.iter().filter_map(|name| named.get(*name)).flatten() {
        let function = map.modules.get_mut(place.0).and_then(|m| m.functions.get_mut(place.1));
        if let Some(name) = function.and_then(|f| f.name.as_mut()) {
            name.push_str(SUFFIX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::code_map::{CompiledFunction, CompiledModule};
    use crate::unwind::testing::own_objects;

    fn module(names: &[&str]) -> CompiledModule {
        let named = |name: &&str| CompiledFunction { name: Some(name.to_string()), ..CompiledFunction::default() };
        let unnamed = CompiledFunction::default();
        CompiledModule { functions: names.iter().map(named).chain([unnamed]).collect(), ..CompiledModule::default() }
    }

    fn names(map: &CodeMap) -> Vec<&str> {
        map.modules.iter().flat_map(|m| &m.functions).filter_map(|f| f.name.as_deref()).collect()
    }

    #[test]
    fn names_of_the_process_and_of_debuggers_get_a_suffix() {
        let modules = vec![module(&["leaf", "longjmp", "strtoul", "environ"]), module(&["malloc", "leaf", "main"])];
        let mut map = CodeMap { modules, ..CodeMap::default() };
        // In this target no file is known.
        distinguish(&mut map, &Objects::from_parts(Vec::new()));
        assert_eq!(names(&map), ["leaf", "longjmp.wasm", "strtoul", "environ", "malloc.wasm", "leaf", "main.wasm"]);
        distinguish(&mut map, &own_objects());
        let longjmp = "longjmp.wasm";
        assert_eq!(names(&map), ["leaf", longjmp, "strtoul.wasm", "environ.wasm", "malloc.wasm", "leaf", "main.wasm"]);
    }
}
