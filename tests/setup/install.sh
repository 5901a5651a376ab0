#!/usr/bin/env bash
# Installs what a Debian 12 machine lacks, each thing only when it is missing, and says what it does.
#
#   install.sh run     what `make run` needs: Rust, a linker, root, /dev/fuse, io_uring
#   install.sh test    that, and what the tests drive: fio, git, sqlite3, rsync, an S3 server, pjdfstest
#   install.sh bench   that of `run`, and fio
#
# What cannot be installed (root, /dev/fuse, io_uring) is checked, and its absence ends this with the reason.
set -euo pipefail
cd "$(dirname "$0")/../.."

what=${1:-test}
case "$what" in
run | test | bench) ;;
*)
    echo "usage: $0 run|test|bench" >&2
    exit 2
    ;;
esac

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}

# ---- what must be there --------------------------------------------------------------------------------------------

[ "$(id -u)" = 0 ] || fail "this needs root (mounting, users for the permission tests, packages); run it as root"

if ! command -v cargo >/dev/null 2>&1; then
    # shellcheck disable=SC1091
    [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
    command -v cargo >/dev/null 2>&1 || fail "cargo is not in PATH; install Rust and run this again"
fi

if [ ! -c /dev/fuse ]; then
    command -v modprobe >/dev/null 2>&1 && modprobe fuse 2>/dev/null || true
    [ -c /dev/fuse ] || fail "/dev/fuse is missing: load the kernel module (modprobe fuse); in a container, pass it in (--device /dev/fuse --cap-add SYS_ADMIN)"
fi

if [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)" != 0 ]; then
    fail "io_uring is disabled (kernel.io_uring_disabled=$(cat /proc/sys/kernel/io_uring_disabled)); allow it: sysctl -w kernel.io_uring_disabled=0"
fi
# A container's default seccomp profile refuses the system call itself: fastcache-data says so when it starts, with what to do.

# ---- Debian packages -----------------------------------------------------------------------------------------------

missing=()
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need cc gcc
[ -f /usr/include/stdio.h ] || missing+=(libc6-dev)
need make make
if [ "$what" = test ] || [ "$what" = bench ]; then
    need fio fio
    need python3 python3
fi
if [ "$what" = test ]; then
    need git git
    need sqlite3 sqlite3
    need rsync rsync
    need tar tar
    need diff diffutils
    need curl curl
    if command -v python3 >/dev/null 2>&1; then
        python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    else
        missing+=(python3-venv)
    fi
fi
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null 2>&1 || fail "missing: ${missing[*]}; install them (this script knows apt-get only)"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update || say "apt-get update failed; trying with the lists that are here"
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
fi
[ "$what" = test ] || exit 0

# ---- what the tests drive ------------------------------------------------------------------------------------------

# A real S3 server (moto) and its client, in an environment of their own.
if [ ! -x .venv/bin/moto_server ]; then
    say "making .venv with moto (an S3 server)"
    rm -rf .venv
    python3 -m venv .venv
    .venv/bin/python -m pip install --quiet 'moto[server,s3]>=5,<6'
fi

# pjdfstest switches to these users.
id tests >/dev/null 2>&1 || {
    say "adding the user 'tests' (pjdfstest)"
    useradd --system --user-group --no-create-home --shell /usr/sbin/nologin tests
}

if [ ! -x target/tools/bin/pjdfstest ]; then
    say "building pjdfstest"
    cargo install --quiet pjdfstest --locked --root target/tools --target-dir target/tools/build
    rm -rf target/tools/build
fi
say "everything is here"
