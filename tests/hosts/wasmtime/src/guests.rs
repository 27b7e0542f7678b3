//! The guest programs, as WebAssembly text. Every value is chosen to be recognised in a dump.

/// `run` -> function without a name -> `fact(5)` -> ... -> `fact(0)` -> `leaf(9, 0x1111111111111111, 3.25)`.
///
/// `stop` is the body of the stop, with nothing on the stack before and after; `fields` are further module fields, of which
/// none may be an import or a function.
fn nest(fields: &str, stop: &str) -> String {
    format!(
        r#"(module $nest
  (import "env" "stop" (func $stop (param i32)))
  {fields}
  (func $leaf (export "leaf") (param $n i32) (param $s i64) (param $d f64) (result i32)
      (local $x i32) (local $y i32) (local $f f32) (local $v v128)
    (local.set $x (i32.const 333))
    (local.set $y (i32.const 444))
    (local.set $f (f32.const 1.5))
    (local.set $v (v128.const i64x2 0x0123456789abcdef 0x7edcba9876543210))
    (i32.add (local.get $x) (i32.const 7))
    (f64.add (local.get $d) (f64.const 1))
    (v128.not (local.get $v))
    (i64.const 99)
    {stop}
    (drop)
    (drop)
    (drop)
    (i32.add (local.get $y))
    (i32.add (i32.trunc_sat_f32_s (local.get $f)))
    (i32.add (i32x4.extract_lane 0 (local.get $v))))
  (func $fact (export "fact") (param $n i32) (param $m i64) (result i32)
    (i32.add (local.get $n) (i32.const 1000))
    (if (result i32) (i32.eqz (local.get $n))
      (then (call $leaf (i32.const 9) (i64.const 0x1111111111111111) (f64.const 3.25)))
      (else
        (call $fact
          (i32.sub (local.get $n) (i32.const 1))
          (i64.sub (local.get $m) (i64.const 0x0101010101010101)))))
    (i32.add))
  (func (param i32) (result i32) (local i64)
    (local.set 1 (i64.const 0x0505050505050505))
    (i32.const 77)
    (call $fact (local.get 0) (local.get 1))
    (i32.add))
  (func $run (export "run") (result i32)
    (call 3 (i32.const 5))))"#
    )
}

/// The stop is the import `env.stop(42)`.
pub fn sleep() -> String {
    nest("", "(call $stop (i32.const 42))")
}

pub fn trap_unreachable() -> String {
    nest("", "(block (br_if 0 (i32.eqz (local.get $x))) (unreachable))")
}

/// `333 / 0`, with a divisor that the compiler cannot know.
pub fn trap_div() -> String {
    nest("", "(drop (i32.div_s (local.get $x) (i32.sub (local.get $n) (i32.const 9))))")
}

/// A load far outside of a one-page memory.
pub fn trap_memory() -> String {
    nest(
        r#"(memory (export "memory") 1 2) (data (i32.const 16) "recognise me")"#,
        "(drop (i32.load (i32.add (local.get $n) (i32.const 0x00ff0000))))",
    )
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
  (memory (export "memory") 1 1)
  (global $count (export "count") (mut i32) (i32.const 0))
  (func $leaf (export "leaf") (param $p i64) (param $q f64) (result i64) (local $r i64)
    (local.set $r (i64.add (i64.mul (local.get $p) (i64.const 5)) (i64.const 11)))
    (i64.add (local.get $r) (i64.trunc_sat_f64_s (local.get $q))))
  (func $spin (export "spin") (param $c0 i32) (param $c1 i64) (param $c2 f64)
      (local $i i32) (local $k i32) (local $m i64) (local $c6 f32)
    (local.set $c6 (f32.const 1.5))
    (local.set $k (i32.const 7))
    (local.set $m (i64.const 13))
    (call $ready)
    (loop $again
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (local.set $k (i32.add (i32.mul (local.get $i) (i32.const 3)) (i32.const 7)))
      (local.set $m
        (i64.add
          (i64.mul (i64.extend_i32_u (local.get $i)) (i64.const 7))
          (call $leaf (i64.extend_i32_u (local.get $i)) (f64.const 2.5))))
      (i32.store (i32.const 0) (local.get $k))
      (i64.store (i32.const 8) (local.get $m))
      (global.set $count (local.get $i))
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

/// Host -> `run` -> `env.nested` -> host -> `run` -> `env.stop`.
pub fn nested_outer() -> String {
    r#"(module $outer
  (import "env" "nested" (func $nested (param i32)))
  (memory (export "memory") 1)
  (func $middle (param $z i64)
    (i32.const 606)
    (call $nested (i32.const 47))
    (drop))
  (func $run (export "run") (local $y i64)
    (local.set $y (i64.const 0x6666666666666666))
    (call $middle (local.get $y))))"#
        .into()
}

/// `run` calls `other.middle` of another instance.
pub fn modules_outer() -> String {
    r#"(module $first
  (import "other" "middle" (func $middle (param i32 i64) (result i32)))
  (memory (export "memory") 1 1)
  (func $run (export "run") (result i32) (local $l i64)
    (local.set $l (i64.const 0xaaaa))
    (i32.const 11)
    (call $middle (i32.const 12) (i64.const 13))
    (i32.add)))"#
        .into()
}

/// `middle` calls `third.inner` of another instance. Two instances of this module are in the chain; each counts its calls.
pub fn modules_middle() -> String {
    r#"(module $second
  (import "other" "middle" (func $next (param i32 i64) (result i32)))
  (import "env" "start" (global $start i32))
  (global $calls (export "calls") (mut i32) (i32.const 0))
  (memory (export "memory") 1 2)
  (func $unused (param i32))
  (func $middle (export "middle") (param $a i32) (param $b i64) (result i32) (local $l i64)
    (local.set $l (i64.const 0xbbbb))
    (global.set $calls (i32.add (global.get $start) (i32.const 1)))
    (i32.store (i32.const 0) (global.get $calls))
    (i32.const 21)
    (call $next (i32.const 22) (local.get $b))
    (i32.add)))"#
        .into()
}

