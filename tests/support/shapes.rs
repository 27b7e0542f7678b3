//! Guests with every shape that a compiler gives to the beginning and the end of a function. `run` never returns: each turn
//! of its loop is one call of `turn`, which goes through all of them.

use std::fmt::Write;

/// What a guest may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    pub multi_value: bool,
    pub tail_calls: bool,
    pub exceptions: bool,
    /// Frames that need stack probes. Winch fills their locals one by one.
    pub large: bool,
    /// `memory.fill` and `memory.copy`, which are calls of the runtime's own.
    pub bulk_memory: bool,
}

fn repeat(count: usize, f: impl Fn(usize) -> String) -> String {
    (0..count).map(f).collect::<Vec<_>>().join(" ")
}

/// `$name`, which adds up `count` arguments of 64 bits.
fn sum(out: &mut String, name: &str, count: usize) {
    let params = repeat(count, |_| "i64".into());
    let _ = writeln!(out, "(func ${name} (param {params}) (result i64) (i64.const {count})");
    for i in 0..count {
        let _ = write!(out, " (i64.add (local.get {i}))");
    }
    let _ = writeln!(out, ")");
}

/// `$name`, whose frame has room for `count` values: where its argument is zero they stay out of it.
fn large(out: &mut String, name: &str, count: usize) {
    let _ = writeln!(out, "(func ${name} (param $p i32) (result i64)");
    let locals = repeat(count, |_| "i64".into());
    let _ = writeln!(out, "(local {locals})\n(if (local.get $p) (then");
    for i in 0..count {
        let _ = writeln!(out, "(local.set {} (i64.load offset={} (local.get $p)))", i + 1, 8 * i);
    }
    let _ = writeln!(out, "(drop (call $leaf (i32.const 1)))\n(i64.const 0)");
    for i in 0..count {
        let _ = write!(out, " (i64.add (local.get {}))", i + 1);
    }
    let _ = writeln!(out, "return))\n(i64.extend_i32_u (call $leaf (local.get $p))))");
}

