"""Two bridges with one --group-instance-id: the first ends and explains, the second goes on where it was."""

import time

from allowance import Allowance
from bench import Bench
from load import SteadyLoad
from processes import say, wait_until
from verdict import wait_until_committed, wait_until_delivered

PARTITIONS = 6
RECORDS = 50_000
TURNS = 5
EXPLANATION = "same --group-instance-id"


def run(options):
    total = max(5_000, int(RECORDS * options.scale))
    turns = TURNS if options.scale >= 0.2 else 2
    rate = total / (5 * turns)
    with Bench("fence", options) as bench:
        verdict = bench.verdict
        bench.cluster.create_topic("urls", PARTITIONS)
        env = bench.kafka_env("fence")
        holder, other = (bench.member(name, env, "urls", ("--group-instance-id", "one")) for name in ("a", "b"))
        holder.start().wait_until_assigned()
        load = bench.load("urls", PARTITIONS)
        allowance = Allowance()
        with SteadyLoad(load, total, rate, allowance=allowance) as steady:
            for turn in range(1, turns + 1):
                moved = total * turn // (turns + 2)
                wait_until(f"{moved} records are forwarded", lambda: len(bench.ledger.update().count) >= moved, 120,
                           [holder.process])
                other.start()
                # The first goes on until the broker refuses its next commit or heartbeat.
                allowance.cut_off("fenced", time.monotonic())
                wait_until(f"{holder.name} ends", lambda: holder.process.status() is not None, 60, [other.process])
                status = holder.process.status()
                say(f"turn {turn} of {turns}: {holder.name} ended with status {status}")
                verdict.check(status == 1, f"turn {turn}: {holder.name} ended with status {status}")
                verdict.check(EXPLANATION in holder.process.text(), f"turn {turn}: {holder.name} does not explain itself")
                holder, other = other, holder
            steady.wait()
        load.finish()
        expected = bench.cluster.records("urls")
        missing = wait_until_delivered(bench.ledger, expected, 60)
        holder.stop()
        bench.ledger.update()
        verdict.figure("duplicates allowed", allowance.text())
        verdict.compare(bench.ledger, expected, missing, allowance.records())
        lags = wait_until_committed(bench.cluster, "fence", 10)
        verdict.check(not lags, f"offsets are not committed to the end: (committed, end) {lags}")
        holder.check(verdict)
        return verdict.print()
