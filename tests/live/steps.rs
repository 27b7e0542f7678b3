//! Every instruction of compiled code, one after the other: the callers and their registers, compared with what was seen of
//! the calls themselves.
//!
//! The guests (`support/shapes.rs`) have every shape that compilers give to the beginning and the end of a function. What is
//! right is known from the instructions that were executed: each call is noted with the registers before it, each return and
//! each exception takes some off.
//!
//! `WSTATE_STEP_HOST="COMMAND.."` steps another host instead, which gets the guest's file as its last argument, says
//! `READY pid= tid=` when the guest runs and ends with its input: `tests/tools/foreign/spin.py`. `WSTATE_STEP_FEATURES` are its
//! features (large, multi_value, tail_calls, exceptions, bulk_memory), `WSTATE_STEPS` how many instructions.

use crate::support::shapes::{Features, guest};
use crate::support::traced::Traced;
use crate::support::{Host, Profile, Version, host_wasmtime, work_directory};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use wstate::arch::{CodeAddress, Machine, Reg, Registers, x64};
use wstate::process::objects::{Objects, SearchPaths};
use wstate::process::{Memory, Target};
use wstate::runtime::all::{FindOptions, Runtimes};
use wstate::runtime::{Provider, Runtime, Scene};
use wstate::unwind::cfi::CfiUnwinder;
use wstate::unwind::frame_pointer::FramePointerUnwinder;
use wstate::unwind::{Cursor, Trust, Unwinder, walk};

/// Registers that a callee has to give back, and the stack pointer.
const KEPT: [Reg; 7] = [x64::RSP, x64::RBP, x64::RBX, x64::R12, x64::R13, x64::R14, x64::R15];

/// A call that has not returned.
struct Call {
    returns: u64,
    /// The caller's registers before it; nothing is known of the calls before the first step.
    registers: Registers,
}

/// What was found.
#[derive(Default)]
struct Count {
    steps: usize,
    frames: usize,
    right: usize,
    unknown: BTreeMap<&'static str, usize>,
    /// By what was wrong and where: how often.
    wrong: BTreeMap<String, usize>,
    /// Offsets of instructions in the code, and what ended functions.
    seen: BTreeSet<u64>,
    ends: BTreeMap<String, usize>,
}

impl Count {
    fn row(&self, name: &str) -> String {
        let unknown: Vec<String> = self.unknown.iter().map(|(what, n)| format!("{what} {n}")).collect();
        format!(
            "{name:40} instructions {:6} ({:5} different)  frames {:7}  registers right {:7} unknown [{}] wrong {}",
            self.steps,
            self.seen.len(),
            self.frames,
            self.right,
            unknown.join(", "),
            self.wrong.values().sum::<usize>()
        )
    }

    fn all_right(&self, name: &str) {
        println!("{}\n    ends: {:?}", self.row(name), self.ends);
        let list: Vec<String> = self.wrong.iter().take(40).map(|(what, n)| format!("  {n:5} x {what}")).collect();
        assert!(list.is_empty(), "{name}: {} kinds of wrong\n{}", self.wrong.len(), list.join("\n"));
    }
}

