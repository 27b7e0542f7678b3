//! The program `wstate`. All of it is in `src/program.rs`.

/// The process says so, instead of aborting, when there is no memory left.
#[global_allocator]
static ALLOCATOR: wstate::program::Allocator = wstate::program::Allocator;

fn main() -> std::process::ExitCode {
    wstate::program::main()
}
