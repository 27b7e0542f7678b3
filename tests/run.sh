#!/bin/sh
# What is checked of every change to this repository:   sh tests/run.sh
#
# It takes about 45 minutes on two processors (less than an hour of processor time) and 10.5 GB in target/, and leaves nothing
# elsewhere but what cargo and pip keep for the next time.
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
. tests/scratch.sh

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

# in_tmp: what is in /tmp and belongs to this user.
in_tmp() {
    find /tmp -mindepth 1 -maxdepth 1 -user "$(id -u)" 2>/dev/null | sort
}

# watch_size: writes down again and again how many kilobytes the temporary files have.
watch_size() {
    while :; do
        du -skc "$scratch" target/tmp 2>/dev/null | tail -n 1
        sleep 10
    done >"$notes/sizes" 2>/dev/null </dev/null
}

finish() {
    status=$?
    trap - EXIT
    failed=$title
    step ''
    kill "$watch" 2>/dev/null || :
    scratch_end
    printf '\n%s%6ds  all\n' "$times" $((now - began))
    # In a pipe `times` would tell of the pipe. Its second line is of all that was started from here: 9m8.76s 5m4.32s
    times >"$notes/times"
    sed -n '2s/\([0-9]*\)m[^ ]* \([0-9]*\)m.*/\1 \2/p' "$notes/times" |
        awk '{ printf "%6dm  of processor time\n", $1 + $2 }'
    du -sh target | awk '{ printf "%7s  in target/\n", $1 }'
    sort -n "$notes/sizes" | awk 'END { printf "%6dM  of temporary files at once\n", $1 / 1024 }'
    # Programs of others write there too: only names of ours are a failure.
    in_tmp >"$notes/tmp-after"
    left=$(comm -13 "$notes/tmp-before" "$notes/tmp-after")
    printf 'left in /tmp: %s\n' "${left:-nothing}"
    case $left in
    */wstate*) [ $status -ne 0 ] || { status=1 failed='temporary files'; } ;;
    esac
    rm -rf "$notes"
    [ $status -eq 0 ] || echo "FAILED: $failed" >&2
    exit $status
}
notes=target/run-notes
rm -rf $notes
mkdir -p $notes
in_tmp >$notes/tmp-before
scratch_begin
watch_size &
watch=$!
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
echo 'All tests and checks: about 45 minutes on two processors, and 10.5 GB in target/.'

# What the compiler keeps for the next build of a changed tree costs this build a quarter of its time, and 20 GB.
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0

packages='--workspace --exclude host-wasmtime --exclude host-wasmtime-36 --exclude demo-shop'

step 'tools'
need cc c++ objcopy gdb gcore gdbserver lldb-19 lldb-dap-19 eu-stack pip3 ps strace wat2wasm
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
# shellcheck disable=SC3045 # every sh that we know has it
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
# shellcheck disable=SC2086 # a list of words
cargo test $packages --no-run

step 'build of the hosts'
# As tests/support and the demo name them.
cargo build --package host-singlepass --bins
cargo build --release --package wstate --package host-singlepass --bins
cargo build --release --package host-wasmtime-36 --package host-wasmtime --bins

step 'tests'
# shellcheck disable=SC2086
sh tests/all.sh $packages

if [ -f fuzz/smoke.sh ]; then
    step 'fuzz targets, some seconds each'
    sh fuzz/smoke.sh
fi

# shows FILE LINES PART..: what a reader of a demo is to see is there, and is short.
shows() {
    file=$1 lines=$2
    cat "$file"
    shift 2
    for part in "$@"; do
        grep -qF -e "$part" "$file" || { echo "the demo does not show: $part" >&2 && exit 1; }
    done
    [ "$(wc -l <"$file")" -le "$lines" ] || { echo "the demo has more than $lines lines" >&2 && exit 1; }
}

step 'demo'
cargo demo >"$notes/demo" || { cat "$notes/demo" && exit 1; }
shows "$notes/demo" 120 'demo_shop::ask_bank' 'orders::exchange_rate at ' 'orders.rs:54' \
    'cents u64 4938' '{number = 1042, currency = 978,' 'sqlite3_step' ' i32 5323936 (r12)'

step 'demo in Python'
sh examples/demo-python.sh >"$notes/demo" || { cat "$notes/demo" && exit 1; }
shows "$notes/demo" 40 'orders::exchange_rate at ' 'orders.rs:54' 'cents u64 4938' \
    '{number = 1042, currency = 978,'
