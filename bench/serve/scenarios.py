"""What is measured, and the tables that come of it."""

import concurrent.futures
import contextlib
import http.client
import os
import pathlib
import statistics
import subprocess
import time

from stage import BIG_MIB, HOST, Failure

# From ../bridge, where `stage` looks too.
import figures
from machine import by_turns
from processes import Meter, usage, wait_until

PUSHES = [
    ("per_s", "pushes/s", 0),
    ("cpu_us", "CPU us a push", 1),
    ("p50_ms", "p50 ms", 2),
    ("p99_ms", "p99 ms", 2),
    ("own_cpu_us", "load generator's CPU us a push", 1),
]
# (title, URLs, options of the load generator, over TLS)
LOADS = {
    "h1-16": ("HTTP/1.1, 16 connections, hits", "hit", {"connections": 16}, False),
    "h1-64": ("HTTP/1.1, 64 connections, hits", "hit", {"connections": 64}, False),
    "h1-256": ("HTTP/1.1, 256 connections, hits", "hit", {"connections": 256}, False),
    "h2c": ("h2c, 16 connections of 16 streams, hits", "hit", {"connections": 16, "streams": 16}, False),
    "miss": ("HTTP/1.1, 64 connections, misses that the edge fills", "miss", {"connections": 64}, False),
    "https": ("HTTP/1.1, 64 connections, hits, the edge over https", "hit", {"connections": 64}, True),
}


class Scenario:
    """One table."""

    def __init__(self, title, columns, measure, takes=lambda contestant: True, alone=False):
        self.title, self.columns, self.measure, self.takes, self.alone = title, columns, measure, takes, alone

    def run(self, bench):
        """Figures by contestant, each measured once a run, by turns."""
        taking = [contestant for contestant in bench.contestants if self.takes(contestant)]
        functions = [(one.name, lambda one=one: self.measure(bench, one)) for one in taking]
        if self.alone and functions:
            functions.append(("curl", lambda: _curl(bench, self.alone == "https")))
        return by_turns(bench.arguments.runs, functions, Failure)

    @staticmethod
    def turns(arguments):
        """How it was measured, in words."""
        return f"{arguments.runs} runs by turns; median ({figures.spread(arguments.runs)})"


class Load:
    """One table of pushes. All contestants run at once, and get their loads in short slices by turns: a neighbour of the
    machine's comes and goes within seconds, and so meets all alike."""

    columns = PUSHES

    def __init__(self, title, kind, options, tls):
        self.title, self.kind, self.options, self.tls = title, kind, options, tls

    def run(self, bench):
        """Figures by contestant, a sample for each slice of each run."""
        measured = {}
        for _ in range(bench.arguments.runs):
            with contextlib.ExitStack() as running:
                functions = [(one.name, self._start(bench, one, running)) for one in bench.contestants if self._takes(one)]
                for name, samples in by_turns(bench.arguments.slices, functions, Failure).items():
                    measured.setdefault(name, []).extend(samples)
        return measured

    @staticmethod
    def turns(arguments):
        """How it was measured, in words."""
        spread = figures.spread(arguments.runs * arguments.slices)
        return f"{arguments.runs} starts with {arguments.slices} slices of {arguments.seconds} s each by turns; median ({spread})"

    def _takes(self, contestant):
        return (contestant.speaks_h2c or "streams" not in self.options) and (contestant.speaks_tls or not self.tls)

    def _start(self, bench, contestant, running):
        """Starts it until `running` ends, and lets it get warm. Gives what measures a slice."""
        kind = self.kind + ("-h2c" if "streams" in self.options else "")
        process = running.enter_context(contestant.running(bench.stage, bench.fresh(contestant.name), kind, self.tls))

        def load(warm_up, seconds):
            told = bench.stage.push(contestant.address, self.kind, pids=_tree(process.popen.pid), tls=self.tls, warm_up=warm_up,
                                    seconds=seconds, **self.options)
            return {key: told[key] for key, *_ in PUSHES}

        load(0.5, 0.5)
        return lambda: load(0.15, bench.arguments.seconds)


