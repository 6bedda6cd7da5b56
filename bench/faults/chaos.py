"""Everything dies, at times chosen by a seed, while records are produced: nothing may be missing at the end."""

import collections
import contextlib
import random
import threading
import time

from allowance import Allowance
from bench import Bench
from load import SteadyLoad
from processes import Failure, say
from sink import status
from verdict import wait_until_committed, wait_until_delivered

PARTITIONS = 6
RECORDS = 500_000
FAULTS = 100
# Of the short form: longer than a broker's restart takes, so that this alone drops nobody.
SESSION_MS = 12_000
# Dealt in rounds, so that even a short run meets every kind of thing that can break.
ROUND = ["kill", "term", "freeze", "wire", "broker", "pubsub", "pubsub", "pubsub"]
WIRE = ["cut", "stall", "half_close", "delay"]
BROKER = ["restart", "crash"]
PUBSUB = ["UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "hang", "reset",
          "lost_answer", "refuse_connections"]


class Fault:
    """What is to break, for how long, and how long after the fault before it begins."""

    def __init__(self, kind, detail, target, seconds, pause):
        self.kind, self.detail, self.target, self.seconds, self.pause = kind, detail, target, seconds, pause
        # One fault at a time may be at work on each of these.
        self.resource = {"wire": "wire", "broker": "broker", "pubsub": "pubsub"}.get(kind, f"member {target}")

    @property
    def name(self):
        return self.detail or self.kind

    def __str__(self):
        target = f" bridge-{self.target}" if self.resource.startswith("member") else ""
        return f"{self.kind} {self.detail or ''}{target} {self.seconds:.1f} s".replace("  ", " ")


def plan(seed, count, members, short):
    """The faults of one run; the same for the same arguments."""
    rng = random.Random(seed)
    kinds = []
    while len(kinds) < count:
        kinds.extend(rng.sample(ROUND, len(ROUND)))
    faults = []
    for kind in kinds[:count]:
        detail = {"wire": WIRE, "broker": BROKER, "pubsub": PUBSUB}.get(kind)
        # A frozen member shall outlive its session, which is 12 s in the short form.
        seconds = {"freeze": rng.uniform(13, 15) if short else rng.uniform(10, 60),
                   "wire": rng.uniform(1, 3) if short else rng.uniform(2, 20),
                   "pubsub": rng.uniform(1, 3) if short else rng.uniform(2, 15)}.get(kind, 0)
        faults.append(Fault(kind, rng.choice(detail) if detail else None, rng.randrange(members), seconds,
                            rng.uniform(0.3, 1.5) if short else rng.uniform(1, 6)))
    return faults


def run(options, strategy):
    """One run; true if every promise held."""
    short = options.scale < 0.2
    members = 2 if short else 3
    total, count = int(RECORDS * options.scale), max(8, round(FAULTS * options.scale))
    seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    name = f"chaos-{strategy}"
    say(f"{name}: seed {seed}, {total} records, {members} members, {count} faults")
    with Bench(name, options) as bench:
        bench.verdict.figure("seed", seed)
        consumer = {"partition_assignment_strategy": strategy}
        if short:
            consumer.update(session_timeout_ms=SESSION_MS, heartbeat_interval_ms=1000)
        bench.cluster.create_topic("urls", PARTITIONS)
        env = bench.kafka_env("chaos", **consumer)
        for number in range(members):
            arguments = ["--group-instance-id", f"bridge-{number}"] if options.static else []
            bench.member(f"bridge-{number}", env, "urls", arguments).start()
        bench.members[0].wait_until_assigned()
        chaos = Chaos(bench, plan(seed, count, members, short), total, SESSION_MS / 1000 if short else 6)
        chaos.run()
        settle(bench, total, 90 if short else 180, chaos.allowance)
        return bench.verdict.print()


