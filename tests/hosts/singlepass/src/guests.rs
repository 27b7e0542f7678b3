//! The guest programs, as WebAssembly text. Every value is chosen to be recognised in a dump.

/// `run` -> `fact(5)` -> ... -> `fact(0)` -> `leaf(9, 0x1111111111111111, 3.25)`.
///
/// At the stop, `leaf` has the locals 9, 0x1111111111111111, 3.25, 333, 444 and the operands 340, 4.25, 99 below the
/// stop's own; every `fact(n)` has the locals n and n * 0x0101010101010101 and the operands n + 1000.
/// `stop` is the body of the stop, with nothing on the stack before and after; `fields` are further module fields,
/// imports first.
fn nest(imports: &str, fields: &str, stop: &str) -> String {
    format!(
        r#"(module $nest
  (import "env" "stop" (func $stop (param i32)))
  {imports}
  {fields}
  (func $leaf (export "leaf") (param $n i32) (param $s i64) (param $d f64) (result i32) (local $x i32) (local $y i32)
    (local.set $x (i32.const 333))
    (local.set $y (i32.const 444))
    (i32.add (local.get $x) (i32.const 7))
    (f64.add (local.get $d) (f64.const 1))
    (i64.const 99)
    {stop}
    (drop)
    (drop)
    (i32.add (local.get $y)))
  (func $fact (export "fact") (param $n i32) (param $m i64) (result i32)
    (i32.add (local.get $n) (i32.const 1000))
    (if (result i32) (i32.eqz (local.get $n))
      (then (call $leaf (i32.const 9) (i64.const 0x1111111111111111) (f64.const 3.25)))
      (else
        (call $fact
          (i32.sub (local.get $n) (i32.const 1))
          (i64.sub (local.get $m) (i64.const 0x0101010101010101)))))
    (i32.add))
  (func $run (export "run") (result i32)
    (call $fact (i32.const 5) (i64.const 0x0505050505050505))))"#
    )
}

/// The stop is the import `env.stop(42)`.
pub fn sleep() -> String {
    nest("", "", "(call $stop (i32.const 42))")
}

/// `ud2` of an `unreachable`.
pub fn trap_unreachable() -> String {
    nest("", "", "(block (br_if 0 (i32.eqz (local.get $x))) (unreachable))")
}

/// SIGFPE of `333 / 0`.
pub fn trap_div() -> String {
    nest("", "", "(drop (i32.div_s (local.get $x) (i32.sub (local.get $y) (i32.const 444))))")
}

/// A load far outside of a one-page memory with a maximum (guard pages) or without one (explicit check).
pub fn trap_memory(guarded: bool) -> String {
    let memory = if guarded { "(memory 1 2)" } else { "(memory 1)" };
    nest("", memory, "(drop (i32.load (i32.add (local.get $x) (i32.const 0x00ff0000))))")
}

/// `call_indirect` that is out of bounds (7), null (1) or has the wrong signature (0).
pub fn trap_table(entry: u32) -> String {
    nest(
        "",
        "(table 4 funcref) (elem (i32.const 0) $run) (type $other (func (param i64)))",
        &format!("(call_indirect (type $other) (i64.const 5) (i32.const {entry}))"),
    )
}

/// The stop is reached through a `call_indirect` of table entry 2.
pub fn call_indirect() -> String {
    nest(
        "",
        r#"(table 4 funcref) (elem (i32.const 2) $via) (type $t (func (param i32 i64)))
  (func $via (type $t) (param $a i32) (param $b i64)
    (i64.const 0x2222)
    (call $stop (i32.const 43))
    (drop))"#,
        "(call_indirect (type $t) (i32.const 777) (i64.const 888) (i32.const 2))",
    )
}

