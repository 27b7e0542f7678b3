;; A WASI guest that says READY and then waits: _start, outer, middle (three of them), inner, poll_oneoff.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "READY\n")
  (data (i32.const 1024) "known bytes of the guest")
  (func $inner (param i32) (result i32)
    ;; One buffer of six bytes.
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 6))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    ;; One subscription to the monotonic clock, an hour from now.
    (i32.store (i32.const 80) (i32.const 1))
    (i64.store (i32.const 88) (i64.const 3600000000000))
    (drop (call $poll_oneoff (i32.const 64) (i32.const 256) (i32.const 1) (i32.const 8)))
    (local.get 0))
  (func $middle (param i32) (result i32)
    (if (result i32) (local.get 0)
      (then (i32.add (call $middle (i32.sub (local.get 0) (i32.const 1))) (local.get 0)))
      (else (i32.add (call $inner (local.get 0)) (i32.const 1)))))
  (func $outer
    (i32.store (i32.const 512) (call $middle (i32.const 2))))
  (func (export "_start")
    (call $outer)
    (i32.store (i32.const 516) (i32.const 1))))
