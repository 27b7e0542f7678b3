//! `wstate serve --stdio` with a debugger that is this test: what it lends is another process's, what it gets is what
//! `wstate attach` says of the same stop.

use crate::support::debuggers::at_rest;
use crate::support::{Host, Profile, schema, wstate};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use wstate::process::Target;
use wstate::process::live::{CaptureOptions, LiveTarget};

/// A debugger: the registers of a stop, and the memory of the process behind it.
struct Lent {
    pid: i32,
    target: LiveTarget,
    /// Whether it says that the process is one of this machine.
    local: bool,
    /// Whether its memory can be read.
    memory: bool,
}

impl Lent {
    fn of(host: &Host) -> Lent {
        at_rest(host);
        let target =
            LiveTarget::capture(host.pid() as u32, &CaptureOptions::default()).expect("the host can be captured");
        Lent { pid: host.pid(), target, local: false, memory: true }
    }

    fn answer(&self, call: &Map<String, Value>) -> Value {
        let number = |v: &Value| u64::from_str_radix(v.as_str().unwrap().strip_prefix("0x").unwrap(), 16).unwrap();
        match call["op"].as_str().unwrap() {
            "describe" => {
                let file = |name: &str| std::fs::read(format!("/proc/{}/{name}", self.pid)).unwrap();
                let auxv: String = file("auxv").iter().map(|b| format!("{b:02x}")).collect();
                let threads = self.target.threads().iter();
                let threads: Vec<Value> = threads.map(|t| json!({"tid": t.id.0, "name": t.name})).collect();
                json!({
                    "pid": self.pid,
                    "local": self.local,
                    "executable": self.target.executable().unwrap(),
                    "maps": String::from_utf8(file("maps")).unwrap(),
                    "auxv": auxv,
                    "threads": threads,
                })
            }
            "registers" => {
                let one = |tid: &Value| {
                    let thread = self.target.threads().iter().find(|t| Some(u64::from(t.id.0)) == tid.as_u64())?;
                    let known = thread.registers.iter().map(|(reg, value)| (reg.name(), value));
                    let fs_base = thread.fs_base.map(|base| ("fs_base", base));
                    Some(known.chain(fs_base).map(|(name, v)| (name.to_string(), format!("{v:#x}").into())).collect())
                };
                let registers: Vec<Option<Map<String, Value>>> =
                    call["threads"].as_array().unwrap().iter().map(one).collect();
                json!({ "registers": registers })
            }
            "memory" => {
                let read = |range: &Value| {
                    let (address, len) = (number(&range[0]), range[1].as_u64().unwrap() as usize);
                    let mut bytes = vec![0; len];
                    let remote = [RemoteIoVec { base: address as usize, len }];
                    let read = process_vm_readv(Pid::from_raw(self.pid), &mut [IoSliceMut::new(&mut bytes)], &remote);
                    let whole = self.memory && read == Ok(len);
                    whole.then(|| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
                };
                json!({"data": call["ranges"].as_array().unwrap().iter().map(read).collect::<Vec<_>>()})
            }
            other => panic!("the server calls {other}"),
        }
    }
}

/// A running server.
struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    requests: u64,
    /// Calls that were answered.
    calls: usize,
}

