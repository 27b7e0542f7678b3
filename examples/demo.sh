#!/bin/sh
# The demo on a machine with nothing but rustup's Rust:   sh examples/demo.sh
#
# Rust links with cc. Where it is there already, this is `cargo demo`.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
need cc
need_cargo
exec cargo demo
