"""What is measured: each scenario is a function from the bench to figures, and the tables that show them."""

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Callable

import figures
import pairs
from figures import BRIDGE_COLUMNS
from processes import Failure, Meter, Process, usage, wait_until
from stage import Sink

# The slowest contestant takes 40 s for a million records on two cores; twice that and more is a failure.
RUN_SECONDS = 240
QUIET_SECONDS = 3
FEED_PER_S = 20_000
FEED_SECONDS = 45
OUTAGE_SECONDS = 10

RAW_CONSUME_COLUMNS = [
    ("steady_per_s", "steady records/s", 0), ("from_start_per_s", "from start, records/s", 0),
    ("cpu_s_per_million", "CPU s per 1 M", 2), ("rss_peak_mib", "RSS peak MiB", 0),
    ("first_message_s", "first message s", 2),
]
RAW_PUBLISH_COLUMNS = [("messages_per_s", "messages/s", 0), ("cpu_s_per_million", "CPU s per 1 M", 2)]
PAIR_COLUMNS = [
    ("ratio", "steady, of go's", 2), ("from_start_ratio", "from start, of go's", 2), ("steady_per_s", "steady records/s", 0),
    ("go_per_s", "go's", 0), ("cpu_s_per_million", "CPU s per 1 M", 2), ("go_cpu_s_per_million", "go's", 2),
    ("rss_peak_mib", "RSS peak MiB", 0), ("idle_cpu_s", "machine idle, CPU s", 2),
]
YARDSTICKS = ["connect", "python", "go", "consume (poll, tuned)", "consume (poll, defaults)"]


@dataclass
class Scenario:
    """How to run it and what to show of it."""

    title: str
    run: Callable
    # (title, columns, a test for the rows' names)
    shown: list
    # (key, text)
    compared: list = field(default_factory=list)
    yardsticks: list = field(default_factory=list)
    # What else it shows, as text.
    more: Callable = None

    def tables(self, measured):
        """(title, columns, names of rows)"""
        return [(title, columns, [name for name in measured if wanted(name)])
                for title, columns, wanted in self.shown]

    def ratios(self, measured):
        """(key, text, subjects, yardsticks)"""
        subjects = [name for name in measured if name.startswith("cdnwarm")]
        return [(key, text, subjects, self.yardsticks) for key, text in self.compared]


def plain(bench):
    """Every bridge and every ceiling, with a sink that answers at once."""
    parts = [(contestant.name, lambda it=contestant: move(bench, it)) for contestant in bench.contestants]
    return bench.each_run(parts + raw_parts(bench))


def latency(bench):
    """The bridges with a sink that takes its time."""
    return bench.each_run([
        (contestant.name, lambda it=contestant: move(bench, it, latency_ms=bench.arguments.latency_ms))
        for contestant in bench.contestants])


def tls(bench):
    """What SASL_SSL costs against plain text."""
    parts = []
    for contestant in bench.contestants:
        if contestant.speaks_tls:
            parts.append((f"{contestant.name}, SASL_SSL", lambda it=contestant: move(bench, it, tls=True)))
            parts.append((f"{contestant.name}, plain text", lambda it=contestant: move(bench, it)))
    if bench.raw:
        for text, encrypted in (("SASL_SSL", True), ("plain text", False)):
            parts.append((f"consume (poll, tuned), {text}", lambda encrypted=encrypted: bench.raw.consume(
                bench.kafka, bench.topic, bench.records, "poll", tuned=True, tls=encrypted)))
    return bench.each_run(parts)


def move(bench, contestant, latency_ms=0, tls=False):
    """One run: a new group moves the whole topic."""
    group = bench.fresh("group")
    with Sink(bench.sink_binary, bench.logs / f"{group}-sink.log", latency_ms) as sink:
        command, environment = contestant.command(bench.kafka, sink, bench.topic, group, bench.logs, tls)
        log = bench.logs / f"{group}-{contestant.name}.log"
        with Process(contestant.name, command, log, environment) as process, Meter(process.popen.pid) as meter:
            sink.wait_for(bench.records, RUN_SECONDS, process)
            shown = figures.bridge_figures(sink.stats(), meter, process.started, bench.records)
        # For whoever asks whether the sink was the limit.
        shown["sink_cpu_s_per_million"] = usage(sink.process.popen.pid)[0] / (bench.records / 1e6)
        return shown