impl Server {
    fn start() -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_wstate"))
            .args(["serve", "--stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("wstate starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut server = Server { child, input, output, requests: 0, calls: 0 };
        assert_eq!(server.ask(None, json!({"op": "hello", "protocol": 1}))["ok"], true);
        server
    }

    fn send(&mut self, line: &[u8]) {
        let input = self.input.as_mut().unwrap();
        input.write_all(line).and_then(|()| input.write_all(b"\n")).and_then(|()| input.flush()).unwrap();
    }

    fn receive(&mut self) -> Map<String, Value> {
        let mut line = String::new();
        assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the server has ended");
        serde_json::from_str(&line).expect("a line is an object")
    }

    /// Sends a request, lends, and returns the answer.
    fn ask(&mut self, lent: Option<&Lent>, mut request: Value) -> Map<String, Value> {
        self.requests += 1;
        request["id"] = self.requests.into();
        self.send(request.to_string().as_bytes());
        loop {
            let message = self.receive();
            if let Some(call) = message.get("call") {
                self.calls += 1;
                let mut answer = lent.expect("nothing to lend").answer(&message);
                answer["reply"] = call.clone();
                self.send(answer.to_string().as_bytes());
            } else if message.get("event").is_none() {
                assert_eq!(message["id"], self.requests);
                for (key, part) in [("report", None), ("frame", Some("Frame")), ("value", Some("Value"))] {
                    if let Some(value) = message.get(key) {
                        schema::check_part("report", part, value);
                    }
                }
                for module in message.get("modules").and_then(Value::as_array).into_iter().flatten() {
                    schema::check_part("report", Some("Module"), module);
                }
                return message;
            }
        }
    }

    /// The same, for what must succeed.
    fn get(&mut self, lent: &Lent, request: Value) -> Map<String, Value> {
        let answer = self.ask(Some(lent), request.clone());
        assert_eq!(answer["ok"], true, "{request}: {answer:?}");
        answer
    }

    fn end(mut self) {
        self.input = None;
        assert!(self.child.wait().unwrap().success());
    }
}

fn error(answer: &Map<String, Value>) -> (&str, &str) {
    assert_eq!(answer["ok"], false, "{answer:?}");
    (answer["error"]["kind"].as_str().unwrap(), answer["error"]["message"].as_str().unwrap())
}

/// What attach reports, without what a debugger cannot tell: who the process is, and what its threads did.
fn attach(host: &Host) -> Value {
    let out = wstate(&["attach", &host.pid().to_string(), "--json"]);
    let mut report: Value = serde_json::from_slice(&out.stdout).expect("attach writes JSON");
    without_executable_file(&mut report);
    let target = report["target"].as_object_mut().expect("a target");
    for key in ["uid", "gid", "command_line"] {
        assert!(target.remove(key).is_some(), "{key} is not there");
    }
    for thread in report["threads"].as_array_mut().expect("threads") {
        thread.as_object_mut().expect("a thread").remove("state");
    }
    report
}

/// Attach opens the executable through the kernel, and the server by its name.
fn without_executable_file(report: &mut Value) {
    let file = report["target"].as_object_mut().and_then(|target| target.remove("executable_file"));
    assert!(file.is_some_and(|file| file["build_id"].is_string()), "{report}");
}

#[test]
fn a_lent_process_is_reported_as_an_attached_one() {
    lent_is_attached(&[
        ("sleep", &[], Profile::Debug),
        ("nested", &[], Profile::Debug),
        ("modules", &[], Profile::Debug),
        ("moved", &[], Profile::Debug),
        ("deep", &["--depth", "1000"], Profile::Debug),
    ]);
}

#[test]
fn a_lent_process_without_debug_info_is_reported_as_an_attached_one() {
    lent_is_attached(&[
        ("sleep", &[], Profile::Stripped),
        ("trap-div", &[], Profile::Release),
        ("floats", &[], Profile::Release),
        ("call-indirect", &["--thread"], Profile::Stripped),
    ]);
}

fn lent_is_attached(stops: &[(&str, &[&str], Profile)]) {
    for &(stop, flags, profile) in stops {
        let host = Host::start(stop, flags, profile);
        at_rest(&host);
        let expected = attach(&host);
        assert!(expected["threads"].to_string().contains("\"wasm\""), "{stop} {profile}");
        for local in [false, true] {
            let lent = Lent { local, ..Lent::of(&host) };
            let mut server = Server::start();
            let mut report = server.get(&lent, json!({"op": "report"}));
            without_executable_file(&mut report["report"]);
            similar_json(&report["report"], &expected, &format!("{stop} {flags:?} {profile} local: {local}"));
            server.end();
        }
    }
}

/// Says where two reports differ.
fn similar_json(a: &Value, b: &Value, what: &str) {
    if a == b {
        return;
    }
    let (a, b) = (serde_json::to_string_pretty(a).unwrap(), serde_json::to_string_pretty(b).unwrap());
    let first = a.lines().zip(b.lines()).enumerate().find(|(_, (a, b))| a != b);
    panic!("{what}: line {first:?}, {} and {} lines", a.lines().count(), b.lines().count());
}

#[test]
fn nothing_is_asked_twice_until_the_target_runs() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let lent = Lent::of(&host);
    let mut server = Server::start();
    let walk = json!({"op": "walk", "threads": [host.tid()], "brief": true});
    let first = server.get(&lent, walk.clone());
    let calls = server.calls;
    assert!(calls > 2, "{calls}");
    assert_eq!(server.get(&lent, walk.clone()), {
        let mut again = first.clone();
        again["id"] = 3.into();
        again
    });
    server.get(&lent, json!({"op": "frame", "thread": host.tid(), "locals": true}));
    assert_eq!(server.calls, calls);
    server.get(&lent, json!({"op": "resumed"}));
    assert_eq!(server.calls, calls);
    server.get(&lent, walk);
    assert_eq!(server.calls, 2 * calls);
    server.end();
}

