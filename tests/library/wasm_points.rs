//! `WasmModule` against the state maps that the real compiler makes of the same modules.

use std::collections::HashMap;
use std::ops::Range;

use wasmer_runtime_core::backend::CompilerConfig;
use wasmer_runtime_core::state::{ModuleStateMap, OffsetInfo};
use wasmer_runtime_core::{func, imports};
use wasmer_runtime_core_near as wasmer_runtime_core;
use wasmer_singlepass_backend_near::SinglePassCompiler;
use wstate::state::PointKind;
use wstate::wasm::ValType;
use wstate::wasm::{FunctionFacts, ModuleFacts, WasmModule};

/// Calls with operands below the arguments, more arguments than registers, floats, `call_indirect`.
const CALLS: &str = r#"(module
  (type $bin (func (param i32 f64) (result f64)))
  (import "env" "note" (func $note (param i32)))
  (import "env" "mix" (func $mix (param i32 i64 f32 f64 i32 i64 i32 i64) (result i64)))
  (table 4 funcref)
  (elem (i32.const 0) $scale)
  (func $scale (param i32 f64) (result f64)
    (local i64 i64 f32)
    (f64.mul (f64.convert_i32_s (local.get 0)) (local.get 1)))
  (func $fact (export "fact") (param i64) (result i64)
    (if (result i64) (i64.eqz (local.get 0))
      (then (i64.const 1))
      (else (i64.mul (local.get 0) (call $fact (i64.sub (local.get 0) (i64.const 1)))))))
  (func $busy (export "busy") (param i32) (result f64)
    (i32.const 7) (f64.const 2.5) (i64.const 9) (f32.const 1.5)
    (drop (call $mix (i32.const 1) (local.get 0) (i64.extend_i32_u) (f32.const 3) (f64.const 4)
      (i32.const 5) (i64.const 6) (i32.const 7) (i64.const 8)))
    (drop) (drop)
    (local.get 0) (f64.const 0.5) (i32.const 0) (call_indirect (type $bin))
    (f64.add)
    (call $note (i32.const 3))
    (call $scale))
)"#;

/// Code that the compiler skips: after branches, in both arms of `if`, with blocks inside.
const DEAD: &str = r#"(module
  (import "env" "note" (func $note (param i32)))
  (func (param i32) (result i32)
    (block $out (result i32)
      (i64.const 1)
      (if (local.get 0)
        (then (br $out (i32.const 4)) (call $note (i32.const 1)) (if (i32.const 1) (then (loop (unreachable))) (else (call $note (i32.const 2)))))
        (else (call $note (i32.const 3)) (i32.const 9) (return) (drop) (i32.div_u (i32.const 1) (i32.const 2)) (drop)))
      (drop)
      (call $note (i32.const 4))
      (i32.const 11)
      (block (br_table 0 0 (local.get 0)) (loop (call $note (i32.const 5))))
      (i32.const 2)
      (i32.div_s)
      (drop)
      (unreachable)
      (call $note (i32.const 6))
      (i32.const 0))
    (i32.const 3)
    (i32.rem_u))
  (func (result f32)
    (f32.const 1)
    (block (br 0) (unreachable))
    (loop (br_if 0 (i32.const 0)) (return (f32.const 2)))
    (call $note (i32.const 7))
    (unreachable)))"#;

/// Every division, operands of all types below it, and operators that trap without a point.
const DIVISIONS: &str = r#"(module
  (memory (export "m") 1 2)
  (global $g (mut i64) (i64.const 3))
  (func (param i32 i64) (result i32)
    (local f32 f64) (local i32 i32 i32)
    (f32.const 1) (f64.const 2) (i64.const 3)
    (i32.div_s (local.get 0) (i32.const 3))
    (i32.div_u (local.get 0) (i32.load offset=16 (local.get 4)))
    (i32.rem_s (memory.grow (i32.const 0)))
    (i32.rem_u (memory.size))
    (i64.div_s (local.get 1) (i64.const 5))
    (i64.div_u (i64.trunc_f64_s (local.get 3)) (global.get $g))
    (i64.rem_s (local.get 1) (i64.rem_u (local.get 1) (i64.const 9)))
    (i32.wrap_i64)
    (i32.store8 (i32.const 8))
    (drop) (drop) (drop) (drop) (drop) (drop) (drop)
    (i32.trunc_f32_u (local.get 2)))
)"#;

/// Nested loops with operands below, and results out of loops.
const LOOPS: &str = r#"(module
  (func $spin (export "spin") (param i32 i32) (result i32)
    (i32.const 5) (f64.const 1)
    (loop $outer
      (i64.const 3)
      (loop $inner (result i32)
        (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
        (br_if $inner (local.get 0))
        (call $spin (local.get 0) (i32.const 1)))
      (drop) (drop)
      (br_if $outer (local.get 1)))
    (drop))
  (func (local i32) (loop (loop (loop (br_if 2 (local.get 0)))))))"#;