def raw_parts(bench):
    """The ceilings."""
    if not bench.raw:
        return []
    parts = []
    for way in ("poll", "c-poll", "c-batch", "c-callback"):
        for text, tuned in (("defaults", False), ("tuned", True)):
            parts.append((f"consume ({way}, {text})", lambda way=way, tuned=tuned: bench.raw.consume(
                bench.kafka, bench.topic, bench.records, way, tuned)))
    for in_flight in (1, 4, 16):
        parts.append((f"publish ({in_flight} in flight)", lambda calls=in_flight: raw_publish(bench, calls)))
    return parts


def raw_publish(bench, in_flight):
    """Publish alone, five times as many messages: it is over too soon otherwise."""
    with Sink(bench.sink_binary, bench.logs / "raw-sink.log") as sink:
        shown = bench.raw.publish(sink, 5 * bench.records, in_flight)
    return {"messages_per_s": shown["messages_per_s"], "cpu_s_per_million": shown["cpu_s"] / (shown["messages"] / 1e6)}


def restart(bench):
    """kill -9 when half is through, and a new start at once."""
    chosen = [contestant for contestant in bench.contestants if contestant.has_group]
    if any(contestant.name == "cdnwarm" for contestant in chosen) and bench.static not in chosen:
        chosen.append(bench.static)
    return bench.each_run([(contestant.name, lambda it=contestant: crash(bench, it)) for contestant in chosen])


def crash(bench, contestant):
    """One run; what came is compared by set of (partition, offset)."""
    group = bench.fresh("group")
    record = bench.logs / f"{group}-messages"
    log = bench.logs / f"{group}-{contestant.name}.log"
    with Sink(bench.sink_binary, bench.logs / f"{group}-sink.log", record=record) as sink:
        command, environment = contestant.command(bench.kafka, sink, bench.topic, group, bench.logs)
        with Process(contestant.name, command, log, environment) as process:
            wait_until("half came", lambda: sink.urls() >= bench.records / 2, RUN_SECONDS, process, 0.01)
            process.kill()
        with Process(contestant.name, command, log, environment) as process:
            # What the killed process had already sent is through by now, and the new one is not up yet.
            time.sleep(0.05)
            before = sink.urls()
            sink.reset()
            sink.wait_for(1, RUN_SECONDS, process)
            first = sink.stats()["first_message_unix_ms"] / 1000
            started = process.started
            wait_for_quiet(sink, bench.records - before, process)
    # The sink has ended, and with it everything is written down.
    total, distinct = count_records(record)
    os.remove(record)
    return {"first_message_s": first - started, "before_kill": before, "duplicates": total - distinct,
            "missing": bench.records - distinct}


def wait_for_quiet(sink, at_least, process):
    """Waits until so many URLs came and no more do."""
    seen = [0, time.monotonic()]

    def quiet():
        urls = sink.urls()
        if urls != seen[0]:
            seen[:] = urls, time.monotonic()
        return urls >= at_least and time.monotonic() - seen[1] > QUIET_SECONDS

    wait_until(f"{at_least:,} URLs came and no more do", quiet, RUN_SECONDS, process)


def count_records(path):
    """How many records were written down, and how many different ones."""
    total, distinct = 0, set()
    with open(path, "rb") as lines:
        for line in lines:
            partition, ranges, _ = line.split(b" ", 2)
            for part in ranges.split(b","):
                first, _, last = part.partition(b"-")
                for offset in range(int(first), int(last or first) + 1):
                    total += 1
                    distinct.add(int(partition) << 48 | offset)
    return total, len(distinct)


