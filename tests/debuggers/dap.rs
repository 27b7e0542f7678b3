//! Symbol files over the Debug Adapter Protocol, as editors see them: lldb-dap on a live host.

use crate::support::debuggers::{arg, at_rest, missing};
use crate::support::{Host, NoCore, PATIENCE, Profile, wstate};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

/// The adapter. It was called lldb-vscode before lldb 18.
fn adapter() -> Option<PathBuf> {
    let names = ["lldb-dap-19", "lldb-dap", "lldb-dap-18", "lldb-vscode-16", "lldb-vscode"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &&str| std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.exists());
    let found = names.iter().find_map(there);
    if found.is_none() {
        missing(&NoCore(format!("{} is not installed", names[0])));
    }
    found
}

/// An adapter that was started for one session. Dropping it ends it.
struct Session {
    child: Child,
    stdin: ChildStdin,
    received: mpsc::Receiver<Value>,
    sequence: u64,
    /// Events and answers, for the message of a failure.
    log: Vec<String>,
}

/// The next message: headers, an empty line, as many bytes of JSON as `Content-Length` says.
fn message(stream: &mut impl BufRead) -> io::Result<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(number) = line.strip_prefix("Content-Length:") {
            length = number.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut bytes = Vec::new();
    stream.take(length).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

impl Session {
    fn start(adapter: &Path, home: &Path) -> Session {
        let mut child = Command::new(adapter)
            .env("HOME", home)
            .env_remove("DEBUGINFOD_URLS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the adapter starts");
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let (send, received) = mpsc::channel();
        thread::spawn(move || while message(&mut stdout).is_ok_and(|m| send.send(m).is_ok()) {});
        Session { child, stdin, received, sequence: 0, log: Vec::new() }
    }

    /// The first message that fits; those before it are only logged.
    fn wait(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.received.recv_timeout(left);
            let message = message.unwrap_or_else(|e| panic!("no {what}: {e}\n{}", self.log.join("\n")));
            self.log.push(message.to_string());
            if fits(&message) {
                return message;
            }
        }
    }

    fn event(&mut self, name: &str) -> Value {
        self.wait(name, |m| m["type"] == "event" && m["event"] == name)
    }

    fn send(&mut self, command: &str, arguments: Value) -> u64 {
        self.sequence += 1;
        let request = json!({
            "seq": self.sequence, "type": "request", "command": command, "arguments": arguments
        })
        .to_string();
        write!(self.stdin, "Content-Length: {}\r\n\r\n{request}", request.len()).expect("the adapter listens");
        self.stdin.flush().expect("the adapter listens");
        self.sequence
    }

    /// The body of the answer to a request, which must succeed.
    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let sequence = self.send(command, arguments);
        let mut answer = self.wait(command, |m| m["type"] == "response" && m["request_seq"] == sequence);
        assert_eq!(answer["success"], true, "{answer}\n{}", self.log.join("\n"));
        answer["body"].take()
    }

    /// The stack of a thread that is stopped. Pages of 20, as VS Code asks for them.
    fn stack(&mut self, thread: i32) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let page = json!({ "threadId": thread, "startFrame": all.len(), "levels": 20 });
            let mut body = self.ask("stackTrace", page);
            let Some(frames) = body["stackFrames"].as_array_mut() else { panic!("{body}") };
            let last = frames.len() < 20;
            all.append(frames);
            if last {
                return all;
            }
        }
    }

    /// Name and value of what a reference stands for, and what is inside of each.
    fn variables(&mut self, reference: &Value) -> HashMap<String, String> {
        let mut out = HashMap::new();
        let body = self.ask("variables", json!({ "variablesReference": reference }));
        for variable in body["variables"].as_array().expect("variables") {
            let name = variable["name"].as_str().expect("a name").to_string();
            if variable["variablesReference"].as_u64().is_some_and(|r| r != 0) {
                let inside = self.variables(&variable["variablesReference"]);
                out.extend(inside.into_iter().map(|(n, v)| (format!("{name}.{n}"), v)));
            } else {
                out.insert(name, variable["value"].as_str().expect("a value").to_string());
            }
        }
        out
    }

    /// The scope `Locals` of a frame: parameters are in it.
    fn locals(&mut self, frame: &Value) -> HashMap<String, String> {
        let body = self.ask("scopes", json!({ "frameId": frame["id"] }));
        let scopes = body["scopes"].as_array().expect("scopes");
        let locals = scopes.iter().find(|s| s["name"] == "Locals").unwrap_or_else(|| panic!("{body}"));
        self.variables(&locals["variablesReference"])
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The name of a frame's function. Some versions put the arguments behind it.
fn name(frame: &Value) -> &str {
    let name = frame["name"].as_str().unwrap_or_default();
    name.split('(').next().unwrap_or(name)
}

/// What is in an editor at `sleep` after a session began as `attach` says.
fn shown(adapter: &Path, attach: impl FnOnce(&Host, &Path) -> Value) {
    let wasm = tempfile::Builder::new().suffix(".wasm").tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut host = Host::start("sleep", &["--dump-wasm", arg(wasm.path())], Profile::Debug);
    at_rest(&host);
    let file = host.directory.path().join("wasm.sym");
    let pid = host.pid().to_string();
    let output = wstate(&["symbols", "-p", &pid, "--wasm", arg(wasm.path()), "-o", arg(&file)]);
    assert!(output.status.success(), "{output:?}");

    let mut session = Session::start(adapter, host.directory.path());
    session.ask("initialize", json!({ "adapterID": "lldb-dap", "linesStartAt1": true, "columnsStartAt1": true }));
    let attach = session.send("attach", attach(&host, &file));
    session.event("initialized");
    session.send("configurationDone", json!({}));
    let stopped = session.event("stopped");
    assert!(
        !session.log.iter().any(|l| l.contains("\"success\":false")),
        "request {attach} or its neighbour failed:\n{}",
        session.log.join("\n")
    );
    assert_eq!(stopped["body"]["allThreadsStopped"], true, "{stopped}");

    let threads = session.ask("threads", json!({}));
    let ids: Vec<i64> = threads["threads"].as_array().unwrap().iter().filter_map(|t| t["id"].as_i64()).collect();
    assert!(ids.contains(&host.tid().into()), "{threads}");

    let stack = session.stack(host.tid());
    let names: Vec<&str> = stack.iter().map(name).collect();
    let wanted =
        ["host_stop_import", "leaf", "fact", "fact", "fact", "fact", "fact", "fact", "run", "call_wasm_trampoline"];
    let at = names.windows(wanted.len()).position(|n| n == wanted).unwrap_or_else(|| panic!("{names:#?}"));
    assert!(at > 0 && names[at + wanted.len()..].contains(&"main"), "{names:#?}");
    assert_eq!(names.last(), Some(&"_start"), "{names:#?}");

    let leaf = &stack[at + 1];
    let text = leaf["source"]["path"].as_str().unwrap_or_else(|| panic!("{leaf}"));
    let text = std::fs::read_to_string(text).unwrap();
    let line = text.lines().nth(leaf["line"].as_u64().unwrap() as usize - 1).unwrap();
    assert_eq!(line.trim(), "call $stop");

    let locals = session.locals(leaf);
    let known = |locals: &HashMap<String, String>, wanted: &[(&str, String)]| {
        for (name, value) in wanted {
            assert_eq!(locals.get(*name), Some(value), "{name} in {locals:?}");
        }
    };
    let s = 0x1111_1111_1111_1111_u64;
    known(&locals, &[("n", "9".into()), ("s", s.to_string()), ("d", "3.25".into())]);
    known(&locals, &[("x", "333".into()), ("y", "444".into())]);
    let operands = [("wasm_stack.s0", "340"), ("wasm_stack.s1", "4.25"), ("wasm_stack.s2", "99")];
    known(&locals, &operands.map(|(n, v)| (n, v.into())));
    for n in 0..=5u64 {
        let locals = session.locals(&stack[at + 2 + n as usize]);
        known(&locals, &[("n", n.to_string()), ("m", (n * 0x0101_0101_0101_0101).to_string())]);
    }

    session.ask("disconnect", json!({ "terminateDebuggee": false }));
    drop(session);
    assert!(host.is_alive());
}

fn load(file: &Path) -> Value {
    let file = file.display();
    json!([format!("target modules add \"{file}\""), format!("target modules load --file \"{file}\" --slide 0")])
}

#[test]
fn an_editor_shows_a_process_it_attached_to() {
    let Some(adapter) = adapter() else { return };
    shown(
        &adapter,
        |host, file| json!({ "program": arg(&host.exe), "pid": host.pid(), "stopOnEntry": true, "postRunCommands": load(file) }),
    );
}

#[test]
fn an_editor_shows_a_process_that_commands_attached_to() {
    let Some(adapter) = adapter() else { return };
    shown(&adapter, |host, file| {
        json!({
            "initCommands": ["settings set target.load-cwd-lldbinit false"],
            "attachCommands": [format!("process attach --pid {}", host.pid())],
            "stopOnEntry": true,
            "postRunCommands": load(file),
        })
    });
}
