//! wstate beside its peers, as far as they are installed, on the same processes in the same run:
//!
//!     cargo bench --bench peers              # all of it
//!     cargo bench --bench peers -- pause     # only this part
//!
//! Figures are of this machine and this moment: run it where nothing else runs.

mod attach;
mod before;
mod cores;
mod deep;
mod measure;
mod modules;
mod pause;
mod read_stack;
mod snapshot;
mod target;

#[path = "../../tests/support/mod.rs"]
mod support;

fn main() {
    if target::role() {
        return;
    }
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let parts: [(&str, fn()); 9] = [
        ("pause", pause::run),
        ("native", attach::native),
        ("third-party", attach::third_party),
        ("cores", cores::run),
        ("modules", modules::run),
        ("deep", deep::run),
        ("read-stack", read_stack::run),
        ("snapshot", snapshot::run),
        ("before", before::run),
    ];
    for (name, run) in parts {
        if asked.is_empty() || asked.iter().any(|a| a == name) {
            run();
        }
    }
}
