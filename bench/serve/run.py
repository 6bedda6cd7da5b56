#!/usr/bin/python3
"""Measures `cdnwarm serve` beside nginx, nginx with Lua, Go and Flask, from outside; see README.md."""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import signal
import statistics
import sys
import tempfile

import scenarios
from contestants import every_contestant
from stage import PROJECT, Failure, Stage, build_tools

# From ../bridge, where `stage` looks too.
import figures
from machine import machine, step


class Bench:
    """What the scenarios share."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.work = arguments.work_dir
        self.logs = self.work / f"run-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        every = every_contestant(arguments.binary.resolve(), arguments.option, arguments.before)
        chosen = arguments.contestants.split(",") + (["before"] if arguments.before else [])
        if unknown := set(chosen) - set(every):
            raise SystemExit(f"no such contestants: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
        self.contestants = [every[name] for name in chosen]
        self.stage = None
        self._folders = 0

    def fresh(self, name):
        """A folder that was not used before."""
        self._folders += 1
        return self.logs / f"{self._folders:03}-{name}"


def main():
    arguments = parse()
    # An end by signal unwinds like any other, so that everything that was started ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # It has a start read a folder of 150 files, which takes longer than all the rest; an image has one file.
    os.environ.pop("SSL_CERT_DIR", None)
    bench = Bench(arguments)
    bench.logs.mkdir(parents=True)
    results = {"machine": machine(), "arguments": {name: str(value) for name, value in vars(arguments).items()}}
    try:
        step("building and fetching what is missing")
        tools = arguments.tools or build_tools()
        for contestant in bench.contestants:
            contestant.prepare(bench.work)
        with Stage(bench.work, bench.logs, tools) as bench.stage:
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
    return 1 if any("failed" in run for name in arguments.scenario for runs in results[name].values() for run in runs) else 0


def report(name, bench, results):
    """Runs one scenario and prints its table and the ratios."""
    scenario = scenarios.ALL[name]
    step(f"scenario {name}")
    measured = scenario.run(bench)
    print(f"\n### {scenario.title}\n\n{results['machine']['summary']}; {scenario.turns(bench.arguments)}\n\n"
          f"{figures.table(measured, scenario.columns)}\n")
    for key, heading, _ in scenario.columns:
        if key != "own_cpu_us" and (line := ratios(measured, key)):
            print(f"- {heading}: {line}")
    sys.stdout.flush()
    return measured


def ratios(measured, key):
    """The median of cdnwarm's ratios to each other one, each of two neighbours in time; where the median lies, and all of them."""
    ours = [run.get(key) for run in measured.get("cdnwarm", [])]
    shown = []
    for name, runs in measured.items():
        pairs = [(our, run[key]) for our, run in zip(ours, runs) if our and run.get(key)]
        if name == "cdnwarm" or not pairs:
            continue
        each = [our / other for our, other in pairs]
        low, high = figures.median_within(each)
        spread = f" ({low:.2f} to {high:.2f}; all {min(each):.2f} to {max(each):.2f})" if len(each) > 1 else ""
        shown.append(f"{statistics.median(each):.2f} x {name}{spread}")
    return ", ".join(shown)


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="+", choices=scenarios.ALL, help="what to measure, in this order")
    parser.add_argument("--runs", type=int, default=3, help="runs of each contestant [default: 3]")
    parser.add_argument("--slices", type=int, default=10, help="loads of a contestant in a run [default: 10]")
    parser.add_argument("--seconds", type=float, default=0.7, help="seconds that a load is counted [default: 0.7]")
    parser.add_argument("--bodies", type=int, default=96, help="bodies in `bodies` [default: 96]")
    parser.add_argument("--starts", type=int, default=20, help="starts of a run in `start` [default: 20]")
    parser.add_argument("--contestants", default="cdnwarm,nginx-proxy,nginx-lua,go,flask",
                        help="comma list [default: %(default)s]")
    parser.add_argument("--binary", type=pathlib.Path, default=PROJECT / "target" / "release" / "cdnwarm",
                        help="the cdnwarm to measure, a release build [default: target/release/cdnwarm]")
    parser.add_argument("--before", type=pathlib.Path, metavar="BINARY",
                        help="an earlier cdnwarm, measured beside --binary as the contestant `before`")
    parser.add_argument("--option", action="append", default=[], metavar="ARG",
                        help="one more argument of cdnwarm serve, such as --option=--log-outcomes=off; may be given again")
    parser.add_argument("--tools", type=pathlib.Path, metavar="DIR", help="where push-load is, if it need not be built")
    parser.add_argument("--work-dir", type=pathlib.Path, metavar="DIR",
                        default=pathlib.Path(tempfile.gettempdir()) / "cdnwarm-bench-serve",
                        help="where everything is kept that a later run can use again [default: %(default)s]")
    arguments = parser.parse_args()
    if not arguments.binary.exists():
        parser.error(f"{arguments.binary} does not exist: build it with cargo build --release, or name it by --binary")
    arguments.work_dir = arguments.work_dir.resolve()
    return arguments


if __name__ == "__main__":
    sys.exit(main())
