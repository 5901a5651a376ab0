#!/usr/bin/env bash
# Installs what a Debian 12 machine lacks, each thing only when it is missing, and says what it does.
#
#   install.sh run     what `make run` needs: Rust, a linker, root, /dev/fuse, io_uring
#   install.sh test    that, and what the tests drive: fio, git, sqlite3, rsync, attr, stress-ng, nbdkit, faketime, openssl, iproute2, node, PostgreSQL,
#                      an S3 and an Azure server, pjdfstest, fsx
#   install.sh bench   that of `run`, and fio
#   install.sh clouds  that of `test`, and an S3 server that checks signatures (s3s-fs, two minutes of compiling)
#   install.sh ceph    that of `test`, and a Ceph object gateway (65 MB of packages)
#   install.sh image   that of `test`, and what builds and runs the image (buildah, mmdebstrap)
#
# What cannot be installed (root, /dev/fuse, io_uring) is checked, and its absence ends this with the reason.
set -euo pipefail
cd "$(dirname "$0")/../.."

what=${1:-test}
case "$what" in
run | test | bench | clouds | ceph | image) ;;
*)
    echo "usage: $0 run|test|bench|clouds|ceph|image" >&2
    exit 2
    ;;
esac

# What is wanted beyond the tests.
extra=
if [ "$what" = clouds ] || [ "$what" = ceph ] || [ "$what" = image ]; then
    extra=$what
    what=test
fi

# Two runs at once would be in each other's way.
mkdir -p target
exec 9>target/setup.lock
flock 9

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
    need setfattr attr
    need curl curl
    need setpriv util-linux
    need ps procps
    need openssl openssl
    need ip iproute2
    need node nodejs
    need npm npm
    need stress-ng stress-ng
    # Devices that fail when told to, other people's file systems, and clocks that jump.
    need losetup mount
    need mkfs.ext4 e2fsprogs
    need nbdkit nbdkit
    need nbdfuse libnbd-bin
    need faketime faketime
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

# PostgreSQL runs on the mount in a test of its own; Debian's package would start a server of its own, too.
if ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
    command -v apt-get >/dev/null 2>&1 || fail "missing: PostgreSQL; install it (this script knows apt-get only)"
    say "installing postgresql"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update || say "apt-get update failed; trying with the lists that are here"
    apt-get -qq install -y --no-install-recommends postgresql-common >/dev/null
    sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    apt-get -qq install -y --no-install-recommends postgresql >/dev/null
fi

# ---- what the tests drive ------------------------------------------------------------------------------------------

# pjdfstest switches to these users.
id tests >/dev/null 2>&1 || {
    say "adding the user 'tests' (pjdfstest)"
    useradd --system --user-group --no-create-home --shell /usr/sbin/nologin tests
}

python_tools() {
    # A real S3 server (moto) and its client, in an environment of their own.
    if [ ! -x .venv/bin/moto_server ]; then
        say "making .venv with moto (an S3 server)"
        rm -rf .venv
        python3 -m venv .venv
        .venv/bin/python -m pip install --quiet 'moto[server,s3]>=5,<6'
    fi
    # Makes requests from an openapi.json and compares the answers with it.
    if [ ! -x .venv/bin/schemathesis ]; then
        say "installing schemathesis"
        .venv/bin/python -m pip install --quiet 'schemathesis>=4.32,<5'
    fi
    # The schemas of Kubernetes.
    if [ ! -x .venv/bin/kubernetes-validate ]; then
        say "installing kubernetes-validate"
        .venv/bin/python -m pip install --quiet 'kubernetes-validate>=1.37,<2'
    fi
}

# A real Azure Blob server.
azurite() {
    if [ ! -f target/tools/azurite/node_modules/azurite/dist/src/blob/main.js ]; then
        say "installing Azurite (an Azure Blob server)"
        npm install --prefix target/tools/azurite --omit=dev --no-audit --no-fund --silent azurite@3
    fi
}

# The POSIX suites.
posix_suites() {
    local suite
    for suite in pjdfstest fsx; do
        if [ ! -x "target/tools/bin/$suite" ]; then
            say "building $suite"
            cargo install --quiet "$suite" --locked --root target/tools --target-dir target/tools/build
        fi
    done
    rm -rf target/tools/build
}

# Side by side: each waits for another server.
jobs=()
for job in python_tools azurite posix_suites; do
    (set -e; "$job") &
    jobs+=("$!")
done
for job in "${jobs[@]}"; do
    wait "$job" || fail "something could not be installed; what went wrong is said above"
done

if [ "$extra" = clouds ] && [ ! -x target/tools/bin/s3s-fs ]; then
    say "building s3s-fs"
    cargo install --quiet s3s-fs --version 0.14.1 --features binary --locked --root target/tools --target-dir target/tools/build
    rm -rf target/tools/build
fi
if [ "$extra" = ceph ] && ! command -v radosgw >/dev/null; then
    say "installing Ceph"
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        ceph-mon ceph-osd ceph-mgr ceph-common radosgw >/dev/null
fi
if [ "$extra" = image ] && ! { command -v buildah && command -v mmdebstrap; } >/dev/null; then
    say "installing buildah and mmdebstrap"
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends buildah mmdebstrap >/dev/null
fi
say "everything is here"
