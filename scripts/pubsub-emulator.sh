#!/usr/bin/env bash
# Runs Google's Pub/Sub emulator on the loopback interface, for tests against a server that is not ours.
#
#   pubsub-emulator.sh start    starts it on a free port and waits until it answers
#   pubsub-emulator.sh stop     stops it
#
# Everything is kept under $PUBSUB_EMULATOR_DIR, one directory per emulator. `start` writes the address there into
# `address` (what PUBSUB_EMULATOR_HOST takes), the log into `emulator.log` and the process id into `pid`.
# The jar is part of the Google Cloud SDK; $PUBSUB_EMULATOR_JAR names another one.
set -euo pipefail

dir=${PUBSUB_EMULATOR_DIR:-${TMPDIR:-/tmp}/cdnwarm-pubsub-emulator}

find_jar() {
    if [[ -n ${PUBSUB_EMULATOR_JAR:-} ]]; then
        echo "$PUBSUB_EMULATOR_JAR"
        return
    fi
    local root jar
    # Asking gcloud takes a second, so the usual places come first.
    for root in "${CLOUDSDK_ROOT_DIR:-}" /usr/lib/google-cloud-sdk /usr/share/google-cloud-sdk /opt/google-cloud-sdk \
        "$HOME/google-cloud-sdk" /snap/google-cloud-cli/current \
        "$(command -v gcloud >/dev/null && gcloud info --format='value(installation.sdk_root)' 2>/dev/null)"; do
        for jar in "$root"/platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar; do
            if [[ -n $root && -f $jar ]]; then
                echo "$jar"
                return
            fi
        done
    done
    echo "No Pub/Sub emulator on this machine: install the Google Cloud SDK and its component" \
        "google-cloud-cli-pubsub-emulator, or set PUBSUB_EMULATOR_JAR." >&2
    return 1
}

# A free port below the range that the kernel hands out to clients.
free_port() {
    python3 - <<'PYTHON'
import random, socket

while True:
    port = random.randrange(20000, 32000)
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
            print(port)
            break
        except OSError:
            pass
PYTHON
}

# A process that has ended counts as such even where nobody collects its status, as in a container without an init.
is_running() {
    [[ -f $dir/pid ]] && grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$(cat "$dir/pid")/status"
}

answers() {
    # The emulator answers requests without this content type with "Not Found".
    curl --silent --fail --max-time 5 --noproxy '*' --header 'Content-Type: application/json' \
        --output /dev/null "http://$1/v1/projects/none/topics"
}

try_to_start() {
    local jar=$1 address
    address=127.0.0.1:$(free_port)
    java -Xmx1g -jar "$jar" --host=127.0.0.1 --port="${address##*:}" >"$dir/emulator.log" 2>&1 </dev/null &
    echo $! >"$dir/pid"
    local deadline=$((SECONDS + 60))
    until answers "$address"; do
        if ! is_running || ((SECONDS > deadline)); then
            tail -20 "$dir/emulator.log" >&2
            stop_emulator
            return 1
        fi
        sleep 0.2
    done
    echo "$address" >"$dir/address"
}

start_emulator() {
    if is_running; then
        echo "An emulator already runs in $dir." >&2
        exit 1
    fi
    local jar
    jar=$(find_jar)
    # A second try, for the case that somebody took the port in between.
    if ! try_to_start "$jar" && ! try_to_start "$jar"; then
        echo "The emulator did not start; see $dir/emulator.log." >&2
        exit 1
    fi
    echo "The Pub/Sub emulator serves on $(cat "$dir/address")."
}

stop_emulator() {
    local signal=TERM deadline=$((SECONDS + 15))
    while is_running; do
        if ((SECONDS > deadline)); then signal=KILL; fi
        kill -s "$signal" "$(cat "$dir/pid")" 2>/dev/null || true
        sleep 0.2
    done
    rm -f "$dir/pid" "$dir/address"
}

mkdir -p "$dir"
case ${1:-} in
start) start_emulator ;;
stop) stop_emulator ;;
*)
    sed -n '3,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
