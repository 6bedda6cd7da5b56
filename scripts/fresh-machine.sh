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

install_debian() {
    local mirror=
    # The mirror that this machine's own packages come from, if it is a Debian.
    if command -v apt-get >/dev/null; then
        # shellcheck disable=SC2016  # apt fills this in
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Codename: bookworm' | sed -n 1p)
    fi
    debootstrap --variant=minbase bookworm "$root" ${mirror:+"$mirror"} >/dev/null || {
        tail "$root/debootstrap/debootstrap.log" >&2
        return 1
    }
    mount -t proc proc "$root/proc"
}

copy_network_settings() {
    cp --dereference /etc/resolv.conf /etc/hosts "$root/etc/"
    if command -v apt-config >/dev/null; then
        apt-config dump | grep -E '^Acquire::(http|https|Check|Retries)' >"$root/etc/apt/apt.conf.d/99machine" || true
    fi
    if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
        mkdir -p "$root/usr/local/share/ca-certificates"
        cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
    fi
    local settings
    for settings in "${CARGO_HOME:-$HOME/.cargo}"/config{,.toml}; do
        if [[ -f $settings ]]; then
            mkdir -p "$root/root/.cargo"
            cp "$settings" "$root/root/.cargo/"
        fi
    done
}

copy_project() {
    mkdir -p "$root/opt/rust" "$root/root/cdnwarm"
    tar -C "$(rustc --print sysroot)" --exclude=./share/doc -c . | tar -C "$root/opt/rust" -x
    git archive HEAD | tar -C "$root/root/cdnwarm" -x
}

summary=()
echo "Setting up Debian 12 in $root."
install_debian
copy_network_settings
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
