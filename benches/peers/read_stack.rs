//! Our `read_stack` beside the runtime's own on the same words, in this process: a stack of a real guest in real state maps,
//! once with few steps to each state, once with a long chain of differences.

use crate::support::{Host, Profile};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use wasmer_runtime_core_near as rt;
use wasmer_singlepass_backend_near::SinglePassCompiler;
use wstate::state as ours;
use wstate::state::resume::{StackSpec, resume_stack};

const DEPTH: usize = 10_000;
const ROUNDS: usize = 15;
/// What the oldest frame returns to: no code of the module.
const OUTSIDE: u64 = 8;

/// A recursion whose frames stop behind `before` calls and as many changes of the state.
fn guest(before: usize) -> String {
    let steps =
        "(local.set $t (i64.add (local.get $t) (i64.mul (call $same (local.get $t)) (i64.const 3))))".repeat(before);
    format!(
        r#"(module
  (import "env" "stop" (func $stop))
  (func $same (param i64) (result i64) (local.get 0))
  (func $down (param $n i32) (result i32) (local $t i64)
    {steps}
    (if (result i32) (i32.eqz (local.get $n))
      (then (call $stop) (i32.const 0))
      (else (i32.add (local.get $n) (call $down (i32.sub (local.get $n) (i32.const 1)))))))
  (func (export "run") (result i32) (call $down (i32.const {depth}))))"#,
        depth = DEPTH - 2,
    )
}

#[allow(unsafe_code)] // The runtime's own reads through a pointer.
fn compare(title: &str, before: usize) {
    let wasm = wat::parse_str(guest(before)).expect("a module");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("guest.wasm");
    std::fs::write(&path, &wasm).expect("a file");
    let call = ["--wasm", path.to_str().expect("text"), "--call", "run", "--stop-at", "env.stop"];
    let truth = Host::start("wasm", &call, Profile::ReleaseDebug).truth().expect("the runtime has an answer").image;
    let image = ours::ExecutionStateImage::from_bytes(&truth).expect("an image");
    assert_eq!(image.frames.len(), DEPTH);

    let config = rt::backend::CompilerConfig { track_state: true, ..Default::default() };
    let module = rt::compile_with_config(&wasm, &SinglePassCompiler::new(), config).expect("it compiles");
    let stop: fn() = || {};
    let mut env = rt::import::Namespace::new();
    env.insert("stop", rt::func!(stop));
    let mut imports = rt::import::ImportObject::new();
    imports.register("env", env);
    let instance = module.instantiate(&imports).expect("it links");
    let runnable = &instance.module.runnable_module;
    let map = runnable.get_module_state_map().expect("a state map");
    let base = runnable.get_code().expect("code").as_ptr() as usize;
    let encoded = borsh09::BorshSerialize::try_to_vec(&map).expect("it encodes");
    let our_map: ours::ModuleStateMap = ours::codec::decode_borsh(&encoded).expect("it decodes");

    // The frames on a stack in our own memory: the words are the runtime's (tests/library/state_differential/resume.rs).
    let place = |top| StackSpec {
        top,
        outer: [OUTSIDE, 0, 0],
        outer_rbp: 0,
        code_base: base as u64,
        vmctx: 0,
        registers: ours::KnownRegisters::UNKNOWN,
    };
    let mut memory = vec![0u64; DEPTH * 64];
    let top = memory.as_ptr() as u64 + memory.len() as u64 * 8;
    let built = resume_stack(&our_map, &image, &place(top), &mut |_| Some(0)).expect("the image fits");
    let from = memory.len() - built.words.len();
    memory[from..].copy_from_slice(&built.words);
    let stack = &memory[from..];

    let theirs = [rt::state::CodeVersion {
        baseline: true,
        msm: map,
        base,
        backend: "singlepass",
        runnable_module: runnable.clone(),
    }];
    let version = ours::CodeVersion { baseline: true, msm: Arc::new(our_map), base, backend: "singlepass".to_string() };
    let versions = [version];
    let start = built.start;
    // The runtime complains on standard error of each register that it does not know, which takes longer than its work. A
    // place on the stack counts more in both.
    let registers = built.registers.0.map(|known| known.or(Some(0)));
    // SAFETY: the stack ends in an address that is in no version.
    let read_theirs = || unsafe { rt::state::x64::read_stack(|| theirs.iter(), stack.as_ptr(), registers, None, None) };
    let read_ours = || {
        let mut word = |at: u64| stack.get((at.checked_sub(start)? / 8) as usize).copied();
        ours::read_stack(&versions, start, registers, None, None, None, &mut word).0
    };
    assert_eq!(bincode::serialize(&read_theirs()).expect("bytes"), truth, "the runtime reads what it read before");
    assert_eq!(read_ours().to_bytes().expect("bytes"), truth, "and so do we");

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        black_box(read_ours());
        ours.push(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        black_box(read_theirs());
        theirs.push(begin.elapsed().as_secs_f64());
    }
    let rate = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        DEPTH as f64 / times[times.len() / 2]
    };
    let (ours, theirs) = (rate(ours), rate(theirs));
    println!("{title:36} {ours:12.0} {theirs:12.0} {:8.2}", ours / theirs);
    println!("bar: at least as many as the runtime: {}", if ours >= theirs { "met" } else { "MISSED" });
}

pub fn run() {
    println!("read_stack, {DEPTH} frames, frames per second, medians of {ROUNDS} in turns:");
    println!("{:36} {:>12} {:>12} {:>8}", "", "ours", "runtime's", "ratio");
    compare("a state after few differences", 0);
    compare("a state after hundreds of them", 300);
    println!();
}
