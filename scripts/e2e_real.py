"""Runs cdnwarm's roles between Kafka, Google's Pub/Sub emulator and nginx caches; e2e-real.sh starts it.

The check is always the same: the set of URLs that was produced is compared with the set that each cache was asked for.
"""

import argparse
import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

from e2e_parts import (Caches, Emulator, Failure, Process, kafka_script, step, wait_until, READY_SECONDS,
                       RUN_SECONDS)

PROJECT = "e2e"
HOST = "cdn.example.com"
GROUP = "cdn_prewarm_group"
# How long the caches may go without a new URL before the run counts as stuck.
STALL_SECONDS = 90


class Run:
    """One scenario: its own topics, files, caches and processes, between the Kafka and the emulator that all share."""

    def __init__(self, name, options, stack, regions=("a", "b")):
        self.name = name
        self.cdnwarm = options.cdnwarm
        self.stack = stack
        self.work = options.work / name
        self.work.mkdir()
        self.kafka = options.work / "kafka"
        self.emulator = Emulator((options.work / "emulator" / "address").read_text().strip(), PROJECT)
        self.topic = f"urls-{name}"
        self.group = f"{GROUP}_{name.replace('-', '_')}"
        self.caches = Caches(regions, self.work)
        self.subscriptions = []
        # The process that warms each region, whose log has an outcome for every URL.
        self.warmers = {}
        kafka_script("topic", self.topic, "6")
        self.pubsub_topic = self.emulator.create_topic(self.topic)
        self.processes = [stack.enter_context(self.caches.start())]

    def kafka_env(self, name="kafka-env", authority="kafka-env", **consumer):
        """Writes a kafka-env file with these consumer properties beside the group and `auto.offset.reset=latest`."""
        connection = (self.kafka / authority).read_text().split("[consumer]")[0]
        properties = {"group.id": self.group, "auto.offset.reset": "latest",
                      **{key.replace("_", "."): value for key, value in consumer.items()}}
        path = self.work / name
        path.write_text(f"{connection}[consumer]\n" + "".join(f"{key}={value}\n" for key, value in properties.items()))
        return str(path)

    def urls(self, first, count, kind="item"):
        return [f"http://{HOST}/{kind}/{number}" for number in range(first, first + count)]

    def produce(self, kafka_env, urls, prefix=()):
        """Produces these URLs and waits until `cdnwarm produce` has ended well."""
        path = self.work / f"produce-{time.monotonic_ns()}.txt"
        path.write_text("\n".join(urls) + "\n")
        command = [*prefix, self.cdnwarm, "produce", kafka_env, self.topic, "--urls", str(path)]
        with Process("produce", command, self.work) as process:
            try:
                status = process.popen.wait(RUN_SECONDS)
            except subprocess.TimeoutExpired:
                raise Failure(f"produce did not end within {RUN_SECONDS} s\n{process.tail()}") from None
            if status != 0:
                raise Failure(f"produce ended with status {status}\n{process.tail()}")

    def start(self, name, arguments, environment=None):
        process = self.stack.enter_context(Process(name, [self.cdnwarm, *arguments], self.work, environment))
        self.processes.append(process)
        return process

    def start_serve(self, region):
        """Starts `serve` for this region and subscribes it to the Pub/Sub topic."""
        process = self.start(f"serve-{region}", ["serve", "--insecure-accept-unauthenticated", "--region", region,
                                                 *self.edge(region)], {"PORT": "0"})
        address = lambda: next((record["addr"] for record in process.records() if "addr" in record), None)
        wait_until(f"serve-{region} logs the address that it listens on (a field addr)", address, READY_SECONDS,
                   [process])
        self.warmers[region] = process
        port = address().rsplit(":", 1)[1]
        self.subscriptions.append(f"{self.name}-{region}")
        self.emulator.create_push_subscription(self.subscriptions[-1], self.pubsub_topic, f"http://127.0.0.1:{port}/")

    def edge(self, region):
        port = self.caches.ports[region]
        return ["--connect-to", f"{HOST}=127.0.0.1:{port}", "--allow-address", f"127.0.0.0/8:{port}"]

    def start_bridge(self, kafka_env):
        """Starts `bridge` and waits until Kafka has assigned it partitions: with `latest`, what was produced earlier
        is not its to forward."""
        process = self.start("bridge", ["bridge", kafka_env, self.topic, self.pubsub_topic],
                             {"PUBSUB_EMULATOR_HOST": self.emulator.address})
        self.wait_until_assigned(process)
        return process

    def start_consume_direct(self, kafka_env, region):
        process = self.start("consume-direct", ["consume-direct", kafka_env, self.topic, PROJECT, *self.edge(region)])
        self.wait_until_assigned(process)
        self.warmers[region] = process

    def wait_until_assigned(self, process):
        def assigned():
            return any(re.search(r"\bassigned\b", str(record.get("message", ""))) for record in process.records())
        wait_until(f"{process.name} logs that partitions were assigned", assigned, READY_SECONDS, [process])

    def kill(self, process):
        self.processes.remove(process)
        process.kill()

    def committed(self):
        """How many records the group's committed offsets lie behind, over all partitions."""
        bootstrap = re.search(r"PLAINTEXT_PORT=(\d+)", (self.kafka / "ports").read_text()).group(1)
        output = kafka_script("tool", "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
                              "--bootstrap-server", f"127.0.0.1:{bootstrap}", "--describe", "--group", self.group)
        rows = [line.split() for line in output.splitlines() if line.strip()]
        column = next((row.index("CURRENT-OFFSET") for row in rows if "CURRENT-OFFSET" in row), None)
        return sum(int(row[column]) for row in rows if column and row[0] == self.group and row[column].isdigit())

    def warmed_count(self):
        return sum(len(self.caches.warmed(region)) for region in self.caches.ports)

    def wait_until_warmed(self, urls):
        """Waits as long as new URLs keep reaching the caches and some are missing."""
        wanted, started = set(urls), time.monotonic()
        count, changed = -1, started
        while any(wanted - self.caches.warmed(region) for region in self.caches.ports):
            for process in self.processes:
                if process.popen.poll() is not None:
                    raise Failure(f"{process.name} ended with status {process.popen.returncode}\n{process.tail()}")
            if self.warmed_count() != count:
                count, changed = self.warmed_count(), time.monotonic()
            if time.monotonic() - changed > STALL_SECONDS:
                step(f"no new URL has reached a cache for {STALL_SECONDS} s")
                return
            time.sleep(0.5)
        step(f"all URLs are in all caches, {time.monotonic() - started:.1f} s later")

    def compare(self, urls, never=()):
        """The verdict on the run: per region, the produced URLs against the cache's log and the outcomes."""
        wanted, failures = set(urls), []
        for region in self.caches.ports:
            seen = self.caches.warmed(region)
            missing = wanted - seen
            print(f"{region}: {len(wanted - missing)} of {len(wanted)}, {len(missing)} missing", flush=True)
            if missing:
                failures.append(f"region {region} lacks {sorted(missing)[:5]}")
            if seen & set(never):
                failures.append(f"region {region} got {sorted(seen & set(never))[:5]}, older than its subscription")
        for region, process in self.warmers.items():
            failures += self.compare_outcomes(region, process, wanted)
        if failures:
            logs = "\n".join(process.tail() for process in self.processes if process.name != "nginx")
            raise Failure("; ".join(failures) + "\n" + logs)

    def compare_outcomes(self, region, process, wanted):
        outcomes = [record for record in process.records() if "verdict" in record and "url" in record]
        verdicts = {}
        for outcome in outcomes:
            verdicts[outcome["verdict"]] = verdicts.get(outcome["verdict"], 0) + 1
        print(f"{region}: {len(outcomes)} outcomes: {verdicts}", flush=True)
        warm = {outcome["url"] for outcome in outcomes if outcome["verdict"] in ("warm", "filled")}
        if wanted - warm:
            return [f"region {region} logged no outcome warm or filled for {sorted(wanted - warm)[:5]}"]
        return []

    def drain(self):
        """Ends every process as an operator would; the subscriptions go first, so that nothing pushes to a dead one."""
        for subscription in self.subscriptions:
            self.emulator.delete_subscription(subscription)
        for process in reversed(self.processes):
            if process.name != "nginx":
                process.drain()


