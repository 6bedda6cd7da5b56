"""Runs the bare Go loop and `cdnwarm bridge` in pairs, and shows what the bridge did in its slowest run."""

import contextlib
import pathlib
import re
import statistics
import threading
import time
import urllib.request

import figures
from processes import Failure, Meter, Process, free_port
from stage import Sink

SAMPLE_SECONDS = 0.05
# One row of the timeline.
STEP_SECONDS = 0.1
# What the timeline shows of /metrics: heading, and the metric whose series are added up.
SHOWN = [("read", "records_read_total"), ("published", "records_published_total"),
         ("committed", "partition_committed_offset"), ("uncommitted", "in_flight_records"),
         ("calls", "in_flight_calls"), ("calls limit", "in_flight_calls_limit")]
EVENTS = re.compile(r"partitions (paused|resumed|assigned|revoked|lost)|not committed|coordinator|stopped", re.I)


class Watch:
    """Samples a bridge's /metrics in a thread of its own."""

    def __init__(self, address):
        self.address = address
        # (Unix time, {metric: sum of its series})
        self.samples = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _sample(self):
        while not self._stop.wait(SAMPLE_SECONDS):
            # Before the bridge listens, and after its end, there is nothing to see.
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{self.address}/metrics", timeout=5) as answer:
                self.samples.append((time.time(), sums(answer.read().decode())))


def sums(text):
    """Each metric of the exposition format with the sum of its series, without the prefix that names the role."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.replace("{", " ", 1).partition(" ")
            short = re.sub(r"^cdnwarm_(bridge|consumer)_", "", name)
            found[short] = found.get(short, 0) + float(value.rsplit(" ", 1)[-1])
    return found


def idle_seconds():
    """CPU seconds that all cores of the machine have been idle."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[4]) / 100


def pairs(bench):
    """As many pairs as `--runs` says: the Go loop, then the bridge, each with a new group and a new sink."""
    go, bridge = bench.contestant("go"), bench.contestant("cdnwarm")

    def pair():
        yardstick = one_run(bench, go)
        measured = one_run(bench, bridge)
        return {**measured, "go_per_s": yardstick["steady_per_s"], "go_cpu_s_per_million": yardstick["cpu_s_per_million"],
                "ratio": measured["steady_per_s"] / yardstick["steady_per_s"],
                "from_start_ratio": measured["from_start_per_s"] / yardstick["from_start_per_s"]}

    return bench.each_run([("cdnwarm beside go", pair)])


def one_run(bench, contestant):
    """One contestant moves the whole topic; of the bridge with its metrics over time."""
    group = bench.fresh("group")
    with Sink(bench.sink_binary, bench.logs / f"{group}-sink.log") as sink:
        command, environment = contestant.command(bench.kafka, sink, bench.topic, group, bench.logs)
        watch = contextlib.nullcontext()
        if contestant.has_group:
            port = free_port()
            watch = Watch(f"127.0.0.1:{port}")
            command += ["--metrics-addr", f"127.0.0.1:{port}"]
        log = bench.logs / f"{group}-{contestant.name}.log"
        idle = idle_seconds()
        with Process(contestant.name, command, log, environment) as process, Meter(process.popen.pid) as meter, watch:
            sink.wait_for(bench.records, 240, process)
            stats = sink.stats()
            shown = figures.bridge_figures(stats, meter, process.started, bench.records)
            shown["idle_cpu_s"] = idle_seconds() - idle
        if contestant.has_group:
            shown["timeline"] = timeline(process.started, stats["samples"], watch.samples, log)
    return shown


def timeline(started, accepted, samples, log):
    """Rows of what happened, a step each, and the events of the log at their times."""
    rows, last_accepted = [], 0
    end = accepted[-1][0] if accepted else started
    moment = started
    while moment < end + STEP_SECONDS:
        moment += STEP_SECONDS
        so_far = max((messages for at, messages in accepted if at <= moment), default=0)
        seen = [values for at, values in samples if moment - STEP_SECONDS < at <= moment]
        row = {"s": round(moment - started, 2), "accepted": so_far - last_accepted}
        for heading, name in SHOWN:
            row[heading] = seen[-1].get(name) if seen else None
        rows.append(row)
        last_accepted = so_far
    events = [line.strip() for line in log.read_text(errors="replace").splitlines() if EVENTS.search(line)]
    return {"rows": rows, "events": events[:50]}


def slowest(measured):
    """The pair with the smallest ratio as text: its figures, its timeline, its events."""
    runs = [run for run in measured["cdnwarm beside go"] if "failed" not in run]
    if not runs:
        raise Failure("no pair came to its end")
    ratios = sorted(run["ratio"] for run in runs)
    run = min(runs, key=lambda run: run["ratio"])
    headings = ["s", "accepted", *(heading for heading, _ in SHOWN)]
    lines = [
        f"Ratios of the pairs, steady records/s: median {statistics.median(ratios):.2f}, smallest {ratios[0]:.2f}, "
        f"largest {ratios[-1]:.2f}; all: {', '.join(f'{ratio:.2f}' for ratio in ratios)}",
        "",
        f"The slowest pair: {run['steady_per_s']:,.0f}/s beside {run['go_per_s']:,.0f}/s, "
        f"{run['cpu_s_per_million']:.2f} CPU s per million, the machine idle for {run['idle_cpu_s']:.2f} CPU s:",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
    ]
    for row in run["timeline"]["rows"]:
        lines.append("| " + " | ".join(
            "" if row[heading] is None else f"{row[heading]:,.1f}" if heading == "s" else f"{row[heading]:,.0f}"
            for heading in headings) + " |")
    lines += ["", "Its log: " + ("; ".join(run["timeline"]["events"]) or "no event")]
    return "\n".join(lines)
