//! Reads and writes the lines of the protocol, and asks the debugger, as a lender, for what the engine needs.

use super::error::Failure;
use crate::limits;
use crate::process::callback::{Description, Lender, LentRegisters};
use serde_json::{Map, Value, json};
use std::cell::{Cell, RefCell};
use std::io::{BufRead, Read, Write};
use std::path::PathBuf;

/// A JSON object.
pub type Message = Map<String, Value>;

/// The connection to the debugger, in both directions.
pub struct Wire {
    input: RefCell<Box<dyn BufRead>>,
    output: RefCell<Box<dyn Write>>,
    calls: Cell<u64>,
    /// Whether the other side is gone.
    ended: Cell<bool>,
}

enum Line {
    Message(Message),
    Broken(String),
    End,
}

impl Wire {
    pub fn new(input: Box<dyn BufRead>, output: Box<dyn Write>) -> Wire {
        Wire { input: input.into(), output: output.into(), calls: Cell::new(0), ended: Cell::new(false) }
    }

    /// Waits for the next request and returns it. A line that is no request is answered with an error. `None` if the
    /// input has ended.
    pub fn next_request(&self) -> Option<Message> {
        loop {
            match self.line() {
                Line::Message(m) if m.contains_key("op") => return Some(m),
                // This is the answer to a call that nobody waits for any more.
                Line::Message(m) if m.contains_key("reply") => {}
                Line::Message(m) => {
                    let id = m.get("id").cloned().unwrap_or_default();
                    self.answer(id, Err(Failure::malformed("a request needs an \"op\"")));
                }
                Line::Broken(why) => self.answer(Value::Null, Err(Failure::malformed(why))),
                Line::End => return None,
            }
        }
    }

    /// Answers request `id`.
    pub fn answer(&self, id: Value, answer: Result<Message, Failure>) {
        // An id that a client made up is not sent back to it at any length.
        let id = if id.is_number() || id.as_str().is_some_and(|s| s.len() <= 100) { id } else { Value::Null };
        let mut out = Message::new();
        out.insert("id".into(), id);
        out.insert("ok".into(), answer.is_ok().into());
        match answer {
            Ok(more) => out.extend(more),
            Err(failure) => {
                out.insert("error".into(), failure.json());
            }
        }
        self.send(out);
    }

    /// Tells the debugger about the progress of work that takes long.
    pub fn progress(&self, text: &str) {
        self.send(Map::from_iter([("event".to_string(), "progress".into()), ("text".to_string(), text.into())]));
    }

    fn send(&self, message: Message) {
        let mut line = Value::Object(message).to_string();
        line.push('\n');
        let mut output = self.output.borrow_mut();
        if output.write_all(line.as_bytes()).and_then(|()| output.flush()).is_err() {
            self.ended.set(true);
        }
    }

    fn line(&self) -> Line {
        if self.ended.get() {
            return Line::End;
        }
        let mut input = self.input.borrow_mut();
        let mut line = Vec::new();
        let read = (&mut *input).take(limits::MAX_MESSAGE_BYTES as u64).read_until(b'\n', &mut line);
        if !matches!(read, Ok(n) if n > 0) {
            self.ended.set(true);
            return Line::End;
        }
        if line.last() != Some(&b'\n') && line.len() >= limits::MAX_MESSAGE_BYTES {
            return match skip_line(&mut *input) {
                true => Line::Broken(format!("a message has at most {} bytes", limits::MAX_MESSAGE_BYTES)),
                false => Line::End,
            };
        }
        match serde_json::from_slice(&line) {
            Ok(Value::Object(message)) => Line::Message(message),
            Ok(_) => Line::Broken("a message is a JSON object".into()),
            Err(e) => Line::Broken(format!("not JSON: {e}")),
        }
    }

    /// Asks the debugger and waits for its answer; returns `None` if it has none. Requests that come meanwhile are
    /// refused.
    fn call(&self, op: &str, mut message: Message) -> Option<Message> {
        let call = self.calls.get() + 1;
        self.calls.set(call);
        message.insert("call".into(), call.into());
        message.insert("op".into(), op.into());
        self.send(message);
        loop {
            match self.line() {
                Line::Message(m) if m.get("reply").and_then(Value::as_u64) == Some(call) => {
                    return (!m.contains_key("error")).then_some(m);
                }
                Line::Message(m) if m.contains_key("reply") => {}
                Line::Message(m) => {
                    let id = m.get("id").cloned().unwrap_or_default();
                    self.answer(id, Err(Failure::new("busy", "another request is worked on")));
                }
                Line::Broken(why) => self.answer(Value::Null, Err(Failure::malformed(why))),
                Line::End => return None,
            }
        }
    }

