"""A bridge that is asked to stop, again and again while records move, forwards each of them exactly once."""

from bench import Bench
from load import SteadyLoad
from processes import say, wait_until
from verdict import wait_until_committed, wait_until_delivered

PARTITIONS = 6
RECORDS = 125_000
STOPS = 10


def run(options):
    total = int(RECORDS * options.scale)
    stops = STOPS if options.scale >= 0.2 else 4
    # The long form moves for half a minute, the short one for ten seconds.
    rate = max(500, total / (30 if options.scale >= 0.2 else 10))
    with Bench("clean-stops", options) as bench:
        bench.cluster.create_topic("urls", PARTITIONS)
        member = bench.member("bridge", bench.kafka_env("clean"), "urls").start()
        member.wait_until_assigned()
        # Calls take a while, so that each stop meets some that are under way.
        bench.sink.faults({"kind": "latency", "ms": 30})
        load = bench.load("urls", PARTITIONS)
        with SteadyLoad(load, total, rate) as steady:
            for stop in range(1, stops + 1):
                moved = total * stop // (stops + 2)
                wait_until(f"{moved} records are forwarded", lambda: len(bench.ledger.update().count) >= moved, 120,
                           [member.process])
                status, seconds = member.stop()
                say(f"stop {stop} of {stops}: status {status} after {seconds:.1f} s")
                member.start()
            steady.wait()
        load.finish()
        expected = bench.cluster.records("urls")
        missing = wait_until_delivered(bench.ledger, expected, 60, bench.look_after_members)
        member.stop()
        bench.ledger.update()
        verdict = bench.verdict
        verdict.figure("stops", ", ".join(f"{seconds:.1f} s" for _, seconds in member.stops))
        verdict.compare(bench.ledger, expected, missing, allowed_duplicates=0)
        lags = wait_until_committed(bench.cluster, "clean", 10)
        verdict.check(not lags, f"offsets are not committed to the end: (committed, end) {lags}")
        member.check(verdict)
        return verdict.print()