fn decode(target: &Traced, pc: u64) -> Option<Instruction> {
    let mut bytes = [0; 15];
    let len = target.read_some(pc, &mut bytes);
    let instruction = Decoder::with_ip(64, &bytes[..len], pc, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// Steps thread `tid` through `steps` instructions of compiled code.
fn step(pid: u32, tid: u32, steps: usize) -> Count {
    let target = Traced::seize(pid, tid);
    let objects = Objects::load(&target, &SearchPaths::default());
    let (cfi, recognised) = (CfiUnwinder::new(&objects), wstate::runtime::all::recognised());
    let frame_pointer = FramePointerUnwinder::new(target.mappings());
    let mut runtimes = Runtimes::new(&FindOptions::default());
    let mut count = Count::default();

    // To where only the oldest Wasm function is on the stack: what it returns to is known by its frame.
    let in_mapping = |pc: u64| target.mapping_at(pc).is_some_and(|m| m.execute && objects.find(pc).is_none());
    for _ in 0..5_000_000 {
        if in_mapping(target.registers().pc().unwrap()) {
            break;
        }
        target.step();
    }
    let here = target.registers();
    let start = Cursor { address: CodeAddress::Exact(here.pc().unwrap()), registers: here };
    let scene = Scene { target: &target, objects: &objects, progress: &wstate::progress::Silent };
    assert!(runtimes.discover(&scene, std::slice::from_ref(&start), false) > 0, "a module");
    let runtime: &dyn Runtime = runtimes.runtime();
    // Names are asked of one that has walked through nothing: the other thinks about all frames of all walks.
    let mut unmoved = Runtimes::new(&FindOptions::default());
    unmoved.discover(&scene, std::slice::from_ref(&start), false);
    let unmoved: &dyn Runtime = unmoved.runtime();
    // The name of the function at a place, and how far from its beginning that is.
    let places: RefCell<HashMap<u64, (String, Option<u64>)>> = RefCell::default();
    let place = |pc: u64| {
        let describe = || {
            let at = Cursor { address: CodeAddress::Exact(pc), registers: Registers::unknown(Machine::X64) };
            let frame = unmoved.describe(&at, &target).pop();
            let offset = frame.as_ref().and_then(|f| f.function_offset);
            (frame.and_then(|f| f.name).map(|(name, _)| name).unwrap_or_default(), offset)
        };
        places.borrow_mut().entry(pc).or_insert_with(describe).clone()
    };
    let name_at = |pc: u64| place(pc).0;
    let begins = |pc: u64| place(pc).1;
    let compiled = |pc: u64| runtime.module_of(pc).is_some();
    for n in 0.. {
        assert!(n < 20_000_000, "the guest comes back to `run`");
        let registers = target.registers();
        let pc = registers.pc().unwrap();
        if compiled(pc) && name_at(pc) == "run" && decode(&target, pc).is_some_and(|i| is_call(&i)) {
            break;
        }
        target.step();
    }
    let registers = target.registers();
    let mut frame = registers.get(x64::RBP).unwrap();
    let mut calls = Vec::new();
    // The oldest function, and what called it as long as it is compiled code.
    loop {
        let returns = target.read_u64(frame + 8).unwrap();
        calls.insert(0, Call { returns, registers: Registers::unknown(Machine::X64) });
        frame = target.read_u64(frame).unwrap();
        if !compiled(returns - 1) || target.mapping_at(frame).is_none() {
            break;
        }
    }
    let mut in_native = 0usize;
    let mut total = 0usize;
    while count.steps < steps {
        total += 1;
        assert!(total < 400 * steps + 10_000_000, "the guest comes back from the host");
        let registers = target.registers();
        let pc = registers.pc().unwrap();
        let inside = compiled(pc);
        in_native = if inside { 0 } else { in_native + 1 };
        // In the host: the first instructions, and some of the others.
        let check = inside || in_native < 40 || in_native.is_multiple_of(97);
        if check {
            let start = Cursor { address: CodeAddress::Exact(pc), registers: registers.clone() };
            let unwinders: [&dyn Unwinder; 4] = [runtime, &cfi, &recognised, &frame_pointer];
            let limit = calls.len() + if inside { 2 } else { 400 };
            let stack = walk(start, &unwinders, &target, limit);
            let what = || {
                let offset = begins(pc).map_or(String::new(), |o| format!("+{o:#x}"));
                let i = decode(&target, pc).map_or("?".into(), |i| format!("{:?}", i.code()));
                format!("in {}{offset} ({i})", name_at(pc))
            };
            let mut wrong = |why: String| *count.wrong.entry(why).or_default() += 1;
            let found: Vec<&wstate::unwind::Frame> =
                stack.frames.iter().filter(|f| inside || compiled(f.cursor.address.lookup())).collect();
            let mine: Vec<(u64, Option<&Registers>)> = if inside {
                let mut mine = vec![(pc, None)];
                mine.extend(calls.iter().rev().map(|c| (c.returns, Some(&c.registers))));
                mine
            } else {
                calls
                    .iter()
                    .rev()
                    .filter(|c| compiled(c.returns - 1))
                    .map(|c| (c.returns, Some(&c.registers)))
                    .collect()
            };
            let pcs = |list: &[u64]| list.iter().map(|pc| name_at(pc - 1)).collect::<Vec<_>>().join(" <- ");
            let theirs: Vec<u64> = found.iter().map(|f| f.cursor.address.raw()).take(mine.len()).collect();
            let expected: Vec<u64> = mine.iter().map(|(pc, _)| *pc).collect();
            if theirs != expected {
                let native = if inside { "" } else { " (in the host)" };
                wrong(format!("{}{native}: {} instead of {}, {:?}", what(), pcs(&theirs), pcs(&expected), stack.end));
            }
            for (frame, (_, registers)) in found.iter().zip(&mine) {
                count.frames += 1;
                let Some(registers) = registers else { continue };
                if matches!(frame.trust, Trust::FramePointer | Trust::Scan) && inside {
                    wrong(format!("{}: found by {:?}", what(), frame.trust));
                }
                for reg in KEPT {
                    let Some(truth) = registers.get(reg) else { continue };
                    match frame.cursor.registers.get(reg) {
                        Some(value) if value == truth => count.right += 1,
                        Some(value) => wrong(format!(
                            "{}: {} of the caller {} off by {:#x}",
                            what(),
                            reg.name(),
                            name_at(frame.cursor.address.lookup()),
                            value.wrapping_sub(truth).cast_signed()
                        )),
                        None => *count.unknown.entry(reg.name()).or_default() += 1,
                    }
                }
            }
        }
        let instruction = decode(&target, pc);
        target.step();
        let now = target.registers();
        let to = now.pc().unwrap();
        if inside {
            count.steps += 1;
            count.seen.insert(pc);
        }
        let Some(i) = instruction else { continue };
        match i.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall if i.mnemonic() != Mnemonic::Syscall => {
                calls.push(Call { returns: i.next_ip(), registers });
            }
            FlowControl::Return => {
                let call = calls.pop().expect("a return has a call");
                assert_eq!(call.returns, to, "a return goes to where the call was");
                if inside {
                    *count.ends.entry(format!("{:?}", i.code())).or_default() += 1;
                }
            }
            FlowControl::IndirectBranch | FlowControl::UnconditionalBranch => {
                if inside && compiled(to) && begins(to) == Some(0) {
                    *count.ends.entry(format!("tail call by {:?}", i.code())).or_default() += 1;
                }
                if !inside && compiled(to) && begins(to) != Some(0) {
                    // An exception: the frame that it goes on in made one of the calls.
                    let frame = now.get(x64::RBP);
                    while let Some(call) = calls.pop() {
                        if compiled(call.returns - 1) && call.registers.get(x64::RBP) == frame {
                            break;
                        }
                    }
                    *count.ends.entry("exception".into()).or_default() += 1;
                }
            }
            _ => {}
        }
        if inside && i.mnemonic() == Mnemonic::Mov && i.op0_register() == Register::RBP && begins(pc) > Some(4) {
            *count.ends.entry(format!("rbp moved from {:?}", i.op1_register())).or_default() += 1;
        }
    }
    count
}

fn is_call(i: &Instruction) -> bool {
    matches!(i.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}

fn write(features: Features, to: &Path) {
    let text = guest(features);
    std::fs::write(to, wat::parse_str(&text).unwrap_or_else(|e| panic!("{e}"))).unwrap();
}

/// The number of instructions where nothing else is asked for.
fn steps() -> usize {
    std::env::var("WSTATE_STEPS").ok().and_then(|n| n.parse().ok()).unwrap_or(6_000)
}

fn wasmtime(version: Version, features: Features, flags: &[&str]) -> Count {
    let scratch = work_directory();
    let file = scratch.path().join("shapes.wasm");
    write(features, &file);
    let file = file.to_str().unwrap();
    let flags = [&["--wasm", file, "--call", "run", "--stop-after", "1"], flags].concat();
    let mut host = Host::start_exe(host_wasmtime(version, Profile::Release), "wasm", &flags);
    let count = step(host.pid() as u32, host.tid() as u32, steps());
    assert!(host.is_alive());
    count
}

const ALL: Features =
    Features { large: true, multi_value: true, tail_calls: true, exceptions: false, bulk_memory: true };

#[test]
fn wasmtime_is_right_at_every_instruction() {
    if std::env::var_os("WSTATE_STEP_HOST").is_some() {
        return;
    }
    for version in Version::ALL {
        for flags in [&[][..], &["--unwind-info", "off"], &["--opt", "none"]] {
            let count = wasmtime(version, ALL, flags);
            count.all_right(&format!("{version:?} {flags:?}"));
            for shape in
                ["Retnq", "Retnq_imm16", "tail call by Jmp_rel32_64", "tail call by Jmp_rm64", "rbp moved from RSP"]
            {
                assert!(
                    count.ends.get(shape).is_some_and(|n| *n > 4),
                    "{version:?}: too few {shape}: {:?}",
                    count.ends
                );
            }
        }
    }
}

#[test]
fn another_host_is_right_at_every_instruction() {
    let Some(command) = std::env::var("WSTATE_STEP_HOST").ok() else { return };
    let wanted = std::env::var("WSTATE_STEP_FEATURES").unwrap_or_default();
    let has = |name: &str| wanted.split(',').any(|w| w == name);
    let features = Features {
        large: has("large"),
        multi_value: has("multi_value"),
        tail_calls: has("tail_calls"),
        exceptions: has("exceptions"),
        bulk_memory: has("bulk_memory"),
    };
    let scratch = work_directory();
    let file = scratch.path().join("shapes.wasm");
    write(features, &file);
    let mut words = command.split(' ');
    let mut host = std::process::Command::new(words.next().unwrap());
    host.args(words).arg(&file).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut host = host.spawn().unwrap_or_else(|e| panic!("{command}: {e}"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(host.stdout.take().unwrap()), &mut line).unwrap();
    let word = |key: &str| line.split_whitespace().find_map(|w| w.strip_prefix(key)?.parse::<u32>().ok());
    let (Some(pid), Some(tid)) = (word("pid="), word("tid=")) else { panic!("{command}: {line:?}") };
    let count = step(pid, tid, steps());
    let _ = host.kill();
    let _ = host.wait();
    count.all_right(&command);
}
