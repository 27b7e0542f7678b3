//! How long a symbol file of 20,000 functions takes: `cargo bench --bench symbols [-- FILE]` writes the file too, to see
//! what a debugger makes of it (`time gdb -nx -batch -ex 'add-symbol-file FILE' -ex 'info scope f777'`).

use std::time::Instant;
use wstate::arch::x64;
use wstate::report::elf_symbols;
use wstate::runtime::code_map::{
    CodeMap, CompiledFunction, CompiledModule, FrameChange, Line, Location, Operands, SourceFile, SourceLine, Variable,
};
use wstate::wasm::ValType;

const FUNCTIONS: u64 = 20_000;
const BYTES: u32 = 2000;
const BASE: u64 = 0x7f00_0000_0000;

/// Eight locals with two places each, operand stacks at twelve points, thirty rows of unwind rules, twenty-five lines.
fn function(i: u64) -> CompiledFunction {
    let types = [ValType::I32, ValType::I64, ValType::F32, ValType::F64];
    let place = |n: u32| match n {
        0..4 => Location::Register([x64::R12, x64::R13, x64::R14, x64::RBX][n as usize]),
        _ => Location::Frame(-24 - 8 * i64::from(n)),
    };
    let moved = |n: u32| 60 + 3 * n + (i % 7) as u32;
    CompiledFunction {
        wasm: true,
        name: Some(format!("f{i}")),
        start: BASE + i * u64::from(BYTES),
        len: BYTES,
        frame: (0..10)
            .flat_map(|n| {
                let at = 37 + 2 * n;
                [FrameChange::Saved(x64::RBP, -16), FrameChange::Cfa(x64::RBP, 16), FrameChange::Same(x64::R12)]
                    .map(|c| (at, c))
            })
            .collect(),
        described: true,
        variables: (0..8)
            .map(|n| Variable {
                name: format!("local{n}"),
                ty: Some(types[n as usize % 4]),
                parameter: n < 3,
                places: vec![
                    (0, moved(n), Location::Register(x64::RSI)),
                    (moved(n), BYTES - 30 - (i % 5) as u32, place(n)),
                ],
            })
            .collect(),
        operands: (1..13)
            .map(|n| Operands {
                range: (100 * n, 100 * n + 2),
                operands: (0..n % 5 + 1)
                    .map(|k| (Some(types[(k + n) as usize % 4]), Some(Location::Frame(-96 - 8 * i64::from(k)))))
                    .collect(),
            })
            .collect(),
        lines: (0..25)
            .map(|n| {
                let at = SourceLine { file: 0, line: (i * 30) as u32 + n + 1 };
                Line { offset: 50 * n, at, prologue_end: n == 1, statement: true }
            })
            .collect(),
        inlined: Vec::new(),
    }
}

fn main() {
    let map = CodeMap {
        modules: vec![CompiledModule {
            copied: None,
            name: "bench.wasm".to_string(),
            base: BASE,
            code: vec![0x90; FUNCTIONS as usize * BYTES as usize],
            functions: (0..FUNCTIONS).map(function).collect(),
            files: vec![SourceFile::Text],
            text: None,
        }],
        notes: Vec::new(),
    };
    let names = [Some("bench.wat".to_string())];
    let mut best = f64::MAX;
    let mut bytes = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        bytes = elf_symbols::write(&map, "/tmp", &names).expect("the description is sound");
        best = best.min(began.elapsed().as_secs_f64());
    }
    let size = bytes.len() as f64 / 1e6;
    println!("{FUNCTIONS} functions: best of 5 {best:.3} s, {size:.1} MB of which {:.1} MB are code", 40.0);
    if let Some(path) = std::env::args().skip(1).find(|a| !a.starts_with('-')) {
        std::fs::write(path, bytes).expect("the file can be written");
    }
}