struct Compiled {
    map: ModuleStateMap,
    imports: u32,
}

fn compile(wasm: &[u8], preemption: bool, tracked: bool) -> Compiled {
    let config = CompilerConfig { track_state: tracked, full_preemption: preemption, ..Default::default() };
    let module = wasmer_runtime_core::compile_with_config(wasm, &SinglePassCompiler::new(), config).unwrap();
    let host = imports! {
        "env" => {
            "note" => func!(|_: i32| {}),
            "mix" => func!(|_: i32, _: i64, _: f32, _: f64, _: i32, _: i64, _: i32, v: i64| -> i64 { v }),
        },
    };
    let imports = module.info().imported_functions.len() as u32;
    let instance = module.instantiate(&host).unwrap();
    let map = instance.module.runnable_module.get_module_state_map().unwrap();
    Compiled { map, imports }
}

impl Compiled {
    fn facts(&self) -> ModuleFacts {
        let mut functions = Vec::new();
        for (local, map) in self.map.local_functions.values().enumerate() {
            assert_eq!(map.local_function_id, local);
            let mut points = Vec::new();
            for (&index, at) in &map.wasm_offset_to_target_offset {
                use wasmer_runtime_core::state::SuspendOffset as S;
                let kind = match at {
                    S::Loop(_) => PointKind::Loop,
                    S::Call(_) => PointKind::Call,
                    S::Trappable(_) => PointKind::Trappable,
                };
                points.push((index as u64, kind));
            }
            functions.push(FunctionFacts {
                locals: Some(map.locals.len()),
                points,
                operands: operands(map),
                params: None,
            });
        }
        ModuleFacts { imported_functions: Some(self.imports), functions, ..ModuleFacts::default() }
    }
}

/// The operands at all points: of each the bits of those that are constants.
fn operands(map: &wasmer_runtime_core::state::FunctionStateMap) -> HashMap<(u64, PointKind), Vec<Option<u64>>> {
    use wasmer_runtime_core::state::WasmAbstractValue as V;
    let mut out = HashMap::new();
    let tables = [
        (&map.call_offsets, PointKind::Call),
        (&map.trappable_offsets, PointKind::Trappable),
        (&map.loop_offsets, PointKind::Loop),
    ];
    for (infos, kind) in tables {
        for info in infos.values().filter(|info| info.diff_id != usize::MAX) {
            let state = map.diffs[info.diff_id].build_state(map);
            let shared = &state.wasm_stack[..state.wasm_stack.len() - state.wasm_stack_private_depth];
            let constant = |v: &V| if let V::Const(bits) = v { Some(*bits) } else { None };
            out.insert((state.wasm_inst_offset as u64, kind), shared.iter().map(constant).collect());
        }
    }
    out
}

/// All points: operator index, kind, operands that are not private.
fn points(map: &wasmer_runtime_core::state::FunctionStateMap) -> Vec<(u64, PointKind, usize)> {
    let mut out = Vec::new();
    let mut add = |infos: Vec<&OffsetInfo>, kind| {
        for info in infos {
            let state = map.diffs[info.diff_id].build_state(map);
            let height = state.wasm_stack.len() - state.wasm_stack_private_depth;
            out.push((state.wasm_inst_offset as u64, kind, height));
        }
    };
    add(map.call_offsets.values().collect(), PointKind::Call);
    add(map.trappable_offsets.values().collect(), PointKind::Trappable);
    add(map.loop_offsets.values().collect(), PointKind::Loop);
    out
}

fn module(text: &str) -> (WasmModule, Vec<u8>) {
    let bytes = wat::parse_str(text).unwrap();
    wasmparser::Validator::new().validate_all(&bytes).unwrap();
    (WasmModule::parse("test.wasm".to_string(), bytes.clone()).unwrap(), bytes)
}

/// Compares every point and returns how many there were.
fn compare(bytes: &[u8]) -> usize {
    let module = WasmModule::parse("test.wasm".to_string(), bytes.to_vec()).unwrap();
    let compiled = compile(bytes, true, true);
    let checked = module.fits(&compiled.facts()).unwrap();
    assert!(checked.iter().all(|c| !c.contains("not compared")), "{checked:?}");
    let all: usize = compiled.map.local_functions.values().map(|map| points(map).len()).sum();
    if all > 2 * compiled.map.local_functions.len() {
        assert!(checked.iter().any(|c| c.starts_with("constants and numbers of operands")), "{checked:?}");
    }
    module.fits(&compile(bytes, false, false).facts()).unwrap();
    let mut seen = 0;
    for map in compiled.map.local_functions.values() {
        let local = map.local_function_id as u32;
        for (index, kind, height) in points(map) {
            if index == u64::MAX {
                assert_eq!((kind, height), (PointKind::Loop, 0));
                continue;
            }
            let types = module.stack_types_at(local, index, kind);
            let types = types.unwrap_or_else(|| panic!("function {local} operator {index} {kind:?} has no types"));
            assert_eq!(types.len(), height, "function {local} operator {index} {kind:?}");
            seen += 1;
        }
    }
    seen
}

