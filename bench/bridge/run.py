#!/usr/bin/python3
"""Measures `cdnwarm bridge` beside other bridges and the ceilings, from outside; see README.md."""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import signal
import sys
import tempfile

import figures
import scenarios
from contestants import Raw, every_contestant
from machine import by_turns, machine, step
from processes import Failure
from stage import PROJECT, Kafka, build_tools, write_urls


class Bench:
    """What the scenarios share."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.work = arguments.work_dir
        # What this run writes: logs, settings and results.
        self.logs = self.work / f"run-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        self.runs = arguments.runs
        self.records = arguments.records
        self.partitions = 6
        self.topic = f"bench-{self.records}"
        self.binary = arguments.binary.resolve()
        every = every_contestant(self.binary, dict(setting.split("=", 1) for setting in arguments.kafka))
        chosen = arguments.contestants.split(",")
        if unknown := set(chosen) - set(every) - {"raw"}:
            raise SystemExit(f"no such contestants: {', '.join(sorted(unknown))}; there are {', '.join(every)}, raw")
        self.every = every
        self.contestants = [every[name] for name in chosen if name != "raw"]
        self.static = every["cdnwarm-static"]
        self.raw = Raw() if "raw" in chosen else None
        self.urls = self.work / f"urls-{self.records}"
        self.kafka = self.sink_binary = None
        self._groups = 0

    def prepare(self):
        """Builds and fetches everything, so that nothing of it falls into a measurement."""
        step("building and fetching what is missing")
        tools = self.arguments.tools or build_tools(["raw-consume"] if self.raw else [])
        self.sink_binary = tools / "null-pubsub"
        needed = {contestant.name: contestant for contestant in self.contestants}
        if "pairs" in self.arguments.scenario:
            needed |= {name: self.every[name] for name in ("go", "cdnwarm")}
        for contestant in needed.values():
            contestant.prepare(self.work)
        if self.raw:
            self.raw.folder = tools
        write_urls(self.urls, self.records)

    def fill(self):
        """The topic that all read."""
        step(f"filling a topic with {self.records:,} records")
        offsets = self.kafka.make_topic_of(self.topic, self.partitions, self.urls)
        if sum(offsets) != self.records:
            raise Failure(f"the topic has {sum(offsets)} records, not {self.records}")
        self.kafka.warm_up(self.topic)

    def contestant(self, name):
        """The one of that name, whether it was chosen or not."""
        return self.every[name]

    def fresh(self, what):
        """A name that was not used before, for a group, a topic or a file."""
        self._groups += 1
        return f"{what}-{os.getpid()}-{self._groups}"

    def each_run(self, names_and_functions):
        """Calls each function once a run, by turns."""
        return by_turns(self.runs, names_and_functions, Failure)


def main():
    arguments = parse()
    # An end by signal unwinds like any other, so that everything that was started ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bench = Bench(arguments)
    bench.logs.mkdir(parents=True)
    results = {"machine": machine(), "arguments": {name: str(value) for name, value in vars(arguments).items()}}
    try:
        bench.prepare()
        with Kafka(bench.work) as bench.kafka:
            results["kafka"] = bench.kafka.version()
            if set(arguments.scenario) - {"produce", "outage"}:
                bench.fill()
            for name in arguments.scenario:
                results[name] = report(name, bench, results)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        written = bench.logs / "results.json"
        with contextlib.suppress(OSError):
            written.write_text(json.dumps(results, indent=1))
            print(f"\nAll figures: {written}", file=sys.stderr)
    failed = any("failed" in run for name in arguments.scenario for runs in results[name].values() for run in runs)
    return 1 if failed else 0


def report(name, bench, results):
    """Runs one scenario and prints its tables."""
    scenario = scenarios.ALL[name]
    step(f"scenario {name}")
    measured = scenario.run(bench)
    print(f"\n### {scenario.title}\n\n{results['machine']['summary']}; Kafka {results['kafka']}; "
          f"{bench.records:,} records; median ({figures.spread(bench.runs)})\n")
    for title, columns, names in scenario.tables(measured):
        rows = {name: measured[name] for name in names if name in measured}
        if rows:
            print(f"{title}\n\n{figures.table(rows, columns)}\n")
    for key, text, subjects, yardsticks in scenario.ratios(measured):
        if lines := figures.ratios(measured, key, subjects, yardsticks):
            print(f"{text}\n\n{lines}\n")
    if scenario.more:
        print(f"{scenario.more(measured)}\n")
    sys.stdout.flush()
    return measured


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="+", choices=scenarios.ALL, help="what to measure, in this order")
    parser.add_argument("--runs", type=int, default=3, help="runs of each contestant [default: 3]")
    parser.add_argument("--records", type=int, default=1_000_000, help="records of a run [default: 1000000]")
    parser.add_argument("--contestants", default="cdnwarm,cdnwarm-pack,connect,python,go,raw",
                        help="comma list of cdnwarm, cdnwarm-pack, cdnwarm-static, connect, python, go, raw "
                             "[default: all but cdnwarm-static]")
    parser.add_argument("--binary", type=pathlib.Path, default=PROJECT / "target" / "release" / "cdnwarm",
                        help="the cdnwarm to measure, a release build [default: target/release/cdnwarm]")
    parser.add_argument("--kafka", action="append", default=[], metavar="NAME=VALUE",
                        help="a librdkafka property for cdnwarm's consumer; may be given again")
    parser.add_argument("--latency-ms", type=int, default=20, help="what a call takes in `latency` [default: 20]")
    parser.add_argument("--tools", type=pathlib.Path, metavar="DIR",
                        help="where null-pubsub, raw-publish and raw-consume are, if they need not be built")
    parser.add_argument("--work-dir", type=pathlib.Path, metavar="DIR",
                        default=pathlib.Path(tempfile.gettempdir()) / "cdnwarm-bench",
                        help="where everything is kept that a later run can use again [default: %(default)s]")
    arguments = parser.parse_args()
    if not arguments.binary.exists():
        parser.error(f"{arguments.binary} does not exist: build it with cargo build --release, or name it by --binary")
    arguments.work_dir = arguments.work_dir.resolve()
    return arguments


if __name__ == "__main__":
    sys.exit(main())
