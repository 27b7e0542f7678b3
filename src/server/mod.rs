//! `wstate serve --stdio`: the engine as a debugger's plugin uses it.
//!
//! The debugger holds the target; the server holds what is known about Wasm. Each line, both ways, is one JSON object
//! in UTF-8 of at most [`crate::limits::MAX_MESSAGE_BYTES`] bytes. Addresses are strings in hexadecimal (`"0x7f.."`;
//! decimal numbers are understood too), bytes are strings of hexadecimal digits. Keys that are not known are ignored,
//! on both sides. A debugger with two targets starts two servers.
//!
//! # Debugger to server: requests
//!
//! `{"id": 1, "op": "walk", ...}` is answered by `{"id": 1, "ok": true, ...}` or by
//! `{"id": 1, "ok": false, "error": {"kind": "...", "message": "...", "hint": "..."}}`. One request at a time; a line
//! that is no request is answered with `"id": null`. `kind` is `malformed`, `busy`, `version`, `unsupported`,
//! `not_found` or `failed`; `hint` may be missing. `message` and `hint` are one line each.
//!
//! | op | keys | answer |
//! |---|---|---|
//! | `hello` | `protocol`: [`PROTOCOL`] | `protocol`, `version` (of wstate), `ops` |
//! | `configure` | `wasm`, `artifacts`, `debug_dirs`: lists of paths; `sysroot`, `executable`: a path or null | |
//! | `resumed` | | everything that was lent is forgotten: send it when the target ran, or its memory was written |
//! | `changed` | | memory and registers are lent again before the next answer; files and modules are kept while the mappings are the same. For a debugger that does not tell of writes: send it before each command of the user |
//! | `walk` | `threads`: list of ids, missing: all; `limit`; `brief`, `wasm_only`, `fold`, `verbose`, `color`: booleans; `head`: whether `text` has more than threads | `report` (as `wstate schema` describes it), `text` |
//! | `report` | as `walk`, of all threads | `report`, `text` |
//! | `frame` | `thread`; which frame (see below); `locals`, `stack`: what to show | `index`, `pc`, `frame`, `text` |
//! | `step` | `thread`, `from`: frame number, `by`: number of Wasm frames, negative: younger | as `frame` |
//! | `modules` | `verbose`, `color` | `modules` (of all runtimes), `text` |
//! | `memory` | `thread`, frame; `memory` (0), `address` (in the linear memory), `length` | `data`, `text`, `size`, `base` |
//! | `print` | `thread`, frame; `expression` (see [`expression`]) | `text`, `value` |
//! | `list` | `thread`, frame; `count` of lines around it | `text` |
//! | `symbols` | `directory`: where to write; `all`: locals of all functions; `known`: list of `[start, end]`, code that the debugger knows from elsewhere and that is left out; `described`: the same, of code of which only how callers are found is wanted | `files`: list of `{"path", "address", "modules"}` that the debugger shall load, with an address inside each and where its modules begin; the same path as before if nothing changed; `unsure`: a later stop may tell more of the same code; `per_store`: each store of the process runs a copy of code of its own; `notes` |
//!
//! Which frame: `frame` is its number. With `pc` it must also be at that address, and if it is not, the first frame
//! at that address is meant: debuggers that do not know Wasm may number frames otherwise. Without both: the youngest
//! Wasm frame.
//!
//! # Server to debugger: calls
//!
//! While a request is worked on, the server asks for what it needs: `{"call": 7, "op": "memory", ...}`. The answer is
//! `{"reply": 7, ...}` or `{"reply": 7, "error": "..."}`. There is one call at a time. What the debugger cannot give
//! is missing or null in its answer.
//!
//! | op | keys | answer |
//! |---|---|---|
//! | `describe` | | `pid`; `local`: whether that is a process of this machine in the debugger's own pid namespace; `core`: path; `executable`; `maps`: text as in `/proc/PID/maps`; `auxv`: bytes; `threads`: list of `{"tid", "name"}` |
//! | `registers` | `threads`: list of ids | `registers`: for each id a map from name (`rip`, `rsp`, .., `xmm0` its low 64 bits, `fs_base`) to value, or null |
//! | `memory` | `ranges`: list of `[address, length]` | `data`: for each range its bytes, or null if not all of them can be read |
//!
//! Progress of long work is told by `{"event": "progress", "text": "..."}`, which has no answer.
//!
//! The server ends when its input ends. Nothing else ends it: a request that fails in an unforeseen way is answered
//! with the kind `failed`, and what was known about the target is forgotten.

mod error;
pub mod expression;
mod requests;
mod wire;

use requests::Requests;
use std::io::{BufRead, Write};
use std::rc::Rc;
use wire::Wire;

/// Version of this protocol. It grows when an old plugin would misunderstand the server.
pub const PROTOCOL: u32 = 1;

/// Serves until `input` ends.
pub fn serve(input: Box<dyn BufRead>, output: Box<dyn Write>) {
    let wire = Rc::new(Wire::new(input, output));
    let mut requests = Requests::new(Rc::clone(&wire));
    while let Some(message) = wire.next_request() {
        let id = message.get("id").cloned().unwrap_or_default();
        // A bug in the engine must not cost the user the debugger's session.
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| requests.answer(&message)));
        let answer = answer.unwrap_or_else(|_| {
            requests.forget();
            Err(error::Failure::failed("wstate failed unexpectedly; what it said is on its standard error"))
        });
        wire.answer(id, answer);
    }
}