#[test]
fn what_may_have_been_written_is_lent_again_and_modules_are_kept() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let mut lent = Lent::of(&host);
    let mut server = Server::start();
    let walk = json!({"op": "walk", "threads": [host.tid()]});
    let first = server.get(&lent, walk.clone());
    let calls = server.calls;
    // Nothing is lent that was not asked for, and the answer is the same.
    server.get(&lent, json!({"op": "changed"}));
    assert_eq!(server.calls, calls);
    assert_eq!(server.get(&lent, walk.clone())["text"], first["text"]);
    let again = server.calls - calls;
    assert!(0 < again && again < calls, "{again} of {calls}");
    // Without memory there is nothing to walk: what was lent before is not used.
    lent.memory = false;
    server.get(&lent, json!({"op": "changed"}));
    let without = server.get(&lent, walk);
    assert!(without["text"].as_str().unwrap().contains("lost"), "{without:?}");
    server.end();
}

#[test]
fn frames_and_values_are_found_one_by_one() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let (lent, tid) = (Lent::of(&host), host.tid());
    let mut server = Server::start();
    let leaf = server.get(&lent, json!({"op": "frame", "thread": tid, "locals": true, "stack": true}));
    assert_eq!(leaf["frame"]["function"]["name"], "leaf");
    let text = leaf["text"].as_str().unwrap();
    assert!(text.contains("params  0 i32 9 (r12)") && text.contains("2 0x63 (constant)"), "{text}");
    let index = leaf["index"].as_u64().unwrap();
    let step = |from: u64, by: i64| json!({"op": "step", "thread": tid, "from": from, "by": by});
    assert_eq!(server.get(&lent, step(index, 2))["index"], index + 2);
    assert_eq!(server.get(&lent, step(index + 2, -1))["index"], index + 1);
    // As gdb's up does: to the end, if that is nearer.
    assert_eq!(server.get(&lent, step(index, 1000))["frame"]["function"]["name"], "run");
    assert_eq!(server.get(&lent, step(0, 1))["index"], index);
    assert_eq!(error(&server.ask(Some(&lent), step(index, -1))), ("not_found", "this is the youngest Wasm frame"));
    // A debugger with other numbers names the pc.
    let pc = leaf["pc"].as_str().unwrap();
    let by_pc = server.get(&lent, json!({"op": "frame", "thread": tid, "frame": 3, "pc": pc}));
    assert_eq!(by_pc["index"], index);
    let wrong = json!({"op": "frame", "thread": tid, "frame": index, "pc": "0x10"});
    assert_eq!(error(&server.ask(Some(&lent), wrong)).0, "not_found");
    for (expression, expected) in [("l0", "(i32) 9 "), ("local 2", "(f64) 3.25 "), ("stack 2", "0x63 ")] {
        let print = json!({"op": "print", "thread": tid, "expression": expression});
        let text = server.get(&lent, print)["text"].as_str().unwrap().to_string();
        assert!(text.starts_with(expected), "{expression}: {text}");
    }
    for (expression, kind) in [("l77", "not_found"), ("g0", "not_found"), ("i32[0]", "not_found"), ("1 +", "malformed")]
    {
        let print = json!({"op": "print", "thread": tid, "expression": expression});
        assert_eq!(error(&server.ask(Some(&lent), print)).0, kind, "{expression}");
    }
    let native = json!({"op": "frame", "thread": tid, "frame": 0, "locals": true});
    assert_eq!(error(&server.ask(Some(&lent), native)).1, "frame #0 is not a Wasm frame");
    server.end();
}

