//! wstate within gdb, lldb and editors, and beside them.

mod dap;
mod doors;
mod gdb;
mod gdb_plugin;
mod lldb_plugin;
mod plugins;
#[path = "../support/mod.rs"]
mod support;
mod symbols;
