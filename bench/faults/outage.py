"""Pub/Sub is away for long: the group keeps its member, memory stays bounded, and records flow soon after its return."""

import time

from allowance import PIPELINE_SECONDS
from bench import Bench
from load import SteadyLoad
from processes import say, wait_until
from sink import now_ms, status
from verdict import wait_until_committed, wait_until_delivered

PARTITIONS = 6
SHORT_SECONDS = 25
FLOWING_SECONDS = 5
# What the bridge may need above what it had before: its queues are bounded, and so is librdkafka's.
MORE_BYTES = 160 << 20
KINDS = {"refuse-connections": {"kind": "refuse_connections"},
         "hang": {"kind": "hang"},
         "permission-denied": status("PERMISSION_DENIED")}


def run(options):
    return all([outage(options, kind) for kind in KINDS if all(text in kind for text in options.only)])


def outage(options, kind):
    short = options.scale < 0.2
    away_seconds = SHORT_SECONDS if short else options.minutes * 60
    # More than the bridge may hold, so that it must stop reading.
    rate = 4_000 if short else 2_000
    with Bench(f"outage-{kind}", options) as bench:
        # Outages are longer than this: a member that did not poll meanwhile would be dropped.
        consumer = {"max_poll_interval_ms": 10_000, "session_timeout_ms": 6_000} if short else {}
        bench.cluster.create_topic("urls", PARTITIONS)
        member = bench.member("bridge", bench.kafka_env("outage", **consumer), "urls").start()
        member.wait_until_assigned()
        load = bench.load("urls", PARTITIONS)
        verdict = bench.verdict
        total = int(rate * (away_seconds + 10))
        with SteadyLoad(load, total, rate) as steady:
            wait_for_flow(bench, 2 * rate)
            owner_before = owners(bench)
            rss_before = member.process.rss_bytes()
            say(f"Pub/Sub goes away for {away_seconds:.0f} s: {kind}")
            bench.sink.faults(KINDS[kind])
            rss_max = watch(bench, member, away_seconds)
            owner_after = owners(bench)
            accepted_before = bench.sink.stats()["messages"]
            returned_ms = now_ms()
            bench.sink.faults()
            wait_for_flow(bench, accepted_before + 1)
            steady.wait()
        load.finish()
        expected = bench.cluster.records("urls")
        missing = wait_until_delivered(bench.ledger, expected, 60)
        flowing = [at for at, messages in bench.sink.stats()["samples"] if messages > accepted_before]
        flowing_after = (min(flowing) - returned_ms) / 1000 if flowing else float("inf")
        verdict.figure("flowing_after_s", round(max(0.0, flowing_after), 2))
        verdict.figure("rss_mib", f"{rss_before >> 20} before, at most {rss_max >> 20} while away")
        verdict.check(flowing_after <= FLOWING_SECONDS, f"flowing only {flowing_after:.1f} s after its return")
        verdict.check(rss_max <= rss_before + MORE_BYTES,
                      f"{(rss_max - rss_before) >> 20} MiB more than before the outage")
        verdict.check(owner_before == owner_after and set(owner_before) == set(range(PARTITIONS)),
                      f"the group changed: {owner_before} became {owner_after}")
        lost = [line for line in member.lines() if "partitions lost" in str(line.get("message", ""))
                or "revoked" in str(line.get("message", ""))]
        verdict.check(not lost, f"the bridge lost partitions: {lost[:2]}")
        verdict.check(member.process.status() is None, f"the bridge ended with status {member.process.status()}")
        member.stop()
        bench.ledger.update()
        # Nobody dies, and a call that hangs or is refused is not accepted. Only what is under way when the connections are
        # cut may be accepted without an answer.
        allowed = int(rate * PIPELINE_SECONDS) if kind == "refuse-connections" else 0
        verdict.figure("duplicates allowed", allowed)
        verdict.compare(bench.ledger, expected, missing, allowed)
        lags = wait_until_committed(bench.cluster, "outage", 10)
        verdict.check(not lags, f"offsets are not committed to the end: (committed, end) {lags}")
        member.check(verdict)
        return verdict.print()


def owners(bench):
    """Member id by partition: ids are new after each join, so they also tell of a rebalance that is over."""
    return {partition: owner for partition, (_, _, owner) in bench.cluster.describe_group("outage").items()}


def wait_for_flow(bench, messages):
    wait_until(f"{messages} messages are accepted", lambda: bench.sink.stats()["messages"] >= messages, 60,
               [bench.members[0].process])


def watch(bench, member, seconds):
    """Samples memory until the time is over; the most that was seen."""
    most, until = 0, time.monotonic() + seconds
    while time.monotonic() < until and member.process.status() is None:
        most = max(most, member.process.rss_bytes())
        time.sleep(0.2)
    return most
