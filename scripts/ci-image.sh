#!/usr/bin/env bash
# Builds the image from the Dockerfile without any image registry, and tries it as Cloud Run would run it.
#
#   ci-image.sh [FOLDER]    where the image (as an OCI layout) and the tarball are left; none if not given
#
# Needs root, Debian's buildah and debootstrap, openssl, python3, util-linux and iproute2, a Rust toolchain, and 8 GB below
# $TMPDIR. In place of the official Rust image it builds on a minimal Debian 12 made here, with this machine's toolchain;
# all else is as `docker build` does it. Downloaded crates are this machine's. CARGO_IMAGE_TARGET names a folder in which
# what was compiled is kept for the next time: cargo looks into it, and still decides itself what has to be built again.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
folder=${1:-}
most_bytes=$((25 << 20))

[[ $(id -u) == 0 ]] || { echo "ci-image.sh needs root." >&2; exit 1; }
for tool in buildah debootstrap openssl unshare ip rustc python3; do
    command -v "$tool" >/dev/null || { echo "ci-image.sh needs $tool." >&2; exit 1; }
done

work=$(mktemp -d "${TMPDIR:-/tmp}/cdnwarm-image.XXXXXX")
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
# A store of its own, so that nothing is left on the machine.
store=(buildah --root "$work/store" --runroot "$work/run")

# shellcheck disable=SC2317  # called by the trap
clean_up() {
    "${store[@]}" umount --all >/dev/null 2>&1 || true
    # Containers' file systems may be mounted below it: never across a mount.
    rm -rf --one-file-system "$work" || true
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

timed() {
    local started=$SECONDS
    echo "-- $1"
    shift
    "$@"
    echo "-- done in $((SECONDS - started)) s"
}

# The certificate authority of the test's origin, known to the base: what the image knows of it, it has from there.
make_authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=cdnwarm image test' \
        -keyout "$work/authority.key" -out "$work/authority.pem" 2>/dev/null
}

make_base() {
    local root=$work/base container
    "$here/debian-root.sh" "$root" build-essential ca-certificates perl
    mkdir -p "$root/usr/local/share/ca-certificates" "$root/opt/rust"
    cp "$work/authority.pem" "$root/usr/local/share/ca-certificates/cdnwarm-image-test.crt"
    # Where this machine's temporary files are, there is nothing in there.
    TMPDIR=/tmp chroot "$root" update-ca-certificates >/dev/null
    container=$("${store[@]}" from scratch)
    "${store[@]}" copy --quiet "$container" "$root" / >/dev/null
    "${store[@]}" config --env PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    "${store[@]}" commit --quiet --rm "$container" localhost/rust:bookworm >/dev/null
    rm -rf --one-file-system "$root"
}

build() {
    local name proxies=() target=${CARGO_IMAGE_TARGET:-$work/target} registry=${CARGO_HOME:-$HOME/.cargo}/registry
    mkdir -p "$target" "$registry"
    for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
        [[ -z ${!name:-} ]] || proxies+=(--env "$name=${!name}")
    done
    "${store[@]}" bud --pull=never --network=host --tag localhost/cdnwarm "${proxies[@]}" \
        --volume "$(rustc --print sysroot):/opt/rust:ro" \
        --volume "$registry:/root/.cargo/registry:rw" \
        --volume "$target:/project/target:rw" \
        --build-arg BASE=localhost/rust:bookworm \
        --build-arg VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)" \
        --build-arg REVISION="$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
        .
}

# What a registry would hold, and how large that is.
check_size() {
    local bytes
    "${store[@]}" push --quiet localhost/cdnwarm "oci:$work/layout:cdnwarm"
    bytes=$(cat "$work"/layout/blobs/sha256/* | wc -c)
    echo "The image has $bytes bytes compressed ($((bytes / 1024)) KiB of $((most_bytes / 1024)) KiB), the binary $(stat -c %s "$root/cdnwarm")."
    ((bytes <= most_bytes)) || { echo "That is too much." >&2; return 1; }
}

try() {
    "${store[@]}" inspect --type image localhost/cdnwarm >"$work/inspected.json"
    timeout 600 unshare --net --mount --propagation private \
        tests/image/run.py --root "$root" --inspected "$work/inspected.json" --authority "$work/authority" --work "$work"
}

check_tarball() {
    local packed
    packed=$("$here/tarball.sh" "$root/cdnwarm" "$work")
    mkdir "$work/unpacked"
    tar -C "$work/unpacked" -xzf "$packed"
    cmp "$work"/unpacked/*/cdnwarm "$root/cdnwarm"
    (cd "$work"/unpacked/* && ./cdnwarm --version)
    ls -l "$packed"
}

make_authority
timed 'a base image' make_base
timed 'the image' build
container=$("${store[@]}" from localhost/cdnwarm)
root=$("${store[@]}" mount "$container")
timed 'its size' check_size
timed 'each role, as Cloud Run would run it' try
timed 'the same binary as a tarball' check_tarball
if [[ -n $folder ]]; then
    mkdir -p "$folder"
    cp -r "$work/layout" "$work"/cdnwarm-*.tar.gz "$folder/"
fi