#[test]
fn memories_and_globals_are_the_guests() {
    let host = Host::start("globals", &[], Profile::Debug);
    let (lent, tid) = (Lent::of(&host), host.tid());
    let mut server = Server::start();
    let print = |e: &str| json!({"op": "print", "thread": tid, "expression": e});
    let imported = server.get(&lent, print("g0"));
    assert!(imported["text"].as_str().unwrap().contains("4242"), "{imported:?}");
    let mut count = 0;
    while server.ask(Some(&lent), print(&format!("global {count}")))["ok"] == true {
        count += 1;
    }
    assert!(count >= 5, "{count} globals");
    let memory =
        |address: u64, length: u64| json!({"op": "memory", "thread": tid, "address": address, "length": length});
    let first = server.get(&lent, memory(0, 64));
    let size = u64::from_str_radix(&first["size"].as_str().unwrap()[2..], 16).unwrap();
    assert!(size >= 65536 && size.is_multiple_of(65536), "{size}");
    assert_eq!(first["data"].as_str().unwrap().len(), 128);
    // The same bytes as the process has there.
    let base = u64::from_str_radix(&first["base"].as_str().unwrap()[2..], 16).unwrap();
    let own = wstate::process::Memory::read_vec(&lent.target, base, 64).unwrap();
    let own: String = own.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(first["data"], own);
    assert_eq!(error(&server.ask(Some(&lent), memory(size - 1, 2))).0, "not_found");
    assert_eq!(error(&server.ask(Some(&lent), memory(u64::MAX, 2))).0, "not_found");
    assert_eq!(error(&server.ask(Some(&lent), memory(0, 1 << 40))).0, "malformed");
    server.end();
}

#[test]
fn the_wat_around_a_frame() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let (lent, tid) = (Lent::of(&host), host.tid());
    let file = host.directory.path().join("guest.wasm");
    let dumped = Host::start("sleep", &["--dump-wasm", file.to_str().unwrap()], Profile::Debug);
    drop(dumped);
    let mut server = Server::start();
    let list = json!({"op": "list", "thread": tid, "count": 3});
    assert!(error(&server.ask(Some(&lent), list.clone())).1.contains(".wasm file"));
    server.get(&lent, json!({"op": "configure", "wasm": [file]}));
    let text = server.get(&lent, list)["text"].as_str().unwrap().to_string();
    assert!(text.lines().count() == 3 && text.contains("=>") && text.contains("call"), "{text}");
    server.get(&lent, json!({"op": "configure", "wasm": ["/no/such.wasm"]}));
    // A file that cannot be read is told, and the report is there.
    let walked = server.get(&lent, json!({"op": "walk"}));
    let told = walked["report"]["notes"].as_array().is_some_and(|notes| {
        notes.iter().any(|n| n.as_str().is_some_and(|n| n.starts_with("/no/such.wasm is not used: it cannot be read")))
    });
    assert!(told, "{:?}", walked["report"]["notes"]);
    server.end();
}

#[test]
fn nonsense_is_answered_and_does_no_harm() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let lent = Lent::of(&host);
    let mut server = Server::start();
    for line in [&b"{"[..], b"", b"\xff\xfe", b"[]", b"7", b"{\"id\": 5}", b"{\"id\": {}, \"op\": \"hello\"}"] {
        server.send(line);
        let answer = server.receive();
        assert!(["malformed", "version"].contains(&error(&answer).0), "{answer:?}");
    }
    for (request, kind) in [
        (json!({"op": "dance"}), "unsupported"),
        (json!({"op": 7}), "unsupported"),
        (json!({"op": "hello"}), "version"),
        (json!({"op": "hello", "protocol": 99}), "version"),
        (json!({"op": "walk", "threads": "all"}), "malformed"),
        (json!({"op": "walk", "threads": [-1]}), "malformed"),
        (json!({"op": "walk", "threads": []}), "malformed"),
        (json!({"op": "walk", "threads": [1]}), "not_found"),
        (json!({"op": "walk", "limit": "many"}), "malformed"),
        (json!({"op": "frame"}), "malformed"),
        (json!({"op": "memory", "address": 0}), "malformed"),
        (json!({"op": "configure", "wasm": "a.wasm"}), "malformed"),
    ] {
        let answer = server.ask(Some(&lent), request.clone());
        assert_eq!(error(&answer).0, kind, "{request}: {answer:?}");
    }
    server.get(&lent, json!({"op": "walk", "threads": [host.tid()]}));
    server.end();
}

