#!/usr/bin/env bash
# Prints the first block of shell commands after a marker in the README, so that what is tested is what is written.
#
#   readme-block.sh NAME    the marker is the line <!-- NAME -->
set -euo pipefail

readme=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/README.md
[[ $# == 1 ]] || { sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[[ -f $readme ]] || { echo "There is no $readme." >&2; exit 1; }
awk -v marker="<!-- $1 -->" '
    $0 == marker { marked = 1; next }
    marked && /^```sh$/ { inside = 1; next }
    inside && /^```$/ { exit }
    inside && NF { print; found = 1 }
    END { exit !found }
' "$readme" || { echo "README.md has no commands after <!-- $1 -->." >&2; exit 1; }
