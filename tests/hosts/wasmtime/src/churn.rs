//! A host that loads a module, runs it, unloads it, and goes on with the next, for ever: `KIND COUNT [HOW..]`, see
//! `tests/hosts/churn/guests.rs`. HOW: `guest-debug`; `file`: the modules are mapped from files; `instances`: the modules stay
//! and only their instances come and go.

#[path = "../../churn/guests.rs"]
mod guests;

use wasmtime::{Config, Engine, Instance, Module, Store};

fn main() {
    let asked = guests::asked();
    let has = |word: &str| asked.how.iter().any(|how| how == word);
    #[cfg_attr(not(feature = "v48"), expect(unused_mut))]
    let mut config = Config::new();
    #[cfg(feature = "v48")]
    if has("guest-debug") {
        config.guest_debug(true);
    }
    let engine = Engine::new(&config).expect("an engine");
    let images: Vec<Vec<u8>> =
        asked.modules.iter().map(|wasm| engine.precompile_module(wasm).expect("the modules compile")).collect();
    let directory = std::env::temp_dir().join(format!("wstate-churn-{}", std::process::id()));
    let path = |module: usize| directory.join(format!("{module}.cwasm"));
    if has("file") {
        std::fs::create_dir(&directory).expect("a directory");
        images.iter().enumerate().for_each(|(i, image)| std::fs::write(path(i), image).expect("a file"));
    }
    let load = |module: usize| {
        // SAFETY: this engine made them.
        let loaded = match has("file") {
            true => unsafe { Module::deserialize_file(&engine, path(module)) },
            false => unsafe { Module::deserialize(&engine, &images[module]) },
        };
        loaded.expect("a module")
    };
    let kept: Vec<Module> = if has("instances") { (0..3).map(load).collect() } else { Vec::new() };
    guests::churn(|module, within| {
        let loaded = kept.get(module).cloned().unwrap_or_else(|| load(module));
        let mut store = Store::new(&engine, ());
        let instance = Instance::new(&mut store, &loaded, &[]).expect("an instance");
        let run = instance.get_typed_func::<(i32, i32), ()>(&mut store, "run").expect("it has a function run");
        within(&mut || run.call(&mut store, (asked.count, 10 + module as i32)).expect("it returns"));
    })
}