#[test]
fn stack_heights_are_those_of_the_state_map() {
    for (text, at_least) in [(CALLS, 5), (DEAD, 8), (DIVISIONS, 8), (LOOPS, 6)] {
        let seen = compare(&module(text).1);
        assert!(seen >= at_least, "{seen} points in {text}");
    }
}

#[test]
fn stack_types_at_calls_and_divisions() {
    use ValType::{F32, F64, I32, I64};
    let (module, _) = module(CALLS);
    let busy = 2;
    let indexes: Vec<u64> =
        (0..40).filter(|&i| module.operator(busy, i).is_some_and(|op| op.text.starts_with("call"))).collect();
    let at = |nth: usize| module.stack_types_at(busy, indexes[nth], PointKind::Call).unwrap();
    assert_eq!(
        indexes.iter().map(|&i| module.operator(busy, i).unwrap().text).collect::<Vec<_>>(),
        ["call 1", "call_indirect (type 0)", "call 0", "call 2"]
    );
    assert_eq!(at(0), [I32, F64, I64, F32]);
    assert_eq!(at(1), [I32, F64]);
    assert_eq!(at(2), [I32, F64]);
    assert_eq!(at(3), []);
}

#[test]
fn every_module_refuses_every_other() {
    let texts = [CALLS, DEAD, DIVISIONS, LOOPS];
    for (i, own) in texts.iter().enumerate() {
        for (j, other) in texts.iter().enumerate() {
            let facts = compile(&module(other).1, true, true).facts();
            assert_eq!(module(own).0.fits(&facts).is_ok(), i == j, "{i} {j}");
        }
    }
}

