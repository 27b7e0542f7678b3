//! Prints the Wasm frames of a process, youngest first:   cargo run --example backtrace PID

use std::error::Error;
use wstate::model::clean;
use wstate::model::{Frame, FrameKind, Function};
use wstate::{Options, Session, Source};

fn main() -> Result<(), Box<dyn Error>> {
    let pid = std::env::args().nth(1).ok_or("usage: backtrace PID")?.parse()?;
    let mut options = Options::new(Source::Pid(pid));
    // Only functions are printed here, so there is no need to look for locals, operands and the names of native code.
    options.values = false;
    options.names = false;
    let report = Session::open(&options)?.stacks()?.report;
    for thread in &report.threads {
        println!("thread {}", thread.tid.unwrap_or_default());
        for frame in thread.frames.iter().filter(|frame| frame.kind == FrameKind::Wasm) {
            println!("  #{} {}", frame.index.unwrap_or_default(), function(frame));
        }
    }
    Ok(())
}

fn function(frame: &Frame) -> String {
    match &frame.function {
        // The name comes from the process, which may have put into it what a terminal would obey.
        Some(Function { name: Some(name), .. }) => clean(name),
        Some(Function { index: Some(index), .. }) => format!("function {index}"),
        _ => "unknown function".to_string(),
    }
}
