#!/bin/sh
# Makes orders.wasm from orders.rs, when it was changed:   sh examples/demo/plugin/make.sh
#
# orders.wasm is by the rustc and the lld of Debian 12: apt-get install rustc libstd-rust-dev-wasm32 lld (rustc 1.63, lld 14).
# RUSTC and WASM_LD name others; a rustc needs the target wasm32-unknown-unknown.
# It is not optimized, so that every variable has a value. The object is linked alone: with Rust's libraries, which a check
# for an overflow or a division by zero needs, it would have 2 MB of debug information that is not about this guest.
set -eu
cd "$(dirname "$0")"
object=$(mktemp)
trap 'rm -f "$object"' EXIT
"${RUSTC:-rustc}" --edition 2021 --target wasm32-unknown-unknown --crate-type lib --emit obj -C opt-level=0 \
    -C overflow-checks=off -C debuginfo=2 -C panic=abort -C codegen-units=1 -C symbol-mangling-version=v0 \
    --remap-path-prefix "$PWD=examples/demo/plugin" -o "$object" orders.rs
"${WASM_LD:-wasm-ld}" --no-entry --export=price_order -o orders.wasm "$object"
chmod a-x orders.wasm