    /// Asks the debugger what its target is.
    pub fn describe(&self) -> Result<Description, Failure> {
        let none = || Failure::failed("the debugger does not say what its target is");
        let m = self.call("describe", Message::new()).ok_or_else(none)?;
        let path = |key: &str| m.get(key).and_then(Value::as_str).filter(|s| !s.is_empty()).map(PathBuf::from);
        let threads = m.get("threads").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let thread = |t: &Value| {
            let tid = u32::try_from(number(t.get("tid")?)?).ok()?;
            Some((tid, t.get("name").and_then(Value::as_str).map(str::to_string)))
        };
        Ok(Description {
            pid: m.get("pid").and_then(number).and_then(|n| u32::try_from(n).ok()).filter(|pid| *pid != 0),
            local: m.get("local").and_then(Value::as_bool).unwrap_or(false),
            core: path("core"),
            executable: path("executable"),
            maps: m.get("maps").and_then(Value::as_str).map(str::to_string),
            auxv: m.get("auxv").and_then(Value::as_str).and_then(unhex),
            threads: threads.iter().filter_map(thread).take(limits::MAX_THREADS).collect(),
        })
    }
}

/// Reads up to the end of a line without keeping it. Returns false if the input has ended.
fn skip_line(input: &mut dyn BufRead) -> bool {
    loop {
        let (used, found) = match input.fill_buf() {
            Ok([]) | Err(_) => return false,
            Ok(bytes) => match bytes.iter().position(|&b| b == b'\n') {
                Some(at) => (at + 1, true),
                None => (bytes.len(), false),
            },
        };
        input.consume(used);
        if found {
            return true;
        }
    }
}

impl Lender for Wire {
    fn memory(&self, ranges: &[(u64, usize)]) -> Vec<Option<Vec<u8>>> {
        let asked: Vec<Value> = ranges.iter().map(|(at, len)| json!([format!("{at:#x}"), len])).collect();
        let answer = self.call("memory", Map::from_iter([("ranges".to_string(), asked.into())]));
        let data = answer.as_ref().and_then(|m| m.get("data")?.as_array());
        let bytes = |v: &Value| v.as_str().and_then(unhex);
        data.map(|data| data.iter().take(ranges.len()).map(bytes).collect()).unwrap_or_default()
    }

    fn registers(&self, threads: &[u32]) -> Vec<Option<LentRegisters>> {
        let answer = self.call("registers", Map::from_iter([("threads".to_string(), threads.into())]));
        let lent = answer.as_ref().and_then(|m| m.get("registers")?.as_array());
        let one = |v: &Value| {
            let values: Vec<(String, u64)> = v
                .as_object()?
                .iter()
                .take(limits::MAX_LENT_REGISTERS)
                .filter_map(|(name, v)| Some((name.clone(), number(v)?)))
                .collect();
            let fs_base = values.iter().find(|(name, _)| name == "fs_base").map(|(_, v)| *v);
            Some(LentRegisters { values, fs_base })
        };
        lent.map(|lent| lent.iter().take(threads.len()).map(one).collect()).unwrap_or_default()
    }
}

