"""Every answer that Pub/Sub can give, and none: nothing is lost, nothing is stuck."""

import itertools
import time

from bench import Bench
from load import SteadyLoad
from members import reported
from processes import say
from sink import CODES, status
from verdict import wait_until_delivered

PARTITIONS = 6
RATE = 300
# How long after a fault's end the last record may take.
STUCK_SECONDS = 30
# These speak of the request: the bridge halves it, and what is refused alone is given up and reported.
REFUSED = {"INVALID_ARGUMENT", "OUT_OF_RANGE"}


def cases(window_seconds):
    """(name, rule, for how long records are sent), for each kind of fault and each time at which it strikes."""
    kinds = {name.lower().replace("_", "-"): status(name) for name in CODES}
    for kind in ("reset", "hang", "lost_answer", "short_ids"):
        kinds[kind.replace("_", "-")] = {"kind": kind}
    times = {"first": ({"count": 1}, 1), "every-10th": ({"every": 10, "for_ms": 3000}, 3),
             "window": ({"for_ms": int(window_seconds * 1000)}, window_seconds + 1)}
    for (kind, rule), (when, (limits, seconds)) in itertools.product(kinds.items(), times.items()):
        # Every try of a whole window would be accepted and sent again: duplicates that nobody can avoid.
        if when == "window" and kind in ("lost-answer", "short-ids"):
            limits = {**limits, "every": 3}
        yield f"{kind}-{when}", {**rule, **limits}, seconds


def run(options):
    short = options.scale < 0.2
    with Bench("grpc-matrix", options) as bench:
        bench.cluster.create_topic("urls", PARTITIONS)
        member = bench.member("bridge", bench.kafka_env("matrix"), "urls").start()
        member.wait_until_assigned()
        load = bench.load("urls", PARTITIONS)
        verdict, done, given_up = bench.verdict, 0, {}
        for name, rule, seconds in cases(5 if short else 60):
            if not all(text in name for text in options.only):
                continue
            before = len(given_up)
            bench.sink.faults(rule)
            with SteadyLoad(load, load.sent + int(RATE * seconds), RATE) as steady:
                steady.wait()
            stuck = wait_for_load(bench, member, given_up)
            bench.sink.faults()
            refusable = any(name.startswith(code.lower().replace("_", "-")) for code in REFUSED)
            verdict.check(not stuck, f"{name}: {stuck} records are stuck")
            verdict.check(refusable or len(given_up) == before,
                          f"{name}: {len(given_up) - before} records given up, which this fault is no reason for")
            verdict.check(member.process.status() is None, f"{name}: the bridge ended")
            if member.process.status() is not None:
                member.start()
            say(f"{name}: {'STUCK' if stuck else 'ok'}, {len(given_up) - before} given up, "
                f"{bench.ledger.duplicates()} duplicates so far")
            done += 1
        load.finish()
        expected = bench.cluster.records("urls")
        missing = wait_until_delivered(bench.ledger, expected, STUCK_SECONDS, still=lambda: given_up)
        member.stop()
        bench.ledger.update()
        verdict.figure("cases", done)
        verdict.figure("given up and reported", len(given_up))
        verdict.compare(bench.ledger, expected, missing)
        member.check(verdict)
        return verdict.print()


def wait_for_load(bench, member, given_up):
    """Waits until as many different records are accounted for as Kafka has; how many are not in time."""
    # Not as many as were sent: kcat reads its input in blocks, and the last few lines come with the next case.
    produced = sum(bench.cluster.ends("urls", PARTITIONS).values())
    deadline = time.monotonic() + STUCK_SECONDS
    while True:
        given_up.update(reported(member.lines()))
        accounted = len(bench.ledger.update().count.keys() | given_up.keys())
        if accounted >= produced or time.monotonic() > deadline:
            return max(0, produced - accounted)
        time.sleep(0.1)
