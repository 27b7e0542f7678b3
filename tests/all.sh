#!/bin/sh
# Runs all tests, whatever fails:   sh tests/all.sh [PACKAGES]
#
# `cargo test` runs one program of tests after the other, and most of ours wait for debuggers, cores and processes on one
# processor while the other is idle. Here as many programs run at once as there are processors, the longest first, with one
# test each at a time. What each program printed is in target/test-logs.
set -u
cd "$(dirname "$0")/.."
logs=target/test-logs
rm -rf "$logs"
mkdir -p "$logs" || exit 1

# "Executable tests/debuggers/gdb.rs (target/debug/deps/gdb-0123)" and "Executable unittests src/lib.rs (..)"
build=$logs/build.txt
if ! cargo test --color never "$@" --no-run >"$build" 2>&1; then
    cat "$build" >&2
    exit 1
fi
programs=$(sed -n 's/^ *Executable \(unittests \)\{0,1\}\([^ ]*\) (\([^ ]*\))$/\2 \3/p' "$build")
count=$(printf '%s\n' "$programs" | grep -c .)
if [ "$count" -eq 0 ] || [ "$count" -ne "$(grep -c '^ *Executable ' "$build")" ]; then
    cat "$build" >&2
    echo "$count of these test programs were understood" >&2
    exit 1
fi
longest='tests/debuggers/gdb.rs tests/commands/matrix.rs tests/live/main.rs tests/commands/killed.rs tests/live/migrate.rs tests/commands/hosts.rs tests/live/snapshot.rs
tests/runtimes/foreign.rs tests/runtimes/wasmtime.rs tests/commands/routes_e2e.rs tests/commands/large.rs tests/debuggers/symbols.rs src/lib.rs'
sorted=$(
    for name in $longest; do
        printf '%s\n' "$programs" | grep "^$name "
    done
    printf '%s\n' "$programs" | while read -r name program; do
        # shellcheck disable=SC2086,SC2116 # the names in one line
        case " $(echo $longest) " in *" $name "*) ;; *) echo "$name $program" ;; esac
    done
)

# What cargo gives to tests that it runs.
CARGO=$(command -v cargo)
CARGO_MANIFEST_DIR=$PWD
export CARGO CARGO_MANIFEST_DIR
failed=
# A program that ends without a result has left out tests, whatever its exit code.
# shellcheck disable=SC2016 # for the inner shell
printf '%s\n' "$sorted" | xargs -P "$(nproc)" -L 1 sh -c '
    log=$0/$(basename "$2").log
    began=$(date +%s)
    if RUST_TEST_THREADS=1 "$2" --show-output >"$log" 2>&1 && grep -q "^test result: ok" "$log"; then
        said=ok
        : >"$log.ok"
    else
        said=FAILED
        cat "$log"
    fi
    printf "%6ds  %-6s  %s\n" $(($(date +%s) - began)) "$said" "$1"
' "$logs" || failed="$failed some"
passed=$(find "$logs" -name '*.ok' | wc -l)
[ "$passed" -eq "$count" ] || failed="$failed $((count - passed)) of $count programs"

cargo test "$@" --doc --no-fail-fast --quiet || failed="$failed documentation"

cat "$logs"/*.log | sed -n 's/^test result: .*\. \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' |
    awk '{ p += $1; f += $2; i += $3 } END { printf "%d passed, %d failed, %d ignored\n", p, f, i }'
# What a missing tool has left out, where that was allowed.
cat "$logs"/*.log | grep '^not tested: ' | sort | uniq -c
[ -z "$failed" ] || { echo "FAILED:$failed" >&2; exit 1; }
