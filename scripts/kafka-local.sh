#!/usr/bin/env bash
# Runs one real Apache Kafka broker on the loopback interface, for tests against the real thing.
#
#   kafka-local.sh install                  fetches the jars from Maven Central (needs java and mvn)
#   kafka-local.sh start                    starts a new, empty broker and waits until it serves
#   kafka-local.sh stop                     stops it cleanly
#   kafka-local.sh kill                     ends it as a crash would
#   kafka-local.sh resume                   starts the broker that was stopped or killed, with its data, on its ports
#   kafka-local.sh topic NAME [PARTITIONS]  creates a topic, of 6 partitions by default
#   kafka-local.sh tool CLASS ARGUMENT...   runs one of Kafka's command-line tools
#
# Everything is kept under $KAFKA_LOCAL_DIR, and the jars in $KAFKA_LOCAL_LIB, which several brokers may share.
# `start` chooses free ports, so several brokers may run at once, each in a directory of its own, and writes there:
#
#   ports                 the ports, as shell assignments: PLAINTEXT_PORT, SASL_SSL_PORT, CONTROLLER_PORT, PROXIED_PORT
#   kafka-env             the SASL_SSL listener as a file for cdnwarm, with the broker's certificate authority
#   kafka-env-system-ca   the same without it: the authority is looked for where the system keeps its own
#   ca.pem                that authority, made anew at each start
#   kafka.log, pid        the broker's log, since `start`, and its process id
#
# PROXIED_PORT is a plain-text listener for a proxy in between: it tells clients to come to the port that
# $KAFKA_LOCAL_ADVERTISED_PORT named at `start`, and without that to its own. $KAFKA_LOCAL_PROPERTIES are further lines
# for server.properties.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${KAFKA_LOCAL_DIR:-${TMPDIR:-/tmp}/cdnwarm-kafka}
lib=${KAFKA_LOCAL_LIB:-$dir/lib}

user=cdnwarm
# The values in a kafka-env file are literal. This password has what INI parsers, interpolation and comments trip over.
password='a%b\c#d=;"e'

run_java() {
    java -Dlog4j2.configurationFile="$dir/log4j2.yaml" -cp "$lib/*" "$@"
}

install_jars() {
    mvn --batch-mode --quiet --file "$here/kafka-local-pom.xml" dependency:copy-dependencies \
        -DoutputDirectory="$lib" -DincludeScope=runtime </dev/null
    echo "Kafka's jars are in $lib."
}

# Prints COUNT free ports. They lie below the range that the kernel hands out to clients, so that no connection of
# anybody's takes one before the broker does.
free_ports() {
    python3 - "$1" <<'PYTHON'
import random, socket, sys

ports = set()
while len(ports) < int(sys.argv[1]):
    port = random.randrange(20000, 32000)
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
            ports.add(port)
        except OSError:
            pass
print(*ports)
PYTHON
}

# A private authority and one certificate for localhost.
write_certificates() {
    local key=(-newkey rsa:2048 -nodes)
    openssl req -x509 "${key[@]}" -days 30 -subj '/CN=cdnwarm test authority' \
        -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
    openssl req "${key[@]}" -subj /CN=localhost -keyout "$dir/server.key" -out "$dir/server.csr" 2>/dev/null
    openssl x509 -req -in "$dir/server.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -days 30 \
        -extfile <(echo 'subjectAltName=DNS:localhost,IP:127.0.0.1') -out "$dir/server.crt" 2>/dev/null
    cat "$dir/server.key" "$dir/server.crt" "$dir/ca.pem" >"$dir/server.pem"
}

write_log_settings() {
    cat >"$dir/log4j2.yaml" <<'YAML'
Configuration:
  Appenders: {Console: {name: stderr, target: SYSTEM_ERR, PatternLayout: {pattern: "%d %p %c{1} %m%n"}}}
  Loggers:
    Root: {level: WARN, AppenderRef: {ref: stderr}}
    # Says when the broker serves.
    Logger: {name: kafka.server.KafkaRaftServer, level: INFO}
YAML
}