class Chaos:
    """Carries out the plan: faults begin in its order and may overlap where they strike different things."""

    def __init__(self, bench, faults, total, session_seconds):
        self.bench, self.faults, self.total = bench, faults, total
        self.allowance = Allowance(session_seconds=session_seconds)
        self.injected = collections.Counter()
        self.busy = set()
        self.changed = threading.Condition()
        self.failures = []

    def run(self):
        share = self.total / len(self.faults)
        load = self.bench.load("urls", PARTITIONS)
        # Each fault lets the next share go, so that records move from the first fault to the last.
        rate = max(200, share / 1.5)
        with contextlib.ExitStack() as stack:
            steady = stack.enter_context(SteadyLoad(load, self.total, rate, share, self.allowance))
            stack.callback(self.wait_for_all)
            for number, fault in enumerate(self.faults, 1):
                self.pause(fault.pause)
                self.wait_for(fault.resource)
                say(f"fault {number} of {len(self.faults)}: {fault}")
                steady.allowed = self.total * number / len(self.faults)
                self.injected[f"{fault.kind} {fault.detail}" if fault.detail else fault.kind] += 1
                threading.Thread(target=self.carry_out, args=(fault,), daemon=True).start()
            self.wait_for_all()
            steady.allowed = self.total
            steady.wait()
        load.finish()
        self.bench.verdict.figure("faults", ", ".join(f"{n} {kind}" for kind, n in sorted(self.injected.items())))

    def pause(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.look_after()
            time.sleep(0.1)

    def wait_for(self, resource):
        while True:
            with self.changed:
                if resource not in self.busy:
                    self.busy.add(resource)
                    return
            self.look_after()
            time.sleep(0.1)

    def wait_for_all(self):
        while self.busy:
            time.sleep(0.1)

    def look_after(self):
        """Members that ended by themselves are started again, unless a fault is at work on them."""
        if self.failures:
            raise self.failures[0]
        for number, member in enumerate(self.bench.members):
            with self.changed:
                if f"member {number}" in self.busy:
                    continue
                member.look_after()

    def carry_out(self, fault):
        try:
            getattr(self, fault.kind)(fault)
        except Exception as failure:
            self.failures.append(failure if isinstance(failure, Failure) else Failure(f"{fault}: {failure!r}"))
        finally:
            with self.changed:
                self.busy.discard(fault.resource)

    def kill(self, fault):
        member = self.bench.members[fault.target]
        self.allowance.crash(fault.name, time.monotonic())
        member.kill()
        member.start()

    def term(self, fault):
        member = self.bench.members[fault.target]
        if member.process.status() is None:
            # Costs nothing, unless the broker or Pub/Sub does not answer meanwhile.
            if self.busy & {"wire", "broker", "pubsub"}:
                self.allowance.crash(f"{fault.name} within another fault", time.monotonic())
            member.stop()
        member.start()

    def freeze(self, fault):
        member = self.bench.members[fault.target]
        self.allowance.cut_off(fault.name, time.monotonic())
        member.freeze()
        time.sleep(fault.seconds)
        member.thaw()

    def wire(self, fault):
        proxy = self.bench.proxy
        held = self.cut_off(fault)
        if fault.detail == "delay":
            proxy.delay(200)
        else:
            getattr(proxy, fault.detail)()
        time.sleep(fault.seconds)
        proxy.pass_on()
        held[1] = time.monotonic()

    def broker(self, fault):
        held = self.cut_off(fault)
        if fault.detail == "restart":
            self.bench.cluster.stop()
        else:
            self.bench.cluster.crash()
        self.bench.cluster.resume()
        held[1] = time.monotonic()

    def cut_off(self, fault):
        """Notes that no member reaches its broker; what it returns takes the end."""
        now = time.monotonic()
        self.allowance.cut_off(f"{fault.kind} {fault.name}", now)
        return self.allowance.hold(now)

    def pubsub(self, fault):
        window = {"for_ms": int(fault.seconds * 1000)}
        if fault.detail in ("hang", "reset", "refuse_connections"):
            rule = {"kind": fault.detail, **window}
        elif fault.detail == "lost_answer":
            # Each is accepted and must be sent again: a duplicate that nobody can avoid, so only one.
            rule = {"kind": "lost_answer", "count": 1, **window}
            self.allowance.lost_answer(fault.name)
        else:
            rule = status(fault.detail, **window)
        held = self.allowance.hold(time.monotonic())
        self.bench.sink.faults(rule)
        time.sleep(fault.seconds)
        self.bench.sink.faults()
        held[1] = time.monotonic()


def settle(bench, total, seconds, allowance):
    """Waits for what is still under way, stops the members, compares."""
    verdict = bench.verdict
    expected = bench.cluster.records("urls")
    verdict.check(len(set(expected.values())) == total == len(expected),
                  f"the topic holds {len(expected)} records instead of {total}: the load is at fault, not the bridge")
    say(f"all faults are over and {len(expected)} records are in Kafka; waiting for the last of them")
    started = time.monotonic()
    missing = wait_until_delivered(bench.ledger, expected, seconds, bench.look_after_members)
    verdict.figure("settled_after_s", round(time.monotonic() - started, 1))
    for member in bench.members:
        member.stop()
    bench.ledger.update()
    verdict.figure("duplicates allowed", allowance.text())
    verdict.compare(bench.ledger, expected, missing, allowance.records())
    lags = wait_until_committed(bench.cluster, "chaos", 10)
    verdict.check(not lags or missing, f"offsets are not committed to the end: (committed, end) {lags}")
    verdict.figure("members", "; ".join(
        f"{member.name}: {member.starts} starts, ended by itself {len(member.own_ends)} times {set(member.own_ends)}"
        for member in bench.members))
    for member in bench.members:
        member.check(verdict, may_end=True)
