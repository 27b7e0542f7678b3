//! Modules of one shape, made by a generator: other constants, names, data, order of functions. Each file goes to the module
//! that was made from it, or to none, in whatever order the files are named.

use crate::support::{Host, Profile, Version, host_singlepass, host_wasmtime, wstate};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Random numbers of a seed, so that a failure can be repeated (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }

    /// A constant that takes three bytes in the file: with others of its kind it leaves the shape as it is.
    fn constant(&mut self) -> u64 {
        10_000 + self.next(900_000)
    }
}

/// In what the modules of a set are different.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Constants of all functions.
    Constants,
    /// One constant of one function.
    OneConstant,
    /// One constant, of one byte.
    SmallConstant,
    /// The same two constants, in another order.
    Swapped,
    /// Two functions of one size have changed places.
    Order,
    /// Bytes of data.
    Data,
    /// The names of functions, and nothing else.
    Names,
}

const KINDS: [Kind; 7] =
    [Kind::Constants, Kind::OneConstant, Kind::SmallConstant, Kind::Swapped, Kind::Order, Kind::Data, Kind::Names];

/// A module without its custom sections.
fn without_names(wasm: &[u8]) -> Vec<u8> {
    let mut out = wasm[..8].to_vec();
    let mut at = 8;
    while at < wasm.len() {
        // Sections of these modules have less than 16 KiB.
        let (low, high) = (usize::from(wasm[at + 1]), usize::from(wasm[at + 2]));
        let (len, header) = if low < 0x80 { (low, 2) } else { (low & 0x7f | high << 7, 3) };
        if wasm[at] != 0 {
            out.extend(&wasm[at..at + header + len]);
        }
        at += header + len;
    }
    out
}

/// The modules of a set.
fn modules(kind: Kind, count: usize, dice: &mut Dice) -> Vec<Vec<u8>> {
    let common: Vec<u64> = (0..6).map(|_| dice.constant()).collect();
    let small = 5 + dice.next(20);
    let text = |number: usize, dice: &mut Dice| {
        let mut c = common.clone();
        let (mut s, mut data, mut swap, mut order) = (small, "some data of it", false, false);
        match kind {
            Kind::Constants => c.iter_mut().for_each(|c| *c = dice.constant()),
            Kind::OneConstant => c[2] += 17 * (1 + number as u64),
            Kind::SmallConstant => s += 11 * number as u64,
            Kind::Swapped => swap = number == 1,
            Kind::Order => order = number == 1,
            Kind::Data => data = ["data of number 0", "data of number 1", "data of number 2"][number],
            Kind::Names => {}
        }
        // Of three the last one differs in another way.
        if number == 2 && matches!(kind, Kind::Swapped | Kind::Order) {
            c[4] += 77;
        }
        let (x, y) = if swap { (c[1], c[0]) } else { (c[0], c[1]) };
        let first = format!("(i32.add (i32.mul (local.get 0) (i32.const {})) (i32.const {}))", c[2], c[3]);
        let second = format!("(i32.add (i32.mul (local.get 0) (i32.const {})) (i32.const {}))", c[4], c[5]);
        let (first, second) = if order { (second, first) } else { (first, second) };
        format!(
            r#"(module (import "env" "stop" (func $stop (param i32)))
              (memory 1) (data (i32.const 64) "{data:-<24}") (global $g (mut i32) (i32.const 0))
              (func $first{number} (param i32) (result i32) {first})
              (func $second{number} (param i32) (result i32) {second})
              (func $work{number} (param i32) (result i32) (local i32 i32)
                (local.set 1 (i32.const {x}))
                (global.set $g (i32.xor (local.get 0) (i32.const {y})))
                (local.set 2 (i32.and (i32.load offset=64 (local.get 0)) (i32.const {s})))
                (call $stop (i32.const 1))
                (i32.add (call $first{number} (local.get 1)) (call $second{number} (local.get 2))))
              (func $run{number} (export "run") (param i32) (drop (call $work{number} (local.get 0)))))"#
        )
    };
    let named = kind == Kind::Names || dice.next(2) == 0;
    let all = (0..count).map(|number| wat::parse_str(text(number, dice)).unwrap());
    all.map(|wasm| if named { wasm } else { without_names(&wasm) }).collect()
}

fn orders(files: &[usize]) -> Vec<Vec<usize>> {
    if files.len() < 2 {
        return vec![files.to_vec()];
    }
    let with_first = |i: usize| {
        let mut rest = files.to_vec();
        let first = rest.remove(i);
        orders(&rest).into_iter().map(move |rest| [vec![first], rest].concat())
    };
    (0..files.len()).flat_map(with_first).collect()
}

/// Which file each thread's module was given: by number of the module.
type Given = BTreeMap<usize, Option<usize>>;

fn ask(host: &Host, files: &[PathBuf], order: &[usize], names: bool) -> (Given, Option<i32>, Value) {
    let pid = host.pid().to_string();
    let mut arguments = vec!["attach", &pid, "--json"];
    for number in order {
        arguments.extend(["--wasm", files[*number].to_str().unwrap()]);
    }
    let output = wstate(&arguments);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let listed: BTreeMap<u64, &Value> = report["runtimes"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|r| r["modules"].as_array().unwrap())
        .map(|m| (m["index"].as_u64().unwrap(), m))
        .collect();
    let mut given = Given::new();
    for thread in report["threads"].as_array().unwrap() {
        let name = thread["name"].as_str().unwrap_or_default();
        let number = match name.strip_prefix("more") {
            Some(more) => more.parse::<usize>().unwrap() + 1,
            None if thread["tid"].as_i64() == Some(host.pid().into()) => 0,
            None => continue,
        };
        let frames = thread["frames"].as_array().unwrap();
        let of_wasm: Vec<&Value> = frames.iter().filter(|f| f["kind"] == "wasm").collect();
        assert!(of_wasm.len() >= 2, "{thread:#}");
        let module = listed[&of_wasm[0]["wasm"]["module_index"].as_u64().unwrap()];
        let file =
            module["wasm_file"].as_str().map(|path| files.iter().position(|f| f.to_str() == Some(path)).unwrap());
        for frame in of_wasm.into_iter().filter(|_| names) {
            let shown = frame["function"]["name"].as_str();
            let other = shown.filter(|n| n.starts_with("work") || n.starts_with("run")).filter(|n| *n != "run");
            let own = |n: &str| n.ends_with(&number.to_string());
            assert!(other.is_none_or(own), "wrong name {other:?}: {frame:#}");
        }
        given.insert(number, file);
    }
    (given, output.status.code(), report)
}