write_server_properties() {
    # Twice escaped: a backslash and a double quote for the login module's quoted string, then each backslash again for
    # the properties file.
    local quoted=${password//\\/\\\\}
    quoted=${quoted//\"/\\\"}
    quoted=${quoted//\\/\\\\}
    cat >"$dir/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$CONTROLLER_PORT
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$PLAINTEXT_PORT,PROXIED://127.0.0.1:$PROXIED_PORT,SASL_SSL://127.0.0.1:$SASL_SSL_PORT,CONTROLLER://127.0.0.1:$CONTROLLER_PORT
advertised.listeners=PLAINTEXT://127.0.0.1:$PLAINTEXT_PORT,PROXIED://127.0.0.1:${KAFKA_LOCAL_ADVERTISED_PORT:-$PROXIED_PORT},SASL_SSL://localhost:$SASL_SSL_PORT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,SASL_SSL:SASL_SSL
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="$user" password="$quoted" user_$user="$quoted";
ssl.keystore.type=PEM
ssl.keystore.location=$dir/server.pem
log.dirs=$dir/data
# A topic that nobody made is a mistake, as it is on hosted Kafka.
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
${KAFKA_LOCAL_PROPERTIES:-}
PROPERTIES
}

write_kafka_env() {
    local without_authority
    without_authority="[default]
bootstrap.servers=localhost:$SASL_SSL_PORT
security.protocol=SASL_SSL
sasl.mechanisms=PLAIN
sasl.username=$user
sasl.password=$password"
    local consumer="
[consumer]
group.id=cdn_prewarm_group
auto.offset.reset=latest"
    printf '%s\n' "$without_authority" "ssl.ca.location=$dir/ca.pem" "$consumer" >"$dir/kafka-env"
    printf '%s\n' "$without_authority" "$consumer" >"$dir/kafka-env-system-ca"
}

# Starts the broker on ports of its own; fails when it ends before it serves.
try_to_start() {
    read -r PLAINTEXT_PORT PROXIED_PORT SASL_SSL_PORT CONTROLLER_PORT < <(free_ports 4)
    rm -rf "$dir/data"
    write_server_properties
    run_java kafka.tools.StorageTool format --cluster-id "$(run_java kafka.tools.StorageTool random-uuid)" \
        --config "$dir/server.properties" >"$dir/format.log" 2>&1 || { cat "$dir/format.log" >&2; return 1; }
    : >"$dir/kafka.log"
    run_broker
}

# Runs the broker on the data and the ports that are there; fails when it ends before it serves.
run_broker() {
    local started_before
    started_before=$(grep -c 'Kafka Server started' "$dir/kafka.log" || true)
    java -Xms256m -Xmx768m -Dlog4j2.configurationFile="$dir/log4j2.yaml" -cp "$lib/*" \
        kafka.Kafka "$dir/server.properties" >>"$dir/kafka.log" 2>&1 </dev/null &
    echo $! >"$dir/pid"
    local deadline=$((SECONDS + 120))
    until (($(grep -c 'Kafka Server started' "$dir/kafka.log") > started_before)); do
        if ! is_running || ((SECONDS > deadline)); then
            tail -20 "$dir/kafka.log" >&2
            stop_broker
            return 1
        fi
        sleep 0.2
    done
}

start_broker() {
    [[ -n $(compgen -G "$lib/kafka_2.13-*.jar") ]] || { echo "No jars in $lib: run $0 install first." >&2; exit 1; }
    if is_running; then
        echo "A broker already runs in $dir." >&2
        exit 1
    fi
    write_log_settings
    write_certificates
    # A second try, for the case that somebody took a port in between.
    try_to_start || try_to_start || { echo "Kafka did not start; see $dir/kafka.log." >&2; exit 1; }
    write_ports
    write_kafka_env
    say_where
}

resume_broker() {
    [[ -d $dir/data && -f $dir/server.properties ]] || { echo "There is no broker's data in $dir." >&2; exit 1; }
    if is_running; then
        echo "A broker already runs in $dir." >&2
        exit 1
    fi
    # In the order in which write_server_properties names them.
    read -r PLAINTEXT_PORT PROXIED_PORT SASL_SSL_PORT CONTROLLER_PORT < <(
        grep '^listeners=' "$dir/server.properties" | grep -o ':[0-9]\+' | tr -d ':' | paste -sd ' ')
    run_broker || { echo "Kafka did not start again; see $dir/kafka.log." >&2; exit 1; }
    write_ports
    say_where
}

write_ports() {
    printf '%s\n' "PLAINTEXT_PORT=$PLAINTEXT_PORT" "SASL_SSL_PORT=$SASL_SSL_PORT" "CONTROLLER_PORT=$CONTROLLER_PORT" \
        "PROXIED_PORT=$PROXIED_PORT" >"$dir/ports"
}

say_where() {
    echo "Kafka serves on localhost:$SASL_SSL_PORT (SASL_SSL) and 127.0.0.1:$PLAINTEXT_PORT (PLAINTEXT)."
}

# A process that has ended counts as such even where nobody collects its status, as in a container without an init.
is_running() {
    [[ -f $dir/pid ]] && grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$(cat "$dir/pid")/status"
}

# Ends the broker with the signal $1.
stop_broker() {
    local signal=${1:-TERM} deadline=$((SECONDS + 30))
    while is_running; do
        if ((SECONDS > deadline)); then signal=KILL; fi
        kill -s "$signal" "$(cat "$dir/pid")" 2>/dev/null || true
        sleep 0.2
    done
    rm -f "$dir/pid" "$dir/ports"
}

bootstrap_server() {
    local PLAINTEXT_PORT=
    # shellcheck source=/dev/null
    [[ -f $dir/ports ]] && . "$dir/ports"
    [[ -n $PLAINTEXT_PORT ]] || { echo "No broker runs in $dir." >&2; return 1; }
    echo "127.0.0.1:$PLAINTEXT_PORT"
}

usage() {
    sed -n '3,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

(($# > 0)) || usage
mkdir -p "$dir"
case $1 in
install) install_jars ;;
start) start_broker ;;
resume) resume_broker ;;
stop) stop_broker ;;
kill) stop_broker KILL ;;
topic)
    (($# >= 2)) || usage
    bootstrap=$(bootstrap_server)
    run_java org.apache.kafka.tools.TopicCommand --bootstrap-server "$bootstrap" --create --topic "$2" \
        --partitions "${3:-6}"
    ;;
tool)
    (($# >= 2)) || usage
    shift
    # In place of this script, so that whoever ends the script ends the tool.
    exec java -Dlog4j2.configurationFile="$dir/log4j2.yaml" -cp "$lib/*" "$@"
    ;;
*) usage ;;
esac
