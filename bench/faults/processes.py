"""Child processes with their output in files, and the one way to wait: for a condition, with a deadline."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A busy machine with two cores is the usual place to run this.
READY_SECONDS = 90
TOOL_SECONDS = 120
_printing = threading.Lock()


class Failure(Exception):
    """The run cannot go on, or did not show what it is to show; the text says what."""


def say(text):
    with _printing:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def wait_until(what, condition, seconds, processes=()):
    """Waits until `condition()` is true and returns what it gave.

    Fails when it is not in time, or when one of `processes` ends meanwhile.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        for process in processes:
            if process.status() is not None:
                raise Failure(f"{process.name} ended with status {process.status()} while waiting until {what}\n"
                              f"{process.tail()}")
        if time.monotonic() > deadline:
            raise Failure(f"not within {seconds:.0f} s: {what}\n" + "\n".join(p.tail() for p in processes))
        time.sleep(0.05)
    return answer


def run_tool(command, seconds=TOOL_SECONDS, environment=None, data=None):
    """Runs a short-lived program and returns what it printed, as bytes."""
    try:
        result = subprocess.run(command, input=data if data is not None else b"", capture_output=True, timeout=seconds,
                                env={**os.environ, **(environment or {})}, start_new_session=True)
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} did not end within {seconds} s: {command}") from None
    if result.returncode != 0:
        raise Failure(f"{command} ended with status {result.returncode}\n"
                      + (result.stdout[-2000:] + result.stderr[-2000:]).decode(errors="replace"))
    return result.stdout


class Process:
    """A running program with its output in a file, which grows with each start under the same name."""

    def __init__(self, name, command, work, environment=None, **popen):
        self.name = name
        self.log = work / f"{name}.log"
        self.started = time.monotonic()
        self.log_begins_at = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as output:
            # In a session of its own, so that Ctrl-C reaches the harness alone, which then ends everything in order.
            self.popen = subprocess.Popen(command, cwd=work, env={**os.environ, **(environment or {})},
                                          start_new_session=True,
                                          **{"stdin": subprocess.DEVNULL, "stdout": output,
                                             "stderr": subprocess.STDOUT, **popen})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    @property
    def pid(self):
        return self.popen.pid

    def status(self):
        """None while it runs; below 0 where a signal ended it."""
        return self.popen.poll()

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(number)

    def kill(self):
        """Ends it as a crash would."""
        if self.popen.poll() is None:
            self.popen.kill()
        return self.popen.wait()

    def stop(self, seconds):
        """Sends SIGTERM; the status and the seconds that it took, or None where it had to be killed."""
        started = time.monotonic()
        # A stopped process would sit on its SIGTERM.
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            status = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None, time.monotonic() - started
        return status, time.monotonic() - started

    def text(self):
        """What this run of it has printed so far."""
        with open(self.log, "rb") as log:
            log.seek(self.log_begins_at)
            return log.read().decode(errors="replace")

    def tail(self, lines=15):
        return "\n".join([f"--- the end of {self.log}:", *self.text().splitlines()[-lines:]])

    def rss_bytes(self):
        """Resident memory now, 0 once it has ended."""
        with contextlib.suppress(OSError, StopIteration, ValueError):
            with open(f"/proc/{self.pid}/status") as status:
                line = next(line for line in status if line.startswith("VmRSS:"))
                return int(line.split()[1]) * 1024
        return 0


def end_on_signals():
    """SIGTERM and Ctrl-C unwind the stack, so that every `with` block ends what it started."""
    def leave(number, _frame):
        # A second signal must not interrupt the clean-up.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + number)
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