def outage(bench):
    """Pub/Sub goes away for 10 s under a steady feed."""
    chosen = [contestant for contestant in bench.contestants if contestant.has_group]
    return bench.each_run([(contestant.name, lambda it=contestant: go_away(bench, it)) for contestant in chosen])


def go_away(bench, contestant):
    """One run with a topic of its own."""
    group, topic = bench.fresh("group"), bench.fresh("steady")
    records = FEED_PER_S * FEED_SECONDS
    bench.kafka.make_topic(topic, bench.partitions)
    feed = bench.kafka.tool(
        "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", records, "--record-size", 80,
        "--throughput", FEED_PER_S, "--producer-props", f"bootstrap.servers={bench.kafka.broker}", "linger.ms=5")
    with Sink(bench.sink_binary, bench.logs / f"{group}-sink.log") as sink:
        command, environment = contestant.command(bench.kafka, sink, topic, group, bench.logs)
        log = bench.logs / f"{group}-{contestant.name}.log"
        with Process(contestant.name, command, log, environment) as process, \
                Process("feed", feed, bench.logs / f"{group}-feed.log", bench.kafka.environment):
            # 15 s into the feed everyone has found the pace, whatever the start took.
            sink.wait_for(15 * FEED_PER_S, RUN_SECONDS, process)
            left = time.time()
            sink.faults({"kind": "refuse_connections", "for_ms": OUTAGE_SECONDS * 1000})
            time.sleep(OUTAGE_SECONDS)
            produced = watch_feed(bench.kafka, topic, bench.partitions, records)
            wait_for_quiet(sink, records, process)
        stats = sink.stats()
    return after_outage(stats["samples"], left + OUTAGE_SECONDS, produced, stats["messages"] - records)


def watch_feed(kafka, topic, partitions, records):
    """How many records were in Kafka at which moments, until all of them are."""
    produced, deadline = [], time.time() + RUN_SECONDS
    while not produced or produced[-1][1] < records:
        if time.time() > deadline:
            raise Failure(f"the feed stopped at {produced[-1][1]:,} of {records:,} records")
        asked = time.time()
        produced.append((asked, sum(kafka.end_offsets(topic, partitions))))
        time.sleep(0.1)
    return produced


def after_outage(samples, back, produced, duplicates):
    """How soon all was in Pub/Sub that had been in Kafka 0.1 s before.

    What was sent twice, in and after the outage, is not counted as progress.
    """
    after = [(moment, messages) for moment, messages in samples if moment > back]
    if not after:
        raise Failure("nothing came after the outage")
    for moment, there in produced:
        arrived = max((messages for at, messages in after if at <= moment + 0.1), default=0)
        if arrived - duplicates >= there:
            return {"first_after_s": after[0][0] - back, "caught_up_s": max(moment, after[0][0]) - back,
                    "duplicates": duplicates}
    raise Failure("never caught up while the feed lasted")


def produce(bench):
    """A file of URLs into a topic, acknowledged by all replicas."""
    kafka = bench.kafka
    settings = bench.logs / "kafka-env-produce"
    settings.write_text(f"[default]\nbootstrap.servers={kafka.broker}\n[consumer]\ngroup.id=unused\n")

    def cdnwarm(topic):
        return [bench.binary, "produce", settings, topic, "--urls", bench.urls]

    def kcat(topic):
        return ["kcat", "-P", "-b", kafka.broker, "-t", topic, "-l", bench.urls, "-X", "acks=all"]

    def perf_test(topic):
        # Java itself: the time of the script around it is not its own.
        return ["java", f"-Dlog4j2.configurationFile={kafka.work / 'log4j2.yaml'}", "-cp", f"{kafka.lib}/*",
                "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", str(bench.records),
                "--payload-file", bench.urls, "--throughput", "-1",
                "--producer-props", f"bootstrap.servers={kafka.broker}", "acks=all"]

    # The broker's first records of a run of its own cost the first contestant a second.
    fill_topic(bench, kcat)
    return bench.each_run([("cdnwarm produce", lambda: fill_topic(bench, cdnwarm)),
                           ("kcat -P", lambda: fill_topic(bench, kcat)),
                           ("kafka-producer-perf-test", lambda: fill_topic(bench, perf_test))])


