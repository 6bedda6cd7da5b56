"""Records that no message can carry, and batches that nobody can read: the partition moves on, and none is silent."""

import re
import time

from bench import Bench
from members import reported
from processes import run_tool, say, wait_until
from segments import break_batch

MOVE_ON_SECONDS = 30
GOOD = 10
REFUSED = "poison-that-pubsub-refuses"
HEADERS = {"header-not-utf8": [b"warm-regions=\xff\xfe"],
           "101-headers": [b"h-%d=x" % number for number in range(101)],
           "long-header-value": [b"warm-header-accept=" + b"v" * 1100],
           "long-header-name": [b"warm-header-" + b"n" * 300 + b"=x"]}
KINDS = ["null", "empty", "over-10-mb", REFUSED, *HEADERS]
POSITIONS = ["first", "middle", "last"]
PLACES = [(kind, position) for kind in KINDS for position in POSITIONS]
DEAD_PUBSUB = "projects/bench/topics/dead"
# (codec, what is broken, whether checksums are looked at): the batch that only its checksum shows to be broken is not
# noticed without it.
BROKEN = [("none", "body", "true"), ("none", "framing", "true"), ("zstd", "body", "true"), ("gzip", "body", "true"),
          ("none", "framing", "false"), ("zstd", "body", "false"), ("gzip", "body", "false")]


def run(options):
    with Bench("poison", options) as bench:
        bench.sink.faults({"kind": "refuse_data", "contains": REFUSED})
        for name, arguments in {"log": (), "kafka": ("--dead-letter", "dead"),
                                "pubsub": ("--dead-letter", DEAD_PUBSUB)}.items():
            if all(text in f"records-{name}" for text in options.only):
                records(bench, name, arguments)
        for checked in ("true", "false"):
            if all(text in f"broken-{checked}" for text in options.only):
                broken_batches(bench, checked)
        return bench.verdict.print()


def produce(bench, topic, partition, values, headers=(), *settings):
    """Appends these to one partition, in one batch; None is a null value."""
    # kcat sends an empty or null value only where there is a key.
    lines = b"".join(b"key:" + (value or b"") + b"\n" for value in values)
    command = ["kcat", "-P", "-b", bench.cluster.bootstrap, "-t", topic, "-p", str(partition), "-K:",
               "-X", "message.max.bytes=33554432", "-X", "linger.ms=100", *settings]
    if values == [None]:
        command.append("-Z")
    run_tool([*command, *(argument for header in headers for argument in (b"-H", header))], data=lines)


def value_of(kind):
    return {"null": None, "empty": b"", "over-10-mb": b"x" * (10_500_000),
            REFUSED: f"http://cdn.example.com/{REFUSED}".encode()}.get(kind, b"http://cdn.example.com/" + kind.encode())


def good(partition, half):
    return [f"http://cdn.example.com/{partition}/{half}/{number}".encode() for number in range(GOOD)]


def records(bench, name, arguments):
    """Every kind of poison as first, middle and last record of a partition of its own, with one dead letter."""
    topic, cluster, verdict = f"poison-{name}", bench.cluster, bench.verdict
    cluster.create_topic(topic, len(PLACES), max_message_bytes=33554432)
    if name == "kafka":
        cluster.create_topic("dead", 1, max_message_bytes=33554432)
    poison = {}
    for partition, (kind, position) in enumerate(PLACES):
        if position != "first":
            produce(bench, topic, partition, good(partition, 0))
        poison[partition, 0 if position == "first" else GOOD] = kind
        produce(bench, topic, partition, [value_of(kind)], HEADERS.get(kind, ()))
        if position != "last":
            produce(bench, topic, partition, good(partition, 1))
    ends = cluster.ends(topic, len(PLACES))
    everything = {(partition, offset) for partition, end in ends.items() for offset in range(end)}
    sink = bench.new_sink(f"sink-{topic}")
    sink.faults({"kind": "refuse_data", "contains": REFUSED})
    env = bench.kafka_env(topic, f"kafka-env-{topic}", auto_offset_reset="earliest",
                          fetch_message_max_bytes=20_000_000)
    member = bench.member(f"bridge-{topic}", env, topic, arguments, sink)
    member.start()
    places = {(p, o) for p, o in everything if (p, o) not in poison}
    arrived, started = set(), time.monotonic()

    def accounted():
        arrived.update((p, offset) for p, offsets, _ in sink.accepted() for offset in offsets)
        given = dead_letters(bench, name, topic, member, arrived & set(poison))
        return given if places <= arrived and set(poison) <= set(given) else None

    try:
        given = wait_until("all is accounted for", accounted, MOVE_ON_SECONDS + 15, [member.process])
        seconds = time.monotonic() - started
        verdict.check(seconds <= MOVE_ON_SECONDS, f"{topic}: moved on only after {seconds:.1f} s")
        say(f"{topic}: all {len(poison)} poison records accounted for after {seconds:.1f} s, such as "
            f"{next(iter(given.values()))!r}")
        verdict.check(all(given[place] for place in poison), f"{topic}: a dead letter has no reason")
    except Exception as failure:
        given = dead_letters(bench, name, topic, member, arrived & set(poison))
        silent = sorted({(poison[place], PLACES[place[0]][1]) for place in set(poison) - set(given)})
        held = sorted({PLACES[place[0]] for place in places - arrived})
        verdict.violated(f"{topic}: poison in no dead letter: {silent}; good records held up behind: {held}; "
                         f"{str(failure)[:300]}")
    verdict.figure(f"{topic} poison records", len(poison))
    member.stop()
    member.check(verdict)
    member.process = None


