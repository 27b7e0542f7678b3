#!/bin/sh
# Makes the seeds again: state maps, artifacts and modules of the real runtime, and a real core of the few pages that an
# analysis reads (no environment, no file names).
set -eu
cd "$(dirname "$0")/.."
WSTATE_FUZZ_SEEDS=$PWD/fuzz/seeds cargo test --test commands -- --ignored --exact hostile::write_fuzz_seeds
mkdir -p fuzz/seeds/wasmtime_image
for name in 36-default 36-two 48-debug-info 48-guest-debug 48-inline 48-two; do
    cp "tests/fixtures/wasmtime/$name.cwasm" "fuzz/seeds/wasmtime_image/$name"
done
mkdir -p fuzz/seeds/wasmtime_dwarf
cp tests/fixtures/wasmtime/48-debug-info.cwasm fuzz/seeds/wasmtime_dwarf/values
for name in 36 48 48-optimized; do
    cp "tests/fixtures/wasmtime/c/$name.cwasm" "fuzz/seeds/wasmtime_dwarf/c-$name"
done
# Units that have names in others: gcc and rustc refer to them by their place in the whole section.
mkdir -p fuzz/seeds/native
cd tests/fixtures/units
link="-O2 -g -flto -ffile-prefix-map=$PWD=. -fPIC -shared -nostdlib -Wl,--build-id=none"
gcc $link -o ../../../fuzz/seeds/native/c a.c b.c
gcc $link -gdwarf-4 -gz=zlib -o ../../../fuzz/seeds/native/c-packed a.c b.c
rustc -g -O -C panic=abort -C codegen-units=4 -C link-arg=-nostdlib --crate-type cdylib --edition 2024 \
    --remap-path-prefix="$PWD=." --remap-path-prefix="$HOME=." -o ../../../fuzz/seeds/native/rust units.rs
