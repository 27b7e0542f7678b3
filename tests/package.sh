#!/bin/sh
# Builds what users are given, and checks it:   sh tests/package.sh
#
#   wstate-VERSION-TARGET.tar.gz   for two targets: for any Linux with glibc, and static, which needs nothing at all
#   wstate_VERSION_amd64.deb       for Debian and Ubuntu
#   SHA256SUMS                     of these
#
# They are in target/packages afterwards. What cannot be tried on this machine is named at the end; what can be tried and fails
# ends this with an error. The program is optimized as one piece, which takes some ten minutes for each of the two targets, so
# this is no part of `run.sh`.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
need_cargo

out=$PWD/target/packages
build=${CARGO_TARGET_DIR:-target}
static_target=x86_64-unknown-linux-musl
target=x86_64-unknown-linux-gnu
version=$(sed -n '/^\[package\]$/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
# Everything is as old as the commit, so that the same commit gives the same packages.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
not_tried=
began=$(date +%s)

step() { printf '\n== %s (%ds)\n' "$1" $(($(date +%s) - began)); }
fail() {
    echo "FAILED: $*" >&2
    exit 1
}
# The things that this machine has no means for.
leave_out() {
    echo "not tried: $*"
    not_tried="$not_tried  $*
"
}
has() { command -v "$1" >/dev/null 2>&1; }

scratch=$(mktemp -d)
sleeper=
finish() {
    [ -z "$sleeper" ] || kill "$sleeper" 2>/dev/null || true
    rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
rm -rf "$out"
mkdir -p "$out"

step 'the program'
cargo build --locked --profile dist --package wstate --bin wstate
# What is stripped has no debug information. The symbol table stays: `[profile.dist]` says why.
check_binary() {
    bytes=$(wc -c <"$1")
    echo "$1: $bytes bytes"
    if [ "$bytes" -lt 5000000 ] || [ "$bytes" -gt 13000000 ]; then
        fail "$1 has $bytes bytes, and 5 to 13 million are expected"
    fi
    if has readelf; then
        ! readelf -S --wide "$1" | grep -q '\.debug_' || fail "$1 has debug information"
    fi
    [ "$("$1" --version)" = "wstate $version" ] || fail "$1 --version does not print wstate $version"
}
check_binary "$build/dist/wstate"

step 'the static program'
# The very command of the Dockerfile, so that it is tried where there is no docker.
static=
in_dockerfile=$(sed -n 's/^RUN \(cargo build .*\)$/\1/p' Dockerfile)
case $in_dockerfile in
*"--target $static_target"*) ;;
*) fail "the Dockerfile builds for another target than $static_target" ;;
esac
if has rustup && rustup target add "$static_target"; then
    # shellcheck disable=SC2086 # a command and its words
    $in_dockerfile
    static=$build/$static_target/dist/wstate
    check_binary "$static"
    if has readelf; then
        ! readelf -l --wide "$static" | grep -q INTERP || fail "$static needs a dynamic linker"
        ! readelf -d --wide "$static" | grep -q NEEDED || fail "$static needs libraries"
    fi
else
    leave_out "the static program: rustup cannot add $static_target"
fi

step 'the static program in an empty root'
as_root=
if [ "$(id -u)" -ne 0 ]; then
    as_root='unshare --user --map-root-user'
fi
if [ -z "$static" ]; then
    leave_out 'an empty root: there is no static program'
elif ! $as_root chroot / true 2>/dev/null; then
    leave_out 'an empty root: this user may not change the root directory'
else
    root=$scratch/root
    mkdir -p "$root/proc" "$root/tmp"
    # As the Dockerfile puts it there.
    cp "$static" "$root/wstate"
    # shellcheck disable=SC2086 # words of a command
    inside() { $as_root chroot "$root" /wstate "$@"; }
    [ "$(inside --version)" = "wstate $version" ] || fail 'it does not run in an empty root'
    sleep 1000 &
    sleeper=$!
    if has gcore && gcore -o "$scratch/core" "$sleeper" >/dev/null 2>&1; then
        cp "$scratch/core.$sleeper" "$root/core"
    else
        leave_out 'a core in an empty root: gcore makes none here'
    fi
    if [ -s "$root/core" ]; then
        # A container always has /proc. Where it is not mounted, the error says that.
        if inside core /core >"$scratch/report" 2>"$scratch/errors" || ! grep -q 'mount -t proc' "$scratch/errors"; then
            cat "$scratch/report" "$scratch/errors"
            fail 'without /proc the error does not say what is missing'
        fi
    fi
    # With the file systems of a container. The sandbox of a core must hold with the system calls of this C library too. Of the
    # files that the target runs there is none but what /proc/PID/root leads to, so names may be missing: that is code 1.
    # shellcheck disable=SC2016 # for the inner shell
    contained() {
        code=0
        unshare ${as_root:+--user --map-root-user} --mount sh -c '
            root=$1
            shift
            mount --rbind /proc "$root/proc" && WSTATE_SANDBOX=required exec chroot "$root" /wstate "$@"
        ' sh "$root" "$@" >"$scratch/report" 2>"$scratch/errors" || code=$?
        if grep -q -e '^unshare:' -e '^mount:' "$scratch/errors"; then
            leave_out "wstate $1 in an empty root: $(head -n 1 "$scratch/errors")"
        elif [ $code -le 1 ] && grep -q "^Thread $sleeper " "$scratch/report"; then
            grep -A 1 "^Thread " "$scratch/report"
        else
            cat "$scratch/report" "$scratch/errors"
            fail "wstate $1 finds no thread in an empty root (code $code)"
        fi
    }
    [ ! -s "$root/core" ] || contained core /core
    contained attach "$sleeper"