/// An import with seven arguments.
#[derive(Clone, Copy)]
pub enum Args {
    /// Constants and locals: no argument is spilled to memory by the compiler's own allocation.
    Plain,
    /// Five operands alive and seven computed arguments: more than there are registers. Here the runtime's own
    /// `read_stack` panics (state.rs:1369).
    Spilled,
    /// Floats among the integers: the import trampoline moves them to XMM registers.
    Float,
}

/// The stop is an import with seven arguments, `env.args`.
pub fn args7(kind: Args) -> String {
    let (import, call) = match kind {
        Args::Float => (
            r#"(import "env" "args" (func $args (param f32 f64 i32 f64 f32 i64 f64)))"#,
            "(call $args (f32.const 1.5) (f64.const 2.5) (local.get $n) (local.get $d) (f32.const 5.5) (i64.const 6)
      (f64.const 7.5))",
        ),
        Args::Plain => (
            r#"(import "env" "args" (func $args (param i32 i64 i32 i64 i32 i64 i32)))"#,
            "(call $args (local.get $n) (local.get $s) (i32.const 3) (i64.const 4) (i32.add (local.get $x) (i32.const 1))
      (i64.add (local.get $s) (i64.const 5)) (i32.add (local.get $y) (i32.const 1)))",
        ),
        Args::Spilled => (
            r#"(import "env" "args" (func $args (param i32 i64 i32 i64 i32 i64 i32)))"#,
            "(i32.add (local.get $x) (i32.const 8))
    (i64.add (local.get $s) (i64.const 9))
    (call $args (local.get $n) (local.get $s) (i32.sub (local.get $x) (i32.const 3)) (i64.sub (local.get $s) (i64.const 4))
      (i32.add (local.get $x) (i32.const 1)) (i64.add (local.get $s) (i64.const 5)) (i32.add (local.get $y) (i32.const 1)))
    (drop) (drop)",
        ),
    };
    nest(import, "", call)
}

/// f32, f64 and NaN payloads in nine locals, and twelve operands: more than there are operand registers.
pub fn floats() -> String {
    let operands: String = (0..6)
        .map(|i| {
            format!(
                "(f64.add (local.get $b) (f64.const {i})) (i64.add (i64.const {}) (i64.extend_i32_u (local.get $i)))\n",
                9000 + i
            )
        })
        .collect();
    format!(
        r#"(module $floats
  (import "env" "stop" (func $stop (param i32)))
  (func $many (export "many") (param $a f32) (param $b f64) (param $i i32)
      (local $na f32) (local $nb f64) (local $neg f64) (local $inf f32) (local $zero f64) (local $l i64)
    (local.set $na (f32.const nan:0x200001))
    (local.set $nb (f64.const nan:0x4000000000123))
    (local.set $neg (f64.const -0.0))
    (local.set $inf (f32.const -inf))
    (local.set $l (i64.const -2))
    {operands}
    (call $stop (i32.const 44))
    {drops})
  (func $run (export "run")
    (f32.const 0.5)
    (f64.const 1e300)
    (call $many (f32.const 1.5) (f64.const 3.25) (i32.const -1))
    (drop) (drop)))"#,
        drops = "(drop) ".repeat(12)
    )
}

