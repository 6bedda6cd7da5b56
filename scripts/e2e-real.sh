#!/usr/bin/env bash
# Runs cdnwarm between a real Kafka (SASL_SSL), Google's Pub/Sub emulator and nginx caches, and compares what was
# asked for with what reached each cache, URL by URL.
#
#   e2e-real.sh [--kill] [--direct] [--system-ca] [--wrong-password] [--contract] [--all]
#
#   (none)            COUNT URLs through produce, bridge and a serve for each of two regions
#   --kill            the same while bridge is killed (SIGKILL) twice: before and after its first commit
#   --direct          the same with consume-direct beside bridge, on the same topic with the same kafka-env
#   --system-ca       produce without ssl.ca.location, the broker's authority among the system's
#   --wrong-password  a wrong password ends each role with a clear message
#   --contract        the pipeline tests of `cargo test`, on these real parts
#   --all             all of them
#
# Environment: COUNT (10000) URLs per run; CDNWARM (target/debug/cdnwarm) the binary; KAFKA_LOCAL_LIB a directory that
# has Kafka's jars or is to have them; KEEP=1 keeps the working directory, with every log.
# Needs java, mvn, nginx, openssl, curl, python3 and the emulator (see pubsub-emulator.sh); --system-ca needs root;
# --contract needs cargo.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cdnwarm=$(realpath -m "${CDNWARM:-$here/../target/debug/cdnwarm}")

for option in "$@"; do
    case $option in
    --kill | --direct | --system-ca | --wrong-password | --contract | --all) ;;
    *)
        sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
    esac
done
for tool in java mvn nginx openssl curl python3; do
    command -v "$tool" >/dev/null || { echo "e2e-real.sh needs $tool." >&2; exit 1; }
done
[[ -x $cdnwarm ]] || { echo "No binary at $cdnwarm: run cargo build, or set CDNWARM." >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/cdnwarm-e2e.XXXXXX")
export KAFKA_LOCAL_DIR=$work/kafka PUBSUB_EMULATOR_DIR=$work/emulator
export KAFKA_LOCAL_LIB=${KAFKA_LOCAL_LIB:-$work/kafka/lib}
runner=

# shellcheck disable=SC2317  # called by the trap
clean_up() {
    if [[ -n $runner ]] && kill "$runner" 2>/dev/null; then
        wait "$runner" || true
    fi
    "$here/pubsub-emulator.sh" stop || true
    "$here/kafka-local.sh" stop || true
    if [[ ${KEEP:-} == 1 ]]; then
        echo "Everything is kept in $work."
    else
        rm -rf "$work"
    fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[[ -n $(compgen -G "$KAFKA_LOCAL_LIB/kafka_2.13-*.jar") ]] || "$here/kafka-local.sh" install
"$here/kafka-local.sh" start
"$here/pubsub-emulator.sh" start

# In the background, so that a signal to this script is seen at once and the runner can end what it started.
python3 "$here/e2e_real.py" --cdnwarm "$cdnwarm" --count "${COUNT:-10000}" --work "$work" "$@" </dev/null &
runner=$!
status=0
wait "$runner" || status=$?
runner=
exit "$status"