fi

step 'man pages and completions'
files=$out/files
mkdir -p "$files/man" "$files/completions"
program=$build/dist/wstate
"$program" man "$files/man" >/dev/null || fail 'the program writes no man pages (wstate man DIR)'
[ -s "$files/man/wstate.1" ] || fail 'there is no man page wstate.1'
"$program" completions bash >"$files/completions/wstate.bash" || fail 'no completions for bash'
"$program" completions zsh >"$files/completions/_wstate" || fail 'no completions for zsh'
"$program" completions fish >"$files/completions/wstate.fish" || fail 'no completions for fish'
for page in "$files"/man/*.1; do
    if has man; then
        complaints=$(LC_ALL=C.UTF-8 MANROFFSEQ='' MANWIDTH=100 man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 >/dev/null)
        [ -z "$complaints" ] || fail "$page: $complaints"
    fi
done
echo "man pages: $(find "$files/man" -name '*.1' | wc -l)"
has man || leave_out 'the man pages are not rendered: there is no man'
check_completions() {
    if ! has "$1"; then
        leave_out "completions for $1: there is no $1"
    else
        "$1" -n "$2" || fail "$1 does not read its completions"
    fi
}
check_completions bash "$files/completions/wstate.bash"
check_completions zsh "$files/completions/_wstate"
check_completions fish "$files/completions/wstate.fish"

step 'archives'
# The names are those that `cargo binstall` makes of Cargo.toml.
template() { sed -n "/^\[package.metadata.binstall\]$/,/^\[/s/^$1 = \"\(.*\)\"$/\1/p" Cargo.toml; }
rendered() {
    template "$1" | sed -e 's/{ name }/wstate/g' -e 's/{ bin }/wstate/g' -e "s/{ version }/$version/g" -e "s/{ target }/$2/g" \
        -e 's/{ binary-ext }//g'
}
archive() {
    url=$(rendered pkg-url "$1")
    archive=${url##*/}
    in_archive=$(rendered bin-dir "$1")
    top=${in_archive%%/*}
    rm -rf "${scratch:?}/archive"
    mkdir -p "$scratch/archive/$top"
    cp "$2" "$scratch/archive/$top/wstate"
    cp -R README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT gdb-plugin lldb-plugin "$scratch/archive/$top"
    [ ! -d docs ] || cp -R docs "$scratch/archive/$top"
    cp -R "$files/man" "$files/completions" "$scratch/archive/$top"
    find "$scratch/archive" -name __pycache__ -prune -exec rm -rf {} +
    chmod -R u=rwX,go=rX "$scratch/archive"
    tar -C "$scratch/archive" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - "$top" |
        gzip -n -9 >"$out/$archive"
    # As cargo binstall and people unpack it.
    mkdir -p "$scratch/unpacked"
    tar -xzf "$out/$archive" -C "$scratch/unpacked"
    [ "$("$scratch/unpacked/$in_archive" --version)" = "wstate $version" ] || fail "$archive has no $in_archive that runs"
    for file in LICENSE-MIT LICENSE-APACHE README.md man/wstate.1 completions/_wstate gdb-plugin/wstate_gdb.py; do
        [ -s "$scratch/unpacked/$top/$file" ] || fail "$archive has no $file"
    done
    ! tar -tzf "$out/$archive" | grep -q -e '^/' -e '\.\.' || fail "$archive has paths that lead out of it"
    echo "$archive: $(wc -c <"$out/$archive") bytes"
}
archive "$target" "$program"
[ -z "$static" ] || archive "$static_target" "$static"

step 'the Debian package'
cat >"$files/changelog" <<CHANGES
wstate ($version-1) unstable; urgency=medium

  * /usr/share/doc/wstate/changelog.gz says what has changed.

 -- $(sed -n 's/^maintainer = "\(.*\)"$/\1/p' Cargo.toml)  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
CHANGES
# Debian wants the text of the one licence, and the name of the other, which is on every Debian.
{
    cat <<COPYRIGHT
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: wstate

Files: *
Copyright: $(sed -n 's/^Copyright (c) //p' LICENSE-MIT)
License: MIT or Apache-2.0

License: MIT
COPYRIGHT
    sed -e '1,/^Copyright/d' LICENSE-MIT | sed -e '1{/^$/d;}' -e 's/^$/./' -e 's/^/ /'
    cat <<COPYRIGHT

License: Apache-2.0
 On Debian systems, the text of this licence is in /usr/share/common-licenses/Apache-2.0.
COPYRIGHT
} >"$files/copyright"
if ! has cargo-deb && ! nice cargo install --locked cargo-deb; then
    leave_out 'the Debian package: cargo-deb cannot be installed'
elif ! has dpkg-deb; then
    leave_out 'the Debian package: there is no dpkg-deb'
else
    cargo deb --package wstate --profile dist --no-build --no-strip --locked --output "$out"
    deb=$(echo "$out"/*.deb)
    echo "${deb##*/}: $(wc -c <"$deb") bytes"
    dpkg-deb --info "$deb" | sed -n 's/^ \(Depends\|Suggests\|Installed-Size\|Version\):/  \1:/p'
    debian=$scratch/debian
    dpkg-deb -x "$deb" "$debian"
    for file in bin/wstate share/man/man1/wstate.1.gz share/bash-completion/completions/wstate \
        share/zsh/vendor-completions/_wstate share/fish/vendor_completions.d/wstate.fish share/wstate/wstate_gdb.py \
        share/wstate/wstate_lldb.py share/wstate/wstate_client.py share/doc/wstate/copyright share/doc/wstate/README.md; do
        # What has more than 4 kB is packed there.
        [ -s "$debian/usr/$file" ] || [ -s "$debian/usr/$file.gz" ] || fail "the package has no /usr/$file"
    done
    [ "$("$debian/usr/bin/wstate" --version)" = "wstate $version" ] || fail 'the program of the package does not run'
    ! find "$debian" -name __pycache__ | grep -q . || fail 'the package has what Python has compiled'
    if has lintian; then
        # As root it would warn about being root.
        lintian --fail-on error --allow-root --suppress-tags-from-file tests/tools/lintian.txt "$deb" ||
            fail 'lintian finds errors in the package'
    else
        leave_out 'lintian is not here'
    fi
    # Into a root of its own, with a database of its own, as `dpkg -i` does it.
    if [ "$(id -u)" -eq 0 ]; then
        installed=$scratch/installed
        mkdir -p "$installed/var/lib/dpkg/info" "$installed/var/lib/dpkg/updates"
        : >"$installed/var/lib/dpkg/status"
        : >"$installed/var/lib/dpkg/available"
        # What it depends on is not in that root.
        dpkg --root="$installed" --force-depends --log=/dev/null -i "$deb" >"$scratch/dpkg" 2>&1 ||
            fail "dpkg does not install it: $(cat "$scratch/dpkg")"
        dpkg --root="$installed" -s wstate | grep -q '^Status: install ok installed$' || fail 'it is not installed'
        [ -x "$installed/usr/bin/wstate" ] || fail 'dpkg has installed no /usr/bin/wstate'
        dpkg --root="$installed" --log=/dev/null --purge wstate >"$scratch/dpkg" 2>&1 || fail "$(cat "$scratch/dpkg")"
        [ ! -e "$installed/usr/bin/wstate" ] || fail 'dpkg leaves the program behind'
    else
        leave_out 'an installation by dpkg: this user is not root'
    fi
