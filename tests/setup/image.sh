#!/usr/bin/env bash
# Builds k8s/Dockerfile as localhost/fastcache:dev, without Docker and without pulling anything: both base images are made of
# Debian's packages, and the Rust of this machine is lent to the first. Everything is in target/image; `rm -r` makes it anew.
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD/target/image
mkdir -p "$top/target"

# Copies instead of overlays: works where containers are nested.
run_buildah() { buildah --root "$top/store" --runroot "$top/run" --storage-driver vfs "$@"; }

# base NAME PACKAGE…
base() {
    local name=$1 container
    shift
    ! run_buildah inspect --type image "localhost/$name" >/dev/null 2>&1 || return 0
    echo "image: making $name of Debian's packages"
    mmdebstrap --quiet --variant=minbase --include="$(IFS=, && echo "$*")" bookworm "$top/$name.tar"
    container=$(run_buildah from scratch)
    run_buildah add --quiet "$container" "$top/$name.tar" / >/dev/null
    [ "$name" != fastcache-rust ] || run_buildah config --env PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --env CARGO_HOME=/opt/cargo "$container"
    run_buildah commit --quiet --rm "$container" "localhost/$name" >/dev/null
    rm "$top/$name.tar"
}

base fastcache-base ca-certificates
base fastcache-rust ca-certificates gcc libc6-dev make

# What an earlier build left.
run_buildah rm --all >/dev/null
run_buildah bud --isolation chroot --pull-never --file k8s/Dockerfile --ignorefile k8s/Dockerfile.dockerignore \
    --build-arg RUST_IMAGE=localhost/fastcache-rust --build-arg BASE_IMAGE=localhost/fastcache-base \
    --volume "$(rustc --print sysroot):/opt/rust:ro" --volume "${CARGO_HOME:-$HOME/.cargo}:/opt/cargo" \
    --volume "$top/target:/src/target" --tag localhost/fastcache:dev .
run_buildah rmi --prune >/dev/null
