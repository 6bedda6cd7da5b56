"""Starts and stops the bridge at any moment, without a broker and inside rebalances: it always ends, never crashes."""

import random
import signal
import time

from bench import Bench
from members import STOP_SECONDS
from processes import say
from verdict import wait_until_delivered

PARTITIONS = 6
PLAIN, BROKER_AWAY, REBALANCE = 100, 50, 50


def run(options, strategy):
    rng = random.Random(options.seed)
    kinds = sum(([kind] * max(2, round(count * options.scale)) for kind, count in
                 (("plain", PLAIN), ("broker-cut", BROKER_AWAY // 2), ("broker-stalled", BROKER_AWAY // 2),
                  ("rebalance", REBALANCE))), [])
    rng.shuffle(kinds)
    with Bench(f"cycles-{strategy}", options) as bench:
        bench.cluster.create_topic("urls", PARTITIONS)
        env = bench.kafka_env("cycles", partition_assignment_strategy=strategy, session_timeout_ms=6000,
                              heartbeat_interval_ms=1000)
        partner = bench.member("partner", env, "urls").start()
        partner.wait_until_assigned()
        member = bench.member("bridge", env, "urls")
        load = bench.load("urls", PARTITIONS)
        verdict, statuses, slowest = bench.verdict, {}, 0.0
        for number, kind in enumerate(kinds, 1):
            load.send(50)
            status, seconds = cycle(bench, member, partner, kind, rng)
            statuses[f"{kind} {status}"] = statuses.get(f"{kind} {status}", 0) + 1
            slowest = max(slowest, seconds)
            # Nothing catches a signal that comes before main; the bridge has done nothing then.
            too_early = status == -signal.SIGTERM and not member.process.text()
            verdict.check(status in (0, 1) or too_early, f"cycle {number}, {kind}: status {status}")
            verdict.check(seconds <= STOP_SECONDS, f"cycle {number}, {kind}: {seconds:.1f} s to end")
            if number % 10 == 0:
                say(f"cycle {number} of {len(kinds)}")
        load.finish()
        expected = bench.cluster.records("urls")
        missing = wait_until_delivered(bench.ledger, expected, 60, partner.look_after)
        partner.stop()
        bench.ledger.update()
        verdict.figure("ends", dict(sorted(statuses.items())))
        verdict.figure("slowest_s", round(slowest, 1))
        verdict.compare(bench.ledger, expected, missing)
        partner.check(verdict, may_end=True)
        return verdict.print()


def cycle(bench, member, partner, kind, rng):
    """One start and stop; the status (None where it had to be killed) and how long the end took."""
    if kind == "broker-cut":
        bench.proxy.cut()
    elif kind == "broker-stalled":
        bench.proxy.stall()
    try:
        member.start()
        # From before it has read its arguments to when it moves records.
        time.sleep(rng.uniform(0, 2))
        if kind == "rebalance":
            # Its partner comes back or leaves at the same moment.
            if rng.random() < 0.5:
                partner.kill()
                partner.start()
            else:
                partner.stop()
                partner.start()
            time.sleep(rng.uniform(0, 1))
        if member.process.status() is not None:
            return member.process.status(), 0.0
        return member.stop()
    finally:
        bench.proxy.pass_on()
        partner.look_after()
