"""Bridge processes: started with a kafka-env of their own, watched, stopped, and started again."""

import json
import pathlib
import re
import shutil
import signal
import time

from processes import Failure, Process, wait_until, READY_SECONDS
from sink import TOPIC, expand

# SIGTERM must have ended a bridge by then.
STOP_SECONDS = 10
# How long an orchestrator waits before it starts again what ended by itself.
RESTART_SECONDS = 1
# What a line of the log says once partitions are the member's.
ASSIGNED = re.compile(r"\bassigned\b", re.IGNORECASE)


def write_kafka_env(path, port, group, **consumer):
    """A kafka-env file for the plain-text listener; `consumer` are librdkafka's properties with `_` for `.`."""
    properties = {"group.id": group, "auto.offset.reset": "latest",
                  **{name.replace("_", "."): value for name, value in consumer.items()}}
    path.write_text(f"[default]\nbootstrap.servers=127.0.0.1:{port}\n[consumer]\n"
                    + "".join(f"{name}={value}\n" for name, value in properties.items()))
    return path


class Member:
    """One member of the group: a bridge that may be killed and started again, all in one log file."""

    def __init__(self, name, binary, work, kafka_env, topic, sink_address, arguments=()):
        self.name = name
        self.work = work
        self.command = [binary, "bridge", str(kafka_env), topic, TOPIC, *arguments]
        self.environment = {"PUBSUB_EMULATOR_HOST": sink_address, "CDNWARM_LOG_FORMAT": "json", "NO_COLOR": "1"}
        self.process = None
        self.starts = 0
        self.ended, self.start_at = False, 0
        # (status, seconds) of each stop that was asked for, and statuses of ends that were not.
        self.stops = []
        self.own_ends = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.kill()

    def start(self):
        self.process = Process(self.name, self.command, self.work, self.environment)
        self.starts += 1
        self.ended = False
        return self

    def wait_until_assigned(self, seconds=READY_SECONDS):
        wait_until(f"{self.name} logs that partitions were assigned", self.assigned, seconds, [self.process])

    def assigned(self):
        return any(ASSIGNED.search(str(line.get("message", ""))) for line in self.lines())

    def lines(self):
        """What this run of it has logged, as objects."""
        for line in self.process.text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record

    def kill(self):
        self.process.kill()

    def freeze(self):
        self.process.send(signal.SIGSTOP)

    def thaw(self):
        self.process.send(signal.SIGCONT)

    def stop(self):
        """SIGTERM; the status and the seconds, which are kept, too, unless it had ended by itself before."""
        status = self.process.status()
        if status is not None:
            if not self.ended:
                self.own_ends.append(status)
            return status, 0.0
        result = self.process.stop(STOP_SECONDS + 20)
        self.stops.append(result)
        return result

    def look_after(self):
        """Starts it again where it ended by itself, as an orchestrator would."""
        status = self.process.status()
        if status is not None and not self.ended:
            self.own_ends.append(status)
            if len(self.own_ends) > 50:
                raise Failure(f"{self.name} keeps ending by itself\n{self.process.tail()}")
            self.start_at = time.monotonic() + RESTART_SECONDS
            self.ended = True
        if self.ended and time.monotonic() > self.start_at:
            self.start()

    def check(self, verdict, may_end=False):
        """Each stop in time with status 0; no end by itself (`may_end`: none but with an error told), no panic."""
        for status, seconds in self.stops:
            verdict.check(status == 0 and seconds <= STOP_SECONDS,
                          f"{self.name} took {seconds:.1f} s to stop, status {status}")
        ends = [status for status in self.own_ends if not may_end or status != 1]
        verdict.check(not ends, f"{self.name} ended by itself: statuses {ends}")
        panics = self.process.log.read_text(errors="replace").count("panicked at")
        verdict.check(panics == 0, f"{self.name} panicked {panics} times; see {self.process.log}")


def reported(lines):
    """{(partition, offset): reason} of the records that log lines name as given up.

    A line does so by the fields `partition`, `offset` (a number, or ranges such as `5-9,12`) and `reason`; the reason of
    a batch that cannot be read ends the range with `up to offset N`.
    """
    places = {}
    for line in lines:
        if "partition" not in line or "reason" not in line:
            continue
        offsets = expand(str(line.get("offset", "")).encode())
        if last := re.search(r"up to offset (\d+)", str(line["reason"])):
            offsets = range(min(offsets), int(last.group(1)) + 1)
        places.update({(int(line["partition"]), offset): str(line["reason"]) for offset in offsets})
    return places


def find_binary(path):
    """The bridge as a path that stays right whatever the working directory is."""
    found = shutil.which(path) or path
    resolved = pathlib.Path(found).resolve()
    if not resolved.exists():
        raise Failure(f"no {path}: build it with cargo build, or name it with --binary")
    return resolved
