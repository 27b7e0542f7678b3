#!/bin/sh
# What takes too long for every change:   sh tests/run_more.sh [PART..]
#
#   random   stops of random modules at random instants
#   churn    modules that are loaded and unloaded while the process is looked at
#   foreign  the official command line tools and libraries
#   package  archives, the Debian package and the static program (`sh tests/package.sh`)
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/need.sh
parts=${*:-random churn foreign package}
for part in $parts; do
    case $part in
    random | churn | foreign | package) ;;
    *)
        echo "$0: no part is called $part: there are random, churn, foreign and package" >&2
        exit 64
        ;;
    esac
done
case " $parts " in
*' random '*) need wat2wasm ;;
esac
if [ "$parts" != package ]; then
    cargo build --release --package wstate --package host-singlepass --bins || exit 1
    cargo build --release --package host-wasmtime-36 --package host-wasmtime --bins || exit 1
fi

failed=
for part in $parts; do
    printf '\n== %s\n' "$part"
    case $part in
    random)
        python3 tests/tools/random_stops.py --wstate target/release/wstate --singlepass target/release/host-singlepass \
            --guest-debug target/release/host-wasmtime || failed="$failed random"
        ;;
    churn)
        for host in churn-singlepass churn-wasmtime churn-wasmtime-36; do
            python3 tests/tools/churn.py --attaches 500 --loads 200000 -- "target/release/$host" names 100000000 ||
                failed="$failed $host"
        done
        ;;
    package) sh tests/package.sh || failed="$failed package" ;;
    foreign) python3 tests/tools/foreign/cli_sweep.py || failed="$failed foreign" ;;
    esac
done
[ -z "$failed" ] || { echo "FAILED:$failed" >&2; exit 1; }