def _bodies(tls):
    def measure(bench, contestant):
        pushes = 16 if contestant.is_slow else bench.arguments.bodies
        with contestant.running(bench.stage, bench.fresh(contestant.name), "big", tls) as process:
            told = bench.stage.push(contestant.address, "big", pids=_tree(process.popen.pid), tls=tls, connections=16,
                                    pushes=pushes)
        gigabytes = told["pushes"] * BIG_MIB * (1 << 20) / 1e9
        return {"gb_per_s": gigabytes / told["seconds"], "cpu_s_per_gb": told["cpu_us"] * told["pushes"] / 1e6 / gigabytes}

    columns = [("gb_per_s", "GB/s", 2), ("cpu_s_per_gb", "CPU s a GB", 3)]
    return Scenario(f"Bodies of {BIG_MIB} MiB, 16 at once, {'https' if tls else 'plain http'}", columns, measure,
                    lambda contestant: contestant.drops_bodies and (contestant.speaks_tls or not tls),
                    alone="https" if tls else "http")


def _curl(bench, tls):
    """The same bodies by 16 curls, each one after the other over one connection."""
    stage, each = bench.stage, max(1, bench.arguments.bodies // 16)
    port = stage.edge_port("big", tls)
    url = f"{'https' if tls else 'http'}://{HOST}:{port}/big/[1-{each}]"
    command = ["curl", "--silent", "--fail", "--cacert", str(stage.work / "ca.pem"), "--resolve",
               f"{HOST}:{port}:127.0.0.1", url, "--output", "/dev/null"]
    before, began = os.times(), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda _: subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode, range(16)))
    took, after = time.monotonic() - began, os.times()
    if any(done):
        raise Failure(f"curl ended with {done}")
    gigabytes = 16 * each * BIG_MIB * (1 << 20) / 1e9
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"gb_per_s": gigabytes / took, "cpu_s_per_gb": cpu / gigabytes}


def _memory(bench, contestant):
    """Resident memory at rest, the most under 256 connections, and the most with 64 bodies at once."""
    figures = {}
    with contestant.running(bench.stage, bench.fresh(contestant.name)) as process:
        time.sleep(1)
        figures["idle_mib"] = _rss_mib(process)
        connections = 16 if contestant.is_slow else 256
        with Meter(process.popen.pid) as meter:
            bench.stage.push(contestant.address, "hit", warm_up=0.5, seconds=3, connections=connections)
        figures["load_mib"] = _most_mib(meter)
    if contestant.drops_bodies:
        with contestant.running(bench.stage, bench.fresh(contestant.name), "big") as process:
            with Meter(process.popen.pid) as meter:
                bench.stage.push(contestant.address, "big", connections=4 if contestant.is_slow else 64,
                                 pushes=8 if contestant.is_slow else 128)
            figures["bodies_mib"] = _most_mib(meter)
    return figures


def _cold_start(bench, contestant):
    """From exec to the first 204, the key set's fetch included."""
    envelope = bench.stage.work / "envelope.json"
    if not envelope.exists():
        envelope.write_text('{"message":{"data":"aHR0cDovL2Nkbi5leGFtcGxlLmNvbS9oaXQveA==","messageId":"1"},"subscription":"s"}')
    body, token = envelope.read_text(), (bench.stage.work / "token").read_text()
    took = []
    for _ in range(bench.arguments.starts):
        with contestant.start(bench.stage, bench.fresh(contestant.name), "hit") as process:
            # Popen returns once exec was done.
            began = time.monotonic()
            wait_until("the first push is taken", lambda: _is_taken(contestant.port, body, token), 30, process,
                       every_seconds=0.0002)
            took.append((time.monotonic() - began) * 1000)
    return {"start_ms": statistics.median(took), "best_ms": min(took)}


def _is_taken(port, body, token):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/", body, {"Content-Type": "application/json", "Authorization": f"Bearer {token}"})
        return connection.getresponse().status in (200, 204)
    except OSError:
        return False
    finally:
        connection.close()


def _tree(pid):
    """The process and all below it, now."""
    found = [pid]
    for parent in found:
        for children in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def _rss_mib(process):
    return sum(usage(pid)[1] for pid in _tree(process.popen.pid)) / (1 << 20)


def _most_mib(meter):
    return max((rss for _, _, rss in meter.samples), default=0) / (1 << 20)


ALL = {
    **{name: Load(*load) for name, load in LOADS.items()},
    "bodies": _bodies(tls=False),
    "bodies-https": _bodies(tls=True),
    "memory": Scenario("Resident memory",
                       [("idle_mib", "idle MiB", 1), ("load_mib", "256 connections MiB", 1), ("bodies_mib", f"64 x {BIG_MIB} MiB, MiB", 1)],
                       _memory),
    "start": Scenario("Cold start", [("start_ms", "exec to first 204, median ms", 1), ("best_ms", "best ms", 1)], _cold_start),
}