class Production:
    """Several `cdnwarm produce` one after another, in the background."""

    def __init__(self, run, kafka_env, urls, chunks):
        self.error = None
        size = -(-len(urls) // chunks)
        self.chunks = [urls[first:first + size] for first in range(0, len(urls), size)]
        self.thread = threading.Thread(target=self.work, args=(run, kafka_env), daemon=True)
        self.thread.start()

    def work(self, run, kafka_env):
        try:
            for chunk in self.chunks:
                run.produce(kafka_env, chunk)
        except Failure as error:
            self.error = error

    def finish(self):
        self.thread.join()
        if self.error:
            raise self.error


def plain(options, stack):
    """COUNT URLs reach both regions."""
    run = Run("plain", options, stack)
    kafka_env = run.kafka_env()
    for region in run.caches.ports:
        run.start_serve(region)
    run.start_bridge(kafka_env)
    urls = run.urls(0, options.count)
    started = time.monotonic()
    run.produce(kafka_env, urls)
    step(f"produced {len(urls)} URLs in {time.monotonic() - started:.1f} s")
    run.wait_until_warmed(urls)
    run.drain()
    run.compare(urls)


def kill(options, stack):
    """`bridge` crashes before its first commit and again after one; nothing that was produced since it first joined
    its group is lost, though `auto.offset.reset=latest` would skip it."""
    run = Run("kill", options, stack)
    # A dead member keeps its partitions for the session's length, and the broker allows no shorter one.
    session = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 1000}
    never_commits = run.kafka_env("kafka-env-never-commits", auto_commit_interval_ms=3_600_000, **session)
    commits_often = run.kafka_env("kafka-env-commits-often", auto_commit_interval_ms=500, **session)
    for region in run.caches.ports:
        run.start_serve(region)
    old = run.urls(0, 60, "old")
    run.produce(never_commits, old)

    urls = run.urls(0, options.count)
    third = len(urls) // 3
    bridge = run.start_bridge(never_commits)
    production = Production(run, never_commits, urls[:third], 8)
    wait_until("a first URL is warmed", run.warmed_count, READY_SECONDS, run.processes)
    run.kill(bridge)
    step(f"killed bridge before its first commit, {run.warmed_count()} GETs after the start")
    production.finish()
    # Where it began may be committed, which is behind the older records.
    if run.committed() > len(old):
        raise Failure(f"bridge was to be killed before it committed, and {run.committed() - len(old)} records are")

    bridge = run.start_bridge(commits_often)
    production = Production(run, commits_often, urls[third:2 * third], 8)
    wait_until("bridge has committed", lambda: run.committed() > len(old), READY_SECONDS, run.processes)
    production.finish()
    production = Production(run, commits_often, urls[2 * third:], 8)
    reached = run.warmed_count()
    wait_until("more URLs are warmed", lambda: run.warmed_count() > reached, READY_SECONDS, run.processes)
    run.kill(bridge)
    step(f"killed bridge after it had committed {run.committed() - len(old)} records")
    production.finish()

    run.start_bridge(commits_often)
    run.wait_until_warmed(urls)
    run.drain()
    run.compare(urls, never=old)


