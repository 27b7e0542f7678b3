use wasmer_runtime_core_near as core_near;
#[test]
fn t() {
    let wasm = wat::parse_str("(module (func (export \"f\") (result i32) i32.const 1))").unwrap();
    let m = core_near::compile_with_config(
        &wasm,
        &wasmer_singlepass_backend_near::SinglePassCompiler::new(),
        core_near::backend::CompilerConfig { track_state: true, ..Default::default() },
    )
    .unwrap();
    let i = m.instantiate(&core_near::import::ImportObject::new()).unwrap();
    println!("{}", i.module.info.backend);
}
#[test]
fn table_equals_dwarf() {
    use wstate::runtime::singlepass::layouts::*;
    let exe = std::fs::read("/proc/self/exe").unwrap();
    let t = std::time::Instant::now();
    let d = from_dwarf(&exe).unwrap().unwrap();
    eprintln!("{:?}", t.elapsed());
    let t = Layouts::for_compiler("1.95.0").unwrap();
    for (a, b) in d
        .state
        .rows()
        .into_iter()
        .chain(d.module.rows())
        .chain(d.context.rows())
        .zip(t.state.rows().into_iter().chain(t.module.rows()).chain(t.context.rows()))
    {
        if a != b {
            println!("DIFF {} {:#x} {:#x}", a.0, a.1, b.1);
        }
    }
}
