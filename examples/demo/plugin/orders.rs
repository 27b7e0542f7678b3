//! The guest of the demo: a plugin of a shop that prices an order. For the rate of exchange it asks its host, which does
//! not answer: the plugin hangs, and the demo shows where.
//!
//! orders.wasm is checked in, so that the demo needs no compiler for WebAssembly. make.sh makes it from this file.
#![no_std]

#[link(wasm_import_module = "shop")]
extern "C" {
    /// The rate of a currency, in thousandths of the shop's own.
    fn ask_rate(currency: u32) -> u32;
}

struct Order {
    number: u32,
    currency: u32,
    cents: u64,
    tip: u64,
}

const EURO: u32 = 978;

/// What the host calls.
#[no_mangle]
pub extern "C" fn price_order(number: u32) -> u64 {
    let mut order = Order { number, currency: EURO, cents: 0, tip: 0 };
    load(&mut order);
    let price = total(&order);
    if order.number == 0 { 0 } else { price }
}

/// Two books and a cup.
fn load(order: &mut Order) {
    order.cents = 2 * 1999 + 450;
    order.tip = u64::from(order.number % 2) * 100;
}

fn total(order: &Order) -> u64 {
    let shipping = shipping(order.cents);
    let price = convert(order.cents + shipping, order.currency);
    price + order.tip
}

fn shipping(cents: u64) -> u64 {
    if cents > 5000 { 0 } else { 490 }
}

fn convert(cents: u64, currency: u32) -> u64 {
    let rate = exchange_rate(currency);
    // Not `/`, which could panic: see make.sh.
    (cents * 1000).checked_div(rate as u64).unwrap_or(cents)
}

fn exchange_rate(currency: u32) -> u32 {
    let rate = unsafe { ask_rate(currency) };
    if rate == 0 { 1000 } else { rate }
}

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}