def direct(options, stack):
    """`consume-direct` beside `bridge` takes nothing away from it: each gets every record."""
    run = Run("direct", options, stack, regions=("a", "direct"))
    kafka_env = run.kafka_env()
    run.start_serve("a")
    run.start_bridge(kafka_env)
    run.start_consume_direct(kafka_env, "direct")
    urls = run.urls(0, options.count)
    run.produce(kafka_env, urls)
    run.wait_until_warmed(urls)
    run.drain()
    run.compare(urls)


def system_ca(options, stack):
    """Without `ssl.ca.location`, the authorities that the system keeps are the ones that count."""
    if os.geteuid() != 0:
        raise Failure("--system-ca needs root, to show the process a certificate store of its own")
    run = Run("system-ca", options, stack, regions=())
    # The store is built as the system builds its own, but seen by this one process only.
    local, store, hooks = run.work / "local", run.work / "certificates", run.work / "hooks"
    for directory in (local, store, hooks):
        directory.mkdir()
    shutil.copy(run.kafka / "ca.pem", local / "cdnwarm-test.crt")
    subprocess.run(["update-ca-certificates", "--localcertsdir", local, "--etccertsdir", store, "--hooksdir", hooks],
                   check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=RUN_SECONDS)
    # The two variables would lead OpenSSL to another store.
    with_store = ["env", "--unset=SSL_CERT_FILE", "--unset=SSL_CERT_DIR", "unshare", "--mount",
                  "sh", "-ec", 'mount --bind "$0" /etc/ssl/certs; exec "$@"', str(store)]
    run.produce(run.kafka_env(authority="kafka-env-system-ca"), run.urls(0, 10), with_store)
    bootstrap = re.search(r"PLAINTEXT_PORT=(\d+)", (run.kafka / "ports").read_text()).group(1)
    offsets = kafka_script("tool", "org.apache.kafka.tools.GetOffsetShell", "--bootstrap-server",
                           f"127.0.0.1:{bootstrap}", "--topic", run.topic)
    records = sum(int(line.rsplit(":", 1)[1]) for line in offsets.splitlines() if line.count(":") == 2)
    print(f"produced without ssl.ca.location: {records} of 10 records", flush=True)
    if records != 10:
        raise Failure(f"the topic holds {records} records instead of 10")