/// The text of a guest.
pub fn guest(features: Features) -> String {
    let mut out = String::from("(module\n(import \"env\" \"ready\" (func $ready))\n(memory (export \"memory\") 4 6)\n");
    out += "(table 4 funcref) (elem (i32.const 0) $leaf $nothing $twice $deep)\n(global $g (mut i32) (i32.const 0))\n";
    out += "(type $i_i (func (param i32) (result i32)))\n";
    out += "(func $leaf (param i32) (result i32) (i32.add (local.get 0) (i32.const 3)))\n";
    out += "(func $nothing (param i32) (result i32) (i32.const 5))\n";
    out +=
        "(func $twice (param i32) (result i32) (i32.add (call $leaf (local.get 0)) (call $nothing (local.get 0))))\n";
    // Values that live over a call.
    out += "(func $kept (param i32) (result i32) (local i32 i32 i32 i32 i32 i32 i32)\n";
    for i in 1..8 {
        let _ = writeln!(out, "(local.set {i} (i32.load offset={} (i32.const 64)))", 4 * i);
    }
    out += "(local.set 0 (call $twice (local.get 0)))\n(local.get 0)\n";
    for i in 1..8 {
        let _ = write!(out, " (i32.add (local.get {i}))");
    }
    out += ")\n";
    out += "(func $deep (param i32) (result i32) (if (result i32) (i32.le_s (local.get 0) (i32.const 0))\n\
        (then (call $twice (i32.const 1)))\n\
        (else (i32.add (local.get 0) (call $deep (i32.sub (local.get 0) (i32.const 1)))))))\n";
    out += "(func $branches (param i32) (result i32)\n\
        (block (block (block (block (br_table 0 1 2 3 (i32.and (local.get 0) (i32.const 3))))\n\
        (return (i32.const 7))) (return (call $leaf (local.get 0)))) (return (call $kept (local.get 0))))\n\
        (i32.load (i32.const 128)))\n";
    for count in [5, 6, 7, 20] {
        sum(&mut out, &format!("sum{count}"), count);
    }
    let arguments = |count: usize| repeat(count, |i| format!("(i64.load offset={} (i32.const 0))", 8 * i));
    for count in [5, 6, 7, 20] {
        let _ = writeln!(
            out,
            "(func $calls{count} (param i32) (result i64) (i64.add (call $sum{count} {}) (i64.load (i32.const 16))))",
            arguments(count)
        );
    }
    if features.large {
        large(&mut out, "large", 640);
        large(&mut out, "huge", 2200);
    }
    out += "(func $indirect (param i32) (result i32)\n\
        (call_indirect (type $i_i) (i32.const 4) (i32.and (local.get 0) (i32.const 3))))\n";
    let mut turn = String::new();
    if features.multi_value {
        for count in [2, 4, 12] {
            let results = repeat(count, |_| "i64".into());
            let values = repeat(count, |i| format!("(i64.add (local.get 0) (i64.const {i}))"));
            let _ = writeln!(out, "(func $many{count} (param i64) (result {results}) {values})");
            let adds = repeat(count - 1, |_| "i64.add".into());
            let _ =
                writeln!(out, "(func $takes{count} (param i64) (result i64) (call $many{count} (local.get 0)) {adds})");
            let _ = writeln!(turn, "(drop (call $takes{count} (i64.const 9)))");
            // Results behind a pointer, and arguments on the stack.
            let params = repeat(count + 8, |_| "i64".into());
            let _ = writeln!(
                out,
                "(func $both{count} (param {params}) (result {results}) {})",
                repeat(count, |i| format!("(local.get {i})"))
            );
            let _ = writeln!(
                out,
                "(func $calls_both{count} (param i64) (result i64) (call $both{count} {}) {adds})",
                repeat(count + 8, |_| "(local.get 0)".into())
            );
            let _ = writeln!(turn, "(drop (call $calls_both{count} (i64.const 4)))");
        }
    }
    if features.tail_calls {
        out += "(type $big (func (param i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64) (result i64)))\n\
            (type $small (func (param i64) (result i64)))\n\
            (table $tails 2 funcref) (elem (table $tails) (i32.const 0) func $to_small $end)\n";
        let (same, more) = (repeat(12, |i| format!("(local.get {i})")), repeat(12, |_| "(local.get 0)".into()));
        // As many, more and fewer arguments on the stack than the caller, to known functions and through a table.
        out += "(func $end (type $small) (i64.add (local.get 0) (i64.load (i32.const 8))))\n";
        let _ = writeln!(out, "(func $to_big (type $small) (return_call $same {more}))");
        let _ = writeln!(out, "(func $same (type $big) (return_call $fewer {same}))");
        let _ = writeln!(out, "(func $fewer (type $big) (return_call $to_small {same}))");
        out += "(func $to_small (type $big) (return_call_indirect $tails (type $small) (local.get 3) (i32.const 1)))\n";
        let _ = writeln!(
            out,
            "(func $through_table (type $small) (drop (call $end (local.get 0)))\n\
             (return_call_indirect $tails (type $big) {more} (i32.const 0)))"
        );
        out += "(func $either (param i64) (result i64) (local i64 i64 i64 i64 i64 i64)\n";
        for i in 1..7 {
            let _ = writeln!(out, "(local.set {i} (i64.load offset={} (i32.const 0)))", 8 * i);
        }
        out += "(local.set 0 (call $end (local.get 0)))\n\
            (if (i64.eqz (i64.and (local.get 0) (i64.const 1))) (then (return_call $end (i64.add (local.get 5) (i64.add (local.get 6) (i64.add (local.get 1) (i64.add (local.get 2) (i64.add (local.get 3) (local.get 4)))))))))\n";
        let _ = writeln!(out, "(return_call $fewer {more}))");
        // From arguments to others, none of which are those of the one that was called first.
        let _ = writeln!(
            out,
            "(func $some (param i64 i64 i64 i64 i64 i64 i64 i64) (result i64) (return_call $big_end {}))",
            repeat(12, |i| format!("(local.get {})", i % 8))
        );
        let _ = writeln!(out, "(func $big_end (type $big) (i64.add (call $end (local.get 11)) (local.get 7)))");
        for name in ["to_big", "through_table", "either"] {
            let _ = writeln!(
                out,
                "(func $calls_{name} (param i64) (result i64) (i64.add (local.get 0) (call ${name} (local.get 0))))"
            );
            let _ = writeln!(turn, "(drop (call $calls_{name} (i64.extend_i32_u (global.get $g))))");
        }
        let _ = writeln!(
            out,
            "(func $calls_some (param i64) (result i64) (i64.add (local.get 0) (call $some {})))",
            repeat(8, |_| "(local.get 0)".into())
        );
        turn += "(drop (call $calls_some (i64.const 3)))\n";
    }
    if features.exceptions {
        out += "(tag $oops (param i32))\n\
            (func $throws (param i32) (result i32) (if (i32.and (local.get 0) (i32.const 1)) (then (throw $oops (local.get 0)))) (call $leaf (local.get 0)))\n\
            (func $between (param i32) (result i32) (i32.add (call $throws (local.get 0)) (i32.const 2)))\n\
            (func $catches (param i32) (result i32) (local i32 i32 i32 i32)\n\
            (local.set 1 (i32.load (i32.const 4))) (local.set 2 (i32.load (i32.const 8)))\n\
            (local.set 3 (i32.load (i32.const 12))) (local.set 4 (i32.load (i32.const 16)))\n\
            (block $h (result i32) (try_table (result i32) (catch $oops $h) (call $between (local.get 0))))\n\
            (i32.add (local.get 1)) (i32.add (local.get 2)) (call $leaf) (i32.add (local.get 3)) (i32.add (local.get 4)))\n";
        turn += "(drop (call $catches (global.get $g)))\n";
    }
    if features.bulk_memory {
        out += "(func $fills (param i32) (result i32) (memory.fill (i32.const 0x100) (local.get 0) (i32.const 33))\n\
            (memory.copy (i32.const 0x200) (i32.const 0x100) (i32.const 9)) (call $leaf (local.get 0)))\n";
        turn += "(drop (call $fills (i32.const 1)))\n";
    }
    out += "(func $grows (param i32) (result i32) (i32.add (memory.grow (i32.const 0)) (call $leaf (local.get 0))))\n";
    for name in ["twice", "kept", "branches", "indirect", "grows"] {
        let _ = writeln!(turn, "(drop (call ${name} (global.get $g)))");
    }
    turn += "(drop (call $deep (i32.const 3)))\n";
    let large: &[&str] = if features.large { &["large", "huge"] } else { &[] };
    for name in ["calls5", "calls6", "calls7", "calls20"].iter().chain(large) {
        let _ = writeln!(turn, "(drop (call ${name} (i32.const 0)))");
    }
    let _ = writeln!(out, "(func $turn (global.set $g (i32.add (global.get $g) (i32.const 1)))\n{turn})");
    out += "(func (export \"run\") (call $ready) (loop (call $turn) (br 0))))\n";
    out
}
