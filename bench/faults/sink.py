"""The null Pub/Sub of bench/sink as a process: its faults, its counts and what it accepted."""

import http.client
import json
import re
import time

from processes import READY_SECONDS, ROOT, Failure, Process, wait_until

BINARY = ROOT / "bench" / "sink" / "target" / "release" / "null-pubsub"
TOPIC = "projects/bench/topics/faults"

# gRPC's status codes.
CODES = {"CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5,
         "ALREADY_EXISTS": 6, "PERMISSION_DENIED": 7, "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9, "ABORTED": 10,
         "OUT_OF_RANGE": 11, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14, "DATA_LOSS": 15,
         "UNAUTHENTICATED": 16}


class Sink(Process):
    """Accepts, counts and writes down what is published."""

    def __init__(self, binary, work, name="sink"):
        if not binary.exists():
            raise Failure(f"no {binary}: build it with cargo build --release --manifest-path bench/sink/Cargo.toml")
        self.record = work / f"{name}-accepted.txt"
        self.read_to = 0
        super().__init__(name, [binary, "--record", self.record], work)
        ready = wait_until("the sink says where it listens",
                           lambda: re.search(r"listening (\S+) control (\S+)", self.text()), READY_SECONDS, [self])
        self.address, self.control = ready.groups()

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.control, timeout=20)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            response = connection.getresponse()
            text = response.read()
            if response.status >= 300:
                raise Failure(f"the sink answers {response.status} to {path} {body}: {text[:200]}")
            return json.loads(text) if text.strip() else None
        finally:
            connection.close()

    def faults(self, *rules):
        """Replaces all faults; none clears them."""
        self.ask("POST", "/faults", list(rules))

    def stats(self):
        return self.ask("GET", "/stats")

    def accepted(self):
        """Messages that were accepted since the last call, as (partition, first offset, offsets, lines of data)."""
        if not self.record.exists():
            return
        with open(self.record, "rb") as record:
            record.seek(self.read_to)
            for line in record:
                # The rest of a line that is being written comes with the next call.
                if not line.endswith(b"\n"):
                    break
                self.read_to += len(line)
                partition, offsets, data = line[:-1].split(b" ", 2)
                yield (int(partition) if partition.isdigit() else None), expand(offsets), data.split(b"|")

    def wait_for_calls(self, more, seconds, processes=()):
        """Waits until so many more calls came, accepted or not."""
        calls = lambda: (lambda s: s["calls"] + s["calls_not_accepted"])(self.stats())
        target = calls() + more
        wait_until(f"{more} more publish calls", lambda: calls() >= target, seconds, processes)


def status(name, **rule):
    """The rule for answers with this gRPC status."""
    return {"kind": "status", "code": CODES[name], "message": f"{name} as told", **rule}


def expand(offsets):
    """`5-9,12` as a list; empty where there are none."""
    numbers = []
    for part in offsets.decode().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def now_ms():
    return time.time_ns() // 1_000_000
