#!/bin/sh
# The demo without a host to build, in plain Python:   sh examples/demo-python.sh
#
# It takes seconds where wstate is built or installed. The host is PyPI's `wasmtime`, which pip puts into target/ (30 MB), and
# nothing is installed or left elsewhere.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
packages=target/demo-python

# python3 and pip of one installation: `python3 -m pip`.
need python3
python3 -m pip --version >/dev/null 2>&1 || need pip3
if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "$0: $(command -v python3) has no pip; on Debian or Ubuntu: apt-get install python3-pip" >&2
    exit 1
fi

# The newest that was built here, else what is installed.
# shellcheck disable=SC2012 # names of ours
wstate=$(ls -t target/release/wstate target/debug/wstate 2>/dev/null | head -n 1)
[ -n "$wstate" ] || wstate=$(command -v wstate) || :
if [ -z "$wstate" ]; then
    need cc
    need_cargo
    echo 'demo: wstate is not built yet; that takes about a minute on two processors, once.'
    cargo build --package wstate --bins
    wstate=target/debug/wstate
fi

# A package is there as a whole or not at all.
if [ ! -d "$packages" ]; then
    echo 'demo: gets the package wasmtime (10 MB, once)'
    rm -rf "$packages.new"
    # --target is for a directory of ours, so this is no change to the system's Python (PEP 668).
    export PIP_ROOT_USER_ACTION=ignore
    if ! python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --only-binary :all: \
        --target "$packages.new" wasmtime==50.0.1; then
        rm -rf "$packages.new"
        echo "$0: pip did not get wasmtime 50.0.1; its message is above. \`cargo demo\` needs no pip." >&2
        exit 1
    fi
    mv "$packages.new" "$packages"
fi

PYTHONPATH=$packages PYTHONDONTWRITEBYTECODE=1 python3 examples/demo/python.py "$wstate"
