#!/bin/sh
# What is checked of every change to this repository:   sh tests/run.sh
#
# Needs Rust (rustup) and, on anything but Debian and Ubuntu, the commands that `need` names below; there they are
# installed where they are missing. No test is left out because a tool is not there.
#
# Cheap checks come first. Most crates are compiled four times: checked (clippy, doc), for the tests, for the debug host
# and optimized. Cargo unites features over the packages that are named, so name them alike, or there is a fifth.
# The hosts of Wasmtime have no tests: they are checked, and built as the tests run them, optimized. Wasmtime takes minutes
# each time that it is compiled. `sh tests/run_more.sh` has what takes hours.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh

began=$(date +%s)
times=
title=

# step TITLE: ends the step before it.
step() {
    now=$(date +%s)
    [ -z "$title" ] || times="$times$(printf '%6ds  %s' $((now - since)) "$title")
"
    since=$now
    title=$1
    [ -z "$title" ] || printf '\n== %s\n' "$title"
}

finish() {
    status=$?
    trap - EXIT
    failed=$title
    step ''
    printf '\n%s%6ds  all\n' "$times" $((now - began))
    [ $status -eq 0 ] || echo "FAILED: $failed" >&2
    exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What the compiler keeps for the next build of a changed tree costs this build a quarter of its time, and 20 GB.
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0

packages='--workspace --exclude host-wasmtime --exclude host-wasmtime-36'

step 'tools'
need cc c++ objcopy gdb gcore gdbserver lldb-19 lldb-dap-19 eu-stack pip3 ps strace
need_cargo
for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 && continue
    [ "$component" = fmt ] && component=rustfmt
    rustup component add "$component"
done
# What a failure further down may have to do with.
cargo --version
rustc --version
gdb --version | head -n 1
lldb-19 --version
uname -srm
for setting in core_pattern core_uses_pid randomize_va_space yama/ptrace_scope; do
    [ ! -r "/proc/sys/kernel/$setting" ] || printf '%s: %s\n' "$setting" "$(cat "/proc/sys/kernel/$setting")"
done
echo "ulimit -c: $(ulimit -c) (hard: $(ulimit -H -c))"

step 'format'
cargo fmt --all --check

step 'lints'
cargo clippy --workspace --all-targets --all-features -- -D warnings
# What users build: everything but what is public for tests alone.
cargo clippy --package wstate --lib --bins -- -D warnings
# The library, for those who take it without the command line.
cargo clippy --package wstate --lib --no-default-features -- -D warnings

# A build for another machine, which analyses cores. It needs Rust's own library for that machine, and nothing else.
if rustup target add aarch64-unknown-linux-gnu; then
    cargo check --package wstate --lib --bins --target aarch64-unknown-linux-gnu
else
    echo 'not checked: aarch64-unknown-linux-gnu, because rustup cannot install it here'
    [ "${WSTATE_ALLOW_MISSING:-}" = 1 ] || exit 1
fi

step 'package'
# What is published compiles by itself: the package is unpacked and checked. cargo would build it, and all that it depends on
# once more, in a directory of its own; here it takes most of that from the lints. Where there is nothing to commit, it is
# what would be published.
changed=
[ -z "$(git status --porcelain 2>/dev/null)" ] || changed=--allow-dirty
rm -rf target/package/wstate-*
cargo package --package wstate --no-verify --quiet --target-dir target $changed
crate=$(echo target/package/wstate-*.crate)
tar -xzf "$crate" -C target/package
cargo check --quiet --locked --target-dir target --manifest-path "${crate%.crate}/Cargo.toml"
# The crate for hosts has no dependencies, so that cargo may build it.
cargo package --package wstate-descriptor --quiet --target-dir target $changed

step 'documentation'
RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --all-features
RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --lib --no-default-features

step 'build of the tests'
# shellcheck disable=SC2086 # a list of words, here and below
cargo test $packages --no-run

step 'build of the hosts'
# As tests/support and the demo name them.
cargo build --package host-singlepass --bins
cargo build --release --package wstate --package host-singlepass --bins
cargo build --release --package host-wasmtime-36 --package host-wasmtime --bins

step 'tests'
sh tests/all.sh $packages

if [ -f fuzz/smoke.sh ]; then
    step 'fuzz targets, some seconds each'
    sh fuzz/smoke.sh
fi

step 'demo'
cargo demo
