#!/usr/bin/env bash
# Packs a built binary, for machines without containers: Debian 12, or any Linux with glibc 2.36 or later.
#
#   tarball.sh [BINARY] [FOLDER]    prints the path of FOLDER/cdnwarm-VERSION-ARCHITECTURE-linux-gnu.tar.gz
#
# Defaults: target/release/cdnwarm, and dist. The binary in the image is the same: scripts/ci-image.sh packs that one. Of
# the same files the same tarball comes out, byte for byte.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
binary=${1:-${CARGO_TARGET_DIR:-$project/target}/release/cdnwarm}
folder=${2:-$project/dist}
[[ -x $binary ]] || { echo "There is no $binary: cargo build --release." >&2; exit 1; }

name=cdnwarm-$(sed -n 's/^version = "\(.*\)"/\1/p' "$project/Cargo.toml")-$(uname -m)-linux-gnu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/$name" "$folder"
install -m 755 "$binary" "$work/$name/cdnwarm"
install -m 644 "$project"/LICENSE "$project"/README.md "$project"/*.example "$work/$name/"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" -c "$name" |
    gzip -n9 >"$folder/$name.tar.gz"
echo "$folder/$name.tar.gz"
