# shellcheck shell=sh
# Sourced by run.sh and all.sh: temporary files of tests are in target/, and none of them stays.
#
#   scratch_begin     TMPDIR is a new directory in target/, also for all programs that are started from here
#   scratch_end       removes it
#   is_empty_soon D   waits until nothing is in D: what a program that was killed leaves to another one goes a moment later

scratch_begin() {
    mkdir -p target || return 1
    # The address of a Unix socket has 107 bytes, and some sockets are below.
    if [ ${#PWD} -le 60 ]; then
        scratch=$(mktemp -d "$PWD/target/t.XXXXXX") || return 1
    else
        scratch=$(mktemp -d) || return 1
    fi
    TMPDIR=$scratch
    export TMPDIR
}

scratch_end() {
    [ -n "${scratch:-}" ] || return 0
    # A program that ends at this moment may write once more.
    rm -rf "$scratch" 2>/dev/null || { sleep 1 && rm -rf "$scratch"; }
}

is_empty_soon() {
    tries=100
    while [ -n "$(ls -A "$1")" ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.1
    done
}