/// The value of a JSON number, or of a string that is decimal or, with `0x`, hexadecimal.
pub fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(n) => n.as_u64(),
        Value::String(s) => match s.strip_prefix("0x") {
            Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
            _ => s.parse().ok(),
        },
        _ => None,
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]).map(char::from).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use std::rc::Rc;

    #[derive(Clone, Default)]
    struct Sink(Rc<RefCell<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn wire(input: impl Into<Vec<u8>>) -> (Wire, Sink) {
        let sink = Sink::default();
        (Wire::new(Box::new(Cursor::new(input.into())), Box::new(sink.clone())), sink)
    }

    fn sent(sink: &Sink) -> Vec<Value> {
        let bytes = sink.0.borrow();
        std::str::from_utf8(&bytes).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn lines_that_are_no_request_are_answered_and_the_next_one_is_read() {
        let (wire, sink) = wire(b"garbage\n[1]\n\n{\"id\": 3}\n{\"reply\": 9}\n\xff\n{\"id\": 4, \"op\": \"hello\"}");
        assert_eq!(wire.next_request().unwrap()["id"], 4);
        assert!(wire.next_request().is_none());
        let answers = sent(&sink);
        assert_eq!(answers.len(), 5);
        assert!(answers.iter().all(|a| a["error"]["kind"] == "malformed" && a["ok"] == false), "{answers:?}");
        assert_eq!(answers.iter().filter(|a| a["id"] == 3).count(), 1);
    }

    #[test]
    fn a_line_without_end_is_skipped() {
        let mut input = vec![b'['; limits::MAX_MESSAGE_BYTES + 100_000];
        input.extend(b"\n{\"id\": 1, \"op\": \"x\"}\n");
        let (wire, sink) = wire(input);
        assert_eq!(wire.next_request().unwrap()["id"], 1);
        assert_eq!(sent(&sink).len(), 1);
    }

    #[test]
    fn deep_nesting_is_an_error_not_a_crash() {
        let (wire, sink) = wire([vec![b'['; 1 << 20], b"\n".to_vec()].concat());
        assert!(wire.next_request().is_none());
        assert_eq!(sent(&sink)[0]["error"]["kind"], "malformed");
    }

    #[test]
    fn memory_is_lent_as_it_was_asked_for() {
        let (wire, sink) = wire(
            "{\"id\": 5, \"op\": \"walk\"}\n{\"reply\": 77}\n{\"reply\": 1, \"data\": [\"00fFa0\", null, \"0\", \"zz\", 1]}\n\
             {\"reply\": 2, \"error\": \"no process\"}\n{\"reply\": 3, \"data\": 7}\n",
        );
        let ranges = [(0x1000, 3), (0x2000, 1), (0x3000, 1), (0x4000, 1), (0x5000, 1)];
        assert_eq!(wire.memory(&ranges), [Some(vec![0, 0xff, 0xa0]), None, None, None, None]);
        assert_eq!(wire.memory(&ranges), []);
        assert_eq!(wire.memory(&ranges), []);
        // The input has ended.
        assert_eq!(wire.memory(&ranges), []);
        let lines = sent(&sink);
        assert_eq!(
            lines[0],
            json!({"call": 1, "op": "memory", "ranges": [["0x1000", 3], ["0x2000", 1], ["0x3000", 1], ["0x4000", 1], ["0x5000", 1]]})
        );
        assert_eq!((&lines[1]["id"], &lines[1]["error"]["kind"]), (&json!(5), &json!("busy")));
    }

    #[test]
    fn registers_and_descriptions_take_what_they_understand() {
        let (wire, _) = wire(
            "{\"reply\": 1, \"registers\": [{\"rip\": \"0x10\", \"rsp\": 32, \"fs_base\": \"0x7f\", \"r8\": \"-1\", \"r9\": []}, null]}\n\
             {\"reply\": 2, \"pid\": 7, \"local\": \"yes\", \"core\": \"\", \"auxv\": \"06\", \"threads\": [{\"tid\": 7, \"name\": \"a\"}, {\"tid\": -1}, 8]}\n",
        );
        let lent = wire.registers(&[1, 2, 3]);
        let first = lent[0].clone().unwrap();
        assert_eq!(first.fs_base, Some(0x7f));
        assert!(first.values.contains(&("rip".into(), 16)) && first.values.contains(&("rsp".into(), 32)));
        assert_eq!((first.values.len(), &lent[1]), (3, &None));
        let what = wire.describe().unwrap();
        assert_eq!((what.pid, what.local, what.core, what.auxv), (Some(7), false, None, Some(vec![6])));
        assert_eq!(what.threads, [(7, Some("a".to_string()))]);
        assert!(wire.describe().is_err());
    }

    #[test]
    fn so_many_registers_are_lent() {
        let all: Message = (0..=limits::MAX_LENT_REGISTERS).map(|i| (format!("r{i}"), i.into())).collect();
        let (wire, _) = wire(json!({"reply": 1, "registers": [all]}).to_string() + "\n");
        let lent = wire.registers(&[1]);
        assert_eq!(lent[0].as_ref().map(|l| l.values.len()), Some(limits::MAX_LENT_REGISTERS));
    }
}
