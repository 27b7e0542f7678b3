;; What host.c runs: `run` calls `middle`, that calls `leaf`, that calls the host.
(module
  (import "env" "pause" (func $pause (param i32) (result i32)))
  (memory (export "memory") 1)
  (global $turns (mut i32) (i32.const 0))
  (data (i32.const 1024) "known bytes of the guest")
  (func $leaf (param i32) (result i32)
    (i32.add (call $pause (local.get 0)) (local.get 0)))
  (func $middle (param i32) (result i32) (local i64)
    (local.set 1 (i64.extend_i32_u (local.get 0)))
    (i32.add (call $leaf (local.get 0)) (i32.wrap_i64 (local.get 1))))
  (func $run (export "run") (param i32) (result i32)
    (global.set $turns (i32.add (global.get $turns) (i32.const 1)))
    (i32.mul (call $middle (local.get 0)) (i32.const 3))))
