#!/bin/sh
# Makes the seeds again: state maps, artifacts and modules of the real runtime, and a real core of the few pages that an
# analysis reads (no environment, no file names).
set -eu
cd "$(dirname "$0")/.."
WSTATE_FUZZ_SEEDS=$PWD/fuzz/seeds cargo test --test hostile -- --ignored --exact write_fuzz_seeds
