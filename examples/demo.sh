#!/bin/sh
# The demo on a machine with nothing but rustup's Rust:   sh examples/demo.sh
#
# Builds wstate and two hosts, and attaches to them; the demo says how long that takes. Rust links with cc: where it is there
# already, this is `cargo demo`. `--python` is the demo that builds no host (demo-python.sh).
set -eu
cd "$(dirname "$0")/.."
case ${1:-} in
'') ;;
--python) exec sh examples/demo-python.sh ;;
*)
    echo "$0: there is no option $1; there is --python" >&2
    exit 64
    ;;
esac
. tests/need.sh
need cc
need_cargo
exec cargo demo