/// In one line: the parser's own message for a wrong magic spreads over a dozen.
#[test]
fn what_is_no_wasm_binary_is_called_so() {
    for bytes in [&b""[..], b"(module)", b"root:x:0:0\n"] {
        let message = WasmModule::parse("a.wat".to_string(), bytes.to_vec()).err().unwrap().to_string();
        assert!(message.contains("it is not a Wasm binary"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

/// Small edits of one module: each must be noticed, with the reason that names it.
#[test]
fn edits_are_refused_with_the_reason() {
    let edits = [
        ("(local i64 i64 f32)", "(local i64 f32)", "function 0 has 5 locals in the process, 4 in test.wasm"),
        (
            "(i64.mul (local.get 0) (call $fact",
            "(i64.mul (i64.const 1) (i64.const 2)) (drop) (i64.mul (local.get 0) (call $fact",
            "the process has a call there",
        ),
        (
            "(call $note (i32.const 3))",
            "",
            "operator 22 of function 2 is `call 2` in test.wasm, the process does not have a call there",
        ),
        ("(f64.add)\n", "(f64.add) (i32.div_u (i32.const 1) (i32.const 0)) (drop)", "the process has a call there"),
        (
            "(import \"env\" \"note\" (func $note (param i32)))",
            "(func $note (param i32))",
            "imports 2 functions, test.wasm imports 1",
        ),
        (
            "(i32.const 7) (f64.const 2.5) (i64.const 9)",
            "(i32.const 7) (f64.const 2.5) (f64.const 9)",
            "operand 2 is the constant 0x9 in the process, the constant 0x4022000000000000 in test.wasm",
        ),
        (
            "(i32.const 7) (f64.const 2.5) (i64.const 9)",
            "(local.get 0) (f64.const 2.5) (i64.const 9)",
            "operand 0 is the constant 0x7 in the process, no constant in test.wasm",
        ),
    ];
    let facts = compile(&module(CALLS).1, true, true).facts();
    for (from, to, reason) in edits {
        let mut text = CALLS.replacen(from, to, 1);
        assert_ne!(text, CALLS);
        if from.contains("import") {
            // Imports come before definitions.
            text = text.replacen(to, "", 1).replacen("(table 4", &format!("{to} (table 4"), 1);
        }
        let refused = module(&text).0.fits(&facts).unwrap_err();
        assert!(refused.contains(reason), "{refused:?} instead of {reason:?}");
    }
}

/// A reader of random bytes writes a function body: operators that are valid where they stand.
struct Writer<'a> {
    choices: &'a mut dyn FnMut(u32) -> u32,
    out: String,
    stack: Vec<ValType>,
}

impl Writer<'_> {
    fn push(&mut self, text: &str, ty: ValType) {
        self.out.push_str(text);
        self.out.push('\n');
        self.stack.push(ty);
    }

    fn ends_with(&self, types: &[ValType]) -> bool {
        self.stack.ends_with(types)
    }

    fn pop(&mut self, n: usize) -> Range<usize> {
        let end = self.stack.len();
        self.stack.truncate(end - n);
        end - n..end
    }

    fn block(&mut self, depth: u32, budget: &mut u32) {
        use ValType::{F32, F64, I32, I64};
        let floor = self.stack.len();
        while *budget > 0 {
            *budget -= 1;
            // Only what this block pushed may be popped in it.
            let own = self.stack.len() - floor;
            match (self.choices)(18) {
                0 | 1 => self.push("i32.const 5", I32),
                2 | 3 => self.push("local.get 1", I64),
                4 => self.push("f32.const 1.5", F32),
                5 => self.push("local.get 3", F64),
                6 if own >= 2 && self.ends_with(&[I32, I32]) => {
                    self.pop(2);
                    let op = ["i32.div_u", "i32.rem_s", "i32.add"][(self.choices)(3) as usize];
                    self.push(op, I32);
                }
                7 if own >= 2 && self.ends_with(&[I64, I64]) => {
                    self.pop(2);
                    let op = ["i64.div_s", "i64.rem_u", "i64.mul"][(self.choices)(3) as usize];
                    self.push(op, I64);
                }
                8 if own >= 1 => {
                    self.pop(1);
                    self.out.push_str("drop\n");
                }
                9 => self.push("(call $f (i64.const 1) (f64.const 2))", I64),
                10 if own >= 1 && self.ends_with(&[I32]) => {
                    self.pop(1);
                    self.out.push_str("call $note\n");
                }
                11 if own >= 1 && self.ends_with(&[I32]) => {
                    self.pop(1);
                    self.push("call_indirect (result f32)", F32);
                }
                12 | 13 if depth < 6 => {
                    let head = ["block", "loop"][(self.choices)(2) as usize];
                    self.out.push_str(head);
                    self.out.push('\n');
                    self.nested(depth, budget);
                    self.out.push_str("end\n");
                }
                14 if depth < 6 && own >= 1 && self.ends_with(&[I32]) => {
                    self.pop(1);
                    self.out.push_str("if (result i64)\n");
                    self.nested(depth, budget);
                    self.out.push_str("i64.const 1\nelse\n");
                    self.nested(depth, budget);
                    self.out.push_str("i64.const 2\nend\n");
                    self.stack.push(I64);
                }
                15 if depth > 0 && (self.choices)(3) == 0 => {
                    let jump = ["br 0", "unreachable", "i64.const 0 return"][(self.choices)(3) as usize];
                    // Dead code: the rest of the block, with operators that need nothing.
                    if jump == "br 0" && self.out.contains("if (result") {
                        continue;
                    }
                    self.out.push_str(jump);
                    self.out.push_str("\nloop\ncall $nothing\ni32.const 1\ni32.const 0\ni32.div_s\ndrop\nend\n");
                    // `i64.const 1` before `else` and the `end` of a block stay valid: the stack is polymorphic.
                    self.stack.truncate(floor);
                    return;
                }
                16 => self.push("memory.size", I32),
                17 if own >= 1 && self.ends_with(&[F64]) => {
                    self.pop(1);
                    self.push("i64.trunc_f64_s", I64);
                }
                _ => {}
            }
        }
        while self.stack.len() > floor {
            self.pop(1);
            self.out.push_str("drop\n");
        }
    }

    fn nested(&mut self, depth: u32, budget: &mut u32) {
        self.block(depth + 1, budget);
    }
}

#[test]
fn generated_bodies_agree() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut choose = move |n: u32| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 33) as u32 % n
    };
    let mut seen = 0;
    for _ in 0..60 {
        let mut writer = Writer { choices: &mut choose, out: String::new(), stack: Vec::new() };
        writer.block(0, &mut 120);
        let text = format!(
            r#"(module (import "env" "note" (func $note (param i32))) (memory 1) (table 2 funcref)
               (func $nothing)
               (func $f (param i64 f64) (result i64) (i64.div_u (local.get 0) (i64.const 2)))
               (func (param i32 i64) (result i64) (local f32 f64 i64)
               {}
               i64.const 3))"#,
            writer.out
        );
        seen += compare(&module(&text).1);
    }
    assert!(seen > 500, "{seen} points");
}
