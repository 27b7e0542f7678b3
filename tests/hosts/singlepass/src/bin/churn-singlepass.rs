//! A host that loads a module, runs it, unloads it, and goes on with the next, for ever: `KIND COUNT [cached]`, see
//! `tests/hosts/churn/guests.rs`. With `cached` the modules are compiled once and then loaded from their artifacts.

#[path = "../../../churn/guests.rs"]
mod guests;

use std::sync::Arc;
use wasmer_runtime_core::backend::CompilerConfig;
use wasmer_runtime_core::cache::Artifact;
use wasmer_runtime_core::import::ImportObject;
use wasmer_runtime_core::types::Value;
use wasmer_runtime_core::{DynFunc, Instance, Module, compile_with_config, load_cache_with};
use wasmer_singlepass_backend::SinglePassCompiler;

fn compile(wasm: &[u8]) -> Module {
    let config = CompilerConfig { track_state: true, ..CompilerConfig::default() };
    compile_with_config(wasm, &SinglePassCompiler::new(), config).expect("the modules compile")
}

fn main() {
    let asked = guests::asked();
    let cached = asked.how.iter().any(|how| how == "cached");
    let artifact = |wasm: &Vec<u8>| Arc::new(compile(wasm).cache().expect("cached").serialize().expect("serialized"));
    let artifacts: Vec<Arc<Vec<u8>>> = if cached { asked.modules.iter().map(artifact).collect() } else { Vec::new() };
    guests::churn(|module, within| {
        let loaded = match artifacts.get(module) {
            Some(artifact) => {
                let artifact = Artifact::deserialize(artifact).expect("an artifact");
                // SAFETY: this compiler made it.
                unsafe { load_cache_with(artifact, &SinglePassCompiler::new()).expect("loaded") }
            }
            None => compile(&asked.modules[module]),
        };
        let instance: Instance = loaded.instantiate(&ImportObject::new()).expect("an instance");
        let run: DynFunc<'_> = instance.exports.get("run").expect("it has a function run");
        let arguments = [Value::I32(asked.count), Value::I32(10 + module as i32)];
        within(&mut || drop(run.call(&arguments).expect("it returns")));
    })
}