def wrong_password(options, stack):
    """A wrong password ends each Kafka role with status 1 and says what to look at, without showing the password."""
    run = Run("wrong-password", options, stack, regions=())
    text = pathlib.Path(run.kafka_env()).read_text()
    path = run.work / "kafka-env-wrong"
    path.write_text(re.sub(r"(?m)^sasl\.password=.*$", "sasl.password=hunter2", text))
    for role in ("produce", "consume-direct"):
        result = subprocess.run([run.cdnwarm, role, str(path), run.topic], stdin=subprocess.DEVNULL,
                                capture_output=True, text=True, timeout=RUN_SECONDS)
        said = result.stdout + result.stderr
        fine = result.returncode == 1 and "Kafka refuses the connection" in said and "sasl.password" in said
        if not fine or "hunter2" in said:
            raise Failure(f"{role} with a wrong password ended with status {result.returncode} and said:\n{said}")
        print(f"{role}: {said.strip().splitlines()[-1]}", flush=True)


def contract(options, stack):
    """The pipeline tests that hold on the embedded parts hold here as well."""
    run = Run("contract", options, stack, regions=())
    environment = {**os.environ, "CDNWARM_TEST_KAFKA_ENV": str(run.kafka / "kafka-env"),
                   "CDNWARM_TEST_PUBSUB_EMULATOR": run.emulator.address}
    # Two at a time: the brokers share the processors with the tests, and the emulator makes two pushes at once.
    tests = subprocess.run(["cargo", "test", "--locked", "--test", "it", "pipeline::", "--", "--test-threads=2"],
                           env=environment, stdin=subprocess.DEVNULL, timeout=4 * RUN_SECONDS,
                           cwd=pathlib.Path(__file__).parent.parent)
    if tests.returncode != 0:
        raise Failure(f"cargo test ended with status {tests.returncode}")


SCENARIOS = {"plain": plain, "kill": kill, "direct": direct, "system_ca": system_ca,
             "wrong_password": wrong_password, "contract": contract}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cdnwarm", required=True)
    parser.add_argument("--count", required=True, type=int)
    parser.add_argument("--work", required=True, type=pathlib.Path)
    for name in (*list(SCENARIOS)[1:], "all"):
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true")
    options = parser.parse_args()
    if options.all:
        names = list(SCENARIOS)
    else:
        names = [name for name in SCENARIOS if getattr(options, name, False)] or ["plain"]
    # An exception, so that what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in names:
        step(f"{name}: {' '.join(SCENARIOS[name].__doc__.split())}")
        started = time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                SCENARIOS[name](options, stack)
        except Failure as failure:
            print(f"{name} FAILED: {failure}", flush=True)
            return 1
        step(f"{name}: passed in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
