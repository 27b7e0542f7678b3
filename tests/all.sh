#!/bin/sh
# Runs all tests, whatever fails:   sh tests/all.sh [PACKAGES]
#
# `cargo test` runs one program of tests after the other, and most of ours wait for debuggers, cores and processes on one
# processor while the other is idle. Here the tests of each module are a part of their own, `commands.matrix` or
# `wstate-lib.runtime`, and run in a process of their own, one after the other. One more part than there are processors
# runs at once, because a part waits for a fifth of its time. The longest come first. What each part printed is in
# target/test-logs. A part has a directory of its own for temporary files, and fails if any is there when it is over.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/scratch.sh
trap scratch_end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
scratch_begin || exit 1
logs=target/test-logs
rm -rf "$logs"
mkdir -p "$logs" || exit 1

fail() {
    echo "$*" >&2
    exit 1
}

# "Executable tests/live/main.rs (target/debug/deps/live-0123)" and "Executable unittests src/lib.rs (..)"
build=$logs/build.txt
if ! cargo test --color never "$@" --no-run >"$build" 2>&1; then
    cat "$build" >&2
    exit 1
fi
sed -n 's/^ *Executable \(unittests \)\{0,1\}\([^ ]*\) (\([^ ]*\))$/\2 \3/p' "$build" >"$logs/programs.txt"
count=$(wc -l <"$logs/programs.txt")
if [ "$count" -eq 0 ] || [ "$count" -ne "$(grep -c '^ *Executable ' "$build")" ]; then
    cat "$build" >&2
    fail "$count of these test programs were understood"
fi

# What cargo gives to tests that it runs.
CARGO=$(command -v cargo)
CARGO_MANIFEST_DIR=$PWD
export CARGO CARGO_MANIFEST_DIR

# The names of each part's tests in PART.tests, and a line "PART PROGRAM" in parts.txt.
while read -r source program; do
    name=$(basename "$program" | sed 's/-[0-9a-f]*$//')
    # A package's library and its program have one name.
    [ "$source" != src/lib.rs ] || name=$name-lib
    "$program" --list --format terse </dev/null >"$logs/list.txt" || fail "$program does not list its tests"
    sed -n 's/: test$//p' "$logs/list.txt" | awk -v logs="$logs" -v name="$name" -v program="$program" '
        {
            part = name (index($0, "::") ? "." substr($0, 1, index($0, "::") - 1) : "")
            if (!(part in seen)) {
                seen[part]
                print part, program >> (logs "/parts.txt")
            }
            print >> (logs "/" part ".tests")
        }'
done <"$logs/programs.txt"
[ -s "$logs/parts.txt" ] || fail 'there are no tests'
count=$(wc -l <"$logs/parts.txt")
[ "$count" -eq "$(find "$logs" -name '*.tests' | wc -l)" ] || fail 'two programs have parts of one name'

longest='debuggers.doors debuggers.gdb debuggers.plugins debuggers.dap commands.routes_e2e commands.matrix commands.faults
commands.export live.unharmed live.stops live.migrate commands.killed commands.hosts live.snapshot runtimes.foreign
debuggers.gdb_plugin runtimes.wasmtime runtimes.wasmtime_plugins debuggers.symbols commands.sandbox commands.hostile
live.steps runtimes.wasmtime_hosts commands.large wstate-lib.runtime'
for part in $longest; do
    # With other PACKAGES some are not there.
    grep "^$part " "$logs/parts.txt" || echo "no part is called $part" >&2
done >"$logs/order.txt"
# shellcheck disable=SC2094 # it has read the one before it writes
grep -vxFf "$logs/order.txt" "$logs/parts.txt" >>"$logs/order.txt"

# The other place for temporary files is cargo's target/tmp, where what is to be kept has names that say so.
touch "$logs/began"
in_target_tmp() {
    find target/tmp -mindepth 1 -maxdepth 1 -name '.tmp*' -newer "$logs/began"
}

failed=
# A part is right if the program says so of as many tests as are in the list: each name is that of one test.
# shellcheck disable=SC2016 # for the inner shell
xargs -P $(($(nproc) + 1)) -L 1 sh -c '
    logs=$0 part=$1 program=$2
    log=$logs/$part.log
    listed=$(wc -l <"$logs/$part.tests")
    . tests/scratch.sh
    TMPDIR=$TMPDIR/$$
    mkdir "$TMPDIR"
    began=$(date +%s)
    # shellcheck disable=SC2046 # names have no spaces
    RUST_TEST_THREADS=1 "$program" --exact --show-output $(cat "$logs/$part.tests") >"$log" 2>&1
    status=$?
    # Programs that a test started may have said the same before.
    result=$(grep -a "^test result: " "$log" | tail -n 1)
    ran=$(echo "$result" | sed -n "s/^test result: ok\. \([0-9]*\) passed; 0 failed; \([0-9]*\) ignored.*/\1 + \2/p")
    echo "${result:-test result: none}" >"$logs/$part.result"
    if [ $status -ne 0 ] || [ $((${ran:--1})) -ne "$listed" ]; then
        said=FAILED
        cat "$log"
        echo "$part: $listed tests are listed, exit code $status"
    elif ! is_empty_soon "$TMPDIR"; then
        said=FAILED
        echo "$part left temporary files:"
        find "$TMPDIR" -mindepth 1 -maxdepth 2 -ls
    else
        said=ok
        : >"$logs/$part.ok"
    fi
    printf "%6ds  %-6s  %4d  %s\n" $(($(date +%s) - began)) "$said" "$listed" "$part"
' "$logs" <"$logs/order.txt" || failed="$failed some"
left=$(in_target_tmp)
if [ -n "$left" ] && sleep 5 && left=$(in_target_tmp) && [ -n "$left" ]; then
    printf 'left in target/tmp:\n%s\n' "$left"
    failed="$failed temporary-files"
fi
passed=$(find "$logs" -name '*.ok' | wc -l)
[ "$passed" -eq "$count" ] || failed="$failed $((count - passed)) of $count parts"

cargo test "$@" --doc --no-fail-fast --quiet || failed="$failed documentation"

cat "$logs"/*.result | sed -n 's/^test result: .*\. \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' |
    awk '{ p += $1; f += $2; i += $3 } END { printf "%d passed, %d failed, %d ignored\n", p, f, i }'
# What a missing tool has left out, where that was allowed.
cat "$logs"/*.log | grep -a '^not tested: ' | sort | uniq -c
[ -z "$failed" ] || fail "FAILED:$failed"
