#!/usr/bin/env bash
# Makes a folder that is a minimal Debian 12 and reaches its package registries as this machine does.
#
#   debian-root.sh ROOT [PACKAGE]...
#
# Needs root and debootstrap. Name servers, apt's proxies, cargo's settings and certificate authorities are copied.
set -euo pipefail

(($# >= 1)) || { sed -n '4s/^# *//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
root=$1
shift
[[ $(id -u) == 0 ]] || { echo "debian-root.sh needs root." >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "debian-root.sh needs debootstrap." >&2; exit 1; }

mirror=
# The mirror that this machine's own packages come from, if it is a Debian.
if command -v apt-get >/dev/null; then
    # shellcheck disable=SC2016  # apt fills this in
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Codename: bookworm' | sed -n 1p)
fi
packages=$(IFS=,; echo "$*")
debootstrap --variant=minbase ${packages:+--include="$packages"} bookworm "$root" ${mirror:+"$mirror"} >/dev/null || {
    tail "$root/debootstrap/debootstrap.log" >&2
    exit 1
}

cp --dereference /etc/resolv.conf /etc/hosts "$root/etc/"
if command -v apt-config >/dev/null; then
    apt-config dump | grep -E '^Acquire::(http|https|Check|Retries)' >"$root/etc/apt/apt.conf.d/99machine" || true
fi
if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
    mkdir -p "$root/usr/local/share/ca-certificates"
    cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
fi
for settings in "${CARGO_HOME:-$HOME/.cargo}"/config{,.toml}; do
    if [[ -f $settings ]]; then
        mkdir -p "$root/root/.cargo"
        cp "$settings" "$root/root/.cargo/"
    fi
done