fi

step 'the image'
if has docker && docker info >/dev/null 2>&1; then
    docker build --tag wstate-package-test .
    [ "$(docker run --rm wstate-package-test --version)" = "wstate $version" ] || fail 'the image does not run'
    docker image inspect --format 'the image has {{.Size}} bytes' wstate-package-test
    docker image rm wstate-package-test >/dev/null
elif [ -n "$static" ]; then
    leave_out 'docker build: no docker runs here; the build command of the Dockerfile was run all the same'
else
    leave_out 'docker build: no docker runs here'
fi

step 'the crates'
changed=
[ -z "$(git status --porcelain 2>/dev/null)" ] || changed=--allow-dirty
# shellcheck disable=SC2086 # nothing, or one word
{
    # With `--list` nothing is built. `tests/run.sh` checks the unpacked crate of the program.
    cargo package --package wstate --list --quiet $changed >"$scratch/listed"
    cargo package --package wstate-descriptor --locked --quiet $changed
}
for file in src/main.rs README.md LICENSE-MIT LICENSE-APACHE; do
    grep -qx "$file" "$scratch/listed" || fail "the crate has no $file"
done
! grep -E '(\.1|\.bash|\.fish|/_wstate|\.deb|^Dockerfile|^target/|^tests/|^descriptor/)$' "$scratch/listed" ||
    fail 'the crate has files that are made, or that only packages need'

rm -rf "$files"
(cd "$out" && sha256sum -- * >"$scratch/sums" && cp "$scratch/sums" SHA256SUMS && sha256sum -c SHA256SUMS)
step 'done'
ls -l "$out"
[ -z "$not_tried" ] || printf 'not tried on this machine:\n%s' "$not_tried"
