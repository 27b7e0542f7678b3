;; A command that waits an hour for a clock: its guest is on a fiber, and on no thread.
(component
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $own))
    (export "subscribe-duration" (func (param "when" u64) (result (own $own))))))
  (alias export $clock "subscribe-duration" (func $after))
  (alias export $poll "[method]pollable.block" (func $wait))
  (core func $after-core (canon lower (func $after)))
  (core func $wait-core (canon lower (func $wait)))
  (core module $waiter
    (import "host" "after" (func $after (param i64) (result i32)))
    (import "host" "wait" (func $wait (param i32)))
    (func $inner (call $wait (call $after (i64.const 3600000000000))))
    (func (export "run") (result i32) (call $inner) (i32.const 0)))
  (core instance $guest (instantiate $waiter
    (with "host" (instance (export "after" (func $after-core)) (export "wait" (func $wait-core))))))
  (func $run (result (result)) (canon lift (core func $guest "run")))
  (component $command
    (import "inside" (func $inside (result (result))))
    (export "run" (func $inside)))
  (instance $exported (instantiate $command (with "inside" (func $run))))
  (export "wasi:cli/run@0.2.0" (instance $exported)))
