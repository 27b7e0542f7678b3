//! Processes that run WebAssembly in engines whose frames cannot be shown: each is named, with what was seen, and nothing is
//! said of runtimes that are not there. The programs are made of an engine's marks alone, and stripped; that the marks are
//! those of the engines themselves was seen in Node.js 20 to 24, Deno 2.9, Bun 1.4, libmozjs 102, libjavascriptcoregtk 2.50,
//! wasmer-sdk 0.5 and wasm3 0.5; the strings of wasmi 1.1 and wasm-interp 1.0 are those of their files.

use crate::support;
use crate::support::{wstate, wstate_json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use wstate::runtime::engines::Engine;

/// An engine, a symbol that it exports, a string of it, and how its library is called.
type Mark = (Engine, Option<&'static str>, Option<&'static str>, Option<&'static str>);
const MARKS: [Mark; 12] = [
    (Engine::V8, Some("v8dbg_SmiTag"), Some("disabled-by-default-v8.wasm.turbofan"), Some("libnode.so.108")),
    (
        Engine::JavaScriptCore,
        Some("JSGlobalContextCreate"),
        Some("JSC_useWasmOSR"),
        Some("libjavascriptcoregtk-4.1.so.0"),
    ),
    (
        Engine::SpiderMonkey,
        Some("_Z27JS_GetImplementationVersionv"),
        Some("js::wasm::Init() failed"),
        Some("libmozjs-102.so.102"),
    ),
    (Engine::Wasmer, Some("wasmer_vm_raise_trap"), Some("wasmer-compiler-4.4.0/src/lib.rs"), Some("libwasmer.so")),
    (
        Engine::Wamr,
        Some("wasm_runtime_full_init"),
        Some("warning: wasm_runtime_malloc with size zero"),
        Some("libiwasm.so"),
    ),
    (Engine::WasmEdge, Some("WasmEdge_VersionGet"), None, Some("libwasmedge.so.0")),
    (Engine::Wasmi, None, Some("/registry/src/index-0123456789abcdef/wasmi-1.1.0/src/engine.rs"), None),
    (Engine::Wasm3, Some("m3_NewRuntime"), Some("missing init_expr in Wasm binary"), Some("libwasm3.so")),
    (Engine::Wabt, None, Some("const T& wabt::interp::FreeList<T>::Get"), None),
    (Engine::Wazero, None, Some("github.com/tetratelabs/wazero/internal/engine/wazevo.x"), None),
    (Engine::Wasmtime, Some("wasmtime_store_new"), Some("wasmtime-20.0.1/src/lib.rs"), Some("_libwasmtime.so")),
    (Engine::Singlepass, None, Some("wasmer-runtime-core-near-0.18.3/src/lib.rs"), None),
];

/// Strings that look like marks and are none.
const LOOK_ALIKES: [&str; 8] = [
    "wasmi-tools/src/lib.rs",
    "wasmi-1.1.0.tar.gz",
    "wasm32-unknown-unknown",
    "/home/x/wasmer-plugin/src/lib.rs",
    "checkouts/wasmer-plugin/0123456/src",
    "libwasmedge.so",
    "wasmtime-20.0.1.crate",
    "V8 JavaScriptCore SpiderMonkey wasm3 wazero WasmEdge",
];

struct Program {
    child: Child,
    path: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn compile(directory: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let (from, to) = (directory.join(format!("{name}.c")), directory.join(name));
    std::fs::write(&from, source).unwrap();
    let status = Command::new("cc").args(["-O1", "-s", "-o"]).arg(&to).arg(&from).args(flags).status();
    assert!(status.expect("cc starts").success(), "{name}");
    to
}

fn start(path: PathBuf) -> Program {
    let mut child = Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "READY\n");
    Program { child, path }
}

/// A program that says READY and waits, with these strings and exported symbols.
fn run(directory: &Path, name: &str, symbols: &[&str], strings: &[&str]) -> Program {
    let exported: String = symbols.iter().map(|s| format!("int {s} = 1;\n")).collect();
    let constants: String = strings.iter().map(|s| format!("  {s:?},\n")).collect();
    let source = format!(
        "#include <stdio.h>\n{exported}static const char *const strings[] = {{\n{constants}  0 }};\n\
         int main(int argc, char **argv) {{\n  puts(strings[0] && argc > 99 ? strings[argc] : \"READY\");\n  \
         fflush(stdout);\n  return getchar();\n}}\n"
    );
    start(compile(directory, name, &source, &["-rdynamic"]))
}

/// What `attach --json` names, as (name, sure).
fn named(pid: u32) -> Vec<(String, bool)> {
    let (_, report) = wstate_json(&["attach", &pid.to_string()]);
    assert!(report["runtimes"].as_array().unwrap().is_empty());
    let engines = report["engines"].as_array().unwrap();
    engines.iter().map(|e| (e["name"].as_str().unwrap().to_string(), e["sure"].as_bool().unwrap())).collect()
}

#[test]
fn every_engine_is_named_by_each_of_its_marks() {
    let directory = tempfile::tempdir().unwrap();
    let mut untested = Engine::ALL.to_vec();
    for (engine, symbol, string, _) in MARKS {
        untested.retain(|e| *e != engine);
        for (sure, symbols, strings) in [(true, symbol.as_slice(), &[][..]), (false, &[], string.as_slice())] {
            if symbols.is_empty() && strings.is_empty() {
                continue;
            }
            let program = run(directory.path(), &format!("{engine:?}-{sure}"), symbols, strings);
            assert_eq!(named(program.child.id()), [(engine.to_string(), sure)]);
            let out = wstate(&["attach", &program.child.id().to_string()]);
            let text = String::from_utf8(out.stdout).unwrap();
            let (verb, why) = (
                if sure { "contains" } else { "seems to contain" },
                if engine.is_supported() {
                    "no module of it was found"
                } else {
                    "its Wasm frames are not supported yet"
                },
            );
            let line = text.lines().find(|l| l.starts_with("note: the process ")).expect("a note");
            assert!(line.starts_with(&format!("note: the process {verb} {engine} (")), "{line}");
            assert!(line.ends_with(&format!("): {why}")), "{line}");
            assert!(text.contains("no Wasm module found"), "{text}");
            let singlepass = ["vmctx:", "heap:", "tls:", "descriptor:"];
            assert!(engine == Engine::Singlepass || !singlepass.iter().any(|s| text.contains(s)), "{text}");
        }
    }
    assert!(untested.is_empty(), "{untested:?}");
}

/// A process that runs wstate has none of them.
#[test]
fn wstate_itself_is_no_engine() {
    let mut child = support::wstate_command(&["serve", "--stdio"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"?\n").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let engines = named(child.id());
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(engines, []);
}

#[test]
fn what_only_looks_like_a_mark_is_none() {
    let directory = tempfile::tempdir().unwrap();
    // Bun exports V8's interface and has another engine inside.
    let program = run(directory.path(), "look-alike", &["_ZN2v87Isolate10GetCurrentEv"], &LOOK_ALIKES);
    assert_eq!(named(program.child.id()), []);
    // A symbol that is only used is no engine: a program that would load one.
    let source = "#include <stdio.h>\nextern int m3_NewRuntime __attribute__((weak));\n\
                  int main() { puts(&m3_NewRuntime ? \"?\" : \"READY\"); fflush(stdout); return getchar(); }\n";
    let program = start(compile(directory.path(), "user", source, &["-rdynamic", "-fPIE", "-pie"]));
    assert_eq!(named(program.child.id()), []);
}

/// In a core whose libraries are not here their names are all there is.
#[test]
fn a_library_that_is_not_here_is_named_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    for (engine, _, _, library) in MARKS {
        let Some(library) = library else { continue };
        let own = directory.path().join(format!("{engine:?}"));
        std::fs::create_dir(&own).unwrap();
        let built = compile(&own, library, "int answer(void) { return 42; }\n", &["-shared", "-fPIC"]);
        let source = "#include <stdio.h>\nint answer(void);\n\
                      int main() { puts(answer() == 42 ? \"READY\" : \"?\"); fflush(stdout); return getchar(); }\n";
        let path = own.to_str().unwrap();
        let program = compile(&own, "user", source, &[built.to_str().unwrap(), "-Wl,-rpath", path]);
        let program = start(program);
        let core = own.join("core");
        let mut gcore = Command::new("gcore");
        gcore.arg("-o").arg(&core).arg(program.child.id().to_string()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(gcore.status().expect("gcore starts").success());
        let core = own.join(format!("core.{}", program.child.id()));
        std::fs::remove_file(&built).unwrap();
        let (_, report) = wstate_json(&["core", core.to_str().unwrap(), program.path.to_str().unwrap()]);
        let engines = report["engines"].as_array().unwrap();
        let told: Vec<_> =
            engines.iter().map(|e| (e["name"].as_str().unwrap(), e["evidence"].as_str().unwrap())).collect();
        assert_eq!(told, [(engine.as_str(), format!("a file called {library} is mapped").as_str())]);
    }
}
