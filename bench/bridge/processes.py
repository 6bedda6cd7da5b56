"""Processes that a run starts: none outlives it, and what each one takes is read from /proc while it works."""

import contextlib
import ctypes
import itertools
import os
import pathlib
import random
import signal
import socket
import subprocess
import threading
import time

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SAMPLE_SECONDS = 0.02
# Looking for children among the threads of a JVM at every sample would cost more than the samples do.
SAMPLES_A_TREE = 50
_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Failure(Exception):
    """A run did not come to its end; the text says why."""


def wait_until(what, condition, seconds, process=None, every_seconds=0.1):
    """Waits until `condition()` is true; fails when it is not in time, or when `process` ends meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.popen.poll() is not None:
            raise Failure(f"{process.name} ended with status {process.popen.returncode} while waiting until {what}\n"
                          f"{process.tail()}")
        if time.monotonic() > deadline:
            raise Failure(f"not within {seconds} s: {what}" + (f"\n{process.tail()}" if process else ""))
        time.sleep(every_seconds)


def free_port():
    """A free port below the range that the kernel hands out to clients."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run(command, **options):
    """Runs a command to its end and returns its output; fails with all that it said."""
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          preexec_fn=_die_with_parent, **options)
    if done.returncode != 0:
        raise Failure(f"{command[0]} ended with status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


class Process:
    """A running program with its output in a file; ended when the `with` block is left."""

    def __init__(self, name, command, log, environment=None, stdout=None):
        self.name = name
        self.log = pathlib.Path(log)
        self.started = time.time()
        with open(self.log, "ab") as output:
            self.popen = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=stdout or output, stderr=output,
                env={**os.environ, **(environment or {})}, preexec_fn=_die_with_parent)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self):
        """Ends it as a crash would: it gets no chance to finish anything."""
        self.popen.kill()
        self.popen.wait()

    def tail(self):
        """The end of what it wrote."""
        with contextlib.suppress(FileNotFoundError):
            return f"{self.log}:\n{self.log.read_text(errors='replace')[-1500:]}"
        return ""


class Meter:
    """Samples the CPU time and memory of a process and its children, every 20 ms in a thread of its own."""

    def __init__(self, pid):
        self.pid = pid
        # (Unix time, CPU seconds so far, resident bytes)
        self.samples = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def cpu_seconds_at(self, unix_seconds):
        """CPU seconds used until then, between the samples that lie around."""
        before = (unix_seconds, 0.0)
        for moment, cpu_seconds, _ in self.samples:
            if moment >= unix_seconds:
                span = moment - before[0]
                share = (unix_seconds - before[0]) / span if span > 0 else 1
                return before[1] + share * (cpu_seconds - before[1])
            before = (moment, cpu_seconds)
        return before[1]

    def rss_bytes_between(self, begin, end):
        """The median of the resident memory in that time, or of what was seen last before its end."""
        seen = sorted(rss for moment, _, rss in self.samples if begin <= moment <= end)
        if not seen:
            seen = [rss for moment, _, rss in self.samples if moment <= end][-1:] or [0]
        return seen[len(seen) // 2]

    def peak_rss_bytes(self):
        """The high-water mark, of the process alone where it has children."""
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return max((rss for _, _, rss in self.samples), default=0)

    def _sample(self):
        for sample in itertools.count():
            if sample % SAMPLES_A_TREE == 0:
                tree = _tree(self.pid)
            used = [usage(pid) for pid in tree]
            if any(rss_bytes for _, rss_bytes in used):
                cpu_seconds, rss_bytes = (sum(part) for part in zip(*used))
                self.samples.append((time.time(), cpu_seconds, rss_bytes))
            if self._stop.wait(SAMPLE_SECONDS):
                return


def usage(pid):
    """(CPU seconds so far, resident bytes) of one process; nothing of one that is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            # Behind the name in brackets, which may hold anything: utime and stime, then rss.
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND, int(fields[21]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0.0, 0


def _tree(pid):
    """The process and all below it."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{task}/children") as children:
                    found.extend(int(child) for child in children.read().split())
    return found


def _die_with_parent():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
