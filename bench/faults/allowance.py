"""How many records may be delivered twice, fault by fault: from the rate, the commit interval, what may be in flight and
the session time-out.

A record comes twice if Pub/Sub accepted it and its offset was not committed when its member died or lost its partitions.
Offsets are committed every commit interval, so these are the records of the last interval, those whose calls are under way,
and those that were accepted behind a record that Pub/Sub did not accept yet. A member that is cut off from the group does not
know it before its session is over: what it had read may be delivered by it and by the next owner of the partition.
"""

import bisect
import collections

# The most records that a bridge reads without being able to commit them (docs/reliability.md), and those of one call.
IN_FLIGHT_RECORDS = 200_000
CALL_RECORDS = 1_000
# From a record's arrival in Kafka to the answer of its publish call, on a machine that is busy with three bridges.
PIPELINE_SECONDS = 0.5
# A fault that is over may still hold up commits and records for this long: reconnects, rebalances, the next try.
AFTER_SECONDS = 3.0


class Allowance:
    """Adds up what each fault may cost."""

    def __init__(self, commit_interval_seconds=0.1, session_seconds=6.0):
        self.commit_interval_seconds = commit_interval_seconds
        self.session_seconds = session_seconds
        # (moment, records sent so far), in order of time.
        self.sent = [(0.0, 0)]
        # (begin, end or None) of what keeps records from being accepted or offsets from being committed.
        self.holds = []
        # (what, moment, a function to the records it may cost)
        self._faults = []

    def note_sent(self, moment, so_far):
        """Remembers how many records the load had sent at that moment."""
        self.sent.append((moment, so_far))

    def hold(self, begin):
        """Notes that records or commits are held up from `begin` on; the list returned takes the end."""
        interval = [begin, None]
        self.holds.append(interval)
        return interval

    def crash(self, what, moment):
        """A member dies: what is accepted and not committed comes again."""
        self._faults.append((what, lambda: min(IN_FLIGHT_RECORDS, self._uncommitted(moment))))

    def cut_off(self, what, moment):
        """A member, frozen or without its broker, may lose its partitions: the next owner delivers what was not committed,
        and the member itself, until its session is over, what it had read and the next owner also has."""
        def cost():
            read_later = self._between(moment, moment + self.session_seconds)
            return min(IN_FLIGHT_RECORDS, self._uncommitted(moment)) + min(IN_FLIGHT_RECORDS, self._uncommitted(moment), read_later)
        self._faults.append((what, cost))

    def lost_answer(self, what):
        """A call is accepted and its answer lost: it is made again."""
        self._faults.append((what, lambda: CALL_RECORDS))

    def records(self):
        """What all faults so far may cost."""
        return sum(cost() for _, cost in self._faults)

    def text(self):
        """The sum, and its parts by kind of fault."""
        parts = collections.Counter()
        for what, cost in self._faults:
            parts[what] += cost()
        return f"{self.records()}: " + ", ".join(f"{what} {count}" for what, count in sorted(parts.items()))

    def _uncommitted(self, moment):
        """Records that were in Kafka and possibly accepted, but not committed, at that moment."""
        begin = moment - self.commit_interval_seconds - PIPELINE_SECONDS
        for held_from, held_to in self.holds:
            if held_from <= moment and (held_to is None or held_to + AFTER_SECONDS >= begin):
                begin = min(begin, held_from - self.commit_interval_seconds - PIPELINE_SECONDS)
        return self._between(begin, moment + PIPELINE_SECONDS)

    def _between(self, begin, end):
        """Records sent in that time."""
        return self._sent_at(end) - self._sent_at(begin)

    def _sent_at(self, moment):
        index = bisect.bisect_right(self.sent, (moment, float("inf"))) - 1
        return self.sent[max(0, index)][1]
