"""Compares what the topic holds with what Pub/Sub accepted: by set of records, never by totals."""

import collections
import time

from processes import Failure, say, wait_until


class Ledger:
    """What was accepted so far: how often each (partition, offset), and whether with the value that Kafka holds."""

    def __init__(self, sink):
        self.sink = sink
        self.count = collections.Counter()
        self.values = {}
        self.changed = []
        self.strays = []

    def update(self):
        for partition, offsets, lines in self.sink.accepted():
            if partition is None or len(offsets) != len(lines):
                self.strays.append((partition, offsets[:3], lines[0][:80]))
                continue
            for offset, value in zip(offsets, lines):
                place = (partition, offset)
                self.count[place] += 1
                if self.values.setdefault(place, value) != value:
                    self.changed.append(place)
        return self

    def missing(self, expected):
        return [place for place in expected if place not in self.count]

    def duplicates(self):
        return sum(self.count.values()) - len(self.count)


def wait_until_delivered(ledger, expected, seconds, alive=lambda: None, still=lambda: ()):
    """Waits as long as records keep arriving; whatever is still missing after `seconds` without progress is missing.

    `alive()` is called all the time, to look after the processes; `still()` gives further places that are accounted
    for, such as those in the dead letter.
    """
    waiting_since, seen = time.monotonic(), -1
    while True:
        alive()
        missing = set(ledger.update().missing(expected)) - set(still())
        if not missing:
            return missing
        if len(missing) != seen:
            waiting_since, seen = time.monotonic(), len(missing)
        if time.monotonic() - waiting_since > seconds:
            return missing
        time.sleep(0.2)


def wait_until_committed(cluster, group, seconds=30):
    """Waits until the group's committed offsets have reached the ends of the log; what lags when they do not."""
    def lag():
        rows = cluster.describe_group(group)
        lags.clear()
        lags.update({p: (committed, end) for p, (committed, end, _) in rows.items() if committed != end and end > 0})
        return bool(rows) and not lags
    lags = {}
    try:
        wait_until("offsets are committed", lag, seconds)
    except Failure:
        pass
    return lags


class Verdict:
    """Collects what was measured and what was violated, and prints both."""

    def __init__(self, name):
        self.name = name
        self.started = time.monotonic()
        self.figures = {}
        self.violations = []

    def figure(self, name, value):
        self.figures[name] = value

    def violated(self, text):
        say(f"VIOLATED: {text}")
        self.violations.append(text)

    def check(self, holds, text):
        if not holds:
            self.violated(text)

    def compare(self, ledger, expected, missing, allowed_duplicates=None):
        """Sets side by side: what is missing, what came twice, what came with another value, what Kafka never had.

        `allowed_duplicates` is how many records may have come twice; None is any number.
        """
        wrong = [place for place, value in expected.items() if ledger.values.get(place, value) != value]
        unknown = [place for place in ledger.count if place not in expected]
        duplicates = ledger.duplicates()
        self.figure("records", len(expected))
        self.figure("missing", len(missing))
        self.figure("duplicates", f"{duplicates} ({100 * duplicates / max(1, len(expected)):.2f} %)")
        self.check(not missing, f"{len(missing)} records missing, such as {sorted(missing)[:5]}")
        self.check(not wrong and not ledger.changed,
                   f"{len(wrong)} records with another value, such as {(wrong + ledger.changed)[:5]}")
        self.check(not unknown, f"{len(unknown)} records that Kafka does not hold, such as {unknown[:5]}")
        self.check(not ledger.strays, f"{len(ledger.strays)} messages without usable coordinates: {ledger.strays[:3]}")
        if allowed_duplicates is not None:
            self.check(duplicates <= allowed_duplicates, f"{duplicates} duplicates, more than {allowed_duplicates}")

    def print(self):
        self.figure("duration_s", round(time.monotonic() - self.started, 1))
        print(f"== {self.name}: {'VIOLATED' if self.violations else 'held'}")
        for name, value in self.figures.items():
            print(f"   {name}: {value}")
        for text in self.violations:
            print(f"   violated: {text}")
        return not self.violations
