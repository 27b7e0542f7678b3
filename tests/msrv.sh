#!/bin/sh
# Whether what users build compiles with the oldest Rust that Cargo.toml promises (rust-version):   sh tests/msrv.sh
#
# rustup installs that Rust where it is missing. The tests need not compile with it: what they start and compare with, Wasmtime
# above all, asks for newer ones.
set -eu
cd "$(dirname "$0")/.."

version=$(sed -n 's/^rust-version = "\([0-9.]*\)"$/\1/p' Cargo.toml | head -n 1)
if [ -z "$version" ]; then
    echo "$0: Cargo.toml has no line: rust-version = \"...\"" >&2
    exit 1
fi
if ! command -v rustup >/dev/null 2>&1; then
    echo "$0: rustup is missing, and only it can have several Rusts; https://rustup.rs has it" >&2
    exit 1
fi

# Its name may have a third number, and has the name of the machine behind it.
if ! rustup toolchain list | grep -q "^${version}[.-]"; then
    echo "Rust $version is not here: rustup installs it"
    if ! rustup toolchain install "$version" --profile minimal --no-self-update; then
        echo "$0: Rust $version cannot be installed, so nothing was checked." >&2
        echo "If the network is the reason, install it where there is one: rustup toolchain install $version" >&2
        exit 1
    fi
fi
toolchain=$(rustup toolchain list | sed -n "s/^\(${version}[.-][^ ]*\).*/\1/p" | head -n 1)
rustup run "$toolchain" rustc --version

# Not where the newer Rust builds: each would throw away what the other has built.
check() {
    echo "== cargo check $*"
    rustup run "$toolchain" cargo check --locked --target-dir target/msrv "$@"
}
check --package wstate --lib --bins
check --package wstate --lib --no-default-features
check --package wstate-descriptor
echo "wstate compiles with Rust $version"
