//! A module whose state map is too large to be decoded as a whole: its functions are looked up in the process and in a
//! core, and say what the runtime says.

mod support;

use serde_json::Value;
use support::{Host, Profile, gcore, wstate};
use wasm_encoder::{
    BlockType, CodeSection, EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection, Module,
    TypeSection, ValType,
};
use wstate::state::ExecutionStateImage;

const FUNCTIONS: u32 = 6000;

/// Functions of unequal size that call each other from all over the module; the last one of a chain calls the import.
fn module() -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([], []);
    types.ty().function([ValType::I32], [ValType::I32]);
    let mut imports = ImportSection::new();
    imports.import("env", "stop", EntityType::Function(0));
    let mut functions = FunctionSection::new();
    let mut exports = ExportSection::new();
    exports.export("run", ExportKind::Func, FUNCTIONS + 1);
    let mut code = CodeSection::new();
    for i in 0..FUNCTIONS {
        functions.function(1);
        let mut f = Function::new([(1, ValType::I64), (i % 11, ValType::I32)]);
        let mut body = f.instructions();
        body.i64_const(i64::from(i) * 1_000_003).local_set(1);
        // More points for some.
        for _ in 0..(i * i) % 23 {
            body.local_get(0).i32_const(3).i32_div_u().drop();
        }
        body.i32_const(i as i32).local_get(0).if_(BlockType::Result(ValType::I32));
        body.local_get(0).i32_const(1).i32_sub().call(1 + (i * 4099 + 17) % FUNCTIONS);
        body.else_().call(0).i32_const(7).end().i32_add().end();
        code.function(&f);
    }
    functions.function(0);
    let mut run = Function::new([]);
    run.instructions().i32_const(40).call(1).drop().end();
    code.function(&run);
    let mut module = Module::new();
    module.section(&types).section(&imports).section(&functions).section(&exports).section(&code);
    module.finish()
}

fn bits(value: &Value) -> Option<u64> {
    u64::from_str_radix(value["bits"].as_str()?.strip_prefix("0x")?, 16).ok()
}

#[test]
fn functions_of_a_large_map_are_looked_up() {
    let directory = tempfile::tempdir().unwrap();
    let wasm = directory.path().join("large.wasm");
    std::fs::write(&wasm, module()).unwrap();
    let wasm = wasm.to_str().unwrap();
    let flags = ["--wasm", wasm, "--call", "run", "--stop-at", "env.stop"];
    let host = Host::start("wasm", &flags, Profile::Stripped);
    let pid = host.pid().to_string();
    let truth = host.truth().expect("the runtime has an answer");
    let image = ExecutionStateImage::from_bytes(&truth.image).unwrap();
    assert_eq!(image.frames.len(), 42);

    let core = gcore(&host).unwrap_or_else(|e| panic!("{e:?}"));
    let (core, exe) = (core.to_str().unwrap(), host.exe.to_str().unwrap());
    for target in [&["attach", pid.as_str()][..], &["core", core, exe], &["attach", &pid, "--wasm", wasm]] {
        let out = wstate(&[target, &["--json"]].concat());
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        let frames = report["threads"][0]["frames"].as_array().unwrap();
        let frames: Vec<&Value> = frames.iter().filter(|f| f["kind"] == "wasm").collect();
        assert_eq!(frames.len(), image.frames.len(), "{target:?}");
        for (ours, theirs) in frames.iter().zip(&image.frames) {
            assert_eq!(ours["function"]["local_index"].as_u64(), Some(theirs.local_function_id as u64), "{target:?}");
            let list = |name: &str| ours[name].as_array().unwrap().iter().map(bits).collect::<Vec<_>>();
            assert_eq!((list("locals"), list("stack")), (theirs.locals.clone(), theirs.stack.clone()), "{target:?}");
        }
    }
    // The image is made from the map of all functions.
    let out = wstate(&["attach", &pid, "-t", &host.tid().to_string(), "--format", "image"]);
    assert!(out.stdout == truth.image, "{}", String::from_utf8_lossy(&out.stderr));
}
