//! The commands and what they print of cores, files and processes of the Singlepass host.

mod cli;
mod confined;
mod contents;
mod disk_full;
mod export;
mod faults;
mod hostile;
mod hostile_files;
mod hosts;
mod killed;
mod large;
mod matrix;
mod native;
mod routes_e2e;
mod sandbox;
mod small_memory;
#[path = "../support/mod.rs"]
mod support;
