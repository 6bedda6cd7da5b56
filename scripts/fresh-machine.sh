#!/usr/bin/env bash
# Follows the README on a fresh Debian 12: installs the packages that it names and runs the two commands that it
# promises, in a chroot with nothing but a minimal Debian, the Rust toolchain and the last commit of this checkout.
#
#   fresh-machine.sh
#
# Needs root, debootstrap, git, rustc and 8 GB below $TMPDIR; takes as long as a first build does. KEEP=1 keeps the
# chroot. How this machine reaches its package registries (name servers, proxies, mirrors, authorities) is copied.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(dirname "$here")
cd "$project"

[[ $(id -u) == 0 ]] || { echo "fresh-machine.sh needs root." >&2; exit 1; }
for tool in debootstrap git rustc; do
    command -v "$tool" >/dev/null || { echo "fresh-machine.sh needs $tool." >&2; exit 1; }
done
packages=$("$here/readme-block.sh" 'fresh machine: packages')
commands=$("$here/readme-block.sh" 'fresh machine: commands')

root=$(mktemp -d "${TMPDIR:-/tmp}/cdnwarm-fresh.XXXXXX")
chmod 755 "$root"

# shellcheck disable=SC2317  # called by the trap
clean_up() {
    if mountpoint -q "$root/proc"; then
        umount "$root/proc" || umount --lazy "$root/proc"
    fi
    if [[ ${KEEP:-} == 1 ]]; then
        echo "The chroot is kept in $root, with /proc unmounted."
    else
        rm -rf --one-file-system "$root"
    fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Runs a line of shell in the chroot, as root in a login with nothing of this one but its proxies.
inside() {
    local name environment=(HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive
        PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
    for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
        [[ -z ${!name:-} ]] || environment+=("$name=${!name}")
    done
    env --ignore-environment "${environment[@]}" chroot "$root" bash -ec "cd /root && $1" </dev/null
}

timed() {
    local started=$SECONDS
    printf '\n$ %s\n' "$1"
    inside "$2"
    summary+=("$(printf '%5d s  %s' $((SECONDS - started)) "$1")")
}

copy_project() {
    mkdir -p "$root/opt/rust" "$root/root/cdnwarm"
    tar -C "$(rustc --print sysroot)" --exclude=./share/doc -c . | tar -C "$root/opt/rust" -x
    git archive HEAD | tar -C "$root/root/cdnwarm" -x
}

summary=()
echo "Setting up Debian 12 in $root."
"$here/debian-root.sh" "$root"
mount -t proc proc "$root/proc"
copy_project
inside 'apt-get update -q'

while IFS= read -r line; do
    timed "$line" "${line//sudo /}"
done <<<"$packages"
while IFS= read -r line; do
    timed "$line" "cd cdnwarm && $line"
done <<<"$commands"

echo
echo "On a fresh Debian 12 with $(rustc --version):"
printf '%s\n' "${summary[@]}"
