//! A shop whose prices come from a plugin: an ordinary Wasmtime host, and what `cargo demo` attaches to.
//!
//!     demo-shop examples/demo/plugin/orders.wasm
//!
//! The plugin asks for a rate of exchange, and the shop asks a bank, which is whoever is at the other end of standard input.
//! In the demo the bank does not answer, so the shop hangs.

use std::{
    env, fs,
    io::{self, Read},
    process::ExitCode,
};
use wasmtime::{Config, Engine, Error, Linker, Module, Result, Store};

fn main() -> ExitCode {
    // Where Yama lets only a parent attach: this process is there to be looked at.
    let _ = rustix::process::set_ptracer(rustix::process::PTracer::Any);
    match sell(1042) {
        Ok(cents) => {
            println!("the order costs {cents} cents");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("demo-shop: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Lets the plugin price an order.
fn sell(order: u32) -> Result<u64> {
    let plugin = env::args_os().nth(1).ok_or_else(|| Error::msg("the first argument is the plugin's file"))?;
    let engine = Engine::new(&settings())?;
    let module = Module::new(&engine, fs::read(plugin)?)?;
    let mut linker = Linker::new(&engine);
    linker.func_wrap("shop", "ask_rate", ask_bank)?;
    let mut store = Store::new(&engine, ());
    let plugin = linker.instantiate(&mut store, &module)?;
    let price_order = plugin.get_typed_func::<u32, u64>(&mut store, "price_order")?;
    price_order.call(&mut store, order)
}

/// This setting is off by default. Without it the frames have the same names and offsets, but neither lines nor variables.
fn settings() -> Config {
    let mut config = Config::new();
    config.debug_info(true);
    config
}

/// The rate of a currency, in thousandths of the shop's own.
fn ask_bank(currency: u32) -> Result<u32> {
    println!("READY pid={} tid={} currency={currency}", std::process::id(), rustix::thread::gettid());
    let mut answer = [0; 4];
    io::stdin().read_exact(&mut answer)?;
    Ok(u32::from_le_bytes(answer))
}
