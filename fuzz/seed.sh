#!/bin/sh
# Makes the seeds again: state maps, artifacts and modules of the real runtime, and a real core of the few pages that an
# analysis reads (no environment, no file names).
set -eu
cd "$(dirname "$0")/.."
WSTATE_FUZZ_SEEDS=$PWD/fuzz/seeds cargo test --test hostile -- --ignored --exact write_fuzz_seeds
mkdir -p fuzz/seeds/wasmtime_image
for name in 36-default 36-two 48-debug-info 48-guest-debug 48-inline 48-two; do
    cp "tests/fixtures/wasmtime/$name.cwasm" "fuzz/seeds/wasmtime_image/$name"
done
mkdir -p fuzz/seeds/wasmtime_dwarf
cp tests/fixtures/wasmtime/48-debug-info.cwasm fuzz/seeds/wasmtime_dwarf/values
for name in 36 48 48-optimized; do
    cp "tests/fixtures/wasmtime/c/$name.cwasm" "fuzz/seeds/wasmtime_dwarf/c-$name"
done
