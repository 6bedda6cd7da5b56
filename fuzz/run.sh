#!/usr/bin/env bash
# Runs fuzz targets, each for so many executions: fuzz/run.sh 10000000 [TARGET...]. Ends with the first finding.
#
# Needs cargo-fuzz (`cargo install cargo-fuzz`) and a C++ compiler, but no nightly Rust: the parsers hold no unsafe code
# for a sanitizer to watch. New inputs are kept in fuzz/corpus, findings in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${1:?"how many executions of each target?"}
shift
targets=("$@")
if ((${#targets[@]} == 0)); then
    mapfile -t targets < <(cargo fuzz list)
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
seeds=$work/urls
mkdir "$seeds"
# Where each target starts from, beside what it found before.
cut -f2 tests/corpora/ssrf_urls.txt | split --suffix-length=4 --lines=1 - "$seeds/url."
declare -A seeds_of=(
    [envelope]=tests/corpora/push_envelopes
    [url_and_guard]=$seeds
    [cache_headers]=fuzz/seeds/cache_headers
    [framing]=fuzz/seeds/framing
    [token]=fuzz/seeds/token
)

for target in "${targets[@]}"; do
    echo "== $target, $runs executions"
    mkdir -p "fuzz/corpus/$target"
    # One input may take 10 s, and the target 2 GiB of memory, before that is a finding.
    if ! cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "${seeds_of[$target]:-$seeds}" -- \
        -runs="$runs" -timeout=10 -max_len=16384 -verbosity=0 -print_final_stats=1 >"$work/log" 2>&1; then
        tail -60 "$work/log"
        exit 1
    fi
    grep '^stat::' "$work/log"
done