/// `high(6)` -> `low(5)` -> `high(4)` -> ... -> `high(0)` -> `env.stop`; `high` calls `low` through the table, so that a
/// second version of `high` calls the first version of `low`.
///
/// With n the depth, the locals of `high` are n, n * 0x0101010101010101, 3 * n + 7, n + 0.5, local 1 * 5, and its operand is
/// n + 2000; those of `low` are n, n * 0x0101010101010101, 5 * n + 11, n + 0.25, local 1 * 9, and its operand is n + 3000.
pub fn alternating() -> String {
    let body = |factor: u32, add: u32, part: f64, wide: u32, operand: u32, call: &str| {
        format!(
            r#"(local $x i32) (local $f f64) (local $w i64)
    (local.set $x (i32.add (i32.mul (local.get $n) (i32.const {factor})) (i32.const {add})))
    (local.set $f (f64.add (f64.convert_i32_u (local.get $n)) (f64.const {part})))
    (local.set $w (i64.mul (local.get $m) (i64.const {wide})))
    (i32.add (local.get $n) (i32.const {operand}))
    {call}
    (i32.add)"#
        )
    };
    let less = "(i32.sub (local.get $n) (i32.const 1)) (i64.sub (local.get $m) (i64.const 0x0101010101010101))";
    let high = format!(
        "(if (result i32) (i32.eqz (local.get $n))
      (then (call $stop (i32.const 49)) (i32.const 0))
      (else (call_indirect (type $t) {less} (i32.const 0))))"
    );
    format!(
        r#"(module $alternating
  (import "env" "stop" (func $stop (param i32)))
  (type $t (func (param i32 i64) (result i32)))
  (table 1 funcref) (elem (i32.const 0) $low)
  (func $high (export "high") (param $n i32) (param $m i64) (result i32) {high})
  (func $low (export "low") (param $n i32) (param $m i64) (result i32) {low})
  (func $run (export "run") (result i32)
    (call $high (i32.const 6) (i64.const 0x0606060606060606))))"#,
        high = body(3, 7, 0.5, 5, 2000, &high),
        low = body(5, 11, 0.25, 9, 3000, &format!("(call $high {less})")),
    )
}

/// Globals of all four types, one of them imported, changed before the stop.
pub fn globals() -> String {
    r#"(module $globals
  (import "env" "stop" (func $stop (param i32)))
  (import "env" "answer" (global $answer i32))
  (global $a (mut i32) (i32.const 1))
  (global $b (mut i64) (i64.const 2))
  (global $c (mut f32) (f32.const 3))
  (global $d (mut f64) (f64.const 4))
  (global $e i32 (i32.const -5))
  (memory (export "memory") 1 2)
  (data (i32.const 16) "recognise me")
  (func $run (export "run") (local $x i32)
    (global.set $a (i32.const -100))
    (global.set $b (i64.const 0x1234567890abcdef))
    (global.set $c (f32.const 33.5))
    (global.set $d (f64.const -44.25))
    (local.set $x (global.get $answer))
    (call $stop (i32.const 45))))"#
        .into()
}

/// A recursion of `depth` frames, each with its own depth as local 0, then the stop.
pub fn deep(depth: u32) -> String {
    format!(
        r#"(module $deep
  (import "env" "stop" (func $stop (param i32)))
  (func $down (export "down") (param $n i32) (result i32)
    (if (result i32) (i32.eqz (local.get $n))
      (then (call $stop (i32.const 46)) (i32.const 0))
      (else (i32.add (local.get $n) (call $down (i32.sub (local.get $n) (i32.const 1)))))))
  (func $run (export "run") (result i32) (call $down (i32.const {depth}))))"#
    )
}

/// A recursion without end; local 0 counts up from 0, local 1 is 3 times that.
pub fn stack_overflow() -> String {
    r#"(module $overflow
  (func $down (export "down") (param $n i32) (param $t i64) (result i32)
    (i32.add (local.get $n)
      (call $down (i32.add (local.get $n) (i32.const 1)) (i64.add (local.get $t) (i64.const 3)))))
  (func $run (export "run") (result i32) (call $down (i32.const 0) (i64.const 0))))"#
        .into()
}

