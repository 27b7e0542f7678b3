//! A conversation with the server: lines of a debugger's plugin, to what a small real core lends.
//!
//! A line is a request. One that begins with `<` is the answer to the call that the server waits for, with the right
//! number put in; without one, the core answers. One that begins with `>` is sent although a call is open.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use wstate::server;
use wstate::process::core::CoreTarget;
use wstate::process::objects::SearchPaths;
use wstate::process::{Memory, Target};

static CORE: LazyLock<CoreTarget> = LazyLock::new(|| {
    let bytes = include_bytes!("../seeds/engine/trap-div").to_vec();
    CoreTarget::from_bytes(Path::new("core.fuzz"), Arc::new(bytes), &SearchPaths::default()).unwrap()
});

/// What the core has for `call`.
fn lend(call: &Map<String, Value>) -> Value {
    let number = |v: &Value| u64::from_str_radix(v.as_str().unwrap().strip_prefix("0x").unwrap(), 16).unwrap();
    match call["op"].as_str().unwrap() {
        "describe" => {
            let flag = |set: bool, c: char| if set { c } else { '-' };
            let line = |m: &wstate::process::Mapping| {
                let (r, w, x) = (flag(m.read, 'r'), flag(m.write, 'w'), flag(m.execute, 'x'));
                let path = m.path.as_deref().unwrap_or(Path::new("")).display();
                format!("{:x}-{:x} {r}{w}{x}p {:08x} 00:00 0 {path}\n", m.start, m.end, m.offset)
            };
            let threads: Vec<Value> = CORE.threads().iter().map(|t| json!({"tid": t.id.0})).collect();
            json!({"pid": 4711, "maps": CORE.mappings().iter().map(line).collect::<String>(), "threads": threads})
        }
        "registers" => {
            let one = |tid: &Value| {
                let thread = CORE.threads().iter().find(|t| Some(u64::from(t.id.0)) == tid.as_u64())?;
                let known = thread.registers.iter().map(|(reg, value)| (reg.name(), value));
                let all = known.chain(thread.fs_base.map(|base| ("fs_base", base)));
                Some(all.map(|(name, v)| (name.to_string(), format!("{v:#x}").into())).collect::<Map<_, Value>>())
            };
            json!({"registers": call["threads"].as_array().unwrap().iter().map(one).collect::<Vec<_>>()})
        }
        "memory" => {
            let read = |range: &Value| {
                let bytes = CORE.read_vec(number(&range[0]), range[1].as_u64().unwrap() as usize).ok()?;
                Some(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
            };
            json!({"data": call["ranges"].as_array().unwrap().iter().map(read).collect::<Vec<_>>()})
        }
        other => panic!("the server calls {other}"),
    }
}

/// The other end of the wire.
struct Debugger {
    lines: Vec<Vec<u8>>,
    /// What the server wrote of a line.
    heard: Vec<u8>,
    call: Option<Map<String, Value>>,
}

impl Debugger {
    /// The next line for the server; empty at the end.
    fn next(&mut self) -> Vec<u8> {
        while let Some(line) = self.lines.last() {
            let is_reply = line.first() == Some(&b'<');
            match self.call.take() {
                Some(call) if is_reply => {
                    let line = self.lines.pop().unwrap_or_default();
                    let reply = serde_json::from_slice(&line[1..]).ok().filter(Value::is_object);
                    return answer(&call, reply.unwrap_or_else(|| json!({"error": "no"})));
                }
                Some(call) if line.first() != Some(&b'>') => return answer(&call, lend(&call)),
                open => self.call = open,
            }
            let line = self.lines.pop().unwrap_or_default();
            let line = line.strip_prefix(b"<").or(line.strip_prefix(b">")).unwrap_or(&line);
            if is_harmless(line) {
                return [line, b"\n"].concat();
            }
        }
        self.call.take().map_or(Vec::new(), |call| answer(&call, lend(&call)))
    }
}

fn answer(call: &Map<String, Value>, mut reply: Value) -> Vec<u8> {
    reply["reply"] = call["call"].clone();
    if let Value::Object(reply) = &mut reply {
        // Files and processes of this machine are nobody's business.
        for key in ["core", "local", "executable"] {
            reply.remove(key);
        }
    }
    format!("{reply}\n").into_bytes()
}

/// Whether a request reads and writes no file that it names.
fn is_harmless(line: &[u8]) -> bool {
    let op = serde_json::from_slice(line).ok().and_then(|v: Value| Some(v.get("op")?.as_str()?.to_string()));
    !op.is_some_and(|op| op == "symbols" || op == "configure")
}

#[derive(Clone)]
struct Wire(Rc<RefCell<Debugger>>);

/// One direction: the server reads what is ready.
struct Input {
    wire: Wire,
    line: Vec<u8>,
    used: usize,
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut rest = self.fill_buf()?;
        let n = rest.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used >= self.line.len() {
            self.line = self.wire.0.borrow_mut().next();
            self.used = 0;
        }
        Ok(&self.line[self.used..])
    }

    fn consume(&mut self, n: usize) {
        self.used += n;
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut debugger = self.0.borrow_mut();
        debugger.heard.extend(bytes);
        while let Some(end) = debugger.heard.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = debugger.heard.drain(..=end).collect();
            let message: Map<String, Value> = serde_json::from_slice(&line).expect("each line is an object");
            if message.contains_key("call") {
                assert!(debugger.call.is_none(), "two calls at once");
                debugger.call = Some(message);
            } else if message.get("event").is_none() {
                assert_eq!(message["ok"].as_bool(), Some(!message.contains_key("error")));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let mut lines: Vec<Vec<u8>> = data.split(|b| *b == b'\n').take(100).map(<[u8]>::to_vec).collect();
    lines.reverse();
    let wire = Wire(Rc::new(RefCell::new(Debugger { lines, heard: Vec::new(), call: None })));
    server::serve(Box::new(Input { wire: wire.clone(), line: Vec::new(), used: 0 }), Box::new(wire));
});