#[test]
fn a_debugger_that_lends_little_gets_little() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let lent = Lent { memory: false, ..Lent::of(&host) };
    let mut server = Server::start();
    let walk = server.get(&lent, json!({"op": "walk", "threads": [host.tid()]}));
    let text = walk["text"].as_str().unwrap();
    assert!(text.contains("#0") && text.contains("lost"), "{text}");
    // With memory again, after the target ran.
    let lent = Lent::of(&host);
    server.get(&lent, json!({"op": "resumed"}));
    let walk = server.get(&lent, json!({"op": "walk", "threads": [host.tid()]}));
    assert!(walk["text"].as_str().unwrap().contains("bottom of the stack"));
    server.end();
}

#[test]
fn a_debugger_that_answers_nonsense_or_goes_away_ends_nothing_but_the_request() {
    let mut server = Server::start();
    server.send(br#"{"id": 50, "op": "walk"}"#);
    assert_eq!(server.receive()["op"], "describe");
    server.send(br#"{"id": 51, "op": "modules"}"#);
    assert_eq!(error(&server.receive()).0, "busy");
    server.send(br#"{"reply": 1, "error": "no process"}"#);
    let answer = server.receive();
    assert_eq!((&answer["id"], error(&answer).0), (&json!(50), "failed"));
    server.send(br#"{"id": 52, "op": "walk"}"#);
    server.receive();
    server.send(br#"{"reply": 2, "threads": [{"tid": 1}], "maps": 5, "auxv": "x"}"#);
    assert_eq!(server.receive()["op"], "registers");
    server.send(br#"{"reply": 3, "registers": "none"}"#);
    let answer = server.receive();
    assert_eq!((&answer["id"], &answer["ok"]), (&json!(52), &json!(true)));
    server.send(br#"{"id": 53, "op": "resumed"}"#);
    server.receive();
    server.send(br#"{"id": 54, "op": "walk"}"#);
    // In the middle of a call the debugger is gone.
    server.end();
}

#[test]
fn a_symbol_file_is_written_again_only_where_the_code_changed() {
    let host = Host::start("sleep", &[], Profile::Debug);
    let lent = Lent::of(&host);
    let mut server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let symbols = json!({"op": "symbols", "directory": directory.path()});
    let first = server.get(&lent, symbols.clone())["files"].clone();
    let path = first[0]["path"].as_str().unwrap().to_string();
    assert!(std::fs::read(&path).unwrap().starts_with(b"\x7fELF"));
    let address = first[0]["address"].as_str().unwrap();
    let address = u64::from_str_radix(address.strip_prefix("0x").unwrap(), 16).unwrap();
    assert!(lent.target.mapping_at(address).is_some_and(|m| m.execute && m.is_anonymous()), "{address:#x}");
    server.get(&lent, json!({"op": "resumed"}));
    assert_eq!(server.get(&lent, symbols.clone())["files"], first);
    // Another process: other code, another name.
    let other = Host::start("nested", &[], Profile::Debug);
    let lent = Lent::of(&other);
    server.get(&lent, json!({"op": "resumed"}));
    let second = server.get(&lent, symbols)["files"].clone();
    assert_ne!(second[0]["path"], first[0]["path"]);
    assert_eq!(error(&server.ask(Some(&lent), json!({"op": "symbols"}))).0, "malformed");
    assert_eq!(error(&server.ask(Some(&lent), json!({"op": "symbols", "directory": "relative"}))).0, "malformed");
    server.end();
}
