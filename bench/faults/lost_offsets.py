"""Offsets that the topic no longer has: the bridge stops and says so, or goes on from the beginning where told to."""

import contextlib
import os

from bench import Bench
from processes import Failure, say, wait_until
from segments import batches

PARTITIONS = 3
EARLIEST = ("--on-lost-offsets", "earliest")


def run(options):
    with Bench("lost-offsets", options) as bench:
        for name, case in CASES.items():
            for arguments in ((), EARLIEST):
                full_name = f"{name}{'-earliest' if arguments else ''}"
                # What nothing is lost in has no two ways to go on.
                if (case in (partitions_added, recreated_while_stopped) and arguments) or not all(text in full_name for text in options.only):
                    continue
                say(full_name)
                try:
                    case(Case(bench, full_name, arguments))
                except Failure as failure:
                    bench.verdict.violated(f"{full_name}: {failure}")
        return bench.verdict.print()


class Case:
    """A topic, a group and a sink of its own, and one bridge between them."""

    def __init__(self, bench, name, arguments):
        self.bench, self.name, self.topic, self.earliest = bench, name, name, bool(arguments)
        self.sink = bench.new_sink(f"sink-{name}")
        self.seen = set()
        # Metadata soon, so that a topic made anew and new partitions are noticed within the case's time.
        env = bench.kafka_env(name, f"kafka-env-{name}", auto_offset_reset="latest",
                              topic_metadata_refresh_interval_ms=2000)
        self.member = bench.member(f"bridge-{name}", env, name, arguments, self.sink)
        bench.cluster.create_topic(name, PARTITIONS)

    def produce(self, count, run, partitions=PARTITIONS):
        with contextlib.ExitStack() as stack:
            self.bench.stack, outer = stack, self.bench.stack
            try:
                load = self.bench.load(self.topic, partitions, f"{self.name}/{run}")
                load.send(count)
                load.finish()
            finally:
                self.bench.stack = outer

    def values(self):
        return set(self.bench.cluster.records(self.topic).values())

    def wait_for(self, values, seconds=60, started_again=False):
        """Waits until all of these values were accepted; by value, since a topic made anew has the same offsets."""
        def arrived():
            if started_again:
                self.member.look_after()
            for line in self.sink.accepted():
                self.seen.update(line[2])
            return values <= self.seen
        wait_until(f"{self.name}: {len(values)} records arrive", arrived, seconds,
                   () if started_again else [self.member.process])

    def first_run(self, count=300):
        """Forwards these many, then stops with their offsets committed."""
        self.member.start()
        self.member.wait_until_assigned()
        self.produce(count, "first")
        self.wait_for(self.values())
        self.stop()

    def stop(self):
        status, seconds = self.member.stop()
        if status != 0:
            raise Failure(f"status {status} after {seconds:.1f} s on SIGTERM\n{self.member.process.tail()}")

    def expect(self, values, hints=("--on-lost-offsets",)):
        """By default it ends with status 1 and says why; with earliest it forwards everything that is there.

        Its log names the topic and one of `hints`.
        """
        if self.earliest:
            # While a topic does not exist a bridge may end; whatever keeps it running starts it again.
            self.wait_for(values, started_again=True)
            self.stop()
            return
        status = wait_until(f"{self.name}: the bridge ends by itself",
                            lambda: {self.member.process.status()} - {None}, 60).pop()
        text = self.member.process.text()
        verdict = self.bench.verdict
        verdict.check(status == 1, f"{self.name}: status {status} instead of 1")
        verdict.check(self.topic in text and any(hint in text for hint in hints),
                      f"{self.name}: it does not explain itself\n{self.member.process.tail(5)}")


def recreate(case, count):
    cluster = case.bench.cluster
    cluster.delete_topic(case.topic)
    # The broker answers before the name is free again.
    def created():
        with contextlib.suppress(Failure):
            cluster.create_topic(case.topic, PARTITIONS)
            return True
    wait_until("the topic can be made again", created, 60)
    case.produce(count, "second")


def recreated_while_stopped(case):
    """Kafka forgets the group's offsets together with the topic, so this is a new topic, and `latest` its end."""
    case.first_run()
    recreate(case, 60)
    before = case.values()
    case.member.start()
    case.member.wait_until_assigned()
    case.produce(60, "third")
    case.wait_for(case.values() - before)
    case.stop()


def recreated_while_running(case):
    case.member.start()
    case.member.wait_until_assigned()
    case.produce(300, "first")
    case.wait_for(case.values())
    recreate(case, 60)
    case.expect(case.values(), ("--on-lost-offsets", "is gone"))


def truncated_while_stopped(case):
    """DeleteRecords went beyond the committed offset: 20 records of each partition are gone unread."""
    case.first_run(300)
    case.produce(300, "second")
    case.bench.cluster.delete_records(case.topic, {partition: 120 for partition in range(PARTITIONS)})
    case.member.start()
    case.expect(case.values())


def end_lost_while_stopped(case):
    """The log lost its last batch, as after an unclean election: committed offsets lie beyond its end."""
    case.first_run(300)
    case.produce(30, "second")
    case.member.start()
    case.wait_for(case.values())
    case.stop()
    case.bench.cluster.stop()
    for partition in range(PARTITIONS):
        segment = case.bench.cluster.segment(case.topic, partition)
        os.truncate(segment, batches(segment)[-1].at)
    case.bench.cluster.resume()
    case.member.start()
    case.expect(case.values())


def partitions_added(case):
    """With auto.offset.reset=latest nothing of a new partition is skipped."""
    case.member.start()
    case.member.wait_until_assigned()
    case.produce(300, "first")
    case.bench.cluster.add_partitions(case.topic, PARTITIONS + 3)
    # At once, long before the bridge can know of them.
    case.produce(600, "second", PARTITIONS + 3)
    case.wait_for(case.values())
    case.stop()


CASES = {
    "recreated-while-stopped": recreated_while_stopped,
    "recreated-while-running": recreated_while_running,
    "truncated-while-stopped": truncated_while_stopped,
    "end-lost-while-stopped": end_lost_while_stopped,
    "partitions-added": partitions_added,
}