/// A busy loop with known relations between its locals; see `--help`.
pub fn spin(depth: u32) -> String {
    format!(
        r#"(module $spinning
  (import "env" "ready" (func $ready))
  (func $leaf (export "leaf") (param $p i64) (param $q f64) (result i64) (local $r i64)
    (local.set $r (i64.add (i64.mul (local.get $p) (i64.const 5)) (i64.const 11)))
    (i64.add (local.get $r) (i64.const 1)))
  (func $spin (export "spin") (param $c0 i32) (param $c1 i64) (param $c2 f64)
      (local $i i32) (local $k i32) (local $m i64) (local $c6 f32)
    (local.set $c6 (f32.const 1.5))
    (local.set $k (i32.const 7))
    (local.set $m (i64.const 12))
    (call $ready)
    (loop $again
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (local.set $k (i32.add (i32.mul (local.get $i) (i32.const 3)) (i32.const 7)))
      (local.set $m
        (i64.add
          (i64.mul (i64.extend_i32_u (local.get $i)) (i64.const 7))
          (call $leaf (i64.extend_i32_u (local.get $i)) (f64.const 2.5))))
      (br $again)))
  (func $down (export "down") (param $n i32) (param $a i64) (result i32)
    (i32.add (local.get $n) (i32.const 500))
    (if (i32.eqz (local.get $n))
      (then (call $spin (i32.const 9) (i64.const 0x1111111111111111) (f64.const 3.25)))
      (else
        (drop (call $down (i32.sub (local.get $n) (i32.const 1)) (i64.sub (local.get $a) (i64.const 7))))))
    (i32.add (local.get $n)))
  (func $run (export "run") (result i32)
    (call $down (i32.const {depth}) (i64.const {a}))))"#,
        a = u64::from(depth) * 7 + 1
    )
}

/// A busy loop to be interrupted: counts local 3 up, keeps local 4 = 3 * local 3 + 7, stores the count at address 0.
pub fn interrupt() -> String {
    r#"(module $interrupted
  (import "env" "ready" (func $ready))
  (memory 1 1)
  (func $busy (export "busy") (param $c0 i32) (param $c1 i64) (param $c2 f64) (local $i i32) (local $k i32)
    (i64.const 0x7777)
    (i32.add (local.get $c0) (i32.const 1))
    (call $ready)
    (loop $again
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (local.set $k (i32.add (i32.mul (local.get $i) (i32.const 3)) (i32.const 7)))
      (i32.store (i32.const 0) (local.get $i))
      (br $again))
    (drop)
    (drop))
  (func $run (export "run")
    (call $busy (i32.const 9) (i64.const 0x1111111111111111) (f64.const 3.25))))"#
        .into()
}

/// Host -> `run` -> `env.nested` -> host -> `run` -> `env.stop`.
pub fn nested_outer() -> String {
    r#"(module $outer
  (import "env" "nested" (func $nested (param i32)))
  (func $run (export "run") (local $y i64)
    (local.set $y (i64.const 0x6666666666666666))
    (i32.const 606)
    (call $nested (i32.const 47))
    (drop)))"#
        .into()
}

/// `run` calls `other.middle` of another instance.
pub fn modules_outer() -> String {
    r#"(module $first
  (import "other" "middle" (func $middle (param i32 i64) (result i32)))
  (func $run (export "run") (result i32) (local $l i64)
    (local.set $l (i64.const 0xaaaa))
    (i32.const 11)
    (call $middle (i32.const 12) (i64.const 13))
    (i32.add)))"#
        .into()
}

/// `middle` calls `third.inner` of another instance.
pub fn modules_middle() -> String {
    r#"(module $second
  (import "third" "inner" (func $inner (param i32) (result i32)))
  (func $unused (param i32))
  (func $middle (export "middle") (param $a i32) (param $b i64) (result i32) (local $l i64)
    (local.set $l (i64.const 0xbbbb))
    (i32.const 21)
    (call $inner (i32.const 22))
    (i32.add)))"#
        .into()
}

/// `inner` reaches the stop.
pub fn modules_inner() -> String {
    r#"(module $third
  (import "env" "stop" (func $stop (param i32)))
  (func $inner (export "inner") (param $a i32) (result i32) (local $l i64)
    (local.set $l (i64.const 0xcccc))
    (i32.const 31)
    (call $stop (i32.const 48))))"#
        .into()
}

/// Stops inside of the runtime's own `memory.grow`.
pub fn grow() -> String {
    nest("", "(memory 1 4)", "(drop (memory.grow (i32.const 1)))")
}