def dead_letters(bench, name, topic, member, arrived):
    """{(partition, offset): reason} of what is in the dead letter, or in the log where there is none.

    What Pub/Sub refuses for its data it refuses in a dead letter, too: then the log has it.
    """
    given = reported(member.lines())
    if name == "kafka":
        for headers in bench.cluster.read("dead", "%h\n"):
            text = headers.decode(errors="replace")
            at = {key: re.search(rf"kafka-{key}=([^,]*)", text) for key in ("topic", "partition", "offset")}
            reason = re.search(r"reason=(.+?)(?:,[a-z-]+=|$)", text)
            if all(at.values()) and at["topic"].group(1) == topic:
                place = int(at["partition"].group(1)), int(at["offset"].group(1))
                given[place] = reason.group(1) if reason else ""
    if name == "pubsub":
        # The sink writes down coordinates and no other attributes; poison never comes to the topic itself.
        given.update({place: "in the dead letter" for place in arrived})
    return given


def broken_batches(bench, checked):
    """The first, middle and last batch of a partition each broken on the broker's disk."""
    kinds = [(codec, how) for codec, how, crcs in BROKEN if crcs == checked]
    cluster, verdict, topic = bench.cluster, bench.verdict, f"broken-{checked}"
    cluster.create_topic(topic, 3 * len(kinds))
    for partition in range(3 * len(kinds)):
        for half in range(3):
            produce(bench, topic, partition, good(partition, half), (), "-z", kinds[partition // 3][0])
    cluster.stop()
    broken = {}
    for partition in range(3 * len(kinds)):
        how = kinds[partition // 3][1]
        broken.update({(partition, offset): (kinds[partition // 3], POSITIONS[partition % 3])
                       for offset in break_batch(cluster.segment(topic, partition), partition % 3, how)})
    cluster.resume()
    sink = bench.new_sink(f"sink-{topic}")
    env = bench.kafka_env(topic, f"kafka-env-{topic}", auto_offset_reset="earliest", check_crcs=checked)
    member = bench.member(f"bridge-{topic}", env, topic, (), sink)
    member.start()
    whole = {(p, o) for p in range(3 * len(kinds)) for o in range(3 * GOOD)} - set(broken)
    arrived, started = set(), time.monotonic()
    given = {}

    def accounted():
        arrived.update((p, offset) for p, offsets, _ in sink.accepted() for offset in offsets)
        given.update(reported(member.lines()))
        return whole <= arrived and set(broken) <= set(given)

    try:
        # One after the other, so that each partition has its time.
        wait_until("all is accounted for", accounted, MOVE_ON_SECONDS * 3, [member.process])
        say(f"{topic}: all of {3 * len(kinds)} broken batches accounted for after {time.monotonic() - started:.1f} s")
    except Exception as failure:
        silent = sorted({broken[place] for place in set(broken) - set(given)})
        held = sorted({(kinds[p // 3], POSITIONS[p % 3]) for p, _ in whole - arrived})
        verdict.violated(f"{topic}: broken batches that nobody reported: {silent}; good records held up: {held}; "
                         f"{str(failure)[:300]}")
    verdict.check(not arrived & set(broken), f"{topic}: records of broken batches were forwarded")
    verdict.figure(f"{topic} broken batches", 3 * len(kinds))
    member.stop()
    member.check(verdict)
    member.process = None
