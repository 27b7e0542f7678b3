//! Modules of many functions.

use wasm_encoder::{
    BlockType, CodeSection, EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection, Module,
    TypeSection, ValType,
};

/// Functions of unequal size that call each other from all over the module; the last one of a chain calls the import.
pub fn module(count: u32) -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([], []);
    types.ty().function([ValType::I32], [ValType::I32]);
    let mut imports = ImportSection::new();
    imports.import("env", "stop", EntityType::Function(0));
    let mut functions = FunctionSection::new();
    let mut exports = ExportSection::new();
    exports.export("run", ExportKind::Func, count + 1);
    let mut code = CodeSection::new();
    for i in 0..count {
        functions.function(1);
        let mut f = Function::new([(1, ValType::I64), (i % 11, ValType::I32)]);
        let mut body = f.instructions();
        body.i64_const(i64::from(i) * 1_000_003).local_set(1);
        // More points for some.
        for _ in 0..(u64::from(i) * u64::from(i)) % 23 {
            body.local_get(0).i32_const(3).i32_div_u().drop();
        }
        body.i32_const(i as i32).local_get(0).if_(BlockType::Result(ValType::I32));
        body.local_get(0).i32_const(1).i32_sub().call(1 + (i * 4099 + 17) % count);
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
