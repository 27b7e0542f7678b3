# shellcheck shell=sh
# Sourced by run.sh and the demos in examples: what they need besides Rust.
#
#   need cc objcopy gdb     installs what is missing, or ends with a message

# The Debian and Ubuntu packages of each command.
packages_of() {
    case $1 in
    cc) echo gcc libc6-dev ;;
    c++) echo g++ ;; # libFuzzer
    objcopy) echo binutils ;;
    gdb | gcore) echo gdb libc6-dbg ;; # names inside of libc are compared with gdb's
    gdbserver) echo gdbserver ;;
    lldb-19 | lldb-dap-19) echo lldb-19 python3-lldb-19 ;;
    eu-stack) echo elfutils ;;
    ps) echo procps ;;
    python3) echo python3 ;;
    pip3) echo python3-pip ;;
    strace) echo strace ;;
    wat2wasm) echo wabt ;;
    esac
}

missing_of() {
    for command in "$@"; do
        command -v "$command" >/dev/null 2>&1 || printf '%s ' "$command"
    done
}

need() {
    missing=$(missing_of "$@")
    [ -n "$missing" ] || return 0

    packages=
    for command in $missing; do
        packages="$packages $(packages_of "$command")"
    done

    # Without a terminal nobody can answer sudo.
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        as_root=sudo
        [ -t 0 ] && [ "${CI:-}" != true ] || as_root='sudo -n'
    fi
    if command -v apt-get >/dev/null 2>&1 && { [ -z "$as_root" ] || command -v sudo >/dev/null 2>&1; }; then
        echo "Not here: $missing- installing$packages"
        # shellcheck disable=SC2086 # lists of words
        $as_root apt-get -q update &&
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $packages
    fi

    missing=$(missing_of "$@")
    [ -n "$missing" ] || return 0
    echo >&2
    echo "$0: cannot go on without: $missing" >&2
    echo "As root on Debian or Ubuntu: apt-get install$packages" >&2
    echo "Elsewhere: the packages that hold these commands; then run this again." >&2
    exit 1
}

# cargo, also where rustup was installed a moment ago and this shell does not know of it yet.
need_cargo() {
    command -v cargo >/dev/null 2>&1 || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    command -v cargo >/dev/null 2>&1 && return 0
    echo "$0: cargo is missing; https://rustup.rs has it (Rust 1.88 or newer)" >&2
    exit 1
}