/// Sets of two and three modules of each kind; of each all orders of the options, and each file alone. How many modules
/// were given their file where all files were named, by kind.
fn sweep(exe: &dyn Fn(u64) -> (PathBuf, Vec<&'static str>)) -> BTreeMap<Kind, (usize, usize)> {
    let sets: u64 = std::env::var("WSTATE_SHAPES").map_or(1, |n| n.parse().expect("a number"));
    let mut decided: BTreeMap<Kind, (usize, usize)> = BTreeMap::new();
    for (seed, kind) in (0..sets).flat_map(|set| KINDS.map(|kind| (set * 100 + kind as u64 + 1, kind))) {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let count = 2 + dice.next(2) as usize;
        println!("seed {seed}: {count} modules, other {kind:?}");
        let directory = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = (0..count).map(|n| directory.path().join(format!("m{n}.wasm"))).collect();
        for (path, bytes) in files.iter().zip(modules(kind, count, &mut dice)) {
            std::fs::write(path, bytes).unwrap();
        }
        let paths: Vec<&str> = files.iter().map(|f| f.to_str().unwrap()).collect();
        let (exe, more) = exe(seed);
        let mut flags = vec!["--wasm", paths[0], "--call", "run", "0", "--stop-at", "env.stop"];
        flags.extend(paths[1..].iter().flat_map(|path| ["--more", path]));
        flags.extend(more);
        let host = Host::start_exe(exe, "wasm", &flags);
        let all: Vec<usize> = (0..count).collect();
        let mut answers = Vec::new();
        for order in orders(&all) {
            let (given, code, report) = ask(&host, &files, &order, true);
            assert_eq!(given.len(), count, "seed {seed}: {report:#}");
            for (module, file) in &given {
                assert!(file.is_none_or(|file| file == *module), "seed {seed}, {order:?}: wrong, {given:?}");
            }
            let complete = given.values().all(Option::is_some);
            assert_eq!(code == Some(0), complete, "seed {seed}: {given:?} {:#}", report["notes"]);
            answers.push(given);
        }
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}: {answers:?}");
        let counts = decided.entry(kind).or_default();
        *counts = (counts.0 + answers[0].values().flatten().count(), counts.1 + count);
        for file in 0..count {
            let (given, _, report) = ask(&host, &files, &[file], kind != Kind::Names);
            // With names alone nothing in the code is different, and nobody knows that there is another file.
            for (module, file) in given.iter().filter(|_| kind != Kind::Names) {
                let right = file.is_none_or(|file| file == *module);
                assert!(right, "seed {seed}: file {file:?} alone is given to {module}: {:#}", report["notes"]);
            }
        }
    }
    println!("decided, of all: {decided:?}");
    decided
}

#[test]
fn singlepass_modules_of_one_shape() {
    let decided = sweep(&|seed| {
        let flags = if seed % 2 == 0 { vec!["--compile-with"] } else { Vec::new() };
        (host_singlepass(Profile::Debug), flags)
    });
    for (kind, (known, all)) in decided {
        // The process may have no names, and then nothing tells these apart.
        assert!(known == all || kind == Kind::Names, "{kind:?}: {known} of {all}");
    }
}

#[test]
fn wasmtime_modules_of_one_shape() {
    let decided = sweep(&|seed| {
        let versions = Version::ALL;
        let version = versions[seed as usize % versions.len()];
        let flags: &[&[&str]] = &[&[], &["--address-map", "off"], &["--opt", "none"], &["--debug-info"]];
        (host_wasmtime(version, Profile::Release), flags[seed as usize / 2 % flags.len()].to_vec())
    });
    for (kind, (known, all)) in decided {
        // The optimizer decides in which order constants come, and small ones are in code for other reasons too.
        let may_be_open = matches!(kind, Kind::Swapped | Kind::SmallConstant);
        assert!(known == all || may_be_open, "{kind:?}: {known} of {all}");
    }
}

/// The same file for two modules that were made from it.
#[test]
fn one_file_for_two_modules() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m0.wasm");
    std::fs::write(&file, &modules(Kind::Constants, 1, &mut Dice(9))[0]).unwrap();
    let path = file.to_str().unwrap();
    let flags = ["--wasm", path, "--call", "run", "0", "--stop-at", "env.stop", "--more", path];
    for exe in [host_singlepass(Profile::Debug), host_wasmtime(Version::V48, Profile::Release)] {
        let host = Host::start_exe(exe, "wasm", &flags);
        let pid = host.pid().to_string();
        let output = wstate(&["attach", &pid, "--json", "--wasm", path]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let modules = report["runtimes"][0]["modules"].as_array().unwrap();
        assert!(modules.iter().all(|m| m["wasm_file"] == path), "{modules:#?} {:#}", report["notes"]);
        assert_eq!((modules.len(), output.status.code()), (2, Some(0)));
    }
}