/// `middle` of the last instance reaches the stop.
pub fn modules_inner() -> String {
    r#"(module $third
  (import "env" "stop" (func $stop (param i32)))
  (func (export "middle") (param $a i32) (param $b i64) (result i32) (local $l i64)
    (local.set $l (i64.const 0xcccc))
    (i32.const 31)
    (call $stop (i32.const 48))))"#
        .into()
}

/// Never called.
pub fn idle() -> String {
    r#"(module $idle
  (memory (export "memory") 1 1)
  (data (i32.const 0) "idle")
  (global (export "g") (mut i64) (i64.const 0x1d1e))
  (func $run (export "run")))"#
        .into()
}

/// Memories, globals and tables of all kinds, some imported, some exported, some neither.
pub fn memories() -> String {
    r#"(module $memories
  (import "env" "stop" (func $stop (param i32)))
  (import "host" "memory" (memory $m0 1 4))
  (import "host" "g0" (global $g0 i32))
  (import "host" "g1" (global $g1 (mut i64)))
  (import "host" "g2" (global $g2 v128))
  (import "host" "g3" (global $g3 externref))
  (import "host" "table" (table $t0 3 10 funcref))
  (memory $m1 (export "m1") 2 3)
  (memory $m2 (export "m2") i64 1 2)
  (memory $m3 (export "m3") 0 0)
  (memory $m4 1 1)
  (export "m0" (memory $m0))
  (data (memory $m1) (i32.const 16) "second memory")
  (data (memory $m2) (i64.const 8) "sixty-four")
  (data (memory $m4) (i32.const 0) "not exported")
  (global $g4 (export "g4") (mut i32) (i32.const 1))
  (global $g5 (export "g5") (mut i64) (i64.const 2))
  (global $g6 (export "g6") (mut f32) (f32.const 3))
  (global $g7 (export "g7") (mut f64) (f64.const 4))
  (global $g8 (export "g8") (mut v128) (v128.const i64x2 0 0))
  (global $g9 (export "g9") (mut f32) (f32.const 0))
  (global $g10 (export "g10") (mut f64) (f64.const 0))
  (global $g11 (export "g11") i32 (i32.const -5))
  (global $g12 (export "g12") funcref (ref.null func))
  (global $g13 (export "g13") (mut funcref) (ref.func $run))
  (global $g14 (export "g14") (mut externref) (ref.null extern))
  (global $g15 (export "g15") (mut externref) (ref.null extern))
  (global $g16 (mut i64) (i64.const 0x0d0e0a0d))
  (export "g0" (global $g0))
  (export "g1" (global $g1))
  (export "g2" (global $g2))
  (export "g3" (global $g3))
  (table $t1 (export "t1") 4 funcref)
  (table $t2 (export "t2") 2 5 externref)
  (table $t3 7 7 funcref)
  (export "t0" (table $t0))
  (elem (table $t1) (i32.const 2) func $run)
  (func $show (param $e externref) (param $n externref) (param $f funcref) (param $z funcref) (param $v v128)
      (local $nan f32) (local $nan64 f64) (local $neg f64)
    (local.set $nan (f32.const nan:0x200001))
    (local.set $nan64 (f64.const nan:0x4000000000123))
    (local.set $neg (f64.const -0.0))
    (local.get $e)
    (local.get $f)
    (v128.not (local.get $v))
    (f32.neg (local.get $nan))
    (f64.neg (local.get $neg))
    (call $stop (i32.const 45))
    (drop) (drop) (drop) (drop) (drop))
  (func $run (export "run") (local $grown i32)
    (global.set $g1 (i64.const -1234567890123456789))
    (global.set $g4 (i32.const -100))
    (global.set $g5 (i64.const 0x1234567890abcdef))
    (global.set $g6 (f32.const 33.5))
    (global.set $g7 (f64.const -44.25))
    (global.set $g8 (v128.const i64x2 0x0123456789abcdef 0x7edcba9876543210))
    (global.set $g9 (f32.const nan:0x200001))
    (global.set $g10 (f64.const nan:0x4000000000123))
    (global.set $g15 (global.get $g3))
    (local.set $grown (memory.grow $m1 (i32.const 1)))
    (i32.store $m0 (i32.const 4) (i32.const 0x600df00d))
    (drop (table.grow $t2 (global.get $g3) (i32.const 1)))
    (call $show (global.get $g3) (ref.null extern) (ref.func $run) (ref.null func)
      (v128.const i32x4 1 2 3 4))))"#
        .into()
}

