//! A core's size does not count, only what is in the frames: cores that the kernel wrote of one host that carries more and
//! more memory.

use crate::measure::{bar, table};
use crate::support::{Profile, kernel_core};
use std::os::unix::fs::MetadataExt;

const WSTATE: &str = env!("CARGO_BIN_EXE_wstate");

pub fn run() {
    let mut of_smallest = None;
    for (name, bytes) in [("100 MB", 100u64 << 20), ("1 GB", 1 << 30), ("10 GB", 10 << 30)] {
        let core = match kernel_core("sleep", &["--ballast", &bytes.to_string()], Profile::ReleaseDebug) {
            Ok(core) => core,
            Err(why) => return println!("the kernel writes no cores here: {}\n", why.0),
        };
        let file = std::fs::File::open(&core.path).expect("a core");
        file.sync_all().expect("it is on the disk");
        let file = file.metadata().expect("a core");
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let sizes = format!("{:.0} MiB, {:.0} of them on disk", mib(file.len()), mib(file.blocks() * 512));
        let (path, exe) = (core.path.to_str().expect("text"), core.exe.to_str().expect("text"));
        let commands = [
            ("wstate core", vec![WSTATE, "core", path, exe]),
            ("eu-stack -s -i --core", vec!["eu-stack", "-s", "-i", "--core", path, "-e", exe]),
            ("wstate core --no-lines", vec![WSTATE, "core", "--no-lines", path, exe]),
            ("eu-stack --core", vec!["eu-stack", "--core", path, "-e", exe]),
            ("gdb, bt", vec!["gdb", "-nx", "-batch", "-ex", "thread apply all bt", exe, path]),
        ];
        let all = table(&format!("a core of {name} ({sizes})"), &commands, 11);
        let ours = all.first().copied().flatten();
        let smallest = *of_smallest.get_or_insert(ours);
        bar("time against the smallest core", ours.map(|m| m.total), smallest.map(|m| m.total), 1.5);
        bar("memory against the smallest core", ours.map(|m| m.peak), smallest.map(|m| m.peak), 1.2);
        println!();
    }
}
