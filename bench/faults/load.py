"""Puts numbered URLs into a topic at a steady rate, through broker restarts, by one kcat per partition."""

import subprocess
import threading
import time

from processes import Failure, Process

# Written to kcat in slices, so that the rate is steady and not a burst a second.
SLICES_A_SECOND = 20


def url(run, number):
    return f"http://cdn.example.com/{run}/{number}"


class Load:
    """Records 0, 1, 2... spread over the partitions; kcat tries each again until the broker has it."""

    def __init__(self, cluster, topic, partitions, work, stack, run="item"):
        self.run = run
        self.sent = 0
        self.producers = []
        for partition in range(partitions):
            command = ["kcat", "-P", "-E", "-b", cluster.bootstrap, "-t", topic, "-p", str(partition),
                       # -E: goes on when no broker is there. Neither lost nor doubled by one that goes away, however long.
                       "-X", "acks=all", "-X", "message.timeout.ms=0", "-X", "enable.idempotence=true",
                       "-X", "linger.ms=20", "-X", "queue.buffering.max.messages=1000000"]
            producer = Process(f"producer-{partition}", command, work, stdin=subprocess.PIPE)
            self.producers.append(stack.enter_context(producer))

    def send(self, count):
        """Adds the next records; returns once kcat has them, which is before the broker does."""
        lines = [[] for _ in self.producers]
        for number in range(self.sent, self.sent + count):
            lines[number % len(self.producers)].append(url(self.run, number))
        self.sent += count
        for producer, slice_ in zip(self.producers, lines):
            if not slice_:
                continue
            try:
                producer.popen.stdin.write(("\n".join(slice_) + "\n").encode())
                producer.popen.stdin.flush()
            except OSError:
                raise Failure(f"a producer ended\n{producer.tail()}") from None

    def finish(self, seconds=120):
        """Waits until the broker has everything."""
        for producer in self.producers:
            producer.popen.stdin.close()
        for producer in self.producers:
            try:
                status = producer.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                raise Failure(f"records are not produced within {seconds} s\n{producer.tail()}") from None
            if status != 0:
                raise Failure(f"a producer ended with status {status}\n{producer.tail()}")


class SteadyLoad:
    """Sends on a thread of its own at `rate` records a second, never beyond `allowed`, until `total` are sent."""

    def __init__(self, load, total, rate, allowed=None, allowance=None):
        self.load, self.total, self.rate, self.allowance = load, total, rate, allowance
        self.allowed = total if allowed is None else allowed
        self.failure = None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join(20)

    def wait(self):
        """Waits until all are sent."""
        while self.thread.is_alive():
            self.thread.join(0.2)
        if self.failure:
            raise self.failure

    def _run(self):
        due, last = 0.0, time.monotonic()
        try:
            while self.load.sent < self.total and not self.stopped.wait(1 / SLICES_A_SECOND):
                now = time.monotonic()
                # After a pause no burst: at most a second's worth is due at once.
                due = min(due + (now - last) * self.rate, self.rate)
                last = now
                count = int(min(due, self.allowed - self.load.sent, self.total - self.load.sent))
                if count > 0:
                    self.load.send(count)
                    if self.allowance:
                        self.allowance.note_sent(time.monotonic(), self.load.sent)
                    due -= count
        except Failure as failure:
            self.failure = failure
