#!/bin/sh
# Builds all fuzz targets and runs each for some seconds with a fixed seed:   sh fuzz/smoke.sh [SECONDS]
set -eu
cd "$(dirname "$0")"
here=$PWD
. ./flags.sh
seconds=${1:-5}
need_cxx
cargo build --release --locked --target "$target"
mkdir -p artifacts
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=
for t in $targets; do
    # New inputs go to the scratch directory: a smoke run leaves nothing behind but what crashed.
    mkdir -p "$scratch/$t" "seeds/$t"
    if "$built/$t" "$scratch/$t" "seeds/$t" -seed=1 -max_total_time="$seconds" -timeout=60 -rss_limit_mb=4096 \
        -max_len=200000 -artifact_prefix="artifacts/$t-" > "$scratch/log" 2>&1; then
        echo "$t: $(grep '^Done ' "$scratch/log")"
    else
        failed="$failed $t"
        tail -n 60 "$scratch/log"
        echo "$t: FAILED" >&2
    fi
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