/// Four small functions that call each other, next to each other and once only: with inlining they are one function.
pub fn inlined() -> String {
    r#"(module $inlined
  (import "env" "stop" (func $stop (param i32)))
  (func $inner (param $a i32) (result i32) (local $i i64)
    (local.set $i (i64.const 0x1111))
    (i32.add (local.get $a) (i32.const 1))
    (call $stop (i32.const 49))
    (i32.add (i32.wrap_i64 (local.get $i))))
  (func $middle (param $b i32) (result i32)
    (i32.mul (local.get $b) (i32.const 3))
    (call $inner (i32.add (local.get $b) (i32.const 2)))
    (i32.add))
  (func (param i32) (result i32)
    (i32.xor (local.get 0) (i32.const 5))
    (call $middle (i32.add (local.get 0) (i32.const 3)))
    (i32.add))
  (func $run (export "run") (result i32)
    (i32.add (call 3 (i32.const 10)) (i32.const 4))))"#
        .into()
}

/// One core module behind another in a component, so that offsets differ from those in the module.
pub fn component() -> String {
    r#"(component $outer
  (import "stop" (func $stop (param "code" u32)))
  (core module $first
    (memory (export "memory") 1 1)
    (data (i32.const 0) "in a component")
    (func $add (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))
  (core module $second
    (import "env" "stop" (func $stop (param i32)))
    (import "first" "add" (func $add (param i32 i32) (result i32)))
    (import "first" "memory" (memory 1))
    (global $g (mut i64) (i64.const 0xc0))
    (func $leaf (param $x i32) (result i32) (local $l i64)
      (local.set $l (i64.const 0x2222))
      (i32.add (local.get $x) (i32.const 1))
      (call $stop (i32.const 50))
      (i32.add (i32.wrap_i64 (local.get $l))))
    (func (param i32) (result i32)
      (i32.const 60)
      (call $leaf (call $add (local.get 0) (i32.const 3)))
      (i32.add))
    (func $run (export "run") (result i32)
      (call 3 (i32.const 8))))
  (core func $lowered (canon lower (func $stop)))
  (core instance $one (instantiate $first))
  (core instance $two (instantiate $second
    (with "env" (instance (export "stop" (func $lowered))))
    (with "first" (instance $one))))
  (func (export "run") (result u32) (canon lift (core func $two "run"))))"#
        .into()
}

/// Two components, one of which calls the other through an adapter that the runtime makes.
pub fn component_adapter() -> String {
    r#"(component $outer
  (import "stop" (func $stop (param "code" u32)))
  (component $callee
    (import "stop" (func $stop (param "code" u32)))
    (core module $inner
      (import "env" "stop" (func $stop (param i32)))
      (func $inner (export "inner") (param $a i32) (result i32)
        (i32.add (local.get $a) (i32.const 31))
        (call $stop (i32.const 51))))
    (core func $lowered (canon lower (func $stop)))
    (core instance $i (instantiate $inner (with "env" (instance (export "stop" (func $lowered))))))
    (func (export "inner") (param "a" u32) (result u32) (canon lift (core func $i "inner"))))
  (component $caller
    (import "inner" (func $inner (param "a" u32) (result u32)))
    (core module $run
      (import "env" "inner" (func $inner (param i32) (result i32)))
      (func $run (export "run") (result i32)
        (i32.add (call $inner (i32.const 7)) (i32.const 1))))
    (core func $lowered (canon lower (func $inner)))
    (core instance $i (instantiate $run (with "env" (instance (export "inner" (func $lowered))))))
    (func (export "run") (result u32) (canon lift (core func $i "run"))))
  (instance $b (instantiate $callee (with "stop" (func $stop))))
  (instance $a (instantiate $caller (with "inner" (func $b "inner"))))
  (export "run" (func $a "run")))"#
        .into()
}
