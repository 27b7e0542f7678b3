#!/bin/sh
# Runs all tests, whatever fails:   sh tests/all.sh [PACKAGES]
#
# `cargo test` runs one program of tests after the other, and most of ours wait for debuggers, cores and processes on one
# processor while the other is idle. Here as many programs run at once as there are processors, the longest first, with one
# test each at a time.
set -u
cd "$(dirname "$0")/.."
logs=target/test-logs
rm -rf "$logs"
mkdir -p "$logs"

# "Executable tests/gdb.rs (target/debug/deps/gdb-0123)" and "Executable unittests src/lib.rs (..)"
programs=$(cargo test "$@" --no-run 2>&1 | sed -n 's/^ *Executable \(unittests \)\{0,1\}\([^ ]*\) (\(.*\))$/\2 \3/p')
if [ -z "$programs" ]; then
    cargo test "$@" --no-run
    echo "no test was found" >&2
    exit 1
fi
longest='tests/gdb.rs tests/matrix.rs tests/live/main.rs tests/killed.rs tests/migrate.rs tests/hosts.rs tests/snapshot.rs
tests/foreign.rs tests/wasmtime.rs tests/routes_e2e.rs tests/large.rs tests/symbols.rs src/lib.rs'
sorted=$(
    for name in $longest; do
        printf '%s\n' "$programs" | grep "^$name "
    done
    printf '%s\n' "$programs" | while read -r name program; do
        case " $(echo $longest) " in *" $name "*) ;; *) echo "$name $program" ;; esac
    done
)

# What cargo gives to tests that it runs.
CARGO=$(command -v cargo)
CARGO_MANIFEST_DIR=$PWD
export CARGO CARGO_MANIFEST_DIR
printf '%s\n' "$sorted" | xargs -P "$(nproc)" -L 1 sh -c '
    log=$0/$(basename "$2").log
    began=$(date +%s)
    if RUST_TEST_THREADS=1 "$2" >"$log" 2>&1; then said=ok; else said=FAILED; fi
    printf "%6ds  %-6s  %s\n" $(($(date +%s) - began)) "$said" "$1"
    [ "$said" = ok ] || { cat "$log"; echo "$1" >>"$0/failed"; }
' "$logs"

cargo test "$@" --doc --no-fail-fast --quiet || echo 'documentation' >>"$logs/failed"

# Tests that were left out say so, and why.
cat "$logs"/*.log | sed -n 's/^test result: .*\. \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' |
    awk '{ p += $1; f += $2; i += $3 } END { printf "%d passed, %d failed, %d ignored\n", p, f, i }'
[ ! -e "$logs/failed" ] || { echo "FAILED: $(tr '\n' ' ' <"$logs/failed")" >&2; exit 1; }
