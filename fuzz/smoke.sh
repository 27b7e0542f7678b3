#!/bin/sh
# Builds all fuzz targets and runs each for some seconds with a fixed seed:   sh fuzz/smoke.sh [SECONDS]
#
# As many targets run at once as there are processors, but no more than four, since each may take 4 GB.
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
# shellcheck disable=SC2016 disable=SC2086 # for the inner shell; a list of words
printf '%s\n' $targets | xargs -P "$(($(nproc) < 4 ? $(nproc) : 4))" -I TARGET sh -c '
    built=$0 scratch=$1 seconds=$2 t=$3
    # New inputs go to the scratch directory: a smoke run leaves nothing behind but what crashed.
    mkdir -p "$scratch/$t" "seeds/$t"
    if "$built/$t" "$scratch/$t" "seeds/$t" -seed=1 -max_total_time="$seconds" -timeout=60 -rss_limit_mb=4096 \
        -max_len=200000 -artifact_prefix="artifacts/$t-" > "$scratch/$t.log" 2>&1; then
        echo "$t: $(grep "^Done " "$scratch/$t.log")"
        : > "$scratch/$t.ok"
    else
        tail -n 60 "$scratch/$t.log"
        echo "$t: FAILED" >&2
    fi
' "$built" "$scratch" "$seconds" TARGET || failed=' some'
for t in $targets; do
    [ -e "$scratch/$t.ok" ] || failed="$failed $t"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
