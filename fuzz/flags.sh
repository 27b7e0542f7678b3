# Sourced by the scripts here: how the targets are built with a stable compiler and without cargo-fuzz.
#
# The coverage pass is part of LLVM and needs no unstable flag. AddressSanitizer does, and finds nothing in safe code.
# With --target the flags do not reach build scripts and procedural macros.
target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=4"
built=$here/target/$target/release
targets="codec validate_read lookup core engine cfi native wasm artifact heap_image prologue wasmtime_image wasmtime_dwarf server"

# libFuzzer itself is C++.
need_cxx() {
    command -v c++ > /dev/null || command -v g++ > /dev/null || command -v clang++ > /dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        apt-get update -qq && apt-get install -y -qq g++
    else
        echo "libFuzzer needs a C++ compiler: install g++ or clang++" >&2
        exit 2
    fi
}