def fill_topic(bench, command_for):
    """One run with a topic of its own, timed from process start to its end."""
    topic = bench.fresh("produce")
    bench.kafka.make_topic(topic, bench.partitions)
    process = Process("producer", command_for(topic), bench.logs / f"{topic}.log")
    overdue = threading.Timer(RUN_SECONDS, process.popen.send_signal, [signal.SIGKILL])
    overdue.start()
    try:
        # Waited for by hand, since only this tells what it used.
        _, status, used = os.wait4(process.popen.pid, 0)
        process.popen.returncode = os.waitstatus_to_exitcode(status)
    finally:
        overdue.cancel()
        process.__exit__()
    seconds = time.time() - process.started
    if process.popen.returncode != 0:
        raise Failure(f"ended with status {process.popen.returncode}\n{process.tail()}")
    written = sum(bench.kafka.end_offsets(topic, bench.partitions))
    if written != bench.records:
        raise Failure(f"{written:,} of {bench.records:,} records were written\n{process.tail()}")
    return {"seconds": seconds, "per_s": bench.records / seconds, "cpu_s": used.ru_utime + used.ru_stime,
            "rss_peak_mib": used.ru_maxrss / 1024}


def _is_bridge(name):
    return not _is_consume(name) and not _is_publish(name)


def _is_consume(name):
    return name.startswith("consume (")


def _is_publish(name):
    return name.startswith("publish (")


_STEADY = [("steady_per_s", "Steady records/s, by the medians:")]

ALL = {
    "plain": Scenario(
        "As fast as it goes", plain,
        [("Bridges:", BRIDGE_COLUMNS, _is_bridge),
         ("librdkafka alone (tuned: " + ", ".join(("queued.min.messages=1000000", "fetch.queue.backoff.ms=5")) + "):",
          RAW_CONSUME_COLUMNS, _is_consume),
         ("Publish alone, full batches:", RAW_PUBLISH_COLUMNS, _is_publish)],
        [*_STEADY, ("cpu_s_per_million", "CPU, by the medians:")], YARDSTICKS),
    "pairs": Scenario(
        "The bare Go loop, then the bridge, in pairs", pairs.pairs,
        [("The bridge, and its ratio to the Go loop of its pair:", PAIR_COLUMNS, lambda name: True)],
        more=pairs.slowest),
    "latency": Scenario("A sink that takes its time for every call", latency,
                        [("Bridges:", BRIDGE_COLUMNS, _is_bridge)], _STEADY, YARDSTICKS),
    "tls": Scenario("SASL_SSL against plain text", tls,
                    [("Bridges:", BRIDGE_COLUMNS, _is_bridge), ("librdkafka alone:", RAW_CONSUME_COLUMNS, _is_consume)],
                    _STEADY, ["cdnwarm, plain text", "cdnwarm-pack, plain text", "consume (poll, tuned), SASL_SSL"]),
    "restart": Scenario(
        "kill -9 at half, and a new start at once", restart,
        [("From the new start:", [("first_message_s", "first message s", 2), ("before_kill", "before the kill", 0),
                                  ("duplicates", "duplicates", 0), ("missing", "missing", 0)], _is_bridge)]),
    "outage": Scenario(
        f"Pub/Sub away for {OUTAGE_SECONDS} s under {FEED_PER_S:,} records/s", outage,
        [("From its return:", [("first_after_s", "first message s", 2), ("caught_up_s", "caught up s", 2),
                               ("duplicates", "duplicates", 0)], _is_bridge)]),
    "produce": Scenario(
        "A file of URLs into a topic, acks=all", produce,
        [("From process start to its end:", [("seconds", "s", 2), ("per_s", "records/s", 0), ("cpu_s", "CPU s", 2),
                                             ("rss_peak_mib", "RSS peak MiB", 0)], lambda name: True)],
        [("per_s", "Records/s, by the medians:")], ["kcat -P", "kafka-producer-perf-test"]),
}
